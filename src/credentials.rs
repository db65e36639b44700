//! How the gateway proves itself to a provider, and how the configuration says so.

use std::rc::Rc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::json::Node;
use crate::problem::pointer_token;
use crate::reader::{Object, Reader};
use crate::secret::{Carried, Secret, SecretSource};
use crate::signing::{KeyRing, PublicKey, RingKey, SignerChoice, Signing, Transit};
use crate::url::Url;

/// How the gateway proves itself to a provider.
#[derive(Debug)]
pub enum Auth {
    /// A bearer token from an OAuth2 token endpoint, by client credentials (RFC 6749, 4.4).
    Token(TokenEndpoint),
    /// A static bearer key.
    Bearer(SecretSource),
    /// HTTP Basic.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: SecretSource,
    },
    /// Envoy's credential_injector on the provider's cluster adds it; the filter holds nothing.
    Injected,
    /// An RSA signature in the body.
    Signature(Signing),
}

/// An OAuth2 token endpoint.
#[derive(Debug)]
pub struct TokenEndpoint {
    /// The Envoy cluster that reaches it.
    pub cluster: String,
    /// Where it is.
    pub url: Url,
    /// The client's name.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: SecretSource,
}

impl Reader<'_> {
    /// `"credentials": "injected"`: Envoy adds them on the provider's cluster.
    fn is_injected(&mut self, object: &mut Object<'_>) -> bool {
        let Some(node) = object.take("credentials") else {
            return false;
        };
        if node.text().as_deref() != Some("injected") {
            self.fault(
                object.at("credentials"),
                "This must be \"injected\", or left out where the credentials stand here.",
            );
        }
        true
    }

    /// What `"credentials": "injected"` says, or else what `read` finds.
    pub fn injected_or(
        &mut self,
        object: &mut Object<'_>,
        read: impl FnOnce(&mut Self, &mut Object<'_>) -> Option<Auth>,
    ) -> Option<Auth> {
        if self.is_injected(object) {
            Some(Auth::Injected)
        } else {
            read(self, object)
        }
    }

    /// The user and the password of HTTP Basic, under these names.
    pub fn basic(
        &mut self,
        object: &mut Object<'_>,
        user_name: &'static str,
        password_name: &'static str,
    ) -> Option<Auth> {
        let user = self.required_text(object, user_name);
        if user.as_ref().is_some_and(|user| user.contains(':')) {
            self.fault(object.at(user_name), "HTTP Basic allows no colon here.");
        }
        let password = self.credential(object, password_name);
        Some(Auth::Basic {
            user: user?,
            password: password?,
        })
    }

    /// `token`: where bearer tokens come from, and by which client.
    pub fn token_endpoint(&mut self, object: &mut Object<'_>) -> Option<TokenEndpoint> {
        let node = self.required(object, "token")?;
        let mut token = self.object(&object.at("token"), node)?;
        let cluster = self.required_text(&mut token, "cluster");
        let url = self.url(&mut token, "url");
        let client_id = self.required_text(&mut token, "client_id");
        let client_secret = self.credential(&mut token, "client_secret");
        self.refuse_the_rest(token);
        Some(TokenEndpoint {
            cluster: cluster?,
            url: url?,
            client_id: client_id?,
            client_secret: client_secret?,
        })
    }

    /// `signing`: keys of the gateway's, or OpenBao.
    pub fn signing(&mut self, object: &mut Object<'_>) -> Option<Signing> {
        let node = self.required(object, "signing")?;
        let mut signing = self.object(&object.at("signing"), node)?;
        if let Some(node) = signing.take("transit") {
            let transit = self.transit(&signing.at("transit"), node);
            self.refuse_the_rest(signing);
            return transit.map(|transit| Signing::Transit(Rc::new(transit)));
        }
        let signer = match self.optional_text(&mut signing, "signer").as_deref() {
            None | Some("auto") => SignerChoice::Auto,
            Some("host") => SignerChoice::Host,
            Some("vm") => SignerChoice::Vm,
            Some(_) => {
                self.fault(signing.at("signer"), "The signer must be auto, host or vm.");
                SignerChoice::Auto
            }
        };
        let keys = self.required(&mut signing, "keys");
        let pointer = signing.at("keys");
        self.refuse_the_rest(signing);
        let Some(items) = keys?.items().filter(|items| !items.is_empty()) else {
            self.fault(
                pointer,
                "This must be a list of keys, and not an empty one.",
            );
            return None;
        };
        let mut ring: Vec<RingKey> = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let pointer = format!("{pointer}/{index}");
            if let Some(key) = self.ring_key(&pointer, item) {
                if ring.iter().any(|known| known.id == key.id) {
                    self.fault(format!("{pointer}/id"), "Two keys have this id.");
                }
                ring.push(key);
            }
        }
        Some(Signing::Keys {
            ring: KeyRing(ring),
            signer,
        })
    }

    fn transit(&mut self, pointer: &str, node: Node<'_>) -> Option<Transit> {
        let mut object = self.object(pointer, node)?;
        let cluster = self.required_text(&mut object, "cluster");
        let mount = self.path_part(&mut object, "mount", b"-._/");
        let key = self.path_part(&mut object, "key", b"-._");
        let token = self.credential(&mut object, "token");
        let public_keys = match object.take("public_keys") {
            Some(node) => self.public_keys(&object.at("public_keys"), node),
            None => Vec::new(),
        };
        let namespace = match object.take("namespace") {
            Some(node) => {
                let pointer = object.at("namespace");
                self.text(&pointer, node)
                    .and_then(|text| self.plain(&pointer, text, b"-._/"))
            }
            None => None,
        };
        self.refuse_the_rest(object);
        Some(Transit {
            cluster: cluster?,
            mount: mount?,
            key: key?,
            token: token?,
            namespace,
            public_keys,
        })
    }

    /// The public halves of a transit key, in PEM: a list, or by their versions as OpenBao shows
    /// them.
    fn public_keys(&mut self, pointer: &str, node: Node<'_>) -> Vec<Rc<PublicKey>> {
        let texts: Vec<(String, Node<'_>)> = match (node.items(), node.members()) {
            (Some(items), _) => {
                let items = items.into_iter().enumerate();
                items
                    .map(|(index, item)| (format!("{pointer}/{index}"), item))
                    .collect()
            }
            (None, Some(Ok(members))) => members
                .into_iter()
                .map(|(name, item)| (format!("{pointer}/{}", pointer_token(&name)), item))
                .collect(),
            (None, _) => Vec::new(),
        };
        if texts.is_empty() {
            self.fault(
                pointer,
                "This must be a list of public keys in PEM, and not an empty one.",
            );
        }
        let mut keys = Vec::with_capacity(texts.len());
        for (pointer, node) in texts {
            match node.text().and_then(|text| PublicKey::read(&text)) {
                Some(key) => keys.push(Rc::new(key)),
                None => self.fault(
                    pointer,
                    "This must be a public RSA key of 2048 to 4096 bits in PEM (PUBLIC KEY).",
                ),
            }
        }
        keys
    }

    fn path_part(
        &mut self,
        object: &mut Object<'_>,
        name: &'static str,
        more: &[u8],
    ) -> Option<String> {
        let text = self.required_text(object, name)?;
        self.plain(&object.at(name), text, more)
    }

    fn plain(&mut self, pointer: &str, text: String, more: &[u8]) -> Option<String> {
        let sound = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
        if !sound {
            self.fault(
                pointer,
                "This takes letters, digits and a few signs of ASCII alone.",
            );
        }
        sound.then_some(text)
    }

    fn ring_key(&mut self, pointer: &str, node: Node<'_>) -> Option<RingKey> {
        let mut object = self.object(pointer, node)?;
        let id = self.required_text(&mut object, "id");
        let source = self.secret(&mut object, "private_key");
        let not_before = self.time(&mut object, "not_before");
        let not_after = self.time(&mut object, "not_after");
        if let (Some(from), Some(until)) = (not_before, not_after)
            && from >= until
        {
            self.fault(
                object.at("not_after"),
                "The key's time ends before it begins.",
            );
        }
        self.refuse_the_rest(object);
        let key = RingKey::new(
            id.clone().unwrap_or_default(),
            source?,
            not_before,
            not_after,
        );
        if matches!(key.source, SecretSource::Here(_)) {
            let nothing = Carried {
                headers: &[],
                filter_state: &|_| None,
            };
            if let Err(sentence) = key.key(&nothing) {
                self.fault(format!("{pointer}/private_key"), sentence);
            }
        }
        id.map(|_| key)
    }

    fn time(&mut self, object: &mut Object<'_>, name: &'static str) -> Option<i64> {
        let text = self.optional_text(object, name)?;
        match OffsetDateTime::parse(&text, &Rfc3339) {
            Ok(time) => Some(time.unix_timestamp()),
            Err(_) => {
                self.fault(
                    object.at(name),
                    "This must be a time of RFC 3339, such as 2026-11-01T00:00:00Z.",
                );
                None
            }
        }
    }

    /// A secret that becomes part of a header.
    pub fn credential(
        &mut self,
        object: &mut Object<'_>,
        name: &'static str,
    ) -> Option<SecretSource> {
        let source = self.secret(object, name)?;
        let SecretSource::Here(secret) = &source else {
            return Some(source);
        };
        // A secret from a file often ends with a line break; one inside a header would end the
        // header.
        let text = secret.expose().trim();
        if text.is_empty() || text.chars().any(char::is_control) {
            self.fault(
                object.at(name),
                "The secret is empty or holds control characters.",
            );
            return None;
        }
        Some(SecretSource::Here(Secret::new(text.to_owned())))
    }

    fn secret(&mut self, object: &mut Object<'_>, name: &'static str) -> Option<SecretSource> {
        const KNOWN: [&str; 4] = ["inline", "env", "filter_state", "header"];
        let node = self.required(object, name)?;
        let pointer = object.at(name);
        let mut source = self.object(&pointer, node)?;
        let given: Vec<_> = KNOWN
            .into_iter()
            .filter_map(|kind| source.take(kind).map(|node| (kind, node)))
            .collect();
        let extra = !source.members().is_empty();
        self.refuse_the_rest(source);
        let [(kind, node)] = given.as_slice() else {
            if !extra {
                self.fault(
                    pointer,
                    "A secret is an object with one member: inline, env, filter_state or header.",
                );
            }
            return None;
        };
        let pointer = format!("{pointer}/{kind}");
        if *kind == "inline" {
            // The one text of the configuration that may have line breaks: a key in PEM.
            let text = node.text().filter(|text| !text.is_empty());
            if text.is_none() {
                self.fault(pointer, "This must be a string, and not an empty one.");
            }
            return text.map(|text| SecretSource::Here(Secret::new(text.into_owned())));
        }
        let name = self.text(&pointer, *node)?;
        match *kind {
            "env" => {
                let value = (self.env)(&name).filter(|value| !value.is_empty());
                if value.is_none() {
                    self.fault(
                        pointer,
                        // Without the name: somebody may have put the secret itself here.
                        "The environment variable of this name is empty or not visible: name it in \
                         vm_config.environment_variables.host_env_keys.",
                    );
                }
                value.map(|value| SecretSource::Here(Secret::new(value)))
            }
            "filter_state" => Some(SecretSource::FilterState(name)),
            _ => self
                .secret_header(&pointer, &name)
                .map(SecretSource::Header),
        }
    }

    /// A header that carries a secret. It is taken away from every request, so it cannot be one
    /// that others need.
    fn secret_header(&mut self, pointer: &str, name: &str) -> Option<String> {
        const NEEDED: [&str; 12] = [
            "accept",
            "authorization",
            "b3",
            "connection",
            "content-length",
            "content-type",
            "cookie",
            "host",
            "idempotency-key",
            "traceparent",
            "tracestate",
            "x-request-id",
        ];
        const FAMILIES: [&str; 3] = ["x-b3-", "x-envoy-", "x-forwarded-"];
        let name = name.to_ascii_lowercase();
        let needed = NEEDED.contains(&name.as_str())
            || FAMILIES.iter().any(|family| name.starts_with(family));
        let sound = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !sound || needed {
            self.fault(
                pointer,
                "This must be the name of a header that carries nothing but this secret, such as x-refund-bbmsl-key.",
            );
            return None;
        }
        if !self.secret_headers.contains(&name) {
            self.secret_headers.push(name.clone());
        }
        Some(name)
    }
}
