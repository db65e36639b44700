//! The provider's request, from the dialect's draft to what leaves.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::call::{Call, Task};
use super::sentences::gateway_error;
use super::{Callout, Inquiry, Sent, Step, Unsigned, Waiting, preview};
use crate::authorization::{basic, basic_pair, bearer};
use crate::clock::Now;
use crate::config::Auth;
use crate::headers::Headers;
use crate::idempotency::ProviderKey;
use crate::problem::{Code, Retry};
use crate::provider::{Attempt, Idempotency, Payload, ProviderRequest};
use crate::refund::Refund;
use crate::secret::{Carried, Secret};
use crate::signing::{KeyRing, Signer, SignerChoice, Signing};

pub(super) fn sign(
    ring: &KeyRing,
    choice: SignerChoice,
    text: &str,
    now: Now,
    signer: &mut dyn Signer,
    carried: &Carried<'_>,
) -> Result<(String, String), String> {
    let (active, key) = ring.usable(now.unix_ms.div_euclid(1_000), carried)?;
    let signature = signer
        .sign(choice, &key, text.as_bytes())
        .map_err(|_| format!("The signer failed with the key {}.", active.id))?;
    Ok((STANDARD.encode(signature), active.named(&key)))
}

/// A provider's request without what proves who calls.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub(super) struct Draft {
    pub(super) call: Call,
    path: String,
    headers: Vec<(&'static str, String)>,
    via: Via,
}

/// How a provider's request leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// In place of the caller's, by the route.
    Route,
    /// By a call of the gateway's own: before the refund itself, or where the caller's call has no
    /// body to be replaced.
    Callout,
}

impl Call {
    /// What goes to the provider first.
    pub(super) fn begin(self, now: Now, signer: &mut dyn Signer, carried: &Carried<'_>) -> Step {
        match &self.task {
            Task::Refund(refund, _) if self.entry.query_first && !self.preview => {
                let question = self.entry.dialect.look(&refund.payment);
                self.draft(question, Via::Callout, now, signer, carried)
            }
            Task::Refund(refund, key) => {
                let request = self.refund_request(refund, *key);
                self.draft(request, Via::Route, now, signer, carried)
            }
            Task::LookUp(wanted, _) => {
                let question = self.entry.dialect.look_up(wanted);
                let via = match question.as_ref().map(|question| &question.body) {
                    None | Some(Payload::None) => Via::Route,
                    Some(Payload::Plain(_) | Payload::ToSign { .. }) => Via::Callout,
                };
                self.draft(question, via, now, signer, carried)
            }
        }
    }

    /// The refund itself.
    pub(super) fn refund_request(
        &self,
        refund: &Refund,
        key: ProviderKey,
    ) -> Option<ProviderRequest> {
        let attempt = Attempt {
            key,
            default_reason: self.entry.default_reason.as_deref(),
        };
        self.entry.dialect.request(refund, &attempt)
    }

    pub(super) fn draft(
        self,
        request: Option<ProviderRequest>,
        via: Via,
        now: Now,
        signer: &mut dyn Signer,
        carried: &Carried<'_>,
    ) -> Step {
        let Some(request) = request else {
            return Step::Answered(self.not_sent(gateway_error(
                500,
                "Nothing was sent: the call lacks a name that this provider needs.",
            )));
        };
        let entry = Rc::clone(&self.entry);
        let draft = Draft {
            call: self,
            path: request.path,
            headers: request.headers,
            via,
        };
        let (text, seal) = match request.body {
            Payload::None => return draft.authorize(None, &entry.auth, carried),
            Payload::Plain(body) => return draft.authorize(Some(body), &entry.auth, carried),
            Payload::ToSign { text, seal } => (text, seal),
        };
        match &entry.auth {
            Auth::Signature(signing) if draft.call.preview => {
                match signing.is_ready(now.unix_ms.div_euclid(1_000), carried) {
                    Ok(()) => draft.show(Some(seal(&text, preview::REDACTED)), None),
                    Err(sentence) => Step::Answered(draft.call.unsigned(sentence)),
                }
            }
            Auth::Signature(Signing::Keys {
                ring,
                signer: choice,
            }) => match sign(ring, *choice, &text, now, signer, carried) {
                Ok((signature, key_id)) => draft.signed(&text, seal, &signature, key_id),
                Err(sentence) => Step::Answered(draft.call.unsigned(sentence)),
            },
            Auth::Signature(Signing::Transit(transit)) => {
                match transit.token.resolve_for_header(carried) {
                    Ok(token) => {
                        let transit = Rc::clone(transit);
                        let unsigned = Unsigned::new(draft, transit, text, seal, token);
                        Step::Calling(Callout::Signature(Box::new(unsigned)))
                    }
                    Err(sentence) => Step::Answered(draft.call.unsigned(sentence)),
                }
            }
            Auth::Token(_) | Auth::Bearer(_) | Auth::Basic { .. } | Auth::Injected => {
                Step::Answered(
                    draft
                        .call
                        .unsigned("No signing key is configured for this provider."),
                )
            }
        }
    }
}

/// A provider's request, ready to leave.
#[derive(Debug)]
pub struct Dispatch {
    /// The provider's configured name: the routes match it.
    pub provider: String,
    /// All headers, pseudo-headers included. They hold credentials.
    pub headers: Headers<'static>,
    /// The body; empty for a look-up, whose call has none either.
    pub body: String,
    /// Which key was used, for logs; a token endpoint's is known with its token.
    pub key_id: Option<String>,
    /// What a caller may do if nothing more is heard.
    pub retry: Retry,
    /// Until when it may do so (RFC 3339), where the provider forgets keys.
    pub retry_until: Option<String>,
    /// What is left to be done once it has left.
    pub sent: Sent,
}

impl Draft {
    /// Adds the credentials of a provider that wants them in a header.
    fn authorize(mut self, body: Option<String>, auth: &Auth, carried: &Carried<'_>) -> Step {
        let mut key_id = None;
        let authorization = match auth {
            Auth::Token(endpoint) => match endpoint.client_secret.resolve_for_header(carried) {
                // A preview fetches no token; that it would have one is all that is to be seen.
                Ok(_) if self.call.preview => Ok(Some(bearer(&Secret::new(String::new())))),
                Ok(client_secret) => match &self.call.token {
                    Some(token) => Ok(Some(bearer(token))),
                    None => {
                        return Step::Waiting(Box::new(Waiting {
                            draft: self,
                            body,
                            client_secret,
                        }));
                    }
                },
                Err(sentence) => Err(sentence),
            },
            Auth::Bearer(key) => key.resolve_for_header(carried).map(|key| {
                let authorization = bearer(&key);
                key_id = key.fingerprint();
                self.call.shown = vec![key];
                Some(authorization)
            }),
            Auth::Basic { user, password } => {
                password.resolve_for_header(carried).map(|password| {
                    let authorization = basic(user, &password);
                    key_id = password.fingerprint();
                    self.call.shown = vec![basic_pair(user, &password), password];
                    Some(authorization)
                })
            }
            Auth::Injected | Auth::Signature(_) => Ok(None),
        };
        match authorization {
            Ok(authorization) => self.leave(body, authorization, key_id),
            Err(sentence) => Step::Answered(self.call.alarm(503, Code::GatewayError, sentence)),
        }
    }

    /// Goes on with a signature.
    pub(super) fn signed(
        self,
        text: &str,
        seal: fn(&str, &str) -> String,
        signature: &str,
        key_id: String,
    ) -> Step {
        self.leave(Some(seal(text, signature)), None, Some(key_id))
    }

    /// The request as it leaves, or is shown.
    pub(super) fn leave(
        self,
        body: Option<String>,
        authorization: Option<Secret>,
        key_id: Option<String>,
    ) -> Step {
        if self.call.preview {
            return self.show(body, authorization);
        }
        let headers = self.request_headers(body.as_deref(), authorization.as_ref());
        let (call, body) = (self.call, body.unwrap_or_default());
        match self.via {
            Via::Route => Step::Leaving(Box::new(Dispatch {
                provider: call.entry.name.clone(),
                headers,
                body,
                key_id,
                retry: call.retry_when_unknown(),
                retry_until: call.retry_until(),
                sent: Sent { call },
            })),
            Via::Callout => Step::Calling(Callout::Inquiry(Box::new(Inquiry::new(
                call, headers, body, key_id,
            )))),
        }
    }

    /// The answer that shows the request. `body`: without a signature.
    fn show(self, body: Option<String>, authorization: Option<Secret>) -> Step {
        let headers = self.request_headers(body.as_deref(), authorization.as_ref());
        Step::Answered(self.call.show(&headers, body.as_deref()))
    }

    fn request_headers(
        &self,
        body: Option<&str>,
        authorization: Option<&Secret>,
    ) -> Headers<'static> {
        let call = &self.call;
        let base = &call.entry.base_url;
        let path = &self.path;
        let mut headers = Headers::default();
        let method = if body.is_some() { "POST" } else { "GET" };
        headers.fixed(":method", method);
        headers.fixed(":scheme", base.scheme);
        headers.text(":authority", base.authority.clone());
        headers.text(":path", format!("{}{path}", base.path));
        if let Some(body) = body {
            headers.fixed("content-type", "application/json");
            headers.text("content-length", body.len().to_string());
        }
        headers.fixed("accept", "application/json");
        headers.fixed("accept-encoding", "identity");
        headers.fixed("user-agent", crate::USER_AGENT);
        if let Some(authorization) = authorization {
            headers.text("authorization", authorization.expose().to_owned());
        }
        for (name, value) in &self.headers {
            headers.text(name, value.clone());
        }
        let routed = self.via == Via::Route && !call.preview;
        let keyless = call.entry.dialect.capabilities().idempotency == Idempotency::None;
        if routed && keyless {
            // Whatever the route's policy says: a second send could be a second refund. The router
            // takes it away.
            headers.fixed("x-envoy-max-retries", "0");
        }
        if routed && let Some(proto) = &call.caller.forwarded_proto {
            headers.push(&b"x-forwarded-proto"[..], proto.clone());
        }
        headers.extend(call.caller.trace.clone());
        headers
    }
}
