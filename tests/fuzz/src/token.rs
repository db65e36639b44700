//! The token endpoint's answers, and the record that all workers share.
//!
//! The first byte says what the rest is: an answer of the endpoint (two bytes of status, then the
//! body), a stored record, or what happens to a record, two bytes an event.

use refund_filter::clock::Now;
use refund_filter::config::{Auth, TokenEndpoint};
use refund_filter::secret::Secret;
use refund_filter::token::{self, Failure, FailureKind, Look, Record, Token, Turn};

use crate::json::{self, Json};
use core_testbed::NOW;
use core_testbed::fixtures::FIXTURES;

const HOUR_MS: i64 = 3_600_000;
/// How long a fetch keeps the others waiting at most.
const LEASE_MS: i64 = 6_000;

pub fn check(data: &[u8]) {
    let Some((what, rest)) = data.split_first() else {
        return;
    };
    match what % 3 {
        0 => {
            if let Some(([a, b], body)) = rest.split_first_chunk() {
                // Most of the time a status that there is.
                let status = match u16::from_le_bytes([*a, *b]) {
                    status @ 0..=1023 => status,
                    other => 200 + other % 400,
                };
                reply(status, body);
            }
        }
        1 => stored(rest),
        _ => events(rest),
    }
}

fn reply(status: u16, body: &[u8]) {
    let retry_after = Some("120".to_owned());
    let json = json::read(body);
    // What nests deeper than the oracle reads is not judged here.
    if json == Err(json::Unread::TooDeep) {
        let _ = token::read_reply(status, None, body, NOW);
        return;
    }
    let object = json
        .ok()
        .filter(|json| json.members().is_some() && json.doubled().is_empty());
    let scalar = |name| {
        let found = object.as_ref()?.get(name)?.scalar()?;
        (!found.is_empty()).then(|| found.to_owned())
    };
    match token::read_reply(status, retry_after.clone(), body, NOW) {
        Ok(token) => {
            assert!((200..300).contains(&status), "{status}");
            let text = token.value.expose();
            assert!(!text.is_empty() && text.bytes().all(|b| (0x21..0x7f).contains(&b)));
            let object = object.expect("an object without doubles");
            assert_eq!(object.get("access_token").and_then(Json::text), Some(text));
            let kind = object.get("token_type");
            assert!(
                kind.is_none_or(|kind| kind
                    .text()
                    .is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"))),
                "{kind:?}"
            );
            let used = token.use_until_ms - NOW.steady_ms;
            assert!((1..=HOUR_MS).contains(&used), "{used}");
            lives(&object, used);
        }
        Err(mut failure) => {
            let kind = match status {
                429 => FailureKind::RateLimited,
                400..=499 => FailureKind::Refused,
                _ => FailureKind::Unreachable,
            };
            assert_eq!(failure.kind, kind);
            assert_eq!(failure.code, scalar("error"));
            assert_eq!(failure.message, scalar("error_description"));
            assert_eq!(failure.retry_after, retry_after);
            let told = kind != FailureKind::Unreachable || object.is_some();
            assert_eq!(failure.status, told.then_some(status));
            shown(&mut failure);
        }
    }
}

/// A token is never used for longer than it lives.
fn lives(object: &Json, used: i64) {
    let Some(life) = object.get("expires_in").and_then(Json::scalar) else {
        panic!("a token that does not end: {object:?}");
    };
    // Good to a thousandth of a millisecond, which is enough here.
    let Ok(life) = life.parse::<f64>() else {
        return;
    };
    let now = NOW.unix_ms as f64;
    let life_ms = match life {
        _ if life < 1e9 => life * 1e3,
        _ if life < 1e12 => life * 1e3 - now,
        _ => life - now,
    };
    assert!(used as f64 <= life_ms.max(0.0) + 1.0, "{used} of {life_ms}");
}

/// What the endpoint was shown is not in what is told of it.
fn shown(failure: &mut Failure) {
    let config = FIXTURES[0].config_once();
    let entry = config.provider(FIXTURES[0].name()).expect("the fixture");
    let Auth::Token(endpoint) = &entry.auth else {
        panic!("BOG takes a token");
    };
    let endpoint: &TokenEndpoint = endpoint;
    let secret = FIXTURES[0].secrets[0];
    failure.redact(endpoint, &Secret::new(secret.to_owned()));
    // `printf '10001:CANARY-bog-client-secret' | base64`
    let basic = "MTAwMDE6Q0FOQVJZLWJvZy1jbGllbnQtc2VjcmV0";
    for words in [&failure.code, &failure.message].into_iter().flatten() {
        assert!(!words.contains(secret) && !words.contains(basic), "{words}");
        assert!(!words.chars().any(char::is_control), "{words:?}");
        assert!(words.chars().count() <= 500);
    }
}

/// Whatever is stored is a record, and what a record stores is that record.
fn stored(bytes: &[u8]) {
    let record = Record::decode(bytes);
    let text = record.encode();
    assert_eq!(Record::decode(text.as_bytes()), record);
    assert!(!format!("{record:?}").contains("CANARY-access-token"));
    // What nobody asks for need not be UTF-8.
    if std::str::from_utf8(bytes).is_ok() && json::read(bytes) == Err(json::Unread::NotJson) {
        assert_eq!(record, Record::default());
    }
    for steady_ms in [i64::MIN, -1, 0, NOW.steady_ms, i64::MAX] {
        let now = Now { steady_ms, ..NOW };
        let mut record = Record::decode(bytes);
        let look = record.look(now);
        match record.ask(now, 7) {
            Turn::Use(token) => assert_eq!(look, Look::Ready(token)),
            Turn::Wait => assert_eq!(look, Look::Wait),
            Turn::Fetch(lease) => {
                assert_eq!(lease, 7);
                assert!(matches!(look, Look::Failed(_) | Look::Ask), "{look:?}");
            }
        }
    }
}

/// What is known of the tokens without the record: of each its text and until when it may be used.
#[derive(Default)]
struct Known {
    token: Option<(String, i64)>,
    /// The lease that stands: its id, and until when.
    fetch: Option<(u64, i64)>,
    failed: bool,
}

fn events(bytes: &[u8]) {
    let mut record = Record::default();
    let mut known = Known::default();
    let mut now = NOW;
    let mut last_lease = 0;
    for event in bytes.chunks_exact(2).take(64) {
        let [what, how] = [event[0], event[1]];
        let name = format!("token-{}", how % 4);
        match what % 6 {
            0 => {
                let step = [
                    0,
                    1,
                    LEASE_MS - 1,
                    LEASE_MS,
                    30_000,
                    60_000,
                    HOUR_MS,
                    10 * HOUR_MS,
                ];
                now = now.plus(step[usize::from(how) % step.len()]);
            }
            1 => {
                let turn = record.ask(now, last_lease + 1);
                match known.usable(now) {
                    Some(token) => assert_eq!(turn, Turn::Use(Secret::new(token))),
                    None if known.is_fetching(now) => assert_eq!(turn, Turn::Wait),
                    None => {
                        last_lease += 1;
                        assert_eq!(turn, Turn::Fetch(last_lease));
                        known.fetch = Some((last_lease, now.steady_ms + LEASE_MS));
                        known.failed = false;
                        // One fetches, and the others wait.
                        assert_eq!(record.ask(now, last_lease + 1), Turn::Wait);
                    }
                }
            }
            // The fetch under way, and one of those before it.
            2 | 3 => {
                let lease = last_lease.saturating_sub(u64::from(how >> 6));
                let ours = known.fetch.is_some_and(|(standing, _)| standing == lease);
                let result = if what % 6 == 2 {
                    Ok(Token {
                        value: Secret::new(name.clone()),
                        use_until_ms: now.steady_ms
                            + [0, 1, 500, 240_000][usize::from(how >> 2) % 4],
                    })
                } else {
                    Err(Failure::unreachable())
                };
                let changed = record.settle(lease, &result);
                if ours {
                    known.fetch = None;
                }
                match result {
                    Ok(token) => {
                        assert!(changed);
                        known.token = Some((name, token.use_until_ms));
                    }
                    Err(_) => {
                        assert_eq!(changed, ours);
                        known.failed |= ours;
                    }
                }
            }
            4 => {
                let ours = known
                    .token
                    .as_ref()
                    .is_some_and(|(token, _)| *token == name);
                assert_eq!(record.refused(&Secret::new(name)), ours);
                if ours {
                    known.token = None;
                }
            }
            _ => record = Record::decode(record.encode().as_bytes()),
        }
        let look = record.look(now);
        match known.usable(now) {
            Some(token) => assert_eq!(look, Look::Ready(Secret::new(token))),
            None if known.is_fetching(now) => assert_eq!(look, Look::Wait),
            None if known.failed && known.fetch.is_none() => {
                assert!(matches!(look, Look::Failed(_)), "{look:?}");
            }
            // Never Wait: nobody fetches.
            None => assert_eq!(look, Look::Ask),
        }
    }
}

impl Known {
    fn usable(&self, now: Now) -> Option<String> {
        let (token, until) = self.token.as_ref()?;
        (now.steady_ms < *until).then(|| token.clone())
    }

    fn is_fetching(&self, now: Now) -> bool {
        self.fetch.is_some_and(|(_, until)| now.steady_ms < until)
    }
}
