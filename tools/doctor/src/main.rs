//! `./build.sh doctor FILE` and `./build.sh config PROVIDERS`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

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
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Doctor { file } => doctor(&file),
        Command::Config { providers, path } => config(&providers, &path),
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

fn config(providers: &str, path: &str) -> Result<ExitCode> {
    let names: Vec<_> = providers.split(',').collect();
    let text = refund_doctor::start::write(&names, path)?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
