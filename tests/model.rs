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
use common::world::{Event, World};
use serde_json::{Value, json};

/// Goes through every world that can be reached; gives how many there were.
fn explore(fixture: &Fixture, provider: &Value, guarded: bool) -> usize {
    let configs = [(); 2].map(|()| common::config(fixture.name(), provider));
    let replay = |trace: &[Event]| {
        let mut world = World::new(fixture, &configs, guarded);
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
        worlds.insert(name, explore(fixture, &fixture.provider_config(), true));
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
    assert!(explore(fixture, &provider, true) > 1_000);
}

#[test]
fn without_the_guard_the_same_exploration_finds_a_second_refund() {
    let fixture = fixture("bbmsl");
    let found = std::panic::catch_unwind(|| explore(fixture, &fixture.provider_config(), false));
    let said = *found.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("sent again"), "{said}");
}
