//! Listeners, connections, and the faults on the wire.
//!
//! A request is read by a library (hyper for HTTP/1.1, h2 for HTTP/2), answered by an
//! [`Application`], and the reply, bent by its [`Fault`], becomes a [`Plan`] that the connection
//! carries out. On HTTP/1 a plan that hyper would not send is written to the socket by hand, while
//! hyper waits for a reply that never comes; on HTTP/2 it is made of h2's own frames.

mod http1;
mod http2;

use std::any::Any;
use std::collections::{HashSet, VecDeque};
use std::io::{self, Write as _};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::credentials::Uses;
use crate::exchange::pairs;
use crate::json::Json;
use crate::{
    Alpn, Exchange, Fault, Provider, Received, Refunded, Reply, TokenLifetime, lock, sandbox,
};

/// A refund call is a few hundred bytes.
const LARGEST_BODY: usize = 1 << 20;

/// One provider's behaviour. Knows requests and replies, no sockets.
pub(crate) trait Application: Send + Sync {
    /// The one method of the endpoint at this path (with its query). `None`: there is no endpoint.
    fn method(&self, path: &str) -> Option<&'static str>;
    /// A refusal that has nothing to do with a refund, in the provider's own shape.
    fn refusal(&self, status: u16, text: &str) -> Reply;
    /// Called before any delay: what it returns is held until the reply is ready. `Err`: refused
    /// already.
    fn enter(&self, _request: &Received) -> Result<Option<Box<dyn Any + Send>>, Reply> {
        Ok(None)
    }
    /// Processes a request, with all its effects, at once.
    fn answer(&self, request: &Received) -> Reply;
    /// What was refunded.
    fn ledger(&self) -> Vec<Refunded>;
    /// The credentials it accepts.
    fn credentials(&self) -> &dyn Uses;
    /// Ends the open refund of that identifier, or all open ones; how many there were.
    fn settle(&self, _refund: Option<&str>, _succeeded: bool) -> usize {
        0
    }
    /// Refunds without a request, and names the refund. `None` for an unknown payment, or more than
    /// is left of it.
    fn refund_by_hand(&self, _payment: &str, _minor_units: u64, _tracking: &str) -> Option<String> {
        None
    }
    /// See [`crate::Simulators::complete_after`].
    fn complete_after(&self, _look_ups: Option<u64>) {}
    /// See [`crate::Simulators::revoke_tokens`].
    fn revoke_tokens(&self) {}
    /// See [`crate::Simulators::set_token_lifetime`].
    fn set_token_lifetime(&self, _lifetime: TokenLifetime) {}
}

/// One provider, listening or not.
pub(crate) struct Endpoint {
    pub provider: Provider,
    pub host: String,
    pub any_host: bool,
    pub alpn: Alpn,
    pub application: Arc<dyn Application>,
    pub faults: Mutex<VecDeque<Fault>>,
    /// The payments of [`sandbox`] that have met their fault.
    pub met: Mutex<HashSet<String>>,
    pub log: Log,
}

/// The latest exchanges.
pub(crate) struct Log {
    kept: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    dropped: u64,
    exchanges: VecDeque<Exchange>,
}

impl Log {
    pub fn new(kept: usize) -> Log {
        Log {
            kept: kept.max(1),
            entries: Mutex::default(),
        }
    }

    pub fn exchanges(&self) -> Vec<Exchange> {
        lock(&self.entries).exchanges.iter().cloned().collect()
    }

    pub fn received(&self) -> u64 {
        let entries = lock(&self.entries);
        entries.dropped + entries.exchanges.len() as u64
    }

    /// Starts an entry with the head of a request, and gives it its number.
    fn start(&self, mut request: Received, fault: Option<Fault>) -> Received {
        let mut entries = lock(&self.entries);
        request.sequence = entries.dropped + entries.exchanges.len() as u64;
        if entries.exchanges.len() == self.kept {
            entries.exchanges.pop_front();
            entries.dropped += 1;
        }
        entries.exchanges.push_back(Exchange {
            request: request.clone(),
            fault,
            reply: None,
        });
        request
    }

    fn update(&self, sequence: u64, change: impl FnOnce(&mut Exchange)) {
        let mut entries = lock(&self.entries);
        if let Some(exchange) = sequence
            .checked_sub(entries.dropped)
            .and_then(|index| entries.exchanges.get_mut(usize::try_from(index).ok()?))
        {
            change(exchange);
        }
    }
}

/// What the connection does in answer to one request.
#[derive(Debug)]
enum Plan {
    /// Sends the reply as the library does.
    Whole(Reply),
    /// Sends the reply, then lets no more requests in.
    Drain(Reply),
    /// Sends the reply in another way.
    Shaped(Shaped),
    /// Sends half of the head, then closes.
    HalfHead(Reply),
    /// Sends nothing, then ends.
    Nothing(End),
    /// HTTP/2: RST_STREAM.
    ResetStream(u32),
    /// HTTP/2: GOAWAY.
    GoAway(u32),
}

#[derive(Debug)]
struct Shaped {
    reply: Reply,
    /// `100 Continue` goes first.
    interim: bool,
    pieces: Option<(usize, Duration)>,
    /// Only so many bytes of the body.
    cut: Option<usize>,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The exchange is over, the connection goes on.
    Complete,
    Close,
    Reset,
    /// Nothing more happens, until the other side closes.
    Stall,
}

impl Endpoint {
    /// Takes in the head of a request, and the fault it meets.
    fn arrive(&self, request: Received) -> (Received, Option<Fault>) {
        let fault = lock(&self.faults).pop_front();
        let request = self.log.start(request, fault.clone());
        (request, fault)
    }

    /// Processes a request that is there in full.
    async fn plan(self: Arc<Self>, request: Received, fault: Option<Fault>) -> Plan {
        let fault = fault.or_else(|| {
            let (payment, fault) = sandbox::fault(self.provider, &request)?;
            lock(&self.met).insert(payment).then_some(fault)
        });
        self.log.update(request.sequence, |exchange| {
            exchange.request = request.clone();
            exchange.fault.clone_from(&fault);
        });
        let normal = if fault.as_ref().is_none_or(Fault::books) {
            self.process(&request, fault.as_ref()).await
        } else {
            // Only cut replies show it.
            Reply::json(
                200,
                r#"{"message":"This reply was never meant to arrive whole."}"#,
            )
        };
        let plan = bend(normal, fault);
        let sent = match &plan {
            Plan::Whole(reply) | Plan::Drain(reply) | Plan::HalfHead(reply) => Some(reply),
            Plan::Shaped(shaped) => Some(&shaped.reply),
            Plan::Nothing(_) | Plan::ResetStream(_) | Plan::GoAway(_) => None,
        };
        self.log
            .update(request.sequence, |exchange| exchange.reply = sent.cloned());
        plan
    }

    async fn process(&self, request: &Received, fault: Option<&Fault>) -> Reply {
        if let Some(refusal) = self.misdirected(request) {
            return refusal;
        }
        let held = match self.application.enter(request) {
            Ok(held) => held,
            Err(refusal) => return refusal,
        };
        if let Some(Fault::Delay(time)) = fault {
            tokio::time::sleep(*time).await;
        }
        let reply = self.application.answer(request);
        if let Some(Fault::DelayReply(time)) = fault {
            tokio::time::sleep(*time).await;
        }
        drop(held);
        reply
    }

    /// The checks that are the same everywhere. No page says how they are refused.
    fn misdirected(&self, request: &Received) -> Option<Reply> {
        let refusal = |status, text| Some(self.application.refusal(status, text));
        let authority = request.authority.as_deref().unwrap_or_default();
        let host = authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host);
        if !self.any_host && !host.eq_ignore_ascii_case(&self.host) {
            return refusal(421, "This host is not served here.");
        }
        let Some(method) = self.application.method(&request.path) else {
            return refusal(404, "Not found.");
        };
        if request.method != method {
            return refusal(405, "Method not allowed.").map(|reply| reply.with("allow", method));
        }
        if !request.accepts("application/json") {
            return refusal(406, "Only application/json is spoken here.");
        }
        if method == "GET" && !(request.body.is_empty() && request.trailers.is_empty()) {
            return refusal(400, "A body has no meaning here.");
        }
        None
    }

    /// Takes connections until its task is aborted; they end with it.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: TlsAcceptor) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, _)) => {
                        connections.spawn(self.clone().connection(tcp, tls.clone()));
                    }
                    // Out of file descriptors, most likely: let some be closed.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, tls: TlsAcceptor) {
        // Small pieces are to go out as such.
        let _ = tcp.set_nodelay(true);
        let reset = Arc::new(AtomicBool::new(false));
        let socket = Socket {
            tcp,
            reset: reset.clone(),
        };
        let Ok(io) = tls.accept(socket).await else {
            return;
        };
        let session = io.get_ref().1;
        let server_name = session.server_name().map(str::to_owned);
        let h2 = match session.alpn_protocol() {
            Some(protocol) => protocol == b"h2",
            None => self.alpn == Alpn::Http2,
        };
        if h2 {
            self.http2(io, server_name, &reset).await;
        } else {
            self.http1(io, server_name, &reset).await;
        }
    }
}

/// A reply that is sent whole, all at once.
fn plain(reply: Reply) -> Shaped {
    Shaped {
        reply,
        interim: false,
        pieces: None,
        cut: None,
        end: End::Complete,
    }
}

/// Applies a fault to the normal reply.
fn bend(normal: Reply, fault: Option<Fault>) -> Plan {
    let halved = |reply: Reply, end| {
        Plan::Shaped(Shaped {
            cut: Some(reply.body.len() / 2),
            end,
            ..plain(reply)
        })
    };
    match fault {
        None | Some(Fault::Delay(_) | Fault::DelayReply(_)) => Plan::Whole(normal),
        Some(Fault::Reply { reply, .. }) => Plan::Shaped(plain(reply)),
        Some(Fault::Hang { .. }) => Plan::Nothing(End::Stall),
        Some(Fault::CloseBefore | Fault::Close { .. }) => Plan::Nothing(End::Close),
        Some(Fault::Reset { .. }) => Plan::Nothing(End::Reset),
        Some(Fault::CutHeaders { .. }) => Plan::HalfHead(normal),
        Some(Fault::CutBody { .. }) => halved(normal, End::Close),
        Some(Fault::StallBody { .. }) => halved(normal, End::Stall),
        Some(Fault::Pieces { size, pause }) => Plan::Shaped(Shaped {
            pieces: Some((size.max(1), pause)),
            ..plain(normal)
        }),
        Some(Fault::Trailers(trailers)) => Plan::Shaped(plain(Reply { trailers, ..normal })),
        Some(Fault::HeaderOnly { status, .. }) => Plan::Whole(Reply::json(status, "")),
        Some(Fault::Oversize { bytes }) => Plan::Whole(altered(normal, |json| {
            json.add("padding", "x".repeat(bytes));
        })),
        Some(Fault::Gzip) => Plan::Whole(gzipped(normal)),
        Some(Fault::Continue100) => Plan::Shaped(Shaped {
            interim: true,
            ..plain(normal)
        }),
        Some(Fault::Altered { pointer, value }) => Plan::Whole(altered(normal, |json| {
            // What is no JSON goes in as a string, so that a slip in a test is seen and not lost.
            let value = value.map(|text| Json::parse(text.as_bytes()).unwrap_or(Json::Text(text)));
            json.alter(&pointer, value);
        })),
        Some(Fault::RefusedStream) => Plan::ResetStream(h2::Reason::REFUSED_STREAM.into()),
        Some(Fault::StreamReset { code, .. }) => Plan::ResetStream(code),
        Some(Fault::GoAway { code, .. }) => Plan::GoAway(code),
        Some(Fault::Drain) => Plan::Drain(normal),
    }
}

fn altered(reply: Reply, change: impl FnOnce(&mut Json)) -> Reply {
    let Some(mut json) = Json::parse(&reply.body) else {
        return reply;
    };
    change(&mut json);
    Reply {
        body: json.to_string().into(),
        ..reply
    }
}

fn gzipped(reply: Reply) -> Reply {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let Ok(body) = encoder
        .write_all(&reply.body)
        .and_then(|()| encoder.finish())
    else {
        return reply; // writing to a Vec does not fail
    };
    Reply { body, ..reply }.with("content-encoding", "gzip")
}

/// The head of a request; the body and the trailers come later.
fn head<B>(request: &Request<B>, server_name: Option<String>) -> Received {
    let uri = request.uri();
    let host = || {
        let host = request.headers().get("host")?;
        Some(String::from_utf8_lossy(host.as_bytes()).into_owned())
    };
    Received {
        sequence: 0,
        at: SystemTime::now(),
        version: request.version(),
        server_name,
        method: request.method().to_string(),
        authority: uri.authority().map(ToString::to_string).or_else(host),
        path: uri
            .path_and_query()
            .map_or_else(|| uri.to_string(), ToString::to_string),
        headers: pairs(request.headers()),
        body: Vec::new(),
        trailers: Vec::new(),
    }
}

/// A library's response head. `None` where the protocol cannot carry the status; headers it cannot
/// carry are left out.
fn response(reply: &Reply) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(reply.status).ok()?;
    *response.headers_mut() = header_map(&reply.headers);
    Some(response)
}

fn header_map(headers: &[(Vec<u8>, Vec<u8>)]) -> HeaderMap {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        })
        .collect()
}

/// A TCP stream that can be made to end with RST in place of FIN.
struct Socket {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        pin!(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        pin!(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.tcp).poll_shutdown(context)
    }
}
