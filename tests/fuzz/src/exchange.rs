//! What happens to a few calls and look-ups, in an order that the fuzzer chooses, longer than the
//! model goes and with every status that there is. The world itself asserts what may not be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::config::Config;

use core_testbed::config;
use core_testbed::fixtures::{FIXTURES, Fixture};
use core_testbed::world::{
    Event, FULL, LOOKED_UP, ONE_KEY, RESTARTED, Scene, TAKEN_BACK, TWO_KEYS, TWO_SPELLINGS, World,
};

/// What can befall a gateway, with all that the model leaves out to come to an end.
const SCENES: [Scene; 7] = [
    ONE_KEY,
    Scene {
        look_ups: &[(0, 0), (0, 0)],
        detailed: true,
        ..LOOKED_UP
    },
    Scene {
        look_ups: &[(0, 0), (0, 1)],
        detailed: true,
        ..TWO_SPELLINGS
    },
    Scene {
        look_ups: &[(0, 0), (1, 0)],
        detailed: true,
        ..TWO_KEYS
    },
    Scene {
        detailed: true,
        ..TAKEN_BACK
    },
    Scene {
        look_ups: &[(0, 0), (1, 0)],
        detailed: true,
        ..FULL
    },
    Scene {
        look_ups: &[(0, 0), (0, 0)],
        detailed: true,
        ..RESTARTED
    },
];

thread_local! {
    static CONFIGS: RefCell<BTreeMap<&'static str, [Rc<Config>; 2]>> = const { RefCell::new(BTreeMap::new()) };
}

/// A scene and a provider, then an event a pair of bytes: which of those that can happen, and a
/// status where it has one.
pub fn check(data: &[u8]) {
    let Some((which, events)) = data.split_first() else {
        return;
    };
    let which = usize::from(*which);
    let fixture = &FIXTURES[which % FIXTURES.len()];
    let configs = configs(fixture);
    let scene = SCENES[which / FIXTURES.len() % SCENES.len()];
    let mut world = World::new(fixture, &configs, scene);
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
