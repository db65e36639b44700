//! Keys, credentials and configurations that change under load, without one refund that fails for it.
//!
//! The simulators verify every signature and every credential, and count each: [`Simulators::uses`] by its place in the list
//! of what they accept. What counts as a failure is any answer but 200 and 202.
//!
//! Envoy's workers take a change over one after the other, so that the switch is a moment for each of them. A caller keeps
//! its connection, and with it its worker: a whole [`Load::round`] without a use of the old key is a round in which every
//! worker has crossed over.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{currency, until};
use anyhow::{Context, Result, ensure};

use gateway_testbed::openbao::{self, OpenBao};
use gateway_testbed::{Answer, Gateway, Options, Secrets, SecretsBy, route_mut, sign_by_transit};
use provider_simulator::{Fault, Provider, Simulators, TokenLifetime, orders};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(30);
/// As many concurrent callers at each gateway, or more until each worker has one.
const CALLERS: usize = 6;
/// Calls of each caller before a rotation, after it, and after the old credential is revoked.
const CALLS: u64 = 8;

/// What is refunded, and at which configured provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    provider: Provider,
}

const BBMSL: Kind = kind("bbmsl", Provider::Bbmsl);
const MOYASAR: Kind = kind("moyasar", Provider::Moyasar);
const BEGATEWAY: Kind = kind("begateway", Provider::Begateway);
const BOG: Kind = kind("bog", Provider::Bog);
/// The provider that a push adds.
const ADDED: Kind = kind("moyasar-2", Provider::Moyasar);

const fn kind(name: &'static str, provider: Provider) -> Kind {
    Kind { name, provider }
}

impl Kind {
    /// A refund of the whole of an order that nobody else refunds.
    fn body(self, nth: u64) -> Value {
        json!({
            "provider": self.name,
            "payment": {"id": orders::fresh(self.provider, nth)},
            "amount": {"value": "100.00", "currency": currency(self.provider)},
        })
    }
}

/// Order numbers and idempotency keys: one for each call of this process.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One caller with a connection of its own.
struct Caller {
    client: reqwest::Client,
    url: String,
}

impl Caller {
    fn new(gateway: &Gateway) -> Result<Caller> {
        Ok(Caller {
            client: reqwest::Client::builder().http1_only().build()?,
            url: gateway.url(),
        })
    }

    async fn refund(&self, kind: Kind) -> Result<Answer> {
        let nth = next_number();
        let call = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("idempotency-key", format!("key-{nth}"))
            .body(kind.body(nth).to_string());
        timeout(PATIENCE, async { Answer::read(call.send().await?).await }).await?
    }
}

#[derive(Default)]
struct Tally {
    /// Refunds made, by the configured provider.
    made: BTreeMap<&'static str, usize>,
    failed: Vec<String>,
}

impl Tally {
    fn made(&self, kind: Kind) -> usize {
        self.made.get(kind.name).copied().unwrap_or_default()
    }

    fn all(&self) -> usize {
        self.made.values().sum()
    }

    #[track_caller]
    fn assert_none_failed(&self) {
        assert_eq!(
            self.failed,
            Vec::<String>::new(),
            "of {} refunds",
            self.all()
        );
    }
}

/// Concurrent callers of one or more gateways, each of which makes one refund after the other.
struct Load {
    callers: JoinSet<()>,
    /// Calls made, by caller.
    progress: Vec<Arc<AtomicU64>>,
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    kinds: Vec<Kind>,
}

impl Load {
    /// Starts callers that refund at these providers in turn, until both workers of each gateway have some.
    async fn start(gateways: &[&Gateway], kinds: &[Kind]) -> Result<Load> {
        let mut load = Load {
            callers: JoinSet::new(),
            progress: Vec::new(),
            tally: Arc::default(),
            stop: Arc::default(),
            kinds: kinds.to_vec(),
        };
        for gateway in gateways {
            for _ in 0..CALLERS {
                load.add(gateway)?;
            }
            load.round(1).await?;
            while connections(gateway).await?.contains(&0) {
                ensure!(load.progress.len() < 64, "one worker gets no connection");
                load.add(gateway)?;
                load.round(1).await?;
            }
        }
        Ok(load)
    }

    fn add(&mut self, gateway: &Gateway) -> Result<()> {
        let caller = Caller::new(gateway)?;
        let progress = Arc::new(AtomicU64::new(0));
        self.progress.push(progress.clone());
        let (tally, stop) = (self.tally.clone(), self.stop.clone());
        let kinds = self.kinds.clone();
        self.callers.spawn(async move {
            for kind in kinds.into_iter().cycle() {
                let answer = caller.refund(kind).await;
                {
                    let mut tally = tally.lock().unwrap();
                    *tally.made.entry(kind.name).or_default() += 1;
                    match answer {
                        Ok(answer) if [200, 202].contains(&answer.status) => {}
                        Ok(answer) => tally.failed.push(answer.text),
                        Err(error) => tally.failed.push(format!("{error:#}")),
                    }
                }
                progress.fetch_add(1, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Goes on until each caller has made so many refunds, at each of the providers, that began after this moment.
    async fn round(&mut self, calls: u64) -> Result<()> {
        // One more, which may have begun before.
        let calls = calls * self.kinds.len() as u64 + 1;
        let goals: Vec<_> = self
            .progress
            .iter()
            .map(|made| made.load(Ordering::SeqCst) + calls)
            .collect();
        for (made, goal) in self.progress.iter().zip(goals) {
            until("a round of calls", async || {
                Ok(made.load(Ordering::SeqCst) >= goal)
            })
            .await?;
        }
        Ok(())
    }

    /// Goes on until no caller meets the credential of this place any more.
    async fn until_unused(&mut self, nth: usize, uses: impl Fn() -> Vec<usize>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = uses();
            self.round(1).await?;
            let after = uses();
            if before[nth] == after[nth] {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the old one is in use: {after:?}"
            );
        }
    }

    /// Lets the calls in flight end.
    async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::SeqCst);
        self.callers.join_all().await;
        std::mem::take(&mut self.tally.lock().unwrap())
    }
}

/// Connections that each worker has taken.
async fn connections(gateway: &Gateway) -> Result<Vec<u64>> {
    let found = gateway
        .stats(r"^listener\.127.*worker_.*\.downstream_cx_total$")
        .await?;
    Ok(found.into_values().collect())
}

const ECDS: &str = "extension_config_discovery.http_filter.";

async fn ecds(gateway: &Gateway, counter: &str) -> Result<u64> {
    let found = gateway.stats(&format!(r"^{ECDS}.*\.{counter}$")).await?;
    found
        .into_values()
        .next()
        .with_context(|| format!("Envoy has no counter {counter} of ECDS"))
}

/// Pushes a configuration and waits until every one of the gateways has taken it.
async fn push(gateways: &[&Gateway], plugin: &Value) -> Result<()> {
    let mut before = Vec::new();
    for gateway in gateways {
        before.push(ecds(gateway, "update_success").await?);
    }
    gateways[0].push(plugin)?;
    for (gateway, before) in gateways.iter().zip(before) {
        until("the configuration to be taken", async || {
            Ok(ecds(gateway, "update_success").await? > before)
        })
        .await
        .with_context(|| gateway.log())?;
    }
    Ok(())
}

/// The base64 of PKCS#8 DER, which fits into a header, too.
fn one_line(pem: &str) -> String {
    pem.lines()
        .filter(|line| !line.starts_with("-----"))
        .collect()
}

/// The next secrets: all of them others.
fn next_secrets(nth: usize) -> Result<Secrets> {
    Secrets::ending_in(&format!("-{nth}"))
}

/// Every refund that the callers made is booked once, and none besides.
#[track_caller]
fn assert_booked(simulators: &Simulators, provider: Provider, made: usize) {
    assert_eq!(simulators.ledger(provider).len(), made, "{provider:?}");
}

/// A route for the provider that a push adds.
fn with_route_for_the_added(config: &mut Value) {
    let mut route = route_mut(config, "moyasar").unwrap().clone();
    route["name"] = json!(ADDED.name);
    route["match"]["filter_state"][0]["string_match"]["exact"] = json!(ADDED.name);
    let routes = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes";
    let routes = config.pointer_mut(routes).and_then(Value::as_array_mut);
    routes.unwrap().insert(0, route);
}

/// This configuration with a key that signs from a time on, and with one more provider.
fn staged(plugin: &Value, private_key: &str, not_before: u64) -> Value {
    let mut plugin = plugin.clone();
    let keys = plugin["providers"]["bbmsl"]["signing"]["keys"].as_array_mut();
    keys.unwrap().push(json!({
        "id": STAGED_KEY,
        "private_key": {"inline": private_key},
        "not_before": rfc3339(not_before),
    }));
    plugin["providers"][ADDED.name] = plugin["providers"]["moyasar"].clone();
    plugin
}

/// The key of envoy.yaml.
const FIRST_KEY: &str = "2026-11";
const STAGED_KEY: &str = "2026-12";

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Unix time as RFC 3339 in UTC.
fn rfc3339(seconds: u64) -> String {
    // Years that begin in March, so that the odd day comes last; 719468 days from 0000-03-01 to 1970-01-01.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = year_of_era + era * 400 + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Ends a gateway, so that its access log is whole, and checks by it that each call was signed by the key whose time it was:
/// the staged key's is `from`, or when the gateway had it, `pushed`, where that was later. Gives how many each key signed.
async fn signed_in_time(gateway: &mut Gateway, from: u64, pushed: u64) -> Result<(usize, usize)> {
    gateway.stop().await?;
    let (from, at_last) = (rfc3339(from), rfc3339(from.max(pushed)));
    let (mut first, mut staged) = (0, 0);
    for line in gateway.access_log().lines() {
        let entry: Value = serde_json::from_str(line)?;
        if entry["provider"] != BBMSL.name {
            continue;
        }
        // To the millisecond, and by that longer than a second of RFC 3339: both begin with the same 19 characters.
        let began = entry["time"].as_str().context("no time")?;
        match entry["key_id"].as_str().and_then(|id| id.split(' ').next()) {
            Some(FIRST_KEY) => {
                first += 1;
                ensure!(
                    began[..19] < at_last[..19],
                    "{line}: signed with the old key, {at_last}"
                );
            }
            Some(STAGED_KEY) => {
                staged += 1;
                // It was signed between its beginning and its end.
                let ended = ended(&entry)?;
                ensure!(ended[..] >= from[..19], "{line}: signed too early, {from}");
            }
            other => anyhow::bail!("{other:?} in {line}"),
        }
    }
    Ok((first, staged))
}

/// When a call of the access log ended, to the second.
fn ended(entry: &Value) -> Result<String> {
    let began = entry["time"].as_str().context("no time")?;
    let duration = entry["duration_ms"].as_u64().context("no duration")?;
    let milliseconds: u64 = began[20..23].parse()?;
    // Counted from a day's beginning: no call lasts beyond midnight and another day.
    let clock = |range: std::ops::Range<usize>| began[range].parse::<u64>();
    let seconds = clock(11..13)? * 3_600 + clock(14..16)? * 60 + clock(17..19)?;
    let seconds = seconds + (milliseconds + duration) / 1_000;
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    Ok(format!(
        "{}T{hour:02}:{minute:02}:{second:02}",
        &began[..10]
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_key_replaced_by_sds_under_load_fails_no_refund() -> Result<()> {
    let next = next_secrets(2)?;
    let gateway = Gateway::start(Options {
        also_accepted: vec![next.clone()],
        ..Options::default()
    })
    .await?;
    let uses = || gateway.simulators.uses(Provider::Bbmsl);
    let mut load = Load::start(&[&gateway], &[BBMSL]).await?;
    load.round(CALLS).await?;
    let before = uses();
    assert_eq!(before[1], 0, "the new key is not in use yet");

    gateway.rotate("bbmsl-key", &one_line(next.of(Provider::Bbmsl)))?;
    until("the new key to sign", async || Ok(uses()[1] > 0)).await?;
    load.until_unused(0, uses).await?;
    let switched = uses();
    load.round(CALLS).await?;
    let after = uses();
    assert_eq!(after[0], switched[0], "only the new key signs");
    assert!(after[1] > switched[1]);

    gateway.simulators.revoke(Provider::Bbmsl, 0);
    load.round(CALLS).await?;
    let tally = load.stop().await;
    let end = uses();
    println!(
        "SDS key: {} refunds, {} failed; old key, new key: {before:?} before, {switched:?} when all had switched, {after:?} \
         before the old one was revoked, {end:?} at the end; connections by worker {:?}",
        tally.all(),
        tally.failed.len(),
        connections(&gateway).await?
    );
    tally.assert_none_failed();
    assert_eq!(end.iter().sum::<usize>(), tally.all());
    assert_booked(&gateway.simulators, Provider::Bbmsl, tally.all());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_key_and_a_provider_pushed_by_ecds_fail_no_refund() -> Result<()> {
    let next = next_secrets(2)?;
    let mut gateway = Gateway::start(Options {
        also_accepted: vec![next.clone()],
        ecds: true,
        change: Box::new(|config, _| with_route_for_the_added(config)),
        ..Options::default()
    })
    .await?;
    let simulators = gateway.simulators.clone();
    let uses = || simulators.uses(Provider::Bbmsl);
    let mut load = Load::start(&[&gateway], &[BBMSL]).await?;
    load.round(CALLS).await?;
    let unknown = Caller::new(&gateway)?.refund(ADDED).await?;
    assert_eq!(unknown.status, 422, "{}", unknown.text);

    let from = unix_seconds() + 4;
    push(
        &[&gateway],
        &staged(&gateway.plugin()?, next.of(Provider::Bbmsl), from),
    )
    .await?;
    let (pushed, pushed_at) = (uses(), unix_seconds() + 1);
    // On several connections, and so on both workers.
    let mut added = 0;
    for _ in 0..12 {
        let answer = Caller::new(&gateway)?.refund(ADDED).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        added += 1;
    }
    until("the staged key to sign", async || Ok(uses()[1] > 0)).await?;
    load.until_unused(0, uses).await?;
    let switched = uses();
    simulators.revoke(Provider::Bbmsl, 0);
    load.round(CALLS).await?;
    let tally = load.stop().await;
    let end = uses();
    let taken = ecds(&gateway, "update_success").await?;
    let by_key = signed_in_time(&mut gateway, from, pushed_at).await?;
    println!(
        "ECDS, staged key and provider: {} refunds, {} failed, {added} at the new provider; first key, staged key: {pushed:?} \
         after the push, {switched:?} when all had switched, {end:?} at the end, {by_key:?} in the access log; \
         {taken} configurations taken",
        tally.all() + added,
        tally.failed.len()
    );
    tally.assert_none_failed();
    assert_eq!(end, vec![by_key.0, by_key.1], "by the access log");
    assert_eq!(end.iter().sum::<usize>(), tally.all());
    assert_booked(&simulators, Provider::Bbmsl, tally.all());
    assert_booked(&simulators, Provider::Moyasar, added);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_pushed_by_ecds_is_refused_and_the_old_one_goes_on() -> Result<()> {
    let gateway = Gateway::start(Options {
        ecds: true,
        change: Box::new(|config, _| with_route_for_the_added(config)),
        ..Options::default()
    })
    .await?;
    let good = gateway.plugin()?;
    let mut load = Load::start(&[&gateway], &[BBMSL, MOYASAR]).await?;
    load.round(CALLS).await?;

    let counters = async || {
        gateway
            .stats(&format!("^{ECDS}|refund.configurations_total"))
            .await
    };
    let before = counters().await?;
    let mut broken = staged(&good, "canary-inline-key", unix_seconds());
    broken["providers"]["bbmsl"]["signing"]["keys"][1]["not_before"] = json!("tomorrow");
    broken["providers"]["moyasar"]["apikey"] = json!({"inline": "canary-inline-api-key"});
    gateway.push(&broken)?;
    let refused = "/providers/bbmsl/signing/keys/1/not_before";
    until("the refusal in the log", async || {
        Ok(gateway.log().contains(refused))
    })
    .await
    .with_context(|| gateway.log())?;
    load.round(CALLS).await?;
    let unknown = Caller::new(&gateway)?.refund(ADDED).await?;
    assert_eq!(unknown.status, 422, "not in force: {}", unknown.text);
    let after = counters().await?;
    let mut moved = String::new();
    for (name, number) in &after {
        let former = before.get(name).copied();
        if former != Some(*number) {
            write!(moved, " {name}: {former:?} -> {number};")?;
        }
    }
    let log = gateway.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("refund-filter: configuration refused"))
        .collect();

    // And the next good one is taken.
    push(
        &[&gateway],
        &staged(
            &good,
            gateway.secrets.of(Provider::Bbmsl),
            unix_seconds() + 3_600,
        ),
    )
    .await?;
    for _ in 0..12 {
        let answer = Caller::new(&gateway)?.refund(ADDED).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    load.round(CALLS).await?;
    let tally = load.stop().await;
    println!(
        "ECDS, broken: {} refunds, {} failed;{moved} log: {lines:#?}",
        tally.all() + 12,
        tally.failed.len()
    );
    tally.assert_none_failed();
    for counter in [
        "wasmcustom.refund.configurations_total.result.refused",
        &format!("{ECDS}refund_filter.config_fail"),
        &format!("{ECDS}refund_filter.update_rejected"),
    ] {
        let count = |counts: &BTreeMap<_, _>| counts.get(counter).copied().unwrap_or(0);
        assert_eq!(count(&after) - count(&before), 1, "{counter}");
    }
    let end = counters().await?;
    assert_eq!(
        end["wasmcustom.refund.configurations_total.result.refused"], 1,
        "still there after a good one"
    );
    for pointer in [
        refused,
        "/providers/bbmsl/signing/keys/1/private_key",
        "/providers/moyasar/apikey",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(pointer)),
            "{pointer}: {lines:#?}"
        );
    }
    assert!(!log.contains("canary-"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transit_key_rotated_in_openbao_under_load_fails_no_refund() -> Result<()> {
    if Options::default().secrets_by != SecretsBy::FilterState {
        return Ok(()); // transit.yaml has the token in filter state, which is Envoy 1.38 and later.
    }
    const NEXT_KEY: &str = "bbmsl-next";
    let secrets = Secrets::new()?;
    let second = next_secrets(2)?;
    let openbao = OpenBao::start(secrets.of(Provider::Bbmsl)).await?;
    // A key that was never outside of OpenBao.
    let path = format!("transit/keys/{NEXT_KEY}");
    openbao.run(&["write", &path, "type=rsa-2048"]).await?;
    let made: Value = serde_json::from_str(&openbao.run(&["read", "-format=json", &path]).await?)?;
    let public_key = made["data"]["keys"]["1"]["public_key"].as_str();
    let public_key = public_key.context("no key")?;
    let third = next_secrets(3)?.with_keys(Provider::Bbmsl, "", public_key);
    let (address, ca) = (openbao.address, openbao.ca());
    let mut gateway = Gateway::start(Options {
        secrets: Some(secrets),
        also_accepted: vec![second.clone(), third],
        more_secrets: vec![("openbao-token", openbao.token.clone())],
        ecds: true,
        change: Box::new(move |config, folder| {
            sign_by_transit(config, address, &ca, folder).unwrap()
        }),
        ..Options::default()
    })
    .await?;
    let simulators = gateway.simulators.clone();
    let uses = || simulators.uses(Provider::Bbmsl);
    let mut load = Load::start(&[&gateway], &[BBMSL]).await?;
    load.round(CALLS).await?;
    let before = uses();
    assert_eq!(before[1..], [0, 0]);

    // The next version is brought in, so that BBMSL can know it before it signs: of `rotate` nobody knows the public key before
    // the first signature.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("key");
    std::fs::write(&file, one_line(second.of(Provider::Bbmsl)))?;
    let (path, file) = (
        format!("transit/keys/{}", openbao::KEY),
        format!("@{}", file.display()),
    );
    openbao
        .run(&["transit", "import-version", &path, &file])
        .await?;
    until("the new version to sign", async || Ok(uses()[1] > 0)).await?;
    load.until_unused(0, uses).await?;
    let new_version = uses();
    simulators.revoke(Provider::Bbmsl, 0);
    load.round(CALLS).await?;

    // The other way: a second key, by a configuration.
    let file = folder.path().join("policy");
    let rule =
        |key| format!("path \"transit/sign/{key}/sha2-256\" {{ capabilities = [\"update\"] }}\n");
    std::fs::write(&file, rule(openbao::KEY) + &rule(NEXT_KEY))?;
    openbao
        .run(&["policy", "write", "sign", &file.display().to_string()])
        .await?;
    let mut plugin = gateway.plugin()?;
    plugin["providers"]["bbmsl"]["signing"]["transit"]["key"] = json!(NEXT_KEY);
    push(&[&gateway], &plugin).await?;
    until("the second key to sign", async || Ok(uses()[2] > 0)).await?;
    load.until_unused(1, uses).await?;
    let new_key = uses();
    simulators.revoke(Provider::Bbmsl, 1);
    load.round(CALLS).await?;
    let tally = load.stop().await;
    let end = uses();

    // What happens where nobody told the provider of a new version before.
    openbao
        .run(&["write", "-f", &format!("transit/keys/{NEXT_KEY}/rotate")])
        .await?;
    let refused = Caller::new(&gateway)?.refund(BBMSL).await?;
    gateway.stop().await?;
    let mut by_key: BTreeMap<String, usize> = BTreeMap::new();
    for line in gateway.access_log().lines() {
        let entry: Value = serde_json::from_str(line)?;
        let id = entry["key_id"].as_str().context("no key")?;
        *by_key.entry(id.to_owned()).or_default() += 1;
    }
    println!(
        "transit: {} refunds, {} failed; version 1, version 2, second key: {before:?} before, {new_version:?} when all had the \
         new version, {new_key:?} when all had the second key, {end:?} at the end; in the access log {by_key:?}; after a \
         version that the provider does not know: {} {}",
        tally.all(),
        tally.failed.len(),
        refused.status,
        refused.text
    );
    tally.assert_none_failed();
    assert_eq!(end.iter().sum::<usize>(), tally.all());
    assert_booked(&simulators, Provider::Bbmsl, tally.all());
    let ids = ["bbmsl:v1", "bbmsl:v2", "bbmsl-next:v1"];
    assert_eq!(ids.map(|id| by_key[id]), end[..], "{by_key:?}");
    // By a code that nobody has published: it proves nothing.
    assert_eq!(
        refused.body["code"], "provider-rejected",
        "{}",
        refused.text
    );
    assert_eq!(refused.body["outcome"], "unknown", "{}", refused.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_replaced_by_sds_under_load_fail_no_refund() -> Result<()> {
    let next = next_secrets(2)?;
    let mut options = Options {
        also_accepted: vec![next.clone()],
        ..Options::default()
    };
    // Tokens are renewed after half of that.
    options.simulators.token_lifetime = TokenLifetime {
        lasts: Duration::from_secs(1),
        ..TokenLifetime::default()
    };
    let gateway = Gateway::start(options).await?;
    let simulators = gateway.simulators.clone();
    let kinds = [MOYASAR, BEGATEWAY, BOG];
    let credentials = [
        Provider::Moyasar,
        Provider::Begateway,
        Provider::BogToken,
        Provider::Bog,
    ];
    let uses = || credentials.map(|provider| simulators.uses(provider));
    let mut load = Load::start(&[&gateway], &kinds).await?;
    load.round(CALLS).await?;
    let before = uses();
    for counts in &before {
        assert_eq!(counts[1], 0, "the new ones are not in use yet");
    }

    gateway.rotate("moyasar-api-key", next.of(Provider::Moyasar))?;
    gateway.rotate("begateway-secret-key", next.of(Provider::Begateway))?;
    gateway.rotate("bog-client-secret", next.of(Provider::Bog))?;
    for provider in credentials {
        until(&format!("the new one of {provider:?}"), async || {
            Ok(simulators.uses(provider)[1] > 0)
        })
        .await?;
    }
    for provider in credentials {
        load.until_unused(0, || simulators.uses(provider)).await?;
    }
    let switched = uses();
    load.round(CALLS).await?;
    // Until a token ends that was fetched after the switch.
    let fetched = simulators.uses(Provider::BogToken)[1];
    until("two more tokens", async || {
        Ok(simulators.uses(Provider::BogToken)[1] > fetched + 1)
    })
    .await?;
    let after = uses();
    for ((counts, former), provider) in after.iter().zip(&switched).zip(credentials) {
        assert_eq!(counts[0], former[0], "only the new one of {provider:?}");
        assert!(counts[1] > former[1], "{provider:?}");
    }

    for provider in credentials {
        simulators.revoke(provider, 0);
    }
    load.round(CALLS).await?;
    let tally = load.stop().await;
    let end = uses();
    println!(
        "credentials: {} refunds ({:?}), {} failed; old, new of Moyasar, beGateway, BOG's token fetches, BOG's refunds: \
         {before:?} before, {switched:?} when all had switched, {after:?} before the old ones were revoked, {end:?} at the end",
        tally.all(),
        tally.made,
        tally.failed.len()
    );
    tally.assert_none_failed();
    for kind in kinds {
        assert_booked(&simulators, kind.provider, tally.made(kind));
        assert_eq!(
            simulators.uses(kind.provider).iter().sum::<usize>(),
            tally.made(kind),
            "{kind:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_on_one_sds_and_ecds_folder_crosses_over_together() -> Result<()> {
    let (second, third) = (next_secrets(2)?, next_secrets(3)?);
    let first = Gateway::start(Options {
        also_accepted: vec![second.clone(), third.clone()],
        ecds: true,
        change: Box::new(|config, _| with_route_for_the_added(config)),
        ..Options::default()
    })
    .await?;
    let beside = first.beside();
    let mut fleet = vec![first];
    for _ in 0..2 {
        fleet.push(
            Gateway::start(Options {
                ecds: true,
                change: Box::new(|config, _| with_route_for_the_added(config)),
                beside: Some(beside.clone()),
                ..Options::default()
            })
            .await?,
        );
    }
    let simulators = fleet[0].simulators.clone();
    let uses = || simulators.uses(Provider::Bbmsl);
    let gateways: Vec<_> = fleet.iter().collect();
    let mut load = Load::start(&gateways, &[BBMSL]).await?;
    load.round(CALLS).await?;
    let before = uses();
    assert_eq!(before[1..], [0, 0]);

    // Late enough for the other key to be seen in between, also where Envoy signs slowly.
    let from = unix_seconds() + 8;
    push(
        &gateways,
        &staged(&fleet[0].plugin()?, third.of(Provider::Bbmsl), from),
    )
    .await?;
    let pushed_at = unix_seconds() + 1;
    fleet[0].rotate("bbmsl-key", &one_line(second.of(Provider::Bbmsl)))?;
    until("the key of SDS to sign", async || Ok(uses()[1] > 0)).await?;
    load.until_unused(0, uses).await?;
    let switched = uses();
    simulators.revoke(Provider::Bbmsl, 0);
    let mut added = 0;
    for gateway in &gateways {
        for _ in 0..12 {
            let answer = Caller::new(gateway)?.refund(ADDED).await?;
            assert_eq!(answer.status, 200, "{}", answer.text);
            added += 1;
        }
    }
    until("the staged key to sign", async || Ok(uses()[2] > 0)).await?;
    load.until_unused(1, uses).await?;
    let taken_over = uses();
    simulators.revoke(Provider::Bbmsl, 1);
    load.round(CALLS).await?;
    let tally = load.stop().await;
    let end = uses();
    let mut by_key = Vec::new();
    for gateway in &mut fleet {
        by_key.push(signed_in_time(gateway, from, pushed_at).await?);
    }
    println!(
        "fleet of three: {} refunds, {} failed, {added} at the new provider; first key, key of SDS, staged key: {before:?} \
         before, {switched:?} when all had the key of SDS, {taken_over:?} when all had the staged key, {end:?} at the end; \
         before and after the staged key's time at each gateway, by its access log: {by_key:?}",
        tally.all() + added,
        tally.failed.len()
    );
    tally.assert_none_failed();
    assert_eq!(end.iter().sum::<usize>(), tally.all());
    assert_booked(&simulators, Provider::Bbmsl, tally.all());
    assert_booked(&simulators, Provider::Moyasar, added);
    assert_eq!(by_key.iter().map(|counts| counts.1).sum::<usize>(), end[2]);
    assert!(
        by_key.iter().all(|counts| counts.0 > 0 && counts.1 > 0),
        "{by_key:?}"
    );
    Ok(())
}

/// A line of the kernel's account of a process, in kB.
fn memory(process: u32, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    Ok(number.context("no such line")?.parse()?)
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Pushes 200 configurations, with refunds in between, and looks at what stays: `configurations` gives the nth of them, made
/// from the first.
async fn push_two_hundred(
    what: &str,
    configurations: impl Fn(&Value, usize) -> Value,
) -> Result<()> {
    const PUSHES: usize = 200;
    let gateway = Gateway::start(Options {
        ecds: true,
        change: Box::new(|config, _| with_route_for_the_added(config)),
        ..Options::alone()
    })
    .await?;
    let process = gateway.process().context("no process")?;
    let plugin = gateway.plugin()?;
    let statistics = async || {
        gateway
            .stats(r"^wasm.*(v8.(active|created)|vm_reload|result)")
            .await
    };
    let mut callers = Vec::new();
    while callers.len() < 4 || connections(&gateway).await?.contains(&0) {
        ensure!(callers.len() < 64, "one worker gets no connection");
        let caller = Caller::new(&gateway)?;
        assert_eq!(caller.refund(BBMSL).await?.status, 200);
        callers.push(caller);
    }
    let kinds = [BBMSL, BOG, BEGATEWAY, MOYASAR];
    let (mut made, mut failed) = (callers.len(), Vec::new());
    let (mut resident, mut active) = (Vec::new(), Vec::new());
    let start = statistics().await?;
    for nth in 0..PUSHES {
        push(&[&gateway], &configurations(&plugin, nth)).await?;
        for (caller, kind) in callers.iter().zip(kinds.iter().cycle().skip(nth)) {
            let answer = caller.refund(*kind).await?;
            made += 1;
            if ![200, 202].contains(&answer.status) {
                failed.push(answer.text);
            }
        }
        resident.push(memory(process, "VmRSS")?);
        active.push(statistics().await?["wasm.envoy.wasm.runtime.v8.active"]);
    }
    let end = statistics().await?;
    until("the last request to end", async || {
        let found = gateway.stats("^http.refunds.downstream_rq_active$").await?;
        Ok(found["http.refunds.downstream_rq_active"] == 0)
    })
    .await?;
    let (early, late) = (median(&resident[59..90]), median(&resident[169..200]));
    println!(
        "{what}: {PUSHES} pushes, {made} refunds, {} failed; resident kB after push 1, 10, 50, 100, 150, 200: {:?}, median of \
         60 to 90 {early}, of 170 to 200 {late}, peak {}; VMs active {} to {}; statistics {start:?} at first, {end:?} at last",
        failed.len(),
        [0, 9, 49, 99, 149, 199].map(|nth| resident[nth]),
        memory(process, "VmHWM")?,
        active[59..].iter().min().unwrap(),
        active[59..].iter().max().unwrap(),
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(late <= early + 10_000, "{early} kB, then {late} kB");
    let tail = &active[59..];
    assert_eq!(tail.iter().min(), tail.iter().max(), "{active:?}");
    for (name, count) in end.iter().filter(|(name, _)| name.contains("vm_reload")) {
        assert_eq!(*count, 0, "{name}");
    }
    Ok(())
}

/// This configuration, with a key that ends: a root then has a timer for its gauge for as long as it lives.
fn with_a_timer(plugin: &Value, seconds_left: u64) -> Value {
    let mut plugin = plugin.clone();
    plugin["providers"]["bbmsl"]["signing"]["keys"][0]["not_after"] =
        json!(rfc3339(unix_seconds() + seconds_left));
    plugin
}

/// This configuration, with so much in it, some 100 kB that the filter takes apart, that a few roots left behind would be seen.
fn large(plugin: &Value, nth: usize) -> Value {
    let mut plugin = plugin.clone();
    let codes =
        (0..2_000).map(|code| format!("push {nth:03}, code {code:04} of those that mean no"));
    plugin["providers"]["bbmsl"]["declined_codes"] = codes.collect();
    plugin
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pushes_of_two_configurations_in_turn_leave_nothing_behind() -> Result<()> {
    let key = Secrets::new()?.of(Provider::Bbmsl).to_owned();
    let later = unix_seconds() + 3_600;
    push_two_hundred("two configurations in turn", |plugin, nth| {
        let one = large(plugin, 0);
        if nth % 2 == 0 {
            staged(&one, &key, later)
        } else {
            one
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pushes_of_new_configurations_leave_nothing_behind() -> Result<()> {
    push_two_hundred("new configurations", |plugin, nth| {
        large(&with_a_timer(plugin, 86_400), nth)
    })
    .await
}

/// A callback of the filter's, as Envoy's log at trace shows it.
struct Callback {
    name: String,
    thread: String,
    context: String,
}

/// Envoy's log at trace. It is long, so each line is read once.
struct Trace(BufReader<File>);

impl Trace {
    /// The callbacks that have come since the last look.
    fn callbacks(&mut self) -> Result<Vec<Callback>> {
        let mut callbacks = Vec::new();
        loop {
            let mut line = Vec::new();
            let read = self.0.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                // What is written of a line so far is read with its end.
                self.0.seek_relative(-i64::try_from(read)?)?;
                return Ok(callbacks);
            }
            callbacks.extend(callback(&String::from_utf8_lossy(&line)));
        }
    }
}

fn callback(line: &str) -> Option<Callback> {
    let (head, call) = line.split_once("[host->vm] ")?;
    let (name, arguments) = call.split_once('(')?;
    Some(Callback {
        name: name.to_owned(),
        thread: head.split(['[', ']']).nth(3)?.to_owned(),
        context: arguments.split([',', ')']).next()?.to_owned(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_leave_no_root_and_no_timer_behind() -> Result<()> {
    const PUSHES: u64 = 20;
    let gateway = Gateway::start(Options {
        ecds: true,
        log_level: "trace",
        ..Options::alone()
    })
    .await?;
    let plugin = gateway.plugin()?;
    let mut load = Load::start(&[&gateway], &[BBMSL, BOG]).await?;
    for nth in 0..PUSHES {
        push(&[&gateway], &with_a_timer(&plugin, 86_400 + nth)).await?;
    }
    load.round(1).await?;
    let tally = load.stop().await;
    tally.assert_none_failed();
    // Roots that were let go with a call in flight are gone when the call is.
    let mut trace = Trace(BufReader::new(File::open(
        gateway.folder().join("envoy.log"),
    )?));
    let mut kept = BTreeMap::new();
    until("the contexts to go", async || {
        for callback in trace.callbacks()? {
            let change = match &*callback.name {
                "proxy_on_context_create" => 1,
                "proxy_on_delete" => -1,
                _ => continue,
            };
            *kept.entry(callback.thread).or_insert(0) += change;
        }
        // One root for each worker. The main thread has its own, and one in each VM that tried a configuration and was
        // thrown away as a whole.
        let tried = i64::try_from(PUSHES)? + 1;
        let mut counts: Vec<i64> = kept.values().copied().collect();
        counts.sort_unstable();
        Ok(counts == [1, 1, 1 + tried])
    })
    .await
    .with_context(|| format!("contexts by thread: {kept:?}"))?;

    // Who still ticks: until one has ticked twice, all must have ticked that ever will.
    let mut ticks = BTreeMap::new();
    until("a timer to come round", async || {
        let callbacks = trace.callbacks()?.into_iter();
        for tick in callbacks.filter(|callback| callback.name == "proxy_on_tick") {
            *ticks.entry((tick.thread, tick.context)).or_insert(0) += 1;
        }
        Ok(ticks.values().any(|count| *count >= 3))
    })
    .await?;
    println!(
        "timers: {PUSHES} pushes, {} refunds, {} failed; contexts left by thread {kept:?}; ticks by thread and root {ticks:?}",
        tally.all(),
        tally.failed.len()
    );
    let mut threads: Vec<_> = ticks.keys().map(|(thread, _)| thread).collect();
    threads.dedup();
    assert_eq!((threads.len(), ticks.len()), (3, 3), "{ticks:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_ends_on_the_configuration_with_which_it_began() -> Result<()> {
    const HELD: Duration = Duration::from_secs(3);
    const WAITING: usize = 8;
    let gateway = Gateway::start(Options {
        ecds: true,
        ..Options::default()
    })
    .await?;
    let simulators = &gateway.simulators;
    // One whose body is being read.
    let body = MOYASAR.body(next_number()).to_string();
    let (begin, rest) = body.split_at(body.len() / 2);
    let mut half = TcpStream::connect(gateway.address).await?;
    let head = format!(
        "POST /v1/refunds HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\nidempotency-key: key-half\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{begin}",
        body.len()
    );
    half.write_all(head.as_bytes()).await?;
    // One that waits for the provider's reply, and some, at both workers, that wait for one token.
    simulators.next_fault(Provider::Begateway, Fault::DelayReply(HELD));
    simulators.next_fault(Provider::BogToken, Fault::DelayReply(HELD));
    let mut held = JoinSet::new();
    for kind in [vec![BEGATEWAY], vec![BOG; WAITING]].concat() {
        let caller = Caller::new(&gateway)?;
        held.spawn(async move { (kind, caller.refund(kind).await) });
    }
    until("all calls to be under way", async || {
        let found = gateway.stats("^http.refunds.downstream_rq_active$").await?;
        Ok(
            found["http.refunds.downstream_rq_active"] == WAITING as u64 + 2
                && simulators.received(Provider::Begateway) == 1
                && simulators.received(Provider::BogToken) == 1,
        )
    })
    .await?;
    let mut workers = connections(&gateway).await?;
    workers.sort_unstable();

    // Their providers are configured no more.
    let mut plugin = gateway.plugin()?;
    for kind in [MOYASAR, BEGATEWAY, BOG] {
        plugin["providers"]
            .as_object_mut()
            .unwrap()
            .remove(kind.name);
    }
    push(&[&gateway], &plugin).await?;
    let finished = held.try_join_next().is_some();
    for _ in 0..4 {
        for (kind, status) in [(MOYASAR, 422), (BEGATEWAY, 422), (BOG, 422), (BBMSL, 200)] {
            let answer = Caller::new(&gateway)?.refund(kind).await?;
            assert_eq!(answer.status, status, "{}", answer.text);
        }
    }
    half.write_all(rest.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, half.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut answers: BTreeMap<_, Vec<u16>> = BTreeMap::new();
    while let Some(ended) = held.join_next().await {
        let (kind, answer) = ended?;
        answers.entry(kind.name).or_default().push(answer?.status);
    }
    println!(
        "in flight: the push came in time: {}; 1 call read, 1 sent, {WAITING} waiting for a token, on {workers:?} connections by \
         worker: moyasar 200, {answers:?}; tokens fetched: {}",
        !finished,
        simulators.token_fetches()
    );
    assert_eq!(answers[BEGATEWAY.name], [200]);
    assert_eq!(answers[BOG.name], [202; WAITING]);
    assert_eq!(simulators.token_fetches(), 1);
    assert_booked(simulators, Provider::Moyasar, 1);
    Ok(())
}
