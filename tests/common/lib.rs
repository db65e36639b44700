//! What the core's tests share, and the fuzz targets with them: fixtures, golden files embedded in
//! the binary, and a refund taken through the exchange without a host.

pub mod calls;
pub mod fixtures;
pub mod gateway;
pub mod golden;
pub mod host;
pub mod oracles;
pub mod shared_data;
pub mod store;
pub mod world;

use std::rc::Rc;

pub use calls::{Keys, NOW, StubSigner, call_headers, call_reply, look_up_headers};
use include_dir::{Dir, include_dir};
use rand::SeedableRng;
use rand::rngs::StdRng;
use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{
    self, Answer, Callout, Dispatch, Opening, Reading, ReplyHead, Step, Waiting,
};
use refund_filter::guard::Claim;
use refund_filter::headers::Headers;
use refund_filter::secret::Secret;
use refund_filter::signing::{PrivateKey, Signer, SignerChoice, SignerFailed, VmSigner};
use serde_json::{Value, json};
pub use shared_data::{Remembered, SharedData};

static PROVIDERS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../providers");

/// The signer of the module, with the same "randomness" every time: it blinds, and must not show.
pub fn signer() -> VmSigner<StdRng> {
    VmSigner(StdRng::seed_from_u64(1))
}

/// A file of a provider's golden folder: `NAME/FILE`.
pub fn golden_file(path: &str) -> &'static str {
    let path = path.replacen('/', "/golden/", 1);
    PROVIDERS
        .get_file(&path)
        .unwrap_or_else(|| panic!("tests/providers/{path} is missing"))
        .contents_utf8()
        .unwrap()
}

/// All golden cases: their paths and contents.
pub fn golden_cases() -> Vec<(String, Value)> {
    let mut cases: Vec<_> = PROVIDERS
        .dirs()
        .filter_map(|provider| provider.get_dir(provider.path().join("golden")))
        .flat_map(Dir::files)
        .filter(|file| file.path().extension().is_some_and(|e| e == "json"))
        .map(|file| {
            let path = file.path().display().to_string();
            let case = serde_json::from_slice(file.contents())
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            (path, case)
        })
        .collect();
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    cases
}

/// A plugin configuration of one provider in which `"@FILE"` secrets are files of
/// tests/providers/bbmsl/golden.
pub fn config(name: &str, provider: &Value) -> Rc<Config> {
    configs(&json!({ name: provider }))
}

/// A plugin configuration of these providers, in the same way.
pub fn configs(providers: &Value) -> Rc<Config> {
    let mut configuration = json!({ "providers": providers });
    resolve_files(&mut configuration);
    let text = configuration.to_string();
    Rc::new(Config::read(text.as_bytes(), &|_| None).unwrap())
}

/// Puts files of `tests/providers/bbmsl` in the place of their names.
pub fn resolve_files(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix('@') {
                *text = golden_file(&format!("bbmsl/{name}")).to_owned();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(resolve_files),
        Value::Object(members) => members.values_mut().for_each(resolve_files),
        _ => {}
    }
}

/// Looks at a call's headers, with nothing known of its key.
pub fn open(config: &Rc<Config>, headers: &Headers<'_>, now: Now) -> Opening {
    exchange::open(config, headers, now, &|_| None, &|_| None)
}

/// Goes on with a call's body, without a guard.
pub fn finish(
    reading: Reading,
    body: &[u8],
    now: Now,
    signer: &mut dyn Signer,
    filter_state: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Step {
    match reading.accept(body, &|_| None) {
        Ok(accepted) => accepted.proceed(Claim::Unguarded, now, signer, filter_state),
        Err(answer) => Step::Answered(answer),
    }
}

/// A call taken up to the moment in which the provider's request leaves, or to its answer.
pub fn send(
    config: &Rc<Config>,
    key: &str,
    body: &[u8],
    token: &str,
    now: Now,
) -> Result<Box<Dispatch>, Answer> {
    send_with(config, &call_headers(key), body, token, now, &mut signer())
}

/// The same with headers and a signer of one's own.
pub fn send_with(
    config: &Rc<Config>,
    headers: &Headers<'_>,
    body: &[u8],
    token: &str,
    now: Now,
    signer: &mut dyn Signer,
) -> Result<Box<Dispatch>, Answer> {
    let reading = match open(config, headers, now) {
        Opening::Read(reading) => reading,
        Opening::Answer(answer) => return Err(answer),
        Opening::NotOurs => panic!("not ours"),
    };
    match finish(reading, body, now, signer, &|_| None) {
        Step::Leaving(dispatch) => Ok(dispatch),
        Step::Answered(answer) => Err(answer),
        Step::Waiting(waiting) => Ok(with_token(waiting, token)),
        other => panic!("not sent: {other:?}"),
    }
}

/// What leaves by the route, with this token.
pub fn with_token(waiting: Box<Waiting>, token: &str) -> Box<Dispatch> {
    match waiting.with_token(Secret::new(token.to_owned())) {
        Step::Leaving(dispatch) => dispatch,
        other => panic!("not sent: {other:?}"),
    }
}

/// What leaves for the provider.
pub enum Out {
    /// By the route.
    Routed(Box<Dispatch>),
    /// By a call of the gateway's own.
    Callout(Callout),
}

impl Out {
    /// The answer to the provider's reply.
    pub fn reply(self, head: &ReplyHead, body: &[u8], now: Now) -> Answer {
        match self {
            Out::Routed(dispatch) => dispatch.sent.reply(head, body, 1),
            Out::Callout(callout) => match call_reply(callout, head, body, now, &|_| None, None) {
                Step::Answered(answer) => answer,
                other => panic!("a look-up went on: {other:?}"),
            },
        }
    }
}

/// A look-up taken up to the moment in which the provider's request leaves, or to its answer.
/// Nothing is remembered of a key.
pub fn look_up(config: &Rc<Config>, query: &str, token: &str, now: Now) -> Result<Out, Answer> {
    look_up_with(
        config,
        &look_up_headers(query),
        Claim::Unguarded,
        token,
        now,
    )
}

/// The same with headers of one's own, and with what the guard remembers.
pub fn look_up_with(
    config: &Rc<Config>,
    headers: &Headers<'_>,
    claim: Claim,
    token: &str,
    now: Now,
) -> Result<Out, Answer> {
    let Opening::Read(reading) = open(config, headers, now) else {
        panic!("not read")
    };
    let accepted = reading.accept(b"", &|_| None)?;
    match accepted.proceed(claim, now, &mut signer(), &|_| None) {
        Step::Leaving(dispatch) => Ok(Out::Routed(dispatch)),
        Step::Calling(callout @ Callout::Inquiry(_)) => Ok(Out::Callout(callout)),
        Step::Answered(answer) => Err(answer),
        Step::Waiting(waiting) => Ok(Out::Routed(with_token(waiting, token))),
        other => panic!("not sent: {other:?}"),
    }
}

/// A signer that fails.
pub struct FailingSigner;

impl Signer for FailingSigner {
    fn sign(
        &mut self,
        _choice: SignerChoice,
        _key: &PrivateKey,
        _text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed> {
        Err(SignerFailed)
    }
}
