//! Bank of Georgia, Payments API: "Refund".
//!
//! An OAuth2 bearer token, the amount in major units, the idempotency key in a header. The answer never says more than
//! "accepted": the end of a refund is not in it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Attempt, Capabilities, Doubt, Idempotency, Outcome, Payload, PaymentRule, Provider,
    ProviderReply, ProviderRequest, Reason, Receipt, Units, Word, by_status, identifier,
    is_verdict, plain_text, scalar,
};
use crate::refund::Refund;

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
};

/// The only documented `key` of an answer.
const RECEIVED: &str = "request_received";
/// Seen for an order that was refunded before; it can be our own lost refund.
const ALREADY_REFUNDED: &str = "already_refunded";

/// RFC 3986's unreserved characters stand for themselves.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A value as one path segment.
pub(super) fn path_segment(value: &str) -> String {
    utf8_percent_encode(value, PATH_SEGMENT).to_string()
}

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
