//! The guard against second sends: what the gateway remembers of every idempotency key, and of every payment that can have one
//! refund alone, over all workers.
//!
//! What is remembered lives in memory that all workers share and change by compare-and-swap, in tables of fixed size: the
//! host's memory has no delete. A [`Bucket`] is the smallest part that is swapped: the entries of all keys that fall into
//! it, without their answers, which stand beside it in places of their own. The decisions here are pure; the filter does the
//! input and output.
//!
//! A key under which money may have moved is never forgotten to make room within its window. Keys are kept as digests, and
//! answers as callers got them: no credential is in either. Times are those of the steady clock.

use std::collections::BTreeMap;

use rand_core::TryRng;
use sha2::{Digest as _, Sha256};

use crate::clock::{Now, Resend};
use crate::memory::{Memory, swap};
use crate::problem::Retry;

mod bucket;
mod open;
mod payments;
mod store;

use bucket::Beside;
pub use bucket::{Bucket, Found};
pub use open::{MAX_LISTED, Open, OpenRefunds, OpenState};
pub use payments::{PaymentBucket, PaymentFound};
pub use store::{Attempt, StoreView, Unreadable, Untold, Verdict};

/// The largest body of an answer that is kept, in bytes: the caller's names at their longest, escaped, and the provider's words.
pub const MAX_ANSWER: usize = 10 * 1024;

/// How long the filter itself may hold a call back before it is sent, in milliseconds: a token, a look at the payment and a
/// signature together take less. A call whose lease has run out may still be sent for so long.
const HELD_BACK_MS: i64 = 60_000;

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

    /// All of it, to be stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of it, for logs.
    pub fn hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// Half of it: enough to know something again where a mistake would take chance and the same key.
    pub fn short(self) -> [u8; 8] {
        let (short, _) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        *short
    }
}

/// The most entries in one bucket.
const WAYS: u32 = 16;

/// The name of the record that holds the [`Table`], and the beginning of all others.
const RECORD: &str = "refund.guard.4";

/// The beginning of a payment's name in a store.
const NAME_OF_PAYMENT: &str = "payment:";

/// What is the same for all workers, and for all configurations that follow one another in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// The number of entries: the first one that was asked for. In a table of another size the entry of a call in flight would
    /// not be found, and the call would be sent again.
    pub entries: u32,
    /// Decides which bucket a key falls into. Nobody outside knows it, so nobody can choose keys that fill one bucket.
    salt: [u8; 16],
    /// Since when keys are remembered, by the steady clock.
    pub since_ms: i64,
    /// Whether it is a store's, where each key has a bucket of its own.
    of_store: bool,
    /// When the store's clock last jumped: what was sent before may have been sent later than it says.
    jumped_ms: i64,
}

impl Table {
    /// A store that gateways share.
    fn of_store(since_ms: i64, jumped_ms: i64) -> Self {
        Table {
            jumped_ms,
            entries: 1,
            salt: [0; 16],
            since_ms,
            of_store: true,
        }
    }

    /// The table in this memory; a new one where there is none yet.
    pub fn open(
        memory: &dyn Memory,
        entries: u32,
        now: Now,
        randomness: &mut impl TryRng,
    ) -> Option<Self> {
        let mut salt = [0; 16];
        randomness.try_fill_bytes(&mut salt).ok()?;
        let new = Table {
            entries,
            salt,
            since_ms: now.steady_ms,
            of_store: false,
            jumped_ms: i64::MIN,
        };
        swap(memory, RECORD, |bytes| match Table::decode(bytes) {
            Some(table) => (table, None),
            None => (new, Some(new.encode())),
        })
    }

    /// The table in this memory, if there is one.
    pub fn find(memory: &dyn Memory) -> Option<Self> {
        Table::decode(&memory.read(RECORD).0)
    }

    fn encode(self) -> Vec<u8> {
        let (entries, since) = (self.entries.to_le_bytes(), self.since_ms.to_le_bytes());
        [&entries[..], &self.salt, &since].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (entries, rest) = bytes.split_first_chunk()?;
        let (salt, rest) = rest.split_first_chunk()?;
        Some(Table {
            entries: u32::from_le_bytes(*entries),
            salt: *salt,
            since_ms: i64::from_le_bytes(rest.try_into().ok()?),
            of_store: false,
            jumped_ms: i64::MIN,
        })
    }

    /// The name of the bucket of a key.
    pub fn record(&self, key: &Digest) -> String {
        if self.of_store {
            return key.hex();
        }
        self.key_bucket(self.bucket(key))
    }

    fn key_bucket(&self, bucket: u64) -> String {
        format!("{RECORD}.{bucket}")
    }

    /// The name of the bucket of a payment.
    fn payment_record(&self, name: &Digest) -> String {
        if self.of_store {
            return format!("{NAME_OF_PAYMENT}{}", name.hex());
        }
        self.payment_bucket(self.bucket(name))
    }

    fn payment_bucket(&self, bucket: u64) -> String {
        format!("{RECORD}.payment.{bucket}")
    }

    fn bucket(&self, digest: &Digest) -> u64 {
        let salted = Digest::of([&self.salt[..], &digest.0]).short();
        u64::from_le_bytes(salted)
            .checked_rem(self.buckets())
            .unwrap_or_default()
    }

    fn buckets(&self) -> u64 {
        u64::from(self.entries.div_ceil(WAYS).max(1))
    }

    fn ways(&self) -> usize {
        usize::try_from(self.entries.clamp(1, WAYS)).unwrap_or(1)
    }
}

/// The name of the place for the answer of a bucket's entry.
fn answer_record(bucket: &str, way: usize) -> String {
    format!("{bucket}.{way}")
}

/// The guard in a memory.
#[derive(Clone, Copy)]
pub struct Guard<'m> {
    /// Where it keeps what it knows.
    pub memory: &'m dyn Memory,
    /// Where in it.
    pub table: Table,
    /// How it is configured.
    pub settings: GuardSettings,
}

impl Guard<'_> {
    /// What is known of earlier sends under a key.
    pub fn standing(&self, key: &Digest, now: Now) -> Option<Standing> {
        self.read(&self.table.record(key))
            .standing(key, now, &self.settings)
    }

    /// Gives a call what it wants. `lease` is a random number.
    pub fn ask(&self, asks: &Asks, lease: u64, now: Now) -> Claim {
        match asks {
            Asks::Nothing => Claim::Unguarded,
            Asks::Claim(question) => self.claim(question, lease, now),
            Asks::Recall(key) => Claim::Recalled(Box::new(self.recall(key, now))),
        }
    }

    /// Asks for a call's key, and for its payment where that can have one refund alone. `lease` is a random number.
    fn claim(&self, question: &Question, lease: u64, now: Now) -> Claim {
        let record = self.table.record(&question.key);
        let found = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let found = bucket.claim(question, lease, now, &self.settings);
            let changed = match found {
                Found::Taken { .. } => true,
                Found::NoRoom => question.resend != Resend::Never,
                Found::InFlight(_) | Found::Reused | Found::Answered { .. } => false,
            };
            (found, changed.then(|| bucket.encode()))
        });
        match found {
            Some(Found::Taken {
                standing,
                resend,
                evicted,
                fresh,
            }) => {
                if let Some(way) = fresh {
                    self.note(&record, way, &question.key, &question.note, now);
                }
                let ticket = Ticket {
                    key: question.key,
                    lease,
                    resend,
                    payment: question.payment.clone(),
                    open_before: standing.is_some(),
                };
                match self.claim_payment(&ticket, now) {
                    Ok(more) => Claim::Taken {
                        ticket,
                        standing,
                        evicted: evicted || more,
                    },
                    Err(claim) => {
                        // Another refund has the payment, or one of this key's own that was forgotten: the key is as it was, and so
                        // is the payment.
                        let settled = Settled::without_answer(End::NotSent);
                        self.settle_key(&ticket, &settled, now);
                        claim
                    }
                }
            }
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
            Some(Found::NoRoom) | None => self.without_room(question),
        }
    }

    /// What is true of a call for whose key there is no room. What ended under it before may have made room for others: its payment,
    /// where a payment can have one refund alone, tells longer.
    fn without_room(&self, question: &Question) -> Claim {
        let may_be_sent = question.payment.iter().any(|name| {
            let (bytes, _) = self.memory.read(&self.table.payment_record(name));
            self.payments(&bytes).may_have_been(name, &question.key)
        });
        if !may_be_sent {
            return Claim::NoRoom;
        }
        let standing = Standing {
            resend: question.resend,
        };
        Claim::Answered {
            answer: None,
            standing,
        }
    }

    /// Takes a payment under all its names; says whether another one was forgotten for it.
    fn claim_payment(&self, ticket: &Ticket, now: Now) -> Result<bool, Claim> {
        let mut evicted = false;
        for (nth, name) in ticket.payment.iter().enumerate() {
            match self.claim_name(name, ticket, now) {
                Ok(more) => evicted |= more,
                Err(claim) => {
                    let taken = ticket.payment.get(..nth).unwrap_or_default();
                    self.settle_payment(ticket, taken, End::NotSent, now);
                    return Err(claim);
                }
            }
        }
        Ok(evicted)
    }

    fn claim_name(&self, name: &Digest, ticket: &Ticket, now: Now) -> Result<bool, Claim> {
        let found = swap(self.memory, &self.table.payment_record(name), |bytes| {
            let mut bucket = self.payments(bytes);
            let found = bucket.claim(name, &ticket.key, now, &self.settings);
            let changed = matches!(found, PaymentFound::Taken { .. });
            (found, changed.then(|| bucket.encode()))
        });
        match found {
            Some(PaymentFound::Taken { evicted }) => Ok(evicted),
            Some(PaymentFound::OfAnother { is_open }) => Err(Claim::PaymentTaken { is_open }),
            // It was refunded under this very key, whose answer is no longer kept.
            Some(PaymentFound::Refunded) => Err(Claim::Answered {
                answer: None,
                standing: Standing {
                    resend: ticket.resend,
                },
            }),
            Some(PaymentFound::NoRoom) | None => Err(Claim::NoRoom),
        }
    }

    /// Takes a payment under names that the provider has shown before anything is sent, for a call whose key is its own. Where
    /// another key has it, the claim says so, and the call must not be sent.
    pub fn claim_more(&self, ticket: &mut Ticket, names: &[Digest], now: Now) -> Result<(), Claim> {
        for name in names {
            if !ticket.payment.contains(name) {
                self.claim_name(name, ticket, now)?;
                ticket.payment.push(*name);
            }
        }
        Ok(())
    }

    /// Tells how a call ended, and with which answer. Says whether the key was still the call's.
    pub fn settle(&self, ticket: &Ticket, settled: &Settled<'_>, now: Now) -> bool {
        // Who looks in between must see the payment taken rather than free: what moved money is told of the payment first, and
        // what did not last.
        let moved = settled.end.moves();
        let payment = settled.payment(ticket);
        if moved {
            self.settle_payment(ticket, &payment, settled.end, now);
        }
        let is_ours = self.settle_key(ticket, settled, now);
        if is_ours && !moved {
            self.settle_payment(ticket, &payment, settled.end, now);
        }
        is_ours
    }

    fn settle_key(&self, ticket: &Ticket, settled: &Settled<'_>, now: Now) -> bool {
        let record = self.table.record(&ticket.key);
        // The place does not change while the key is the call's, so the answer is written once.
        let mut answered = None;
        let done = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let Some(way) = bucket.place_of(ticket) else {
                return (false, None);
            };
            // Another gateway's send has become known meanwhile.
            let is_doubted = bucket.before(ticket).flatten().is_some_and(Past::is_open)
                && !ticket.open_before
                && matches!(settled.end, End::NotSent | End::Free | End::Refused);
            let end = bucket.end_of(ticket, settled.end);
            let end = if is_doubted && end == End::Refused {
                End::Unknown
            } else {
                end
            };
            let told = !matches!(end, End::NotSent | End::Free | End::Absent);
            // The answer goes to its place before the entry says that it is there.
            let answered = *answered
                .get_or_insert_with(|| told && self.put_answer(&record, way, ticket, settled));
            let outcome = bucket::Outcome {
                end,
                answered,
                sent: settled.sent,
                refused: settled.refused,
            };
            let changed = bucket.settle(ticket, outcome, now, &self.settings);
            (changed && !is_doubted, changed.then(|| bucket.encode()))
        });
        done == Some(true)
    }

    fn settle_payment(&self, ticket: &Ticket, names: &[Digest], end: End, now: Now) {
        for name in names {
            // Where it cannot be written it stays taken.
            swap(self.memory, &self.table.payment_record(name), |bytes| {
                let mut bucket = self.payments(bytes);
                let changed = bucket.settle(name, ticket, end, now, &self.settings);
                ((), changed.then(|| bucket.encode()))
            });
        }
    }

    /// Gives a key back, and its payment, that a call has claimed or may have: of which nothing was sent.
    pub fn release(&self, question: &Question, lease: u64, now: Now) {
        let mut ticket = Ticket {
            key: question.key,
            lease,
            resend: question.resend,
            payment: question.payment.clone(),
            open_before: false,
        };
        let bucket = self.read(&self.table.record(&question.key));
        if let Some(before) = bucket.before(&ticket) {
            ticket.open_before = before.is_some_and(Past::is_open);
            self.settle(&ticket, &Settled::without_answer(End::NotSent), now);
        }
    }

    /// Gives a payment back under names that a call has claimed or may have: of which nothing was sent. Not where the key has been
    /// claimed again since.
    pub fn release_names(&self, ticket: &Ticket, names: &[Digest], now: Now) {
        let bucket = self.read(&self.table.record(&ticket.key));
        if bucket
            .lease_of(&ticket.key)
            .is_none_or(|lease| lease == ticket.lease)
        {
            self.settle_payment(ticket, names, End::NotSent, now);
        }
    }

    /// Tells how a call ended whose key is not its own: it was made while the store could not be asked, or the store has forgotten it.
    /// What may have moved money is never hidden by what another call has told. `ended_ms`: when it ended, by the steady clock.
    pub fn settle_beside(
        &self,
        question: &Question,
        ticket: &Ticket,
        settled: &Settled<'_>,
        ended_ms: i64,
        now: Now,
    ) {
        let record = self.table.record(&ticket.key);
        let past = match settled.end {
            // Of what was not sent there is nothing to tell.
            End::NotSent => return,
            End::Free => Past::Free,
            End::Refused => Past::Refused,
            End::Refunded => Past::Refunded,
            End::Pending => Past::Pending,
            End::Unknown | End::Absent => Past::Unknown,
        };
        let bucket = self.read(&record);
        let Some((way, _)) = bucket.known(&ticket.key, now, &self.settings) else {
            if let Claim::Taken { .. } = self.claim(question, ticket.lease, now) {
                self.settle(ticket, settled, now);
            }
            return;
        };
        let answer = self.answer_of(&answer_record(&record, way), ticket, settled);
        let beside = Beside {
            lease: ticket.lease,
            refund: question.refund,
            past,
            answered: answer.is_some(),
            refused: settled.refused,
            resend: question.resend,
            sent_ms: Some(ended_ms),
        };
        self.add(&ticket.key, &beside, answer, now);
        let is_free = self.read(&record).is_free(&ticket.key, now, &self.settings);
        if settled.end.moves() || is_free {
            self.settle_payment(ticket, &settled.payment(ticket), settled.end, now);
        }
    }

    /// Adds to what is known of a key what was sent under it beside, and the answer to that as it is kept.
    fn add(&self, key: &Digest, beside: &Beside, answer: Option<Vec<u8>>, now: Now) {
        let record = self.table.record(key);
        let added = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let added = bucket.add(key, beside, now, &self.settings);
            (added, added.is_some().then(|| bucket.encode()))
        });
        if let (Some(Some((way, true))), Some(answer)) = (added, answer) {
            let _ = self.memory.write(&answer_record(&record, way), &answer, 0);
        }
    }

    /// What is remembered for a look-up of the refund under this key. It takes nothing.
    fn recall(&self, key: &Digest, now: Now) -> Recollection {
        let record = self.table.record(key);
        let bucket = self.read(&record);
        let mut known = bucket.recall(key, now, &self.settings);
        if let Some((way, recalled)) = &mut known
            && recalled.answered
        {
            let (bytes, _) = self.memory.read(&answer_record(&record, *way));
            recalled.answer = StoredAnswer::decode(key, &bytes);
        }
        if let Some((_, recalled)) = &mut known {
            let sent_ms = recalled.sent_ms;
            recalled.sent_ms = sent_ms.map(|sent_ms| sent_ms.max(self.table.jumped_ms));
        }
        Recollection {
            asked: now,
            since_ms: bucket
                .overflowed_ms()
                .max(Some(self.table.since_ms))
                .unwrap_or_default(),
            known: known.map(|(_, recalled)| recalled),
        }
    }

    /// Settles a key by the provider's own word in a look-up, if no send has been made under it since it was recalled. `lease`
    /// is a random number.
    pub fn conclude(
        &self,
        key: &Digest,
        past: &Recollection,
        lease: u64,
        settled: &Settled<'_>,
        now: Now,
    ) -> Concluded {
        let record = self.table.record(key);
        let Some(known) = &past.known else {
            // It was not remembered. It may have been sent with since, with room for it or without.
            let bucket = self.read(&record);
            let is_sent = bucket.recall(key, now, &self.settings).is_some()
                || bucket.overflowed_ms() >= Some(past.asked.steady_ms);
            return match is_sent {
                true => Concluded::Overtaken,
                false => Concluded::Holds,
            };
        };
        // The same word again: the refund's own answer says more. And that there is no refund is what a refusal says.
        let is_told = match (known.past, settled.end) {
            (Past::Refunded, End::Refunded) | (Past::Refused, End::Refused) => {
                known.answer.is_some()
            }
            (Past::Refused, End::Absent) => true,
            _ => false,
        };
        // The key becomes the look-up's own first: so a call that comes in between can neither be told half of it nor have its
        // own answer overwritten.
        let reclaimed = swap(self.memory, &record, |bytes| {
            let mut bucket = self.bucket(bytes);
            let reclaimed = bucket.reclaim(known, lease, now, &self.settings);
            let changed = reclaimed.is_some() && !is_told;
            (reclaimed, changed.then(|| bucket.encode()))
        });
        match reclaimed.flatten() {
            Some(_) if is_told => Concluded::Holds,
            Some(mut ticket) => {
                ticket.payment = settled.names.to_vec();
                self.settle(&ticket, settled, now);
                match (known.past, settled.end) {
                    (Past::Refunded, End::Refused | End::Unknown)
                    | (Past::Refused, End::Refunded | End::Unknown) => Concluded::Changed,
                    _ => Concluded::Settled,
                }
            }
            None => Concluded::Overtaken,
        }
    }

    /// Whether this key is the only one that was ever sent for a payment, as far as it is remembered under any of these names.
    pub fn is_alone(&self, key: &Digest, names: &[Digest]) -> bool {
        let mut known = names.iter().filter_map(|name| {
            let (bytes, _) = self.memory.read(&self.table.payment_record(name));
            self.payments(&bytes).is_alone(name, key)
        });
        // One of them must be known, and none of another key.
        known.next() == Some(true) && known.all(|alone| alone)
    }

    /// Whether another key than this was ever sent for a payment, as far as it is remembered under any of these names.
    pub fn has_another(&self, key: &Digest, names: &[Digest]) -> bool {
        names.iter().any(|name| {
            let (bytes, _) = self.memory.read(&self.table.payment_record(name));
            self.payments(&bytes).is_alone(name, key) == Some(false)
        })
    }

    fn put_answer(&self, record: &str, way: usize, ticket: &Ticket, settled: &Settled<'_>) -> bool {
        let place = answer_record(record, way);
        self.answer_of(&place, ticket, settled)
            .is_some_and(|bytes| self.memory.write(&place, &bytes, 0).is_ok())
    }

    /// A call's answer as it is kept in this place; none where it is too large.
    fn answer_of(&self, place: &str, ticket: &Ticket, settled: &Settled<'_>) -> Option<Vec<u8>> {
        let (known, _) = self.memory.read(place);
        // A refund keeps its id, whatever is said of it later.
        let known = StoredAnswer::decode(&ticket.key, &known).and_then(|known| known.id);
        let (status, body) = settled.answer;
        let answer = StoredAnswer {
            status,
            id: settled.id.map(str::to_owned).or(known),
            body: if self.table.of_store {
                store::without_the_calls_own(status, body)
            } else {
                body.to_owned()
            },
        };
        answer.encode(&ticket.key)
    }

    /// Adds what is in the next buckets to a count, and says whether that was the last of them.
    pub fn count_on(&self, count: &mut Fill, buckets: u64, now: Now) -> bool {
        let end = count.next.saturating_add(buckets).min(self.table.buckets());
        for nth in count.next..end {
            let bucket = self.read(&self.table.key_bucket(nth));
            bucket.count(count, now, &self.settings);
            if !count.looked_for.is_empty() {
                let (bytes, _) = self.memory.read(&self.table.payment_bucket(nth));
                let owned = self.payments(&bytes).owned();
                let found = owned.filter(|(key, _)| count.looked_for.contains(key));
                count.payments.extend(found);
            }
        }
        count.next = end;
        end == self.table.buckets()
    }

    fn read(&self, record: &str) -> Bucket {
        let (bytes, _) = self.memory.read(record);
        self.bucket(&bytes)
    }

    fn bucket(&self, bytes: &[u8]) -> Bucket {
        Bucket::decode(bytes, self.table.ways())
    }

    fn payments(&self, bytes: &[u8]) -> PaymentBucket {
        // A payment can have two names.
        PaymentBucket::decode(bytes, self.table.ways().saturating_mul(2))
    }
}

impl Fill {
    /// The count after this one.
    pub fn followed(&self) -> Self {
        Fill {
            looked_for: self.untold.clone(),
            ..Fill::default()
        }
    }

    /// The keys that the count before found untold, each with the names of its payment.
    pub fn found(&self) -> impl Iterator<Item = (Digest, Vec<Digest>)> {
        self.looked_for.iter().map(|key| {
            let of_key = self.payments.iter().filter(|(owner, _)| owner == key);
            (*key, of_key.map(|(_, name)| *name).collect())
        })
    }
}

/// How full a table is, as far as it has been counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fill {
    /// The first bucket that has not been counted.
    next: u64,
    /// How many keys are remembered.
    pub entries: u64,
    /// How many refunds have not ended, by [`About::provider`]: those of which nothing is known, and
    /// those that are pending.
    pub open: BTreeMap<[u8; 8], (u64, u64)>,
    /// The keys of which a store that gateways share may not know how they stand; none of those in flight.
    pub untold: Vec<Digest>,
    /// The keys that the last count found so: the names of their payments are collected.
    looked_for: Vec<Digest>,
    /// These, each after its key.
    payments: Vec<(Digest, Digest)>,
}

/// What a refund is about: enough to know it again in a provider's word on it. Noughts stand for what was not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct About {
    /// The configured provider, by its name.
    pub provider: [u8; 8],
    /// The payment by its id, at its merchant.
    pub id: [u8; 8],
    /// The payment by its reference, at its merchant.
    pub reference: [u8; 8],
    /// The amount; noughts for a full refund.
    pub amount: [u8; 8],
}

/// What a look-up has of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recollection {
    /// When it was asked for: before the provider was.
    pub asked: Now,
    /// Since when all keys are remembered, by the steady clock.
    pub since_ms: i64,
    /// What is remembered of the key.
    pub known: Option<Recalled>,
}

impl Recollection {
    /// For how many more milliseconds a send under the key could still arrive, if one may take so long; none while one is in
    /// flight, or if none can.
    pub fn unsettled_ms(&self, settle_ms: i64) -> Option<i64> {
        let last_ms = match &self.known {
            Some(known) => known.sent_ms,
            None => Some(self.since_ms),
        };
        let settled_ms = last_ms?.saturating_add(settle_ms);
        let left_ms = settled_ms.saturating_sub(self.asked.steady_ms);
        (left_ms > 0).then_some(left_ms)
    }
}

/// What is remembered of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled {
    /// The caller's key.
    pub key: Digest,
    /// Of the last call with it.
    pub lease: u64,
    /// How its refund stands.
    pub past: Past,
    /// Whether a call with it is in flight.
    pub in_flight: bool,
    /// The last moment at which a send under it may have left, by the steady clock; none where none has.
    pub sent_ms: Option<i64>,
    /// Whether the provider has refused a send under it.
    pub refused: bool,
    /// Whether a send under it carried the caller's `reference`.
    pub referenced: bool,
    /// What the refund is about.
    pub about: About,
    /// The last answer.
    pub answer: Option<StoredAnswer>,
    answered: bool,
}

/// How the refund under a key stands, as far as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// No send has moved money.
    Free,
    /// The provider took it and has not finished.
    Pending,
    /// It is not known whether money moved.
    Unknown,
    /// The same, and since then the provider has proved that there is no refund.
    Absent,
    /// The provider refunded.
    Refunded,
    /// The provider's own no.
    Refused,
}

/// What the guard is asked about one call.
#[derive(Debug, Clone)]
pub struct Question {
    /// The caller's key.
    pub key: Digest,
    /// The refund, as parsed, with its merchant.
    pub refund: Digest,
    /// What it is about.
    pub about: About,
    /// The names of its payment, where a payment can have one refund alone.
    pub payment: Vec<Digest>,
    /// Whether it carries the caller's `reference`.
    pub referenced: bool,
    /// Until when a second send cannot refund twice, if this is the first.
    pub resend: Resend,
    /// What a list of open refunds shows of it: an object in JSON.
    pub note: String,
}

/// That a key is this call's until it is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The caller's key.
    pub key: Digest,
    /// Tells this call from a later one under the same key.
    pub lease: u64,
    /// Until when a second send cannot refund twice, counted from the first.
    pub resend: Resend,
    /// The names of the payment that goes with the key.
    pub payment: Vec<Digest>,
    /// Whether an earlier send under the key may have moved money.
    pub open_before: bool,
}

/// What is known of the sends under a key before this one, where one of them may have moved money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Until when a second send cannot refund twice, counted from the first.
    pub resend: Resend,
}

impl Standing {
    /// What a caller may do who must be told that the outcome is unknown.
    pub fn retry(&self, now: Now) -> Retry {
        self.resend.retry(now)
    }
}

/// What a call wants of the guard.
#[derive(Debug, Clone)]
pub enum Asks {
    /// Nothing.
    Nothing,
    /// Its key.
    Claim(Question),
    /// What is remembered of the key that a look-up names.
    Recall(Digest),
}

impl Asks {
    /// The key that it is about.
    pub fn key(&self) -> Option<&Digest> {
        match self {
            Asks::Nothing => None,
            Asks::Claim(question) => Some(&question.key),
            Asks::Recall(key) => Some(key),
        }
    }
}

/// What a call may do by the word of the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The guard is off, or was not asked for anything: nothing is remembered.
    Unguarded,
    /// There is no place left for this key.
    NoRoom,
    /// Go on: the key is this call's.
    Taken {
        /// To settle it with.
        ticket: Ticket,
        /// What is known of earlier sends.
        standing: Option<Standing>,
        /// Whether another key was forgotten for it within its window.
        evicted: bool,
    },
    /// The same call is in flight.
    InFlight(Standing),
    /// The key was used with another refund.
    Reused,
    /// The payment can have one refund alone, and another key has it.
    PaymentTaken {
        /// Whether that one has not ended.
        is_open: bool,
    },
    /// The store that gateways share cannot be asked: this is the word of the process alone.
    Alone(Box<Claim>),
    /// The same, and the process's own word is not enough. Or a look-up asks, to which it says nothing.
    Unavailable,
    /// Nothing is claimed: this is a look-up, and this is what is remembered of the key that it names.
    Recalled(Box<Recollection>),
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
    /// Certainly nothing was sent by this call.
    NotSent,
    /// What was sent certainly moved no money, and the same call can be made again.
    Free,
    /// The provider took the refund and has not finished.
    Pending,
    /// It is not known whether money moved.
    Unknown,
    /// The provider refunded.
    Refunded,
    /// The provider's own no: no money moved, and none will under this key.
    Refused,
    /// The provider has proved that there is no refund under this key, at a time when none could still arrive. The same call
    /// can be made again; what may have moved money before is as unknown as it was.
    Absent,
}

/// What is told to the guard when a call ends.
#[derive(Debug, Clone, Copy)]
pub struct Settled<'a> {
    /// How it ended.
    pub end: End,
    /// The answer: status and body.
    pub answer: (u16, &'a str),
    /// The provider's id of the refund, where it has told one.
    pub id: Option<&'a str>,
    /// Whether something was sent by this call: not by a look-up.
    pub sent: bool,
    /// Whether the provider refused the refund, for certain or not.
    pub refused: bool,
    /// What the provider has called the payment, besides the names that the caller knew.
    pub names: &'a [Digest],
}

impl End {
    /// Whether money may have moved.
    fn moves(self) -> bool {
        !matches!(self, End::NotSent | End::Free | End::Refused)
    }
}

impl Settled<'_> {
    /// All names of the payment.
    fn payment(&self, ticket: &Ticket) -> Vec<Digest> {
        let all = ticket.payment.iter().chain(self.names);
        all.copied().collect()
    }

    fn without_answer(end: End) -> Self {
        Settled {
            end,
            answer: (0, ""),
            id: None,
            sent: false,
            refused: false,
            names: &[],
        }
    }
}

/// What became of a look-up's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concluded {
    /// It holds, and changes nothing: nothing is remembered of the key, or the same final word.
    Holds,
    /// The key is settled by it.
    Settled,
    /// The same, and the provider has changed its final word.
    Changed,
    /// It no longer holds: the key has been sent with since, or is being sent with.
    Overtaken,
}

/// An answer as it was given, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The provider's id of the refund, as far as any answer has told it.
    pub id: Option<String>,
    /// The body.
    pub body: String,
}

impl StoredAnswer {
    /// The bytes to be kept in the place of this key's answer; none where the answer is too large to be kept.
    pub fn encode(&self, key: &Digest) -> Option<Vec<u8>> {
        let id = self.id.as_deref().unwrap_or_default();
        let length = u8::try_from(id.len()).ok()?;
        (self.body.len() <= MAX_ANSWER).then(|| {
            let status = self.status.to_le_bytes();
            let parts = [&key.0[..], &status, &[length], id.as_bytes()];
            [&parts.concat(), self.body.as_bytes()].concat()
        })
    }

    /// The answer of this key, if it is what these bytes hold: the place may have become another key's.
    pub fn decode(key: &Digest, bytes: &[u8]) -> Option<Self> {
        let (status, rest) = bytes.strip_prefix(&key.0)?.split_first_chunk()?;
        let (length, rest) = rest.split_first()?;
        let (id, body) = rest.split_at_checked(usize::from(*length))?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        Some(StoredAnswer {
            status: u16::from_le_bytes(*status),
            id: text(id).map(|id| Some(id).filter(|id| !id.is_empty()))?,
            body: text(body)?,
        })
    }
}
