//! A provider's reply to a look-up, or to the question before a refund: it is found only by the provider's own words, and absent for
//! certain only in the shapes that prove it.
//!
//! An input is one byte (the provider, and by what it is asked), one byte (the status), and the body.

use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, ReplyHead};
use serde_json::{Value, json};

use crate::harness::fixtures::{FIXTURES, Fixture, TOKEN};
use crate::harness::{Step, asked, call_headers, config, look_up_headers, no_line_ends, step};
use crate::json::{self, Found, Json};
use crate::money::whole;
use crate::oracles::derived_key;
use crate::reply::{STATUSES, in_proportion};

/// What the first byte asks for besides a provider.
pub const BY_ID: u8 = 1;
pub const BY_KEY: u8 = 2;
pub const CODED: u8 = 4;
pub const FIRST: u8 = 8;
pub const DRY: u8 = 16;
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
        _ => (&["REFUNDED"], &[], &[]),
    }
}

thread_local! {
    /// The fixtures, plain and asking first.
    static CONFIGS: Vec<[Rc<Config>; 2]> = FIXTURES
        .iter()
        .map(|fixture| {
            let plain = fixture.provider_config();
            let mut first = plain.clone();
            if fixture.name() == "bbmsl" {
                first["query_first"] = json!(true);
            }
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
    if how & FIRST != 0 && fixture.name() == "bbmsl" {
        before_a_refund(fixture, &first, &head, body);
        return;
    }
    let payment: Value = serde_json::from_str(fixture.payment).expect("a payment");
    let payment = payment["id"].as_str().expect("an id");
    let mut query = format!("provider={}&payment_id={payment}", fixture.name());
    let by_key = how & BY_KEY != 0 || how & BY_ID == 0;
    if by_key {
        query.push_str("&key=k-1");
    }
    let key = derived_key(fixture.name(), "k-1");
    let id = match fixture.id {
        "@KEY@" => &key,
        id => id,
    };
    if how & BY_ID != 0 {
        query.push_str(&format!("&id={id}"));
    }
    let mut headers = look_up_headers(&query);
    if how & DRY != 0 {
        headers.text("refund-dry-run", "true".to_owned());
    }
    let answer = match step(&plain, &headers, b"", TOKEN) {
        Step::Sent(dispatch) => dispatch.sent.reply(&head, body, 1),
        Step::Asks(asking) => match asked(*asking, &head, body) {
            Step::Answered(answer) => answer,
            _ => panic!("a look-up goes on"),
        },
        Step::Answered(answer) => {
            assert!(how & DRY != 0, "{}", answer.body);
            assert_eq!((answer.status, answer.word), (200, "dry-run"));
            no_credential(fixture, &answer);
            return;
        }
        Step::NotOurs => panic!("not ours"),
    };
    assert!(how & DRY == 0, "a dry run was sent");
    assert!(answer.look_up && answer.settles.is_none());
    assert!(by_key || answer.concludes.is_none());
    let reply = Reply {
        fixture,
        head: &head,
        json: json::read(body).ok().filter(|_| !head.coded),
        payment,
        id: if how & BY_ID != 0 { id } else { &key },
        by_key: by_key && how & BY_ID == 0,
    };
    let said = told(fixture, &answer, head.status);
    if answer.status == 200 {
        reply.is_found(&said);
        return;
    }
    if said["outcome"] == "not_refunded" {
        assert_eq!(
            (&said["code"], &said["retry"]),
            (&json!("refund-not-found"), &json!("same_key"))
        );
        assert!(reply.proves_absence(), "{said} of {:?}", reply.json);
    } else {
        assert_eq!(
            (&said["outcome"], &said["retry"]),
            (&json!("unknown"), &json!("look_up")),
            "{said}"
        );
        assert!(answer.concludes.is_none());
    }
}

/// The question before a refund: the refund goes out only where the order proves that there was none.
fn before_a_refund(fixture: &'static Fixture, config: &Rc<Config>, head: &ReplyHead, body: &[u8]) {
    let call = fixture.call().to_string();
    let Step::Asks(asking) = step(config, &call_headers("k-1"), call.as_bytes(), TOKEN) else {
        panic!("nothing is asked first");
    };
    let payment: Value = serde_json::from_str(fixture.payment).expect("a payment");
    let reply = Reply {
        fixture,
        head,
        json: json::read(body).ok().filter(|_| !head.coded),
        payment: payment["id"].as_str().expect("an id"),
        id: "",
        by_key: true,
    };
    match asked(*asking, head, body) {
        Step::Sent(_) => assert!(reply.proves_absence(), "sent after {:?}", reply.json),
        Step::Answered(answer) => {
            let said = told(fixture, &answer, head.status);
            assert!(
                said["detail"]
                    .as_str()
                    .is_some_and(|text| text.contains("Nothing was sent")),
                "{said}"
            );
        }
        _ => panic!("it is asked again"),
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
    /// The name under which the provider shows the refund.
    id: &'a str,
    /// Whether it was asked for by the key alone.
    by_key: bool,
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

    /// By a word of the provider's for it, beside the payment and the refund's own name.
    fn is_found(&self, said: &Value) {
        let of = || format!("{said} of {:?}", self.json);
        assert!(self.is_success(), "{}", of());
        let json = self.json.as_ref().unwrap_or_else(|| panic!("{}", of()));
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
        // What is echoed is of this payment; Moyasar and BBMSL need not echo this name of it.
        if matches!(self.fixture.name(), "bog" | "begateway") {
            assert!(holds(self.payment), "{}", of());
        }
        let named = json.any(|_, json| {
            json.scalar().is_some_and(|text| {
                text.to_ascii_lowercase()
                    .contains(&self.id.to_ascii_lowercase())
            })
        });
        let nameless = self.fixture.name() == "bbmsl"
            || said["status"] == "pending" && self.fixture.name() == "bog";
        // A transaction by its uid need not repeat it.
        assert!(
            named || nameless || self.fixture.name() == "begateway" && !self.by_key,
            "{}",
            of()
        );
        if let Some(value) = said["amount"]["value"].as_str() {
            assert!(whole(value, 20).is_some(), "{}", of());
        }
    }

    /// The documented shapes: beGateway's empty list under the key, and BBMSL's order that can be refunded and of which nothing is
    /// missing.
    fn proves_absence(&self) -> bool {
        let Some(json) = self.json.as_ref().filter(|_| self.is_success()) else {
            return false;
        };
        match self.fixture.name() {
            "begateway" => {
                let empty = matches!(once(json, "transactions"), Some(Json::Array(items)) if items.is_empty());
                let errors = matches!(
                    json.find("errors"),
                    Found::Nothing | Found::Once(Json::Null)
                );
                empty && errors && self.by_key
            }
            "bbmsl" => {
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
            _ => false,
        }
    }
}
