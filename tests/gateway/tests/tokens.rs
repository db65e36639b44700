//! Bank of Georgia's bearer token: fetched once for all callers and workers, renewed before its end, dropped when it is
//! refused; and a call that gets none has not been sent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{self, Problem, assert_problem};
use anyhow::{Result, ensure};
use gateway_testbed::{Answer, Gateway, Options};
use provider_simulator::{Certificate, ExpiresIn, Fault, Provider, Reply, TokenLifetime, orders};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

const UNREACHABLE: Problem = Problem {
    code: "provider-unreachable",
    status: 503,
    outcome: "not_refunded",
    retry: "same_key",
};

const AUTH_FAILED: Problem = Problem {
    code: "provider-auth-failed",
    status: 502,
    ..UNREACHABLE
};

const RATE_LIMITED: Problem = Problem {
    code: "provider-rate-limited",
    ..UNREACHABLE
};

fn refund(nth: u64) -> Value {
    json!({
        "provider": "bog",
        "payment": {"id": orders::fresh(Provider::Bog, nth)},
        "amount": {"value": "10.00", "currency": "GEL"},
        "reference": format!("reference-{nth}"),
    })
}

async fn call(gateway: &Gateway, nth: u64) -> Result<Answer> {
    timeout(
        PATIENCE,
        gateway.refund(&format!("key-{nth}"), &refund(nth)),
    )
    .await?
}

#[track_caller]
fn assert_accepted(case: &str, nth: u64, answer: &Answer) {
    assert_eq!(answer.status, 202, "{case}: {}", answer.text);
    assert_eq!(
        answer.body["reference"],
        format!("reference-{nth}"),
        "{case}: {}",
        answer.text
    );
}

/// The calls of these numbers, all at once.
async fn calls(
    gateway: &Arc<Gateway>,
    numbers: impl IntoIterator<Item = u64>,
) -> Result<Vec<(u64, Answer)>> {
    let mut running = JoinSet::new();
    for nth in numbers {
        let gateway = gateway.clone();
        running.spawn(async move { anyhow::Ok((nth, call(&gateway, nth).await?)) });
    }
    running.join_all().await.into_iter().collect()
}

fn booked(gateway: &Gateway) -> BTreeSet<String> {
    let ledger = gateway.simulators.ledger(Provider::Bog);
    let payments: BTreeSet<_> = ledger
        .iter()
        .map(|refunded| refunded.payment.clone())
        .collect();
    assert_eq!(payments.len(), ledger.len(), "a payment was refunded twice");
    payments
}

async fn until(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    common::until(what, async || Ok(is_so())).await
}

fn says(status: u16, body: &str) -> Fault {
    Fault::Reply {
        reply: Reply::json(status, body),
        booked: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_first_calls_share_one_fetch_and_later_ones_its_token() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let simulators = &gateway.simulators;
    simulators.next_fault(
        Provider::BogToken,
        Fault::DelayReply(Duration::from_millis(300)),
    );
    for (nth, answer) in calls(&gateway, 0..50).await? {
        assert_accepted("first calls", nth, &answer);
    }
    assert_eq!(simulators.token_fetches(), 1);
    for (nth, answer) in calls(&gateway, 100..150).await? {
        assert_accepted("later calls", nth, &answer);
    }
    assert_eq!(simulators.token_fetches(), 1);
    assert_eq!(booked(&gateway).len(), 100);
    let tokens: BTreeSet<Vec<u8>> = simulators
        .requests(Provider::Bog)
        .iter()
        .flat_map(|exchange| {
            exchange
                .request
                .headers_named("authorization")
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(tokens.len(), 1);
    // Both workers had calls, or this says nothing of sharing.
    let workers = gateway
        .admin("/stats?filter=listener.*worker_.*downstream_cx_total")
        .await?;
    assert_eq!(
        workers
            .lines()
            .filter(|line| !line.ends_with(": 0"))
            .count(),
        2,
        "{workers}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_request_is_the_filters_alone_but_for_what_joins_it_to_the_call() -> Result<()> {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let gateway = Gateway::start(Options::default()).await?;
    let response = reqwest::Client::new()
        .post(gateway.url())
        .header("content-type", "application/json")
        .header("idempotency-key", "key")
        .header("x-request-id", "request-1")
        .header("cookie", "callers=1")
        .header("authorization", "Bearer callers")
        .header("user-agent", "callers/1")
        .header("traceparent", PARENT)
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-envoy-retry-on", "callers")
        .header("x-anything", "callers")
        .body(refund(1).to_string())
        .send()
        .await?;
    assert_accepted("a call with headers", 1, &Answer::read(response).await?);
    let request = gateway
        .simulators
        .last_request(Provider::BogToken)
        .expect("a request");
    assert_eq!(request.method, "POST");
    assert_eq!(request.authority.as_deref(), Some("oauth2.bog.ge"));
    assert_eq!(request.server_name.as_deref(), Some("oauth2.bog.ge"));
    assert_eq!(
        request.path,
        "/auth/realms/bog/protocol/openid-connect/token"
    );
    assert_eq!(request.body, b"grant_type=client_credentials");
    assert_eq!(request.trailers, []);
    let headers: Vec<_> = request
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    let one = |name: &str| {
        let values: Vec<_> = headers.iter().filter(|(known, _)| *known == name).collect();
        assert_eq!(values.len(), 1, "{name} in {headers:?}");
        values[0].1.clone()
    };
    // 10001:canary-bog-client-secret
    assert_eq!(
        one("authorization"),
        "Basic MTAwMDE6Y2FuYXJ5LWJvZy1jbGllbnQtc2VjcmV0"
    );
    assert_eq!(one("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(one("accept"), "application/json");
    assert_eq!(one("accept-encoding"), "identity");
    assert_eq!(one("content-length"), "29");
    assert!(
        one("user-agent").starts_with("refund-filter/"),
        "{headers:?}"
    );
    let mut names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "traceparent",
        // Envoy puts `x-envoy-internal` and `x-envoy-expected-rq-timeout-ms` on every call of a filter's own; the cluster takes
        // them off again.
        "user-agent",
        "x-request-id",
    ];
    assert_eq!(names, expected, "{headers:?}");
    assert_eq!(one("traceparent"), PARENT);
    assert_eq!(one("x-request-id"), "request-1");
    for (name, value) in &headers {
        for callers in ["callers", "192.0.2.1"] {
            assert!(!value.contains(callers), "{name}: {value}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_while_waiting_takes_nobody_along() -> Result<()> {
    for http2 in [false, true] {
        let gateway = Arc::new(Gateway::start(Options::default()).await?);
        let simulators = &gateway.simulators;
        simulators.next_fault(
            Provider::BogToken,
            Fault::DelayReply(Duration::from_millis(1_500)),
        );
        let client = reqwest::Client::builder();
        let client = if http2 {
            client.http2_prior_knowledge()
        } else {
            client.http1_only()
        }
        .build()?;
        let send = |nth: u64| {
            let call = client
                .post(gateway.url())
                .header("content-type", "application/json")
                .header("idempotency-key", format!("key-{nth}"))
                .body(refund(nth).to_string());
            tokio::spawn(async move { anyhow::Ok((nth, Answer::read(call.send().await?).await?)) })
        };
        // The first is the one for whom the token is fetched.
        let first = send(0);
        until("a fetch", || simulators.token_fetches() == 1).await?;
        let others: Vec<_> = (1..40).map(send).collect();
        // Until all of them wait in the filter.
        let mut waiting = 0;
        let deadline = Instant::now() + PATIENCE;
        while waiting < 40 {
            ensure!(Instant::now() < deadline, "{waiting} wait");
            let stats = gateway
                .admin("/stats?filter=^http.refunds.downstream_rq_active")
                .await?;
            waiting = stats
                .trim()
                .rsplit(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
        }
        first.abort();
        let mut stay = Vec::new();
        for (nth, call) in (1_u64..).zip(others) {
            if nth % 2 == 0 {
                call.abort();
            } else {
                stay.push(call);
            }
        }
        for call in stay {
            let (nth, answer) = timeout(PATIENCE, call).await???;
            assert_accepted(&format!("HTTP/2 {http2}: who stayed"), nth, &answer);
        }
        assert_eq!(simulators.token_fetches(), 1);
        let stayed: BTreeSet<_> = (1..40)
            .step_by(2)
            .map(|nth| orders::fresh(Provider::Bog, nth))
            .collect();
        assert_eq!(
            booked(&gateway),
            stayed,
            "HTTP/2 {http2}: who left was not sent"
        );
        let (nth, answer) = (100, call(&gateway, 100).await?);
        assert_accepted("afterwards", nth, &answer);
        assert_eq!(simulators.token_fetches(), 1);
    }
    Ok(())
}

/// Ten calls at once get this problem, and nothing reaches BOG.
async fn no_token(
    gateway: &Arc<Gateway>,
    from: u64,
    case: &str,
    problem: Problem,
) -> Result<Vec<Answer>> {
    let simulators = &gateway.simulators;
    let received = simulators.received(Provider::Bog);
    let mut answers = Vec::new();
    for (_, answer) in calls(gateway, from..from + 10).await? {
        assert_problem(case, &answer, problem);
        answers.push(answer);
    }
    assert_eq!(simulators.received(Provider::Bog), received, "{case}");
    Ok(answers)
}

/// The next call works, with a fetch of its own; then the token is gone again.
async fn works_again(gateway: &Arc<Gateway>, nth: u64, case: &str) -> Result<()> {
    let simulators = &gateway.simulators;
    simulators.clear_faults(Provider::BogToken);
    let fetches = simulators.token_fetches();
    assert_accepted(case, nth, &call(gateway, nth).await?);
    assert_eq!(simulators.token_fetches(), fetches + 1, "{case}");
    simulators.revoke_tokens();
    assert_problem(case, &call(gateway, nth + 1).await?, AUTH_FAILED);
    assert_eq!(simulators.token_fetches(), fetches + 1, "{case}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_cannot_be_reached_ends_all_who_wait() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let simulators = &gateway.simulators;
    simulators.close(Provider::BogToken).await;
    no_token(&gateway, 0, "refused", UNREACHABLE).await?;
    simulators.open(Provider::BogToken).await?;
    works_again(&gateway, 100, "after refused").await?;
    for certificate in [
        Certificate::WrongName,
        Certificate::Expired,
        Certificate::OtherAuthority,
    ] {
        let case = format!("{certificate:?}");
        simulators
            .set_certificate(Provider::BogToken, certificate)
            .await?;
        let fetches = simulators.token_fetches();
        no_token(&gateway, 200, &case, UNREACHABLE).await?;
        assert_eq!(simulators.token_fetches(), fetches, "{case}");
        simulators
            .set_certificate(Provider::BogToken, Certificate::Valid)
            .await?;
        works_again(&gateway, 300, &case).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_the_token_cluster_says_unreachable() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        let clusters = config["static_resources"]["clusters"]
            .as_array_mut()
            .expect("clusters");
        clusters.retain(|cluster| cluster["name"] != "bog-token");
    }))
    .await?;
    for nth in 0..3 {
        assert_problem("no cluster", &call(&gateway, nth).await?, UNREACHABLE);
    }
    assert_eq!(gateway.simulators.received(Provider::Bog), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_fails_ends_all_who_wait() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let simulators = &gateway.simulators;
    let token = |rest: &str| says(200, &format!(r#"{{"access_token":"a-token",{rest}}}"#));
    let failures = [
        (says(500, "{}"), UNREACHABLE),
        (says(502, "<html>"), UNREACHABLE),
        (says(503, ""), UNREACHABLE),
        (Fault::Close { booked: false }, UNREACHABLE),
        (Fault::CloseBefore, UNREACHABLE),
        (Fault::Reset { booked: true }, UNREACHABLE),
        (Fault::CutHeaders { booked: true }, UNREACHABLE),
        (Fault::CutBody { booked: true }, UNREACHABLE),
        (Fault::RefusedStream, UNREACHABLE),
        (
            Fault::StreamReset {
                code: 2,
                booked: true,
            },
            UNREACHABLE,
        ),
        (
            Fault::GoAway {
                code: 0,
                booked: true,
            },
            UNREACHABLE,
        ),
        (Fault::Gzip, UNREACHABLE),
        (says(200, ""), UNREACHABLE),
        (says(200, "nonsense"), UNREACHABLE),
        (says(200, "\u{0}\u{1}\u{fffd}"), UNREACHABLE),
        (says(200, "[]"), UNREACHABLE),
        (says(200, "{}"), UNREACHABLE),
        (says(200, r#"{"error":"invalid_client"}"#), UNREACHABLE),
        (says(200, r#"{"expires_in":300}"#), UNREACHABLE),
        (
            says(200, r#"{"access_token":"","expires_in":300}"#),
            UNREACHABLE,
        ),
        (
            says(200, r#"{"access_token":"two words","expires_in":300}"#),
            UNREACHABLE,
        ),
        (
            says(200, r#"{"access_token":"a\r\nx-evil: 1","expires_in":300}"#),
            UNREACHABLE,
        ),
        (
            says(200, r#"{"access_token":17,"expires_in":300}"#),
            UNREACHABLE,
        ),
        (token(r#""token_type":"mac","expires_in":300"#), UNREACHABLE),
        (token(r#""token_type":"Bearer""#), UNREACHABLE),
        (token(r#""expires_in":0"#), UNREACHABLE),
        (token(r#""expires_in":-1"#), UNREACHABLE),
        (token(r#""expires_in":"soon""#), UNREACHABLE),
        (token(r#""expires_in":1000000000"#), UNREACHABLE),
        (
            Fault::HeaderOnly {
                status: 200,
                booked: false,
            },
            UNREACHABLE,
        ),
        (
            Fault::HeaderOnly {
                status: 204,
                booked: false,
            },
            UNREACHABLE,
        ),
        (says(302, ""), UNREACHABLE),
        (says(400, r#"{"error":"invalid_request"}"#), AUTH_FAILED),
        (
            says(
                401,
                r#"{"error":"unauthorized_client","error_description":"Invalid client"}"#,
            ),
            AUTH_FAILED,
        ),
        (
            Fault::HeaderOnly {
                status: 401,
                booked: false,
            },
            AUTH_FAILED,
        ),
        (says(403, "nonsense"), AUTH_FAILED),
        (says(404, ""), AUTH_FAILED),
        (says(429, ""), RATE_LIMITED),
    ];
    for (from, (fault, problem)) in (0..).step_by(1_000).zip(failures) {
        let case = format!("{fault:?}");
        for _ in 0..20 {
            simulators.next_fault(Provider::BogToken, fault.clone());
        }
        let fetches = simulators.token_fetches();
        no_token(&gateway, from, &case, problem).await?;
        assert!(simulators.token_fetches() > fetches, "{case}");
        works_again(&gateway, from + 100, &format!("after {case}")).await?;
    }
    let stats = gateway
        .admin(r"/stats?filter=^wasm\.refund_filter\.vm_reload")
        .await?;
    assert!(stats.lines().all(|line| line.ends_with(": 0")), "{stats}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_does_not_answer_ends_all_who_wait() -> Result<()> {
    for fault in [
        Fault::Hang { booked: true },
        Fault::StallBody { booked: true },
    ] {
        let gateway = Arc::new(Gateway::start(Options::default()).await?);
        let simulators = &gateway.simulators;
        let case = format!("{fault:?}");
        simulators.next_fault(Provider::BogToken, fault);
        no_token(&gateway, 0, &case, UNREACHABLE).await?;
        assert_eq!(simulators.token_fetches(), 1, "{case}");
        works_again(&gateway, 100, &case).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoints_words_and_its_retry_after_reach_the_caller() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let simulators = &gateway.simulators;
    let mut reply = Reply::json(
        429,
        r#"{"error":"slow_down","error_description":"Too many"}"#,
    );
    reply.headers.push((b"retry-after".to_vec(), b"7".to_vec()));
    for _ in 0..20 {
        let reply = reply.clone();
        simulators.next_fault(
            Provider::BogToken,
            Fault::Reply {
                reply,
                booked: false,
            },
        );
    }
    for answer in no_token(&gateway, 0, "429", RATE_LIMITED).await? {
        assert_eq!(answer.header("retry-after"), "7");
        let said =
            json!({"name": "bog", "status": 429, "code": "slow_down", "message": "Too many"});
        assert_eq!(answer.body["provider"], said, "{}", answer.text);
    }
    works_again(&gateway, 100, "after 429").await
}

/// Other shapes of a good reply.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_read_in_whatever_shape_its_reply_comes() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let trailers = vec![(b"x-trailer".to_vec(), b"\xff".to_vec())];
    let altered = |pointer: &str, value: Option<&str>| Fault::Altered {
        pointer: pointer.into(),
        value: value.map(str::to_owned),
    };
    for (nth, fault) in (0..).step_by(10).zip([
        Fault::Pieces {
            size: 1,
            pause: Duration::ZERO,
        },
        Fault::Trailers(trailers),
        Fault::Continue100,
        Fault::Drain,
        Fault::Oversize { bytes: 100_000 },
        altered("/token_type", None),
        altered("/token_type", Some(r#""bearer""#)),
        altered("/expires_in", Some(r#""300""#)),
        altered("/expires_in", Some("300.5")),
        altered("/expires_in", Some("999999999")),
        altered("/scope", Some(r#"["a",{"b":null}]"#)),
    ]) {
        let case = format!("{fault:?}");
        gateway.simulators.next_fault(Provider::BogToken, fault);
        works_again(&gateway, nth, &case).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_dropped_and_a_newer_one_is_not() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let simulators = &gateway.simulators;
    assert_accepted("the first token", 0, &call(&gateway, 0).await?);
    // This call goes out with the first token, and is refused long after that token has been replaced.
    simulators.next_fault(Provider::Bog, Fault::Delay(Duration::from_secs(2)));
    let late = tokio::spawn({
        let gateway = gateway.clone();
        async move { call(&gateway, 1).await }
    });
    until("the late call", || simulators.received(Provider::Bog) == 2).await?;
    simulators.revoke_tokens();
    let answer = call(&gateway, 2).await?;
    assert_problem("the first token is refused", &answer, AUTH_FAILED);
    assert_eq!(answer.body["provider"]["status"], 401, "{}", answer.text);
    assert_eq!(simulators.token_fetches(), 1);
    assert_accepted("the second token", 3, &call(&gateway, 3).await?);
    assert_eq!(simulators.token_fetches(), 2);
    assert!(!late.is_finished());
    assert_problem("late, with the first token", &late.await??, AUTH_FAILED);
    for (nth, answer) in calls(&gateway, 10..20).await? {
        assert_accepted("the second token is still there", nth, &answer);
    }
    assert_eq!(simulators.token_fetches(), 2);
    // A key whose call was refused for its token is good for the same refund.
    let answer = gateway.refund("key-2", &refund(2)).await?;
    assert_accepted("the same key again", 2, &answer);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_that_are_refused_at_once_lead_to_one_new_fetch() -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    let simulators = &gateway.simulators;
    assert_accepted("the first token", 0, &call(&gateway, 0).await?);
    for _ in 0..20 {
        simulators.next_fault(Provider::Bog, Fault::Delay(Duration::from_millis(500)));
    }
    let refused = tokio::spawn({
        let gateway = gateway.clone();
        async move { calls(&gateway, 1..21).await }
    });
    until("all of them", || simulators.received(Provider::Bog) == 21).await?;
    simulators.revoke_tokens();
    for (_, answer) in refused.await?? {
        assert_problem("refused", &answer, AUTH_FAILED);
    }
    for (nth, answer) in calls(&gateway, 1..21).await? {
        assert_accepted("the same keys again", nth, &answer);
    }
    assert_eq!(simulators.token_fetches(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn expires_in_is_read_in_each_of_its_forms() -> Result<()> {
    for shown in [
        ExpiresIn::Seconds,
        ExpiresIn::EpochSeconds,
        ExpiresIn::EpochMilliseconds,
    ] {
        let gateway = Arc::new(Gateway::start(Options::default()).await?);
        let simulators = &gateway.simulators;
        let lasting = |seconds| TokenLifetime {
            lasts: Duration::from_secs(seconds),
            shown,
        };
        let case = format!("{shown:?}");
        // Long enough for all of these calls.
        simulators.set_token_lifetime(lasting(300));
        for nth in 0..5 {
            assert_accepted(&case, nth, &call(&gateway, nth).await?);
        }
        assert_eq!(simulators.token_fetches(), 1, "{case}");
        // And one that ends: it is renewed before BOG refuses it.
        simulators.revoke_tokens();
        assert_problem(&case, &call(&gateway, 5).await?, AUTH_FAILED);
        simulators.set_token_lifetime(lasting(3));
        let begin = Instant::now();
        let mut nth = 10;
        while begin.elapsed() < Duration::from_secs(4) {
            assert_accepted(&case, nth, &call(&gateway, nth).await?);
            nth += 1;
            sleep(Duration::from_millis(20)).await;
        }
        assert!(
            simulators.token_fetches() >= 3,
            "{case}: {}",
            simulators.token_fetches()
        );
    }
    Ok(())
}

/// Under a steady load every call succeeds while tokens come and go, and each token is fetched once.
async fn is_renewed_under_load(lasts: Duration, load: Duration) -> Result<()> {
    let gateway = Arc::new(Gateway::start(Options::default()).await?);
    gateway.simulators.set_token_lifetime(TokenLifetime {
        lasts,
        shown: ExpiresIn::Seconds,
    });
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..16_u64 {
        let gateway = gateway.clone();
        callers.spawn(async move {
            let mut nth = caller * 100_000;
            while begin.elapsed() < load {
                assert_accepted("under load", nth, &call(&gateway, nth).await?);
                nth += 1;
                sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(nth - caller * 100_000)
        });
    }
    let made: Vec<u64> = callers
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_>>()?;
    let made: u64 = made.iter().sum();
    let elapsed = begin.elapsed();
    let fetches = gateway.simulators.token_fetches();
    // A token that lives so short a time is used for half of it.
    let most = elapsed.as_millis() / (lasts / 2).as_millis() + 1;
    let least = load.as_millis() / lasts.as_millis();
    assert!(
        (least..=most).contains(&fetches.into()),
        "{fetches} fetches in {elapsed:?}"
    );
    assert_eq!(booked(&gateway).len() as u64, made);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_two_seconds_is_renewed_before_its_end_and_without_a_storm() -> Result<()> {
    is_renewed_under_load(Duration::from_secs(2), Duration::from_secs(6)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_second_is_enough() -> Result<()> {
    is_renewed_under_load(Duration::from_secs(1), Duration::from_secs(4)).await
}
