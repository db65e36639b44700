//! Faults, as data: what goes wrong with one exchange.

use std::time::Duration;

use crate::Reply;

/// What goes wrong with the next request. Queued with [`crate::Simulators::next_fault`]; each
/// request takes one.
///
/// `booked`: whether the request is processed before the fault acts, so that a good refund is in
/// the ledger and an idempotent replay finds it. Where it is `false`, the request has no effect
/// whatever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This reply, whatever came in. Not even its headers need to be valid on HTTP/1; on HTTP/2 a
    /// header that the protocol cannot carry is left out.
    Reply {
        /// What is sent.
        reply: Reply,
        /// See [`Fault`].
        booked: bool,
    },
    /// Waits, then processes and replies as ever. Moyasar counts the request as in flight all the
    /// while.
    Delay(Duration),
    /// Processes, waits, then replies as ever. Moyasar counts the request as in flight all the
    /// while.
    DelayReply(Duration),
    /// Never answers; the connection stays open.
    Hang {
        /// See [`Fault`].
        booked: bool,
    },
    /// Closes the connection as soon as the request's head is there. Never booked.
    CloseBefore,
    /// Closes the connection without a byte of reply.
    Close {
        /// See [`Fault`].
        booked: bool,
    },
    /// Resets the TCP connection (RST, by `SO_LINGER` 0) without a byte of reply.
    Reset {
        /// See [`Fault`].
        booked: bool,
    },
    /// Sends half of the reply's head, then closes. On HTTP/2, where a head comes whole or not at
    /// all, like `Close`.
    CutHeaders {
        /// See [`Fault`].
        booked: bool,
    },
    /// Sends the head, with the length of the whole body, and half of the body, then closes.
    CutBody {
        /// See [`Fault`].
        booked: bool,
    },
    /// Sends the head and half of the body, then nothing more; the connection stays open.
    StallBody {
        /// See [`Fault`].
        booked: bool,
    },
    /// The normal reply in pieces: on HTTP/1 of the bytes from the status line on, on HTTP/2 of the
    /// body.
    Pieces {
        /// Bytes in a piece, at least 1.
        size: usize,
        /// Between two pieces.
        pause: Duration,
    },
    /// The normal reply, ending with these trailers.
    Trailers(Vec<(Vec<u8>, Vec<u8>)>),
    /// A reply of a status and the content type, without a body.
    HeaderOnly {
        /// HTTP status.
        status: u16,
        /// See [`Fault`].
        booked: bool,
    },
    /// The normal reply, still JSON, with a member `padding` that makes its body larger than this.
    Oversize {
        /// The body is longer than this.
        bytes: usize,
    },
    /// The normal reply compressed, with `content-encoding: gzip`.
    Gzip,
    /// The normal reply after an interim `100 Continue`.
    Continue100,
    /// The normal reply with one JSON member replaced, added or removed.
    Altered {
        /// JSON Pointer (RFC 6901), for example `/transaction/amount`.
        pointer: String,
        /// JSON text; `None` removes the member.
        value: Option<String>,
    },
    /// HTTP/2: resets the stream with REFUSED_STREAM, which says that nothing was processed. Never
    /// booked. On HTTP/1 like `CloseBefore`.
    RefusedStream,
    /// HTTP/2: resets the stream in place of a reply. On HTTP/1 like `Close`.
    StreamReset {
        /// The error code of RFC 9113, section 7: 2 is INTERNAL_ERROR, 8 is CANCEL.
        code: u32,
        /// See [`Fault`].
        booked: bool,
    },
    /// HTTP/2: GOAWAY in place of a reply, with this stream among the processed, then the
    /// connection ends. On HTTP/1 like `Close`.
    GoAway {
        /// The error code of RFC 9113, section 7.
        code: u32,
        /// See [`Fault`].
        booked: bool,
    },
    /// The normal reply, and no more requests on this connection: a graceful GOAWAY, on HTTP/1
    /// `connection: close`.
    Drain,
}

impl Fault {
    /// Whether the request is processed, with its effects.
    pub(crate) fn books(&self) -> bool {
        match self {
            Fault::Reply { booked, .. }
            | Fault::Hang { booked }
            | Fault::Close { booked }
            | Fault::Reset { booked }
            | Fault::CutHeaders { booked }
            | Fault::CutBody { booked }
            | Fault::StallBody { booked }
            | Fault::HeaderOnly { booked, .. }
            | Fault::StreamReset { booked, .. }
            | Fault::GoAway { booked, .. } => *booked,
            Fault::CloseBefore | Fault::RefusedStream => false,
            Fault::Delay(_)
            | Fault::DelayReply(_)
            | Fault::Pieces { .. }
            | Fault::Trailers(_)
            | Fault::Oversize { .. }
            | Fault::Gzip
            | Fault::Continue100
            | Fault::Altered { .. }
            | Fault::Drain => true,
        }
    }
}
