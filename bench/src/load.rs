//! The one load generator of all lanes: keep-alive connections over HTTP/1.1 in the bench's own thread, every answer checked.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::jobs::Job;
use crate::wire::{self, Kind};

/// Every refund of a run has another number: no key comes twice.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// How a lane is loaded.
#[derive(Clone)]
pub struct Load {
    /// Whom to call.
    pub address: SocketAddr,
    /// What to ask for.
    pub job: Job,
    /// So many calls at once.
    pub connections: u64,
    /// For so long.
    pub time: Duration,
    /// And for so many calls at most.
    pub count: u64,
    /// So many calls a second; none: each connection calls again as soon as it is answered.
    pub rate: Option<f64>,
}

/// What came of it.
pub struct Outcome {
    /// Calls that were answered as they must be. Any other ends the run.
    pub done: u64,
    /// How long it took.
    pub seconds: f64,
    /// Microseconds from a call to the end of its answer.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Answered calls a second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// The time within which 99 of 100 calls are answered, in milliseconds.
    pub fn p99_ms(&self) -> f64 {
        self.latency.value_at_quantile(0.99) as f64 / 1_000.0
    }

    /// The median, in milliseconds.
    pub fn p50_ms(&self) -> f64 {
        self.latency.value_at_quantile(0.5) as f64 / 1_000.0
    }
}

/// What the connections of one load share.
struct Shared {
    load: Load,
    begin: Instant,
    taken: AtomicU64,
    latency: RefCell<Histogram<u64>>,
}

/// Loads a lane. An error is a call that was not answered as it must be: a benchmark of errors is worth nothing.
pub async fn run(load: &Load) -> Result<Outcome> {
    let shared = Rc::new(Shared {
        load: load.clone(),
        begin: Instant::now(),
        taken: AtomicU64::new(0),
        latency: RefCell::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
    });
    let mut callers = JoinSet::new();
    for _ in 0..load.connections {
        callers.spawn_local(caller(Rc::clone(&shared)));
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let latency = shared.latency.borrow().clone();
    Ok(Outcome {
        done: latency.len(),
        seconds: shared.begin.elapsed().as_secs_f64(),
        latency,
    })
}

async fn caller(shared: Rc<Shared>) -> Result<()> {
    let load = &shared.load;
    let mut stream = TcpStream::connect(load.address).await?;
    stream.set_nodelay(true)?;
    let (mut request, mut buffer) = (Vec::new(), Vec::new());
    loop {
        let nth = shared.taken.fetch_add(1, Ordering::Relaxed);
        if nth >= load.count {
            return Ok(());
        }
        // With a rate, a call whose connection was free is timed from when it leaves; one that had to wait for a connection
        // from when it should have left, or slow answers would hide themselves.
        let mut from = Instant::now();
        if let Some(rate) = load.rate {
            let due = shared.begin + Duration::from_secs_f64(nth as f64 / rate);
            if due > from {
                if due.duration_since(shared.begin) > load.time {
                    return Ok(());
                }
                sleep_until(due).await;
                from = Instant::now();
            } else {
                from = due;
            }
        }
        if shared.begin.elapsed() > load.time {
            return Ok(());
        }
        request.clear();
        load.job
            .write(NEXT.fetch_add(1, Ordering::Relaxed), &mut request);
        stream.write_all(&request).await?;
        let Some(message) = wire::read(&mut stream, &mut buffer, Kind::Response).await? else {
            bail!("the connection was closed in place of an answer");
        };
        let body = &buffer[message.body..message.end];
        ensure!(
            message.status == 200 && wire::contains(body, load.job.expected()),
            "{} was answered with {}: {}",
            load.job.name(),
            message.status,
            String::from_utf8_lossy(body)
        );
        let took = u64::try_from(from.elapsed().as_micros())?;
        shared
            .latency
            .borrow_mut()
            .record(took.max(1))
            .context("a latency of more than a minute")?;
        buffer.drain(..message.end);
    }
}
