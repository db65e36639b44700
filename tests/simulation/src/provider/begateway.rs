//! beGateway: keys are kept for a day, and refunds are found by their tracking id or their uid.

use serde_json::Value;

use super::{DAY_MS, Entry, PAID, Provider, Reply, Request, State, reply};
use crate::time::rfc3339;

pub(super) const REFUNDS: &str = "/beyag/transactions/refunds";
const TRANSACTIONS: &str = "/beyag/transactions/";
const BY_TRACKING: &str = "tracking_id/";

impl Provider {
    pub(super) fn begateway(&mut self, now: i64, send: usize, request: &Request) -> Reply {
        if request.path != REFUNDS {
            return self.transactions(now, &request.path);
        }
        let Some(key) = request.key.clone() else {
            return reply(400, r#"{"message":"RequestID is missing"}"#);
        };
        if let Some((at, first)) = self.replies.get(&key)
            && now - at < DAY_MS
        {
            let known = self.by_key.get(&key).filter(|_| self.habits.tells_anew);
            return match known {
                Some(place) => self.transaction(now, *place),
                None => first.clone(),
            };
        }
        let reply = self.begateway_refund(now, send, key.clone(), &request.body);
        self.replies.insert(key, (now, reply.clone()));
        reply
    }

    fn begateway_refund(&mut self, now: i64, send: usize, key: String, body: &[u8]) -> Reply {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let body = &body["request"];
        let text = |name: &str| body[name].as_str().unwrap_or_default();
        if text("reason").is_empty() {
            return reply(
                422,
                r#"{"message":"reason is missing","errors":{"request":{"reason":["is missing"]}}}"#,
            );
        }
        let Ok(payment) = text("parent_uid").parse() else {
            return reply(404, r#"{"message":"Not found."}"#);
        };
        let left = PAID.saturating_sub(self.refunded(payment, now));
        let minor = body["amount"].as_u64().unwrap_or(left);
        if left == 0 {
            return reply(
                422,
                r#"{"code":"F.0108","message":"parent_uid is refunded already"}"#,
            );
        }
        if minor == 0 || minor > left {
            return reply(
                422,
                r#"{"message":"amount","errors":{"request":{"amount":["is more than is left"]}}}"#,
            );
        }
        // The tracking id is the key's alone, since no call here has a reference.
        if text("tracking_id") != key {
            return reply(422, r#"{"message":"tracking_id"}"#);
        }
        let pending = self.dice.pick(&["pending", "incomplete"]);
        let mut entry = self.taken(now, send, (payment, minor), key, [pending, "error"]);
        entry.id = format!("2-{:010x}", self.ledger.len());
        let place = self.book(entry);
        self.transaction(now, place)
    }

    fn transaction(&self, now: i64, place: usize) -> Reply {
        let transaction = shown(&self.ledger[place], now);
        reply(200, format!(r#"{{"transaction":{transaction}}}"#))
    }

    fn transactions(&self, now: i64, path: &str) -> Reply {
        let name = path.strip_prefix(TRANSACTIONS).unwrap_or_default();
        if let Some(key) = name.strip_prefix(BY_TRACKING) {
            let found = self.ledger.iter().rev().filter(|entry| entry.key == key);
            let found: Vec<_> = match self.by_key.contains_key(key) {
                true => found.map(|entry| shown(entry, now)).collect(),
                false => Vec::new(),
            };
            return reply(200, format!(r#"{{"transactions":[{}]}}"#, found.join(",")));
        }
        if let Ok(payment) = name.parse::<u64>() {
            let body = format!(
                r#"{{"transaction":{{"uid":"{payment}","type":"payment","status":"successful","amount":{PAID},"currency":"USD"}}}}"#
            );
            return reply(200, body);
        }
        let place = name.strip_prefix("2-");
        let place = place.and_then(|hex| usize::from_str_radix(hex, 16).ok());
        match place.filter(|place| *place < self.ledger.len()) {
            Some(place) => self.transaction(now, place),
            None => reply(404, r#"{"message":"Not found."}"#),
        }
    }
}

fn shown(entry: &Entry, now: i64) -> String {
    let status = match entry.state(now) {
        State::Open => entry.word,
        State::Moved => "successful",
        State::Failed => ["failed", "expired", "deleted"][entry.send % 3],
    };
    format!(
        r#"{{"uid":"{}","parent_uid":"{}","type":"refund","status":"{status}","message":null,"created_at":"{}","amount":{},"currency":"USD","tracking_id":"{}","refund":{{"status":"{status}"}}}}"#,
        entry.id,
        entry.payment,
        rfc3339(entry.at),
        entry.minor,
        entry.key
    )
}
