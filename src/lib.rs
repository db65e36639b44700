//! The refund filter: one canonical refund call in, each payment provider's own format out, inside
//! Envoy.
//!
//! The crate is a sans-IO core, a [`worker`] that carries out what the core says over the port
//! [`host`], and one thin file, `filter`, for Envoy's callbacks. Data flows one way: bytes come in
//! at the worker, the [`exchange`] takes one refund from call to answer, [`refund`] and
//! [`provider`] translate, and bytes go out. Time, randomness, credentials and replies are inputs;
//! nothing in the core calls anything.
//!
//! No input makes the module panic: `unwrap`, `expect`, `panic`, indexing and unchecked arithmetic
//! are denied by lint outside tests. A panic in a WebAssembly module is a trap, and a trap ends
//! every stream of its worker, those included whose refund has already gone out.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a test that panics has failed, which is what it is for"
    )
)]

mod authorization;
pub mod call;
pub mod caller;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod exchange;
#[cfg(target_os = "wasi")]
pub mod filter;
pub mod guard;
pub mod headers;
pub mod host;
pub mod idempotency;
pub mod json;
pub mod look_up;
pub mod memory;
pub mod money;
pub mod problem;
pub mod provider;
pub mod reader;
pub mod redis;
pub mod refund;
mod registry;
pub mod rsa_key;
pub mod secret;
pub mod signing;
mod text;
pub mod token;
pub mod url;
pub mod worker;

/// The version that goes out in `user-agent`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The `user-agent` of everything that goes out.
pub(crate) const USER_AGENT: &str = concat!("refund-filter/", env!("CARGO_PKG_VERSION"));

/// JSON text of a value of ours: structs with named members and strings, which cannot fail to
/// serialise.
pub(crate) fn json_text<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
