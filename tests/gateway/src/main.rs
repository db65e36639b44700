//! `./build.sh demo`, `serve` and `soak`: the gateway in front of the simulated providers, to be
//! looked at.

mod demo;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use gateway_testbed::soak::Plan;
use gateway_testbed::{Gateway, Options, play, sandbox};
use provider_simulator::sandbox::Ending;

#[derive(Parser)]
#[command(
    bin_name = "./build.sh",
    about = "The refund filter in a real Envoy, in front of simulated providers."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes one refund at every provider, shows what went over the wire, and ends.
    Demo,
    /// Refunds under faults for three minutes, and holds every answer against the providers'
    /// ledgers.
    Soak,
    /// Calls and faults, for the test of `observability/`: begins at a line of its input, tells on a
    /// line what callers were told, and ends with its input.
    #[command(hide = true)]
    Play {
        /// How often everything is played.
        #[arg(long, default_value_t = 1)]
        rounds: u32,
    },
    /// Keeps gateway and providers up until Ctrl-C.
    Serve {
        /// Where to listen on 127.0.0.1, by default as envoy.yaml and the README's curl lines; 0
        /// is any free port.
        #[arg(long, default_value_t = 10_000)]
        port: u16,
        /// Where the page of the providers' ledgers is, on 127.0.0.1; 0 is any free port. By
        /// default 80 after the gateway's, or any free one where that is.
        #[arg(long)]
        page_port: Option<u16>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo => demo::run().await,
        Command::Soak => soak().await,
        Command::Play { rounds } => play(rounds).await,
        Command::Serve { port, page_port } => serve(port, page_port).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn soak() -> Result<()> {
    gateway_testbed::soak::run(Plan::full()?).await?;
    gateway_testbed::soak::run(Plan::full()?.of_a_fleet()).await
}

async fn play(rounds: u32) -> Result<()> {
    let (mut gateway, memory) = play::gateway().await?;
    println!("{}", gateway.admin);
    if more_input().await? {
        let mut player = play::Player::new(&gateway, memory);
        for _ in 0..rounds {
            player.round().await?;
        }
        println!("{}", player.summary());
        more_input().await?;
    }
    gateway.stop().await
}

/// Waits for a line of the input; false at its end.
async fn more_input() -> Result<bool> {
    let read = || std::io::stdin().read_line(&mut String::new());
    Ok(tokio::task::spawn_blocking(read).await?? > 0)
}

async fn serve(port: u16, page_port: Option<u16>) -> Result<()> {
    let page_port = page_port.unwrap_or(match port {
        0 => 0,
        port => port.checked_add(80).unwrap_or(0),
    });
    // Envoy's own words for a taken port are twenty lines.
    std::net::TcpListener::bind(("127.0.0.1", port))
        .map(drop)
        .with_context(|| {
            format!("127.0.0.1:{port} is not free: end what listens there and call this again")
        })?;
    let mut gateway = Gateway::start(Options {
        port,
        ..Options::alone()
    })
    .await?;
    let page = sandbox::serve_page(page_port, gateway.simulators.clone()).await?;
    tokio::spawn(sandbox::settle(gateway.simulators.clone()));
    println!(
        "The gateway listens on http://{}. A refund at each provider to try:\n",
        gateway.address
    );
    for case in demo::cases() {
        println!("{}\n", case.curl(gateway.address));
    }
    let words = Ending::ALL.map(|(word, _)| word);
    println!(
        "Other ends, the same at every provider: payment sandbox-NAME (at BBMSL as `reference`), where NAME is {}. \
         docs/sandbox.md has what they do.\n",
        words.join(", ")
    );
    println!("What the providers saw and booked: http://{page}");
    println!(
        "Access log: {}",
        gateway.folder().join("access.log").display()
    );
    println!("Envoy's admin: http://{}   End with Ctrl-C.", gateway.admin);
    tokio::select! {
        interrupted = interrupted() => interrupted?,
        ended = gateway.ended() => bail!("Envoy ended by itself: {ended}"),
    }
    gateway.stop().await?;
    println!("Stopped.");
    Ok(())
}

/// Ctrl-C, or the polite end that a supervisor asks for.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => Ok(result?),
        _ = terminate.recv() => Ok(()),
    }
}
