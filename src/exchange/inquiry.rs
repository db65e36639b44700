//! What is asked of a provider by a call of the gateway's own: an order that must be signed for, in
//! a look-up, or a payment that is looked at before it is refunded.

use std::borrow::Cow;
use std::rc::Rc;

use super::call::{Call, Task};
use super::sending::Via;
use super::sentences::{
    gateway_error, memory_unavailable, nothing_left, of_refusal, over_limit, payment_has_refund,
    unreachable_provider,
};
use super::{Answer, CalloutRequest, Environment, LocalReply, ReplyHead, Sent, Step};
use crate::guard::{Claim, Digest, End, Ticket};
use crate::headers::Headers;
use crate::problem::{Code, Problem, Retry};
use crate::provider::{Doubt, Look, Names, ProviderMessage, ProviderRequest, Refunds, Shown};
use crate::refund::{Amount, Refund};
use crate::secret::Carried;

/// How long the provider may take to answer, in milliseconds: with a signature and the refund
/// itself after it, less than the guard's lease.
const TIMEOUT_MS: u32 = 10_000;

/// A call that waits for a provider's word on a payment. Nothing was sent that could move money.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub struct Inquiry {
    call: Call,
    headers: Headers<'static>,
    body: String,
    key_id: Option<String>,
}

/// The problem that an answer of Envoy's own to such a call is, by how its body begins and what it
/// says; none where it is the provider's.
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

impl Inquiry {
    pub(super) fn new(
        call: Call,
        headers: Headers<'static>,
        body: String,
        key_id: Option<String>,
    ) -> Self {
        Inquiry {
            call,
            headers,
            body,
            key_id,
        }
    }

    pub(super) fn call(&self) -> &Call {
        &self.call
    }

    pub(super) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    pub(super) fn request(&self) -> CalloutRequest<'_> {
        CalloutRequest {
            cluster: &self.call.entry.cluster,
            headers: Cow::Borrowed(&self.headers),
            body: Cow::Borrowed(&self.body),
            timeout_ms: TIMEOUT_MS,
        }
    }

    /// Goes on with the provider's answer.
    pub(super) fn reply(
        self,
        head: &ReplyHead,
        body: &[u8],
        environment: &mut Environment<'_>,
    ) -> Step {
        if let Some(code) = envoys_own(head.status, body) {
            return Step::Answered(self.unanswered(code));
        }
        let mut call = self.call;
        let looked_at = match &call.task {
            Task::LookUp(..) => return Step::Answered(Sent { call }.reply(head, body, 1)),
            Task::Refund(refund, key) => {
                let look = call.entry.dialect.seen(&refund.payment, &head.with(body));
                call.may_go_on(refund, head, look)
                    .map(|shown| (shown, call.refund_request(refund, *key)))
            }
        };
        match looked_at {
            Ok((shown, request)) => {
                call.names = shown.names;
                let named = Named { call, request };
                // In the memory that gateways share it is asked for by a call of its own.
                let (ticket, names) = match named.asks() {
                    Some(_) if environment.shares && named.call.caller.unremembered.is_none() => {
                        return Step::Naming(Box::new(named));
                    }
                    None => return named.go_on(Ok(None), environment),
                    Some(asks) => asks,
                };
                let mut ticket = ticket.clone();
                let claimed = match environment.guard {
                    Some(guard) => guard.claim_more(&mut ticket, &names, environment.now),
                    None => Ok(()),
                };
                named.go_on(claimed.map(|()| Some(ticket)), environment)
            }
            Err(held_back) => {
                let (mut problem, word) = *held_back;
                problem.provider = Some(call.provider_word(head.status, word));
                // What is told to be spent must be: a late repeat of this call must not refund
                // beside its successor. Another key's refund spends nothing.
                let is_spent = problem.retry == Retry::No
                    && problem.code != Code::PaymentHasRefund
                    && call.caller.standing.is_none();
                let end = if is_spent { End::Refused } else { End::NotSent };
                let mut answer = call.problem(problem, end);
                if let Some(settlement) = answer.settles.as_deref_mut() {
                    settlement.sent = false;
                }
                answer.refused_token = call.refused_token(head);
                Step::Answered(answer)
            }
        }
    }

    /// The answer where the call could not be made.
    pub(super) fn not_made(self) -> Answer {
        self.unanswered(Code::ProviderUnreachable)
    }

    /// The answer where the provider's reply began and did not end.
    pub(super) fn cut(self) -> Answer {
        self.unanswered(Code::ProviderError)
    }

    fn unanswered(self, code: Code) -> Answer {
        let call = self.call;
        let happened = match code {
            Code::ProviderTimeout => "The provider did not answer in time",
            Code::ProviderError => "The connection to the provider broke",
            _ => return call.not_sent(unreachable_provider()),
        };
        match call.task {
            Task::LookUp(..) => {
                let problem = call.after_sending(code, happened);
                call.problem(problem, End::NotSent)
            }
            Task::Refund(..) => call.not_sent(look_failed(code, happened)),
        }
    }
}

/// The problem where the look at a payment failed. Nothing was sent that could move money.
fn look_failed(code: Code, happened: &str) -> Problem {
    Problem::not_refunded(
        code,
        Retry::SameKey,
        format!("Nothing was sent: the payment is looked at first. {happened}."),
    )
}

/// A call whose payment was looked at and can be refunded, before it is taken under the names that the look has shown.
#[derive(Debug)]
pub struct Named {
    call: Call,
    request: Option<ProviderRequest>,
}

impl Named {
    /// That the key is the call's, and the names under which its payment is to be taken as well.
    pub fn asks(&self) -> Option<(&Ticket, Vec<Digest>)> {
        let ticket = self.call.caller.ticket.as_ref()?;
        let names = self.call.payment_names(&Names::default());
        (!names.is_empty()).then_some((ticket, names))
    }

    /// Goes on once the payment is taken, or is not.
    pub fn go_on(
        self,
        claimed: Result<Option<Ticket>, Claim>,
        environment: &mut Environment<'_>,
    ) -> Step {
        let Named { mut call, request } = self;
        match claimed {
            Ok(None) => {}
            Ok(ticket) => call.caller.ticket = ticket,
            Err(claim) => return Step::Answered(call.not_sent(of_claim(&claim))),
        }
        let secrets = Rc::clone(&call.secrets);
        let carried = Carried {
            headers: &secrets,
            filter_state: environment.filter_state,
        };
        call.draft(
            request,
            Via::Route,
            environment.now,
            environment.signer,
            &carried,
        )
    }

    /// The answer in place of Envoy's own meanwhile.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        let host = &self.call.entry.base_url.authority;
        self.call.not_sent(nothing_left(reply, Some(host)))
    }
}

/// The problem of a payment that could not be taken.
fn of_claim(claim: &Claim) -> Problem {
    match claim {
        Claim::PaymentTaken { is_open } => payment_has_refund(*is_open),
        Claim::Unavailable => memory_unavailable(),
        _ => gateway_error(
            503,
            "Nothing was sent: the gateway cannot remember this payment. The platform team must look at its guard.",
        ),
    }
}

impl Call {
    /// Whether a refund may be sent, by what its payment shows; else why not, with the provider's
    /// words.
    fn may_go_on(
        &self,
        refund: &Refund,
        head: &ReplyHead,
        look: Look,
    ) -> Result<Shown, Box<(Problem, ProviderMessage)>> {
        let not_refundable = |what: &str| {
            Problem::not_refunded(
                Code::PaymentNotRefundable,
                Retry::No,
                format!("Nothing was sent: the payment was looked at first. {what}"),
            )
        };
        let shown = match look {
            // What it is looked at for: without it, it is not what the provider documents.
            Look::Refundable(Shown {
                currency: None,
                word,
                ..
            }) => return self.may_go_on(refund, head, Look::Unknown(Doubt::Unreadable, word)),
            Look::Refundable(shown) => shown,
            Look::NotRefundable(state, word) => {
                return Err(Box::new((not_refundable(&format!("It is {state}.")), word)));
            }
            Look::Refused(refusal, word) => {
                let (code, retry, sentence) = of_refusal(refusal);
                let mut problem = Problem::not_refunded(
                    code,
                    retry,
                    format!("Nothing was sent: the payment is looked at first. {sentence}"),
                );
                if retry == Retry::SameKey {
                    problem.retry_after.clone_from(&head.retry_after);
                }
                return Err(Box::new((problem, word)));
            }
            Look::Unknown(doubt, word) => {
                let of_reply = self.of_doubt(head, doubt);
                let mut problem =
                    look_failed(of_reply.code, "The provider gave no usable answer about it");
                problem.retry_after = of_reply.retry_after;
                return Err(Box::new((problem, word)));
            }
        };
        let is_one = self.entry.dialect.capabilities().refunds == Refunds::One;
        let sentence = match (refund.amount, shown.currency, shown.left) {
            _ if is_one && shown.refunded => {
                return Err(Box::new((payment_has_refund(false), shown.word)));
            }
            (Amount::Exactly(asked), Some(currency), _) if currency != asked.currency => {
                format!("Its currency is {}.", currency.code())
            }
            (_, Some(currency), _) if !self.entry.takes_currency(currency) => format!(
                "Its currency is {}, which is not configured for this provider.",
                currency.code()
            ),
            (Amount::Exactly(asked), _, Some(left)) if left.minor < asked.minor => {
                format!(
                    "No more than {} {} is left of it.",
                    left.value(),
                    left.currency.code()
                )
            }
            (Amount::Full, _, Some(left)) if left.minor == 0 => "Nothing is left of it.".to_owned(),
            (Amount::Full, _, left) => match self.entry.over_limit(left) {
                Some(why) => return Err(Box::new((over_limit(&why), shown.word))),
                None => return Ok(shown),
            },
            (Amount::Exactly(_), ..) => return Ok(shown),
        };
        Err(Box::new((not_refundable(&sentence), shown.word)))
    }
}
