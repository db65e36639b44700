//! The memory that workers share, without a host.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::clock::Now;
use refund_filter::guard::{Guard, GuardSettings, Table};
use refund_filter::memory::{Memory, NotWritten};

/// Shared data as the host has it.
#[derive(Clone, Default)]
pub struct SharedData(pub RefCell<BTreeMap<String, (Vec<u8>, u32)>>);

impl Memory for SharedData {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        self.0.borrow().get(name).cloned().unwrap_or_default()
    }

    fn write(&self, name: &str, bytes: &[u8], number: u32) -> Result<(), NotWritten> {
        let mut values = self.0.borrow_mut();
        let value = values.entry(name.to_owned()).or_default();
        if number != 0 && value.1 != 0 && value.1 != number {
            return Err(NotWritten::TooLate);
        }
        *value = (bytes.to_vec(), value.1 + 1);
        Ok(())
    }
}

/// What a gateway remembers.
#[derive(Clone)]
pub struct Remembered {
    pub data: SharedData,
    pub table: Table,
    pub settings: GuardSettings,
}

impl Remembered {
    /// The memory of a gateway that has begun at this moment. The salt is always the same.
    pub fn since(now: Now, settings: GuardSettings) -> Self {
        let data = SharedData::default();
        let mut salt = StdRng::seed_from_u64(7);
        let table = Table::open(&data, settings.entries, now, &mut salt).unwrap();
        Remembered {
            data,
            table,
            settings,
        }
    }

    pub fn guard(&self) -> Guard<'_> {
        Guard {
            memory: &self.data,
            table: self.table,
            settings: self.settings,
        }
    }
}
