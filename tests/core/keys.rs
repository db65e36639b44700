//! The caller's key and the provider's: what is one key, what is none, and what a provider gets for
//! it.

use crate::properties::cases;
use core_testbed::oracles::{derived_key as derived, quoted};
use proptest::prelude::*;
use proptest::sample::select;
use refund_filter::idempotency::{IdempotencyKey, KeyFault};

fn read(value: &[u8]) -> Result<IdempotencyKey, KeyFault> {
    IdempotencyKey::from_header([value].into_iter())
}

/// A UUID by its parts, of this version, with the variant's bits of RFC 9562.
fn uuid(version: u8) -> impl Strategy<Value = String> {
    (
        "[0-9a-f]{8}-[0-9a-f]{4}-",
        "[0-9a-f]{3}-",
        "[89ab]",
        "[0-9a-f]{3}-[0-9a-f]{12}",
    )
        .prop_map(move |(a, b, c, d)| format!("{a}{version}{b}{c}{d}"))
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn a_visible_key_is_read_as_it_is_bare_or_quoted(key in "[!-~]{1,255}") {
        let identity = shape::identity(&key);
        let in_quotes = read(quoted(&key).as_bytes()).unwrap();
        prop_assert_eq!(in_quotes.identity(), &identity);
        if !key.starts_with('"') {
            let bare = read(key.as_bytes()).unwrap();
            prop_assert_eq!(bare.identity(), &identity);
        }
    }

    #[test]
    fn whatever_the_bytes_a_key_is_visible_or_none(
        value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "[\"\\\\ -~\u{e9}\u{0}-\u{1f}]{0,20}".prop_map(String::into_bytes),
        ],
    ) {
        match read(&value) {
            Ok(key) => {
                let key = key.identity();
                prop_assert!((1..=255).contains(&key.len()));
                prop_assert!(key.bytes().all(|b| (0x21..=0x7e).contains(&b)));
                let same = |text: &str| value.eq_ignore_ascii_case(text.as_bytes());
                let exact = |text: &str| value == text.as_bytes();
                if shape::parse(key).is_some() {
                    prop_assert!(same(key) || same(&quoted(key)));
                } else {
                    prop_assert!(exact(key) || exact(&quoted(key)));
                }
            }
            Err(fault) => {
                prop_assert_eq!(fault, KeyFault::Invalid);
                let visible = value.iter().all(|b| (0x21..=0x7e).contains(b));
                let bare = (1..=255).contains(&value.len()) && !value.starts_with(b"\"");
                prop_assert!(!(visible && bare), "{:?}", value);
            }
        }
    }

    #[test]
    fn a_derived_key_is_the_contracts(key in "[!-~]{1,255}", provider in "[A-Za-z0-9_-]{1,64}", v7 in any::<bool>()) {
        let is = read(quoted(&key).as_bytes()).unwrap().for_provider(&provider, v7).text();
        prop_assume!(shape::parse(&key).is_none());
        prop_assert_eq!(&is, &derived(&provider, &key));
        prop_assert_eq!(is.len(), 36);
        prop_assert_eq!(&is[14..15], "4");
        prop_assert!("89ab".contains(&is[19..20]));
        prop_assert_eq!(is.to_lowercase(), is);
    }

    #[test]
    fn other_names_and_other_keys_are_other_uuids(
        (a, b) in ("[!-~]{1,40}", "[!-~]{1,40}"),
        (one, two) in ("[A-Za-z0-9_-]{1,20}", "[A-Za-z0-9_-]{1,20}"),
    ) {
        let uuid = |provider: &str, key: &str| {
            read(quoted(key).as_bytes()).unwrap().for_provider(provider, false).text()
        };
        prop_assume!(shape::parse(&a).is_none() && shape::parse(&b).is_none());
        prop_assert_eq!(uuid(&one, &a) == uuid(&one, &b), a == b);
        prop_assert_eq!(uuid(&one, &a) == uuid(&two, &a), one == two);
        // What is moved over the border between name and key makes another key.
        let moved = format!("{one}{a}");
        for at in 1..moved.len() {
            let (name, key) = moved.split_at(at);
            prop_assert_eq!(uuid(name, key) == uuid(&one, &a), name == one);
        }
    }

    #[test]
    fn a_v4_goes_out_as_it_is_and_in_lower_case(v4 in uuid(4), upper in any::<bool>(), v7_too in any::<bool>(), quote in any::<bool>()) {
        let mut key = if upper { v4.to_uppercase() } else { v4.clone() };
        if quote {
            key = quoted(&key);
        }
        let key = read(key.as_bytes()).unwrap();
        prop_assert_eq!(key.for_provider("bog", v7_too).text(), v4.clone());
        prop_assert_eq!(key.for_provider("another", v7_too).text(), v4);
    }

    #[test]
    fn a_v7_goes_out_where_the_provider_takes_it(v7 in uuid(7)) {
        let key = read(v7.to_uppercase().as_bytes()).unwrap();
        prop_assert_eq!(key.for_provider("moyasar", true).text(), v7.clone());
        // The identity's, not the text's: else a UUID in capitals would be two refunds at the provider.
        prop_assert_eq!(key.for_provider("bog", false).text(), derived("bog", &v7));
    }

    #[test]
    fn a_uuid_of_any_version_is_one_key_in_every_spelling(
        version in 0u8..16, parts in uuid(4), variant in select(vec!['0', '4', '8', '9', 'a', 'b', 'c', 'f']),
        capitals in proptest::collection::vec(any::<bool>(), 36), quote in any::<bool>(), v7_too in any::<bool>(),
    ) {
        let mut lower = parts;
        lower.replace_range(14..15, &format!("{version:x}"));
        lower.replace_range(19..20, &variant.to_string());
        let spelt = |c: char, capital: bool| if capital { c.to_ascii_uppercase() } else { c };
        let mixed: String = lower.chars().zip(capitals).map(|(c, capital)| spelt(c, capital)).collect();
        let one = read(lower.as_bytes()).unwrap();
        let other = if quote { quoted(&mixed) } else { mixed };
        let other = read(other.as_bytes()).unwrap();
        prop_assert_eq!(one.digest(), other.digest());
        for provider in ["bog", "moyasar", "begateway", "bbmsl"] {
            prop_assert_eq!(one.for_provider(provider, v7_too), other.for_provider(provider, v7_too));
        }
    }

    #[test]
    fn no_other_uuid_goes_out_as_it_is(
        version in select(vec![0, 1, 2, 3, 5, 6, 8, 9]), parts in uuid(4), variant in select(vec!['0', '4', '7', 'c', 'e', 'f']),
    ) {
        let mut other = parts.clone();
        other.replace_range(14..15, &version.to_string());
        let mut strange = parts.clone();
        strange.replace_range(19..20, &variant.to_string());
        let mut v7 = strange.clone();
        v7.replace_range(14..15, "7");
        for key in [other, strange, v7, format!("{{{parts}}}"), format!("urn:uuid:{parts}"), parts.replace('-', "")] {
            let is = read(key.as_bytes()).unwrap().for_provider("moyasar", true).text();
            prop_assert_eq!(is, derived("moyasar", &key), "{}", key);
        }
    }
}

/// The hyphenated form, which passes or may pass as it is.
mod shape {
    pub fn parse(key: &str) -> Option<()> {
        let shape = key.len() == 36
            && key.char_indices().all(|(at, c)| match at {
                8 | 13 | 18 | 23 => c == '-',
                _ => c.is_ascii_hexdigit(),
            });
        shape.then_some(())
    }

    /// The contract: a UUID of any version is the same in upper and lower case, every other key is
    /// compared byte for byte.
    pub fn identity(key: &str) -> String {
        match parse(key) {
            Some(()) => key.to_lowercase(),
            None => key.to_owned(),
        }
    }
}

#[test]
fn what_stands_twice_or_not_at_all_is_no_key() {
    let read = |values: &[&[u8]]| IdempotencyKey::from_header(values.iter().copied());
    assert_eq!(read(&[]), Err(KeyFault::Missing));
    assert_eq!(read(&[b""]), Err(KeyFault::Invalid));
    assert_eq!(read(&[b"k", b"k"]), Err(KeyFault::Invalid));
    assert_eq!(read(&[b"k", b""]), Err(KeyFault::Invalid));
    // Envoy may join two headers of one name.
    assert!(read(&[b"k, k"]).is_err());
}

#[test]
fn length_is_counted_without_the_quotes() {
    assert_eq!(read(&[b'k'; 255]).unwrap().identity().len(), 255);
    assert_eq!(read(&[b'k'; 256]), Err(KeyFault::Invalid));
    assert_eq!(
        read(quoted(&"k".repeat(255)).as_bytes())
            .unwrap()
            .identity()
            .len(),
        255
    );
    assert_eq!(
        read(quoted(&"\\".repeat(255)).as_bytes())
            .unwrap()
            .identity()
            .len(),
        255
    );
    assert!(read(quoted(&"k".repeat(256)).as_bytes()).is_err());
}

#[test]
fn the_formula_is_pinned_by_values_from_outside() {
    // printf 'bog\0k-1' | sha256sum, with the version and variant bits set by hand.
    let uuid = |provider: &str, key: &str| {
        read(key.as_bytes())
            .unwrap()
            .for_provider(provider, false)
            .text()
    };
    assert_eq!(uuid("bog", "k-1"), "9595f64c-6305-4965-aaf2-bd52f7343244");
    assert_eq!(
        uuid("begateway", "k-1"),
        "a4c1e3b0-5e8f-4c98-8365-ed22d6a25f6b"
    );
}

/// Two spellings of one UUID are one key at the provider, so they are one to the guard.
#[test]
fn a_uuid_is_one_key_however_it_is_spelt() {
    let digest = |text: &str| {
        IdempotencyKey::from_header([text.as_bytes()].into_iter())
            .unwrap()
            .digest()
    };
    let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
    assert_eq!(digest(uuid), digest(&uuid.to_uppercase()));
    assert_ne!(digest("k-a"), digest("K-A"));
    assert_ne!(digest(uuid), digest(&uuid.replace('-', "")));
}
