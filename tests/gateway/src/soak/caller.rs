//! A caller: one refund until its last word, by what the `retry` member of each answer tells. What
//! is pending, or not known, is looked up.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use provider_simulator::{Provider, Simulators, orders};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng as _};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep, timeout};

use super::faults;
use crate::{Answer, Gateway, cluster};

/// No answer takes as long; this only ends a call that would hang.
const PATIENCE: Duration = Duration::from_secs(30);
/// A caller gives up after so many rounds.
const ROUNDS: u32 = 10;
/// Before the second round; longer before each one after it.
const PAUSE: Duration = Duration::from_millis(50);
/// A caller asks for a refund that often.
const LOOK_UPS: u32 = 12;
/// One in so many refunds is looked up though its caller knows its end.
const CURIOUS_ONE_IN: u32 = 8;
/// One in so many refunds that were taken is rejected after all.
const REJECTED_ONE_IN: u32 = 8;
/// One in so many pairs of refunds is of one order and of one amount.
const TWINS_ONE_IN: u32 = 5;
/// One in so many calls meets a fault.
const FAULT_ONE_IN: u32 = 5;

/// What is peculiar to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    None,
    /// Does not wait for its first answer.
    Leaves,
    /// Makes its first call twice at the same moment.
    Doubles,
    /// Looks the refund up while its first call is under way.
    Peeks,
    /// Makes the same call again after a final answer.
    Repeats,
    /// Uses the key for another amount after a final answer.
    Reuses,
}

/// One refund that a caller wants.
#[derive(Clone, Debug)]
pub(super) struct Refund {
    pub nth: u64,
    pub provider: Provider,
    pub key: String,
    pub order: String,
    pub minor_units: u64,
    pub habit: Habit,
    /// Whether another refund of the same order is of the same amount: two equal items that are
    /// sent back.
    pub is_twin: bool,
}

/// 10.50
pub(super) fn decimal(minor_units: u64) -> String {
    format!("{}.{:02}", minor_units / 100, minor_units % 100)
}

impl Refund {
    /// The nth refund of a run: the same of the same seed. The order is nobody else's, but for a
    /// twin's.
    pub fn by_chance(nth: u64, seed: u64, rng: &mut StdRng) -> Refund {
        let mut of_both = StdRng::seed_from_u64(seed ^ (nth / 2 + 1).rotate_left(16));
        let is_twin = of_both.gen_ratio(1, TWINS_ONE_IN);
        let (shared, order) = match is_twin {
            true => (&mut of_both, nth / 2 * 2),
            false => (&mut *rng, nth),
        };
        let provider = Provider::REFUNDING[shared.gen_range(0..Provider::REFUNDING.len())];
        // Mostly a part, so that the order has money left for a second refund by mistake.
        let minor_units = match shared.gen_ratio(1, 8) && !is_twin {
            true => 10_000,
            false => shared.gen_range(1..4_000),
        };
        let key = match rng.gen_range(0..4) {
            0 | 1 => uuid::Builder::from_random_bytes(rng.r#gen())
                .into_uuid()
                .to_string(),
            2 => uuid::Builder::from_unix_timestamp_millis(nth, &rng.r#gen())
                .into_uuid()
                .to_string(),
            _ => format!("return-{nth}"),
        };
        Refund {
            nth,
            provider,
            key,
            order: orders::fresh(provider, order),
            minor_units,
            habit: match rng.gen_range(0..12) {
                0 | 1 => Habit::Leaves,
                2 => Habit::Doubles,
                3 => Habit::Repeats,
                4 => Habit::Reuses,
                5 | 6 => Habit::Peeks,
                _ => Habit::None,
            },
            is_twin,
        }
    }

    /// Its key as one of those writes it who mean the same: in small letters or capitals, bare or
    /// quoted.
    fn spelled(&self, rng: &mut StdRng) -> String {
        let is_uuid = uuid::Uuid::try_parse(&self.key).is_ok();
        let key = match rng.gen_range(0..3) {
            0 if is_uuid => self.key.to_ascii_uppercase(),
            1 if is_uuid => {
                let capital = |letter: char| match rng.r#gen() {
                    true => letter.to_ascii_uppercase(),
                    false => letter,
                };
                self.key.chars().map(capital).collect()
            }
            _ => self.key.clone(),
        };
        match rng.r#gen() {
            true => format!("{key:?}"),
            false => key,
        }
    }

    /// The currency of all fresh orders of this provider.
    pub fn currency(&self) -> &'static str {
        self.provider.declared().currency.0
    }

    fn body(&self, minor_units: u64) -> Value {
        json!({
            "provider": cluster(self.provider),
            "payment": {"id": self.order},
            "amount": {"value": decimal(minor_units), "currency": self.currency()},
        })
    }
}

/// Why a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    First,
    /// At the same moment as the first.
    Double,
    /// The answer before said so, or there was none.
    Retry,
    /// Though there was a final answer.
    Repeat,
    /// Another amount under the same key.
    Reuse,
    /// It asks how the refund stands.
    LookUp,
}

/// One call under a refund's key.
#[derive(Debug)]
pub(super) struct Call {
    /// Its `x-request-id`, which reaches the provider, too.
    pub id: String,
    pub why: Why,
    pub began: SystemTime,
    pub ended: SystemTime,
    pub end: End,
}

/// How a call ended for its caller.
#[derive(Debug)]
pub(super) enum End {
    Answer(Answer),
    /// The caller went away.
    Left,
    /// The connection broke, or none was had.
    Broken {
        error: String,
        connected: bool,
    },
    /// Nothing came.
    Hung,
}

/// What a caller knows in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LastWord {
    NotRefunded,
    Unknown,
    Pending,
    Failed,
    Succeeded,
}

impl LastWord {
    /// Whether the gateway gives it again rather than ask once more: a pending refund is asked for
    /// again.
    pub fn is_final(self) -> bool {
        matches!(self, LastWord::Succeeded | LastWord::Failed)
    }

    /// Whether a look-up can tell more.
    pub fn is_open(self) -> bool {
        matches!(self, LastWord::Unknown | LastWord::Pending)
    }
}

/// What a caller does next. Of two answers to the same call the larger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Stop,
    LookUp,
    SameKey,
    Done,
}

impl Call {
    pub fn answer(&self) -> Option<&Answer> {
        match &self.end {
            End::Answer(answer) => Some(answer),
            End::Left | End::Broken { .. } | End::Hung => None,
        }
    }

    /// Whether a gateway may have had it.
    pub fn may_have_arrived(&self) -> bool {
        !matches!(
            self.end,
            End::Broken {
                connected: false,
                ..
            }
        )
    }

    /// A member of the answer; empty where there is none.
    pub fn said(&self, member: &str) -> &str {
        let value = self.answer().and_then(|answer| answer.body.get(member));
        value.and_then(Value::as_str).unwrap_or_default()
    }

    /// `succeeded`, `pending`, `failed` or the problem's code; else how it ended.
    pub fn word(&self) -> &str {
        match &self.end {
            End::Answer(_) if self.word_by_call() > LastWord::Unknown => self.said("status"),
            End::Answer(_) => match self.said("code") {
                "" => "no problem of the contract",
                code => code,
            },
            End::Left => "(left)",
            End::Broken { .. } => "(connection broke)",
            End::Hung => "(no answer)",
        }
    }

    /// What this call alone tells its caller.
    pub fn word_by_call(&self) -> LastWord {
        match self.answer().map(|answer| answer.status) {
            Some(200 | 202) => match self.said("status") {
                "succeeded" => LastWord::Succeeded,
                "pending" => LastWord::Pending,
                "failed" => LastWord::Failed,
                _ => LastWord::Unknown,
            },
            Some(_) if self.said("outcome") == "not_refunded" => LastWord::NotRefunded,
            Some(_) | None => LastWord::Unknown,
        }
    }

    /// Whether nothing was sent since another call under the key was in flight at the gateway.
    fn was_kept_from_another(&self) -> bool {
        let answer = self.answer();
        self.said("code") == "refund-in-progress"
            && answer.is_some_and(|answer| answer.body.get("provider").is_none())
    }

    fn next(&self) -> Next {
        if self.word_by_call() > LastWord::Unknown {
            return Next::Done;
        }
        match (&self.end, self.said("code"), self.said("retry")) {
            (End::Left | End::Broken { .. }, ..) | (_, "refund-in-progress", _) => Next::SameKey,
            (_, _, "same_key") if !has_passed(self.said("retry_until")) => Next::SameKey,
            (_, _, "look_up") => Next::LookUp,
            _ => Next::Stop,
        }
    }

    fn retry_after(&self) -> Duration {
        let seconds = self
            .answer()
            .and_then(|answer| answer.header("retry-after").parse().ok());
        Duration::from_secs(seconds.unwrap_or(0))
    }
}

fn has_passed(retry_until: &str) -> bool {
    OffsetDateTime::parse(retry_until, &Rfc3339)
        .is_ok_and(|until| until <= OffsetDateTime::now_utc())
}

/// A refund and all that was done for it.
#[derive(Debug)]
pub(super) struct History {
    pub refund: Refund,
    pub calls: Vec<Call>,
}

impl History {
    /// What the caller knows after all of these calls. An `unknown` stays until the provider's word
    /// clears it: a later `not_refunded` of a refund call does not, what a look-up says does.
    pub fn word_after(calls: &[Call]) -> LastWord {
        let mut known = LastWord::NotRefunded;
        for call in calls {
            let said = call.word_by_call();
            match call.why {
                Why::Reuse => {}
                // It is the call in flight whose end tells, and that one is the caller's own.
                _ if call.was_kept_from_another() => {}
                Why::LookUp if said == LastWord::Unknown => {}
                Why::LookUp => known = said,
                Why::First | Why::Double | Why::Retry | Why::Repeat => known = known.max(said),
            }
        }
        known
    }

    pub fn last_word(&self) -> LastWord {
        Self::word_after(&self.calls)
    }

    /// What the caller knew before it asked, if it asked.
    pub fn word_before_look_up(&self) -> Option<LastWord> {
        let first = self.calls.iter().position(|call| call.why == Why::LookUp)?;
        Some(Self::word_after(&self.calls[..first]))
    }

    /// Whether the provider knows no name for the refund that its caller has, and the same call is
    /// refused for good: what became of a call that its caller left stays open.
    pub fn cannot_be_asked(refund: &Refund, calls: &[Call]) -> bool {
        refund.provider.declared().by_id_alone
            && Self::id_in(calls).is_none()
            && calls
                .iter()
                .rfind(|call| call.why != Why::LookUp)
                .is_some_and(|last| last.next() == Next::Stop)
    }

    /// The provider's id of the refund, as far as an answer has told it.
    fn id_in(calls: &[Call]) -> Option<&str> {
        let told = calls.iter().filter(|call| call.why != Why::Reuse);
        told.filter(|call| call.word_by_call() > LastWord::Unknown)
            .map(|call| call.said("id"))
            .find(|id| !id.is_empty())
    }
}

/// A refund on the way to its caller's last word.
pub(super) struct Open {
    pub history: History,
    rng: StdRng,
    asked: u32,
    /// Its calls meet no faults of their own.
    is_calm: bool,
    /// When the caller goes on with it.
    pub due: Instant,
}

impl Open {
    pub fn new(refund: Refund, rng: StdRng) -> Open {
        Open {
            history: History {
                refund,
                calls: Vec::new(),
            },
            rng,
            asked: 0,
            is_calm: false,
            due: Instant::now(),
        }
    }

    /// Whether its caller's last word is an open one, and a look-up could still tell more.
    pub fn may_learn_more(&self) -> bool {
        let History { refund, calls } = &self.history;
        let last = calls.last().map(Call::word);
        let is_left_open = refund
            .provider
            .declared()
            .leaves_open
            .is_some_and(|(code, _)| last == Some(code));
        self.history.last_word().is_open()
            && !is_left_open
            && !History::cannot_be_asked(refund, calls)
    }

    /// The same with new patience, and without faults.
    pub fn in_calm(self) -> Self {
        Open {
            asked: 0,
            is_calm: true,
            ..self
        }
    }
}

/// Makes one refund after the other over connections of its own.
pub(super) struct Caller {
    client: Client,
    /// Of all gateways, each of which gets a call in turn.
    urls: Vec<String>,
}

impl Caller {
    /// Every second one speaks HTTP/2.
    pub fn new(gateways: &[Gateway], nth: usize) -> Result<Caller> {
        let client = match nth % 2 {
            0 => Client::builder().http1_only(),
            _ => Client::builder().http2_prior_knowledge(),
        };
        Ok(Caller {
            client: client.build()?,
            urls: gateways.iter().map(Gateway::url).collect(),
        })
    }

    /// Goes on with a refund: until the caller has its last word, or until it is time to wait.
    pub async fn go_on(&self, open: &mut Open, simulators: &Simulators) -> bool {
        let Open {
            history: History { refund, calls },
            rng,
            asked,
            is_calm,
            due,
        } = open;
        let mut desk = Desk {
            caller: self,
            simulators,
            is_calm: *is_calm,
            rng,
            refund,
            calls,
        };
        if desk.calls.is_empty() {
            desk.make().await;
            // Who asks at once meets what is still under way.
            let pause = if desk.rng.r#gen() {
                PAUSE
            } else {
                faults::LATE * 2
            };
            *due = Instant::now() + pause;
        } else if *asked < LOOK_UPS && History::word_after(desk.calls).is_open() {
            *asked += 1;
            let wanted = desk.ask().await;
            *due = Instant::now() + wanted.max(PAUSE * (*asked).pow(2));
        }
        let hopeless = History::cannot_be_asked(refund, desk.calls);
        if *asked < LOOK_UPS && History::word_after(desk.calls).is_open() && !hopeless {
            return false;
        }
        desk.play_with_what_is_over().await;
        true
    }
}

/// What the calls of one refund share.
struct Desk<'a> {
    caller: &'a Caller,
    simulators: &'a Simulators,
    is_calm: bool,
    rng: &'a mut StdRng,
    refund: &'a Refund,
    calls: &'a mut Vec<Call>,
}

/// A call that can be made.
struct Draft {
    request: RequestBuilder,
    id: String,
    why: Why,
}

impl Desk<'_> {
    /// Asks for the refund, as often as the answers say.
    async fn make(&mut self) {
        let habit = self.refund.habit;
        let first = self.calls.is_empty();
        let mut next = Next::SameKey;
        for round in 0..ROUNDS {
            let before = self.calls.len();
            match (first && round == 0, habit) {
                (true, Habit::Doubles) => {
                    let amount = self.refund.minor_units;
                    let one = self
                        .prepare(Why::First, amount, 0)
                        .wait(PATIENCE, End::Hung);
                    let other = self
                        .prepare(Why::Double, amount, 1)
                        .wait(PATIENCE, End::Hung);
                    let (one, other) = tokio::join!(one, other);
                    self.calls.extend([one, other]);
                }
                (true, Habit::Leaves) => {
                    let patience = [4, 40, 400][self.rng.gen_range(0..3)];
                    let patience = Duration::from_millis(self.rng.gen_range(0..patience));
                    let call = self.prepare(Why::First, self.refund.minor_units, 0);
                    self.calls.push(call.wait(patience, End::Left).await);
                }
                (true, Habit::Peeks) => {
                    let amount = self.refund.minor_units;
                    let pause = Duration::from_millis(self.rng.gen_range(0..2_500));
                    let one = self
                        .prepare(Why::First, amount, 0)
                        .wait(PATIENCE, End::Hung);
                    let look = self.look_up(None, 1);
                    let look = async {
                        sleep(pause).await;
                        look.wait(PATIENCE, End::Hung).await
                    };
                    let (one, look) = tokio::join!(one, look);
                    self.calls.extend([one, look]);
                }
                (true, _) => self.call(Why::First).await,
                (false, _) => self.call(Why::Retry).await,
            }
            let made = self.calls[before..].iter();
            let made = made.filter(|call| call.why != Why::LookUp);
            next = made.clone().map(Call::next).max().unwrap_or(Next::Stop);
            let wanted = made.map(Call::retry_after).max();
            if next != Next::SameKey {
                break;
            }
            sleep(wanted.unwrap_or_default().max(PAUSE * (round + 1))).await;
        }
        // The provider has no key to know it by, so only a gateway that remembers it may be asked.
        if habit == Habit::Repeats && next == Next::LookUp {
            self.call(Why::Repeat).await;
        }
        if History::word_after(self.calls) == LastWord::Pending
            && self.rng.gen_ratio(1, REJECTED_ONE_IN)
        {
            let told = |call: &Call| call.word_by_call() == LastWord::Pending;
            let pending = self.calls.iter().rfind(|call| told(call));
            let id = pending.map(|call| call.said("id"));
            self.simulators.settle(self.refund.provider, id, false);
        }
    }

    /// Asks how the refund stands, and does as it is told. Returns the pause that was wished for.
    async fn ask(&mut self) -> Duration {
        let id = History::id_in(self.calls).map(str::to_owned);
        // Where the answer with the id was lost, the same call returns it (and no other name finds
        // a refund there).
        if self.refund.provider.declared().by_id_alone && id.is_none() {
            self.call(Why::Retry).await;
            return self.calls.last().map(Call::retry_after).unwrap_or_default();
        }
        // Who is told that the key does not tell which says it.
        let is_needed = self
            .calls
            .last()
            .is_some_and(|last| last.word() == "refund-ambiguous");
        let id = id.filter(|_| self.rng.r#gen::<bool>() || is_needed);
        let draft = self.look_up(id.as_deref(), 0);
        let call = draft.wait(PATIENCE, End::Hung).await;
        let (word, wanted) = (call.word_by_call(), call.retry_after());
        let next = call.next();
        self.calls.push(call);
        if word == LastWord::NotRefunded && next == Next::SameKey {
            self.make().await;
        }
        wanted
    }

    /// What callers do though they know how the refund has ended.
    async fn play_with_what_is_over(&mut self) {
        let word = History::word_after(self.calls);
        if word != LastWord::Unknown && self.rng.gen_ratio(1, CURIOUS_ONE_IN) {
            let id = History::id_in(self.calls).map(str::to_owned);
            let draft = self.look_up(id.as_deref(), 0);
            self.calls.push(draft.wait(PATIENCE, End::Hung).await);
        }
        if !word.is_final() {
            return;
        }
        match self.refund.habit {
            Habit::Repeats => self.call(Why::Repeat).await,
            Habit::Reuses => {
                let other = self.refund.minor_units + 1;
                let call = self.prepare(Why::Reuse, other, 0);
                self.calls.push(call.wait(PATIENCE, End::Hung).await);
            }
            Habit::None | Habit::Leaves | Habit::Doubles | Habit::Peeks => {}
        }
    }

    async fn call(&mut self, why: Why) {
        let call = self.prepare(why, self.refund.minor_units, 0);
        self.calls.push(call.wait(PATIENCE, End::Hung).await);
    }

    /// Queues the fault that a call meets by chance; another caller's may come before it and meet
    /// it.
    fn tempt_fate(&mut self) {
        if self.rng.gen_ratio(1, FAULT_ONE_IN) && !self.is_calm {
            let fault = faults::of(self.refund.provider, self.rng);
            self.simulators.next_fault(self.refund.provider, fault);
        }
    }

    /// `beside`: how many are prepared and not made yet.
    fn id(&self, beside: usize) -> String {
        format!("soak-{}-{}", self.refund.nth, self.calls.len() + beside)
    }

    /// The gateway whose turn it is: two calls at once, and one after the other, go to two of them.
    fn url(&self, beside: usize) -> String {
        let urls = &self.caller.urls;
        let nth = usize::try_from(self.refund.nth).unwrap_or_default();
        urls[(nth + self.calls.len() + beside) % urls.len()].clone()
    }

    fn prepare(&mut self, why: Why, minor_units: u64, beside: usize) -> Draft {
        self.tempt_fate();
        let id = self.id(beside);
        let request = self
            .caller
            .client
            .post(self.url(beside))
            .header("content-type", "application/json")
            .header("idempotency-key", self.refund.spelled(self.rng))
            .header("x-request-id", &id)
            .body(self.refund.body(minor_units).to_string());
        Draft { request, id, why }
    }

    fn look_up(&mut self, refund: Option<&str>, beside: usize) -> Draft {
        self.tempt_fate();
        let id = self.id(beside);
        let key = self.refund.spelled(self.rng);
        let mut query = vec![
            ("provider", cluster(self.refund.provider)),
            ("payment_id", &self.refund.order),
            ("key", &key),
        ];
        query.extend(refund.map(|refund| ("id", refund)));
        let request = self.caller.client.get(self.url(beside)).query(&query);
        Draft {
            request: request.header("x-request-id", &id),
            id,
            why: Why::LookUp,
        }
    }
}

impl Draft {
    /// Makes the call. A caller whose patience ends drops its connection, or resets its stream.
    async fn wait(self, patience: Duration, at_last: End) -> Call {
        let began = SystemTime::now();
        let answer = async { Answer::read(self.request.send().await?).await };
        let end = match timeout(patience, answer).await {
            Ok(Ok(answer)) => End::Answer(answer),
            Ok(Err(error)) => {
                let of_http = error.downcast_ref::<reqwest::Error>();
                End::Broken {
                    connected: !of_http.is_some_and(reqwest::Error::is_connect),
                    error: format!("{error:#}"),
                }
            }
            Err(_) => at_last,
        };
        Call {
            id: self.id,
            why: self.why,
            began,
            ended: SystemTime::now(),
            end,
        }
    }
}
