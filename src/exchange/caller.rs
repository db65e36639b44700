//! The caller: what is kept of its headers and of its key, and how an answer becomes its own.

use super::answer::problem_answer;
use super::sentences::gateway_error;
use super::{Answer, Settlement};
use crate::caller::CallerName;
use crate::clock::Now;
use crate::guard::{End, Standing, Ticket};
use crate::headers::Headers;
use crate::problem::{Code, Problem, Retry};

/// The caller's headers that go on to whoever is called for it, besides `x-b3-*`.
const TRACING: [&str; 4] = ["x-request-id", "traceparent", "tracestate", "b3"];

/// The longest of them that goes to a token endpoint or to OpenBao: a `tracestate` has 512
/// characters.
const MAX_TRACING: usize = 512;

/// What is kept of the caller's headers, and of its key.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// What joins calls to this one: its id and its trace.
    pub(super) trace: Headers<'static>,
    /// Without it Envoy matches no route; the route takes it away.
    pub(super) forwarded_proto: Option<Vec<u8>>,
    pub(super) came: Now,
    /// Who calls, where the configuration says where Envoy says so.
    pub(super) name: Option<CallerName>,
    /// What is known of earlier sends under the key.
    pub(super) standing: Option<Standing>,
    /// Why nobody knows of earlier sends under the key, where it is so: a sentence.
    pub(super) unremembered: Option<&'static str>,
    /// That the key is this call's.
    pub(super) ticket: Option<Ticket>,
}

impl Caller {
    pub(super) fn of(headers: &Headers<'_>, came: Now) -> Self {
        let mut trace = Headers::default();
        for (name, value) in headers.iter() {
            if TRACING.iter().any(|known| known.as_bytes() == name) || name.starts_with(b"x-b3-") {
                trace.push(name.to_vec(), value.to_vec());
            }
        }
        Caller {
            trace,
            forwarded_proto: headers.first("x-forwarded-proto").map(<[u8]>::to_vec),
            came,
            name: None,
            standing: None,
            unremembered: None,
            ticket: None,
        }
    }

    /// What joins a token fetch, or a call to OpenBao, to the caller's. Nothing odd is among it: by
    /// that the endpoint could refuse a fetch for which other callers wait.
    pub(super) fn sound_trace(&self) -> Headers<'static> {
        let mut sound = Headers::default();
        for name in TRACING {
            let is_text = |value: &&[u8]| value.iter().all(|b| matches!(b, b' '..=b'~'));
            let mut values = self.trace.all(name).filter(is_text);
            if let Some(value) = values.find(|value| value.len() <= MAX_TRACING) {
                sound.push(name.as_bytes(), value.to_vec());
            }
        }
        sound
    }

    /// Makes an answer to a refund call this caller's. `end` is how the call ended by itself.
    pub(super) fn own_refund(&self, answer: Answer, end: End) -> Answer {
        let mut answer = self.named(answer);
        answer.settles = self.ticket.as_ref().map(|ticket| {
            Box::new(Settlement {
                ticket: ticket.clone(),
                end,
                id: None,
                sent: end != End::NotSent,
                refused: false,
                names: Vec::new(),
            })
        });
        answer
    }

    /// Makes an answer to a look-up this caller's: it settles no key.
    pub(super) fn own_look_up(&self, answer: Answer) -> Answer {
        Answer {
            look_up: true,
            ..self.named(answer)
        }
    }

    fn named(&self, mut answer: Answer) -> Answer {
        if let Some(id) = self.trace.first("x-request-id") {
            answer.headers.push(&b"x-request-id"[..], id.to_vec());
        }
        answer
    }

    /// A problem that says what is true under the key: of this send, and of those before it. `end`
    /// is how this call ended by itself.
    pub(super) fn problem_of_refund(&self, mut problem: Problem, end: End) -> Answer {
        if let Some(standing) = self.standing {
            problem.downgrade_to_unknown(standing, self.came);
        }
        let mut answer = self.own_refund(problem_answer(&problem), end);
        answer.problem = Some(Box::new(problem));
        answer
    }

    /// A problem of a look-up: what fails then says nothing of the refund.
    pub(super) fn problem_of_look_up(&self, mut problem: Problem) -> Answer {
        problem.of_look_up();
        self.own_look_up(problem_answer(&problem))
    }

    /// The answer to a refund call that must be corrected. Nothing was sent.
    pub(super) fn refuse(&self, code: Code, detail: &str) -> Answer {
        let problem = Problem::not_refunded(code, Retry::Corrected, detail);
        self.problem_of_refund(problem, End::NotSent)
    }
}

/// The answer to a call whose headers the host does not show.
pub fn unreadable_call() -> Answer {
    let nobody = Caller {
        trace: Headers::default(),
        forwarded_proto: None,
        came: Now {
            unix_ms: 0,
            steady_ms: 0,
        },
        name: None,
        standing: None,
        unremembered: None,
        ticket: None,
    };
    let sentence = "Nothing was sent: the gateway cannot read the call.";
    nobody.problem_of_refund(gateway_error(500, sentence), End::NotSent)
}

impl Problem {
    /// Makes it one of a key under which another send may have moved money, whatever became of this
    /// one.
    pub(super) fn downgrade_to_unknown(&mut self, standing: Standing, now: Now) {
        self.after_another_send(standing.retry(now));
        if self.retry == Retry::SameKey && self.retry_until.is_none() {
            self.retry_until = standing.resend.retry_until();
        }
    }
}
