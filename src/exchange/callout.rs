//! The calls that the gateway makes on its own behalf before the provider's request can leave, all
//! described in one way.

use std::borrow::Cow;
use std::rc::Rc;

use super::call::Call;
use super::sentences::nothing_left;
use super::{Answer, Inquiry, LocalReply, ReplyHead, Step, Unsigned, Unverified};
use crate::clock::Now;
use crate::config::ProviderEntry;
use crate::guard::Guard;
use crate::headers::Headers;
use crate::signing::{PublicKeys, Signer, TransitKeys};

/// A call of the gateway's own, by what waits for it. Nothing was sent that could move money.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub enum Callout {
    /// OpenBao is to sign the provider's request.
    Signature(Box<Unsigned>),
    /// OpenBao is to tell the public key that verifies its signature.
    PublicKeys(Box<Unverified>),
    /// The provider is to say what it knows of a payment or an order.
    Inquiry(Box<Inquiry>),
}

/// What such a call sends, and where to.
#[derive(Debug)]
pub struct CalloutRequest<'a> {
    /// The Envoy cluster.
    pub cluster: &'a str,
    /// All headers, pseudo-headers included. They hold credentials.
    pub headers: Cow<'a, Headers<'static>>,
    /// The body.
    pub body: Cow<'a, str>,
    /// How long the answer may take, in milliseconds.
    pub timeout_ms: u32,
}

/// What a step takes from outside the core.
pub struct Environment<'a> {
    /// The time.
    pub now: Now,
    /// Who signs what the gateway signs itself.
    pub signer: &'a mut dyn Signer,
    /// Reads Envoy's filter state.
    pub filter_state: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    /// The guard in the process's own memory, where it is on.
    pub guard: Option<&'a Guard<'a>>,
    /// Whether gateways share one: then a payment is not taken in the process's own.
    pub shares: bool,
    /// What is remembered of OpenBao's public keys.
    pub public_keys: &'a dyn PublicKeys,
}

impl Callout {
    fn call(&self) -> &Call {
        match self {
            Callout::Signature(unsigned) => unsigned.call(),
            Callout::PublicKeys(unverified) => unverified.call(),
            Callout::Inquiry(inquiry) => inquiry.call(),
        }
    }

    /// The configured provider.
    pub fn entry(&self) -> &Rc<ProviderEntry> {
        &self.call().entry
    }

    /// Which key the call itself was made with, for logs.
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Callout::Signature(_) | Callout::PublicKeys(_) => None,
            Callout::Inquiry(inquiry) => inquiry.key_id(),
        }
    }

    /// The request.
    pub fn request(&self) -> CalloutRequest<'_> {
        match self {
            Callout::Signature(unsigned) => unsigned.request(),
            Callout::PublicKeys(unverified) => unverified.request(),
            Callout::Inquiry(inquiry) => inquiry.request(),
        }
    }

    /// Goes on with the whole reply.
    pub fn reply(self, head: &ReplyHead, body: &[u8], environment: &mut Environment<'_>) -> Step {
        let name = &*Rc::clone(self.entry()).name;
        match self {
            Callout::Signature(unsigned) => {
                let told = environment.public_keys.told(name);
                unsigned.reply(head.status, body, &told)
            }
            Callout::PublicKeys(unverified) => {
                let keys = TransitKeys::read(head.status, body);
                unverified.reply(&environment.public_keys.remember(name, keys))
            }
            Callout::Inquiry(inquiry) => inquiry.reply(head, body, environment),
        }
    }

    /// Goes on where the call could not be made.
    pub fn not_made(self, public_keys: &dyn PublicKeys) -> Step {
        self.without_reply(public_keys, Inquiry::not_made)
    }

    /// Goes on where the reply did not come, or did not end.
    pub fn cut(self, public_keys: &dyn PublicKeys) -> Step {
        self.without_reply(public_keys, Inquiry::cut)
    }

    fn without_reply(
        self,
        public_keys: &dyn PublicKeys,
        of_inquiry: fn(Inquiry) -> Answer,
    ) -> Step {
        match self {
            Callout::Signature(unsigned) => Step::Answered(unsigned.failed()),
            Callout::PublicKeys(unverified) => {
                let name = &*Rc::clone(&unverified.call().entry).name;
                unverified.reply(&public_keys.remember(name, None))
            }
            Callout::Inquiry(inquiry) => Step::Answered(of_inquiry(*inquiry)),
        }
    }

    /// The answer in place of Envoy's own meanwhile.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        let call = self.call();
        call.not_sent(nothing_left(reply, Some(&call.entry.base_url.authority)))
    }
}
