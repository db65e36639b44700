//! The orders that the providers know.
//!
//! Each provider has a table, in its file, and knows any number of [`fresh`] orders of 100.00 besides.
//! Any other id is not found.

use std::borrow::Cow;

use crate::{Declaration, Provider, sandbox};

/// What a provider does with a refund of an order that is otherwise in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Refunds. At BOG that is `request_received`; how it ended is told by a look-up, see
    /// [`crate::Simulators::settle`].
    Succeeds,
    /// BOG: paid by BOG authorization, where only the whole amount can be refunded (vendor page).
    WholeOnly,
    /// Answers 200 with this status in the place where the provider has it: Moyasar and beGateway
    /// and BBMSL `transaction.status` (at Moyasar of the refund in `transactions`).
    Answers {
        /// The provider's own word.
        status: &'static str,
        /// Whether it counts as refunded. Open outcomes (`pending`, `timeout`) do, as the worst
        /// case; `system_error` and `error` do not, so that both ends of "unknown" are
        /// there.
        booked: bool,
    },
    /// Refuses with the provider's own business refusal: BOG 400 (no page documents a decline),
    /// Moyasar 400, BBMSL a `responseCode` for want of unsettled balance.
    Refuses,
    /// Moyasar: another merchant's, 403.
    Forbidden,
    /// Was refunded whole before this simulator started.
    AlreadyRefunded,
    /// beGateway: refuses in this shape.
    Errors(ErrorShape),
    /// beGateway: refunds, and answers like an older deployment, without `currency` and with
    /// `message` and `ref_id` null.
    Older,
}

/// The shapes of beGateway's errors, all of them seen in public clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"message","errors":{"request":{"amount":["…"]}}}`
    Errors,
    /// `{"response":{"message","errors"}}`
    Response,
    /// `{"error":{"message","errors"}}`
    Error,
    /// `{"code":"F.0114","friendly_message","message","errors"}`
    Code,
    /// `message` is an object, the value in `errors` a string.
    Objects,
}

/// One order, paid in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// At which provider.
    pub provider: Provider,
    /// What a test calls it; see [`find`].
    pub name: &'static str,
    /// The provider's identifier: BOG `order_id`, Moyasar order `id`, beGateway `parent_uid`,
    /// BBMSL `orderId`.
    pub id: Cow<'static, str>,
    /// BBMSL's `merchantReference`; empty elsewhere.
    pub reference: Cow<'static, str>,
    /// Paid, in minor units.
    pub amount: u64,
    /// ISO 4217.
    pub currency: &'static str,
    /// Decimals of the currency.
    pub exponent: u8,
    /// What a refund of it meets.
    pub behaviour: Behaviour,
}

pub(crate) const fn order(
    provider: Provider,
    name: &'static str,
    id: &'static str,
    amount: u64,
    (currency, exponent): (&'static str, u8),
    behaviour: Behaviour,
) -> Order {
    Order {
        provider,
        name,
        id: Cow::Borrowed(id),
        reference: Cow::Borrowed(""),
        amount,
        currency,
        exponent,
        behaviour,
    }
}

pub(crate) const fn answers(status: &'static str, booked: bool) -> Behaviour {
    Behaviour::Answers { status, booked }
}

pub(crate) const GEL: (&str, u8) = ("GEL", 2);
pub(crate) const SAR: (&str, u8) = ("SAR", 2);
pub(crate) const USD: (&str, u8) = ("USD", 2);
pub(crate) const HKD: (&str, u8) = ("HKD", 2);
pub(crate) const EUR: (&str, u8) = ("EUR", 2);
pub(crate) const KWD: (&str, u8) = ("KWD", 3);
pub(crate) const JPY: (&str, u8) = ("JPY", 0);

/// All orders that have a name. `page` is the one of the vendor page's own example, where the page
/// names one.
pub fn known() -> impl Iterator<Item = &'static Order> {
    Provider::REFUNDING
        .into_iter()
        .flat_map(|provider| provider.declared().orders)
}

/// The id of the nth fresh order of a provider, 100.00 each. (The numbers that BBMSL takes are fresh
/// orders everywhere, so that one call can be shown at all providers.)
pub fn fresh(provider: Provider, nth: u64) -> String {
    (provider.declared().fresh.id)(nth)
}

/// So many and more are numbers of fresh orders, below 1000000000.
pub(crate) const FRESH_NUMBER: u64 = 1_000_000;

/// A known order by provider and name.
pub fn find(provider: Provider, name: &str) -> Option<&'static Order> {
    let mut orders = provider.declared().orders.iter();
    orders.find(|order| order.name == name)
}

/// The order of that id, known or fresh.
pub(crate) fn by_id(provider: Provider, id: &str) -> Option<Order> {
    let Declaration {
        orders,
        fresh,
        currency: (currency, exponent),
        ..
    } = provider.declared();
    if let Some(known) = orders.iter().find(|order| order.id == id) {
        return Some(known.clone());
    }
    let is_number = id.parse::<u64>().is_ok_and(|number| {
        (FRESH_NUMBER..1_000_000_000).contains(&number) && number.to_string() == id
    });
    if let Some(order) = sandbox::order(provider, id) {
        // Where ids are numbers, a name is a reference.
        return (order.id == id).then_some(order);
    }
    (is_number || (fresh.is)(id)).then(|| Order {
        provider,
        name: "fresh",
        id: Cow::Owned(id.to_owned()),
        reference: Cow::Owned((fresh.reference)(id)),
        amount: 10_000,
        currency,
        exponent: *exponent,
        behaviour: Behaviour::Succeeds,
    })
}

/// The order of that [`Order::reference`], known or fresh. `id` takes the id out of a fresh one's.
pub(crate) fn by_reference(
    provider: Provider,
    reference: &str,
    id: impl FnOnce(&str) -> Option<&str>,
) -> Option<Order> {
    if provider.declared().sandbox.is_reference
        && let Some(order) = sandbox::order(provider, reference)
        && order.reference == reference
    {
        return Some(order);
    }
    let mut orders = provider.declared().orders.iter();
    orders
        .find(|order| order.reference == reference)
        .cloned()
        .or_else(|| by_id(provider, id(reference)?))
        .filter(|order| order.reference == reference)
}
