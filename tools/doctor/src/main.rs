//! `./build.sh doctor FILE` and `./build.sh config PROVIDERS`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use refund_doctor::start::Variant;

/// What it says of a file that it cannot read, and of a command that it cannot carry out.
const CANNOT: u8 = 2;

#[derive(Parser)]
#[command(
    bin_name = "./build.sh",
    about = "Configurations of Envoy with the refund filter: what is missing in one, and a new one."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says what is missing or risky: status 0 with nothing to say, 1 with findings, 2 where it
    /// cannot read.
    Doctor {
        /// A bootstrap (YAML or JSON), or what the admin's /config_dump gives.
        file: PathBuf,
    },
    /// Prints a whole configuration for these providers, out of envoy/envoy.yaml.
    Config {
        /// Their names, with commas between them.
        providers: String,
        /// The path of the canonical call.
        #[arg(long, default_value = refund_doctor::PATH)]
        path: String,
        #[command(flatten)]
        variant: Options,
    },
}

#[derive(Args)]
struct Options {
    /// The secrets by request headers, for proxies without filter state for them: Envoy before 1.38.
    #[arg(long)]
    secrets_by_header: bool,
    /// BBMSL's signatures by OpenBao's transit engine.
    #[arg(long)]
    transit: bool,
    /// Moyasar's and beGateway's credentials by Envoy itself, past the filter.
    #[arg(long)]
    credentials_injected: bool,
    /// A second listener, on loopback, that lists the refunds which are open.
    #[arg(long)]
    open_list: bool,
    /// One memory of keys for all gateways, in Redis or Valkey.
    #[arg(long)]
    memory: bool,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Doctor { file } => doctor(&file),
        Command::Config {
            providers,
            path,
            variant,
        } => config(
            &providers,
            &path,
            Variant {
                by_header: variant.secrets_by_header,
                transit: variant.transit,
                injected: variant.credentials_injected,
                open_list: variant.open_list,
                memory: variant.memory,
            },
        ),
    };
    result.unwrap_or_else(|error| {
        // With nowhere to say it, the status alone says it.
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::from(CANNOT)
    })
}

fn doctor(file: &Path) -> Result<ExitCode> {
    let cannot = || format!("{} cannot be read", file.display());
    let text = std::fs::read_to_string(file).with_context(cannot)?;
    let findings = refund_doctor::examine(&text).with_context(cannot)?;
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}.")?;
    }
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn config(providers: &str, path: &str, variant: Variant) -> Result<ExitCode> {
    let names: Vec<_> = providers.split(',').collect();
    let text = refund_doctor::start::write(&names, path, variant)?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
