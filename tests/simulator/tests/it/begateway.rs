use http::Method;
use provider_simulator::{Provider, Simulators, orders};
use serde_json::{Value, json};

use crate::client::{Call, start};

pub fn refund(name: &str, amount: Option<u64>) -> Call {
    let order = orders::find(Provider::Begateway, name).expect("known");
    let mut request = json!({ "parent_uid": order.id, "reason": "reason" });
    if let Some(amount) = amount {
        request["amount"] = amount.into();
    }
    let body = json!({ "request": request }).to_string();
    Call::new(Provider::Begateway, "/beyag/transactions/refunds", &body)
        // 361:begateway-demo-secret
        .header(
            "authorization",
            "Basic MzYxOmJlZ2F0ZXdheS1kZW1vLXNlY3JldA==",
        )
}

#[tokio::test]
async fn a_refund_answers_every_member_of_the_page() {
    let simulators = start().await;
    let mut call = refund("page", None);
    call.body = r#"{"request":{"parent_uid":"1-310b0da80b","reason":"reason","amount":50,"tracking_id":"a;b"}}"#.into();
    let answer = call.send(&simulators).await;
    assert_eq!(answer.status, 200);
    let transaction = &answer.json()["transaction"];
    for (member, value) in [
        ("parent_uid", json!("1-310b0da80b")),
        ("type", json!("refund")),
        ("status", json!("successful")),
        ("message", json!("The operation was successfully processed")),
        ("amount", json!(50)),
        ("currency", json!("USD")),
        ("tracking_id", json!("a;b")),
        ("test", json!(false)),
        ("language", json!("en")),
        ("method_type", json!(":method_name")),
    ] {
        assert_eq!(transaction[member], value, "{member}");
    }
    for member in ["uid", "created_at", "updated_at", "paid_at", "receipt_url"] {
        assert!(transaction[member].is_string(), "{member}");
    }
    assert_eq!(transaction["refund"]["status"], "successful");
    assert_eq!(transaction["refund"]["ref_id"], "8889999");
    let booked = &simulators.ledger(Provider::Begateway)[0];
    assert_eq!(
        (booked.minor_units, json!(booked.refund)),
        (50, transaction["uid"].clone())
    );
}

#[tokio::test]
async fn what_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = refund("page", Some(50));
    let with = |body: &str| Call {
        body: body.into(),
        ..good.clone()
    };
    let request = |members: &str| with(&format!(r#"{{"request":{{{members}}}}}"#));
    let long = "x".repeat(256);
    for (what, call, status) in [
        (
            "another path",
            Call {
                path: "/transactions/refunds".into(),
                ..good.clone()
            },
            404,
        ),
        (
            "another method",
            Call {
                method: Method::PATCH,
                ..good.clone()
            },
            405,
        ),
        ("no content type", good.clone().without("content-type"), 415),
        ("no Basic", good.clone().without("authorization"), 401),
        (
            "a wrong secret",
            good.clone().header("authorization", "Basic MzYxOng="),
            401,
        ),
        (
            "Bearer",
            good.clone()
                .header("authorization", "Bearer begateway-demo-secret"),
            401,
        ),
        (
            "an empty RequestID",
            good.clone().header("requestid", ""),
            400,
        ),
        ("malformed JSON", with("{]"), 400),
        ("no request", with("{}"), 422),
        (
            "an unknown member outside",
            with(r#"{"request":{"parent_uid":"1-310b0da80b","reason":"r"},"x":1}"#),
            422,
        ),
        (
            "an unknown member",
            request(r#""parent_uid":"1-310b0da80b","reason":"r","currency":"USD""#),
            422,
        ),
        ("no parent", request(r#""reason":"r""#), 422),
        ("no reason", request(r#""parent_uid":"1-310b0da80b""#), 422),
        (
            "an empty reason",
            request(r#""parent_uid":"1-310b0da80b","reason":"""#),
            422,
        ),
        (
            "a reason too long",
            request(&format!(r#""parent_uid":"1-310b0da80b","reason":"{long}""#)),
            422,
        ),
        (
            "a string",
            request(r#""parent_uid":"1-310b0da80b","reason":"r","amount":"50""#),
            422,
        ),
        (
            "a decimal",
            request(r#""parent_uid":"1-310b0da80b","reason":"r","amount":50.0"#),
            422,
        ),
        (
            "null",
            request(r#""parent_uid":"1-310b0da80b","reason":"r","amount":null"#),
            422,
        ),
        (
            "zero",
            request(r#""parent_uid":"1-310b0da80b","reason":"r","amount":0"#),
            422,
        ),
        (
            "a numeric tracking id",
            request(r#""parent_uid":"1-310b0da80b","reason":"r","tracking_id":1"#),
            422,
        ),
        (
            "an unknown parent",
            request(r#""parent_uid":"1-nobody","reason":"r""#),
            404,
        ),
        ("more than is left", refund("page", Some(10_001)), 422),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
    }
    assert_eq!(simulators.ledger(Provider::Begateway), []);
}

#[tokio::test]
async fn the_same_request_id_is_one_refund() {
    let simulators = start().await;
    let call = refund("page", Some(50)).header("requestid", "one");
    let (first, second) = (call.send(&simulators).await, call.send(&simulators).await);
    assert_eq!(first.text(), second.text());
    let other = call
        .clone()
        .header("requestid", "two")
        .send(&simulators)
        .await;
    assert_ne!(first.text(), other.text());
    assert_eq!(simulators.ledger(Provider::Begateway).len(), 2);
    assert_eq!(simulators.uses(Provider::Begateway), [3]);
}

#[tokio::test]
async fn without_an_amount_all_that_is_left_goes_back() {
    let simulators = start().await;
    assert_eq!(refund("page", Some(1)).status(&simulators).await, 200);
    assert_eq!(
        refund("page", None).send(&simulators).await.json()["transaction"]["amount"],
        9_999
    );
    let again = refund("page", None).send(&simulators).await;
    assert_eq!(
        (again.status, &again.json()["code"]),
        (422, &json!("F.0108"))
    );
}

#[tokio::test]
async fn orders_meet_their_behaviour() {
    let simulators = start().await;
    for (name, status) in [
        ("declined", "failed"),
        ("expired", "expired"),
        ("deleted", "deleted"),
        ("pending", "pending"),
        ("incomplete", "incomplete"),
        ("error", "error"),
        ("kwd", "successful"),
        ("jpy", "successful"),
    ] {
        let answer = refund(name, Some(1_000)).send(&simulators).await;
        assert_eq!(answer.json()["transaction"]["status"], status);
        assert_eq!(answer.json()["transaction"]["refund"]["status"], status);
    }
    let older = refund("older", None).send(&simulators).await.json();
    assert_eq!(older["transaction"].get("currency"), None);
    assert_eq!(older["transaction"]["message"], Value::Null);
    let booked: Vec<_> = simulators
        .ledger(Provider::Begateway)
        .into_iter()
        .map(|entry| entry.payment)
        .collect();
    assert_eq!(
        booked,
        ["1-pending", "1-incomplete", "1-kwd", "1-jpy", "1-older"]
    );
}

#[tokio::test]
async fn errors_come_in_every_shape_seen() {
    let simulators = start().await;
    let text = "exceeds the available balance";
    let message = format!("amount {text}");
    let list = json!({ "amount": [text] });
    for (name, body) in [
        (
            "errors",
            json!({ "message": message, "errors": { "request": list } }),
        ),
        (
            "errors-response",
            json!({ "response": { "message": message, "errors": list } }),
        ),
        (
            "errors-error",
            json!({ "error": { "message": message, "errors": list } }),
        ),
        (
            "errors-objects",
            json!({ "message": { "amount": text }, "errors": { "amount": text } }),
        ),
    ] {
        let answer = refund(name, None).send(&simulators).await;
        assert_eq!((answer.status, answer.json()), (422, body), "{name}");
    }
    let answer = refund("errors-code", None).send(&simulators).await.json();
    assert_eq!(
        (&answer["code"], &answer["errors"]),
        (&json!("F.0114"), &list)
    );
    assert!(answer["friendly_message"].is_string());
}

const HERE: Provider = Provider::Begateway;
const KEY: &str = "a4c1e3b0-5e8f-4c98-8365-ed22d6a25f6b";

/// By the rest of the path: a uid, or `tracking_id/` and one.
fn look_up(rest: &str) -> Call {
    Call::get(HERE, &format!("/beyag/transactions/{rest}")).header(
        "authorization",
        "Basic MzYxOmJlZ2F0ZXdheS1kZW1vLXNlY3JldA==",
    )
}

async fn tracked(simulators: &Simulators, tracking: &str) -> Vec<Value> {
    let call = look_up(&format!("tracking_id/{tracking}"));
    let answer = call.send(simulators).await;
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    assert_eq!(answer.as_object().expect("an object").len(), 1);
    answer["transactions"].as_array().expect("a list").clone()
}

/// Refunds this much under a tracking id; the transaction.
async fn refunded(simulators: &Simulators, name: &str, amount: u64, tracking: &str) -> Value {
    let mut call = refund(name, Some(amount));
    let mut body: Value = serde_json::from_str(&call.body).expect("JSON");
    body["request"]["tracking_id"] = tracking.into();
    call.body = body.to_string();
    call.send(simulators).await.json()["transaction"].clone()
}

#[tokio::test]
async fn a_transaction_is_found_by_its_uid_as_it_was_answered() {
    let simulators = start().await;
    for name in ["page", "older", "declined", "error"] {
        let transaction = refunded(&simulators, name, 50, KEY).await;
        let uid = transaction["uid"].as_str().expect("a uid");
        let found = look_up(uid).h2().send(&simulators).await;
        let wanted = json!({ "transaction": transaction });
        assert_eq!((found.status, found.json()), (200, wanted), "{name}");
    }
    assert_eq!(simulators.ledger(HERE).len(), 2);
    assert_eq!(simulators.uses(HERE), [8]);
}

#[tokio::test]
async fn a_payment_is_a_transaction_too() {
    let simulators = start().await;
    let payment = look_up("1-310b0da80b").send(&simulators).await.json();
    assert_eq!(payment["transaction"]["type"], "payment");
    assert_eq!(payment["transaction"]["amount"], 10_000);
    assert_eq!(payment["transaction"].get("parent_uid"), None);
}

#[tokio::test]
async fn a_transaction_is_found_by_each_value_of_its_tracking_id() {
    let simulators = start().await;
    let tracking = format!("refund 7/7;{KEY}");
    let transaction = refunded(&simulators, "page", 50, &tracking).await;
    for wanted in ["refund%207%2F7", KEY, &KEY.replace('-', "%2D")] {
        assert_eq!(
            tracked(&simulators, wanted).await,
            std::slice::from_ref(&transaction)
        );
    }
    for other in ["refund", "a4c1e3b0", "refund%207%2F7%3B", "1-310b0da80b"] {
        assert_eq!(tracked(&simulators, other).await, [json!(null); 0]);
    }
}

#[tokio::test]
async fn no_more_than_the_newest_hundred_are_found() {
    let simulators = start().await;
    let mut uids = Vec::new();
    for _ in 0..101 {
        let uid = simulators.refund_by_hand(HERE, "1-310b0da80b", 1, "all");
        uids.insert(0, uid.expect("refunded"));
    }
    uids.pop();
    let found: Vec<_> = tracked(&simulators, "all")
        .await
        .iter()
        .map(|one| one["uid"].as_str().expect("a uid").to_owned())
        .collect();
    assert_eq!(found, uids);
}

#[tokio::test]
async fn a_stranger_may_have_the_same_reference() {
    let simulators = start().await;
    let ours = refunded(&simulators, "page", 50, &format!("refund-77;{KEY}")).await;
    let theirs = "refund-77;11111111-2222-4333-8444-555555555555";
    let uid = simulators.refund_by_hand(HERE, "1-310b0da80b", 70, theirs);
    let found = tracked(&simulators, "refund-77").await;
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["uid"], json!(uid));
    assert_eq!(found[0]["tracking_id"], theirs);
    assert_eq!(found[1], ours);
    assert_eq!(tracked(&simulators, KEY).await, [ours]);
    assert_eq!(simulators.ledger(HERE)[1].minor_units, 70);
    assert_eq!(
        simulators.refund_by_hand(HERE, "1-310b0da80b", 9_881, ""),
        None
    );
}

#[tokio::test]
async fn a_pending_refund_can_be_settled() {
    let simulators = start().await;
    for (name, succeeded, status) in [
        ("pending", true, "successful"),
        ("incomplete", false, "failed"),
    ] {
        let open = refunded(&simulators, name, 50, KEY).await;
        let uid = open["uid"].as_str().expect("a uid");
        assert_eq!(simulators.settle(HERE, Some("another"), succeeded), 0);
        assert_eq!(simulators.settle(HERE, Some(uid), succeeded), 1);
        assert_eq!(simulators.settle(HERE, None, succeeded), 0);
        let found = &look_up(uid).send(&simulators).await.json()["transaction"];
        assert_eq!(found["status"], status);
        assert_eq!(found["refund"]["status"], status);
        assert_eq!(found.get("paid_at").is_some(), succeeded);
    }
    let rejected = simulators.ledger(HERE).into_iter().map(|one| one.rejected);
    assert_eq!(rejected.collect::<Vec<_>>(), [false, true]);
    assert_eq!(
        refund("incomplete", None).send(&simulators).await.json()["transaction"]["amount"],
        10_000
    );
}

#[tokio::test]
async fn a_look_up_that_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = look_up("1-310b0da80b");
    for (what, call, status) in [
        ("an unknown uid", look_up("2-nobody"), 404),
        ("no uid", look_up(""), 404),
        ("no tracking id", look_up("tracking_id/"), 404),
        ("a bare slash", look_up("tracking_id/a/b"), 404),
        ("a query", look_up("1-310b0da80b?page=2"), 404),
        ("a query there", look_up("tracking_id/a?page=2"), 404),
        ("the path of refunds", look_up("refunds"), 405),
        (
            "another method",
            Call {
                method: Method::POST,
                ..good.clone()
            },
            405,
        ),
        (
            "another media type",
            good.clone().header("accept", "text/html"),
            406,
        ),
        (
            "a body",
            Call {
                body: "{}".into(),
                ..good.clone()
            },
            400,
        ),
        ("no Basic", good.clone().without("authorization"), 401),
        (
            "a wrong secret",
            look_up("tracking_id/a").header("authorization", "Basic MzYxOng="),
            401,
        ),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
    }
    let unknown = look_up("2-nobody").send(&simulators).await;
    assert_eq!(unknown.json(), json!({ "message": "Not found." }));
}
