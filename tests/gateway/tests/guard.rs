//! The guard against second sends, in real Envoy with two workers: what the same key meets in every state.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{
    FOUR, Problem, assert_problem, booked, final_at_once, fleet, keyed, of, plugin, shut, unknown,
    until_received,
};
use anyhow::{Context as _, Result, ensure};
use gateway_testbed::{Answer, Gateway, Options, cluster, filter_mut, route_mut};
use provider_simulator::{Fault, Provider, Reply, orders};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use wasmparser::{Parser, Payload, TypeRef};

use Provider::{Bbmsl, Begateway, Bog, Moyasar};

const PATIENCE: Duration = Duration::from_secs(30);

const REUSED: Problem = Problem {
    outcome: "unknown",
    ..Problem::certain("idempotency-key-reused", 422)
};
const AUTH_FAILED: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("provider-auth-failed", 502)
};

/// A refusal of a send of which an earlier one may have been the refund.
fn look_up(code: &'static str, status: u16) -> Problem {
    Problem {
        outcome: "unknown",
        retry: "look_up",
        ..Problem::certain(code, status)
    }
}

/// 1.00 of a provider's nth fresh order.
fn one(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

fn says(status: u16) -> Fault {
    Fault::Reply {
        reply: Reply::json(status, "{}"),
        booked: false,
    }
}

/// BBMSL's word for a refund of its nth fresh order that it declines.
fn declined(nth: u64) -> Fault {
    let id = orders::fresh(Bbmsl, nth);
    // As the vendor writes amounts: not as a float would.
    let body = format!(
        r#"{{"responseCode":"0000","message":"Success","order":{{"id":{id},"currency":"HKD","amount":100.00,"netAmount":100.00,"status":"SUCCESS"}},"transaction":{{"id":3759,"type":"REFUND","amount":1.00,"currency":"HKD","status":"DECLINED"}}}}"#
    );
    Fault::Reply {
        reply: Reply::json(200, body),
        booked: false,
    }
}

async fn start(guard: Value) -> Result<Gateway> {
    Gateway::start(Options::changed(move |config| {
        // Somebody who waits longer than this has been given up.
        for provider in FOUR {
            route_mut(config, cluster(provider)).expect("a route")["route"]["timeout"] =
                json!("6s");
        }
        plugin(config, |plugin| plugin["guard"] = guard);
    }))
    .await
}

/// A call of its own connection, so that it meets either worker.
async fn call(gateway: &Gateway, key: &str, body: &Value) -> Result<Answer> {
    timeout(PATIENCE, gateway.refund(key, body)).await?
}

fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == "true"
}

/// How often the guard said this, over all workers.
async fn told(gateway: &Gateway, event: &str) -> Result<u64> {
    let stats = gateway.admin("/stats/prometheus").await?;
    let wanted = format!("event=\"{event}\"");
    Ok(stats
        .lines()
        .filter(|line| line.starts_with("refund_guard_events_total") && line.contains(&wanted))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_answer_is_told_again_and_nothing_is_sent() -> Result<()> {
    let gateway = start(json!({})).await?;
    for provider in final_at_once() {
        let key = format!("{provider:?}");
        let first = call(&gateway, &key, &one(provider, 1)).await?;
        assert_eq!(
            (first.status, is_replayed(&first)),
            (200, false),
            "{first:?}"
        );
        // Many connections: both workers tell it. `1` is `1.00`, a key in quotes is the key.
        for (key, value) in [
            (key.clone(), "1.00"),
            (format!("\"{key}\""), "1"),
            (key.clone(), "1.0"),
        ] {
            for _ in 0..5 {
                let again = call(&gateway, &key, &of(provider, 1, value)).await?;
                assert!(is_replayed(&again), "{again:?}");
                assert_eq!((again.status, &again.text), (first.status, &first.text));
                assert_eq!(again.header("content-type"), "application/json");
                assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
            }
        }
        assert_eq!(gateway.simulators.received(provider), 1, "{provider:?}");
        // A refusal is as final: the payment is there now, and the answer stays.
        let key = format!("{provider:?}-2");
        let (refusal, code) = match provider.declared().replies.lists_refusals {
            true => (says(422), "provider-rejected"),
            // None is certain but the declining word beside the order's own name.
            false => (declined(2), "refund-declined"),
        };
        gateway.simulators.next_fault(provider, refusal);
        let refused = call(&gateway, &key, &one(provider, 2)).await?;
        assert_problem(&key, &refused, Problem::certain(code, 422));
        let again = call(&gateway, &key, &one(provider, 2)).await?;
        assert!(is_replayed(&again), "{again:?}");
        assert_eq!((again.status, &again.text), (refused.status, &refused.text));
        assert_eq!(again.header("content-type"), "application/problem+json");
        assert_eq!(booked(&gateway, provider, 2), 0);
    }
    assert_eq!(
        told(&gateway, "replayed").await?,
        final_at_once().count() as u64 * 16
    );
    // BOG's is not final: it goes out again, and BOG says the same.
    let first = call(&gateway, "bog", &one(Bog, 1)).await?;
    let again = call(&gateway, "bog", &one(Bog, 1)).await?;
    assert_eq!(
        (again.status, &again.text, is_replayed(&again)),
        (202, &first.text, false)
    );
    assert_eq!(
        (gateway.simulators.received(Bog), booked(&gateway, Bog, 1)),
        (2, 1)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_calls_with_one_key_at_one_moment_is_sent() -> Result<()> {
    let gateway = start(json!({})).await?;
    for provider in FOUR {
        for nth in 1..=3 {
            let before = gateway.simulators.received(provider);
            gateway
                .simulators
                .next_fault(provider, Fault::DelayReply(Duration::from_millis(1_500)));
            let key = format!("{provider:?}-{nth}");
            let body = one(provider, nth);
            let calls = (0..20).map(|_| call(&gateway, &key, &body));
            let answers = futures_util::future::try_join_all(calls).await?;
            let (refunded, others): (Vec<_>, Vec<_>) = answers
                .iter()
                .partition(|answer| answer.status < 300 && !is_replayed(answer));
            assert_eq!(refunded.len(), 1, "{key}: {answers:?}");
            for other in others {
                if is_replayed(other) {
                    assert_eq!(other.text, refunded[0].text, "{key}");
                } else {
                    assert_problem(&key, other, unknown(provider, "refund-in-progress", 409));
                }
            }
            assert_eq!(gateway.simulators.received(provider), before + 1, "{key}");
            assert_eq!(booked(&gateway, provider, nth), 1, "{key}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_another_refund_is_reused_whatever_became_of_the_first() -> Result<()> {
    let gateway = start(json!({})).await?;
    let mut nth = 0;
    for provider in FOUR {
        // In flight, final, and unknown.
        for fault in [
            Fault::DelayReply(Duration::from_millis(500)),
            says(422),
            says(500),
            Fault::Drain,
        ] {
            nth += 1;
            let (key, case) = (format!("key-{nth}"), format!("{provider:?}: {fault:?}"));
            let in_flight = matches!(fault, Fault::DelayReply(_));
            let before = gateway.simulators.received(provider);
            gateway.simulators.next_fault(provider, fault);
            let body = one(provider, nth);
            let first = call(&gateway, &key, &body);
            let others = async {
                until_received(&gateway, provider, before + 1).await?;
                if !in_flight {
                    // Answered by then.
                    sleep(Duration::from_millis(300)).await;
                }
                let mut other = one(provider, nth);
                let mut answers = Vec::new();
                for (member, value) in [
                    ("amount", of(provider, nth, "1.01")["amount"].take()),
                    ("payment", one(provider, nth + 1000)["payment"].take()),
                    ("reason", json!("another reason")),
                    ("reference", json!("another reference")),
                ] {
                    let kept = other.clone();
                    other[member] = value;
                    answers.push(call(&gateway, &key, &other).await?);
                    other = kept;
                }
                anyhow::Ok(answers)
            };
            let (first, others) = tokio::join!(first, others);
            first?;
            for other in others? {
                assert_problem(&case, &other, REUSED);
            }
            assert_eq!(gateway.simulators.received(provider), before + 1, "{case}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_is_cleared_by_the_providers_own_word_alone() -> Result<()> {
    let gateway = start(json!({})).await?;
    for provider in keyed() {
        let key = format!("{provider:?}");
        let lost = Fault::Close { booked: true };
        gateway.simulators.next_fault(provider, lost);
        let answer = call(&gateway, &key, &one(provider, 1)).await?;
        assert_problem("lost", &answer, unknown(provider, "provider-error", 502));
        let until = answer.body["retry_until"].clone();
        for (fault, problem) in [
            (says(401), unknown(provider, "provider-auth-failed", 502)),
            (says(429), unknown(provider, "provider-rate-limited", 503)),
            (says(422), look_up("provider-rejected", 422)),
            (says(402), look_up("refund-declined", 422)),
            (says(404), look_up("payment-not-found", 404)),
        ] {
            let case = format!("{provider:?}: {fault:?}");
            gateway.simulators.next_fault(provider, fault);
            let answer = call(&gateway, &key, &one(provider, 1)).await?;
            assert_problem(&case, &answer, problem);
            if problem.retry == "same_key" {
                // The provider's day counts from the first send.
                assert_eq!(answer.body["retry_until"], until, "{case}");
            }
        }
        shut(&gateway, provider).await?;
        let answer = call(&gateway, &key, &one(provider, 1)).await?;
        assert_problem(
            "refused",
            &answer,
            unknown(provider, "provider-unreachable", 503),
        );
        gateway.simulators.open(provider).await?;
        // Faults of the call, under a key of which that is known.
        let mut faulty = one(provider, 1);
        faulty["amount"] = json!("most of it");
        for (body, code, status) in [
            (faulty.to_string(), "invalid-request", 422),
            ("{".to_owned(), "malformed-json", 400),
            (" ".repeat(70_000), "body-too-large", 413),
        ] {
            let answer = gateway.refund(&key, &body).await?;
            let problem = Problem {
                outcome: "unknown",
                ..Problem::corrected(code, status)
            };
            assert_problem(code, &answer, problem);
        }
        // Whoever asks for a refund's state by its key must not be told that no money has moved.
        let get = reqwest::Client::new().get(gateway.url());
        let answer = Answer::read(get.header("idempotency-key", &key).send().await?).await?;
        let problem = Problem {
            outcome: "unknown",
            ..Problem::corrected("invalid-request", 422)
        };
        assert_problem("GET", &answer, problem);
        let answer = call(&gateway, &key, &one(provider, 1)).await?;
        assert!(
            [200, 202].contains(&answer.status),
            "{provider:?}: {answer:?}"
        );
        assert_eq!(booked(&gateway, provider, 1), 1, "{provider:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decline_in_the_providers_own_word_clears_an_unknown() -> Result<()> {
    let gateway = start(json!({})).await?;
    for provider in [Moyasar, Begateway] {
        let key = format!("{provider:?}");
        let order = orders::find(provider, "declined").context("an order")?;
        let mut body = one(provider, 1);
        body["payment"]["id"] = json!(order.id);
        gateway.simulators.next_fault(provider, says(500));
        let answer = call(&gateway, &key, &body).await?;
        assert_problem(&key, &answer, unknown(provider, "provider-error", 502));
        let answer = call(&gateway, &key, &body).await?;
        assert_problem(&key, &answer, Problem::certain("refund-declined", 422));
        let again = call(&gateway, &key, &body).await?;
        assert!(
            is_replayed(&again) && again.text == answer.text,
            "{again:?}"
        );
        assert_eq!(gateway.simulators.ledger(provider).len(), 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_provider_has_no_key_an_unknown_is_never_sent_again() -> Result<()> {
    let gateway = start(json!({})).await?;
    for (nth, fault, problem) in [
        (
            1,
            Fault::Close { booked: true },
            unknown(Bbmsl, "provider-error", 502),
        ),
        (
            2,
            Fault::Reset { booked: false },
            unknown(Bbmsl, "provider-error", 502),
        ),
        (
            3,
            Fault::Hang { booked: true },
            unknown(Bbmsl, "provider-timeout", 504),
        ),
        (4, says(500), unknown(Bbmsl, "provider-error", 502)),
        // Envoy answers these past the filter.
        (
            5,
            Fault::CutBody { booked: true },
            unknown(Bbmsl, "provider-error", 502),
        ),
        (
            6,
            Fault::StallBody { booked: true },
            unknown(Bbmsl, "provider-timeout", 504),
        ),
        (
            7,
            Fault::Oversize { bytes: 3_000_000 },
            unknown(Bbmsl, "provider-reply-unreadable", 502),
        ),
    ] {
        let case = format!("{fault:?}");
        let key = format!("key-{nth}");
        gateway.simulators.next_fault(Bbmsl, fault);
        let before = gateway.simulators.received(Bbmsl);
        let first = call(&gateway, &key, &one(Bbmsl, nth)).await?;
        assert_problem(&case, &first, problem);
        for _ in 0..4 {
            let again = call(&gateway, &key, &one(Bbmsl, nth)).await?;
            assert_problem(&case, &again, problem);
            assert!(is_replayed(&again), "{case}: {again:?}");
        }
        assert_eq!(gateway.simulators.received(Bbmsl), before + 1, "{case}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_which_nothing_left_gives_its_key_back() -> Result<()> {
    let gateway = start(json!({})).await?;
    for provider in FOUR {
        let key = format!("{provider:?}");
        gateway.simulators.next_fault(provider, says(401));
        let answer = call(&gateway, &key, &one(provider, 1)).await?;
        assert_problem(&key, &answer, AUTH_FAILED);
        shut(&gateway, provider).await?;
        let answer = call(&gateway, &key, &of(provider, 2, "2.00")).await?;
        let unreachable = Problem {
            retry: "same_key",
            ..Problem::certain("provider-unreachable", 503)
        };
        assert_problem(&key, &answer, unreachable);
        gateway.simulators.open(provider).await?;
        // A fault of the call never takes it.
        let answer = call(&gateway, &key, &json!({"provider": cluster(provider)})).await?;
        assert_problem(&key, &answer, Problem::corrected("invalid-request", 422));
        let answer = call(&gateway, &key, &of(provider, 3, "3.00")).await?;
        assert!(answer.status < 300, "{provider:?}: {answer:?}");
        assert_eq!(gateway.simulators.ledger(provider).len(), 1, "{provider:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_finds_its_key_as_the_provider_left_it() -> Result<()> {
    let gateway = start(json!({})).await?;
    for provider in FOUR {
        // After the request has left.
        let key = format!("{provider:?}-sent");
        let before = gateway.simulators.received(provider);
        gateway
            .simulators
            .next_fault(provider, Fault::DelayReply(Duration::from_secs(1)));
        leave_once_received(&gateway, provider, &key, &one(provider, 1)).await?;
        // Envoy hears of it when it is told, not before.
        let answer = timeout(PATIENCE, async {
            loop {
                let answer = call(&gateway, &key, &one(provider, 1)).await?;
                if answer.body["code"] != "refund-in-progress" {
                    return anyhow::Ok(answer);
                }
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await??;
        let received = gateway.simulators.received(provider) - before;
        if !provider.has_keys() {
            assert_problem(&key, &answer, unknown(provider, "gateway-error", 500));
            assert_eq!(received, 1);
        } else if answer.body["code"] == "provider-error" || answer.status == 409 {
            panic!("{provider:?}: {answer:?}");
        } else {
            // It went out again with the provider's own key. Moyasar may still be at work on the first.
            assert!(
                answer.status < 300 || answer.body["outcome"] == "unknown",
                "{answer:?}"
            );
        }
        sleep(Duration::from_millis(1_200)).await;
        assert_eq!(booked(&gateway, provider, 1), 1, "{provider:?}");

        // Before anything has left: the key is free, for any refund.
        let key = format!("{provider:?}-unsent");
        shut(&gateway, provider).await?;
        let answer = call(&gateway, &key, &one(provider, 2)).await?;
        assert_eq!(answer.body["outcome"], "not_refunded", "{answer:?}");
        gateway.simulators.open(provider).await?;
        let answer = call(&gateway, &key, &of(provider, 2, "2.00")).await?;
        assert!(answer.status < 300, "{provider:?}: {answer:?}");
    }
    Ok(())
}

/// Makes a call and hangs up as soon as the provider has it.
async fn leave_once_received(
    gateway: &Gateway,
    provider: Provider,
    key: &str,
    body: &Value,
) -> Result<()> {
    let before = gateway.simulators.received(provider);
    let call = gateway.refund(key, body);
    tokio::select! {
        answer = call => anyhow::bail!("answered: {answer:?}"),
        received = until_received(gateway, provider, before + 1) => received?,
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_runs_out_leaves_the_end_unknown_until_it_is_heard_of() -> Result<()> {
    let gateway = start(json!({"lease_seconds": 2})).await?;
    for provider in [Begateway, Bbmsl] {
        let key = format!("{provider:?}");
        let body = one(provider, 1);
        gateway
            .simulators
            .next_fault(provider, Fault::DelayReply(Duration::from_millis(5_000)));
        let first = call(&gateway, &key, &body);
        let second = async {
            until_received(&gateway, provider, 1).await?;
            let early = call(&gateway, &key, &body).await?;
            sleep(Duration::from_millis(2_200)).await;
            anyhow::Ok((early, call(&gateway, &key, &body).await?))
        };
        let (first, second) = tokio::join!(first, second);
        let (first, (early, late)) = (first?, second?);
        assert_problem(
            "early",
            &early,
            unknown(provider, "refund-in-progress", 409),
        );
        assert_eq!(first.status, 200, "{first:?}");
        if !provider.has_keys() {
            assert_problem("late", &late, unknown(provider, "gateway-error", 500));
            assert_eq!(gateway.simulators.received(provider), 1);
        } else {
            assert_eq!(late.status, 200, "{late:?}");
            assert_eq!(gateway.simulators.received(provider), 2);
        }
        assert_eq!(booked(&gateway, provider, 1), 1);
        let again = call(&gateway, &key, &body).await?;
        assert_eq!(
            (again.status, &again.text, is_replayed(&again)),
            (200, &first.text, true)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_guard_lets_only_providers_with_keys_go_on() -> Result<()> {
    let gateway = start(json!({"entries": 2})).await?;
    for nth in 1..=2 {
        gateway.simulators.next_fault(Bbmsl, says(500));
        let answer = call(&gateway, &format!("unknown-{nth}"), &one(Bbmsl, nth)).await?;
        assert_problem("unknown", &answer, unknown(Bbmsl, "provider-error", 502));
    }
    let answer = call(&gateway, "more", &one(Bbmsl, 3)).await?;
    let full = Problem {
        retry: "same_key",
        ..Problem::certain("gateway-error", 503)
    };
    assert_problem("no room", &answer, full);
    assert_eq!(gateway.simulators.received(Bbmsl), 2);
    for provider in keyed() {
        for _ in 0..2 {
            let answer = call(&gateway, "more", &one(provider, 1)).await?;
            assert!(answer.status < 300 && !is_replayed(&answer), "{answer:?}");
        }
        assert_eq!(booked(&gateway, provider, 1), 1, "{provider:?}");
    }
    assert_eq!(told(&gateway, "no_room").await?, 7);
    // What is unknown is remembered all the same.
    let answer = call(&gateway, "unknown-1", &one(Bbmsl, 1)).await?;
    assert_problem("unknown", &answer, unknown(Bbmsl, "provider-error", 502));
    assert!(is_replayed(&answer));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn final_answers_make_room_for_new_keys() -> Result<()> {
    let gateway = start(json!({"entries": 4})).await?;
    gateway.simulators.next_fault(Bbmsl, says(500));
    let answer = call(&gateway, "unknown", &one(Bbmsl, 1)).await?;
    assert_problem("unknown", &answer, unknown(Bbmsl, "provider-error", 502));
    for nth in 2..60 {
        let answer = call(&gateway, &format!("key-{nth}"), &one(Bbmsl, nth)).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let answer = call(&gateway, "unknown", &one(Bbmsl, 1)).await?;
    assert!(is_replayed(&answer), "{answer:?}");
    let answer = call(&gateway, "key-59", &one(Bbmsl, 59)).await?;
    assert!(is_replayed(&answer), "{answer:?}");
    // The first of them is forgotten: BBMSL itself refuses the second refund of its order.
    let answer = call(&gateway, "key-2", &one(Bbmsl, 2)).await?;
    assert_eq!(
        (answer.body["outcome"].as_str(), is_replayed(&answer)),
        (Some("unknown"), false)
    );
    assert_eq!(booked(&gateway, Bbmsl, 2), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_of_no_entries_or_no_window_is_off() -> Result<()> {
    for guard in [json!({"entries": 0}), json!({"window_seconds": 0})] {
        let gateway = start(guard).await?;
        for _ in 0..2 {
            let answer = call(&gateway, "key", &one(Begateway, 1)).await?;
            assert_eq!(
                (answer.status, is_replayed(&answer)),
                (200, false),
                "{answer:?}"
            );
        }
        assert_eq!(gateway.simulators.received(Begateway), 2);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_has_closed_leaves_nothing_to_tell() -> Result<()> {
    let gateway = start(json!({"window_seconds": 1})).await?;
    for _ in 0..2 {
        let answer = call(&gateway, "key", &one(Begateway, 1)).await?;
        assert_eq!(
            (answer.status, is_replayed(&answer)),
            (200, false),
            "{answer:?}"
        );
        sleep(Duration::from_millis(1_200)).await;
    }
    assert_eq!(gateway.simulators.received(Begateway), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_configuration_forgets_no_key() -> Result<()> {
    let gateway = Gateway::start(Options {
        ecds: true,
        ..Options::default()
    })
    .await?;
    let first = call(&gateway, "final", &one(Bbmsl, 1)).await?;
    assert_eq!(first.status, 200, "{first:?}");
    gateway
        .simulators
        .next_fault(Bbmsl, Fault::DelayReply(Duration::from_millis(2_500)));
    let body = one(Bbmsl, 2);
    let in_flight = call(&gateway, "in-flight", &body);
    let others = async {
        until_received(&gateway, Bbmsl, 2).await?;
        let mut plugin = gateway.plugin()?;
        // The table keeps its size, or the keys would be looked for in another place.
        plugin["guard"] = json!({"entries": 64});
        plugin["providers"]["second"] = plugin["providers"]["moyasar"].clone();
        gateway.push(&plugin)?;
        let pushed = async {
            loop {
                let mut body = one(Moyasar, 1);
                body["provider"] = json!("second");
                // Until it is known, it is a fault; then it has no route.
                let answer = call(&gateway, "second", &body).await?;
                if answer.body["code"] != "invalid-request" {
                    return anyhow::Ok(());
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, pushed).await??;
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(call(&gateway, "final", &one(Bbmsl, 1)).await?);
            answers.push(call(&gateway, "in-flight", &body).await?);
        }
        anyhow::Ok(answers)
    };
    let (in_flight, others) = tokio::join!(in_flight, others);
    let in_flight = in_flight?;
    assert_eq!(in_flight.status, 200, "{in_flight:?}");
    for pair in others?.chunks(2) {
        assert!(
            is_replayed(&pair[0]) && pair[0].text == first.text,
            "{pair:?}"
        );
        let told = is_replayed(&pair[1]) && pair[1].text == in_flight.text;
        assert!(
            told || pair[1].body["code"] == "refund-in-progress",
            "{pair:?}"
        );
    }
    let again = call(&gateway, "in-flight", &body).await?;
    assert!(
        is_replayed(&again) && again.text == in_flight.text,
        "{again:?}"
    );
    assert_eq!(gateway.simulators.received(Bbmsl), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_and_the_metrics_tell_an_answer_given_again_from_a_refund() -> Result<()> {
    let gateway = start(json!({})).await?;
    for _ in 0..3 {
        call(&gateway, "key", &one(Bbmsl, 1)).await?;
    }
    let stats = gateway.admin("/stats/prometheus").await?;
    let counted = |replayed: bool| {
        let wanted = format!("outcome=\"succeeded\",code=\"none\",replayed=\"{replayed}\"");
        stats
            .lines()
            .filter(|line| line.starts_with("refund_calls_total") && line.contains(&wanted))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum::<u64>()
    };
    assert_eq!((counted(false), counted(true)), (1, 2), "{stats}");
    let logged = timeout(PATIENCE, async {
        loop {
            let log = gateway.access_log();
            if log.lines().count() >= 3 {
                return log;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await?;
    assert_eq!(logged.matches("refund_replayed").count(), 2, "{logged}");
    Ok(())
}

/// Istio's default policy: connect-failure, refused-stream, unavailable, cancelled, and the status 503.
fn istio_retries(config: &mut Value) {
    for provider in FOUR {
        let route = route_mut(config, cluster(provider)).expect("a route");
        route["route"]["retry_policy"] = json!({
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": 2,
            "host_selection_retry_max_attempts": "5",
        });
        let clusters = config["static_resources"]["clusters"]
            .as_array_mut()
            .expect("clusters");
        for known in clusters
            .iter_mut()
            .filter(|known| known["name"] == cluster(provider))
        {
            known["circuit_breakers"] = json!({"thresholds": [{"max_retries": 10}]});
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn istios_default_retries_refund_no_key_twice() -> Result<()> {
    let gateway = Gateway::start(Options::changed(istio_retries)).await?;
    let mut nth = 0;
    for provider in FOUR {
        for booked_first in [true, false] {
            for fault in [
                Fault::Reply {
                    reply: Reply::json(503, "{}"),
                    booked: booked_first,
                },
                Fault::Close {
                    booked: booked_first,
                },
                Fault::Reset {
                    booked: booked_first,
                },
                Fault::RefusedStream,
            ] {
                nth += 1;
                let (key, case) = (format!("key-{nth}"), format!("{provider:?}: {fault:?}"));
                let is_503 = matches!(fault, Fault::Reply { .. });
                let before = gateway.simulators.received(provider);
                gateway.simulators.next_fault(provider, fault);
                let body = one(provider, nth);
                let first = call(&gateway, &key, &body).await?;
                let sends = gateway.simulators.received(provider) - before;
                if !provider.has_keys() {
                    assert_eq!(sends, 1, "{case}");
                } else if is_503 {
                    assert_eq!((sends, first.status < 300), (2, true), "{case}: {first:?}");
                }
                gateway.simulators.clear_faults(provider);
                for _ in 0..2 {
                    let again = call(&gateway, &key, &body).await?;
                    let refunds = booked(&gateway, provider, nth);
                    assert!(refunds <= 1, "{case}");
                    match again.body["outcome"].as_str() {
                        None => assert_eq!(refunds, 1, "{case}: {again:?}"),
                        Some("not_refunded") => assert_eq!(refunds, 0, "{case}: {again:?}"),
                        Some(_) => assert_eq!(provider, Bbmsl, "{case}: {again:?}"),
                    }
                }
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_fleets_front_a_key_is_always_the_same_gateways() -> Result<()> {
    let (first, mut gateways, front) = fleet().await?;
    for nth in 1..=30 {
        let key = format!("key-{nth}");
        let told = front.refund(&key, &one(Bbmsl, nth)).await?;
        assert_eq!(told.status, 200, "{told:?}");
        for key in [key.clone(), format!("\"{key}\"")] {
            let again = front.refund(&key, &one(Bbmsl, nth)).await?;
            assert!(is_replayed(&again) && again.text == told.text, "{again:?}");
        }
    }
    assert_eq!(first.simulators.received(Bbmsl), 30);
    // Each has had its share, or this would prove nothing.
    for gateway in gateways.iter().chain([&first]) {
        assert!(told(gateway, "replayed").await? > 0);
    }
    // Its keys wait for a gateway that is not there; the others go on.
    gateways.pop().context("a gateway")?.stop().await?;
    let (mut waiting, mut served) = (0, 0);
    for nth in 31..=60 {
        let answer = front
            .refund(&format!("key-{nth}"), &one(Bbmsl, nth))
            .await?;
        if answer.status == 200 {
            served += 1;
        } else {
            waiting += 1;
            let problem = Problem {
                retry: "same_key",
                ..Problem::certain("gateway-error", 503)
            };
            assert_problem("no gateway", &answer, problem);
        }
    }
    // By chance, and by the ports of this run: some of each.
    assert!(waiting > 0 && served > 0, "{waiting} {served}");
    Ok(())
}

/// The filter's own module with a trap in place of what it does at a reply's trailers: it has none of its own to show.
fn trapping_module(folder: &Path) -> Result<PathBuf> {
    let mut bytes = std::fs::read(gateway_testbed::module()?)?;
    let (mut imported, mut exports, mut bodies) = (0, Vec::new(), Vec::new());
    for part in Parser::new(0).parse_all(&bytes) {
        match part? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    imported += usize::from(matches!(import?.ty, TypeRef::Func(_)));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    exports.push((export.name.to_owned(), export.index));
                }
            }
            Payload::CodeSectionEntry(body) => bodies.push(body.range()),
            _ => {}
        }
    }
    let at_trailers = exports
        .iter()
        .find(|(name, _)| name == "proxy_on_response_trailers");
    let (_, function) = at_trailers.context("the module has no such export")?;
    let its_names = exports.iter().filter(|(_, index)| index == function);
    ensure!(
        its_names.count() == 1,
        "another export is the same function"
    );
    let body: &Range<u64> = &bodies[usize::try_from(*function)? - imported];
    let body = usize::try_from(body.start)?..usize::try_from(body.end)?;
    // No locals, `unreachable` to the last place, and `end`.
    bytes[body.clone()].fill(0x00);
    bytes[body.end - 1] = 0x0b;
    let path = folder.join("trapping.wasm");
    std::fs::write(&path, bytes)?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_in_flight_outlives_the_trap_of_its_vm_and_then_is_unknown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = trapping_module(folder.path())?;
    let gateway = Gateway::start(Options::changed(move |config| {
        let filter = filter_mut(config).expect("the filter");
        filter["vm_config"]["code"]["local"]["filename"] = json!(module);
        plugin(config, |plugin| {
            plugin["guard"] = json!({"lease_seconds": 4})
        });
    }))
    .await?;
    for provider in [Begateway, Bbmsl] {
        let (key, body) = (format!("{provider:?}"), one(provider, 1));
        let trailers = Fault::Trailers(vec![(b"x-trailer".into(), b"1".into())]);
        gateway.simulators.next_fault(provider, trailers);
        let trapped = call(&gateway, &key, &body).await?;
        assert_problem("trapped", &trapped, unknown(provider, "gateway-error", 500));
        assert_eq!(booked(&gateway, provider, 1), 1);
        // Envoy makes a new VM at the next call or after a moment, in which it answers by itself that nothing was sent by
        // this call. Whichever VM hears of the key knows that it is in flight, until its lease runs out.
        let mut held = 0;
        let late = timeout(PATIENCE, async {
            loop {
                let answer = call(&gateway, &key, &body).await?;
                if answer.text.contains("before it sent anything") {
                    continue;
                }
                if answer.status != 409 {
                    return anyhow::Ok(answer);
                }
                assert_problem(
                    "held",
                    &answer,
                    unknown(provider, "refund-in-progress", 409),
                );
                assert_eq!(gateway.simulators.received(provider), 1);
                held += 1;
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await??;
        assert!(held > 0);
        if !provider.has_keys() {
            assert_problem("late", &late, unknown(provider, "gateway-error", 500));
            assert_eq!(gateway.simulators.received(provider), 1);
        } else {
            // It goes out again, under the provider's own key.
            assert_eq!(late.status, 200, "{late:?}");
            assert_eq!(gateway.simulators.received(provider), 2);
        }
        assert_eq!(booked(&gateway, provider, 1), 1);
    }
    let stats = gateway.admin(r"/stats?filter=vm_reload_success").await?;
    assert!(stats.lines().any(|line| !line.ends_with(": 0")), "{stats}");
    Ok(())
}

/// A caller that corrects the provider's name keeps its key: what the first would have taken twice, the second would not.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_provider_gave_back_is_sent_once_to_one_without_keys() -> Result<()> {
    let gateway = start(json!({})).await?;
    for (nth, other) in (1..).zip(keyed()) {
        let key = format!("key-{nth}");
        gateway.simulators.next_fault(other, says(401));
        let answer = call(&gateway, &key, &one(other, nth)).await?;
        assert_problem(&key, &answer, AUTH_FAILED);
        let lost = Fault::Close { booked: true };
        gateway.simulators.next_fault(Bbmsl, lost);
        for _ in 0..3 {
            let answer = call(&gateway, &key, &one(Bbmsl, nth)).await?;
            assert_problem(&key, &answer, unknown(Bbmsl, "provider-error", 502));
            assert_eq!(answer.body.get("retry_until"), None);
        }
        assert_eq!(gateway.simulators.received(Bbmsl), nth, "{key}");
    }
    Ok(())
}
