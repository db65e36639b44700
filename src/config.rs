//! The plugin configuration: checked whole, with a pointer to every fault, and compiled once.

use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;

use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::guard::{Digest, GuardSettings};
use crate::json::{Json, Kind, Members, Node};
use crate::money::Currency;
use crate::problem::{Fault, pointer_token};
use crate::provider::bbmsl::Bbmsl;
use crate::provider::begateway::Begateway;
use crate::provider::bog::Bog;
use crate::provider::moyasar::Moyasar;
use crate::provider::{Provider, ProviderKind, Reason};
use crate::secret::{Carried, Secret, SecretSource};
use crate::signing::{KeyRing, PublicKey, RingKey, SignerChoice, Signing, Transit};

/// How long a send may still arrive where the configuration does not say, in seconds.
const DEFAULT_SETTLE_SECONDS: u32 = 300;

/// The path of the canonical call where the configuration names none.
pub const DEFAULT_PATH: &str = "/v1/refunds";

/// The whole configuration.
#[derive(Debug)]
pub struct Config {
    /// The path of the canonical call.
    pub path: String,
    /// The request headers that carry secrets, in lower case: taken from every request, whoever it is for.
    pub secret_headers: Vec<String>,
    /// What is remembered of idempotency keys.
    pub guard: GuardSettings,
    providers: BTreeMap<String, Rc<ProviderEntry>>,
}

/// One configured provider.
#[derive(Debug)]
pub struct ProviderEntry {
    /// Its configured name, to which routes and metrics are bound.
    pub name: String,
    /// Which dialect it speaks.
    pub kind: ProviderKind,
    /// Where it is.
    pub base_url: Url,
    /// Its dialect.
    pub dialect: Box<dyn Provider>,
    /// How the gateway proves itself to it.
    pub auth: Auth,
    /// The currencies that it is configured for; none: all.
    pub currencies: Option<Vec<Currency>>,
    /// The reason to send where the caller gives none.
    pub default_reason: Option<String>,
    /// Whose account it is: the kind, the base URL, and the shop's or merchant's id, or the client's. Two providers with the
    /// same one are one merchant.
    pub merchant: [u8; 8],
    /// The Envoy cluster that reaches it, for questions that cannot go by a route.
    pub cluster: String,
    /// Whether a payment is looked at before each refund.
    pub query_first: bool,
    /// How long a send may still arrive, in milliseconds.
    pub settle_ms: i64,
}

impl ProviderEntry {
    /// Whether refunds in this currency are configured.
    pub fn takes_currency(&self, currency: Currency) -> bool {
        let allowed = self.currencies.as_ref();
        allowed.is_none_or(|allowed| allowed.contains(&currency))
    }
}

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

/// An absolute `http` or `https` URL without query, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host, and port where one is given.
    pub authority: String,
    /// The path: empty, or with a slash in front and none at its end.
    pub path: String,
}

impl Url {
    /// The URL as text.
    pub fn text(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }

    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = if let Some(rest) = text.strip_prefix("https://") {
            ("https", rest)
        } else {
            ("http", text.strip_prefix("http://")?)
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        let sound = |text: &str, more: &[u8]| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b) || more.contains(&b))
        };
        (!authority.is_empty() && sound(authority, b"") && sound(&path, b"/~%")).then(|| Url {
            scheme,
            authority: authority.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl Config {
    /// Reads the plugin configuration. `env` gives the environment variables that the host lets the module see.
    ///
    /// The error holds all faults, each with a JSON pointer and a sentence, and never a secret.
    pub fn read(text: &[u8], env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Fault>> {
        let mut reader = Reader {
            faults: Vec::new(),
            secret_headers: Vec::new(),
            env,
        };
        let config = match Json::parse(text) {
            Ok(json) => reader.config(json.root()),
            Err(_) => {
                reader.fault("", "The configuration is not JSON.");
                None
            }
        };
        match config {
            Some(config) if reader.faults.is_empty() => Ok(config),
            _ => Err(reader.faults),
        }
    }

    /// The provider configured under this name.
    pub fn provider(&self, name: &str) -> Option<&ProviderEntry> {
        self.providers.get(name).map(Rc::as_ref)
    }

    /// The same, to be kept beyond the configuration.
    pub fn shared_provider(&self, name: &str) -> Option<Rc<ProviderEntry>> {
        self.providers.get(name).cloned()
    }

    /// The configured providers that sign with keys of the gateway's, with them.
    pub fn key_rings(&self) -> impl Iterator<Item = (&ProviderEntry, &KeyRing, SignerChoice)> {
        self.providers().filter_map(|entry| match &entry.auth {
            Auth::Signature(Signing::Keys { ring, signer }) => Some((entry, ring, *signer)),
            _ => None,
        })
    }

    /// All configured providers.
    pub fn providers(&self) -> impl Iterator<Item = &ProviderEntry> {
        self.providers.values().map(Rc::as_ref)
    }
}

/// Collects faults while it reads.
struct Reader<'e> {
    faults: Vec<Fault>,
    secret_headers: Vec<String>,
    env: &'e dyn Fn(&str) -> Option<String>,
}

/// An object of the configuration whose members are taken one by one.
struct Object<'a> {
    pointer: String,
    members: Members<'a>,
}

impl<'a> Object<'a> {
    fn take(&mut self, name: &str) -> Option<Node<'a>> {
        let index = self.members.iter().position(|(known, _)| known == name)?;
        Some(self.members.swap_remove(index).1)
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{}", self.pointer, pointer_token(name))
    }
}

impl Reader<'_> {
    fn fault(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.faults.push(Fault::at(pointer, detail));
    }

    fn object<'a>(&mut self, pointer: &str, node: Node<'a>) -> Option<Object<'a>> {
        let Some(Ok(members)) = node.members() else {
            self.fault(pointer, "This must be an object.");
            return None;
        };
        let mut kept: Members<'a> = Vec::with_capacity(members.len());
        for (name, node) in members {
            if kept.iter().any(|(known, _)| *known == name) {
                self.fault(
                    format!("{pointer}/{}", pointer_token(&name)),
                    "This member stands here twice.",
                );
            } else {
                kept.push((name, node));
            }
        }
        Some(Object {
            pointer: pointer.to_owned(),
            members: kept,
        })
    }

    fn refuse_the_rest(&mut self, object: Object<'_>, known: &str) {
        for (name, _) in &object.members {
            self.fault(
                object.at(name),
                format!("This member is not known; {known} are."),
            );
        }
    }

    fn required<'a>(&mut self, object: &mut Object<'a>, name: &str) -> Option<Node<'a>> {
        let node = object.take(name);
        if node.is_none() {
            self.fault(object.at(name), "This member is required.");
        }
        node
    }

    fn text(&mut self, pointer: &str, node: Node<'_>) -> Option<String> {
        match node.text() {
            Some(text) if !text.is_empty() && !text.chars().any(char::is_control) => {
                Some(text.into_owned())
            }
            _ => {
                self.fault(pointer, "This must be a string, and not an empty one.");
                None
            }
        }
    }

    fn required_text(&mut self, object: &mut Object<'_>, name: &str) -> Option<String> {
        let node = self.required(object, name)?;
        self.text(&object.at(name), node)
    }

    fn optional_text(&mut self, object: &mut Object<'_>, name: &str) -> Option<String> {
        let node = object.take(name)?;
        self.text(&object.at(name), node)
    }

    fn config(&mut self, node: Node<'_>) -> Option<Config> {
        let mut object = self.object("", node)?;
        let path = match object.take("path") {
            None => Some(DEFAULT_PATH.to_owned()),
            Some(node) => self.text("/path", node).filter(|path| {
                let sound = path.starts_with('/')
                    && path.bytes().all(|b| b.is_ascii_graphic())
                    && !path.contains(['?', '#']);
                if !sound {
                    self.fault(
                        "/path",
                        "The path must begin with a slash and hold no query.",
                    );
                }
                sound
            }),
        };
        let providers = self
            .required(&mut object, "providers")
            .and_then(|node| self.object("/providers", node));
        let guard = match object.take("guard") {
            Some(node) => self.guard(node),
            None => Some(GuardSettings::default()),
        };
        self.refuse_the_rest(object, "path, guard and providers");
        let providers = providers?;
        if providers.members.is_empty() {
            self.fault("/providers", "At least one provider is needed.");
        }
        let mut entries = BTreeMap::new();
        for (name, node) in &providers.members {
            let pointer = providers.at(name);
            let sound = (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !sound {
                self.fault(
                    &pointer,
                    "A provider's name is 1 to 64 letters, digits, hyphens and underscores of ASCII.",
                );
            }
            if let Some(entry) = self.provider(&pointer, name, *node) {
                entries.insert(name.clone().into_owned(), Rc::new(entry));
            }
        }
        Some(Config {
            path: path?,
            secret_headers: mem::take(&mut self.secret_headers),
            guard: guard?,
            providers: entries,
        })
    }

    fn guard(&mut self, node: Node<'_>) -> Option<GuardSettings> {
        let mut object = self.object("/guard", node)?;
        let default = GuardSettings::default();
        let day = 24 * 60 * 60;
        let entries = self.count(&mut object, "entries", (0, 1 << 20));
        let window = self.count(&mut object, "window_seconds", (0, 30 * day));
        // A lease of nothing would make every call in flight one of which nothing more is expected.
        let lease = self.count(&mut object, "lease_seconds", (1, 3_600));
        self.refuse_the_rest(object, "entries, window_seconds and lease_seconds");
        let milliseconds = |seconds: u32| i64::from(seconds).saturating_mul(1_000);
        Some(GuardSettings {
            entries: entries?.unwrap_or(default.entries),
            window_ms: window?.map_or(default.window_ms, milliseconds),
            lease_ms: lease?.map_or(default.lease_ms, milliseconds),
        })
    }

    /// A whole number within bounds; `Some(None)` where it is left out.
    fn count(
        &mut self,
        object: &mut Object<'_>,
        name: &str,
        (least, most): (u32, u32),
    ) -> Option<Option<u32>> {
        let Some(node) = object.take(name) else {
            return Some(None);
        };
        let number = node.number().and_then(|number| number.parse().ok());
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.fault(
                object.at(name),
                format!("This must be a whole number from {least} to {most}."),
            );
        }
        number.map(Some)
    }

    fn provider(&mut self, pointer: &str, name: &str, node: Node<'_>) -> Option<ProviderEntry> {
        let mut object = self.object(pointer, node)?;
        let kind = self.required_text(&mut object, "kind").and_then(|word| {
            let kind = ProviderKind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == word);
            if kind.is_none() {
                self.fault(
                    format!("{pointer}/kind"),
                    "The kind must be bog, moyasar, begateway or bbmsl.",
                );
            }
            kind
        });
        let base_url = self.url(&mut object, "base_url");
        let currencies = match object.take("currencies") {
            Some(node) => self.currencies(&object.at("currencies"), node).map(Some),
            None => Some(None),
        };
        let minor_units = match object.take("minor_units") {
            Some(node) => self.minor_units(&object.at("minor_units"), node),
            None => Vec::new(),
        };
        let cluster = self.optional_text(&mut object, "cluster");
        let query_first = self.flag(&mut object, "query_first");
        let settle = self.count(&mut object, "settle_seconds", (1, 24 * 60 * 60));
        // What else there may be depends on the kind: without one the rest cannot be judged.
        let kind = kind?;
        if !kind.capabilities().shows_currency && currencies == Some(None) {
            self.fault(
                object.at("currencies"),
                "This member is required: the provider is sent no currency and shows none.",
            );
        }
        let default_reason = match kind.capabilities().reason {
            Reason::Required => self.optional_text(&mut object, "default_reason"),
            Reason::NotSent => None,
        };
        if let Some(reason) = &default_reason
            && reason.chars().count() > 255
        {
            self.fault(
                object.at("default_reason"),
                "The reason must have 1 to 255 characters.",
            );
        }
        let (dialect, auth, account, known) = self.kind(kind, &mut object, minor_units);
        self.refuse_the_rest(
            object,
            &format!(
                "kind, base_url, currencies, minor_units, query_first, settle_seconds, cluster, {known}"
            ),
        );
        let base_url = base_url?;
        let merchant = Digest::of([
            kind.as_str().as_bytes(),
            base_url.text().as_bytes(),
            account.as_deref().unwrap_or(name).as_bytes(),
        ]);
        Some(ProviderEntry {
            name: name.to_owned(),
            kind,
            merchant: merchant.short(),
            base_url,
            dialect: dialect?,
            auth: auth?,
            currencies: currencies?,
            default_reason,
            cluster: cluster.unwrap_or_else(|| name.to_owned()),
            query_first,
            settle_ms: i64::from(settle?.unwrap_or(DEFAULT_SETTLE_SECONDS)).saturating_mul(1_000),
        })
    }

    /// What a kind of provider needs: its dialect, its credentials, the merchant's account where the configuration names one,
    /// and the members that are its own.
    #[allow(
        clippy::type_complexity,
        reason = "the four parts belong together only here, where they are read"
    )]
    fn kind(
        &mut self,
        kind: ProviderKind,
        object: &mut Object<'_>,
        minor_units: Vec<(Currency, u8)>,
    ) -> (
        Option<Box<dyn Provider>>,
        Option<Auth>,
        Option<String>,
        &'static str,
    ) {
        match kind {
            ProviderKind::Bog => {
                let endpoint = self.token_endpoint(object);
                let account = endpoint.as_ref().map(|token| token.client_id.clone());
                (
                    Some(Box::new(Bog::new(minor_units))),
                    endpoint.map(Auth::Token),
                    account,
                    "and token",
                )
            }
            ProviderKind::Moyasar => {
                let auth = if self.is_injected(object) {
                    Some(Auth::Injected)
                } else {
                    self.credential(object, "api_key").map(Auth::Bearer)
                };
                (
                    Some(Box::new(Moyasar::new(minor_units))),
                    auth,
                    None,
                    "and api_key or credentials",
                )
            }
            ProviderKind::Begateway => {
                let auth = if self.is_injected(object) {
                    Some(Auth::Injected)
                } else {
                    self.basic(object)
                };
                let account = match &auth {
                    Some(Auth::Basic { user, .. }) => Some(user.clone()),
                    _ => None,
                };
                (
                    Some(Box::new(Begateway::new(minor_units))),
                    auth,
                    account,
                    "default_reason, and shop_id with secret_key, or credentials",
                )
            }
            ProviderKind::Bbmsl => {
                let merchant_id = self.merchant_id(object);
                let declined_codes = self.declined_codes(object);
                let account = merchant_id.as_ref().map(|id| id.get().replace('"', ""));
                let dialect = merchant_id.map(|id| Bbmsl::new(id, declined_codes, minor_units));
                (
                    dialect.map(|dialect| Box::new(dialect) as Box<dyn Provider>),
                    self.signing(object).map(Auth::Signature),
                    account,
                    "merchant_id, declined_codes and signing",
                )
            }
        }
    }

    /// `{"LBP": 0}`: the decimals by which a provider counts a currency.
    fn minor_units(&mut self, pointer: &str, node: Node<'_>) -> Vec<(Currency, u8)> {
        let Some(object) = self.object(pointer, node) else {
            return Vec::new();
        };
        let mut units = Vec::with_capacity(object.members.len());
        for (code, node) in &object.members {
            let digits = node.number().and_then(|number| number.parse().ok());
            match (
                Currency::from_code(code),
                digits.filter(|digits| *digits <= 4),
            ) {
                (Some(currency), Some(digits)) => units.push((currency, digits)),
                (None, _) => self.fault(
                    object.at(code),
                    "The name must be an ISO 4217 code in upper case.",
                ),
                (Some(_), None) => {
                    self.fault(object.at(code), "This must be a whole number from 0 to 4.");
                }
            }
        }
        units
    }

    /// A member that is true or false; false where it is left out.
    fn flag(&mut self, object: &mut Object<'_>, name: &str) -> bool {
        match object.take(name).map(|node| node.raw()) {
            Some("true") => true,
            None | Some("false") => false,
            Some(_) => {
                self.fault(object.at(name), "This must be true or false.");
                false
            }
        }
    }

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

    fn basic(&mut self, object: &mut Object<'_>) -> Option<Auth> {
        let user = self.required_text(object, "shop_id");
        if user.as_ref().is_some_and(|user| user.contains(':')) {
            self.fault(object.at("shop_id"), "HTTP Basic allows no colon here.");
        }
        let password = self.credential(object, "secret_key");
        Some(Auth::Basic {
            user: user?,
            password: password?,
        })
    }

    fn url(&mut self, object: &mut Object<'_>, name: &str) -> Option<Url> {
        let text = self.required_text(object, name)?;
        let url = Url::read(&text);
        if url.is_none() {
            self.fault(
                object.at(name),
                "This must be an absolute http or https URL without credentials, query and fragment.",
            );
        }
        url
    }

    fn currencies(&mut self, pointer: &str, node: Node<'_>) -> Option<Vec<Currency>> {
        let Some(items) = node.items().filter(|items| !items.is_empty()) else {
            self.fault(
                pointer,
                "This must be a list of ISO 4217 codes, and not an empty one.",
            );
            return None;
        };
        let mut currencies = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item.text().and_then(|code| Currency::from_code(&code)) {
                Some(currency) => currencies.push(currency),
                None => self.fault(
                    format!("{pointer}/{index}"),
                    "This must be an ISO 4217 code in upper case.",
                ),
            }
        }
        Some(currencies)
    }

    fn token_endpoint(&mut self, object: &mut Object<'_>) -> Option<TokenEndpoint> {
        let node = self.required(object, "token")?;
        let mut token = self.object(&object.at("token"), node)?;
        let cluster = self.required_text(&mut token, "cluster");
        let url = self.url(&mut token, "url");
        let client_id = self.required_text(&mut token, "client_id");
        let client_secret = self.credential(&mut token, "client_secret");
        self.refuse_the_rest(token, "cluster, url, client_id and client_secret");
        Some(TokenEndpoint {
            cluster: cluster?,
            url: url?,
            client_id: client_id?,
            client_secret: client_secret?,
        })
    }

    fn merchant_id(&mut self, object: &mut Object<'_>) -> Option<Box<RawValue>> {
        let node = self.required(object, "merchant_id")?;
        match node.kind() {
            Kind::Number if node.raw().bytes().all(|b| b.is_ascii_digit()) => {
                RawValue::from_string(node.raw().to_owned()).ok()
            }
            Kind::String => {
                let text = self.text(&object.at("merchant_id"), node)?;
                RawValue::from_string(crate::json_text(&text)).ok()
            }
            _ => {
                self.fault(
                    object.at("merchant_id"),
                    "This must be a whole number or a string: it is sent as it stands here.",
                );
                None
            }
        }
    }

    fn declined_codes(&mut self, object: &mut Object<'_>) -> Vec<String> {
        let mut codes = Vec::new();
        let Some(node) = object.take("declined_codes") else {
            return codes;
        };
        let pointer = object.at("declined_codes");
        let Some(items) = node.items() else {
            self.fault(pointer, "This must be a list of strings.");
            return codes;
        };
        for (index, item) in items.into_iter().enumerate() {
            let pointer = format!("{pointer}/{index}");
            match self.text(&pointer, item) {
                Some(code) if code == "0000" => {
                    self.fault(pointer, "0000 is BBMSL's code of success.");
                }
                Some(code) => codes.push(code),
                None => {}
            }
        }
        codes
    }

    fn signing(&mut self, object: &mut Object<'_>) -> Option<Signing> {
        let node = self.required(object, "signing")?;
        let mut signing = self.object(&object.at("signing"), node)?;
        if let Some(node) = signing.take("transit") {
            let transit = self.transit(&signing.at("transit"), node);
            self.refuse_the_rest(signing, "transit, or keys and signer,");
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
        self.refuse_the_rest(signing, "keys and signer, or transit,");
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
        self.refuse_the_rest(
            object,
            "cluster, mount, key, token, namespace and public_keys",
        );
        Some(Transit {
            cluster: cluster?,
            mount: mount?,
            key: key?,
            token: token?,
            namespace,
            public_keys,
        })
    }

    /// The public halves of a transit key, in PEM: a list, or by their versions as OpenBao shows them.
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

    fn path_part(&mut self, object: &mut Object<'_>, name: &str, more: &[u8]) -> Option<String> {
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
        self.refuse_the_rest(object, "id, private_key, not_before and not_after");
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

    fn time(&mut self, object: &mut Object<'_>, name: &str) -> Option<i64> {
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
    fn credential(&mut self, object: &mut Object<'_>, name: &str) -> Option<SecretSource> {
        let source = self.secret(object, name)?;
        let SecretSource::Here(secret) = &source else {
            return Some(source);
        };
        // A secret from a file often ends with a line break; one inside a header would end the header.
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

    fn secret(&mut self, object: &mut Object<'_>, name: &str) -> Option<SecretSource> {
        const KNOWN: [&str; 4] = ["inline", "env", "filter_state", "header"];
        let node = self.required(object, name)?;
        let pointer = object.at(name);
        let mut source = self.object(&pointer, node)?;
        let given: Vec<_> = KNOWN
            .into_iter()
            .filter_map(|kind| source.take(kind).map(|node| (kind, node)))
            .collect();
        let extra = !source.members.is_empty();
        self.refuse_the_rest(source, "inline, env, filter_state and header");
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

    /// A header that carries a secret. It is taken away from every request, so it cannot be one that others need.
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
