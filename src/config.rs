//! The plugin configuration: checked whole, with a pointer to every fault, and compiled once.

use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;

use crate::caller::{CallerName, CallerSource};
pub use crate::credentials::{Auth, TokenEndpoint};
use crate::guard::{Digest, GuardSettings};
use crate::json::{Json, Node};
use crate::money::{Currency, Money};
use crate::problem::Fault;
use crate::provider::{Configured, KINDS, MinorUnits, Provider, ProviderKind, Reason};
use crate::reader::{Object, Reader, list};
use crate::signing::{KeyRing, SignerChoice, Signing};
pub use crate::url::Url;

mod shared_memory;

pub use shared_memory::SharedMemory;

/// How long a send may still arrive where the configuration does not say, in seconds.
const DEFAULT_SETTLE_SECONDS: u32 = 300;

/// The path of the canonical call where the configuration names none.
pub const DEFAULT_PATH: &str = "/v1/refunds";

/// The whole configuration.
#[derive(Debug)]
pub struct Config {
    /// The path of the canonical call.
    pub path: String,
    /// The request headers that carry secrets, in lower case: taken from every request, whoever it
    /// is for.
    pub secret_headers: Vec<String>,
    /// What is remembered of idempotency keys.
    pub guard: GuardSettings,
    /// The store in which gateways remember keys together; none: each remembers for itself.
    pub memory: Option<Rc<SharedMemory>>,
    /// Where Envoy says who calls; none: callers are not told apart.
    pub caller: Option<CallerSource>,
    /// Whether the plugin lists what is open, and does nothing else.
    pub open_list: bool,
    providers: BTreeMap<String, Rc<ProviderEntry>>,
}

/// One configured provider.
#[derive(Debug)]
pub struct ProviderEntry {
    /// Its configured name, to which routes and metrics are bound.
    pub name: String,
    /// Which dialect it speaks.
    pub kind: &'static ProviderKind,
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
    /// Whose account it is: the kind, the base URL, and the shop's or merchant's id, or the
    /// client's. Two providers with the same one are one merchant.
    pub merchant: [u8; 8],
    /// The Envoy cluster that reaches it, for questions that cannot go by a route.
    pub cluster: String,
    /// The same, where the configuration names it: its route must lead there.
    pub route_cluster: Option<String>,
    /// Whether a payment is looked at before each refund.
    pub query_first: bool,
    /// How long a send may still arrive, in milliseconds.
    pub settle_ms: i64,
    /// Whether the platform team has switched refunds off. Look-ups go on.
    pub is_off: bool,
    /// The most that one refund may be, by currency; none: no limit.
    pub max_amount: Option<Vec<Money>>,
    /// Who may use it; none: all.
    pub callers: Option<Vec<String>>,
}

impl ProviderEntry {
    /// Whether refunds in this currency are configured.
    pub fn takes_currency(&self, currency: Currency) -> bool {
        let allowed = self.currencies.as_ref();
        allowed.is_none_or(|allowed| allowed.contains(&currency))
    }

    /// Whether this caller may use it.
    pub fn lets_in(&self, caller: Option<&CallerName>) -> bool {
        self.callers.as_ref().is_none_or(|allowed| {
            caller.is_some_and(|caller| allowed.iter().any(|name| name == caller.as_str()))
        })
    }

    /// Why a refund of so much is over the limit: a sentence. `None` as the amount: nobody knows
    /// how much it is.
    pub fn over_limit(&self, amount: Option<Money>) -> Option<String> {
        let limits = self.max_amount.as_ref()?;
        let Some(amount) = amount else {
            return Some("The limit of this provider needs to be told how much it is.".to_owned());
        };
        let code = amount.currency.code();
        match limits
            .iter()
            .find(|limit| limit.currency == amount.currency)
        {
            Some(limit) if amount.minor <= limit.minor => None,
            Some(limit) => Some(format!(
                "One refund at this provider may be {} {code} at most.",
                limit.value()
            )),
            None => Some(format!("There is no limit for {code} at this provider.")),
        }
    }
}

impl Config {
    /// Reads the plugin configuration. `env` gives the environment variables that the host lets the
    /// module see.
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

impl Reader<'_> {
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
        let caller = match object.take("caller") {
            Some(node) => self.caller(node).map(Some),
            None => Some(None),
        };
        let tells_callers = caller != Some(None);
        let open_list = self.flag(&mut object, "open_list");
        let providers = match object.take("providers") {
            Some(node) => self.object("/providers", node),
            // A list asks no provider.
            None if open_list => Some(Object::new("/providers", "member")),
            None => {
                self.fault("/providers", "This member is required.");
                None
            }
        };
        let guard = match object.take("guard") {
            Some(node) => self.guard(node),
            None => Some(GuardSettings::default()),
        };
        let memory = match object.take("memory") {
            Some(node) => self.shared_memory(node).map(Some),
            None => Some(None),
        };
        if matches!(memory, Some(Some(_))) && guard.is_some_and(|guard| !guard.is_on()) {
            self.fault("/memory", "The guard is off: there is nothing to share.");
        }
        self.refuse_the_rest(object);
        let providers = providers?;
        if providers.members().is_empty() && !open_list {
            self.fault("/providers", "At least one provider is needed.");
        }
        let mut entries = BTreeMap::new();
        for (name, node) in providers.members() {
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
            if let Some(entry) = self.provider(&pointer, name, *node, tells_callers) {
                entries.insert(name.clone().into_owned(), Rc::new(entry));
            }
        }
        Some(Config {
            path: path?,
            secret_headers: mem::take(&mut self.secret_headers),
            guard: guard?,
            memory: memory?.map(Rc::new),
            caller: caller?,
            open_list,
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
        self.refuse_the_rest(object);
        let milliseconds = |seconds: u32| i64::from(seconds).saturating_mul(1_000);
        Some(GuardSettings {
            entries: entries?.unwrap_or(default.entries),
            window_ms: window?.map_or(default.window_ms, milliseconds),
            lease_ms: lease?.map_or(default.lease_ms, milliseconds),
        })
    }

    /// `{"property": […]}` or `{"filter_state": KEY}`.
    fn caller(&mut self, node: Node<'_>) -> Option<CallerSource> {
        let mut object = self.object("/caller", node)?;
        let property = object.take("property");
        let filter_state = self.optional_text(&mut object, "filter_state");
        let had_state = object.had("filter_state");
        let pointer = object.at("property");
        self.refuse_the_rest(object);
        match (property, filter_state) {
            (Some(node), None) if !had_state => {
                let path = self.texts(&pointer, node)?;
                let source = CallerSource::property(path);
                if let Err(why) = source {
                    self.fault(pointer, format!("This {why}."));
                }
                source.ok()
            }
            (None, Some(key)) => Some(CallerSource::FilterState(key)),
            (None, None) if had_state => None,
            _ => {
                self.fault("/caller", "This must have either property or filter_state.");
                None
            }
        }
    }

    /// A list of texts, and not an empty one.
    fn texts(&mut self, pointer: &str, node: Node<'_>) -> Option<Vec<String>> {
        let Some(items) = node.items().filter(|items| !items.is_empty()) else {
            self.fault(
                pointer,
                "This must be a list of strings, and not an empty one.",
            );
            return None;
        };
        let texts = items.into_iter().enumerate();
        let texts: Vec<_> = texts
            .map(|(index, item)| self.text(&format!("{pointer}/{index}"), item))
            .collect();
        texts.into_iter().collect()
    }

    /// `{"GEL": "500.00"}`: the most that one refund may be.
    fn max_amount(&mut self, pointer: &str, node: Node<'_>) -> Option<Vec<Money>> {
        let wants = "This must be a decimal string above zero, with no more decimals than the currency has.";
        let before = self.faults.len();
        let limits = self.by_currency(pointer, node, wants, |node, currency| {
            Money::from_value(&node.text()?, currency).ok()
        })?;
        if limits.is_empty() && self.faults.len() == before {
            self.fault(pointer, "This must name at least one currency.");
        }
        Some(limits)
    }

    /// An object whose names are currencies. `wants`: what is said of a value that `read` cannot take.
    fn by_currency<T>(
        &mut self,
        pointer: &str,
        node: Node<'_>,
        wants: &str,
        read: impl Fn(Node<'_>, Currency) -> Option<T>,
    ) -> Option<Vec<T>> {
        let object = self.object(pointer, node)?;
        let mut values = Vec::with_capacity(object.members().len());
        for (code, node) in object.members() {
            match Currency::from_code(code) {
                Some(currency) => match read(*node, currency) {
                    Some(value) => values.push(value),
                    None => self.fault(object.at(code), wants),
                },
                None => self.fault(
                    object.at(code),
                    "The name must be an ISO 4217 code in upper case.",
                ),
            }
        }
        Some(values)
    }

    fn provider(
        &mut self,
        pointer: &str,
        name: &str,
        node: Node<'_>,
        tells_callers: bool,
    ) -> Option<ProviderEntry> {
        let mut object = self.object(pointer, node)?;
        let kind = self.required_text(&mut object, "kind").and_then(|word| {
            let kind = KINDS.iter().find(|kind| kind.name == word);
            if kind.is_none() {
                let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
                self.fault(
                    format!("{pointer}/kind"),
                    format!("The kind must be {}.", list(&names, "or")),
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
        let is_off = match object.take("refunds").map(|node| node.text()) {
            None => false,
            Some(Some(word)) if word == "on" => false,
            Some(Some(word)) if word == "off" => true,
            Some(_) => {
                self.fault(object.at("refunds"), "This must be on or off.");
                true
            }
        };
        let max_amount = match object.take("max_amount") {
            Some(node) => self.max_amount(&object.at("max_amount"), node).map(Some),
            None => Some(None),
        };
        let callers = match object.take("callers") {
            Some(node) => self.texts(&object.at("callers"), node).map(Some),
            None => Some(None),
        };
        if !tells_callers && callers != Some(None) {
            self.fault(
                object.at("callers"),
                "Nobody says who calls: /caller is missing.",
            );
        }
        // What else there may be depends on the kind: without one the rest cannot be judged.
        let kind = kind?;
        if !kind.capabilities.shows_currency && currencies == Some(None) {
            self.fault(
                object.at("currencies"),
                "This member is required: the provider is sent no currency and shows none.",
            );
        }
        let default_reason = match kind.capabilities.reason {
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
        let configured = (kind.configure)(self, &mut object, minor_units);
        self.refuse_the_rest(object);
        let Configured {
            dialect,
            auth,
            account,
        } = configured?;
        let base_url = base_url?;
        let merchant = Digest::of([
            kind.name.as_bytes(),
            base_url.text().as_bytes(),
            account.as_deref().unwrap_or(name).as_bytes(),
        ]);
        Some(ProviderEntry {
            name: name.to_owned(),
            kind,
            merchant: merchant.short(),
            base_url,
            dialect,
            auth,
            currencies: currencies?,
            default_reason,
            cluster: cluster.clone().unwrap_or_else(|| name.to_owned()),
            route_cluster: cluster,
            query_first,
            settle_ms: i64::from(settle?.unwrap_or(DEFAULT_SETTLE_SECONDS)).saturating_mul(1_000),
            is_off,
            max_amount: max_amount?,
            callers: callers?,
        })
    }

    /// `{"LBP": 0}`: the decimals by which a provider counts a currency.
    fn minor_units(&mut self, pointer: &str, node: Node<'_>) -> MinorUnits {
        let wants = "This must be a whole number from 0 to 4.";
        let units = self.by_currency(pointer, node, wants, |node, currency| {
            let digits = node.number()?.parse().ok().filter(|digits| *digits <= 4)?;
            Some((currency, digits))
        });
        units.unwrap_or_default()
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
}
