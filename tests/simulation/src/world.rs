//! One world: everything that happens in it, in its order.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;

use refund_filter::headers::Headers;
use refund_filter::worker::{Flow, Stream};

use crate::caller::{Act, Call, End, Habit, Refund, Said, Why, Word};
use crate::chance::{Dice, derived};
use crate::gateway::{At, Passage, Process, encoded};
use crate::host::{Clock, Effect, ROOT, Side};
use crate::network::{Fate, Road, Says};
use crate::oracle::{self, Finding, Life, Send};
use crate::provider::{Kind, Provider, Reply, Request};
use crate::queue::Queue;
use crate::scene::{Scene, Without};
use crate::store::{self, Store};
use crate::time::{BEGINNING_MS, rfc3339};

/// The rest of a world without a fault: long enough for every look-up to come to an end.
const CALM_MS: i64 = 200_000;
/// A world that goes on for longer is one in which something never ends.
const LONGEST_MS: i64 = 4 * 24 * 3_600_000;
/// A worker that watches nothing ticks no faster than this.
const IDLE_MS: i64 = 5_000;
/// Its ticks are late: all that they do is to count for the gauges, and a world can have days.
const LATE_TICK_MS: i64 = 60_000;
/// The answer of a token endpoint.
const TOKEN_LIFE_S: i64 = 300;

/// How a world is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// All chance comes from it.
    pub seed: u64,
    /// How many refunds its callers want.
    pub refunds: usize,
    /// Whether the gateways share a memory.
    pub shared: bool,
    /// What is taken from them.
    pub without: Option<Without>,
    /// The refund whose story is told.
    pub watched: Option<usize>,
}

/// What a world has brought.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many refunds its callers wanted.
    pub refunds: usize,
    /// How many calls they made.
    pub calls: usize,
    /// How many requests left the gateways.
    pub sends: usize,
    /// How many events there were.
    pub events: u64,
    /// Whether gateways of two versions were in it, each with a form of its own for what it stores.
    pub two_versions: bool,
    /// The rules that are broken.
    pub findings: Vec<Finding>,
    /// How often a caller was told what [`oracle::UNTOLD`] says.
    pub untold: usize,
    /// What happened to the refund that was watched, a line each.
    pub story: Vec<String>,
}

/// What happens next.
#[derive(Debug)]
enum Event {
    /// A caller makes a call.
    Calls(usize, Why),
    /// A call's headers are at its gateway.
    Arrives(usize),
    /// A part of its body is there, or the rest of it.
    Body(At, bool),
    /// A caller hangs up.
    Leaves(usize),
    /// What its gateway said is with the caller.
    Told(usize, Option<Said>),
    /// The root of a worker is to look after what it watches.
    Tick(At, u32),
    /// A request is at its provider.
    Reaches(usize),
    /// The provider has done its work.
    Worked(usize),
    /// The reply is at the gateway.
    Replies(usize, Reply),
    /// The connection to the provider breaks.
    Breaks(usize),
    /// The route waits no longer.
    TimesOut(usize),
    /// A call of the gateway's own is answered, or comes to nothing.
    OwnAnswer(At, u32, Option<(u16, Vec<u8>)>),
    /// A look of the gateway's own is at the provider.
    OwnLook(At, u32, Kind, Request, Box<Fate>),
    Restart,
    Starts(usize),
    Push,
    Trap,
    ClockJumps,
    Outage(Kind, bool),
    /// A call to the store is there; when its answer is at the gateway again, if it is.
    StoreWorks(At, u32, Vec<u8>, Option<i64>),
    StoreOutage(bool),
    StoreForgets,
    /// What was drained goes.
    Drained(usize),
    /// Nothing fails any more.
    Calm,
    /// Whoever is still in doubt asks once more.
    LastCall,
}

/// See the module.
pub struct World {
    now: Rc<Cell<i64>>,
    queue: Queue<Event>,
    dice: Dice,
    plan: Plan,
    scene: Scene,
    calm: bool,
    last_called: bool,
    /// Refunds whose callers have something to do.
    active: usize,
    pushes: usize,
    /// The process of each gateway, while it runs.
    slots: Vec<Option<usize>>,
    /// All that ever ran, by when they started.
    processes: Vec<Option<Process>>,
    /// Whether each process is of the newer version, by its place in `processes`.
    newer: Vec<bool>,
    /// Of each, how it did with the store.
    lives: Vec<Life>,
    /// The calls to which the store has given an answer.
    answered: HashSet<usize>,
    /// The gateways' own calls that are over.
    own_over: HashSet<(At, u32)>,
    clocks: Vec<Rc<Clock>>,
    providers: Vec<Provider>,
    outages: [bool; 4],
    store: Store,
    store_is_away: bool,
    refunds: Vec<Refund>,
    calls: Vec<Call>,
    /// Where a call is.
    places: Vec<Option<At>>,
    sends: Vec<Send>,
    fates: Vec<Fate>,
    requests: Vec<Request>,
    story: Vec<String>,
    events: u64,
}

/// Plays a world to its end, and holds it against its ledgers.
pub fn play(plan: Plan) -> Outcome {
    let mut world = World::new(plan);
    world.run();
    world.outcome()
}

/// What a world is like, for people.
pub fn scene(plan: Plan) -> String {
    format!(
        "{:#?}",
        Scene::by_chance(&Dice::new(plan.seed), plan.shared, plan.without)
    )
}

impl World {
    fn new(plan: Plan) -> Self {
        let dice = Dice::new(plan.seed);
        let scene = Scene::by_chance(&dice, plan.shared, plan.without);
        let provider = |kind| Provider::new(kind, scene.habits, dice.clone());
        let now = Rc::new(Cell::new(0));
        let clock = |_| {
            Rc::new(Clock {
                world: Rc::clone(&now),
                unix_ms: Cell::new(BEGINNING_MS + dice.range(-500..500)),
                steady_ms: dice.range(0..1_000_000_000),
            })
        };
        let ahead_ms = dice.range(-2_000..2_000);
        let mut world = World {
            clocks: (0..scene.gateways).map(clock).collect(),
            providers: Kind::ALL.map(provider).into(),
            slots: vec![None; scene.gateways],
            now,
            queue: Queue::default(),
            dice,
            plan,
            scene,
            calm: false,
            last_called: false,
            active: plan.refunds,
            pushes: 0,
            processes: Vec::new(),
            newer: Vec::new(),
            lives: Vec::new(),
            answered: HashSet::new(),
            own_over: HashSet::new(),
            outages: [false; 4],
            store: Store::new(ahead_ms, plan.without == Some(Without::Forms)),
            store_is_away: false,
            refunds: Vec::with_capacity(plan.refunds),
            calls: Vec::new(),
            places: Vec::new(),
            sends: Vec::new(),
            fates: Vec::new(),
            requests: Vec::new(),
            story: Vec::new(),
            events: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for slot in 0..self.scene.gateways {
            self.start(slot);
        }
        let seed = derived(self.plan.seed, u64::MAX);
        // A gateway that has just begun knows of no send, and cannot prove that there is none.
        let mut at = self.dice.range(0..10_000);
        for nth in 0..self.plan.refunds {
            let refund = Refund::by_chance(nth, seed, &self.dice, self.scene.twins_one_in);
            self.refunds.push(refund);
            at += self.dice.range(0..2 * self.scene.pace_ms + 1);
            // The two halves of a pair are not always neighbours in time.
            let begins = at
                + if self.dice.one_in(4) {
                    self.dice.soon(0..100_000)
                } else {
                    0
                };
            let acts = self.refunds[nth].begin(&self.dice);
            self.refunds[nth].under_way = acts.len();
            for act in acts {
                self.queue
                    .put(begins + act.after_ms, Event::Calls(nth, act.why));
            }
        }
        let repeated = [
            (self.scene.restarts_ms, Event::Restart),
            (self.scene.pushes_ms, Event::Push),
            (self.scene.traps_ms, Event::Trap),
            (self.scene.clock_jumps_ms, Event::ClockJumps),
            (
                self.scene.outages_ms,
                Event::Outage(self.dice.pick(&Kind::ALL), true),
            ),
            (self.scene.store_outages_ms, Event::StoreOutage(true)),
            (self.scene.forgets_ms, Event::StoreForgets),
        ];
        for (every_ms, event) in repeated {
            if let Some(every_ms) = every_ms {
                self.queue.put(self.dice.range(0..every_ms), event);
            }
        }
        let calm_at = at + self.dice.range(1..CALM_MS);
        self.queue.put(calm_at, Event::Calm);
        let longest = [
            self.scene.settle_ms,
            self.scene.latest_ms,
            self.scene.habits.open_ms,
        ];
        let last_call = calm_at + longest.into_iter().max().unwrap_or_default() + CALM_MS;
        self.queue.put(last_call, Event::LastCall);
    }

    fn run(&mut self) {
        while let Some((at, event)) = self.queue.take() {
            self.now.set(at);
            self.events += 1;
            self.happens(event);
            if self.is_over() || at > LONGEST_MS {
                break;
            }
        }
    }

    /// Whether nothing is left but ticks.
    fn is_over(&self) -> bool {
        self.last_called && self.active == 0
    }

    fn now(&self) -> i64 {
        self.now.get()
    }

    fn after(&mut self, milliseconds: i64, event: Event) {
        self.queue.put(self.now() + milliseconds, event);
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Calls(refund, why) => self.calls_now(refund, why),
            Event::Arrives(call) => self.arrives(call),
            Event::Body(at, ends) => self.body(at, ends),
            Event::Leaves(call) => self.leaves(call),
            Event::Told(call, said) => self.told(call, said),
            Event::Tick(at, ticks) => self.tick(at, ticks),
            Event::Reaches(send) => self.reaches(send),
            Event::Worked(send) => self.worked(send),
            Event::Replies(send, reply) => self.replies(send, &reply),
            Event::Breaks(send) => self.breaks(
                send,
                (
                    503,
                    "upstream_reset_before_response_started{connection_termination}",
                ),
            ),
            Event::TimesOut(send) => self.breaks(send, (504, "response_timeout")),
            Event::OwnAnswer(at, number, answer) => self.own_answer(at, number, answer),
            Event::OwnLook(at, number, kind, request, fate) => {
                self.own_look(at, number, kind, &request, &fate);
            }
            Event::Restart => self.restart(),
            Event::Starts(slot) => self.start(slot),
            Event::Push => self.push(),
            Event::Trap => self.trap(),
            Event::ClockJumps => self.clock_jumps(),
            Event::Outage(kind, begins) => self.outage(kind, begins),
            Event::StoreWorks(at, number, body, returns_ms) => {
                self.store_works(at, number, &body, returns_ms);
            }
            Event::StoreOutage(begins) => self.store_outage(begins),
            Event::StoreForgets => self.store_forgets(),
            Event::Drained(life) => self.kill(life, "its gateway has drained"),
            Event::Calm => {
                self.calm = true;
                self.outages = [false; 4];
                self.store_is_away = false;
                // The rollout is done.
                self.newer.fill(self.scene.two_versions);
            }
            Event::LastCall => self.last_call(),
        }
    }

    // ---- the callers

    fn calls_now(&mut self, refund: usize, why: Why) {
        let (nth, now) = (self.calls.len(), self.now());
        let wanted = &mut self.refunds[refund];
        let id = match why {
            Why::LookUp => wanted.id_to_ask(&self.calls, &self.dice),
            _ => None,
        };
        let call = Call {
            refund,
            why,
            spelled: wanted.spelled(&self.dice),
            id,
            began: now,
            ended: i64::MAX,
            said_at: i64::MAX,
            gave: Word::Unknown,
            life: None,
            end: End::UnderWay,
        };
        wanted.calls.push(nth);
        let leaves = why == Why::First && wanted.habit == Habit::Leaves;
        self.tell(refund, |_| {
            format!("call {nth} ({why:?}), key {}", call.spelled)
        });
        self.calls.push(call);
        self.places.push(None);
        if leaves {
            let patience = self.dice.pick(&[20, 400, 3_000, 40_000]);
            let patience = self.dice.range(0..patience);
            self.after(patience, Event::Leaves(nth));
        }
        match self.is_broken() {
            true => {
                let after = self.dice.soon(1..2_000);
                self.after(after, Event::Told(nth, None));
            }
            false => {
                let after = self.dice.soon(1..200);
                self.after(after, Event::Arrives(nth));
            }
        }
    }

    /// Whether a caller's connection breaks.
    fn is_broken(&self) -> bool {
        !self.calm && self.dice.permille(self.scene.rates.callers)
    }

    fn leaves(&mut self, call: usize) {
        if !matches!(self.calls[call].end, End::UnderWay) {
            return;
        }
        self.ends(call, End::Left);
        if let Some(at) = self.places[call].take() {
            self.over(at, "downstream_remote_disconnect");
        }
    }

    fn told(&mut self, call: usize, said: Option<Said>) {
        if matches!(self.calls[call].end, End::UnderWay) {
            self.ends(
                call,
                said.map_or(End::Broken, |said| End::Told(Box::new(said))),
            );
        }
    }

    /// A call is over for its caller, who goes on.
    fn ends(&mut self, call: usize, end: End) {
        let now = self.now();
        let refund = self.calls[call].refund;
        self.tell(refund, |_| match &end {
            End::Told(said) => format!(
                "call {call} is told {} {}{}{}, retry {:?}",
                said.http,
                said.status_or_code(),
                space(&said.outcome),
                space(&said.id),
                said.retry
            ),
            end => format!("call {call}: {end:?}"),
        });
        self.calls[call].end = end;
        self.calls[call].ended = now;
        let wanted = &mut self.refunds[refund];
        wanted.under_way -= 1;
        if wanted.under_way > 0 {
            return;
        }
        self.goes_on(refund);
    }

    fn goes_on(&mut self, refund: usize) {
        let now = self.now();
        let patient_ms = self.scene.settle_ms.max(60_000);
        // Without a key at the provider, and with a gateway that may have forgotten, who was cut off
        // asks first.
        let asks_first = self.refunds[refund].kind == Kind::Bbmsl
            && !self.scene.bbmsl_refuses
            && !self.scene.shared;
        let next = self.refunds[refund].next(&self.calls, now, &self.dice, asks_first, patient_ms);
        match next {
            Some(Act { why, after_ms }) => {
                self.refunds[refund].under_way += 1;
                self.after(after_ms, Event::Calls(refund, why));
            }
            None => {
                self.active -= 1;
                let word = self.refunds[refund].word(&self.calls);
                self.tell(refund, |_| format!("its caller knows: {word:?}"));
            }
        }
    }

    fn last_call(&mut self) {
        self.last_called = true;
        for refund in 0..self.refunds.len() {
            let wanted = &mut self.refunds[refund];
            let is_open = wanted.word(&self.calls).is_open();
            if wanted.under_way == 0 && wanted.is_over && is_open {
                wanted.ask_again();
                self.active += 1;
                self.goes_on(refund);
            }
        }
    }

    // ---- the gateways

    fn start(&mut self, slot: usize) {
        let clock = Rc::clone(&self.clocks[slot]);
        let forgets = match self.scene.without {
            Some(Without::Memory) if !self.scene.shared => 50,
            _ => 0,
        };
        let mut process = Process::new(clock, self.scene.workers, forgets);
        let configuration = self.scene.configuration(self.pushes).to_string();
        let effects = process.configure(&self.dice, &configuration);
        let life = self.processes.len();
        self.processes.push(Some(process));
        // The first two differ.
        let is_newer = self.scene.two_versions
            && match life {
                0 | 1 => life == 1,
                _ => self.calm || self.dice.one_in(2),
            };
        self.newer.push(is_newer);
        self.lives.push(Life::default());
        self.slots[slot] = Some(life);
        self.carry_out_all(life, effects);
    }

    fn arrives(&mut self, call: usize) {
        let refund = self.calls[call].refund;
        // Without a memory that gateways share, all calls of a payment go to one of them.
        let slot = match self.scene.shared {
            true => self.dice.below(self.slots.len()),
            false => refund / 2 % self.slots.len(),
        };
        if !matches!(self.calls[call].end, End::UnderWay) {
            return;
        }
        let Some(life) = self.slots[slot] else {
            self.tell(refund, |_| format!("call {call} finds no gateway"));
            self.after(5, Event::Told(call, None));
            return;
        };
        self.calls[call].life = Some(life);
        let wanted = &self.refunds[refund];
        let Call {
            why, spelled, id, ..
        } = &self.calls[call];
        let mut key = spelled.clone();
        if self.scene.without == Some(Without::OneIdentity) {
            key = as_spelled(&key);
        }
        let is_post = *why != Why::LookUp;
        let path = match is_post {
            true => "/v1/refunds".to_owned(),
            false => wanted.look_up(&key, id.as_deref()),
        };
        let mut headers = vec![
            (":method", if is_post { "POST" } else { "GET" }.to_owned()),
            (":path", path),
            (":scheme", "https".to_owned()),
            (":authority", "refunds.internal".to_owned()),
            ("x-request-id", format!("call-{call}")),
        ];
        let mut body = String::new();
        if is_post {
            headers.push(("content-type", "application/json".to_owned()));
            headers.push(("idempotency-key", key));
            body = wanted.body(*why);
        }
        let side = Side {
            request: encoded(&headers),
            http2: self.dice.one_in(2),
            ..Side::default()
        };
        let Some(process) = &mut self.processes[life] else {
            return;
        };
        let place = process.current[self.dice.below(process.current.len())];
        let root = &mut process.roots[place];
        root.contexts += 1;
        let at = At {
            life,
            root: place,
            context: root.contexts,
        };
        root.host.open(at.context, side);
        let stream = Stream::new(Rc::clone(&root.worker), at.context);
        let passage = Passage {
            call,
            stream,
            send: None,
            replying: false,
            rest: body.into_bytes(),
        };
        root.passages.insert(at.context, passage);
        self.places[call] = Some(at);
        self.tell(refund, |world| {
            let newer = if world.newer[life] { ", newer" } else { "" };
            format!("call {call} is at gateway {slot} (process {life}{newer}, worker {place})")
        });
        let flow = self.enter(at, |stream| stream.request_headers(!is_post));
        if !is_post && flow == Some(Flow::Continue) {
            self.leave(at);
        }
        if is_post {
            if self.dice.one_in(8) {
                self.after(0, Event::Body(at, false));
            }
            // The filter waits for ten seconds.
            let longest = if self.dice.one_in(32) { 12_000 } else { 100 };
            let after = self.dice.soon(0..longest);
            self.after(after, Event::Body(at, true));
        }
    }

    fn body(&mut self, at: At, ends: bool) {
        let Some(passage) = self.passage(at) else {
            return;
        };
        let half = if ends { 0 } else { passage.rest.len() / 2 };
        let later = passage.rest.split_off(half);
        let rest = match ends {
            true => later,
            false => std::mem::replace(&mut passage.rest, later),
        };
        let Some(host) = self.host(at) else { return };
        let size = host.side(at.context, |side| {
            side.request_body.extend_from_slice(&rest);
            side.request_body.len()
        });
        let size = size.unwrap_or_default();
        let flow = self.enter(at, |stream| stream.request_body(size, ends));
        if flow == Some(Flow::Continue) {
            self.leave(at);
        }
    }

    fn passage(&mut self, at: At) -> Option<&mut Passage> {
        let process = self.processes[at.life].as_mut()?;
        process.roots[at.root].passages.get_mut(&at.context)
    }

    fn host(&self, at: At) -> Option<Rc<crate::host::SimHost>> {
        let process = self.processes[at.life].as_ref()?;
        Some(Rc::clone(&process.roots[at.root].host))
    }

    /// Calls a stream, and carries out what the callback wants done.
    fn enter<T>(&mut self, at: At, act: impl FnOnce(&Rc<Stream>) -> T) -> Option<T> {
        let process = self.processes[at.life].as_ref()?;
        let root = &process.roots[at.root];
        let stream = Rc::clone(&root.passages.get(&at.context)?.stream);
        let host = Rc::clone(&root.host);
        host.enter(at.context);
        let result = act(&stream);
        self.carry_out(at.life, at.root, host.effects());
        Some(result)
    }

    fn carry_out_all(&mut self, life: usize, effects: Vec<(usize, Vec<Effect>)>) {
        for (root, effects) in effects {
            self.carry_out(life, root, effects);
        }
    }

    fn carry_out(&mut self, life: usize, root: usize, effects: Vec<Effect>) {
        for effect in effects {
            let at = |context| At {
                life,
                root,
                context,
            };
            match effect {
                Effect::Tick(period_ms) => self.set_tick(at(ROOT), period_ms),
                Effect::Resume { context } => self.leave(at(context)),
                Effect::ResumeResponse { context } => self.in_place(at(context)),
                Effect::Reply {
                    context,
                    status,
                    details,
                    retry_after,
                    replayed,
                    body,
                } => {
                    let said = Said::read(status, &body, retry_after, replayed);
                    self.answered(at(context), said, &details);
                }
                Effect::Call {
                    context,
                    number,
                    cluster,
                    path,
                    body,
                    timeout_ms,
                } => {
                    let request = Request {
                        path,
                        key: None,
                        body,
                    };
                    self.own_call(at(context), number, &cluster, request, timeout_ms);
                }
            }
        }
    }

    fn set_tick(&mut self, at: At, period_ms: i64) {
        let Some(process) = self.processes[at.life].as_mut() else {
            return;
        };
        let root = &mut process.roots[at.root];
        root.ticks += 1;
        let ticks = root.ticks;
        if period_ms > 0 {
            let due_ms = if period_ms < IDLE_MS {
                period_ms
            } else {
                LATE_TICK_MS
            };
            self.after(due_ms, Event::Tick(at, ticks));
        }
    }

    fn tick(&mut self, at: At, ticks: u32) {
        let Some(process) = self.processes[at.life].as_ref() else {
            return;
        };
        let root = &process.roots[at.root];
        if root.ticks != ticks {
            return;
        }
        let (host, worker) = (Rc::clone(&root.host), Rc::clone(&root.worker));
        host.enter(ROOT);
        worker.tick();
        self.carry_out(at.life, at.root, host.effects());
    }

    /// The gateway has an answer for the caller.
    fn answered(&mut self, at: At, said: Said, details: &str) {
        let now = self.now();
        let Some(passage) = self.passage(at) else {
            return;
        };
        let call = passage.call;
        let refund = self.calls[call].refund;
        self.tell(refund, |_| {
            format!(
                "call {call} is answered {} {}{} ({details}){}",
                said.http,
                said.status_or_code(),
                space(&said.outcome),
                space(&said.detail)
            )
        });
        self.calls[call].said_at = now;
        self.calls[call].gave = said.word();
        self.places[call] = None;
        let after = self.dice.soon(1..200);
        let said = (!self.is_broken()).then_some(said);
        self.after(after, Event::Told(call, said));
        self.over(at, "refund_answer");
    }

    /// A stream is over.
    fn over(&mut self, at: At, details: &'static str) {
        if let Some(host) = self.host(at) {
            host.side(at.context, |side| side.details = details);
        }
        self.enter(at, |stream| {
            stream.log();
            stream.done();
        });
        if let Some(process) = self.processes[at.life].as_mut() {
            let root = &mut process.roots[at.root];
            root.passages.remove(&at.context);
            root.host.close(at.context);
        }
    }

    // ---- what goes to the providers

    /// A request goes where the filter has sent it.
    fn leave(&mut self, at: At) {
        let Some(host) = self.host(at) else { return };
        let request = host.side(at.context, |side| {
            let name = side.state("refund_provider")?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name)?;
            let headers = Headers::decode(&side.request)?;
            let request = Request::of(&headers, side.request_body.clone());
            Some((kind, request))
        });
        let Some((kind, request)) = request.flatten() else {
            panic!("seed {}: a call passes the filter", self.plan.seed);
        };
        let nth = self.sends.len();
        let Some(passage) = self.passage(at) else {
            return;
        };
        passage.send = Some(nth);
        let call = passage.call;
        let fate = self.fate(kind);
        let provider = &self.providers[kind as usize];
        self.sends.push(Send {
            call,
            life: at.life,
            at: self.now(),
            is_refund: provider.is_refund(&request),
            key: provider.key_of(&request),
            left: fate.road == Road::Open,
            denied: matches!(fate.says, Says::Refusal(_)),
            alone: self.scene.shared && !self.answered.contains(&call),
        });
        self.fates.push(fate);
        let refund = self.calls[call].refund;
        self.tell(refund, |_| {
            format!("call {call} sends {nth}: {}, {fate:?}", request.path)
        });
        self.requests.push(request);
        let now = self.now();
        let route = |event| (self.scene.route_timeout_ms, event);
        let (after, event) = match fate.road {
            Road::Closed | Road::Full | Road::Refused => {
                let details = match fate.road {
                    Road::Closed => {
                        "upstream_reset_before_response_started{remote_connection_failure}"
                    }
                    Road::Full => "upstream_reset_before_response_started{overflow}",
                    _ => "upstream_reset_before_response_started{remote_refused_stream_reset}",
                };
                host.side(at.context, |side| {
                    side.connected = fate.road == Road::Refused
                });
                self.local_reply(at, 503, details);
                return;
            }
            Road::Open => route(Event::TimesOut(nth)),
        };
        host.side(at.context, |side| side.connected = true);
        self.queue.put(now + after, event);
        if let Some(arrives_ms) = fate.arrives_ms {
            self.after(arrives_ms, Event::Reaches(nth));
        }
    }

    fn fate(&self, kind: Kind) -> Fate {
        if self.calm {
            return Fate::fair(&self.dice);
        }
        let mut fate = Fate::of(&self.scene, &self.dice);
        if self.outages[kind as usize] && !self.dice.one_in(4) {
            fate.road = Road::Closed;
        }
        fate
    }

    fn kind_of(&self, send: usize) -> Kind {
        self.refunds[self.calls[self.sends[send].call].refund].kind
    }

    fn reaches(&mut self, send: usize) {
        let kind = self.kind_of(send);
        let fate = self.fates[send];
        let provider = &mut self.providers[kind as usize];
        let at_once = match fate.is_processed() {
            true => provider.enter(&self.requests[send]),
            false => None,
        };
        match at_once {
            Some(reply) => self.after(fate.returns_ms, Event::Replies(send, reply)),
            None => self.after(fate.works_ms, Event::Worked(send)),
        }
    }

    fn worked(&mut self, send: usize) {
        let kind = self.kind_of(send);
        let fate = self.fates[send];
        let now = self.now();
        let truth = fate.is_processed().then(|| {
            let provider = &mut self.providers[kind as usize];
            let booked = provider.ledger.len();
            let reply = provider.answer(now, send, &self.requests[send]);
            let is_booked = provider.ledger.len() > booked;
            (reply, is_booked)
        });
        let refund = self.calls[self.sends[send].call].refund;
        self.tell(refund, |_| match &truth {
            Some((reply, is_booked)) => format!(
                "{} works on {send}{}: {} {}",
                kind.name(),
                if *is_booked { " and books it" } else { "" },
                reply.status,
                reply.body
            ),
            None => format!("{} does not work on {send}", kind.name()),
        });
        let reply = fate.bend(kind, truth.map(|(reply, _)| reply));
        match (fate.says, reply) {
            (Says::Reset(_), _) => self.after(fate.returns_ms, Event::Breaks(send)),
            (_, Some(reply)) => self.after(fate.returns_ms, Event::Replies(send, reply)),
            (_, None) => {}
        }
    }

    /// The passage that still waits for what it has sent.
    fn waits_for(&mut self, send: usize) -> Option<At> {
        let at = self.places[self.sends[send].call]?;
        let passage = self.passage(at)?;
        (passage.send == Some(send)).then_some(at)
    }

    fn replies(&mut self, send: usize, reply: &Reply) {
        let Some(at) = self.waits_for(send) else {
            return;
        };
        let Some(host) = self.host(at) else { return };
        let mut headers = vec![
            (":status", reply.status.to_string()),
            ("content-type", "application/json".to_owned()),
        ];
        if reply.status == 429 && self.dice.one_in(2) {
            headers.push(("retry-after", "2".to_owned()));
        }
        host.side(at.context, |side| {
            side.response = encoded(&headers);
            side.details = "via_upstream";
        });
        if let Some(passage) = self.passage(at) {
            passage.replying = true;
        }
        self.enter(at, |stream| stream.response_headers(false));
        if let Says::Cut { stalls } = self.fates[send].says {
            if !stalls {
                self.after(5, Event::Breaks(send));
            }
            return;
        }
        host.side(at.context, |side| {
            side.response_body = reply.body.clone().into_bytes();
        });
        // It is here, whole: the route's timeout is over.
        if let Some(passage) = self.passage(at) {
            passage.send = None;
        }
        let flow = self.enter(at, |stream| stream.response_body(true));
        if flow == Some(Flow::Continue) {
            self.in_place(at);
        }
    }

    /// The filter's answer stands where the provider's reply was.
    fn in_place(&mut self, at: At) {
        let Some(host) = self.host(at) else { return };
        let said = host.side(at.context, |side| {
            let headers = Headers::decode(&side.response).unwrap_or_default();
            let status = headers.first(":status").unwrap_or_default();
            let status = std::str::from_utf8(status).ok();
            let status = status.and_then(|status| status.parse().ok());
            Said::read(
                status.unwrap_or_default(),
                &side.response_body,
                crate::host::retry_after(&headers),
                false,
            )
        });
        if let Some(said) = said {
            self.answered(at, said, "in place");
        }
    }

    /// The route's timeout, or the connection to the provider breaks.
    fn breaks(&mut self, send: usize, (status, details): (u16, &'static str)) {
        let Some(at) = self.waits_for(send) else {
            return;
        };
        let replying = self.passage(at).is_some_and(|passage| passage.replying);
        match replying {
            false => self.local_reply(at, status, details),
            true => self.past_the_filter(at, status == 504),
        }
    }

    /// Envoy answers by itself, and the filter sees it.
    fn local_reply(&mut self, at: At, status: u16, details: &'static str) {
        let Some(host) = self.host(at) else { return };
        host.side(at.context, |side| {
            side.response = encoded(&[(":status", status.to_string())]);
            side.details = details;
        });
        if let Some(passage) = self.passage(at) {
            passage.send = None;
        }
        self.enter(at, |stream| stream.response_headers(false));
        assert!(
            self.scene.shared || self.passage(at).is_none(),
            "seed {}: Envoy's own answer goes out as it is",
            self.plan.seed
        );
    }

    /// Envoy answers by itself after the head of the reply: what envoy.yaml makes of that.
    fn past_the_filter(&mut self, at: At, timed_out: bool) {
        let Some(host) = self.host(at) else { return };
        let said = host.side(at.context, |side| {
            let state = |name| side.state(name).unwrap_or_default().to_owned();
            Said {
                http: if timed_out { 504 } else { 502 },
                code: if timed_out {
                    "provider-timeout"
                } else {
                    "provider-error"
                }
                .to_owned(),
                outcome: "unknown".to_owned(),
                retry: state("refund_retry"),
                retry_until: crate::time::parse(&state("refund_retry_until")),
                has_provider: true,
                ..Said::default()
            }
        });
        let details = match timed_out {
            true => "response_timeout",
            false => "upstream_reset_after_response_started{connection_termination}",
        };
        let Some(passage) = self.passage(at) else {
            return;
        };
        let call = passage.call;
        let now = self.now();
        self.calls[call].said_at = now;
        self.places[call] = None;
        let refund = self.calls[call].refund;
        self.tell(refund, |_| {
            format!("call {call} is answered past the filter ({details})")
        });
        let after = self.dice.soon(1..200);
        let said = said.filter(|_| !self.is_broken());
        self.after(after, Event::Told(call, said));
        self.over(at, details);
    }

    // ---- calls of the gateways' own

    fn own_call(&mut self, at: At, number: u32, cluster: &str, request: Request, timeout_ms: i64) {
        let took = self.dice.soon(1..200);
        self.tell_at(
            at,
            &format!("its gateway calls {cluster}: {}", request.path),
        );
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == cluster) {
            let fate = Box::new(self.fate(kind));
            let hung = Event::OwnAnswer(at, number, Some((504, Vec::new())));
            self.after(timeout_ms, hung);
            match fate.road {
                Road::Open => {
                    if let Some(arrives_ms) = fate.arrives_ms {
                        let event = Event::OwnLook(at, number, kind, request, fate);
                        self.after(arrives_ms, event);
                    }
                }
                _ => {
                    let none = self.dice.one_in(2).then(|| (503, Vec::new()));
                    self.after(took, Event::OwnAnswer(at, number, none));
                }
            }
            return;
        }
        if cluster == "redis" {
            self.store_call(at, number, request.body, timeout_ms);
            return;
        }
        let fails = !self.calm && self.dice.permille(self.scene.rates.own);
        let answer = match cluster {
            _ if fails => match self.dice.below(5) {
                0 => None,
                1 => Some((503, String::new())),
                2 => Some((429, String::new())),
                3 => Some((200, "{".to_owned())),
                _ => {
                    let none = self.dice.one_in(2).then(|| (504, Vec::new()));
                    self.after(timeout_ms, Event::OwnAnswer(at, number, none));
                    return;
                }
            },
            "bog-token" => {
                let token = self.events;
                Some((
                    200,
                    format!(
                        r#"{{"access_token":"token-{token}","token_type":"Bearer","expires_in":{TOKEN_LIFE_S}}}"#
                    ),
                ))
            }
            "openbao" if request.path.contains("/sign/") => {
                let signature = "A".repeat(342);
                Some((
                    200,
                    format!(r#"{{"data":{{"signature":"vault:v1:{signature}=="}}}}"#),
                ))
            }
            // Its public keys are not told: signatures go out as they are.
            _ => Some((403, String::new())),
        };
        let answer = answer.map(|(status, body)| (status, body.into_bytes()));
        self.after(took, Event::OwnAnswer(at, number, answer));
    }

    fn own_look(&mut self, at: At, number: u32, kind: Kind, request: &Request, fate: &Fate) {
        let now = self.now();
        let truth = fate.is_processed();
        let truth = truth.then(|| self.providers[kind as usize].answer(now, usize::MAX, request));
        let answer = fate.bend(kind, truth);
        let answer = match (fate.says, answer) {
            (Says::Reset(_) | Says::Cut { .. }, _) => None,
            (_, Some(reply)) => Some((reply.status, reply.body.into_bytes())),
            (_, None) => return,
        };
        let after = fate.works_ms + fate.returns_ms;
        self.after(after, Event::OwnAnswer(at, number, answer));
    }

    /// A call to the store, and what becomes of it on its way.
    fn store_call(&mut self, at: At, number: u32, body: Vec<u8>, timeout_ms: i64) {
        let none = self.dice.one_in(2).then(|| (504, Vec::new()));
        self.after(timeout_ms, Event::OwnAnswer(at, number, none));
        let soon = self.dice.range(1..4);
        if self.store_is_away {
            // Refused at once, or nothing comes: then what was sent may be done in the end.
            match self.dice.one_in(2) {
                true => self.after(soon, Event::OwnAnswer(at, number, Some((503, Vec::new())))),
                false => {
                    let late = self.dice.range(1..20_000);
                    self.after(late, Event::StoreWorks(at, number, body, None));
                }
            }
            return;
        }
        let returns_ms = Some(self.dice.range(1..4));
        if self.calm || !self.dice.permille(self.scene.rates.store) {
            self.after(soon, Event::StoreWorks(at, number, body, returns_ms));
            return;
        }
        match self.dice.below(8) {
            // It is done, and its answer is lost.
            0 => self.after(soon, Event::StoreWorks(at, number, body, None)),
            // It is done, and the answer is slow, or too late.
            1 => {
                let slow = Some(self.dice.range(1..2 * timeout_ms));
                self.after(soon, Event::StoreWorks(at, number, body, slow));
            }
            // It is done long after it was given up, or twice.
            2 => {
                let late = self.dice.range(1..10 * timeout_ms);
                self.after(late, Event::StoreWorks(at, number, body, None));
            }
            3 => {
                let late = self.dice.range(1..10 * timeout_ms);
                self.after(late, Event::StoreWorks(at, number, body.clone(), None));
                self.after(soon, Event::StoreWorks(at, number, body, returns_ms));
            }
            4 => {}
            5 => self.after(soon, Event::OwnAnswer(at, number, Some((503, Vec::new())))),
            6 => {
                let error = store::error(true, self.dice.pick(&store::ERRORS));
                self.after(soon, Event::OwnAnswer(at, number, Some((200, error))));
            }
            _ => {
                // It is done, and half of the answer comes, or another one.
                let now = self.now();
                let mut answer = self.store.serve(now, self.newer[at.life], &body);
                match self.dice.below(3) {
                    0 => answer.clear(),
                    1 => answer.truncate(self.dice.below(answer.len().max(1))),
                    _ => answer = b"+OK\r\n*3\r\n$16\r\n0000000000000000\r\n".to_vec(),
                }
                self.after(soon, Event::OwnAnswer(at, number, Some((200, answer))));
            }
        }
    }

    fn store_works(&mut self, at: At, number: u32, body: &[u8], returns_ms: Option<i64>) {
        let now = self.now();
        let answer = self.store.serve(now, self.newer[at.life], body);
        if let Some(returns_ms) = returns_ms {
            self.after(
                returns_ms,
                Event::OwnAnswer(at, number, Some((200, answer))),
            );
        }
    }

    fn store_outage(&mut self, begins: bool) {
        if self.calm {
            return;
        }
        self.store_is_away = begins;
        self.tell_all(if begins {
            "the store is away"
        } else {
            "the store is back"
        });
        match begins {
            true => {
                let after = self.dice.soon(100..60_000);
                self.after(after, Event::StoreOutage(false));
            }
            false => self.again(self.scene.store_outages_ms, Event::StoreOutage(true)),
        }
    }

    fn store_forgets(&mut self) {
        let now = self.now();
        let lost = self.store.forgets(now);
        self.tell_all(&format!("the store forgets {lost} writes"));
        self.again(self.scene.forgets_ms, Event::StoreForgets);
    }

    fn own_answer(&mut self, at: At, number: u32, answer: Option<(u16, Vec<u8>)>) {
        if self.processes[at.life].is_none() {
            return;
        }
        let is_first = self.own_over.insert((at, number));
        if is_first && matches!(&answer, Some((200, body)) if store::is_answer(body)) {
            let now = self.now();
            self.lives[at.life].heard.push(now);
            let call = self.passage(at).map(|passage| passage.call);
            self.answered.extend(call);
        }
        let Some(process) = self.processes[at.life].as_ref() else {
            return;
        };
        let root = &process.roots[at.root];
        let (host, worker) = (Rc::clone(&root.host), Rc::clone(&root.worker));
        let came = answer.is_some();
        let status = answer.as_ref().map(|(status, _)| *status);
        host.set_call_answer(answer.map(|(status, body)| {
            let headers = encoded(&[(":status", status.to_string())]);
            (headers, body)
        }));
        if at.context == ROOT {
            host.enter(ROOT);
            worker.call_answered(number, came);
            self.carry_out(at.life, at.root, host.effects());
        } else {
            self.tell_at(at, &format!("that call is answered: {status:?}"));
            self.enter(at, |stream| stream.call_answered(number, came));
        }
        host.set_call_answer(None);
    }

    // ---- what befalls all

    fn again(&mut self, every_ms: Option<i64>, event: Event) {
        if let Some(every_ms) = every_ms.filter(|_| !self.calm) {
            let after = self.dice.range(every_ms / 2..every_ms * 2);
            self.after(after, event);
        }
    }

    fn restart(&mut self) {
        if self.calm {
            return;
        }
        let slot = self.dice.below(self.slots.len());
        if let Some(life) = self.slots[slot].take() {
            // Only where gateways share a memory may an old one go on beside the new one.
            if self.scene.shared && self.dice.one_in(2) {
                self.start(slot);
                let after = self.dice.soon(100..90_000);
                self.after(after, Event::Drained(life));
            } else {
                self.kill(life, "its gateway is killed");
                let after = self.dice.soon(100..20_000);
                self.after(after, Event::Starts(slot));
            }
        }
        self.again(self.scene.restarts_ms, Event::Restart);
    }

    /// The end of a process, and of all that it remembers.
    fn kill(&mut self, life: usize, why: &str) {
        let mut process = self.processes[life].take();
        self.lives[life].ended = Some(self.now());
        let roots = process.iter_mut().flat_map(|process| &mut process.roots);
        let calls: Vec<_> = roots.flat_map(Process::kill).collect();
        self.broken(calls, why);
    }

    fn broken(&mut self, calls: Vec<usize>, why: &str) {
        for call in calls {
            let refund = self.calls[call].refund;
            self.tell(refund, |_| format!("call {call}: {why}"));
            self.places[call] = None;
            self.after(3, Event::Told(call, None));
        }
    }

    /// A worker traps: its streams are gone, and it begins anew. What the workers share stays.
    fn trap(&mut self) {
        if self.calm {
            return;
        }
        let slot = self.dice.below(self.slots.len());
        if let Some(life) = self.slots[slot]
            && let Some(process) = &mut self.processes[life]
        {
            let nth = self.dice.below(process.current.len());
            let configuration = self.scene.configuration(self.pushes).to_string();
            let (calls, effects) = process.trap(nth, &self.dice, &configuration);
            self.carry_out_all(life, vec![effects]);
            self.broken(calls, "its worker traps");
        }
        self.again(self.scene.traps_ms, Event::Trap);
    }

    fn push(&mut self) {
        if self.calm {
            return;
        }
        self.pushes += 1;
        self.tell_all("a configuration is pushed");
        let configuration = self.scene.configuration(self.pushes).to_string();
        for slot in 0..self.slots.len() {
            if let Some(life) = self.slots[slot]
                && let Some(process) = &mut self.processes[life]
            {
                let effects = process.configure(&self.dice, &configuration);
                self.carry_out_all(life, effects);
            }
        }
        self.again(self.scene.pushes_ms, Event::Push);
    }

    /// Somebody sets the clock of a machine. It is never so wrong that a day is not a day.
    fn clock_jumps(&mut self) {
        if self.calm {
            return;
        }
        let clock = &self.clocks[self.dice.below(self.clocks.len())];
        clock
            .unix_ms
            .set(BEGINNING_MS + self.dice.range(-120_000..120_000));
        self.again(self.scene.clock_jumps_ms, Event::ClockJumps);
    }

    fn outage(&mut self, kind: Kind, begins: bool) {
        if self.calm {
            return;
        }
        self.outages[kind as usize] = begins;
        match begins {
            true => {
                let after = self.dice.soon(100..60_000);
                self.after(after, Event::Outage(kind, false));
            }
            false => {
                let next = self.dice.pick(&Kind::ALL);
                self.again(self.scene.outages_ms, Event::Outage(next, true));
            }
        }
    }

    // ---- the end

    fn tell_at(&mut self, at: At, line: &str) {
        let call = self.passage(at).map(|passage| passage.call);
        if let Some(call) = call {
            let refund = self.calls[call].refund;
            self.tell(refund, |_| format!("call {call}: {line}"));
        }
    }

    /// Adds what befalls all to the story, while the refund that is watched is not over.
    fn tell_all(&mut self, line: &str) {
        if let Some(refund) = self.plan.watched
            && self.refunds[refund].under_way > 0
        {
            self.tell(refund, |_| format!("({line})"));
        }
    }

    /// Adds a line to the story of the refund that is watched.
    fn tell(&mut self, refund: usize, line: impl FnOnce(&Self) -> String) {
        if self.plan.watched == Some(refund) {
            let line = line(self);
            let at = rfc3339(self.now());
            let (_, time) = at.split_at(11);
            let millisecond = self.now() % 1_000;
            let time = time.trim_end_matches('Z');
            self.story.push(format!("{time}.{millisecond:03}  {line}"));
        }
    }

    fn outcome(self) -> Outcome {
        let mut findings = oracle::reckon(&oracle::Evidence {
            refunds: &self.refunds,
            calls: &self.calls,
            sends: &self.sends,
            lives: &self.lives,
            providers: &self.providers,
            scene: &self.scene,
            now: self.now.get(),
        });
        let all = findings.len();
        findings.retain(|finding| finding.rule != oracle::UNTOLD);
        Outcome {
            untold: all - findings.len(),
            refunds: self.refunds.len(),
            calls: self.calls.len(),
            sends: self.sends.len(),
            events: self.events,
            two_versions: self.scene.two_versions,
            findings,
            story: self.story,
        }
    }
}

/// A word after a space, where there is one.
fn space(word: &str) -> String {
    match word {
        "" => String::new(),
        word => format!(" {word}"),
    }
}

/// A key that is another one in capitals.
fn as_spelled(key: &str) -> String {
    let bare = key.trim_matches('"');
    match bare != bare.to_ascii_lowercase() {
        true => format!("spelled-{bare}"),
        false => key.to_owned(),
    }
}
