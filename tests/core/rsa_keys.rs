//! Whole keys and signatures, against openssl and an older version of the crate `rsa`, whose
//! arithmetic is another one.

use std::convert::Infallible;
use std::fmt;

use crate::properties::cases;
use pkcs1::UintRef;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand_core::{TryCryptoRng, TryRng};
use refund_filter::rsa_key::{KeyFault, RsaPrivateKey as Key, RsaPublicKey as PublicKey};
use rsa_oracle::pkcs8::DecodePrivateKey as _;
use rsa_oracle::rand_core::OsRng;
use rsa_oracle::sha2::{Digest as _, Sha256};
use rsa_oracle::traits::{PrivateKeyParts as _, PublicKeyParts as _};
use rsa_oracle::{BigUint, Pkcs1v15Sign, RsaPrivateKey};

/// A key, and the SHA-256 of `printf abc | openssl dgst -sha256 -sign KEY`.
const KEYS: [(&str, &str); 6] = [
    (
        include_str!("../providers/bbmsl/golden/private_key.pem"),
        "75106f9df6c36499dbbaf0785b2a56da7d67805a90387fa44382f19720271a20",
    ),
    (
        include_str!("../common/keys/second.pem"),
        "9bfcc5b699ede765934a2a3e0631a27d70767e4b6d7982ffde3e9feea49686ee",
    ),
    (
        include_str!("../common/keys/2048-e3.pem"),
        "c7e9cdaa5c7829db883f1fa470a96282705ca30407dea138976ff3793b5272a0",
    ),
    (
        include_str!("../common/keys/2049.pem"),
        "16f08e0c28c3b32978a9a0cd246bc5fb8acfad093069aa1686e3c0221cd2ddff",
    ),
    (
        include_str!("../common/keys/3072.pem"),
        "9fbb2ea77e164bf48c907e0d43a683a0ef18ba68225f3bddf47d33760a6d58b5",
    ),
    (
        include_str!("../common/keys/4096.pem"),
        "4565c650cd374f9b52121343a50bc8520b0b4966fa6c9cf4c70650c7822ecb33",
    ),
];

/// A key's numbers in the order of PKCS#1: n, e, d, p, q, dP, dQ, qInv.
#[derive(Clone)]
struct Numbers([Vec<u8>; 8]);

impl Numbers {
    fn of(key: &RsaPrivateKey) -> Self {
        let [p, q] = key.primes() else {
            panic!("two primes")
        };
        Self::from(key.e(), key.d(), p, q)
    }

    fn from(e: &BigUint, d: &BigUint, p: &BigUint, q: &BigUint) -> Self {
        let numbers = [
            p * q,
            e.clone(),
            d.clone(),
            p.clone(),
            q.clone(),
            d % (p - 1u8),
            d % (q - 1u8),
            q.modpow(&(p - 2u8), p),
        ];
        Numbers(numbers.map(|number| number.to_bytes_be()))
    }

    /// With the primes the other way round.
    fn swapped(&self) -> Self {
        let [_, e, d, p, q, ..] = self.0.each_ref().map(|bytes| BigUint::from_bytes_be(bytes));
        Self::from(&e, &d, &q, &p)
    }

    fn with(&self, at: usize, value: &BigUint) -> Self {
        let mut numbers = self.clone();
        numbers.0[at] = value.to_bytes_be();
        numbers
    }

    fn key(&self) -> Result<Key, KeyFault> {
        let [n, e, d, p, q, dp, dq, qinv] =
            self.0.each_ref().map(|bytes| UintRef::new(bytes).unwrap());
        Key::new(&pkcs1::RsaPrivateKeyRef {
            modulus: n,
            public_exponent: e,
            private_exponent: d,
            prime1: p,
            prime2: q,
            exponent1: dp,
            exponent2: dq,
            coefficient: qinv,
            other_prime_infos: None,
        })
    }
}

fn by_rsa(pem: &str) -> RsaPrivateKey {
    RsaPrivateKey::from_pkcs8_pem(pem).unwrap()
}

fn public_key(modulus: &[u8], exponent: &[u8]) -> Result<PublicKey, KeyFault> {
    PublicKey::new(&pkcs1::RsaPublicKeyRef {
        modulus: UintRef::new(modulus).unwrap(),
        public_exponent: UintRef::new(exponent).unwrap(),
    })
}

fn fault(numbers: &Numbers) -> Option<KeyFault> {
    numbers.key().err()
}

#[test]
fn every_key_signs_as_openssl_does() {
    for (pem, expected) in KEYS {
        let rsa = by_rsa(pem);
        let key = Numbers::of(&rsa).key().unwrap();
        let signature = key
            .sign(
                &Sha256::digest(b"abc").into(),
                &mut StdRng::seed_from_u64(1),
            )
            .unwrap();
        let sum: String = Sha256::digest(&signature)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(sum, expected);
        assert_eq!(signature.len(), rsa.size());
    }
}

/// More signatures than one blinding is used for, in both orders of the primes: one of them has p
/// below q.
#[test]
fn every_key_signs_as_the_crate_rsa_does() {
    let mut random = StdRng::seed_from_u64(2);
    for (pem, _) in KEYS {
        let rsa = by_rsa(pem);
        let numbers = Numbers::of(&rsa);
        let keys = [numbers.key().unwrap(), numbers.swapped().key().unwrap()];
        for _ in 0..if rsa.size() > 257 { 2 } else { 8 } {
            let mut digest = [0; 32];
            random.fill(&mut digest);
            let expected = rsa.sign(Pkcs1v15Sign::new::<Sha256>(), &digest).unwrap();
            for key in &keys {
                assert_eq!(key.sign(&digest, &mut random).unwrap(), expected);
            }
        }
    }
}

#[test]
fn a_public_key_knows_its_signatures_and_no_others() {
    let mut random = StdRng::seed_from_u64(5);
    for (pem, _) in KEYS {
        let rsa = by_rsa(pem);
        let [n, e] = [rsa.n(), rsa.e()].map(BigUint::to_bytes_be);
        let public = public_key(&n, &e).unwrap();
        for _ in 0..4 {
            let mut digest = [0; 32];
            random.fill(&mut digest);
            let signature = rsa.sign(Pkcs1v15Sign::new::<Sha256>(), &digest).unwrap();
            assert!(public.verify(&digest, &signature));

            let mut bent = signature.clone();
            let at = random.random_range(0..8 * bent.len());
            bent[at / 8] ^= 1 << (at % 8);
            let mut other = digest;
            other[random.random_range(0..32)] ^= 1;
            // The same number, and that number and the modulus.
            let sum = (BigUint::from_bytes_be(&signature) + rsa.n()).to_bytes_be();
            let longer = [&[0], &signature[..]].concat();
            for (digest, signature) in [
                (&digest, &bent[..]),
                (&other, &signature),
                (&digest, &sum),
                (&digest, &longer),
                (&digest, &signature[1..]),
                (&digest, &[]),
                (&digest, &n),
            ] {
                assert!(!public.verify(digest, signature));
            }
        }
    }
    // What is no key: an even modulus, an even exponent, none.
    let rsa = by_rsa(KEYS[0].0);
    let [n, e] = [rsa.n(), rsa.e()].map(BigUint::to_bytes_be);
    let even = (rsa.n() - 1u8).to_bytes_be();
    for (n, e, fault) in [
        (&even[..], &e[..], KeyFault::Numbers),
        (&n, &[2], KeyFault::Numbers),
        (&n, &[], KeyFault::Numbers),
        (&n[128..], &e, KeyFault::Short),
        (&[1; 600], &e, KeyFault::Long),
    ] {
        assert_eq!(public_key(n, e).err(), Some(fault));
    }
}

#[test]
fn keys_made_at_random_sign_as_the_crate_rsa_does() {
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..1 {
        let rsa = RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let numbers = Numbers::of(&rsa);
        for key in [numbers.key().unwrap(), numbers.swapped().key().unwrap()] {
            for _ in 0..4 {
                let mut digest = [0; 32];
                random.fill(&mut digest);
                let expected = rsa.sign(Pkcs1v15Sign::new::<Sha256>(), &digest).unwrap();
                assert_eq!(key.sign(&digest, &mut random).unwrap(), expected);
            }
        }
    }
}

/// Primes of 1024, 1536 and 2048 bits beside each other: nobody makes such keys, and the crate
/// computes in halves of the modulus.
#[test]
fn primes_of_unequal_length_are_refused() {
    let primes = |pem: &str| by_rsa(pem).primes().to_vec();
    let [short, middle, long] = [KEYS[0].0, KEYS[4].0, KEYS[5].0].map(primes);
    let e = BigUint::from(65_537u32);
    for (p, q) in [
        (&short[0], &long[1]),
        (&middle[0], &short[1]),
        (&middle[1], &long[0]),
    ] {
        let Some(d) = inverse(&e, &((p - 1u8) * (q - 1u8))) else {
            continue;
        };
        let numbers = Numbers::from(&e, &d, p, q);
        for numbers in [numbers.swapped(), numbers] {
            assert_eq!(fault(&numbers), Some(KeyFault::Numbers));
        }
    }
}

/// The private exponent is good modulo either (p-1)(q-1) or their least common multiple, and with
/// such a one added.
#[test]
fn any_private_exponent_that_is_one_is_taken() {
    let numbers = Numbers::of(&by_rsa(KEYS[0].0));
    let [n, _, d, p, q, ..] = numbers
        .0
        .each_ref()
        .map(|bytes| BigUint::from_bytes_be(bytes));
    let phi = (&p - 1u8) * (&q - 1u8);
    // A common multiple, at any rate: both are even.
    let half = &phi / 2u8;
    let least = &d % &half;
    for d in [&least, &(&least + &half)] {
        assert!(*d < n && fault(&numbers.with(2, d)).is_none());
    }
}

/// No randomness.
struct Exhausted;

#[derive(Debug)]
struct NoRandomness;

impl fmt::Display for NoRandomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no randomness")
    }
}

impl std::error::Error for NoRandomness {}

impl TryRng for Exhausted {
    type Error = NoRandomness;

    fn try_next_u32(&mut self) -> Result<u32, NoRandomness> {
        Err(NoRandomness)
    }

    fn try_next_u64(&mut self) -> Result<u64, NoRandomness> {
        Err(NoRandomness)
    }

    fn try_fill_bytes(&mut self, _bytes: &mut [u8]) -> Result<(), NoRandomness> {
        Err(NoRandomness)
    }
}

impl TryCryptoRng for Exhausted {}

/// How much randomness is taken.
struct Counted(StdRng, usize);

impl TryRng for Counted {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.1 += 4;
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.1 += 8;
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.1 += bytes.len();
        self.0.try_fill_bytes(bytes)
    }
}

impl TryCryptoRng for Counted {}

#[test]
fn every_signature_is_blinded_with_fresh_randomness_and_none_leaves_without() {
    let rsa = by_rsa(KEYS[0].0);
    let key = Numbers::of(&rsa).key().unwrap();
    let digest = [7; 32];
    assert_eq!(key.sign(&digest, &mut Exhausted), None);
    let expected = rsa.sign(Pkcs1v15Sign::new::<Sha256>(), &digest).unwrap();
    let mut random = Counted(StdRng::seed_from_u64(5), 0);
    for _ in 0..3 {
        let before = random.1;
        assert_eq!(key.sign(&digest, &mut random), Some(expected.clone()));
        assert!(random.1 >= before + 256, "{} {before}", random.1);
    }
}

#[test]
fn keys_too_short_or_too_long_are_refused() {
    let numbers = Numbers::of(&by_rsa(KEYS[0].0));
    let one = BigUint::from(1u8);
    for (bits, expected) in [
        (0, KeyFault::Short),
        (1024, KeyFault::Short),
        (2047, KeyFault::Short),
        (2048, KeyFault::Numbers),
        (4096, KeyFault::Numbers),
        (4097, KeyFault::Long),
        (8192, KeyFault::Long),
        (1_000_000, KeyFault::Long),
    ] {
        let n = (&one << bits) - 1u8;
        assert_eq!(fault(&numbers.with(0, &n)), Some(expected), "{bits}");
    }
    let short = Numbers::of(&RsaPrivateKey::new(&mut OsRng, 512).unwrap());
    assert_eq!(fault(&short), Some(KeyFault::Short));
}

#[test]
fn numbers_that_do_not_belong_together_are_refused() {
    let numbers = Numbers::of(&by_rsa(KEYS[0].0));
    let other = Numbers::of(&by_rsa(KEYS[1].0));
    assert!(fault(&numbers).is_none());
    let values = numbers
        .0
        .each_ref()
        .map(|bytes| BigUint::from_bytes_be(bytes));
    let one = BigUint::from(1u8);
    for (at, value) in values.iter().enumerate() {
        let mut wrong = vec![
            BigUint::default(),
            one.clone(),
            BigUint::from(2u8),
            BigUint::from(3u8),
            value + 1u8,
            value + 2u8,
            value - 1u8,
            value - 2u8,
            value * 2u8,
            value >> 1,
            value + (&one << 1023),
            value + (&one << 2047),
            value + (&one << 100_000),
            (&one << 1024) - 1u8,
            &one << 1023,
            (&one << 100_000) - 1u8,
            BigUint::from_bytes_be(&other.0[at]) + u8::from(at == 1),
        ];
        wrong.extend(
            values
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != at)
                .map(|(_, other)| other.clone()),
        );
        // A remainder that is not the least.
        wrong.extend(values[3..].iter().map(|other| value + other));
        for wrong in wrong {
            // 3 is a public exponent, but not to this private one.
            assert!(fault(&numbers.with(at, &wrong)).is_some(), "{at}: {wrong}");
        }
    }
    // Primes of n, but not two.
    let [n, ..] = &values;
    let trivial = numbers.with(3, n).with(4, &one);
    assert_eq!(fault(&trivial), Some(KeyFault::Numbers));
    let [_, _, _, p, ..] = &values;
    let twice = Numbers::from(&values[1], &values[2], p, p);
    assert_eq!(fault(&twice), Some(KeyFault::Numbers));
    // Everything zero, everything even.
    for value in [0u8, 2, 4] {
        let same = Numbers(std::array::from_fn(|_| {
            (BigUint::from(value) << 2046).to_bytes_be()
        }));
        assert!(fault(&same).is_some());
    }
}

/// Not a prime of the key is prime, and its other numbers are right: no signature comes out, and
/// nothing panics.
#[test]
fn numbers_that_are_not_prime_give_no_signature() {
    let mut random = StdRng::seed_from_u64(7);
    let mut taken = 0;
    while taken < 20 {
        let [p, q] = std::array::from_fn(|_| {
            let mut bytes = [0u8; 128];
            random.fill(&mut bytes);
            bytes[0] |= 0xc0;
            bytes[127] |= 1;
            BigUint::from_bytes_be(&bytes)
        });
        let Ok(rsa) = RsaPrivateKey::from_p_q(p.clone(), q.clone(), 65_537u32.into()) else {
            continue;
        };
        let mut numbers = Numbers::from(&65_537u32.into(), rsa.d(), &p, &q);
        // Fermat gives no inverse modulo a number that is no prime; so many are refused, unless it
        // is a chance.
        if let Some(inverse) = inverse(&q, &p) {
            numbers = numbers.with(7, &inverse);
        } else {
            continue;
        }
        let key = numbers.key().unwrap();
        assert_eq!(key.sign(&[7; 32], &mut random), None);
        taken += 1;
    }
}

/// 1/x modulo n, by Euclid; none where there is none.
fn inverse(x: &BigUint, n: &BigUint) -> Option<BigUint> {
    let zero = BigUint::default();
    let (mut r, mut next_r) = (n.clone(), x % n);
    let (mut t, mut next_t) = (zero.clone(), BigUint::from(1u8));
    while next_r != zero {
        let quotient = &r / &next_r;
        let rest = &r - &quotient * &next_r;
        let step = (&t + n - &quotient * &next_t % n) % n;
        (r, next_r) = (next_r, rest);
        (t, next_t) = (next_t, step);
    }
    (r == BigUint::from(1u8)).then_some(t)
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn no_key_makes_a_panic_and_none_but_the_whole_one_signs(
        changes in prop::collection::vec((0usize..8, 0usize..260, any::<u8>()), 1..4),
        replaced in prop::option::of((0usize..8, prop::collection::vec(any::<u8>(), 0..600))),
    ) {
        thread_local!(static WHOLE: Numbers = Numbers::of(&by_rsa(KEYS[0].0)));
        let whole = WHOLE.with(Clone::clone);
        let mut numbers = whole.clone();
        for (number, at, byte) in changes {
            if let Some(old) = numbers.0[number].get_mut(at) {
                *old = byte;
            }
        }
        if let Some((number, bytes)) = replaced {
            numbers.0[number] = bytes;
        }
        // A private exponent may differ by a multiple, but not by chance.
        prop_assert_eq!(numbers.key().is_ok(), numbers.0 == whole.0);
    }
}
