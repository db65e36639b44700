//! Gateways that share a memory: each is a worker over a host that records, and the store is one for all.

use core_testbed::fixtures::{TOKEN, sent};
use core_testbed::gateway::fixture;
use core_testbed::host::{Process, ROOT, Reply, Side};
use core_testbed::store::MockStore;
use core_testbed::{call_headers, look_up_headers};
use refund_filter::headers::Headers;
use refund_filter::host::Buffer;
use refund_filter::worker::Flow;
use serde_json::{Value, json};

/// The store's clock: no gateway's.
const STORE_MS: i64 = 1_900_000_000_000;

/// Gateways of one worker each, and their store.
pub(super) struct Fleet {
    pub store: MockStore,
    pub gateways: Vec<Process>,
    pub name: &'static str,
    configuration: Value,
}

/// Why a call to the store has no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// It was not done.
    Call,
    /// It was done.
    Answer,
}

impl Fleet {
    fn of(name: &'static str, gateways: usize) -> Self {
        Self::with(name, gateways, &json!({}))
    }

    pub fn with(name: &'static str, gateways: usize, more: &Value) -> Self {
        let mut provider = fixture(name).provider_config();
        core_testbed::resolve_files(&mut provider);
        let mut configuration = json!({
            "providers": {name: provider},
            "memory": {"redis": {"cluster": "redis"}},
        });
        for (member, value) in more.as_object().unwrap() {
            configuration[member] = value.clone();
        }
        let gateways = (0..gateways).map(|nth| {
            let gateway = Process::plugin(None, &configuration);
            gateway.host.seed(100 + nth as u64);
            gateway
        });
        Fleet {
            store: MockStore::new(STORE_MS),
            gateways: gateways.collect(),
            name,
            configuration,
        }
    }

    /// The store answers this gateway's calls until it makes none.
    fn serve(&self, nth: usize) {
        while self.asks(nth) {
            self.gateways[nth].answer_with(|call| Some((200, self.store.call(&call.body))));
        }
    }

    /// Whether this gateway waits for the store.
    pub fn asks(&self, nth: usize) -> bool {
        let calls = self.gateways[nth].host.calls.borrow();
        calls.first().is_some_and(|call| call.cluster == "redis")
    }

    /// The next call of this gateway to the store has no answer.
    fn loses(&self, nth: usize, lost: Lost) {
        assert!(self.asks(nth));
        self.gateways[nth].answer_with(|call| {
            if lost == Lost::Answer {
                self.store.call(&call.body);
            }
            None
        });
    }

    /// The store is gone for this gateway, as often as it asks.
    fn serve_none(&self, nth: usize) {
        while self.asks(nth) {
            self.loses(nth, Lost::Call);
        }
    }

    pub fn call(&self) -> Value {
        fixture(self.name).call()
    }

    /// A call that waits for the store.
    fn begins(&self, nth: usize, key: &str) -> u32 {
        let (id, flow) = self.gateways[nth].call(key, &self.call());
        assert_eq!(flow, Flow::Pause);
        assert!(self.asks(nth));
        id
    }

    /// A call, up to where it is sent or answered.
    fn sends(&self, nth: usize, key: &str) -> u32 {
        let id = self.begins(nth, key);
        self.serve(nth);
        self.token(nth);
        id
    }

    /// Its token comes, where the provider wants one.
    fn token(&self, nth: usize) {
        let gateway = &self.gateways[nth];
        gateway.tick_after(1);
        if !gateway.host.calls.borrow().is_empty() && !self.asks(nth) {
            let token = json!({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 300});
            gateway.answer_call(Some((200, &token.to_string())));
        }
        self.serve(nth);
    }

    #[track_caller]
    pub fn is_sent(&self, nth: usize, id: u32) -> bool {
        self.gateways[nth].of(id, |side| side.resumed > 0)
    }

    /// The provider refunds.
    fn refunds(&self, nth: usize, id: u32, key: &str) {
        assert!(self.is_sent(nth, id));
        self.replies(nth, id, 200, &success(self.name, key));
    }

    fn replies(&self, nth: usize, id: u32, status: u16, body: &str) {
        let gateway = &self.gateways[nth];
        once(self, nth, id);
        gateway.reply_begins(id, status);
        assert_eq!(gateway.reply_ends(id, body), Flow::Pause);
    }

    /// The same for a call that goes on without the store, whose answer waits for nothing.
    fn replies_alone(&self, nth: usize, id: u32, status: u16, body: &str) {
        let gateway = &self.gateways[nth];
        gateway.reply_begins(id, status);
        assert_eq!(gateway.reply_ends(id, body), Flow::Continue);
    }

    /// What was written over the provider's reply.
    pub fn written(&self, nth: usize, id: u32) -> Value {
        self.gateways[nth].of(id, |side| {
            serde_json::from_slice(&side.buffers[&(Buffer::Response as u32)]).unwrap()
        })
    }

    /// The answer that was written over the provider's reply, which was held meanwhile.
    fn told(&self, nth: usize, id: u32) -> Value {
        let resumed = self.gateways[nth].of(id, |side| side.responses_resumed);
        assert_eq!(resumed, 1);
        self.written(nth, id)
    }

    fn answered(&self, nth: usize, id: u32) -> Reply {
        self.gateways[nth].answered(id)
    }

    /// Time goes by, for all.
    pub fn later(&self, milliseconds: i64) {
        self.store
            .now_ms
            .set(self.store.now_ms.get() + milliseconds);
        for gateway in &self.gateways {
            gateway.later(milliseconds);
        }
    }

    /// The root of this gateway does what is due.
    pub fn tick(&self, nth: usize, milliseconds: i64) {
        self.later(milliseconds);
        self.gateways[nth].tick_after(0);
    }
}

/// What the provider says of the refund under this key.
pub(super) fn success(name: &str, key: &str) -> String {
    let fixture = fixture(name);
    let dispatch = sent(&fixture.config(), key, &fixture.call()).unwrap();
    fixture.success_reply(&fixture.call(), &dispatch).0
}

#[track_caller]
fn says(reply: &Reply, (code, outcome, retry): (&str, &str, &str)) {
    let body = &reply.body;
    assert_eq!(
        (&body["code"], &body["outcome"], &body["retry"]),
        (&json!(code), &json!(outcome), &json!(retry)),
        "{body}"
    );
}

/// With keys of their own, and without.
pub(super) const KEYED: &str = "moyasar";
pub(super) const UNKEYED: &str = "bbmsl";
/// With keys of its own, and an answer that proves that there is no refund under one.
const PROVES: &str = "begateway";

#[test]
fn a_key_that_nobody_has_used_costs_one_call_before_it_is_sent_and_one_before_its_answer() {
    for name in [KEYED, UNKEYED, PROVES, "bog"] {
        let fleet = Fleet::of(name, 1);
        // The first call of a worker also learns the store's clock.
        let first = fleet.sends(0, "k-0");
        assert_eq!(fleet.store.calls.get(), 2);
        fleet.refunds(0, first, "k-0");
        fleet.serve(0);
        assert_eq!(fleet.store.calls.get(), 3);
        fleet.store.calls.set(0);
        let mut call = fleet.call();
        call["payment"]["id"] = json!(if name == UNKEYED { "77" } else { "another" });
        call["payment"].as_object_mut().unwrap().remove("reference");
        let (id, _) = fleet.gateways[0].call("k-1", &call);
        fleet.serve(0);
        fleet.token(0);
        assert!(fleet.is_sent(0, id), "{name}");
        assert_eq!(fleet.store.calls.get(), 1, "{name}");
    }
}

#[test]
fn an_answer_is_the_same_at_every_gateway() {
    // BOG's is pending first, and such a call is sent again.
    for name in [KEYED, UNKEYED, PROVES] {
        let fleet = Fleet::of(name, 2);
        let id = fleet.sends(0, "k-1");
        fleet.refunds(0, id, "k-1");
        // Nobody has the answer before the store has it.
        assert_eq!(fleet.gateways[0].of(id, |side| side.responses_resumed), 0);
        fleet.serve(0);
        let told = fleet.told(0, id);
        assert_eq!(told["status"], "succeeded", "{told}");
        let again = fleet.begins(1, "k-1");
        fleet.serve(1);
        assert!(!fleet.is_sent(1, again));
        let reply = fleet.answered(1, again);
        assert_eq!(reply.body, told);
        assert_eq!(reply.details, "refund_replayed");
    }
}

#[test]
fn a_key_is_sent_once_whoever_asks_for_it_at_the_same_moment() {
    for name in [KEYED, UNKEYED] {
        let fleet = Fleet::of(name, 3);
        for nth in 0..3 {
            // Each has asked before any of them has an answer.
            fleet.begins(nth, "k-1");
        }
        for nth in 0..3 {
            fleet.serve(nth);
            fleet.token(nth);
        }
        let sent: Vec<bool> = (0..3).map(|nth| fleet.is_sent(nth, ROOT + 1)).collect();
        assert_eq!(sent, [true, false, false]);
        let retry = if name == KEYED { "same_key" } else { "look_up" };
        for nth in 1..3 {
            says(
                &fleet.answered(nth, ROOT + 1),
                ("refund-in-progress", "unknown", retry),
            );
        }
    }
}

#[test]
fn a_key_of_another_refund_is_refused_at_every_gateway() {
    let fleet = Fleet::of(KEYED, 2);
    fleet.sends(0, "k-1");
    let mut call = fleet.call();
    call["payment"]["id"] = json!("another");
    let (id, _) = fleet.gateways[1].call("k-1", &call);
    fleet.serve(1);
    says(
        &fleet.answered(1, id),
        ("idempotency-key-reused", "unknown", "no"),
    );
}

#[test]
fn a_payment_is_one_for_all_gateways_where_it_has_one_refund() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.sends(0, "k-1");
    let other = fleet.sends(1, "k-2");
    assert!(!fleet.is_sent(1, other));
    says(
        &fleet.answered(1, other),
        ("payment-has-refund", "not_refunded", "same_key"),
    );
    fleet.refunds(0, id, "k-1");
    fleet.serve(0);
    let other = fleet.sends(1, "k-3");
    says(
        &fleet.answered(1, other),
        ("payment-has-refund", "not_refunded", "no"),
    );
}

#[test]
fn a_claim_whose_answer_is_lost_is_made_once_more_and_counts_once() {
    for lost in [Lost::Call, Lost::Answer] {
        let fleet = Fleet::of(UNKEYED, 2);
        let id = fleet.begins(0, "k-1");
        // The clock.
        fleet.gateways[0].answer_with(|call| Some((200, fleet.store.call(&call.body))));
        fleet.loses(0, lost);
        fleet.serve(0);
        assert!(fleet.is_sent(0, id));
        let other = fleet.sends(1, "k-1");
        says(
            &fleet.answered(1, other),
            ("refund-in-progress", "unknown", "look_up"),
        );
    }
}

#[test]
fn without_the_store_a_provider_without_keys_is_sent_nothing() {
    let fleet = Fleet::of(UNKEYED, 1);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(!fleet.is_sent(0, id));
    let reply = fleet.answered(0, id);
    assert_eq!(reply.status, 503);
    says(&reply, ("memory-unavailable", "unknown", "same_key"));
    // And it may be sent as soon as the store is back.
    fleet.tick(0, 2_000);
    fleet.serve(0);
    let id = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, id));
}

#[test]
fn without_the_store_a_provider_with_keys_goes_on_unless_the_team_wants_it_otherwise() {
    let refuse = json!({"memory": {"redis": {"cluster": "redis"}, "when_unavailable": "refuse"}});
    let fleet = Fleet::with(KEYED, 1, &refuse);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    says(
        &fleet.answered(0, id),
        ("memory-unavailable", "unknown", "same_key"),
    );

    let fleet = Fleet::of(KEYED, 2);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, id));
    fleet.replies_alone(0, id, 200, &success(KEYED, "k-1"));
    // Later the store knows, too, and so does everybody.
    fleet.tick(0, 1_001);
    fleet.serve(0);
    let again = fleet.sends(1, "k-1");
    assert_eq!(fleet.answered(1, again).details, "refund_replayed");
}

#[test]
fn the_access_log_says_of_which_calls_the_store_does_not_know() {
    let said = |fleet: &Fleet, id| fleet.gateways[0].state(id, "memory");
    let fleet = Fleet::of(KEYED, 1);
    let known = fleet.sends(0, "k-1");
    fleet.refunds(0, known, "k-1");
    fleet.serve(0);
    assert_eq!(said(&fleet, known), None);
    let untold = fleet.sends(0, "k-2");
    fleet.refunds(0, untold, "k-2");
    fleet.serve_none(0);
    assert_eq!(said(&fleet, untold).as_deref(), Some("untold"));
    let left = fleet.sends(0, "k-3");
    fleet.gateways[0].is_logged(left);
    assert_eq!(said(&fleet, left).as_deref(), Some("untold"));
    let alone = fleet.begins(0, "k-4");
    fleet.serve_none(0);
    fleet.replies_alone(0, alone, 200, &success(KEYED, "k-4"));
    assert_eq!(said(&fleet, alone).as_deref(), Some("alone"));
    let fleet = Fleet::of(UNKEYED, 1);
    let unavailable = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert_eq!(said(&fleet, unavailable).as_deref(), Some("unavailable"));
}

#[test]
fn what_the_store_could_not_be_asked_about_is_refused_for_certain_by_nobody() {
    let fleet = Fleet::of(KEYED, 1);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    let refusal = fixture(KEYED).refusal_reply("invalid_request", "no");
    fleet.replies_alone(0, id, 400, &refusal);
    let told = fleet.written(0, id);
    assert_eq!(told["outcome"], "unknown", "{told}");
}

#[test]
fn a_caller_who_leaves_while_its_key_is_claimed_leaves_it_to_others() {
    for lost in [None, Some(Lost::Call), Some(Lost::Answer)] {
        let fleet = Fleet::of(UNKEYED, 2);
        let first = fleet.sends(0, "warm");
        fleet.replies(0, first, 200, &fixture(UNKEYED).refusal_reply("0000", "x"));
        fleet.serve(0);
        fleet.store.values.borrow_mut().clear();
        let id = fleet.begins(0, "k-1");
        // The claim is on its way.
        if let Some(lost) = lost {
            fleet.loses(0, lost);
        }
        let pending = fleet.gateways[0].host.calls.borrow()[0].body.clone();
        fleet.gateways[0].leaves(id);
        fleet.gateways[0].host.calls.borrow_mut().clear();
        // It is stored all the same, as late as it may be.
        fleet.later(900);
        fleet.store.call(&pending);
        fleet.tick(0, 200);
        fleet.serve(0);
        let other = fleet.sends(1, "k-1");
        assert!(fleet.is_sent(1, other), "{}", lost.is_some());
        // And not later than that.
        fleet.store.values.borrow_mut().clear();
        fleet.store.call(&pending);
        assert!(fleet.store.values.borrow().is_empty());
    }
}

#[test]
fn a_stream_that_ends_before_its_key_is_settled_has_it_settled_by_the_root() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.refunds(0, id, "k-1");
    fleet.gateways[0].leaves(id);
    fleet.gateways[0].host.calls.borrow_mut().clear();
    fleet.tick(0, 2_000);
    fleet.serve(0);
    let again = fleet.sends(1, "k-1");
    assert_eq!(fleet.answered(1, again).body["status"], "succeeded");
}

#[test]
fn what_could_not_be_settled_is_told_all_the_same_and_repeated() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.refunds(0, id, "k-1");
    fleet.serve_none(0);
    assert_eq!(fleet.told(0, id)["status"], "succeeded");
    // The store stays away for long.
    for _ in 0..30 {
        fleet.tick(0, 1_001);
        fleet.serve_none(0);
    }
    fleet.tick(0, 1_001);
    fleet.serve(0);
    let again = fleet.sends(1, "k-1");
    assert_eq!(fleet.answered(1, again).body["status"], "succeeded");
    assert!(fleet.gateways[0].shows("refund.memory_repeats_total.result.failed") >= 15);
    assert_eq!(
        fleet.gateways[0].shows("refund.memory_repeats_total.result.ok"),
        1
    );
}

#[test]
fn a_gateway_that_dies_leaves_a_key_in_doubt_once_its_lease_is_over() {
    for name in [KEYED, UNKEYED] {
        let fleet = Fleet::of(name, 2);
        fleet.sends(0, "k-1");
        fleet.later(59_000);
        let early = fleet.sends(1, "k-1");
        assert_eq!(fleet.answered(1, early).body["code"], "refund-in-progress");
        fleet.later(2_000);
        let late = fleet.sends(1, "k-1");
        if name == KEYED {
            assert!(fleet.is_sent(1, late));
            // Its refusal says nothing of the first send.
            let refusal = fixture(name).refusal_reply("invalid_request", "no");
            fleet.replies(1, late, 400, &refusal);
            fleet.serve(1);
            assert_eq!(fleet.told(1, late)["outcome"], "unknown");
        } else {
            says(
                &fleet.answered(1, late),
                ("gateway-error", "unknown", "look_up"),
            );
        }
    }
}

#[test]
fn no_clock_of_a_gateway_counts_in_the_store() {
    let fleet = Fleet::of(KEYED, 2);
    for (nth, jump_ms) in [(0, -3_600_000), (1, 86_400_000)] {
        let host = &fleet.gateways[nth].host;
        let mut now = refund_filter::host::Host::now(&**host);
        now.unix_ms += jump_ms;
        now.steady_ms += jump_ms.abs() / 7;
        host.now.set(Some(now));
    }
    let id = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, id));
    fleet.later(59_000);
    let early = fleet.sends(1, "k-1");
    assert_eq!(fleet.answered(1, early).body["code"], "refund-in-progress");
    fleet.later(2_000);
    let late = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, late));
}

#[test]
fn a_store_whose_clock_has_jumped_is_asked_once_more_by_its_new_one() {
    let fleet = Fleet::of(UNKEYED, 1);
    let first = fleet.sends(0, "k-1");
    fleet.refunds(0, first, "k-1");
    fleet.serve(0);
    // Another primary, whose clock is fast.
    fleet.store.now_ms.set(STORE_MS + 30_000);
    let again = fleet.begins(0, "k-2");
    fleet.serve(0);
    assert_eq!(fleet.answered(0, again).body["code"], "payment-has-refund");
    fleet.store.values.borrow_mut().clear();
    fleet.store.now_ms.set(STORE_MS + 90_000);
    let id = fleet.sends(0, "k-3");
    assert!(fleet.is_sent(0, id));
}

#[test]
fn every_word_of_the_store_has_its_meaning() {
    let cut = b"*5\r\n$16\r\n00000000".to_vec();
    let anothers =
        b"*5\r\n$16\r\n0000000000000000\r\n$13\r\n1900000000000\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n"
            .to_vec();
    let errors: Vec<(&str, Vec<u8>)> = [
        ("busy", "LOADING Redis is loading the dataset in memory"),
        (
            "busy",
            "READONLY You can't write against a read only replica.",
        ),
        ("busy", "NOREPLICAS Not enough good replicas to write."),
        ("busy", "BUSY Redis is busy running a script."),
        ("busy", "MASTERDOWN Link with MASTER is down"),
        ("busy", "CLUSTERDOWN The cluster is down"),
        (
            "refused",
            "OOM command not allowed when used memory > 'maxmemory'.",
        ),
        ("refused", "NOAUTH Authentication required."),
        ("refused", "WRONGPASS invalid username-password pair"),
        ("refused", "NOPERM this user has no permissions"),
        ("refused", "MOVED 3999 127.0.0.1:6381"),
        ("refused", "NEVER seen"),
    ]
    .into_iter()
    .map(|(result, words)| (result, format!("-{words}\r\n").into_bytes()))
    .chain([
        ("garbled", cut),
        ("garbled", anothers),
        ("garbled", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
    ])
    .collect();
    for (result, words) in errors {
        let fleet = Fleet::of(UNKEYED, 1);
        let id = fleet.begins(0, "k-1");
        let mut calls = 0;
        while fleet.asks(0) {
            fleet.gateways[0].answer_with(|_| Some((200, words.clone())));
            calls += 1;
        }
        says(
            &fleet.answered(0, id),
            ("memory-unavailable", "unknown", "same_key"),
        );
        let series = format!("refund.memory_calls_total.call.claim.result.{result}");
        assert_eq!(fleet.gateways[0].shows(&series), calls, "{result}");
        // What somebody must see to first is not tried again.
        assert_eq!(calls, if result == "refused" { 1 } else { 2 }, "{result}");
        assert!(fleet.store.values.borrow().is_empty());
    }
}

#[test]
fn a_call_on_a_connection_that_was_about_to_be_closed_is_made_again() {
    let fleet = Fleet::of(UNKEYED, 1);
    let id = fleet.begins(0, "k-1");
    for _ in 0..3 {
        fleet.gateways[0].answer_with(|_| Some((200, Vec::new())));
    }
    fleet.serve(0);
    assert!(fleet.is_sent(0, id));
    // Not for ever.
    let id = fleet.begins(0, "k-2");
    let mut calls = 0;
    while fleet.asks(0) {
        fleet.gateways[0].answer_with(|_| Some((200, Vec::new())));
        calls += 1;
    }
    assert_eq!(calls, 8);
    says(
        &fleet.answered(0, id),
        ("memory-unavailable", "unknown", "same_key"),
    );
}

#[test]
fn what_a_newer_version_has_stored_is_in_doubt() {
    for name in [KEYED, UNKEYED] {
        let fleet = Fleet::of(name, 1);
        fleet.sends(0, "k-1");
        for (value, _) in fleet.store.values.borrow_mut().values_mut() {
            value[0] = 2;
        }
        let id = fleet.sends(0, "k-1");
        assert!(!fleet.is_sent(0, id));
        let reply = fleet.answered(0, id);
        assert_eq!(reply.body["outcome"], "unknown", "{}", reply.body);
        let other = Fleet::of(name, 1);
        *other.store.values.borrow_mut() = fleet.store.values.borrow().clone();
        // Nor by a gateway that knows nothing of the key, whatever its provider: what became of it could be told to nobody.
        let id = other.sends(0, "k-1");
        assert!(!other.is_sent(0, id), "{name}");
        let reply = other.answered(0, id);
        assert_eq!(reply.body["code"], "memory-unavailable", "{}", reply.body);
        assert_eq!(reply.body["outcome"], "unknown", "{}", reply.body);
        // Another key is no worse for it; of BBMSL's payment it is not known whose it is.
        let id = other.sends(0, "k-2");
        assert_eq!(other.is_sent(0, id), name == KEYED, "{name}");
    }
}

#[test]
fn the_store_is_told_nothing_that_the_call_itself_says() {
    for name in [KEYED, UNKEYED, PROVES, "bog"] {
        let fleet = Fleet::of(name, 1);
        let mut call = fleet.call();
        call["reason"] = json!("CANARY-reason");
        let (id, _) = fleet.gateways[0].call("CANARY-key", &call);
        fleet.serve(0);
        fleet.token(0);
        fleet.refunds(0, id, "CANARY-key");
        fleet.serve(0);
        let stored = String::from_utf8_lossy(&fleet.store.bytes()).into_owned();
        assert!(stored.contains("\"status\""), "{stored}");
        let payment = call["payment"].as_object().unwrap();
        let said = payment.values().map(|name| name.as_str().unwrap());
        for said in said.chain(["CANARY", "\"payment\"", "\"reason\"", "\"reference\""]) {
            assert!(!stored.contains(said), "{said}: {stored}");
        }
    }
}

#[test]
fn the_password_goes_to_the_store_and_nowhere_else() {
    let memory = |password: Value| json!({"memory": {"redis": {"cluster": "redis", "username": "refunds", "password": password}}});
    let mut fleet = Fleet::with(KEYED, 1, &memory(json!({"inline": "CANARY-password"})));
    fleet.store.login = Some(("refunds", "CANARY-password"));
    let id = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, id));
    fleet.store.login = Some(("refunds", "another"));
    let id = fleet.sends(0, "k-2");
    assert!(fleet.is_sent(0, id), "a provider with keys goes on");
    assert_eq!(fleet.gateways[0].logged("CANARY"), 0);
    assert_eq!(fleet.gateways[0].logged("it said WRONGPASS"), 1);

    // As a stream brings it.
    let mut fleet = Fleet::with(KEYED, 1, &memory(json!({"filter_state": "redis.password"})));
    fleet.store.login = Some(("refunds", "CANARY-password"));
    let mut side = Side::default();
    side.properties.insert(
        "filter_state.redis.password".to_owned(),
        b"CANARY-password\n".to_vec(),
    );
    let gateway = &fleet.gateways[0];
    let id = gateway.begin_with("k-1", side);
    gateway.body(id, &fleet.call());
    fleet.serve(0);
    fleet.refunds(0, id, "k-1");
    // The root has it, too.
    gateway.leaves(id);
    gateway.host.calls.borrow_mut().clear();
    fleet.tick(0, 2_000);
    fleet.serve(0);
    assert_eq!(gateway.shows("refund.memory_repeats_total.result.ok"), 1);
}

/// The query of a look-up of this key.
fn look_up_of(fleet: &Fleet) -> String {
    let call = fleet.call();
    let payment = call["payment"]["id"].as_str().unwrap();
    format!("provider={}&payment_id={payment}&key=k-1", fleet.name)
}

/// What is told in a look-up of the key at a provider that shows no refund.
fn looks_up(fleet: &Fleet, nth: usize, is_read: bool) -> Value {
    let fixture = fixture(fleet.name);
    let query = look_up_of(fleet);
    let gateway = &fleet.gateways[nth];
    let (id, flow) = gateway.headers(look_up_headers(&query), Side::default(), true);
    assert_eq!(flow, Flow::Pause);
    match is_read {
        true => fleet.serve(nth),
        false => fleet.serve_none(nth),
    }
    assert!(fleet.is_sent(nth, id));
    gateway.reply_begins(id, 200);
    gateway.reply_ends(id, &fixture.shown(false));
    fleet.serve(nth);
    fleet.written(nth, id)
}

#[test]
fn a_look_up_that_could_not_read_its_key_is_unknown_and_one_that_could_needs_no_uptime() {
    let fleet = Fleet::of(PROVES, 1);
    let told = looks_up(&fleet, 0, true);
    assert_eq!(told["outcome"], "not_refunded", "{told}");
    let fleet = Fleet::of(PROVES, 1);
    let told = looks_up(&fleet, 0, false);
    assert_eq!(told["outcome"], "unknown", "{told}");
    // Another gateway may have gone on without the store.
    let told = looks_up(&fleet, 0, true);
    assert_eq!(told["outcome"], "unknown", "{told}");
    fleet.later(301_000);
    let told = looks_up(&fleet, 0, true);
    assert_eq!(told["outcome"], "not_refunded", "{told}");
}

#[test]
fn a_look_ups_word_counts_for_sends_of_every_gateway() {
    let fleet = Fleet::of(PROVES, 2);
    let id = fleet.sends(0, "k-1");
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "unknown", "it is in flight: {told}");
    fleet.gateways[0].leaves(id);
    fleet.tick(0, 2_000);
    fleet.serve(0);
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "unknown", "it may still arrive: {told}");
    fleet.later(301_000);
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "not_refunded", "{told}");
    // What is proved at one gateway clears nothing at the other.
    let again = fleet.sends(0, "k-1");
    fleet.replies(
        0,
        again,
        422,
        &fixture(PROVES).refusal_reply("F.0105", "no"),
    );
    fleet.serve(0);
    assert_eq!(fleet.told(0, again)["outcome"], "unknown");
}

// ---- Orders of events in which a key could be sent twice, a word be false, or an end be lost

/// The route has sent it once.
fn once(fleet: &Fleet, nth: usize, id: u32) {
    fleet.gateways[nth].of(id, |side| {
        let name = "upstream.request_attempt_count".to_owned();
        side.properties.insert(name, 1_u64.to_le_bytes().to_vec());
    });
}

fn clock(fleet: &Fleet, nth: usize) {
    fleet.gateways[nth].answer_with(|call| Some((200, fleet.store.call(&call.body))));
}

fn refusal() -> String {
    fixture(KEYED).refusal_reply("invalid_request", "no")
}

#[test]
fn what_was_sent_alone_counts_before_the_store_is_told() {
    let fleet = Fleet::of(KEYED, 1);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, id));
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
    says(
        &fleet.answered(0, id),
        ("provider-timeout", "unknown", "same_key"),
    );
    // As told, the same call again; the store is back.
    let again = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, again));
    fleet.replies(0, again, 400, &refusal());
    fleet.serve(0);
    assert_eq!(
        fleet.told(0, again)["outcome"],
        "unknown",
        "{}",
        fleet.told(0, again)
    );
}

#[test]
fn a_send_alone_after_a_claim_that_was_stored_is_settled() {
    let fleet = Fleet::of(KEYED, 2);
    let id = fleet.begins(0, "k-1");
    clock(&fleet, 0);
    fleet.loses(0, Lost::Answer);
    fleet.loses(0, Lost::Answer);
    assert!(fleet.is_sent(0, id));
    fleet.replies_alone(0, id, 200, &success(KEYED, "k-1"));
    fleet.tick(0, 1_001);
    fleet.serve(0);
    assert_eq!(
        fleet.gateways[0].shows("refund.memory_repeats_total.result.ok"),
        1
    );
    let again = fleet.sends(1, "k-1");
    assert!(!fleet.is_sent(1, again));
    assert_eq!(
        fleet.answered(1, again).details,
        "refund_replayed",
        "{}",
        fleet.answered(1, again).body
    );
}

#[test]
fn a_value_that_cannot_be_read_holds_up_no_other() {
    let fleet = Fleet::of(KEYED, 2);
    let id = fleet.sends(0, "k-0");
    assert!(fleet.is_sent(0, id));
    // A newer gateway has taken the key meanwhile, and its end cannot be told.
    for (value, _) in fleet.store.values.borrow_mut().values_mut() {
        value[0] = 2;
    }
    fleet.refunds(0, id, "k-0");
    fleet.serve(0);
    let id = fleet.sends(0, "k-1");
    fleet.refunds(0, id, "k-1");
    fleet.gateways[0].leaves(id);
    fleet.gateways[0].host.calls.borrow_mut().clear();
    for _ in 0..50 {
        fleet.tick(0, 1_001);
        fleet.serve(0);
    }
    let again = fleet.sends(1, "k-1");
    assert!(!fleet.is_sent(1, again));
    assert_eq!(
        fleet.answered(1, again).details,
        "refund_replayed",
        "{}",
        fleet.answered(1, again).body
    );
}

#[test]
fn a_late_refusal_clears_no_unknown_of_anothers() {
    let fleet = Fleet::of(KEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.replies(0, id, 400, &refusal());
    fleet.serve_none(0);
    // The store may have heard it, and another gateway may have sent the key since.
    assert_eq!(fleet.told(0, id)["outcome"], "unknown");
    fleet.later(61_000);
    let other = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, other));
    fleet.gateways[1].response_headers(other, 504, "response_timeout");
    fleet.serve(1);
    says(
        &fleet.answered(1, other),
        ("provider-timeout", "unknown", "same_key"),
    );
    fleet.tick(0, 1_001);
    fleet.serve(0);
    let third = fleet.sends(1, "k-1");
    if !fleet.is_sent(1, third) {
        assert_eq!(
            fleet.answered(1, third).body["outcome"],
            "unknown",
            "{}",
            fleet.answered(1, third).body
        );
    }
}

#[test]
fn a_success_alone_outweighs_anothers_refusal() {
    for succeeds in [true, false] {
        let fleet = Fleet::of(KEYED, 2);
        let id = fleet.begins(0, "k-1");
        fleet.serve_none(0);
        assert!(fleet.is_sent(0, id));
        // A peer that has the store is asked for the same.
        let other = fleet.sends(1, "k-1");
        fleet.replies(1, other, 400, &refusal());
        fleet.serve(1);
        if succeeds {
            fleet.replies_alone(0, id, 200, &success(KEYED, "k-1"));
            assert_eq!(fleet.written(0, id)["status"], "succeeded");
        } else {
            fleet.gateways[0].response_headers(id, 504, "response_timeout");
            assert_eq!(fleet.answered(0, id).body["outcome"], "unknown");
        }
        fleet.tick(0, 1_001);
        fleet.serve(0);
        assert_eq!(
            fleet.gateways[0].shows("refund.memory_repeats_total.result.ok"),
            1
        );
        for nth in 0..2 {
            let again = fleet.sends(nth, "k-1");
            if !fleet.is_sent(nth, again) {
                assert_ne!(
                    fleet.answered(nth, again).body["outcome"],
                    "not_refunded",
                    "{succeeds} {nth} {}",
                    fleet.answered(nth, again).body
                );
            }
        }
    }
}

#[test]
fn a_claim_of_which_nothing_was_sent_is_free_however_late_that_is_told() {
    let fleet = Fleet::of(UNKEYED, 1);
    let id = fleet.begins(0, "k-1");
    clock(&fleet, 0);
    fleet.loses(0, Lost::Answer);
    fleet.loses(0, Lost::Answer);
    says(
        &fleet.answered(0, id),
        ("memory-unavailable", "unknown", "same_key"),
    );
    // The store is away for more than a minute.
    for _ in 0..70 {
        fleet.tick(0, 1_001);
        fleet.serve_none(0);
    }
    fleet.tick(0, 1_001);
    fleet.serve(0);
    assert_eq!(
        fleet.gateways[0].shows("refund.memory_repeats_total.result.ok"),
        1
    );
    let again = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, again), "{}", fleet.answered(0, again).body);
}

/// Gateway 0 sends the key without the store, and the provider does not answer.
fn sends_alone(fleet: &Fleet) {
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, id));
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
}

/// Gateway 1 sends the key in vain, and a look-up there proves it.
fn proves_absence(fleet: &Fleet) {
    let id = fleet.sends(1, "k-1");
    fleet.gateways[1].response_headers(id, 504, "response_timeout");
    fleet.serve(1);
    fleet.later(301_000);
    assert_eq!(looks_up(fleet, 1, true)["outcome"], "not_refunded");
}

/// A worker traps, and what it still had to tell is gone with it. Its process's table is not.
fn traps(fleet: &mut Fleet, nth: usize) {
    let configuration = fleet.configuration.clone();
    let after = Process::plugin(Some(&fleet.gateways[nth]), &configuration);
    after.host.seed(200 + nth as u64);
    fleet.gateways[nth] = after;
}

#[test]
fn what_a_worker_did_alone_is_told_though_it_trapped() {
    let mut fleet = Fleet::of(PROVES, 2);
    sends_alone(&fleet);
    traps(&mut fleet, 0);
    assert_eq!(looks_up(&fleet, 1, true)["outcome"], "not_refunded");
    // The next time that the table is counted.
    for _ in 0..10 {
        fleet.tick(0, 5_001);
        fleet.serve(0);
    }
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "unknown", "{told}");
    // Once: it is known then that the store has it.
    let told = || fleet.gateways[0].shows("refund.memory_calls_total.call.settle.result.ok");
    let before = told();
    assert_eq!(before, 1);
    for _ in 0..10 {
        fleet.tick(0, 5_001);
        fleet.serve(0);
    }
    assert_eq!(told(), before);
}

#[test]
fn an_end_that_moved_nothing_hides_no_send_before_it() {
    let mut fleet = Fleet::of(KEYED, 2);
    sends_alone(&fleet);
    // The worker that had to tell it is gone. Another one has the same call, of which nothing is sent.
    traps(&mut fleet, 0);
    let again = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, again));
    once(&fleet, 0, again);
    fleet.gateways[0].response_headers(
        again,
        503,
        "upstream_reset_before_response_started{remote_connection_failure}",
    );
    says(
        &fleet.answered(0, again),
        ("provider-unreachable", "unknown", "same_key"),
    );
    fleet.tick(0, 1_001);
    fleet.serve(0);
    // A third call, at another gateway, is refused for certain. The first may have been the refund.
    let third = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, third));
    fleet.replies(1, third, 400, &refusal());
    fleet.serve(1);
    let told = fleet.told(1, third);
    assert_eq!(told["outcome"], "unknown", "{told}");
}

#[test]
fn a_proof_holds_for_no_send_after_it() {
    let fleet = Fleet::of(PROVES, 2);
    proves_absence(&fleet);
    // The other one is cut off, and sends it once more.
    sends_alone(&fleet);
    fleet.tick(0, 1_001);
    fleet.serve(0);
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "unknown", "{told}");
    fleet.later(301_000);
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "not_refunded", "{told}");
}

#[test]
fn who_gives_a_key_back_leaves_what_every_version_can_read() {
    let fleet = Fleet::of(UNKEYED, 1);
    let id = fleet.begins(0, "k-1");
    clock(&fleet, 0);
    fleet.loses(0, Lost::Answer);
    fleet.loses(0, Lost::Answer);
    assert!(!fleet.is_sent(0, id));
    let forms = || -> Vec<_> {
        let values = fleet.store.values.borrow();
        values.values().map(|(value, _)| value[0]).collect()
    };
    // The key, and the names of its payment.
    assert_eq!(forms(), [1, 1, 1]);
    fleet.tick(0, 2_001);
    fleet.serve(0);
    assert_eq!(forms(), [0, 0, 0]);
    let again = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, again));
}

/// Time in which the roots of these gateways count their tables, and tell what they have to tell.
fn tells(fleet: &Fleet, counts: usize) {
    for _ in 0..counts {
        for nth in 0..fleet.gateways.len() {
            fleet.tick(nth, 5_001);
            fleet.serve(nth);
        }
    }
}

fn settles(fleet: &Fleet) -> u64 {
    fleet.gateways[0].shows("refund.memory_calls_total.call.settle.result.ok")
}

fn never_left(fleet: &Fleet, nth: usize, id: u32) {
    once(fleet, nth, id);
    fleet.gateways[nth].response_headers(
        id,
        503,
        "upstream_reset_before_response_started{remote_connection_failure}",
    );
}

/// The store has the call in flight, and its refusal went with the worker. Its caller was told that it is in doubt, and so it stays once
/// the lease is over: the same call is sent again, and nothing is told again and again.
#[test]
fn a_lost_refusal_leaves_its_key_in_doubt() {
    let mut fleet = Fleet::of(KEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.replies(0, id, 400, &refusal());
    fleet.serve_none(0);
    traps(&mut fleet, 0);
    tells(&fleet, 20);
    let before = settles(&fleet);
    tells(&fleet, 60);
    assert_eq!(settles(&fleet), before);
    let again = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, again), "{}", fleet.answered(1, again).body);
}

#[test]
fn a_call_in_flight_is_no_doubt_of_itself() {
    for looks in [false, true] {
        let fleet = Fleet::of(PROVES, 2);
        let id = fleet.begins(0, "k-1");
        clock(&fleet, 0);
        fleet.loses(0, Lost::Answer);
        fleet.loses(0, Lost::Answer);
        assert!(fleet.is_sent(0, id));
        if looks {
            assert_eq!(looks_up(&fleet, 0, true)["outcome"], "unknown");
        } else {
            let second = fleet.sends(0, "k-1");
            let body = fleet.answered(0, second).body;
            assert_eq!(body["code"], "refund-in-progress", "{body}");
        }
        never_left(&fleet, 0, id);
        tells(&fleet, 10);
        let third = fleet.sends(1, "k-1");
        let refused = fixture(PROVES).refusal_reply("F.0105", "no");
        fleet.replies(1, third, 422, &refused);
        fleet.serve(1);
        let told = fleet.told(1, third);
        assert_eq!(told["outcome"], "not_refunded", "{looks}: {told}");
    }
}

/// beGateway forgets its key after a day: what was sent after the proof may have been the refund.
#[test]
fn a_proof_under_a_call_in_flight_holds_for_no_send_after_it() {
    for is_in_flight in [false, true] {
        let fleet = Fleet::of(PROVES, 2);
        proves_absence(&fleet);
        let held = is_in_flight.then(|| fleet.sends(1, "k-1"));
        sends_alone(&fleet);
        tells(&fleet, 1);
        if let Some(held) = held {
            never_left(&fleet, 1, held);
            fleet.serve(1);
        }
        fleet.later(25 * 3_600_000);
        let late = fleet.sends(1, "k-1");
        assert!(!fleet.is_sent(1, late), "in flight: {is_in_flight}");
    }
}

/// Whether it was sent before the proof cannot be seen. It is long ago, so the next look proves it again.
#[test]
fn a_proof_is_given_again_after_an_old_send_was_told() {
    let fleet = Fleet::of(PROVES, 2);
    let id = fleet.sends(0, "k-1");
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
    fleet.serve_none(0);
    for _ in 0..500 {
        fleet.tick(0, 1_001);
        fleet.serve_none(0);
    }
    assert_eq!(looks_up(&fleet, 1, true)["outcome"], "not_refunded");
    fleet.tick(0, 1_001);
    fleet.serve(0);
    assert_eq!(looks_up(&fleet, 1, true)["outcome"], "not_refunded");
    let again = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, again), "{}", fleet.answered(1, again).body);
}

/// A call that could not be told ends between a look-up's question to the store and the provider's answer to it.
#[test]
fn a_send_that_is_told_during_a_look_up_outlives_its_proof() {
    let fleet = Fleet::of(PROVES, 2);
    let id = fleet.sends(1, "k-1");
    fleet.gateways[1].response_headers(id, 504, "response_timeout");
    fleet.serve(1);
    fleet.later(301_000);
    let query = look_up_of(&fleet);
    let gateway = &fleet.gateways[1];
    let (look, _) = gateway.headers(look_up_headers(&query), Side::default(), true);
    fleet.serve(1);
    assert!(fleet.is_sent(1, look));
    sends_alone(&fleet);
    fleet.tick(0, 1_001);
    fleet.serve(0);
    gateway.reply_begins(look, 200);
    gateway.reply_ends(look, &fixture(PROVES).shown(false));
    fleet.serve(1);
    let told = fleet.written(1, look);
    assert_eq!(told["outcome"], "unknown", "{told}");
}

/// What came to nothing after a proof is no proof of what was sent before it.
#[test]
fn a_proof_and_a_send_that_came_to_nothing_hide_no_send_between() {
    let fleet = Fleet::of(PROVES, 2);
    proves_absence(&fleet);
    sends_alone(&fleet);
    let limited = fleet.sends(1, "k-1");
    fleet.replies(1, limited, 429, "{}");
    fleet.serve(1);
    tells(&fleet, 1);
    fleet.later(25 * 3_600_000);
    let late = fleet.sends(1, "k-1");
    assert!(!fleet.is_sent(1, late));
}

/// A store keeps a value for a while after it has ceased to count.
#[test]
fn what_is_over_in_the_store_hides_no_later_send() {
    for is_over in [false, true] {
        let window = json!({"guard": {"window_seconds": 172_800}});
        let fleet = Fleet::with(KEYED, 2, &window);
        let id = fleet.sends(1, "k-1");
        fleet.replies(1, id, 400, &refusal());
        fleet.serve(1);
        fleet.later(172_800_000 - 30_000);
        let alone = fleet.begins(0, "k-1");
        fleet.serve_none(0);
        fleet.gateways[0].response_headers(alone, 504, "response_timeout");
        fleet.later(if is_over { 30_001 } else { 0 });
        fleet.tick(0, 1_001);
        fleet.serve(0);
        fleet.later(60_000);
        let third = fleet.sends(1, "k-1");
        fleet.replies(1, third, 400, &refusal());
        fleet.serve(1);
        let told = fleet.told(1, third);
        assert_eq!(told["outcome"], "unknown", "over: {is_over}: {told}");
    }
}

#[test]
fn a_copy_takes_no_room_of_what_was_not_told() {
    let mut fleet = Fleet::with(KEYED, 2, &json!({"guard": {"entries": 1}}));
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    fleet.replies_alone(0, id, 200, &success(KEYED, "k-1"));
    traps(&mut fleet, 0);
    let other = fleet.sends(0, "k-2");
    fleet.replies(0, other, 400, &refusal());
    fleet.serve(0);
    tells(&fleet, 10);
    let third = fleet.sends(1, "k-1");
    assert!(!fleet.is_sent(1, third));
    assert_eq!(fleet.answered(1, third).details, "refund_replayed");
}

/// Two listeners of one Envoy, each with a prefix of its own: their plugins have one table.
#[test]
fn one_store_is_not_told_what_another_has_not_heard() {
    let with = |prefix: &str| json!({"memory": {"redis": {"cluster": "redis", "prefix": prefix}}});
    let fleet = Fleet::with(PROVES, 1, &with("a:"));
    sends_alone(&fleet);
    let mut beside = Fleet::with(PROVES, 0, &with("b:"));
    let configuration = beside.configuration.clone();
    let other = Process::plugin(Some(&fleet.gateways[0]), &configuration);
    other.host.seed(900);
    beside.gateways.push(other);
    beside.gateways[0].later(5_000);
    tells(&beside, 10);
    assert!(beside.store.values.borrow().is_empty());
    // Whoever did it tells it where it belongs.
    tells(&fleet, 1);
    assert!(
        fleet
            .store
            .values
            .borrow()
            .keys()
            .all(|name| name.starts_with("a:"))
    );
    assert!(!fleet.store.values.borrow().is_empty());
}

/// A provider that refunds a payment once: whoever tells the key tells the payment.
#[test]
fn a_payment_is_told_with_its_key() {
    for is_lost in [false, true] {
        let mut fleet = Fleet::of(UNKEYED, 2);
        let id = fleet.sends(0, "k-1");
        fleet.refunds(0, id, "k-1");
        fleet.serve_none(0);
        if is_lost {
            traps(&mut fleet, 0);
        }
        tells(&fleet, 20);
        let other = fleet.sends(1, "k-2");
        let answer = fleet.answered(1, other);
        says(&answer, ("payment-has-refund", "not_refunded", "no"));
    }
}

#[test]
fn what_was_refunded_before_there_was_a_store_is_told_with_its_payment() {
    let mut provider = fixture(UNKEYED).provider_config();
    core_testbed::resolve_files(&mut provider);
    let before = Process::plugin(None, &json!({"providers": {UNKEYED: provider}}));
    let (id, _) = before.call("k-1", &fixture(UNKEYED).call());
    before.reply_begins(id, 200);
    before.reply_ends(id, &success(UNKEYED, "k-1"));
    let mut fleet = Fleet::of(UNKEYED, 2);
    fleet.gateways[0] = Process::plugin(Some(&before), &fleet.configuration);
    fleet.gateways[0].host.seed(777);
    tells(&fleet, 10);
    let again = fleet.sends(1, "k-1");
    assert_eq!(fleet.answered(1, again).body["status"], "succeeded");
    let other = fleet.sends(1, "k-2");
    assert!(!fleet.is_sent(1, other));
}

/// Alone, and without room in its own table: nobody would know of the send, so there is none.
#[test]
fn what_nobody_would_remember_is_not_sent() {
    let fleet = Fleet::with(PROVES, 2, &json!({"guard": {"entries": 1}}));
    let first = fleet.sends(0, "k-0");
    assert!(fleet.is_sent(0, first));
    let id = fleet.begins(0, "k-1");
    fleet.loses(0, Lost::Answer);
    fleet.loses(0, Lost::Answer);
    assert!(!fleet.is_sent(0, id));
    says(
        &fleet.answered(0, id),
        ("memory-unavailable", "unknown", "same_key"),
    );
    fleet.tick(0, 2_001);
    fleet.serve(0);
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "not_refunded", "{told}");
}

/// The limit that docs/memory.md names: who is cut off and goes on alone is not seen by the others. `refuse` closes it.
#[test]
fn a_gateway_that_goes_on_alone_is_not_seen_by_the_others() {
    let fleet = Fleet::of(PROVES, 2);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, id));
    assert_eq!(looks_up(&fleet, 1, true)["outcome"], "not_refunded");
    // It knows itself.
    assert_eq!(looks_up(&fleet, 0, true)["outcome"], "unknown");

    let refuse = json!({"memory": {"redis": {"cluster": "redis"}, "when_unavailable": "refuse"}});
    let fleet = Fleet::with(PROVES, 2, &refuse);
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(!fleet.is_sent(0, id));
}

#[test]
fn a_caller_who_leaves_while_more_names_are_claimed_leaves_the_payment_free() {
    let fixture = fixture(UNKEYED);
    let mut provider = fixture.provider_config();
    core_testbed::resolve_files(&mut provider);
    provider["query_first"] = json!(true);
    let fleet = Fleet::with(UNKEYED, 2, &json!({"providers": {UNKEYED: provider}}));
    let mut call = fleet.call();
    call["payment"].as_object_mut().unwrap().remove("reference");
    let (id, _) = fleet.gateways[0].call("k-1", &call);
    fleet.serve(0);
    let payment = call["payment"]["id"].as_str().unwrap().to_owned();
    let shown = (fixture.shows_payment)(&payment, fixture.currency, 10_000, 10_000, fixture.paid);
    fleet.gateways[0].answer_call(Some((200, &shown)));
    assert!(fleet.asks(0));
    let pending = fleet.gateways[0].host.calls.borrow()[0].body.clone();
    fleet.store.call(&pending);
    fleet.gateways[0].leaves(id);
    fleet.gateways[0].host.calls.borrow_mut().clear();
    for _ in 0..70 {
        fleet.tick(0, 1_001);
        fleet.serve(0);
    }
    // The same key, and another one for the payment by its other name: nothing was ever sent.
    let (again, _) = fleet.gateways[1].call("k-1", &call);
    fleet.serve(1);
    let replies = fleet.gateways[1].of(again, |side| side.replies.clone());
    assert!(replies.is_empty(), "{replies:?}");
    let mut other = fleet.call();
    other["payment"].as_object_mut().unwrap().remove("id");
    let (id, _) = fleet.gateways[1].call("k-2", &other);
    fleet.serve(1);
    let replies = fleet.gateways[1].of(id, |side| side.replies.clone());
    assert!(replies.is_empty(), "{replies:?}");
}

#[test]
fn a_fault_of_the_call_itself_says_nothing_of_anothers_send() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
    fleet.serve(0);
    let mut call = fleet.call();
    call["reason"] = json!(7);
    for nth in 0..2 {
        let (id, _) = fleet.gateways[nth].call("k-1", &call);
        fleet.serve(nth);
        let body = fleet.answered(nth, id).body;
        assert_eq!(body["code"], "invalid-request", "{body}");
        assert_eq!(body["outcome"], "unknown", "gateway {nth}: {body}");
        // A key that nobody has sent is told of with certainty, where that could be read.
        for is_read in [true, false] {
            let key = format!("k-{nth}-{is_read}");
            let (id, _) = fleet.gateways[nth].call(&key, &call);
            match is_read {
                true => fleet.serve(nth),
                false => fleet.serve_none(nth),
            }
            let body = fleet.answered(nth, id).body;
            let outcome = if is_read { "not_refunded" } else { "unknown" };
            assert_eq!(body["outcome"], outcome, "gateway {nth}: {body}");
            assert_eq!(body["retry"], "corrected", "gateway {nth}: {body}");
        }
    }
}

/// Headers of a call with this key that is refused at once.
fn of_another_type(path: &'static str, key: &str) -> Headers<'static> {
    let mut headers = Headers::default();
    for (name, value) in call_headers(key).iter() {
        let value = match name {
            b":path" => path.as_bytes(),
            b"content-type" => b"text/plain",
            _ => value,
        };
        headers.push(name.to_vec(), value.to_vec());
    }
    headers
}

/// A call with this key that is refused before its body is read, in each way: its stream, and the code of its answer. And the stream
/// that Envoy itself refuses, whose answer waits for nothing.
fn refused_early(fleet: &Fleet, nth: usize, key: &str) -> (Vec<(u32, &'static str)>, u32) {
    let gateway = &fleet.gateways[nth];
    let at_once = gateway
        .headers(of_another_type("/v1/refunds", key), Side::default(), false)
        .0;
    // What is still to come of it changes nothing.
    gateway.part_of_body(at_once, 1);
    let mut multiplexed = Side::default();
    let protocol = ("request.protocol".to_owned(), b"HTTP/2".to_vec());
    multiplexed.properties.extend([protocol]);
    let held = gateway
        .headers(of_another_type("/v1/refunds", key), multiplexed, false)
        .0;
    gateway.body(held, &json!({}));
    let too_large = gateway.begin(key);
    gateway.part_of_body(too_large, 64 * 1024 + 1);
    let by_envoy = gateway.begin(key);
    gateway.response_headers(by_envoy, 413, "request_payload_too_large");
    assert_eq!(gateway.answered(by_envoy).status, 413);
    let stalled = gateway.begin(key);
    fleet.tick(nth, 10_001);
    let all = vec![
        (at_once, "unsupported-media-type"),
        (held, "unsupported-media-type"),
        (too_large, "body-too-large"),
        (by_envoy, "body-too-large"),
        (stalled, "request-timeout"),
    ];
    (all, by_envoy)
}

#[test]
fn a_refusal_before_the_body_says_nothing_of_anothers_send() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
    fleet.serve(0);
    for (key, is_read, outcome) in [
        ("k-1", true, "unknown"),
        ("k-2", true, "not_refunded"),
        ("k-3", false, "unknown"),
        // Just after an outage another gateway may not have told yet what it did.
        ("k-4", true, "unknown"),
    ] {
        let (early, by_envoy) = refused_early(&fleet, 1, key);
        match is_read {
            true => fleet.serve(1),
            false => fleet.serve_none(1),
        }
        for (id, code) in early {
            let body = fleet.answered(1, id).body;
            assert_eq!(body["code"], code, "{key}: {body}");
            let outcome = if id == by_envoy { "unknown" } else { outcome };
            assert_eq!(body["outcome"], outcome, "{key}: {body}");
            let retry = if code == "request-timeout" {
                "same_key"
            } else {
                "corrected"
            };
            assert_eq!(body["retry"], retry, "{key}: {body}");
        }
    }
}

#[test]
fn a_refusal_that_envoy_overtakes_while_the_store_is_asked_is_in_doubt() {
    let fleet = Fleet::of(KEYED, 1);
    let gateway = &fleet.gateways[0];
    let (id, _) = gateway.headers(
        of_another_type("/v1/refunds", "k-1"),
        Side::default(),
        false,
    );
    assert!(fleet.asks(0));
    gateway.response_headers(id, 408, "stream_idle_timeout");
    let body = fleet.answered(0, id).body;
    assert_eq!(body["code"], "unsupported-media-type", "{body}");
    assert_eq!(body["outcome"], "unknown", "{body}");
}

/// A preview takes no key, and asks for none.
#[test]
fn a_preview_asks_the_store_nothing() {
    let fleet = Fleet::of(KEYED, 1);
    let headers = of_another_type("/v1/refunds/preview", "k-1");
    let (id, _) = fleet.gateways[0].headers(headers, Side::default(), true);
    assert!(!fleet.asks(0));
    assert_eq!(fleet.answered(0, id).body["outcome"], "not_refunded");
}

/// Without the password, which no call has brought yet, the store would only refuse.
#[test]
fn a_refusal_before_any_password_came_asks_nothing_and_is_in_doubt() {
    let memory =
        json!({"memory": {"redis": {"cluster": "redis", "password": {"header": "x-memory"}}}});
    let fleet = Fleet::with(KEYED, 1, &memory);
    let (id, _) =
        fleet.gateways[0].headers(of_another_type("/v1/refunds", "k-1"), Side::default(), true);
    assert!(!fleet.asks(0));
    assert_eq!(fleet.answered(0, id).body["outcome"], "unknown");
}

#[test]
fn a_claim_that_is_over_is_not_sent() {
    let fleet = Fleet::of(UNKEYED, 1);
    let id = fleet.begins(0, "k-1");
    clock(&fleet, 0);
    let pending = fleet.gateways[0].host.calls.borrow()[0].body.clone();
    let answer = fleet.store.call(&pending);
    fleet.later(500_000);
    fleet.gateways[0].answer_with(|_| Some((200, answer)));
    assert!(!fleet.is_sent(0, id));
}

#[test]
fn after_a_reload_the_root_has_the_password() {
    let memory = json!({"memory": {"redis": {"cluster": "redis", "username": "refunds", "password": {"filter_state": "redis.password"}}}});
    let mut fleet = Fleet::with(KEYED, 1, &memory);
    fleet.store.login = Some(("refunds", "CANARY-password"));
    let mut side = Side::default();
    side.properties.insert(
        "filter_state.redis.password".to_owned(),
        b"CANARY-password\n".to_vec(),
    );
    let id = fleet.gateways[0].begin_with("k-1", side);
    fleet.gateways[0].body(id, &fleet.call());
    fleet.serve(0);
    fleet.refunds(0, id, "k-1");
    fleet.gateways[0].leaves(id);
    fleet.gateways[0].host.calls.borrow_mut().clear();
    fleet.gateways[0].close();
    fleet.gateways[0].configure_anew();
    for _ in 0..20 {
        fleet.tick(0, 1_001);
        fleet.serve(0);
    }
    assert_eq!(
        fleet.gateways[0].shows("refund.memory_repeats_total.result.ok"),
        1
    );
}

#[test]
fn a_gateway_that_stood_still_does_not_send_what_another_has_sent() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.begins(0, "k-1");
    clock(&fleet, 0);
    let pending = fleet.gateways[0].host.calls.borrow()[0].body.clone();
    let answer = fleet.store.call(&pending);
    fleet.later(500_000);
    // Peer: it is over, and the provider shows no refund.
    let call = fleet.call();
    let payment = call["payment"]["id"].as_str().unwrap();
    let reference = call["payment"]["reference"].as_str().unwrap();
    let query =
        format!("provider={UNKEYED}&payment_id={payment}&payment_reference={reference}&key=k-1");
    let gateway = &fleet.gateways[1];
    gateway.headers(look_up_headers(&query), Side::default(), true);
    fleet.serve(1);
    println!(
        "{:?}",
        gateway
            .host
            .calls
            .borrow()
            .iter()
            .map(|c| c.cluster.clone())
            .collect::<Vec<_>>()
    );
    let shown = fixture(UNKEYED).shown(false);
    gateway.answer_call(Some((200, &shown)));
    fleet.serve(1);
    let again = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, again), "{}", fleet.answered(1, again).body);
    fleet.gateways[0].answer_with(|_| Some((200, answer)));
    assert!(!fleet.is_sent(0, id), "sent twice");
}

#[test]
fn a_release_leaves_another_calls_own_entry() {
    let fleet = Fleet::of(KEYED, 1);
    let first = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, first));
    // The same call meanwhile: refused, and its release is left.
    let second = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert_eq!(fleet.answered(0, second).body["code"], "refund-in-progress");
    fleet.tick(0, 2_001);
    fleet.serve(0);
    // The store is away again: is the first still known here?
    let third = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(
        !fleet.is_sent(0, third),
        "sent again by this gateway while its first send is in flight"
    );
}

#[test]
fn a_clock_that_jumps_forward_proves_no_absence() {
    let fleet = Fleet::of(PROVES, 2);
    let id = fleet.sends(0, "k-1");
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
    fleet.serve(0);
    // One that has never seen its clock cannot know.
    looks_up(&fleet, 1, true);
    // A new primary, five minutes ahead; no time has gone by.
    fleet.store.now_ms.set(fleet.store.now_ms.get() + 301_000);
    let told = looks_up(&fleet, 1, true);
    assert_eq!(told["outcome"], "unknown", "{told}");
}

#[test]
fn names_whose_answer_was_lost_are_free_again() {
    let fixture = fixture(UNKEYED);
    let mut provider = fixture.provider_config();
    core_testbed::resolve_files(&mut provider);
    provider["query_first"] = json!(true);
    let fleet = Fleet::with(UNKEYED, 2, &json!({"providers": {UNKEYED: provider}}));
    let mut call = fleet.call();
    call["payment"].as_object_mut().unwrap().remove("reference");
    fleet.gateways[0].call("k-1", &call);
    fleet.serve(0);
    let payment = call["payment"]["id"].as_str().unwrap().to_owned();
    let shown = (fixture.shows_payment)(&payment, fixture.currency, 10_000, 10_000, fixture.paid);
    fleet.gateways[0].answer_call(Some((200, &shown)));
    fleet.loses(0, Lost::Answer);
    fleet.loses(0, Lost::Answer);
    // The store is back: its settlement is heard.
    fleet.serve(0);
    for _ in 0..70 {
        fleet.tick(0, 1_001);
        fleet.serve(0);
    }
    let mut other = fleet.call();
    other["payment"].as_object_mut().unwrap().remove("id");
    let (id, _) = fleet.gateways[1].call("k-2", &other);
    fleet.serve(1);
    let replies = fleet.gateways[1].of(id, |side| side.replies.clone());
    assert!(replies.is_empty(), "nothing was ever sent: {replies:?}");
}

#[test]
fn an_unknown_beside_a_send_in_flight_puts_its_refusal_in_doubt() {
    // A: unknown (alone). B: in flight meanwhile, refused afterwards.
    let fleet = Fleet::of(KEYED, 2);
    let other = fleet.sends(1, "k-1");
    sends_alone(&fleet);
    fleet.tick(0, 1_001);
    fleet.serve(0);
    assert_eq!(
        fleet.gateways[0].shows("refund.memory_repeats_total.result.ok"),
        1
    );
    fleet.replies(1, other, 400, &refusal());
    fleet.serve(1);
    // The store was told of an unknown send under this key before it was told of the refusal.
    assert_eq!(
        fleet.told(1, other)["outcome"],
        "unknown",
        "{}",
        fleet.told(1, other)
    );
}

#[test]
fn streams_end_in_every_state() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Ends {
        Claiming,
        Settling,
        AnsweredByEnvoy,
        WithItsRoot,
    }
    use Ends::{AnsweredByEnvoy, Claiming, Settling, WithItsRoot};
    for name in [KEYED, UNKEYED, PROVES] {
        for ends in [Claiming, Settling, AnsweredByEnvoy, WithItsRoot] {
            let fleet = Fleet::of(name, 2);
            let gateway = &fleet.gateways[0];
            let id = fleet.begins(0, "k-1");
            if ends != Claiming {
                fleet.serve(0);
                fleet.token(0);
                fleet.replies(0, id, 200, &success(name, "k-1"));
            }
            match ends {
                Claiming | Settling => {}
                AnsweredByEnvoy => gateway.response_headers(id, 504, "stream_idle_timeout"),
                WithItsRoot => gateway.close(),
            }
            gateway.is_logged(id);
            gateway.leaves(id);
            gateway.host.calls.borrow_mut().clear();
            fleet.tick(0, 2_001);
            fleet.serve(0);
            let other = fleet.sends(1, "k-1");
            let case = format!("{name} {ends:?}");
            match ends {
                Claiming => assert!(fleet.is_sent(1, other), "{case}"),
                Settling | AnsweredByEnvoy => {
                    let told = fleet.answered(1, other);
                    assert_eq!(told.details, "refund_replayed", "{case}");
                    assert_eq!(told.body["status"], "succeeded", "{case}");
                }
                // The next root tells it; until then the key is in flight.
                WithItsRoot => {
                    let told = fleet.answered(1, other).body;
                    assert_eq!(told["code"], "refund-in-progress", "{case}");
                }
            }
        }
    }
}

#[test]
fn envoy_answers_while_a_key_is_claimed() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.begins(0, "k-1");
    clock(&fleet, 0);
    fleet.gateways[0].response_headers(id, 504, "stream_idle_timeout");
    fleet.serve(0);
    assert!(!fleet.is_sent(0, id));
    fleet.gateways[0].leaves(id);
    fleet.tick(0, 2_001);
    fleet.serve(0);
    let again = fleet.sends(1, "k-1");
    assert!(fleet.is_sent(1, again));
}

#[test]
fn a_refusal_that_could_not_be_settled_after_its_lease_is_in_doubt() {
    let fleet = Fleet::of(KEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.later(70_000);
    // A peer has taken it over, and refunds.
    let other = fleet.sends(1, "k-1");
    fleet.refunds(1, other, "k-1");
    fleet.serve(1);
    assert_eq!(fleet.told(1, other)["status"], "succeeded");
    // Nothing has left the first, says Envoy.
    once(&fleet, 0, id);
    let gateway = &fleet.gateways[0];
    gateway.response_headers(id, 503, "no_healthy_upstream");
    assert!(fleet.asks(0));
    gateway.response_headers(id, 504, "stream_idle_timeout");
    let body = fleet.answered(0, id).body;
    assert_eq!(body["outcome"], "unknown", "{body}");
}

#[test]
fn without_the_store_no_copy_of_a_refusal_is_told() {
    let fleet = Fleet::of(PROVES, 2);
    let id = fleet.sends(0, "k-1");
    fleet.replies(0, id, 422, &fixture(PROVES).refusal_reply("F.0105", "no"));
    fleet.serve(0);
    fleet.later(301_000);
    let call = fleet.call();
    let payment = call["payment"]["id"].as_str().unwrap();
    let query = format!("provider={PROVES}&payment_id={payment}&key=k-1");
    let gateway = &fleet.gateways[1];
    let (look, _) = gateway.headers(look_up_headers(&query), Side::default(), true);
    fleet.serve(1);
    gateway.reply_begins(look, 200);
    gateway.reply_ends(look, &fixture(PROVES).shown(true));
    fleet.serve(1);
    // With the store everybody knows.
    let known = fleet.sends(1, "k-1");
    assert_eq!(fleet.answered(1, known).body["status"], "succeeded");
    // Without it:
    let alone = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(!fleet.is_sent(0, alone));
    let body = fleet.answered(0, alone).body;
    assert_eq!(body["code"], "memory-unavailable", "{body}");
}

#[test]
fn a_proof_that_could_not_be_settled_is_in_doubt() {
    let fleet = Fleet::of(UNKEYED, 2);
    let id = fleet.sends(0, "k-1");
    fleet.gateways[0].response_headers(id, 504, "response_timeout");
    fleet.serve(0);
    fleet.later(500_000);
    let call = fleet.call();
    let payment = call["payment"]["id"].as_str().unwrap();
    let reference = call["payment"]["reference"].as_str().unwrap();
    let query =
        format!("provider={UNKEYED}&payment_id={payment}&payment_reference={reference}&key=k-1");
    let gateway = &fleet.gateways[1];
    let (look, _) = gateway.headers(look_up_headers(&query), Side::default(), true);
    fleet.serve(1);
    let shown = fixture(UNKEYED).shown(false);
    // Two look-ups: one at the other gateway proves first, and the key is sent again by it.
    fleet.gateways[0].headers(look_up_headers(&query), Side::default(), true);
    fleet.serve(0);
    fleet.gateways[0].answer_call(Some((200, &shown)));
    fleet.serve(0);
    let again = fleet.sends(0, "k-1");
    assert!(fleet.is_sent(0, again));
    gateway.answer_call(Some((200, &shown)));
    assert!(fleet.asks(1));
    gateway.response_headers(look, 504, "stream_idle_timeout");
    let body = fleet.answered(1, look).body;
    assert_eq!(body["outcome"], "unknown", "the key is in flight: {body}");
}

#[test]
fn every_mix_of_losses_ends_in_the_answer() {
    for name in [KEYED, UNKEYED] {
        for mix in 0..81_u32 {
            let fleet = Fleet::of(name, 2);
            let id = fleet.begins(0, "k-1");
            clock(&fleet, 0);
            let mut rest = mix;
            let mut lose = || {
                let what = rest % 3;
                rest /= 3;
                what
            };
            let mut step = |fleet: &Fleet| {
                if fleet.asks(0) {
                    match lose() {
                        0 => clock(fleet, 0),
                        1 => fleet.loses(0, Lost::Call),
                        _ => fleet.loses(0, Lost::Answer),
                    }
                }
            };
            step(&fleet);
            step(&fleet);
            let is_sent = fleet.is_sent(0, id);
            if is_sent {
                fleet.gateways[0].reply_begins(id, 200);
                fleet.gateways[0].reply_ends(id, &success(name, "k-1"));
                step(&fleet);
                step(&fleet);
            } else {
                let told = fleet.answered(0, id);
                says(&told, ("memory-unavailable", "unknown", "same_key"));
            }
            fleet.serve(0);
            fleet.tick(0, 2_001);
            fleet.serve(0);
            let again = fleet.sends(1, "k-1");
            assert_eq!(fleet.is_sent(1, again), !is_sent, "{name} {mix}");
            if is_sent {
                let told = fleet.answered(1, again);
                assert_eq!(told.details, "refund_replayed", "{name} {mix}");
            }
        }
    }
}

#[test]
fn what_was_sent_before_there_was_a_store_is_not_sent_again() {
    for in_flight in [false, true] {
        let mut provider = fixture(UNKEYED).provider_config();
        core_testbed::resolve_files(&mut provider);
        let before = Process::plugin(None, &json!({"providers": {UNKEYED: provider}}));
        let (id, _) = before.call("k-1", &fixture(UNKEYED).call());
        if !in_flight {
            before.reply_begins(id, 200);
            before.reply_ends(id, &success(UNKEYED, "k-1"));
            let (again, _) = before.call("k-1", &fixture(UNKEYED).call());
            assert_eq!(before.answered(again).details, "refund_replayed");
        }
        let configuration =
            json!({"providers": {UNKEYED: provider}, "memory": {"redis": {"cluster": "redis"}}});
        let after = Process::plugin(Some(&before), &configuration);
        let fleet = Fleet {
            store: MockStore::new(STORE_MS),
            gateways: vec![after],
            name: UNKEYED,
            configuration,
        };
        let id = fleet.sends(0, "k-1");
        assert!(!fleet.is_sent(0, id), "sent again; in flight: {in_flight}");
    }
}

#[test]
fn shortly_after_an_outage_another_may_not_have_told_yet_what_it_did() {
    let fleet = Fleet::of(KEYED, 2);
    // Gateway 0 goes on alone and refunds; the store is back, and it has not told yet.
    let id = fleet.begins(0, "k-1");
    fleet.serve_none(0);
    assert!(fleet.is_sent(0, id));
    // The other one has met the outage, too.
    fleet.begins(1, "k-2");
    fleet.serve_none(1);
    let refused = |key: &str| {
        let id = fleet.sends(1, key);
        assert!(fleet.is_sent(1, id));
        fleet.replies(1, id, 400, &refusal());
        fleet.serve(1);
        fleet.told(1, id)["outcome"].clone()
    };
    assert_eq!(refused("k-1"), "unknown");
    // Everybody has told by then.
    fleet.tick(0, 16_000);
    fleet.serve(0);
    fleet.tick(1, 0);
    fleet.serve(1);
    assert_eq!(refused("k-3"), "not_refunded");
}
