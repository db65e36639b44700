//! Bearer tokens: fetched once for all workers, by the root.

use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;

use super::telemetry::token_fetches;
use super::{PendingCall, Worker};
use crate::clock::Now;
use crate::config::{Auth, ProviderEntry};
use crate::exchange::{Answer, ReplyHead, retry_after};
use crate::guard::Digest;
use crate::headers::Headers;
use crate::host::{Buffer, Level, Map};
use crate::memory::swap;
use crate::secret::Secret;
use crate::token::{self, Failure, FailureKind, Look, Record, Token, Turn};

/// A token fetch: for whom, and under which lease.
pub(super) struct Fetch {
    provider: Rc<ProviderEntry>,
    /// As the call brought it that asked first: a root context sees no filter state.
    client_secret: Secret,
    /// Of that call, too: the endpoint's log can name it.
    trace: Headers<'static>,
    lease: u64,
}

/// The name of the place that says which key a provider's token was fetched with.
fn key_record(provider: &ProviderEntry) -> String {
    format!("{}.key", token::record_key(provider))
}

/// What those who wait find in this tick, by provider: each record is read once.
pub(super) type Looks = BTreeMap<String, Option<Look>>;

impl Worker {
    /// What a call does that needs a token now; if it is to fetch one, the root is told.
    pub(super) fn ask_token(
        &self,
        provider: &Rc<ProviderEntry>,
        client_secret: &Secret,
        trace: Headers<'static>,
    ) -> Option<Turn> {
        let lease = self.random_number()?;
        let turn = self.with_record(provider, |record| {
            let turn = record.ask(self.host.now(), lease);
            let changed = matches!(turn, Turn::Fetch(_));
            (turn, changed)
        })?;
        if let Turn::Fetch(lease) = turn {
            self.wanted.borrow_mut().push(Fetch {
                provider: Rc::clone(provider),
                client_secret: client_secret.clone(),
                trace,
                lease,
            });
        }
        Some(turn)
    }

    /// What a call finds that waits for a token.
    pub(super) fn look_for_token(&self, provider: &ProviderEntry, now: Now) -> Option<Look> {
        self.with_record(provider, |record| (record.look(now), false))
    }

    /// Drops the token that the provider has just refused.
    pub(super) fn drop_token(&self, provider: &ProviderEntry, answer: &Answer) {
        if let Some(token) = &answer.refused_token {
            self.with_record(provider, |record| ((), record.refused(token)));
        }
    }

    /// Which key a token was fetched with, for logs: not that of this call, where a new one has been
    /// put in place since.
    pub(super) fn key_of_token(&self, provider: &ProviderEntry, token: &Secret) -> Option<String> {
        let (bytes, _) = self.host.read(&key_record(provider));
        let key = bytes.strip_prefix(&Digest::of([token.expose().as_bytes()]).short())?;
        String::from_utf8(key.to_vec()).ok()
    }

    fn remember_key(&self, fetch: &Fetch, token: &Secret) {
        if let Some(key) = fetch.client_secret.fingerprint() {
            let token = Digest::of([token.expose().as_bytes()]).short();
            let bytes = [&token, key.as_bytes()].concat();
            let _ = self.host.write(&key_record(&fetch.provider), &bytes, 0);
        }
    }

    /// Makes the calls for the fetches that streams have taken on.
    pub(super) fn start_fetches(&self) {
        let wanted = mem::take(&mut *self.wanted.borrow_mut());
        for fetch in wanted {
            self.fetch(fetch);
        }
    }

    fn fetch(&self, fetch: Fetch) {
        let Auth::Token(endpoint) = &fetch.provider.auth else {
            return;
        };
        let mut headers = token::request_headers(endpoint, &fetch.client_secret);
        headers.extend(fetch.trace.clone());
        // The call is the root's, whatever stream was looked after before.
        let _ = self.host.set_effective_context(self.root);
        let call = self.host.dispatch_http_call(
            &endpoint.cluster,
            &headers,
            token::REQUEST_BODY.as_bytes(),
            token::FETCH_TIMEOUT_MS,
        );
        match call {
            Some(call) => {
                let mut calls = self.calls.borrow_mut();
                calls.insert(call, PendingCall::Token(fetch));
            }
            // No such cluster, or no host in it.
            None => self.settle_fetch(&fetch, Err(Failure::unreachable())),
        }
    }

    /// Takes the endpoint's answer; `came`: with headers.
    pub(super) fn fetched(&self, fetch: &Fetch, came: bool) {
        let result = if came {
            self.read_token_reply(fetch)
        } else {
            Err(Failure::unreachable())
        };
        self.settle_fetch(fetch, result);
    }

    fn read_token_reply(&self, fetch: &Fetch) -> Result<Token, Failure> {
        let bytes = self.host.headers(Map::CallResponse).unwrap_or_default();
        let headers = Headers::decode(&bytes).unwrap_or_default();
        let head = ReplyHead::of(&headers);
        let body = self.host.buffer(Buffer::CallResponse).unwrap_or_default();
        let retry_after = headers.first("retry-after").and_then(retry_after);
        let body = if head.coded { Vec::new() } else { body };
        let mut result = token::read_reply(head.status, retry_after, &body, self.host.now());
        // All who wait see these words, and so does whoever asks later with another secret.
        if let (Err(failure), Auth::Token(endpoint)) = (&mut result, &fetch.provider.auth) {
            failure.redact(endpoint, &fetch.client_secret);
        }
        result
    }

    /// Stores what a fetch brought and wakes who waits for it in this worker; the others see it at
    /// their next look.
    fn settle_fetch(&self, fetch: &Fetch, result: Result<Token, Failure>) {
        let word = match &result {
            Ok(token) => {
                self.remember_key(fetch, &token.value);
                "ok"
            }
            Err(failure) => {
                self.log(
                    Level::Warn,
                    &format!(
                        "no token for {}: {:?}, status {:?}",
                        fetch.provider.name, failure.kind, failure.status
                    ),
                );
                match failure.kind {
                    FailureKind::Refused => "refused",
                    FailureKind::RateLimited => "rate_limited",
                    FailureKind::Unreachable => "unreachable",
                }
            }
        };
        self.count(token_fetches(&fetch.provider.name, word));
        self.with_record(&fetch.provider, |record| {
            ((), record.settle(fetch.lease, &result))
        });
        let found = result.map(|token| token.value);
        for stream in self.watched() {
            if stream.waits_for(&fetch.provider) {
                stream.wake(found.clone());
            }
        }
        let _ = self.host.set_effective_context(self.root);
    }

    /// Gives up all fetches: their answers will not be delivered, and others must not wait for
    /// them. The calls of streams are answered as before.
    pub(super) fn give_fetches_back(&self) {
        let mut fetches = mem::take(&mut *self.wanted.borrow_mut());
        let mut calls = self.calls.borrow_mut();
        for (number, call) in mem::take(&mut *calls) {
            match call {
                PendingCall::Token(fetch) => fetches.push(fetch),
                call @ (PendingCall::Stream(_) | PendingCall::Memory(_)) => {
                    calls.insert(number, call);
                }
            }
        }
        drop(calls);
        for fetch in fetches {
            let gone = Err(Failure::unreachable());
            self.with_record(&fetch.provider, |record| {
                ((), record.settle(fetch.lease, &gone))
            });
        }
    }

    /// Reads, changes and stores a provider's token record, against all workers. `change` says
    /// whether there is anything to store; it may be called more than once.
    fn with_record<T>(
        &self,
        provider: &ProviderEntry,
        mut change: impl FnMut(&mut Record) -> (T, bool),
    ) -> Option<T> {
        swap(&*self.host, &token::record_key(provider), |bytes| {
            let mut record = Record::decode(bytes);
            let (result, changed) = change(&mut record);
            (result, changed.then(|| record.encode().into_bytes()))
        })
    }
}
