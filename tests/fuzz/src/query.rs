//! The query of a look-up: taken as the contract has it, and asked for to the byte; or refused with
//! pointers into it.
//!
//! An input is what stands after the question mark.

use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;
use serde_json::{Value, json};

use crate::harness::{Step, no_line_ends, step};
use crate::key;
use core_testbed::fixtures::{FIXTURES, TOKEN};
use core_testbed::{configs, look_up_headers};

const NAMES: [&str; 6] = [
    "provider",
    "payment_id",
    "payment_reference",
    "id",
    "key",
    "reference",
];

thread_local! {
    static CONFIG: Rc<Config> = {
        let mut providers = json!({});
        for fixture in FIXTURES {
            providers[fixture.name()] = fixture.provider_config();
        }
        configs(&providers)
    };
}

pub fn check(data: &[u8]) {
    // What Envoy never hands on.
    let Ok(query) = std::str::from_utf8(data) else {
        return;
    };
    if query.bytes().any(|b| b <= b' ' || b == b'#' || b == 0x7f) {
        return;
    }
    let config = CONFIG.with(Rc::clone);
    let headers = look_up_headers(query);
    let read = read(query);
    match step(&config, &headers, b"", TOKEN) {
        Some(Step::Answered(answer)) => {
            let said: Value = serde_json::from_str(&answer.body).expect("JSON");
            assert_eq!(said["code"], "invalid-request", "{said}");
            assert_eq!(
                (&said["outcome"], &said["retry"]),
                (&json!("unknown"), &json!("corrected"))
            );
            assert!(answer.body.len() < 16 * 1024);
            let errors = said["errors"].as_array().expect("errors");
            assert!(!errors.is_empty());
            for error in errors {
                assert!(
                    error["pointer"]
                        .as_str()
                        .is_some_and(|text| text.starts_with('/')),
                    "{said}"
                );
            }
            assert!(
                !read.is_some_and(|read| is_sound(&read)),
                "{query} is refused: {said}"
            );
        }
        Some(Step::Leaving(dispatch)) => {
            let read = read.unwrap_or_else(|| panic!("{query} is taken"));
            assert!(is_sound(&read), "{query} is taken");
            assert!(no_line_ends(&dispatch.headers));
            let path = dispatch.headers.first(":path").expect("a path");
            let path = std::str::from_utf8(path).expect("text");
            let payment = &read["payment_id"];
            let key = read.get("key").map(|text| key_of(text, &read["provider"]));
            let (before, name) = match &*read["provider"] {
                "bog" => ("/payments/v1/receipt/", payment),
                "moyasar" => ("/v1/orders/", payment),
                "begateway" => match (read.get("id"), &key, read.get("reference")) {
                    (Some(id), ..) => ("/beyag/transactions/", id),
                    (None, Some(key), _) => ("/beyag/transactions/tracking_id/", key),
                    (None, None, Some(reference)) => {
                        ("/beyag/transactions/tracking_id/", reference)
                    }
                    (None, None, None) => panic!("{query} is taken"),
                },
                other => panic!("{other} asks by no GET, or is not described here"),
            };
            let segment = path
                .strip_prefix(before)
                .unwrap_or_else(|| panic!("{path}"));
            assert!(!segment.contains(['/', '?', '#']), "{path}");
            assert_eq!(decoded(segment, false).as_ref(), Some(name), "{path}");
            assert_eq!(dispatch.body, "");
        }
        Some(Step::Calling(callout)) => {
            let read = read.unwrap_or_else(|| panic!("{query} is taken"));
            assert!(
                is_sound(&read) && read["provider"] == "bbmsl",
                "{query} is taken"
            );
            let request = callout.request();
            assert!(no_line_ends(&request.headers));
            let body: Value = serde_json::from_str(&request.body).expect("JSON");
            let inner: Value =
                serde_json::from_str(body["request"].as_str().expect("a text")).expect("JSON");
            let id = inner["orderId"].as_u64().map(|id| id.to_string());
            assert_eq!(id.as_ref(), read.get("payment_id"));
            let reference = inner["merchantReference"].as_str();
            assert_eq!(reference, read.get("payment_reference").map(String::as_str));
        }
        other => panic!("{other:?}"),
    }
}

/// As forms are written: the parameters, if each stands there once and is text.
fn read(query: &str) -> Option<BTreeMap<String, String>> {
    let mut read = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if read
            .insert(decoded(name, true)?, decoded(value, true)?)
            .is_some()
        {
            return None;
        }
    }
    Some(read)
}

fn decoded(text: &str, form: bool) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *byte == b'%');
        let hex = hex.filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[2..];
            }
            None => {
                bytes.push(if form && *byte == b'+' { b' ' } else { *byte });
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn key_of(text: &str, provider: &str) -> String {
    let key = key::read(&[text.as_bytes()]).expect("a key");
    key::for_provider(provider, &key, provider == "moyasar")
}

/// The contract's rules.
fn is_sound(read: &BTreeMap<String, String>) -> bool {
    let length = |name: &str, most: usize| {
        read.get(name)
            .is_none_or(|text| (1..=most).contains(&text.chars().count()))
    };
    let there = |name: &str| read.contains_key(name);
    let no_dots = |name: &str| {
        !read
            .get(name)
            .is_some_and(|text| text == "." || text == "..")
    };
    let provider = read.get("provider").map(String::as_str);
    let Some(provider) =
        provider.filter(|name| FIXTURES.iter().any(|fixture| fixture.name() == *name))
    else {
        return false;
    };
    let payment = match provider {
        "bbmsl" => {
            let numeric = |id: &String| {
                (1..=18).contains(&id.len())
                    && id.bytes().all(|b| b.is_ascii_digit())
                    && !id.starts_with('0')
            };
            read.get("payment_id").is_none_or(numeric)
                && (there("payment_id") || there("payment_reference"))
        }
        // It is sent references.
        "begateway" => there("payment_id") && (there("id") || there("key") || there("reference")),
        "bog" | "moyasar" => there("payment_id") && (there("id") || there("key")),
        other => panic!("{other} is not described here"),
    };
    read.keys().all(|name| NAMES.contains(&&**name))
        && length("payment_id", 128)
        && length("payment_reference", 64)
        && length("id", 255)
        && length("reference", 64)
        && no_dots("payment_id")
        && no_dots("id")
        && no_dots("reference")
        && read
            .get("key")
            .is_none_or(|text| key::read(&[text.as_bytes()]).is_ok())
        && payment
}
