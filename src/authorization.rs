//! The value of an `authorization` header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secret::Secret;

/// A bearer token (RFC 6750, 2.1).
pub(crate) fn bearer(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.expose()))
}

/// User and password (RFC 7617).
pub(crate) fn basic(user: &str, password: &Secret) -> Secret {
    Secret::new(format!("Basic {}", basic_pair(user, password).expose()))
}

/// The base64 of user and password, as it goes over the wire.
pub(crate) fn basic_pair(user: &str, password: &Secret) -> Secret {
    let pair = Secret::new(format!("{user}:{}", password.expose()));
    Secret::new(STANDARD.encode(pair.expose()))
}
