//! The canonical call: refused with a problem of the catalogue, or sent as exactly what the
//! contract makes of it.
//!
//! An input that begins with `{` is the body of a call with sound headers. Any other has header
//! lines (`name: value`), an empty line and the body. What Envoy never hands on (CR, LF and NUL in
//! values, names that are none) is left out.

use std::collections::BTreeSet;
use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Dispatch, MAX_BODY};
use refund_filter::headers::Headers;
use refund_filter::idempotency::KeyFault;
use refund_filter::money::Currency;
use serde_json::{Value, json};

use crate::harness::{Step, no_line_ends, step};
use crate::json::{self, Found, Json, Unread};
use crate::{key, money};
use core_testbed::fixtures::{Counts, FIXTURES, Fixture, TOKEN, checked};
use core_testbed::oracles::{is_u64, read_value, units};
use core_testbed::{call_headers, configs};

/// A provider as it is configured here.
struct Configured {
    name: &'static str,
    fixture: &'static Fixture,
    /// The only currency that it is configured for.
    currency: Option<&'static str>,
    default_reason: Option<&'static str>,
    /// The header that brings its secret.
    secret_header: Option<&'static str>,
}

const SECRET_HEADER: &str = "x-refund-moyasar-key";

fn configured() -> Vec<Configured> {
    let plain = |name, fixture| Configured {
        name,
        fixture,
        currency: None,
        default_reason: None,
        secret_header: None,
    };
    let mut all: Vec<Configured> = FIXTURES
        .iter()
        .map(|fixture| plain(fixture.name(), fixture))
        .collect();
    for (name, of) in [
        ("with-a-reason", "begateway"),
        ("riyal-alone", "moyasar"),
        ("by-header", "moyasar"),
        ("by-openbao", "bbmsl"),
    ] {
        let fixture = FIXTURES.iter().find(|fixture| fixture.name() == of);
        all.push(Configured {
            currency: (name == "riyal-alone").then_some("SAR"),
            default_reason: (name == "with-a-reason").then_some("refund"),
            secret_header: (name == "by-header").then_some(SECRET_HEADER),
            ..plain(name, fixture.expect("a fixture"))
        });
    }
    all
}

fn config(configured: &[Configured]) -> Rc<Config> {
    let mut providers = json!({});
    for provider in configured {
        let mut value = provider.fixture.provider_config();
        if let Some(currency) = provider.currency {
            value["currencies"] = json!([currency]);
        }
        if let Some(reason) = provider.default_reason {
            value["default_reason"] = json!(reason);
        }
        if let Some(header) = provider.secret_header {
            value["api_key"] = json!({ "header": header });
        }
        if provider.name == "by-openbao" {
            value["signing"] = json!({"transit": {"cluster": "openbao", "mount": "transit", "key": "bbmsl",
                "token": {"inline": "CANARY-openbao-token"}}});
        }
        providers[provider.name] = value;
    }
    configs(&providers)
}

/// A call as the contract reads it.
struct Call<'j> {
    provider: &'j Configured,
    id: Option<&'j str>,
    reference: Option<&'j str>,
    /// Value and currency; none for all of it.
    amount: Option<(&'j str, Currency)>,
    reason: Option<&'j str>,
    own_reference: Option<&'j str>,
}

pub fn check(data: &[u8]) {
    thread_local! {
        static ALL: (Vec<Configured>, Rc<Config>) = {
            let all = configured();
            let config = config(&all);
            (all, config)
        };
    }
    ALL.with(|(providers, config)| {
        let (headers, body) = parts(data);
        let path = headers
            .first(":path")
            .and_then(|path| path.split(|b| *b == b'?').next());
        let is_preview = path == Some(b"/v1/refunds/preview");
        let is_ours = is_preview || path == Some(b"/v1/refunds");
        match step(config, &headers, body, TOKEN) {
            None => assert!(!is_ours),
            Some(Step::Answered(answer)) => {
                assert!(is_ours);
                if headers.first(":method") == Some(b"GET") {
                    return;
                }
                if is_preview && answer.word == "preview" {
                    let echoed = body.windows(6).any(|part| part == b"CANARY");
                    assert!(!answer.body.contains("CANARY") || echoed);
                    return;
                }
                refused(providers, &headers, body, &answer);
            }
            Some(Step::Calling(_)) => {
                assert!(is_ours && !is_preview && headers.first(":method") == Some(b"GET"));
            }
            Some(Step::Leaving(_)) if headers.first(":method") == Some(b"GET") => {
                assert!(is_ours && !is_preview);
            }
            Some(Step::Leaving(dispatch)) => {
                assert!(is_ours && !is_preview);
                assert!(!asks_for_something_else(&headers));
                let json = match json::read(body) {
                    Ok(json) => json,
                    Err(unread) => panic!("{unread:?} was sent"),
                };
                let call = sound(providers, &json).unwrap_or_else(|| panic!("sent: {json:?}"));
                sent(&call, &headers, &dispatch);
                // The same call makes the same bytes.
                let Some(Step::Leaving(again)) = step(config, &headers, body, TOKEN) else {
                    panic!("not sent again");
                };
                assert_eq!(again.headers, dispatch.headers);
                assert_eq!(again.body, dispatch.body);
            }
            Some(other) => panic!("it went no further: {other:?}"),
        }
    });
}

/// Headers as Envoy hands them on, and the body.
fn parts(data: &[u8]) -> (Headers<'static>, &[u8]) {
    if data.starts_with(b"{") {
        return (call_headers("k-1"), data);
    }
    let mut headers = Headers::default();
    headers.text("x-request-id", "request-1".to_owned());
    let mut rest = data;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        // The colon of a pseudo-header is part of its name.
        let Some(colon) = line.iter().skip(1).position(|b| *b == b':') else {
            continue;
        };
        let (name, value) = (&line[..=colon], line[colon + 2..].trim_ascii());
        let pseudo = [&b":path"[..], b":method"].contains(&name);
        let plain = !name.is_empty()
            && name
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(b));
        let once = !pseudo || headers.iter().all(|(known, _)| known != name);
        let whole = !value.iter().any(|b| matches!(b, b'\r' | 0));
        if (pseudo || plain) && once && whole {
            headers.push(name.to_vec(), value.to_vec());
        }
    }
    (headers, rest)
}

/// A query, or the header of another time that asked for a dry run.
fn asks_for_something_else(headers: &Headers<'_>) -> bool {
    let is_old = |name: &[u8]| {
        let letters = String::from_utf8_lossy(name).to_ascii_lowercase();
        letters.replace(['-', '_'], "") == "refunddryrun"
    };
    headers.iter().any(|(name, _)| is_old(name))
        || headers
            .first(":path")
            .and_then(|path| path.splitn(2, |b| *b == b'?').nth(1))
            .is_some_and(|query| !query.is_empty())
}

fn all<'h>(headers: &'h Headers<'_>, name: &'h str) -> Vec<&'h [u8]> {
    headers.all(name).collect()
}

fn refused(providers: &[Configured], headers: &Headers<'_>, body: &[u8], answer: &Answer) {
    let problem = checked(answer);
    assert_eq!(problem["outcome"], "not_refunded", "{problem}");
    assert!(!answer.body.contains("CANARY") || body.windows(6).any(|part| part == b"CANARY"));
    assert!(answer.body.len() <= MAX_BODY, "{} bytes", answer.body.len());
    assert!(no_line_ends(&answer.headers), "{:?}", answer.headers);

    let code = problem["code"].as_str().expect("a code");
    let is_post = headers.first(":method") == Some(b"POST");
    assert_eq!(code == "method-not-allowed", !is_post, "{problem}");
    if !is_post {
        assert_eq!(answer.headers.first("allow"), Some(&b"GET, POST"[..]));
        return;
    }
    let media = all(headers, "content-type");
    let coding = all(headers, "content-encoding");
    if code == "unsupported-media-type" {
        let plain = matches!(media[..], [media] if media.eq_ignore_ascii_case(b"application/json"));
        assert!(!plain || !coding.is_empty());
        return;
    }
    is_json_by_its_word(&media, &coding);
    let key = key::read(&all(headers, "idempotency-key"));
    let by_key = match key {
        Err(KeyFault::Missing) => Some("idempotency-key-missing"),
        Err(KeyFault::Invalid) => Some("idempotency-key-invalid"),
        Ok(_) => None,
    };
    if by_key.is_some() || code.starts_with("idempotency-key") {
        assert_eq!(by_key, Some(code));
        return;
    }
    if code == "body-too-large" {
        // A number of any length: six digits after its noughts are too much, whatever they are.
        let announced = headers
            .first("content-length")
            .and_then(|length| std::str::from_utf8(length).ok())
            .filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
            .map(|length| length.trim_start_matches('0'))
            .is_some_and(|length| {
                length.len() > 5 || length.parse().is_ok_and(|length: u32| length > 65_536)
            });
        assert!(body.len() > MAX_BODY || announced);
        return;
    }
    assert!(body.len() <= MAX_BODY);
    let json = match json::read(body) {
        Ok(json) => json,
        Err(Unread::NotJson) => {
            assert_eq!(code, "malformed-json", "{problem}");
            return;
        }
        Err(Unread::TooDeep) => {
            assert!(
                ["malformed-json", "invalid-request"].contains(&code),
                "{problem}"
            );
            return;
        }
    };
    match code {
        // JSON, but for a string that is no text.
        "malformed-json" => assert!(json.any(|_, json| *json == Json::NoText), "{json:?}"),
        "invalid-request" if asks_for_something_else(headers) => {}
        "invalid-request" => {
            assert!(sound(providers, &json).is_none(), "{problem} for {json:?}");
            told(&json, &problem);
        }
        // The one secret that a call brings along.
        "gateway-error" => {
            let call = sound(providers, &json).expect("a sound call");
            let header = call.provider.secret_header.expect("a secret by header");
            assert_eq!(answer.status, 503);
            let text = headers
                .first(header)
                .and_then(|value| std::str::from_utf8(value).ok())
                .map_or("", str::trim);
            assert!(
                text.is_empty() || text.chars().any(char::is_control),
                "{text:?}"
            );
            assert!(answer.alarm.is_some());
        }
        _ => panic!("{problem}"),
    }
}

/// What is read further is JSON in UTF-8 without a coding, by its own word.
fn is_json_by_its_word(media: &[&[u8]], coding: &[&[u8]]) {
    let [media] = media else {
        panic!("{} content types", media.len());
    };
    let media = std::str::from_utf8(media)
        .expect("text")
        .to_ascii_lowercase();
    assert_eq!(
        media.split(';').next().map(str::trim),
        Some("application/json")
    );
    for parameter in media.split(';').skip(1) {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim() == "charset"
        {
            // Half a quoted string says the same, and the body is held to UTF-8 whatever is said.
            assert_eq!(value.trim().trim_matches('"'), "utf-8", "{media}");
        }
    }
    assert!(
        coding
            .iter()
            .all(|coding| coding.eq_ignore_ascii_case(b"identity"))
    );
}

/// Every fault is at a place that is or could be there, and these faults are always told.
fn told(json: &Json, problem: &Value) {
    let errors = problem["errors"].as_array().expect("errors");
    let pointers: BTreeSet<&str> = errors
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    for pointer in &pointers {
        assert!(json.takes_pointer(pointer), "{pointer} in {json:?}");
    }
    let wanted = |pointer: &str| {
        assert!(
            pointers.contains(pointer),
            "{pointer} of {json:?}: {problem}"
        )
    };
    if json.members().is_none() {
        wanted("");
    }
    let objects = [
        (
            "",
            Some(json),
            &["provider", "payment", "amount", "reason", "reference"][..],
        ),
        ("/payment", json.get("payment"), &["id", "reference"]),
        ("/amount", json.get("amount"), &["value", "currency"]),
    ];
    for (pointer, object, known) in objects {
        let members = object.and_then(Json::members).unwrap_or_default();
        // Beyond some twenty of a kind they are not told one by one.
        if members.len() > 20 {
            continue;
        }
        let escaped = |name: &str| -> String {
            let name: String = name.chars().take(64).collect();
            name.replace('~', "~0").replace('/', "~1")
        };
        for (name, _) in members
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_str()))
        {
            wanted(&format!("{pointer}/{}", escaped(name)));
        }
        for name in object.map(Json::doubled).unwrap_or_default() {
            wanted(&format!("{pointer}/{}", escaped(name)));
        }
    }
    if json.members().is_some_and(|members| members.len() <= 20) {
        for name in ["provider", "payment", "amount"] {
            if json.find(name) == Found::Nothing {
                wanted(&format!("/{name}"));
            }
        }
        for (name, longest) in [("reason", 255), ("reference", 64)] {
            if let Found::Once(value) = json.find(name)
                && text(value, longest).is_none()
            {
                wanted(&format!("/{name}"));
            }
        }
    }
}

fn text(json: &Json, longest: usize) -> Option<&str> {
    json.text()
        .filter(|text| (1..=longest).contains(&text.chars().count()))
}

/// A member that may be left out: none if it is wrong.
fn optional<'j>(object: &'j Json, name: &str, longest: usize) -> Option<Option<&'j str>> {
    match object.find(name) {
        Found::Nothing => Some(None),
        Found::Twice => None,
        Found::Once(json) => text(json, longest).map(Some),
    }
}

fn only(object: &Json, known: &[&str]) -> Option<()> {
    let members = object.members()?;
    let fits = members
        .iter()
        .all(|(name, _)| known.contains(&name.as_str()));
    (fits && object.doubled().is_empty()).then_some(())
}

/// The contract's page "The canonical call", and the limits of the providers.
fn sound<'j>(providers: &'j [Configured], json: &'j Json) -> Option<Call<'j>> {
    only(
        json,
        &["provider", "payment", "amount", "reason", "reference"],
    )?;
    let name = json.get("provider")?.text()?;
    let provider = providers.iter().find(|provider| provider.name == name)?;
    let fixture = provider.fixture;

    let payment = json.get("payment")?;
    only(payment, &["id", "reference"])?;
    let id = optional(payment, "id", 128)?;
    let reference = optional(payment, "reference", 64)?;
    let own_reference = optional(json, "reference", 64)?;
    if [id, own_reference]
        .iter()
        .any(|text| matches!(text, Some("." | "..")))
    {
        return None;
    }
    if fixture.numeric_ids {
        id.or(reference)?;
        let numeric = |id: &str| {
            id.len() <= 18 && !id.starts_with('0') && id.bytes().all(|b| b.is_ascii_digit())
        };
        if !id.is_none_or(numeric) {
            return None;
        }
    } else {
        id?;
    }

    let amount = match json.get("amount")? {
        // BOG is configured for several currencies here.
        Json::Text(full) if full == "full" && fixture.takes_full && fixture.name() != "bog" => None,
        amount => {
            only(amount, &["value", "currency"])?;
            let currency = Currency::from_code(amount.get("currency")?.text()?)?;
            let value = amount.get("value")?.text()?;
            wire_number(fixture, value, currency)?;
            let takes = match (provider.currency, fixture.name()) {
                (Some(only), _) => only == currency.code(),
                (None, "bog") => bog_takes(currency),
                (None, "begateway") => !money::DISPUTED.contains(&currency.code()),
                (None, "moyasar" | "bbmsl") => true,
                (None, other) => panic!("{other} is not described here"),
            };
            if !takes {
                return None;
            }
            Some((value, currency))
        }
    };
    let reason = optional(json, "reason", 255)?;
    if fixture.needs_reason {
        reason.or(provider.default_reason)?;
    }
    Some(Call {
        provider,
        id,
        reference,
        amount,
        reason,
        own_reference,
    })
}

/// Whether the fixture is configured for a currency.
fn bog_takes(currency: Currency) -> bool {
    let config = FIXTURES[0].provider_config();
    let listed = config["currencies"].as_array().expect("a list");
    listed.iter().any(|code| code == currency.code())
}

/// The JSON number that this provider gets.
fn wire_number(fixture: &Fixture, value: &str, currency: Currency) -> Option<String> {
    let digits = usize::from(currency.digits());
    let minor = read_value(value, digits).ok()?;
    match fixture.counts {
        Counts::Minor => {
            let own = fixture
                .own_digits
                .iter()
                .find(|(code, _)| *code == currency.code())
                .map_or(digits, |(_, digits)| *digits);
            let number = units(value, own).filter(|number| is_u64(number))?;
            let fits = fixture.name() != "moyasar" || minor.parse::<u64>().ok()? <= 100_000_000;
            fits.then_some(number)
        }
        Counts::Major => {
            let (whole, decimals) = value.split_once('.').unwrap_or((value, ""));
            let decimals = decimals.trim_end_matches('0');
            let fits = fixture.name() != "bbmsl" || whole.len() <= 7 && decimals.len() <= 2;
            let number = match decimals {
                "" => whole.to_owned(),
                decimals => format!("{whole}.{decimals}"),
            };
            fits.then_some(number)
        }
    }
}

/// RFC 3986's unreserved characters stand for themselves in a path, and no others.
fn path_segment(id: &str) -> String {
    id.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn object(members: Vec<(&str, Option<Json>)>) -> Json {
    let there = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Json::Object(there.collect())
}

/// What goes out is what the contract makes of the call, to the byte in the headers and to the
/// member in the body.
fn sent(call: &Call<'_>, headers: &Headers<'_>, dispatch: &Dispatch) {
    let Call { provider, .. } = call;
    let fixture = provider.fixture;
    assert_eq!(dispatch.provider, provider.name);
    let kind = fixture.name();
    let caller = key::read(&all(headers, "idempotency-key")).expect("a key");
    let key = key::for_provider(provider.name, &caller, kind == "moyasar");
    let amount = call.amount.map(|(value, currency)| {
        Json::Number(wire_number(fixture, value, currency).expect("a number"))
    });
    let text = |text: &str| Json::Text(text.to_owned());
    let id = call.id.unwrap_or_default();

    let (authority, path, own) = match kind {
        "bog" => (
            "api.bog.ge",
            format!("/payments/v1/payment/refund/{}", path_segment(id)),
            Some(("idempotency-key", key.clone())),
        ),
        "moyasar" => (
            "pg.moyasar.com",
            format!("/v1/orders/{}/refund", path_segment(id)),
            None,
        ),
        "begateway" => (
            "api.begateway.com",
            "/beyag/transactions/refunds".to_owned(),
            Some(("requestid", key.clone())),
        ),
        "bbmsl" => (
            "payapi.prod.bbmsl.com",
            "/hosted-checkout/refund".to_owned(),
            // The router takes it away: a second send could be a second refund.
            Some(("x-envoy-max-retries", "0".to_owned())),
        ),
        other => panic!("{other} is not described here"),
    };
    let authorization = match provider.secret_header {
        None => fixture.authorization.map(str::to_owned),
        Some(header) => {
            let secret = headers.first(header).expect("the secret");
            let secret = std::str::from_utf8(secret).expect("text").trim();
            Some(format!("Bearer {secret}"))
        }
    };
    let mut wanted: Vec<(&str, String)> = vec![
        (":method", "POST".to_owned()),
        (":scheme", "https".to_owned()),
        (":authority", authority.to_owned()),
        (":path", path),
        ("content-type", "application/json".to_owned()),
        ("content-length", dispatch.body.len().to_string()),
        ("accept", "application/json".to_owned()),
        ("accept-encoding", "identity".to_owned()),
        (
            "user-agent",
            format!("refund-filter/{}", refund_filter::VERSION),
        ),
    ];
    wanted.extend(authorization.map(|value| ("authorization", value)));
    wanted.extend(own);
    let mut wanted: Vec<(&[u8], &[u8])> = wanted
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    // Of the caller's, what Envoy needs to match a route, and tracing alone.
    let passed_on = |names: &'static [&'static [u8]], also: &'static [u8]| {
        let all = headers.iter();
        all.filter(move |(name, _)| {
            names.contains(name) || !also.is_empty() && name.starts_with(also)
        })
    };
    wanted.extend(passed_on(&[b"x-forwarded-proto"], b"").take(1));
    const TRACING: &[&[u8]] = &[b"x-request-id", b"traceparent", b"tracestate", b"b3"];
    wanted.extend(passed_on(TRACING, b"x-b3-"));
    let is: Vec<(&[u8], &[u8])> = dispatch.headers.iter().collect();
    let shown = |headers: &[(&[u8], &[u8])]| -> Vec<String> {
        let line = |(name, value): &(&[u8], &[u8])| {
            format!("{}: {}", name.escape_ascii(), value.escape_ascii())
        };
        headers.iter().map(line).collect()
    };
    assert_eq!(shown(&is), shown(&wanted));
    assert!(no_line_ends(&dispatch.headers));

    let body = json::read(dispatch.body.as_bytes()).expect("JSON");
    let wanted = match kind {
        "bog" => object(vec![("amount", amount)]),
        "moyasar" => object(vec![
            ("amount", amount),
            ("transaction_id", Some(text(&key))),
        ]),
        "begateway" => {
            let tracking_id = match call.own_reference {
                Some(reference) => format!("{reference};{key}"),
                None => key,
            };
            let reason = call.reason.or(provider.default_reason).expect("a reason");
            let request = object(vec![
                ("parent_uid", Some(text(id))),
                ("reason", Some(text(reason))),
                ("amount", amount),
                ("tracking_id", Some(text(&tracking_id))),
            ]);
            object(vec![("request", Some(request))])
        }
        "bbmsl" => {
            let request = body.get("request").and_then(Json::text).expect("a request");
            let inner = object(vec![
                ("merchantId", Some(Json::Number("3".to_owned()))),
                ("orderId", call.id.map(|id| Json::Number(id.to_owned()))),
                ("merchantReference", call.reference.map(text)),
                ("amount", amount),
            ]);
            assert_eq!(json::read(request.as_bytes()), Ok(inner));
            // No spaces but the reference's own.
            let spaces = |text: &str| text.matches(char::is_whitespace).count();
            assert_eq!(
                spaces(request),
                spaces(call.reference.unwrap_or_default()).min(spaces(request))
            );
            let signature = body.get("signature").expect("a signature");
            assert!(
                signature.text().is_some_and(|text| text.len() >= 344),
                "{signature:?}"
            );
            object(vec![
                ("request", Some(text(request))),
                ("signature", Some(signature.clone())),
            ])
        }
        other => panic!("{other} is not described here"),
    };
    assert_eq!(body, wanted);
    // Said once more, so that no reader's mistake hides it: only a full refund goes out without an
    // amount.
    assert_eq!(
        fixture.wire_amount(dispatch).is_none(),
        call.amount.is_none()
    );
    if let (Some((value, currency)), Some(number)) = (call.amount, fixture.wire_amount(dispatch)) {
        let minor = money::whole(value, usize::from(currency.digits()));
        if fixture.counts == Counts::Major {
            assert_eq!(money::whole(&number, usize::from(currency.digits())), minor);
        }
    }
}
