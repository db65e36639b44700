//! What a gateway remembers, for the length of one play.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::guard::{Guard, GuardSettings, Table};
use refund_filter::memory::{Memory, NotWritten};

/// The bytes, and how often each was written.
#[derive(Default)]
struct Bytes(RefCell<BTreeMap<String, (Vec<u8>, u32)>>);

impl Memory for Bytes {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        self.0.borrow().get(name).cloned().unwrap_or_default()
    }

    // One play is one worker: nobody can have come before it.
    fn write(&self, name: &str, bytes: &[u8], _number: u32) -> Result<(), NotWritten> {
        let mut values = self.0.borrow_mut();
        let value = values.entry(name.to_owned()).or_default();
        *value = (bytes.to_vec(), value.1.saturating_add(1));
        Ok(())
    }
}

/// A guard and its memory.
pub struct Remembered {
    bytes: Bytes,
    table: Table,
    settings: GuardSettings,
}

impl Remembered {
    /// The memory of a gateway that has begun at this moment.
    pub fn since(config: &Config, began: Now) -> Option<Self> {
        let bytes = Bytes::default();
        // The salt keeps callers from choosing whom to push out; here there is one caller.
        let mut salt = StdRng::seed_from_u64(0);
        let settings = GuardSettings {
            // It holds two keys, and the page's memory is made anew with each letter.
            entries: config.guard.entries.min(64),
            ..config.guard
        };
        let table = Table::open(&bytes, settings.entries, began, &mut salt)?;
        Some(Remembered {
            bytes,
            table,
            settings,
        })
    }

    pub fn guard(&self) -> Guard<'_> {
        Guard {
            memory: &self.bytes,
            table: self.table,
            settings: self.settings,
        }
    }

    pub fn is_on(&self) -> bool {
        self.settings.is_on()
    }
}
