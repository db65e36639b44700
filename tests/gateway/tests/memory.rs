//! Gateways that share one memory of keys, in a real Redis over TLS: its user may do nothing but what the filter does.

use std::time::Duration;

use crate::common::{FOUR, Problem, assert_problem, booked, final_at_once, keyed, of, unknown};
use anyhow::{Context as _, Result, ensure};
use gateway_testbed::redis::{PASSWORD, Redis, Store, USER};
use gateway_testbed::{Beside, Gateway, Options, cluster, share_memory};
use provider_simulator::{Fault, Provider};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use Provider::{Bbmsl, Moyasar};

/// 1.00 of a provider's nth fresh order.
fn one(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

/// A gateway with this memory: the first, or another one beside it.
async fn sharing(stores: &[Store], beside: Option<Beside>) -> Result<Gateway> {
    let stores = stores.to_vec();
    let gateway = Gateway::start(Options {
        more_secrets: vec![("memory-password", PASSWORD.to_owned())],
        change: Box::new(move |config, folder| {
            share_memory(config, &stores, folder).expect("memory.yaml");
        }),
        beside,
        ..Options::default()
    })
    .await?;
    sees_the_store(&gateway).await?;
    Ok(gateway)
}

/// Waits until Envoy has found a primary.
async fn sees_the_store(gateway: &Gateway) -> Result<()> {
    let healthy = "cluster.memory.membership_healthy";
    let deadline = Instant::now() + Duration::from_secs(20);
    while gateway.stats(healthy).await?.get(healthy) != Some(&1) {
        ensure!(Instant::now() < deadline, "no store was found");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn fleet<const N: usize>(stores: &[Store]) -> Result<[Gateway; N]> {
    let first = sharing(stores, None).await?;
    let mut gateways = Vec::new();
    for _ in 1..N {
        gateways.push(sharing(stores, Some(first.beside())).await?);
    }
    gateways.insert(0, first);
    let gateways: Result<[Gateway; N], _> = gateways.try_into();
    gateways.ok().context("gateways")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_refund_at_every_gateway_and_after_a_restart() -> Result<()> {
    let redis = Redis::start().await?;
    let [mut first, second] = fleet::<2>(&[redis.store()]).await?;
    for provider in FOUR {
        let (case, call) = (format!("{provider:?}"), one(provider, 1));
        let made = first.refund(&case, &call).await?;
        assert!(made.status < 300, "{case}: {made:?}");
        let again = second.refund(&case, &call).await?;
        assert_eq!(again.body["id"], made.body["id"], "{case}: {again:?}");
        if made.status == 200 {
            assert_eq!(again.body, made.body, "{case}");
            assert_eq!(again.header("idempotency-replayed"), "true", "{case}");
        }
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
    }
    first.restart().await?;
    sees_the_store(&first).await?;
    for provider in final_at_once() {
        let case = format!("{provider:?}");
        let again = first.refund(&case, &one(provider, 1)).await?;
        assert_eq!(
            again.header("idempotency-replayed"),
            "true",
            "{case}: {again:?}"
        );
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
    }
    // The payment is another key's, everywhere.
    let other = second.refund("other", &one(Bbmsl, 1)).await?;
    assert_problem("other", &other, Problem::certain("payment-has-refund", 409));
    // All of it with these rights, and no others.
    for refused in [
        &["DEL", "refund.guard:x"][..],
        &["GET", "another"],
        &["KEYS", "*"],
    ] {
        let said = redis.command_as(USER, PASSWORD, refused).await?;
        assert!(said.starts_with("NOPERM"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_away_nothing_false_is_said_and_what_was_not_told_is_told_later() -> Result<()> {
    let mut redis = Redis::start().await?;
    let [first, second] = fleet::<2>(&[redis.store()]).await?;
    let unavailable = Problem {
        outcome: "unknown",
        retry: "same_key",
        ..Problem::certain("memory-unavailable", 503)
    };
    let warm = first.refund("warm", &one(Bbmsl, 9)).await?;
    assert_eq!(warm.status, 200, "{warm:?}");
    for (nth, away) in ["hung", "killed"].into_iter().enumerate() {
        let nth = 1 + u64::try_from(nth)?;
        if away == "hung" {
            redis.signal("STOP").await?;
        } else {
            redis.kill().await?;
        }
        let case = format!("Bbmsl-{away}");
        let refused = first.refund(&case, &one(Bbmsl, nth)).await?;
        assert_problem(&case, &refused, unavailable);
        assert_eq!(booked(&first, Bbmsl, nth), 0, "{case}");
        for provider in keyed() {
            let case = format!("{provider:?}-{away}");
            let made = first.refund(&case, &one(provider, nth)).await?;
            assert!(made.status < 300, "{case}: {made:?}");
        }
        // A refusal may hide a peer's send.
        let says_no = Fault::Reply {
            reply: provider_simulator::Reply::json(401, "{}"),
            booked: false,
        };
        first.simulators.next_fault(Moyasar, says_no);
        let case = format!("refused-{away}");
        let answer = first.refund(&case, &one(Moyasar, 20 + nth)).await?;
        assert_eq!(answer.body["outcome"], "unknown", "{answer:?}");
        if away == "hung" {
            redis.signal("CONT").await?;
        } else {
            redis.restart().await?;
        }
        // It is known at the other gateway soon, and was sent once.
        for provider in keyed() {
            let case = format!("{provider:?}-{away}");
            let call = one(provider, nth);
            let deadline = Instant::now() + Duration::from_secs(20);
            while second.refund(&case, &call).await?.status >= 300 && Instant::now() < deadline {
                sleep(Duration::from_millis(100)).await;
            }
            let known = second.refund(&case, &call).await?;
            assert!(known.status < 300, "{case}: {known:?}");
            assert_eq!(booked(&first, provider, nth), 1, "{case}");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let case = format!("Bbmsl-{away}");
        while first.refund(&case, &one(Bbmsl, nth)).await?.status >= 300 {
            assert!(Instant::now() < deadline, "{case}");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(booked(&first, Bbmsl, nth), 1, "{case}");
    }
    Ok(())
}

/// The provider does not answer in time, a connection breaks, the caller leaves: at every gateway the same is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_at_one_gateway_is_unknown_at_all() -> Result<()> {
    let redis = Redis::start().await?;
    let [first, second] = fleet::<2>(&[redis.store()]).await?;
    for provider in final_at_once() {
        let case = format!("{provider:?}");
        first
            .simulators
            .next_fault(provider, Fault::Reset { booked: true });
        let lost = first.refund(&case, &one(provider, 1)).await?;
        assert_problem(&case, &lost, unknown(provider, "provider-error", 502));
        let again = second.refund(&case, &one(provider, 1)).await?;
        if provider.has_keys() {
            assert_eq!(again.status, 200, "{case}: {again:?}");
        } else {
            assert_problem(&case, &again, unknown(provider, "provider-error", 502));
        }
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
        let order = provider_simulator::orders::fresh(provider, 1).to_string();
        let query = [
            ("provider", cluster(provider)),
            ("payment_id", &*order),
            ("key", &*case),
        ];
        let found = second.look_up(&query).await?;
        assert_eq!(found.body["status"], "succeeded", "{case}: {found:?}");
        let told = first.refund(&case, &one(provider, 1)).await?;
        assert_eq!(told.body["status"], "succeeded", "{case}: {told:?}");
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
    }
    Ok(())
}
