//! The payments that can have one refund alone, by their names, and the key that has each.

use super::bucket::take;
use super::{Digest, End, GuardSettings, Ticket};
use crate::clock::Now;

/// What the guard knows of a payment in its bucket, once asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentFound {
    /// There is no place left.
    NoRoom,
    /// The payment is the key's.
    Taken {
        /// Whether another payment was forgotten for it within its window.
        evicted: bool,
    },
    /// Another key has it.
    OfAnother {
        /// Whether that one's refund has not ended.
        is_open: bool,
    },
    /// It was refunded under this key.
    Refunded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its owner's call is in flight, or its end is not known.
    Held,
    /// Its owner's sends moved no money.
    Free,
    Refunded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    name: Digest,
    /// The key that was last sent for it.
    owner: Digest,
    state: State,
    /// Whether another key may have been sent for it before.
    shared: bool,
    /// The end of the window.
    until_ms: i64,
}

/// Name, owner, state, shared, a time.
const ENTRY_BYTES: usize = 16 + 16 + 1 + 1 + 8;

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.name.0);
        out.extend(self.owner.0);
        out.push(match self.state {
            State::Held => 0,
            State::Free => 1,
            State::Refunded => 2,
        });
        out.push(u8::from(self.shared));
        out.extend(self.until_ms.to_le_bytes());
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        let (name, owner) = (Digest(take(&mut rest)?), Digest(take(&mut rest)?));
        let [state, shared] = take(&mut rest)?;
        Some(Entry {
            name,
            owner,
            state: match state {
                0 => State::Held,
                1 => State::Free,
                2 => State::Refunded,
                _ => return None,
            },
            shared: shared == 1,
            until_ms: i64::from_le_bytes(take(&mut rest)?),
        })
    }

    /// Which entry makes room first; none for one that never does.
    fn makes_room(&self, now: Now) -> Option<(u8, i64)> {
        let order = match self.state {
            State::Free => 0,
            State::Refunded => 1,
            State::Held if now.steady_ms >= self.until_ms => 2,
            State::Held => return None,
        };
        Some((order, self.until_ms))
    }
}

/// The payments of one bucket.
#[derive(Debug, PartialEq, Eq)]
pub struct PaymentBucket {
    /// Whether a payment was forgotten here: then nobody knows of a new one that no key was sent
    /// for it before.
    forgot: bool,
    places: Vec<Option<Entry>>,
}

impl PaymentBucket {
    /// Reads a stored bucket of so many places. Nothing, or nothing readable, is an empty one.
    pub fn decode(bytes: &[u8], ways: usize) -> Self {
        let (forgot, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let (chunks, _) = rest.as_chunks::<ENTRY_BYTES>();
        let mut places: Vec<_> = chunks.iter().map(Entry::decode).collect();
        places.resize(ways, None);
        PaymentBucket {
            forgot: *forgot == 1,
            places,
        }
    }

    /// The bucket to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let size = self.places.len().saturating_mul(ENTRY_BYTES);
        let mut out = Vec::with_capacity(size.saturating_add(1));
        out.push(u8::from(self.forgot));
        for place in &self.places {
            match place {
                Some(entry) => entry.encode(&mut out),
                // 0xff is the state of no entry.
                None => out.resize(out.len().saturating_add(ENTRY_BYTES), 0xff),
            }
        }
        out
    }

    /// Whether nothing is remembered here.
    pub(super) fn is_empty(&self) -> bool {
        !self.forgot && self.places.iter().all(Option::is_none)
    }

    /// The entry of a payment, alone.
    pub(super) fn only(mut self, name: &Digest) -> Option<Entry> {
        self.find(name).copied()
    }

    /// The names here, each after the key that has it.
    pub(super) fn owned(self) -> impl Iterator<Item = (Digest, Digest)> {
        let entries = self.places.into_iter().flatten();
        entries.map(|entry| (entry.owner, entry.name))
    }

    /// Takes an entry over of which nothing is known here. Says whether the bucket has changed.
    pub(super) fn learn(&mut self, entry: Entry) -> bool {
        if self.find(&entry.name).is_some() {
            return false;
        }
        let free = self.places.iter_mut().find(|place| place.is_none());
        let learns = free.is_some();
        if let Some(place) = free {
            *place = Some(entry);
        }
        learns
    }

    /// Adds so many milliseconds to all times.
    pub(super) fn move_by(&mut self, milliseconds: i64) {
        for entry in self.places.iter_mut().flatten() {
            entry.until_ms = entry.until_ms.saturating_add(milliseconds);
        }
    }

    /// Takes a payment for a key. After [`PaymentFound::Taken`] the bucket has changed.
    pub fn claim(
        &mut self,
        name: &Digest,
        key: &Digest,
        now: Now,
        settings: &GuardSettings,
    ) -> PaymentFound {
        let until_ms = now.steady_ms.saturating_add(settings.window_ms);
        if let Some(entry) = self.find(name) {
            match entry.state {
                State::Held if entry.owner != *key => {
                    return PaymentFound::OfAnother { is_open: true };
                }
                State::Refunded if entry.owner != *key => {
                    return PaymentFound::OfAnother { is_open: false };
                }
                State::Refunded => return PaymentFound::Refunded,
                State::Held | State::Free => {}
            }
            entry.shared |= entry.owner != *key;
            entry.owner = *key;
            entry.state = State::Held;
            entry.until_ms = until_ms;
            return PaymentFound::Taken { evicted: false };
        }
        let Some((way, evicted)) = self.room(now) else {
            return PaymentFound::NoRoom;
        };
        let entry = Entry {
            name: *name,
            owner: *key,
            state: State::Held,
            shared: self.forgot,
            until_ms,
        };
        if let Some(place) = self.places.get_mut(way) {
            *place = Some(entry);
        }
        PaymentFound::Taken { evicted }
    }

    /// Tells how the call ended that has the payment, or what the provider has called a payment
    /// besides. Says whether the bucket has changed.
    pub fn settle(
        &mut self,
        name: &Digest,
        ticket: &Ticket,
        end: End,
        now: Now,
        settings: &GuardSettings,
    ) -> bool {
        let state = match end {
            End::Refunded => State::Refunded,
            End::Pending | End::Unknown | End::Absent => State::Held,
            End::NotSent | End::Free if ticket.open_before => State::Held,
            End::NotSent | End::Free | End::Refused => State::Free,
        };
        let Some(entry) = self.find(name) else {
            // A name that only the provider knew until now.
            let learned = state != State::Free
                && matches!(
                    self.claim(name, &ticket.key, now, settings),
                    PaymentFound::Taken { .. }
                );
            if let Some(entry) = self.find(name).filter(|_| learned) {
                entry.state = state;
            }
            return learned;
        };
        if entry.owner != ticket.key {
            return false;
        }
        let never_sent = end == End::NotSent && !ticket.open_before && !entry.shared;
        entry.state = state;
        entry.until_ms = now.steady_ms.saturating_add(settings.window_ms);
        if never_sent {
            self.places
                .retain(|place| place.is_none_or(|entry| entry.name != *name));
            self.places.push(None);
        }
        true
    }

    /// Whether this key is the only one that was ever sent for the payment; none where the payment
    /// is not known.
    pub fn is_alone(mut self, name: &Digest, key: &Digest) -> Option<bool> {
        let entry = self.find(name)?;
        Some(entry.owner == *key && !entry.shared)
    }

    /// Whether this key may have been sent for the payment.
    pub fn may_have_been(mut self, name: &Digest, key: &Digest) -> bool {
        let forgot = self.forgot;
        match self.find(name) {
            Some(entry) => entry.owner == *key || entry.shared,
            None => forgot,
        }
    }

    fn find(&mut self, name: &Digest) -> Option<&mut Entry> {
        let mut entries = self.places.iter_mut().flatten();
        entries.find(|entry| entry.name == *name)
    }

    fn room(&mut self, now: Now) -> Option<(usize, bool)> {
        if let Some(free) = self.places.iter().position(Option::is_none) {
            return Some((free, false));
        }
        let places = self.places.iter().flatten().enumerate();
        let first = places.filter_map(|(way, entry)| Some((entry.makes_room(now)?, way)));
        let ((_, until_ms), way) = first.min()?;
        self.forgot = true;
        Some((way, now.steady_ms < until_ms))
    }
}
