//! Look-ups and dry runs: what a query may be, what a provider's word means for the refund under a key, and what is sent when an
//! order is asked for first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that panics has failed, which is what it is for"
)]

mod common;

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::fixtures::{FIXTURES, Fixture, TOKEN, head};
use common::oracles::derived_key;
use common::{
    NOW_MS, Out, SharedData, StubSigner, call_headers, config, look_up_headers, look_up_with,
};
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Opening, Prepared, open};
use refund_filter::guard::{Claim, Digest, Guard, GuardSettings};
use refund_filter::headers::Headers;
use refund_filter::secret::Secret;
use serde_json::{Value, json};

const KEY: &str = "k-1";

fn fixture(name: &str) -> &'static Fixture {
    FIXTURES
        .iter()
        .find(|fixture| fixture.name() == name)
        .unwrap()
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

/// Code (or status word), outcome and retry.
fn told(answer: &Answer) -> (String, String, String) {
    let body = json_of(answer);
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let word = match text("code") {
        code if code.is_empty() => text("status"),
        code => code,
    };
    (word, text("outcome"), text("retry"))
}

#[track_caller]
fn says(answer: &Answer, (word, outcome, retry): (&str, &str, &str)) {
    assert_eq!(
        told(answer),
        (word.to_owned(), outcome.to_owned(), retry.to_owned()),
        "{}",
        answer.body
    );
}

const NOT_THERE: (&str, &str, &str) = ("refund-not-found", "not_refunded", "same_key");
const NOT_SHOWN: (&str, &str, &str) = ("refund-not-found", "unknown", "look_up");
const MISMATCH: (&str, &str, &str) = ("provider-reply-mismatch", "unknown", "look_up");
const SUCCEEDED: (&str, &str, &str) = ("succeeded", "", "");
const REFUNDED_BEFORE: (&str, &str, &str) = ("provider-rejected", "unknown", "look_up");

/// A gateway with its memory, in front of one provider.
struct Gateway {
    fixture: &'static Fixture,
    config: Rc<Config>,
    memory: SharedData,
    leases: std::cell::Cell<u64>,
    now_ms: std::cell::Cell<i64>,
}

/// A refund on its way.
enum Asked {
    Sent(Out),
    Answered(Answer),
}

impl Gateway {
    fn of(name: &str) -> Self {
        Self::with(name, &fixture(name).provider_config())
    }

    fn with(name: &str, provider: &Value) -> Self {
        Gateway {
            fixture: fixture(name),
            config: config(name, provider),
            memory: SharedData::default(),
            leases: std::cell::Cell::new(0),
            now_ms: std::cell::Cell::new(NOW_MS),
        }
    }

    fn guard(&self) -> Guard<'_> {
        Guard {
            memory: &self.memory,
            settings: GuardSettings::default(),
        }
    }

    fn lease(&self) -> u64 {
        self.leases.set(self.leases.get() + 1);
        self.leases.get()
    }

    fn settled(&self, mut answer: Answer) -> Answer {
        answer.settle(&self.guard(), Some(self.lease()), self.now_ms.get());
        answer
    }

    fn send_with(&self, headers: &Headers<'_>, call: &Value) -> Asked {
        let now_ms = self.now_ms.get();
        let guard = self.guard();
        let earlier = |key: &Digest| guard.standing(key, now_ms);
        let reading = match open(&self.config, headers, now_ms, &earlier) {
            Opening::Read(reading) => reading,
            other => panic!("{other:?}"),
        };
        let accepted = match reading.accept(call.to_string().as_bytes(), &earlier) {
            Ok(accepted) => accepted,
            Err(answer) => return Asked::Answered(self.settled(answer)),
        };
        let claim = guard.ask(accepted.asks(), self.lease(), now_ms);
        match accepted.proceed(claim, now_ms, &mut StubSigner, &|_| None) {
            Prepared::Dispatch(dispatch) => Asked::Sent(Out::Routed(dispatch)),
            Prepared::Ask(asking) => Asked::Sent(Out::OnItsOwn(asking)),
            Prepared::Wait(waiting) => {
                let dispatch = waiting.with_token(Secret::new(TOKEN.into()));
                Asked::Sent(Out::Routed(Box::new(dispatch)))
            }
            Prepared::Answer(answer) => Asked::Answered(self.settled(answer)),
            Prepared::Sign(_) => panic!("this needs OpenBao"),
        }
    }

    fn send(&self) -> Asked {
        self.send_with(&call_headers(KEY), &self.fixture.call())
    }

    /// A refund that the provider answers like this; its success where there is no body.
    fn refund(&self, status: u16, body: Option<&str>) -> Answer {
        match self.send() {
            Asked::Sent(Out::Routed(dispatch)) => {
                let success = self
                    .fixture
                    .success_reply(&self.fixture.call(), &dispatch)
                    .0;
                let body = body.unwrap_or(&success);
                self.settled(dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1))
            }
            Asked::Sent(Out::OnItsOwn(_)) => panic!("the order is asked for first"),
            Asked::Answered(answer) => answer,
        }
    }

    fn query(&self, more: &str) -> String {
        let payment: Value = serde_json::from_str(self.fixture.payment).unwrap();
        let id = payment["id"].as_str().unwrap();
        format!("provider={}&payment_id={id}{more}", self.fixture.name())
    }

    /// Asks the provider; the answer is still to come.
    fn ask(&self, query: &str) -> Out {
        let headers = look_up_headers(query);
        let opening = open(&self.config, &headers, self.now_ms.get(), &|_| None);
        let Opening::Read(reading) = opening else {
            panic!("{opening:?}")
        };
        let accepted = reading.accept(b"", &|_| None).unwrap();
        let claim = self.guard().ask(accepted.asks(), 0, self.now_ms.get());
        look_up_with(&self.config, &headers, claim, TOKEN, self.now_ms.get()).unwrap()
    }

    fn told(&self, out: Out, body: &str) -> Answer {
        self.settled(out.reply(&head(200, &[]), body.as_bytes(), self.now_ms.get()))
    }

    fn look_up(&self, more: &str, body: &str) -> Answer {
        self.told(self.ask(&self.query(more)), body)
    }

    /// What the provider shows of a refund, in its minor units (BBMSL and BOG: of two decimals).
    fn shows(&self, payment: &str, id: &str, minor: u64, status: &str) -> String {
        let decimal = format!("{}.{:02}", minor / 100, minor % 100);
        match self.fixture.name() {
            "bog" => json!({
                "order_id": payment, "order_status": {"key": "refunded_partially"},
                "purchase_units": {"currency_code": "GEL"},
                "actions": [{"action_id": id, "action": "partial_refund", "status": status, "amount": decimal}],
            }),
            "moyasar" => json!({
                "id": payment, "currency": "SAR", "amount": 100_000,
                "transactions": [{"id": id, "type": "refund", "status": status, "amount": minor}],
            }),
            "begateway" => {
                let refund = json!({
                    "uid": "2-1", "parent_uid": payment, "type": "refund", "status": status, "amount": minor,
                    "currency": "USD", "tracking_id": id,
                });
                json!({"transactions": [refund]})
            }
            _ => {
                // As the vendor writes amounts: not as a float would.
                let left = format!("{}.{:02}", (100_000 - minor) / 100, (100_000 - minor) % 100);
                return format!(
                    r#"{{"responseCode":"0000","message":"Success","order":{{"id":{payment},"currency":"HKD","amount":1000.00,"netAmount":{left},"status":"{status}"}}}}"#
                );
            }
        }
        .to_string()
    }

    /// The id of the payment, the name by which the provider shows the refund under the key, and its word for done and for none.
    fn names(&self) -> (String, String, &'static str) {
        let payment: Value = serde_json::from_str(self.fixture.payment).unwrap();
        let id = payment["id"].as_str().unwrap().to_owned();
        let key = derived_key(self.fixture.name(), KEY);
        match self.fixture.name() {
            "bog" => (id, self.fixture.id.to_owned(), "completed"),
            "moyasar" => (id, key, "approved"),
            "begateway" => (id, key, "successful"),
            _ => (id, "1".to_owned(), "REFUNDED"),
        }
    }
}

/// The providers, and a reply after which their refund is open: BOG's first answer, a failure elsewhere.
fn open_refunds() -> impl Iterator<Item = Gateway> {
    FIXTURES.iter().map(|fixture| {
        let gateway = Gateway::of(fixture.name());
        match fixture.name() {
            "bog" => gateway.refund(200, None),
            _ => gateway.refund(500, Some("")),
        };
        gateway
    })
}

#[test]
fn what_is_found_under_the_key_is_what_the_next_call_is_answered() {
    for gateway in open_refunds() {
        let name = gateway.fixture.name();
        let (payment, id, done) = gateway.names();
        let found = gateway.look_up("&key=k-1", &gateway.shows(&payment, &id, 1_000, done));
        says(&found, SUCCEEDED);
        let again = gateway.refund(200, None);
        assert!(again.replayed, "{name}");
        let (told, found) = (json_of(&again), json_of(&found));
        for member in ["id", "status", "amount", "provider", "payment"] {
            assert_eq!(told[member], found[member], "{name} {member}");
        }
        // Asked again, the provider is asked again.
        let found = gateway.look_up("&key=k-1", &gateway.shows(&payment, &id, 1_000, done));
        says(&found, SUCCEEDED);
    }
}

#[test]
fn a_refund_that_failed_is_a_refusal_to_the_next_call() {
    for (name, failed) in [
        ("bog", "rejected"),
        ("moyasar", "failed"),
        ("begateway", "failed"),
    ] {
        let gateway = open_refunds()
            .find(|gateway| gateway.fixture.name() == name)
            .unwrap();
        let (payment, id, _) = gateway.names();
        let found = gateway.look_up("&key=k-1", &gateway.shows(&payment, &id, 1_000, failed));
        assert_eq!(found.status, 200);
        says(&found, ("failed", "", ""));
        let again = gateway.refund(200, None);
        says(&again, ("refund-declined", "not_refunded", "no"));
        assert!(again.replayed, "{name}");
    }
}

#[test]
fn another_amount_than_was_asked_for_is_a_mismatch_and_settles_nothing() {
    for gateway in open_refunds() {
        let name = gateway.fixture.name();
        let (payment, id, done) = gateway.names();
        let other = gateway.shows(&payment, &id, 999, done);
        says(&gateway.look_up("&key=k-1", &other), MISMATCH);
        assert!(!gateway.refund(500, Some("")).replayed || name == "bbmsl");
        // Nobody who knows the amount has told this gateway: what the provider shows is the answer.
        let strange = Gateway::of(name);
        let more = if name == "bog" {
            format!("&key=k-1&id={id}")
        } else {
            "&key=k-1".to_owned()
        };
        says(&strange.look_up(&more, &other), SUCCEEDED);
    }
}

#[test]
fn another_payment_in_the_reply_is_a_mismatch_whatever_is_remembered() {
    for gateway in open_refunds() {
        let (payment, id, done) = gateway.names();
        let other = if gateway.fixture.numeric_ids {
            "4923"
        } else {
            "another"
        };
        for gateway in [&gateway, &Gateway::of(gateway.fixture.name())] {
            let shown = gateway.shows(other, &id, 1_000, done);
            says(
                &gateway.look_up(&format!("&key=k-1&id={id}"), &shown),
                match gateway.fixture.name() {
                    // It was asked for one transaction, and this is a list.
                    "begateway" => ("provider-reply-unreadable", "unknown", "look_up"),
                    _ => MISMATCH,
                },
            );
            assert_ne!(payment, other);
        }
    }
}

#[test]
fn a_payment_that_is_not_the_keys_own_settles_nothing() {
    for gateway in open_refunds() {
        let name = gateway.fixture.name();
        let (_, id, done) = gateway.names();
        let other = if gateway.fixture.numeric_ids {
            "4923"
        } else {
            "another"
        };
        let query = format!("provider={name}&payment_id={other}&key=k-1&id={id}");
        let shown = match name {
            "begateway" => {
                let list: Value =
                    serde_json::from_str(&gateway.shows(other, &id, 1_000, done)).unwrap();
                let mut refund = list["transactions"][0].clone();
                refund["uid"] = json!(id);
                json!({"transaction": refund}).to_string()
            }
            _ => gateway.shows(other, &id, 1_000, done),
        };
        says(&gateway.told(gateway.ask(&query), &shown), SUCCEEDED);
        let again = gateway.refund(500, Some(""));
        assert!(
            json_of(&again)["status"] != "succeeded",
            "{name}: {}",
            again.body
        );
    }
}

#[test]
fn bog_finds_a_refund_by_its_key_as_long_as_the_gateway_remembers_its_id() {
    let gateway = Gateway::of("bog");
    let (payment, id, done) = gateway.names();
    let shown = gateway.shows(&payment, &id, 1_000, done);
    // Nothing is known of the key, and nothing is guessed from the amount.
    says(&gateway.look_up("&key=k-1", &shown), NOT_SHOWN);
    gateway.refund(200, None);
    says(
        &gateway.look_up(
            "&key=k-1",
            &gateway.shows(&payment, "another-id", 1_000, done),
        ),
        NOT_SHOWN,
    );
    // An id of the caller's own is asked for as it is, and is not the key's.
    let own = gateway.look_up(
        "&key=k-1&id=another-id",
        &gateway.shows(&payment, "another-id", 1_000, done),
    );
    says(&own, SUCCEEDED);
    assert!(!gateway.refund(200, None).replayed);
    says(&gateway.look_up("&key=k-1", &shown), SUCCEEDED);
    assert!(gateway.refund(200, None).replayed);
}

/// The providers that can prove that there is no refund, and the proof.
const PROOFS: [(&str, &str); 2] = [
    ("begateway", r#"{"transactions": []}"#),
    (
        "bbmsl",
        r#"{"responseCode":"0000","order":{"id":4922,"currency":"HKD","amount":15.00,"netAmount":15.00,"status":"SUCCESS"}}"#,
    ),
];

#[test]
fn a_proof_that_there_is_no_refund_frees_the_key() {
    for (name, proof) in PROOFS {
        for before in [None, Some(500)] {
            let gateway = Gateway::of(name);
            before.map(|status| gateway.refund(status, Some("")));
            says(&gateway.look_up("&key=k-1", proof), NOT_THERE);
            // As good as new: what the provider says now is all that is known.
            let again = gateway.refund(422, Some("{}"));
            assert_eq!(told(&again).1, "not_refunded", "{name}");
            assert!(!again.replayed, "{name}");
        }
    }
}

#[test]
fn a_proof_is_overtaken_by_another_call_with_the_key() {
    for (name, proof) in PROOFS {
        // The key is in flight when the provider is asked, when it answers, or both; or it has been sent with in between.
        for (sent_before, sent_after, open_before) in [
            (true, false, false),
            (false, true, false),
            (false, true, true),
        ] {
            let gateway = Gateway::of(name);
            if open_before && name != "bbmsl" {
                gateway.refund(500, Some(""));
            }
            let first = sent_before.then(|| gateway.send());
            let look_up = gateway.ask(&gateway.query("&key=k-1"));
            let second = sent_after.then(|| gateway.send());
            says(&gateway.told(look_up, proof), NOT_SHOWN);
            // Whichever it was: it settles its key undisturbed.
            for asked in [first, second].into_iter().flatten() {
                let Asked::Sent(Out::Routed(dispatch)) = asked else {
                    panic!("not sent")
                };
                let mut answer = dispatch.sent.reply(&head(500, &[]), b"", 1);
                assert_eq!(
                    answer.settle(&gateway.guard(), None, NOW_MS),
                    None,
                    "{name}"
                );
            }
        }
        // What was sent and failed in between counts as well.
        let gateway = Gateway::of(name);
        let look_up = gateway.ask(&gateway.query("&key=k-1"));
        gateway.refund(500, Some(""));
        says(&gateway.told(look_up, proof), NOT_SHOWN);
    }
}

#[test]
fn a_replay_of_a_look_up_is_told_with_the_callers_own_words() {
    for gateway in open_refunds() {
        let (payment, id, done) = gateway.names();
        let mut call = gateway.fixture.call();
        call["reason"] = json!("a \"quoted\" reason");
        call["reference"] = json!("réf;1");
        let gateway = Gateway::of(gateway.fixture.name());
        // The first send's answer is lost; at BOG it says its id.
        let Asked::Sent(Out::Routed(dispatch)) = gateway.send_with(&call_headers(KEY), &call)
        else {
            panic!("not sent")
        };
        let success = gateway.fixture.success_reply(&call, &dispatch).0;
        let (status, body) = match gateway.fixture.name() {
            "bog" => (200, &*success),
            _ => (500, ""),
        };
        gateway.settled(dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1));
        gateway.look_up("&key=k-1", &gateway.shows(&payment, &id, 1_000, done));
        let Asked::Answered(again) = gateway.send_with(&call_headers(KEY), &call) else {
            panic!("sent again")
        };
        let again = json_of(&again);
        assert_eq!(
            (&again["reason"], &again["reference"]),
            (&call["reason"], &call["reference"])
        );
    }
}

#[test]
fn every_failure_of_a_look_up_leaves_the_refund_as_unknown_as_it_was() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        for status in [204, 302, 400, 401, 402, 403, 404, 409, 422, 429, 500, 503] {
            for body in [
                "",
                "{}",
                "[]",
                "null",
                "<html>",
                r#"{"responseCode":"2001"}"#,
            ] {
                let asked = gateway.ask(&gateway.query("&key=k-1"));
                let answer = asked.reply(&head(status, &[]), body.as_bytes(), NOW_MS);
                let (_, outcome, retry) = told(&answer);
                assert_eq!(
                    (&*outcome, &*retry),
                    ("unknown", "look_up"),
                    "{}",
                    answer.body
                );
                assert_eq!((answer.settles, answer.concludes), (None, None));
                assert!(answer.look_up);
            }
        }
    }
}

fn faults(config: &Rc<Config>, query: &str) -> Vec<String> {
    let Err(answer) = look_up_with(config, &look_up_headers(query), Claim::None, TOKEN, NOW_MS)
    else {
        return Vec::new();
    };
    let body = json_of(&answer);
    assert_eq!(body["code"], "invalid-request", "{body}");
    assert_eq!(
        (&body["outcome"], &body["retry"]),
        (&json!("unknown"), &json!("look_up")),
        "{body}"
    );
    let errors = body["errors"].as_array().unwrap();
    let mut pointers: Vec<_> = errors
        .iter()
        .map(|error| error["pointer"].as_str().unwrap().to_owned())
        .collect();
    pointers.sort();
    pointers
}

#[test]
fn a_querys_faults_are_told_all_at_once() {
    let long = |name: &str, length: usize| format!("{name}={}", "x".repeat(length));
    let config = fixture("bog").config();
    let sound = "provider=bog&payment_id=o";
    for (query, wanted) in [
        (String::new(), &["/payment_id", "/provider"][..]),
        ("payment_id=o".into(), &["/provider"]),
        ("provider=nobody&id=1".into(), &["/payment_id", "/provider"]),
        ("provider=bog".into(), &["/key", "/payment_id"]),
        (sound.into(), &["/key"]),
        (
            "provider=bog&payment_reference=o&id=1".into(),
            &["/payment_id"],
        ),
        (
            "provider=bog&payment_id=..&id=.".into(),
            &["/id", "/payment_id"],
        ),
        (format!("{sound}&id="), &["/id"]),
        (format!("{sound}&{}", long("id", 256)), &["/id"]),
        (
            format!("{sound}&id=1&{}", long("reference", 65)),
            &["/reference"],
        ),
        (
            format!("provider=bog&id=1&{}", long("payment_id", 129)),
            &["/payment_id"],
        ),
        (format!("{sound}&{}", long("key", 256)), &["/key"]),
        (format!("{sound}&key="), &["/key"]),
        (format!("{sound}&key=a%20b"), &["/key"]),
        (format!("{sound}&key=a+b"), &["/key"]),
        (format!("{sound}&id=1&id=1"), &["/id"]),
        (format!("{sound}&id=1&%69d=2"), &["/id"]),
        (format!("{sound}&id=1&ID=2&amount=1"), &["/ID", "/amount"]),
        (format!("{sound}&id=%ff"), &["/id", "/key"]),
        (format!("{sound}&id=1&%ff=1"), &["/"]),
        (format!("{sound}&id=1&a~b/c=1"), &["/a~0b~1c"]),
        (format!("{sound}&id=1&=1"), &["/"]),
        (
            "provider=nobody&id=&x=1&id=2&key=a%00".into(),
            &["/id", "/id", "/key", "/payment_id", "/provider", "/x"],
        ),
        // Taken.
        (format!("{sound}&id=1"), &[]),
        (format!("&{sound}&&id=1&"), &[]),
        (format!("{sound}&id=1&reference=a+b%2B%C3%A9"), &[]),
        (format!("{sound}&key=%22k-1%22"), &[]),
        (format!("{sound}&id=%"), &[]),
        (format!("{sound}&id=%4"), &[]),
        (format!("{sound}&id=a=b"), &[]),
        (format!("{sound}&{}", long("id", 255)), &[]),
    ] {
        assert_eq!(faults(&config, &query), wanted, "{query}");
    }
    // One refund per order, and either name of it.
    let config = fixture("bbmsl").config();
    for (query, wanted) in [
        ("provider=bbmsl&payment_id=4922", &[][..]),
        ("provider=bbmsl&payment_reference=r", &[]),
        (
            "provider=bbmsl&payment_id=x&payment_reference=r",
            &["/payment_id"],
        ),
        ("provider=bbmsl", &["/payment_id"]),
    ] {
        assert_eq!(faults(&config, query), wanted, "{query}");
    }
}

#[test]
fn a_query_full_of_names_is_told_in_little() {
    let config = fixture("bog").config();
    for name in ["x", "id"] {
        let query: Vec<_> = (0..10_000)
            .map(|nth| match name {
                "x" => format!("{}{nth}=1", "x".repeat(60)),
                name => format!("{name}={nth}"),
            })
            .collect();
        let headers = look_up_headers(&query.join("&"));
        let Err(answer) = look_up_with(&config, &headers, Claim::None, TOKEN, NOW_MS) else {
            panic!("taken")
        };
        assert!(answer.body.len() < 16 * 1_024, "{}", answer.body.len());
    }
}

#[test]
fn what_a_query_decodes_to_is_what_is_asked_for() {
    let config = fixture("bog").config();
    for (query, path) in [
        ("payment_id=a%2Fb&id=1", "/payments/v1/receipt/a%2Fb"),
        ("payment_id=a+b&id=1", "/payments/v1/receipt/a%20b"),
        ("payment_id=a%2bb&id=1", "/payments/v1/receipt/a%2Bb"),
        (
            "payment_id=%E1%83%90&id=1",
            "/payments/v1/receipt/%E1%83%90",
        ),
        ("payment_id=%3F%23&id=1", "/payments/v1/receipt/%3F%23"),
    ] {
        let headers = look_up_headers(&format!("provider=bog&{query}"));
        let Ok(Out::Routed(dispatch)) = look_up_with(&config, &headers, Claim::None, TOKEN, NOW_MS)
        else {
            panic!("{query}")
        };
        assert_eq!(
            dispatch.headers.first(":path"),
            Some(path.as_bytes()),
            "{query}"
        );
        assert_eq!(dispatch.headers.first(":method"), Some(&b"GET"[..]));
        assert_eq!(dispatch.body, "");
    }
}

#[test]
fn a_look_up_has_no_body() {
    for fixture in FIXTURES {
        let query = Gateway::of(fixture.name()).query("&key=k-1");
        let Opening::Read(reading) =
            open(&fixture.config(), &look_up_headers(&query), NOW_MS, &|_| {
                None
            })
        else {
            panic!("not read")
        };
        let answer = reading.accept(b"{}", &|_| None).unwrap_err();
        says(&answer, ("invalid-request", "unknown", "look_up"));
        assert_eq!(json_of(&answer)["errors"][0]["pointer"], "");
    }
}

/// Canaries, and what they are in a header or a URL.
fn forms(secret: &str) -> Vec<String> {
    let encoded: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    vec![
        secret.to_owned(),
        STANDARD.encode(secret),
        STANDARD.encode(format!("361:{secret}")),
        encoded,
    ]
}

#[test]
fn a_dry_run_shows_the_request_and_no_secret_and_takes_nothing() {
    for fixture in FIXTURES {
        let name = fixture.name();
        let gateway = Gateway::of(name);
        let mut headers = call_headers(KEY);
        headers.text("refund-dry-run", "true".into());
        let Asked::Answered(refund) = gateway.send_with(&headers, &fixture.call()) else {
            panic!("{name}: sent, or a token is fetched")
        };
        let mut headers = look_up_headers(&gateway.query("&key=k-1"));
        headers.text("refund-dry-run", "true".into());
        let look_up = look_up_with(&gateway.config, &headers, Claim::None, TOKEN, NOW_MS);
        let Err(look_up) = look_up else {
            panic!("{name}: sent")
        };
        for (answer, method) in [
            (&refund, "POST"),
            (&look_up, if name == "bbmsl" { "POST" } else { "GET" }),
        ] {
            assert_eq!(
                (answer.status, answer.word),
                (200, "dry-run"),
                "{}",
                answer.body
            );
            assert_eq!((&answer.settles, &answer.concludes), (&None, &None));
            let body = json_of(answer);
            assert_eq!(body["provider"], name);
            assert_eq!(body["method"], method);
            let base = fixture.provider_config()["base_url"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(body["url"].as_str().unwrap().starts_with(&base), "{body}");
            for secret in fixture.secrets {
                for form in forms(secret) {
                    assert!(!answer.body.contains(&form), "{name}: {}", answer.body);
                }
            }
            // What proves who calls is there, and not shown.
            match name {
                "bbmsl" => {
                    let sent: Value = serde_json::from_str(body["body"].as_str().unwrap()).unwrap();
                    assert_eq!(sent["signature"], "[redacted]", "{body}");
                    assert!(
                        !answer.body.contains(&STANDARD.encode([0x5a; 256])),
                        "{body}"
                    );
                }
                "begateway" => assert_eq!(body["headers"]["authorization"], "Basic [redacted]"),
                _ => assert_eq!(body["headers"]["authorization"], "Bearer [redacted]"),
            }
        }
        // Nothing was taken: the key is as good as new, and what is sent is what was shown.
        assert_eq!(*gateway.memory.0.borrow(), Default::default(), "{name}");
        let Asked::Sent(Out::Routed(dispatch)) = gateway.send() else {
            panic!("{name}: not sent")
        };
        let shown = json_of(&refund);
        if name != "bbmsl" {
            assert_eq!(shown["body"], dispatch.body);
        }
        let path = String::from_utf8(dispatch.headers.first(":path").unwrap().to_vec()).unwrap();
        assert!(shown["url"].as_str().unwrap().ends_with(&path));
    }
}

#[test]
fn a_dry_run_is_asked_for_in_one_way_and_refused_in_every_other() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        for values in [
            &["yes"][..],
            &["TRUE"],
            &["1"],
            &[""],
            &["true", "true"],
            &["false", "true"],
        ] {
            for mut headers in [
                call_headers(KEY),
                look_up_headers(&gateway.query("&key=k-1")),
            ] {
                for value in values {
                    headers.text("refund-dry-run", (*value).to_owned());
                }
                let Opening::Read(reading) = open(&gateway.config, &headers, NOW_MS, &|_| None)
                else {
                    panic!("not read")
                };
                let body = match headers.first(":method") {
                    Some(b"POST") => fixture.call().to_string(),
                    _ => String::new(),
                };
                let answer = reading.accept(body.as_bytes(), &|_| None).unwrap_err();
                assert_eq!(told(&answer).0, "invalid-request", "{values:?}");
            }
        }
        let mut headers = call_headers(KEY);
        headers.text("refund-dry-run", "false".into());
        assert!(matches!(
            gateway.send_with(&headers, &fixture.call()),
            Asked::Sent(_)
        ));
    }
}

#[test]
fn an_order_is_asked_for_first_and_only_a_clean_one_is_refunded() {
    let mut provider = fixture("bbmsl").provider_config();
    provider["query_first"] = json!(true);
    let order = |status: &str, left: &str| {
        format!(
            r#"{{"responseCode":"0000","order":{{"id":4922,"currency":"HKD","amount":15.00,"netAmount":{left},"status":"{status}"}}}}"#
        )
    };
    let not_refundable = ("provider-rejected", "not_refunded", "no");
    let unreachable = ("provider-unreachable", "not_refunded", "same_key");
    /// What a caller is told: code, outcome and retry.
    type Told<'a> = (&'a str, &'a str, &'a str);
    let mut rows: Vec<(u16, String, Option<Told<'_>>)> = vec![
        (200, order("SUCCESS", "15.00"), None),
        (200, order("SETTLED", "15"), None),
        (200, order("REFUNDED", "5.00"), Some(REFUNDED_BEFORE)),
        (200, order("REFUNDED", "0"), Some(REFUNDED_BEFORE)),
        (200, order("SUCCESS", "15.001"), Some(unreachable)),
        (200, order("NEW", "15.00"), Some(unreachable)),
        (
            200,
            order("SUCCESS", "15.00").replace("4922", "4923"),
            Some(unreachable),
        ),
        (200, r#"{"responseCode":"0000"}"#.into(), Some(unreachable)),
        (
            200,
            r#"{"responseCode":"2001"}"#.into(),
            Some(not_refundable),
        ),
        (200, "<html>".into(), Some(unreachable)),
        (400, "{}".into(), Some(not_refundable)),
        (
            401,
            "{}".into(),
            Some(("provider-auth-failed", "not_refunded", "same_key")),
        ),
        (
            404,
            "{}".into(),
            Some(("payment-not-found", "not_refunded", "no")),
        ),
        (
            429,
            "{}".into(),
            Some(("provider-rate-limited", "not_refunded", "same_key")),
        ),
        (500, order("SUCCESS", "15.00"), Some(unreachable)),
        (504, "upstream request timeout".into(), Some(unreachable)),
        (
            503,
            "upstream connect error or disconnect".into(),
            Some(unreachable),
        ),
    ];
    for status in ["OPEN", "VOIDED", "CLOSED"] {
        rows.push((200, order(status, "15.00"), Some(not_refundable)));
    }
    // Something is missing, or more is there than was paid, and no refund shows.
    for status in ["OPEN", "VOIDED", "CLOSED", "SUCCESS", "SETTLED"] {
        rows.push((200, order(status, "5.00"), Some(REFUNDED_BEFORE)));
    }
    rows.push((200, order("REFUNDED", "15.00"), Some(REFUNDED_BEFORE)));
    rows.push((200, order("SUCCESS", "16.00"), Some(REFUNDED_BEFORE)));
    for (status, body, wanted) in rows {
        let gateway = Gateway::with("bbmsl", &provider);
        let Asked::Sent(Out::OnItsOwn(asking)) = gateway.send() else {
            panic!("not asked for")
        };
        let path = asking.request().1.first(":path").unwrap();
        assert_eq!(path, b"/hosted-checkout/query");
        let went_on = asking.reply(
            &head(status, &[]),
            body.as_bytes(),
            NOW_MS,
            &mut StubSigner,
            &|_| None,
        );
        match (went_on, wanted) {
            (Prepared::Dispatch(dispatch), None) => {
                let path = dispatch.headers.first(":path").unwrap();
                assert_eq!(path, b"/hosted-checkout/refund");
            }
            (Prepared::Answer(answer), Some(wanted)) => {
                let answer = gateway.settled(answer);
                says(&answer, wanted);
                assert!(
                    json_of(&answer)["detail"]
                        .as_str()
                        .unwrap()
                        .contains("Nothing was sent"),
                    "{}",
                    answer.body
                );
                // What certainly was not sent leaves the key as it was; what may be there does not.
                let again = gateway.send();
                let is_free = matches!(again, Asked::Sent(_));
                assert_eq!(is_free, wanted.2 == "same_key", "{body}");
            }
            (other, wanted) => panic!("{status} {body}: {other:?} instead of {wanted:?}"),
        }
    }
    // A dry run shows the refund itself, and asks nobody.
    let mut headers = call_headers(KEY);
    headers.text("refund-dry-run", "true".into());
    let gateway = Gateway::with("bbmsl", &provider);
    let Asked::Answered(shown) = gateway.send_with(&headers, &gateway.fixture.call()) else {
        panic!("asked for")
    };
    assert!(
        json_of(&shown)["url"]
            .as_str()
            .unwrap()
            .ends_with("/hosted-checkout/refund")
    );
}
