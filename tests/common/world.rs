//! Refund calls and look-ups, a provider that books what reaches it and tells the truth, and the
//! gateway's memory between them.
//!
//! The provider's ledger knows what no gateway can: which send was booked. Every step checks what
//! may not be. Two refunds of one call, or of a payment that can have one. Two answers to one call.
//! A certain word that the ledger contradicts: at its moment, or later, since a word that no money
//! has moved speaks for all sends that were made until then.

use std::fmt::{self, Arguments, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::rc::Rc;
use std::sync::LazyLock;

use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{
    Answer, Callout, Dispatch, LocalReply, Opening, Sent, Step, Waiting, open,
};
use refund_filter::guard::{Asks, Claim, Digest, GuardSettings, Past, Recalled};
use refund_filter::idempotency::IdempotencyKey;
use refund_filter::secret::Secret;
use refund_filter::signing::Told;
use refund_filter::token::{Failure, FailureKind};
use serde_json::{Value, json};

use crate::fixtures::{Fixture, Shown, TOKEN, head};
use crate::{Keys, NOW, Remembered, StubSigner, call_headers, call_reply, look_up_headers};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// The time that `settle_seconds` gives where it is not configured, and then some.
const SETTLED_MS: i64 = 400_000;

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
    /// The provider does what it is asked for.
    Processed(usize),
    /// The provider says no, and books nothing.
    Denied(usize, u16),
    /// The provider books a refund that failed.
    Failed(usize),
    /// The reply says what was done.
    Reply(usize),
    /// The reply is nonsense.
    Garbage(usize),
    /// Envoy waits no longer, or the connection breaks.
    NoReply(usize),
    Leaves(usize),
    Trap,
    Push,
    /// The process is gone, and with it what it remembered.
    Restart,
    /// A request that somebody has given up is processed after all: the nth of those.
    ProcessedLate(usize),
    LeaseRunsOut,
    /// So long that no request is on its way any more.
    SettleTimeGoesBy,
    DayGoesBy,
    /// The provider takes a refund back, or a failure: the nth of its ledger.
    TakenBack(usize),
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
}

/// A refund call: its key, how that is spelled, and the amount.
pub type Call = (usize, usize, &'static str);

/// What comes to the gateway, and what can befall it.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// The refund calls.
    pub calls: &'static [Call],
    /// The look-ups: their keys, and how those are spelled.
    pub look_ups: &'static [(usize, usize)],
    /// How many keys the guard has room for.
    pub entries: u32,
    /// Whether all goes wrong that can: tokens, signatures, replies, callers.
    pub detailed: bool,
    /// Whether the provider takes a word back.
    pub takes_back: bool,
    /// Whether the gateway is restarted.
    pub restarts: bool,
    /// Whether a provider that refunds a payment once refuses a second refund itself.
    pub refuses_a_second: bool,
    /// What is taken from the gateway, to see that it is missed.
    pub without: Option<Without>,
}

/// What the gateway would be without one of its protections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// It remembers nothing.
    Guard,
    /// Providers get the key as it was spelled.
    OneIdentity,
    /// No key has its payment to itself.
    PaymentClaims,
    /// Absence counts at any moment.
    SettleTime,
    /// What a look-up tells of a refund that has ended is not remembered.
    LaterWords,
    /// A call that found no room is like the first under its key.
    RoomForDoubt,
}

/// Two calls for one refund and another with their key.
pub const ONE_KEY: Scene = Scene {
    calls: &[(0, 0, "10.00"), (0, 0, "10.00"), (0, 0, "7.00")],
    look_ups: &[],
    entries: 4_096,
    detailed: true,
    takes_back: false,
    restarts: false,
    refuses_a_second: false,
    without: None,
};

/// Two calls for one refund, and a look-up of it at any moment.
pub const LOOKED_UP: Scene = Scene {
    calls: &[(0, 0, "10.00"), (0, 0, "10.00")],
    look_ups: &[(0, 0)],
    detailed: false,
    ..ONE_KEY
};

/// One refund under a key in two spellings.
pub const TWO_SPELLINGS: Scene = Scene {
    calls: &[(0, 0, "10.00"), (0, 1, "10.00")],
    look_ups: &[(0, 1)],
    ..LOOKED_UP
};

/// Two refunds of one payment, of the same amount.
pub const TWO_KEYS: Scene = Scene {
    calls: &[(0, 0, "10.00"), (1, 0, "10.00")],
    look_ups: &[(1, 0)],
    ..LOOKED_UP
};

/// A provider that takes a word back.
pub const TAKEN_BACK: Scene = Scene {
    look_ups: &[(0, 0), (0, 0)],
    takes_back: true,
    ..LOOKED_UP
};

/// Room for one key, and two that want it.
pub const FULL: Scene = Scene {
    calls: &[(1, 0, "10.00"), (0, 0, "10.00"), (0, 0, "10.00")],
    look_ups: &[],
    entries: 1,
    ..LOOKED_UP
};

/// A gateway that is restarted in between.
pub const RESTARTED: Scene = Scene {
    restarts: true,
    refuses_a_second: true,
    ..LOOKED_UP
};

/// The keys, each in two spellings. The first is a UUID of version 7, which Moyasar takes as it is
/// and others do not.
const KEYS: [[&str; 2]; 2] = [
    [
        "0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e",
        "0191F5A7-44AB-7FBB-AB3C-1E1A98A5166E",
    ],
    ["k-2", "\"k-2\""],
];

/// A request that left, whatever became of it.
#[derive(Clone, Debug, Hash)]
struct Request {
    key: usize,
    value: &'static str,
    /// What the provider sees of the key.
    provider_key: String,
    /// The name that the provider gives to a refund of it.
    id: String,
    /// Its success.
    success: String,
    /// Whether the guard has had an entry for it.
    entered: bool,
    /// Whether the gateway can know of it: it is still the same, and has not pushed the entry out
    /// for another.
    known: bool,
    /// Whether somebody was told that it has not moved money, and will not.
    denied: bool,
}

/// A refund in the provider's ledger.
#[derive(Clone, Debug)]
struct Booked {
    request: usize,
    /// Whether the money has moved.
    moved: bool,
    /// How often the provider has changed its mind.
    version: u32,
    /// Whether the gateway has not been told of that.
    untold: bool,
    at: Now,
}

/// A reply of the provider's, and of what it speaks: refunds and their versions.
#[derive(Clone, Debug)]
struct Said {
    status: u16,
    body: String,
    of: Vec<(usize, u32)>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "a world has three of them at most"
)]
#[derive(Clone)]
enum Stage {
    NotYet,
    /// It waits for a token before it is sent.
    Waits(Box<Waiting>),
    /// It waits for a call of the gateway's own before it is sent.
    Calls(Callout),
    Sent(Box<Away>),
    Over,
}

/// At the provider, or on the way to it.
#[derive(Clone, Debug)]
struct Away {
    sent: Sent,
    request: usize,
    said: Option<Said>,
    /// Whether another answer came in between. Of two that were on their way at once, nobody could
    /// tell which is the newer.
    crossed: bool,
}

#[derive(Clone)]
enum LookUp {
    NotYet,
    Asked(Box<Asked>),
    Over,
}

/// A look-up that has left.
#[derive(Clone, Debug)]
struct Asked {
    by: By,
    /// What the provider has seen.
    seen: Option<Said>,
    crossed: bool,
}

#[derive(Clone, Debug)]
enum By {
    /// The route, with the path's last part, which may name a refund.
    Route(Box<Sent>, String),
    Itself(Callout),
}

/// The world at one moment.
#[derive(Clone)]
pub struct World<'f> {
    fixture: &'f Fixture,
    /// Before and after the push.
    configs: &'f [Rc<Config>; 2],
    scene: Scene,
    memory: Remembered,
    now: Now,
    calls: Vec<Stage>,
    look_ups: Vec<LookUp>,
    answers: Vec<usize>,
    requests: Vec<Request>,
    ledger: Vec<Booked>,
    /// Requests under way of which nobody is left.
    adrift: Vec<usize>,
    pushed: bool,
    restarted: bool,
    leased: bool,
    settled: bool,
    day: bool,
    taken_back: bool,
    trace: Vec<Event>,
}

impl<'f> World<'f> {
    /// Nothing has happened yet. `configs`: before and after the push.
    pub fn new(fixture: &'f Fixture, configs: &'f [Rc<Config>; 2], scene: Scene) -> Self {
        World {
            fixture,
            configs,
            scene,
            memory: remembered(&scene, NOW),
            // It has been up for long enough to know.
            now: NOW.plus(SETTLED_MS),
            calls: scene.calls.iter().map(|_| Stage::NotYet).collect(),
            look_ups: scene.look_ups.iter().map(|_| LookUp::NotYet).collect(),
            answers: vec![0; scene.calls.len()],
            requests: Vec::new(),
            ledger: Vec::new(),
            adrift: Vec::new(),
            pushed: false,
            restarted: false,
            leased: false,
            settled: false,
            day: false,
            taken_back: false,
            trace: Vec::new(),
        }
    }

    fn keyed(&self) -> bool {
        self.fixture.by_key == "same_key"
    }

    fn lacks(&self, what: Without) -> bool {
        self.scene.without == Some(what)
    }

    fn body(&self, call: usize) -> Value {
        let (_, _, value) = self.scene.calls[call];
        self.fixture.call_for(value, self.fixture.currency)
    }

    /// What can happen next.
    pub fn events(&self) -> Vec<Event> {
        use Event::*;
        let Scene { detailed, .. } = self.scene;
        let mut events = Vec::new();
        let mut alive = false;
        for (nth, call) in self.calls.iter().enumerate() {
            match call {
                // In their order: which of the same calls is the first makes no difference.
                Stage::NotYet => {
                    let same = |before: &usize| self.scene.calls[*before] == self.scene.calls[nth];
                    let before = (0..nth).rev().find(same);
                    if before.is_none_or(|before| !matches!(self.calls[before], Stage::NotYet)) {
                        events.push(Comes(nth));
                    }
                }
                Stage::Waits(_) => {
                    events.push(Token(nth));
                    if detailed {
                        events.extend([NoToken(nth), Leaves(nth)]);
                    }
                }
                Stage::Calls(Callout::Signature(_)) => {
                    events.push(Signature(nth));
                    if detailed {
                        events.extend([NoSignature(nth), Leaves(nth)]);
                    }
                }
                Stage::Calls(_) => {
                    events.extend([Order(nth), NoOrder(nth)]);
                    if detailed {
                        events.push(Leaves(nth));
                    }
                }
                Stage::Sent(away) if away.said.is_none() => {
                    events.extend([Refused(nth), Processed(nth), Denied(nth, 422), NoReply(nth)]);
                    if self.scene.takes_back && !self.fixture.declined.is_empty() {
                        events.push(Failed(nth));
                    }
                    if detailed {
                        let more = [401, 429, 500].map(|status| Denied(nth, status));
                        events.extend(more.into_iter().chain([Leaves(nth)]));
                    }
                }
                Stage::Sent(_) => {
                    events.extend([Reply(nth), NoReply(nth)]);
                    if detailed {
                        events.extend([Garbage(nth), Leaves(nth)]);
                    }
                }
                Stage::Over => {}
            }
            alive |= !matches!(call, Stage::NotYet | Stage::Over);
        }
        if alive {
            events.push(Trap);
        }
        if alive && !self.pushed && detailed {
            events.push(Push);
        }
        if self.scene.restarts && !self.restarted && !self.requests.is_empty() {
            events.push(Restart);
        }
        events.extend((0..self.adrift.len()).map(ProcessedLate));
        // Time that goes by before anything has happened, or when nothing more does, makes no
        // difference.
        let begun = !self.requests.is_empty() || alive;
        if !self.leased && !self.scene.takes_back && begun {
            events.push(LeaseRunsOut);
        }
        for (nth, look_up) in self.look_ups.iter().enumerate() {
            match look_up {
                LookUp::NotYet => {
                    let same =
                        |before: &usize| self.scene.look_ups[*before] == self.scene.look_ups[nth];
                    let before = (0..nth).rev().find(same);
                    if before.is_none_or(|before| !matches!(self.look_ups[before], LookUp::NotYet))
                    {
                        events.push(Asks(nth));
                    }
                }
                LookUp::Asked(asked) if asked.seen.is_none() => events.push(Looks(nth)),
                LookUp::Asked(_) => events.push(Told(nth)),
                LookUp::Over => {}
            }
        }
        if self.scene.takes_back && !self.taken_back {
            // Where nothing shows whose a refund is, a failure that nobody was told of is no word
            // that can be taken back.
            let was_said = |which: &usize| {
                let booked = &self.ledger[*which];
                let known = self.recalled(self.requests[booked.request].key);
                self.keyed()
                    || booked.moved
                    || known.is_some_and(|known| known.past == Past::Refused)
            };
            events.extend((0..self.ledger.len()).filter(was_said).map(TakenBack));
        }
        if !self.settled && !self.look_ups.is_empty() && begun {
            events.push(SettleTimeGoesBy);
        }
        // What the gateway has forgotten and the provider, too, nobody can tell from a new refund:
        // so long the caller remembers.
        let remembers = !self.scene.restarts && self.scene.entries >= ONE_KEY.entries;
        if !self.day && detailed && begun && remembers {
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
                let Stage::Waits(waiting) = self.take(nth) else {
                    unreachable!()
                };
                self.go_on(nth, waiting.with_token(Secret::new(TOKEN.into())));
            }
            Signature(nth) => {
                let signature = format!("vault:v1:{}", "A".repeat(344));
                let reply = json!({"data": {"signature": signature}}).to_string();
                self.called(nth, &reply);
            }
            NoToken(nth) | NoSignature(nth) | NoOrder(nth) => self.comes_to_nothing(nth),
            Refused(nth) => {
                let sent = self.take_sent(nth).sent;
                self.answer(nth, sent.local_reply(refused()));
            }
            Processed(nth) => self.says(nth, Self::process),
            Failed(nth) => self.says(nth, Self::fail),
            Denied(nth, status) => {
                let sent = self.take_sent(nth).sent;
                self.answer(nth, sent.reply(&head(status, &[]), b"{}", 1));
            }
            Reply(nth) => {
                let away = self.take_sent(nth);
                let said = away.said.unwrap();
                self.learns(&said, away.crossed);
                let head = head(said.status, &[]);
                let replying = away.sent.replying(head, false);
                self.answer(nth, replying.reply(said.body.as_bytes(), 1));
            }
            Garbage(nth) => {
                let sent = self.take_sent(nth).sent;
                self.answer(nth, sent.reply(&head(200, &[]), b"<html>", 1));
            }
            NoReply(nth) => self.waits_no_longer(nth),
            Leaves(nth) => self.leaves(nth),
            Order(nth) => {
                let shown = self.shown("");
                self.called(nth, &shown.body);
            }
            Asks(nth) => self.asks(nth),
            Looks(nth) => {
                let name = match &self.look_ups[nth] {
                    LookUp::Asked(asked) => match &asked.by {
                        By::Route(_, name) => name.clone(),
                        By::Itself(_) => String::new(),
                    },
                    _ => unreachable!(),
                };
                let shown = self.shown(&name);
                if let LookUp::Asked(asked) = &mut self.look_ups[nth] {
                    asked.seen = Some(shown);
                }
            }
            Told(nth) => self.told(nth, true),
            Trap => self.dies(),
            Push => self.pushed = true,
            Restart => {
                self.restarted = true;
                self.dies();
                self.memory = remembered(&self.scene, self.now);
                for request in &mut self.requests {
                    request.known = false;
                }
            }
            ProcessedLate(which) => {
                let request = self.adrift.remove(which);
                self.process(request);
            }
            LeaseRunsOut => {
                self.leased = true;
                self.now = self.now.plus(self.memory.settings.lease_ms);
            }
            SettleTimeGoesBy => {
                self.settled = true;
                self.nothing_is_under_way();
                self.now = self.now.plus(SETTLED_MS);
            }
            DayGoesBy => {
                self.day = true;
                self.nothing_is_under_way();
                self.now = self.now.plus(DAY_MS);
            }
            TakenBack(which) => {
                self.taken_back = true;
                let booked = &mut self.ledger[which];
                booked.moved = !booked.moved;
                booked.version += 1;
                booked.untold = true;
            }
        }
        self.nobody_is_refunded_twice();
        for key in 0..KEYS.len() {
            let entered = |request: &Request| request.key == key && request.entered;
            let may_be_pushed_out = |request: &Request| entered(request) && request.known;
            if self.requests.iter().any(may_be_pushed_out) && self.recalled(key).is_none() {
                let requests = self.requests.iter_mut().filter(|request| entered(request));
                requests.for_each(|request| request.known = false);
            }
        }
    }

    /// What the guard has under a key.
    fn recalled(&self, key: usize) -> Option<Recalled> {
        static RECALLS: LazyLock<[Asks; 2]> = LazyLock::new(|| {
            KEYS.map(|[text, _]| {
                let key = IdempotencyKey::from_header([text.as_bytes()].into_iter()).unwrap();
                Asks::Recall(key.digest())
            })
        });
        match self.memory.guard().ask(&RECALLS[key], 0, self.now) {
            Claim::Recalled(recollection) => recollection.known,
            _ => unreachable!(),
        }
    }

    fn take(&mut self, nth: usize) -> Stage {
        std::mem::replace(&mut self.calls[nth], Stage::Over)
    }

    fn take_sent(&mut self, nth: usize) -> Away {
        match self.take(nth) {
            Stage::Sent(away) => *away,
            _ => unreachable!(),
        }
    }

    // ---- the calls

    fn comes(&mut self, nth: usize) {
        let (key, spelling, _) = self.scene.calls[nth];
        let body = self.body(nth).to_string();
        if self.lacks(Without::PaymentClaims) {
            let payments = |name: &String| name.contains(".payment.");
            self.memory
                .data
                .0
                .borrow_mut()
                .retain(|name, _| !payments(name));
        }
        let config = &self.configs[usize::from(self.pushed)];
        let guard = self.memory.guard();
        let earlier = |key: &Digest| guard.standing(key, self.now);
        let headers = call_headers(KEYS[key][spelling]);
        let Opening::Read(reading) = open(config, &headers, self.now, &earlier, &|_| None) else {
            panic!("not read")
        };
        let accepted = reading.accept(body.as_bytes(), &earlier).unwrap();
        // Each call has a number of its own, the same in every order of events.
        let lease = nth as u64 + 1;
        let claim = match guard.ask(accepted.asks(), lease, self.now) {
            _ if self.lacks(Without::Guard) => Claim::Unguarded,
            Claim::NoRoom if self.lacks(Without::RoomForDoubt) && self.keyed() => Claim::Unguarded,
            claim => claim,
        };
        let step = accepted.proceed(claim, self.now, &mut StubSigner, &secret);
        self.go_on(nth, step);
    }

    fn go_on(&mut self, nth: usize, step: Step) {
        match step {
            Step::Answered(answer) => {
                self.calls[nth] = Stage::Over;
                self.answer(nth, answer);
            }
            // Its token is there.
            Step::Waiting(waiting) if !self.scene.detailed => {
                self.go_on(nth, waiting.with_token(Secret::new(TOKEN.into())));
            }
            Step::Leaving(dispatch) => self.leave(nth, *dispatch),
            Step::Waiting(waiting) => self.calls[nth] = Stage::Waits(waiting),
            Step::Calling(callout) => self.calls[nth] = Stage::Calls(callout),
            Step::Reading(_)
            | Step::Claiming(_)
            | Step::Naming(_)
            | Step::Sent(_)
            | Step::Replying(_) => unreachable!(),
        }
    }

    /// The gateway's own call is answered.
    fn called(&mut self, nth: usize, body: &str) {
        let Stage::Calls(callout) = self.take(nth) else {
            unreachable!()
        };
        let (head, guard) = (head(200, &[]), self.memory.guard());
        let step = call_reply(
            callout,
            &head,
            body.as_bytes(),
            self.now,
            &secret,
            Some(&guard),
        );
        self.go_on(nth, step);
    }

    fn leave(&mut self, nth: usize, dispatch: Dispatch) {
        let (key, spelling, value) = self.scene.calls[nth];
        let provider_key = match (self.fixture.sent_key)(&dispatch) {
            Some(_) if self.lacks(Without::OneIdentity) => KEYS[key][spelling].to_owned(),
            Some(sent) => sent,
            None => String::new(),
        };
        let (success, id) = self.fixture.success_reply(&self.body(nth), &dispatch);
        // Every refund has a name of its own.
        let number = self.requests.len().to_string();
        let own = match self.keyed() && id == provider_key {
            true => id.clone(),
            false => format!("{}{number}", &id[..id.len() - number.len()]),
        };
        // A provider without keys cannot tell two sends apart: of those that the gateway knows, one
        // at most may move money.
        let may_move = |(which, request): (usize, &Request)| {
            request.known && (self.is_booked(which) || self.is_under_way(which))
        };
        let second = self.requests.iter().enumerate().any(may_move);
        assert!(
            self.keyed() || self.scene.refuses_a_second || !second,
            "sent again where it may have been sent: {:?}",
            self.trace
        );
        self.requests.push(Request {
            key,
            value,
            provider_key,
            success: success.replace(&id, &own),
            id: own,
            entered: self.recalled(key).is_some(),
            known: true,
            denied: false,
        });
        self.calls[nth] = Stage::Sent(Box::new(Away {
            sent: dispatch.sent,
            request: self.requests.len() - 1,
            said: None,
            crossed: false,
        }));
    }

    /// Whether a request may still reach the provider.
    fn is_under_way(&self, which: usize) -> bool {
        let sent = |call: &Stage| matches!(call, Stage::Sent(away) if away.said.is_none() && away.request == which);
        self.adrift.contains(&which) || self.calls.iter().any(sent)
    }

    fn is_booked(&self, which: usize) -> bool {
        let mut ledger = self.ledger.iter();
        ledger.any(|booked| booked.request == which && booked.moved)
    }

    /// It ends before anything is sent.
    fn comes_to_nothing(&mut self, nth: usize) {
        let answer = match self.take(nth) {
            Stage::Waits(waiting) => waiting.without_token(&Failure {
                kind: FailureKind::Refused,
                ..Failure::unreachable()
            }),
            Stage::Calls(callout) => not_made(callout),
            _ => unreachable!(),
        };
        self.answer(nth, answer);
    }

    fn waits_no_longer(&mut self, nth: usize) {
        let away = self.take_sent(nth);
        if away.said.is_none() {
            self.adrift.push(away.request);
        }
        self.answer(nth, away.sent.local_reply(timeout()));
    }

    fn leaves(&mut self, nth: usize) {
        let answer = match self.take(nth) {
            Stage::Waits(waiting) => waiting.local_reply(left(false)),
            Stage::Calls(callout) => callout.local_reply(left(false)),
            Stage::Sent(away) => {
                let step = match away.said {
                    None => {
                        self.adrift.push(away.request);
                        Step::Sent(away.sent)
                    }
                    Some(said) => Step::Replying(away.sent.replying(head(said.status, &[]), false)),
                };
                step.local_reply(left(true), &|_| None)
            }
            Stage::NotYet | Stage::Over => unreachable!(),
        };
        // Nobody is there to be told.
        self.settle(answer);
    }

    /// The streams of the worker are gone without a word; Envoy answers them.
    fn dies(&mut self) {
        for call in &mut self.calls {
            if let Stage::Sent(away) = call
                && away.said.is_none()
            {
                self.adrift.push(away.request);
            }
            if !matches!(call, Stage::NotYet) {
                *call = Stage::Over;
            }
        }
        for look_up in &mut self.look_ups {
            if !matches!(look_up, LookUp::NotYet) {
                *look_up = LookUp::Over;
            }
        }
    }

    /// So long goes by that whoever waits has given up, and what has not arrived does not arrive
    /// any more.
    fn nothing_is_under_way(&mut self) {
        for nth in 0..self.calls.len() {
            match self.calls[nth] {
                Stage::NotYet | Stage::Over => {}
                Stage::Sent(_) => self.waits_no_longer(nth),
                _ => self.comes_to_nothing(nth),
            }
        }
        for nth in 0..self.look_ups.len() {
            if let LookUp::Asked(_) = self.look_ups[nth] {
                self.told(nth, false);
            }
        }
        self.adrift.clear();
    }

    // ---- the provider

    fn says(&mut self, nth: usize, does: fn(&mut Self, usize) -> Said) {
        let Stage::Sent(away) = &self.calls[nth] else {
            unreachable!()
        };
        let said = does(self, away.request);
        if let Stage::Sent(away) = &mut self.calls[nth] {
            away.said = Some(said);
        }
    }

    /// The provider does its work: it books, unless it knows the key, or the payment has its one
    /// refund.
    fn process(&mut self, which: usize) -> Said {
        if let Some(said) = self.said_before(which) {
            return said;
        }
        if self.scene.refuses_a_second && !self.keyed() && self.ledger.iter().any(|b| b.moved) {
            return Said {
                status: 422,
                body: self
                    .fixture
                    .refusal_reply("2001", "The order is refunded already."),
                of: Vec::new(),
            };
        }
        assert!(
            !self.requests[which].denied,
            "it was told that this had not moved money, nor would: {:?}",
            self.trace
        );
        self.book(which, true)
    }

    /// The provider books a refund that failed.
    fn fail(&mut self, which: usize) -> Said {
        let said = self.said_before(which);
        said.unwrap_or_else(|| self.book(which, false))
    }

    fn book(&mut self, request: usize, moved: bool) -> Said {
        self.ledger.push(Booked {
            request,
            moved,
            version: 0,
            untold: false,
            at: self.now,
        });
        self.word_of(self.ledger.len() - 1)
    }

    /// What the provider says to a key that it knows.
    fn said_before(&self, which: usize) -> Option<Said> {
        let kept_ms = if self.fixture.keeps_keys {
            DAY_MS
        } else {
            i64::MAX
        };
        let known = self.ledger.iter().position(|booked| {
            let age_ms = self.now.steady_ms - booked.at.steady_ms;
            let first = &self.requests[booked.request];
            first.provider_key == self.requests[which].provider_key && age_ms < kept_ms
        });
        known
            .filter(|_| self.keyed())
            .map(|known| self.word_of(known))
    }

    fn word_of(&self, booked: usize) -> Said {
        let Booked {
            request,
            moved,
            version,
            ..
        } = self.ledger[booked];
        let mut body = self.requests[request].success.clone();
        if let (false, [word, ..]) = (moved, self.fixture.declined) {
            let mut reply: Value = serde_json::from_str(&body).unwrap();
            self.fixture.say(&mut reply, &json!(word));
            body = reply.to_string();
        }
        Said {
            status: 200,
            body,
            of: vec![(booked, version)],
        }
    }

    /// What the provider shows of the payment at this moment; `name`: by which it was asked for.
    fn shown(&self, name: &str) -> Said {
        let payment = self.fixture.call()["payment"]["id"].clone();
        let minor = |request: &Request| request.value.replace('.', "").parse::<u64>().unwrap();
        let mut of = Vec::new();
        let mut refunds = Vec::new();
        for (nth, booked) in self.ledger.iter().enumerate() {
            let request = &self.requests[booked.request];
            let is_asked_for = self.fixture.shows_one.is_none() || request.provider_key == name;
            if !is_asked_for {
                continue;
            }
            of.push((nth, booked.version));
            let status = match booked.moved {
                true => Some(self.fixture.shown_done),
                false => self.fixture.shown_failed,
            };
            refunds.extend(status.map(|status| Shown {
                id: &request.id,
                key: &request.provider_key,
                minor: minor(request),
                status,
            }));
        }
        let payment = payment.as_str().unwrap();
        let body = (self.fixture.shows)(payment, self.fixture.currency, 1_500, &refunds);
        Said {
            status: 200,
            body,
            of,
        }
    }

    /// The gateway is told what the provider said. `crossed`: while another answer of its was told.
    fn learns(&mut self, said: &Said, crossed: bool) {
        let (keyed, settled) = (self.keyed(), self.settled);
        for (which, version) in &said.of {
            let booked = &mut self.ledger[*which];
            // That a refund does not show any more tells nothing at once.
            let too_early = !keyed && !booked.moved && !settled;
            booked.untold = booked.version != *version || (booked.untold && (crossed || too_early));
        }
        if said.of.is_empty() {
            return;
        }
        for call in &mut self.calls {
            if let Stage::Sent(sent) = call {
                sent.crossed = true;
            }
        }
        for look_up in &mut self.look_ups {
            if let LookUp::Asked(asked) = look_up {
                asked.crossed = true;
            }
        }
    }

    // ---- the look-ups

    fn asks(&mut self, nth: usize) {
        let (key, spelling) = self.scene.look_ups[nth];
        let config = &self.configs[usize::from(self.pushed)];
        let payment = self.fixture.call()["payment"]["id"].clone();
        let written = KEYS[key][spelling].replace('"', "%22");
        let query = format!(
            "provider={}&payment_id={}&key={written}",
            self.fixture.name(),
            payment.as_str().unwrap()
        );
        let opening = open(
            config,
            &look_up_headers(&query),
            self.now,
            &|_| None,
            &|_| None,
        );
        let Opening::Read(reading) = opening else {
            panic!("not read")
        };
        let accepted = reading.accept(b"", &|_| None).unwrap();
        let asked_at = match self.lacks(Without::SettleTime) {
            true => self.now.plus(SETTLED_MS),
            false => self.now,
        };
        let claim = self.memory.guard().ask(accepted.asks(), 0, asked_at);
        let mut step = accepted.proceed(claim, asked_at, &mut StubSigner, &secret);
        // Its token is there: waiting for it takes nothing, so that it is the same as to come
        // later.
        if let Step::Waiting(waiting) = step {
            step = waiting.with_token(Secret::new(TOKEN.into()));
        }
        let by = match step {
            Step::Leaving(dispatch) => {
                let path = dispatch.headers.first(":path").unwrap_or_default();
                let path = String::from_utf8(path.to_vec()).unwrap();
                let name = match self.lacks(Without::OneIdentity) {
                    true => KEYS[key][spelling],
                    false => path.rsplit('/').next().unwrap_or_default(),
                };
                By::Route(Box::new(dispatch.sent), name.to_owned())
            }
            Step::Calling(callout) => By::Itself(callout),
            other => panic!("{other:?}"),
        };
        self.look_ups[nth] = LookUp::Asked(Box::new(Asked {
            by,
            seen: None,
            crossed: false,
        }));
    }

    /// A look-up is answered: with what the provider saw, or without.
    fn told(&mut self, nth: usize, comes: bool) {
        let look_up = std::mem::replace(&mut self.look_ups[nth], LookUp::Over);
        let LookUp::Asked(asked) = look_up else {
            unreachable!()
        };
        let seen = asked.seen.filter(|_| comes);
        if let Some(seen) = &seen {
            self.learns(seen, asked.crossed);
        }
        let head = head(200, &[]);
        let mut answer = match (asked.by, seen) {
            (By::Route(sent, _), Some(seen)) => sent.reply(&head, seen.body.as_bytes(), 1),
            (By::Route(sent, _), None) => sent.local_reply(timeout()),
            (By::Itself(callout), Some(seen)) => {
                match call_reply(
                    callout,
                    &head,
                    seen.body.as_bytes(),
                    self.now,
                    &secret,
                    None,
                ) {
                    Step::Answered(answer) => answer,
                    other => panic!("{other:?}"),
                }
            }
            (By::Itself(callout), None) => not_made(callout),
        };
        let (key, _) = self.scene.look_ups[nth];
        let lease = Some(100 + nth as u64);
        let ended = self
            .recalled(key)
            .is_some_and(|known| matches!(known.past, Past::Refunded | Past::Refused));
        let before = self.memory.data.0.borrow().clone();
        answer.settle(&self.memory.guard(), lease, self.now);
        if ended && self.lacks(Without::LaterWords) {
            self.memory.data.0.replace(before);
        }
        self.holds(key, &answer, None);
    }

    // ---- what is said, and what is true

    fn settle(&mut self, mut answer: Answer) -> Answer {
        answer.settle(&self.memory.guard(), None, self.now);
        answer
    }

    fn answer(&mut self, nth: usize, answer: Answer) {
        let answer = self.settle(answer);
        self.answers[nth] += 1;
        assert_eq!(self.answers[nth], 1, "answered twice: {:?}", self.trace);
        let (key, _, value) = self.scene.calls[nth];
        self.holds(key, &answer, Some(value));
    }

    /// Holds an answer under a key against the ledger, and remembers what it promises.
    fn holds(&mut self, key: usize, answer: &Answer, value: Option<&str>) {
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let trace = &self.trace;
        let told = fmt::from_fn(|f| write!(f, "{} after {trace:?}", answer.body));
        let moved = match (body["status"].as_str(), body["outcome"].as_str()) {
            (Some("succeeded" | "pending"), None) => true,
            (Some("failed"), None) | (None, Some("not_refunded")) => false,
            (None, Some("unknown")) => {
                assert!(
                    self.keyed() || body["retry"] != "same_key",
                    "a repetition could refund twice: {told}"
                );
                return;
            }
            _ => panic!("{told}"),
        };
        let ours = |booked: &&Booked| self.requests[booked.request].key == key;
        // What the gateway could not know is no lie: a word that was taken back and has not come to
        // it.
        let is = |booked: &Booked, moved: bool| booked.untold || booked.moved == moved;
        let mut ledger = self.ledger.iter().filter(ours);
        if moved {
            // What is taken and has not ended may end either way.
            let taken = body["status"] == "pending";
            let is_so = ledger.any(|booked| taken || is(booked, true));
            assert!(is_so, "refunded? {told}");
            if let Some(value) = value {
                assert_eq!(body["amount"]["value"], value, "{told}");
            }
            return;
        }
        // What was sent before a restart is the caller's to remember.
        let known = |booked: &Booked| self.requests[booked.request].known;
        assert!(
            ledger.all(|booked| is(booked, false) || !known(booked)),
            "not refunded? {told}"
        );
        for request in &mut self.requests {
            request.denied |= request.known && request.key == key;
        }
    }

    fn nobody_is_refunded_twice(&self) {
        let moved = |key: usize| {
            let ours = |booked: &&Booked| self.requests[booked.request].key == key && booked.moved;
            self.ledger.iter().filter(ours).count()
        };
        let (first, second) = (moved(0), moved(1));
        let most = if self.keyed() { 2 } else { 1 };
        assert!(
            first <= 1 && second <= 1 && first + second <= most,
            "refunded twice: {:?}",
            self.trace
        );
    }

    /// What makes two worlds the same, as its hash, since there are many: what was done before is not
    /// part of it, but for what is remembered of it. What a call knows of its key's past is as its
    /// `Debug` shows it.
    pub fn mark(&self) -> u64 {
        let mut mark = Mark(DefaultHasher::new());
        for call in &self.calls {
            match call {
                Stage::NotYet => mark.adds(format_args!("not yet")),
                Stage::Over => mark.adds(format_args!("over")),
                Stage::Waits(waiting) => mark.adds(format_args!("{waiting:?}")),
                Stage::Calls(callout) => mark.adds(format_args!("{callout:?}")),
                Stage::Sent(away) => mark.adds(format_args!("{away:?}")),
            }
        }
        for look_up in &self.look_ups {
            match look_up {
                LookUp::NotYet => mark.adds(format_args!("not yet")),
                LookUp::Asked(asked) => mark.adds(format_args!("{asked:?}")),
                LookUp::Over => mark.adds(format_args!("over")),
            }
        }
        for (name, (bytes, _)) in self.memory.data.0.borrow().iter() {
            (name, bytes).hash(&mut mark.0);
        }
        let times = (self.now.unix_ms, self.now.steady_ms);
        let begun = (self.pushed, self.restarted, self.leased);
        let gone_by = (self.settled, self.day, self.taken_back);
        (&self.requests, &self.adrift, times, begun, gone_by).hash(&mut mark.0);
        mark.adds(format_args!("{:?}", self.ledger));
        mark.0.finish()
    }
}

/// Hashes what is written into it.
struct Mark(DefaultHasher);

impl Mark {
    /// Something, and where it ends.
    fn adds(&mut self, shown: Arguments<'_>) {
        self.write_fmt(shown).unwrap();
        self.0.write_u8(0xff);
    }
}

impl fmt::Write for Mark {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// The memory of a gateway that begins now.
fn remembered(scene: &Scene, now: Now) -> Remembered {
    let settings = GuardSettings {
        entries: scene.entries,
        ..GuardSettings::default()
    };
    Remembered::since(now, settings)
}

/// The answer where a call of the gateway's own is not made.
fn not_made(callout: Callout) -> Answer {
    match callout.not_made(&Keys(Told::Unavailable)) {
        Step::Answered(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// Filter state.
fn secret(_: &str) -> Option<Vec<u8>> {
    Some(b"secret".to_vec())
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
