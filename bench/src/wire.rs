//! As much of HTTP/1.1 as the load generator and the upstream need. Both share a core with nothing to spare, so they are
//! written on `httparse` alone: a full client costs several times as much as what is measured.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What a message is, once it is whole.
pub struct Message {
    /// A request's path; empty for a response.
    pub path: String,
    /// A response's status; 0 for a request.
    pub status: u16,
    /// Where the body begins in the buffer.
    pub body: usize,
    /// Where the message ends.
    pub end: usize,
}

/// Which of the two a peer sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a server reads.
    Request,
    /// What a client reads.
    Response,
}

/// Reads one message to its end; none where the peer has closed the connection in between two. `buffer` may hold what was read
/// beyond the one before.
pub async fn read(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    kind: Kind,
) -> Result<Option<Message>> {
    loop {
        if !buffer.is_empty()
            && let Some(message) = parse(buffer, kind)?
        {
            return Ok(Some(message));
        }
        if stream.read_buf(buffer).await? == 0 {
            ensure!(buffer.is_empty(), "the connection ended in a message");
            return Ok(None);
        }
    }
}

fn parse(buffer: &[u8], kind: Kind) -> Result<Option<Message>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let (head, path, status, headers) = match kind {
        Kind::Request => {
            let mut request = httparse::Request::new(&mut headers);
            let httparse::Status::Complete(head) = request.parse(buffer)? else {
                return Ok(None);
            };
            let path = request.path.unwrap_or_default().to_owned();
            (head, path, 0, request.headers)
        }
        Kind::Response => {
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = response.parse(buffer)? else {
                return Ok(None);
            };
            let status = response.code.unwrap_or_default();
            (head, String::new(), status, response.headers)
        }
    };
    let value = |name: &str| {
        let mut found = headers.iter();
        let header = found.find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(header.value)
    };
    let end = if let Some(length) = value("content-length") {
        head + std::str::from_utf8(length)?
            .parse::<usize>()
            .context("content-length")?
    } else if value("transfer-encoding").is_some() {
        match end_of_chunks(buffer, head)? {
            Some(end) => end,
            None => return Ok(None),
        }
    } else {
        head
    };
    Ok((buffer.len() >= end).then_some(Message {
        path,
        status,
        body: head,
        end,
    }))
}

/// The end of a chunked body without trailers.
fn end_of_chunks(buffer: &[u8], mut at: usize) -> Result<Option<usize>> {
    loop {
        match httparse::parse_chunk_size(&buffer[at..]) {
            Ok(httparse::Status::Complete((head, size))) => {
                at += head + usize::try_from(size)? + 2;
                if at > buffer.len() {
                    return Ok(None);
                }
                if size == 0 {
                    return Ok(Some(at));
                }
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => bail!("a chunk without a size"),
        }
    }
}

/// Whether a text stands somewhere in these bytes.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    find(bytes, text).is_some()
}

/// Where a text stands in these bytes.
pub fn find(bytes: &[u8], text: &str) -> Option<usize> {
    let text = text.as_bytes();
    bytes.windows(text.len()).position(|window| window == text)
}
