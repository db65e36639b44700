//! What a platform team can hold refunds down with: who calls, who may, how much, and whether at
//! all.

use std::rc::Rc;

use core_testbed::fixtures::{FIXTURES, Fixture};
use core_testbed::gateway::{Asked, Gateway, KEY, Told, json_of, says};
use core_testbed::{Out, resolve_files};
use refund_filter::config::Config;
use refund_filter::exchange::Answer;
use serde_json::{Value, json};

const NOT_ALLOWED: Told<'_> = ("caller-not-allowed", "not_refunded", "corrected");
const OVER: Told<'_> = ("amount-over-limit", "not_refunded", "corrected");
const OFF: Told<'_> = ("provider-off", "not_refunded", "same_key");

/// The plugin configuration of one provider, with these members more, and with callers told apart
/// where it says so.
fn configured(fixture: &Fixture, more: &Value, tells_callers: bool) -> Rc<Config> {
    let mut provider = fixture.provider_config();
    resolve_files(&mut provider);
    for (name, value) in more.as_object().into_iter().flatten() {
        provider[name] = value.clone();
    }
    let mut config = json!({"providers": {fixture.name(): provider}});
    if tells_callers {
        config["caller"] = json!({"property": ["connection", "uri_san_peer_certificate"]});
    }
    let read = Config::read(config.to_string().as_bytes(), &|_| None);
    Rc::new(read.unwrap_or_else(|faults| panic!("{faults:?}")))
}

fn gateway(fixture: &Fixture, more: &Value, tells_callers: bool) -> Gateway {
    Gateway::of(fixture.name()).configured(configured(fixture, more, tells_callers))
}

#[track_caller]
fn answered(asked: Asked, expected: Told<'_>) -> Answer {
    match asked {
        Asked::Answered(answer) => {
            says(&answer, expected);
            answer
        }
        Asked::Sent(_) => panic!("sent, and it should be {expected:?}"),
    }
}

#[track_caller]
fn sent(asked: Asked) -> Out {
    match asked {
        Asked::Sent(out) => out,
        Asked::Answered(answer) => panic!("answered: {}", answer.body),
    }
}

fn look_up(gateway: &Gateway) -> Asked {
    gateway.try_to_ask(&gateway.query(&format!("&key={KEY}")))
}

#[test]
fn who_cannot_be_told_is_not_let_in() {
    for fixture in FIXTURES {
        let gateway = gateway(fixture, &json!({}), true);
        for caller in [None, Some(""), Some("a\nb")] {
            gateway.caller.set(caller);
            let answer = answered(gateway.send(), NOT_ALLOWED);
            assert_eq!(answer.status, 403, "{}", answer.body);
            let told = ("caller-not-allowed", "unknown", "corrected");
            answered(look_up(&gateway), told);
        }
        gateway.caller.set(Some("spiffe://corp/shop"));
        sent(gateway.send());
    }
}

#[test]
fn a_caller_that_is_not_listed_uses_no_provider_of_the_list() {
    for fixture in FIXTURES {
        let only = json!({"callers": ["spiffe://corp/returns"]});
        let gateway = gateway(fixture, &only, true);
        gateway.caller.set(Some("spiffe://corp/shop"));
        answered(gateway.send(), NOT_ALLOWED);
        answered(
            look_up(&gateway),
            ("caller-not-allowed", "unknown", "corrected"),
        );
        // Neither a part of a name nor another case of it.
        for other in [
            "spiffe://corp/returns/x",
            "SPIFFE://corp/returns",
            "returns",
        ] {
            gateway.caller.set(Some(other));
            answered(gateway.send(), NOT_ALLOWED);
        }
        gateway.caller.set(Some("spiffe://corp/returns"));
        sent(gateway.send());
    }
}

#[test]
fn one_key_of_two_callers_is_two_refunds() {
    for fixture in FIXTURES {
        // Two payments: where a payment has one refund, the second caller's would be held back for
        // that.
        let gateway = gateway(fixture, &json!({}), true);
        let mut keys = Vec::new();
        for caller in ["spiffe://corp/shop", "spiffe://corp/returns"] {
            gateway.caller.set(Some(caller));
            let mut call = fixture.call();
            if !keys.is_empty() {
                call["payment"] = serde_json::from_str(fixture.payment).unwrap();
                call["payment"]["id"] = json!(if fixture.numeric_ids {
                    "777"
                } else {
                    "another"
                });
                let payment = call["payment"].as_object_mut().unwrap();
                payment.remove("reference");
            }
            let key = "0f8fad5b-d9cb-469f-a165-70867728950e";
            let Out::Routed(dispatch) = sent(gateway.send_as(key, &call)) else {
                panic!("not by a route")
            };
            if let Some(sent) = (fixture.sent_key)(&dispatch) {
                assert_ne!(
                    sent, key,
                    "a caller's own UUID is not what the provider gets"
                );
                keys.push(sent);
            } else {
                keys.push(caller.to_owned());
            }
        }
        assert_ne!(keys[0], keys[1], "{}", fixture.name());
        // Without callers, a UUID of version 4 goes out as it is.
        let gateway = Gateway::of(fixture.name());
        let key = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let Out::Routed(dispatch) = sent(gateway.send_as(key, &fixture.call())) else {
            panic!("not by a route")
        };
        assert_eq!(
            (fixture.sent_key)(&dispatch).unwrap_or_else(|| key.to_owned()),
            key
        );
    }
}

#[test]
fn a_refund_over_the_limit_is_not_sent_and_keeps_its_key() {
    for fixture in FIXTURES {
        let limit = json!({"max_amount": {fixture.currency: "10.00"}, "currencies": [fixture.currency, "EUR", "USD"]});
        let gateway = gateway(fixture, &limit, false);
        let over = fixture.call_for("10.01", fixture.currency);
        let answer = answered(gateway.send_as(KEY, &over), OVER);
        let detail = json_of(&answer)["detail"].to_string();
        assert!(detail.contains("10.00"), "{detail}");
        // What the limit does not name is over it.
        let other = if fixture.currency == "EUR" {
            "USD"
        } else {
            "EUR"
        };
        answered(gateway.send_as(KEY, &fixture.call_for("0.01", other)), OVER);
        sent(gateway.send_as(KEY, &fixture.call_for("10.00", fixture.currency)));
        if fixture.takes_full {
            let one = json!({"max_amount": {fixture.currency: "10.00"}, "currencies": [fixture.currency]});
            let gateway = Gateway::of(fixture.name()).configured(configured(fixture, &one, false));
            let mut full = fixture.call();
            full["amount"] = json!("full");
            answered(gateway.send_as(KEY, &full), OVER);
        }
    }
}

#[test]
fn all_of_a_payment_is_held_against_the_limit_once_it_was_looked_at() {
    use core_testbed::call_reply;
    use core_testbed::fixtures::head;
    use refund_filter::exchange::Step;
    for fixture in FIXTURES.iter().filter(|fixture| fixture.takes_full) {
        let more = json!({"max_amount": {fixture.currency: "10.00"}, "query_first": true, "currencies": [fixture.currency]});
        for (left, is_over) in [(1_000, false), (1_001, true)] {
            let gateway = gateway(fixture, &more, false);
            let mut full = fixture.call();
            full["amount"] = json!("full");
            let Out::Callout(callout) = sent(gateway.send_as(KEY, &full)) else {
                panic!("sent without a look")
            };
            let id: Value = serde_json::from_str(fixture.payment).unwrap();
            let id = id["id"].as_str().unwrap();
            let shown = (fixture.shows_payment)(id, fixture.currency, left, left, fixture.paid);
            let guard = gateway.memory.guard();
            let now = gateway.now();
            let step = call_reply(
                callout,
                &head(200, &[]),
                shown.as_bytes(),
                now,
                &|_| None,
                Some(&guard),
            );
            match step {
                Step::Answered(answer) if is_over => says(&gateway.settled(answer), OVER),
                Step::Leaving(_) if !is_over => {}
                other => panic!("{}, {left} left: {other:?}", fixture.name()),
            }
        }
    }
}

#[test]
fn a_provider_that_is_off_refunds_nothing_tells_what_it_told_and_is_looked_up() {
    for fixture in FIXTURES {
        let on = Gateway::of(fixture.name());
        on.refund(200, None);
        let off = on.configured(configured(fixture, &json!({"refunds": "off"}), false));
        // The refund that was made before is told again.
        let answer = match off.send() {
            Asked::Answered(answer) => answer,
            Asked::Sent(_) => panic!("sent"),
        };
        assert!(
            answer.replayed || fixture.means == "pending",
            "{}",
            answer.body
        );
        let mut other = fixture.call();
        other["payment"]["id"] = json!(if fixture.numeric_ids {
            "777"
        } else {
            "another"
        });
        if let Some(payment) = other["payment"].as_object_mut() {
            payment.remove("reference");
        }
        let answer = answered(off.send_as("another", &other), OFF);
        assert_eq!(answer.status, 503);
        // It has not spent its key, and look-ups go on.
        answered(off.send_as("another", &other), OFF);
        sent(look_up(&off));
    }
}

#[test]
fn a_provider_that_is_off_clears_no_unknown() {
    for fixture in FIXTURES {
        let on = Gateway::of(fixture.name());
        let lost = on.refund(500, Some("{}"));
        assert_eq!(json_of(&lost)["outcome"], "unknown");
        let off = on.configured(configured(fixture, &json!({"refunds": "off"}), false));
        let Asked::Answered(answer) = off.send() else {
            panic!("sent")
        };
        assert_eq!(json_of(&answer)["outcome"], "unknown", "{}", answer.body);
    }
}
