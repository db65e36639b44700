//! BBMSL, as its own pages show it.

use refund_filter::provider::bbmsl;

use super::{Counts, Fixture, Shown, decimal};

pub const FIXTURE: Fixture = Fixture {
    kind: &bbmsl::KIND,
    provider: r#"{"kind": "bbmsl", "base_url": "https://payapi.prod.bbmsl.com", "merchant_id": 3,
            "declined_codes": ["2002"],
            "signing": {"keys": [{"id": "2026-11", "private_key": {"inline": "@private_key.pem"}}]}}"#,
    secrets: &[],
    payment: r#"{"id": "4922", "reference": "1655817171"}"#,
    currency: "HKD",
    counts: Counts::Major,
    own_digits: &[],
    success: r#"{"responseCode": "0000", "order": {"id": @PAYMENT@, "merchantId": 3, "merchantReference": "1655817171",
            "currency": "@CURRENCY@", "amount": 15.00, "netAmount": 5.00, "cardType": "VISA", "email": "",
            "status": "REFUNDED", "recurring": false}, "transaction": {"id": 3758, "merchantId": 3, "type": "REFUND",
            "amount": @AMOUNT@, "currency": "@CURRENCY@", "status": "SUCCESS", "maskedPan": "400000XXXXXX0028"}}"#,
    means: "succeeded",
    id: "3758",
    word: "/transaction/status",
    word_again: &[],
    only_name: None,
    pending: &[],
    declined: &["DECLINED"],
    needed: &["/responseCode", "/transaction/status", "/transaction/id"],
    echoes: &[
        ("/order/id", "4923"),
        ("/order/merchantReference", r#""another""#),
        ("/transaction/currency", r#""USD""#),
        ("/transaction/amount", "0.01"),
    ],
    refusal: r#"{"responseCode": "@CODE@", "message": "@MESSAGE@"}"#,
    headers: &[],
    sent_key: |_| None,
    conflict_is_a_refusal: false,
    takes_full: false,
    needs_reason: false,
    keeps_keys: false,
    numeric_ids: true,
    authorization: None,
    credential: "/signing/keys/0/private_key",
    configuration: &[
        "/signing",
        "/signing/keys",
        "/signing/keys/0",
        "/signing/keys/0/private_key",
        "/signing/keys/0/private_key/inline",
        "/signing/keys/0/not_before",
        "/signing/keys/0/not_after",
        "/signing/keys/0/unknown",
        "/signing/unknown",
    ],
    open: &[],
    another_merchant: ("/merchant_id", "4"),
    disputed: &[],
    sends: |_, value| {
        let (whole, decimals) = value.split_once('.').unwrap_or((value, ""));
        whole.len() <= 7 && decimals.trim_end_matches('0').len() <= 2
    },
    by_key: "look_up",
    by_id_alone: false,
    may_be_there: &[
        r#"{"responseCode": "9005", "message": "The order was refunded before"}"#,
        r#"{"message": "Order refunded already"}"#,
        "order already refunded",
        r#"{"responseCode": ""#,
    ],
    declined_codes: &["2002"],
    left_by_a_decline: &[("/order/netAmount", "/order/amount")],
    no_payment: (
        200,
        r#"{"responseCode": "9004", "message": "Order not found"}"#,
    ),
    shows,
    shown_as: "1",
    shown_done: "REFUNDED",
    shown_failed: None,
    shown_words: &["/message"],
    shows_one: None,
    absent: Some(
        r#"{"responseCode":"0000","order":{"id":4922,"currency":"HKD","amount":15.00,"netAmount":15.00,"status":"SUCCESS"}}"#,
    ),
    shows_payment,
    paid: "SUCCESS",
    unpaid: &["OPEN", "VOIDED", "CLOSED"],
    shows_left: false,
    state_is_a_word: true,
};

fn shows(payment: &str, currency: &str, paid: u64, refunds: &[Shown<'_>]) -> String {
    let all: u64 = refunds.iter().map(|refund| refund.minor).sum();
    let state = refunds.last().map_or("SUCCESS", |refund| refund.status);
    shows_payment(payment, currency, paid, paid.saturating_sub(all), state)
}

/// As the vendor writes amounts: not as a float would.
fn shows_payment(payment: &str, currency: &str, paid: u64, left: u64, state: &str) -> String {
    let reference = match payment {
        "4922" => r#""merchantReference":"1655817171","#,
        _ => "",
    };
    let (paid, left) = (decimal(paid), decimal(left));
    format!(
        r#"{{"responseCode":"0000","message":"Success","order":{{"id":{payment},{reference}"currency":"{currency}","amount":{paid},"netAmount":{left},"status":"{state}"}}}}"#
    )
}
