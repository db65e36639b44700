//! A caller: one refund until its last word, by what the `retry` member of each answer tells.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use provider_simulator::{Provider, Simulators, orders};
use rand::Rng;
use rand::rngs::StdRng;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{sleep, timeout};

use super::faults;
use crate::{Answer, Gateway, cluster};

/// No answer takes as long; this only ends a call that would hang.
const PATIENCE: Duration = Duration::from_secs(30);
/// A caller gives up after so many rounds.
const ROUNDS: u32 = 10;
/// Before the second round; longer before each one after it.
const PAUSE: Duration = Duration::from_millis(50);
/// One in so many calls meets a fault.
const FAULT_ONE_IN: u32 = 5;

/// Where refunds are made.
pub(super) const PROVIDERS: [Provider; 4] = [
    Provider::Bog,
    Provider::Moyasar,
    Provider::Begateway,
    Provider::Bbmsl,
];

/// What is peculiar to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    None,
    /// Does not wait for its first answer.
    Leaves,
    /// Makes its first call twice at the same moment.
    Doubles,
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
}

/// 10.50
pub(super) fn decimal(minor_units: u64) -> String {
    format!("{}.{:02}", minor_units / 100, minor_units % 100)
}

impl Refund {
    /// The nth refund of a run: the same of the same seed. The order is nobody else's.
    pub fn by_chance(nth: u64, rng: &mut StdRng) -> Refund {
        let provider = PROVIDERS[rng.gen_range(0..PROVIDERS.len())];
        let key = if rng.r#gen() {
            uuid::Builder::from_random_bytes(rng.r#gen())
                .into_uuid()
                .to_string()
        } else {
            format!("return-{nth}")
        };
        Refund {
            nth,
            provider,
            key,
            order: orders::fresh(provider, nth),
            // Mostly a part, so that the order has money left for a second refund by mistake.
            minor_units: if rng.gen_ratio(1, 8) {
                10_000
            } else {
                rng.gen_range(1..4_000)
            },
            habit: match rng.gen_range(0..12) {
                0 | 1 => Habit::Leaves,
                2 => Habit::Doubles,
                3 => Habit::Repeats,
                4 => Habit::Reuses,
                _ => Habit::None,
            },
        }
    }

    /// The currency of all fresh orders of this provider.
    pub fn currency(&self) -> &'static str {
        match self.provider {
            Provider::Bog | Provider::BogToken => "GEL",
            Provider::Moyasar => "SAR",
            Provider::Begateway => "USD",
            Provider::Bbmsl => "HKD",
        }
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
    /// The connection broke.
    Broken(String),
    /// Nothing came.
    Hung,
}

/// What a caller knows in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LastWord {
    NotRefunded,
    Unknown,
    Pending,
    Succeeded,
}

impl LastWord {
    /// Whether the gateway gives it again rather than ask once more: a pending refund is asked for again.
    pub fn is_final(self) -> bool {
        self == LastWord::Succeeded
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
            End::Left | End::Broken(_) | End::Hung => None,
        }
    }

    /// A member of the answer; empty where there is none.
    pub fn said(&self, member: &str) -> &str {
        let value = self.answer().and_then(|answer| answer.body.get(member));
        value.and_then(Value::as_str).unwrap_or_default()
    }

    /// `succeeded`, `pending` or the problem's code; else how it ended.
    pub fn word(&self) -> &str {
        match &self.end {
            End::Answer(_) if self.word_by_call() > LastWord::Unknown => self.said("status"),
            End::Answer(_) => match self.said("code") {
                "" => "no problem of the contract",
                code => code,
            },
            End::Left => "(left)",
            End::Broken(_) => "(connection broke)",
            End::Hung => "(no answer)",
        }
    }

    /// What this call alone tells its caller.
    pub fn word_by_call(&self) -> LastWord {
        match self.answer().map(|answer| answer.status) {
            Some(200) => LastWord::Succeeded,
            Some(202) => LastWord::Pending,
            Some(_) if self.said("outcome") == "not_refunded" => LastWord::NotRefunded,
            Some(_) | None => LastWord::Unknown,
        }
    }

    fn next(&self) -> Next {
        if self.word_by_call() > LastWord::Unknown {
            return Next::Done;
        }
        match (&self.end, self.said("code"), self.said("retry")) {
            (End::Left | End::Broken(_), ..) | (_, "refund-in-progress", _) => Next::SameKey,
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
    /// What a look-up brought.
    looked_up: Option<LastWord>,
}

impl History {
    /// An `unknown` stays until the provider's word clears it: a later `not_refunded` does not.
    pub fn last_word(&self) -> LastWord {
        let calls = self.calls.iter().filter(|call| call.why != Why::Reuse);
        let by_calls = calls.map(Call::word_by_call).max();
        self.looked_up.or(by_calls).unwrap_or(LastWord::NotRefunded)
    }
}

/// Makes one refund after the other over connections of its own.
pub(super) struct Caller {
    client: Client,
    url: String,
}

impl Caller {
    /// Every second one speaks HTTP/2.
    pub fn new(gateway: &Gateway, nth: usize) -> Result<Caller> {
        let client = match nth % 2 {
            0 => Client::builder().http1_only(),
            _ => Client::builder().http2_prior_knowledge(),
        };
        Ok(Caller {
            client: client.build()?,
            url: gateway.url(),
        })
    }

    /// Goes on with a refund until the caller has its last word.
    pub async fn settle(
        &self,
        refund: Refund,
        simulators: &Simulators,
        rng: &mut StdRng,
    ) -> History {
        let mut desk = Desk {
            caller: self,
            simulators,
            rng,
            calls: 0,
        };
        let mut calls = Vec::new();
        let mut next = Next::SameKey;
        for round in 0..ROUNDS {
            let made = match (round, refund.habit) {
                (0, Habit::Doubles) => {
                    let one = desk.call(&refund, Why::First);
                    let other = desk.call(&refund, Why::Double);
                    let (one, other) = tokio::join!(one, other);
                    vec![one, other]
                }
                (0, Habit::Leaves) => {
                    let patience = [4, 40, 400][desk.rng.gen_range(0..3)];
                    let patience = Duration::from_millis(desk.rng.gen_range(0..patience));
                    let call = desk.prepare(&refund, Why::First, refund.minor_units);
                    vec![call.wait(patience, End::Left).await]
                }
                (0, _) => vec![desk.call(&refund, Why::First).await],
                _ => vec![desk.call(&refund, Why::Retry).await],
            };
            next = made.iter().map(Call::next).max().unwrap_or(Next::Stop);
            let wanted = made.iter().map(Call::retry_after).max();
            calls.extend(made);
            if next != Next::SameKey {
                break;
            }
            sleep(wanted.unwrap_or_default().max(PAUSE * (round + 1))).await;
        }
        match (refund.habit, next) {
            (Habit::Repeats, Next::Done) => calls.push(desk.call(&refund, Why::Repeat).await),
            // The provider has no key to know it by, so only a gateway that remembers it may be asked.
            (Habit::Repeats, Next::LookUp) => {
                calls.push(desk.call(&refund, Why::Repeat).await);
            }
            (Habit::Reuses, Next::Done) => {
                let other = refund.minor_units + 1;
                let call = desk.prepare(&refund, Why::Reuse, other);
                calls.push(call.wait(PATIENCE, End::Hung).await);
            }
            _ => {}
        }
        let looked_up = match next {
            Next::LookUp => look_up(&refund).await,
            Next::Stop | Next::SameKey | Next::Done => None,
        };
        History {
            refund,
            calls,
            looked_up,
        }
    }
}

/// What the provider says of a refund, where it may not be sent again. The gateway has no call for that, so that the refund
/// stays unknown.
async fn look_up(_refund: &Refund) -> Option<LastWord> {
    None
}

/// What the calls of one refund share.
struct Desk<'a> {
    caller: &'a Caller,
    simulators: &'a Simulators,
    rng: &'a mut StdRng,
    calls: u32,
}

/// A call that can be made.
struct Draft {
    request: RequestBuilder,
    id: String,
    why: Why,
}

impl Desk<'_> {
    fn call(&mut self, refund: &Refund, why: Why) -> impl Future<Output = Call> + use<> {
        self.prepare(refund, why, refund.minor_units)
            .wait(PATIENCE, End::Hung)
    }

    /// Queues the fault that the call meets by chance, too; another caller's may come before it and meet it.
    fn prepare(&mut self, refund: &Refund, why: Why, minor_units: u64) -> Draft {
        if self.rng.gen_ratio(1, FAULT_ONE_IN) {
            let fault = faults::of(refund.provider, self.rng);
            self.simulators.next_fault(refund.provider, fault);
        }
        let id = format!("soak-{}-{}", refund.nth, self.calls);
        self.calls += 1;
        let request = self
            .caller
            .client
            .post(&self.caller.url)
            .header("content-type", "application/json")
            .header("idempotency-key", &refund.key)
            .header("x-request-id", &id)
            .body(refund.body(minor_units).to_string());
        Draft { request, id, why }
    }
}

impl Draft {
    /// Makes the call. A caller whose patience ends drops its connection, or resets its stream.
    async fn wait(self, patience: Duration, at_last: End) -> Call {
        let began = SystemTime::now();
        let answer = async { Answer::read(self.request.send().await?).await };
        let end = match timeout(patience, answer).await {
            Ok(Ok(answer)) => End::Answer(answer),
            Ok(Err(error)) => End::Broken(format!("{error:#}")),
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
