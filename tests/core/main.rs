//! The core's tests, in one program: it is linked once, and its suites run beside each other. A
//! suite alone: `cargo test golden::`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "a test that panics has failed, which is what it is for"
)]

#[cfg_attr(
    target_arch = "wasm32",
    allow(dead_code, unused_imports, reason = "two suites run there")
)]
#[path = "../common/mod.rs"]
mod common;

// These two run as WebAssembly, too.
mod conformance;
mod golden;

#[cfg(not(target_arch = "wasm32"))]
mod configuration;
#[cfg(not(target_arch = "wasm32"))]
mod controls;
#[cfg(not(target_arch = "wasm32"))]
mod deploy_envoy_gateway;
#[cfg(not(target_arch = "wasm32"))]
mod deploy_istio;
#[cfg(not(target_arch = "wasm32"))]
mod figures;
#[cfg(not(target_arch = "wasm32"))]
mod fleet_model;
#[cfg(not(target_arch = "wasm32"))]
mod guard;
#[cfg(not(target_arch = "wasm32"))]
mod hostile;
#[cfg(not(target_arch = "wasm32"))]
mod json;
#[cfg(not(target_arch = "wasm32"))]
mod keys;
#[cfg(not(target_arch = "wasm32"))]
mod layers;
#[cfg(not(target_arch = "wasm32"))]
mod leaks;
#[cfg(not(target_arch = "wasm32"))]
mod look_ups;
#[cfg(not(target_arch = "wasm32"))]
mod model;
#[cfg(not(target_arch = "wasm32"))]
mod money;
#[cfg(not(target_arch = "wasm32"))]
mod open_list;
#[cfg(not(target_arch = "wasm32"))]
mod openapi;
#[cfg(not(target_arch = "wasm32"))]
mod query_first;
#[cfg(not(target_arch = "wasm32"))]
mod replies;
#[cfg(not(target_arch = "wasm32"))]
mod rsa_keys;
#[cfg(not(target_arch = "wasm32"))]
mod sharing;
#[cfg(not(target_arch = "wasm32"))]
mod signing;
#[cfg(not(target_arch = "wasm32"))]
mod supply_chain;
#[cfg(not(target_arch = "wasm32"))]
mod truth;
#[cfg(not(target_arch = "wasm32"))]
mod unwritten;
#[cfg(not(target_arch = "wasm32"))]
mod worker;
