//! Three calls under one key, a provider that books what reaches it, and the gateway's memory between them. Every step
//! checks what may not be: two refunds, two answers to one call, a statement that the ledger contradicts.

#![allow(
    clippy::unreachable,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{
    Answer, Dispatch, LocalReply, Opening, Prepared, Sent, Unsigned, Waiting, open,
};
use refund_filter::guard::{Claim, Digest, Guard, GuardSettings};
use refund_filter::secret::Secret;
use refund_filter::token::{Failure, FailureKind};
use serde_json::Value;

use super::fixtures::{Fixture, TOKEN, head};
use super::{NOW_MS, SharedData, StubSigner, call_headers};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Comes(usize),
    Token(usize),
    NoToken(usize),
    Signature(usize),
    NoSignature(usize),
    /// No connection was had.
    Refused(usize),
    /// The provider books it.
    Processed(usize),
    /// The provider says no, and books nothing.
    Denied(usize, u16),
    /// The reply says what was done.
    Reply(usize),
    /// The reply is nonsense.
    Garbage(usize),
    /// Envoy waits no longer, or the connection breaks.
    NoReply(usize),
    Leaves(usize),
    Trap,
    Push,
    /// A request that somebody has given up is processed after all.
    ProcessedLate,
    LeaseRunsOut,
    DayGoesBy,
}

enum Stage {
    NotYet,
    Waiting(Box<Waiting>),
    Signing(Box<Unsigned>),
    /// At the provider, or on the way to it.
    Sent(Box<Sent>, Option<String>),
    Over,
}

/// The world at one moment.
pub struct World<'f> {
    fixture: &'f Fixture,
    /// Before and after the push.
    configs: &'f [Rc<Config>; 2],
    guarded: bool,
    memory: SharedData,
    settings: GuardSettings,
    now_ms: i64,
    calls: [Stage; 3],
    answers: [usize; 3],
    /// Refunds, by key and amount; BBMSL has no keys.
    ledger: usize,
    /// What a provider with keys said to a key, and when it was first seen.
    remembered: Option<(i64, String)>,
    /// Requests under way of which nobody is left.
    adrift: usize,
    sends: usize,
    pushed: bool,
    leased: bool,
    day: bool,
    trace: Vec<Event>,
}

impl<'f> World<'f> {
    /// Nothing has happened yet. `configs`: before and after the push. Without `guarded` the gateway remembers nothing.
    pub fn new(fixture: &'f Fixture, configs: &'f [Rc<Config>; 2], guarded: bool) -> Self {
        World {
            fixture,
            configs,
            guarded,
            memory: SharedData::default(),
            settings: GuardSettings::default(),
            now_ms: NOW_MS,
            calls: [Stage::NotYet, Stage::NotYet, Stage::NotYet],
            answers: [0; 3],
            ledger: 0,
            remembered: None,
            adrift: 0,
            sends: 0,
            pushed: false,
            leased: false,
            day: false,
            trace: Vec::new(),
        }
    }

    fn keyed(&self) -> bool {
        self.fixture.by_key() == "same_key"
    }

    fn guard(&self) -> Guard<'_> {
        Guard {
            memory: &self.memory,
            settings: self.settings,
        }
    }

    fn body(&self, call: usize) -> Value {
        // The third is another refund.
        let value = if call == 2 { "7.00" } else { "10.00" };
        self.fixture.call_for(value, self.fixture.currency)
    }

    /// What can happen next.
    pub fn events(&self) -> Vec<Event> {
        use Event::*;
        let mut events = Vec::new();
        let mut alive = false;
        for (nth, call) in self.calls.iter().enumerate() {
            match call {
                // In their order: which of the same calls is the first makes no difference.
                Stage::NotYet => {
                    let first = nth != 1 || !matches!(self.calls[0], Stage::NotYet);
                    if first {
                        events.push(Comes(nth));
                    }
                }
                Stage::Waiting(_) => events.extend([Token(nth), NoToken(nth), Leaves(nth)]),
                Stage::Signing(_) => events.extend([Signature(nth), NoSignature(nth), Leaves(nth)]),
                Stage::Sent(_, None) => events.extend([
                    Refused(nth),
                    Processed(nth),
                    Denied(nth, 401),
                    Denied(nth, 429),
                    Denied(nth, 422),
                    Denied(nth, 500),
                    NoReply(nth),
                    Leaves(nth),
                ]),
                Stage::Sent(_, Some(_)) => {
                    events.extend([Reply(nth), Garbage(nth), NoReply(nth), Leaves(nth)]);
                }
                Stage::Over => {}
            }
            alive |= !matches!(call, Stage::NotYet | Stage::Over);
        }
        if alive {
            events.push(Trap);
        }
        if alive && !self.pushed {
            events.push(Push);
        }
        if self.adrift > 0 {
            events.push(ProcessedLate);
        }
        if !self.leased {
            events.push(LeaseRunsOut);
        }
        if !self.day {
            events.push(DayGoesBy);
        }
        events
    }

    /// Has it happen.
    pub fn step(&mut self, event: Event) {
        use Event::*;
        self.trace.push(event);
        match event {
            Comes(nth) => self.comes(nth),
            Token(nth) => {
                let Stage::Waiting(waiting) = self.take(nth) else {
                    unreachable!()
                };
                self.leave(nth, waiting.with_token(Secret::new(TOKEN.into())));
            }
            NoToken(nth) => {
                let Stage::Waiting(waiting) = self.take(nth) else {
                    unreachable!()
                };
                let failure = Failure {
                    kind: FailureKind::Refused,
                    ..Failure::unreachable()
                };
                self.answer(nth, waiting.without_token(&failure));
            }
            Signature(nth) => {
                let Stage::Signing(unsigned) = self.take(nth) else {
                    unreachable!()
                };
                let reply = format!(
                    r#"{{"data":{{"signature":"vault:v1:{}"}}}}"#,
                    "A".repeat(344)
                );
                match unsigned.reply(200, reply.as_bytes()) {
                    Prepared::Dispatch(dispatch) => self.leave(nth, *dispatch),
                    other => panic!("{other:?}"),
                }
            }
            NoSignature(nth) => {
                let Stage::Signing(unsigned) = self.take(nth) else {
                    unreachable!()
                };
                self.answer(nth, unsigned.failed());
            }
            Refused(nth) => {
                let sent = self.take_sent(nth).0;
                self.answer(nth, sent.local_reply(refused()));
            }
            Processed(nth) => {
                let said = self.process(nth);
                if let Stage::Sent(_, reply) = &mut self.calls[nth] {
                    *reply = Some(said);
                }
            }
            Denied(nth, status) => {
                let sent = self.take_sent(nth).0;
                self.answer(nth, sent.reply(&head(status, &[]), b"{}", 1));
            }
            Reply(nth) => {
                let (sent, said) = self.take_sent(nth);
                let answer = sent.reply(&head(200, &[]), said.unwrap().as_bytes(), 1);
                self.answer(nth, answer);
            }
            Garbage(nth) => {
                let sent = self.take_sent(nth).0;
                self.answer(nth, sent.reply(&head(200, &[]), b"<html>", 1));
            }
            NoReply(nth) => {
                let (sent, said) = self.take_sent(nth);
                self.adrift += usize::from(said.is_none());
                self.answer(nth, sent.local_reply(timeout()));
            }
            Leaves(nth) => self.leaves(nth),
            // The worker's streams are gone without a word; Envoy answers them.
            Trap => {
                for nth in 0..3 {
                    if let Stage::Sent(_, None) = self.calls[nth] {
                        self.adrift += 1;
                    }
                    if !matches!(self.calls[nth], Stage::NotYet) {
                        self.calls[nth] = Stage::Over;
                    }
                }
            }
            Push => self.pushed = true,
            ProcessedLate => {
                self.adrift -= 1;
                self.book();
            }
            LeaseRunsOut => {
                self.leased = true;
                self.now_ms += self.settings.lease_ms;
            }
            // Nothing is under way for so long.
            DayGoesBy => {
                self.day = true;
                self.now_ms += DAY_MS;
                self.adrift = 0;
                for nth in 0..3 {
                    if matches!(self.calls[nth], Stage::Sent(..)) {
                        let sent = self.take_sent(nth).0;
                        self.answer(nth, sent.local_reply(timeout()));
                    }
                }
            }
        }
        let most = if self.keyed() || self.sends <= 1 {
            1
        } else {
            0
        };
        assert!(
            self.ledger <= 1 && (self.keyed() || self.adrift + self.ledger <= most.max(1)),
            "refunded twice, or may be: {:?}",
            self.trace
        );
    }

    fn take(&mut self, nth: usize) -> Stage {
        std::mem::replace(&mut self.calls[nth], Stage::Over)
    }

    fn take_sent(&mut self, nth: usize) -> (Sent, Option<String>) {
        match self.take(nth) {
            Stage::Sent(sent, said) => (*sent, said),
            _ => unreachable!(),
        }
    }

    fn comes(&mut self, nth: usize) {
        let body = self.body(nth).to_string();
        let lease = self.trace.len() as u64;
        let config = &self.configs[usize::from(self.pushed)];
        let (opening, now_ms) = {
            let guard = self.guard();
            let earlier = |key: &Digest| guard.standing(key, self.now_ms);
            let opening = open(config, &call_headers("k-1"), self.now_ms, &earlier);
            (opening, self.now_ms)
        };
        let Opening::Read(reading) = opening else {
            panic!("not read")
        };
        let accepted = reading.accept(body.as_bytes(), &|_| None).unwrap();
        let claim = if self.guarded {
            self.guard().ask(accepted.asks(), lease, now_ms)
        } else {
            Claim::None
        };
        let state = |_: &str| Some(b"secret".to_vec());
        match accepted.proceed(claim, now_ms, &mut StubSigner, &state) {
            Prepared::Answer(answer) => {
                self.calls[nth] = Stage::Over;
                self.answer(nth, answer);
            }
            Prepared::Wait(waiting) => self.calls[nth] = Stage::Waiting(waiting),
            Prepared::Sign(unsigned) => self.calls[nth] = Stage::Signing(unsigned),
            Prepared::Ask(_) => unreachable!("no order is asked for first"),
            Prepared::Dispatch(dispatch) => self.leave(nth, *dispatch),
        }
    }

    fn leave(&mut self, nth: usize, dispatch: Dispatch) {
        self.sends += 1;
        assert!(
            self.keyed() || self.adrift + self.ledger == 0,
            "sent again where it may have been sent: {:?}",
            self.trace
        );
        // What the provider would say to it.
        let (said, _) = self.fixture.success_reply(&self.body(nth), &dispatch);
        self.pending_reply(nth, said);
        self.calls[nth] = Stage::Sent(Box::new(dispatch.sent), None);
    }

    fn pending_reply(&mut self, nth: usize, said: String) {
        REPLIES.with(|replies| replies.borrow_mut().insert(nth, said));
    }

    /// The provider does its work: it books, unless it knows the key.
    fn process(&mut self, nth: usize) -> String {
        let said = REPLIES.with(|replies| replies.borrow()[&nth].clone());
        self.book();
        match &mut self.remembered {
            Some((_, first)) if self.fixture.by_key() == "same_key" => first.clone(),
            remembered => {
                *remembered = Some((self.now_ms, said.clone()));
                said
            }
        }
    }

    fn book(&mut self) {
        let kept = if self.fixture.keeps_keys {
            DAY_MS
        } else {
            i64::MAX
        };
        let known = self
            .remembered
            .as_ref()
            .is_some_and(|(since, _)| self.now_ms - since < kept);
        if !(self.keyed() && known) {
            self.ledger += 1;
        }
        if self.remembered.is_none() {
            let said = REPLIES.with(|replies| replies.borrow().values().next().cloned());
            self.remembered = Some((self.now_ms, said.unwrap()));
        }
    }

    fn leaves(&mut self, nth: usize) {
        let answer = match self.take(nth) {
            Stage::Waiting(waiting) => waiting.local_reply(left(false)),
            Stage::Signing(unsigned) => unsigned.local_reply(left(false)),
            Stage::Sent(sent, said) => {
                self.adrift += usize::from(said.is_none());
                sent.ended(left(true), said.is_some())
            }
            Stage::NotYet | Stage::Over => unreachable!(),
        };
        // Nobody is there to be told.
        self.settle(answer);
    }

    fn settle(&mut self, mut answer: Answer) -> Answer {
        let now_ms = self.now_ms;
        answer.settle(&self.guard(), None, now_ms);
        answer
    }

    fn answer(&mut self, nth: usize, answer: Answer) {
        let answer = self.settle(answer);
        self.answers[nth] += 1;
        assert_eq!(self.answers[nth], 1, "answered twice: {:?}", self.trace);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let told = format!("{} after {:?}", answer.body, self.trace);
        if answer.status < 300 {
            assert_eq!(self.ledger, 1, "{told}");
            assert_eq!(
                body["amount"]["value"],
                self.body(nth)["amount"]["value"],
                "{told}"
            );
            return;
        }
        match body["outcome"].as_str().unwrap() {
            "not_refunded" => assert_eq!(self.ledger + self.adrift, 0, "{told}"),
            "unknown" => {}
            other => panic!("{other}"),
        }
        // What is told as safe to repeat is safe.
        if body["retry"] == "same_key" && !self.keyed() {
            assert_eq!(self.ledger + self.adrift, 0, "{told}");
        }
    }

    /// What makes two worlds the same: what was done before is not part of it, but for what is remembered of it.
    pub fn mark(&self) -> String {
        let calls: Vec<_> = self
            .calls
            .iter()
            .map(|call| match call {
                Stage::NotYet => "not yet",
                Stage::Waiting(_) => "waiting",
                Stage::Signing(_) => "signing",
                Stage::Sent(_, None) => "sent",
                Stage::Sent(_, Some(_)) => "processed",
                Stage::Over => "over",
            })
            .collect();
        // The lease numbers differ from trace to trace, and mean nothing but who is who.
        let memory: Vec<_> = self
            .memory
            .0
            .borrow()
            .iter()
            .map(|(name, (bytes, _))| {
                let mut bytes = bytes.clone();
                if bytes.len() >= 74 && name.matches('.').count() == 3 {
                    bytes[50..58].fill(0);
                }
                (name.clone(), bytes)
            })
            .collect();
        let tickets: Vec<_> = self.calls.iter().map(ticket_text).collect();
        format!(
            "{calls:?} {tickets:?} {memory:?} {} {} {:?} {} {} {} {}",
            self.ledger,
            self.adrift,
            self.remembered,
            self.now_ms,
            self.pushed,
            self.leased,
            self.day
        )
    }
}

/// What a call knows of its key's past, as its `Debug` shows it, without the number of the lease.
fn ticket_text(call: &Stage) -> String {
    let debug = match call {
        Stage::NotYet | Stage::Over => String::new(),
        Stage::Waiting(waiting) => format!("{waiting:?}"),
        Stage::Signing(unsigned) => format!("{unsigned:?}"),
        Stage::Sent(sent, said) => format!("{sent:?} {said:?}"),
    };
    let mut parts = debug.split("lease: ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text
}

thread_local! {
    /// What the provider would say to the request of each call.
    static REPLIES: RefCell<BTreeMap<usize, String>> = const { RefCell::new(BTreeMap::new()) };
}

fn refused() -> LocalReply<'static> {
    LocalReply {
        status: 503,
        details: "upstream_reset_before_response_started{remote_connection_failure}",
        connected: false,
        attempts: 1,
    }
}

fn timeout() -> LocalReply<'static> {
    LocalReply {
        status: 504,
        details: "response_timeout",
        connected: true,
        attempts: 1,
    }
}

fn left(connected: bool) -> LocalReply<'static> {
    LocalReply {
        status: 0,
        details: "downstream_remote_disconnect",
        connected,
        attempts: 1,
    }
}
