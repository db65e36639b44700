//! One call through the core: what a worker does in Envoy, with one provider's reply that is known
//! beforehand.

use std::rc::Rc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{
    Answer, Callout, Environment, LocalReply, Opening, ReplyHead, Step, open,
};
use refund_filter::guard::{Claim, Digest};
use refund_filter::headers::Headers;
use refund_filter::idempotency::IdempotencyKey;
use refund_filter::secret::Secret;
use refund_filter::signing::{PublicKeys, Told, TransitKeys, VmSigner};
use refund_filter::token::{Failure, FailureKind};
use serde_json::{Value, json};

use crate::memory::Remembered;
use crate::{Call, Fault, Reply};

/// What became of a call.
#[derive(Default)]
pub struct End {
    /// What left, in its order.
    pub requests: Vec<Value>,
    /// What its caller was told; none while a reply is awaited.
    pub answer: Option<Value>,
}

/// OpenBao has told nothing.
struct NoKeys;

impl PublicKeys for NoKeys {
    fn told(&self, _provider: &str) -> Told {
        Told::Unavailable
    }

    fn remember(&self, _provider: &str, _keys: Option<TransitKeys>) -> Told {
        Told::Unavailable
    }
}

/// Takes a call as far as it goes. `reply` follows the first request, and settles what is
/// remembered of the key.
pub fn run(
    config: &Rc<Config>,
    memory: &Remembered,
    now: Now,
    token: &str,
    call: &Call,
    reply: Option<&Reply>,
) -> End {
    let guard = memory.guard();
    let is_on = memory.is_on();
    let earlier = |key: &Digest| guard.standing(key, now).filter(|_| is_on);
    let mut end = End::default();
    let (headers, body) = request(config, call);
    let mut step = match open(config, &headers, now, &earlier, &|_| None) {
        Opening::NotOurs => return end,
        Opening::Answer(answer) => Step::Answered(answer),
        Opening::Read(reading) => match reading.accept(body, &earlier) {
            Err(answer) => Step::Answered(answer),
            Ok(accepted) => {
                let claim = match is_on {
                    true => guard.ask(accepted.asks(), 1, now),
                    false => Claim::Unguarded,
                };
                accepted.proceed(claim, now, &mut signer(), &|_| None)
            }
        },
    };
    let mut reply = reply;
    loop {
        step = match step {
            Step::Answered(mut answer) => {
                if is_on {
                    answer.settle(&guard, Some(2), now);
                }
                end.answer = Some(told(&answer));
                return end;
            }
            Step::Waiting(waiting) => match reply.and_then(token_failure) {
                Some(failure) => Step::Answered(waiting.without_token(&failure)),
                None => waiting.with_token(Secret::new(token.to_owned())),
            },
            Step::Calling(callout) => {
                let request = callout.request();
                end.requests.push(shown(&request.headers, &request.body));
                match reply.take() {
                    None => return end,
                    // The page's reply is the provider's: OpenBao does not answer.
                    Some(_) if !matches!(callout, Callout::Inquiry(_)) => callout.not_made(&NoKeys),
                    Some(Reply::Whole {
                        status,
                        headers,
                        body,
                    }) => {
                        let mut environment = Environment {
                            now,
                            signer: &mut signer(),
                            filter_state: &|_| None,
                            guard: is_on.then_some(&guard),
                            shares: false,
                            public_keys: &NoKeys,
                        };
                        callout.reply(&head(*status, headers), body.as_bytes(), &mut environment)
                    }
                    Some(Reply::Fault { fault }) => match fault {
                        Fault::Cut | Fault::Reset | Fault::Timeout => callout.cut(&NoKeys),
                        Fault::ConnectionRefused
                        | Fault::ConnectionTimeout
                        | Fault::TokenRefused
                        | Fault::TokenUnreachable => callout.not_made(&NoKeys),
                    },
                }
            }
            Step::Leaving(dispatch) => {
                end.requests.push(shown(&dispatch.headers, &dispatch.body));
                let sent = dispatch.sent;
                match reply.take() {
                    None => return end,
                    Some(Reply::Whole {
                        status,
                        headers,
                        body,
                    }) => Step::Answered(sent.reply(&head(*status, headers), body.as_bytes(), 1)),
                    Some(Reply::Fault { fault: Fault::Cut }) => {
                        let begun = sent.replying(head(200, &Default::default()), false);
                        Step::Answered(begun.local_reply(BROKEN))
                    }
                    Some(Reply::Fault { fault }) => {
                        Step::Answered(sent.local_reply(happens(*fault)))
                    }
                }
            }
            // A call leaves these before it is driven from here.
            Step::Reading(_)
            | Step::Claiming(_)
            | Step::Naming(_)
            | Step::Sent(_)
            | Step::Replying(_) => return end,
        };
    }
}

/// The key that the provider named in a refund call is sent; none where it is not to be known.
pub fn provider_key(config: &Config, call: &Call) -> Option<String> {
    let (key, provider) = match call {
        Call::Refund { key, body } => {
            let body: Value = serde_json::from_str(body).ok()?;
            (key.clone(), body.get("provider")?.as_str()?.to_owned())
        }
        Call::LookUp { query } => (parameter(query, "key")?, parameter(query, "provider")?),
    };
    let key = IdempotencyKey::from_header(std::iter::once(key.as_bytes())).ok()?;
    let entry = config.provider(&provider)?;
    Some(
        key.for_provider(&provider, entry.kind.name == "moyasar")
            .text(),
    )
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(pairs.find(|(of, _)| *of == name)?.1.to_owned())
}

/// Blinding needs randomness so that nobody measures the key. This key is in the page, for all to
/// read, and what is signed must be the same each time.
fn signer() -> VmSigner<StdRng> {
    VmSigner(StdRng::seed_from_u64(0))
}

fn request<'a>(config: &Config, call: &'a Call) -> (Headers<'static>, &'a [u8]) {
    let mut headers = Headers::default();
    headers.fixed("x-request-id", "playground");
    match call {
        Call::Refund { key, body } => {
            headers.fixed(":method", "POST");
            headers.text(":path", config.path.clone());
            headers.fixed("content-type", "application/json");
            if !key.is_empty() {
                headers.text("idempotency-key", key.clone());
            }
            (headers, body.as_bytes())
        }
        Call::LookUp { query } => {
            headers.fixed(":method", "GET");
            headers.text(":path", format!("{}?{query}", config.path));
            (headers, b"")
        }
    }
}

fn head(status: u16, headers: &std::collections::BTreeMap<String, String>) -> ReplyHead {
    let mut all = Headers::default();
    all.text(":status", status.to_string());
    for (name, value) in headers {
        all.push(
            name.to_ascii_lowercase().into_bytes(),
            value.clone().into_bytes(),
        );
    }
    ReplyHead::of(&all)
}

const BROKEN: LocalReply<'static> = LocalReply {
    status: 502,
    details: "upstream_reset_after_response_started{connection_termination}",
    connected: true,
    attempts: 1,
};

/// What Envoy tells of it.
fn happens(fault: Fault) -> LocalReply<'static> {
    let (status, details, connected) = match fault {
        Fault::ConnectionRefused | Fault::TokenRefused | Fault::TokenUnreachable => (
            503,
            "upstream_reset_before_response_started{remote_connection_failure}",
            false,
        ),
        Fault::ConnectionTimeout => (
            503,
            "upstream_reset_before_response_started{connection_timeout}",
            false,
        ),
        Fault::Timeout => (504, "response_timeout", true),
        Fault::Reset => (
            503,
            "upstream_reset_before_response_started{connection_termination}",
            true,
        ),
        Fault::Cut => return BROKEN,
    };
    LocalReply {
        status,
        details,
        connected,
        attempts: 1,
    }
}

fn token_failure(reply: &Reply) -> Option<Failure> {
    let Reply::Fault { fault } = reply else {
        return None;
    };
    match fault {
        Fault::TokenRefused => Some(Failure {
            kind: FailureKind::Refused,
            status: Some(401),
            code: Some("unauthorized_client".to_owned()),
            ..Failure::unreachable()
        }),
        Fault::TokenUnreachable => Some(Failure::unreachable()),
        Fault::ConnectionRefused
        | Fault::ConnectionTimeout
        | Fault::Timeout
        | Fault::Reset
        | Fault::Cut => None,
    }
}

/// A request as it leaves, without what Envoy takes away again.
fn shown(headers: &Headers<'_>, body: &str) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pseudo = |name| text(headers.first(name).unwrap_or_default());
    let others: Vec<Value> = headers
        .iter()
        .filter(|(name, _)| !name.starts_with(b":") && !name.starts_with(b"x-envoy-"))
        .map(|(name, value)| json!([text(name), text(value)]))
        .collect();
    json!({
        "method": pseudo(":method"),
        "url": format!("{}://{}{}", pseudo(":scheme"), pseudo(":authority"), pseudo(":path")),
        "headers": others,
        "body": body,
    })
}

fn told(answer: &Answer) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers: Vec<Value> = answer
        .headers
        .iter()
        .map(|(name, value)| json!([text(name), text(value)]))
        .collect();
    json!({"status": answer.status, "headers": headers, "body": answer.body})
}
