//! NAME, as its own pages show it.

use refund_filter::provider::NAME;

use super::{Counts, Fixture, Shown, header};

// TO BE WRITTEN: each member from the vendor's page. What it means stands at `Fixture`.
pub const FIXTURE: Fixture = Fixture {
    kind: &NAME::KIND,
    provider: r#"{"kind": "NAME", "base_url": "https://NAME.invalid",
        "api_key": {"inline": "CANARY-NAME-api-key"}}"#,
    secrets: &["CANARY-NAME-api-key"],
    payment: r#"{"id": "payment-1"}"#,
    currency: "EUR",
    counts: Counts::Minor,
    own_digits: &[],
    success: "{}",
    means: "succeeded",
    id: "",
    word: "/status",
    word_again: &[],
    only_name: None,
    pending: &[],
    declined: &[],
    needed: &["/status"],
    echoes: &[],
    refusal: r#"{"code": "@CODE@", "message": "@MESSAGE@"}"#,
    headers: &["idempotency-key"],
    sent_key: |dispatch| header(dispatch, "idempotency-key"),
    conflict_is_a_refusal: false,
    takes_full: false,
    needs_reason: false,
    keeps_keys: false,
    numeric_ids: false,
    authorization: Some("Bearer CANARY-NAME-api-key"),
    credential: "/api_key",
    configuration: &["/api_key", "/api_key/inline", "/api_key/x"],
    open: &[],
    another_merchant: ("/base_url", r#""https://another.invalid""#),
    disputed: &[],
    sends: |_, _| true,
    by_key: "same_key",
    by_id_alone: false,
    may_be_there: &[],
    declined_codes: &[],
    left_by_a_decline: &[],
    no_payment: (404, "{}"),
    shows,
    shown_as: "@KEY@",
    shown_done: "",
    shown_failed: None,
    shown_words: &[],
    shows_one: None,
    absent: None,
    shows_payment,
    paid: "",
    unpaid: &[],
    shows_left: true,
    state_is_a_word: true,
};

fn shows(_payment: &str, _currency: &str, _paid: u64, _refunds: &[Shown<'_>]) -> String {
    "{}".to_owned()
}

fn shows_payment(
    _payment: &str,
    _currency: &str,
    _paid: u64,
    _left: u64,
    _state: &str,
) -> String {
    "{}".to_owned()
}
