//! Time, by two clocks: the one that people read, which can be set, and the one that only goes
//! forward.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::problem::Retry;

/// A moment, read from both clocks at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Unix time in milliseconds: what is told to callers, and the time in which keys are valid.
    pub unix_ms: i64,
    /// Milliseconds since some moment before this process began, the same for all its workers.
    /// Nobody can set this clock, so leases and windows are measured by it.
    pub steady_ms: i64,
}

impl Now {
    /// This moment and so many milliseconds.
    pub fn plus(self, milliseconds: i64) -> Self {
        Now {
            unix_ms: self.unix_ms.saturating_add(milliseconds),
            steady_ms: self.steady_ms.saturating_add(milliseconds),
        }
    }
}

/// Until when the same call with the same key cannot refund twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resend {
    /// The provider has no keys: a second send may always be a second refund.
    Never,
    /// The provider forgets the key after this moment.
    Until(Now),
    /// The provider does not say that it ever forgets a key.
    Always,
}

impl Resend {
    /// Whether a second send is no second refund now.
    pub fn is_safe(self, now: Now) -> bool {
        match self {
            Resend::Never => false,
            Resend::Until(end) => now.steady_ms < end.steady_ms,
            Resend::Always => true,
        }
    }

    /// What a caller may do of whose refund nothing more is known: the contract's "by key".
    pub fn retry(self, now: Now) -> Retry {
        if self.is_safe(now) {
            Retry::SameKey
        } else {
            Retry::LookUp
        }
    }

    /// The contract's `retry_until`, where there is an end to it.
    pub fn retry_until(self) -> Option<String> {
        match self {
            Resend::Until(end) => rfc3339(end.unix_ms),
            Resend::Never | Resend::Always => None,
        }
    }

    /// The same by a steady clock that shows so many milliseconds more. What is told to callers stays.
    pub fn moved(self, milliseconds: i64) -> Self {
        match self {
            Resend::Until(end) => Resend::Until(Now {
                steady_ms: end.steady_ms.saturating_add(milliseconds),
                ..end
            }),
            Resend::Never | Resend::Always => self,
        }
    }

    /// The one that ends earlier.
    pub fn earlier(self, other: Self) -> Self {
        match (self, other) {
            (Resend::Never, _) | (_, Resend::Never) => Resend::Never,
            (Resend::Always, end) | (end, Resend::Always) => end,
            (Resend::Until(one), Resend::Until(two)) if two.steady_ms < one.steady_ms => other,
            (Resend::Until(_), Resend::Until(_)) => self,
        }
    }
}

fn rfc3339(unix_ms: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1_000))
        .ok()?
        .format(&Rfc3339)
        .ok()
}
