//! What becomes of a request on its way to a provider, and of the reply.
//!
//! A provider that lies is no part of it: where a reply says that nothing was refunded, nothing was.
//! All the rest may have been booked or not.

use serde_json::Value;

use crate::chance::Dice;
use crate::provider::{Kind, Reply};
use crate::scene::Scene;

/// The end of one request.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    pub road: Road,
    /// When it arrives after it left, in milliseconds; none: it does not.
    pub arrives_ms: Option<i64>,
    /// How long the provider works.
    pub works_ms: i64,
    pub says: Says,
    /// How long the reply is on its way.
    pub returns_ms: i64,
}

/// How it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    Open,
    /// No connection is made.
    Closed,
    /// No connection is free.
    Full,
    /// The provider refuses the stream, and has processed nothing.
    Refused,
}

/// What comes of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Truth,
    /// The provider's front says that it will not process it, and so it is.
    Refusal(u16),
    /// A status that leaves it open, and whether it was processed.
    Doubtful(u16, bool),
    /// Success by its status alone.
    Garbage(usize, bool),
    /// It was processed, and the reply has something else in one place.
    Altered(usize),
    /// Nothing comes, and whether it was processed.
    Nothing(bool),
    /// The connection breaks.
    Reset(bool),
    /// The head comes, and then the connection breaks, or nothing more comes.
    Cut {
        stalls: bool,
    },
}

/// Each says that the request was not processed, or that the refund was refused.
const REFUSALS: [u16; 9] = [400, 401, 402, 403, 404, 415, 422, 429, 431];
/// None of these says whether the refund was made.
const DOUBTFUL: [u16; 11] = [302, 304, 408, 418, 425, 499, 500, 502, 503, 504, 529];
/// Success by its status alone.
const BODIES: [&str; 7] = [
    "",
    "{",
    "{}",
    "[]",
    "null",
    "<html>Service unavailable</html>",
    r#"{"message":"Success"}"#,
];

impl Fate {
    /// The best that can be.
    pub fn fair(dice: &Dice) -> Self {
        Fate {
            road: Road::Open,
            arrives_ms: Some(dice.range(1..20)),
            works_ms: dice.soon(1..400),
            says: Says::Truth,
            returns_ms: dice.range(1..20),
        }
    }

    /// By chance.
    pub fn of(scene: &Scene, dice: &Dice) -> Self {
        let (rates, mut fate) = (&scene.rates, Fate::fair(dice));
        if dice.permille(rates.no_connection) {
            fate.road = dice.pick(&[Road::Closed, Road::Closed, Road::Full, Road::Refused]);
            return fate;
        }
        let booked = dice.one_in(2);
        if dice.permille(rates.lost) {
            fate.arrives_ms = None;
            fate.says = Says::Nothing(false);
            return fate;
        }
        // What its gateway gives up meanwhile goes on to the provider all the same.
        if dice.permille(rates.late) {
            fate.arrives_ms = Some(dice.soon(1..scene.latest_ms / 2));
        }
        if dice.permille(rates.slow) {
            fate.works_ms = dice.soon(1..scene.latest_ms / 2);
        }
        fate.says = match () {
            () if dice.permille(rates.refusal) => Says::Refusal(dice.pick(&REFUSALS)),
            () if dice.permille(rates.doubtful) => Says::Doubtful(dice.pick(&DOUBTFUL), booked),
            () if dice.permille(rates.garbage) => Says::Garbage(dice.below(BODIES.len()), booked),
            () if dice.permille(rates.altered) => Says::Altered(dice.below(16)),
            () if dice.permille(rates.lost) => Says::Nothing(booked),
            () if dice.permille(rates.reset) => Says::Reset(booked),
            () if dice.permille(rates.cut) => Says::Cut {
                stalls: dice.one_in(2),
            },
            () => Says::Truth,
        };
        fate
    }

    /// Whether the provider processes it, once it arrives.
    pub fn is_processed(&self) -> bool {
        match self.says {
            Says::Truth | Says::Altered(_) | Says::Cut { .. } => true,
            Says::Refusal(_) => false,
            Says::Doubtful(_, processed)
            | Says::Garbage(_, processed)
            | Says::Nothing(processed)
            | Says::Reset(processed) => processed,
        }
    }

    /// What the gateway is told of what the provider has said, if it has worked.
    pub fn bend(&self, kind: Kind, truth: Option<Reply>) -> Option<Reply> {
        match self.says {
            Says::Truth | Says::Cut { .. } => truth,
            Says::Refusal(status) => Some(Reply {
                status,
                body: r#"{"message":"No"}"#.to_owned(),
            }),
            Says::Doubtful(status, _) => Some(Reply {
                status,
                body: r#"{"message":"Try again"}"#.to_owned(),
            }),
            Says::Garbage(nth, _) => Some(Reply {
                status: 200,
                body: BODIES[nth].to_owned(),
            }),
            Says::Altered(nth) => truth.map(|truth| altered(kind, nth, truth)),
            Says::Nothing(_) | Says::Reset(_) => None,
        }
    }
}

/// The members of replies that are altered, and what stands there then: each makes a success
/// doubtful.
fn altered(kind: Kind, nth: usize, reply: Reply) -> Reply {
    let places: &[(&str, Value)] = &match kind {
        Kind::Bog => vec![
            ("/key", Value::from("request_rejected_maybe")),
            ("/action_id", Value::from(vec![1])),
            ("/order_id", Value::from("1")),
        ],
        Kind::Moyasar => vec![
            ("/id", Value::from("another")),
            ("/transactions/1/status", Value::from("unheard")),
            ("/transactions/1/amount", Value::from(999_999)),
            ("/currency", Value::from("USD")),
            ("/transactions", Value::Null),
        ],
        Kind::Begateway => vec![
            ("/transaction/parent_uid", Value::from("1-another")),
            ("/transaction/amount", Value::from(999_999)),
            ("/transaction/currency", Value::from("EUR")),
            ("/transaction/status", Value::from("unheard")),
            ("/transaction/tracking_id", Value::from("another")),
        ],
        Kind::Bbmsl => vec![
            ("/order/id", Value::from(1)),
            ("/transaction/amount", Value::from(999_999)),
            ("/transaction/currency", Value::from("USD")),
            ("/transaction/status", Value::from("PROCESSING")),
            ("/responseCode", Value::from("9999")),
        ],
    };
    let (pointer, value) = &places[nth % places.len()];
    let mut body: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    if let Some(place) = body.pointer_mut(pointer) {
        *place = value.clone();
    }
    Reply {
        status: reply.status,
        body: body.to_string(),
    }
}
