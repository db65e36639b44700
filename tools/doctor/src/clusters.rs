//! The clusters by which the providers are reached.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::chain::is_small;
use crate::plugin::Plugin;
use crate::reading::Envoy;
use crate::routes::Destination;
use crate::{Findings, is_set, is_true, list, text, typed};

/// Headers of Envoy's own that a provider has no use for.
const ENVOYS_HEADERS: [&str; 3] = [
    "x-envoy-internal",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-for",
];

const TAP: &str = "a tap copies its calls, the provider's credentials among them; take it out";

/// The longest that a connection may be idle, in seconds: common servers close one after 5.
const IDLE_SECONDS: u64 = 5;

/// What a cluster is for.
#[derive(Default)]
struct Use {
    /// Who names it first.
    place: String,
    /// Whether the filter calls it by itself.
    is_own: bool,
    /// Whether refunds go to it.
    is_routed: bool,
    /// Whether it adds a provider's credentials.
    injects: bool,
}

/// Examines those that routes lead to, and those that the filter calls by itself.
pub fn examine(
    envoy: &Envoy,
    plugin: &Plugin,
    destinations: &[Destination],
    findings: &mut Findings,
) {
    let mut uses: BTreeMap<&str, Use> = BTreeMap::new();
    for destination in destinations {
        let entry = uses.entry(&destination.cluster).or_default();
        entry.place.clone_from(&destination.place);
        entry.is_routed = true;
        entry.injects |= destination.injects;
    }
    for provider in &plugin.providers {
        for cluster in &provider.own_clusters {
            let entry = uses.entry(cluster).or_insert_with(|| Use {
                place: format!("provider {}", provider.name),
                ..Use::default()
            });
            entry.is_own = true;
        }
    }
    if let Some(name) = &plugin.memory {
        match find(envoy, name) {
            Some(cluster) => examine_memory(name, cluster, findings),
            None => findings.lacks("memory", there_is_none(name)),
        }
    }
    for (name, usage) in uses {
        match find(envoy, name) {
            Some(cluster) => examine_cluster(name, cluster, &usage, findings),
            None => findings.lacks(&usage.place, there_is_none(name)),
        }
    }
}

fn find<'a>(envoy: &'a Envoy, name: &str) -> Option<&'a Value> {
    let mut known = envoy.clusters.iter();
    known.find(|cluster| text(cluster, "/name") == name)
}

/// How a cluster speaks HTTP.
fn protocol(cluster: &Value) -> &Value {
    cluster
        .get("typed_extension_protocol_options")
        .and_then(|options| options.get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"))
        .unwrap_or(&Value::Null)
}

fn there_is_none(name: &str) -> String {
    format!(
        "there is no cluster `{name}` here, so that no call gets there; add it, or give the running Envoy's /config_dump where clusters \
         are discovered"
    )
}

/// The cluster of the store that gateways share. No route leads there, so no retry policy counts.
fn examine_memory(name: &str, cluster: &Value, findings: &mut Findings) {
    let place = &format!("cluster {name}");
    let upstream = cluster.pointer("/upstream_config/typed_config");
    if !upstream.is_some_and(|config| typed(config).0.ends_with(".TcpConnectionPoolProto")) {
        findings.lacks(
            place,
            "the store is spoken to in HTTP, which it does not understand, so that the shared memory cannot be asked; copy \
             upstream_config from memory.yaml",
        );
    }
    let protocol = protocol(cluster);
    let most = [
        cluster.get("max_requests_per_connection"),
        protocol.pointer("/common_http_protocol_options/max_requests_per_connection"),
    ];
    if !most.into_iter().flatten().any(|most| *most == 1) {
        findings.lacks(
            place,
            "a call that follows another one at once goes to the connection that the store is closing, and has no answer; set \
             max_requests_per_connection to 1",
        );
    }
    if list(cluster, "/health_checks").next().is_none() {
        findings.lacks(
            place,
            "nothing finds the store's primary, so that after a failover a replica is asked, which refuses; copy health_checks from \
             memory.yaml",
        );
    } else if !cluster
        .pointer("/common_lb_config/healthy_panic_threshold")
        .is_some_and(|percent| percent.get("value").is_none_or(|value| *value == 0))
    {
        findings.lacks(
            place,
            "while there is no primary a replica is asked; set common_lb_config.healthy_panic_threshold to 0",
        );
    }
    examine_tls(place, cluster, protocol, &STORE, findings);
}

/// Who is spoken to over TLS, in the doctor's words.
struct Peer {
    name: &'static str,
    file: &'static str,
    checks_name_by: &'static str,
    /// Whether it may have certificates for several hosts.
    needs_sni: bool,
}

const PROVIDER: Peer = Peer {
    name: "provider",
    file: "envoy.yaml",
    checks_name_by: "auto_san_validation",
    needs_sni: true,
};

const STORE: Peer = Peer {
    name: "store",
    file: "memory.yaml",
    checks_name_by: "match_typed_subject_alt_names",
    needs_sni: false,
};

fn examine_cluster(name: &str, cluster: &Value, usage: &Use, findings: &mut Findings) {
    let place = &format!("cluster {name}");
    let protocol = protocol(cluster);
    examine_tls(place, cluster, protocol, &PROVIDER, findings);
    let has = |kind: &str| {
        list(protocol, "/http_filters").any(|filter| {
            let config = filter.get("typed_config").unwrap_or(&Value::Null);
            typed(config).0.ends_with(kind)
        })
    };
    if usage.injects && !has(".CredentialInjector") {
        findings.lacks(
            place,
            "nothing adds the provider's credentials, which the plugin's configuration calls injected, so that the provider refuses \
             every refund; copy credential_injector from credentials-injected.yaml",
        );
    }
    if has(".tap.v3.Tap") {
        findings.risk(place, TAP);
    }
    if usage.is_routed {
        examine_sending(place, cluster, protocol, findings);
    }
    if usage.is_own {
        let removed: Vec<_> = list(protocol, "/http_filters")
            .flat_map(|filter| list(filter, "/typed_config/mutations/request_mutations"))
            .map(|mutation| text(mutation, "/remove"))
            .collect();
        let missing: Vec<_> = ENVOYS_HEADERS
            .into_iter()
            .filter(|header| !removed.contains(header))
            .collect();
        if !missing.is_empty() {
            findings.lacks(
                place,
                format!(
                    "calls of the filter's own take {} along; take them away by header_mutation as in envoy.yaml",
                    missing.join(", ")
                ),
            );
        }
    }
    if is_small(cluster.get("per_connection_buffer_limit_bytes")) {
        findings.lacks(
            place,
            "its buffer holds little over 64 KiB or less, so that a provider's longer answer is lost and its refund unknown; set \
             per_connection_buffer_limit_bytes to 1048576",
        );
    }
}

/// What can send a refund twice or lose it on the way.
fn examine_sending(place: &str, cluster: &Value, protocol: &Value, findings: &mut Findings) {
    let mut thresholds = list(cluster, "/circuit_breakers/thresholds");
    if !thresholds.any(|limits| limits.get("max_retries").and_then(Value::as_u64) == Some(0)) {
        findings.lacks(
            place,
            "nothing stops a retry policy that comes in by another way, after which nobody can tell what became of the first send; set \
             max_retries to 0 in its circuit_breakers",
        );
    }
    let idle = text(protocol, "/common_http_protocol_options/idle_timeout");
    let idle = idle
        .split(['.', 's'])
        .next()
        .and_then(|text| text.parse::<u64>().ok());
    if idle.is_none_or(|idle| idle >= IDLE_SECONDS) {
        findings.lacks(
            place,
            "a call on an idle connection that the provider is closing is reset, and its refund unknown; set \
             common_http_protocol_options.idle_timeout to 4s",
        );
    }
}

fn examine_tls(
    place: &str,
    cluster: &Value,
    protocol: &Value,
    peer: &Peer,
    findings: &mut Findings,
) {
    let who = peer.name;
    let sockets = list(cluster, "/transport_socket_matches")
        .filter_map(|item| item.get("transport_socket"))
        .chain(cluster.get("transport_socket"));
    let configs: Vec<_> = sockets
        .filter_map(|socket| socket.get("typed_config"))
        .collect();
    let is_tap = |config: &&Value| typed(config).0.ends_with(".tap.v3.Tap");
    if configs.iter().any(is_tap) {
        findings.risk(place, TAP);
    }
    // Some sockets stand around another one.
    let inner = |config: &'_ Value| -> Option<Value> {
        let config = config
            .pointer("/transport_socket/typed_config")
            .unwrap_or(config);
        let (kind, value) = typed(config);
        kind.ends_with(".UpstreamTlsContext").then(|| value.clone())
    };
    let Some(tls) = configs.into_iter().find_map(inner) else {
        findings.risk(
            place,
            format!(
                "without TLS the {who}'s credentials and the refund go over the network in clear; give it the transport_socket of {}",
                peer.file
            ),
        );
        return;
    };
    let http = "/upstream_http_protocol_options";
    let http = protocol.pointer(http).unwrap_or(&Value::Null);
    let no_sni =
        !is_true(http, "/auto_sni") && !is_set(&tls, "/sni") && !is_true(&tls, "/auto_host_sni");
    if peer.needs_sni && no_sni {
        findings.lacks(
            place,
            "the provider is not told which host is meant, and may show another host's certificate, which stops every refund; set \
             auto_sni",
        );
    }
    let common = tls.get("common_tls_context").unwrap_or(&Value::Null);
    let by_sds = is_set(common, "/validation_context_sds_secret_config")
        || is_set(
            common,
            "/combined_validation_context/validation_context_sds_secret_config",
        );
    let contexts = [
        common.get("validation_context"),
        common.pointer("/combined_validation_context/default_validation_context"),
    ];
    let has = |pointer: &str| {
        let mut contexts = contexts.into_iter().flatten();
        contexts.any(|context| is_set(context, pointer))
    };
    let trusts_all = contexts
        .into_iter()
        .flatten()
        .any(|context| text(context, "/trust_chain_verification") == "ACCEPT_UNTRUSTED");
    let ca = by_sds
        || [
            "/trusted_ca",
            "/system_root_certs",
            "/ca_certificate_provider_instance",
        ]
        .into_iter()
        .any(has);
    if !ca || trusts_all {
        findings.risk(
            place,
            format!("no certificate is checked, so that anybody in between gets the {who}'s credentials; give it a trusted_ca"),
        );
    } else if !is_true(http, "/auto_san_validation")
        && !is_true(&tls, "/auto_sni_san_validation")
        && !has("/match_typed_subject_alt_names")
    {
        findings.risk(
            place,
            format!(
                "any host's certificate is taken for the {who}'s, so that somebody in between can get its credentials; set {}",
                peer.checks_name_by
            ),
        );
    }
}
