//! The contract at the gateway's front: what it takes, what it refuses, what passes in either direction and what never does.

use std::sync::{Arc, Mutex};

use crate::common::{self, FOUR, Problem, assert_problem, of, plugin};
use gateway_testbed::{
    Answer, Gateway, Options, SecretsBy, envoy, load, project, route_mut, set_secrets,
};
use provider_simulator as simulator;
use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use simulator::orders::fresh;
use simulator::{Alpn, Fault, Provider, Received, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const MALFORMED: Problem = Problem::corrected("malformed-json", 400);
const INVALID: Problem = Problem::corrected("invalid-request", 422);
const TOO_LARGE: Problem = Problem::corrected("body-too-large", 413);
const WRONG_TYPE: Problem = Problem::corrected("unsupported-media-type", 415);
const NO_KEY: Problem = Problem::corrected("idempotency-key-missing", 400);
const BAD_KEY: Problem = Problem::corrected("idempotency-key-invalid", 400);
const NOT_FOUND: Problem = Problem::certain("payment-not-found", 404);

/// A gateway, and what was asked of it.
struct Caller {
    gateway: Gateway,
    client: reqwest::Client,
}

impl Caller {
    async fn start(options: Options) -> Caller {
        Caller {
            gateway: Gateway::start(options).await.expect("a gateway"),
            client: reqwest::Client::new(),
        }
    }

    /// A call without any header.
    fn bare(&self, method: Method) -> RequestBuilder {
        self.client.request(method, self.gateway.url())
    }

    /// A call that is in order, with a key of its own, if its body is.
    fn call(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.bare(Method::POST)
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(body)
    }

    /// Sends a call under an id of its own, which every answer carries.
    async fn send(&self, request: RequestBuilder) -> Answer {
        // One of version 7, which Envoy by itself makes one of version 4.
        let mut id = Uuid::new_v4().to_string();
        id.replace_range(14..15, "7");
        let response = request
            .header("x-request-id", &id)
            .send()
            .await
            .expect("an answer");
        let answer = Answer::read(response).await.expect("a whole answer");
        assert_eq!(answer.header("x-request-id"), id, "{answer:?}");
        answer
    }

    /// Sends a call that is in order if its body is.
    async fn refund(&self, body: impl ToString) -> Answer {
        self.send(self.call(body.to_string())).await
    }

    /// Sends a call that is refused before anything reaches any provider.
    async fn refused(&self, case: &str, request: RequestBuilder, expected: Problem) -> Answer {
        let before = self.reached();
        let answer = self.send(request).await;
        assert_problem(case, &answer, expected);
        assert_eq!(self.reached(), before, "{case}");
        answer
    }

    /// Sends bodies that are refused with these faults and no others.
    async fn refused_at(&self, cases: &[(&str, &[&str])]) {
        for (body, pointers) in cases {
            let answer = self
                .refused(body, self.call(body.to_string()), INVALID)
                .await;
            assert_eq!(faults(body, &answer), sorted(pointers), "{body}");
        }
    }

    /// What has come to each provider: requests, refunds.
    fn reached(&self) -> [(u64, usize); Provider::ALL.len()] {
        let simulators = &self.gateway.simulators;
        Provider::ALL.map(|provider| {
            let refunds = simulators.ledger(provider).len();
            (simulators.received(provider), refunds)
        })
    }

    fn last(&self, provider: Provider) -> Received {
        self.gateway
            .simulators
            .last_request(provider)
            .expect("a request")
    }
}

fn sorted(pointers: &[&str]) -> Vec<String> {
    let mut pointers: Vec<_> = pointers.iter().map(ToString::to_string).collect();
    pointers.sort();
    pointers
}

/// The pointers of all `errors`, each of which has a sentence and nothing else.
#[track_caller]
fn faults(case: &str, answer: &Answer) -> Vec<String> {
    let errors = answer.body["errors"].as_array().expect("errors");
    let mut pointers = Vec::new();
    for error in errors {
        let sentence = error["detail"].as_str().unwrap_or_default();
        assert!(!sentence.is_empty(), "{case}: {error}");
        assert_eq!(
            error.as_object().map(serde_json::Map::len),
            Some(2),
            "{case}: {error}"
        );
        pointers.push(error["pointer"].as_str().expect("a pointer").to_owned());
    }
    pointers.sort();
    pointers
}

/// A body that a provider takes: the nth of its fresh orders, 1.00 of it.
fn body(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

fn as_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends bytes as they are, and reads until the connection ends.
async fn raw(gateway: &Gateway, request: impl AsRef<[u8]>) -> Answer {
    let mut stream = TcpStream::connect(gateway.address)
        .await
        .expect("a connection");
    // An early answer may end the connection before all is written.
    let _ = stream.write_all(request.as_ref()).await;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let all = as_text(&bytes);
    let (head, text) = all.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| {
            (
                name.parse().expect("a name"),
                value.parse().expect("a value"),
            )
        })
        .collect();
    Answer {
        status: status
            .and_then(|status| status.parse().ok())
            .expect("a status"),
        headers,
        text: text.to_owned(),
        body: serde_json::from_str(text).unwrap_or_default(),
    }
}

/// The bytes of a POST that is in order, under a path and with a key as given.
fn post(path: &str, key: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The same with its body in chunks of 1000 bytes.
fn chunked(body: &str) -> String {
    let mut request = "POST /v1/refunds HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\
                       content-type: application/json\r\nidempotency-key: k-1\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_owned();
    for chunk in body.as_bytes().chunks(1000) {
        request += &format!("{:x}\r\n{}\r\n", chunk.len(), as_text(chunk));
    }
    request + "0\r\n\r\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn any_method_but_post_and_get_is_refused_and_told_of_them() {
    let caller = Caller::start(Options::default()).await;
    let expected = Problem::corrected("method-not-allowed", 405);
    for method in [Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
        let answer = caller
            .refused(method.as_str(), caller.bare(method.clone()), expected)
            .await;
        assert_eq!(answer.header("allow"), "GET, POST", "{method}");
        let refund = caller
            .bare(method.clone())
            .header("content-type", "application/json")
            .header("idempotency-key", "k-1")
            .body(body(Provider::Moyasar, 1).to_string());
        caller.refused(method.as_str(), refund, expected).await;
    }
    let answer = caller.send(caller.bare(Method::HEAD)).await;
    assert_eq!((answer.status, answer.text.as_str()), (405, ""));
    assert_eq!(answer.header("allow"), "GET, POST");
    assert_eq!(answer.header("content-type"), "application/problem+json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_plain_json_by_its_own_word_is_refused() {
    let caller = Caller::start(Options::default()).await;
    let call = |types: &[&'static str]| {
        let request = caller
            .bare(Method::POST)
            .header("idempotency-key", "k-1")
            .body("{");
        types.iter().fold(request, |request, value| {
            request.header("content-type", *value)
        })
    };
    for types in [
        &[][..],
        &["text/plain"],
        &["application/x-www-form-urlencoded"],
        &["application/problem+json"],
        &["application/jsonx"],
        &["application/json;charset=latin1"],
        &["application/json; charset=utf-16"],
        &["application/json", "text/plain"],
        &["*/*"],
        &[""],
    ] {
        caller
            .refused(&format!("{types:?}"), call(types), WRONG_TYPE)
            .await;
    }
    for coding in ["gzip", "br", "gzip, identity"] {
        let coded = call(&["application/json"]).header("content-encoding", coding);
        caller.refused(coding, coded, WRONG_TYPE).await;
    }
    // What is JSON by its own word goes on to be read.
    for value in [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "Application/JSON",
    ] {
        caller.refused(value, call(&[value]), MALFORMED).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_64_kib_is_read_and_one_byte_more_is_too_large() {
    let caller = Caller::start(Options::default()).await;
    let padded = |size: usize| format!("{{}}{}", " ".repeat(size - 2));
    caller
        .refused("64 KiB", caller.call(padded(65_536)), INVALID)
        .await;
    caller
        .refused("one more", caller.call(padded(65_537)), TOO_LARGE)
        .await;
    caller
        .refused("twice", caller.call(padded(131_072)), TOO_LARGE)
        .await;
    let before = caller.reached();
    for (size, expected) in [(65_536, INVALID), (65_537, TOO_LARGE), (131_072, TOO_LARGE)] {
        let answer = raw(&caller.gateway, chunked(&padded(size))).await;
        assert_problem(&format!("{size} in chunks"), &answer, expected);
    }
    // Refused by its length alone, before the body is there.
    let announced = "POST /v1/refunds HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n\
                     idempotency-key: k-1\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n";
    assert_problem(
        "announced",
        &raw(&caller.gateway, announced).await,
        TOO_LARGE,
    );
    assert_eq!(caller.reached(), before);

    // The largest call is a refund like any other.
    let refund = body(Provider::Moyasar, 1).to_string();
    let largest = format!("{refund}{}", " ".repeat(65_536 - refund.len()));
    assert_eq!(caller.send(caller.call(largest)).await.status, 200);
    assert_eq!(caller.gateway.simulators.ledger(Provider::Moyasar).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_one_json_value_in_utf_8_is_malformed() {
    let caller = Caller::start(Options::default()).await;
    let good = body(Provider::Bog, 1).to_string();
    let with = |from: &str, to: &str| good.replacen(from, to, 1).into_bytes();
    let beside = |before: &[u8], after: &[u8]| [before, good.as_bytes(), after].concat();
    for (case, body) in [
        ("nothing", Vec::new()),
        ("white space", b" \r\n\t ".to_vec()),
        ("open", b"{".to_vec()),
        ("cut", good.as_bytes()[..good.len() - 1].to_vec()),
        ("a comma at the end", with("}", ",}")),
        ("no comma", with(",", " ")),
        ("no colon", with(":", " ")),
        ("text after it", beside(b"", b" x")),
        ("another object after it", beside(b"", good.as_bytes())),
        ("a zero byte after it", beside(b"", b"\0")),
        ("a byte order mark", beside(b"\xef\xbb\xbf", b"")),
        (
            "UTF-16",
            good.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
        (
            "a byte that is no UTF-8",
            beside(b"{\"reason\":\"\xff\",", b"}"),
        ),
        (
            "bad UTF-8 in a value",
            [&b"{\"provider\":\"bog\",\"reason\":\"\xc3\x28\"}"[..]].concat(),
        ),
        ("bad UTF-8 in a name", b"{\"\xe9\":1}".to_vec()),
        ("an overlong form", b"{\"reason\":\"\xc0\xaf\"}".to_vec()),
        (
            "a surrogate in UTF-8",
            b"{\"reason\":\"\xed\xa0\x80\"}".to_vec(),
        ),
        ("half of an escaped surrogate", with("bog", "\\ud800")),
        ("a line break in a string", with("bog", "b\nog")),
        ("an escape that is none", with("bog", "\\x62og")),
        ("single quotes", with("\"bog\"", "'bog'")),
        ("a name without quotes", with("\"provider\"", "provider")),
        ("a comment", with("{", "{/* */")),
        ("NaN", with("\"bog\"", "NaN")),
        ("a leading zero", with("\"bog\"", "01")),
        ("a plus sign", with("\"bog\"", "+1")),
        ("a point without digits", with("\"bog\"", "1.")),
        ("a word", b"refund".to_vec()),
        ("a form", b"provider=bog".to_vec()),
        ("brackets without end", vec![b'['; 60_000]),
    ] {
        caller.refused(case, caller.call(body), MALFORMED).await;
    }
    // JSON, but no object: its type is wrong.
    caller
        .refused_at(&[
            ("null", &[""]),
            ("[]", &[""]),
            ("\"full\"", &[""]),
            ("1e400", &[""]),
            ("true", &[""]),
            (
                &format!("{}{}", "[".repeat(30_000), "]".repeat(30_000)),
                &[""],
            ),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_one_good_key_is_refused() {
    let caller = Caller::start(Options::default()).await;
    let call = |keys: &[&[u8]]| {
        let request = caller
            .bare(Method::POST)
            .header("content-type", "application/json")
            .body(body(Provider::Bog, 1).to_string());
        keys.iter().fold(request, |request, key| {
            request.header(
                "idempotency-key",
                HeaderValue::from_bytes(key).expect("a value"),
            )
        })
    };
    caller.refused("no key", call(&[]), NO_KEY).await;
    for key in [
        &b""[..],
        b"\"\"",
        b"a b",
        b"a\tb",
        b"\"a b\"",
        b"k\xc3\xa9y",
        b"k\xffy",
        b"\"k-1",
        b"\"k-1\"x",
        b"\"k\"1\"",
        b"\"k-1\\\"",
        b"\"k\\1\"",
        b"\"k-1\";a=1",
        &[b'k'; 256],
    ] {
        caller.refused(&as_text(key), call(&[key]), BAD_KEY).await;
    }
    caller
        .refused("one key twice", call(&[b"k-1", b"k-1"]), BAD_KEY)
        .await;
    caller
        .refused("two keys", call(&[b"k-1", b"k-2"]), BAD_KEY)
        .await;

    let answer = caller.send(call(&[&[b'k'; 255]])).await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_and_quoted_are_one_key_at_the_provider() {
    let caller = Caller::start(Options::default()).await;
    let gateway = &caller.gateway;
    let refund = body(Provider::Bog, 1);
    let bare = gateway.refund("k-1", &refund).await.expect("an answer");
    let quoted = gateway.refund("\"k-1\"", &refund).await.expect("an answer");
    assert_eq!((bare.status, &bare.body), (quoted.status, &quoted.body));
    assert_eq!(gateway.simulators.ledger(Provider::Bog).len(), 1);
    // Within quotes, a quote and a backslash are escaped (RFC 9651).
    for (bare, quoted) in [("k\\2", r#""k\\2""#), ("k\"3", r#""k\"3""#)] {
        let before = gateway.simulators.ledger(Provider::Bog).len();
        for key in [bare, quoted] {
            let answer = gateway.refund(key, &refund).await.expect("an answer");
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        assert_eq!(
            gateway.simulators.ledger(Provider::Bog).len(),
            before + 1,
            "{bare}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_in_its_time_nothing_is_signed_or_sent() {
    let expected = Problem {
        retry: "same_key",
        ..Problem::certain("signing-unavailable", 503)
    };
    for (bound, time) in [
        ("not_before", "2999-01-01T00:00:00Z"),
        ("not_after", "2020-01-01T00:00:00Z"),
    ] {
        let caller = Caller::start(Options::changed(move |config| {
            plugin(config, |plugin| {
                plugin["providers"]["bbmsl"]["signing"]["keys"][0][bound] = json!(time);
            });
        }))
        .await;
        let refund = caller.call(body(Provider::Bbmsl, 1).to_string());
        caller.refused(bound, refund, expected).await;
        // The other providers need none.
        assert_eq!(caller.refund(body(Provider::Moyasar, 1)).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_faults_are_told_at_once() {
    let caller = Caller::start(Options::default()).await;
    caller
        .refused_at(&[
            ("{}", &["/provider", "/payment", "/amount"]),
            (
                r#"{"provider":"bog","provider":"bog","payment":{"id":".","reference":"","iban":"x"},
                    "amount":{"value":10,"currency":"gel","vat":"0"},"reason":"","reference":7,"extra":1}"#,
                &[
                    "/provider",
                    "/payment/id",
                    "/payment/reference",
                    "/payment/iban",
                    "/amount/value",
                    "/amount/currency",
                    "/amount/vat",
                    "/reason",
                    "/reference",
                    "/extra",
                ],
            ),
            // The provider's own rules among them.
            (
                r#"{"provider":"bbmsl","payment":{"id":"12a"},"amount":"full","reference":null}"#,
                &["/payment/id", "/amount", "/reference"],
            ),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_doubled_members_are_faults_wherever_they_stand() {
    let caller = Caller::start(Options::default()).await;
    let call = |head: &str, payment: &str, amount: &str| {
        format!(
            r#"{{{head}"provider":"bog","payment":{{{payment}"id":"order-1"}},
                "amount":{{{amount}"value":"1.00","currency":"GEL"}}}}"#
        )
    };
    for (body, pointers) in [
        (call(r#""extra":1,"#, "", ""), &["/extra"][..]),
        (call(r#""Provider":"bog","#, "", ""), &["/Provider"]),
        (call(r#""":1,"#, "", ""), &["/"]),
        (
            call(r#""a/b":1,"m~n":2,"~1":3,"#, "", ""),
            &["/a~1b", "/m~0n", "/~01"],
        ),
        (
            call(r#""extra":1,"extra":2,"#, "", ""),
            &["/extra", "/extra"],
        ),
        (call("", r#""order":"x","#, ""), &["/payment/order"]),
        (call("", "", r#""decimals":2,"#), &["/amount/decimals"]),
        (call(r#""provider":"bog","#, "", ""), &["/provider"]),
        (call(r#""provid\u0065r":"bog","#, "", ""), &["/provider"]),
        (call(r#""amount":"full","#, "", ""), &["/amount"]),
        (
            call(r#""payment":{"id":"order-1"},"#, "", ""),
            &["/payment"],
        ),
        (call("", r#""id":"order-1","#, ""), &["/payment/id"]),
        (call("", "", r#""value":"1.00","#), &["/amount/value"]),
        (call("", "", r#""currency":"GEL","#), &["/amount/currency"]),
        (call(r#""reason":"a","reason":"a","#, "", ""), &["/reason"]),
        (
            call(r#""reference":"a","reference":"b","#, "", ""),
            &["/reference"],
        ),
    ] {
        caller.refused_at(&[(&body, pointers)]).await;
    }
}

/// The body with one member replaced, by its pointer.
fn altered(provider: Provider, pointer: &str, value: Value) -> String {
    let mut body = body(provider, 1);
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    body.pointer_mut(parent).expect("a parent")[name] = value;
    body.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_type_is_a_fault() {
    let caller = Caller::start(Options::default()).await;
    let wrong = [
        json!(null),
        json!(true),
        json!(1),
        json!(1.5),
        json!([]),
        json!(["bog"]),
    ];
    for pointer in [
        "/provider",
        "/payment",
        "/payment/id",
        "/payment/reference",
        "/amount",
        "/amount/value",
        "/amount/currency",
        "/reason",
        "/reference",
    ] {
        for value in &wrong {
            let body = altered(Provider::Bog, pointer, value.clone());
            caller.refused_at(&[(&body, &[pointer])]).await;
        }
    }
    for pointer in ["/provider", "/payment/id", "/amount/value", "/reason"] {
        let body = altered(Provider::Bog, pointer, json!({}));
        caller.refused_at(&[(&body, &[pointer])]).await;
    }
    for text in ["", "FULL", "Full", "all", "1.00", "full "] {
        let body = altered(Provider::Bog, "/amount", json!(text));
        caller.refused_at(&[(&body, &["/amount"])]).await;
    }
    let body = altered(Provider::Bog, "/payment", json!("order-1"));
    caller.refused_at(&[(&body, &["/payment"])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_has_its_limits() {
    let caller = Caller::start(Options::default()).await;
    for (pointer, longest) in [
        ("/payment/id", 128),
        ("/payment/reference", 64),
        ("/reason", 255),
        ("/reference", 64),
    ] {
        for text in [
            String::new(),
            "x".repeat(longest + 1),
            "é".repeat(longest + 1),
        ] {
            let body = altered(Provider::Bog, pointer, json!(text));
            caller.refused_at(&[(&body, &[pointer])]).await;
        }
        // Characters count, not bytes; and an answer that the provider alone can give shows that the call went out.
        for text in ["x".repeat(longest), "é".repeat(longest)] {
            let body = altered(Provider::Bog, pointer, json!(text));
            let answer = caller.send(caller.call(body)).await;
            match pointer {
                "/payment/id" => assert_problem(pointer, &answer, NOT_FOUND),
                _ => assert_eq!(answer.status, 202, "{pointer}: {answer:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_is_named_as_its_provider_knows_it() {
    let caller = Caller::start(Options::default()).await;
    for provider in FOUR {
        let payment = |value| altered(provider, "/payment", value);
        caller
            .refused_at(&[(&payment(json!({})), &["/payment"])])
            .await;
        for id in [".", ".."] {
            let body = payment(json!({"id": id}));
            let answer = caller
                .refused(&body, caller.call(body.clone()), INVALID)
                .await;
            assert!(
                faults(&body, &answer).contains(&"/payment/id".to_owned()),
                "{answer:?}"
            );
        }
        if provider.has_keys() {
            let body = payment(json!({"reference": "order-1"}));
            caller.refused_at(&[(&body, &["/payment/id"])]).await;
        }
    }
    for id in [
        "01",
        "-1",
        "+1",
        "1.0",
        "1e3",
        " 1",
        "12a",
        "٣",
        "１",
        "1234567890123456789",
    ] {
        let body = altered(Provider::Bbmsl, "/payment/id", json!(id));
        caller.refused_at(&[(&body, &["/payment/id"])]).await;
    }
    let before = caller.gateway.simulators.received(Provider::Bbmsl);
    let body = altered(Provider::Bbmsl, "/payment/id", json!("123456789012345678"));
    let answer = caller.send(caller.call(body)).await;
    assert_eq!(answer.body["provider"]["code"], "9004", "{answer:?}");
    assert_eq!(
        caller.gateway.simulators.received(Provider::Bbmsl),
        before + 1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_named_as_it_is_configured() {
    let caller = Caller::start(Options::default()).await;
    for name in [
        "",
        "BOG",
        "bog ",
        "stripe",
        "bog-token",
        "refund-without-route",
        "\u{0}",
    ] {
        let body = altered(Provider::Bog, "/provider", json!(name));
        caller.refused_at(&[(&body, &["/provider"])]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_is_exact_and_never_implied() {
    let caller = Caller::start(Options::default()).await;
    let amount = |value: &str, currency: &str| {
        let amount = json!({"value": value, "currency": currency});
        altered(Provider::Bog, "/amount", amount)
    };
    let mut without = body(Provider::Bog, 1);
    without.as_object_mut().expect("an object").remove("amount");
    caller
        .refused_at(&[(&without.to_string(), &["/amount"])])
        .await;
    for (parts, pointers) in [
        (json!({}), &["/amount/value", "/amount/currency"][..]),
        (json!({"value": "1.00"}), &["/amount/currency"]),
        (json!({"currency": "GEL"}), &["/amount/value"]),
    ] {
        caller
            .refused_at(&[(&altered(Provider::Bog, "/amount", parts), pointers)])
            .await;
    }
    for value in [
        "",
        "0",
        "0.00",
        "-1",
        "-1.00",
        "+1",
        "1e2",
        "1E2",
        "1e-2",
        "01",
        "00.10",
        ".5",
        "5.",
        "1.0.0",
        "1,00",
        "1 000",
        " 1",
        "1 ",
        "1.001",
        "1.000",
        "0x10",
        "1_000",
        "NaN",
        "Infinity",
        "full",
        "٣",
        "１",
        "1.00 GEL",
        "99999999999999999999999999",
    ] {
        caller
            .refused_at(&[(&amount(value, "GEL"), &["/amount/value"])])
            .await;
    }
    for currency in ["", "gel", "Gel", "GE", "GELL", "ZZZ", "981", "₾", " GEL"] {
        caller
            .refused_at(&[(&amount("1.00", currency), &["/amount/currency"])])
            .await;
    }
    // As many decimals as the currency has.
    for (value, currency) in [
        ("1.0", "JPY"),
        ("0.5", "JPY"),
        ("1.0000", "KWD"),
        ("1.00000", "CLF"),
    ] {
        caller
            .refused_at(&[(&amount(value, currency), &["/amount/value"])])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_provider_cannot_take_is_refused_before_it_is_sent() {
    let caller = Caller::start(Options::changed(|config| {
        plugin(config, |plugin| {
            plugin["providers"]["bog"]["currencies"] = json!(["GEL", "USD"]);
            let begateway = plugin["providers"]["begateway"].as_object_mut();
            begateway.expect("a provider").remove("default_reason");
        });
    }))
    .await;
    let amount = |provider, value: &str, currency: &str| {
        altered(
            provider,
            "/amount",
            json!({"value": value, "currency": currency}),
        )
    };
    use Provider::{Bbmsl, Begateway, Bog, Moyasar};
    for (body, pointer) in [
        (altered(Moyasar, "/amount", json!("full")), "/amount"),
        (altered(Bbmsl, "/amount", json!("full")), "/amount"),
        // Which of the two currencies it would be, nobody knows.
        (altered(Bog, "/amount", json!("full")), "/amount"),
        (amount(Moyasar, "1000000.01", "SAR"), "/amount/value"),
        (amount(Bbmsl, "1.234", "KWD"), "/amount/value"),
        (amount(Bbmsl, "10000000.00", "HKD"), "/amount/value"),
        (amount(Bog, "1.00", "EUR"), "/amount/currency"),
        (body(Begateway, 1).to_string(), "/reason"),
    ] {
        caller.refused_at(&[(&body, &[pointer])]).await;
    }
    // What is just within reaches the provider.
    for (body, provider) in [
        (amount(Moyasar, "1000000.00", "SAR"), Moyasar),
        (amount(Bbmsl, "9999999.99", "HKD"), Bbmsl),
        // Another order: each has one refund.
        (
            amount(Bbmsl, "1.23", "KWD").replace(&fresh(Bbmsl, 1), &fresh(Bbmsl, 2)),
            Bbmsl,
        ),
        (amount(Bog, "1.00", "GEL"), Bog),
        (altered(Begateway, "/reason", json!("returned")), Begateway),
    ] {
        let before = caller.gateway.simulators.received(provider);
        caller.send(caller.call(body.clone())).await;
        assert_eq!(
            caller.gateway.simulators.received(provider),
            before + 1,
            "{body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_the_path_is_the_path() {
    let caller = Caller::start(Options::default()).await;
    let simulators = &caller.gateway.simulators;
    for (nth, path) in [
        "/v1/refunds?",
        "/v1/./refunds",
        "//v1/refunds",
        "/v1//refunds",
        "/v1/x/../refunds",
        "/v1/refunds/../refunds",
    ]
    .into_iter()
    .enumerate()
    {
        let refund = body(Provider::Moyasar, nth as u64);
        let id = fresh(Provider::Moyasar, nth as u64);
        let request = post(path, &format!("k-{nth}"), &refund.to_string());
        let answer = raw(&caller.gateway, request).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert!(!answer.header("x-request-id").is_empty(), "{path}");
        assert_eq!(
            caller.last(Provider::Moyasar).path,
            format!("/v1/orders/{id}/refund")
        );
        assert_eq!(
            simulators.ledger(Provider::Moyasar).len(),
            nth + 1,
            "{path}"
        );
    }
}

/// Nothing that a caller writes is silently ignored.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_call_with_a_query_is_refused() {
    let caller = Caller::start(Options::default()).await;
    let refund = body(Provider::Moyasar, 1).to_string();
    for (nth, query) in ["dry_run=true", "provider=bbmsl&amount=full", "a=/../x", "&"]
        .into_iter()
        .enumerate()
    {
        let path = format!("/v1/refunds?{query}");
        let request = post(&path, &format!("k-{nth}"), &refund);
        let answer = raw(&caller.gateway, request).await;
        assert_problem(query, &answer, INVALID);
        assert_eq!(faults(query, &answer), [""], "{query}");
    }
    assert_eq!(
        caller.reached().map(|(requests, _)| requests),
        [0; Provider::ALL.len()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_is_the_configured_one() {
    let caller = Caller::start(Options::changed(|config| {
        plugin(config, |plugin| plugin["path"] = json!("/pay/back"));
        let route = route_mut(config, "refunds").expect("the route");
        route["match"]["path"] = json!("/pay/back");
    }))
    .await;
    let refund = body(Provider::Moyasar, 1).to_string();
    let answer = raw(&caller.gateway, post("/pay/back", "k-1", &refund)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    // The route for everything else.
    let answer = raw(&caller.gateway, post("/v1/refunds", "k-2", &refund)).await;
    assert_eq!((answer.status, answer.text.as_str()), (404, ""));
    assert_eq!(caller.gateway.simulators.ledger(Provider::Moyasar).len(), 1);
}

/// A plain HTTP server for anything: keeps what comes, and gives every request the same answer.
async fn other_application() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut text = String::new();
            let mut buffer = [0; 4096];
            while !text.ends_with("the whole body") {
                match stream.read(&mut buffer).await {
                    Ok(1..) => text += &as_text(&buffer),
                    _ => break,
                }
                text = text.trim_end_matches('\0').to_owned();
                buffer.fill(0);
            }
            kept.lock().expect("a list").push(text);
            let reply = "HTTP/1.1 207 Multi-Status\r\nset-cookie: theirs=1\r\nx-powered-by: them\r\n\
                         content-type: text/x-theirs\r\nconnection: close\r\ncontent-length: 6\r\n\r\ntheirs";
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    (port, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn other_paths_pass_through_untouched() {
    let (port, seen) = other_application().await;
    let caller = Caller::start(Options::changed(move |config| {
        let other = route_mut(config, "other").expect("the route");
        other
            .as_object_mut()
            .expect("a route")
            .remove("direct_response");
        other["route"] = json!({"cluster": "other"});
        let clusters = config["static_resources"]["clusters"].as_array_mut();
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        clusters.expect("clusters").push(json!({
            "name": "other", "type": "STATIC",
            "load_assignment": {"cluster_name": "other",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
        }));
    }))
    .await;
    let before = caller.reached();
    for (nth, path) in [
        "/",
        "/v1/refund",
        "/v1/refunds/",
        "/v1/refundsx",
        "/v1/refunds/k-1",
        "/V1/refunds",
        "/x/v1/refunds?x=/v1/refunds",
        "/v1/refunds;x=1",
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncookie: session=1\r\nauthorization: Bearer shop\r\n\
             idempotency-key: a b\r\ncontent-type: text/x-ours\r\nx-custom: ours\r\ncontent-length: 14\r\n\r\nthe whole body"
        );
        let answer = raw(&caller.gateway, request).await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (207, "theirs"),
            "{path}"
        );
        assert_eq!(answer.header("set-cookie"), "theirs=1");
        assert_eq!(answer.header("x-powered-by"), "them");
        assert_eq!(answer.header("content-type"), "text/x-theirs");
        let arrived = seen.lock().expect("a list")[nth].clone();
        assert!(
            arrived.starts_with(&format!("PUT {path} HTTP/1.1\r\n")),
            "{arrived}"
        );
        for line in [
            "host: shop",
            "cookie: session=1",
            "authorization: Bearer shop",
            "idempotency-key: a b",
            "content-type: text/x-ours",
            "x-custom: ours",
        ] {
            assert!(
                arrived.contains(&format!("\r\n{line}\r\n")),
                "{path}: {line} in {arrived}"
            );
        }
        assert!(arrived.ends_with("\r\n\r\nthe whole body"), "{arrived}");
    }
    assert_eq!(caller.reached(), before);
}

/// What a caller may send and no provider may get.
const NOT_PASSED: &[(&str, &str)] = &[
    ("cookie", "session=1"),
    ("authorization", "Bearer caller"),
    ("proxy-authorization", "Basic caller"),
    ("user-agent", "caller/1"),
    ("accept", "text/html"),
    ("accept-encoding", "gzip, br"),
    ("accept-language", "ka"),
    ("origin", "https://shop.example"),
    ("referer", "https://shop.example/"),
    ("te", "trailers"),
    ("forwarded", "for=192.0.2.1"),
    ("via", "1.1 caller"),
    ("x-forwarded-for", "192.0.2.1"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-host", "shop.example"),
    ("x-forwarded-port", "81"),
    ("x-forwarded-client-cert", "By=caller"),
    ("x-real-ip", "192.0.2.1"),
    ("x-envoy-retry-on", "5xx,connect-failure,reset"),
    ("x-envoy-max-retries", "5"),
    ("x-envoy-hedge-on-per-try-timeout", "true"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
    ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
    ("x-envoy-expected-rq-timeout-ms", "1"),
    ("x-envoy-original-path", "/x"),
    ("x-envoy-original-dst-host", "127.0.0.1:1"),
    ("x-envoy-decorator-operation", "x"),
    ("x-envoy-attempt-count", "7"),
    ("x-http-method-override", "GET"),
    ("x-amzn-trace-id", "Root=1"),
    ("x-custom", "ours"),
    ("requestid", "caller"),
    ("transaction-id", "caller"),
];

/// The tracing that goes on to the provider.
const PASSED: &[(&str, &str)] = &[
    (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    ("tracestate", "vendor=value"),
    ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
    ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
    ("x-b3-spanid", "e457b5a2e4d86bd1"),
    ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
    ("x-b3-sampled", "1"),
    ("x-b3-flags", "0"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_gets_what_the_filter_makes_and_tracing_and_nothing_else() {
    let user_agent = concat!("refund-filter/", env!("CARGO_PKG_VERSION"));
    for alpn in [Alpn::Http2, Alpn::Http1] {
        let simulators = simulator::Options {
            alpn,
            ..simulator::Options::default()
        };
        let caller = Caller::start(Options {
            simulators,
            ..Options::default()
        })
        .await;
        for provider in FOUR {
            let request = caller.call(body(provider, 1).to_string());
            let request = NOT_PASSED
                .iter()
                .chain(PASSED)
                .fold(request, |request, (name, value)| {
                    request.header(*name, *value)
                });
            let answer = caller.send(request).await;
            assert!(answer.status < 300, "{provider:?}: {answer:?}");

            let received = caller.last(provider);
            let value = |name| {
                received
                    .headers_named(name)
                    .map(as_text)
                    .collect::<Vec<_>>()
            };
            let mut expected = vec![
                "accept",
                "accept-encoding",
                "content-length",
                "content-type",
                "user-agent",
                "x-request-id",
            ];
            expected.extend(PASSED.iter().map(|(name, _)| *name));
            expected.extend((alpn == Alpn::Http1).then_some("host"));
            let declared = provider.declared();
            expected.extend(declared.secret.scheme.map(|_| "authorization"));
            if let Some(simulator::Key {
                place: simulator::Place::Header(name),
                ..
            }) = declared.key
            {
                expected.push(name);
            }
            expected.sort_unstable();
            let mut names: Vec<_> = received
                .headers
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{provider:?} {alpn:?}");

            for (name, passed) in PASSED {
                assert_eq!(value(name), [*passed], "{provider:?} {name}");
            }
            assert_eq!(value("x-request-id"), [answer.header("x-request-id")]);
            assert_eq!(value("user-agent"), [user_agent]);
            assert_eq!(value("accept"), ["application/json"]);
            assert_eq!(value("accept-encoding"), ["identity"]);
            assert_eq!(value("content-type"), ["application/json"]);
            assert_eq!(value("content-length"), [received.body.len().to_string()]);
            assert_ne!(value("authorization"), ["Bearer caller"]);
            assert_ne!(value("requestid"), ["caller"]);
            assert_eq!(received.method, "POST");
            assert_eq!(received.authority.as_deref(), Some(provider.host()));
            assert_eq!(received.server_name.as_deref(), Some(provider.host()));
            assert_eq!(received.trailers, []);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_providers_headers_retry_after_alone_comes_back() {
    let caller = Caller::start(Options::default()).await;
    let theirs = [
        ("content-type", "application/json; charset=utf-8"),
        ("set-cookie", "theirs=1"),
        ("server", "theirs/1"),
        ("x-powered-by", "them"),
        ("www-authenticate", "Bearer realm=theirs"),
        ("proxy-authenticate", "Basic"),
        ("location", "https://theirs.example/"),
        ("cache-control", "public, max-age=3600"),
        ("etag", "\"theirs\""),
        ("vary", "*"),
        ("via", "1.1 theirs"),
        ("alt-svc", "h3=\":443\""),
        ("strict-transport-security", "max-age=1"),
        ("x-request-id", "theirs"),
        ("x-envoy-upstream-service-time", "7"),
        ("x-ratelimit-remaining", "0"),
        ("retry-after", "17"),
    ];
    for provider in FOUR {
        for (nth, status) in [200, 204, 302, 400, 401, 404, 409, 429, 500, 503]
            .into_iter()
            .enumerate()
        {
            let mut reply = Reply::json(status, if status == 204 { "" } else { "{}" });
            reply.headers = theirs
                .map(|(name, value)| (name.into(), value.into()))
                .to_vec();
            let fault = Fault::Reply {
                reply,
                booked: false,
            };
            caller.gateway.simulators.next_fault(provider, fault);
            let answer = caller.refund(body(provider, nth as u64)).await;
            let case = format!("{provider:?} {status}");
            for (name, value) in theirs {
                match name {
                    "retry-after" => {}
                    _ => assert_ne!(answer.header(name), value, "{case}"),
                }
            }
            for name in answer.headers.keys() {
                let ours = [
                    "content-type",
                    "content-length",
                    "x-request-id",
                    "cache-control",
                    "date",
                    "server",
                ];
                let passed = ours.contains(&name.as_str()) || name == "retry-after";
                assert!(passed, "{case}: {name}");
            }
            if status == 429 {
                assert_eq!(answer.header("retry-after"), "17", "{case}");
            }
            assert_eq!(
                answer.header("content-type"),
                "application/problem+json",
                "{case}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_in_neither_direction() {
    let caller = Caller::start(Options::default()).await;
    let refund = body(Provider::Moyasar, 1).to_string();
    let request = format!(
        "POST /v1/refunds HTTP/1.1\r\nhost: gateway\r\nconnection: close, te\r\nte: trailers\r\n\
         content-type: application/json\r\nidempotency-key: k-1\r\ntrailer: x-ours\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{refund}\r\n0\r\nx-ours: 1\r\n\r\n",
        refund.len()
    );
    let trailers = vec![(b"x-theirs".to_vec(), b"1".to_vec())];
    let simulators = &caller.gateway.simulators;
    simulators.next_fault(Provider::Moyasar, Fault::Trailers(trailers));
    let answer = raw(&caller.gateway, request).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(!answer.text.contains("x-theirs"), "{}", answer.text);
    let received = caller.last(Provider::Moyasar);
    assert_eq!(received.trailers, []);
    assert_eq!(received.headers_named("trailer").count(), 0);
}

/// What follows the scheme in an `authorization` header: a key, a token, a name and a password in base64.
fn credentials(value: &[u8]) -> String {
    let text = as_text(value);
    text.split_once(' ').expect("a scheme").1.to_owned()
}

/// Every text that must stay between the gateway and its providers.
fn secrets(gateway: &Gateway) -> Vec<String> {
    // The dash: Envoy has canaries of its own.
    let mut secrets = vec!["canary-".to_owned()];
    let key = gateway.secrets.of(Provider::Bbmsl).lines();
    // The first lines of all such keys are alike.
    secrets.extend(
        key.filter(|line| !line.starts_with("---"))
            .skip(1)
            .map(str::to_owned),
    );
    for provider in Provider::ALL {
        for exchange in gateway.simulators.requests(provider) {
            let headers = exchange.request.headers_named("authorization");
            secrets.extend(headers.map(credentials));
            let reply: Value = exchange
                .reply
                .and_then(|reply| serde_json::from_slice(&reply.body).ok())
                .unwrap_or_default();
            secrets.extend(reply["access_token"].as_str().map(str::to_owned));
        }
    }
    secrets.sort();
    secrets.dedup();
    secrets
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_answer_log_statistic_or_admin_page() {
    let mut caller = Caller::start(Options::default()).await;
    let mut shown = Vec::new();
    for provider in FOUR {
        let simulators = &caller.gateway.simulators;
        // A success; replies that tell what was sent to get them; one that is cut, and none at all.
        let telling = |status| {
            let sent = simulators.last_request(provider).expect("a request");
            let mut told: Vec<_> = sent
                .headers_named("authorization")
                .map(credentials)
                .collect();
            if !provider.declared().secret.signs() {
                told.push(caller.gateway.secrets.of(provider).to_owned());
            }
            let told = told.join(" ");
            let body = json!({"key": told, "code": told, "error": told, "message": format!("bad: {told}")});
            Fault::Reply {
                reply: Reply::json(status, body.to_string()),
                booked: false,
            }
        };
        shown.push(caller.refund(body(provider, 1)).await);
        // A token is no longer known once it was refused, so that comes last.
        for fault in [
            telling(200),
            telling(400),
            telling(500),
            telling(401),
            Fault::Close { booked: false },
            Fault::CutBody { booked: false },
        ] {
            simulators.next_fault(provider, fault);
            shown.push(caller.refund(body(provider, 2)).await);
        }
        simulators.revoke(provider, 0);
        shown.push(caller.refund(body(provider, 3)).await);
    }
    // The token endpoint, which gets the client's secret.
    let simulators = &caller.gateway.simulators;
    let sent = simulators
        .last_request(Provider::BogToken)
        .expect("a request");
    let mut told: Vec<_> = sent
        .headers_named("authorization")
        .map(credentials)
        .collect();
    told.push(caller.gateway.secrets.of(Provider::Bog).to_owned());
    let told = told.join(" ");
    let reply = json!({"error": told, "error_description": told});
    let reply = Reply::json(401, reply.to_string());
    simulators.next_fault(
        Provider::BogToken,
        Fault::Reply {
            reply,
            booked: false,
        },
    );
    simulators.revoke(Provider::BogToken, 0);
    for _ in 0..3 {
        shown.push(caller.refund(body(Provider::Bog, 4)).await);
    }
    let mut texts: Vec<_> = shown
        .iter()
        .map(|answer| {
            (
                "an answer".to_owned(),
                format!("{:?} {}", answer.headers, answer.text),
            )
        })
        .collect();
    for page in [
        "/stats",
        "/stats/prometheus",
        "/config_dump?include_eds",
        "/server_info",
        "/clusters",
        "/listeners?format=json",
        "/certs",
        "/init_dump",
        "/memory",
        "/runtime",
        "/contention",
    ] {
        let text = caller.gateway.admin(page).await.expect("a page");
        texts.push((page.to_owned(), text));
    }
    let secrets = secrets(&caller.gateway);
    caller.gateway.stop().await.expect("it ends");
    texts.push(("the access log".to_owned(), caller.gateway.access_log()));
    texts.push(("Envoy's log".to_owned(), caller.gateway.log()));

    assert!(secrets.len() > 25, "{} secrets", secrets.len());
    let mut leaks = Vec::new();
    for (place, text) in &texts {
        assert!(!text.is_empty(), "{place}");
        let found = secrets.iter().filter(|secret| text.contains(*secret));
        leaks.extend(found.map(|secret| format!("{secret} in {place}: {text:.900}")));
    }
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_tells_provider_status_and_key_id_and_not_what_was_said() {
    let mut caller = Caller::start(Options::default()).await;
    let mut expected = Vec::new();
    for provider in FOUR {
        let answer = caller.refund(body(provider, 1)).await;
        let id = answer.header("x-request-id").to_owned();
        let name = answer.body["provider"]
            .as_str()
            .expect("a provider")
            .to_owned();
        let word = answer.body["status"].as_str().expect("a status").to_owned();
        let key_id = provider.declared().secret.signs().then_some("2026-11");
        expected.push((id, Some(name), word, key_id, answer.status));
    }
    for (provider, id, word, status) in [
        (
            Provider::Moyasar,
            "canary-payment",
            "payment-not-found",
            404,
        ),
        (Provider::Bbmsl, "4926", "refund-declined", 422),
    ] {
        let call = caller.call(altered(provider, "/payment/id", json!(id)));
        let answer = caller.send(call).await;
        let name = answer.body["provider"]["name"]
            .as_str()
            .expect("a provider")
            .to_owned();
        let key_id = provider.declared().secret.signs().then_some("2026-11");
        let id = answer.header("x-request-id").to_owned();
        expected.push((id, Some(name), word.to_owned(), key_id, status));
    }
    let invalid = caller
        .send(caller.call(r#"{"reason":"canary-reason"}"#))
        .await;
    let id = invalid.header("x-request-id").to_owned();
    expected.push((id, None, "invalid-request".to_owned(), None, 422));
    let keyed = caller
        .bare(Method::POST)
        .header("idempotency-key", "canary-key");
    let untyped = caller.send(keyed.header("cookie", "canary-cookie")).await;
    let id = untyped.header("x-request-id").to_owned();
    expected.push((id, None, "unsupported-media-type".to_owned(), None, 415));

    caller.gateway.stop().await.expect("it ends");
    let log = caller.gateway.access_log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
        .collect();
    for (id, provider, word, key_id, status) in expected {
        let line = lines
            .iter()
            .find(|line| line["request_id"] == id)
            .expect("a line");
        assert_eq!(line["provider"].as_str(), provider.as_deref(), "{line}");
        assert_eq!(line["refund_status"], word, "{line}");
        let found = line["key_id"].as_str().and_then(|id| id.split(' ').next());
        assert_eq!(
            found.filter(|id| !id.starts_with("sha256:")),
            key_id,
            "{line}"
        );
        assert_eq!(line["status"], status, "{line}");
    }
    for said in ["canary-key", "canary-reason", "canary-cookie"] {
        assert!(!log.contains(said), "{said} in {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refunds_are_counted_by_provider_and_outcome() {
    let caller = Caller::start(Options::default()).await;
    for (provider, nth) in [
        (Provider::Bog, 1),
        (Provider::Moyasar, 1),
        (Provider::Moyasar, 2),
        (Provider::Begateway, 1),
        (Provider::Bbmsl, 1),
    ] {
        caller.refund(body(provider, nth)).await;
    }
    caller
        .send(caller.call(altered(Provider::Moyasar, "/payment/id", json!("none"))))
        .await;
    caller.send(caller.call("{}")).await;
    let text = caller
        .gateway
        .admin("/stats/prometheus")
        .await
        .expect("statistics");
    let count = |provider: &str, outcome: &str| {
        text.lines()
            .filter(|line| {
                line.split('{')
                    .next()
                    .is_some_and(|name| name.ends_with("refund_calls_total"))
            })
            .filter(|line| line.contains(&format!("provider=\"{provider}\"")))
            .filter(|line| {
                ["outcome", "code"]
                    .iter()
                    .any(|label| line.contains(&format!("{label}=\"{outcome}\"")))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum::<u64>()
    };
    for (provider, outcome, times) in [
        ("bog", "pending", 1),
        ("moyasar", "succeeded", 2),
        ("moyasar", "payment-not-found", 1),
        ("begateway", "succeeded", 1),
        ("bbmsl", "succeeded", 1),
        ("none", "invalid-request", 1),
    ] {
        assert_eq!(
            count(provider, outcome),
            times,
            "{provider} {outcome}: {text}"
        );
    }
}

/// What `envoy --mode validate` says of the project's own configuration, in the checkout, with the secrets in a folder of the
/// test's and this change: whether it takes it, and its log.
fn validate(change: impl FnOnce(&mut Value)) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = load().expect("envoy.yaml");
    set_secrets(&mut config, SecretsBy::of_this_envoy(), folder.path()).expect("secrets");
    change(&mut config);
    common::secrets().put(folder.path()).expect("secret files");
    let path = folder.path().join("envoy.json");
    std::fs::write(&path, config.to_string()).expect("a file");
    let output = std::process::Command::new(envoy().expect("Envoy"))
        .args(["--mode", "validate", "-c"])
        .arg(path)
        .args(["--log-level", "info", "--use-dynamic-base-id"])
        .current_dir(project())
        .output()
        .expect("Envoy ran");
    let log = as_text(&output.stderr) + &as_text(&output.stdout);
    (output.status.success(), log)
}

#[test]
fn envoy_takes_the_projects_own_configuration_as_it_stands() {
    let (taken, log) = validate(|_| {});
    assert!(taken, "{log}");
    for word in [
        "canary",
        "deprecated",
        common::secrets()
            .of(Provider::Bbmsl)
            .lines()
            .nth(2)
            .expect("a line"),
    ] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

#[test]
fn a_broken_plugin_configuration_is_refused_with_pointers_and_without_secrets() {
    type Change = fn(&mut Value);
    // All that is wrong is told at once, and each case has Envoy compile the filter.
    let cases: [(&str, Change, &[&str]); 4] = [
        (
            "unknown members, a private key and a currency that are none",
            |plugin| {
                plugin["pathh"] = json!("canary");
                plugin["providers"]["bog"]["token"]["scope"] = json!("canary");
                plugin["providers"]["moyasar"]["apikey"] = json!({"inline": "canary"});
                plugin["providers"]["bbmsl"]["currencies"] = json!(["HKD", "ZZZ"]);
                let keys = &mut plugin["providers"]["bbmsl"]["signing"]["keys"];
                keys[0]["private_key"] = json!({"inline": "-----BEGIN PRIVATE KEY-----\ncanary\n"});
            },
            &[
                "/pathh",
                "/providers/bog/token/scope",
                "/providers/moyasar/apikey",
                "/providers/bbmsl/currencies/1",
                "/providers/bbmsl/signing/keys/0/private_key",
            ],
        ),
        (
            "an environment variable that is not there, a secret of another shape, no kind",
            |plugin| {
                plugin["providers"]["moyasar"]["api_key"] = json!({"env": "NO_SUCH_VARIABLE"});
                plugin["providers"]["begateway"]["secret_key"] = json!({"inline": ["canary"]});
                plugin["providers"]["bog"]["kind"] = json!("bank");
            },
            &[
                "/providers/moyasar/api_key/env",
                "/providers/begateway/secret_key/inline",
                "/providers/bog/kind",
            ],
        ),
        (
            "a secret that is a text, and no address",
            |plugin| {
                plugin["providers"]["moyasar"]["api_key"] = json!("canary");
                plugin["providers"]["moyasar"]["base_url"] = json!("ftp://canary");
            },
            &["/providers/moyasar/api_key", "/providers/moyasar/base_url"],
        ),
        (
            "no provider",
            |plugin| plugin["providers"] = json!({}),
            &["/providers"],
        ),
    ];
    for (case, change, pointers) in cases {
        let (taken, log) = validate(|config| plugin(config, change));
        assert!(!taken, "{case}: {log}");
        for pointer in pointers {
            assert!(
                log.contains(&format!("\"{pointer}\"")),
                "{case}: {pointer} in {log}"
            );
        }
        assert!(!log.contains("canary"), "{case}: {log}");
    }
}

/// Over HTTP/2 an answer before the call's end comes with a reset of its stream, by which some clients lose it: Debian's curl lost
/// a quarter to most of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_headers_reaches_a_caller_over_http_2() {
    let caller = Caller::start(Options::default()).await;
    let body = "x".repeat(60_000);
    let file = caller.gateway.folder().join("body");
    std::fs::write(&file, body).expect("a file");
    let json = ["content-type: application/json", "idempotency-key: k-1"];
    for (headers, method, status) in [
        (&["content-type: text/plain", json[1]][..], "POST", "415"),
        (&json[..1], "POST", "400"),
        (&json[..], "PUT", "405"),
    ] {
        for nth in 0..10 {
            let mut curl = tokio::process::Command::new("curl");
            curl.args([
                "--silent",
                "--http2-prior-knowledge",
                "--max-time",
                "20",
                "--request",
                method,
            ])
            .args([
                "--write-out",
                "%{http_code}",
                "--output",
                "/dev/null",
                "--data-binary",
            ])
            .arg(format!("@{}", file.display()));
            for header in headers {
                curl.args(["--header", header]);
            }
            let Ok(output) = curl.arg(caller.gateway.url()).output().await else {
                println!("curl is not here: nothing was tried");
                return;
            };
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success(),
                "{method}, {nth}: {:?}",
                output.status
            );
            assert_eq!(told, status, "{method}, {nth}");
        }
    }
    assert_eq!(
        caller.reached().map(|(requests, _)| requests),
        [0; Provider::ALL.len()]
    );
}
