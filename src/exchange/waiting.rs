//! A call that waits for a bearer token.

use std::rc::Rc;

use super::sending::Draft;
use super::sentences::nothing_left;
use super::{Answer, LocalReply, Step};
use crate::authorization::{basic_pair, bearer};
use crate::config::{Auth, ProviderEntry};
use crate::headers::Headers;
use crate::problem::{Code, Problem, Retry};
use crate::secret::Secret;
use crate::token::{Failure, FailureKind};

/// A call that waits for a bearer token. Nothing was sent.
#[derive(Debug)]
#[cfg_attr(feature = "copies", derive(Clone))]
pub struct Waiting {
    pub(super) draft: Draft,
    pub(super) body: Option<String>,
    pub(super) client_secret: Secret,
}

impl Waiting {
    /// The configured provider.
    pub fn entry(&self) -> &Rc<ProviderEntry> {
        &self.draft.call.entry
    }

    /// The client secret for the token endpoint, as this call brought it.
    pub fn client_secret(&self) -> &Secret {
        &self.client_secret
    }

    /// What joins the fetch of the token to this call: its id and its trace.
    pub fn trace(&self) -> Headers<'static> {
        self.draft.call.caller.sound_trace()
    }

    /// The body that will be sent: a filter replaces it while it still holds it.
    pub fn body(&self) -> Option<&str> {
        self.body.as_deref()
    }

    fn shown_to_the_endpoint(&self) -> Vec<Secret> {
        match &self.draft.call.entry.auth {
            Auth::Token(endpoint) => vec![
                basic_pair(&endpoint.client_id, &self.client_secret),
                self.client_secret.clone(),
            ],
            _ => Vec::new(),
        }
    }

    /// Goes on with a token.
    pub fn with_token(mut self, token: Secret) -> Step {
        let authorization = bearer(&token);
        // The token first: a 401 of the provider's drops it.
        let mut shown = vec![token.clone()];
        shown.append(&mut self.shown_to_the_endpoint());
        self.draft.call.shown = shown;
        self.draft.call.token = Some(token);
        self.draft.leave(self.body, Some(authorization), None)
    }

    /// The answer where there is no token.
    pub fn without_token(mut self, failure: &Failure) -> Answer {
        let (code, sentence) = match failure.kind {
            FailureKind::Refused => (
                Code::ProviderAuthFailed,
                "Nothing was sent: the token endpoint does not accept the gateway's credentials. The platform team must fix \
                 them.",
            ),
            FailureKind::RateLimited => (
                Code::ProviderRateLimited,
                "Nothing was sent: the token endpoint is rate limiting.",
            ),
            FailureKind::Unreachable => (
                Code::ProviderUnreachable,
                "Nothing was sent: the token endpoint gave no token.",
            ),
        };
        let mut problem = Problem::not_refunded(code, Retry::SameKey, sentence);
        problem.retry_after = failure
            .retry_after
            .clone()
            .filter(|_| failure.kind == FailureKind::RateLimited);
        self.draft.call.shown = self.shown_to_the_endpoint();
        let call = &self.draft.call;
        problem.provider = failure
            .status
            .map(|status| call.provider_word(status, failure.word()));
        call.not_sent(problem)
    }

    /// The answer in place of Envoy's own while the token is awaited. Nothing was sent.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        let call = &self.draft.call;
        call.not_sent(nothing_left(reply, Some(&call.entry.base_url.authority)))
    }
}
