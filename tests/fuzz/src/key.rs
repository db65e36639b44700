//! The caller's key and the provider's: what is one key, what is none, and what a provider gets for
//! it.
//!
//! An input is one byte (the provider, and whether it takes version 7) and the values of all
//! `Idempotency-Key` headers with a zero byte between them.

use refund_filter::idempotency::{IdempotencyKey, KeyFault};

use core_testbed::oracles::{derived_key, quoted};

const PROVIDERS: [&str; 5] = ["bog", "moyasar", "begateway", "bbmsl", "B-o_g"];

/// The identity of the one key that stands in these values, by the contract: 1 to 255 visible ASCII
/// characters, bare or quoted, and in small letters where it has the form of a UUID.
pub fn read(values: &[&[u8]]) -> Result<String, KeyFault> {
    let [value] = values else {
        return Err(match values {
            [] => KeyFault::Missing,
            _ => KeyFault::Invalid,
        });
    };
    let value = std::str::from_utf8(value).map_err(|_| KeyFault::Invalid)?;
    let key = if value.starts_with('"') {
        // Whatever this makes of it: it is the key only if that, quoted, is the value again.
        let inner = value.get(1..value.len().max(2) - 1).unwrap_or_default();
        let key = inner
            .replace("\\\\", "\0")
            .replace("\\\"", "\"")
            .replace('\0', "\\");
        (quoted(&key) == value).then_some(key)
    } else {
        Some(value.to_owned())
    };
    key.filter(|key| {
        (1..=255).contains(&key.len()) && key.bytes().all(|b| (0x21..0x7f).contains(&b))
    })
    .map(|key| match has_the_form_of_a_uuid(&key) {
        true => key.to_ascii_lowercase(),
        false => key,
    })
    .ok_or(KeyFault::Invalid)
}

/// 8-4-4-4-12 hexadecimal digits, of whatever version.
fn has_the_form_of_a_uuid(key: &str) -> bool {
    key.len() == 36
        && key.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        })
}

/// What the provider of this name gets for a key of this identity.
pub fn for_provider(provider: &str, key: &str, takes_v7: bool) -> String {
    let version = key.chars().nth(14);
    let variant = key.chars().nth(19).is_some_and(|c| "89ab".contains(c));
    let shape = has_the_form_of_a_uuid(key)
        && variant
        && (version == Some('4') || version == Some('7') && takes_v7);
    if shape {
        key.to_owned()
    } else {
        derived_key(provider, key)
    }
}

pub fn check(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else {
        return;
    };
    let provider = PROVIDERS[usize::from(which >> 1) % PROVIDERS.len()];
    let takes_v7 = which & 1 == 1;
    let values: Vec<&[u8]> = match which {
        0xff => Vec::new(),
        _ => rest.split(|b| *b == 0).collect(),
    };
    let is = IdempotencyKey::from_header(values.iter().copied());
    assert_eq!(
        is.as_ref()
            .map(|key| key.identity().to_owned())
            .map_err(|fault| *fault),
        read(&values)
    );
    let Ok(key) = is else { return };
    let text = key.identity();

    // Bare and quoted are one key.
    let in_quotes = quoted(text);
    let again = IdempotencyKey::from_header([in_quotes.as_bytes()].into_iter());
    assert_eq!(again.as_ref(), Ok(&key));
    // As are a UUID's spellings, and no two others.
    let capitals = quoted(&text.to_ascii_uppercase());
    let capitals = IdempotencyKey::from_header([capitals.as_bytes()].into_iter());
    let is_one = text == text.to_ascii_uppercase() || has_the_form_of_a_uuid(text);
    let capitals = capitals.expect("the same length and letters");
    assert_eq!(capitals == key, is_one);
    assert_eq!(capitals.digest() == key.digest(), is_one);

    let sent = key.for_provider(provider, takes_v7).text();
    assert_eq!(sent, for_provider(provider, text, takes_v7));
    assert_eq!(sent, key.for_provider(provider, takes_v7).text());
    let version = sent.as_bytes()[14];
    assert!(version == b'4' || version == b'7' && takes_v7, "{sent}");
    assert!(b"89ab".contains(&sent.as_bytes()[19]), "{sent}");
    let form = sent.char_indices().all(|(at, c)| match at {
        8 | 13 | 18 | 23 => c == '-',
        _ => matches!(c, '0'..='9' | 'a'..='f'),
    });
    assert!(form && sent.len() == 36, "{sent}");

    // What is no UUID of the caller's is another one at every provider.
    if sent != text {
        for other in PROVIDERS.into_iter().filter(|other| *other != provider) {
            assert_ne!(sent, key.for_provider(other, takes_v7).text());
        }
    }
}
