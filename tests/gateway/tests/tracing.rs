//! Traces, by Envoy's own tracer as `envoy/tracing.yaml` switches it on: what joins a call, the
//! gateway's own calls and the provider's, and what must not be in a span.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{FOUR, of, plugin};
use anyhow::{Context as _, Result, ensure};
use gateway_testbed::{Answer, Gateway, Options, SecretsBy, cluster, parts, trace_to};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Text;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use provider_simulator::orders::fresh;
use provider_simulator::{Fault, Provider, Received};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use Provider::{Bbmsl, Begateway, Bog, BogToken, Moyasar};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// The secret of the stub of OpenBao.
const TOKEN: &str = "canary-openbao-token";

/// What came to the receiver: a path, headers, and a body.
type Came = (String, Vec<(String, Vec<u8>)>, Vec<u8>);

/// A receiver of spans, which also stands in OpenBao's place and signs nothing.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Came>>>);

impl Receiver {
    async fn start(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let receiver = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = receiver.clone();
                let answer = service_fn(move |request| receiver.clone().take(request));
                let io = TokioIo::new(stream);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(io, answer),
                );
            }
        });
        Ok(address)
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => panic!("{error}"),
        };
        let path = head.uri.path().to_owned();
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        let is_spans = path == "/v1/traces";
        let came = (path, headers.collect(), body.to_vec());
        self.0.lock().expect("whole").push(came);
        let mut response = Response::new(Full::default());
        if !is_spans {
            *response.status_mut() = StatusCode::FORBIDDEN;
        }
        Ok(response)
    }

    /// What came as spans, as bytes.
    fn exports(&self) -> Vec<Vec<u8>> {
        let came = self.0.lock().expect("whole");
        let spans = came.iter().filter(|(path, ..)| path == "/v1/traces");
        spans.map(|(.., body)| body.clone()).collect()
    }

    fn spans(&self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for bytes in self.exports() {
            let export = ExportTraceServiceRequest::decode(&*bytes)?;
            for resource in export.resource_spans {
                spans.extend(
                    resource
                        .scope_spans
                        .into_iter()
                        .flat_map(|scope| scope.spans),
                );
            }
        }
        Ok(spans)
    }

    /// The headers of the calls to OpenBao.
    fn asked_to_sign(&self) -> Vec<Vec<(String, Vec<u8>)>> {
        let came = self.0.lock().expect("whole");
        let calls = came.iter().filter(|(path, ..)| path.contains("/sign/"));
        calls.map(|(_, headers, _)| headers.clone()).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tags(span: &Span) -> BTreeMap<&str, String> {
    let text = |value: Option<&Text>| match value {
        Some(Text::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    let tags = span.attributes.iter();
    tags.map(|tag| {
        let value = tag.value.as_ref().and_then(|value| value.value.as_ref());
        (&*tag.key, text(value))
    })
    .collect()
}

/// One call of the test's.
struct Call {
    case: String,
    request_id: String,
    trace_id: String,
    parent: String,
    answer: Answer,
    /// Where its request is, or that of the gateway's own call for it.
    sent: Option<Received>,
    /// Whether it left by a route.
    routed: bool,
    expected: Vec<(&'static str, String)>,
}

impl Call {
    fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace_id, self.parent)
    }
}

/// A value of a header that is there once.
fn only(headers: &[(String, Vec<u8>)], name: &str) -> Result<String> {
    let values: Vec<_> = headers.iter().filter(|(known, _)| known == name).collect();
    ensure!(values.len() == 1, "{name}: {} in {headers:?}", values.len());
    Ok(String::from_utf8(values[0].1.clone())?)
}

fn no_header_of_envoys(case: &str, headers: &[(String, Vec<u8>)]) {
    let envoys = |name: &str| name.starts_with("x-envoy-") || name.starts_with("x-forwarded-");
    let found = headers.iter().find(|(name, _)| envoys(name));
    assert!(found.is_none(), "{case}: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_joined_to_all_that_is_done_for_it_and_no_span_shows_a_key() -> Result<()> {
    // Envoy takes filter state into a span from 1.37 on.
    let has_tags = SecretsBy::of_this_envoy() == SecretsBy::FilterState;
    let receiver = Receiver::default();
    let address = receiver.start().await?;
    let gateway = Gateway::start(Options::changed(move |config| {
        trace_to(config, address).expect("tracing.yaml");
        let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
        let manager = config.pointer_mut(manager).expect("a manager");
        if !has_tags {
            let tracing = manager["tracing"].as_object_mut().expect("tracing");
            tracing.remove("custom_tags");
        }
        // OpenBao as transit.yaml has it, but in clear text.
        let mut openbao = parts("transit.yaml").expect("transit.yaml")["cluster"].take();
        openbao.as_object_mut().expect("a cluster").remove("transport_socket");
        let socket = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
        *openbao.pointer_mut(socket).expect("an address") =
            json!({"address": "127.0.0.1", "port_value": address.port()});
        let clusters = config["static_resources"]["clusters"].as_array_mut();
        clusters.expect("clusters").push(openbao);
        plugin(config, |plugin| {
            let mut sealed = plugin["providers"]["bbmsl"].clone();
            sealed["signing"] = json!({"transit": {
                "cluster": "openbao", "mount": "transit", "key": "bbmsl", "token": {"inline": TOKEN},
            }});
            plugin["providers"]["sealed"] = sealed;
            plugin["providers"]["moyasar"]["query_first"] = json!(true);
        });
    }))
    .await?;
    let client = reqwest::Client::new();
    let mut nth = 0_u64;
    let mut send = async |case: &str, request: reqwest::RequestBuilder| -> Result<Call> {
        nth += 1;
        let call = Call {
            case: case.to_owned(),
            request_id: Uuid::new_v4().to_string(),
            trace_id: Uuid::new_v4().simple().to_string(),
            parent: format!("{nth:016x}"),
            answer: Answer {
                status: 0,
                headers: Default::default(),
                text: String::new(),
                body: json!(null),
            },
            sent: None,
            routed: true,
            expected: Vec::new(),
        };
        let request = request
            .header("x-request-id", &call.request_id)
            .header("traceparent", call.traceparent());
        let answer = Answer::read(timeout(PATIENCE, request.send()).await??).await?;
        Ok(Call { answer, ..call })
    };
    let post = |key: &str, body: &serde_json::Value| {
        client
            .post(gateway.url())
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_string())
    };
    let mut keys = Vec::new();
    let mut calls = Vec::new();
    for provider in FOUR {
        let name = cluster(provider);
        // The first reaches the provider as it is, and stands in a path of beGateway's.
        for (number, key) in [Uuid::new_v4().to_string(), format!("order-4711-{name}")]
            .into_iter()
            .enumerate()
        {
            let number = number as u64 + 1;
            let case = format!("{name}, refund {number}");
            let mut call = send(&case, post(&key, &of(provider, number, "1.00"))).await?;
            call.sent = gateway.simulators.last_request(provider);
            let status = if provider == Bog {
                "pending"
            } else {
                "succeeded"
            };
            call.expected = vec![
                ("refund.provider", name.to_owned()),
                ("refund.kind", "refund".to_owned()),
                ("refund.status", status.to_owned()),
                ("refund.outcome", status.to_owned()),
                ("refund.attempts", "1".to_owned()),
            ];
            calls.push(call);
            let order = fresh(provider, number);
            let query = [("provider", name), ("payment_id", &*order), ("key", &*key)];
            let case = format!("{name}, look-up {number}");
            let mut call = send(&case, client.get(gateway.url()).query(&query)).await?;
            call.sent = gateway.simulators.last_request(provider);
            // BBMSL's is signed, so that the filter asks by a call of its own.
            call.routed = provider != Bbmsl;
            call.expected = vec![
                ("refund.provider", name.to_owned()),
                ("refund.kind", "look_up".to_owned()),
                ("refund.status", status.to_owned()),
            ];
            calls.push(call);
            keys.push(key);
        }
    }
    // Where the reply breaks off, the span ends before the filter hears of it.
    gateway
        .simulators
        .next_fault(Begateway, Fault::CutBody { booked: true });
    let mut cut = send("cut", post("order-4712", &of(Begateway, 3, "1.00"))).await?;
    cut.sent = gateway.simulators.last_request(Begateway);
    cut.expected = vec![("refund.outcome", "unknown".to_owned())];
    calls.push(cut);
    let mut body = of(Bbmsl, 3, "1.00");
    body["provider"] = json!("sealed");
    let mut sealed = send("sealed", post("order-4713", &body)).await?;
    sealed.routed = false;
    sealed.expected = vec![
        ("refund.provider", "sealed".to_owned()),
        ("refund.status", "signing-unavailable".to_owned()),
        ("refund.outcome", "not_refunded".to_owned()),
    ];
    let by_openbao = receiver.asked_to_sign();
    assert_eq!(by_openbao.len(), 1);
    // A call with faults, whose query is nobody's.
    let faulty = [
        ("provider", "bog"),
        ("key", "order-4714"),
        ("key", "order-4714"),
    ];
    let mut refused = send("refused", client.get(gateway.url()).query(&faulty)).await?;
    refused.routed = false;
    refused.expected = vec![("refund.status", "invalid-request".to_owned())];
    keys.extend(["order-4712", "order-4713", "order-4714"].map(str::to_owned));

    // The gateway's own calls. BOG's token was fetched for its first call, and Moyasar's payment is
    // looked at before it is refunded.
    let tokens = gateway.simulators.requests(BogToken);
    assert_eq!(tokens.len(), 1);
    let looks = gateway.simulators.requests(Moyasar);
    let look = looks.first().context("no look")?.request.headers.clone();
    let first_of = |case: &str| calls.iter().find(|call| call.case == case);
    let own_calls = [
        (
            "token",
            &tokens[0].request.headers,
            first_of("bog, refund 1"),
        ),
        ("look", &look, first_of("moyasar, refund 1")),
        ("openbao", &by_openbao[0], Some(&sealed)),
    ];
    for (case, headers, of) in own_calls {
        let of = of.context(case)?;
        no_header_of_envoys(case, headers);
        assert_eq!(only(headers, "x-request-id")?, of.request_id, "{case}");
        assert_eq!(only(headers, "traceparent")?, of.traceparent(), "{case}");
    }

    calls.extend([sealed, refused]);
    let count = calls.iter().map(|call| 1 + usize::from(call.routed)).sum();
    timeout(PATIENCE, async {
        while receiver.spans()?.len() < count {
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    })
    .await
    .with_context(|| format!("{:?}", receiver.spans().map(|spans| spans.len())))??;
    let spans = receiver.spans()?;
    assert_eq!(spans.len(), count);
    for call in &calls {
        let case = &call.case;
        assert_eq!(
            call.answer.header("x-request-id"),
            call.request_id,
            "{case}"
        );
        no_header_of_envoys(case, &answered(&call.answer));
        let of_it: Vec<_> = spans
            .iter()
            .filter(|span| hex(&span.trace_id) == call.trace_id)
            .collect();
        let of_kind = |kind: SpanKind| of_it.iter().find(|span| span.kind == kind as i32);
        assert_eq!(of_it.len(), 1 + usize::from(call.routed), "{case}");
        let server = of_kind(SpanKind::Server).context(case.clone())?;
        assert_eq!(hex(&server.parent_span_id), call.parent, "{case}");
        let seen = tags(server);
        assert_eq!(seen["guid:x-request-id"], call.request_id, "{case}");
        assert!(!seen["http.url"].contains('?'), "{case}: {seen:?}");
        for (tag, expected) in call.expected.iter().filter(|_| has_tags) {
            assert_eq!(seen.get(tag), Some(expected), "{case}: {tag} in {seen:?}");
        }
        let Some(sent) = &call.sent else { continue };
        no_header_of_envoys(case, &sent.headers);
        assert_eq!(
            only(&sent.headers, "x-request-id")?,
            call.request_id,
            "{case}"
        );
        let parent = match of_kind(SpanKind::Client) {
            Some(client) => {
                assert_eq!(client.parent_span_id, server.span_id, "{case}");
                format!("00-{}-{}-01", call.trace_id, hex(&client.span_id))
            }
            // The filter's own call has no span.
            None => call.traceparent(),
        };
        assert_eq!(only(&sent.headers, "traceparent")?, parent, "{case}");
    }
    if has_tags {
        digests_join(&calls, &spans)?;
    }

    // Nothing of a key, at the caller's or the provider's, nor of a secret.
    for exchange in gateway.simulators.requests(Begateway) {
        let ids = exchange.request.headers_named("requestid");
        keys.extend(ids.map(|id| String::from_utf8_lossy(id).into_owned()));
    }
    assert!(keys.len() > 11, "{keys:?}");
    let bearer = gateway.simulators.requests(Bog);
    let bearer = bearer
        .first()
        .context("none")?
        .request
        .headers_named("authorization")
        .next();
    keys.push(String::from_utf8(bearer.context("no token")?.to_vec())?.replace("Bearer ", ""));
    keys.extend(["canary".to_owned(), "Basic ".to_owned()]);
    keys.extend(
        gateway
            .secrets
            .of(Bbmsl)
            .lines()
            .skip(1)
            .take(3)
            .map(str::to_owned),
    );
    for bytes in receiver.exports() {
        for key in &keys {
            let found = bytes.windows(key.len()).any(|part| part == key.as_bytes());
            assert!(!found, "{key} in {}", String::from_utf8_lossy(&bytes));
        }
    }
    Ok(())
}

fn answered(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let headers = answer.headers.iter();
    headers
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect()
}

/// A refund and its look-up have one digest of their key, and no others have it.
fn digests_join(calls: &[Call], spans: &[Span]) -> Result<()> {
    let mut seen = BTreeMap::<String, Vec<&str>>::new();
    for call in calls {
        let of_it = |span: &&Span| {
            hex(&span.trace_id) == call.trace_id && span.kind == SpanKind::Server as i32
        };
        let span = spans.iter().find(of_it).context("no span")?;
        if let Some(digest) = tags(span).remove("refund.key_digest") {
            seen.entry(digest).or_default().push(&call.case);
        }
    }
    let pairs: Vec<_> = seen.values().filter(|cases| cases.len() == 2).collect();
    ensure!(pairs.len() == 8, "{seen:?}");
    for pair in pairs {
        ensure!(pair[0].replace("refund", "look-up") == pair[1], "{pair:?}");
    }
    Ok(())
}
