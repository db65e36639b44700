//! A provider's reply to a look-up, or to the look at a payment before its refund: a refund is
//! found only by the provider's own words beside its own identity, absent for certain only in the
//! shapes that prove it, and sent only for a payment that can be refunded.
//!
//! An input is one byte (the provider, by what it is asked, and what the gateway remembers), one
//! byte (the status), and the body.

use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, ReplyHead};
use serde_json::{Value, json};

use crate::harness::{Asked, Step, asked, no_line_ends, step};
use crate::json::{self, Found, Json};
use crate::money::whole;
use crate::reply::{STATUSES, in_proportion};
use core_testbed::fixtures::{FIXTURES, Fixture, TOKEN};
use core_testbed::oracles::derived_key;
use core_testbed::{call_headers, config, look_up_headers};

/// What the first byte asks for besides a provider.
pub const BY_ID: u8 = 1;
pub const BY_KEY: u8 = 2;
pub const CODED: u8 = 4;
pub const FIRST: u8 = 8;
/// The gateway remembers the refund's call, to which no answer came.
pub const REMEMBERED: u8 = 16;
/// By how much the provider is shifted in it.
pub const PROVIDER: u32 = 5;

/// The words for a refund that is done, one that is under way, and one that failed.
type Words = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

fn words(fixture: &Fixture) -> Words {
    match fixture.name() {
        "bog" => (&["completed"], &["refund_requested"], &["rejected"]),
        "moyasar" => (&["approved"], &["initiated"], &["failed"]),
        "begateway" => (
            &["successful"],
            &["pending", "incomplete"],
            &["failed", "expired", "deleted"],
        ),
        "bbmsl" => (&["REFUNDED"], &[], &[]),
        other => panic!("{other} is not described here"),
    }
}

thread_local! {
    /// The fixtures, plain and looking first.
    static CONFIGS: Vec<[Rc<Config>; 2]> = FIXTURES
        .iter()
        .map(|fixture| {
            let plain = fixture.provider_config();
            let mut first = plain.clone();
            first["query_first"] = json!(true);
            [plain, first].map(|provider| config(fixture.name(), &provider))
        })
        .collect();
}

pub fn check(data: &[u8]) {
    let [how, status, body @ ..] = data else {
        return;
    };
    let which = usize::from(how >> PROVIDER) % FIXTURES.len();
    let fixture = &FIXTURES[which];
    let [plain, first] = CONFIGS.with(|all| all[which].clone());
    let head = ReplyHead {
        status: STATUSES[usize::from(*status) % STATUSES.len()],
        retry_after: Some("120".to_owned()),
        coded: how & CODED != 0,
    };
    let payment: Value = serde_json::from_str(fixture.payment).expect("a payment");
    let payment = payment["id"].as_str().expect("an id");
    let key = derived_key(fixture.name(), "k-1");
    let id = match fixture.id {
        "@KEY@" => &key,
        id => id,
    };
    let (by_id, remembered) = (how & BY_ID != 0, how & REMEMBERED != 0);
    let by_key = how & BY_KEY != 0 || !by_id;
    let reply = Reply {
        fixture,
        head: &head,
        json: json::read(body).ok().filter(|_| !head.coded),
        payment,
        id: by_id.then_some(id),
        key: by_key.then_some(&key),
        remembered,
    };
    if how & FIRST != 0 {
        before_a_refund(&reply, &first, body);
        return;
    }
    let mut query = format!("provider={}&payment_id={payment}", fixture.name());
    if by_key {
        query.push_str("&key=k-1");
    }
    if by_id {
        query.push_str(&format!("&id={id}"));
    }
    let call = fixture.call().to_string();
    let sent = remembered.then_some(call.as_bytes());
    let looked = Asked::new(&plain, &look_up_headers(&query), sent);
    let answer = looked.answer(|step| match step {
        Step::Leaving(dispatch) => dispatch.sent.reply(&head, body, 1),
        Step::Calling(callout) => match asked(callout, &head, body) {
            Step::Answered(answer) => answer,
            _ => panic!("a look-up goes on"),
        },
        other => panic!("{other:?}"),
    });
    assert!(answer.look_up && answer.settles.is_none());
    assert!(by_key || answer.concludes.is_none());
    let said = told(fixture, &answer, head.status);
    if answer.status == 200 {
        reply.is_found(&said);
        return;
    }
    let (code, retry) = (&said["code"], &said["retry"]);
    if said["outcome"] == "not_refunded" {
        assert_eq!(
            (code, retry),
            (&json!("refund-not-found"), &json!("same_key"))
        );
        assert!(reply.proves_absence(), "{said} of {:?}", reply.json);
        return;
    }
    assert_eq!(said["outcome"], "unknown", "{said}");
    // Who asks again learns nothing where the provider refuses to say it, and where nothing tells
    // whose the refund is.
    let ends = [
        "refund-ambiguous",
        "payment-not-found",
        "provider-rejected",
        "refund-declined",
    ];
    let may_end = ends.iter().any(|known| code == known);
    assert!(retry == "look_up" || retry == "no" && may_end, "{said}");
}

/// The look before a refund: it goes out only where the payment, by its own name, can be refunded.
fn before_a_refund(reply: &Reply<'_>, config: &Rc<Config>, body: &[u8]) {
    let fixture = reply.fixture;
    let call = fixture.call().to_string();
    let step = step(config, &call_headers("k-1"), call.as_bytes(), TOKEN);
    let Some(Step::Calling(callout)) = step else {
        panic!("the payment is not looked at");
    };
    match asked(callout, reply.head, body) {
        Step::Leaving(_) => assert!(reply.can_be_refunded(), "sent after {:?}", reply.json),
        Step::Answered(answer) => {
            let said = told(fixture, &answer, reply.head.status);
            let detail = said["detail"].as_str().expect("a detail");
            assert!(detail.contains("Nothing was sent"), "{said}");
            assert_eq!(said["outcome"], "not_refunded", "{said}");
        }
        _ => panic!("it is looked at again"),
    }
}

fn no_credential(fixture: &Fixture, answer: &Answer) {
    for secret in fixture.secrets {
        assert!(!answer.body.contains(secret), "{}", answer.body);
    }
}

/// What holds of every answer.
fn told(fixture: &Fixture, answer: &Answer, status: u16) -> Value {
    let said: Value = serde_json::from_str(&answer.body).expect("JSON");
    no_credential(fixture, answer);
    assert!(no_line_ends(&answer.headers));
    in_proportion(answer, &said, status);
    assert_eq!(
        answer.refused_token.is_some(),
        fixture.name() == "bog" && status == 401
    );
    said
}

/// A reply as the oracle reads it.
struct Reply<'a> {
    fixture: &'static Fixture,
    head: &'a ReplyHead,
    json: Option<Json>,
    payment: &'a str,
    /// The refund's id, where it was asked for by it.
    id: Option<&'a str>,
    /// The provider's key of it, where it was asked for by its key.
    key: Option<&'a str>,
    remembered: bool,
}

fn once<'j>(json: &'j Json, name: &str) -> Option<&'j Json> {
    match json.find(name) {
        Found::Once(json) => Some(json),
        _ => None,
    }
}

impl Reply<'_> {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.head.status) && !self.head.coded
    }

    /// The JSON of a 2xx.
    fn json(&self) -> Option<&Json> {
        self.json.as_ref().filter(|_| self.is_success())
    }

    /// Whether a member of this name has this text somewhere, a tracking id as its last part.
    fn names(&self, name: &str, wanted: &str) -> bool {
        let is = |text: &str| {
            let text = match name {
                "tracking_id" => text.rsplit(';').next().unwrap_or_default(),
                _ => text,
            };
            text.eq_ignore_ascii_case(wanted)
        };
        self.json.as_ref().is_some_and(|json| {
            json.any(|known, json| known == Some(name) && json.scalar().is_some_and(is))
        })
    }

    /// By a word of the provider's for it, beside the payment and the refund's own identity.
    fn is_found(&self, said: &Value) {
        let of = || format!("{said} of {:?}", self.json);
        let json = self.json().unwrap_or_else(|| panic!("{}", of()));
        let (done, under_way, failed) = words(self.fixture);
        let allowed = match said["status"].as_str() {
            Some("succeeded") => done,
            Some("pending") => under_way,
            Some("failed") => failed,
            _ => panic!("{}", of()),
        };
        let holds = |text: &str| json.any(|_, json| json.scalar() == Some(text));
        assert!(allowed.iter().any(|word| holds(word)), "{}", of());
        assert_eq!(said["payment"]["id"], self.payment);
        let identity = match self.fixture.name() {
            // It shows no keys, and of a call without an answer the gateway knows no id.
            "bog" => self.id.is_some_and(|id| self.names("action_id", id)),
            "moyasar" => {
                let id = self.id.or(self.key);
                id.is_some_and(|id| self.names("id", id))
            }
            "begateway" => {
                let by_id = self.id.map(|id| self.names("uid", id));
                let by_key = self.key.map(|key| self.names("tracking_id", key));
                by_id.or(by_key) == Some(true) && self.names("parent_uid", self.payment)
            }
            // Nothing but that no other key was sent for the order, and that the gateway remembers.
            "bbmsl" => self.remembered && self.key.is_some(),
            other => panic!("{other} is not described here"),
        };
        assert!(identity, "{}", of());
        // A transaction by its uid is not the key's where it has another.
        if let ("begateway", Some(_), Some(key)) = (self.fixture.name(), self.id, self.key) {
            let transaction = once(json, "transaction");
            let shown = transaction.and_then(|transaction| once(transaction, "tracking_id"));
            let has_one = shown
                .and_then(Json::scalar)
                .is_some_and(|text| !text.is_empty());
            assert!(!has_one || self.names("tracking_id", key), "{}", of());
        }
        if let Some(value) = said["amount"]["value"].as_str() {
            assert!(whole(value, 20).is_some(), "{}", of());
            // What the gateway remembers under the key.
            if self.remembered && self.key.is_some() {
                assert_eq!(value, "10.00", "{}", of());
            }
        }
    }

    /// The documented shapes: beGateway's empty list under the key, and BBMSL's order that can be
    /// refunded and of which nothing is missing.
    fn proves_absence(&self) -> bool {
        let Some(json) = self.json().filter(|_| self.key.is_some()) else {
            return false;
        };
        match self.fixture.name() {
            "begateway" => {
                let empty = matches!(once(json, "transactions"), Some(Json::Array(items)) if items.is_empty());
                let errors = matches!(
                    json.find("errors"),
                    Found::Nothing | Found::Once(Json::Null)
                );
                empty && errors && self.id.is_none()
            }
            "bbmsl" => self.is_whole_order(json),
            "bog" | "moyasar" => false,
            other => panic!("{other} is not described here"),
        }
    }

    /// BBMSL's order, by its own name, paid, with nothing refunded.
    fn is_whole_order(&self, json: &Json) -> bool {
        let Some(order) = once(json, "order") else {
            return false;
        };
        let text = |name| once(order, name).and_then(Json::scalar);
        let number = |name| match once(order, name) {
            Some(Json::Number(number)) => whole(number, 20),
            _ => None,
        };
        let status = matches!(text("status"), Some("SUCCESS" | "SETTLED"));
        let nothing = number("amount").is_some() && number("amount") == number("netAmount");
        let named = text("id").is_none_or(|id| id == self.payment)
            && (text("id").is_some() || text("merchantReference").is_some());
        let accepted = once(json, "responseCode").and_then(Json::scalar) == Some("0000");
        status && nothing && named && accepted
    }

    /// A payment under its own name, paid, in the currency of the refund. At BOG a refund under way
    /// need not be the last.
    fn can_be_refunded(&self) -> bool {
        let Some(json) = self.json() else {
            return false;
        };
        let says = |name: &str, words: &[&str]| words.iter().any(|word| self.names(name, word));
        let currency = self.fixture.currency;
        match self.fixture.name() {
            "bog" => {
                const PAID: &[&str] = &[
                    "completed",
                    "partial_completed",
                    "refund_requested",
                    "refunded_partially",
                ];
                self.names("order_id", self.payment)
                    && self.names("currency_code", currency)
                    && says("key", PAID)
            }
            "moyasar" => self.names("id", self.payment) && self.names("currency", currency),
            "begateway" => {
                self.names("uid", self.payment)
                    && self.names("currency", currency)
                    && says("status", &["successful"])
            }
            "bbmsl" => self.is_whole_order(json) && self.names("currency", currency),
            other => panic!("{other} is not described here"),
        }
    }
}
