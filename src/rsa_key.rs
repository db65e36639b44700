//! RSA keys and signatures, RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2), by the crate `rsa`.
//!
//! That crate computes in constant time, blinds each private operation with fresh randomness, and
//! checks each signature with the public exponent before it returns it. What is added here: the
//! lengths that are taken, and that all numbers of a key belong together. Envoy's signer reads the
//! same key by itself and may use the numbers that the crate computes anew.

use std::fmt;

use pkcs1::UintRef;
use pkcs8::SubjectPublicKeyInfoRef;
use pkcs8::der::Encode as _;
use pkcs8::der::asn1::BitStringRef;
use rand_core::TryCryptoRng;
use rsa::BoxedUint;
use rsa::traits::{PrivateKeyParts as _, PublicKeyParts as _};
use sha2::Sha256;

/// The shortest modulus that is taken, in bits. Nobody should trust a shorter one.
pub const MIN_BITS: u32 = 2048;
/// The longest. A signature takes eight times as long for each doubling, and the worker waits.
pub const MAX_BITS: u32 = 4096;

/// Why a key is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFault {
    /// The modulus has fewer than [`MIN_BITS`].
    Short,
    /// The modulus has more than [`MAX_BITS`].
    Long,
    /// There are more than two primes.
    Primes,
    /// The numbers are not those of one RSA key.
    Numbers,
}

/// A public key of 2048 to 4096 bits.
pub struct RsaPublicKey(rsa::PublicKey);

impl RsaPublicKey {
    /// The key with this modulus and public exponent.
    pub fn new(key: &pkcs1::RsaPublicKeyRef<'_>) -> Result<Self, KeyFault> {
        let modulus = modulus(key.modulus)?;
        let exponent = number(key.public_exponent, modulus.bits_precision())?;
        let key = rsa::PublicKey::new(modulus, exponent);
        key.map(RsaPublicKey).map_err(|_| KeyFault::Numbers)
    }

    /// Whether this is the key's signature over a text of this SHA-256.
    pub fn verify(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        verifies(&self.0, digest, signature)
    }
}

fn verifies(key: &rsa::PublicKey, digest: &[u8; 32], signature: &[u8]) -> bool {
    key.pkcs1v15_verify_prehash::<Sha256>(digest, signature)
        .is_ok()
}

impl fmt::Debug for RsaPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("public key")
    }
}

/// A private key of 2048 to 4096 bits. The crate wipes its numbers when it is dropped.
pub struct RsaPrivateKey(rsa::PrivateKey);

impl fmt::Debug for RsaPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl RsaPrivateKey {
    /// Checks a key's numbers against each other. That the primes are prime is not checked: if they
    /// are not, no signature passes the check that each one passes before it leaves.
    pub fn new(numbers: &pkcs1::RsaPrivateKeyRef<'_>) -> Result<Self, KeyFault> {
        if numbers.version() != pkcs1::Version::TwoPrime {
            return Err(KeyFault::Primes);
        }
        let n = modulus(numbers.modulus)?;
        // None is longer than the modulus: an endless one would keep the worker busy.
        let bits = n.bits_precision();
        let read = |value| number(value, bits);
        let (e, d) = (
            read(numbers.public_exponent)?,
            read(numbers.private_exponent)?,
        );
        let primes = vec![read(numbers.prime1)?, read(numbers.prime2)?];
        let key =
            rsa::PrivateKey::from_components(n, e, d, primes).map_err(|_| KeyFault::Numbers)?;
        let same = |known: Option<&BoxedUint>, given| {
            known.is_some_and(|known| number(given, bits).is_ok_and(|given| *known == given))
        };
        let coefficient = key.crt_coefficient();
        let is_one_key = same(key.dp(), numbers.exponent1)
            && same(key.dq(), numbers.exponent2)
            && same(coefficient.as_ref(), numbers.coefficient);
        if !is_one_key {
            return Err(KeyFault::Numbers);
        }
        Ok(RsaPrivateKey(key))
    }

    /// Its public half in DER (RFC 5280's SubjectPublicKeyInfo).
    pub fn public_der(&self) -> Option<Vec<u8>> {
        let (n, e) = (self.0.n_bytes(), self.0.e_bytes());
        let key = pkcs1::RsaPublicKeyRef {
            modulus: UintRef::new(&n).ok()?,
            public_exponent: UintRef::new(&e).ok()?,
        };
        let key = key.to_der().ok()?;
        let info = SubjectPublicKeyInfoRef {
            algorithm: pkcs1::ALGORITHM_ID,
            subject_public_key: BitStringRef::from_bytes(&key).ok()?,
        };
        info.to_der().ok()
    }

    /// Whether this is the key's signature over a text of this SHA-256.
    pub fn verify(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        verifies(self.0.as_public_key(), digest, signature)
    }

    /// The signature over a text of this SHA-256; none where the computation went wrong. It is the
    /// same for the same text: the randomness goes into the blinding alone.
    pub fn sign(&self, digest: &[u8; 32], random: &mut impl TryCryptoRng) -> Option<Vec<u8>> {
        self.0
            .pkcs1v15_sign_prehash_with_rng::<Sha256, _>(random, digest)
            .ok()
    }
}

/// The modulus, where its length is taken.
fn modulus(value: UintRef<'_>) -> Result<BoxedUint, KeyFault> {
    let bits = bit_length(value.as_bytes());
    if bits < u64::from(MIN_BITS) {
        return Err(KeyFault::Short);
    }
    if bits > u64::from(MAX_BITS) {
        return Err(KeyFault::Long);
    }
    let precision = u32::try_from(bits).map_err(|_| KeyFault::Long)?;
    number(value, precision)
}

/// A number of at most so many bits.
fn number(value: UintRef<'_>, bits: u32) -> Result<BoxedUint, KeyFault> {
    BoxedUint::from_be_slice(value.as_bytes(), bits).map_err(|_| KeyFault::Numbers)
}

fn bit_length(bytes: &[u8]) -> u64 {
    let mut significant = bytes.iter().skip_while(|byte| **byte == 0);
    let first = significant.next().copied().unwrap_or_default();
    let rest = u64::try_from(significant.count()).unwrap_or(u64::MAX);
    rest.saturating_mul(8)
        .saturating_add(u64::from(u8::BITS.saturating_sub(first.leading_zeros())))
}
