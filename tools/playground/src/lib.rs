//! The core for a page in a browser: a [`Play`] is what a page knows of one call, [`play`] what
//! becomes of it. Both are JSON. `docs/playground` is the page.

#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
mod browser;
mod memory;
mod steps;

use std::collections::BTreeMap;
use std::rc::Rc;

use refund_filter::clock::Now;
use refund_filter::config::Config;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use memory::Remembered;

/// What a page knows of one call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Play {
    /// The plugin configuration.
    pub configuration: String,
    /// When the call comes (RFC 3339).
    pub now: String,
    /// The bearer token, where the provider wants one.
    pub token: String,
    /// The call.
    pub call: Call,
    /// The calls that the gateway has seen before, the oldest first: with that one it began.
    pub before: Vec<Before>,
    /// What the provider replies, or what happens in its place; nothing yet.
    pub reply: Option<Reply>,
}

/// A call, as its caller writes it.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Call {
    /// POST: a refund.
    Refund {
        /// The header `Idempotency-Key`; none where it is empty.
        key: String,
        /// The body.
        body: String,
    },
    /// GET: a look-up.
    LookUp {
        /// What stands after the `?`.
        query: String,
    },
}

/// A call of an earlier time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// How long ago it came.
    pub seconds_ago: i64,
    /// The call.
    pub call: Call,
    /// What the provider replied.
    pub reply: Option<Reply>,
}

/// What follows a request.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Reply {
    /// A reply.
    Whole {
        /// The status.
        status: u16,
        /// The headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// The body.
        #[serde(default)]
        body: String,
    },
    /// None, or no whole one.
    Fault {
        /// What happened.
        fault: Fault,
    },
}

/// What can happen in the place of a reply.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The connection is refused.
    ConnectionRefused,
    /// The connection does not come about in time.
    ConnectionTimeout,
    /// The reply does not come in time.
    Timeout,
    /// The connection breaks before the reply begins.
    Reset,
    /// The connection breaks in the middle of the reply.
    Cut,
    /// The token endpoint refuses the credentials.
    TokenRefused,
    /// The token endpoint does not answer.
    TokenUnreachable,
}

/// What becomes of a call: `requests`, `answer` (null where the provider's reply is awaited), and
/// the key that the provider is sent, or else `faults` of what was asked for.
pub fn play(asked: &[u8]) -> Value {
    let fault =
        |pointer: &str, detail: String| json!({"faults": [{"pointer": pointer, "detail": detail}]});
    let play: Play = match serde_json::from_slice(asked) {
        Ok(play) => play,
        Err(error) => return fault("", error.to_string()),
    };
    let Ok(now) = OffsetDateTime::parse(&play.now, &Rfc3339) else {
        return fault("/now", "This is no time of RFC 3339.".to_owned());
    };
    let config = match Config::read(play.configuration.as_bytes(), &|_| None) {
        Ok(config) => Rc::new(config),
        Err(faults) => {
            let faults: Vec<Value> = faults
                .iter()
                .map(|fault| json!({"pointer": fault.pointer, "detail": fault.detail}))
                .collect();
            return json!({ "faults": faults });
        }
    };
    let now = Now {
        unix_ms: now.unix_timestamp().saturating_mul(1_000),
        // Later than whatever is remembered.
        steady_ms: i64::MAX.wrapping_shr(8),
    };
    let at = |seconds_ago: i64| now.plus(seconds_ago.saturating_mul(-1_000));
    let oldest = play.before.iter().map(|before| before.seconds_ago).max();
    let Some(memory) = Remembered::since(&config, at(oldest.unwrap_or_default())) else {
        return fault(
            "",
            "The memory of the playground cannot be laid out.".to_owned(),
        );
    };
    for before in &play.before {
        let (came, reply) = (at(before.seconds_ago), before.reply.as_ref());
        steps::run(&config, &memory, came, &play.token, &before.call, reply);
    }
    let end = steps::run(
        &config,
        &memory,
        now,
        &play.token,
        &play.call,
        play.reply.as_ref(),
    );
    json!({
        "requests": end.requests,
        "answer": end.answer,
        "provider_key": steps::provider_key(&config, &play.call),
    })
}
