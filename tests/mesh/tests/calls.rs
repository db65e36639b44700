//! Calls to a gateway of a mesh, and what has become of them at the simulated providers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use gateway_testbed::Answer;
use gateway_testbed::redis::{Clients, HOST, Redis, USER};
use mesh_testbed::{Call, Cluster, Overlay, Stranger, wait_for};
use provider_simulator::Provider::{self, Bbmsl, Begateway};
use provider_simulator::orders;
use serde_json::{Value, json};

/// Tokens of the example's issuer, signed by HS256 with the key of [`JWKS`]: of `returns`, and of
/// the same signed with another key.
pub const RETURNS: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJyZXR1cm5zIn0.cB3BrHxICNhY2YKz3aq7h7q7SAlN59eDMOQuDoNR9Og";
pub const FORGED: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJyZXR1cm5zIn0.j1ESLIGR70F-K7BVSRikNRTSqz7tXqewOSxjgCJqXKI";
pub const JWKS: &str = r#"{"keys": [{"kty": "oct", "alg": "HS256", "kid": "1", "k": "YSBrZXkgb2YgdGhlc2UgdGVzdHMsIDMyIGJ5dGVzIG9yIG1vcmU"}]}"#;

/// The providers, without BOG's token endpoint.
pub const FOUR: [Provider; Provider::REFUNDING.len()] = Provider::REFUNDING;

static ORDERS: AtomicU64 = AtomicU64::new(1);

/// A refund of 1.00 of an order that no call was made for yet.
pub fn fresh(provider: Provider) -> Call {
    let (currency, _) = provider.declared().currency;
    let body = json!({
        "provider": gateway_testbed::cluster(provider),
        "payment": {"id": orders::fresh(provider, ORDERS.fetch_add(1, Ordering::Relaxed))},
        "amount": {"value": "1.00", "currency": currency},
    });
    Call::refund(RETURNS, &body)
}

/// The payment that a call refunds.
fn payment(call: &Call) -> String {
    let body: Value = serde_json::from_str(&call.body).expect("a refund");
    body["payment"]["id"].as_str().expect("an id").to_owned()
}

/// How many calls have come to the providers.
pub fn received(cluster: &Cluster) -> u64 {
    let all = Provider::ALL.into_iter();
    all.map(|provider| cluster.simulators.received(provider))
        .sum()
}

/// How often this call's payment was refunded.
pub fn booked(cluster: &Cluster, provider: Provider, call: &Call) -> usize {
    let ledger = cluster.simulators.ledger(provider);
    let payment = payment(call);
    ledger
        .iter()
        .filter(|entry| entry.payment == payment)
        .count()
}

/// How often this call has come to the provider.
pub fn sent(cluster: &Cluster, provider: Provider, call: &Call) -> usize {
    let payment = payment(call);
    // `order-1` is not `order-10`.
    let of = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let mut rest = text.split(payment.as_str()).skip(1);
        rest.any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    let requests = cluster.simulators.requests(provider);
    requests
        .iter()
        .filter(|exchange| of(&exchange.request.body) || of(exchange.request.path.as_bytes()))
        .count()
}

/// The user agent of the last call to a provider.
pub fn user_agent(cluster: &Cluster, provider: Provider) -> String {
    let last = cluster.simulators.last_request(provider);
    let agents: Vec<_> = last
        .iter()
        .flat_map(|last| last.headers_named("user-agent"))
        .collect();
    String::from_utf8_lossy(&agents.concat()).into_owned()
}

/// How one sees that an object is gone or wrong.
pub enum Sign {
    /// By a word of what the doctor says.
    Says(&'static str),
    /// The doctor has nothing to say: by what is no longer in use, by the dump as compact JSON.
    FromDump(&'static str),
    /// Envoy goes on with what it has: by the status of this object, `kind/name`.
    Status(&'static str),
    /// The same: by a word of what the control plane logs.
    Logged(&'static str),
}

impl Sign {
    /// Whether it is there, by the dump of a gateway and the log of its control plane.
    pub async fn is_there(&self, cluster: &Cluster, dump: &str, log: &str) -> Result<bool> {
        Ok(match self {
            Sign::Says(word) => doctor(dump)?.iter().any(|line| line.contains(word)),
            Sign::FromDump(text) => !in_use(dump)?.contains(text),
            Sign::Logged(word) => log.contains(word),
            Sign::Status(object) => {
                let (kind, name) = object.split_once('/').unwrap_or_default();
                let status = cluster.object(kind, name).await?["status"].to_string();
                status.contains(r#""status":"False""#)
            }
        })
    }
}

/// A dump without the listeners that only end what they have begun.
fn in_use(dump: &str) -> Result<String> {
    let mut dump: Value = serde_json::from_str(dump)?;
    let parts = dump["configs"].as_array_mut().context("no configs")?;
    for listener in parts
        .iter_mut()
        .filter_map(|part| part.get_mut("dynamic_listeners")?.as_array_mut())
        .flatten()
    {
        listener["draining_state"].take();
    }
    Ok(dump.to_string())
}

/// What the doctor says of a dump, a line each.
pub fn doctor(dump: &str) -> Result<Vec<String>> {
    let findings = refund_doctor::examine(dump)?;
    Ok(findings.iter().map(ToString::to_string).collect())
}

/// Another application gets no call that the filter has made of a refund, and no provider's key.
pub fn assert_nothing_leaks(case: &str, cluster: &Cluster, stranger: &Stranger) {
    let got = stranger.got().to_lowercase();
    for word in ["refund-filter/", "x-refund-", "authorization: basic"] {
        assert!(!got.contains(word), "{case}: {word}: {got}");
    }
    for (name, value) in cluster.secrets.iter().flat_map(|secrets| secrets.by_name()) {
        assert!(!got.contains(&value.to_lowercase()), "{case}: {name} leaks");
    }
}

/// What an answer says must be true: of what is certain, and of what is not said.
pub fn assert_true(case: &str, answer: &Answer, booked: usize) {
    match answer.body["outcome"].as_str() {
        Some("not_refunded") => assert_eq!(booked, 0, "{case}: {answer:#?}"),
        Some("unknown") => {}
        Some(other) => panic!("{case}: {other}"),
        None if answer.status < 300 => assert_eq!(booked, 1, "{case}: {answer:#?}"),
        // Envoy's own, which says nothing of the refund.
        None => assert_eq!(answer.body["status"], Value::Null, "{case}: {answer:#?}"),
    }
}

/// A call that was made while something changed: whether its connection broke once, and its last answer.
type Made = (Call, bool, Result<Answer>);

/// Calls at 20 a second while `change` goes on, each made again under its key where its connection broke.
async fn during(port: u16, change: impl AsyncFnOnce() -> Result<()>) -> Result<Vec<Made>> {
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    let load = tokio::spawn(async move {
        let mut calls = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while !STOP.load(Ordering::Relaxed) {
            tick.tick().await;
            calls.push(tokio::spawn(async move {
                let call = fresh(Begateway);
                let mut answer = call.send(port).await;
                let broke = answer.is_err();
                for _ in 0..40 {
                    if answer.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    answer = call.send(port).await;
                }
                (call, broke, answer)
            }));
        }
        calls
    });
    let result = change().await;
    STOP.store(true, Ordering::Relaxed);
    let mut made = Vec::new();
    for call in load.await? {
        made.push(call.await?);
    }
    result?;
    Ok(made)
}

/// Calls at 20 a second while `change` goes on: every one is booked once, and its caller knows it.
pub async fn under_load(
    cluster: &Cluster,
    port: u16,
    change: impl AsyncFnOnce() -> Result<()>,
) -> Result<usize> {
    let made = during(port, change).await?;
    made.iter()
        .try_for_each(|made| is_booked_once(cluster, made))?;
    Ok(made.len())
}

/// The same where pods share a memory. There the key of a call that went with its pod is in flight until its lease ends.
async fn under_load_sharing(
    cluster: &Cluster,
    port: u16,
    change: impl AsyncFnOnce() -> Result<()>,
) -> Result<usize> {
    let made = during(port, change).await?;
    for made in &made {
        match made {
            (call, true, Ok(answer)) if answer.body["code"] == "refund-in-progress" => {
                assert!(booked(cluster, Begateway, call) <= 1, "{call:?}");
            }
            made => is_booked_once(cluster, made)?,
        }
    }
    Ok(made.len())
}

fn is_booked_once(cluster: &Cluster, (call, _, answer): &Made) -> Result<()> {
    let answer = answer.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert_eq!(booked(cluster, Begateway, call), 1, "{call:?}");
    Ok(())
}

/// Whether a refund that succeeded is counted with its labels, whatever their order.
pub fn has_series(figures: &str) -> bool {
    figures.lines().any(|line| {
        line.starts_with("refund_calls_total{")
            && [
                r#"provider="begateway""#,
                r#"kind="refund""#,
                r#"outcome="succeeded""#,
                r#"code="none""#,
                r#"replayed="false""#,
            ]
            .iter()
            .all(|label| line.contains(label))
            && !line.ends_with(" 0")
    })
}

/// A Redis for the component `memory` as it ships: the machine trusts its authority, and it asks for
/// no certificates.
pub async fn store() -> Result<Redis> {
    let redis = Redis::for_clients(Clients::PasswordAlone).await?;
    let trusted = "/etc/ssl/certs/ca-certificates.crt";
    let authorities = [trusted.into(), redis.store().ca].map(std::fs::read_to_string);
    let [others, its] = authorities;
    std::fs::write(trusted, others? + &its?)?;
    Ok(redis)
}

/// Lists the component `memory` where the pages say, with the two values that it needs.
pub fn share_memory(overlay: &mut Overlay, redis: &Redis, password: &Value) -> Result<()> {
    let mut names = overlay.components.iter();
    let refunds = names.position(|name| name == "refunds");
    let place = refunds.context("no component `refunds`")? + 1;
    overlay.components.insert(place, "memory".into());
    // The second is in no DNS: one name that is not found keeps nobody from the other.
    let endpoints = ["redis-0.corp.example", "redis-1.corp.example"].map(|host| {
        let address = json!({"address": host, "port_value": redis.address.port()});
        json!({"endpoint": {"address": {"socket_address": address}}})
    });
    // A busy machine is no fault of the store's.
    let memory = json!({"redis": {"cluster": "memory", "username": USER, "password": password, "timeout_ms": 2_000}});
    let store = json!({"server_name": HOST, "endpoints": endpoints});
    for (kind, spec) in [("RefundMemory", memory), ("RefundStore", store)] {
        overlay.values.push(json!({
            "apiVersion": "refund-filter/v1", "kind": kind, "spec": spec,
            "metadata": {"name": "memory", "annotations": {"config.kubernetes.io/local-config": "true"}},
        }));
    }
    Ok(())
}

/// Whether a pod has found the store, by its admin page `/clusters`. (Of Envoy's figures, Istio's agent keeps few.)
pub fn has_found_the_store(clusters: &str) -> bool {
    let mut lines = clusters.lines();
    lines.any(|line| line.starts_with("memory::") && line.ends_with("::health_flags::healthy"))
}

/// Makes the same call eight times at once at each provider: it is sent once.
pub async fn at_once(cluster: &Cluster, port: u16) -> Result<Vec<(Provider, Call)>> {
    let mut made = Vec::new();
    for provider in FOUR {
        let call = fresh(provider);
        let calls = (0..8).map(|_| {
            let call = call.clone();
            tokio::spawn(async move { call.send(port).await })
        });
        for answer in calls.collect::<Vec<_>>() {
            let answer = answer.await??;
            let in_flight = answer.body["code"] == "refund-in-progress";
            assert!(
                answer.status < 300 || in_flight,
                "{provider:?}: {answer:#?}"
            );
        }
        assert_eq!(booked(cluster, provider, &call), 1, "{provider:?}");
        let again = call.send(port).await?;
        assert!(again.status < 300, "{provider:?}: {again:#?}");
        if provider.declared().answers != "pending" {
            assert_eq!(sent(cluster, provider, &call), 1, "{provider:?}");
        }
        made.push((provider, call));
    }
    Ok(made)
}

/// Pods are replaced under calls by others of the same store, which goes and comes back then: what was refunded before stays
/// remembered, and nothing false is said.
pub async fn remembers_over_a_rollout_and_an_outage(
    cluster: &Cluster,
    port: u16,
    redis: &mut Redis,
    made: &[(Provider, Call)],
    end_old_pods: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let count = under_load_sharing(cluster, port, end_old_pods).await?;
    println!("booked once each: {count} calls (a rollout with a shared memory)");
    are_remembered(cluster, port, made).await?;
    redis.kill().await?;
    goes_on_without_the_store(cluster, port).await?;
    redis.restart().await?;
    let call = fresh(Bbmsl);
    let is_back = || async {
        let answer = call.send(port).await;
        answer.is_ok_and(|answer| answer.status == 200)
    };
    wait_for("the store", is_back).await?;
    are_remembered(cluster, port, made).await
}

/// What was refunded before a rollout is not sent again after it.
async fn are_remembered(cluster: &Cluster, port: u16, made: &[(Provider, Call)]) -> Result<()> {
    for (provider, call) in made {
        let before = sent(cluster, *provider, call);
        let again = call.send(port).await?;
        assert!(again.status < 300, "{provider:?}: {again:#?}");
        assert_eq!(booked(cluster, *provider, call), 1, "{provider:?}");
        if provider.declared().answers != "pending" {
            assert_eq!(again.header("idempotency-replayed"), "true", "{provider:?}");
            assert_eq!(sent(cluster, *provider, call), before, "{provider:?}");
        }
    }
    Ok(())
}

/// Without its store, the provider without keys sends nothing, and the others go on.
async fn goes_on_without_the_store(cluster: &Cluster, port: u16) -> Result<()> {
    let call = fresh(Bbmsl);
    let answer = call.send(port).await?;
    let said = ["code", "outcome", "retry"].map(|member| answer.body[member].as_str());
    assert_eq!(
        said.map(Option::unwrap_or_default),
        ["memory-unavailable", "unknown", "same_key"],
        "{answer:#?}"
    );
    assert_eq!(sent(cluster, Bbmsl, &call), 0);
    let call = fresh(Begateway);
    let answer = call.send(port).await?;
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert_eq!(booked(cluster, Begateway, &call), 1);
    Ok(())
}
