//! What the platform team sees of a worker: metrics, and lines of the log.

use super::{TICK_GAUGES_MS, Worker};
use crate::config::{Auth, ProviderEntry};
use crate::host::{Level, Metric};
use crate::signing::Signing;

/// How often the same sentence goes to the log, in milliseconds.
const ALARM_EVERY_MS: i64 = 10_000;

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

    pub(super) fn count_signature(&self, entry: &ProviderEntry) {
        let signer = match &entry.auth {
            Auth::Signature(Signing::Keys { signer, .. }) => self.signer_name(*signer),
            _ => "transit",
        };
        self.count(format!(
            "refund.signatures.provider.{}.signer.{signer}",
            entry.name
        ));
    }

    /// Sets the gauges that tell how long keys last.
    pub(super) fn set_gauges(&self) {
        let now = self.host.now();
        if now.steady_ms.saturating_sub(self.gauges_ms.get()) < i64::from(TICK_GAUGES_MS) {
            return;
        }
        self.gauges_ms.set(now.steady_ms);
        let now = now.unix_ms.div_euclid(1_000);
        let config = self.config.borrow();
        for (entry, ring, _) in config.iter().flat_map(|config| config.key_rings()) {
            let name = format!("refund.key_seconds_left.provider.{}", entry.name);
            if let Some(seconds) = ring.seconds_left(now)
                && let Some(id) = self.metric(Metric::Gauge, name)
            {
                self.host.record(id, seconds);
            }
        }
    }

    /// The host takes a new id for every definition, also of a name that it knows.
    fn metric(&self, kind: Metric, name: String) -> Option<u32> {
        let mut metrics = self.metrics.borrow_mut();
        if let Some(id) = metrics.get(&name) {
            return Some(*id);
        }
        let id = self.host.define_metric(kind, &name)?;
        metrics.insert(name, id);
        Some(id)
    }
}
