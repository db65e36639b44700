//! HTTP/2, with the h2 crate itself: hyper would not let a stream be reset at will.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use super::{
    End, Endpoint, LARGEST_BODY, Plan, Shaped, Socket, bend, head, header_map, plain, response,
};
use crate::exchange::pairs;
use crate::{Fault, Received, Reply};

/// Long enough for what was handed to h2 to be on the wire.
const FLUSHED: Duration = Duration::from_millis(50);

/// What a stream asks of its connection.
enum Command {
    Close,
    Reset,
    GoAway(u32),
    Drain,
}

impl Endpoint {
    pub(super) async fn http2(
        self: Arc<Self>,
        io: TlsStream<Socket>,
        server_name: Option<String>,
        reset: &AtomicBool,
    ) {
        let Ok(mut connection) = h2::server::handshake(io).await else {
            return;
        };
        let (commands, mut commanded) = mpsc::unbounded_channel();
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    let Some(Ok((request, respond))) = accepted else {
                        return;
                    };
                    streams.spawn(self.clone().stream(
                        request,
                        respond,
                        server_name.clone(),
                        commands.clone(),
                    ));
                }
                Some(command) = commanded.recv() => match command {
                    Command::Close => return,
                    Command::Reset => return reset.store(true, Ordering::Relaxed),
                    Command::GoAway(code) => connection.abrupt_shutdown(code.into()),
                    Command::Drain => connection.graceful_shutdown(),
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }

    async fn stream(
        self: Arc<Self>,
        request: Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
        server_name: Option<String>,
        connection: mpsc::UnboundedSender<Command>,
    ) {
        let (mut received, fault) = self.arrive(head(&request, server_name));
        let plan = match fault {
            Some(Fault::CloseBefore) => Plan::Nothing(End::Close),
            Some(Fault::RefusedStream) => bend(Reply::default(), fault),
            fault => {
                if whole(request.into_body(), &mut received).await.is_err() {
                    return;
                }
                // As on HTTP/1.
                tokio::spawn(self.plan(received, fault))
                    .await
                    .unwrap_or(Plan::Nothing(End::Close))
            }
        };
        let end = match plan {
            Plan::Whole(reply) => sent(&mut respond, plain(reply)).await,
            Plan::Drain(reply) => {
                let end = sent(&mut respond, plain(reply)).await;
                let _ = connection.send(Command::Drain);
                end
            }
            Plan::Shaped(shaped) => sent(&mut respond, shaped).await,
            Plan::HalfHead(_) => Ok(End::Close),
            Plan::Nothing(end) => Ok(end),
            Plan::ResetStream(code) => {
                respond.send_reset(code.into());
                Ok(End::Complete)
            }
            Plan::GoAway(code) => {
                let _ = connection.send(Command::GoAway(code));
                Ok(End::Stall)
            }
        };
        let command = match end {
            Ok(End::Complete) | Err(_) => return,
            Ok(End::Close) => Command::Close,
            Ok(End::Reset) => Command::Reset,
            Ok(End::Stall) => {
                // Holds the stream open until the other side resets it.
                let _ = poll_fn(|context| respond.poll_reset(context)).await;
                return;
            }
        };
        tokio::time::sleep(FLUSHED).await;
        let _ = connection.send(command);
    }
}

/// Reads a stream to its end.
async fn whole(mut body: h2::RecvStream, received: &mut Received) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        received.body.extend_from_slice(&data);
        if received.body.len() > LARGEST_BODY {
            return Err(h2::Reason::ENHANCE_YOUR_CALM.into());
        }
    }
    received.trailers = body
        .trailers()
        .await?
        .as_ref()
        .map(pairs)
        .unwrap_or_default();
    Ok(())
}

async fn sent(
    respond: &mut h2::server::SendResponse<Bytes>,
    shaped: Shaped,
) -> Result<End, h2::Error> {
    if shaped.interim {
        let mut interim = Response::new(());
        *interim.status_mut() = StatusCode::CONTINUE;
        respond.send_informational(interim)?;
    }
    let Some(mut head) = response(&shaped.reply) else {
        return Ok(End::Close);
    };
    let body = Bytes::from(shaped.reply.body);
    if !head.headers().contains_key("content-length") && shaped.reply.trailers.is_empty() {
        head.headers_mut()
            .insert("content-length", body.len().into());
    }
    let whole = shaped.cut.is_none();
    let trailers = header_map(&shaped.reply.trailers);
    let body = body.slice(..shaped.cut.unwrap_or(body.len()));
    let ended = whole && body.is_empty() && trailers.is_empty();
    let mut stream = respond.send_response(head, ended)?;
    if ended {
        return Ok(shaped.end);
    }
    let (size, pause) = shaped.pieces.unwrap_or((body.len().max(1), Duration::ZERO));
    let mut rest = body;
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len().min(size));
        let capacity = match poll_fn(|context| stream.poll_capacity(context)).await {
            Some(capacity) => capacity?,
            None => return Ok(End::Complete), // the other side has reset the stream
        };
        let piece = rest.split_to(capacity.min(size).min(rest.len()));
        stream.send_data(piece, whole && rest.is_empty() && trailers.is_empty())?;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    if whole && !trailers.is_empty() {
        stream.send_trailers(trailers)?;
    }
    if shaped.end == End::Stall {
        // Dropping the stream would reset it.
        let _ = poll_fn(|context| stream.poll_reset(context)).await;
        return Ok(End::Complete);
    }
    Ok(shaped.end)
}
