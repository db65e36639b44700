//! The providers through real Envoy and TLS: what each is sent, what is booked, and what every
//! reply of theirs becomes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{FOUR, Problem, assert_problem, currency, keyed, of, plugin, taken, unknown};
use gateway_testbed::{Answer, Gateway, Options, route_mut};
use provider_simulator::orders::{Behaviour, find, fresh, known};
use provider_simulator::{Ends, Exchange, Fault, Provider, Refunded, Refusal, Replies, Reply};
use serde_json::{Value, json};
use uuid::Uuid;

use Provider::{Bbmsl, Begateway, Bog, Moyasar};

const DECLINED: Problem = Problem::certain("refund-declined", 422);
const REJECTED: Problem = Problem::certain("provider-rejected", 422);
const NOT_FOUND: Problem = Problem::certain("payment-not-found", 404);
const AUTH_FAILED: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("provider-auth-failed", 502)
};
const RATE_LIMITED: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("provider-rate-limited", 503)
};
/// A refusal that can mean that the refund is there already.
const MAY_BE_THERE: Problem = Problem {
    outcome: "unknown",
    retry: "look_up",
    ..REJECTED
};
/// Another key's refund of the payment, at a provider that refunds a payment once.
const HAS_REFUND: Problem = Problem::certain("payment-has-refund", 409);
const MISMATCH: Problem = Problem {
    outcome: "unknown",
    retry: "look_up",
    ..Problem::certain("provider-reply-mismatch", 502)
};

fn failed(provider: Provider) -> Problem {
    unknown(provider, "provider-error", 502)
}

fn unreadable(provider: Provider) -> Problem {
    unknown(provider, "provider-reply-unreadable", 502)
}

async fn start() -> Gateway {
    Gateway::start(Options::default()).await.expect("a gateway")
}

fn name(provider: Provider) -> &'static str {
    gateway_testbed::cluster(provider)
}

fn call(provider: Provider, id: &str, amount: Value) -> Value {
    json!({"provider": name(provider), "payment": {"id": id}, "amount": amount})
}

fn money(value: &str, currency: &str) -> Value {
    json!({"value": value, "currency": currency})
}

fn one(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

/// Calls under a key of its own.
async fn refund(gateway: &Gateway, body: &Value) -> Answer {
    refund_as(gateway, &Uuid::new_v4().to_string(), body).await
}

async fn refund_as(gateway: &Gateway, key: &str, body: &Value) -> Answer {
    gateway.refund(key, body).await.expect("an answer")
}

fn ledger(gateway: &Gateway, provider: Provider) -> Vec<Refunded> {
    gateway.simulators.ledger(provider)
}

fn last(gateway: &Gateway, provider: Provider) -> Exchange {
    gateway
        .simulators
        .requests(provider)
        .pop()
        .expect("an exchange")
}

fn sent(gateway: &Gateway, provider: Provider) -> String {
    String::from_utf8(last(gateway, provider).request.body).expect("text")
}

fn reply(gateway: &Gateway, provider: Provider) -> Value {
    let reply = last(gateway, provider).reply.expect("a reply");
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

fn reply_with(gateway: &Gateway, provider: Provider, reply: Reply) {
    let booked = false;
    gateway
        .simulators
        .next_fault(provider, Fault::Reply { reply, booked });
}

/// A problem, and the provider's own words in it.
#[track_caller]
fn assert_refused(
    case: &str,
    answer: &Answer,
    provider: Provider,
    expected: Problem,
    status: u16,
    (code, message): (Option<&str>, Option<&str>),
) {
    assert_problem(case, answer, expected);
    let mut word = json!({"name": name(provider), "status": status});
    for (name, text) in [("code", code), ("message", message)] {
        if let Some(text) = text {
            word[name] = json!(text);
        }
    }
    // What it says of single fields has a test of its own.
    let mut said = answer.body["provider"].clone();
    if let Some(said) = said.as_object_mut() {
        said.remove("errors");
    }
    assert_eq!(said, word, "{case}");
    let until = provider.declared().keeps_keys && expected.retry == "same_key";
    assert_eq!(
        answer.body.get("retry_until").is_some(),
        until,
        "{case}: {}",
        answer.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_is_booked_once_and_answered_in_the_providers_own_words() {
    let gateway = start().await;
    for provider in FOUR {
        let ((status, word), (code, message)) = (taken(provider), provider.declared().replies.said);
        let mut body = one(provider, 1);
        body["amount"]["value"] = json!("10.5");
        body["payment"]["reference"] = json!(format!("order-{}", fresh(provider, 1)));
        body["reason"] = json!("returned goods");
        body["reference"] = json!("refund-77");
        let key = Uuid::new_v4().to_string();
        let answer = refund_as(&gateway, &key, &body).await;

        let [booked] = &ledger(&gateway, provider)[..] else {
            panic!("{provider:?}: {:?}", ledger(&gateway, provider));
        };
        let Refunded {
            payment,
            minor_units,
            currency,
            key: arrived,
            refund,
            ..
        } = booked;
        assert_eq!(*payment, fresh(provider, 1));
        assert_eq!(
            (*minor_units, *currency),
            (1050, body["amount"]["currency"].as_str().expect("a code"))
        );
        assert_eq!(arrived.as_deref(), provider.has_keys().then_some(&*key));

        let mut expected = body.clone();
        expected["amount"]["value"] = json!("10.50");
        expected["id"] = json!(refund);
        expected["status"] = json!(word);
        expected["provider_message"] = json!(message);
        if let Some(code) = code {
            expected["provider_code"] = json!(code);
        }
        let reply = reply(&gateway, provider);
        if let Some(time) = provider.declared().replies.time {
            let time = reply.pointer(time).expect("a time");
            expected["created_at"] = time.clone();
        }
        assert_eq!(
            (answer.status, &answer.body),
            (status, &expected),
            "{provider:?}"
        );
        assert_eq!(answer.header("content-type"), "application/json");
    }
}

/// The problem of a refusal.
fn refused(provider: Provider, refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::Rejected => REJECTED,
        Refusal::Declined => DECLINED,
        Refusal::There => MAY_BE_THERE,
        Refusal::Forbidden => AUTH_FAILED,
        Refusal::Failed => failed(provider),
        Refusal::Unreadable => unreadable(provider),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_known_order_ends_as_its_provider_says() {
    // BOG is sent no currency, so each that its orders are in must be listed.
    let options = Options::changed(|config| {
        plugin(config, |plugin| {
            plugin["providers"]["bog"]["currencies"] = json!(["GEL", "KWD", "JPY", "EUR"]);
        });
    });
    let gateway = Gateway::start(options).await.expect("a gateway");
    for order in known() {
        let (provider, case) = (
            order.provider,
            format!("{:?} {}", order.provider, order.name),
        );
        // In each currency's own decimals, the answer with all of them. BBMSL takes two at most.
        let (value, answered, minor_units) = match order.exponent {
            0 => ("150", "150", 150),
            3 => ("1.23", "1.230", 1230),
            _ => ("10.5", "10.50", 1050),
        };
        let before = ledger(&gateway, provider).len();
        let answer = refund(
            &gateway,
            &call(provider, &order.id, money(value, order.currency)),
        )
        .await;

        let ends = (provider.declared().ends)(order.name);
        match ends.unwrap_or_else(|| panic!("{case} is not in its provider's table")) {
            Ends::Refused(refusal, status, code, message) => {
                let problem = refused(provider, &refusal);
                assert_refused(&case, &answer, provider, problem, status, (code, message));
            }
            Ends::Succeeded => assert_eq!(
                (answer.status, &answer.body["status"]),
                (200, &json!("succeeded")),
                "{case}: {answer:?}"
            ),
            Ends::Pending => assert_eq!(
                (answer.status, &answer.body["status"]),
                (202, &json!("pending")),
                "{case}: {answer:?}"
            ),
        }
        let booked = &ledger(&gateway, provider)[before..];
        let refunds = matches!(
            order.behaviour,
            Behaviour::Succeeds | Behaviour::Older | Behaviour::Answers { booked: true, .. }
        );
        assert_eq!(booked.len(), usize::from(refunds), "{case}");
        for entry in booked {
            assert_eq!(entry.payment, order.id, "{case}");
            assert_eq!(
                (entry.minor_units, entry.currency),
                (minor_units, order.currency),
                "{case}"
            );
        }
        if answer.status < 300 {
            assert_eq!(
                answer.body["amount"],
                money(answered, order.currency),
                "{case}"
            );
            assert_eq!(answer.body["id"], json!(booked[0].refund), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_refund_is_of_all_that_is_left() {
    let gateway = start().await;
    let full = || json!("full");
    // BOG never says how much, beGateway does, its older deployments not in which currency.
    for (provider, id, first, left, told) in [
        (Bog, "order-1", None, 10_000, full()),
        (Bog, "order-2", Some("40.00"), 6_000, full()),
        (Bog, "bog-authorization", None, 10_000, full()),
        (Bog, "bog-card-kwd", None, 12_345, full()),
        (Begateway, "order-1", None, 10_000, money("100.00", "USD")),
        (
            Begateway,
            "order-2",
            Some("40.00"),
            6_000,
            money("60.00", "USD"),
        ),
        (Begateway, "1-kwd", None, 12_345, money("12.345", "KWD")),
        (Begateway, "1-jpy", None, 1_500, money("1500", "JPY")),
        (Begateway, "1-older", None, 10_000, full()),
    ] {
        if let Some(value) = first {
            let part = money(value, currency(provider));
            let part = refund(&gateway, &call(provider, id, part)).await;
            assert!(part.status < 300, "{part:?}");
        }
        let answer = refund(&gateway, &call(provider, id, full())).await;
        assert!(answer.status < 300, "{provider:?} {id}: {answer:?}");
        assert_eq!(answer.body["amount"], told, "{provider:?} {id}");
        let booked = ledger(&gateway, provider).pop().expect("a refund");
        assert_eq!((booked.payment.as_str(), booked.minor_units), (id, left));
        let sent: Value = serde_json::from_str(&sent(&gateway, provider)).expect("JSON");
        if provider == Bog {
            assert_eq!(sent, json!({}));
        } else {
            assert_eq!(sent["request"].get("amount"), None, "{sent}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_sent_its_own_format() {
    let gateway = start().await;
    let page = |provider| find(provider, "page").expect("the page's order").id.clone();

    let encoded = &find(Bog, "encoded").expect("an order").id;
    refund(&gateway, &call(Bog, encoded, money("10.50", "GEL"))).await;
    assert_eq!(sent(&gateway, Bog), r#"{"amount":10.5}"#);
    let path = last(&gateway, Bog).request.path;
    assert_eq!(path, "/payments/v1/payment/refund/ord%2F1%20x");

    let key = Uuid::new_v4();
    let body = call(Moyasar, &page(Moyasar), money("10.50", "SAR"));
    refund_as(&gateway, &key.to_string(), &body).await;
    let expected = format!(r#"{{"amount":1050,"transaction_id":"{key}"}}"#);
    assert_eq!(sent(&gateway, Moyasar), expected);
    assert_eq!(
        last(&gateway, Moyasar).request.path,
        format!("/v1/orders/{}/refund", page(Moyasar))
    );

    let mut body = call(Begateway, &page(Begateway), money("10.50", "USD"));
    let key = Uuid::new_v4();
    refund_as(&gateway, &key.to_string(), &body).await;
    let mut expected = json!({
        "parent_uid": page(Begateway), "reason": "refund", "amount": 1050, "tracking_id": key.to_string(),
    });
    let request = || serde_json::from_str::<Value>(&sent(&gateway, Begateway)).expect("JSON");
    assert_eq!(request(), json!({"request": expected}));

    body["reason"] = json!("returned");
    body["reference"] = json!("refund-77");
    let key = Uuid::new_v4();
    refund_as(&gateway, &key.to_string(), &body).await;
    expected["reason"] = json!("returned");
    expected["tracking_id"] = json!(format!("refund-77;{key}"));
    assert_eq!(request(), json!({"request": expected}));
}

#[tokio::test(flavor = "multi_thread")]
async fn bbmsl_gets_a_signed_text_and_takes_an_order_by_id_by_reference_or_by_both() {
    let gateway = start().await;
    for (nth, (payment, value, text)) in [
        (json!({"id": "1000001"}), "10.00", r#"{"merchantId":3,"orderId":1000001,"amount":10}"#),
        (
            json!({"reference": "order-1000002"}),
            "10.50",
            r#"{"merchantId":3,"merchantReference":"order-1000002","amount":10.5}"#,
        ),
        (
            json!({"id": "1000003", "reference": "order-1000003"}),
            "0.01",
            r#"{"merchantId":3,"orderId":1000003,"merchantReference":"order-1000003","amount":0.01}"#,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({"provider": "bbmsl", "payment": payment, "amount": money(value, "HKD")});
        let answer = refund(&gateway, &body).await;
        // The simulator takes no other signature than the one of these bytes.
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["payment"], payment);
        assert_eq!(ledger(&gateway, Bbmsl).len(), nth + 1);
        let outer: Value = serde_json::from_str(&sent(&gateway, Bbmsl)).expect("JSON");
        assert_eq!(outer["request"], text);
        assert_eq!(outer.as_object().map(serde_json::Map::len), Some(2));
    }
    // Two different orders are none.
    let both = json!({"id": "1000004", "reference": "order-1000005"});
    let body = json!({"provider": "bbmsl", "payment": both, "amount": money("1.00", "HKD")});
    let answer = refund(&gateway, &body).await;
    let word = (Some("9004"), Some("Order not found"));
    assert_refused("two orders", &answer, Bbmsl, MAY_BE_THERE, 200, word);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_payment_is_not_found_where_the_provider_says_so() {
    let gateway = start().await;
    for (provider, id, expected, status, word) in [
        (
            Bog,
            "no-such-order",
            NOT_FOUND,
            404,
            (None, Some("Order not found")),
        ),
        (
            Moyasar,
            "no-such-order",
            NOT_FOUND,
            404,
            (None, Some("Order not found")),
        ),
        (
            Begateway,
            "no-such-order",
            NOT_FOUND,
            404,
            (None, Some("Not found.")),
        ),
        // No table of its codes is published.
        (
            Bbmsl,
            "5",
            MAY_BE_THERE,
            200,
            (Some("9004"), Some("Order not found")),
        ),
    ] {
        let body = call(provider, id, one(provider, 1)["amount"].clone());
        let answer = refund(&gateway, &body).await;
        assert_refused(id, &answer, provider, expected, status, word);
        assert_eq!(ledger(&gateway, provider), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_bbmsl_that_is_configured_as_declined_is_a_plain_refusal() {
    let options = Options::changed(|config| {
        plugin(config, |plugin| {
            plugin["providers"]["bbmsl"]["declined_codes"] = json!(["9007"])
        });
    });
    let gateway = Gateway::start(options).await.expect("a gateway");
    for (name, expected, word) in [
        (
            "refused",
            DECLINED,
            (Some("9007"), Some("Insufficient unsettled balance")),
        ),
        (
            "already-refunded",
            MAY_BE_THERE,
            (Some("9005"), Some("The order was refunded before")),
        ),
    ] {
        let id = &find(Bbmsl, name).expect("an order").id;
        let answer = refund(&gateway, &call(Bbmsl, id, money("1.00", "HKD"))).await;
        assert_refused(name, &answer, Bbmsl, expected, 200, word);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_again_refunds_nothing_more_and_says_the_same() {
    let gateway = start().await;
    for provider in keyed() {
        let (key, other) = (format!("{provider:?}-1"), format!("{provider:?}-2"));
        let first = refund_as(&gateway, &key, &one(provider, 1)).await;
        let again = refund_as(&gateway, &key, &one(provider, 1)).await;
        assert!(first.status < 300, "{first:?}");
        assert_eq!(
            (first.status, first.text),
            (again.status, again.text),
            "{provider:?}"
        );
        assert_eq!(ledger(&gateway, provider).len(), 1, "{provider:?}");
        // Another key is another refund.
        let other = refund_as(&gateway, &other, &one(provider, 1)).await;
        assert!(other.status < 300, "{other:?}");
        assert_eq!(ledger(&gateway, provider).len(), 2, "{provider:?}");
    }
    // BBMSL knows no keys; the gateway does.
    let first = refund_as(&gateway, "bbmsl-1", &one(Bbmsl, 1)).await;
    let again = refund_as(&gateway, "bbmsl-1", &one(Bbmsl, 1)).await;
    assert_eq!((first.status, &first.text), (200, &again.text), "{again:?}");
    // With another key it is another call, and an order is refunded once.
    let other = refund_as(&gateway, "bbmsl-2", &one(Bbmsl, 1)).await;
    assert_problem("another key", &other, HAS_REFUND);
    assert_eq!(gateway.simulators.received(Bbmsl), 1);
    assert_eq!(ledger(&gateway, Bbmsl).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_in_flight_is_in_progress_until_the_first_send_ends() {
    let gateway = start().await;
    let simulators = &gateway.simulators;
    let wait = Duration::from_secs(2);
    simulators.next_fault(Moyasar, Fault::Delay(wait));
    let arrived = async {
        for _ in 0..2_000 {
            if simulators
                .last_request(Moyasar)
                .is_some_and(|request| !request.body.is_empty())
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the first send did not arrive");
    };
    let body = one(Moyasar, 1);
    let (first, second) = tokio::join!(refund_as(&gateway, "k-1", &body), async {
        arrived.await;
        refund_as(&gateway, "k-1", &body).await
    });
    assert_eq!(first.status, 200, "{first:?}");
    let expected = Problem {
        outcome: "unknown",
        retry: "same_key",
        ..Problem::certain("refund-in-progress", 409)
    };
    assert_problem("the second send", &second, expected);
    let third = refund_as(&gateway, "k-1", &body).await;
    assert_eq!((third.status, third.text), (200, first.text));
    assert_eq!(ledger(&gateway, Moyasar).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_echoes_another_refund_is_not_believed() {
    let gateway = start().await;
    for (nth, (provider, pointer, value)) in (1..).zip([
        (Moyasar, "/id", r#""0191f5a7-44d3-7430-8739-2d80821416bf""#),
        (Moyasar, "/currency", r#""USD""#),
        (Moyasar, "/transactions/1/amount", "101"),
        (Moyasar, "/transactions/1/amount", "100.5"),
        (Begateway, "/transaction/parent_uid", r#""order-999""#),
        (Begateway, "/transaction/currency", r#""EUR""#),
        (Begateway, "/transaction/amount", "99"),
        (Bbmsl, "/order/id", "4922"),
        (Bbmsl, "/order/merchantReference", r#""1655817171""#),
        (Bbmsl, "/transaction/currency", r#""USD""#),
        (Bbmsl, "/transaction/amount", "1.01"),
        (Bbmsl, "/transaction/amount", "100"),
    ]) {
        let fault = Fault::Altered {
            pointer: pointer.into(),
            value: Some(value.into()),
        };
        gateway.simulators.next_fault(provider, fault);
        let mut body = one(provider, nth);
        if provider == Bbmsl {
            body["payment"]["reference"] = json!(format!("order-{}", fresh(provider, nth)));
        }
        let before = ledger(&gateway, provider).len();
        let answer = refund(&gateway, &body).await;
        assert_problem(
            &format!("{provider:?} {pointer} {value}"),
            &answer,
            MISMATCH,
        );
        assert_eq!(ledger(&gateway, provider).len(), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_does_not_echo_is_the_callers_word() {
    let gateway = start().await;
    for (nth, (provider, pointer, value)) in (1..).zip([
        (Moyasar, "/currency", None),
        (Moyasar, "/transactions/1/amount", None),
        (Moyasar, "/id", None),
        (Begateway, "/transaction/currency", None),
        (Begateway, "/transaction/amount", None),
        (Begateway, "/transaction/parent_uid", None),
        (Bbmsl, "/transaction/currency", None),
        (Bbmsl, "/transaction/amount", None),
        // The same amount in other digits.
        (Bbmsl, "/transaction/amount", Some("1.00")),
        (Bbmsl, "/transaction/amount", Some("1.0")),
    ]) {
        let fault = Fault::Altered {
            pointer: pointer.into(),
            value: value.map(str::to_owned),
        };
        gateway.simulators.next_fault(provider, fault);
        let body = one(provider, nth);
        let answer = refund(&gateway, &body).await;
        assert_eq!(answer.status, 200, "{provider:?} {pointer}: {answer:?}");
        assert_eq!(
            answer.body["amount"], body["amount"],
            "{provider:?} {pointer}"
        );
        assert_eq!(
            answer.body["payment"], body["payment"],
            "{provider:?} {pointer}"
        );
    }
}

/// What a status alone means.
fn by_status(provider: Provider, status: u16) -> Problem {
    let replies = &provider.declared().replies;
    match status {
        // Then no refusal is certain, but one of calling.
        400 | 402 | 404 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431
            if !replies.lists_refusals =>
        {
            MAY_BE_THERE
        }
        402 => DECLINED,
        400 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431 => REJECTED,
        404 => NOT_FOUND,
        401 | 403 => AUTH_FAILED,
        429 => RATE_LIMITED,
        409 if replies.conflict_is_there => MAY_BE_THERE,
        200..300 => unreadable(provider),
        _ => failed(provider),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_means_the_same_at_every_provider() {
    let gateway = start().await;
    let statuses = [200, 201, 202, 203, 204, 205, 206, 226]
        .into_iter()
        .chain([300, 301, 302, 303, 304, 305, 307, 308])
        .chain(400..=432)
        .chain([451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 520, 599]);
    for (nth, status) in (1..).zip(statuses) {
        for provider in FOUR {
            let has_no_body = matches!(status, 204 | 205 | 304);
            let body = if has_no_body { "" } else { "{}" };
            reply_with(&gateway, provider, Reply::json(status, body));
            let before = gateway.simulators.received(provider);
            let answer = refund(&gateway, &one(provider, nth)).await;
            let case = format!("{provider:?} {status}");
            let expected = by_status(provider, status);
            assert_refused(&case, &answer, provider, expected, status, (None, None));
            assert_eq!(answer.header("retry-after"), "", "{case}");
            assert_eq!(gateway.simulators.received(provider), before + 1, "{case}");
        }
    }
    for provider in FOUR {
        assert_eq!(ledger(&gateway, provider), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_wants_fewer_calls_says_for_how_long() {
    let gateway = start().await;
    for provider in FOUR {
        for after in ["17", "0", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            let mut reply = Reply::json(429, r#"{"message":"Too many requests"}"#);
            reply.headers.push((b"retry-after".to_vec(), after.into()));
            reply_with(&gateway, provider, reply);
            let answer = refund(&gateway, &one(provider, 1)).await;
            let word = (None, Some("Too many requests"));
            assert_refused(after, &answer, provider, RATE_LIMITED, 429, word);
            assert_eq!(answer.header("retry-after"), after, "{provider:?}");
        }
        // It was no refund, so the same call is good later.
        let answer = refund(&gateway, &one(provider, 1)).await;
        assert!(answer.status < 300, "{provider:?}: {answer:?}");
    }
}

/// Seconds since 1970 of `2026-11-22T08:00:00Z`.
fn unix_seconds(text: &str) -> i64 {
    let part = |from: usize, to: usize| text[from..to].parse::<i64>().expect("digits");
    assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
    let (year, month, day) = (part(0, 4), part(5, 7), part(8, 10));
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    ((days * 24 + part(11, 13)) * 60 + part(14, 16)) * 60 + part(17, 19)
}

#[tokio::test(flavor = "multi_thread")]
async fn begateway_keeps_a_key_for_a_day_from_the_send() {
    assert_eq!(unix_seconds("2026-11-22T08:00:00Z"), 1_795_334_400);
    let gateway = start().await;
    let now = || {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time");
        i64::try_from(since.as_secs()).expect("seconds")
    };
    for status in [500, 302, 200] {
        reply_with(&gateway, Begateway, Reply::json(status, "{}"));
        let before = now();
        let answer = refund(&gateway, &one(Begateway, 1)).await;
        let until = unix_seconds(answer.body["retry_until"].as_str().expect("a time"));
        // Less what a send may take on its way.
        let day = 24 * 60 * 60 - 300;
        assert!((before + day..=now() + day).contains(&until), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_a_provider_no_longer_takes_are_told_as_the_gateways() {
    let gateway = start().await;
    for (provider, problem, word) in [
        (Bog, AUTH_FAILED, (None, Some("Unauthorized"))),
        (
            Moyasar,
            AUTH_FAILED,
            (None, Some("Invalid authentication information")),
        ),
        (Begateway, AUTH_FAILED, (None, Some("Unauthorized"))),
        // A code that nobody has published may mean anything, whatever its status.
        (
            Bbmsl,
            MAY_BE_THERE,
            (Some("9002"), Some("Invalid signature")),
        ),
    ] {
        gateway.simulators.revoke(provider, 0);
        let answer = refund(&gateway, &one(provider, 1)).await;
        assert_refused("revoked", &answer, provider, problem, 401, word);
        assert_eq!(ledger(&gateway, provider), []);
    }
    gateway.simulators.revoke(Provider::BogToken, 0);
    let answer = refund(&gateway, &one(Bog, 1)).await;
    let text = "Invalid client or Invalid client credentials";
    let word = (Some("unauthorized_client"), Some(text));
    assert_refused("the token's", &answer, Bog, AUTH_FAILED, 401, word);
    assert_eq!(ledger(&gateway, Bog), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_not_what_the_provider_documents_is_unreadable() {
    let gateway = start().await;
    for provider in FOUR {
        let first = Uuid::new_v4().to_string();
        let answer = refund_as(&gateway, &first, &one(provider, 1)).await;
        assert!(answer.status < 300, "{provider:?}: {answer:?}");
        let good = last(&gateway, provider).reply.expect("a reply").body;
        let good = String::from_utf8(good).expect("text");
        // The member by which the outcome is decided.
        let Replies { word, unlisted, .. } = &provider.declared().replies;
        let ((member, word, after), other) = (word, unlisted[1]);
        let decides = &format!(r#""{member}":"{word}"{after}"#);
        let other = &format!(r#""{member}":"{other}"{after}"#);
        assert!(good.contains(decides), "{good}");
        let twice = format!("{decides},{other}");
        let cases: [(&str, Vec<u8>); 16] = [
            ("nothing", Vec::new()),
            ("text", b"refunded".to_vec()),
            (
                "a page",
                b"<!doctype html><html><body>Welcome</body></html>".to_vec(),
            ),
            ("an array", b"[]".to_vec()),
            ("null", b"null".to_vec()),
            ("a number", b"1".to_vec()),
            ("an empty object", b"{}".to_vec()),
            (
                "an object of nulls",
                br#"{"key":null,"transaction":null,"transactions":null,"responseCode":null}"#
                    .to_vec(),
            ),
            ("cut", good.as_bytes()[..good.len() - 1].to_vec()),
            ("half", good.as_bytes()[..good.len() / 2].to_vec()),
            ("twice", good.repeat(2).into_bytes()),
            ("text after it", format!("{good} ok").into_bytes()),
            (
                "bytes that are no UTF-8",
                good.replacen('{', "{\"x\":\"\u{1}\",", 1).into_bytes(),
            ),
            ("another word", good.replace(decides, other).into_bytes()),
            ("two words", good.replace(decides, &twice).into_bytes()),
            (
                "a word in another type",
                good.replace(decides, &decides.replacen(":\"", ":[\"", 1))
                    .into_bytes(),
            ),
        ];
        let booked = ledger(&gateway, provider).len();
        // Of a payment and a key of its own each.
        let of_another = |text: &str, nth: u64, key: &str| {
            text.replace(&first, key)
                .replace(&fresh(provider, 1), &fresh(provider, nth))
        };
        for (nth, (case, body)) in (2..).zip(cases) {
            let case = format!("{provider:?} {case}");
            let key = Uuid::new_v4().to_string();
            let body = of_another(&String::from_utf8(body).expect("text"), nth, &key);
            // What is no UTF-8 cannot be written as text.
            let body: Vec<u8> = body
                .bytes()
                .map(|byte| if byte == 1 { 0xff } else { byte })
                .collect();
            reply_with(&gateway, provider, Reply::json(200, body));
            let answer = refund_as(&gateway, &key, &one(provider, nth)).await;
            assert_problem(&case, &answer, unreadable(provider));
            assert!(!answer.text.contains("<html"), "{case}: {}", answer.text);
        }
        // The same without a fault is read.
        let key = Uuid::new_v4().to_string();
        reply_with(
            &gateway,
            provider,
            Reply::json(200, of_another(&good, 100, &key)),
        );
        let answer = refund_as(&gateway, &key, &one(provider, 100)).await;
        assert!(answer.status < 300, "{provider:?}: {answer:?}");
        assert_eq!(ledger(&gateway, provider).len(), booked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coded_reply_is_not_guessed_at() {
    let gateway = start().await;
    for provider in FOUR {
        gateway.simulators.next_fault(provider, Fault::Gzip);
        let answer = refund(&gateway, &one(provider, 1)).await;
        assert_refused(
            "gzip",
            &answer,
            provider,
            unreadable(provider),
            200,
            (None, None),
        );
        assert_eq!(ledger(&gateway, provider).len(), 1, "{provider:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn begateways_own_decimals_are_kept_to() {
    let gateway = start().await;
    let transaction = json!({
        "uid": "2-idr", "parent_uid": "order-1", "type": "refund", "status": "successful",
        "amount": 10_000, "currency": "IDR",
    });
    let body = json!({"transaction": transaction}).to_string();
    for value in ["10000", "10000.00"] {
        reply_with(&gateway, Begateway, Reply::json(200, body.as_str()));
        let body = call(Begateway, "order-1", money(value, "IDR"));
        let answer = refund(&gateway, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["amount"], money("10000.00", "IDR"));
        let sent: Value = serde_json::from_str(&sent(&gateway, Begateway)).expect("JSON");
        assert_eq!(sent["request"]["amount"], 10_000);
    }
    let before = gateway.simulators.received(Begateway);
    let answer = refund(
        &gateway,
        &call(Begateway, "order-1", money("10000.50", "IDR")),
    )
    .await;
    assert_problem("half", &answer, Problem::corrected("invalid-request", 422));
    assert_eq!(answer.body["errors"][0]["pointer"], "/amount/value");
    assert_eq!(gateway.simulators.received(Begateway), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_gets_the_callers_uuid_or_one_made_from_the_key() {
    let v4 = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let v7 = "0191f5a7-44d3-7430-8739-2d80821416bf";
    // `printf 'bog\0refund-1' | sha256sum`, its first 16 bytes with the bits of version 4 set.
    for (provider, of_text, of_v7) in [
        (
            Bog,
            "d781c0fc-a82d-46f4-b9e0-10f8e0daeade",
            "5d1dd6cd-4032-4d48-a009-b3c67b18a246",
        ),
        (Moyasar, "02ea6c88-e49f-4b0e-a1cd-d17e10616720", v7),
        (
            Begateway,
            "53aa2db3-a233-4f76-8395-ae17c8953682",
            "57db4d98-ab4b-4aaf-825d-2caf1a1b1608",
        ),
    ] {
        // Its own, as a key is one refund, whichever its provider.
        let gateway = start().await;
        for (nth, (key, expected)) in (1..).zip([("refund-1", of_text), (v7, of_v7), (v4, v4)]) {
            for key in [key.to_owned(), format!("\"{key}\"")] {
                let answer = refund_as(&gateway, &key, &one(provider, nth)).await;
                assert!(answer.status < 300, "{provider:?} {key}: {answer:?}");
            }
            let booked = ledger(&gateway, provider).pop().expect("a refund");
            assert_eq!(booked.payment, fresh(provider, nth), "{provider:?} {key}");
            assert_eq!(booked.key.as_deref(), Some(expected), "{provider:?} {key}");
        }
        // A UUID goes out in lower case, and so is one key in any case.
        let mixed = "F351A2A3-97C4-4F12-ADD3-80c1044091f5";
        for key in [mixed.to_owned(), mixed.to_lowercase()] {
            refund_as(&gateway, &key, &one(provider, 4)).await;
        }
        let keys: Vec<_> = ledger(&gateway, provider)
            .into_iter()
            .map(|entry| entry.key)
            .collect();
        assert_eq!(keys.len(), 4, "{provider:?}: {keys:?}");
        assert_eq!(keys[3].as_deref(), Some(mixed.to_lowercase().as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_kind_under_two_names_is_two_providers() {
    let options = Options::changed(|config| {
        plugin(config, |plugin| {
            let moyasar = plugin["providers"]["moyasar"].clone();
            plugin["providers"]["moyasar-2"] = moyasar;
        });
        // BOG's place, which is not called here.
        let route = route_mut(config, "bog").expect("a route");
        route["match"]["filter_state"][0]["string_match"]["exact"] = json!("moyasar-2");
        route["route"]["cluster"] = json!("moyasar");
    });
    let gateway = Gateway::start(options).await.expect("a gateway");
    let mut body = one(Moyasar, 1);
    // Two keys of the caller's, as a key is one refund, whichever its provider.
    for (name, key, expected) in [
        (
            "moyasar",
            "refund-1",
            "02ea6c88-e49f-4b0e-a1cd-d17e10616720",
        ),
        (
            "moyasar-2",
            "refund-2",
            "fe92e2de-e01f-4f74-968e-7d50556eb9be",
        ),
    ] {
        body["provider"] = json!(name);
        let answer = refund_as(&gateway, key, &body).await;
        assert_eq!(
            (answer.status, &answer.body["provider"]),
            (200, &json!(name)),
            "{answer:?}"
        );
        let booked = ledger(&gateway, Moyasar).pop().expect("a refund");
        assert_eq!(booked.key.as_deref(), Some(expected));
    }
}
