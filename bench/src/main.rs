//! `./build.sh bench`: the filter beside what a team would take in its place, in one run on one machine, as ratios.

mod core;
mod envoy;
mod ext_proc;
mod jobs;
mod lanes;
mod load;
mod process;
mod service;
mod upstream;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use gateway_testbed::Secrets;
use gateway_testbed::openbao::OpenBao;

use crate::envoy::Site;
use crate::process::{Cores, Peer};

#[derive(Parser)]
#[command(about = "The refund filter beside what a team would take in its place.")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Measures.
    Run {
        /// Where the inert module is.
        #[arg(long)]
        inert: PathBuf,
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            match role {
                Role::Run { inert } => run(inert).await,
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

async fn run(inert: PathBuf) -> Result<()> {
    let cores = Cores::of_this_machine();
    if let Some(cores) = &cores {
        process::move_to(cores)?;
    }
    let rest = cores.as_ref().map(|cores| cores.rest.as_str());
    let upstream = Peer::start(rest, &["upstream"], &[]).await?;
    let secrets = Secrets::new()?;
    let openbao = OpenBao::start(&secrets.bbmsl.0).await?;
    let site = Site {
        upstream: upstream.address,
        cores: cores.clone(),
        secrets: &secrets,
        openbao: Some(&openbao),
        inert: &inert,
    };
    let gateways = lanes::gateways(&site).await?;
    let lanes = lanes::run(&gateways, &upstream, 3, Duration::from_millis(1000)).await?;
    for lane in &lanes {
        println!(
            "{:32} {:?} {:>8.0} p50 {:.2} p99 {:.2} envoy {:.0} peer {:.0} upstream {:.0}",
            lane.name, lane.job, lanes::median(&lane.rates), lanes::median(&lane.p50), lanes::median(&lane.p99),
            lanes::median(&lane.cpu[0]), lanes::median(&lane.cpu[1]), lanes::median(&lane.cpu[2]),
        );
    }
    Ok(())
}
