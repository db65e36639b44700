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
use std::time::Duration;

use proxy_wasm::hostcalls::dispatch_http_call;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};
use rand_core::{OsRng, RngCore};

use crate::config::{Auth, Config, ProviderEntry};
use crate::exchange::{
    ASK_TIMEOUT_MS, Answer, Asking, Dispatch, LocalReply, MAX_BODY, Opening, Prepared, Reading,
    ReplyHead, Sent, Unsigned, Waiting, open, retry_after, unreadable_call,
};
use crate::guard::{self, Asks, Claim, Digest, Guard, GuardSettings, Standing};
use crate::headers::Headers;
use crate::host::{self, Buffer, Level, Map, Metric};
use crate::memory::{Memory, NotWritten, swap};
use crate::problem::Fault;
use crate::secret::Secret;
use crate::signing::{
    PrivateKey, Signer, SignerChoice, SignerFailed, Signing, TRANSIT_TIMEOUT_MS, VmSigner,
    host_arguments, host_signature,
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
    /// Fetches under way, by the number of the call.
    fetching: RefCell<BTreeMap<u32, Fetch>>,
    tick_ms: Cell<u32>,
    /// The root is done: another configuration has taken its place, and only its own streams are left.
    closing: Cell<bool>,
    metrics: RefCell<BTreeMap<String, u32>>,
    /// When the gauges were last set, Unix time in milliseconds.
    gauges_ms: Cell<i64>,
    /// Whether the host can sign; none until that was tried.
    host_signs: Cell<Option<bool>>,
    /// The sentences for the platform team, and when each was last logged.
    alarms: RefCell<BTreeMap<String, i64>>,
    /// Whether a body has ever come to a paused call: then Envoy's option for it is set, and none is withheld.
    bodies_come: Cell<bool>,
    /// The size of the guard's table in this process; none until it was looked up.
    guard_entries: Cell<Option<u32>>,
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
    state: RefCell<State>,
    /// When the present state began, Unix time in milliseconds.
    since_ms: Cell<i64>,
    /// Whether the host has called with a part of the body.
    body_seen: Cell<bool>,
    /// [`body_bytes`] at the headers, when no body had come.
    body_base: Cell<u64>,
}

/// Where a stream stands.
#[derive(Default)]
enum State {
    /// Not ours, or answered: nothing more to do.
    #[default]
    Done,
    /// The call's body is being read.
    Reading(Reading),
    /// The call waits for a token.
    Waiting(Box<Waiting>),
    /// The call waits for OpenBao's signature.
    Signing(Box<Unsigned>),
    /// The call waits for the provider's word on an order.
    Asking(Box<Asking>),
    /// The provider's request may have left.
    Sent(Sent),
    /// The provider's reply is being read.
    Replying(Sent, ReplyHead),
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
        host::set_tick_period(milliseconds);
    }

    fn count(&self, name: String) {
        if let Some(id) = self.metric(Metric::Counter, name) {
            host::count(id);
        }
    }

    /// The host takes a new id for every definition, also of a name that it knows.
    fn metric(&self, kind: Metric, name: String) -> Option<u32> {
        let mut metrics = self.metrics.borrow_mut();
        if let Some(id) = metrics.get(&name) {
            return Some(*id);
        }
        let id = host::metric(kind, &name)?;
        metrics.insert(name, id);
        Some(id)
    }

    /// Whether Envoy has the function `sign` (1.37 and later). Without arguments it refuses in one way or another; only where
    /// there is no such function the host does not find it.
    fn host_signs(&self) -> bool {
        self.host_signs.get().unwrap_or_else(|| {
            let signs = host::call_foreign_function("sign", &[]) != Err(host::NOT_FOUND);
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
        let now_ms = host::now_ms();
        let mut alarms = self.alarms.borrow_mut();
        alarms.retain(|_, at| now_ms.saturating_sub(*at) <= ALARM_EVERY_MS);
        if !alarms.contains_key(sentence) {
            host::log(Level::Error, &format!("refund-filter: {sentence}"));
            alarms.insert(sentence.to_owned(), now_ms);
        }
    }

    /// Sets the gauges that tell how long keys last.
    fn set_gauges(&self) {
        let now_ms = host::now_ms();
        if now_ms.saturating_sub(self.gauges_ms.get()) < i64::from(TICK_GAUGES_MS) {
            return;
        }
        self.gauges_ms.set(now_ms);
        let now = now_ms.div_euclid(1_000);
        let config = self.config.borrow();
        for (entry, ring, _) in config.iter().flat_map(|config| config.key_rings()) {
            let name = format!("refund.key_seconds_left.provider.{}", entry.name);
            if let Some(seconds) = ring.seconds_left(now)
                && let Some(id) = self.metric(Metric::Gauge, name)
            {
                host::record(id, seconds);
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
        let written = host::set_buffer(Buffer::Response, answer.body.as_bytes())
            .and_then(|()| host::set_headers(Map::Response, &answer.response_headers()));
        if written.is_ok() {
            return Action::Continue;
        }
        reply(word, &answer);
        Action::Pause
    }

    /// Does what goes with an answer: settles its key, and tells who watches. Returns the word that counts.
    fn note(&self, provider: &str, answer: &mut Answer) -> &'static str {
        self.settle(answer);
        if let Some(alarm) = &answer.alarm {
            self.tell(&format!("{}: {}", alarm.provider, alarm.sentence));
        }
        let _ = host::set_property("refund_status", answer.word);
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
        let ready = host::set_property("refund_provider", &dispatch.provider)
            .and_then(|()| host::set_property("refund_retry", dispatch.retry.as_str()))
            .and_then(|()| match &dispatch.retry_until {
                Some(until) => host::set_property("refund_retry_until", until),
                None => Ok(()),
            })
            .and_then(|()| match &dispatch.key_id {
                Some(id) => host::set_property("refund_key_id", id),
                None => Ok(()),
            })
            .and_then(|()| {
                if body_is_set || dispatch.body.is_empty() {
                    Ok(())
                } else {
                    host::set_buffer(Buffer::Request, dispatch.body.as_bytes())
                }
            })
            .and_then(|()| host::set_headers(Map::Request, &dispatch.headers));
        match ready {
            Ok(()) => {
                if dispatch.key_id.is_some() {
                    self.count_signature(&dispatch.sent.entry());
                }
                watch.state.replace(State::Sent(dispatch.sent));
                true
            }
            Err(refused) => {
                let answer = dispatch.sent.not_sent();
                host::log(
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
        swap(&Host, &token::record_key(provider), |bytes| {
            let mut record = Record::decode(bytes);
            let (result, changed) = change(&mut record);
            (result, changed.then(|| record.encode().into_bytes()))
        })
    }

    /// The guard, if it is on.
    fn guard(&self) -> Option<Guard<'static>> {
        let settings = self.config.borrow().as_ref()?.guard;
        if !settings.is_on() {
            return None;
        }
        let entries = self
            .guard_entries
            .get()
            .or_else(|| guard::entries(&Host, settings.entries))?;
        if self.guard_entries.replace(Some(entries)).is_none() && entries != settings.entries {
            host::log(
                Level::Warn,
                "refund-filter: the guard keeps the number of entries that this process began with; another one counts from \
                 its next start on",
            );
        }
        Some(Guard {
            memory: &Host,
            settings: GuardSettings {
                entries,
                ..settings
            },
        })
    }

    fn count_guard(&self, word: &str) {
        self.count(format!("refund.guard.event.{word}"));
    }

    /// What is known of earlier sends under a key.
    fn standing(&self, key: &Digest) -> Option<Standing> {
        self.guard()?.standing(key, host::now_ms())
    }

    /// Asks the guard what a call wants of it.
    fn ask_guard(&self, asks: &Asks) -> Claim {
        let on = self.config.borrow().as_ref().map(|config| config.guard);
        if on.is_some_and(|settings| !settings.is_on()) {
            return Claim::None;
        }
        let claim = match (asks, self.guard(), random_number()) {
            (_, Some(guard), Some(lease)) => guard.ask(asks, lease, host::now_ms()),
            // Without its memory the guard is as good as full; without a lease of its own a call could be settled by another.
            (Asks::Claim(_), ..) => Claim::NoRoom,
            (Asks::Nothing | Asks::Recall(_), ..) => Claim::None,
        };
        match &claim {
            Claim::None | Claim::Taken { .. } | Claim::Recalled(_) => {}
            Claim::NoRoom => self.count_guard("no_room"),
            Claim::InFlight(_) => self.count_guard("in_flight"),
            Claim::Reused => self.count_guard("reused"),
            Claim::Answered { .. } => self.count_guard("replayed"),
        }
        claim
    }

    /// Tells the guard how a call ended. Where its key has become another call's, the answer says no more than is known.
    fn settle(&self, answer: &mut Answer) {
        if answer.settles.is_none() && answer.concludes.is_none() {
            return;
        }
        let Some(guard) = self.guard() else { return };
        let lease = answer.concludes.as_ref().and_then(|_| random_number());
        if let Some(word) = answer.settle(&guard, lease, host::now_ms()) {
            self.count_guard(word);
        }
    }

    /// What a call does that needs a token now; if it is to fetch one, the root is told.
    fn ask(&self, provider: &Rc<ProviderEntry>, client_secret: &Secret) -> Option<Turn> {
        let lease = random_number()?;
        let turn = Self::with_record(provider, |record| {
            let turn = record.ask(host::now_ms(), lease);
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
}

/// Answers the stream as Envoy answers by itself.
fn reply(word: &str, answer: &Answer) {
    let details = format!("refund_{}", word.replace('-', "_"));
    let body = answer.body.as_bytes();
    if host::reply(answer.status, &details, &answer.headers, body).is_err() {
        host::log(
            Level::Error,
            "refund-filter: the host took no answer; Envoy's own reply stands for it",
        );
    }
}

/// The host's shared data.
struct Host;

impl Memory for Host {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        host::shared_data(name)
    }

    fn write(&self, name: &str, bytes: &[u8], number: u32) -> Result<(), NotWritten> {
        host::set_shared_data(name, bytes, number).map_err(|refused| match refused {
            host::CAS_MISMATCH => NotWritten::TooLate,
            _ => NotWritten::Refused,
        })
    }
}

fn random_number() -> Option<u64> {
    let mut bytes = [0; 8];
    OsRng.try_fill_bytes(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The plugin in one worker.
struct Root {
    id: u32,
    shared: Rc<Shared>,
}

impl Context for Root {
    fn on_http_call_response(&mut self, call: u32, headers: usize, _body: usize, _trailers: usize) {
        let fetch = self.shared.fetching.borrow_mut().remove(&call);
        if let Some(fetch) = fetch {
            // A call that was reset ends without headers.
            let result = if headers == 0 {
                Err(Failure::unreachable())
            } else {
                read_token_reply(&fetch)
            };
            self.settle(&fetch, result);
        }
    }

    fn on_done(&mut self) -> bool {
        let shared = &self.shared;
        shared.closing.set(true);
        if shared.watched.borrow().is_empty() {
            shared.set_tick(0);
            // Nobody waits here for what is being fetched, and its answer will not be delivered: others must not wait for it.
            let wanted = mem::take(&mut *shared.wanted.borrow_mut());
            let fetching = mem::take(&mut *shared.fetching.borrow_mut());
            for fetch in wanted.into_iter().chain(fetching.into_values()) {
                let gone = Err(Failure::unreachable());
                Shared::with_record(&fetch.provider, |record| {
                    ((), record.settle(fetch.lease, &gone))
                });
            }
        }
        true
    }
}

/// Makes a call of the filter's own. The SDK's wrapper must be used, since it alone binds the answer to the context that is
/// running; the statuses at which it would panic are none that Envoy gives here.
fn dispatch(cluster: &str, headers: &Headers<'_>, body: &str, timeout_ms: u32) -> Option<u32> {
    // What the SDK cannot take is a caller's tracing header that is not UTF-8: all else is the gateway's own.
    let pairs = headers
        .iter()
        .filter_map(|(name, value)| {
            Some((
                std::str::from_utf8(name).ok()?,
                std::str::from_utf8(value).ok()?,
            ))
        })
        .collect();
    let timeout = Duration::from_millis(u64::from(timeout_ms));
    dispatch_http_call(cluster, pairs, Some(body.as_bytes()), Vec::new(), timeout).ok()
}

fn read_token_reply(fetch: &Fetch) -> Result<Token, Failure> {
    let bytes = host::headers(Map::CallResponse).unwrap_or_default();
    let headers = Headers::decode(&bytes).unwrap_or_default();
    let head = ReplyHead::of(&headers);
    let body = host::buffer(Buffer::CallResponse).unwrap_or_default();
    let retry_after = headers.first("retry-after").and_then(retry_after);
    let body = if head.coded { Vec::new() } else { body };
    let mut result = token::read_reply(head.status, retry_after, &body, host::now_ms());
    // All who wait see these words, and so does whoever asks later with another secret.
    if let (Err(failure), Auth::Token(endpoint)) = (&mut result, &fetch.provider.auth) {
        failure.redact(endpoint, &fetch.client_secret);
    }
    result
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let text = host::buffer(Buffer::Configuration).unwrap_or_default();
        let read = Config::read(&text, &|name| std::env::var(name).ok());
        let checked = read.and_then(|config| self.check_signers(config));
        let (accepted, word) = match checked {
            Ok(config) => {
                self.announce(&config);
                self.shared.config.replace(Some(Rc::new(config)));
                self.shared.set_tick(self.shared.idle_tick_ms());
                (true, "accepted")
            }
            Err(faults) => {
                for fault in faults {
                    host::log(
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
        self.shared.set_gauges();
        let wanted = mem::take(&mut *self.shared.wanted.borrow_mut());
        for fetch in wanted {
            self.fetch(fetch);
        }
        self.look_after_streams();
        // Whoever found that nobody fetches any more has taken it on.
        let wanted = mem::take(&mut *self.shared.wanted.borrow_mut());
        for fetch in wanted {
            self.fetch(fetch);
        }
        let _ = host::set_effective_context(self.id);
        let watched = self.shared.watched.borrow();
        let waits = |watch: &Rc<Watch>| matches!(*watch.state.borrow(), State::Waiting(_));
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
            provider: String::new(),
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
                format!("{} ({}{signer})", entry.name, entry.kind.as_str())
            })
            .collect();
        host::log(
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
        match dispatch(
            &endpoint.cluster,
            &headers,
            token::REQUEST_BODY,
            token::FETCH_TIMEOUT_MS,
        ) {
            Some(call) => {
                self.shared.fetching.borrow_mut().insert(call, fetch);
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
                host::log(
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
            let ours = match &*watch.state.borrow() {
                State::Waiting(waiting) => Rc::ptr_eq(waiting.entry(), &fetch.provider),
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
        let _ = host::set_effective_context(self.id);
    }

    fn watched(&self) -> Vec<(u32, Rc<Watch>)> {
        let watched = self.shared.watched.borrow();
        watched
            .iter()
            .map(|(id, watch)| (*id, Rc::clone(watch)))
            .collect()
    }

    /// Lets a waiting call go on with a token, or answers it without one.
    fn wake(&self, id: u32, watch: &Watch, found: Result<Secret, Failure>) {
        self.shared.unwatch(id);
        let State::Waiting(waiting) = watch.state.replace(State::Done) else {
            return;
        };
        if host::set_effective_context(id).is_err() {
            return;
        }
        let name = waiting.entry().name.clone();
        match found {
            Ok(token) => {
                let dispatch = waiting.with_token(token);
                if self.shared.send(watch, dispatch, true) {
                    let _ = host::resume_request();
                }
            }
            Err(failure) => self.shared.answer(&name, waiting.without_token(&failure)),
        }
    }

    /// Looks after every paused call: bodies that do not come, and tokens that another worker fetches.
    fn look_after_streams(&self) {
        let now_ms = host::now_ms();
        let mut looks: BTreeMap<String, Option<Look>> = BTreeMap::new();
        let earlier = |key: &Digest| self.shared.standing(key);
        for (id, watch) in self.watched() {
            let waited_ms = now_ms.saturating_sub(watch.since_ms.get());
            let state = watch.state.borrow();
            match &*state {
                State::Reading(reading) => {
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
                        host::log(
                            Level::Error,
                            "refund-filter: Envoy holds a body back: set allow_on_headers_stop_iteration: true in the plugin's \
                             configuration (Envoy 1.35 and later)",
                        );
                        reading.withheld(&earlier)
                    } else {
                        continue;
                    };
                    drop(state);
                    watch.state.replace(State::Done);
                    self.shared.unwatch(id);
                    if host::set_effective_context(id).is_ok() {
                        self.shared.answer("none", answer);
                    }
                }
                State::Waiting(waiting) => {
                    let entry = Rc::clone(waiting.entry());
                    let client_secret = waiting.client_secret().clone();
                    drop(state);
                    let look = looks.entry(entry.name.clone()).or_insert_with(|| {
                        Shared::with_record(&entry, |record| (record.look(now_ms), false))
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
                State::Done
                | State::Signing(_)
                | State::Asking(_)
                | State::Sent(_)
                | State::Replying(..) => {
                    drop(state);
                    self.shared.unwatch(id);
                }
            }
        }
    }
}

/// Whether bytes of a body have come of which the filter was not told. With `allow_on_headers_stop_iteration` it is told in
/// the same event.
fn body_is_withheld(id: u32, watch: &Watch) -> bool {
    host::set_effective_context(id).is_ok() && body_bytes() > watch.body_base.get()
}

/// What Envoy has received of this call beyond its headers. Not nought at the start where a filter in front has changed the
/// headers, hence a difference.
fn body_bytes() -> u64 {
    let size = |name| host::integer_property(&["request", name]).unwrap_or_default();
    size("total_size").saturating_sub(size("headers_bytes"))
}

/// One request and its response.
struct Stream {
    id: u32,
    shared: Rc<Shared>,
    watch: Rc<Watch>,
    /// The provider's configured name, once it is known.
    provider: String,
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
            return VmSigner(OsRng).sign(choice, key, text);
        }
        let result = host::call_foreign_function("sign", &host_arguments(key, text));
        host_signature(key, &result.map_err(|_| SignerFailed)?)
    }
}

impl Context for Stream {
    fn on_http_call_response(
        &mut self,
        _call: u32,
        headers: usize,
        _body: usize,
        _trailers: usize,
    ) {
        let bytes = host::headers(Map::CallResponse).unwrap_or_default();
        let head = ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default());
        let body = || host::buffer(Buffer::CallResponse).unwrap_or_default();
        // A call that was reset ends without headers.
        let prepared = match self.watch.state.take() {
            State::Signing(unsigned) if headers == 0 => Prepared::Answer(unsigned.failed()),
            State::Signing(unsigned) => unsigned.reply(head.status, &body()),
            State::Asking(asking) if headers == 0 => Prepared::Answer(asking.cut()),
            State::Asking(asking) => {
                let filter_state = |key: &str| host::property(&["filter_state", key]);
                let mut signer = GatewaySigner(&self.shared);
                asking.reply(&head, &body(), host::now_ms(), &mut signer, &filter_state)
            }
            other => {
                self.watch.state.replace(other);
                return;
            }
        };
        if self.go_on(prepared) == Action::Continue {
            let _ = host::resume_request();
        }
    }

    fn on_done(&mut self) -> bool {
        self.shared.unwatch(self.id);
        self.settle_without_answer();
        true
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        let config = self.shared.config.borrow().clone();
        let bytes = host::headers(Map::Request);
        let (Some(config), Some(headers)) = (config, bytes.as_deref().and_then(Headers::decode))
        else {
            // Whose it is cannot be seen, nor whether it carries secrets: it goes no further.
            return self.answer(unreadable_call());
        };
        for name in &config.secret_headers {
            if headers.first(name).is_some() {
                let _ = host::remove_request_header(name);
            }
        }
        let earlier = |key: &Digest| self.shared.standing(key);
        match open(&config, &headers, host::now_ms(), &earlier) {
            Opening::NotOurs => Action::Continue,
            Opening::Answer(answer) => self.answer(answer),
            Opening::Read(reading) => {
                // For local_reply_config: what Envoy answers past the filter must not say that no money has moved.
                if let Some(retry) = reading.standing() {
                    let _ = host::set_property("refund_retry", retry.as_str());
                }
                self.watch.state.replace(State::Reading(reading));
                if end_of_stream {
                    return self.call_is_whole();
                }
                if !self.shared.bodies_come.get() {
                    self.watch.body_base.set(body_bytes());
                }
                self.watch_from_now(TICK_BODY_MS);
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let state = self.watch.state.borrow();
        let State::Reading(reading) = &*state else {
            // What is answered gets no further; what is not ours goes through.
            return if self.provider.is_empty() {
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
            drop(state);
            return self.answer(answer);
        }
        drop(state);
        if end_of_stream {
            self.call_is_whole()
        } else {
            Action::Pause
        }
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        if !matches!(*self.watch.state.borrow(), State::Reading(_)) {
            return Action::Continue;
        }
        let _ = host::set_headers(Map::RequestTrailers, &Headers::default());
        self.call_is_whole()
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        match self.watch.state.take() {
            State::Done => Action::Continue,
            State::Reading(reading) => {
                let answer = {
                    let earlier = |key: &Digest| self.shared.standing(key);
                    with_local_reply(|reply| reading.local_reply(reply, &earlier))
                };
                self.answer(answer)
            }
            State::Waiting(waiting) => {
                let answer = with_local_reply(|reply| waiting.local_reply(reply));
                self.answer(answer)
            }
            State::Signing(unsigned) => {
                let answer = with_local_reply(|reply| unsigned.local_reply(reply));
                self.answer(answer)
            }
            State::Asking(asking) => {
                let answer = with_local_reply(|reply| asking.local_reply(reply));
                self.answer(answer)
            }
            // An answer of Envoy's own after the provider's has begun.
            State::Replying(sent, _) => {
                let answer = with_local_reply(|reply| sent.ended(reply, true));
                self.answer(answer)
            }
            State::Sent(sent) => {
                if host::text_property(&["response", "code_details"]).as_deref()
                    != Some("via_upstream")
                {
                    let answer = with_local_reply(|reply| sent.local_reply(reply));
                    return self.answer(answer);
                }
                // For local_reply_config: what Envoy answers from here on does not pass the filter.
                let _ = host::set_property("refund_reply", "started");
                let bytes = host::headers(Map::Response).unwrap_or_default();
                let head = ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default());
                self.watch.state.replace(State::Replying(sent, head));
                if end_of_stream {
                    return self.reply_is_whole(&[], false);
                }
                Action::Pause
            }
        }
    }

    fn on_http_response_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        if !matches!(*self.watch.state.borrow(), State::Replying(..)) {
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        let body = host::buffer(Buffer::Response).unwrap_or_default();
        self.reply_is_whole(&body, true)
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        if !matches!(*self.watch.state.borrow(), State::Replying(..)) {
            return Action::Continue;
        }
        let body = host::buffer(Buffer::Response).unwrap_or_default();
        self.reply_is_whole(&body, false)
    }
}

/// What Envoy tells about an answer of its own, or about the end of a stream.
fn with_local_reply(answer: impl FnOnce(LocalReply<'_>) -> Answer) -> Answer {
    let details = host::text_property(&["response", "code_details"]).unwrap_or_default();
    let bytes = host::headers(Map::Response).unwrap_or_default();
    let status = ReplyHead::of(&Headers::decode(&bytes).unwrap_or_default()).status;
    answer(LocalReply {
        status,
        details: &details,
        connected: may_have_connected(),
        attempts: host::integer_property(&["upstream", "request_attempt_count"])
            .unwrap_or(u64::MAX),
    })
}

/// Whether a connection was handed out, so that bytes may have left.
///
/// Envoy sets the local address just before it writes the first byte, but never on a Unix socket: there its absence proves
/// nothing.
fn may_have_connected() -> bool {
    let given = |name| host::text_property(&["upstream", name]).filter(|text| !text.is_empty());
    let on_tcp = |address: String| address.parse::<SocketAddr>().is_ok();
    given("local_address").is_some() || given("address").is_some_and(|address| !on_tcp(address))
}

impl Stream {
    /// Settles the key of a call that ended without an answer of the filter's: the caller left, or Envoy answered past the
    /// filter.
    fn settle_without_answer(&self) {
        let mut answer = match self.watch.state.take() {
            State::Done | State::Reading(_) => return,
            State::Waiting(waiting) => with_local_reply(|reply| waiting.local_reply(reply)),
            State::Signing(unsigned) => with_local_reply(|reply| unsigned.local_reply(reply)),
            State::Asking(asking) => with_local_reply(|reply| asking.local_reply(reply)),
            State::Sent(sent) => with_local_reply(|reply| sent.ended(reply, false)),
            State::Replying(sent, _) => with_local_reply(|reply| sent.ended(reply, true)),
        };
        self.shared.settle(&mut answer);
    }

    fn answer(&mut self, answer: Answer) -> Action {
        self.shared.unwatch(self.id);
        self.watch.state.replace(State::Done);
        if self.provider.is_empty() {
            let known = answer.alarm.as_ref().map(|alarm| &*alarm.provider);
            self.provider.push_str(known.unwrap_or("none"));
        }
        self.shared.answer(&self.provider, answer);
        Action::Pause
    }

    fn watch_from_now(&self, tick_ms: u32) {
        self.watch.since_ms.set(host::now_ms());
        self.shared
            .watched
            .borrow_mut()
            .insert(self.id, Rc::clone(&self.watch));
        self.shared.tick_within(tick_ms);
    }

    /// The call is here, whole: translate it and let it go, or answer it, or have it wait.
    fn call_is_whole(&mut self) -> Action {
        let State::Reading(reading) = self.watch.state.take() else {
            return Action::Continue;
        };
        self.shared.unwatch(self.id);
        let body = host::buffer(Buffer::Request).unwrap_or_default();
        let accepted = match reading.accept(&body, &|key| self.shared.standing(key)) {
            Ok(accepted) => accepted,
            Err(answer) => return self.answer(answer),
        };
        let claim = self.shared.ask_guard(accepted.asks());
        let filter_state = |key: &str| host::property(&["filter_state", key]);
        let mut signer = GatewaySigner(&self.shared);
        let prepared = accepted.proceed(claim, host::now_ms(), &mut signer, &filter_state);
        self.go_on(prepared)
    }

    /// Does what the exchange says.
    fn go_on(&mut self, prepared: Prepared) -> Action {
        match prepared {
            Prepared::Answer(answer) => self.answer(answer),
            Prepared::Dispatch(dispatch) => {
                self.provider.clone_from(&dispatch.provider);
                self.send(*dispatch)
            }
            Prepared::Sign(unsigned) => self.ask_for_signature(unsigned),
            Prepared::Ask(asking) => self.ask_provider(asking),
            Prepared::Wait(waiting) => {
                self.provider.clone_from(&waiting.entry().name);
                match self.shared.ask(waiting.entry(), waiting.client_secret()) {
                    Some(Turn::Use(token)) => {
                        let dispatch = waiting.with_token(token);
                        self.send(dispatch)
                    }
                    Some(turn) => self.wait(waiting, turn),
                    None => {
                        let answer = waiting.without_token(&Failure::unreachable());
                        self.answer(answer)
                    }
                }
            }
        }
    }

    /// Has OpenBao sign. The call is the stream's own: if the client leaves, nobody needs the signature.
    fn ask_for_signature(&mut self, unsigned: Box<Unsigned>) -> Action {
        self.provider.clone_from(&unsigned.entry().name);
        let call = unsigned.request().and_then(|(cluster, headers, body)| {
            dispatch(cluster, &headers, &body, TRANSIT_TIMEOUT_MS)
        });
        if call.is_none() {
            let answer = unsigned.failed();
            return self.answer(answer);
        }
        self.watch.state.replace(State::Signing(unsigned));
        Action::Pause
    }

    /// Has the provider say how an order stands. The call is the stream's own: if the client leaves, nobody needs the answer.
    fn ask_provider(&mut self, asking: Box<Asking>) -> Action {
        self.provider.clone_from(&asking.entry().name);
        let _ = host::set_property("refund_key_id", asking.key_id());
        self.shared.count_signature(asking.entry());
        let (cluster, headers, body) = asking.request();
        if dispatch(cluster, headers, body, ASK_TIMEOUT_MS).is_none() {
            let answer = asking.failed();
            return self.answer(answer);
        }
        self.watch.state.replace(State::Asking(asking));
        Action::Pause
    }

    fn send(&mut self, dispatch: Dispatch) -> Action {
        if self.shared.send(&self.watch, dispatch, false) {
            Action::Continue
        } else {
            Action::Pause
        }
    }

    fn wait(&mut self, waiting: Box<Waiting>, turn: Turn) -> Action {
        // Here and now the body can be replaced for sure; when the token comes, only the headers are left to be written.
        let set = waiting.body().map_or(Ok(()), |body| {
            host::set_buffer(Buffer::Request, body.as_bytes())
        });
        if set.is_err() {
            let answer = waiting.without_token(&Failure::unreachable());
            return self.answer(answer);
        }
        self.watch.state.replace(State::Waiting(waiting));
        self.watch_from_now(match turn {
            Turn::Fetch(_) => TICK_SOON_MS,
            Turn::Use(_) | Turn::Wait => TICK_TOKEN_MS,
        });
        Action::Pause
    }

    /// The provider's reply is here, whole.
    ///
    /// `in_place`: its body is before us, and ends the message.
    fn reply_is_whole(&mut self, body: &[u8], in_place: bool) -> Action {
        let State::Replying(sent, head) = self.watch.state.take() else {
            return Action::Continue;
        };
        let attempts = if sent.counts_attempts(&head) {
            host::integer_property(&["upstream", "request_attempt_count"]).unwrap_or(u64::MAX)
        } else {
            1
        };
        let entry = sent.entry();
        let answer = sent.reply(&head, body, attempts);
        if let Some(token) = &answer.refused_token {
            Shared::with_record(&entry, |record| ((), record.refused(token)));
        }
        if in_place {
            self.shared.answer_in_place(&self.provider, answer)
        } else {
            self.answer(answer)
        }
    }
}
