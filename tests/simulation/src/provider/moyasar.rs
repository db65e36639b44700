//! Moyasar: the key is the transaction's id, and the order shows all of them.

use serde_json::Value;

use super::{Entry, PAID, Provider, Reply, Request, State, reply};
use crate::time::rfc3339;

const ORDERS: &str = "/v1/orders/";
pub(super) const REFUND: &str = "/refund";

pub(super) fn key_of(request: &Request) -> String {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let key = body["transaction_id"].as_str().unwrap_or_default();
    key.to_ascii_lowercase()
}

impl Provider {
    pub(super) fn moyasar(&mut self, now: i64, send: usize, request: &Request) -> Reply {
        let rest = request.path.strip_prefix(ORDERS).unwrap_or_default();
        let (order, is_refund) = match rest.strip_suffix(REFUND) {
            Some(order) => (order, true),
            None => (rest, false),
        };
        let Ok(order) = order.parse() else {
            return reply(404, r#"{"message":"Order not found"}"#);
        };
        if !is_refund {
            return self.order(now, order);
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let (Some(minor), key) = (body["amount"].as_u64(), key_of(request)) else {
            return reply(422, r#"{"message":"Data validation failed"}"#);
        };
        if uuid::Uuid::try_parse(&key).is_err() {
            return reply(422, r#"{"message":"Data validation failed"}"#);
        }
        if let Some((_, reply)) = self.replies.get(&key) {
            return match self.habits.tells_anew {
                true => self.order(now, order),
                false => reply.clone(),
            };
        }
        if minor > PAID.saturating_sub(self.refunded(order, now)) {
            // A refusal made no transaction, so that the id is still free.
            return reply(422, r#"{"message":"Data validation failed"}"#);
        }
        let mut entry = self.taken(
            now,
            send,
            (order, minor),
            key.clone(),
            ["initiated", "timeout"],
        );
        entry.id.clone_from(&key);
        self.book(entry);
        let reply = self.order(now, order);
        self.replies.insert(key, (now, reply.clone()));
        reply
    }

    fn order(&self, now: i64, order: u64) -> Reply {
        let transactions = self.of_payment(order).map(|entry| transaction(entry, now));
        let transactions: String = transactions.collect();
        let body = format!(
            r#"{{"id":"{order}","currency":"SAR","amount":{PAID},"captured_amount":{PAID},"refunded_amount":{},"voided_amount":0,"transactions":[{{"id":"0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e","status":"approved","type":"capture","amount":{PAID}}}{transactions}]}}"#,
            self.refunded(order, now)
        );
        reply(200, body)
    }
}

fn transaction(entry: &Entry, now: i64) -> String {
    let status = match entry.state(now) {
        State::Open => entry.word,
        State::Moved => "approved",
        State::Failed => "failed",
    };
    let code = if entry.moves { "00" } else { "05" };
    format!(
        r#",{{"id":"{}","status":"{status}","type":"refund","message":"{}","response_code":"{code}","amount":{},"created_at":"{}"}}"#,
        entry.id,
        if entry.moves {
            "APPROVED"
        } else {
            "NOT APPROVED"
        },
        entry.minor,
        rfc3339(entry.at)
    )
}
