//! The memory that gateways share, as this worker asks it.
//!
//! What is asked for a stream is an [`Errand`]. It is tried over what the store is known to hold, and one call tells whether that
//! holds; a call whose answer is lost is made once more. A stream waits for its claim before anything is sent, and for its
//! settlement before its caller has the answer: so whoever has an answer finds it at every gateway. It waits for twice the call's
//! time at most. What could not be settled by then, or outlived its stream, is the root's to repeat.
//!
//! The process's own table holds a copy of what the store said last: for the list of what is open, for the gauges, and for calls
//! to providers with keys of their own while the store cannot be asked.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::{PendingCall, Stream, Worker};
use crate::clock::Now;
use crate::config::SharedMemory;
use crate::exchange::Answer;
use crate::guard::{Asks, Claim, Digest, GuardSettings, Question, StoreView, Verdict};
use crate::headers::Headers;
use crate::host::{Buffer, Map, Metric};
use crate::memory::swap;
use crate::redis::{Fault, Swaps};
use crate::secret::{Carried, Secret};

mod errand;

use errand::{ACTS, Own, Stuck, twice};
pub(super) use errand::{Act, Errand, Progress, Told};

/// How many calls one errand makes at most: others may change a key again and again.
const MOST_CALLS: u32 = 8;
/// How many errands wait for the root at most. What is told to the store too late for them is true by its lease.
const MOST_KEPT: usize = 1_024;
/// How many errands may wait when those are added that were lost.
const MOST_CAUGHT_UP: usize = MOST_KEPT / 4;
/// How often the root tries again while the store cannot be asked, in milliseconds.
const TRY_AGAIN_MS: i64 = 1_000;
/// How many errands the root has under way at a time.
const AT_A_TIME: usize = 16;
/// How long a claim may be held by its call's own clock before another could have it, less than its lease, in milliseconds.
const SKEW_MS: i64 = 5_000;
/// Since when the store has failed this process, or not: in memory that all workers share.
const FAILED_RECORD: &str = "refund.memory.failed";
/// When its clock jumped, likewise.
const JUMPED_RECORD: &str = "refund.memory.jumped";
/// Which store is configured in this process, or that there were several.
const STORE_RECORD: &str = "refund.memory.store";
const SEVERAL_STORES: &[u8] = b"several";
/// How long after a failure of the store others may not have told it yet what they did without it, in milliseconds.
const JUST_BACK_MS: i64 = 15_000;
/// When the root tries again to settle a key that cannot be settled as it stands, in milliseconds.
const STUCK_MS: i64 = 60_000;

/// What outlives the roots of a VM, one after the other with each configuration.
#[derive(Default)]
pub struct Unsettled {
    errands: RefCell<VecDeque<Errand>>,
    /// When the root tries again, by the steady clock.
    next_ms: Cell<i64>,
    /// The store's password, as it was last brought.
    password: RefCell<Option<Secret>>,
}

/// Tells a store from another one.
fn store_name(memory: &SharedMemory) -> Vec<u8> {
    let parts = [memory.cluster.as_bytes(), memory.prefix.as_bytes()];
    Digest::of(parts).bytes().to_vec()
}

fn calls(act: &str, result: &str) -> String {
    format!("refund.memory_calls_total.call.{act}.result.{result}")
}

fn took(act: &str) -> String {
    format!("refund.memory_milliseconds.call.{act}")
}

fn fallbacks(provider: &str, result: &str) -> String {
    format!("refund.memory_fallbacks_total.provider.{provider}.result.{result}")
}

fn repeats(result: &str) -> String {
    format!("refund.memory_repeats_total.result.{result}")
}

/// All that a call can come to.
const RESULTS: [&str; 8] = [
    "ok",
    "again",
    "late",
    "busy",
    "refused",
    "garbled",
    "unreadable",
    "unanswered",
];

impl Worker {
    /// The store that gateways share, where one is configured.
    pub(super) fn shared_memory(&self) -> Option<Rc<SharedMemory>> {
        self.config.borrow().as_ref()?.memory.clone()
    }

    /// The series of the store, which are there from the start.
    pub(super) fn define_memory_series<'a>(&self, providers: impl Iterator<Item = &'a str>) {
        for act in ACTS {
            for result in RESULTS {
                self.metric(Metric::Counter, calls(act, result));
            }
            self.metric(Metric::Histogram, took(act));
        }
        for result in ["left", "ok", "failed", "dropped"] {
            self.metric(Metric::Counter, repeats(result));
        }
        for provider in providers {
            for result in ["alone", "unavailable"] {
                self.metric(Metric::Counter, fallbacks(provider, result));
            }
        }
    }

    /// Counts a call that the store could not be asked about.
    pub(super) fn count_fallback(&self, provider: &str, goes_on: bool) {
        self.count(fallbacks(
            provider,
            if goes_on { "alone" } else { "unavailable" },
        ));
    }

    /// Notes the store's password, as a stream has brought it: the root sees neither filter state nor headers.
    pub(super) fn learn_password(&self, password: Option<Secret>) {
        if password.is_some() {
            self.vm.unsettled.password.replace(password);
        }
    }

    /// Notes the store's password where the filter state of a call brings it.
    pub(super) fn learn_password_of(&self, filter_state: &dyn Fn(&str) -> Option<Vec<u8>>) {
        let carried = Carried {
            headers: &[],
            filter_state,
        };
        let memory = self.shared_memory();
        let source = memory.as_ref().and_then(|memory| memory.password.as_ref());
        self.learn_password(source.and_then(|source| source.resolve(&carried).ok()));
    }

    /// Whether the store asks for no password, or one has come.
    pub(super) fn can_log_in(&self) -> bool {
        self.shared_memory().is_some_and(|memory| {
            memory.password.is_none() || self.vm.unsettled.password.borrow().is_some()
        })
    }

    /// An errand for a stream; none where the host has no randomness.
    pub(super) fn errand(&self, act: Act, stream: &Rc<Stream>) -> Option<Errand> {
        let (lease, memory) = (self.random_number()?, self.shared_memory()?);
        let errand = Errand::new(act, lease, Some(Rc::clone(stream)), memory);
        Some(errand.after(stream.known_of_store()))
    }

    /// What the store's clock shows more than the steady one, in milliseconds. Until it is known, nothing is written by it.
    fn ahead_ms(&self, now: Now) -> i64 {
        let unix_ahead_ms = now.unix_ms.saturating_sub(now.steady_ms);
        self.store_ahead_ms.get().unwrap_or(unix_ahead_ms)
    }

    fn guard_settings(&self) -> Option<GuardSettings> {
        self.config.borrow().as_ref().map(|config| config.guard)
    }

    fn view<'a>(&self, memory: &'a SharedMemory, now: Now) -> Option<StoreView<'a>> {
        Some(StoreView {
            prefix: &memory.prefix,
            settings: self.guard_settings()?,
            ahead_ms: self.ahead_ms(now),
            // Where it failed this process, another one may have gone on without it.
            since_ms: self.noted_ms(FAILED_RECORD),
            jumped_ms: self.noted_ms(JUMPED_RECORD),
        })
    }

    /// Whether the store failed this process so lately that others may not have told it yet what they did without it.
    pub(super) fn is_store_just_back(&self) -> bool {
        let refuses = self.shared_memory().is_none_or(|memory| memory.refuses);
        let since_ms = self
            .host
            .now()
            .steady_ms
            .saturating_sub(self.noted_ms(FAILED_RECORD));
        !refuses && since_ms < JUST_BACK_MS
    }

    fn noted_ms(&self, record: &str) -> i64 {
        let (bytes, _) = self.host.read(record);
        bytes.try_into().map_or(i64::MIN, i64::from_le_bytes)
    }

    /// Learns the store's clock. One that jumps makes what was sent look older or younger than it is.
    fn learn_clock(&self, store_ms: i64, now: Now) {
        let ahead_ms = store_ms.saturating_sub(now.steady_ms);
        if let Some(before_ms) = self.store_ahead_ms.replace(Some(ahead_ms))
            && before_ms.abs_diff(ahead_ms) > SKEW_MS.unsigned_abs()
        {
            self.note(JUMPED_RECORD, now);
            self.note(FAILED_RECORD, now);
            self.alarm(
                "the shared memory's clock has jumped: look at the clocks of the store's hosts",
            );
        }
    }

    /// Begins an errand, or goes on with it over what the store holds now.
    pub(super) fn set_out(&self, mut errand: Box<Errand>) -> Progress {
        let now = self.host.now();
        if errand.calls == 0 {
            errand.began_ms = now.steady_ms;
        }
        let memory = Rc::clone(&errand.memory);
        let Some(view) = self.view(&memory, now) else {
            return Progress::Failed(errand);
        };
        let (act, lease, own) = (&errand.act, errand.lease, self.guard());
        let key = act.copied().map(|(key, _)| key);
        errand.untold = key.zip(own).and_then(|(key, own)| own.untold(&key, now));
        if errand.untold.is_none() && matches!(errand.act, Act::CatchUp(..)) {
            return Progress::Done(errand, Told::Released);
        }
        let own = own.as_ref().map(|guard| Own {
            guard,
            untold: errand.untold.as_ref(),
        });
        let told = errand.attempt.run(&view, |guard| {
            // What the store has not been told yet of this key comes first.
            if let Act::Ask(Asks::Claim(Question { key, .. }) | Asks::Recall(key)) = act {
                for untold in self.vm.unsettled.errands.borrow().iter() {
                    if untold.act.settles() == Some(*key) {
                        untold.act.run(guard, None, untold.lease, now);
                    }
                }
            }
            act.run(guard, own.as_ref(), lease, now)
        });
        match told {
            Ok(told) => errand.told = Some(told),
            Err(_) => {
                errand.stuck = Some(Stuck::Unreadable);
                self.count(calls(errand.act.name(), "unreadable"));
                self.alarm("the shared memory holds what this version cannot read: a newer one has written it");
                return Progress::Failed(errand);
            }
        }
        errand.only_reads = self.store_ahead_ms.get().is_none();
        if errand.only_reads {
            errand.attempt.only_read();
        }
        self.call_store(&memory, errand)
    }

    /// Makes a call of what the errand's attempt needs.
    fn call_store(&self, memory: &SharedMemory, mut errand: Box<Errand>) -> Progress {
        let now = self.host.now();
        let Some((settings, word)) = self.guard_settings().zip(self.random_number()) else {
            return Progress::Failed(errand);
        };
        errand.word = word;
        errand.called_ms = now.steady_ms;
        errand.calls = errand.calls.saturating_add(1);
        let swaps = Swaps {
            swaps: errand.attempt.swaps(),
            word,
            deadline_ms: errand
                .began_ms
                .saturating_add(twice(memory))
                .saturating_add(self.ahead_ms(now)),
            ttl_ms: settings.kept_ms(),
        };
        let password = self.vm.unsettled.password.borrow();
        let body = swaps.request(memory.login(password.as_ref()));
        errand.logs_in = password.is_some();
        let mut headers = Headers::default();
        headers.fixed(":method", "POST");
        headers.fixed(":path", "/");
        headers.fixed(":scheme", "http");
        headers.text(":authority", memory.cluster.clone());
        // The call is bound to the context that runs, as the SDK binds it.
        let context = errand.stream.as_ref().map(|stream| stream.id());
        let root_acts = self.root_acts.get();
        if root_acts {
            let _ = self.host.set_effective_context(self.root);
        }
        let call =
            self.host
                .dispatch_http_call(&memory.cluster, &headers, &body, memory.timeout_ms);
        if root_acts && let Some(context) = context {
            let _ = self.host.set_effective_context(context);
        }
        match call {
            Some(call) => {
                let pending = PendingCall::Memory(errand);
                self.calls.borrow_mut().insert(call, pending);
                Progress::UnderWay
            }
            None => {
                drop(password);
                self.fails(&errand, "unanswered", "there is no such cluster");
                self.note_failure(now);
                Progress::Failed(errand)
            }
        }
    }

    /// Takes the store's answer; `came`: with headers.
    fn store_answered(&self, mut errand: Box<Errand>, came: bool) -> Progress {
        let now = self.host.now();
        let name = errand.act.name();
        let waited_ms = now.steady_ms.saturating_sub(errand.called_ms);
        if let Some(id) = self.metric(Metric::Histogram, took(name)) {
            self.host
                .record(id, u64::try_from(waited_ms).unwrap_or_default());
        }
        let memory = Rc::clone(&errand.memory);
        // 200 says that there is a connection, and nothing of what came of the call.
        let is_through = came && self.call_status() == Some(200);
        let body = is_through
            .then(|| self.host.buffer(Buffer::CallResponse))
            .flatten()
            .unwrap_or_default();
        let swaps = Swaps {
            swaps: errand.attempt.swaps(),
            word: errand.word,
            deadline_ms: 0,
            ttl_ms: 0,
        };
        let answer = match body.is_empty() {
            true => None,
            false => Some(swaps.answer(errand.logs_in, &body)),
        };
        match answer {
            Some(Ok(stands)) => {
                self.learn_clock(stands.now_ms, now);
                let verdict = errand.attempt.judge(&memory.prefix, stands);
                if verdict == Verdict::Holds && !errand.only_reads {
                    self.count(calls(name, "ok"));
                    self.keep_copy(&errand, now);
                    return match errand.told.take() {
                        Some(told) => Progress::Done(errand, told),
                        None => Progress::Failed(errand),
                    };
                }
                self.count(calls(name, "again"));
                if self.may_call(&errand, &memory, now) {
                    return self.set_out(errand);
                }
                errand.stuck = Some(Stuck::Contended);
                self.alarm("the shared memory: others have changed a key for too long");
                Progress::Failed(errand)
            }
            Some(Err(Fault::Late(now_ms))) => {
                self.learn_clock(now_ms, now);
                self.count(calls(name, "late"));
                if !errand.has_failed && self.may_call(&errand, &memory, now) {
                    errand.has_failed = true;
                    return self.set_out(errand);
                }
                self.note_failure(now);
                Progress::Failed(errand)
            }
            answer => {
                let is_no_value = matches!(answer, Some(Err(Fault::Refused("WRONGTYPE"))));
                errand.stuck = is_no_value.then_some(Stuck::Unreadable);
                let (result, why) = match answer {
                    Some(Err(fault @ Fault::Busy(_))) => ("busy", fault.to_string()),
                    Some(Err(fault @ Fault::Refused(_))) => ("refused", fault.to_string()),
                    Some(Err(fault)) => ("garbled", fault.to_string()),
                    _ => ("unanswered", "no answer came in time".to_owned()),
                };
                self.fails(&errand, result, &why);
                // Once more the very same, which is stored once whichever of the two it was. Envoy may give a call that is made from
                // the answer to another one that one's connection, which the store closes: that is no word of the store's.
                let was_closed = is_through && result == "unanswered";
                let again = result != "refused"
                    && (was_closed || !errand.has_failed)
                    && self.may_call(&errand, &memory, now);
                if again {
                    errand.has_failed |= !was_closed;
                    return self.call_store(&memory, errand);
                }
                self.note_failure(now);
                Progress::Failed(errand)
            }
        }
    }

    fn may_call(&self, errand: &Errand, memory: &SharedMemory, now: Now) -> bool {
        let since_ms = now.steady_ms.saturating_sub(errand.began_ms);
        errand.calls < MOST_CALLS && since_ms < twice(memory)
    }

    fn fails(&self, errand: &Errand, result: &str, why: &str) {
        self.count(calls(errand.act.name(), result));
        self.alarm(&format!("the shared memory cannot be asked: {why}"));
    }

    fn note_failure(&self, now: Now) {
        self.note(FAILED_RECORD, now);
    }

    fn note(&self, record: &str, now: Now) {
        let _ = self.host.write(record, &now.steady_ms.to_le_bytes(), 0);
    }

    /// The process's own table keeps what the store holds of this key.
    fn keep_copy(&self, errand: &Errand, now: Now) {
        // Of another gateway's call it is not told the end.
        let is_no_ones = matches!(&errand.told, Some(Told::Claim(claim)) if !matches!(claim, Claim::Taken { .. }));
        // What has been told of a key need not be told again.
        if is_no_ones && errand.untold.is_none() {
            return;
        }
        if let Some((key, note)) = errand.act.copied()
            && let Some(guard) = self.guard()
            && let Some(view) = self.view(&errand.memory, now)
        {
            let untold = errand.untold.as_ref();
            errand
                .attempt
                .seen(&view, |store| guard.adopt(store, &key, note, untold, now));
        }
    }

    fn call_status(&self) -> Option<u16> {
        let bytes = self.host.headers(Map::CallResponse)?;
        let headers = Headers::decode(&bytes)?;
        let status = headers.first(":status")?;
        std::str::from_utf8(status).ok()?.parse().ok()
    }

    /// Goes on with the answer to a call to the store.
    pub(super) fn memory_answered(&self, errand: Box<Errand>, came: bool) {
        match self.store_answered(errand, came) {
            Progress::UnderWay => {}
            Progress::Done(errand, told) => match errand.stream.clone() {
                Some(stream) => stream.errand_done(told, errand.into_known()),
                None => {
                    self.count(repeats("ok"));
                    self.vm.unsettled.next_ms.set(0);
                    self.repeat();
                }
            },
            Progress::Failed(errand) => match errand.stream.clone() {
                Some(stream) => stream.errand_failed(*errand),
                None => {
                    self.count(repeats("failed"));
                    self.put_back(*errand);
                }
            },
        }
    }

    /// Takes back what of a stream's is under way.
    pub(super) fn take_errand(&self, stream: &Rc<Stream>) -> Option<Errand> {
        let mut calls = self.calls.borrow_mut();
        let number = calls.iter().find_map(|(number, call)| match call {
            PendingCall::Memory(errand) if errand.is_of(stream) => Some(*number),
            _ => None,
        })?;
        match calls.remove(&number)? {
            PendingCall::Memory(errand) => Some(*errand),
            PendingCall::Token(_) | PendingCall::Stream(_) => None,
        }
    }

    /// Leaves to the root what is left of an errand.
    pub(super) fn leave_over(&self, errand: Errand) {
        if let Some(errand) = errand.left_over() {
            self.leave(errand);
        }
    }

    /// Leaves the end of a call to the root.
    pub(super) fn leave_settlement(&self, question: Option<Box<Question>>, answer: &Answer) {
        if let (Some(settles), Some(memory)) = (&answer.settles, self.shared_memory()) {
            let now_ms = self.host.now().steady_ms;
            let act = Act::Settle(question, Box::new(answer.clone()), now_ms);
            self.leave(Errand::new(act, settles.ticket.lease, None, memory));
        }
    }

    /// Leaves to the root what the process's table has not told of these keys and their payments, where nothing else is about to: the
    /// errand may have been dropped, or have gone with a worker that trapped.
    pub(super) fn leave_untold(&self, found: impl Iterator<Item = (Digest, Vec<Digest>)>) {
        // What one store has not heard is nothing for another's ears.
        let memory = self.shared_memory();
        let Some(memory) = memory.filter(|memory| self.is_only_store(memory)) else {
            return;
        };
        let waiting: Vec<Digest> = {
            let errands = self.vm.unsettled.errands.borrow();
            errands
                .iter()
                .filter_map(|errand| errand.act.settles())
                .collect()
        };
        let room = MOST_CAUGHT_UP.saturating_sub(waiting.len());
        let lost = found.filter(|(key, _)| !waiting.contains(key)).take(room);
        for (key, names) in lost {
            let Some(lease) = self.random_number() else {
                return;
            };
            let act = Act::CatchUp(key, names);
            self.leave(Errand::new(act, lease, None, Rc::clone(&memory)));
        }
    }

    /// Whether no other store has been configured in this process, whose table all of them share.
    fn is_only_store(&self, memory: &SharedMemory) -> bool {
        self.host.read(STORE_RECORD).0 == store_name(memory)
    }

    /// Notes which store is configured in this process.
    pub(super) fn note_store(&self, memory: &SharedMemory) {
        let ours = store_name(memory);
        swap(&*self.host, STORE_RECORD, |bytes| {
            let noted = if bytes.is_empty() || bytes == ours {
                ours.clone()
            } else {
                SEVERAL_STORES.to_vec()
            };
            ((), (noted != bytes).then_some(noted))
        });
    }

    fn leave(&self, errand: Errand) {
        let mut errands = self.vm.unsettled.errands.borrow_mut();
        if errands.len() >= MOST_KEPT {
            errands.pop_front();
            self.count(repeats("dropped"));
        }
        errands.push_back(errand);
        drop(errands);
        self.count(repeats("left"));
        if !self.closing.get() {
            self.tick_within(super::TICK_BODY_MS);
        }
    }

    fn put_back(&self, errand: Errand) {
        let now_ms = self.host.now().steady_ms;
        let due_ms = if errand.stuck.is_some() {
            now_ms.saturating_add(STUCK_MS)
        } else {
            let next_ms = now_ms.saturating_add(TRY_AGAIN_MS);
            self.vm.unsettled.next_ms.set(next_ms);
            errand.due_ms
        };
        let mut errands = self.vm.unsettled.errands.borrow_mut();
        errands.push_back(errand.of_root(due_ms));
    }

    /// Tells the store what it has not been told yet. While it cannot be asked, one call in a second tries.
    pub(super) fn repeat(&self) {
        let now_ms = self.host.now().steady_ms;
        if self.closing.get() || now_ms < self.vm.unsettled.next_ms.get() {
            return;
        }
        let fails = self.vm.unsettled.next_ms.get() > 0;
        let most = if fails { 1 } else { AT_A_TIME };
        for _ in self.repeats_under_way()..most {
            let mut errands = self.vm.unsettled.errands.borrow_mut();
            let due = errands.iter().position(|errand| errand.due_ms <= now_ms);
            let Some(errand) = due.and_then(|due| errands.remove(due)) else {
                return;
            };
            drop(errands);
            match self.set_out(Box::new(errand)) {
                Progress::UnderWay => {}
                Progress::Done(..) => self.count(repeats("ok")),
                Progress::Failed(errand) => {
                    self.count(repeats("failed"));
                    self.put_back(*errand);
                    return;
                }
            }
        }
    }

    fn repeats_under_way(&self) -> usize {
        let calls = self.calls.borrow();
        let of_root = calls.values().filter(|call| match call {
            PendingCall::Memory(errand) => errand.stream.is_none(),
            PendingCall::Token(_) | PendingCall::Stream(_) => false,
        });
        of_root.count()
    }

    /// Whether errands wait for the root, and it is not about to go.
    pub(super) fn has_unsettled(&self) -> bool {
        !self.closing.get() && !self.vm.unsettled.errands.borrow().is_empty()
    }

    /// Takes what this root has under way back for the next one.
    pub(super) fn give_errands_back(&self) {
        let mut calls = self.calls.borrow_mut();
        let all = std::mem::take(&mut *calls);
        for (number, call) in all {
            match call {
                PendingCall::Memory(errand) if errand.stream.is_none() => {
                    let due_ms = errand.due_ms;
                    let mut errands = self.vm.unsettled.errands.borrow_mut();
                    errands.push_front(errand.of_root(due_ms));
                }
                call => {
                    calls.insert(number, call);
                }
            }
        }
    }

    /// Whether a claim that was asked for at this moment is still its call's own, whatever others do: its lease has not run out.
    pub(super) fn is_held(&self, since_ms: i64) -> bool {
        let held_ms = self.host.now().steady_ms.saturating_sub(since_ms);
        let settings = self.guard_settings();
        settings.is_some_and(|settings| held_ms.saturating_add(SKEW_MS) < settings.lease_ms)
    }
}
