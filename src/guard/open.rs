//! The refunds that are open, for whoever must bring them to an end.
//!
//! What a list shows of a refund beyond its key's digest stands in a place of its own beside the
//! bucket: it is written once, when the key is taken, and swapped with nothing.

use super::bucket::take;
use super::{Digest, Guard};
use crate::clock::Now;

/// The most refunds that are listed: the oldest.
pub const MAX_LISTED: usize = 500;

/// How a refund is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenState {
    /// It is not known whether money moved.
    Unknown,
    /// The provider took it and has not finished.
    Pending,
}

/// A refund that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The caller's key.
    pub key: Digest,
    /// How it is open.
    pub state: OpenState,
    /// When the key was taken, by the steady clock, and what the call was: an object in JSON. None
    /// where the memory could not keep it.
    pub note: Option<(i64, String)>,
}

/// All that are open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenRefunds {
    /// How many.
    pub total: u64,
    /// The oldest of them in this order, [`MAX_LISTED`] at most.
    pub oldest: Vec<Open>,
}

/// The name of the place for the note on a bucket's entry.
fn note_record(bucket: &str, way: usize) -> String {
    format!("{bucket}.{way}.note")
}

impl Guard<'_> {
    /// Notes what a key was taken for.
    pub(super) fn note(&self, bucket: &str, way: usize, key: &Digest, note: &str, now: Now) {
        let parts = [&key.0[..], &now.steady_ms.to_le_bytes(), note.as_bytes()];
        // Without it the call is as good.
        let _ = self
            .memory
            .write(&note_record(bucket, way), &parts.concat(), 0);
    }

    fn noted(&self, bucket: &str, way: usize, key: &Digest) -> Option<(i64, String)> {
        let (bytes, _) = self.memory.read(&note_record(bucket, way));
        // The place may have become another key's.
        let mut rest = bytes.strip_prefix(&key.0)?;
        let since_ms = i64::from_le_bytes(take(&mut rest)?);
        Some((since_ms, String::from_utf8(rest.to_vec()).ok()?))
    }

    /// All refunds that are open. It reads the whole table.
    pub fn open(&self, now: Now) -> OpenRefunds {
        let mut all = OpenRefunds::default();
        for number in 0..self.table.buckets() {
            let record = self.table.key_bucket(number);
            for (way, key, state) in self.read(&record).open(now, &self.settings) {
                all.total = all.total.saturating_add(1);
                let note = self.noted(&record, way, &key);
                all.oldest.push(Open { key, state, note });
            }
            // So that what is held does not grow with the table.
            if all.oldest.len() > MAX_LISTED.saturating_mul(2) {
                all.keep_the_oldest();
            }
        }
        all.keep_the_oldest();
        all
    }
}

impl OpenRefunds {
    fn keep_the_oldest(&mut self) {
        self.oldest
            .sort_by_key(|open| open.note.as_ref().map(|(since_ms, _)| *since_ms));
        self.oldest.truncate(MAX_LISTED);
    }
}
