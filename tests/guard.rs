//! The guard by itself: what its table says to every order of calls, and what it forgets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that panics has failed, which is what it is for"
)]

mod common;

use common::SharedData;
use refund_filter::exchange::MAX_ANSWER;
use refund_filter::guard::{
    About, Asks, Bucket, Claim, Digest, End, Found, Guard, GuardSettings, Question, Recalled,
    Standing, StoredAnswer, Ticket, bucket_record,
};
use refund_filter::problem::Retry;

const NOW: i64 = 1_800_000_000_000;
const DAY: i64 = 24 * 60 * 60 * 1_000;
const FOREVER: i64 = i64::MAX;
const NEVER: i64 = 0;

fn settings(entries: u32) -> GuardSettings {
    GuardSettings {
        entries,
        ..GuardSettings::default()
    }
}

fn digest(text: &str) -> Digest {
    Digest::of([text.as_bytes()])
}

/// One bucket of this many places, as the workers share it: every step goes through its bytes.
struct Table {
    bytes: Vec<u8>,
    settings: GuardSettings,
    now: i64,
    leases: u64,
}

impl Table {
    fn of(entries: u32) -> Self {
        Table {
            bytes: Vec::new(),
            settings: settings(entries),
            now: NOW,
            leases: 0,
        }
    }

    fn bucket(&self) -> Bucket {
        Bucket::decode(&self.bytes, self.settings.entries)
    }

    fn claim(&mut self, key: &str, refund: &str, resend_until_ms: i64) -> (Found, Ticket) {
        self.leases += 1;
        let question = Question {
            key: digest(key),
            refund: digest(refund),
            about: About {
                payment: [2; 8],
                amount: [1; 8],
            },
            resend_until_ms,
        };
        let mut bucket = self.bucket();
        let found = bucket.claim(&question, self.leases, self.now, &self.settings);
        self.bytes = bucket.encode();
        let ticket = Ticket {
            key: question.key,
            lease: self.leases,
            resend_until_ms,
        };
        (found, ticket)
    }

    fn taken(&mut self, key: &str, resend_until_ms: i64) -> Ticket {
        let (found, ticket) = self.claim(key, key, resend_until_ms);
        assert!(matches!(found, Found::Taken { .. }), "{key}: {found:?}");
        ticket
    }

    fn settle(&mut self, ticket: Ticket, end: End) -> bool {
        let mut bucket = self.bucket();
        let settled = bucket.settle(&ticket, end, end != End::Free, self.now, &self.settings);
        self.bytes = bucket.encode();
        settled
    }

    fn standing(&self, key: &str) -> Option<Standing> {
        self.bucket()
            .standing(&digest(key), self.now, &self.settings)
    }
}

fn clean(resend_until_ms: i64) -> Found {
    Found::Taken {
        standing: None,
        resend_until_ms,
    }
}

fn again(resend_until_ms: i64) -> Found {
    Found::Taken {
        standing: Some(Standing { resend_until_ms }),
        resend_until_ms,
    }
}

#[test]
fn a_key_in_flight_is_one_calls_alone() {
    let mut table = Table::of(16);
    let ticket = table.taken("k", FOREVER);
    let (found, other) = table.claim("k", "k", FOREVER);
    assert!(matches!(found, Found::InFlight(_)));
    // Who did not get it settles nothing.
    assert!(!table.settle(other, End::Refunded));
    assert!(matches!(
        table.claim("k", "k", FOREVER).0,
        Found::InFlight(_)
    ));
    assert!(table.settle(ticket, End::Refunded));
    assert!(!table.settle(ticket, End::Unknown));
    assert!(matches!(
        table.claim("k", "k", FOREVER).0,
        Found::Answered { way: Some(0), .. }
    ));
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
        for resend in [FOREVER, NEVER, NOW + DAY] {
            let mut table = Table::of(16);
            let ticket = table.taken("k", resend);
            if let Some(end) = end {
                table.settle(ticket, end);
            }
            assert_eq!(
                table.claim("k", "other", resend).0,
                Found::Reused,
                "{end:?}"
            );
        }
    }
    // A key under which certainly nothing was sent is as good as new.
    let mut table = Table::of(16);
    let ticket = table.taken("k", FOREVER);
    table.settle(ticket, End::Free);
    assert_eq!(table.claim("k", "other", FOREVER).0, clean(FOREVER));
}

#[test]
fn what_is_open_goes_out_again_only_while_the_provider_keeps_the_key() {
    for end in [End::Pending, End::Unknown] {
        let mut table = Table::of(16);
        let ticket = table.taken("k", FOREVER);
        table.settle(ticket, end);
        assert_eq!(table.claim("k", "k", FOREVER).0, again(FOREVER), "{end:?}");

        // The window counts from the first send, whatever comes later.
        let mut table = Table::of(16);
        let ticket = table.taken("k", NOW + DAY);
        table.settle(ticket, end);
        table.now += DAY / 2;
        let (found, ticket) = table.claim("k", "k", table.now + DAY);
        assert_eq!(found, again(NOW + DAY), "{end:?}");
        table.settle(ticket, end);
        table.now = NOW + DAY;
        let (found, _) = table.claim("k", "k", table.now + DAY);
        assert!(
            matches!(found, Found::Answered { way: Some(_), .. }),
            "{found:?}"
        );

        let mut table = Table::of(16);
        let ticket = table.taken("k", NEVER);
        table.settle(ticket, end);
        let (found, _) = table.claim("k", "k", NEVER);
        assert!(
            matches!(found, Found::Answered { way: Some(_), .. }),
            "{found:?}"
        );
    }
}

#[test]
fn a_second_send_that_came_to_nothing_leaves_what_the_first_left() {
    for end in [End::Pending, End::Unknown] {
        let mut table = Table::of(16);
        let ticket = table.taken("k", FOREVER);
        table.settle(ticket, end);
        let (_, ticket) = table.claim("k", "k", FOREVER);
        table.settle(ticket, End::Free);
        assert!(table.standing("k").is_some(), "{end:?}");
        assert_eq!(table.claim("k", "k", FOREVER).0, again(FOREVER), "{end:?}");
    }
}

#[test]
fn a_lease_that_runs_out_is_an_end_that_nobody_knows() {
    let lease = GuardSettings::default().lease_ms;
    for (resend, sent_again) in [(FOREVER, true), (NEVER, false)] {
        let mut table = Table::of(16);
        let late = table.taken("k", resend);
        table.now += lease - 1;
        assert!(matches!(
            table.claim("k", "k", resend).0,
            Found::InFlight(_)
        ));
        table.now += 1;
        let (found, _) = table.claim("k", "k", resend);
        if sent_again {
            assert_eq!(found, again(FOREVER));
            // The first comes home after all: the key is another's.
            assert!(!table.settle(late, End::Refunded));
        } else {
            assert!(
                matches!(found, Found::Answered { way: None, .. }),
                "{found:?}"
            );
            // Nobody else has it: its word is better than none.
            assert!(table.settle(late, End::Refunded));
            assert!(matches!(
                table.claim("k", "k", resend).0,
                Found::Answered { way: Some(_), .. }
            ));
        }
    }
}

#[test]
fn a_window_that_has_closed_leaves_nothing() {
    for end in [
        End::Free,
        End::Pending,
        End::Unknown,
        End::Refunded,
        End::Refused,
    ] {
        let mut table = Table::of(16);
        let ticket = table.taken("k", NEVER);
        table.settle(ticket, end);
        table.now += table.settings.window_ms - 1;
        if end != End::Free {
            assert_eq!(table.claim("k", "other", NEVER).0, Found::Reused, "{end:?}");
        }
        table.now += 1;
        assert_eq!(table.standing("k"), None, "{end:?}");
        assert_eq!(table.claim("k", "other", NEVER).0, clean(NEVER), "{end:?}");
    }
}

#[test]
fn room_is_made_by_what_is_final_then_by_the_oldest_and_never_by_what_is_unknown() {
    let mut table = Table::of(4);
    for (key, end) in [
        ("pending", End::Pending),
        ("unknown", End::Unknown),
        ("refunded", End::Refunded),
    ] {
        let ticket = table.taken(key, NEVER);
        table.settle(ticket, end);
        table.now += 1;
    }
    table.taken("in flight", NEVER);
    let known = |table: &mut Table, key: &str| table.claim(key, "other", NEVER).0 == Found::Reused;

    let ticket = table.taken("fifth", NEVER);
    for (key, there) in [("pending", true), ("unknown", true), ("in flight", true)] {
        assert_eq!(known(&mut table, key), there, "{key}");
    }
    assert_eq!(table.standing("refunded"), None);
    table.settle(ticket, End::Refused);
    // The refusal is final, too: it goes before the older one that is pending.
    let sixth = table.taken("sixth", NEVER);
    assert!(known(&mut table, "pending"));
    table.settle(sixth, End::Unknown);
    let seventh = table.taken("seventh", NEVER);
    assert_eq!(table.standing("pending"), None);
    table.settle(seventh, End::Unknown);
    assert_eq!(table.claim("eighth", "eighth", NEVER).0, Found::NoRoom);
    // The lease of the one in flight runs out: unknown, and no more room than before.
    table.now += table.settings.lease_ms;
    assert_eq!(table.claim("eighth", "eighth", NEVER).0, Found::NoRoom);
    table.now += table.settings.window_ms;
    table.taken("eighth", NEVER);
}

#[test]
fn the_oldest_of_its_kind_goes_first() {
    let mut table = Table::of(3);
    for key in ["a", "b", "c"] {
        let ticket = table.taken(key, NEVER);
        table.settle(ticket, End::Refunded);
        table.now += 1;
    }
    table.taken("d", NEVER);
    assert_eq!(table.standing("a"), None);
    assert!(table.standing("b").is_some() && table.standing("c").is_some());
}

#[test]
fn only_what_may_have_moved_money_stands_against_a_later_word() {
    for (end, stands) in [
        (End::Free, false),
        (End::Refused, false),
        (End::Pending, true),
        (End::Unknown, true),
        (End::Refunded, true),
    ] {
        let mut table = Table::of(16);
        assert_eq!(table.standing("k"), None);
        let ticket = table.taken("k", FOREVER);
        assert!(table.standing("k").is_some());
        table.settle(ticket, end);
        assert_eq!(table.standing("k").is_some(), stands, "{end:?}");
    }
    let standing = Standing {
        resend_until_ms: NOW,
    };
    assert_eq!(standing.retry(NOW - 1), Retry::SameKey);
    assert_eq!(standing.retry(NOW), Retry::LookUp);
}

#[test]
fn an_end_without_an_answer_to_tell_again_is_unknown() {
    let mut table = Table::of(16);
    let ticket = table.taken("k", FOREVER);
    let mut bucket = table.bucket();
    bucket.settle(&ticket, End::Refunded, false, NOW, &table.settings);
    table.bytes = bucket.encode();
    assert_eq!(table.claim("k", "k", FOREVER).0, again(FOREVER));
}

#[test]
fn bytes_that_are_no_bucket_are_an_empty_one() {
    for bytes in [&b""[..], b"x", &[0xff; 74], &[9; 74 * 16], &[0; 73]] {
        let bucket = Bucket::decode(bytes, 16);
        assert_eq!(Bucket::decode(&bucket.encode(), 16), bucket);
    }
    let empty = Bucket::decode(b"", 16);
    assert_eq!(Bucket::decode(&[0xff; 74 * 16], 16), empty);
}

#[test]
fn an_answer_is_told_under_its_own_key_alone() {
    let stored = StoredAnswer::encode(&digest("k"), 202, "{\"é\":1}").unwrap();
    let told = StoredAnswer::decode(&digest("k"), &stored).unwrap();
    assert_eq!((told.status, told.body.as_str()), (202, "{\"é\":1}"));
    assert_eq!(StoredAnswer::decode(&digest("other"), &stored), None);
    assert_eq!(StoredAnswer::decode(&digest("k"), &stored[..17]), None);
    assert_eq!(
        StoredAnswer::encode(&digest("k"), 200, &"x".repeat(10_241)),
        None
    );
}

#[test]
fn parts_of_a_digest_are_told_apart() {
    let of = |parts: &[&str]| Digest::of(parts.iter().map(|part| part.as_bytes()));
    assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    assert_ne!(of(&["a", ""]), of(&["", "a"]));
    assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
}

#[test]
fn keys_spread_over_the_whole_table() {
    let mut buckets = std::collections::BTreeMap::<String, usize>::new();
    for nth in 0..16_000 {
        *buckets
            .entry(bucket_record(&digest(&nth.to_string()), 160))
            .or_default() += 1;
    }
    assert_eq!(buckets.len(), 10);
    assert!(
        buckets.values().all(|count| (1_400..1_800).contains(count)),
        "{buckets:?}"
    );
    // Fewer than one bucket's entries are one bucket.
    assert_eq!(
        bucket_record(&digest("a"), 1),
        bucket_record(&digest("b"), 1)
    );
}

#[test]
fn a_key_that_was_given_back_takes_nothing_of_the_other_providers_rules_along() {
    for before in [FOREVER, NOW + DAY] {
        let mut table = Table::of(16);
        let ticket = table.taken("k", before);
        table.settle(ticket, End::Free);
        // The same key, for a provider that knows none.
        assert_eq!(table.claim("k", "other", NEVER).0, clean(NEVER));
    }
    // A day that began with the first send does not begin anew.
    let mut table = Table::of(16);
    let ticket = table.taken("k", NOW + DAY);
    table.settle(ticket, End::Free);
    table.now += DAY / 2;
    assert_eq!(table.claim("k", "k", table.now + DAY).0, clean(NOW + DAY));
}

#[test]
fn a_neighbours_claim_changes_nothing_for_a_call_that_outlives_its_lease() {
    for neighbour in [false, true] {
        let mut table = Table::of(16);
        let late = table.taken("k", NEVER);
        table.now += table.settings.lease_ms;
        if neighbour {
            table.taken("neighbour", NEVER);
        }
        assert!(table.settle(late, End::Free));
        assert_eq!(table.claim("k", "k", NEVER).0, clean(NEVER), "{neighbour}");
    }
}

/// The guard over a memory of its own, and calls under one key.
#[derive(Default)]
struct Kept {
    memory: SharedData,
    leases: u64,
    past_ms: i64,
}

impl Kept {
    fn guard(&self) -> Guard<'_> {
        Guard {
            memory: &self.memory,
            settings: GuardSettings::default(),
        }
    }

    fn now(&self) -> i64 {
        NOW + self.past_ms
    }

    fn lease(&mut self) -> u64 {
        self.leases += 1;
        self.leases
    }

    fn question(resend_until_ms: i64) -> Question {
        Question {
            key: digest("k"),
            refund: digest("refund"),
            about: About {
                payment: [7; 8],
                amount: [9; 8],
            },
            resend_until_ms,
        }
    }

    fn claim(&mut self, resend_until_ms: i64) -> Claim {
        let (lease, now) = (self.lease(), self.now());
        self.guard()
            .ask(&Asks::Claim(Self::question(resend_until_ms)), lease, now)
    }

    fn taken(&mut self, resend_until_ms: i64) -> Ticket {
        match self.claim(resend_until_ms) {
            Claim::Taken { ticket, .. } => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn settle(&self, ticket: &Ticket, end: End, (status, body): (u16, &str)) -> bool {
        self.guard().settle(ticket, end, status, body, self.now())
    }

    fn recall(&self) -> Option<Recalled> {
        match self.guard().ask(&Asks::Recall(digest("k")), 0, self.now()) {
            Claim::Recalled(recalled) => Some(recalled),
            Claim::None => None,
            other => panic!("{other:?}"),
        }
    }

    fn conclude(&mut self, recalled: &Recalled, end: End, answer: (u16, &str)) -> bool {
        let (lease, now) = (self.lease(), self.now());
        self.guard().conclude(recalled, lease, end, answer, now)
    }

    /// A key whose refund ended like this.
    fn after(resend_until_ms: i64, end: End) -> Self {
        let mut kept = Kept::default();
        let ticket = kept.taken(resend_until_ms);
        assert!(kept.settle(&ticket, end, (202, "{\"id\":1}")));
        kept
    }
}

fn told(status: u16, body: &str) -> Claim {
    Claim::Answered {
        answer: Some(StoredAnswer {
            status,
            body: body.to_owned(),
        }),
        standing: Standing {
            resend_until_ms: FOREVER,
        },
    }
}

#[test]
fn a_look_up_recalls_what_may_have_moved_money_and_is_not_in_flight() {
    for (end, remembered) in [
        (End::Free, false),
        (End::Refused, false),
        (End::Pending, true),
        (End::Unknown, true),
        (End::Refunded, true),
    ] {
        let mut kept = Kept::default();
        assert_eq!(kept.recall(), None);
        let ticket = kept.taken(FOREVER);
        assert_eq!(kept.recall(), None, "in flight");
        kept.settle(&ticket, end, (202, "told"));
        let recalled = kept.recall();
        assert_eq!(recalled.is_some(), remembered, "{end:?}");
        if let Some(recalled) = recalled {
            assert_eq!(recalled.about, Kept::question(FOREVER).about);
            assert_eq!(recalled.answer.unwrap().body, "told");
        }
        // To be asked about takes nothing.
        assert_eq!(kept.recall().is_some(), remembered, "{end:?}");
        kept.past_ms = GuardSettings::default().window_ms;
        assert_eq!(kept.recall(), None, "{end:?}");
    }
}

#[test]
fn a_look_ups_final_word_is_what_the_next_call_is_answered() {
    for open in [End::Pending, End::Unknown] {
        for end in [End::Refunded, End::Refused] {
            let mut kept = Kept::after(FOREVER, open);
            let recalled = kept.recall().unwrap();
            assert!(kept.conclude(&recalled, end, (200, "found")));
            assert_eq!(kept.claim(FOREVER), told(200, "found"), "{open:?} {end:?}");
            // Another look-up asked at the same time: its word is the same, or too late.
            assert!(!kept.conclude(&recalled, End::NeverWas, (0, "")));
            assert_eq!(kept.claim(FOREVER), told(200, "found"), "{open:?} {end:?}");
        }
    }
}

#[test]
fn a_refund_that_never_was_leaves_its_key_as_good_as_new() {
    for (resend, expected) in [(FOREVER, FOREVER), (NEVER, NEVER), (NOW + DAY, NOW + DAY)] {
        for open in [End::Pending, End::Unknown] {
            let mut kept = Kept::after(resend, open);
            let recalled = kept.recall().unwrap();
            assert!(kept.conclude(&recalled, End::NeverWas, (0, "")));
            assert_eq!(kept.guard().standing(&digest("k"), kept.now()), None);
            assert_eq!(kept.recall(), None);
            let Claim::Taken { ticket, standing } = kept.claim(resend) else {
                panic!("not taken")
            };
            assert_eq!((standing, ticket.resend_until_ms), (None, expected));
        }
    }
}

#[test]
fn what_has_been_sent_since_a_look_up_asked_outweighs_what_it_heard() {
    for end in [End::Refunded, End::Refused, End::NeverWas] {
        // In flight while the look-up comes home.
        let mut kept = Kept::after(FOREVER, End::Unknown);
        let recalled = kept.recall().unwrap();
        let ticket = kept.taken(FOREVER);
        assert!(!kept.conclude(&recalled, end, (200, "found")), "{end:?}");
        // The send's own word is not disturbed, and stands after it, whatever it was.
        assert!(kept.settle(&ticket, End::Unknown, (504, "late")));
        assert!(!kept.conclude(&recalled, end, (200, "found")), "{end:?}");
        assert_eq!(kept.recall().unwrap().answer.unwrap().body, "late");
    }
    for settled in [End::Free, End::Pending, End::Refunded, End::Refused] {
        let mut kept = Kept::after(FOREVER, End::Unknown);
        let recalled = kept.recall().unwrap();
        let ticket = kept.taken(FOREVER);
        kept.settle(&ticket, settled, (200, "sent"));
        assert!(
            !kept.conclude(&recalled, End::NeverWas, (0, "")),
            "{settled:?}"
        );
    }
}

#[test]
fn a_look_up_settles_a_call_whose_lease_has_run_out() {
    let mut kept = Kept::default();
    let late = kept.taken(NEVER);
    kept.past_ms = GuardSettings::default().lease_ms;
    let recalled = kept.recall().unwrap();
    // Nothing was answered to it.
    assert_eq!(recalled.answer, None);
    assert!(kept.conclude(&recalled, End::Refunded, (200, "found")));
    // It comes home after all: the provider's word stands.
    assert!(!kept.settle(&late, End::Unknown, (504, "late")));
    assert_eq!(
        kept.claim(NEVER),
        Claim::Answered {
            answer: Some(StoredAnswer {
                status: 200,
                body: "found".into()
            }),
            standing: Standing {
                resend_until_ms: NEVER
            },
        }
    );
}

#[test]
fn a_proof_of_absence_frees_no_key_whose_call_has_not_come_home() {
    for resend in [NEVER, FOREVER] {
        let mut kept = Kept::default();
        let late = kept.taken(resend);
        kept.past_ms = GuardSettings::default().lease_ms;
        let recalled = kept.recall().unwrap();
        // Its send may be still to come: it waits for a token, a signature or an order, or for its provider.
        assert!(!kept.conclude(&recalled, End::NeverWas, (0, "")));
        assert!(kept.guard().standing(&digest("k"), kept.now()).is_some());
        assert!(kept.settle(&late, End::Unknown, (504, "late")));
        // The provider may have been asked before it was sent.
        assert!(!kept.conclude(&recalled, End::NeverWas, (0, "")));
        // Now it has: nothing more of it is sent.
        let recalled = kept.recall().unwrap();
        assert!(kept.conclude(&recalled, End::NeverWas, (0, "")));
        assert!(matches!(
            kept.claim(resend),
            Claim::Taken { standing: None, .. }
        ));
    }
}

#[test]
fn a_call_that_outlived_its_lease_and_came_home_outweighs_a_look_up() {
    let mut kept = Kept::default();
    let late = kept.taken(FOREVER);
    kept.past_ms = GuardSettings::default().lease_ms;
    let recalled = kept.recall().unwrap();
    assert!(kept.settle(&late, End::Refunded, (200, "its own")));
    assert!(!kept.conclude(&recalled, End::NeverWas, (0, "")));
    assert_eq!(kept.claim(FOREVER), told(200, "its own"));
}

#[test]
fn a_word_too_large_to_be_told_again_leaves_the_key_open() {
    let mut kept = Kept::after(FOREVER, End::Unknown);
    let recalled = kept.recall().unwrap();
    let large = "x".repeat(MAX_ANSWER + 1);
    kept.conclude(&recalled, End::Refunded, (200, &large));
    assert!(kept.guard().standing(&digest("k"), kept.now()).is_some());
    assert!(matches!(
        kept.claim(FOREVER),
        Claim::Taken {
            standing: Some(_),
            ..
        }
    ));
}

#[test]
fn a_send_of_which_nothing_is_known_takes_no_refunds_id_from_the_one_that_was_taken() {
    for (resend_until_ms, kept_id) in [(FOREVER, true), (NOW + 1_000, false)] {
        let mut kept = Kept::after(resend_until_ms, End::Pending);
        let ticket = kept.taken(resend_until_ms);
        assert!(kept.settle(&ticket, End::Unknown, (502, "{}")));
        let answer = kept.recall().unwrap().answer.unwrap();
        assert_eq!(answer.body == "{\"id\":1}", kept_id, "{answer:?}");
        assert_eq!(
            kept.guard().standing(&digest("k"), kept.now()),
            Some(Standing { resend_until_ms })
        );
    }
}
