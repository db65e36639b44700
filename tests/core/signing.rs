//! Signing without a host: the bytes that go to each signer and come back, keys in time, and a key
//! that arrives with every call.

use std::cell::Cell;
use std::rc::Rc;

use crate::properties::cases;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use core_testbed::{FailingSigner, Keys, NOW, StubSigner, call_headers, golden_file, open};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::config::Config;
use refund_filter::exchange::{Callout, CalloutRequest, Environment, Opening, ReplyHead, Step};
use refund_filter::secret::{Carried, Secret, SecretSource};
use refund_filter::signing::{
    KeyRing, PrivateKey, RingKey, Signer, SignerChoice, SignerFailed, Told, Transit, TransitKeys,
    VmSigner, host_arguments, host_signature,
};
use serde_json::{Value, json};

const SECOND: &str = include_str!("../common/keys/second.pem");
const SECOND_PUBLIC: &str = include_str!("../common/keys/second.public.pem");

/// `printf TEXT | openssl dgst -sha256 -sign tests/providers/bbmsl/golden/private_key.pem | base64
/// -w0`
const BY_OPENSSL: [(&str, &str); 4] = [
    (
        "",
        "P9mIcYVvOC4zdhwx1KgTs2EC/Vr+U8kIqrql9obRz7vJx3jdoLmiLhAWfYP6uVtnrz+L7TNCXTAn4At9IJeJMZU18exiu/a0J4cAUFDNfF1jghTNv8HHzrzQqks6jS8E1ioOcmLly2bn5/i5oTWQC+pA3pr2pjt19arH8cUZJsegbwA0scXqeUda0eEzXB7o3vbUw64B1/IevKw/btj8UyNidTLiJXPdag4gX9FzrJspv9e5IRJd2E4m/dn3J5oce8gQPsWnQIevQjOzkJpU9NfYaJeFv/GsAT94Bg06s7PoNhUQYaflZIhCjAG7T3ZSArLkES32KXNVvj+6beZ/Qw==",
    ),
    (
        "a",
        "t4tYbdpAKeCQIZM45xvmMCx8B5tcKxuo0kOJ3+MUWYMh95rDcB3jCjI6R1hcXwDD6B9uz6DtIr+hNBYRcChcZ/Iv8YEXXCyq0SuzfHN5hnUIDIrH6jH54Fgs518VlZPs7LY7Ycjo818a9/IPiLkbaFpCkACqY/Rr5zhLeRhBVLVYDNx2sk0iXfLFOnHEuqdauBEbzMbrsj8BRRuhcIuQE3K5r2LqmcJu2+zm76eVEmVaYDNmHFwKaeaJKn4AFMhYKotUbiwvFzErtptaik3ke1AfRopsJl9P2PIHo5QXnQ7tFmpM/CGpZ+etAznci88Y/eDW2AW+rydnCpQZtu4grA==",
    ),
    (
        r#"{"merchantId":3,"orderId":4922,"amount":10}"#,
        "DC8I+ZdxIJYCP2ykx1SSiUighOhDSfMvjF/RKqgnjDS5+ItaPiTG99nV+70sbUEJ2jsAHpcy9WyU0fY0EVIiquw/RZV7Qa+N3PHgK+AdtZahS0ajVSRViNeF8P0kZObBxCRJjooSl838hJ7MdiKhSJnN4Mx+YzGpzrt3Tlnx6L/mS5ZokTy1gq3ImkdjY0Iyk2ogwSAnxrvipEn2KP2VXuJIJ/VxxXn8zuPLbng5XIhgQHgvz3EfZI8KHJRTWZdwWJMUqbEk0fnoCxe2vMoPPXTK7n/nwK4ZdGTqyPjiljAJ2k7sN3ERK+hb7HVWo/dOH/VtAPQLU8910yBXbekz6A==",
    ),
    (
        "ääü–€😀",
        "KmbGbCIF3HS6CivkX2mvXH4x4hkMN8CeeVlS6Ldut5JraflnHxSoNekNAnBpU/Gnhns2WxANpwoZPHYCV+88wi+zmLukL+Ap1Bpx+2xLcT0ZP3qeZ28hf30kleeMr556teodHBra9p3h+8z6w87mjoszKOamnRlvUirmLuCY7V06Jh+7aiBnKLg52mCY0raahz+6d1Wor3+E4LNbnYT+5AfY+7jELmCZwT65BgFiV0x5rTIAGwdecCsi6k/pkYf9jr/1D+I1qAyTU+7V0kxCSXANeIDLa2ohIJiwtQQf6orXrHM1mUeb81+Ysc6XKET7ht2+UG3RCtLrXiMofeU25Q==",
    ),
];

/// The golden key in its three forms, by file.
const FORMS: [&str; 3] = [
    "private_key.pem",
    "private_key.pkcs1.pem",
    "private_key.der.b64",
];

fn golden(form: &str) -> &'static str {
    golden_file(&format!("bbmsl/{form}"))
}

fn key(text: &str) -> PrivateKey {
    PrivateKey::read(&Secret::new(text.to_owned())).unwrap()
}

// ---- the signer inside the module

#[test]
fn the_module_signs_as_openssl_does_whatever_the_form_of_the_key_and_the_randomness() {
    for form in FORMS {
        let key = key(golden(form));
        for (text, expected) in BY_OPENSSL {
            for seed in [1, 2] {
                let mut signer = VmSigner(StdRng::seed_from_u64(seed));
                let signature = signer
                    .sign(SignerChoice::Vm, &key, text.as_bytes())
                    .unwrap();
                assert_eq!(STANDARD.encode(signature), expected, "{form}: {text:?}");
            }
        }
    }
}

#[test]
fn another_key_gives_another_signature() {
    let mut signer = VmSigner(StdRng::seed_from_u64(1));
    for (text, golden) in BY_OPENSSL {
        let signature = signer
            .sign(SignerChoice::Auto, &key(SECOND), text.as_bytes())
            .unwrap();
        assert_eq!(signature.len(), 256);
        assert_ne!(STANDARD.encode(signature), golden);
    }
}

// ---- what goes to the host's function `sign`, and what comes back

/// A field of bytes, by hand: the tag, the length in base 128 with the low digit first, the bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![number * 8 + 2];
    let mut length = bytes.len();
    while length >= 128 {
        message.push((length % 128 + 128) as u8);
        length /= 128;
    }
    message.push(length as u8);
    message.extend(bytes);
    message
}

/// Envoy's `SignResult`.
fn result(good: bool, signature: &[u8]) -> Vec<u8> {
    let mut message = vec![0x08, u8::from(good)];
    message.extend(field(2, signature));
    message
}

#[test]
fn the_hosts_arguments_are_the_protobuf_message_byte_for_byte() {
    // Every length of a text up to three digits of base 128.
    for length in [0, 1, 43, 127, 128, 129, 16_383, 16_384, 65_536] {
        let text = vec![b'x'; length];
        for form in FORMS {
            let given = golden(form);
            let mut expected = b"\x0a\x06sha256".to_vec();
            if form.ends_with("b64") {
                expected.extend(field(2, &STANDARD.decode(given.trim()).unwrap()));
            } else {
                expected.extend(field(4, given.trim().as_bytes()));
            }
            expected.extend(field(3, &text));
            let message = host_arguments(&key(given), &text);
            assert!(*message == expected, "{form} with {length} bytes");
        }
    }
    // And once without the help of `field`.
    let message = host_arguments(&key(golden("private_key.der.b64")), b"ab");
    let der = STANDARD
        .decode(golden("private_key.der.b64").trim())
        .unwrap();
    let (high, low) = (der.len() / 128, der.len() % 128 + 128);
    assert_eq!(
        message[..11],
        [
            0x0a, 6, b's', b'h', b'a', b'2', b'5', b'6', 0x12, low as u8, high as u8
        ]
    );
    assert_eq!(message[11..11 + der.len()], der[..]);
    assert_eq!(message[11 + der.len()..], [0x1a, 2, b'a', b'b']);
}

#[test]
fn white_space_around_a_key_does_not_reach_the_host() {
    for form in FORMS {
        let text = golden(form).trim();
        let padded = format!("\r\n {text}\r\n\r\n");
        assert!(
            *host_arguments(&key(&padded), b"t") == *host_arguments(&key(text), b"t"),
            "{form}"
        );
    }
}

#[test]
fn the_hosts_signature_is_taken_only_from_a_whole_and_good_result() {
    let key = key(golden("private_key.pem"));
    let text = b"text";
    let sign = |text: &[u8]| VmSigner(StdRng::seed_from_u64(1)).sign(SignerChoice::Vm, &key, text);
    let signature: Vec<u8> = sign(text).unwrap();
    let good = result(true, &signature);
    let swapped = [field(2, &signature), vec![0x08, 1]].concat();
    let with_more = [
        field(9, b"later"),
        good.clone(),
        vec![0x50, 0x96, 0x01],
        field(3, b""),
    ]
    .concat();
    for message in [&good, &swapped, &with_more] {
        assert_eq!(host_signature(&key, text, message), Ok(signature.clone()));
    }
    let refused = [
        ("nothing", Vec::new()),
        ("not good", result(false, &signature)),
        ("good without a signature", vec![0x08, 1]),
        ("a signature without a word", field(2, &signature)),
        ("an empty signature", result(true, b"")),
        (
            "a signature of another text",
            result(true, &sign(b"other").unwrap()),
        ),
        (
            "a signature of another key",
            result(true, &{
                let mut wrong = signature.clone();
                wrong[255] ^= 1;
                wrong
            }),
        ),
        ("the number nought", result(true, &[0; 256])),
        (
            "the number one",
            result(true, &{
                let mut one = [0; 256];
                one[255] = 1;
                one
            }),
        ),
        ("more than the modulus", result(true, &[0xff; 256])),
        ("one byte short", result(true, &signature[1..])),
        (
            "one byte long",
            result(true, &[&signature[..], &[0]].concat()),
        ),
        ("of a 4096-bit key", result(true, &signature.repeat(2))),
        (
            "an error",
            [vec![0x08, 0], field(3, b"Failed to sign")].concat(),
        ),
        (
            "a good result that is taken back",
            [good.clone(), vec![0x08, 0]].concat(),
        ),
        (
            "a length beyond the end",
            vec![0x08, 1, 0x12, 0x80, 0x02, 0],
        ),
        (
            "a length beyond all memory",
            [vec![0x08, 1, 0x12], vec![0xff; 9], vec![1]].concat(),
        ),
        ("an endless number", vec![0xff; 64]),
        (
            "a field of a kind that it does not have",
            [good.clone(), vec![0x1d, 0, 0, 0, 0]].concat(),
        ),
        ("text", b"signature".to_vec()),
        ("zeros", vec![0; 300]),
    ];
    for (case, message) in refused {
        assert_eq!(
            host_signature(&key, text, &message),
            Err(SignerFailed),
            "{case}"
        );
    }
    // Cut anywhere.
    for message in [&good, &swapped] {
        for end in 0..message.len() {
            assert_eq!(
                host_signature(&key, text, &message[..end]),
                Err(SignerFailed),
                "{end}"
            );
        }
    }
    for end in 0..with_more.len() {
        // A message of protobuf may end between two fields: then it is whole, and good from the
        // signature on.
        if let Ok(found) = host_signature(&key, text, &with_more[..end]) {
            assert_eq!(found, signature, "{end}");
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn whatever_the_host_says_it_is_no_signature_of_the_text(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 16),
    ) {
        thread_local!(static KEY: PrivateKey = key(golden("private_key.pem")));
        KEY.with(|key| {
            for message in &messages {
                prop_assert_eq!(host_signature(key, b"text", message), Err(SignerFailed));
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_result_whose_signature_is_none_is_refused_whatever_its_bytes(
        changes in prop::collection::vec((0usize..270, any::<u8>()), 1..6),
        cut in 0usize..400,
        length in prop::sample::select(vec![0usize, 1, 127, 128, 255, 256, 257, 384]),
    ) {
        thread_local!(static KEY: PrivateKey = key(golden("private_key.pem")));
        let mut message = [result(true, &vec![7; length]), field(3, b"error")].concat();
        for (place, byte) in changes {
            if let Some(old) = message.get_mut(place) {
                *old = byte;
            }
        }
        message.truncate(cut);
        KEY.with(|key| {
            prop_assert_eq!(host_signature(key, b"text", &message), Err(SignerFailed));
            Ok(())
        })?;
    }
}

// ---- keys in time

fn ring_key(id: usize, not_before: Option<i64>, not_after: Option<i64>) -> RingKey {
    let nowhere = SecretSource::FilterState("refund.key".to_owned());
    RingKey::new(id.to_string(), nowhere, not_before, not_after)
}

/// Small numbers, so that times meet; `not_before` stands before `not_after`, as the configuration
/// has it.
fn times() -> impl Strategy<Value = Vec<(Option<i64>, Option<i64>)>> {
    let time = (prop::option::of(-20i64..20), prop::option::of(1i64..20));
    prop::collection::vec(time, 0..6).prop_map(|times| {
        times
            .into_iter()
            .map(|(from, life)| (from, life.map(|life| from.unwrap_or(0) + life)))
            .collect()
    })
}

fn ring(times: &[(Option<i64>, Option<i64>)]) -> KeyRing {
    KeyRing(
        times
            .iter()
            .enumerate()
            .map(|(id, (from, until))| ring_key(id, *from, *until))
            .collect(),
    )
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn the_newest_key_in_its_time_signs(times in times(), now in -50i64..50) {
        let in_time = |(from, until): &(Option<i64>, Option<i64>)| {
            from.is_none_or(|from| now >= from) && until.is_none_or(|until| now < until)
        };
        // The last of those that began last, found by looking at each in turn.
        let mut newest: Option<usize> = None;
        for (id, time) in times.iter().enumerate() {
            let began = |id: usize| times[id].0.unwrap_or(i64::MIN);
            if in_time(time) && newest.is_none_or(|newest| began(id) >= began(newest)) {
                newest = Some(id);
            }
        }
        let ring = ring(&times);
        let active = ring.active(now).map(|key| key.id.clone());
        prop_assert_eq!(active, newest.map(|id| id.to_string()));
    }

    #[test]
    fn a_ring_ends_with_the_last_signature(times in times()) {
        let ring = ring(&times);
        match ring.not_after() {
            // Some key signs for ever, from its time on.
            None => prop_assert!(times.iter().any(|(_, until)| until.is_none())),
            Some(end) => {
                prop_assert!(times.iter().all(|(_, until)| until.is_some()));
                for later in end..end + 120 {
                    prop_assert!(ring.active(later).is_none(), "{later}");
                }
                let began = times.iter().any(|(from, until)| {
                    *until == Some(end) && from.is_none_or(|from| from < end)
                });
                prop_assert_eq!(ring.active(end.saturating_sub(1)).is_some(), began);
            }
        }
    }

    #[test]
    fn no_time_is_too_far(from in any::<Option<i64>>(), until in any::<Option<i64>>(), now in any::<i64>()) {
        let ring = KeyRing(vec![ring_key(1, from, until)]);
        let _ = ring.active(now);
        prop_assert_eq!(ring.not_after(), until);
    }
}

#[test]
fn a_staged_key_takes_over_at_its_second_and_an_old_one_ends_at_its_own() {
    let ring = ring(&[(None, Some(200)), (Some(100), Some(300)), (Some(400), None)]);
    for (now, expected) in [
        (i64::MIN, Some("0")),
        (99, Some("0")),
        (100, Some("1")),
        (199, Some("1")),
        (299, Some("1")),
        (300, None),
        (399, None),
        (400, Some("2")),
        (i64::MAX, Some("2")),
    ] {
        assert_eq!(
            ring.active(now).map(|key| key.id.as_str()),
            expected,
            "{now}"
        );
    }
}

// ---- a key that arrives with every call

/// What a call brings: a text in the filter state, or none.
fn carried<R>(text: Option<&str>, then: impl FnOnce(&Carried<'_>) -> R) -> R {
    then(&Carried {
        headers: &[],
        filter_state: &|key| {
            (key == "refund.key")
                .then(|| text.map(|text| text.as_bytes().to_vec()))
                .flatten()
        },
    })
}

#[test]
fn a_key_that_arrives_with_every_call_is_parsed_once_and_again_when_it_changes() {
    let pem = golden("private_key.pem");
    let pkcs1 = golden("private_key.pkcs1.pem");
    let by_state = ring_key(1, None, None);
    let bring = |text: &str| carried(Some(text), |carried| by_state.key(carried));
    let first = bring(pem).unwrap();
    for same in [pem.to_owned(), format!("\n{pem}\n"), pem.trim().to_owned()] {
        assert!(Rc::ptr_eq(&bring(&same).unwrap(), &first));
    }
    // Another form of the same key is another text.
    let second = bring(pkcs1).unwrap();
    assert!(!Rc::ptr_eq(&second, &first));
    assert!(Rc::ptr_eq(&bring(pkcs1).unwrap(), &second));
    // One that cannot be read does not stay, nor does the one before it sign in its place.
    let sentence = bring("canary").unwrap_err();
    assert!(!sentence.contains("canary"), "{sentence}");
    assert_eq!(bring("canary").unwrap_err(), sentence);
    let back = bring(pkcs1).unwrap();
    assert!(Rc::ptr_eq(&bring(pkcs1).unwrap(), &back));
    // A call that brings none has none, and costs no parsing afterwards.
    let missing = carried(None, |carried| by_state.key(carried)).unwrap_err();
    assert_eq!(
        missing,
        "The gateway's secret in the filter state refund.key is missing."
    );
    let other = bring(SECOND).unwrap();
    assert!(Rc::ptr_eq(&bring(SECOND).unwrap(), &other));
}

#[test]
fn a_key_in_a_header_is_parsed_once_too() {
    let source = SecretSource::Header("x-refund-key".to_owned());
    let by_header = RingKey::new("1".to_owned(), source, None, None);
    let bring = |text: &str| {
        let headers = [
            ("x-other".to_owned(), Secret::new("canary".to_owned())),
            ("x-refund-key".to_owned(), Secret::new(text.to_owned())),
        ];
        by_header.key(&Carried {
            headers: &headers,
            filter_state: &|_| None,
        })
    };
    let line = golden("private_key.der.b64");
    let first = bring(line).unwrap();
    assert!(Rc::ptr_eq(&bring(line.trim()).unwrap(), &first));
    let missing = by_header.key(&Carried {
        headers: &[],
        filter_state: &|_| Some(line.as_bytes().to_vec()),
    });
    assert_eq!(
        missing.unwrap_err(),
        "The gateway's secret in the request header x-refund-key is missing."
    );
}

#[test]
fn a_key_of_the_configuration_is_read_once_and_asks_no_call() {
    let here = SecretSource::Here(Secret::new(golden("private_key.pem").to_owned()));
    let key = RingKey::new("1".to_owned(), here, None, None);
    let asked = Cell::new(0);
    let bring = || {
        key.key(&Carried {
            headers: &[],
            filter_state: &|_| {
                asked.set(asked.get() + 1);
                None
            },
        })
        .unwrap()
    };
    let first = bring();
    assert!(Rc::ptr_eq(&bring(), &first));
    assert_eq!(asked.get(), 0);
}

#[test]
fn bytes_that_are_no_key_are_refused_with_a_sentence() {
    let short = include_str!("../common/keys/short.pem");
    let certificate =
        "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n".to_owned();
    let twice = format!("{}{}", golden("private_key.pem"), golden("private_key.pem"));
    let pkcs1_der: String = golden("private_key.pkcs1.pem")
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let long_line = golden("private_key.der.b64").trim();
    for (case, text, said) in [
        ("a word", "canary".to_owned(), "must be PEM"),
        ("short", short.to_owned(), "2048 bits"),
        (
            "short in PKCS#1",
            include_str!("../common/keys/short.pkcs1.pem").to_owned(),
            "2048 bits",
        ),
        (
            "encrypted",
            include_str!("../common/keys/encrypted.pem").to_owned(),
            "encrypted",
        ),
        (
            "encrypted in PKCS#1",
            include_str!("../common/keys/encrypted.pkcs1.pem").to_owned(),
            "encrypted",
        ),
        (
            "an EC key",
            include_str!("../common/keys/ec.pem").to_owned(),
            "no RSA private key",
        ),
        (
            "an Ed25519 key",
            include_str!("../common/keys/ed25519.pem").to_owned(),
            "no RSA private key",
        ),
        (
            "a public key",
            include_str!("../common/keys/second.public.pem").to_owned(),
            "no private RSA key",
        ),
        ("a certificate", certificate, "no private RSA key"),
        ("PKCS#1 DER", pkcs1_der, "no RSA private key"),
        (
            "three primes",
            include_str!("../common/keys/2048-three-primes.pem").to_owned(),
            "more than two primes",
        ),
        (
            "a long one",
            include_str!("../common/keys/long.pem").to_owned(),
            "4096 bits",
        ),
        (
            "a wrong number",
            include_str!("../common/keys/wrong.pem").to_owned(),
            "do not belong together",
        ),
        ("a key twice", twice, ""),
        (
            "half a line",
            long_line[..long_line.len() / 8 * 4].to_owned(),
            "no RSA private key",
        ),
    ] {
        let by_state = ring_key(1, None, None);
        let sentence = carried(Some(&text), |carried| by_state.key(carried)).unwrap_err();
        assert!(sentence.contains(said), "{case}: {sentence}");
        assert!(sentence.ends_with('.') && sentence.len() < 200, "{case}");
        for line in text
            .lines()
            .filter(|line| line.len() > 8 && !line.starts_with('-'))
        {
            assert!(!sentence.contains(line), "{case}: {sentence}");
        }
        assert!(!format!("{by_state:?}").contains("canary"), "{case}");
    }
}

// ---- OpenBao

fn transit(namespace: Option<&str>) -> Transit {
    Transit {
        cluster: "openbao".to_owned(),
        mount: "teams/pay/transit".to_owned(),
        key: "bbmsl".to_owned(),
        token: SecretSource::FilterState("refund.openbao_token".to_owned()),
        namespace: namespace.map(str::to_owned),
        public_keys: Vec::new(),
    }
}

/// A signature in OpenBao's answer, as base64, and the key's id for logs.
fn read(status: u16, body: &[u8]) -> Option<(String, String)> {
    let transit = transit(None);
    let signature = transit.read_reply(status, body)?;
    let id = transit.key_id(&signature);
    Some((STANDARD.encode(signature.bytes), id))
}

#[test]
fn openbao_is_asked_with_these_headers_and_no_others() {
    for namespace in [None, Some("payments")] {
        let headers = transit(namespace).request_headers(&Secret::new("canary-token".to_owned()));
        let version = format!("refund-filter/{}", refund_filter::VERSION);
        let mut expected = vec![
            (":authority", "openbao"),
            (":method", "POST"),
            (":path", "/v1/teams/pay/transit/sign/bbmsl/sha2-256"),
            (":scheme", "https"),
            ("accept", "application/json"),
            ("accept-encoding", "identity"),
            ("content-type", "application/json"),
            ("user-agent", &version),
            ("x-vault-request", "true"),
            ("x-vault-token", "canary-token"),
        ];
        if let Some(namespace) = namespace {
            expected.insert(8, ("x-vault-namespace", namespace));
        }
        let mut found: Vec<_> = headers
            .iter()
            .map(|(name, value)| {
                (
                    std::str::from_utf8(name).unwrap(),
                    std::str::from_utf8(value).unwrap(),
                )
            })
            .collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}

#[test]
fn openbao_is_asked_for_pkcs1_v1_5_over_the_very_text() {
    for text in [
        "",
        "a",
        r#"{"merchantId":3,"orderId":4922,"amount":10}"#,
        "ä\"\\\u{0}€",
    ] {
        let body: Value = serde_json::from_str(&Transit::request_body(text)).unwrap();
        let expected = json!({"input": STANDARD.encode(text), "signature_algorithm": "pkcs1v15"});
        assert_eq!(body, expected);
    }
}

/// OpenBao's own shape of an answer.
fn signed(signature: &str) -> String {
    json!({
        "request_id": "5b4b4a8d-8d1c-0b6c-0000-000000000000", "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": {"key_version": 1, "signature": signature}, "wrap_info": null, "warnings": null, "auth": null
    })
    .to_string()
}

#[test]
fn openbaos_signature_and_key_version_are_read() {
    for bits in [2048, 3072, 4096] {
        let base64 = STANDARD.encode(vec![0x5a; bits / 8]);
        for version in ["1", "2", "10", "4294967296"] {
            let reply = signed(&format!("vault:v{version}:{base64}"));
            let (signature, id) = read(200, reply.as_bytes()).unwrap();
            assert_eq!(
                (signature, id),
                (base64.clone(), format!("bbmsl:v{version}"))
            );
        }
    }
    let mut signer = VmSigner(StdRng::seed_from_u64(1));
    let (text, expected) = BY_OPENSSL[2];
    let real = signer
        .sign(
            SignerChoice::Vm,
            &key(golden("private_key.pem")),
            text.as_bytes(),
        )
        .unwrap();
    let reply = signed(&format!("vault:v1:{}", STANDARD.encode(real)));
    let (signature, _) = read(200, reply.as_bytes()).unwrap();
    assert_eq!(signature, expected);
}

#[test]
fn anything_else_of_openbao_is_no_signature() {
    let base64 = STANDARD.encode([0x5a; 256]);
    let good = signed(&format!("vault:v1:{base64}"));
    for status in [
        0, 100, 199, 201, 202, 204, 301, 400, 403, 404, 412, 429, 472, 473, 500, 503,
    ] {
        assert_eq!(read(status, good.as_bytes()), None, "{status}");
    }
    let one_short = STANDARD.encode([0x5a; 255]);
    let url_safe = format!("vault:v1:{}", base64.replace('p', "_").replace('a', "-"));
    for (case, body) in [
        ("nothing", String::new()),
        ("a word", "OK".to_owned()),
        ("a page", "<html></html>".to_owned()),
        ("null", "null".to_owned()),
        ("a list", "[]".to_owned()),
        ("an empty object", "{}".to_owned()),
        ("errors", r#"{"errors":["permission denied"]}"#.to_owned()),
        ("data that is none", r#"{"data":null}"#.to_owned()),
        ("data of text", r#"{"data":"vault:v1:"}"#.to_owned()),
        ("no signature", r#"{"data":{}}"#.to_owned()),
        (
            "a signature that is null",
            r#"{"data":{"signature":null}}"#.to_owned(),
        ),
        (
            "a signature that is a number",
            r#"{"data":{"signature":1}}"#.to_owned(),
        ),
        (
            "a batch",
            json!({"data": {"batch_results": [{"signature": format!("vault:v1:{base64}")}]}})
                .to_string(),
        ),
        ("an empty one", signed("")),
        ("no prefix", signed(&base64)),
        ("another prefix", signed(&format!("bao:v1:{base64}"))),
        ("upper case", signed(&format!("VAULT:V1:{base64}"))),
        ("no version", signed(&format!("vault:{base64}"))),
        (
            "a version that is none",
            signed(&format!("vault:vx:{base64}")),
        ),
        ("a negative version", signed(&format!("vault:v-1:{base64}"))),
        ("no bytes", signed("vault:v1:")),
        ("too few bytes", signed(&format!("vault:v1:{one_short}"))),
        (
            "no base64",
            signed(&format!("vault:v1:{}", "!".repeat(344))),
        ),
        ("base64 for URLs", signed(&url_safe)),
        ("a line break", signed(&format!("vault:v1:{base64}\n"))),
        (
            "a second part",
            signed(&format!("vault:v1:{base64}:{base64}")),
        ),
        ("more after it", format!("{good}{good}")),
    ] {
        assert_eq!(read(200, body.as_bytes()), None, "{case}: {body}");
    }
    // Cut anywhere, and with bytes that are no text.
    for end in 0..good.len() {
        assert_eq!(read(200, &good.as_bytes()[..end]), None, "{end}");
    }
    assert_eq!(read(200, b"\xff\xfe"), None);
}

#[test]
fn a_key_version_that_is_empty_is_no_signature() {
    let base64 = STANDARD.encode([0x5a; 256]);
    let reply = signed(&format!("vault:v:{base64}"));
    assert_eq!(read(200, reply.as_bytes()), None);
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn whatever_openbao_says_what_is_taken_is_base64_of_a_signature(
        status in prop_oneof![Just(200u16), any::<u16>()],
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            any::<String>().prop_map(String::into_bytes),
            any::<String>().prop_map(|text| signed(&text).into_bytes()),
            ("(vault:)?v?[0-9]{0,3}:?", prop::collection::vec(any::<u8>(), 0..600))
                .prop_map(|(prefix, bytes)| signed(&format!("{prefix}{}", STANDARD.encode(bytes))).into_bytes()),
        ],
    ) {
        if let Some((signature, id)) = read(status, &body) {
            prop_assert_eq!(status, 200);
            prop_assert!(STANDARD.decode(&signature).unwrap().len() >= 256);
            prop_assert!(id.strip_prefix("bbmsl:v").unwrap().bytes().all(|b| b.is_ascii_digit()), "{}", id);
        }
    }
}

// ---- a refund through each

fn config(signing: &Value) -> Rc<Config> {
    let text = json!({"providers": {"bbmsl": {
        "kind": "bbmsl", "base_url": "https://payapi.prod.bbmsl.com", "merchant_id": 3, "signing": signing,
    }}});
    Rc::new(Config::read(text.to_string().as_bytes(), &|_| None).unwrap())
}

const CALL: &str =
    r#"{"provider":"bbmsl","payment":{"id":"4922"},"amount":{"value":"10.00","currency":"USD"}}"#;

fn finish(signing: &Value, signer: &mut dyn Signer, state: Option<&str>) -> Step {
    let Opening::Read(reading) = open(&config(signing), &call_headers("k-1"), NOW) else {
        panic!("not read")
    };
    core_testbed::finish(reading, CALL.as_bytes(), NOW, signer, &|_| {
        state.map(|text| text.as_bytes().to_vec())
    })
}

/// What becomes of a call when OpenBao replies. `told`: what it has told of its public keys before.
fn openbao_replies(callout: Callout, status: u16, body: &str, told: &Told) -> Step {
    let head = ReplyHead {
        status,
        ..ReplyHead::default()
    };
    let mut environment = Environment {
        now: NOW,
        signer: &mut FailingSigner,
        filter_state: &|_| None,
        guard: None,
        shares: false,
        public_keys: &Keys(told.clone()),
    };
    callout.reply(&head, body.as_bytes(), &mut environment)
}

#[track_caller]
fn assert_unsigned(case: &str, step: Step, said: &str) {
    let Step::Answered(answer) = step else {
        panic!("{case}: no answer")
    };
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let members = ["code", "outcome", "retry"].map(|name| body[name].as_str().unwrap());
    assert_eq!(
        (answer.status, members),
        (503, ["signing-unavailable", "not_refunded", "same_key"]),
        "{case}"
    );
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains(said), "{case}: {detail}");
    // The platform team reads it too.
    let alarm = answer.alarm.unwrap();
    assert!(alarm.sentence.contains(said), "{case}: {alarm:?}");
    assert!(
        !answer.body.contains("canary") && !alarm.sentence.contains("canary"),
        "{case}"
    );
}

#[test]
fn the_signed_text_goes_to_bbmsl_with_openssls_signature() {
    let (text, signature) = BY_OPENSSL[2];
    let expected = json!({"request": text, "signature": signature});
    let by_state = json!({"keys": [{"id": "a", "private_key": {"filter_state": "refund.key"}}]});
    for form in FORMS {
        let mut signer = VmSigner(StdRng::seed_from_u64(1));
        let Step::Leaving(dispatch) = finish(&by_state, &mut signer, Some(golden(form))) else {
            panic!("{form}: not sent")
        };
        // As `openssl pkey -pubout -outform DER | sha256sum` has it.
        let key_id = dispatch.key_id.as_deref();
        assert_eq!(key_id, Some("a sha256:d3edc903"), "{form}");
        let body: Value = serde_json::from_str(&dispatch.body).unwrap();
        assert_eq!(body, expected, "{form}");
    }
    // And by OpenBao.
    let by_openbao = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "k", "token": {"filter_state": "refund.token"},
    }});
    let Step::Calling(unsigned @ Callout::Signature(_)) =
        finish(&by_openbao, &mut FailingSigner, Some("canary-token"))
    else {
        panic!("not to be signed")
    };
    assert!(!format!("{unsigned:?}").contains("canary"));
    let CalloutRequest {
        cluster,
        headers,
        body,
        ..
    } = unsigned.request();
    assert_eq!(cluster, "openbao");
    assert_eq!(headers.first("x-vault-token"), Some(&b"canary-token"[..]));
    assert_eq!(headers.first("x-request-id"), Some(&b"request-1"[..]));
    assert_eq!(body, Transit::request_body(text));
    let reply = signed(&format!("vault:v7:{signature}"));
    let told = told(&[("7", golden("public_key.pem"))]);
    let Step::Leaving(dispatch) = openbao_replies(unsigned, 200, &reply, &told) else {
        panic!("not sent")
    };
    assert_eq!(dispatch.key_id.as_deref(), Some("k:v7"));
    let body: Value = serde_json::from_str(&dispatch.body).unwrap();
    assert_eq!(body, expected);
}

/// OpenBao's answer about its public keys.
fn keys_answer(keys: &[(&str, &str)]) -> String {
    let keys: serde_json::Map<String, Value> = keys
        .iter()
        .map(|(version, pem)| {
            let key = json!({"creation_time": "2026-11-01T00:00:00Z", "name": "rsa-2048", "public_key": pem});
            ((*version).to_owned(), key)
        })
        .collect();
    json!({"data": {"type": "rsa-2048", "latest_version": 1, "keys": keys}}).to_string()
}

fn told(keys: &[(&str, &str)]) -> Told {
    Told::Keys(TransitKeys::read(200, keys_answer(keys).as_bytes()).unwrap())
}

#[test]
fn a_signature_of_openbaos_is_verified_before_it_is_sent() {
    let (_, good) = BY_OPENSSL[2];
    let wrong = STANDARD.encode([0x5a; 256]);
    let by_openbao = |public_keys: Option<Value>| {
        let mut transit = json!({
            "cluster": "openbao", "mount": "transit", "key": "k", "token": {"filter_state": "refund.token"},
        });
        if let Some(keys) = public_keys {
            transit["public_keys"] = keys;
        }
        json!({"transit": transit})
    };
    let reply = |signing: &Value, version: &str, signature: &str, told: &Told| {
        let Step::Calling(unsigned @ Callout::Signature(_)) =
            finish(signing, &mut FailingSigner, Some("canary-token"))
        else {
            panic!("not to be signed")
        };
        let reply = signed(&format!("vault:v{version}:{signature}"));
        openbao_replies(unsigned, 200, &reply, told)
    };
    let pem = golden("public_key.pem");
    // With the public keys of the configuration, whatever OpenBao has told.
    for told in [
        Told::NotAsked,
        Told::Unavailable,
        told(&[("7", SECOND_PUBLIC)]),
    ] {
        for keys in [json!([pem]), json!([SECOND_PUBLIC, pem]), json!({"7": pem})] {
            let signing = by_openbao(Some(keys));
            assert!(matches!(
                reply(&signing, "7", good, &told),
                Step::Leaving(_)
            ));
            assert_unsigned(
                "wrong",
                reply(&signing, "7", &wrong, &told),
                "does not verify",
            );
        }
        let signing = by_openbao(Some(json!([SECOND_PUBLIC])));
        assert_unsigned(
            "another's",
            reply(&signing, "7", good, &told),
            "does not verify",
        );
    }
    // With those that OpenBao has told.
    let signing = by_openbao(None);
    let known = told(&[("6", SECOND_PUBLIC), ("7", pem)]);
    assert!(matches!(
        reply(&signing, "7", good, &known),
        Step::Leaving(_)
    ));
    assert_unsigned(
        "wrong",
        reply(&signing, "7", &wrong, &known),
        "does not verify",
    );
    assert_unsigned(
        "of another version",
        reply(&signing, "6", good, &known),
        "does not verify",
    );
    // It has not told, or its key has been rotated since: it is asked.
    for told in [Told::NotAsked, known.clone()] {
        let asked = |signature: &str| match reply(&signing, "8", signature, &told) {
            Step::Calling(unverified @ Callout::PublicKeys(_)) => unverified,
            other => panic!("{other:?}"),
        };
        let unverified = asked(good);
        let CalloutRequest {
            cluster, headers, ..
        } = unverified.request();
        assert_eq!(cluster, "openbao");
        assert_eq!(headers.first(":method"), Some(&b"GET"[..]));
        assert_eq!(headers.first(":path"), Some(&b"/v1/transit/keys/k"[..]));
        assert_eq!(headers.first("x-vault-token"), Some(&b"canary-token"[..]));
        let now = keys_answer(&[("8", pem)]);
        let tells = |signature, status, body: &str| {
            openbao_replies(asked(signature), status, body, &Told::NotAsked)
        };
        assert!(matches!(tells(good, 200, &now), Step::Leaving(_)));
        assert_unsigned("wrong", tells(&wrong, 200, &now), "does not verify");
        // It does not tell: the signature goes out as it is, and a log line says so.
        assert!(matches!(tells(good, 403, ""), Step::Leaving(_)));
    }
    assert!(matches!(
        reply(&signing, "8", good, &Told::Unavailable),
        Step::Leaving(_)
    ));
}

#[test]
fn what_openbao_tells_of_its_keys_is_read_as_far_as_it_is_right() {
    let pem = golden("public_key.pem");
    let sound = keys_answer(&[("1", pem), ("2", SECOND_PUBLIC), ("3", "no key")]);
    let keys = TransitKeys::read(200, sound.as_bytes()).unwrap();
    assert!(keys.has("1") && keys.has("2") && !keys.has("3"));
    for (status, body) in [
        (403, sound.as_str()),
        (404, "{}"),
        (200, ""),
        (200, "{}"),
        (200, r#"{"data": {}}"#),
        (200, r#"{"data": {"keys": []}}"#),
    ] {
        assert!(
            TransitKeys::read(status, body.as_bytes()).is_none(),
            "{body}"
        );
    }
}

#[test]
fn no_signature_no_refund() {
    let by_state = |extra: Value| {
        let mut key = json!({"id": "a", "private_key": {"filter_state": "refund.key"}});
        for (name, value) in extra.as_object().unwrap() {
            key[name] = value.clone();
        }
        json!({"keys": [key]})
    };
    let pem = golden("private_key.pem");
    let plain = by_state(json!({}));
    assert_unsigned(
        "the signer failed",
        finish(&plain, &mut FailingSigner, Some(pem)),
        "key a",
    );
    assert_unsigned(
        "no key there",
        finish(&plain, &mut StubSigner, None),
        "the filter state refund.key is missing",
    );
    assert_unsigned(
        "no key at all",
        finish(&plain, &mut StubSigner, Some("canary")),
        "The signing key a cannot be used",
    );
    // NOW is 2026-11-22T08:00:00Z.
    for (case, time) in [
        ("not yet", json!({"not_before": "2026-11-22T08:00:01Z"})),
        ("no longer", json!({"not_after": "2026-11-22T08:00:00Z"})),
    ] {
        assert_unsigned(
            case,
            finish(&by_state(time), &mut StubSigner, Some(pem)),
            "in its time",
        );
    }
    let by_openbao = json!({"transit": {
        "cluster": "openbao", "mount": "transit", "key": "k", "token": {"filter_state": "refund.token"},
    }});
    assert_unsigned(
        "no token",
        finish(&by_openbao, &mut StubSigner, None),
        "the filter state refund.token is missing",
    );
    assert_unsigned(
        "a token that would end its header",
        finish(&by_openbao, &mut StubSigner, Some("canary\r\nx: y")),
        "control characters",
    );
    for (status, body) in [
        (403, r#"{"errors":["canary"]}"#),
        (200, "canary"),
        (503, ""),
    ] {
        let Step::Calling(unsigned @ Callout::Signature(_)) =
            finish(&by_openbao, &mut StubSigner, Some("canary-token"))
        else {
            panic!("not to be signed")
        };
        assert_unsigned(
            "OpenBao said no",
            openbao_replies(unsigned, status, body, &Told::NotAsked),
            "OpenBao",
        );
    }
}
