//! The guard in a store that gateways share.
//!
//! What the guard decides is the same as in the process's own memory. It is tried over a copy of what the store holds, as far as
//! that is known: an [`Attempt`]. What came of it counts only if the store still holds the same when it writes, which one call
//! tells; else the attempt is made again over what it holds now. A key that nobody has used costs one call.
//!
//! Each key of the guard, and each name of a payment, is a value of its own here. It is kept by the store's clock, and is read and
//! written by the process's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::bucket::{Bucket, Entry, take};
use super::payments::PaymentBucket;
use super::{
    Digest, End, Guard, GuardSettings, NAME_OF_PAYMENT, Past, StoredAnswer, Table, Ticket,
};
use crate::clock::{Now, Resend};
use crate::json::{Json, object};
use crate::memory::{Memory, NotWritten, swap};
use crate::redis::{Stands, Swap};

/// The form of the values. A gateway that finds another one does not know what it says.
const VERSION: u8 = 1;
/// The form of one that says nothing, in all versions: who gives a key back leaves nothing that an older gateway cannot read.
const NOTHING: u8 = 0;

/// What is the same for all that a gateway asks of its store at a moment.
#[derive(Debug, Clone, Copy)]
pub struct StoreView<'a> {
    /// The beginning of all names in it.
    pub prefix: &'a str,
    /// How the guard is configured.
    pub settings: GuardSettings,
    /// What the store's clock shows more than the process's steady one, in milliseconds.
    pub ahead_ms: i64,
    /// Since when the store is known to remember all keys, by the process's steady clock.
    pub since_ms: i64,
    /// When its clock last jumped, by the same.
    pub jumped_ms: i64,
}

impl GuardSettings {
    /// For how long a store keeps a value, in milliseconds: a lease that runs out begins a window.
    pub fn kept_ms(&self) -> i64 {
        self.window_ms
            .saturating_add(self.lease_ms)
            .saturating_add(super::HELD_BACK_MS)
    }
}

/// What the call itself says, and so whoever asks again.
const THE_CALLS_OWN: [&str; 3] = ["payment", "reason", "reference"];

/// The body of an answer as it goes to a store: without what the call itself says.
pub(super) fn without_the_calls_own(status: u16, body: &str) -> String {
    let json = Json::parse(body.as_bytes()).ok();
    let members = json.as_ref().and_then(|json| json.root().members());
    let Some(Ok(members)) = members.filter(|_| status < 300) else {
        return body.to_owned();
    };
    let kept = members
        .iter()
        .filter(|(name, _)| !THE_CALLS_OWN.contains(&&**name));
    object(kept.map(|(name, node)| (&**name, node.raw())))
}

/// A value that the store holds and this version cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// What becomes of an attempt by the store's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// What came of it is true, and stored.
    Holds,
    /// The store holds something else: it must be made again.
    Again,
}

/// What a gateway knows of the store while it asks for one thing.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Tells this gateway's values from all others: so a call whose answer was lost can be made again.
    nonce: u64,
    stands: BTreeMap<String, Vec<u8>>,
    swaps: Vec<Swap>,
}

impl Attempt {
    /// Nothing is known yet, and nothing is thought to be there. `nonce` is a random number.
    pub fn new(nonce: u64) -> Self {
        Attempt {
            nonce,
            stands: BTreeMap::new(),
            swaps: Vec::new(),
        }
    }

    /// Another one, with all that this one was told. `nonce` is a random number.
    pub fn followed_by(self, nonce: u64) -> Self {
        Attempt {
            nonce,
            swaps: Vec::new(),
            ..self
        }
    }

    /// Does something with the guard as the store is known to hold it. After it [`Attempt::swaps`] are what makes it true.
    pub fn run<T>(
        &mut self,
        view: &StoreView<'_>,
        act: impl FnOnce(&Guard<'_>) -> T,
    ) -> Result<T, Unreadable> {
        let held = Held::new(view, &self.stands);
        let result = act(&held.guard());
        if held.unreadable.get() {
            return Err(Unreadable);
        }
        self.swaps = held
            .touched
            .into_inner()
            .into_iter()
            .map(|(name, touched)| Swap {
                key: format!("{}{name}", view.prefix),
                was: self.stands.get(&name).cloned().unwrap_or_default(),
                new: if touched.is_written {
                    touched.value.encode(&name, self.nonce, view.ahead_ms)
                } else {
                    Vec::new()
                },
            })
            .collect();
        Ok(result)
    }

    /// What the store is to be asked.
    pub fn swaps(&self) -> &[Swap] {
        &self.swaps
    }

    /// The same, and nothing is to be written: before the store's clock is known.
    pub fn only_read(&mut self) {
        for swap in &mut self.swaps {
            swap.new.clear();
        }
    }

    /// Takes the store's answer to [`Attempt::swaps`].
    pub fn judge(&mut self, prefix: &str, stands: Stands) -> Verdict {
        let mut verdict = Verdict::Holds;
        for (swap, stands) in self.swaps.iter().zip(stands.values) {
            let wanted = if swap.new.is_empty() {
                &swap.was
            } else {
                &swap.new
            };
            if stands != *wanted {
                verdict = Verdict::Again;
            }
            let name = swap.key.strip_prefix(prefix).unwrap_or(&swap.key);
            self.stands.insert(name.to_owned(), stands);
        }
        verdict
    }

    /// Reads what the store was seen to hold.
    pub fn seen<T>(&self, view: &StoreView<'_>, read: impl FnOnce(&Guard<'_>) -> T) -> T {
        read(&Held::new(view, &self.stands).guard())
    }
}

/// A value, by the process's clock.
#[derive(Default)]
struct Value {
    bucket: Vec<u8>,
    /// The answer of a key.
    answer: Vec<u8>,
}

/// One that was looked at.
#[derive(Default)]
struct Touched {
    value: Value,
    is_written: bool,
}

/// How many milliseconds are added to all times in a bucket.
fn moved(name: &str, bytes: &[u8], milliseconds: i64) -> Vec<u8> {
    if name.starts_with(NAME_OF_PAYMENT) {
        let mut payments = PaymentBucket::decode(bytes, PAYMENT_WAYS);
        payments.move_by(milliseconds);
        payments.encode()
    } else {
        let mut bucket = Bucket::decode(bytes, WAYS);
        bucket.move_by(milliseconds);
        bucket.is_told();
        bucket.encode()
    }
}

/// Whether nothing is remembered in a bucket.
fn says_nothing(name: &str, bytes: &[u8]) -> bool {
    if name.starts_with(NAME_OF_PAYMENT) {
        PaymentBucket::decode(bytes, PAYMENT_WAYS).is_empty()
    } else {
        Bucket::decode(bytes, WAYS).is_empty()
    }
}

/// A value holds one key.
const WAYS: usize = 1;
/// As many as [`Guard::payments`] reads then.
const PAYMENT_WAYS: usize = 2;

impl Value {
    fn encode(&self, name: &str, nonce: u64, ahead_ms: i64) -> Vec<u8> {
        if says_nothing(name, &self.bucket) {
            return [&[NOTHING][..], &nonce.to_le_bytes()].concat();
        }
        let bucket = moved(name, &self.bucket, ahead_ms);
        let length = u16::try_from(bucket.len()).unwrap_or_default();
        [
            &[VERSION][..],
            &nonce.to_le_bytes(),
            &length.to_le_bytes(),
            &bucket,
            &self.answer,
        ]
        .concat()
    }

    fn decode(name: &str, bytes: &[u8], ahead_ms: i64) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Value::default());
        }
        let mut rest = bytes;
        let [version] = take(&mut rest)?;
        let _nonce: [u8; 8] = take(&mut rest)?;
        if version == NOTHING && rest.is_empty() {
            return Some(Value::default());
        }
        if version != VERSION {
            return None;
        }
        let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
        let (bucket, answer) = rest.split_at_checked(length)?;
        // What is not understood is not taken for nothing.
        if moved(name, bucket, 0) != bucket {
            return None;
        }
        Some(Value {
            bucket: moved(name, bucket, ahead_ms.saturating_neg()),
            answer: answer.to_vec(),
        })
    }
}

/// What the store is known to hold, as the guard's memory.
struct Held<'a> {
    view: &'a StoreView<'a>,
    stands: &'a BTreeMap<String, Vec<u8>>,
    touched: RefCell<BTreeMap<String, Touched>>,
    unreadable: Cell<bool>,
}

/// A part of a value, by the guard's name for it.
enum Part {
    Bucket,
    Answer,
    /// What the list of open refunds shows is the process's alone.
    Note,
}

fn part(name: &str) -> (&str, Part) {
    match name.split_once('.') {
        None => (name, Part::Bucket),
        Some((name, way)) if way.ends_with("note") => (name, Part::Note),
        Some((name, _)) => (name, Part::Answer),
    }
}

impl<'a> Held<'a> {
    fn new(view: &'a StoreView<'a>, stands: &'a BTreeMap<String, Vec<u8>>) -> Self {
        Held {
            view,
            stands,
            touched: RefCell::default(),
            unreadable: Cell::default(),
        }
    }

    fn guard(&self) -> Guard<'_> {
        Guard {
            memory: self,
            table: Table::of_store(self.view.since_ms, self.view.jumped_ms),
            settings: self.view.settings,
        }
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Touched) -> T) -> T {
        let mut touched = self.touched.borrow_mut();
        let touched = touched.entry(name.to_owned()).or_insert_with(|| {
            let stored = self.stands.get(name).map(Vec::as_slice).unwrap_or_default();
            let value = Value::decode(name, stored, self.view.ahead_ms);
            if value.is_none() {
                self.unreadable.set(true);
            }
            Touched {
                value: value.unwrap_or_default(),
                is_written: false,
            }
        });
        act(touched)
    }
}

impl Memory for Held<'_> {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        let bytes = match part(name) {
            (name, Part::Bucket) => self.with(name, |touched| touched.value.bucket.clone()),
            (name, Part::Answer) => self.with(name, |touched| touched.value.answer.clone()),
            (_, Part::Note) => Vec::new(),
        };
        (bytes, 1)
    }

    fn write(&self, name: &str, bytes: &[u8], _number: u32) -> Result<(), NotWritten> {
        let (name, part) = part(name);
        let place: fn(&mut Value) -> &mut Vec<u8> = match part {
            Part::Bucket => |value| &mut value.bucket,
            Part::Answer => |value| &mut value.answer,
            Part::Note => return Ok(()),
        };
        self.with(name, |touched| {
            *place(&mut touched.value) = bytes.to_vec();
            touched.is_written = true;
        });
        Ok(())
    }
}

/// What the process's own memory holds of a key and a store that gateways share may not: it was sent while the store could not be
/// asked, or could not be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untold(Entry);

impl Untold {
    /// Whether the last call that it knows of is the one with this lease.
    pub fn is_of(&self, lease: u64) -> bool {
        self.0.is_of(lease)
    }
}

impl Guard<'_> {
    /// What this memory, the process's own, has not told of a key.
    pub fn untold(&self, key: &Digest, now: Now) -> Option<Untold> {
        let bucket = self.read(&self.table.record(key));
        bucket.untold(key, now, &self.settings).map(Untold)
    }

    /// Takes over what the process's own memory knows of a key, where this one knows nothing of it: it was used before gateways shared
    /// one, or the store has forgotten it.
    pub fn learn_key(&self, own: &Guard<'_>, key: &Digest, now: Now) {
        if self.known(key, now).is_none() && own.known(key, now).is_some() {
            self.adopt(own, key, None, None, now);
        }
    }

    fn known(&self, key: &Digest, now: Now) -> Option<Entry> {
        let bucket = self.read(&self.table.record(key));
        bucket
            .known(key, now, &self.settings)
            .map(|(_, entry)| entry)
    }

    /// Takes over what the process's own memory knows of a call's payment, likewise.
    pub fn learn_payment(&self, own: &Guard<'_>, names: &[Digest]) {
        for name in names {
            let (bytes, _) = own.memory.read(&own.table.payment_record(name));
            let Some(theirs) = own.payments(&bytes).only(name) else {
                continue;
            };
            swap(self.memory, &self.table.payment_record(name), |bytes| {
                let mut ours = self.payments(bytes);
                let learns = ours.learn(theirs);
                ((), learns.then(|| ours.encode()))
            });
        }
    }

    /// Adds to what this memory knows of a key what the process's own has not told.
    pub fn catch_up(&self, own: &Guard<'_>, key: &Digest, untold: &Untold, now: Now) {
        let Untold(theirs) = untold;
        match self.known(key, now) {
            None => self.adopt(own, key, None, None, now),
            // It is no other send.
            Some(ours) if theirs.is_same_call(&ours) => {}
            // Whoever has this very call's answer tells it, or its lease runs out. Then what did not move stays in doubt: its caller was
            // told so.
            Some(ours) if theirs.ends(&ours) && !ours.is_over(now) => {}
            Some(_) => {
                if let Some(beside) = theirs.as_beside(now, &self.settings) {
                    self.add(key, &beside, self.answer_from(own, key), now);
                }
            }
        }
    }

    /// The same for a payment: tells under which of its names the process's own memory has it for this key, whose end it has not told.
    pub fn catch_up_payment(&self, key: &Digest, untold: &Untold, names: &[Digest], now: Now) {
        let end = match untold.0.past() {
            None => return,
            Some(Past::Free) => End::Free,
            Some(Past::Refused) => End::Refused,
            Some(Past::Refunded) => End::Refunded,
            Some(Past::Pending) => End::Pending,
            Some(Past::Unknown | Past::Absent) => End::Unknown,
        };
        let bucket = self.read(&self.table.record(key));
        if end.moves() || bucket.is_free(key, now, &self.settings) {
            let ticket = Ticket {
                key: *key,
                lease: 0,
                resend: Resend::Never,
                payment: Vec::new(),
                open_before: false,
            };
            self.settle_payment(&ticket, names, end, now);
        }
    }

    /// Makes what this memory holds of a key what another one holds, with its answer. `note`: what a list of open refunds shows of
    /// it, where it is new here. Not where the process's own memory has something else to tell than this, which it was `told`.
    pub fn adopt(
        &self,
        other: &Guard<'_>,
        key: &Digest,
        note: Option<&str>,
        told: Option<&Untold>,
        now: Now,
    ) {
        let ours = self.table.record(key);
        let entry = other.read(&other.table.record(key)).entry(key);
        let told = told.map(|Untold(entry)| entry);
        let placed = swap(self.memory, &ours, |bytes| {
            let mut bucket = self.bucket(bytes);
            let untold = bucket.untold(key, now, &self.settings);
            let is_awaited = |untold: Entry| {
                entry.is_some_and(|entry| untold.ends(&entry) && !entry.is_over(now))
            };
            let is_kept = untold.is_some_and(|untold| Some(&untold) != told || is_awaited(untold));
            if is_kept && !self.table.of_store {
                return (None, None);
            }
            let placed = bucket.adopt(key, entry, now, &self.settings);
            (placed, Some(bucket.encode()))
        });
        // Where there is no room the process knows nothing of the key, as of any other.
        let Some((way, is_new)) = placed.flatten() else {
            return;
        };
        let answer = self.answer_from(other, key);
        let _ = self.memory.write(
            &super::answer_record(&ours, way),
            &answer.unwrap_or_default(),
            0,
        );
        if let Some(note) = note.filter(|_| is_new) {
            self.note(&ours, way, key, note, now);
        }
    }

    /// The answer that another memory holds of a key, as this one keeps it.
    fn answer_from(&self, other: &Guard<'_>, key: &Digest) -> Option<Vec<u8>> {
        let theirs = other.table.record(key);
        let (way, _) = other.read(&theirs).find(key)?;
        let (bytes, _) = other.memory.read(&super::answer_record(&theirs, way));
        let known = StoredAnswer::decode(key, &bytes)?;
        let body = if self.table.of_store {
            without_the_calls_own(known.status, &known.body)
        } else {
            known.body
        };
        StoredAnswer { body, ..known }.encode(key)
    }
}
