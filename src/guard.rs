//! The guard against second sends: what the gateway remembers of every idempotency key, over all workers.
//!
//! What is remembered lives in memory that all workers share and change by compare-and-swap, in a table of fixed size: the
//! host's memory has no delete. A [`Bucket`] is the smallest part that is swapped: the entries of all keys that fall into
//! it, without their answers, which stand beside it in places of their own. What stands here decides; the filter carries
//! it out.
//!
//! An entry in flight, or one of which it is not known whether money moved, never makes room within its window. Keys are
//! kept as digests, and answers as callers got them: no credential is in either.

use sha2::{Digest as _, Sha256};

use crate::exchange::MAX_ANSWER;
use crate::memory::{Memory, swap};
use crate::problem::Retry;

/// How the guard is configured. It is off where `entries` or `window_ms` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardSettings {
    /// How many keys are remembered at most.
    pub entries: u32,
    /// For how long one is remembered after its last word, in milliseconds.
    pub window_ms: i64,
    /// How long a call may be in flight, in milliseconds: after that nothing more is expected of it, and its end is unknown.
    pub lease_ms: i64,
}

impl Default for GuardSettings {
    /// 16384 keys for 48 hours: longer than beGateway keeps its own, so that a key which the provider has forgotten is not
    /// new here. A minute in flight: the wait for a token and the 30 s of envoy.yaml's routes, and as much again.
    fn default() -> Self {
        GuardSettings {
            entries: 16_384,
            window_ms: 48 * 60 * 60 * 1_000,
            lease_ms: 60_000,
        }
    }
}

impl GuardSettings {
    /// Whether keys are remembered at all.
    pub fn is_on(&self) -> bool {
        self.entries > 0 && self.window_ms > 0
    }
}

/// The first half of a SHA-256: enough that two keys, or two refunds, are never taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 16]);

impl Digest {
    /// The digest of some parts, each told from its neighbours by its length.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes
            .iter_mut()
            .zip(hash.finalize())
            .for_each(|(byte, of)| *byte = of);
        Digest(bytes)
    }
}

/// The most entries in one bucket.
const WAYS: u32 = 16;

/// The name of the record that holds the number of entries, and the beginning of all others.
const RECORD: &str = "refund.guard.2";

/// The number of entries in this memory: the one that is asked for first counts. All workers, and all configurations that
/// follow one another in a process, must look for a key in the same place: in a table of another size the entry of a call
/// in flight would not be found, and the call would be sent again.
pub fn entries(memory: &dyn Memory, wanted: u32) -> Option<u32> {
    swap(memory, RECORD, |bytes| match bytes.try_into() {
        Ok(number) => (u32::from_le_bytes(number), None),
        Err(_) => (wanted, Some(wanted.to_le_bytes().to_vec())),
    })
}

/// The guard in a memory.
#[derive(Clone, Copy)]
pub struct Guard<'m> {
    /// Where it keeps what it knows.
    pub memory: &'m dyn Memory,
    /// How it is configured, with the memory's own number of entries.
    pub settings: GuardSettings,
}

impl Guard<'_> {
    /// What is known of earlier sends under a key.
    pub fn standing(&self, key: &Digest, now_ms: i64) -> Option<Standing> {
        let (bytes, _) = self.memory.read(&bucket_record(key, self.settings.entries));
        self.bucket(&bytes).standing(key, now_ms, &self.settings)
    }

    /// Gives a call what it wants. `lease` is a random number.
    pub fn ask(&self, asks: &Asks, lease: u64, now_ms: i64) -> Claim {
        match asks {
            Asks::Nothing => Claim::None,
            Asks::Claim(question) => self.claim(question, lease, now_ms),
            Asks::Recall(key) => self
                .recall(key, now_ms)
                .map_or(Claim::None, Claim::Recalled),
        }
    }

    /// Asks for a call's key. `lease` is a random number.
    pub fn claim(&self, question: &Question, lease: u64, now_ms: i64) -> Claim {
        let record = bucket_record(&question.key, self.settings.entries);
        let found = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let found = bucket.claim(question, lease, now_ms, &self.settings);
            let changed = matches!(found, Found::Taken { .. });
            (found, changed.then(|| bucket.encode()))
        });
        match found {
            Some(Found::Taken {
                standing,
                resend_until_ms,
            }) => Claim::Taken {
                ticket: Ticket {
                    key: question.key,
                    lease,
                    resend_until_ms,
                },
                standing,
            },
            Some(Found::InFlight(standing)) => Claim::InFlight(standing),
            Some(Found::Reused) => Claim::Reused,
            Some(Found::Answered { way, standing }) => {
                let answer = way.and_then(|way| {
                    let (bytes, _) = self.memory.read(&answer_record(&record, way));
                    StoredAnswer::decode(&question.key, &bytes)
                });
                Claim::Answered { answer, standing }
            }
            // A memory that cannot be written is as good as full.
            Some(Found::NoRoom) | None => Claim::NoRoom,
        }
    }

    /// Tells how a call ended, and with which answer. Says whether the key was still the call's.
    pub fn settle(&self, ticket: &Ticket, end: End, status: u16, body: &str, now_ms: i64) -> bool {
        let record = bucket_record(&ticket.key, self.settings.entries);
        // The place does not change while the key is the call's, so the answer is written once.
        let mut answered = None;
        let settled = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let Some(way) = bucket.place_of(ticket) else {
                return (false, None);
            };
            let end = bucket.end_of(ticket, end);
            let told = !matches!(end, End::Free | End::NeverWas);
            // The answer goes to its place before the entry says that it is there.
            let answered = *answered
                .get_or_insert_with(|| told && self.put_answer(&record, way, ticket, status, body));
            let changed = bucket.settle(ticket, end, answered, now_ms, &self.settings);
            (changed, changed.then(|| bucket.encode()))
        });
        settled == Some(true)
    }

    /// What is remembered of a key under which money has moved or may have, for a look-up. It takes nothing.
    pub fn recall(&self, key: &Digest, now_ms: i64) -> Option<Recalled> {
        let record = bucket_record(key, self.settings.entries);
        let (bytes, _) = self.memory.read(&record);
        let bucket = self.bucket(&bytes);
        let (way, entry) = bucket.recall(key, now_ms, &self.settings)?;
        let stored = bucket.places.get(way).copied().flatten()?;
        let answer = entry.answered.then(|| {
            let (bytes, _) = self.memory.read(&answer_record(&record, way));
            StoredAnswer::decode(key, &bytes)
        });
        Some(Recalled {
            key: *key,
            lease: entry.lease,
            came_home: !matches!(stored.state, State::InFlight(_)),
            about: entry.about,
            answer: answer.flatten(),
        })
    }

    /// Settles a key by the provider's own word in a look-up, if no send has been made under it since it was recalled. `lease`
    /// is a random number. Says whether it did.
    pub fn conclude(
        &self,
        recalled: &Recalled,
        lease: u64,
        end: End,
        answer: (u16, &str),
        now_ms: i64,
    ) -> bool {
        // The key becomes the look-up's own first: so a call that comes in between can neither be told half of it nor have its
        // own answer overwritten.
        let record = bucket_record(&recalled.key, self.settings.entries);
        let ticket = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let ticket = bucket.reclaim(recalled, lease, end, now_ms, &self.settings);
            (ticket, ticket.map(|_| bucket.encode()))
        });
        let (status, body) = answer;
        ticket
            .flatten()
            .is_some_and(|ticket| self.settle(&ticket, end, status, body, now_ms))
    }

    fn put_answer(
        &self,
        record: &str,
        way: usize,
        ticket: &Ticket,
        status: u16,
        body: &str,
    ) -> bool {
        StoredAnswer::encode(&ticket.key, status, body).is_some_and(|bytes| {
            let place = answer_record(record, way);
            self.memory.write(&place, &bytes, 0).is_ok()
        })
    }

    fn bucket(&self, bytes: &[u8]) -> Bucket {
        Bucket::decode(bytes, self.settings.entries)
    }
}

/// The name of the bucket of a key, in a table of so many entries.
pub fn bucket_record(key: &Digest, entries: u32) -> String {
    let (number, _) = key.0.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let buckets = u64::from(entries.div_ceil(WAYS).max(1));
    let bucket = u64::from_le_bytes(*number)
        .checked_rem(buckets)
        .unwrap_or_default();
    format!("{RECORD}.{bucket}")
}

/// The name of the place for the answer of a bucket's entry.
fn answer_record(bucket: &str, way: usize) -> String {
    format!("{bucket}.{way}")
}

/// What a refund is about: enough to know it again in a provider's word on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// The payment, by the first of its names, at its provider.
    pub payment: [u8; 8],
    /// The amount; noughts for a full refund.
    pub amount: [u8; 8],
}

/// What is remembered of a key under which money has moved or may have, and none is being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled {
    /// The caller's key.
    pub key: Digest,
    /// Of the last send under it.
    pub lease: u64,
    /// Whether that one had come home: not where its lease has run out instead.
    pub came_home: bool,
    /// What the refund is about.
    pub about: About,
    /// The last answer.
    pub answer: Option<StoredAnswer>,
}

/// What the guard is asked about one call.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The caller's key.
    pub key: Digest,
    /// The refund, as parsed.
    pub refund: Digest,
    /// What it is about.
    pub about: About,
    /// Until when the provider tells a second send from a second refund, if this is the first send (Unix time in
    /// milliseconds): [`i64::MAX`] where it always does, 0 where it never does.
    pub resend_until_ms: i64,
}

/// That a key is this call's until it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The caller's key.
    pub key: Digest,
    /// Tells this call from a later one under the same key.
    pub lease: u64,
    /// See [`Question::resend_until_ms`]; of the first send.
    pub resend_until_ms: i64,
}

/// What is known of the sends under a key before this one, where one of them may have moved money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// See [`Question::resend_until_ms`]; of the first send.
    pub resend_until_ms: i64,
}

impl Standing {
    /// What a caller may do who must be told that the outcome is unknown.
    pub fn retry(&self, now_ms: i64) -> Retry {
        if now_ms < self.resend_until_ms {
            Retry::SameKey
        } else {
            Retry::LookUp
        }
    }
}

/// What a call wants of the guard.
#[derive(Debug, Clone, Copy)]
pub enum Asks {
    /// Nothing.
    Nothing,
    /// Its key.
    Claim(Question),
    /// What is remembered of the key that a look-up names.
    Recall(Digest),
}

/// What a call may do by the word of the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The guard is off, or has no place for this key: nothing is remembered.
    None,
    /// There is no place left for this key.
    NoRoom,
    /// Go on: the key is this call's.
    Taken {
        /// To settle it with.
        ticket: Ticket,
        /// What is known of earlier sends.
        standing: Option<Standing>,
    },
    /// The same call is in flight.
    InFlight(Standing),
    /// The key was used with another refund.
    Reused,
    /// Nothing is claimed: this is a look-up, and this is what is remembered of the key that it names.
    Recalled(Recalled),
    /// The same call has been answered, and is not sent again.
    Answered {
        /// The answer; none where no answer was ever made, as after a trap.
        answer: Option<StoredAnswer>,
        /// What is known of the sends.
        standing: Standing,
    },
}

/// How a call ended, for the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing was sent, or what was sent certainly moved no money, and the same call can be made again.
    Free,
    /// The provider took the refund and has not finished.
    Pending,
    /// It is not known whether money moved.
    Unknown,
    /// The provider refunded.
    Refunded,
    /// The provider's own no: no money moved, and none will under this key.
    Refused,
    /// The provider has proved that no send under this key has moved money.
    NeverWas,
}

/// An answer as it was given: its status and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl StoredAnswer {
    /// The bytes to be kept in the place of this key's answer; none where the answer is too large to be kept.
    pub fn encode(key: &Digest, status: u16, body: &str) -> Option<Vec<u8>> {
        if body.len() > MAX_ANSWER {
            return None;
        }
        Some([&key.0[..], &status.to_le_bytes(), body.as_bytes()].concat())
    }

    /// The answer of this key, if it is what these bytes hold: the place may have become another key's.
    pub fn decode(key: &Digest, bytes: &[u8]) -> Option<Self> {
        let (status, body) = bytes.strip_prefix(&key.0)?.split_first_chunk()?;
        Some(StoredAnswer {
            status: u16::from_le_bytes(*status),
            body: String::from_utf8(body.to_vec()).ok()?,
        })
    }
}

/// What the guard knows of a key in its bucket, once asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// As [`Claim::NoRoom`].
    NoRoom,
    /// As [`Claim::Taken`].
    Taken {
        /// What is known of earlier sends.
        standing: Option<Standing>,
        /// See [`Question::resend_until_ms`]; of the first send.
        resend_until_ms: i64,
    },
    /// As [`Claim::InFlight`].
    InFlight(Standing),
    /// As [`Claim::Reused`].
    Reused,
    /// As [`Claim::Answered`]; the answer stands in the place of this entry, if there is one.
    Answered {
        /// The entry's place in the bucket; none where it has no answer.
        way: Option<usize>,
        /// What is known of the sends.
        standing: Standing,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In flight, and where the sends before it stand.
    InFlight(Option<Open>),
    /// The earlier sends moved no money.
    Free,
    Open(Open),
    Refunded,
    Refused,
}

/// A send whose end is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Pending,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    key: Digest,
    refund: Digest,
    about: About,
    state: State,
    /// Whether the last answer under this key stands in its place.
    answered: bool,
    lease: u64,
    resend_until_ms: i64,
    /// In flight: the end of the lease; else the end of the window.
    until_ms: i64,
}

/// Key, refund, payment, amount, state, answered, lease, two times.
const ENTRY_BYTES: usize = 16 + 16 + 8 + 8 + 1 + 1 + 8 + 8 + 8;

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.key.0);
        out.extend(self.refund.0);
        out.extend(self.about.payment);
        out.extend(self.about.amount);
        out.push(match self.state {
            State::Free => 0,
            State::InFlight(None) => 1,
            State::InFlight(Some(Open::Pending)) => 2,
            State::InFlight(Some(Open::Unknown)) => 3,
            State::Open(Open::Pending) => 4,
            State::Open(Open::Unknown) => 5,
            State::Refunded => 6,
            State::Refused => 7,
        });
        out.push(u8::from(self.answered));
        out.extend(self.lease.to_le_bytes());
        out.extend(self.resend_until_ms.to_le_bytes());
        out.extend(self.until_ms.to_le_bytes());
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk()?;
        let (refund, rest) = rest.split_first_chunk()?;
        let (payment, rest) = rest.split_first_chunk()?;
        let (amount, rest) = rest.split_first_chunk()?;
        let ([state, answered], rest) = rest.split_first_chunk()?;
        let (lease, rest) = rest.split_first_chunk()?;
        let (resend, rest) = rest.split_first_chunk()?;
        Some(Entry {
            key: Digest(*key),
            refund: Digest(*refund),
            about: About {
                payment: *payment,
                amount: *amount,
            },
            state: match state {
                0 => State::Free,
                1 => State::InFlight(None),
                2 => State::InFlight(Some(Open::Pending)),
                3 => State::InFlight(Some(Open::Unknown)),
                4 => State::Open(Open::Pending),
                5 => State::Open(Open::Unknown),
                6 => State::Refunded,
                7 => State::Refused,
                _ => return None,
            },
            answered: *answered == 1,
            lease: u64::from_le_bytes(*lease),
            resend_until_ms: i64::from_le_bytes(*resend),
            until_ms: i64::from_le_bytes(rest.try_into().ok()?),
        })
    }

    /// The entry as it is now: of a lease that has run out nothing more is expected, and a window that has closed leaves
    /// nothing.
    fn at(mut self, now_ms: i64, settings: &GuardSettings) -> Option<Self> {
        if matches!(self.state, State::InFlight(_)) && now_ms >= self.until_ms {
            self.state = State::Open(Open::Unknown);
            // Whatever was answered to the sends before is not the answer to this one.
            self.answered = false;
            self.until_ms = self.until_ms.saturating_add(settings.window_ms);
        }
        let in_flight = matches!(self.state, State::InFlight(_));
        (in_flight || now_ms < self.until_ms).then_some(self)
    }

    /// Where the sends under this key stand, if one of them may have moved money.
    fn standing(&self) -> Option<Standing> {
        let clean = matches!(self.state, State::Free | State::Refused);
        (!clean).then_some(Standing {
            resend_until_ms: self.resend_until_ms,
        })
    }

    /// Which entry makes room first; none for one that never does.
    fn makes_room(&self) -> Option<(u8, i64)> {
        let order = match self.state {
            State::InFlight(_) | State::Open(Open::Unknown) => return None,
            State::Free => 0,
            State::Refunded | State::Refused => 1,
            State::Open(Open::Pending) => 2,
        };
        Some((order, self.until_ms))
    }
}

/// The entries of one bucket.
#[derive(Debug, PartialEq, Eq)]
pub struct Bucket {
    places: Vec<Option<Entry>>,
}

impl Bucket {
    /// Reads a stored bucket of a table of so many entries. Nothing, or nothing readable, is an empty one.
    pub fn decode(bytes: &[u8], entries: u32) -> Self {
        let ways = usize::try_from(entries.clamp(1, WAYS)).unwrap_or(1);
        let (chunks, _) = bytes.as_chunks::<ENTRY_BYTES>();
        let mut places: Vec<_> = chunks.iter().map(Entry::decode).collect();
        places.resize(ways, None);
        Bucket { places }
    }

    /// The bucket to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.places.len().saturating_mul(ENTRY_BYTES));
        for place in &self.places {
            match place {
                Some(entry) => entry.encode(&mut out),
                // 0xff is the state of no entry.
                None => out.resize(out.len().saturating_add(ENTRY_BYTES), 0xff),
            }
        }
        out
    }

    /// Where the sends under a key stand, if one of them may have moved money: a look that takes nothing.
    pub fn standing(
        &self,
        key: &Digest,
        now_ms: i64,
        settings: &GuardSettings,
    ) -> Option<Standing> {
        let entry = self.places.iter().flatten().find(|entry| entry.key == *key);
        entry?.at(now_ms, settings)?.standing()
    }

    /// What a call may do. After [`Found::Taken`] the bucket has changed: only who stores it may go on.
    pub fn claim(
        &mut self,
        question: &Question,
        lease: u64,
        now_ms: i64,
        settings: &GuardSettings,
    ) -> Found {
        // What is over leaves; the others stay as they were stored, since their calls may still come home.
        for place in &mut self.places {
            *place = place.filter(|entry| entry.at(now_ms, settings).is_some());
        }
        let mut fresh = Entry {
            key: question.key,
            refund: question.refund,
            about: question.about,
            state: State::InFlight(None),
            answered: false,
            lease,
            resend_until_ms: question.resend_until_ms,
            until_ms: now_ms.saturating_add(settings.lease_ms),
        };
        let known = self.places.iter().position(|place| {
            place
                .as_ref()
                .is_some_and(|entry| entry.key == question.key)
        });
        let Some(way) = known else {
            let Some(way) = self.room() else {
                return Found::NoRoom;
            };
            self.put(way, fresh);
            return Found::Taken {
                standing: None,
                resend_until_ms: fresh.resend_until_ms,
            };
        };
        let known = self.places.get(way).copied().flatten();
        let Some(entry) = known.and_then(|entry| entry.at(now_ms, settings)) else {
            return Found::NoRoom;
        };
        let standing = Standing {
            resend_until_ms: entry.resend_until_ms,
        };
        let open = match entry.state {
            State::Free => {
                // The provider may have noted the key at a send that came to nothing. Never longer than this call's own allows:
                // the one before may have been for another provider.
                if now_ms < entry.resend_until_ms {
                    fresh.resend_until_ms = fresh.resend_until_ms.min(entry.resend_until_ms);
                }
                self.put(way, fresh);
                return Found::Taken {
                    standing: None,
                    resend_until_ms: fresh.resend_until_ms,
                };
            }
            _ if entry.refund != question.refund => return Found::Reused,
            State::InFlight(_) => return Found::InFlight(standing),
            State::Open(open) if now_ms < entry.resend_until_ms => open,
            State::Open(_) | State::Refunded | State::Refused => {
                return Found::Answered {
                    way: entry.answered.then_some(way),
                    standing,
                };
            }
        };
        fresh.state = State::InFlight(Some(open));
        fresh.answered = entry.answered;
        fresh.resend_until_ms = entry.resend_until_ms;
        self.put(way, fresh);
        Found::Taken {
            standing: Some(standing),
            resend_until_ms: entry.resend_until_ms,
        }
    }

    /// The entry of a key under which money has moved or may have, and its place: a look that takes nothing.
    fn recall(
        &self,
        key: &Digest,
        now_ms: i64,
        settings: &GuardSettings,
    ) -> Option<(usize, Entry)> {
        let mut places = self.places.iter().enumerate();
        let (way, entry) = places.find_map(|(way, place)| {
            let entry = place.filter(|entry| entry.key == *key)?;
            Some((way, entry))
        })?;
        let entry = entry.at(now_ms, settings)?;
        matches!(entry.state, State::Open(_) | State::Refunded).then_some((way, entry))
    }

    /// Makes a key that was recalled a look-up's own, to be settled; none where it is no longer as it was, or where it would be
    /// freed while its call may still send: a lease that has run out ends no call. After it the bucket has changed.
    fn reclaim(
        &mut self,
        recalled: &Recalled,
        lease: u64,
        end: End,
        now_ms: i64,
        settings: &GuardSettings,
    ) -> Option<Ticket> {
        let (way, mut entry) = self.recall(&recalled.key, now_ms, settings)?;
        let State::Open(open) = entry.state else {
            return None;
        };
        if entry.lease != recalled.lease || end == End::NeverWas && !recalled.came_home {
            return None;
        }
        entry.state = State::InFlight(Some(open));
        entry.lease = lease;
        entry.until_ms = now_ms.saturating_add(settings.lease_ms);
        self.put(way, entry);
        Some(Ticket {
            key: entry.key,
            lease,
            resend_until_ms: entry.resend_until_ms,
        })
    }

    /// The place for a key that is not there: a free one, else that of what may be forgotten, final entries before
    /// pending ones, and of these the oldest.
    fn room(&self) -> Option<usize> {
        if let Some(free) = self.places.iter().position(Option::is_none) {
            return Some(free);
        }
        let places = self.places.iter().flatten().enumerate();
        places
            .filter_map(|(way, entry)| Some((entry.makes_room()?, way)))
            .min()
            .map(|(_, way)| way)
    }

    fn put(&mut self, way: usize, entry: Entry) {
        if let Some(place) = self.places.get_mut(way) {
            *place = Some(entry);
        }
    }

    fn mine(&mut self, ticket: &Ticket) -> Option<(usize, &mut Entry)> {
        self.places.iter_mut().enumerate().find_map(|(way, place)| {
            let entry = place.as_mut()?;
            // One whose lease has run out is still its call's until another takes it.
            let mine = entry.key == ticket.key
                && entry.lease == ticket.lease
                && matches!(entry.state, State::InFlight(_));
            mine.then_some((way, entry))
        })
    }

    /// The place of a call that is in flight and not settled; none where the key has become another call's.
    pub fn place_of(&mut self, ticket: &Ticket) -> Option<usize> {
        self.mine(ticket).map(|(way, _)| way)
    }

    /// What a call's end means for its key. A send that came to nothing known after one that the provider took tells nothing new
    /// where the provider knows the key for ever; and the first answer holds the refund's id, by which it is looked up.
    fn end_of(&mut self, ticket: &Ticket, end: End) -> End {
        let taken = self.mine(ticket).is_some_and(|(_, entry)| {
            entry.state == State::InFlight(Some(Open::Pending))
                && entry.answered
                && entry.resend_until_ms == i64::MAX
        });
        if taken && end == End::Unknown {
            End::Free
        } else {
            end
        }
    }

    /// Settles a call. `answered`: its answer stands in its place now. Says whether the bucket has changed: not where the
    /// key has become another call's since.
    pub fn settle(
        &mut self,
        ticket: &Ticket,
        end: End,
        answered: bool,
        now_ms: i64,
        settings: &GuardSettings,
    ) -> bool {
        let Some((_, entry)) = self.mine(ticket) else {
            return false;
        };
        let before = match entry.state {
            State::InFlight(open) => open,
            _ => None,
        };
        entry.state = match (end, before) {
            (End::Free, None) => State::Free,
            // What this send did not move, an earlier one may have.
            (End::Free, Some(open)) => State::Open(open),
            (End::NeverWas, _) => State::Free,
            (End::Pending, _) => State::Open(Open::Pending),
            (End::Unknown, _) => State::Open(Open::Unknown),
            (End::Refunded, _) if answered => State::Refunded,
            (End::Refused, _) if answered => State::Refused,
            // An end that cannot be told again is none.
            (End::Refunded | End::Refused, _) => State::Open(Open::Unknown),
        };
        entry.answered = if end == End::Free {
            entry.answered
        } else {
            answered
        };
        entry.until_ms = now_ms.saturating_add(settings.window_ms);
        true
    }
}
