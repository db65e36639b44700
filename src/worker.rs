//! One worker of the gateway: it carries out what the [`exchange`](crate::exchange) says, over a
//! [`Host`].
//!
//! What must outlive a stream, or happen while a stream is paused, is the root's: it fetches tokens
//! (a call of a stream's own would die with its stream), wakes who waits for one, and answers calls
//! whose body does not come. It does so in [`Worker::tick`], which streams switch on by setting the
//! period, and which becomes slow when there is nothing left to watch.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::config::{Auth, Config};
use crate::guard::{Digest, Fill, Table};
use crate::host::{Buffer, Host, Level, Metric};
use crate::memory::swap;
use crate::problem::Fault;
use crate::secret::SecretSource;
use crate::signing::{SignerChoice, Signing, Told};

mod figures;
mod guarding;
mod misrouted;
mod sharing;
mod signer;
mod stream;
mod telemetry;
mod tokens;

pub use figures::{Kind, Said, Series};
use sharing::{Errand, Unsettled};
pub use stream::{Flow, Stream};
use telemetry::{Metrics, configurations};
use tokens::{Fetch, Looks};

/// How soon a fetch that a stream has asked for begins, in milliseconds.
const TICK_SOON_MS: u32 = 1;
/// How often waiting calls look for what another worker fetches, in milliseconds.
const TICK_TOKEN_MS: u32 = 5;
/// How often bodies are looked after, in milliseconds.
const TICK_BODY_MS: u32 = 50;
/// How often the gauges are set, in milliseconds: this goes on as long as the root lives.
const TICK_GAUGES_MS: u32 = 5_000;

/// What the root and its streams share, in one worker.
pub struct Worker {
    host: Rc<dyn Host>,
    /// The root context's id.
    root: u32,
    config: RefCell<Option<Rc<Config>>>,
    /// The digest of its text.
    config_digest: Cell<Option<Digest>>,
    /// Calls whose body is being read, and those that wait for a token.
    watched: RefCell<BTreeMap<u32, Rc<Stream>>>,
    /// Fetches that streams have taken on and the root has not begun.
    wanted: RefCell<Vec<Fetch>>,
    /// A callback of the root's runs: a call that is made now is the root's.
    root_acts: Cell<bool>,
    /// Calls of the filter's own that are under way, by their numbers.
    calls: RefCell<BTreeMap<u32, PendingCall>>,
    tick_ms: Cell<u32>,
    /// The root is done: another configuration has taken its place, and only its own streams are
    /// left.
    closing: Cell<bool>,
    vm: Rc<Vm>,
    /// When the gauges were last set, by the steady clock.
    gauges_ms: Cell<i64>,
    /// What the guard remembers: the last whole count, and the one that is under way.
    counted: RefCell<Fill>,
    counting: RefCell<Fill>,
    /// Whether the host can sign; none until that was tried.
    host_signs: Cell<Option<bool>>,
    /// The sentences for the platform team, and when each was last logged.
    alarms: RefCell<BTreeMap<String, i64>>,
    /// Whether a body has ever come to a paused call: then Envoy's option for it is set, and none
    /// is withheld.
    bodies_come: Cell<bool>,
    /// The guard's table in this process; none until it was looked up.
    table: Cell<Option<Table>>,
    /// What OpenBao has told of its public keys, by provider, and until when it is not asked again,
    /// by the steady clock.
    told: RefCell<BTreeMap<String, (Told, i64)>>,
    /// What the clock of the store that gateways share shows more than the steady one, in milliseconds; none until it was told.
    store_ahead_ms: Cell<Option<i64>>,
}

/// What the roots of one VM share, one after the other with each configuration.
#[derive(Default)]
pub struct Vm {
    metrics: Metrics,
    unsettled: Unsettled,
}

/// A call of the filter's own, by what waits for it.
enum PendingCall {
    /// Those who need a token.
    Token(Fetch),
    /// One stream.
    Stream(Rc<Stream>),
    /// What is asked of the store that gateways share.
    Memory(Box<Errand>),
}

impl Worker {
    /// A worker without a configuration, whose root context has this id, in this VM.
    pub fn new(host: Rc<dyn Host>, root: u32, vm: Rc<Vm>) -> Self {
        Worker {
            host,
            root,
            config: RefCell::default(),
            config_digest: Cell::default(),
            watched: RefCell::default(),
            wanted: RefCell::default(),
            root_acts: Cell::default(),
            calls: RefCell::default(),
            tick_ms: Cell::default(),
            closing: Cell::default(),
            vm,
            gauges_ms: Cell::default(),
            counted: RefCell::default(),
            counting: RefCell::default(),
            host_signs: Cell::default(),
            alarms: RefCell::default(),
            bodies_come: Cell::default(),
            table: Cell::default(),
            told: RefCell::default(),
            store_ahead_ms: Cell::default(),
        }
    }

    /// Takes the plugin's configuration; says whether it is accepted. `env` reads the process's
    /// environment.
    pub fn configure(&self, env: &dyn Fn(&str) -> Option<String>) -> bool {
        for result in ["accepted", "refused"] {
            self.metric(Metric::Counter, configurations(result));
        }
        let text = self.host.buffer(Buffer::Configuration).unwrap_or_default();
        let read = Config::read(&text, env);
        let checked = read.and_then(|config| self.check_signers(config));
        let (accepted, word) = match checked {
            Ok(config) => {
                self.announce(&config);
                self.config_digest.set(Some(Digest::of([&text[..]])));
                if !config.open_list {
                    self.begin(&config);
                }
                self.config.replace(Some(Rc::new(config)));
                self.set_gauges();
                (true, "accepted")
            }
            Err(faults) => {
                for fault in faults {
                    self.log(
                        Level::Error,
                        &format!(
                            "configuration refused at {:?}: {}",
                            fault.pointer, fault.detail
                        ),
                    );
                }
                (false, "refused")
            }
        };
        self.count(configurations(word));
        accepted
    }

    /// Begins to remember keys, and to show figures.
    fn begin(&self, config: &Config) {
        if config.guard.is_on() {
            self.table(config.guard.entries);
        }
        self.define_series(config);
        if let Some(memory) = &config.memory {
            self.note_store(memory);
        }
        let password = config
            .memory
            .as_ref()
            .and_then(|memory| memory.password.as_ref());
        if let Some(SecretSource::Here(password)) = password {
            self.learn_password(Some(password.clone()));
        }
        self.gauges_ms.set(self.host.now().steady_ms);
        self.set_tick(self.idle_tick_ms());
    }

    /// A configuration that insists on the host's signer needs a host that has one.
    fn check_signers(&self, config: Config) -> Result<Config, Vec<Fault>> {
        let faults: Vec<Fault> = config
            .key_rings()
            .filter(|(_, _, choice)| *choice == SignerChoice::Host && !self.host_signs())
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
                        match self.signer_name(*signer) {
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
        // Not by `log`: the version belongs to the name.
        let say = |what: String| {
            let line = format!("refund-filter {}: configured for {what}", crate::VERSION);
            self.host.log(Level::Info, &line);
        };
        if config.open_list {
            say(format!("GET {}/open alone: what is open", config.path));
            return;
        }
        say(format!(
            "POST and GET {}: {}",
            config.path,
            names.join(", ")
        ));
        if config.caller.is_none() && self.is_first("refund.told.no_caller") {
            self.log(
                Level::Warn,
                "callers are not told apart (`caller` is not configured): whoever reaches the filter may refund. Authentication must \
                 stand in front of it, on the refunds' own route",
            );
        }
    }

    /// Whether this name is said for the first time in the process: all workers are configured alike.
    fn is_first(&self, name: &str) -> bool {
        let first = swap(&*self.host, name, |bytes| {
            let first = bytes.is_empty();
            (first, first.then(|| vec![1]))
        });
        first.unwrap_or(true)
    }

    /// Does what is due: gauges, token fetches, and what the paused streams wait for.
    pub fn tick(&self) {
        self.act_as_root(|| {
            self.set_gauges_in_time();
            self.start_fetches();
            self.repeat();
            let (now, mut looks) = (self.host.now(), Looks::new());
            for stream in self.watched() {
                stream.look_after(now, &mut looks);
            }
            // Those that waiting streams took over in this tick.
            self.start_fetches();
        });
        let watched = self.watched.borrow();
        self.set_tick(if watched.is_empty() && !self.has_unsettled() {
            self.idle_tick_ms()
        } else if watched.values().any(|stream| stream.waits()) {
            TICK_TOKEN_MS
        } else {
            TICK_BODY_MS
        });
    }

    /// The answer to a call of the root's is here; `came`: with headers. A call that was reset ends
    /// without.
    pub fn call_answered(&self, call: u32, came: bool) {
        self.act_as_root(|| self.answered(call, came));
    }

    fn answered(&self, call: u32, came: bool) {
        let pending = self.calls.borrow_mut().remove(&call);
        match pending {
            Some(PendingCall::Token(fetch)) => self.fetched(&fetch, came),
            Some(PendingCall::Stream(stream)) => stream.call_ended(came),
            Some(PendingCall::Memory(errand)) => self.memory_answered(errand, came),
            None => {}
        }
    }

    /// Another configuration takes the place of this one. What streams of its own are left are
    /// still looked after.
    pub fn close(&self) {
        self.closing.set(true);
        self.set_gauges();
        self.give_errands_back();
        if self.watched.borrow().is_empty() {
            self.set_tick(0);
            self.give_fetches_back();
        }
    }

    /// Runs what is the root's, whichever streams the host's calls come to speak of meanwhile.
    fn act_as_root(&self, act: impl FnOnce()) {
        self.root_acts.set(true);
        act();
        let _ = self.host.set_effective_context(self.root);
        self.root_acts.set(false);
    }

    /// Has [`Worker::tick`] called at least this often.
    fn tick_within(&self, milliseconds: u32) {
        let now = self.tick_ms.get();
        if now == 0 || now > milliseconds {
            self.set_tick(milliseconds);
        }
    }

    fn set_tick(&self, milliseconds: u32) {
        self.tick_ms.set(milliseconds);
        self.host.set_tick_period(milliseconds);
    }

    /// How often to tick when no call is waiting.
    fn idle_tick_ms(&self) -> u32 {
        if self.closing.get() {
            0
        } else {
            TICK_GAUGES_MS
        }
    }

    fn watched(&self) -> Vec<Rc<Stream>> {
        self.watched.borrow().values().map(Rc::clone).collect()
    }

    /// Looks after a stream from now on.
    fn watch(&self, stream: &Rc<Stream>, tick_ms: u32) {
        let stream = Rc::clone(stream);
        self.watched.borrow_mut().insert(stream.id(), stream);
        self.tick_within(tick_ms);
    }

    /// Looks after a stream no longer. Nothing may tick for a root that is gone.
    fn unwatch(&self, id: u32) {
        let mut watched = self.watched.borrow_mut();
        watched.remove(&id);
        if self.closing.get() && watched.is_empty() {
            self.set_tick(0);
        }
    }
}
