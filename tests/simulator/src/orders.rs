//! The orders that the providers know.
//!
//! [`KNOWN`] is a table; besides it, each provider knows any number of [`fresh`] orders of 100.00.
//! Any other id is not found.

use std::borrow::Cow;

use crate::Provider;

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

const fn order(
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

const fn bbmsl(
    name: &'static str,
    id: &'static str,
    reference: &'static str,
    amount: u64,
    (currency, exponent): (&'static str, u8),
    behaviour: Behaviour,
) -> Order {
    Order {
        provider: Provider::Bbmsl,
        name,
        id: Cow::Borrowed(id),
        reference: Cow::Borrowed(reference),
        amount,
        currency,
        exponent,
        behaviour,
    }
}

const fn answers(status: &'static str, booked: bool) -> Behaviour {
    Behaviour::Answers { status, booked }
}

const GEL: (&str, u8) = ("GEL", 2);
const SAR: (&str, u8) = ("SAR", 2);
const USD: (&str, u8) = ("USD", 2);
const HKD: (&str, u8) = ("HKD", 2);
const EUR: (&str, u8) = ("EUR", 2);
const KWD: (&str, u8) = ("KWD", 3);
const JPY: (&str, u8) = ("JPY", 0);

use Behaviour::{AlreadyRefunded, Errors, Forbidden, Older, Refuses, Succeeds, WholeOnly};
use Provider::{Begateway, Bog, Moyasar};

/// Every order by name. `page` is the one of the vendor page's own example, where the page names one.
#[rustfmt::skip]
pub const KNOWN: &[Order] = &[
    order(Bog, "page", "bog-card-gel", 10_000, GEL, Succeeds),
    order(Bog, "kwd", "bog-card-kwd", 12_345, KWD, Succeeds),
    order(Bog, "jpy", "bog-card-jpy", 1_500, JPY, Succeeds),
    order(Bog, "eur", "bog-card-eur", 2_050, EUR, Succeeds),
    // Percent-encoded in the path: `ord%2F1%20x`.
    order(Bog, "encoded", "ord/1 x", 10_000, GEL, Succeeds),
    order(Bog, "whole-only", "bog-authorization", 10_000, GEL, WholeOnly),
    order(Bog, "refused", "bog-refused", 10_000, GEL, Refuses),
    order(Bog, "already-refunded", "bog-already-refunded", 10_000, GEL, AlreadyRefunded),

    order(Moyasar, "page", "0191f5a7-44d3-7430-8739-2d80821416bf", 262_346, SAR, Succeeds),
    order(Moyasar, "kwd", "0191f5a7-0000-7000-8000-000000000001", 12_345, KWD, Succeeds),
    order(Moyasar, "jpy", "0191f5a7-0000-7000-8000-000000000002", 1_500, JPY, Succeeds),
    order(Moyasar, "declined", "0191f5a7-0000-7000-8000-000000000003", 10_000, SAR, answers("failed", false)),
    order(Moyasar, "pending", "0191f5a7-0000-7000-8000-000000000004", 10_000, SAR, answers("initiated", true)),
    order(Moyasar, "timeout", "0191f5a7-0000-7000-8000-000000000005", 10_000, SAR, answers("timeout", true)),
    order(Moyasar, "system-error", "0191f5a7-0000-7000-8000-000000000006", 10_000, SAR, answers("system_error", false)),
    order(Moyasar, "strange", "0191f5a7-0000-7000-8000-000000000007", 10_000, SAR, answers("queued", true)),
    order(Moyasar, "refused", "0191f5a7-0000-7000-8000-000000000008", 10_000, SAR, Refuses),
    order(Moyasar, "forbidden", "0191f5a7-0000-7000-8000-000000000009", 10_000, SAR, Forbidden),
    order(Moyasar, "already-refunded", "0191f5a7-0000-7000-8000-00000000000a", 10_000, SAR, AlreadyRefunded),

    order(Begateway, "page", "1-310b0da80b", 10_000, USD, Succeeds),
    order(Begateway, "kwd", "1-kwd", 12_345, KWD, Succeeds),
    order(Begateway, "jpy", "1-jpy", 1_500, JPY, Succeeds),
    order(Begateway, "older", "1-older", 10_000, USD, Older),
    order(Begateway, "declined", "1-failed", 10_000, USD, answers("failed", false)),
    order(Begateway, "expired", "1-expired", 10_000, USD, answers("expired", false)),
    order(Begateway, "deleted", "1-deleted", 10_000, USD, answers("deleted", false)),
    order(Begateway, "pending", "1-pending", 10_000, USD, answers("pending", true)),
    order(Begateway, "incomplete", "1-incomplete", 10_000, USD, answers("incomplete", true)),
    order(Begateway, "error", "1-error", 10_000, USD, answers("error", false)),
    order(Begateway, "strange", "1-strange", 10_000, USD, answers("queued", true)),
    order(Begateway, "already-refunded", "1-already-refunded", 10_000, USD, AlreadyRefunded),
    order(Begateway, "errors", "1-shape-errors", 10_000, USD, Errors(ErrorShape::Errors)),
    order(Begateway, "errors-response", "1-shape-response", 10_000, USD, Errors(ErrorShape::Response)),
    order(Begateway, "errors-error", "1-shape-error", 10_000, USD, Errors(ErrorShape::Error)),
    order(Begateway, "errors-code", "1-shape-code", 10_000, USD, Errors(ErrorShape::Code)),
    order(Begateway, "errors-objects", "1-shape-objects", 10_000, USD, Errors(ErrorShape::Objects)),

    bbmsl("page", "4922", "1655817171", 1_500, USD, Succeeds),
    bbmsl("hkd", "4923", "ref-hkd", 10_000, HKD, Succeeds),
    // Number(9,2) has no third decimal: only tens of fils can be refunded.
    bbmsl("kwd", "4924", "ref-kwd", 12_340, KWD, Succeeds),
    bbmsl("jpy", "4925", "ref-jpy", 1_500, JPY, Succeeds),
    bbmsl("declined", "4926", "ref-declined", 10_000, HKD, answers("DECLINED", false)),
    bbmsl("strange", "4927", "ref-strange", 10_000, HKD, answers("PROCESSING", true)),
    bbmsl("refused", "4928", "ref-no-balance", 10_000, HKD, Refuses),
    bbmsl("already-refunded", "4929", "ref-already-refunded", 10_000, HKD, AlreadyRefunded),
];

/// The id of the nth fresh order of a provider, 100.00 each (the numbers that BBMSL takes are fresh
/// orders everywhere, so that one call can be shown at all four): BOG `order-{nth}` in GEL, Moyasar
/// `00000000-0000-4000-8000-{nth, 12 hex digits}` in SAR, beGateway `order-{nth}` in USD, BBMSL
/// 1000000 + nth (below 1000000000), with the `merchantReference` `order-{orderId}`, in HKD.
pub fn fresh(provider: Provider, nth: u64) -> String {
    match provider {
        Provider::Bog | Provider::BogToken | Provider::Begateway => format!("order-{nth}"),
        Provider::Moyasar => format!("{FRESH_UUID}{nth:012x}"),
        Provider::Bbmsl => (FRESH_NUMBER + nth).to_string(),
    }
}

const FRESH_UUID: &str = "00000000-0000-4000-8000-";
const FRESH_NUMBER: u64 = 1_000_000;

/// A known order by provider and name.
pub fn find(provider: Provider, name: &str) -> Option<&'static Order> {
    KNOWN
        .iter()
        .find(|order| order.provider == provider && order.name == name)
}

/// The order of that id, known or fresh.
pub(crate) fn by_id(provider: Provider, id: &str) -> Option<Order> {
    if let Some(known) = KNOWN
        .iter()
        .find(|order| order.provider == provider && order.id == id)
    {
        return Some(known.clone());
    }
    let is_number = id.parse::<u64>().is_ok_and(|number| {
        (FRESH_NUMBER..1_000_000_000).contains(&number) && number.to_string() == id
    });
    let (fresh, currency) = match provider {
        Provider::Bog => (is_number || id.starts_with("order-"), GEL),
        Provider::BogToken => (false, GEL),
        Provider::Moyasar => (is_number || id.starts_with(FRESH_UUID), SAR),
        Provider::Begateway => (is_number || id.starts_with("order-"), USD),
        Provider::Bbmsl => (is_number, HKD),
    };
    fresh.then(|| Order {
        provider,
        name: "fresh",
        id: Cow::Owned(id.to_owned()),
        reference: match provider {
            Provider::Bbmsl => Cow::Owned(format!("order-{id}")),
            Provider::Bog | Provider::BogToken | Provider::Moyasar | Provider::Begateway => {
                Cow::Borrowed("")
            }
        },
        amount: 10_000,
        currency: currency.0,
        exponent: currency.1,
        behaviour: Succeeds,
    })
}

/// BBMSL's order of that `merchantReference`, known or fresh.
pub(crate) fn by_reference(reference: &str) -> Option<Order> {
    KNOWN
        .iter()
        .find(|order| order.provider == Provider::Bbmsl && order.reference == reference)
        .cloned()
        .or_else(|| by_id(Provider::Bbmsl, reference.strip_prefix("order-")?))
        .filter(|order| order.reference == reference)
}
