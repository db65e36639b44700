//! What the test files share.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_testbed::{Answer, Front, Gateway, Options, Secrets, cluster};
use http::{HeaderMap, HeaderName, HeaderValue};
use provider_simulator::{Provider, orders};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// The providers, without the token endpoints beside them.
pub const FOUR: [Provider; Provider::REFUNDING.len()] = Provider::REFUNDING;

/// Those that know a second send by its key.
pub fn keyed() -> impl Iterator<Item = Provider> {
    FOUR.into_iter().filter(|provider| provider.has_keys())
}

/// Those whose refunds have ended when they are taken.
pub fn final_at_once() -> impl Iterator<Item = Provider> {
    FOUR.into_iter()
        .filter(|provider| taken(*provider).1 == "succeeded")
}

/// Changes the filter's own configuration inside Envoy's.
pub fn plugin(config: &mut Value, change: impl FnOnce(&mut Value)) {
    gateway_testbed::change_plugin(config, change).expect("the plugin configuration");
}

/// Three gateways in front of the same simulators, which are the first one's, and what stands in
/// front of them.
pub async fn fleet() -> Result<(Gateway, Vec<Gateway>, Front)> {
    let first = Gateway::start(Options::default()).await?;
    let mut others = Vec::new();
    for _ in 0..2 {
        let options = Options {
            beside: Some(first.beside()),
            ..Options::default()
        };
        others.push(Gateway::start(options).await?);
    }
    let all = others.iter().chain([&first]);
    let addresses: Vec<_> = all.map(|gateway| gateway.address).collect();
    let front = Front::start(&addresses).await?;
    Ok((first, others, front))
}

/// The members of a problem that callers decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static str,
    pub status: u16,
    pub outcome: &'static str,
    pub retry: &'static str,
}

impl Problem {
    /// One that spends its key, and of which it is certain that no money moved.
    pub const fn certain(code: &'static str, status: u16) -> Problem {
        Problem {
            code,
            status,
            outcome: "not_refunded",
            retry: "no",
        }
    }

    /// One of a call that must be corrected, and then sent with the same key.
    pub const fn corrected(code: &'static str, status: u16) -> Problem {
        Problem {
            retry: "corrected",
            ..Problem::certain(code, status)
        }
    }
}

/// What may be done about a refund of which it is not known whether it was made: that goes by
/// whether the provider knows keys.
pub fn by_key(provider: Provider) -> &'static str {
    match provider.has_keys() {
        true => "same_key",
        false => "look_up",
    }
}

/// The status and the word of a refund that a provider takes.
pub fn taken(provider: Provider) -> (u16, &'static str) {
    match provider.declared().answers {
        "pending" => (202, "pending"),
        word => (200, word),
    }
}

/// A problem of a refund that may have been made.
pub fn unknown(provider: Provider, code: &'static str, status: u16) -> Problem {
    Problem {
        outcome: "unknown",
        retry: by_key(provider),
        ..Problem::certain(code, status)
    }
}

/// A problem of a look-up: what fails there says nothing of the refund.
pub const fn asked(code: &'static str, status: u16) -> Problem {
    Problem {
        outcome: "unknown",
        retry: "look_up",
        ..Problem::certain(code, status)
    }
}

/// A problem of a look-up that must be corrected.
pub const fn asked_wrongly(code: &'static str, status: u16) -> Problem {
    Problem {
        outcome: "unknown",
        ..Problem::corrected(code, status)
    }
}

/// The currency of a provider's fresh orders.
pub fn currency(provider: Provider) -> &'static str {
    provider.declared().currency.0
}

/// So much of a provider's nth fresh order.
pub fn of(provider: Provider, nth: u64, value: &str) -> Value {
    json!({
        "provider": cluster(provider),
        "payment": {"id": orders::fresh(provider, nth)},
        "amount": {"value": value, "currency": currency(provider)},
    })
}

/// How often a provider's nth fresh order was refunded.
pub fn booked(gateway: &Gateway, provider: Provider, nth: u64) -> usize {
    let id = orders::fresh(provider, nth);
    let ledger = gateway.simulators.ledger(provider);
    ledger
        .iter()
        .filter(|refunded| refunded.payment == id)
        .count()
}

/// Closes a provider, and waits until Envoy has seen its connections go: a call on one that is
/// closing has perhaps left.
pub async fn shut(gateway: &Gateway, provider: Provider) -> Result<()> {
    gateway.simulators.close(provider).await;
    let open = format!(r"^cluster\.{}\.upstream_cx_active$", cluster(provider));
    for _ in 0..3_000 {
        if gateway
            .stats(&open)
            .await?
            .values()
            .all(|count| *count == 0)
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("Envoy keeps its connections to {provider:?}")
}

/// Waits until something is so; an error where it never is.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await? {
        ensure!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The secrets of all gateways that are given no others.
pub fn secrets() -> Secrets {
    Secrets::of_this_process().expect("a key")
}

/// Waits until a provider has so many requests.
pub async fn until_received(gateway: &Gateway, provider: Provider, count: u64) -> Result<()> {
    until("the request at the provider", async || {
        Ok(gateway.simulators.received(provider) >= count)
    })
    .await
}

/// Writes these bytes over HTTP/1.1 and reads the answer, which may come before all of them are
/// written.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Result<Answer> {
    let (mut from, mut to) = TcpStream::connect(address).await?.into_split();
    let bytes = bytes.to_vec();
    let writes = tokio::spawn(async move {
        let _ = to.write_all(&bytes).await;
        to
    });
    let mut text = String::new();
    let (head, body) = loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .split_once("content-length: ")
                .and_then(|(_, rest)| rest.lines().next()?.parse().ok());
            if body.len() >= length.unwrap_or(usize::MAX) {
                break (head, body);
            }
        }
        let mut part = [0; 4096];
        match timeout(PATIENCE, from.read(&mut part)).await?? {
            0 => {
                break text
                    .split_once("\r\n\r\n")
                    .with_context(|| format!("no head: {text:?}"))?;
            }
            read => text.push_str(std::str::from_utf8(&part[..read])?),
        }
    };
    writes.abort();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)?.parse().ok());
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").context("a header")?;
        headers.append(
            HeaderName::from_bytes(name.as_bytes())?,
            HeaderValue::from_str(value)?,
        );
    }
    Ok(Answer {
        status: status.context("no status")?,
        headers,
        text: body.to_owned(),
        body: serde_json::from_str(body).unwrap_or_default(),
    })
}

/// Whether the answer is a problem in every detail that the contract promises.
#[track_caller]
pub fn assert_problem(case: &str, answer: &Answer, expected: Problem) {
    let Problem {
        code,
        status,
        outcome,
        retry,
    } = expected;
    let text = &answer.text;
    let member = |name: &str| answer.body[name].as_str().unwrap_or_default();
    assert_eq!(
        (
            member("code"),
            answer.status,
            member("outcome"),
            member("retry")
        ),
        (code, status, outcome, retry),
        "{case}: {text}"
    );
    assert_eq!(
        answer.header("content-type"),
        "application/problem+json",
        "{case}"
    );
    assert!(!answer.header("x-request-id").is_empty(), "{case}");
    assert_eq!(answer.header("cache-control"), "no-store", "{case}");
    assert_eq!(answer.body["status"], status, "{case}: {text}");
    assert_eq!(
        member("type"),
        format!("urn:refund-filter:{code}"),
        "{case}"
    );
    assert!(
        !member("title").is_empty() && !member("detail").is_empty(),
        "{case}: {text}"
    );
    for (name, value) in answer.body.as_object().into_iter().flatten() {
        let known = [
            "type",
            "title",
            "status",
            "detail",
            "code",
            "outcome",
            "retry",
            "retry_until",
            "errors",
            "provider",
        ];
        assert!(known.contains(&name.as_str()), "{case}: {name} in {text}");
        // An Envoy before 1.40 does not leave out what is empty in the problems that it writes
        // itself.
        let older = name == "retry_until" && std::env::var_os("ENVOY_WRITES_NULL").is_some();
        assert!(!value.is_null() || older, "{case}: {name} in {text}");
    }
    assert_eq!(
        answer.body.get("errors").is_some(),
        code == "invalid-request",
        "{case}: {text}"
    );
}
