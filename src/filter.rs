//! The filter in Envoy: it carries out what the [`exchange`](crate::exchange) says.
//!
//! Three things can end a message, in both directions: its headers, its body, its trailers. Whichever it is, it leads to
//! [`Stream::call_is_whole`] or [`Stream::reply_is_whole`].
//!
//! What must outlive a stream, or happen while a stream is paused, is the root's: it fetches tokens (a call of a stream's own
//! would die with its stream), wakes who waits for one, and answers calls whose body does not come. It does so in `on_tick`,
//! which streams switch on by setting the period, and which switches itself off when there is nothing left to watch.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::config::{Auth, Config, ProviderEntry};
use crate::exchange::{
    Answer, CalloutRequest, Dispatch, Environment, LocalReply, MAX_BODY, Opening, ReplyHead, Step,
    Waiting, open, retry_after, unreadable_call,
};
use crate::guard::{Asks, Claim, Digest, Guard, Standing, Table};
use crate::headers::Headers;
use crate::host::envoy::Envoy;
use crate::host::{self, Buffer, Host, Level, Map, Metric, Randomness};
use crate::memory::swap;
use crate::problem::Fault;
use crate::secret::Secret;
use crate::signing::{
    PrivateKey, PublicKeys, Signer, SignerChoice, SignerFailed, Signing, Told, TransitKeys,
    VmSigner, host_arguments, host_signature,
};
use crate::token::{self, Failure, FailureKind, Look, Record, Token, Turn};

/// How long a call's body may take, in milliseconds: less than the `request_timeout` of envoy.yaml.
const BODY_TIMEOUT_MS: i64 = 10_000;
/// How long a call may wait for a token, in milliseconds: one fetch that times out, and one more.
const TOKEN_TIMEOUT_MS: i64 = 12_000;
/// How soon a fetch that a stream has asked for begins, in milliseconds.
const TICK_SOON_MS: u32 = 1;
/// How often waiting calls look for what another worker fetches, in milliseconds.
const TICK_TOKEN_MS: u32 = 5;
/// How often bodies are looked after, in milliseconds.
const TICK_BODY_MS: u32 = 50;
/// How often the gauges are set, in milliseconds.
const TICK_GAUGES_MS: u32 = 5_000;
/// How often the same sentence goes to the log, in milliseconds.
const ALARM_EVERY_MS: i64 = 10_000;
/// How long OpenBao is not asked again for public keys that it does not tell, in milliseconds.
const UNTOLD_MS: i64 = 300_000;

/// The host.
const HOST: &dyn Host = &Envoy;

mod start {
    #![allow(missing_docs, reason = "the SDK's macro writes a function without any")]
    use super::{Rc, Root};

    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|id| Box::new(Root { id, shared: Rc::default() }));
    }}
}

/// What the root and its streams share, in one worker.
#[derive(Default)]
struct Shared {
    config: RefCell<Option<Rc<Config>>>,
    /// Calls whose body is being read, and those that wait for a token.
    watched: RefCell<BTreeMap<u32, Rc<Watch>>>,
    /// Fetches that streams have taken on and the root has not begun.
    wanted: RefCell<Vec<Fetch>>,
    /// The root's id while a callback of the root's runs: a call that is made then is the root's.
    acting_root: Cell<Option<u32>>,
    /// Calls of the filter's own that are under way, by their numbers.
    calls: RefCell<BTreeMap<u32, Callout>>,
    tick_ms: Cell<u32>,
    /// The root is done: another configuration has taken its place, and only its own streams are left.
    closing: Cell<bool>,
    metrics: RefCell<BTreeMap<String, u32>>,
    /// When the gauges were last set, by the steady clock.
    gauges_ms: Cell<i64>,
    /// Whether the host can sign; none until that was tried.
    host_signs: Cell<Option<bool>>,
    /// The sentences for the platform team, and when each was last logged.
    alarms: RefCell<BTreeMap<String, i64>>,
    /// Whether a body has ever come to a paused call: then Envoy's option for it is set, and none is withheld.
    bodies_come: Cell<bool>,
    /// The guard's table in this process; none until it was looked up.
    table: Cell<Option<Table>>,
    /// What OpenBao has told of its public keys, by provider, and until when it is not asked again, by the steady clock.
    told: RefCell<BTreeMap<String, (Told, i64)>>,
}

/// A call of the filter's own, by what waits for it.
enum Callout {
    /// Those who need a token.
    Token(Fetch),
    /// One stream.
    Stream(u32, Rc<Watch>),
}

/// A token fetch: for whom, and under which lease.
struct Fetch {
    provider: Rc<ProviderEntry>,
    /// As the call brought it that asked first: a root context sees no filter state.
    client_secret: Secret,
    lease: u64,
}

/// A stream's state, where the root can reach it.
#[derive(Default)]
struct Watch {
    /// Where its call stands; none where it is not ours, or answered.
    step: RefCell<Option<Step>>,
    /// When the present state began, by the steady clock.
    since_ms: Cell<i64>,
    /// The provider's configured name, once it is known.
    provider: RefCell<String>,
    /// Whether the host has called with a part of the body.
    body_seen: Cell<bool>,
    /// [`body_bytes`] at the headers, when no body had come.
    body_base: Cell<u64>,
}

impl Shared {
    /// Has `on_tick` called at least this often.
    fn tick_within(&self, milliseconds: u32) {
        let now = self.tick_ms.get();
        if now == 0 || now > milliseconds {
            self.set_tick(milliseconds);
        }
    }

    /// Looks after a stream no longer. Nothing may tick for a root that is gone.
    fn unwatch(&self, id: u32) {
        let mut watched = self.watched.borrow_mut();
        watched.remove(&id);
        if self.closing.get() && watched.is_empty() {
            self.set_tick(0);
        }
    }

    fn set_tick(&self, milliseconds: u32) {
        self.tick_ms.set(milliseconds);
        HOST.set_tick_period(milliseconds);
    }

    fn count(&self, name: String) {
        if let Some(id) = self.metric(Metric::Counter, name) {
            HOST.count(id);
        }
    }

    /// The host takes a new id for every definition, also of a name that it knows.
    fn metric(&self, kind: Metric, name: String) -> Option<u32> {
        let mut metrics = self.metrics.borrow_mut();
        if let Some(id) = metrics.get(&name) {
            return Some(*id);
        }
        let id = HOST.define_metric(kind, &name)?;
        metrics.insert(name, id);
        Some(id)
    }

    /// Whether Envoy has the function `sign` (1.37 and later). Without arguments it refuses in one way or another; only where
    /// there is no such function the host does not find it.
    fn host_signs(&self) -> bool {
        self.host_signs.get().unwrap_or_else(|| {
            let signs = HOST.call_foreign_function("sign", &[]) != Err(host::NOT_FOUND);
            self.host_signs.set(Some(signs));
            signs
        })
    }

    /// Who signs where the configuration says this.
    fn signer_name(&self, choice: SignerChoice) -> &'static str {
        match choice {
            SignerChoice::Vm => "vm",
            SignerChoice::Host => "host",
            SignerChoice::Auto if self.host_signs() => "host",
            SignerChoice::Auto => "vm",
        }
    }

    fn count_signature(&self, entry: &ProviderEntry) {
        let signer = match &entry.auth {
            Auth::Signature(Signing::Keys { signer, .. }) => self.signer_name(*signer),
            _ => "transit",
        };
        self.count(format!(
            "refund.signatures.provider.{}.signer.{signer}",
            entry.name
        ));
    }

    /// Says what the platform team must look at, now and then where it is always the same.
    fn tell(&self, sentence: &str) {
        let now_ms = HOST.now().steady_ms;
        let mut alarms = self.alarms.borrow_mut();
        alarms.retain(|_, at| now_ms.saturating_sub(*at) <= ALARM_EVERY_MS);
        if !alarms.contains_key(sentence) {
            HOST.log(Level::Error, &format!("refund-filter: {sentence}"));
            alarms.insert(sentence.to_owned(), now_ms);
        }
    }

    /// Sets the gauges that tell how long keys last.
    fn set_gauges(&self) {
        let now = HOST.now();
        if now.steady_ms.saturating_sub(self.gauges_ms.get()) < i64::from(TICK_GAUGES_MS) {
            return;
        }
        self.gauges_ms.set(now.steady_ms);
        let now = now.unix_ms.div_euclid(1_000);
        let config = self.config.borrow();
        for (entry, ring, _) in config.iter().flat_map(|config| config.key_rings()) {
            let name = format!("refund.key_seconds_left.provider.{}", entry.name);
            if let Some(seconds) = ring.seconds_left(now)
                && let Some(id) = self.metric(Metric::Gauge, name)
            {
                HOST.record(id, seconds);
            }
        }
    }

    /// How often to tick when no call is waiting.
    fn idle_tick_ms(&self) -> u32 {
        let config = self.config.borrow();
        let ends = config
            .iter()
            .flat_map(|config| config.key_rings())
            .any(|(_, ring, _)| ring.seconds_left(0).is_some());
        if ends && !self.closing.get() {
            TICK_GAUGES_MS
        } else {
            0
        }
    }

    /// Sends an answer on the stream that the host's calls speak of, and settles its key before anybody can see it.
    fn answer(&self, provider: &str, mut answer: Answer) {
        let word = self.note(provider, &mut answer);
        reply(word, &answer);
    }

    /// Writes an answer over the provider's reply, which is there, whole, with a body. An answer as of the gateway's own would go
    /// through all that Envoy does with its own answers, which takes a seventh of a refund's time.
    fn answer_in_place(&self, provider: &str, mut answer: Answer) -> Action {
        let word = self.note(provider, &mut answer);
        let written = HOST
            .set_buffer(Buffer::Response, answer.body.as_bytes())
            .and_then(|()| HOST.set_headers(Map::Response, &answer.response_headers()));
        if written.is_ok() {
            return Action::Continue;
        }
        reply(word, &answer);
        Action::Pause
    }

    /// Settles the key, logs and counts. Returns the metric's outcome label.
    fn note(&self, provider: &str, answer: &mut Answer) -> &'static str {
        self.settle(answer);
        if let Some(alarm) = &answer.alarm {
            self.tell(&format!("{}: {}", alarm.provider, alarm.sentence));
        }
        let _ = HOST.set_property("refund_status", answer.word);
        // Counted apart: what is told again is no further refund, and neither is a look-up.
        let word = if answer.replayed {
            "replayed"
        } else {
            answer.word
        };
        let counted = if answer.look_up {
            "look_ups"
        } else {
            "requests"
        };
        self.count(format!(
            "refund.{counted}.provider.{provider}.outcome.{word}"
        ));
        word
    }

    /// Lets a provider's request go. `body_is_set`: the body was replaced before the stream was paused.
    ///
    /// The filter state comes first: writing the headers clears the route, and it is chosen anew by it.
    fn send(&self, watch: &Watch, dispatch: Dispatch, body_is_set: bool) -> bool {
        let ready = HOST
            .set_property("refund_provider", &dispatch.provider)
            .and_then(|()| HOST.set_property("refund_retry", dispatch.retry.as_str()))
            .and_then(|()| match &dispatch.retry_until {
                Some(until) => HOST.set_property("refund_retry_until", until),
                None => Ok(()),
            })
            .and_then(|()| match &dispatch.key_id {
                Some(id) => HOST.set_property("refund_key_id", id),
                None => Ok(()),
            })
            .and_then(|()| {
                if body_is_set || dispatch.body.is_empty() {
                    Ok(())
                } else {
                    HOST.set_buffer(Buffer::Request, dispatch.body.as_bytes())
                }
            })
            .and_then(|()| HOST.set_headers(Map::Request, &dispatch.headers));
        match ready {
            Ok(()) => {
                if dispatch.key_id.is_some() {
                    self.count_signature(&dispatch.sent.entry());
                }
                watch.step.replace(Some(Step::Sent(dispatch.sent)));
                true
            }
            Err(refused) => {
                let answer = dispatch.sent.not_sent();
                HOST.log(
                    Level::Error,
                    &format!(
                        "refund-filter: the host refused the provider's request (status {}); nothing was sent",
                        refused.0
                    ),
                );
                self.answer(&dispatch.provider, answer);
                false
            }
        }
    }

    /// Reads, changes and stores a provider's token record, against all workers. `change` says whether there is anything
    /// to store; it may be called more than once.
    fn with_record<T>(
        provider: &ProviderEntry,
        mut change: impl FnMut(&mut Record) -> (T, bool),
    ) -> Option<T> {
        swap(HOST, &token::record_key(provider), |bytes| {
            let mut record = Record::decode(bytes);
            let (result, changed) = change(&mut record);
            (result, changed.then(|| record.encode().into_bytes()))
        })
    }

    /// The guard's table in this process: opened with the first configuration, since it counts from then on.
    fn table(&self, entries: u32) -> Option<Table> {
        if let Some(table) = self.table.get() {
            return Some(table);
        }
        let table = Table::open(HOST, entries, HOST.now(), &mut Randomness(HOST))?;
        self.table.set(Some(table));
        if table.entries != entries {
            HOST.log(
                Level::Warn,
                "refund-filter: the guard keeps the number of entries that this process began with; another one counts from \
                 its next start on",
            );
        }
        Some(table)
    }

    /// The guard, if it is on.
    fn guard(&self) -> Option<Guard<'static>> {
        let settings = self.config.borrow().as_ref()?.guard;
        if !settings.is_on() {
            return None;
        }
        Some(Guard {
            memory: HOST,
            table: self.table(settings.entries)?,
            settings,
        })
    }

    fn count_guard(&self, word: &str) {
        self.count(format!("refund.guard.event.{word}"));
    }

    /// What is known of earlier sends under a key.
    fn standing(&self, key: &Digest) -> Option<Standing> {
        self.guard()?.standing(key, HOST.now())
    }

    /// Asks the guard what a call wants of it.
    fn ask_guard(&self, asks: &Asks) -> Claim {
        let on = self.config.borrow().as_ref().map(|config| config.guard);
        if on.is_some_and(|settings| !settings.is_on()) {
            return Claim::Unguarded;
        }
        let claim = match (asks, self.guard(), random_number()) {
            (_, Some(guard), Some(lease)) => guard.ask(asks, lease, HOST.now()),
            // Without its memory the guard is as good as full; without a lease of its own a call could be settled by another.
            (Asks::Claim(_), ..) => Claim::NoRoom,
            (Asks::Nothing | Asks::Recall(_), ..) => Claim::Unguarded,
        };
        match &claim {
            Claim::Unguarded | Claim::Recalled(_) => {}
            Claim::Taken { evicted, .. } => {
                if *evicted {
                    self.count_guard("evicted");
                }
            }
            Claim::NoRoom => self.count_guard("no_room"),
            Claim::InFlight(_) => self.count_guard("in_flight"),
            Claim::Reused => self.count_guard("reused"),
            Claim::PaymentTaken { .. } => self.count_guard("payment_taken"),
            Claim::Answered { .. } => self.count_guard("replayed"),
        }
        claim
    }

    /// The answer in place of one of Envoy's own, or where a stream ends without one.
    fn local_reply(&self, step: Step) -> Answer {
        let details = HOST
            .text_property(&["response", "code_details"])
            .unwrap_or_default();
        let bytes = HOST.headers(Map::Response).unwrap_or_default();
        let status = ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default()).status;
        let reply = LocalReply {
            status,
            details: &details,
            connected: may_have_connected(),
            attempts: HOST
                .integer_property(&["upstream", "request_attempt_count"])
                .unwrap_or(u64::MAX),
        };
        step.local_reply(reply, &|key| self.standing(key))
    }

    /// Tells the guard how a call ended. Where its key has become another call's, the answer says no more than is known.
    fn settle(&self, answer: &mut Answer) {
        if answer.settles.is_none() && answer.concludes.is_none() {
            return;
        }
        let Some(guard) = self.guard() else { return };
        let lease = answer.concludes.as_ref().and_then(|_| random_number());
        if let Some(word) = answer.settle(&guard, lease, HOST.now()) {
            self.count_guard(word);
        }
    }

    /// What a call does that needs a token now; if it is to fetch one, the root is told.
    fn ask(&self, provider: &Rc<ProviderEntry>, client_secret: &Secret) -> Option<Turn> {
        let lease = random_number()?;
        let turn = Self::with_record(provider, |record| {
            let turn = record.ask(HOST.now(), lease);
            let changed = matches!(turn, Turn::Fetch(_));
            (turn, changed)
        })?;
        if let Turn::Fetch(lease) = turn {
            self.wanted.borrow_mut().push(Fetch {
                provider: Rc::clone(provider),
                client_secret: client_secret.clone(),
                lease,
            });
        }
        Some(turn)
    }

    /// Does what the exchange says, on the stream that the host's calls speak of. `body_is_set`: the body was replaced before
    /// the stream was paused.
    fn go_on(&self, id: u32, watch: &Rc<Watch>, step: Step, body_is_set: bool) -> Action {
        match step {
            Step::Answered(answer) => self.end(id, watch, answer),
            Step::Leaving(dispatch) => {
                watch.provider.replace(dispatch.provider.clone());
                if self.send(watch, *dispatch, body_is_set) {
                    Action::Continue
                } else {
                    Action::Pause
                }
            }
            Step::Calling(callout) => {
                watch.provider.replace(callout.entry().name.clone());
                if let Some(key_id) = callout.key_id() {
                    let _ = HOST.set_property("refund_key_id", key_id);
                    self.count_signature(callout.entry());
                }
                if !self.call(id, watch, &callout.request()) {
                    return self.go_on(id, watch, callout.not_made(self), body_is_set);
                }
                watch.step.replace(Some(Step::Calling(callout)));
                Action::Pause
            }
            // The host says when it goes on.
            step @ (Step::Reading(_) | Step::Sent(_) | Step::Replying(_)) => {
                watch.step.replace(Some(step));
                Action::Pause
            }
            Step::Waiting(waiting) => {
                watch.provider.replace(waiting.entry().name.clone());
                match self.ask(waiting.entry(), waiting.client_secret()) {
                    Some(Turn::Use(token)) => {
                        self.go_on(id, watch, waiting.with_token(token), body_is_set)
                    }
                    Some(turn) => self.wait(id, watch, waiting, turn),
                    None => {
                        let answer = waiting.without_token(&Failure::unreachable());
                        self.end(id, watch, answer)
                    }
                }
            }
        }
    }

    /// Answers a stream; nothing more is to be done for it.
    fn end(&self, id: u32, watch: &Watch, answer: Answer) -> Action {
        self.unwatch(id);
        watch.step.take();
        let mut provider = watch.provider.borrow_mut();
        if provider.is_empty() {
            let known = answer.alarm.as_ref().map(|alarm| &*alarm.provider);
            provider.push_str(known.unwrap_or("none"));
        }
        self.answer(&provider, answer);
        Action::Pause
    }

    /// Makes a call of the filter's own that a stream waits for. The host binds it to the context that it speaks of, the SDK to the
    /// one whose callback runs: those must be one and the same.
    fn call(&self, id: u32, watch: &Rc<Watch>, request: &CalloutRequest<'_>) -> bool {
        let root = self.acting_root.get();
        if let Some(root) = root {
            let _ = HOST.set_effective_context(root);
        }
        let CalloutRequest {
            cluster,
            headers,
            body,
            timeout_ms,
        } = request;
        let call = HOST.dispatch_http_call(cluster, headers, body, *timeout_ms);
        if root.is_some() {
            let _ = HOST.set_effective_context(id);
        }
        let Some(call) = call else {
            return false;
        };
        let callout = Callout::Stream(id, Rc::clone(watch));
        self.calls.borrow_mut().insert(call, callout);
        true
    }

    /// Goes on with a stream whose call has been answered. `came`: with headers; a call that was reset ends without.
    fn call_ended(&self, id: u32, watch: &Rc<Watch>, came: bool) {
        let bytes = HOST
            .headers(Map::CallResponse)
            .filter(|_| came)
            .unwrap_or_default();
        let head = ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default());
        let body = if came {
            HOST.buffer(Buffer::CallResponse).unwrap_or_default()
        } else {
            Vec::new()
        };
        if HOST.set_effective_context(id).is_err() {
            return;
        }
        let callout = match watch.step.take() {
            Some(Step::Calling(callout)) => callout,
            other => {
                watch.step.replace(other);
                return;
            }
        };
        let step = if came {
            let entry = Rc::clone(callout.entry());
            let guard = self.guard();
            let mut environment = Environment {
                now: HOST.now(),
                signer: &mut GatewaySigner(self),
                filter_state: &|key| HOST.property(&["filter_state", key]),
                guard: guard.as_ref(),
                public_keys: self,
            };
            let step = callout.reply(&head, &body, &mut environment);
            if let Step::Answered(answer) = &step {
                drop_token(&entry, answer);
            }
            step
        } else {
            callout.cut(self)
        };
        if self.go_on(id, watch, step, false) == Action::Continue {
            let _ = HOST.resume_request();
        }
    }

    fn wait(&self, id: u32, watch: &Rc<Watch>, waiting: Box<Waiting>, turn: Turn) -> Action {
        // Here and now the body can be replaced for sure; when the token comes, only the headers are left to be written.
        let set = waiting.body().map_or(Ok(()), |body| {
            HOST.set_buffer(Buffer::Request, body.as_bytes())
        });
        if set.is_err() {
            let answer = waiting.without_token(&Failure::unreachable());
            return self.end(id, watch, answer);
        }
        watch.step.replace(Some(Step::Waiting(waiting)));
        self.watch_from_now(
            id,
            watch,
            match turn {
                Turn::Fetch(_) => TICK_SOON_MS,
                Turn::Use(_) | Turn::Wait => TICK_TOKEN_MS,
            },
        );
        Action::Pause
    }

    fn watch_from_now(&self, id: u32, watch: &Rc<Watch>, tick_ms: u32) {
        watch.since_ms.set(HOST.now().steady_ms);
        self.watched.borrow_mut().insert(id, Rc::clone(watch));
        self.tick_within(tick_ms);
    }
}

impl PublicKeys for Shared {
    fn told(&self, provider: &str) -> Told {
        let now_ms = HOST.now().steady_ms;
        let told = self.told.borrow();
        match told.get(provider) {
            Some((Told::Unavailable, until_ms)) if now_ms >= *until_ms => Told::NotAsked,
            Some((told, _)) => told.clone(),
            None => Told::NotAsked,
        }
    }

    fn remember(&self, provider: &str, keys: Option<TransitKeys>) -> Told {
        let (told, until_ms) = match keys {
            Some(keys) => (Told::Keys(keys), i64::MAX),
            None => {
                HOST.log(
                    Level::Warn,
                    &format!(
                        "refund-filter: {provider}: OpenBao's signatures are not verified before they are sent: its public \
                         keys cannot be read (allow `read` on the path keys/NAME, or give signing.transit.public_keys)"
                    ),
                );
                let until_ms = HOST.now().steady_ms.saturating_add(UNTOLD_MS);
                (Told::Unavailable, until_ms)
            }
        };
        let mut known = self.told.borrow_mut();
        known.insert(provider.to_owned(), (told.clone(), until_ms));
        told
    }
}

/// Drops the token that the provider has just refused.
fn drop_token(entry: &ProviderEntry, answer: &Answer) {
    if let Some(token) = &answer.refused_token {
        Shared::with_record(entry, |record| ((), record.refused(token)));
    }
}

/// Answers the stream as Envoy answers by itself.
fn reply(word: &str, answer: &Answer) {
    let details = format!("refund_{}", word.replace('-', "_"));
    let body = answer.body.as_bytes();
    if HOST
        .reply(answer.status, &details, &answer.headers, body)
        .is_err()
    {
        HOST.log(
            Level::Error,
            "refund-filter: the host took no answer; Envoy's own reply stands for it",
        );
    }
}

fn random_number() -> Option<u64> {
    let mut bytes = [0; 8];
    HOST.fill_random(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The plugin in one worker.
struct Root {
    id: u32,
    shared: Rc<Shared>,
}

impl Context for Root {
    fn on_http_call_response(&mut self, call: u32, headers: usize, _body: usize, _trailers: usize) {
        let callout = self.shared.calls.borrow_mut().remove(&call);
        // A call that was reset ends without headers.
        let came = headers > 0;
        self.shared.acting_root.set(Some(self.id));
        match callout {
            Some(Callout::Token(fetch)) => {
                let result = if came {
                    read_token_reply(&fetch)
                } else {
                    Err(Failure::unreachable())
                };
                self.settle(&fetch, result);
            }
            Some(Callout::Stream(id, watch)) => {
                self.shared.call_ended(id, &watch, came);
                let _ = HOST.set_effective_context(self.id);
            }
            None => {}
        }
        self.shared.acting_root.set(None);
    }

    fn on_done(&mut self) -> bool {
        let shared = &self.shared;
        shared.closing.set(true);
        if shared.watched.borrow().is_empty() {
            shared.set_tick(0);
            // Nobody waits here for what is being fetched, and its answer will not be delivered: others must not wait for it.
            let wanted = mem::take(&mut *shared.wanted.borrow_mut());
            let calls = mem::take(&mut *shared.calls.borrow_mut());
            let fetching = calls.into_values().filter_map(|callout| match callout {
                Callout::Token(fetch) => Some(fetch),
                Callout::Stream(..) => None,
            });
            for fetch in wanted.into_iter().chain(fetching) {
                let gone = Err(Failure::unreachable());
                Shared::with_record(&fetch.provider, |record| {
                    ((), record.settle(fetch.lease, &gone))
                });
            }
        }
        true
    }
}

fn read_token_reply(fetch: &Fetch) -> Result<Token, Failure> {
    let bytes = HOST.headers(Map::CallResponse).unwrap_or_default();
    let headers = Headers::decode(&bytes).unwrap_or_default();
    let head = ReplyHead::of(&headers);
    let body = HOST.buffer(Buffer::CallResponse).unwrap_or_default();
    let retry_after = headers.first("retry-after").and_then(retry_after);
    let body = if head.coded { Vec::new() } else { body };
    let mut result = token::read_reply(head.status, retry_after, &body, HOST.now());
    // All who wait see these words, and so does whoever asks later with another secret.
    if let (Err(failure), Auth::Token(endpoint)) = (&mut result, &fetch.provider.auth) {
        failure.redact(endpoint, &fetch.client_secret);
    }
    result
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let text = HOST.buffer(Buffer::Configuration).unwrap_or_default();
        let read = Config::read(&text, &|name| std::env::var(name).ok());
        let checked = read.and_then(|config| self.check_signers(config));
        let (accepted, word) = match checked {
            Ok(config) => {
                self.announce(&config);
                if config.guard.is_on() {
                    self.shared.table(config.guard.entries);
                }
                self.shared.config.replace(Some(Rc::new(config)));
                self.shared.set_tick(self.shared.idle_tick_ms());
                (true, "accepted")
            }
            Err(faults) => {
                for fault in faults {
                    HOST.log(
                        Level::Error,
                        &format!(
                            "refund-filter: configuration refused at {:?}: {}",
                            fault.pointer, fault.detail
                        ),
                    );
                }
                (false, "refused")
            }
        };
        self.shared
            .count(format!("refund.configurations.result.{word}"));
        accepted
    }

    fn on_tick(&mut self) {
        self.shared.acting_root.set(Some(self.id));
        self.shared.set_gauges();
        let wanted = mem::take(&mut *self.shared.wanted.borrow_mut());
        for fetch in wanted {
            self.fetch(fetch);
        }
        self.look_after_streams();
        // Starts the fetches that waiting streams took over in this tick.
        let wanted = mem::take(&mut *self.shared.wanted.borrow_mut());
        for fetch in wanted {
            self.fetch(fetch);
        }
        let _ = HOST.set_effective_context(self.id);
        self.shared.acting_root.set(None);
        let watched = self.shared.watched.borrow();
        let waits = |watch: &Rc<Watch>| matches!(*watch.step.borrow(), Some(Step::Waiting(_)));
        self.shared.set_tick(if watched.is_empty() {
            self.shared.idle_tick_ms()
        } else if watched.values().any(waits) {
            TICK_TOKEN_MS
        } else {
            TICK_BODY_MS
        });
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            id,
            shared: Rc::clone(&self.shared),
            watch: Rc::default(),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
    /// A configuration that insists on the host's signer needs a host that has one.
    fn check_signers(&self, config: Config) -> Result<Config, Vec<Fault>> {
        let faults: Vec<Fault> = config
            .key_rings()
            .filter(|(_, _, choice)| *choice == SignerChoice::Host && !self.shared.host_signs())
            .map(|(entry, _, _)| {
                Fault::at(
                    format!("/providers/{}/signing/signer", entry.name),
                    "This Envoy has no function `sign` (1.37 and later have it): use auto or vm.",
                )
            })
            .collect();
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(faults)
        }
    }

    fn announce(&self, config: &Config) {
        let names: Vec<_> = config
            .providers()
            .map(|entry| {
                let signer = match &entry.auth {
                    Auth::Signature(Signing::Keys { signer, .. }) => {
                        match self.shared.signer_name(*signer) {
                            "host" => ", signed by the host",
                            _ => ", signed in the module",
                        }
                    }
                    Auth::Signature(Signing::Transit(_)) => ", signed by OpenBao",
                    _ => "",
                };
                format!("{} ({}{signer})", entry.name, entry.kind.name)
            })
            .collect();
        HOST.log(
            Level::Info,
            &format!(
                "refund-filter {}: configured for POST and GET {}: {}",
                crate::VERSION,
                config.path,
                names.join(", ")
            ),
        );
    }

    fn fetch(&self, fetch: Fetch) {
        let Auth::Token(endpoint) = &fetch.provider.auth else {
            return;
        };
        let headers = token::request_headers(endpoint, &fetch.client_secret);
        // The call is the root's, whatever stream was looked after before.
        let _ = HOST.set_effective_context(self.id);
        match HOST.dispatch_http_call(
            &endpoint.cluster,
            &headers,
            token::REQUEST_BODY,
            token::FETCH_TIMEOUT_MS,
        ) {
            Some(call) => {
                let mut calls = self.shared.calls.borrow_mut();
                calls.insert(call, Callout::Token(fetch));
            }
            // No such cluster, or no host in it.
            None => self.settle(&fetch, Err(Failure::unreachable())),
        }
    }

    /// Stores what a fetch brought and wakes who waits for it in this worker; the others see it at their next look.
    fn settle(&self, fetch: &Fetch, result: Result<Token, Failure>) {
        let word = match &result {
            Ok(_) => "ok",
            Err(failure) => {
                HOST.log(
                    Level::Warn,
                    &format!(
                        "refund-filter: no token for {}: {:?}, status {:?}",
                        fetch.provider.name, failure.kind, failure.status
                    ),
                );
                match failure.kind {
                    FailureKind::Refused => "refused",
                    FailureKind::RateLimited => "rate_limited",
                    FailureKind::Unreachable => "unreachable",
                }
            }
        };
        self.shared.count(format!(
            "refund.token.provider.{}.fetch.{word}",
            fetch.provider.name
        ));
        Shared::with_record(&fetch.provider, |record| {
            ((), record.settle(fetch.lease, &result))
        });
        for (id, watch) in self.watched() {
            let ours = match &*watch.step.borrow() {
                Some(Step::Waiting(waiting)) => Rc::ptr_eq(waiting.entry(), &fetch.provider),
                _ => false,
            };
            if ours {
                let found = match &result {
                    Ok(token) => Ok(token.value.clone()),
                    Err(failure) => Err(failure.clone()),
                };
                self.wake(id, &watch, found);
            }
        }
        let _ = HOST.set_effective_context(self.id);
    }

    fn watched(&self) -> Vec<(u32, Rc<Watch>)> {
        let watched = self.shared.watched.borrow();
        watched
            .iter()
            .map(|(id, watch)| (*id, Rc::clone(watch)))
            .collect()
    }

    /// Lets a waiting call go on with a token, or answers it without one.
    fn wake(&self, id: u32, watch: &Rc<Watch>, found: Result<Secret, Failure>) {
        self.shared.unwatch(id);
        let Some(Step::Waiting(waiting)) = watch.step.take() else {
            return;
        };
        if HOST.set_effective_context(id).is_err() {
            return;
        }
        match found {
            Ok(token) => {
                // What was to be sent in place of the caller's body was set when the call began to wait.
                let step = waiting.with_token(token);
                if self.shared.go_on(id, watch, step, true) == Action::Continue {
                    let _ = HOST.resume_request();
                }
            }
            Err(failure) => {
                let answer = waiting.without_token(&failure);
                self.shared.end(id, watch, answer);
            }
        }
    }

    /// Looks after every paused call: bodies that do not come, and tokens that another worker fetches.
    fn look_after_streams(&self) {
        let now = HOST.now();
        let mut looks: BTreeMap<String, Option<Look>> = BTreeMap::new();
        let earlier = |key: &Digest| self.shared.standing(key);
        for (id, watch) in self.watched() {
            let waited_ms = now.steady_ms.saturating_sub(watch.since_ms.get());
            let step = watch.step.borrow();
            match &*step {
                Some(Step::Reading(reading)) => {
                    let answer = if waited_ms > BODY_TIMEOUT_MS {
                        if !watch.body_seen.get() {
                            self.shared.tell(
                                "a body did not begin in time: the caller sent none, or the plugin's configuration lacks \
                                 allow_on_headers_stop_iteration: true",
                            );
                        }
                        reading.stalled(&earlier)
                    } else if !watch.body_seen.get()
                        && !self.shared.bodies_come.get()
                        && body_is_withheld(id, &watch)
                    {
                        HOST.log(
                            Level::Error,
                            "refund-filter: Envoy holds a body back: set allow_on_headers_stop_iteration: true in the plugin's \
                             configuration (Envoy 1.35 and later)",
                        );
                        reading.withheld(&earlier)
                    } else {
                        continue;
                    };
                    drop(step);
                    if HOST.set_effective_context(id).is_ok() {
                        self.shared.end(id, &watch, answer);
                    } else {
                        watch.step.take();
                        self.shared.unwatch(id);
                    }
                }
                Some(Step::Waiting(waiting)) => {
                    let entry = Rc::clone(waiting.entry());
                    let client_secret = waiting.client_secret().clone();
                    drop(step);
                    let look = looks.entry(entry.name.clone()).or_insert_with(|| {
                        Shared::with_record(&entry, |record| (record.look(now), false))
                    });
                    match look {
                        Some(Look::Ready(token)) => self.wake(id, &watch, Ok(token.clone())),
                        Some(Look::Failed(failure)) => {
                            self.wake(id, &watch, Err(failure.clone()));
                        }
                        _ if waited_ms > TOKEN_TIMEOUT_MS => {
                            self.wake(id, &watch, Err(Failure::unreachable()));
                        }
                        Some(Look::Ask) => {
                            // Once for all who wait; what comes of it is seen at the next look.
                            self.shared.ask(&entry, &client_secret);
                            *look = Some(Look::Wait);
                        }
                        Some(Look::Wait) | None => {}
                    }
                }
                None
                | Some(
                    Step::Answered(_)
                    | Step::Calling(_)
                    | Step::Leaving(_)
                    | Step::Sent(_)
                    | Step::Replying(_),
                ) => {
                    drop(step);
                    self.shared.unwatch(id);
                }
            }
        }
    }
}

/// Whether bytes of a body have come of which the filter was not told. With `allow_on_headers_stop_iteration` it is told in
/// the same event.
fn body_is_withheld(id: u32, watch: &Watch) -> bool {
    HOST.set_effective_context(id).is_ok() && body_bytes() > watch.body_base.get()
}

/// What Envoy has received of this call beyond its headers. Not nought at the start where a filter in front has changed the
/// headers, hence a difference.
fn body_bytes() -> u64 {
    let size = |name| {
        HOST.integer_property(&["request", name])
            .unwrap_or_default()
    };
    size("total_size").saturating_sub(size("headers_bytes"))
}

/// One request and its response.
struct Stream {
    id: u32,
    shared: Rc<Shared>,
    watch: Rc<Watch>,
}

/// Signs by the host or in the module, as the configuration says.
struct GatewaySigner<'a>(&'a Shared);

impl Signer for GatewaySigner<'_> {
    fn sign(
        &mut self,
        choice: SignerChoice,
        key: &PrivateKey,
        text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed> {
        if self.0.signer_name(choice) == "vm" {
            return VmSigner(Randomness(HOST)).sign(choice, key, text);
        }
        let result = HOST.call_foreign_function("sign", &host_arguments(key, text));
        host_signature(key, text, &result.map_err(|_| SignerFailed)?)
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, call: u32, headers: usize, _body: usize, _trailers: usize) {
        let callout = self.shared.calls.borrow_mut().remove(&call);
        if let Some(Callout::Stream(id, watch)) = callout {
            self.shared.call_ended(id, &watch, headers > 0);
        }
    }

    fn on_done(&mut self) -> bool {
        self.shared.unwatch(self.id);
        // Its calls are gone with it.
        let mut calls = self.shared.calls.borrow_mut();
        calls.retain(|_, callout| !matches!(callout, Callout::Stream(id, _) if *id == self.id));
        drop(calls);
        self.settle_without_answer();
        true
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        let config = self.shared.config.borrow().clone();
        let bytes = HOST.headers(Map::Request);
        let (Some(config), Some(headers)) = (config, bytes.as_deref().and_then(Headers::decode))
        else {
            // Whose it is cannot be seen, nor whether it carries secrets: it goes no further.
            return self.answer(unreadable_call());
        };
        for name in &config.secret_headers {
            if headers.first(name).is_some() {
                let _ = HOST.remove_request_header(name);
            }
        }
        let earlier = |key: &Digest| self.shared.standing(key);
        match open(&config, &headers, HOST.now(), &earlier) {
            Opening::NotOurs => Action::Continue,
            Opening::Answer(answer) => self.answer(answer),
            Opening::Read(reading) => {
                // For local_reply_config: what Envoy answers past the filter must not say that no money has moved.
                if let Some(retry) = reading.standing() {
                    let _ = HOST.set_property("refund_retry", retry.as_str());
                }
                self.watch.step.replace(Some(Step::Reading(reading)));
                if end_of_stream {
                    return self.call_is_whole();
                }
                if !self.shared.bodies_come.get() {
                    self.watch.body_base.set(body_bytes());
                }
                self.shared
                    .watch_from_now(self.id, &self.watch, TICK_BODY_MS);
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let step = self.watch.step.borrow();
        let Some(Step::Reading(reading)) = &*step else {
            // What is answered gets no further; what is not ours goes through.
            return if self.watch.provider.borrow().is_empty() {
                Action::Continue
            } else {
                Action::Pause
            };
        };
        self.watch.body_seen.set(true);
        self.shared.bodies_come.set(true);
        // The host counts what it has buffered; more than this is never wanted.
        if size > MAX_BODY {
            let answer = reading.too_large(&|key| self.shared.standing(key));
            drop(step);
            return self.answer(answer);
        }
        drop(step);
        if end_of_stream {
            self.call_is_whole()
        } else {
            Action::Pause
        }
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        if !matches!(*self.watch.step.borrow(), Some(Step::Reading(_))) {
            return Action::Continue;
        }
        let _ = HOST.set_headers(Map::RequestTrailers, &Headers::default());
        self.call_is_whole()
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        match self.watch.step.take() {
            None => Action::Continue,
            Some(Step::Sent(sent))
                if HOST.text_property(&["response", "code_details"]).as_deref()
                    == Some("via_upstream") =>
            {
                // For local_reply_config: what Envoy answers from here on does not pass the filter.
                let _ = HOST.set_property("refund_reply", "started");
                let bytes = HOST.headers(Map::Response).unwrap_or_default();
                let head = ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default());
                let replying = Step::Replying(sent.replying(head));
                self.watch.step.replace(Some(replying));
                if end_of_stream {
                    return self.reply_is_whole(&[], false);
                }
                Action::Pause
            }
            Some(step) => {
                let answer = self.shared.local_reply(step);
                self.answer(answer)
            }
        }
    }

    fn on_http_response_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        if !matches!(*self.watch.step.borrow(), Some(Step::Replying(_))) {
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        let body = HOST.buffer(Buffer::Response).unwrap_or_default();
        self.reply_is_whole(&body, true)
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        if !matches!(*self.watch.step.borrow(), Some(Step::Replying(_))) {
            return Action::Continue;
        }
        let body = HOST.buffer(Buffer::Response).unwrap_or_default();
        self.reply_is_whole(&body, false)
    }
}

/// Whether a connection was handed out, so that bytes may have left.
///
/// Envoy sets the local address just before it writes the first byte, but never on a Unix socket: there its absence proves
/// nothing.
fn may_have_connected() -> bool {
    let given = |name| {
        HOST.text_property(&["upstream", name])
            .filter(|text| !text.is_empty())
    };
    let on_tcp = |address: String| address.parse::<SocketAddr>().is_ok();
    given("local_address").is_some() || given("address").is_some_and(|address| !on_tcp(address))
}

impl Stream {
    /// Settles the key of a call that ended without an answer of the filter's: the caller left, or Envoy answered past the
    /// filter.
    fn settle_without_answer(&self) {
        if let Some(step) = self.watch.step.take() {
            let mut answer = self.shared.local_reply(step);
            self.shared.settle(&mut answer);
        }
    }

    fn answer(&mut self, answer: Answer) -> Action {
        self.shared.end(self.id, &self.watch, answer)
    }

    /// The call is here, whole: translate it and let it go, or answer it, or have it wait.
    fn call_is_whole(&mut self) -> Action {
        let Some(Step::Reading(reading)) = self.watch.step.take() else {
            return Action::Continue;
        };
        self.shared.unwatch(self.id);
        let body = HOST.buffer(Buffer::Request).unwrap_or_default();
        let accepted = match reading.accept(&body, &|key| self.shared.standing(key)) {
            Ok(accepted) => accepted,
            Err(answer) => return self.answer(answer),
        };
        let claim = self.shared.ask_guard(accepted.asks());
        let filter_state = |key: &str| HOST.property(&["filter_state", key]);
        let mut signer = GatewaySigner(&self.shared);
        let step = accepted.proceed(claim, HOST.now(), &mut signer, &filter_state);
        self.shared.go_on(self.id, &self.watch, step, false)
    }

    /// The provider's reply is here, whole.
    ///
    /// `in_place`: its body is before us, and ends the message.
    fn reply_is_whole(&mut self, body: &[u8], in_place: bool) -> Action {
        let Some(Step::Replying(replying)) = self.watch.step.take() else {
            return Action::Continue;
        };
        let attempts = if replying.counts_attempts() {
            HOST.integer_property(&["upstream", "request_attempt_count"])
                .unwrap_or(u64::MAX)
        } else {
            1
        };
        let entry = replying.entry();
        let answer = replying.reply(body, attempts);
        drop_token(&entry, &answer);
        if in_place {
            self.shared
                .answer_in_place(&self.watch.provider.borrow(), answer)
        } else {
            self.answer(answer)
        }
    }
}
