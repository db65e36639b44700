//! A refund or a look-up on its way: what is needed to make an answer of whatever comes.

use std::rc::Rc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::caller::Caller;
use super::{Alarm, Answer, ReplyHead};
use crate::call::payment_digests;
use crate::clock::Resend;
use crate::config::{Auth, ProviderEntry};
use crate::guard::{Digest, End, Recollection};
use crate::idempotency::ProviderKey;
use crate::problem::{Code, FieldError, Problem, ProviderWord, Retry};
use crate::provider::{Doubt, Names, ProviderMessage, Receipt, Refunds, Wanted};
use crate::refund::{Amount, Refund, Refunded, Status};
use crate::secret::Secret;
use crate::text;

/// The longest time that a provider gives for a refund, in bytes: RFC 3339 with nanoseconds and an
/// offset has 35.
const MAX_TIME: usize = 64;

/// What is to be had from the provider.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub(super) enum Task {
    /// A refund, under its key at the provider.
    Refund(Refund, ProviderKey),
    /// How a refund stands; with the caller's key of it.
    LookUp(Wanted, Option<Digest>),
}

impl Task {
    /// A problem that says what is true of the refund. `end` is how this call ended by itself.
    pub(super) fn problem(&self, caller: &Caller, problem: Problem, end: End) -> Answer {
        match self {
            Task::Refund(..) => caller.problem_of_refund(problem, end),
            Task::LookUp(..) => caller.problem_of_look_up(problem),
        }
    }

    /// Makes an answer this caller's. `end` is how the call ended by itself.
    pub(super) fn own(&self, caller: &Caller, answer: Answer, end: End) -> Answer {
        match self {
            Task::Refund(..) => caller.own_refund(answer, end),
            Task::LookUp(..) => caller.own_look_up(answer),
        }
    }
}

/// A refund or a look-up on its way: what is needed to make an answer of whatever comes.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) entry: Rc<ProviderEntry>,
    pub(super) task: Task,
    /// What the guard remembers of the refund that is looked up; none where none was named by its
    /// key.
    pub(super) past: Option<Box<Recollection>>,
    /// Whether that could not be asked for: the memory that the gateways share did not answer.
    pub(super) unread: bool,
    /// Whether it is only to be shown what would be sent.
    pub(super) preview: bool,
    /// Until when a second send cannot refund twice, counted from the first.
    pub(super) resend: Resend,
    /// What stood in the headers that carry secrets.
    pub(super) secrets: Rc<Vec<(String, Secret)>>,
    /// The bearer token, once it is there.
    pub(super) token: Option<Secret>,
    /// What the provider calls the payment, where it was looked at.
    pub(super) names: Names,
    /// What the provider, or the token endpoint, is shown: never to be passed on where it comes
    /// back.
    pub(super) shown: Vec<Secret>,
}

impl Call {
    /// Makes an answer the caller's. `end` is how the call ended by itself.
    pub(super) fn own(&self, answer: Answer, end: End) -> Answer {
        self.task.own(&self.caller, answer, end)
    }

    /// The answer that a problem is. `end` is how the call ended by itself.
    pub(super) fn problem(&self, problem: Problem, end: End) -> Answer {
        self.task.problem(&self.caller, problem, end)
    }

    /// The answer to a call of which certainly nothing was sent.
    pub(super) fn not_sent(&self, problem: Problem) -> Answer {
        self.problem(problem, End::NotSent)
    }

    /// The names under which the guard keeps this payment, where it can have one refund alone:
    /// those that the provider shows.
    pub(super) fn payment_names(&self, shown: &Names) -> Vec<Digest> {
        match self.entry.dialect.capabilities().refunds {
            Refunds::Many { .. } => Vec::new(),
            Refunds::One => [shown, &self.names]
                .into_iter()
                .flat_map(|names| payment_digests(&self.entry, &names.id, &names.reference))
                .collect(),
        }
    }

    /// The body of the answer to a refund of which this is known.
    pub(super) fn refund_body(&self, status: Status, receipt: Receipt) -> String {
        let id = self.clean_id(&receipt);
        let ProviderMessage { code, message, .. } = self.clean(receipt.word);
        let (payment, asked, reason, reference) = match &self.task {
            Task::Refund(refund, _) => (
                &refund.payment,
                Some(refund.amount),
                &refund.reason,
                &refund.reference,
            ),
            Task::LookUp(wanted, _) => (&wanted.payment, None, &None, &wanted.reference),
        };
        Refunded {
            id: id.as_deref(),
            provider: &self.entry.name,
            status,
            payment,
            amount: receipt.amount.map(Amount::Exactly).or(asked),
            reason: reason.as_deref(),
            reference: reference.as_deref(),
            provider_code: code.as_deref(),
            provider_message: message.as_deref(),
            created_at: receipt.created_at.as_deref().filter(|time| {
                time.len() <= MAX_TIME && OffsetDateTime::parse(time, &Rfc3339).is_ok()
            }),
        }
        .body()
    }

    /// The token that a provider refuses with this reply, where one was fetched.
    pub(super) fn refused_token(&self, head: &ReplyHead) -> Option<Box<Secret>> {
        let fetched = matches!(self.entry.auth, Auth::Token(_)) && head.status == 401;
        let token = self.shown.first().filter(|_| fetched)?;
        Some(Box::new(token.clone()))
    }

    /// The problem of a reply that does not tell.
    pub(super) fn of_doubt(&self, head: &ReplyHead, doubt: Doubt) -> Problem {
        let mut problem = match doubt {
            Doubt::InProgress => Problem {
                detail: "The provider is still at work on the first send of this refund."
                    .to_owned(),
                ..self.after_sending(Code::RefundInProgress, "")
            },
            Doubt::Failed => self.after_sending(Code::ProviderError, "The provider failed"),
            Doubt::Unreadable => self.after_sending(
                Code::ProviderReplyUnreadable,
                "The provider's answer is not what it documents",
            ),
            Doubt::MaybeThere => Problem::unknown(
                Code::ProviderRejected,
                Retry::LookUp,
                "The provider refused, and that can mean that the refund is there already.",
            ),
            Doubt::Mismatch => Problem::unknown(
                Code::ProviderReplyMismatch,
                Retry::LookUp,
                "The provider's answer names another amount, currency, payment or key than was asked for, so it is not known what \
                 was refunded.",
            ),
        };
        if head.status == 503 {
            problem.retry_after.clone_from(&head.retry_after);
        }
        problem
    }

    /// A problem after which money may have moved, with the advice that this provider allows.
    /// `happened`: without its full stop.
    pub(super) fn after_sending(&self, code: Code, happened: &str) -> Problem {
        let meaning = match self.task {
            Task::Refund(..) => ", and the refund may have been made.",
            Task::LookUp(..) => ".",
        };
        let mut problem = Problem::unknown(
            code,
            self.retry_when_unknown(),
            format!("{happened}{meaning}"),
        );
        problem.retry_until = self.retry_until();
        problem
    }

    /// The refund's id: as it is, long numbers included, but for a credential in it.
    pub(super) fn clean_id(&self, receipt: &Receipt) -> Option<String> {
        let id = receipt.id.as_ref()?;
        Some(text::without_secrets(id, &self.shown))
    }

    /// The provider's words, fit for an answer: short, without card numbers, and without the
    /// credentials that it was shown.
    fn clean(&self, word: ProviderMessage) -> ProviderMessage {
        let clean = |text: String| text::clean(&text, &self.shown);
        ProviderMessage {
            code: word.code.map(clean),
            message: word.message.map(clean),
            errors: word
                .errors
                .into_iter()
                .map(|error| FieldError {
                    field: error.field.map(clean),
                    message: clean(error.message),
                })
                .collect(),
        }
    }

    pub(super) fn provider_word(&self, status: u16, word: ProviderMessage) -> ProviderWord {
        let ProviderMessage {
            code,
            message,
            errors,
        } = self.clean(word);
        ProviderWord {
            name: self.entry.name.clone(),
            status: Some(status),
            code,
            message,
            errors,
        }
    }

    /// The answer where there is no signature. Nothing was sent.
    pub(super) fn unsigned(&self, sentence: impl Into<String>) -> Answer {
        self.alarm(
            Code::SigningUnavailable.status(),
            Code::SigningUnavailable,
            sentence.into(),
        )
    }

    /// The answer where something of the platform team's is missing. Nothing was sent.
    pub(super) fn alarm(&self, status: u16, code: Code, sentence: String) -> Answer {
        let mut answer = self.not_sent(Problem {
            status,
            ..Problem::not_refunded(
                code,
                Retry::SameKey,
                format!("Nothing was sent. {sentence} The platform team must fix that."),
            )
        });
        answer.alarm = Some(Box::new(Alarm {
            provider: self.entry.name.clone(),
            sentence,
        }));
        answer
    }

    /// Until when the same call can be made again, where that has an end.
    pub(super) fn retry_until(&self) -> Option<String> {
        let same_key = self.retry_when_unknown() == Retry::SameKey;
        same_key.then(|| self.resend.retry_until()).flatten()
    }

    /// What a caller may do of whose refund nothing more is known: the contract's "by key".
    pub(super) fn retry_when_unknown(&self) -> Retry {
        match self.task {
            Task::Refund(..) => self.resend.retry(self.caller.came),
            Task::LookUp(..) => Retry::LookUp,
        }
    }
}
