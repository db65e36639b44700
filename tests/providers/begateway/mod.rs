//! beGateway, as its own pages show it.

use refund_filter::provider::begateway;
use serde_json::json;

use super::{Counts, Fixture, Shown, header};

pub const FIXTURE: Fixture = Fixture {
    kind: &begateway::KIND,
    provider: r#"{"kind": "begateway", "base_url": "https://api.begateway.com", "shop_id": "361",
            "secret_key": {"inline": "CANARY-begateway-secret-key"}}"#,
    secrets: &["CANARY-begateway-secret-key"],
    payment: r#"{"id": "1-310b0da80b"}"#,
    currency: "USD",
    counts: Counts::Minor,
    own_digits: &[("IDR", 0), ("IQD", 0), ("CVE", 0), ("CLF", 0)],
    success: r#"{"transaction": {"uid": "2-310b0da80b", "parent_uid": "@PAYMENT@", "type": "refund",
            "status": "successful", "message": "The operation was successfully processed",
            "created_at": "2014-06-11T12:04:59+03:00", "amount": @AMOUNT@, "currency": "@CURRENCY@", "test": false,
            "refund": {"message": "ok", "ref_id": "8889999", "status": "successful"}}}"#,
    means: "succeeded",
    id: "2-310b0da80b",
    word: "/transaction/status",
    word_again: &["/transaction/refund/status"],
    only_name: Some("/transaction/parent_uid"),
    pending: &["pending", "incomplete"],
    declined: &["failed", "expired", "deleted"],
    needed: &["/transaction/status", "/transaction/uid"],
    echoes: &[
        ("/transaction/parent_uid", r#""1-another""#),
        ("/transaction/currency", r#""EUR""#),
        ("/transaction/amount", "1"),
    ],
    refusal: r#"{"response": {"code": "@CODE@", "message": "@MESSAGE@"}}"#,
    headers: &["requestid"],
    sent_key: |dispatch| header(dispatch, "requestid"),
    conflict_is_a_refusal: false,
    takes_full: true,
    needs_reason: true,
    keeps_keys: true,
    numeric_ids: false,
    // `printf '361:CANARY-begateway-secret-key' | base64`
    authorization: Some("Basic MzYxOkNBTkFSWS1iZWdhdGV3YXktc2VjcmV0LWtleQ=="),
    credential: "/secret_key",
    configuration: &["/secret_key", "/secret_key/inline", "/shop_id"],
    open: &["/shop_id"],
    another_merchant: ("/shop_id", r#""362""#),
    disputed: &[
        ("IRR", 2),
        ("KPW", 2),
        ("LAK", 2),
        ("LBP", 2),
        ("MMK", 2),
        ("MOP", 2),
        ("UGX", 0),
        ("UYW", 4),
    ],
    sends: |_, _| true,
    by_key: "same_key",
    by_id_alone: false,
    may_be_there: &[
        r#"{"code": "F.0108", "message": "duplicate"}"#,
        r#"{"response": {"error_code": "F.0108"}}"#,
        r#"{"transaction": {"status": "error"}}"#,
    ],
    declined_codes: &[],
    left_by_a_decline: &[],
    no_payment: (404, r#"{"message": "Not found."}"#),
    shows,
    shown_as: "@KEY@",
    shown_done: "successful",
    shown_failed: Some("failed"),
    shown_words: &[
        "/transactions/0/message",
        "/transactions/0/code",
        "/transactions/0/uid",
    ],
    shows_one: Some(|list, id| {
        let mut refund = list["transactions"][0].clone();
        refund["uid"] = json!(id);
        json!({ "transaction": refund })
    }),
    absent: Some(r#"{"transactions": []}"#),
    shows_payment,
    paid: "successful",
    unpaid: &[
        "failed",
        "pending",
        "incomplete",
        "expired",
        "deleted",
        "error",
    ],
    shows_left: false,
    state_is_a_word: true,
};

fn shows(payment: &str, currency: &str, _paid: u64, refunds: &[Shown<'_>]) -> String {
    let transactions = refunds.iter().map(|refund| {
        json!({
            "uid": refund.id, "parent_uid": payment, "type": "refund", "status": refund.status,
            "amount": refund.minor, "currency": currency, "tracking_id": refund.key,
        })
    });
    json!({"transactions": transactions.collect::<Vec<_>>()}).to_string()
}

fn shows_payment(payment: &str, currency: &str, paid: u64, _left: u64, state: &str) -> String {
    json!({"transaction": {
        "uid": payment, "type": "payment", "status": state, "amount": paid, "currency": currency,
    }})
    .to_string()
}
