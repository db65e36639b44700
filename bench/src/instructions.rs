//! The core's instructions, counted by callgrind: the same on every run, so that a change of a few in a thousand is seen. What
//! was counted before stands in a file of the project.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::report::Report;

const CASES: [(&str, &str); 4] = [
    ("bog", "page-example-partial-refund"),
    ("moyasar", "page-example-with-its-own-order-id"),
    ("begateway", "ten-dollars"),
    ("bbmsl", "contract-example"),
];
const FILE: &str = "bench/instructions.txt";
const HEAD: &str = "# provider step instructions allocations bytes: the core alone, natively, without the signature.\n\
    # Written by BENCH_WRITE=1 ./build.sh bench. Another compiler or another processor's memcpy counts a little differently.\n";

#[derive(Clone, Copy)]
struct Count {
    instructions: u64,
    allocations: u64,
    bytes: u64,
}

/// Counts each provider's request and reply, and compares. Writes the file anew where `write` says so.
pub fn run(report: &mut Report, project: &Path, program: &Path, write: bool) -> Result<()> {
    report.section(
        "The core alone: instructions and allocations",
        "One golden call of each provider through the core, natively, by callgrind; the signature is left out. \
         (±: against `bench/instructions.txt`.)",
    );
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("valgrind is missing, so instructions are not counted: apt-get install valgrind");
        return Ok(());
    }
    let known = read(&project.join(FILE));
    let (mut rows, mut text) = (Vec::new(), HEAD.to_owned());
    for (provider, golden) in CASES {
        let golden = project
            .join("tests/providers")
            .join(provider)
            .join("golden")
            .join(format!("{golden}.json"));
        for step in ["request", "reply"] {
            let count = count(program, step, &golden)?;
            let name = format!("{provider} {step}");
            let against = known.get(&name).map_or("new".to_owned(), |before| {
                format!(
                    "{:+.1} %",
                    100.0 * (count.instructions as f64 / *before as f64 - 1.0)
                )
            });
            text.push_str(&format!(
                "{name} {} {} {}\n",
                count.instructions, count.allocations, count.bytes
            ));
            report.keep(&format!("instructions {name}"), count.instructions);
            rows.push(vec![
                name,
                count.instructions.to_string(),
                against,
                count.allocations.to_string(),
                count.bytes.to_string(),
            ]);
        }
    }
    report.table(&["", "instructions", "±", "allocations", "bytes"], &rows);
    if write {
        std::fs::write(project.join(FILE), text)?;
    }
    Ok(())
}

fn count(program: &Path, step: &str, golden: &Path) -> Result<Count> {
    let out = tempfile::NamedTempFile::new()?;
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.path().display()))
        .arg(format!("--toggle-collect=measured_{step}"))
        .arg(program)
        .arg(step)
        .arg(golden)
        .output()?;
    ensure!(
        output.status.success(),
        "callgrind: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let counted = std::fs::read_to_string(out.path())?;
    let instructions = counted
        .lines()
        .find_map(|line| line.strip_prefix("summary: ")?.trim().parse().ok())
        .context("callgrind counted nothing")?;
    let text = String::from_utf8(output.stdout)?;
    let (allocations, bytes) = text
        .trim()
        .split_once(' ')
        .context("core-bench said nothing")?;
    Ok(Count {
        instructions,
        allocations: allocations.parse()?,
        bytes: bytes.parse()?,
    })
}

fn read(file: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let count = |line: &str| {
        let mut words = line.split(' ');
        let name = format!("{} {}", words.next()?, words.next()?);
        Some((name, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(count).collect()
}
