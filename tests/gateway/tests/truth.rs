//! A certain word only of the refund's own, through real Envoy and TLS: what needs a host to show.
//! (The rules themselves are `tests/truth.rs` of the core.)

use std::time::Duration;

use crate::common::{
    FOUR, Problem, asked, asked_wrongly, assert_problem, booked, final_at_once, fleet, of, plugin,
    secrets, unknown,
};
use anyhow::{Context as _, Result};
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::{Answer, Gateway, Options, SecretsBy, cluster, route_mut, sign_by_transit};
use provider_simulator::orders::{find, fresh};
use provider_simulator::{Fault, Provider, SigningKeys};
use serde_json::{Value, json};

use Provider::{Bbmsl, Begateway, Bog};

/// A UUID of version 7, which goes out as another one but at Moyasar.
const KEY: &str = "0192f5a7-44a5-7abc-8c11-ffc3703adef0";

fn one(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

/// All spellings that are one key.
fn spellings(key: &str) -> [String; 4] {
    let mixed = key.replace('a', "A").replace('f', "F");
    [
        key.to_owned(),
        key.to_ascii_uppercase(),
        mixed,
        format!("\"{}\"", key.to_ascii_uppercase()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_in_capitals_is_the_same_refund_after_a_broken_connection() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    for provider in FOUR {
        let case = format!("{provider:?}");
        let lost = Fault::Close { booked: true };
        gateway.simulators.next_fault(provider, lost);
        let [first, others @ ..] = spellings(KEY).map(|key| {
            // Keys are one namespace for all providers.
            let digit = format!("{}", provider as u8);
            key.replacen('0', &digit, 1)
        });
        let body = one(provider, 1);
        let answer = gateway.refund(&first, &body).await?;
        assert_problem(&case, &answer, unknown(provider, "provider-error", 502));
        for key in others {
            let again = gateway.refund(&key, &body).await?;
            if !provider.has_keys() {
                assert_eq!(again.header("idempotency-replayed"), "true", "{again:?}");
            } else {
                assert!(again.status < 300, "{case}: {again:?}");
            }
            let order = fresh(provider, 1);
            let query = [
                ("provider", cluster(provider)),
                ("payment_id", &*order),
                ("key", &*key),
            ];
            let found = gateway.look_up(&query).await?;
            assert_eq!(found.status, 200, "{case} {key}: {found:?}");
        }
        assert_eq!(booked(&gateway, provider, 1), 1, "{case}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleets_front_sends_every_spelling_of_a_key_to_the_same_gateway() -> Result<()> {
    let (first, gateways, front) = fleet().await?;
    // So many that each gateway has some of them, whatever its port.
    for nth in 1..=40 {
        let key = format!("{nth:08x}-aBcD-4eFa-8bCd-{nth:012x}");
        let body = one(Bbmsl, nth);
        for key in spellings(&key) {
            let answer = front.refund(&key, &body).await?;
            assert_eq!(answer.status, 200, "{key}: {answer:?}");
            let order = fresh(Bbmsl, nth);
            let query = [
                ("provider", "bbmsl"),
                ("payment_id", &*order),
                ("key", &*key),
            ];
            // Where another gateway was asked, it would not know whose the refund is.
            let found = front.look_up(&query).await?;
            assert_eq!(found.body["status"], "succeeded", "{key}: {found:?}");
        }
        assert_eq!(booked(&first, Bbmsl, nth), 1);
    }
    for gateway in gateways.iter().chain([&first]) {
        let told = gateway
            .stats("refund.guard_events_total.event.replayed")
            .await?;
        assert!(told.values().sum::<u64>() > 0, "one had no share: {told:?}");
    }
    Ok(())
}

/// `Content-Type: application/grpc` makes Envoy write its own answers for a gRPC client.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_envoy_takes_for_grpc_is_answered_like_any_other() -> Result<()> {
    let (first, _gateways, front) = fleet().await?;
    let media_type = Problem::corrected("unsupported-media-type", 415);
    let method = Problem::corrected("method-not-allowed", 405);
    for address in [first.address, front.address()] {
        let url = format!("http://{address}/v1/refunds");
        let old = reqwest::Client::builder().http1_only().build()?;
        let new = reqwest::Client::builder().http2_prior_knowledge().build()?;
        for client in [old, new] {
            for grpc in [
                "application/grpc",
                "application/grpc+proto",
                "application/grpc-web",
            ] {
                let call = client
                    .post(&url)
                    .header("content-type", grpc)
                    .header("te", "trailers")
                    .header("idempotency-key", "key");
                let answer = Answer::read(call.body("{}").send().await?).await?;
                assert_problem(grpc, &answer, media_type);
                let look = client.get(&url).header("content-type", grpc);
                let answer = Answer::read(look.send().await?).await?;
                assert_problem(grpc, &answer, asked_wrongly("invalid-request", 422));
                let put = client.put(&url).header("content-type", grpc);
                assert_problem(grpc, &Answer::read(put.send().await?).await?, method);
                // A provider's answer to a look-up is passed on as ever.
                let order = fresh(Begateway, 1);
                let query = [
                    ("provider", "begateway"),
                    ("payment_id", &*order),
                    ("key", "k"),
                ];
                let look = client.get(&url).query(&query).header("content-type", grpc);
                let answer = Answer::read(look.send().await?).await?;
                assert_problem(grpc, &answer, asked("refund-not-found", 404));
            }
        }
    }
    assert!(
        FOUR.iter()
            .all(|provider| first.simulators.ledger(*provider).is_empty())
    );
    Ok(())
}

/// Three of them are looked at with a GET of the worker's own, for BOG with a token.
#[tokio::test(flavor = "multi_thread")]
async fn every_provider_is_looked_at_before_it_refunds() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        plugin(config, |plugin| {
            for provider in FOUR {
                plugin["providers"][cluster(provider)]["query_first"] = json!(true);
            }
            plugin["providers"]["bog"]["currencies"] = json!(["GEL", "JPY"]);
        });
    }))
    .await?;
    let cannot = Problem::certain("payment-not-refundable", 422);
    for provider in FOUR {
        let case = format!("{provider:?}");
        let made = gateway.refund(&case, &one(provider, 1)).await?;
        assert!(made.status < 300, "{case}: {made:?}");
        assert_eq!(gateway.simulators.received(provider), 2, "{case}");
        assert_eq!(booked(&gateway, provider, 1), 1, "{case}");

        // More than there is, and yen of an order in another currency.
        let key = format!("{case}-more");
        let answer = gateway.refund(&key, &of(provider, 2, "100.01")).await?;
        assert_problem(&case, &answer, cannot);
        let mut yen = of(provider, 3, "10");
        yen["amount"]["currency"] = json!("JPY");
        let answer = gateway.refund(&format!("{case}-yen"), &yen).await?;
        assert_problem(&case, &answer, cannot);
        assert_eq!(gateway.simulators.received(provider), 4, "{case}");
        // And the key of it is spent, as was told.
        let again = gateway.refund(&format!("{case}-yen"), &yen).await?;
        assert_eq!(again.header("idempotency-replayed"), "true", "{again:?}");
        assert_eq!(gateway.simulators.received(provider), 4, "{case}");
        assert_eq!(gateway.simulators.ledger(provider).len(), 1, "{case}");
    }
    // All of an order in a currency that is not configured.
    let order = find(Bog, "kwd").context("an order")?;
    let all = json!({"provider": "bog", "payment": {"id": order.id}, "amount": "full"});
    assert_problem("all", &gateway.refund("all", &all).await?, cannot);
    assert_eq!(gateway.simulators.ledger(Bog).len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_another_key_never_leaves() -> Result<()> {
    if Options::default().secrets_by != SecretsBy::FilterState {
        return Ok(());
    }
    let another = SigningKeys::generate()?;
    let secrets = secrets();
    let openbao = OpenBao::start(secrets.of(Bbmsl)).await?;
    let (address, ca) = (openbao.address, openbao.ca());
    let public_keys = [another.public_key, secrets.checked_by(Bbmsl).to_owned()];
    for (public_key, is_right) in public_keys.into_iter().zip([false, true]) {
        let ca = ca.clone();
        let gateway = Gateway::start(Options {
            secrets: Some(secrets.clone()),
            more_secrets: vec![("openbao-token", openbao.token.clone())],
            change: Box::new(move |config, folder| {
                sign_by_transit(config, address, &ca, folder).expect("a cluster");
                plugin(config, |plugin| {
                    plugin["providers"]["bbmsl"]["signing"]["transit"]["public_keys"] =
                        json!([public_key]);
                });
            }),
            ..Options::default()
        })
        .await?;
        let answer = gateway.refund("key", &one(Bbmsl, 1)).await?;
        if is_right {
            assert_eq!(answer.status, 200, "{answer:?}");
        } else {
            let unsigned = Problem {
                retry: "same_key",
                ..Problem::certain("signing-unavailable", 503)
            };
            assert_problem("another key", &answer, unsigned);
            assert_eq!(gateway.simulators.received(Bbmsl), 0);
        }
    }
    Ok(())
}

/// A provider that needs longer than its route: nothing certain is said before the send can no
/// longer arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_right_after_a_slow_send_says_nothing_for_certain() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        for provider in FOUR {
            route_mut(config, cluster(provider)).expect("a route")["route"]["timeout"] =
                json!("0.5s");
        }
        plugin(config, |plugin| {
            for provider in FOUR {
                plugin["providers"][cluster(provider)]["settle_seconds"] = json!(4);
            }
        });
    }))
    .await?;
    for provider in final_at_once() {
        let slow = Fault::Delay(Duration::from_secs(2));
        gateway.simulators.next_fault(provider, slow);
        let (case, order) = (format!("{provider:?}"), fresh(provider, 1));
        let answer = gateway.refund(&case, &one(provider, 1)).await?;
        assert_problem(&case, &answer, unknown(provider, "provider-timeout", 504));
        let query = [
            ("provider", cluster(provider)),
            ("payment_id", &*order),
            ("key", &*case),
        ];
        // At once, and again and again until it shows.
        let mut early = 0;
        loop {
            let found = gateway.look_up(&query).await?;
            if found.status == 200 {
                assert_eq!(found.body["status"], "succeeded", "{case}: {found:?}");
                break;
            }
            assert_problem(&case, &found, asked("refund-not-found", 404));
            if provider.declared().proves_absence {
                assert!(!found.header("retry-after").is_empty(), "{found:?}");
            }
            early += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(early > 0, "{case}: it was there at once");
        assert_eq!(booked(&gateway, provider, 1), 1, "{case}");
    }
    Ok(())
}
