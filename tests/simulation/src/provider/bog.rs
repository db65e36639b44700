//! Bank of Georgia: every refund is taken and ends later; there is no word for one that is open.

use serde_json::Value;

use super::{Entry, PAID, Provider, Reply, Request, State, decimal, reply};
use crate::time::rfc3339;

pub(super) const REFUND: &str = "/payment/refund/";
const RECEIPT: &str = "/receipt/";

impl Provider {
    pub(super) fn bog(&mut self, now: i64, send: usize, request: &Request) -> Reply {
        let id_after = |begin| {
            let (_, id) = request.path.split_once(begin)?;
            id.parse().ok()
        };
        if let Some(order) = id_after(RECEIPT) {
            return self.details(now, order);
        }
        let Some(order) = id_after(REFUND) else {
            return reply(404, r#"{"message":"Not found"}"#);
        };
        let Some(key) = request.key.clone() else {
            return reply(400, r#"{"message":"Idempotency-Key is missing"}"#);
        };
        // "the server returning the same status code and response body"
        let place = format!("{order} {key}");
        if let Some((_, reply)) = self.replies.get(&place) {
            return reply.clone();
        }
        let reply = self.refund(now, send, order, key, &request.body);
        self.replies.insert(place, (now, reply.clone()));
        reply
    }

    fn refund(&mut self, now: i64, send: usize, order: u64, key: String, body: &[u8]) -> Reply {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let left = PAID.saturating_sub(self.refunded(order, now));
        let asked = match &body["amount"] {
            Value::Null => Some(left),
            amount => minor_units(&amount.to_string()),
        };
        match asked {
            None | Some(0) => reply(400, r#"{"message":"amount"}"#),
            Some(_) if left == 0 => reply(
                409,
                r#"{"key":"already_refunded","message":"Order is already refunded"}"#,
            ),
            Some(asked) if asked > left => {
                reply(400, r#"{"message":"The amount exceeds what is left"}"#)
            }
            Some(minor) => {
                let mut entry = self.taken(now, send, (order, minor), key, ["open"; 2]);
                entry.word = "open";
                entry.ends_at = now + self.dice.soon(1..self.habits.open_ms);
                entry.id = format!("{:08x}-0000-4000-8000-{order:012x}", self.ledger.len());
                let body = format!(
                    r#"{{"key":"request_received","message":"Refund request received","action_id":"{}"}}"#,
                    entry.id
                );
                self.book(entry);
                reply(200, body)
            }
        }
    }

    fn details(&self, now: i64, order: u64) -> Reply {
        let of_order = || self.of_payment(order);
        let open = of_order().any(|entry| entry.state(now) == State::Open);
        let moved: u64 = of_order()
            .filter(|entry| entry.state(now) == State::Moved)
            .map(|entry| entry.minor)
            .sum();
        let status = match moved {
            _ if open => "refund_requested",
            0 => "completed",
            PAID => "refunded",
            _ => "refunded_partially",
        };
        let ended: Vec<_> = of_order()
            .filter(|entry| entry.state(now) != State::Open)
            .map(action)
            .collect();
        let actions = match ended.is_empty() {
            true => "null".to_owned(),
            false => format!("[{}]", ended.join(",")),
        };
        let body = format!(
            r#"{{"order_id":"{order}","order_status":{{"key":"{status}"}},"purchase_units":{{"request_amount":"{}","transfer_amount":"{}","refund_amount":"{}","currency_code":"GEL"}},"actions":{actions}}}"#,
            decimal(PAID),
            decimal(PAID - moved),
            decimal(moved)
        );
        reply(200, body)
    }
}

fn action(entry: &Entry) -> String {
    let status = if entry.moves { "completed" } else { "rejected" };
    let whole = entry.minor == PAID;
    format!(
        r#"{{"action_id":"{}","action":"{}","request_channel":"public_api","status":"{status}","amount":"{}","code":"100","zoned_action_date":"{}"}}"#,
        entry.id,
        if whole { "refund" } else { "partial_refund" },
        entry.amount(),
        rfc3339(entry.ends_at)
    )
}

/// Minor units of a JSON number.
pub(super) fn minor_units(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 2 {
        return None;
    }
    format!("{whole}{decimals:0<2}").parse().ok()
}
