//! `simulate`: very many refunds, in worlds of some thousands, on all cores.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use simulation::{Outcome, Plan, derived, play, scene};

/// Simulates gateways, providers, callers, the network and every clock, from one seed.
#[derive(Parser)]
struct Arguments {
    /// All chance comes from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many refunds, over all worlds.
    #[arg(long, default_value_t = 1_000_000)]
    refunds: u64,
    /// How many refunds a world has.
    #[arg(long, default_value_t = 2_000)]
    per_world: u64,
    /// Gateways remember keys each for itself, and all calls of a key go to one of them.
    #[arg(long)]
    alone: bool,
    /// Plays one world alone, by the seed that a failure names, and tells the story of what failed.
    #[arg(long)]
    world: Option<u64>,
    /// Tells the story of this refund of that world, whether it failed or not.
    #[arg(long, requires = "world")]
    refund: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.world {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

fn plan(seed: u64, arguments: &Arguments) -> Plan {
    Plan {
        seed,
        refunds: usize::try_from(arguments.per_world).unwrap_or(usize::MAX),
        shared: !arguments.alone,
        without: None,
        watched: None,
    }
}

/// One world, and the story of the first refund that failed.
fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let plan = plan(seed, arguments);
    println!("{}", scene(plan));
    let outcome = play(plan);
    for finding in &outcome.findings {
        println!(
            "refund {:?}: {} ({})",
            finding.refund, finding.rule, finding.place
        );
    }
    let failed = outcome.findings.iter().find_map(|finding| finding.refund);
    if let Some(refund) = arguments.refund.or(failed) {
        let watched = Some(refund);
        println!("\nrefund {refund}:");
        for line in play(Plan { watched, ..plan }).story {
            println!("{line}");
        }
    }
    match outcome.findings.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Worlds on all cores, until there were so many refunds.
fn many(arguments: &Arguments) -> ExitCode {
    let worlds = arguments.refunds.div_ceil(arguments.per_world);
    let (next, total) = (AtomicU64::new(0), Mutex::new(Outcome::default()));
    let (failed, began) = (AtomicU64::new(0), Instant::now());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let work = || {
        loop {
            let nth = next.fetch_add(1, Ordering::SeqCst);
            if nth >= worlds {
                return;
            }
            let seed = derived(arguments.seed, nth);
            let outcome = play(plan(seed, arguments));
            if !outcome.findings.is_empty() {
                failed.fetch_add(1, Ordering::SeqCst);
                let first = &outcome.findings[0];
                println!(
                    "{} findings, the first: {} ({})\n  ./build.sh simulate{} --per-world {} --world {seed}",
                    outcome.findings.len(),
                    first.rule,
                    first.place,
                    if arguments.alone { " --alone" } else { "" },
                    arguments.per_world,
                );
            }
            let mut total = total.lock().unwrap();
            total.refunds += outcome.refunds;
            total.calls += outcome.calls;
            total.sends += outcome.sends;
            total.events += outcome.events;
            total.untold += outcome.untold;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().unwrap();
    let took = began.elapsed();
    println!(
        "{} refunds in {worlds} worlds, {} calls, {} requests to providers, {} events: {:.0} s, {:.0} refunds a second",
        total.refunds,
        total.calls,
        total.sends,
        total.events,
        took.as_secs_f64(),
        total.refunds as f64 / took.as_secs_f64(),
    );
    println!(
        "{} calls were told not_refunded of what another gateway had sent without the store, and could not tell it: docs/memory.md",
        total.untold
    );
    match failed.into_inner() {
        0 => ExitCode::SUCCESS,
        failed => {
            println!("{failed} worlds failed");
            ExitCode::FAILURE
        }
    }
}
