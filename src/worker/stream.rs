//! One request and its response.
//!
//! Three things can end a message, in both directions: its headers, its body, its trailers.
//! Whichever it is, it leads to [`Stream::call_is_whole`] or [`Stream::reply_is_whole`].

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use super::figures::{Kind, Said, Series, UNKNOWN};
use super::sharing::{Act, Errand, Progress, Told};
use super::signer::GatewaySigner;
use super::telemetry::Phase;
use super::tokens::Looks;
use super::{PendingCall, TICK_BODY_MS, TICK_SOON_MS, TICK_TOKEN_MS, Worker};
use crate::clock::{Now, Resend};
use crate::config::{Config, ProviderEntry};
use crate::exchange::{
    Accepted, Answer, Callout, CalloutRequest, Dispatch, Environment, LocalReply, MAX_BODY,
    Opening, ReplyHead, Step, Waiting, open, open_list, unreadable_call,
};
use crate::guard::{Asks, Attempt, Claim, Digest, Past, Question, Standing, Ticket};
use crate::headers::Headers;
use crate::host::{Buffer, Host, Level, Map, Refused};
use crate::problem::Code;
use crate::secret::Secret;
use crate::token::{Failure, Look, Turn};

/// How long a call's body may take, in milliseconds: less than the `request_timeout` of envoy.yaml.
const BODY_TIMEOUT_MS: i64 = 10_000;
/// How long a call may wait for a token, in milliseconds: one fetch that times out, and one more.
const TOKEN_TIMEOUT_MS: i64 = 12_000;

/// What becomes of a part of a message: proxy-wasm's action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It goes on.
    Continue,
    /// It stays, until the filter resumes or answers it.
    Pause,
}

/// A stream, where the root can reach it.
pub struct Stream {
    id: u32,
    worker: Rc<Worker>,
    /// Where its call stands; none where it is not ours, or answered.
    step: RefCell<Option<Step>>,
    /// When it began to be watched, by the steady clock.
    since_ms: Cell<i64>,
    /// Whether the call is for the filter.
    is_ours: Cell<bool>,
    kind: Cell<Kind>,
    /// When its headers came, by the steady clock.
    came_ms: Cell<i64>,
    /// The provider that it names, once that is known.
    provider: RefCell<Option<Rc<ProviderEntry>>>,
    /// What it waits for, and since when by the steady clock.
    phase: Cell<Option<(Phase, i64)>>,
    /// Whether the host has called with a part of the body.
    body_seen: Cell<bool>,
    /// [`Stream::body_bytes`] at the headers, when no body had come.
    body_base: Cell<u64>,
    /// What it asked the memory that gateways share, and when by the steady clock; none where it asked nothing, or of a look-up.
    claimed: RefCell<Option<(Box<Question>, i64)>>,
    /// What it was told of that.
    known: RefCell<Option<Attempt>>,
    /// Whether that could not be asked, and it goes on without.
    alone: Cell<bool>,
    /// Whether the access log says how it did without that memory.
    memory_told: Cell<bool>,
    /// Its answer while that is told of it, and whether it is written over the provider's reply.
    settling: RefCell<Option<(Answer, bool)>>,
}

/// What the host calls, each with the stream as the effective context.
impl Stream {
    /// A stream whose headers have not come, and whose context has this id.
    pub fn new(worker: Rc<Worker>, id: u32) -> Rc<Self> {
        Rc::new(Stream {
            id,
            worker,
            step: RefCell::default(),
            since_ms: Cell::default(),
            is_ours: Cell::default(),
            kind: Cell::default(),
            came_ms: Cell::default(),
            provider: RefCell::default(),
            phase: Cell::default(),
            body_seen: Cell::default(),
            body_base: Cell::default(),
            claimed: RefCell::default(),
            known: RefCell::default(),
            alone: Cell::default(),
            memory_told: Cell::default(),
            settling: RefCell::default(),
        })
    }

    /// The request's headers are here.
    pub fn request_headers(self: &Rc<Self>, end_of_stream: bool) -> Flow {
        self.came_ms.set(self.now_ms());
        let config = self.worker.config.borrow().clone();
        let bytes = self.host().headers(Map::Request);
        let (Some(config), Some(headers)) = (config, bytes.as_deref().and_then(Headers::decode))
        else {
            // Whose it is cannot be seen, nor whether it carries secrets: it goes no further.
            return self.end(unreadable_call());
        };
        for name in &config.secret_headers {
            if headers.first(name).is_some() {
                let _ = self.host().remove_request_header(name);
            }
        }
        if config.open_list {
            let refunds = || self.worker.open_refunds();
            let answer = open_list(&config, &headers, self.host().now(), refunds);
            self.is_ours.set(true);
            // Neither a figure nor a key: it is no call for a refund.
            self.reply(answer.word, &answer);
            return Flow::Pause;
        }
        let opening = self.open(&config, &headers);
        if !matches!(opening, Opening::NotOurs) {
            self.kind.set(kind(&config.path, &headers));
            self.tell("refund_kind", self.kind.get().as_str());
        }
        match opening {
            Opening::NotOurs => Flow::Continue,
            Opening::Answer(answer) if !end_of_stream && self.is_multiplexed() => {
                self.is_ours.set(true);
                self.wait_for_body(Step::Answered(answer));
                Flow::Pause
            }
            Opening::Answer(answer) => self.end(answer),
            Opening::Read(reading) => {
                self.is_ours.set(true);
                if let Some(digest) = reading.key() {
                    self.tell("refund_key_digest", &digest.hex());
                }
                if let Some(caller) = reading.caller() {
                    self.tell("refund_caller", caller.as_str());
                }
                // For local_reply_config: what Envoy answers past the filter must not say that no
                // money has moved.
                if let Some(retry) = reading.standing() {
                    let _ = self.host().set_property("refund_retry", retry.as_str());
                }
                if end_of_stream {
                    self.step.replace(Some(Step::Reading(reading)));
                    return self.call_is_whole();
                }
                self.wait_for_body(Step::Reading(reading));
                Flow::Pause
            }
        }
    }

    /// Whether the call shares its connection with others. There an answer before the call's end
    /// comes with a reset of its stream, which some clients take for a failure and lose the
    /// answer: so it waits for the body.
    fn is_multiplexed(&self) -> bool {
        let protocol = self.host().text_property(&["request", "protocol"]);
        protocol.is_some_and(|protocol| protocol == "HTTP/2" || protocol == "HTTP/3")
    }

    /// Keeps this until the body is here, or does not come.
    fn wait_for_body(self: &Rc<Self>, step: Step) {
        self.step.replace(Some(step));
        if !self.worker.bodies_come.get() {
            self.body_base.set(self.body_bytes());
        }
        self.watch_from_now(TICK_BODY_MS);
    }

    /// The refusal that waits for the end of the body, where there is one.
    fn held_answer(&self) -> Option<Answer> {
        match self.step.take() {
            Some(Step::Answered(answer)) => Some(self.refused_now(answer)),
            other => {
                self.step.replace(other);
                None
            }
        }
    }

    /// A refusal of the headers, by what is known now: another call with its key may have been sent
    /// since they came. `then`: what was to be said when they came.
    fn refused_now(&self, then: Answer) -> Answer {
        let config = self.worker.config.borrow().clone();
        let bytes = self.host().headers(Map::Request);
        match (config, bytes.as_deref().and_then(Headers::decode)) {
            (Some(config), Some(headers)) => match self.open(&config, &headers) {
                Opening::Answer(now) => now,
                Opening::NotOurs | Opening::Read(_) => then,
            },
            _ => then,
        }
    }

    /// Looks at the request's headers.
    fn open(&self, config: &Rc<Config>, headers: &Headers<'_>) -> Opening {
        let earlier = |key: &Digest| self.worker.standing(key);
        let property = |path: &[&str]| self.host().property(path);
        open(config, headers, self.host().now(), &earlier, &property)
    }

    /// A part of the request's body is here. `size`: all that the host has buffered of it.
    pub fn request_body(self: &Rc<Self>, size: usize, end_of_stream: bool) -> Flow {
        if self.is_ours.get() {
            self.body_seen.set(true);
            self.worker.bodies_come.set(true);
        }
        let is_over = end_of_stream || size > MAX_BODY;
        if let Some(answer) = is_over.then(|| self.held_answer()).flatten() {
            return self.end(answer);
        }
        let step = self.step.borrow();
        let Some(Step::Reading(reading)) = &*step else {
            // What is answered gets no further; what is not ours goes through.
            return if self.is_ours.get() {
                Flow::Pause
            } else {
                Flow::Continue
            };
        };
        // More than this is never wanted.
        if size > MAX_BODY {
            let answer = reading.too_large(&|key| self.worker.standing(key));
            drop(step);
            return self.end(answer);
        }
        drop(step);
        if end_of_stream {
            self.call_is_whole()
        } else {
            Flow::Pause
        }
    }

    /// The request's trailers are here.
    pub fn request_trailers(self: &Rc<Self>) -> Flow {
        if let Some(answer) = self.held_answer() {
            return self.end(answer);
        }
        if !matches!(*self.step.borrow(), Some(Step::Reading(_))) {
            return Flow::Continue;
        }
        let none = Headers::default();
        let _ = self.host().set_headers(Map::RequestTrailers, &none);
        self.call_is_whole()
    }

    /// The response's headers are here: the provider's, or those of an answer of Envoy's own.
    pub fn response_headers(self: &Rc<Self>, end_of_stream: bool) -> Flow {
        // Envoy answers while the answer is being settled: it is known, and need not wait.
        if let Some(errand) = self.worker.take_errand(self) {
            if let Some((answer, _)) = self.settling.take() {
                let answer = self.unsettled(answer, errand);
                self.tell_caller(answer, false, false);
                return Flow::Pause;
            }
            self.worker.leave_over(errand);
        }
        match self.step.take() {
            None => Flow::Continue,
            Some(Step::Sent(sent))
                if self
                    .host()
                    .text_property(&["response", "code_details"])
                    .as_deref()
                    == Some("via_upstream") =>
            {
                // For local_reply_config: what Envoy answers from here on does not pass the filter.
                let _ = self.host().set_property("refund_reply", "started");
                let misrouted = self.worker.finds_misrouted(&sent.entry());
                let replying = sent.replying(self.reply_head(Map::Response), misrouted);
                self.step.replace(Some(Step::Replying(replying)));
                if end_of_stream {
                    return self.reply_is_whole(&[], false);
                }
                Flow::Pause
            }
            Some(step) => self.end(self.local_reply(step).0),
        }
    }

    /// A part of the response's body is here.
    pub fn response_body(self: &Rc<Self>, end_of_stream: bool) -> Flow {
        if self.settling.borrow().is_some() {
            return Flow::Pause;
        }
        if !matches!(*self.step.borrow(), Some(Step::Replying(_))) {
            return Flow::Continue;
        }
        if !end_of_stream {
            return Flow::Pause;
        }
        let body = self.host().buffer(Buffer::Response).unwrap_or_default();
        self.reply_is_whole(&body, true)
    }

    /// The response's trailers are here.
    pub fn response_trailers(self: &Rc<Self>) -> Flow {
        if self.settling.borrow().is_some() {
            return Flow::Pause;
        }
        if !matches!(*self.step.borrow(), Some(Step::Replying(_))) {
            return Flow::Continue;
        }
        let body = self.host().buffer(Buffer::Response).unwrap_or_default();
        self.reply_is_whole(&body, false)
    }

    /// The answer to a call is here that was made while a callback of this stream's ran; `came`:
    /// with headers.
    pub fn call_answered(&self, call: u32, came: bool) {
        self.worker.answered(call, came);
    }

    /// The stream is over, and its line of the access log is about to be written. Where no answer
    /// of the filter's was given (the caller left, or Envoy answered past the filter), its key is
    /// settled now, and it counts as what Envoy tells in the filter's place.
    pub fn log(self: &Rc<Self>) {
        let errand = self.worker.take_errand(self);
        let (answer, details) = match (self.step.take(), self.settling.take()) {
            (None, None) => return,
            (_, Some((answer, _))) => {
                let details = self.host().text_property(&["response", "code_details"]);
                (answer, details.unwrap_or_default())
            }
            (Some(step), None) => self.local_reply(step),
        };
        let answer = match errand {
            Some(errand) if errand.is_settlement() => self.unsettled(answer, errand),
            Some(errand) => {
                self.worker.leave_over(errand);
                self.settled_later(answer)
            }
            None => self.settled_later(answer),
        };
        let said = Said::of(&answer);
        let said = if is_clients(&details) {
            said.to_nobody()
        } else {
            said
        };
        self.report(said, false);
    }

    /// The stream is gone.
    pub fn done(self: &Rc<Self>) {
        self.log();
        self.worker.unwatch(self.id);
        // Its calls are gone with it.
        let mut calls = self.worker.calls.borrow_mut();
        calls
            .retain(|_, call| !matches!(call, PendingCall::Stream(stream) if stream.id == self.id));
    }
}

/// Whether these are details of a call whose caller left; none are told where its connection
/// broke, or the gateway goes down.
fn is_clients(details: &str) -> bool {
    details.is_empty()
        || details.starts_with("downstream_")
        || details.starts_with("http") && details.contains(".remote_re")
}

/// What a call asks for that is the filter's.
fn kind(path: &str, headers: &Headers<'_>) -> Kind {
    let called = headers.first(":path").unwrap_or_default();
    let rest = called.strip_prefix(path.as_bytes()).unwrap_or_default();
    if rest.starts_with(b"/") {
        Kind::Preview
    } else if headers.first(":method") == Some(b"GET") {
        Kind::LookUp
    } else {
        Kind::Refund
    }
}

/// What the root asks of it.
impl Stream {
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Whether it waits for a token.
    pub(super) fn waits(&self) -> bool {
        matches!(*self.step.borrow(), Some(Step::Waiting(_)))
    }

    /// Whether it waits for a token of this provider's.
    pub(super) fn waits_for(&self, provider: &Rc<ProviderEntry>) -> bool {
        match &*self.step.borrow() {
            Some(Step::Waiting(waiting)) => Rc::ptr_eq(waiting.entry(), provider),
            _ => false,
        }
    }

    /// Looks after a paused call: its body may not come, and another worker may have fetched its
    /// token.
    pub(super) fn look_after(self: &Rc<Self>, now: Now, looks: &mut Looks) {
        let waited_ms = now.steady_ms.saturating_sub(self.since_ms.get());
        let step = self.step.borrow();
        match &*step {
            Some(Step::Reading(reading)) => {
                let earlier = |key: &Digest| self.worker.standing(key);
                let answer = if waited_ms > BODY_TIMEOUT_MS {
                    if !self.body_seen.get() {
                        self.worker.alarm(
                            "a body did not begin in time: the caller sent none, or the plugin's configuration lacks \
                             allow_on_headers_stop_iteration: true",
                        );
                    }
                    reading.stalled(&earlier)
                } else if self.body_is_withheld() {
                    self.worker.log(
                        Level::Error,
                        "Envoy holds a body back: set allow_on_headers_stop_iteration: true in the plugin's configuration (Envoy \
                         1.35 and later)",
                    );
                    reading.withheld(&earlier)
                } else {
                    return;
                };
                drop(step);
                if self.host().set_effective_context(self.id).is_ok() {
                    self.end(answer);
                } else {
                    self.step.take();
                    self.worker.unwatch(self.id);
                }
            }
            Some(Step::Waiting(waiting)) => {
                let entry = Rc::clone(waiting.entry());
                let client_secret = waiting.client_secret().clone();
                let trace = waiting.trace();
                drop(step);
                let look = looks
                    .entry(entry.name.clone())
                    .or_insert_with(|| self.worker.look_for_token(&entry, now));
                match look {
                    Some(Look::Ready(token)) => self.wake(Ok(token.clone())),
                    Some(Look::Failed(failure)) => self.wake(Err(failure.clone())),
                    _ if waited_ms > TOKEN_TIMEOUT_MS => self.wake(Err(Failure::unreachable())),
                    Some(Look::Ask) => {
                        // Once for all who wait; what comes of it is seen at the next look.
                        self.worker.ask_token(&entry, &client_secret, trace);
                        *look = Some(Look::Wait);
                    }
                    Some(Look::Wait) | None => {}
                }
            }
            Some(Step::Answered(_)) => {
                drop(step);
                if waited_ms <= BODY_TIMEOUT_MS && !self.body_is_withheld() {
                    return;
                }
                self.worker.unwatch(self.id);
                if self.host().set_effective_context(self.id).is_ok()
                    && let Some(answer) = self.held_answer()
                {
                    self.end(answer);
                }
            }
            None
            | Some(
                Step::Claiming(_)
                | Step::Naming(_)
                | Step::Calling(_)
                | Step::Leaving(_)
                | Step::Sent(_)
                | Step::Replying(_),
            ) => {
                drop(step);
                self.worker.unwatch(self.id);
            }
        }
    }

    /// Goes on with a token, or answers without one, where it waits for one.
    pub(super) fn wake(self: &Rc<Self>, found: Result<Secret, Failure>) {
        self.worker.unwatch(self.id);
        let Some(Step::Waiting(waiting)) = self.step.take() else {
            return;
        };
        if self.host().set_effective_context(self.id).is_err() {
            return;
        }
        self.phase_ends();
        match found {
            // What was to be sent in place of the caller's body was set when the call began to
            // wait.
            Ok(token) => {
                self.tell_token_key(waiting.entry(), &token);
                self.resume(waiting.with_token(token), true);
            }
            Err(failure) => {
                self.end(waiting.without_token(&failure));
            }
        }
    }

    /// Goes on with the answer to its call; `came`: with headers. A call that was reset ends
    /// without.
    pub(super) fn call_ended(self: &Rc<Self>, came: bool) {
        let answer = came.then(|| {
            let body = self.host().buffer(Buffer::CallResponse);
            (self.reply_head(Map::CallResponse), body.unwrap_or_default())
        });
        if self.host().set_effective_context(self.id).is_err() {
            return;
        }
        let callout = match self.step.take() {
            Some(Step::Calling(callout)) => callout,
            other => {
                self.step.replace(other);
                return;
            }
        };
        self.phase_ends();
        let worker = &*self.worker;
        let step = match answer {
            Some((head, body)) => {
                let entry = Rc::clone(callout.entry());
                let step =
                    self.in_environment(|environment| callout.reply(&head, &body, environment));
                if let Step::Answered(answer) = &step {
                    worker.drop_token(&entry, answer);
                }
                step
            }
            None => callout.cut(worker),
        };
        self.resume(step, false);
    }
}

/// What it asks the memory that gateways share.
impl Stream {
    /// The store's word on what it asked is here. Its context is not the effective one.
    pub(super) fn errand_done(self: &Rc<Self>, told: Told, known: Attempt) {
        self.known.replace(Some(known));
        if self.host().set_effective_context(self.id).is_err() {
            return;
        }
        match told {
            Told::Claim(claim) if self.is_refused() => {
                let step = self.refused(Some(claim));
                self.resume(step, false);
            }
            Told::Claim(claim) => {
                self.worker.count_claim(&claim);
                let step = self.claimed(self.after_an_outage(claim));
                self.resume(step, false);
            }
            Told::Names(claimed) => {
                let step = self.named(claimed.map(Some));
                self.resume(step, false);
            }
            Told::Settled(answer, word) => {
                if let Some(word) = word {
                    self.worker.count_guard(word);
                }
                if let Some((_, in_place)) = self.settling.take() {
                    self.tell_caller(*answer, in_place, true);
                }
            }
            Told::Released => {}
        }
    }

    /// The store cannot be asked. The stream's context is not the effective one.
    pub(super) fn errand_failed(self: &Rc<Self>, errand: Errand) {
        if self.host().set_effective_context(self.id).is_err() {
            self.worker.leave_over(errand);
            return;
        }
        if let Some((answer, in_place)) = self.settling.take() {
            let answer = self.unsettled(answer, errand);
            self.tell_caller(answer, in_place, true);
            return;
        }
        let step = self.without_store(errand);
        self.resume(step, false);
    }

    /// What it was told of the store.
    pub(super) fn known_of_store(&self) -> Option<Attempt> {
        self.known.take()
    }

    /// Asks for its key, where gateways share their memory.
    fn ask_store(self: &Rc<Self>, accepted: Accepted) -> Flow {
        if let Asks::Claim(question) = accepted.asks() {
            let asked = (Box::new(question.clone()), self.now_ms());
            self.claimed.replace(Some(asked));
        }
        let act = Act::Ask(accepted.asks().clone());
        self.step.replace(Some(Step::Claiming(Box::new(accepted))));
        self.set_out(act)
    }

    /// Asks whether another gateway has sent the key of a call that is refused for a fault of its own.
    fn ask_before_refusing(self: &Rc<Self>, answer: Answer, key: Digest) -> Flow {
        self.step.replace(Some(Step::Answered(answer)));
        self.set_out(Act::Ask(Asks::Recall(key)))
    }

    /// Whether that is what it asks.
    fn is_refused(&self) -> bool {
        matches!(*self.step.borrow(), Some(Step::Answered(_)))
    }

    /// Goes on once it is known, or cannot be.
    fn refused(&self, claim: Option<Claim>) -> Step {
        let is_clean = match claim {
            Some(Claim::Recalled(past)) => past.known.is_none_or(|known| {
                !known.in_flight && matches!(known.past, Past::Free | Past::Refused)
            }),
            _ => false,
        };
        match self.step.take() {
            Some(Step::Answered(mut answer)) => {
                if !is_clean {
                    // Its own retry is `corrected`, which stays.
                    let standing = Standing {
                        resend: Resend::Always,
                    };
                    answer.after_another_send(standing, self.host().now());
                }
                Step::Answered(answer)
            }
            Some(step) => step,
            None => Step::Answered(unreadable_call()),
        }
    }

    /// Begins what it asks of the store.
    fn set_out(self: &Rc<Self>, act: Act) -> Flow {
        let progress = match self.worker.errand(act, self) {
            Some(errand) => self.worker.set_out(Box::new(errand)),
            None => return self.end_without_store(),
        };
        match progress {
            Progress::UnderWay => Flow::Pause,
            Progress::Failed(errand) => {
                let step = self.without_store(*errand);
                self.go_on(step, false)
            }
            // Nothing is told without a call.
            Progress::Done(..) => self.end_without_store(),
        }
    }

    fn end_without_store(self: &Rc<Self>) -> Flow {
        match self.step.take() {
            Some(step) => {
                let (answer, _) = self.local_reply(step);
                self.end(answer)
            }
            None => Flow::Pause,
        }
    }

    /// How it goes on where the store cannot be asked: a provider with keys of its own is sent the refund all the same, unless the
    /// platform team wants it otherwise.
    fn without_store(&self, errand: Errand) -> Step {
        // What it does with a key of which the store holds what it cannot read, it could tell nobody: others would say that nothing was
        // sent.
        let goes_on = self.goes_on_alone() && !errand.is_unreadable();
        self.tell_memory(if goes_on { "alone" } else { "unavailable" });
        if self.is_refused() {
            return self.refused(None);
        }
        let accepted = match self.step.take() {
            Some(Step::Claiming(accepted)) => accepted,
            other => {
                self.step.replace(other);
                self.worker.leave_over(errand);
                return self.named(Err(Claim::Unavailable));
            }
        };
        self.worker.count_fallback(&accepted.entry().name, goes_on);
        let claim = if goes_on {
            self.alone.set(true);
            let lease = Some(errand.lease());
            match self.worker.ask_own_guard(accepted.asks(), lease) {
                // Then nobody would know of it.
                Claim::NoRoom => Claim::Unavailable,
                claim => claim,
            }
        } else {
            Claim::Unavailable
        };
        self.worker.count_claim(&claim);
        // Its end tells the store all that is to be told, where it goes on.
        if !matches!(claim, Claim::Taken { .. }) {
            self.worker.leave_over(errand);
        }
        let claim = if goes_on && claim != Claim::Unavailable {
            Claim::Alone(Box::new(claim))
        } else {
            claim
        };
        self.proceed(*accepted, claim)
    }

    /// Whether a call that cannot ask the store goes on: where its provider has keys, and the platform team has not said otherwise.
    fn goes_on_alone(&self) -> bool {
        let memory = self.worker.shared_memory();
        let has_keys = match &*self.step.borrow() {
            Some(Step::Claiming(accepted)) => {
                matches!(accepted.asks(), Asks::Claim(_)) && accepted.has_keys()
            }
            _ => false,
        };
        has_keys && memory.is_some_and(|memory| !memory.refuses)
    }

    /// A key of which the store knows nothing, shortly after it could not be asked: another gateway may have gone on without it, and
    /// not have told it yet.
    fn after_an_outage(&self, claim: Claim) -> Claim {
        let goes_on = match &*self.step.borrow() {
            Some(Step::Claiming(accepted)) => accepted.has_keys(),
            _ => false,
        };
        let is_new = matches!(&claim, Claim::Taken { standing: None, .. });
        if goes_on && is_new && self.worker.is_store_just_back() {
            return Claim::Alone(Box::new(claim));
        }
        claim
    }

    /// Goes on with the guard's word.
    fn claimed(&self, claim: Claim) -> Step {
        match self.step.take() {
            Some(Step::Claiming(accepted)) => self.proceed(*accepted, claim),
            Some(step) => step,
            None => Step::Answered(unreadable_call()),
        }
    }

    fn named(&self, claimed: Result<Option<Ticket>, Claim>) -> Step {
        match self.step.take() {
            Some(Step::Naming(named)) => {
                self.in_environment(|environment| named.go_on(claimed, environment))
            }
            Some(step) => step,
            None => Step::Answered(unreadable_call()),
        }
    }

    /// Tells the store of the answer before the caller has it; none where nothing is to be told: then the answer is here.
    fn settle_in_store(self: &Rc<Self>, answer: Answer, in_place: bool) -> Option<Answer> {
        let is_told = self.worker.shared_memory().is_some()
            && !self.alone.get()
            && (answer.settles.is_some() || answer.concludes.is_some());
        if !is_told {
            return Some(self.settled_later(answer));
        }
        let act = Act::Settle(self.question(), Box::new(answer.clone()));
        let Some(errand) = self.worker.errand(act, self) else {
            return Some(self.settled_later(answer));
        };
        self.settling.replace(Some((answer, in_place)));
        match self.worker.set_out(Box::new(errand)) {
            Progress::UnderWay => None,
            Progress::Done(errand, _) | Progress::Failed(errand) => {
                let (answer, _) = self.settling.take()?;
                Some(self.unsettled(answer, *errand))
            }
        }
    }

    /// The answer that is true where the store could not be told of it, which the root does later.
    fn unsettled(&self, mut answer: Answer, errand: Errand) -> Answer {
        self.tell_memory("untold");
        self.worker.leave_over(errand);
        if answer.concludes.is_some() {
            answer.not_concluded();
            return answer;
        }
        // It may have been told, and its answer be lost: then another gateway may have sent the key by now.
        answer.disown(self.host().now());
        self.worker.settle(&mut answer);
        answer
    }

    /// Settles the key in the process's own memory, and leaves it to the root to tell the store, where there is one.
    fn settled_later(&self, mut answer: Answer) -> Answer {
        if self.worker.shared_memory().is_some() && answer.settles.is_some() {
            self.tell_memory("untold");
            self.worker.leave_settlement(self.question(), &answer);
        }
        self.worker.settle(&mut answer);
        answer
    }

    /// Tells the access log how the call did without the memory that gateways share: what came of it first.
    fn tell_memory(&self, word: &str) {
        if !self.memory_told.replace(true) {
            self.tell("refund_memory", word);
        }
    }

    fn question(&self) -> Option<Box<Question>> {
        let claimed = self.claimed.borrow();
        claimed.as_ref().map(|(question, _)| question.clone())
    }

    /// Whether the lease of its claim has run out, so that another gateway may have its key.
    fn claim_is_over(&self) -> bool {
        let claimed = self.claimed.borrow();
        let mut since = claimed.iter().map(|(_, since_ms)| *since_ms);
        since.any(|since_ms| !self.worker.is_held(since_ms))
    }
}

impl Stream {
    fn host(&self) -> &dyn Host {
        &*self.worker.host
    }

    /// Does what the exchange says, and lets the paused request go where that is to leave.
    fn resume(self: &Rc<Self>, step: Step, body_is_set: bool) {
        if self.go_on(step, body_is_set) == Flow::Continue {
            let _ = self.host().resume_request();
        }
    }

    /// Does what the exchange says. `body_is_set`: the body was replaced before the stream was
    /// paused.
    fn go_on(self: &Rc<Self>, step: Step, body_is_set: bool) -> Flow {
        match step {
            Step::Answered(answer) => self.end(answer),
            Step::Leaving(dispatch) => self.send(*dispatch, body_is_set),
            Step::Calling(callout) => {
                self.phase_begins(match callout {
                    Callout::Signature(_) | Callout::PublicKeys(_) => Phase::Signature,
                    Callout::Inquiry(_) => Phase::Provider,
                });
                if let Some(key_id) = callout.key_id() {
                    self.tell("refund_key_id", key_id);
                    self.worker.count_signature(callout.entry(), true);
                }
                if !self.call(&callout.request()) {
                    return self.go_on(callout.not_made(&*self.worker), body_is_set);
                }
                self.step.replace(Some(Step::Calling(callout)));
                Flow::Pause
            }
            Step::Waiting(waiting) => {
                let (entry, secret) = (waiting.entry(), waiting.client_secret());
                let turn = self.worker.ask_token(entry, secret, waiting.trace());
                match turn {
                    Some(Turn::Use(token)) => {
                        self.tell_token_key(waiting.entry(), &token);
                        self.go_on(waiting.with_token(token), body_is_set)
                    }
                    Some(Turn::Fetch(_)) => self.wait(waiting, TICK_SOON_MS),
                    Some(Turn::Wait) => self.wait(waiting, TICK_TOKEN_MS),
                    None => self.end(waiting.without_token(&Failure::unreachable())),
                }
            }
            Step::Naming(named) => {
                let act = named
                    .asks()
                    .map(|(ticket, names)| Act::Names(ticket.clone(), names));
                self.step.replace(Some(Step::Naming(named)));
                match act {
                    Some(act) => self.set_out(act),
                    None => {
                        let step = self.named(Ok(None));
                        self.go_on(step, body_is_set)
                    }
                }
            }
            // The host says when it goes on.
            step @ (Step::Claiming(_) | Step::Reading(_) | Step::Sent(_) | Step::Replying(_)) => {
                self.step.replace(Some(step));
                Flow::Pause
            }
        }
    }

    /// The call is here, whole: translate it and let it go, or answer it, or have it wait.
    fn call_is_whole(self: &Rc<Self>) -> Flow {
        let Some(Step::Reading(reading)) = self.step.take() else {
            return Flow::Continue;
        };
        let worker = &*self.worker;
        worker.unwatch(self.id);
        let body = self.host().buffer(Buffer::Request).unwrap_or_default();
        if let Some(entry) = reading.provider(&body) {
            self.tell("refund_named_provider", &entry.name);
            self.provider.replace(Some(entry));
        }
        let key = reading.key();
        let accepted = match reading.accept(&body, &|key| worker.standing(key)) {
            Ok(accepted) => accepted,
            Err(answer) => {
                let asks =
                    key.filter(|_| worker.shared_memory().is_some() && answer.is_certain_no());
                return match asks {
                    Some(key) => self.ask_before_refusing(answer, key),
                    None => self.end(answer),
                };
            }
        };
        if let Some(key) = accepted.key_looked_up() {
            self.tell("refund_key_digest", &key.hex());
        }
        if let Some(amount) = accepted.amount() {
            self.tell("refund_amount", &amount);
        }
        if let Some(memory) = worker.shared_memory()
            && !matches!(accepted.asks(), Asks::Nothing)
        {
            let filter_state = |key: &str| self.host().property(&["filter_state", key]);
            let password = memory.password.as_ref();
            worker
                .learn_password(password.and_then(|source| accepted.secret(source, &filter_state)));
            return self.ask_store(accepted);
        }
        let claim = worker.ask_guard(accepted.asks());
        let step = self.proceed(accepted, claim);
        self.go_on(step, false)
    }

    /// Goes on by the guard's word.
    fn proceed(&self, accepted: Accepted, claim: Claim) -> Step {
        let filter_state = |key: &str| self.host().property(&["filter_state", key]);
        let mut signer = GatewaySigner(&self.worker);
        accepted.proceed(claim, self.host().now(), &mut signer, &filter_state)
    }

    /// Does something with what a step takes from outside the core.
    fn in_environment<T>(&self, act: impl FnOnce(&mut Environment<'_>) -> T) -> T {
        let worker = &*self.worker;
        let guard = worker.guard();
        act(&mut Environment {
            now: self.host().now(),
            signer: &mut GatewaySigner(worker),
            filter_state: &|key| self.host().property(&["filter_state", key]),
            guard: guard.as_ref(),
            shares: worker.shared_memory().is_some(),
            public_keys: worker,
        })
    }

    /// The provider's reply is here, whole.
    ///
    /// `in_place`: its body is before us, and ends the message.
    fn reply_is_whole(self: &Rc<Self>, body: &[u8], in_place: bool) -> Flow {
        let Some(Step::Replying(replying)) = self.step.take() else {
            return Flow::Continue;
        };
        let attempts = if replying.counts_attempts() {
            self.attempts()
        } else {
            1
        };
        let entry = replying.entry();
        let answer = replying.reply(body, attempts);
        self.worker.drop_token(&entry, &answer);
        if in_place {
            self.answer(answer, true)
        } else {
            self.end(answer)
        }
    }

    /// Lets a provider's request go. `body_is_set`: the body was replaced before the stream was
    /// paused.
    fn send(self: &Rc<Self>, dispatch: Dispatch, body_is_set: bool) -> Flow {
        // The host may have stood still for so long that another gateway has the key.
        if !self.alone.get() && self.claim_is_over() {
            return self.end(dispatch.sent.not_sent());
        }
        if self.worker.is_misrouted(&dispatch.sent.entry()) {
            return self.end(dispatch.sent.misrouted());
        }
        match self.write_request(&dispatch, body_is_set) {
            Ok(()) => {
                if dispatch.key_id.is_some() {
                    self.worker.count_signature(&dispatch.sent.entry(), true);
                }
                // A span ends before the filter is told that its stream breaks off, and then says this.
                self.tell("refund_outcome", UNKNOWN);
                self.phase_begins(Phase::Provider);
                self.step.replace(Some(Step::Sent(dispatch.sent)));
                Flow::Continue
            }
            Err(Refused(status)) => {
                self.worker.log(
                    Level::Error,
                    &format!(
                        "the host refused the provider's request (status {status}); nothing was sent"
                    ),
                );
                self.end(dispatch.sent.not_sent())
            }
        }
    }

    /// The filter state comes first: writing the headers clears the route, and it is chosen anew by
    /// it.
    fn write_request(&self, dispatch: &Dispatch, body_is_set: bool) -> Result<(), Refused> {
        let host = self.host();
        host.set_property("refund_provider", &dispatch.provider)?;
        host.set_property("refund_retry", dispatch.retry.as_str())?;
        if let Some(until) = &dispatch.retry_until {
            host.set_property("refund_retry_until", until)?;
        }
        if let Some(id) = &dispatch.key_id {
            host.set_property("refund_key_id", id)?;
        }
        if !body_is_set && !dispatch.body.is_empty() {
            host.set_buffer(Buffer::Request, dispatch.body.as_bytes())?;
        }
        host.set_headers(Map::Request, &dispatch.headers)
    }

    /// Makes a call of the filter's own that the stream waits for. The host binds it to the context
    /// that it speaks of, the SDK to the one whose callback runs: those must be one and the same.
    fn call(self: &Rc<Self>, request: &CalloutRequest<'_>) -> bool {
        let (host, root_acts) = (self.host(), self.worker.root_acts.get());
        if root_acts {
            let _ = host.set_effective_context(self.worker.root);
        }
        let call = host.dispatch_http_call(
            request.cluster,
            &request.headers,
            request.body.as_bytes(),
            request.timeout_ms,
        );
        if root_acts {
            let _ = host.set_effective_context(self.id);
        }
        let Some(call) = call else {
            return false;
        };
        let pending = PendingCall::Stream(Rc::clone(self));
        self.worker.calls.borrow_mut().insert(call, pending);
        true
    }

    fn wait(self: &Rc<Self>, waiting: Box<Waiting>, tick_ms: u32) -> Flow {
        // Here and now the body can be replaced for sure; when the token comes, only the headers
        // are left to be written.
        let set = waiting.body().map_or(Ok(()), |body| {
            self.host().set_buffer(Buffer::Request, body.as_bytes())
        });
        if set.is_err() {
            return self.end(waiting.without_token(&Failure::unreachable()));
        }
        self.phase_begins(Phase::Token);
        self.step.replace(Some(Step::Waiting(waiting)));
        self.watch_from_now(tick_ms);
        Flow::Pause
    }

    fn watch_from_now(self: &Rc<Self>, tick_ms: u32) {
        self.since_ms.set(self.now_ms());
        self.worker.watch(self, tick_ms);
    }

    /// Answers the stream; nothing more is to be done for it.
    fn end(self: &Rc<Self>, answer: Answer) -> Flow {
        self.worker.unwatch(self.id);
        self.step.take();
        self.is_ours.set(true);
        self.answer(answer, false)
    }

    /// Sends an answer, and settles its key before anybody can see it. `in_place`: the provider's reply is there, whole, with a
    /// body, and ends the message.
    fn answer(self: &Rc<Self>, answer: Answer, in_place: bool) -> Flow {
        match self.settle_in_store(answer, in_place) {
            Some(answer) => self.tell_caller(answer, in_place, false),
            None => Flow::Pause,
        }
    }

    /// Gives the caller the answer, whose key is settled. `paused`: the provider's reply was held meanwhile.
    ///
    /// `in_place`: it is written over that reply. An answer as of the gateway's own would go through all that Envoy does with its
    /// own answers, which takes a seventh of a refund's time.
    fn tell_caller(&self, answer: Answer, in_place: bool, paused: bool) -> Flow {
        let word = self.note(&answer);
        let host = self.host();
        let written = in_place
            && host
                .set_buffer(Buffer::Response, answer.body.as_bytes())
                .and_then(|()| host.set_headers(Map::Response, &answer.response_headers()))
                .is_ok();
        if !written {
            self.reply(word, &answer);
            return Flow::Pause;
        }
        if paused {
            let _ = host.resume_response();
        }
        Flow::Continue
    }

    /// Logs and counts. Returns the word for Envoy's details.
    fn note(&self, answer: &Answer) -> &'static str {
        if let Some(alarm) = &answer.alarm {
            self.worker
                .alarm(&format!("{}: {}", alarm.provider, alarm.sentence));
        }
        let said = Said::of(answer);
        let word = if answer.replayed {
            "replayed"
        } else {
            said.status
        };
        self.report(said, answer.replayed);
        word
    }

    /// Counts the call by what was said, and tells it to the access log.
    fn report(&self, said: Said, replayed: bool) {
        self.phase_ends();
        self.tell("refund_status", said.status);
        self.tell("refund_outcome", said.outcome);
        for (name, value) in [
            ("refund_told_retry", &said.retry),
            ("refund_id", &said.id),
            ("refund_amount", &said.amount),
        ] {
            if let Some(value) = value {
                self.tell(name, value);
            }
        }
        let series = Series {
            kind: self.kind.get(),
            outcome: said.outcome,
            code: said.code,
            replayed,
        };
        let (worker, provider) = (&self.worker, self.provider.borrow());
        let Some(entry) = &*provider else {
            worker.count(series.name("none"));
            return;
        };
        worker.count(series.name(&entry.name));
        // A preview asks nobody, and would only make the others look quicker.
        if series.kind == Kind::Preview {
            return;
        }
        let call_ms = self.now_ms().saturating_sub(self.came_ms.get());
        worker.took(&entry.name, Phase::Call, call_ms);
        if said.code == Code::SigningUnavailable.as_str() {
            worker.count_signature(entry, false);
        }
    }

    /// Sets what the access log shows, and whoever else reads filter state.
    fn tell(&self, name: &str, value: &str) {
        // Without it the call is as good.
        let _ = self.host().set_property(name, value);
    }

    /// Tells which key this token was fetched with.
    fn tell_token_key(&self, entry: &ProviderEntry, token: &Secret) {
        if let Some(key) = self.worker.key_of_token(entry, token) {
            self.tell("refund_key_id", &key);
        }
    }

    fn phase_begins(&self, phase: Phase) {
        self.phase.set(Some((phase, self.now_ms())));
    }

    fn phase_ends(&self) {
        if let (Some((phase, since_ms)), Some(entry)) =
            (self.phase.take(), &*self.provider.borrow())
        {
            let took_ms = self.now_ms().saturating_sub(since_ms);
            self.worker.took(&entry.name, phase, took_ms);
        }
    }

    fn now_ms(&self) -> i64 {
        self.host().now().steady_ms
    }

    /// Answers as Envoy answers by itself.
    fn reply(&self, word: &str, answer: &Answer) {
        let details = format!("refund_{}", word.replace('-', "_"));
        let body = answer.body.as_bytes();
        let replied = self
            .host()
            .reply(answer.status, &details, &answer.headers, body);
        if replied.is_err() {
            self.worker.log(
                Level::Error,
                "the host took no answer; Envoy's own reply stands for it",
            );
        }
    }

    /// The answer in place of one of Envoy's own, or where the stream ends without one, and the
    /// details that Envoy gives.
    fn local_reply(&self, step: Step) -> (Answer, String) {
        let details = self.host().text_property(&["response", "code_details"]);
        let details = details.unwrap_or_default();
        let reply = LocalReply {
            status: self.reply_head(Map::Response).status,
            details: &details,
            connected: self.may_have_connected(),
            attempts: self.attempts(),
        };
        let answer = match step {
            Step::Answered(answer) => self.refused_now(answer),
            step => step.local_reply(reply, &|key| self.worker.standing(key)),
        };
        (answer, details)
    }

    fn reply_head(&self, map: Map) -> ReplyHead {
        let bytes = self.host().headers(map).unwrap_or_default();
        ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default())
    }

    /// How often the route has sent the request. Where that is not told it may have been often.
    fn attempts(&self) -> u64 {
        self.host()
            .integer_property(&["upstream", "request_attempt_count"])
            .unwrap_or(u64::MAX)
    }

    /// Whether a connection was handed out, so that bytes may have left.
    ///
    /// Envoy sets the local address just before it writes the first byte, but never on a Unix
    /// socket: there its absence proves nothing.
    fn may_have_connected(&self) -> bool {
        let given = |name| {
            let text = self.host().text_property(&["upstream", name]);
            text.filter(|text| !text.is_empty())
        };
        let on_tcp = |address: String| address.parse::<SocketAddr>().is_ok();
        given("local_address").is_some() || given("address").is_some_and(|address| !on_tcp(address))
    }

    /// Whether bytes of a body have come of which the filter was not told. With
    /// `allow_on_headers_stop_iteration` it is told in the same event.
    fn body_is_withheld(&self) -> bool {
        !self.body_seen.get()
            && !self.worker.bodies_come.get()
            && self.host().set_effective_context(self.id).is_ok()
            && self.body_bytes() > self.body_base.get()
    }

    /// What Envoy has received of this call beyond its headers. Not nought at the start where a
    /// filter in front has changed the headers, hence a difference.
    fn body_bytes(&self) -> u64 {
        let size = |name| {
            self.host()
                .integer_property(&["request", name])
                .unwrap_or_default()
        };
        size("total_size").saturating_sub(size("headers_bytes"))
    }
}
