//! What is asked of a provider by a call of the gateway's own: an order that must be signed for, in a look-up or before a refund.

use std::rc::Rc;

use super::{
    Answer, Call, Headers, LocalReply, Prepared, ReplyHead, Sent, Task, nothing_left, of_refusal,
    unreachable_provider,
};
use crate::config::ProviderEntry;
use crate::problem::{Code, Problem, Retry};
use crate::provider::{Absence, Finding, Wanted, Word};
use crate::secret::Carried;
use crate::signing::Signer;

/// How long the provider may take to answer, in milliseconds: with a signature and the refund itself after it, less than the
/// guard's lease.
pub const ASK_TIMEOUT_MS: u32 = 10_000;

/// A call that waits for a provider's word on an order. Nothing was sent that could move money.
#[derive(Debug)]
pub struct Asking {
    call: Call,
    headers: Headers<'static>,
    body: String,
    key_id: String,
}

/// The problem that an answer of Envoy's own to such a call is, by how its body begins and what it says; none where it is the
/// provider's.
fn envoys_own(status: u16, body: &[u8]) -> Option<Code> {
    const NOT_MADE: [&str; 3] = ["connection failure", "connection timeout", "overflow"];
    let body = std::str::from_utf8(body).ok()?;
    match status {
        504 if body.starts_with("upstream request timeout") => Some(Code::ProviderTimeout),
        503 if body.starts_with("no healthy upstream") => Some(Code::ProviderUnreachable),
        503 if body.starts_with("upstream connect error") => {
            let made = !NOT_MADE.iter().any(|reason| body.contains(reason));
            Some(if made {
                Code::ProviderError
            } else {
                Code::ProviderUnreachable
            })
        }
        _ => None,
    }
}

impl Asking {
    pub(super) fn new(call: Call, headers: Headers<'static>, body: String, key_id: String) -> Self {
        Asking {
            call,
            headers,
            body,
            key_id,
        }
    }

    /// The signing key's id, for logs.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The configured provider.
    pub fn entry(&self) -> &Rc<ProviderEntry> {
        &self.call.entry
    }

    /// The request: the provider's cluster, headers and body.
    pub fn request(&self) -> (&str, &Headers<'static>, &str) {
        (&self.call.entry.cluster, &self.headers, &self.body)
    }

    /// Goes on with the provider's answer.
    pub fn reply(
        self,
        head: &ReplyHead,
        body: &[u8],
        now_ms: i64,
        signer: &mut dyn Signer,
        filter_state: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Prepared {
        if let Some(code) = envoys_own(head.status, body) {
            return Prepared::Answer(self.unanswered(code));
        }
        let call = self.call;
        let finding = match &call.task {
            Task::LookUp(..) => return Prepared::Answer(Sent { call }.reply(head, body, 1)),
            Task::Refund(refund, _) => {
                let wanted = Wanted::of_payment(&refund.payment);
                call.entry.dialect.found(&wanted, &head.with(body))
            }
        };
        let Some((mut problem, word)) = held_back(head, finding) else {
            let secrets = Rc::clone(&call.secrets);
            let carried = Carried {
                headers: &secrets,
                filter_state,
            };
            return call.refund(now_ms, signer, &carried);
        };
        problem.provider = Some(call.provider_word(head.status, word));
        Prepared::Answer(call.caller.problem(problem))
    }

    /// The answer where the call could not be made.
    pub fn failed(self) -> Answer {
        self.unanswered(Code::ProviderUnreachable)
    }

    /// The answer where the provider's reply began and did not end.
    pub fn cut(self) -> Answer {
        self.unanswered(Code::ProviderError)
    }

    /// The answer in place of Envoy's own while the provider is asked. Nothing was sent that could move money.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        self.call.caller.problem(nothing_left(reply))
    }

    fn unanswered(self, code: Code) -> Answer {
        let call = self.call;
        let problem = match (&call.task, code) {
            (Task::LookUp(..), Code::ProviderTimeout) => {
                call.after_sending(code, "The provider did not answer in time")
            }
            (Task::LookUp(..), Code::ProviderError) => {
                call.after_sending(code, "The connection to the provider broke")
            }
            // Before a refund it comes to the same: nothing was sent that could move money.
            _ => unreachable_provider(),
        };
        call.caller.problem(problem)
    }
}

/// Why a refund is not sent, with the provider's words: its order is not one that can be refunded, or does not show that it is.
/// None where it is.
fn held_back(head: &ReplyHead, finding: Finding) -> Option<(Problem, Word)> {
    let unknown =
        |sentence: String| Problem::unknown(Code::ProviderRejected, Retry::LookUp, sentence);
    Some(match finding {
            Finding::Absent(Absence::Proven, _) => return None,
            Finding::Found { receipt, .. } => (
                unknown(
                    "Nothing was sent: the provider's order has been refunded before, and that may have been this refund."
                        .to_owned(),
                ),
                receipt.word,
            ),
            Finding::Absent(Absence::NotRefundable(state), word) => (
                Problem::not_refunded(
                    Code::ProviderRejected,
                    Retry::No,
                    format!("Nothing was sent: the provider's order is {state}, so that it cannot be refunded."),
                ),
                word,
            ),
            Finding::Absent(Absence::Unproven(sentence), word) => {
                (unknown(format!("Nothing was sent. {sentence}")), word)
            }
            Finding::Refused(refusal, word) => {
                let (code, retry, sentence) = of_refusal(refusal);
                let sentence = format!("Nothing was sent: the order was asked for first. {sentence}");
                let mut problem = Problem::not_refunded(code, retry, sentence);
                if retry == Retry::SameKey {
                    problem.retry_after.clone_from(&head.retry_after);
                }
                (problem, word)
            }
            Finding::Unknown(_, word) => (
                Problem::not_refunded(
                    Code::ProviderUnreachable,
                    Retry::SameKey,
                    "Nothing was sent: the provider gave no usable answer about the order, which is asked for first.",
                ),
                word,
            ),
        })
}
