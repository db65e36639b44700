//! Every word that callers got, held against what the providers have in their ledgers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use provider_simulator::{Exchange, Fault, Provider, Refunded, Simulators};

use super::caller::{Call, End, History, LastWord, Why, decimal};
use super::faults;
use crate::cluster;

/// How many histories a failure prints.
const SHOWN: usize = 10;

/// What a run has brought.
pub(super) struct Reckoning {
    table: BTreeMap<(Section, String), BTreeMap<Provider, usize>>,
    /// What is wrong with a refund, its history, and its order where it has a twin.
    findings: Vec<(Vec<Wrong>, String, Option<String>)>,
    /// The histories of twins by their orders: what befell one has often to do with the other.
    twins: BTreeMap<String, Vec<String>>,
}

/// A rule that is broken, and where.
type Wrong = (&'static str, String);

/// What is known of a run besides its calls.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// From when until when nobody remembered keys: the gateway was gone, or the store of a fleet.
    pub forgets: &'a [RangeInclusive<SystemTime>],
    /// The calls of a fleet for which its store was asked, and told of their ends before their callers.
    pub asked: Option<&'a HashSet<String>>,
    /// Whether the gateway looks at a payment first, where the provider has no keys.
    pub looks_first: bool,
}

impl Run<'_> {
    /// Whether gateways share their memory.
    fn shares(&self) -> bool {
        self.asked.is_some()
    }

    fn store_knew(&self, call: &Call) -> bool {
        self.asked.is_none_or(|asked| asked.contains(&call.id))
    }

    /// From when until when a refund may not have been remembered. A call that its gateway made without the store, or of which it
    /// told the store later, is like an outage to the key: until the gateway has told it, or is gone and its lease has run out.
    fn forgets(&self, history: &History) -> Vec<RangeInclusive<SystemTime>> {
        let calls = history.calls.iter().filter(|call| call.may_have_arrived());
        let untold = calls.filter(|call| !self.store_knew(call));
        let untold = untold.map(|call| call.began..=call.ended + UNTOLD);
        self.forgets.iter().cloned().chain(untold).collect()
    }
}

/// How long the store may not know of an end.
const UNTOLD: Duration = Duration::from_secs(super::LEASE_SECONDS);

/// One refund with what reached the provider and what is booked.
struct Case<'a> {
    history: &'a History,
    run: Run<'a>,
    /// From when until when it may not have been remembered.
    forgets: Vec<RangeInclusive<SystemTime>>,
    sends: Vec<&'a Exchange>,
    booked: Vec<&'a Refunded>,
    /// What is booked of its order under another key.
    beside: Vec<&'a Refunded>,
}

const LOST: &str = "lost: the last word is that it was refunded, and it is not booked";
const NOT_BOOKED: &str = "the answer tells of a refund that is not booked like this";

const BY_VERSION: &str = "requests by ";

/// The table's sections, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Refunds,
    Answers,
    MoreCalls,
    LookUps,
    LastWords,
    Provider,
    Faults,
}

impl Section {
    fn title(self) -> &'static str {
        match self {
            Section::Refunds => "refunds",
            Section::Answers => "calls by their answer",
            Section::MoreCalls => "calls after a first one, or beside it",
            Section::LookUps => "look-ups",
            Section::LastWords => "last words",
            Section::Provider => "at the provider",
            Section::Faults => "faults met",
        }
    }
}

/// Checks everything, after the last call and the last delayed booking.
pub(super) fn reckon(histories: &[History], simulators: &Simulators, run: Run<'_>) -> Reckoning {
    let mut reckoning = Reckoning {
        table: BTreeMap::new(),
        findings: Vec::new(),
        twins: BTreeMap::new(),
    };
    for provider in Provider::ALL {
        let exchanges = simulators.requests(provider);
        reckoning.count(Section::Provider, "requests", provider, exchanges.len());
        for exchange in exchanges.iter().filter(|_| provider.refunds()) {
            let agent = exchange.request.headers_named("user-agent").next();
            let agent = String::from_utf8_lossy(agent.unwrap_or_default());
            let row = format!("{BY_VERSION}{agent}");
            reckoning.count(Section::Provider, &row, provider, 1);
        }
        for fault in exchanges
            .iter()
            .filter_map(|exchange| exchange.fault.as_ref())
        {
            reckoning.count(Section::Faults, &faults::kind(fault), provider, 1);
        }
        let ledger = simulators.ledger(provider);
        let mut sends: HashMap<&str, Vec<&Exchange>> = HashMap::new();
        for exchange in &exchanges {
            sends
                .entry(request_id(exchange))
                .or_default()
                .push(exchange);
        }
        // A refund is its caller's by the request that made it, and by nothing that could be
        // another's, too.
        let mut booked: HashMap<u64, Vec<&Refunded>> = HashMap::new();
        for entry in &ledger {
            booked.entry(entry.request).or_default().push(entry);
        }
        for history in histories {
            if history.refund.provider != provider {
                continue;
            }
            let calls = history.calls.iter();
            let sends: Vec<_> = calls
                .filter_map(|call| sends.remove(&*call.id))
                .flatten()
                .collect();
            let of_send = |send: &&Exchange| booked.remove(&send.request.sequence);
            let booked: Vec<_> = sends.iter().filter_map(of_send).flatten().collect();
            let beside = ledger.iter().filter(|entry| {
                let own = |other: &&Refunded| other.request == entry.request;
                history.refund.is_twin
                    && entry.payment == history.refund.order
                    && !booked.iter().any(own)
            });
            let beside = beside.collect();
            let mut case = Case {
                history,
                run,
                forgets: run.forgets(history),
                sends,
                booked,
                beside,
            };
            case.sends.sort_by_key(|send| send.request.sequence);
            reckoning.add(&case);
        }
        for entry in booked.into_values().flatten() {
            let what = vec![("it is booked, and nobody asked for it", String::new())];
            reckoning
                .findings
                .push((what, format!("{entry:?}\n"), None));
        }
        // A token is fetched for nobody's refund alone.
        if provider.refunds() {
            for send in sends.into_values().flatten() {
                let what = vec![("it was sent, and no call was made for it", String::new())];
                reckoning.findings.push((what, format!("{send:?}\n"), None));
            }
        }
    }
    reckoning
}

fn request_id(exchange: &Exchange) -> &str {
    let id = exchange.request.headers_named("x-request-id").next();
    id.and_then(|id| std::str::from_utf8(id).ok())
        .unwrap_or_default()
}

impl Reckoning {
    fn count(&mut self, section: Section, row: &str, provider: Provider, more: usize) {
        let row = self.table.entry((section, row.to_owned())).or_default();
        *row.entry(provider).or_default() += more;
    }

    fn add(&mut self, case: &Case) {
        let provider = case.history.refund.provider;
        self.count(Section::Refunds, "asked for", provider, 1);
        for call in &case.history.calls {
            self.count(Section::Answers, call.word(), provider, 1);
            if call.may_have_arrived() && !case.run.store_knew(call) {
                self.count(Section::Answers, "(the store did not know)", provider, 1);
            }
            if call.why != Why::First {
                self.count(Section::MoreCalls, &format!("{:?}", call.why), provider, 1);
            }
        }
        self.add_look_ups(case.history);
        let booked = match case.standing().count() {
            0 => "",
            _ => ", booked",
        };
        let last_word = format!("{:?}{booked}", case.history.last_word());
        self.count(Section::LastWords, &last_word, provider, 1);
        self.count(
            Section::Provider,
            "ledger entries",
            provider,
            case.booked.len(),
        );
        let mut wrong = case.wrong();
        if case.is_forgotten() {
            self.count(Section::LastWords, "its twin's, forgotten", provider, 1);
            wrong.retain(|(rule, _)| ![LOST, NOT_BOOKED].contains(rule));
        }
        let refund = &case.history.refund;
        let order = refund.is_twin.then(|| refund.order.clone());
        if let Some(order) = &order {
            let twins = self.twins.entry(order.clone()).or_default();
            twins.push(case.to_string());
        }
        if !wrong.is_empty() {
            self.findings.push((wrong, case.to_string(), order));
        }
    }

    /// What was open before the first look-up and after the last one, and why.
    fn add_look_ups(&mut self, history: &History) {
        let provider = history.refund.provider;
        let mut look_ups = history.calls.iter().filter(|call| call.why == Why::LookUp);
        for call in look_ups.clone() {
            self.count(Section::LookUps, "made", provider, 1);
            let row = format!("said {}", call.word());
            self.count(Section::LookUps, &row, provider, 1);
        }
        for (when, word) in [
            ("before", history.word_before_look_up()),
            ("after", Some(history.last_word())),
        ] {
            if let Some(word) = word.filter(|word| word.is_open()) {
                let row = format!("{word:?} {when}").to_lowercase();
                self.count(Section::LookUps, &row, provider, 1);
            }
        }
        if history.last_word().is_open() {
            let why = look_ups
                .next_back()
                .map_or("refused, and no id", Call::word);
            let row = format!("open at the end: {why}");
            self.count(Section::LookUps, &row, provider, 1);
        }
    }

    /// How many versions of the module have sent something.
    pub fn versions(&self) -> usize {
        let rows = self.table.keys();
        rows.filter(|(_, row)| row.starts_with(BY_VERSION)).count()
    }

    /// The counts, a row each.
    pub fn table(&self) -> String {
        let mut text = format!("{:34}", "");
        for provider in Provider::ALL {
            let _ = write!(text, "{:>11}", cluster(provider));
        }
        let mut last = None;
        for ((section, row), counts) in &self.table {
            if last != Some(section) {
                let _ = write!(text, "\n{}", section.title());
                last = Some(section);
            }
            let _ = write!(text, "\n  {row:32}");
            for provider in Provider::ALL {
                match counts.get(&provider) {
                    Some(count) => write!(text, "{count:>11}"),
                    None => write!(text, "{:>11}", ""),
                }
                .unwrap_or_default();
            }
        }
        text
    }

    /// What is wrong, with the whole history of each refund; `None` where nothing is.
    pub fn failure(&self) -> Option<String> {
        if self.findings.is_empty() {
            return None;
        }
        let mut text = format!("{} refunds are not as was said:\n", self.findings.len());
        let mut counts = BTreeMap::new();
        for (rule, _) in self.findings.iter().flat_map(|(wrong, ..)| wrong) {
            *counts.entry(rule).or_insert(0) += 1;
        }
        for (rule, count) in counts {
            let _ = writeln!(text, "{count:>6}  {rule}");
        }
        for (wrong, history, order) in self.findings.iter().take(SHOWN) {
            text.push('\n');
            for (rule, place) in wrong {
                let _ = writeln!(text, "!! {rule} {place}");
            }
            text.push_str(history);
            let twins = order.as_ref().and_then(|order| self.twins.get(order));
            for twin in twins.into_iter().flatten().filter(|twin| *twin != history) {
                let _ = write!(text, "and its twin, {twin}");
            }
        }
        Some(text)
    }
}

impl Case<'_> {
    /// Every rule that this refund breaks.
    fn wrong(&self) -> Vec<Wrong> {
        let mut wrong = self.wrong_in_the_ledger();
        wrong.extend(self.wrong_sends());
        for call in &self.history.calls {
            let rules = self.wrong_answer(call).into_iter();
            wrong.extend(rules.map(|rule| (rule, call.id.clone())));
        }
        wrong
    }

    fn wrong_in_the_ledger(&self) -> Vec<Wrong> {
        let refund = &self.history.refund;
        let mut wrong = Vec::new();
        let mut say = |rule| wrong.push((rule, refund.order.clone()));
        if self.booked.len() > 1 {
            say("refunded twice");
        }
        for entry in &self.booked {
            if entry.payment != refund.order {
                say("another order is refunded");
            }
            if (entry.minor_units, entry.currency) != (refund.minor_units, refund.currency()) {
                say("another amount is booked");
            }
            let version = uuid::Uuid::try_parse(&refund.key).map(|key| key.get_version_num());
            let declared = refund.provider.declared().key.as_ref();
            let taken = declared.map(|key| key.versions).unwrap_or_default();
            let goes_out = version.is_ok_and(|version| taken.contains(&version));
            if goes_out && entry.key.as_ref().is_some_and(|key| *key != refund.key) {
                say("the caller's UUID is not the provider's key");
            }
        }
        match (self.history.last_word(), self.standing().count()) {
            (LastWord::Succeeded, 0) => {
                say(LOST);
            }
            (LastWord::NotRefunded | LastWord::Failed, 1..) => {
                say("false: the last word is that it was not refunded, and it is booked");
            }
            (LastWord::Pending, _) => say("left pending, and the provider has finished"),
            (LastWord::Unknown, _) if !self.cannot_be_told() => {
                say("left unknown, and the provider can tell");
            }
            _ => {}
        }
        wrong
    }

    /// What is booked and was not given back.
    fn standing(&self) -> impl Iterator<Item = &&Refunded> {
        self.booked.iter().filter(|entry| !entry.rejected)
    }

    /// Whether the provider itself has no word for what became of the refund: it says so of a
    /// look-up, or it has no name for what it refused.
    fn cannot_be_told(&self) -> bool {
        let History { refund, calls } = self.history;
        let mut look_ups = calls.iter().filter(|call| call.why == Why::LookUp);
        if let Some((code, booked_too)) = refund.provider.declared().leaves_open {
            return (booked_too || self.booked.is_empty())
                && look_ups.any(|call| call.word() == code);
        }
        // A gateway that was started anew passes on a refusal of a later send as what it is.
        let (first, last) = (calls.first(), calls.last());
        let is_one_life = first
            .zip(last)
            .is_some_and(|(first, last)| self.is_one_life(first.began, last.ended));
        (self.booked.is_empty() || !is_one_life) && History::cannot_be_asked(refund, calls)
    }

    /// Whether a gateway that was started anew, and does not look first, cannot know that a
    /// provider without keys refunded the order under another key before: the README names it. It
    /// is counted, and nothing else is excused by it.
    fn is_forgotten(&self) -> bool {
        let refund = &self.history.refund;
        !refund.provider.has_keys()
            && !self.run.looks_first
            && !self.run.shares()
            && self.booked.is_empty()
            && self.beside.iter().any(|entry| {
                let calls = self.history.calls.iter();
                calls
                    .last()
                    .is_some_and(|last| !self.is_one_life(entry.at, last.ended))
            })
    }

    /// Whether the gateway knows of a send under the key, from before this call.
    fn is_remembered(&self, call: &Call) -> bool {
        self.sends.iter().any(|send| {
            self.is_refund(send)
                && request_id(send) != call.id
                && send.request.at < call.ended
                && self.is_one_life(send.request.at, call.ended)
        })
    }

    /// Whether the gateway lived from one time to the other.
    fn is_one_life(&self, from: SystemTime, until: SystemTime) -> bool {
        let mut gone = self.forgets.iter();
        !gone.any(|gone| *gone.start() <= until && *gone.end() >= from)
    }

    fn wrong_sends(&self) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let mut keys: Vec<_> = self
            .sends
            .iter()
            .filter_map(|send| self.key(send))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > 1 {
            wrong.push(("sent under several keys", keys.join(", ")));
        }
        for call in &self.history.calls {
            let sends = self.sends_of(call);
            let looks = call.why != Why::LookUp && self.run.looks_first;
            match (
                sends.filter(|send| !looks || self.is_refund(send)).count(),
                call.why,
            ) {
                (0, _) => {}
                (_, Why::Reuse) if !self.is_remembered(call) => {}
                (_, Why::Reuse) => {
                    wrong.push(("another refund under a used key was sent", call.id.clone()));
                }
                (1, _) => {}
                _ => wrong.push(("one call was sent more than once", call.id.clone())),
            }
        }
        if !self.history.refund.provider.has_keys() {
            let refunds: Vec<_> = self
                .sends
                .iter()
                .filter(|send| self.is_refund(send))
                // Such a stream was not taken up: nothing was sent.
                .filter(|send| !matches!(send.fault, Some(Fault::RefusedStream)))
                .collect();
            let again = refunds.iter().enumerate().filter(|(place, next)| {
                let mut before = refunds.iter().take(*place).rev();
                let unknown = before.find(|send| self.may_be_unknown(send));
                unknown.is_some_and(|send| {
                    !self.was_cleared(send, next)
                        && self.is_one_life(send.request.at, next.request.at)
                })
            });
            wrong.extend(again.map(|(_, next)| {
                (
                    "sent again to a provider without keys, after a send that is unknown",
                    request_id(next).to_owned(),
                )
            }));
        }
        wrong
    }

    /// Whether a send asks for a refund, and not how one stands.
    fn is_refund(&self, send: &Exchange) -> bool {
        let declared = self.history.refund.provider.declared();
        declared.is_refund(&send.request)
    }

    /// The idempotency key of a send.
    fn key(&self, send: &Exchange) -> Option<String> {
        let declared = self.history.refund.provider.declared();
        declared.key.as_ref()?.of(&send.request)
    }

    fn sends_of(&self, call: &Call) -> impl Iterator<Item = &&Exchange> {
        self.sends.iter().filter(|send| request_id(send) == call.id)
    }

    /// Whether the gateway cannot have known that nothing came of a send. Where the provider refused
    /// it, what its caller is told to be unknown is a send before it.
    fn may_be_unknown(&self, send: &Exchange) -> bool {
        let mut calls = self.history.calls.iter();
        let answered = calls.find(|call| call.id == request_id(send) && call.answer().is_some());
        !send.fault.as_ref().is_some_and(faults::is_refusal)
            && answered.is_none_or(|call| call.said("outcome") != "not_refunded")
    }

    /// Whether a look-up proved in between that nothing came of a send.
    fn was_cleared(&self, send: &Exchange, next: &Exchange) -> bool {
        self.history.calls.iter().any(|call| {
            call.why == Why::LookUp
                && call.word_by_call() == LastWord::NotRefunded
                && (send.request.at..next.request.at).contains(&call.began)
        })
    }

    fn wrong_answer(&self, call: &Call) -> Vec<&'static str> {
        let mut wrong = Vec::new();
        let mut say = |rule| wrong.push(rule);
        if matches!(call.end, End::Hung) {
            say("no answer");
        }
        let Some(answer) = call.answer() else {
            return wrong;
        };
        if answer.header("x-request-id") != call.id {
            say("the answer has another x-request-id");
        }
        match call.word_by_call() {
            LastWord::Succeeded | LastWord::Pending | LastWord::Failed => {
                if call.why == Why::Reuse && self.is_remembered(call) {
                    say("a key was good for another refund, too");
                }
                if call.why != Why::Reuse && !self.is_receipt(call) {
                    say(NOT_BOOKED);
                }
            }
            LastWord::NotRefunded | LastWord::Unknown => {
                if !self.looked_in_vain(call)
                    && !self.holds_a_refusal_back(call)
                    && !is_in_the_contract(call, self.history.refund.provider)
                {
                    say("code, outcome and retry do not go together");
                }
                if call.said("outcome") == "not_refunded" && self.is_contradicted(call) {
                    say(
                        "false: it says not_refunded, and a send that the gateway knew of is booked",
                    );
                }
            }
        }
        wrong.extend(self.wrong_memory(call));
        wrong
    }

    /// Whether the look before a refund failed, so that nothing was sent.
    fn looked_in_vain(&self, call: &Call) -> bool {
        let failures = [
            "provider-timeout",
            "provider-error",
            "provider-reply-unreadable",
            "provider-reply-mismatch",
        ];
        self.run.looks_first
            && call.why != Why::LookUp
            && failures.contains(&call.said("code"))
            && (call.said("outcome"), call.said("retry")) == ("not_refunded", "same_key")
            && !self.sends_of(call).any(|send| self.is_refund(send))
    }

    /// Whether a gateway that cannot ask the store does not tell the refusal that it remembers: the
    /// provider may have taken it back, and told that to another gateway.
    fn holds_a_refusal_back(&self, call: &Call) -> bool {
        let says = |call: &Call, outcome: &str, retry: &str| {
            call.said("outcome") == outcome && call.said("retry") == retry
        };
        let calls = self.history.calls.iter();
        let mut earlier = calls.filter(|one| one.began < call.began);
        call.said("code") == "memory-unavailable"
            && says(call, "unknown", "same_key")
            && earlier.any(|one| says(one, "not_refunded", "no"))
    }

    /// Whether an answer of success is about the one entry, in its amount and under its id, and
    /// came after it.
    fn is_receipt(&self, call: &Call) -> bool {
        let refund = &self.history.refund;
        let declared = refund.provider.declared();
        let words = match (call.why, declared.answers) {
            (Why::LookUp, "pending") => {
                &[(200, "pending"), (200, "succeeded"), (200, "failed")][..]
            }
            // What a look-up has found out is told again.
            (_, "pending") => &[(202, "pending"), (200, "succeeded")][..],
            _ => &[(200, "succeeded")][..],
        };
        let Some(answer) = call.answer() else {
            return false;
        };
        let body = &answer.body;
        // Pending: the payment does not show the refund yet, so there is an amount only where the
        // gateway remembers it.
        let none = call.why == Why::LookUp
            && call.word_by_call() == LastWord::Pending
            && body["amount"].is_null();
        // A false amount in a look-up is seen only by a gateway that remembers the right one.
        let is_altered = |send: &&Exchange| matches!(send.fault, Some(Fault::Altered { .. }));
        let cannot_compare = call.why == Why::LookUp
            && !self.is_remembered(call)
            && self.sends_of(call).copied().any(|send| is_altered(&send));
        let amount = none
            || cannot_compare
            || body["amount"]["value"] == *decimal(refund.minor_units)
                && body["amount"]["currency"] == *refund.currency();
        let nameless =
            call.said("id").is_empty() && declared.nameless.contains(&call.said("status"));
        words.contains(&(answer.status, call.said("status")))
            && amount
            && call.said("provider") == cluster(refund.provider)
            && body["payment"]["id"] == *refund.order
            && self.booked.iter().any(|entry| {
                (nameless || entry.refund == call.said("id"))
                    && entry.at <= call.ended
                    && (call.word_by_call() == LastWord::Pending
                        || entry.rejected == (call.word_by_call() == LastWord::Failed))
            })
    }

    /// Whether money has moved at last by this call, or by a send before it: of a refund call, by
    /// one that the gateway could remember.
    fn is_contradicted(&self, call: &Call) -> bool {
        self.standing().any(|entry| {
            let mut sends = self.sends.iter();
            let send = sends.find(|send| send.request.sequence == entry.request);
            send.is_some_and(|send| {
                let is_known =
                    call.why == Why::LookUp || self.is_one_life(send.request.at, call.ended);
                request_id(send) == call.id || send.request.at < call.began && is_known
            })
        })
    }

    /// What a gateway may not do that remembers keys.
    fn wrong_memory(&self, call: &Call) -> Vec<&'static str> {
        let mut wrong = Vec::new();
        match call.why {
            Why::Reuse if !self.is_remembered(call) => return wrong,
            Why::Reuse if call.said("code") != "idempotency-key-reused" => {
                wrong.push("another amount under a used key is not idempotency-key-reused");
                return wrong;
            }
            // A look-up asks the provider every time.
            Why::Reuse | Why::LookUp => return wrong,
            Why::First | Why::Double | Why::Retry | Why::Repeat => {}
        }
        let Some(answer) = call.answer() else {
            return wrong;
        };
        let earlier = || {
            let calls = self.history.calls.iter();
            calls
                .take_while(|other| other.id != call.id)
                .filter(|other| other.ended <= call.began)
                .filter(|other| self.is_one_life(other.ended, call.ended))
        };
        let Some(first) = earlier().find(|other| self.settled(other)) else {
            if call.why == Why::Repeat
                && !self.history.refund.provider.has_keys()
                && call.word_by_call() != LastWord::Unknown
                && !earlier().any(|other| other.why == Why::LookUp)
                && !self.was_asked_since_the_last_send(call)
                && self.knew_nothing(call)
            {
                wrong.push("what was unknown is answered otherwise, and nobody asked the provider");
            }
            return wrong;
        };
        let same = match (first.answer(), first.word_by_call()) {
            (Some(first), LastWord::Succeeded) => {
                (answer.status, &answer.text) == (first.status, &first.text)
            }
            _ => (answer.status, call.said("code")) == (422, "refund-declined"),
        };
        if !same {
            wrong.push("the final answer is not replayed");
        }
        if answer.header("idempotency-replayed") != "true" {
            wrong.push("the replay does not say that it is one");
        }
        if self.sends_of(call).next().is_some() {
            wrong.push("sent again after the final answer");
        }
        wrong
    }

    /// Whether a look-up asked the provider before this call and after the last refund that left
    /// under the key, whatever was forgotten since.
    fn was_asked_since_the_last_send(&self, call: &Call) -> bool {
        let mut calls = self.history.calls.iter();
        calls.any(|asked| {
            let mut sends = self.sends.iter().filter(|send| self.is_refund(send));
            asked.why == Why::LookUp
                && asked.ended <= call.began
                && !sends.any(|send| (asked.began..call.began).contains(&send.request.at))
        })
    }

    /// Whether no final answer came before this call, forgotten since or not.
    fn knew_nothing(&self, call: &Call) -> bool {
        let calls = self.history.calls.iter();
        let mut before = calls.take_while(|other| other.id != call.id);
        !before.any(|other| other.word_by_call().is_final())
    }

    /// Whether a call's answer is the one that the next refund call under its key gets.
    fn settled(&self, call: &Call) -> bool {
        if call.why == Why::Reuse || !call.word_by_call().is_final() {
            return false;
        }
        if call.why != Why::LookUp {
            return true;
        }
        // The store may not have been told yet how the send before has ended: then the key is still that one's.
        if self.run.shares() {
            return false;
        }
        // While a refund call is in flight the key is that call's own.
        let is_beside = |other: &&Call| {
            other.why != Why::LookUp && other.began < call.ended && other.ended > call.began
        };
        if !self.is_remembered(call) || self.history.calls.iter().any(|other| is_beside(&other)) {
            return false;
        }
        // BOG does not show keys: only what was answered to the key's last send tells that an id is
        // its refund's.
        let calls = self.history.calls.iter();
        let refunds = calls.take_while(|other| other.id != call.id);
        let sent = refunds.filter(|other| other.why != Why::LookUp).last();
        self.history.refund.provider != Provider::Bog
            || sent.is_some_and(|sent| sent.word_by_call() > LastWord::Unknown)
    }
}

/// The contract's table of errors, as far as callers without a fault of their own can meet it.
fn is_in_the_contract(call: &Call, provider: Provider) -> bool {
    let by_key = match provider.has_keys() {
        true => "same_key",
        false => "look_up",
    };
    let retry = call.said("retry");
    if call.why == Why::LookUp {
        return match (call.said("code"), call.said("outcome")) {
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
    match (call.said("code"), call.said("outcome")) {
        (
            "provider-auth-failed"
            | "provider-rate-limited"
            | "provider-unreachable"
            | "gateway-error",
            "not_refunded",
        ) => retry == "same_key",
        ("refund-declined" | "provider-rejected" | "payment-not-found", "not_refunded") => {
            retry == "no"
        }
        // While the other key's refund is open, this one may yet be made.
        ("payment-has-refund", "not_refunded") => {
            !provider.has_keys() && (retry == "no" || retry == "same_key")
        }
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
        ) => retry == by_key,
        ("memory-unavailable", "unknown") => !provider.has_keys() && retry == "same_key",
        ("idempotency-key-reused", "unknown") => call.why == Why::Reuse && retry == "no",
        // An earlier send under the key is unknown: that outweighs what became of this one.
        ("provider-auth-failed" | "provider-rate-limited" | "provider-unreachable", "unknown") => {
            retry == by_key
        }
        _ => false,
    }
}

impl std::fmt::Display for Case<'_> {
    /// The whole history, by time.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let refund = &self.history.refund;
        writeln!(
            f,
            "{} {}, {} {}, key {}, {:?}; last word {:?}",
            cluster(refund.provider),
            refund.order,
            decimal(refund.minor_units),
            refund.currency(),
            refund.key,
            refund.habit,
            self.history.last_word()
        )?;
        let mut events: Vec<(SystemTime, String)> = Vec::new();
        for call in &self.history.calls {
            events.push((call.began, format!("{} ({:?})", call.id, call.why)));
            let end = match &call.end {
                End::Answer(answer) => format!("{} {}", answer.status, answer.text),
                End::Broken { error, .. } => format!("broken: {error}"),
                End::Left => "left".to_owned(),
                End::Hung => "no answer".to_owned(),
            };
            events.push((call.ended, format!("{} <- {end}", call.id)));
        }
        for send in &self.sends {
            let reply = match &send.reply {
                Some(reply) => format!("{} {}", reply.status, shortened(&reply.body)),
                None => "nothing".to_owned(),
            };
            let fault = send
                .fault
                .as_ref()
                .map(|fault| shortened(format!("{fault:?}").as_bytes()));
            events.push((
                send.request.at,
                format!(
                    "{}    -> request {}, {:?}, fault {}, reply {reply}",
                    request_id(send),
                    send.request.sequence,
                    send.request.version,
                    fault.as_deref().unwrap_or("none"),
                ),
            ));
        }
        for entry in &self.booked {
            events.push((
                entry.at,
                format!(
                    "booked by request {}: {} {} as {}, key {:?}",
                    entry.request,
                    decimal(entry.minor_units),
                    entry.currency,
                    entry.refund,
                    entry.key
                ),
            ));
        }
        events.sort_by_key(|(at, _)| *at);
        let begin = events.first().map(|(at, _)| *at);
        for (at, event) in &events {
            let since = begin.and_then(|begin| at.duration_since(begin).ok());
            let since: Duration = since.unwrap_or_default();
            writeln!(f, "  {:>7} ms  {event}", since.as_millis())?;
        }
        Ok(())
    }
}

fn shortened(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}
