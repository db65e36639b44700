use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::Method;
use provider_simulator::{
    Credential, Credentials, ExpiresIn, Fault, Options, Provider, Refunded, Simulators,
    TokenLifetime, orders,
};
use serde_json::{Value, json};

use crate::client::{Call, start, start_with};

const PATH: &str = "/payments/v1/payment/refund/bog-card-gel";
const KEY: &str = "5b666901-eb05-4f83-abeb-8311e175f337";

fn token_call(id: &str, secret: &str) -> Call {
    let basic = BASE64_STANDARD.encode(format!("{id}:{secret}"));
    Call::new(
        Provider::BogToken,
        "/auth/realms/bog/protocol/openid-connect/token",
        "grant_type=client_credentials",
    )
    .header("content-type", "application/x-www-form-urlencoded")
    .header("authorization", &format!("Basic {basic}"))
}

async fn token(simulators: &Simulators) -> String {
    let answer = token_call("refund-demo", "bog-demo-secret")
        .send(simulators)
        .await;
    answer.json()["access_token"]
        .as_str()
        .expect("a token")
        .into()
}

pub async fn refund(simulators: &Simulators, path: &str, body: &str) -> Call {
    let token = token(simulators).await;
    Call::new(Provider::Bog, path, body).header("authorization", &format!("Bearer {token}"))
}

#[tokio::test]
async fn a_refund_is_received_and_booked_in_minor_units() {
    let simulators = start().await;
    for body in [r#"{"amount":10.5}"#, r#"{"amount":"10.5"}"#] {
        let answer = refund(&simulators, PATH, body)
            .await
            .send(&simulators)
            .await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["key"], "request_received");
        assert_eq!(answer.json()["message"], "Refund request received");
        assert!(answer.json()["action_id"].is_string());
    }
    let answer = refund(&simulators, PATH, "{}")
        .await
        .header("idempotency-key", KEY);
    assert_eq!(answer.status(&simulators).await, 200);
    let ledger = simulators.ledger(Provider::Bog);
    let amounts: Vec<u64> = ledger.iter().map(|entry| entry.minor_units).collect();
    assert_eq!(amounts, [1050, 1050, 7900]);
    assert_eq!(ledger[2].key.as_deref(), Some(KEY));
    assert_eq!(
        (ledger[2].currency, &*ledger[2].payment),
        ("GEL", "bog-card-gel")
    );
    assert_eq!(simulators.uses(Provider::Bog), [3]);
}

#[tokio::test]
async fn currencies_have_their_own_decimals() {
    let simulators = start().await;
    let path = |order| format!("/payments/v1/payment/refund/{order}");
    for (order, body, status) in [
        ("bog-card-kwd", r#"{"amount":1.005}"#, 200),
        ("bog-card-jpy", r#"{"amount":15}"#, 200),
        ("bog-card-jpy", r#"{"amount":1.5}"#, 400),
        ("bog-card-gel", r#"{"amount":1.005}"#, 400),
        ("ord%2F1%20x", r#"{"amount":1}"#, 200),
    ] {
        let call = refund(&simulators, &path(order), body).await;
        assert_eq!(call.status(&simulators).await, status, "{order} {body}");
    }
    let ledger = simulators.ledger(Provider::Bog);
    let amounts: Vec<u64> = ledger.iter().map(|entry| entry.minor_units).collect();
    assert_eq!(amounts, [1005, 15, 100]);
}

#[tokio::test]
async fn what_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = refund(&simulators, PATH, r#"{"amount":1}"#).await;
    let body = |body: &str| Call {
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
            path("/payments/v1/refund/bog-card-gel"),
            404,
        ),
        ("no order", path("/payments/v1/payment/refund/"), 404),
        ("a query", path(&format!("{PATH}?x=1")), 404),
        (
            "a bare slash in the order",
            path("/payments/v1/payment/refund/ord/1%20x"),
            404,
        ),
        (
            "an unknown order",
            path("/payments/v1/payment/refund/nobody"),
            404,
        ),
        (
            "another method",
            Call {
                method: Method::GET,
                ..good.clone()
            },
            405,
        ),
        (
            "another host",
            Call {
                host: "127.0.0.1".into(),
                ..good.clone()
            },
            421,
        ),
        ("no content type", good.clone().without("content-type"), 415),
        (
            "another content type",
            good.clone().header("content-type", "text/plain"),
            415,
        ),
        ("no token", good.clone().without("authorization"), 401),
        (
            "a made-up token",
            good.clone().header("authorization", "Bearer e30.e30.e30"),
            401,
        ),
        (
            "Basic",
            good.clone().header("authorization", "Basic YTpi"),
            401,
        ),
        (
            "a key that is no UUID",
            good.clone().header("idempotency-key", "refund-1"),
            400,
        ),
        (
            "a key of version 7",
            good.clone()
                .header("idempotency-key", "0191f5a7-44d3-7430-8739-2d80821416bf"),
            400,
        ),
        (
            "a key without hyphens",
            good.clone()
                .header("idempotency-key", &KEY.replace('-', "")),
            400,
        ),
        ("malformed JSON", body(r#"{"amount":1"#), 400),
        ("no JSON", body(""), 400),
        ("null", body("null"), 400),
        ("an array", body("[]"), 400),
        (
            "an unknown member",
            body(r#"{"amount":1,"currency":"GEL"}"#),
            400,
        ),
        ("a member twice", body(r#"{"amount":1,"amount":1}"#), 400),
        ("a null amount", body(r#"{"amount":null}"#), 400),
        ("zero", body(r#"{"amount":0}"#), 400),
        ("less than zero", body(r#"{"amount":-1}"#), 400),
        ("an exponent", body(r#"{"amount":1e1}"#), 400),
        ("more than the order", body(r#"{"amount":100.01}"#), 400),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
        assert_eq!(answer.headers["content-type"], "application/json");
    }
    assert_eq!(simulators.ledger(Provider::Bog), []);
}

#[tokio::test]
async fn the_same_key_replays_status_and_body() {
    let simulators = start().await;
    let call = refund(&simulators, PATH, r#"{"amount":1}"#)
        .await
        .header("idempotency-key", KEY);
    let (first, second) = (call.send(&simulators).await, call.send(&simulators).await);
    assert_eq!((first.status, first.text()), (second.status, second.text()));
    assert_eq!(simulators.ledger(Provider::Bog).len(), 1);

    let missing = Call {
        path: "/payments/v1/payment/refund/nobody".into(),
        ..call
    };
    assert_eq!(missing.status(&simulators).await, 404);
    let corrected = Call {
        body: "{}".into(),
        ..missing
    };
    assert_eq!(corrected.status(&simulators).await, 404);
}

#[tokio::test]
async fn no_more_than_the_order_is_ever_refunded() {
    let simulators = start().await;
    let call = refund(&simulators, PATH, r#"{"amount":60}"#).await;
    assert_eq!(call.status(&simulators).await, 200);
    assert_eq!(call.status(&simulators).await, 400);
    let rest = Call {
        body: "{}".into(),
        ..call
    };
    assert_eq!(rest.status(&simulators).await, 200);
    let answer = rest.send(&simulators).await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.json()["key"], "already_refunded");
}

#[tokio::test]
async fn orders_meet_their_behaviour() {
    let simulators = start().await;
    for (name, body, status) in [
        ("whole-only", r#"{"amount":99.99}"#, 400),
        ("whole-only", "{}", 200),
        ("refused", "{}", 400),
        ("already-refunded", "{}", 409),
    ] {
        let order = orders::find(Provider::Bog, name).expect("known");
        let path = format!("/payments/v1/payment/refund/{}", order.id);
        let call = refund(&simulators, &path, body).await;
        assert_eq!(call.status(&simulators).await, status, "{name}");
    }
    let path = format!(
        "/payments/v1/payment/refund/{}",
        orders::fresh(Provider::Bog, 7)
    );
    let call = refund(&simulators, &path, "{}").await;
    assert_eq!(call.status(&simulators).await, 200);
    let amounts: Vec<u64> = simulators
        .ledger(Provider::Bog)
        .iter()
        .map(|entry| entry.minor_units)
        .collect();
    assert_eq!(amounts, [10_000, 10_000]);
}

#[tokio::test]
async fn a_token_says_its_end_and_meets_it() {
    let simulators = start().await;
    let answer = token_call("refund-demo", "bog-demo-secret")
        .send(&simulators)
        .await;
    assert_eq!(answer.json()["expires_in"], 300);
    assert_eq!(answer.json()["token_type"], "Bearer");
    assert_eq!(answer.json().as_object().expect("an object").len(), 3);

    let lasts = Duration::from_millis(600);
    simulators.set_token_lifetime(TokenLifetime {
        lasts,
        shown: ExpiresIn::EpochMilliseconds,
    });
    let call = refund(&simulators, PATH, r#"{"amount":1}"#).await;
    let answer = token_call("refund-demo", "bog-demo-secret")
        .send(&simulators)
        .await;
    assert!(answer.json()["expires_in"].as_u64().expect("a number") > 1_700_000_000_000);
    assert_eq!(call.status(&simulators).await, 200);
    tokio::time::sleep(lasts).await;
    assert_eq!(call.status(&simulators).await, 401);
    assert_eq!(simulators.token_fetches(), 3);
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let simulators = start().await;
    let call = refund(&simulators, PATH, r#"{"amount":1}"#).await;
    simulators.revoke_tokens();
    assert_eq!(call.status(&simulators).await, 401);
}

#[tokio::test]
async fn the_token_endpoint_refuses_all_but_its_one_form() {
    let simulators = start().await;
    let good = token_call("refund-demo", "bog-demo-secret");
    let body = |body: &str| Call {
        body: body.into(),
        ..good.clone()
    };
    for (what, call, status, error) in [
        (
            "a wrong secret",
            token_call("refund-demo", "x"),
            401,
            "unauthorized_client",
        ),
        (
            "no Basic",
            good.clone().without("authorization"),
            401,
            "unauthorized_client",
        ),
        (
            "JSON",
            good.clone().header("content-type", "application/json"),
            415,
            "invalid_request",
        ),
        (
            "another grant",
            body("grant_type=password"),
            400,
            "unsupported_grant_type",
        ),
        ("no grant", body(""), 400, "invalid_request"),
        (
            "more than the grant",
            body("grant_type=client_credentials&scope=x"),
            400,
            "invalid_request",
        ),
        (
            "another method",
            Call {
                method: Method::PUT,
                ..good.clone()
            },
            405,
            "invalid_request",
        ),
        (
            "another path",
            Call {
                path: "/token".into(),
                ..good.clone()
            },
            404,
            "invalid_request",
        ),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (status, &json!(error)),
            "{what}"
        );
    }
    assert_eq!(simulators.uses(Provider::BogToken), [0]);
}

#[tokio::test]
async fn two_clients_are_counted_and_revoked_apart() {
    let mut options = Options {
        credentials: Credentials::default(),
        ..Options::default()
    };
    let client = Credential::new("refund-demo", "next");
    options.credentials.accept(Provider::Bog, client);
    let simulators = start_with(options).await;
    let old = refund(&simulators, PATH, r#"{"amount":1}"#).await;
    assert_eq!(
        token_call("refund-demo", "next").status(&simulators).await,
        200
    );
    assert_eq!(old.status(&simulators).await, 200);
    assert_eq!(simulators.uses(Provider::BogToken), [1, 1]);
    assert_eq!(simulators.uses(Provider::Bog), [1, 0]);
    simulators.revoke(Provider::BogToken, 0);
    assert_eq!(
        token_call("refund-demo", "bog-demo-secret")
            .status(&simulators)
            .await,
        401
    );
    assert_eq!(old.status(&simulators).await, 200);
    simulators.revoke(Provider::Bog, 0);
    assert_eq!(old.status(&simulators).await, 401);
}

#[tokio::test]
async fn a_lost_reply_is_found_again_under_its_key() {
    let simulators = start().await;
    let call = refund(&simulators, PATH, r#"{"amount":1}"#)
        .await
        .header("idempotency-key", KEY);
    simulators.next_fault(Provider::Bog, Fault::Reset { booked: true });
    assert!(call.try_send(&simulators).await.is_err());
    assert_eq!(call.status(&simulators).await, 200);
    assert_eq!(simulators.ledger(Provider::Bog).len(), 1);
}

const RECEIPT: &str = "/payments/v1/receipt/bog-card-gel";

async fn look_up(simulators: &Simulators, path: &str) -> Call {
    let token = token(simulators).await;
    Call::get(Provider::Bog, path).header("authorization", &format!("Bearer {token}"))
}

async fn receipt(simulators: &Simulators) -> Value {
    let answer = look_up(simulators, RECEIPT).await.send(simulators).await;
    assert_eq!(answer.status, 200);
    answer.json()
}

/// Refunds this much of the page's order; its action.
async fn accepted(simulators: &Simulators, amount: &str) -> String {
    let body = json!({ "amount": amount }).to_string();
    let answer = refund(simulators, PATH, &body).await.send(simulators).await;
    answer.json()["action_id"].as_str().expect("an id").into()
}

#[tokio::test]
async fn an_order_without_refunds_has_no_actions() {
    let simulators = start().await;
    assert_eq!(
        receipt(&simulators).await,
        json!({
            "order_id": "bog-card-gel",
            "order_status": { "key": "completed", "value": "Completed" },
            "purchase_units": {
                "request_amount": "100.00",
                "transfer_amount": "100.00",
                "refund_amount": "0.00",
                "currency_code": "GEL"
            },
            "actions": null
        })
    );
    assert_eq!(simulators.ledger(Provider::Bog), []);
    assert_eq!(simulators.uses(Provider::Bog), [1]);
}

#[tokio::test]
async fn an_accepted_refund_is_in_no_details_until_it_is_settled() {
    let simulators = start().await;
    let action = accepted(&simulators, "10.5").await;
    for _ in 0..3 {
        let pending = receipt(&simulators).await;
        assert_eq!(pending["order_status"]["key"], "refund_requested");
        assert_eq!(pending["actions"], json!(null));
        assert_eq!(pending["purchase_units"]["transfer_amount"], "100.00");
    }
    assert_eq!(simulators.settle(Provider::Bog, Some("another"), true), 0);
    assert_eq!(simulators.settle(Provider::Bog, Some(&action), true), 1);
    assert_eq!(simulators.settle(Provider::Bog, None, false), 0);
    let mut done = receipt(&simulators).await;
    let date = done["actions"][0]["zoned_action_date"].take();
    assert!(date.as_str().expect("a date").ends_with("+04:00"));
    assert_eq!(
        done["actions"],
        json!([{
            "action_id": action,
            "action": "partial_refund",
            "request_channel": "public_api",
            "status": "completed",
            "amount": "10.50",
            "code": "100",
            "code_description": "Successful payment",
            "zoned_action_date": null
        }])
    );
    assert_eq!(
        done["purchase_units"],
        json!({
            "request_amount": "100.00",
            "transfer_amount": "89.50",
            "refund_amount": "10.50",
            "currency_code": "GEL"
        })
    );
}

#[tokio::test]
async fn the_status_of_an_order_lags_behind_its_actions() {
    let simulators = start().await;
    accepted(&simulators, "100").await;
    simulators.settle(Provider::Bog, None, true);
    for status in ["refund_requested", "refunded", "refunded"] {
        let details = receipt(&simulators).await;
        assert_eq!(details["actions"][0]["action"], "refund");
        assert_eq!(details["order_status"]["key"], status);
    }
}

#[tokio::test]
async fn a_rejected_refund_gives_its_money_back() {
    let simulators = start().await;
    let rejected = accepted(&simulators, "60").await;
    let other = accepted(&simulators, "40").await;
    let path = "/payments/v1/payment/refund/bog-card-gel";
    let more = refund(&simulators, path, r#"{"amount":1}"#).await;
    assert_eq!(more.status(&simulators).await, 409);
    simulators.settle(Provider::Bog, Some(&rejected), false);
    simulators.settle(Provider::Bog, Some(&other), true);
    receipt(&simulators).await;
    let details = receipt(&simulators).await;
    assert_eq!(details["actions"][0]["status"], "rejected");
    assert_eq!(details["actions"][1]["status"], "completed");
    assert_eq!(details["order_status"]["key"], "refunded_partially");
    assert_eq!(details["purchase_units"]["refund_amount"], "40.00");
    let ledger = simulators.ledger(Provider::Bog);
    assert_eq!((ledger[0].rejected, ledger[1].rejected), (true, false));
    assert_eq!(more.status(&simulators).await, 200);
}

#[tokio::test]
async fn a_refund_can_complete_by_itself_after_some_look_ups() {
    let simulators = start().await;
    for (look_ups, absent) in [(Some(2), 2), (Some(0), 0)] {
        simulators.complete_after(look_ups);
        let action = accepted(&simulators, "1").await;
        let shows = |details: Value| details["actions"].to_string().contains(&action);
        for _ in 0..absent {
            assert!(!shows(receipt(&simulators).await));
        }
        assert!(shows(receipt(&simulators).await));
    }
    simulators.complete_after(None);
    accepted(&simulators, "1").await;
    assert_eq!(simulators.settle(Provider::Bog, None, true), 1);
}

#[tokio::test]
async fn a_refund_by_hand_is_the_business_managers() {
    let simulators = start().await;
    let by_hand = |amount| simulators.refund_by_hand(Provider::Bog, "bog-card-gel", amount, "");
    let action = by_hand(2_500).expect("refunded");
    assert_eq!((by_hand(0), by_hand(7_501)), (None, None));
    assert_eq!(
        simulators.refund_by_hand(Provider::Bog, "nobody", 1, ""),
        None
    );
    let details = receipt(&simulators).await;
    assert_eq!(details["actions"][0]["action_id"], json!(action));
    assert_eq!(details["actions"][0]["request_channel"], "business_manager");
    assert_eq!(details["actions"][0]["status"], "completed");
    let booked = &simulators.ledger(Provider::Bog)[0];
    assert_eq!(
        (booked.request, booked.minor_units, &booked.refund),
        (Refunded::BY_HAND, 2_500, &action)
    );
}

#[tokio::test]
async fn details_have_the_decimals_of_their_currency() {
    let simulators = start().await;
    for (order, amount) in [
        ("bog-card-kwd", "12.345"),
        ("bog-card-jpy", "1500"),
        ("ord%2F1%20x", "100.00"),
        ("bog%2Dcard%2Djpy", "1500"),
    ] {
        let call = look_up(&simulators, &format!("/payments/v1/receipt/{order}")).await;
        let answer = call.h2().send(&simulators).await;
        let units = &answer.json()["purchase_units"];
        assert_eq!(units["request_amount"], amount, "{order}");
    }
}

#[tokio::test]
async fn an_order_refunded_before_is_refunded_without_an_action() {
    let simulators = start().await;
    let call = look_up(&simulators, "/payments/v1/receipt/bog-already-refunded").await;
    let details = call.send(&simulators).await.json();
    assert_eq!(details["order_status"]["key"], "refunded");
    assert_eq!(details["purchase_units"]["refund_amount"], "100.00");
    assert_eq!(details["actions"], json!(null));
}

#[tokio::test]
async fn a_look_up_that_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = look_up(&simulators, RECEIPT).await;
    for (what, call, status) in [
        (
            "an unknown order",
            good.clone().path("/payments/v1/receipt/nobody"),
            400,
        ),
        ("no order", good.clone().path("/payments/v1/receipt/"), 404),
        (
            "a bare slash in the order",
            good.clone().path("/payments/v1/receipt/ord/1%20x"),
            404,
        ),
        (
            "a query",
            good.clone().path(&format!("{RECEIPT}?action_id=1")),
            404,
        ),
        (
            "an empty query",
            good.clone().path(&format!("{RECEIPT}?")),
            404,
        ),
        (
            "an order that is not UTF-8",
            good.clone().path("/payments/v1/receipt/%FF"),
            404,
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
            good.clone().header("accept", "text/html, application/xml"),
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
        ("no token", good.clone().without("authorization"), 401),
        (
            "a made-up token",
            good.clone().header("authorization", "Bearer e30.e30.e30"),
            401,
        ),
        (
            "Basic",
            good.clone().header("authorization", "Basic YTpi"),
            401,
        ),
        (
            "another host",
            Call {
                host: "127.0.0.1".into(),
                ..good.clone()
            },
            421,
        ),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
    }
    for accepted in ["*/*", "application/*", "text/html, application/json;q=0.5"] {
        let call = good.clone().header("accept", accepted);
        assert_eq!(call.status(&simulators).await, 200, "{accepted}");
    }
    let any = good.without("accept");
    assert_eq!(any.status(&simulators).await, 200);
}
