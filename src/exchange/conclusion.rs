//! What a look-up means for the key that it names, and what was remembered of that key.

use crate::call::about_payment;
use crate::clock::Now;
use crate::config::ProviderEntry;
use crate::guard::{Concluded, Digest, End, Guard, Past, Recalled, Recollection, Settled};
use crate::problem::Problem;
use crate::provider::{Refunds, Wanted};

/// What a look-up means for the key that it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conclusion {
    /// The caller's key.
    pub key: Digest,
    /// What the guard remembered when the provider was asked.
    pub past: Recollection,
    /// How the refund has ended.
    pub end: End,
    /// What the next refund call with this key is answered: status and body.
    pub answer: (u16, String),
    /// The provider's id of the refund.
    pub id: Option<String>,
    /// What the provider calls the payment, where nothing but its payment tells whose the refund
    /// is: it holds only if no other key was ever sent for that payment. (A refusal is in
    /// doubt unless one was.)
    pub alone: Option<Vec<Digest>>,
    /// What is true instead where it does not hold; none where it is true all the same, by the
    /// refund's own identity.
    pub otherwise: Option<Problem>,
}

impl Conclusion {
    /// Tells it to the guard.
    pub(super) fn tell(&self, guard: &Guard<'_>, lease: Option<u64>, now: Now) -> Concluded {
        let alone = self.alone.as_deref();
        let is_anothers = alone.is_some_and(|names| match self.end {
            End::Unknown => guard.has_another(&self.key, names),
            _ => !guard.is_alone(&self.key, names),
        });
        if is_anothers {
            return Concluded::Overtaken;
        }
        let (Some(lease), (status, body)) = (lease, &self.answer) else {
            return Concluded::Overtaken;
        };
        let settled = Settled {
            end: self.end,
            answer: (*status, body),
            id: self.id.as_deref(),
            sent: false,
            refused: self.end == End::Unknown,
            names: alone.unwrap_or_default(),
        };
        guard.conclude(&self.key, &self.past, lease, &settled, now)
    }
}

impl Recollection {
    /// What the gateway knows of a refund is asked for as well.
    pub(super) fn add_to(&self, wanted: &mut Wanted, entry: &ProviderEntry) {
        let Some(known) = self.known.as_ref() else {
            return;
        };
        if !known.is_about(entry, wanted) {
            return;
        }
        wanted.referenced |= known.referenced;
        let by_id = entry.dialect.capabilities().refunds == Refunds::Many { show_key: false };
        if by_id && wanted.id.is_none() {
            wanted.id = known.id();
        }
    }
}

impl Recalled {
    /// The refund's id at its provider, where an answer gave one.
    pub(super) fn id(&self) -> Option<String> {
        self.answer.as_ref()?.id.clone()
    }

    /// Whether it is about this payment: by every name that is known on both sides, and at least by
    /// one.
    pub(super) fn is_about(&self, entry: &ProviderEntry, wanted: &Wanted) -> bool {
        let asked = about_payment(entry, &wanted.payment.id, &wanted.payment.reference);
        let pairs = [
            (asked.id, self.about.id),
            (asked.reference, self.about.reference),
        ];
        let mut known = pairs
            .into_iter()
            .filter(|(one, other)| *one != [0; 8] && *other != [0; 8])
            .map(|(one, other)| one == other);
        known.next() == Some(true) && known.all(|same| same)
    }
}

impl Recalled {
    /// Whether a refund of its payment, which shows no key, may be its own: something was sent
    /// under it, and the provider has refused none of that.
    pub(super) fn may_be_the_refund(&self) -> bool {
        match self.past {
            Past::Pending | Past::Unknown | Past::Absent | Past::Refunded => !self.refused,
            Past::Free | Past::Refused => false,
        }
    }
}
