//! The plugin configuration: what is taken, what is refused and where, and which key signs when.

use std::collections::BTreeMap;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use core_testbed::fixtures::{FIXTURES, checked, fixture, header, sent};
use core_testbed::{
    FailingSigner, NOW, StubSigner, call_headers, golden_file, open, resolve_files, send, send_with,
};
use refund_filter::clock::Now;
use refund_filter::config::{Auth, Config};
use refund_filter::exchange::{Dispatch, Opening};
use refund_filter::headers::Headers;
use refund_filter::problem::Fault;
use refund_filter::secret::{Secret, SecretSource};
use rsa_oracle::pkcs8::DecodePublicKey;
use rsa_oracle::sha2::{Digest, Sha256};
use rsa_oracle::{Pkcs1v15Sign, RsaPublicKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SECOND: &str = include_str!("../common/keys/second.pem");
const SECOND_PUBLIC: &str = include_str!("../common/keys/second.public.pem");

/// A fixture's provider with its key in it.
fn provider(name: &str) -> Value {
    let mut provider = fixture(name).provider_config();
    resolve_files(&mut provider);
    provider
}

/// The contract's example, with secrets that this test can give.
fn example() -> Value {
    json!({
        "path": "/v1/refunds",
        "providers": {
            "bog": {
                "kind": "bog",
                "base_url": "https://api.bog.ge/payments/v1",
                "currencies": ["GEL"],
                "token": {
                    "cluster": "bog-token",
                    "url": "https://oauth2.bog.ge/auth/realms/bog/protocol/openid-connect/token",
                    "client_id": "10001",
                    "client_secret": {"env": "BOG_CLIENT_SECRET"}
                }
            },
            "moyasar": {"kind": "moyasar", "base_url": "https://pg.moyasar.com", "api_key": {"env": "MOYASAR_API_KEY"}},
            "begateway": {"kind": "begateway", "base_url": "https://api.begateway.com", "shop_id": "361",
                          "secret_key": {"inline": "…"}, "default_reason": "refund"},
            "bbmsl": {"kind": "bbmsl", "base_url": "https://payapi.prod.bbmsl.com", "merchant_id": 3,
                      "signing": {"keys": [{"id": "2026-11", "private_key": {"env": "BBMSL_KEY"},
                                            "not_before": "2026-11-01T00:00:00Z", "not_after": "2027-11-01T00:00:00Z"}]}}
        }
    })
}

fn env(name: &str) -> Option<String> {
    let value = match name {
        "BOG_CLIENT_SECRET" => "bog-secret",
        "MOYASAR_API_KEY" => "moyasar-key\n",
        "BBMSL_KEY" => golden_file("bbmsl/private_key.pem"),
        "EMPTY" => "",
        "BLANK" => " \n",
        "BROKEN" => "a\r\nb",
        _ => return None,
    };
    Some(value.to_owned())
}

fn read(config: &Value) -> Result<Config, Vec<Fault>> {
    Config::read(config.to_string().as_bytes(), &env)
}

fn pointers(faults: Vec<Fault>) -> Vec<String> {
    for fault in &faults {
        let sentence = &fault.detail;
        assert!(
            sentence.len() > 10 && sentence.ends_with('.'),
            "no sentence: {sentence}"
        );
        assert!(
            sentence.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit()),
            "{sentence}"
        );
    }
    let mut pointers: Vec<String> = faults.into_iter().map(|fault| fault.pointer).collect();
    pointers.sort();
    pointers
}

/// The pointers of the faults of one provider, below it.
fn faults_of(provider: &Value) -> Vec<String> {
    match read(&json!({"providers": {"p": provider}})) {
        Ok(_) => Vec::new(),
        Err(faults) => pointers(faults)
            .into_iter()
            .map(|pointer| pointer.strip_prefix("/providers/p").unwrap().to_owned())
            .collect(),
    }
}

/// A provider with one member set, or removed.
fn with(name: &str, pointer: &str, value: Option<Value>) -> Value {
    let mut provider = provider(name);
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    let members = provider
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap();
    match value {
        Some(value) => members.insert(member.into(), value),
        None => members.remove(member),
    };
    provider
}

#[test]
fn the_contracts_example_is_taken_and_every_provider_of_it_works() {
    let config = Rc::new(read(&example()).unwrap());
    assert_eq!(config.path, "/v1/refunds");
    let names: Vec<&str> = config
        .providers()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(names, ["bbmsl", "begateway", "bog", "moyasar"]);
    for name in names {
        let dispatch = sent(&config, "k-1", &fixture(name).call()).unwrap();
        assert_eq!(dispatch.provider, name);
    }
    let dispatch = sent(&config, "k-1", &fixture("moyasar").call()).unwrap();
    // The line break at the end of a file is no part of the secret.
    assert_eq!(
        header(&dispatch, "authorization").unwrap(),
        "Bearer moyasar-key"
    );
}

#[test]
fn one_kind_may_be_configured_under_several_names() {
    let mut other = provider("moyasar");
    other["base_url"] = json!("https://pg.mysr.dev");
    let config =
        Rc::new(read(&json!({"providers": {"one": provider("moyasar"), "two": other}})).unwrap());
    let [one, two] = ["one", "two"].map(|name| {
        let mut call = fixture("moyasar").call();
        call["provider"] = json!(name);
        sent(&config, "k-1", &call).unwrap()
    });
    assert_eq!(header(&one, ":authority").unwrap(), "pg.moyasar.com");
    assert_eq!(header(&two, ":authority").unwrap(), "pg.mysr.dev");
    assert_ne!(one.body, two.body, "one key at both");
}

#[test]
fn the_path_can_be_chosen() {
    let config = Rc::new(
        read(&json!({"path": "/refunds", "providers": {"moyasar": provider("moyasar")}})).unwrap(),
    );
    let mut headers = Headers::default();
    headers.text(":path", "/v1/refunds".into());
    assert!(matches!(open(&config, &headers, NOW), Opening::NotOurs));
    let mut headers = Headers::default();
    headers.text(":path", "/refunds?x".into());
    assert!(!matches!(open(&config, &headers, NOW), Opening::NotOurs));
    for path in [
        json!(""),
        json!("v1"),
        json!("/a?b"),
        json!("/a#b"),
        json!("/a b"),
        json!("/é"),
        json!(1),
        json!(null),
        json!("/a\n"),
    ] {
        let faults = read(&json!({"path": path, "providers": {"moyasar": provider("moyasar")}}))
            .unwrap_err();
        assert_eq!(pointers(faults), ["/path"], "{path}");
    }
}

#[test]
fn what_is_no_configuration_is_refused() {
    for (text, pointer) in [
        ("", ""),
        ("{", ""),
        ("[]", ""),
        ("null", ""),
        ("\"x\"", ""),
        ("{}x", ""),
        ("{}", "/providers"),
        (r#"{"providers":[]}"#, "/providers"),
        (r#"{"providers":null}"#, "/providers"),
        (r#"{"providers":{}}"#, "/providers"),
        (r#"{"open_list":false}"#, "/providers"),
        (r#"{"open_list":true,"providers":[]}"#, "/providers"),
        (r#"{"open_list":true,"providers":{"a":1}}"#, "/providers/a"),
        (r#"{"open_list":true,"more":1}"#, "/more"),
        (r#"{"providers":{"a":1}}"#, "/providers/a"),
        (r#"{"providers":{"a":[]}}"#, "/providers/a"),
    ] {
        let faults = Config::read(text.as_bytes(), &env).unwrap_err();
        assert_eq!(pointers(faults), [pointer], "{text}");
    }
    assert!(Config::read(b"\xff", &env).is_err());
    // What is neither true nor false lists nothing.
    let faults = Config::read(br#"{"open_list":"yes"}"#, &env).unwrap_err();
    assert_eq!(pointers(faults), ["/open_list", "/providers"]);
    let list = Config::read(br#"{"open_list":true}"#, &env).unwrap();
    assert!(list.open_list && list.providers().next().is_none());
}

#[test]
fn every_bad_value_is_told_at_its_place() {
    let long = "x".repeat(256);
    let cases: &[(&str, &str, Option<Value>)] = &[
        ("moyasar", "/kind", None),
        ("moyasar", "/kind", Some(json!("stripe"))),
        ("moyasar", "/kind", Some(json!("Moyasar"))),
        ("moyasar", "/kind", Some(json!(1))),
        ("moyasar", "/base_url", None),
        ("moyasar", "/base_url", Some(json!(""))),
        ("moyasar", "/base_url", Some(json!("pg.moyasar.com"))),
        ("moyasar", "/base_url", Some(json!("ftp://pg.moyasar.com"))),
        ("moyasar", "/base_url", Some(json!("https://"))),
        ("moyasar", "/base_url", Some(json!("https:///x"))),
        (
            "moyasar",
            "/base_url",
            Some(json!("https://user:pass@host")),
        ),
        ("moyasar", "/base_url", Some(json!("https://host?q"))),
        ("moyasar", "/base_url", Some(json!("https://host/#f"))),
        ("moyasar", "/base_url", Some(json!("https://ho st"))),
        ("moyasar", "/base_url", Some(json!("https://host/\r\nx"))),
        ("moyasar", "/base_url", Some(json!("HTTPS//host"))),
        ("moyasar", "/base_url", Some(json!(["https://host"]))),
        ("moyasar", "/api_key", None),
        ("moyasar", "/api_key", Some(json!("sk"))),
        ("moyasar", "/api_key", Some(json!(null))),
        ("moyasar", "/api_key", Some(json!({}))),
        (
            "moyasar",
            "/api_key",
            Some(json!({"inline": "a", "env": "MOYASAR_API_KEY"})),
        ),
        ("moyasar", "/api_key", Some(json!({"inline": "\n"}))),
        ("moyasar", "/api_key", Some(json!({"inline": "a\r\nb"}))),
        ("moyasar", "/api_key", Some(json!({"env": "BLANK"}))),
        ("moyasar", "/api_key", Some(json!({"env": "BROKEN"}))),
        ("moyasar", "/api_key/inline", Some(json!(""))),
        ("moyasar", "/api_key/inline", Some(json!(1))),
        ("moyasar", "/currencies", Some(json!([]))),
        ("moyasar", "/currencies", Some(json!("SAR"))),
        ("moyasar", "/currencies", Some(json!({"SAR": true}))),
        ("moyasar", "/currencies", Some(json!(null))),
        ("begateway", "/shop_id", None),
        ("begateway", "/shop_id", Some(json!(361))),
        ("begateway", "/shop_id", Some(json!("3:61"))),
        ("begateway", "/shop_id", Some(json!(""))),
        ("begateway", "/secret_key", None),
        ("begateway", "/default_reason", Some(json!(""))),
        ("begateway", "/default_reason", Some(json!(1))),
        ("begateway", "/default_reason", Some(json!(long))),
        ("bog", "/token", None),
        ("bog", "/token", Some(json!("x"))),
        ("bog", "/token/cluster", None),
        ("bog", "/token/cluster", Some(json!(""))),
        ("bog", "/token/url", None),
        ("bog", "/token/url", Some(json!("/token"))),
        ("bog", "/token/client_id", None),
        ("bog", "/token/client_id", Some(json!(10001))),
        ("bog", "/token/client_secret", None),
        ("bbmsl", "/merchant_id", None),
        ("bbmsl", "/merchant_id", Some(json!(3.5))),
        ("bbmsl", "/merchant_id", Some(json!(-3))),
        ("bbmsl", "/merchant_id", Some(json!(""))),
        ("bbmsl", "/merchant_id", Some(json!(null))),
        ("bbmsl", "/merchant_id", Some(json!([3]))),
        ("bbmsl", "/declined_codes", Some(json!("2002"))),
        ("bbmsl", "/declined_codes", Some(json!({}))),
        ("bbmsl", "/signing", None),
        ("bbmsl", "/signing", Some(json!([]))),
        ("bbmsl", "/signing/keys", None),
        ("bbmsl", "/signing/keys", Some(json!([]))),
        ("bbmsl", "/signing/keys", Some(json!({}))),
    ];
    for (name, pointer, value) in cases {
        assert_eq!(
            faults_of(&with(name, pointer, value.clone())),
            [*pointer],
            "{name} {value:?}"
        );
    }
    // Faults within a list, and at an environment variable.
    for (name, pointer, value, at) in [
        (
            "moyasar",
            "/currencies",
            json!(["SAR", "sar", 1, "XXX"]),
            vec!["/currencies/1", "/currencies/2", "/currencies/3"],
        ),
        (
            "moyasar",
            "/api_key",
            json!({"env": "NOT_SET"}),
            vec!["/api_key/env"],
        ),
        (
            "moyasar",
            "/api_key",
            json!({"env": "EMPTY"}),
            vec!["/api_key/env"],
        ),
        (
            "moyasar",
            "/api_key",
            json!({"env": ""}),
            vec!["/api_key/env"],
        ),
        (
            "moyasar",
            "/api_key",
            json!({"env": 1}),
            vec!["/api_key/env"],
        ),
        (
            "bbmsl",
            "/declined_codes",
            json!(["2002", 2002, "", "0000"]),
            vec![
                "/declined_codes/1",
                "/declined_codes/2",
                "/declined_codes/3",
            ],
        ),
        (
            "bbmsl",
            "/signing/keys",
            json!(["x", 1]),
            vec!["/signing/keys/0", "/signing/keys/1"],
        ),
        ("bbmsl", "/cluster", json!(""), vec!["/cluster"]),
        ("bbmsl", "/cluster", json!(1), vec!["/cluster"]),
        ("bbmsl", "/cluster", json!(null), vec!["/cluster"]),
        ("bbmsl", "/query_first", json!("true"), vec!["/query_first"]),
        ("bbmsl", "/query_first", json!(1), vec!["/query_first"]),
        ("bbmsl", "/query_first", json!(null), vec!["/query_first"]),
    ] {
        assert_eq!(
            faults_of(&with(name, pointer, Some(value.clone()))),
            at,
            "{value}"
        );
    }
}

#[test]
fn what_is_sound_is_taken() {
    for (name, pointer, value) in [
        ("moyasar", "/base_url", json!("http://127.0.0.1:8080")),
        ("moyasar", "/base_url", json!("http://[::1]:8080/a/b/")),
        ("moyasar", "/currencies", json!(["SAR", "KWD"])),
        ("moyasar", "/api_key", json!({"env": "MOYASAR_API_KEY"})),
        ("bbmsl", "/merchant_id", json!("3")),
        ("bbmsl", "/merchant_id", json!(12_345_678_901_234_567u64)),
        ("bbmsl", "/declined_codes", json!([])),
        ("bbmsl", "/cluster", json!("another")),
        ("bbmsl", "/query_first", json!(true)),
        ("bbmsl", "/query_first", json!(false)),
        ("begateway", "/default_reason", json!("é".repeat(255))),
    ] {
        let nothing: [&str; 0] = [];
        assert_eq!(
            faults_of(&with(name, pointer, Some(value.clone()))),
            nothing,
            "{value}"
        );
    }
}

#[test]
fn a_provider_is_looked_at_by_its_own_cluster_and_first_only_where_that_is_configured() {
    for fixture in FIXTURES {
        let name = fixture.name();
        for (more, cluster, first, settle_ms) in [
            (json!({}), name, false, 300_000),
            (json!({"query_first": false}), name, false, 300_000),
            (
                json!({"cluster": "another", "query_first": true, "settle_seconds": 7}),
                "another",
                true,
                7_000,
            ),
        ] {
            let mut provider = provider(name);
            for (name, value) in more.as_object().unwrap() {
                provider[name] = value.clone();
            }
            let config = read(&json!({"providers": {name: provider}})).unwrap();
            let entry = config.provider(name).unwrap();
            assert_eq!(
                (&*entry.cluster, entry.query_first, entry.settle_ms),
                (cluster, first, settle_ms),
                "{more}"
            );
            assert_eq!(entry.route_cluster.as_deref(), more["cluster"].as_str());
        }
    }
}

#[test]
fn what_a_provider_may_have_is_checked() {
    for fixture in FIXTURES {
        let name = fixture.name();
        for (member, value, faults) in [
            ("minor_units", json!({"LBP": 0, "JPY": 4}), &[][..]),
            ("minor_units", json!({}), &[]),
            ("minor_units", json!({"LBP": 5}), &["/minor_units/LBP"]),
            ("minor_units", json!({"LBP": -1}), &["/minor_units/LBP"]),
            ("minor_units", json!({"LBP": "0"}), &["/minor_units/LBP"]),
            ("minor_units", json!({"LBP": 0.5}), &["/minor_units/LBP"]),
            ("minor_units", json!({"lbp": 0}), &["/minor_units/lbp"]),
            ("minor_units", json!(["LBP"]), &["/minor_units"]),
            ("settle_seconds", json!(1), &[]),
            ("settle_seconds", json!(86_400), &[]),
            ("settle_seconds", json!(0), &["/settle_seconds"]),
            ("settle_seconds", json!(86_401), &["/settle_seconds"]),
            ("settle_seconds", json!("300"), &["/settle_seconds"]),
            ("query_first", json!("true"), &["/query_first"]),
            ("query_first", json!(1), &["/query_first"]),
            ("cluster", json!(""), &["/cluster"]),
            ("currencies", json!([]), &["/currencies"]),
        ] {
            let provider = with(name, &format!("/{member}"), Some(value.clone()));
            assert_eq!(faults_of(&provider), faults, "{name} {value}");
        }
    }
}

#[test]
fn openbaos_public_keys_are_read_from_a_list_or_by_their_versions() {
    let pem = golden_file("bbmsl/public_key.pem");
    let transit = |public_keys: Value| {
        let transit = json!({"cluster": "openbao", "mount": "transit", "key": "k", "token": {"inline": "token"},
            "public_keys": public_keys});
        with("bbmsl", "/signing", Some(json!({"transit": transit})))
    };
    for sound in [json!([pem]), json!([pem, pem]), json!({"1": pem, "2": pem})] {
        let nothing: [&str; 0] = [];
        assert_eq!(faults_of(&transit(sound)), nothing);
    }
    let private = golden_file("bbmsl/private_key.pem");
    for (value, faults) in [
        (json!([]), &["/signing/transit/public_keys"][..]),
        (json!({}), &["/signing/transit/public_keys"]),
        (json!(pem), &["/signing/transit/public_keys"]),
        (json!([pem, "x"]), &["/signing/transit/public_keys/1"]),
        (json!([private]), &["/signing/transit/public_keys/0"]),
        (json!({"1": 1}), &["/signing/transit/public_keys/1"]),
    ] {
        assert_eq!(faults_of(&transit(value)), faults);
    }
}

#[test]
fn an_unknown_member_is_refused_at_every_level() {
    for fixture in FIXTURES {
        let name = fixture.name();
        let configured = fixture.provider_config();
        let object = |pointer: &&str| configured.pointer(pointer).is_some_and(Value::is_object);
        let own = fixture.configuration.iter().copied().filter(object);
        let levels: Vec<&str> = [""].into_iter().chain(own).collect();
        for level in levels {
            for member in ["x", "Kind", "base-url", "_comment"] {
                let pointer = format!("{level}/{member}");
                let faults = faults_of(&with(name, &pointer, Some(json!("value"))));
                assert!(faults.contains(&pointer), "{name} {pointer}: {faults:?}");
            }
        }
        // Members of another kind are unknown, too.
        for (member, owner) in [
            ("api_key", "moyasar"),
            ("shop_id", "begateway"),
            ("token", "bog"),
            ("signing", "bbmsl"),
            ("declined_codes", "bbmsl"),
            ("default_reason", "begateway"),
        ] {
            if owner != name {
                assert_eq!(
                    faults_of(&with(name, &format!("/{member}"), Some(json!("x")))),
                    [format!("/{member}")],
                    "{name}"
                );
            }
        }
    }
    let faults =
        read(&json!({"providers": {"moyasar": provider("moyasar")}, "route": 1, "a/b~c": 2}))
            .unwrap_err();
    assert_eq!(pointers(faults), ["/a~1b~0c", "/route"]);
}

#[test]
fn a_member_that_stands_twice_is_refused() {
    let provider = provider("moyasar").to_string();
    let twice = provider.replacen('{', r#"{"kind":"moyasar","#, 1);
    let text = format!(r#"{{"providers":{{"p":{twice}}}}}"#);
    assert_eq!(
        pointers(Config::read(text.as_bytes(), &env).unwrap_err()),
        ["/providers/p/kind"]
    );
    let text = format!(r#"{{"providers":{{"p":{provider},"p":{provider}}}}}"#);
    assert_eq!(
        pointers(Config::read(text.as_bytes(), &env).unwrap_err()),
        ["/providers/p"]
    );
}

#[test]
fn a_providers_name_is_one_that_routes_and_metrics_can_hold() {
    for name in ["a", "A-b_9", &"n".repeat(64)] {
        assert!(
            read(&json!({"providers": {name: provider("moyasar")}})).is_ok(),
            "{name}"
        );
    }
    for name in ["", "a b", "a.b", "é", "a\n", "a/b", "a:b", &"n".repeat(65)] {
        let faults = read(&json!({"providers": {name: provider("moyasar")}})).unwrap_err();
        assert_eq!(faults.len(), 1, "{name:?}: {faults:?}");
        let escaped: String = name.replace('/', "~1").chars().take(64).collect();
        assert_eq!(pointers(faults), [format!("/providers/{escaped}")]);
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let config = json!({
        "path": "refunds",
        "more": 1,
        "providers": {
            "a b": {"kind": "moyasar", "base_url": "x", "api_key": {"env": "NOT_SET"}, "currencies": ["usd"], "y": 1},
            "bog": {"kind": "bog", "base_url": "https://api.bog.ge", "token": {"url": "x", "client_id": "1", "client_secret": {"inline": ""}}},
            "none": {"kind": "none"},
            "bbmsl": {"kind": "bbmsl", "base_url": "https://h", "merchant_id": true, "signing": {"keys": [
                {"id": "", "private_key": {"inline": "x"}, "not_before": "yesterday"},
                {"private_key": {"inline": golden_file("bbmsl/private_key.pem")}, "not_before": "2027-01-01T00:00:00Z", "not_after": "2026-01-01T00:00:00Z"}
            ]}}
        }
    });
    assert_eq!(
        pointers(read(&config).unwrap_err()),
        [
            "/more",
            "/path",
            "/providers/a b",
            "/providers/a b/api_key/env",
            "/providers/a b/base_url",
            "/providers/a b/currencies/0",
            "/providers/a b/y",
            "/providers/bbmsl/merchant_id",
            "/providers/bbmsl/signing/keys/0/id",
            "/providers/bbmsl/signing/keys/0/not_before",
            "/providers/bbmsl/signing/keys/0/private_key",
            "/providers/bbmsl/signing/keys/1/id",
            "/providers/bbmsl/signing/keys/1/not_after",
            "/providers/bog/currencies",
            "/providers/bog/token/client_secret/inline",
            "/providers/bog/token/cluster",
            "/providers/bog/token/url",
            "/providers/none/base_url",
            "/providers/none/kind",
        ]
    );
}

#[test]
fn every_form_of_a_private_key_gives_one_signature() {
    let sign = |key: &str| {
        let mut provider = provider("bbmsl");
        provider["signing"]["keys"][0]["private_key"] = json!({ "inline": key });
        let config = Rc::new(read(&json!({"providers": {"bbmsl": provider}})).unwrap());
        send(
            &config,
            "k-1",
            fixture("bbmsl").call().to_string().as_bytes(),
            "",
            NOW,
        )
        .unwrap()
        .body
    };
    let pem = golden_file("bbmsl/private_key.pem");
    let wanted = sign(pem);
    for key in [
        golden_file("bbmsl/private_key.pkcs1.pem"),
        golden_file("bbmsl/private_key.der.b64"),
        &format!("\n {pem}\n\n"),
        &pem.replace('\n', "\r\n"),
        &format!("{}\n", golden_file("bbmsl/private_key.der.b64").trim()),
    ] {
        assert_eq!(sign(key), wanted, "{key}");
    }
    assert_ne!(sign(SECOND), wanted);
}

#[test]
fn what_is_no_private_rsa_key_of_2048_bits_is_refused_with_a_sentence() {
    let mut sentences = BTreeMap::new();
    let der = |pem: &str| {
        let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        lines
    };
    let short = include_str!("../common/keys/short.pem");
    let ec = include_str!("../common/keys/ec.pem");
    for (what, key) in [
        (
            "encrypted",
            include_str!("../common/keys/encrypted.pem").to_owned(),
        ),
        (
            "encrypted",
            include_str!("../common/keys/encrypted.pkcs1.pem").to_owned(),
        ),
        ("short", short.to_owned()),
        (
            "short",
            include_str!("../common/keys/short.pkcs1.pem").to_owned(),
        ),
        ("short", der(short)),
        ("no RSA", ec.to_owned()),
        ("no RSA", der(ec)),
        (
            "no RSA",
            include_str!("../common/keys/ed25519.pem").to_owned(),
        ),
        ("no private", golden_file("bbmsl/public_key.pem").to_owned()),
        (
            "no private",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".to_owned(),
        ),
        (
            "no private",
            "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----".to_owned(),
        ),
        ("garbage", "garbage!".to_owned()),
        ("garbage", "/etc/keys/bbmsl.pem".to_owned()),
        (
            "garbage",
            "-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----".to_owned(),
        ),
        ("garbage", "-----BEGIN PRIVATE KEY-----".to_owned()),
        ("garbage", "AAAA".to_owned()),
        (
            "garbage",
            STANDARD.encode(golden_file("bbmsl/private_key.pem")),
        ),
        (
            "cut",
            golden_file("bbmsl/private_key.pem")[..800].to_owned(),
        ),
    ] {
        let mut provider = provider("bbmsl");
        provider["signing"]["keys"][0]["private_key"] = json!({ "inline": key });
        let faults = read(&json!({"providers": {"bbmsl": provider}})).unwrap_err();
        let [fault] = faults.as_slice() else {
            panic!("{what}: {faults:?}")
        };
        assert_eq!(
            fault.pointer, "/providers/bbmsl/signing/keys/0/private_key",
            "{what}"
        );
        assert!(
            fault.detail.contains(' ') && fault.detail.ends_with('.'),
            "{fault:?}"
        );
        sentences
            .entry(what)
            .or_insert_with(Vec::new)
            .push(fault.detail.clone());
    }
    assert!(
        sentences["encrypted"]
            .iter()
            .all(|sentence| sentence.contains("encrypted")),
        "{sentences:?}"
    );
    assert!(
        sentences["short"]
            .iter()
            .all(|sentence| sentence.contains("2048")),
        "{sentences:?}"
    );
    assert!(
        sentences["no RSA"]
            .iter()
            .all(|sentence| sentence.contains("RSA")),
        "{sentences:?}"
    );
}

#[test]
fn a_key_whose_numbers_do_not_belong_together_is_refused() {
    // One bit in the private exponent's octets: the DER stays sound.
    let der = STANDARD
        .decode(golden_file("bbmsl/private_key.der.b64").trim())
        .unwrap();
    let mut refused = 0;
    for at in (300..der.len()).step_by(29) {
        let mut bent = der.clone();
        bent[at] ^= 1;
        let mut provider = provider("bbmsl");
        provider["signing"]["keys"][0]["private_key"] = json!({"inline": STANDARD.encode(&bent)});
        match read(&json!({"providers": {"bbmsl": provider}})) {
            Err(_) => refused += 1,
            // dP, dQ and qInv are not taken from the file but made anew: then the signature is the
            // key's.
            Ok(config) => {
                let body = fixture("bbmsl").call().to_string();
                let dispatch = send(&Rc::new(config), "k-1", body.as_bytes(), "", NOW).unwrap();
                assert!(
                    is_signed_by(&dispatch, golden_file("bbmsl/public_key.pem")),
                    "octet {at}"
                );
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

fn is_signed_by(dispatch: &Dispatch, public_pem: &str) -> bool {
    let body: Value = serde_json::from_str(&dispatch.body).unwrap();
    let signature = STANDARD
        .decode(body["signature"].as_str().unwrap())
        .unwrap();
    let digest = Sha256::digest(body["request"].as_str().unwrap());
    RsaPublicKey::from_public_key_pem(public_pem)
        .unwrap()
        .verify(Pkcs1v15Sign::new::<Sha256>(), &digest, &signature)
        .is_ok()
}

/// A ring of keys by id, `not_before` and `not_after`.
fn ring(keys: &[(&str, Option<&str>, Option<&str>)]) -> Rc<Config> {
    let keys: Vec<Value> = keys
        .iter()
        .map(|(id, from, until)| {
            let pem = if id.starts_with("second") {
                SECOND
            } else {
                golden_file("bbmsl/private_key.pem")
            };
            let mut key = json!({"id": id, "private_key": {"inline": pem}});
            if let Some(from) = from {
                key["not_before"] = json!(from);
            }
            if let Some(until) = until {
                key["not_after"] = json!(until);
            }
            key
        })
        .collect();
    let provider = with("bbmsl", "/signing/keys", Some(json!(keys)));
    Rc::new(read(&json!({"providers": {"bbmsl": provider}})).unwrap())
}

/// The id of the key that signs at a time, through the whole exchange; none where nothing is sent.
fn signs(config: &Rc<Config>, at: &str, more_ms: i64) -> Option<String> {
    let at = OffsetDateTime::parse(at, &Rfc3339).unwrap();
    let at = Now {
        unix_ms: at.unix_timestamp() * 1000 + more_ms,
        ..NOW
    };
    let body = fixture("bbmsl").call().to_string();
    match send_with(
        config,
        &call_headers("k-1"),
        body.as_bytes(),
        "",
        at,
        &mut StubSigner,
    ) {
        // Behind its id stands the key's fingerprint.
        Ok(dispatch) => Some(id_of(&dispatch.key_id.unwrap())),
        Err(answer) => {
            let body = checked(&answer);
            assert_eq!(body["code"], "signing-unavailable", "{body}");
            assert_eq!(
                (&body["outcome"], &body["retry"]),
                (&json!("not_refunded"), &json!("same_key"))
            );
            None
        }
    }
}

fn id_of(key_id: &str) -> String {
    let (id, fingerprint) = key_id.split_once(" sha256:").unwrap();
    assert_eq!(fingerprint.len(), 8, "{key_id}");
    id.to_owned()
}

#[test]
fn a_key_signs_from_its_first_second_until_its_last() {
    let config = ring(&[(
        "one",
        Some("2026-11-01T00:00:00Z"),
        Some("2027-11-01T00:00:00Z"),
    )]);
    assert_eq!(signs(&config, "2026-10-31T23:59:59Z", 999), None);
    assert_eq!(
        signs(&config, "2026-11-01T00:00:00Z", 0).as_deref(),
        Some("one")
    );
    assert_eq!(
        signs(&config, "2027-10-31T23:59:59Z", 999).as_deref(),
        Some("one")
    );
    assert_eq!(signs(&config, "2027-11-01T00:00:00Z", 0), None);
    assert_eq!(signs(&config, "1969-12-31T23:59:59Z", 1), None);
    // Another offset is the same moment.
    let config = ring(&[(
        "one",
        Some("2026-11-01T02:00:00+02:00"),
        Some("2026-10-31T19:00:01-05:00"),
    )]);
    assert_eq!(signs(&config, "2026-10-31T23:59:59Z", 999), None);
    assert_eq!(
        signs(&config, "2026-11-01T00:00:00Z", 999).as_deref(),
        Some("one")
    );
    assert_eq!(signs(&config, "2026-11-01T00:00:01Z", 0), None);
}

#[test]
fn the_key_whose_time_began_last_signs() {
    let keys = [
        ("always", None, None),
        (
            "2025",
            Some("2025-11-01T00:00:00Z"),
            Some("2026-12-01T00:00:00Z"),
        ),
        (
            "second-2026",
            Some("2026-11-01T00:00:00Z"),
            Some("2027-11-01T00:00:00Z"),
        ),
    ];
    for order in [
        [0, 1, 2],
        [2, 1, 0],
        [1, 2, 0],
        [2, 0, 1],
        [0, 2, 1],
        [1, 0, 2],
    ] {
        let config = ring(&order.map(|at| keys[at]));
        for (at, id) in [
            ("2025-10-31T23:59:59Z", "always"),
            ("2025-11-01T00:00:00Z", "2025"),
            ("2026-10-31T23:59:59Z", "2025"),
            ("2026-11-01T00:00:00Z", "second-2026"),
            ("2026-12-15T00:00:00Z", "second-2026"),
            ("2027-11-01T00:00:00Z", "always"),
        ] {
            assert_eq!(signs(&config, at, 0).as_deref(), Some(id), "{order:?} {at}");
        }
    }
    let same = Some("2026-01-01T00:00:00Z");
    let config = ring(&[("one", same, None), ("second", same, None)]);
    assert_eq!(
        signs(&config, "2026-11-22T08:00:00Z", 0).as_deref(),
        Some("second")
    );
}

#[test]
fn a_gap_between_two_keys_signs_nothing() {
    let config = ring(&[
        ("one", None, Some("2026-11-01T00:00:00Z")),
        ("second", Some("2026-11-01T00:00:02Z"), None),
    ]);
    assert_eq!(
        signs(&config, "2026-10-31T23:59:59Z", 0).as_deref(),
        Some("one")
    );
    assert_eq!(signs(&config, "2026-11-01T00:00:00Z", 0), None);
    assert_eq!(signs(&config, "2026-11-01T00:00:01Z", 0), None);
    assert_eq!(
        signs(&config, "2026-11-01T00:00:02Z", 0).as_deref(),
        Some("second")
    );
}

#[test]
fn the_signature_is_of_the_key_that_is_named() {
    let config = ring(&[
        ("one", None, Some("2026-11-01T00:00:00Z")),
        ("second", Some("2026-11-01T00:00:00Z"), None),
    ]);
    let body = fixture("bbmsl").call().to_string();
    for (at, id) in [(NOW.plus(-30 * 86_400_000), "one"), (NOW, "second")] {
        let dispatch = send(&config, "k-1", body.as_bytes(), "", at).unwrap();
        assert_eq!(id_of(dispatch.key_id.as_deref().unwrap()), id);
        assert_eq!(
            is_signed_by(&dispatch, golden_file("bbmsl/public_key.pem")),
            id == "one"
        );
        assert_eq!(is_signed_by(&dispatch, SECOND_PUBLIC), id == "second");
    }
}

#[test]
fn a_signer_that_fails_sends_nothing() {
    let config = fixture("bbmsl").config();
    let body = fixture("bbmsl").call().to_string();
    let answer = send_with(
        &config,
        &call_headers("k-1"),
        body.as_bytes(),
        "",
        NOW,
        &mut FailingSigner,
    )
    .map(|_| ())
    .unwrap_err();
    let body = checked(&answer);
    assert_eq!(body["code"], "signing-unavailable");
    assert_eq!(
        (&body["outcome"], &body["retry"]),
        (&json!("not_refunded"), &json!("same_key"))
    );
}

#[test]
fn times_and_ids_of_keys_are_checked() {
    let pem = golden_file("bbmsl/private_key.pem");
    let key = |more: Value| {
        let mut key = json!({"id": "k", "private_key": {"inline": pem}});
        for (name, value) in more.as_object().unwrap() {
            key[name] = value.clone();
        }
        faults_of(&with("bbmsl", "/signing/keys", Some(json!([key]))))
    };
    for time in [
        "2026-11-01",
        "2026-11-01 00:00:00",
        "2026-11-01T00:00:00",
        "1793491200",
        "2026-13-01T00:00:00Z",
        "2026-11-31T00:00:00Z",
        "",
    ] {
        assert_eq!(
            key(json!({"not_before": time})),
            ["/signing/keys/0/not_before"],
            "{time}"
        );
        assert_eq!(
            key(json!({"not_after": time})),
            ["/signing/keys/0/not_after"],
            "{time}"
        );
    }
    assert_eq!(
        key(json!({"not_before": 1})),
        ["/signing/keys/0/not_before"]
    );
    let moment = "2026-11-01T00:00:00Z";
    assert_eq!(
        key(json!({"not_before": moment, "not_after": moment})),
        ["/signing/keys/0/not_after"]
    );
    let twins = json!([{"id": "k", "private_key": {"inline": pem}}, {"id": "k", "private_key": {"inline": SECOND}}]);
    assert_eq!(
        faults_of(&with("bbmsl", "/signing/keys", Some(twins))),
        ["/signing/keys/1/id"]
    );
}

#[test]
fn a_secret_keeps_its_inner_characters() {
    for secret in ["a", "a b", "ä€", "\"q\\", " padded \n"] {
        let provider = with(
            "begateway",
            "/secret_key",
            Some(json!({ "inline": secret })),
        );
        let config = read(&json!({"providers": {"p": provider}})).unwrap();
        let Auth::Basic { user, password } = &config.provider("p").unwrap().auth else {
            panic!("no basic")
        };
        assert_eq!(user, "361");
        assert_eq!(
            *password,
            SecretSource::Here(Secret::new(secret.trim().to_owned()))
        );
    }
}

#[test]
fn callers_limits_and_switches_are_read_and_their_slips_refused() {
    let with = |pointer: &str, value: Value| {
        let mut config = example();
        let (place, name) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(place).unwrap()[name] = value;
        config
    };
    let san = json!({"property": ["connection", "uri_san_peer_certificate"]});
    for (pointer, value) in [
        ("/caller", san.clone()),
        ("/caller", json!({"filter_state": "corp.caller"})),
        ("/providers/bog/refunds", json!("on")),
        ("/providers/bog/refunds", json!("off")),
        ("/providers/bog/max_amount", json!({"GEL": "500.00"})),
        (
            "/providers/bog/max_amount",
            json!({"GEL": "500", "JPY": "1"}),
        ),
    ] {
        assert!(
            read(&with(pointer, value.clone())).is_ok(),
            "{pointer}: {value}"
        );
    }
    for (pointer, value, at) in [
        ("/caller", json!({}), "/caller"),
        ("/caller", json!("sub"), "/caller"),
        ("/caller", json!({"property": []}), "/caller/property"),
        (
            "/caller",
            json!({"property": ["connection", ""]}),
            "/caller/property/1",
        ),
        (
            "/caller",
            json!({"property": ["request", "headers", "x-user"]}),
            "/caller/property",
        ),
        (
            "/caller",
            json!({"property": ["connection", "requested_server_name"]}),
            "/caller/property",
        ),
        (
            "/caller",
            json!({"filter_state": ""}),
            "/caller/filter_state",
        ),
        (
            "/caller",
            json!({"filter_state": "a", "property": ["b"]}),
            "/caller",
        ),
        (
            "/caller",
            json!({"filter_state": "a", "header": "b"}),
            "/caller/header",
        ),
        (
            "/providers/bog/callers",
            json!(["shop"]),
            "/providers/bog/callers",
        ),
        (
            "/providers/bog/refunds",
            json!("no"),
            "/providers/bog/refunds",
        ),
        (
            "/providers/bog/refunds",
            json!(false),
            "/providers/bog/refunds",
        ),
        (
            "/providers/bog/max_amount",
            json!({}),
            "/providers/bog/max_amount",
        ),
        (
            "/providers/bog/max_amount",
            json!({"GEL": 500}),
            "/providers/bog/max_amount/GEL",
        ),
        (
            "/providers/bog/max_amount",
            json!({"GEL": "0"}),
            "/providers/bog/max_amount/GEL",
        ),
        (
            "/providers/bog/max_amount",
            json!({"GEL": "1.001"}),
            "/providers/bog/max_amount/GEL",
        ),
        (
            "/providers/bog/max_amount",
            json!({"gel": "1"}),
            "/providers/bog/max_amount/gel",
        ),
        (
            "/providers/bog/max_amount",
            json!("500 GEL"),
            "/providers/bog/max_amount",
        ),
    ] {
        let faults = read(&with(pointer, value.clone())).expect_err(pointer);
        let found: Vec<_> = faults.iter().map(|fault| &*fault.pointer).collect();
        assert_eq!(found, [at], "{pointer}: {value}");
    }
    let mut config = with("/caller", san);
    for (callers, sound) in [
        (json!(["shop"]), true),
        (json!([]), false),
        (json!([""]), false),
        (json!("shop"), false),
    ] {
        config["providers"]["bog"]["callers"] = callers.clone();
        assert_eq!(read(&config).is_ok(), sound, "{callers}");
    }
}
