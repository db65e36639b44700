//! A reconciliation soak: thousands of refunds through a real Envoy while providers, their token
//! endpoint, callers, the configuration and the module fail and change, and at the end every word
//! that a caller got is held against the providers' ledgers.
//!
//! No refund twice, none lost, no statement false; the memory flat, and no trap.

mod caller;
mod faults;
mod link;
mod reckoning;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use provider_simulator as simulator;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng as _};
use serde_json::{Value, json};
use simulator::Provider;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::redis::{PASSWORD, Redis, Store};
use crate::{Gateway, Options, module, other_module, route_mut};
use caller::{Caller, History, Open, Refund};
use link::Link;

/// Concurrent callers.
const CALLERS: usize = 24;
/// In place of envoy.yaml's 30 s, so that a provider that hangs costs little.
const ROUTE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Refunds between two disturbances; the memory is looked at after each.
const STEP: u64 = 40;
/// Between two restarts, all in the first half of a run: the second tells whether the memory grows.
/// Long enough that a gateway comes to know that nothing is on its way.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(SETTLE_SECONDS * 5 / 2);
/// Longer than any of the faults holds a send back.
const SETTLE_SECONDS: u64 = 8;
/// Longer than any call of a fleet is under way.
const LEASE_SECONDS: u64 = 12;
/// Longer than Envoy keeps a line of its access log back.
const ACCESS_LOG_DELAY: Duration = Duration::from_millis(300);
/// How long a fleet's store may take.
const STORE_TIMEOUT_MS: u64 = 1_500;
/// After the last failure of anything: by then nothing is on its way, and a fleet's gateways have told each other all.
const CALM: Duration = Duration::from_secs(LEASE_SECONDS + SETTLE_SECONDS);
/// No more than one in so many refunds is left in doubt while things fail.
const IN_DOUBT_ONE_IN: usize = 25;
/// How long a provider is closed.
const CLOSED: Duration = Duration::from_millis(200);
/// A refund that was only taken completes after so many look-ups that did not show it.
const UNSHOWN: u64 = 1;
/// What Envoy's memory may grow by between the early samples and the late ones, in kB.
const GROWTH: u64 = 16_000;
/// The version of the module to which and from which gateways are upgraded while they work.
const OTHER_VERSION: &str = "9.9.9";
/// Nothing measures time; this only ends a wait that would not end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much a run does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Refunds asked for.
    pub refunds: u64,
    /// No refund begins after that.
    pub longest: Duration,
    /// All chance comes from it, but for the order in which concurrent callers come through.
    pub seed: u64,
    /// How many gateways there are. Several share a memory, in a Redis that fails and is killed, too.
    pub gateways: usize,
}

impl Plan {
    /// Half a minute or a whole one, for a test.
    pub fn short() -> Result<Plan> {
        Ok(Plan {
            refunds: 1_500,
            longest: Duration::from_secs(60),
            seed: seed()?,
            gateways: 1,
        })
    }

    /// The same with a fleet.
    pub fn of_a_fleet(self) -> Plan {
        Plan {
            gateways: 3,
            refunds: self.refunds / 4,
            ..self
        }
    }

    /// Three minutes at most.
    pub fn full() -> Result<Plan> {
        Ok(Plan {
            refunds: 20_000,
            longest: Duration::from_secs(165),
            seed: seed()?,
            gateways: 1,
        })
    }
}

/// `SEED`, else another one every time.
fn seed() -> Result<u64> {
    match std::env::var("SEED") {
        Ok(text) => text.parse().context("SEED is no whole number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            Ok(u64::from(now.subsec_nanos()))
        }
    }
}

/// What the callers share.
struct Load {
    simulators: Arc<simulator::Simulators>,
    plan: Plan,
    next: AtomicU64,
    done: AtomicU64,
    ended: Mutex<Vec<Open>>,
}

/// What is seen of Envoy at one moment.
struct Sample {
    /// Resident memory in kB.
    resident: u64,
    /// VMs.
    active: u64,
}

/// Runs a plan, prints its counts, and stops everything. What is not as the gateway said is an
/// error.
pub async fn run(plan: Plan) -> Result<()> {
    println!(
        "soak: SEED={}, {} refunds by {CALLERS} callers",
        plan.seed, plan.refunds
    );
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let looks_first = rng.r#gen();
    println!("Where there are no keys, payments are looked at first: {looks_first}");
    let mut redis = match plan.gateways {
        1 => None,
        _ => Some(Redis::start().await?),
    };
    let mut links = Vec::new();
    if let Some(redis) = &redis {
        for _ in 0..plan.gateways {
            links.push(Link::to(redis.address).await?);
        }
    }
    let mut gateways = start(looks_first, &plan, redis.as_ref(), &links, &mut rng).await?;
    let simulators = gateways[0].simulators.clone();
    let modules = [
        other_module(gateways[0].folder(), OTHER_VERSION)?,
        module()?,
    ];
    let mut rollout = modules.iter().cycle();
    let load = Arc::new(Load {
        simulators: simulators.clone(),
        plan,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        ended: Mutex::default(),
    });
    load.simulators.complete_after(Some(UNSHOWN));
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for nth in 0..CALLERS {
        let caller = Caller::new(&gateways, nth)?;
        callers.spawn(load.clone().make_refunds(caller, begin));
    }
    let (mut samples, mut restarts, mut outages) = (Vec::new(), Vec::new(), Vec::new());
    let (mut partitions, mut upgrades) = (0, 0);
    let plugin = gateways[0].plugin()?;
    // Early, so that a short run has one.
    let (mut started, mut first_restart) = (begin, Some(Duration::from_secs(SETTLE_SECONDS / 2)));
    'load: for nth in 0.. {
        while load.done.load(Ordering::SeqCst) < STEP * (nth + 1) {
            while let Some(ended) = callers.try_join_next() {
                ended?;
            }
            if callers.is_empty() {
                break 'load;
            }
            sleep(Duration::from_millis(10)).await;
        }
        // In a fleet one gateway after the other, all the time.
        let between = match redis {
            None => BETWEEN_RESTARTS,
            Some(_) => BETWEEN_RESTARTS / 4,
        };
        // What is left in memory is told of the second half, in which one module works without an end.
        let may_change =
            redis.is_some() || nth * STEP < plan.refunds / 2 && begin.elapsed() < plan.longest / 2;
        // On a slow machine one is always due, and other things are to happen, too.
        let is_due = started.elapsed() > first_restart.unwrap_or(between)
            && (redis.is_none() || nth % 4 == 0);
        if let Some(redis) = redis.as_mut().filter(|_| nth % 4 == 1) {
            let gone = SystemTime::now();
            fail(redis, &mut rng).await?;
            // What was done without it is settled by then.
            outages.push(gone..=SystemTime::now() + Duration::from_secs(5));
        } else if redis.is_some() && nth % 4 == 3 {
            // What one gateway does without the store, while the others have it, is told by its access log alone.
            let link = &links[rng.gen_range(0..links.len())];
            link.cut(true);
            sleep(without_store(&mut rng)).await;
            link.cut(false);
            partitions += 1;
        } else if is_due && may_change {
            let place = restarts.len() % gateways.len();
            let gateway = &mut gateways[place];
            no_trap(gateway).await?;
            // A rollout, mostly.
            gateway.upgrade(rollout.next().context("no module")?)?;
            let gone = SystemTime::now();
            gateway.restart().await?;
            restarts.push(gone..=SystemTime::now());
            (started, first_restart) = (Instant::now(), None);
            samples.clear();
        } else {
            let gateway = &gateways[rng.gen_range(0..gateways.len())];
            disturb(gateway, nth, &plugin, &mut rng).await?;
            if may_change && nth % 2 == 0 {
                let module = rollout.next().context("no module")?;
                taken(gateway, || gateway.upgrade(module)).await?;
                upgrades += 1;
                samples.clear();
            }
        }
        samples.push(sample(&gateways[0]).await?);
    }
    let took = begin.elapsed();
    // What a provider books late is booked by then.
    sleep(faults::LATE).await;
    let load = Arc::into_inner(load).context("a caller is left")?;
    let ended = load.ended.into_inner();
    let ended = ended.unwrap_or_else(PoisonError::into_inner);
    let histories = ask_once_more(ended, &gateways, &simulators).await?;
    for gateway in &gateways {
        no_trap(gateway).await?;
    }
    let mut asked = HashSet::new();
    sleep(ACCESS_LOG_DELAY).await;
    for mut gateway in gateways {
        asked.extend(asked_and_told(&gateway.access_log()));
        gateway.stop().await?;
    }

    ensure!(
        redis.is_none() || !asked.is_empty(),
        "by the access logs the store knew of no call"
    );
    let run = reckoning::Run {
        forgets: if redis.is_some() { &outages } else { &restarts },
        asked: redis.is_some().then_some(&asked),
        looks_first,
    };
    let reckoning = reckoning::reckon(&histories, &simulators, run);
    println!("{}", reckoning.table());
    println!(
        "{} refunds in {} s, {} restarts, {upgrades} upgrades, {} times without the store, {partitions} times at one gateway alone",
        histories.len(),
        took.as_secs(),
        restarts.len(),
        outages.len()
    );
    ensure!(!restarts.is_empty(), "the gateway was never restarted");
    ensure!(upgrades > 0, "the gateway was never upgraded");
    ensure!(
        redis.is_none() || partitions > 0 && !outages.is_empty(),
        "the store was there all the time"
    );
    ensure!(
        reckoning.versions() == modules.len(),
        "not every version of the module has sent something"
    );
    // A fleet's gateways do not live for long enough.
    let memory = match redis {
        None => memory_is_flat(&samples),
        Some(_) => Ok(String::from("not measured in a fleet")),
    };
    println!("Envoy's memory: {}", memory.as_deref().unwrap_or("it grew"));
    if let Some(failure) = reckoning.failure() {
        bail!("{failure}\nSEED={}", plan.seed);
    }
    for provider in Provider::REFUNDING {
        let mut refunds = histories.iter().map(|history| &history.refund);
        ensure!(
            refunds.any(|refund| refund.provider == provider),
            "no refund at {provider:?}"
        );
    }
    memory.map(drop)
}

/// The request ids of the calls about which the memory that gateways share was asked, and told, by this access log.
fn asked_and_told(log: &str) -> impl Iterator<Item = String> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    // Before 1.40 Envoy writes null for what is empty.
    let asked = lines.filter(|line: &Value| line["memory"].is_null());
    asked.filter_map(|line| Some(line["request_id"].as_str()?.to_owned()))
}

/// Nothing fails any more, and whoever is still in doubt asks again: such a caller may have given up too early, and the gateway must
/// know by now. They are few.
async fn ask_once_more(
    ended: Vec<Open>,
    gateways: &[Gateway],
    simulators: &Arc<simulator::Simulators>,
) -> Result<Vec<History>> {
    let all = ended.len();
    let (in_doubt, over): (Vec<_>, Vec<_>) = ended.into_iter().partition(Open::may_learn_more);
    let mut histories: Vec<_> = over.into_iter().map(|open| open.history).collect();
    if in_doubt.is_empty() {
        return Ok(histories);
    }
    println!("{} of {all} ask once more", in_doubt.len());
    ensure!(
        in_doubt.len() * IN_DOUBT_ONE_IN <= all,
        "{} of {all} were left in doubt",
        in_doubt.len()
    );
    for provider in Provider::ALL {
        simulators.clear_faults(provider);
    }
    sleep(CALM).await;
    let mut callers = JoinSet::new();
    for (nth, open) in in_doubt.into_iter().enumerate() {
        let (caller, simulators) = (Caller::new(gateways, nth)?, Arc::clone(simulators));
        callers.spawn(async move {
            let mut open = open.in_calm();
            while !caller.go_on(&mut open, &simulators).await {
                sleep_until(open.due).await;
            }
            open.history
        });
    }
    while let Some(history) = callers.join_next().await {
        histories.push(history?);
    }
    Ok(histories)
}

async fn no_trap(gateway: &Gateway) -> Result<()> {
    let traps = gateway.stats(r"^wasm.*vm_reload").await?;
    ensure!(!traps.is_empty(), "Envoy does not count its traps");
    for (name, count) in traps {
        ensure!(count == 0, "{name} is {count}");
    }
    Ok(())
}

/// The project's envoy.yaml with short routes; whether a provider speaks HTTP/2 is chance.
async fn start(
    looks_first: bool,
    plan: &Plan,
    redis: Option<&Redis>,
    links: &[Link],
    rng: &mut StdRng,
) -> Result<Vec<Gateway>> {
    let old: Vec<_> = Provider::REFUNDING
        .map(crate::cluster)
        .into_iter()
        .filter(|_| rng.r#gen())
        .collect();
    println!("HTTP/1.1 to {old:?}, HTTP/2 to the others");
    let mut gateways: Vec<Gateway> = Vec::with_capacity(plan.gateways);
    for nth in 0..plan.gateways {
        let old = old.clone();
        let store = redis.zip(links.get(nth)).map(|(redis, link)| Store {
            address: link.address,
            ..redis.store()
        });
        let gateway = Gateway::start(Options {
            ecds: true,
            alone: true,
            beside: gateways.first().map(|first| first.beside().apart()),
            more_secrets: vec![("memory-password", PASSWORD.to_owned())],
            simulators: simulator::Options {
                kept_exchanges: 1_000_000,
                ..simulator::Options::default()
            },
            change: Box::new(move |config, folder| {
                change(config, looks_first, &old);
                if let Some(store) = store {
                    crate::share_memory(config, &[store], folder).expect("memory.yaml");
                    crate::change_plugin(config, |plugin| {
                        plugin["guard"] = json!({"lease_seconds": LEASE_SECONDS});
                        // A busy machine is no fault of the store's.
                        plugin["memory"]["redis"]["timeout_ms"] = json!(STORE_TIMEOUT_MS);
                    })
                    .expect("the plugin configuration");
                }
            }),
            ..Options::default()
        });
        gateways.push(gateway.await?);
    }
    Ok(gateways)
}

fn change(config: &mut Value, looks_first: bool, old: &[&str]) {
    for provider in Provider::REFUNDING.map(crate::cluster) {
        let route = route_mut(config, provider).expect("every provider has a route");
        route["route"]["timeout"] = json!(format!("{}s", ROUTE_TIMEOUT.as_secs_f64()));
    }
    crate::change_plugin(config, |plugin| {
        for provider in Provider::REFUNDING {
            let configured = &mut plugin["providers"][crate::cluster(provider)];
            configured["settle_seconds"] = json!(SETTLE_SECONDS);
            if !provider.has_keys() {
                configured["query_first"] = json!(looks_first);
            }
        }
    })
    .expect("the plugin configuration");
    let clusters = config.pointer_mut("/static_resources/clusters");
    for cluster in clusters.and_then(Value::as_array_mut).into_iter().flatten() {
        if old.iter().any(|name| cluster["name"] == *name) {
            speak_http1(cluster);
        }
    }
}

/// How long a store is away.
fn without_store(rng: &mut StdRng) -> Duration {
    Duration::from_millis(rng.gen_range(100..3 * STORE_TIMEOUT_MS))
}

/// The store hangs for a while, or dies and is started again.
async fn fail(redis: &mut Redis, rng: &mut StdRng) -> Result<()> {
    let pause = without_store(rng);
    if rng.r#gen() {
        redis.signal("STOP").await?;
        sleep(pause).await;
        redis.signal("CONT").await
    } else {
        redis.kill().await?;
        sleep(pause).await;
        redis.restart().await
    }
}

fn speak_http1(cluster: &mut Value) {
    let options = &mut cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    if let Some(options) = options.as_object_mut() {
        options.remove("auto_config");
        let http1 = json!({"http_protocol_options": {}});
        options.insert("explicit_http_config".to_owned(), http1);
    }
}

impl Load {
    /// One refund after the other, until the plan is done; what is open is looked up in between,
    /// and at the end.
    async fn make_refunds(self: Arc<Self>, caller: Caller, begin: Instant) {
        let mut waiting: Vec<Open> = Vec::new();
        loop {
            let due = waiting.iter().position(|open| open.due <= Instant::now());
            let mut open = match due {
                Some(place) => waiting.swap_remove(place),
                None => match self.next_refund(begin) {
                    Some(open) => open,
                    None => match waiting.iter().map(|open| open.due).min() {
                        Some(due) => {
                            sleep_until(due).await;
                            continue;
                        }
                        None => return,
                    },
                },
            };
            if !caller.go_on(&mut open, &self.simulators).await {
                waiting.push(open);
                continue;
            }
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.push(open);
            drop(ended);
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The next refund of the plan, if there is one and time for it.
    fn next_refund(&self, begin: Instant) -> Option<Open> {
        if begin.elapsed() >= self.plan.longest {
            return None;
        }
        let nth = self.next.fetch_add(1, Ordering::SeqCst);
        if nth >= self.plan.refunds {
            return None;
        }
        // Each refund has its own chance, whoever comes first.
        let mut rng = StdRng::seed_from_u64(self.plan.seed ^ (nth + 1).rotate_left(32));
        let refund = Refund::by_chance(nth, self.plan.seed, &mut rng);
        Some(Open::new(refund, rng))
    }
}

/// What happens to all calls at once, in turn: a provider is gone for a moment, the tokens are
/// worth nothing, a configuration is pushed.
async fn disturb(gateway: &Gateway, nth: u64, plugin: &Value, rng: &mut StdRng) -> Result<()> {
    let simulators = &gateway.simulators;
    match nth % 3 {
        0 => {
            let provider = Provider::ALL[rng.gen_range(0..Provider::ALL.len())];
            simulators.close(provider).await;
            sleep(CLOSED).await;
            simulators.open(provider).await?;
        }
        1 => {
            for server in Provider::ALL.into_iter().filter(|server| !server.refunds()) {
                simulators.next_fault(server, faults::of(server, rng));
            }
            simulators.revoke_tokens();
        }
        _ => {
            let mut plugin = plugin.clone();
            plugin["providers"]["begateway"]["default_reason"] = json!(format!("push {nth}"));
            taken(gateway, || gateway.push(&plugin)).await?;
        }
    }
    Ok(())
}

/// Pushes a configuration or a module, and waits until Envoy has taken it.
async fn taken(gateway: &Gateway, push: impl FnOnce() -> Result<()>) -> Result<()> {
    let count = async || {
        let counter = r"^extension_config_discovery\.http_filter\..*\.update_success$";
        anyhow::Ok(gateway.stats(counter).await?.values().sum::<u64>())
    };
    let before = count().await?;
    push()?;
    let deadline = Instant::now() + PATIENCE;
    while count().await? == before {
        ensure!(Instant::now() < deadline, "Envoy does not take a push");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn sample(gateway: &Gateway) -> Result<Sample> {
    let process = gateway.process().context("Envoy is gone")?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = status.lines().find_map(|line| {
        let number = line.strip_prefix("VmRSS:")?.split_whitespace().next()?;
        number.parse().ok()
    });
    let active = gateway.stats(r"^wasm\..*\.active$").await?;
    Ok(Sample {
        resident: resident.context("no VmRSS")?,
        active: active.values().sum(),
    })
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Compares the second quarter of the samples, when everything is warm, with the last one.
fn memory_is_flat(samples: &[Sample]) -> Result<String> {
    let quarter = samples.len() / 4;
    ensure!(quarter > 0, "too few refunds to tell of the memory");
    let (early, late) = (
        &samples[quarter..2 * quarter],
        &samples[samples.len() - quarter..],
    );
    let resident = |some: &[Sample]| median(some.iter().map(|sample| sample.resident).collect());
    let active = |some: &[Sample]| median(some.iter().map(|sample| sample.active).collect());
    let words = format!(
        "resident {} kB early, {} kB late; VMs {} early, {} late",
        resident(early),
        resident(late),
        active(early),
        active(late)
    );
    ensure!(
        resident(late) <= resident(early) + GROWTH && active(late) <= active(early),
        "the memory grew: {words}"
    );
    Ok(words)
}
