//! What the fuzz targets assert. Each target is one module with one function, `check`, that takes
//! the fuzzer's bytes and panics where a property does not hold; so every input that was ever found
//! also runs without a fuzzer (tests/corpus.rs).
//!
//! The oracles share nothing with the code under test: a JSON reader of their own ([`json`]), the
//! contract's rules said once more, and the fixtures and oracles of the core's own suites.

pub mod call;
pub mod configuration;
pub mod exchange;
pub mod harness;
pub mod json;
pub mod key;
pub mod look_up;
pub mod money;
pub mod query;
pub mod reply;
pub mod token;
