//! The list of open refunds, over a host that records: what it shows, and what such a plugin does
//! not do.

use core_testbed::call_headers;
use core_testbed::fixtures::FIXTURES;
use core_testbed::gateway::fixture;
use core_testbed::host::{Process, Reply, Side};
use core_testbed::oracles::derived_key;
use refund_filter::headers::Headers;
use refund_filter::worker::Flow;
use serde_json::{Value, json};

/// The list's plugin in the process of this worker.
fn list_of(gateway: &Process) -> Process {
    Process::plugin(Some(gateway), &json!({"open_list": true}))
}

/// What the list's plugin answers.
fn asked(list: &Process, method: &'static str, path: &str) -> Reply {
    let mut headers = Headers::default();
    headers.fixed(":method", method);
    headers.text(":path", path.to_owned());
    let (id, flow) = list.headers(headers, Side::default(), method == "GET");
    assert_eq!(flow, Flow::Pause);
    list.answered(id)
}

fn listed(list: &Process) -> Value {
    let reply = asked(list, "GET", "/v1/refunds/open");
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.details, "refund_open_list");
    reply.body
}

/// A call whose reply is this; what the access log shows as its key's digest.
fn replied(gateway: &Process, key: &str, call: &Value, status: u16, body: &str) -> String {
    let (id, flow) = gateway.call(key, call);
    assert_eq!(flow, Flow::Continue);
    gateway.reply_begins(id, status);
    gateway.reply_ends(id, body);
    gateway.state(id, "key_digest").unwrap()
}

fn moyasar() -> Process {
    Process::new("moyasar", &fixture("moyasar").provider_config())
}

#[test]
fn a_refund_is_listed_from_its_doubt_to_its_end_with_what_it_takes_to_end_it() {
    let gateway = moyasar();
    let list = list_of(&gateway);
    let nothing = json!({"total": 0, "truncated": false, "refunds": []});
    assert_eq!(listed(&list), nothing);
    let mut call = fixture("moyasar").call();
    call["payment"]["reference"] = json!("order \"7\"\\");
    let digest = replied(&gateway, "k-secret", &call, 500, "{}");
    list.later(61_999);
    let refund = json!({
        "provider": "moyasar", "payment": call["payment"], "amount": call["amount"],
        "age_seconds": 61, "state": "unknown", "key_digest": digest,
    });
    let all = json!({"total": 1, "truncated": false, "refunds": [refund]});
    assert_eq!(listed(&list), all);
    assert!(!all.to_string().contains("k-secret"));
    // A further send under the key makes it no younger.
    gateway.later(30_000);
    replied(&gateway, "k-secret", &call, 500, "{}");
    assert_eq!(listed(&list), all);
    // In flight once more: nothing is known of it yet.
    let (id, _) = gateway.call("k-secret", &call);
    assert_eq!(listed(&list), all);
    gateway.reply_begins(id, 200);
    gateway.reply_ends(
        id,
        &fixture("moyasar").shown(true).replace(
            &derived_key("moyasar", "k-1"),
            &derived_key("moyasar", "k-secret"),
        ),
    );
    assert_eq!(listed(&list), nothing);
}

#[test]
fn a_call_whose_end_nobody_saw_is_listed_once_its_lease_is_over() {
    for provider in FIXTURES {
        let name = provider.name();
        let gateway = Process::new(name, &provider.provider_config());
        let list = list_of(&gateway);
        gateway.call("k-1", &provider.call());
        assert_eq!(listed(&list)["total"], 0, "{name}: it is in flight");
        list.later(60_000);
        let all = listed(&list);
        assert_eq!(all["total"], 1, "{name}: {all}");
        let refund = &all["refunds"][0];
        assert_eq!(refund["provider"], name);
        assert_eq!(refund["state"], "unknown", "{name}");
        assert_eq!(refund["payment"], provider.call()["payment"], "{name}");
        assert_eq!(refund["amount"], provider.call()["amount"], "{name}");
        assert!(!all.to_string().contains("CANARY"), "{name}: {all}");
        assert!(!all.to_string().contains("k-1"), "{name}: {all}");
    }
}

#[test]
fn what_is_pending_and_what_is_full_is_said_so() {
    let bog = fixture("bog");
    let mut provider = bog.provider_config();
    // Of several currencies nobody could tell which all of the payment is.
    provider["currencies"] = json!(["GEL"]);
    let gateway = Process::new("bog", &provider);
    let mut call = bog.call();
    call["amount"] = json!("full");
    let (id, _) = gateway.call("k-1", &call);
    gateway.tick_after(1);
    let token = json!({"access_token": "t", "token_type": "Bearer", "expires_in": 300});
    gateway.answer_call(Some((200, &token.to_string())));
    gateway.reply_begins(id, 200);
    gateway.reply_ends(
        id,
        r#"{"key": "request_received", "message": "Refund request received", "action_id": "r-1"}"#,
    );
    let all = listed(&list_of(&gateway));
    assert_eq!(all["refunds"][0]["state"], "pending", "{all}");
    assert_eq!(all["refunds"][0]["amount"], "full", "{all}");
}

#[test]
fn five_hundred_are_listed_the_oldest_first_and_all_are_counted() {
    let gateway = moyasar();
    let mut digests = Vec::new();
    for nth in 0..1_100 {
        let key = format!("k-{nth}");
        digests.push(replied(&gateway, &key, &fixture("moyasar").call(), 500, ""));
        gateway.later(1_000);
    }
    let all = listed(&list_of(&gateway));
    assert_eq!(all["total"], 1_100);
    assert_eq!(all["truncated"], true);
    let shown = all["refunds"].as_array().unwrap().iter();
    let shown: Vec<_> = shown
        .map(|refund| refund["key_digest"].as_str().unwrap())
        .collect();
    assert_eq!(shown, digests[..500]);
}

/// As after an update of the module: the keys of the one before it have no notes.
#[test]
fn a_refund_of_which_nothing_is_noted_is_listed_by_its_key_alone() {
    let gateway = moyasar();
    let digest = replied(&gateway, "k-1", &fixture("moyasar").call(), 500, "{}");
    let mut memory = gateway.host.memory.0.borrow_mut();
    memory.retain(|name, _| !name.ends_with(".note"));
    drop(memory);
    let refund = json!({"state": "unknown", "key_digest": digest});
    let all = json!({"total": 1, "truncated": false, "refunds": [refund]});
    assert_eq!(listed(&list_of(&gateway)), all);
}

#[test]
fn such_a_plugin_answers_nothing_else_and_makes_no_table() {
    let gateway = moyasar();
    // The gateway's own configuration does as well.
    let whole = json!({"open_list": true, "guard": {"entries": 1}, "providers": {
        "moyasar": fixture("moyasar").provider_config(),
    }});
    for configuration in [json!({"open_list": true}), whole] {
        let list = Process::plugin(Some(&gateway), &configuration);
        assert_eq!(list.host.tick_ms.get(), 0, "it has nothing to look after");
        for (method, path, status, code) in [
            ("POST", "/v1/refunds", 404, "bad-request"),
            ("GET", "/v1/refunds", 404, "bad-request"),
            ("POST", "/v1/refunds/preview", 404, "bad-request"),
            ("GET", "/v1/refunds/open/", 404, "bad-request"),
            ("GET", "/", 404, "bad-request"),
            ("POST", "/v1/refunds/open", 405, "method-not-allowed"),
            (
                "GET",
                "/v1/refunds/open?state=unknown",
                422,
                "invalid-request",
            ),
        ] {
            let reply = asked(&list, method, path);
            assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
            assert_eq!(reply.body["code"], code, "{method} {path}");
            assert_eq!(reply.body["outcome"], "unknown", "{method} {path}");
            assert_eq!(reply.body["retry"], "corrected", "{method} {path}");
        }
        let call = fixture("moyasar").call();
        let (id, flow) = list.headers(call_headers("k-1"), Side::default(), false);
        assert_eq!((flow, list.body(id, &call)), (Flow::Pause, Flow::Pause));
        assert_eq!(list.answered(id).status, 404);
        list.leaves(id);
        list.close();
        // Its only figure is that it was configured.
        let metrics = list.host.metrics.borrow();
        assert!(
            metrics.iter().all(|name| name.contains("configurations")),
            "{metrics:?}"
        );
    }
}

#[test]
fn the_table_keeps_the_size_that_the_gateway_gives_it_whichever_plugin_comes_first() {
    let list = Process::plugin(None, &json!({"open_list": true}));
    assert_eq!(listed(&list)["total"], 0);
    let gateway = Process::plugin(
        Some(&list),
        &json!({"guard": {"entries": 32}, "providers": {
            "moyasar": fixture("moyasar").provider_config(),
        }}),
    );
    assert_eq!(gateway.shows("refund.guard_capacity"), 32);
    assert_eq!(gateway.logged("the guard keeps the number of entries"), 0);
}

/// A slip in the path of a look-up reaches no provider.
#[test]
fn the_gateways_own_plugin_has_no_list() {
    let gateway = moyasar();
    for method in ["GET", "POST"] {
        let mut headers = Headers::default();
        headers.fixed(":method", method);
        headers.fixed(":path", "/v1/refunds/open");
        let (id, flow) = gateway.headers(headers, Side::default(), true);
        // It is none of the filter's, and no provider's route takes it.
        assert_eq!(flow, Flow::Continue);
        assert_eq!(gateway.of(id, |side| side.properties.len()), 0);
    }
}
