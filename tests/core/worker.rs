//! The worker over a host that records: what is watched, fetched, told and settled, without Envoy.

use core_testbed::call_headers;
use core_testbed::fixtures::TOKEN;
use core_testbed::gateway::fixture;
use core_testbed::host::{Process, ROOT, Reply, Side};
use refund_filter::headers::Headers;
use refund_filter::host::Buffer;
use refund_filter::worker::Flow;
use serde_json::{Value, json};

fn process(name: &str) -> Process {
    Process::new(name, &fixture(name).provider_config())
}

/// A worker that looks at each payment before it refunds it.
fn looking(name: &str) -> Process {
    let mut provider = fixture(name).provider_config();
    provider["query_first"] = json!(true);
    Process::new(name, &provider)
}

/// A worker whose provider's requests OpenBao signs.
fn signed_by_openbao() -> Process {
    let mut provider = fixture("bbmsl").provider_config();
    provider["signing"] = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "k", "token": {"inline": "CANARY-openbao"},
    }});
    Process::new("bbmsl", &provider)
}

/// A signature of OpenBao's that no key verifies.
fn signature() -> String {
    let signature = format!("vault:v1:{}==", "A".repeat(342));
    json!({"data": {"signature": signature}}).to_string()
}

fn call(name: &str) -> Value {
    fixture(name).call()
}

fn token() -> String {
    json!({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 300}).to_string()
}

#[track_caller]
fn says(reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.body["code"], code, "{}", reply.body);
}

/// What leaves with the stream: the provider whose route it takes.
fn provider_of(process: &Process, id: u32) -> Option<String> {
    process.of(id, |side| {
        let name = side.properties.get("filter_state.wasm.refund_provider")?;
        String::from_utf8(name.clone()).ok()
    })
}

fn body_of(process: &Process, id: u32, buffer: Buffer) -> Value {
    let body = process.of(id, |side| side.buffers[&(buffer as u32)].clone());
    serde_json::from_slice(&body).unwrap()
}

/// How often the route has sent the request.
fn attempts(process: &Process, id: u32, attempts: u64) {
    process.of(id, |side| {
        let name = "upstream.request_attempt_count".to_owned();
        side.properties
            .insert(name, attempts.to_le_bytes().to_vec());
    });
}

#[track_caller]
fn is_resumed(process: &Process, id: u32, times: u32) {
    assert_eq!(process.of(id, |side| side.resumed), times);
}

/// The counters of a stream's bytes: the whole request's, and its headers'.
fn received(side: &mut Side, total: u64, headers: u64) {
    for (name, size) in [("total_size", total), ("headers_bytes", headers)] {
        let name = format!("request.{name}");
        side.properties.insert(name, size.to_le_bytes().to_vec());
    }
}

// ---- Bodies

/// How often the root ticks where nothing is watched.
const IDLE_MS: u32 = 5_000;

const NEVER_BEGAN: &str = "a body did not begin in time";

#[test]
fn a_body_that_does_not_come_in_time_is_answered_and_watched_no_longer() {
    let process = process("moyasar");
    let id = process.begin("k-1");
    assert_eq!(process.host.tick_ms.get(), 50);
    process.tick_after(10_000);
    assert!(process.of(id, |side| side.replies.is_empty()));
    process.tick_after(1);
    let reply = process.answered(id);
    says(&reply, 408, "request-timeout");
    assert_eq!(reply.details, "refund_request_timeout");
    assert_eq!(process.logged(NEVER_BEGAN), 1);
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
    // Nothing is left of it: what comes late gets no further.
    assert_eq!(process.body(id, &call("moyasar")), Flow::Pause);
    process.answered(id);
}

#[test]
fn a_body_that_stops_midway_says_nothing_of_the_configuration() {
    let process = process("moyasar");
    let id = process.begin("k-1");
    assert_eq!(process.part_of_body(id, 1), Flow::Pause);
    process.tick_after(10_001);
    says(&process.answered(id), 408, "request-timeout");
    assert_eq!(process.logged(NEVER_BEGAN), 0);
}

/// A call whose key cannot be one, over this protocol; its body is still to come.
fn refused_at_its_headers(process: &Process, protocol: &str) -> u32 {
    let mut side = Side::default();
    let name = "request.protocol".to_owned();
    side.properties.insert(name, protocol.into());
    let (id, flow) = process.headers(call_headers("no key"), side, false);
    assert_eq!(flow, Flow::Pause);
    id
}

#[test]
fn where_calls_share_a_connection_a_refusal_waits_for_the_end_of_the_body() {
    for protocol in ["HTTP/2", "HTTP/3"] {
        let process = process("moyasar");
        let id = refused_at_its_headers(&process, protocol);
        process.tick_after(50);
        assert_eq!(process.part_of_body(id, 1), Flow::Pause);
        process.tick_after(50);
        assert!(process.of(id, |side| side.replies.is_empty()));
        assert_eq!(process.body(id, &call("moyasar")), Flow::Pause);
        says(&process.answered(id), 400, "idempotency-key-invalid");
        process.tick_after(50);
        assert_eq!(process.host.tick_ms.get(), IDLE_MS);
    }
}

/// Another call with its key may be sent while its body comes, and be lost.
#[test]
fn a_refusal_that_waited_says_what_is_known_of_its_key_when_it_is_told() {
    type End = fn(&Process, u32);
    let ends: [End; 2] = [
        |process, id| {
            process.body(id, &call("moyasar"));
        },
        |process, _| process.tick_after(10_001),
    ];
    for end in ends {
        let process = process("moyasar");
        let mut side = Side::default();
        let name = "request.protocol".to_owned();
        side.properties.insert(name, "HTTP/2".into());
        let mut headers = call_headers("k-1");
        // A second one: it is no longer JSON for sure.
        headers.fixed("content-type", "text/plain");
        let (refused, _) = process.headers(headers, side, false);
        let (lost, _) = process.call("k-1", &call("moyasar"));
        attempts(&process, lost, 1);
        process.of(lost, |side| {
            let name = "upstream.local_address".to_owned();
            side.properties.insert(name, b"10.0.0.1:1".to_vec());
        });
        process.leaves(lost);
        end(&process, refused);
        let reply = process.answered(refused);
        says(&reply, 415, "unsupported-media-type");
        assert_eq!(reply.body["outcome"], "unknown", "{}", reply.body);
    }
}

#[test]
fn a_refusal_waits_for_no_body_that_does_not_come() {
    let process = process("moyasar");
    let id = refused_at_its_headers(&process, "HTTP/2");
    process.tick_after(10_000);
    assert!(process.of(id, |side| side.replies.is_empty()));
    process.tick_after(1);
    says(&process.answered(id), 400, "idempotency-key-invalid");
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
}

#[test]
fn over_http_1_a_refusal_waits_for_nothing() {
    let process = process("moyasar");
    let id = refused_at_its_headers(&process, "HTTP/1.1");
    says(&process.answered(id), 400, "idempotency-key-invalid");
}

#[test]
fn a_withheld_body_is_told_from_one_that_stalls() {
    // A filter in front has changed the headers, so their difference is not nought.
    let mut side = Side::default();
    received(&mut side, 130, 100);
    let process = process("moyasar");
    let id = process.begin_with("k-1", side);
    process.tick_after(50);
    assert!(process.of(id, |side| side.replies.is_empty()));
    process.of(id, |side| received(side, 131, 100));
    process.tick_after(50);
    says(&process.answered(id), 503, "gateway-error");
    assert_eq!(process.logged("Envoy holds a body back"), 1);
    assert_eq!(process.logged(NEVER_BEGAN), 0);
}

#[test]
fn no_body_is_withheld_where_one_has_come() {
    let process = process("moyasar");
    process.part_of_body(process.begin("k-1"), 1);
    let id = process.begin("k-2");
    process.of(id, |side| received(side, 200, 100));
    process.tick_after(50);
    assert!(process.of(id, |side| side.replies.is_empty()));
}

#[test]
fn a_stream_that_is_gone_without_a_word_is_watched_no_longer() {
    let process = process("moyasar");
    let id = process.begin("k-1");
    process.host.streams.borrow_mut().remove(&id);
    process.tick_after(10_001);
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
}

// ---- Tokens

#[test]
fn a_token_is_fetched_once_for_all_that_wait() {
    let process = process("bog");
    let waiting: Vec<u32> = ["k-1", "k-2", "k-3"]
        .map(|key| {
            let (id, flow) = process.call(key, &call("bog"));
            assert_eq!(flow, Flow::Pause);
            id
        })
        .into();
    assert_eq!(process.host.tick_ms.get(), 1);
    process.tick_after(1);
    process.tick_after(5);
    let fetch = process.answer_call(Some((200, &token())));
    assert_eq!(fetch.cluster, "bog-token");
    assert!(process.host.calls.borrow().is_empty());
    for id in waiting {
        is_resumed(&process, id, 1);
        assert_eq!(provider_of(&process, id).as_deref(), Some("bog"));
        // The caller's body was replaced while it was there.
        let body = body_of(&process, id, Buffer::Request);
        assert_eq!(body["provider"], Value::Null);
    }
    assert_eq!(
        process.shows("refund.token_fetches_total.provider.bog.result.ok"),
        1
    );
    process.tick_after(5);
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
    // And none is fetched while it lives.
    assert_eq!(process.call("k-4", &call("bog")).1, Flow::Continue);
}

#[test]
fn a_fetch_that_another_worker_holds_is_waited_for() {
    let provider = fixture("bog").provider_config();
    let one = Process::new("bog", &provider);
    let other = Process::beside(&one, "bog", &provider);
    one.call("k-1", &call("bog"));
    one.tick_after(1);
    let (id, flow) = other.call("k-2", &call("bog"));
    assert_eq!(flow, Flow::Pause);
    assert_eq!(other.host.tick_ms.get(), 5);
    other.tick_after(5);
    assert!(other.host.calls.borrow().is_empty());
    is_resumed(&other, id, 0);
    one.answer_call(Some((200, &token())));
    other.tick_after(5);
    is_resumed(&other, id, 1);
    assert!(other.host.calls.borrow().is_empty());
}

#[test]
fn the_fetch_of_a_worker_that_died_is_taken_over_once() {
    let provider = fixture("bog").provider_config();
    let dead = Process::new("bog", &provider);
    let other = Process::beside(&dead, "bog", &provider);
    dead.call("k-1", &call("bog"));
    let ids = ["k-2", "k-3"].map(|key| other.call(key, &call("bog")).0);
    other.tick_after(5_999);
    assert!(other.host.calls.borrow().is_empty());
    // In the same tick in which it is seen.
    other.tick_after(1);
    assert_eq!(other.host.calls.borrow().len(), 1);
    other.answer_call(Some((200, &token())));
    for id in ids {
        is_resumed(&other, id, 1);
    }
}

#[test]
fn a_fetch_is_the_roots_whichever_stream_was_answered_before_it() {
    let process = process("bog");
    process.begin("k-1");
    process.later(4_001);
    process.call("k-2", &call("bog"));
    process.tick_after(1);
    // The fetch is given up in the tick in which the body is too late. The host asserts whose the
    // next one is.
    process.tick_after(6_000);
    assert_eq!(process.host.calls.borrow().len(), 2);
    assert_eq!(process.host.calls.borrow()[1].context, ROOT);
}

#[test]
fn who_waits_for_a_token_too_long_is_answered_and_its_key_is_free() {
    let process = process("bog");
    let (id, _) = process.call("k-1", &call("bog"));
    process.tick_after(1);
    // It is given up, and fetched anew.
    process.tick_after(6_001);
    assert_eq!(process.host.calls.borrow().len(), 2);
    process.tick_after(5_998);
    assert!(process.of(id, |side| side.replies.is_empty()));
    process.tick_after(1);
    says(&process.answered(id), 503, "provider-unreachable");
    let (again, _) = process.call("k-1", &call("bog"));
    assert!(process.of(again, |side| side.replies.is_empty()));
}

#[test]
fn a_refused_fetch_answers_all_that_wait() {
    let process = process("bog");
    let ids = ["k-1", "k-2"].map(|key| process.call(key, &call("bog")).0);
    process.tick_after(1);
    process.answer_call(Some((401, r#"{"error": "invalid_client"}"#)));
    for id in ids {
        says(&process.answered(id), 502, "provider-auth-failed");
        is_resumed(&process, id, 0);
    }
    assert_eq!(
        process.shows("refund.token_fetches_total.provider.bog.result.refused"),
        1
    );
    assert_eq!(
        process.logged("no token for bog: Refused, status Some(401)"),
        1
    );
}

#[test]
fn a_fetch_that_cannot_be_made_is_none() {
    let process = process("bog");
    process
        .host
        .refuses
        .borrow_mut()
        .insert("dispatch_http_call");
    let (id, _) = process.call("k-1", &call("bog"));
    process.tick_after(1);
    says(&process.answered(id), 503, "provider-unreachable");
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
}

#[test]
fn a_token_that_the_provider_refuses_is_fetched_anew() {
    let process = process("bog");
    let (id, _) = process.call("k-1", &call("bog"));
    process.tick_after(1);
    process.answer_call(Some((200, &token())));
    process.reply_begins(id, 401);
    assert_eq!(process.reply_ends(id, "{}"), Flow::Continue);
    assert_eq!(process.call("k-2", &call("bog")).1, Flow::Pause);
    process.tick_after(1);
    assert_eq!(process.host.calls.borrow().len(), 1);
}

#[test]
fn a_root_that_ends_gives_the_leases_of_its_fetches_back() {
    for under_way in [false, true] {
        let provider = fixture("bog").provider_config();
        let process = Process::new("bog", &provider);
        let (id, _) = process.call("k-1", &call("bog"));
        if under_way {
            process.tick_after(1);
        }
        process.leaves(id);
        process.close();
        assert_eq!(process.host.tick_ms.get(), 0);
        let other = Process::beside(&process, "bog", &provider);
        other.call("k-2", &call("bog"));
        other.tick_after(1);
        assert_eq!(other.host.calls.borrow().len(), 1, "{under_way}");
    }
}

#[test]
fn a_root_that_ends_looks_after_its_streams_until_the_last_is_over() {
    let process = process("bog");
    let (id, _) = process.call("k-1", &call("bog"));
    process.tick_after(1);
    process.close();
    assert_eq!(process.host.tick_ms.get(), 5);
    process.answer_call(Some((200, &token())));
    is_resumed(&process, id, 1);
    assert_eq!(process.host.tick_ms.get(), 0);
}

// ---- Ticks

#[test]
fn the_tick_is_as_slow_as_what_is_watched_allows() {
    let process = process("bog");
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
    let (waits, _) = process.call("k-1", &call("bog"));
    process.begin("k-2");
    process.tick_after(1);
    assert_eq!(process.host.tick_ms.get(), 5);
    process.leaves(waits);
    process.tick_after(5);
    assert_eq!(process.host.tick_ms.get(), 50);
    process.tick_after(10_001);
    assert_eq!(process.host.tick_ms.get(), IDLE_MS);
}

#[test]
fn the_end_of_the_signing_keys_is_told_from_the_configuration_on() {
    let mut provider = fixture("bbmsl").provider_config();
    let gauge = "refund.signing_key_not_after_timestamp_seconds.provider.bbmsl";
    // No end.
    let without_end = Process::new("bbmsl", &provider);
    assert_eq!(without_end.host.values.borrow()[gauge], 0);
    provider["signing"]["keys"][0]["not_after"] = json!("2026-11-22T09:00:00Z");
    let process = Process::new("bbmsl", &provider);
    assert_eq!(process.shows(gauge), 1_795_338_000);
    process.tick_after(5_000);
    assert_eq!(process.shows(gauge), 1_795_338_000);
    assert_eq!(process.host.tick_ms.get(), 5_000);
    // Its provider may have gone with it.
    process.close();
    assert_eq!(process.shows(gauge), 0);
}

#[test]
fn a_root_that_ends_takes_its_gauges_along_and_the_others_set_theirs_again() {
    let provider = fixture("moyasar").provider_config();
    let process = Process::new("moyasar", &provider);
    let version = format!("refund.build_info.version.{}", refund_filter::VERSION);
    for gauge in ["refund.guard_capacity", &version] {
        assert!(process.shows(gauge) > 0, "{gauge}");
    }
    // Another root's end has set them to 0, since gauges are the process's.
    process.host.values.borrow_mut().clear();
    process.tick_after(4_999);
    assert_eq!(process.shows("refund.guard_capacity"), 0);
    process.tick_after(1);
    assert_eq!(process.shows("refund.guard_capacity"), 16_384);
    let id = process.begin("k-1");
    process.close();
    assert_eq!(process.shows("refund.guard_capacity"), 0);
    // It is still looked after, but its gauges are not its own any more.
    process.tick_after(5_000);
    assert_eq!(process.shows(&version), 0);
    process.leaves(id);
    assert_eq!(process.host.tick_ms.get(), 0);
}

#[test]
fn what_is_open_is_counted_by_provider_until_its_end_is_known() {
    let process = process("bog");
    let open = |state: &str| process.shows(&format!("refund.open.provider.bog.state.{state}"));
    // Twice the time that a count of the whole table takes: the one that is under way may have been there before.
    let round = || (0..8).for_each(|_| process.tick_after(5_000));
    let (id, _) = process.call("k-1", &call("bog"));
    process.tick_after(1);
    process.answer_call(Some((200, &token())));
    round();
    // In flight, and nothing was known of it before.
    assert_eq!((open("unknown"), open("pending")), (0, 0));
    assert_eq!(process.shows("refund.guard_entries"), 1);
    process.reply_begins(id, 500);
    process.reply_ends(id, "{}");
    process.tick_after(5_000);
    assert_eq!(open("unknown"), 0, "a part of a count was shown");
    round();
    assert_eq!((open("unknown"), open("pending")), (1, 0));
    let (again, _) = process.call("k-1", &call("bog"));
    round();
    assert_eq!((open("unknown"), open("pending")), (1, 0));
    process.reply_begins(again, 200);
    process.reply_ends(
        again,
        r#"{"key": "request_received", "message": "Refund request received", "action_id": "r-1"}"#,
    );
    round();
    assert_eq!((open("unknown"), open("pending")), (0, 1));
}

// ---- What is told

#[test]
fn an_alarm_is_logged_once_in_its_time() {
    let mut provider = fixture("moyasar").provider_config();
    provider["api_key"] = json!({"filter_state": "refund.key"});
    let process = Process::new("moyasar", &provider);
    let fails = |key: &str| {
        let (id, _) = process.call(key, &call("moyasar"));
        says(&process.answered(id), 503, "gateway-error");
    };
    fails("k-1");
    process.later(10_000);
    fails("k-2");
    assert_eq!(process.logged("refund-filter: moyasar: "), 1);
    process.later(1);
    fails("k-3");
    assert_eq!(process.logged("refund-filter: moyasar: "), 2);
}

#[test]
fn a_metric_is_defined_once() {
    let process = process("moyasar");
    for key in ["k-1", "k-2"] {
        let id = process.begin(key);
        process.body(id, &json!({}));
    }
    let outcome = "refund.calls_total.provider.none.kind.refund.outcome.not_refunded.code.invalid-request.replayed.false";
    assert_eq!(process.shows(outcome), 2);
    let metrics = process.host.metrics.borrow();
    let defined = metrics.iter().filter(|name| *name == outcome).count();
    assert_eq!(defined, 1, "{metrics:?}");
}

#[test]
fn a_further_configuration_defines_no_metric_again() {
    let mut process = process("moyasar");
    let defined = process.host.metrics.borrow().len();
    process.configure_anew();
    assert_eq!(process.host.metrics.borrow().len(), defined);
    let id = process.begin("k-1");
    process.body(id, &json!({}));
    let outcome = "refund.calls_total.provider.none.kind.refund.outcome.not_refunded.code.invalid-request.replayed.false";
    assert_eq!(process.shows(outcome), 1);
}

// ---- What the host refuses

#[test]
fn a_host_that_refuses_the_providers_request_has_sent_nothing() {
    for refused in ["set_property", "set_buffer", "set_headers"] {
        let process = process("moyasar");
        process.host.refuses.borrow_mut().insert(refused);
        let (id, flow) = process.call("k-1", &call("moyasar"));
        assert_eq!(flow, Flow::Pause, "{refused}");
        let reply = process.answered(id);
        says(&reply, 500, "gateway-error");
        assert_eq!(reply.body["outcome"], "not_refunded", "{refused}");
        assert_eq!(process.logged("(status 2); nothing was sent"), 1);
        process.host.refuses.borrow_mut().clear();
        assert_eq!(
            process.call("k-1", &call("moyasar")).1,
            Flow::Continue,
            "{refused}"
        );
    }
}

#[test]
fn a_host_that_takes_no_answer_is_logged_and_the_key_is_settled_all_the_same() {
    let process = process("moyasar");
    process
        .host
        .refuses
        .borrow_mut()
        .extend(["set_headers", "reply"]);
    let (id, flow) = process.call("k-1", &call("moyasar"));
    assert_eq!(flow, Flow::Pause);
    assert!(process.of(id, |side| side.replies.is_empty()));
    assert_eq!(process.logged("the host took no answer"), 1);
    process.host.refuses.borrow_mut().clear();
    assert_eq!(process.call("k-1", &call("moyasar")).1, Flow::Continue);
}

#[test]
fn an_answer_is_written_over_the_reply_or_else_sent_as_the_gateways_own() {
    for refused in [None, Some("set_buffer"), Some("set_headers")] {
        let process = process("moyasar");
        let (id, flow) = process.call("k-1", &call("moyasar"));
        assert_eq!(flow, Flow::Continue);
        process.reply_begins(id, 400);
        process.host.refuses.borrow_mut().extend(refused);
        let flow = process.reply_ends(id, r#"{"message": "no"}"#);
        if refused.is_some() {
            assert_eq!(flow, Flow::Pause);
            says(&process.answered(id), 422, "provider-rejected");
        } else {
            assert_eq!(flow, Flow::Continue);
            let body = body_of(&process, id, Buffer::Response);
            assert_eq!(body["code"], "provider-rejected");
        }
    }
}

#[test]
fn a_refusal_after_a_retry_by_the_route_says_nothing_of_the_first_send() {
    for (times, outcome) in [
        (Some(1), "not_refunded"),
        (Some(2), "unknown"),
        (None, "unknown"),
    ] {
        let process = process("moyasar");
        let (id, _) = process.call("k-1", &call("moyasar"));
        if let Some(times) = times {
            attempts(&process, id, times);
        }
        process.reply_begins(id, 400);
        process.reply_ends(id, r#"{"message": "no"}"#);
        let body = body_of(&process, id, Buffer::Response);
        assert_eq!(body["outcome"], outcome, "{times:?}");
    }
}

#[test]
fn without_randomness_no_key_is_claimed_and_no_token_fetched() {
    let process = process("bog");
    process.host.refuses.borrow_mut().insert("fill_random");
    let (id, _) = process.call("k-1", &call("bog"));
    // As where the guard has no room: the provider's own key holds.
    assert_eq!(process.shows("refund.guard_events_total.event.no_room"), 1);
    says(&process.answered(id), 503, "provider-unreachable");
}

// ---- Calls of the gateway's own

#[test]
fn a_call_that_the_root_makes_for_a_stream_is_answered_on_the_stream() {
    let process = looking("bog");
    let (id, _) = process.call("k-1", &call("bog"));
    process.tick_after(1);
    // The host asserts that the look, which follows the token, is the root's.
    process.answer_call(Some((200, &token())));
    is_resumed(&process, id, 0);
    let look = process.answer_call(Some((200, &paid_order())));
    assert_eq!(look.context, ROOT);
    is_resumed(&process, id, 1);
    assert_eq!(provider_of(&process, id).as_deref(), Some("bog"));
}

/// An order of bog's that can be refunded.
fn paid_order() -> String {
    json!({
        "order_id": "ord-1", "order_status": {"key": "completed"},
        "purchase_units": {
            "request_amount": "100.00", "transfer_amount": "100.00", "refund_amount": "0.00", "currency_code": "GEL",
        },
        "actions": null,
    })
    .to_string()
}

#[test]
fn a_stream_that_is_gone_takes_no_answer_to_its_call() {
    for with_a_word in [true, false] {
        let process = looking("bog");
        let (id, _) = process.call("k-1", &call("bog"));
        process.tick_after(1);
        process.answer_call(Some((200, &token())));
        if with_a_word {
            process.leaves(id);
        } else {
            process.host.streams.borrow_mut().remove(&id);
        }
        process.answer_call(Some((200, &paid_order())));
        // Nothing was written where the host would have put it instead.
        is_resumed(&process, ROOT, 0);
        assert_eq!(provider_of(&process, ROOT), None);
    }
}

#[test]
fn a_call_of_its_own_that_cannot_be_made_or_is_reset_sends_nothing() {
    for (made, status, code) in [
        (false, 503, "provider-unreachable"),
        (true, 502, "provider-error"),
    ] {
        let process = looking("moyasar");
        if !made {
            process
                .host
                .refuses
                .borrow_mut()
                .insert("dispatch_http_call");
        }
        let (id, flow) = process.call("k-1", &call("moyasar"));
        assert_eq!(flow, Flow::Pause);
        if made {
            process.answer_call(None);
        }
        let reply = process.answered(id);
        says(&reply, status, code);
        assert_eq!(reply.body["outcome"], "not_refunded");
        is_resumed(&process, id, 0);
    }
}

#[test]
fn openbao_is_not_asked_again_for_keys_that_it_has_just_not_told() {
    let process = signed_by_openbao();
    let asks_for_keys = |key: &str| {
        let (id, _) = process.call(key, &other_order(key));
        process.answer_call(Some((200, &signature())));
        let asks = !process.host.calls.borrow().is_empty();
        if asks {
            process.answer_call(Some((403, "{}")));
        }
        is_resumed(&process, id, 1);
        asks
    };
    assert!(asks_for_keys("1"));
    process.later(299_999);
    assert!(!asks_for_keys("2"));
    assert_eq!(process.logged("its public keys cannot be"), 1);
    process.later(1);
    assert!(asks_for_keys("3"));
}

/// A call for an order that no other key has.
fn other_order(id: &str) -> Value {
    let mut call = call("bbmsl");
    call["payment"] = json!({"id": id});
    call
}

// ---- What joins the filter's own calls to the caller's

#[test]
fn calls_of_the_filters_own_carry_the_callers_id_and_trace_and_nothing_odd() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (process, name, to_come) in [
        (process("bog"), "bog", [token()].as_slice()),
        (looking("moyasar"), "moyasar", &["{}".to_owned()]),
        // The signature, and the public keys after it.
        (
            signed_by_openbao(),
            "bbmsl",
            &[signature(), "{}".to_owned()],
        ),
    ] {
        let mut headers = call_headers("k-1");
        headers.text("traceparent", PARENT.to_owned());
        headers.text("tracestate", "a=".to_owned() + &"b".repeat(511));
        headers.push(&b"b3"[..], &b"\xff"[..]);
        headers.text("x-forwarded-proto", "http".to_owned());
        let (id, _) = process.headers(headers, Side::default(), false);
        process.body(id, &call(name));
        process.tick_after(1);
        for reply in to_come {
            let own = process.answer_call(Some((200, reply)));
            let headers = Headers::decode(&own.headers).unwrap();
            let one = |name| headers.first(name).map(String::from_utf8_lossy);
            let cluster = &own.cluster;
            assert_eq!(
                one("x-request-id").as_deref(),
                Some("request-1"),
                "{cluster}"
            );
            assert_eq!(one("traceparent").as_deref(), Some(PARENT), "{cluster}");
            // The provider's own call gets what its refund gets.
            let all = cluster == name;
            assert_eq!(one("tracestate").is_some(), all, "{cluster}");
            assert_eq!(one("b3").is_some(), all, "{cluster}");
            assert_eq!(one("x-forwarded-proto"), None, "{cluster}");
        }
        assert!(process.host.calls.borrow().is_empty(), "{name}");
    }
}

// ---- Callers that leave

/// What the next call with the same key finds after its caller has left.
#[track_caller]
fn next_call_finds(process: &Process, name: &str, code: Option<&str>) {
    let (id, _) = process.call("k-1", &call(name));
    match code {
        None => assert!(
            process.of(id, |side| side.replies.is_empty()),
            "not free: {:?}",
            process.answered(id)
        ),
        Some(code) => assert_eq!(process.answered(id).body["code"], code),
    }
}

#[test]
fn a_caller_that_leaves_before_anything_was_sent_leaves_its_key_free() {
    // While its body is read.
    let reading = process("moyasar");
    reading.leaves(reading.begin("k-1"));
    assert_eq!(reading.host.tick_ms.get(), 50);
    reading.tick_after(50);
    assert_eq!(reading.host.tick_ms.get(), IDLE_MS);
    next_call_finds(&reading, "moyasar", None);
    // While it waits: for a token, for the provider's word, for a signature, for OpenBao's public
    // key.
    for (process, name, answered) in [
        (process("bog"), "bog", false),
        (looking("moyasar"), "moyasar", false),
        (signed_by_openbao(), "bbmsl", false),
        (signed_by_openbao(), "bbmsl", true),
    ] {
        let (id, flow) = process.call("k-1", &call(name));
        assert_eq!(flow, Flow::Pause);
        if answered {
            process.answer_call(Some((200, &signature())));
            assert_eq!(process.host.calls.borrow().len(), 1);
        }
        process.leaves(id);
        next_call_finds(&process, name, None);
    }
}

#[test]
fn a_caller_that_leaves_after_the_send_leaves_its_key_in_doubt() {
    for (name, replying, finds) in [
        // The provider's own key makes a second send safe.
        ("moyasar", false, None),
        ("moyasar", true, None),
        ("bbmsl", false, Some("gateway-error")),
        ("bbmsl", true, Some("gateway-error")),
    ] {
        let process = process(name);
        let (id, flow) = process.call("k-1", &call(name));
        assert_eq!(flow, Flow::Continue);
        // Bytes have left.
        process.of(id, |side| {
            let address = b"10.0.0.1:40000".to_vec();
            side.properties
                .insert("upstream.local_address".to_owned(), address);
        });
        if replying {
            process.reply_begins(id, 200);
        }
        process.leaves(id);
        next_call_finds(&process, name, finds);
    }
}

#[test]
fn a_caller_that_leaves_before_a_connection_was_had_leaves_its_key_free() {
    let process = process("bbmsl");
    let (id, flow) = process.call("k-1", &call("bbmsl"));
    assert_eq!(flow, Flow::Continue);
    attempts(&process, id, 1);
    process.leaves(id);
    assert_eq!(process.call("k-1", &call("bbmsl")).1, Flow::Continue);
}

#[test]
fn an_answer_of_envoys_own_is_answered_in_its_place() {
    let process = process("bog");
    let (id, _) = process.call("k-1", &call("bog"));
    process.response_headers(id, 504, "response_timeout");
    says(&process.answered(id), 503, "provider-unreachable");
}

// ---- A route that leads to another cluster

/// A worker whose configuration names the provider's cluster, `own`.
fn in_its_cluster(beside: Option<&Process>, settle_seconds: u32) -> Process {
    let mut provider = fixture("moyasar").provider_config();
    provider["cluster"] = json!("own");
    provider["settle_seconds"] = json!(settle_seconds);
    match beside {
        Some(other) => Process::beside(other, "moyasar", &provider),
        None => Process::new("moyasar", &provider),
    }
}

/// What the caller of a refund is told where this cluster answers with a success.
fn told_where(cluster: Option<&str>, process: &Process, status: u16) -> Value {
    let (id, flow) = process.call("k-1", &call("moyasar"));
    assert_eq!(flow, Flow::Continue);
    process.of(id, |side| {
        let name = "xds.cluster_name".to_owned();
        side.properties
            .extend(cluster.map(|cluster| (name, cluster.into())));
    });
    process.reply_begins(id, status);
    process.reply_ends(id, &fixture("moyasar").shown(true));
    body_of(process, id, Buffer::Response)
}

const MISROUTED: &str = "refund.misrouted_total.provider.moyasar";

#[test]
fn a_reply_from_another_cluster_is_no_word_of_the_providers_and_nothing_more_is_sent() {
    for status in [200, 400] {
        let process = in_its_cluster(None, 300);
        let beside = in_its_cluster(Some(&process), 300);
        let told = told_where(Some("elsewhere"), &process, status);
        assert_eq!(told["code"], "gateway-error", "{told}");
        assert_eq!(told["outcome"], "unknown", "{told}");
        assert_eq!(told["retry"], "same_key", "{told}");
        assert_eq!(process.logged("led to the cluster elsewhere"), 1);
        assert_eq!(process.shows(MISROUTED), 1);
        // Another worker knows it, too. What may have been sent under a key stays unknown.
        for (worker, key, outcome) in [
            (&process, "k-2", "not_refunded"),
            (&beside, "k-3", "not_refunded"),
            (&beside, "k-1", "unknown"),
        ] {
            let (id, flow) = worker.call(key, &call("moyasar"));
            assert_eq!(flow, Flow::Pause, "{key}");
            let reply = worker.answered(id);
            says(&reply, 503, "gateway-error");
            assert_eq!(reply.body["outcome"], outcome, "{}", reply.body);
            assert_eq!(reply.body["retry"], "same_key", "{}", reply.body);
            assert_eq!(provider_of(worker, id), None, "{key} may have left");
        }
        // Another configuration begins anew.
        let pushed = in_its_cluster(Some(&process), 301);
        let told = told_where(Some("own"), &pushed, 200);
        assert_eq!(told["status"], "succeeded", "{told}");
        assert_eq!(pushed.shows(MISROUTED), 0);
    }
}

#[test]
fn what_was_answered_before_is_told_again_although_the_route_leads_elsewhere() {
    let process = in_its_cluster(None, 300);
    assert_eq!(told_where(None, &process, 200)["status"], "succeeded");
    let (id, _) = process.call("k-2", &call("moyasar"));
    process.of(id, |side| {
        let name = "xds.cluster_name".to_owned();
        side.properties.insert(name, b"elsewhere".to_vec());
    });
    process.reply_begins(id, 200);
    process.reply_ends(id, "{}");
    let (again, _) = process.call("k-1", &call("moyasar"));
    let reply = process.answered(again);
    assert_eq!(reply.body["status"], "succeeded", "{}", reply.body);
}

#[test]
fn a_cluster_that_is_not_configured_is_compared_with_nothing() {
    let process = process("moyasar");
    for cluster in [Some("elsewhere"), Some("moyasar")] {
        let told = told_where(cluster, &process, 200);
        assert_eq!(told["status"], "succeeded", "{told}");
        process.later(72 * 60 * 60 * 1_000);
    }
    assert_eq!(process.shows(MISROUTED), 0);
}
