//! A call taken through the exchange without a host. This is the one place of the fuzz targets that
//! knows the exchange's steps.

use std::rc::Rc;

use core_testbed::fixtures::{TOKEN, head};
use core_testbed::{NOW, Remembered, StubSigner, call_headers, call_reply};
use refund_filter::config::Config;
pub use refund_filter::exchange::Step;
use refund_filter::exchange::{Answer, Callout, LocalReply, Opening, ReplyHead, open};
use refund_filter::guard::{Claim, GuardSettings};
use refund_filter::headers::Headers;
use refund_filter::secret::Secret;
use serde_json::json;

/// Takes a call until it is answered, leaves or the provider is asked by a call of the gateway's
/// own; none where it is not ours. A token and OpenBao's signature are given where they are asked
/// for. Nothing is remembered.
pub fn step(config: &Rc<Config>, headers: &Headers<'_>, body: &[u8], token: &str) -> Option<Step> {
    step_with(config, headers, body, token, None)
}

/// The same, by a gateway that remembers this.
fn step_with(
    config: &Rc<Config>,
    headers: &Headers<'_>,
    body: &[u8],
    token: &str,
    memory: Option<&Remembered>,
) -> Option<Step> {
    let reading = match open(config, headers, NOW, &|_| None, &|_| None) {
        Opening::NotOurs => return None,
        Opening::Answer(answer) => return Some(Step::Answered(answer)),
        Opening::Read(reading) => reading,
    };
    Some(match reading.accept(body, &|_| None) {
        Ok(accepted) => {
            let claim = match memory {
                Some(memory) => memory.guard().ask(accepted.asks(), 1, NOW),
                None => Claim::Unguarded,
            };
            let step = accepted.proceed(claim, NOW, &mut StubSigner, &|_| None);
            go_on(step, token)
        }
        Err(answer) => Step::Answered(answer),
    })
}

fn go_on(step: Step, token: &str) -> Step {
    match step {
        Step::Waiting(waiting) => go_on(waiting.with_token(Secret::new(token.to_owned())), token),
        Step::Calling(callout @ Callout::Signature(_)) => {
            let request = callout.request();
            assert!(
                no_line_ends(&request.headers),
                "to OpenBao: {:?}",
                request.headers
            );
            crate::json::read(request.body.as_bytes()).expect("JSON for OpenBao");
            let signature = format!("vault:v1:{}", "QUJD".repeat(86));
            let reply = json!({"data": {"signature": signature}}).to_string();
            // What the signature is has the suites of the core.
            go_on(called(callout, &head(200, &[]), reply.as_bytes()), token)
        }
        step => step,
    }
}

fn called(callout: Callout, head: &ReplyHead, body: &[u8]) -> Step {
    call_reply(callout, head, body, NOW, &|_| None, None)
}

/// A look-up by a gateway that has been up for long enough to know, with what it remembers.
pub struct Asked {
    pub step: Step,
    memory: Remembered,
}

impl Asked {
    /// Looks up the refund under the key `k-1`. `sent`: the refund call that went out under it an
    /// hour before, and has not been answered.
    pub fn new(config: &Rc<Config>, headers: &Headers<'_>, sent: Option<&[u8]>) -> Self {
        let long_ago = NOW.plus(-3_600_000);
        let memory = Remembered::since(long_ago, GuardSettings::default());
        if let Some(body) = sent {
            let Opening::Read(reading) =
                open(config, &call_headers("k-1"), long_ago, &|_| None, &|_| None)
            else {
                panic!("a sound call");
            };
            let accepted = reading.accept(body, &|_| None).expect("a sound call");
            let claim = memory.guard().ask(accepted.asks(), 1, long_ago);
            let step = accepted.proceed(claim, long_ago, &mut StubSigner, &|_| None);
            let Step::Leaving(dispatch) = go_on(step, TOKEN) else {
                panic!("a sound call");
            };
            let mut answer = dispatch.sent.local_reply(LocalReply {
                status: 504,
                details: "response_timeout",
                connected: true,
                attempts: 1,
            });
            answer.settle(&memory.guard(), None, long_ago);
        }
        let step = step_with(config, headers, b"", TOKEN, Some(&memory));
        let step = step.expect("a look-up of ours");
        Asked { step, memory }
    }

    /// The answer, once what was found is told to the guard.
    pub fn answer(self, reply: impl FnOnce(Step) -> Answer) -> Answer {
        let mut answer = reply(self.step);
        answer.settle(&self.memory.guard(), Some(2), NOW);
        answer
    }
}

/// What such a call's reply is made of.
pub fn asked(callout: Callout, head: &ReplyHead, body: &[u8]) -> Step {
    go_on(called(callout, head, body), TOKEN)
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
