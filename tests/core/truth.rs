//! The rule of truth: a certain word (`succeeded`, `failed`, `not_refunded`) is said only of this
//! refund, by its own identity: the key or the id that the provider shows, or that nothing was
//! sent. Never by an equal amount, never by a name that another caller could have chosen, never by
//! a word that the rest of the reply contradicts, and never by an absence at a moment at which a
//! send could still be on its way.

use core_testbed::fixtures::{FIXTURES, Fixture};
use core_testbed::gateway::{
    ABSENT, AMBIGUOUS, Asked, Gateway, KEY, MISMATCH, NOT_SHOWN, SETTLE_MS, SUCCEEDED, Told,
    fixture, json_of, open_refunds, proofs, says, told,
};
use core_testbed::{NOW, Out, call_headers, config, look_up_headers, oracles};
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, LocalReply, Opening, open};
use refund_filter::guard::GuardSettings;
use refund_filter::headers::Headers;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const HOUR_MS: i64 = 60 * 60 * 1_000;

/// BBMSL and beGateway book a refund of which the caller has heard nothing.
const UNKNOWN: fn(&'static Fixture) -> Told<'static> =
    |fixture| ("provider-timeout", "unknown", fixture.by_key);

fn routed(asked: Asked) -> Box<refund_filter::exchange::Dispatch> {
    match asked {
        Asked::Sent(Out::Routed(dispatch)) => dispatch,
        Asked::Sent(Out::Callout(_)) => panic!("the payment is looked at first"),
        Asked::Answered(answer) => panic!("answered: {}", answer.body),
    }
}

fn answered(asked: Asked) -> Answer {
    match asked {
        Asked::Answered(answer) => answer,
        Asked::Sent(_) => panic!("sent"),
    }
}

fn path(asked: Asked) -> String {
    let path = match asked {
        Asked::Sent(Out::Routed(dispatch)) => dispatch.headers.first(":path").unwrap().to_vec(),
        Asked::Sent(Out::Callout(callout)) => {
            callout.request().headers.first(":path").unwrap().to_vec()
        }
        Asked::Answered(answer) => panic!("answered: {}", answer.body),
    };
    String::from_utf8(path).unwrap()
}

fn retry_after(answer: &Answer) -> Option<u64> {
    let value = answer.headers.first("retry-after")?;
    std::str::from_utf8(value).unwrap().parse().ok()
}

// 1. One identity of a key.

#[test]
fn a_uuid_in_capitals_is_the_same_refund_to_the_guard_the_provider_and_look_ups() {
    for fixture in FIXTURES {
        for version in ["1", "4", "5", "6", "7", "8"] {
            let lower = format!("0191f5a7-44d3-{version}430-8739-2d80821416bf");
            let upper = lower.to_uppercase();
            let call = fixture.call();
            let gateway = Gateway::of(fixture.name());
            let first = routed(gateway.send_as(&lower, &call));
            // In flight, in the other spelling, quoted too.
            for spelt in [upper.clone(), format!("\"{upper}\"")] {
                let answer = answered(gateway.send_as(&spelt, &call));
                says(&answer, ("refund-in-progress", "unknown", fixture.by_key));
            }
            let key = (fixture.sent_key)(&first);
            gateway.settled(
                first
                    .sent
                    .reply(&core_testbed::fixtures::head(500, &[]), b"", 1),
            );
            match (gateway.send_as(&upper, &call), fixture.by_key) {
                // The provider gets the same key, so the second send is no second refund.
                (asked, "same_key") => {
                    assert_eq!((fixture.sent_key)(&routed(asked)), key, "{version}");
                }
                (asked, _) => assert!(answered(asked).replayed),
            }
            let look_up =
                |key: &str| path(gateway.try_to_ask(&gateway.query(&format!("&key={key}"))));
            assert_eq!(look_up(&lower), look_up(&upper));
            // Another amount under the other spelling is another refund under a used key.
            let other = fixture.call_for("7.00", fixture.currency);
            let answer = answered(gateway.send_as(&upper, &other));
            says(&answer, ("idempotency-key-reused", "unknown", "no"));
        }
    }
}

#[test]
fn every_other_key_is_compared_byte_for_byte() {
    for fixture in FIXTURES {
        for (one, other) in [
            ("k-a", "K-A"),
            (
                "0191f5a744d374308739-2d80821416bf",
                "0191F5A744D374308739-2D80821416BF",
            ),
            (
                "{0191f5a7-44d3-7430-8739-2d80821416bf}",
                "{0191F5A7-44D3-7430-8739-2D80821416BF}",
            ),
        ] {
            let keys = [one, other].map(|key| {
                // Two payments, so that the payment's own claim does not count.
                let gateway = Gateway::of(fixture.name());
                (fixture.sent_key)(&routed(gateway.send_as(key, &fixture.call())))
            });
            assert_eq!(keys[0] == keys[1], fixture.by_key == "look_up", "{one}");
        }
    }
}

// 2. Two refunds of one payment.

/// The providers that refund a payment once.
fn once() -> impl Iterator<Item = &'static Fixture> {
    FIXTURES
        .iter()
        .filter(|fixture| fixture.by_key == "look_up")
}

#[test]
fn a_second_refund_of_a_payment_is_not_sent_where_a_payment_has_one() {
    for fixture in once() {
        let open: Told<'_> = ("payment-has-refund", "not_refunded", "same_key");
        let stands: Told<'_> = ("payment-has-refund", "not_refunded", "no");
        for value in ["10.00", "3.00"] {
            let second = fixture.call_for(value, fixture.currency);
            let gateway = Gateway::of(fixture.name());
            // In flight.
            let first = routed(gateway.send());
            says(&gateway.refund_as("k-2", &second, 200, None), open);
            // Its end is not known.
            let answer = gateway.replied(Out::Routed(first), &fixture.call(), 500, Some(""));
            assert_eq!(told(&answer).1, "unknown");
            says(&gateway.refund_as("k-2", &second, 200, None), open);
            // It is made, as a look-up has found.
            says(&gateway.look_up("&key=k-1", &gateway.shows_it()), SUCCEEDED);
            says(&gateway.refund_as("k-2", &second, 200, None), stands);
            // The key of the second is not spent: another payment's refund takes it.
            let other = call_about(fixture, json!({"id": "4923"}));
            assert_eq!(gateway.refund_as("k-2", &other, 200, None).status, 200);
        }
        // Declined for certain: the payment can be refunded under another key.
        let gateway = Gateway::of(fixture.name());
        let declined = r#"{"responseCode": "2002"}"#;
        says(
            &gateway.refund(200, Some(declined)),
            ("refund-declined", "not_refunded", "no"),
        );
        assert_eq!(
            gateway.refund_as("k-2", &fixture.call(), 200, None).status,
            200
        );
    }
}

fn call_about(fixture: &Fixture, payment: Value) -> Value {
    let mut call = fixture.call();
    call["payment"] = payment;
    call
}

#[test]
fn a_payment_is_one_by_each_of_its_names() {
    let (id, reference) = (json!({"id": "4922"}), json!({"reference": "1655817171"}));
    let both = json!({"id": "4922", "reference": "1655817171"});
    for fixture in once() {
        for (first, second) in [
            (&both, &id),
            (&both, &reference),
            (&id, &both),
            (&reference, &both),
        ] {
            let gateway = Gateway::of(fixture.name());
            gateway.lost_as(KEY, &call_about(fixture, first.clone()));
            let answer = gateway.refund_as("k-2", &call_about(fixture, second.clone()), 200, None);
            says(&answer, ("payment-has-refund", "not_refunded", "same_key"));
        }
        // The reply to the first has shown the other name.
        let gateway = Gateway::of(fixture.name());
        let made = gateway.refund_as(KEY, &call_about(fixture, id.clone()), 200, None);
        says(&made, SUCCEEDED);
        let answer = gateway.refund_as("k-2", &call_about(fixture, reference.clone()), 200, None);
        says(&answer, ("payment-has-refund", "not_refunded", "no"));
    }
}

#[test]
fn a_refund_is_not_attributed_to_a_key_by_its_amount() {
    for fixture in once() {
        let shown = |gateway: &Gateway| gateway.shows_it();
        // Nothing is remembered of the key, or it was never sent.
        let gateway = Gateway::of(fixture.name());
        says(&gateway.look_up("&key=k-1", &shown(&gateway)), AMBIGUOUS);
        gateway.lost();
        gateway.refund_as("k-2", &fixture.call(), 200, None);
        says(&gateway.look_up("&key=k-2", &shown(&gateway)), AMBIGUOUS);
        // Without a key.
        says(&gateway.look_up("", &shown(&gateway)), AMBIGUOUS);
        says(
            &gateway.look_up("&reference=r", &shown(&gateway)),
            AMBIGUOUS,
        );
        // Alone, and not refused: it is the key's.
        says(&gateway.look_up("&key=k-1", &shown(&gateway)), SUCCEEDED);

        // Another key was sent for the payment before, and declined.
        let gateway = Gateway::of(fixture.name());
        gateway.refund(200, Some(r#"{"responseCode": "2002"}"#));
        gateway.lost_as("k-2", &fixture.call());
        for key in ["k-1", "k-2"] {
            let answer = gateway.look_up(&format!("&key={key}"), &shown(&gateway));
            says(&answer, AMBIGUOUS);
        }
        // The same payment by its other name, which the order shows.
        let gateway = Gateway::of(fixture.name());
        gateway.lost_as(KEY, &call_about(fixture, json!({"id": "4922"})));
        gateway.lost_as(
            "k-2",
            &call_about(fixture, json!({"reference": "1655817171"})),
        );
        let order = shown(&gateway);
        for (key, name) in [
            ("k-1", "payment_id=4922"),
            ("k-2", "payment_reference=1655817171"),
        ] {
            let query = format!("provider={}&{name}&key={key}", fixture.name());
            says(&gateway.told(gateway.ask(&query), &order), AMBIGUOUS);
        }
        // A send under the key was refused, by a word that may mean that the refund is there.
        let gateway = Gateway::of(fixture.name());
        let refused = gateway.refund(200, Some(r#"{"responseCode": "9005"}"#));
        says(&refused, ("provider-rejected", "unknown", "look_up"));
        says(&gateway.look_up("&key=k-1", &shown(&gateway)), AMBIGUOUS);
        // What is ambiguous is not stored: the next call is told what it was told.
        assert_eq!(told(&gateway.refund(200, None)).0, "provider-rejected");
    }
}

#[test]
fn a_refusal_is_in_doubt_once_its_payment_shows_a_refund_that_no_other_key_explains() {
    for fixture in once() {
        let declined = r#"{"responseCode": "0000", "order": {"id": 4922, "amount": 15.00, "netAmount": 15.00},
            "transaction": {"type": "REFUND", "amount": 10, "currency": "HKD", "status": "DECLINED"}}"#;
        let refused = ("refund-declined", "not_refunded", "no");
        let gateway = Gateway::of(fixture.name());
        says(&gateway.refund(200, Some(declined)), refused);
        says(&gateway.look_up("&key=k-1", &gateway.shows_it()), AMBIGUOUS);
        let doubt = ("provider-rejected", "unknown", "look_up");
        says(&gateway.refund(200, None), doubt);
        // Another key's refund explains it.
        let gateway = Gateway::of(fixture.name());
        says(&gateway.refund(200, Some(declined)), refused);
        gateway.refund_as("k-2", &fixture.call(), 200, None);
        says(&gateway.look_up("&key=k-1", &gateway.shows_it()), AMBIGUOUS);
        says(&gateway.refund(200, None), refused);
    }
}

#[test]
fn another_key_that_is_sent_while_the_provider_is_asked_makes_its_word_ambiguous() {
    for fixture in once() {
        // The look-up begins, and another key is sent for the payment by its other name.
        let gateway = Gateway::of(fixture.name());
        gateway.lost_as(KEY, &call_about(fixture, json!({"id": "4922"})));
        let look_up = gateway.ask(&gateway.query("&key=k-1"));
        let by_reference = call_about(fixture, json!({"reference": "1655817171"}));
        gateway.lost_as("k-2", &by_reference);
        let order = gateway.shows_it();
        says(&gateway.told(look_up, &order), AMBIGUOUS);
    }
}

// 3. Absence at a moment.

#[test]
fn absence_is_proof_only_once_no_send_can_still_arrive() {
    for (name, proof) in proofs() {
        let gateway = Gateway::of(name);
        says(&gateway.lost(), UNKNOWN(fixture(name)));
        for (after_ms, left) in [(0, 300), (1_000, 299), (298_500, 1)] {
            gateway.later(after_ms);
            let answer = gateway.look_up("&key=k-1", proof);
            says(&answer, NOT_SHOWN);
            assert_eq!(retry_after(&answer), Some(left));
        }
        gateway.later(500);
        let answer = gateway.look_up("&key=k-1", proof);
        says(&answer, ABSENT);
        assert_eq!(retry_after(&answer), None);
    }
}

#[test]
fn a_refund_that_no_longer_shows_is_no_longer_certain() {
    for (name, proof) in proofs() {
        let gateway = Gateway::of(name);
        says(&gateway.refund(200, None), SUCCEEDED);
        // A provider may be slow to show it, and its own word stands.
        says(&gateway.look_up("&key=k-1", proof), NOT_SHOWN);
        says(&gateway.refund(200, None), SUCCEEDED);
        gateway.later(SETTLE_MS);
        says(&gateway.look_up("&key=k-1", proof), NOT_SHOWN);
        let again = gateway.refund(500, None);
        assert_eq!(told(&again).1, "unknown", "{}", again.body);
    }
}

#[test]
fn the_time_in_which_a_send_may_arrive_is_the_providers_own_setting() {
    for (name, proof) in proofs() {
        let mut provider = fixture(name).provider_config();
        provider["settle_seconds"] = json!(7);
        let gateway = Gateway::with(name, &provider);
        gateway.lost();
        gateway.later(6_999);
        says(&gateway.look_up("&key=k-1", proof), NOT_SHOWN);
        gateway.later(1);
        says(&gateway.look_up("&key=k-1", proof), ABSENT);
    }
}

#[test]
fn absence_proves_nothing_without_the_key_or_while_a_send_is_in_flight() {
    for (name, proof) in proofs() {
        let gateway = Gateway::of(name);
        if name == "bbmsl" {
            let answer = gateway.look_up("", proof);
            says(&answer, NOT_SHOWN);
            assert_eq!(retry_after(&answer), Some(300));
        }
        let _sent = routed(gateway.send());
        gateway.later(10_000);
        let answer = gateway.look_up("&key=k-1", proof);
        says(&answer, NOT_SHOWN);
        assert_eq!(retry_after(&answer), Some(1));
        // Its lease has run out: it may have been held back, and may have been sent just now.
        gateway.later(GuardSettings::default().lease_ms);
        says(&gateway.look_up("&key=k-1", proof), NOT_SHOWN);
        gateway.later(60_000 + SETTLE_MS);
        says(&gateway.look_up("&key=k-1", proof), ABSENT);
    }
}

#[test]
fn a_gateway_that_does_not_remember_the_key_must_have_been_up_for_long_enough() {
    for (name, proof) in proofs() {
        let mut gateway = Gateway::of(name);
        gateway.lost();
        gateway.restart();
        let answer = gateway.look_up("&key=k-1", proof);
        says(&answer, NOT_SHOWN);
        assert_eq!(retry_after(&answer), Some(300));
        gateway.later(SETTLE_MS - 1);
        says(&gateway.look_up("&key=k-1", proof), NOT_SHOWN);
        gateway.later(1);
        says(&gateway.look_up("&key=k-1", proof), ABSENT);
    }
}

#[test]
fn the_provider_must_have_been_asked_after_the_settled_time_not_only_have_answered() {
    for (name, proof) in proofs() {
        let gateway = Gateway::of(name);
        gateway.lost();
        gateway.later(SETTLE_MS - 1);
        let asked = gateway.ask(&gateway.query("&key=k-1"));
        gateway.later(9_000);
        says(&gateway.told(asked, proof), NOT_SHOWN);
    }
}

#[test]
fn absence_lets_the_key_be_sent_again_and_clears_nothing() {
    for (name, proof) in proofs() {
        for status in [400, 401, 403, 404, 422, 429, 500] {
            let gateway = Gateway::of(name);
            gateway.lost();
            gateway.later(SETTLE_MS);
            says(&gateway.look_up("&key=k-1", proof), ABSENT);
            // The further send, and whatever refuses it.
            let answer = gateway.refund(status, Some("{}"));
            let (_, outcome, retry) = told(&answer);
            assert_eq!(outcome, "unknown", "{name} {status}");
            assert_ne!(retry, "no", "{name} {status}");
            // It is a send: what it left behind may arrive.
            says(&gateway.look_up("&key=k-1", proof), NOT_SHOWN);
            gateway.later(SETTLE_MS);
            says(&gateway.look_up("&key=k-1", proof), ABSENT);
            // And its success is one.
            assert_eq!(gateway.refund(200, None).status, 200);
        }
    }
}

#[test]
fn a_refusal_while_the_first_send_may_arrive_is_unknown() {
    for fixture in FIXTURES {
        for status in [400, 401, 402, 403, 404, 415, 422, 429] {
            let gateway = Gateway::of(fixture.name());
            gateway.lost();
            let answer = gateway.refund(status, Some("{}"));
            let (_, outcome, retry) = told(&answer);
            assert_eq!(outcome, "unknown", "{} {status}", fixture.name());
            assert_ne!(retry, "no", "{} {status}", fixture.name());
        }
    }
}

// 4. A reference in front of the key.

#[test]
fn an_empty_list_proves_nothing_where_a_reference_went_out() {
    let gateway = Gateway::of("begateway");
    let mut call = gateway.fixture.call();
    call["reference"] = json!("refund-77");
    gateway.lost_as(KEY, &call);
    gateway.later(SETTLE_MS);
    for more in ["&key=k-1", "&key=k-1&reference=refund-77"] {
        says(
            &gateway.look_up(more, fixture("begateway").absent.unwrap()),
            NOT_SHOWN,
        );
    }
    // Whoever names a reference says that one went out.
    let gateway = Gateway::of("begateway");
    says(
        &gateway.look_up(
            "&key=k-1&reference=refund-77",
            fixture("begateway").absent.unwrap(),
        ),
        NOT_SHOWN,
    );
    says(
        &gateway.look_up("&key=k-1", fixture("begateway").absent.unwrap()),
        ABSENT,
    );
}

// 5. A later word.

#[test]
fn the_newest_word_of_the_provider_counts_and_its_change_is_counted() {
    for (name, failed, refusal) in [
        ("bog", "rejected", None),
        ("moyasar", "failed", Some("failed")),
        ("begateway", "failed", Some("failed")),
    ] {
        let declined: Told<'_> = ("refund-declined", "not_refunded", "no");
        let gateway = Gateway::of(name);
        let (payment, id, done) = gateway.names();
        // POST says that it failed (at BOG a look-up does), a look-up that it was made, and the
        // other way round.
        match refusal {
            Some(word) => {
                let success = {
                    let dispatch = routed(Gateway::of(name).send());
                    gateway
                        .fixture
                        .success_reply(&gateway.fixture.call(), &dispatch)
                        .0
                };
                let mut reply: Value = serde_json::from_str(&success).unwrap();
                gateway.fixture.say(&mut reply, &json!(word));
                says(&gateway.refund(200, Some(&reply.to_string())), declined);
            }
            None => {
                gateway.refund(200, None);
                gateway.look_up("&key=k-1", &gateway.shows(&payment, &id, 1_000, failed));
                says(&gateway.refund(200, None), declined);
            }
        }
        for (word, status, next) in [
            (done, "succeeded", SUCCEEDED),
            (failed, "failed", declined),
            (done, "succeeded", SUCCEEDED),
        ] {
            let out = gateway.ask(&gateway.query("&key=k-1"));
            let shown = gateway.shows(&payment, &id, 1_000, word);
            let (answer, counted) = gateway.counted(out.reply(
                &core_testbed::fixtures::head(200, &[]),
                shown.as_bytes(),
                gateway.now(),
            ));
            says(&answer, (status, "", ""));
            assert_eq!(counted, Some("changed"), "{name}");
            let again = gateway.refund(200, None);
            says(&again, next);
            assert!(again.replayed);
        }
    }
}

// 6. A name that another caller could have chosen.

#[test]
fn a_reference_that_is_another_refunds_key_is_not_that_key() {
    let gateway = Gateway::of("begateway");
    gateway.lost();
    let key = oracles::derived_key("begateway", KEY);
    let other = "11111111-1111-4111-8111-111111111111";
    // Another caller's refund, whose reference is our key, and its own key after it.
    for tracking_id in [
        format!("{key};{other}"),
        format!("{other};{key};{other}"),
        format!("{key}; {other}"),
    ] {
        let shown = gateway.shows(&gateway.payment(), &tracking_id, 1_000, "successful");
        says(&gateway.look_up("&key=k-1", &shown), NOT_SHOWN);
    }
    // Ours, with whatever in front of it.
    for tracking_id in [
        key.clone(),
        format!("a;b;{key}"),
        format!("{other};{key}"),
        key.to_uppercase(),
    ] {
        let gateway = Gateway::of("begateway");
        let shown = gateway.shows(&gateway.payment(), &tracking_id, 1_000, "successful");
        says(&gateway.look_up("&key=k-1", &shown), SUCCEEDED);
    }
}

#[test]
fn a_reference_alone_tells_of_no_refund_for_certain() {
    let gateway = Gateway::of("begateway");
    let payment = gateway.payment();
    for status in ["successful", "failed", "pending"] {
        let shown = gateway.shows(
            &payment,
            "r-1;11111111-1111-4111-8111-111111111111",
            1_000,
            status,
        );
        says(&gateway.look_up("&reference=r-1", &shown), AMBIGUOUS);
    }
    // The key of one is no reference of another.
    let shown = gateway.shows(&payment, "r-1", 1_000, "successful");
    says(&gateway.look_up("&reference=r-1", &shown), NOT_SHOWN);
}

#[test]
fn an_id_beside_a_key_must_be_that_keys() {
    let other = "11111111-1111-4111-8111-111111111111";
    let moyasar = Gateway::of("moyasar");
    let shown = moyasar.shows(&moyasar.payment(), other, 1_000, "approved");
    says(
        &moyasar.look_up(&format!("&key=k-1&id={other}"), &shown),
        MISMATCH,
    );
    let begateway = Gateway::of("begateway");
    let list = begateway.shows(&begateway.payment(), other, 1_000, "successful");
    let list: Value = serde_json::from_str(&list).unwrap();
    let one = json!({"transaction": list["transactions"][0]}).to_string();
    says(&begateway.look_up("&key=k-1&id=2-1", &one), MISMATCH);
    says(&begateway.look_up("&id=2-1", &one), SUCCEEDED);
}

// 7. A full table.

#[test]
fn a_call_without_room_never_passes_on_the_providers_no_as_certain() {
    for fixture in FIXTURES
        .iter()
        .filter(|fixture| fixture.by_key == "same_key")
    {
        let settings = GuardSettings {
            entries: 1,
            ..GuardSettings::default()
        };
        let mut declined = json!({"status": 200, "body": null});
        let gateway = Gateway::guarded(fixture.name(), &fixture.provider_config(), settings);
        gateway.lost_as("fills-the-table", &fixture.call());
        let faulty = answered(gateway.send_as(KEY, &json!({"provider": fixture.name()})));
        says(&faulty, ("invalid-request", "not_refunded", "corrected"));
        for status in [400, 401, 402, 403, 404, 405, 415, 422, 429] {
            let answer = gateway.refund(status, Some("{}"));
            let (_, outcome, retry) = told(&answer);
            assert_eq!(outcome, "unknown", "{} {status}", fixture.name());
            let expected = if matches!(status, 401 | 403 | 429) {
                "same_key"
            } else {
                "look_up"
            };
            assert_eq!(retry, expected, "{} {status}", fixture.name());
        }
        // A decline in a 200, too.
        if let Some(word) = fixture.declined.first() {
            let dispatch = routed(gateway.send());
            let success = fixture.success_reply(&fixture.call(), &dispatch).0;
            let mut reply: Value = serde_json::from_str(&success).unwrap();
            fixture.say(&mut reply, &json!(word));
            declined["body"] = json!(reply.to_string());
            let answer = gateway.replied(
                Out::Routed(dispatch),
                &fixture.call(),
                200,
                declined["body"].as_str(),
            );
            says(&answer, ("refund-declined", "unknown", "look_up"));
        }
        // Now any key may be one that went out without room, and what is said of it without asking
        // the provider as well.
        let faulty = answered(gateway.send_as(KEY, &json!({"provider": fixture.name()})));
        says(&faulty, ("invalid-request", "unknown", "corrected"));
        let unsent = routed(gateway.send()).sent.local_reply(LocalReply {
            status: 503,
            details: "upstream_reset_before_response_started{remote_connection_failure}",
            connected: false,
            attempts: 1,
        });
        says(&unsent, ("provider-unreachable", "unknown", "same_key"));
        assert!(gateway.refund(200, None).status < 300);
    }
}

// 8. Faults of the call.

#[test]
fn no_fault_of_a_call_ever_asks_for_a_new_key() {
    for fixture in FIXTURES {
        for made in [false, true] {
            let gateway = Gateway::of(fixture.name());
            if made {
                gateway.refund(200, None);
            }
            let outcome = if made { "unknown" } else { "not_refunded" };
            let with = |name: &str, value: &str| {
                let mut headers = Headers::default();
                let mut replaced = false;
                for (known, old) in call_headers(KEY).iter() {
                    let is = known == name.as_bytes();
                    replaced |= is;
                    let value = if is {
                        value.as_bytes().to_vec()
                    } else {
                        old.to_vec()
                    };
                    headers.push(known.to_vec(), value);
                }
                if !replaced {
                    headers.push(name.as_bytes().to_vec(), value.as_bytes().to_vec());
                }
                headers
            };
            let call = fixture.call();
            let mut stranger = call.clone();
            stranger["provider"] = json!("no longer configured");
            let rows = [
                (
                    answered(gateway.send_as(KEY, &json!({}))),
                    "invalid-request",
                ),
                (answered(gateway.send_as(KEY, &stranger)), "invalid-request"),
                (
                    answered(gateway.send_with(&with(":method", "PUT"), &call)),
                    "method-not-allowed",
                ),
                (
                    answered(gateway.send_with(&with("content-type", "text/plain"), &call)),
                    "unsupported-media-type",
                ),
                (
                    answered(gateway.send_with(&with("content-length", "99999999"), &call)),
                    "body-too-large",
                ),
            ];
            for (answer, code) in rows {
                says(&answer, (code, outcome, "corrected"));
                assert!(!answer.body.contains("use a new key"), "{}", answer.body);
            }
        }
    }
}

// 9. A status and its body.

/// Replies that say that a refund is there, by provider: made, or made before.
fn there(fixture: &Fixture, call: &Value) -> Vec<String> {
    let dispatch = routed(Gateway::of(fixture.name()).send_as(KEY, call));
    let mut replies = vec![fixture.success_reply(call, &dispatch).0];
    replies.extend(fixture.may_be_there.iter().map(|reply| (*reply).to_owned()));
    replies
}

#[test]
fn no_status_is_certain_around_a_body_that_may_be_a_refund() {
    for fixture in FIXTURES {
        let call = fixture.call();
        for status in [
            400, 401, 402, 403, 404, 405, 406, 409, 410, 411, 413, 414, 415, 422, 429, 431,
        ] {
            for reply in there(fixture, &call) {
                let answer = Gateway::of(fixture.name()).refund(status, Some(&reply));
                let (code, outcome, retry) = told(&answer);
                assert_eq!(
                    outcome,
                    "unknown",
                    "{} {status} {reply}: {code}",
                    fixture.name()
                );
                assert_ne!(retry, "no", "{} {status} {reply}", fixture.name());
            }
        }
    }
}

#[test]
fn what_a_bare_status_says_stays_what_it_is() {
    for fixture in FIXTURES {
        for body in [
            "",
            "{}",
            "<html>429 Too Many Requests</html>",
            r#"{"message":"Unauthorized"}"#,
        ] {
            for (status, code) in [
                (401, "provider-auth-failed"),
                (403, "provider-auth-failed"),
                (429, "provider-rate-limited"),
            ] {
                let answer = Gateway::of(fixture.name()).refund(status, Some(body));
                says(&answer, (code, "not_refunded", "same_key"));
            }
        }
    }
}

#[test]
fn a_reply_that_cannot_be_read_leaves_no_status_certain() {
    for fixture in FIXTURES {
        for status in [400, 401, 403, 404, 422, 429] {
            let gateway = Gateway::of(fixture.name());
            let dispatch = routed(gateway.send());
            let head = core_testbed::fixtures::head(status, &[("content-encoding", "gzip")]);
            let answer = gateway.settled(dispatch.sent.reply(&head, b"\x1f\x8b", 1));
            assert_eq!(told(&answer).1, "unknown", "{} {status}", fixture.name());
        }
    }
}

#[test]
fn where_the_provider_has_no_keys_no_refusal_is_certain_that_is_not_configured() {
    let refused: Told<'_> = ("provider-rejected", "unknown", "look_up");
    let declined: Told<'_> = ("refund-declined", "not_refunded", "no");
    for status in [200, 400, 402, 404, 405, 415, 422, 431] {
        for (body, expected) in [
            (r#"{"responseCode": "2001"}"#, refused),
            (
                r#"{"responseCode": "2001", "message": "Insufficient balance"}"#,
                refused,
            ),
            (r#"{"responseCode": "2002"}"#, declined),
            (
                r#"{"responseCode": "0000", "order": {"id": 4922, "amount": 15.00, "netAmount": 15.00},
                    "transaction": {"type": "REFUND", "amount": 10, "currency": "HKD", "status": "DECLINED"}}"#,
                declined,
            ),
        ] {
            says(&Gateway::of("bbmsl").refund(status, Some(body)), expected);
        }
    }
    // A decline that names no order, or beside an order that shows a refund.
    for (body, expected) in [
        (
            r#"{"responseCode": "0000", "transaction": {"amount": 10, "status": "DECLINED"}}"#,
            ("provider-reply-unreadable", "unknown", "look_up"),
        ),
        (
            r#"{"responseCode": "0000", "order": {"id": 4922, "amount": 15.00, "netAmount": 5.00},
                "transaction": {"amount": 10, "currency": "HKD", "status": "DECLINED"}}"#,
            refused,
        ),
        (
            r#"{"responseCode": "0000", "order": {"id": 4922}, "transaction": {"id": 1, "amount": 10, "currency": "HKD",
                "status": "SUCCESS"}}"#,
            SUCCEEDED,
        ),
        (
            r#"{"responseCode": "0000", "transaction": {"id": 1, "amount": 10, "currency": "HKD", "status": "SUCCESS"}}"#,
            ("provider-reply-unreadable", "unknown", "look_up"),
        ),
    ] {
        says(&Gateway::of("bbmsl").refund(200, Some(body)), expected);
    }
}

// 10. beGateway's levels.

#[test]
fn levels_that_contradict_each_other_are_unreadable() {
    let unreadable: Told<'_> = ("provider-reply-unreadable", "unknown", "same_key");
    let words = [
        ("successful", "succeeded"),
        ("pending", "pending"),
        ("incomplete", "pending"),
        ("failed", "failed"),
        ("expired", "failed"),
        ("error", "unknown"),
        ("strange", "strange"),
    ];
    for (on_top, means) in words {
        for (inside, means_inside) in words {
            let reply = json!({"transaction": {
                "uid": "2-1", "parent_uid": "1-310b0da80b", "type": "refund", "status": on_top, "amount": 1_000,
                "currency": "USD", "refund": {"status": inside},
            }});
            let answer = Gateway::of("begateway").refund(200, Some(&reply.to_string()));
            let (_, outcome, _) = told(&answer);
            let certain =
                means == means_inside && matches!(means, "succeeded" | "pending" | "failed");
            match outcome.as_str() {
                "unknown" => assert!(!certain, "{on_top} {inside}: {}", answer.body),
                _ => assert!(certain, "{on_top} {inside}: {}", answer.body),
            }
        }
    }
    for reply in [
        // Nothing names this refund.
        json!({"transaction": {"status": "failed"}}),
        json!({"transaction": {"status": "successful", "uid": "2-1"}}),
        // Errors beside it.
        json!({"errors": {"amount": ["x"]}, "transaction": {
            "uid": "2-1", "parent_uid": "1-310b0da80b", "status": "failed",
        }}),
    ] {
        let answer = Gateway::of("begateway").refund(200, Some(&reply.to_string()));
        says(&answer, unreadable);
    }
}

#[test]
fn an_echoed_key_is_compared() {
    let key = oracles::derived_key("begateway", KEY);
    let other = "11111111-1111-4111-8111-111111111111";
    for (tracking_id, ours) in [
        (json!(key), true),
        (json!(format!("a;{key}")), true),
        (json!(other), false),
        (json!(format!("{key};{other}")), false),
    ] {
        for status in ["successful", "failed"] {
            let reply = json!({"transaction": {
                "uid": "2-1", "parent_uid": "1-310b0da80b", "status": status, "tracking_id": tracking_id,
            }});
            let answer = Gateway::of("begateway").refund(200, Some(&reply.to_string()));
            let (code, outcome, _) = told(&answer);
            assert_eq!(code == "provider-reply-mismatch", !ours, "{reply}");
            assert_eq!(outcome == "unknown", !ours, "{reply}");
        }
    }
}

// 11. Wrong factors.

#[test]
fn a_currency_whose_factor_is_in_dispute_is_refused_before_sending() {
    for code in ["IRR", "KPW", "LAK", "LBP", "MMK", "MOP", "UGX", "UYW"] {
        let call = fixture("begateway").call_for("1000", code);
        let answer = answered(Gateway::of("begateway").send_as(KEY, &call));
        says(&answer, ("invalid-request", "not_refunded", "corrected"));
        assert!(answer.body.contains("minor_units"), "{}", answer.body);
        for (digits, sent) in [(0, "1000"), (1, "10000"), (2, "100000")] {
            let mut provider = fixture("begateway").provider_config();
            provider["minor_units"] = json!({code: digits});
            let gateway = Gateway::with("begateway", &provider);
            let dispatch = routed(gateway.send_as(KEY, &call));
            assert_eq!(
                gateway.fixture.wire_amount(&dispatch).as_deref(),
                Some(sent)
            );
            // And the echo is read by the same factor.
            let reply = json!({"transaction": {
                "uid": "2-1", "parent_uid": "1-310b0da80b", "status": "successful", "currency": code,
                "amount": sent.parse::<u64>().unwrap(),
            }});
            let answer = gateway.settled(dispatch.sent.reply(
                &core_testbed::fixtures::head(200, &[]),
                reply.to_string().as_bytes(),
                1,
            ));
            assert_eq!(answer.status, 200, "{}", answer.body);
            let value = json_of(&answer)["amount"]["value"]
                .as_str()
                .unwrap()
                .to_owned();
            assert_eq!(value.split('.').next(), Some("1000"));
        }
        // A look-up's amount in it is not made up.
        let gateway = Gateway::of("begateway");
        let key = oracles::derived_key("begateway", KEY);
        let shown = gateway
            .shows(&gateway.payment(), &key, 1_000, "successful")
            .replace("USD", code);
        let answer = gateway.look_up("&key=k-1", &shown);
        says(&answer, SUCCEEDED);
        assert_eq!(json_of(&answer).get("amount"), None);
    }
}

#[test]
fn every_other_currency_is_counted_as_both_of_the_vendors_tables_have_it() {
    // The vendor's documentation, and its own PHP client.
    let own = [("IDR", 0), ("IQD", 0), ("CVE", 0), ("CLF", 0)];
    for currency in refund_filter::money::Currency::all() {
        let config = fixture("begateway").config();
        let counting = config.provider("begateway").unwrap().dialect.counting();
        let expected = own
            .iter()
            .find(|(code, _)| *code == currency.code())
            .map_or(currency.digits(), |(_, digits)| *digits);
        match currency.code() {
            "IRR" | "KPW" | "LAK" | "LBP" | "MMK" | "MOP" | "UGX" | "UYW" => {
                assert_eq!(counting.digits(currency), None);
            }
            _ => assert_eq!(counting.digits(currency), Some(expected), "{currency:?}"),
        }
    }
}

// 14. The edges of time.

#[test]
fn a_key_is_not_sent_again_shortly_before_the_provider_forgets_it() {
    for settle in [1, 300] {
        let mut provider = fixture("begateway").provider_config();
        provider["settle_seconds"] = json!(settle);
        let margin_ms = i64::max(60, settle) * 1_000;
        let gateway = Gateway::with("begateway", &provider);
        let began = gateway.now();
        let first = gateway.lost();
        let until = |answer: &Answer| {
            let text = json_of(answer)["retry_until"].as_str().unwrap().to_owned();
            OffsetDateTime::parse(&text, &Rfc3339)
                .unwrap()
                .unix_timestamp()
                * 1_000
        };
        assert_eq!(until(&first), began.unix_ms + 24 * HOUR_MS - margin_ms);
        // The last moment at which it goes out again tells the same end.
        gateway.later(24 * HOUR_MS - margin_ms - 1);
        let again = gateway.refund(500, Some(""));
        assert!(!again.replayed);
        assert_eq!(until(&again), until(&first));
        gateway.later(1);
        let late = answered(gateway.send());
        assert!(late.replayed);
        // And nothing advises it any more.
        let retry = json_of(&answered(gateway.send_as(KEY, &json!({}))))["retry"].clone();
        assert_eq!(retry, "corrected");
    }
}

#[test]
fn no_clock_that_jumps_sends_a_key_again_or_grows_its_time() {
    for fixture in FIXTURES {
        for jump_ms in [49 * HOUR_MS, -49 * HOUR_MS] {
            let gateway = Gateway::of(fixture.name());
            let before = json_of(&gateway.lost())["retry_until"].clone();
            gateway.clock_jumps(jump_ms);
            match (gateway.send(), fixture.by_key) {
                (Asked::Answered(answer), "look_up") => assert!(answer.replayed),
                (Asked::Sent(out), "same_key") => {
                    let again = gateway.replied(out, &fixture.call(), 500, Some(""));
                    assert_eq!(json_of(&again)["retry_until"], before);
                }
                _ => panic!("{} {jump_ms}", fixture.name()),
            }
        }
    }
}

#[test]
fn an_unknown_is_never_sent_again_by_itself_where_the_provider_has_no_keys() {
    for fixture in once() {
        let gateway = Gateway::of(fixture.name());
        gateway.lost();
        for _ in 0..10 {
            gateway.later(49 * HOUR_MS);
            assert!(answered(gateway.send()).replayed);
        }
    }
}

// 15. Merchants.

/// The same provider's name, for another shop or merchant.
fn another_merchant(name: &str) -> Value {
    let mut provider = fixture(name).provider_config();
    let (pointer, other) = fixture(name).another_merchant;
    *provider.pointer_mut(pointer).unwrap() = serde_json::from_str(other).unwrap();
    provider
}

#[test]
fn one_memory_behind_two_merchants_answers_neither_for_the_other() {
    for fixture in FIXTURES {
        let name = fixture.name();
        // Two listeners share a vm_id.
        let gateway = Gateway::of(name);
        gateway.refund(200, None);
        let other = gateway.configured(config(name, &another_merchant(name)));
        let answer = answered(other.send());
        assert!(!answer.replayed, "{name}: {}", answer.body);
        says(&answer, ("idempotency-key-reused", "unknown", "no"));
        // Another key is another refund there, of a payment that is another one, too.
        assert!(other.refund_as("k-2", &fixture.call(), 200, None).status < 300);
    }
}

#[test]
fn another_merchants_empty_books_prove_nothing_of_a_key_that_was_sent_to_the_first() {
    for (name, proof) in proofs() {
        let gateway = Gateway::of(name);
        gateway.lost();
        gateway.later(SETTLE_MS);
        // The provider's name is pointed at another shop.
        let moved = gateway.configured(config(name, &another_merchant(name)));
        says(&moved.look_up("&key=k-1", proof), NOT_SHOWN);
    }
}

#[test]
fn two_names_of_one_merchant_are_one_where_a_payment_has_one_refund() {
    for fixture in once() {
        let gateway = Gateway::of(fixture.name());
        gateway.lost();
        let mut provider = fixture.provider_config();
        // Whether it stands there as a number or as a string, and whatever the key that signs.
        provider["merchant_id"] = json!("3");
        let mut again = gateway.configured(config("second", &provider));
        let mut call = fixture.call();
        call["provider"] = json!("second");
        let answer = answered(again.send_as("k-2", &call));
        says(&answer, ("payment-has-refund", "not_refunded", "same_key"));
        again.config = config("second", &another_merchant(fixture.name()));
        assert!(matches!(again.send_as("k-2", &call), Asked::Sent(_)));
    }
}

// 16. Smaller ones.

#[test]
fn moyasar_finds_nothing_by_a_name_that_it_never_got() {
    let gateway = Gateway::of("moyasar");
    let answer = answered(gateway.try_to_ask(&gateway.query("&reference=r-1")));
    says(&answer, ("invalid-request", "unknown", "corrected"));
    // A transaction without an id is nobody's.
    for id in [json!(null), json!(""), json!(17)] {
        let shown = json!({"id": gateway.payment(), "currency": "SAR", "transactions": [
            {"id": id, "type": "refund", "status": "approved", "amount": 1_000},
            {"type": "refund", "status": "approved", "amount": 1_000},
        ]});
        says(&gateway.look_up("&key=k-1", &shown.to_string()), NOT_SHOWN);
    }
}

#[test]
fn bog_says_pending_of_no_id_that_it_never_gave() {
    let requested = |gateway: &Gateway| {
        json!({"order_id": gateway.payment(), "order_status": {"key": "refund_requested"}})
            .to_string()
    };
    let gateway = Gateway::of("bog");
    for more in ["&id=invented", "&id=invented&key=k-1"] {
        says(&gateway.look_up(more, &requested(&gateway)), NOT_SHOWN);
    }
    // The gateway remembers that the id is the key's.
    gateway.refund(200, None);
    says(
        &gateway.look_up("&key=k-1", &requested(&gateway)),
        ("pending", "", ""),
    );
    says(
        &gateway.look_up("&key=k-1&id=invented", &requested(&gateway)),
        NOT_SHOWN,
    );
}

#[test]
fn no_name_is_a_dot_segment() {
    for fixture in FIXTURES {
        for dots in [".", ".."] {
            let mut call = fixture.call();
            call["reference"] = json!(dots);
            let answer = answered(Gateway::of(fixture.name()).send_as(KEY, &call));
            says(&answer, ("invalid-request", "not_refunded", "corrected"));
            let gateway = Gateway::of(fixture.name());
            let query = gateway.query(&format!("&key=k-1&reference={dots}"));
            let answer = answered(gateway.try_to_ask(&query));
            says(&answer, ("invalid-request", "unknown", "corrected"));
        }
    }
}

/// A caller that obeys `retry` comes to an end.
#[test]
fn a_careful_caller_of_a_payment_that_does_not_exist_comes_to_an_end() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        let (status, body) = fixture.no_payment;
        let mut answer = gateway.refund(status, Some(body));
        let mut rounds = 0;
        while matches!(&*told(&answer).2, "look_up" | "same_key") {
            rounds += 1;
            assert!(rounds < 10, "{}: {}", fixture.name(), answer.body);
            gateway.later(SETTLE_MS);
            answer = match &*told(&answer).2 {
                "look_up" => {
                    let asked = gateway.ask(&gateway.query("&key=k-1"));
                    gateway.told_with(asked, status, body)
                }
                _ => gateway.refund(status, Some(body)),
            };
        }
        assert_eq!(told(&answer).2, "no", "{}", answer.body);
    }
}

#[test]
fn a_careful_caller_of_an_acceptance_without_an_id_comes_to_an_end() {
    let gateway = Gateway::of("bog");
    let answer = gateway.refund(200, Some(r#"{"key": "request_received", "message": "ok"}"#));
    says(&answer, ("pending", "", ""));
    assert_eq!(json_of(&answer).get("id"), None);
    says(&gateway.look_up("&key=k-1", &gateway.shows_it()), AMBIGUOUS);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_reply() {
    for fixture in FIXTURES {
        let gateway = Gateway::of(fixture.name());
        let dispatch = routed(gateway.send());
        let success = fixture.success_reply(&fixture.call(), &dispatch).0;
        let marked = format!("\u{feff}{success}");
        let answer = gateway.replied(Out::Routed(dispatch), &fixture.call(), 200, Some(&marked));
        says(&answer, (fixture.means, "", ""));
    }
    // Of a call it is: the contract's JSON begins with a brace.
    let gateway = Gateway::of("bog");
    let Opening::Read(reading) = open(&gateway.config, &call_headers(KEY), NOW, &|_| None, &|_| {
        None
    }) else {
        panic!("not read")
    };
    let body = format!("\u{feff}{}", gateway.fixture.call());
    let answer = reading.accept(body.as_bytes(), &|_| None).unwrap_err();
    says(&answer, ("malformed-json", "not_refunded", "corrected"));
}

#[test]
fn a_call_of_which_nothing_left_costs_no_entry_even_where_it_is_unknown() {
    // A key that was sent, and a further call that comes to nothing before it leaves.
    for fixture in FIXTURES
        .iter()
        .filter(|fixture| fixture.by_key == "same_key")
    {
        let gateway = Gateway::of(fixture.name());
        gateway.lost();
        let before = gateway.memory.guard().standing(
            &refund_filter::idempotency::IdempotencyKey::from_header([KEY.as_bytes()].into_iter())
                .unwrap()
                .digest(),
            gateway.now(),
        );
        let dispatch = routed(gateway.send());
        let answer = gateway.settled(dispatch.sent.local_reply(LocalReply {
            status: 503,
            details: "upstream_reset_before_response_started{remote_connection_failure}",
            connected: false,
            attempts: 1,
        }));
        says(&answer, ("provider-unreachable", "unknown", "same_key"));
        assert!(before.is_some());
    }
}

// 18. What a provider says of single fields.

#[test]
fn what_a_provider_says_of_single_fields_is_passed_on_whatever_shape_it_came_in() {
    let field = |field: &str, message: &str| json!({"field": field, "message": message});
    let bare = |message: &str| json!({"message": message});
    for (name, body, expected) in [
        (
            "moyasar",
            json!({"message": "Data validation failed", "errors": {"amount": ["must be an integer", "must be positive"]}}),
            json!([
                field("amount", "must be an integer"),
                field("amount", "must be positive")
            ]),
        ),
        (
            "begateway",
            json!({"message": "m", "errors": {"request": {"amount": ["is missing"], "reason": "is missing"}}}),
            json!([
                field("request.amount", "is missing"),
                field("request.reason", "is missing")
            ]),
        ),
        (
            "begateway",
            json!({"response": {"message": "m", "errors": {"parent_uid": ["is unknown"]}}}),
            json!([field("parent_uid", "is unknown")]),
        ),
        (
            "begateway",
            json!({"error": {"message": "m", "errors": ["is wrong", "is worse"]}}),
            json!([bare("is wrong"), bare("is worse")]),
        ),
        (
            "begateway",
            json!({"code": "F.0105", "message": {"request": {"amount": ["is invalid"]}}}),
            json!([field("request.amount", "is invalid")]),
        ),
        (
            "begateway",
            json!({"message": "m", "errors": [{"field": "amount", "message": "is wrong"}, {"path": "a", "detail": "b"}]}),
            json!([field("amount", "is wrong"), field("a", "b")]),
        ),
        (
            "begateway",
            json!({"message": "m", "errors": {"a": [{"b": 1}, {"c": null}, true, []]}}),
            json!([field("a.b", "1")]),
        ),
    ] {
        let answer = Gateway::of(name).refund(422, Some(&body.to_string()));
        assert_eq!(json_of(&answer)["provider"]["errors"], expected, "{body}");
    }
    // Sixteen at most, each cleaned, and of bounded length.
    let many: Vec<_> = (0..40).map(|nth| format!("error {nth}")).collect();
    let body = json!({"errors": {"CANARY-begateway-secret-key": many}});
    let answer = Gateway::of("begateway").refund(422, Some(&body.to_string()));
    let errors = json_of(&answer)["provider"]["errors"].clone();
    assert_eq!(errors.as_array().unwrap().len(), 16);
    assert!(!answer.body.contains("CANARY"), "{}", answer.body);
    let long = json!({"errors": vec!["4111111111111111 \u{7} ".repeat(1_000); 16]});
    let answer = Gateway::of("begateway").refund(422, Some(&long.to_string()));
    assert!(answer.body.len() < 10_000 && !answer.body.contains("4111111111111111"));
}

#[test]
fn a_code_is_passed_on_under_any_name_that_the_provider_uses() {
    for (name, body) in [
        ("begateway", json!({"error_code": "F.0105", "message": "m"})),
        ("begateway", json!({"response": {"error_code": "F.0105"}})),
        ("begateway", json!({"code": "F.0105"})),
        ("moyasar", json!({"code": "F.0105"})),
        ("moyasar", json!({"error_code": "F.0105"})),
        ("bog", json!({"error_code": "F.0105"})),
        ("bog", json!({"key": "F.0105"})),
        ("bbmsl", json!({"responseCode": "F.0105"})),
    ] {
        let answer = Gateway::of(name).refund(422, Some(&body.to_string()));
        assert_eq!(json_of(&answer)["provider"]["code"], "F.0105", "{body}");
    }
}

// The configuration.

#[test]
fn a_provider_that_knows_no_currency_must_be_told_which() {
    let mut provider = fixture("bog").provider_config();
    provider.as_object_mut().unwrap().remove("currencies");
    let text = json!({"providers": {"bog": provider}}).to_string();
    let faults = Config::read(text.as_bytes(), &|_| None).unwrap_err();
    assert_eq!(faults[0].pointer, "/providers/bog/currencies");
    for fixture in FIXTURES {
        let mut provider = fixture.provider_config();
        provider["currencies"] = json!([fixture.currency]);
        let call = fixture.call_for("10", "JPY");
        let answer = answered(Gateway::with(fixture.name(), &provider).send_as(KEY, &call));
        says(&answer, ("invalid-request", "not_refunded", "corrected"));
    }
}

#[test]
fn all_of_a_payment_is_bound_by_the_currencies_too() {
    for name in ["bog", "begateway"] {
        let mut call = fixture(name).call();
        call["amount"] = json!("full");
        for (currencies, query_first, sent) in [
            (json!(["GEL"]), false, true),
            (json!(["GEL", "USD"]), false, false),
            (json!(["GEL", "USD"]), true, true),
        ] {
            let mut provider = fixture(name).provider_config();
            provider["currencies"] = currencies;
            provider["query_first"] = json!(query_first);
            match Gateway::with(name, &provider).send_as(KEY, &call) {
                Asked::Sent(_) => assert!(sent),
                Asked::Answered(answer) => {
                    assert!(!sent);
                    says(&answer, ("invalid-request", "not_refunded", "corrected"));
                }
            }
        }
    }
}

// Everywhere.

#[test]
fn no_answer_may_be_stored_by_anybody_in_between() {
    for gateway in open_refunds() {
        let answers = [
            gateway.refund(200, None),
            gateway.refund(422, Some("{}")),
            gateway.look_up("&key=k-1", &gateway.shows_it()),
            answered(gateway.send_as("k-9", &json!({}))),
            answered(gateway.send_look_up(&look_up_headers("provider=x"))),
        ];
        for answer in answers {
            assert_eq!(
                answer.headers.first("cache-control"),
                Some(&b"no-store"[..])
            );
            assert_eq!(answer.headers.all("cache-control").count(), 1);
        }
    }
}
