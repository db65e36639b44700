//! NAME.
//!
//! TO BE WRITTEN: the vendor's pages, with their addresses and the day on which they were read, and what is special.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Attempt, Capabilities, Configured, Counting, Doubt, Finding, Idempotency, Look, MinorUnits,
    Outcome, Payload, PaymentRule, Provider, ProviderKind, ProviderMessage, ProviderReply,
    ProviderRequest, Reason, Refunds, Units, Wanted, by_status, path_segment,
};
use crate::credentials::Auth;
use crate::reader::{Object, Reader};
use crate::refund::{Payment, Refund};

/// TO BE WRITTEN: where each of these stands on the page.
static CAPABILITIES: Capabilities = Capabilities {
    payment: PaymentRule::Id,
    full_refund: false,
    units: UNITS,
    reason: Reason::NotSent,
    idempotency: Idempotency::Uuid {
        v7: false,
        kept: None,
    },
    refunds: Refunds::Many { show_key: true },
    takes_reference: false,
    shows_currency: true,
    taken: &[],
};

/// TO BE WRITTEN: what the page says of `amount`, and the currencies that it counts by other decimals than ISO 4217.
const UNITS: Units = Units::Minor {
    max: u64::MAX,
    digits: &[],
    disputed: &[],
};

/// What the filter knows of it.
pub static KIND: ProviderKind = ProviderKind {
    name: "NAME",
    capabilities: &CAPABILITIES,
    configure,
};

fn configure(
    reader: &mut Reader<'_>,
    object: &mut Object<'_>,
    minor_units: MinorUnits,
) -> Option<Configured> {
    // TO BE WRITTEN: the members that are its own. Take this fault away when all the rest is written.
    reader.fault(object.at("kind"), "This provider is not written yet.");
    let dialect = TYPE {
        counting: Counting {
            units: UNITS,
            configured: minor_units,
        },
    };
    // `injected_or`: Envoy may add the credential in the filter's place.
    let auth = reader.injected_or(object, |reader, object| {
        reader.credential(object, "api_key").map(Auth::Bearer)
    })?;
    Some(Configured {
        dialect: Box::new(dialect),
        auth,
        account: None,
    })
}

/// The dialect.
#[derive(Debug)]
pub struct TYPE {
    counting: Counting,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<&'a RawValue>,
}

impl Provider for TYPE {
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    fn counting(&self) -> &Counting {
        &self.counting
    }

    fn request(&self, refund: &Refund, attempt: &Attempt<'_>) -> Option<ProviderRequest> {
        let payment = refund.payment.id.as_deref()?;
        Some(ProviderRequest {
            // TO BE WRITTEN: the path, the header and the body of the page.
            path: format!("/payments/{}/refunds", path_segment(payment)),
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
        if !reply.is_success() {
            return by_status(reply.status, ProviderMessage::default());
        }
        // TO BE WRITTEN: every status of the page, with the echoed payment, amount and currency. All the rest stays unknown.
        Outcome::Unknown(Doubt::Unreadable, ProviderMessage::default())
    }

    fn look_up(&self, wanted: &Wanted) -> Option<ProviderRequest> {
        // TO BE WRITTEN: the query that shows a payment's refunds.
        self.look(&wanted.payment)
    }

    fn found(&self, _wanted: &Wanted, _reply: &ProviderReply<'_>) -> Finding {
        // TO BE WRITTEN: which refund is the wanted one. What does not show is not absent, unless the page says so.
        Finding::unreadable(ProviderMessage::default())
    }

    fn look(&self, payment: &Payment) -> Option<ProviderRequest> {
        let payment = payment.id.as_deref()?;
        Some(ProviderRequest {
            // TO BE WRITTEN: the query that shows a payment.
            path: format!("/payments/{}", path_segment(payment)),
            headers: Vec::new(),
            body: Payload::None,
        })
    }

    fn seen(&self, _payment: &Payment, _reply: &ProviderReply<'_>) -> Look {
        // TO BE WRITTEN: which states of a payment can be refunded.
        Look::Unknown(Doubt::Unreadable, ProviderMessage::default())
    }
}
