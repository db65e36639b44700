//! The project's own envoy.yaml as a tree, and the few places in it that a run replaces.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::project;

const LISTENER: &str = "/static_resources/listeners/0";

/// Reads `envoy/envoy.yaml`.
pub fn load() -> Result<Value> {
    let path = project().join("envoy/envoy.yaml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(serde_saphyr::from_str(&text)?)
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
    *at(config, "/admin/address/socket_address/port_value")? = json!(0);
    Ok(())
}

pub(crate) fn set_module(config: &mut Value, module: &Path) -> Result<()> {
    let filters = format!("{LISTENER}/filter_chains/0/filters/0/typed_config/http_filters");
    let filter = named(config, &filters, "refund_filter")?;
    *at(filter, "/typed_config/config/vm_config/code/local/filename")? = json!(module);
    Ok(())
}

pub(crate) fn set_upstream(
    config: &mut Value,
    cluster: &str,
    address: SocketAddr,
    ca: &Path,
) -> Result<()> {
    let cluster = named(config, "/static_resources/clusters", cluster)?;
    let endpoint = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    *at(cluster, endpoint)? = json!({"address": address.ip(), "port_value": address.port()});
    let trusted =
        "/transport_socket/typed_config/common_tls_context/validation_context/trusted_ca/filename";
    *at(cluster, trusted)? = json!(ca);
    Ok(())
}
