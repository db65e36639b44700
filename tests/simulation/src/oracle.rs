//! Every word that callers got, held against what the providers have in their ledgers. It knows nothing
//! of the filter: only the calls, the requests that reached a provider, and the contract.

use std::collections::BTreeMap;

use crate::caller::{Call, End, Refund, Said, Why, Word};
use crate::provider::{Entry, Kind, Provider, State, decimal};
use crate::scene::{ROOM, Scene};

/// One request that left a gateway.
#[derive(Clone, Debug)]
pub struct Send {
    pub call: usize,
    /// The process that sent it.
    pub life: usize,
    pub at: i64,
    /// It asks for a refund, and not how one stands.
    pub is_refund: bool,
    /// The provider's key.
    pub key: String,
    /// A connection was had.
    pub left: bool,
    /// It is refused before anything is processed.
    pub denied: bool,
    /// The store had answered nothing that its call asked.
    pub alone: bool,
}

/// A process, as far as the store is concerned.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// When it had an answer of the store's, in that order.
    pub heard: Vec<i64>,
    /// When it was ended.
    pub ended: Option<i64>,
}

/// A rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of which refund.
    pub refund: Option<usize>,
    /// What it says.
    pub rule: &'static str,
    /// Where.
    pub place: String,
}

/// All that is known at a world's end.
pub struct Evidence<'a> {
    pub refunds: &'a [Refund],
    pub calls: &'a [Call],
    pub sends: &'a [Send],
    pub lives: &'a [Life],
    pub providers: &'a [Provider],
    pub scene: &'a Scene,
    pub now: i64,
}

/// One refund with what was sent and what is booked.
struct Case<'a> {
    all: &'a Evidence<'a>,
    refund: &'a Refund,
    sends: Vec<(usize, &'a Send)>,
    booked: Vec<&'a Entry>,
    /// What is booked of its payment under another key.
    beside: Vec<&'a Entry>,
}

/// How long a process takes at most to tell the store what it did without it, once the store answers.
const TELLS_MS: i64 = 2_000;

/// What no other gateway can know better, while one goes on without the store: docs/memory.md names it. It is no finding, and is counted.
pub const UNTOLD: &str =
    "it says not_refunded, and a gateway that could not tell the store before had sent";
const LOST: &str = "lost: the last word is that it was refunded, and it is not booked";
const NOT_BOOKED: &str = "the answer tells of a refund that is not booked like this";

/// Checks everything.
pub fn reckon(all: &Evidence<'_>) -> Vec<Finding> {
    let mut sends: BTreeMap<usize, Vec<(usize, &Send)>> = BTreeMap::new();
    for (nth, send) in all.sends.iter().enumerate() {
        let refund = all.calls[send.call].refund;
        sends.entry(refund).or_default().push((nth, send));
    }
    let mut of_refund: BTreeMap<usize, Vec<&Entry>> = BTreeMap::new();
    let mut of_payment: BTreeMap<(usize, u64), Vec<(usize, &Entry)>> = BTreeMap::new();
    let mut findings = Vec::new();
    for provider in all.providers {
        for entry in &provider.ledger {
            // A refund is its caller's by the request that made it, and by nothing that could be
            // another's, too.
            let Some(send) = all.sends.get(entry.send).filter(|send| send.is_refund) else {
                findings.push(Finding {
                    refund: None,
                    rule: "it is booked, and nobody asked for it",
                    place: format!("{entry:?}"),
                });
                continue;
            };
            let refund = all.calls[send.call].refund;
            of_refund.entry(refund).or_default().push(entry);
            let payment = (provider.kind as usize, entry.payment);
            of_payment.entry(payment).or_default().push((refund, entry));
        }
    }
    for (nth, refund) in all.refunds.iter().enumerate() {
        let of_its_payment = of_payment.get(&(refund.kind as usize, refund.payment));
        let beside = of_its_payment.into_iter().flatten();
        let beside = beside.filter(|(whose, _)| *whose != nth);
        let case = Case {
            all,
            refund,
            sends: sends.remove(&nth).unwrap_or_default(),
            booked: of_refund.remove(&nth).unwrap_or_default(),
            beside: beside.map(|(_, entry)| *entry).collect(),
        };
        let mut wrong = case.wrong();
        if case.is_forgotten() {
            wrong.retain(|(rule, _)| ![LOST, NOT_BOOKED].contains(rule));
        }
        findings.extend(wrong.into_iter().map(|(rule, place)| Finding {
            refund: Some(nth),
            rule,
            place,
        }));
    }
    findings
}

type Wrong = (&'static str, String);

impl Case<'_> {
    fn calls(&self) -> impl DoubleEndedIterator<Item = (usize, &Call)> {
        let places = self.refund.calls.iter();
        places.map(|place| (*place, &self.all.calls[*place]))
    }

    /// Every rule that this refund breaks.
    fn wrong(&self) -> Vec<Wrong> {
        let mut wrong = self.wrong_in_the_ledger();
        wrong.extend(self.wrong_sends());
        for (nth, call) in self.calls() {
            let rules = self.wrong_answer(nth, call).into_iter();
            wrong.extend(rules.map(|rule| (rule, format!("call {nth}"))));
        }
        wrong
    }

    fn wrong_in_the_ledger(&self) -> Vec<Wrong> {
        let refund = self.refund;
        let mut wrong = Vec::new();
        let mut say = |rule| wrong.push((rule, refund.payment.to_string()));
        if self.booked.len() > 1 {
            say("refunded twice");
        }
        for entry in &self.booked {
            if entry.payment != refund.payment {
                say("another payment is refunded");
            }
            if entry.minor != refund.minor {
                say("another amount is booked");
            }
            if self.is_sent_as_it_is() && entry.key != refund.key {
                say("the caller's UUID is not the provider's key");
            }
        }
        match (refund.word(self.all.calls), self.standing().count()) {
            (Word::Succeeded, 0) => say(LOST),
            (Word::NotRefunded | Word::Failed, 1..) => {
                say("false: the last word is that it was not refunded, and it is booked");
            }
            (Word::Pending, _) => say("left pending, and the provider has finished"),
            (Word::Unknown, _) if !self.cannot_be_told() => {
                say("left unknown, and the provider can tell");
            }
            _ => {}
        }
        if !refund.is_over {
            say("its caller's loop does not end");
        }
        wrong
    }

    fn is_sent_as_it_is(&self) -> bool {
        let version = uuid::Uuid::try_parse(&self.refund.key).map(|key| key.get_version_num());
        match (self.refund.kind, version) {
            (Kind::Bbmsl, _) | (_, Err(_)) => false,
            (Kind::Moyasar, Ok(version)) => version == 4 || version == 7,
            (_, Ok(version)) => version == 4,
        }
    }

    /// What is booked and moves money at last.
    fn standing(&self) -> impl Iterator<Item = &&Entry> {
        self.booked.iter().filter(|entry| entry.moves)
    }

    /// Whether the provider itself has no word for what became of the refund: it says so of a
    /// look-up, or it has no name for what it refused.
    fn cannot_be_told(&self) -> bool {
        let mut look_ups = self.calls().filter(|(_, call)| call.why == Why::LookUp);
        let mut says = |code| look_ups.any(|(_, call)| call.code() == code);
        match self.refund.kind {
            // A refusal after a send that is unknown clears nothing, whatever is proven in between.
            Kind::Bbmsl => {
                says("refund-ambiguous")
                    || self.booked.is_empty() && (self.is_declined() || self.has_no_room())
            }
            Kind::Moyasar => self.booked.is_empty() && says("refund-not-found"),
            // The look before a refund keeps the same call from being made, and no other name tells.
            Kind::Bog if self.is_kept_from_asking() => true,
            Kind::Bog | Kind::Begateway => {
                let lives: Vec<_> = self.calls().filter_map(|(_, call)| call.life).collect();
                let is_one_life = self.all.scene.remembers()
                    && (self.all.scene.shared || lives.windows(2).all(|pair| pair[0] == pair[1]));
                // One that was given back is told of as refused, to whoever knows no id to ask by.
                let told =
                    self.booked.is_empty() || self.standing().count() == 0 && self.is_declined();
                (told || !is_one_life) && self.refund.cannot_be_asked(self.all.calls, self.all.now)
            }
        }
    }

    fn is_declined(&self) -> bool {
        self.calls()
            .any(|(_, call)| call.code() == "refund-declined")
    }

    /// Whether its caller was told at last that a full table has no room for its key, so that nothing is sent.
    fn has_no_room(&self) -> bool {
        let mut refunds = self.calls().filter(|(_, call)| call.why != Why::LookUp);
        let last = refunds.next_back();
        self.all.scene.entries < ROOM
            && last.is_some_and(|(_, last)| last.code() == "gateway-error")
    }

    fn is_kept_from_asking(&self) -> bool {
        let mut refunds = self.calls().filter(|(_, call)| call.why != Why::LookUp);
        let last = refunds.next_back();
        self.all.scene.looks_first
            && last.is_some_and(|(_, last)| last.code() == "payment-not-refundable")
    }

    /// Whether a gateway that was started anew, and does not look first, cannot know that a
    /// provider without keys refunded the payment under another key before: the README names it.
    fn is_forgotten(&self) -> bool {
        !self.refund.kind.has_keys()
            && !self.all.scene.looks_first
            && !self.all.scene.shared
            && self.booked.is_empty()
            && self.beside.iter().any(|entry| {
                let life = self.all.sends[entry.send].life;
                self.calls().any(|(_, call)| call.life != Some(life))
            })
    }

    fn sends_of(&self, call: usize) -> impl Iterator<Item = &Send> {
        let sends = self.sends.iter().map(|(_, send)| *send);
        sends.filter(move |send| send.call == call && send.is_refund)
    }

    /// Whether the gateway knows of a send under the key, from before this call was answered.
    fn is_remembered(&self, nth: usize, call: &Call) -> bool {
        self.all.scene.remembers()
            && self.sends.iter().any(|(_, send)| {
                send.is_refund
                    && send.call != nth
                    && (self.all.scene.shared || Some(send.life) == call.life)
                    && self.is_known(send, call)
            })
    }

    /// Whether a refund may be sent while the store cannot be asked: where its provider has keys, and the team does not want it otherwise.
    fn may_go_alone(&self) -> bool {
        self.refund.kind.has_keys() && !self.all.scene.refuses
    }

    /// Whether a send was made without the store, by another process than the call's, which had not told the store of it when the call
    /// began: the store had not answered it since, or it was ended first.
    fn is_untold(&self, send: &Send, call: &Call) -> bool {
        let life = &self.all.lives[send.life];
        let heard = life.heard.partition_point(|at| *at < send.at);
        let told_at = life.heard.get(heard).map(|at| at + TELLS_MS);
        let is_told = told_at.is_some_and(|told_at| {
            told_at <= call.began && life.ended.is_none_or(|ended| told_at < ended)
        });
        self.may_go_alone() && send.alone && call.life != Some(send.life) && !is_told
    }

    /// Whether a send is one that the gateway knew of when it answered.
    fn is_known(&self, send: &Send, call: &Call) -> bool {
        !self.is_untold(send, call) && self.is_to_be_known(send, call)
    }

    /// The same, if its process could tell of it.
    fn is_to_be_known(&self, send: &Send, call: &Call) -> bool {
        match (self.all.scene.shared, call.life == Some(send.life)) {
            // Another gateway may have sent it while this one's answer was on its way to the store.
            (true, _) => send.at < call.began,
            (false, true) => send.at < call.said_at,
            (false, false) => call.why == Why::LookUp && send.at < call.began,
        }
    }

    /// Whether the gateway may have forgotten a send to make room: what has ended makes room in a
    /// table that is full, as the runbook says under `RefundAnswersEvicted`.
    fn made_room(&self, call: &Call) -> bool {
        let mut calls = self.calls();
        self.all.scene.entries < ROOM
            && calls.any(|(_, other)| other.said_at < call.said_at && !other.gave.is_open())
    }

    fn wrong_sends(&self) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let refunds = || self.sends.iter().filter(|(_, send)| send.is_refund);
        let mut keys: Vec<_> = refunds().map(|(_, send)| &*send.key).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > 1 {
            wrong.push(("sent under several keys", keys.join(", ")));
        }
        if refunds().any(|(_, send)| send.alone) && !self.may_go_alone() {
            wrong.push(("sent without the store", self.refund.payment.to_string()));
        }
        for (nth, call) in self.calls() {
            match (self.sends_of(nth).count(), call.why) {
                (0, _) => {}
                (_, Why::LookUp) => wrong.push(("a look-up refunds", nth.to_string())),
                (_, Why::Reuse) if self.is_remembered(nth, call) => {
                    wrong.push(("another refund under a used key was sent", nth.to_string()));
                }
                (1, _) => {}
                _ => wrong.push(("one call was sent more than once", nth.to_string())),
            }
        }
        if !self.refund.kind.has_keys() {
            let sends: Vec<_> = refunds().collect();
            let again = |pair: &&[&(usize, &Send)]| {
                let ((_, first), (_, next)) = (pair[0], pair[1]);
                first.left
                    && (self.all.scene.shared || first.life == next.life)
                    && self.may_be_unknown(first)
                    && !self.was_cleared(first, next)
                    && !self.made_room(&self.all.calls[next.call])
            };
            wrong.extend(sends.windows(2).filter(again).map(|pair| {
                (
                    "sent again to a provider without keys, after a send that is unknown",
                    format!("send {}", pair[1].0),
                )
            }));
        }
        wrong
    }

    /// Whether the gateway cannot have known that nothing came of a send. Where its answer was told
    /// to nobody, the reply tells it. So it does where a caller is told of a refusal as unknown for another reason: the store did not
    /// confirm that it had heard of it, or a full table may have forgotten an earlier send.
    fn may_be_unknown(&self, send: &Send) -> bool {
        let has_doubts = self.all.scene.shared || self.all.scene.entries < ROOM;
        match self.all.calls[send.call].said() {
            Some(said) => said.outcome != "not_refunded" && !(has_doubts && send.denied),
            None => !send.denied,
        }
    }

    /// Whether a look-up proved in between that nothing came of a send.
    fn was_cleared(&self, send: &Send, next: &Send) -> bool {
        self.calls().any(|(_, call)| {
            call.why == Why::LookUp
                && call.word() == Word::NotRefunded
                && (send.at..next.at).contains(&call.said_at)
        })
    }

    fn wrong_answer(&self, nth: usize, call: &Call) -> Vec<&'static str> {
        let mut wrong = Vec::new();
        let said = match &call.end {
            End::UnderWay => {
                wrong.push("no answer");
                return wrong;
            }
            End::Left | End::Broken => return wrong,
            End::Told(said) => said,
        };
        match said.word() {
            Word::Succeeded | Word::Pending | Word::Failed => {
                if call.why == Why::Reuse {
                    if self.is_remembered(nth, call) {
                        wrong.push("a key was good for another refund, too");
                    }
                } else if !self.is_receipt(nth, call, said) {
                    wrong.push(NOT_BOOKED);
                }
            }
            Word::NotRefunded | Word::Unknown => {
                if !self.looked_in_vain(nth, call, said)
                    && !is_in_the_contract(call, said, self.refund.kind)
                {
                    wrong.push("code, outcome and retry do not go together");
                }
                if said.word() == Word::NotRefunded && self.is_contradicted(nth, call) {
                    wrong.push(
                        "false: it says not_refunded, and a send that the gateway knew of is booked",
                    );
                } else if said.word() == Word::NotRefunded && self.is_contradicted_untold(call) {
                    wrong.push(UNTOLD);
                }
            }
        }
        wrong.extend(self.wrong_memory(nth, call, said));
        wrong
    }

    /// Whether the look before a refund failed, so that nothing was sent.
    fn looked_in_vain(&self, nth: usize, call: &Call, said: &Said) -> bool {
        let failures = [
            "provider-timeout",
            "provider-error",
            "provider-reply-unreadable",
            "provider-reply-mismatch",
            "payment-not-refundable",
        ];
        self.all.scene.looks_first
            && call.why != Why::LookUp
            && failures.contains(&&*said.code)
            && self.sends_of(nth).next().is_none()
    }

    /// Whether an answer of success is about the one entry, in its amount and under its id, and
    /// holds for the time at which it was said.
    fn is_receipt(&self, nth: usize, call: &Call, said: &Said) -> bool {
        let refund = self.refund;
        let word = said.word();
        // Pending: the payment does not show the refund yet, so there is an amount only where the
        // gateway remembers it.
        let amount = said.amount.is_empty() && call.why == Why::LookUp && word == Word::Pending
            || said.amount == decimal(refund.minor) && said.currency == refund.kind.currency()
            // A false amount in a look-up is seen only by a gateway that remembers the right one.
            || call.why == Why::LookUp && !self.is_remembered(nth, call);
        let status = match word {
            Word::Pending if call.why != Why::LookUp => 202,
            _ => 200,
        };
        let nameless = said.id.is_empty() && (word == Word::Pending || refund.kind == Kind::Bbmsl);
        said.http == status
            && amount
            && said.payment == refund.payment.to_string()
            && self.booked.iter().any(|entry| {
                let state = entry.state(call.said_at);
                (nameless || entry.id == said.id)
                    && entry.at <= call.said_at
                    && match word {
                        Word::Succeeded => state == State::Moved,
                        Word::Failed => state == State::Failed,
                        _ => true,
                    }
            })
    }

    /// Whether money has moved at last by this call, or by a send before its answer: of a refund
    /// call, by one that the gateway could remember.
    fn is_contradicted(&self, nth: usize, call: &Call) -> bool {
        self.standing().any(|entry| {
            let send = &self.all.sends[entry.send];
            send.call == nth || self.is_known(send, call) && !self.made_room(call)
        })
    }

    /// The same by a send that it could not know.
    fn is_contradicted_untold(&self, call: &Call) -> bool {
        self.standing().any(|entry| {
            let send = &self.all.sends[entry.send];
            self.is_untold(send, call) && self.is_to_be_known(send, call)
        })
    }

    /// What a gateway may not do that remembers keys.
    fn wrong_memory(&self, nth: usize, call: &Call, said: &Said) -> Vec<&'static str> {
        let mut wrong = Vec::new();
        // A call whose body did not come has said nothing.
        if !self.all.scene.remembers() || said.code == "request-timeout" {
            return wrong;
        }
        match call.why {
            // A look-up asks the provider every time.
            Why::LookUp => return wrong,
            Why::Reuse => {
                if self.is_remembered(nth, call) && said.code != "idempotency-key-reused" {
                    wrong.push("another amount under a used key is not idempotency-key-reused");
                }
                return wrong;
            }
            _ => {}
        }
        let earlier = || {
            self.calls().filter(|(other, earlier)| {
                *other != nth
                    && earlier.ended <= call.began
                    && (self.all.scene.shared || earlier.life == call.life)
            })
        };
        let mut finals = earlier().filter(|(other, earlier)| self.settled(*other, earlier));
        let Some((_, first)) = finals.next() else {
            return wrong;
        };
        let same = match first.said() {
            Some(first) if first.word() == Word::Succeeded => {
                // A look-up at BBMSL shows no id.
                let same_id = said.id == first.id || first.id.is_empty();
                (said.http, said.word()) == (first.http, first.word()) && same_id
            }
            _ => (said.http, &*said.code) == (422, "refund-declined"),
        };
        if !same {
            wrong.push("the final answer is not replayed");
        }
        if !said.replayed {
            wrong.push("the replay does not say that it is one");
        }
        if self.sends_of(nth).next().is_some() {
            wrong.push("sent again after the final answer");
        }
        wrong
    }

    /// Whether a call's answer is the one that the next refund call under its key gets.
    fn settled(&self, nth: usize, call: &Call) -> bool {
        if call.why == Why::Reuse || call.word() <= Word::Pending {
            return false;
        }
        if call.why != Why::LookUp {
            return true;
        }
        // While a refund call is in flight the key is that call's own.
        let is_beside = |(_, other): (usize, &Call)| {
            other.why != Why::LookUp && other.began < call.ended && other.ended > call.began
        };
        if !self.is_remembered(nth, call) || self.calls().any(is_beside) {
            return false;
        }
        // BOG does not show keys: only what was answered to the key's last send tells that an id is
        // its refund's.
        let before = self.calls().take_while(|(other, _)| *other != nth);
        let sent = before.filter(|(_, other)| other.why != Why::LookUp).last();
        self.refund.kind != Kind::Bog || sent.is_some_and(|(_, sent)| sent.word() > Word::Unknown)
    }
}

/// The contract's table of errors, as far as callers without a fault of their own can meet it.
fn is_in_the_contract(call: &Call, said: &Said, kind: Kind) -> bool {
    let by_key = match kind.has_keys() {
        true => "same_key",
        false => "look_up",
    };
    // The provider may forget the key.
    let by_key = |retry: &str| retry == by_key || kind == Kind::Begateway && retry == "look_up";
    let retry = &*said.retry;
    if call.why == Why::LookUp {
        return match (&*said.code, &*said.outcome) {
            ("refund-not-found", "not_refunded") => retry == "same_key",
            ("refund-ambiguous", "unknown") => retry == "no",
            // Once no send can still arrive, asking again brings the same.
            ("provider-rejected" | "payment-not-found" | "refund-declined", "unknown") => {
                retry == "look_up" || retry == "no"
            }
            (_, "unknown") => retry == "look_up",
            _ => false,
        };
    }
    match (&*said.code, &*said.outcome) {
        (
            "provider-auth-failed"
            | "provider-rate-limited"
            | "provider-unreachable"
            | "signing-unavailable"
            | "request-timeout"
            | "gateway-error",
            "not_refunded",
        ) => retry == "same_key",
        ("refund-declined" | "provider-rejected" | "payment-not-found", "not_refunded") => {
            retry == "no"
        }
        // While the other key's refund is open, this one may yet be made.
        ("payment-has-refund", "not_refunded") => retry == "no" || retry == "same_key",
        ("payment-has-refund", "unknown") => !kind.has_keys(),
        ("memory-unavailable", "unknown") => retry == "same_key",
        // The same call would be refused again.
        (
            "provider-rejected"
            | "provider-reply-mismatch"
            | "refund-declined"
            | "payment-not-found",
            "unknown",
        ) => retry == "look_up",
        (
            "provider-timeout"
            | "provider-error"
            | "provider-reply-unreadable"
            | "refund-in-progress"
            | "gateway-error",
            "unknown",
        ) => by_key(retry),
        ("idempotency-key-reused", "unknown") => call.why == Why::Reuse && retry == "no",
        // An earlier send under the key is unknown: that outweighs what became of this one.
        (
            "provider-auth-failed"
            | "provider-rate-limited"
            | "provider-unreachable"
            | "signing-unavailable",
            "unknown",
        ) => by_key(retry),
        // Which provider it is for stands in the body, which is not there.
        ("request-timeout", "unknown") => retry == "same_key" || retry == "look_up",
        _ => false,
    }
}
