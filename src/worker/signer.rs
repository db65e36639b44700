//! Who signs, and what is known of OpenBao's keys.

use super::Worker;
use crate::host::{Level, NOT_FOUND, Randomness};
use crate::signing::{
    PrivateKey, PublicKeys, Signer, SignerChoice, SignerFailed, Told, TransitKeys, VmSigner,
    host_arguments, host_signature,
};

/// How long OpenBao is not asked again for public keys that it does not tell, in milliseconds.
const UNTOLD_MS: i64 = 300_000;

/// Signs by the host or in the module, as the configuration says.
pub(super) struct GatewaySigner<'a>(pub(super) &'a Worker);

impl Signer for GatewaySigner<'_> {
    fn sign(
        &mut self,
        choice: SignerChoice,
        key: &PrivateKey,
        text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed> {
        let host = &*self.0.host;
        if self.0.signer_name(choice) == "vm" {
            return VmSigner(Randomness(host)).sign(choice, key, text);
        }
        let result = host.call_foreign_function("sign", &host_arguments(key, text));
        host_signature(key, text, &result.map_err(|_| SignerFailed)?)
    }
}

impl Worker {
    /// Whether Envoy has the function `sign` (1.37 and later). Without arguments it refuses in one
    /// way or another; only where there is no such function the host does not find it.
    pub(super) fn host_signs(&self) -> bool {
        self.host_signs.get().unwrap_or_else(|| {
            let signs = self.host.call_foreign_function("sign", &[]) != Err(NOT_FOUND);
            self.host_signs.set(Some(signs));
            signs
        })
    }

    /// Who signs where the configuration says this.
    pub(super) fn signer_name(&self, choice: SignerChoice) -> &'static str {
        match choice {
            SignerChoice::Vm => "vm",
            SignerChoice::Host => "host",
            SignerChoice::Auto if self.host_signs() => "host",
            SignerChoice::Auto => "vm",
        }
    }
}

impl PublicKeys for Worker {
    fn told(&self, provider: &str) -> Told {
        let now_ms = self.host.now().steady_ms;
        let told = self.told.borrow();
        match told.get(provider) {
            Some((Told::Unavailable, until_ms)) if now_ms >= *until_ms => Told::NotAsked,
            Some((told, _)) => told.clone(),
            None => Told::NotAsked,
        }
    }

    fn remember(&self, provider: &str, keys: Option<TransitKeys>) -> Told {
        let (told, until_ms) = match keys {
            Some(keys) => (Told::Keys(keys), i64::MAX),
            None => {
                self.log(
                    Level::Warn,
                    &format!(
                        "{provider}: OpenBao's signatures are not verified before they are sent: its public keys cannot be \
                         read (allow `read` on the path keys/NAME, or give signing.transit.public_keys)"
                    ),
                );
                let until_ms = self.host.now().steady_ms.saturating_add(UNTOLD_MS);
                (Told::Unavailable, until_ms)
            }
        };
        let mut known = self.told.borrow_mut();
        known.insert(provider.to_owned(), (told.clone(), until_ms));
        told
    }
}
