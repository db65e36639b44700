//! Signing keys in time, and the three signers: the host's, the module's own, and OpenBao (the Vault API).

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pkcs8::der::asn1::AnyRef;
use pkcs8::der::pem::PemLabel;
use pkcs8::der::{Decode, Document, SecretDocument};
use pkcs8::{PrivateKeyInfoRef, SubjectPublicKeyInfoRef};
use rand_core::TryCryptoRng;
use serde::Serialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::headers::Headers;
use crate::json::Json;
use crate::rsa_key::{KeyFault, MIN_BITS, RsaPrivateKey, RsaPublicKey};
use crate::secret::{Carried, Secret, SecretSource, fingerprint};

/// A private RSA key of 2048 to 4096 bits, parsed and checked.
pub struct PrivateKey {
    key: RsaPrivateKey,
    encoded: Encoded,
}

/// The key as it came, for a signer that parses it itself.
enum Encoded {
    /// PEM, PKCS#8 or PKCS#1.
    Pem(Secret),
    /// PKCS#8 DER.
    Der(Zeroizing<Vec<u8>>),
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
        let text = secret.expose().trim();
        let mut encoded = Encoded::Pem(Secret::new(text.to_owned()));
        let key = if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || text.contains("Proc-Type: 4,ENCRYPTED")
        {
            return Err("The private key is encrypted: give it without a passphrase.");
        } else if text.starts_with("-----BEGIN RSA PRIVATE KEY-----") {
            let der = der_of(text, pkcs1::RsaPrivateKeyRef::PEM_LABEL);
            der.and_then(|der| {
                pkcs1::RsaPrivateKeyRef::from_der(der.as_bytes())
                    .ok()
                    .map(|numbers| RsaPrivateKey::new(&numbers))
            })
            .ok_or("This is no RSA private key in PKCS#1 that can be read.")?
        } else if text.starts_with("-----BEGIN PRIVATE KEY-----") {
            let der = der_of(text, PrivateKeyInfoRef::PEM_LABEL);
            der.and_then(|der| pkcs8_key(der.as_bytes()))
                .ok_or(NOT_RSA)?
        } else if text.starts_with("-----BEGIN") {
            return Err(
                "This PEM is no private RSA key: PRIVATE KEY (PKCS#8) or RSA PRIVATE KEY (PKCS#1) is needed.",
            );
        } else {
            let der = STANDARD.decode(text).map(Zeroizing::new).map_err(|_| {
                "The private key must be PEM (PKCS#8 or PKCS#1), or the base64 of PKCS#8 DER on one line."
            })?;
            let key = pkcs8_key(&der).ok_or(NOT_RSA)?;
            encoded = Encoded::Der(der);
            key
        };
        let key = key.map_err(|fault| match fault {
            KeyFault::Short => "The RSA key is too short: 2048 bits are the least.",
            KeyFault::Long => "The RSA key is too long: 4096 bits are the most.",
            KeyFault::Primes => "The RSA key has more than two primes.",
            KeyFault::Numbers => "The RSA key's numbers do not belong together.",
        })?;
        Ok(PrivateKey { key, encoded })
    }

    /// Tells it from other keys in logs: the beginning of the SHA-256 of its public half in DER, as
    /// `openssl pkey -pubout -outform DER` writes it.
    fn fingerprint(&self) -> Option<String> {
        Some(fingerprint(&self.key.public_der()?))
    }
}

/// A public RSA key of 2048 to 4096 bits.
#[derive(Debug)]
pub struct PublicKey(RsaPublicKey);

impl PublicKey {
    /// Reads PEM (`PUBLIC KEY`: RFC 5280's SubjectPublicKeyInfo).
    pub fn read(pem: &str) -> Option<Self> {
        let (label, der) = Document::from_pem(pem.trim()).ok()?;
        if label != SubjectPublicKeyInfoRef::PEM_LABEL {
            return None;
        }
        let info = SubjectPublicKeyInfoRef::from_der(der.as_bytes()).ok()?;
        let key = pkcs1::RsaPublicKeyRef::from_der(info.subject_public_key.as_bytes()?).ok()?;
        let is_rsa = info.algorithm.oid == pkcs1::ALGORITHM_OID;
        let key = RsaPublicKey::new(&key).ok();
        key.filter(|_| is_rsa).map(PublicKey)
    }

    /// Whether this is the key's signature over exactly these bytes.
    pub fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        self.0.verify(&Sha256::digest(text).into(), signature)
    }
}

const NOT_RSA: &str = "This is no RSA private key in PKCS#8 that can be read.";

/// What is in a PEM of this label.
fn der_of(pem: &str, label: &str) -> Option<SecretDocument> {
    let (found, der) = SecretDocument::from_pem(pem).ok()?;
    (found == label).then_some(der)
}

/// The key in PKCS#8 DER; none where it is not RSA.
fn pkcs8_key(der: &[u8]) -> Option<Result<RsaPrivateKey, KeyFault>> {
    let info = PrivateKeyInfoRef::from_der(der).ok()?;
    let rsa = info.algorithm.oid == pkcs1::ALGORITHM_OID
        && info.algorithm.parameters == Some(AnyRef::NULL);
    let numbers = pkcs1::RsaPrivateKeyRef::from_der(info.private_key.as_bytes()).ok()?;
    rsa.then(|| RsaPrivateKey::new(&numbers))
}

/// One key of a ring, with the time in which it may sign.
#[derive(Debug)]
pub struct RingKey {
    /// The name for logs: never a part of the key.
    pub id: String,
    /// Where the key comes from.
    pub source: SecretSource,
    /// The first second in which it signs (Unix time); none: always did.
    pub not_before: Option<i64>,
    /// The first second in which it no longer signs (Unix time); none: for ever.
    pub not_after: Option<i64>,
    parsed: RefCell<Option<Parsed>>,
}

/// A key's text and what came of reading it: a key that arrives with every call is read once.
#[derive(Debug)]
struct Parsed {
    text: Secret,
    key: Result<Rc<PrivateKey>, &'static str>,
}

impl RingKey {
    /// A key that has not been read yet.
    pub fn new(
        id: String,
        source: SecretSource,
        not_before: Option<i64>,
        not_after: Option<i64>,
    ) -> Self {
        RingKey {
            id,
            source,
            not_before,
            not_after,
            parsed: RefCell::default(),
        }
    }

    /// What logs call it: its id alone does not tell a file's new key from the one before.
    pub fn named(&self, key: &PrivateKey) -> String {
        match key.fingerprint() {
            Some(fingerprint) => format!("{} {fingerprint}", self.id),
            None => self.id.clone(),
        }
    }

    /// The key as this call brings it. The error is a sentence without a part of the key.
    pub fn key(&self, carried: &Carried<'_>) -> Result<Rc<PrivateKey>, String> {
        let mut parsed = self.parsed.borrow_mut();
        let known = match (parsed.take(), &self.source) {
            (Some(known), SecretSource::Here(_)) => known,
            (known, source) => {
                let text = source.resolve(carried)?;
                known
                    .filter(|known| known.text == text)
                    .unwrap_or_else(|| Parsed {
                        key: PrivateKey::read(&text).map(Rc::new),
                        text,
                    })
            }
        };
        let key = known.key.clone();
        *parsed = Some(known);
        key.map_err(str::to_owned)
    }
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

    /// The key that signs at this second, and itself, as this call brings it. The error is a sentence without a part of the key.
    pub fn usable(
        &self,
        now: i64,
        carried: &Carried<'_>,
    ) -> Result<(&RingKey, Rc<PrivateKey>), String> {
        let active = self
            .active(now)
            .ok_or("No signing key of this provider is in its time.")?;
        let key = active.key(carried).map_err(|sentence| {
            format!("The signing key {} cannot be used. {sentence}", active.id)
        })?;
        Ok((active, key))
    }

    /// The second from which on no key signs any more (Unix time); none where one signs for ever.
    pub fn not_after(&self) -> Option<i64> {
        let mut last = i64::MIN;
        for key in &self.0 {
            last = last.max(key.not_after?);
        }
        Some(last)
    }
}

/// Which signer signs with a key ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SignerChoice {
    /// The host's where it has one, else the module's own.
    #[default]
    Auto,
    /// The host's: Envoy's foreign function `sign` (1.37 and later).
    Host,
    /// The module's own.
    Vm,
}

/// How a provider's requests are signed.
#[derive(Debug)]
pub enum Signing {
    /// With keys that the gateway holds.
    Keys {
        /// The keys.
        ring: KeyRing,
        /// Who signs with them.
        signer: SignerChoice,
    },
    /// By OpenBao, which never gives the key away.
    Transit(Rc<Transit>),
}

impl Signing {
    /// Whether a signature could be made at this second (Unix time), as this call brings the keys. The error is a sentence for
    /// the platform team.
    pub fn is_ready(&self, now: i64, carried: &Carried<'_>) -> Result<(), String> {
        match self {
            Signing::Keys { ring, .. } => ring.usable(now, carried).map(drop),
            Signing::Transit(transit) => transit.token.resolve_for_header(carried).map(drop),
        }
    }
}

/// The signer failed. There is nothing in it that could carry a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignerFailed;

/// Who signs: RSASSA-PKCS1-v1_5 with SHA-256. The signature is deterministic, so every signer gives the same bytes.
pub trait Signer {
    /// The signature over exactly these bytes.
    fn sign(
        &mut self,
        choice: SignerChoice,
        key: &PrivateKey,
        text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed>;
}

/// The signer inside the module: blinded, and checked before anything leaves.
pub struct VmSigner<R>(
    /// Randomness for the blinding.
    pub R,
);

impl<R: TryCryptoRng> Signer for VmSigner<R> {
    fn sign(
        &mut self,
        _choice: SignerChoice,
        key: &PrivateKey,
        text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed> {
        let signature = key.key.sign(&Sha256::digest(text).into(), &mut self.0);
        signature.ok_or(SignerFailed)
    }
}

/// The arguments of Envoy's foreign function `sign`: the protobuf message `SignArguments` with `hash_function` (1),
/// `private_key` (2, PKCS#8 DER) or `private_key_pem` (4), and `text` (3).
pub fn host_arguments(key: &PrivateKey, text: &[u8]) -> Zeroizing<Vec<u8>> {
    let (number, key) = match &key.encoded {
        Encoded::Pem(pem) => (4, pem.expose().as_bytes()),
        Encoded::Der(der) => (2, der.as_slice()),
    };
    // With room for the rest, so that no copy of the key is left behind; and no more, since all of it is wiped.
    let room = key.len().saturating_add(text.len()).saturating_add(64);
    let mut message = Zeroizing::new(Vec::with_capacity(room));
    put_field(&mut message, 1, b"sha256");
    put_field(&mut message, number, key);
    put_field(&mut message, 3, text);
    message
}

/// The signature in the host's `SignResult`: `result` (1, bool), `signature` (2), `error` (3).
///
/// Only a signature that the key's public half verifies leaves; anything else is a failure, whatever the host says.
pub fn host_signature(
    key: &PrivateKey,
    text: &[u8],
    message: &[u8],
) -> Result<Vec<u8>, SignerFailed> {
    let (mut good, mut signature) = (false, None);
    let mut rest = message;
    while !rest.is_empty() {
        match take_varint(&mut rest).ok_or(SignerFailed)? {
            0x08 => good = take_varint(&mut rest).ok_or(SignerFailed)? == 1,
            0x12 => signature = Some(take_bytes(&mut rest).ok_or(SignerFailed)?),
            // Other fields of bytes: the error among them, which is not for a caller.
            tag if tag & 7 == 2 => drop(take_bytes(&mut rest).ok_or(SignerFailed)?),
            tag if tag & 7 == 0 => drop(take_varint(&mut rest).ok_or(SignerFailed)?),
            _ => return Err(SignerFailed),
        }
    }
    let digest = Sha256::digest(text).into();
    signature
        .filter(|signature| good && key.key.verify(&digest, signature))
        .map(<[u8]>::to_vec)
        .ok_or(SignerFailed)
}

fn put_field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    // Wire type 2: a length and so many bytes.
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    while length > 0x7f {
        message.push(length.to_le_bytes().first().copied().unwrap_or_default() | 0x80);
        length >>= 7;
    }
    message.push(length.to_le_bytes().first().copied().unwrap_or_default());
    message.extend_from_slice(bytes);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

/// A key in OpenBao's transit engine (the Vault API).
#[derive(Debug)]
pub struct Transit {
    /// The Envoy cluster that reaches OpenBao.
    pub cluster: String,
    /// Where the engine is mounted.
    pub mount: String,
    /// The key's name.
    pub key: String,
    /// The token that may sign with it.
    pub token: SecretSource,
    /// The namespace, if there is one.
    pub namespace: Option<String>,
    /// Its public halves, where the configuration has them: every signature is verified by one of them.
    pub public_keys: Vec<Rc<PublicKey>>,
}

/// A signature of OpenBao's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitSignature {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The version of the key that made it.
    pub version: String,
}

/// What OpenBao has told of its public keys.
#[derive(Debug, Clone, Default)]
pub enum Told {
    /// Nothing yet.
    #[default]
    NotAsked,
    /// These.
    Keys(TransitKeys),
    /// It was asked, and does not tell.
    Unavailable,
}

/// What is remembered of OpenBao's public keys, by the provider's configured name.
pub trait PublicKeys {
    /// What OpenBao has told.
    fn told(&self, provider: &str) -> Told;
    /// Remembers what it has told now, and returns that; none: it does not tell.
    fn remember(&self, provider: &str, keys: Option<TransitKeys>) -> Told;
}

/// Whether a signature of OpenBao's is what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// A public half verifies it.
    Yes,
    /// None does.
    No,
    /// No public half is known.
    NotKnown,
}

/// The public halves of a transit key, as OpenBao has told them.
#[derive(Debug, Clone, Default)]
pub struct TransitKeys(pub Vec<(String, Rc<PublicKey>)>);

impl TransitKeys {
    /// Reads the answer of `GET /v1/:mount/keys/:name`: `{"data": {"keys": {"1": {"public_key": PEM}}}}`.
    pub fn read(status: u16, body: &[u8]) -> Option<Self> {
        if status != 200 {
            return None;
        }
        let json = Json::parse(body).ok()?;
        let versions = json.root().get("data")?.get("keys")?.members()?.ok()?;
        let keys = versions.into_iter().filter_map(|(version, key)| {
            let key = PublicKey::read(&key.get("public_key")?.text()?)?;
            Some((version.into_owned(), Rc::new(key)))
        });
        Some(TransitKeys(keys.collect()))
    }

    /// Whether the key of this version is known.
    pub fn has(&self, version: &str) -> bool {
        self.0.iter().any(|(known, _)| known == version)
    }
}

/// How long OpenBao may take, in milliseconds.
pub const TRANSIT_TIMEOUT_MS: u32 = 5_000;

impl Transit {
    /// The headers of a request to sign (`POST /v1/:mount/sign/:name/:hash_algorithm`).
    pub fn request_headers(&self, token: &Secret) -> Headers<'static> {
        let path = format!("/v1/{}/sign/{}/sha2-256", self.mount, self.key);
        let mut headers = self.headers("POST", path, token);
        headers.fixed("content-type", "application/json");
        headers
    }

    /// The headers of a request for the key's public halves (`GET /v1/:mount/keys/:name`).
    pub fn keys_headers(&self, token: &Secret) -> Headers<'static> {
        self.headers(
            "GET",
            format!("/v1/{}/keys/{}", self.mount, self.key),
            token,
        )
    }

    fn headers(&self, method: &'static str, path: String, token: &Secret) -> Headers<'static> {
        let mut headers = Headers::default();
        headers.fixed(":method", method);
        headers.fixed(":scheme", "https");
        headers.text(":authority", self.cluster.clone());
        headers.text(":path", path);
        headers.fixed("accept", "application/json");
        headers.fixed("accept-encoding", "identity");
        headers.fixed("user-agent", crate::USER_AGENT);
        headers.text("x-vault-token", token.expose().to_owned());
        // Without it OpenBao's agent refuses to pass a request on.
        headers.fixed("x-vault-request", "true");
        if let Some(namespace) = &self.namespace {
            headers.text("x-vault-namespace", namespace.clone());
        }
        headers
    }

    /// The body of a request to sign.
    pub fn request_body(text: &str) -> String {
        #[derive(Serialize)]
        struct Body {
            input: String,
            signature_algorithm: &'static str,
        }
        crate::json_text(&Body {
            input: STANDARD.encode(text),
            signature_algorithm: "pkcs1v15",
        })
    }

    /// The signature in OpenBao's answer: `{"data": {"signature": "vault:v1:BASE64"}}`.
    pub fn read_reply(&self, status: u16, body: &[u8]) -> Option<TransitSignature> {
        if status != 200 {
            return None;
        }
        let json = Json::parse(body).ok()?;
        let signature = json.root().get("data")?.get("signature")?.text()?;
        let (version, base64) = signature.strip_prefix("vault:v")?.split_once(':')?;
        let bytes = STANDARD.decode(base64).ok()?;
        let sound = !version.is_empty()
            && version.bytes().all(|b| b.is_ascii_digit())
            && bytes.len().saturating_mul(8) >= MIN_BITS as usize;
        sound.then(|| TransitSignature {
            bytes,
            version: version.to_owned(),
        })
    }

    /// The key's id for logs: `NAME:vVERSION`.
    pub fn key_id(&self, signature: &TransitSignature) -> String {
        format!("{}:v{}", self.key, signature.version)
    }

    /// Verifies a signature by the configured public halves; where there are none, by those that OpenBao has told.
    pub fn verify(&self, text: &str, signature: &TransitSignature, told: &TransitKeys) -> Verified {
        let told = told
            .0
            .iter()
            .filter(|(version, _)| *version == signature.version)
            .map(|(_, key)| key);
        let keys: Vec<_> = if self.public_keys.is_empty() {
            told.collect()
        } else {
            self.public_keys.iter().collect()
        };
        if keys.is_empty() {
            return Verified::NotKnown;
        }
        let verified = keys
            .iter()
            .any(|key| key.verify(text.as_bytes(), &signature.bytes));
        if verified {
            Verified::Yes
        } else {
            Verified::No
        }
    }
}
