//! What goes wrong with one request, by chance.
//!
//! A provider that lies is no part of it: where a fault says that nothing was refunded, nothing
//! was. All the rest may have been booked or not.

use std::time::Duration;

use provider_simulator::{Fault, Provider, Reply};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::ROUTE_TIMEOUT;

/// Longer than a route waits: the answer is out before the reply is there, or even before the
/// refund is.
pub(super) const LATE: Duration = ROUTE_TIMEOUT.saturating_mul(2);
const SOON: Duration = Duration::from_millis(100);

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

fn one_of<T: Copy>(list: &[T], rng: &mut StdRng) -> T {
    *list.choose(rng).expect("no list here is empty")
}

/// A fault for the next request at a provider.
pub(super) fn of(provider: Provider, rng: &mut StdRng) -> Fault {
    match provider.refunds() {
        true => of_refund(provider, rng),
        false => of_token(provider, rng),
    }
}

fn of_refund(provider: Provider, rng: &mut StdRng) -> Fault {
    let booked = rng.r#gen();
    match rng.gen_range(0..29) {
        0 => Fault::Hang { booked },
        1 => Fault::StallBody { booked },
        2 => Fault::Delay(LATE),
        3 => Fault::DelayReply(LATE),
        4 => Fault::Delay(SOON),
        5 => Fault::DelayReply(SOON),
        6 => Fault::Close { booked },
        7 => Fault::Reset { booked },
        8 => Fault::CutHeaders { booked },
        9 => Fault::CutBody { booked },
        10 => Fault::CloseBefore,
        11 => Fault::RefusedStream,
        12 => Fault::StreamReset {
            code: one_of(&[2, 8], rng),
            booked,
        },
        13 => Fault::GoAway {
            code: one_of(&[0, 2], rng),
            booked,
        },
        14 => Fault::Drain,
        15 => Fault::Pieces {
            size: 16,
            pause: Duration::from_millis(1),
        },
        16 => Fault::Trailers(vec![(b"x-check".to_vec(), b"1".to_vec())]),
        17 => Fault::Oversize { bytes: 2 << 20 },
        18 => Fault::Gzip,
        19 => Fault::Continue100,
        20 => Fault::HeaderOnly {
            status: one_of(&DOUBTFUL, rng),
            booked,
        },
        21 => Fault::HeaderOnly {
            status: one_of(&REFUSALS, rng),
            booked: false,
        },
        22 => Fault::Reply {
            reply: Reply::json(200, one_of(&BODIES, rng)),
            booked,
        },
        23 | 24 => Fault::Reply {
            reply: Reply::json(one_of(&DOUBTFUL, rng), r#"{"message":"Try again"}"#),
            booked,
        },
        25 | 26 => Fault::Reply {
            reply: refusal(one_of(&REFUSALS, rng)),
            booked: false,
        },
        _ => altered(provider, rng),
    }
}

fn refusal(status: u16) -> Reply {
    let mut reply = Reply::json(status, r#"{"message":"No"}"#);
    if status == 429 {
        reply.headers.push((b"retry-after".to_vec(), b"1".to_vec()));
    }
    reply
}

/// The refund is made, and the reply says something else than that.
fn altered(provider: Provider, rng: &mut StdRng) -> Fault {
    let (pointer, value) = one_of(provider.server().altered, rng);
    Fault::Altered {
        pointer: pointer.to_owned(),
        value: value.map(str::to_owned),
    }
}

/// None that lasts: every call of its provider waits for it.
fn of_token(provider: Provider, rng: &mut StdRng) -> Fault {
    let booked = rng.r#gen();
    match rng.gen_range(0..10) {
        0 => Fault::Close { booked },
        1 => Fault::Reset { booked },
        2 => Fault::CutBody { booked },
        3 => Fault::CloseBefore,
        4 => Fault::DelayReply(SOON * 3),
        5 => Fault::Gzip,
        6 => Fault::Reply {
            reply: Reply::json(200, one_of(&BODIES, rng)),
            booked,
        },
        7 => Fault::Reply {
            reply: Reply::json(one_of(&DOUBTFUL, rng), ""),
            booked,
        },
        8 => Fault::Reply {
            reply: refusal(one_of(&REFUSALS, rng)),
            booked: false,
        },
        _ => altered(provider, rng),
    }
}

/// Whether it tells that nothing was refunded.
pub(super) fn is_refusal(fault: &Fault) -> bool {
    match fault {
        Fault::RefusedStream => true,
        Fault::Reply { reply, .. } => REFUSALS.contains(&reply.status),
        Fault::HeaderOnly { status, .. } => REFUSALS.contains(status),
        _ => false,
    }
}

/// What a fault is counted as.
pub(super) fn kind(fault: &Fault) -> String {
    let debug = format!("{fault:?}");
    let name = debug
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    match fault {
        Fault::Delay(LATE) | Fault::DelayReply(LATE) => format!("{name}, past the timeout"),
        Fault::Reply { reply, .. } => format!("{name} {}", reply.status),
        Fault::HeaderOnly { status, .. } => format!("{name} {status}"),
        _ if debug.contains("booked: true") => format!("{name}, booked"),
        _ if debug.contains("booked: false") => format!("{name}, not booked"),
        _ => name.to_owned(),
    }
}
