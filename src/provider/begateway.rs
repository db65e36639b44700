//! beGateway: "Refund", and "Query" by uid and by tracking id.
//!
//! HTTP Basic, minor units, the idempotency key in the header `RequestID`, a reason that is never left out.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Doubt, Echo, Finding, Idempotency, Outcome, Payload,
    PaymentRule, Provider, ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Refusal,
    Units, Wanted, Word, by_status, differs, echoed_amount, identifier, is_verdict, path_segment,
    scalar,
};
use crate::json::Node;
use crate::money::Money;
use crate::refund::{Payment, Refund, Status};

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
    refunds: Refunds::Many { show_key: true },
};

/// The result code "duplicate of another refund": the other one may be ours.
const DUPLICATE: &str = "F.0108";

const NOT_THIS: &str = "The provider has no refund under this id.";
const NOT_ONE: &str =
    "The provider shows none of this payment's refunds under this name, or more than one.";

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

    fn look_up(&self, wanted: &Wanted) -> ProviderRequest {
        let key = wanted.key.map(|key| key.text());
        let path = match (&wanted.id, key.as_ref().or(wanted.reference.as_ref())) {
            (Some(uid), _) => path_segment(uid),
            (None, Some(name)) => format!("tracking_id/{}", path_segment(name)),
            (None, None) => String::new(),
        };
        ProviderRequest {
            path: format!("/beyag/transactions/{path}"),
            headers: Vec::new(),
            body: Payload::None,
        }
    }

    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        let Some(body) = reply.object() else {
            return if reply.is_success() {
                Finding::unreadable(Word::default())
            } else {
                Finding::by_status(reply.status, Word::default())
            };
        };
        let transaction = body.get("transaction").filter(|_| wanted.id.is_some());
        let word = word(transaction.unwrap_or_else(|| spoken(body)), body);
        if !reply.is_success() {
            return match Finding::by_status(reply.status, word) {
                // This address is the refund's own.
                Finding::Refused(Refusal::NotFound, word) if wanted.id.is_some() => {
                    Finding::Absent(Absence::Unproven(NOT_THIS), word)
                }
                finding => finding,
            };
        }
        match (&wanted.id, transaction, body.get("transactions")) {
            (Some(uid), Some(transaction), _) if transaction.is_plain_object() => {
                found_by_uid(wanted, uid, transaction, word)
            }
            (None, _, Some(list)) => found_by_name(wanted, body, list, word),
            _ => Finding::unreadable(word),
        }
    }
}

fn found_by_uid(wanted: &Wanted, uid: &str, transaction: Node<'_>, word: Word) -> Finding {
    if differs(transaction.get("uid"), Some(uid)) {
        return Finding::Unknown(Doubt::Mismatch, word);
    }
    if !is_refund(transaction) {
        return Finding::Absent(Absence::Unproven(NOT_THIS), word);
    }
    finding(wanted, transaction)
}

/// A list, the newest first. Everything that a refund's `tracking_id` names finds it: ours among them is the one that names the
/// key, or, without one, the reference in front of a key.
fn found_by_name(wanted: &Wanted, body: Node<'_>, list: Node<'_>, word: Word) -> Finding {
    let (Some(list), false) = (list.items(), body.get("errors").is_some()) else {
        return Finding::unreadable(word);
    };
    if list.is_empty() {
        return Finding::Absent(
            // The key went out with every send, so a send that arrived would be here.
            match wanted.key {
                Some(_) => Absence::Proven,
                None => Absence::Unproven(
                    "The provider has no transaction under this reference, and it may have gone out without it: look it up by \
                     key.",
                ),
            },
            word,
        );
    }
    if !list.iter().all(|transaction| transaction.is_plain_object()) {
        return Finding::unreadable(word);
    }
    let name = match (wanted.key, &wanted.reference) {
        (Some(key), _) => key.text(),
        (None, Some(reference)) => reference.clone(),
        (None, None) => return Finding::Absent(Absence::Unproven(NOT_ONE), word),
    };
    let ours = list.into_iter().filter(|transaction| {
        // Without a key another payment's refund under the same reference is a stranger's; with it, it is a contradiction.
        let stranger = wanted.key.is_none()
            && differs(transaction.get("parent_uid"), wanted.payment.id.as_deref());
        is_refund(*transaction) && !stranger && names(*transaction, &name)
    });
    match ours.collect::<Vec<_>>().as_slice() {
        [transaction] => finding(wanted, *transaction),
        _ => Finding::Absent(Absence::Unproven(NOT_ONE), word),
    }
}

/// Whether a transaction's `tracking_id` has this name among its own.
fn names(transaction: Node<'_>, name: &str) -> bool {
    let tracking_id = scalar(transaction.get("tracking_id")).unwrap_or_default();
    // A reference may hold a semicolon of its own, so the parts are compared and then what stands before the key.
    tracking_id.split(';').any(|part| part == name)
        || tracking_id
            .rsplit_once(';')
            .is_some_and(|(reference, _)| reference == name)
}

fn is_refund(transaction: Node<'_>) -> bool {
    let kind = transaction.get("type").and_then(Node::text);
    kind.as_deref() == Some("refund")
}

fn finding(wanted: &Wanted, transaction: Node<'_>) -> Finding {
    let by_key = wanted
        .key
        .is_some_and(|key| names(transaction, &key.text()));
    let word = word(transaction, transaction);
    if transaction.get("parent_uid").is_none() {
        return Finding::unreadable(word);
    }
    match read_transaction(&wanted.payment, None, transaction, word) {
        Ok((status, receipt)) => Finding::Found {
            status,
            receipt,
            by_key,
        },
        Err((doubt, word)) => Finding::Unknown(doubt, word),
    }
}

/// Errors come bare, in `response` and in `error`.
fn spoken(body: Node<'_>) -> Node<'_> {
    let inside = body.get("response").or_else(|| body.get("error"));
    inside.unwrap_or(body)
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
    let word = word(transaction.unwrap_or_else(|| spoken(body)), body);
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
    match read_transaction(&refund.payment, refund.asked(), transaction, word) {
        Ok((status, receipt)) => Outcome::of(status, receipt),
        Err((doubt, word)) => Outcome::Unknown(doubt, word),
    }
}

fn read_transaction(
    payment: &Payment,
    asked: Option<Money>,
    transaction: Node<'_>,
    word: Word,
) -> Result<(Status, Receipt), (Doubt, Word)> {
    let kind = transaction.get("type").map(|kind| kind.text());
    if kind.is_some_and(|kind| kind.as_deref() != Some("refund")) {
        return Err((Doubt::Unreadable, word));
    }
    if differs(transaction.get("parent_uid"), payment.id.as_deref()) {
        return Err((Doubt::Mismatch, word));
    }
    let amount = match echoed_amount(
        &CAPABILITIES,
        asked,
        transaction.get("amount"),
        transaction.get("currency"),
    ) {
        Echo::Same(amount) => amount,
        Echo::Other => return Err((Doubt::Mismatch, word)),
        Echo::Unreadable => return Err((Doubt::Unreadable, word)),
    };
    let receipt = Receipt {
        id: identifier(transaction.get("uid")),
        amount,
        created_at: scalar(transaction.get("created_at")),
        word: word.clone(),
    };
    match transaction.get("status").and_then(Node::text).as_deref() {
        Some("successful" | "pending" | "incomplete") if receipt.id.is_none() => {
            Err((Doubt::Unreadable, word))
        }
        Some("successful") => Ok((Status::Succeeded, receipt)),
        Some("pending" | "incomplete") => Ok((Status::Pending, receipt)),
        Some("failed" | "expired" | "deleted") => Ok((Status::Failed, receipt)),
        Some("error") => Err((Doubt::Failed, word)),
        _ => Err((Doubt::Unreadable, word)),
    }
}
