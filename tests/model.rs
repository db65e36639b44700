//! Every order of what can happen to three calls under one key, explored exhaustively.
//!
//! Two of the calls are the same, the third is another refund. They meet a provider that books whatever reaches it: the
//! providers with keys know a second send by its key (beGateway for a day), BBMSL here knows nothing at all, so that only
//! the gateway stands between two sends and two refunds. What may happen, in every order: a call comes, its token or its
//! signature comes or does not, the request is lost, is processed, or is processed long after its caller has given up; the
//! reply comes as a success, a refusal, nonsense or not at all; the caller leaves; the worker traps; a configuration is
//! pushed; a lease runs out; a day goes by.
//!
//! At every answer: `succeeded` and `pending` only with exactly one refund in the ledger, `not_refunded` only with none, nor
//! any that could still come. Never two refunds, never two answers to one call.

#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unreachable,
    reason = "a test that panics has failed, which is what it is for"
)]

mod common;

use std::collections::{BTreeMap, HashSet};

use common::fixtures::{FIXTURES, Fixture};
use common::world::{Event, Scene, World};
use serde_json::{Value, json};

/// Goes through every world that can be reached; gives how many there were.
fn explore(fixture: &Fixture, provider: &Value, guarded: bool, scene: Scene) -> usize {
    let configs = [(); 2].map(|()| common::config(fixture.name(), provider));
    let replay = |trace: &[Event]| {
        let mut world = World::new(fixture, &configs, guarded).with(scene);
        for event in trace {
            world.step(*event);
        }
        world
    };
    let mut seen = HashSet::new();
    let mut left: Vec<Vec<Event>> = vec![Vec::new()];
    while let Some(trace) = left.pop() {
        let world = replay(&trace);
        if !seen.insert(world.mark()) {
            continue;
        }
        for event in world.events() {
            left.push([&trace[..], &[event]].concat());
        }
    }
    seen.len()
}

fn fixture(name: &str) -> &'static Fixture {
    FIXTURES
        .iter()
        .find(|fixture| fixture.name() == name)
        .unwrap()
}

#[test]
fn no_order_of_events_refunds_twice_or_makes_a_false_statement() {
    let mut worlds = BTreeMap::new();
    for name in ["moyasar", "begateway", "bog", "bbmsl"] {
        let fixture = fixture(name);
        worlds.insert(
            name,
            explore(fixture, &fixture.provider_config(), true, Scene::default()),
        );
    }
    // An exploration that ends at its beginning proves nothing.
    assert!(worlds.values().all(|count| *count > 1_000), "{worlds:?}");
}

#[test]
fn no_order_of_events_refunds_twice_where_openbao_signs() {
    let fixture = fixture("bbmsl");
    let mut provider = fixture.provider_config();
    provider["signing"] = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "bbmsl", "token": {"filter_state": "refund.token"},
    }});
    assert!(explore(fixture, &provider, true, Scene::default()) > 1_000);
}

#[test]
fn without_the_guard_the_same_exploration_finds_a_second_refund() {
    let fixture = fixture("bbmsl");
    let explored = || explore(fixture, &fixture.provider_config(), false, Scene::default());
    let found = std::panic::catch_unwind(explored);
    let said = *found.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("sent again"), "{said}");
}

/// Two calls for the same refund, and a look-up of it.
const LOOKED_UP: Scene = Scene {
    calls: 2,
    look_ups: 1,
    punctual: true,
};

#[test]
fn no_order_of_sends_and_look_ups_makes_a_false_statement() {
    let mut worlds = BTreeMap::new();
    for name in ["moyasar", "begateway", "bog", "bbmsl"] {
        let fixture = fixture(name);
        let provider = fixture.provider_config();
        let scene = Scene {
            // Who never takes absence for proof makes no false statement, however late anything arrives.
            punctual: matches!(name, "begateway" | "bbmsl"),
            ..LOOKED_UP
        };
        worlds.insert(name, explore(fixture, &provider, true, scene));
    }
    let fixture = fixture("bbmsl");
    let mut provider = fixture.provider_config();
    provider["query_first"] = json!(true);
    worlds.insert(
        "bbmsl, asked first",
        explore(fixture, &provider, true, LOOKED_UP),
    );
    assert!(worlds.values().all(|count| *count > 300), "{worlds:?}");
}

#[test]
fn no_two_look_ups_of_one_refund_make_a_false_statement() {
    let scene = Scene {
        calls: 1,
        look_ups: 2,
        punctual: true,
    };
    for name in ["moyasar", "begateway", "bog", "bbmsl"] {
        let fixture = fixture(name);
        let count = explore(fixture, &fixture.provider_config(), true, scene);
        assert!(count > 100, "{name}: {count}");
    }
}

/// The limit of every proof of absence: the provider tells the truth, and a send that was given up reaches it afterwards.
#[test]
fn a_send_that_arrives_after_its_absence_was_proven_is_beyond_what_a_look_up_can_tell() {
    let scene = Scene {
        punctual: false,
        ..LOOKED_UP
    };
    for name in ["begateway", "bbmsl"] {
        let fixture = fixture(name);
        let explored = || explore(fixture, &fixture.provider_config(), true, scene);
        let found = std::panic::catch_unwind(explored);
        let said = *found.unwrap_err().downcast::<String>().unwrap();
        assert!(said.contains("may still be"), "{name}: {said}");
    }
}
