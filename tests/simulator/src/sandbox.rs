//! Payments whose name says what their refund meets, the same at every provider: `sandbox-slow`, or
//! `sandbox-slow-7`, which is another payment of that kind. At BBMSL, whose ids are numbers, it is
//! the `merchantReference`, and [`Ending::number`] is an id of the kind. Each is one of 100.00.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use crate::orders::{Behaviour, Order};
use crate::{Declaration, Fault, Provider, Received, Reply};

const PREFIX: &str = "sandbox-";

/// Below the ids of the first kind, and how many there are of each: the first half of them by number, the others by name.
const NUMBERS: u64 = 2_000_000_000;
const OF_A_KIND: u64 = 10_000_000;

/// What the refund of such a payment meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is refunded.
    Succeeded,
    /// The provider says no.
    Declined,
    /// It is accepted, and done some seconds later.
    Pending,
    /// It was refunded before.
    AlreadyRefunded,
    /// The stream ends without a reply, once. The refund is made.
    Unknown,
    /// The reply is cut in its body, once, and its connection with it. The refund is made.
    Cut,
    /// The reply is a page in HTML, once. The refund is made.
    Nonsense,
    /// 503, once. The refund is made.
    Unavailable,
    /// The reply takes five seconds, once.
    Slow,
    /// 429, once.
    RateLimited,
    /// 401, once.
    Unauthorized,
}

impl Ending {
    /// All, by the word in the payment's name.
    pub const ALL: [(&'static str, Ending); 11] = [
        ("succeeded", Ending::Succeeded),
        ("declined", Ending::Declined),
        ("pending", Ending::Pending),
        ("already-refunded", Ending::AlreadyRefunded),
        ("unknown", Ending::Unknown),
        ("cut", Ending::Cut),
        ("nonsense", Ending::Nonsense),
        ("unavailable", Ending::Unavailable),
        ("slow", Ending::Slow),
        ("rate-limited", Ending::RateLimited),
        ("unauthorized", Ending::Unauthorized),
    ];

    /// What a payment of this name meets; none where it is no such name.
    pub fn of(payment: &str) -> Option<Ending> {
        let name = payment.strip_prefix(PREFIX)?;
        let is_named = |word: &str| {
            let rest = name.strip_prefix(word);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let mut all = Ending::ALL.into_iter();
        Some(all.find(|(word, _)| is_named(word))?.1)
    }

    /// Below the ids of such payments where ids are numbers.
    fn numbers(self) -> u64 {
        let nth = Ending::ALL.iter().position(|(_, ending)| *ending == self);
        NUMBERS + OF_A_KIND * (1 + u64::try_from(nth.unwrap_or_default()).unwrap_or_default())
    }

    /// The id of the nth such payment, from 1 on, where ids are numbers.
    pub fn number(self, nth: u64) -> String {
        (self.numbers() + nth).to_string()
    }

    fn of_number(id: &str) -> Option<Ending> {
        let number: u64 = id.parse().ok()?;
        let mut all = Ending::ALL.into_iter().map(|(_, ending)| ending);
        all.find(|ending| {
            let nth = number.checked_sub(ending.numbers());
            nth.is_some_and(|nth| (1..OF_A_KIND / 2).contains(&nth) && ending.number(nth) == id)
        })
    }

    fn fault(self) -> Option<Fault> {
        let says = |reply, booked| Some(Fault::Reply { reply, booked });
        match self {
            Ending::Succeeded | Ending::Declined | Ending::Pending | Ending::AlreadyRefunded => {
                None
            }
            // CANCEL, which leaves the other calls on the connection alone.
            Ending::Unknown => Some(Fault::StreamReset {
                code: 8,
                booked: true,
            }),
            Ending::Cut => Some(Fault::CutBody { booked: true }),
            Ending::Nonsense => says(Reply::json(200, "<html>We are sorry.</html>"), true),
            Ending::Unavailable => says(Reply::json(503, ""), true),
            Ending::Slow => Some(Fault::DelayReply(Duration::from_secs(5))),
            Ending::RateLimited => says(Reply::json(429, "").with("retry-after", "1"), false),
            Ending::Unauthorized => says(Reply::json(401, ""), false),
        }
    }
}

/// What a provider makes of such payments.
pub struct Sandbox {
    /// Whether its name is the payment's reference, since ids are numbers.
    pub is_reference: bool,
    /// What it does with the refund of one.
    pub behaviour: fn(Ending) -> Behaviour,
    /// What becomes of its reply where it has no word for a refund that is pending.
    pub pending: Option<fn() -> Fault>,
}

/// The payment of that name, or of that number where ids are numbers.
pub(crate) fn order(provider: Provider, name: &str) -> Option<Order> {
    let Declaration {
        sandbox,
        fresh,
        currency: (currency, exponent),
        ..
    } = provider.declared();
    let (ending, id, reference) = match Ending::of(name) {
        Some(ending) if sandbox.is_reference => {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            let nth = OF_A_KIND / 2 + hasher.finish() % (OF_A_KIND / 2);
            (ending, ending.number(nth), name.to_owned())
        }
        Some(ending) => (ending, name.to_owned(), String::new()),
        None if sandbox.is_reference => {
            let ending = Ending::of_number(name)?;
            (ending, name.to_owned(), (fresh.reference)(name))
        }
        None => return None,
    };
    Some(Order {
        provider,
        name: "sandbox",
        id: Cow::Owned(id),
        reference: Cow::Owned(reference),
        amount: 10_000,
        currency,
        exponent: *exponent,
        behaviour: (sandbox.behaviour)(ending),
    })
}

/// The payment of such a name that a refund is for, and what it meets the first time.
pub(crate) fn fault(provider: Provider, request: &Received) -> Option<(String, Fault)> {
    if !request.path.contains("refund") {
        return None;
    }
    let body = String::from_utf8_lossy(&request.body);
    let by_number = provider.declared().sandbox.is_reference;
    let ending = |part: &str| {
        let number = || Ending::of_number(part).filter(|_| by_number);
        Ending::of(part).or_else(number)
    };
    let names = |text: &str, marks: &[char]| {
        let mut parts = text.split(marks);
        parts.find_map(|part| Some((part.to_owned(), ending(part)?)))
    };
    let (name, ending) =
        names(&request.path, &['/', '?']).or_else(|| names(&body, &['"', '\\', ':', ',']))?;
    let pending = provider.declared().sandbox.pending;
    let fault = match (ending, pending) {
        (Ending::Pending, Some(pending)) => Some(pending()),
        (ending, _) => ending.fault(),
    };
    Some((name, fault?))
}
