//! `memory`: the store in which gateways remember keys together.

use crate::json::Node;
use crate::reader::Reader;
use crate::redis::Login;
use crate::secret::{Secret, SecretSource};

/// How long one call to the store may take where the configuration does not say, in milliseconds.
const DEFAULT_TIMEOUT_MS: u32 = 500;

/// The beginning of all names in the store where the configuration names none.
const DEFAULT_PREFIX: &str = "refund.guard:";

/// The store in which gateways remember keys together.
#[derive(Debug)]
pub struct SharedMemory {
    /// The Envoy cluster that reaches it, as raw TCP.
    pub cluster: String,
    /// Its ACL user; none: the default one.
    pub username: Option<String>,
    /// The password; none: the store asks for none.
    pub password: Option<SecretSource>,
    /// The beginning of all names in it.
    pub prefix: String,
    /// How long one call may take, in milliseconds. What is asked takes at most twice as long.
    pub timeout_ms: u32,
    /// Whether no provider is sent anything while the store cannot be asked, keys of its own or not.
    pub refuses: bool,
}

impl SharedMemory {
    /// How the gateway proves itself to the store with this password.
    pub fn login<'a>(&'a self, password: Option<&'a Secret>) -> Option<Login<'a>> {
        password.map(|password| Login {
            username: self.username.as_deref(),
            password,
        })
    }
}

impl Reader<'_> {
    pub(super) fn shared_memory(&mut self, node: Node<'_>) -> Option<SharedMemory> {
        let mut object = self.object("/memory", node)?;
        let redis = self.required(&mut object, "redis");
        let word = object.take("when_unavailable").map(|node| node.text());
        let refuses = match word.as_ref().map(|word| word.as_deref()) {
            None => false,
            Some(Some("refuse")) => true,
            Some(_) => {
                self.fault(
                    object.at("when_unavailable"),
                    "This must be refuse, or left out: then a provider with keys of its own goes on, and no other.",
                );
                true
            }
        };
        self.refuse_the_rest(object);
        let mut redis = self.object("/memory/redis", redis?)?;
        let cluster = self.required_text(&mut redis, "cluster");
        let username = self.optional_text(&mut redis, "username");
        // Without one to ask for, the member may be left out.
        let password = match redis.peek("password") {
            true => self.credential(&mut redis, "password").map(Some),
            false => {
                redis.take("password");
                Some(None)
            }
        };
        if username.is_some() && password == Some(None) {
            self.fault(redis.at("password"), "A user needs a password.");
        }
        let prefix = self.optional_text(&mut redis, "prefix");
        if let Some(prefix) = &prefix
            && (prefix.len() > 64 || !prefix.bytes().all(|b| b.is_ascii_graphic()))
        {
            self.fault(
                redis.at("prefix"),
                "The prefix has 1 to 64 visible characters of ASCII.",
            );
        }
        let timeout_ms = self.count(&mut redis, "timeout_ms", (10, 5_000));
        self.refuse_the_rest(redis);
        Some(SharedMemory {
            cluster: cluster?,
            username,
            password: password?,
            prefix: prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            timeout_ms: timeout_ms?.unwrap_or(DEFAULT_TIMEOUT_MS),
            refuses,
        })
    }
}
