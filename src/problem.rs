//! The closed catalogue of errors, as `application/problem+json` (RFC 9457).

use serde::Serialize;

/// Every error that a caller can get. What each means and what its caller may do stands in the
/// table of `docs/api.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// Envoy itself could not take the request.
    BadRequest,
    /// Another method than POST and GET.
    MethodNotAllowed,
    /// The body is not JSON by its own word.
    UnsupportedMediaType,
    /// The body is over 64 KiB.
    BodyTooLarge,
    /// The body did not come in time.
    RequestTimeout,
    /// The body is not one JSON value in UTF-8.
    MalformedJson,
    /// No `Idempotency-Key`.
    IdempotencyKeyMissing,
    /// An `Idempotency-Key` that cannot be one, or two of them.
    IdempotencyKeyInvalid,
    /// The key was used with another refund.
    IdempotencyKeyReused,
    /// What the contract or this provider cannot take.
    InvalidRequest,
    /// The amount is over the configured limit.
    AmountOverLimit,
    /// The caller cannot be told, or may not use this provider.
    CallerNotAllowed,
    /// Envoy's own filters did not let the caller in. (Envoy writes it, by `envoy.yaml`.)
    AccessDenied,
    /// Envoy's own rate limit. (Envoy writes it, by `envoy.yaml`.)
    TooManyRequests,
    /// Refunds at this provider are switched off.
    ProviderOff,
    /// The same key is in flight, here or at the provider.
    RefundInProgress,
    /// This provider refunds a payment once, and another key has this payment, or it shows a
    /// refund.
    PaymentHasRefund,
    /// The provider or issuer said no.
    RefundDeclined,
    /// The provider found the request wrong.
    ProviderRejected,
    /// The provider does not know the payment.
    PaymentNotFound,
    /// The payment was looked at before sending, and it cannot be refunded like this.
    PaymentNotRefundable,
    /// The provider does not show the refund that was looked up.
    RefundNotFound,
    /// The payment that was looked up shows a refund, and nothing tells whose it is.
    RefundAmbiguous,
    /// The provider does not accept the platform's credentials.
    ProviderAuthFailed,
    /// The provider is rate limiting.
    ProviderRateLimited,
    /// No connection was made, so nothing was sent.
    ProviderUnreachable,
    /// The provider's answer did not come in time.
    ProviderTimeout,
    /// The provider failed, or the connection broke after sending.
    ProviderError,
    /// The provider's answer is not what it documents.
    ProviderReplyUnreadable,
    /// The provider's answer speaks of another refund.
    ProviderReplyMismatch,
    /// No usable signing key, or the signer failed.
    SigningUnavailable,
    /// The memory that gateways share cannot be asked, and this provider has no keys of its own.
    MemoryUnavailable,
    /// The gateway itself failed, or has no route.
    GatewayError,
}

impl Code {
    /// The problem of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == name)
    }

    /// All of them.
    pub const ALL: [Code; 33] = [
        Code::BadRequest,
        Code::MethodNotAllowed,
        Code::UnsupportedMediaType,
        Code::BodyTooLarge,
        Code::RequestTimeout,
        Code::MalformedJson,
        Code::IdempotencyKeyMissing,
        Code::IdempotencyKeyInvalid,
        Code::IdempotencyKeyReused,
        Code::InvalidRequest,
        Code::AmountOverLimit,
        Code::CallerNotAllowed,
        Code::AccessDenied,
        Code::TooManyRequests,
        Code::ProviderOff,
        Code::RefundInProgress,
        Code::PaymentHasRefund,
        Code::RefundDeclined,
        Code::ProviderRejected,
        Code::PaymentNotFound,
        Code::PaymentNotRefundable,
        Code::RefundNotFound,
        Code::RefundAmbiguous,
        Code::ProviderAuthFailed,
        Code::ProviderRateLimited,
        Code::ProviderUnreachable,
        Code::ProviderTimeout,
        Code::ProviderError,
        Code::ProviderReplyUnreadable,
        Code::ProviderReplyMismatch,
        Code::SigningUnavailable,
        Code::MemoryUnavailable,
        Code::GatewayError,
    ];

    /// The code as callers see it.
    pub fn as_str(self) -> &'static str {
        self.entry().0
    }

    /// The HTTP status of this problem.
    pub fn status(self) -> u16 {
        self.entry().1
    }

    /// A short sentence that is the same for every problem of this code.
    pub fn title(self) -> &'static str {
        self.entry().2
    }

    fn entry(self) -> (&'static str, u16, &'static str) {
        match self {
            Code::BadRequest => ("bad-request", 400, "The request could not be read"),
            Code::MethodNotAllowed => (
                "method-not-allowed",
                405,
                "A refund is asked for with POST, and looked up with GET",
            ),
            Code::UnsupportedMediaType => (
                "unsupported-media-type",
                415,
                "The body must be application/json",
            ),
            Code::BodyTooLarge => ("body-too-large", 413, "The body is over 64 KiB"),
            Code::RequestTimeout => ("request-timeout", 408, "The body did not come in time"),
            Code::MalformedJson => ("malformed-json", 400, "The body is not JSON"),
            Code::IdempotencyKeyMissing => (
                "idempotency-key-missing",
                400,
                "The Idempotency-Key header is missing",
            ),
            Code::IdempotencyKeyInvalid => (
                "idempotency-key-invalid",
                400,
                "The Idempotency-Key header is invalid",
            ),
            Code::IdempotencyKeyReused => (
                "idempotency-key-reused",
                422,
                "The key was used with another refund",
            ),
            Code::InvalidRequest => ("invalid-request", 422, "The call has faults"),
            Code::AmountOverLimit => ("amount-over-limit", 422, "The amount is over the limit"),
            Code::CallerNotAllowed => ("caller-not-allowed", 403, "The caller is not allowed"),
            Code::AccessDenied => ("access-denied", 403, "Access denied"),
            Code::TooManyRequests => ("too-many-requests", 429, "Too many requests"),
            Code::ProviderOff => (
                "provider-off",
                503,
                "Refunds at this provider are switched off",
            ),
            Code::RefundInProgress => (
                "refund-in-progress",
                409,
                "A refund with this key is in flight",
            ),
            Code::PaymentHasRefund => (
                "payment-has-refund",
                409,
                "The payment has a refund under another key",
            ),
            Code::RefundDeclined => ("refund-declined", 422, "The refund was declined"),
            Code::ProviderRejected => {
                ("provider-rejected", 422, "The provider refused the request")
            }
            Code::PaymentNotFound => (
                "payment-not-found",
                404,
                "The provider does not know the payment",
            ),
            Code::PaymentNotRefundable => (
                "payment-not-refundable",
                422,
                "The payment cannot be refunded like this",
            ),
            Code::RefundNotFound => (
                "refund-not-found",
                404,
                "The provider does not show the refund",
            ),
            Code::RefundAmbiguous => (
                "refund-ambiguous",
                409,
                "The payment shows a refund, and nothing tells whose it is",
            ),
            Code::ProviderAuthFailed => (
                "provider-auth-failed",
                502,
                "The provider does not accept the gateway's credentials",
            ),
            Code::ProviderRateLimited => (
                "provider-rate-limited",
                503,
                "The provider is rate limiting",
            ),
            Code::ProviderUnreachable => (
                "provider-unreachable",
                503,
                "The provider could not be reached",
            ),
            Code::ProviderTimeout => (
                "provider-timeout",
                504,
                "The provider did not answer in time",
            ),
            Code::ProviderError => ("provider-error", 502, "The provider failed"),
            Code::ProviderReplyUnreadable => (
                "provider-reply-unreadable",
                502,
                "The provider's answer could not be read",
            ),
            Code::ProviderReplyMismatch => (
                "provider-reply-mismatch",
                502,
                "The provider's answer speaks of another refund",
            ),
            Code::SigningUnavailable => (
                "signing-unavailable",
                503,
                "The request could not be signed",
            ),
            Code::MemoryUnavailable => (
                "memory-unavailable",
                503,
                "The gateways' memory cannot be asked",
            ),
            Code::GatewayError => ("gateway-error", 500, "The gateway failed"),
        }
    }
}

/// Whether money may have moved under this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moved {
    /// Certainly not.
    #[serde(rename = "not_refunded")]
    No,
    /// It may have.
    Unknown,
}

/// What the caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// The same call with the same key cannot refund twice.
    SameKey,
    /// As it stands the call fails again, and it has not spent its key: correct it and send it with
    /// the same key.
    Corrected,
    /// Ask for the refund's state first.
    LookUp,
    /// The key is spent. With `not_refunded` a further attempt takes a new key; with `unknown` none
    /// may be made until the provider's word.
    No,
}

impl Retry {
    /// The word as callers see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Retry::SameKey => "same_key",
            Retry::Corrected => "corrected",
            Retry::LookUp => "look_up",
            Retry::No => "no",
        }
    }
}

/// One fault of the canonical call or of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// A JSON pointer (RFC 6901) to the member.
    pub pointer: String,
    /// A sentence: what is wrong and what would be right. Never a secret.
    pub detail: String,
}

impl Fault {
    /// A fault at a pointer.
    pub fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Fault {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// What the provider itself said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProviderWord {
    /// The provider's configured name.
    pub name: String,
    /// The HTTP status of its reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Its own code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Its own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it said of single fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// What a provider said of one field of its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// The path to the field in the provider's own names, joined by dots; none where it named no
    /// field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Its words.
    pub message: String,
}

/// An error as its caller gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which error.
    pub code: Code,
    /// The HTTP status: the code's own, but for `gateway-error`, which is 500 or 503.
    pub status: u16,
    /// What happened, in a sentence or two. Whether money may have moved, and what to do, is added
    /// from `outcome` and `retry`.
    pub detail: String,
    /// Whether money may have moved.
    pub outcome: Moved,
    /// What the caller may do.
    pub retry: Retry,
    /// Until when `same_key` holds (RFC 3339), where the provider forgets keys.
    pub retry_until: Option<String>,
    /// All faults of an `invalid-request`.
    pub errors: Vec<Fault>,
    /// What the provider said.
    pub provider: Option<ProviderWord>,
    /// The value of `Retry-After`, as the provider gave it.
    pub retry_after: Option<String>,
    /// Whether it is the answer to a look-up, which moves nothing by itself.
    pub look_up: bool,
}

impl Problem {
    /// A problem of which it is certain that no money moved.
    pub fn not_refunded(code: Code, retry: Retry, detail: impl Into<String>) -> Self {
        Problem {
            code,
            status: code.status(),
            detail: detail.into(),
            outcome: Moved::No,
            retry,
            retry_until: None,
            errors: Vec::new(),
            provider: None,
            retry_after: None,
            look_up: false,
        }
    }

    /// A problem after which money may have moved.
    pub fn unknown(code: Code, retry: Retry, detail: impl Into<String>) -> Self {
        Problem {
            outcome: Moved::Unknown,
            ..Problem::not_refunded(code, retry, detail)
        }
    }

    /// Makes it a problem of a key under which another send may have moved money, whatever became
    /// of this one. `retry` is what stands in place of `same_key`; a fault of the call itself
    /// stays one that must be corrected.
    pub fn after_another_send(&mut self, retry: Retry) {
        if self.outcome == Moved::Unknown {
            return;
        }
        self.outcome = Moved::Unknown;
        self.retry = match self.retry {
            Retry::SameKey => retry,
            Retry::Corrected => Retry::Corrected,
            // The same call would be refused again, and nothing learnt of the send before it.
            Retry::LookUp | Retry::No => Retry::LookUp,
        };
        self.detail
            .push_str(" Another send under this key may have been the refund.");
    }

    /// Makes it the answer to a look-up: what fails there says nothing of the refund, but for the
    /// proof that there is none.
    pub fn of_look_up(&mut self) {
        self.look_up = true;
        if self.code == Code::RefundNotFound && self.outcome == Moved::No {
            return;
        }
        self.outcome = Moved::Unknown;
        self.retry_until = None;
        if self.retry == Retry::SameKey {
            self.retry = Retry::LookUp;
        }
    }

    /// Whether money may have moved, and what to do.
    fn advice(&self) -> &'static str {
        match (self.outcome, self.retry) {
            (Moved::Unknown, Retry::LookUp) if self.look_up => {
                "Whether money has moved is as unknown as before. Look the refund up again before anything else; a call with a \
                 new key could refund again."
            }
            (Moved::Unknown, Retry::Corrected) if self.look_up => {
                "Whether money has moved is as unknown as before. Correct the look-up: as it stands it fails again."
            }
            (Moved::Unknown, Retry::No) if self.look_up => {
                "Whether money has moved is not known, and looking it up again will not tell. Ask the provider, and do not \
                 refund again before its answer."
            }
            (Moved::No, Retry::SameKey) if self.code == Code::PaymentHasRefund => {
                "No money has moved under this key. Send the call again with the same key once the other refund has ended."
            }
            (Moved::No, Retry::No) if self.code == Code::PaymentHasRefund => {
                "No money has moved under this key, and while the other refund stands none can: no new key changes that."
            }
            (Moved::No, Retry::SameKey) => {
                "No money has moved. Send the call again with the same key."
            }
            (Moved::No, Retry::Corrected) => {
                "No money has moved. Correct the call and send it with the same key; as it stands it fails again."
            }
            (Moved::No, Retry::LookUp | Retry::No) => {
                "No money has moved. This key is spent: a further attempt needs a new key."
            }
            (Moved::Unknown, Retry::SameKey) => {
                "Money may have moved. Send the same call again with the same key, which cannot refund twice; never with a \
                 new one."
            }
            (Moved::Unknown, Retry::Corrected) => {
                "Money may have moved by an earlier call with this key. Correct the call and send it with the same key, never \
                 with a new one."
            }
            (Moved::Unknown, Retry::LookUp) => {
                "Money may have moved. Look the refund up before anything else; a call with a new key could refund again."
            }
            (Moved::Unknown, Retry::No) => {
                "Money may have moved by an earlier call with this key. A new key is for another refund alone."
            }
        }
    }

    /// The problem's body.
    pub fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: String,
            code: &'a str,
            outcome: Moved,
            retry: Retry,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_until: Option<&'a str>,
            #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
            errors: &'a [Fault],
            #[serde(skip_serializing_if = "Option::is_none")]
            provider: Option<&'a ProviderWord>,
        }
        let code = self.code.as_str();
        crate::json_text(&Body {
            r#type: format!("urn:refund-filter:{code}"),
            title: self.code.title(),
            status: self.status,
            detail: format!("{} {}", self.detail, self.advice()),
            code,
            outcome: self.outcome,
            retry: self.retry,
            retry_until: self.retry_until.as_deref(),
            errors: &self.errors,
            provider: self.provider.as_ref(),
        })
    }
}

/// How many unknown or doubled members are told one by one.
pub(crate) const MAX_TOLD: usize = 20;

/// A member's name as a token of a JSON pointer, cut where a name is absurdly long.
pub(crate) fn pointer_token(name: &str) -> String {
    let escaped: String = name
        .chars()
        .take(64)
        .flat_map(|c| match c {
            '~' => vec!['~', '0'],
            '/' => vec!['~', '1'],
            other => vec![other],
        })
        .collect();
    escaped
}
