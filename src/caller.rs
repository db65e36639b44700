//! Who calls, as Envoy vouches for it.

use std::fmt;
use std::rc::Rc;

/// The longest name of a caller, in bytes: a SPIFFE ID has 2,048 at most.
const MAX_LENGTH: usize = 2_048;

/// Where Envoy says who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerSource {
    /// A property by its path: the peer certificate's SAN, a JWT's claim in dynamic metadata.
    Property(Vec<String>),
    /// A filter state by its key.
    FilterState(String),
}

/// Why a property cannot tell who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSource {
    /// The path is empty, or a part of it is.
    Empty,
    /// A caller writes what stands there.
    Writable,
}

impl fmt::Display for NoSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoSource::Empty => "is no path of a property: a list of one or more names",
            NoSource::Writable => {
                "is something that a caller can write: name what Envoy vouches for, such as a certificate's SAN or a JWT's claim"
            }
        })
    }
}

impl CallerSource {
    /// A property by its path. Never one that callers write: the request itself, or the name that
    /// they ask for in TLS.
    pub fn property(path: Vec<String>) -> Result<Self, NoSource> {
        let first = path.first().map(String::as_str);
        if first.is_none() || path.iter().any(String::is_empty) {
            return Err(NoSource::Empty);
        }
        let is_sni = path
            .last()
            .is_some_and(|last| last == "requested_server_name");
        if first == Some("request") || is_sni {
            return Err(NoSource::Writable);
        }
        Ok(CallerSource::Property(path))
    }

    /// The path of the property that says it.
    pub fn path(&self) -> Vec<&str> {
        match self {
            CallerSource::Property(path) => path.iter().map(String::as_str).collect(),
            CallerSource::FilterState(key) => vec!["filter_state", key],
        }
    }
}

/// The name of a caller: text without control characters, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerName(Rc<str>);

impl CallerName {
    /// Reads what Envoy says. An empty text is no caller, and so is one that is no text: then it
    /// cannot be told.
    pub fn from_property(value: Option<Vec<u8>>) -> Option<Self> {
        let text = String::from_utf8(value?).ok()?;
        let is_name = (1..=MAX_LENGTH).contains(&text.len()) && !text.contains(char::is_control);
        is_name.then(|| CallerName(text.into()))
    }

    /// The name itself, for `callers` and the access log.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(value: &[u8]) -> Option<CallerName> {
        CallerName::from_property(Some(value.to_vec()))
    }

    #[test]
    fn what_is_no_text_is_no_caller() {
        assert_eq!(
            name(b"spiffe://corp/shop").unwrap().as_str(),
            "spiffe://corp/shop"
        );
        assert_eq!(CallerName::from_property(None), None);
        for value in [&b""[..], b"a\nb", b"a\0", b"\xff", &[b'a'; 2_049]] {
            assert_eq!(name(value), None, "{value:?}");
        }
    }

    #[test]
    fn what_callers_write_tells_no_caller() {
        let property = |path: &[&str]| {
            CallerSource::property(path.iter().map(|part| (*part).to_owned()).collect())
        };
        for path in [
            &["request", "headers", "x-user"][..],
            &["request"],
            &["connection", "requested_server_name"],
        ] {
            assert_eq!(property(path), Err(NoSource::Writable), "{path:?}");
        }
        for path in [&[][..], &[""], &["connection", ""]] {
            assert_eq!(property(path), Err(NoSource::Empty), "{path:?}");
        }
        let san = property(&["connection", "uri_san_peer_certificate"]).unwrap();
        assert_eq!(san.path(), ["connection", "uri_san_peer_certificate"]);
    }
}
