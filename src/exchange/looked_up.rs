//! What a look-up has found: its answer, and what it means for the refund's key.

use super::answer::answer;
use super::call::{Call, Task};
use super::sentences::of_refusal;
use super::{Answer, Conclusion, ReplyHead};
use crate::call::about_amount;
use crate::guard::{Digest, End, Past, Recalled, Recollection, StoredAnswer};
use crate::json::{Json, object};
use crate::problem::{Code, Moved, Problem, Retry};
use crate::provider::{
    Absence, Doubt, Finding, ProviderMessage, Receipt, Refusal, ShownBy, Wanted,
};
use crate::refund::{Refund, Status};

impl Call {
    /// The answer to a look-up.
    pub(super) fn looked_up(self, head: &ReplyHead, finding: Finding) -> Answer {
        let refused_token = self.refused_token(head);
        let mut answer = match finding {
            Finding::Found {
                status,
                receipt,
                shown_by,
            } => self.found(head, status, receipt, shown_by),
            Finding::Absent(absence, word) => self.absent(head, absence, word),
            Finding::Refused(refusal, word) => {
                let (code, _, sentence) = of_refusal(refusal);
                // Asking again brings the same, but for what can be put right meanwhile; while a
                // send may still arrive, the provider may yet come to know it.
                let retry = match refusal {
                    Refusal::Credentials | Refusal::RateLimited => Retry::LookUp,
                    _ if self.unsettled().is_none() => Retry::No,
                    _ => Retry::LookUp,
                };
                let mut problem = Problem::unknown(code, retry, sentence);
                if matches!(refusal, Refusal::Credentials | Refusal::RateLimited) {
                    problem.retry_after.clone_from(&head.retry_after);
                }
                self.told(head, problem, word)
            }
            Finding::Unknown(doubt, word) => {
                let problem = self.of_doubt(head, doubt);
                self.told(head, problem, word)
            }
        };
        answer.refused_token = refused_token;
        answer
    }

    /// A problem with the provider's words.
    fn told(&self, head: &ReplyHead, problem: Problem, word: ProviderMessage) -> Answer {
        self.problem(self.with_words(head, problem, word), End::NotSent)
    }

    fn with_words(&self, head: &ReplyHead, mut problem: Problem, word: ProviderMessage) -> Problem {
        problem.provider = Some(self.provider_word(head.status, word));
        problem
    }

    /// What is remembered of the key that the look-up names.
    fn known(&self) -> Option<&Recalled> {
        self.past.as_ref()?.known.as_ref()
    }

    fn wanted(&self) -> Option<&Wanted> {
        match &self.task {
            Task::LookUp(wanted, _) => Some(wanted),
            Task::Refund(..) => None,
        }
    }

    /// Whether the key is remembered for this payment.
    fn is_about_it(&self) -> bool {
        match (self.known(), self.wanted()) {
            (Some(known), Some(wanted)) => known.is_about(&self.entry, wanted),
            _ => false,
        }
    }

    /// In how many seconds a send can no longer arrive, where one still can: without a key nobody
    /// knows.
    fn unsettled(&self) -> Option<String> {
        let settle_ms = self.entry.settle_ms;
        let left_ms = match &self.past {
            Some(past) if past.known.as_ref().is_some_and(|known| known.in_flight) => 1_000,
            Some(past) => past.unsettled_ms(settle_ms)?,
            None => settle_ms,
        };
        let seconds = left_ms.saturating_add(999).div_euclid(1_000);
        Some(seconds.to_string())
    }

    fn found(
        &self,
        head: &ReplyHead,
        status: Status,
        receipt: Receipt,
        shown_by: ShownBy,
    ) -> Answer {
        let known = self.known().filter(|_| self.is_about_it());
        let amount = receipt.amount.map(about_amount);
        let is_other = known.is_some_and(|known| {
            known.about.amount != [0; 8]
                && amount.is_some_and(|amount| amount != known.about.amount)
        });
        let names = || {
            let mut names = self.payment_names(&receipt.payment);
            if let Some(wanted) = self.wanted() {
                names.extend(crate::call::payment_digests(
                    &self.entry,
                    &wanted.payment.id,
                    &wanted.payment.reference,
                ));
            }
            names
        };
        let same_id = known.is_some_and(|known| known.id().is_some() && known.id() == receipt.id);
        // Whether it is the refund under the key, by what only that one has.
        let by_identity = match shown_by {
            ShownBy::Key => true,
            ShownBy::Id | ShownBy::Nothing => same_id,
            ShownBy::Payment | ShownBy::Reference => false,
        };
        let ambiguous = |sentence: &str| {
            let problem = Problem::unknown(Code::RefundAmbiguous, Retry::No, sentence);
            self.with_words(head, problem, receipt.word.clone())
        };
        match shown_by {
            ShownBy::Reference => {
                let problem = ambiguous(
                    "The payment has a refund under this reference, which another caller could have given to another refund. \
                     Look it up by its key or its id.",
                );
                return self.problem(problem, End::NotSent);
            }
            ShownBy::Nothing if !same_id => {
                let problem = Problem::unknown(
                    Code::RefundNotFound,
                    Retry::LookUp,
                    "A refund of this payment is under way, and the provider does not say which.",
                );
                return self.told(head, problem, receipt.word);
            }
            ShownBy::Payment if known.is_some_and(|known| known.in_flight) => {
                let mut problem = Problem::unknown(
                    Code::RefundInProgress,
                    Retry::LookUp,
                    "The payment has a refund, and a refund call with this key is in flight.",
                );
                problem.retry_after = self.unsettled();
                return self.told(head, problem, receipt.word);
            }
            ShownBy::Payment if !known.is_some_and(Recalled::may_be_the_refund) => {
                let problem = ambiguous(
                    "The payment has a refund, and the provider does not show under which key. The gateway does not remember \
                     that this key alone was sent for the payment, or a send under it was refused.",
                );
                let mut answer = self.problem(problem.clone(), End::NotSent);
                let is_sent = |known: &Recalled| known.sent_ms.is_some();
                if known.is_some_and(|known| known.past == Past::Refused && is_sent(known)) {
                    // Where no other key explains the refund, the provider may have taken its
                    // refusal back.
                    let refused = Problem::unknown(
                        Code::ProviderRejected,
                        Retry::LookUp,
                        "The provider refused, and its payment shows a refund since that may be this one.",
                    );
                    let doubt = self.with_words(head, refused, receipt.word.clone());
                    answer.concludes = self.doubt(&doubt, Some(names()), problem);
                }
                return answer;
            }
            // An id beside a key that the gateway knows by another one.
            ShownBy::Id if known.is_some_and(|known| known.id().is_some()) && !same_id => {
                return self.told(head, self.of_doubt(head, Doubt::Mismatch), receipt.word);
            }
            _ => {}
        }
        if is_other {
            return self.told(head, self.of_doubt(head, Doubt::Mismatch), receipt.word);
        }
        let by_payment = shown_by == ShownBy::Payment;
        let alone = by_payment.then(names);
        let otherwise = by_payment.then(|| {
            ambiguous(
                "The payment has a refund, and the provider does not show under which key. Another key was sent for this \
                 payment, too.",
            )
        });
        let settles = known.is_some() && (by_identity || by_payment);
        let (word, id) = (receipt.word.clone(), self.clean_id(&receipt));
        let mut body = self.refund_body(status, receipt);
        if settles {
            self.complete(&mut body);
        }
        let mut found = self.own(answer(200, status.as_str(), body.clone()), End::NotSent);
        if settles {
            let (end, answer) = match status {
                Status::Pending => return found,
                Status::Succeeded => (End::Refunded, (200, body)),
                Status::Failed => {
                    let (code, retry, sentence) = of_refusal(Refusal::Declined);
                    let declined = Problem::not_refunded(code, retry, sentence);
                    let declined = self.with_words(head, declined, word);
                    (End::Refused, (code.status(), declined.body()))
                }
            };
            found.concludes = self.conclusion(end, answer, id, alone, otherwise);
        }
        found
    }

    fn absent(&self, head: &ReplyHead, absence: Absence, word: ProviderMessage) -> Answer {
        let unknown = |retry: Retry, sentence: String| {
            Problem::unknown(Code::RefundNotFound, retry, sentence)
        };
        let mut problem = match absence {
            Absence::Unproven(sentence) => unknown(Retry::LookUp, sentence.to_owned()),
            Absence::NotRefundable(state) => unknown(
                Retry::LookUp,
                format!("The provider's order is {state} and shows no refund."),
            ),
            Absence::Ambiguous(sentence) => {
                Problem::unknown(Code::RefundAmbiguous, Retry::No, sentence)
            }
            Absence::Proven => return self.proven_absent(head, word),
        };
        if problem.retry == Retry::LookUp {
            problem.retry_after = self.unsettled();
        }
        self.told(head, problem, word)
    }

    /// The provider's answer proves that there was no refund when it gave it. Whether there can be
    /// none says the time since the last send.
    fn proven_absent(&self, head: &ReplyHead, word: ProviderMessage) -> Answer {
        let unproven = |sentence: &str| {
            let mut problem = Problem::unknown(Code::RefundNotFound, Retry::LookUp, sentence);
            problem.retry_after = self.unsettled();
            self.with_words(head, problem, word.clone())
        };
        let known = self.known();
        let has_key = matches!(self.task, Task::LookUp(_, Some(_)));
        let sentence = if self.unread {
            Some(
                "The provider shows no such refund. The memory that the gateways share could not be asked, so it is not known whether \
                 a send is still on its way.",
            )
        } else if self.past.is_none() && has_key {
            Some(
                "The provider shows no such refund. The gateway remembers no keys, so it cannot tell whether a send is still on \
                 its way.",
            )
        } else if self.past.is_none() {
            Some(
                "The provider shows no such refund. Look it up by its key: only then can the gateway tell whether a send is still \
                 on its way.",
            )
        } else if known.is_some_and(|known| known.in_flight) {
            Some("The provider shows no such refund, and a refund call with this key is in flight.")
        // What was not done to this payment may have been done to another, which the key is
        // remembered for.
        } else if known.is_some() && !self.is_about_it() {
            Some(
                "The provider shows no such refund, but a call with this key went out for another payment, or for this one by \
                 another name, or at another merchant.",
            )
        } else if known.is_some_and(|known| matches!(known.past, Past::Refunded | Past::Pending)) {
            Some(
                "The provider shows no such refund, and has said before that it took one under this key.",
            )
        } else if self.unsettled().is_some() {
            Some(match known {
                Some(_) => {
                    "The provider shows no such refund, but the last send with this key may still arrive."
                }
                None => {
                    "The provider shows no such refund. The gateway does not remember this key, and has not been up for long \
                     enough to know that no send is on its way."
                }
            })
        } else {
            None
        };
        if let Some(sentence) = sentence {
            let problem = unproven(sentence);
            let mut answer = self.problem(problem.clone(), End::NotSent);
            let is_taken_back = self.is_about_it()
                && known.is_some_and(|known| known.past == Past::Refunded && !known.in_flight)
                && self.unsettled().is_none();
            if is_taken_back {
                let doubt = Problem::unknown(
                    Code::ProviderError,
                    self.retry_when_unknown(),
                    "The provider has said that it refunded, and shows no refund any more.",
                );
                answer.concludes = self.doubt(&self.with_words(head, doubt, word), None, problem);
            }
            return answer;
        }
        let problem = Problem::not_refunded(
            Code::RefundNotFound,
            Retry::SameKey,
            "The provider's answer proves that there is no such refund, and none can still arrive.",
        );
        let mut answer = self.told(head, problem, word.clone());
        let mut otherwise = unproven(
            "The provider shows no such refund, but another call with its key may be on its way.",
        );
        otherwise.of_look_up();
        answer.concludes =
            self.conclusion(End::Absent, (0, String::new()), None, None, Some(otherwise));
        answer
    }

    /// Adds what the refund's own answer had and neither the provider nor the caller has said now.
    fn complete(&self, body: &mut String) {
        let known = self.known().and_then(|known| known.answer.as_ref());
        let Some(known) = known.filter(|answer| answer.status < 300) else {
            return;
        };
        let Ok(json) = Json::parse(known.body.as_bytes()) else {
            return;
        };
        let known = ["amount", "reason", "reference"]
            .into_iter()
            .filter_map(|name| Some((name, json.root().get(name)?.raw().to_owned())));
        add(body, known);
    }

    /// That a final word no longer holds: from now on the key's calls are told this problem.
    fn doubt(
        &self,
        told: &Problem,
        alone: Option<Vec<Digest>>,
        otherwise: Problem,
    ) -> Option<Box<Conclusion>> {
        let told = (told.status, told.body());
        self.conclusion(End::Unknown, told, None, alone, Some(otherwise))
    }

    fn conclusion(
        &self,
        end: End,
        answer: (u16, String),
        id: Option<String>,
        alone: Option<Vec<Digest>>,
        otherwise: Option<Problem>,
    ) -> Option<Box<Conclusion>> {
        let (Task::LookUp(_, Some(key)), Some(past)) = (&self.task, &self.past) else {
            return None;
        };
        Some(Box::new(Conclusion {
            key: *key,
            past: Recollection::clone(past),
            end,
            answer,
            id,
            alone,
            otherwise: otherwise.map(|mut problem| {
                if problem.outcome == Moved::Unknown {
                    problem.of_look_up();
                }
                problem
            }),
        }))
    }
}

/// Adds what the call says that asks again, and the stored answer does not: a look-up's caller knew neither reason nor reference,
/// and a store is told nothing of it.
pub(super) fn complete(stored: &mut StoredAnswer, refund: &Refund) {
    if stored.status >= 300 {
        return;
    }
    let text = |text: &Option<String>| text.as_ref().map(crate::json_text);
    let said = [
        ("payment", Some(crate::json_text(&refund.payment))),
        ("reason", text(&refund.reason)),
        ("reference", text(&refund.reference)),
    ];
    let said = said
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    add(&mut stored.body, said);
}

/// The members of an answer, in their order.
const MEMBERS: [&str; 7] = [
    "id",
    "provider",
    "status",
    "payment",
    "amount",
    "reason",
    "reference",
];

/// Adds what an answer does not have of these members: their names, and their values as JSON.
fn add<'a>(body: &mut String, more: impl Iterator<Item = (&'a str, String)>) {
    let json = Json::parse(body.as_bytes()).ok();
    let Some(Ok(members)) = json.as_ref().and_then(|json| json.root().members()) else {
        return;
    };
    let more: Vec<_> = more
        .filter(|(name, _)| !members.iter().any(|(known, _)| known == name))
        .collect();
    let members = members.iter().map(|(name, node)| (&**name, node.raw()));
    let more = more.iter().map(|(name, value)| (*name, &**value));
    let mut all: Vec<_> = members.chain(more).collect();
    all.sort_by_key(|(name, _)| {
        let place = MEMBERS.iter().position(|member| member == name);
        place.unwrap_or(MEMBERS.len())
    });
    *body = object(all);
}
