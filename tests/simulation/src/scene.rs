//! What a world is like: how many gateways, how they are configured, and how often what happens. Every
//! world draws its own, so that each rare thing is frequent somewhere.

use serde_json::{Value, json};

use crate::chance::Dice;
use crate::provider::{Habits, Kind};

/// What is taken from the gateways, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// A key in capitals is another key.
    OneIdentity,
    /// Absence counts at (nearly) any moment.
    SettleTime,
    /// What is remembered of a key is forgotten now and then.
    Memory,
    /// A value in the form of a newer version is taken for none.
    Forms,
}

/// How often what happens to a request on its way, and to its reply, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub no_connection: u32,
    pub late: u32,
    pub slow: u32,
    pub lost: u32,
    pub reset: u32,
    pub cut: u32,
    pub refusal: u32,
    pub doubtful: u32,
    pub garbage: u32,
    pub altered: u32,
    /// A call of the gateway's own fails.
    pub own: u32,
    /// A call to the store fails.
    pub store: u32,
    /// A caller's connection breaks, before its call or after the answer.
    pub callers: u32,
}

/// So many entries of a guard are enough that none is ever forgotten for another.
pub const ROOM: u32 = 16_384;

/// See the module.
#[derive(Clone, Debug)]
pub struct Scene {
    pub gateways: usize,
    pub workers: usize,
    /// Between two calls that begin, in milliseconds.
    pub pace_ms: i64,
    pub settle_ms: i64,
    /// How late a send may arrive at most: a send that was given up is gone by then.
    pub latest_ms: i64,
    pub route_timeout_ms: i64,
    pub looks_first: bool,
    pub bbmsl_refuses: bool,
    /// Whether the gateways share a memory; without one all calls of a key go to one of them.
    pub shared: bool,
    /// Whether nothing is sent while that cannot be asked.
    pub refuses: bool,
    pub entries: u32,
    pub rates: Rates,
    pub habits: Habits,
    pub twins_one_in: u32,
    /// Between two of them, in milliseconds; none where there are none.
    pub restarts_ms: Option<i64>,
    pub pushes_ms: Option<i64>,
    pub traps_ms: Option<i64>,
    pub clock_jumps_ms: Option<i64>,
    pub outages_ms: Option<i64>,
    /// The store cannot be had for a while.
    pub store_outages_ms: Option<i64>,
    /// Some of the gateways have a newer version, which keeps its values in another form: both read it, and the older ones do not.
    pub two_versions: bool,
    /// The store forgets what it was told last.
    pub forgets_ms: Option<i64>,
    pub without: Option<Without>,
}

impl Scene {
    /// The scene of a world.
    pub fn by_chance(dice: &Dice, shared: bool, without: Option<Without>) -> Self {
        let settle_ms = 1_000 * dice.pick(&[60, 90, 300, 300, 1_200]);
        // No fault at all, some, or many.
        let scale = dice.pick(&[0, 1, 1, 2, 4]);
        let rate = |usual: i64| -> u32 {
            let rate = dice.soon(0..usual * 4) * scale;
            u32::try_from(rate.min(400)).unwrap_or_default()
        };
        let rates = Rates {
            no_connection: rate(15),
            late: rate(15),
            slow: rate(20),
            lost: rate(8),
            reset: rate(8),
            cut: rate(8),
            refusal: rate(12),
            doubtful: rate(12),
            garbage: rate(6),
            altered: rate(6),
            own: rate(10),
            store: rate(15),
            callers: rate(10),
        };
        let now_and_then = |one_in: u32, times_ms: std::ops::Range<i64>| {
            dice.one_in(one_in).then(|| dice.range(times_ms))
        };
        let restarts_ms = now_and_then(2, 20_000..400_000);
        let mut scene = Scene {
            gateways: 1 + dice.below(3),
            workers: 2,
            pace_ms: dice.pick(&[5, 20, 50, 200]),
            settle_ms,
            latest_ms: settle_ms - 5_000,
            route_timeout_ms: dice.pick(&[1_500, 10_000, 30_000]),
            looks_first: dice.one_in(3),
            // Where a gateway forgets, only the provider stands between two sends and two refunds.
            bbmsl_refuses: restarts_ms.is_some() && !shared || dice.one_in(2),
            shared,
            refuses: dice.one_in(4),
            entries: dice.pick(&[ROOM, ROOM, ROOM, 512, 64]),
            rates,
            habits: Habits {
                pending: rate(60),
                declined: rate(30),
                unsure: rate(20),
                open_ms: dice.pick(&[1_000, 60_000, 600_000]),
                refuses_a_second: false,
                tells_anew: dice.one_in(2),
            },
            twins_one_in: dice.pick(&[3, 10, 1_000]),
            restarts_ms,
            pushes_ms: now_and_then(3, 10_000..200_000),
            traps_ms: now_and_then(4, 20_000..400_000),
            clock_jumps_ms: now_and_then(3, 5_000..100_000),
            outages_ms: now_and_then(3, 30_000..200_000),
            store_outages_ms: now_and_then(3, 30_000..200_000),
            two_versions: shared && dice.one_in(4),
            forgets_ms: None,
            without,
        };
        // And where a full table forgets what has ended.
        scene.bbmsl_refuses |= scene.entries < ROOM && !shared;
        scene.habits.refuses_a_second = scene.bbmsl_refuses;
        scene.two_versions |= without == Some(Without::Forms);
        if scene.two_versions {
            scene.gateways = scene.gateways.max(2);
        }
        if without == Some(Without::Memory) {
            scene.forgets_ms = Some(3_000);
        }
        if without == Some(Without::SettleTime) {
            scene.settle_ms = 1_000;
            scene.rates.late = scene.rates.late.max(50);
        }
        scene
    }

    /// The plugin's configuration; the nth that is pushed.
    pub fn configuration(&self, push: usize) -> Value {
        let mut providers = json!({
            "bog": {
                "kind": "bog", "base_url": "https://api.bog.ge/payments/v1", "currencies": ["GEL"],
                "token": {
                    "cluster": "bog-token",
                    "url": "https://oauth2.bog.ge/auth/realms/bog/protocol/openid-connect/token",
                    "client_id": "10001", "client_secret": {"inline": "simulated"},
                },
            },
            "moyasar": {
                "kind": "moyasar", "base_url": "https://pg.moyasar.com", "api_key": {"inline": "simulated"},
            },
            "begateway": {
                "kind": "begateway", "base_url": "https://api.begateway.com", "shop_id": "361",
                "secret_key": {"inline": "simulated"}, "default_reason": format!("push {push}"),
            },
            "bbmsl": {
                "kind": "bbmsl", "base_url": "https://payapi.prod.bbmsl.com", "merchant_id": 3,
                "signing": {"transit": {
                    "cluster": "openbao", "mount": "transit", "key": "k", "token": {"inline": "simulated"},
                }},
            },
        });
        for kind in Kind::ALL {
            let provider = &mut providers[kind.name()];
            provider["settle_seconds"] = json!(self.settle_ms / 1_000);
            provider["query_first"] = json!(self.looks_first);
        }
        let mut plugin = json!({"providers": providers, "guard": {"entries": self.entries}});
        if self.shared {
            plugin["memory"] =
                json!({"redis": {"cluster": "redis", "password": {"inline": "simulated"}}});
            if self.refuses {
                plugin["memory"]["when_unavailable"] = json!("refuse");
            }
        }
        plugin
    }

    /// Whether what a gateway is told is remembered by whoever is asked next.
    pub fn remembers(&self) -> bool {
        let store_fails =
            self.rates.store > 0 || self.store_outages_ms.is_some() || self.two_versions;
        self.entries >= ROOM && self.without.is_none() && !(self.shared && store_fails)
    }
}
