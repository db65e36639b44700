//! BBMSL, hosted checkout: "Refund an order".
//!
//! No credentials but an RSA signature over the exact text of the inner request; major units; no idempotency key: an order
//! is refunded once, and what is not known must be asked for, never repeated.

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
        let inner = Inner {
            merchant_id: &self.merchant_id,
            order_id: refund.payment.id.as_deref().and_then(|id| id.parse().ok()),
            merchant_reference: refund.payment.reference.as_deref(),
            amount: refund.wire_amount.as_deref(),
        };
        ProviderRequest {
            path: "/hosted-checkout/refund".to_owned(),
            headers: Vec::new(),
            body: Payload::ToSign {
                text: crate::json_text(&inner),
                seal: |request, signature| crate::json_text(&Outer { request, signature }),
            },
        }
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
        if order.is_some_and(|order| is_another(refund, order)) {
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
}

fn is_another(refund: &Refund, order: Node<'_>) -> bool {
    differs(order.get("id"), refund.payment.id.as_deref())
        || differs(
            order.get("merchantReference"),
            refund.payment.reference.as_deref(),
        )
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
        refund,
        transaction.get("amount"),
        currency,
        Money::from_major,
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
