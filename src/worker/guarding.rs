//! The guard, as this worker has it: its table in the process, its counters, and the answers that
//! settle keys.

use super::Worker;
use crate::exchange::Answer;
use crate::guard::{Asks, Claim, Digest, Guard, GuardSettings, OpenRefunds, Standing, Table};
use crate::host::{Level, Randomness};

impl Worker {
    /// The guard's table in this process: opened with the first configuration, since it counts from
    /// then on.
    pub(super) fn table(&self, entries: u32) -> Option<Table> {
        if let Some(table) = self.table.get() {
            return Some(table);
        }
        let mut randomness = Randomness(&*self.host);
        let table = Table::open(&*self.host, entries, self.host.now(), &mut randomness)?;
        self.table.set(Some(table));
        if table.entries != entries {
            self.log(
                Level::Warn,
                "the guard keeps the number of entries that this process began with; another one counts from its next start on",
            );
        }
        Some(table)
    }

    /// The guard, if it is on.
    pub(super) fn guard(&self) -> Option<Guard<'_>> {
        let settings = self.config.borrow().as_ref()?.guard;
        if !settings.is_on() {
            return None;
        }
        Some(Guard {
            memory: &*self.host,
            table: self.table(settings.entries)?,
            settings,
        })
    }

    /// The refunds that are open. The table is the gateway's: whoever only lists it makes none.
    pub(super) fn open_refunds(&self) -> OpenRefunds {
        let Some(table) = Table::find(&*self.host) else {
            return OpenRefunds::default();
        };
        let guard = Guard {
            memory: &*self.host,
            table,
            settings: GuardSettings::default(),
        };
        guard.open(self.host.now())
    }

    /// What is known of earlier sends under a key.
    pub(super) fn standing(&self, key: &Digest) -> Option<Standing> {
        self.guard()?.standing(key, self.host.now())
    }

    /// Asks the guard in the process's own memory what a call wants of it.
    pub(super) fn ask_guard(&self, asks: &Asks) -> Claim {
        let claim = self.ask_own_guard(asks, self.random_number());
        self.count_claim(&claim);
        claim
    }

    /// The same. `lease` is a random number.
    pub(super) fn ask_own_guard(&self, asks: &Asks, lease: Option<u64>) -> Claim {
        let on = self.config.borrow().as_ref().map(|config| config.guard);
        if on.is_some_and(|settings| !settings.is_on()) {
            return Claim::Unguarded;
        }
        match (asks, self.guard(), lease) {
            (_, Some(guard), Some(lease)) => guard.ask(asks, lease, self.host.now()),
            // Without its memory the guard is as good as full; without a lease of its own a call
            // could be settled by another.
            (Asks::Claim(_), ..) => Claim::NoRoom,
            (Asks::Nothing | Asks::Recall(_), ..) => Claim::Unguarded,
        }
    }

    /// Counts what the guard has said.
    pub(super) fn count_claim(&self, claim: &Claim) {
        match claim {
            Claim::Unguarded | Claim::Recalled(_) | Claim::Alone(_) | Claim::Unavailable => {}
            Claim::Taken { evicted, .. } => {
                if *evicted {
                    self.count_guard("evicted");
                }
            }
            Claim::NoRoom => self.count_guard("no_room"),
            Claim::InFlight(_) => self.count_guard("in_flight"),
            Claim::Reused => self.count_guard("reused"),
            Claim::PaymentTaken { .. } => self.count_guard("payment_taken"),
            Claim::Answered { .. } => self.count_guard("replayed"),
        }
    }

    /// Tells the guard how a call ended. Where its key has become another call's, the answer says
    /// no more than is known.
    pub(super) fn settle(&self, answer: &mut Answer) {
        if answer.settles.is_none() && answer.concludes.is_none() {
            return;
        }
        let Some(guard) = self.guard() else { return };
        let lease = answer.concludes.as_ref().and_then(|_| self.random_number());
        if let Some(word) = answer.settle(&guard, lease, self.host.now()) {
            self.count_guard(word);
        }
    }

    /// A lease's number, which nobody else has.
    pub(super) fn random_number(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.host.fill_random(&mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}
