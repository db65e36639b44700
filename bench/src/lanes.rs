//! The lanes: what a team would pick, and us; measured in interleaved rounds.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::envoy::{Envoy, Filter, Refund, Site, der, environment, peers_plugin};
use crate::jobs::Job;
use crate::load::{self, Load};
use crate::process::{Peer, cpu};
use crate::core::PLUGIN;

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

/// All gateways of the comparison.
pub async fn gateways(site: &Site<'_>) -> Result<Vec<Gateway>> {
    let mut peers_environment = environment(site.secrets);
    peers_environment.push((PLUGIN.into(), peers_plugin()?));
    let anywhere = site.cores.as_ref().map(|cores| cores.all.as_str());
    let ext_proc = Peer::start(anywhere, &["ext-proc"], &peers_environment).await?;
    let upstream = site.upstream.to_string();
    let service = Peer::start(anywhere, &["service", &upstream], &peers_environment).await?;
    let lanes = [
        ("plain Envoy", Filter::None, None),
        ("inert filter", Filter::Inert(None), None),
        ("inert filter and one sign", Filter::Inert(Some(der(site.secrets))), None),
        ("Lua that only buffers", Filter::Lua(LUA_INERT.into()), None),
        ("Lua", Filter::Lua(lua_script()?), None),
        ("ext_proc", Filter::ExtProc(ext_proc.address), Some(ext_proc)),
        ("service", Filter::Service(service.address), Some(service)),
        ("filter, guard off", Filter::Refund(Refund::BARE), None),
        ("filter", Filter::Refund(Refund { guard: true, ..Refund::BARE }), None),
        ("filter, secrets by SDS", Filter::Refund(Refund { guard: true, by_sds: true, ..Refund::BARE }), None),
        ("filter, signed in the VM", Filter::Refund(Refund { guard: true, signer: "vm", ..Refund::BARE }), None),
        ("filter, signed by transit", Filter::Refund(Refund { guard: true, signer: "transit", ..Refund::BARE }), None),
    ];
    let mut gateways = Vec::new();
    for (name, filter, peer) in lanes {
        let envoy = site.start(&filter, 1, "wasm:error").await.context(name)?;
        gateways.push(Gateway { name, envoy, peer });
    }
    Ok(gateways)
}

/// Which gateway does which job.
pub const LANES: [(&str, Job); 19] = [
    ("plain Envoy", Job::MoyasarMade),
    ("inert filter", Job::MoyasarMade),
    ("Lua that only buffers", Job::MoyasarMade),
    ("Lua", Job::Moyasar(0)),
    ("ext_proc", Job::Moyasar(0)),
    ("service", Job::Moyasar(0)),
    ("filter, guard off", Job::Moyasar(0)),
    ("filter", Job::Moyasar(0)),
    ("filter, secrets by SDS", Job::Moyasar(0)),
    ("plain Envoy", Job::BbmslMade),
    ("inert filter", Job::BbmslMade),
    ("inert filter and one sign", Job::BbmslMade),
    ("ext_proc", Job::Bbmsl),
    ("service", Job::Bbmsl),
    ("filter, guard off", Job::Bbmsl),
    ("filter", Job::Bbmsl),
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

/// The middle one, and the ends.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
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
            let before = [took(processes[0])?, took(processes[1])?, took(processes[2])?];
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
