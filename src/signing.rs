//! Signing keys in time, the port to a signer, and the signer inside the module.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs1v15::{Pkcs1v15Sign, SigningKey as Pkcs1v15Key};
use rsa::pkcs8::DecodePrivateKey;
use rsa::rand_core::CryptoRngCore;
use rsa::sha2::Sha256;
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use rsa::traits::PublicKeyParts;
use rsa::{RsaPrivateKey, RsaPublicKey};
use sha2::Digest;

use crate::secret::Secret;

/// The shortest modulus that is taken, in bits (BBMSL's page asks for RSA 2048).
const MIN_BITS: usize = 2048;

/// A private RSA key, parsed and checked.
pub struct PrivateKey {
    signing: Pkcs1v15Key<Sha256>,
    public: RsaPublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PrivateKey {
    /// Reads PEM (PKCS#8 or PKCS#1) or the base64 of PKCS#8 DER.
    ///
    /// The error is a sentence for a platform team that never holds a part of the key.
    pub fn read(secret: &Secret) -> Result<Self, &'static str> {
        const NOT_RSA: &str = "This is no RSA private key in PKCS#8 that can be read.";
        let text = secret.expose().trim();
        let key = if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || text.contains("Proc-Type: 4,ENCRYPTED")
        {
            return Err("The private key is encrypted: give it without a passphrase.");
        } else if text.starts_with("-----BEGIN RSA PRIVATE KEY-----") {
            RsaPrivateKey::from_pkcs1_pem(text)
                .map_err(|_| "This is no RSA private key in PKCS#1 that can be read.")?
        } else if text.starts_with("-----BEGIN PRIVATE KEY-----") {
            RsaPrivateKey::from_pkcs8_pem(text).map_err(|_| NOT_RSA)?
        } else if text.starts_with("-----BEGIN") {
            return Err(
                "This PEM is no private RSA key: PRIVATE KEY (PKCS#8) or RSA PRIVATE KEY (PKCS#1) is needed.",
            );
        } else {
            let der = STANDARD.decode(text).map_err(|_| {
                "The private key must be PEM (PKCS#8 or PKCS#1), or the base64 of PKCS#8 DER on one line."
            })?;
            RsaPrivateKey::from_pkcs8_der(&der).map_err(|_| NOT_RSA)?
        };
        if key.n().bits() < MIN_BITS {
            return Err("The RSA key is too short: 2048 bits are the least.");
        }
        key.validate()
            .map_err(|_| "The RSA key's numbers do not belong together.")?;
        Ok(PrivateKey {
            public: key.to_public_key(),
            signing: Pkcs1v15Key::new(key),
        })
    }
}

/// One key of a ring, with the time in which it may sign.
#[derive(Debug)]
pub struct RingKey {
    /// The name for logs: never a part of the key.
    pub id: String,
    /// The key.
    pub key: PrivateKey,
    /// The first second in which it signs (Unix time); none: always did.
    pub not_before: Option<i64>,
    /// The first second in which it no longer signs (Unix time); none: for ever.
    pub not_after: Option<i64>,
}

/// A provider's signing keys.
#[derive(Debug, Default)]
pub struct KeyRing(pub Vec<RingKey>);

impl KeyRing {
    /// The key that signs at this second (Unix time): of those whose time it is, the one whose time began last; of two
    /// that began together, the one that the configuration names later.
    pub fn active(&self, now: i64) -> Option<&RingKey> {
        self.0
            .iter()
            .filter(|key| key.not_before.is_none_or(|from| from <= now))
            .filter(|key| key.not_after.is_none_or(|until| now < until))
            .max_by_key(|key| key.not_before.unwrap_or(i64::MIN))
    }
}

/// The signer failed. There is nothing in it that could carry a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignerFailed;

/// Who signs: RSASSA-PKCS1-v1_5 with SHA-256. The signature is deterministic, so every signer gives the same bytes.
pub trait Signer {
    /// The signature over exactly these bytes.
    fn sign(&mut self, key: &PrivateKey, text: &[u8]) -> Result<Vec<u8>, SignerFailed>;
}

/// The signer inside the module: blinded, and checked before anything leaves.
pub struct VmSigner<R>(
    /// Randomness for the blinding.
    pub R,
);

impl<R: CryptoRngCore> Signer for VmSigner<R> {
    fn sign(&mut self, key: &PrivateKey, text: &[u8]) -> Result<Vec<u8>, SignerFailed> {
        // `rsa` has an open advisory on timing (RUSTSEC-2023-0071): without randomness it does not blind at all.
        let signature = key
            .signing
            .try_sign_with_rng(&mut self.0, text)
            .map_err(|_| SignerFailed)?
            .to_vec();
        // One wrong bit in a CRT computation gives a signature from which the key can be found (Boneh, DeMillo, Lipton).
        key.public
            .verify(
                Pkcs1v15Sign::new::<Sha256>(),
                &Sha256::digest(text),
                &signature,
            )
            .map_err(|_| SignerFailed)?;
        Ok(signature)
    }
}
