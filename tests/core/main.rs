//! The core's tests, in one program: it is linked once, and its suites run beside each other. A
//! suite alone: `cargo test golden::`.

/// The folder of the project.
const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

mod configuration;
mod conformance;
mod controls;
mod deploy_envoy_gateway;
mod deploy_istio;
mod figures;
mod fleet_model;
mod golden;
mod guard;
mod hostile;
mod json;
mod keys;
mod layers;
mod leaks;
mod look_ups;
mod model;
mod money;
mod open_list;
mod openapi;
mod properties;
mod query_first;
mod replies;
mod rsa_keys;
mod sharing;
mod signing;
mod supply_chain;
mod truth;
mod unwritten;
mod worker;
