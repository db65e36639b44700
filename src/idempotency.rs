//! The caller's idempotency key, and the key that a provider gets for it.

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid, Variant};

use crate::caller::CallerName;
use crate::guard::Digest;

/// The longest key that is taken, in characters.
const MAX_LENGTH: usize = 255;

/// The identity of a caller's `Idempotency-Key`: 1 to 255 visible ASCII characters, a UUID of any
/// version in lower case.
///
/// It is made once, where the header (or a look-up's `key`) is read, and nothing else ever sees the
/// text as it was written: the guard, the provider's key and look-ups cannot be of two minds about
/// what one key is.
///
/// Where the configuration says who calls, each caller has keys of its own: one key of two callers
/// is two refunds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    text: String,
    caller: Option<CallerName>,
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFault {
    /// The header is not there.
    Missing,
    /// The header is there twice, empty, too long, or holds something else than visible ASCII.
    Invalid,
}

impl IdempotencyKey {
    /// Reads the values of all `Idempotency-Key` headers: bare or as a quoted string of RFC 9651,
    /// which are one key.
    pub fn from_header<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Self, KeyFault> {
        let value = values.next().ok_or(KeyFault::Missing)?;
        if values.next().is_some() {
            return Err(KeyFault::Invalid);
        }
        let text = match value.strip_prefix(b"\"") {
            Some(rest) => unquote(rest).ok_or(KeyFault::Invalid)?,
            None => value.to_vec(),
        };
        if text.is_empty() || text.len() > MAX_LENGTH || !text.iter().all(u8::is_ascii_graphic) {
            return Err(KeyFault::Invalid);
        }
        let mut text = String::from_utf8(text).map_err(|_| KeyFault::Invalid)?;
        if is_uuid(&text) {
            text.make_ascii_lowercase();
        }
        Ok(IdempotencyKey { text, caller: None })
    }

    /// The same key as this caller's; none where the configuration does not tell callers apart.
    pub fn of_caller(self, caller: Option<CallerName>) -> Self {
        IdempotencyKey { caller, ..self }
    }

    /// The identity itself. It is the caller's: never for a log.
    pub fn identity(&self) -> &str {
        &self.text
    }

    /// The name of this key in the guard, which keeps no key's text.
    pub fn digest(&self) -> Digest {
        match &self.caller {
            None => Digest::of([self.text.as_bytes()]),
            Some(caller) => Digest::of([caller.as_str().as_bytes(), self.text.as_bytes()]),
        }
    }

    /// The key for the provider configured under `provider`: the caller's own where it is a UUID of
    /// version 4 (or of version 7, where `takes_v7`), else one made from it, always the same.
    /// Where callers are told apart it is always made, since two of them could choose one UUID.
    pub fn for_provider(&self, provider: &str, takes_v7: bool) -> ProviderKey {
        ProviderKey(self.as_uuid(takes_v7).unwrap_or_else(|| {
            let mut hash = Sha256::new().chain_update(provider).chain_update([0]);
            if let Some(caller) = &self.caller {
                hash = hash.chain_update(caller.as_str()).chain_update([0]);
            }
            let digest = hash.chain_update(&self.text).finalize();
            let mut bytes = [0; 16];
            bytes
                .iter_mut()
                .zip(digest)
                .for_each(|(byte, of)| *byte = of);
            Builder::from_random_bytes(bytes).into_uuid()
        }))
    }

    fn as_uuid(&self, takes_v7: bool) -> Option<Uuid> {
        if self.caller.is_some() {
            return None;
        }
        let uuid = Uuid::try_parse(&self.text)
            .ok()
            .filter(|_| is_uuid(&self.text))?;
        let version = uuid.get_version_num();
        (uuid.get_variant() == Variant::RFC4122 && (version == 4 || version == 7 && takes_v7))
            .then_some(uuid)
    }
}

/// Whether a text is a UUID as RFC 9562 writes it: 8-4-4-4-12 hexadecimal digits, in any case.
/// (`Uuid` also reads braces, URNs and 32 bare digits; those are other keys.)
fn is_uuid(text: &str) -> bool {
    text.len() == uuid::fmt::Hyphenated::LENGTH && Uuid::try_parse(text).is_ok()
}

/// The idempotency key of one refund at its provider: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderKey(Uuid);

impl ProviderKey {
    /// The UUID in lower case with hyphens.
    pub fn text(self) -> String {
        self.0.hyphenated().to_string()
    }
}

/// The text of a quoted string after its opening quote.
fn unquote(rest: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(rest.len());
    let mut bytes = rest.iter();
    loop {
        match bytes.next()? {
            b'"' => return bytes.next().is_none().then_some(text),
            b'\\' => match bytes.next()? {
                escaped @ (b'"' | b'\\') => text.push(*escaped),
                _ => return None,
            },
            byte => text.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&[u8]]) -> Result<String, KeyFault> {
        IdempotencyKey::from_header(values.iter().copied()).map(|key| key.text)
    }

    #[test]
    fn bare_and_quoted_are_one_key() {
        assert_eq!(key(&[b"k-1"]).unwrap(), "k-1");
        assert_eq!(key(&[b"\"k-1\""]).unwrap(), "k-1");
        assert_eq!(key(&[br#""a\"b\\c""#]).unwrap(), r#"a"b\c"#);
        assert_eq!(key(&[&[b'k'; 255]]).unwrap().len(), 255);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(key(&[]), Err(KeyFault::Missing));
        for value in [
            &b""[..],
            b"\"\"",
            b"\"k",
            b"\"k\"x",
            b"\"k\\x\"",
            b"\"k\\",
            b"a b",
            b"\"a b\"",
            b"k\xc3\xa9",
            b"k\x7f",
            &[b'k'; 256],
        ] {
            assert_eq!(key(&[value]), Err(KeyFault::Invalid), "{value:?}");
        }
        assert_eq!(key(&[b"k", b"k"]), Err(KeyFault::Invalid));
    }

    #[test]
    fn a_uuid_is_kept_and_anything_else_derived() {
        let for_provider = |key: &str, takes_v7| {
            let key = IdempotencyKey {
                text: key.into(),
                caller: None,
            };
            key.for_provider("bog", takes_v7).text()
        };
        let v4 = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let v7 = "0191f5a7-44d3-7430-8739-2d80821416bf";
        assert_eq!(for_provider(v4, false), v4);
        assert_eq!(for_provider(&v4.to_uppercase(), false), v4);
        assert_eq!(for_provider(v7, true), v7);
        for other in [v7, &v4.replace('-', ""), &format!("{{{v4}}}"), "k-1"] {
            let derived = for_provider(other, false);
            assert_ne!(derived, other);
            assert_eq!(derived, for_provider(other, false));
            let uuid = Uuid::try_parse(&derived).unwrap();
            assert_eq!(uuid.get_version_num(), 4);
            assert_eq!(uuid.get_variant(), Variant::RFC4122);
        }
    }

    #[test]
    fn the_derived_key_is_the_contracts() {
        // From `printf 'bog\0k-1' | sha256sum`, with the version and variant bits set by hand.
        let key = IdempotencyKey::from_header([&b"k-1"[..]].into_iter()).unwrap();
        let derived = key.for_provider("bog", false);
        assert_eq!(derived.text(), "9595f64c-6305-4965-aaf2-bd52f7343244");
        // From `printf 'bog\0shop\0k-1' | sha256sum`, likewise.
        let caller = CallerName::from_property(Some(b"shop".to_vec()));
        let of_caller = key.clone().of_caller(caller);
        let derived = of_caller.for_provider("bog", false);
        assert_eq!(derived.text(), "05b3c2a2-03c1-4042-bc71-640b5bca4360");
        assert_ne!(of_caller.digest(), key.digest());
    }
}
