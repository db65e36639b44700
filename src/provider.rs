//! What a provider's refund dialect is, and those that there are.

mod reply;

use serde_json::value::RawValue;

use crate::clock::{Now, Resend};
use crate::credentials::Auth;
use crate::idempotency::ProviderKey;
use crate::money::{Currency, Money};
use crate::problem::{FieldError, Retry};
use crate::reader::{Object, Reader};
use crate::refund::{Payment, Refund, Status};

pub use reply::{
    Echo, ProviderReply, by_status, differs, echoed_amount, field_errors, identifier, is_refusal,
    message_of, path_segment, plain_text, refusal, scalar,
};

macro_rules! declare {
    ($($name:ident)*) => {
        $(pub mod $name;)*

        /// Every kind of provider, in the order of the documentation.
        pub static KINDS: &[&ProviderKind] = &[$(&$name::KIND),*];
    };
}
crate::for_every_provider!(declare);

/// A kind of provider: what its own file says to the rest.
#[derive(Debug)]
pub struct ProviderKind {
    /// The word for it in the configuration.
    pub name: &'static str,
    /// What it can do.
    pub capabilities: &'static Capabilities,
    /// Reads the members of the configuration that are its own.
    pub configure: fn(&mut Reader<'_>, &mut Object<'_>, MinorUnits) -> Option<Configured>,
}

/// `minor_units` of the configuration: the decimals by which a provider counts a currency.
pub type MinorUnits = Vec<(Currency, u8)>;

/// What a kind makes of its configuration.
#[derive(Debug)]
pub struct Configured {
    /// The dialect of one merchant.
    pub dialect: Box<dyn Provider>,
    /// How the gateway proves itself.
    pub auth: Auth,
    /// The merchant's account, where the configuration names one.
    pub account: Option<String>,
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
    /// Whether it is sent the caller's `reference`, and finds a refund by it.
    pub takes_reference: bool,
    /// Whether it names the currency in what it says of a refund.
    pub shows_currency: bool,
    /// The words by which it says that a refund is made or under way: no refusal that has one in
    /// it is certain.
    pub taken: &'static [&'static str],
}

impl Capabilities {
    /// What a caller may do when it is not known what became of a refund: the contract's "by key".
    pub fn retry_when_unknown(&self) -> Retry {
        match self.idempotency {
            Idempotency::None => Retry::LookUp,
            Idempotency::Uuid { .. } => Retry::SameKey,
        }
    }
}

/// How a provider counts amounts: by its documentation, and by what the configuration says of it.
#[derive(Debug)]
pub struct Counting {
    /// What its documentation says.
    pub units: Units,
    /// `minor_units` of the configuration.
    pub configured: MinorUnits,
}

impl Counting {
    /// The number of decimals by which this provider counts a currency; none where that is in
    /// dispute.
    pub fn digits(&self, currency: Currency) -> Option<u8> {
        let configured = self.configured.iter().find(|(known, _)| *known == currency);
        if let Some((_, digits)) = configured {
            return Some(*digits);
        }
        match self.units {
            Units::Minor { disputed, .. } if disputed.contains(&currency.code()) => None,
            Units::Minor { digits, .. } => {
                let own = digits.iter().find(|(code, _)| *code == currency.code());
                Some(own.map_or(currency.digits(), |(_, digits)| *digits))
            }
            Units::Major { .. } => Some(currency.digits()),
        }
    }

    /// The JSON number for an amount, or a sentence that says why this provider cannot take it.
    pub fn wire_amount(&self, money: Money) -> Result<Box<RawValue>, String> {
        let code = money.currency.code();
        let digits = self.digits(money.currency).ok_or_else(|| {
            format!("How many decimals this provider counts {code} by is in dispute: the platform team must say so in minor_units.")
        })?;
        let units = money.minor_units(digits).ok_or_else(|| {
            format!("This provider counts {code} with {digits} decimals: the value cannot be sent exactly.")
        })?;
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
            Units::Minor { max, .. } if units > max => Err(format!(
                "This provider takes {max} minor units in one refund at most."
            )),
            Units::Minor { .. } => Ok(units.to_string()),
        }?;
        RawValue::from_string(number).map_err(|_| "The value cannot be sent.".to_owned())
    }

    /// The amount that a JSON number of this provider's stands for.
    pub fn read_amount(&self, number: &str, currency: Currency) -> Option<Money> {
        match self.units {
            Units::Major { .. } => Money::from_major(number, currency),
            Units::Minor { .. } => Money::from_minor(number, self.digits(currency)?, currency),
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
    /// A JSON number in major units with at most these decimals and at most this much of it; no
    /// limits where none.
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
        /// The currencies of which nobody outside knows by how many decimals it counts them.
        disputed: &'static [&'static str],
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
        /// For how long the provider says that it keeps it, in seconds. None where it says nothing:
        /// then a repeat counts as safe for ever, so ask the vendor.
        kept: Option<i64>,
    },
}

/// The least margin before a provider forgets a key, in milliseconds: a call that is let go just
/// before has to get there.
const ROAD_MS: i64 = 60_000;

impl Idempotency {
    /// Until when a second send cannot refund twice, if the first leaves now. `settle_ms`: how long
    /// a send may take.
    pub fn resend(self, now: Now, settle_ms: i64) -> Resend {
        match self {
            Idempotency::None => Resend::Never,
            Idempotency::Uuid { kept: None, .. } => Resend::Always,
            Idempotency::Uuid {
                kept: Some(seconds),
                ..
            } => {
                let kept_ms = seconds.saturating_mul(1_000);
                Resend::Until(now.plus(kept_ms.saturating_sub(settle_ms.max(ROAD_MS))))
            }
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
        /// Whether the provider shows the key under which one was made; else its own id alone
        /// tells them apart.
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
    /// Whether it may have gone out with a `reference`.
    pub referenced: bool,
}

/// What a dialect makes of a refund or of a look-up. The credentials come on top: no dialect ever
/// holds one.
#[derive(Debug, Clone)]
pub struct ProviderRequest {
    /// The path after the base URL's, percent-encoded, with its query where it has one.
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
    /// A text to be signed, byte for byte, and how text and signature (standard base64) become the
    /// body.
    ToSign {
        /// What is signed.
        text: String,
        /// Makes the body from text and signature.
        seal: fn(&str, &str) -> String,
    },
}

/// What a reply says about a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider says that the money went back.
    Refunded(Receipt),
    /// The provider took it and has not finished.
    Pending(Receipt),
    /// The provider says that it did not and will not refund under this key.
    Refused(Refusal, ProviderMessage),
    /// It cannot be told from this reply.
    Unknown(Doubt, ProviderMessage),
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
        /// By what the reply shows that this is the refund that was asked for.
        shown_by: ShownBy,
    },
    /// It is not there.
    Absent(Absence, ProviderMessage),
    /// The provider did not take the question.
    Refused(Refusal, ProviderMessage),
    /// It cannot be told from this reply.
    Unknown(Doubt, ProviderMessage),
}

impl Finding {
    /// What a status outside 2xx says.
    pub fn by_status(status: u16, word: ProviderMessage) -> Self {
        match refusal(status) {
            Some(refusal) => Finding::Refused(refusal, word),
            None => Finding::Unknown(Doubt::Failed, word),
        }
    }

    /// A reply that is not what the provider documents.
    pub fn unreadable(word: ProviderMessage) -> Self {
        Finding::Unknown(Doubt::Unreadable, word)
    }
}

/// What in a reply identifies a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownBy {
    /// The key that was asked for.
    Key,
    /// The provider's own id of the refund, which was asked for.
    Id,
    /// Nothing of its own: its payment has a refund.
    Payment,
    /// Nothing that the provider has made: the caller's own name for it, which another caller could
    /// have given to another one.
    Reference,
    /// Nothing at all: the provider says that some refund of this payment is under way.
    Nothing,
}

/// What it means that a provider does not show a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// There is none: the provider's answer proves it.
    Proven,
    /// There may be one that does not show, or not yet: a sentence for the caller.
    Unproven(&'static str),
    /// The payment has refunds, and none of them can be told to be this one: a sentence for the
    /// caller.
    Ambiguous(&'static str),
    /// No refund shows, and the payment is in a state in which none can be made: the provider's
    /// word for it.
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
    /// What the provider calls the payment.
    pub payment: Names,
    /// The provider's words.
    pub word: ProviderMessage,
}

/// What a provider calls a payment, as far as a reply tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Its own id.
    pub id: Option<String>,
    /// The merchant's reference.
    pub reference: Option<String>,
}

/// What a provider says of a payment that is looked at before it is refunded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It can be refunded, as far as this tells.
    Refundable(Shown),
    /// It cannot: what it is instead, such as "not paid".
    NotRefundable(String, ProviderMessage),
    /// The provider did not take the question.
    Refused(Refusal, ProviderMessage),
    /// It cannot be told from this reply.
    Unknown(Doubt, ProviderMessage),
}

impl Look {
    /// What a status outside 2xx says.
    pub fn by_status(status: u16, word: ProviderMessage) -> Self {
        match refusal(status) {
            Some(refusal) => Look::Refused(refusal, word),
            None => Look::Unknown(Doubt::Failed, word),
        }
    }
}

/// A payment, as far as its provider shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its currency.
    pub currency: Option<Currency>,
    /// What is left of it to be refunded.
    pub left: Option<Money>,
    /// Whether some of it has been refunded.
    pub refunded: bool,
    /// What the provider calls it.
    pub names: Names,
    /// The provider's words.
    pub word: ProviderMessage,
}

/// A provider's own code and message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderMessage {
    /// Its code.
    pub code: Option<String>,
    /// Its message.
    pub message: Option<String>,
    /// What it says of single fields.
    pub errors: Vec<FieldError>,
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
    /// It is rate limiting.
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
    /// It is not what the provider documents, or it contradicts itself.
    Unreadable,
    /// It speaks of another amount, currency, payment or key.
    Mismatch,
}

/// One provider's refund dialect. Pure: no clock, no network, no randomness, no credentials, no
/// default methods.
pub trait Provider: std::fmt::Debug {
    /// What the provider can take.
    fn capabilities(&self) -> &'static Capabilities;
    /// How it counts amounts.
    fn counting(&self) -> &Counting;
    /// The provider's request for a refund that its capabilities allow; none where what it needs is
    /// not there (the payment's id, say), which was checked before: then nothing is sent.
    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> Option<ProviderRequest>;
    /// What a reply means. Total: what is not understood is [`Outcome::Unknown`], never refused and
    /// never refunded.
    fn outcome(&self, refund: &Refund, attempt: &Attempt<'_>, reply: &ProviderReply<'_>)
    -> Outcome;
    /// The provider's request for a look-up, likewise.
    fn look_up(&self, wanted: &Wanted) -> Option<ProviderRequest>;
    /// What the reply to a look-up means. Total: what is not understood is [`Finding::Unknown`].
    fn found(&self, wanted: &Wanted, reply: &ProviderReply<'_>) -> Finding;
    /// The provider's request for a look at a payment before it is refunded, likewise.
    fn look(&self, payment: &Payment) -> Option<ProviderRequest>;
    /// What the reply to a look means. Total: what is not understood is [`Look::Unknown`].
    fn seen(&self, payment: &Payment, reply: &ProviderReply<'_>) -> Look;
}
