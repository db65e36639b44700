//! What several steps tell a caller in the same words.

use super::LocalReply;
use crate::problem::{Code, Fault, Problem, Retry};
use crate::provider::Refusal;

/// The problem of a refusal: its code, what a caller may do where nothing else was sent, and what happened.
pub(super) fn of_refusal(refusal: Refusal) -> (Code, Retry, &'static str) {
    match refusal {
        Refusal::Declined => (
            Code::RefundDeclined,
            Retry::No,
            "The provider or the issuer said no.",
        ),
        Refusal::Rejected => (
            Code::ProviderRejected,
            Retry::No,
            "The provider found the request wrong.",
        ),
        Refusal::NotFound => (
            Code::PaymentNotFound,
            Retry::No,
            "The provider does not know this payment.",
        ),
        Refusal::Credentials => (
            Code::ProviderAuthFailed,
            Retry::SameKey,
            "The provider does not accept the gateway's credentials.",
        ),
        Refusal::RateLimited => (
            Code::ProviderRateLimited,
            Retry::SameKey,
            "The provider is rate limiting.",
        ),
    }
}

/// The problem where another key has the payment, or a look shows that it was refunded.
pub(super) fn payment_has_refund(is_open: bool) -> Problem {
    let (retry, sentence) = if is_open {
        (
            Retry::SameKey,
            "Nothing was sent: this provider refunds a payment once, and a refund of it under another key is open.",
        )
    } else {
        (
            Retry::No,
            "Nothing was sent: this provider refunds a payment once, and it has been refunded under another key.",
        )
    };
    Problem::not_refunded(Code::PaymentHasRefund, retry, sentence)
}

pub(super) fn invalid(errors: Vec<Fault>) -> Problem {
    Problem {
        errors,
        ..Problem::not_refunded(
            Code::InvalidRequest,
            Retry::Corrected,
            "Nothing was sent. See `errors`.",
        )
    }
}

pub(super) fn gateway_error(status: u16, sentence: &str) -> Problem {
    Problem {
        status,
        ..Problem::not_refunded(Code::GatewayError, Retry::SameKey, sentence)
    }
}

pub(super) fn unreachable_provider() -> Problem {
    Problem::not_refunded(
        Code::ProviderUnreachable,
        Retry::SameKey,
        "Nothing was sent: the provider could not be reached.",
    )
}

/// What it means that Envoy answered before anything left the gateway.
pub(super) fn nothing_left(reply: LocalReply<'_>) -> Problem {
    // `upstream_reset_before_response_started{…}` with its many reasons, and the pool's own limits.
    const UNREACHABLE: [&str; 4] = ["upstream_reset", "no_healthy", "overflow", "timeout"];
    let details = reply.details;
    if UNREACHABLE.iter().any(|reason| details.contains(reason)) {
        return unreachable_provider();
    }
    gateway_error(
        503,
        match details {
            "route_not_found" | "cluster_not_found" => {
                "Nothing was sent: the gateway has no route to this provider. The platform team must add one that matches the \
                 filter state wasm.refund_provider."
            }
            _ => "Nothing was sent: the gateway answered in the provider's place.",
        },
    )
}
