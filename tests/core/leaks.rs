//! No secret comes out: not by `Debug`, not in an answer, not in a fault of the configuration, not
//! by way of a provider that sends it back. Every secret here has a canary in it.

use std::fmt::Debug;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use core_testbed::fixtures::{FIXTURES, Fixture, TOKEN, checked, fixture, head, header, sent};
use core_testbed::gateway::Gateway;
use core_testbed::{
    NOW, StubSigner, call_headers, finish, golden_file, look_up, open, resolve_files,
};
use refund_filter::config::{Auth, Config};
use refund_filter::exchange::{Opening, Step, Waiting};
use refund_filter::problem::Fault;
use refund_filter::secret::Secret;
use refund_filter::token::{self, Failure, FailureKind, Record, Token};
use serde_json::{Value, json};

/// No canary in it, no part of a key, and none of a key's numbers.
#[track_caller]
fn clean(what: &str, text: &str) {
    assert!(!text.contains("CANARY"), "{what}: {text}");
    for file in ["private_key.pem", "private_key.pkcs1.pem"] {
        for line in golden_file(&format!("bbmsl/{file}"))
            .lines()
            .filter(|line| !line.starts_with('-'))
        {
            let part = &line[..line.len().min(24)];
            assert!(!text.contains(part), "{what} has a part of {file}");
        }
    }
    let numbers = text.split(|c: char| !c.is_ascii_hexdigit());
    for number in numbers {
        assert!(number.len() < 64, "{what} has a long number: {number}");
    }
}

#[track_caller]
fn clean_debug(what: &str, value: &impl Debug) {
    clean(what, &format!("{value:?}"));
    clean(what, &format!("{value:#?}"));
}

fn waiting(fixture: &Fixture) -> Option<Box<Waiting>> {
    let Opening::Read(reading) = open(&fixture.config(), &call_headers("k-1"), NOW) else {
        panic!("not read")
    };
    match finish(
        reading,
        fixture.call().to_string().as_bytes(),
        NOW,
        &mut StubSigner,
        &|_| None,
    ) {
        Step::Waiting(waiting) => Some(waiting),
        _ => None,
    }
}

#[test]
fn the_secrets_are_there_to_be_leaked() {
    for fixture in FIXTURES {
        let dispatch = sent(&fixture.config(), "k-1", &fixture.call()).unwrap();
        let authorization = header(&dispatch, "authorization");
        assert_eq!(authorization.as_deref(), fixture.authorization);
    }
}

#[test]
fn debug_shows_no_secret_at_any_step() {
    for fixture in FIXTURES {
        let name = fixture.name();
        let config = fixture.config();
        clean_debug(name, &config);
        clean_debug(name, config.provider(name).unwrap());
        let opening = open(&config, &call_headers("k-1"), NOW);
        clean_debug(name, &opening);
        let Opening::Read(reading) = opening else {
            panic!("not read")
        };
        let prepared = finish(
            reading,
            fixture.call().to_string().as_bytes(),
            NOW,
            &mut StubSigner,
            &|_| None,
        );
        clean_debug(name, &prepared);
        let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
        clean_debug(name, &dispatch);
        clean_debug(name, &dispatch.sent);
        for (status, body) in [(200, "{}"), (401, "{}"), (500, ""), (302, "x")] {
            let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
            let answer = dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1);
            clean_debug(name, &answer);
            clean(name, &answer.body);
            let refused = (status == 401 && fixture.secrets.contains(&TOKEN))
                .then(|| Secret::new(TOKEN.into()));
            assert_eq!(answer.refused_token.as_deref(), refused.as_ref());
        }
    }
}

#[test]
fn debug_of_a_token_shows_none() {
    let token = Token {
        value: Secret::new(TOKEN.into()),
        use_until_ms: NOW.steady_ms,
    };
    let mut record = Record::default();
    record.ask(NOW, 1);
    clean_debug("record", &record);
    record.settle(1, &Ok(token.clone()));
    clean_debug("token", &token);
    clean_debug("record", &record);
    clean_debug("turn", &record.ask(NOW.plus(-1), 2));
    clean_debug("look", &record.look(NOW.plus(-1)));
    let waiting = waiting(&FIXTURES[0]).unwrap();
    clean_debug("waiting", &waiting);
    let Auth::Token(endpoint) = &waiting.entry().auth else {
        panic!("no token")
    };
    let headers = token::request_headers(endpoint, waiting.client_secret());
    assert!(headers.first("authorization").is_some());
    clean_debug("headers", &headers);
}

/// What a provider may send back of what it got: the secret itself, and the header's value.
fn echoes(fixture: &Fixture) -> Vec<String> {
    let dispatch = sent(&fixture.config(), "k-1", &fixture.call()).unwrap();
    let mut echoes: Vec<String> = fixture
        .secrets
        .iter()
        .map(|secret| (*secret).to_owned())
        .collect();
    if let Some(value) = header(&dispatch, "authorization") {
        let (_, credential) = value.split_once(' ').unwrap();
        echoes.push(credential.to_owned());
    }
    echoes
}

#[test]
fn a_credential_that_a_provider_sends_back_is_not_passed_on() {
    let mut faults = Vec::new();
    for fixture in FIXTURES {
        let config = fixture.config_once();
        for echo in echoes(fixture) {
            for text in [
                echo.clone(),
                format!("bad key {echo}!"),
                format!("{echo}{echo}"),
                format!("Authorization: Bearer {echo}"),
                format!("{}{echo}", "x".repeat(490)),
                format!("{echo}{}", "x".repeat(1000)),
            ] {
                for (code, message) in [(text.as_str(), "m"), ("c", text.as_str())] {
                    for status in [200, 400, 401, 403, 404, 409, 422, 429, 500, 302] {
                        for body in [
                            fixture.refusal_reply(code, message),
                            text.clone(),
                            json!(text).to_string(),
                        ] {
                            let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
                            let answer =
                                dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1);
                            checked(&answer);
                            if answer.body.contains(&echo) {
                                faults.push(format!(
                                    "{} {status} {body}: {}",
                                    fixture.name(),
                                    answer.body
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    let few: Vec<_> = faults.iter().take(5).map(String::as_str).collect();
    assert!(
        faults.is_empty(),
        "{} leaks, such as\n{}",
        faults.len(),
        few.join("\n")
    );
}

#[test]
fn a_credential_that_comes_back_in_a_look_up_is_not_passed_on_nor_kept() {
    for fixture in FIXTURES {
        let config = fixture.config_once();
        let shown: Value = serde_json::from_str(&fixture.shown(true)).unwrap();
        let payment: Value = serde_json::from_str(fixture.payment).unwrap();
        let payment = payment["id"].as_str().unwrap();
        for echo in echoes(fixture) {
            let mut bodies: Vec<String> = fixture
                .shown_words
                .iter()
                .map(|pointer| {
                    let mut shown = shown.clone();
                    let (parent, member) = pointer.rsplit_once('/').unwrap();
                    shown.pointer_mut(parent).unwrap()[member] = json!(format!("so {echo}!"));
                    shown.to_string()
                })
                .collect();
            bodies.push(fixture.refusal_reply(&echo, &echo));
            bodies.push(echo.clone());
            for (body, status) in bodies
                .iter()
                .flat_map(|body| [200, 400, 401, 404, 500].map(|status| (body, status)))
            {
                let query = format!(
                    "provider={}&payment_id={payment}&key=k-1&reference=r",
                    fixture.name()
                );
                let query = match fixture.by_id_alone {
                    true => format!("{query}&id={}", fixture.id),
                    false => query,
                };
                let out = look_up(&config, &query, TOKEN, NOW).unwrap();
                let answer = out.reply(&head(status, &[]), body.as_bytes(), NOW);
                assert!(!answer.body.contains(&echo), "{}", answer.body);
                let kept = answer.concludes.map(|conclusion| conclusion.answer.1);
                assert!(!kept.unwrap_or_default().contains(&echo), "{body}");
            }
        }
    }
}

/// The id is the provider's word, too, and a caller gets it as it stands.
#[test]
fn a_credential_that_comes_back_as_the_refunds_id_is_not_passed_on() {
    let mut leaks = Vec::new();
    for fixture in FIXTURES {
        let config = fixture.config_once();
        for pointer in fixture
            .needed
            .iter()
            .filter(|pointer| pointer.ends_with("id"))
        {
            for echo in echoes(fixture) {
                for id in [echo.clone(), format!("refund-{echo}")] {
                    let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
                    let (reply, _) = fixture.success_reply(&fixture.call(), &dispatch);
                    let mut reply: Value = serde_json::from_str(&reply).unwrap();
                    *reply.pointer_mut(pointer).unwrap() = json!(id);
                    let reply = reply.to_string();
                    let answer = dispatch.sent.reply(&head(200, &[]), reply.as_bytes(), 1);
                    checked(&answer);
                    if answer.body.contains(&echo) {
                        leaks.push(format!("{} {pointer}: {}", fixture.name(), answer.body));
                    }
                }
            }
        }
    }
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}

#[test]
fn a_secret_with_spaces_is_not_passed_on_in_whole_or_in_part() {
    let mut faults = Vec::new();
    for fixture in FIXTURES.iter().filter(|fixture| !fixture.signs()) {
        let (name, pointer) = (fixture.name(), fixture.credential);
        for secret in [
            "CANARY-long-first-part x",
            "x CANARY-long-second-part",
            "Bearer CANARY-prefixed",
            "CANARY one two",
        ] {
            let mut provider = fixture.provider_config();
            *provider.pointer_mut(pointer).unwrap() = json!({ "inline": secret });
            let config = core_testbed::config(name, &provider);
            for text in [secret.to_owned(), format!("bad key {secret}!")] {
                let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
                let reply = fixture.refusal_reply("c", &text);
                let answer = dispatch.sent.reply(&head(422, &[]), reply.as_bytes(), 1);
                checked(&answer);
                if answer.body.contains("CANARY") {
                    faults.push(format!("{name} {secret:?}: {}", answer.body));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_credential_in_the_words_of_a_success_is_not_passed_on() {
    for fixture in FIXTURES {
        let config = fixture.config_once();
        for (pointer, echo) in [
            ("/message", fixture.secrets.first()),
            ("/transaction/message", fixture.secrets.first()),
            ("/transaction/code", fixture.secrets.first()),
            ("/transactions/1/message", fixture.secrets.first()),
            ("/transactions/1/response_code", fixture.secrets.first()),
            ("/transactions/1/created_at", fixture.secrets.first()),
            ("/transaction/created_at", fixture.secrets.first()),
        ] {
            let Some(echo) = echo else { continue };
            let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
            let (reply, _) = fixture.success_reply(&fixture.call(), &dispatch);
            let mut reply: Value = serde_json::from_str(&reply).unwrap();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let Some(Value::Object(members)) = reply.pointer_mut(parent) else {
                continue;
            };
            members.insert(name.into(), json!(format!("using {echo} now")));
            let answer = dispatch
                .sent
                .reply(&head(200, &[]), reply.to_string().as_bytes(), 1);
            assert_eq!(
                checked(&answer)["status"],
                fixture.means,
                "{pointer}: {}",
                answer.body
            );
            clean(pointer, &answer.body);
        }
    }
}

#[test]
fn what_a_token_endpoint_sends_back_is_not_passed_on() {
    let secret = "CANARY-bog-client-secret";
    let basic = STANDARD.encode(format!("10001:{secret}"));
    let mut faults = Vec::new();
    for echo in [secret, &basic] {
        for kind in [
            FailureKind::Refused,
            FailureKind::RateLimited,
            FailureKind::Unreachable,
        ] {
            for (code, message) in [
                (Some(echo), None),
                (None, Some(echo)),
                (Some("unauthorized_client"), Some(echo)),
            ] {
                let failure = Failure {
                    kind,
                    status: Some(401),
                    code: code.map(str::to_owned),
                    message: message.map(|text| format!("no such client: {text}")),
                    retry_after: None,
                };
                let answer = waiting(&FIXTURES[0]).unwrap().without_token(&failure);
                checked(&answer);
                if answer.body.contains(echo) {
                    faults.push(answer.body);
                }
            }
        }
    }
    assert!(
        faults.is_empty(),
        "{} leaks, such as\n{}",
        faults.len(),
        faults[0]
    );
}

#[test]
fn the_token_endpoints_own_words_are_told_where_they_hold_no_secret() {
    let body = br#"{"error":"unauthorized_client","error_description":"Invalid client"}"#;
    let failure = token::read_reply(401, None, body, NOW).unwrap_err();
    let answer = waiting(&FIXTURES[0]).unwrap().without_token(&failure);
    let body = checked(&answer);
    assert_eq!(body["code"], "provider-auth-failed");
    assert_eq!(
        body["provider"],
        json!({"name": "bog", "status": 401, "code": "unauthorized_client", "message": "Invalid client"})
    );
}

#[test]
fn card_numbers_in_a_providers_words_are_masked() {
    let cards = [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "378282246310005",
        "6304000000000000000",
        "5555 5555 5555 4444",
    ];
    for fixture in FIXTURES {
        let config = fixture.config_once();
        for card in cards {
            let digits = |text: &str| {
                text.bytes()
                    .filter(u8::is_ascii_digit)
                    .map(char::from)
                    .collect::<String>()
            };
            let number = digits(card);
            for text in [
                card.to_owned(),
                format!("card {card} declined"),
                format!("PAN={card};"),
                format!("{}{card}", "x".repeat(490)),
            ] {
                for (code, message) in [(text.as_str(), "m"), ("c", text.as_str())] {
                    let reply = fixture.refusal_reply(code, message);
                    let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
                    let answer = dispatch.sent.reply(&head(422, &[]), reply.as_bytes(), 1);
                    let body = checked(&answer);
                    let word = format!(
                        "{} {}",
                        body["provider"]["code"], body["provider"]["message"]
                    );
                    assert!(
                        !digits(&word).contains(&number[..number.len() - 4]),
                        "{word}"
                    );
                    assert!(!word.contains(card), "{word}");
                }
            }
            // As a JSON number, too.
            let reply = fixture.refusal_reply("c", "m").replace("\"m\"", &number);
            let dispatch = sent(&config, "k-1", &fixture.call()).unwrap();
            let answer = dispatch.sent.reply(&head(422, &[]), reply.as_bytes(), 1);
            checked(&answer);
            assert!(!answer.body.contains(&number), "{}", answer.body);
        }
    }
}

#[test]
fn a_call_with_faults_is_answered_without_what_stood_in_it() {
    for fixture in FIXTURES {
        let config = fixture.config_once();
        for pointer in [
            "/provider",
            "/payment",
            "/amount",
            "/amount/value",
            "/amount/currency",
            "/x",
            "/payment/x",
            "/amount/x",
        ] {
            for value in [
                json!("CANARY"),
                json!(["CANARY"]),
                json!({"id": {"x": "CANARY"}, "value": "CANARY", "currency": "CANARY"}),
            ] {
                let mut call = fixture.call();
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                call.pointer_mut(parent).unwrap()[name] = value.clone();
                let answer = sent(&config, "k-1", &call).map(|_| ()).unwrap_err();
                checked(&answer);
                clean(pointer, &answer.body);
            }
        }
        let answer = core_testbed::fixtures::sent_bytes(&config, "k-1", b"{\"CANARY\": \"CANARY")
            .map(|_| ())
            .unwrap_err();
        clean("malformed", &answer.body);
    }
}

/// The faults of a configuration in which something was put at a pointer.
fn faults(fixture: &Fixture, pointer: &str, value: &Value) -> Vec<Fault> {
    let mut provider = fixture.provider_config();
    resolve_files(&mut provider);
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match provider.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[name.parse::<usize>().unwrap()] = value.clone(),
        parent => parent[name] = value.clone(),
    }
    let config = json!({"providers": {fixture.name(): provider}}).to_string();
    let env = |name: &str| (name == "CANARY_ENV").then(|| "CANARY\u{0}".to_owned());
    match Config::read(config.as_bytes(), &env) {
        Ok(config) => {
            if !fixture.open.contains(&pointer) {
                clean_debug(pointer, &config);
            }
            Vec::new()
        }
        Err(faults) => faults,
    }
}

#[test]
fn a_fault_of_the_configuration_never_holds_a_secret() {
    let mut places = Vec::new();
    for fixture in FIXTURES {
        places.push((fixture, "/unknown"));
        places.push((fixture, "/kind"));
        places.push((fixture, "/base_url"));
        places.push((fixture, "/currencies"));
        places.extend(
            fixture
                .configuration
                .iter()
                .map(|pointer| (fixture, *pointer)),
        );
    }
    let values = [
        json!(["CANARY"]),
        json!({"x": "CANARY"}),
        json!({"inline": ["CANARY"]}),
        json!({"inline": "CANARY\u{0}", "env": "X"}),
        json!({"inline": {"inline": "CANARY"}}),
        json!({"env": "CANARY_ENV", "inline": "CANARY"}),
        json!({"inlin": "CANARY"}),
        json!("https://user:CANARY@host"),
        json!("CANARY\r\n"),
        json!("CANARY\u{0}:"),
        json!("-----BEGIN PRIVATE KEY-----\nCANARY\n-----END PRIVATE KEY-----"),
        json!("-----BEGIN PRIVATE KEY-----\nQ0FOQVJZCANARY==\n-----END PRIVATE KEY-----"),
        json!("-----BEGIN CANARY-----"),
        json!({"inline": "-----BEGIN RSA PRIVATE KEY-----\nCANARY"}),
    ];
    let mut counted = 0;
    for (fixture, pointer) in places {
        for value in &values {
            let faults = faults(fixture, pointer, value);
            clean(pointer, &format!("{faults:?}"));
            counted += faults.len();
        }
    }
    assert!(counted > 300, "{counted}");
}

#[test]
fn a_key_that_is_cut_or_bent_is_refused_without_a_word_of_it() {
    let bbmsl = fixture("bbmsl");
    for file in [
        "private_key.pem",
        "private_key.pkcs1.pem",
        "private_key.der.b64",
    ] {
        let text = golden_file(&format!("bbmsl/{file}"));
        for cut in [10, 40, 200, text.len() / 2, text.len() - 60] {
            let bent = format!("{}!{}", &text[..cut], &text[cut..]);
            for value in [&text[..cut], &text[cut..], &bent] {
                let faults = faults(bbmsl, "/signing/keys/0/private_key/inline", &json!(value));
                assert_eq!(faults.len(), 1, "{file} {cut}: {faults:?}");
                clean(file, &format!("{faults:?}"));
            }
        }
    }
}

#[test]
fn text_that_is_no_json_is_refused_without_a_word_of_it() {
    for text in [
        "CANARY",
        "{\"providers\": \"CANARY",
        "{\"api_key\": CANARY}",
        "[\"CANARY\"]",
        "\"CANARY\"",
    ] {
        let faults = Config::read(text.as_bytes(), &|_| None).unwrap_err();
        clean(text, &format!("{faults:?}"));
    }
}

/// What the guard keeps outlives the call: it holds answers as callers get them, and no key's text.
#[test]
fn the_guard_stores_no_secret() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        let key = "callers-own-key";
        // A provider that sends back what it was shown, and a card number.
        let said = format!("{} 4111111111111111", fixture.secrets.join(" "));
        let reply = fixture.refusal_reply(&said, &said);
        gateway.refund_as(key, &fixture.call(), 500, Some(&reply));
        let stored = gateway.memory.data.0.borrow();
        assert!(
            stored
                .values()
                .any(|(bytes, _)| { String::from_utf8_lossy(bytes).contains("provider-error") })
        );
        for (name, (bytes, _)) in stored.iter() {
            let text = format!("{name} {}", String::from_utf8_lossy(bytes));
            clean(fixture.name(), &text);
            assert!(
                !text.contains(key) && !text.contains("4111111111111111"),
                "{text}"
            );
        }
    }
}
