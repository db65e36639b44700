//! What came in and what went out, byte for byte.

use std::time::SystemTime;

use http::{HeaderMap, Version};

use crate::Fault;
use crate::json::Json;

/// One request as it was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// Counts from 0 in the order of arrival at this provider.
    pub sequence: u64,
    /// When its head had been read.
    pub at: SystemTime,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// The name asked for in the TLS handshake (SNI).
    pub server_name: Option<String>,
    /// As written.
    pub method: String,
    /// `:authority`, or on HTTP/1 the `host` header.
    pub authority: Option<String>,
    /// Path and query, as written.
    pub path: String,
    /// Names in lower case, values as bytes, in order of first appearance. HTTP/2's pseudo headers
    /// are the fields above.
    pub headers: Vec<(String, Vec<u8>)>,
    /// All of the body, without the framing. Empty where the connection was closed before it was
    /// read.
    pub body: Vec<u8>,
    /// Like `headers`; empty where there are none.
    pub trailers: Vec<(String, Vec<u8>)>,
}

impl Received {
    /// All values of a header, by its name in lower case.
    pub fn headers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_slice())
    }

    /// The value of a header that may be there once. `Err` where it is there twice, or not text.
    pub(crate) fn only<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, ()> {
        let mut values = self.headers_named(name);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => std::str::from_utf8(value).map(Some).map_err(|_| ()),
            (Some(_), Some(_)) => Err(()),
        }
    }

    /// Whether the one content type is `wanted`, alone or with `charset=utf-8`.
    pub(crate) fn content_type_is(&self, wanted: &str) -> bool {
        let Ok(Some(value)) = self.only("content-type") else {
            return false;
        };
        let mut parts = value.split(';').map(str::trim);
        parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case(wanted))
            && parts.all(|parameter| parameter.eq_ignore_ascii_case("charset=utf-8"))
    }

    /// Whether `wanted` (`type/subtype`) may be answered, by RFC 9110, section 12.5.1: anything
    /// may, where no header says otherwise. A weight of zero is not looked for.
    pub(crate) fn accepts(&self, wanted: &str) -> bool {
        let any = wanted
            .split_once('/')
            .map(|(kind, _)| format!("{kind}/*"))
            .unwrap_or_default();
        let mut values = self.headers_named("accept").peekable();
        values.peek().is_none()
            || values
                .filter_map(|value| std::str::from_utf8(value).ok())
                .flat_map(|value| value.split(','))
                .filter_map(|range| range.split(';').next())
                .map(str::trim)
                .any(|range| {
                    range == "*/*"
                        || range.eq_ignore_ascii_case(wanted)
                        || range.eq_ignore_ascii_case(&any)
                })
    }

    /// The credentials after an authorization scheme, where there is exactly one such header.
    pub(crate) fn authorization(&self, scheme: &str) -> Option<&str> {
        let (named, credentials) = self.only("authorization").ok()??.split_once(' ')?;
        named.eq_ignore_ascii_case(scheme).then_some(credentials)
    }

    /// The name and the secret of HTTP Basic (RFC 7617).
    pub(crate) fn basic(&self) -> Option<(String, String)> {
        use base64::prelude::{BASE64_STANDARD, Engine as _};

        let pair = BASE64_STANDARD.decode(self.authorization("basic")?).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        let (name, secret) = pair.split_once(':')?;
        Some((name.to_owned(), secret.to_owned()))
    }
}

/// One reply: the one that was sent, or, for [`Fault::Reply`], the one to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Names and values are bytes, so that a value need not be UTF-8. The framing
    /// (`content-length`, `transfer-encoding`) is added on the wire, unless it is here.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// Without the framing.
    pub body: Vec<u8>,
    /// Sent after the body; on HTTP/1 the body is chunked then.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Reply {
    /// A reply of these bytes and no header but the content type `application/json`.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status,
            headers: vec![(b"content-type".to_vec(), b"application/json".to_vec())],
            body: body.into(),
            trailers: Vec::new(),
        }
    }

    pub(crate) fn of(status: u16, body: &Json) -> Reply {
        Reply::json(status, body.to_string())
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A request, what was done to it, and the reply.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What came in.
    pub request: Received,
    /// The fault it met.
    pub fault: Option<Fault>,
    /// What went out, or would have gone out where a fault cut it off. `None`: nothing was sent
    /// (yet).
    pub reply: Option<Reply>,
}

pub(crate) fn pairs(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}
