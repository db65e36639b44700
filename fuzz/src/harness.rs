//! A call taken through the exchange without a host. This is the one place of the fuzz targets that knows the exchange's
//! steps; the names that the fixtures of the core's suites want from above them stand here, too.

use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Asking, Dispatch, Opening, Prepared, ReplyHead, open};
use refund_filter::guard::Claim;
use refund_filter::headers::Headers;
use refund_filter::secret::Secret;
use serde_json::{Value, json};

#[allow(dead_code, reason = "the core's suites use more of it")]
#[path = "../../tests/common/fixtures.rs"]
pub mod fixtures;

#[allow(dead_code, reason = "the model uses more of it")]
#[path = "../../tests/common/world.rs"]
pub mod world;

use crate::oracles;

#[path = "../../tests/common/shared_data.rs"]
mod shared_data;
use shared_data::SharedData;

#[path = "../../tests/common/calls.rs"]
mod calls;
use calls::StubSigner;
pub use calls::{NOW_MS, call_headers, look_up_headers};

/// A sound private key.
pub const PRIVATE_KEY: &str = include_str!("../../tests/golden/bbmsl/private_key.pem");

/// What becomes of a call.
pub enum Step {
    /// It passes untouched.
    NotOurs,
    /// It is answered and nothing is sent.
    Answered(Answer),
    /// It goes to the provider, once its token and its signature are there.
    Sent(Box<Dispatch>),
    /// The provider is asked by a call of the gateway's own.
    Asks(Box<Asking>),
}

/// Takes a call as far as it goes. A token and OpenBao's signature are given where they are asked for.
pub fn step(config: &Rc<Config>, headers: &Headers<'_>, body: &[u8], token: &str) -> Step {
    let reading = match open(config, headers, NOW_MS, &|_| None) {
        Opening::NotOurs => return Step::NotOurs,
        Opening::Answer(answer) => return Step::Answered(answer),
        Opening::Read(reading) => reading,
    };
    match reading.accept(body, &|_| None) {
        Ok(accepted) => {
            let step = accepted.proceed(Claim::None, NOW_MS, &mut StubSigner, &|_| None);
            prepared(step, token)
        }
        Err(answer) => Step::Answered(answer),
    }
}

fn prepared(prepared: Prepared, token: &str) -> Step {
    match prepared {
        Prepared::Answer(answer) => Step::Answered(answer),
        Prepared::Dispatch(dispatch) => Step::Sent(dispatch),
        Prepared::Ask(asking) => Step::Asks(asking),
        Prepared::Wait(waiting) => {
            Step::Sent(Box::new(waiting.with_token(Secret::new(token.to_owned()))))
        }
        Prepared::Sign(unsigned) => {
            let (_, headers, body) = unsigned
                .request()
                .expect("a provider that OpenBao signs for");
            assert!(no_line_ends(&headers), "to OpenBao: {headers:?}");
            crate::json::read(body.as_bytes()).expect("JSON for OpenBao");
            let signature = format!("vault:v1:{}", "QUJD".repeat(86));
            let reply = json!({"data": {"signature": signature}}).to_string();
            self::prepared(unsigned.reply(200, reply.as_bytes()), token)
        }
    }
}

/// What such a call's reply is made of.
pub fn asked(asking: Asking, head: &ReplyHead, body: &[u8]) -> Step {
    let step = asking.reply(head, body, NOW_MS, &mut StubSigner, &|_| None);
    prepared(step, fixtures::TOKEN)
}

/// Whether no value ends a header before its time, and no name is anything but a name.
pub fn no_line_ends(headers: &Headers<'_>) -> bool {
    headers.iter().all(|(name, value)| {
        let name = name.strip_prefix(b":").unwrap_or(name);
        let token = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(b);
        !name.is_empty()
            && name.iter().all(token)
            && !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
    })
}

/// A plugin configuration of one provider in which `"@FILE"` is a sound private key.
pub fn config(name: &str, provider: &Value) -> Rc<Config> {
    configs(&json!({ name: provider }))
}

/// A plugin configuration of these providers, in the same way.
pub fn configs(providers: &Value) -> Rc<Config> {
    let mut text = json!({ "providers": providers });
    put_keys(&mut text);
    Rc::new(Config::read(text.to_string().as_bytes(), &|_| None).expect("a sound configuration"))
}

pub fn put_keys(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with('@') => *text = PRIVATE_KEY.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(put_keys),
        Value::Object(members) => members.values_mut().for_each(put_keys),
        _ => {}
    }
}

/// What the fixtures send their calls with.
fn send_with(
    config: &Rc<Config>,
    headers: &Headers<'_>,
    body: &[u8],
    token: &str,
    _now_ms: i64,
    _signer: &mut StubSigner,
) -> Result<Box<Dispatch>, Answer> {
    match step(config, headers, body, token) {
        Step::Sent(dispatch) => Ok(dispatch),
        Step::Answered(answer) => Err(answer),
        Step::NotOurs => panic!("not ours"),
        Step::Asks(_) => panic!("a refund is sent at once"),
    }
}
