//! The project's own envoy.yaml as a tree, and the few places in it that a run replaces.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use provider_simulator::Provider;
use serde_json::{Value, json};

use crate::redis::{PASSWORD, Store};
use crate::{SecretsBy, project};

const LISTENER: &str = "/static_resources/listeners/0";
const ENDPOINT: &str =
    "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";

/// Reads `envoy/envoy.yaml`.
pub fn load() -> Result<Value> {
    read("envoy.yaml")
}

fn read(name: &str) -> Result<Value> {
    let path = project().join("envoy").join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    parse(&text)
}

/// Reads a configuration of Envoy.
pub fn parse(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

pub(crate) fn has_cluster(config: &Value, name: &str) -> bool {
    let clusters = config["static_resources"]["clusters"].as_array();
    let mut clusters = clusters.into_iter().flatten();
    clusters.any(|cluster| cluster["name"] == name)
}

fn at<'a>(config: &'a mut Value, pointer: &str) -> Result<&'a mut Value> {
    config
        .pointer_mut(pointer)
        .with_context(|| format!("envoy.yaml has nothing at {pointer}"))
}

fn named<'a>(config: &'a mut Value, list: &str, name: &str) -> Result<&'a mut Value> {
    at(config, list)?
        .as_array_mut()
        .into_iter()
        .flatten()
        .find(|item| item.get("name").is_some_and(|known| known == name))
        .with_context(|| format!("envoy.yaml has no {name} in {list}"))
}

/// The route of a provider.
pub fn route_mut<'a>(config: &'a mut Value, name: &str) -> Result<&'a mut Value> {
    let routes = format!(
        "{LISTENER}/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes"
    );
    named(config, &routes, name)
}

pub(crate) fn set_listener_port(config: &mut Value, port: u16) -> Result<()> {
    *at(
        config,
        &format!("{LISTENER}/address/socket_address/port_value"),
    )? = json!(port);
    config["admin"]["address"]["socket_address"] = json!({"address": "127.0.0.1", "port_value": 0});
    Ok(())
}

pub(crate) fn set_module(config: &mut Value, module: &Path) -> Result<()> {
    *at(filter_mut(config)?, "/vm_config/code/local/filename")? = json!(module);
    Ok(())
}

/// The environment variable for a secret that is not taken by SDS.
pub(crate) fn variable(secret: &str) -> String {
    secret.to_uppercase().replace('-', "_")
}

/// The names of the secrets in envoy.yaml.
fn secrets() -> impl Iterator<Item = &'static str> {
    let providers = Provider::REFUNDING.into_iter();
    providers.map(|provider| provider.declared().secret.name)
}

/// A secret's filter state in envoy.yaml.
pub fn filter_state(secret: &str) -> String {
    format!("refund.{}", secret.replace('-', "_"))
}

/// Has the secrets come by this way, from this folder.
pub fn set_secrets(config: &mut Value, by: SecretsBy, folder: &Path) -> Result<()> {
    let manager = at(
        config,
        &format!("{LISTENER}/filter_chains/0/filters/0/typed_config"),
    )?;
    let mut place = 0;
    if by != SecretsBy::FilterState {
        let filters = list(manager, "/http_filters")?;
        let is_it = |filter: &Value| filter["name"] == "envoy.filters.http.set_filter_state";
        place = filters.iter().position(is_it).unwrap_or_default();
        filters.retain(|filter| !is_it(filter));
    }
    match by {
        SecretsBy::FilterState => {}
        SecretsBy::Header => {
            let mut parts = read("secrets-by-header.yaml")?;
            let injectors = parts["http_filters"].take();
            manager["early_header_mutation_extensions"] =
                parts["early_header_mutation_extensions"].take();
            if let (Some(filters), Value::Array(injectors)) =
                (manager["http_filters"].as_array_mut(), injectors)
            {
                filters.splice(place..place, injectors);
            }
            let enabled = parts["typed_per_filter_config"].take();
            for route in ["refunds", "refunds-preview"] {
                enable(route_mut(config, route)?, &enabled)?;
            }
        }
        SecretsBy::Environment => {
            let filter = named(manager, "/http_filters", "refund_filter")?;
            at(filter, "/typed_config/config/vm_config")?["environment_variables"] =
                json!({"host_env_keys": secrets().map(variable).collect::<Vec<_>>()});
        }
    }
    change_plugin(config, |plugin| take_secrets_by(plugin, by))?;
    move_secrets(config, folder);
    Ok(())
}

/// Switches more filters on for a route.
fn enable(route: &mut Value, filters: &Value) -> Result<()> {
    let known = at(route, "/typed_per_filter_config")?;
    if let (Some(known), Some(filters)) = (known.as_object_mut(), filters.as_object()) {
        known.extend(filters.clone());
    }
    Ok(())
}

/// Puts this way in place of every filter state in the plugin's configuration.
fn take_secrets_by(plugin: &mut Value, by: SecretsBy) {
    change_each(plugin, &mut |value| {
        let state = value.get("filter_state").and_then(Value::as_str);
        let known = secrets().find(|known| state == Some(&*filter_state(known)));
        match (known, by) {
            (Some(secret), SecretsBy::Header) => {
                *value = json!({"header": format!("x-refund-{secret}")});
            }
            (Some(secret), SecretsBy::Environment) => *value = json!({"env": variable(secret)}),
            _ => {}
        }
    });
}

/// Changes a value, and then all that is in it.
pub fn change_each(value: &mut Value, change: &mut impl FnMut(&mut Value)) {
    change(value);
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| change_each(item, change)),
        Value::Object(members) => members
            .values_mut()
            .for_each(|item| change_each(item, change)),
        _ => {}
    }
}

/// The `config` of the refund filter.
pub fn filter_mut(config: &mut Value) -> Result<&mut Value> {
    let filters = format!("{LISTENER}/filter_chains/0/filters/0/typed_config/http_filters");
    let filter = named(config, &filters, "refund_filter")?;
    at(filter, "/typed_config/config")
}

/// Gives every VM a name of this run's: one of another name has an empty memory.
pub(crate) fn rename_memories(config: &mut Value, run: &Path) {
    change_each(config, &mut |value| {
        if let Some(id) = value.get_mut("vm_id") {
            *id = json!(format!(
                "{} of {}",
                id.as_str().unwrap_or_default(),
                run.display()
            ));
        }
    });
}

/// Changes the plugin's configuration, which stands in envoy.yaml as text.
pub fn change_plugin(config: &mut Value, change: impl FnOnce(&mut Value)) -> Result<()> {
    let text = at(filter_mut(config)?, "/configuration/value")?;
    let mut plugin = serde_json::from_str(text.as_str().unwrap_or_default())?;
    change(&mut plugin);
    *text = json!(plugin.to_string());
    Ok(())
}

/// Splices transit.yaml in: OpenBao at `address` signs for BBMSL.
pub fn sign_by_transit(
    config: &mut Value,
    address: SocketAddr,
    ca: &Path,
    secrets: &Path,
) -> Result<()> {
    let mut parts = read("transit.yaml")?;
    // The dev server's certificate has this name.
    let mut cluster = parts["cluster"].take();
    let tls = at(&mut cluster, "/transport_socket/typed_config")?;
    tls["sni"] = json!("localhost");
    let validation = at(tls, "/common_tls_context/validation_context")?;
    validation["trusted_ca"]["filename"] = json!(ca);
    validation["match_typed_subject_alt_names"][0]["matcher"]["exact"] = json!("localhost");
    *at(&mut cluster, ENDPOINT)? = json!({"address": address.ip(), "port_value": address.port()});
    list(config, "/static_resources/clusters")?.push(cluster);
    let filters = format!("{LISTENER}/filter_chains/0/filters/0/typed_config/http_filters");
    let states = named(config, &filters, "envoy.filters.http.set_filter_state")?;
    list(states, "/typed_config/on_request_headers")?.push(parts["set_filter_state"].take());
    let signing = parts["signing"].take();
    change_plugin(config, |plugin| {
        plugin["providers"]["bbmsl"]["signing"] = signing
    })?;
    move_secrets(config, secrets);
    Ok(())
}

/// Splices memory.yaml in: these stores are one memory, the primary among them.
pub fn share_memory(config: &mut Value, stores: &[Store], secrets: &Path) -> Result<()> {
    let mut parts = read("memory.yaml")?;
    let mut cluster = parts["cluster"].take();
    let endpoints = stores.iter().map(|store| {
        let address = json!({"address": store.address.ip(), "port_value": store.address.port()});
        json!({"endpoint": {"address": {"socket_address": address}}})
    });
    let endpoints: Vec<Value> = endpoints.collect();
    *at(&mut cluster, "/load_assignment/endpoints/0/lb_endpoints")? = json!(endpoints);
    let store = stores.first().context("no store")?;
    let tls = at(
        &mut cluster,
        "/transport_socket/typed_config/common_tls_context",
    )?;
    tls["validation_context"]["trusted_ca"]["filename"] = json!(store.ca);
    tls["tls_certificates"] = json!([{
        "certificate_chain": {"filename": store.certificate}, "private_key": {"filename": store.key},
    }]);
    list(config, "/static_resources/clusters")?.push(cluster);
    let filters = format!("{LISTENER}/filter_chains/0/filters/0/typed_config/http_filters");
    let mut memory = parts["memory"].take();
    match named(config, &filters, "envoy.filters.http.set_filter_state") {
        Ok(states) => {
            list(states, "/typed_config/on_request_headers")?
                .push(parts["set_filter_state"].take());
        }
        // An Envoy that is too old for secrets in filter state.
        Err(_) => memory["redis"]["password"] = json!({"inline": PASSWORD}),
    }
    change_plugin(config, |plugin| plugin["memory"] = memory)?;
    move_secrets(config, secrets);
    Ok(())
}

/// Splices credentials-injected.yaml in: Envoy's injector adds Moyasar's and beGateway's
/// `authorization`.
pub fn inject_credentials(config: &mut Value, secrets: &Path) -> Result<()> {
    let mut parts = read("credentials-injected.yaml")?;
    let providers = parts["providers"].as_object().cloned();
    for (name, provider) in &providers.unwrap_or_default() {
        let provider = provider.clone();
        change_plugin(config, |plugin| plugin["providers"][name] = provider)?;
        let cluster = named(config, "/static_resources/clusters", name)?;
        let options = at(cluster, "/typed_extension_protocol_options")?;
        let protocol = "/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/http_filters";
        // In front of the codec, which is the last.
        let filters = list(options, protocol)?;
        filters.insert(
            filters.len().saturating_sub(1),
            parts["injectors"][name].take(),
        );
    }
    move_secrets(config, secrets);
    Ok(())
}

/// Splices tracing.yaml in: spans go to what stands at `address`, and at once.
pub fn trace_to(config: &mut Value, address: SocketAddr) -> Result<()> {
    let mut parts = read("tracing.yaml")?;
    let manager = at(
        config,
        &format!("{LISTENER}/filter_chains/0/filters/0/typed_config"),
    )?;
    for name in ["tracing", "request_id_extension"] {
        manager[name] = parts[name].take();
    }
    let mut cluster = parts["cluster"].take();
    *at(&mut cluster, ENDPOINT)? = json!({"address": address.ip(), "port_value": address.port()});
    list(config, "/static_resources/clusters")?.push(cluster);
    config["layered_runtime"] = json!({"layers": [{"name": "test", "static_layer": {
        "tracing.opentelemetry.min_flush_spans": 1,
        "tracing.opentelemetry.flush_interval_ms": 100,
    }}]});
    Ok(())
}

/// The parts of a file that says what changes in envoy.yaml.
pub fn parts(name: &str) -> Result<Value> {
    read(name)
}

/// `envoy/fleet.yaml` in front of these gateways.
pub(crate) fn fleet(gateways: &[SocketAddr]) -> Result<Value> {
    let mut config = read("fleet.yaml")?;
    set_listener_port(&mut config, 0)?;
    let endpoints = "/static_resources/clusters/0/load_assignment/endpoints/0/lb_endpoints";
    *at(&mut config, endpoints)? = gateways
        .iter()
        .map(|gateway| {
            let address = json!({"address": gateway.ip(), "port_value": gateway.port()});
            json!({"endpoint": {"address": {"socket_address": address}}})
        })
        .collect();
    Ok(config)
}

fn list<'a>(config: &'a mut Value, pointer: &str) -> Result<&'a mut Vec<Value>> {
    at(config, pointer)?
        .as_array_mut()
        .with_context(|| format!("envoy.yaml has no list at {pointer}"))
}

/// Puts this run's folder in place of the one of the examples.
fn move_secrets(config: &mut Value, folder: &Path) {
    change_each(config, &mut |value| {
        let text = value.as_str().unwrap_or_default();
        if let Some(rest) = text.strip_prefix("/etc/refund-filter/secrets") {
            *value = json!(format!("{}{rest}", folder.display()));
        }
    });
}

pub(crate) fn set_upstream(
    config: &mut Value,
    cluster: &str,
    address: SocketAddr,
    ca: &Path,
) -> Result<()> {
    let cluster = named(config, "/static_resources/clusters", cluster)?;
    *at(cluster, ENDPOINT)? = json!({"address": address.ip(), "port_value": address.port()});
    let trusted =
        "/transport_socket/typed_config/common_tls_context/validation_context/trusted_ca/filename";
    *at(cluster, trusted)? = json!(ca);
    Ok(())
}
