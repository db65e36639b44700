//! How a stream is answered, and what is said of that to those who watch: the metrics and the access log.

use std::rc::Rc;

use super::{Flow, Stream};
use crate::config::ProviderEntry;
use crate::exchange::Answer;
use crate::host::{Buffer, Level, Map};
use crate::problem::Code;
use crate::secret::Secret;
use crate::worker::figures::{Kind, Said, Series};
use crate::worker::telemetry::Phase;

impl Stream {
    /// Answers the stream; nothing more is to be done for it.
    pub(super) fn end(self: &Rc<Self>, mut answer: Answer) -> Flow {
        self.worker.unwatch(self.id);
        self.step.take();
        self.is_ours.set(true);
        match self.key_to_ask_for(&mut answer) {
            Some(key) => self.ask_first(answer, key),
            None => self.answer(answer, false),
        }
    }

    /// Sends an answer, and settles its key before anybody can see it. `in_place`: the provider's reply is there, whole, with a
    /// body, and ends the message.
    pub(super) fn answer(self: &Rc<Self>, answer: Answer, in_place: bool) -> Flow {
        match self.settle_in_store(answer, in_place) {
            Some(answer) => self.tell_caller(answer, in_place, false),
            None => Flow::Pause,
        }
    }

    /// Gives the caller the answer, whose key is settled. `paused`: the provider's reply was held meanwhile.
    ///
    /// `in_place`: it is written over that reply. An answer as of the gateway's own would go through all that Envoy does with its
    /// own answers, which takes a seventh of a refund's time.
    pub(super) fn tell_caller(&self, answer: Answer, in_place: bool, paused: bool) -> Flow {
        let word = self.note(&answer);
        let host = self.host();
        let written = in_place
            && host
                .set_buffer(Buffer::Response, answer.body.as_bytes())
                .and_then(|()| host.set_headers(Map::Response, &answer.response_headers()))
                .is_ok();
        if !written {
            self.reply(word, &answer);
            return Flow::Pause;
        }
        if paused {
            let _ = host.resume_response();
        }
        Flow::Continue
    }

    /// Logs and counts. Returns the word for Envoy's details.
    pub(super) fn note(&self, answer: &Answer) -> &'static str {
        if let Some(alarm) = &answer.alarm {
            self.worker
                .alarm(&format!("{}: {}", alarm.provider, alarm.sentence));
        }
        let said = Said::of(answer);
        let word = if answer.replayed {
            "replayed"
        } else {
            said.status
        };
        self.report(said, answer.replayed);
        word
    }

    /// Counts the call by what was said, and tells it to the access log.
    pub(super) fn report(&self, said: Said, replayed: bool) {
        self.phase_ends();
        self.tell("refund_status", said.status);
        self.tell("refund_outcome", said.outcome);
        for (name, value) in [
            ("refund_told_retry", &said.retry),
            ("refund_id", &said.id),
            ("refund_amount", &said.amount),
        ] {
            if let Some(value) = value {
                self.tell(name, value);
            }
        }
        let series = Series {
            kind: self.kind.get(),
            outcome: said.outcome,
            code: said.code,
            replayed,
        };
        let (worker, provider) = (&self.worker, self.provider.borrow());
        let Some(entry) = &*provider else {
            worker.count(series.name("none"));
            return;
        };
        worker.count(series.name(&entry.name));
        // A preview asks nobody, and would only make the others look quicker.
        if series.kind == Kind::Preview {
            return;
        }
        let call_ms = self.now_ms().saturating_sub(self.came_ms.get());
        worker.took(&entry.name, Phase::Call, call_ms);
        if said.code == Code::SigningUnavailable.as_str() {
            worker.count_signature(entry, false);
        }
    }

    /// Sets what the access log shows, and whoever else reads filter state.
    pub(super) fn tell(&self, name: &str, value: &str) {
        // Without it the call is as good.
        let _ = self.host().set_property(name, value);
    }

    /// Tells which key this token was fetched with.
    pub(super) fn tell_token_key(&self, entry: &ProviderEntry, token: &Secret) {
        if let Some(key) = self.worker.key_of_token(entry, token) {
            self.tell("refund_key_id", &key);
        }
    }

    pub(super) fn phase_begins(&self, phase: Phase) {
        self.phase.set(Some((phase, self.now_ms())));
    }

    pub(super) fn phase_ends(&self) {
        if let (Some((phase, since_ms)), Some(entry)) =
            (self.phase.take(), &*self.provider.borrow())
        {
            let took_ms = self.now_ms().saturating_sub(since_ms);
            self.worker.took(&entry.name, phase, took_ms);
        }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.host().now().steady_ms
    }

    /// Answers as Envoy answers by itself.
    pub(super) fn reply(&self, word: &str, answer: &Answer) {
        let details = format!("refund_{}", word.replace('-', "_"));
        let body = answer.body.as_bytes();
        let replied = self
            .host()
            .reply(answer.status, &details, &answer.headers, body);
        if replied.is_err() {
            self.worker.log(
                Level::Error,
                "the host took no answer; Envoy's own reply stands for it",
            );
        }
    }
}
