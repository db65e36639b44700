//! What is counted of a call, and what the access log can show of it: over a host that records.

use std::collections::BTreeSet;

use core_testbed::call_headers;
use core_testbed::fixtures::TOKEN;
use core_testbed::gateway::fixture;
use core_testbed::golden::Golden;
use core_testbed::host::{Process, Side};
use refund_filter::guard::Digest;
use refund_filter::headers::Headers;
use refund_filter::secret::fingerprint;
use refund_filter::worker::{Flow, Kind, Said, Series};
use serde_json::{Value, json};

fn process(name: &str) -> Process {
    Process::new(name, &fixture(name).provider_config())
}

fn call(name: &str) -> Value {
    fixture(name).call()
}

/// A call to this path by this method, as a call with a key is made otherwise.
fn headers(method: &'static str, path: &str) -> Headers<'static> {
    let mut headers = Headers::default();
    headers.fixed(":method", method);
    headers.text(":path", path.to_owned());
    let others = call_headers("k-1");
    for (name, value) in others.iter().filter(|(name, _)| !name.starts_with(b":")) {
        headers.push(name.to_vec(), value.to_vec());
    }
    headers
}

fn token(value: &str) -> String {
    json!({"access_token": value, "token_type": "Bearer", "expires_in": 300}).to_string()
}

/// Bytes of the provider's request have left.
fn connect(process: &Process, id: u32) {
    process.of(id, |side| {
        let address = b"10.0.0.1:40000".to_vec();
        side.properties
            .insert("upstream.local_address".to_owned(), address);
        side.properties.insert(
            "upstream.request_attempt_count".to_owned(),
            1u64.to_le_bytes().to_vec(),
        );
    });
}

/// The stream ends without an answer of the filter's, and Envoy says this of it.
fn ends_by(process: &Process, id: u32, details: &str) {
    process.of(id, |side| {
        let name = "response.code_details".to_owned();
        side.properties.insert(name, details.as_bytes().to_vec());
    });
    process.is_logged(id);
}

#[track_caller]
fn counted(process: &Process, calls: &[&str]) {
    assert_eq!(process.counted_calls(), calls);
}

#[track_caller]
fn log_says(process: &Process, id: u32, wanted: &[(&str, &str)]) {
    for (name, value) in wanted {
        let found = process.state(id, name);
        assert_eq!(found.as_deref(), Some(*value), "{name}");
    }
}

/// The page names each series with its labels and their values, and no other.
#[test]
fn the_page_names_what_is_counted_of_the_shared_memory() {
    let mut provider = fixture("begateway").provider_config();
    core_testbed::resolve_files(&mut provider);
    let process = Process::plugin(
        None,
        &json!({"providers": {"begateway": provider}, "memory": {"redis": {"cluster": "memory"}}}),
    );
    let rows: Vec<&str> = include_str!("../../docs/figures.md")
        .lines()
        .filter(|line| line.starts_with("| `refund_memory_"))
        .collect();
    let mut seen = BTreeSet::new();
    for name in process.host.metrics.borrow().iter() {
        let mut parts = name.split('.');
        let (Some("refund"), Some(metric)) = (parts.next(), parts.next()) else {
            panic!("{name}");
        };
        if !metric.starts_with("memory_") {
            continue;
        }
        let labels: Vec<_> = parts.collect();
        let (names, values): (Vec<_>, Vec<_>) =
            labels.chunks(2).map(|label| (label[0], label[1])).unzip();
        let row = format!("| `refund_{metric}{{{}}}` |", names.join(", "));
        assert!(rows.iter().any(|line| line.starts_with(&row)), "{row}");
        seen.insert(row);
        for value in values.iter().filter(|value| **value != "begateway") {
            let value = format!("`{value}`");
            assert!(rows.iter().any(|line| line.contains(&value)), "{value}");
        }
    }
    assert_eq!(seen.len(), rows.len(), "{seen:?}");
}

#[test]
fn every_answer_of_the_goldens_falls_into_a_series_that_exists_from_the_start() {
    for of_a_provider in [true, false] {
        let all = Series::all(of_a_provider);
        let once: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(all.len(), once.len(), "one is there twice");
        assert!(all.len() < 120, "{}", all.len());
    }
    let known: BTreeSet<Series> = [true, false].into_iter().flat_map(Series::all).collect();
    let mut seen = BTreeSet::new();
    for (path, case) in core_testbed::golden_cases() {
        let golden = Golden::new(&case);
        let asked = golden.ask();
        let Some(answer) = golden.answer(asked) else {
            continue;
        };
        let said = Said::of(&answer);
        let series = Series {
            kind: match answer.look_up {
                true => Kind::LookUp,
                false => Kind::Refund,
            },
            outcome: said.outcome,
            code: said.code,
            replayed: answer.replayed,
        };
        assert!(known.contains(&series), "{path}: {series:?}");
        assert_eq!(said.status, answer.word, "{path}");
        seen.insert(series);
    }
    assert!(seen.len() > 25, "{seen:?}");
}

#[test]
fn a_refund_counts_once_and_the_log_has_what_was_told() {
    let process = process("moyasar");
    let (id, flow) = process.call("k-1", &call("moyasar"));
    assert_eq!(flow, Flow::Continue);
    connect(&process, id);
    process.later(40);
    process.reply_begins(id, 400);
    process.later(2);
    process.reply_ends(id, r#"{"message": "no"}"#);
    process.is_logged(id);
    counted(
        &process,
        &["moyasar.kind.refund.outcome.not_refunded.code.provider-rejected.replayed.false"],
    );
    let amount = &call("moyasar")["amount"];
    let amount = format!(
        "{} {}",
        amount["value"].as_str().unwrap(),
        amount["currency"].as_str().unwrap()
    );
    log_says(
        &process,
        id,
        &[
            ("kind", "refund"),
            ("status", "provider-rejected"),
            ("outcome", "not_refunded"),
            ("told_retry", "no"),
            ("named_provider", "moyasar"),
            ("amount", &amount),
            ("key_digest", &Digest::of([&b"k-1"[..]]).hex()),
        ],
    );
    assert_eq!(process.durations("provider"), [42]);
    assert_eq!(process.durations("call"), [42]);
    process.leaves(id);
    assert_eq!(process.counted_calls().len(), 1);
}

#[test]
fn what_envoy_ends_past_the_filter_counts_once_as_what_envoy_tells() {
    for (replying, details, code, outcome) in [
        (
            true,
            "response_payload_too_large",
            "provider-reply-unreadable",
            "unknown",
        ),
        (
            true,
            "upstream_reset_after_response_started{protocol_error}",
            "provider-error",
            "unknown",
        ),
        (true, "response_timeout", "provider-timeout", "unknown"),
        (
            false,
            "downstream_remote_disconnect",
            "client-gone",
            "unknown",
        ),
        (true, "http2.remote_reset", "client-gone", "unknown"),
        (true, "", "client-gone", "unknown"),
    ] {
        let process = process("moyasar");
        let (id, _) = process.call("k-1", &call("moyasar"));
        connect(&process, id);
        if replying {
            process.reply_begins(id, 200);
        }
        process.later(30);
        ends_by(&process, id, details);
        log_says(
            &process,
            id,
            &[
                ("status", code),
                ("outcome", outcome),
                ("named_provider", "moyasar"),
                ("told_retry", "same_key"),
            ],
        );
        assert_eq!(process.durations("provider"), [30], "{details}");
        process.leaves(id);
        counted(
            &process,
            &[&*format!(
                "moyasar.kind.refund.outcome.{outcome}.code.{code}.replayed.false"
            )],
        );
    }
}

#[test]
fn a_caller_that_leaves_before_anything_was_sent_is_not_unknown() {
    let process = process("moyasar");
    let id = process.begin("k-1");
    ends_by(&process, id, "downstream_remote_disconnect");
    log_says(&process, id, &[("outcome", "not_refunded")]);
    counted(
        &process,
        &["none.kind.refund.outcome.not_refunded.code.client-gone.replayed.false"],
    );
    // Its provider is known once its body is there.
    let (id, _) = process.call("k-2", &call("moyasar"));
    process.of(id, |side| {
        side.properties.insert(
            "upstream.request_attempt_count".to_owned(),
            1u64.to_le_bytes().to_vec(),
        );
    });
    ends_by(&process, id, "downstream_remote_disconnect");
    assert_eq!(
        process.counted_calls()[0],
        "moyasar.kind.refund.outcome.not_refunded.code.client-gone.replayed.false"
    );
}

#[test]
fn the_provider_is_known_from_the_moment_it_is_read() {
    let process = process("bbmsl");
    let (first, _) = process.call("k-1", &call("bbmsl"));
    process.call("k-1", &call("bbmsl"));
    connect(&process, first);
    ends_by(&process, first, "downstream_remote_disconnect");
    // What was told to nobody is told to who asks again.
    process.call("k-1", &call("bbmsl"));
    let mut faulty = call("bbmsl");
    faulty["amount"] = json!({"value": "10.505", "currency": "HKD"});
    let (id, _) = process.call("k-2", &faulty);
    log_says(&process, id, &[("named_provider", "bbmsl")]);
    let mut nobodys = call("bbmsl");
    nobodys["provider"] = json!("nobody");
    let (id, _) = process.call("k-3", &nobodys);
    assert_eq!(process.state(id, "named_provider"), None);
    counted(
        &process,
        &[
            "bbmsl.kind.refund.outcome.not_refunded.code.invalid-request.replayed.false",
            "bbmsl.kind.refund.outcome.unknown.code.client-gone.replayed.false",
            "bbmsl.kind.refund.outcome.unknown.code.gateway-error.replayed.true",
            "bbmsl.kind.refund.outcome.unknown.code.refund-in-progress.replayed.false",
            "none.kind.refund.outcome.not_refunded.code.invalid-request.replayed.false",
        ],
    );
}

#[test]
fn previews_and_look_ups_are_kinds_of_their_own() {
    let process = process("bbmsl");
    let (preview, _) = process.headers(
        headers("POST", "/v1/refunds/preview"),
        Side::default(),
        false,
    );
    process.body(preview, &call("bbmsl"));
    process.answered(preview);
    log_says(
        &process,
        preview,
        &[("kind", "preview"), ("status", "preview")],
    );
    let path = "/v1/refunds?provider=bbmsl&payment_id=4922&key=k-1";
    let (look_up, _) = process.headers(headers("GET", path), Side::default(), true);
    process.later(7);
    process.answer_call(None);
    // The key's digest is the same as in the refund call with it.
    log_says(
        &process,
        look_up,
        &[
            ("kind", "look_up"),
            ("outcome", "unknown"),
            ("named_provider", "bbmsl"),
            ("key_digest", &Digest::of([&b"k-1"[..]]).hex()),
        ],
    );
    // Refused at the headers: whose it is cannot be told.
    process.headers(headers("PUT", "/v1/refunds"), Side::default(), false);
    process.headers(headers("GET", "/other"), Side::default(), true);
    counted(
        &process,
        &[
            "bbmsl.kind.look_up.outcome.unknown.code.provider-error.replayed.false",
            "bbmsl.kind.preview.outcome.not_refunded.code.none.replayed.false",
            "none.kind.refund.outcome.not_refunded.code.method-not-allowed.replayed.false",
        ],
    );
    assert_eq!(process.durations("provider"), [7]);
    assert_eq!(process.durations("call"), [7]);
    assert_eq!(
        process.shows("refund.signatures_total.provider.bbmsl.signer.vm.result.ok"),
        1
    );
}

#[test]
fn a_signature_that_fails_is_counted() {
    let process = process("bbmsl");
    process.host.refuses.borrow_mut().insert("fill_random");
    let mut provider = fixture("bbmsl").provider_config();
    provider["signing"] =
        json!({"keys": [{"id": "a", "private_key": {"filter_state": "refund.key"}}]});
    let process = Process::new("bbmsl", &provider);
    process.call("k-1", &call("bbmsl"));
    assert_eq!(
        process.shows("refund.signatures_total.provider.bbmsl.signer.vm.result.failed"),
        1
    );
    assert_eq!(
        process.shows("refund.signatures_total.provider.bbmsl.signer.vm.result.ok"),
        0
    );
}

#[test]
fn the_key_that_was_used_is_told_by_its_fingerprint() {
    // The signing key: by its public half, as `openssl pkey -pubout -outform DER` writes it.
    let process = process("bbmsl");
    let (id, _) = process.call("k-1", &call("bbmsl"));
    let found = process.state(id, "key_id").unwrap();
    let (_, sum) = found.split_once(" sha256:").unwrap();
    assert_eq!(sum.len(), 8, "{found}");
    // A credential: its own, where it is long enough to be none that somebody chose.
    for (secret, wanted) in [
        (
            "sk_test_0123456789abcdef",
            Some(fingerprint(b"sk_test_0123456789abcdef")),
        ),
        ("sk_short", None),
    ] {
        let mut provider = fixture("moyasar").provider_config();
        provider["api_key"] = json!({"inline": secret});
        let process = Process::new("moyasar", &provider);
        let (id, _) = process.call("k-1", &call("moyasar"));
        assert_eq!(process.state(id, "key_id"), wanted, "{secret}");
    }
}

#[test]
fn a_token_tells_the_key_that_it_was_fetched_with_and_not_the_newest() {
    let mut provider = fixture("bog").provider_config();
    provider["token"]["client_secret"] = json!({"filter_state": "refund.secret"});
    let process = Process::new("bog", &provider);
    let calls = |key: &str, secret: &str| {
        let mut side = Side::default();
        let name = "filter_state.refund.secret".to_owned();
        side.properties.insert(name, secret.as_bytes().to_vec());
        let id = process.begin_with(key, side);
        process.body(id, &call("bog"));
        id
    };
    let old = "the-old-secret-of-the-client";
    let waits = calls("k-1", old);
    process.later(3);
    process.tick_after(1);
    process.answer_call(Some((200, &token(TOKEN))));
    let goes = calls("k-2", "the-new-secret-of-the-client");
    for id in [waits, goes] {
        assert_eq!(
            process.state(id, "key_id"),
            Some(fingerprint(old.as_bytes()))
        );
    }
    assert_eq!(process.durations("token"), [4]);
}

#[test]
fn what_openbao_takes_is_no_time_of_the_gateways() {
    let mut provider = fixture("bbmsl").provider_config();
    provider["signing"] = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "k", "token": {"inline": "CANARY-openbao"},
    }});
    let process = Process::new("bbmsl", &provider);
    let (id, _) = process.call("k-1", &call("bbmsl"));
    process.later(5);
    process.answer_call(Some((500, "{}")));
    process.is_logged(id);
    assert_eq!(process.durations("signature"), [5]);
    assert_eq!(process.durations("call"), [5]);
    assert_eq!(
        process.shows("refund.signatures_total.provider.bbmsl.signer.transit.result.failed"),
        1
    );
}
