//! Sound calls, and who signs them where the signature is not the subject: for the core's suites
//! and the fuzz targets.

use refund_filter::clock::Now;
use refund_filter::exchange::{Callout, Environment, ReplyHead, Step};
use refund_filter::guard::Guard;
use refund_filter::headers::Headers;
use refund_filter::signing::{
    PrivateKey, PublicKeys, Signer, SignerChoice, SignerFailed, Told, TransitKeys,
};

/// 2026-11-22T08:00:00Z, on a machine that began to count five days and some hours before.
pub const NOW: Now = Now {
    unix_ms: 1_795_334_400_000,
    steady_ms: 450_000_000,
};

/// The headers of a sound call.
pub fn call_headers(key: &str) -> Headers<'static> {
    let mut headers = Headers::default();
    for (name, value) in [
        (":method", "POST"),
        (":path", "/v1/refunds"),
        ("content-type", "application/json"),
        ("x-request-id", "request-1"),
    ] {
        headers.text(name, value.to_owned());
    }
    headers.text("idempotency-key", key.to_owned());
    headers
}

/// The headers of a look-up.
pub fn look_up_headers(query: &str) -> Headers<'static> {
    let mut headers = Headers::default();
    headers.text(":method", "GET".to_owned());
    headers.text(":path", format!("/v1/refunds?{query}"));
    headers.text("x-request-id", "request-1".to_owned());
    headers
}

/// A signer for tests of which the signature is not the subject: RSA would be most of their time.
pub struct StubSigner;

impl Signer for StubSigner {
    fn sign(
        &mut self,
        _choice: SignerChoice,
        _key: &PrivateKey,
        _text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed> {
        Ok(vec![0x5a; 256])
    }
}

/// What OpenBao has told of its public keys.
pub struct Keys(pub Told);

impl PublicKeys for Keys {
    fn told(&self, _provider: &str) -> Told {
        self.0.clone()
    }

    fn remember(&self, _provider: &str, keys: Option<TransitKeys>) -> Told {
        keys.map_or(Told::Unavailable, Told::Keys)
    }
}

/// Goes on with the reply to a call of the gateway's own. OpenBao tells no public keys.
pub fn call_reply(
    callout: Callout,
    head: &ReplyHead,
    body: &[u8],
    now: Now,
    filter_state: &dyn Fn(&str) -> Option<Vec<u8>>,
    guard: Option<&Guard<'_>>,
) -> Step {
    let mut environment = Environment {
        now,
        signer: &mut StubSigner,
        filter_state,
        guard,
        shares: false,
        public_keys: &Keys(Told::Unavailable),
    };
    callout.reply(head, body, &mut environment)
}
