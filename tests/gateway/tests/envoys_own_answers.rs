//! Whatever Envoy answers in a provider's place, before the filter, in it or past it, is a problem
//! of the catalogue that tells the truth about the money; and the answers of other paths stay as
//! they are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{
    FOUR, Problem, asked, assert_problem, booked, keyed, of, raw, unknown, until_received,
};
use anyhow::{Context as _, Result, ensure};
use gateway_testbed::{Answer, Gateway, Options, PATH, cluster, filter_mut, project, route_mut};
use provider_simulator::{self as simulator, Alpn, Certificate, Fault, Provider, Reply};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep, timeout};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

const UNREACHABLE: Problem = Problem {
    code: "provider-unreachable",
    status: 503,
    outcome: "not_refunded",
    retry: "same_key",
};

/// Of a gateway that certainly sent nothing.
const GATEWAY_ERROR: Problem = Problem {
    code: "gateway-error",
    ..UNREACHABLE
};

const BAD_REQUEST: Problem = Problem::corrected("bad-request", 400);

const REQUEST_TIMEOUT: Problem = Problem {
    code: "request-timeout",
    status: 408,
    outcome: "not_refunded",
    retry: "same_key",
};

fn refund(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "10.00")
}

/// The problem in all its members, `retry_until` among them: who says for how long keeps keys for
/// 24 hours from the first send, less the `settle_seconds` that a send may take on its way.
#[track_caller]
fn assert_answer(case: &str, provider: Provider, answer: &Answer, problem: Problem) {
    assert_problem(case, answer, problem);
    let until = answer.body.get("retry_until").and_then(Value::as_str);
    let same_key = (problem.outcome, problem.retry) == ("unknown", "same_key");
    if same_key && provider.declared().keeps_keys {
        let until = until.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let from_now = until.map(|until| until - OffsetDateTime::now_utc());
        let day = time::Duration::HOUR * 24 - time::Duration::MINUTE * 5;
        let expected = day - time::Duration::MINUTE..=day;
        assert!(
            from_now.is_some_and(|left| expected.contains(&left)),
            "{case}: {}",
            answer.text
        );
    } else {
        assert_eq!(until, None, "{case}: {}", answer.text);
    }
    if let Some(said) = answer.body.get("provider") {
        assert_eq!(said["name"], cluster(provider), "{case}: {}", answer.text);
    }
}

#[track_caller]
fn assert_refunded(case: &str, answer: &Answer) {
    assert!(
        [200, 202].contains(&answer.status),
        "{case}: {}",
        answer.text
    );
}

/// A call that meets this fault gets this problem; the ledger is as it says; and the same key
/// cannot refund twice.
async fn meets(
    gateway: &Gateway,
    provider: Provider,
    nth: u64,
    fault: Fault,
    is_booked: bool,
    problem: Problem,
) -> Result<()> {
    let case = format!("{provider:?}: {fault:?}");
    let case = case.get(..200).unwrap_or(&case);
    let key = format!("{provider:?}-{nth}");
    gateway.simulators.next_fault(provider, fault);
    let received = gateway.simulators.received(provider);
    let answer = timeout(PATIENCE, gateway.refund(&key, &refund(provider, nth))).await??;
    assert_answer(case, provider, &answer, problem);
    assert_eq!(
        gateway.simulators.received(provider),
        received + 1,
        "{case}"
    );
    assert_eq!(
        booked(gateway, provider, nth),
        usize::from(is_booked),
        "{case}"
    );
    if problem.retry == "same_key" {
        let answer = gateway.refund(&key, &refund(provider, nth)).await?;
        assert_refunded(&format!("the call after {case}"), &answer);
        assert_eq!(booked(gateway, provider, nth), 1, "the call after {case}");
    }
    Ok(())
}

/// Every route to a provider with these members.
fn set_routes(config: &mut Value, members: &Value) {
    for provider in FOUR {
        let route = route_mut(config, cluster(provider)).expect("a route");
        merge(&mut route["route"], members);
    }
}

fn merge(into: &mut Value, members: &Value) {
    for (name, value) in members.as_object().into_iter().flatten() {
        into[name] = value.clone();
    }
}

fn cluster_mut(config: &mut Value, provider: Provider) -> &mut Value {
    config["static_resources"]["clusters"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .find(|known| known["name"] == cluster(provider))
        .expect("a cluster")
}

fn routes_mut(config: &mut Value) -> &mut Vec<Value> {
    config
        .pointer_mut(&format!("{MANAGER}/route_config/virtual_hosts/0/routes"))
        .and_then(Value::as_array_mut)
        .expect("the routes")
}

fn set_manager(config: &mut Value, members: &Value) {
    merge(
        config.pointer_mut(MANAGER).expect("the connection manager"),
        members,
    );
}

async fn gateway_over(
    alpn: Alpn,
    change: impl FnOnce(&mut Value) + Send + 'static,
) -> Result<Gateway> {
    Gateway::start(Options {
        simulators: simulator::Options {
            alpn,
            ..simulator::Options::default()
        },
        ..Options::changed(change)
    })
    .await
}

/// A request head of the refund path, up to the place for more headers.
fn head(more: &str) -> String {
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: key\r\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_has_sent_nothing() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    for provider in FOUR {
        let case = format!("{provider:?}");
        gateway.simulators.close(provider).await;
        let answer = gateway
            .refund(cluster(provider), &refund(provider, 1))
            .await?;
        assert_answer(&case, provider, &answer, UNREACHABLE);
        assert_eq!(gateway.simulators.received(provider), 0, "{case}");
        gateway.simulators.open(provider).await?;
        let answer = gateway
            .refund(cluster(provider), &refund(provider, 1))
            .await?;
        assert_refunded(&case, &answer);
        assert_eq!(booked(&gateway, provider, 1), 1, "{case}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_the_providers_gets_nothing() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let wrong = [
        Certificate::WrongName,
        Certificate::Expired,
        Certificate::OtherAuthority,
    ];
    for provider in FOUR {
        for certificate in wrong {
            let case = format!("{provider:?}: {certificate:?}");
            gateway
                .simulators
                .set_certificate(provider, certificate)
                .await?;
            let answer = gateway
                .refund(cluster(provider), &refund(provider, 1))
                .await?;
            assert_answer(&case, provider, &answer, UNREACHABLE);
            assert_eq!(gateway.simulators.received(provider), 0, "{case}");
        }
        gateway
            .simulators
            .set_certificate(provider, Certificate::Valid)
            .await?;
        let answer = gateway
            .refund(cluster(provider), &refund(provider, 1))
            .await?;
        assert_refunded(&format!("{provider:?}"), &answer);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_come_about_in_time_has_sent_nothing() -> Result<()> {
    for (case, connect, route) in [
        ("the connection's own time", "1s", "30s"),
        ("the route's time", "5s", "1s"),
    ] {
        // Takes connections, and never says a word of TLS.
        let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = silent.local_addr()?.port();
        let gateway = Gateway::start(Options::changed(move |config| {
            set_routes(config, &json!({"timeout": route}));
            for provider in FOUR {
                let cluster = cluster_mut(config, provider);
                cluster["connect_timeout"] = connect.into();
                let address =
                    "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
                cluster.pointer_mut(address).expect("an address")["port_value"] = port.into();
            }
        }))
        .await?;
        for provider in FOUR {
            let body = refund(provider, 1);
            let call = gateway.refund(cluster(provider), &body);
            let answer = timeout(PATIENCE, call).await??;
            assert_answer(
                &format!("{provider:?}: {case}"),
                provider,
                &answer,
                UNREACHABLE,
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_a_host_gets_nothing() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        for provider in FOUR {
            let cluster = cluster_mut(config, provider);
            cluster["type"] = "STATIC".into();
            cluster["load_assignment"]["endpoints"] = json!([]);
        }
    }))
    .await?;
    for provider in FOUR {
        let answer = gateway
            .refund(cluster(provider), &refund(provider, 1))
            .await?;
        assert_answer(&format!("{provider:?}"), provider, &answer, UNREACHABLE);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_the_circuit_breakers_limit_is_not_sent() -> Result<()> {
    for (alpn, limits) in [
        (Alpn::Http1, json!({"max_pending_requests": 0})),
        (Alpn::Http1, json!({"max_requests": 0})),
        (Alpn::Http2, json!({"max_pending_requests": 0})),
        (Alpn::Http2, json!({"max_requests": 0})),
    ] {
        let case = format!("{alpn:?}: {limits}");
        let gateway = gateway_over(alpn, move |config| {
            for provider in FOUR {
                let cluster = cluster_mut(config, provider);
                cluster["circuit_breakers"] = json!({"thresholds": [limits]});
            }
        })
        .await?;
        for provider in FOUR {
            let answer = gateway
                .refund(cluster(provider), &refund(provider, 1))
                .await?;
            assert_answer(
                &format!("{provider:?}, {case}"),
                provider,
                &answer,
                UNREACHABLE,
            );
            assert_eq!(
                gateway.simulators.received(provider),
                0,
                "{provider:?}, {case}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_a_route_is_the_gateways_error_and_gets_nothing() -> Result<()> {
    fn without(config: &mut Value, gone: &[&str]) {
        routes_mut(config).retain(|route| !gone.iter().any(|name| route["name"] == *name));
    }
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("no route of its own", |config| {
            without(config, &FOUR.map(cluster));
        }),
        ("none but the refunds' own", |config| {
            routes_mut(config).retain(|route| {
                let name = route["name"].as_str();
                name.is_some_and(|name| name.starts_with("refunds"))
            });
        }),
        ("another application's in front of it", |config| {
            let any =
                json!({"name": "any", "match": {"prefix": "/"}, "route": {"cluster": "moyasar"}});
            routes_mut(config).insert(0, any);
            let own = routes_mut(config)
                .iter()
                .position(|route| route["name"] == "refunds");
            let own = routes_mut(config).remove(own.expect("the refunds' own"));
            routes_mut(config).insert(0, own);
        }),
        ("a route to a cluster that is not there", |config| {
            let routes = format!("{MANAGER}/route_config");
            config.pointer_mut(&routes).expect("routes")["validate_clusters"] = false.into();
            set_routes(config, &json!({"cluster": "nowhere"}));
        }),
    ];
    for (case, change) in changes {
        let gateway = Gateway::start(Options::changed(change)).await?;
        for provider in FOUR {
            let case = format!("{provider:?}: {case}");
            let answer = gateway
                .refund(cluster(provider), &refund(provider, 1))
                .await?;
            assert_answer(&case, provider, &answer, GATEWAY_ERROR);
            assert_eq!(gateway.simulators.received(provider), 0, "{case}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_after_sending_leaves_the_refund_unknown() -> Result<()> {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let gateway = gateway_over(alpn, |_| {}).await?;
        for provider in FOUR {
            let mut nth = 0;
            for booked in [false, true] {
                for fault in [
                    Fault::Close { booked },
                    Fault::Reset { booked },
                    Fault::CutHeaders { booked },
                    Fault::CutBody { booked },
                    Fault::StreamReset { code: 2, booked },
                    Fault::StreamReset { code: 8, booked },
                    Fault::GoAway { code: 0, booked },
                    Fault::GoAway { code: 2, booked },
                ] {
                    nth += 1;
                    let problem = unknown(provider, "provider-error", 502);
                    meets(&gateway, provider, nth, fault, booked, problem).await?;
                }
            }
            let problem = unknown(provider, "provider-error", 502);
            meets(&gateway, provider, 100, Fault::CloseBefore, false, problem).await?;
        }
    }
    Ok(())
}

/// RFC 9113, 8.7: a refused stream was not processed. HTTP/1 has no such word.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_provider_refuses_was_not_processed() -> Result<()> {
    let gateway = gateway_over(Alpn::Http2, |_| {}).await?;
    for provider in FOUR {
        meets(
            &gateway,
            provider,
            1,
            Fault::RefusedStream,
            false,
            UNREACHABLE,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_does_not_come_in_time_leaves_the_refund_unknown() -> Result<()> {
    for (alpn, times) in [
        (Alpn::Http1, json!({"timeout": "1s"})),
        (Alpn::Http2, json!({"timeout": "1s"})),
        (Alpn::Both, json!({"idle_timeout": "1s"})),
    ] {
        let gateway = gateway_over(alpn, move |config| set_routes(config, &times)).await?;
        let calls = FOUR.map(|provider| {
            let gateway = &gateway;
            async move {
                let mut nth = 0;
                for booked in [false, true] {
                    for fault in [Fault::Hang { booked }, Fault::StallBody { booked }] {
                        nth += 1;
                        let problem = unknown(provider, "provider-timeout", 504);
                        meets(gateway, provider, nth, fault, booked, problem).await?;
                    }
                }
                anyhow::Ok(())
            }
        });
        futures_util::future::try_join_all(calls).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_over_the_buffer_limit_is_unreadable() -> Result<()> {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let gateway = gateway_over(alpn, |_| {}).await?;
        for provider in FOUR {
            let problem = unknown(provider, "provider-reply-unreadable", 502);
            let fault = Fault::Oversize { bytes: 3_000_000 };
            meets(&gateway, provider, 1, fault, true, problem).await?;
            // Well under it there is nothing to complain of.
            let fault = Fault::Oversize { bytes: 300_000 };
            gateway.simulators.next_fault(provider, fault);
            let answer = gateway
                .refund(&format!("{provider:?}-2"), &refund(provider, 2))
                .await?;
            assert_refunded(&format!("{provider:?}, {alpn:?}"), &answer);
        }
    }
    Ok(())
}

/// Every route with a retry policy, and clusters that let it.
fn retrying(config: &mut Value) {
    let policy = json!({
        "retry_on": "5xx,reset,connect-failure,refused-stream,retriable-4xx,retriable-status-codes",
        "retriable_status_codes": [401],
        "num_retries": 2,
        "rate_limited_retry_back_off": {
            "reset_headers": [{"name": "retry-after", "format": "SECONDS"}],
            "max_interval": "5s"
        }
    });
    set_routes(config, &json!({"retry_policy": policy}));
    for provider in FOUR {
        cluster_mut(config, provider)["circuit_breakers"] =
            json!({"thresholds": [{"max_retries": 10}]});
    }
}

fn says(status: u16, booked: bool) -> Fault {
    Fault::Reply {
        reply: Reply::json(status, "{}"),
        booked,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_keys_is_sent_a_refund_once_whatever_the_route_says() -> Result<()> {
    let provider = Provider::Bbmsl;
    let gateway = gateway_over(Alpn::Both, retrying).await?;
    let error = unknown(provider, "provider-error", 502);
    let mut nth = 0;
    for (fault, booked, problem) in [
        (says(500, true), true, error),
        (says(503, false), false, error),
        (Fault::Close { booked: true }, true, error),
        (Fault::Reset { booked: true }, true, error),
        (
            Fault::StreamReset {
                code: 2,
                booked: true,
            },
            true,
            error,
        ),
        (says(409, true), true, error),
    ] {
        nth += 1;
        // 409 is no status that BBMSL documents; see the contract's table.
        meets(&gateway, provider, nth, fault, booked, problem).await?;
    }
    nth += 1;
    meets(
        &gateway,
        provider,
        nth,
        Fault::RefusedStream,
        false,
        UNREACHABLE,
    )
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_the_route_keeps_the_key_and_refunds_once() -> Result<()> {
    let gateway = gateway_over(Alpn::Both, retrying).await?;
    for provider in keyed() {
        for (nth, fault) in (1..).zip([
            says(500, true),
            Fault::Close { booked: true },
            Fault::Reset { booked: true },
            Fault::RefusedStream,
        ]) {
            let case = format!("{provider:?}: {fault:?}");
            let received = gateway.simulators.received(provider);
            gateway.simulators.next_fault(provider, fault);
            let answer = gateway
                .refund(&format!("{provider:?}-{nth}"), &refund(provider, nth))
                .await?;
            assert_refunded(&case, &answer);
            assert_eq!(
                gateway.simulators.received(provider),
                received + 2,
                "{case}"
            );
            assert_eq!(booked(&gateway, provider, nth), 1, "{case}");
        }
    }
    Ok(())
}

/// What Envoy and the provider say of the last attempt says nothing of those before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_an_attempt_that_may_have_refunded_stays_unknown() -> Result<()> {
    let gateway = gateway_over(Alpn::Both, retrying).await?;
    for provider in keyed() {
        for (nth, last, problem) in [
            (
                1,
                says(401, false),
                unknown(provider, "provider-auth-failed", 502),
            ),
            (
                2,
                Fault::RefusedStream,
                unknown(provider, "provider-error", 502),
            ),
            (
                3,
                says(403, false),
                unknown(provider, "provider-auth-failed", 502),
            ),
            (
                4,
                says(429, false),
                unknown(provider, "provider-rate-limited", 503),
            ),
            (
                5,
                says(404, false),
                // The same call would get the same no.
                Problem {
                    retry: "look_up",
                    ..unknown(provider, "payment-not-found", 404)
                },
            ),
        ] {
            let case = format!("{provider:?}: {last:?}");
            let received = gateway.simulators.received(provider);
            gateway.simulators.next_fault(provider, says(500, true));
            gateway.simulators.next_fault(provider, last.clone());
            gateway.simulators.next_fault(provider, last);
            let key = format!("{provider:?}-{nth}");
            let answer = gateway.refund(&key, &refund(provider, nth)).await?;
            assert_answer(&case, provider, &answer, problem);
            assert!(
                gateway.simulators.received(provider) > received + 1,
                "{case}"
            );
            gateway.simulators.clear_faults(provider);
            let answer = gateway.refund(&key, &refund(provider, nth)).await?;
            assert_refunded(&format!("the call after {case}"), &answer);
            assert_eq!(booked(&gateway, provider, nth), 1, "{case}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_after_an_attempt_that_may_have_refunded_stays_unknown() -> Result<()>
{
    let gateway = gateway_over(Alpn::Both, retrying).await?;
    for provider in keyed() {
        let case = format!("{provider:?}");
        let mut reply = Reply::json(503, "{}");
        // The route waits for so long before it tries again: time to close the door.
        reply.headers.push((b"retry-after".to_vec(), b"1".to_vec()));
        let fault = Fault::Reply {
            reply,
            booked: true,
        };
        gateway.simulators.next_fault(provider, fault);
        let close = async {
            until_received(&gateway, provider, 1).await?;
            // Its reply is on the way.
            sleep(Duration::from_millis(200)).await;
            gateway.simulators.close(provider).await;
            anyhow::Ok(())
        };
        let body = refund(provider, 1);
        let (answer, closed) = timeout(PATIENCE, async {
            tokio::join!(gateway.refund(cluster(provider), &body), close)
        })
        .await?;
        closed?;
        assert_answer(
            &case,
            provider,
            &answer?,
            unknown(provider, "provider-error", 502),
        );
        assert_eq!(gateway.simulators.received(provider), 1, "{case}");
        gateway.simulators.open(provider).await?;
        let answer = gateway.refund(cluster(provider), &body).await?;
        assert_refunded(&case, &answer);
        assert_eq!(booked(&gateway, provider, 1), 1, "{case}");
    }
    Ok(())
}

/// What a retry may have sent is not told apart from what it has: only a single attempt is certain.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_connection_that_was_refused_once_has_surely_sent_nothing() -> Result<()> {
    let gateway = gateway_over(Alpn::Both, retrying).await?;
    for provider in FOUR {
        gateway.simulators.close(provider).await;
        let answer = gateway
            .refund(cluster(provider), &refund(provider, 1))
            .await?;
        let problem = match provider.has_keys() {
            true => unknown(provider, "provider-error", 502),
            // Never retried.
            false => UNREACHABLE,
        };
        assert_answer(&format!("{provider:?}"), provider, &answer, problem);
        assert_eq!(gateway.simulators.received(provider), 0, "{provider:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_64_kib_is_answered_413_however_it_comes() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let problem = Problem::corrected("body-too-large", 413);
    for size in [65_537, 200_000, 3_000_000] {
        let body = "x".repeat(size);
        let with_length = head(&format!("content-length: {size}\r\n\r\n{body}"));
        let chunked = head(&format!(
            "transfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n"
        ));
        for (case, bytes) in [("with its length", with_length), ("chunked", chunked)] {
            let answer = raw(gateway.address, bytes.as_bytes()).await?;
            assert_problem(&format!("{size} bytes {case}"), &answer, problem);
        }
        let http2 = reqwest::Client::builder().http2_prior_knowledge().build()?;
        let response = http2
            .post(gateway.url())
            .header("content-type", "application/json")
            .header("idempotency-key", "key")
            .body(body)
            .send()
            .await?;
        let answer = Answer::read(response).await?;
        assert_problem(&format!("{size} bytes over HTTP/2"), &answer, problem);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_no_http_is_a_bad_request() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let body = refund(Provider::Moyasar, 1).to_string();
    let length = body.len();
    let sized = format!("content-length: {length}\r\n");
    let rest = format!("{sized}\r\n{body}");
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    let large: String = (0..5)
        .map(|n| format!("x-{n}: {}\r\n", "a".repeat(8_000)))
        .collect();
    let refused = [
        ("no request line", "NONSENSE\r\n\r\n".to_owned(), 400),
        ("no version", format!("POST {PATH}\r\nhost: a\r\n\r\n"), 426),
        (
            "no host",
            head(&rest).replace("host: gateway.test\r\n", ""),
            400,
        ),
        (
            "a NUL in a header",
            head(&format!("x-nul: a\0b\r\n{rest}")),
            400,
        ),
        (
            "a header without a colon",
            head(&format!("nonsense\r\n{rest}")),
            400,
        ),
        (
            "a space in a header's name",
            head(&format!("x y: 1\r\n{rest}")),
            400,
        ),
        (
            "two lengths",
            head(&format!("content-length: 1\r\n{rest}")),
            400,
        ),
        (
            "a length below zero",
            head("content-length: -1\r\n\r\n"),
            400,
        ),
        (
            "a length and chunks",
            head(&format!("transfer-encoding: chunked\r\n{rest}")),
            400,
        ),
        (
            "an unknown transfer encoding",
            head(&format!("transfer-encoding: foo\r\n\r\n{body}")),
            501,
        ),
        (
            "a fragment",
            head(&rest).replace(PATH, "/v1/refunds#a"),
            400,
        ),
        (
            "an upgrade",
            head(&format!(
                "connection: upgrade\r\nupgrade: websocket\r\n{rest}"
            ))
            .replace("connection: close\r\n", ""),
            403,
        ),
        ("HTTP/1.0", head(&rest).replace("HTTP/1.1", "HTTP/1.0"), 426),
        ("too many headers", head(&format!("{many}{rest}")), 431),
        ("too large headers", head(&format!("{large}{rest}")), 431),
        (
            "a bad chunk",
            head(&format!(
                "transfer-encoding: chunked\r\n\r\n5\r\n{}\r\nZZ\r\n",
                &body[..5]
            )),
            400,
        ),
        (
            "a bad trailer",
            head(&format!(
                "transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\nno trailer\r\n\r\n"
            )),
            400,
        ),
    ];
    for (case, bytes, status) in &refused {
        let answer = raw(gateway.address, bytes.as_bytes())
            .await
            .context(*case)?;
        let problem = Problem {
            status: *status,
            ..BAD_REQUEST
        };
        assert_problem(case, &answer, problem);
    }
    let tls_hello =
        b"\x16\x03\x01\x00\x2e\x01\x00\x00\x2a\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n";
    let answer = raw(gateway.address, tls_hello).await?;
    assert_problem("TLS", &answer, BAD_REQUEST);
    assert_eq!(gateway.simulators.received(Provider::Moyasar), 0);
    // A caller's own id is kept where Envoy had read it.
    let (_, bad_chunk, _) = refused
        .iter()
        .find(|(case, ..)| *case == "a bad chunk")
        .context("none")?;
    let named = bad_chunk.replace(
        "content-type",
        "x-request-id: of-the-caller\r\ncontent-type",
    );
    let answer = raw(gateway.address, named.as_bytes()).await?;
    assert_problem("a bad chunk", &answer, BAD_REQUEST);
    assert_eq!(answer.header("x-request-id"), "of-the-caller");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_come_in_time_is_answered_408() -> Result<()> {
    let half_line = format!("POST {PATH}");
    let half_head = head("");
    let half_body = head("content-length: 100\r\n\r\n{\"provider\":");
    for (case, times, bytes) in [
        (
            "half a line",
            json!({"request_headers_timeout": "1s"}),
            &half_line,
        ),
        (
            "half a head",
            json!({"request_headers_timeout": "1s"}),
            &half_head,
        ),
        ("half a body", json!({"request_timeout": "1s"}), &half_body),
        (
            "half a body that idles",
            json!({"stream_idle_timeout": "1s"}),
            &half_body,
        ),
    ] {
        let gateway =
            Gateway::start(Options::changed(move |config| set_manager(config, &times))).await?;
        let answer = raw(gateway.address, bytes.as_bytes()).await.context(case)?;
        assert_problem(case, &answer, REQUEST_TIMEOUT);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_idles_while_its_token_is_fetched_was_not_sent() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        set_manager(config, &json!({"stream_idle_timeout": "1s"}));
    }))
    .await?;
    gateway
        .simulators
        .next_fault(Provider::BogToken, Fault::Hang { booked: false });
    let answer = timeout(PATIENCE, gateway.refund("key", &refund(Provider::Bog, 1))).await??;
    assert_answer("it idles", Provider::Bog, &answer, UNREACHABLE);
    assert_eq!(gateway.simulators.received(Provider::Bog), 0);
    Ok(())
}

/// A path of another application, with Moyasar's simulator in its place.
fn with_another_application(config: &mut Value) {
    let route = json!({
        "name": "another", "match": {"prefix": "/another"}, "route": {"cluster": "moyasar", "timeout": "1s"}
    });
    let routes = routes_mut(config);
    routes.insert(routes.len() - 1, route);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_other_paths_stay_as_they_are() -> Result<()> {
    let gateway = gateway_over(Alpn::Http1, with_another_application).await?;
    let other = |more: &str| {
        head(more)
            .replace(PATH, "/another")
            .replace("gateway.test", Provider::Moyasar.host())
    };
    let whole = other("content-length: 2\r\n\r\n{}");
    let websocket = other("connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n")
        .replace("connection: close\r\n", "");
    for (case, fault, bytes, status) in [
        ("the application's own", None, &whole, 404),
        (
            "a timeout",
            Some(Fault::Hang { booked: false }),
            &whole,
            504,
        ),
        (
            "a closed connection",
            Some(Fault::Close { booked: false }),
            &whole,
            503,
        ),
        (
            "half a head",
            Some(Fault::CutHeaders { booked: false }),
            &whole,
            502,
        ),
        (
            "a bad chunk",
            None,
            &other("transfer-encoding: chunked\r\n\r\nZZ\r\n"),
            400,
        ),
        (
            "no host",
            None,
            &whole.replace("host: pg.moyasar.com\r\n", ""),
            400,
        ),
        ("an upgrade", None, &websocket, 403),
    ] {
        if let Some(fault) = fault {
            gateway.simulators.next_fault(Provider::Moyasar, fault);
        }
        let answer = raw(gateway.address, bytes.as_bytes()).await.context(case)?;
        assert_eq!(answer.status, status, "{case}: {answer:?}");
        assert!(
            !answer.text.contains("urn:refund-filter"),
            "{case}: {answer:?}"
        );
        assert_ne!(
            answer.header("content-type"),
            "application/problem+json",
            "{case}: {answer:?}"
        );
    }
    let answer = raw(
        gateway.address,
        head("\r\n").replace(PATH, "/nowhere").as_bytes(),
    )
    .await?;
    assert_eq!((answer.status, answer.text.as_str()), (404, ""));
    gateway.simulators.close(Provider::Moyasar).await;
    let answer = raw(gateway.address, whole.as_bytes()).await?;
    assert_eq!(answer.status, 503);
    assert!(
        answer.text.starts_with("upstream connect error"),
        "{answer:?}"
    );
    Ok(())
}

/// Over HTTP/2 Envoy resets the stream of a call that breaks the protocol; the connection's other
/// calls go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_call_over_http_2_resets_its_own_stream_alone() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let client = reqwest::Client::builder().http2_prior_knowledge().build()?;
    let call = |key: &str, nth| {
        client
            .post(gateway.url())
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(refund(Provider::Moyasar, nth).to_string())
    };
    gateway.simulators.next_fault(
        Provider::Moyasar,
        Fault::DelayReply(Duration::from_millis(500)),
    );
    let other = tokio::spawn(call("key-1", 1).send());
    until_received(&gateway, Provider::Moyasar, 1).await?;
    let longer = call("key-2", 2)
        .header("content-length", "5000")
        .send()
        .await;
    ensure!(longer.is_err(), "{longer:?}");
    let mut many = call("key-3", 3);
    for n in 0..120 {
        many = many.header(format!("x-{n}"), "1");
    }
    let many = many.send().await;
    ensure!(many.is_err(), "{many:?}");
    let answer = Answer::read(other.await??).await?;
    assert_refunded("the connection's other call", &answer);
    assert_eq!(gateway.simulators.ledger(Provider::Moyasar).len(), 1);
    let connections = gateway
        .admin("/stats?filter=^http.refunds.downstream_cx_http2_total")
        .await?;
    assert!(connections.trim().ends_with(": 1"), "{connections}");
    Ok(())
}

/// The same gateway with a module that traps in the filter's place, in one worker.
async fn trapping_gateway() -> Result<Gateway> {
    let module = project().join("dist/trap_module.wasm");
    ensure!(
        module.exists(),
        "dist/trap_module.wasm is missing: run ./build.sh test"
    );
    let module = module.canonicalize()?;
    let change = move |config: &mut Value| {
        let filter = filter_mut(config).expect("the filter");
        filter["vm_config"]["code"]["local"]["filename"] = json!(module);
        set_manager(config, &json!({"stream_idle_timeout": "3s"}));
        set_routes(config, &json!({"timeout": "4s"}));
        with_another_application(config);
        // A team that has the filter on for another application's route, too.
        let refunds = route_mut(config, "refunds").expect("a route");
        let enabled = refunds["typed_per_filter_config"].clone();
        route_mut(config, "another").expect("a route")["typed_per_filter_config"] = enabled;
    };
    Gateway::start(Options {
        concurrency: 1,
        simulators: simulator::Options {
            alpn: Alpn::Http1,
            ..simulator::Options::default()
        },
        ..Options::changed(change)
    })
    .await
}

/// A call that traps at this moment, with the filter state that the filter would have set for this
/// provider.
async fn trap(gateway: &Gateway, path: &str, moment: &str, provider: Provider) -> Result<Answer> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut call = reqwest::Client::new()
        .post(format!("http://{}{path}", gateway.address))
        .header("host", provider.host())
        .header("x-trap", moment)
        .header("x-trap-provider", cluster(provider))
        .header("x-trap-retry", unknown(provider, "", 0).retry);
    if provider.declared().keeps_keys {
        call = call.header("x-trap-retry-until", rfc_3339(now + 24 * 3600 - 300));
    }
    let response = timeout(PATIENCE, call.body("{}").send()).await??;
    Answer::read(response).await
}

/// The inverse of [`unix_seconds`].
fn rfc_3339(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = year_of_era + era * 400 + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Waits until calls go through a new VM.
async fn recovered(gateway: &Gateway) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = trap(gateway, PATH, "no", Provider::Moyasar).await?;
        // The simulator knows no such path.
        if answer.status == 404 {
            return Ok(());
        }
        assert_answer(
            "until it recovers",
            Provider::Moyasar,
            &answer,
            GATEWAY_ERROR,
        );
        ensure!(Instant::now() < deadline, "no new VM in time");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_tells_whether_the_call_had_left() -> Result<()> {
    let gateway = trapping_gateway().await?;
    for provider in FOUR {
        let gone = Problem {
            status: 500,
            ..unknown(provider, "gateway-error", 500)
        };
        for (moment, problem, sends) in [
            ("request", GATEWAY_ERROR, 0),
            ("sent", gone, 0),
            ("reply", gone, 1),
            ("reply-body", gone, 1),
        ] {
            let case = format!("{provider:?}: {moment}");
            let received = gateway.simulators.received(provider);
            let answer = trap(&gateway, PATH, moment, provider).await?;
            assert_answer(&case, provider, &answer, problem);
            assert_eq!(
                gateway.simulators.received(provider),
                received + sends,
                "{case}"
            );
            recovered(&gateway).await?;
        }
    }
    let answer = trap(&gateway, "/another", "request", Provider::Moyasar).await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(!answer.text.contains("urn:refund-filter"), "{answer:?}");
    // A look-up says nothing of the refund, whenever it traps; before the filter has named it, it
    // is known by its path.
    recovered(&gateway).await?;
    for moment in ["request", "sent", "reply", "reply-body"] {
        let call = reqwest::Client::new()
            .get(gateway.url())
            .header("host", Provider::Moyasar.host())
            .header("x-trap", moment)
            .header("x-trap-provider", "moyasar")
            .header("x-trap-retry", "look_up");
        let answer = Answer::read(timeout(PATIENCE, call.send()).await??).await?;
        assert_problem(moment, &answer, asked("gateway-error", 503));
        recovered(&gateway).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_calls_trap_tells_whether_this_one_had_left() -> Result<()> {
    let gateway = trapping_gateway().await?;
    let simulators = &gateway.simulators;
    // What a trap did to a call shows at the call's next event: here a slow reply, there its
    // timeout.
    let slow = Fault::Pieces {
        size: 10,
        pause: Duration::from_millis(200),
    };
    simulators.next_fault(Provider::Begateway, slow);
    simulators.next_fault(Provider::Bbmsl, Fault::Hang { booked: false });
    simulators.next_fault(Provider::Bog, Fault::StallBody { booked: false });
    let sent = |provider| trap(&gateway, PATH, "no", provider);
    let replying = trap(&gateway, PATH, "reply-hold", Provider::Bog);
    let waiting = reqwest::Client::new()
        .post(gateway.url())
        .header("x-trap", "wait")
        .body("{}")
        .send();
    let breaks = async {
        let deadline = Instant::now() + PATIENCE;
        while [Provider::Bog, Provider::Begateway, Provider::Bbmsl]
            .iter()
            .any(|provider| simulators.received(*provider) == 0)
        {
            ensure!(Instant::now() < deadline, "not all were sent");
            sleep(Duration::from_millis(5)).await;
        }
        // The half of the reply is on its way.
        sleep(Duration::from_millis(300)).await;
        trap(&gateway, PATH, "request", Provider::Moyasar).await
    };
    let (begateway, bbmsl, replying, waiting, breaks) = timeout(PATIENCE, async {
        tokio::join!(
            sent(Provider::Begateway),
            sent(Provider::Bbmsl),
            replying,
            waiting,
            breaks
        )
    })
    .await?;
    assert_answer(
        "the one that traps",
        Provider::Moyasar,
        &breaks?,
        GATEWAY_ERROR,
    );
    let failed = ("gateway-error", 500);
    // Its reply had passed the filter in part, and timed out.
    let timed_out = ("provider-timeout", 504);
    for (provider, answer, (code, status)) in [
        (Provider::Begateway, begateway, failed),
        (Provider::Bbmsl, bbmsl, failed),
        (Provider::Bog, replying, timed_out),
    ] {
        let problem = unknown(provider, code, status);
        assert_answer(&format!("{provider:?}"), provider, &answer?, problem);
    }
    let waiting = Answer::read(waiting?).await?;
    assert_problem("the one that waits", &waiting, GATEWAY_ERROR);
    recovered(&gateway).await
}

/// Envoy sets no local address on a Unix socket, so that its absence proves nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn over_a_unix_socket_a_request_that_left_is_not_taken_for_unsent() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("provider");
    let listener = tokio::net::UnixListener::bind(&path)?;
    let (read, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 65_536];
            // All of the request, then no answer.
            let count = stream.read(&mut bytes).await.unwrap_or_default();
            let _ = read.send(count);
        }
    });
    let pipe = json!({"pipe": {"path": path}});
    let gateway = Gateway::start(Options::changed(move |config| {
        let clusters = config["static_resources"]["clusters"].as_array_mut();
        let clusters = clusters.expect("clusters").iter_mut();
        for cluster in clusters.filter(|cluster| cluster["name"] == "bbmsl") {
            cluster["type"] = json!("STATIC");
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] =
                pipe.clone();
            let cluster = cluster.as_object_mut().expect("a cluster");
            cluster.remove("transport_socket");
            cluster.remove("typed_extension_protocol_options");
        }
    }))
    .await?;
    let answer = gateway.refund("key-1", &refund(Provider::Bbmsl, 1)).await?;
    let read = timeout(PATIENCE, heard.recv()).await?.unwrap_or_default();
    ensure!(read > 100, "{read} bytes were read");
    let broken = Problem {
        code: "provider-error",
        status: 502,
        outcome: "unknown",
        retry: "look_up",
    };
    assert_answer("read and closed", Provider::Bbmsl, &answer, broken);
    Ok(())
}
