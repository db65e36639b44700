//! Bank of Georgia, Payments API: "Refund" and "Get payment details".
//!
//! An OAuth2 bearer token, the amount in major units, the idempotency key in a header. The answer
//! never says more than "accepted": the end of a refund stands among the order's actions, under the
//! id that was given then.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Configured, Counting, Doubt, Finding, Idempotency, Look,
    MinorUnits, Names, Outcome, Payload, PaymentRule, Provider, ProviderKind, ProviderMessage,
    ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Shown, ShownBy, Units, Wanted,
    by_status, differs, field_errors, identifier, is_refusal, message_of, path_segment, plain_text,
    scalar,
};
use crate::credentials::Auth;
use crate::json::Node;
use crate::money::{Currency, Money};
use crate::reader::{Object, Reader};
use crate::refund::{Payment, Refund, Status};

/// `Idempotency-Key`, "UUID v4".
static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: true,
    units: UNITS,
    reason: Reason::NotSent,
    idempotency: Idempotency::Uuid {
        v7: false,
        kept: None,
    },
    refunds: Refunds::Many { show_key: false },
    takes_reference: false,
    shows_currency: false,
    taken: &["request_received"],
};

/// The page's parameter table has the amount as a number, without limits.
const UNITS: Units = Units::Major {
    decimals: None,
    whole_digits: None,
};

/// The only documented `key` of an answer.
const RECEIVED: &str = "request_received";
/// Seen for an order that was refunded before; it can be our own lost refund.
const ALREADY_REFUNDED: &str = "already_refunded";

/// Where the answer with the id was lost.
const NO_ID: &str = "This provider tells refunds apart by their id alone, and none was given. The same refund call with the same \
                     key returns the first answer, and with it the id.";
const NOT_SHOWN: &str = "The order does not show this refund, or not yet.";

/// The order's status between a refund that was accepted and its action. It lags behind, so that an
/// order that does not say it proves nothing.
const REFUND_REQUESTED: &str = "refund_requested";

/// The dialect.
#[derive(Debug)]
pub struct Bog {
    counting: Counting,
}

/// What the filter knows of it.
pub static KIND: ProviderKind = ProviderKind {
    name: "bog",
    capabilities: &CAPABILITIES,
    configure,
};

fn configure(
    reader: &mut Reader<'_>,
    object: &mut Object<'_>,
    minor_units: MinorUnits,
) -> Option<Configured> {
    let dialect = Bog {
        counting: Counting {
            units: UNITS,
            configured: minor_units,
        },
    };
    let endpoint = reader.token_endpoint(object)?;
    Some(Configured {
        dialect: Box::new(dialect),
        account: Some(endpoint.client_id.clone()),
        auth: Auth::Token(endpoint),
    })
}

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

    fn counting(&self) -> &Counting {
        &self.counting
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> Option<ProviderRequest> {
        let order_id = refund.payment.id.as_deref()?;
        Some(ProviderRequest {
            path: format!("/payment/refund/{}", path_segment(order_id)),
            headers: vec![("idempotency-key", attempt.key.text())],
            body: Payload::Plain(crate::json_text(&Body {
                amount: refund.wire_amount.as_deref(),
            })),
        })
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
        if already && (reply.is_success() || is_refusal(reply.status)) || reply.status == 409 {
            return Outcome::Unknown(Doubt::MaybeThere, word);
        }
        if !reply.is_success() {
            return by_status(reply.status, word);
        }
        let body = reply.object();
        // Only here: the word that is shown can come from a member for errors.
        let key = body.and_then(|body| body.get("key")?.text());
        if key.as_deref() != Some(RECEIVED) {
            return Outcome::Unknown(Doubt::Unreadable, word);
        }
        // The page does not promise an id. Without one the refund is accepted all the same, and
        // cannot be told from others.
        let action_id = body.and_then(|body| body.get("action_id"));
        let id = identifier(action_id);
        if action_id.is_some() && id.is_none() {
            return Outcome::Unknown(Doubt::Unreadable, word);
        }
        Outcome::Pending(Receipt {
            id,
            word,
            ..Receipt::default()
        })
    }

    fn look_up(&self, wanted: &Wanted) -> Option<ProviderRequest> {
        self.look(&wanted.payment)
    }

    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        if !reply.is_success() {
            return Finding::by_status(reply.status, word(reply));
        }
        match reply.object().and_then(Order::read) {
            Some(order) => order.found(wanted),
            None => Finding::unreadable(word(reply)),
        }
    }

    fn look(&self, payment: &Payment) -> Option<ProviderRequest> {
        let order_id = payment.id.as_deref()?;
        Some(ProviderRequest {
            path: format!("/receipt/{}", path_segment(order_id)),
            headers: Vec::new(),
            body: Payload::None,
        })
    }

    fn seen(&self, payment: &Payment, reply: &ProviderReply<'_>) -> Look {
        if !reply.is_success() {
            return Look::by_status(reply.status, word(reply));
        }
        match reply.object().and_then(Order::read) {
            Some(order) if payment.id.as_ref() == Some(&order.id) => order.seen(),
            Some(_) => Look::Unknown(Doubt::Mismatch, ProviderMessage::default()),
            None => Look::Unknown(Doubt::Unreadable, word(reply)),
        }
    }
}

/// The details of an order.
struct Order<'a> {
    id: String,
    status: String,
    /// Those that are refunds.
    refunds: Vec<Node<'a>>,
    units: Option<Node<'a>>,
    currency: Option<Currency>,
}

impl<'a> Order<'a> {
    fn read(body: Node<'a>) -> Option<Self> {
        let status = body
            .get("order_status")
            .and_then(|status| status.get("key"));
        // Null, or left out, before there are any.
        let actions = match body.get("actions") {
            None => Vec::new(),
            Some(actions) => actions.items()?,
        };
        let refunds = actions.into_iter().filter(|action| {
            let kind = action.get("action").and_then(Node::text);
            matches!(kind.as_deref(), Some("refund" | "partial_refund"))
        });
        let units = body.get("purchase_units");
        let currency = units.and_then(|units| units.get("currency_code")?.text());
        Some(Order {
            id: scalar(body.get("order_id"))?,
            status: scalar(status)?,
            refunds: refunds.collect(),
            units,
            currency: currency.and_then(|code| Currency::from_code(&code)),
        })
    }

    /// The action whose id is the refund's decides, whoever asked for it; nothing is guessed from
    /// amounts.
    fn found(&self, wanted: &Wanted) -> Finding {
        let mut ours = self.refunds.iter().filter(|action| {
            wanted.id.is_some()
                && action.get("action_id").is_some()
                && !differs(action.get("action_id"), wanted.id.as_deref())
        });
        match (ours.next(), ours.next()) {
            (ours, _) if wanted.payment.id.as_ref() != Some(&self.id) => {
                let word = ours.map(|action| said(*action)).unwrap_or_default();
                Finding::Unknown(Doubt::Mismatch, word)
            }
            (Some(action), None) => self.of_action(*action),
            (Some(_), Some(_)) => Finding::unreadable(ProviderMessage::default()),
            (None, _) if wanted.id.is_none() => {
                let is_refunded = !self.refunds.is_empty() || self.status == REFUND_REQUESTED;
                let absence = if is_refunded {
                    Absence::Ambiguous(NO_ID)
                } else {
                    Absence::Unproven(NO_ID)
                };
                Finding::Absent(absence, ProviderMessage::default())
            }
            // There is no word for an action that is not finished, and the order does not say which
            // one that is.
            (None, _) if self.status == REFUND_REQUESTED => Finding::Found {
                status: Status::Pending,
                receipt: Receipt {
                    id: wanted.id.clone(),
                    ..Receipt::default()
                },
                shown_by: ShownBy::Nothing,
            },
            (None, _) => Finding::Absent(Absence::Unproven(NOT_SHOWN), ProviderMessage::default()),
        }
    }

    fn of_action(&self, action: Node<'_>) -> Finding {
        let word = said(action);
        let status = match action.get("status").and_then(Node::text).as_deref() {
            Some("completed") => Status::Succeeded,
            Some("rejected") => Status::Failed,
            _ => return Finding::unreadable(word),
        };
        let amount = match (scalar(action.get("amount")), self.currency) {
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
                payment: Names::default(),
                word,
            },
            shown_by: ShownBy::Id,
        }
    }

    /// "The value of this parameter cannot exceed the processed amount (transfer_amount)."
    fn seen(&self) -> Look {
        let state = match self.status.as_str() {
            "completed" | "partial_completed" | "refunded_partially" | REFUND_REQUESTED => None,
            "created" | "processing" | "auth_requested" => Some("not paid"),
            "blocked" => Some("authorized and not captured"),
            "rejected" => Some("rejected"),
            "refunded" => Some("refunded in full"),
            _ => return Look::Unknown(Doubt::Unreadable, ProviderMessage::default()),
        };
        if let Some(state) = state {
            return Look::NotRefundable(state.to_owned(), ProviderMessage::default());
        }
        let amount = |name| {
            let text = scalar(self.units?.get(name))?;
            Money::from_major(&text, self.currency?)
        };
        let left = [
            amount("transfer_amount").map(|money| money.minor),
            amount("request_amount").and_then(|all| {
                let refunded = amount("refund_amount")?;
                all.minor.checked_sub(refunded.minor)
            }),
        ];
        let left = left.into_iter().flatten().min();
        Look::Refundable(Shown {
            currency: self.currency,
            left: left
                .zip(self.currency)
                .map(|(minor, currency)| Money { minor, currency }),
            refunded: !self.refunds.is_empty(),
            ..Shown::default()
        })
    }
}

fn said(action: Node<'_>) -> ProviderMessage {
    ProviderMessage {
        code: scalar(action.get("code")),
        message: scalar(action.get("code_description")),
        errors: Vec::new(),
    }
}

fn word(reply: &ProviderReply<'_>) -> ProviderMessage {
    let Some(body) = reply.object() else {
        return ProviderMessage {
            message: plain_text(reply),
            ..ProviderMessage::default()
        };
    };
    let said = |names: [&str; 4]| names.iter().find_map(|name| scalar(body.get(name)));
    let (message, fields) = message_of(body.get("message"));
    ProviderMessage {
        code: said(["key", "error", "code", "error_code"]),
        message: message.or_else(|| scalar(body.get("error_description"))),
        errors: field_errors([body.get("errors"), fields]),
    }
}
