//! The entries of the keys that fall into one bucket.

use super::{
    About, Digest, End, Fill, GuardSettings, HELD_BACK_MS, OpenState, Past, Question, Recalled,
    Standing, Ticket,
};
use crate::clock::{Now, Resend};

/// What the guard knows of a key in its bucket, once asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is no place left.
    NoRoom,
    /// The key is the call's.
    Taken {
        /// What is known of earlier sends.
        standing: Option<Standing>,
        /// Until when a second send cannot refund twice, counted from the first.
        resend: Resend,
        /// Whether another key was forgotten for it within its window.
        evicted: bool,
        /// The entry's place, where nothing was open under the key.
        fresh: Option<usize>,
    },
    /// The same call is in flight.
    InFlight(Standing),
    /// The key was used with another refund.
    Reused,
    /// The same call has been answered; the answer stands in the place of this entry, if there is one.
    Answered {
        /// The entry's place in the bucket; none where it has no answer.
        way: Option<usize>,
        /// What is known of the sends.
        standing: Standing,
    },
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Whether its answer stands in the entry's place now.
    pub answered: bool,
    /// Whether something was sent by this call.
    pub sent: bool,
    /// Whether the provider refused the refund, for certain or not.
    pub refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In flight, and how the key stood before; none where it was new.
    InFlight(Option<Past>),
    Rests(Past),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    key: Digest,
    refund: Digest,
    about: About,
    state: State,
    /// Whether the last answer under this key stands in its place.
    answered: bool,
    refused: bool,
    referenced: bool,
    lease: u64,
    resend: Resend,
    /// The last moment at which a send may have left: of those that have ended.
    sent_ms: Option<i64>,
    /// In flight: the end of the lease; else the end of the window.
    until_ms: i64,
    /// Whether it has changed since a store that gateways share was last seen to hold the same. In a store itself, never.
    untold: bool,
}

/// Sends under a key that its entry does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beside {
    /// Of the call that made them.
    pub lease: u64,
    /// The refund that was sent.
    pub refund: Digest,
    /// What came of it.
    pub past: Past,
    /// Whether there is an answer to it.
    pub answered: bool,
    /// Whether its provider has refused.
    pub refused: bool,
    /// Until when a second send of it cannot refund twice.
    pub resend: Resend,
    /// The last moment at which one may have left.
    pub sent_ms: Option<i64>,
}

impl Entry {
    /// Whether it is of the call with this lease.
    pub(super) fn is_of(&self, lease: u64) -> bool {
        self.lease == lease
    }

    /// Whether both are of one call in flight, over the same past.
    pub(super) fn is_same_call(&self, other: &Entry) -> bool {
        matches!(self.state, State::InFlight(_))
            && self.state == other.state
            && other.is_of(self.lease)
    }

    /// How it ended; none while it is in flight.
    pub(super) fn past(&self) -> Option<Past> {
        match self.state {
            State::InFlight(_) => None,
            State::Rests(past) => Some(past),
        }
    }

    /// Whether its time is over: the lease of a call in flight, the window of another.
    pub(super) fn is_over(&self, now: Now) -> bool {
        now.steady_ms >= self.until_ms
    }

    /// Whether it knows how the call ended that this other entry has in flight.
    pub(super) fn ends(&self, other: &Entry) -> bool {
        let (is_over, is_awaited) = (
            matches!(self.state, State::Rests(_)),
            matches!(other.state, State::InFlight(_)),
        );
        is_over && is_awaited && other.is_of(self.lease)
    }

    /// What the entry knows, for another one that does not.
    pub(super) fn as_beside(self, now: Now, settings: &GuardSettings) -> Option<Beside> {
        let entry = self.at(now, settings)?;
        let (past, sent_ms) = match entry.state {
            // No more than if its lease had run out.
            State::InFlight(_) => (Past::Unknown, Some(entry.may_be_sent_until_ms())),
            State::Rests(past) => (past, entry.sent_ms),
        };
        Some(Beside {
            lease: entry.lease,
            refund: entry.refund,
            past,
            answered: entry.answered && matches!(entry.state, State::Rests(_)),
            refused: entry.refused,
            resend: entry.resend,
            sent_ms,
        })
    }
}

/// Key, refund, about, state, flags, lease, the kind of [`Resend`] and its two times, two more times.
const ENTRY_BYTES: usize = 16 + 16 + 32 + 1 + 1 + 8 + 1 + 8 + 8 + 8 + 8;

const ANSWERED: u8 = 1;
const REFUSED: u8 = 2;
const REFERENCED: u8 = 4;
const SENT: u8 = 8;
const UNTOLD: u8 = 16;

/// Added to the number of a [`Past`] for a call in flight after it.
const IN_FLIGHT: u8 = 16;
const NEW: u8 = 15;

fn past_number(past: Past) -> u8 {
    match past {
        Past::Free => 0,
        Past::Pending => 1,
        Past::Unknown => 2,
        Past::Absent => 3,
        Past::Refunded => 4,
        Past::Refused => 5,
    }
}

fn past_of(number: u8) -> Option<Past> {
    [
        Past::Free,
        Past::Pending,
        Past::Unknown,
        Past::Absent,
        Past::Refunded,
        Past::Refused,
    ]
    .into_iter()
    .find(|past| past_number(*past) == number)
}

impl Past {
    /// Whether money may have moved, and it is not known.
    pub(super) fn is_open(self) -> bool {
        match self {
            Past::Pending | Past::Unknown | Past::Absent => true,
            Past::Free | Past::Refunded | Past::Refused => false,
        }
    }
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.key.0);
        out.extend(self.refund.0);
        out.extend(self.about.provider);
        out.extend(self.about.id);
        out.extend(self.about.reference);
        out.extend(self.about.amount);
        out.push(match self.state {
            State::Rests(past) => past_number(past),
            State::InFlight(None) => IN_FLIGHT | NEW,
            State::InFlight(Some(past)) => IN_FLIGHT | past_number(past),
        });
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out.push(
            flag(self.answered, ANSWERED)
                | flag(self.refused, REFUSED)
                | flag(self.referenced, REFERENCED)
                | flag(self.sent_ms.is_some(), SENT)
                | flag(self.untold, UNTOLD),
        );
        out.extend(self.lease.to_le_bytes());
        encode_resend(self.resend, out);
        out.extend(self.sent_ms.unwrap_or_default().to_le_bytes());
        out.extend(self.until_ms.to_le_bytes());
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        let (key, refund) = (Digest(take(&mut rest)?), Digest(take(&mut rest)?));
        let about = About {
            provider: take(&mut rest)?,
            id: take(&mut rest)?,
            reference: take(&mut rest)?,
            amount: take(&mut rest)?,
        };
        let [state, flags] = take(&mut rest)?;
        let lease = u64::from_le_bytes(take(&mut rest)?);
        let resend = take_resend(&mut rest)?;
        let (sent_ms, until_ms) = (take_time(&mut rest)?, take_time(&mut rest)?);
        Some(Entry {
            key,
            refund,
            about,
            state: match state.checked_sub(IN_FLIGHT) {
                None => State::Rests(past_of(state)?),
                Some(NEW) => State::InFlight(None),
                Some(past) => State::InFlight(Some(past_of(past)?)),
            },
            answered: flags & ANSWERED != 0,
            refused: flags & REFUSED != 0,
            referenced: flags & REFERENCED != 0,
            lease,
            resend,
            sent_ms: (flags & SENT != 0).then_some(sent_ms),
            until_ms,
            untold: flags & UNTOLD != 0,
        })
    }

    /// The entry as it is now. Of a lease that has run out nothing more is expected. What is final is forgotten when its window
    /// closes; what is open stays until its place is needed.
    fn at(mut self, now: Now, settings: &GuardSettings) -> Option<Self> {
        if matches!(self.state, State::InFlight(_)) && now.steady_ms >= self.until_ms {
            self.state = State::Rests(Past::Unknown);
            // Whatever was answered to the sends before is not the answer to this one.
            self.answered = false;
            self.sent_ms = Some(self.may_be_sent_until_ms());
            self.until_ms = self.until_ms.saturating_add(settings.window_ms);
        }
        let stays = match self.state {
            State::InFlight(_) => true,
            State::Rests(past) => past.is_open() || now.steady_ms < self.until_ms,
        };
        stays.then_some(self)
    }

    /// Until when a call whose lease runs out may still wait inside the filter, and be sent.
    fn may_be_sent_until_ms(&self) -> i64 {
        self.until_ms.saturating_add(HELD_BACK_MS)
    }

    /// Where the sends under this key stand, if one of them may have moved money.
    fn standing(&self) -> Option<Standing> {
        let clean = matches!(self.state, State::Rests(Past::Free | Past::Refused));
        (!clean).then_some(Standing {
            resend: self.resend,
        })
    }

    /// How its refund is open, if it is. What the provider has proved to be absent needs nobody any
    /// more.
    fn open(&self) -> Option<OpenState> {
        let (State::Rests(past) | State::InFlight(Some(past))) = self.state else {
            return None;
        };
        match past {
            Past::Unknown => Some(OpenState::Unknown),
            Past::Pending => Some(OpenState::Pending),
            Past::Free | Past::Absent | Past::Refunded | Past::Refused => None,
        }
    }

    /// Which entry makes room first; none for one that never does.
    fn makes_room(&self, now: Now) -> Option<(u8, i64)> {
        let State::Rests(past) = self.state else {
            return None;
        };
        let order = match past {
            Past::Free => 0,
            Past::Refunded | Past::Refused => 1,
            Past::Pending => 2,
            Past::Unknown | Past::Absent if now.steady_ms >= self.until_ms => 3,
            Past::Unknown | Past::Absent => return None,
        };
        Some((order, self.until_ms))
    }
}

/// Takes the next bytes off.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn take_time(rest: &mut &[u8]) -> Option<i64> {
    Some(i64::from_le_bytes(take(rest)?))
}

fn encode_resend(resend: Resend, out: &mut Vec<u8>) {
    let (kind, end) = match resend {
        Resend::Never => (0, None),
        Resend::Until(end) => (1, Some(end)),
        Resend::Always => (2, None),
    };
    out.push(kind);
    out.extend(end.map_or(0, |end| end.unix_ms).to_le_bytes());
    out.extend(end.map_or(0, |end| end.steady_ms).to_le_bytes());
}

fn take_resend(rest: &mut &[u8]) -> Option<Resend> {
    let [kind] = take(rest)?;
    let end = Now {
        unix_ms: take_time(rest)?,
        steady_ms: take_time(rest)?,
    };
    match kind {
        0 => Some(Resend::Never),
        1 => Some(Resend::Until(end)),
        2 => Some(Resend::Always),
        _ => None,
    }
}

/// That calls went to their providers for which there was no room here: any key may be one of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Overflow {
    /// Until when a second send of the first of them cannot refund twice.
    resend: Resend,
    /// When the last of them came.
    last_ms: i64,
}

/// Overflow: the kind of [`Resend`] and its two times, another time.
const OVERFLOW_BYTES: usize = 1 + 8 + 8 + 8;

/// How many keys one count names at most of which a store may not know.
const MOST_UNTOLD: usize = 256;

/// The entries of one bucket.
#[derive(Debug, PartialEq, Eq)]
pub struct Bucket {
    overflow: Option<Overflow>,
    places: Vec<Option<Entry>>,
}

impl Bucket {
    /// Reads a stored bucket of so many places. Nothing, or nothing readable, is an empty one.
    pub fn decode(bytes: &[u8], ways: usize) -> Self {
        let (mut head, rest) = bytes.split_at_checked(OVERFLOW_BYTES).unwrap_or((&[], &[]));
        let overflow = take_resend(&mut head)
            .zip(take_time(&mut head))
            .map(|(resend, last_ms)| Overflow { resend, last_ms });
        let (chunks, _) = rest.as_chunks::<ENTRY_BYTES>();
        let mut places: Vec<_> = chunks.iter().map(Entry::decode).collect();
        places.resize(ways, None);
        Bucket { overflow, places }
    }

    /// The bucket to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let size = self.places.len().saturating_mul(ENTRY_BYTES);
        let mut out = Vec::with_capacity(size.saturating_add(OVERFLOW_BYTES));
        match self.overflow {
            Some(overflow) => {
                encode_resend(overflow.resend, &mut out);
                out.extend(overflow.last_ms.to_le_bytes());
            }
            // 0xff is the kind of no Resend.
            None => out.resize(OVERFLOW_BYTES, 0xff),
        }
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
        self.overflow.is_none() && self.places.iter().all(Option::is_none)
    }

    /// Where the sends under a key stand, if one of them may have moved money: a look that takes nothing.
    pub fn standing(&self, key: &Digest, now: Now, settings: &GuardSettings) -> Option<Standing> {
        let entry = self
            .find(key)
            .and_then(|(_, entry)| entry.at(now, settings));
        entry
            .and_then(|entry| entry.standing())
            .or_else(|| self.doubt(now, settings))
    }

    /// What is known of sends under a key that had no room here, if there were such.
    fn doubt(&self, now: Now, settings: &GuardSettings) -> Option<Standing> {
        let Overflow { resend, last_ms } = self.overflow?;
        let is_over = now.steady_ms >= last_ms.saturating_add(settings.window_ms);
        (!is_over).then_some(Standing { resend })
    }

    /// The same for a call that is about to be sent. Those that had no room may have been for other providers: what its own cannot
    /// take twice, it cannot take twice now.
    fn doubt_of(&self, fresh: &mut Entry, now: Now, settings: &GuardSettings) -> Option<Standing> {
        let before = self.doubt(now, settings)?;
        fresh.resend = fresh.resend.earlier(before.resend);
        Some(Standing {
            resend: fresh.resend,
        })
    }

    /// Adds what is here to a count.
    pub fn count(&self, count: &mut Fill, now: Now, settings: &GuardSettings) {
        let entries = self.places.iter().flatten();
        for entry in entries.filter_map(|entry| entry.at(now, settings)) {
            count.entries = count.entries.saturating_add(1);
            if entry.untold
                && matches!(entry.state, State::Rests(_))
                && count.untold.len() < MOST_UNTOLD
            {
                count.untold.push(entry.key);
            }
            let Some(open) = entry.open() else { continue };
            let (unknown, pending) = count.open.entry(entry.about.provider).or_default();
            let count = match open {
                OpenState::Unknown => unknown,
                OpenState::Pending => pending,
            };
            *count = count.saturating_add(1);
        }
    }

    /// The keys of the refunds that are open, each with its place.
    pub fn open(
        &self,
        now: Now,
        settings: &GuardSettings,
    ) -> impl Iterator<Item = (usize, Digest, OpenState)> {
        let places = self.places.iter().enumerate();
        places.filter_map(move |(way, place)| {
            let entry = (*place)?.at(now, settings)?;
            Some((way, entry.key, entry.open()?))
        })
    }

    /// When the last call came for which there was no room.
    pub fn overflowed_ms(&self) -> Option<i64> {
        self.overflow.map(|overflow| overflow.last_ms)
    }

    /// Notes that a call goes out for which there is no room.
    fn overflow(&mut self, resend: Resend, now: Now, settings: &GuardSettings) {
        let before = self.doubt(now, settings);
        self.overflow = Some(Overflow {
            resend: before.map_or(resend, |before| resend.earlier(before.resend)),
            last_ms: now.steady_ms,
        });
    }

    /// The entry of a key as it is stored.
    pub(super) fn entry(&self, key: &Digest) -> Option<Entry> {
        self.find(key).map(|(_, entry)| entry)
    }

    /// The same, and its place, where it still counts.
    pub(super) fn known(
        &self,
        key: &Digest,
        now: Now,
        settings: &GuardSettings,
    ) -> Option<(usize, Entry)> {
        let found = self.find(key);
        found.filter(|(_, entry)| entry.at(now, settings).is_some())
    }

    /// The lease of a key's last call.
    pub(super) fn lease_of(&self, key: &Digest) -> Option<u64> {
        self.entry(key).map(|entry| entry.lease)
    }

    /// Whether a key's calls are over, and none of them may have moved money.
    pub(super) fn is_free(&self, key: &Digest, now: Now, settings: &GuardSettings) -> bool {
        let entry = self.entry(key).and_then(|entry| entry.at(now, settings));
        entry.is_none_or(|entry| entry.standing().is_none())
    }

    /// How a key stood before this call, whose key it still is; none where it is not.
    pub(super) fn before(&self, ticket: &Ticket) -> Option<Option<Past>> {
        let entry = self.entry(&ticket.key)?;
        match entry.state {
            State::InFlight(before) if entry.lease == ticket.lease => Some(before),
            State::InFlight(_) | State::Rests(_) => None,
        }
    }

    /// The entry of a key, where a store that gateways share may not know it as it is.
    pub(super) fn untold(&self, key: &Digest, now: Now, settings: &GuardSettings) -> Option<Entry> {
        let entry = self.entry(key).filter(|entry| entry.untold)?;
        entry.at(now, settings).map(|_| entry)
    }

    /// Adds what was sent under a key beside the calls that its entry counts. Gives the key's place, and whether its answer is the
    /// key's from now on; none where nothing changes.
    pub(super) fn add(
        &mut self,
        key: &Digest,
        beside: &Beside,
        now: Now,
        settings: &GuardSettings,
    ) -> Option<(usize, bool)> {
        let (way, stored) = self.find(key)?;
        let mut entry = stored.at(now, settings)?;
        let past = match beside.past {
            Past::Refunded if beside.answered => Past::Refunded,
            Past::Pending => Past::Pending,
            Past::Refunded | Past::Unknown | Past::Absent => Past::Unknown,
            // What it did not move is no news.
            Past::Free | Past::Refused => return None,
        };
        let mut answered = false;
        match (entry.state, past) {
            // A proof is of the sends before it, and when it was given is not known here.
            (State::InFlight(Some(Past::Pending | Past::Unknown)), _) => {}
            (State::InFlight(_), _) => entry.state = State::InFlight(Some(Past::Unknown)),
            (State::Rests(Past::Refunded), _) => return None,
            // Another refund's: of this one nothing is known by that key any more.
            (State::Rests(_), _) if entry.refund != beside.refund => {
                entry.state = State::Rests(Past::Unknown);
                entry.answered = false;
            }
            (State::Rests(Past::Pending | Past::Unknown), Past::Unknown) => {}
            (State::Rests(_), past) => {
                entry.state = State::Rests(past);
                answered = beside.answered;
                entry.answered = answered;
            }
        }
        entry.refused |= beside.refused;
        entry.resend = entry.resend.earlier(beside.resend);
        entry.sent_ms = entry.sent_ms.max(beside.sent_ms);
        if entry == stored {
            return None;
        }
        // A look-up that began before has not seen it.
        if matches!(entry.state, State::Rests(_)) {
            entry.lease = beside.lease;
        }
        entry.untold = true;
        self.put(way, entry);
        Some((way, answered))
    }

    /// Makes this the entry of a key, or takes the key's away. Gives its place, and whether it is new; none where it has none.
    pub(super) fn adopt(
        &mut self,
        key: &Digest,
        entry: Option<Entry>,
        now: Now,
        settings: &GuardSettings,
    ) -> Option<(usize, bool)> {
        let known = self.find(key).map(|(way, _)| way);
        let way = match (known, entry) {
            (Some(way), _) => way,
            (None, Some(_)) => {
                let (way, _) = self.room(now)?;
                // A copy takes no room of what the store has not heard.
                let forgotten = self.places.get(way).copied().flatten();
                let forgotten = forgotten.and_then(|entry| entry.at(now, settings));
                if forgotten.is_some_and(|entry| entry.untold && entry.standing().is_some()) {
                    return None;
                }
                way
            }
            (None, None) => return None,
        };
        if let Some(place) = self.places.get_mut(way) {
            *place = entry;
        }
        entry.map(|_| (way, known.is_none()))
    }

    /// Says of all entries that a store knows them as they are.
    pub(super) fn is_told(&mut self) {
        for entry in self.places.iter_mut().flatten() {
            entry.untold = false;
        }
    }

    /// Adds so many milliseconds to all times of the steady clock.
    pub(super) fn move_by(&mut self, milliseconds: i64) {
        let moved = |at: i64| at.saturating_add(milliseconds);
        if let Some(overflow) = &mut self.overflow {
            overflow.last_ms = moved(overflow.last_ms);
            overflow.resend = overflow.resend.moved(milliseconds);
        }
        for entry in self.places.iter_mut().flatten() {
            entry.resend = entry.resend.moved(milliseconds);
            entry.sent_ms = entry.sent_ms.map(moved);
            entry.until_ms = moved(entry.until_ms);
        }
    }

    /// What a call may do. After [`Found::Taken`] the bucket has changed: only who stores it may go on. So it has after
    /// [`Found::NoRoom`] where the provider has keys of its own: such a call goes on without a place.
    pub fn claim(
        &mut self,
        question: &Question,
        lease: u64,
        now: Now,
        settings: &GuardSettings,
    ) -> Found {
        // What is over leaves; the others stay as they were stored, since their calls may still end.
        for place in &mut self.places {
            *place = place.filter(|entry| entry.at(now, settings).is_some());
        }
        let mut fresh = Entry {
            key: question.key,
            refund: question.refund,
            about: question.about,
            state: State::InFlight(None),
            answered: false,
            refused: false,
            referenced: question.referenced,
            lease,
            resend: question.resend,
            sent_ms: None,
            until_ms: now.steady_ms.saturating_add(settings.lease_ms),
            untold: true,
        };
        let known = self.find(&question.key).and_then(|(way, entry)| {
            let entry = entry.at(now, settings)?;
            Some((way, entry))
        });
        let Some((way, entry)) = known else {
            let Some((way, evicted)) = self.room(now) else {
                if question.resend != Resend::Never {
                    self.overflow(question.resend, now, settings);
                }
                return Found::NoRoom;
            };
            let standing = self.doubt_of(&mut fresh, now, settings);
            // Nobody has been told how that one ends: from now on its key is one that has no room.
            let forgotten = self.places.get(way).copied().flatten();
            if let Some(pending) = forgotten.filter(|entry| evicted && entry.open().is_some()) {
                self.overflow(pending.resend, now, settings);
            }
            self.put(way, fresh);
            return Found::Taken {
                standing,
                resend: fresh.resend,
                evicted,
                fresh: Some(way),
            };
        };
        let standing = Standing {
            resend: entry.resend,
        };
        let past = match entry.state {
            State::Rests(Past::Free) => {
                // The provider may have noted the key at a send that came to nothing. Never longer than this call's own allows:
                // the one before may have been for another provider.
                if entry.resend.is_safe(now) {
                    fresh.resend = fresh.resend.earlier(entry.resend);
                }
                fresh.state = State::InFlight(Some(Past::Free));
                fresh.refused = entry.refused && entry.refund == fresh.refund;
                fresh.sent_ms = entry.sent_ms;
                let standing = self.doubt_of(&mut fresh, now, settings);
                self.put(way, fresh);
                return Found::Taken {
                    standing,
                    resend: fresh.resend,
                    evicted: false,
                    fresh: Some(way),
                };
            }
            _ if entry.refund != question.refund => return Found::Reused,
            State::InFlight(_) => return Found::InFlight(standing),
            // No send under this key can still arrive, so none is a second one, whatever the provider has forgotten.
            State::Rests(Past::Absent) => Past::Absent,
            State::Rests(open @ (Past::Pending | Past::Unknown)) if entry.resend.is_safe(now) => {
                open
            }
            State::Rests(Past::Pending | Past::Unknown | Past::Refunded | Past::Refused) => {
                return Found::Answered {
                    way: entry.answered.then_some(way),
                    standing,
                };
            }
        };
        fresh.state = State::InFlight(Some(past));
        fresh.answered = entry.answered;
        fresh.refused = entry.refused;
        fresh.sent_ms = entry.sent_ms;
        if past != Past::Absent || entry.resend.is_safe(now) {
            fresh.resend = entry.resend;
        }
        self.put(way, fresh);
        Found::Taken {
            standing: Some(Standing {
                resend: fresh.resend,
            }),
            resend: fresh.resend,
            evicted: false,
            fresh: None,
        }
    }

    /// What is remembered of a key, and its place: a look that takes nothing.
    pub fn recall(
        &self,
        key: &Digest,
        now: Now,
        settings: &GuardSettings,
    ) -> Option<(usize, Recalled)> {
        let (way, entry) = self.find(key)?;
        let entry = entry.at(now, settings)?;
        let (past, in_flight) = match entry.state {
            State::Rests(past) => (past, false),
            State::InFlight(past) => (past.unwrap_or(Past::Free), true),
        };
        let recalled = Recalled {
            key: entry.key,
            lease: entry.lease,
            past,
            in_flight,
            sent_ms: entry.sent_ms,
            refused: entry.refused,
            referenced: entry.referenced,
            about: entry.about,
            answer: None,
            answered: entry.answered,
        };
        Some((way, recalled))
    }

    /// Makes a key that was recalled a look-up's own, to be settled; none where it is no longer as it was. After it the bucket
    /// has changed.
    pub fn reclaim(
        &mut self,
        recalled: &Recalled,
        lease: u64,
        now: Now,
        settings: &GuardSettings,
    ) -> Option<Ticket> {
        let (way, entry) = self.find(&recalled.key)?;
        let mut entry = entry.at(now, settings)?;
        let State::Rests(past) = entry.state else {
            return None;
        };
        if entry.lease != recalled.lease || recalled.in_flight || past != recalled.past {
            return None;
        }
        entry.state = State::InFlight(Some(past));
        entry.lease = lease;
        entry.until_ms = now.steady_ms.saturating_add(settings.lease_ms);
        entry.untold = true;
        self.put(way, entry);
        Some(Ticket {
            key: entry.key,
            lease,
            resend: entry.resend,
            payment: Vec::new(),
            open_before: past.is_open(),
        })
    }

    /// The entry of a key as it is stored, and its place.
    pub(super) fn find(&self, key: &Digest) -> Option<(usize, Entry)> {
        let mut places = self.places.iter().enumerate();
        places.find_map(|(way, place)| Some((way, place.filter(|entry| entry.key == *key)?)))
    }

    /// The place for a key that is not there, and whether another one is forgotten for it: a free one, else that of what may
    /// be forgotten, final entries before pending ones, and of these the oldest.
    fn room(&self, now: Now) -> Option<(usize, bool)> {
        if let Some(free) = self.places.iter().position(Option::is_none) {
            return Some((free, false));
        }
        let places = self.places.iter().flatten().enumerate();
        let first = places.filter_map(|(way, entry)| Some((entry.makes_room(now)?, way)));
        first
            .min()
            .map(|((order, until_ms), way)| (way, order > 0 && now.steady_ms < until_ms))
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
    pub fn end_of(&mut self, ticket: &Ticket, end: End) -> End {
        let taken = self.mine(ticket).is_some_and(|(_, entry)| {
            entry.state == State::InFlight(Some(Past::Pending))
                && entry.answered
                && entry.resend == Resend::Always
        });
        if taken && end == End::Unknown {
            End::Free
        } else {
            end
        }
    }

    /// Settles a call. Says whether the bucket has changed: not where the key has become another call's since.
    pub fn settle(
        &mut self,
        ticket: &Ticket,
        outcome: Outcome,
        now: Now,
        settings: &GuardSettings,
    ) -> bool {
        let Some((way, entry)) = self.mine(ticket) else {
            return false;
        };
        let before = match entry.state {
            State::InFlight(before) => before,
            State::Rests(_) => None,
        };
        let open = before.filter(|past| past.is_open());
        let past = match (outcome.end, open) {
            (End::NotSent, _) => match before {
                Some(past) => past,
                // It costs nothing to have asked.
                None => {
                    if let Some(place) = self.places.get_mut(way) {
                        *place = None;
                    }
                    return true;
                }
            },
            (End::Free, None) => Past::Free,
            // What this send did not move, an earlier one may have.
            (End::Free, Some(open)) => open,
            (End::Absent, _) => Past::Absent,
            (End::Pending, _) => Past::Pending,
            (End::Unknown, _) => Past::Unknown,
            (End::Refunded, _) if outcome.answered => Past::Refunded,
            (End::Refused, _) if outcome.answered => Past::Refused,
            // Without a stored answer the call cannot be replayed, so the key stays open.
            (End::Refunded | End::Refused, _) => Past::Unknown,
        };
        entry.state = State::Rests(past);
        entry.refused |= outcome.refused;
        if !matches!(outcome.end, End::NotSent | End::Free | End::Absent) {
            entry.answered = outcome.answered;
        }
        if outcome.sent {
            entry.sent_ms = Some(now.steady_ms);
        }
        entry.until_ms = now.steady_ms.saturating_add(settings.window_ms);
        entry.untold = true;
        true
    }
}
