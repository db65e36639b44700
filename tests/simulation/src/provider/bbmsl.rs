//! BBMSL: no keys, and one refund of an order. Its query shows what is left, and no refund.

use serde_json::Value;

use super::bog::minor_units;
use super::{Entry, PAID, Provider, Reply, Request, State, decimal, reply};

pub(super) const REFUND: &str = "/hosted-checkout/refund";

impl Provider {
    pub(super) fn bbmsl(&mut self, now: i64, send: usize, request: &Request) -> Reply {
        let outer: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let text = outer["request"].as_str().unwrap_or_default();
        if outer["signature"].as_str().unwrap_or_default().is_empty() {
            return reply(
                401,
                r#"{"responseCode":"9002","message":"Invalid signature"}"#,
            );
        }
        let inner: Value = serde_json::from_str(text).unwrap_or_default();
        let Some(order) = inner["orderId"].as_u64() else {
            return reply(
                200,
                r#"{"responseCode":"9004","message":"Order not found"}"#,
            );
        };
        if request.path != REFUND {
            let order = self.paid(order, now);
            return reply(
                200,
                format!(r#"{{"responseCode":"0000","message":"Success","order":{order}}}"#),
            );
        }
        // "Refund ... can only be performed once per order."
        let refunded = self.refunded(order, now);
        if refunded > 0 && (self.habits.refuses_a_second || refunded == PAID) {
            return reply(
                200,
                r#"{"responseCode":"9005","message":"The order was refunded before"}"#,
            );
        }
        let asked = minor_units(&inner["amount"].to_string());
        let Some(minor) = asked.filter(|minor| (1..=PAID - refunded).contains(minor)) else {
            return reply(
                200,
                r#"{"responseCode":"9006","message":"The amount exceeds the order's"}"#,
            );
        };
        let mut entry = self.taken(now, send, (order, minor), String::new(), ["", "PROCESSING"]);
        // There is no refund that is open: its end is known at once, and a word is missing.
        entry.ends_at = now;
        entry.id = (3_758 + self.ledger.len()).to_string();
        let answer = self.transact(entry, now);
        reply(200, answer)
    }

    fn transact(&mut self, entry: Entry, now: i64) -> String {
        let status = match (entry.word, entry.moves) {
            ("", true) => "SUCCESS",
            ("", false) => "DECLINED",
            (word, _) => word,
        };
        let (order, id) = (entry.payment, entry.id.clone());
        let amount = entry.amount();
        if entry.state(now) == State::Moved {
            self.book(entry);
        }
        format!(
            r#"{{"responseCode":"0000","message":"Success","order":{},"transaction":{{"id":{id},"merchantId":3,"type":"REFUND","amount":{amount},"currency":"HKD","status":"{status}"}}}}"#,
            self.paid(order, now)
        )
    }

    fn paid(&self, order: u64, now: i64) -> String {
        let refunded = self.refunded(order, now);
        format!(
            r#"{{"id":{order},"merchantId":3,"merchantReference":"order-{order}","currency":"HKD","amount":{},"netAmount":{},"status":"{}"}}"#,
            decimal(PAID),
            decimal(PAID - refunded),
            if refunded == 0 { "SUCCESS" } else { "REFUNDED" }
        )
    }
}
