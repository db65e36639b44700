//! Moyasar, as its own pages show it.

use refund_filter::provider::moyasar;
use serde_json::{Value, json};

use super::{Counts, Fixture, Shown};

pub const FIXTURE: Fixture = Fixture {
    kind: &moyasar::KIND,
    provider: r#"{"kind": "moyasar", "base_url": "https://pg.moyasar.com",
            "api_key": {"inline": "CANARY-moyasar-api-key"}}"#,
    secrets: &["CANARY-moyasar-api-key"],
    payment: r#"{"id": "0191f5a7-44a9-76c2-9fec-39709fdbf723"}"#,
    currency: "SAR",
    counts: Counts::Minor,
    own_digits: &[],
    success: r#"{"id": "@PAYMENT@", "currency": "@CURRENCY@", "amount": 262346, "refunded_amount": 262346,
            "source": {"type": "card", "issuer": null}, "transactions": [
            {"id": "0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e", "status": "approved", "type": "capture", "amount": 262346},
            {"id": "@KEY@", "status": "approved", "type": "refund", "message": "APPROVED", "response_code": "00",
             "auth_code": null, "amount": @AMOUNT@, "refunded_amount": 0, "created_at": "2024-09-15T12:27:45Z"}]}"#,
    means: "succeeded",
    id: "@KEY@",
    word: "/transactions/1/status",
    word_again: &[],
    only_name: None,
    pending: &["initiated"],
    declined: &["failed"],
    needed: &[
        "/transactions/1/status",
        "/transactions/1/type",
        "/transactions/1/id",
    ],
    echoes: &[
        ("/id", r#""another-order""#),
        ("/currency", r#""USD""#),
        ("/transactions/1/amount", "1"),
    ],
    refusal: r#"{"message": "@CODE@ @MESSAGE@"}"#,
    headers: &[],
    sent_key: |dispatch| {
        let body: Value = serde_json::from_str(&dispatch.body).unwrap();
        body["transaction_id"].as_str().map(str::to_owned)
    },
    conflict_is_a_refusal: false,
    takes_full: false,
    needs_reason: false,
    keeps_keys: false,
    numeric_ids: false,
    authorization: Some("Bearer CANARY-moyasar-api-key"),
    credential: "/api_key",
    configuration: &["/api_key", "/api_key/inline", "/api_key/x"],
    open: &[],
    another_merchant: ("/base_url", r#""https://pg.mysr.dev""#),
    disputed: &[],
    sends: |minor, _| minor <= 100_000_000,
    by_key: "same_key",
    by_id_alone: false,
    may_be_there: &[r#"{"message": "Initial request is still processing."}"#],
    declined_codes: &[],
    left_by_a_decline: &[],
    no_payment: (404, r#"{"message": "Not found."}"#),
    shows,
    shown_as: "@KEY@",
    shown_done: "approved",
    shown_failed: Some("failed"),
    shown_words: &[
        "/transactions/0/message",
        "/transactions/0/response_code",
        "/transactions/0/created_at",
    ],
    shows_one: None,
    absent: None,
    shows_payment,
    paid: "captured",
    unpaid: &["authorized", "voided"],
    shows_left: true,
    state_is_a_word: false,
};

fn shows(payment: &str, currency: &str, paid: u64, refunds: &[Shown<'_>]) -> String {
    let transactions = refunds.iter().map(|refund| {
        json!({"id": refund.key, "type": "refund", "status": refund.status, "amount": refund.minor})
    });
    json!({
        "id": payment, "currency": currency, "amount": paid,
        "transactions": transactions.collect::<Vec<_>>(),
    })
    .to_string()
}

fn shows_payment(payment: &str, currency: &str, paid: u64, left: u64, state: &str) -> String {
    let captured = if state == "captured" { paid } else { 0 };
    let voided = if state == "voided" { paid } else { 0 };
    json!({
        "id": payment, "currency": currency, "amount": paid, "captured_amount": captured,
        "refunded_amount": captured.saturating_sub(left), "voided_amount": voided, "transactions": [],
    })
    .to_string()
}
