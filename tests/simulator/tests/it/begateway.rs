use http::Method;
use provider_simulator::{Provider, orders};
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
