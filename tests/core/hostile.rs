//! Calls and replies made to hurt: they cost bounded work, break out of nothing, and end in a
//! problem of the catalogue.

use std::rc::Rc;
use std::time::Duration;

use crate::properties::cases;
use core_testbed::fixtures::{
    FIXTURES, Fixture, TOKEN, checked, fixture, head, header, pointers, sent, sent_bytes,
};
use core_testbed::{NOW, StubSigner, call_headers, look_up, open, send_with};
use proptest::prelude::*;
use proptest::sample::select;
use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{MAX_BODY, Opening, ReplyHead};
use refund_filter::headers::Headers;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

fn each(mut test: impl FnMut(&Fixture, &Rc<Config>)) {
    for fixture in FIXTURES {
        test(fixture, &fixture.config_once());
    }
}

/// The code of what a body of bytes is answered with; `sent` if it goes out.
fn code(config: &Rc<Config>, body: &[u8]) -> String {
    match sent_bytes(config, "k-1", body) {
        Ok(_) => "sent".into(),
        Err(answer) => {
            // An answer is in proportion: it tells faults, it does not echo the call.
            assert!(
                answer.body.len() < 16 * 1024,
                "{} bytes of answer",
                answer.body.len()
            );
            checked(&answer)["code"].as_str().unwrap().to_owned()
        }
    }
}

/// The processor's time that something takes: what runs beside it does not count.
fn processor_time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(now).unwrap()
    };
    let start = now();
    let result = work();
    (result, now() - start)
}

/// Runs something that must not take long, even unoptimised.
fn quick<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (result, took) = processor_time(work);
    assert!(took < Duration::from_secs(5), "{what} took {took:?}");
    result
}

/// The sound call's text with one value replaced by raw JSON text.
fn with_raw(fixture: &Fixture, pointer: &str, raw: &str) -> String {
    let mut call = fixture.call();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    call.pointer_mut(parent).unwrap()[name] = json!("@RAW@");
    call.to_string().replace("\"@RAW@\"", raw)
}

const PLACES: &[&str] = &[
    "/provider",
    "/payment",
    "/payment/id",
    "/payment/reference",
    "/amount",
    "/amount/value",
    "/amount/currency",
    "/reason",
    "/reference",
    "/unknown",
    "/payment/unknown",
    "/amount/unknown",
];

#[test]
fn nesting_is_no_way_in() {
    each(|fixture, config| {
        let deep = 100_000;
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let fits = 60_000 / (open.len() + close.len());
            let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
            // A call is read alike for all.
            for pointer in PLACES.iter().filter(|_| fixture.needs_reason) {
                let body = with_raw(fixture, pointer, &nested(fits));
                assert!(body.len() < MAX_BODY);
                let code = quick("a deep call", || code(config, body.as_bytes()));
                assert_eq!(code, "invalid-request", "{pointer}");
            }
            assert_eq!(code(config, nested(fits).as_bytes()), "invalid-request");
            assert_eq!(code(config, nested(deep).as_bytes()), "body-too-large");
            // Never closed.
            assert_eq!(
                code(config, open.repeat(10_000).as_bytes()),
                "malformed-json"
            );
            for status in [200, 400] {
                for body in [
                    nested(deep),
                    open.repeat(deep),
                    format!(
                        "{{\"transaction\":{},\"transactions\":{}}}",
                        nested(deep),
                        nested(deep)
                    ),
                ] {
                    let dispatch = sent(config, "k-1", &fixture.call()).unwrap();
                    let answer = quick("a deep reply", || {
                        dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1)
                    });
                    checked(&answer);
                    assert!(answer.status >= 400);
                }
            }
        }
    });
}

#[test]
fn numbers_of_ten_thousand_digits_are_no_amount() {
    let nines = "9".repeat(10_000);
    each(|fixture, config| {
        for text in [
            format!("\"{nines}\""),
            format!("\"0.{nines}\""),
            format!("\"1.{nines}\""),
        ] {
            let body = with_raw(fixture, "/amount/value", &text);
            let answer = sent_bytes(config, "k-1", body.as_bytes())
                .map(|_| ())
                .unwrap_err();
            assert_eq!(pointers(&answer), ["/amount/value"]);
            assert!(answer.body.len() < 2048);
        }
        for number in [
            nines.clone(),
            format!("1e{nines}"),
            format!("-0.{nines}"),
            format!("1E-{nines}"),
        ] {
            assert_eq!(
                code(
                    config,
                    with_raw(fixture, "/amount/value", &number).as_bytes()
                ),
                "invalid-request"
            );
            for (pointer, _) in fixture.echoes {
                let dispatch = sent(config, "k-1", &fixture.call()).unwrap();
                let (reply, _) = fixture.success_reply(&fixture.call(), &dispatch);
                let mut reply: Value = serde_json::from_str(&reply).unwrap();
                *reply.pointer_mut(pointer).unwrap() = json!("@RAW@");
                let reply = reply.to_string().replace("\"@RAW@\"", &number);
                let answer = quick("a long number", || {
                    dispatch.sent.reply(&head(200, &[]), reply.as_bytes(), 1)
                });
                assert_eq!(checked(&answer)["outcome"], "unknown", "{pointer}");
            }
        }
    });
}

#[test]
fn a_member_that_stands_twice_is_refused_wherever_it_stands() {
    each(|fixture, config| {
        let call = fixture.call();
        let text = call.to_string();
        for (pointer, name) in [
            ("", "provider"),
            ("", "payment"),
            ("", "amount"),
            ("/payment", "id"),
            ("/amount", "value"),
            ("/amount", "currency"),
        ] {
            let value = call.pointer(&format!("{pointer}/{name}")).unwrap();
            let escaped: String = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), &name[1..]);
            for (second, other) in [
                (name.to_owned(), value.to_string()),
                (name.to_owned(), "null".into()),
                (escaped, value.to_string()),
            ] {
                let object = match pointer {
                    "" => text.clone(),
                    _ => call.pointer(pointer).unwrap().to_string(),
                };
                let doubled = format!(
                    "{},\"{second}\":{other}}}",
                    object.strip_suffix('}').unwrap()
                );
                let body = text.replacen(&object, &doubled, 1);
                let answer = sent_bytes(config, "k-1", body.as_bytes())
                    .map(|_| ())
                    .expect_err(&body);
                let wanted = format!("{pointer}/{name}");
                assert!(
                    pointers(&answer).contains(&wanted),
                    "{body}: {}",
                    answer.body
                );
            }
        }
        for body in [
            r#"{"a":1,"a":1}"#.to_owned(),
            text.replacen('{', r#"{"x":1,"x":2,"#, 1),
            text.replacen('{', r#"{"":1,"":2,"#, 1),
        ] {
            assert_eq!(code(config, body.as_bytes()), "invalid-request");
        }
    });
}

#[test]
fn what_is_no_json_text_is_malformed() {
    each(|fixture, config| {
        let text = fixture.call().to_string();
        let sound = text.as_bytes();
        let with = |before: &[u8], after: &[u8]| [before, sound, after].concat();
        let bodies = [
            b"".to_vec(),
            b" \n".to_vec(),
            b"{".to_vec(),
            b"{\"provider\"".to_vec(),
            with(b"", b"{}"),
            with(b"", b" 1"),
            with(b"", b"\0"),
            with(b"\xef\xbb\xbf", b""),
            with(b"\0", b""),
            with(b"", b"//x"),
            with(b"", b","),
            with(b"[", b""),
            text.replace('"', "'").into_bytes(),
            text.replace(':', "=").into_bytes(),
            text.replace("\"provider\"", "provider").into_bytes(),
            text.replacen('{', "{,", 1).into_bytes(),
            text.replacen('}', ",}", 1).into_bytes(),
            text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            with_raw(fixture, "/reason", "NaN").into_bytes(),
            with_raw(fixture, "/reason", "+1").into_bytes(),
            with_raw(fixture, "/reason", "01").into_bytes(),
            with_raw(fixture, "/reason", "\"\n\"").into_bytes(),
            with_raw(fixture, "/reason", "\"\u{0}\"").into_bytes(),
            with_raw(fixture, "/reason", r#""\x41""#).into_bytes(),
            with_raw(fixture, "/reason", r#""\u12""#).into_bytes(),
        ];
        for body in &bodies {
            assert_eq!(
                code(config, body),
                "malformed-json",
                "{:?}",
                String::from_utf8_lossy(body)
            );
        }
        for end in 0..sound.len() {
            assert_eq!(code(config, &sound[..end]), "malformed-json", "{end}");
        }
        for bad in [
            &b"\xff"[..],
            b"\xc0\xaf",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xe2\x28",
        ] {
            let at = text.find("\"payment\"").unwrap() + 3;
            let body = [&sound[..at], bad, &sound[at..]].concat();
            assert_eq!(code(config, &body), "malformed-json", "{bad:?}");
        }
        for other in ["[]", "null", "1", "\"x\"", "true", "[{}]", "{}"] {
            assert_eq!(code(config, other.as_bytes()), "invalid-request", "{other}");
        }
    });
}

#[test]
fn lone_surrogates_reach_nobody() {
    each(|fixture, config| {
        for pointer in PLACES {
            for text in [
                r#""\ud800""#,
                r#""\udc00""#,
                r#""a\ud83dz""#,
                r#""\ud800\ud800""#,
                r#""\udc00\ud800""#,
            ] {
                let code = code(config, with_raw(fixture, pointer, text).as_bytes());
                assert!(
                    ["malformed-json", "invalid-request"].contains(&code.as_str()),
                    "{pointer} {text}: {code}"
                );
            }
        }
        let name = fixture
            .call()
            .to_string()
            .replacen('{', r#"{"\ud800":1,"#, 1);
        let code = code(config, name.as_bytes());
        assert!(
            ["malformed-json", "invalid-request"].contains(&code.as_str()),
            "{code}"
        );
        // A whole pair is a character.
        let call = with_raw(fixture, "/reason", r#""\ud83d\ude00""#);
        assert!(sent_bytes(config, "k-1", call.as_bytes()).is_ok());
    });
}

#[test]
fn nothing_in_a_call_breaks_out_of_its_path_header_or_text() {
    let hostile = [
        "a/b",
        "a?b=c",
        "a#b",
        "a%2fb",
        "%2e%2e",
        "%2E",
        "../x",
        "..%2f",
        "a/../../b",
        "a\\b",
        "a b",
        "a+b",
        "a&b",
        "a;b=c",
        "a:b@c",
        "é",
        "\u{1F600}",
        "a\r\nx-evil: 1",
        "\r\n\r\nGET / HTTP/1.1",
        "a\u{0}b",
        "\u{7f}",
        "\u{1}",
        "\u{2028}",
        "\u{202e}",
        "\"",
        "\\\"",
        "{}",
        "\",\"amount\":1,\"x\":\"",
        "a;b",
        "*",
        "|",
        "<x>",
        "'",
        "`",
        "${x}",
        "~",
        "-",
        "_",
        "...",
        ". ",
        " ..",
    ];
    each(|fixture, config| {
        for text in hostile {
            for pointer in ["/payment/id", "/payment/reference", "/reason", "/reference"] {
                if fixture.numeric_ids && pointer == "/payment/id" {
                    let body = with_raw(fixture, pointer, &json!(text).to_string());
                    assert_eq!(code(config, body.as_bytes()), "invalid-request", "{text:?}");
                    continue;
                }
                let body = with_raw(fixture, pointer, &json!(text).to_string());
                let dispatch = sent_bytes(config, "k-1", body.as_bytes())
                    .unwrap_or_else(|answer| panic!("{pointer} {text:?}: {}", answer.body));
                let sound = sent(config, "k-1", &fixture.call()).unwrap();
                // The same headers as ever, and of the others nothing has changed but path and
                // length.
                let names = |headers: &Headers<'_>| {
                    headers
                        .iter()
                        .map(|(name, _)| name.to_vec())
                        .collect::<Vec<_>>()
                };
                assert_eq!(names(&dispatch.headers), names(&sound.headers));
                for (name, value) in dispatch.headers.iter() {
                    assert!(
                        value.iter().all(|b| (0x20..0x7f).contains(b)),
                        "{:?}: {value:?}",
                        String::from_utf8_lossy(name)
                    );
                    let as_ever =
                        sound.headers.first(std::str::from_utf8(name).unwrap()) == Some(value);
                    assert!(as_ever || name == b":path" || name == b"content-length");
                }
                let (path, as_ever) = (
                    header(&dispatch, ":path").unwrap(),
                    header(&sound, ":path").unwrap(),
                );
                assert_eq!(
                    path.matches('/').count(),
                    as_ever.matches('/').count(),
                    "{path}"
                );
                assert!(
                    path.bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._~%/".contains(&b)),
                    "{path}"
                );
                for segment in path.split('/') {
                    let segment = segment.to_ascii_lowercase().replace("%2e", ".");
                    assert!(segment != "." && segment != "..", "{path}");
                }
                // The body's members are the same, whatever the strings in them.
                let members = |text: &str| {
                    let value: Value = serde_json::from_str(text).unwrap();
                    let inner = value
                        .get("request")
                        .filter(|inner| inner.is_object())
                        .unwrap_or(&value)
                        .clone();
                    inner
                        .as_object()
                        .unwrap()
                        .keys()
                        .cloned()
                        .collect::<Vec<_>>()
                };
                let inner = fixture.inner_text(&dispatch);
                assert_eq!(
                    members(&inner),
                    members(&fixture.inner_text(&sound)),
                    "{inner}"
                );
                assert_eq!(fixture.wire_amount(&sound), {
                    let value: Value = serde_json::from_str(&inner).unwrap();
                    let value = value.get("request").unwrap_or(&value);
                    Some(value["amount"].to_string())
                });
            }
        }
    });
}

#[test]
fn a_path_segment_decodes_to_the_id_it_was_made_of() {
    for fixture in FIXTURES.iter().filter(|fixture| !fixture.numeric_ids) {
        let config = fixture.config_once();
        for id in [
            "ord/1 x",
            "%2e%2e",
            "a%",
            "%",
            "é\u{1F600}",
            "a\r\nb",
            "..a",
            "a..",
            "…",
            "?#",
            "\u{0}",
        ] {
            let mut call = fixture.call();
            call["payment"] = json!({ "id": id });
            let dispatch = sent(&config, "k-1", &call).unwrap();
            let path = header(&dispatch, ":path").unwrap();
            let found = path.split('/').any(|segment| {
                percent_encoding::percent_decode_str(segment)
                    .decode_utf8()
                    .unwrap()
                    == id
            });
            let in_body = dispatch
                .body
                .contains(json!(id).to_string().trim_matches('"'));
            assert!(found || in_body, "{id:?}: {path}");
        }
    }
}

#[test]
fn a_providers_name_is_matched_byte_for_byte() {
    each(|fixture, config| {
        let name = fixture.name();
        let likes = [
            name.to_uppercase(),
            format!("{name} "),
            format!(" {name}"),
            format!("{name}\u{0}"),
            format!("{name}\u{200b}"),
            name.replace('o', "о"),
            name.replace('a', "а"),
            name.replace('b', "ｂ"),
            name[1..].to_owned(),
            format!("{name}{name}"),
            String::new(),
            "__proto__".into(),
        ];
        for like in likes.iter().filter(|like| *like != name) {
            let mut call = fixture.call();
            call["provider"] = json!(like);
            let answer = sent(config, "k-1", &call).map(|_| ()).unwrap_err();
            assert!(
                pointers(&answer).contains(&"/provider".to_owned()),
                "{like:?}"
            );
        }
    });
}

#[test]
fn sixty_four_kib_go_in_and_one_byte_more_does_not() {
    each(|fixture, config| {
        let text = fixture.call().to_string();
        let exactly = format!("{text}{}", " ".repeat(MAX_BODY - text.len()));
        assert_eq!(exactly.len(), 65_536);
        assert_eq!(code(config, exactly.as_bytes()), "sent");
        assert_eq!(
            code(config, format!("{exactly} ").as_bytes()),
            "body-too-large"
        );
        assert_eq!(code(config, &[b'x'; 65_537]), "body-too-large");
        // What is announced is believed where it is too much, and only there.
        for (length, read) in [
            ("65536", true),
            ("65537", false),
            ("18446744073709551615", false),
            ("0", true),
            ("-1", true),
            ("x", true),
            ("", true),
        ] {
            let mut headers = call_headers("k-1");
            headers.text("content-length", length.into());
            match open(config, &headers, NOW) {
                Opening::Read(_) => assert!(read, "{length}"),
                Opening::Answer(answer) => {
                    assert!(!read, "{length}");
                    assert_eq!(checked(&answer)["code"], "body-too-large");
                }
                Opening::NotOurs => panic!("not ours"),
            }
        }
    });
}

#[test]
fn a_body_full_of_names_costs_little_and_is_told_in_little() {
    each(|fixture, config| {
        let names: Vec<String> = (0..10_000).map(|n| format!("\"{n:x}\":1")).collect();
        let same = vec!["\"a\":1"; 10_000];
        let call = fixture.call().to_string();
        let inside = call.strip_suffix('}').unwrap();
        for all in [names.join(","), same.join(",")] {
            let bodies = |length: usize| {
                let many = &all[..length.min(all.len())];
                let many = &many[..many.rfind(',').unwrap()];
                [
                    format!("{{{many}}}"),
                    format!("{inside},{many}}}"),
                    with_raw(fixture, "/payment", &format!("{{{many}}}")),
                    with_raw(fixture, "/amount", &format!("{{{many}}}")),
                ]
            };
            let cost = |body: &String| {
                let took = (0..3).map(|_| {
                    let (code, took) = processor_time(|| code(config, body.as_bytes()));
                    assert_eq!(code, "invalid-request");
                    took
                });
                took.min().unwrap()
            };
            // Ten times the names. By the square of their number they would cost a hundred times as much.
            for (few, many) in bodies(6_000).iter().zip(&bodies(60_000)) {
                let (few, many) = (cost(few), cost(many));
                assert!(many < 40 * few, "{few:?}, and {many:?}");
            }
        }
        let long = format!("{{\"{}\":1}}", "n".repeat(60_000));
        assert_eq!(code(config, long.as_bytes()), "invalid-request");
        let control = format!("{{\"{}\":1}}", "\\u0001".repeat(10_000));
        assert_eq!(code(config, control.as_bytes()), "invalid-request");
        let slashes = format!("{{\"{}\":1}}", "~/".repeat(30_000));
        assert_eq!(code(config, slashes.as_bytes()), "invalid-request");
    });
}

#[test]
fn a_huge_reply_is_told_in_little_and_costs_little() {
    let names: Vec<String> = (0..10_000).map(|n| format!("\"{n:x}\":{n}")).collect();
    let items = vec!["{\"id\":\"x\",\"type\":\"refund\",\"status\":\"approved\"}"; 2_000].join(",");
    let bodies = [
        format!("{{{}}}", names.join(",")),
        format!(
            "{{\"message\":\"{}\",\"code\":\"{}\"}}",
            "é".repeat(100_000),
            "1".repeat(100_000)
        ),
        format!("{{\"transactions\":[{items}]}}"),
        "x".repeat(200_000),
        "4111 1111-".repeat(10_000),
    ];
    each(|fixture, config| {
        for body in &bodies {
            for status in [200, 400] {
                let dispatch = sent(config, "k-1", &fixture.call()).unwrap();
                let answer = quick("a huge reply", || {
                    dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1)
                });
                checked(&answer);
                assert!(answer.body.len() < 16 * 1024, "{} bytes", answer.body.len());
            }
        }
    });
}

#[test]
fn a_huge_or_bent_reply_to_a_look_up_is_told_in_little_and_proves_nothing() {
    let shown = |fixture: &Fixture| fixture.shown(false);
    each(|fixture, config| {
        let payment: Value = serde_json::from_str(fixture.payment).unwrap();
        let payment = payment["id"].as_str().unwrap();
        let query = format!("provider={}&payment_id={payment}&key=k-1", fixture.name());
        let sound = shown(fixture);
        let inner = &sound[1..sound.len() - 1];
        for body in [
            format!("{{{inner},{inner}}}"),
            format!("{sound}{sound}"),
            format!("[{sound},{sound}]"),
            format!("\"{}\"", sound.replace('"', "\\\"")),
            sound[..sound.len() - 1].to_owned(),
            format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
            format!("{{\"transactions\":{}}}", "[".repeat(10_000)),
            format!("{{\"transactions\":[{}null]}}", "{},".repeat(50_000)),
            r#"{"transactions":[],"transactions":[{}]}"#.to_owned(),
            sound.replace("[]", "[[]]"),
            sound.replace("[]", "{}"),
            sound.replace("15.00", "1e99999999"),
            sound.replace("15.00", "\"15.00\""),
            sound.replace("SUCCESS", "success"),
            sound.replace("0000", "0"),
        ] {
            if body == sound {
                continue;
            }
            let out = look_up(config, &query, TOKEN, NOW).unwrap();
            let answer = out.reply(&head(200, &[]), body.as_bytes(), NOW);
            let told: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(
                told["outcome"],
                "unknown",
                "{} {body:.200}: {told}",
                fixture.name()
            );
            assert_eq!(answer.concludes, None);
            assert!(answer.body.len() < 16 * 1024, "{} bytes", answer.body.len());
        }
    });
}

#[test]
fn a_success_with_an_absurd_id_stays_in_proportion_and_breaks_out_of_nothing() {
    each(|fixture, config| {
        let call = fixture.call();
        for pointer in fixture
            .needed
            .iter()
            .filter(|pointer| pointer.ends_with("id"))
        {
            let dispatch = sent(config, "k-1", &call).unwrap();
            let (reply, _) = fixture.success_reply(&call, &dispatch);
            let mut reply: Value = serde_json::from_str(&reply).unwrap();
            *reply.pointer_mut(pointer).unwrap() =
                json!("x\",\"status\":\"succeeded\r\n\u{0}".repeat(2_000));
            let reply = reply.to_string();
            let answer = dispatch.sent.reply(&head(200, &[]), reply.as_bytes(), 1);
            let body = checked(&answer);
            assert!(
                body["code"].is_string() || body["status"] == fixture.means,
                "{body}"
            );
            assert!(answer.body.len() <= reply.len() + 1024);
        }
    });
}

fn retry_after(value: &[u8]) -> Option<Vec<u8>> {
    let fixture = fixture("moyasar");
    let mut headers = Headers::default();
    headers.text(":status", "429".into());
    headers.push(&b"retry-after"[..], value);
    let dispatch = sent(&fixture.config_once(), "k-1", &fixture.call()).unwrap();
    let answer = dispatch.sent.reply(&ReplyHead::of(&headers), b"", 1);
    checked(&answer);
    answer.headers.first("retry-after").map(<[u8]>::to_vec)
}

#[test]
fn a_retry_after_comes_back_and_breaks_out_of_nothing() {
    for value in [&b"120"[..], b"0", b"Wed, 21 Oct 2026 07:28:00 GMT"] {
        assert_eq!(retry_after(value).as_deref(), Some(value));
    }
    for value in [
        &b"1\r\nx-evil: 1"[..],
        b"1\0",
        b"\xff",
        &[b'9'; 41],
        "١".as_bytes(),
        b"\t1",
        b"1\x7f",
    ] {
        assert_eq!(retry_after(value), None, "{value:?}");
    }
}

/// RFC 9110, 10.2.3: seconds or a date.
#[test]
fn a_retry_after_that_is_none_by_its_form_does_not_come_back() {
    let passed: Vec<&str> = [
        "x-evil", "-1", "1, 2", "soon", "", "<script>", "1.5", "0x10",
    ]
    .into_iter()
    .filter(|value| retry_after(value.as_bytes()).is_some())
    .collect();
    assert!(passed.is_empty(), "{passed:?}");
}

#[test]
fn headers_that_stand_twice_or_lie_are_refused() {
    let config = fixture("moyasar").config_once();
    let code = |extra: &[(&'static str, &[u8])], without: &str| {
        let mut headers = Headers::default();
        for (name, value) in call_headers("k-1")
            .iter()
            .filter(|(name, _)| *name != without.as_bytes())
        {
            headers.push(name.to_vec(), value.to_vec());
        }
        for (name, value) in extra {
            headers.push(name.as_bytes(), value.to_vec());
        }
        match open(&config, &headers, NOW) {
            Opening::Read(_) => "read".to_owned(),
            Opening::Answer(answer) => checked(&answer)["code"].as_str().unwrap().to_owned(),
            Opening::NotOurs => "not ours".to_owned(),
        }
    };
    assert_eq!(code(&[], ""), "read");
    assert_eq!(code(&[], "idempotency-key"), "idempotency-key-missing");
    assert_eq!(
        code(&[("idempotency-key", b"k-1")], ""),
        "idempotency-key-invalid"
    );
    assert_eq!(
        code(&[("idempotency-key", b"k 1")], "idempotency-key"),
        "idempotency-key-invalid"
    );
    assert_eq!(
        code(&[("idempotency-key", b"\xff")], "idempotency-key"),
        "idempotency-key-invalid"
    );
    assert_eq!(code(&[], "content-type"), "unsupported-media-type");
    for media in [
        &b"text/plain"[..],
        b"application/json2",
        b"application/jsonp",
        b"application/problem+json",
        b"",
        b"\xff",
        b"application/json, text/plain",
        b"application/json; charset=utf-16",
        b"application/json;charset=\"latin1\"",
        b"json",
        b"application/x-www-form-urlencoded",
    ] {
        assert_eq!(
            code(&[("content-type", media)], "content-type"),
            "unsupported-media-type",
            "{media:?}"
        );
    }
    assert_eq!(
        code(&[("content-type", b"application/json")], ""),
        "unsupported-media-type"
    );
    for media in [
        &b"application/json"[..],
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b"application/json;charset=\"UTF-8\"",
        b" application/json ; x=y",
    ] {
        assert_eq!(
            code(&[("content-type", media)], "content-type"),
            "read",
            "{media:?}"
        );
    }
    for coding in [&b"gzip"[..], b"br", b"identity, gzip", b"\xff"] {
        assert_eq!(
            code(&[("content-encoding", coding)], ""),
            "unsupported-media-type",
            "{coding:?}"
        );
    }
    assert_eq!(code(&[("content-encoding", b"identity")], ""), "read");
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[0-9]{1,12}(\\.[0-9]{1,4})?".prop_map(Value::from),
        select(vec![
            "full",
            "bog",
            "moyasar",
            "begateway",
            "bbmsl",
            "USD",
            "JPY",
            "KWD",
            "CLF",
            "HKD",
            "usd",
            ".",
            "..",
            "0",
            "1",
            "10.00",
            "4922"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let name = prop_oneof![
            select(vec![
                "provider",
                "payment",
                "amount",
                "id",
                "reference",
                "value",
                "currency",
                "reason",
                "full",
                "Provider",
                "__proto__"
            ])
            .prop_map(str::to_owned),
            any::<String>(),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..6)
                .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(cases(800))]

    #[test]
    fn any_call_is_sent_or_answered_from_the_catalogue(
        which in 0..FIXTURES.len(),
        members in proptest::collection::vec((select(PLACES.to_vec()), value()), 0..6),
        key in "[!-~]{1,30}",
    ) {
        let fixture = &FIXTURES[which];
        let config = fixture.config_once();
        let mut call = fixture.call();
        for (pointer, value) in members {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            if let Some(Value::Object(members)) = call.pointer_mut(parent) {
                members.insert(name.to_owned(), value);
            }
        }
        match sent(&config, &key, &call) {
            Ok(dispatch) => {
                // Only a full refund goes out without an amount.
                prop_assert_eq!(fixture.wire_amount(&dispatch).is_none(), call["amount"] == "full");
                for (_, value) in dispatch.headers.iter() {
                    prop_assert!(value.iter().all(|b| (0x20..0x7f).contains(b)), "{:?}", value);
                }
            }
            Err(answer) => {
                let body = checked(&answer);
                prop_assert_eq!(&body["outcome"], "not_refunded");
                let code = body["code"].as_str().unwrap();
                prop_assert!(["invalid-request", "idempotency-key-invalid"].contains(&code), "{}", body);
            }
        }
    }

    #[test]
    fn any_json_at_all_is_answered_from_the_catalogue(which in 0..FIXTURES.len(), body in value()) {
        let answer = sent(&FIXTURES[which].config_once(), "k-1", &body);
        if let Err(answer) = answer {
            prop_assert_eq!(&checked(&answer)["outcome"], "not_refunded");
        }
    }

    #[test]
    fn any_bytes_at_all_are_answered_from_the_catalogue(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let answer = sent_bytes(&FIXTURES[0].config_once(), "k-1", &body);
        prop_assert!(answer.is_err_and(|answer| checked(&answer)["outcome"] == "not_refunded"));
    }

    #[test]
    fn any_header_values_are_taken_or_answered(
        values in proptest::collection::vec((
            select(vec![":path", ":method", "content-type", "content-encoding", "content-length", "idempotency-key", "traceparent", "b3", "x-b3-x"]),
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), "[ -~]{0,40}".prop_map(String::into_bytes)],
        ), 0..8),
    ) {
        let mut headers = Headers::default();
        headers.text("x-request-id", "request-1".into());
        headers.text(":path", "/v1/refunds".into());
        headers.text(":method", "POST".into());
        for (name, value) in &values {
            headers.push(name.as_bytes(), value.clone());
        }
        if let Opening::Answer(answer) = open(&FIXTURES[0].config_once(), &headers, NOW) {
            checked(&answer);
        }
    }

    #[test]
    fn a_header_map_is_read_whole_or_not_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Some(headers) = Headers::decode(&bytes) {
            let again = headers.encode();
            prop_assert_eq!(&bytes[..again.len()], &again[..]);
        }
    }

    #[test]
    fn a_header_map_whose_sizes_lie_is_no_map_or_another_but_never_a_panic(
        pairs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..12), proptest::collection::vec(any::<u8>(), 0..12)), 0..5),
        at in any::<usize>(), lie in prop_oneof![any::<u32>(), 0u32..40, Just(u32::MAX)],
    ) {
        let mut headers = Headers::default();
        for (name, value) in &pairs {
            headers.push(name.clone(), value.clone());
        }
        let mut bytes = headers.encode();
        let read = Headers::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &headers);
        let fields = 1 + 2 * pairs.len();
        let at = 4 * (at % fields);
        bytes[at..at + 4].copy_from_slice(&lie.to_le_bytes());
        if let Some(read) = Headers::decode(&bytes) {
            let size: usize = read.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(size <= bytes.len());
        }
    }
}

#[test]
fn a_header_map_that_announces_four_billion_pairs_allocates_none_of_them() {
    for count in [u32::MAX, u32::MAX / 8, 1 << 29, 1 << 20] {
        let mut bytes = count.to_le_bytes().to_vec();
        bytes.extend([0; 64]);
        assert!(quick("a lying count", || Headers::decode(&bytes).is_none()));
    }
}

#[test]
fn times_at_the_ends_of_time_do_not_panic() {
    each(|fixture, config| {
        let body = fixture.call().to_string();
        let ends = [i64::MIN, -1, 0, i64::MAX, NOW.unix_ms];
        for (unix_ms, steady_ms) in ends.iter().flat_map(|one| ends.map(|other| (*one, other))) {
            let now = Now { unix_ms, steady_ms };
            let sent = send_with(
                config,
                &call_headers("k-1"),
                body.as_bytes(),
                "t",
                now,
                &mut StubSigner,
            );
            if let Ok(dispatch) = sent {
                checked(&dispatch.sent.reply(&head(500, &[]), b"", 1));
            }
        }
    });
}
