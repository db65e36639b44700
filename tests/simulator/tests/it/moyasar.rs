use std::time::Duration;

use http::Method;
use provider_simulator::{Fault, Provider, Simulators, orders};
use serde_json::{Value, json};

use crate::client::{Call, start};

const HERE: Provider = Provider::Moyasar;
const ID: &str = "f351a2a3-97c4-4f12-add3-80c1044091f5";

pub fn refund(name: &str, body: &str) -> Call {
    let order = orders::find(Provider::Moyasar, name).expect("known");
    Call::new(
        Provider::Moyasar,
        &format!("/v1/orders/{}/refund", order.id),
        body,
    )
    .header("authorization", "Bearer moyasar-demo-key")
}

fn body(amount: &str) -> String {
    format!(r#"{{"amount":{amount},"transaction_id":"{ID}"}}"#)
}

#[tokio::test]
async fn a_refund_answers_the_whole_order() {
    let simulators = start().await;
    let answer = refund("page", &body("262346")).send(&simulators).await;
    assert_eq!(answer.status, 200);
    let order = answer.json();
    assert_eq!(order["id"], "0191f5a7-44d3-7430-8739-2d80821416bf");
    assert_eq!(order["amount"], 262_346);
    assert_eq!(order["refunded_amount"], 262_346);
    assert_eq!(order["currency"], "SAR");
    assert_eq!(order["merchant"]["arabic_name"], "الإسم العربي");
    for member in [
        "captured_amount",
        "voided_amount",
        "description",
        "created_at",
        "updated_at",
        "source",
        "reauthorized_order_id",
        "airline",
        "sub_merchant",
        "agreement",
    ] {
        assert!(order.get(member).is_some(), "{member}");
    }
    let refund = &order["transactions"][1];
    assert_eq!(refund["id"], ID);
    assert_eq!(refund["type"], "refund");
    assert_eq!(refund["status"], "approved");
    assert_eq!(refund["amount"], 262_346);
    assert_eq!(refund["stan"], "000001");
    assert_eq!(simulators.ledger(Provider::Moyasar)[0].minor_units, 262_346);
}

#[tokio::test]
async fn what_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = refund("page", &body("1"));
    let with = |body: &str| Call {
        body: body.into(),
        ..good.clone()
    };
    let path = |path: &str| Call {
        path: path.into(),
        ..good.clone()
    };
    for (what, call, status) in [
        (
            "another path",
            path("/v1/orders/0191f5a7-44d3-7430-8739-2d80821416bf/refunds"),
            404,
        ),
        (
            "an unknown order",
            path("/v1/orders/0191f5a7-44d3-7430-8739-2d8082141600/refund"),
            404,
        ),
        ("an order that is no UUID", path("/v1/orders/1/refund"), 404),
        (
            "another method",
            Call {
                method: Method::PUT,
                ..good.clone()
            },
            405,
        ),
        ("no content type", good.clone().without("content-type"), 415),
        ("no key", good.clone().without("authorization"), 401),
        (
            "a wrong key",
            good.clone().header("authorization", "Bearer x"),
            401,
        ),
        (
            "Basic",
            good.clone()
                .header("authorization", "Basic bW95YXNhci1kZW1vLWtleTo="),
            401,
        ),
        (
            "another merchant's order",
            refund("forbidden", &body("1")),
            403,
        ),
        ("malformed JSON", with("{"), 400),
        ("no amount", with("{}"), 422),
        ("a string", with(&body("\"1\"")), 422),
        ("a decimal", with(&body("1.0")), 422),
        ("an exponent", with(&body("1e2")), 422),
        ("null", with(&body("null")), 422),
        ("zero", with(&body("0")), 422),
        ("less than zero", with(&body("-1")), 422),
        ("more than the largest", with(&body("100000001")), 422),
        ("more than the order", with(&body("262347")), 422),
        (
            "an id that is no UUID",
            with(r#"{"amount":1,"transaction_id":"refund-1"}"#),
            422,
        ),
        (
            "a numeric id",
            with(r#"{"amount":1,"transaction_id":1}"#),
            422,
        ),
        (
            "an unknown member",
            with(r#"{"amount":1,"currency":"SAR"}"#),
            422,
        ),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
    }
    let answer = with(&body("0")).send(&simulators).await;
    assert_eq!(
        answer.json(),
        json!({
            "message": "Data validation failed",
            "errors": { "amount": ["The value must be greater than or equal to 1."] }
        })
    );
    assert_eq!(simulators.ledger(Provider::Moyasar), []);
}

#[tokio::test]
async fn the_same_transaction_id_is_one_refund() {
    let simulators = start().await;
    let call = refund("page", &body("100"));
    let (first, second) = (call.send(&simulators).await, call.send(&simulators).await);
    assert_eq!(first.text(), second.text());
    assert_eq!(simulators.ledger(Provider::Moyasar).len(), 1);
    assert_eq!(refund("kwd", &body("100")).status(&simulators).await, 422);

    let without = Call {
        body: r#"{"amount":50}"#.into(),
        ..call
    };
    without.send(&simulators).await;
    let third = without.send(&simulators).await;
    assert_eq!(third.json()["refunded_amount"], 200);
    assert_eq!(
        third.json()["transactions"]
            .as_array()
            .expect("a list")
            .len(),
        4
    );
}

#[tokio::test]
async fn a_transaction_id_in_flight_is_still_processing() {
    let simulators = start().await;
    let call = refund("page", &body("100"));
    for fault in [
        Fault::Delay(Duration::from_millis(600)),
        Fault::DelayReply(Duration::from_millis(600)),
    ] {
        simulators.next_fault(Provider::Moyasar, fault);
    }
    let early = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Takes the second fault, and is refused before it acts.
        call.send(&simulators).await
    };
    let (first, early) = tokio::join!(call.send(&simulators), early);
    assert_eq!(first.status, 200);
    assert_eq!(early.status, 400);
    assert_eq!(
        early.json()["message"],
        "Initial request is still processing."
    );
    assert_eq!(call.send(&simulators).await.text(), first.text());
    assert_eq!(simulators.ledger(Provider::Moyasar).len(), 1);
}

#[tokio::test]
async fn orders_meet_their_behaviour() {
    let simulators = start().await;
    for (name, status) in [
        ("declined", "failed"),
        ("pending", "initiated"),
        ("timeout", "timeout"),
        ("system-error", "system_error"),
        ("kwd", "approved"),
        ("jpy", "approved"),
    ] {
        let answer = refund(name, r#"{"amount":1000}"#).send(&simulators).await;
        assert_eq!(answer.json()["transactions"][1]["status"], status);
    }
    assert_eq!(
        refund("refused", r#"{"amount":1}"#)
            .status(&simulators)
            .await,
        400
    );
    assert_eq!(
        refund("already-refunded", r#"{"amount":1}"#)
            .status(&simulators)
            .await,
        422
    );
    let path = format!("/v1/orders/{}/refund", orders::fresh(Provider::Moyasar, 99));
    let fresh = Call {
        path,
        ..refund("page", r#"{"amount":10000}"#)
    };
    assert_eq!(fresh.status(&simulators).await, 200);
    let booked: Vec<_> = simulators
        .ledger(Provider::Moyasar)
        .into_iter()
        .map(|entry| entry.currency)
        .collect();
    assert_eq!(booked, ["SAR", "SAR", "KWD", "JPY", "SAR"]);
}

fn look_up(name: &str) -> Call {
    let order = orders::find(HERE, name).expect("known");
    Call::get(HERE, &format!("/v1/orders/{}", order.id))
        .header("authorization", "Bearer moyasar-demo-key")
}

async fn refunds(simulators: &Simulators, name: &str) -> Vec<Value> {
    let order = look_up(name).send(simulators).await.json();
    let mut transactions = order["transactions"].as_array().expect("a list").clone();
    assert_eq!(transactions.remove(0)["type"], "capture");
    transactions
}

#[tokio::test]
async fn an_order_looks_the_same_in_both_calls() {
    let simulators = start().await;
    assert_eq!(refunds(&simulators, "page").await, [json!(null); 0]);
    let mut refunded = refund("page", &body("100")).send(&simulators).await.json();
    let mut order = look_up("page").send(&simulators).await.json();
    for json in [&mut refunded, &mut order] {
        json["updated_at"].take();
        json["transactions"][0]["created_at"].take();
    }
    assert_eq!(order, refunded);
    assert_eq!(order["refunded_amount"], 100);
    assert_eq!(order["transactions"][1]["id"], ID);
    assert_eq!(simulators.ledger(HERE).len(), 1);
    assert_eq!(simulators.uses(HERE), [3]);
}

#[tokio::test]
async fn an_order_shows_a_refund_only_once_it_was_taken_on() {
    let simulators = start().await;
    let wait = Duration::from_millis(600);
    for (fault, seen) in [(Fault::Delay(wait), 0), (Fault::DelayReply(wait), 2)] {
        simulators.next_fault(HERE, fault);
        let call = refund("page", r#"{"amount":1}"#);
        let early = async {
            tokio::time::sleep(wait / 2).await;
            refunds(&simulators, "page").await.len()
        };
        let (answer, early) = tokio::join!(call.send(&simulators), early);
        assert_eq!((answer.status, early), (200, seen));
    }
}

#[tokio::test]
async fn an_initiated_refund_can_be_settled() {
    let simulators = start().await;
    for (id, succeeded, status, code) in [
        (ID, true, "approved", "00"),
        (
            "11111111-2222-4333-8444-555555555555",
            false,
            "failed",
            "05",
        ),
    ] {
        let body = body("100").replace(ID, id);
        assert_eq!(refund("pending", &body).status(&simulators).await, 200);
        assert_eq!(simulators.settle(HERE, Some("another"), succeeded), 0);
        assert_eq!(simulators.settle(HERE, Some(id), succeeded), 1);
        let refunds = refunds(&simulators, "pending").await;
        let refund = refunds.last().expect("a refund");
        assert_eq!(
            (&refund["id"], &refund["status"], &refund["response_code"]),
            (&json!(id), &json!(status), &json!(code))
        );
    }
    let order = look_up("pending").send(&simulators).await.json();
    assert_eq!(order["refunded_amount"], 100);
    let rejected = simulators.ledger(HERE).into_iter().map(|one| one.rejected);
    assert_eq!(rejected.collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_failed_refund_is_found_too() {
    let simulators = start().await;
    assert_eq!(
        refund("declined", &body("1")).status(&simulators).await,
        200
    );
    let refunds = refunds(&simulators, "declined").await;
    assert_eq!(refunds[0]["status"], "failed");
    assert_eq!(simulators.settle(HERE, None, true), 0);
}

#[tokio::test]
async fn a_refund_by_hand_has_an_id_of_its_own() {
    let simulators = start().await;
    let page = &orders::find(HERE, "page").expect("known").id;
    let id = simulators.refund_by_hand(HERE, page, 50, "").expect("done");
    let refunds = refunds(&simulators, "page").await;
    assert_eq!(
        (&refunds[0]["id"], &refunds[0]["amount"]),
        (&json!(id), &json!(50))
    );
    assert_eq!(simulators.refund_by_hand(HERE, page, 262_297, ""), None);
    assert_eq!(simulators.ledger(HERE)[0].refund, id);
}

#[tokio::test]
async fn a_look_up_that_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = look_up("page");
    for (what, call, status) in [
        (
            "an unknown order",
            good.clone()
                .path("/v1/orders/0191f5a7-44d3-7430-8739-2d8082141600"),
            404,
        ),
        (
            "an order that is no UUID",
            good.clone().path("/v1/orders/1"),
            404,
        ),
        ("no order", good.clone().path("/v1/orders/"), 404),
        (
            "a query",
            good.clone().path(&format!("{}?id=1", good.path)),
            404,
        ),
        (
            "the path of the refund",
            good.clone().path(&format!("{}/refund", good.path)),
            405,
        ),
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
            good.clone().header("accept", "text/plain"),
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
        ("no key", good.clone().without("authorization"), 401),
        (
            "a wrong key",
            good.clone().header("authorization", "Bearer x"),
            401,
        ),
        ("another merchant's order", look_up("forbidden"), 403),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
    }
    let encoded = good.path.replace('-', "%2D");
    assert_eq!(good.path(&encoded).status(&simulators).await, 200);
}
