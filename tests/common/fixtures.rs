//! One fixture per kind of provider, made from its vendor's page. The suites that hold every provider to the same rules
//! (conformance, replies, leaks, hostile) know providers by these alone: a new one is one more entry here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Dispatch, ReplyHead};
use refund_filter::headers::Headers;
use refund_filter::provider::ProviderKind;
use serde_json::{Value, json};

use super::oracles::derived_key;
use super::{NOW, StubSigner, call_headers, config, send_with};

/// In what a provider counts amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    Major,
    Minor,
}

/// What the suites know of a provider.
#[derive(Debug)]
pub struct Fixture {
    pub kind: ProviderKind,
    /// A sound configuration. `CANARY-…` stands where a secret does; `@FILE` is a file of tests/golden/bbmsl.
    pub provider: &'static str,
    /// The secrets of that configuration which the provider must get, and nobody else.
    pub secrets: &'static [&'static str],
    /// A payment that the provider can take.
    pub payment: &'static str,
    /// A currency that the provider can take, with two decimals.
    pub currency: &'static str,
    pub counts: Counts,
    /// Currencies in which the provider counts other decimals than ISO 4217 has.
    pub own_digits: &'static [(&'static str, usize)],
    /// The reply of the vendor's page to a refund that it took. `@AMOUNT@`, `@CURRENCY@`, `@PAYMENT@` and `@KEY@` stand
    /// for what was sent.
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
    /// What must be in the reply and right besides the word: without it, or with something else there, it is no success.
    pub needed: &'static [&'static str],
    /// What the reply echoes, and something else that it could have echoed.
    pub echoes: &'static [(&'static str, &'static str)],
    /// Where the provider's texts stand in a reply of a refusal.
    pub refusal: &'static str,
    /// The idempotency key in a request.
    pub sent_key: fn(&Dispatch) -> Option<String>,
    /// Whether a 409 can mean that the refund is there already.
    pub conflict_is_a_refusal: bool,
    pub takes_full: bool,
    pub needs_reason: bool,
    pub keeps_keys: bool,
    pub numeric_ids: bool,
}

pub const FIXTURES: &[Fixture] = &[
    Fixture {
        kind: ProviderKind::Bog,
        provider: r#"{"kind": "bog", "base_url": "https://api.bog.ge/payments/v1", "currencies": ["GEL", "JPY", "KWD", "USD", "EUR"], "token": {"cluster": "bog-token",
            "url": "https://oauth2.bog.ge/auth/realms/bog/protocol/openid-connect/token", "client_id": "10001",
            "client_secret": {"inline": "CANARY-bog-client-secret"}}}"#,
        secrets: &["CANARY-bog-client-secret", TOKEN],
        payment: r#"{"id": "ord-1"}"#,
        currency: "GEL",
        counts: Counts::Major,
        own_digits: &[],
        success: r#"{"key": "request_received", "message": "Refund request received",
            "action_id": "5b666901-eb05-4f83-abeb-8311e175f337"}"#,
        means: "pending",
        id: "5b666901-eb05-4f83-abeb-8311e175f337",
        word: "/key",
        word_again: &[],
        only_name: None,
        pending: &[],
        declined: &[],
        needed: &["/key"],
        echoes: &[],
        refusal: r#"{"error": "@CODE@", "message": "@MESSAGE@"}"#,
        sent_key: |dispatch| header(dispatch, "idempotency-key"),
        conflict_is_a_refusal: true,
        takes_full: true,
        needs_reason: false,
        keeps_keys: false,
        numeric_ids: false,
    },
    Fixture {
        kind: ProviderKind::Moyasar,
        provider: r#"{"kind": "moyasar", "base_url": "https://pg.moyasar.com",
            "api_key": {"inline": "CANARY-moyasar-api-key"}}"#,
        secrets: &["CANARY-moyasar-api-key"],
        payment: r#"{"id": "0191f5a7-44a9-76c2-9fec-39709fdbf723"}"#,
        currency: "SAR",
        counts: Counts::Minor,
        own_digits: &[],
        success: r#"{"id": "@PAYMENT@", "currency": "@CURRENCY@", "amount": 262346, "refunded_amount": 262346,
            "source": {"type": "card", "issuer": null}, "transactions": [
            {"id": "0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e", "status": "approved", "type": "capture", "amount": 262346},
            {"id": "@KEY@", "status": "approved", "type": "refund", "message": "APPROVED", "response_code": "00",
             "auth_code": null, "amount": @AMOUNT@, "refunded_amount": 0, "created_at": "2024-09-15T12:27:45Z"}]}"#,
        means: "succeeded",
        id: "@KEY@",
        word: "/transactions/1/status",
        word_again: &[],
        only_name: None,
        pending: &["initiated"],
        declined: &["failed"],
        needed: &[
            "/transactions/1/status",
            "/transactions/1/type",
            "/transactions/1/id",
        ],
        echoes: &[
            ("/id", r#""another-order""#),
            ("/currency", r#""USD""#),
            ("/transactions/1/amount", "1"),
        ],
        refusal: r#"{"message": "@CODE@ @MESSAGE@"}"#,
        sent_key: |dispatch| {
            let body: Value = serde_json::from_str(&dispatch.body).unwrap();
            body["transaction_id"].as_str().map(str::to_owned)
        },
        conflict_is_a_refusal: false,
        takes_full: false,
        needs_reason: false,
        keeps_keys: false,
        numeric_ids: false,
    },
    Fixture {
        kind: ProviderKind::Begateway,
        provider: r#"{"kind": "begateway", "base_url": "https://api.begateway.com", "shop_id": "361",
            "secret_key": {"inline": "CANARY-begateway-secret-key"}}"#,
        secrets: &["CANARY-begateway-secret-key"],
        payment: r#"{"id": "1-310b0da80b"}"#,
        currency: "USD",
        counts: Counts::Minor,
        own_digits: &[("IDR", 0), ("IQD", 0), ("CVE", 0), ("CLF", 0)],
        success: r#"{"transaction": {"uid": "2-310b0da80b", "parent_uid": "@PAYMENT@", "type": "refund",
            "status": "successful", "message": "The operation was successfully processed",
            "created_at": "2014-06-11T12:04:59+03:00", "amount": @AMOUNT@, "currency": "@CURRENCY@", "test": false,
            "refund": {"message": "ok", "ref_id": "8889999", "status": "successful"}}}"#,
        means: "succeeded",
        id: "2-310b0da80b",
        word: "/transaction/status",
        word_again: &["/transaction/refund/status"],
        only_name: Some("/transaction/parent_uid"),
        pending: &["pending", "incomplete"],
        declined: &["failed", "expired", "deleted"],
        needed: &["/transaction/status", "/transaction/uid"],
        echoes: &[
            ("/transaction/parent_uid", r#""1-another""#),
            ("/transaction/currency", r#""EUR""#),
            ("/transaction/amount", "1"),
        ],
        refusal: r#"{"response": {"code": "@CODE@", "message": "@MESSAGE@"}}"#,
        sent_key: |dispatch| header(dispatch, "requestid"),
        conflict_is_a_refusal: false,
        takes_full: true,
        needs_reason: true,
        keeps_keys: true,
        numeric_ids: false,
    },
    Fixture {
        kind: ProviderKind::Bbmsl,
        provider: r#"{"kind": "bbmsl", "base_url": "https://payapi.prod.bbmsl.com", "merchant_id": 3,
            "declined_codes": ["2002"],
            "signing": {"keys": [{"id": "2026-11", "private_key": {"inline": "@private_key.pem"}}]}}"#,
        secrets: &[],
        payment: r#"{"id": "4922", "reference": "1655817171"}"#,
        currency: "HKD",
        counts: Counts::Major,
        own_digits: &[],
        success: r#"{"responseCode": "0000", "order": {"id": @PAYMENT@, "merchantId": 3, "merchantReference": "1655817171",
            "currency": "@CURRENCY@", "amount": 15.00, "netAmount": 5.00, "cardType": "VISA", "email": "",
            "status": "REFUNDED", "recurring": false}, "transaction": {"id": 3758, "merchantId": 3, "type": "REFUND",
            "amount": @AMOUNT@, "currency": "@CURRENCY@", "status": "SUCCESS", "maskedPan": "400000XXXXXX0028"}}"#,
        means: "succeeded",
        id: "3758",
        word: "/transaction/status",
        word_again: &[],
        only_name: None,
        pending: &[],
        declined: &["DECLINED"],
        needed: &["/responseCode", "/transaction/status", "/transaction/id"],
        echoes: &[
            ("/order/id", "4923"),
            ("/order/merchantReference", r#""another""#),
            ("/transaction/currency", r#""USD""#),
            ("/transaction/amount", "0.01"),
        ],
        refusal: r#"{"responseCode": "@CODE@", "message": "@MESSAGE@"}"#,
        sent_key: |_| None,
        conflict_is_a_refusal: false,
        takes_full: false,
        needs_reason: false,
        keeps_keys: false,
        numeric_ids: true,
    },
];

/// The access token that the suites' token endpoint gives.
pub const TOKEN: &str = "CANARY-access-token";

impl Fixture {
    pub fn name(&self) -> &'static str {
        self.kind.as_str()
    }

    pub fn provider_config(&self) -> Value {
        serde_json::from_str(self.provider).unwrap()
    }

    pub fn config(&self) -> Rc<Config> {
        config(self.name(), &self.provider_config())
    }

    /// The same configuration, read once in a thread: for tests that take thousands of calls through it.
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

    /// `same_key` where the provider has an idempotency key, `look_up` where it has none (contract, "by key").
    pub fn by_key(&self) -> &'static str {
        match self.kind {
            ProviderKind::Bog | ProviderKind::Moyasar | ProviderKind::Begateway => "same_key",
            ProviderKind::Bbmsl => "look_up",
        }
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

    /// Writes a provider's word into its success, wherever it stands. A declined refund left the order as it was.
    pub fn say(&self, reply: &mut Value, word: &Value) {
        for pointer in self.word_again.iter().chain([&self.word]) {
            *reply.pointer_mut(pointer).unwrap() = word.clone();
        }
        if self.kind == ProviderKind::Bbmsl && *word == "DECLINED" {
            reply["order"]["netAmount"] = reply["order"]["amount"].clone();
        }
    }

    /// The vendor's reply to this request, as text and as the refund's id in it.
    pub fn success_reply(&self, call: &Value, dispatch: &Dispatch) -> (String, String) {
        (
            self.fill(self.success, call, dispatch),
            self.fill(self.id, call, dispatch),
        )
    }

    /// What the provider shows of the sound call's order when it is asked how the refund under the key `k-1` stands: it is
    /// made, or there is none.
    pub fn shown(&self, refunded: bool) -> String {
        let payment: Value = serde_json::from_str(self.payment).unwrap();
        let payment = &payment["id"];
        let key = derived_key(self.name(), "k-1");
        let list = |refund: Value| match refunded {
            true => vec![refund],
            false => Vec::new(),
        };
        match self.kind {
            ProviderKind::Bog => json!({
                "order_id": payment,
                "order_status": {"key": if refunded { "refunded_partially" } else { "completed" }},
                "purchase_units": {"currency_code": self.currency},
                "actions": list(json!({
                    "action_id": self.id, "action": "partial_refund", "status": "completed", "amount": "10.00",
                })),
            }),
            ProviderKind::Moyasar => json!({
                "id": payment, "currency": self.currency,
                "transactions": list(json!({
                    "id": key, "type": "refund", "status": "approved", "amount": 1_000,
                })),
            }),
            ProviderKind::Begateway => json!({"transactions": list(json!({
                "uid": self.id, "parent_uid": payment, "type": "refund", "status": "successful", "amount": 1_000,
                "currency": self.currency, "tracking_id": key,
            }))}),
            // As the vendor writes amounts: not as a float would.
            ProviderKind::Bbmsl => {
                let (left, status) = match refunded {
                    true => ("5.00", "REFUNDED"),
                    false => ("15.00", "SUCCESS"),
                };
                let (id, currency) = (payment.as_str().unwrap(), self.currency);
                return format!(
                    r#"{{"responseCode":"0000","order":{{"id":{id},"currency":"{currency}","amount":15.00,"netAmount":{left},"status":"{status}"}}}}"#
                );
            }
        }
        .to_string()
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

/// Every code of the contract with its statuses, and what may stand beside it as outcome and retry. `key` is "by key".
/// What a status says turns `unknown` and "by key" after a retry by the route.
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
