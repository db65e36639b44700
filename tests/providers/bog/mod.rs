//! Bank of Georgia, as its own pages show it.

use refund_filter::provider::bog;
use serde_json::json;

use super::{Counts, Fixture, Shown, TOKEN, decimal, header};

pub const FIXTURE: Fixture = Fixture {
    kind: &bog::KIND,
    provider: r#"{"kind": "bog", "base_url": "https://api.bog.ge/payments/v1", "currencies": ["GEL", "JPY", "KWD", "USD", "EUR"], "token": {"cluster": "bog-token",
            "url": "https://oauth2.bog.ge/auth/realms/bog/protocol/openid-connect/token", "client_id": "10001",
            "client_secret": {"inline": "CANARY-bog-client-secret"}}}"#,
    secrets: &["CANARY-bog-client-secret", TOKEN],
    payment: r#"{"id": "ord-1"}"#,
    currency: "GEL",
    counts: Counts::Major,
    own_digits: &[],
    success: r#"{"key": "request_received", "message": "Refund request received",
            "action_id": "5b666901-eb05-4f83-abeb-8311e175f337"}"#,
    means: "pending",
    id: "5b666901-eb05-4f83-abeb-8311e175f337",
    word: "/key",
    word_again: &[],
    only_name: None,
    pending: &[],
    declined: &[],
    needed: &["/key"],
    echoes: &[],
    refusal: r#"{"error": "@CODE@", "message": "@MESSAGE@"}"#,
    headers: &["idempotency-key"],
    sent_key: |dispatch| header(dispatch, "idempotency-key"),
    conflict_is_a_refusal: true,
    takes_full: true,
    needs_reason: false,
    keeps_keys: false,
    numeric_ids: false,
    authorization: Some("Bearer CANARY-access-token"),
    credential: "/token/client_secret",
    configuration: &[
        "/token",
        "/token/client_secret",
        "/token/client_secret/inline",
        "/token/url",
        "/token/unknown",
    ],
    open: &[],
    another_merchant: ("/token/client_id", r#""another""#),
    disputed: &[],
    sends: |_, _| true,
    by_key: "same_key",
    by_id_alone: true,
    may_be_there: &[
        r#"{"key": "already_refunded"}"#,
        r#"{"message": "Order is ALREADY_REFUNDED"}"#,
        r#"{"key":"request_received"}"#,
    ],
    declined_codes: &[],
    left_by_a_decline: &[],
    no_payment: (404, r#"{"message": "Not found."}"#),
    shows,
    shown_as: "5b666901-eb05-4f83-abeb-8311e175f337",
    shown_done: "completed",
    shown_failed: Some("rejected"),
    shown_words: &[
        "/actions/0/code",
        "/actions/0/code_description",
        "/actions/0/zoned_action_date",
    ],
    shows_one: None,
    absent: None,
    shows_payment,
    paid: "completed",
    unpaid: &[
        "created",
        "processing",
        "rejected",
        "auth_requested",
        "blocked",
        "refunded",
    ],
    shows_left: true,
    state_is_a_word: true,
};

fn shows(payment: &str, currency: &str, _paid: u64, refunds: &[Shown<'_>]) -> String {
    let done = refunds.iter().any(|refund| refund.status == "completed");
    let actions = refunds.iter().map(|refund| {
        json!({
            "action_id": refund.id, "action": "partial_refund", "status": refund.status,
            "amount": decimal(refund.minor),
        })
    });
    json!({
        "order_id": payment,
        "order_status": {"key": if done { "refunded_partially" } else { "completed" }},
        "purchase_units": {"currency_code": currency},
        "actions": actions.collect::<Vec<_>>(),
    })
    .to_string()
}

fn shows_payment(payment: &str, currency: &str, paid: u64, left: u64, state: &str) -> String {
    json!({
        "order_id": payment, "order_status": {"key": state},
        "purchase_units": {
            "request_amount": decimal(paid), "transfer_amount": decimal(left),
            "refund_amount": decimal(paid - left), "currency_code": currency,
        },
        "actions": null,
    })
    .to_string()
}
