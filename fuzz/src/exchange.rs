//! What happens to three calls under one key and to look-ups of it, in an order that the fuzzer chooses, longer than the model goes and with every
//! status that there is. The world itself asserts what may not be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;

use crate::harness::config;
use crate::harness::fixtures::{FIXTURES, Fixture};
use crate::harness::world::{Event, Scene, World};

thread_local! {
    static CONFIGS: RefCell<BTreeMap<&'static str, [Rc<Config>; 2]>> = const { RefCell::new(BTreeMap::new()) };
}

/// A provider, then an event a pair of bytes: which of those that can happen, and a status where it has one.
pub fn check(data: &[u8]) {
    let Some((which, events)) = data.split_first() else {
        return;
    };
    let fixture = &FIXTURES[usize::from(*which) % FIXTURES.len()];
    let configs = configs(fixture);
    // A quarter with calls alone; the others with two look-ups, at a provider that has done what it is asked about.
    let looked_up = *which >= 64;
    let scene = Scene {
        calls: if looked_up { 2 } else { 3 },
        look_ups: if looked_up { 2 } else { 0 },
        punctual: looked_up,
    };
    let mut world = World::new(fixture, &configs, true).with(scene);
    for pair in events.chunks_exact(2).take(64) {
        let possible = world.events();
        if possible.is_empty() {
            return;
        }
        world.step(match possible[usize::from(pair[0]) % possible.len()] {
            Event::Denied(nth, _) => Event::Denied(nth, 300 + u16::from(pair[1])),
            event => event,
        });
    }
}

fn configs(fixture: &Fixture) -> [Rc<Config>; 2] {
    CONFIGS.with_borrow_mut(|known| {
        let both = || [(); 2].map(|()| config(fixture.name(), &fixture.provider_config()));
        known.entry(fixture.name()).or_insert_with(both).clone()
    })
}
