//! What several steps tell a caller in the same words.

use super::LocalReply;
use crate::problem::{Code, Fault, Problem, Retry};
use crate::provider::Refusal;

/// The problem of a refusal: its code, what a caller may do where nothing else was sent, and what
/// happened.
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

/// The problem where the platform team has switched refunds off.
pub(super) fn provider_off() -> Problem {
    Problem::not_refunded(
        Code::ProviderOff,
        Retry::SameKey,
        "Nothing was sent: the platform team has switched refunds at this provider off. Look-ups go on.",
    )
}

/// The problem of a refund over the configured limit. `why`: a sentence.
pub(super) fn over_limit(why: &str) -> Problem {
    Problem::not_refunded(
        Code::AmountOverLimit,
        Retry::Corrected,
        format!("Nothing was sent. {why}"),
    )
}

/// The problem of a caller who is not let in. `why`: a sentence.
pub(super) fn caller_not_allowed(why: &str) -> Problem {
    Problem::not_refunded(
        Code::CallerNotAllowed,
        Retry::Corrected,
        format!("Nothing was sent. {why}"),
    )
}

/// The problem where the memory that gateways share cannot be asked, and without it nothing may be sent.
pub(super) fn memory_unavailable() -> Problem {
    Problem::unknown(
        Code::MemoryUnavailable,
        Retry::SameKey,
        "This call sent nothing: the memory that the gateways share cannot be asked whether another one has sent this key.",
    )
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

/// What it means that Envoy answered before anything left the gateway. `host`: the provider's, once
/// it is known.
pub(super) fn nothing_left(reply: LocalReply<'_>, host: Option<&str>) -> Problem {
    // The policy of the route guard in envoy.yaml.
    const GUARD: &str = "refund-on-another-route";
    // `upstream_reset_before_response_started{…}` with its many reasons, and the pool's own limits.
    const UNREACHABLE: [&str; 4] = ["upstream_reset", "no_healthy", "overflow", "timeout"];
    let details = reply.details;
    if UNREACHABLE.iter().any(|reason| details.contains(reason)) {
        return unreachable_provider();
    }
    let host = host.unwrap_or("the provider");
    let sentence = match details {
        "route_not_found" | "cluster_not_found" => format!(
            "Nothing was sent: the gateway has no route to this provider. Envoy looked in the virtual host of {host}. The platform \
             team must add a route there that matches the filter state wasm.refund_provider.",
        ),
        _ if details.contains(GUARD) => format!(
            "Nothing was sent: the route that Envoy chose in the virtual host of {host} is not marked as a provider's. The platform \
             team must put this provider's own route, with the metadata refund_filter, in front of it.",
        ),
        _ => "Nothing was sent: the gateway answered in the provider's place.".to_owned(),
    };
    gateway_error(503, &sentence)
}
