//! `query_first`: the payment is looked at before it is refunded, at every provider, and what the
//! look shows is used.

use core_testbed::fixtures::{FIXTURES, Fixture, head};
use core_testbed::gateway::{Asked, Gateway, KEY, Told, fixture, json_of, says, told};
use core_testbed::{Keys, Out, call_reply};
use refund_filter::exchange::{Answer, Callout, CalloutRequest, Dispatch, Step};
use refund_filter::signing::{self, PublicKeys};
use serde_json::{Value, json};

fn configured(fixture: &Fixture) -> Value {
    let mut provider = fixture.provider_config();
    provider["query_first"] = json!(true);
    provider
}

fn gateway(fixture: &'static Fixture) -> Gateway {
    Gateway::with(fixture.name(), &configured(fixture))
}

/// A payment as its provider shows it: its currency, what was paid and what is left, in minor units
/// of two decimals, and its state, in the provider's own words.
fn payment(fixture: &Fixture, currency: &str, paid: u64, left: u64, state: &str) -> String {
    let id: Value = serde_json::from_str(fixture.payment).unwrap();
    (fixture.shows_payment)(id["id"].as_str().unwrap(), currency, paid, left, state)
}

fn looked(asked: Asked) -> Callout {
    match asked {
        Asked::Sent(Out::Callout(callout)) => callout,
        Asked::Sent(Out::Routed(_)) => panic!("sent without a look"),
        Asked::Answered(answer) => panic!("answered: {}", answer.body),
    }
}

/// What becomes of the call when the provider replies to the look.
fn seen(
    gateway: &Gateway,
    callout: Callout,
    status: u16,
    body: &str,
) -> Result<Box<Dispatch>, Answer> {
    let guard = gateway.memory.guard();
    let reply = call_reply(
        callout,
        &head(status, &[]),
        body.as_bytes(),
        gateway.now(),
        &|_| None,
        Some(&guard),
    );
    match reply {
        Step::Leaving(dispatch) => Ok(dispatch),
        Step::Answered(answer) => Err(gateway.settled(answer)),
        other => panic!("{other:?}"),
    }
}

fn look(gateway: &Gateway, call: &Value, status: u16, body: &str) -> Result<Box<Dispatch>, Answer> {
    let callout = looked(gateway.send_as(KEY, call));
    seen(gateway, callout, status, body)
}

/// The answer where there is no reply to the look.
fn unanswered(gateway: &Gateway, how: fn(Callout, &dyn PublicKeys) -> Step) -> Answer {
    match how(looked(gateway.send()), &Keys(signing::Told::Unavailable)) {
        Step::Answered(answer) => gateway.settled(answer),
        other => panic!("{other:?}"),
    }
}

const NOT_REFUNDABLE: Told<'_> = ("payment-not-refundable", "not_refunded", "no");

#[track_caller]
fn held_back(result: Result<Box<Dispatch>, Answer>, expected: Told<'_>) -> Answer {
    let Err(answer) = result else {
        panic!("sent, and it should be {expected:?}")
    };
    says(&answer, expected);
    let detail = json_of(&answer)["detail"].clone();
    assert!(
        detail.as_str().unwrap().contains("Nothing was sent"),
        "{detail}"
    );
    answer
}

#[test]
fn a_payment_that_can_be_refunded_is_refunded() {
    for fixture in FIXTURES {
        let gateway = gateway(fixture);
        let paid = fixture.paid;
        let shown = payment(fixture, fixture.currency, 1_500, 1_500, paid);
        let callout = looked(gateway.send());
        let CalloutRequest {
            cluster, headers, ..
        } = callout.request();
        assert_eq!(cluster, fixture.name());
        let authorization = headers.first("authorization").map(<[u8]>::to_vec);
        let dispatch = seen(&gateway, callout, 200, &shown).unwrap();
        // The same credentials go with both, and no second token is fetched for it.
        assert_eq!(
            dispatch.headers.first("authorization").map(<[u8]>::to_vec),
            authorization
        );
        let call = fixture.call();
        let success = fixture.success_reply(&call, &dispatch).0;
        let answer = dispatch.sent.reply(&head(200, &[]), success.as_bytes(), 1);
        says(&gateway.settled(answer), (fixture.means, "", ""));
    }
}

#[test]
fn the_look_carries_nothing_of_the_callers_but_tracing() {
    for fixture in FIXTURES {
        let callout = looked(gateway(fixture).send());
        let headers = callout.request().headers;
        for (name, _) in headers.iter() {
            let name = String::from_utf8(name.to_vec()).unwrap();
            assert!(
                !name.starts_with("x-envoy-") && !name.starts_with("x-forwarded-"),
                "{name}"
            );
        }
        assert_eq!(headers.first("x-request-id"), Some(&b"request-1"[..]));
    }
}

/// Whether the same call is answered the same, without anything asked or sent.
#[track_caller]
fn says_again(gateway: &Gateway, fixture: &Fixture, answer: &Answer) {
    let Asked::Answered(again) = gateway.send_as(KEY, &fixture.call()) else {
        panic!("sent, and the key is spent")
    };
    assert_eq!((again.status, &again.body), (answer.status, &answer.body));
}

#[test]
fn another_currency_is_not_sent() {
    for fixture in FIXTURES {
        let paid = fixture.paid;
        let shown = payment(fixture, "EUR", 100_000, 100_000, paid);
        let gateway = gateway(fixture);
        let answer = held_back(look(&gateway, &fixture.call(), 200, &shown), NOT_REFUNDABLE);
        assert!(
            answer.body.contains("Its currency is EUR"),
            "{}",
            answer.body
        );
        // The key is spent, as it was told: a late repeat of the call must not refund beside its
        // successor.
        says_again(&gateway, fixture, &answer);
    }
}

/// What a payment is looked at for must be there.
#[test]
fn a_payment_that_does_not_show_its_currency_is_not_sent() {
    for fixture in FIXTURES {
        let paid = fixture.paid;
        for other in ["ZZZ", "gel", ""] {
            let shown = payment(fixture, other, 100_000, 100_000, paid);
            let unreadable = ("provider-reply-unreadable", "not_refunded", "same_key");
            held_back(
                look(&gateway(fixture), &fixture.call(), 200, &shown),
                unreadable,
            );
        }
    }
}

/// 10 JPY for an order in GEL would refund 10.00 GEL.
#[test]
fn ten_yen_of_an_order_in_lari_are_not_ten_lari() {
    let fixture = fixture("bog");
    let call = fixture.call_for("10", "JPY");
    let shown = payment(fixture, "GEL", 100_000, 100_000, "completed");
    held_back(look(&gateway(fixture), &call, 200, &shown), NOT_REFUNDABLE);
}

#[test]
fn all_of_a_payment_in_a_currency_that_is_not_configured_is_not_sent() {
    for fixture in FIXTURES.iter().filter(|fixture| fixture.takes_full) {
        let mut call = fixture.call();
        call["amount"] = json!("full");
        let paid = fixture.paid;
        let mut provider = configured(fixture);
        provider["currencies"] = json!([fixture.currency, "JPY"]);
        for (currency, sent) in [(fixture.currency, true), ("CHF", false), ("XYZ", false)] {
            let gateway = Gateway::with(fixture.name(), &provider);
            let shown = payment(fixture, currency, 1_500, 1_500, paid);
            let looked = look(&gateway, &call, 200, &shown);
            assert_eq!(looked.is_ok(), sent, "{} {currency}", fixture.name());
        }
    }
}

#[test]
fn more_than_is_left_is_not_sent() {
    for fixture in FIXTURES {
        let paid = fixture.paid;
        for (all, left, sent) in [(1_000, 1_000, true), (999, 999, false), (5_000, 999, false)] {
            if all != left && !fixture.shows_left {
                continue;
            }
            let gateway = gateway(fixture);
            let shown = payment(fixture, fixture.currency, all, left, paid);
            match look(&gateway, &fixture.call(), 200, &shown) {
                Ok(_) => assert!(sent, "{}", fixture.name()),
                Err(answer) => {
                    assert!(!sent);
                    held_back(Err(answer), NOT_REFUNDABLE);
                }
            }
        }
    }
}

#[test]
fn what_is_not_paid_or_void_is_not_sent() {
    for fixture in FIXTURES {
        for state in fixture.unpaid {
            let shown = payment(fixture, fixture.currency, 1_500, 1_500, state);
            let answer = held_back(
                look(&gateway(fixture), &fixture.call(), 200, &shown),
                NOT_REFUNDABLE,
            );
            assert_eq!(json_of(&answer)["provider"]["name"], fixture.name());
        }
    }
}

#[test]
fn a_payment_that_has_its_one_refund_is_not_sent() {
    let fixture = fixture("bbmsl");
    let stands: Told<'_> = ("payment-has-refund", "not_refunded", "no");
    for state in ["REFUNDED", "SUCCESS", "SETTLED", "OPEN", "VOIDED", "CLOSED"] {
        for left in [0, 500, 1_499] {
            let shown = payment(fixture, "HKD", 1_500, left, state);
            held_back(
                look(&gateway(fixture), &fixture.call(), 200, &shown),
                stands,
            );
        }
    }
    // Under a key that was sent before, it may be that key's own.
    let gateway = gateway(fixture);
    let clean = payment(fixture, "HKD", 1_500, 1_500, "SUCCESS");
    let dispatch = look(&gateway, &fixture.call(), 200, &clean).unwrap();
    gateway.settled(dispatch.sent.reply(&head(500, &[]), b"", 1));
    gateway.later(core_testbed::gateway::SETTLE_MS);
    says(
        &gateway.look_up("&key=k-1", &clean),
        core_testbed::gateway::ABSENT,
    );
    let refunded = payment(fixture, "HKD", 1_500, 500, "REFUNDED");
    let answer = look(&gateway, &fixture.call(), 200, &refunded).unwrap_err();
    says(&answer, ("payment-has-refund", "unknown", "look_up"));
}

#[test]
fn the_names_that_the_look_shows_are_taken_before_anything_is_sent() {
    let fixture = fixture("bbmsl");
    let gateway = gateway(fixture);
    let by = |payment: Value| {
        let mut call = fixture.call();
        call["payment"] = payment;
        call
    };
    let clean = payment(fixture, "HKD", 1_500, 1_500, "SUCCESS");
    // One by its reference, on its way; the other by its id.
    let first = looked(gateway.send_as("k-1", &by(json!({"reference": "1655817171"}))));
    let _sent = seen(&gateway, first, 200, &clean).unwrap();
    let answer = match gateway.send_as("k-2", &by(json!({"id": "4922"}))) {
        Asked::Sent(Out::Callout(callout)) => seen(&gateway, callout, 200, &clean).unwrap_err(),
        Asked::Answered(answer) => answer,
        Asked::Sent(Out::Routed(_)) => panic!("sent"),
    };
    says(&answer, ("payment-has-refund", "not_refunded", "same_key"));
}

#[test]
fn a_look_that_fails_sends_nothing_and_is_the_providers_problem() {
    for fixture in FIXTURES {
        let paid = fixture.paid;
        let shown = payment(fixture, fixture.currency, 1_500, 1_500, paid);
        let unreadable: Told<'_> = ("provider-reply-unreadable", "not_refunded", "same_key");
        let mismatch: Told<'_> = ("provider-reply-mismatch", "not_refunded", "same_key");
        let another = shown
            .replace("ord-1", "ord-2")
            .replace("0191f5a7", "ffffffff");
        let another = another
            .replace("1-310b0da80b", "1-ffffffffff")
            .replace("4922", "4923");
        let rows: Vec<(u16, String, Told<'_>)> = vec![
            (200, "<html>".into(), unreadable),
            (200, "{}".into(), unreadable),
            (200, "[]".into(), unreadable),
            (200, shown.replace(paid, "a word of no page"), unreadable),
            (
                200,
                another,
                mismatch,
            ),
            (401, "{}".into(), ("provider-auth-failed", "not_refunded", "same_key")),
            (403, "{}".into(), ("provider-auth-failed", "not_refunded", "same_key")),
            (404, "{}".into(), ("payment-not-found", "not_refunded", "no")),
            (422, "{}".into(), ("provider-rejected", "not_refunded", "no")),
            (429, "{}".into(), ("provider-rate-limited", "not_refunded", "same_key")),
            (500, shown.clone(), ("provider-error", "not_refunded", "same_key")),
            (302, "{}".into(), ("provider-error", "not_refunded", "same_key")),
            (
                504,
                "upstream request timeout".into(),
                ("provider-timeout", "not_refunded", "same_key"),
            ),
            (
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination".into(),
                ("provider-error", "not_refunded", "same_key"),
            ),
            (
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure".into(),
                ("provider-unreachable", "not_refunded", "same_key"),
            ),
            (
                503,
                "no healthy upstream".into(),
                ("provider-unreachable", "not_refunded", "same_key"),
            ),
        ];
        for (status, body, expected) in rows {
            if !fixture.state_is_a_word && body.contains("a word of no page")
                || body == shown && status == 200
            {
                continue;
            }
            let gateway = gateway(fixture);
            let answer = held_back(look(&gateway, &fixture.call(), status, &body), expected);
            match expected.2 {
                "no" => says_again(&gateway, fixture, &answer),
                // It took nothing.
                _ => assert!(look(&gateway, &fixture.call(), 200, &shown).is_ok()),
            }
        }
        let gateway = gateway(fixture);
        let answer = unanswered(&gateway, Callout::not_made);
        says(
            &answer,
            ("provider-unreachable", "not_refunded", "same_key"),
        );
        let answer = unanswered(&gateway, Callout::cut);
        says(&answer, ("provider-error", "not_refunded", "same_key"));
    }
}

#[test]
fn a_token_that_the_look_is_refused_with_is_dropped() {
    let fixture = fixture("bog");
    let answer = look(&gateway(fixture), &fixture.call(), 401, "{}").unwrap_err();
    assert!(answer.refused_token.is_some());
}

#[test]
fn a_key_that_may_have_moved_money_stays_unknown_whatever_the_look_says() {
    for fixture in FIXTURES
        .iter()
        .filter(|fixture| fixture.by_key == "same_key")
    {
        let (paid, states) = (fixture.paid, fixture.unpaid);
        let gateway = gateway(fixture);
        let clean = payment(fixture, fixture.currency, 1_500, 1_500, paid);
        let dispatch = look(&gateway, &fixture.call(), 200, &clean).unwrap();
        gateway.settled(dispatch.sent.reply(&head(500, &[]), b"", 1));
        let void = payment(fixture, fixture.currency, 1_500, 1_500, states[0]);
        for (status, body) in [(200, &*void), (401, "{}"), (404, "{}"), (500, "")] {
            let answer = look(&gateway, &fixture.call(), status, body).unwrap_err();
            assert_eq!(told(&answer).1, "unknown", "{}", answer.body);
            assert_ne!(told(&answer).2, "no", "{}", answer.body);
        }
    }
}
