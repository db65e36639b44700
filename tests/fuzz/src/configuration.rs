//! The plugin configuration: taken whole, or refused with pointers into it and without a secret.
//!
//! An input is the configuration's text. Every environment variable but a few holds a canary.

use std::rc::Rc;
use std::sync::LazyLock;

use refund_filter::config::{Config, ProviderEntry};
use refund_filter::headers::Headers;
use serde_json::json;

use crate::harness::{Step, no_line_ends, step};
use crate::json::{self, Json, Unread};
use core_testbed::fixtures::{FIXTURES, TOKEN, checked};
use core_testbed::{call_headers, golden_file};

/// A sound private key.
fn private_key() -> &'static str {
    golden_file("bbmsl/private_key.pem")
}

/// What stands in every secret that is looked for. The seeds have it in their inline ones.
const CANARY: &str = "CANARY";

fn env(name: &str) -> Option<String> {
    match name {
        "KEY" => Some(private_key().to_owned()),
        "EMPTY" => Some(String::new()),
        "BROKEN" => Some("CANARY\r\nbroken".to_owned()),
        _ if name.starts_with('N') => None,
        _ => Some("CANARY-from-the-environment\n".to_owned()),
    }
}

pub fn check(data: &[u8]) {
    let read = Config::read(data, &env);
    let json = match json::read(data) {
        Ok(json) => json,
        Err(Unread::NotJson) => {
            let faults = read.expect_err("no JSON");
            let pointers: Vec<&str> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
            assert_eq!(pointers, [""]);
            return;
        }
        Err(Unread::TooDeep) => return,
    };
    // A member's name is told, whatever it is; a value is not.
    let mut names = String::new();
    let mut elsewhere = String::new();
    json.walk(None, &mut |name, json| {
        names.extend(name.into_iter().chain(["\n"]));
        if name != Some("inline") {
            elsewhere.extend(json.scalar().into_iter().chain(["\n"]));
        }
    });
    let named = names.contains(CANARY);
    elsewhere.push_str(&names);
    let canary_is_a_name = elsewhere.contains(CANARY);
    match read {
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in &faults {
                let (pointer, detail) = (&fault.pointer, &fault.detail);
                assert!(json.takes_pointer(pointer), "{pointer} in {json:?}");
                let sentence = detail.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit())
                    && detail.ends_with('.')
                    && !detail.chars().any(char::is_control);
                assert!(sentence, "{detail}");
                assert!(named || !pointer.contains(CANARY), "{pointer}");
                assert!(!detail.contains(CANARY), "{detail}");
                no_part_of_the_key(detail, &names);
            }
            assert_eq!(
                faults,
                Config::read(data, &env).expect_err("the same again")
            );
        }
        Ok(config) => {
            let shown = format!("{config:?}");
            assert!(canary_is_a_name || !shown.contains(CANARY), "{shown}");
            no_part_of_the_key(&shown, &elsewhere);
            is_known(&json);
            let config = Rc::new(config);
            is_sound(&config);
            for entry in config.providers() {
                is_usable(&config, entry, canary_is_a_name);
            }
        }
    }
}

/// Unless it stands where no secret does, too.
fn no_part_of_the_key(text: &str, elsewhere: &str) {
    static PARTS: LazyLock<Vec<&str>> = LazyLock::new(|| {
        let lines = private_key().lines().filter(|line| !line.starts_with('-'));
        lines.map(|line| &line[..line.len().min(24)]).collect()
    });
    let told = |part: &&str| text.contains(*part) && !elsewhere.contains(*part);
    assert!(!PARTS.iter().any(told), "{text}");
}

/// Nothing in it that the contract does not name, and nothing twice.
fn is_known(json: &Json) {
    let only = |json: &Json, known: &[&str]| {
        for (name, _) in json.members().expect("an object") {
            assert!(known.contains(&name.as_str()), "{name}");
        }
    };
    assert!(!json.any(|_, json| !json.doubled().is_empty()), "{json:?}");
    only(json, &["path", "providers"]);
    let providers = json.get("providers").and_then(Json::members);
    for (_, provider) in providers.expect("providers") {
        let kind = provider.get("kind").and_then(Json::text).expect("a kind");
        let own: &[&str] = match kind {
            "bog" => &["token"],
            "moyasar" => &["api_key", "credentials"],
            "begateway" => &["shop_id", "secret_key", "credentials", "default_reason"],
            "bbmsl" => &["merchant_id", "declined_codes", "signing"],
            other => panic!("{other}"),
        };
        only(
            provider,
            &[&["kind", "base_url", "currencies"], own].concat(),
        );
        for (name, known) in [
            (
                "token",
                &["cluster", "url", "client_id", "client_secret"][..],
            ),
            ("api_key", &["inline", "env", "filter_state", "header"]),
            ("secret_key", &["inline", "env", "filter_state", "header"]),
            ("signing", &["keys", "signer", "transit"]),
        ] {
            if let Some(part) = provider.get(name) {
                only(part, known);
            }
        }
    }
}

fn is_sound(config: &Config) {
    assert!(config.path.starts_with('/'), "{}", config.path);
    assert!(
        config
            .path
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"?#".contains(&b))
    );
    assert!(config.providers().next().is_some());
    for header in &config.secret_headers {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        assert!(!header.is_empty() && header.bytes().all(plain), "{header}");
        assert!(
            ![
                "host",
                "idempotency-key",
                "content-type",
                "content-length",
                "x-request-id"
            ]
            .contains(&header.as_str())
        );
    }
    for entry in config.providers() {
        let name = &entry.name;
        assert!((1..=64).contains(&name.len()));
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        );
        let url = &entry.base_url;
        assert!(["http", "https"].contains(&url.scheme));
        assert!(!url.authority.is_empty());
        let plain = |b: u8| b.is_ascii_graphic() && !b"@?#\\".contains(&b);
        assert!(url.authority.bytes().all(|b| plain(b) && b != b'/'));
        assert!(url.path.bytes().all(plain));
        assert!(url.path.is_empty() || url.path.starts_with('/') && !url.path.ends_with('/'));
        if let Some(reason) = &entry.default_reason {
            assert!((1..=255).contains(&reason.chars().count()));
        }
    }
}

/// A configuration that is taken makes requests, or answers out of the catalogue.
fn is_usable(config: &Rc<Config>, entry: &ProviderEntry, canary_is_a_name: bool) {
    let fixture = FIXTURES
        .iter()
        .find(|fixture| fixture.name() == entry.kind.name)
        .expect("a fixture of every kind");
    let mut call = fixture.call();
    call["provider"] = json!(entry.name);
    let mut headers = Headers::default();
    for (name, value) in call_headers("k-1").iter() {
        let value = match name {
            b":path" => config.path.as_bytes(),
            _ => value,
        };
        headers.push(name.to_vec(), value.to_vec());
    }
    match step(config, &headers, call.to_string().as_bytes(), TOKEN) {
        Some(Step::Answered(answer)) => {
            let body = checked(&answer);
            assert_eq!(body["outcome"], "not_refunded");
            let code = body["code"].as_str().unwrap_or_default();
            // A currency that is not listed, or a secret that this call does not bring.
            let expected = ["invalid-request", "gateway-error", "signing-unavailable"];
            assert!(expected.contains(&code), "{body}");
            assert!(
                code != "invalid-request" || entry.currencies.is_some(),
                "{body}"
            );
            assert!(canary_is_a_name || !answer.body.contains(CANARY), "{body}");
        }
        Some(Step::Leaving(dispatch)) => {
            assert!(no_line_ends(&dispatch.headers), "{:?}", dispatch.headers);
            json::read(dispatch.body.as_bytes()).expect("JSON");
        }
        Some(Step::Calling(callout)) => {
            let request = callout.request();
            assert!(entry.query_first && *request.cluster == *entry.cluster);
            assert!(no_line_ends(&request.headers), "{:?}", request.headers);
            json::read(request.body.as_bytes()).expect("JSON");
        }
        other => panic!("{}: {other:?}", config.path),
    }
}
