//! What a provider's refund dialect is, and the registry of those that there are.

pub mod bbmsl;
pub mod begateway;
pub mod bog;
pub mod moyasar;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::value::RawValue;

use crate::idempotency::ProviderKey;
use crate::json::{Json, Kind, Node};
use crate::money::{Currency, Money};
use crate::problem::Retry;
use crate::refund::{Payment, Refund, Status};

/// Which dialect a configured provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// Bank of Georgia, Payments API.
    Bog,
    /// Moyasar Payment Gateway (MPG).
    Moyasar,
    /// beGateway.
    Begateway,
    /// BBMSL, hosted checkout.
    Bbmsl,
}

impl ProviderKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [ProviderKind; 4] = [
        ProviderKind::Bog,
        ProviderKind::Moyasar,
        ProviderKind::Begateway,
        ProviderKind::Bbmsl,
    ];

    /// The word for it in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ProviderKind::Bog => "bog",
            ProviderKind::Moyasar => "moyasar",
            ProviderKind::Begateway => "begateway",
            ProviderKind::Bbmsl => "bbmsl",
        }
    }

    /// What it can do.
    pub fn capabilities(self) -> &'static Capabilities {
        match self {
            ProviderKind::Bog => &bog::CAPABILITIES,
            ProviderKind::Moyasar => &moyasar::CAPABILITIES,
            ProviderKind::Begateway => &begateway::CAPABILITIES,
            ProviderKind::Bbmsl => &bbmsl::CAPABILITIES,
        }
    }
}

/// What a provider can take, as data: the validation of a call is made from it.
#[derive(Debug)]
pub struct Capabilities {
    /// By what it knows a payment.
    pub payment: PaymentRule,
    /// Whether it can refund "all of it" without being told how much.
    pub full_refund: bool,
    /// How it wants an amount.
    pub units: Units,
    /// Whether it wants a reason.
    pub reason: Reason,
    /// Where it takes an idempotency key, if it does.
    pub idempotency: Idempotency,
    /// How many refunds a payment can have.
    pub refunds: Refunds,
}

impl Capabilities {
    /// The JSON number for an amount, or a sentence that says why this provider cannot take it.
    pub fn wire_amount(&self, money: Money) -> Result<Box<RawValue>, String> {
        let number = match self.units {
            Units::Major {
                decimals,
                whole_digits,
            } => {
                let number = money.major_number();
                let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
                match (decimals, whole_digits) {
                    (Some(most), _) if fraction.len() > usize::from(most) => {
                        Err(format!("This provider takes {most} decimals at most."))
                    }
                    (_, Some(most)) if whole.len() > usize::from(most) => Err(format!(
                        "This provider takes {most} digits before the point at most."
                    )),
                    _ => Ok(number),
                }
            }
            Units::Minor { max, .. } => {
                let digits = self.minor_digits(money.currency);
                let units = money.minor_units(digits).ok_or_else(|| {
                    format!(
                        "This provider counts {} with {digits} decimals: the value cannot be sent exactly.",
                        money.currency.code()
                    )
                })?;
                if units > max {
                    return Err(format!(
                        "This provider takes {max} minor units in one refund at most."
                    ));
                }
                Ok(units.to_string())
            }
        }?;
        RawValue::from_string(number).map_err(|_| "The value cannot be sent.".to_owned())
    }

    /// The amount that a JSON number of this provider's stands for.
    pub fn read_amount(&self, number: &str, currency: Currency) -> Option<Money> {
        match self.units {
            Units::Major { .. } => Money::from_major(number, currency),
            Units::Minor { .. } => Money::from_minor(number, self.minor_digits(currency), currency),
        }
    }

    /// The number of decimals that this provider takes a currency to have.
    pub fn minor_digits(&self, currency: Currency) -> u8 {
        let own = match self.units {
            Units::Minor { digits, .. } => digits,
            Units::Major { .. } => &[],
        };
        own.iter()
            .find(|(code, _)| *code == currency.code())
            .map_or(currency.digits(), |(_, digits)| *digits)
    }

    /// What a caller may do when it is not known what became of a refund: the contract's "by key".
    pub fn retry_when_unknown(&self) -> Retry {
        match self.idempotency {
            Idempotency::None => Retry::LookUp,
            Idempotency::Uuid { .. } => Retry::SameKey,
        }
    }
}

/// By what a provider knows a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentRule {
    /// Its own id, any text.
    Id,
    /// Its own id, 1 to 18 digits without a leading zero, or the merchant's reference.
    NumericIdOrReference,
}

/// How a provider wants an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Units {
    /// A JSON number in major units with at most these decimals and at most this much of it; no limits where none.
    Major {
        /// The most decimals.
        decimals: Option<u8>,
        /// The most digits before the point.
        whole_digits: Option<u8>,
    },
    /// A JSON integer of minor units, at most `max`.
    Minor {
        /// The most that it takes in one call.
        max: u64,
        /// Where its number of decimals is not ISO 4217's.
        digits: &'static [(&'static str, u8)],
    },
}

/// What a provider does with a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It has no place for one.
    NotSent,
    /// It refuses a refund without one.
    Required,
}

/// How a provider tells a second send from a second refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// Not at all.
    None,
    /// By a UUID.
    Uuid {
        /// Whether version 7 is taken as it is; version 4 always is.
        v7: bool,
        /// For how long the provider says that it keeps it, in seconds, if it says.
        kept: Option<i64>,
    },
}

impl Idempotency {
    /// Until when a second send is no second refund, if the first leaves now (Unix time in milliseconds): [`i64::MAX`] where
    /// it never is one as far as the provider says, 0 where it always may be.
    pub fn resend_until_ms(self, now_ms: i64) -> i64 {
        match self {
            Idempotency::None => 0,
            Idempotency::Uuid { kept: None, .. } => i64::MAX,
            Idempotency::Uuid {
                kept: Some(seconds),
                ..
            } => now_ms.saturating_add(seconds.saturating_mul(1_000)),
        }
    }
}

/// How many refunds a payment can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refunds {
    /// One, in part or in full.
    One,
    /// Any number, until all of it is refunded.
    Many {
        /// Whether the provider shows the key under which one was made; else its own id alone tells them apart.
        show_key: bool,
    },
}

/// One send of a refund.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The idempotency key of this refund at this provider; the same for every send.
    pub key: ProviderKey,
    /// The reason to send where the caller gave none.
    pub default_reason: Option<&'a str>,
}

/// The refund that a look-up is about, by all the names that the caller has for it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its payment.
    pub payment: Payment,
    /// The provider's id of the refund.
    pub id: Option<String>,
    /// The idempotency key under which it went to this provider.
    pub key: Option<ProviderKey>,
    /// The caller's own name for it.
    pub reference: Option<String>,
}

impl Wanted {
    /// The question what became of a payment.
    pub fn of_payment(payment: &Payment) -> Self {
        Wanted {
            payment: payment.clone(),
            id: None,
            key: None,
            reference: None,
        }
    }
}

/// What a dialect makes of a refund or of a look-up. The credentials come on top: no dialect ever holds one.
#[derive(Debug, Clone)]
pub struct ProviderRequest {
    /// The path after the base URL's, percent-encoded.
    pub path: String,
    /// The provider's own headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Payload,
}

/// The body of a request to a provider, and with it the method: GET where there is none, else POST.
#[derive(Debug, Clone)]
pub enum Payload {
    /// None.
    None,
    /// JSON, ready to be sent.
    Plain(String),
    /// A text to be signed, byte for byte, and how text and signature (standard base64) become the body.
    ToSign {
        /// What is signed.
        text: String,
        /// Makes the body from text and signature.
        seal: fn(&str, &str) -> String,
    },
}

/// A provider's whole reply.
#[derive(Debug)]
pub struct ProviderReply<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The body, whole.
    pub body: &'a [u8],
    json: Option<Json<'a>>,
}

impl<'a> ProviderReply<'a> {
    /// A reply with this status and body.
    pub fn new(status: u16, body: &'a [u8]) -> Self {
        ProviderReply {
            status,
            body,
            json: Json::parse(body).ok(),
        }
    }

    /// The body's JSON.
    pub fn json(&self) -> Option<Node<'_>> {
        self.json.as_ref().map(Json::root)
    }

    /// The body's JSON, if it is a plain object.
    pub fn object(&self) -> Option<Node<'_>> {
        self.json().filter(|node| node.is_plain_object())
    }

    /// Whether these characters stand anywhere in the body, whatever the body is, in whatever case, and whether or not they
    /// are written as JSON's escapes (RFC 8259, 7).
    pub fn mentions(&self, word: &str) -> bool {
        let stands_in = |text: &[u8]| {
            text.windows(word.len().max(1))
                .any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
        };
        stands_in(self.body) || self.body.contains(&b'\\') && stands_in(&unescaped(self.body))
    }

    /// Whether the status is a 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The text with its escapes taken for what they stand for, as far as that is ASCII.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let Some((escape, after)) = rest.split_first().filter(|_| *byte == b'\\') else {
            out.push(*byte);
            continue;
        };
        rest = after;
        let code = rest.split_first_chunk::<4>().filter(|_| *escape == b'u');
        match code.and_then(|(hex, after)| {
            let hex = std::str::from_utf8(hex).ok()?;
            Some((u8::try_from(u16::from_str_radix(hex, 16).ok()?), after))
        }) {
            Some((code, after)) => {
                out.push(code.unwrap_or(b'?'));
                rest = after;
            }
            None => out.push(*escape),
        }
    }
    out
}

/// What a reply says about a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider says that the money went back.
    Refunded(Receipt),
    /// The provider took it and has not finished.
    Pending(Receipt),
    /// The provider says that it did not and will not refund under this key.
    Refused(Refusal, Word),
    /// It cannot be told from this reply.
    Unknown(Doubt, Word),
}

/// What a reply to a look-up says of the refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Here it is.
    Found {
        /// How it stands.
        status: Status,
        /// What the provider says of it.
        receipt: Receipt,
        /// Whether the reply shows the key that was asked for: then it is the refund under that key, whatever else it was
        /// found by.
        by_key: bool,
    },
    /// It is not there.
    Absent(Absence, Word),
    /// The provider did not take the question.
    Refused(Refusal, Word),
    /// It cannot be told from this reply.
    Unknown(Doubt, Word),
}

impl Finding {
    /// What a status outside 2xx says.
    pub fn by_status(status: u16, word: Word) -> Self {
        match refusal(status) {
            Some(refusal) => Finding::Refused(refusal, word),
            None => Finding::Unknown(Doubt::Failed, word),
        }
    }

    /// A reply that is not what the provider documents.
    pub fn unreadable(word: Word) -> Self {
        Finding::Unknown(Doubt::Unreadable, word)
    }
}

/// What it means that a provider does not show a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// There is none: the provider's answer proves it.
    Proven,
    /// There may be one that does not show, or not yet, or cannot be told from others: a sentence for the caller.
    Unproven(&'static str),
    /// No refund shows, and the payment is in a state in which none can be made: the provider's word for it.
    NotRefundable(&'static str),
}

impl Outcome {
    /// What it means that a provider shows the refund in this state.
    pub fn of(status: Status, receipt: Receipt) -> Self {
        match status {
            Status::Succeeded => Outcome::Refunded(receipt),
            Status::Pending => Outcome::Pending(receipt),
            Status::Failed => Outcome::Refused(Refusal::Declined, receipt.word),
        }
    }
}

/// What a provider says of a refund that it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The refund's id.
    pub id: Option<String>,
    /// The refund's amount.
    pub amount: Option<Money>,
    /// The refund's own time, as the provider writes it.
    pub created_at: Option<String>,
    /// The provider's words.
    pub word: Word,
}

/// A provider's own code and message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Word {
    /// Its code.
    pub code: Option<String>,
    /// Its message.
    pub message: Option<String>,
}

/// Why a provider did not refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It, or the issuer, said no to this refund.
    Declined,
    /// It found the request wrong.
    Rejected,
    /// It does not know the payment.
    NotFound,
    /// It does not accept the credentials.
    Credentials,
    /// It wants fewer calls.
    RateLimited,
}

/// Why it cannot be told whether money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The first send under this key is still at work.
    InProgress,
    /// It refuses, and that may be because the refund is there already.
    MaybeThere,
    /// It failed.
    Failed,
    /// It is not what the provider documents.
    Unreadable,
    /// It speaks of another amount, currency or payment.
    Mismatch,
}

/// One provider's refund dialect. Pure: no clock, no network, no randomness, no credentials, no default methods.
pub trait Provider: std::fmt::Debug {
    /// What the provider can take.
    fn capabilities(&self) -> &'static Capabilities;
    /// The provider's request for a refund that its capabilities allow.
    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> ProviderRequest;
    /// What a reply means. Total: what is not understood is [`Outcome::Unknown`], never refused and never refunded.
    fn outcome(&self, refund: &Refund, attempt: &Attempt<'_>, reply: &ProviderReply<'_>)
    -> Outcome;
    /// The provider's request for a look-up.
    fn look_up(&self, wanted: &Wanted) -> ProviderRequest;
    /// What the reply to a look-up means. Total: what is not understood is [`Finding::Unknown`].
    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding;
}

/// The refusal that a status outside 2xx is where the body says nothing more: one table for all providers (contract, "Errors").
/// What it does not name is a failure of which nothing is known.
fn refusal(status: u16) -> Option<Refusal> {
    match status {
        402 => Some(Refusal::Declined),
        400 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431 => Some(Refusal::Rejected),
        404 => Some(Refusal::NotFound),
        401 | 403 => Some(Refusal::Credentials),
        429 => Some(Refusal::RateLimited),
        _ => None,
    }
}

/// What a status outside 2xx means for a refund where the body says nothing more.
pub fn by_status(status: u16, word: Word) -> Outcome {
    match refusal(status) {
        Some(refusal) => Outcome::Refused(refusal, word),
        None => Outcome::Unknown(Doubt::Failed, word),
    }
}

/// Whether a status says that the provider looked at the refund and refused it: the ones after which its words decide
/// whether a refund may be there already.
pub fn is_verdict(status: u16) -> bool {
    status == 409
        || matches!(
            refusal(status),
            Some(Refusal::Declined | Refusal::Rejected | Refusal::NotFound)
        )
}

/// RFC 3986's unreserved characters stand for themselves.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A value as one path segment.
pub fn path_segment(value: &str) -> String {
    utf8_percent_encode(value, PATH_SEGMENT).to_string()
}

/// The text of a string or a number: providers are not of one mind whether an id or a code is one or the other.
pub fn scalar(node: Option<Node<'_>>) -> Option<String> {
    let node = node?;
    match node.number() {
        Some(number) => Some(number.to_owned()),
        None => node
            .text()
            .filter(|text| !text.is_empty())
            .map(std::borrow::Cow::into_owned),
    }
}

/// A refund's id at its provider, as text. What is absurdly long or holds control characters is none.
pub fn identifier(node: Option<Node<'_>>) -> Option<String> {
    scalar(node).filter(|id| id.len() <= 255 && !id.chars().any(char::is_control))
}

/// A body that is no JSON as a message: plain text yes, a page of HTML no.
pub fn plain_text(reply: &ProviderReply<'_>) -> Option<String> {
    let text = std::str::from_utf8(reply.body).ok()?.trim();
    let speaks = !text.is_empty() && !text.starts_with(['<', '{', '[']);
    (speaks && reply.json().is_none()).then(|| text.to_owned())
}

/// Whether an echoed name is another than the one that was sent. What is not echoed proves nothing; what is echoed as
/// neither string nor number is another.
pub fn differs(echoed: Option<Node<'_>>, sent: Option<&str>) -> bool {
    match (echoed, sent) {
        (Some(echoed), Some(sent)) => scalar(Some(echoed)).as_deref() != Some(sent),
        _ => false,
    }
}

/// What a provider's amount and currency say beside those that were asked for.
pub enum Echo {
    /// The same, or nothing; with the amount where it is known.
    Same(Option<Money>),
    /// Another amount or currency.
    Other,
    /// Not an amount at all.
    Unreadable,
}

/// Reads an echoed amount as this provider counts, and compares it and its currency with the one that was asked for, if one was.
pub fn echoed_amount(
    capabilities: &Capabilities,
    asked: Option<Money>,
    amount: Option<Node<'_>>,
    currency: Option<Node<'_>>,
) -> Echo {
    let named = match currency.map(|node| node.text()) {
        None => None,
        Some(None) => return Echo::Unreadable,
        Some(Some(code)) => match (Currency::from_code(&code), asked) {
            (Some(currency), _) => Some(currency),
            (None, Some(_)) => return Echo::Other,
            (None, None) => return Echo::Same(None),
        },
    };
    if let (Some(named), Some(asked)) = (named, asked)
        && named != asked.currency
    {
        return Echo::Other;
    }
    let Some(amount) = amount else {
        return Echo::Same(None);
    };
    if amount.kind() != Kind::Number {
        return Echo::Unreadable;
    }
    let Some(currency) = named.or(asked.map(|money| money.currency)) else {
        return Echo::Same(None);
    };
    match (
        amount
            .number()
            .and_then(|number| capabilities.read_amount(number, currency)),
        asked,
    ) {
        (Some(money), Some(asked)) if money != asked => Echo::Other,
        (Some(money), _) => Echo::Same(Some(money)),
        // A number that is no amount of this currency is not ours either.
        (None, Some(_)) => Echo::Other,
        (None, None) => Echo::Unreadable,
    }
}
