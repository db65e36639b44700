//! Writes the seeds: `cargo run --example seeds` in this folder, then `cargo +nightly fuzz cmin
//! TARGET`, which keeps what differs. They are the golden files' calls, replies and configurations, the fixtures'
//! and a few made by hand.

use std::fs;
use std::path::Path;

use core_testbed::fixtures::{FIXTURES, sent};
use core_testbed::{config, resolve_files};
use fuzz_properties::look_up;
use fuzz_properties::reply::{FULL, PROVIDER, STATUSES};
use serde_json::{Value, json};

fn main() {
    goldens();
    fixtures();
    by_hand();
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new("../../fuzz/corpus").join(target);
    fs::create_dir_all(&folder).expect("the corpus's folder");
    fs::write(folder.join(format!("seed-{name}")), bytes).expect("a seed");
}

fn goldens() {
    for (which, fixture) in FIXTURES.iter().enumerate() {
        let folder = Path::new("../providers")
            .join(fixture.name())
            .join("golden");
        for file in fs::read_dir(folder).expect("golden files") {
            let path = file.expect("a file").path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let stem = path.file_stem().expect("a name").to_string_lossy();
            let name = format!("{}-{stem}", fixture.name());
            let case: Value =
                serde_json::from_slice(&fs::read(&path).expect("its text")).expect("JSON");
            let mut provider = case["provider"].clone();
            resolve_files(&mut provider);
            let configuration = json!({"providers": { fixture.name(): provider }});
            write(
                "configuration",
                &name,
                configuration
                    .to_string()
                    .replace("golden-", "CANARY-")
                    .as_bytes(),
            );
            if let Some(query) = case["look_up"]["query"].as_str() {
                look_up_seeds(&name, which, query, &case["provider_reply"]);
                continue;
            }
            let key = case["call"]["idempotency_key"].as_str().unwrap_or("k-1");
            write(
                "key",
                &name,
                format!("{}{key}", char::from(which as u8 * 2)).as_bytes(),
            );
            let body = &case["call"]["body"];
            let head = format!(
                ":method: POST\n:path: /v1/refunds\ncontent-type: application/json\nidempotency-key: {key}\n"
            );
            write("call", &name, format!("{head}\n{body}").as_bytes());
            let reply = &case["provider_reply"];
            if let (Some(status), Some(body)) = (reply["status"].as_u64(), reply["body"].as_str()) {
                reply_seed(&name, which, 0, status, body);
            }
        }
    }
}

fn look_up_seeds(name: &str, which: usize, query: &str, reply: &Value) {
    write("query", name, query.as_bytes());
    let fixture = &FIXTURES[which];
    let payment: Value = serde_json::from_str(fixture.payment).expect("a payment");
    let asked = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("payment_id="));
    let (Some(asked), Some(body)) = (asked, reply["body"].as_str()) else {
        return;
    };
    let ours = payment["id"].as_str().expect("an id");
    let body = body.replace(asked, ours);
    let mut how = if query.contains("&id=") {
        look_up::BY_ID
    } else {
        0
    };
    how |= if query.contains("&key=") {
        look_up::BY_KEY
    } else {
        0
    };
    let status = STATUSES
        .iter()
        .position(|known| Some(u64::from(*known)) == reply["status"].as_u64())
        .unwrap_or_default();
    for (name, more) in [
        (name.to_owned(), 0),
        (format!("{name}-first"), look_up::FIRST),
        (format!("{name}-remembered"), look_up::REMEMBERED),
    ] {
        let head = [
            (which << look_up::PROVIDER) as u8 | how | more,
            status as u8,
        ];
        write("look_up", &name, &[&head, body.as_bytes()].concat());
    }
}

fn reply_seed(name: &str, which: usize, how: u8, status: u64, body: &str) {
    let status = STATUSES
        .iter()
        .position(|known| u64::from(*known) == status);
    let mut bytes = vec![
        (which << PROVIDER) as u8 | how,
        status.unwrap_or_default() as u8,
    ];
    bytes.extend_from_slice(body.as_bytes());
    write("reply", name, &bytes);
}

fn fixtures() {
    for (which, fixture) in FIXTURES.iter().enumerate() {
        let name = fixture.name();
        let mut provider = fixture.provider_config();
        resolve_files(&mut provider);
        let configuration = json!({"path": "/v1/refunds", "providers": { name: provider }});
        write("configuration", name, configuration.to_string().as_bytes());
        let mut call = fixture.call();
        write("call", name, call.to_string().as_bytes());
        for full in [false, true] {
            if full && !fixture.takes_full {
                continue;
            }
            let mut provider = fixture.provider_config();
            if full {
                call["amount"] = json!("full");
                provider["currencies"] = json!([fixture.currency]);
            }
            let Ok(dispatch) = sent(&config(name, &provider), "k-1", &call) else {
                panic!("the fixture's call is not sent");
            };
            let (success, _) = fixture.success_reply(&call, &dispatch);
            let how = if full { FULL } else { 0 };
            for status in [200, 201, 400, 422] {
                reply_seed(
                    &format!("{name}-success-{status}-{how}"),
                    which,
                    how,
                    status,
                    &success,
                );
            }
            let word = fixture.word.rsplit('/').next().unwrap_or_default();
            for other in fixture
                .pending
                .iter()
                .chain(fixture.declined)
                .chain(&["error"])
            {
                // The deciding word is the last of its name in these pages, or the only one.
                if let Some((before, after)) = success.rsplit_once(&format!("\"{word}\": \"")) {
                    let after = after.split_once('"').map_or("", |(_, after)| after);
                    let text = format!("{before}\"{word}\": \"{other}\"{after}");
                    reply_seed(&format!("{name}-{other}-{how}"), which, how, 200, &text);
                }
            }
            for code in ["2002", "F.0108", "already_refunded", "still processing"] {
                let refusal = fixture.refusal_reply(code, "4111 1111 1111 1111");
                reply_seed(&format!("{name}-{code}-{how}"), which, how, 422, &refusal);
            }
        }
    }
}

fn by_hand() {
    let head = ":method: POST\n:path: /v1/refunds\ncontent-type: application/json; charset=utf-8\n";
    let tracing = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate: a=b\nb3: 0\n\
                   x-b3-traceid: 1\nx-forwarded-proto: https\ncookie: a=b\nauthorization: Bearer x\n";
    let moyasar = r#"{"provider":"by-header","payment":{"id":"a/b c"},"amount":{"value":"1","currency":"SAR"}}"#;
    for (name, secret) in [("there", "x-refund-moyasar-key: sk\n"), ("missing", "")] {
        let call = format!("{head}idempotency-key: \"k-1\"\n{tracing}{secret}\n{moyasar}");
        write("call", &format!("by-header-{name}"), call.as_bytes());
    }
    for (name, body) in [
        (
            "by-openbao",
            r#"{"provider":"by-openbao","payment":{"id":"1"},"amount":{"value":"1.5","currency":"HKD"}}"#,
        ),
        (
            "with-a-reason",
            r#"{"provider":"with-a-reason","payment":{"id":"1"},"amount":"full","reference":"a\"b"}"#,
        ),
        (
            "riyal-alone",
            r#"{"provider":"riyal-alone","payment":{"id":"1"},"amount":{"value":"1","currency":"USD"}}"#,
        ),
        (
            "twice",
            r#"{"provider":"bog","provider":"bog","payment":{"id":"1","id":"2"},"amount":{"x~/y":1}}"#,
        ),
    ] {
        write("call", name, body.as_bytes());
    }
    let sound = FIXTURES[0].call();
    for (name, path, more) in [
        ("preview", "/v1/refunds/preview", ""),
        ("with-a-query", "/v1/refunds?dry_run=true", ""),
        ("old-header", "/v1/refunds", "refund_dry-run: true\n"),
    ] {
        let head = head.replace("/v1/refunds\n", &format!("{path}\n"));
        let call = format!("{head}idempotency-key: k-1\n{more}\n{sound}");
        write("call", name, call.as_bytes());
    }
    let other = ":method: GET\n:path: /other\ncontent-type: text/plain\ncontent-encoding: gzip\ncontent-length: 65537\n\n{}";
    write("call", "other", other.as_bytes());

    for (name, configuration) in [
        (
            "injected",
            json!({"providers": {
            "m": {"kind": "moyasar", "base_url": "https://pg.moyasar.com", "credentials": "injected"},
            "b": {"kind": "begateway", "base_url": "http://h:1/x", "credentials": "injected", "default_reason": "r"}}}),
        ),
        (
            "transit",
            json!({"providers": {"b": {"kind": "bbmsl", "base_url": "https://h", "merchant_id": "3",
            "signing": {"transit": {"cluster": "c", "mount": "m/n", "key": "k", "namespace": "n",
                "token": {"filter_state": "s"}}}}}}),
        ),
        (
            "by-env",
            json!({"path": "/r", "providers": {"b": {"kind": "bbmsl", "base_url": "https://h", "merchant_id": 3,
            "declined_codes": ["1", "0000"], "currencies": ["HKD"], "signing": {"signer": "vm", "keys": [
                {"id": "a", "private_key": {"env": "KEY"}, "not_before": "2026-11-01T00:00:00Z",
                 "not_after": "2027-11-01T00:00:00Z"},
                {"id": "a", "private_key": {"header": "x-key"}}]}}}}),
        ),
        (
            "faults",
            json!({"path": 1, "x/y~z": {}, "providers": {"": 1, "a": {"kind": "x"}, "b": {"kind": "bog", "token":
            {"client_secret": {"env": "NONE", "inline": "CANARY"}}}, "c": {"kind": "moyasar", "api_key": "CANARY"}}}),
        ),
    ] {
        write("configuration", name, configuration.to_string().as_bytes());
    }

    for (name, text) in [
        ("value", "10.50"),
        ("exponent", "1.5e1"),
        ("zeros", "15.00000000000000000000"),
        ("largest", "18446744073709551615"),
        ("over", "18446744073709551616"),
        ("negative", "-0.0"),
        ("tiny", "1e-400"),
        ("huge", "1e99999999999"),
    ] {
        let input = [&[7, 2][..], &1050u64.to_le_bytes(), text.as_bytes()].concat();
        write("money", name, &input);
    }
    for currency in 0..160u8 {
        let input = [
            &[currency, currency % 5][..],
            &u64::from(currency).pow(3).to_le_bytes(),
            b"1.234",
        ]
        .concat();
        write("money", &format!("currency-{currency}"), &input);
    }

    for (name, value) in [
        ("quoted", &b"\x00\"a\\\"b\\\\c\""[..]),
        ("twice", b"\x00k\0k"),
        ("v7", b"\x030191f5a7-44d3-7430-8739-2d80821416bf"),
        ("upper", b"\x010F8FAD5B-D9CB-469F-A165-70867728950E"),
        ("none", b"\xff"),
        ("joined", b"\x00k, k"),
        ("text", b"\x00k\xc3\xa9"),
    ] {
        write("key", name, value);
    }

    for (name, status, body) in [
        (
            "token",
            200u16,
            r#"{"access_token":"CANARY-access-token","token_type":"Bearer","expires_in":300}"#,
        ),
        (
            "epoch",
            200,
            r#"{"access_token":"t","token_type":"bearer","expires_in":1795334700}"#,
        ),
        (
            "epoch-ms",
            200,
            r#"{"access_token":"t","expires_in":"1795334700000"}"#,
        ),
        (
            "fraction",
            200,
            r#"{"access_token":"t","expires_in":3.6e3}"#,
        ),
        (
            "refused",
            401,
            r#"{"error":"unauthorized_client","error_description":"no CANARY-bog-client-secret"}"#,
        ),
        (
            "basic",
            429,
            r#"{"error":1,"error_description":"MTAwMDE6Q0FOQVJZLWJvZy1jbGllbnQtc2VjcmV0"}"#,
        ),
        ("failed", 503, "<html>"),
    ] {
        let input = [&[0][..], &status.to_le_bytes(), body.as_bytes()].concat();
        write("token", name, &input);
    }
    for (name, record) in [
        ("empty", r#"{"token":null,"fetch":null,"failure":null}"#),
        (
            "record",
            r#"{"token":["CANARY-access-token",1795334700000],"fetch":{"id":1,"until_ms":1795334406000},"failure":null}"#,
        ),
        (
            "failure",
            r#"{"token":null,"fetch":null,"failure":{"kind":"Refused","status":401,"code":"c","message":"m","retry_after":null}}"#,
        ),
    ] {
        write("token", name, &[&[1], record.as_bytes()].concat());
    }
    let events = b"\x02\x01\x00\x01\x00\x02\x0c\x00\x05\x01\x00\x00\x07\x01\x00\x03\x00\x05\x00\x04\x00\x01\x00\x03\xff";
    write("token", "events", events);
}
