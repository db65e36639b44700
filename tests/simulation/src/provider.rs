//! The providers, as their vendors' pages have them, without HTTP: what reaches them, what they book
//! and what they say. `tests/simulator` has them on the wire; neither shares a line with the filter.

mod bbmsl;
mod begateway;
mod bog;
mod moyasar;

use std::collections::{HashMap, HashSet};

use refund_filter::headers::Headers;

use crate::chance::Dice;

/// Every payment is of so many minor units.
pub const PAID: u64 = 10_000;
/// beGateway keeps keys for so long.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// One of the four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bog,
    Moyasar,
    Begateway,
    Bbmsl,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Bog, Kind::Moyasar, Kind::Begateway, Kind::Bbmsl];

    /// Its name in calls, in the configuration, and of its cluster.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bog => "bog",
            Kind::Moyasar => "moyasar",
            Kind::Begateway => "begateway",
            Kind::Bbmsl => "bbmsl",
        }
    }

    /// The currency of its payments.
    pub fn currency(self) -> &'static str {
        match self {
            Kind::Bog => "GEL",
            Kind::Moyasar => "SAR",
            Kind::Begateway => "USD",
            Kind::Bbmsl => "HKD",
        }
    }

    /// Whether its refunds have idempotency keys.
    pub fn has_keys(self) -> bool {
        self != Kind::Bbmsl
    }
}

/// A request as it reaches a provider.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub path: String,
    /// `Idempotency-Key` or `RequestID`.
    pub key: Option<String>,
    pub body: Vec<u8>,
}

impl Request {
    /// What a stream is when it leaves.
    pub fn of(headers: &Headers<'_>, body: Vec<u8>) -> Self {
        let text = |name| {
            let value = headers.first(name)?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        Request {
            path: text(":path").unwrap_or_default(),
            key: text("idempotency-key").or_else(|| text("requestid")),
            body,
        }
    }
}

/// What a provider says.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// One refund that a provider took on.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The request that made it.
    pub send: usize,
    pub at: i64,
    pub payment: u64,
    pub minor: u64,
    /// The key it came under.
    pub key: String,
    /// What the provider calls it.
    pub id: String,
    /// Its word while it is open.
    pub word: &'static str,
    /// When it ends; with its booking, where it never was open.
    pub ends_at: i64,
    /// Whether money moves.
    pub moves: bool,
}

/// How a refund stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    Moved,
    Failed,
}

impl Entry {
    pub fn state(&self, now: i64) -> State {
        match (self.ends_at <= now, self.moves) {
            (false, _) => State::Open,
            (true, true) => State::Moved,
            (true, false) => State::Failed,
        }
    }

    /// In major units.
    fn amount(&self) -> String {
        decimal(self.minor)
    }
}

/// 10.50
pub fn decimal(minor: u64) -> String {
    format!("{}.{:02}", minor / 100, minor % 100)
}

/// How often what happens at a provider, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// It takes a refund, and ends it later.
    pub pending: u32,
    /// Of those, and of the refunds that it can decline at once.
    pub declined: u32,
    /// It does not know itself how a refund ended, for a while.
    pub unsure: u32,
    /// How long a refund is open at most, in milliseconds.
    pub open_ms: i64,
    /// It refuses a second refund of a payment, where it refunds a payment once.
    pub refuses_a_second: bool,
    /// What a key's second request is answered: the first answer, or how the refund stands now.
    pub tells_anew: bool,
}

/// One provider.
pub struct Provider {
    pub kind: Kind,
    habits: Habits,
    dice: Dice,
    pub ledger: Vec<Entry>,
    by_payment: HashMap<u64, Vec<usize>>,
    by_key: HashMap<String, usize>,
    replies: HashMap<String, (i64, Reply)>,
    /// Moyasar's keys at work.
    in_flight: HashSet<String>,
}

impl Provider {
    pub fn new(kind: Kind, habits: Habits, dice: Dice) -> Self {
        Provider {
            kind,
            habits,
            dice,
            ledger: Vec::new(),
            by_payment: HashMap::new(),
            by_key: HashMap::new(),
            replies: HashMap::new(),
            in_flight: HashSet::new(),
        }
    }

    /// Whether a request asks for a refund, and not how one stands.
    pub fn is_refund(&self, request: &Request) -> bool {
        match self.kind {
            Kind::Bog => request.path.contains(bog::REFUND),
            Kind::Moyasar => request.path.ends_with(moyasar::REFUND),
            Kind::Begateway => request.path == begateway::REFUNDS,
            Kind::Bbmsl => request.path == bbmsl::REFUND,
        }
    }

    /// The key of a request for a refund.
    pub fn key_of(&self, request: &Request) -> String {
        match self.kind {
            Kind::Bog | Kind::Begateway => request.key.clone().unwrap_or_default(),
            Kind::Moyasar => moyasar::key_of(request),
            Kind::Bbmsl => String::new(),
        }
    }

    /// A request is here, and its work begins; what it is answered at once, if anything.
    pub fn enter(&mut self, request: &Request) -> Option<Reply> {
        if self.kind != Kind::Moyasar || !self.is_refund(request) {
            return None;
        }
        let key = self.key_of(request);
        if self.replies.contains_key(&key) || self.in_flight.insert(key) {
            return None;
        }
        let body = r#"{"message":"Initial request is still processing."}"#.to_owned();
        Some(Reply { status: 400, body })
    }

    /// Does what it is asked for, with all its effects.
    pub fn answer(&mut self, now: i64, send: usize, request: &Request) -> Reply {
        match self.kind {
            Kind::Bog => self.bog(now, send, request),
            Kind::Moyasar => {
                let reply = self.moyasar(now, send, request);
                self.in_flight.remove(&self.key_of(request));
                reply
            }
            Kind::Begateway => self.begateway(now, send, request),
            Kind::Bbmsl => self.bbmsl(now, send, request),
        }
    }

    fn of_payment(&self, payment: u64) -> impl Iterator<Item = &Entry> {
        let places = self.by_payment.get(&payment).into_iter().flatten();
        places.map(|place| &self.ledger[*place])
    }

    /// What of a payment was refunded, or may be.
    fn refunded(&self, payment: u64, now: i64) -> u64 {
        let standing = self.of_payment(payment);
        let standing = standing.filter(|entry| entry.state(now) != State::Failed);
        standing.map(|entry| entry.minor).sum()
    }

    fn book(&mut self, entry: Entry) -> usize {
        let place = self.ledger.len();
        let of_payment = self.by_payment.entry(entry.payment).or_default();
        of_payment.push(place);
        if !entry.key.is_empty() {
            self.by_key.insert(entry.key.clone(), place);
        }
        self.ledger.push(entry);
        place
    }

    /// A refund as it begins, with its end decided by chance; its provider's words for one that is
    /// pending, and for one that nobody knows of.
    fn taken(
        &self,
        now: i64,
        send: usize,
        (payment, minor): (u64, u64),
        key: String,
        [pending, unsure]: [&'static str; 2],
    ) -> Entry {
        let Habits {
            pending: pendings,
            unsure: unsures,
            declined,
            open_ms,
            ..
        } = self.habits;
        let word = match () {
            () if self.dice.permille(unsures) => unsure,
            () if self.dice.permille(pendings) => pending,
            () => "",
        };
        let ends_at = match word {
            "" => now,
            _ => now + self.dice.soon(1..open_ms),
        };
        Entry {
            send,
            at: now,
            payment,
            minor,
            key,
            id: String::new(),
            word,
            ends_at,
            moves: !self.dice.permille(declined),
        }
    }
}

fn reply(status: u16, body: impl Into<String>) -> Reply {
    let body = body.into();
    Reply { status, body }
}
