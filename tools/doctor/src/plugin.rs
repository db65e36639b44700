//! The filter's settings in Envoy, and what its own configuration asks of Envoy. Whether that
//! configuration is right is for the filter to say, at its start.

use serde_json::Value;

use crate::chain::{Chain, Filter};
use crate::{Findings, PATH, is_set, is_true, list, text, typed};

/// How long a call may be in flight where the configuration does not say, in seconds.
const LEASE_SECONDS: u64 = 60;

/// A provider's kind, and what of it is to be seen in Envoy.
struct Kind {
    /// As `kind` of the configuration names it.
    name: &'static str,
    /// What the paths of its calls begin with, after the base URL's own path.
    paths: &'static [&'static str],
    /// Whether its look-ups are calls of the filter's own: they are POSTs, for which the filter takes no route.
    looks_up_by_itself: bool,
}

/// All that the filter knows.
const KINDS: [Kind; 4] = [
    Kind {
        name: "bog",
        paths: &["/payment/refund/", "/receipt/"],
        looks_up_by_itself: false,
    },
    Kind {
        name: "moyasar",
        paths: &["/v1/orders/"],
        looks_up_by_itself: false,
    },
    Kind {
        name: "begateway",
        paths: &["/beyag/transactions/"],
        looks_up_by_itself: false,
    },
    Kind {
        name: "bbmsl",
        paths: &["/hosted-checkout/"],
        looks_up_by_itself: true,
    },
];

/// One that the filter does not know.
const UNKNOWN: Kind = Kind {
    name: "",
    paths: &["/"],
    looks_up_by_itself: false,
};

/// The member of the store that gateways share.
const MEMORY: &str = "memory";

/// What the plugin's configuration asks of Envoy.
pub struct Plugin {
    /// The refund path.
    pub path: String,
    /// How long a call may be in flight, in seconds.
    pub lease_seconds: u64,
    /// The providers.
    pub providers: Vec<Provider>,
    /// The cluster of the store in which gateways remember keys together.
    pub memory: Option<String>,
    secrets: Vec<Secret>,
}

/// A configured provider.
pub struct Provider {
    /// Its configured name.
    pub name: String,
    /// The host that its routes are chosen by.
    pub authority: String,
    /// What the paths of its calls begin with.
    pub paths: Vec<String>,
    /// The clusters that the filter calls by itself.
    pub own_clusters: Vec<String>,
    /// The cluster that its route must lead to; empty: not configured.
    pub cluster: String,
    /// Whether its clusters add its credentials.
    pub injected: bool,
}

/// A secret: where it stands in the configuration (its value is never shown), and where it comes
/// from.
struct Secret {
    pointer: String,
    source: Source,
    name: String,
}

/// By which way a secret comes to the filter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    FilterState,
    Header,
    Environment,
    Inline,
}

impl Source {
    fn read(member: &str) -> Option<Self> {
        Some(match member {
            "filter_state" => Source::FilterState,
            "header" => Source::Header,
            "env" => Source::Environment,
            "inline" => Source::Inline,
            _ => return None,
        })
    }
}

impl Plugin {
    /// Reads the plugin's configuration; none where nothing can be said of it.
    pub fn read(chain: &Chain<'_>, findings: &mut Findings) -> Option<Self> {
        let place = &chain.place;
        let Some(config) = chain.filter.config.get("config") else {
            findings.lacks(
                place,
                "the refund filter's configuration is not in here, so that nothing is said of it; give the running Envoy's whole \
                 /config_dump",
            );
            return None;
        };
        examine_settings(place, config, findings);
        let configuration = config.pointer("/configuration").unwrap_or(&Value::Null);
        let (kind, value) = typed(configuration);
        if !kind.ends_with(".StringValue") {
            findings.lacks(
                place,
                "the plugin's configuration is no StringValue, and the filter can read nothing else; give it as a StringValue",
            );
            return None;
        }
        let json: Value = match serde_json::from_str(text(value, "/value")) {
            Ok(json) => json,
            Err(error) => {
                findings.lacks(
                    place,
                    format!(
                        "the plugin's configuration is not JSON (its line {}, column {}), and the filter refuses it; mend it",
                        error.line(),
                        error.column()
                    ),
                );
                return None;
            }
        };
        let path = text(&json, "/path");
        let lease = json.pointer("/guard/lease_seconds").and_then(Value::as_u64);
        let mut secrets = Vec::new();
        let providers = json.get("providers").and_then(Value::as_object);
        if providers.is_none_or(|providers| providers.is_empty()) {
            findings.lacks(
                place,
                "no provider is configured, and the filter refuses that; name at least one",
            );
        }
        examine_token(chain, &json, findings);
        if json.get("caller").is_none() && !chain.is_restricted() {
            findings.risk(
                place,
                "whoever reaches this address may refund, since nothing in front of the refund filter asks who calls; have it listen on \
                 127.0.0.1, or ask for a token or a certificate as auth-jwt.yaml and auth-mtls.yaml show",
            );
        }
        for (name, provider) in providers.into_iter().flatten() {
            find_secrets(&format!("providers.{name}"), provider, &mut secrets);
        }
        let mut known = Vec::new();
        for (name, provider) in providers.into_iter().flatten() {
            let kind = text(provider, "/kind");
            let kind = KINDS.iter().find(|known| known.name == kind);
            if kind.is_none() {
                findings.lacks(
                    place,
                    format!(
                        "providers.{name} is of no kind that the filter knows, so that it refuses the whole configuration; its `kind` is \
                         one of {}",
                        KINDS.map(|kind| kind.name).join(", ")
                    ),
                );
            }
            known.push(Provider::read(name, kind.unwrap_or(&UNKNOWN), provider));
        }
        let memory = json.get("memory");
        if let Some(memory) = memory {
            find_secrets(MEMORY, memory, &mut secrets);
        }
        Some(Plugin {
            path: if path.is_empty() { PATH } else { path }.to_owned(),
            lease_seconds: lease.unwrap_or(LEASE_SECONDS),
            providers: known,
            memory: memory.map(|memory| text(memory, "/redis/cluster").to_owned()),
            secrets,
        })
    }

    /// Whether Envoy gives the secrets, and to whom else. `come` are those that have come by SDS.
    pub fn examine(&self, chain: &Chain<'_>, come: Option<&[String]>, findings: &mut Findings) {
        let named = |source: Source| -> Vec<String> {
            let secrets = self.secrets.iter();
            let secrets = secrets.filter(|secret| secret.source == source);
            secrets.map(|secret| secret.name.clone()).collect()
        };
        let (headers, states) = (named(Source::Header), named(Source::FilterState));
        chain.examine_logged(&headers, &states, findings);
        chain.examine_tracing(&self.path, findings);
        chain.examine_enabling(&self.path, findings);
        for secret in &self.secrets {
            secret.examine(chain, come, findings);
        }
    }
}

impl Provider {
    fn read(name: &str, kind: &Kind, json: &Value) -> Self {
        let url = text(json, "/base_url");
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let (authority, base) = rest.split_once('/').unwrap_or((rest, ""));
        let base = base.trim_end_matches('/');
        let base = if base.is_empty() {
            String::new()
        } else {
            format!("/{base}")
        };
        let mut own_clusters: Vec<String> = ["/token/cluster", "/signing/transit/cluster"]
            .into_iter()
            .map(|pointer| text(json, pointer).to_owned())
            .filter(|cluster| !cluster.is_empty())
            .collect();
        if kind.looks_up_by_itself || is_true(json, "/query_first") {
            let cluster = text(json, "/cluster");
            own_clusters.push(if cluster.is_empty() { name } else { cluster }.to_owned());
        }
        Provider {
            name: name.to_owned(),
            authority: authority.to_owned(),
            paths: kind
                .paths
                .iter()
                .map(|path| format!("{base}{path}"))
                .collect(),
            own_clusters,
            cluster: text(json, "/cluster").to_owned(),
            injected: text(json, "/credentials") == "injected",
        }
    }
}

impl Secret {
    /// What comes of it that it is not there.
    fn loss(&self) -> &'static str {
        if self.pointer.starts_with(MEMORY) {
            "so that the shared memory cannot be asked"
        } else {
            "so that every refund of that provider is refused"
        }
    }

    fn examine(&self, chain: &Chain<'_>, come: Option<&[String]>, findings: &mut Findings) {
        let (place, pointer) = (&chain.place, &self.pointer);
        match self.source {
            Source::Inline => findings.risk(
                place,
                format!(
                    "{pointer} stands in the configuration in clear, and /config_dump shows it to whoever reaches the admin; have it \
                     come by SDS as in envoy.yaml"
                ),
            ),
            Source::Environment => self.examine_environment(chain, findings),
            Source::FilterState => self.examine_giver(chain, findings),
            Source::Header => {
                self.examine_giver(chain, findings);
                if let Some(come) = come {
                    self.examine_arrival(chain, come, findings);
                }
                if !chain.strips(&self.name) {
                    findings.risk(
                        place,
                        format!(
                            "a caller can bring {pointer} in a header of its own; take that header away by \
                             early_header_mutation_extensions"
                        ),
                    );
                }
            }
        }
    }

    fn examine_environment(&self, chain: &Chain<'_>, findings: &mut Findings) {
        let (place, pointer) = (&chain.place, &self.pointer);
        let variables = "/config/vm_config/environment_variables";
        let variables = chain.filter.config.pointer(variables);
        let variables = variables.unwrap_or(&Value::Null);
        let written = variables.get("key_values");
        if written.is_some_and(|values| values.get(&self.name).is_some()) {
            findings.risk(
                place,
                format!(
                    "{pointer} stands in key_values in clear, and /config_dump shows it to whoever reaches the admin; name the variable \
                     in host_env_keys instead"
                ),
            );
        } else if !list(variables, "/host_env_keys").any(|key| *key == self.name) {
            findings.lacks(
                place,
                format!(
                    "{pointer} is an environment variable that the module cannot see, so that the configuration is refused; name it in \
                     environment_variables.host_env_keys"
                ),
            );
        }
    }

    /// Whether the secret that an injector waits for is there. (Of one whose file is missing, Envoy
    /// dumps the injector as if it were in use.)
    fn examine_arrival(&self, chain: &Chain<'_>, come: &[String], findings: &mut Findings) {
        let credential = "/credential/typed_config";
        let injector = chain.before.iter().find(|filter| {
            let header = text(filter.config, &format!("{credential}/header"));
            header.eq_ignore_ascii_case(&self.name)
        });
        let secret =
            injector.map(|filter| text(filter.config, &format!("{credential}/credential/name")));
        if let Some(secret) = secret.filter(|secret| !come.iter().any(|known| known == secret)) {
            findings.lacks(
                &chain.place,
                format!(
                    "{} has not come: Envoy has no secret `{secret}`, {}; put its file there, and start Envoy anew",
                    self.pointer,
                    self.loss()
                ),
            );
        }
    }

    /// Whether a filter in front of the refund filter gives it.
    fn examine_giver(&self, chain: &Chain<'_>, findings: &mut Findings) {
        let (pointer, loss) = (&self.pointer, self.loss());
        let gives = |filter: &Filter<'_>| {
            let header = text(filter.config, "/credential/typed_config/header");
            let mut states = list(filter.config, "/on_request_headers");
            let gives = if self.source == Source::Header {
                filter.is(".CredentialInjector") && header.eq_ignore_ascii_case(&self.name)
            } else {
                states.any(|state| text(state, "/object_key") == self.name)
            };
            gives && chain.is_on(filter)
        };
        if chain.before.iter().any(gives) {
            return;
        }
        let what = if chain.behind.iter().any(gives) {
            format!(
                "what gives {pointer} stands behind the refund filter, {loss}; move it in front"
            )
        } else {
            format!(
                "nothing gives {pointer}, {loss}; copy set_filter_state from envoy.yaml, or what secrets-by-header.yaml shows"
            )
        };
        findings.lacks(&chain.place, what);
    }
}

/// Whether a filter in front puts the token there of which the caller's name is read.
fn examine_token(chain: &Chain<'_>, json: &Value, findings: &mut Findings) {
    let mut property = list(json, "/caller/property").filter_map(Value::as_str);
    if !property.any(|part| part == "envoy.filters.http.jwt_authn") {
        return;
    }
    let payload = property.next().unwrap_or_default();
    let checks = |filter: &&Filter<'_>| filter.kind.contains(".jwt_authn.");
    let mut known = chain.before.iter().filter(checks).peekable();
    let puts = |filter: &Filter<'_>| {
        let providers = filter.config.get("providers").and_then(Value::as_object);
        let mut providers = providers
            .into_iter()
            .flat_map(|providers| providers.values());
        providers.any(|provider| text(provider, "/payload_in_metadata") == payload)
    };
    if known.peek().is_none() {
        findings.lacks(
            &chain.place,
            "who calls is to be told by a token, and no jwt_authn filter stands in front of the refund filter, so that every call is \
             refused; add one as auth-jwt.yaml shows (in Istio: a RequestAuthentication)",
        );
    } else if !known.any(puts) {
        findings.lacks(
            &chain.place,
            format!(
                "who calls is to be told by the token's payload `{payload}`, and no jwt_authn filter puts one there under that name, so \
                 that every call is refused; name the same in `caller` and in payload_in_metadata (in Envoy Gateway: the name of the \
                 SecurityPolicy's JWT provider)"
            ),
        );
    }
}

/// The settings around the plugin's own configuration.
fn examine_settings(place: &str, config: &Value, findings: &mut Findings) {
    if !is_true(config, "/allow_on_headers_stop_iteration") {
        findings.lacks(
            place,
            "the filter never gets a body, and refuses every refund; set allow_on_headers_stop_iteration",
        );
    }
    if is_true(config, "/fail_open") || text(config, "/failure_policy") == "FAIL_OPEN" {
        findings.risk(
            place,
            "after a trap calls go past the filter to whatever the route leads to; set failure_policy to FAIL_RELOAD",
        );
    } else if text(config, "/failure_policy") != "FAIL_RELOAD" {
        findings.lacks(
            place,
            "one trap stops every refund until Envoy is started again; set failure_policy to FAIL_RELOAD",
        );
    }
    if !is_set(config, "/vm_config/vm_id") {
        findings.risk(
            place,
            "the memory against second refunds is shared with every other module without a vm_id; give it one",
        );
    }
}

fn find_secrets(pointer: &str, value: &Value, secrets: &mut Vec<Secret>) {
    for (member, value) in value.as_object().into_iter().flatten() {
        match (Source::read(member), value) {
            (Some(source), Value::String(name)) => secrets.push(Secret {
                pointer: pointer.to_owned(),
                source,
                name: name.clone(),
            }),
            _ => find_secrets(&format!("{pointer}.{member}"), value, secrets),
        }
    }
    for item in value.as_array().into_iter().flatten() {
        find_secrets(pointer, item, secrets);
    }
}
