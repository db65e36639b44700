//! The canonical refund: what an application asks for, and the answer that it gets.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::money::Money;

/// How much is to be refunded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// All of the payment.
    Full,
    /// This much.
    Exactly(Money),
}

/// The payment, by the names that the caller has for it: at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Payment {
    /// The provider's id: 1 to 128 characters, neither `.` nor `..`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The merchant's own reference: 1 to 64 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// A canonical refund call without a fault, for a provider that can take it.
#[derive(Debug, Clone)]
pub struct Refund {
    /// The payment.
    pub payment: Payment,
    /// The amount.
    pub amount: Amount,
    /// The amount as the provider's JSON number; none for a full refund, and for nothing else.
    pub wire_amount: Option<Box<RawValue>>,
    /// Why, 1 to 255 characters.
    pub reason: Option<String>,
    /// The caller's own name for this refund, 1 to 64 characters.
    pub reference: Option<String>,
}

impl Refund {
    /// The amount, where the call names one.
    pub fn asked(&self) -> Option<Money> {
        match self.amount {
            Amount::Exactly(money) => Some(money),
            Amount::Full => None,
        }
    }

    /// What a list of open refunds shows of it: an object in JSON.
    pub fn note(&self, provider: &str) -> String {
        #[derive(Serialize)]
        struct Note<'a> {
            provider: &'a str,
            payment: &'a Payment,
            amount: AmountBody,
        }
        crate::json_text(&Note {
            provider,
            payment: &self.payment,
            amount: self.amount.into(),
        })
    }
}

/// An amount as callers write and read it.
#[derive(Serialize)]
#[serde(untagged)]
enum AmountBody {
    Full(&'static str),
    Exactly {
        value: String,
        currency: &'static str,
    },
}

impl From<Amount> for AmountBody {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Full => AmountBody::Full("full"),
            Amount::Exactly(money) => AmountBody::Exactly {
                value: money.value(),
                currency: money.currency.code(),
            },
        }
    }
}

/// A refund's state where there is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The provider says that the money went back.
    Succeeded,
    /// Accepted, not final.
    Pending,
    /// The provider says that it did not and will not go back: in a look-up alone.
    Failed,
}

impl Status {
    /// The status of this word.
    pub fn of(word: &str) -> Option<Self> {
        [Status::Succeeded, Status::Pending, Status::Failed]
            .into_iter()
            .find(|status| status.as_str() == word)
    }

    /// The word as callers see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Succeeded => "succeeded",
            Status::Pending => "pending",
            Status::Failed => "failed",
        }
    }

    /// The HTTP status of the answer to a refund call.
    pub fn http(self) -> u16 {
        match self {
            Status::Succeeded | Status::Failed => 200,
            Status::Pending => 202,
        }
    }
}

/// The answer to a refund call that the provider took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refunded<'a> {
    /// The provider's own id of the refund.
    pub id: Option<&'a str>,
    /// The provider's configured name.
    pub provider: &'a str,
    /// How far it is.
    pub status: Status,
    /// The payment, as the caller named it.
    pub payment: &'a Payment,
    /// The amount: the provider's word where it gives one, else the caller's; a look-up's caller
    /// has none.
    pub amount: Option<Amount>,
    /// The caller's reason.
    pub reason: Option<&'a str>,
    /// The caller's reference.
    pub reference: Option<&'a str>,
    /// The provider's code.
    pub provider_code: Option<&'a str>,
    /// The provider's words.
    pub provider_message: Option<&'a str>,
    /// The refund's own time (RFC 3339), as the provider gives it.
    pub created_at: Option<&'a str>,
}

impl Refunded<'_> {
    /// The answer's body. What the provider does not say is left out.
    pub fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<&'a str>,
            provider: &'a str,
            status: Status,
            payment: &'a Payment,
            #[serde(skip_serializing_if = "Option::is_none")]
            amount: Option<AmountBody>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reference: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            provider_code: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            provider_message: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            created_at: Option<&'a str>,
        }
        crate::json_text(&Body {
            id: self.id,
            provider: self.provider,
            status: self.status,
            payment: self.payment,
            amount: self.amount.map(AmountBody::from),
            reason: self.reason,
            reference: self.reference,
            provider_code: self.provider_code,
            provider_message: self.provider_message,
            created_at: self.created_at,
        })
    }
}
