//! Whole worlds: that nothing is false in them, that they are the same of the same seed, and that the
//! oracle finds what is missed where something is taken from the gateways.

use simulation::{Plan, Without, derived, play};

/// How many refunds a world of a test has.
const REFUNDS: usize = 300;

fn plan(seed: u64, shared: bool) -> Plan {
    Plan {
        seed,
        refunds: REFUNDS,
        shared,
        without: None,
        watched: None,
    }
}

#[track_caller]
fn holds(plan: Plan) {
    let findings = play(plan).findings;
    assert!(findings.is_empty(), "{plan:?}: {findings:#?}");
}

#[test]
fn nothing_is_false_where_gateways_share_a_memory() {
    for nth in 0..8 {
        holds(plan(derived(1, nth), true));
    }
}

/// Values of a newer version's form are in doubt to the others, who say nothing certain of them.
#[test]
fn nothing_is_false_during_a_rollout_of_another_form() {
    let mut mixed = 0;
    for nth in 0..24 {
        let plan = plan(derived(3, nth), true);
        let world = play(plan);
        assert!(world.findings.is_empty(), "{plan:?}: {:#?}", world.findings);
        mixed += u32::from(world.two_versions);
    }
    assert!(mixed >= 3, "{mixed} worlds of two versions");
}

#[test]
fn nothing_is_false_where_each_gateway_remembers_for_itself() {
    for nth in 0..8 {
        holds(plan(derived(1, nth), false));
    }
}

/// A repetition was advised that could have refunded twice: a full table took one provider's keys for
/// another's.
#[test]
fn worlds_that_once_failed_hold() {
    for seed in [
        8196980753821780235,
        7455107161863376737,
        5266705631892356520,
    ] {
        let refunds = 600;
        holds(Plan {
            refunds,
            ..plan(seed, false)
        });
    }
}

/// A send that was made without the store was hidden: in the first by the end of a later call, of which nothing was sent; in the second
/// by the key that a newer version had given back.
#[test]
fn worlds_that_once_failed_hold_where_gateways_share_a_memory() {
    for seed in [6485482539733748057, 3200444687529009688] {
        let refunds = 2_000;
        holds(Plan {
            refunds,
            ..plan(seed, true)
        });
    }
}

#[test]
fn a_world_is_the_same_of_the_same_seed() {
    for shared in [false, true] {
        let watched = Some(7);
        let once = || {
            play(Plan {
                watched,
                ..plan(3, shared)
            })
        };
        let (one, other) = (once(), once());
        assert!(!one.story.is_empty());
        assert_eq!(one.story, other.story);
        assert_eq!(
            (one.calls, one.sends, one.events),
            (other.calls, other.sends, other.events)
        );
        let another = play(Plan {
            watched,
            ..plan(4, shared)
        });
        assert_ne!(one.story, another.story);
    }
}

/// What the oracle finds within so many worlds, once it finds one of these.
#[track_caller]
fn found(without: Without, shared: bool, rules: &[&str]) {
    let worlds = 40;
    for nth in 0..worlds {
        let plan = Plan {
            without: Some(without),
            ..plan(derived(2, nth), shared)
        };
        let findings = play(plan).findings;
        let is_it = |rule: &str| rules.iter().any(|wanted| rule.contains(wanted));
        if let Some(finding) = findings.iter().find(|finding| is_it(finding.rule)) {
            println!(
                "{without:?}: after {} refunds: {finding:?}",
                (nth + 1) * REFUNDS as u64
            );
            return;
        }
    }
    panic!(
        "{without:?} is not missed in {} refunds",
        worlds * REFUNDS as u64
    );
}

#[test]
fn keys_compared_as_they_are_spelled_are_found() {
    for shared in [false, true] {
        found(Without::OneIdentity, shared, &["refunded twice"]);
        found(Without::OneIdentity, shared, &["sent under several keys"]);
    }
}

#[test]
fn an_absence_at_a_moment_is_found() {
    for shared in [false, true] {
        found(
            Without::SettleTime,
            shared,
            &["false: it says not_refunded"],
        );
    }
}

#[test]
fn a_claim_that_is_lost_is_found() {
    found(
        Without::Memory,
        false,
        &["false: it says not_refunded", "sent again"],
    );
    found(
        Without::Memory,
        true,
        &[
            "false: it says not_refunded",
            "sent again",
            "refunded twice",
        ],
    );
}

#[test]
fn a_newer_gateways_claim_that_is_taken_for_none_is_found() {
    found(
        Without::Forms,
        true,
        &["false: it says not_refunded", "sent again"],
    );
}
