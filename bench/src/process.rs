//! Processes: on which cores they run, what they cost, and how much memory the VMs in them have.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Which cores take what, as `taskset` writes them.
#[derive(Clone, Debug)]
pub struct Cores {
    /// Envoy's worker alone.
    pub envoy: String,
    /// The load generator, the upstream and OpenBao.
    pub rest: String,
    /// All: for a peer's own process, which the system puts where there is room.
    pub all: String,
}

impl Cores {
    /// The first core is Envoy's. None where there is one core alone, or no `taskset`: nothing is pinned then.
    pub fn of_this_machine() -> Option<Cores> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let there = std::process::Command::new("taskset")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        (count > 1 && there.is_ok()).then(|| Cores {
            envoy: "0".into(),
            rest: if count == 2 {
                "1".into()
            } else {
                format!("1-{}", count - 1)
            },
            all: format!("0-{}", count - 1),
        })
    }
}

/// A command on these cores.
pub fn on(cores: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let mut command = match cores {
        Some(cores) => {
            let mut command = Command::new("taskset");
            command.args(["-c", cores]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Moves this very process, and what it starts from now on.
pub fn move_to(cores: &Cores) -> Result<()> {
    let moved = std::process::Command::new("taskset")
        .args(["-cp", &cores.rest, &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()?;
    ensure!(moved.success(), "taskset could not move the bench");
    Ok(())
}

/// A process of this program in another role. Killed when it is dropped.
pub struct Peer {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Peer {
    /// Starts it and waits for its address.
    pub async fn start(
        cores: Option<&str>,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> Result<Peer> {
        let mut process = on(cores, std::env::current_exe()?)
            .args(arguments)
            .envs(environment.iter().cloned())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = process.stdout.take().context("no output")?;
        let line = BufReader::new(out).lines().next_line().await?;
        let address = line
            .with_context(|| format!("{arguments:?} did not start"))?
            .parse()?;
        Ok(Peer { process, address })
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }
}

/// The processor time that a process has taken.
pub fn cpu(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in front may hold anything but the last parenthesis.
    let (_, rest) = stat.rsplit_once(") ").context("an unknown stat")?;
    let field = |nth: usize| {
        rest.split(' ')
            .nth(nth)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let ticks = field(11).zip(field(12)).context("an unknown stat")?;
    // USER_HZ is 100 on every Linux.
    Ok(Duration::from_millis((ticks.0 + ticks.1) * 10))
}

/// The memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// What it holds in all, in KiB.
    pub resident_kib: u64,
    /// The largest linear memory of a WebAssembly VM in it, in KiB.
    pub vm_kib: u64,
}

/// Reads it from the kernel's map of the process. V8 reserves gigabytes of addresses for the memory of each VM and opens its
/// beginning: that beginning is the VM's memory.
pub fn memory(process: u32) -> Result<Memory> {
    const RESERVED: u64 = 1 << 32;
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    let mut regions = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = fields.next().zip(fields.next()).context("an unknown map")?;
        let (begin, end) = range.split_once('-').context("an unknown map")?;
        let begin = u64::from_str_radix(begin, 16)?;
        let end = u64::from_str_radix(end, 16)?;
        regions.push((begin, end, rights.to_owned()));
    }
    let vm_bytes = regions.windows(2).filter_map(|pair| {
        let (begin, end, rights) = &pair[0];
        let (next, last, closed) = &pair[1];
        let is_memory = rights.starts_with("rw")
            && closed.starts_with("---")
            && end == next
            && last - next >= RESERVED - (end - begin);
        is_memory.then(|| end - begin)
    });
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok());
    Ok(Memory {
        resident_kib: resident.context("no VmRSS")?,
        vm_kib: vm_bytes.max().unwrap_or_default() / 1024,
    })
}
