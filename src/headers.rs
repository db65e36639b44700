//! Header maps as bytes: names and values need not be UTF-8, and proxy-wasm hands them over in one
//! piece.

use std::borrow::Cow;
use std::fmt;

/// A header map in its order. Names are in lower case, as Envoy keeps them. Values may be
/// credentials: `Debug` shows names alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers<'a>(Vec<Pair<'a>>);

type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, _)| String::from_utf8_lossy(name));
        f.debug_list().entries(names).finish()
    }
}

impl<'a> Headers<'a> {
    /// Reads the proxy-wasm form: the number of pairs, all sizes (32 bits, little-endian), then
    /// each name and value with a zero byte after it.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut sizes = bytes;
        let count = usize::try_from(take_u32(&mut sizes)?).ok()?;
        // A count that the bytes cannot hold is not worth an allocation.
        let mut rest = sizes.get(count.checked_mul(8)?..)?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, value) = (take_u32(&mut sizes)?, take_u32(&mut sizes)?);
            pairs.push((
                Cow::Borrowed(take_bytes(&mut rest, name)?),
                Cow::Borrowed(take_bytes(&mut rest, value)?),
            ));
        }
        Some(Headers(pairs))
    }

    /// Writes the proxy-wasm form.
    pub fn encode(&self) -> Vec<u8> {
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut out = Vec::with_capacity(1024);
        out.extend(
            u32::try_from(self.0.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        for (name, value) in &self.0 {
            out.extend(size(name));
            out.extend(size(value));
        }
        for (name, value) in &self.0 {
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(value);
            out.push(0);
        }
        out
    }

    /// Adds a header.
    pub fn push(&mut self, name: impl Into<Cow<'a, [u8]>>, value: impl Into<Cow<'a, [u8]>>) {
        self.0.push((name.into(), value.into()));
    }

    /// Adds all of another map.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Adds a header that is always the same.
    pub fn fixed(&mut self, name: &'static str, value: &'static str) {
        self.push(name.as_bytes(), value.as_bytes());
    }

    /// Adds a header of text.
    pub fn text(&mut self, name: &'static str, value: String) {
        self.push(name.as_bytes(), value.into_bytes());
    }

    /// All values under a name, in their order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0
            .iter()
            .filter(move |(known, _)| known.as_ref() == name.as_bytes())
            .map(|(_, value)| value.as_ref())
    }

    /// The first value under a name.
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// All headers in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (four, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*four))
}

fn take_bytes<'a>(bytes: &mut &'a [u8], length: u32) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest.strip_prefix(&[0])?;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_whatever_the_bytes() {
        let mut headers = Headers::default();
        headers.push(&b":path"[..], &b"/v1/refunds"[..]);
        headers.push(&b"x"[..], &b"\xff\x00\xfe"[..]);
        headers.push(&b"x"[..], &b""[..]);
        let bytes = headers.encode();
        let read = Headers::decode(&bytes).unwrap();
        assert_eq!(read, headers);
        assert_eq!(read.all("x").count(), 2);
    }

    #[test]
    fn lengths_that_lie_are_no_map() {
        let mut headers = Headers::default();
        headers.push(&b"a"[..], &b"b"[..]);
        let bytes = headers.encode();
        for end in 0..bytes.len() {
            assert_eq!(Headers::decode(&bytes[..end]), None, "{end}");
        }
        assert_eq!(Headers::decode(&[0xff; 64]), None);
    }
}
