//! Look-ups and previews: what a query may be, and what a provider's word means for the refund
//! under a key. (What may be said for certain at all is tests/core/truth.rs, a look at the payment
//! before it is refunded tests/core/query_first.rs.)

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use core_testbed::fixtures::{FIXTURES, TOKEN, head};
use core_testbed::gateway::{
    Asked, Gateway, KEY, MISMATCH, NOT_SHOWN, SETTLE_MS, SUCCEEDED, fixture, json_of, open_refunds,
    proofs, says, told,
};
use core_testbed::{NOW, Out, call_headers, call_reply, look_up_headers, look_up_with};
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Opening, Step, open};
use refund_filter::guard::Claim;
use refund_filter::headers::Headers;
use serde_json::{Value, json};

#[test]
fn what_is_found_under_the_key_is_what_the_next_call_is_answered() {
    for gateway in open_refunds() {
        let name = gateway.fixture.name();
        let found = gateway.look_up("&key=k-1", &gateway.shows_it());
        says(&found, SUCCEEDED);
        let again = gateway.refund(200, None);
        assert!(again.replayed, "{name}");
        let (told, found) = (json_of(&again), json_of(&found));
        for member in ["id", "status", "amount", "provider", "payment"] {
            assert_eq!(told[member], found[member], "{name} {member}");
        }
        // Asked again, the provider is asked again.
        says(&gateway.look_up("&key=k-1", &gateway.shows_it()), SUCCEEDED);
    }
}

#[test]
fn a_refund_that_failed_is_a_refusal_to_the_next_call() {
    for gateway in open_refunds() {
        let Some(failed) = gateway.fixture.shown_failed else {
            continue;
        };
        let name = gateway.fixture.name();
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
        assert!(!gateway.refund(500, Some("")).replayed || gateway.fixture.by_key == "look_up");
        // Nobody who knows the amount has told this gateway: what the provider shows under the key,
        // or the id, is the answer.
        let strange = Gateway::of(name);
        let more = if gateway.fixture.by_id_alone {
            format!("&key=k-1&id={id}")
        } else {
            "&key=k-1".to_owned()
        };
        if gateway.fixture.by_key == "same_key" {
            says(&strange.look_up(&more, &other), SUCCEEDED);
        }
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
                match gateway.fixture.shows_one {
                    // It was asked for one refund, and this is a list.
                    Some(_) => ("provider-reply-unreadable", "unknown", "look_up"),
                    None => MISMATCH,
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
        let mut shown = gateway.shows(other, &id, 1_000, done);
        if let Some(one) = gateway.fixture.shows_one {
            shown = one(&serde_json::from_str(&shown).unwrap(), &id).to_string();
        }
        gateway.told(gateway.ask(&query), &shown);
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
    let (payment, _, done) = gateway.names();
    let shown = gateway.shows_it();
    // Nothing is known of the key, and nothing is guessed from the amount.
    let not_told = gateway.look_up("&key=k-1", &shown);
    says(&not_told, ("refund-ambiguous", "unknown", "no"));
    gateway.refund(200, None);
    let another = gateway.shows(&payment, "another-id", 1_000, done);
    says(&gateway.look_up("&key=k-1", &another), NOT_SHOWN);
    // An id beside the key that is not the key's own.
    says(
        &gateway.look_up("&key=k-1&id=another-id", &another),
        MISMATCH,
    );
    // An id alone is asked for as it is.
    says(&gateway.look_up("&id=another-id", &another), SUCCEEDED);
    assert!(!gateway.refund(200, None).replayed);
    says(&gateway.look_up("&key=k-1", &shown), SUCCEEDED);
    assert!(gateway.refund(200, None).replayed);
}

#[test]
fn a_proof_is_overtaken_by_another_call_with_the_key() {
    for (name, proof) in proofs() {
        // The key is in flight when the provider is asked, when it answers, or both; or it has been
        // sent with in between.
        for (sent_before, sent_after, open_before) in [
            (true, false, false),
            (false, true, false),
            (false, true, true),
        ] {
            let gateway = Gateway::of(name);
            if open_before && gateway.fixture.by_key == "same_key" {
                gateway.lost();
                gateway.later(SETTLE_MS);
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
                let answer = dispatch.sent.reply(&head(500, &[]), b"", 1);
                assert_eq!(gateway.counted(answer).1, None, "{name}");
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
        let (status, body) = match gateway.fixture.by_id_alone {
            true => (200, &*success),
            false => (500, ""),
        };
        gateway.settled(dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1));
        gateway.look_up("&key=k-1", &gateway.shows_it());
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
                let answer = asked.reply(&head(status, &[]), body.as_bytes(), NOW);
                let (code, outcome, retry) = told(&answer);
                // What the provider refuses to tell of a settled key it will refuse again; all else
                // can be asked again.
                let for_good = matches!(
                    &*code,
                    "provider-rejected" | "payment-not-found" | "refund-declined"
                );
                let expected = if for_good { "no" } else { "look_up" };
                assert_eq!(
                    (&*outcome, &*retry),
                    ("unknown", expected),
                    "{}",
                    answer.body
                );
                assert_eq!((&answer.settles, &answer.concludes), (&None, &None));
                assert!(answer.look_up);
            }
        }
    }
}

fn faults(config: &Rc<Config>, query: &str) -> Vec<String> {
    let headers = look_up_headers(query);
    let Err(answer) = look_up_with(config, &headers, Claim::Unguarded, TOKEN, NOW) else {
        return Vec::new();
    };
    let body = json_of(&answer);
    assert_eq!(body["code"], "invalid-request", "{body}");
    // A loop that obeys must come to an end.
    assert_eq!(
        (&body["outcome"], &body["retry"]),
        (&json!("unknown"), &json!("corrected")),
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
        // BOG is sent no references.
        (format!("{sound}&reference=r"), &["/key"]),
        (
            "provider=bog&payment_reference=o&id=1".into(),
            &["/payment_id"],
        ),
        (
            "provider=bog&payment_id=..&id=.&reference=..".into(),
            &["/id", "/payment_id", "/reference"],
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
        let Err(answer) = look_up_with(&config, &headers, Claim::Unguarded, TOKEN, NOW) else {
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
        let Ok(Out::Routed(dispatch)) =
            look_up_with(&config, &headers, Claim::Unguarded, TOKEN, NOW)
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
        let Opening::Read(reading) = open(
            &fixture.config(),
            &look_up_headers(&query),
            NOW,
            &|_| None,
            &|_| None,
        ) else {
            panic!("not read")
        };
        let answer = reading.accept(b"{}", &|_| None).unwrap_err();
        says(&answer, ("invalid-request", "unknown", "corrected"));
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

/// The same call to the path of previews.
fn to_preview(headers: &Headers<'_>) -> Headers<'static> {
    let mut preview = Headers::default();
    for (name, value) in headers.iter() {
        let value = match name {
            b":path" => String::from_utf8(value.to_vec())
                .unwrap()
                .replace("/v1/refunds", "/v1/refunds/preview")
                .into_bytes(),
            _ => value.to_vec(),
        };
        preview.push(name.to_vec(), value);
    }
    preview
}

fn previewed(asked: Asked) -> Answer {
    match asked {
        Asked::Answered(answer) => answer,
        Asked::Sent(_) => panic!("sent, or a token is fetched"),
    }
}

#[test]
fn a_preview_shows_the_request_and_no_secret_and_takes_nothing() {
    for fixture in FIXTURES {
        let name = fixture.name();
        for query_first in [false, true] {
            let mut provider = fixture.provider_config();
            provider["query_first"] = json!(query_first);
            let gateway = Gateway::with(name, &provider);
            let before = gateway.memory.data.0.borrow().clone();
            let refund =
                previewed(gateway.send_with(&to_preview(&call_headers(KEY)), &fixture.call()));
            let query = look_up_headers(&gateway.query("&key=k-1"));
            let look_up = previewed(gateway.send_look_up(&to_preview(&query)));
            for (answer, method) in [
                (&refund, "POST"),
                (&look_up, if fixture.signs() { "POST" } else { "GET" }),
            ] {
                assert_eq!(
                    (answer.status, answer.word),
                    (200, "preview"),
                    "{}",
                    answer.body
                );
                assert_eq!((&answer.settles, &answer.concludes), (&None, &None));
                let body = json_of(answer);
                assert_eq!(body["preview"], true);
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
                let scheme = fixture.authorization.and_then(|text| text.split_once(' '));
                match scheme {
                    None => {
                        let sent: Value =
                            serde_json::from_str(body["body"].as_str().unwrap()).unwrap();
                        assert_eq!(sent["signature"], "[redacted]", "{body}");
                        assert!(
                            !answer.body.contains(&STANDARD.encode([0x5a; 256])),
                            "{body}"
                        );
                    }
                    Some((scheme, _)) => assert_eq!(
                        body["headers"]["authorization"],
                        format!("{scheme} [redacted]")
                    ),
                }
            }
            // Nothing was taken: the key is as good as new, and what is sent is what was shown.
            assert_eq!(*gateway.memory.data.0.borrow(), before, "{name}");
            if query_first {
                continue;
            }
            let Asked::Sent(Out::Routed(dispatch)) = gateway.send() else {
                panic!("{name}: not sent")
            };
            let shown = json_of(&refund);
            if !fixture.signs() {
                assert_eq!(shown["body"], dispatch.body);
            }
            let path =
                String::from_utf8(dispatch.headers.first(":path").unwrap().to_vec()).unwrap();
            assert!(shown["url"].as_str().unwrap().ends_with(&path));
        }
    }
}

#[test]
fn a_preview_under_a_used_key_says_nothing_of_it() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        gateway.lost();
        let shown = gateway.send_with(&to_preview(&call_headers(KEY)), &fixture.call());
        assert_eq!(previewed(shown).status, 200);
        let faulty = gateway.send_with(&to_preview(&call_headers(KEY)), &json!({}));
        says(
            &previewed(faulty),
            ("invalid-request", "not_refunded", "corrected"),
        );
    }
}

#[test]
fn a_preview_needs_the_credentials_and_makes_no_signature() {
    for fixture in FIXTURES {
        let (name, member) = (fixture.name(), fixture.credential);
        let mut provider = fixture.provider_config();
        *provider.pointer_mut(member).unwrap() = json!({"filter_state": "not.there"});
        let gateway = Gateway::with(name, &provider);
        let call = gateway.fixture.call();
        let answer = previewed(gateway.send_with(&to_preview(&call_headers(KEY)), &call));
        assert_eq!(
            (answer.status, told(&answer).1),
            (503, "not_refunded".into())
        );
    }
    // OpenBao is not asked either.
    let mut provider = fixture("bbmsl").provider_config();
    provider["signing"] = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "bbmsl", "token": {"inline": "CANARY-token"},
    }});
    let gateway = Gateway::with("bbmsl", &provider);
    let call = gateway.fixture.call();
    let answer = previewed(gateway.send_with(&to_preview(&call_headers(KEY)), &call));
    assert!(answer.body.contains("[redacted]") && !answer.body.contains("CANARY"));
}

/// A slip that meant a preview must not refund.
#[test]
fn what_once_asked_for_a_dry_run_is_refused_in_every_spelling() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        for name in [
            "refund-dry-run",
            "refund_dry_run",
            "refund-dryrun",
            "refunddryrun",
            "refund_dry-run",
            "-refund--dry-run-",
        ] {
            for value in ["true", "false", "yes", ""] {
                for mut headers in [
                    call_headers(KEY),
                    look_up_headers(&gateway.query("&key=k-1")),
                ] {
                    headers.push(name.as_bytes().to_vec(), value.as_bytes().to_vec());
                    for headers in [to_preview(&headers), headers] {
                        let Opening::Read(reading) =
                            open(&gateway.config, &headers, NOW, &|_| None, &|_| None)
                        else {
                            panic!("not read")
                        };
                        let body = match headers.first(":method") {
                            Some(b"POST") => fixture.call().to_string(),
                            _ => String::new(),
                        };
                        let answer = reading.accept(body.as_bytes(), &|_| None).unwrap_err();
                        let (code, _, retry) = told(&answer);
                        assert_eq!(
                            (&*code, &*retry),
                            ("invalid-request", "corrected"),
                            "{name}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_refund_call_has_no_query() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        for (query, refused) in [
            ("?dry_run=true", true),
            ("?a", true),
            ("?provider=bog", true),
            ("??", true),
            ("?", false),
        ] {
            for path in ["/v1/refunds", "/v1/refunds/preview"] {
                let mut headers = Headers::default();
                for (name, value) in call_headers(KEY).iter() {
                    let value = match name {
                        b":path" => format!("{path}{query}").into_bytes(),
                        _ => value.to_vec(),
                    };
                    headers.push(name.to_vec(), value);
                }
                match gateway.send_with(&headers, &fixture.call()) {
                    Asked::Answered(answer) if refused => {
                        says(&answer, ("invalid-request", "not_refunded", "corrected"));
                        let errors = json_of(&answer)["errors"].clone();
                        assert_eq!(errors.as_array().unwrap().len(), 1, "{errors}");
                    }
                    Asked::Answered(answer) => assert_eq!(answer.status, 200),
                    Asked::Sent(_) => assert!(!refused && path == "/v1/refunds", "{query}"),
                }
            }
        }
    }
}

#[test]
fn other_paths_are_not_ours() {
    let config = fixture("bog").config();
    for path in [
        "/v1/refund",
        "/v1/refunds/",
        "/v1/refunds/previe",
        "/v1/refunds/preview/",
        "/v1/refunds/preview/x",
        "/v1/refundspreview",
        "/v1/refunds/Preview",
    ] {
        for method in ["POST", "GET"] {
            let mut headers = Headers::default();
            headers.text(":method", method.to_owned());
            headers.text(":path", path.to_owned());
            let opening = open(&config, &headers, NOW, &|_| None, &|_| None);
            assert!(matches!(opening, Opening::NotOurs), "{path}");
        }
    }
}

#[test]
fn a_look_up_by_callout_that_comes_to_nothing_says_so() {
    let gateway = Gateway::of("bbmsl");
    let out = gateway.ask(&gateway.query("&key=k-1"));
    let Out::Callout(callout) = out else {
        panic!("by the route")
    };
    let reply = call_reply(
        callout,
        &head(504, &[]),
        b"upstream request timeout",
        NOW,
        &|_| None,
        None,
    );
    let Step::Answered(answer) = reply else {
        panic!("{reply:?}")
    };
    says(&answer, ("provider-timeout", "unknown", "look_up"));
}
