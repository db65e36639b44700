//! One refund, or one look-up, from call to answer, without a host.
//!
//! Each step consumes the one before it, so none runs twice and nothing is sent twice:
//!
//! ```text
//! open ─► Reading ─► Accepted ─┬───────────────────────► Dispatch ─► Sent ─► Replying ─► Answer
//!                    (claim)   ├► Waiting (for a token) ────┤
//!                              └► Callout ──────────────────┘
//!                                 (OpenBao signs, OpenBao tells its public keys, the provider is asked)
//! ```
//!
//! [`Step`] is where a call stands: whoever drives one keeps it, and gives it what it waits for.
//!
//! Every step can end in an [`Answer`] of its own. Between [`Accepted`] and the rest stands the
//! [`guard`](crate::guard): from there on the key is this call's, and its answer settles it. A
//! look-up goes the same way, claims nothing, and can settle a key all the same: by the provider's
//! own word.

use crate::guard::{Digest, Standing};

mod accepted;
mod answer;
mod call;
mod caller;
mod callout;
mod conclusion;
mod inquiry;
mod looked_up;
mod open_list;
mod preview;
mod reading;
mod reply;
mod sending;
mod sentences;
mod signing;
mod waiting;

pub use accepted::Accepted;
pub use answer::{Alarm, Answer, Settlement};
pub use caller::unreadable_call;
pub use callout::{Callout, CalloutRequest, Environment};
pub use conclusion::Conclusion;
pub use inquiry::{Inquiry, Named};
pub use open_list::open_list;
pub use reading::{MAX_BODY, Opening, Reading, open};
pub use reply::{ReplyHead, Replying, Sent, retry_after};
pub use sending::Dispatch;
pub use signing::{Unsigned, Unverified};
pub use waiting::Waiting;

/// What is known of earlier sends under a key: the guard's word.
pub type Earlier<'a> = &'a dyn Fn(&Digest) -> Option<Standing>;

/// What Envoy says of a call: a property by its path.
pub type Property<'a> = &'a dyn Fn(&[&str]) -> Option<Vec<u8>>;

/// Where a call stands after a step. What it holds makes the next step, and is consumed by it.
#[derive(Debug)]
pub enum Step {
    /// It is answered: nothing more is to be done.
    Answered(Answer),
    /// Its body is being read.
    Reading(Reading),
    /// It waits for the word of the memory that gateways share: on its key.
    Claiming(Box<Accepted>),
    /// The same, on what its payment is called besides.
    Naming(Box<Named>),
    /// It waits for a bearer token.
    Waiting(Box<Waiting>),
    /// It waits for the answer to a call of the gateway's own.
    Calling(Callout),
    /// The provider's request is to be handed over.
    Leaving(Box<Dispatch>),
    /// The provider's request may have left.
    Sent(Sent),
    /// The provider's reply is being read.
    Replying(Replying),
}

impl Step {
    /// The answer where Envoy answers in the filter's place, or the stream ends without an answer:
    /// it settles the key.
    pub fn local_reply(self, reply: LocalReply<'_>, earlier: Earlier<'_>) -> Answer {
        match self {
            Step::Answered(answer) => answer,
            Step::Reading(reading) => reading.local_reply(reply, earlier),
            Step::Claiming(accepted) => accepted.local_reply(reply),
            Step::Naming(named) => named.local_reply(reply),
            Step::Waiting(waiting) => waiting.local_reply(reply),
            Step::Calling(callout) => callout.local_reply(reply),
            Step::Leaving(dispatch) => dispatch.sent.local_reply(reply),
            Step::Sent(sent) => sent.local_reply(reply),
            Step::Replying(replying) => replying.local_reply(reply),
        }
    }
}

/// An answer of Envoy's own that passes the filter, and what Envoy tells about it.
#[derive(Debug, Clone, Copy)]
pub struct LocalReply<'a> {
    /// Its status.
    pub status: u16,
    /// `response.code_details`.
    pub details: &'a str,
    /// Whether `upstream.local_address` is set: a connection was handed out, so bytes may have
    /// left.
    pub connected: bool,
    /// `upstream.request_attempt_count`.
    pub attempts: u64,
}
