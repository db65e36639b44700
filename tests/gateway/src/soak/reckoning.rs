//! Every word that callers got, held against what the providers have in their ledgers.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use provider_simulator::{Exchange, Provider, Refunded, Simulators};

use super::caller::{Call, End, History, LastWord, Why, decimal};
use super::faults;
use crate::cluster;

/// How many histories a failure prints.
const SHOWN: usize = 10;

/// What a run has brought.
pub(super) struct Reckoning {
    table: BTreeMap<(Section, String), BTreeMap<Provider, usize>>,
    /// What is wrong with a refund, and its history.
    findings: Vec<(Vec<Wrong>, String)>,
}

/// A rule that is broken, and where.
type Wrong = (&'static str, String);

/// One refund with what reached the provider and what is booked.
struct Case<'a> {
    history: &'a History,
    sends: Vec<&'a Exchange>,
    booked: Vec<&'a Refunded>,
}

/// The table's sections, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Refunds,
    Answers,
    MoreCalls,
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
            Section::LastWords => "last words",
            Section::Provider => "at the provider",
            Section::Faults => "faults met",
        }
    }
}

/// Checks everything, after the last call and the last delayed booking.
pub(super) fn reckon(histories: &[History], simulators: &Simulators) -> Reckoning {
    let mut reckoning = Reckoning {
        table: BTreeMap::new(),
        findings: Vec::new(),
    };
    for provider in Provider::ALL {
        let exchanges = simulators.requests(provider);
        reckoning.count(Section::Provider, "requests", provider, exchanges.len());
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
        let mut booked: HashMap<&str, Vec<&Refunded>> = HashMap::new();
        for entry in &ledger {
            booked.entry(&entry.payment).or_default().push(entry);
        }
        for history in histories {
            if history.refund.provider != provider {
                continue;
            }
            let calls = history.calls.iter();
            let mut case = Case {
                history,
                sends: calls
                    .filter_map(|call| sends.remove(&*call.id))
                    .flatten()
                    .collect(),
                booked: booked.remove(&*history.refund.order).unwrap_or_default(),
            };
            case.sends.sort_by_key(|send| send.request.sequence);
            reckoning.add(&case);
        }
        for entry in booked.into_values().flatten() {
            let what = vec![("it is booked, and nobody asked for it", String::new())];
            reckoning.findings.push((what, format!("{entry:?}\n")));
        }
        // A token is fetched for nobody's refund alone.
        if provider != Provider::BogToken {
            for send in sends.into_values().flatten() {
                let what = vec![("it was sent, and no call was made for it", String::new())];
                reckoning.findings.push((what, format!("{send:?}\n")));
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
            if call.why != Why::First {
                self.count(Section::MoreCalls, &format!("{:?}", call.why), provider, 1);
            }
        }
        let booked = match case.booked.len() {
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
        let wrong = case.wrong();
        if !wrong.is_empty() {
            self.findings.push((wrong, case.to_string()));
        }
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
        for (rule, _) in self.findings.iter().flat_map(|(wrong, _)| wrong) {
            *counts.entry(rule).or_insert(0) += 1;
        }
        for (rule, count) in counts {
            let _ = writeln!(text, "{count:>6}  {rule}");
        }
        for (wrong, history) in self.findings.iter().take(SHOWN) {
            text.push('\n');
            for (rule, place) in wrong {
                let _ = writeln!(text, "!! {rule} {place}");
            }
            text.push_str(history);
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
            if (entry.minor_units, entry.currency) != (refund.minor_units, refund.currency()) {
                say("another amount is booked");
            }
            let is_uuid = uuid::Uuid::try_parse(&refund.key).is_ok();
            if is_uuid && entry.key.as_ref().is_some_and(|key| *key != refund.key) {
                say("the caller's UUID is not the provider's key");
            }
        }
        match (self.history.last_word(), self.booked.is_empty()) {
            (LastWord::Succeeded | LastWord::Pending, true) => {
                say("lost: the last word is that it was refunded, and it is not booked");
            }
            (LastWord::NotRefunded, false) => {
                say("false: the last word is not_refunded, and it is booked");
            }
            _ => {}
        }
        wrong
    }

    fn wrong_sends(&self) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let mut keys: Vec<_> = self.sends.iter().filter_map(|send| key(send)).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > 1 {
            wrong.push(("sent under several keys", keys.join(", ")));
        }
        for call in &self.history.calls {
            match (self.sends_of(call).count(), call.why) {
                (0, _) => {}
                (_, Why::Reuse) => {
                    wrong.push(("another refund under a used key was sent", call.id.clone()));
                }
                (1, _) => {}
                _ => wrong.push(("one call was sent more than once", call.id.clone())),
            }
        }
        if self.history.refund.provider == Provider::Bbmsl {
            let again = |pair: &&[&Exchange]| self.may_be_unknown(pair[0]);
            wrong.extend(self.sends.windows(2).filter(again).map(|pair| {
                (
                    "sent again to a provider without keys, after a send that is unknown",
                    request_id(pair[1]).to_owned(),
                )
            }));
        }
        wrong
    }

    fn sends_of(&self, call: &Call) -> impl Iterator<Item = &&Exchange> {
        self.sends.iter().filter(|send| request_id(send) == call.id)
    }

    /// Whether the gateway cannot have known that nothing came of a send. Where the caller was gone, the reply tells it.
    fn may_be_unknown(&self, send: &Exchange) -> bool {
        let mut calls = self.history.calls.iter();
        match calls.find(|call| call.id == request_id(send)) {
            Some(call) if call.answer().is_some() => call.said("outcome") != "not_refunded",
            _ => !send.fault.as_ref().is_some_and(faults::is_refusal),
        }
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
            LastWord::Succeeded | LastWord::Pending => {
                if call.why == Why::Reuse {
                    say("a key was good for another refund, too");
                }
                if !self.is_receipt(call) {
                    say("the answer tells of a refund that is not booked like this");
                }
            }
            LastWord::NotRefunded | LastWord::Unknown => {
                if !is_in_the_contract(call, self.history.refund.provider) {
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

    /// Whether an answer of success is about the one entry, in its amount and under its id, and came after it.
    fn is_receipt(&self, call: &Call) -> bool {
        let refund = &self.history.refund;
        let word = match self.history.refund.provider {
            Provider::Bog => (202, "pending"),
            _ => (200, "succeeded"),
        };
        let Some(answer) = call.answer() else {
            return false;
        };
        let body = &answer.body;
        (answer.status, call.said("status")) == word
            && call.said("provider") == cluster(refund.provider)
            && body["payment"]["id"] == *refund.order
            && body["amount"]["value"] == *decimal(refund.minor_units)
            && body["amount"]["currency"] == *refund.currency()
            && self
                .booked
                .iter()
                .any(|entry| entry.refund == call.said("id") && entry.at <= call.ended)
    }

    /// Whether money had moved by this call, or by a send before it.
    fn is_contradicted(&self, call: &Call) -> bool {
        self.booked.iter().any(|entry| {
            let mut sends = self.sends.iter();
            sends
                .find(|send| send.request.sequence == entry.request)
                .is_some_and(|send| request_id(send) == call.id || send.request.at < call.began)
        })
    }

    /// What a gateway may not do that remembers keys.
    fn wrong_memory(&self, call: &Call) -> Vec<&'static str> {
        let mut wrong = Vec::new();
        if call.why == Why::Reuse {
            if call.said("code") != "idempotency-key-reused" {
                wrong.push("another amount under a used key is not idempotency-key-reused");
            }
            return wrong;
        }
        let mut earlier = self.history.calls.iter();
        let final_one =
            earlier.find(|other| other.ended <= call.began && other.word_by_call().is_final());
        match (call.answer(), final_one.and_then(Call::answer)) {
            (Some(answer), Some(first)) => {
                if (answer.status, &answer.text) != (first.status, &first.text) {
                    wrong.push("the final answer is not replayed");
                }
                if answer.header("idempotency-replayed") != "true" {
                    wrong.push("the replay does not say that it is one");
                }
                if self.sends_of(call).next().is_some() {
                    wrong.push("sent again after the final answer");
                }
            }
            (Some(_), None)
                if call.why == Why::Repeat
                    && self.history.refund.provider == Provider::Bbmsl
                    && call.word_by_call() != LastWord::Unknown =>
            {
                wrong.push("what was unknown is answered otherwise, and nobody asked the provider");
            }
            _ => {}
        }
        wrong
    }
}

/// The contract's table of errors, as far as callers without a fault of their own can meet it.
fn is_in_the_contract(call: &Call, provider: Provider) -> bool {
    let by_key = match provider {
        Provider::Bbmsl => "look_up",
        _ => "same_key",
    };
    let retry = call.said("retry");
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
        ("idempotency-key-reused", "unknown") => call.why == Why::Reuse && retry == "no",
        // An earlier send under the key is unknown: that outweighs what became of this one.
        ("provider-auth-failed" | "provider-rate-limited" | "provider-unreachable", "unknown") => {
            retry == by_key
        }
        _ => false,
    }
}

/// The idempotency key of a send, where the provider has one and the request arrived whole.
fn key(send: &Exchange) -> Option<String> {
    let header = ["idempotency-key", "requestid"]
        .into_iter()
        .find_map(|name| send.request.headers_named(name).next());
    if let Some(key) = header {
        return Some(String::from_utf8_lossy(key).into_owned());
    }
    let body: serde_json::Value = serde_json::from_slice(&send.request.body).ok()?;
    Some(body.get("transaction_id")?.as_str()?.to_owned())
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
                End::Broken(error) => format!("broken: {error}"),
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
