//! A caller: one refund until its last word, by what `retry` of each answer tells and nothing else.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::chance::{Dice, derived};
use crate::provider::{Kind, PAID, decimal};
use crate::time;

/// A caller gives up asking for its refund after so many calls.
const ROUNDS: u32 = 10;
/// And asking for its end after so many look-ups.
const LOOK_UPS: u32 = 24;
/// Before the second call; longer before each one after it.
const PAUSE_MS: i64 = 200;
/// The first payment.
const FIRST_PAYMENT: u64 = 1_000_000;

/// What is peculiar to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    None,
    /// Does not wait for its first answer.
    Leaves,
    /// Makes its first call twice at the same moment.
    Doubles,
    /// Looks the refund up while its first call is under way.
    Peeks,
    /// Makes the same call again after a final answer.
    Repeats,
    /// Uses the key for another amount after a final answer.
    Reuses,
    /// Goes on a day later where its first call left it in doubt.
    Sleeps,
}

/// Why a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    First,
    /// At the same moment as the first.
    Double,
    /// The answer before said so, or there was none.
    Retry,
    /// Though there was a final answer.
    Repeat,
    /// Another amount under the same key.
    Reuse,
    /// It asks how the refund stands.
    LookUp,
}

/// What a caller knows in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    NotRefunded,
    Unknown,
    Pending,
    Failed,
    Succeeded,
}

impl Word {
    /// Whether a look-up can tell more.
    pub fn is_open(self) -> bool {
        matches!(self, Word::Unknown | Word::Pending)
    }
}

/// An answer, as far as callers and the oracle read it.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub http: u16,
    pub status: String,
    pub code: String,
    pub outcome: String,
    pub retry: String,
    pub retry_until: Option<i64>,
    pub retry_after_ms: i64,
    pub id: String,
    pub amount: String,
    pub currency: String,
    pub payment: String,
    /// Whether the provider's words are in it.
    pub has_provider: bool,
    pub replayed: bool,
    pub detail: String,
}

impl Said {
    /// Reads an answer; what is no JSON says nothing.
    pub fn read(http: u16, body: &[u8], retry_after: Option<i64>, replayed: bool) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |pointer| {
            let text = body.pointer(pointer).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        Said {
            http,
            status: text("/status"),
            code: text("/code"),
            outcome: text("/outcome"),
            retry: text("/retry"),
            retry_until: time::parse(&text("/retry_until")),
            retry_after_ms: retry_after.unwrap_or_default() * 1_000,
            id: text("/id"),
            amount: text("/amount/value"),
            currency: text("/amount/currency"),
            payment: text("/payment/id"),
            has_provider: body["provider"].is_object(),
            replayed,
            detail: text("/detail"),
        }
    }

    /// The one of the two that an answer has.
    pub fn status_or_code(&self) -> &str {
        match &*self.code {
            "" => &self.status,
            code => code,
        }
    }

    /// What this answer alone tells.
    pub fn word(&self) -> Word {
        match (self.http, &*self.status) {
            (200 | 202, "succeeded") => Word::Succeeded,
            (200 | 202, "pending") => Word::Pending,
            (200 | 202, "failed") => Word::Failed,
            (200 | 202, _) => Word::Unknown,
            _ if self.outcome == "not_refunded" => Word::NotRefunded,
            _ => Word::Unknown,
        }
    }
}

/// How a call ended for its caller.
#[derive(Clone, Debug)]
pub enum End {
    /// It has not.
    UnderWay,
    Told(Box<Said>),
    /// The caller went away.
    Left,
    /// The connection broke.
    Broken,
}

/// One call under a refund's key.
#[derive(Clone, Debug)]
pub struct Call {
    pub refund: usize,
    pub why: Why,
    pub spelled: String,
    /// The one that it is asked for by, in a look-up.
    pub id: Option<String>,
    pub began: i64,
    pub ended: i64,
    /// When the gateway gave its answer, whether it was told or not.
    pub said_at: i64,
    /// What that answer tells.
    pub gave: Word,
    /// The process that took it.
    pub life: Option<usize>,
    pub end: End,
}

impl Call {
    /// What was told.
    pub fn said(&self) -> Option<&Said> {
        match &self.end {
            End::Told(said) => Some(said),
            End::UnderWay | End::Left | End::Broken => None,
        }
    }

    /// The problem's code; empty where there is none.
    pub fn code(&self) -> &str {
        self.said().map_or("", |said| &said.code)
    }

    /// What this call alone tells its caller.
    pub fn word(&self) -> Word {
        self.said().map_or(Word::Unknown, Said::word)
    }

    fn next(&self, now: i64) -> Next {
        let Some(said) = self.said() else {
            return Next::SameKey;
        };
        if said.word() > Word::Unknown {
            return Next::Done;
        }
        match (&*said.code, &*said.retry) {
            ("refund-in-progress", _) => Next::SameKey,
            (_, "same_key") if said.retry_until.is_none_or(|until| now < until) => Next::SameKey,
            (_, "same_key" | "look_up") => Next::LookUp,
            _ => Next::Stop,
        }
    }

    /// Whether nothing was sent since another call under the key was in flight at the gateway.
    fn was_kept_from_another(&self) -> bool {
        self.code() == "refund-in-progress" && self.said().is_some_and(|said| !said.has_provider)
    }
}

/// What a caller does next. Of two answers to the same call the larger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Stop,
    LookUp,
    SameKey,
    Done,
}

/// A call to be made, after so long.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    pub why: Why,
    pub after_ms: i64,
}

/// One refund that a caller wants, and what it has done for it.
#[derive(Clone, Debug)]
pub struct Refund {
    pub kind: Kind,
    pub key: String,
    pub payment: u64,
    pub minor: u64,
    pub habit: Habit,
    /// Its calls, in the order in which they were made.
    pub calls: Vec<usize>,
    /// Calls that are under way, or will be made in any case.
    pub under_way: usize,
    rounds: u32,
    asked: u32,
    slept: bool,
    played: bool,
    /// It has its last word.
    pub is_over: bool,
}

impl Refund {
    /// The nth refund of a world. The payment is nobody else's, but for a twin's.
    pub fn by_chance(nth: usize, seed: u64, dice: &Dice, twins_one_in: u32) -> Self {
        let both = Dice::new(derived(seed, (nth / 2) as u64));
        let is_twin = both.one_in(twins_one_in);
        let (shared, payment) = match is_twin {
            true => (&both, nth / 2 * 2),
            false => (dice, nth),
        };
        let kind = shared.pick(&Kind::ALL);
        // Mostly a part, so that the payment has money left for a second refund by mistake.
        let minor = match !is_twin && shared.one_in(8) {
            true => PAID,
            false => u64::try_from(shared.range(1..4_000)).unwrap_or(1),
        };
        let mut random = [0; 16];
        dice.fill(&mut random);
        let key = match dice.below(4) {
            0 | 1 => uuid::Builder::from_random_bytes(random)
                .into_uuid()
                .to_string(),
            2 => {
                let random = random.first_chunk().copied().unwrap_or_default();
                uuid::Builder::from_unix_timestamp_millis(nth as u64, &random)
                    .into_uuid()
                    .to_string()
            }
            _ => format!("return-{nth}"),
        };
        Refund {
            kind,
            key,
            payment: FIRST_PAYMENT + payment as u64,
            minor,
            habit: match dice.below(240) {
                0..40 => Habit::Leaves,
                40..60 => Habit::Doubles,
                60..80 => Habit::Repeats,
                80..100 => Habit::Reuses,
                100..140 => Habit::Peeks,
                140 if kind == Kind::Begateway => Habit::Sleeps,
                _ => Habit::None,
            },
            calls: Vec::new(),
            under_way: 0,
            rounds: 0,
            asked: 0,
            slept: false,
            played: false,
            is_over: false,
        }
    }

    /// Its key as one of those writes it who mean the same: in small letters or capitals, bare or
    /// quoted.
    pub fn spelled(&self, dice: &Dice) -> String {
        let is_uuid = uuid::Uuid::try_parse(&self.key).is_ok();
        let key = match dice.below(3) {
            0 if is_uuid => self.key.to_ascii_uppercase(),
            _ => self.key.clone(),
        };
        match dice.one_in(2) {
            true => format!("{key:?}"),
            false => key,
        }
    }

    /// What a call for it says.
    pub fn body(&self, why: Why) -> String {
        let minor = match why {
            Why::Reuse => self.minor + 1,
            _ => self.minor,
        };
        format!(
            r#"{{"provider":"{}","payment":{{"id":"{}"}},"amount":{{"value":"{}","currency":"{}"}}}}"#,
            self.kind.name(),
            self.payment,
            decimal(minor),
            self.kind.currency()
        )
    }

    /// The path of a look-up.
    pub fn look_up(&self, spelled: &str, id: Option<&str>) -> String {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let mut path = format!(
            "/v1/refunds?provider={}&payment_id={}&key={}",
            self.kind.name(),
            self.payment,
            encoded(spelled)
        );
        if let Some(id) = id {
            path.push_str("&id=");
            path.extend(encoded(id));
        }
        path
    }

    /// What the caller knows after all of these calls. An `unknown` stays until the provider's word
    /// clears it: a later `not_refunded` of a refund call does not, what a look-up says does.
    pub fn word(&self, calls: &[Call]) -> Word {
        let mut known = Word::NotRefunded;
        for call in self.made(calls) {
            let said = call.word();
            match call.why {
                Why::Reuse => {}
                // It is the call in flight whose end tells, and that one is the caller's own.
                _ if call.was_kept_from_another() => {}
                Why::LookUp if said == Word::Unknown => {}
                Why::LookUp => known = said,
                _ => known = known.max(said),
            }
        }
        known
    }

    /// Its calls.
    pub fn made<'a>(&'a self, calls: &'a [Call]) -> impl DoubleEndedIterator<Item = &'a Call> {
        self.calls.iter().map(|place| &calls[*place])
    }

    /// The provider's id of the refund, as far as an answer has told it.
    pub fn id(&self, calls: &[Call]) -> Option<String> {
        let told = self.made(calls).filter(|call| call.why != Why::Reuse);
        told.filter(|call| call.word() > Word::Unknown)
            .filter_map(Call::said)
            .find(|said| !said.id.is_empty())
            .map(|said| said.id.clone())
    }

    /// Whether the provider knows no name for the refund that its caller has, and the same call is
    /// refused for good: what became of a call that its caller left stays open.
    pub fn cannot_be_asked(&self, calls: &[Call], now: i64) -> bool {
        self.kind == Kind::Bog
            && self.id(calls).is_none()
            && self
                .made(calls)
                .rfind(|call| call.why != Why::LookUp)
                .is_some_and(|last| last.next(now) == Next::Stop)
    }

    /// What its caller does at first.
    pub fn begin(&mut self, dice: &Dice) -> Vec<Act> {
        self.rounds = 1;
        let first = Act {
            why: Why::First,
            after_ms: 0,
        };
        let beside = match self.habit {
            Habit::Doubles => Some((Why::Double, dice.soon(0..40))),
            Habit::Peeks => Some((Why::LookUp, dice.soon(0..60_000))),
            _ => None,
        };
        let beside = beside.map(|(why, after_ms)| Act { why, after_ms });
        [Some(first), beside].into_iter().flatten().collect()
    }

    /// The world is calm from now on: whoever is in doubt asks once more.
    pub fn ask_again(&mut self) {
        (self.rounds, self.asked) = (0, 0);
        self.is_over = false;
    }

    /// What its caller does now that no call of its own is under way. `patient`: how long a caller
    /// waits who has nothing else to go by.
    pub fn next(
        &mut self,
        calls: &[Call],
        now: i64,
        dice: &Dice,
        looks_first: bool,
        patient_ms: i64,
    ) -> Option<Act> {
        let word = self.word(calls);
        let last_ask = self
            .made(calls)
            .rev()
            .take_while(|call| call.why == Why::LookUp)
            .count();
        let (mut next, mut wanted) = (Next::Stop, 0);
        // All calls since the last one that was made alone: two, where it was made twice.
        let since = self.made(calls).rev().take(2);
        for (nth, call) in since.enumerate() {
            let together = nth == 0 || call.why == Why::First && last_ask == 0;
            if together && call.why != Why::LookUp {
                next = next.max(call.next(now));
                wanted = wanted.max(call.said().map_or(0, |said| said.retry_after_ms));
            }
        }
        let last = self.made(calls).next_back()?;
        if last.why == Why::LookUp && last_ask > 0 {
            // A peek beside the first call tells nothing of what to do next, unless it came last.
            let said = last.said();
            next = match said {
                Some(said) if said.word() == Word::NotRefunded && said.retry == "same_key" => {
                    Next::SameKey
                }
                _ => Next::LookUp,
            };
            wanted = said.map_or(0, |said| said.retry_after_ms);
        }
        if last.said().is_none() && last.why != Why::LookUp && looks_first {
            next = Next::LookUp;
        }
        let until = last.said().and_then(|said| said.retry_until);
        if !word.is_open() && next != Next::SameKey || word > Word::Pending {
            return self.play(word, dice);
        }
        let sleeps = self.habit == Habit::Sleeps && !self.slept;
        if next == Next::SameKey && word != Word::Pending && self.rounds < ROUNDS {
            let pause = PAUSE_MS * i64::from(self.rounds + 1).pow(3);
            self.rounds += 1;
            self.slept = true;
            let after_ms = match sleeps {
                true => 23 * 3_600_000 + dice.range(0..2 * 3_600_000),
                false => wanted.max(dice.soon(pause..pause * 2)),
            };
            // A key may have come to its end meanwhile, and the clock on the wall says when.
            let is_over = until.map_or(sleeps, |until| now + after_ms >= until);
            let why = match is_over {
                true => Why::LookUp,
                false => Why::Retry,
            };
            return Some(Act { why, after_ms });
        }
        if !word.is_open() || self.asked >= LOOK_UPS || self.cannot_be_asked(calls, now) {
            return self.play(word, dice);
        }
        self.asked += 1;
        // Where the answer with the id was lost, the same call returns it (and no other name finds
        // a refund there).
        let why = match self.kind == Kind::Bog && self.id(calls).is_none() {
            true => Why::Retry,
            false => Why::LookUp,
        };
        let pause = match self.asked {
            asked @ 0..6 => PAUSE_MS * i64::from(asked).pow(3),
            _ => patient_ms / 2,
        };
        let after_ms = wanted.max(dice.soon(pause..pause * 2));
        Some(Act { why, after_ms })
    }

    /// What callers do though they know how the refund has ended.
    fn play(&mut self, word: Word, dice: &Dice) -> Option<Act> {
        let why = match self.habit {
            _ if self.played => None,
            Habit::Repeats if word > Word::Pending => Some(Why::Repeat),
            Habit::Reuses if word == Word::Succeeded => Some(Why::Reuse),
            _ if word != Word::Unknown && dice.one_in(8) => Some(Why::LookUp),
            _ => None,
        };
        self.played = true;
        self.is_over = why.is_none();
        let after_ms = dice.soon(1..60_000);
        why.map(|why| Act { why, after_ms })
    }

    /// Of a look-up: the id by which its caller asks, too.
    pub fn id_to_ask(&self, calls: &[Call], dice: &Dice) -> Option<String> {
        // Who is told that the key does not tell which says it.
        let last = self.made(calls).next_back();
        let is_needed = last.is_some_and(|last| last.code() == "refund-ambiguous");
        self.id(calls).filter(|_| is_needed || dice.one_in(2))
    }
}
