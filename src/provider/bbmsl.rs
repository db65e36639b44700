//! BBMSL, hosted checkout: "Refund an order" and "Query an order".
//!
//! No credentials but an RSA signature over the exact text of the inner request; major units; no idempotency key: an order
//! is refunded once, and what is not known must be asked for, never repeated. A query shows the order and none of its
//! transactions, so what is missing of its amount is the refund.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Doubt, Echo, Finding, Idempotency, Outcome, Payload,
    PaymentRule, Provider, ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Refusal,
    Units, Wanted, Word, by_status, differs, echoed_amount, identifier, is_verdict, scalar,
};
use crate::json::{Kind, Node};
use crate::money::{Currency, Money};
use crate::refund::{Payment, Refund, Status};

/// `amount`: Number(9,2), mandatory. `orderId`: Number. `merchantReference`: String(64). One of the two is mandatory.
pub(super) static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::NumericIdOrReference,
    full_refund: false,
    units: Units::Major {
        decimals: Some(2),
        whole_digits: Some(7),
    },
    reason: Reason::NotSent,
    idempotency: Idempotency::None,
    refunds: Refunds::One,
};

/// The only published `responseCode`.
const ACCEPTED: &str = "0000";

/// The dialect of one merchant.
#[derive(Debug)]
pub struct Bbmsl {
    /// `merchantId` as JSON: the page's table has a string, its example a number, so it goes out as it is configured.
    pub merchant_id: Box<RawValue>,
    /// The `responseCode`s that the platform team knows to be a plain refusal.
    pub declined_codes: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inner<'a> {
    merchant_id: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merchant_reference: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Outer<'a> {
    request: &'a str,
    signature: &'a str,
}

impl Provider for Bbmsl {
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    fn request(&self, refund: &Refund, _attempt: &Attempt<'_>) -> ProviderRequest {
        self.signed(
            "/hosted-checkout/refund",
            &refund.payment,
            refund.wire_amount.as_deref(),
        )
    }

    fn outcome(
        &self,
        refund: &Refund,
        _attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        // A code on a refusing status says more than the status, even one that cannot be read.
        let code_decides =
            reply.is_success() || is_verdict(reply.status) && reply.mentions("responseCode");
        let Some(body) = reply.object() else {
            return if code_decides {
                Outcome::Unknown(Doubt::Unreadable, Word::default())
            } else {
                by_status(reply.status, Word::default())
            };
        };
        let word = Word {
            code: scalar(body.get("responseCode")),
            message: scalar(body.get("message")),
        };
        if !code_decides {
            return by_status(reply.status, word);
        }
        let order = body.get("order");
        if order.is_some_and(|order| !order.is_plain_object()) {
            return Outcome::Unknown(Doubt::Unreadable, word);
        }
        if order.is_some_and(|order| is_another(&refund.payment, order)) {
            return Outcome::Unknown(Doubt::Mismatch, word);
        }
        match word.code.as_deref() {
            Some(ACCEPTED) if reply.is_success() => of_transaction(refund, body, word),
            Some(ACCEPTED) | None => Outcome::Unknown(Doubt::Unreadable, word),
            Some(code) if self.declined_codes.iter().any(|known| known == code) => {
                match of_transaction(refund, body, Word::default()) {
                    // A refusal beside a refund that was made contradicts itself.
                    Outcome::Refunded(_) => Outcome::Unknown(Doubt::Unreadable, word),
                    _ => Outcome::Refused(Refusal::Declined, word),
                }
            }
            // The other codes are not published. One of them says that the order was refunded before, by us perhaps.
            Some(_) => Outcome::Unknown(Doubt::MaybeThere, word),
        }
    }

    fn look_up(&self, wanted: &Wanted) -> ProviderRequest {
        self.signed("/hosted-checkout/query", &wanted.payment, None)
    }

    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        let body = reply.object();
        let said = |name| scalar(body.and_then(|body| body.get(name)));
        let word = Word {
            code: said("responseCode"),
            message: said("message"),
        };
        if !reply.is_success() {
            return Finding::by_status(reply.status, word);
        }
        let order = body.and_then(|body| body.get("order"));
        match (word.code.as_deref(), order) {
            (Some(ACCEPTED), Some(order)) if order.is_plain_object() => {
                if is_another(&wanted.payment, order) {
                    Finding::Unknown(Doubt::Mismatch, word)
                } else if is_named(&wanted.payment, order) {
                    of_order(order, word)
                } else {
                    Finding::unreadable(word)
                }
            }
            (Some(ACCEPTED) | None, _) => Finding::unreadable(word),
            (Some(_), _) => Finding::Refused(Refusal::Rejected, word),
        }
    }
}

impl Bbmsl {
    /// A request about an order, to be signed.
    fn signed(&self, path: &str, payment: &Payment, amount: Option<&RawValue>) -> ProviderRequest {
        let inner = Inner {
            merchant_id: &self.merchant_id,
            order_id: payment.id.as_deref().and_then(|id| id.parse().ok()),
            merchant_reference: payment.reference.as_deref(),
            amount,
        };
        ProviderRequest {
            path: path.to_owned(),
            headers: Vec::new(),
            body: Payload::ToSign {
                text: crate::json_text(&inner),
                seal: |request, signature| crate::json_text(&Outer { request, signature }),
            },
        }
    }
}

/// Whether an order echoes a name that it was asked for by.
fn is_named(payment: &Payment, order: Node<'_>) -> bool {
    payment.id.is_some() && order.get("id").is_some()
        || payment.reference.is_some() && order.get("merchantReference").is_some()
}

fn is_another(payment: &Payment, order: Node<'_>) -> bool {
    differs(order.get("id"), payment.id.as_deref())
        || differs(order.get("merchantReference"), payment.reference.as_deref())
}

/// An order that was asked for. Nothing missing of an order that can be refunded proves that it was not.
fn of_order(order: Node<'_>, word: Word) -> Finding {
    let currency = order
        .get("currency")
        .and_then(Node::text)
        .and_then(|code| Currency::from_code(&code));
    let amount = |name| {
        let number = order
            .get(name)
            .filter(|node| node.kind() == Kind::Number)?
            .number()?;
        Money::from_major(number, currency?)
    };
    let status = order.get("status").and_then(Node::text);
    let (Some(all), Some(left), Some(status)) = (amount("amount"), amount("netAmount"), status)
    else {
        return Finding::unreadable(word);
    };
    let missing = all.minor.checked_sub(left.minor);
    let none = missing == Some(0);
    match (&*status, missing) {
        ("REFUNDED", Some(minor)) if minor > 0 => Finding::Found {
            status: Status::Succeeded,
            receipt: Receipt {
                amount: Some(Money { minor, ..all }),
                word,
                ..Receipt::default()
            },
            by_key: false,
        },
        ("SUCCESS" | "SETTLED", _) if none => Finding::Absent(Absence::Proven, word),
        ("OPEN", _) if none => Finding::Absent(Absence::NotRefundable("OPEN"), word),
        ("VOIDED", _) if none => Finding::Absent(Absence::NotRefundable("VOIDED"), word),
        ("CLOSED", _) if none => Finding::Absent(Absence::NotRefundable("CLOSED"), word),
        ("OPEN" | "SUCCESS" | "VOIDED" | "REFUNDED" | "CLOSED" | "SETTLED", _) => Finding::Absent(
            Absence::Unproven(
                "The order's status and amounts do not tell whether it was refunded.",
            ),
            word,
        ),
        _ => Finding::unreadable(word),
    }
}

/// An accepted call: `transaction.status` alone decides. (`order.status` is `REFUNDED` even after a refund in part.)
fn of_transaction(refund: &Refund, body: Node<'_>, word: Word) -> Outcome {
    let Some(transaction) = body
        .get("transaction")
        .filter(|transaction| transaction.is_plain_object())
    else {
        return Outcome::Unknown(Doubt::Unreadable, word);
    };
    let kind = transaction.get("type").map(|kind| kind.text());
    if kind.is_some_and(|kind| kind.as_deref() != Some("REFUND")) {
        return Outcome::Unknown(Doubt::Unreadable, word);
    }
    let currency = transaction
        .get("currency")
        .or_else(|| body.get("order")?.get("currency"));
    let amount = match echoed_amount(
        &CAPABILITIES,
        refund.asked(),
        transaction.get("amount"),
        currency,
    ) {
        Echo::Same(amount) => amount,
        Echo::Other => return Outcome::Unknown(Doubt::Mismatch, word),
        Echo::Unreadable => return Outcome::Unknown(Doubt::Unreadable, word),
    };
    let id = identifier(transaction.get("id"));
    match transaction.get("status").and_then(Node::text).as_deref() {
        Some("SUCCESS") if id.is_some() => Outcome::Refunded(Receipt {
            id,
            amount,
            created_at: None,
            word,
        }),
        Some("DECLINED") => Outcome::Refused(Refusal::Declined, word),
        _ => Outcome::Unknown(Doubt::Unreadable, word),
    }
}
