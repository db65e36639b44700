//! Look-ups through real Envoy and TLS: every refund that is pending or unknown comes to an end.

mod common;

use common::{FOUR, of};
use gateway_testbed::{Answer, Gateway, Options, cluster};
use provider_simulator::Provider::{self, Bog};
use provider_simulator::orders::fresh;

/// A look-up of a provider's nth fresh order.
async fn look_up(gateway: &Gateway, provider: Provider, nth: u64, more: &[(&str, &str)]) -> Answer {
    let payment = fresh(provider, nth);
    let mut parameters = vec![("provider", cluster(provider)), ("payment_id", &payment)];
    parameters.extend(more);
    gateway.look_up(&parameters).await.expect("an answer")
}

#[tokio::test]
async fn a_refund_is_found_at_every_provider_as_its_answer_said() {
    let gateway = Gateway::start(Options::default()).await.expect("a gateway");
    for provider in FOUR {
        let body = of(provider, 1, "1.00");
        let key = format!("found at {provider:?}").replace(' ', "-");
        let made = gateway.refund(&key, &body).await.expect("an answer");
        assert!(made.status < 300, "{}", made.body);
        let id = made.body["id"].as_str().unwrap().to_owned();
        if provider == Bog {
            let found = look_up(&gateway, provider, 1, &[("id", &id)]).await;
            assert_eq!(found.status, 200, "{}", found.body);
            assert_eq!(found.body["status"], "pending");
            gateway.simulators.settle(provider, Some(&id), true);
        }
        for names in [vec![("id", &*id), ("key", &*key)], vec![("key", &*key)]] {
            let found = look_up(&gateway, provider, 1, &names).await;
            assert_eq!(found.status, 200, "{provider:?} {names:?} {}", found.body);
            assert_eq!(found.body["status"], "succeeded");
            assert_eq!(found.body["amount"], body["amount"], "{provider:?}");
            assert_eq!(found.body["payment"], body["payment"]);
            assert!(!found.header("x-request-id").is_empty());
        }
    }
    gateway.stop().await.expect("a clean end");
}
