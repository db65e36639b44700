//! The guard by itself: what it says to every order of calls, and what it forgets.

use std::collections::BTreeMap;

use core_testbed::{NOW, Remembered, SharedData};
use proptest::prelude::{any, prop, proptest};
use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::clock::{Now, Resend};
use refund_filter::guard::{
    About, Asks, Bucket, Claim, Concluded, Digest, End, Guard, GuardSettings, MAX_ANSWER, Past,
    PaymentBucket, Question, Recalled, Recollection, Settled, Standing, StoredAnswer, Table,
    Ticket,
};
use refund_filter::problem::Retry;

const DAY: i64 = 24 * 60 * 60 * 1_000;
const FOREVER: Resend = Resend::Always;
const NEVER: Resend = Resend::Never;

fn settings(entries: u32) -> GuardSettings {
    GuardSettings {
        entries,
        ..GuardSettings::default()
    }
}

fn digest(text: &str) -> Digest {
    Digest::of([text.as_bytes()])
}

fn until(milliseconds: i64) -> Resend {
    Resend::Until(NOW.plus(milliseconds))
}

/// A gateway's memory, the time, and calls that come and go.
struct Gateway {
    memory: Remembered,
    past_ms: i64,
    leases: u64,
}

/// A refund under a key.
#[derive(Clone)]
struct Refund {
    key: &'static str,
    refund: &'static str,
    payment: Vec<&'static str>,
    resend: Resend,
}

impl Refund {
    fn of(key: &'static str, resend: Resend) -> Self {
        Refund {
            key,
            refund: "refund",
            payment: Vec::new(),
            resend,
        }
    }

    fn other(self, refund: &'static str) -> Self {
        Refund { refund, ..self }
    }

    fn paid_by(self, payment: &[&'static str]) -> Self {
        Refund {
            payment: payment.to_vec(),
            ..self
        }
    }
}

impl Gateway {
    fn of(entries: u32) -> Self {
        Gateway {
            memory: Remembered::since(NOW, settings(entries)),
            past_ms: 0,
            leases: 0,
        }
    }

    /// A key whose refund ended like this.
    fn after(resend: Resend, end: End) -> Self {
        let mut gateway = Gateway::of(16);
        let ticket = gateway.taken(&Refund::of("k", resend));
        assert!(gateway.settle(&ticket, end));
        gateway
    }

    fn guard(&self) -> Guard<'_> {
        self.memory.guard()
    }

    fn now(&self) -> Now {
        NOW.plus(self.past_ms)
    }

    fn lease(&mut self) -> u64 {
        self.leases += 1;
        self.leases
    }

    fn claim(&mut self, refund: &Refund) -> Claim {
        let question = Question {
            key: digest(refund.key),
            refund: digest(refund.refund),
            about: ABOUT,
            payment: refund.payment.iter().map(|name| digest(name)).collect(),
            referenced: false,
            resend: refund.resend,
            note: String::new(),
        };
        let (lease, now) = (self.lease(), self.now());
        self.guard().ask(&Asks::Claim(question), lease, now)
    }

    fn again(&mut self, key: &'static str, resend: Resend) -> Claim {
        self.claim(&Refund::of(key, resend))
    }

    fn taken(&mut self, refund: &Refund) -> Ticket {
        match self.claim(refund) {
            Claim::Taken { ticket, .. } => ticket,
            other => panic!("{}: {other:?}", refund.key),
        }
    }

    fn settle(&self, ticket: &Ticket, end: End) -> bool {
        self.settle_with(ticket, &settled(end, (202, r#"{"id":1}"#)))
    }

    fn settle_with(&self, ticket: &Ticket, settled: &Settled<'_>) -> bool {
        self.guard().settle(ticket, settled, self.now())
    }

    fn standing(&self, key: &str) -> Option<Standing> {
        self.guard().standing(&digest(key), self.now())
    }

    fn recollection(&self, key: &str) -> Recollection {
        match self.guard().ask(&Asks::Recall(digest(key)), 0, self.now()) {
            Claim::Recalled(recollection) => *recollection,
            other => panic!("{other:?}"),
        }
    }

    fn recall(&self, key: &str) -> Option<Recalled> {
        self.recollection(key).known
    }

    fn conclude(&mut self, past: &Recollection, end: End, answer: (u16, &str)) -> Concluded {
        let (lease, now) = (self.lease(), self.now());
        let settled = Settled {
            sent: false,
            ..settled(end, answer)
        };
        self.guard()
            .conclude(&digest("k"), past, lease, &settled, now)
    }

    /// Whether a key is remembered.
    fn knows(&self, key: &str) -> bool {
        self.recall(key).is_some()
    }
}

const ABOUT: About = About {
    provider: [4; 8],
    id: [2; 8],
    reference: [3; 8],
    amount: [1; 8],
};

fn settled(end: End, answer: (u16, &str)) -> Settled<'_> {
    Settled {
        end,
        answer,
        id: None,
        sent: end != End::NotSent,
        refused: false,
        names: &[],
    }
}

fn told(status: u16, body: &str, resend: Resend) -> Claim {
    Claim::Answered {
        answer: Some(StoredAnswer {
            status,
            id: None,
            body: body.to_owned(),
        }),
        standing: Standing { resend },
    }
}

/// How a claim ends, without its ticket: what is known of earlier sends, and until when the next
/// one is safe.
fn taken_as(claim: Claim) -> (Option<Standing>, Resend) {
    match claim {
        Claim::Taken {
            ticket, standing, ..
        } => (standing, ticket.resend),
        other => panic!("{other:?}"),
    }
}

fn clean(resend: Resend) -> (Option<Standing>, Resend) {
    (None, resend)
}

fn open(resend: Resend) -> (Option<Standing>, Resend) {
    (Some(Standing { resend }), resend)
}

#[test]
fn a_key_in_flight_is_one_calls_alone() {
    let mut gateway = Gateway::of(16);
    let ticket = gateway.taken(&Refund::of("k", FOREVER));
    assert!(matches!(gateway.again("k", FOREVER), Claim::InFlight(_)));
    // Who did not get it settles nothing.
    let other = Ticket {
        lease: 99,
        ..ticket.clone()
    };
    assert!(!gateway.settle(&other, End::Refunded));
    assert!(matches!(gateway.again("k", FOREVER), Claim::InFlight(_)));
    assert!(gateway.settle(&ticket, End::Refunded));
    assert!(!gateway.settle(&ticket, End::Unknown));
    assert_eq!(
        gateway.again("k", FOREVER),
        told(202, r#"{"id":1}"#, FOREVER)
    );
}

#[test]
fn a_key_with_another_refund_is_reused_whatever_its_state() {
    for end in [
        None,
        Some(End::Pending),
        Some(End::Unknown),
        Some(End::Refunded),
        Some(End::Refused),
    ] {
        for resend in [FOREVER, NEVER, until(DAY)] {
            let mut gateway = Gateway::of(16);
            let ticket = gateway.taken(&Refund::of("k", resend));
            if let Some(end) = end {
                gateway.settle(&ticket, end);
            }
            let other = Refund::of("k", resend).other("other");
            assert_eq!(gateway.claim(&other), Claim::Reused, "{end:?}");
        }
    }
    // A key under which certainly no money has moved is as good as new.
    for end in [End::NotSent, End::Free] {
        let mut gateway = Gateway::after(FOREVER, end);
        let other = Refund::of("k", FOREVER).other("other");
        assert_eq!(taken_as(gateway.claim(&other)), clean(FOREVER));
    }
}

#[test]
fn what_is_open_goes_out_again_only_while_the_provider_keeps_the_key() {
    for end in [End::Pending, End::Unknown] {
        let mut gateway = Gateway::after(FOREVER, end);
        assert_eq!(
            taken_as(gateway.again("k", FOREVER)),
            open(FOREVER),
            "{end:?}"
        );

        // The time counts from the first send, whatever comes later.
        let mut gateway = Gateway::after(until(DAY), end);
        gateway.past_ms = DAY / 2;
        let later = until(DAY / 2 + DAY);
        let claim = gateway.again("k", later);
        let Claim::Taken { ticket, .. } = &claim else {
            panic!("{claim:?}")
        };
        gateway.settle(ticket, end);
        assert_eq!(taken_as(claim), open(until(DAY)), "{end:?}");
        gateway.past_ms = DAY;
        assert_eq!(
            gateway.again("k", later),
            told(202, r#"{"id":1}"#, until(DAY)),
            "{end:?}"
        );

        let mut gateway = Gateway::after(NEVER, end);
        assert_eq!(
            gateway.again("k", NEVER),
            told(202, r#"{"id":1}"#, NEVER),
            "{end:?}"
        );
    }
}

#[test]
fn a_clock_that_is_set_changes_nothing() {
    // 49 hours forward, and a year back, by the clock that people read.
    for jump_ms in [49 * 60 * 60 * 1_000, -365 * DAY] {
        for resend in [NEVER, until(DAY)] {
            let mut gateway = Gateway::after(resend, End::Unknown);
            let jumped = |past_ms| Now {
                unix_ms: NOW.unix_ms + jump_ms,
                steady_ms: NOW.steady_ms + past_ms,
            };
            let question = |now: Now| Question {
                key: digest("k"),
                refund: digest("refund"),
                about: ABOUT,
                payment: Vec::new(),
                referenced: false,
                resend: match resend {
                    Resend::Until(_) => Resend::Until(now.plus(DAY)),
                    other => other,
                },
                note: String::new(),
            };
            let now = jumped(1_000);
            let claim = gateway.guard().ask(&Asks::Claim(question(now)), 77, now);
            match (resend, claim) {
                // BBMSL's is never sent again.
                (Resend::Never, Claim::Answered { .. }) => {}
                // beGateway's is, and the caller is told the same end as before.
                (Resend::Until(_), Claim::Taken { ticket, .. }) => {
                    assert_eq!(ticket.resend, until(DAY));
                    assert_eq!(ticket.resend.retry_until(), resend.retry_until());
                }
                (resend, claim) => panic!("{resend:?}: {claim:?}"),
            }
            // The lease of that claim has not run out.
            gateway.past_ms = 2_000;
            if resend != NEVER {
                let claim =
                    gateway
                        .guard()
                        .ask(&Asks::Claim(question(jumped(2_000))), 78, jumped(2_000));
                assert!(matches!(claim, Claim::InFlight(_)), "{claim:?}");
            }
        }
    }
}

#[test]
fn a_second_send_that_came_to_nothing_leaves_what_the_first_left() {
    for end in [End::Pending, End::Unknown] {
        for second in [End::NotSent, End::Free] {
            let mut gateway = Gateway::after(FOREVER, end);
            let ticket = gateway.taken(&Refund::of("k", FOREVER));
            gateway.settle(&ticket, second);
            assert!(gateway.standing("k").is_some(), "{end:?}");
            assert_eq!(taken_as(gateway.again("k", FOREVER)), open(FOREVER));
        }
    }
}

#[test]
fn a_call_of_which_nothing_left_costs_no_entry() {
    let gateway = Gateway::after(FOREVER, End::NotSent);
    assert!(!gateway.knows("k"));
    // It had the only place.
    let mut gateway = Gateway::of(1);
    for key in ["a", "b", "c"] {
        let ticket = gateway.taken(&Refund::of(key, NEVER).paid_by(&["id", "reference"]));
        gateway.settle(&ticket, End::NotSent);
    }
    assert!(!gateway.knows("c"));
    // And the payment is as it was.
    let ticket = gateway.taken(&Refund::of("d", NEVER).paid_by(&["id", "reference"]));
    gateway.settle(&ticket, End::Unknown);
    assert!(gateway.guard().is_alone(&digest("d"), &[digest("id")]));
}

#[test]
fn a_lease_that_runs_out_is_an_end_that_nobody_knows() {
    let lease = GuardSettings::default().lease_ms;
    for (resend, sent_again) in [(FOREVER, true), (NEVER, false)] {
        let mut gateway = Gateway::of(16);
        let late = gateway.taken(&Refund::of("k", resend));
        gateway.past_ms = lease - 1;
        assert!(matches!(gateway.again("k", resend), Claim::InFlight(_)));
        gateway.past_ms = lease;
        let claim = gateway.again("k", resend);
        if sent_again {
            assert_eq!(taken_as(claim), open(FOREVER));
            // The first ends after all: the key is another's.
            assert!(!gateway.settle(&late, End::Refunded));
        } else {
            assert!(
                matches!(claim, Claim::Answered { answer: None, .. }),
                "{claim:?}"
            );
            // Nobody else has it: its word is better than none.
            assert!(gateway.settle(&late, End::Refunded));
            assert_eq!(gateway.again("k", resend), told(202, r#"{"id":1}"#, NEVER));
        }
    }
}

#[test]
fn a_window_that_has_closed_forgets_what_is_final_and_nothing_that_is_open() {
    for (end, forgotten) in [
        (End::Free, true),
        (End::Refunded, true),
        (End::Refused, true),
        (End::Pending, false),
        (End::Unknown, false),
    ] {
        for resend in [NEVER, until(DAY)] {
            let mut gateway = Gateway::after(resend, end);
            let window = gateway.memory.settings.window_ms;
            let other = Refund::of("k", resend).other("other");
            gateway.past_ms = window - 1;
            if end != End::Free {
                assert_eq!(gateway.claim(&other), Claim::Reused, "{end:?}");
            }
            gateway.past_ms = window;
            assert_eq!(gateway.knows("k"), !forgotten, "{end:?}");
            // 49 hours, or a year: what may have moved money is never sent again by itself.
            gateway.past_ms = 365 * DAY;
            let claim = gateway.again("k", resend);
            let sent = matches!(claim, Claim::Taken { .. });
            assert_eq!(sent, forgotten, "{end:?} {claim:?}");
        }
    }
}

#[test]
fn room_is_made_by_what_is_final_then_by_the_oldest_and_never_by_what_is_unknown_within_its_window()
{
    let mut gateway = Gateway::of(4);
    for (key, end) in [
        ("pending", End::Pending),
        ("unknown", End::Unknown),
        ("refunded", End::Refunded),
    ] {
        let ticket = gateway.taken(&Refund::of(key, NEVER));
        gateway.settle(&ticket, end);
        gateway.past_ms += 1;
    }
    gateway.taken(&Refund::of("in flight", NEVER));

    let ticket = gateway.taken(&Refund::of("fifth", NEVER));
    for key in ["pending", "unknown", "in flight"] {
        assert!(gateway.knows(key), "{key}");
    }
    assert!(!gateway.knows("refunded"));
    gateway.settle(&ticket, End::Refused);
    // The refusal is final, too: it goes before the older one that is pending.
    let sixth = gateway.taken(&Refund::of("sixth", NEVER));
    assert!(gateway.knows("pending") && !gateway.knows("fifth"));
    gateway.settle(&sixth, End::Unknown);
    let seventh = gateway.taken(&Refund::of("seventh", NEVER));
    assert!(!gateway.knows("pending"));
    gateway.settle(&seventh, End::Unknown);
    assert_eq!(gateway.again("eighth", NEVER), Claim::NoRoom);
    // The lease of the one in flight runs out: unknown, and no more room than before.
    gateway.past_ms += gateway.memory.settings.lease_ms;
    assert_eq!(gateway.again("eighth", NEVER), Claim::NoRoom);
    // After its window what is unknown makes room, the oldest first, since somebody must.
    gateway.past_ms += gateway.memory.settings.window_ms;
    gateway.taken(&Refund::of("eighth", NEVER));
    assert!(!gateway.knows("unknown") && gateway.knows("sixth"));
}

/// A call that had no room went to its provider all the same, where that keeps keys itself: any key
/// may be one of those.
#[test]
fn what_went_out_without_room_casts_doubt_on_every_key_of_its_bucket() {
    let mut gateway = Gateway::of(1);
    let ticket = gateway.taken(&Refund::of("first", NEVER));
    // What is not sent without room leaves nothing behind.
    assert_eq!(gateway.again("no keys", NEVER), Claim::NoRoom);
    assert_eq!(gateway.standing("no keys"), None);
    let asked = gateway.recollection("k");
    assert_eq!(asked.since_ms, NOW.steady_ms);

    gateway.past_ms = 1_000;
    assert_eq!(gateway.again("k", until(DAY)), Claim::NoRoom);
    gateway.past_ms = 2_000;
    assert_eq!(gateway.again("another", until(2 * DAY)), Claim::NoRoom);
    // By the earliest of them.
    let doubt = Some(Standing { resend: until(DAY) });
    assert_eq!(gateway.standing("k"), doubt);
    assert_eq!(gateway.standing("never sent"), doubt);
    // No absence is proven of a key that is not remembered, neither by who asked before nor by who
    // asks now.
    assert_eq!(gateway.recollection("k").since_ms, NOW.steady_ms + 2_000);
    let concluded = gateway.conclude(&asked, End::Absent, (0, ""));
    assert_eq!(concluded, Concluded::Overtaken);

    // Room is there again, and the doubt with it: also after a send that came to nothing.
    gateway.settle(&ticket, End::NotSent);
    let ticket = gateway.taken(&Refund::of("k", until(2 * DAY)));
    gateway.settle(&ticket, End::NotSent);
    let again = taken_as(gateway.again("k", until(2 * DAY)));
    assert_eq!(again, open(until(DAY)));
    // After the window it is as long ago as anything that is forgotten.
    gateway.past_ms = 2_000 + gateway.memory.settings.window_ms;
    assert_eq!(gateway.standing("never sent"), None);
}

/// A refund that is pending has an end of which nobody was told yet: forgotten, its key is one without room.
#[test]
fn a_pending_refund_that_is_forgotten_casts_the_same_doubt_and_a_final_answer_none() {
    for (end, doubt) in [
        (End::Pending, Some(Standing { resend: until(DAY) })),
        (End::Refunded, None),
        (End::Refused, None),
    ] {
        let mut gateway = Gateway::of(1);
        let ticket = gateway.taken(&Refund::of("k", until(DAY)));
        gateway.settle(&ticket, end);
        gateway.past_ms = 1_000;
        let ticket = gateway.taken(&Refund::of("another", until(2 * DAY)));
        assert!(!gateway.knows("k"), "{end:?}");
        assert_eq!(gateway.standing("k"), doubt, "{end:?}");
        gateway.settle(&ticket, End::Refunded);
        assert_eq!(gateway.standing("k"), doubt, "{end:?}");
        gateway.past_ms = 1_000 + gateway.memory.settings.window_ms;
        assert_eq!(gateway.standing("k"), None, "{end:?}");
    }
}

/// Those that had no room were for providers with keys: none of those is its own.
#[test]
fn that_doubt_promises_nothing_to_a_provider_without_keys() {
    let mut gateway = Gateway::of(1);
    let ticket = gateway.taken(&Refund::of("first", NEVER));
    assert_eq!(gateway.again("k", until(DAY)), Claim::NoRoom);
    gateway.settle(&ticket, End::NotSent);
    // A new key, and then one whose send came to nothing.
    for end in [End::Free, End::NotSent] {
        let Claim::Taken {
            ticket, standing, ..
        } = gateway.again("none", NEVER)
        else {
            panic!("there is room")
        };
        assert_eq!((standing, ticket.resend), open(NEVER));
        gateway.settle(&ticket, end);
    }
}

#[test]
fn what_is_forgotten_within_its_window_is_told() {
    let mut gateway = Gateway::of(1);
    let forgot = |claim: Claim| match claim {
        Claim::Taken {
            ticket, evicted, ..
        } => (ticket, evicted),
        other => panic!("{other:?}"),
    };
    let (ticket, evicted) = forgot(gateway.again("a", NEVER));
    assert!(!evicted);
    gateway.settle(&ticket, End::Refunded);
    let (ticket, evicted) = forgot(gateway.again("b", NEVER));
    assert!(evicted);
    // What moved no money is no loss.
    gateway.settle(&ticket, End::Free);
    let (ticket, evicted) = forgot(gateway.again("c", NEVER));
    assert!(!evicted);
    gateway.settle(&ticket, End::Refunded);
    gateway.past_ms = gateway.memory.settings.window_ms;
    let (_, evicted) = forgot(gateway.again("d", NEVER));
    assert!(!evicted);
}

#[test]
fn the_oldest_of_its_kind_goes_first() {
    let mut gateway = Gateway::of(3);
    for key in ["a", "b", "c"] {
        let ticket = gateway.taken(&Refund::of(key, NEVER));
        gateway.settle(&ticket, End::Refunded);
        gateway.past_ms += 1;
    }
    gateway.taken(&Refund::of("d", NEVER));
    assert!(!gateway.knows("a") && gateway.knows("b") && gateway.knows("c"));
}

#[test]
fn only_what_may_have_moved_money_stands_against_a_later_word() {
    for (end, stands) in [
        (End::NotSent, false),
        (End::Free, false),
        (End::Refused, false),
        (End::Pending, true),
        (End::Unknown, true),
        (End::Refunded, true),
    ] {
        let mut gateway = Gateway::of(16);
        assert_eq!(gateway.standing("k"), None);
        let ticket = gateway.taken(&Refund::of("k", FOREVER));
        assert!(gateway.standing("k").is_some());
        gateway.settle(&ticket, end);
        assert_eq!(gateway.standing("k").is_some(), stands, "{end:?}");
    }
    let standing = Standing { resend: until(0) };
    assert_eq!(standing.retry(NOW.plus(-1)), Retry::SameKey);
    assert_eq!(standing.retry(NOW), Retry::LookUp);
}

#[test]
fn an_end_whose_answer_is_too_large_to_be_kept_is_unknown() {
    let mut gateway = Gateway::of(16);
    let ticket = gateway.taken(&Refund::of("k", FOREVER));
    let large = "x".repeat(MAX_ANSWER + 1);
    gateway.settle_with(&ticket, &settled(End::Refunded, (200, &large)));
    assert_eq!(taken_as(gateway.again("k", FOREVER)), open(FOREVER));
}

#[test]
fn an_answer_is_told_under_its_own_key_alone() {
    for id in [None, Some("é-1".to_owned())] {
        let answer = StoredAnswer {
            status: 202,
            id,
            body: "{\"é\":1}".to_owned(),
        };
        let stored = answer.encode(&digest("k")).unwrap();
        assert_eq!(StoredAnswer::decode(&digest("k"), &stored), Some(answer));
        assert_eq!(StoredAnswer::decode(&digest("other"), &stored), None);
        for length in 0..19 {
            assert_eq!(StoredAnswer::decode(&digest("k"), &stored[..length]), None);
        }
    }
    for (id, length) in [(None, MAX_ANSWER + 1), (Some("x".repeat(256)), 1)] {
        let large = StoredAnswer {
            status: 200,
            id,
            body: "x".repeat(length),
        };
        assert_eq!(large.encode(&digest("k")), None);
    }
}

#[test]
fn parts_of_a_digest_are_told_apart() {
    let of = |parts: &[&str]| Digest::of(parts.iter().map(|part| part.as_bytes()));
    assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    assert_ne!(of(&["a", ""]), of(&["", "a"]));
    assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
}

fn table(entries: u32, seed: u64) -> Table {
    let mut salt = StdRng::seed_from_u64(seed);
    Table::open(&SharedData::default(), entries, NOW, &mut salt).unwrap()
}

#[test]
fn keys_spread_over_the_whole_table() {
    let table = table(160, 1);
    let mut buckets = BTreeMap::<String, usize>::new();
    for nth in 0..16_000 {
        let record = table.record(&digest(&nth.to_string()));
        *buckets.entry(record).or_default() += 1;
    }
    assert_eq!(buckets.len(), 10);
    assert!(
        buckets.values().all(|count| (1_400..1_800).contains(count)),
        "{buckets:?}"
    );
    // Fewer than one bucket's entries are one bucket.
    let table = self::table(1, 1);
    assert_eq!(table.record(&digest("a")), table.record(&digest("b")));
}

#[test]
fn nobody_outside_can_choose_keys_that_fill_one_bucket() {
    // Keys that fall together in one process, chosen with all of its secrets …
    let one = table(16_384, 1);
    let victim = one.record(&digest("victim"));
    let chosen: Vec<_> = (0..)
        .map(|nth: u64| digest(&nth.to_string()))
        .filter(|key| one.record(key) == victim)
        .take(16)
        .collect();
    // … are strewn about in another one.
    let other = table(16_384, 2);
    let buckets: std::collections::BTreeSet<_> =
        chosen.iter().map(|key| other.record(key)).collect();
    assert!(buckets.len() > 12, "{buckets:?}");
}

#[test]
fn all_workers_and_configurations_have_one_table() {
    let memory = SharedData::default();
    let mut random = StdRng::seed_from_u64(1);
    let first = Table::open(&memory, 64, NOW, &mut random).unwrap();
    let second = Table::open(&memory, 128, NOW.plus(DAY), &mut random).unwrap();
    assert_eq!(first, second);
    assert_eq!((second.entries, second.since_ms), (64, NOW.steady_ms));
}

#[test]
fn a_key_that_was_given_back_takes_nothing_of_the_other_providers_rules_along() {
    for before in [FOREVER, until(DAY)] {
        let mut gateway = Gateway::after(before, End::Free);
        // The same key, for a provider that knows none.
        let other = Refund::of("k", NEVER).other("other");
        assert_eq!(taken_as(gateway.claim(&other)), clean(NEVER));
    }
    // A day that began with the first send does not begin anew.
    let mut gateway = Gateway::after(until(DAY), End::Free);
    gateway.past_ms = DAY / 2;
    assert_eq!(
        taken_as(gateway.again("k", until(DAY / 2 + DAY))),
        clean(until(DAY))
    );
}

#[test]
fn a_neighbours_claim_changes_nothing_for_a_call_that_outlives_its_lease() {
    for neighbour in [false, true] {
        let mut gateway = Gateway::of(16);
        let late = gateway.taken(&Refund::of("k", NEVER));
        gateway.past_ms = gateway.memory.settings.lease_ms;
        if neighbour {
            gateway.taken(&Refund::of("neighbour", NEVER));
        }
        assert!(gateway.settle(&late, End::Free));
        assert_eq!(
            taken_as(gateway.again("k", NEVER)),
            clean(NEVER),
            "{neighbour}"
        );
    }
}

// A payment that can have one refund alone.

#[test]
fn another_key_has_the_payment_until_its_refund_has_come_to_nothing() {
    for (end, expected) in [
        (None, Claim::PaymentTaken { is_open: true }),
        (Some(End::Unknown), Claim::PaymentTaken { is_open: true }),
        (Some(End::Pending), Claim::PaymentTaken { is_open: true }),
        (Some(End::Refunded), Claim::PaymentTaken { is_open: false }),
    ] {
        for (first, second) in [
            (&["id"][..], &["id"][..]),
            (&["reference"], &["reference"]),
            // Either name of two.
            (&["id", "reference"], &["reference"]),
            (&["id", "reference"], &["id"]),
            (&["reference"], &["id", "reference"]),
        ] {
            let mut gateway = Gateway::of(16);
            let ticket = gateway.taken(&Refund::of("one", NEVER).paid_by(first));
            if let Some(end) = end {
                gateway.settle(&ticket, end);
            }
            let two = Refund::of("two", NEVER).paid_by(second);
            assert_eq!(gateway.claim(&two), expected, "{end:?}");
            // It was not sent, so it costs nothing, and leaves the other name as it was.
            assert!(!gateway.knows("two"));
            if second.len() == 2 {
                gateway.taken(&Refund::of("three", NEVER).paid_by(&["id"]));
            }
            // Hours later it is still so.
            gateway.past_ms = 47 * 60 * 60 * 1_000;
            if end == Some(End::Unknown) {
                assert_eq!(gateway.claim(&two), expected);
            }
        }
    }
    for end in [End::NotSent, End::Free, End::Refused] {
        let mut gateway = Gateway::of(16);
        let ticket = gateway.taken(&Refund::of("one", NEVER).paid_by(&["id", "reference"]));
        gateway.settle(&ticket, end);
        gateway.taken(&Refund::of("two", NEVER).paid_by(&["reference", "id"]));
    }
}

#[test]
fn a_payment_of_another_key_is_not_taken_in_part() {
    let mut gateway = Gateway::of(16);
    gateway.taken(&Refund::of("one", NEVER).paid_by(&["reference"]));
    let two = Refund::of("two", NEVER).paid_by(&["id", "reference"]);
    assert_eq!(gateway.claim(&two), Claim::PaymentTaken { is_open: true });
    // The name that was free is free.
    gateway.taken(&Refund::of("three", NEVER).paid_by(&["id"]));
}

#[test]
fn a_name_that_the_provider_shows_is_taken_too() {
    let mut gateway = Gateway::of(16);
    let ticket = gateway.taken(&Refund::of("one", NEVER).paid_by(&["id"]));
    gateway.settle_with(
        &ticket,
        &Settled {
            names: &[digest("reference")],
            ..settled(End::Refunded, (200, "{}"))
        },
    );
    let two = Refund::of("two", NEVER).paid_by(&["reference"]);
    assert_eq!(gateway.claim(&two), Claim::PaymentTaken { is_open: false });

    // Before anything is sent, a look at the payment may show it.
    let mut gateway = Gateway::of(16);
    gateway.taken(&Refund::of("one", NEVER).paid_by(&["reference"]));
    let mut ticket = gateway.taken(&Refund::of("two", NEVER).paid_by(&["id"]));
    let now = gateway.now();
    let claimed =
        gateway
            .guard()
            .claim_more(&mut ticket, &[digest("id"), digest("reference")], now);
    assert_eq!(claimed, Err(Claim::PaymentTaken { is_open: true }));
    gateway.settle(&ticket, End::NotSent);
    gateway.taken(&Refund::of("three", NEVER).paid_by(&["id"]));
}

#[test]
fn a_key_is_alone_with_its_payment_only_if_no_other_was_ever_sent_for_it() {
    let alone = |gateway: &Gateway, key: &str, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| digest(name)).collect();
        gateway.guard().is_alone(&digest(key), &names)
    };
    let mut gateway = Gateway::of(16);
    assert!(!alone(&gateway, "one", &["id"]), "nothing is known");
    let ticket = gateway.taken(&Refund::of("one", NEVER).paid_by(&["id"]));
    gateway.settle(&ticket, End::Free);
    assert!(alone(&gateway, "one", &["id"]));
    assert!(alone(&gateway, "one", &["id", "reference"]));
    let ticket = gateway.taken(&Refund::of("two", NEVER).paid_by(&["id"]));
    gateway.settle(&ticket, End::Unknown);
    assert!(!alone(&gateway, "two", &["id"]), "another was sent before");
    assert!(!alone(&gateway, "one", &["id"]), "another was sent since");

    // By the other name of the same payment, which the provider has shown.
    let mut gateway = Gateway::of(16);
    gateway.taken(&Refund::of("one", NEVER).paid_by(&["id"]));
    gateway.taken(&Refund::of("two", NEVER).paid_by(&["reference"]));
    assert!(!alone(&gateway, "two", &["reference", "id"]));

    // Where a payment was forgotten, nobody knows of a new one that it was not the one.
    let mut gateway = Gateway::of(1);
    for key in ["a", "b", "c"] {
        let ticket = gateway.taken(&Refund::of(key, NEVER).paid_by(&[key]));
        gateway.settle(&ticket, End::Refunded);
    }
    assert!(!alone(&gateway, "c", &["c"]));
}

#[test]
fn a_payment_refunded_under_a_forgotten_key_is_not_sent_again_under_it() {
    let mut gateway = Gateway::of(1);
    let ticket = gateway.taken(&Refund::of("one", NEVER).paid_by(&["id"]));
    gateway.settle(&ticket, End::Refunded);
    let ticket = gateway.taken(&Refund::of("two", NEVER));
    gateway.settle(&ticket, End::Free);
    assert!(!gateway.knows("one"));
    let claim = gateway.claim(&Refund::of("one", NEVER).paid_by(&["id"]));
    assert!(
        matches!(claim, Claim::Answered { answer: None, .. }),
        "{claim:?}"
    );
    // Nor is it free for another one because somebody asked again.
    assert_eq!(
        gateway.claim(&Refund::of("three", NEVER).paid_by(&["id"])),
        Claim::PaymentTaken { is_open: false }
    );
}

/// Where all places are taken the payment still tells that the key was sent before, or that nobody knows.
#[test]
fn without_room_a_key_that_may_have_been_sent_is_not_taken_for_new() {
    let full = |payments: &[&'static str]| {
        let mut gateway = Gateway::of(1);
        for key in payments {
            let ticket = gateway.taken(&Refund::of(key, NEVER).paid_by(&[key]));
            gateway.settle(&ticket, End::Refunded);
        }
        gateway.taken(&Refund::of("in flight", NEVER));
        gateway
    };
    let asks = |gateway: &mut Gateway, key: &'static str, payment: &'static str| {
        gateway.claim(&Refund::of(key, NEVER).paid_by(&[payment]))
    };
    let is_open = |claim: &Claim| matches!(claim, Claim::Answered { answer: None, .. });
    let mut gateway = full(&["a"]);
    assert!(is_open(&asks(&mut gateway, "a", "a")));
    assert_eq!(asks(&mut gateway, "b", "a"), Claim::NoRoom);
    assert_eq!(asks(&mut gateway, "b", "b"), Claim::NoRoom);
    // Of three payments one was forgotten.
    let mut gateway = full(&["a", "b", "c"]);
    assert!(is_open(&asks(&mut gateway, "a", "a")));
    assert!(is_open(&asks(&mut gateway, "b", "b")));
    assert!(is_open(&asks(&mut gateway, "new", "new")));
}

// Look-ups.

#[test]
fn a_look_up_recalls_how_a_key_stands_and_takes_nothing() {
    for (end, past) in [
        (End::Free, Past::Free),
        (End::Refused, Past::Refused),
        (End::Pending, Past::Pending),
        (End::Unknown, Past::Unknown),
        (End::Refunded, Past::Refunded),
    ] {
        let mut gateway = Gateway::of(16);
        assert_eq!(gateway.recall("k"), None);
        let ticket = gateway.taken(&Refund::of("k", FOREVER));
        assert!(gateway.recall("k").unwrap().in_flight);
        gateway.settle(&ticket, end);
        for _ in 0..2 {
            let recalled = gateway.recall("k").unwrap();
            assert_eq!((recalled.past, recalled.in_flight), (past, false));
            assert_eq!(recalled.about, ABOUT);
            assert_eq!(recalled.sent_ms, Some(NOW.steady_ms));
            if end != End::Free {
                assert_eq!(recalled.answer.unwrap().body, r#"{"id":1}"#);
            }
        }
    }
}

#[test]
fn a_key_is_settled_once_no_send_can_still_arrive() {
    let settle = 300_000;
    let left = |gateway: &Gateway| gateway.recollection("k").unsettled_ms(settle);
    // A key that is not remembered: since the gateway began.
    let mut gateway = Gateway::of(16);
    gateway.past_ms = 1_000;
    assert_eq!(left(&gateway), Some(299_000));
    gateway.past_ms = settle;
    assert_eq!(left(&gateway), None);
    // A send: since it ended.
    let ticket = gateway.taken(&Refund::of("k", NEVER));
    gateway.past_ms += 30_000;
    gateway.settle(&ticket, End::Unknown);
    gateway.past_ms += 1;
    assert_eq!(left(&gateway), Some(299_999));
    gateway.past_ms += 299_998;
    assert_eq!(left(&gateway), Some(1));
    gateway.past_ms += 1;
    assert_eq!(left(&gateway), None);
    // One that never ended: since its lease ran out, and the filter can have held it back for a
    // while.
    let mut gateway = Gateway::of(16);
    gateway.taken(&Refund::of("k", NEVER));
    gateway.past_ms = gateway.memory.settings.lease_ms;
    assert_eq!(left(&gateway), Some(360_000));
    // Nothing was sent: nothing can arrive.
    let gateway = Gateway::after(FOREVER, End::Free);
    assert_eq!(left(&gateway), Some(settle));
}

#[test]
fn a_look_ups_final_word_is_what_the_next_call_is_answered() {
    for open in [End::Pending, End::Unknown] {
        for end in [End::Refunded, End::Refused] {
            let mut gateway = Gateway::after(FOREVER, open);
            let past = gateway.recollection("k");
            let concluded = gateway.conclude(&past, end, (200, "found"));
            assert_eq!(concluded, Concluded::Settled);
            assert_eq!(gateway.again("k", FOREVER), told(200, "found", FOREVER));
            // Another look-up asked at the same time: its word is the same, or too late.
            let concluded = gateway.conclude(&past, End::Absent, (0, ""));
            assert_eq!(concluded, Concluded::Overtaken);
            assert_eq!(gateway.again("k", FOREVER), told(200, "found", FOREVER));
        }
    }
}

#[test]
fn a_later_word_of_the_provider_counts_and_is_told() {
    for (first, later) in [(End::Refused, End::Refunded), (End::Refunded, End::Refused)] {
        let mut gateway = Gateway::after(FOREVER, first);
        let past = gateway.recollection("k");
        let concluded = gateway.conclude(&past, later, (200, "later"));
        assert_eq!(concluded, Concluded::Changed);
        assert_eq!(gateway.again("k", FOREVER), told(200, "later", FOREVER));
        // And back again.
        let past = gateway.recollection("k");
        let concluded = gateway.conclude(&past, first, (200, "last"));
        assert_eq!(concluded, Concluded::Changed);
        assert_eq!(gateway.again("k", FOREVER), told(200, "last", FOREVER));
        // The same word once more changes nothing, not even the answer.
        let past = gateway.recollection("k");
        let concluded = gateway.conclude(&past, first, (200, "again"));
        assert_eq!(concluded, Concluded::Holds);
        assert_eq!(gateway.again("k", FOREVER), told(200, "last", FOREVER));
    }
}

#[test]
fn absence_lets_the_key_be_sent_again_and_clears_nothing() {
    for resend in [FOREVER, NEVER, until(DAY)] {
        let mut gateway = Gateway::after(resend, End::Unknown);
        let past = gateway.recollection("k");
        let concluded = gateway.conclude(&past, End::Absent, (0, ""));
        assert_eq!(concluded, Concluded::Settled);
        assert_eq!(gateway.recall("k").unwrap().past, Past::Absent);
        assert!(gateway.standing("k").is_some());
        let (standing, _) = taken_as(gateway.again("k", resend));
        assert_eq!(standing, Some(Standing { resend }));
    }
    // A provider that has forgotten the key by then is sent it anew: nothing of the first send can
    // still arrive.
    let mut gateway = Gateway::after(until(DAY), End::Unknown);
    gateway.past_ms = 2 * DAY;
    let past = gateway.recollection("k");
    gateway.conclude(&past, End::Absent, (0, ""));
    let fresh = until(3 * DAY);
    assert_eq!(taken_as(gateway.again("k", fresh)), open(fresh));
}

#[test]
fn what_has_been_sent_since_a_look_up_asked_outweighs_what_it_heard() {
    for end in [End::Refunded, End::Refused, End::Absent] {
        // In flight while the look-up ends.
        let mut gateway = Gateway::after(FOREVER, End::Unknown);
        let past = gateway.recollection("k");
        let ticket = gateway.taken(&Refund::of("k", FOREVER));
        let concluded = gateway.conclude(&past, end, (200, "found"));
        assert_eq!(concluded, Concluded::Overtaken, "{end:?}");
        // The send's own word is not disturbed, and stands after it, whatever it was.
        assert!(gateway.settle_with(&ticket, &settled(End::Unknown, (504, "late"))));
        let concluded = gateway.conclude(&past, end, (200, "found"));
        assert_eq!(concluded, Concluded::Overtaken, "{end:?}");
        assert_eq!(gateway.recall("k").unwrap().answer.unwrap().body, "late");
    }
    // A key that was not remembered when the provider was asked.
    let mut gateway = Gateway::of(16);
    let past = gateway.recollection("k");
    assert_eq!(
        gateway.conclude(&past, End::Absent, (0, "")),
        Concluded::Holds
    );
    let ticket = gateway.taken(&Refund::of("k", FOREVER));
    for end in [None, Some(End::Unknown)] {
        if let Some(end) = end {
            gateway.settle(&ticket, end);
        }
        let concluded = gateway.conclude(&past, End::Absent, (0, ""));
        assert_eq!(concluded, Concluded::Overtaken);
    }
}

#[test]
fn a_look_up_settles_a_call_whose_lease_has_run_out() {
    let mut gateway = Gateway::of(16);
    let late = gateway.taken(&Refund::of("k", NEVER));
    gateway.past_ms = GuardSettings::default().lease_ms;
    let past = gateway.recollection("k");
    // Nothing was answered to it.
    assert_eq!(past.known.as_ref().unwrap().answer, None);
    let concluded = gateway.conclude(&past, End::Refunded, (200, "found"));
    assert_eq!(concluded, Concluded::Settled);
    // It ends after all: the provider's word stands.
    assert!(!gateway.settle(&late, End::Unknown));
    assert_eq!(gateway.again("k", NEVER), told(200, "found", NEVER));
}

#[test]
fn a_call_that_outlived_its_lease_and_ended_outweighs_a_look_up() {
    let mut gateway = Gateway::of(16);
    let late = gateway.taken(&Refund::of("k", FOREVER));
    gateway.past_ms = GuardSettings::default().lease_ms;
    let past = gateway.recollection("k");
    assert!(gateway.settle_with(&late, &settled(End::Refunded, (200, "its own"))));
    let concluded = gateway.conclude(&past, End::Absent, (0, ""));
    assert_eq!(concluded, Concluded::Overtaken);
    assert_eq!(gateway.again("k", FOREVER), told(200, "its own", FOREVER));
}

#[test]
fn a_word_too_large_to_be_kept_leaves_the_key_open() {
    let mut gateway = Gateway::after(FOREVER, End::Unknown);
    let past = gateway.recollection("k");
    let large = "x".repeat(MAX_ANSWER + 1);
    gateway.conclude(&past, End::Refunded, (200, &large));
    assert!(gateway.standing("k").is_some());
    assert_eq!(taken_as(gateway.again("k", FOREVER)), open(FOREVER));
}

/// The first answer holds the refund's id, by which it is looked up.
#[test]
fn an_unknown_second_send_keeps_the_answer_of_the_first_where_the_provider_keeps_keys_for_ever() {
    for (resend, kept_id) in [(FOREVER, true), (until(1_000), false)] {
        let mut gateway = Gateway::after(resend, End::Pending);
        let ticket = gateway.taken(&Refund::of("k", resend));
        assert!(gateway.settle_with(&ticket, &settled(End::Unknown, (502, "{}"))));
        let answer = gateway.recall("k").unwrap().answer.unwrap();
        assert_eq!(answer.body == r#"{"id":1}"#, kept_id, "{answer:?}");
        assert_eq!(gateway.standing("k"), Some(Standing { resend }));
    }
}

proptest! {
    #[test]
    fn bytes_that_are_no_bucket_are_read_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..4_000),
    ) {
        let bucket = Bucket::decode(&bytes, 16);
        assert_eq!(Bucket::decode(&bucket.encode(), 16), bucket);
        let bucket = PaymentBucket::decode(&bytes, 32);
        assert_eq!(PaymentBucket::decode(&bucket.encode(), 32), bucket);
    }
}

#[test]
fn nothing_stored_is_an_empty_bucket() {
    assert_eq!(Bucket::decode(b"", 16), Bucket::decode(&[0xff; 2_000], 16));
}
