//! A call that OpenBao signs: it waits for the signature, and where the public key is not known
//! yet, for that one, too.

use std::borrow::Cow;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::call::Call;
use super::sending::Draft;
use super::{Answer, Callout, CalloutRequest, Step};
use crate::headers::Headers;
use crate::secret::Secret;
use crate::signing::{TRANSIT_TIMEOUT_MS, Told, Transit, TransitKeys, TransitSignature, Verified};

/// A call that waits for OpenBao's signature. Nothing was sent.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub struct Unsigned {
    draft: Draft,
    transit: Rc<Transit>,
    text: String,
    seal: fn(&str, &str) -> String,
    token: Secret,
}

/// A call whose signature waits for OpenBao's word on the public key. Nothing was sent.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub struct Unverified {
    unsigned: Unsigned,
    signature: TransitSignature,
}

impl Unsigned {
    pub(super) fn new(
        draft: Draft,
        transit: Rc<Transit>,
        text: String,
        seal: fn(&str, &str) -> String,
        token: Secret,
    ) -> Self {
        Unsigned {
            draft,
            transit,
            text,
            seal,
            token,
        }
    }

    pub(super) fn call(&self) -> &Call {
        &self.draft.call
    }

    pub(super) fn request(&self) -> CalloutRequest<'_> {
        CalloutRequest {
            cluster: &self.transit.cluster,
            headers: self.joined(self.transit.request_headers(&self.token)),
            body: Cow::Owned(Transit::request_body(&self.text)),
            timeout_ms: TRANSIT_TIMEOUT_MS,
        }
    }

    /// Headers for OpenBao, joined to the caller's call.
    fn joined(&self, mut headers: Headers<'static>) -> Cow<'_, Headers<'static>> {
        headers.extend(self.call().caller.sound_trace());
        Cow::Owned(headers)
    }

    /// Goes on with OpenBao's answer. `told` is what it has told of its public keys before.
    pub(super) fn reply(self, status: u16, body: &[u8], told: &Told) -> Step {
        let Some(signature) = self.transit.read_reply(status, body) else {
            return Step::Answered(self.failed());
        };
        match (self.verify(&signature, told), told) {
            (Verified::NotKnown, Told::NotAsked | Told::Keys(_)) => {
                Step::Calling(Callout::PublicKeys(Box::new(Unverified {
                    unsigned: self,
                    signature,
                })))
            }
            (verified, _) => self.go_on(verified, &signature),
        }
    }

    fn verify(&self, signature: &TransitSignature, told: &Told) -> Verified {
        let none = TransitKeys::default();
        let told = match told {
            Told::Keys(keys) => keys,
            Told::NotAsked | Told::Unavailable => &none,
        };
        self.transit.verify(&self.text, signature, told)
    }

    fn go_on(self, verified: Verified, signature: &TransitSignature) -> Step {
        match verified {
            Verified::Yes | Verified::NotKnown => {
                let key_id = self.transit.key_id(signature);
                let signature = STANDARD.encode(&signature.bytes);
                self.draft.signed(&self.text, self.seal, &signature, key_id)
            }
            Verified::No => Step::Answered(
                self.draft
                    .call
                    .unsigned("OpenBao gave a signature that its public key does not verify."),
            ),
        }
    }

    /// The answer where OpenBao gives no signature.
    pub(super) fn failed(self) -> Answer {
        self.draft.call.unsigned("OpenBao gave no signature.")
    }
}

impl Unverified {
    pub(super) fn call(&self) -> &Call {
        self.unsigned.call()
    }

    pub(super) fn request(&self) -> CalloutRequest<'_> {
        let Unsigned { transit, token, .. } = &self.unsigned;
        CalloutRequest {
            cluster: &transit.cluster,
            headers: self.unsigned.joined(transit.keys_headers(token)),
            body: Cow::Borrowed(""),
            timeout_ms: TRANSIT_TIMEOUT_MS,
        }
    }

    /// Goes on with what OpenBao has told now: without a public key the signature cannot be
    /// verified, and goes out as it is.
    pub(super) fn reply(self, told: &Told) -> Step {
        let verified = self.unsigned.verify(&self.signature, told);
        self.unsigned.go_on(verified, &self.signature)
    }
}
