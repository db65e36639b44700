//! Calls and faults at all providers, for whoever watches the gateway's figures meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::redis::{PASSWORD, Redis};

use anyhow::{Context as _, Result, ensure};
use provider_simulator::orders::{find, fresh};
use provider_simulator::{Fault, Provider};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{Answer, Gateway, Options, change_plugin, cluster, route_mut, share_memory};

use Provider::{Bbmsl, Begateway, Bog, BogToken, Moyasar};

/// Between two calls, so that they are spread over some scrapes.
const PAUSE: Duration = Duration::from_millis(100);

/// What was told, by provider, kind, outcome, code and whether it was an answer given again.
pub type Told = BTreeMap<[String; 5], u64>;

/// A gateway whose figures change soon, and whose signing key has an end; and the memory that it would share with others.
pub async fn gateway() -> Result<(Gateway, Redis)> {
    let memory = Redis::start().await?;
    let store = memory.store();
    let gateway = Gateway::start(Options {
        ecds: true,
        alone: true,
        more_secrets: vec![("memory-password", PASSWORD.to_owned())],
        change: Box::new(move |config, folder| {
            share_memory(config, std::slice::from_ref(&store), folder).expect("memory.yaml");
            let timeout = route_mut(config, "begateway").map(|route| {
                route["route"]["timeout"] = json!("1s");
            });
            let plugin = change_plugin(config, |plugin| {
                plugin["guard"] = json!({"entries": 512});
                // No call is to time out by chance.
                plugin["memory"]["redis"]["timeout_ms"] = json!(2_000);
                let key = &mut plugin["providers"]["bbmsl"]["signing"]["keys"][0];
                key["not_after"] = json!("2099-01-01T00:00:00Z");
            });
            for changed in [timeout, plugin] {
                changed.expect("envoy.yaml has the four providers");
            }
        }),
        ..Options::default()
    })
    .await?;
    Ok((gateway, memory))
}

/// Who plays: the gateway's callers, and the providers' bad days.
pub struct Player<'a> {
    gateway: &'a Gateway,
    memory: Redis,
    told: Told,
    /// What is unknown or pending, by provider and key.
    open: BTreeMap<(&'static str, String), &'static str>,
    rounds: u64,
    /// Of fresh orders and keys.
    nth: u64,
}

impl<'a> Player<'a> {
    /// Nothing has been played.
    pub fn new(gateway: &'a Gateway, memory: Redis) -> Self {
        Player {
            gateway,
            memory,
            told: Told::new(),
            open: BTreeMap::new(),
            rounds: 0,
            nth: 0,
        }
    }

    /// Plays everything once: some ten seconds.
    pub async fn round(&mut self) -> Result<()> {
        self.rounds += 1;
        self.memory_is_there(true).await?;
        // Twice a call, and a look-up of it.
        for provider in Provider::REFUNDING {
            for _ in 0..3 {
                self.nth += 1;
                let order = fresh(provider, self.nth);
                let expected = if provider == Bog {
                    "pending"
                } else {
                    "succeeded"
                };
                let key = self.key();
                self.refund(provider, &key, &order, expected).await?;
                self.refund(provider, &key, &order, expected).await?;
                self.look_up(provider, &key, &order, expected).await?;
            }
        }
        // What providers say by themselves.
        for (provider, name, expected) in [
            (Bog, "refused", "provider-rejected"),
            (Moyasar, "declined", "refund-declined"),
            (Moyasar, "pending", "pending"),
            (Begateway, "declined", "refund-declined"),
            (Begateway, "pending", "pending"),
            (Begateway, "error", "provider-error"),
        ] {
            self.nth += 1;
            let order = find(provider, name).context(name)?.id.clone();
            let key = self.key();
            self.refund(provider, &key, &order, expected).await?;
        }
        // Faults.
        for (provider, fault, expected) in [
            (Bog, says(429), "provider-rate-limited"),
            (Moyasar, says(401), "provider-auth-failed"),
            (Begateway, says(500), "provider-error"),
            (Begateway, Fault::Hang { booked: true }, "provider-timeout"),
            (Bbmsl, Fault::CutBody { booked: true }, "provider-error"),
        ] {
            self.nth += 1;
            self.gateway.simulators.next_fault(provider, fault);
            let (key, order) = (self.key(), fresh(provider, self.nth));
            self.refund(provider, &key, &order, expected).await?;
        }
        // Of the unknown ones, a look-up ends the last.
        let order = fresh(Bbmsl, self.nth);
        let key = self.key();
        self.look_up(Bbmsl, &key, &order, "succeeded").await?;
        // Another refund under a key that was used.
        self.nth += 1;
        let (key, order) = (self.key(), fresh(Moyasar, self.nth));
        self.refund(Moyasar, &key, &order, "succeeded").await?;
        let another = fresh(Moyasar, self.nth + 1_000);
        self.refund(Moyasar, &key, &another, "idempotency-key-reused")
            .await?;
        // A token that BOG has withdrawn, and an endpoint that refuses.
        self.nth += 1;
        self.gateway.simulators.revoke_tokens();
        let (key, order) = (self.key(), fresh(Bog, self.nth));
        self.refund(Bog, &key, &order, "provider-auth-failed")
            .await?;
        self.gateway.simulators.next_fault(BogToken, says(429));
        self.refund(Bog, &key, &order, "provider-rate-limited")
            .await?;
        self.gateway.simulators.next_fault(BogToken, says(401));
        self.refund(Bog, &key, &order, "provider-auth-failed")
            .await?;
        self.refund(Bog, &key, &order, "pending").await?;
        // A provider that cannot be reached.
        self.nth += 1;
        self.shut(Moyasar).await?;
        let (key, order) = (self.key(), fresh(Moyasar, self.nth));
        self.refund(Moyasar, &key, &order, "provider-unreachable")
            .await?;
        self.gateway.simulators.open(Moyasar).await?;
        self.refund(Moyasar, &key, &order, "succeeded").await?;
        // The memory is away: what is sent all the same, and what is not.
        self.memory.kill().await?;
        self.memory_is_there(false).await?;
        self.nth += 1;
        for (provider, expected) in [(Moyasar, "succeeded"), (Bbmsl, "memory-unavailable")] {
            let (key, order) = (self.key(), fresh(provider, self.nth));
            self.refund(provider, &key, &order, expected).await?;
        }
        self.memory.restart().await?;
        self.memory_is_there(true).await
    }

    /// Waits until Envoy knows whether there is a store.
    async fn memory_is_there(&self, is_there: bool) -> Result<()> {
        let healthy = "cluster.memory.membership_healthy";
        let expected = Some(&u64::from(is_there));
        while self.gateway.stats(healthy).await?.get(healthy) != expected {
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// What was told, and what else is known of it: fetches of tokens by their end, signatures, and
    /// what is open.
    pub fn summary(&self) -> Value {
        let simulators = &self.gateway.simulators;
        let told = self.told.iter();
        let mut open = BTreeMap::<_, u64>::new();
        for ((provider, _), state) in &self.open {
            *open.entry((provider, state)).or_default() += 1;
        }
        // The endpoint refuses one fetch a round, and limits one.
        let fetched = simulators.received(BogToken) - 2 * self.rounds;
        json!({
            "calls": told.collect::<Vec<_>>(),
            "token_fetches": {"ok": fetched, "refused": self.rounds, "rate_limited": self.rounds},
            "signatures": simulators.received(Bbmsl),
            "open": open.iter().collect::<Vec<_>>(),
            // Once a round each: a refund that went on alone, and one that was not sent. Both are told to the store later, and so
            // is a reply that was cut, which Envoy ends past the filter.
            "memory_fallbacks": self.rounds,
            "told_later": 3 * self.rounds,
        })
    }

    fn key(&self) -> String {
        format!("key-{}", self.nth)
    }

    async fn refund(
        &mut self,
        provider: Provider,
        key: &str,
        order: &str,
        expected: &str,
    ) -> Result<()> {
        let (currency, _) = provider.declared().currency;
        let body = json!({
            "provider": cluster(provider),
            "payment": {"id": order},
            "amount": {"value": "1.00", "currency": currency},
        });
        let answer = self.gateway.refund(key, &body).await?;
        self.note(provider, "refund", key, expected, &answer).await
    }

    async fn look_up(
        &mut self,
        provider: Provider,
        key: &str,
        order: &str,
        expected: &str,
    ) -> Result<()> {
        let query = [
            ("provider", cluster(provider)),
            ("payment_id", order),
            ("key", key),
        ];
        let answer = self.gateway.look_up(&query).await?;
        self.note(provider, "look_up", key, expected, &answer).await
    }

    async fn note(
        &mut self,
        provider: Provider,
        kind: &str,
        key: &str,
        expected: &str,
        answer: &Answer,
    ) -> Result<()> {
        let member = |name: &str| answer.body[name].as_str();
        let (code, outcome) = match member("code") {
            Some(code) => (code, member("outcome")),
            None => ("none", member("status")),
        };
        let said = if code == "none" { outcome } else { Some(code) };
        ensure!(said == Some(expected), "not {expected}: {answer:?}");
        let replayed = answer.header("idempotency-replayed") == "true";
        let key = (cluster(provider), key.to_owned());
        match outcome {
            // It says nothing of the refund that the key is of.
            _ if ["idempotency-key-reused", "memory-unavailable"].contains(&code) => None,
            Some("unknown") => self.open.insert(key, "unknown"),
            Some("pending") => self.open.insert(key, "pending"),
            _ => self.open.remove(&key),
        };
        let labels = [cluster(provider), kind, outcome.unwrap_or_default(), code];
        let [provider, kind, outcome, code] = labels.map(str::to_owned);
        *self
            .told
            .entry([provider, kind, outcome, code, replayed.to_string()])
            .or_default() += 1;
        sleep(PAUSE).await;
        Ok(())
    }

    /// Closes a provider, and waits until Envoy has seen its connections go.
    async fn shut(&self, provider: Provider) -> Result<()> {
        self.gateway.simulators.close(provider).await;
        let open = format!(r"^cluster\.{}\.upstream_cx_active$", cluster(provider));
        while self
            .gateway
            .stats(&open)
            .await?
            .values()
            .any(|count| *count > 0)
        {
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// A reply of this status, of which nothing is booked.
fn says(status: u16) -> Fault {
    Fault::HeaderOnly {
        status,
        booked: false,
    }
}
