//! Three calls under one key, look-ups of it, a provider that books what reaches it and tells the truth, and the gateway's memory
//! between them. Every step checks what may not be: two refunds, two answers to one call, a statement that the ledger
//! contradicts, now or by what is still under way.

#![allow(
    clippy::unreachable,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{
    Answer, Asking, Dispatch, LocalReply, Opening, Prepared, Sent, Unsigned, Waiting, open,
};
use refund_filter::guard::{Claim, Digest, Guard, GuardSettings};
use refund_filter::secret::Secret;
use refund_filter::token::{Failure, FailureKind};
use serde_json::Value;

use super::fixtures::{Fixture, TOKEN, head};
use super::{NOW_MS, SharedData, StubSigner, call_headers, look_up_headers};

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
    /// It is lost for good.
    Lost,
    LeaseRunsOut,
    DayGoesBy,
    /// The provider shows the order that is asked for before a refund, as it is now.
    Order(usize),
    /// It shows none.
    NoOrder(usize),
    /// A look-up leaves for the provider.
    Asks(usize),
    /// The provider looks into its ledger.
    Looks(usize),
    /// What it saw then comes home.
    Told(usize),
    NotTold(usize),
}

/// What comes to the gateway besides three refund calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// The refund calls; the third is another refund.
    pub calls: usize,
    pub look_ups: usize,
    /// Whether a provider that is asked has done, or lost, what the gateway has given up, and no call is sent beside one that
    /// has outlived its lease at the provider: of two sends the guard remembers the later one.
    pub punctual: bool,
}

impl Default for Scene {
    fn default() -> Self {
        Scene {
            calls: 3,
            look_ups: 0,
            punctual: false,
        }
    }
}

enum Stage {
    NotYet,
    Waiting(Box<Waiting>),
    Signing(Box<Unsigned>),
    /// Its order is asked for.
    Asking(Box<Asking>),
    /// At the provider, or on the way to it.
    Sent(Box<Sent>, Option<String>),
    Over,
}

enum LookUp {
    NotYet,
    /// At the provider, with what it has seen.
    Asked(Box<Asked>, Option<String>),
    Over,
}

/// A look-up that has left.
#[derive(Debug)]
enum Asked {
    Routed(Sent),
    OnItsOwn(Asking),
}

/// The world at one moment.
pub struct World<'f> {
    fixture: &'f Fixture,
    /// Before and after the push.
    configs: &'f [Rc<Config>; 2],
    guarded: bool,
    scene: Scene,
    look_ups: [LookUp; 2],
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
            scene: Scene::default(),
            look_ups: [LookUp::NotYet, LookUp::NotYet],
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

    /// The same with other calls.
    pub fn with(self, scene: Scene) -> Self {
        World { scene, ..self }
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
        let looked_up = self.scene.look_ups > 0;
        for (nth, call) in self.calls.iter().enumerate().take(self.scene.calls) {
            match call {
                // In their order: which of the same calls is the first makes no difference.
                Stage::NotYet => {
                    let first = nth != 1 || !matches!(self.calls[0], Stage::NotYet);
                    let beside = self.scene.punctual && self.leased && self.unprocessed();
                    if first && !beside {
                        events.push(Comes(nth));
                    }
                }
                // What comes to nothing before it is sent is the same to a look-up.
                Stage::Waiting(_) if looked_up => events.push(Token(nth)),
                Stage::Signing(_) if looked_up => events.push(Signature(nth)),
                Stage::Sent(_, None) if looked_up => {
                    events.extend([Refused(nth), Processed(nth), Denied(nth, 422), NoReply(nth)])
                }
                Stage::Sent(_, Some(_)) if looked_up => events.extend([Reply(nth), NoReply(nth)]),
                Stage::Waiting(_) => events.extend([Token(nth), NoToken(nth), Leaves(nth)]),
                Stage::Signing(_) => events.extend([Signature(nth), NoSignature(nth), Leaves(nth)]),
                Stage::Asking(_) => events.extend([Order(nth), NoOrder(nth), Leaves(nth)]),
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
        if alive && !self.pushed && !looked_up {
            events.push(Push);
        }
        if self.adrift > 0 {
            events.push(ProcessedLate);
            if self.scene.punctual {
                events.push(Lost);
            }
        }
        if !self.leased {
            events.push(LeaseRunsOut);
        }
        for (nth, look_up) in self.look_ups.iter().enumerate().take(self.scene.look_ups) {
            match look_up {
                LookUp::NotYet if nth == 0 || !matches!(self.look_ups[0], LookUp::NotYet) => {
                    events.push(Asks(nth));
                }
                LookUp::Asked(_, None) if self.scene.punctual && self.adrift > 0 => {}
                LookUp::Asked(_, None) => events.push(Looks(nth)),
                LookUp::Asked(_, Some(_)) => events.extend([Told(nth), NotTold(nth)]),
                LookUp::NotYet | LookUp::Over => {}
            }
        }
        if !self.day && !looked_up {
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
            Order(nth) => {
                let Stage::Asking(asking) = self.take(nth) else {
                    unreachable!()
                };
                let shown = self.shown();
                let (head, now_ms) = (head(200, &[]), self.now_ms);
                let went_on =
                    asking.reply(&head, shown.as_bytes(), now_ms, &mut StubSigner, &secret);
                self.go_on(nth, went_on);
            }
            NoOrder(nth) => {
                let Stage::Asking(asking) = self.take(nth) else {
                    unreachable!()
                };
                self.answer(nth, asking.failed());
            }
            Asks(nth) => self.asks(nth),
            Looks(nth) => {
                let shown = self.shown();
                if let LookUp::Asked(_, seen) = &mut self.look_ups[nth] {
                    *seen = Some(shown);
                }
            }
            Told(nth) => self.told(nth, true),
            NotTold(nth) => self.told(nth, false),
            Lost => self.adrift -= 1,
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
                for look_up in &mut self.look_ups {
                    if !matches!(look_up, LookUp::NotYet) {
                        *look_up = LookUp::Over;
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
        let prepared = accepted.proceed(claim, now_ms, &mut StubSigner, &secret);
        self.go_on(nth, prepared);
    }

    fn go_on(&mut self, nth: usize, prepared: Prepared) {
        match prepared {
            Prepared::Answer(answer) => {
                self.calls[nth] = Stage::Over;
                self.answer(nth, answer);
            }
            Prepared::Wait(waiting) => self.calls[nth] = Stage::Waiting(waiting),
            Prepared::Sign(unsigned) => self.calls[nth] = Stage::Signing(unsigned),
            Prepared::Ask(asking) => self.calls[nth] = Stage::Asking(asking),
            Prepared::Dispatch(dispatch) => self.leave(nth, *dispatch),
        }
    }

    /// Whether a send is under way that its provider has not seen, and whose call is still there.
    fn unprocessed(&self) -> bool {
        let mut calls = self.calls.iter();
        calls.any(|call| matches!(call, Stage::Sent(_, None)))
    }

    /// What the provider shows of the refund at this moment.
    fn shown(&self) -> String {
        self.fixture.shown(self.ledger > 0)
    }

    fn asks(&mut self, nth: usize) {
        let config = &self.configs[usize::from(self.pushed)];
        let payment = self.body(0)["payment"]["id"].clone();
        let query = format!(
            "provider={}&payment_id={}&key=k-1",
            self.fixture.name(),
            payment.as_str().unwrap()
        );
        let opening = open(config, &look_up_headers(&query), self.now_ms, &|_| None);
        let Opening::Read(reading) = opening else {
            panic!("not read")
        };
        let accepted = reading.accept(b"", &|_| None).unwrap();
        let claim = self.guard().ask(accepted.asks(), 0, self.now_ms);
        let asked = match accepted.proceed(claim, self.now_ms, &mut StubSigner, &secret) {
            // Its token is there: waiting for it takes nothing, so that it is the same as to come later.
            Prepared::Wait(waiting) => {
                Asked::Routed(waiting.with_token(Secret::new(TOKEN.into())).sent)
            }
            Prepared::Dispatch(dispatch) => Asked::Routed(dispatch.sent),
            Prepared::Ask(asking) => Asked::OnItsOwn(*asking),
            other => panic!("{other:?}"),
        };
        self.look_ups[nth] = LookUp::Asked(Box::new(asked), None);
    }

    /// A look-up is answered: with what the provider saw, or without.
    fn told(&mut self, nth: usize, comes: bool) {
        let look_up = std::mem::replace(&mut self.look_ups[nth], LookUp::Over);
        let LookUp::Asked(asked, Some(seen)) = look_up else {
            unreachable!()
        };
        let head = head(200, &[]);
        let mut answer = match (*asked, comes) {
            (Asked::Routed(sent), true) => sent.reply(&head, seen.as_bytes(), 1),
            (Asked::Routed(sent), false) => sent.local_reply(timeout()),
            (Asked::OnItsOwn(asking), true) => {
                match asking.reply(
                    &head,
                    seen.as_bytes(),
                    self.now_ms,
                    &mut StubSigner,
                    &secret,
                ) {
                    Prepared::Answer(answer) => answer,
                    other => panic!("{other:?}"),
                }
            }
            (Asked::OnItsOwn(asking), false) => asking.failed(),
        };
        let lease = self.trace.len() as u64;
        answer.settle(&self.guard(), Some(lease), self.now_ms);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let told = format!("{} after {:?}", answer.body, self.trace);
        match body["outcome"].as_str() {
            None => assert_eq!((answer.status, self.ledger), (200, 1), "{told}"),
            Some("not_refunded") => {
                let under_way = self.adrift + usize::from(self.unprocessed());
                assert_eq!(
                    self.ledger + under_way,
                    0,
                    "not_refunded, and it is, or may still be: {told}"
                );
            }
            Some("unknown") => assert_eq!(body["retry"], "look_up", "{told}"),
            Some(other) => panic!("{other}"),
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
            Stage::Asking(asking) => asking.local_reply(left(false)),
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
                Stage::Asking(_) => "asking",
                Stage::Sent(_, None) => "sent",
                Stage::Sent(_, Some(_)) => "processed",
                Stage::Over => "over",
            })
            .collect();
        // The lease numbers differ from trace to trace, and mean nothing but who is who: each is told by who has it first.
        let mut leases = Vec::new();
        let mut tickets: Vec<_> = self.calls.iter().map(debug_of).collect();
        tickets.extend(self.look_ups.iter().map(debug_of_look_up));
        for ticket in &mut tickets {
            *ticket = without_leases(ticket, &mut leases);
        }
        let memory: Vec<_> = self
            .memory
            .0
            .borrow()
            .iter()
            .map(|(name, (bytes, _))| {
                let mut bytes = bytes.clone();
                if bytes.len() >= 74 && name.matches('.').count() == 3 {
                    let (lease, _) = bytes[50..].split_first_chunk().unwrap();
                    let lease = u64::from_le_bytes(*lease).to_string();
                    let who = leases.iter().position(|known| *known == lease);
                    bytes[50..58].fill(who.map_or(u8::MAX, |who| who as u8));
                }
                (name.clone(), bytes)
            })
            .collect();
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

/// What a call knows of its key's past, as its `Debug` shows it.
fn debug_of(call: &Stage) -> String {
    match call {
        Stage::NotYet | Stage::Over => String::new(),
        Stage::Waiting(waiting) => format!("{waiting:?}"),
        Stage::Signing(unsigned) => format!("{unsigned:?}"),
        Stage::Asking(asking) => format!("{asking:?}"),
        Stage::Sent(sent, said) => format!("{sent:?} {said:?}"),
    }
}

fn debug_of_look_up(look_up: &LookUp) -> String {
    match look_up {
        LookUp::NotYet => "not yet".to_owned(),
        LookUp::Asked(asked, seen) => format!("{asked:?} {seen:?}"),
        LookUp::Over => "over".to_owned(),
    }
}

/// The text with its leases told by their places among those that are known.
fn without_leases(debug: &str, leases: &mut Vec<String>) -> String {
    let mut parts = debug.split("lease: ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let lease = part.strip_suffix(rest).unwrap_or_default();
        let who = leases
            .iter()
            .position(|known| known == lease)
            .unwrap_or_else(|| {
                leases.push(lease.to_owned());
                leases.len() - 1
            });
        text.push_str(&format!("lease: #{who}{rest}"));
    }
    text
}

/// Filter state.
fn secret(_: &str) -> Option<Vec<u8>> {
    Some(b"secret".to_vec())
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
