//! Bank of Georgia, Payments API: "Refund" and "Get payment details".
//!
//! An OAuth2 bearer token, the amount in major units, the idempotency key in a header. The answer never says more than
//! "accepted": the end of a refund stands among the order's actions, under the id that was given then.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Doubt, Finding, Idempotency, Outcome, Payload, PaymentRule,
    Provider, ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Units, Wanted, Word,
    by_status, differs, identifier, is_verdict, path_segment, plain_text, scalar,
};
use crate::json::Node;
use crate::money::{Currency, Money};
use crate::refund::{Refund, Status};

/// `Idempotency-Key`, "UUID v4". The page's parameter table has the amount as a number, without limits.
pub(super) static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: true,
    units: Units::Major {
        decimals: None,
        whole_digits: None,
    },
    reason: Reason::NotSent,
    idempotency: Idempotency::Uuid {
        v7: false,
        kept: None,
    },
    refunds: Refunds::Many { show_key: false },
};

/// The only documented `key` of an answer.
const RECEIVED: &str = "request_received";
/// Seen for an order that was refunded before; it can be our own lost refund.
const ALREADY_REFUNDED: &str = "already_refunded";

/// Where the answer with the id was lost.
const NO_ID: &str = "This provider tells refunds apart by their id alone, and none was given. The same refund call with the same \
                     key returns the first answer, and with it the id.";

/// The order's status between a refund that was accepted and its action. It lags behind, so that an order that does not say
/// it proves nothing.
const REFUND_REQUESTED: &str = "refund_requested";

/// The dialect.
#[derive(Debug)]
pub struct Bog;

#[derive(Serialize)]
struct Body<'a> {
    /// Left out for a full refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<&'a RawValue>,
}

impl Provider for Bog {
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> ProviderRequest {
        let order_id = refund.payment.id.as_deref().unwrap_or_default();
        ProviderRequest {
            path: format!("/payment/refund/{}", path_segment(order_id)),
            headers: vec![("idempotency-key", attempt.key.text())],
            body: Payload::Plain(crate::json_text(&Body {
                amount: refund.wire_amount.as_deref(),
            })),
        }
    }

    fn outcome(
        &self,
        _refund: &Refund,
        _attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        let word = word(reply);
        // No table of errors is published, so this word counts wherever it stands.
        let already = reply.mentions(ALREADY_REFUNDED);
        if already && (reply.is_success() || is_verdict(reply.status)) || reply.status == 409 {
            return Outcome::Unknown(Doubt::MaybeThere, word);
        }
        let body = reply.object();
        // Only here: the word that is shown can come from a member for errors.
        let key = body.and_then(|body| body.get("key")?.text());
        if !reply.is_success() {
            return match key.as_deref() {
                // A refusal around the word of success contradicts itself, whatever stands beside it.
                Some(RECEIVED) if is_verdict(reply.status) => {
                    Outcome::Unknown(Doubt::Unreadable, word)
                }
                _ => by_status(reply.status, word),
            };
        }
        let action_id = body.and_then(|body| identifier(body.get("action_id")));
        match (key.as_deref(), action_id) {
            (Some(RECEIVED), Some(action_id)) => Outcome::Pending(Receipt {
                id: Some(action_id),
                amount: None,
                created_at: None,
                word,
            }),
            _ => Outcome::Unknown(Doubt::Unreadable, word),
        }
    }

    fn look_up(&self, wanted: &Wanted) -> ProviderRequest {
        let order_id = wanted.payment.id.as_deref().unwrap_or_default();
        ProviderRequest {
            path: format!("/receipt/{}", path_segment(order_id)),
            headers: Vec::new(),
            body: Payload::None,
        }
    }

    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        if !reply.is_success() {
            return Finding::by_status(reply.status, word(reply));
        }
        match reply.object() {
            Some(order) => of_order(wanted, order),
            None => Finding::unreadable(word(reply)),
        }
    }
}

/// The action whose id is the refund's decides, whoever asked for it; nothing is guessed from amounts.
fn of_order(wanted: &Wanted, order: Node<'_>) -> Finding {
    let order_status = order
        .get("order_status")
        .and_then(|status| status.get("key"));
    let (Some(order_id), Some(order_status)) =
        (scalar(order.get("order_id")), scalar(order_status))
    else {
        return Finding::unreadable(Word::default());
    };
    // Null, or left out, before there are any.
    let actions = match order.get("actions") {
        None => Vec::new(),
        Some(actions) => match actions.items() {
            Some(actions) => actions,
            None => return Finding::unreadable(Word::default()),
        },
    };
    let mut ours = actions.into_iter().filter(|action| {
        let kind = action.get("action").and_then(Node::text);
        matches!(kind.as_deref(), Some("refund" | "partial_refund"))
            && wanted.id.is_some()
            && !differs(action.get("action_id"), wanted.id.as_deref())
            && action.get("action_id").is_some()
    });
    match (ours.next(), ours.next()) {
        (ours, _) if wanted.payment.id.as_deref() != Some(&*order_id) => {
            Finding::Unknown(Doubt::Mismatch, ours.map(said).unwrap_or_default())
        }
        (Some(action), None) => of_action(order, action),
        (Some(_), Some(_)) => Finding::unreadable(Word::default()),
        // There is no word for an action that is not finished.
        (None, _) if order_status == REFUND_REQUESTED && wanted.id.is_some() => Finding::Found {
            status: Status::Pending,
            receipt: Receipt {
                id: wanted.id.clone(),
                ..Receipt::default()
            },
            by_key: false,
        },
        (None, _) => Finding::Absent(
            Absence::Unproven(if wanted.id.is_some() {
                "The order does not show this refund, or not yet."
            } else {
                NO_ID
            }),
            Word::default(),
        ),
    }
}

fn said(action: Node<'_>) -> Word {
    Word {
        code: scalar(action.get("code")),
        message: scalar(action.get("code_description")),
    }
}

fn of_action(order: Node<'_>, action: Node<'_>) -> Finding {
    let word = said(action);
    let status = match action.get("status").and_then(Node::text).as_deref() {
        Some("completed") => Status::Succeeded,
        Some("rejected") => Status::Failed,
        _ => return Finding::unreadable(word),
    };
    let currency = order
        .get("purchase_units")
        .and_then(|units| units.get("currency_code")?.text());
    let amount = match (
        scalar(action.get("amount")),
        currency.and_then(|code| Currency::from_code(&code)),
    ) {
        (Some(amount), Some(currency)) => match Money::from_value(&amount, currency) {
            Ok(money) => Some(money),
            Err(_) => return Finding::unreadable(word),
        },
        _ => None,
    };
    Finding::Found {
        status,
        receipt: Receipt {
            id: scalar(action.get("action_id")),
            amount,
            created_at: scalar(action.get("zoned_action_date")),
            word,
        },
        by_key: false,
    }
}

fn word(reply: &ProviderReply<'_>) -> Word {
    let Some(body) = reply.object() else {
        return Word {
            code: None,
            message: plain_text(reply),
        };
    };
    Word {
        code: scalar(body.get("key")).or_else(|| scalar(body.get("error"))),
        message: scalar(body.get("message")).or_else(|| scalar(body.get("error_description"))),
    }
}
