//! Runs a golden file.

use std::rc::Rc;

use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, LocalReply, Opening, ReplyHead, Step};
use refund_filter::guard::GuardSettings;
use refund_filter::headers::Headers;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{Out, Remembered, StubSigner};

/// A golden file, up to the moment in which its call comes.
pub struct Golden<'c> {
    case: &'c Value,
    config: Rc<Config>,
    token: &'c str,
    now: Now,
    memory: Remembered,
}

impl<'c> Golden<'c> {
    pub fn new(case: &'c Value) -> Self {
        let now = OffsetDateTime::parse(case["now"].as_str().unwrap(), &Rfc3339).unwrap();
        let now = Now {
            unix_ms: now.unix_timestamp() * 1000,
            ..crate::NOW
        };
        // What the gateway remembers when a refund is looked up: a refund call, and how long ago it
        // was made. Without one it has just begun.
        let remembered = &case["look_up"]["remembered"];
        let seconds_ago = remembered["seconds_ago"].as_i64().unwrap_or_default();
        let since = now.plus(-1_000 * seconds_ago);
        let golden = Golden {
            case,
            config: crate::config(case["configured_as"].as_str().unwrap(), &case["provider"]),
            token: case["token"].as_str().unwrap_or("golden-access-token"),
            now,
            memory: Remembered::since(since, GuardSettings::default()),
        };
        if !remembered.is_null() {
            golden.remember(remembered, since);
        }
        golden
    }

    /// Makes a refund call that the gateway remembers: with the provider's reply, or without any.
    fn remember(&self, remembered: &Value, now: Now) {
        let key = remembered["idempotency_key"].as_str().unwrap();
        let body = remembered["body"].to_string();
        let headers = crate::call_headers(key);
        let Opening::Read(reading) = crate::open(&self.config, &headers, now) else {
            panic!("not read")
        };
        let accepted = reading.accept(body.as_bytes(), &|_| None).unwrap();
        let claim = self.memory.guard().ask(accepted.asks(), 0, now);
        let step = accepted.proceed(claim, now, &mut StubSigner, &|_| None);
        let dispatch = match step {
            Step::Waiting(waiting) => crate::with_token(waiting, self.token),
            Step::Leaving(dispatch) => dispatch,
            other => panic!("{other:?}"),
        };
        let mut answer = match &remembered["provider_reply"] {
            Value::Null => dispatch.sent.local_reply(LocalReply {
                status: 504,
                details: "response_timeout",
                connected: true,
                attempts: 1,
            }),
            said => {
                let (head, body) = reply(said);
                dispatch.sent.reply(&head, body.as_bytes(), 1)
            }
        };
        answer.settle(&self.memory.guard(), None, now);
    }

    /// The call, up to what leaves for the provider, or its answer.
    pub fn ask(&self) -> Result<Out, Answer> {
        let Some(query) = self.case["look_up"]["query"].as_str() else {
            let key = self.case["call"]["idempotency_key"].as_str().unwrap();
            let body = self.case["call"]["body"].to_string();
            return crate::send(&self.config, key, body.as_bytes(), self.token, self.now)
                .map(Out::Routed);
        };
        let headers = crate::look_up_headers(query);
        let Opening::Read(reading) = crate::open(&self.config, &headers, self.now) else {
            panic!("not read")
        };
        let accepted = reading.accept(b"", &|_| None)?;
        let claim = self.memory.guard().ask(accepted.asks(), 0, self.now);
        crate::look_up_with(&self.config, &headers, claim, self.token, self.now)
    }

    /// The answer; none where the file has no reply of the provider's.
    pub fn answer(&self, asked: Result<Out, Answer>) -> Option<Answer> {
        let said = &self.case["provider_reply"];
        let mut answer = match asked {
            Err(answer) => answer,
            Ok(_) if said.is_null() => return None,
            Ok(out) => {
                let (head, body) = reply(said);
                out.reply(&head, body.as_bytes(), self.now)
            }
        };
        answer.settle(&self.memory.guard(), Some(1), self.now);
        Some(answer)
    }
}

fn reply(reply: &Value) -> (ReplyHead, String) {
    let mut headers = Headers::default();
    headers.text(":status", reply["status"].to_string());
    for (name, value) in reply["headers"].as_object().into_iter().flatten() {
        headers.push(
            name.as_bytes().to_vec(),
            value.as_str().unwrap().as_bytes().to_vec(),
        );
    }
    let body = reply["body"].as_str().unwrap_or_default().to_owned();
    (ReplyHead::of(&headers), body)
}
