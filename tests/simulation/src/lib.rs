//! A simulation of the whole: several gateways with their workers, the providers, the callers, the
//! network between them and every clock, in one thread, driven by one seed and no real time.
//!
//! The workers are the shipped ones, over a [`host`] of this package's own. What happens next is the
//! next of a queue of events, ordered by the world's time. At the end every word that a caller got is
//! held against the providers' ledgers, by rules that know nothing of the filter.

mod caller;
mod chance;
mod gateway;
mod host;
mod network;
mod oracle;
mod provider;
mod queue;
mod scene;
mod store;
mod time;
mod world;

pub use chance::derived;
pub use oracle::Finding;
pub use scene::Without;
pub use world::{Outcome, Plan, play, scene};
