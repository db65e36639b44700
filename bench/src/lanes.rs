//! The lanes: what a team would pick, and us; measured in interleaved rounds.

use std::time::Duration;

use anyhow::{Context, Result};
use gateway_testbed::Provider;

use crate::core::PLUGIN;
use crate::envoy::{Envoy, Filter, Refund, Site, peers_plugin};
use crate::jobs::Job;
use crate::load::{self, Load};
use crate::process::{Peer, cpu};
use crate::report::{Report, median, ratios, spread};

/// Callers at once in the lanes.
pub const CALLERS: u64 = 16;

/// The script of the Lua lane: a JSON library, found at run time, and the job.
pub fn lua_script() -> Result<String> {
    let path = std::env::var("BENCH_LUA_JSON").context("BENCH_LUA_JSON: run this by ./build.sh")?;
    let library = std::fs::read_to_string(&path).context(path)?;
    Ok(format!(
        "local json = (function()\n{library}\nend)()\n{}",
        include_str!("refund.lua")
    ))
}

/// What any Lua filter costs that must see whole bodies.
const LUA_INERT: &str = "function envoy_on_request(handle) handle:body() end\n\
    function envoy_on_response(handle) handle:body() end";

/// A gateway, and the process beside it where there is one.
pub struct Gateway {
    /// For the tables.
    pub name: &'static str,
    /// Envoy.
    pub envoy: Envoy,
    /// The peer's own process.
    pub peer: Option<Peer>,
}

/// The gateways of the comparison, by name.
pub const GATEWAYS: [&str; 15] = [
    "plain Envoy",
    "inert filter",
    "inert filter and one sign",
    "Lua that only buffers",
    "Lua",
    "ext_proc",
    "ext_proc, full duplex",
    "service",
    "filter, guard off",
    "filter",
    "filter, with a shared memory",
    "filter, secrets by SDS",
    "filter, no route guard",
    "filter, signed in the VM",
    "filter, signed by transit",
];

/// Starts a gateway, and the process beside it where it needs one.
pub async fn gateway(site: &Site<'_>, wanted: &str) -> Result<Gateway> {
    let name = GATEWAYS.into_iter().find(|name| *name == wanted);
    let name = name.with_context(|| format!("no gateway is called {wanted}"))?;
    let guarded = Refund {
        guard: true,
        ..Refund::BARE
    };
    let mut peer = None;
    let filter = match name {
        "plain Envoy" => Filter::None,
        "inert filter" => Filter::Inert(None),
        "inert filter and one sign" => Filter::Inert(Some(site.secrets.line(Provider::Bbmsl))),
        "Lua that only buffers" => Filter::Lua(LUA_INERT.into()),
        "Lua" => Filter::Lua(lua_script()?),
        "ext_proc" | "ext_proc, full duplex" => {
            let process = peer.insert(start_peer(site, &["ext-proc"]).await?);
            Filter::ExtProc(process.address, name != "ext_proc")
        }
        "service" => {
            let upstream = site.upstream.to_string();
            let process = peer.insert(start_peer(site, &["service", &upstream]).await?);
            Filter::Service(process.address)
        }
        "filter, guard off" => Filter::Refund(Refund::BARE),
        "filter, with a shared memory" => Filter::Refund(Refund {
            memory: true,
            ..guarded
        }),
        "filter, secrets by SDS" => Filter::Refund(Refund {
            by_sds: true,
            ..guarded
        }),
        "filter, no route guard" => Filter::Refund(Refund {
            route_guard: false,
            ..guarded
        }),
        "filter, signed in the VM" => Filter::Refund(Refund {
            signer: "vm",
            ..guarded
        }),
        "filter, signed by transit" => Filter::Refund(Refund {
            signer: "transit",
            ..guarded
        }),
        _ => Filter::Refund(guarded),
    };
    let envoy = site.start(&filter, 1, "wasm:error").await.context(name)?;
    Ok(Gateway { name, envoy, peer })
}

/// A peer's process, where the system puts it.
async fn start_peer(site: &Site<'_>, role: &[&str]) -> Result<Peer> {
    let mut variables = site.secrets.environment();
    variables.push((PLUGIN.into(), peers_plugin()?));
    let anywhere = site.cores.as_ref().map(|cores| cores.all.as_str());
    Peer::start(anywhere, role, &variables).await
}

/// All gateways of the comparison.
pub async fn gateways(site: &Site<'_>) -> Result<Vec<Gateway>> {
    let mut gateways = Vec::new();
    for name in GATEWAYS {
        gateways.push(gateway(site, name).await?);
    }
    Ok(gateways)
}

/// The job of a gateway.
pub fn job_of(name: &str, bbmsl: bool) -> Job {
    let jobs = LANES
        .iter()
        .filter(|(known, _)| *known == name)
        .map(|(_, job)| *job);
    let wanted = |job: &Job| matches!(job, Job::Bbmsl | Job::BbmslMade) == bbmsl;
    jobs.clone()
        .find(wanted)
        .or(jobs.clone().next())
        .unwrap_or(Job::Other)
}

/// Which gateway does which job.
pub const LANES: [(&str, Job); 24] = [
    ("plain Envoy", Job::MoyasarMade),
    ("inert filter", Job::MoyasarMade),
    ("Lua that only buffers", Job::MoyasarMade),
    ("Lua", Job::Moyasar(0)),
    ("ext_proc", Job::Moyasar(0)),
    ("ext_proc, full duplex", Job::Moyasar(0)),
    ("service", Job::Moyasar(0)),
    ("filter, guard off", Job::Moyasar(0)),
    ("filter", Job::Moyasar(0)),
    // Beside it, since the two are compared.
    ("filter, no route guard", Job::Moyasar(0)),
    ("filter, with a shared memory", Job::Moyasar(0)),
    ("filter, secrets by SDS", Job::Moyasar(0)),
    ("plain Envoy", Job::BbmslMade),
    ("inert filter", Job::BbmslMade),
    ("inert filter and one sign", Job::BbmslMade),
    ("ext_proc", Job::Bbmsl),
    ("ext_proc, full duplex", Job::Bbmsl),
    ("service", Job::Bbmsl),
    ("filter, guard off", Job::Bbmsl),
    ("filter", Job::Bbmsl),
    ("filter, with a shared memory", Job::Bbmsl),
    ("filter, secrets by SDS", Job::Bbmsl),
    ("filter, signed in the VM", Job::Bbmsl),
    ("filter, signed by transit", Job::Bbmsl),
];

/// What one lane reached.
pub struct Lane {
    /// The gateway.
    pub name: &'static str,
    /// The job.
    pub job: Job,
    /// Calls a second, in each round.
    pub rates: Vec<f64>,
    /// In each round, in milliseconds.
    pub p50: Vec<f64>,
    /// In each round, in milliseconds.
    pub p99: Vec<f64>,
    /// Microseconds of processor time a call: Envoy, the peer's process, the upstream.
    pub cpu: [Vec<f64>; 3],
}

/// Runs all lanes in turn, so many times.
pub async fn run(
    gateways: &[Gateway],
    upstream: &Peer,
    rounds: usize,
    time: Duration,
) -> Result<Vec<Lane>> {
    let mut lanes: Vec<_> = LANES
        .iter()
        .map(|&(name, job)| Lane {
            name,
            job,
            rates: Vec::new(),
            p50: Vec::new(),
            p99: Vec::new(),
            cpu: Default::default(),
        })
        .collect();
    for round in 0..=rounds {
        for lane in &mut lanes {
            let gateway = gateways.iter().find(|gateway| gateway.name == lane.name);
            let gateway = gateway.context(lane.name)?;
            let processes = [
                Some(gateway.envoy.id()),
                gateway.peer.as_ref().map(Peer::id),
                Some(upstream.id()),
            ];
            let took = |process: Option<u32>| process.map_or(Ok(Duration::ZERO), cpu);
            let before = [
                took(processes[0])?,
                took(processes[1])?,
                took(processes[2])?,
            ];
            let outcome = load::run(&Load {
                address: gateway.envoy.address,
                job: lane.job,
                connections: CALLERS,
                time: if round == 0 { time / 3 } else { time },
                count: u64::MAX,
                rate: None,
            })
            .await
            .with_context(|| format!("{}: {}", gateway.name, gateway.envoy.log()))?;
            // The first is to warm up: V8 compiles what is hot, LuaJIT traces, pools fill.
            if round == 0 {
                continue;
            }
            lane.rates.push(outcome.rate());
            lane.p50.push(outcome.p50_ms());
            lane.p99.push(outcome.p99_ms());
            for (nth, process) in processes.into_iter().enumerate() {
                let spent = took(process)?.saturating_sub(before[nth]);
                lane.cpu[nth].push(spent.as_secs_f64() * 1e6 / outcome.done.max(1) as f64);
            }
        }
    }
    Ok(lanes)
}

/// The lanes as tables, and the targets on them.
pub fn tell(report: &mut Report, lanes: &[Lane]) -> Result<()> {
    for (title, words, plain, canonical) in [
        (
            "Moyasar: no signature",
            "Plain Envoy, the inert filter and Lua that only buffers forward the provider's request ready made, and its reply as \
             it is. Lua does the job without a guard (it has no memory that workers share) and takes keys of one kind only; \
             ext_proc and the service have the same core and no guard.",
            Job::MoyasarMade,
            Job::Moyasar(0),
        ),
        (
            "BBMSL: signed",
            "The inert filter and one sign: what any filter in WebAssembly can reach that has the host sign. Lua has no way to \
             sign. ext_proc and the service sign with `ring`.",
            Job::BbmslMade,
            Job::Bbmsl,
        ),
    ] {
        let shown = lanes
            .iter()
            .filter(|lane| lane.job == plain || lane.job == canonical);
        let base = rates(lanes, "plain Envoy", plain)?;
        let rows = shown.map(|lane| {
            let micros = |nth: usize| format!("{:.0}", median(&lane.cpu[nth]));
            vec![
                lane.name.to_owned(),
                spread(&lane.rates, 0),
                spread(&ratios(&lane.rates, base), 2),
                format!("{:.2}", median(&lane.p50)),
                spread(&lane.p99, 2),
                micros(0),
                micros(1),
                micros(2),
            ]
        });
        let rows: Vec<_> = rows.collect();
        report.section(
            title,
            &format!("{words} {CALLERS} callers at once; times in milliseconds, processor time in microseconds a call."),
        );
        report.table(
            &[
                "",
                "calls a second",
                "of plain Envoy",
                "p50",
                "p99",
                "Envoy",
                "peer",
                "upstream",
            ],
            &rows,
        );
    }
    let figures: Vec<_> = lanes
        .iter()
        .map(|lane| {
            serde_json::json!({"lane": lane.name, "job": lane.job.name(), "calls_a_second": lane.rates, "p50_ms": lane.p50,
                "p99_ms": lane.p99, "cpu_us": {"envoy": lane.cpu[0], "peer": lane.cpu[1], "upstream": lane.cpu[2]}})
        })
        .collect();
    report.keep("lanes", figures);
    targets(report, lanes)
}

fn lane<'a>(lanes: &'a [Lane], name: &str, job: Job) -> Result<&'a Lane> {
    let mut all = lanes.iter();
    all.find(|lane| lane.name == name && lane.job == job)
        .with_context(|| format!("no lane {name}"))
}

fn rates<'a>(lanes: &'a [Lane], name: &str, job: Job) -> Result<&'a [f64]> {
    Ok(&lane(lanes, name, job)?.rates)
}

fn targets(report: &mut Report, lanes: &[Lane]) -> Result<()> {
    let refund = Job::Moyasar(0);
    let bare = rates(lanes, "filter, guard off", refund)?;
    let shipped = rates(lanes, "filter, secrets by SDS", refund)?;
    for (what, job, least) in [
        ("inert filter", Job::MoyasarMade, 0.9),
        ("Lua", refund, 1.1),
        ("ext_proc", refund, 2.5),
        ("ext_proc, full duplex", refund, 2.5),
        ("service", refund, 1.5),
    ] {
        let theirs = rates(lanes, what, job)?;
        report.at_least(
            &format!("unsigned, against {what}, the same job (guard off)"),
            least,
            &ratios(bare, theirs),
        );
        report.at_least(
            &format!("unsigned, against {what}, as envoy.yaml has the filter"),
            least,
            &ratios(shipped, theirs),
        );
    }
    let ours = median(&lane(lanes, "filter, guard off", refund)?.p99);
    let lua = median(&lane(lanes, "Lua", refund)?.p99);
    report.target(
        "unsigned, p99",
        &format!("no worse than Lua's {lua:.2} ms"),
        format!("{ours:.2} ms"),
        ours <= lua,
    );
    let ceiling = rates(lanes, "inert filter and one sign", Job::BbmslMade)?;
    for name in ["filter, guard off", "filter, secrets by SDS"] {
        report.at_least(
            &format!("signed by host ({name}), against inert filter and one sign"),
            0.9,
            &ratios(rates(lanes, name, Job::Bbmsl)?, ceiling),
        );
    }
    let signed = median(&lane(lanes, "filter, signed in the VM", Job::Bbmsl)?.cpu[0]);
    let unsigned = median(&lane(lanes, "filter", refund)?.cpu[0]);
    report.at_most(
        "one signature in the VM",
        4.0,
        "ms",
        (signed - unsigned) / 1e3,
    );
    Ok(())
}
