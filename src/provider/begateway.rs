//! beGateway: "Refund".
//!
//! HTTP Basic, minor units, the idempotency key in the header `RequestID`, a reason that is never left out.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Attempt, Capabilities, Doubt, Echo, Idempotency, Outcome, Payload, PaymentRule, Provider,
    ProviderReply, ProviderRequest, Reason, Receipt, Refusal, Units, Word, by_status, differs,
    echoed_amount, identifier, is_verdict, scalar,
};
use crate::json::Node;
use crate::money::Money;
use crate::refund::Refund;

/// `amount`: an integer "in minimal currency units". `RequestID` is kept for 24 hours. A few currencies have other
/// decimals in their documentation than in ISO 4217.
pub(super) static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: true,
    units: Units::Minor {
        max: u64::MAX,
        digits: &[("IDR", 0), ("IQD", 0), ("CVE", 0), ("CLF", 0)],
    },
    reason: Reason::Required,
    idempotency: Idempotency::Uuid {
        v7: false,
        kept: Some(24 * 60 * 60),
    },
};

/// The result code "duplicate of another refund": the other one may be ours.
const DUPLICATE: &str = "F.0108";

/// The dialect.
#[derive(Debug)]
pub struct Begateway;

#[derive(Serialize)]
struct Body<'a> {
    request: Request<'a>,
}

#[derive(Serialize)]
struct Request<'a> {
    parent_uid: &'a str,
    reason: &'a str,
    /// Left out for a full refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<&'a RawValue>,
    /// Several values are separated by semicolons, and the vendor searches by any of them.
    tracking_id: String,
}

impl Provider for Begateway {
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> ProviderRequest {
        let key = attempt.key.text();
        let body = Body {
            request: Request {
                parent_uid: refund.payment.id.as_deref().unwrap_or_default(),
                reason: refund
                    .reason
                    .as_deref()
                    .or(attempt.default_reason)
                    .unwrap_or_default(),
                amount: refund.wire_amount.as_deref(),
                tracking_id: match &refund.reference {
                    Some(reference) => format!("{reference};{key}"),
                    None => key.clone(),
                },
            },
        };
        ProviderRequest {
            path: "/beyag/transactions/refunds".to_owned(),
            headers: vec![("requestid", key)],
            body: Payload::Plain(crate::json_text(&body)),
        }
    }

    fn outcome(
        &self,
        refund: &Refund,
        _attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        let outcome = read(refund, reply);
        // The words of a refusal come in many shapes, so the code counts wherever it stands.
        match outcome {
            Outcome::Refused(Refusal::Declined | Refusal::Rejected | Refusal::NotFound, word)
            | Outcome::Unknown(Doubt::Unreadable, word)
                if reply.mentions(DUPLICATE) =>
            {
                Outcome::Unknown(Doubt::MaybeThere, word)
            }
            outcome => outcome,
        }
    }
}

fn read(refund: &Refund, reply: &ProviderReply<'_>) -> Outcome {
    let Some(body) = reply.object() else {
        return if reply.is_success() {
            Outcome::Unknown(Doubt::Unreadable, Word::default())
        } else {
            by_status(reply.status, Word::default())
        };
    };
    let transaction = body.get("transaction");
    // Errors come bare, in `response` and in `error`.
    let spoken = [transaction, body.get("response"), body.get("error")]
        .into_iter()
        .flatten()
        .next()
        .unwrap_or(body);
    let word = word(spoken, body);
    match transaction {
        Some(transaction) if reply.is_success() && transaction.is_plain_object() => {
            of_transaction(refund, transaction, word)
        }
        _ if reply.is_success() => Outcome::Unknown(Doubt::Unreadable, word),
        // A refusal around a refund that did not fail contradicts itself.
        Some(transaction)
            if is_verdict(reply.status)
                && !matches!(
                    of_transaction(refund, transaction, Word::default()),
                    Outcome::Refused(..)
                ) =>
        {
            Outcome::Unknown(Doubt::Unreadable, word)
        }
        _ => by_status(reply.status, word),
    }
}

/// `message` may be an object; then `friendly_message` is what is left to show.
fn word(spoken: Node<'_>, body: Node<'_>) -> Word {
    let said = |name| scalar(spoken.get(name)).or_else(|| scalar(body.get(name)));
    Word {
        code: said("code"),
        message: said("message").or_else(|| said("friendly_message")),
    }
}

fn of_transaction(refund: &Refund, transaction: Node<'_>, word: Word) -> Outcome {
    let kind = transaction.get("type").map(|kind| kind.text());
    if kind.is_some_and(|kind| kind.as_deref() != Some("refund")) {
        return Outcome::Unknown(Doubt::Unreadable, word);
    }
    if differs(transaction.get("parent_uid"), refund.payment.id.as_deref()) {
        return Outcome::Unknown(Doubt::Mismatch, word);
    }
    let read = |number: &str, currency| {
        Money::from_minor(number, CAPABILITIES.minor_digits(currency), currency)
    };
    let amount = match echoed_amount(
        refund,
        transaction.get("amount"),
        transaction.get("currency"),
        read,
    ) {
        Echo::Same(amount) => amount,
        Echo::Other => return Outcome::Unknown(Doubt::Mismatch, word),
        Echo::Unreadable => return Outcome::Unknown(Doubt::Unreadable, word),
    };
    let receipt = Receipt {
        id: identifier(transaction.get("uid")),
        amount,
        created_at: scalar(transaction.get("created_at")),
        word: word.clone(),
    };
    match transaction.get("status").and_then(Node::text).as_deref() {
        Some("successful" | "pending" | "incomplete") if receipt.id.is_none() => {
            Outcome::Unknown(Doubt::Unreadable, word)
        }
        Some("successful") => Outcome::Refunded(receipt),
        Some("pending" | "incomplete") => Outcome::Pending(receipt),
        Some("failed" | "expired" | "deleted") => Outcome::Refused(Refusal::Declined, word),
        Some("error") => Outcome::Unknown(Doubt::Failed, word),
        _ => Outcome::Unknown(Doubt::Unreadable, word),
    }
}
