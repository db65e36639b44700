//! `./build.sh bench`: the filter beside what a team would take in its place, in one run on one machine, as ratios.

mod core;
mod envoy;
mod ext_proc;
mod growth;
mod inside;
mod instructions;
mod jobs;
mod lanes;
mod load;
mod plot;
mod process;
mod report;
mod service;
mod sizes;
mod upstream;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::redis::Redis;
use gateway_testbed::{Provider, Secrets};

use crate::envoy::Site;
use crate::load::Load;
use crate::process::{Cores, Peer};
use crate::report::Report;

#[derive(Parser)]
#[command(about = "The refund filter beside what a team would take in its place.")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

/// How long a lane is loaded in each round. Short, and many rounds: what disturbs a machine for some seconds then spoils a few
/// ratios of many, and lanes that are compared are loaded soon after one another.
const ROUND: Duration = Duration::from_millis(600);

#[derive(clap::Args)]
struct Options {
    /// Where the inert module is.
    #[arg(long)]
    inert: PathBuf,
    /// Where the filter's module is with its function names.
    #[arg(long)]
    symbols: PathBuf,
    /// The folder for the figures and the plot.
    #[arg(long)]
    out: PathBuf,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// For how long refunds are made to see the VM's memory, at most: a million takes minutes.
    #[arg(long, default_value_t = 240)]
    memory_seconds: u64,
    /// Whether docs/performance.md, its plot and bench/instructions.txt are written anew.
    #[arg(long)]
    write: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Measures.
    Run(Options),
    /// Loads one gateway alone, for a profiler to look at.
    Profile {
        /// Where the inert module is.
        #[arg(long)]
        inert: PathBuf,
        /// The gateway, by its name in the tables.
        gateway: String,
        /// Whether the job is BBMSL's.
        #[arg(long)]
        bbmsl: bool,
        /// For how long.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// The fast upstream: started by the run.
    Upstream,
    /// The external processor: started by the run.
    ExtProc,
    /// The separate service: started by the run.
    Service {
        /// The fast upstream.
        upstream: SocketAddr,
    },
}

fn main() -> ExitCode {
    let role = Arguments::parse().role;
    // One thread: the core is of one thread, and the load generator and the upstream must not take more than their part.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            match role {
                Role::Run(options) => run(options).await,
                Role::Profile {
                    inert,
                    gateway,
                    bbmsl,
                    seconds,
                } => profile(inert, &gateway, bbmsl, Duration::from_secs(seconds)).await,
                Role::Upstream => upstream::serve().await,
                Role::ExtProc => ext_proc::serve().await,
                Role::Service { upstream } => service::serve(upstream).await,
            }
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<()> {
    let begin = Instant::now();
    let project = gateway_testbed::project().canonicalize()?;
    let mut report = Report::default();
    let cores = Cores::of_this_machine();
    say_where(&mut report, cores.as_ref());
    let core = std::env::current_exe()?.with_file_name("core-bench");
    instructions::run(&mut report, &project, &core, options.write)?;
    sizes::run(&mut report, &gateway_testbed::module()?, &options.symbols)?;

    if let Some(cores) = &cores {
        process::move_to(cores)?;
    }
    let rest = cores.as_ref().map(|cores| cores.rest.as_str());
    let upstream = Peer::start(rest, &["upstream"], &[]).await?;
    let secrets = Secrets::new()?;
    let openbao = OpenBao::start(secrets.of(Provider::Bbmsl)).await?;
    let redis = Redis::start().await?;
    let site = Site {
        upstream: upstream.address,
        cores: cores.clone(),
        secrets: &secrets,
        openbao: Some(&openbao),
        redis: Some(&redis),
        inert: &options.inert,
    };
    inside::host_calls(&mut report, &site).await?;
    inside::starts(&mut report, &site).await?;
    let gateways = lanes::gateways(&site).await?;
    let lanes = lanes::run(&gateways, &upstream, options.rounds, ROUND).await?;
    lanes::tell(&mut report, &lanes)?;
    inside::other_traffic(&mut report, &gateways, &lanes, 8 * ROUND).await?;
    inside::unhurried(&mut report, &gateways, 4 * ROUND).await?;
    drop(gateways);
    let growths = growth::run(&mut report, &site, options.rounds.min(7), ROUND).await?;
    let time = Duration::from_secs(options.memory_seconds);
    inside::memory_over_time(&mut report, &site, time).await?;

    let plot = plot::svg(&lanes, &growths)?;
    report.finish(&options.out, &plot, options.write.then_some(&*project))?;
    println!(
        "\nIn {} seconds. Figures: {}",
        begin.elapsed().as_secs(),
        options.out.join("results.json").display()
    );
    Ok(())
}

/// What the figures are of.
fn say_where(report: &mut Report, cores: Option<&Cores>) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, name)| name);
    let places = match cores {
        Some(cores) => format!(
            "Envoy's one worker has core {} to itself; the load generator, the upstream and OpenBao have {}; a peer's own process \
             runs where the system puts it ({}).",
            cores.envoy, cores.rest, cores.all
        ),
        None => "Nothing is pinned: there is one core alone, or no `taskset`.".to_owned(),
    };
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    report.section(
        "Where",
        &format!(
            "{processor}, {} cores. {places} Before the run the machine's load was {load}: well above 0, it was not alone.",
            std::thread::available_parallelism().map_or(1, usize::from)
        ),
    );
}

async fn profile(inert: PathBuf, name: &str, bbmsl: bool, time: Duration) -> Result<()> {
    let cores = Cores::of_this_machine();
    if let Some(cores) = &cores {
        process::move_to(cores)?;
    }
    let rest = cores.as_ref().map(|cores| cores.rest.as_str());
    let upstream = Peer::start(rest, &["upstream"], &[]).await?;
    let secrets = Secrets::new()?;
    let redis = match name.contains("memory") {
        true => Some(Redis::start().await?),
        false => None,
    };
    let site = Site {
        upstream: upstream.address,
        cores: cores.clone(),
        secrets: &secrets,
        openbao: None,
        redis: redis.as_ref(),
        inert: &inert,
    };
    let gateway = lanes::gateway(&site, name).await?;
    let envoy = gateway.envoy;
    println!("Envoy is process {}", envoy.id());
    let load = |time| Load {
        address: envoy.address,
        job: lanes::job_of(name, bbmsl),
        connections: lanes::CALLERS,
        time,
        count: u64::MAX,
        rate: None,
    };
    load::run(&load(time / 4)).await?;
    let before = process::cpu(envoy.id())?;
    let outcome = load::run(&load(time)).await?;
    let spent = process::cpu(envoy.id())?.saturating_sub(before);
    println!(
        "{:.0} calls a second, {:.1} µs of Envoy's a call",
        outcome.rate(),
        spent.as_secs_f64() * 1e6 / outcome.done.max(1) as f64
    );
    Ok(())
}
