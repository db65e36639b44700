//! Calls made to hurt, through real Envoy: each ends in its one problem or its one refund, none
//! reaches more than it names, and no worker's VM dies of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{FOUR, Problem, assert_problem, currency, unknown};
use anyhow::{Context as _, Result, bail, ensure};
use gateway_testbed::{Answer, Gateway, Options, PATH, cluster};
use http::{HeaderMap, HeaderName, HeaderValue};
use provider_simulator::{Fault, Provider, Received, Reply, Text, orders};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use Provider::{Bbmsl, Begateway, Bog, Moyasar};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(40);

const BAD_REQUEST: Problem = Problem::corrected("bad-request", 400);
const MALFORMED: Problem = Problem::corrected("malformed-json", 400);
const INVALID: Problem = Problem::corrected("invalid-request", 422);
const TOO_LARGE: Problem = Problem::corrected("body-too-large", 413);
const WRONG_TYPE: Problem = Problem::corrected("unsupported-media-type", 415);
const NO_KEY: Problem = Problem::corrected("idempotency-key-missing", 400);
const BAD_KEY: Problem = Problem::corrected("idempotency-key-invalid", 400);
const NOT_FOUND: Problem = Problem::certain("payment-not-found", 404);
const LATE: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("request-timeout", 408)
};

/// Has Envoy wait less for a caller to close its side too, once it has refused it: these callers
/// never do, and are many.
fn close_soon(config: &mut Value) {
    let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
    let manager = config.pointer_mut(manager);
    manager.expect("the connection manager")["delayed_close_timeout"] = json!("0.2s");
}

/// A gateway under attack.
struct Target {
    gateway: Gateway,
    nth: AtomicU64,
}

impl Target {
    async fn start() -> Result<Target> {
        Ok(Target {
            gateway: Gateway::start(Options::changed(close_soon)).await?,
            nth: AtomicU64::new(1),
        })
    }

    /// A call of 1.00 for an order that no other call names.
    fn call(&self, provider: Provider) -> Value {
        let nth = self.nth.fetch_add(1, Ordering::Relaxed);
        json!({
            "provider": cluster(provider),
            "payment": {"id": orders::fresh(provider, nth)},
            "amount": {"value": "1.00", "currency": currency(provider)},
        })
    }

    /// The same as text, with one member set to this JSON text.
    fn with(&self, provider: Provider, pointer: &str, text: &str) -> String {
        let mut call = self.call(provider);
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        call.pointer_mut(parent).expect("a parent")[name] = json!("@HERE@");
        call.to_string().replace("\"@HERE@\"", text)
    }

    async fn refund(&self, body: impl ToString) -> Result<Answer> {
        let key = Uuid::new_v4().to_string();
        timeout(PATIENCE, self.gateway.refund(&key, &body.to_string())).await?
    }

    /// What has come to each provider: requests, refunds.
    fn reached(&self) -> [(u64, usize); Provider::ALL.len()] {
        let simulators = &self.gateway.simulators;
        Provider::ALL.map(|provider| {
            let refunds = simulators.ledger(provider).len();
            (simulators.received(provider), refunds)
        })
    }

    fn booked(&self) -> usize {
        let simulators = &self.gateway.simulators;
        let ledgers = Provider::ALL.map(|provider| simulators.ledger(provider).len());
        ledgers.iter().sum()
    }

    fn last(&self, provider: Provider) -> Result<Received> {
        let request = self.gateway.simulators.last_request(provider);
        request.context("nothing came to the provider")
    }

    /// A body that gets this problem before anything reaches any provider.
    async fn refused(&self, case: &str, body: impl ToString, problem: Problem) -> Result<Answer> {
        let before = self.reached();
        let answer = self.refund(body).await.context(case.to_owned())?;
        assert_problem(case, &answer, problem);
        assert_eq!(self.reached(), before, "{case}");
        Ok(answer)
    }

    /// Bytes that get this one problem, and nothing reaches any provider.
    async fn refused_raw(&self, case: &str, bytes: &[u8], problem: Problem) -> Result<()> {
        let before = self.reached();
        let answers = raw(&self.gateway, bytes).await.context(case.to_owned())?;
        let [answer] = answers.as_slice() else {
            bail!("{case}: {answers:?}");
        };
        assert_problem(case, answer, problem);
        assert_eq!(self.reached(), before, "{case}");
        Ok(())
    }

    /// Bytes that get this one refund, once.
    async fn refunded_raw(&self, case: &str, bytes: &[u8]) -> Result<()> {
        let before = self.booked();
        let answers = raw(&self.gateway, bytes).await.context(case.to_owned())?;
        let [answer] = answers.as_slice() else {
            bail!("{case}: {answers:?}");
        };
        assert_refunded(case, answer);
        assert_eq!(self.booked(), before + 1, "{case}");
        Ok(())
    }

    /// Whether nothing has trapped, nothing hangs about, and every worker still refunds.
    async fn survives(self) -> Result<()> {
        let before = self.booked();
        // Each over a connection of its own, so that both workers get some.
        for _ in 0..4 {
            for provider in FOUR {
                let answer = self.refund(self.call(provider)).await?;
                assert_refunded("afterwards", &answer);
            }
        }
        assert_eq!(self.booked(), before + 16);
        let stats = self
            .gateway
            .admin("/stats?filter=wasm.*(reload|fail|crash|trap|abort)")
            .await?;
        ensure!(stats.contains("vm_reload"), "no such statistics: {stats}");
        for line in stats.lines() {
            assert!(line.ends_with(": 0"), "{stats}");
        }
        let log = self.gateway.log();
        for word in [
            "Function: proxy_",
            "Uncaught RuntimeError",
            "VM crash",
            "panicked",
        ] {
            assert!(!log.contains(word), "{word} in {log}");
        }
        Ok(())
    }
}

#[track_caller]
fn assert_refunded(case: &str, answer: &Answer) {
    let word = answer.body["status"].as_str().unwrap_or_default();
    assert!(
        matches!((answer.status, word), (200, "succeeded") | (202, "pending")),
        "{case}: {answer:?}"
    );
    assert!(!answer.header("x-request-id").is_empty(), "{case}");
}

/// The pointers of all `errors`.
fn pointers(answer: &Answer) -> Vec<&str> {
    let errors = answer.body["errors"].as_array().into_iter().flatten();
    errors
        .filter_map(|error| error["pointer"].as_str())
        .collect()
}

/// Writes these bytes and reads every answer up to the connection's end, which Envoy or the bytes'
/// own `connection: close` must bring about.
async fn raw(gateway: &Gateway, bytes: &[u8]) -> Result<Vec<Answer>> {
    let (mut from, mut to) = TcpStream::connect(gateway.address).await?.into_split();
    let bytes = bytes.to_vec();
    let writes = tokio::spawn(async move {
        // An early answer may end the connection before all is written.
        let _ = to.write_all(&bytes).await;
        // Kept open: Envoy takes a caller that has closed its side for one that has gone.
        to
    });
    let mut all = Vec::new();
    // A reset after the answer is no fault: not all that was written had been read.
    let _ = timeout(PATIENCE, from.read_to_end(&mut all))
        .await
        .with_context(|| format!("it hangs after {:?}", String::from_utf8_lossy(&all)))?;
    writes.abort();
    answers(&String::from_utf8(all)?)
}

fn answers(mut text: &str) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").context(text.to_owned())?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.get(9..12)?.parse().ok());
        let status: u16 = status.context(head.to_owned())?;
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").context(line.to_owned())?;
            headers.append(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        }
        let length = match headers.get("content-length") {
            Some(length) => length.to_str()?.parse()?,
            None => 0,
        };
        ensure!(length <= rest.len(), "cut: {text}");
        let (body, rest) = rest.split_at(length);
        text = rest;
        answers.push(Answer {
            status,
            headers,
            text: body.to_owned(),
            body: serde_json::from_str(body).unwrap_or_default(),
        });
    }
    Ok(answers)
}

/// A POST by hand: the target, header lines before the usual ones, the body.
fn post(target: &str, lines: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {target} HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: {}\r\n{lines}content-length: {}\r\n\r\n{body}",
        Uuid::new_v4(),
        body.len()
    )
    .into_bytes()
}

/// The same without a length: what frames the body is among the lines.
fn framed(lines: &str, rest: &str) -> Vec<u8> {
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\nidempotency-key: {}\r\n\
         {lines}\r\n\r\n{rest}",
        Uuid::new_v4()
    )
    .into_bytes()
}

/// Every place of a text or an object in a call.
const PLACES: [&str; 9] = [
    "/provider",
    "/payment",
    "/payment/id",
    "/payment/reference",
    "/amount",
    "/amount/value",
    "/amount/currency",
    "/reason",
    "/reference",
];

#[tokio::test(flavor = "multi_thread")]
async fn nesting_costs_a_caller_its_call_and_the_gateway_nothing() -> Result<()> {
    let target = Target::start().await?;
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let depth = 60_000 / (open.len() + close.len());
        ensure!(depth >= 7_000, "{depth}");
        for depth in [200, depth] {
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for pointer in PLACES.iter().chain(&["/x", "/payment/x", "/amount/x"]) {
                let case = format!("{depth} of {open} at {pointer}");
                let body = target.with(Bog, pointer, &deep);
                let answer = target.refused(&case, body, INVALID).await?;
                let found = pointers(&answer);
                assert!(
                    found.iter().any(|at| at.starts_with(pointer)),
                    "{case}: {found:?}"
                );
            }
        }
        let never_closed = target.with(Bog, "/reason", &open.repeat(10_000));
        let case = format!("{open} without an end");
        target.refused(&case, never_closed, MALFORMED).await?;
    }
    // A provider may be hostile, too.
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    for provider in FOUR {
        for reply in [
            deep.clone(),
            "[".repeat(50_000),
            format!(
                r#"{{"transaction":{deep},"transactions":{deep},"key":{deep},"responseCode":{deep},"order":{deep}}}"#
            ),
        ] {
            let reply = Reply::json(200, reply);
            let booked = false;
            let fault = Fault::Reply { reply, booked };
            target.gateway.simulators.next_fault(provider, fault);
            let answer = target.refund(target.call(provider)).await?;
            let problem = unknown(provider, "provider-reply-unreadable", 502);
            assert_problem(&format!("{provider:?}"), &answer, problem);
        }
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giant_number_is_no_amount_and_breaks_nothing() -> Result<()> {
    let target = Target::start().await?;
    let nines = "9".repeat(20_000);
    let zeros = "0".repeat(20_000);
    for provider in FOUR {
        for value in [
            format!("\"{nines}\""),
            format!("\"1.{nines}\""),
            format!("\"0.{zeros}1\""),
            format!("\"1{zeros}\""),
            "\"18446744073709551616\"".into(),
            "\"9223372036854775807.99\"".into(),
            "\"340282366920938463463374607431768211456\"".into(),
            "\"184467440737095516.16\"".into(),
            "\"184467440737095517.16\"".into(),
            nines.clone(),
            format!("-{nines}"),
            "1e999999999".into(),
            format!("1e-{nines}"),
            format!("0.{nines}"),
            "-0".into(),
        ] {
            // The page of each provider has limits of its own; these are over what 64 bits hold in
            // minor units, or no text.
            let case = format!("{provider:?}: {value:.30}");
            let body = target.with(provider, "/amount/value", &value);
            let answer = target.refused(&case, body, INVALID).await?;
            assert_eq!(pointers(&answer), ["/amount/value"], "{case}");
        }
        for pointer in ["/reason", "/reference", "/payment/id", "/x"] {
            let body = target.with(provider, pointer, &nines);
            let answer = target.refused(pointer, body, INVALID).await?;
            assert_eq!(pointers(&answer), [pointer], "{provider:?}");
        }
    }
    // What a provider echoes is another amount, or none that can be read; never a success.
    for (provider, pointer) in [
        (Moyasar, "/transactions/1/amount"),
        (Begateway, "/transaction/amount"),
        (Bbmsl, "/transaction/amount"),
    ] {
        for number in [
            nines.as_str(),
            "1e400",
            "-1e400",
            "100e0",
            "1.00000000000000000001",
        ] {
            let case = format!("{provider:?} echoes {number:.30}");
            let fault = Fault::Altered {
                pointer: pointer.into(),
                value: Some(number.into()),
            };
            target.gateway.simulators.next_fault(provider, fault);
            let answer = target.refund(target.call(provider)).await?;
            match answer.body["code"].as_str() {
                Some("provider-reply-mismatch") => {
                    let problem = Problem {
                        retry: "look_up",
                        ..unknown(provider, "provider-reply-mismatch", 502)
                    };
                    assert_problem(&case, &answer, problem);
                }
                // 100e0 is a hundred, however it is spelled.
                None if number == "100e0" => assert_refunded(&case, &answer),
                _ => {
                    let problem = unknown(provider, "provider-reply-unreadable", 502);
                    assert_problem(&case, &answer, problem);
                }
            }
        }
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_surrogate_is_no_text_in_any_place() -> Result<()> {
    let target = Target::start().await?;
    let texts = PLACES
        .iter()
        .filter(|place| !["/payment", "/amount"].contains(place));
    for pointer in texts {
        for text in [
            r#""\ud800""#,
            r#""\udfff""#,
            r#""a\udbffz""#,
            r#""\ud800\ud800""#,
            r#""\udc00\ud800""#,
            r#""\ud83d\u0020""#,
        ] {
            let case = format!("{text} at {pointer}");
            let body = target.with(Moyasar, pointer, text);
            target.refused(&case, body, MALFORMED).await?;
        }
    }
    for pointer in ["/reason", "/reference", "/payment/reference"] {
        let body = target.with(Moyasar, pointer, r#""\ud83d\ude00""#);
        let answer = target.refund(body).await?;
        assert_refunded("a whole pair is a character", &answer);
    }
    target.survives().await
}

/// What could break out of a path, a header, a JSON text or a log line.
const BREAKING: &[&str] = &[
    "/",
    "//",
    "/..",
    "/../../payments",
    "/./",
    "?amount=100",
    "#fragment",
    "%",
    "%2e",
    "%2e%2e",
    "%2e%2e%2f",
    "%2f",
    "%252f",
    "%00",
    "%zz",
    "\\..\\",
    ";v=1",
    " ",
    "+",
    "&amount=100",
    "@evil.example",
    ":443",
    "\r\nx-evil: 1",
    "\n",
    "\r",
    "\r\n\r\nPOST /x HTTP/1.1\r\nhost: api.bog.ge\r\n\r\n{}",
    "\u{0}",
    "\u{1}\u{7f}\u{9f}",
    "\u{85}\u{2028}\u{2029}",
    "\u{202e}",
    "\u{feff}",
    "\u{ff0f}",
    "\u{2024}\u{2024}",
    "é\u{1F600}",
    "\",\"amount\":100,\"x\":\"",
    "'\"`<>{}|^$",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_payments_id_is_one_segment_of_the_path_whatever_is_in_it() -> Result<()> {
    let target = Target::start().await?;
    let cases = BREAKING.iter().flat_map(|text| {
        // Bank of Georgia's simulator takes any id of this beginning, and decodes it; Moyasar's
        // takes none of these.
        [
            (Bog, format!("order-{}", Uuid::new_v4().simple()) + text),
            (Bog, (*text).to_owned()),
            (Bog, format!("{text}x")),
            (Moyasar, format!("order{text}")),
            (Moyasar, (*text).to_owned()),
        ]
    });
    let cases = cases.chain([(Bog, "...".to_owned()), (Moyasar, "...".to_owned())]);
    for (provider, id) in cases {
        let case = format!("{provider:?}: {id:?}");
        let mut call = target.call(provider);
        call["payment"]["id"] = json!(id);
        let before = target.reached();
        let booked = target.booked();
        let answer = target.refund(call).await.context(case.clone())?;
        let known = provider == Bog && id.starts_with("order-");
        if known {
            assert_refunded(&case, &answer);
            assert_eq!(answer.body["payment"]["id"], id, "{case}");
            let ledger = target.gateway.simulators.ledger(provider);
            assert_eq!(ledger.last().map(|refunded| &refunded.payment), Some(&id));
        } else {
            assert_problem(&case, &answer, NOT_FOUND);
        }
        assert_eq!(target.booked(), booked + usize::from(known), "{case}");
        let request = target.last(provider)?;
        let (before_id, after_id) = provider.declared().path;
        let segment = request
            .path
            .strip_prefix(before_id)
            .and_then(|path| path.strip_suffix(after_id))
            .with_context(|| format!("{case}: {}", request.path))?;
        assert!(
            segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)),
            "{case}: {segment}"
        );
        assert_eq!(decoded(segment)?, id.as_bytes(), "{case}: {segment}");
        assert_eq!(request.headers_named("x-evil").count(), 0, "{case}");
        // One request to this provider, none to another.
        let others = before.iter().zip(target.reached());
        let came: u64 = others.map(|(before, after)| after.0 - before.0).sum();
        let servers = Provider::ALL.into_iter().zip(before);
        let fetches =
            servers.filter_map(|(server, before)| (!server.refunds()).then_some(before.0));
        let token = target.gateway.simulators.token_fetches() - fetches.sum::<u64>();
        assert_eq!(came - token, 1, "{case}");
    }
    target.survives().await
}

fn decoded(segment: &str) -> Result<Vec<u8>> {
    let mut bytes = segment.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(Option::unwrap_or_default);
                u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?
            }
            byte => byte,
        });
    }
    Ok(decoded)
}

/// What the provider reads: of a signed request, the text that was signed.
fn read(request: &Received) -> Result<Value> {
    let body: Value = serde_json::from_slice(&request.body)?;
    Ok(match body["request"].as_str() {
        Some(signed) => serde_json::from_str(signed)?,
        None => body,
    })
}

fn amount(body: &Value) -> &Value {
    let amount = body.pointer("/amount").or(body.pointer("/request/amount"));
    amount.unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_the_call_reaches_its_own_place_and_no_other() -> Result<()> {
    let target = Target::start().await?;
    let sound = {
        let answers: Vec<_> = FOUR.map(|provider| target.call(provider)).into();
        for call in answers {
            assert_refunded("sound", &target.refund(call).await?);
        }
        let names = |provider| -> Result<(Vec<String>, Value)> {
            let request = target.last(provider)?;
            let amount = amount(&read(&request)?).clone();
            let names = request.headers.into_iter().map(|(name, _)| name);
            Ok((names.collect(), amount))
        };
        FOUR.into_iter().map(names).collect::<Result<Vec<_>>>()?
    };
    for text in BREAKING {
        let text = &format!("a{text}z");
        for (provider, (names, sound)) in FOUR.into_iter().zip(&sound) {
            for pointer in ["/reason", "/reference", "/payment/reference"] {
                let mut texts = provider.declared().texts.iter();
                let carried = texts.find(|carried| carried.of == pointer);
                // No order has such a name.
                let named = carried.is_some_and(|carried| carried.names);
                let case = format!("{provider:?} {pointer}: {text:?}");
                let mut call = target.call(provider);
                let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
                call.pointer_mut(parent).expect("a parent")[name] = json!(text);
                let booked = target.booked();
                let answer = target.refund(&call).await.context(case.clone())?;
                if named {
                    let problem = Problem {
                        outcome: "unknown",
                        retry: "look_up",
                        ..Problem::certain("provider-rejected", 422)
                    };
                    assert_problem(&case, &answer, problem);
                } else {
                    assert_refunded(&case, &answer);
                    assert_eq!(answer.body.pointer(pointer), Some(&json!(text)), "{case}");
                }
                assert_eq!(target.booked(), booked + usize::from(!named), "{case}");
                let request = target.last(provider)?;
                let got: Vec<_> = request.headers.iter().map(|(name, _)| name).collect();
                assert_eq!(got, names.iter().collect::<Vec<_>>(), "{case}");
                for (name, value) in &request.headers {
                    let plain = value.iter().all(|byte| (0x20..0x7f).contains(byte));
                    assert!(plain, "{case}: {name}");
                }
                let body = read(&request)?;
                assert_eq!(amount(&body), sound, "{case}: {body}");
                if let Some(Text { at, divider, .. }) = carried {
                    let put = body.pointer(at).and_then(Value::as_str);
                    let put = put.with_context(|| format!("{case}: {body}"))?;
                    let is_put = match *divider {
                        "" => put == text,
                        divider => put.starts_with(&format!("{text}{divider}")),
                    };
                    assert!(is_put, "{case}: {put}");
                }
            }
        }
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_looks_like_a_providers_is_not_its_name() -> Result<()> {
    let target = Target::start().await?;
    for name in [
        "bоg",
        "Ьog",
        "ｂog",
        "ｂｏｇ",
        "𝐛𝐨𝐠",
        "bo\u{0261}",
        "b\u{200b}og",
        "bog\u{200d}",
        "\u{feff}bog",
        "bo\u{ad}g",
        "bog\u{301}",
        "\u{202e}gob",
        "mоyasar",
        "moyaѕar",
        "begatewаy",
        "bbmsI",
        "bbmsⅼ",
        "bbmѕl",
        "bog\u{0}",
        "bog\r\nx-evil: 1",
        "bog/../bbmsl",
        "%62og",
        "bog,bbmsl",
        "__proto__",
        "wasm.refund_provider",
    ] {
        let body = target.with(Bog, "/provider", &json!(name).to_string());
        let answer = target.refused(name, body, INVALID).await?;
        assert_eq!(pointers(&answer), ["/provider"], "{name:?}");
        assert!(!answer.text.contains("x-evil"), "{}", answer.text);
    }
    // Escapes are another spelling of the same characters.
    let escaped = target.with(Bog, "/provider", r#""\u0062o\u0067""#);
    assert_refunded("escaped", &target.refund(escaped).await?);
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubled_header_never_makes_two_of_one_call() -> Result<()> {
    let target = Target::start().await?;
    for (case, lines, problem) in [
        (
            "a second, equal key",
            "idempotency-key: k-1\r\nIDEMPOTENCY-KEY: k-1\r\n",
            BAD_KEY,
        ),
        (
            "two keys in one line",
            "idempotency-key: k-1, k-2\r\n",
            BAD_KEY,
        ),
        (
            "two quoted keys in one line",
            "idempotency-key: \"k-1\",\"k-2\"\r\n",
            BAD_KEY,
        ),
        (
            "a type and another",
            "content-type: text/plain\r\n",
            WRONG_TYPE,
        ),
        (
            "a type twice",
            "Content-Type: application/json\r\n",
            WRONG_TYPE,
        ),
        (
            "a coding twice",
            "content-encoding: identity\r\ncontent-encoding: gzip\r\n",
            WRONG_TYPE,
        ),
    ] {
        let body = target.call(Moyasar).to_string();
        let mut bytes = String::from_utf8(post(PATH, lines, &body))?;
        if case.contains("in one line") {
            // In place of the key that is there.
            let at = bytes.find("idempotency-key: ").context("a key")?;
            let end = at + bytes[at..].find("\r\n").context("a line")? + 2;
            bytes.replace_range(at..end, "");
        }
        target.refused_raw(case, bytes.as_bytes(), problem).await?;
    }
    // RFC 9110, 8.6, lets a recipient take equal lengths for one or refuse them; Envoy refuses.
    let body = target.call(Moyasar).to_string();
    let length = body.len();
    for (case, lines) in [
        ("a length twice", format!("content-length: {length}\r\n")),
        (
            "a length and a shorter one",
            "content-length: 0\r\n".to_owned(),
        ),
    ] {
        target
            .refused_raw(case, &post(PATH, &lines, &body), BAD_REQUEST)
            .await?;
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_lies_costs_the_caller_its_own_call() -> Result<()> {
    let target = Target::start().await?;
    let body = target.call(Moyasar).to_string();
    let of_length = |length: &str| {
        framed(
            &format!("connection: close\r\ncontent-length: {length}"),
            &body,
        )
    };
    let shorter = (body.len() - 1).to_string();
    target
        .refused_raw("too short", &of_length(&shorter), MALFORMED)
        .await?;
    target
        .refused_raw("none of it", &of_length("0"), MALFORMED)
        .await?;
    let longer = (body.len() + 1).to_string();
    target
        .refused_raw("too long", &of_length(&longer), LATE)
        .await?;
    for length in [
        "-1",
        "-0",
        "+5",
        "0x5",
        "5.0",
        "5e0",
        "5 5",
        "5,5",
        "5;",
        "five",
        "",
        "18446744073709551616",
        "99999999999999999999999999999999",
    ] {
        let case = format!("a length of {length:?}");
        target
            .refused_raw(&case, &of_length(length), BAD_REQUEST)
            .await?;
    }
    target.survives().await
}

/// Refused by its length alone, however many bits that has.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_over_64_kib_is_believed_at_any_size() -> Result<()> {
    let target = Target::start().await?;
    for length in [
        65_537,
        0x7fff_ffff,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0005,
        i64::MAX as u64,
        u64::MAX,
    ] {
        let lines = format!("connection: close\r\ncontent-length: {length}");
        let case = format!("a length of {length}");
        target
            .refused_raw(&case, &framed(&lines, "{"), TOO_LARGE)
            .await?;
    }
    target.survives().await
}

/// A second call, hidden in the first one's body: whoever reads the first by another of its two
/// framings sends it.
fn hidden(target: &Target) -> String {
    String::from_utf8(post(PATH, "", &target.call(Bbmsl).to_string())).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_two_framings_is_refused_with_all_that_is_hidden_in_it() -> Result<()> {
    let target = Target::start().await?;
    let not_implemented = Problem {
        status: 501,
        ..BAD_REQUEST
    };
    let chunked = |target: &Target, rest: &str| {
        let body = target.call(Moyasar).to_string();
        format!("{:x}\r\n{body}\r\n0\r\n\r\n{rest}", body.len())
    };
    for (case, coding) in [
        ("chunked", "transfer-encoding: chunked"),
        ("in another case", "Transfer-Encoding: CHUNKED"),
        ("folded", "transfer-encoding:\r\n chunked"),
        ("folded by a tab", "transfer-encoding:\r\n\tchunked"),
        ("a space before the colon", "transfer-encoding : chunked"),
        ("a tab before the colon", "transfer-encoding\t: chunked"),
        ("a tab before the value", "transfer-encoding:\tchunked"),
        ("a vertical tab", "transfer-encoding: \x0bchunked"),
        ("quoted", "transfer-encoding: \"chunked\""),
        ("another one", "transfer-encoding: xchunked"),
        ("a list", "transfer-encoding: chunked, identity"),
        ("the other list", "transfer-encoding: identity, chunked"),
        (
            "two lines",
            "transfer-encoding: chunked\r\ntransfer-encoding: x",
        ),
        (
            "two equal lines",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        ),
        ("identity", "transfer-encoding: identity"),
        ("an empty one", "transfer-encoding:"),
        ("a NUL", "transfer-encoding: chunked\0"),
    ] {
        for cl_te in [true, false] {
            let before = target.reached();
            let secret = hidden(&target);
            let rest = if cl_te {
                // By the length it is one body; by chunks it ends at once, and the hidden call
                // follows.
                format!("0\r\n\r\n{secret}")
            } else {
                chunked(&target, &secret)
            };
            let length = if cl_te { rest.len() } else { 4 };
            let case = format!("{case}, {}", if cl_te { "CL.TE" } else { "TE.CL" });
            let bytes = framed(&format!("content-length: {length}\r\n{coding}"), &rest);
            let answers = raw(&target.gateway, &bytes).await.context(case.clone())?;
            let [answer] = answers.as_slice() else {
                bail!("{case}: {answers:?}");
            };
            // RFC 9112, 6.1: an unknown coding is 501, all the rest 400.
            let problem = if answer.status == 501 {
                not_implemented
            } else {
                BAD_REQUEST
            };
            assert_problem(&case, answer, problem);
            assert_eq!(target.reached(), before, "{case}");
        }
    }
    // RFC 9112, 2.2 and 5.2, has these read as blanks in another header's value, which leaves one
    // framing, or refused.
    for line in [
        "x-a: 1\r\n transfer-encoding: chunked",
        "x-a: 1\rtransfer-encoding: chunked",
    ] {
        let before = target.reached();
        let rest = format!("0\r\n\r\n{}", hidden(&target));
        let lines = format!(
            "connection: close\r\n{line}\r\ncontent-length: {}",
            rest.len()
        );
        let answers = raw(&target.gateway, &framed(&lines, &rest)).await?;
        let [answer] = answers.as_slice() else {
            bail!("{line:?}: {answers:?}");
        };
        assert_problem(line, answer, bad_request_or(MALFORMED, answer));
        assert_eq!(target.reached(), before, "{line:?}");
    }
    target.survives().await
}

/// For what the standard lets Envoy refuse, or read in a way that the filter then refuses.
fn bad_request_or(other: Problem, answer: &Answer) -> Problem {
    match answer.body["code"].as_str() {
        Some("bad-request") => BAD_REQUEST,
        _ => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_read_as_the_standard_has_them_or_not_at_all() -> Result<()> {
    let target = Target::start().await?;
    let chunked = |rest: &str| framed("connection: close\r\ntransfer-encoding: chunked", rest);
    let whole = |extension: &str| {
        let body = target.call(Moyasar).to_string();
        format!(
            "{:x}{extension}\r\n{body}\r\n0{extension}\r\n\r\n",
            body.len()
        )
    };
    for extension in ["", ";a", ";a=b", ";a=\"b\"", ";a=1;b=2"] {
        let case = format!("an extension {extension:?}");
        target
            .refunded_raw(&case, &chunked(&whole(extension)))
            .await?;
    }
    let upper = {
        let body = target.call(Moyasar).to_string();
        format!("000{:X}\r\n{body}\r\n000\r\n\r\n", body.len())
    };
    target
        .refunded_raw("upper case and zeros", &chunked(&upper))
        .await?;
    let body = target.call(Moyasar).to_string();
    let size = body.len();
    for (case, rest) in [
        ("below zero", format!("-{size:x}\r\n{body}\r\n0\r\n\r\n")),
        (
            "with a prefix",
            format!("0x{size:x}\r\n{body}\r\n0\r\n\r\n"),
        ),
        ("a plus", format!("+{size:x}\r\n{body}\r\n0\r\n\r\n")),
        ("no size", format!("\r\n{body}\r\n0\r\n\r\n")),
        (
            "over 64 bits",
            format!("1{}{size:x}\r\n{body}\r\n0\r\n\r\n", "0".repeat(16)),
        ),
        (
            "no line break after it",
            format!("{size:x}\r\n{body}0\r\n\r\n"),
        ),
    ] {
        target
            .refused_raw(case, &chunked(&rest), BAD_REQUEST)
            .await?;
    }
    // What is left over after a chunk is refused, or skipped with the rest of its line; what was
    // cut off is then no JSON.
    let before = target.reached();
    let rest = format!("{:x}\r\n{body}\r\n0\r\n\r\n", size - 2);
    let answers = raw(&target.gateway, &chunked(&rest)).await?;
    let [answer] = answers.as_slice() else {
        bail!("longer than said: {answers:?}");
    };
    let problem = bad_request_or(MALFORMED, answer);
    assert_problem("longer than said", answer, problem);
    assert_eq!(target.reached(), before);
    // An extension that another server takes for the end of its line: what follows must not become
    // a call of its own.
    let secret = hidden(&target);
    for extension in [";\n", ";a\n", "\n;", ";\r", ";\0"] {
        let case = format!("an extension {extension:?}");
        let before = target.gateway.simulators.ledger(Bbmsl).len();
        let booked = target.booked();
        let rest = format!("{size:x}{extension}\r\n{body}\r\n0\r\n\r\n");
        let answers = raw(&target.gateway, &chunked(&rest))
            .await
            .context(case.clone())?;
        assert_eq!(answers.len(), 1, "{case}: {answers:?}");
        let hiding = format!(
            "2{extension}\r\n{{}}\r\n{:x}\r\n{secret}\r\n0\r\n\r\n",
            secret.len()
        );
        let answers = raw(&target.gateway, &chunked(&hiding))
            .await
            .context(case.clone())?;
        assert_eq!(answers.len(), 1, "{case}: {answers:?}");
        assert_eq!(answers[0].status, 400, "{case}: {answers:?}");
        assert_eq!(
            target.gateway.simulators.ledger(Bbmsl).len(),
            before,
            "{case}"
        );
        assert!(target.booked() <= booked + 1, "{case}");
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_the_refund_path_or_another_applications() -> Result<()> {
    let target = Target::start().await?;
    for path in [
        "http://gateway.test/v1/refunds",
        "http://gateway.test/v1/./refunds?",
        "http://api.bog.ge/v1/refunds",
        "http://169.254.169.254/v1/refunds",
        "/v1/refunds;/../refunds?",
    ] {
        let body = target.call(Moyasar).to_string();
        target.refunded_raw(path, &post(path, "", &body)).await?;
        assert_eq!(
            target.last(Moyasar)?.authority.as_deref(),
            Some(Moyasar.host()),
            "{path}"
        );
    }
    let elsewhere = [
        "/v1/refunds/..",
        "/v1/refunds/../",
        "/v1/refunds/.",
        "/v1/refunds/../../v1",
        "/v1%2frefunds",
        "/v1%2Frefunds",
        "/%2fv1/refunds",
        "/v1/refunds%2f",
        "/v1/refunds%2f..",
        "/v1/refunds%3f",
        "/v1/refunds%23",
        "/v1/refunds%20",
        "/v1/refunds%2500",
        "/v1/refunds/payment/refund/order-1",
        "/payments/v1/payment/refund/order-1",
        "/v1/orders/order-1/refund",
        "/hosted-checkout/refund",
        "/auth/realms/bog/protocol/openid-connect/token",
        "/?/v1/refunds",
        "http://gateway.test/",
        "http://gateway.test",
        "/http://gateway.test/v1/refunds",
    ];
    for path in elsewhere {
        let before = target.reached();
        let body = target.call(Moyasar).to_string();
        let answers = raw(&target.gateway, &post(path, "", &body))
            .await
            .context(path)?;
        let [answer] = answers.as_slice() else {
            bail!("{path}: {answers:?}");
        };
        // Of the route for everything else.
        assert_eq!((answer.status, answer.text.as_str()), (404, ""), "{path}");
        assert_eq!(target.reached(), before, "{path}");
    }
    // Nothing that is no path at all gets as far as a provider.
    for path in [
        "v1/refunds",
        "*",
        "",
        "/v1/refunds\0",
        "/v1/refunds%00",
        "/v1/refunds /x",
        "/v1/re\rfunds",
        "https://gateway.test:99999/v1/refunds#x",
        "ftp://gateway.test/v1/refunds",
        "/../../v1/refunds\u{7f}",
    ] {
        let before = target.reached();
        let body = target.call(Moyasar).to_string();
        let answers = raw(&target.gateway, &post(path, "", &body)).await;
        let answers = answers.with_context(|| format!("{path:?}"))?;
        let booked = target.booked();
        for answer in &answers {
            ensure!((400..500).contains(&answer.status), "{path:?}: {answers:?}");
        }
        assert_eq!(target.reached(), before, "{path:?}");
        assert_eq!(target.booked(), booked, "{path:?}");
    }
    for method in ["CONNECT", "TRACE", "post", "POST,", "PRI", "REFUND"] {
        let before = target.reached();
        let body = target.call(Moyasar).to_string();
        let bytes = String::from_utf8(post(PATH, "", &body))?.replacen("POST", method, 1);
        let answers = raw(&target.gateway, bytes.as_bytes()).await;
        for answer in &answers.with_context(|| method.to_owned())? {
            ensure!((400..502).contains(&answer.status), "{method}: {answer:?}");
        }
        assert_eq!(target.reached(), before, "{method}");
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_counts_by_its_exact_name_and_ends_with_its_line() -> Result<()> {
    let target = Target::start().await?;
    let without = |name: &str, body: &str, lines: &str| -> Result<Vec<u8>> {
        let mut text = String::from_utf8(post(PATH, lines, body))?;
        let at = text.find(name).context("the header")?;
        let end = at + text[at..].find("\r\n").context("its end")? + 2;
        text.replace_range(at..end, "");
        Ok(text.into_bytes())
    };
    let body = || target.call(Moyasar).to_string();
    for name in [
        "idempotency_key",
        "idempotency-key-",
        "x-idempotency-key",
        "idempotencykey",
    ] {
        let bytes = without("idempotency-key: ", &body(), &format!("{name}: k-1\r\n"))?;
        target.refused_raw(name, &bytes, NO_KEY).await?;
    }
    for name in ["content_type", "x-content-type"] {
        let lines = format!("{name}: application/json\r\n");
        let bytes = without("content-type: ", &body(), &lines)?;
        target.refused_raw(name, &bytes, WRONG_TYPE).await?;
    }
    for line in [
        "idempotency-key : k-1",
        "idempotency key: k-1",
        "\u{1}idempotency-key: k-1",
        "idempotency-key\0: k-1",
        "idempotency-k\u{e9}y: k-1",
        "idempotency(key): k-1",
        ": k-1",
    ] {
        let bytes = post(PATH, &format!("{line}\r\n"), &body());
        let case = format!("{line:?}");
        target.refused_raw(&case, &bytes, BAD_REQUEST).await?;
    }
    for lines in [
        "idempotency_key: k-1\r\n",
        "content_length: 1\r\n",
        "transfer_encoding: chunked\r\n",
        "x_envoy_max_retries: 9\r\n",
        "content-length-: 1\r\n",
    ] {
        target
            .refunded_raw(lines, &post(PATH, lines, &body()))
            .await?;
        let request = target.last(Moyasar)?;
        let (name, _) = lines.split_once(':').context("a name")?;
        assert_eq!(request.headers_named(name).count(), 0, "{name}");
    }
    // A line that is folded, or ends in a bare line feed: one key with a blank in it, a header of
    // its own, or no HTTP; never more than one refund, and never a header at the provider.
    for key in [
        "k-\r\n x-evil: 1",
        "k-\r\n\tx-evil: 1",
        "k-1\nx-evil: 1",
        "k-1\n x-evil: 1",
        "k-1\rx-evil: 1",
    ] {
        let case = format!("{key:?}");
        let bytes = without(
            "idempotency-key: ",
            &body(),
            &format!("idempotency-key: {key}\r\n"),
        )?;
        let booked = target.booked();
        let answers = raw(&target.gateway, &bytes).await.context(case.clone())?;
        let [answer] = answers.as_slice() else {
            bail!("{case}: {answers:?}");
        };
        match (answer.status, answer.body["code"].as_str()) {
            (200, None) => {
                assert_eq!(key.find("\n "), None, "{case}: a folded line is no end");
                assert_eq!(target.booked(), booked + 1, "{case}");
                let request = target.last(Moyasar)?;
                assert_eq!(request.headers_named("x-evil").count(), 0, "{case}");
            }
            _ => assert_problem(&case, answer, bad_request_or(BAD_KEY, answer)),
        }
        assert!(target.booked() <= booked + 1, "{case}");
    }
    target.survives().await
}

/// What a caller could wish Envoy to do with its call.
const WISHES: &[(&str, &str)] = &[
    (
        "x-envoy-retry-on",
        "5xx,gateway-error,reset,connect-failure,retriable-4xx,retriable-status-codes,retriable-headers",
    ),
    ("x-envoy-retry-grpc-on", "unavailable,internal,cancelled"),
    ("x-envoy-retriable-status-codes", "200,202,400,404,500,503"),
    ("x-envoy-retriable-header-names", "content-type"),
    ("x-envoy-max-retries", "5"),
    ("x-envoy-hedge-on-per-try-timeout", "true"),
    ("x-envoy-upstream-rq-per-try-timeout-ms", "20"),
    ("x-envoy-upstream-rq-timeout-ms", "40"),
    ("x-envoy-upstream-rq-timeout-alt-response", "true"),
    ("x-envoy-upstream-stream-duration-ms", "40"),
    ("x-envoy-expected-rq-timeout-ms", "40"),
    ("x-envoy-upstream-alt-stat-name", "evil"),
    ("x-envoy-upstream-canary", "true"),
    ("x-envoy-internal", "true"),
    ("x-envoy-external-address", "255.255.255.255"),
    ("x-envoy-immediate-health-check-fail", "true"),
    ("x-envoy-original-path", "/hosted-checkout/refund"),
    ("x-envoy-original-method", "GET"),
    ("x-envoy-original-dst-host", "127.0.0.1:1"),
    ("x-envoy-decorator-operation", "evil"),
    ("x-envoy-force-trace", "true"),
    ("x-envoy-auth-partial-body", "true"),
    ("grpc-timeout", "1m"),
    // The address that envoy.yaml calls internal, since no caller has it.
    ("x-forwarded-for", "255.255.255.255"),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_makes_envoy_retry_hedge_or_hurry() -> Result<()> {
    let target = Target::start().await?;
    let client = reqwest::Client::new();
    let send = async |call: Value| -> Result<Answer> {
        let request = client
            .post(target.gateway.url())
            .header("content-type", "application/json")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(call.to_string());
        let request = WISHES.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        Answer::read(timeout(PATIENCE, request.send()).await??).await
    };
    for provider in FOUR {
        // Each with the wish for it: to be sent again after a failure, or beside a slow try.
        let booked = false;
        for (case, fault, problem) in [
            (
                "500",
                Fault::HeaderOnly {
                    status: 500,
                    booked,
                },
                Some(unknown(provider, "provider-error", 502)),
            ),
            (
                "503",
                Fault::HeaderOnly {
                    status: 503,
                    booked,
                },
                Some(unknown(provider, "provider-error", 502)),
            ),
            (
                "404",
                Fault::HeaderOnly {
                    status: 404,
                    booked,
                },
                Some(match provider.declared().replies.lists_refusals {
                    true => NOT_FOUND,
                    false => Problem {
                        outcome: "unknown",
                        retry: "look_up",
                        ..Problem::certain("provider-rejected", 422)
                    },
                }),
            ),
            (
                "closed",
                Fault::Close { booked },
                Some(unknown(provider, "provider-error", 502)),
            ),
            (
                "booked, then reset",
                Fault::Reset { booked: true },
                Some(unknown(provider, "provider-error", 502)),
            ),
            ("slow", Fault::Delay(Duration::from_millis(600)), None),
            (
                "slow to say so",
                Fault::DelayReply(Duration::from_millis(600)),
                None,
            ),
        ] {
            let case = format!("{provider:?}: {case}");
            let simulators = &target.gateway.simulators;
            let (received, before) = (simulators.received(provider), target.booked());
            let books = problem.is_none() || case.contains("booked");
            simulators.next_fault(provider, fault);
            let answer = send(target.call(provider)).await.context(case.clone())?;
            match problem {
                Some(problem) => assert_problem(&case, &answer, problem),
                None => assert_refunded(&case, &answer),
            }
            assert_eq!(simulators.received(provider), received + 1, "{case}");
            assert_eq!(target.booked(), before + usize::from(books), "{case}");
            let request = target.last(provider)?;
            for (name, _) in &request.headers {
                assert!(
                    !name.starts_with("x-envoy") && !name.starts_with("x-forwarded"),
                    "{case}: {name}"
                );
            }
            for name in answer.headers.keys() {
                assert!(!name.as_str().starts_with("x-envoy"), "{case}: {name}");
            }
        }
    }
    target.survives().await
}

/// The names by which the filter, its configuration and envoy.yaml speak among themselves.
const FORGED: &[(&str, &str)] = &[
    ("x-refund-bog-client-secret", "forged"),
    ("x-refund-moyasar-api-key", "forged"),
    ("x-refund-begateway-secret-key", "forged"),
    ("x-refund-bbmsl-key", "forged"),
    ("x-refund-provider", "bbmsl"),
    ("x-refund-status", "succeeded"),
    ("x-refund-key-id", "forged"),
    ("x-refund-retry", "no"),
    ("x-refund-sent", "0"),
    ("x-refund-outcome", "not_refunded"),
    ("wasm.refund_provider", "bbmsl"),
    ("wasm.refund_status", "succeeded"),
    ("wasm.refund_retry", "no"),
    ("wasm.refund_retry_until", "2999-01-01T00:00:00Z"),
    ("wasm.refund_reply", "1"),
    ("wasm.refund_key_id", "forged"),
    ("refund_provider", "bbmsl"),
    ("refund.bbmsl_key", "forged"),
    ("refund.bog_client_secret", "forged"),
    ("refund.moyasar_api_key", "forged"),
    ("refund.begateway_secret_key", "forged"),
    ("filter_state", "wasm.refund_provider=bbmsl"),
    ("x-envoy-filter-state", "wasm.refund_provider=bbmsl"),
    ("x-envoy-dynamic-metadata", "wasm.refund_provider=bbmsl"),
    ("x-trap", "request"),
    ("requestid", "forged"),
    ("transaction_id", "forged"),
    ("signature", "forged"),
    ("authorization", "Bearer forged"),
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_inside_is_steered_by_a_header_of_its_name() -> Result<()> {
    let target = Target::start().await?;
    let lines: String = FORGED
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    for provider in FOUR {
        let case = format!("{provider:?}");
        let call = target.call(provider);
        let before = target.reached();
        target
            .refunded_raw(&case, &post(PATH, &lines, &call.to_string()))
            .await?;
        let at = |found: [(u64, usize); Provider::ALL.len()]| {
            Provider::ALL
                .iter()
                .zip(found)
                .filter(|(other, _)| **other != provider && other.refunds())
                .map(|(_, reached)| reached)
                .collect::<Vec<_>>()
        };
        assert_eq!(at(target.reached()), at(before), "{case}: another provider");
        let request = target.last(provider)?;
        for (name, value) in &request.headers {
            let text = String::from_utf8_lossy(value);
            assert!(!text.contains("forged"), "{case}: {name}: {text}");
            assert!(!name.contains("refund"), "{case}: {name}");
        }
        // A refusal is told as what it is, too.
        let booked = false;
        let fault = Fault::HeaderOnly {
            status: 500,
            booked,
        };
        target.gateway.simulators.next_fault(provider, fault);
        let bytes = post(PATH, &lines, &target.call(provider).to_string());
        let answers = raw(&target.gateway, &bytes).await?;
        let [answer] = answers.as_slice() else {
            bail!("{case}: {answers:?}");
        };
        assert_problem(&case, answer, unknown(provider, "provider-error", 502));
    }
    // Where the filter is not asked, they choose no provider's route either.
    let before = target.reached();
    let answers = raw(&target.gateway, &post("/another", &lines, "{}")).await?;
    let [answer] = answers.as_slice() else {
        bail!("{answers:?}");
    };
    assert_eq!((answer.status, answer.text.as_str()), (404, ""));
    assert_eq!(target.reached(), before);
    target.survives().await
}

/// HTTP/2 by hand: frames (RFC 9113) with literal headers (RFC 7541, 6.2.2), which no client
/// library would send.
mod http2 {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    /// A header's name and value, as they go out.
    pub type Field<'a> = (&'a str, &'a [u8]);

    /// How a stream ended.
    #[derive(Debug)]
    pub enum End {
        /// With an answer: its body.
        Answered(Value),
        /// Reset, by the peer's RST_STREAM, or its GOAWAY or the connection's end.
        Reset,
    }

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len())
            .expect("a length")
            .to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags];
        [&head[..], &stream.to_be_bytes(), payload].concat()
    }

    fn string(text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(mut rest) = text.len().checked_sub(127) {
            bytes.push(127);
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).expect("seven bits"));
        } else {
            bytes.push(u8::try_from(text.len()).expect("seven bits"));
        }
        bytes.extend(text);
        bytes
    }

    pub fn fields(fields: &[Field]) -> Vec<u8> {
        let field =
            |(name, value): &Field| [vec![0], string(name.as_bytes()), string(value)].concat();
        fields.iter().flat_map(field).collect()
    }

    /// Sends a call of these fields on stream 1 and reads how it ends.
    pub async fn call(gateway: &Gateway, headers: &[Field<'_>], body: &[u8]) -> Result<End> {
        let mut bytes = [PREFACE.to_vec(), frame(4, 0, 0, b"")].concat();
        bytes.extend(frame(1, END_HEADERS, 1, &fields(headers)));
        let mut chunks = body.chunks(16_384).peekable();
        while let Some(chunk) = chunks.next() {
            let flags = if chunks.peek().is_none() {
                END_STREAM
            } else {
                0
            };
            bytes.extend(frame(0, flags, 1, chunk));
        }
        exchange(gateway, bytes).await
    }

    pub async fn exchange(gateway: &Gateway, bytes: Vec<u8>) -> Result<End> {
        let (mut from, mut to) = TcpStream::connect(gateway.address).await?.into_split();
        let writes = tokio::spawn(async move {
            let _ = to.write_all(&bytes).await;
            to
        });
        let end = timeout(PATIENCE, read(&mut from)).await;
        writes.abort();
        end.context("it hangs")?
    }

    async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<End> {
        let mut body = Vec::new();
        loop {
            let mut head = [0; 9];
            if from.read_exact(&mut head).await.is_err() {
                return Ok(End::Reset);
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length.try_into()?];
            if from.read_exact(&mut payload).await.is_err() {
                return Ok(End::Reset);
            }
            match (head[3], stream) {
                (3, 1) | (7, 0) => return Ok(End::Reset),
                (0, 1) => body.extend(payload),
                _ => {}
            }
            if stream == 1 && matches!(head[3], 0 | 1) && head[4] & END_STREAM != 0 {
                return Ok(End::Answered(
                    serde_json::from_slice(&body).unwrap_or_default(),
                ));
            }
        }
    }

    /// The fields of a call that is in order.
    pub fn sound(key: &str) -> Vec<Field<'_>> {
        vec![
            (":method", b"POST"),
            (":scheme", b"http"),
            (":authority", b"gateway.test"),
            (":path", PATH.as_bytes()),
            ("content-type", b"application/json"),
            ("idempotency-key", key.as_bytes()),
        ]
    }
}

use http2::{End, Field};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_http_2_that_breaks_the_protocol_reaches_nobody() -> Result<()> {
    let target = Target::start().await?;
    let key = Uuid::new_v4().to_string();
    let end = http2::call(
        &target.gateway,
        &http2::sound(&key),
        target.call(Moyasar).to_string().as_bytes(),
    )
    .await?;
    let End::Answered(body) = end else {
        bail!("a sound call: {end:?}");
    };
    assert_eq!(body["status"], "succeeded", "{body}");
    let body = target.call(Moyasar).to_string();
    let shorter = (body.len() - 1).to_string();
    let longer = (body.len() + 1).to_string();
    let forbidden: &[Field] = &[
        // RFC 9113, 8.2.2.
        ("connection", b"keep-alive"),
        ("connection", b"idempotency-key"),
        ("keep-alive", b"timeout=5"),
        ("proxy-connection", b"keep-alive"),
        ("transfer-encoding", b"chunked"),
        ("upgrade", b"h2c"),
        ("te", b"gzip"),
        // 8.2.1.
        ("Idempotency-Key", b"k-1"),
        ("x evil", b"1"),
        ("x-evil\r\nx-more", b"1"),
        ("x:evil", b"1"),
        ("", b"1"),
        ("x-evil", b"1\r\nx-more: 1"),
        ("x-evil", b"1\nx-more: 1"),
        ("x-evil", b"1\0"),
        // 8.3: after the others, twice, unknown, of an answer.
        (":path", PATH.as_bytes()),
        (":method", b"POST"),
        (":authority", b"gateway.test"),
        (":evil", b"1"),
        (":status", b"200"),
        // 8.1.1.
        ("content-length", shorter.as_bytes()),
        ("content-length", longer.as_bytes()),
        ("content-length", b"-1"),
        ("content-length", b"5, 5"),
    ];
    let mut calls: Vec<(String, Vec<Field>)> = Vec::new();
    for (name, value) in forbidden {
        let mut fields = http2::sound(&key);
        fields.push((name, value));
        let case = format!("{name:?}: {:?}", String::from_utf8_lossy(value));
        calls.push((case, fields));
    }
    for name in [":method", ":path", ":scheme"] {
        let mut fields = http2::sound(&key);
        fields.retain(|(known, _)| *known != name);
        calls.push((format!("without {name}"), fields));
    }
    for path in [
        "",
        "v1/refunds",
        "/v1/refunds\r\nx-evil: 1",
        "/v1/ref unds",
        "*",
    ] {
        let mut fields = http2::sound(&key);
        fields[3].1 = path.as_bytes();
        calls.push((format!("the path {path:?}"), fields));
    }
    for (case, fields) in calls {
        let before = target.reached();
        let end = http2::call(&target.gateway, &fields, body.as_bytes())
            .await
            .context(case.clone())?;
        // Envoy resets most of them without a word; where there is an answer, it refunds nothing.
        if let End::Answered(answer) = end {
            let refused = answer["outcome"] == "not_refunded" || answer.is_null();
            assert!(refused, "{case}: {answer}");
        }
        assert_eq!(target.reached(), before, "{case}");
    }
    target.survives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_http_2_has_the_same_64_kib() -> Result<()> {
    let target = Target::start().await?;
    let padded = |size: usize| {
        let call = target.call(Moyasar).to_string();
        let space = " ".repeat(size - call.len());
        call + &space
    };
    for with_length in [true, false] {
        for (size, fits) in [(65_536, true), (65_537, false)] {
            let case = format!("{size} bytes, with a length: {with_length}");
            let (key, length) = (Uuid::new_v4().to_string(), size.to_string());
            let mut fields = http2::sound(&key);
            if with_length {
                fields.push(("content-length", length.as_bytes()));
            }
            let booked = target.booked();
            let end = http2::call(&target.gateway, &fields, padded(size).as_bytes()).await?;
            let End::Answered(answer) = end else {
                bail!("{case}: {end:?}");
            };
            if fits {
                assert_eq!(answer["status"], "succeeded", "{case}: {answer}");
            } else {
                let got = (
                    &answer["code"],
                    &answer["status"],
                    &answer["outcome"],
                    &answer["retry"],
                );
                let (code, status, outcome, retry) = (
                    json!(TOO_LARGE.code),
                    json!(413),
                    json!("not_refunded"),
                    json!("corrected"),
                );
                assert_eq!(got, (&code, &status, &outcome, &retry), "{case}");
            }
            assert_eq!(target.booked(), booked + usize::from(fits), "{case}");
        }
    }
    target.survives().await
}

const CARDS: [&str; 6] = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "378282246310005",
    "6304000000000000006",
    "4222222222222",
];

#[tokio::test(flavor = "multi_thread")]
async fn card_numbers_of_a_provider_are_in_no_answer_and_in_no_log() -> Result<()> {
    let mut target = Target::start().await?;
    let simulators = target.gateway.simulators.clone();
    let mut shown = Vec::new();
    let booked = false;
    for provider in FOUR {
        for (nth, card) in CARDS.iter().enumerate() {
            let said = format!("card {card} was declined");
            for (status, body, told) in (provider.declared().replies.with)(&said) {
                let case = format!("{provider:?} {status}: {body}");
                let reply = Reply::json(status, body.to_string());
                simulators.next_fault(provider, Fault::Reply { reply, booked });
                let answer = target.refund(target.call(provider)).await?;
                // Its last four digits stay, so that a caller sees of which card it speaks.
                let masked =
                    answer.text.contains('*') && answer.text.contains(&card[card.len() - 4..]);
                assert!(!told || masked, "{case}: {}", answer.text);
                shown.push((case, answer));
            }
            // As bare text, as a number, and in a success.
            let digits: String = card.chars().filter(char::is_ascii_digit).collect();
            for body in [
                said.clone(),
                format!(r#"{{"message":{digits},"code":{digits},"responseCode":{digits}}}"#),
            ] {
                let case = format!("{provider:?}: {body}");
                let reply = Reply::json([400, 500][nth % 2], body);
                simulators.next_fault(provider, Fault::Reply { reply, booked });
                shown.push((case, target.refund(target.call(provider)).await?));
            }
            for place in provider.declared().replies.words {
                let case = format!("{provider:?}: {place} of a success");
                let fault = Fault::Altered {
                    pointer: (*place).into(),
                    value: Some(json!(said).to_string()),
                };
                simulators.next_fault(provider, fault);
                let answer = target.refund(target.call(provider)).await?;
                assert_refunded(&case, &answer);
                assert!(answer.text.contains('*'), "{case}: {}", answer.text);
                shown.push((case, answer));
            }
        }
    }
    // The token endpoint speaks, too.
    for card in CARDS {
        let said = format!("card {card} was declined");
        for (status, body) in [
            (
                401,
                json!({"error": "invalid_client", "error_description": said}),
            ),
            (400, json!({"error": said})),
            (500, json!({"error": said, "error_description": said})),
            (200, json!({"error": said})),
        ] {
            let fault = Fault::HeaderOnly {
                status: 401,
                booked,
            };
            simulators.next_fault(Bog, fault);
            target.refund(target.call(Bog)).await?;
            let case = format!("the token endpoint, {status}: {body}");
            let reply = Reply::json(status, body.to_string());
            simulators.next_fault(Provider::BogToken, Fault::Reply { reply, booked });
            let answer = target.refund(target.call(Bog)).await?;
            assert_eq!(
                answer.body["outcome"], "not_refunded",
                "{case}: {}",
                answer.text
            );
            shown.push((case, answer));
            // The next one has its token again.
            assert_refunded("afterwards", &target.refund(target.call(Bog)).await?);
        }
    }
    let mut texts: Vec<_> = shown
        .iter()
        .map(|(case, answer)| {
            (
                case.as_str(),
                format!("{:?} {}", answer.headers, answer.text),
            )
        })
        .collect();
    let stats = target.gateway.admin("/stats").await?;
    target.gateway.stop().await?;
    texts.push(("the statistics", stats));
    texts.push(("the access log", target.gateway.access_log()));
    texts.push(("Envoy's log", target.gateway.log()));
    for (place, text) in &texts {
        assert!(!text.is_empty(), "{place}");
        for card in CARDS {
            let digits: String = card.chars().filter(char::is_ascii_digit).collect();
            for form in [card, digits.as_str()] {
                assert!(!text.contains(form), "{form} in {place}: {text:.900}");
            }
        }
    }
    Ok(())
}
