//! Look-ups through real Envoy and TLS: every refund that is pending or unknown comes to an end, and where the provider cannot
//! tell, nobody is told more than is known.

use std::convert::Infallible;
use std::time::Duration;

use crate::common::{
    FOUR, Problem, asked, asked_wrongly, assert_problem, booked, final_at_once, fleet, keyed, of,
    plugin, raw, secrets, shut, taken, unknown, until, until_received,
};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::{
    Answer, Gateway, Options, PATH, SecretsBy, cluster, route_mut, sign_by_transit,
};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use provider_simulator::orders::{find, fresh};
use provider_simulator::{self as simulator, Alpn, Fault, Provider, Reply};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use Provider::{Bbmsl, Begateway, Bog, Moyasar};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// What proves that nothing was refunded under a key: it is as good as new.
const NEVER_WAS: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("refund-not-found", 404)
};

/// A refund that shows, and nothing tells whose it is.
const AMBIGUOUS: Problem = Problem {
    retry: "no",
    ..asked("refund-ambiguous", 409)
};

/// A refund call that came to nothing, and may be made again.
const fn again(code: &'static str, status: u16) -> Problem {
    Problem {
        retry: "same_key",
        ..Problem::certain(code, status)
    }
}

async fn start() -> Result<Gateway> {
    start_with(|_| {}).await
}

/// Routes that do not wait as long as they should, sends that are known to have arrived after a second, and a change of the
/// plugin's configuration.
async fn start_with(change: impl FnOnce(&mut Value) + Send + 'static) -> Result<Gateway> {
    Gateway::start(Options::changed(move |config| {
        for provider in FOUR {
            route_mut(config, cluster(provider)).expect("a route")["route"]["timeout"] =
                json!("4s");
        }
        plugin(config, |plugin| {
            for provider in FOUR {
                plugin["providers"][cluster(provider)]["settle_seconds"] = json!(1);
            }
            change(plugin);
        });
    }))
    .await
}

/// No absence is certain while a test runs, however long that takes.
fn never_settles(plugin: &mut Value) {
    for provider in FOUR {
        plugin["providers"][cluster(provider)]["settle_seconds"] = json!(3_600);
    }
}

/// A gateway that asks BBMSL for an order before it refunds it.
async fn asking_first() -> Result<Gateway> {
    start_with(|plugin| plugin["providers"]["bbmsl"]["query_first"] = json!(true)).await
}

/// A look-up of a provider's payment.
async fn ask(
    gateway: &Gateway,
    provider: Provider,
    payment: &str,
    more: &[(&str, &str)],
) -> Result<Answer> {
    let mut parameters = vec![("provider", cluster(provider)), ("payment_id", payment)];
    parameters.extend(more);
    timeout(PATIENCE, gateway.look_up(&parameters)).await?
}

/// A look-up of a provider's nth fresh order, by the refund's key.
async fn by_key(gateway: &Gateway, provider: Provider, nth: u64, key: &str) -> Result<Answer> {
    ask(gateway, provider, &fresh(provider, nth), &[("key", key)]).await
}

/// The same once no send can still arrive.
async fn settled(gateway: &Gateway, provider: Provider, nth: u64, key: &str) -> Result<Answer> {
    let mut answer = by_key(gateway, provider, nth, key).await?;
    let mut said = false;
    until("a settled look-up", async || {
        said = answer.body["code"] != "refund-not-found" || answer.header("retry-after").is_empty();
        if !said {
            assert_problem("not settled", &answer, asked("refund-not-found", 404));
            sleep(Duration::from_millis(100)).await;
            answer = by_key(gateway, provider, nth, key).await?;
        }
        Ok(said)
    })
    .await?;
    Ok(answer)
}

/// 1.00 of a provider's nth fresh order. It has no name of the caller's, beside which beGateway's empty list proves nothing.
fn plain(provider: Provider, nth: u64) -> Value {
    let mut body = of(provider, nth, "1.00");
    body["reason"] = json!("returned");
    body
}

/// 1.00 of a provider's nth fresh order, with all that a caller may say of it.
fn one(provider: Provider, nth: u64) -> Value {
    let mut body = of(provider, nth, "1.00");
    body["reason"] = json!("returned");
    body["reference"] = json!(format!("refund-{nth}"));
    body
}

async fn post(gateway: &Gateway, key: &str, body: &Value) -> Result<Answer> {
    timeout(PATIENCE, gateway.refund(key, body)).await?
}

fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == "true"
}

fn says(status: u16, body: &str) -> Fault {
    Fault::Reply {
        reply: Reply::json(status, body),
        booked: false,
    }
}

fn altered(pointer: &str, value: &str) -> Fault {
    Fault::Altered {
        pointer: pointer.to_owned(),
        value: Some(value.to_owned()),
    }
}

/// The paths of what a provider has received.
fn paths(gateway: &Gateway, provider: Provider) -> Vec<String> {
    let exchanges = gateway.simulators.requests(provider);
    let path = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
    exchanges
        .into_iter()
        .map(|exchange| path(exchange.request.path))
        .collect()
}

#[track_caller]
fn assert_found(case: &str, answer: &Answer, status: &str) {
    assert_eq!(answer.status, 200, "{case}: {answer:?}");
    assert_eq!(answer.body["status"], status, "{case}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/json", "{case}");
    assert!(!answer.header("x-request-id").is_empty(), "{case}");
    assert!(!is_replayed(answer), "{case}");
}

/// Whether the call is told the refund's final word, as it would have been told at first.
#[track_caller]
fn assert_told(case: &str, answer: &Answer, body: &Value) {
    assert_eq!((answer.status, is_replayed(answer)), (200, true), "{case}");
    assert_eq!(answer.body["status"], "succeeded", "{case}");
    for name in ["provider", "payment", "amount", "reason", "reference"] {
        assert_eq!(answer.body[name], body[name], "{case}: {name}");
    }
}

// ---- what the provider says

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_is_found_at_every_provider_as_its_answer_said() -> Result<()> {
    let gateway = start().await?;
    for provider in FOUR {
        let body = one(provider, 1);
        let key = format!("{provider:?}");
        let made = post(&gateway, &key, &body).await?;
        assert!(made.status < 300, "{}", made.body);
        let id = made.body["id"].as_str().context("an id")?;
        let payment = fresh(provider, 1);
        if taken(provider).1 == "pending" {
            let found = by_key(&gateway, provider, 1, &key).await?;
            assert_found("taken", &found, "pending");
            // Until it has ended, the provider does not say which is under way.
            let found = ask(&gateway, provider, &payment, &[("id", id)]).await?;
            assert_problem("by its id", &found, asked("refund-not-found", 404));
            gateway.simulators.settle(provider, Some(id), true);
        }
        let quoted = format!("\"{key}\"");
        let mut handles = vec![
            vec![("id", id)],
            vec![("id", id), ("key", &*key)],
            vec![("key", &*key)],
            vec![("key", &*quoted)],
        ];
        // Without keys a payment shows a refund, and neither its key nor its id.
        if !provider.has_keys() {
            handles.remove(0);
        }
        for names in handles {
            let case = format!("{provider:?} {names:?}");
            let found = ask(&gateway, provider, &payment, &names).await?;
            assert_found(&case, &found, "succeeded");
            assert_eq!(found.body["amount"], body["amount"], "{case}");
            assert_eq!(found.body["payment"]["id"], payment, "{case}");
            assert_eq!(found.body["provider"], cluster(provider), "{case}");
            if provider.has_keys() {
                assert_eq!(found.body["id"], id, "{case}");
                assert!(found.body["created_at"].is_string(), "{case}");
            }
        }
        assert_eq!(booked(&gateway, provider, 1), 1);
    }
    // A name that another caller could have given to another refund is none.
    let by_reference = [("reference", "refund-1")];
    let answer = ask(&gateway, Begateway, &fresh(Begateway, 1), &by_reference).await?;
    assert_problem("by reference", &answer, AMBIGUOUS);
    // So is an order that shows a refund.
    let order = fresh(Bbmsl, 1);
    for names in [&[][..], &[("id", "an-id")], &[("reference", "refund-1")]] {
        let answer = ask(&gateway, Bbmsl, &order, names).await?;
        assert_problem("without a key", &answer, AMBIGUOUS);
        assert_eq!(answer.body["provider"]["name"], "bbmsl");
    }
    let key = format!("{Bbmsl:?}");
    let parameters = [
        ("provider", "bbmsl"),
        ("payment_reference", "order-1000001"),
        ("key", &*key),
    ];
    // The gateway knows the key for the order's other name alone.
    let answer = gateway.look_up(&parameters).await?;
    assert_problem("by the other name", &answer, AMBIGUOUS);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pending_ends_and_the_next_call_is_told_how() -> Result<()> {
    for succeeded in [true, false] {
        let gateway = start().await?;
        for provider in keyed() {
            let case = format!("{provider:?}: {succeeded}");
            let mut body = one(provider, 1);
            if let Some(order) = find(provider, "pending") {
                body["payment"]["id"] = json!(order.id);
            }
            let payment = body["payment"]["id"].as_str().context("an id")?.to_owned();
            let made = post(&gateway, "key", &body).await?;
            let key = format!("{provider:?}");
            // A key of its own for each but the first.
            let (key, made) = if provider == Bog {
                ("key".to_owned(), made)
            } else {
                let made = post(&gateway, &key, &body).await?;
                (key, made)
            };
            assert_eq!(made.status, 202, "{case}: {made:?}");
            let id = made.body["id"].as_str().context("an id")?;
            let found = ask(&gateway, provider, &payment, &[("key", &key)]).await?;
            assert_found(&case, &found, "pending");
            // Pending settles nothing.
            let before = gateway.simulators.received(provider);
            assert!(!is_replayed(&post(&gateway, &key, &body).await?), "{case}");
            assert_eq!(gateway.simulators.received(provider), before + 1, "{case}");
            assert_eq!(gateway.simulators.settle(provider, Some(id), succeeded), 1);
            // By its id alone nothing is known of a key.
            let found = ask(&gateway, provider, &payment, &[("id", id)]).await?;
            let ended = if succeeded { "succeeded" } else { "failed" };
            assert_found(&case, &found, ended);
            for names in [vec![("key", &*key)], vec![("id", id), ("key", &*key)]] {
                let found = ask(&gateway, provider, &payment, &names).await?;
                assert_found(&case, &found, ended);
                assert_eq!(found.body["id"], id, "{case}");
                assert_eq!(found.body["amount"], body["amount"], "{case}");
                let said = found.body["provider_code"].is_string()
                    || found.body["provider_message"].is_string();
                assert!(said, "{case}: {found:?}");
            }
            let received = gateway.simulators.received(provider);
            for _ in 0..3 {
                let told = post(&gateway, &key, &body).await?;
                if succeeded {
                    assert_told(&case, &told, &body);
                } else {
                    assert_problem(&case, &told, Problem::certain("refund-declined", 422));
                    assert!(is_replayed(&told), "{case}");
                    assert_eq!(told.body["provider"]["name"], cluster(provider), "{case}");
                }
            }
            assert_eq!(gateway.simulators.received(provider), received, "{case}");
            let ledger = gateway.simulators.ledger(provider);
            assert_eq!(ledger.len(), 1, "{case}");
            assert_eq!(ledger[0].rejected, !succeeded, "{case}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_made_by_hand_is_nobodys() -> Result<()> {
    let gateway = start().await?;
    let by_hand = |provider, nth, tracking: &str| {
        gateway
            .simulators
            .refund_by_hand(provider, &fresh(provider, nth), 100, tracking)
    };
    for provider in keyed() {
        let id = by_hand(provider, 1, "theirs").context("a refund")?;
        let found = settled(&gateway, provider, 1, "never-used").await?;
        let declared = provider.declared();
        let problem = match (declared.by_id_alone, declared.proves_absence) {
            (true, _) => AMBIGUOUS,
            (false, true) => NEVER_WAS,
            (false, false) => asked("refund-not-found", 404),
        };
        assert_problem("by hand", &found, problem);
        // By its own id it is there, and says nothing of a key that it was not made with.
        let lost = Fault::CloseBefore;
        gateway.simulators.next_fault(provider, lost);
        let key = format!("{provider:?}");
        let answer = post(&gateway, &key, &one(provider, 1)).await?;
        assert_problem("lost", &answer, unknown(provider, "provider-error", 502));
        let payment = fresh(provider, 1);
        let names = [("id", &*id), ("key", &*key)];
        let found = ask(&gateway, provider, &payment, &names).await?;
        if declared.by_id_alone {
            assert_found("foreign", &found, "succeeded");
        } else {
            // They show another key than was asked for.
            assert_problem("foreign", &found, asked("provider-reply-mismatch", 502));
        }
        let answer = post(&gateway, &key, &one(provider, 1)).await?;
        assert!(answer.status < 300 && !is_replayed(&answer), "{answer:?}");
        assert_eq!(booked(&gateway, provider, 1), 2);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_does_not_know_is_as_unknown_as_before() -> Result<()> {
    let gateway = start().await?;
    let missing = asked("refund-not-found", 404);
    // From then on nothing can be on its way that this gateway does not know of.
    settled(&gateway, Begateway, 2, "k").await?;
    let refused = |code, status| Problem {
        retry: "no",
        ..asked(code, status)
    };
    for (provider, payment, names, problem) in [
        (
            Bog,
            "nothing",
            ("id", "an-id"),
            // Without a key, nobody knows whether it can still arrive.
            asked("provider-rejected", 422),
        ),
        (Bog, "order-1", ("id", "an-id"), missing),
        (
            Bog,
            "order-1",
            ("reference", "r"),
            asked_wrongly("invalid-request", 422),
        ),
        (
            Moyasar,
            "nothing",
            ("key", "k"),
            refused("payment-not-found", 404),
        ),
        (
            Moyasar,
            "order-1",
            ("key", "k"),
            refused("payment-not-found", 404),
        ),
        (
            Moyasar,
            "00000000-0000-4000-8000-000000000001",
            ("key", "k"),
            missing,
        ),
        (
            Moyasar,
            "00000000-0000-4000-8000-000000000001",
            ("reference", "r"),
            asked_wrongly("invalid-request", 422),
        ),
        (Begateway, "order-1", ("id", "nothing"), missing),
        // A payment is no refund.
        (Begateway, "order-1", ("id", "order-1"), missing),
        (Begateway, "order-1", ("reference", "r"), missing),
        (Begateway, "order-1", ("key", "k"), NEVER_WAS),
        (Bbmsl, "17", ("key", "k"), refused("provider-rejected", 422)),
        (Bbmsl, "1000001", ("key", "k"), NEVER_WAS),
    ] {
        let case = format!("{provider:?} {payment} {names:?}");
        let answer = ask(&gateway, provider, payment, &[names]).await?;
        assert_problem(&case, &answer, problem);
        let told = answer.body["provider"]["name"] == cluster(provider);
        assert_eq!(told, problem.retry != "corrected", "{case}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_with_a_look_up_says_nothing_of_the_refund() -> Result<()> {
    let gateway = start().await?;
    let simulators = &gateway.simulators;
    for provider in FOUR {
        // Unknown from the beginning, and nothing below may clear it.
        simulators.next_fault(provider, Fault::Close { booked: true });
        let key = format!("{provider:?}");
        let lost = post(&gateway, &key, &one(provider, 1)).await?;
        assert_problem("lost", &lost, unknown(provider, "provider-error", 502));
        let broken = asked("provider-error", 502);
        let unreadable = asked("provider-reply-unreadable", 502);
        let mut wants_less = Reply::json(429, "{}");
        wants_less
            .headers
            .push((b"retry-after".to_vec(), b"7".to_vec()));
        let mut faults = vec![
            (says(401, "{}"), asked("provider-auth-failed", 502)),
            (says(403, "{}"), asked("provider-auth-failed", 502)),
            (says(402, "{}"), asked("refund-declined", 422)),
            (says(404, "{}"), asked("payment-not-found", 404)),
            (says(422, "{}"), asked("provider-rejected", 422)),
            (
                Fault::Reply {
                    reply: wants_less,
                    booked: false,
                },
                asked("provider-rate-limited", 503),
            ),
            (says(302, "{}"), asked("provider-error", 502)),
            (says(409, "{}"), asked("provider-error", 502)),
            (says(500, "{}"), asked("provider-error", 502)),
            (says(503, "upstream"), asked("provider-error", 502)),
            (says(200, "garbage"), unreadable),
            (says(200, "[]"), unreadable),
            (says(200, "{}"), unreadable),
            (says(204, ""), unreadable),
            (Fault::Gzip, unreadable),
            (Fault::CloseBefore, broken),
            (Fault::Close { booked: true }, broken),
            (Fault::Reset { booked: true }, broken),
            (
                Fault::GoAway {
                    code: 2,
                    booked: true,
                },
                broken,
            ),
            (Fault::CutBody { booked: true }, broken),
        ];
        // Moyasar's order may come in an array.
        if provider == Moyasar {
            faults.retain(|(fault, _)| *fault != says(200, "[]"));
        }
        if provider.has_keys() {
            faults.push((Fault::Oversize { bytes: 3_000_000 }, unreadable));
        }
        for (fault, problem) in faults {
            let case = format!("{provider:?}: {fault:?}");
            let rate_limited = problem.code == "provider-rate-limited";
            simulators.next_fault(provider, fault);
            let id = [("key", &*key), ("id", "an-id")];
            let names = if provider.declared().by_id_alone {
                &id[..]
            } else {
                &id[..1]
            };
            let answer = ask(&gateway, provider, &fresh(provider, 1), names).await?;
            assert_problem(&case, &answer, problem);
            assert!(answer.body["retry_until"].is_null(), "{case}");
            let retry_after = if rate_limited { "7" } else { "" };
            assert_eq!(answer.header("retry-after"), retry_after, "{case}");
            assert_eq!(simulators.clear_faults(provider), 0, "{case}");
        }
        shut(&gateway, provider).await?;
        let answer = by_key(&gateway, provider, 1, &key).await?;
        assert_problem("refused", &answer, asked("provider-unreachable", 503));
        simulators.open(provider).await?;
        assert_eq!(booked(&gateway, provider, 1), 1);
        if provider.servers().len() > 1 {
            // A token that is refused is used no more.
            let fetches = simulators.token_fetches();
            simulators.next_fault(provider, says(401, "{}"));
            for _ in 0..3 {
                by_key(&gateway, provider, 1, &key).await?;
            }
            assert_eq!(simulators.token_fetches(), fetches + 1);
        }
        if !provider.has_keys() {
            let again = post(&gateway, &key, &one(provider, 1)).await?;
            assert!(is_replayed(&again) && again.text == lost.text, "{again:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_is_not_answered_in_time_ends_all_the_same() -> Result<()> {
    let gateway = asking_first().await?;
    // The one that asks before a refund goes first.
    gateway
        .simulators
        .next_fault(Bbmsl, Fault::Hang { booked: true });
    let body = one(Bbmsl, 2);
    let made = post(&gateway, "question", &body);
    for fault in [
        Fault::Hang { booked: true },
        Fault::StallBody { booked: true },
    ] {
        for provider in FOUR {
            gateway.simulators.next_fault(provider, fault.clone());
        }
    }
    let asks = FOUR.into_iter().flat_map(|provider| [provider; 2]);
    let asks = asks.map(|provider| by_key(&gateway, provider, 1, "key"));
    let asks = async {
        until_received(&gateway, Bbmsl, 1).await?;
        futures_util::future::try_join_all(asks).await
    };
    let (made, answers) = tokio::join!(made, asks);
    assert_problem("question", &made?, again("provider-timeout", 504));
    let made = post(&gateway, "question", &body).await?;
    assert_eq!((made.status, is_replayed(&made)), (200, false), "{made:?}");
    for answer in answers? {
        // Where it is Envoy's own client that asks, a reply that began and did not end is told as one that broke.
        let problem = match &answer.body["code"] {
            code if code == "provider-error" => asked("provider-error", 502),
            _ => asked("provider-timeout", 504),
        };
        assert_problem("slow", &answer, problem);
    }
    Ok(())
}

// ---- what the next call with the key is told

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_is_found_and_told_to_the_next_call() -> Result<()> {
    let gateway = start().await?;
    for provider in final_at_once() {
        for (nth, fault) in (1..).zip([
            Fault::Close { booked: true },
            // Envoy answers these past the filter.
            Fault::CutBody { booked: true },
            Fault::Oversize { bytes: 3_000_000 },
        ]) {
            let (key, case) = (
                format!("{provider:?}-{nth}"),
                format!("{provider:?}: {fault:?}"),
            );
            let code = match fault {
                Fault::Oversize { .. } => "provider-reply-unreadable",
                _ => "provider-error",
            };
            let body = one(provider, nth);
            gateway.simulators.next_fault(provider, fault);
            let lost = post(&gateway, &key, &body).await?;
            assert_problem(&case, &lost, unknown(provider, code, 502));
            for _ in 0..2 {
                let found = by_key(&gateway, provider, nth, &key).await?;
                assert_found(&case, &found, "succeeded");
                assert_eq!(found.body["amount"], body["amount"], "{case}");
            }
            let received = gateway.simulators.received(provider);
            // Both workers tell it.
            for _ in 0..4 {
                let told = post(&gateway, &key, &body).await?;
                assert_told(&case, &told, &body);
                if provider.has_keys() {
                    assert!(told.body["id"].is_string(), "{case}: {told:?}");
                }
            }
            // The key is that refund's for good.
            let mut other = body.clone();
            other["amount"]["value"] = json!("1.01");
            let answer = post(&gateway, &key, &other).await?;
            let reused = Problem {
                outcome: "unknown",
                ..Problem::certain("idempotency-key-reused", 422)
            };
            assert_problem(&case, &answer, reused);
            assert_eq!(gateway.simulators.received(provider), received, "{case}");
            assert_eq!(booked(&gateway, provider, nth), 1, "{case}");
        }
    }
    let concluded = gateway
        .stats("refund.guard_events_total.event.concluded")
        .await?;
    assert_eq!(concluded.values().sum::<u64>(), 9, "{concluded:?}");
    Ok(())
}

/// BOG shows its refunds by their ids alone.
#[tokio::test(flavor = "multi_thread")]
async fn where_bogs_answer_was_lost_the_same_call_gives_the_id() -> Result<()> {
    let gateway = start().await?;
    let body = one(Bog, 1);
    gateway
        .simulators
        .next_fault(Bog, Fault::Close { booked: true });
    let lost = post(&gateway, "key", &body).await?;
    assert_problem("lost", &lost, unknown(Bog, "provider-error", 502));
    let found = by_key(&gateway, Bog, 1, "key").await?;
    assert_problem("no id", &found, AMBIGUOUS);
    assert!(
        found
            .text
            .contains("The same refund call with the same key"),
        "{found:?}"
    );
    let made = post(&gateway, "key", &body).await?;
    assert_eq!(
        (made.status, booked(&gateway, Bog, 1)),
        (202, 1),
        "{made:?}"
    );
    let id = made.body["id"].as_str().context("an id")?;
    // The gateway remembers the id, for that payment alone.
    let found = by_key(&gateway, Bog, 1, "key").await?;
    assert_found("remembered", &found, "pending");
    assert_eq!(found.body["id"], id);
    let found = by_key(&gateway, Bog, 2, "key").await?;
    assert_problem("another payment", &found, asked("refund-not-found", 404));
    gateway.simulators.settle(Bog, None, true);
    let found = by_key(&gateway, Bog, 1, "key").await?;
    assert_found("ended", &found, "succeeded");
    let received = gateway.simulators.received(Bog);
    assert_told("ended", &post(&gateway, "key", &body).await?, &body);
    assert_eq!(gateway.simulators.received(Bog), received);
    bog_completes_in_its_own_time(&gateway).await
}

async fn bog_completes_in_its_own_time(gateway: &Gateway) -> Result<()> {
    gateway.simulators.complete_after(Some(2));
    let made = post(gateway, "own-time", &one(Bog, 3)).await?;
    assert_eq!(made.status, 202, "{made:?}");
    for status in ["pending", "pending", "succeeded", "succeeded"] {
        let found = by_key(gateway, Bog, 3, "own-time").await?;
        assert_found("in its own time", &found, status);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_refund_never_arrived_is_as_good_as_new() -> Result<()> {
    let gateway = start().await?;
    for provider in [Begateway, Bbmsl] {
        let case = format!("{provider:?}");
        let body = plain(provider, 1);
        gateway.simulators.next_fault(provider, Fault::CloseBefore);
        let lost = post(&gateway, &case, &body).await?;
        assert_problem(&case, &lost, unknown(provider, "provider-error", 502));
        if provider == Bbmsl {
            assert!(is_replayed(&post(&gateway, &case, &body).await?));
        }
        let found = settled(&gateway, provider, 1, &case).await?;
        assert_problem(&case, &found, NEVER_WAS);
        let made = post(&gateway, &case, &body).await?;
        assert_eq!((made.status, is_replayed(&made)), (200, false), "{made:?}");
        assert_eq!(booked(&gateway, provider, 1), 1);
        let found = by_key(&gateway, provider, 1, &case).await?;
        assert_found(&case, &found, "succeeded");
        let told = post(&gateway, &case, &body).await?;
        assert!(is_replayed(&told) && told.text == made.text, "{told:?}");
        assert_eq!(booked(&gateway, provider, 1), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_refund_is_on_its_way_nobody_is_told_that_there_is_none() -> Result<()> {
    let gateway = start().await?;
    for provider in [Begateway, Bbmsl] {
        let case = format!("{provider:?}");
        let (slow, body) = (Duration::from_secs(2), plain(provider, 1));
        gateway.simulators.next_fault(provider, Fault::Delay(slow));
        let looks = async {
            until_received(&gateway, provider, 1).await?;
            by_key(&gateway, provider, 1, &case).await
        };
        let (made, found) = tokio::join!(post(&gateway, &case, &body), looks);
        assert_problem(&case, &found?, asked("refund-not-found", 404));
        let made = made?;
        assert_eq!(made.status, 200, "{made:?}");
        let told = post(&gateway, &case, &body).await?;
        assert!(is_replayed(&told) && told.text == made.text, "{told:?}");

        // The other way round: the refund is made while the answer that it is not there is on its way. A process that has been
        // up for less would not have believed it anyway.
        let found = settled(&gateway, provider, 2, "not-sent").await?;
        assert_problem(&case, &found, NEVER_WAS);
        let key = format!("{provider:?}-2");
        let received = gateway.simulators.received(provider);
        let late = Fault::DelayReply(slow);
        gateway.simulators.next_fault(provider, late);
        let makes = async {
            until_received(&gateway, provider, received + 1).await?;
            post(&gateway, &key, &plain(provider, 2)).await
        };
        let (found, made) = tokio::join!(by_key(&gateway, provider, 2, &key), makes);
        assert_problem(&case, &found?, asked("refund-not-found", 404));
        let made = made?;
        assert_eq!(made.status, 200, "{made:?}");
        let told = post(&gateway, &key, &plain(provider, 2)).await?;
        assert!(is_replayed(&told) && told.text == made.text, "{told:?}");
        assert_eq!(booked(&gateway, provider, 2), 1);
    }
    let overtaken = gateway
        .stats("refund.guard_events_total.event.overtaken")
        .await?;
    assert_eq!(overtaken.values().sum::<u64>(), 2, "{overtaken:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_of_another_payment_settles_nothing() -> Result<()> {
    let gateway = start_with(|plugin| {
        never_settles(plugin);
        plugin["providers"]["shop-2"] = plugin["providers"]["begateway"].clone();
    })
    .await?;
    for provider in final_at_once() {
        let key = format!("{provider:?}");
        let body = one(provider, 1);
        gateway
            .simulators
            .next_fault(provider, Fault::Close { booked: true });
        let lost = post(&gateway, &key, &body).await?;
        assert_problem("lost", &lost, unknown(provider, "provider-error", 502));
        let found = by_key(&gateway, provider, 2, &key).await?;
        let problem = match provider.declared().by_key_alone {
            // The refund shows under its key, and names the other payment.
            true => asked("provider-reply-mismatch", 502),
            false => asked("refund-not-found", 404),
        };
        assert_problem("another payment", &found, problem);
        if provider == Bbmsl {
            gateway
                .simulators
                .refund_by_hand(provider, &fresh(provider, 2), 100, "");
            let found = by_key(&gateway, provider, 2, &key).await?;
            assert_problem("another order", &found, AMBIGUOUS);
            // Neither does a provider under which the key was not used.
            let found = by_key(&gateway, Begateway, 7, &key).await?;
            assert_problem("another provider", &found, asked("refund-not-found", 404));
            let again = post(&gateway, &key, &body).await?;
            assert!(is_replayed(&again) && again.text == lost.text, "{again:?}");
        }
        let found = by_key(&gateway, provider, 1, &key).await?;
        assert_found("its own", &found, "succeeded");
        assert_told("its own", &post(&gateway, &key, &body).await?, &body);
        assert_eq!(booked(&gateway, provider, 1), 1);
    }
    Ok(())
}

// ---- BBMSL, where an order is all that shows

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_bbmsl_is_this_refund_if_the_amount_is() -> Result<()> {
    let gateway = start().await?;
    let mut nth = 0;
    for by_reference in [false, true] {
        for (minor, same) in [(200, false), (100, true)] {
            nth += 1;
            let (key, order) = (format!("key-{nth}"), fresh(Bbmsl, nth));
            let reference = format!("order-{order}");
            let mut body = one(Bbmsl, nth);
            let named = if by_reference {
                body["payment"] = json!({"reference": reference});
                ("payment_reference", &*reference)
            } else {
                ("payment_id", &*order)
            };
            gateway.simulators.next_fault(Bbmsl, Fault::CloseBefore);
            let lost = post(&gateway, &key, &body).await?;
            assert_problem(&key, &lost, unknown(Bbmsl, "provider-error", 502));
            let by_hand = gateway.simulators.refund_by_hand(Bbmsl, &order, minor, "");
            by_hand.context("a refund")?;
            let parameters = [("provider", "bbmsl"), named, ("key", &*key)];
            let found = gateway.look_up(&parameters).await?;
            let again = post(&gateway, &key, &body).await?;
            if same {
                assert_found(&key, &found, "succeeded");
                assert_told(&key, &again, &body);
            } else {
                assert_problem(&key, &found, asked("provider-reply-mismatch", 502));
                assert!(is_replayed(&again) && again.text == lost.text, "{again:?}");
            }
            // Without the key, and under another, it is nobody's.
            let found = gateway.look_up(&parameters[..2]).await?;
            assert_problem(&key, &found, AMBIGUOUS);
            let another = [parameters[0], named, ("key", "another")];
            let found = gateway.look_up(&another).await?;
            assert_problem(&key, &found, AMBIGUOUS);
        }
    }
    an_order_of_bbmsl_in_another_state_proves_nothing(&gateway).await
}

async fn an_order_of_bbmsl_in_another_state_proves_nothing(gateway: &Gateway) -> Result<()> {
    for (pointer, value) in [
        ("/order/status", "\"OPEN\""),
        ("/order/status", "\"VOIDED\""),
        ("/order/status", "\"CLOSED\""),
        ("/order/status", "\"REFUNDED\""),
        ("/order/netAmount", "99.00"),
    ] {
        let case = format!("{pointer} {value}");
        gateway
            .simulators
            .next_fault(Bbmsl, altered(pointer, value));
        let answer = by_key(gateway, Bbmsl, 100, "key").await?;
        assert_problem(&case, &answer, asked("refund-not-found", 404));
    }
    for (pointer, value, code) in [
        ("/order/id", "17", "provider-reply-mismatch"),
        ("/order/status", "\"STRANGE\"", "provider-reply-unreadable"),
        ("/order/netAmount", "\"99.00\"", "provider-reply-unreadable"),
        ("/order", "null", "provider-reply-unreadable"),
    ] {
        let case = format!("{pointer} {value}");
        gateway
            .simulators
            .next_fault(Bbmsl, altered(pointer, value));
        let answer = by_key(gateway, Bbmsl, 100, "key").await?;
        assert_problem(&case, &answer, asked(code, 502));
    }
    Ok(())
}

/// A gateway whose requests to BBMSL are signed by OpenBao, if this Envoy can have that.
async fn by_transit() -> Result<Option<(OpenBao, Gateway)>> {
    if Options::default().secrets_by != SecretsBy::FilterState {
        return Ok(None);
    }
    let secrets = secrets();
    let openbao = OpenBao::start(secrets.of(Bbmsl)).await?;
    let (address, ca) = (openbao.address, openbao.ca());
    let gateway = Gateway::start(Options {
        secrets: Some(secrets),
        more_secrets: vec![("openbao-token", openbao.token.clone())],
        change: Box::new(move |config, folder| {
            sign_by_transit(config, address, &ca, folder).expect("a cluster");
            plugin(config, |plugin| {
                plugin["providers"]["bbmsl"]["query_first"] = json!(true);
            });
        }),
        ..Options::default()
    })
    .await?;
    Ok(Some((openbao, gateway)))
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_signs_a_look_up_and_a_question_before_a_refund() -> Result<()> {
    let Some((_openbao, gateway)) = by_transit().await? else {
        return Ok(());
    };
    let found = by_key(&gateway, Bbmsl, 1, "key").await?;
    assert_problem("before", &found, asked("refund-not-found", 404));
    let made = post(&gateway, "key", &one(Bbmsl, 1)).await?;
    assert_eq!(made.status, 200, "{made:?}");
    let found = by_key(&gateway, Bbmsl, 1, "key").await?;
    assert_found("after", &found, "succeeded");
    let expected = ["query", "query", "refund", "query"];
    assert_eq!(paths(&gateway, Bbmsl), expected);
    assert_eq!(booked(&gateway, Bbmsl, 1), 1);
    let signed = gateway
        .stats("refund.signatures_total.*transit.result.ok")
        .await?;
    assert_eq!(signed.values().sum::<u64>(), 4, "{signed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_there_asks_nobody() -> Result<()> {
    let gateway = start_with(|plugin| {
        let providers = &mut plugin["providers"];
        // One whose cluster has another name than the provider.
        providers["hong-kong"] = providers["bbmsl"].clone();
        providers["hong-kong"]["cluster"] = json!("bbmsl");
        providers["bbmsl"]["cluster"] = json!("elsewhere");
        providers["bbmsl"]["query_first"] = json!(true);
    })
    .await?;
    let answer = by_key(&gateway, Bbmsl, 1, "key").await?;
    assert_problem("look-up", &answer, asked("provider-unreachable", 503));
    let made = post(&gateway, "key", &one(Bbmsl, 1)).await?;
    assert_problem("refund", &made, again("provider-unreachable", 503));
    assert_eq!(gateway.simulators.received(Bbmsl), 0);
    let order = fresh(Bbmsl, 1);
    let parameters = [("provider", "hong-kong"), ("payment_id", &*order)];
    let found = gateway.look_up(&parameters).await?;
    assert_problem("another name", &found, asked("refund-not-found", 404));
    assert_eq!(gateway.simulators.received(Bbmsl), 1);
    Ok(())
}

// ---- query_first

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_asked_for_before_it_is_refunded() -> Result<()> {
    let gateway = asking_first().await?;
    let body = one(Bbmsl, 1);
    let made = post(&gateway, "key", &body).await?;
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(made.body["reference"], body["reference"]);
    assert_eq!(paths(&gateway, Bbmsl), ["query", "refund"]);
    let told = post(&gateway, "key", &body).await?;
    assert!(is_replayed(&told) && told.text == made.text, "{told:?}");
    assert_eq!(gateway.simulators.received(Bbmsl), 2);
    // Of the others nothing is asked.
    for provider in keyed() {
        let made = post(&gateway, &format!("{provider:?}"), &one(provider, 1)).await?;
        assert!(made.status < 300, "{made:?}");
        assert_eq!(gateway.simulators.received(provider), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_cannot_be_refunded_is_sent_no_refund() -> Result<()> {
    let gateway = asking_first().await?;
    let not = |status: &str| altered("/order/status", &format!("{status:?}"));
    let cannot = Problem::certain("payment-not-refundable", 422);
    let rejected = Problem::certain("provider-rejected", 422);
    let has_refund = Problem::certain("payment-has-refund", 409);
    let cases = [
        (not("OPEN"), cannot),
        (not("VOIDED"), cannot),
        (not("CLOSED"), cannot),
        (altered("/order/netAmount", "99.00"), has_refund),
        (altered("/order/currency", "\"USD\""), cannot),
        (
            altered("/order/amount", "0.50"),
            again("provider-reply-unreadable", 502),
        ),
        (
            says(200, r#"{"responseCode":"9004","message":"m"}"#),
            rejected,
        ),
        (says(404, "{}"), Problem::certain("payment-not-found", 404)),
    ];
    for (nth, (fault, problem)) in (1..).zip(cases) {
        let (key, case) = (format!("key-{nth}"), format!("{fault:?}"));
        gateway.simulators.next_fault(Bbmsl, fault);
        let first = post(&gateway, &key, &one(Bbmsl, nth)).await?;
        assert_problem(&case, &first, problem);
        assert_eq!(first.body["provider"]["name"], "bbmsl", "{case}");
        // Another key's refund spends nothing of this one.
        if problem.retry == "no" && problem != has_refund {
            let told = post(&gateway, &key, &one(Bbmsl, nth)).await?;
            assert!(is_replayed(&told) && told.text == first.text, "{told:?}");
        }
    }
    // One that was refunded by hand: whatever its amount, nothing was ever sent under this key.
    for (nth, minor) in [(20, 100), (21, 200)] {
        let (key, order) = (format!("key-{nth}"), fresh(Bbmsl, nth));
        let by_hand = gateway.simulators.refund_by_hand(Bbmsl, &order, minor, "");
        by_hand.context("a refund")?;
        let answer = post(&gateway, &key, &one(Bbmsl, nth)).await?;
        assert_problem("by hand", &answer, has_refund);
        let found = by_key(&gateway, Bbmsl, nth, &key).await?;
        assert_problem("by hand", &found, AMBIGUOUS);
        let answer = post(&gateway, &key, &one(Bbmsl, nth)).await?;
        assert_problem("by hand", &answer, has_refund);
    }
    assert!(paths(&gateway, Bbmsl).iter().all(|path| path == "query"));
    assert_eq!(gateway.simulators.ledger(Bbmsl).len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_an_answer_leaves_the_refund_unsent_and_its_key_free() -> Result<()> {
    let gateway = asking_first().await?;
    let unreachable = again("provider-unreachable", 503);
    let failed = again("provider-error", 502);
    let unreadable = again("provider-reply-unreadable", 502);
    let cases = [
        (says(500, "{}"), failed),
        (says(503, "{}"), failed),
        (says(302, "{}"), failed),
        (says(200, "garbage"), unreadable),
        (
            altered("/order/id", "17"),
            again("provider-reply-mismatch", 502),
        ),
        (altered("/order/status", "\"STRANGE\""), unreadable),
        (Fault::Gzip, unreadable),
        (Fault::CloseBefore, failed),
        (Fault::Close { booked: true }, failed),
        (Fault::Reset { booked: true }, failed),
        (Fault::CutBody { booked: true }, failed),
        (says(401, "{}"), again("provider-auth-failed", 502)),
        (says(429, "{}"), again("provider-rate-limited", 503)),
    ];
    let mut nth = 0;
    for (fault, problem) in cases {
        nth += 1;
        let (key, case) = (format!("key-{nth}"), format!("{fault:?}"));
        gateway.simulators.next_fault(Bbmsl, fault);
        let answer = post(&gateway, &key, &one(Bbmsl, nth)).await?;
        assert_problem(&case, &answer, problem);
        assert_eq!(booked(&gateway, Bbmsl, nth), 0, "{case}");
        let made = post(&gateway, &key, &one(Bbmsl, nth)).await?;
        assert_eq!(
            (made.status, is_replayed(&made)),
            (200, false),
            "{case}: {made:?}"
        );
        assert_eq!(booked(&gateway, Bbmsl, nth), 1, "{case}");
    }
    shut(&gateway, Bbmsl).await?;
    let answer = post(&gateway, "refused", &one(Bbmsl, 100)).await?;
    assert_problem("refused", &answer, unreachable);
    gateway.simulators.open(Bbmsl).await?;
    let made = post(&gateway, "refused", &one(Bbmsl, 100)).await?;
    assert_eq!(made.status, 200, "{made:?}");
    // The answer to the refund itself is lost: that is unknown as ever, and the order is asked for no more.
    for fault in [Fault::Delay(Duration::ZERO), Fault::Close { booked: true }] {
        gateway.simulators.next_fault(Bbmsl, fault);
    }
    let lost = post(&gateway, "lost", &one(Bbmsl, 101)).await?;
    assert_problem("lost", &lost, unknown(Bbmsl, "provider-error", 502));
    let received = gateway.simulators.received(Bbmsl);
    assert!(is_replayed(
        &post(&gateway, "lost", &one(Bbmsl, 101)).await?
    ));
    assert_eq!(gateway.simulators.received(Bbmsl), received);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_while_the_order_is_asked_for_is_not_refunded() -> Result<()> {
    let gateway = asking_first().await?;
    gateway
        .simulators
        .next_fault(Bbmsl, Fault::DelayReply(Duration::from_millis(700)));
    let body = one(Bbmsl, 1);
    tokio::select! {
        answer = gateway.refund("key", &body) => anyhow::bail!("answered: {answer:?}"),
        received = until_received(&gateway, Bbmsl, 1) => received?,
    }
    let mut made = None;
    until("the key is free", async || {
        let answer = post(&gateway, "key", &body).await?;
        let free = answer.body["code"] != "refund-in-progress";
        if free {
            made = Some(answer);
        }
        Ok(free)
    })
    .await?;
    let made = made.context("an answer")?;
    assert_eq!((made.status, is_replayed(&made)), (200, false), "{made:?}");
    assert_eq!(paths(&gateway, Bbmsl), ["query", "query", "refund"]);
    // The answer that nobody waits for does no harm.
    sleep(Duration::from_millis(800)).await;
    assert_eq!(booked(&gateway, Bbmsl, 1), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_retry_of_the_routes_doubles_the_question_or_the_refund() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        let route = route_mut(config, "bbmsl").expect("a route");
        route["route"]["retry_policy"] = json!({
            "retry_on": "5xx,reset,connect-failure,refused-stream", "num_retries": 3,
        });
        let clusters = config["static_resources"]["clusters"].as_array_mut();
        for cluster in clusters.into_iter().flatten() {
            cluster["circuit_breakers"] = json!({"thresholds": [{"max_retries": 10}]});
        }
        plugin(config, |plugin| {
            plugin["providers"]["bbmsl"]["query_first"] = json!(true);
        });
    }))
    .await?;
    gateway.simulators.next_fault(Bbmsl, says(503, "{}"));
    let answer = post(&gateway, "key", &one(Bbmsl, 1)).await?;
    assert_problem("query", &answer, again("provider-error", 502));
    assert_eq!(paths(&gateway, Bbmsl), ["query"]);
    gateway
        .simulators
        .next_fault(Bbmsl, Fault::Delay(Duration::ZERO));
    gateway.simulators.next_fault(Bbmsl, says(503, "{}"));
    let answer = post(&gateway, "key", &one(Bbmsl, 1)).await?;
    assert_problem("refund", &answer, unknown(Bbmsl, "provider-error", 502));
    assert_eq!(paths(&gateway, Bbmsl), ["query", "query", "refund"]);
    Ok(())
}

// ---- previews

/// The same call on the path of previews.
async fn preview(request: reqwest::RequestBuilder) -> Result<Answer> {
    let (client, request) = request.build_split();
    let mut request = request?;
    let path = format!("{}/preview", request.url().path());
    request.url_mut().set_path(&path);
    Answer::read(timeout(PATIENCE, client.execute(request)).await??).await
}

fn refund(gateway: &Gateway, key: &str, body: &Value) -> reqwest::RequestBuilder {
    reqwest::Client::new()
        .post(gateway.url())
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(body.to_string())
}

/// How much each of the endpoints has received.
fn received(gateway: &Gateway) -> [u64; Provider::ALL.len()] {
    Provider::ALL.map(|provider| gateway.simulators.received(provider))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_shows_the_request_and_sends_nothing() -> Result<()> {
    // Nothing is asked first, either.
    let mut gateway = asking_first().await?;
    let client = reqwest::Client::new();
    for provider in FOUR {
        let (case, body) = (format!("{provider:?}"), one(provider, 1));
        let before = received(&gateway);
        let shown = preview(refund(&gateway, &case, &body)).await?;
        let parameters = [
            ("provider", cluster(provider)),
            ("payment_id", &*fresh(provider, 1)),
            ("key", &*case),
        ];
        let looked = preview(client.get(gateway.url()).query(&parameters)).await?;
        assert_eq!(received(&gateway), before, "{case}");
        let asks = if provider.declared().secret.signs() {
            "POST"
        } else {
            "GET"
        };
        for (answer, method) in [(&shown, "POST"), (&looked, asks)] {
            assert_previewed(&case, answer, provider, method);
            assert_no_secret(&case, &gateway, &answer.text);
        }

        // The key is as good as new, and what is sent is what was shown.
        let made = post(&gateway, &case, &body).await?;
        assert!(made.status < 300 && !is_replayed(&made), "{made:?}");
        assert_shown(&case, &gateway, provider, &shown)?;
        let found = by_key(&gateway, provider, 1, &case).await?;
        assert_eq!(found.status, 200, "{found:?}");
        assert_shown(&case, &gateway, provider, &looked)?;
        // A key that is taken is shown, too, and keeps its answer.
        let shown_again = preview(refund(&gateway, &case, &of(provider, 2, "2.00"))).await?;
        assert_previewed(&case, &shown_again, provider, "POST");
        let answer = post(&gateway, &case, &body).await?;
        assert_eq!(answer.body["id"], made.body["id"], "{case}: {answer:?}");
        assert_eq!(booked(&gateway, provider, 1), 1, "{case}");
    }
    gateway.stop().await?;
    let logs = gateway.log() + &gateway.access_log();
    assert!(logs.contains("refund_preview"), "{logs}");
    assert_no_secret("the logs", &gateway, &logs);
    Ok(())
}

/// Whether a text has none of the secrets in it, in no form in which one is sent.
#[track_caller]
fn assert_no_secret(case: &str, gateway: &Gateway, text: &str) {
    // All but the key begin with the first; in base64 with their users before them, they begin with the other two.
    let mut hidden = vec!["canary-", "MTAwMDE6Y2FuYXJ5", "MzYxOmNhbmFyeS"];
    hidden.extend(gateway.secrets.of(Bbmsl).lines().skip(1).take(3));
    for secret in hidden {
        assert!(!text.contains(secret), "{case}: {secret} in {text}");
    }
}

/// Whether the answer shows a request to this provider.
#[track_caller]
fn assert_previewed(case: &str, answer: &Answer, provider: Provider, method: &str) {
    assert_eq!(answer.status, 200, "{case}: {answer:?}");
    assert!(!answer.header("x-request-id").is_empty(), "{case}");
    assert_eq!(answer.body["preview"], true, "{case}: {answer:?}");
    assert_eq!(answer.body["provider"], cluster(provider), "{case}");
    assert_eq!(answer.body["method"], method, "{case}: {answer:?}");
    let url = answer.body["url"].as_str().unwrap_or_default();
    assert!(
        url.starts_with(&format!("https://{}/", provider.host())),
        "{case}: {url}"
    );
    let scheme = provider.declared().secret.scheme;
    let expected = json!(scheme.map(|scheme| format!("{scheme} [redacted]")));
    assert_eq!(
        answer.body["headers"]["authorization"], expected,
        "{case}: {answer:?}"
    );
    let signed = answer.body["body"].as_str().unwrap_or_default();
    assert_eq!(
        signed.contains(r#""signature":"[redacted]""#),
        provider.declared().secret.signs(),
        "{case}: {signed}"
    );
}

/// Whether the latest request of this provider is what was shown, but for its secrets.
#[track_caller]
fn assert_shown(case: &str, gateway: &Gateway, provider: Provider, shown: &Answer) -> Result<()> {
    let sent = gateway.simulators.last_request(provider).context("none")?;
    assert_eq!(shown.body["method"], sent.method, "{case}");
    let url = format!("https://{}{}", provider.host(), sent.path);
    assert_eq!(shown.body["url"], url, "{case}");
    for (name, value) in &sent.headers {
        let value = String::from_utf8_lossy(value);
        match name.as_str() {
            // How long a signature is, nobody knows before it is made.
            "content-length" if provider.declared().secret.signs() => {}
            "x-request-id" => assert!(shown.body["headers"][name].is_string(), "{case}"),
            "authorization" => assert_ne!(shown.body["headers"][name], *value, "{case}"),
            _ => assert_eq!(shown.body["headers"][name], *value, "{case}: {name}"),
        }
    }
    let headers = shown.body["headers"].as_object().map(serde_json::Map::len);
    let unsigned = usize::from(provider.declared().secret.signs());
    assert_eq!(
        headers,
        Some(sent.headers.len() - unsigned),
        "{case}: {shown:?}"
    );
    let sent = String::from_utf8(sent.body)?;
    match shown.body.get("body") {
        None => assert_eq!(sent, "", "{case}"),
        Some(body) if provider.declared().secret.signs() => {
            let mut sent: Value = serde_json::from_str(&sent)?;
            sent["signature"] = json!("[redacted]");
            let body: Value = serde_json::from_str(body.as_str().context("a text")?)?;
            assert_eq!(body, sent, "{case}");
        }
        Some(body) => assert_eq!(*body, sent, "{case}"),
    }
    Ok(())
}

// ---- the call itself

#[tokio::test(flavor = "multi_thread")]
async fn the_call_itself_is_read_strictly() -> Result<()> {
    // One gateway for all of them.
    let gateway = start_with(never_settles).await?;
    what_once_asked_for_a_dry_run_refunds_nothing(&gateway).await?;
    a_query_with_faults_is_told_all_of_them_and_asks_nobody(&gateway).await?;
    a_query_is_read_as_forms_are_written(&gateway).await?;
    another_method_is_told_of_post_and_get(&gateway).await?;
    Ok(())
}

/// Who asks for a preview in the way that once was one must not be refunded.
async fn what_once_asked_for_a_dry_run_refunds_nothing(gateway: &Gateway) -> Result<()> {
    let invalid = Problem::corrected("invalid-request", 422);
    let look = || {
        let parameters = [("provider", "moyasar"), ("payment_id", "p"), ("key", "k")];
        reqwest::Client::new().get(gateway.url()).query(&parameters)
    };
    let body = one(Moyasar, 1);
    for (name, value) in [
        ("refund-dry-run", "true"),
        ("Refund-Dry-Run", "false"),
        ("Refund_Dry_Run", "true"),
        ("refund-dryrun", ""),
        ("RefundDryRun", "yes"),
    ] {
        // Envoy passes an underscore on only where it is told to; without the header this would be a refund.
        let answer = refund(gateway, "key", &body).header(name, value);
        let answer = Answer::read(answer.send().await?).await?;
        assert_problem(name, &answer, invalid);
        let answer = look().header(name, value).send().await?;
        let wrong = asked_wrongly("invalid-request", 422);
        assert_problem(name, &Answer::read(answer).await?, wrong);
    }
    for query in ["?dry_run=true", "?preview", "?preview=true&x"] {
        let url = format!("{}{query}", gateway.url());
        let request = reqwest::Client::new()
            .post(url)
            .header("content-type", "application/json")
            .header("idempotency-key", "key")
            .body(body.to_string());
        let answer = Answer::read(request.send().await?).await?;
        assert_problem(query, &answer, invalid);
    }
    // A slip in the path reaches nobody.
    for slip in ["previw", "preview/", "preview/preview", "Preview"] {
        let mut request = refund(gateway, "key", &body).build()?;
        request.url_mut().set_path(&format!("{PATH}/{slip}"));
        let answer = Answer::read(reqwest::Client::new().execute(request).await?).await?;
        assert!(answer.status >= 400, "{slip}: {answer:?}");
    }
    // Faults of the call are told as ever, all at once.
    let answer = preview(refund(gateway, "a b", &body)).await?;
    assert_problem(
        "key",
        &answer,
        Problem::corrected("idempotency-key-invalid", 400),
    );
    let answer = preview(refund(gateway, "key", &json!({"provider": "moyasar"}))).await?;
    assert_problem("body", &answer, invalid);
    let answer = preview(refund(gateway, "key", &json!(1))).await?;
    ensure!(answer.status >= 400, "{answer:?}");
    assert_eq!(received(gateway), [0; Provider::ALL.len()]);
    Ok(())
}

async fn a_query_with_faults_is_told_all_of_them_and_asks_nobody(gateway: &Gateway) -> Result<()> {
    for (query, pointers) in [
        ("", &["/provider", "/payment_id"][..]),
        ("provider=&payment_id=p&key=k", &["/provider"]),
        ("provider=paypal&payment_id=p&key=k", &["/provider"]),
        (
            "provider=bog&provider=bog&payment_id=p&key=k",
            &["/provider"],
        ),
        ("provider=bog&payment_id=p", &["/key"]),
        ("provider=bog&key=k", &["/payment_id"]),
        ("provider=bog&payment_id=&key=k", &["/payment_id"]),
        ("provider=bog&payment_id=..&key=k", &["/payment_id"]),
        ("provider=bog&payment_id=p&id=.", &["/id"]),
        ("provider=bog&payment_id=p&id=", &["/id"]),
        ("provider=bog&payment_reference=p&key=k", &["/payment_id"]),
        ("provider=bbmsl&payment_id=a", &["/payment_id"]),
        ("provider=bbmsl&payment_id=01", &["/payment_id"]),
        ("provider=bog&payment_id=p&key=a+b", &["/key"]),
        ("provider=bog&payment_id=p&key=a%20b", &["/key"]),
        ("provider=bog&payment_id=p&key=%22a", &["/key"]),
        ("provider=bog&payment_id=p&key=", &["/key"]),
        ("provider=bog&payment_id=p&key=%FF", &["/key"]),
        ("provider=bog&payment_id=p&key=k&key=k", &["/key"]),
        ("provider=bog&payment_id=p&key=k&a~b/c=1", &["/a~0b~1c"]),
        ("provider=bog&payment_id=p&key=k&%FF=1", &["/"]),
        (
            "provider=bog&payment_id=p&key=k&amount=1&Key=k",
            &["/Key", "/amount"],
        ),
    ] {
        let bytes = format!(
            "GET {PATH}?{query} HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n\r\n"
        );
        let answer = raw(gateway.address, bytes.as_bytes())
            .await
            .context(query)?;
        assert_problem(query, &answer, asked_wrongly("invalid-request", 422));
        let faults = answer.body["errors"].as_array().into_iter().flatten();
        let mut told: Vec<_> = faults
            .filter_map(|fault| fault["pointer"].as_str())
            .collect();
        told.sort_unstable();
        let mut pointers = pointers.to_vec();
        pointers.sort_unstable();
        told.dedup();
        assert_eq!(told, pointers, "{query}: {answer:?}");
    }
    assert_eq!(received(gateway), [0; Provider::ALL.len()]);
    Ok(())
}

async fn a_query_is_read_as_forms_are_written(gateway: &Gateway) -> Result<()> {
    // Percent-encoded, with a space and a slash: BOG's own order `ord/1 x`.
    for query in [
        "provider=bog&payment_id=ord%2F1%20x&id=an+id",
        "payment_id=ord/1+x&%69d=a%6E%20id&provider=%62og",
        "&provider=bog&&payment_id=ord%2f1+x&id=an%20id&",
    ] {
        let url = format!("{}?{query}", gateway.url());
        let response = reqwest::Client::new().get(url).send().await?;
        let answer = Answer::read(response).await?;
        assert_problem(query, &answer, asked("refund-not-found", 404));
        let sent = gateway.simulators.last_request(Bog).context("none")?;
        assert_eq!(sent.path, "/payments/v1/receipt/ord%2F1%20x", "{query}");
    }
    // A text in a query reaches its own place and no other.
    for id in ["a/../b", "a?b=c", "a#b", "a%2Fb", "é", "a;b", "a\r\nb"] {
        let answer = ask(gateway, Begateway, "order-1", &[("id", id)]).await?;
        assert_problem(id, &answer, asked("refund-not-found", 404));
        let sent = gateway.simulators.last_request(Begateway).context("none")?;
        let segment = sent.path.strip_prefix("/beyag/transactions/");
        let segment = segment.context("another path")?;
        assert!(!segment.contains(['/', '?', '#', ';']), "{id}: {segment}");
    }
    Ok(())
}

async fn another_method_is_told_of_post_and_get(gateway: &Gateway) -> Result<()> {
    for method in ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let method = method.parse().context("a method")?;
        let response = reqwest::Client::new()
            .request(method, gateway.url())
            .send()
            .await?;
        let answer = Answer::read(response).await?;
        assert_eq!(answer.status, 405, "{answer:?}");
        assert_eq!(answer.header("allow"), "GET, POST");
        assert!(!answer.header("x-request-id").is_empty());
    }
    // The id is the caller's where it has one, and a look-up's key is the one in its query.
    let request = reqwest::Client::new()
        .get(gateway.url())
        .query(&[
            ("provider", "bbmsl"),
            ("payment_id", "1000001"),
            ("key", "k"),
        ])
        .header("x-request-id", "of-the-caller")
        .header("idempotency-key", "not one");
    let answer = Answer::read(request.send().await?).await?;
    assert_problem("its id", &answer, asked("refund-not-found", 404));
    assert_eq!(answer.header("x-request-id"), "of-the-caller");
    Ok(())
}

/// The shapes of a call over HTTP/1.1: each ends with its headers, its body or its trailers.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_has_no_body_and_is_taken_in_whatever_shape() -> Result<()> {
    let gateway = start().await?;
    let refused = asked_wrongly("invalid-request", 422);
    for provider in FOUR {
        let order = fresh(provider, 1);
        let query = format!("provider={}&payment_id={order}&key=k", cluster(provider));
        let good = match provider.declared().proves_absence {
            true => NEVER_WAS,
            false => asked("refund-not-found", 404),
        };
        settled(&gateway, provider, 1, "k").await?;
        for (case, rest, problem) in [
            ("no body", "\r\n", good),
            ("length 0", "content-length: 0\r\n\r\n", good),
            (
                "no chunk",
                "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                good,
            ),
            (
                "trailers",
                "transfer-encoding: chunked\r\n\r\n0\r\na: 1\r\n\r\n",
                good,
            ),
            ("a body", "content-length: 2\r\n\r\n{}", refused),
            (
                "a chunk",
                "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                refused,
            ),
        ] {
            let case = format!("{provider:?}: {case}");
            let bytes = format!(
                "GET {PATH}?{query} HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n{rest}"
            );
            let before = gateway.simulators.received(provider);
            let answer = raw(gateway.address, bytes.as_bytes())
                .await
                .context(case.clone())?;
            assert_problem(&case, &answer, problem);
            let asks = u64::from(problem != refused);
            assert_eq!(
                gateway.simulators.received(provider),
                before + asks,
                "{case}"
            );
            if asks == 1 && provider.declared().secret.scheme.is_some() {
                assert_unframed(&case, &gateway, provider)?;
            }
        }
        let socket = TcpStream::connect(gateway.address).await?;
        let io = TokioIo::new(socket);
        let (mut http2, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        let empty = || Frame::data(Bytes::new());
        let trailers = || {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-trailer", "1".parse().expect("a value"));
            Frame::trailers(trailers)
        };
        for (case, frames) in [
            ("an empty frame", vec![empty()]),
            ("trailers", vec![trailers()]),
            ("an empty frame and trailers", vec![empty(), trailers()]),
        ] {
            let case = format!("{provider:?}, HTTP/2: {case}");
            let frames = frames.into_iter().map(Ok::<_, Infallible>);
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let request = Request::get(format!("http://gateway.test{PATH}?{query}")).body(body)?;
            let response = timeout(PATIENCE, http2.send_request(request)).await??;
            let (head, body) = response.into_parts();
            let text = timeout(PATIENCE, body.collect()).await??.to_bytes();
            let answer = Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: serde_json::from_slice(&text)?,
                text: String::from_utf8(text.to_vec())?,
            };
            assert_problem(&case, &answer, good);
            if provider.declared().secret.scheme.is_some() {
                assert_unframed(&case, &gateway, provider)?;
            }
        }
    }
    Ok(())
}

/// Whether a provider was asked without a body, and without a word of one.
#[track_caller]
fn assert_unframed(case: &str, gateway: &Gateway, provider: Provider) -> Result<()> {
    let sent = gateway.simulators.last_request(provider).context("none")?;
    assert_eq!(sent.method, "GET", "{case}");
    for name in [
        "content-length",
        "content-type",
        "transfer-encoding",
        "x-trailer",
    ] {
        assert_eq!(sent.headers_named(name).count(), 0, "{case}: {name}");
    }
    assert!(sent.body.is_empty() && sent.trailers.is_empty(), "{case}");
    Ok(())
}

/// The bearer token that BOG was sent last.
fn bogs_token(gateway: &Gateway) -> Option<String> {
    let sent = gateway.simulators.last_request(Bog)?;
    let value = sent.headers_named("authorization").next()?.to_vec();
    Some(
        String::from_utf8(value)
            .ok()?
            .strip_prefix("Bearer ")?
            .to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_asked_with_what_the_filter_makes_and_tracing_alone() -> Result<()> {
    for alpn in [Alpn::Http2, Alpn::Http1] {
        let gateway = Gateway::start(Options {
            simulators: simulator::Options {
                alpn,
                ..simulator::Options::default()
            },
            ..Options::changed(|config| {
                plugin(config, |plugin| {
                    plugin["providers"]["bbmsl"]["query_first"] = json!(true);
                });
            })
        })
        .await?;
        let ways = FOUR.map(|provider| (provider, false));
        for (provider, first) in ways.into_iter().chain([(Bbmsl, true)]) {
            let case = format!("{provider:?} {alpn:?} {first}");
            let order = fresh(provider, 1);
            let parameters = [
                ("provider", cluster(provider)),
                ("payment_id", &*order),
                ("key", "k"),
            ];
            let client = reqwest::Client::new();
            let request = if first {
                refund(&gateway, "k", &one(provider, 1))
            } else {
                client.get(gateway.url()).query(&parameters)
            };
            let request = request
                .header(
                    "traceparent",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                )
                .header("x-b3-sampled", "1")
                .header("x-request-id", "of-the-caller");
            let callers = [
                "cookie",
                "authorization",
                "accept-language",
                "x-custom",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-envoy-max-retries",
                "x-envoy-internal",
                "x-envoy-upstream-rq-timeout-ms",
                "via",
                "requestid",
            ];
            let request = callers
                .iter()
                .fold(request, |request, name| request.header(*name, "1"));
            let answer = Answer::read(request.send().await?).await?;
            ensure!([200, 404].contains(&answer.status), "{case}: {answer:?}");
            let requests = gateway.simulators.requests(provider);
            let question = if first {
                // The refund comes after it.
                requests.iter().rev().nth(1)
            } else {
                requests.last()
            };
            let sent = &question.context("no request")?.request;
            let mut expected = vec![
                "accept",
                "accept-encoding",
                "traceparent",
                "user-agent",
                "x-b3-sampled",
                "x-request-id",
            ];
            if provider == Bbmsl {
                assert_eq!(sent.path, "/hosted-checkout/query", "{case}");
                expected.extend(["content-length", "content-type"]);
            } else {
                expected.push("authorization");
            }
            expected.extend((alpn == Alpn::Http1).then_some("host"));
            expected.sort_unstable();
            let mut names: Vec<_> = sent.headers.iter().map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{case}");
            let value = |name| {
                let value = sent.headers_named(name).next().unwrap_or_default();
                String::from_utf8_lossy(value).into_owned()
            };
            assert_eq!(value("x-request-id"), "of-the-caller", "{case}");
            assert!(value("user-agent").starts_with("refund-filter/"), "{case}");
            assert_ne!(value("authorization"), "1", "{case}");
            assert_eq!(sent.authority.as_deref(), Some(provider.host()), "{case}");
            assert_eq!(sent.server_name.as_deref(), Some(provider.host()), "{case}");
        }
    }
    Ok(())
}

// ---- what Envoy answers by itself

#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_answers_to_a_look_up_says_nothing_of_the_refund() -> Result<()> {
    let gateway = start_with(|plugin| {
        plugin["providers"]["second"] = plugin["providers"]["moyasar"].clone();
    })
    .await?;
    let query = "?provider=moyasar&payment_id=p&key=k";
    let get = |query: &str, rest: &str| {
        format!("GET {PATH}{query} HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n{rest}")
    };
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    for (case, bytes, code, status) in [
        (
            "no host",
            get(query, "\r\n").replace("host: gateway.test\r\n", ""),
            "bad-request",
            400,
        ),
        ("a fragment", get("#a", "\r\n"), "bad-request", 400),
        (
            "an upgrade",
            get(query, "connection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .replace("connection: close\r\n", ""),
            "bad-request",
            403,
        ),
        (
            "a bad chunk",
            get(query, "transfer-encoding: chunked\r\n\r\nZZ\r\n"),
            "bad-request",
            400,
        ),
        (
            "a large body",
            get(
                query,
                &format!("content-length: 3000000\r\n\r\n{}", " ".repeat(3_000_000)),
            ),
            "body-too-large",
            413,
        ),
    ] {
        let answer = raw(gateway.address, bytes.as_bytes()).await.context(case)?;
        assert_problem(case, &answer, asked_wrongly(code, status));
    }
    // Of these Envoy does not tell the path, nor that they are look-ups: they are calls that went no further.
    let old = get(query, "\r\n").replace("HTTP/1.1", "HTTP/1.0");
    for (status, bytes) in [(426, old), (431, get(query, &format!("{many}\r\n")))] {
        let answer = raw(gateway.address, bytes.as_bytes()).await?;
        let problem = Problem::corrected("bad-request", status);
        assert_problem("no path", &answer, problem);
        assert!(
            answer.text.contains("says nothing of an earlier call"),
            "{answer:?}"
        );
    }
    assert_eq!(received(&gateway), [0; Provider::ALL.len()]);

    // A provider without a route.
    let parameters = [("provider", "second"), ("payment_id", "p"), ("key", "k")];
    let answer = gateway.look_up(&parameters).await?;
    assert_eq!(answer.body["code"], "gateway-error", "{answer:?}");
    let status = answer.status;
    assert_problem("no route", &answer, asked("gateway-error", status));

    let half = get(query, "content-length: 100\r\n\r\n{");
    let gateway = Gateway::start(Options::changed(|config| {
        config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
            ["request_timeout"] = json!("1s");
    }))
    .await?;
    let answer = raw(gateway.address, half.as_bytes()).await?;
    assert_problem("half a body", &answer, asked("request-timeout", 408));
    Ok(())
}

// ---- what the platform team sees

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_are_counted_and_logged_apart_and_without_secrets() -> Result<()> {
    let mut gateway = start().await?;
    let mut tokens = Vec::new();
    for provider in FOUR {
        let key = format!("{provider:?}");
        let made = post(&gateway, &key, &one(provider, 1)).await?;
        ensure!(made.status < 300, "{made:?}");
        let found = by_key(&gateway, provider, 1, &key).await?;
        ensure!(found.status == 200, "{found:?}");
        if provider == Bog {
            tokens.extend(bogs_token(&gateway));
        }
        // A provider that says back what it was shown.
        let shown = match tokens.first() {
            Some(token) if provider == Bog => token.clone(),
            _ => gateway.secrets.of(provider).to_owned(),
        };
        for (status, name) in [(200, "message"), (400, "message"), (401, "message")] {
            let body = json!({name: format!("You sent {shown}."), "key": shown}).to_string();
            let echoes = provider.has_keys();
            let body = if echoes { body } else { "{}".to_owned() };
            gateway.simulators.next_fault(provider, says(status, &body));
            let answer = by_key(&gateway, provider, 1, &key).await?;
            assert_problem(
                &key,
                &answer,
                asked(
                    match status {
                        400 => "provider-rejected",
                        401 => "provider-auth-failed",
                        _ => "provider-reply-unreadable",
                    },
                    if status == 400 { 422 } else { 502 },
                ),
            );
            assert_no_secret(&key, &gateway, &answer.text);
            assert!(!answer.text.contains(&shown), "{answer:?}");
        }
    }
    gateway.look_up(&[]).await?;
    let stats = gateway.admin("/stats/prometheus").await?;
    let counted = |kind: &str, provider: &str, word: &str| {
        let labels = [
            format!("provider=\"{provider}\",kind=\"{kind}\""),
            format!("=\"{word}\""),
        ];
        stats
            .lines()
            .filter(|line| {
                line.starts_with("refund_calls_total{")
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum::<u64>()
    };
    for provider in FOUR {
        let name = cluster(provider);
        let word = taken(provider).1;
        for outcome in [
            word,
            "provider-rejected",
            "provider-auth-failed",
            "provider-reply-unreadable",
        ] {
            assert_eq!(
                counted("look_up", name, outcome),
                1,
                "{name} {outcome}: {stats}"
            );
        }
        assert_eq!(counted("refund", name, word), 1, "{name}: {stats}");
        assert_eq!(
            counted("refund", name, "provider-rejected"),
            0,
            "{name}: {stats}"
        );
    }
    assert_eq!(counted("look_up", "none", "invalid-request"), 1, "{stats}");
    gateway.stop().await?;
    let log = gateway.access_log();
    let count = |word: &str| {
        log.matches(&format!("\"refund_status\":\"{word}\""))
            .count()
    };
    assert_eq!(
        [
            count("pending"),
            count("succeeded"),
            count("provider-rejected"),
            count("invalid-request")
        ],
        [2, 6, 4, 1],
        "{log}"
    );
    // Its query, with the key in it, is not logged.
    assert!(!log.contains("payment_id"), "{log}");
    for text in [log, gateway.log()] {
        assert_no_secret("the logs", &gateway, &text);
        for token in &tokens {
            assert!(!text.contains(token), "{token}");
        }
    }
    Ok(())
}

// ---- a fleet

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_fleets_front_a_look_up_settles_its_key_where_it_is_remembered() -> Result<()> {
    let (first, mut gateways, front) = fleet().await?;
    for nth in 1..=40 {
        let (key, order) = (format!("key-{nth}"), fresh(Begateway, nth));
        let body = one(Begateway, nth);
        first
            .simulators
            .next_fault(Begateway, Fault::Close { booked: true });
        let lost = front.refund(&key, &body).await?;
        assert_problem(&key, &lost, unknown(Begateway, "provider-error", 502));
        let parameters = [
            ("provider", "begateway"),
            ("payment_id", &*order),
            ("key", &*key),
        ];
        let found = front.look_up(&parameters).await?;
        assert_found(&key, &found, "succeeded");
        // Else it would be sent again.
        assert_told(&key, &front.refund(&key, &body).await?, &body);
    }
    assert_eq!(first.simulators.received(Begateway), 80);
    // Each has had its share, or this would prove nothing.
    for gateway in gateways.iter().chain([&first]) {
        let concluded = gateway
            .stats("refund.guard_events_total.event.concluded")
            .await?;
        assert!(concluded.values().sum::<u64>() > 0, "{concluded:?}");
    }
    // The front's own answer where a gateway is gone; a refund's is as it was.
    gateways.pop().context("a gateway")?.stop().await?;
    let mut gone = 0;
    for nth in 1..=40 {
        let (key, order) = (format!("key-{nth}"), fresh(Begateway, nth));
        let parameters = [
            ("provider", "begateway"),
            ("payment_id", &*order),
            ("key", &*key),
        ];
        let answer = front.look_up(&parameters).await?;
        if answer.status != 200 {
            gone += 1;
            assert_problem(&key, &answer, asked("gateway-error", 503));
            let answer = front.refund(&key, &one(Begateway, nth)).await?;
            assert_problem(&key, &answer, again("gateway-error", 503));
        }
    }
    assert!(gone > 0);
    assert_eq!(first.simulators.ledger(Begateway).len(), 40);
    Ok(())
}
