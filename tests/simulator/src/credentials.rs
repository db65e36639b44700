//! What the providers accept, and how often each was used.

use std::sync::Mutex;

use rsa::pkcs8::{DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::{RsaPrivateKey, RsaPublicKey};

use crate::simulators::Error;
use crate::{Provider, lock};

/// An OAuth2 client of Bank of Georgia.
#[derive(Clone)]
pub struct OAuthClient {
    /// `client_id`.
    pub id: String,
    /// `client_secret`.
    pub secret: String,
}

/// A shop of beGateway.
#[derive(Clone)]
pub struct Shop {
    /// `shop_id`, the user name of HTTP Basic.
    pub id: String,
    /// `secret_key`, the password of HTTP Basic.
    pub secret: String,
}

/// A merchant's public key, registered with BBMSL.
#[derive(Clone)]
pub struct MerchantKey {
    /// `merchantId`.
    pub merchant: String,
    /// SPKI PEM (`BEGIN PUBLIC KEY`), RSA.
    pub public_key: String,
}

/// An RSA key pair of 2048 bits to sign for BBMSL with, made on the spot.
pub struct SigningKeys {
    /// PKCS#8 PEM.
    pub private_key: String,
    /// SPKI PEM.
    pub public_key: String,
}

impl SigningKeys {
    /// Makes a pair. Takes a good part of a second.
    pub fn generate() -> Result<SigningKeys, Error> {
        let broken = |_| Error::Key;
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).map_err(|_| Error::Key)?;
        Ok(SigningKeys {
            private_key: key
                .to_pkcs8_pem(LineEnding::LF)
                .map_err(broken)?
                .to_string(),
            public_key: key
                .to_public_key()
                .to_public_key_pem(LineEnding::LF)
                .map_err(|_| Error::Key)?,
        })
    }
}

/// What is accepted. Each is a list, so that a rotation test can accept two and see which one is
/// used: [`crate::Simulators::uses`] counts by place in the list.
#[derive(Clone)]
pub struct Credentials {
    /// One: `refund-demo` with `bog-demo-secret`.
    pub bog: Vec<OAuthClient>,
    /// One API key: `moyasar-demo-key`.
    pub moyasar: Vec<String>,
    /// One: `361` with `begateway-demo-secret`.
    pub begateway: Vec<Shop>,
    /// None, so that BBMSL refuses every signature: a private key in the repository would be one
    /// too many. See [`SigningKeys::generate`].
    pub bbmsl: Vec<MerchantKey>,
}

impl Default for Credentials {
    fn default() -> Self {
        Credentials {
            bog: vec![OAuthClient {
                id: "refund-demo".into(),
                secret: "bog-demo-secret".into(),
            }],
            moyasar: vec!["moyasar-demo-key".into()],
            begateway: vec![Shop {
                id: "361".into(),
                secret: "begateway-demo-secret".into(),
            }],
            bbmsl: Vec::new(),
        }
    }
}

/// A list of accepted credentials, with a count and a switch for each.
pub(crate) struct Accepted<T>(Mutex<Vec<Entry<T>>>);

struct Entry<T> {
    credential: T,
    revoked: bool,
    uses: usize,
}

impl<T> Accepted<T> {
    pub fn new(credentials: impl IntoIterator<Item = T>) -> Accepted<T> {
        let entries = credentials.into_iter().map(|credential| Entry {
            credential,
            revoked: false,
            uses: 0,
        });
        Accepted(Mutex::new(entries.collect()))
    }

    /// The place of the first credential that fits and is not revoked.
    pub fn find(&self, fits: impl Fn(&T) -> bool) -> Option<usize> {
        lock(&self.0)
            .iter()
            .position(|entry| !entry.revoked && fits(&entry.credential))
    }

    pub fn count(&self, nth: usize) {
        if let Some(entry) = lock(&self.0).get_mut(nth) {
            entry.uses += 1;
        }
    }

    pub fn is_accepted(&self, nth: usize) -> bool {
        lock(&self.0).get(nth).is_some_and(|entry| !entry.revoked)
    }
}

/// The part of [`Accepted`] that does not depend on the kind of credential.
pub(crate) trait Uses: Send + Sync {
    fn uses(&self) -> Vec<usize>;
    fn revoke(&self, nth: usize);
}

impl<T: Send> Uses for Accepted<T> {
    fn uses(&self) -> Vec<usize> {
        lock(&self.0).iter().map(|entry| entry.uses).collect()
    }

    fn revoke(&self, nth: usize) {
        if let Some(entry) = lock(&self.0).get_mut(nth) {
            entry.revoked = true;
        }
    }
}

/// Reads the registered keys.
pub(crate) fn merchants(keys: Vec<MerchantKey>) -> Result<Vec<(String, RsaPublicKey)>, Error> {
    keys.into_iter()
        .map(|key| {
            let public = RsaPublicKey::from_public_key_pem(&key.public_key)
                .map_err(|_| Error::Credential(Provider::Bbmsl))?;
            Ok((key.merchant, public))
        })
        .collect()
}
