//! What the platform team sees of a worker: metrics, and lines of the log.
//!
//! A metric's name is a path; envoy.yaml's `stats_tags` make labels of its parts.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::figures::Series;
use super::{TICK_GAUGES_MS, Worker};
use crate::call::about_provider;
use crate::config::{Auth, Config, ProviderEntry};
use crate::guard::Fill;
use crate::host::{Level, Metric};
use crate::signing::Signing;

/// How often the same sentence goes to the log, in milliseconds.
const ALARM_EVERY_MS: i64 = 10_000;
/// How many of the guard's buckets are counted between two ticks of the gauges: the default table
/// in 20 s. At most 400 kB are read, which takes less than a call.
const BUCKETS_A_TICK: u64 = 256;
/// All that the guard counts.
const GUARD_EVENTS: [&str; 10] = [
    "no_room",
    "evicted",
    "in_flight",
    "reused",
    "payment_taken",
    "replayed",
    "late",
    "concluded",
    "changed",
    "overtaken",
];

/// A part of a call's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// All of it, from the headers to the answer.
    Call,
    /// The provider's, from letting its request go to the whole reply.
    Provider,
    /// The wait for a token.
    Token,
    /// OpenBao's.
    Signature,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Call, Phase::Provider, Phase::Token, Phase::Signature];

    fn name(self, provider: &str) -> String {
        let phase = match self {
            Phase::Call => "call",
            Phase::Provider => "provider",
            Phase::Token => "token",
            Phase::Signature => "signature",
        };
        format!("refund.duration_milliseconds.provider.{provider}.phase.{phase}")
    }
}

fn signatures(provider: &str, signer: &str, made: bool) -> String {
    let result = if made { "ok" } else { "failed" };
    format!("refund.signatures_total.provider.{provider}.signer.{signer}.result.{result}")
}

pub(super) fn token_fetches(provider: &str, result: &str) -> String {
    format!("refund.token_fetches_total.provider.{provider}.result.{result}")
}

pub(super) fn configurations(result: &str) -> String {
    format!("refund.configurations_total.result.{result}")
}

pub(super) fn misrouted(provider: &str) -> String {
    format!("refund.misrouted_total.provider.{provider}")
}

fn guard_events(event: &str) -> String {
    format!("refund.guard_events_total.event.{event}")
}

/// The ids of the metrics of one VM, by their names. The host takes a new id for every definition,
/// also of a name that it knows, and keeps it for as long as the VM: so all roots of a VM, one
/// after the other with each configuration, share them.
#[derive(Default)]
pub struct Metrics(RefCell<BTreeMap<String, u32>>);

impl Worker {
    pub(super) fn log(&self, level: Level, sentence: &str) {
        self.host.log(level, &format!("refund-filter: {sentence}"));
    }

    /// Says what the platform team must look at, now and then where it is always the same.
    pub(super) fn alarm(&self, sentence: &str) {
        let now_ms = self.host.now().steady_ms;
        let mut alarms = self.alarms.borrow_mut();
        alarms.retain(|_, at| now_ms.saturating_sub(*at) <= ALARM_EVERY_MS);
        if !alarms.contains_key(sentence) {
            self.log(Level::Error, sentence);
            alarms.insert(sentence.to_owned(), now_ms);
        }
    }

    pub(super) fn count(&self, name: String) {
        if let Some(id) = self.metric(Metric::Counter, name) {
            self.host.count(id);
        }
    }

    pub(super) fn count_guard(&self, event: &str) {
        self.count(guard_events(event));
    }

    /// Counts a signature of the gateway's for this provider; none is made for the others.
    pub(super) fn count_signature(&self, entry: &ProviderEntry, made: bool) {
        let signer = match &entry.auth {
            Auth::Signature(Signing::Keys { signer, .. }) => self.signer_name(*signer),
            Auth::Signature(Signing::Transit(_)) => "transit",
            Auth::Token(_) | Auth::Bearer(_) | Auth::Basic { .. } | Auth::Injected => return,
        };
        self.count(signatures(&entry.name, signer, made));
    }

    /// Notes how long a part of a call took.
    pub(super) fn took(&self, provider: &str, phase: Phase, milliseconds: i64) {
        if let Some(id) = self.metric(Metric::Histogram, phase.name(provider)) {
            let milliseconds = u64::try_from(milliseconds).unwrap_or_default();
            self.host.record(id, milliseconds);
        }
    }

    /// Defines all series that this configuration can have, so that none begins with its first
    /// event.
    pub(super) fn define_series(&self, config: &Config) {
        let counters = |names: Vec<String>| {
            for name in names {
                self.metric(Metric::Counter, name);
            }
        };
        let of_calls = |provider: &str, is_one: bool| {
            let all = Series::all(is_one);
            counters(all.iter().map(|series| series.name(provider)).collect());
        };
        of_calls("none", false);
        counters(GUARD_EVENTS.map(guard_events).into());
        if config.memory.is_some() {
            self.define_memory_series(config.providers().map(|entry| &*entry.name));
        }
        for entry in config.providers() {
            let name = &*entry.name;
            of_calls(name, true);
            counters(vec![misrouted(name)]);
            for phase in Phase::ALL {
                self.metric(Metric::Histogram, phase.name(name));
            }
            match &entry.auth {
                Auth::Token(_) => {
                    let results = ["ok", "refused", "rate_limited", "unreachable"];
                    counters(results.map(|result| token_fetches(name, result)).into());
                }
                Auth::Signature(_) => {
                    for made in [true, false] {
                        let signers = ["vm", "host", "transit"];
                        counters(signers.map(|signer| signatures(name, signer, made)).into());
                    }
                }
                Auth::Bearer(_) | Auth::Basic { .. } | Auth::Injected => {}
            }
        }
    }

    /// Sets the gauges when it is time, and counts on what the guard remembers.
    pub(super) fn set_gauges_in_time(&self) {
        let now_ms = self.host.now().steady_ms;
        let since_ms = now_ms.saturating_sub(self.gauges_ms.get());
        if since_ms >= i64::from(TICK_GAUGES_MS) && !self.closing.get() {
            self.gauges_ms.set(now_ms);
            self.count_on();
            self.set_gauges();
        }
    }

    /// Sets all gauges as this configuration has them. No gauge can be deleted: a root that ends
    /// sets its own to 0, and those that stay set theirs again at their next tick.
    pub(super) fn set_gauges(&self) {
        let config = self.config.borrow();
        // They are the gateway's, and not a list's.
        let Some(config) = config.as_deref().filter(|config| !config.open_list) else {
            return;
        };
        let is_on = !self.closing.get();
        let set = |name: String, value: u64| {
            if let Some(id) = self.metric(Metric::Gauge, name) {
                self.host.record(id, if is_on { value } else { 0 });
            }
        };
        set(format!("refund.build_info.version.{}", crate::VERSION), 1);
        let guard = self.guard();
        let capacity = guard.map_or(0, |guard| guard.table.entries);
        set("refund.guard_capacity".to_owned(), u64::from(capacity));
        let fill = self.counted.borrow();
        set("refund.guard_entries".to_owned(), fill.entries);
        for entry in config.providers() {
            let open = fill.open.get(&about_provider(&entry.name));
            let (unknown, pending) = open.copied().unwrap_or_default();
            for (state, count) in [("unknown", unknown), ("pending", pending)] {
                let name = &entry.name;
                set(format!("refund.open.provider.{name}.state.{state}"), count);
            }
        }
        for (entry, ring, _) in config.key_rings() {
            let name = &entry.name;
            set(
                format!("refund.signing_key_not_after_timestamp_seconds.provider.{name}"),
                ring.not_after()
                    .and_then(|end| u64::try_from(end).ok())
                    .unwrap_or_default(),
            );
        }
    }

    /// Counts on what the guard remembers. What is shown is always a whole count.
    fn count_on(&self) {
        let Some(guard) = self.guard() else { return };
        let mut fill = self.counting.borrow_mut();
        if guard.count_on(&mut fill, BUCKETS_A_TICK, self.host.now()) {
            // Without a store nothing is to be told, and no payment to be looked for.
            let next = match self.shared_memory() {
                Some(_) => fill.followed(),
                None => Fill::default(),
            };
            let whole: Fill = std::mem::replace(&mut fill, next);
            self.leave_untold(whole.found());
            self.counted.replace(whole);
        }
    }

    pub(super) fn metric(&self, kind: Metric, name: String) -> Option<u32> {
        let mut metrics = self.vm.metrics.0.borrow_mut();
        if let Some(id) = metrics.get(&name) {
            return Some(*id);
        }
        let id = self.host.define_metric(kind, &name)?;
        metrics.insert(name, id);
        Some(id)
    }
}
