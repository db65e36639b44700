use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::Method;
use provider_simulator::{Provider, orders};
use rsa::RsaPrivateKey;
use rsa::pkcs1v15::SigningKey;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::sha2::Sha256;
use rsa::signature::{SignatureEncoding as _, Signer as _};
use serde_json::json;

use crate::client::{Call, KEYS, start};

fn signature(text: &str) -> String {
    let key = RsaPrivateKey::from_pkcs8_pem(&KEYS.private_key).expect("a key");
    BASE64_STANDARD.encode(
        SigningKey::<Sha256>::new(key)
            .sign(text.as_bytes())
            .to_bytes(),
    )
}

/// With this inner text, signed as it is.
pub fn signed(text: &str) -> Call {
    with(text, &signature(text))
}

fn with(text: &str, signature: &str) -> Call {
    let body = json!({ "request": text, "signature": signature }).to_string();
    Call::new(Provider::Bbmsl, "/hosted-checkout/refund", &body)
}

#[tokio::test]
async fn the_page_example_is_answered_as_on_the_page() {
    let simulators = start().await;
    let answer = signed(r#"{"merchantId":3,"orderId":4922,"amount":10}"#)
        .send(&simulators)
        .await;
    assert_eq!(answer.status, 200);
    let start = r#"{"responseCode":"0000","order":{"id":4922,"merchantId":3,"merchantReference":"1655817171","currency":"USD","amount":15.00,"netAmount":5.00,"cardType":"VISA","email":"","createTime":"2022-06-21T13:13:10.000+00:00","updateTime":""#;
    let end = r#"","status":"REFUNDED","recurring":false},"transaction":{"id":3758,"merchantId":3,"type":"REFUND","amount":10,"currency":"USD","status":"SUCCESS","maskedPan":"400000XXXXXX0028","stan":"S3142"}}"#;
    assert!(answer.text().starts_with(start), "{}", answer.text());
    assert!(answer.text().ends_with(end), "{}", answer.text());
    let booked = &simulators.ledger(Provider::Bbmsl)[0];
    assert_eq!(
        (booked.minor_units, &*booked.payment, &booked.key),
        (1_000, "4922", &None)
    );
}

#[tokio::test]
async fn both_ways_to_name_an_order_and_the_merchant_pass() {
    let simulators = start().await;
    for text in [
        r#"{"merchantId":"3","merchantReference":"1655817171","amount":10.00}"#,
        r#"{"merchantId":3,"orderId":4923,"merchantReference":"ref-hkd","amount":0.5}"#,
        r#"{ "amount": 12.3, "orderId": 4924, "merchantId": 3 }"#,
        r#"{"merchantId":3,"orderId":4925,"amount":1500}"#,
        r#"{"merchantId":3,"orderId":1000042,"amount":100}"#,
        r#"{"merchantId":3,"merchantReference":"order-1000043","amount":100}"#,
    ] {
        let answer = signed(text).send(&simulators).await;
        assert_eq!(answer.json()["responseCode"], "0000", "{text}");
    }
    let amounts: Vec<u64> = simulators
        .ledger(Provider::Bbmsl)
        .iter()
        .map(|entry| entry.minor_units)
        .collect();
    assert_eq!(amounts, [1_000, 50, 12_300, 1_500, 10_000, 10_000]);
    assert_eq!(simulators.uses(Provider::Bbmsl), [6]);
    assert_eq!(orders::fresh(Provider::Bbmsl, 42), "1000042");
}

#[tokio::test]
async fn a_wrong_signature_is_refused() {
    let simulators = start().await;
    let text = r#"{"merchantId":3,"orderId":4922,"amount":10}"#;
    let good = signature(text);
    for (what, call) in [
        (
            "another text",
            with(r#"{"merchantId":3,"orderId":4922,"amount":15}"#, &good),
        ),
        (
            "the same JSON, other bytes",
            with(r#"{"merchantId":3, "orderId":4922,"amount":10}"#, &good),
        ),
        (
            "another merchant",
            signed(r#"{"merchantId":4,"orderId":4922,"amount":10}"#),
        ),
        ("no base64", with(text, "*")),
        (
            "base64 on two lines",
            with(text, &format!("{}\n{}", &good[..76], &good[76..])),
        ),
        (
            "URL-safe base64",
            with(
                text,
                &good.replace('+', "-").replace('/', "_").replace("==", ""),
            ),
        ),
        ("nothing", with(text, "")),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, 401, "{what}");
        assert_ne!(answer.json()["responseCode"], "0000", "{what}");
    }
    assert_eq!(simulators.ledger(Provider::Bbmsl), []);
    simulators.revoke(Provider::Bbmsl, 0);
    assert_eq!(with(text, &good).status(&simulators).await, 401);
}

#[tokio::test]
async fn an_escaped_text_is_verified_as_it_was_before_escaping() {
    let simulators = start().await;
    let text = r#"{"merchantId":3,"orderId":4922,"amount":10}"#;
    let mut call = signed(text);
    call.body = call.body.replace("orderId", r"\u006frderId");
    assert_eq!(call.send(&simulators).await.json()["responseCode"], "0000");
}

#[tokio::test]
async fn what_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let good = signed(r#"{"merchantId":3,"orderId":4922,"amount":10}"#);
    let raw = |body: &str| Call {
        body: body.into(),
        ..good.clone()
    };
    let long = "x".repeat(65);
    for (what, call, status) in [
        (
            "another path",
            Call {
                path: "/hosted-checkout/refunds".into(),
                ..good.clone()
            },
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
        ("no content type", good.clone().without("content-type"), 415),
        ("malformed JSON", raw("{"), 400),
        ("no signature", raw(r#"{"request":"{}"}"#), 400),
        (
            "an object in place of the text",
            raw(r#"{"request":{},"signature":""}"#),
            400,
        ),
        (
            "another member",
            raw(&good.body.replacen('{', r#"{"x":1,"#, 1)),
            400,
        ),
        ("a text that is no JSON", signed("refund"), 400),
        (
            "no merchant",
            signed(r#"{"orderId":4922,"amount":10}"#),
            200,
        ),
        ("no order", signed(r#"{"merchantId":3,"amount":10}"#), 200),
        (
            "an order id in quotes",
            signed(r#"{"merchantId":3,"orderId":"4922","amount":10}"#),
            200,
        ),
        (
            "a decimal order id",
            signed(r#"{"merchantId":3,"orderId":4922.0,"amount":10}"#),
            200,
        ),
        (
            "an unknown order",
            signed(r#"{"merchantId":3,"orderId":1,"amount":10}"#),
            200,
        ),
        (
            "a numeric reference",
            signed(r#"{"merchantId":3,"merchantReference":1655817171,"amount":10}"#),
            200,
        ),
        (
            "a long reference",
            signed(&format!(
                r#"{{"merchantId":3,"merchantReference":"{long}","amount":10}}"#
            )),
            200,
        ),
        (
            "two orders",
            signed(r#"{"merchantId":3,"orderId":4922,"merchantReference":"ref-hkd","amount":10}"#),
            200,
        ),
        (
            "no amount",
            signed(r#"{"merchantId":3,"orderId":4922}"#),
            200,
        ),
        (
            "an amount in quotes",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":"10"}"#),
            200,
        ),
        (
            "three decimals",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":10.001}"#),
            200,
        ),
        (
            "three decimals, though zero",
            signed(r#"{"merchantId":3,"orderId":4924,"amount":10.000}"#),
            200,
        ),
        (
            "eight digits",
            signed(r#"{"merchantId":3,"orderId":4925,"amount":10000000}"#),
            200,
        ),
        (
            "half a yen",
            signed(r#"{"merchantId":3,"orderId":4925,"amount":10.50}"#),
            200,
        ),
        (
            "zero",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":0}"#),
            200,
        ),
        (
            "less than zero",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":-1}"#),
            200,
        ),
        (
            "an exponent",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":1e1}"#),
            200,
        ),
        (
            "more than the order",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":15.01}"#),
            200,
        ),
        (
            "an unknown member",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":10,"currency":"USD"}"#),
            200,
        ),
        (
            "a member twice",
            signed(r#"{"merchantId":3,"orderId":4922,"amount":10,"amount":10}"#),
            400,
        ),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        assert_ne!(answer.json()["responseCode"], "0000", "{what}");
        assert!(answer.json()["message"].is_string(), "{what}");
    }
    assert_eq!(simulators.ledger(Provider::Bbmsl), []);
}

#[tokio::test]
async fn an_order_is_refunded_once() {
    let simulators = start().await;
    let call = signed(r#"{"merchantId":3,"orderId":4922,"amount":5}"#);
    assert_eq!(call.send(&simulators).await.json()["responseCode"], "0000");
    assert_ne!(call.send(&simulators).await.json()["responseCode"], "0000");
    assert_eq!(simulators.ledger(Provider::Bbmsl).len(), 1);
}

#[tokio::test]
async fn orders_meet_their_behaviour() {
    let simulators = start().await;
    let refund = |id: u64| {
        signed(&format!(
            r#"{{"merchantId":3,"orderId":{id},"amount":100}}"#
        ))
    };
    let declined = refund(4926).send(&simulators).await.json();
    assert_eq!(declined["responseCode"], "0000");
    assert_eq!(declined["transaction"]["status"], "DECLINED");
    assert_eq!(declined["message"], "Success");
    for id in [4928, 4929] {
        let answer = refund(id).send(&simulators).await;
        assert_ne!(answer.json()["responseCode"], "0000");
    }
    assert_eq!(simulators.ledger(Provider::Bbmsl), []);
}

fn query(text: &str) -> Call {
    signed(text).path("/hosted-checkout/query")
}

#[tokio::test]
async fn a_query_answers_the_order_and_no_transaction() {
    let simulators = start().await;
    let ask = query(r#"{"merchantId":3,"orderId":4922}"#);
    let start = |net: &str| {
        format!(
            r#"{{"responseCode":"0000","message":"Success","order":{{"id":4922,"merchantId":3,"merchantReference":"1655817171","currency":"USD","amount":15.00,"netAmount":{net},"cardType":"VISA","email":"","createTime":"2022-06-21T13:13:10.000+00:00","updateTime":""#
        )
    };
    let end = |status: &str| format!(r#"","status":"{status}","recurring":false}}}}"#);
    let before = ask.send(&simulators).await;
    assert_eq!(before.status, 200);
    assert!(before.text().starts_with(&start("15.00")));
    assert!(before.text().ends_with(&end("SUCCESS")));
    let refund = signed(r#"{"merchantId":3,"orderId":4922,"amount":10}"#);
    assert_eq!(refund.status(&simulators).await, 200);
    let after = ask.h2().send(&simulators).await;
    assert!(after.text().starts_with(&start("5.00")), "{}", after.text());
    assert!(after.text().ends_with(&end("REFUNDED")));
    assert_eq!(simulators.ledger(Provider::Bbmsl).len(), 1);
    assert_eq!(simulators.uses(Provider::Bbmsl), [3]);
}

#[tokio::test]
async fn a_query_names_an_order_in_either_way_or_both() {
    let simulators = start().await;
    for text in [
        r#"{"merchantId":"3","merchantReference":"1655817171"}"#,
        r#"{"merchantId":3,"orderId":4923,"merchantReference":"ref-hkd"}"#,
        r#"{ "merchantId": 3, "orderId": 1000042 }"#,
        r#"{"merchantId":3,"merchantReference":"order-1000043"}"#,
    ] {
        let answer = query(text).send(&simulators).await.json();
        assert_eq!(answer["responseCode"], "0000", "{text}");
        assert_eq!(answer.get("transaction"), None);
    }
}

#[tokio::test]
async fn a_query_tells_what_became_of_an_order() {
    let simulators = start().await;
    for (id, refunded, status, net) in [
        // Declined: nothing moved.
        (4926, true, "SUCCESS", "100.00"),
        // Booked, with a status that no page has.
        (4927, true, "SUCCESS", "0.00"),
        (4929, false, "REFUNDED", "0.00"),
        (4923, false, "SUCCESS", "100.00"),
    ] {
        if refunded {
            let text = format!(r#"{{"merchantId":3,"orderId":{id},"amount":100}}"#);
            assert_eq!(signed(&text).status(&simulators).await, 200);
        }
        let text = format!(r#"{{"merchantId":3,"orderId":{id}}}"#);
        let answer = query(&text).send(&simulators).await;
        assert_eq!(answer.json()["order"]["status"], status, "{id}");
        let member = format!(r#""netAmount":{net},"#);
        assert!(answer.text().contains(&member), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_refund_by_hand_is_the_one_that_an_order_may_have() {
    let simulators = start().await;
    let by_hand = |amount| simulators.refund_by_hand(Provider::Bbmsl, "4923", amount, "");
    assert_eq!(by_hand(10_001), None);
    assert!(by_hand(2_550).is_some());
    assert_eq!(by_hand(1), None);
    let answer = query(r#"{"merchantId":3,"orderId":4923}"#);
    let answer = answer.send(&simulators).await;
    assert!(answer.text().contains(r#""netAmount":74.50,"#));
    assert_eq!(answer.json()["order"]["status"], "REFUNDED");
    let refund = signed(r#"{"merchantId":3,"orderId":4923,"amount":1}"#);
    assert_ne!(
        refund.send(&simulators).await.json()["responseCode"],
        "0000"
    );
}

#[tokio::test]
async fn a_query_that_the_page_does_not_know_is_refused() {
    let simulators = start().await;
    let text = r#"{"merchantId":3,"orderId":4922}"#;
    let good = query(text);
    let long = "x".repeat(65);
    for (what, call, status) in [
        (
            "another method",
            Call {
                method: Method::GET,
                ..good.clone()
            },
            405,
        ),
        (
            "a URL query",
            good.clone().path("/hosted-checkout/query?x=1"),
            404,
        ),
        ("no content type", good.clone().without("content-type"), 415),
        (
            "another media type",
            good.clone().header("accept", "text/html"),
            406,
        ),
        (
            "a signature of another text",
            with(
                text,
                &signature(r#"{"merchantId":3,"orderId":4922,"amount":10}"#),
            )
            .path("/hosted-checkout/query"),
            401,
        ),
        (
            "the same JSON, other bytes",
            with(r#"{"merchantId":3, "orderId":4922}"#, &signature(text))
                .path("/hosted-checkout/query"),
            401,
        ),
        (
            "another merchant",
            query(r#"{"merchantId":4,"orderId":4922}"#),
            401,
        ),
        (
            "an amount",
            query(r#"{"merchantId":3,"orderId":4922,"amount":10}"#),
            200,
        ),
        (
            "an unknown member",
            query(r#"{"merchantId":3,"orderId":4922,"x":1}"#),
            200,
        ),
        (
            "a member twice",
            query(r#"{"merchantId":3,"orderId":4922,"orderId":4922}"#),
            400,
        ),
        (
            "another order of members",
            query(r#"{"orderId":4922,"merchantId":3}"#),
            200,
        ),
        (
            "the reference before the id",
            query(r#"{"merchantId":3,"merchantReference":"1655817171","orderId":4922}"#),
            200,
        ),
        ("no order", query(r#"{"merchantId":3}"#), 200),
        (
            "an id that is no number",
            query(r#"{"merchantId":3,"orderId":"4922"}"#),
            200,
        ),
        (
            "a reference too long",
            query(&format!(
                r#"{{"merchantId":3,"merchantReference":"{long}"}}"#
            )),
            200,
        ),
        (
            "an unknown order",
            query(r#"{"merchantId":3,"orderId":5570}"#),
            200,
        ),
        (
            "two orders",
            query(r#"{"merchantId":3,"orderId":4922,"merchantReference":"ref-hkd"}"#),
            200,
        ),
    ] {
        let answer = call.send(&simulators).await;
        assert_eq!(answer.status, status, "{what}");
        let answer = answer.json();
        assert_ne!(answer["responseCode"], "0000", "{what}");
        assert!(answer["message"].is_string(), "{what}");
        assert_eq!(answer.get("order"), None, "{what}");
    }
}
