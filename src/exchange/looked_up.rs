//! What a look-up has found: its answer, and what it means for the refund's key.

use super::{Answer, Call, ReplyHead, Task, of_refusal};
use crate::guard::{Digest, End, Guard, Recalled, StoredAnswer};
use crate::json::Json;
use crate::problem::{Code, Moved, Problem, Retry};
use crate::provider::{Absence, Doubt, Finding, Receipt, Refunds, Refusal, Wanted, scalar};
use crate::refund::{Refund, Status, about_amount, about_payment};

/// What a look-up means for the key that it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conclusion {
    /// The caller's key.
    pub key: Digest,
    /// What the guard remembered of it when the provider was asked.
    pub recalled: Option<Box<Recalled>>,
    /// How the refund has ended.
    pub end: End,
    /// What the next refund call with this key is answered: status and body.
    pub answer: (u16, String),
    /// What was said, where the provider proved that there is no such refund.
    problem: Option<Problem>,
}

impl Conclusion {
    /// Tells it to the guard. Says whether it still holds: not where the key has been sent with since.
    pub(super) fn told(&self, guard: &Guard<'_>, lease: Option<u64>, now_ms: i64) -> bool {
        match (&self.recalled, lease) {
            (Some(recalled), Some(lease)) => {
                let (status, body) = &self.answer;
                guard.conclude(recalled, lease, self.end, (*status, body), now_ms)
            }
            (Some(_), None) => false,
            (None, _) => guard.standing(&self.key, now_ms).is_none(),
        }
    }
}

impl Answer {
    /// Says no more than is known where the key has been sent with since the provider was asked, or is just being sent with: that
    /// send may be the refund. Says whether that changed anything.
    pub(super) fn overtake(&mut self) -> bool {
        let Some(Conclusion {
            problem: Some(problem),
            ..
        }) = self.concludes.as_deref_mut()
        else {
            return false;
        };
        problem.outcome = Moved::Unknown;
        problem.of_look_up();
        problem.detail =
            "The provider shows no such refund, but another call with its key may be on its way."
                .to_owned();
        self.body = problem.body();
        true
    }
}

/// Whether what was found is the refund under the key that was named.
#[derive(Debug, PartialEq, Eq)]
enum Ours {
    /// It is.
    Yes,
    /// That cannot be told.
    NotKnown,
    /// It has another amount.
    Other,
}

impl Call {
    /// The answer to a look-up.
    pub(super) fn looked_up(self, head: &ReplyHead, finding: Finding) -> Answer {
        let mut proven = false;
        let (mut problem, word) = match finding {
            Finding::Found {
                status,
                receipt,
                by_key,
            } => match self.is_ours(&receipt, by_key) {
                Ours::Other => (self.of_doubt(head, Doubt::Mismatch), receipt.word),
                ours => return self.found(head, status, receipt, ours),
            },
            // What was not done to this payment may have been done to another, which the key is remembered for.
            Finding::Absent(Absence::Proven, word) if self.is_of_another() => (
                Problem::unknown(
                    Code::RefundNotFound,
                    Retry::LookUp,
                    "The provider shows no such refund, but a call with this key went out for another payment, or for this one \
                     by another name.",
                ),
                word,
            ),
            Finding::Absent(Absence::Proven, word) => {
                proven = true;
                (
                    Problem::not_refunded(
                        Code::RefundNotFound,
                        Retry::SameKey,
                        "The provider's answer proves that there is no such refund.",
                    ),
                    word,
                )
            }
            Finding::Absent(Absence::Unproven(sentence), word) => (
                Problem::unknown(Code::RefundNotFound, Retry::LookUp, sentence),
                word,
            ),
            Finding::Absent(Absence::NotRefundable(state), word) => (
                Problem::unknown(
                    Code::RefundNotFound,
                    Retry::LookUp,
                    format!("The provider's order is {state} and shows no refund."),
                ),
                word,
            ),
            Finding::Refused(refusal, word) => {
                let (code, retry, sentence) = of_refusal(refusal);
                let mut problem = Problem::not_refunded(code, retry, sentence);
                if matches!(refusal, Refusal::Credentials | Refusal::RateLimited) {
                    problem.retry_after.clone_from(&head.retry_after);
                }
                (problem, word)
            }
            Finding::Unknown(doubt, word) => (self.of_doubt(head, doubt), word),
        };
        problem.provider = Some(self.provider_word(head.status, word));
        let mut answer = self.caller.problem(problem.clone());
        answer.refused_token = self.refused_token(head);
        if proven {
            answer.concludes = self.conclusion(End::NeverWas, (0, String::new()), Some(problem));
        }
        answer
    }

    fn found(&self, head: &ReplyHead, status: Status, receipt: Receipt, ours: Ours) -> Answer {
        let word = receipt.word.clone();
        let mut body = self.refund_body(status, receipt);
        if ours == Ours::Yes {
            self.complete(&mut body);
        }
        let mut answer = self
            .caller
            .answer(200, status.as_str(), body.clone(), End::Unknown);
        if ours == Ours::Yes {
            answer.concludes = match status {
                Status::Succeeded => self.conclusion(End::Refunded, (200, body), None),
                Status::Pending => None,
                Status::Failed => {
                    let (code, retry, sentence) = of_refusal(Refusal::Declined);
                    let mut declined = Problem::not_refunded(code, retry, sentence);
                    declined.provider = Some(self.provider_word(head.status, word));
                    let told = (code.status(), declined.body());
                    self.conclusion(End::Refused, told, None)
                }
            };
        }
        answer
    }

    /// Adds what the refund's own answer had and neither the provider nor the caller has said now.
    fn complete(&self, body: &mut String) {
        let known = self
            .recalled
            .as_ref()
            .and_then(|known| known.answer.as_ref());
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

    fn conclusion(
        &self,
        end: End,
        answer: (u16, String),
        problem: Option<Problem>,
    ) -> Option<Box<Conclusion>> {
        let Task::LookUp(_, Some(key)) = &self.task else {
            return None;
        };
        Some(Box::new(Conclusion {
            key: *key,
            recalled: self.recalled.clone(),
            end,
            answer,
            problem,
        }))
    }

    /// Whether the guard remembers the key for another payment, or for this one by another name.
    fn is_of_another(&self) -> bool {
        match (&self.task, &self.recalled) {
            (Task::LookUp(wanted, _), Some(known)) => !known.is_about(&self.entry.name, wanted),
            _ => false,
        }
    }

    /// Compares what was found with what the guard remembers of the key.
    fn is_ours(&self, receipt: &Receipt, by_key: bool) -> Ours {
        let (Task::LookUp(wanted, _), Some(known)) = (&self.task, &self.recalled) else {
            return Ours::NotKnown;
        };
        let one = self.entry.dialect.capabilities().refunds == Refunds::One;
        let same_id = receipt.id.is_some() && known.id() == receipt.id;
        if !known.is_about(&self.entry.name, wanted) || !(by_key || one || same_id) {
            return Ours::NotKnown;
        }
        match receipt.amount.map(about_amount) {
            Some(amount) if known.about.amount != [0; 8] && known.about.amount != amount => {
                Ours::Other
            }
            _ => Ours::Yes,
        }
    }
}

impl Recalled {
    /// The refund's id at its provider, where an answer gave one.
    pub(super) fn id(&self) -> Option<String> {
        let answer = self.answer.as_ref().filter(|answer| answer.status < 300)?;
        scalar(Json::parse(answer.body.as_bytes()).ok()?.root().get("id"))
    }

    /// Whether it is about this payment.
    pub(super) fn is_about(&self, provider: &str, wanted: &Wanted) -> bool {
        let names = [
            ("id", &wanted.payment.id),
            ("reference", &wanted.payment.reference),
        ];
        names.into_iter().any(|(kind, name)| {
            name.as_ref()
                .is_some_and(|name| about_payment(provider, kind, name) == self.about.payment)
        })
    }
}

/// Adds what a look-up's caller did not know and a refund's has said: its reason and its reference.
pub(super) fn complete(stored: &mut StoredAnswer, refund: &Refund) {
    if stored.status >= 300 {
        return;
    }
    let known = [("reason", &refund.reason), ("reference", &refund.reference)]
        .into_iter()
        .filter_map(|(name, text)| Some((name, crate::json_text(text.as_ref()?))));
    add(&mut stored.body, known);
}

/// Adds what an answer does not have of these members: their names, and their values as JSON.
fn add<'a>(body: &mut String, members: impl Iterator<Item = (&'a str, String)>) {
    let Ok(json) = Json::parse(body.as_bytes()) else {
        return;
    };
    let missing: String = members
        .filter(|(name, _)| json.root().get(name).is_none())
        .map(|(name, value)| format!(",\"{name}\":{value}"))
        .collect();
    if body.ends_with('}') {
        body.pop();
        body.push_str(&missing);
        body.push('}');
    }
}
