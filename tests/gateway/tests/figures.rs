//! What the filter counts and what its access log says, in real Envoy: each way a call can end is counted once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{FOUR, of, plugin, until};
use anyhow::{Context as _, Result};
use gateway_testbed::{Answer, Gateway, Options, Secrets, cluster, route_mut};
use provider_simulator::orders::fresh;
use provider_simulator::{Fault, Provider};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use Provider::{Bbmsl, Begateway, Bog, Moyasar};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// The series of a metric, by their labels.
async fn series(gateway: &Gateway, metric: &str) -> Result<BTreeMap<String, u64>> {
    let text = gateway.admin("/stats/prometheus").await?;
    let of_it = |line: &str| {
        let (labels, value) = line.strip_prefix(metric)?.rsplit_once(' ')?;
        Some((labels.to_owned(), value.parse().ok()?))
    };
    Ok(text.lines().filter_map(of_it).collect())
}

/// What was counted of calls: provider, kind, outcome, code, replayed, and how often.
async fn calls(gateway: &Gateway) -> Result<Vec<String>> {
    let all = series(gateway, "refund_calls_total{").await?;
    let counted = all.iter().filter(|(_, count)| **count > 0);
    Ok(counted
        .map(|(labels, count)| {
            let values: Vec<_> = labels.split('"').skip(1).step_by(2).collect();
            format!("{} {count}", values.join(" "))
        })
        .collect())
}

/// Ends the gateway, so that its access log is whole, and gives its lines.
async fn log_of(mut gateway: Gateway) -> Result<Vec<Value>> {
    let stats = gateway.admin("/stats/prometheus").await?;
    gateway.stop().await?;
    let log = gateway.access_log();
    // All secrets but the private key begin with the first.
    let key = gateway.secrets.of(Bbmsl).lines().skip(1).take(3);
    for secret in ["canary-"].into_iter().chain(key) {
        let is_there = log.contains(secret) || stats.contains(secret);
        assert!(!is_there, "{secret} in {log}");
    }
    let lines = log.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_past_the_filter_is_counted_once_and_logged_as_it_was_told() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        let route = route_mut(config, "begateway").expect("a route");
        route["route"]["timeout"] = json!("2s");
    }))
    .await?;
    let before = series(&gateway, "refund_calls_total{").await?;
    let mut told = Vec::new();
    for (nth, fault) in [
        (1, None),
        (2, Some(Fault::Hang { booked: true })),
        (3, Some(Fault::Oversize { bytes: 2_200_000 })),
        (4, Some(Fault::CutBody { booked: true })),
        (5, Some(Fault::StallBody { booked: true })),
    ] {
        if let Some(fault) = fault {
            gateway.simulators.next_fault(Begateway, fault);
        }
        let (key, body) = (format!("key-{nth}"), of(Begateway, nth, "1.00"));
        let call = gateway.refund(&key, &body);
        told.push(timeout(PATIENCE, call).await??);
    }
    // A caller that hangs up while the provider works, and one that does before its body is there.
    let hang = Fault::Hang { booked: true };
    gateway.simulators.next_fault(Begateway, hang);
    let sent = gateway.simulators.received(Begateway);
    let body = of(Begateway, 6, "1.00");
    let call = gateway.refund("key-6", &body);
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        left = until("the call", async || Ok(gateway.simulators.received(Begateway) > sent)) => left?,
    }
    let expected = [
        "begateway refund succeeded none false 1",
        "begateway refund unknown client-gone false 1",
        "begateway refund unknown provider-error false 1",
        "begateway refund unknown provider-reply-unreadable false 1",
        "begateway refund unknown provider-timeout false 2",
    ];
    until("the figures", async || {
        Ok(calls(&gateway).await? == expected)
    })
    .await
    .with_context(|| format!("{:?}", gateway.access_log()))?;
    let after = series(&gateway, "refund_calls_total{").await?;
    assert!(
        before.keys().eq(after.keys()),
        "a series began with its first event"
    );
    // Envoy adds up its histograms now and then.
    until("the durations", async || {
        let counted = series(&gateway, "refund_duration_milliseconds_count{").await?;
        Ok([("call", 6), ("provider", 6), ("token", 0)]
            .iter()
            .all(|(phase, count)| {
                let labels = format!("provider=\"begateway\",phase=\"{phase}\"}}");
                counted.get(&labels) == Some(count)
            }))
    })
    .await?;
    let lines = log_of(gateway).await?;
    assert_eq!(lines.len(), 6, "{lines:?}");
    for answer in &told {
        let line = of_answer(&lines, answer)?;
        let body = &answer.body;
        let is_problem = body["code"].is_string();
        let status = if is_problem {
            &body["code"]
        } else {
            &body["status"]
        };
        let outcome = if is_problem {
            &body["outcome"]
        } else {
            &body["status"]
        };
        assert_eq!(line["refund_status"], *status, "{line} {answer:?}");
        assert_eq!(line["outcome"], *outcome, "{line}");
        assert_eq!(line["retry"], body["retry"], "{line}");
        assert_eq!(line["refund_id"], body["id"], "{line}");
        assert_eq!(line["provider"], "begateway", "{line}");
    }
    let gone = lines
        .iter()
        .find(|line| line["refund_status"] == "client-gone");
    let gone = gone.with_context(|| format!("{lines:?}"))?;
    assert_eq!(gone["outcome"], "unknown", "{gone}");
    Ok(())
}

fn of_answer<'l>(lines: &'l [Value], answer: &Answer) -> Result<&'l Value> {
    let id = answer.header("x-request-id");
    let line = lines.iter().find(|line| line["request_id"] == id);
    line.with_context(|| format!("no line for {answer:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_call_is_counted_by_what_was_told_and_the_log_joins_them_by_key() -> Result<()>
{
    let gateway = Gateway::start(Options::default()).await?;
    let mut answers = Vec::new();
    for provider in FOUR {
        let (name, body) = (cluster(provider), of(provider, 1, "1.00"));
        let key = format!("key-{name}");
        for _ in 0..2 {
            answers.push(gateway.refund(&key, &body).await?);
        }
        let order = fresh(provider, 1);
        let query = [("provider", name), ("payment_id", &*order), ("key", &*key)];
        answers.push(gateway.look_up(&query).await?);
    }
    let client = reqwest::Client::new();
    let post = |path: &str, body: &Value| {
        client
            .post(format!("{}{path}", gateway.url()))
            .header("content-type", "application/json")
            .header("idempotency-key", "key-other")
            .body(body.to_string())
    };
    let body = of(Bbmsl, 2, "1.00");
    let preview = Answer::read(post("/preview", &body).send().await?).await?;
    assert_eq!(preview.status, 200, "{preview:?}");
    let faulty = gateway.refund("key-other", &of(Bbmsl, 2, "1.005")).await?;
    let nobodys = gateway
        .refund("key-other", &json!({"provider": "nobody"}))
        .await?;
    assert_eq!(
        calls(&gateway).await?,
        [
            "bbmsl look_up succeeded none false 1",
            "bbmsl preview not_refunded none false 1",
            "bbmsl refund not_refunded invalid-request false 1",
            "bbmsl refund succeeded none false 1",
            "bbmsl refund succeeded none true 1",
            "begateway look_up succeeded none false 1",
            "begateway refund succeeded none false 1",
            "begateway refund succeeded none true 1",
            "bog look_up pending none false 1",
            "bog refund pending none false 2",
            "moyasar look_up succeeded none false 1",
            "moyasar refund succeeded none false 1",
            "moyasar refund succeeded none true 1",
            "none refund not_refunded invalid-request false 1",
        ]
    );
    assert_eq!(
        series(&gateway, "refund_token_fetches_total{")
            .await?
            .values()
            .sum::<u64>(),
        1
    );
    assert_eq!(series(&gateway, "refund_guard_capacity{").await?.len(), 1);
    let build = series(&gateway, "refund_build_info{").await?;
    assert_eq!(build.values().collect::<Vec<_>>(), [&1], "{build:?}");
    let lines = log_of(gateway).await?;
    for (nth, answer) in answers.iter().enumerate() {
        let line = of_answer(&lines, answer)?;
        let first = of_answer(&lines, &answers[nth / 3 * 3])?;
        assert_eq!(line["key_digest"], first["key_digest"], "{line} {first}");
        assert_eq!(
            line["key_digest"].as_str().map(str::len),
            Some(32),
            "{line}"
        );
        assert_eq!(
            line["kind"],
            ["refund", "refund", "look_up"][nth % 3],
            "{line}"
        );
        assert_eq!(line["outcome"], answer.body["status"], "{line}");
        let money = &answer.body["amount"];
        if let (Some(value), Some(currency)) = (money["value"].as_str(), money["currency"].as_str())
        {
            assert_eq!(line["amount"], format!("{value} {currency}"), "{line}");
        }
        // A replay uses no key.
        let is_replayed = answer.header("idempotency-replayed") == "true";
        assert_eq!(line["key_id"].is_null(), is_replayed, "{line}");
    }
    assert_eq!(of_answer(&lines, &faulty)?["provider"], "bbmsl");
    assert_eq!(of_answer(&lines, &nobodys)?["provider"], Value::Null);
    assert_eq!(of_answer(&lines, &preview)?["kind"], "preview");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_shown_by_provider_and_goes_when_a_look_up_ends_it() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        plugin(config, |plugin| plugin["guard"] = json!({"entries": 64}));
        let route = route_mut(config, "moyasar").expect("a route");
        route["route"]["timeout"] = json!("1s");
    }))
    .await?;
    gateway
        .simulators
        .next_fault(Moyasar, Fault::Hang { booked: true });
    gateway.refund("key-1", &of(Moyasar, 1, "1.00")).await?;
    gateway.refund("key-2", &of(Bog, 1, "1.00")).await?;
    let open = async |provider: &str, state: &str, count: u64| {
        let labels = format!("provider=\"{provider}\",state=\"{state}\"}}");
        Ok(series(&gateway, "refund_open{").await?.get(&labels) == Some(&count))
    };
    until("unknown", async || open("moyasar", "unknown", 1).await).await?;
    until("pending", async || open("bog", "pending", 1).await).await?;
    until("entries", async || {
        Ok(series(&gateway, "refund_guard_entries{")
            .await?
            .into_values()
            .eq([2]))
    })
    .await?;
    let order = fresh(Moyasar, 1);
    let query = [
        ("provider", "moyasar"),
        ("payment_id", &*order),
        ("key", "key-1"),
    ];
    gateway.look_up(&query).await?;
    until("its end", async || open("moyasar", "unknown", 0).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_key_goes_with_it_and_with_its_provider() -> Result<()> {
    let gateway = Gateway::start(Options {
        ecds: true,
        ..Options::changed(|config| {
            plugin(config, |plugin| {
                let key = &mut plugin["providers"]["bbmsl"]["signing"]["keys"][0];
                key["not_after"] = json!("2099-01-01T00:00:00Z");
            });
        })
    })
    .await?;
    let ends_at = async |at: u64| {
        let all = series(&gateway, "refund_signing_key_not_after_timestamp_seconds{").await?;
        Ok(all.into_iter().eq([("provider=\"bbmsl\"}".to_owned(), at)]))
    };
    until("the end", async || ends_at(4_070_908_800).await).await?;
    let mut endless = gateway.plugin()?;
    let key = &mut endless["providers"]["bbmsl"]["signing"]["keys"][0];
    key.as_object_mut().context("a key")?.remove("not_after");
    let ending = gateway.plugin()?;
    gateway.push(&endless)?;
    until("no end", async || ends_at(0).await).await?;
    gateway.push(&ending)?;
    until("an end again", async || ends_at(4_070_908_800).await).await?;
    let mut without = ending;
    without["providers"]
        .as_object_mut()
        .context("providers")?
        .remove("bbmsl");
    gateway.push(&without)?;
    until("no provider", async || ends_at(0).await).await
}

/// How often Envoy has taken this secret's file.
async fn taken(gateway: &Gateway, file: &str) -> Result<u64> {
    let updates = format!(r"sds\.{file}\.update_success");
    Ok(gateway.stats(&updates).await?.values().sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_by_file_shows_in_the_log_which_key_was_used() -> Result<()> {
    let next = Secrets::ending_in("-next")?;
    let files = FOUR.map(|provider| {
        (
            provider,
            provider.declared().secret.name,
            next.line(provider),
        )
    });
    let gateway = Gateway::start(Options {
        also_accepted: vec![next],
        ..Options::default()
    })
    .await?;
    let mut answers = Vec::new();
    for (provider, file, value) in &files {
        let mut uses = Vec::new();
        for nth in 1..=2 {
            if nth == 2 {
                let before = taken(&gateway, file).await?;
                gateway.rotate(file, value)?;
                until(file, async || Ok(taken(&gateway, file).await? > before)).await?;
                // Each worker takes it a moment later.
                sleep(Duration::from_millis(500)).await;
            }
            let key = format!("{file}-{nth}");
            let answer = gateway.refund(&key, &of(*provider, nth, "1.00")).await?;
            assert!(answer.status < 300, "{answer:?}");
            uses.push(answer);
        }
        answers.push((*provider, uses));
    }
    let lines = log_of(gateway).await?;
    for (provider, uses) in &answers {
        let mut ids = Vec::new();
        for answer in uses {
            let id = of_answer(&lines, answer)?["key_id"].as_str();
            let id = id.with_context(|| format!("{provider:?}: no key"))?;
            let (name, _) = id.split_once("sha256:").context(id.to_owned())?;
            let names = if provider.declared().secret.signs() {
                "2026-11 "
            } else {
                ""
            };
            assert_eq!(name, names, "{provider:?}");
            ids.push(id);
        }
        // A token was fetched with the former secret, and is still in use.
        assert_eq!(
            ids[0] == ids[1],
            provider.servers().len() > 1,
            "{provider:?} {ids:?}"
        );
    }
    Ok(())
}
