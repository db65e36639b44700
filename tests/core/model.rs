//! Every order of what can happen to a few calls and look-ups, explored exhaustively.
//!
//! They meet a provider that books whatever reaches it: the providers with keys know a second send
//! by its key (beGateway for a day), BBMSL here knows nothing at all, so that only the gateway
//! stands between two sends and two refunds. What may happen, in every order: a call comes, its
//! token or its signature comes or does not, the request is lost, is processed, or is processed
//! long after its caller has given up; the reply comes as a success, a refusal, nonsense or not at
//! all; the caller leaves; the worker traps; a configuration is pushed; the gateway is restarted; a
//! lease runs out; so long goes by that nothing is on its way any more; a day goes by; a refund is
//! looked up; the provider takes its word back.
//!
//! `common/world.rs` says what may never be. With `WHOLE_MODEL` (`./build.sh test`) each
//! exploration goes through every world. Without it a few walks from the beginning to an end, by a
//! seeded choice of events, are enough to see while one edits.

use std::collections::{BTreeMap, HashSet};

use core_testbed::fixtures::{FIXTURES, Fixture, fixture};
use core_testbed::world::{
    FULL, LOOKED_UP, ONE_KEY, RESTARTED, Scene, TAKEN_BACK, TWO_KEYS, TWO_SPELLINGS, Without, World,
};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};

/// Goes through every world that can be reached, or until it has met more than so many. Gives how
/// many there were.
fn explore(fixture: &Fixture, provider: &Value, scene: Scene, at_least: usize) -> usize {
    match std::env::var_os("WHOLE_MODEL") {
        Some(_) => every_world(fixture, provider, scene),
        None => walks(fixture, provider, scene, at_least + 1),
    }
}

/// Walks from the beginning to an end until it has met so many worlds, or walked as often: a scene
/// may have fewer. A walk reaches all depths. A depth-first search that ends early stays near the end
/// that it met first.
fn walks(fixture: &Fixture, provider: &Value, scene: Scene, worlds: usize) -> usize {
    let configs = [(); 2].map(|()| core_testbed::config(fixture.name(), provider));
    let mut chance = StdRng::seed_from_u64(1);
    let mut seen = HashSet::new();
    for _ in 0..worlds {
        if seen.len() >= worlds {
            break;
        }
        let mut world = World::new(fixture, &configs, scene);
        seen.insert(world.mark());
        while let Some(next) = world.events().choose(&mut chance) {
            world.step(*next);
            seen.insert(world.mark());
        }
    }
    seen.len()
}

fn every_world(fixture: &Fixture, provider: &Value, scene: Scene) -> usize {
    let configs = [(); 2].map(|()| core_testbed::config(fixture.name(), provider));
    let mut seen = HashSet::new();
    let mut left = vec![World::new(fixture, &configs, scene)];
    while let Some(world) = left.pop() {
        if seen.insert(world.mark()) {
            left.extend(world.events().into_iter().map(|event| {
                let mut next = world.clone();
                next.step(event);
                next
            }));
        }
    }
    seen.len()
}

/// The names of all providers.
fn all() -> Vec<&'static str> {
    FIXTURES.iter().map(Fixture::name).collect()
}

/// Explores a scene at these providers. An exploration that ends at its beginning proves nothing.
fn holds(names: &[&str], scene: Scene, at_least: usize) {
    let explored = |name: &&str| {
        let fixture = fixture(name);
        (
            (*name).to_owned(),
            explore(fixture, &fixture.provider_config(), scene, at_least),
        )
    };
    let worlds: BTreeMap<String, usize> = names.iter().map(explored).collect();
    println!("worlds: {worlds:?}");
    assert!(worlds.values().all(|count| *count > at_least), "{worlds:?}");
}

/// Walks through it without one of the gateway's protections, and says what is found. Going through
/// every world would find it, too, since a walk meets no other worlds.
fn found(name: &str, scene: Scene, without: Without) -> String {
    let fixture = fixture(name);
    let scene = Scene {
        without: Some(without),
        ..scene
    };
    let explored = || walks(fixture, &fixture.provider_config(), scene, 100_000);
    let found = std::panic::catch_unwind(explored);
    *found.unwrap_err().downcast::<String>().unwrap()
}

#[test]
fn no_order_of_events_refunds_twice_or_makes_a_false_statement() {
    holds(&all(), ONE_KEY, 1_000);
}

#[test]
fn no_order_of_events_refunds_twice_where_openbao_signs() {
    let fixture = fixture("bbmsl");
    let mut provider = fixture.provider_config();
    provider["signing"] = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "bbmsl", "token": {"filter_state": "refund.token"},
    }});
    assert!(explore(fixture, &provider, ONE_KEY, 1_000) > 1_000);
}

#[test]
fn no_order_of_sends_and_look_ups_makes_a_false_statement() {
    holds(&all(), LOOKED_UP, 300);
}

#[test]
fn no_order_of_sends_and_look_ups_makes_a_false_statement_where_the_payment_is_looked_at_first() {
    let fixture = fixture("bbmsl");
    let mut provider = fixture.provider_config();
    provider["query_first"] = json!(true);
    assert!(explore(fixture, &provider, LOOKED_UP, 300) > 300);
    assert!(explore(fixture, &provider, TWO_KEYS, 300) > 300);
}

#[test]
fn two_spellings_of_a_key_are_one_refund() {
    holds(&all(), TWO_SPELLINGS, 300);
}

#[test]
fn two_keys_for_one_payment_are_told_apart() {
    holds(&["moyasar", "bbmsl"], TWO_KEYS, 300);
    let refusing = Scene {
        refuses_a_second: true,
        ..TWO_KEYS
    };
    holds(&["bbmsl"], refusing, 300);
}

#[test]
fn the_newest_word_of_the_provider_counts() {
    holds(&["moyasar", "begateway", "bog"], TAKEN_BACK, 300);
}

#[test]
fn a_full_table_makes_no_word_certain() {
    holds(&all(), FULL, 100);
    let looked_up = Scene {
        calls: &[(1, 0, "10.00"), (0, 0, "10.00")],
        look_ups: &[(0, 0)],
        ..FULL
    };
    holds(&all(), looked_up, 100);
}

#[test]
fn a_restart_makes_no_word_certain() {
    holds(&all(), RESTARTED, 300);
}

// What each protection is there for: without it, a walk finds what it prevents.

#[test]
fn without_the_guard_a_second_refund_is_found() {
    let said = found("bbmsl", ONE_KEY, Without::Guard);
    assert!(said.contains("sent again"), "{said}");
}

#[test]
fn with_keys_as_they_are_spelled_two_refunds_and_a_false_absence_are_found() {
    for name in ["moyasar", "begateway", "bog"] {
        let said = found(name, TWO_SPELLINGS, Without::OneIdentity);
        assert!(
            said.contains("refunded twice") || said.contains("not refunded?"),
            "{name}: {said}"
        );
    }
}

#[test]
fn without_a_claim_on_the_payment_a_second_refund_and_a_strangers_success_are_found() {
    let said = found("bbmsl", TWO_KEYS, Without::PaymentClaims);
    assert!(said.contains("sent again"), "{said}");
    let unsent = Scene {
        refuses_a_second: true,
        restarts: true,
        ..TWO_KEYS
    };
    let said = found("bbmsl", unsent, Without::PaymentClaims);
    assert!(said.contains("refunded?"), "{said}");
}

#[test]
fn without_a_settled_time_an_absence_is_found_that_does_not_last() {
    for name in ["begateway", "bbmsl"] {
        let said = found(name, LOOKED_UP, Without::SettleTime);
        assert!(
            said.contains("nor would") || said.contains("sent again"),
            "{name}: {said}"
        );
    }
}

#[test]
fn without_later_words_an_answer_is_found_that_was_taken_back() {
    for name in ["moyasar", "begateway"] {
        let said = found(name, TAKEN_BACK, Without::LaterWords);
        assert!(said.contains("refunded?"), "{name}: {said}");
    }
}

#[test]
fn without_doubt_where_there_is_no_room_a_false_refusal_is_found() {
    for name in ["moyasar", "begateway", "bog"] {
        let said = found(name, FULL, Without::RoomForDoubt);
        assert!(
            said.contains("not refunded?") || said.contains("nor would"),
            "{name}: {said}"
        );
    }
}
