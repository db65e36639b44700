//! How the cost grows: with workers, with the body, with configured providers, with callers.

use std::time::Duration;

use anyhow::Result;

use crate::envoy::{Envoy, Filter, Refund, Site};
use crate::jobs::Job;
use crate::lanes::CALLERS;
use crate::load::{self, Load};
use crate::report::{Report, median, spread};

/// One thing that grows, and the calls a second at each size, in each round.
pub struct Growth {
    /// What grows.
    pub what: &'static str,
    /// For each size of it: the rates.
    pub points: Vec<(u64, Vec<f64>)>,
}

/// Measures all, in interleaved rounds.
pub async fn run(
    report: &mut Report,
    site: &Site<'_>,
    rounds: usize,
    time: Duration,
) -> Result<Vec<Growth>> {
    let bare = Filter::Refund(Refund::BARE);
    let one = site.start(&bare, 1, "wasm:error").await?;
    let two = site.start(&bare, 2, "wasm:error").await?;
    let plain_one = site.start(&Filter::None, 1, "wasm:error").await?;
    let plain_two = site.start(&Filter::None, 2, "wasm:error").await?;
    let with_more = |more_providers| {
        Filter::Refund(Refund {
            more_providers,
            ..Refund::BARE
        })
    };
    let forty = site.start(&with_more(36), 1, "wasm:error").await?;
    let many = site.start(&with_more(396), 1, "wasm:error").await?;
    let refund = Job::Moyasar(0);
    let kib = 1024;
    // What grows, its size, where, the job, the callers.
    let points: Vec<(&'static str, u64, &Envoy, Job, u64)> = vec![
        ("workers", 1, &one, refund, 2 * CALLERS),
        ("workers", 2, &two, refund, 2 * CALLERS),
        (
            "workers of plain Envoy",
            1,
            &plain_one,
            Job::MoyasarMade,
            2 * CALLERS,
        ),
        (
            "workers of plain Envoy",
            2,
            &plain_two,
            Job::MoyasarMade,
            2 * CALLERS,
        ),
        ("KiB of body", 1, &one, Job::Moyasar(kib), CALLERS),
        ("KiB of body", 16, &one, Job::Moyasar(16 * kib), CALLERS),
        ("KiB of body", 64, &one, Job::Moyasar(64 * kib), CALLERS),
        ("providers", 4, &one, refund, CALLERS),
        ("providers", 40, &forty, refund, CALLERS),
        ("providers", 400, &many, refund, CALLERS),
        ("callers", 1, &one, refund, 1),
        ("callers", 4, &one, refund, 4),
        ("callers", 16, &one, refund, 16),
        ("callers", 64, &one, refund, 64),
        ("callers", 256, &one, refund, 256),
    ];
    let mut rates = vec![Vec::new(); points.len()];
    for round in 0..=rounds {
        for (point, rates) in points.iter().zip(&mut rates) {
            let (_, _, envoy, job, connections) = *point;
            let outcome = load::run(&Load {
                address: envoy.address,
                job,
                connections,
                time: if round == 0 { time / 3 } else { time },
                count: u64::MAX,
                rate: None,
            })
            .await?;
            if round > 0 {
                rates.push(outcome.rate());
            }
        }
    }
    let mut growths: Vec<Growth> = Vec::new();
    for ((what, size, ..), rates) in points.into_iter().zip(rates) {
        match growths.last_mut() {
            Some(last) if last.what == what => last.points.push((size, rates)),
            _ => growths.push(Growth {
                what,
                points: vec![(size, rates)],
            }),
        }
    }
    let mut rows = Vec::new();
    for growth in &growths {
        let base = growth
            .points
            .first()
            .map_or(f64::NAN, |(_, rates)| median(rates));
        for (size, rates) in &growth.points {
            rows.push(vec![
                format!("{size} {}", growth.what),
                spread(rates, 0),
                format!("{:.0}", 1e6 / median(rates)),
                format!("{:.2}", median(rates) / base),
            ]);
        }
    }
    report.section(
        "Growth",
        "Refunds at Moyasar, the guard off. Two workers have both cores and share them with the load generator and the \
         upstream, on a machine of two: plain Envoy shows what is left of the second.",
    );
    report.table(
        &[
            "",
            "calls a second",
            "µs of the gateway a call",
            "against the first",
        ],
        &rows,
    );
    targets(report, &growths);
    Ok(growths)
}

fn targets(report: &mut Report, growths: &[Growth]) {
    for growth in growths {
        let (Some((first, slow)), Some((last, fast))) =
            (growth.points.first(), growth.points.last())
        else {
            continue;
        };
        let cost = median(slow) / median(fast);
        let times = *last as f64 / *first as f64;
        match growth.what {
            "KiB of body" | "providers" => report.target(
                &format!("cost of {last} {} against {first}", growth.what),
                &format!("linear or better: at most {times:.0}"),
                format!("{cost:.2}"),
                cost <= times,
            ),
            "callers" => {
                let best = growth
                    .points
                    .iter()
                    .map(|(_, rates)| median(rates))
                    .fold(0.0, f64::max);
                report.target(
                    &format!("throughput with {last} callers against the best"),
                    "at least 0.8",
                    format!("{:.2}", median(fast) / best),
                    median(fast) / best >= 0.8,
                );
            }
            _ => {}
        }
    }
    let grown = |what| {
        let growth = growths.iter().find(|growth| growth.what == what)?;
        let (first, last) = (growth.points.first()?, growth.points.last()?);
        Some(median(&last.1) / median(&first.1))
    };
    if let (Some(ours), Some(plain)) = (grown("workers"), grown("workers of plain Envoy")) {
        report.target(
            "throughput of 2 workers against 1",
            &format!("0.95 of plain Envoy's {plain:.2}"),
            format!("{ours:.2}"),
            ours >= 0.95 * plain,
        );
    }
}
