//! What the root asks of a stream that waits, and tells it.

use std::rc::Rc;

use super::{BODY_TIMEOUT_MS, Stream, TOKEN_TIMEOUT_MS};
use crate::clock::Now;
use crate::config::ProviderEntry;
use crate::exchange::Step;
use crate::guard::Digest;
use crate::host::{Buffer, Level, Map};
use crate::secret::Secret;
use crate::token::{Failure, Look};
use crate::worker::tokens::Looks;

/// What the root asks of it.
impl Stream {
    pub(in crate::worker) fn id(&self) -> u32 {
        self.id
    }

    /// Whether it waits for a token.
    pub(in crate::worker) fn waits(&self) -> bool {
        matches!(*self.step.borrow(), Some(Step::Waiting(_)))
    }

    /// Whether it waits for a token of this provider's.
    pub(in crate::worker) fn waits_for(&self, provider: &Rc<ProviderEntry>) -> bool {
        match &*self.step.borrow() {
            Some(Step::Waiting(waiting)) => Rc::ptr_eq(waiting.entry(), provider),
            _ => false,
        }
    }

    /// Looks after a paused call: its body may not come, and another worker may have fetched its
    /// token.
    pub(in crate::worker) fn look_after(self: &Rc<Self>, now: Now, looks: &mut Looks) {
        let waited_ms = now.steady_ms.saturating_sub(self.since_ms.get());
        let step = self.step.borrow();
        match &*step {
            Some(Step::Reading(reading)) => {
                let earlier = |key: &Digest| self.worker.standing(key);
                let answer = if waited_ms > BODY_TIMEOUT_MS {
                    if !self.body_seen.get() {
                        self.worker.alarm(
                            "a body did not begin in time: the caller sent none, or the plugin's configuration lacks \
                             allow_on_headers_stop_iteration: true",
                        );
                    }
                    reading.stalled(&earlier)
                } else if self.body_is_withheld() {
                    self.worker.log(
                        Level::Error,
                        "Envoy holds a body back: set allow_on_headers_stop_iteration: true in the plugin's configuration (Envoy \
                         1.35 and later)",
                    );
                    reading.withheld(&earlier)
                } else {
                    return;
                };
                drop(step);
                if self.host().set_effective_context(self.id).is_ok() {
                    self.end(answer);
                } else {
                    self.step.take();
                    self.worker.unwatch(self.id);
                }
            }
            Some(Step::Waiting(waiting)) => {
                let entry = Rc::clone(waiting.entry());
                let client_secret = waiting.client_secret().clone();
                let trace = waiting.trace();
                drop(step);
                let look = looks
                    .entry(entry.name.clone())
                    .or_insert_with(|| self.worker.look_for_token(&entry, now));
                match look {
                    Some(Look::Ready(token)) => self.wake(Ok(token.clone())),
                    Some(Look::Failed(failure)) => self.wake(Err(failure.clone())),
                    _ if waited_ms > TOKEN_TIMEOUT_MS => self.wake(Err(Failure::unreachable())),
                    Some(Look::Ask) => {
                        // Once for all who wait; what comes of it is seen at the next look.
                        self.worker.ask_token(&entry, &client_secret, trace);
                        *look = Some(Look::Wait);
                    }
                    Some(Look::Wait) | None => {}
                }
            }
            Some(Step::Answered(_)) => {
                drop(step);
                if waited_ms <= BODY_TIMEOUT_MS && !self.body_is_withheld() {
                    return;
                }
                self.worker.unwatch(self.id);
                if self.host().set_effective_context(self.id).is_ok()
                    && let Some(answer) = self.held_answer()
                {
                    self.end(answer);
                }
            }
            None
            | Some(
                Step::Claiming(_)
                | Step::Naming(_)
                | Step::Calling(_)
                | Step::Leaving(_)
                | Step::Sent(_)
                | Step::Replying(_),
            ) => {
                drop(step);
                self.worker.unwatch(self.id);
            }
        }
    }

    /// Goes on with a token, or answers without one, where it waits for one.
    pub(in crate::worker) fn wake(self: &Rc<Self>, found: Result<Secret, Failure>) {
        self.worker.unwatch(self.id);
        let Some(Step::Waiting(waiting)) = self.step.take() else {
            return;
        };
        if self.host().set_effective_context(self.id).is_err() {
            return;
        }
        self.phase_ends();
        match found {
            // What was to be sent in place of the caller's body was set when the call began to
            // wait.
            Ok(token) => {
                self.tell_token_key(waiting.entry(), &token);
                self.resume(waiting.with_token(token), true);
            }
            Err(failure) => {
                self.end(waiting.without_token(&failure));
            }
        }
    }

    /// Goes on with the answer to its call; `came`: with headers. A call that was reset ends
    /// without.
    pub(in crate::worker) fn call_ended(self: &Rc<Self>, came: bool) {
        let answer = came.then(|| {
            let body = self.host().buffer(Buffer::CallResponse);
            (self.reply_head(Map::CallResponse), body.unwrap_or_default())
        });
        if self.host().set_effective_context(self.id).is_err() {
            return;
        }
        let callout = match self.step.take() {
            Some(Step::Calling(callout)) => callout,
            other => {
                self.step.replace(other);
                return;
            }
        };
        self.phase_ends();
        let worker = &*self.worker;
        let step = match answer {
            Some((head, body)) => {
                let entry = Rc::clone(callout.entry());
                let step =
                    self.in_environment(|environment| callout.reply(&head, &body, environment));
                if let Step::Answered(answer) = &step {
                    worker.drop_token(&entry, answer);
                }
                step
            }
            None => callout.cut(worker),
        };
        self.resume(step, false);
    }
}
