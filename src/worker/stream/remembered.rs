//! What a stream asks and tells the memory that gateways share.

use std::rc::Rc;

use super::{Flow, Stream};
use crate::clock::Resend;
use crate::exchange::{Accepted, Answer, Step, unreadable_call};
use crate::guard::{Asks, Attempt, Claim, Digest, Past, Question, Standing, Ticket};
use crate::worker::sharing::{Act, Errand, Progress, Told};

/// What it asks the memory that gateways share.
impl Stream {
    /// The store's word on what it asked is here. Its context is not the effective one.
    pub(in crate::worker) fn errand_done(self: &Rc<Self>, told: Told, known: Attempt) {
        self.known.replace(Some(known));
        if self.host().set_effective_context(self.id).is_err() {
            return;
        }
        match told {
            Told::Claim(claim) if self.asks_first() => {
                let step = self.after_asking(Some(claim));
                self.resume(step, false);
            }
            Told::Claim(claim) => {
                self.worker.count_claim(&claim);
                let step = self.claimed(self.after_an_outage(claim));
                self.resume(step, false);
            }
            Told::Names(claimed) => {
                let step = self.named(claimed.map(Some));
                self.resume(step, false);
            }
            Told::Settled(answer, word) => {
                if let Some(word) = word {
                    self.worker.count_guard(word);
                }
                if let Some((_, in_place)) = self.settling.take() {
                    self.tell_caller(*answer, in_place, true);
                }
            }
            Told::Released => {}
        }
    }

    /// The store cannot be asked. The stream's context is not the effective one.
    pub(in crate::worker) fn errand_failed(self: &Rc<Self>, errand: Errand) {
        if self.host().set_effective_context(self.id).is_err() {
            self.worker.leave_over(errand);
            return;
        }
        if let Some((answer, in_place)) = self.settling.take() {
            let answer = self.unsettled(answer, errand);
            self.tell_caller(answer, in_place, true);
            return;
        }
        let step = self.without_store(errand);
        self.resume(step, false);
    }

    /// What it was told of the store.
    pub(in crate::worker) fn known_of_store(&self) -> Option<Attempt> {
        self.known.take()
    }

    /// Asks for its key, where gateways share their memory.
    pub(super) fn ask_store(self: &Rc<Self>, accepted: Accepted) -> Flow {
        if let Asks::Claim(question) = accepted.asks() {
            let asked = (Box::new(question.clone()), self.now_ms());
            self.claimed.replace(Some(asked));
        }
        let act = Act::Ask(accepted.asks().clone());
        self.step.replace(Some(Step::Claiming(Box::new(accepted))));
        self.set_out(act)
    }

    /// The key of a call that is refused before its key was asked for, where another gateway may have sent it.
    pub(super) fn key_to_ask_for(&self, answer: &mut Answer) -> Option<Digest> {
        let key = answer.unclaimed.take()?;
        (self.worker.shared_memory().is_some() && answer.is_certain_no()).then_some(*key)
    }

    /// Asks whether another gateway has sent the key of a call that is refused for a fault of its own.
    pub(super) fn ask_first(self: &Rc<Self>, answer: Answer, key: Digest) -> Flow {
        let filter_state = |key: &str| self.host().property(&["filter_state", key]);
        self.worker.learn_password_of(&filter_state);
        if !self.worker.can_log_in() {
            let answer = self.in_doubt(answer);
            return self.answer(answer, false);
        }
        self.asking.set(true);
        self.step.replace(Some(Step::Answered(answer)));
        self.set_out(Act::Ask(Asks::Recall(key)))
    }

    /// Whether that is what it asks.
    pub(super) fn asks_first(&self) -> bool {
        self.asking.get()
    }

    /// What is true where that cannot be asked.
    pub(super) fn in_doubt(&self, mut answer: Answer) -> Answer {
        // Where it says that the call must be corrected, it goes on to say so.
        let standing = Standing {
            resend: Resend::Always,
        };
        answer.after_another_send(standing, self.host().now());
        answer
    }

    /// Goes on once it is known, or cannot be.
    pub(super) fn after_asking(&self, claim: Option<Claim>) -> Step {
        let is_clean = match claim {
            Some(Claim::Recalled(past)) => past.known.is_none_or(|known| {
                !known.in_flight && matches!(known.past, Past::Free | Past::Refused)
            }),
            _ => false,
        } && !self.worker.is_store_just_back();
        self.asking.set(false);
        match self.step.take() {
            Some(Step::Answered(answer)) if !is_clean => Step::Answered(self.in_doubt(answer)),
            Some(step) => step,
            None => Step::Answered(unreadable_call()),
        }
    }

    /// Begins what it asks of the store.
    pub(super) fn set_out(self: &Rc<Self>, act: Act) -> Flow {
        let progress = match self.worker.errand(act, self) {
            Some(errand) => self.worker.set_out(Box::new(errand)),
            None => return self.end_without_store(),
        };
        match progress {
            Progress::UnderWay => Flow::Pause,
            Progress::Failed(errand) => {
                let step = self.without_store(*errand);
                self.go_on(step, false)
            }
            // Nothing is told without a call.
            Progress::Done(..) => self.end_without_store(),
        }
    }

    pub(super) fn end_without_store(self: &Rc<Self>) -> Flow {
        match self.step.take() {
            Some(step) => {
                let (answer, _) = self.local_reply(step);
                self.end(answer)
            }
            None => Flow::Pause,
        }
    }

    /// How it goes on where the store cannot be asked: a provider with keys of its own is sent the refund all the same, unless the
    /// platform team wants it otherwise.
    pub(super) fn without_store(&self, errand: Errand) -> Step {
        // What it does with a key of which the store holds what it cannot read, it could tell nobody: others would say that nothing was
        // sent.
        let goes_on = self.goes_on_alone() && !errand.is_unreadable();
        self.tell_memory(if goes_on { "alone" } else { "unavailable" });
        if self.asks_first() {
            return self.after_asking(None);
        }
        let accepted = match self.step.take() {
            Some(Step::Claiming(accepted)) => accepted,
            other => {
                self.step.replace(other);
                self.worker.leave_over(errand);
                return self.named(Err(Claim::Unavailable));
            }
        };
        self.worker.count_fallback(&accepted.entry().name, goes_on);
        let claim = if goes_on {
            self.alone.set(true);
            let lease = Some(errand.lease());
            match self.worker.ask_own_guard(accepted.asks(), lease) {
                // Then nobody would know of it.
                Claim::NoRoom => Claim::Unavailable,
                claim => claim,
            }
        } else {
            Claim::Unavailable
        };
        self.worker.count_claim(&claim);
        // Its end tells the store all that is to be told, where it goes on.
        if !matches!(claim, Claim::Taken { .. }) {
            self.worker.leave_over(errand);
        }
        let claim = if goes_on && claim != Claim::Unavailable {
            Claim::Alone(Box::new(claim))
        } else {
            claim
        };
        self.proceed(*accepted, claim)
    }

    /// Whether a call that cannot ask the store goes on: where its provider has keys, and the platform team has not said otherwise.
    pub(super) fn goes_on_alone(&self) -> bool {
        let memory = self.worker.shared_memory();
        let has_keys = match &*self.step.borrow() {
            Some(Step::Claiming(accepted)) => {
                matches!(accepted.asks(), Asks::Claim(_)) && accepted.has_keys()
            }
            _ => false,
        };
        has_keys && memory.is_some_and(|memory| !memory.refuses)
    }

    /// A key of which the store knows nothing, shortly after it could not be asked: another gateway may have gone on without it, and
    /// not have told it yet.
    pub(super) fn after_an_outage(&self, claim: Claim) -> Claim {
        let goes_on = match &*self.step.borrow() {
            Some(Step::Claiming(accepted)) => accepted.has_keys(),
            _ => false,
        };
        let is_new = matches!(&claim, Claim::Taken { standing: None, .. });
        if goes_on && is_new && self.worker.is_store_just_back() {
            return Claim::Alone(Box::new(claim));
        }
        claim
    }

    /// Goes on with the guard's word.
    pub(super) fn claimed(&self, claim: Claim) -> Step {
        match self.step.take() {
            Some(Step::Claiming(accepted)) => self.proceed(*accepted, claim),
            Some(step) => step,
            None => Step::Answered(unreadable_call()),
        }
    }

    pub(super) fn named(&self, claimed: Result<Option<Ticket>, Claim>) -> Step {
        match self.step.take() {
            Some(Step::Naming(named)) => {
                self.in_environment(|environment| named.go_on(claimed, environment))
            }
            Some(step) => step,
            None => Step::Answered(unreadable_call()),
        }
    }

    /// Tells the store of the answer before the caller has it; none where nothing is to be told: then the answer is here.
    pub(super) fn settle_in_store(
        self: &Rc<Self>,
        answer: Answer,
        in_place: bool,
    ) -> Option<Answer> {
        let is_told = self.worker.shared_memory().is_some()
            && !self.alone.get()
            && (answer.settles.is_some() || answer.concludes.is_some());
        if !is_told {
            return Some(self.settled_later(answer));
        }
        let act = Act::Settle(self.question(), Box::new(answer.clone()), self.now_ms());
        let Some(errand) = self.worker.errand(act, self) else {
            return Some(self.settled_later(answer));
        };
        self.settling.replace(Some((answer, in_place)));
        match self.worker.set_out(Box::new(errand)) {
            Progress::UnderWay => None,
            Progress::Done(errand, _) | Progress::Failed(errand) => {
                let (answer, _) = self.settling.take()?;
                Some(self.unsettled(answer, *errand))
            }
        }
    }

    /// The answer that is true where the store could not be told of it, which the root does later.
    pub(super) fn unsettled(&self, mut answer: Answer, errand: Errand) -> Answer {
        self.tell_memory("untold");
        self.worker.leave_over(errand);
        if answer.concludes.is_some() {
            answer.not_concluded();
            return answer;
        }
        // It may have been told, and its answer be lost: then another gateway may have sent the key by now.
        answer.disown(self.host().now());
        self.worker.settle(&mut answer);
        answer
    }

    /// Settles the key in the process's own memory, and leaves it to the root to tell the store, where there is one.
    pub(super) fn settled_later(&self, mut answer: Answer) -> Answer {
        if self.worker.shared_memory().is_some() && answer.settles.is_some() {
            self.tell_memory("untold");
            self.worker.leave_settlement(self.question(), &answer);
        }
        self.worker.settle(&mut answer);
        answer
    }

    /// Tells the access log how the call did without the memory that gateways share: what came of it first.
    pub(super) fn tell_memory(&self, word: &str) {
        if !self.memory_told.replace(true) {
            self.tell("refund_memory", word);
        }
    }

    pub(super) fn question(&self) -> Option<Box<Question>> {
        let claimed = self.claimed.borrow();
        claimed.as_ref().map(|(question, _)| question.clone())
    }

    /// Whether the lease of its claim has run out, so that another gateway may have its key.
    pub(super) fn claim_is_over(&self) -> bool {
        let claimed = self.claimed.borrow();
        let mut since = claimed.iter().map(|(_, since_ms)| *since_ms);
        since.any(|since_ms| !self.worker.is_held(since_ms))
    }
}
