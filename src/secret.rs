//! A secret that cannot be printed by accident, and the places from which one can come.

use std::fmt;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A credential or private key. Its `Debug` says `[redacted]`, it has no `Display`, and its memory
/// is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret's text.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    /// Takes a secret's text without the white space around it. It is not copied: every copy must
    /// be wiped, byte by byte.
    fn trimmed(mut text: String) -> Self {
        text.truncate(text.trim_end().len());
        let blank = text.len().saturating_sub(text.trim_start().len());
        text.drain(..blank);
        Secret::new(text)
    }

    /// The secret itself: for the one place that needs it, never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// The fewest characters of a secret that gets a fingerprint.
const UNGUESSABLE: usize = 20;

impl Secret {
    /// Tells it from other secrets in logs: the beginning of its SHA-256. A vendor's keys are random
    /// and long: 32 bits of a hash take nothing away from a search that has no end. A short one may
    /// be a word that somebody chose, and the fingerprint would confirm a guess: it gets none.
    pub fn fingerprint(&self) -> Option<String> {
        (self.0.len() >= UNGUESSABLE).then(|| fingerprint(self.0.as_bytes()))
    }
}

/// The beginning of the SHA-256 of some bytes, for logs.
pub fn fingerprint(bytes: &[u8]) -> String {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(bytes).into();
    format!("sha256:{:08x}", u32::from_be_bytes([a, b, c, d]))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The configuration itself, or the environment: the same for every call.
    Here(Secret),
    /// Envoy's filter state under this key, set before the filter by
    /// `envoy.filters.http.set_filter_state`.
    FilterState(String),
    /// A request header of this name, set before the filter by
    /// `envoy.filters.http.credential_injector`.
    Header(String),
}

/// The secrets that one call brings along.
pub struct Carried<'a> {
    /// Those that stood in the configured headers.
    pub headers: &'a [(String, Secret)],
    /// Reads the filter state.
    pub filter_state: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

impl SecretSource {
    /// The secret as this call brings it, without white space around it: one from a file often ends
    /// with a line break.
    ///
    /// The error is a sentence that says where it was looked for, and never what was found.
    pub fn resolve(&self, carried: &Carried<'_>) -> Result<Secret, String> {
        let (found, place) = match self {
            SecretSource::Here(secret) => return Ok(secret.clone()),
            SecretSource::FilterState(key) => (
                (carried.filter_state)(key).and_then(|bytes| String::from_utf8(bytes).ok()),
                format!("the filter state {key}"),
            ),
            SecretSource::Header(name) => (
                carried
                    .headers
                    .iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, secret)| secret.expose().to_owned()),
                format!("the request header {name}"),
            ),
        };
        match found.map(Secret::trimmed) {
            Some(secret) if !secret.expose().is_empty() => Ok(secret),
            _ => Err(format!("The gateway's secret in {place} is missing.")),
        }
    }

    /// The same for a secret that becomes part of a header, where a control character would end it.
    pub fn resolve_for_header(&self, carried: &Carried<'_>) -> Result<Secret, String> {
        let secret = self.resolve(carried)?;
        if secret.expose().chars().any(char::is_control) {
            return Err("The gateway's secret holds control characters.".to_owned());
        }
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_secret() {
        assert_eq!(format!("{:?}", Secret::new("canary".into())), "[redacted]");
        assert_eq!(
            format!("{:?}", Some(Secret::new("canary".into()))),
            "Some([redacted])"
        );
    }

    #[test]
    fn white_space_around_a_secret_is_not_part_of_it() {
        for (carried, wanted) in [
            (" \n\tkey of two words\r\n", Some("key of two words")),
            ("key", Some("key")),
            (" \n", None),
            ("", None),
        ] {
            let carried = Carried {
                headers: &[],
                filter_state: &|_| Some(carried.as_bytes().to_vec()),
            };
            let found = SecretSource::FilterState("s".into()).resolve(&carried);
            let found = found.ok();
            assert_eq!(found.as_ref().map(Secret::expose), wanted);
        }
    }
}
