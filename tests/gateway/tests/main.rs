//! The filter in real Envoy, in one program: it is linked once, and no core waits for the last test
//! of a suite. A suite alone: `cargo test --package gateway-testbed guard::`.

mod common;

mod contract;
mod deployment;
mod doctor;
mod envoys_own_answers;
mod examples;
mod faults;
mod figures;
mod guard;
mod hostile;
mod look_ups;
mod memory;
mod open_list;
mod providers;
mod rotation;
mod sandbox;
mod secrets;
mod shapes;
mod signing;
mod soak;
mod tokens;
mod tracing;
mod truth;
