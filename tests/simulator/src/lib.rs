//! Strict stand-ins of the four payment providers, and of Bank of Georgia's token endpoint, over
//! TLS.
//!
//! Each provider is written from its vendor's page alone, and refuses whatever that page does not
//! know: another path, method or content type, an unknown or missing member, a wrong unit or JSON
//! type, a signature that does not verify. None of it shares a line with the filter, so that the
//! two can disagree.
//!
//! What a page leaves open is said where the choice was made, with the words "the page does not
//! say".
//!
//! ```no_run
//! # async fn demo() -> Result<(), provider_simulator::Error> {
//! use provider_simulator::{Fault, Options, Provider, Simulators};
//!
//! let simulators = Simulators::start(Options::default()).await?;
//! simulators.next_fault(Provider::Bog, Fault::Close { booked: true });
//! // ... a refund through the filter, to simulators.address(Provider::Bog) ...
//! assert_eq!(simulators.ledger(Provider::Bog).len(), 1);
//! # Ok(())
//! # }
//! ```

mod amount;
mod bbmsl;
mod begateway;
mod bog;
mod credentials;
mod exchange;
mod fault;
mod json;
mod ledger;
mod moyasar;
pub mod orders;
mod server;
mod simulators;
mod tls;

pub use credentials::{Credentials, MerchantKey, OAuthClient, Shop, SigningKeys};
pub use exchange::{Exchange, Received, Reply};
pub use fault::Fault;
pub use ledger::Refunded;
pub use orders::Order;
pub use simulators::{Error, ExpiresIn, Options, Simulators, TokenLifetime};
pub use tls::{Alpn, Certificate};

/// One of the five endpoints played here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    /// Bank of Georgia, `POST /payments/v1/payment/refund/{order_id}` and `GET
    /// /payments/v1/receipt/{order_id}`.
    Bog,
    /// Bank of Georgia's token endpoint, `POST /auth/realms/bog/protocol/openid-connect/token`.
    BogToken,
    /// Moyasar Payment Gateway, `POST /v1/orders/{id}/refund` and `GET /v1/orders/{id}`.
    Moyasar,
    /// beGateway, `POST /beyag/transactions/refunds`, `GET /beyag/transactions/{uid}` and
    /// `GET /beyag/transactions/tracking_id/{tracking_id}`.
    Begateway,
    /// BBMSL, `POST /hosted-checkout/refund` and `POST /hosted-checkout/query`.
    Bbmsl,
}

impl Provider {
    /// All five, in the order of the vendor pages.
    pub const ALL: [Provider; 5] = [
        Provider::Bog,
        Provider::BogToken,
        Provider::Moyasar,
        Provider::Begateway,
        Provider::Bbmsl,
    ];

    /// The vendor's real host name: in the certificate, and the only authority that is served.
    pub fn host(self) -> &'static str {
        match self {
            Provider::Bog => "api.bog.ge",
            Provider::BogToken => "oauth2.bog.ge",
            Provider::Moyasar => "pg.moyasar.com",
            Provider::Begateway => "api.begateway.com",
            Provider::Bbmsl => "payapi.prod.bbmsl.com",
        }
    }
}

/// Locks, whatever became of the last holder: a test that panicked has nothing to hide from the
/// next.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The last segment of a path (with its query), decoded. `None` where the path does not begin with
/// `prefix`, or where what follows is empty, goes on for more segments, has a query, or is no
/// UTF-8.
fn segment(path: &str, prefix: &str) -> Option<String> {
    let segment = path.strip_prefix(prefix)?;
    if segment.is_empty() || segment.contains(['/', '?']) {
        return None;
    }
    let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
    decoded.ok().map(std::borrow::Cow::into_owned)
}
