//! The filter's core, as the peers use it in the filter's place: all that they know of its API stands here.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Opening, ReplyHead, Sent, Step, open, unreadable_call};
use refund_filter::guard::Claim;
use refund_filter::headers::Headers;
use refund_filter::signing::{PrivateKey, Signer, SignerChoice, SignerFailed};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

/// The environment variable with the plugin configuration; the secrets come by those that it names.
pub const PLUGIN: &str = "BENCH_PLUGIN";
/// The environment variable with BBMSL's key: base64 of PKCS#8 DER.
pub const BBMSL_KEY: &str = "BBMSL_KEY";

/// The core with its configuration. It is of one thread, as in a worker of Envoy's.
pub struct Core {
    config: Rc<Config>,
    key: RsaKeyPair,
    began: Instant,
}

/// A provider's request, and what is left to be done once it is answered.
pub struct Going {
    /// All headers, pseudo-headers included.
    pub headers: Headers<'static>,
    /// The body.
    pub body: String,
    /// For [`Core::reply`].
    pub sent: Sent,
}

/// What a service would sign with: the same bytes as the filter's signers make.
struct RingSigner<'a>(&'a RsaKeyPair);

impl Signer for RingSigner<'_> {
    fn sign(
        &mut self,
        _choice: SignerChoice,
        _key: &PrivateKey,
        text: &[u8],
    ) -> Result<Vec<u8>, SignerFailed> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                text,
                &mut signature,
            )
            .map_err(|_| SignerFailed)?;
        Ok(signature)
    }
}

impl Core {
    /// Reads the configuration from the environment.
    pub fn from_environment() -> Result<Core> {
        let plugin = std::env::var(PLUGIN).context(PLUGIN)?;
        let variable = |name: &str| std::env::var(name).ok();
        let config =
            Config::read(plugin.as_bytes(), &variable).map_err(|faults| anyhow!("{faults:?}"))?;
        let der = STANDARD.decode(variable(BBMSL_KEY).context(BBMSL_KEY)?)?;
        let key = RsaKeyPair::from_pkcs8(&der).map_err(|fault| anyhow!("{BBMSL_KEY}: {fault}"))?;
        Ok(Core {
            config: Rc::new(config),
            key,
            began: Instant::now(),
        })
    }

    fn now(&self) -> Now {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            unix_ms: since.map_or(0, milliseconds),
            steady_ms: milliseconds(self.began.elapsed()),
        }
    }

    /// From the whole call to the provider's request, or to an answer that needs none. No guard: a service would need a
    /// database for it.
    pub fn request(&self, headers: &Headers<'_>, body: &[u8]) -> Result<Going, Answer> {
        let now = self.now();
        let earlier = |_: &_| None;
        let reading = match open(&self.config, headers, now, &earlier, &|_| None) {
            Opening::Read(reading) => reading,
            Opening::Answer(answer) => return Err(answer),
            Opening::NotOurs => return Err(unreadable_call()),
        };
        let accepted = reading.accept(body, &earlier)?;
        let mut signer = RingSigner(&self.key);
        match accepted.proceed(Claim::Unguarded, now, &mut signer, &|_| None) {
            Step::Leaving(dispatch) => Ok(Going {
                headers: dispatch.headers,
                body: dispatch.body,
                sent: dispatch.sent,
            }),
            Step::Answered(answer) => Err(answer),
            Step::Waiting(waiting) => {
                Err(waiting.without_token(&refund_filter::token::Failure::unreachable()))
            }
            // No peer makes calls of its own.
            Step::Calling(_)
            | Step::Claiming(_)
            | Step::Naming(_)
            | Step::Reading(_)
            | Step::Sent(_)
            | Step::Replying(_) => Err(unreadable_call()),
        }
    }

    /// From the provider's whole reply to the answer.
    pub fn reply(sent: Sent, headers: &Headers<'_>, body: &[u8]) -> Answer {
        sent.reply(&ReplyHead::of(headers), body, 1)
    }
}
