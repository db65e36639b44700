//! The list of open refunds on a listener of its own, as `envoy/open-list.yaml` has it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::common::{FOUR, asked_wrongly, assert_problem, of};
use anyhow::{Context as _, Result};
use gateway_testbed::{Answer, Gateway, Options, PATH, filter_mut, parts};
use provider_simulator::Fault;
use provider_simulator::Provider::{Bbmsl, Moyasar};
use serde_json::{Value, json};

/// Puts open-list.yaml beside the refunds' listener.
fn with_the_list(config: &mut Value) {
    let mut parts = parts("open-list.yaml").expect("open-list.yaml");
    let mut listener = parts["static_resources"]["listeners"][0].take();
    listener["address"]["socket_address"]["port_value"] = json!(0);
    let code = filter_mut(config).expect("the filter")["vm_config"]["code"].clone();
    let filter = "/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config";
    listener.pointer_mut(filter).expect("the list")["vm_config"]["code"] = code;
    let listeners = config["static_resources"]["listeners"].as_array_mut();
    listeners.expect("listeners").push(listener);
}

async fn list_address(gateway: &Gateway) -> Result<SocketAddr> {
    let text = gateway.admin("/listeners?format=json").await?;
    let listeners: Value = serde_json::from_str(&text)?;
    let mut all = listeners["listener_statuses"]
        .as_array()
        .into_iter()
        .flatten();
    let own = all.find(|listener| listener["name"] == "refunds-open");
    let port =
        &own.context("the list's listener")?["local_address"]["socket_address"]["port_value"];
    let port = u16::try_from(port.as_u64().context("a port")?)?;
    Ok(([127, 0, 0, 1], port).into())
}

async fn read(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    let method = method.parse::<reqwest::Method>()?;
    let mut call = reqwest::Client::new().request(method, format!("http://{address}{path}"));
    if let Some(body) = body {
        call = call
            .header("content-type", "application/json")
            .header("idempotency-key", "key-of-the-list")
            .body(body.to_string());
    }
    Answer::read(call.send().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_listed_on_a_listener_of_its_own_and_nothing_is_refunded_there()
-> Result<()> {
    let mut gateway = Gateway::start(Options::changed(with_the_list)).await?;
    let list = list_address(&gateway).await?;
    let open = format!("{PATH}/open");
    let answer = read(list, "GET", &open, None).await?;
    let nothing = json!({"total": 0, "truncated": false, "refunds": []});
    assert_eq!(answer.body, nothing, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert!(!answer.header("x-request-id").is_empty(), "{answer:?}");

    for provider in FOUR {
        let fault = Fault::HeaderOnly {
            status: 500,
            booked: false,
        };
        gateway.simulators.next_fault(provider, fault);
        let key = format!("key-{provider:?}");
        let told = gateway.refund(&key, &of(provider, 1, "1.00")).await?;
        assert_eq!(told.body["outcome"], "unknown", "{provider:?}: {told:?}");
    }
    let answer = read(list, "GET", &open, None).await?;
    assert_eq!((&answer.body["total"], answer.status), (&json!(4), 200));
    let shown = answer.body["refunds"].as_array().context("a list")?;
    let of_each = |refund: &Value, provider| {
        let call = of(provider, 1, "1.00");
        refund["provider"] == call["provider"]
            && refund["payment"] == call["payment"]
            && refund["amount"] == call["amount"]
            && refund["state"] == "unknown"
            && refund["age_seconds"].is_u64()
    };
    for provider in FOUR {
        let is_there = shown.iter().any(|refund| of_each(refund, provider));
        assert!(is_there, "{provider:?}: {answer:?}");
    }
    let key = gateway.secrets.of(Bbmsl).lines().skip(1).take(3);
    for secret in ["canary", "key-", "CANARY", "Bearer"]
        .into_iter()
        .chain(key)
    {
        assert!(!answer.text.contains(secret), "{secret} in {answer:?}");
    }

    // A refund that goes to the list by mistake is none, and a look at the list on the refunds' listener reaches nobody.
    let received = FOUR.map(|provider| gateway.simulators.received(provider));
    for (method, path, status, code) in [
        ("POST", PATH, 404, "bad-request"),
        ("GET", PATH, 404, "bad-request"),
        ("POST", &open, 405, "method-not-allowed"),
    ] {
        let body = of(Moyasar, 2, "1.00");
        let answer = read(list, method, path, Some(&body)).await?;
        assert_problem(path, &answer, asked_wrongly(code, status));
    }
    for method in ["GET", "POST"] {
        let body = of(Moyasar, 2, "1.00");
        let answer = read(gateway.address, method, &open, Some(&body)).await?;
        assert_eq!((answer.status, &*answer.text), (404, ""), "{answer:?}");
    }
    let now = FOUR.map(|provider| gateway.simulators.received(provider));
    assert_eq!(now, received);

    // The key's digest is the one by which the access log knows it.
    gateway.stop().await?;
    let log = gateway.access_log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let logged: BTreeSet<String> = lines
        .filter_map(|line| Some(line["key_digest"].as_str()?.to_owned()))
        .collect();
    let listed: BTreeSet<String> = shown
        .iter()
        .filter_map(|refund| Some(refund["key_digest"].as_str()?.to_owned()))
        .collect();
    assert_eq!((listed.len(), &listed), (4, &logged), "{log}");
    Ok(())
}
