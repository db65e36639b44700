//! One suite for every kind of provider: what the contract promises of all of them, held against
//! each fixture. A new provider is held to it by one more fixture.

use std::collections::BTreeSet;
use std::rc::Rc;

use core_testbed::fixtures::{Counts, FIXTURES, Fixture, TOKEN, checked, head, pointers, sent};
use core_testbed::{NOW, StubSigner, call_headers, config, send_with};
use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, LocalReply, ReplyHead};
use refund_filter::headers::Headers;
use refund_filter::idempotency::IdempotencyKey;
use refund_filter::money::Currency;
use refund_filter::provider::{Idempotency, KINDS, PaymentRule, Reason, Units};
use refund_filter::signing::VmSigner;
use serde_json::{Value, json};

const KEY: &str = "k-1";

/// What a reply to the fixture's sound call is answered with.
fn answer(
    fixture: &Fixture,
    config: &Rc<Config>,
    head: &ReplyHead,
    body: &[u8],
    attempts: u64,
) -> Answer {
    let dispatch = sent(config, KEY, &fixture.call()).unwrap();
    dispatch.sent.reply(head, body, attempts)
}

/// The success reply to the fixture's sound call.
fn success(fixture: &Fixture, config: &Rc<Config>) -> String {
    let call = fixture.call();
    let dispatch = sent(config, KEY, &call).unwrap();
    fixture.success_reply(&call, &dispatch).0
}

fn each(mut test: impl FnMut(&Fixture, &Rc<Config>)) {
    for fixture in FIXTURES {
        test(fixture, &fixture.config());
    }
}

type Row<'a> = (&'a str, u16, &'a str, &'a str);

/// The contract's table for a status whose body says nothing. Where the provider has no keys, no
/// refusal is certain.
fn row(fixture: &Fixture, status: u16) -> Row<'static> {
    match status {
        400 | 402 | 404 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431
            if fixture.by_key == "look_up" =>
        {
            ("provider-rejected", 422, "unknown", "look_up")
        }
        402 => ("refund-declined", 422, "not_refunded", "no"),
        400 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431 => {
            ("provider-rejected", 422, "not_refunded", "no")
        }
        409 if fixture.conflict_is_a_refusal => ("provider-rejected", 422, "unknown", "look_up"),
        404 => ("payment-not-found", 404, "not_refunded", "no"),
        401 | 403 => ("provider-auth-failed", 502, "not_refunded", "same_key"),
        429 => ("provider-rate-limited", 503, "not_refunded", "same_key"),
        200..=299 => ("provider-reply-unreadable", 502, "unknown", fixture.by_key),
        _ => ("provider-error", 502, "unknown", fixture.by_key),
    }
}

fn told<'a>(answer: &Answer, body: &'a Value) -> Row<'a> {
    (
        body["code"].as_str().unwrap_or("no problem"),
        answer.status,
        body["outcome"].as_str().unwrap_or_default(),
        body["retry"].as_str().unwrap_or_default(),
    )
}

/// Every status that the contract or a provider's page names, its neighbours, and the ends of each
/// class.
fn statuses() -> Vec<u16> {
    [0, 1, 99, 100, 101, 103, 199]
        .into_iter()
        .chain(200..=208)
        .chain([226, 299])
        .chain(300..=308)
        .chain([399])
        .chain(400..=432)
        .chain([444, 449, 451, 460, 499])
        .chain(500..=511)
        .chain([520, 524, 530, 598, 599, 600, 999, u16::MAX])
        .collect()
}

#[test]
fn every_kind_has_a_fixture_and_every_fixture_its_capabilities() {
    let fixtures: Vec<&str> = FIXTURES.iter().map(Fixture::name).collect();
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(fixtures, kinds);
    for fixture in FIXTURES {
        let capabilities = fixture.kind.capabilities;
        let name = fixture.name();
        assert_eq!(capabilities.full_refund, fixture.takes_full, "{name}");
        assert_eq!(
            capabilities.reason == Reason::Required,
            fixture.needs_reason,
            "{name}"
        );
        assert_eq!(
            capabilities.payment == PaymentRule::NumericIdOrReference,
            fixture.numeric_ids,
            "{name}"
        );
        let kept = match capabilities.idempotency {
            Idempotency::Uuid { kept, .. } => kept,
            Idempotency::None => None,
        };
        assert_eq!(kept.is_some(), fixture.keeps_keys, "{name}");
        assert_eq!(
            capabilities.retry_when_unknown().as_str(),
            fixture.by_key,
            "{name}"
        );
        assert_eq!(
            matches!(capabilities.units, Units::Minor { .. }),
            fixture.counts == Counts::Minor,
            "{name}"
        );
    }
}

#[test]
fn the_pages_success_is_answered_with_the_refunds_own_id_and_amount() {
    each(|fixture, config| {
        let call = fixture.call();
        let dispatch = sent(config, KEY, &call).unwrap();
        let (reply, id) = fixture.success_reply(&call, &dispatch);
        let answer = dispatch.sent.reply(&head(200, &[]), reply.as_bytes(), 1);
        let body = checked(&answer);
        assert_eq!(body["status"], fixture.means, "{body}");
        assert_eq!(body["id"], json!(id));
        assert_eq!(body["provider"], fixture.name());
        assert_eq!(body["payment"], call["payment"]);
        assert_eq!(body["amount"], call["amount"]);
    });
}

#[test]
fn each_word_of_the_provider_means_what_its_page_says() {
    each(|fixture, config| {
        let said = |word: &str| {
            let mut reply: Value = serde_json::from_str(&success(fixture, config)).unwrap();
            fixture.say(&mut reply, &json!(word));
            checked(&answer(
                fixture,
                config,
                &head(200, &[]),
                reply.to_string().as_bytes(),
                1,
            ))
        };
        for word in fixture.pending {
            assert_eq!(said(word)["status"], "pending", "{word}");
        }
        for word in fixture.declined {
            let body = said(word);
            assert_eq!(body["code"], "refund-declined", "{word}");
            assert_eq!(body["outcome"], "not_refunded", "{word}");
        }
    });
}

#[test]
fn what_stands_in_the_call_beside_the_amount_comes_back() {
    each(|fixture, config| {
        let mut call = fixture.call();
        call["reason"] = json!("größer \"quoted\" \u{1F600}");
        call["reference"] = json!("refund-77");
        let dispatch = sent(config, KEY, &call).unwrap();
        let (reply, _) = fixture.success_reply(&call, &dispatch);
        let body = checked(&dispatch.sent.reply(&head(200, &[]), reply.as_bytes(), 1));
        assert_eq!(body["reason"], call["reason"]);
        assert_eq!(body["reference"], call["reference"]);
    });
}

#[test]
fn the_same_call_gives_the_same_bytes_whatever_the_randomness() {
    each(|fixture, config| {
        let body = fixture.call().to_string();
        let [first, second] = [1, 2].map(|seed| {
            let mut signer = VmSigner(StdRng::seed_from_u64(seed));
            send_with(
                config,
                &call_headers(KEY),
                body.as_bytes(),
                TOKEN,
                NOW,
                &mut signer,
            )
            .unwrap()
        });
        assert_eq!(first.headers, second.headers, "{}", fixture.name());
        assert_eq!(first.body, second.body);
        let later = send_with(
            config,
            &call_headers(KEY),
            body.as_bytes(),
            TOKEN,
            NOW.plus(86_400_000),
            &mut core_testbed::signer(),
        )
        .unwrap();
        assert_eq!(first.headers, later.headers);
        assert_eq!(first.body, later.body);
    });
}

#[test]
fn spelling_the_call_otherwise_changes_nothing_that_is_sent() {
    each(|fixture, config| {
        let call = fixture.call();
        let dispatch = sent(config, KEY, &call).unwrap();
        let reversed: Vec<String> = call
            .as_object()
            .unwrap()
            .iter()
            .rev()
            .map(|(name, value)| format!("{:?} :\t{value}", name))
            .collect();
        let mut spelled = format!("\r\n{{ {} }}\n", reversed.join(" ,\n "));
        spelled = spelled.replace("\"10.00\"", "\"\\u00310.0\"");
        let other =
            core_testbed::fixtures::sent_bytes(config, "\"k-1\"", spelled.as_bytes()).unwrap();
        assert_eq!(dispatch.headers, other.headers, "{spelled}");
        assert_eq!(dispatch.body, other.body);
    });
}

#[test]
fn another_key_of_the_caller_is_another_key_at_the_provider() {
    each(|fixture, config| {
        let key = |key: &str| (fixture.sent_key)(&sent(config, key, &fixture.call()).unwrap());
        match fixture.kind.capabilities.idempotency {
            Idempotency::None => {
                let uuid = IdempotencyKey::from_header([&b"k-1"[..]].into_iter())
                    .unwrap()
                    .for_provider(fixture.name(), false)
                    .text();
                let dispatch = sent(config, KEY, &fixture.call()).unwrap();
                assert_eq!((fixture.sent_key)(&dispatch), None);
                assert!(!dispatch.body.contains(&uuid));
                assert!(
                    dispatch
                        .headers
                        .iter()
                        .all(|(_, value)| value != uuid.as_bytes())
                );
            }
            Idempotency::Uuid { v7, .. } => {
                assert_eq!(key("k-1"), key("\"k-1\""));
                assert_ne!(key("k-1"), key("k-2"));
                let expected = IdempotencyKey::from_header([&b"k-1"[..]].into_iter())
                    .unwrap()
                    .for_provider(fixture.name(), v7)
                    .text();
                assert_eq!(key("k-1"), Some(expected));
                let v4 = "0f8fad5b-d9cb-469f-a165-70867728950e";
                assert_eq!(key(&v4.to_uppercase()).as_deref(), Some(v4));
                let own = "0191f5a7-44d3-7430-8739-2d80821416bf";
                assert_eq!(key(own).as_deref() == Some(own), v7);
            }
        }
    });
}

#[test]
fn the_amount_on_the_wire_is_exact() {
    let values = [
        "0.01",
        "0.1",
        "0.10",
        "1",
        "1.0",
        "1.1",
        "9.99",
        "10",
        "10.5",
        "10.50",
        "99.99",
        "100",
        "100.01",
        "1000",
        "1234.56",
        "1000.00",
        "123456.78",
        "999999.99",
        "0.29",
        "0.57",
        "1.15",
        "4.35",
        "8.2",
        "1.005",
        "0.07",
    ];
    each(|fixture, config| {
        for value in values {
            let call = fixture.call_for(value, fixture.currency);
            let sent = sent(config, KEY, &call);
            if value == "1.005" {
                assert_eq!(pointers(&sent.unwrap_err()), ["/amount/value"]);
                continue;
            }
            let wire = fixture.wire_amount(&sent.unwrap()).unwrap();
            let (whole, decimals) = value.split_once('.').unwrap_or((value, ""));
            let expected = match fixture.counts {
                Counts::Minor => {
                    let text = format!("{whole}{decimals:0<2}");
                    text.trim_start_matches('0').to_owned()
                }
                Counts::Major => {
                    let decimals = decimals.trim_end_matches('0');
                    let point = if decimals.is_empty() { "" } else { "." };
                    format!("{whole}{point}{decimals}")
                }
            };
            assert_eq!(wire, expected, "{} of {value}", fixture.name());
        }
    });
}

#[test]
fn nothing_leaves_but_what_the_filter_makes() {
    const OURS: &[&str] = &[
        ":method",
        ":scheme",
        ":authority",
        ":path",
        "content-type",
        "accept",
        "accept-encoding",
        "content-length",
        "user-agent",
        "authorization",
    ];
    // The last two are for Envoy, which takes them away.
    const PASSED: &[&str] = &[
        "x-request-id",
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-forwarded-proto",
        "x-envoy-max-retries",
    ];
    const FOREIGN: &[&str] = &[
        "authorization",
        "cookie",
        "host",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-envoy-retry-on",
        "x-envoy-max-retries",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-original-path",
        "proxy-authorization",
        "te",
        "content-encoding-x",
        "x-api-key",
        "requestid",
        "accept",
        "accept-encoding",
        "user-agent",
        "content-language",
        "x-b3",
        "b3-extra",
        "connection",
        "expect",
        "trailer",
        "x-real-ip",
        "origin",
        "x-http-method-override",
    ];
    each(|fixture, config| {
        let mut headers = call_headers(KEY);
        for name in FOREIGN {
            headers.text(name, "FOREIGN".into());
        }
        for name in [
            "traceparent",
            "tracestate",
            "b3",
            "x-b3-traceid",
            "x-b3-spanid",
        ] {
            headers.text(name, format!("trace of {name}"));
        }
        headers.text("x-forwarded-proto", "https".into());
        let body = fixture.call().to_string();
        let dispatch = send_with(
            config,
            &headers,
            body.as_bytes(),
            TOKEN,
            NOW,
            &mut StubSigner,
        )
        .unwrap();
        let mut seen = BTreeSet::new();
        for (name, value) in dispatch.headers.iter() {
            let (name, value) = (
                String::from_utf8(name.to_vec()).unwrap(),
                String::from_utf8(value.to_vec()).unwrap(),
            );
            assert!(
                [OURS, PASSED, fixture.headers]
                    .iter()
                    .any(|known| known.contains(&name.as_str())),
                "{name} goes to {}",
                fixture.name()
            );
            assert!(!value.contains("FOREIGN"), "{name}: {value}");
            assert!(seen.insert(name.clone()), "{name} twice");
            for secret in fixture.secrets {
                assert!(name == "authorization" || !value.contains(secret), "{name}");
            }
        }
        for name in [
            "x-request-id",
            "traceparent",
            "tracestate",
            "b3",
            "x-b3-traceid",
            "x-b3-spanid",
        ] {
            assert!(seen.contains(name), "{name} does not go on");
        }
        assert_eq!(dispatch.headers.first(":method"), Some(&b"POST"[..]));
        assert_eq!(
            dispatch.headers.first("accept-encoding"),
            Some(&b"identity"[..])
        );
        assert_eq!(
            dispatch.headers.first("content-length"),
            Some(dispatch.body.len().to_string().as_bytes())
        );
        assert!(!dispatch.body.contains("FOREIGN"));
        assert!(!dispatch.body.contains("CANARY"), "{}", dispatch.body);
        assert!(!dispatch.body.contains("PRIVATE KEY"));
    });
}

#[test]
fn a_full_refund_has_no_amount_or_is_refused() {
    each(|fixture, config| {
        let mut call = fixture.call();
        call["amount"] = json!("full");
        let mut provider = fixture.provider_config();
        provider["currencies"] = json!([fixture.currency]);
        let sent = sent(&core_testbed::config(fixture.name(), &provider), KEY, &call);
        assert_eq!(config.providers().count(), 1);
        if fixture.takes_full {
            let dispatch = sent.unwrap();
            assert_eq!(fixture.wire_amount(&dispatch), None, "{}", dispatch.body);
        } else {
            assert_eq!(pointers(&sent.unwrap_err()), ["/amount"]);
        }
    });
}

#[test]
fn an_amount_never_becomes_a_full_refund() {
    each(|fixture, config| {
        for amount in [
            json!(null),
            json!({}),
            json!(""),
            json!("Full"),
            json!("full "),
            json!("FULL"),
            json!(10),
            json!("10.00"),
            json!(["full"]),
            json!({"full": true}),
            json!(true),
            json!({"value": null, "currency": fixture.currency}),
            json!({"value": "", "currency": fixture.currency}),
            json!({"currency": fixture.currency}),
            json!({"value": "10.00"}),
            json!({"value": "full", "currency": fixture.currency}),
            json!({"value": "0", "currency": fixture.currency}),
            json!({"value": 10, "currency": fixture.currency}),
        ] {
            let mut call = fixture.call();
            call["amount"] = amount.clone();
            let answer = sent(config, KEY, &call).unwrap_err();
            assert!(
                pointers(&answer)
                    .iter()
                    .all(|pointer| pointer.starts_with("/amount")),
                "{amount}: {}",
                answer.body
            );
        }
        let mut call = fixture.call();
        call.as_object_mut().unwrap().remove("amount");
        assert_eq!(
            pointers(&sent(config, KEY, &call).unwrap_err()),
            ["/amount"]
        );
    });
}

#[test]
fn a_reason_is_asked_for_where_the_provider_needs_one() {
    each(|fixture, config| {
        let mut call = fixture.call();
        call.as_object_mut().unwrap().remove("reason");
        if !fixture.needs_reason {
            let dispatch = sent(config, KEY, &call).unwrap();
            call["reason"] = json!("returned goods");
            let with_reason = sent(config, KEY, &call).unwrap();
            assert_eq!(
                dispatch.body,
                with_reason.body,
                "a reason goes to {}",
                fixture.name()
            );
            return;
        }
        assert_eq!(
            pointers(&sent(config, KEY, &call).unwrap_err()),
            ["/reason"]
        );
        let mut provider = fixture.provider_config();
        provider["default_reason"] = json!("the default");
        let config = core_testbed::config(fixture.name(), &provider);
        assert!(
            sent(&config, KEY, &call)
                .unwrap()
                .body
                .contains("the default")
        );
        call["reason"] = json!("the caller's");
        let body = sent(&config, KEY, &call).unwrap().body;
        assert!(
            body.contains("the caller's") && !body.contains("the default"),
            "{body}"
        );
    });
}

#[test]
fn a_payment_is_named_as_the_provider_knows_it() {
    each(|fixture, config| {
        let pointers = |payment: Value| {
            let mut call = fixture.call();
            call["payment"] = payment;
            match sent(config, KEY, &call) {
                Ok(_) => Vec::new(),
                Err(answer) => pointers(&answer),
            }
        };
        let nothing: [&str; 0] = [];
        assert_eq!(pointers(json!({})), ["/payment"]);
        assert_eq!(pointers(json!("4922")), ["/payment"]);
        assert_eq!(pointers(json!({"id": 4922})), ["/payment/id"]);
        assert_eq!(pointers(json!({"id": ""})), ["/payment/id"]);
        assert_eq!(pointers(json!({"id": null})), ["/payment/id"]);
        assert_eq!(pointers(json!({"id": "1".repeat(129)})), ["/payment/id"]);
        assert_eq!(
            pointers(json!({"id": "4922", "reference": "r".repeat(65)})),
            ["/payment/reference"]
        );
        for dots in [".", ".."] {
            let found = pointers(json!({"id": dots}));
            assert!(
                !found.is_empty() && found.iter().all(|p| p == "/payment/id"),
                "{found:?}"
            );
        }
        assert_eq!(pointers(json!({"id": "4922"})), nothing);
        assert_eq!(
            pointers(json!({"id": "4922", "reference": "r".repeat(64)})),
            nothing
        );
        if fixture.numeric_ids {
            assert_eq!(pointers(json!({"reference": "r"})), nothing);
            assert_eq!(pointers(json!({"id": "9".repeat(18)})), nothing);
            let nines = "9".repeat(19);
            for id in ["0", "04", "-4", "+4", "4.0", "4e2", "4 ", "x", "٤", &nines] {
                assert_eq!(pointers(json!({"id": id})), ["/payment/id"], "{id}");
            }
        } else {
            assert_eq!(pointers(json!({"reference": "r"})), ["/payment/id"]);
            assert_eq!(pointers(json!({"id": "i".repeat(128)})), nothing);
            assert_eq!(pointers(json!({"id": "é".repeat(128)})), nothing);
        }
    });
}

#[test]
fn an_amount_that_cannot_be_sent_exactly_is_refused() {
    each(|fixture, config| {
        let refused = |value: &str, currency: &str| {
            let answer = sent(config, KEY, &fixture.call_for(value, currency));
            answer.is_err_and(|answer| pointers(&answer) == ["/amount/value"])
        };
        for (value, currency) in [
            ("1.5", "JPY"),
            ("0.001", "USD"),
            ("0.0001", "KWD"),
            ("0.00001", "CLF"),
        ] {
            assert!(refused(value, currency), "{value} {currency}");
        }
        match fixture.kind.capabilities.units {
            Units::Major {
                decimals,
                whole_digits,
            } => {
                if let Some(decimals) = decimals {
                    let fraction = "1".repeat(usize::from(decimals) + 1);
                    assert!(refused(&format!("1.{fraction}"), "CLF"));
                    assert!(!refused(&format!("1.{}", &fraction[1..]), "CLF"));
                    assert!(!refused(
                        &format!("1.{}00", "1".repeat(usize::from(decimals))),
                        "CLF"
                    ));
                }
                if let Some(digits) = whole_digits {
                    let digits = usize::from(digits);
                    assert!(refused(
                        &format!("1{}", "0".repeat(digits)),
                        fixture.currency
                    ));
                    assert!(!refused(&"9".repeat(digits), fixture.currency));
                }
            }
            Units::Minor { max, .. } => {
                assert!(!refused(&max.to_string(), "JPY"));
                if let Some(more) = max.checked_add(1) {
                    assert!(refused(&more.to_string(), "JPY"));
                }
            }
        }
        for (code, digits) in fixture.own_digits {
            let own = Currency::from_code(code).unwrap().digits();
            assert!(refused(
                &format!("1.{:0>width$}", 1, width = usize::from(own)),
                code
            ));
            assert_eq!(*digits, 0);
            let whole = sent(config, KEY, &fixture.call_for("7", code)).unwrap();
            assert_eq!(fixture.wire_amount(&whole).unwrap(), "7");
        }
    });
}

#[test]
fn a_currency_that_is_not_configured_is_refused() {
    each(|fixture, _| {
        let mut provider = fixture.provider_config();
        provider["currencies"] = json!([fixture.currency, "KWD"]);
        let config = config(fixture.name(), &provider);
        assert!(sent(&config, KEY, &fixture.call()).is_ok());
        let other = if fixture.currency == "EUR" {
            "USD"
        } else {
            "EUR"
        };
        let answer = sent(&config, KEY, &fixture.call_for("10.00", other)).unwrap_err();
        assert_eq!(pointers(&answer), ["/amount/currency"]);
        for code in [
            "usd",
            "XYZ",
            "",
            "US",
            "USDX",
            "XXX",
            "XTS",
            "BTC",
            "ＵＳＤ",
        ] {
            let answer = sent(&config, KEY, &fixture.call_for("10.00", code)).unwrap_err();
            assert_eq!(pointers(&answer), ["/amount/currency"], "{code}");
        }
    });
}

#[test]
fn every_status_is_answered_by_the_table_when_its_body_says_nothing() {
    let mut faults = Vec::new();
    each(|fixture, config| {
        let bodies = [
            "",
            " \r\n",
            "<html><body><h1>502 Bad Gateway</h1></body></html>",
            "\u{0}\u{1}garbage",
            "[]",
            "[1]",
            "12",
            "null",
            "true",
            "{}",
            "{\"status\":\"ok\"}",
            "{\"a\":1,\"a\":1}",
        ];
        for status in statuses() {
            for body in bodies {
                let answer = answer(fixture, config, &head(status, &[]), body.as_bytes(), 1);
                let checked = checked(&answer);
                let (is, wanted) = (told(&answer, &checked), row(fixture, status));
                if is != wanted {
                    faults.push(format!(
                        "{} {status} {body:?}: {is:?}, not {wanted:?}",
                        fixture.name()
                    ));
                }
                let word = &checked["provider"];
                if word["status"] != status || word["name"] != fixture.name() {
                    faults.push(format!("{} {status}: provider is {word}", fixture.name()));
                }
            }
        }
    });
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn a_status_that_cannot_be_read_is_an_error_of_the_provider() {
    each(|fixture, config| {
        for status in ["", "abc", "-200", "2e2", "99999", "200 OK", "٢٠٠"] {
            let mut headers = Headers::default();
            headers.text(":status", status.into());
            for head in [ReplyHead::of(&headers), ReplyHead::of(&Headers::default())] {
                let answer = answer(
                    fixture,
                    config,
                    &head,
                    success(fixture, config).as_bytes(),
                    1,
                );
                let body = checked(&answer);
                assert_eq!(told(&answer, &body), row(fixture, 0), "{status:?}");
            }
        }
    });
}

#[test]
fn bytes_that_are_not_utf_8_are_no_success() {
    each(|fixture, config| {
        let success = success(fixture, config);
        let mut broken = success.clone().into_bytes();
        let at = success.find('"').unwrap() + 1;
        broken.insert(at, 0xff);
        let utf_16: Vec<u8> = success.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for body in [&broken[..], &utf_16, b"\xff\xfe", &[0; 4096]] {
            for status in [200, 400, 500] {
                let answer = answer(fixture, config, &head(status, &[]), body, 1);
                let checked = checked(&answer);
                // A refusal around what says that the refund is made is no certain one, even if it
                // cannot be read whole.
                let around = status == 400 && *body == broken;
                let wanted = match around {
                    true => ("provider-reply-unreadable", 502, "unknown", fixture.by_key),
                    false => row(fixture, status),
                };
                assert_eq!(told(&answer, &checked), wanted, "{status}");
            }
        }
    });
}

#[test]
fn a_coded_body_is_never_read_and_its_verdict_never_certain() {
    each(|fixture, config| {
        let success = success(fixture, config);
        for coding in ["gzip", "br", "deflate", "zstd", "gzip, identity", "x"] {
            for status in statuses() {
                let wanted = match row(fixture, status) {
                    // What it refused may be a second refund: the words that would say so cannot be
                    // read.
                    (_, _, "not_refunded", _) => row(fixture, 200),
                    row => row,
                };
                if status == 409 {
                    continue;
                }
                let head = head(status, &[("content-encoding", coding)]);
                let answer = answer(fixture, config, &head, success.as_bytes(), 1);
                let checked = checked(&answer);
                assert_eq!(
                    told(&answer, &checked),
                    wanted,
                    "{} {status}",
                    fixture.name()
                );
            }
        }
        let plain = head(200, &[("content-encoding", "Identity")]);
        assert_eq!(
            checked(&answer(fixture, config, &plain, success.as_bytes(), 1))["status"],
            fixture.means
        );
    });
}

#[test]
fn a_conflict_is_the_tables_whatever_the_coding_of_its_body() {
    each(|fixture, config| {
        let answer = answer(
            fixture,
            config,
            &head(409, &[("content-encoding", "gzip")]),
            b"\x1f\x8b",
            1,
        );
        let checked = checked(&answer);
        assert_eq!(
            told(&answer, &checked),
            row(fixture, 409),
            "{}",
            fixture.name()
        );
    });
}

#[test]
fn success_words_under_another_status_are_no_success() {
    each(|fixture, config| {
        let success = success(fixture, config);
        for status in statuses()
            .into_iter()
            .filter(|status| !(200..300).contains(status))
        {
            let answer = answer(fixture, config, &head(status, &[]), success.as_bytes(), 1);
            checked(&answer);
            assert!(
                answer.status >= 400,
                "{} {status}: {}",
                fixture.name(),
                answer.body
            );
        }
    });
}

#[test]
fn after_a_second_send_by_the_route_no_status_is_certain() {
    each(|fixture, config| {
        for attempts in [2, 3, u64::MAX] {
            for status in statuses()
                .into_iter()
                .filter(|status| !(200..300).contains(status))
            {
                for body in [
                    "",
                    "{}",
                    &success(fixture, config),
                    &fixture.refusal_reply("2002", "no"),
                ] {
                    let answer = answer(
                        fixture,
                        config,
                        &head(status, &[]),
                        body.as_bytes(),
                        attempts,
                    );
                    let body = checked(&answer);
                    assert_eq!(body["outcome"], "unknown", "{} {status}", fixture.name());
                    assert_ne!(body["retry"], "no");
                    if fixture.by_key == "look_up" {
                        assert_eq!(body["retry"], "look_up", "{status}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_refusal_in_words_is_certain_after_a_retry_only_where_a_key_makes_the_sends_one() {
    each(|fixture, config| {
        for word in fixture.declined {
            let mut reply: Value = serde_json::from_str(&success(fixture, config)).unwrap();
            fixture.say(&mut reply, &json!(word));
            let answer = answer(
                fixture,
                config,
                &head(200, &[]),
                reply.to_string().as_bytes(),
                2,
            );
            let body = checked(&answer);
            assert_eq!(body["code"], "refund-declined", "{body}");
            let certain = fixture.by_key == "same_key";
            assert_eq!(body["outcome"] == "not_refunded", certain, "{body}");
        }
    });
}

#[test]
fn retry_until_is_told_where_the_provider_publishes_it_and_the_same_key_helps() {
    each(|fixture, config| {
        let success = success(fixture, config);
        for status in statuses() {
            for attempts in [1, 2] {
                for body in ["", "{", &success] {
                    let answer = answer(
                        fixture,
                        config,
                        &head(status, &[]),
                        body.as_bytes(),
                        attempts,
                    );
                    let body = checked(&answer);
                    let wanted = match (fixture.keeps_keys, body["retry"].as_str()) {
                        // 24 hours after NOW, less the 5 minutes that a send may take.
                        (true, Some("same_key")) => json!("2026-11-23T07:55:00Z"),
                        _ => Value::Null,
                    };
                    assert_eq!(
                        body["retry_until"],
                        wanted,
                        "{} {status} {body}",
                        fixture.name()
                    );
                }
            }
        }
        let dispatch = sent(config, KEY, &fixture.call()).unwrap();
        assert_eq!(dispatch.retry.as_str(), fixture.by_key);
        assert_eq!(
            dispatch.retry_until.as_deref(),
            fixture.keeps_keys.then_some("2026-11-23T07:55:00Z")
        );
    });
}

#[test]
fn retry_after_comes_back_with_a_429_and_nothing_else_of_the_providers_headers() {
    each(|fixture, config| {
        let headers = [
            ("retry-after", "120"),
            ("set-cookie", "a=b"),
            ("server", "nginx"),
            ("x-request-id", "theirs"),
            ("www-authenticate", "Basic"),
            ("content-type", "text/html"),
            ("location", "https://evil.example"),
        ];
        for status in [200, 302, 400, 401, 404, 429, 500, 503] {
            let answer = answer(fixture, config, &head(status, &headers), b"", 1);
            checked(&answer);
            let told = answer.headers.first("retry-after");
            match status {
                429 => assert_eq!(told, Some(&b"120"[..])),
                200 | 302 | 400 | 404 => assert_eq!(told, None, "{status}"),
                _ => {}
            }
        }
    });
}

#[test]
fn an_echo_of_another_refund_is_a_mismatch_and_its_absence_proves_nothing() {
    each(|fixture, config| {
        let success: Value = serde_json::from_str(&success(fixture, config)).unwrap();
        for (pointer, other) in fixture.echoes {
            let mut reply = success.clone();
            *reply.pointer_mut(pointer).unwrap() = serde_json::from_str(other).unwrap();
            let answer = answer(
                fixture,
                config,
                &head(200, &[]),
                reply.to_string().as_bytes(),
                1,
            );
            let body = checked(&answer);
            assert_eq!(
                told(&answer, &body),
                ("provider-reply-mismatch", 502, "unknown", "look_up"),
                "{} {pointer}",
                fixture.name()
            );
        }
        for (pointer, _) in fixture.echoes {
            for absent in [false, true] {
                let mut reply = success.clone();
                if absent {
                    let (parent, name) = pointer.rsplit_once('/').unwrap();
                    reply
                        .pointer_mut(parent)
                        .unwrap()
                        .as_object_mut()
                        .unwrap()
                        .remove(name)
                        .unwrap();
                } else {
                    *reply.pointer_mut(pointer).unwrap() = Value::Null;
                }
                let body = checked(&answer(
                    fixture,
                    config,
                    &head(200, &[]),
                    reply.to_string().as_bytes(),
                    1,
                ));
                if fixture.only_name == Some(*pointer) {
                    // A certain word that nothing ties to this refund is none.
                    assert_eq!(body["code"], "provider-reply-unreadable");
                    continue;
                }
                assert_eq!(
                    body["status"],
                    fixture.means,
                    "{} {pointer}",
                    fixture.name()
                );
                assert_eq!(body["amount"], fixture.call()["amount"]);
            }
        }
    });
}

#[test]
fn an_amount_is_compared_by_its_value_and_not_by_its_spelling() {
    each(|fixture, config| {
        let Some((pointer, _)) = fixture
            .echoes
            .iter()
            .find(|(pointer, _)| pointer.ends_with("/amount"))
        else {
            return;
        };
        let call = fixture.call();
        let spellings: &[(&str, bool)] = match fixture.counts {
            Counts::Minor => &[
                ("1000", true),
                ("1000.0", true),
                ("1e3", true),
                ("1E+3", true),
                ("10000e-1", true),
                ("10.00", false),
                ("1001", false),
                ("1000.5", false),
                ("-1000", false),
                ("0", false),
                ("1e30", false),
            ],
            Counts::Major => &[
                ("10", true),
                ("10.0", true),
                ("10.000", true),
                ("1e1", true),
                ("1000E-2", true),
                ("1000", false),
                ("10.001", false),
                ("-10", false),
                ("0", false),
                ("1e30", false),
                ("10.00000000000001", false),
            ],
        };
        for (spelling, same) in spellings {
            let dispatch = sent(config, KEY, &call).unwrap();
            let wire = fixture.wire_amount(&dispatch).unwrap();
            let (reply, _) = fixture.success_reply(&call, &dispatch);
            let reply = reply.replace(
                &format!("\"amount\": {wire},"),
                &format!("\"amount\": {spelling},"),
            );
            let body = checked(&dispatch.sent.reply(&head(200, &[]), reply.as_bytes(), 1));
            if *same {
                assert_eq!(
                    body["status"], fixture.means,
                    "{pointer} {spelling}: {body}"
                );
                assert_eq!(body["amount"]["value"], "10.00");
            } else {
                assert_eq!(
                    body["code"], "provider-reply-mismatch",
                    "{pointer} {spelling}: {body}"
                );
            }
        }
        for other in [
            json!("10.00"),
            json!("1000"),
            json!([10]),
            json!({}),
            json!(true),
        ] {
            let mut reply: Value = serde_json::from_str(&success(fixture, config)).unwrap();
            *reply.pointer_mut(pointer).unwrap() = other.clone();
            let body = checked(&answer(
                fixture,
                config,
                &head(200, &[]),
                reply.to_string().as_bytes(),
                1,
            ));
            assert_eq!(body["outcome"], "unknown", "{other}: {body}");
        }
    });
}

#[test]
fn members_that_nobody_knows_are_ignored() {
    fn grow(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.values_mut().for_each(grow);
                members.insert(
                    "x_new".into(),
                    json!({"status": "failed", "amount": 1, "deep": [[[]]]}),
                );
                members.insert("".into(), json!(null));
            }
            Value::Array(items) => items.iter_mut().for_each(grow),
            _ => {}
        }
    }
    each(|fixture, config| {
        let plain = success(fixture, config);
        let mut reply: Value = serde_json::from_str(&plain).unwrap();
        grow(&mut reply);
        let head = head(200, &[]);
        assert_eq!(
            answer(fixture, config, &head, reply.to_string().as_bytes(), 1),
            answer(fixture, config, &head, plain.as_bytes(), 1)
        );
    });
}

#[test]
fn a_success_cut_anywhere_is_none() {
    each(|fixture, config| {
        let success = success(fixture, config);
        let whole = success.trim_end().len();
        for end in 0..whole {
            let answer = answer(
                fixture,
                config,
                &head(200, &[]),
                &success.as_bytes()[..end],
                1,
            );
            let body = checked(&answer);
            assert_eq!(
                told(&answer, &body),
                row(fixture, 200),
                "{} at {end}",
                fixture.name()
            );
        }
    });
}

#[test]
fn no_other_word_is_a_success() {
    each(|fixture, config| {
        let reply: Value = serde_json::from_str(&success(fixture, config)).unwrap();
        let word = reply
            .pointer(fixture.word)
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned();
        let mut others: Vec<Value> = [
            "",
            "success",
            "SUCCESS ",
            "succeeded",
            "successful",
            "approved",
            "ok",
            "OK",
            "true",
            "0000",
            "REFUNDED",
            "refunded",
            "captured",
            "request_received",
            "done",
            "completed",
            "reversed",
            "voided",
            "error",
            "declined",
            "DECLINED",
            "failed",
            "expired",
            "deleted",
            "timeout",
            "system_error",
            "unknown",
            "NULL",
            "null",
            "APPROVED",
            "Success",
        ]
        .into_iter()
        .map(Value::from)
        .collect();
        others.extend([
            json!(null),
            json!(true),
            json!(0),
            json!(1),
            json!([word]),
            json!({"status": word}),
            json!(word.to_uppercase()),
            json!(word.to_lowercase()),
            json!(format!(" {word}")),
            json!(format!("{word} ")),
            json!(format!("{word}\u{0}")),
            json!(format!("{word}\u{200b}")),
            json!(word.replace('e', "е")),
            json!(word.chars().rev().collect::<String>()),
        ]);
        for other in others.into_iter().filter(|other| *other != json!(word)) {
            let mut reply = reply.clone();
            fixture.say(&mut reply, &other);
            let answer = answer(
                fixture,
                config,
                &head(200, &[]),
                reply.to_string().as_bytes(),
                1,
            );
            let body = checked(&answer);
            assert!(
                body["status"] != "succeeded",
                "{} {other}: {body}",
                fixture.name()
            );
            let pending = fixture.pending.iter().any(|word| other == *word);
            assert_eq!(
                answer.status == 202,
                pending,
                "{} {other}: {body}",
                fixture.name()
            );
            let declined = fixture.declined.iter().any(|word| other == *word);
            assert_eq!(
                body["outcome"] == "not_refunded",
                declined,
                "{} {other}: {body}",
                fixture.name()
            );
        }
    });
}

#[test]
fn what_the_success_needs_must_be_there() {
    each(|fixture, config| {
        for pointer in fixture.needed {
            for other in [
                None,
                Some(json!(null)),
                Some(json!([])),
                Some(json!({})),
                Some(json!("")),
            ] {
                let mut reply: Value = serde_json::from_str(&success(fixture, config)).unwrap();
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                let members = reply.pointer_mut(parent).unwrap().as_object_mut().unwrap();
                match &other {
                    Some(other) => members.insert(name.into(), other.clone()).unwrap(),
                    None => members.remove(name).unwrap(),
                };
                let answer = answer(
                    fixture,
                    config,
                    &head(200, &[]),
                    reply.to_string().as_bytes(),
                    1,
                );
                let body = checked(&answer);
                assert_eq!(
                    told(&answer, &body),
                    row(fixture, 200),
                    "{} {pointer} {other:?}",
                    fixture.name()
                );
            }
        }
    });
}

#[test]
fn envoys_own_answer_tells_certainty_only_where_nothing_left() {
    // (details, status, connected, attempts) and what the contract makes of it.
    let cases: &[(&str, u16, bool, u64, &str, bool)] = &[
        (
            "upstream_reset_before_response_started{connection_failure}",
            503,
            false,
            1,
            "provider-unreachable",
            true,
        ),
        (
            "no_healthy_upstream",
            503,
            false,
            1,
            "provider-unreachable",
            true,
        ),
        (
            "upstream_reset_before_response_started{overflow}",
            503,
            false,
            1,
            "provider-unreachable",
            true,
        ),
        ("route_not_found", 404, false, 1, "gateway-error", true),
        ("cluster_not_found", 503, false, 1, "gateway-error", true),
        (
            "upstream_reset_before_response_started{remote_reset}",
            503,
            true,
            1,
            "provider-error",
            false,
        ),
        (
            "upstream_reset_before_response_started{connection_termination}",
            503,
            true,
            1,
            "provider-error",
            false,
        ),
        (
            "upstream_reset_before_response_started{connection_failure}",
            503,
            false,
            2,
            "provider-error",
            false,
        ),
        (
            "upstream_reset_after_response_started{remote_reset}",
            502,
            true,
            1,
            "provider-error",
            false,
        ),
        ("response_timeout", 504, true, 1, "provider-timeout", false),
        (
            "upstream_response_timeout",
            504,
            true,
            1,
            "provider-timeout",
            false,
        ),
        (
            "upstream_per_try_timeout",
            504,
            true,
            2,
            "provider-timeout",
            false,
        ),
        (
            "upstream_max_stream_duration_reached",
            504,
            true,
            1,
            "provider-timeout",
            false,
        ),
        ("something_new", 500, true, 1, "gateway-error", false),
        ("", 503, true, 1, "gateway-error", false),
        ("", 503, false, 2, "gateway-error", false),
    ];
    each(|fixture, config| {
        for (details, status, connected, attempts, code, certain) in cases {
            let dispatch = sent(config, KEY, &fixture.call()).unwrap();
            let answer = dispatch.sent.local_reply(LocalReply {
                status: *status,
                details,
                connected: *connected,
                attempts: *attempts,
            });
            let body = checked(&answer);
            let (outcome, retry) = if *certain {
                ("not_refunded", "same_key")
            } else {
                ("unknown", fixture.by_key)
            };
            assert_eq!(
                (&body["code"], &body["outcome"], &body["retry"]),
                (&json!(code), &json!(outcome), &json!(retry)),
                "{} {details} {attempts}",
                fixture.name()
            );
        }
    });
}

#[test]
fn no_answer_of_envoys_after_the_send_is_ever_certain_while_it_was_connected_or_retried() {
    each(|fixture, config| {
        for details in [
            "",
            "timeout",
            "no_healthy_upstream",
            "overflow",
            "route_not_found",
            "direct_response",
            "upstream_reset_before_response_started{remote_refused_stream_reset}",
            "via_upstream",
            "ext_authz_denied",
        ] {
            for status in [400, 403, 404, 408, 413, 429, 500, 502, 503, 504] {
                for (connected, attempts) in [(true, 1), (true, 2), (false, 2)] {
                    let dispatch = sent(config, KEY, &fixture.call()).unwrap();
                    let answer = dispatch.sent.local_reply(LocalReply {
                        status,
                        details,
                        connected,
                        attempts,
                    });
                    let body = checked(&answer);
                    // RFC 9113, 8.7: a refused stream was not processed.
                    let refused = details.contains("refused_stream") && attempts == 1;
                    assert_eq!(
                        body["outcome"] == "not_refunded",
                        refused,
                        "{details} {status}: {body}"
                    );
                }
            }
        }
    });
}

/// What a provider's own words say of a refusal that may mean a refund (contract, second row of
/// `provider-rejected`).
#[test]
fn a_refusal_that_may_be_an_earlier_refund_is_never_certain() {
    let cases: &[(&str, u16, &str)] = &[
        ("bog", 409, ""),
        ("bog", 409, r#"{"message":"conflict"}"#),
        ("bog", 400, r#"{"key":"already_refunded"}"#),
        ("bog", 400, r#"{"error":"already_refunded"}"#),
        ("bog", 400, r#"{"message":"already_refunded"}"#),
        (
            "bog",
            400,
            r#"{"message":"order already_refunded by 10001"}"#,
        ),
        ("bog", 400, r#"{"error_description":"already_refunded"}"#),
        (
            "bog",
            400,
            r#"{"error":"bad_request","message":"already_refunded"}"#,
        ),
        ("bog", 422, "already_refunded"),
        ("bog", 404, r#"{"error":"already_refunded"}"#),
        ("bog", 200, r#"{"key":"already_refunded","message":"…"}"#),
        (
            "begateway",
            422,
            r#"{"code":"F.0108","friendly_message":"…","message":"…","errors":{}}"#,
        ),
        (
            "begateway",
            400,
            r#"{"response":{"code":"F.0108","message":"Duplicate"}}"#,
        ),
        (
            "begateway",
            422,
            r#"{"error":{"code":"F.0108","message":"Duplicate"}}"#,
        ),
        (
            "begateway",
            200,
            r#"{"transaction":{"uid":"1","status":"failed","code":"F.0108"}}"#,
        ),
        (
            "bbmsl",
            200,
            r#"{"responseCode":"3001","message":"refunded before"}"#,
        ),
        (
            "bbmsl",
            200,
            r#"{"responseCode":"3001","message":null,"order":{"id":4922}}"#,
        ),
        ("bbmsl", 400, r#"{"responseCode":"3001"}"#),
        ("bbmsl", 402, r#"{"responseCode":"3001"}"#),
        ("bbmsl", 422, r#"{"responseCode":3001}"#),
    ];
    let mut faults = Vec::new();
    for (name, status, body) in cases {
        let fixture = FIXTURES
            .iter()
            .find(|fixture| fixture.name() == *name)
            .unwrap();
        let answer = answer(
            fixture,
            &fixture.config(),
            &head(*status, &[]),
            body.as_bytes(),
            1,
        );
        let checked = checked(&answer);
        let is = told(&answer, &checked);
        if is != ("provider-rejected", 422, "unknown", "look_up") {
            faults.push(format!("{name} {status} {body}: {is:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// "The text may be in `message`, `error_description` or `error`" (facts): the word counts in each,
/// whatever the others say.
#[test]
fn the_word_already_refunded_counts_wherever_its_provider_may_write_it() {
    let fixture = FIXTURES
        .iter()
        .find(|fixture| fixture.name() == "bog")
        .unwrap();
    let config = fixture.config();
    let mut faults = Vec::new();
    for place in ["key", "error", "message", "error_description"] {
        for beside in ["key", "error", "message", "error_description"] {
            let mut body = json!({beside: "some other text"});
            body[place] = json!("already_refunded");
            let checked = checked(&answer(
                fixture,
                &config,
                &head(400, &[]),
                body.to_string().as_bytes(),
                1,
            ));
            if checked["outcome"] != "unknown" {
                faults.push(format!("{body}: {}", checked["outcome"]));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_call_that_is_still_at_work_is_in_progress() {
    let fixture = FIXTURES
        .iter()
        .find(|fixture| fixture.name() == "moyasar")
        .unwrap();
    let config = fixture.config();
    for message in [
        "Initial request is still processing.",
        "STILL PROCESSING",
        "it is still processing, wait",
    ] {
        let body = json!({"message": message}).to_string();
        let answer = answer(fixture, &config, &head(400, &[]), body.as_bytes(), 1);
        let checked = checked(&answer);
        assert_eq!(
            told(&answer, &checked),
            ("refund-in-progress", 409, "unknown", "same_key")
        );
    }
}

#[test]
fn what_was_not_handed_to_envoy_was_not_sent() {
    each(|fixture, config| {
        let dispatch = sent(config, KEY, &fixture.call()).unwrap();
        let answer = dispatch.sent.not_sent();
        let body = checked(&answer);
        assert_eq!(
            told(&answer, &body),
            ("gateway-error", 500, "not_refunded", "same_key")
        );
    });
}

#[test]
fn the_core_keeps_to_its_path_and_method() {
    each(|fixture, config| {
        use core_testbed::open;
        use refund_filter::exchange::Opening;
        let with = |path: &str, method: &str| {
            let mut headers = Headers::default();
            for (name, value) in [
                (":method", method),
                (":path", path),
                ("content-type", "application/json"),
                ("x-request-id", "request-1"),
                ("idempotency-key", "k"),
            ] {
                headers.text(name, value.to_owned());
            }
            open(config, &headers, NOW)
        };
        for path in [
            "/v1/refunds",
            "/v1/refunds?",
            "/v1/refunds?a=b",
            "/v1/refunds?/x",
        ] {
            assert!(
                matches!(with(path, "POST"), Opening::Read(_)),
                "{path} {}",
                fixture.name()
            );
            for method in ["PUT", "DELETE", "PATCH", "post", "", "OPTIONS"] {
                let Opening::Answer(answer) = with(path, method) else {
                    panic!("{method} {path}")
                };
                assert_eq!(checked(&answer)["code"], "method-not-allowed");
                assert!(
                    answer
                        .headers
                        .first("allow")
                        .is_some_and(|allow| allow.ends_with(b"POST"))
                );
            }
        }
        for path in [
            "",
            "/",
            "/v1/refunds/",
            "/v1/refund",
            "/v1/refunds/1",
            "/V1/refunds",
            "//v1/refunds",
            "/v1/refunds#",
            "/v1/refunds%3f",
        ] {
            assert!(matches!(with(path, "POST"), Opening::NotOurs), "{path}");
        }
    });
}
