//! Whatever the shape of a message, in either direction and in either HTTP version, it means the
//! same: it ends with its headers, its body or its trailers, comes whole or in pieces, and its
//! bytes need not be text.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::common::{FOUR, Problem, assert_problem, of, plugin, taken, unknown};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use gateway_testbed::{Answer, Gateway, Options, PATH, cluster, filter_mut};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use provider_simulator::{self as simulator, Alpn, Fault, Provider, Received, Reply, orders};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// All providers; those with tokens once more without one in hand.
fn called() -> impl Iterator<Item = Called> {
    let called = |waits| FOUR.map(|provider| Called { provider, waits }).into_iter();
    called(false).chain(called(true).filter(|called| called.provider.servers().len() > 1))
}

/// A provider, and whether the call has to wait for its token.
#[derive(Clone, Copy, Debug)]
struct Called {
    provider: Provider,
    waits: bool,
}

impl Called {
    /// Has the next call wait, if it is to: the token is refused, and the filter drops it.
    async fn prepare(self, gateway: &Gateway, nth: u64) -> Result<u64> {
        let simulators = &gateway.simulators;
        if self.waits {
            let fault = Fault::HeaderOnly {
                status: 401,
                booked: false,
            };
            simulators.next_fault(self.provider, fault);
            let key = format!("drops-the-token-{nth}");
            let answer = gateway.refund(&key, &refund(self.provider, nth)).await?;
            ensure!(
                answer.status == 502,
                "the token is still good: {}",
                answer.text
            );
            let tokens = self.provider.servers()[1];
            simulators.next_fault(tokens, Fault::Delay(Duration::from_millis(30)));
        }
        Ok(simulators.token_fetches())
    }
}

fn name(provider: Provider) -> &'static str {
    cluster(provider)
}

/// A call of 10.00 for the nth payment.
fn refund(provider: Provider, nth: u64) -> Value {
    let mut body = of(provider, nth, "10.00");
    body["reference"] = json!(format!("reference-{nth}"));
    body
}

#[track_caller]
fn assert_refunded(case: &str, provider: Provider, nth: u64, answer: &Answer) {
    let expected = taken(provider);
    let text = &answer.text;
    assert_eq!(answer.status, expected.0, "{case}: {text}");
    assert_eq!(answer.body["status"], expected.1, "{case}: {text}");
    assert_eq!(answer.body["provider"], name(provider), "{case}: {text}");
    assert_eq!(
        answer.body["payment"]["id"],
        orders::fresh(provider, nth),
        "{case}: {text}"
    );
    assert_eq!(answer.body["amount"]["value"], "10.00", "{case}: {text}");
    assert_eq!(
        answer.body["reference"],
        format!("reference-{nth}"),
        "{case}: {text}"
    );
    assert_eq!(answer.header("content-type"), "application/json", "{case}");
    assert!(answer.headers.contains_key("x-request-id"), "{case}");
}

/// Whether the provider got the request whole, framed anew, and nothing of the caller's framing.
#[track_caller]
fn assert_framed_anew(case: &str, request: &Received) {
    assert!(!request.body.is_empty(), "{case}");
    let length: Vec<_> = request.headers_named("content-length").collect();
    assert_eq!(
        length,
        [request.body.len().to_string().as_bytes()],
        "{case}"
    );
    for name in ["transfer-encoding", "expect", "trailer", "te", "x-trailer"] {
        assert_eq!(request.headers_named(name).count(), 0, "{case}: {name}");
    }
    assert_eq!(request.trailers, [], "{case}");
}

/// Whether the module has never trapped, and still works in every worker.
async fn assert_alive(gateway: &Gateway) -> Result<()> {
    let stats = gateway
        .admin(r"/stats?filter=^wasm\.refund_filter\.vm_reload")
        .await?;
    assert!(!stats.is_empty());
    for line in stats.lines() {
        assert!(line.ends_with(": 0"), "{stats}");
    }
    for nth in 900_000..900_010 {
        let answer = gateway
            .refund(&format!("alive-{nth}"), &refund(Provider::Moyasar, nth))
            .await?;
        assert_refunded("afterwards", Provider::Moyasar, nth, &answer);
    }
    Ok(())
}

/// A request body in frames, exactly these.
struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    /// Whether nothing more comes after them, not even the end.
    stalls: bool,
}

impl Frames {
    fn new(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Self {
        Frames {
            frames: frames.into_iter().collect(),
            stalls: false,
        }
    }

    fn data(body: &[u8]) -> Frame<Bytes> {
        Frame::data(Bytes::copy_from_slice(body))
    }

    fn trailers() -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-trailer", HeaderValue::from_static("the caller's"));
        trailers.insert(
            "x-bytes",
            HeaderValue::from_bytes(b"\xff\xfe").expect("obs-text"),
        );
        Frame::trailers(trailers)
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frames.pop_front() {
            None if self.stalls => Poll::Pending,
            frame => Poll::Ready(frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && !self.stalls
    }
}

/// One HTTP/2 connection, by prior knowledge.
async fn http2(address: SocketAddr) -> Result<SendRequest<Frames>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Calls over HTTP/2. Nothing of the provider's trailers may come back.
async fn call2(
    sender: &mut SendRequest<Frames>,
    headers: &[(&str, &[u8])],
    body: Frames,
) -> Result<Answer> {
    let mut request = Request::post(format!("http://gateway.test{PATH}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = timeout(PATIENCE, sender.send_request(request.body(body)?)).await??;
    let (head, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect()).await??;
    ensure!(
        body.trailers().is_none(),
        "trailers came back: {:?}",
        body.trailers()
    );
    answer(head.status.as_u16(), head.headers, &body.to_bytes())
}

fn answer(status: u16, headers: HeaderMap, body: &[u8]) -> Result<Answer> {
    let text = String::from_utf8(body.to_vec())?;
    let body = serde_json::from_str(&text).unwrap_or_default();
    Ok(Answer {
        status,
        headers,
        text,
        body,
    })
}

/// A request head over HTTP/1.1 that closes the connection with its answer.
fn head1(path: &[u8], headers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut head = [
        b"POST ",
        path,
        b" HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n",
    ]
    .concat();
    for (name, value) in headers {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

/// Writes the pieces, each by itself, and reads the answer. It must be framed by its length, so
/// that no trailer and no second answer can hide in it.
async fn call1(address: SocketAddr, pieces: &[Vec<u8>]) -> Result<Answer> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    for piece in pieces {
        // An answer may come, and the connection end, before all of it is written.
        if socket.write_all(piece).await.is_err() {
            break;
        }
    }
    read1(&mut socket, Vec::new()).await
}

/// Reads one answer up to the connection's end.
async fn read1(socket: &mut TcpStream, mut bytes: Vec<u8>) -> Result<Answer> {
    timeout(PATIENCE, socket.read_to_end(&mut bytes)).await??;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .with_context(|| format!("no head in {:?}", String::from_utf8_lossy(&bytes)))?;
    let (head, body) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let status_line = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .with_context(|| status_line.clone())?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .context("a header")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        headers.append(
            HeaderName::from_bytes(name)?,
            HeaderValue::from_bytes(value)?,
        );
    }
    let length: usize = headers
        .get("content-length")
        .with_context(|| format!("no length: {:?}", String::from_utf8_lossy(&bytes)))?
        .to_str()?
        .parse()?;
    ensure!(
        length == body.len(),
        "{:?}",
        String::from_utf8_lossy(&bytes)
    );
    answer(status, headers, body)
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// How a body is cut over HTTP/1.1, and over HTTP/2.
type Cut1 = fn(&[u8]) -> Vec<Vec<u8>>;
type Cut2 = fn(&[u8]) -> Frames;

fn one_byte(body: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    body.iter().map(|byte| vec![*byte])
}

/// With its length.
const SIZED: [(&str, Cut1); 2] = [
    ("whole", |body| vec![body.to_vec()]),
    ("in one-byte pieces", |body| one_byte(body).collect()),
];

const CHUNKED: [(&str, Cut1); 4] = [
    ("in a chunk", |body| {
        vec![[chunk(body), chunk(b"")].concat()]
    }),
    ("in a chunk, its end apart", |body| {
        vec![chunk(body), b"0\r\n".to_vec(), b"\r\n".to_vec()]
    }),
    ("in one-byte chunks", |body| {
        let chunks = one_byte(body).map(|byte| chunk(&byte));
        chunks.chain([chunk(b"")]).collect()
    }),
    ("with trailers", |body| {
        let trailers = b"0\r\nx-trailer: the caller's\r\nx-bytes: \xff\xfe\r\n\r\n";
        vec![chunk(body), trailers.to_vec()]
    }),
];

const FRAMED: [(&str, Cut2); 6] = [
    ("in a frame", |body| Frames::new([Frames::data(body)])),
    ("in one-byte frames", |body| {
        Frames::new(one_byte(body).map(|byte| Frames::data(&byte)))
    }),
    ("with empty frames at the end", |body| {
        Frames::new([Frames::data(body), Frames::data(b""), Frames::data(b"")])
    }),
    // Envoy takes two of them in a row for an attack.
    ("with an empty frame in front", |body| {
        Frames::new([Frames::data(b""), Frames::data(body)])
    }),
    ("with trailers", |body| {
        Frames::new([Frames::data(body), Frames::trailers()])
    }),
    ("in one-byte frames with trailers", |body| {
        let frames = one_byte(body).map(|byte| Frames::data(&byte));
        Frames::new(frames.chain([Frames::trailers()]))
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_taken_in_whatever_pieces_it_comes() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let simulators = &gateway.simulators;
    let mut nth = 0;
    for called in called() {
        let provider = called.provider;
        let check = |case: &str, nth: u64, fetches: u64, answer: &Answer| {
            assert_refunded(case, provider, nth, answer);
            let request = simulators.last_request(provider).expect("a request");
            assert_framed_anew(case, &request);
            if called.waits {
                assert_eq!(simulators.token_fetches(), fetches + 1, "{case}");
            }
        };
        for (shape, cut, sized) in SIZED
            .map(|(shape, cut)| (shape, cut, true))
            .into_iter()
            .chain(CHUNKED.map(|(shape, cut)| (shape, cut, false)))
        {
            nth += 1;
            let case = format!("{called:?}, HTTP/1.1, {shape}");
            let fetches = called.prepare(&gateway, nth).await?;
            let body = refund(provider, nth).to_string();
            let (key, length) = (format!("key-{nth}"), body.len().to_string());
            let headers: [(&str, &[u8]); 3] = [
                ("content-type", b"application/json"),
                ("idempotency-key", key.as_bytes()),
                if sized {
                    ("content-length", length.as_bytes())
                } else {
                    ("transfer-encoding", b"chunked")
                },
            ];
            let mut pieces = cut(body.as_bytes());
            pieces.insert(0, head1(PATH.as_bytes(), &headers));
            let answer = call1(gateway.address, &pieces)
                .await
                .context(case.clone())?;
            check(&case, nth, fetches, &answer);
        }
        let mut connection = http2(gateway.address).await?;
        for (shape, cut) in FRAMED {
            nth += 1;
            let case = format!("{called:?}, HTTP/2, {shape}");
            let fetches = called.prepare(&gateway, nth).await?;
            let body = refund(provider, nth).to_string();
            let key = format!("key-{nth}");
            let headers: [(&str, &[u8]); 2] = [
                ("content-type", b"application/json"),
                ("idempotency-key", key.as_bytes()),
            ];
            let answer = call2(&mut connection, &headers, cut(body.as_bytes()))
                .await
                .context(case.clone())?;
            check(&case, nth, fetches, &answer);
        }
    }
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_expects_100_continue_gets_it_before_its_body() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    for (nth, called) in (1..).zip(called()) {
        called.prepare(&gateway, nth).await?;
        let body = refund(called.provider, nth).to_string();
        let head = head1(
            PATH.as_bytes(),
            &[
                ("content-type", b"application/json"),
                ("idempotency-key", format!("key-{nth}").as_bytes()),
                ("expect", b"100-continue"),
                ("content-length", body.len().to_string().as_bytes()),
            ],
        );
        let mut socket = TcpStream::connect(gateway.address).await?;
        socket.write_all(&head).await?;
        let mut interim = [0; 25];
        timeout(PATIENCE, socket.read_exact(&mut interim)).await??;
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n", "{called:?}");
        socket.write_all(body.as_bytes()).await?;
        let answer = read1(&mut socket, Vec::new()).await?;
        let case = format!("{called:?}");
        assert_refunded(&case, called.provider, nth, &answer);
        let request = gateway
            .simulators
            .last_request(called.provider)
            .context("none")?;
        assert_framed_anew(&case, &request);
    }
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_body_is_malformed_json() -> Result<()> {
    const MALFORMED: Problem = Problem::corrected("malformed-json", 400);
    let gateway = Gateway::start(Options::default()).await?;
    let headers: [(&str, &[u8]); 2] = [
        ("content-type", b"application/json"),
        ("idempotency-key", b"key"),
    ];
    let with = |name: &'static str, value: &'static [u8]| {
        let mut headers = headers.to_vec();
        headers.push((name, value));
        headers
    };
    let of_length_0 = head1(PATH.as_bytes(), &with("content-length", b"0"));
    let chunked = head1(PATH.as_bytes(), &with("transfer-encoding", b"chunked"));
    for (case, pieces) in [
        ("HTTP/1.1, length 0", vec![of_length_0]),
        (
            "HTTP/1.1, no length",
            vec![head1(PATH.as_bytes(), &headers)],
        ),
        ("HTTP/1.1, no chunk", vec![chunked.clone(), chunk(b"")]),
        (
            "HTTP/1.1, trailers alone",
            vec![chunked, b"0\r\nx-trailer: 1\r\n\r\n".to_vec()],
        ),
    ] {
        let answer = call1(gateway.address, &pieces).await.context(case)?;
        assert_problem(case, &answer, MALFORMED);
    }
    let mut connection = http2(gateway.address).await?;
    for (case, frames) in [
        ("HTTP/2, END_STREAM with the headers", Frames::new([])),
        ("HTTP/2, an empty frame", Frames::new([Frames::data(b"")])),
        (
            "HTTP/2, empty frames",
            Frames::new([Frames::data(b""), Frames::data(b"")]),
        ),
        ("HTTP/2, trailers alone", Frames::new([Frames::trailers()])),
    ] {
        let answer = call2(&mut connection, &headers, frames)
            .await
            .context(case)?;
        assert_problem(case, &answer, MALFORMED);
    }
    assert_alive(&gateway).await
}

/// What a caller gets.
enum Expected {
    Refunded,
    Problem(Problem),
}

fn reply_shapes(provider: Provider) -> Vec<(&'static str, Fault, Expected)> {
    let refused = |code, status, retry| {
        Expected::Problem(Problem {
            code,
            status,
            outcome: "not_refunded",
            retry,
        })
    };
    let unknown = |code, status| Expected::Problem(unknown(provider, code, status));
    let header_only = |status| Fault::HeaderOnly {
        status,
        booked: false,
    };
    let empty = |reply: Reply| Fault::Reply {
        reply,
        booked: false,
    };
    let trailers = vec![
        (b"x-provider-trailer".to_vec(), b"1".to_vec()),
        (b"x-bytes".to_vec(), b"\xff\xfe".to_vec()),
    ];
    vec![
        ("whole", Fault::Delay(Duration::ZERO), Expected::Refunded),
        (
            "in one-byte pieces",
            Fault::Pieces {
                size: 1,
                pause: Duration::ZERO,
            },
            Expected::Refunded,
        ),
        (
            "in pieces, with pauses",
            Fault::Pieces {
                size: 100,
                pause: Duration::from_millis(5),
            },
            Expected::Refunded,
        ),
        (
            "with trailers",
            Fault::Trailers(trailers.clone()),
            Expected::Refunded,
        ),
        ("after 100 Continue", Fault::Continue100, Expected::Refunded),
        ("as the connection's last", Fault::Drain, Expected::Refunded),
        (
            "200 that is only headers",
            header_only(200),
            unknown("provider-reply-unreadable", 502),
        ),
        (
            "204 that is only headers",
            header_only(204),
            unknown("provider-reply-unreadable", 502),
        ),
        (
            "401 that is only headers",
            header_only(401),
            refused("provider-auth-failed", 502, "same_key"),
        ),
        (
            "404 that is only headers",
            header_only(404),
            match provider.declared().replies.lists_refusals {
                true => refused("payment-not-found", 404, "no"),
                false => unknown("provider-rejected", 422),
            },
        ),
        (
            "503 that is only headers",
            header_only(503),
            unknown("provider-error", 502),
        ),
        (
            "200 that is only trailers",
            empty(Reply {
                trailers: trailers.clone(),
                ..Reply::json(200, "")
            }),
            unknown("provider-reply-unreadable", 502),
        ),
        (
            "401 with trailers",
            empty(Reply {
                trailers,
                ..Reply::json(401, "{}")
            }),
            refused("provider-auth-failed", 502, "same_key"),
        ),
        (
            "compressed",
            Fault::Gzip,
            unknown("provider-reply-unreadable", 502),
        ),
    ]
}

async fn replies_are_read_in_whatever_shape(alpn: Alpn, version: http::Version) -> Result<()> {
    let gateway = Gateway::start(Options {
        simulators: simulator::Options {
            alpn,
            ..simulator::Options::default()
        },
        ..Options::default()
    })
    .await?;
    let simulators = &gateway.simulators;
    let mut nth = 0;
    for called in called() {
        let provider = called.provider;
        let mut connection = http2(gateway.address).await?;
        for http1 in [true, false] {
            for (shape, fault, expected) in reply_shapes(provider) {
                nth += 1;
                let caller = if http1 { "HTTP/1.1" } else { "HTTP/2" };
                let case = format!("{called:?} by {version:?}, caller by {caller}: {shape}");
                called.prepare(&gateway, nth).await?;
                simulators.next_fault(provider, fault);
                let body = refund(provider, nth).to_string();
                let (key, length) = (format!("key-{nth}"), body.len().to_string());
                let headers: [(&str, &[u8]); 3] = [
                    ("content-type", b"application/json"),
                    ("idempotency-key", key.as_bytes()),
                    ("content-length", length.as_bytes()),
                ];
                let answer = if http1 {
                    let head = head1(PATH.as_bytes(), &headers);
                    call1(gateway.address, &[head, body.clone().into_bytes()]).await
                } else {
                    let frames = Frames::new([Frames::data(body.as_bytes())]);
                    call2(&mut connection, &headers, frames).await
                }
                .context(case.clone())?;
                match expected {
                    Expected::Refunded => assert_refunded(&case, provider, nth, &answer),
                    Expected::Problem(problem) => assert_problem(&case, &answer, problem),
                }
                for name in answer.headers.keys() {
                    let known = [
                        "content-type",
                        "content-length",
                        "x-request-id",
                        "cache-control",
                        "date",
                        "server",
                        "connection",
                    ];
                    assert!(known.contains(&name.as_str()), "{case}: {name} came back");
                }
                let request = simulators.last_request(provider).context("none")?;
                assert_eq!(request.version, version, "{case}");
            }
        }
    }
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_over_http_1_is_read_in_whatever_shape_it_comes() -> Result<()> {
    replies_are_read_in_whatever_shape(Alpn::Http1, http::Version::HTTP_11).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_over_http_2_is_read_in_whatever_shape_it_comes() -> Result<()> {
    replies_are_read_in_whatever_shape(Alpn::Http2, http::Version::HTTP_2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_the_caller_that_are_no_text_do_no_harm() -> Result<()> {
    const BYTES: &[u8] = b"a\xff\xfe\x80z";
    let problem = |code, status| Some(Problem::corrected(code, status));
    let gateway = Gateway::start(Options::default()).await?;
    let mut connection = http2(gateway.address).await?;
    let mut nth = 0;
    for (header, expect) in [
        ("x-request-id", None),
        ("traceparent", None),
        ("tracestate", None),
        ("b3", None),
        ("x-b3-traceid", None),
        ("cookie", None),
        ("user-agent", None),
        ("authorization", None),
        ("x-anything", None),
        ("accept", None),
        ("forwarded", None),
        ("x-forwarded-for", None),
        ("content-type", problem("unsupported-media-type", 415)),
        ("content-encoding", problem("unsupported-media-type", 415)),
        ("idempotency-key", problem("idempotency-key-invalid", 400)),
    ] {
        for provider in [
            Provider::Bog,
            Provider::Moyasar,
            Provider::Begateway,
            Provider::Bbmsl,
        ] {
            for http1 in [true, false] {
                nth += 1;
                let case = format!(
                    "{header}, {provider:?}, {}",
                    if http1 { "HTTP/1.1" } else { "HTTP/2" }
                );
                let body = refund(provider, nth).to_string();
                let (key, length) = (format!("key-{nth}"), body.len().to_string());
                let mut headers: Vec<(&str, &[u8])> = vec![
                    ("content-type", b"application/json"),
                    ("idempotency-key", key.as_bytes()),
                    ("content-length", length.as_bytes()),
                ];
                headers.retain(|(name, _)| *name != header);
                headers.push((header, BYTES));
                let answer = if http1 {
                    let head = head1(PATH.as_bytes(), &headers);
                    call1(gateway.address, &[[head, body.into_bytes()].concat()]).await
                } else {
                    let frames = Frames::new([Frames::data(body.as_bytes())]);
                    call2(&mut connection, &headers, frames).await
                }
                .context(case.clone())?;
                match expect {
                    None => assert_refunded(&case, provider, nth, &answer),
                    Some(problem) => assert_problem(&case, &answer, problem),
                }
                if header == "x-request-id" {
                    let id = answer
                        .headers
                        .get("x-request-id")
                        .map(HeaderValue::as_bytes);
                    assert_eq!(id, Some(BYTES), "{case}");
                }
            }
        }
    }
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_counts_byte_by_byte() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let call = async |path: &[u8], nth: u64| {
        let body = refund(Provider::Moyasar, nth).to_string();
        let head = head1(
            path,
            &[
                ("content-type", b"application/json"),
                ("idempotency-key", format!("key-{nth}").as_bytes()),
                ("content-length", body.len().to_string().as_bytes()),
            ],
        );
        call1(gateway.address, &[[head, body.into_bytes()].concat()]).await
    };
    let answer = call(b"/v1/refunds?", 1).await?;
    assert_refunded("an empty query", Provider::Moyasar, 1, &answer);
    for (nth, path) in (2..).zip([&b"/v1/refunds?a=%ff"[..], b"/v1/refunds?%00"]) {
        let case = String::from_utf8_lossy(path);
        let answer = call(path, nth).await?;
        assert_problem(&case, &answer, Problem::corrected("invalid-request", 422));
    }
    let booked = gateway.simulators.ledger(Provider::Moyasar).len();
    let answer = call(b"/v1/refunds%ff", 10).await?;
    assert_eq!((answer.status, answer.text.as_str()), (404, ""));
    // Envoy lets no such byte into a path.
    for path in [
        &b"/v1/refunds\xff"[..],
        b"/v1/\xff\xfe",
        b"/v1/refunds?\xff",
    ] {
        let answer = call(path, 11).await?;
        let refused = Problem::corrected("bad-request", 400);
        assert_problem(&String::from_utf8_lossy(path), &answer, refused);
    }
    assert_eq!(gateway.simulators.ledger(Provider::Moyasar).len(), booked);
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_the_provider_that_are_no_text_do_no_harm() -> Result<()> {
    const BYTES: &[u8] = b"a\xff\xfe\x80z";
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let gateway = Gateway::start(Options {
            simulators: simulator::Options {
                alpn,
                ..simulator::Options::default()
            },
            // The same call again is to get another reply of the provider's, and not its first
            // answer.
            ..Options::changed(|config| {
                plugin(config, |plugin| plugin["guard"] = json!({"entries": 0}));
            })
        })
        .await?;
        let mut nth = 0;
        for provider in [
            Provider::Bog,
            Provider::Moyasar,
            Provider::Begateway,
            Provider::Bbmsl,
        ] {
            let rate_limited = Problem {
                code: "provider-rate-limited",
                status: 503,
                outcome: "not_refunded",
                retry: "same_key",
            };
            for (header, status, body, problem) in [
                ("retry-after", 429, &b"{}"[..], rate_limited),
                (
                    "retry-after",
                    503,
                    b"{}",
                    unknown(provider, "provider-error", 502),
                ),
                (
                    "x-anything",
                    500,
                    b"{}",
                    unknown(provider, "provider-error", 502),
                ),
                (
                    "set-cookie",
                    200,
                    b"{}",
                    unknown(provider, "provider-reply-unreadable", 502),
                ),
                (
                    "content-encoding",
                    200,
                    b"{}",
                    unknown(provider, "provider-reply-unreadable", 502),
                ),
                (
                    "x-anything",
                    200,
                    b"\xff\xfe",
                    unknown(provider, "provider-reply-unreadable", 502),
                ),
                (
                    "content-type",
                    200,
                    b"",
                    unknown(provider, "provider-reply-unreadable", 502),
                ),
                (
                    "www-authenticate",
                    500,
                    b"\xff\xfe",
                    unknown(provider, "provider-error", 502),
                ),
            ] {
                nth += 1;
                let case = format!("{provider:?}, {alpn:?}: {header} in a {status}");
                let mut reply = Reply::json(status, body);
                reply.headers.retain(|(name, _)| name != header.as_bytes());
                reply.headers.push((header.into(), BYTES.to_vec()));
                let fault = Fault::Reply {
                    reply,
                    booked: false,
                };
                gateway.simulators.next_fault(provider, fault);
                let answer = gateway
                    .refund(&format!("{provider:?}-{nth}"), &refund(provider, nth))
                    .await?;
                assert_problem(&case, &answer, problem);
                assert!(
                    !answer.headers.contains_key("retry-after"),
                    "{case}: {answer:?}"
                );
                assert!(
                    !answer.headers.contains_key(header) || header == "content-type",
                    "{case}: {answer:?}"
                );
            }
            // Where the reply itself is good, its other headers do not matter.
            nth += 1;
            let answer = gateway
                .refund(&format!("{provider:?}-{nth}"), &refund(provider, nth))
                .await?;
            assert_refunded("a good one", provider, nth, &answer);
            let exchange = gateway
                .simulators
                .requests(provider)
                .pop()
                .context("none")?;
            let mut reply = exchange.reply.context("no reply")?;
            reply.headers.retain(|(name, _)| name != b"content-type");
            reply.headers.extend(
                [
                    "content-type",
                    "x-anything",
                    "retry-after",
                    "server",
                    "date",
                ]
                .map(|name| (name.into(), BYTES.to_vec())),
            );
            let fault = Fault::Reply {
                reply,
                booked: false,
            };
            gateway.simulators.next_fault(provider, fault);
            let answer = gateway
                .refund(&format!("{provider:?}-{nth}"), &refund(provider, nth))
                .await?;
            let case = format!("{provider:?}, {alpn:?}: a good reply with such headers");
            assert_refunded(&case, provider, nth, &answer);
        }
        assert_alive(&gateway).await?;
    }
    Ok(())
}

/// On HTTP/1 a reply's head can be anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_head_that_breaks_http_is_a_provider_error() -> Result<()> {
    let gateway = Gateway::start(Options {
        simulators: simulator::Options {
            alpn: Alpn::Http1,
            ..simulator::Options::default()
        },
        ..Options::default()
    })
    .await?;
    let mut nth = 0;
    for provider in [
        Provider::Bog,
        Provider::Moyasar,
        Provider::Begateway,
        Provider::Bbmsl,
    ] {
        for (header, value) in [
            (&b"x-\xff"[..], &b"1"[..]),
            (b"x y", b"1"),
            (b"", b"1"),
            (b"x-nul", b"a\0b"),
            (b"content-length", b"-1"),
            (b"transfer-encoding", b"\xff"),
        ] {
            nth += 1;
            let mut reply = Reply::json(200, "{}");
            reply.headers.push((header.into(), value.into()));
            let fault = Fault::Reply {
                reply,
                booked: false,
            };
            gateway.simulators.next_fault(provider, fault);
            let answer = gateway
                .refund(&format!("{provider:?}-{nth}"), &refund(provider, nth))
                .await?;
            let problem = unknown(provider, "provider-error", 502);
            let case = format!("{provider:?}: {:?}", String::from_utf8_lossy(header));
            assert_problem(&case, &answer, problem);
        }
    }
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_many_answers_belongs_to_its_own_call() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let mut connections = Vec::new();
    for connection in 0..20_u64 {
        let client = reqwest::Client::builder().pool_max_idle_per_host(1);
        let http2 = connection % 2 == 1;
        let client = if http2 {
            client.http2_prior_knowledge()
        } else {
            client.http1_only()
        }
        .build()?;
        let url = gateway.url();
        connections.push(tokio::spawn(async move {
            let calls = (0..10).map(|n| {
                let (client, url, nth) = (client.clone(), url.clone(), connection * 10 + n);
                async move { anyhow::Ok((nth, mixed_call(&client, &url, nth).await?)) }
            });
            let mut answers = Vec::new();
            if http2 {
                for call in calls.map(tokio::spawn).collect::<Vec<_>>() {
                    answers.push(call.await??);
                }
            } else {
                for call in calls {
                    answers.push(call.await?);
                }
            }
            anyhow::Ok(answers)
        }));
    }
    let mut refunded = 0;
    for connection in connections {
        for (nth, answer) in connection.await?? {
            let provider = provider_of(nth);
            let case = format!("call {nth} to {provider:?}");
            assert_eq!(
                answer.header("x-request-id"),
                format!("request-{nth}"),
                "{case}: {}",
                answer.text
            );
            match nth % 5 {
                3 => {
                    assert_eq!(
                        answer.body["code"], "invalid-request",
                        "{case}: {}",
                        answer.text
                    );
                    let errors = answer.body["errors"].to_string();
                    assert!(errors.contains("/amount/value"), "{case}: {errors}");
                }
                4 => assert_eq!(answer.status, 404, "{case}: {}", answer.text),
                _ => {
                    assert_refunded(&case, provider, nth, &answer);
                    refunded += 1;
                }
            }
        }
    }
    let mut booked = Vec::new();
    for provider in [
        Provider::Bog,
        Provider::Moyasar,
        Provider::Begateway,
        Provider::Bbmsl,
    ] {
        for entry in gateway.simulators.ledger(provider) {
            assert_eq!(entry.minor_units, 1_000);
            booked.push(format!("{provider:?} {}", entry.payment));
        }
    }
    booked.sort();
    booked.dedup();
    assert_eq!(booked.len(), refunded);
    assert_alive(&gateway).await
}

fn provider_of(nth: u64) -> Provider {
    [
        Provider::Bog,
        Provider::Moyasar,
        Provider::Begateway,
        Provider::Bbmsl,
    ][(nth / 5 % 4) as usize]
}

/// Two in five go wrong: a call that the filter refuses, and a path that is another application's.
async fn mixed_call(client: &reqwest::Client, url: &str, nth: u64) -> Result<Answer> {
    let mut body = refund(provider_of(nth), nth);
    let mut url = url.to_owned();
    match nth % 5 {
        3 => body["amount"]["value"] = "0".into(),
        4 => url.push_str("/other"),
        _ => {}
    }
    let response = client
        .post(url)
        .header("content-type", "application/json")
        .header("idempotency-key", format!("key-{nth}"))
        .header("x-request-id", format!("request-{nth}"))
        .body(body.to_string())
        .send()
        .await?;
    Answer::read(response).await
}

const FIELD: &str = "allow_on_headers_stop_iteration";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_answered_by_the_filter() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let timeout_problem = Problem {
        code: "request-timeout",
        status: 408,
        outcome: "not_refunded",
        retry: "same_key",
    };
    let headers: [(&str, &[u8]); 3] = [
        ("content-type", b"application/json"),
        ("idempotency-key", b"key"),
        ("content-length", b"100"),
    ];
    let head = head1(PATH.as_bytes(), &headers);
    let stalls = async || -> Result<Answer> {
        let mut frames = Frames::new([Frames::data(b"{\"provider\":")]);
        frames.stalls = true;
        call2(&mut http2(gateway.address).await?, &headers, frames).await
    };
    let half = [head.clone(), b"{\"provider\":".to_vec()];
    let (nothing, half, over_2) = tokio::join!(
        call1(gateway.address, std::slice::from_ref(&head)),
        call1(gateway.address, &half),
        stalls(),
    );
    for (case, answer) in [
        ("nothing of it", nothing),
        ("half of it", half),
        ("over HTTP/2", over_2),
    ] {
        let answer = answer.context(case)?;
        assert_problem(case, &answer, timeout_problem);
        assert!(answer.text.contains(FIELD), "{case}: {}", answer.text);
    }
    // A body that does not begin looks the same to the filter as one that it is not given: who runs
    // it is told of both.
    let log = gateway.log();
    assert!(
        log.lines()
            .any(|line| line.contains("refund-filter") && line.contains(FIELD)),
        "{log}"
    );
    assert_alive(&gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_withholds_bodies_says_what_it_lacks() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        let plugin = filter_mut(config).expect("the filter");
        let plugin = plugin.as_object_mut().expect("an object");
        plugin.remove(FIELD).expect("the field");
    }))
    .await?;
    let lacking = Problem {
        code: "gateway-error",
        status: 503,
        outcome: "not_refunded",
        retry: "same_key",
    };
    for provider in [
        Provider::Bog,
        Provider::Moyasar,
        Provider::Begateway,
        Provider::Bbmsl,
    ] {
        let answer = timeout(PATIENCE, gateway.refund("key", &refund(provider, 1))).await??;
        let case = format!("{provider:?}");
        assert_problem(&case, &answer, lacking);
        assert!(answer.text.contains(FIELD), "{}", answer.text);
        assert_eq!(gateway.simulators.received(provider), 0, "{case}");
    }
    let body = refund(Provider::Moyasar, 1).to_string();
    let headers: [(&str, &[u8]); 2] = [
        ("content-type", b"application/json"),
        ("idempotency-key", b"key"),
    ];
    let frames = Frames::new([Frames::data(body.as_bytes())]);
    let answer = call2(&mut http2(gateway.address).await?, &headers, frames).await?;
    assert_problem("over HTTP/2", &answer, lacking);
    let log = gateway.log();
    assert!(
        log.lines()
            .any(|line| line.contains("refund-filter") && line.contains(FIELD)),
        "{log}"
    );
    Ok(())
}
