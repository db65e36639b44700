//! Calls to a gateway of a mesh, and what has become of them at the simulated providers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_testbed::{Answer, module};
use mesh_testbed::{Call, Cluster, Stranger};
use provider_simulator::Provider::{self, Begateway};
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

/// The module of another version: its user agent alone is another.
pub fn other_module(cluster: &Cluster, version: &str) -> Result<PathBuf> {
    let mut bytes = std::fs::read(module()?)?;
    let known = concat!("refund-filter/", env!("CARGO_PKG_VERSION")).as_bytes();
    let new = format!("refund-filter/{version}");
    ensure!(new.len() == known.len());
    let at = bytes.windows(known.len()).position(|part| part == known);
    let at = at.context("the module has no user agent")?;
    bytes[at..at + known.len()].copy_from_slice(new.as_bytes());
    let path = cluster.file(&format!("{version}.wasm"));
    std::fs::write(&path, bytes)?;
    Ok(path)
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

/// Calls at 20 a second while `change` goes on. Every call is answered, made again under its key
/// where its connection broke, and booked once.
pub async fn under_load(
    cluster: &Cluster,
    port: u16,
    change: impl AsyncFnOnce() -> Result<()>,
) -> Result<usize> {
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
                for _ in 0..40 {
                    if answer.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    answer = call.send(port).await;
                }
                (call, answer)
            }));
        }
        calls
    });
    let result = change().await;
    STOP.store(true, Ordering::Relaxed);
    let calls = load.await?;
    result?;
    let count = calls.len();
    for call in calls {
        let (call, answer) = call.await?;
        let answer = answer?;
        assert_eq!(answer.status, 200, "{answer:#?}");
        assert_eq!(booked(cluster, Begateway, &call), 1, "{call:?}");
    }
    Ok(count)
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
