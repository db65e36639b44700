//! A call without a fault, and how it goes on by the guard's word.

use std::rc::Rc;

use super::answer::answer;
use super::call::{Call, Task};
use super::caller::Caller;
use super::sentences::{
    gateway_error, memory_unavailable, nothing_left, payment_has_refund, provider_off,
};
use super::{Answer, LocalReply, Step, looked_up};
use crate::clock::{Now, Resend};
use crate::config::ProviderEntry;
use crate::guard::{Asks, Claim, Digest, End, Standing, StoredAnswer};
use crate::json::{Json, Node};
use crate::problem::{Code, Problem, Retry};
use crate::provider::Names;
use crate::refund::Status;
use crate::secret::{Carried, Secret, SecretSource};
use crate::signing::Signer;

/// Why nobody knows of earlier sends under a key.
const NO_ROOM: &str = "The gateway has no room to remember this key, so it cannot tell whether an earlier send was the refund.";
const ALONE: &str = "The memory that the gateways share could not be asked, so it is not known whether another one's send was the \
                     refund.";

/// A call without a fault, before anything is done for it.
#[derive(Debug)]
pub struct Accepted {
    pub(super) caller: Caller,
    pub(super) entry: Rc<ProviderEntry>,
    pub(super) task: Task,
    pub(super) asks: Asks,
    pub(super) preview: bool,
    pub(super) secrets: Vec<(String, Secret)>,
}

impl Accepted {
    /// What the guard is asked.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// The key of the refund that is looked up, where the call names it.
    pub fn key_looked_up(&self) -> Option<Digest> {
        match &self.task {
            Task::LookUp(_, key) => *key,
            Task::Refund(..) => None,
        }
    }

    /// How much is asked for, such as `10.00 HKD`; nothing in a look-up.
    pub fn amount(&self) -> Option<String> {
        match &self.task {
            Task::Refund(refund, _) => Some(match refund.asked() {
                Some(money) => format!("{} {}", money.value(), money.currency.code()),
                None => "full".to_owned(),
            }),
            Task::LookUp(..) => None,
        }
    }

    /// Goes on by the guard's word. `filter_state` reads Envoy's.
    pub fn proceed(
        mut self,
        claim: Claim,
        now: Now,
        signer: &mut dyn Signer,
        filter_state: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Step {
        // What was known of the key when the headers came is out of date.
        self.caller.standing = None;
        let mut resend = self.resend();
        let mut past = None;
        let (claim, alone) = match claim {
            Claim::Alone(claim) => (*claim, true),
            claim => (claim, false),
        };
        let unread = matches!(claim, Claim::Unavailable);
        match claim {
            Claim::Unguarded => {}
            Claim::Unavailable | Claim::Alone(_) => {
                if matches!(self.task, Task::Refund(..)) {
                    return Step::Answered(self.not_sent(memory_unavailable()));
                }
            }
            Claim::Recalled(recollection) => {
                if let Task::LookUp(wanted, _) = &mut self.task {
                    recollection.add_to(wanted, &self.entry);
                }
                past = Some(recollection);
            }
            // The provider's own key holds; without one nothing would.
            Claim::NoRoom if resend != Resend::Never => {
                self.caller.unremembered = Some(NO_ROOM);
                self.caller.standing = Some(Standing { resend });
            }
            Claim::NoRoom => {
                return Step::Answered(self.not_sent(gateway_error(
                    503,
                    "Nothing was sent: this provider knows no keys, and the gateway can remember no more of them. The \
                     platform team must look at its guard.",
                )));
            }
            Claim::Taken {
                ticket, standing, ..
            } => {
                resend = ticket.resend;
                self.caller.ticket = Some(ticket);
                self.caller.standing = standing;
            }
            Claim::InFlight(standing) => {
                return self.held(
                    Code::RefundInProgress,
                    now,
                    standing,
                    "Nothing was sent: the same call is in flight.",
                );
            }
            Claim::Reused => {
                return Step::Answered(self.not_sent(Problem::unknown(
                    Code::IdempotencyKeyReused,
                    Retry::No,
                    "Nothing was sent: this key was used with another refund.",
                )));
            }
            Claim::PaymentTaken { is_open } => {
                return Step::Answered(self.not_sent(payment_has_refund(is_open)));
            }
            Claim::Answered {
                answer: Some(answer),
                ..
            } => {
                let again = self.again(answer);
                // The provider may have taken its refusal back since, and told it to another gateway.
                return Step::Answered(if alone && again.says_not_refunded() {
                    self.not_sent(memory_unavailable())
                } else {
                    again
                });
            }
            Claim::Answered { standing, .. } => {
                return self.held(
                    Code::GatewayError,
                    now,
                    standing,
                    "Nothing was sent: an earlier call with this key may have been, and the gateway does not know its end.",
                );
            }
        }
        if alone {
            self.caller.unremembered = Some(ALONE);
            self.caller.standing.get_or_insert(Standing { resend });
        }
        // Only now: what was answered before under this key is told again.
        if self.entry.is_off && matches!(self.task, Task::Refund(..)) {
            return Step::Answered(self.not_sent(provider_off()));
        }
        let secrets = Rc::new(self.secrets);
        let carried = Carried {
            headers: &secrets,
            filter_state,
        };
        let call = Call {
            caller: self.caller,
            entry: self.entry,
            task: self.task,
            resend,
            past,
            unread,
            preview: self.preview,
            secrets: Rc::clone(&secrets),
            token: None,
            names: Names::default(),
            shown: Vec::new(),
        };
        call.begin(now, signer, &carried)
    }

    /// The answer to a call that is not sent, since another under its key is open.
    fn held(self, code: Code, now: Now, standing: Standing, sentence: &str) -> Step {
        let retry = standing.retry(now);
        let mut problem = Problem::unknown(code, retry, sentence);
        if retry == Retry::SameKey {
            problem.retry_until = standing.resend.retry_until();
        }
        Step::Answered(self.not_sent(problem))
    }

    /// Until when a second send cannot refund twice, if this is the first.
    fn resend(&self) -> Resend {
        let idempotency = self.entry.dialect.capabilities().idempotency;
        idempotency.resend(self.caller.came, self.entry.settle_ms)
    }

    /// Whether this provider's own keys keep a second send from being a second refund, whatever the gateway remembers.
    pub fn has_keys(&self) -> bool {
        self.resend() != Resend::Never
    }

    /// The configured provider.
    pub fn entry(&self) -> &Rc<ProviderEntry> {
        &self.entry
    }

    /// A secret as the call brings it, if it does.
    pub fn secret(
        &self,
        source: &SecretSource,
        filter_state: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Option<Secret> {
        let carried = Carried {
            headers: &self.secrets,
            filter_state,
        };
        source.resolve(&carried).ok()
    }

    /// The answer in place of Envoy's own while the gateways' memory is asked. Nothing was sent, and what was sent before is not
    /// known.
    pub fn local_reply(mut self, reply: LocalReply<'_>) -> Answer {
        let resend = self.resend();
        self.caller.standing = Some(Standing { resend });
        self.not_sent(nothing_left(reply, Some(&self.entry.base_url.authority)))
    }

    fn not_sent(&self, problem: Problem) -> Answer {
        self.task.problem(&self.caller, problem, End::NotSent)
    }

    /// An answer that was given before, to the same call.
    fn again(&self, mut stored: StoredAnswer) -> Answer {
        if let Task::Refund(refund, _) = &self.task {
            looked_up::complete(&mut stored, refund);
        }
        let json = Json::parse(stored.body.as_bytes()).ok();
        let word = json.as_ref().map(Json::root).and_then(|body| {
            let code = body.get("code").and_then(Node::text);
            match code.and_then(|code| Code::of(&code)) {
                Some(code) => Some(code.as_str()),
                None => Status::of(&body.get("status")?.text()?).map(Status::as_str),
            }
        });
        let stored = answer(stored.status, word.unwrap_or_default(), stored.body);
        let mut answer = self.task.own(&self.caller, stored, End::NotSent);
        answer.headers.fixed("idempotency-replayed", "true");
        answer.replayed = true;
        answer
    }
}
