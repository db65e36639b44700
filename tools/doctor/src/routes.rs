//! The route of each provider.

use serde_json::Value;

use crate::chain::{Chain, place, takes};
use crate::plugin::{Plugin, Provider};
use crate::{Findings, is_set, list, name, text};

/// What fetching a token may take, in seconds.
const TOKEN_SECONDS: u64 = 12;

/// Settings by which a call would not arrive as the filter wrote it.
const REWRITES: [&str; 7] = [
    "host_rewrite_literal",
    "auto_host_rewrite",
    "host_rewrite_header",
    "host_rewrite_path_regex",
    "prefix_rewrite",
    "regex_rewrite",
    "path_rewrite_policy",
];

/// A cluster that a provider's route leads to.
pub struct Destination {
    /// Its name.
    pub cluster: String,
    /// The route.
    pub place: String,
    /// Whether the cluster adds the provider's credentials.
    pub injects: bool,
}

/// Examines them. Gives the clusters that they lead to.
pub fn examine(chain: &Chain<'_>, plugin: &Plugin, findings: &mut Findings) -> Vec<Destination> {
    let mut destinations = Vec::new();
    let Some(routes) = chain.routes else {
        return destinations;
    };
    for provider in &plugin.providers {
        let Some(host) = virtual_host(routes, &provider.authority) else {
            findings.lacks(
                &format!("provider {}", provider.name),
                "no virtual host has the provider's host in its domains, so that every refund at it is refused; add one with the \
                 provider's route",
            );
            continue;
        };
        let is_own = |route: &&Value| is_of(route, &provider.name);
        let Some(first) = list(host, "/routes").find(is_own) else {
            let elsewhere = list(routes, "/virtual_hosts")
                .find(|host| list(host, "/routes").any(|route| is_of(route, &provider.name)));
            findings.lacks(
                &format!("provider {}", provider.name),
                match elsewhere {
                    Some(other) => format!(
                        "Envoy looks for its route in the virtual host `{}`, which the provider's host matches, and the route stands in \
                         `{}`, so that every refund at it is refused; move the route, or add the provider's host to the domains there",
                        name(host),
                        name(other)
                    ),
                    None => format!(
                        "no route of the virtual host `{}` matches wasm.refund_provider with its name, so that every refund at it is \
                         refused; add the route as in envoy.yaml",
                        name(host)
                    ),
                },
            );
            continue;
        };
        let mut in_front = list(host, "/routes").take_while(|route| !is_own(route));
        let takes_its_calls = |route: &&Value| provider.paths.iter().any(|path| takes(route, path));
        if let Some(other) = in_front.find(takes_its_calls) {
            findings.risk(
                &place(host, first),
                format!(
                    "{} stands before it and takes the provider's calls: the route guard refuses them, and without it they go to another \
                     application with the provider's credentials; move the providers' routes to the front",
                    place(host, other)
                ),
            );
        }
        for own in list(host, "/routes").filter(is_own) {
            let place = place(host, own);
            examine_route(&place, routes, host, own, plugin, findings);
            let is_other = |cluster| !provider.cluster.is_empty() && cluster != provider.cluster;
            if clusters(own).any(is_other) {
                findings.lacks(
                    &place,
                    format!(
                        "it leads to another cluster than `{}`, which the plugin's configuration names for this provider, so that the \
                         filter refuses the provider after its first refund; name the same in both",
                        provider.cluster
                    ),
                );
            }
            destinations.extend(clusters(own).map(|cluster| Destination {
                cluster: cluster.to_owned(),
                place: place.clone(),
                injects: provider.injected,
            }));
        }
    }
    for (host, route) in chain.all_routes() {
        let is_own = |provider: &Provider| is_of(route, &provider.name);
        if is_set(route, "/metadata/filter_metadata/refund_filter/provider")
            && !plugin.providers.iter().any(is_own)
        {
            findings.risk(
                &place(host, route),
                "it is marked as a provider's and asks for no provider, so that the route guard lets the provider's credentials go \
                 there; take its metadata `refund_filter` away",
            );
        }
    }
    destinations
}

fn examine_route(
    place: &str,
    routes: &Value,
    host: &Value,
    route: &Value,
    plugin: &Plugin,
    findings: &mut Findings,
) {
    let action = route.get("route").unwrap_or(&Value::Null);
    let any = |pointer: &str| [action, host, routes].iter().any(|at| is_set(at, pointer));
    if route.get("route").is_none() {
        findings.risk(
            place,
            "it answers or redirects instead of leading to the provider, so that no refund arrives; give it a `route` with a cluster",
        );
    }
    if !is_set(route, "/metadata/filter_metadata/refund_filter/provider") {
        findings.lacks(
            place,
            "it is not marked for the route guard, which refuses every refund here; add the metadata `refund_filter` / `provider`",
        );
    }
    // A route's policy stands in place of its virtual host's.
    let policy = [action, host]
        .into_iter()
        .find(|at| is_set(at, "/retry_policy"));
    let retries = |at: &Value| {
        let number = at.pointer("/retry_policy/num_retries");
        is_set(at, "/retry_policy/retry_on") && number.and_then(Value::as_u64) != Some(0)
    };
    if policy.is_some_and(retries) || any("/retry_policy_typed_config") {
        findings.risk(
            place,
            "a retry policy sends a refund again, and what became of the first send is then unknown; take it away, on the route and \
             on the virtual host",
        );
    }
    if any("/hedge_policy") {
        findings.risk(
            place,
            "a hedge policy sends a refund twice; take it away, on the route and on the virtual host",
        );
    }
    if any("/request_mirror_policies") {
        findings.risk(
            place,
            "a mirror gets a copy of the refund with the provider's credentials, and could refund, too; take it away",
        );
    }
    if REWRITES
        .iter()
        .any(|name| is_set(action, &format!("/{name}")))
    {
        findings.risk(
            place,
            "it rewrites host or path, so that the provider refuses the call or another host gets its credentials; take the rewrite \
             away, since the filter writes both",
        );
    }
    if is_set(action, "/cluster_header") {
        findings.risk(
            place,
            "a header of the call says where the provider's credentials go; name the provider's cluster instead",
        );
    }
    let removed = [route, host, routes]
        .into_iter()
        .any(|at| list(at, "/request_headers_to_remove").any(|name| name == "x-forwarded-proto"));
    if !removed {
        findings.lacks(
            place,
            "the provider gets x-forwarded-proto; add it to request_headers_to_remove",
        );
    }
    // Envoy's own default is 15 s; 0 is for ever.
    let timeout = seconds(text(action, "/timeout"));
    if timeout.is_some_and(|timeout| {
        timeout == 0 || timeout.saturating_add(TOKEN_SECONDS) > plugin.lease_seconds
    }) {
        findings.risk(
            place,
            "a call may take longer than the key's lease, is then taken for lost and stays unknown; give it a timeout that is 12 s \
             below guard.lease_seconds",
        );
    }
}

/// The clusters that a route leads to.
fn clusters(route: &Value) -> impl Iterator<Item = &str> {
    let weighted = list(route, "/route/weighted_clusters/clusters");
    weighted
        .map(|cluster| text(cluster, "/name"))
        .chain([text(route, "/route/cluster")])
        .filter(|cluster| !cluster.is_empty())
}

/// Whether a route asks for this provider by filter state.
fn is_of(route: &Value, provider: &str) -> bool {
    list(route, "/match/filter_state").any(|state| {
        text(state, "/key") == "wasm.refund_provider"
            && (text(state, "/string_match/exact") == provider
                || text(state, "/string_match/safe_regex/regex")
                    .split(['|', '(', ')', '^', '$'])
                    .any(|name| name == provider))
    })
}

/// The whole seconds of a duration; none where it is none.
fn seconds(duration: &str) -> Option<u64> {
    let text = duration.strip_suffix('s')?;
    text.split('.').next()?.parse().ok()
}

/// The virtual host that Envoy takes for a host: the exact domain, else the longest `*.x`, else the
/// longest `x.*`, else `*`.
fn virtual_host<'a>(routes: &'a Value, authority: &str) -> Option<&'a Value> {
    let rank = |domain: &str| -> Option<(u8, usize)> {
        let length = domain.len();
        if domain.eq_ignore_ascii_case(authority) {
            Some((3, length))
        } else if domain == "*" {
            Some((0, length))
        } else if let Some(end) = domain.strip_prefix('*') {
            authority.ends_with(end).then_some((2, length))
        } else {
            let start = domain.strip_suffix('*')?;
            authority.starts_with(start).then_some((1, length))
        }
    };
    let rank = |host: &Value| {
        let domains = list(host, "/domains").filter_map(Value::as_str);
        domains.filter_map(rank).max()
    };
    list(routes, "/virtual_hosts")
        .filter(|host| rank(host).is_some())
        .max_by_key(|host| rank(host))
}
