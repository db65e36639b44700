//! beGateway: "Refund", and "Query" by uid and by tracking id.
//!
//! HTTP Basic, minor units, the idempotency key in the header `RequestID`, a reason that is never
//! left out.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Configured, Counting, Doubt, Echo, Finding, Idempotency, Look,
    MinorUnits, Names, Outcome, Payload, PaymentRule, Provider, ProviderKind, ProviderMessage,
    ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Refusal, Shown, ShownBy, Units,
    Wanted, by_status, differs, echoed_amount, field_errors, identifier, message_of, path_segment,
    scalar,
};
use crate::credentials::Auth;
use crate::json::Node;
use crate::money::{Currency, Money};
use crate::reader::{Object, Reader};
use crate::refund::{Payment, Refund, Status};

/// `RequestID` is kept for 24 hours.
static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: true,
    units: UNITS,
    reason: Reason::Required,
    idempotency: Idempotency::Uuid {
        v7: false,
        kept: Some(24 * 60 * 60),
    },
    refunds: Refunds::Many { show_key: true },
    takes_reference: true,
    shows_currency: true,
    taken: &["successful", "pending", "incomplete"],
};

/// `amount`: an integer "in minimal currency units". The documentation has other decimals than ISO
/// 4217 for four currencies. The vendor's own PHP client (begateway-api-php, `lib/Money.php`,
/// b64030e) has the same four, and eight more in which it differs from ISO 4217: IRR, KPW, LAK, LBP
/// and MMK without decimals, MOP with one, UGX and UYW with two. No page of the vendor's
/// settles those, and a wrong factor would be echoed back wrongly as well.
const UNITS: Units = Units::Minor {
    max: u64::MAX,
    digits: &[("IDR", 0), ("IQD", 0), ("CVE", 0), ("CLF", 0)],
    disputed: &["IRR", "KPW", "LAK", "LBP", "MMK", "MOP", "UGX", "UYW"],
};

/// The result code "duplicate of another refund": the other one may be ours.
const DUPLICATE: &str = "F.0108";

const NOT_THIS: &str = "The provider has no refund under this id.";
const NONE_BY_REFERENCE: &str =
    "The provider has no transaction under this reference. That proves nothing: look it up by key.";
const REFERENCE_WENT_OUT: &str = "The provider has no transaction under this key. The refund went out with a reference in front of \
                                  the key, and no page says that the provider then finds it by the key.";
const NOT_ONE: &str =
    "The provider shows none of this payment's refunds under this name, or more than one.";

/// The dialect.
#[derive(Debug)]
pub struct Begateway {
    counting: Counting,
}

/// What the filter knows of it.
pub static KIND: ProviderKind = ProviderKind {
    name: "begateway",
    capabilities: &CAPABILITIES,
    configure,
};

fn configure(
    reader: &mut Reader<'_>,
    object: &mut Object<'_>,
    minor_units: MinorUnits,
) -> Option<Configured> {
    let dialect = Begateway {
        counting: Counting {
            units: UNITS,
            configured: minor_units,
        },
    };
    let auth = reader.injected_or(object, |reader, object| {
        reader.basic(object, "shop_id", "secret_key")
    })?;
    Some(Configured {
        dialect: Box::new(dialect),
        account: match &auth {
            Auth::Basic { user, .. } => Some(user.clone()),
            _ => None,
        },
        auth,
    })
}

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
    /// Several values are separated by semicolons, and the vendor's back office searches by any of
    /// them. Only the last one is the key: what stands before it is the caller's.
    tracking_id: String,
}

impl Provider for Begateway {
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    fn counting(&self) -> &Counting {
        &self.counting
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> Option<ProviderRequest> {
        let key = attempt.key.text();
        let body = Body {
            request: Request {
                parent_uid: refund.payment.id.as_deref()?,
                reason: refund.reason.as_deref().or(attempt.default_reason)?,
                amount: refund.wire_amount.as_deref(),
                tracking_id: match &refund.reference {
                    Some(reference) => format!("{reference};{key}"),
                    None => key.clone(),
                },
            },
        };
        Some(ProviderRequest {
            path: "/beyag/transactions/refunds".to_owned(),
            headers: vec![("requestid", key)],
            body: Payload::Plain(crate::json_text(&body)),
        })
    }

    fn outcome(
        &self,
        refund: &Refund,
        attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        let outcome = self.read(refund, &attempt.key.text(), reply);
        // The words of a refusal come in many shapes, so the code counts wherever it stands.
        match outcome {
            Outcome::Refused(_, word) | Outcome::Unknown(Doubt::Unreadable, word)
                if reply.mentions(DUPLICATE) =>
            {
                Outcome::Unknown(Doubt::MaybeThere, word)
            }
            outcome => outcome,
        }
    }

    fn look_up(&self, wanted: &Wanted) -> Option<ProviderRequest> {
        let key = wanted.key.map(|key| key.text());
        let path = match (&wanted.id, key.as_ref().or(wanted.reference.as_ref())) {
            (Some(uid), _) => path_segment(uid),
            (None, Some(name)) => format!("tracking_id/{}", path_segment(name)),
            (None, None) => return None,
        };
        Some(query(path))
    }

    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        let Some(body) = reply.object() else {
            return if reply.is_success() {
                Finding::unreadable(ProviderMessage::default())
            } else {
                Finding::by_status(reply.status, ProviderMessage::default())
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
        if has_errors(body) {
            return Finding::unreadable(word);
        }
        match (&wanted.id, transaction, body.get("transactions")) {
            (Some(uid), Some(transaction), _) if transaction.is_plain_object() => {
                self.found_by_uid(wanted, uid, transaction, word)
            }
            (None, _, Some(list)) => self.found_by_name(wanted, list, word),
            _ => Finding::unreadable(word),
        }
    }

    fn look(&self, payment: &Payment) -> Option<ProviderRequest> {
        Some(query(path_segment(payment.id.as_deref()?)))
    }

    /// The payment's own transaction. It does not show what is left of it.
    fn seen(&self, payment: &Payment, reply: &ProviderReply<'_>) -> Look {
        let body = reply.object();
        let transaction = body.and_then(|body| body.get("transaction"));
        let word = body.map_or_else(ProviderMessage::default, |body| {
            word(transaction.unwrap_or_else(|| spoken(body)), body)
        });
        if !reply.is_success() {
            return Look::by_status(reply.status, word);
        }
        let (Some(body), Some(transaction)) = (body, transaction) else {
            return Look::Unknown(Doubt::Unreadable, word);
        };
        let uid = scalar(transaction.get("uid"));
        if has_errors(body) || !transaction.is_plain_object() || uid.is_none() {
            return Look::Unknown(Doubt::Unreadable, word);
        }
        if uid != payment.id {
            return Look::Unknown(Doubt::Mismatch, word);
        }
        let said = |name| transaction.get(name).and_then(Node::text);
        if said("type").is_some_and(|kind| kind == "refund") {
            return Look::NotRefundable("a refund itself".to_owned(), word);
        }
        match said("status").as_deref() {
            Some("successful") => {}
            Some("incomplete" | "pending" | "failed" | "expired" | "deleted" | "error") => {
                return Look::NotRefundable("not paid".to_owned(), word);
            }
            _ => return Look::Unknown(Doubt::Unreadable, word),
        }
        let currency = said("currency").and_then(|code| Currency::from_code(&code));
        let amount = || {
            let number = transaction.get("amount")?.number()?;
            self.counting.read_amount(number, currency?)
        };
        Look::Refundable(Shown {
            currency,
            left: amount(),
            word,
            ..Shown::default()
        })
    }
}

fn query(path: String) -> ProviderRequest {
    ProviderRequest {
        path: format!("/beyag/transactions/{path}"),
        headers: Vec::new(),
        body: Payload::None,
    }
}

impl Begateway {
    fn found_by_uid(
        &self,
        wanted: &Wanted,
        uid: &str,
        transaction: Node<'_>,
        word: ProviderMessage,
    ) -> Finding {
        if differs(transaction.get("uid"), Some(uid)) {
            return Finding::Unknown(Doubt::Mismatch, word);
        }
        if transaction.get("uid").is_none() {
            return Finding::unreadable(word);
        }
        if !is_refund(transaction) {
            return Finding::Absent(Absence::Unproven(NOT_THIS), word);
        }
        let key = wanted.key.map(|key| key.text());
        let shown = key_of(transaction);
        if let (Some(key), Some(shown)) = (&key, &shown)
            && key != shown
        {
            return Finding::Unknown(Doubt::Mismatch, word);
        }
        let by_key = key.is_some() && key == shown;
        let shown_by = if by_key { ShownBy::Key } else { ShownBy::Id };
        self.finding(wanted, transaction, shown_by)
    }

    /// A list, the newest first. Everything that a refund's `tracking_id` names finds it: ours
    /// among them is the one whose last name is the key, or, without one, the reference in
    /// front of a key.
    fn found_by_name(&self, wanted: &Wanted, list: Node<'_>, word: ProviderMessage) -> Finding {
        let Some(list) = list.items() else {
            return Finding::unreadable(word);
        };
        if list.is_empty() {
            let absence = match wanted.key {
                // The key alone went out with every send, so a send that arrived would be here.
                Some(_) if !wanted.referenced => Absence::Proven,
                Some(_) => Absence::Unproven(REFERENCE_WENT_OUT),
                None => Absence::Unproven(NONE_BY_REFERENCE),
            };
            return Finding::Absent(absence, word);
        }
        if !list.iter().all(|transaction| transaction.is_plain_object()) {
            return Finding::unreadable(word);
        }
        let ours = list.into_iter().filter(|transaction| {
            let is_named = match (wanted.key, &wanted.reference) {
                (Some(key), _) => key_of(*transaction) == Some(key.text()),
                // Another payment's refund under the same reference is a stranger's; under the key
                // it is a contradiction.
                (None, Some(reference)) => {
                    reference_of(*transaction).as_ref() == Some(reference)
                        && !differs(transaction.get("parent_uid"), wanted.payment.id.as_deref())
                }
                (None, None) => false,
            };
            is_refund(*transaction) && is_named
        });
        let shown_by = match wanted.key {
            Some(_) => ShownBy::Key,
            None => ShownBy::Reference,
        };
        match ours.collect::<Vec<_>>().as_slice() {
            [transaction] => self.finding(wanted, *transaction, shown_by),
            _ => Finding::Absent(Absence::Unproven(NOT_ONE), word),
        }
    }

    fn finding(&self, wanted: &Wanted, transaction: Node<'_>, shown_by: ShownBy) -> Finding {
        let word = word(transaction, transaction);
        if transaction.get("parent_uid").is_none() {
            return Finding::unreadable(word);
        }
        match self.read_transaction(&wanted.payment, None, transaction, word) {
            Ok((status, receipt)) => Finding::Found {
                status,
                receipt,
                shown_by,
            },
            Err((doubt, word)) => Finding::Unknown(doubt, word),
        }
    }

    fn read(&self, refund: &Refund, key: &str, reply: &ProviderReply<'_>) -> Outcome {
        let Some(body) = reply.object() else {
            return if reply.is_success() {
                Outcome::Unknown(Doubt::Unreadable, ProviderMessage::default())
            } else {
                by_status(reply.status, ProviderMessage::default())
            };
        };
        let transaction = body.get("transaction");
        let word = word(transaction.unwrap_or_else(|| spoken(body)), body);
        let Some(transaction) = transaction.filter(|transaction| transaction.is_plain_object())
        else {
            return if reply.is_success() {
                Outcome::Unknown(Doubt::Unreadable, word)
            } else {
                by_status(reply.status, word)
            };
        };
        let read = self.read_own(refund, key, body, transaction, word);
        match read {
            Ok((status, receipt)) if reply.is_success() => Outcome::of(status, receipt),
            Err((doubt, word)) if reply.is_success() => Outcome::Unknown(doubt, word),
            // A refusal around a refund that failed, too.
            Ok((Status::Failed, receipt)) => by_status(reply.status, receipt.word),
            Ok((_, Receipt { word, .. })) | Err((_, word)) => match by_status(reply.status, word) {
                Outcome::Refused(_, word) => Outcome::Unknown(Doubt::Unreadable, word),
                outcome => outcome,
            },
        }
    }

    /// The transaction in the reply to our own request: it must name this refund, by its payment or
    /// by its key.
    fn read_own(
        &self,
        refund: &Refund,
        key: &str,
        body: Node<'_>,
        transaction: Node<'_>,
        word: ProviderMessage,
    ) -> Result<(Status, Receipt), (Doubt, ProviderMessage)> {
        let shown = key_of(transaction);
        if shown.as_ref().is_some_and(|shown| shown != key) {
            return Err((Doubt::Mismatch, word));
        }
        if has_errors(body) || shown.is_none() && transaction.get("parent_uid").is_none() {
            return Err((Doubt::Unreadable, word));
        }
        self.read_transaction(&refund.payment, refund.asked(), transaction, word)
    }

    fn read_transaction(
        &self,
        payment: &Payment,
        asked: Option<Money>,
        transaction: Node<'_>,
        word: ProviderMessage,
    ) -> Result<(Status, Receipt), (Doubt, ProviderMessage)> {
        let kind = transaction.get("type").map(|kind| kind.text());
        if kind.is_some_and(|kind| kind.as_deref() != Some("refund")) {
            return Err((Doubt::Unreadable, word));
        }
        if differs(transaction.get("parent_uid"), payment.id.as_deref()) {
            return Err((Doubt::Mismatch, word));
        }
        let amount = match echoed_amount(
            &self.counting,
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
            payment: Names::default(),
            word: word.clone(),
        };
        // The status stands there twice: on top, and of the payment method inside.
        let inside = transaction
            .get("refund")
            .and_then(|inside| inside.get("status"));
        match (status(transaction.get("status")), inside) {
            (Some(Ok(on_top)), inside)
                if inside.is_some() && status(inside) != Some(Ok(on_top)) =>
            {
                Err((Doubt::Unreadable, word))
            }
            (Some(Ok(Status::Succeeded | Status::Pending)), _) if receipt.id.is_none() => {
                Err((Doubt::Unreadable, word))
            }
            (Some(Ok(status)), _) => Ok((status, receipt)),
            (Some(Err(doubt)), _) => Err((doubt, word)),
            (None, _) => Err((Doubt::Unreadable, word)),
        }
    }
}

/// The vendor's words for how a transaction stands; none for another.
fn status(node: Option<Node<'_>>) -> Option<Result<Status, Doubt>> {
    match node?.text()?.as_ref() {
        "successful" => Some(Ok(Status::Succeeded)),
        "pending" | "incomplete" => Some(Ok(Status::Pending)),
        "failed" | "expired" | "deleted" => Some(Ok(Status::Failed)),
        "error" => Some(Err(Doubt::Failed)),
        _ => None,
    }
}

/// The key in a transaction's `tracking_id`: its last name.
fn key_of(transaction: Node<'_>) -> Option<String> {
    let tracking_id = scalar(transaction.get("tracking_id"))?;
    tracking_id.rsplit(';').next().map(str::to_ascii_lowercase)
}

/// What stands before the key: a reference may hold semicolons of its own.
fn reference_of(transaction: Node<'_>) -> Option<String> {
    let tracking_id = scalar(transaction.get("tracking_id"))?;
    let (reference, _) = tracking_id.rsplit_once(';')?;
    Some(reference.to_owned())
}

fn is_refund(transaction: Node<'_>) -> bool {
    let kind = transaction.get("type").and_then(Node::text);
    kind.as_deref() == Some("refund")
}

/// Errors come bare, in `response` and in `error`.
fn spoken(body: Node<'_>) -> Node<'_> {
    let inside = body.get("response").or_else(|| body.get("error"));
    inside.unwrap_or(body)
}

/// Whether errors stand beside what else a body says.
fn has_errors(body: Node<'_>) -> bool {
    body.get("error").is_some() || spoken(body).get("errors").is_some()
}

/// `message` may be an object of fields; then `friendly_message` is what is left to show. The code
/// has two names.
fn word(spoken: Node<'_>, body: Node<'_>) -> ProviderMessage {
    let said = |name| scalar(spoken.get(name)).or_else(|| scalar(body.get(name)));
    let (message, fields) = message_of(spoken.get("message"));
    ProviderMessage {
        code: said("code").or_else(|| said("error_code")),
        message: message
            .or_else(|| scalar(body.get("message")))
            .or_else(|| said("friendly_message")),
        errors: field_errors([spoken.get("errors"), fields]),
    }
}
