//! What the test files share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use gateway_testbed::{Answer, Gateway, cluster};
use provider_simulator::Provider::{self, Bbmsl, Begateway, Bog, BogToken, Moyasar};
use provider_simulator::orders;
use serde_json::{Value, json};

/// The providers, without BOG's token endpoint.
pub const FOUR: [Provider; 4] = [Bog, Moyasar, Begateway, Bbmsl];

/// Changes the filter's own configuration inside Envoy's.
pub fn plugin(config: &mut Value, change: impl FnOnce(&mut Value)) {
    gateway_testbed::change_plugin(config, change).expect("the plugin configuration");
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
    /// One that the same call would meet again, and of which it is certain that no money moved.
    pub const fn certain(code: &'static str, status: u16) -> Problem {
        Problem {
            code,
            status,
            outcome: "not_refunded",
            retry: "no",
        }
    }
}

/// What may be done about a refund of which it is not known whether it was made: that goes by whether the provider knows
/// keys.
pub fn by_key(provider: Provider) -> &'static str {
    match provider {
        Bbmsl => "look_up",
        Bog | BogToken | Moyasar | Begateway => "same_key",
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

/// The currency of a provider's fresh orders.
pub fn currency(provider: Provider) -> &'static str {
    match provider {
        Bog | BogToken => "GEL",
        Moyasar => "SAR",
        Begateway => "USD",
        Bbmsl => "HKD",
    }
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

/// Closes a provider, and waits until Envoy has seen its connections go: a call on one that is closing has perhaps left.
pub async fn shut(gateway: &Gateway, provider: Provider) -> anyhow::Result<()> {
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
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    anyhow::bail!("Envoy keeps its connections to {provider:?}")
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
        // An Envoy before 1.40 does not leave out what is empty in the problems that it writes itself.
        let older = name == "retry_until" && std::env::var_os("ENVOY_WRITES_NULL").is_some();
        assert!(!value.is_null() || older, "{case}: {name} in {text}");
    }
    assert_eq!(
        answer.body.get("errors").is_some(),
        code == "invalid-request",
        "{case}: {text}"
    );
}
