//! What was really refunded.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::Received;
use crate::orders::{Behaviour, Order};

/// One refund that a provider took on.
///
/// Also the ones whose outcome the reply leaves open, where the [`Behaviour`] of the order says
/// that they are booked: a test that counts money must see the worst case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refunded {
    /// Counts from 0 at this provider.
    pub sequence: u64,
    /// The request that booked it, by [`crate::Received::sequence`]; [`Refunded::BY_HAND`] where
    /// there was none.
    pub request: u64,
    /// When it was booked.
    pub at: SystemTime,
    /// The provider's identifier of the payment: order id, `parent_uid`.
    pub payment: String,
    /// Integer of the currency's minor units.
    pub minor_units: u64,
    /// ISO 4217.
    pub currency: &'static str,
    /// The idempotency key that came with it: `Idempotency-Key`, `transaction_id`, `RequestID`.
    pub key: Option<String>,
    /// The provider's identifier of the refund: `action_id`, transaction id, `uid`.
    pub refund: String,
    /// Whether it was accepted and then rejected after all: its money is back, and it counts as
    /// nothing.
    pub rejected: bool,
}

impl Refunded {
    /// In place of a request: see [`crate::Simulators::refund_by_hand`].
    pub const BY_HAND: u64 = u64::MAX;
}

#[derive(Default)]
pub(crate) struct Ledger {
    refunded: HashMap<String, u64>,
    entries: Vec<Refunded>,
}

impl Ledger {
    /// Minor units refunded so far.
    pub fn refunded(&self, order: &Order) -> u64 {
        match order.behaviour {
            Behaviour::AlreadyRefunded => order.amount,
            _ => self.refunded.get(&*order.id).copied().unwrap_or(0),
        }
    }

    /// Minor units that may still be refunded.
    pub fn left(&self, order: &Order) -> u64 {
        order.amount.saturating_sub(self.refunded(order))
    }

    /// Books a refund of what the caller found to be left. Without a request, it was made by hand.
    pub fn book(
        &mut self,
        request: Option<&Received>,
        order: &Order,
        minor_units: u64,
        key: Option<&str>,
        refund: &str,
    ) {
        *self.refunded.entry(order.id.to_string()).or_default() += minor_units;
        self.entries.push(Refunded {
            sequence: self.entries.len() as u64,
            request: request.map_or(Refunded::BY_HAND, |request| request.sequence),
            at: SystemTime::now(),
            payment: order.id.to_string(),
            minor_units,
            currency: order.currency,
            key: key.map(str::to_owned),
            refund: refund.to_owned(),
            rejected: false,
        });
    }

    /// Gives the money of a booked refund back; nothing, where none is booked under that
    /// identifier.
    pub fn reject(&mut self, refund: &str) {
        let booked = |entry: &&mut Refunded| entry.refund == refund && !entry.rejected;
        let Some(entry) = self.entries.iter_mut().find(booked) else {
            return;
        };
        entry.rejected = true;
        if let Some(refunded) = self.refunded.get_mut(&entry.payment) {
            *refunded -= entry.minor_units;
        }
    }

    pub fn entries(&self) -> Vec<Refunded> {
        self.entries.clone()
    }
}
