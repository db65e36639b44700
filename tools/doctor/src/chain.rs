//! A chain of HTTP filters with the refund filter in it, and the connection manager around it.

use serde_json::Value;

use crate::reading::Envoy;
use crate::{Findings, any_member, any_text, each_text, is_set, is_true, list, name, text, typed};

/// Below this Envoy's own 413 can come before the filter's, and a provider's longer answer cannot
/// be read.
const LEAST_BUFFER: u64 = 131_072;

/// Filters that let callers in or not, by what their types' names hold.
const AUTHENTICATION: [&str; 6] = [
    ".api_key_auth.",
    ".basic_auth.",
    ".ext_authz.",
    ".jwt_authn.",
    ".oauth2.",
    ".rbac.",
];

/// Filters of a connection that let callers in or not, by how their types' names end.
const NETWORK: [&str; 2] = [".network.rbac.v3.RBAC", ".network.ext_authz.v3.ExtAuthz"];

/// Request headers that carry keys, of callers or, by the time of the log, of the provider.
const KEY_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// One HTTP filter.
pub struct Filter<'a> {
    /// Its name in the chain.
    pub name: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// Its own configuration, also where it comes by ECDS.
    pub config: &'a Value,
    disabled: bool,
}

/// A connection manager with the refund filter.
pub struct Chain<'a> {
    /// For findings.
    pub place: String,
    listener: &'a Value,
    filter_chain: &'a Value,
    manager: &'a Value,
    /// What stands before the refund filter.
    pub before: Vec<Filter<'a>>,
    /// The refund filter.
    pub filter: Filter<'a>,
    /// What stands behind it.
    pub behind: Vec<Filter<'a>>,
    /// Its routes, where they are to be seen.
    pub routes: Option<&'a Value>,
}

impl<'a> Chain<'a> {
    /// All that have the filter.
    pub fn all(envoy: &'a Envoy) -> Vec<Self> {
        Self::all_with(envoy, |filter| {
            filter.is_refund_filter() && !filter.is_list()
        })
    }

    /// All that have a plugin which lists what is open; it stands in the filter's place.
    pub fn all_with_list(envoy: &'a Envoy) -> Vec<Self> {
        Self::all_with(envoy, |filter| filter.is_list())
    }

    fn all_with(envoy: &'a Envoy, wanted: fn(&Filter<'_>) -> bool) -> Vec<Self> {
        let of = |listener: &'a Value| {
            let default = listener.get("default_filter_chain");
            list(listener, "/filter_chains")
                .chain(default)
                .flat_map(|chain| list(chain, "/filters").map(move |filter| (chain, filter)))
                .filter_map(|(chain, filter)| {
                    let (kind, manager) = typed(filter.get("typed_config")?);
                    kind.ends_with(".HttpConnectionManager")
                        .then_some((chain, manager))
                })
                .filter_map(move |(chain, manager)| {
                    Chain::read(envoy, listener, chain, manager, wanted)
                })
        };
        envoy.listeners.iter().flat_map(of).collect()
    }

    fn read(
        envoy: &'a Envoy,
        listener: &'a Value,
        filter_chain: &'a Value,
        manager: &'a Value,
        wanted: fn(&Filter<'_>) -> bool,
    ) -> Option<Self> {
        let mut before: Vec<_> = list(manager, "/http_filters")
            .map(|filter| Filter::read(envoy, filter))
            .collect();
        let index = before.iter().position(wanted)?;
        let mut rest = before.split_off(index).into_iter();
        let filter = rest.next()?;
        let routes = manager.get("route_config").or_else(|| {
            let wanted = manager.pointer("/rds/route_config_name")?;
            let mut known = envoy.routes.iter();
            known.find(|routes| routes.get("name") == Some(wanted))
        });
        Some(Chain {
            place: format!("listener {}", name(listener)),
            listener,
            filter_chain,
            manager,
            before,
            filter,
            behind: rest.collect(),
            routes,
        })
    }

    /// Whether another chain belongs to the same listener.
    pub fn shares_listener(&self, other: &Chain<'_>) -> bool {
        std::ptr::eq(self.listener, other.listener)
    }

    /// Every route with its virtual host.
    pub fn all_routes(&self) -> impl Iterator<Item = (&'a Value, &'a Value)> + use<'a> {
        let hosts = self.routes.into_iter();
        hosts
            .flat_map(|routes| list(routes, "/virtual_hosts"))
            .flat_map(|host| list(host, "/routes").map(move |route| (host, route)))
    }

    /// Whether a filter runs on the calls on which the refund filter runs.
    pub fn is_on(&self, filter: &Filter<'_>) -> bool {
        !filter.disabled
            || self
                .all_routes()
                .any(|(host, route)| enables(host, route, filter.name))
    }

    /// Whether not everybody on the network gets past its listener and what stands in front of its filter.
    pub fn is_restricted(&self) -> bool {
        let more = list(self.listener, "/additional_addresses");
        let more = more.filter_map(|more| more.get("address"));
        let mut addresses = self.listener.get("address").into_iter().chain(more);
        let restricts = |name: &str, value: &Value| match name {
            "require_client_certificate" => *value == true,
            "source_prefix_ranges" => value.as_array().is_some_and(|list| !list.is_empty()),
            "@type" => NETWORK
                .iter()
                .any(|kind| value.as_str().is_some_and(|of| of.ends_with(kind))),
            _ => false,
        };
        addresses.all(is_local)
            || any_member(self.filter_chain, &restricts)
            || self.before.iter().any(|filter| self.asks(filter))
    }

    /// Whether a filter lets no call through to the refund filter of which it does not know who makes it.
    fn asks(&self, filter: &Filter<'_>) -> bool {
        let mut ways = self
            .all_routes()
            .filter(|(host, route)| self.filter.runs_on(host, route))
            .peekable();
        match ways.peek() {
            // They come from elsewhere.
            None => !filter.disabled && filter.asks_by(None),
            Some(_) => ways.all(|(host, route)| {
                filter.runs_on(host, route) && filter.asks_by(filter.entry(host, route))
            }),
        }
    }

    /// Whether a caller's own header of this name is taken away before any filter sees it.
    pub fn strips(&self, header: &str) -> bool {
        list(self.manager, "/early_header_mutation_extensions")
            .flat_map(|extension| list(extension, "/typed_config/mutations"))
            .any(|mutation| text(mutation, "/remove").eq_ignore_ascii_case(header))
    }

    /// The filters and the manager's own settings.
    pub fn examine(&self, reference: &Envoy, findings: &mut Findings) {
        self.examine_order(findings);
        self.examine_settings(findings);
        self.examine_access_log(reference, findings);
        let buffer = self.listener.get("per_connection_buffer_limit_bytes");
        let window = "/http2_protocol_options/initial_stream_window_size";
        for limit in [buffer, self.manager.pointer(window)] {
            if is_small(limit) {
                findings.lacks(
                    &self.place,
                    "its buffers hold little over 64 KiB or less, so that Envoy refuses calls before the filter does, and a provider's \
                     longer answer is lost and its refund unknown; set per_connection_buffer_limit_bytes (and \
                     initial_stream_window_size) to 1048576",
                );
            }
        }
    }

    fn examine_order(&self, findings: &mut Findings) {
        let mut guarded = false;
        for filter in &self.behind {
            if filter.is_guard() {
                guarded |= !filter.disabled;
            } else if filter.is_authentication() {
                findings.risk(
                    &self.place,
                    format!(
                        "`{}` stands behind the refund filter, so that a caller without a token refunds; move it in front of the filter",
                        filter.name
                    ),
                );
            } else if filter.is(".router.v3.Router") {
                if !is_true(filter.config, "/suppress_envoy_headers") {
                    findings.lacks(
                        &self.place,
                        "providers get Envoy's x-envoy-* headers; set suppress_envoy_headers on the router",
                    );
                }
            } else if !filter.gives_secrets() {
                findings.risk(
                    &self.place,
                    format!(
                        "`{}` stands behind the refund filter, where it sees the provider's credentials and can change a signed call; \
                         move it in front of the filter",
                        filter.name
                    ),
                );
            }
        }
        if !guarded {
            findings.risk(
                &self.place,
                "no route guard stands behind the refund filter, so that a refund on a route of another application takes the provider's \
                 credentials there; put `refund_route_guard` of envoy.yaml directly behind the filter",
            );
        }
    }

    fn examine_settings(&self, findings: &mut Findings) {
        let ranges = "/internal_address_config/cidr_ranges";
        if !is_true(self.manager, "/use_remote_address") || !is_set(self.manager, ranges) {
            findings.risk(
                &self.place,
                "a caller that counts as internal can ask for retries and timeouts by x-envoy-* headers, which could send a refund twice; \
                 set use_remote_address and internal_address_config as envoy.yaml does",
            );
        }
        if !is_true(self.manager, "/normalize_path") || !is_true(self.manager, "/merge_slashes") {
            findings.lacks(
                &self.place,
                "other spellings of the refund path, such as one with two slashes, go past the filter to another route; set \
                 normalize_path and merge_slashes",
            );
        }
        if self.routes.is_none() {
            findings.lacks(
                &self.place,
                "its routes are not in here, so that nothing is said of them; give the running Envoy's whole /config_dump",
            );
        }
        let taps = |filter: &Filter<'_>| filter.is(".tap.v3.Tap");
        if self.before.iter().chain(&self.behind).any(taps) {
            findings.risk(
                &self.place,
                "a tap filter copies headers and bodies, the provider's credentials among them; take it out",
            );
        }
    }

    fn examine_access_log(&self, reference: &Envoy, findings: &mut Findings) {
        if !is_set(self.manager, "/access_log") {
            findings.lacks(
                &self.place,
                "there is no access log, so that nobody can tell why a refund failed or whether it was sent; copy access_log from \
                 envoy.yaml",
            );
            return;
        }
        let fields = state_keys(self.manager);
        let wanted = Chain::all(reference)
            .into_iter()
            .flat_map(|chain| state_keys(chain.manager));
        let missing: Vec<_> = wanted.filter(|key| !fields.contains(key)).collect();
        if !missing.is_empty() {
            findings.lacks(
                &self.place,
                format!(
                    "the access log does not show {}; copy its fields from envoy.yaml",
                    missing.join(", ")
                ),
            );
        }
    }

    /// Whether a log or a trace shows one of these, besides headers that always carry keys.
    pub fn examine_logged(&self, headers: &[String], states: &[String], findings: &mut Findings) {
        let is_key = |header: &str| {
            let header = header.to_ascii_lowercase();
            KEY_HEADERS.contains(&header.as_str()) || headers.contains(&header)
        };
        let shows = |text: &str| {
            named(text, "REQ(").any(is_key)
                || named(text, "FILTER_STATE(").any(|key| states.iter().any(|state| state == key))
                || text.contains("%SECRET(")
        };
        let lists = |name: &str, value: &Value| match name {
            "additional_request_headers_to_log" => any_text(value, &is_key),
            "request_header" => is_key(text(value, "/name")),
            _ => false,
        };
        let logs = [
            self.manager.get("access_log"),
            self.manager.get("tracing"),
            self.listener.get("access_log"),
        ];
        let shown = |log: &Value| any_text(log, &shows) || any_member(log, &lists);
        if logs.into_iter().flatten().any(shown) {
            findings.risk(
                &self.place,
                "an access log or a trace shows a header or a state that carries keys (`authorization` is the provider's by then); take \
                 that field out",
            );
        }
    }

    /// What Envoy answers by itself on the refund path.
    pub fn examine_replies(&self, path: &str, reference: &Envoy, findings: &mut Findings) {
        let known = reply_codes(self.manager);
        let mut missing = Vec::new();
        for chain in Chain::all(reference) {
            for code in reply_codes(chain.manager) {
                if !known.contains(&code) && !missing.contains(&code) {
                    missing.push(code);
                }
            }
        }
        let quoted = format!("\"{path}\"");
        let has_path = |config: &Value| any_text(config, &|text| text.contains(&quoted));
        if !missing.is_empty() {
            findings.risk(
                &self.place,
                format!(
                    "what Envoy answers by itself does not say whether money may have moved ({}), so that a caller may refund again; \
                     copy local_reply_config from envoy.yaml",
                    missing.join(", ")
                ),
            );
        } else if !self.manager.get("local_reply_config").is_some_and(has_path) {
            findings.risk(
                &self.place,
                format!(
                    "the mappers of local_reply_config are for another path than the plugin's, {path}, so that Envoy's own answers \
                     there do not say whether money may have moved; write the plugin's path into them"
                ),
            );
        }
        let mut mended = self.before.iter().filter(|filter| {
            !filter.disabled && any_text(filter.config, &|text| text.contains("grpc-message"))
        });
        if !mended.any(|filter| has_path(filter.config)) {
            findings.risk(
                &self.place,
                "a call with a gRPC content type gets an empty 200 where it was refused, which looks like a refund; copy the Lua filter \
                 from envoy.yaml, with the plugin's path",
            );
        }
    }

    /// What a tracer shows and changes that it must not. `path` is the refund path.
    pub fn examine_tracing(&self, path: &str, findings: &mut Findings) {
        if !is_set(self.manager, "/tracing") {
            return;
        }
        let length = self.manager.pointer("/tracing/max_path_tag_length");
        let length = length.and_then(Value::as_u64);
        let whole = u64::try_from(path.len()).unwrap_or_default();
        if length.is_none_or(|length| length > whole) {
            findings.risk(
                &self.place,
                format!("traces show callers' idempotency keys, in the query of a look-up and in a provider's path; set max_path_tag_length to {whole}"),
            );
        }
        let pack = self
            .manager
            .pointer("/request_id_extension/typed_config/pack_trace_reason");
        if pack != Some(&Value::Bool(false)) {
            findings.lacks(
                &self.place,
                "the tracer changes callers' request ids; copy request_id_extension from tracing.yaml",
            );
        }
    }

    /// Whether the filter is on where it must be, and nowhere else. `path` is the refund path.
    pub fn examine_enabling(&self, path: &str, findings: &mut Findings) {
        let Some(routes) = self.routes else { return };
        let name = self.filter.name;
        if !self.filter.disabled || entry_of(routes, name).is_some() {
            findings.risk(
                &self.place,
                "the refund filter is on for every route, so that a call with another Host passes by an authentication that hangs on a \
                 route, and refunds; set `disabled: true` in the chain and enable the filter on the refunds' own routes",
            );
            return;
        }
        let preview = format!("{path}/preview");
        let mut on = [(path, false), (preview.as_str(), false)];
        for (host, route) in self
            .all_routes()
            .filter(|(host, route)| enables(host, route, name))
        {
            for (path, found) in &mut on {
                *found |= has_path(route, path);
            }
            if takes(route, "/") || takes(route, "/another") {
                findings.risk(
                    &place(host, route),
                    "this route is for every path and has the refund filter on, so that a caller refunds by it without what the refunds' \
                     own route asks for; enable the filter on the refunds' own routes alone",
                );
            }
        }
        for (path, _) in on.iter().filter(|(_, found)| !found) {
            findings.lacks(
                &self.place,
                format!(
                    "no route enables the refund filter for {path}, so that such a call gets the route's own answer; add the route of \
                     envoy.yaml"
                ),
            );
        }
        self.examine_ways_in(findings);
        for guard in self.behind.iter().filter(|filter| filter.is_guard()) {
            let mut routes = self.all_routes();
            let changed = |value: &Value| entry_of(value, guard.name).is_some();
            if let Some((host, route)) =
                routes.find(|(host, route)| changed(host) || changed(route))
            {
                findings.risk(
                    &place(host, route),
                    "this route changes the route guard, which then may let the provider's credentials go to another application; take \
                     the guard's entry out",
                );
            }
        }
    }

    /// Whether what one of the refunds' routes asks of a caller is asked on all of them.
    fn examine_ways_in(&self, findings: &mut Findings) {
        let own: Vec<_> = self
            .all_routes()
            .filter(|(host, route)| enables(host, route, self.filter.name))
            .collect();
        for filter in self
            .before
            .iter()
            .filter(|filter| filter.is_authentication())
        {
            let asks = |(host, route): &(&Value, &Value)| enables(host, route, filter.name);
            for (host, route) in own.iter().filter(|way| !asks(way)) {
                if own.iter().any(asks) {
                    findings.risk(
                        &place(host, route),
                        format!(
                            "it has the refund filter on and lacks what another such route asks of a caller by `{}`, so that a caller \
                             may refund without it; ask for the same on both",
                            filter.name
                        ),
                    );
                }
            }
        }
    }
}

impl<'a> Filter<'a> {
    fn read(envoy: &'a Envoy, filter: &'a Value) -> Self {
        let name = text(filter, "/name");
        let discovered = || {
            let mut known = envoy.extensions.iter();
            known.find(|extension| text(extension, "/name") == name)
        };
        let config = match filter.get("config_discovery") {
            None => filter.get("typed_config"),
            Some(discovery) => match discovered() {
                Some(extension) => extension.get("typed_config"),
                None => discovery.get("default_config"),
            },
        };
        let (mut kind, config) = typed(config.unwrap_or(&Value::Null));
        if kind.is_empty() {
            kind = text(filter, "/config_discovery/type_urls/0");
        }
        Filter {
            name,
            kind,
            config,
            disabled: is_true(filter, "/disabled"),
        }
    }

    /// Whether its type ends so.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.ends_with(kind)
    }

    fn is_refund_filter(&self) -> bool {
        let plugin = text(self.config, "/config/configuration/value");
        let named = [self.name, text(self.config, "/config/name")];
        self.is(".wasm.v3.Wasm")
            && (named.iter().any(|name| name.contains("refund"))
                || plugin.contains("\"providers\""))
    }

    /// A plugin that lists what is open, and refunds nothing.
    fn is_list(&self) -> bool {
        let plugin = text(self.config, "/config/configuration/value");
        self.is(".wasm.v3.Wasm")
            && serde_json::from_str(plugin)
                .is_ok_and(|plugin: Value| is_true(&plugin, "/open_list"))
    }

    /// An RBAC filter that denies a refund whose route is not marked.
    fn is_guard(&self) -> bool {
        let has = |wanted: &str| any_text(self.config, &|text| text == wanted);
        self.is(".rbac.v3.RBAC")
            && text(self.config, "/rules/action") == "DENY"
            && any_member(self.config, &|name, _| name == "not_rule")
            && ["wasm.refund_provider", "refund_filter", "ROUTE"]
                .into_iter()
                .all(has)
    }

    /// What a route or its virtual host says of it.
    fn entry<'b>(&self, host: &'b Value, route: &'b Value) -> Option<&'b Value> {
        // A route's own entry stands in place of its virtual host's.
        entry_of(route, self.name).or_else(|| entry_of(host, self.name))
    }

    fn runs_on(&self, host: &Value, route: &Value) -> bool {
        let entry = self.entry(host, route);
        entry.map_or(!self.disabled, |entry| !is_true(entry, "/disabled"))
    }

    /// Whether it asks who calls, where it runs with this entry.
    fn asks_by(&self, entry: Option<&Value>) -> bool {
        let entry = entry.unwrap_or(&Value::Null);
        if self.kind.contains(".jwt_authn.") {
            // Envoy Gateway's has no rules, but requirements that routes name.
            let mut named = ["/requirement_name", "/config/requirement_name"]
                .into_iter()
                .filter_map(|place| entry.pointer(place)?.as_str());
            let asked = match named.next() {
                Some(name) => self
                    .config
                    .pointer("/requirement_map")
                    .and_then(|map| map.get(name)),
                None => self.config.get("rules"),
            };
            let may_miss = |name: &str, _: &Value| name.starts_with("allow_missing");
            return asked.is_some_and(|asked| !any_member(asked, &may_miss));
        }
        if self.kind.contains(".rbac.") {
            let has_rules = |name: &str, value: &Value| name == "rules" && !value.is_null();
            return any_member(self.config, &has_rules) || any_member(entry, &has_rules);
        }
        self.is_authentication()
    }

    pub(crate) fn is_authentication(&self) -> bool {
        AUTHENTICATION.iter().any(|part| self.kind.contains(part))
    }

    /// Filters that the plugin's secrets come by: where one stands wrong, the secret's own finding
    /// says so.
    fn gives_secrets(&self) -> bool {
        self.is(".set_filter_state.v3.Config") || self.is(".CredentialInjector")
    }
}

/// Whether what Istio's agent puts in the place of a module that it cannot pull stands in the
/// place of the refund filter: a filter that refuses everything.
pub fn is_shut(envoy: &Envoy) -> bool {
    let mut extensions = envoy.extensions.iter();
    extensions.any(|extension| {
        let (kind, _) = typed(extension.get("typed_config").unwrap_or(&Value::Null));
        text(extension, "/name").contains("refund") && kind.ends_with(".rbac.v3.RBAC")
    })
}

/// A route, for findings.
pub fn place(host: &Value, route: &Value) -> String {
    match text(route, "/name") {
        "" => format!("a route of virtual host {}", name(host)),
        name => format!("route {name}"),
    }
}

/// Whether a limit is given and too small.
pub fn is_small(limit: Option<&Value>) -> bool {
    let limit = limit.and_then(Value::as_u64);
    limit.is_some_and(|limit| limit < LEAST_BUFFER)
}

fn enables(host: &Value, route: &Value, filter: &str) -> bool {
    // A route's own entry stands in place of its virtual host's.
    let entry = entry_of(route, filter).or_else(|| entry_of(host, filter));
    entry.is_some_and(|entry| !is_true(entry, "/disabled"))
}

/// Whether nobody but this machine's own reaches an address.
fn is_local(address: &Value) -> bool {
    let socket = text(address, "/socket_address/address");
    is_set(address, "/pipe")
        || is_set(address, "/envoy_internal_address")
        || socket.starts_with("127.")
        || socket == "::1"
}

/// What a route, a virtual host or all routes say of a filter.
fn entry_of<'a>(value: &'a Value, filter: &str) -> Option<&'a Value> {
    value.get("typed_per_filter_config")?.get(filter)
}

/// Whether a route takes every call with this path, or every one with a path that begins so where
/// it ends with a slash. What a route that asks for more takes is the team's to know.
pub fn takes(route: &Value, path: &str) -> bool {
    const PATHS: [&str; 6] = [
        "prefix",
        "path_separated_prefix",
        "path",
        "safe_regex",
        "case_sensitive",
        "runtime_fraction",
    ];
    let wanted = route.get("match").and_then(Value::as_object);
    let regex = text(route, "/match/safe_regex/regex");
    wanted.is_some_and(|wanted| wanted.keys().all(|name| PATHS.contains(&name.as_str())))
        && (regex.is_empty() || regex.strip_prefix(literal(regex)) == Some(".*"))
        && has_path(route, path)
}

/// The same, whatever else the route asks for.
fn has_path(route: &Value, path: &str) -> bool {
    let under = |known: &str| path.len() > 1 && path.ends_with('/') && known.starts_with(path);
    let begins = |prefix: &Value| {
        let prefix = prefix.as_str().unwrap_or_default();
        path.starts_with(prefix) || under(prefix)
    };
    let wanted = |name: &str| route.get("match")?.get(name);
    wanted("prefix").is_some_and(begins)
        || wanted("path_separated_prefix").is_some_and(begins)
        || wanted("path")
            .is_some_and(|known| known == path || under(known.as_str().unwrap_or_default()))
        || wanted("safe_regex").is_some_and(|known| {
            let known = literal(text(known, "/regex"));
            path.starts_with(known) || under(known)
        })
}

/// What every text begins with that a regular expression matches.
fn literal(regex: &str) -> &str {
    let end = regex.find(|c: char| !c.is_ascii_alphanumeric() && !"/_-".contains(c));
    end.and_then(|end| regex.get(..end)).unwrap_or(regex)
}

/// The filter's own states that the access log shows.
fn state_keys(manager: &Value) -> Vec<&str> {
    let mut keys = Vec::new();
    let log = manager.get("access_log").unwrap_or(&Value::Null);
    each_text(log, &mut |text| {
        keys.extend(named(text, "FILTER_STATE(").filter(|key| key.starts_with("wasm.refund")));
    });
    keys
}

/// What the commands of a log's format name, such as `%REQ(A?B):10%`.
fn named<'a>(format: &'a str, command: &'a str) -> impl Iterator<Item = &'a str> {
    let commands = format.split(command).skip(1);
    let names = commands.filter_map(|rest| rest.split([')', ':']).next());
    names.flat_map(|names| names.split('?'))
}

/// The codes of the problems that Envoy's own answers become.
fn reply_codes(manager: &Value) -> Vec<&str> {
    list(manager, "/local_reply_config/mappers")
        .map(|mapper| text(mapper, "/body_format_override/json_format/code"))
        .filter(|code| !code.is_empty())
        .collect()
}
