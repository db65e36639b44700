//! What the application gets, and what it means for its key.

use super::Conclusion;
use crate::clock::Now;
use crate::guard::{Concluded, Digest, End, Guard, Question, Settled, Standing, Ticket};
use crate::headers::Headers;
use crate::json::Json;
use crate::problem::{Moved, Problem};
use crate::secret::Secret;

/// What the application gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, `x-request-id` among them.
    pub headers: Headers<'static>,
    /// The body: JSON.
    pub body: String,
    /// `succeeded`, `pending` or the problem's code, for logs and metrics.
    pub word: &'static str,
    /// The bearer token that the provider has just refused.
    pub refused_token: Option<Box<Secret>>,
    /// What the platform team must look at.
    pub alarm: Option<Box<Alarm>>,
    /// Whether it was given before, to the same call, and nothing was sent this time.
    pub replayed: bool,
    /// How the call ended for the guard, where the key is its own.
    pub settles: Option<Box<Settlement>>,
    /// What a look-up has found out for the guard.
    pub concludes: Option<Box<Conclusion>>,
    /// The key of a refund call that ended before its key was asked for. What is said of it is what this process knows.
    pub unclaimed: Option<Box<Digest>>,
    /// Whether it answers a look-up.
    pub look_up: bool,
    /// What is said to a refund call, where it is a problem.
    pub(super) problem: Option<Box<Problem>>,
}

/// What an answer means for its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// That the key is the call's.
    pub ticket: Ticket,
    /// How the call ended.
    pub end: End,
    /// The provider's id of the refund, where it has told one.
    pub id: Option<String>,
    /// Whether something was sent that could move money.
    pub sent: bool,
    /// Whether the provider refused the refund, for certain or not.
    pub refused: bool,
    /// What the provider has called the payment, besides the names that the caller knew.
    pub names: Vec<Digest>,
}

impl Settlement {
    fn told<'a>(&'a self, status: u16, body: &'a str) -> Settled<'a> {
        Settled {
            end: self.end,
            answer: (status, body),
            id: self.id.as_deref(),
            sent: self.sent,
            refused: self.refused,
            names: &self.names,
        }
    }
}

impl Answer {
    /// The head of the whole response that it is: with its status, and the length of its body.
    pub fn response_headers(&self) -> Headers<'static> {
        let mut headers = Headers::default();
        headers.text(":status", self.status.to_string());
        headers.extend(self.headers.clone());
        headers.text("content-length", self.body.len().to_string());
        headers
    }

    /// Tells the guard how the call ended, or what a look-up has found out, and says less where that no longer holds. `lease` is a
    /// random number, for a look-up. Returns a word for what is to be counted.
    pub fn settle(
        &mut self,
        guard: &Guard<'_>,
        lease: Option<u64>,
        now: Now,
    ) -> Option<&'static str> {
        if let Some(conclusion) = self.concludes.clone() {
            let concluded = conclusion.tell(guard, lease, now);
            if matches!(concluded, Concluded::Overtaken)
                && let Some(otherwise) = &conclusion.otherwise
            {
                self.become_problem(otherwise);
            }
            return match concluded {
                Concluded::Holds => None,
                Concluded::Settled => Some("concluded"),
                Concluded::Changed => Some("changed"),
                Concluded::Overtaken => Some("overtaken"),
            };
        }
        let settlement = self.settles.as_deref()?;
        let settled = settlement.told(self.status, &self.body);
        if guard.settle(&settlement.ticket, &settled, now) {
            return None;
        }
        self.disown(now);
        Some("late")
    }

    /// Tells the guard how the call ended where its key is not its own. `ended_ms`: when it did, by the steady clock.
    pub fn settle_beside(&self, guard: &Guard<'_>, question: &Question, ended_ms: i64, now: Now) {
        if let Some(settlement) = self.settles.as_deref() {
            let settled = settlement.told(self.status, &self.body);
            guard.settle_beside(question, &settlement.ticket, &settled, ended_ms, now);
        }
    }

    /// The key that it settles, or that its look-up named.
    pub fn key(&self) -> Option<Digest> {
        let settled = self.settles.as_ref().map(|settles| settles.ticket.key);
        settled.or_else(|| Some(self.concludes.as_ref()?.key))
    }

    /// Says no more than is known where what a look-up has found out could not be stored: another call may have been sent since.
    pub fn not_concluded(&mut self) {
        let conclusion = self.concludes.take();
        if let Some(otherwise) = conclusion.and_then(|conclusion| conclusion.otherwise) {
            self.become_problem(&otherwise);
        }
    }

    /// Says no more than is known where the key has become another call's in the meantime, or may have: what this call did not
    /// refund, that one may have.
    pub fn disown(&mut self, now: Now) {
        if let Some(settlement) = &self.settles {
            let resend = settlement.ticket.resend;
            self.after_another_send(Standing { resend }, now);
        }
    }

    /// Says no more than is known where another send under the key may have been the refund.
    pub fn after_another_send(&mut self, standing: Standing, now: Now) {
        if let Some(problem) = self.problem.as_deref_mut()
            && problem.outcome == Moved::No
        {
            problem.downgrade_to_unknown(standing, now);
            self.body = problem.body();
        }
    }

    /// The same of an answer that is told again.
    pub(super) fn says_not_refunded(&self) -> bool {
        let json = Json::parse(self.body.as_bytes()).ok();
        let outcome = json
            .as_ref()
            .and_then(|json| json.root().get("outcome")?.text());
        outcome.as_deref() == Some("not_refunded")
    }

    /// Whether it says for certain that no money has moved.
    pub fn is_certain_no(&self) -> bool {
        self.problem
            .as_ref()
            .is_some_and(|problem| problem.outcome == Moved::No)
    }

    /// Says this instead.
    fn become_problem(&mut self, problem: &Problem) {
        let fresh = problem_answer(problem);
        let request_id = self.headers.first("x-request-id").map(<[u8]>::to_vec);
        self.status = fresh.status;
        self.headers = fresh.headers;
        self.body = fresh.body;
        self.word = fresh.word;
        if let Some(id) = request_id {
            self.headers.push(&b"x-request-id"[..], id);
        }
    }
}

/// An answer, as far as it is the same for every caller.
pub(super) fn answer(status: u16, word: &'static str, body: String) -> Answer {
    let mut headers = Headers::default();
    headers.fixed(
        "content-type",
        if status < 300 {
            "application/json"
        } else {
            "application/problem+json"
        },
    );
    headers.fixed("cache-control", "no-store");
    Answer {
        status,
        headers,
        body,
        word,
        refused_token: None,
        alarm: None,
        replayed: false,
        settles: None,
        concludes: None,
        unclaimed: None,
        look_up: false,
        problem: None,
    }
}

/// The answer that a problem is.
pub(super) fn problem_answer(problem: &Problem) -> Answer {
    let mut answer = answer(problem.status, problem.code.as_str(), problem.body());
    if let Some(retry_after) = &problem.retry_after {
        answer.headers.text("retry-after", retry_after.clone());
    }
    answer
}

/// What the platform team must look at: a line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The provider's configured name.
    pub provider: String,
    /// What is wrong. Never a secret.
    pub sentence: String,
}
