//! What a fixture of a provider is: the suites that hold every provider to the same rules know
//! providers by these alone. A new one is a folder in tests/providers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Dispatch, ReplyHead};
use refund_filter::headers::Headers;
use refund_filter::provider::ProviderKind;
use serde_json::{Value, json};

use crate::oracles::derived_key;
use crate::{NOW, StubSigner, call_headers, config, send_with};

/// In what a provider counts amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    Major,
    Minor,
}

/// What the suites know of a provider.
#[derive(Debug)]
pub struct Fixture {
    pub kind: &'static ProviderKind,
    /// A sound configuration. `CANARY-…` stands where a secret does; `@FILE` is a file of
    /// tests/providers/bbmsl/golden.
    pub provider: &'static str,
    /// The secrets of that configuration which the provider must get, and nobody else.
    pub secrets: &'static [&'static str],
    /// A payment that the provider can take.
    pub payment: &'static str,
    /// A currency that the provider can take, with two decimals.
    pub currency: &'static str,
    /// In what it counts amounts.
    pub counts: Counts,
    /// Currencies in which the provider counts other decimals than ISO 4217 has.
    pub own_digits: &'static [(&'static str, usize)],
    /// The reply of the vendor's page to a refund that it took. `@AMOUNT@`, `@CURRENCY@`,
    /// `@PAYMENT@` and `@KEY@` stand for what was sent.
    pub success: &'static str,
    /// What that reply means.
    pub means: &'static str,
    /// The refund's id in it.
    pub id: &'static str,
    /// Where its deciding word stands.
    pub word: &'static str,
    /// Where the same word stands once more.
    pub word_again: &'static [&'static str],
    /// What names this refund in the reply, where it is the only name there.
    pub only_name: Option<&'static str>,
    /// Other values of that word that mean `pending`.
    pub pending: &'static [&'static str],
    /// Values of that word that mean `refund-declined`.
    pub declined: &'static [&'static str],
    /// What must be in the reply and right besides the word: without it, or with something else
    /// there, it is no success.
    pub needed: &'static [&'static str],
    /// What the reply echoes, and something else that it could have echoed.
    pub echoes: &'static [(&'static str, &'static str)],
    /// Where the provider's texts stand in a reply of a refusal.
    pub refusal: &'static str,
    /// The headers of a request that no other provider need have.
    pub headers: &'static [&'static str],
    /// The idempotency key in a request.
    pub sent_key: fn(&Dispatch) -> Option<String>,
    /// Whether a 409 can mean that the refund is there already.
    pub conflict_is_a_refusal: bool,
    /// Whether it can refund "all of it" without being told how much.
    pub takes_full: bool,
    /// Whether it refuses a refund without a reason.
    pub needs_reason: bool,
    /// Whether it says for how long it keeps keys, so that `same_key` has an end.
    pub keeps_keys: bool,
    /// Whether a payment's id is a number.
    pub numeric_ids: bool,
    /// The `authorization` of a request; none where the body is signed.
    pub authorization: Option<&'static str>,
    /// Where the credential stands in the configuration.
    pub credential: &'static str,
    /// Places of its own configuration, known and unknown ones.
    pub configuration: &'static [&'static str],
    /// Which of them are no secrets, and may be shown.
    pub open: &'static [&'static str],
    /// What makes the configuration another merchant's: where, and the JSON that stands there
    /// then.
    pub another_merchant: (&'static str, &'static str),
    /// The currencies that only `minor_units` of the configuration allows, with ISO 4217's
    /// decimals.
    pub disputed: &'static [(&'static str, u8)],
    /// Whether so many minor units, which are this value, are not too much and not too fine.
    pub sends: fn(u64, &str) -> bool,
    /// What `by key` of the contract is: `same_key` where the provider has an idempotency key,
    /// `look_up` where it has none.
    pub by_key: &'static str,
    /// Whether it tells refunds apart by their ids alone.
    pub by_id_alone: bool,
    /// Replies that say that the refund may be there.
    pub may_be_there: &'static [&'static str],
    /// The codes that the configuration knows to be a plain refusal.
    pub declined_codes: &'static [&'static str],
    /// Where a success shows what was refunded, and where a decline left it.
    pub left_by_a_decline: &'static [(&'static str, &'static str)],
    /// The status and the reply for a payment that does not exist.
    pub no_payment: (u16, &'static str),
    /// What it shows of a payment and its refunds: the payment's id, its currency, and what was
    /// paid, in minor units of two decimals.
    pub shows: fn(&str, &str, u64, &[Shown<'_>]) -> String,
    /// By what it shows the refund under a key; `@KEY@`: the key that it was sent.
    pub shown_as: &'static str,
    /// The word for a refund that is made.
    pub shown_done: &'static str,
    /// The word for a refund that failed; none where such a one does not show.
    pub shown_failed: Option<&'static str>,
    /// Where its texts stand in what it shows.
    pub shown_words: &'static [&'static str],
    /// What it shows of one refund that is asked for by its id, made from what it shows by key:
    /// where these differ, a look-up by key shows the refunds of that key alone.
    pub shows_one: Option<fn(&Value, &str) -> Value>,
    /// The reply that proves that there is no refund, where there can be one.
    pub absent: Option<&'static str>,
    /// What it shows of a payment: its id, currency, what was paid and what is left, in minor
    /// units of two decimals, and its state.
    pub shows_payment: fn(&str, &str, u64, u64, &str) -> String,
    /// The state of a payment that can be refunded.
    pub paid: &'static str,
    /// The states of payments that cannot.
    pub unpaid: &'static [&'static str],
    /// Whether what is left of a payment shows, and some of it can be refunded.
    pub shows_left: bool,
    /// Whether the state is a word of its own.
    pub state_is_a_word: bool,
}

/// A refund, as a provider shows it.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its id at the provider.
    pub id: &'a str,
    /// The key under which it was sent.
    pub key: &'a str,
    /// In minor units of two decimals.
    pub minor: u64,
    /// In the provider's own word.
    pub status: &'a str,
}

/// Minor units of two decimals as a decimal text.
pub fn decimal(minor: u64) -> String {
    format!("{}.{:02}", minor / 100, minor % 100)
}

#[path = "../providers/mod.rs"]
mod providers;
pub use providers::FIXTURES;

/// The fixture of a provider.
pub fn fixture(name: &str) -> &'static Fixture {
    let mut fixtures = FIXTURES.iter();
    fixtures.find(|fixture| fixture.name() == name).unwrap()
}

/// The access token that the suites' token endpoint gives.
pub const TOKEN: &str = "CANARY-access-token";

impl Fixture {
    pub fn name(&self) -> &'static str {
        self.kind.name
    }

    pub fn provider_config(&self) -> Value {
        serde_json::from_str(self.provider).unwrap()
    }

    pub fn config(&self) -> Rc<Config> {
        config(self.name(), &self.provider_config())
    }

    /// The same configuration, read once in a thread: for tests that take thousands of calls
    /// through it.
    pub fn config_once(&self) -> Rc<Config> {
        thread_local! {
            static READ: RefCell<BTreeMap<&'static str, Rc<Config>>> = const { RefCell::new(BTreeMap::new()) };
        }
        READ.with_borrow_mut(|read| {
            Rc::clone(read.entry(self.name()).or_insert_with(|| self.config()))
        })
    }

    pub fn call(&self) -> Value {
        self.call_for("10.00", self.currency)
    }

    pub fn call_for(&self, value: &str, currency: &str) -> Value {
        let mut call = json!({
            "provider": self.name(),
            "payment": serde_json::from_str::<Value>(self.payment).unwrap(),
            "amount": {"value": value, "currency": currency},
        });
        if self.needs_reason {
            call["reason"] = json!("returned goods");
        }
        call
    }

    /// The JSON number in the request, as it was written.
    pub fn wire_amount(&self, dispatch: &Dispatch) -> Option<String> {
        let text = self.inner_text(dispatch);
        let (_, rest) = text.split_once("\"amount\":")?;
        rest.split([',', '}']).next().map(str::to_owned)
    }

    /// The text that the provider reads: BBMSL's stands as a string in another JSON text.
    pub fn inner_text(&self, dispatch: &Dispatch) -> String {
        let body: Value = serde_json::from_str(&dispatch.body).unwrap();
        match body["request"].as_str() {
            Some(inner) => inner.to_owned(),
            None => dispatch.body.clone(),
        }
    }

    fn fill(&self, text: &str, call: &Value, dispatch: &Dispatch) -> String {
        let amount = self.wire_amount(dispatch).unwrap_or_else(|| "1000".into());
        let currency = call["amount"]["currency"].as_str().unwrap_or(self.currency);
        text.replace("@AMOUNT@", &amount)
            .replace("@CURRENCY@", currency)
            .replace(
                "@PAYMENT@",
                call["payment"]["id"].as_str().unwrap_or_default(),
            )
            .replace("@KEY@", &(self.sent_key)(dispatch).unwrap_or_default())
    }

    /// Writes a provider's word into its success, wherever it stands. A declined refund left the
    /// order as it was.
    pub fn say(&self, reply: &mut Value, word: &Value) {
        for pointer in self.word_again.iter().chain([&self.word]) {
            *reply.pointer_mut(pointer).unwrap() = word.clone();
        }
        if word
            .as_str()
            .is_some_and(|word| self.declined.contains(&word))
        {
            for (shown, left) in self.left_by_a_decline {
                *reply.pointer_mut(shown).unwrap() = reply.pointer(left).unwrap().clone();
            }
        }
    }

    /// The vendor's reply to this request, as text and as the refund's id in it.
    pub fn success_reply(&self, call: &Value, dispatch: &Dispatch) -> (String, String) {
        (
            self.fill(self.success, call, dispatch),
            self.fill(self.id, call, dispatch),
        )
    }

    /// What the provider shows of the sound call's order when it is asked how the refund under the
    /// key `k-1` stands: it is made, or there is none.
    pub fn shown(&self, refunded: bool) -> String {
        let payment: Value = serde_json::from_str(self.payment).unwrap();
        let refund = Shown {
            id: self.id,
            key: &derived_key(self.name(), "k-1"),
            minor: 1_000,
            status: self.shown_done,
        };
        let refunds: &[Shown<'_>] = if refunded { &[refund] } else { &[] };
        (self.shows)(
            payment["id"].as_str().unwrap(),
            self.currency,
            1_500,
            refunds,
        )
    }

    /// Whether a signature in the body says who calls, and no header.
    pub fn signs(&self) -> bool {
        self.authorization.is_none()
    }

    pub fn refusal_reply(&self, code: &str, message: &str) -> String {
        self.refusal
            .replace("@CODE@", code)
            .replace("@MESSAGE@", message)
    }
}

pub fn header(dispatch: &Dispatch, name: &str) -> Option<String> {
    dispatch
        .headers
        .first(name)
        .map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// A call sent off, without the cost of RSA.
pub fn sent(config: &Rc<Config>, key: &str, call: &Value) -> Result<Box<Dispatch>, Answer> {
    sent_bytes(config, key, call.to_string().as_bytes())
}

pub fn sent_bytes(config: &Rc<Config>, key: &str, call: &[u8]) -> Result<Box<Dispatch>, Answer> {
    send_with(
        config,
        &call_headers(key),
        call,
        TOKEN,
        NOW,
        &mut StubSigner,
    )
}

/// The head of a reply.
pub fn head(status: u16, headers: &[(&'static str, &str)]) -> ReplyHead {
    let mut map = Headers::default();
    map.text(":status", status.to_string());
    for (name, value) in headers {
        map.text(name, (*value).to_owned());
    }
    ReplyHead::of(&map)
}

type Entry = (
    &'static str,
    &'static [u16],
    &'static [(&'static str, &'static str)],
);

/// Every code of the contract with its statuses, and what may stand beside it as outcome and retry.
/// `key` is "by key". What a status says turns `unknown` and "by key" after a retry by the route.
const CATALOGUE: &[Entry] = &[
    (
        "bad-request",
        &[400, 426, 431],
        &[("not_refunded", "corrected")],
    ),
    (
        "method-not-allowed",
        &[405],
        &[("not_refunded", "corrected")],
    ),
    (
        "unsupported-media-type",
        &[415],
        &[("not_refunded", "corrected")],
    ),
    ("body-too-large", &[413], &[("not_refunded", "corrected")]),
    ("request-timeout", &[408], &[("not_refunded", "same_key")]),
    ("malformed-json", &[400], &[("not_refunded", "corrected")]),
    (
        "idempotency-key-missing",
        &[400],
        &[("not_refunded", "corrected")],
    ),
    (
        "idempotency-key-invalid",
        &[400],
        &[("not_refunded", "corrected")],
    ),
    ("idempotency-key-reused", &[422], &[("unknown", "no")]),
    ("invalid-request", &[422], &[("not_refunded", "corrected")]),
    ("refund-in-progress", &[409], &[("unknown", "key")]),
    (
        "payment-has-refund",
        &[409],
        &[("not_refunded", "no"), ("not_refunded", "same_key")],
    ),
    (
        "refund-declined",
        &[422],
        &[("not_refunded", "no"), ("unknown", "look_up")],
    ),
    (
        "provider-rejected",
        &[422],
        &[("not_refunded", "no"), ("unknown", "look_up")],
    ),
    (
        "payment-not-found",
        &[404],
        &[("not_refunded", "no"), ("unknown", "look_up")],
    ),
    ("payment-not-refundable", &[422], &[("not_refunded", "no")]),
    (
        "provider-auth-failed",
        &[502],
        &[("not_refunded", "same_key"), ("unknown", "key")],
    ),
    (
        "provider-rate-limited",
        &[503],
        &[("not_refunded", "same_key"), ("unknown", "key")],
    ),
    (
        "provider-unreachable",
        &[503],
        &[("not_refunded", "same_key")],
    ),
    ("provider-timeout", &[504], &[("unknown", "key")]),
    ("provider-error", &[502], &[("unknown", "key")]),
    ("provider-reply-unreadable", &[502], &[("unknown", "key")]),
    ("provider-reply-mismatch", &[502], &[("unknown", "look_up")]),
    (
        "signing-unavailable",
        &[503],
        &[("not_refunded", "same_key")],
    ),
    (
        "gateway-error",
        &[500, 503],
        &[("not_refunded", "same_key"), ("unknown", "key")],
    ),
];

/// An answer's body, after all that the contract says of every answer has been seen to hold.
pub fn checked(answer: &Answer) -> Value {
    let body: Value = serde_json::from_str(&answer.body)
        .unwrap_or_else(|error| panic!("{error}: {}", answer.body));
    let one = |name: &str| {
        let mut values = answer.headers.all(name);
        let value = values.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(values.next(), None, "two of {name}");
        String::from_utf8(value.to_vec()).unwrap()
    };
    assert_eq!(one("x-request-id"), "request-1");
    for (name, _) in answer.headers.iter() {
        let name = String::from_utf8(name.to_vec()).unwrap();
        assert!(
            [
                "content-type",
                "cache-control",
                "x-request-id",
                "retry-after",
                "allow"
            ]
            .contains(&name.as_str()),
            "{name} in an answer"
        );
    }
    assert_eq!(one("cache-control"), "no-store");
    let members = body.as_object().unwrap();
    assert!(members.values().all(|value| !value.is_null()), "{body}");
    match answer.status {
        200 | 202 => {
            assert_eq!(one("content-type"), "application/json");
            let status = if answer.status == 200 {
                "succeeded"
            } else {
                "pending"
            };
            assert_eq!(body["status"], status);
            assert_eq!(answer.word, status);
            for member in ["provider", "status", "payment", "amount"] {
                assert!(members.contains_key(member), "no {member} in {body}");
            }
            const KNOWN: [&str; 10] = [
                "id",
                "provider",
                "status",
                "payment",
                "amount",
                "reason",
                "reference",
                "provider_code",
                "provider_message",
                "created_at",
            ];
            assert!(
                members.keys().all(|name| KNOWN.contains(&name.as_str())),
                "{body}"
            );
        }
        status => {
            assert_eq!(one("content-type"), "application/problem+json");
            assert_eq!(body["status"], status);
            let code = body["code"].as_str().unwrap();
            assert_eq!(answer.word, code);
            assert_eq!(body["type"], format!("urn:refund-filter:{code}"));
            for member in ["title", "detail"] {
                assert!(!body[member].as_str().unwrap().is_empty());
            }
            let (_, statuses, allowed) = CATALOGUE
                .iter()
                .find(|(known, _, _)| *known == code)
                .unwrap_or_else(|| panic!("{code} is not in the contract"));
            assert!(statuses.contains(&status), "{code} with {status}");
            let (outcome, retry) = (
                body["outcome"].as_str().unwrap(),
                body["retry"].as_str().unwrap(),
            );
            assert!(
                allowed.iter().any(|(o, r)| *o == outcome
                    && (*r == retry || *r == "key" && ["same_key", "look_up"].contains(&retry))),
                "{code} with {outcome} and {retry}"
            );
            assert_eq!(
                members.contains_key("errors"),
                code == "invalid-request",
                "{body}"
            );
            for error in body["errors"].as_array().into_iter().flatten() {
                let pointer = error["pointer"].as_str().unwrap();
                assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer}");
                assert!(!error["detail"].as_str().unwrap().is_empty());
            }
            if members.contains_key("retry_until") {
                assert_eq!(retry, "same_key", "{body}");
            }
            const KNOWN: [&str; 10] = [
                "type",
                "title",
                "status",
                "detail",
                "code",
                "outcome",
                "retry",
                "retry_until",
                "errors",
                "provider",
            ];
            assert!(
                members.keys().all(|name| KNOWN.contains(&name.as_str())),
                "{body}"
            );
        }
    }
    body
}

/// The pointers of an `invalid-request`, in order.
pub fn pointers(answer: &Answer) -> Vec<String> {
    let body = checked(answer);
    assert_eq!(body["code"], "invalid-request", "{body}");
    let mut pointers: Vec<String> = body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].as_str().unwrap().to_owned())
        .collect();
    pointers.sort();
    pointers
}
