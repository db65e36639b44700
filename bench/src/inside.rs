//! What goes on inside: host calls of a refund, the VM's memory, its start, a push, and what other traffic feels.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use crate::envoy::{Filter, Refund, Site};
use crate::jobs::Job;
use crate::lanes::{CALLERS, Gateway, Lane};
use crate::load::{self, Load};
use crate::process::memory;
use crate::report::{Report, median, ratios, spread};

const GUARDED: Refund = Refund {
    guard: true,
    ..Refund::BARE
};

/// Host calls of one refund, by Envoy's own trace.
pub async fn host_calls(report: &mut Report, site: &Site<'_>) -> Result<()> {
    const CALLS: u64 = 20;
    let jobs = [
        ("Moyasar", Job::Moyasar(0), GUARDED),
        ("Moyasar, guard off", Job::Moyasar(0), Refund::BARE),
        ("BBMSL, signed by host", Job::Bbmsl, GUARDED),
    ];
    let mut by_name: BTreeMap<String, [f64; 3]> = BTreeMap::new();
    for (nth, (_, job, refund)) in jobs.iter().enumerate() {
        let envoy = site
            .start(&Filter::Refund(*refund), 1, "wasm:trace")
            .await?;
        let load = |count| Load {
            address: envoy.address,
            job: *job,
            connections: 1,
            time: Duration::from_secs(10),
            count,
            rate: None,
        };
        // What is done once a VM, metrics defined and the like, is not a refund's.
        load::run(&load(CALLS)).await?;
        sleep(Duration::from_millis(200)).await;
        let before = envoy.log().len();
        load::run(&load(CALLS)).await?;
        sleep(Duration::from_millis(200)).await;
        let log = envoy.log();
        for line in log.get(before..).unwrap_or_default().lines() {
            let Some((_, call)) = line.split_once("[vm->host] ") else {
                continue;
            };
            let Some((name, _)) = call.split_once('(') else {
                continue;
            };
            let name = name.strip_prefix("env.").unwrap_or(name);
            by_name.entry(name.to_owned()).or_default()[nth] += 1.0 / CALLS as f64;
        }
    }
    let mut sums = [0.0; 3];
    let mut rows = Vec::new();
    for (name, counts) in &by_name {
        let mut row = vec![format!("`{name}`")];
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
            row.push(format!("{count:.1}"));
        }
        rows.push(row);
    }
    rows.push(
        std::iter::once("all".to_owned())
            .chain(sums.map(|sum| format!("{sum:.1}")))
            .collect(),
    );
    report.section(
        "Host calls a refund",
        "Counted in Envoy's own trace, of a VM that is warm.",
    );
    report.table(&["", jobs[0].0, jobs[1].0, jobs[2].0], &rows);
    report.keep("host_calls", json!(sums));
    Ok(())
}

/// The VM's memory over a million refunds, or as many as there is time for.
pub async fn memory_over_time(report: &mut Report, site: &Site<'_>, time: Duration) -> Result<()> {
    let envoy = site
        .start(&Filter::Refund(GUARDED), 1, "wasm:error")
        .await?;
    let begin = Instant::now();
    let (mut done, mut rows, mut first, mut last) = (0, Vec::new(), None, 0);
    let mut note = |done: u64| -> Result<u64> {
        let memory = memory(envoy.id())?;
        rows.push(vec![
            done.to_string(),
            format!("{:.2}", memory.vm_kib as f64 / 1024.0),
            format!("{:.1}", memory.resident_kib as f64 / 1024.0),
        ]);
        Ok(memory.vm_kib)
    };
    note(0)?;
    for until in [10_000, 100_000, 250_000, 500_000, 750_000, 1_000_000] {
        let left = time.saturating_sub(begin.elapsed());
        if left.is_zero() {
            break;
        }
        let outcome = load::run(&Load {
            address: envoy.address,
            job: Job::Moyasar(0),
            connections: CALLERS,
            // The first 100,000 are what the target speaks of.
            time: if until <= 100_000 {
                Duration::from_secs(120)
            } else {
                left
            },
            count: until - done,
            rate: None,
        })
        .await?;
        done += outcome.done;
        last = note(done)?;
        if done == 100_000 {
            first = Some(last);
        }
    }
    report.section(
        "Memory of a VM",
        "Its linear memory, and what the whole Envoy process holds; refunds at Moyasar, the guard on. In MiB.",
    );
    report.table(&["refunds", "VM", "Envoy"], &rows);
    ensure!(last > 0, "the VM's memory was not found in Envoy's map");
    // On a machine that is busy with other things there may be no time for 100,000: then it is said of as many as there were.
    let (first, after) = first.map_or((last, done), |first| (first, 100_000));
    report.at_most(
        &format!("memory of a VM after {after} refunds"),
        3.0,
        "MiB",
        first as f64 / 1024.0,
    );
    report.target(
        &format!("memory of a VM, from there to {done}"),
        "flat (to 1000000 where there is time)",
        format!("{} KiB more", last.saturating_sub(first)),
        last <= first && done > after,
    );
    Ok(())
}

/// From nothing to the first call, and from a file to its effect.
pub async fn starts(report: &mut Report, site: &Site<'_>) -> Result<()> {
    const TIMES: usize = 5;
    let mut rows = Vec::new();
    let mut without = 0.0;
    for (name, filter) in [
        ("plain Envoy", Filter::None),
        ("inert filter", Filter::Inert(None)),
        ("filter", Filter::Refund(GUARDED)),
    ] {
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let envoy = site.start(&filter, 1, "wasm:error").await?;
            times.push(envoy.started_in.as_secs_f64() * 1e3);
        }
        let time = median(&times);
        if rows.is_empty() {
            without = time;
        }
        rows.push(vec![
            name.to_owned(),
            format!("{time:.0}"),
            format!("{:.0}", time - without),
        ]);
    }
    let envoy = site
        .start(
            &Filter::Refund(Refund {
                pushed: true,
                ..GUARDED
            }),
            1,
            "wasm:error",
        )
        .await?;
    let client = reqwest::Client::new();
    let mut pushes = Vec::new();
    for nth in 0..TIMES {
        // In effect as soon as the filter takes calls under another path.
        let path = format!("/v1/refunds-{nth}");
        let begin = Instant::now();
        envoy.push(|plugin| plugin["path"] = json!(path))?;
        let url = format!("http://{}{path}", envoy.address);
        while client.delete(&url).send().await?.status() != 405 {
            ensure!(
                begin.elapsed() < Duration::from_secs(10),
                "a push had no effect"
            );
        }
        pushes.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    report.section(
        "Start and push",
        &format!(
            "From the start of Envoy until it takes calls, and what of it is more than plain Envoy's: compiling the module and \
             starting a VM in the main thread and in the worker. Medians of {TIMES}, in milliseconds."
        ),
    );
    report.table(&["", "ms", "more than plain"], &rows);
    report.words(&format!(
            "A configuration push, from the file in place to its effect in the worker: {:.1} ms ({:.1} to {:.1}).",
            median(&pushes),
            pushes.iter().copied().fold(f64::MAX, f64::min),
            pushes.iter().copied().fold(f64::MIN, f64::max),
    ));
    report.keep("push_ms", median(&pushes));
    Ok(())
}

/// Another application's p99 on the same worker while BBMSL refunds run at half of what each signer can do.
pub async fn other_traffic(
    report: &mut Report,
    gateways: &[Gateway],
    lanes: &[Lane],
    time: Duration,
) -> Result<()> {
    const RATE: f64 = 200.0;
    let mut rows = Vec::new();
    for name in [
        "filter",
        "filter, signed in the VM",
        "filter, signed by transit",
    ] {
        let gateway = gateways
            .iter()
            .find(|gateway| gateway.name == name)
            .context(name)?;
        let lane = lanes
            .iter()
            .find(|lane| lane.name == name && lane.job == Job::Bbmsl);
        let capacity = median(&lane.context(name)?.rates);
        let load = |job, rate, connections| Load {
            address: gateway.envoy.address,
            job,
            connections,
            time,
            count: u64::MAX,
            rate: Some(rate),
        };
        let other = load(Job::Other, RATE, 8);
        let alone = load::run(&other).await?;
        let refunds = load(Job::Bbmsl, capacity / 2.0, CALLERS);
        let (beside, refunds) = tokio::try_join!(load::run(&other), load::run(&refunds))?;
        rows.push(vec![
            if name == "filter" {
                "filter, signed by host"
            } else {
                name
            }
            .to_owned(),
            format!("{:.0}", refunds.rate()),
            format!("{:.2}", alone.p99_ms()),
            format!("{:.2}", beside.p50_ms()),
            format!("{:.2}", beside.p99_ms()),
            format!("{:.2}", refunds.p99_ms()),
        ]);
        report.keep(&format!("other p99 beside {name}"), beside.p99_ms());
    }
    report.section(
        "Other traffic on the same worker",
        &format!("{RATE} calls a second of another application, beside BBMSL refunds at half of what the signer can do. In milliseconds."),
    );
    report.table(
        &[
            "",
            "refunds a second",
            "p99 alone",
            "p50 beside",
            "p99 beside",
            "the refunds' p99",
        ],
        &rows,
    );
    Ok(())
}

/// What a caller waits for where the gateway has time: with a shared memory, and without.
pub async fn unhurried(report: &mut Report, gateways: &[Gateway], time: Duration) -> Result<()> {
    const RATE: f64 = 25.0;
    const ROUNDS: usize = 5;
    const NAMES: [&str; 2] = ["filter", "filter, with a shared memory"];
    let mut rows = Vec::new();
    for (provider, job) in [("Moyasar", Job::Moyasar(0)), ("BBMSL", Job::Bbmsl)] {
        let mut waits = [const { Vec::new() }; NAMES.len()];
        for _ in 0..ROUNDS {
            for (name, waits) in NAMES.iter().zip(&mut waits) {
                let gateway = gateways.iter().find(|gateway| gateway.name == *name);
                let outcome = load::run(&Load {
                    address: gateway.context(*name)?.envoy.address,
                    job,
                    connections: 1,
                    time,
                    count: u64::MAX,
                    rate: Some(RATE),
                })
                .await?;
                waits.push(outcome.p50_ms());
            }
        }
        let [without, with] = &waits;
        let pairs = with.iter().zip(without);
        let more: Vec<_> = pairs.map(|(with, without)| with - without).collect();
        rows.push(vec![
            provider.to_owned(),
            spread(without, 2),
            spread(with, 2),
            spread(&more, 2),
            spread(&ratios(with, without), 1),
        ]);
        report.keep(
            &format!("unhurried, {provider}"),
            json!({"without_ms": without, "with_ms": with}),
        );
    }
    report.section(
        "A shared memory where there is time",
        &format!(
            "{RATE} refunds a second over one connection, and a Redis on the same machine over mTLS: two calls to it a refund, each over a \
             connection of its own. Medians of {ROUNDS} rounds, in milliseconds. A network adds two connections of three round trips each."
        ),
    );
    report.table(&["", "without", "with", "more", "ratio"], &rows);
    Ok(())
}
