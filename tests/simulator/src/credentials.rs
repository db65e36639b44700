//! What the providers accept, and how often each was used.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rsa::RsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::simulators::Error;
use crate::{Provider, lock};

/// What a provider accepts.
#[derive(Clone)]
pub struct Credential {
    /// BOG's `client_id`, beGateway's `shop_id`, BBMSL's `merchantId`; empty at Moyasar.
    pub account: String,
    /// The secret; where the gateway signs, the public key: SPKI PEM (`BEGIN PUBLIC KEY`), RSA.
    pub secret: String,
}

impl Credential {
    /// Of an account and a secret.
    pub fn new(account: &str, secret: &str) -> Credential {
        Credential {
            account: account.to_owned(),
            secret: secret.to_owned(),
        }
    }
}

/// An RSA key pair of 2048 bits to sign with, made on the spot.
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

/// What is accepted. Each provider has a list, so that a rotation test can accept two and see which
/// one is used: [`crate::Simulators::uses`] counts by place in the list.
#[derive(Clone)]
pub struct Credentials(BTreeMap<Provider, Vec<Credential>>);

impl Credentials {
    /// Nothing is accepted.
    pub fn none() -> Credentials {
        Credentials(BTreeMap::new())
    }

    /// Accepts one more.
    pub fn accept(&mut self, provider: Provider, credential: Credential) {
        self.0.entry(provider).or_default().push(credential);
    }

    pub(crate) fn of(&self, provider: Provider) -> Vec<Credential> {
        self.0.get(&provider).cloned().unwrap_or_default()
    }
}

impl Default for Credentials {
    /// What each provider declares.
    fn default() -> Self {
        let mut credentials = Credentials::none();
        for provider in Provider::REFUNDING {
            for (account, secret) in provider.declared().accepts {
                credentials.accept(provider, Credential::new(account, secret));
            }
        }
        credentials
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
