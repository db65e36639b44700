//! The simulators through a real HTTPS client: what they refuse, what they replay, what they book,
//! how they fail.

mod bbmsl;
mod begateway;
mod bog;
mod client;
mod faults;
mod moyasar;
mod tls;
