//! Strict stand-ins of the payment providers, and of the token endpoints beside them, over TLS.
//!
//! Each provider is written from its vendor's page alone, and refuses whatever that page does not
//! know: another path, method or content type, an unknown or missing member, a wrong unit or JSON
//! type, a signature that does not verify. None of it shares a line with the filter, so that the
//! two can disagree.
//!
//! A provider is one file in `provider/`, which ends in its [`Declaration`], and one line in
//! `registry.rs`.
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
mod credentials;
mod exchange;
mod fault;
mod json;
mod ledger;
pub mod orders;
mod provider;
mod registry;
pub mod sandbox;
mod server;
mod simulators;
mod tls;

pub use credentials::{Credential, Credentials, SigningKeys};
pub use exchange::{Exchange, Received, Reply};
pub use fault::Fault;
pub use ledger::Refunded;
pub use orders::Order;
pub use provider::{
    Declaration, Ends, Fresh, Key, Place, Provider, Refusal, Replies, Secret, Server, Text,
};
pub use simulators::{Error, ExpiresIn, Options, Simulators, TokenLifetime};
pub use tls::{Alpn, Certificate};

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
