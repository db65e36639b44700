//! RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2), the private key's side alone, for a module that runs in WebAssembly.
//!
//! It is as small and as fast there as 32-bit limbs let it be, and it keeps to four rules:
//!
//! - No branch and no address depends on a secret: numbers have fixed lengths, exponents are read in windows of four bits, and
//!   of a table every entry is read. What shows is what the certificate shows, and the lengths of the primes.
//! - What is raised to the secret exponents is unknown to everybody (Kocher's blinding): the padded hash is multiplied by `r^e`
//!   first and the result by `1/r`. So even an operation whose time did depend on its operands would say nothing.
//! - No signature leaves before it was raised to `e` again: one wrong bit in a computation by the Chinese remainder gives a
//!   signature from which the key can be found (Boneh, DeMillo, Lipton).
//! - Every number that is secret is wiped when it goes.
//!
//! Nothing here panics, whatever the key.

mod limbs;

use std::cell::RefCell;

use pkcs1::RsaPrivateKey;
use rand_core::RngCore;
use zeroize::Zeroizing;

use limbs::{Columns, Modulus, Number};

/// The longest modulus that is taken, in bits. A signature takes eight times as long for each doubling, and all the while a
/// worker of the gateway stands still.
pub const MOST_BITS: usize = 4096;
/// The shortest: below it, RFC 8017's encoding and the blinding still fit, but nobody should trust such a key.
pub const LEAST_BITS: usize = 2048;
/// The greatest public exponent: what other implementations take, too.
const MOST_EXPONENT: u64 = (1 << 33) - 1;

/// After so many signatures a blinding begins anew with fresh randomness, as it does in OpenSSL.
const SIGNATURES_PER_BLINDING: u32 = 32;

/// Why a key is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFault {
    /// The modulus has fewer than [`LEAST_BITS`].
    Short,
    /// The modulus has more than [`MOST_BITS`].
    Long,
    /// There are more than two primes.
    Primes,
    /// The numbers are not those of one RSA key.
    Numbers,
}

/// A public key.
pub struct PublicKey {
    modulus: Modulus,
    exponent: u64,
    /// The modulus's bytes.
    size: usize,
}

impl PublicKey {
    /// A key with this modulus and public exponent (big-endian).
    pub fn new(modulus: &[u8], public_exponent: &[u8]) -> Result<Self, KeyFault> {
        let bits = limbs::bit_length(modulus);
        if bits < LEAST_BITS {
            return Err(KeyFault::Short);
        }
        if bits > MOST_BITS {
            return Err(KeyFault::Long);
        }
        let key = || {
            Some(PublicKey {
                modulus: Modulus::new(modulus, limbs::length_for(bits)?)?,
                exponent: exponent(public_exponent)?,
                size: bits.div_ceil(8),
            })
        };
        key().ok_or(KeyFault::Numbers)
    }

    /// The bytes of the modulus, and so of a signature.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is the key's signature over a text of this SHA-256 (RFC 8017, 8.2.2).
    pub fn verify(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        let length = self.modulus.limbs().len();
        let numbers = || {
            let signature = (signature.len() == self.size)
                .then(|| limbs::from_bytes(signature, length))
                .flatten()
                .filter(|signature| limbs::is_below(signature, self.modulus.limbs()))?;
            let padded = limbs::from_bytes(&padded(digest, self.size)?, length)?;
            Some((signature, padded))
        };
        numbers().is_some_and(|(signature, padded)| self.opens(signature, &padded))
    }

    /// Whether a signature, raised to the public exponent, is this number.
    fn opens(&self, mut signature: Number, padded: &Number) -> bool {
        let mut columns = limbs::columns(self.modulus.limbs().len());
        self.modulus.enter(&mut signature, &mut columns);
        self.modulus
            .power_public(&mut signature, self.exponent, &mut columns);
        self.modulus.leave(&mut signature, &mut columns);
        signature == *padded
    }
}

/// A private key, checked, with all that can be computed from it beforehand.
pub struct Key {
    public: PublicKey,
    p: Prime,
    q: Prime,
    /// 1/q modulo p.
    coefficient: Number,
    blinding: RefCell<Option<Blinding>>,
}

/// A prime of the key; both are kept in equally many limbs.
struct Prime {
    modulus: Modulus,
    /// The exponent that signs: `d` modulo `prime - 1`, in bytes.
    signing: Zeroizing<Vec<u8>>,
    /// The exponent that inverts (Fermat): `prime - 2`, in bytes.
    inverting: Zeroizing<Vec<u8>>,
}

/// Which of a prime's exponents.
#[derive(Clone, Copy)]
enum Exponent {
    Signing,
    Inverting,
}

/// A pair of factors, in Montgomery's form, below twice the modulus.
struct Blinding {
    /// `r^e`.
    factor: Number,
    /// `1/r`.
    inverse: Number,
    /// For how many more signatures.
    left: u32,
}

impl Key {
    /// Checks a key's numbers against each other and computes what signing needs. That the primes are prime is not checked: if
    /// they are not, no signature ever passes the check that each one passes before it leaves.
    pub fn new(numbers: &RsaPrivateKey<'_>) -> Result<Self, KeyFault> {
        if numbers.version() != pkcs1::Version::TwoPrime {
            return Err(KeyFault::Primes);
        }
        let bits = limbs::bit_length(numbers.modulus.as_bytes());
        if bits < LEAST_BITS {
            return Err(KeyFault::Short);
        }
        if bits > MOST_BITS {
            return Err(KeyFault::Long);
        }
        Self::checked(numbers, bits).ok_or(KeyFault::Numbers)
    }

    fn checked(numbers: &RsaPrivateKey<'_>, bits: usize) -> Option<Self> {
        let n = numbers.modulus.as_bytes();
        let exponent = exponent(numbers.public_exponent.as_bytes())?;
        // `d` below the modulus: an endless one would keep the worker busy.
        let d = numbers.private_exponent.as_bytes();
        if limbs::bit_length(d) > bits {
            return None;
        }
        let (p, q) = (numbers.prime1.as_bytes(), numbers.prime2.as_bytes());
        let prime_bits = limbs::bit_length(p).max(limbs::bit_length(q));
        if prime_bits > bits {
            return None;
        }
        let length = limbs::length_for(prime_bits)?;
        let p = Prime::new(p, numbers.exponent1.as_bytes(), d, exponent, length)?;
        let q = Prime::new(q, numbers.exponent2.as_bytes(), d, exponent, length)?;

        let mut columns = limbs::columns(length);
        limbs::multiply(&mut columns, p.modulus.limbs(), q.modulus.limbs());
        let mut product = limbs::zero(columns.len());
        limbs::carry(&columns, &mut product);
        if product != limbs::from_bytes(n, product.len())? {
            return None;
        }

        let coefficient = limbs::from_bytes(numbers.coefficient.as_bytes(), length)?;
        let mut one = Zeroizing::new(q.modulus.limbs().to_vec());
        p.modulus.enter(&mut one, &mut columns);
        p.modulus.multiply(&mut one, &coefficient, &mut columns);
        limbs::subtract_once(&mut one, p.modulus.limbs());
        if one != limbs::small(1, length) || !limbs::is_below(&coefficient, p.modulus.limbs()) {
            return None;
        }

        Some(Key {
            public: PublicKey {
                modulus: Modulus::new(n, limbs::length_for(bits)?)?,
                exponent,
                size: bits.div_ceil(8),
            },
            p,
            q,
            coefficient,
            blinding: RefCell::default(),
        })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature over a text of this SHA-256; none where there is no randomness, or where the computation went wrong.
    ///
    /// It is the same for the same text: the randomness goes into the blinding alone.
    pub fn sign(&self, digest: &[u8; 32], random: &mut dyn RngCore) -> Option<Vec<u8>> {
        let mut columns = limbs::columns(self.public.modulus.limbs().len());
        // Taken out: a blinding under which anything went wrong is not used again.
        let blinding = self.blinding.take().filter(|blinding| blinding.left > 0);
        let mut blinding = match blinding {
            Some(blinding) => blinding,
            None => self.blind(random, &mut columns)?,
        };
        let padded = limbs::from_bytes(
            &padded(digest, self.public.size)?,
            self.public.modulus.limbs().len(),
        )?;

        let mut signature = padded.clone();
        self.public
            .modulus
            .multiply(&mut signature, &blinding.factor, &mut columns);
        let mut signature = self.raise(&signature, Exponent::Signing);
        self.public
            .modulus
            .multiply(&mut signature, &blinding.inverse, &mut columns);
        limbs::subtract_once(&mut signature, self.public.modulus.limbs());

        if !self.public.opens(signature.clone(), &padded) {
            return None;
        }

        // (r^2)^e and 1/r^2: another pair for the price of two products (Kocher 1996, section 10).
        self.public
            .modulus
            .square(&mut blinding.factor, &mut columns);
        self.public
            .modulus
            .square(&mut blinding.inverse, &mut columns);
        blinding.left = blinding.left.saturating_sub(1);
        self.blinding.replace(Some(blinding));
        Some(limbs::to_bytes(&signature, self.public.size).to_vec())
    }

    /// A pair of factors from fresh randomness.
    fn blind(&self, random: &mut dyn RngCore, columns: &mut Columns) -> Option<Blinding> {
        // 81 bits more than R has, so that what is left of them modulo n favours no number; R * 2^81 is below R * n, too.
        let length = self.public.modulus.limbs().len();
        columns.fill(0);
        for column in columns.iter_mut().take(length.checked_add(3)?) {
            let mut bytes = Zeroizing::new([0; 4]);
            random.try_fill_bytes(&mut *bytes).ok()?;
            *column = u64::from(u32::from_le_bytes(*bytes) >> (32 - limbs::WIDTH));
        }
        let mut factor = limbs::zero(length);
        self.public.modulus.reduce(columns, &mut factor);

        let mut inverse = factor.clone();
        self.public.modulus.leave(&mut inverse, columns);
        let mut inverse = self.raise(&inverse, Exponent::Inverting);
        self.public.modulus.enter(&mut inverse, columns);
        self.public
            .modulus
            .power_public(&mut factor, self.public.exponent, columns);
        Some(Blinding {
            factor,
            inverse,
            left: SIGNATURES_PER_BLINDING,
        })
    }

    /// A number below twice the modulus, raised modulo both primes; put together again, below the modulus.
    fn raise(&self, number: &[u32], exponent: Exponent) -> Number {
        let length = self.p.modulus.limbs().len();
        let mut columns = limbs::columns(length);
        let mut by_p = self.p.raise(number, exponent, &mut columns);
        let mut by_q = self.q.raise(number, exponent, &mut columns);
        self.q.modulus.leave(&mut by_q, &mut columns);
        // Garner: by_q + q * ((by_p - by_q) / q modulo p).
        let mut quotient = by_q.clone();
        self.p.modulus.enter(&mut quotient, &mut columns);
        limbs::difference(&mut by_p, &quotient, &self.p.modulus);
        self.p
            .modulus
            .multiply(&mut by_p, &self.coefficient, &mut columns);
        limbs::subtract_once(&mut by_p, self.p.modulus.limbs());
        limbs::multiply(&mut columns, &by_p, self.q.modulus.limbs());
        for (column, limb) in columns.iter_mut().zip(by_q.iter()) {
            *column = column.wrapping_add(u64::from(*limb));
        }
        let mut whole = limbs::zero(self.public.modulus.limbs().len());
        limbs::carry(&columns, &mut whole);
        whole
    }
}

impl Prime {
    fn new(bytes: &[u8], signing: &[u8], d: &[u8], e: u64, length: usize) -> Option<Self> {
        let modulus = Modulus::new(bytes, length)?;
        // prime - 1, which is even: the prime is odd and above 1.
        let mut less = Zeroizing::new(modulus.limbs().to_vec());
        limbs::subtract_once(&mut less, &limbs::small(1, length));
        let size = limbs::bit_length(bytes).div_ceil(8);
        let exponent = limbs::remainder(d, &less);
        let right = exponent == limbs::from_bytes(signing, length)?
            && limbs::times(&exponent, e, &less) == limbs::small(1, length);
        if !right {
            return None;
        }
        limbs::subtract_once(&mut less, &limbs::small(1, length));
        Some(Prime {
            modulus,
            signing: limbs::to_bytes(&exponent, size),
            inverting: limbs::to_bytes(&less, size),
        })
    }

    /// A number below R times the prime, raised; in Montgomery's form, below twice the prime.
    fn raise(&self, number: &[u32], exponent: Exponent, columns: &mut Columns) -> Number {
        columns.fill(0);
        for (column, limb) in columns.iter_mut().zip(number) {
            *column = u64::from(*limb);
        }
        let mut base = limbs::zero(self.modulus.limbs().len());
        // The reduction divides by R, and entering multiplies: twice, to be in Montgomery's form.
        self.modulus.reduce(columns, &mut base);
        self.modulus.enter(&mut base, columns);
        self.modulus.enter(&mut base, columns);
        let exponent = match exponent {
            Exponent::Signing => &self.signing,
            Exponent::Inverting => &self.inverting,
        };
        self.modulus.power(&mut base, exponent, columns);
        base
    }
}

/// The public exponent: odd, above 1, at most [`MOST_EXPONENT`].
fn exponent(bytes: &[u8]) -> Option<u64> {
    let mut exponent = 0u64;
    for byte in bytes {
        exponent = exponent.checked_mul(256)?.checked_add(u64::from(*byte))?;
    }
    (exponent & 1 == 1 && (3..=MOST_EXPONENT).contains(&exponent)).then_some(exponent)
}

/// EMSA-PKCS1-v1_5 (RFC 8017, 9.2): 00 01 FF … FF 00 and the DigestInfo of a SHA-256.
fn padded(digest: &[u8; 32], size: usize) -> Option<Vec<u8>> {
    const DIGEST_INFO: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
        0x05, 0x00, 0x04, 0x20,
    ];
    let tail = [&[0], &DIGEST_INFO[..], digest].concat();
    // Eight bytes FF are the least.
    let start = size.checked_sub(tail.len()).filter(|start| *start >= 10)?;
    let mut padded = vec![0, 1];
    padded.resize(start, 0xff);
    padded.extend(tail);
    Some(padded)
}

#[cfg(all(test, not(target_arch = "wasm32")))]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]
mod tests {
    use pkcs1::der::Decode as _;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use rsa::pkcs1::EncodeRsaPrivateKey as _;
    use rsa::pkcs8::DecodePrivateKey as _;

    use super::*;

    const PEM: &str = include_str!("../../tests/golden/bbmsl/private_key.pem");

    fn key() -> Key {
        let rsa = rsa::RsaPrivateKey::from_pkcs8_pem(PEM).unwrap();
        let der = rsa.to_pkcs1_der().unwrap();
        Key::new(&RsaPrivateKey::from_der(der.as_bytes()).unwrap()).unwrap()
    }

    /// One bit of anything that a signature is made of, and no signature leaves (Boneh, DeMillo, Lipton).
    #[test]
    fn one_wrong_bit_and_nothing_leaves() {
        let mut random = StdRng::seed_from_u64(1);
        let good = key().sign(&[1; 32], &mut random).unwrap();
        let faults: [fn(&mut Key); 9] = [
            |key| key.p.signing[100] ^= 1,
            |key| key.q.signing[100] ^= 0x80,
            |key| key.coefficient[7] ^= 1,
            |key| key.p.inverting[100] ^= 1,
            |key| key.q.inverting[100] ^= 1,
            |key| key.public.exponent ^= 2,
            |key| key.blinding.get_mut().as_mut().unwrap().factor[9] ^= 1,
            |key| key.blinding.get_mut().as_mut().unwrap().inverse[9] ^= 4,
            |key| {
                let blinding = key.blinding.get_mut().as_mut().unwrap();
                blinding.factor = blinding.inverse.clone();
            },
        ];
        for (nth, fault) in faults.into_iter().enumerate() {
            let mut key = key();
            let blinding = key.blind(
                &mut random,
                &mut limbs::columns(key.public.modulus.limbs().len()),
            );
            // The exponents that invert come into play with a new blinding only.
            key.blinding = RefCell::new(blinding.filter(|_| !(3..=5).contains(&nth)));
            fault(&mut key);
            assert_eq!(key.sign(&[1; 32], &mut random), None, "{nth}");
            assert!(key.blinding.get_mut().is_none(), "{nth}");
        }
        // A blinding that was spoilt is made anew.
        let mut key = key();
        assert_eq!(key.sign(&[1; 32], &mut random), Some(good.clone()));
        faults_of(&mut key);
        assert_eq!(key.sign(&[1; 32], &mut random), None);
        assert_eq!(key.sign(&[1; 32], &mut random), Some(good));
    }

    fn faults_of(key: &mut Key) {
        key.blinding.get_mut().as_mut().unwrap().factor[0] ^= 1;
    }

    #[test]
    fn every_signature_is_made_under_another_blinding() {
        let key = key();
        let mut random = StdRng::seed_from_u64(1);
        let mut seen = Vec::new();
        for _ in 0..70 {
            key.sign(&[1; 32], &mut random).unwrap();
            let blinding = key.blinding.borrow();
            let factor = blinding.as_ref().unwrap().factor.clone();
            assert!(!seen.contains(&factor));
            seen.push(factor);
        }
    }

    #[test]
    fn what_is_signed_is_rfc_8017s_encoding() {
        let padded = padded(&[0xab; 32], 256).unwrap();
        assert_eq!(padded.len(), 256);
        assert_eq!(padded[..3], [0, 1, 0xff]);
        assert!(padded[2..204].iter().all(|byte| *byte == 0xff));
        assert_eq!(padded[204..208], [0, 0x30, 0x31, 0x30]);
        assert_eq!(padded[224..], [0xab; 32]);
        assert!(super::padded(&[0; 32], 61).is_none());
        assert!(super::padded(&[0; 32], 62).is_some());
    }

    #[test]
    fn a_public_exponent_is_odd_and_above_1_and_of_33_bits_at_most() {
        for (bytes, expected) in [
            (&[][..], None),
            (&[0], None),
            (&[1], None),
            (&[2], None),
            (&[3], Some(3)),
            (&[1, 0, 1], Some(65_537)),
            (&[1, 0xff, 0xff, 0xff, 0xff], Some((1 << 33) - 1)),
            (&[2, 0, 0, 0, 1], None),
            (&[0xff; 8], None),
            (&[0xff; 9], None),
            (&[0xff; 1000], None),
        ] {
            assert_eq!(exponent(bytes), expected, "{bytes:?}");
        }
    }
}
