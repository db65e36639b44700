//! The filter's own figures: which series there are, and what an answer adds to them.
//!
//! Prometheus does not see the first increment of a series that was not there before. So every
//! series exists from the configuration on, and [`Series`] is the list of those that can be.

use std::borrow::Cow;

use crate::exchange::Answer;
use crate::json::Json;
use crate::problem::Code;
use crate::refund::Status;

/// The code of a call whose caller left before it was answered.
pub const CLIENT_GONE: &str = "client-gone";
const NOT_REFUNDED: &str = "not_refunded";
/// The outcome of a call of which it is not known whether money has moved.
pub const UNKNOWN: &str = "unknown";
const NONE: &str = "none";

/// What a call asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A refund.
    #[default]
    Refund,
    /// How a refund stands.
    LookUp,
    /// What would be sent.
    Preview,
}

impl Kind {
    /// The word in labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Refund => "refund",
            Kind::LookUp => "look_up",
            Kind::Preview => "preview",
        }
    }
}

/// What an answer tells its caller, read from its own body: what is said again, or said
/// otherwise at last, counts as what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `succeeded`, `pending`, `failed`, `preview`, or the problem's code.
    pub status: &'static str,
    /// Whether money has moved.
    pub outcome: &'static str,
    /// The problem's code, or `none`.
    pub code: &'static str,
    /// What the caller may do after a problem.
    pub retry: Option<String>,
    /// The provider's id of the refund.
    pub id: Option<String>,
    /// The amount, such as `10.00 HKD`.
    pub amount: Option<String>,
}

impl Said {
    /// What this answer tells.
    pub fn of(answer: &Answer) -> Self {
        let json = Json::parse(answer.body.as_bytes()).ok();
        let member = |name| json.as_ref()?.root().get(name);
        let text = |name| member(name)?.text().map(Cow::into_owned);
        let code = text("code").and_then(|code| Code::of(&code));
        let status = text("status").and_then(|status| Status::of(&status));
        let (status, outcome, code) = match (code, status) {
            (Some(code), _) if text("outcome").as_deref() == Some(NOT_REFUNDED) => {
                (code.as_str(), NOT_REFUNDED, code.as_str())
            }
            (Some(code), _) => (code.as_str(), UNKNOWN, code.as_str()),
            (None, Some(status)) => (status.as_str(), status.as_str(), NONE),
            (None, None) => (Kind::Preview.as_str(), NOT_REFUNDED, NONE),
        };
        Said {
            status,
            outcome,
            code,
            retry: text("retry"),
            id: text("id"),
            amount: member("amount").and_then(|amount| match amount.text() {
                Some(full) => Some(full.into_owned()),
                None => {
                    let value = amount.get("value")?.text()?;
                    Some(format!("{value} {}", amount.get("currency")?.text()?))
                }
            }),
        }
    }

    /// The same where the caller left before it could be told.
    pub fn to_nobody(self) -> Self {
        Said {
            status: CLIENT_GONE,
            code: CLIENT_GONE,
            ..self
        }
    }
}

/// One series of `refund_calls_total`, but for its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// What was asked for.
    pub kind: Kind,
    /// Whether money has moved.
    pub outcome: &'static str,
    /// The problem's code, or `none`.
    pub code: &'static str,
    /// Whether the answer was given before, and nothing was sent this time.
    pub replayed: bool,
}

/// Where a problem can be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To any call, before its provider is known.
    Unread,
    Preview,
    LookUp,
    Refund,
    /// To a repeated refund call.
    Replay,
}

fn places(code: Code) -> &'static [Place] {
    use Place::{LookUp, Preview, Refund, Replay, Unread};
    match code {
        Code::BadRequest
        | Code::MethodNotAllowed
        | Code::UnsupportedMediaType
        | Code::BodyTooLarge
        | Code::RequestTimeout
        | Code::MalformedJson
        | Code::IdempotencyKeyMissing
        | Code::IdempotencyKeyInvalid => &[Unread],
        // Envoy's own filters write these in front of the filter, which never sees such a call.
        Code::AccessDenied | Code::TooManyRequests => &[],
        Code::InvalidRequest | Code::CallerNotAllowed => &[Unread, Preview, LookUp, Refund],
        Code::AmountOverLimit | Code::ProviderOff => &[Preview, Refund],
        Code::GatewayError => &[Unread, Preview, LookUp, Refund, Replay],
        Code::SigningUnavailable => &[Preview, LookUp, Refund],
        Code::IdempotencyKeyReused | Code::PaymentHasRefund | Code::MemoryUnavailable => &[Refund],
        Code::PaymentNotRefundable => &[Refund, Replay],
        Code::RefundNotFound | Code::RefundAmbiguous => &[LookUp],
        Code::ProviderUnreachable => &[LookUp, Refund],
        Code::RefundInProgress
        | Code::RefundDeclined
        | Code::ProviderRejected
        | Code::PaymentNotFound
        | Code::ProviderAuthFailed
        | Code::ProviderRateLimited
        | Code::ProviderTimeout
        | Code::ProviderError
        | Code::ProviderReplyUnreadable
        | Code::ProviderReplyMismatch => &[LookUp, Refund, Replay],
    }
}

impl Series {
    /// All that there can be of a provider, or of the calls whose provider is not known.
    pub fn all(of_a_provider: bool) -> Vec<Series> {
        let mut all = Vec::new();
        let mut add = |kind, outcomes: &[&'static str], code, replayed| {
            all.extend(outcomes.iter().map(|outcome| Series {
                kind,
                outcome,
                code,
                replayed,
            }));
        };
        // A problem of a look-up says nothing of the refund, but for the proof that there is none.
        let (either, in_doubt) = ([NOT_REFUNDED, UNKNOWN], [UNKNOWN]);
        for (kind, outcomes) in [
            (Kind::Refund, &either[..]),
            (Kind::LookUp, &in_doubt),
            (Kind::Preview, &either),
        ] {
            add(kind, outcomes, CLIENT_GONE, false);
            for code in Code::ALL {
                if !of_a_provider && places(code).contains(&Place::Unread) {
                    add(kind, outcomes, code.as_str(), false);
                }
            }
        }
        if !of_a_provider {
            return all;
        }
        for code in Code::ALL {
            let is_absence = code == Code::RefundNotFound;
            for place in places(code) {
                let (kind, outcomes, replayed) = match place {
                    Place::Unread => continue,
                    Place::Preview => (Kind::Preview, &either[..], false),
                    Place::LookUp if is_absence => (Kind::LookUp, &either[..], false),
                    Place::LookUp => (Kind::LookUp, &in_doubt[..], false),
                    Place::Refund => (Kind::Refund, &either[..], false),
                    Place::Replay => (Kind::Refund, &either[..], true),
                };
                add(kind, outcomes, code.as_str(), replayed);
            }
        }
        let [succeeded, pending, failed] =
            [Status::Succeeded, Status::Pending, Status::Failed].map(Status::as_str);
        add(Kind::Refund, &[succeeded, pending], NONE, false);
        add(Kind::Refund, &[succeeded, pending], NONE, true);
        add(Kind::LookUp, &[succeeded, pending, failed], NONE, false);
        add(Kind::Preview, &[NOT_REFUNDED], NONE, false);
        all
    }

    /// The name of its counter; envoy.yaml's `stats_tags` make labels of it.
    pub fn name(&self, provider: &str) -> String {
        let Series {
            kind,
            outcome,
            code,
            replayed,
        } = self;
        let kind = kind.as_str();
        format!(
            "refund.calls_total.provider.{provider}.kind.{kind}.outcome.{outcome}.code.{code}.replayed.{replayed}"
        )
    }
}
