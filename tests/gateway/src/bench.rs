//! `./build.sh bench`: BBMSL refunds a second with each signer, in one run, as ratios.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::{Gateway, Options, Secrets, change_plugin, sign_by_transit};
use provider_simulator::{Provider, orders};
use serde_json::json;

const CALLERS: u64 = 16;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);

/// Runs the benchmark: one Envoy worker, the same callers, interleaved rounds, medians.
pub async fn run() -> Result<()> {
    let secrets = Secrets::new()?;
    let openbao = OpenBao::start(&secrets.bbmsl.0).await?;
    let mut lanes = Vec::new();
    for signer in ["host", "vm", "transit"] {
        let (address, ca) = (openbao.address, openbao.ca());
        let gateway = Gateway::start(Options {
            secrets: Some(secrets.clone()),
            more_secrets: vec![("openbao-token", openbao.token.clone())],
            concurrency: 1,
            change: Box::new(move |config, folder| {
                let changed = match signer {
                    "transit" => sign_by_transit(config, address, &ca, folder),
                    _ => change_plugin(config, |plugin| {
                        plugin["providers"]["bbmsl"]["signing"]["signer"] = json!(signer);
                    }),
                };
                changed.expect("envoy.yaml has these places");
            }),
            ..Options::default()
        })
        .await?;
        lanes.push((signer, Arc::new(gateway), Vec::new()));
    }
    let next = Arc::new(AtomicU64::new(0));
    for _ in 0..ROUNDS {
        for (_, gateway, rates) in &mut lanes {
            rates.push(round(gateway, &next).await?);
        }
    }
    println!(
        "BBMSL refunds a second, one Envoy worker, {CALLERS} callers, medians of {ROUNDS} interleaved rounds."
    );
    println!(
        "(The simulated provider verifies every signature and shares the machine: it bounds the fast ones.)\n"
    );
    let median = |rates: &mut Vec<u64>| {
        rates.sort_unstable();
        rates[rates.len() / 2]
    };
    let slowest = lanes
        .iter_mut()
        .map(|(_, _, rates)| median(rates))
        .min()
        .unwrap_or(1)
        .max(1);
    for (signer, _, rates) in &mut lanes {
        let rate = median(rates);
        println!(
            "  {signer:8} {rate:6}   ratio {:>5.1}   spread {} to {}",
            rate as f64 / slowest as f64,
            rates[0],
            rates[rates.len() - 1]
        );
    }
    Ok(())
}

/// Refunds a second in one round; every one must succeed.
async fn round(gateway: &Arc<Gateway>, next: &Arc<AtomicU64>) -> Result<u64> {
    let client = reqwest::Client::new();
    let begin = Instant::now();
    let callers = (0..CALLERS).map(|_| {
        let (gateway, next, client) = (gateway.clone(), next.clone(), client.clone());
        tokio::spawn(async move {
            let mut done = 0u64;
            while begin.elapsed() < ROUND {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let body = json!({
                    "provider": "bbmsl",
                    "payment": {"id": orders::fresh(Provider::Bbmsl, nth)},
                    "amount": {"value": "10.50", "currency": "HKD"},
                });
                let call = client
                    .post(gateway.url())
                    .header("content-type", "application/json")
                    .header("idempotency-key", format!("bench-{nth}"))
                    .body(body.to_string());
                let answer = call.send().await?;
                ensure!(answer.status() == 200, "{}", answer.text().await?);
                answer.bytes().await?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for caller in callers.collect::<Vec<_>>() {
        done += caller.await??;
    }
    Ok(done * 1_000 / u64::try_from(begin.elapsed().as_millis())?.max(1))
}
