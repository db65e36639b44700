//! Moyasar Payment Gateway (MPG): "refund", and the order itself.
//!
//! A static bearer key, minor units, the idempotency key in the body. HTTP 200 says that a refund
//! was tried; what became of it stands in the order's `transactions`, then and later.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Configured, Counting, Doubt, Echo, Finding, Idempotency, Look,
    MinorUnits, Names, Outcome, Payload, PaymentRule, Provider, ProviderKind, ProviderMessage,
    ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Shown, ShownBy, Units, Wanted,
    by_status, differs, echoed_amount, field_errors, is_refusal, message_of, path_segment, scalar,
};
use crate::credentials::Auth;
use crate::json::Node;
use crate::money::{Currency, Money};
use crate::reader::{Object, Reader};
use crate::refund::{Payment, Refund, Status};

/// `transaction_id`: a UUID that the client makes once per operation.
static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: false,
    units: UNITS,
    reason: Reason::NotSent,
    idempotency: Idempotency::Uuid {
        v7: true,
        kept: None,
    },
    refunds: Refunds::Many { show_key: true },
    takes_reference: false,
    shows_currency: true,
    taken: &["approved", "initiated"],
};

/// `amount`: an integer of at least 1, required; the sibling calls' pages cap it at 100000000.
const UNITS: Units = Units::Minor {
    max: 100_000_000,
    digits: &[],
    disputed: &[],
};

/// The page's 400 for a `transaction_id` that is still at work: "Initial request is still
/// processing."
const STILL_PROCESSING: &str = "still processing";

/// The dialect.
#[derive(Debug)]
pub struct Moyasar {
    counting: Counting,
}

/// What the filter knows of it.
pub static KIND: ProviderKind = ProviderKind {
    name: "moyasar",
    capabilities: &CAPABILITIES,
    configure,
};

fn configure(
    reader: &mut Reader<'_>,
    object: &mut Object<'_>,
    minor_units: MinorUnits,
) -> Option<Configured> {
    let dialect = Moyasar {
        counting: Counting {
            units: UNITS,
            configured: minor_units,
        },
    };
    let auth = reader.injected_or(object, |reader, object| {
        reader.credential(object, "api_key").map(Auth::Bearer)
    })?;
    Some(Configured {
        dialect: Box::new(dialect),
        account: None,
        auth,
    })
}

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

    fn counting(&self) -> &Counting {
        &self.counting
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> Option<ProviderRequest> {
        let order_id = refund.payment.id.as_deref()?;
        Some(ProviderRequest {
            path: format!("/v1/orders/{}/refund", path_segment(order_id)),
            headers: Vec::new(),
            body: Payload::Plain(crate::json_text(&Body {
                amount: refund.wire_amount.as_deref(),
                transaction_id: attempt.key.text(),
            })),
        })
    }

    fn outcome(
        &self,
        refund: &Refund,
        attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        if reply.is_success() {
            let read = match order(reply) {
                Some(order) => {
                    self.read_order(&refund.payment, refund.asked(), &attempt.key.text(), order)
                }
                None => Read::Doubtful(Doubt::Unreadable, ProviderMessage::default()),
            };
            return match read {
                Read::Ours(status, receipt) => Outcome::of(status, receipt),
                Read::Missing => Outcome::Unknown(Doubt::Unreadable, ProviderMessage::default()),
                Read::Doubtful(doubt, word) => Outcome::Unknown(doubt, word),
            };
        }
        let word = word(reply);
        if is_refusal(reply.status) && reply.mentions(STILL_PROCESSING) {
            return Outcome::Unknown(Doubt::InProgress, word);
        }
        by_status(reply.status, word)
    }

    fn look_up(&self, wanted: &Wanted) -> Option<ProviderRequest> {
        self.look(&wanted.payment)
    }

    /// A transaction's id is the key that was sent, so both names are one. What does not show
    /// proves nothing: no page says how soon it does.
    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        if !reply.is_success() {
            return Finding::by_status(reply.status, word(reply));
        }
        let Some(order) = order(reply) else {
            return Finding::unreadable(ProviderMessage::default());
        };
        let key = wanted.key.map(|key| key.text());
        let (id, shown_by) = match (&key, &wanted.id) {
            (Some(key), Some(id)) if !id.eq_ignore_ascii_case(key) => {
                return Finding::Unknown(Doubt::Mismatch, ProviderMessage::default());
            }
            (Some(key), _) => (key, ShownBy::Key),
            (None, Some(id)) => (id, ShownBy::Id),
            (None, None) => return Finding::unreadable(ProviderMessage::default()),
        };
        match self.read_order(&wanted.payment, None, id, order) {
            Read::Ours(status, receipt) => Finding::Found {
                status,
                receipt,
                shown_by,
            },
            Read::Missing => Finding::Absent(
                Absence::Unproven(
                    "The order shows no such refund, which does not prove that there is none.",
                ),
                ProviderMessage::default(),
            ),
            Read::Doubtful(doubt, word) => Finding::Unknown(doubt, word),
        }
    }

    fn look(&self, payment: &Payment) -> Option<ProviderRequest> {
        let order_id = payment.id.as_deref()?;
        Some(ProviderRequest {
            path: format!("/v1/orders/{}", path_segment(order_id)),
            headers: Vec::new(),
            body: Payload::None,
        })
    }

    /// An order: what was captured of it and not refunded is left.
    fn seen(&self, payment: &Payment, reply: &ProviderReply<'_>) -> Look {
        if !reply.is_success() {
            return Look::by_status(reply.status, word(reply));
        }
        let unreadable = Look::Unknown(Doubt::Unreadable, ProviderMessage::default());
        let Some(order) = order(reply) else {
            return unreadable;
        };
        match scalar(order.get("id")) {
            None => return unreadable,
            id if id != payment.id => {
                return Look::Unknown(Doubt::Mismatch, ProviderMessage::default());
            }
            Some(_) => {}
        }
        let currency = order.get("currency").and_then(Node::text);
        let Some(currency) = currency.and_then(|code| Currency::from_code(&code)) else {
            return unreadable;
        };
        let amount = |name| {
            let number = order.get(name)?.number()?;
            self.counting.read_amount(number, currency)
        };
        let (Some(captured), Some(refunded)) =
            (amount("captured_amount"), amount("refunded_amount"))
        else {
            return unreadable;
        };
        let voided = amount("voided_amount").is_some_and(|voided| voided.minor > 0);
        if captured.minor == 0 {
            let state = if voided { "void" } else { "not paid" };
            return Look::NotRefundable(state.to_owned(), ProviderMessage::default());
        }
        let left = captured.minor.checked_sub(refunded.minor);
        let Some(minor) = left else {
            return unreadable;
        };
        Look::Refundable(Shown {
            currency: Some(currency),
            left: Some(Money { minor, currency }),
            refunded: refunded.minor > 0,
            ..Shown::default()
        })
    }
}

fn word(reply: &ProviderReply<'_>) -> ProviderMessage {
    let Some(body) = reply.object() else {
        return ProviderMessage::default();
    };
    let (message, fields) = message_of(body.get("message"));
    ProviderMessage {
        code: scalar(body.get("code")).or_else(|| scalar(body.get("error_code"))),
        message,
        errors: field_errors([body.get("errors"), fields]),
    }
}

/// The order object. The page's schema shows an array, its example none: one element in an array is
/// taken, too.
fn order<'a>(reply: &'a ProviderReply<'_>) -> Option<Node<'a>> {
    let body = reply.json()?;
    let order = match body.items() {
        Some(items) => match items.as_slice() {
            [order] => *order,
            _ => return None,
        },
        None => body,
    };
    order.is_plain_object().then_some(order)
}

/// What an order says of one refund.
enum Read {
    /// It is there.
    Ours(Status, Receipt),
    /// It is not.
    Missing,
    /// It cannot be told.
    Doubtful(Doubt, ProviderMessage),
}

impl Moyasar {
    /// Reads the refund of this order that is ours: the transaction of type `refund` under the id
    /// that was sent.
    fn read_order(
        &self,
        payment: &Payment,
        asked: Option<Money>,
        id: &str,
        order: Node<'_>,
    ) -> Read {
        let text = |node: Node<'_>, name| {
            let text = node.get(name).and_then(Node::text);
            text.unwrap_or_default().into_owned()
        };
        let Some(transactions) = order.get("transactions").and_then(Node::items) else {
            return Read::Doubtful(Doubt::Unreadable, ProviderMessage::default());
        };
        let mut ours = transactions.into_iter().filter(|transaction| {
            let shown = transaction.get("id").and_then(Node::text);
            shown.is_some_and(|shown| shown.eq_ignore_ascii_case(id))
                && text(*transaction, "type") == "refund"
        });
        let (found, more) = (ours.next(), ours.next());
        let said = |name| scalar(found.and_then(|transaction| transaction.get(name)));
        let word = ProviderMessage {
            code: said("response_code"),
            message: said("message"),
            errors: Vec::new(),
        };
        if differs(order.get("id"), payment.id.as_deref()) {
            return Read::Doubtful(Doubt::Mismatch, word);
        }
        let transaction = match (found, more) {
            (Some(transaction), None) if transaction.is_plain_object() => transaction,
            (None, _) => return Read::Missing,
            _ => return Read::Doubtful(Doubt::Unreadable, word),
        };
        let amount = match echoed_amount(
            &self.counting,
            asked,
            transaction.get("amount"),
            order.get("currency"),
        ) {
            Echo::Same(amount) => amount,
            Echo::Other => return Read::Doubtful(Doubt::Mismatch, word),
            Echo::Unreadable => return Read::Doubtful(Doubt::Unreadable, word),
        };
        let receipt = Receipt {
            id: scalar(transaction.get("id")),
            amount,
            created_at: scalar(transaction.get("created_at")),
            payment: Names::default(),
            word: word.clone(),
        };
        match text(transaction, "status").as_str() {
            "approved" => Read::Ours(Status::Succeeded, receipt),
            "initiated" => Read::Ours(Status::Pending, receipt),
            "failed" => Read::Ours(Status::Failed, receipt),
            // The acquirer's answer is missing: the money may be on its way.
            "timeout" | "system_error" => Read::Doubtful(Doubt::Failed, word),
            _ => Read::Doubtful(Doubt::Unreadable, word),
        }
    }
}
