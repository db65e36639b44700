//! BBMSL, hosted checkout: "Refund an order" and "Query an order".
//!
//! No credentials but an RSA signature over the exact text of the inner request; major units; no
//! idempotency key: an order is refunded once, and what is not known must be asked for, never
//! repeated. A query shows the order and none of its transactions, so what is missing of its amount
//! is a refund, and nothing tells whose.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Absence, Attempt, Capabilities, Configured, Counting, Doubt, Echo, Finding, Idempotency, Look,
    MinorUnits, Names, Outcome, Payload, PaymentRule, Provider, ProviderKind, ProviderMessage,
    ProviderReply, ProviderRequest, Reason, Receipt, Refunds, Refusal, Shown, ShownBy, Units,
    Wanted, by_status, differs, echoed_amount, field_errors, identifier, message_of, refusal,
    scalar,
};
use crate::credentials::Auth;
use crate::json::{Kind, Node};
use crate::money::{Currency, Money};
use crate::reader::{Object, Reader};
use crate::refund::{Payment, Refund, Status};

/// `orderId`: Number. `merchantReference`: String(64). One of the two is mandatory.
static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::NumericIdOrReference,
    full_refund: false,
    units: UNITS,
    reason: Reason::NotSent,
    idempotency: Idempotency::None,
    refunds: Refunds::One,
    takes_reference: false,
    shows_currency: true,
    // `SUCCESS` is its word for a paid order, too: see `read`.
    taken: &[],
};

/// `amount`: Number(9,2), mandatory.
const UNITS: Units = Units::Major {
    decimals: Some(2),
    whole_digits: Some(7),
};

/// The only published `responseCode`.
const ACCEPTED: &str = "0000";

/// The dialect of one merchant.
#[derive(Debug)]
pub struct Bbmsl {
    /// `merchantId` as JSON: the page's table has a string, its example a number, so it goes out
    /// as it is configured.
    merchant_id: Box<RawValue>,
    /// The `responseCode`s that the platform team knows to be a plain refusal.
    declined_codes: Vec<String>,
    counting: Counting,
}

/// What the filter knows of it.
pub static KIND: ProviderKind = ProviderKind {
    name: "bbmsl",
    capabilities: &CAPABILITIES,
    configure,
};

fn configure(
    reader: &mut Reader<'_>,
    object: &mut Object<'_>,
    minor_units: MinorUnits,
) -> Option<Configured> {
    let merchant_id = merchant_id(reader, object);
    let declined_codes = declined_codes(reader, object);
    let signing = reader.signing(object);
    let merchant_id = merchant_id?;
    Some(Configured {
        account: Some(merchant_id.get().replace('"', "")),
        dialect: Box::new(Bbmsl {
            merchant_id,
            declined_codes,
            counting: Counting {
                units: UNITS,
                configured: minor_units,
            },
        }),
        auth: Auth::Signature(signing?),
    })
}

fn merchant_id(reader: &mut Reader<'_>, object: &mut Object<'_>) -> Option<Box<RawValue>> {
    let node = reader.required(object, "merchant_id")?;
    match node.kind() {
        Kind::Number if node.raw().bytes().all(|b| b.is_ascii_digit()) => {
            RawValue::from_string(node.raw().to_owned()).ok()
        }
        Kind::String => {
            let text = reader.text(&object.at("merchant_id"), node)?;
            RawValue::from_string(crate::json_text(&text)).ok()
        }
        _ => {
            reader.fault(
                object.at("merchant_id"),
                "This must be a whole number or a string: it is sent as it stands here.",
            );
            None
        }
    }
}

fn declined_codes(reader: &mut Reader<'_>, object: &mut Object<'_>) -> Vec<String> {
    let mut codes = Vec::new();
    let Some(node) = object.take("declined_codes") else {
        return codes;
    };
    let pointer = object.at("declined_codes");
    let Some(items) = node.items() else {
        reader.fault(pointer, "This must be a list of strings.");
        return codes;
    };
    for (index, item) in items.into_iter().enumerate() {
        let pointer = format!("{pointer}/{index}");
        match reader.text(&pointer, item) {
            Some(code) if code == "0000" => {
                reader.fault(pointer, "0000 is BBMSL's code of success.");
            }
            Some(code) => codes.push(code),
            None => {}
        }
    }
    codes
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

    fn counting(&self) -> &Counting {
        &self.counting
    }

    fn request(&self, refund: &Refund, _attempt: &Attempt<'_>) -> Option<ProviderRequest> {
        Some(self.signed(
            "/hosted-checkout/refund",
            &refund.payment,
            refund.wire_amount.as_deref(),
        ))
    }

    fn outcome(
        &self,
        refund: &Refund,
        _attempt: &Attempt<'_>,
        reply: &ProviderReply<'_>,
    ) -> Outcome {
        let body = reply.object();
        let word = word(body);
        match refusal(reply.status) {
            _ if reply.is_success() => {}
            // Which status a refusal has was never published, so none says more than its words do;
            // a call that was not let in at all is another matter.
            Some(Refusal::Credentials | Refusal::RateLimited) if !speaks_of_a_refund(reply) => {
                return by_status(reply.status, word);
            }
            None if reply.status != 409 || !reply.mentions("responseCode") => {
                return by_status(reply.status, word);
            }
            _ => {}
        }
        let read = match body {
            Some(body) => self.read(refund, body, &word),
            None => Err(Doubt::Unreadable),
        };
        match read {
            Ok(Read::Refunded(receipt)) if reply.is_success() => Outcome::Refunded(receipt),
            // A refusal around a refund that was made contradicts itself.
            Ok(Read::Refunded(_)) => Outcome::Unknown(Doubt::Unreadable, word),
            Ok(Read::Declined) => Outcome::Refused(Refusal::Declined, word),
            // The other codes are not published. One of them says that the order was refunded
            // before, by us perhaps.
            Ok(Read::Refused) => Outcome::Unknown(Doubt::MaybeThere, word),
            Err(Doubt::Unreadable) if !reply.is_success() && !reply.mentions("responseCode") => {
                Outcome::Unknown(Doubt::MaybeThere, word)
            }
            Err(doubt) => Outcome::Unknown(doubt, word),
        }
    }

    fn look_up(&self, wanted: &Wanted) -> Option<ProviderRequest> {
        self.look(&wanted.payment)
    }

    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding {
        let order = match self.order(&wanted.payment, reply) {
            Ok(order) => order,
            Err(Unusable::Refused(refusal, word)) => return Finding::Refused(refusal, word),
            Err(Unusable::Unknown(doubt, word)) => return Finding::Unknown(doubt, word),
        };
        let none = order.missing() == Some(0);
        let word = order.word.clone();
        let absence = match (&*order.status, order.missing()) {
            ("REFUNDED", Some(minor)) if minor > 0 => {
                return Finding::Found {
                    status: Status::Succeeded,
                    receipt: Receipt {
                        amount: Some(Money { minor, ..order.all }),
                        payment: order.names,
                        word,
                        ..Receipt::default()
                    },
                    shown_by: ShownBy::Payment,
                };
            }
            ("SUCCESS" | "SETTLED", _) if none => Absence::Proven,
            ("OPEN", _) if none => Absence::NotRefundable("OPEN"),
            ("VOIDED", _) if none => Absence::NotRefundable("VOIDED"),
            ("CLOSED", _) if none => Absence::NotRefundable("CLOSED"),
            ("OPEN" | "SUCCESS" | "VOIDED" | "REFUNDED" | "CLOSED" | "SETTLED", _) => {
                Absence::Unproven(
                    "The order's status and amounts do not tell whether it was refunded.",
                )
            }
            _ => return Finding::unreadable(word),
        };
        Finding::Absent(absence, word)
    }

    fn look(&self, payment: &Payment) -> Option<ProviderRequest> {
        Some(self.signed("/hosted-checkout/query", payment, None))
    }

    fn seen(&self, payment: &Payment, reply: &ProviderReply<'_>) -> Look {
        let order = match self.order(payment, reply) {
            Ok(order) => order,
            Err(Unusable::Refused(refusal, word)) => return Look::Refused(refusal, word),
            Err(Unusable::Unknown(doubt, word)) => return Look::Unknown(doubt, word),
        };
        match (&*order.status, order.missing()) {
            ("REFUNDED", Some(0)) | (_, None) => Look::Unknown(Doubt::Unreadable, order.word),
            ("OPEN" | "VOIDED" | "CLOSED", Some(0)) => {
                Look::NotRefundable(order.status, order.word)
            }
            ("SUCCESS" | "SETTLED" | "OPEN" | "VOIDED" | "CLOSED" | "REFUNDED", Some(missing)) => {
                Look::Refundable(Shown {
                    currency: Some(order.all.currency),
                    left: Some(order.left),
                    refunded: missing > 0,
                    names: order.names,
                    word: order.word,
                })
            }
            _ => Look::Unknown(Doubt::Unreadable, order.word),
        }
    }
}

/// What the reply to a refund says.
enum Read {
    Refunded(Receipt),
    /// No, by a word that is known to mean no more than that.
    Declined,
    /// No, by another word.
    Refused,
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

    /// The reply to a refund. `transaction.status` alone decides (`order.status` is `REFUNDED` even
    /// after a refund in part), beside the order's own name.
    fn read(&self, refund: &Refund, body: Node<'_>, word: &ProviderMessage) -> Result<Read, Doubt> {
        let order = body.get("order");
        if order.is_some_and(|order| !order.is_plain_object()) {
            return Err(Doubt::Unreadable);
        }
        if order.is_some_and(|order| is_another(&refund.payment, order)) {
            return Err(Doubt::Mismatch);
        }
        let transaction = match order.filter(|order| is_named(&refund.payment, *order)) {
            Some(order) => self.transaction(refund, body, order, word),
            None => Err(Doubt::Unreadable),
        };
        match word.code.as_deref() {
            Some(ACCEPTED) => transaction,
            None => Err(Doubt::Unreadable),
            Some(_) if says_success(body) || matches!(transaction, Err(Doubt::Mismatch)) => {
                Err(Doubt::Unreadable)
            }
            Some(code) if self.declined_codes.iter().any(|known| known == code) => {
                Ok(Read::Declined)
            }
            Some(_) => Ok(Read::Refused),
        }
    }

    fn transaction(
        &self,
        refund: &Refund,
        body: Node<'_>,
        order: Node<'_>,
        word: &ProviderMessage,
    ) -> Result<Read, Doubt> {
        let transaction = body
            .get("transaction")
            .filter(|transaction| transaction.is_plain_object())
            .ok_or(Doubt::Unreadable)?;
        let kind = transaction.get("type").map(|kind| kind.text());
        if kind.is_some_and(|kind| kind.as_deref() != Some("REFUND")) {
            return Err(Doubt::Unreadable);
        }
        let currency = transaction
            .get("currency")
            .or_else(|| order.get("currency"));
        let amount = match echoed_amount(
            &self.counting,
            refund.asked(),
            transaction.get("amount"),
            currency,
        ) {
            Echo::Same(amount) => amount,
            Echo::Other => return Err(Doubt::Mismatch),
            Echo::Unreadable => return Err(Doubt::Unreadable),
        };
        let id = identifier(transaction.get("id"));
        match transaction.get("status").and_then(Node::text).as_deref() {
            Some("SUCCESS") if id.is_some() => Ok(Read::Refunded(Receipt {
                id,
                amount,
                created_at: None,
                payment: names(order),
                word: word.clone(),
            })),
            // A refund was made of the order all the same, by us perhaps.
            Some("DECLINED") if is_refunded(order) => Ok(Read::Refused),
            Some("DECLINED") => Ok(Read::Declined),
            _ => Err(Doubt::Unreadable),
        }
    }

    /// The order in the reply to a query.
    fn order(&self, payment: &Payment, reply: &ProviderReply<'_>) -> Result<Paid, Unusable> {
        let body = reply.object();
        let word = word(body);
        if !reply.is_success() {
            return Err(match refusal(reply.status) {
                Some(refusal) => Unusable::Refused(refusal, word),
                None => Unusable::Unknown(Doubt::Failed, word),
            });
        }
        let order = body.and_then(|body| body.get("order"));
        match (word.code.as_deref(), order) {
            (Some(ACCEPTED), Some(order)) if order.is_plain_object() => {
                if is_another(payment, order) {
                    return Err(Unusable::Unknown(Doubt::Mismatch, word));
                }
                let paid = is_named(payment, order).then(|| Paid::read(order, &word));
                paid.flatten()
                    .ok_or(Unusable::Unknown(Doubt::Unreadable, word))
            }
            (Some(ACCEPTED) | None, _) => Err(Unusable::Unknown(Doubt::Unreadable, word)),
            (Some(_), _) => Err(Unusable::Refused(Refusal::Rejected, word)),
        }
    }
}

/// An order, as a query shows it.
struct Paid {
    all: Money,
    left: Money,
    status: String,
    names: Names,
    word: ProviderMessage,
}

/// Why there is no order in a reply.
enum Unusable {
    Refused(Refusal, ProviderMessage),
    Unknown(Doubt, ProviderMessage),
}

impl Paid {
    fn read(order: Node<'_>, word: &ProviderMessage) -> Option<Self> {
        let currency = order.get("currency")?.text()?;
        let currency = Currency::from_code(&currency)?;
        Some(Paid {
            all: money(order, "amount", currency)?,
            left: money(order, "netAmount", currency)?,
            status: order.get("status")?.text()?.into_owned(),
            names: names(order),
            word: word.clone(),
        })
    }

    /// What was refunded, in minor units; none where more is left than there was.
    fn missing(&self) -> Option<u64> {
        self.all.minor.checked_sub(self.left.minor)
    }
}

fn money(order: Node<'_>, name: &str, currency: Currency) -> Option<Money> {
    let node = order.get(name)?;
    let number = node.number().filter(|_| node.kind() == Kind::Number)?;
    Money::from_major(number, currency)
}

/// Whether less is left of an order than there was.
fn is_refunded(order: Node<'_>) -> bool {
    let number = |name| scalar(order.get(name));
    // The currency makes no difference to that.
    let minor = |name| Money::from_major(&number(name)?, Currency::from_code("CLF")?);
    matches!((minor("amount"), minor("netAmount")), (Some(all), Some(left)) if left.minor < all.minor)
}

/// Whether a transaction in it has succeeded, be it readable or not.
fn says_success(body: Node<'_>) -> bool {
    let status = body.get("transaction").and_then(|node| node.get("status"));
    status.and_then(Node::text).as_deref() == Some("SUCCESS")
}

/// Whether a reply says anything of a refund, rather than of calling.
fn speaks_of_a_refund(reply: &ProviderReply<'_>) -> bool {
    [
        "responseCode",
        "order",
        "transaction",
        "refund",
        "already",
        "duplicate",
        "processed",
    ]
    .iter()
    .any(|word| reply.mentions(word))
}

fn word(body: Option<Node<'_>>) -> ProviderMessage {
    let get = |name| body.and_then(|body| body.get(name));
    let (message, fields) = message_of(get("message"));
    ProviderMessage {
        code: scalar(get("responseCode")),
        message,
        errors: field_errors([get("errors"), fields]),
    }
}

/// What an order calls itself.
fn names(order: Node<'_>) -> Names {
    Names {
        id: scalar(order.get("id")),
        reference: scalar(order.get("merchantReference")),
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
