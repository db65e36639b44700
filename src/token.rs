//! A bearer token that all workers share: one fetch at a time, used while it lives, dropped when
//! the provider refuses it.
//!
//! The state is a [`Record`] that the host keeps where every worker can read it and change it by
//! compare-and-swap. What stands here decides; the filter carries it out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::authorization::{basic, basic_pair};
use crate::clock::Now;
use crate::config::{Auth, ProviderEntry, TokenEndpoint};
use crate::headers::Headers;
use crate::json::Json;
use crate::provider::{ProviderMessage, scalar};
use crate::secret::Secret;
use crate::text;

/// The name of a provider's record among what the workers share: a token belongs to one client at
/// one endpoint, and goes to one address. The secret is no part of it, so that a rotated one does
/// not cost the token.
pub fn record_key(provider: &ProviderEntry) -> String {
    let mut digest = Sha256::new();
    if let Auth::Token(endpoint) = &provider.auth {
        for url in [&endpoint.url, &provider.base_url] {
            digest.update(format!("{}://{}{}\n", url.scheme, url.authority, url.path));
        }
        digest.update(&endpoint.client_id);
    }
    let digest = STANDARD.encode(digest.finalize());
    format!("refund.token.2.{}.{digest}", provider.name)
}

/// How long a token endpoint may take, in milliseconds.
pub const FETCH_TIMEOUT_MS: u32 = 5_000;
/// How long a fetch is trusted to be under way, in milliseconds: a worker that died in it must not
/// block the others.
const LEASE_MS: i64 = 6_000;
/// The longest use of one token, whatever its endpoint says.
const MAX_LIFE_MS: i64 = 3_600_000;
/// How long before its end a token is renewed, so that none dies on its way to the provider.
const EARLY_MS: i64 = 60_000;

/// A token and the moment until which it is used, by the steady clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub value: Secret,
    /// From here on a new one is fetched.
    pub use_until_ms: i64,
}

/// Why a fetch brought no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The endpoint does not accept the credentials: 4xx but 429.
    Refused,
    /// The endpoint is rate limiting: 429.
    RateLimited,
    /// 5xx, nonsense, or no answer.
    Unreachable,
}

/// A fetch that brought no token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// The endpoint's code (RFC 6749, 5.2: `error`).
    pub code: Option<String>,
    /// The endpoint's words (`error_description`).
    pub message: Option<String>,
    /// The value of its `Retry-After`.
    pub retry_after: Option<String>,
}

impl Failure {
    /// No answer.
    pub fn unreachable() -> Self {
        Failure {
            kind: FailureKind::Unreachable,
            status: None,
            code: None,
            message: None,
            retry_after: None,
        }
    }

    /// Takes what the endpoint was shown out of its words.
    pub fn redact(&mut self, endpoint: &TokenEndpoint, client_secret: &Secret) {
        let shown = [
            basic_pair(&endpoint.client_id, client_secret),
            client_secret.clone(),
        ];
        for words in [&mut self.code, &mut self.message].into_iter().flatten() {
            *words = text::clean(words, &shown);
        }
    }

    /// What the endpoint said.
    pub fn word(&self) -> ProviderMessage {
        ProviderMessage {
            code: self.code.clone(),
            message: self.message.clone(),
            errors: Vec::new(),
        }
    }
}

/// What a call that needs a token does now.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Goes on with this one.
    Use(Secret),
    /// Fetches one, under this lease, and waits for it.
    Fetch(u64),
    /// Waits for somebody else's fetch.
    Wait,
}

/// What a waiting call finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The token.
    Ready(Secret),
    /// That there is none.
    Failed(Failure),
    /// Nothing yet.
    Wait,
    /// That nobody fetches any more: ask again.
    Ask,
}

/// What all workers know of one provider's token.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Record {
    token: Option<Token>,
    fetch: Option<Lease>,
    failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    id: u64,
    until_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    token: Option<(String, i64)>,
    fetch: Option<Lease>,
    failure: Option<Failure>,
}

impl Record {
    /// Reads a stored record; nothing, or nothing readable, is an empty one.
    pub fn decode(bytes: &[u8]) -> Self {
        match serde_json::from_slice::<Stored>(bytes) {
            Ok(stored) => Record {
                token: stored.token.map(|(value, use_until_ms)| Token {
                    value: Secret::new(value),
                    use_until_ms,
                }),
                fetch: stored.fetch,
                failure: stored.failure,
            },
            Err(_) => Record::default(),
        }
    }

    /// The record to be stored. It holds the token in clear: it goes into the memory of the
    /// process, and nowhere else.
    pub fn encode(&self) -> String {
        crate::json_text(&Stored {
            token: self
                .token
                .as_ref()
                .map(|token| (token.value.expose().to_owned(), token.use_until_ms)),
            fetch: self.fetch,
            failure: self.failure.clone(),
        })
    }

    /// What a call does that needs a token now. After [`Turn::Fetch`] the record has changed: only
    /// who stores it fetches.
    pub fn ask(&mut self, now: Now, fresh_id: u64) -> Turn {
        if let Some(token) = self.fresh(now) {
            return Turn::Use(token);
        }
        if self.is_fetching(now) {
            return Turn::Wait;
        }
        self.fetch = Some(Lease {
            id: fresh_id,
            until_ms: now.steady_ms.saturating_add(LEASE_MS),
        });
        self.failure = None;
        Turn::Fetch(fresh_id)
    }

    /// What a waiting call finds.
    pub fn look(&self, now: Now) -> Look {
        match (self.fresh(now), &self.failure) {
            (Some(token), _) => Look::Ready(token),
            (None, _) if self.is_fetching(now) => Look::Wait,
            // A lease clears the failure before it, so this one is of the fetch that was waited
            // for, or of a later one.
            (None, Some(failure)) if self.fetch.is_none() => Look::Failed(failure.clone()),
            (None, _) => Look::Ask,
        }
    }

    /// Takes what a fetch brought, if its lease still stands: one that came too late speaks of an
    /// older state, but a token is a token. Says whether the record has changed.
    pub fn settle(&mut self, lease: u64, result: &Result<Token, Failure>) -> bool {
        let ours = self.fetch.is_some_and(|fetch| fetch.id == lease);
        if ours {
            self.fetch = None;
        }
        match result {
            Ok(token) => {
                self.token = Some(token.clone());
                true
            }
            Err(failure) if ours => {
                self.failure = Some(failure.clone());
                true
            }
            Err(_) => false,
        }
    }

    /// Drops the token that a provider refused, never a newer one. Says whether the record has
    /// changed.
    pub fn refused(&mut self, value: &Secret) -> bool {
        let ours = self
            .token
            .as_ref()
            .is_some_and(|token| token.value == *value);
        if ours {
            self.token = None;
        }
        ours
    }

    fn fresh(&self, now: Now) -> Option<Secret> {
        self.token
            .as_ref()
            .filter(|token| now.steady_ms < token.use_until_ms)
            .map(|token| token.value.clone())
    }

    fn is_fetching(&self, now: Now) -> bool {
        self.fetch
            .is_some_and(|lease| now.steady_ms < lease.until_ms)
    }
}

/// The headers of a token request (RFC 6749, 4.4.2: client credentials, HTTP Basic).
pub fn request_headers(endpoint: &TokenEndpoint, client_secret: &Secret) -> Headers<'static> {
    let mut headers = Headers::default();
    headers.fixed(":method", "POST");
    headers.text(":scheme", endpoint.url.scheme.to_owned());
    headers.text(":authority", endpoint.url.authority.clone());
    headers.text(
        ":path",
        if endpoint.url.path.is_empty() {
            "/".to_owned()
        } else {
            endpoint.url.path.clone()
        },
    );
    headers.text(
        "content-type",
        "application/x-www-form-urlencoded".to_owned(),
    );
    headers.fixed("accept", "application/json");
    headers.fixed("accept-encoding", "identity");
    headers.fixed("user-agent", crate::USER_AGENT);
    headers.text(
        "authorization",
        basic(&endpoint.client_id, client_secret)
            .expose()
            .to_owned(),
    );
    headers
}

/// The body of a token request.
pub const REQUEST_BODY: &str = "grant_type=client_credentials";

/// Reads the endpoint's answer.
pub fn read_reply(
    status: u16,
    retry_after: Option<String>,
    body: &[u8],
    now: Now,
) -> Result<Token, Failure> {
    let json = Json::parse(body).ok();
    let object = json
        .as_ref()
        .map(Json::root)
        .filter(|body| body.is_plain_object());
    let failure = |kind| Failure {
        kind,
        // Envoy answers in the endpoint's place with a 503 or 504 of its own.
        status: Some(status).filter(|_| kind != FailureKind::Unreachable || object.is_some()),
        code: object.and_then(|body| scalar(body.get("error"))),
        message: object.and_then(|body| scalar(body.get("error_description"))),
        retry_after: retry_after.clone(),
    };
    match status {
        200..=299 => {}
        429 => return Err(failure(FailureKind::RateLimited)),
        400..=499 => return Err(failure(FailureKind::Refused)),
        _ => return Err(failure(FailureKind::Unreachable)),
    }
    let token = object.and_then(|body| body.get("access_token")?.text());
    let kind = object.and_then(|body| body.get("token_type")?.text());
    let life_ms = object.and_then(|body| life_ms(&scalar(body.get("expires_in"))?, now.unix_ms));
    match (token, life_ms) {
        // A token goes into a header: RFC 6750's b64token has visible ASCII alone.
        (Some(token), Some(life_ms))
            if !token.is_empty()
                && token.bytes().all(|b| b.is_ascii_graphic())
                && kind.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")) =>
        {
            Ok(Token {
                value: Secret::new(token.into_owned()),
                use_until_ms: now.steady_ms.saturating_add(use_for_ms(life_ms)),
            })
        }
        _ => Err(failure(FailureKind::Unreachable)),
    }
}

/// How long a token lives by its `expires_in`: seconds below 1e9, an epoch in seconds below 1e12,
/// else an epoch in milliseconds. One example of the vendor has the latter, everything else the
/// former.
fn life_ms(expires_in: &str, now_ms: i64) -> Option<i64> {
    // An exponent would make the digits before the point another number.
    let whole = match expires_in.split_once('.') {
        Some((_, decimals)) if !decimals.bytes().all(|b| b.is_ascii_digit()) => return None,
        Some((whole, _)) => whole,
        None => expires_in,
    };
    let number: i64 = whole.parse().ok()?;
    let life = match number {
        ..1_000_000_000 => number.checked_mul(1_000)?,
        1_000_000_000..1_000_000_000_000 => number.checked_mul(1_000)?.checked_sub(now_ms)?,
        _ => number.checked_sub(now_ms)?,
    };
    (life > 0).then_some(life.min(MAX_LIFE_MS))
}

/// A minute less than it lives; half of its life where that is more, so that a short life does not
/// mean a fetch for every call.
fn use_for_ms(life_ms: i64) -> i64 {
    life_ms
        .saturating_sub(EARLY_MS)
        .max(life_ms.saturating_div(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now {
        unix_ms: 1_800_000_000_000,
        steady_ms: 5_000,
    };

    fn token(value: &str, use_until_ms: i64) -> Token {
        Token {
            value: Secret::new(value.into()),
            use_until_ms,
        }
    }

    fn reply(expires_in: &str) -> Result<Token, Failure> {
        let body =
            format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{expires_in}}}"#);
        read_reply(200, None, body.as_bytes(), NOW)
    }

    #[test]
    fn only_one_call_fetches_and_the_others_wait() {
        let mut record = Record::default();
        assert_eq!(record.ask(NOW, 1), Turn::Fetch(1));
        assert_eq!(record.ask(NOW, 2), Turn::Wait);
        assert_eq!(record.look(NOW), Look::Wait);
        let mut record = Record::decode(record.encode().as_bytes());
        assert!(record.settle(1, &Ok(token("t", NOW.steady_ms + 10))));
        assert_eq!(record.look(NOW), Look::Ready(Secret::new("t".into())));
        assert_eq!(record.ask(NOW.plus(10), 3), Turn::Fetch(3));
    }

    #[test]
    fn a_failed_fetch_reaches_who_waited_and_the_next_call_fetches_anew() {
        let mut record = Record::default();
        record.ask(NOW, 1);
        record.settle(1, &Err(Failure::unreachable()));
        assert_eq!(record.look(NOW), Look::Failed(Failure::unreachable()));
        assert_eq!(record.ask(NOW, 2), Turn::Fetch(2));
        assert_eq!(record.look(NOW), Look::Wait);
    }

    #[test]
    fn a_fetch_whose_worker_died_blocks_nobody_for_ever() {
        let mut record = Record::default();
        record.ask(NOW, 1);
        assert_eq!(record.look(NOW.plus(LEASE_MS)), Look::Ask);
        assert_eq!(record.ask(NOW.plus(LEASE_MS), 2), Turn::Fetch(2));
        // The one given up comes back after all: its failure is not the failure of the fetch that
        // is under way.
        assert!(!record.settle(1, &Err(Failure::unreachable())));
        assert_eq!(record.look(NOW.plus(LEASE_MS)), Look::Wait);
    }

    #[test]
    fn a_refused_token_is_dropped_and_a_newer_one_kept() {
        let mut record = Record::default();
        record.settle(1, &Ok(token("new", NOW.steady_ms + 10)));
        assert!(!record.refused(&Secret::new("old".into())));
        assert_eq!(record.look(NOW), Look::Ready(Secret::new("new".into())));
        assert!(record.refused(&Secret::new("new".into())));
        assert_eq!(record.look(NOW), Look::Ask);
    }

    #[test]
    fn a_token_is_used_for_its_life_less_a_minute_or_for_half_of_it() {
        let used =
            |expires_in: &str| reply(expires_in).map(|token| token.use_until_ms - NOW.steady_ms);
        assert_eq!(used("300"), Ok(240_000));
        assert_eq!(used("60"), Ok(30_000));
        assert_eq!(used("30"), Ok(15_000));
        assert_eq!(used("1"), Ok(500));
        assert_eq!(used("86400"), Ok(3_540_000));
        assert_eq!(used("\"300\""), Ok(240_000));
        assert_eq!(used(&(NOW.unix_ms / 1000 + 300).to_string()), Ok(240_000));
        assert_eq!(used(&(NOW.unix_ms + 300_000).to_string()), Ok(240_000));
    }

    #[test]
    fn what_is_no_token_is_none() {
        for expires_in in ["0", "-1", "null", "\"soon\"", "1000000000", "{}"] {
            assert_eq!(
                reply(expires_in).unwrap_err().kind,
                FailureKind::Unreachable
            );
        }
        for body in [
            &b""[..],
            b"<html>",
            b"{}",
            br#"{"access_token":"","expires_in":300}"#,
            b"{\"access_token\":\"a\\r\\nx: y\",\"expires_in\":300}",
            br#"{"access_token":"t","token_type":"mac","expires_in":300}"#,
        ] {
            let failure = read_reply(200, None, body, NOW).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Unreachable, "{body:?}");
        }
    }

    #[test]
    fn the_endpoints_no_is_told_apart_from_its_silence() {
        let body = br#"{"error":"unauthorized_client","error_description":"Invalid client"}"#;
        let kind = |status| read_reply(status, None, body, NOW).unwrap_err().kind;
        assert_eq!(kind(400), FailureKind::Refused);
        assert_eq!(kind(401), FailureKind::Refused);
        assert_eq!(kind(429), FailureKind::RateLimited);
        assert_eq!(kind(500), FailureKind::Unreachable);
        assert_eq!(kind(302), FailureKind::Unreachable);
    }

    #[test]
    fn no_debug_print_shows_a_token() {
        let mut record = Record::default();
        record.settle(1, &Ok(token("canary", NOW.steady_ms)));
        assert!(!format!("{record:?}").contains("canary"));
    }
}
