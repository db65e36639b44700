//! Moyasar Payment Gateway (MPG): "refund".
//!
//! A static bearer key, minor units, the idempotency key in the body. HTTP 200 says that a refund was tried; what became
//! of it stands in the order's `transactions`.

use serde::Serialize;
use serde_json::value::RawValue;

use super::bog::path_segment;
use super::{
    Attempt, Capabilities, Doubt, Echo, Idempotency, Outcome, Payload, PaymentRule, Provider,
    ProviderReply, ProviderRequest, Reason, Receipt, Refusal, Units, Word, by_status, differs,
    echoed_amount, is_verdict, scalar,
};
use crate::json::Node;
use crate::money::Money;
use crate::refund::Refund;

/// `amount`: an integer of at least 1, required; the sibling calls' pages cap it at 100000000. `transaction_id`: a UUID
/// that the client makes once per operation.
pub(super) static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: false,
    units: Units::Minor {
        max: 100_000_000,
        digits: &[],
    },
    reason: Reason::NotSent,
    idempotency: Idempotency::Uuid {
        v7: true,
        kept: None,
    },
};

/// The page's 400 for a `transaction_id` that is still at work: "Initial request is still processing."
const STILL_PROCESSING: &str = "still processing";

/// The dialect.
#[derive(Debug)]
pub struct Moyasar;

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<&'a RawValue>,
    transaction_id: String,
}

impl Provider for Moyasar {
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> ProviderRequest {
        let order_id = refund.payment.id.as_deref().unwrap_or_default();
        ProviderRequest {
            path: format!("/v1/orders/{}/refund", path_segment(order_id)),
            headers: Vec::new(),
            body: Payload::Plain(crate::json_text(&Body {
                amount: refund.wire_amount.as_deref(),
                transaction_id: attempt.key.text(),
            })),
        }
    }

    fn outcome(
        &self,
        refund: &Refund,
        attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        if reply.is_success() {
            return match order(reply) {
                Some(order) => of_order(refund, &attempt.key.text(), order),
                None => Outcome::Unknown(Doubt::Unreadable, Word::default()),
            };
        }
        let word = Word {
            code: None,
            message: reply.object().and_then(|body| scalar(body.get("message"))),
        };
        if is_verdict(reply.status) && reply.mentions(STILL_PROCESSING) {
            return Outcome::Unknown(Doubt::InProgress, word);
        }
        by_status(reply.status, word)
    }
}

/// The order object. The page's schema shows an array, its example none: one element in an array is taken, too.
fn order<'a>(reply: &ProviderReply<'a>) -> Option<Node<'a>> {
    let body = Node::parse(reply.body).ok()?;
    let order = match body.items() {
        Some(items) => match items.as_slice() {
            [order] => *order,
            _ => return None,
        },
        None => body,
    };
    order.is_plain_object().then_some(order)
}

/// The refund of this order that is ours: the transaction of type `refund` under the id that was sent.
fn of_order(refund: &Refund, key: &str, order: Node<'_>) -> Outcome {
    let transactions = order
        .get("transactions")
        .and_then(Node::items)
        .unwrap_or_default();
    let text = |node: Node<'_>, name| {
        let text = node.get(name).and_then(Node::text);
        text.unwrap_or_default().into_owned()
    };
    let mut ours = transactions.into_iter().filter(|transaction| {
        text(*transaction, "id").eq_ignore_ascii_case(key) && text(*transaction, "type") == "refund"
    });
    let found = match (ours.next(), ours.next()) {
        (Some(transaction), None) if transaction.is_plain_object() => Some(transaction),
        _ => None,
    };
    let said = |name| scalar(found.and_then(|transaction| transaction.get(name)));
    let word = Word {
        code: said("response_code"),
        message: said("message"),
    };
    if differs(order.get("id"), refund.payment.id.as_deref()) {
        return Outcome::Unknown(Doubt::Mismatch, word);
    }
    let Some(transaction) = found else {
        return Outcome::Unknown(Doubt::Unreadable, word);
    };
    let read = |number: &str, currency| {
        Money::from_minor(number, CAPABILITIES.minor_digits(currency), currency)
    };
    let amount = match echoed_amount(
        refund,
        transaction.get("amount"),
        order.get("currency"),
        read,
    ) {
        Echo::Same(amount) => amount,
        Echo::Other => return Outcome::Unknown(Doubt::Mismatch, word),
        Echo::Unreadable => return Outcome::Unknown(Doubt::Unreadable, word),
    };
    let receipt = Receipt {
        id: scalar(transaction.get("id")),
        amount,
        created_at: scalar(transaction.get("created_at")),
        word: word.clone(),
    };
    match text(transaction, "status").as_str() {
        "approved" => Outcome::Refunded(receipt),
        "initiated" => Outcome::Pending(receipt),
        "failed" => Outcome::Refused(Refusal::Declined, word),
        // The acquirer's answer is missing: the money may be on its way.
        "timeout" | "system_error" => Outcome::Unknown(Doubt::Failed, word),
        _ => Outcome::Unknown(Doubt::Unreadable, word),
    }
}
