//! A provider's reply, and what it means for the refund.

use std::rc::Rc;

use super::answer::answer;
use super::call::{Call, Task};
use super::sentences::{gateway_error, nothing_left, of_refusal, unreachable_provider};
use super::{Answer, LocalReply};
use crate::config::ProviderEntry;
use crate::guard::End;
use crate::headers::Headers;
use crate::json::Counts;
use crate::problem::{Code, Problem, Retry};
use crate::provider::{
    Attempt, Doubt, Idempotency, Outcome, ProviderMessage, ProviderReply, Receipt, Refusal,
};
use crate::refund::{Refund, Status};

/// A refund that may have left the gateway.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub struct Sent {
    pub(super) call: Call,
}

/// A refund whose reply has begun.
#[derive(Debug)]
pub struct Replying {
    sent: Sent,
    head: ReplyHead,
    /// Whether it comes from another cluster than the provider's.
    misrouted: bool,
}

impl Replying {
    /// The configured provider.
    pub fn entry(&self) -> Rc<ProviderEntry> {
        self.sent.entry()
    }

    /// Whether it counts, with this reply, how often the route has sent the request.
    pub fn counts_attempts(&self) -> bool {
        self.sent.counts_attempts(&self.head)
    }

    /// Turns the whole reply into the answer. `attempts` is `upstream.request_attempt_count`.
    pub fn reply(self, body: &[u8], attempts: u64) -> Answer {
        if self.misrouted {
            // Whoever has answered, it is no word of the provider's.
            let call = self.sent.call;
            let happened = "The call's route led to another cluster than the provider's";
            let problem = call.after_sending(Code::GatewayError, happened);
            return call.problem(problem, End::Unknown);
        }
        self.sent.reply(&self.head, body, attempts)
    }

    /// The answer in place of Envoy's own after the reply has begun.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        self.sent.local_reply(LocalReply {
            connected: true,
            // A reply that has begun is not one that was refused before.
            details: if reply.details.contains("refused_stream") {
                "upstream_reset"
            } else {
                reply.details
            },
            ..reply
        })
    }
}

/// The head of a provider's reply, as far as it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyHead {
    /// The HTTP status.
    pub status: u16,
    /// `retry-after`, if it is one.
    pub retry_after: Option<String>,
    /// Whether the body is coded, although identity was asked for.
    pub coded: bool,
}

impl ReplyHead {
    /// Reads a reply's headers; a reply without a status that can be read is one with status 0,
    /// which nobody documents.
    pub fn of(headers: &Headers<'_>) -> Self {
        ReplyHead {
            status: headers
                .first(":status")
                .and_then(|status| std::str::from_utf8(status).ok()?.parse().ok())
                .unwrap_or_default(),
            retry_after: headers.first("retry-after").and_then(retry_after),
            coded: headers
                .all("content-encoding")
                .any(|coding| !coding.eq_ignore_ascii_case(b"identity")),
        }
    }

    /// The whole reply; nothing is read of a body that is coded.
    pub(super) fn with<'a>(&self, body: &'a [u8]) -> ProviderReply<'a> {
        ProviderReply::new(self.status, if self.coded { &[] } else { body })
    }
}

/// A `Retry-After` that is one by its form (RFC 9110, 10.2.3): seconds, or a date such as `Sun, 06
/// Nov 1994 08:49:37 GMT`.
pub fn retry_after(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let seconds = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let date = text.len() == 29
        && text.ends_with(" GMT")
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b" ,:".contains(&b));
    (seconds || date).then(|| text.to_owned())
}

/// Why a refusing status proves nothing: its body stands around a refund that was made or may have
/// been, whichever of two members of one name may count. None where the body leaves the refusal as
/// it is.
fn contradiction(
    entry: &ProviderEntry,
    refund: &Refund,
    attempt: &Attempt<'_>,
    reply: &ProviderReply<'_>,
) -> Option<Doubt> {
    if reply.says(entry.dialect.capabilities().taken) {
        return Some(Doubt::Unreadable);
    }
    let body = reply.json()?;
    [Counts::First, Counts::Last]
        .into_iter()
        .find_map(|counts| {
            let body = body.read_by(counts);
            let accepted = ProviderReply::new(200, body.as_bytes());
            match entry.dialect.outcome(refund, attempt, &accepted) {
                Outcome::Refunded(_) | Outcome::Pending(_) => Some(Doubt::Unreadable),
                // What an error looks like where a refund is due.
                Outcome::Unknown(Doubt::Unreadable, _) | Outcome::Refused(..) => None,
                Outcome::Unknown(doubt, _) => Some(doubt),
            }
        })
}

impl Sent {
    /// The configured provider.
    pub fn entry(&self) -> Rc<ProviderEntry> {
        Rc::clone(&self.call.entry)
    }

    /// The answer where the request could not be handed to Envoy after all.
    pub fn not_sent(&self) -> Answer {
        self.call.not_sent(gateway_error(
            500,
            "Nothing was sent: the gateway could not write the provider's request.",
        ))
    }

    /// The answer where the provider's route is known to lead to another cluster. Nothing was sent.
    pub fn misrouted(&self) -> Answer {
        let sentence = "This provider's route has led to another cluster than its own.";
        let code = Code::GatewayError;
        self.call.alarm(503, code, sentence.to_owned())
    }

    /// Whether it counts, with this reply, how often the route has sent the request.
    ///
    /// A verdict in the body of a 2xx is about the refund under this key. A status is about one
    /// send, and where the provider has no key so is everything: after a retry by the route the
    /// send before it may have been the refund.
    fn counts_attempts(&self, head: &ReplyHead) -> bool {
        let keyed = self.call.entry.dialect.capabilities().idempotency != Idempotency::None;
        !(keyed && (200..300).contains(&head.status))
    }

    /// Turns the provider's whole reply into the answer. `attempts` is
    /// `upstream.request_attempt_count`.
    pub fn reply(self, head: &ReplyHead, body: &[u8], attempts: u64) -> Answer {
        let reply = head.with(body);
        let (refund, key) = match &self.call.task {
            Task::Refund(refund, key) => (refund, *key),
            Task::LookUp(wanted, _) => {
                let finding = self.call.entry.dialect.found(wanted, &reply);
                return self.call.looked_up(head, finding);
            }
        };
        let attempt = Attempt {
            key,
            default_reason: None,
        };
        let entry = &self.call.entry;
        let mut outcome = entry.dialect.outcome(refund, &attempt, &reply);
        if let Outcome::Refused(..) = outcome
            && !reply.is_success()
        {
            // Words that cannot be read may be some that mean that the refund is there.
            let doubt = match head.coded {
                true => Some(Doubt::Unreadable),
                false => contradiction(entry, refund, &attempt, &reply),
            };
            if let (Some(doubt), Outcome::Refused(_, word)) = (doubt, &outcome) {
                outcome = Outcome::Unknown(doubt, word.clone());
            }
        }
        match outcome {
            Outcome::Refunded(receipt) => self.refunded(Status::Succeeded, receipt),
            Outcome::Pending(receipt) => self.refunded(Status::Pending, receipt),
            Outcome::Refused(refusal, word) => self.refused(head, refusal, word, attempts),
            Outcome::Unknown(doubt, word) => self.doubtful(head, doubt, word),
        }
    }

    /// The answer in place of Envoy's own after the request may have left.
    ///
    /// Nothing was sent if no connection was handed out, unless the route sent more than once: what
    /// Envoy tells is about the last attempt alone.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        let once = reply.attempts <= 1;
        let details = reply.details;
        // The injector answers before a byte is written, on a connection that may be warm.
        let not_injected = details == "failed_to_inject_credential";
        let call = self.call;
        if once && (!reply.connected || not_injected) {
            return call.not_sent(nothing_left(reply, Some(&call.entry.base_url.authority)));
        }
        if once && details.contains("remote_refused_stream_reset") {
            // RFC 9113, 8.7: a refused stream was not processed.
            return call.not_sent(unreachable_provider());
        }
        let problem = if details.contains("timeout") || reply.status == 504 {
            call.after_sending(Code::ProviderTimeout, "The provider did not answer in time")
        } else if details.starts_with("upstream_reset") || details.contains("protocol_error") {
            call.after_sending(Code::ProviderError, "The connection to the provider broke")
        } else if details == "response_payload_too_large" {
            call.after_sending(
                Code::ProviderReplyUnreadable,
                "The provider's answer is larger than the gateway takes",
            )
        } else {
            call.after_sending(
                Code::GatewayError,
                "The gateway failed after the request may have left",
            )
        };
        call.problem(problem, End::Unknown)
    }

    /// Goes on when the head of the provider's reply is there. `misrouted`: it comes from another
    /// cluster than the provider's.
    pub fn replying(self, head: ReplyHead, misrouted: bool) -> Replying {
        Replying {
            sent: self,
            head,
            misrouted,
        }
    }

    fn refunded(self, status: Status, receipt: Receipt) -> Answer {
        let names = self.call.payment_names(&receipt.payment);
        let id = self.call.clean_id(&receipt);
        let body = self.call.refund_body(status, receipt);
        let end = match status {
            Status::Succeeded => End::Refunded,
            Status::Pending => End::Pending,
            Status::Failed => End::Refused,
        };
        let told = answer(status.http(), status.as_str(), body);
        let mut answer = self.call.own(told, end);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.names = names;
            settlement.id = id;
        }
        answer
    }

    fn refused(
        mut self,
        head: &ReplyHead,
        refusal: Refusal,
        word: ProviderMessage,
        attempts: u64,
    ) -> Answer {
        let (code, retry, sentence) = of_refusal(refusal);
        let is_verdict = !self.counts_attempts(head);
        let call = &mut self.call;
        let unknown = if call.caller.unremembered.is_some() {
            call.caller.unremembered
        } else if !is_verdict && (attempts > 1 || call.caller.standing.is_some()) {
            Some("It had been sent before, and that may have been the refund.")
        } else {
            None
        };
        let (mut problem, end) = match unknown {
            None => {
                let end = if retry == Retry::No {
                    End::Refused
                } else {
                    End::Free
                };
                (Problem::not_refunded(code, retry, sentence), end)
            }
            Some(why) => {
                let mut problem =
                    Problem::unknown(code, call.retry_when_unknown(), format!("{sentence} {why}"));
                problem.retry_until = call.retry_until();
                if retry == Retry::No {
                    // The same call would be refused again, and nothing learnt of the send before
                    // it.
                    problem.retry = Retry::LookUp;
                    problem.retry_until = None;
                    (problem, End::Unknown)
                } else {
                    // What this send did not move, an earlier one may have.
                    let end = if attempts > 1 {
                        End::Unknown
                    } else {
                        End::Free
                    };
                    (problem, end)
                }
            }
        };
        if retry == Retry::SameKey {
            problem.retry_after.clone_from(&head.retry_after);
        }
        if is_verdict && unknown.is_none() {
            // The provider's own word on this refund: whatever was not known of it before is known
            // now.
            call.caller.standing = None;
        }
        let refused_token = call.refused_token(head);
        let mut answer = self.provider_problem(problem, head.status, word, end);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.refused = retry == Retry::No;
        }
        answer.refused_token = refused_token;
        answer
    }

    fn doubtful(self, head: &ReplyHead, doubt: Doubt, word: ProviderMessage) -> Answer {
        let problem = self.call.of_doubt(head, doubt);
        let refused_token = self.call.refused_token(head);
        let mut answer = self.provider_problem(problem, head.status, word, End::Unknown);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.refused = doubt == Doubt::MaybeThere;
        }
        answer.refused_token = refused_token;
        answer
    }

    fn provider_problem(
        self,
        mut problem: Problem,
        status: u16,
        word: ProviderMessage,
        end: End,
    ) -> Answer {
        if problem.retry == Retry::SameKey {
            problem.retry_until = self.call.retry_until();
        }
        problem.provider = Some(self.call.provider_word(status, word));
        self.call.problem(problem, end)
    }
}
