//! A gateway with its memory, in front of one provider, without a host.

use std::cell::Cell;
use std::rc::Rc;

use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Callout, LocalReply, Opening, Step, open};
use refund_filter::guard::{Digest, GuardSettings};
use refund_filter::headers::Headers;
use refund_filter::secret::Secret;
use serde_json::Value;

pub use crate::fixtures::fixture;
use crate::fixtures::{FIXTURES, Fixture, Shown, TOKEN, head};
use crate::oracles::derived_key;
use crate::{NOW, Out, Remembered, StubSigner, call_headers, config, look_up_headers};

/// The key of calls of which the key is not the subject.
pub const KEY: &str = "k-1";

/// How long a send may still arrive where nothing else is configured, in milliseconds.
pub const SETTLE_MS: i64 = 300_000;

pub fn json_of(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

/// What a caller is told: the code or the status word, outcome and retry.
pub type Told<'a> = (&'a str, &'a str, &'a str);

pub fn told(answer: &Answer) -> (String, String, String) {
    let body = json_of(answer);
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let word = match text("code") {
        code if code.is_empty() => text("status"),
        code => code,
    };
    (word, text("outcome"), text("retry"))
}

#[track_caller]
pub fn says(answer: &Answer, (word, outcome, retry): Told<'_>) {
    assert_eq!(
        told(answer),
        (word.to_owned(), outcome.to_owned(), retry.to_owned()),
        "{}",
        answer.body
    );
}

pub const ABSENT: Told<'_> = ("refund-not-found", "not_refunded", "same_key");
pub const NOT_SHOWN: Told<'_> = ("refund-not-found", "unknown", "look_up");
pub const AMBIGUOUS: Told<'_> = ("refund-ambiguous", "unknown", "no");
pub const MISMATCH: Told<'_> = ("provider-reply-mismatch", "unknown", "look_up");
pub const SUCCEEDED: Told<'_> = ("succeeded", "", "");

/// A gateway in front of one provider.
pub struct Gateway {
    pub fixture: &'static Fixture,
    pub config: Rc<Config>,
    pub memory: Remembered,
    /// Who Envoy says that calls.
    pub caller: Cell<Option<&'static str>>,
    leases: Cell<u64>,
    now: Cell<Now>,
}

/// A refund call.
pub enum Asked {
    /// On its way.
    Sent(Out),
    Answered(Answer),
}

impl Gateway {
    /// One that has been up for an hour.
    pub fn of(name: &str) -> Self {
        Self::with(name, &fixture(name).provider_config())
    }

    pub fn with(name: &str, provider: &Value) -> Self {
        Self::guarded(name, provider, GuardSettings::default())
    }

    pub fn guarded(name: &str, provider: &Value, settings: GuardSettings) -> Self {
        let gateway = Gateway {
            fixture: fixture(name),
            config: config(name, provider),
            memory: Remembered::since(NOW, settings),
            caller: Cell::new(None),
            leases: Cell::new(0),
            now: Cell::new(NOW),
        };
        gateway.later(60 * 60 * 1_000);
        gateway
    }

    /// The same memory and time, under another configuration.
    pub fn configured(self, config: Rc<Config>) -> Self {
        Gateway { config, ..self }
    }

    /// It is restarted: it knows nothing any more.
    pub fn restart(&mut self) {
        self.memory = Remembered::since(self.now(), self.memory.settings);
    }

    pub fn now(&self) -> Now {
        self.now.get()
    }

    /// So many milliseconds go by.
    pub fn later(&self, milliseconds: i64) {
        self.now.set(self.now().plus(milliseconds));
    }

    /// Somebody sets the clock that people read.
    pub fn clock_jumps(&self, milliseconds: i64) {
        let now = self.now();
        self.now.set(Now {
            unix_ms: now.unix_ms + milliseconds,
            ..now
        });
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        let asked = path == ["connection", "uri_san_peer_certificate"];
        let caller = self.caller.get().filter(|_| asked)?;
        Some(caller.into())
    }

    fn lease(&self) -> u64 {
        self.leases.set(self.leases.get() + 1);
        self.leases.get()
    }

    pub fn settled(&self, mut answer: Answer) -> Answer {
        answer.settle(&self.memory.guard(), Some(self.lease()), self.now());
        answer
    }

    /// What the guard counts when an answer is given.
    pub fn counted(&self, mut answer: Answer) -> (Answer, Option<&'static str>) {
        let lease = Some(self.lease());
        let word = answer.settle(&self.memory.guard(), lease, self.now());
        (answer, word)
    }

    pub fn send_with(&self, headers: &Headers<'_>, call: &Value) -> Asked {
        let guard = self.memory.guard();
        let earlier = |key: &Digest| guard.standing(key, self.now());
        let reading = match open(&self.config, headers, self.now(), &earlier, &|path| {
            self.property(path)
        }) {
            Opening::Read(reading) => reading,
            Opening::Answer(answer) => return Asked::Answered(self.settled(answer)),
            Opening::NotOurs => panic!("not ours"),
        };
        let accepted = match reading.accept(call.to_string().as_bytes(), &earlier) {
            Ok(accepted) => accepted,
            Err(answer) => return Asked::Answered(self.settled(answer)),
        };
        let claim = guard.ask(accepted.asks(), self.lease(), self.now());
        self.go_on(accepted.proceed(claim, self.now(), &mut StubSigner, &|_| None))
    }

    fn go_on(&self, step: Step) -> Asked {
        match step {
            Step::Leaving(dispatch) => Asked::Sent(Out::Routed(dispatch)),
            Step::Calling(callout @ Callout::Inquiry(_)) => Asked::Sent(Out::Callout(callout)),
            Step::Waiting(waiting) => self.go_on(waiting.with_token(Secret::new(TOKEN.into()))),
            Step::Answered(answer) => Asked::Answered(self.settled(answer)),
            other => panic!("not sent: {other:?}"),
        }
    }

    pub fn send(&self) -> Asked {
        self.send_as(KEY, &self.fixture.call())
    }

    pub fn send_as(&self, key: &str, call: &Value) -> Asked {
        self.send_with(&call_headers(key), call)
    }

    /// A refund that the provider answers like this; its success where there is no body.
    pub fn refund(&self, status: u16, body: Option<&str>) -> Answer {
        self.refund_as(KEY, &self.fixture.call(), status, body)
    }

    pub fn refund_as(&self, key: &str, call: &Value, status: u16, body: Option<&str>) -> Answer {
        match self.send_as(key, call) {
            Asked::Sent(out) => self.replied(out, call, status, body),
            Asked::Answered(answer) => answer,
        }
    }

    /// The provider's reply to what was sent.
    pub fn replied(&self, out: Out, call: &Value, status: u16, body: Option<&str>) -> Answer {
        let Out::Routed(dispatch) = out else {
            panic!("the payment is looked at first")
        };
        let success = self.fixture.success_reply(call, &dispatch).0;
        let body = body.unwrap_or(&success);
        self.settled(dispatch.sent.reply(&head(status, &[]), body.as_bytes(), 1))
    }

    /// A refund whose reply never comes; it may have been sent, and may still arrive.
    pub fn lost_as(&self, key: &str, call: &Value) -> Answer {
        match self.send_as(key, call) {
            Asked::Sent(Out::Routed(dispatch)) => {
                self.settled(dispatch.sent.local_reply(LocalReply {
                    status: 504,
                    details: "response_timeout",
                    connected: true,
                    attempts: 1,
                }))
            }
            Asked::Sent(Out::Callout(_)) => panic!("the payment is looked at first"),
            Asked::Answered(answer) => answer,
        }
    }

    pub fn lost(&self) -> Answer {
        self.lost_as(KEY, &self.fixture.call())
    }

    /// The provider's id of the payment of the sound call.
    pub fn payment(&self) -> String {
        let payment: Value = serde_json::from_str(self.fixture.payment).unwrap();
        payment["id"].as_str().unwrap().to_owned()
    }

    pub fn query(&self, more: &str) -> String {
        let (name, id) = (self.fixture.name(), self.payment());
        format!("provider={name}&payment_id={id}{more}")
    }

    /// Asks the provider; the answer is still to come.
    pub fn ask(&self, query: &str) -> Out {
        match self.try_to_ask(query) {
            Asked::Sent(out) => out,
            Asked::Answered(answer) => panic!("answered: {}", answer.body),
        }
    }

    pub fn try_to_ask(&self, query: &str) -> Asked {
        self.send_look_up(&look_up_headers(query))
    }

    pub fn send_look_up(&self, headers: &Headers<'_>) -> Asked {
        let opening = open(&self.config, headers, self.now(), &|_| None, &|path| {
            self.property(path)
        });
        let reading = match opening {
            Opening::Read(reading) => reading,
            Opening::Answer(answer) => return Asked::Answered(self.settled(answer)),
            Opening::NotOurs => panic!("not ours"),
        };
        let accepted = match reading.accept(b"", &|_| None) {
            Ok(accepted) => accepted,
            Err(answer) => return Asked::Answered(self.settled(answer)),
        };
        let claim = self.memory.guard().ask(accepted.asks(), 0, self.now());
        self.go_on(accepted.proceed(claim, self.now(), &mut StubSigner, &|_| None))
    }

    /// The answer to a look-up to which the provider replies like this.
    pub fn told(&self, out: Out, body: &str) -> Answer {
        self.told_with(out, 200, body)
    }

    pub fn told_with(&self, out: Out, status: u16, body: &str) -> Answer {
        self.settled(out.reply(&head(status, &[]), body.as_bytes(), self.now()))
    }

    pub fn look_up(&self, more: &str, body: &str) -> Answer {
        self.told(self.ask(&self.query(more)), body)
    }

    /// What the provider shows of a refund, in its minor units (BBMSL and BOG: of two decimals).
    pub fn shows(&self, payment: &str, id: &str, minor: u64, status: &str) -> String {
        let refund = Shown {
            id: if self.fixture.by_id_alone { id } else { "2-1" },
            key: id,
            minor,
            status,
        };
        (self.fixture.shows)(payment, self.fixture.currency, 100_000, &[refund])
    }

    /// The id of the payment, the name by which the provider shows the refund under the key, and
    /// its word for done.
    pub fn names(&self) -> (String, String, &'static str) {
        let key = derived_key(self.fixture.name(), KEY);
        let id = self.fixture.shown_as.replace("@KEY@", &key);
        (self.payment(), id, self.fixture.shown_done)
    }

    /// What the provider shows of the refund under the key of the sound call: it is made.
    pub fn shows_it(&self) -> String {
        let (payment, id, done) = self.names();
        self.shows(&payment, &id, 1_000, done)
    }
}

/// Every provider, with a refund under the key that is open: BOG's first answer, a failure
/// elsewhere.
pub fn open_refunds() -> impl Iterator<Item = Gateway> {
    FIXTURES.iter().map(|fixture| {
        let gateway = Gateway::of(fixture.name());
        match fixture.means {
            "pending" => gateway.refund(200, None),
            _ => gateway.lost(),
        };
        gateway
    })
}

/// The providers that can prove that there is no refund, and the proof.
pub fn proofs() -> impl Iterator<Item = (&'static str, &'static str)> {
    FIXTURES
        .iter()
        .filter_map(|fixture| Some((fixture.name(), fixture.absent?)))
}
