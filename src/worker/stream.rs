//! One request and its response.
//!
//! What a stream does when the root comes by is in `watched`, what it asks the memory that gateways share in `remembered`, and how it is
//! answered in `answering`.
//!
//! Three things can end a message, in both directions: its headers, its body, its trailers.
//! Whichever it is, it leads to [`Stream::call_is_whole`] or [`Stream::reply_is_whole`].

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use super::figures::{Kind, Said, UNKNOWN};
use super::sharing::Act;
use super::signer::GatewaySigner;
use super::telemetry::Phase;
use super::{PendingCall, TICK_BODY_MS, TICK_SOON_MS, TICK_TOKEN_MS, Worker};
use crate::config::{Config, ProviderEntry};
use crate::exchange::{
    Accepted, Answer, Callout, CalloutRequest, Dispatch, Environment, LocalReply, MAX_BODY,
    Opening, ReplyHead, Step, Waiting, open, open_list, unreadable_call,
};
use crate::guard::{Asks, Attempt, Claim, Digest, Question};
use crate::headers::Headers;
use crate::host::{Buffer, Host, Level, Map, Refused};
use crate::token::{Failure, Turn};

mod answering;
mod remembered;
mod watched;

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
    /// Whether it asks, before it is refused for a fault of its own, if another gateway has sent its key.
    asking: Cell<bool>,
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
            asking: Cell::default(),
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
        if self.asks_first() {
            return None;
        }
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
        if self.asks_first() {
            return Flow::Pause;
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
        let accepted = match reading.accept(&body, &|key| worker.standing(key)) {
            Ok(accepted) => accepted,
            Err(answer) => return self.end(answer),
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
        let mut answer = match step {
            Step::Answered(answer) if self.asking.take() => self.in_doubt(answer),
            Step::Answered(answer) => self.refused_now(answer),
            step => step.local_reply(reply, &|key| self.worker.standing(key)),
        };
        // Envoy's own answer waits for nothing.
        if self.key_to_ask_for(&mut answer).is_some() {
            answer = self.in_doubt(answer);
        }
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
