//! Orders of what can happen to a few calls at two gateways that share a memory.
//!
//! As in the model of one gateway, a provider books whatever reaches it, but for a key that it knows. Here the workers and streams run
//! themselves. Besides what befalls a call, everything befalls its calls to the store: one is lost, its answer is lost, it comes late,
//! or it comes twice. Each walk goes from the beginning to an end by a seeded choice of events. There are too many worlds for all of
//! them: with `WHOLE_MODEL` there are eight times as many walks. `tests/simulation` walks through very many more.

use std::cell::RefCell;

use super::sharing::{Fleet, KEYED, UNKEYED, success};
use core_testbed::host::Reply;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use refund_filter::worker::Flow;
use serde_json::json;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Comes(usize),
    /// What becomes of the first call to the store that this gateway waits for.
    Store(usize, Way),
    /// A call to the store that its gateway has given up, or has had answered, comes there: the nth of those.
    StoreLate(usize),
    /// The provider refunds, and says so.
    Books(usize),
    /// It refuses.
    Refuses(usize, u16),
    /// No reply comes. The request is still on its way.
    NoReply(usize),
    /// Such a request is processed after all: the nth of those.
    BooksLate(usize),
    Leaves(usize),
    /// A second goes by, and what the root is to do is done.
    Ticks(usize),
    LeaseRunsOut,
    /// The store forgets everything. It may not: this shows that the walks would see it.
    Forgets,
}
use Event::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Answered,
    Lost,
    AnswerLost,
    Late,
    Twice,
}

/// A call: its gateway and its key.
type Call = (usize, &'static str);

#[derive(Default)]
struct Stage {
    stream: Option<u32>,
    /// Its request at the provider.
    request: Option<usize>,
    has_reply: bool,
    /// Whether its answer is written over the reply and goes on at once.
    goes_on: bool,
    is_over: bool,
}

struct Request {
    key: &'static str,
    is_booked: bool,
    /// It may still arrive.
    is_away: bool,
    /// Somebody was told that it has moved no money, and will not.
    is_denied: bool,
}

struct World {
    fleet: Fleet,
    calls: Vec<(Call, Stage)>,
    requests: Vec<Request>,
    /// Requests that nobody waits for.
    adrift: Vec<usize>,
    /// Calls to the store that may still come there.
    late: RefCell<Vec<Vec<u8>>>,
    is_lease_over: bool,
    may_forget: bool,
    trace: Vec<Event>,
}

impl World {
    fn new(name: &'static str, calls: &[Call], may_forget: bool) -> Self {
        // Elsewhere a gateway that goes on alone is not seen by the others, which docs/memory.md names.
        let refuse =
            json!({"memory": {"redis": {"cluster": "redis"}, "when_unavailable": "refuse"}});
        World {
            fleet: Fleet::with(name, 2, &refuse),
            calls: calls.iter().map(|call| (*call, Stage::default())).collect(),
            requests: Vec::new(),
            adrift: Vec::new(),
            late: RefCell::default(),
            is_lease_over: false,
            may_forget,
            trace: Vec::new(),
        }
    }

    fn is_keyed(&self) -> bool {
        self.fleet.name == KEYED
    }

    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (nth, (_, stage)) in self.calls.iter().enumerate() {
            match stage {
                Stage { stream: None, .. } => events.push(Comes(nth)),
                Stage { is_over: true, .. } => {}
                Stage {
                    request: Some(_),
                    has_reply: false,
                    ..
                } => {
                    events.extend([Books(nth), NoReply(nth), Leaves(nth)]);
                    events.extend([401, 422, 429, 500].map(|status| Refuses(nth, status)));
                }
                _ => events.push(Leaves(nth)),
            }
        }
        for gateway in 0..2 {
            if self.fleet.asks(gateway) {
                let ways = [
                    Way::Answered,
                    Way::Lost,
                    Way::AnswerLost,
                    Way::Late,
                    Way::Twice,
                ];
                events.extend(ways.map(|way| Store(gateway, way)));
                // Mostly it answers.
                events.extend([Store(gateway, Way::Answered); 4]);
            }
            if self.fleet.gateways[gateway].host.tick_ms.get() > 0 {
                events.push(Ticks(gateway));
            }
        }
        events.extend((0..self.late.borrow().len()).map(StoreLate));
        events.extend((0..self.adrift.len()).map(BooksLate));
        if !self.requests.is_empty() {
            events.extend((!self.is_lease_over).then_some(LeaseRunsOut));
            events.extend(self.may_forget.then_some(Forgets));
        }
        events
    }

    fn step(&mut self, event: Event) {
        self.trace.push(event);
        match event {
            Comes(nth) => {
                let (gateway, key) = self.calls[nth].0;
                let (id, flow) = self.fleet.gateways[gateway].call(key, &self.fleet.call());
                assert_eq!(flow, Flow::Pause);
                self.calls[nth].1.stream = Some(id);
            }
            Store(gateway, way) => self.store(gateway, way),
            StoreLate(which) => {
                let call = self.late.borrow_mut().remove(which);
                self.fleet.store.call(&call);
            }
            Books(nth) => {
                let ((_, key), _) = self.calls[nth];
                self.book(self.calls[nth].1.request.unwrap());
                self.reply(nth, 200, &success(self.fleet.name, key));
            }
            Refuses(nth, status) => {
                self.requests[self.calls[nth].1.request.unwrap()].is_away = false;
                self.reply(nth, status, "{}");
            }
            NoReply(nth) => {
                self.adrift.extend(self.calls[nth].1.request);
                let (gateway, id) = self.stream(nth);
                self.calls[nth].1.has_reply = true;
                self.fleet.gateways[gateway].response_headers(id, 504, "response_timeout");
            }
            BooksLate(which) => {
                let request = self.adrift.remove(which);
                self.book(request);
            }
            Leaves(nth) => self.leaves(nth),
            Ticks(gateway) => self.fleet.tick(gateway, 1_001),
            LeaseRunsOut => {
                self.is_lease_over = true;
                self.fleet.later(61_000);
            }
            Forgets => self.fleet.store.values.borrow_mut().clear(),
        }
        for nth in 0..self.calls.len() {
            self.is_sent(nth);
            self.is_told(nth);
        }
    }

    fn stream(&self, nth: usize) -> (usize, u32) {
        let ((gateway, _), stage) = &self.calls[nth];
        (*gateway, stage.stream.unwrap())
    }

    fn store(&self, gateway: usize, way: Way) {
        self.fleet.gateways[gateway].answer_with(|call| {
            if matches!(way, Way::Late | Way::Twice) {
                self.late.borrow_mut().push(call.body.clone());
            }
            let does = !matches!(way, Way::Lost | Way::Late);
            let answer = does.then(|| self.fleet.store.call(&call.body))?;
            (way != Way::AnswerLost).then_some((200, answer))
        });
    }

    fn reply(&mut self, nth: usize, status: u16, body: &str) {
        let (gateway, id) = self.stream(nth);
        self.calls[nth].1.has_reply = true;
        let gateway = &self.fleet.gateways[gateway];
        gateway.reply_begins(id, status);
        self.calls[nth].1.goes_on = gateway.reply_ends(id, body) == Flow::Continue;
    }

    /// Its calls go with it, as Envoy has it. What was on its way to the store may still come there.
    fn leaves(&mut self, nth: usize) {
        let (gateway, id) = self.stream(nth);
        let stage = &mut self.calls[nth].1;
        stage.is_over = true;
        if !stage.has_reply {
            self.adrift.extend(stage.request);
        }
        let gateway = &self.fleet.gateways[gateway];
        gateway.leaves(id);
        gateway.host.calls.borrow_mut().retain(|call| {
            let is_its = call.context == id;
            if is_its {
                self.late.borrow_mut().push(call.body.clone());
            }
            !is_its
        });
    }

    /// Whether the refund has left, for the first time.
    fn is_sent(&mut self, nth: usize) {
        let ((_, key), stage) = &self.calls[nth];
        if stage.is_over || stage.request.is_some() || stage.stream.is_none() {
            return;
        }
        let (gateway, id) = self.stream(nth);
        if !self.fleet.is_sent(gateway, id) {
            return;
        }
        let mut before = self.requests.iter();
        let may_move = before.any(|request| request.is_booked || request.is_away);
        assert!(
            self.is_keyed() || !may_move,
            "sent again where it may have been sent: {:?}",
            self.trace
        );
        self.fleet.gateways[gateway].of(id, |side| {
            let name = "upstream.request_attempt_count".to_owned();
            side.properties.insert(name, 1_u64.to_le_bytes().to_vec());
            // So that a connection was had.
            let name = "upstream.local_address".to_owned();
            side.properties.insert(name, b"127.0.0.1:1".to_vec());
        });
        self.requests.push(Request {
            key,
            is_booked: false,
            is_away: true,
            is_denied: false,
        });
        self.calls[nth].1.request = Some(self.requests.len() - 1);
    }

    fn book(&mut self, which: usize) {
        let key = self.requests[which].key;
        self.requests[which].is_away = false;
        let mut others = self.requests.iter();
        // It knows the key.
        if self.is_keyed() && others.any(|other| other.key == key && other.is_booked) {
            return;
        }
        self.requests[which].is_booked = true;
        assert!(
            !self.requests[which].is_denied,
            "it was told that this had not moved money, nor would: {:?}",
            self.trace
        );
        let booked = self.requests.iter().filter(|request| request.is_booked);
        assert!(
            self.is_keyed() || booked.count() <= 1,
            "refunded twice: {:?}",
            self.trace
        );
    }

    /// Holds what the caller is told, once it is.
    fn is_told(&mut self, nth: usize) {
        if self.calls[nth].1.is_over || self.calls[nth].1.stream.is_none() {
            return;
        }
        let ((gateway, key), stage) = &self.calls[nth];
        let (gateway, id) = (&self.fleet.gateways[*gateway], stage.stream.unwrap());
        let (replies, resumed) =
            gateway.of(id, |side| (side.replies.clone(), side.responses_resumed));
        let told = match &replies[..] {
            [Reply { body, .. }] => body.clone(),
            [] if resumed > 0 || stage.goes_on => self.fleet.written(self.calls[nth].0.0, id),
            [] => return,
            _ => panic!("answered twice: {:?}", self.trace),
        };
        let mut own = self.requests.iter().filter(|request| request.key == *key);
        let (key, trace) = (*key, &self.trace);
        match (told["status"].as_str(), told["outcome"].as_str()) {
            (Some("succeeded"), None) => {
                assert!(own.any(|own| own.is_booked), "refunded? {told} {trace:?}");
            }
            (_, Some("not_refunded")) => {
                assert!(
                    !own.any(|own| own.is_booked),
                    "not refunded? {told} {trace:?}"
                );
                let own = self.requests.iter_mut().filter(|own| own.key == key);
                own.for_each(|own| own.is_denied = true);
            }
            (_, Some("unknown")) => {}
            _ => panic!("{told} {trace:?}"),
        }
        self.leaves(nth);
    }
}

/// So many walks; says how many events there were.
fn walk(name: &'static str, calls: &[Call], walks: usize, may_forget: bool) -> usize {
    let mut events = 0;
    for walk in 0..walks {
        let mut chance = StdRng::seed_from_u64(walk as u64);
        let mut world = World::new(name, calls, may_forget);
        while world.trace.len() < 80 {
            let can = world.events();
            let is_done = world.calls.iter().all(|(_, stage)| stage.is_over);
            // What is left then makes no difference to anybody.
            if is_done && (world.adrift.is_empty() || chance.random_ratio(1, 4)) {
                break;
            }
            let Some(next) = can.choose(&mut chance) else {
                break;
            };
            world.step(*next);
        }
        events += world.trace.len();
    }
    events
}

fn walks() -> usize {
    match std::env::var_os("WHOLE_MODEL") {
        Some(_) => 800,
        None => 100,
    }
}

#[test]
fn no_order_of_losses_sends_a_key_twice_or_makes_a_false_statement() {
    for name in [KEYED, UNKEYED] {
        let calls = [(0, "k-1"), (1, "k-1"), (0, "k-1")];
        let events = walk(name, &calls, walks(), false);
        assert!(events > 10 * walks(), "{name}: {events} events");
    }
}

#[test]
fn no_order_of_losses_gives_a_payment_to_two_keys() {
    let calls = [(0, "k-1"), (1, "k-2"), (1, "k-1"), (0, "k-2")];
    let events = walk(UNKEYED, &calls, walks(), false);
    assert!(events > 10 * walks(), "{events} events");
}

#[test]
fn where_the_store_forgets_a_second_send_is_found() {
    let calls = [(0, "k-1"), (1, "k-1"), (0, "k-2")];
    let found = std::panic::catch_unwind(|| walk(UNKEYED, &calls, 10_000, true));
    let said = *found.unwrap_err().downcast::<String>().unwrap();
    assert!(
        said.contains("sent again") || said.contains("refunded twice"),
        "{said}"
    );
}

/// That a walk which is not disturbed comes to its end.
#[test]
fn a_plain_call_is_refunded() {
    let mut world = World::new(KEYED, &[(0, "k-1")], false);
    for event in [
        Comes(0),
        Store(0, Way::Answered),
        Store(0, Way::Answered),
        Books(0),
    ] {
        world.step(event);
    }
    assert!(world.fleet.asks(0), "its end is told to the store");
    assert!(!world.calls[0].1.is_over);
    world.step(Store(0, Way::Answered));
    assert!(world.calls[0].1.is_over && world.requests[0].is_booked);
}
