//! HTTP/1.1: hyper for all that it would send, by hand for the rest.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

use super::{End, Endpoint, LARGEST_BODY, Plan, Socket, head, response};
use crate::exchange::pairs;
use crate::{Fault, Reply};

impl Endpoint {
    pub(super) async fn http1(
        self: Arc<Self>,
        mut io: TlsStream<Socket>,
        server_name: Option<String>,
        reset: &AtomicBool,
    ) {
        loop {
            // One request at a time: hyper asks the service again only when it has sent a reply.
            let (by_hand, mut plans) = mpsc::unbounded_channel();
            let endpoint = self.clone();
            let server_name = server_name.clone();
            let service = service_fn(move |request| {
                let exchange = endpoint.clone().exchange1(request, server_name.clone());
                let by_hand = by_hand.clone();
                let reply: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
                    match exchange.await {
                        Ok(response) => Ok::<_, Infallible>(response),
                        Err(plan) => {
                            let _ = by_hand.send(plan);
                            pending().await
                        }
                    }
                });
                reply
            });
            let mut connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service);
            let plan = tokio::select! {
                ended = poll_fn(|context| connection.poll_without_shutdown(context)) => {
                    let mut io = connection.into_parts().io.into_inner();
                    if ended.is_ok() {
                        let _ = io.shutdown().await;
                    }
                    return;
                }
                Some(plan) = plans.recv() => plan,
            };
            let parts = connection.into_parts();
            io = parts.io.into_inner();
            match written_by_hand(&mut io, plan).await {
                // A client that has sent its next request before it had the reply is out of luck.
                Ok(End::Complete) if parts.read_buf.is_empty() => {}
                Ok(End::Complete | End::Close) => {
                    let _ = io.shutdown().await;
                    return;
                }
                Ok(End::Reset) => return reset.store(true, Ordering::Relaxed),
                Ok(End::Stall) => {
                    let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    async fn exchange1(
        self: Arc<Self>,
        request: Request<Incoming>,
        server_name: Option<String>,
    ) -> Result<Response<Full<Bytes>>, Plan> {
        let (mut received, fault) = self.arrive(head(&request, server_name));
        if matches!(fault, Some(Fault::CloseBefore | Fault::RefusedStream)) {
            return Err(Plan::Nothing(End::Close));
        }
        let Ok(body) = Limited::new(request.into_body(), LARGEST_BODY)
            .collect()
            .await
        else {
            return Err(Plan::Nothing(End::Close));
        };
        received.trailers = body.trailers().map(pairs).unwrap_or_default();
        received.body = body.to_bytes().into();
        // A task of its own: a provider goes on with what it has received, whether or not its
        // caller is still there.
        let plan = tokio::spawn(self.plan(received, fault))
            .await
            .unwrap_or(Plan::Nothing(End::Close));
        let (reply, drain) = match plan {
            Plan::Whole(reply) => (reply, false),
            Plan::Drain(reply) => (reply, true),
            plan => return Err(plan),
        };
        let Some(response) = response(&reply) else {
            return Err(Plan::Nothing(End::Close));
        };
        let mut response = response.map(|()| Full::new(reply.body.into()));
        if drain {
            response
                .headers_mut()
                .insert("connection", HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Writes what hyper would not.
async fn written_by_hand(io: &mut TlsStream<Socket>, plan: Plan) -> io::Result<End> {
    let shaped = match plan {
        Plan::Shaped(shaped) => shaped,
        Plan::HalfHead(reply) => {
            let head = head_bytes(&reply);
            let (half, _) = head.split_at(head.len() / 2);
            io.write_all(half).await?;
            io.flush().await?;
            return Ok(End::Close);
        }
        Plan::Nothing(end) => return Ok(end),
        Plan::ResetStream(_) | Plan::GoAway(_) | Plan::Whole(_) | Plan::Drain(_) => {
            return Ok(End::Close);
        }
    };
    if shaped.interim {
        io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        io.flush().await?;
    }
    let mut bytes = head_bytes(&shaped.reply);
    let body = &shaped.reply.body;
    let body = body.get(..shaped.cut.unwrap_or(body.len())).unwrap_or(body);
    if shaped.reply.trailers.is_empty() {
        bytes.extend_from_slice(body);
    } else {
        if !body.is_empty() {
            bytes.extend(format!("{:x}\r\n", body.len()).bytes());
            bytes.extend_from_slice(body);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n");
        bytes.extend(lines(&shaped.reply.trailers));
        bytes.extend(b"\r\n");
    }
    let (size, pause) = shaped.pieces.unwrap_or((bytes.len(), Duration::ZERO));
    for piece in bytes.chunks(size) {
        io.write_all(piece).await?;
        io.flush().await?;
        tokio::time::sleep(pause).await;
    }
    // Whoever sets the framing may have set it wrong: nothing can follow.
    let framed = shaped
        .reply
        .headers
        .iter()
        .any(|(name, _)| is_framing(name));
    Ok(match shaped.end {
        End::Complete if framed => End::Close,
        end => end,
    })
}

fn is_framing(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
}

/// Status line, headers and framing, up to and with the empty line.
fn head_bytes(reply: &Reply) -> Vec<u8> {
    let reason = StatusCode::from_u16(reply.status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {:03} {reason}\r\n", reply.status).into_bytes();
    bytes.extend(lines(&reply.headers));
    let bodiless = reply.status < 200 || matches!(reply.status, 204 | 304);
    if !bodiless && !reply.headers.iter().any(|(name, _)| is_framing(name)) {
        if reply.trailers.is_empty() {
            bytes.extend(format!("content-length: {}\r\n", reply.body.len()).bytes());
        } else {
            bytes.extend(b"transfer-encoding: chunked\r\n");
        }
    }
    bytes.extend(b"\r\n");
    bytes
}

fn lines(headers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.extend([name.as_slice(), b": ", value, b"\r\n"].concat());
    }
    bytes
}
