//! Where the same block stands in `envoy/` and in `deploy/envoy-gateway`, it is the same. The long
//! ones are copied: `UPDATE_DOCS=1 cargo test deploy_envoy_gateway::` writes them anew.

use serde_json::{Value, json};

use crate::deploy_istio::{assert_copied, envoy, filter, manager, named, named_object, plugin};
use crate::deploy_istio::{read, without};

fn objects(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(&format!("deploy/envoy-gateway/{path}"))).unwrap()
}

/// The patches of an EnvoyPatchPolicy, each with the last word of its type.
fn patches(path: &str, policy: &str) -> Vec<(String, Value)> {
    let of =
        |each: &Value| each["kind"] == "EnvoyPatchPolicy" && each["metadata"]["name"] == policy;
    let policy = objects(path).into_iter().find(of).unwrap();
    let patches = policy["spec"]["jsonPatches"].as_array().unwrap();
    let one = |patch: &Value| {
        let kind = patch["type"].as_str().unwrap().rsplit('.').next().unwrap();
        (kind.to_owned(), patch["operation"].clone())
    };
    patches.iter().map(one).collect()
}

/// What the patches put into the connection manager.
fn settings(path: &str, policy: &str) -> Value {
    let mut settings = json!({});
    for (_, operation) in patches(path, policy) {
        let at = operation["jsonPath"].as_str().unwrap_or_default();
        if !at.ends_with("typed_config") {
            continue;
        }
        let pointer = operation["path"].as_str().unwrap();
        let mut place = &mut settings;
        for member in pointer.split('/').skip(1) {
            place = match member {
                "-" => {
                    *place = json!([null]);
                    &mut place[0]
                }
                member => &mut place[member],
            };
        }
        *place = operation["value"].clone();
    }
    settings
}

#[test]
fn the_filter_and_the_guard_are_those_of_envoy_yaml() {
    let envoy = envoy("envoy.yaml");
    let manager = manager(&envoy);
    let own = &filter(manager, "refund_filter")["typed_config"]["config"];
    let all = objects("refunds/filter.yaml");
    let extension = &named_object(&all, "refund")["spec"]["wasm"][0];
    assert_eq!(extension["name"], own["name"]);
    let patched = patches("refunds/filter.yaml", "refund-filter");
    let value = |path: &str| {
        let mut patches = patched.iter();
        let found = patches.find(|(_, operation)| operation["path"] == path);
        found.unwrap().1["value"].clone()
    };
    for member in ["allow_on_headers_stop_iteration", "failure_policy"] {
        assert_eq!(value(&format!("/{member}")), own[member]);
    }
    let (_, guard) = patched.last().unwrap();
    assert_eq!(guard["value"], *filter(manager, "refund_route_guard"));
}

#[test]
fn the_connection_manager_has_every_setting_of_envoy_yaml() {
    let envoy = envoy("envoy.yaml");
    let own = manager(&envoy);
    let mut all = settings("refunds/connection.yaml", "refund-connection");
    // The log is of refunds alone where the gateway is not.
    let log = all["access_log"][0].as_object_mut().unwrap();
    assert!(log.remove("filter").is_some());
    let limits = settings("gateway/gateway.yaml", "refund-limits");
    for (member, value) in limits.as_object().unwrap() {
        match (&mut all[member], value) {
            (Value::Object(known), Value::Object(more)) => known.extend(more.clone()),
            (known, value) => *known = value.clone(),
        }
    }
    assert_eq!(
        all,
        without(
            own,
            &["@type", "stat_prefix", "http_filters", "route_config"]
        )
    );
    let connection = patches("refunds/connection.yaml", "refund-connection");
    let (_, limit) = &connection[0];
    let member = "per_connection_buffer_limit_bytes";
    assert_eq!(limit["path"], format!("/{member}"));
    assert_eq!(
        limit["value"],
        envoy["static_resources"]["listeners"][0][member]
    );
    let (_, lua) = connection.last().unwrap();
    let own_lua = filter(own, "envoy.filters.http.lua");
    assert_eq!(lua["value"]["typed_config"], own_lua["typed_config"]);
}

#[test]
fn a_provider_has_the_route_the_clusters_and_the_key_of_envoy_yaml() {
    let envoy = envoy("envoy.yaml");
    let own = manager(&envoy);
    let routes = &own["route_config"]["virtual_hosts"][0]["routes"];
    let clusters = envoy["static_resources"]["clusters"].as_array().unwrap();
    let states = &filter(own, "envoy.filters.http.set_filter_state")["typed_config"];
    let providers = plugin(&envoy);
    for (name, provider) in providers.as_object().unwrap() {
        let patched = patches(&format!("{name}/provider.yaml"), &format!("refund-{name}"));
        let of = |kind: &str| -> Vec<&Value> {
            let of = patched.iter().filter(|(known, _)| known == kind);
            of.map(|(_, operation)| operation).collect()
        };
        let [host, on] = of("RouteConfiguration")[..] else {
            panic!("{name}: not two patches of the routes")
        };
        assert_eq!(host["value"]["routes"], json!([named(routes, name)]));
        let base_url = provider["base_url"].as_str().unwrap();
        assert_eq!(
            host["value"]["domains"][0].as_str(),
            base_url.split('/').nth(2)
        );
        let known: Vec<_> = of("Cluster").iter().map(|one| &one["value"]).collect();
        let belongs = |cluster: &&Value| {
            let known = cluster["name"].as_str().unwrap();
            known == name || known.starts_with(&format!("{name}-"))
        };
        assert_eq!(known, clusters.iter().filter(belongs).collect::<Vec<_>>());

        // The key's state is envoy.yaml's but for where the secret comes from.
        let [key] = of("Listener")[..] else {
            panic!("{name}: not one patch of the listener")
        };
        let key = &key["value"];
        let state = &key["name"];
        assert_eq!(
            on["path"],
            format!("/typed_per_filter_config/{}", state.as_str().unwrap())
        );
        assert_eq!(key["disabled"], true);
        let set = &key["typed_config"]["on_request_headers"][0];
        let mut wanted = states["on_request_headers"].as_array().unwrap().iter();
        let wanted = wanted.find(|one| one["object_key"] == *state).unwrap();
        assert_eq!(without_source(set), without_source(wanted));
        assert!(provider.to_string().contains(state.as_str().unwrap()));
    }
}

/// What sets a secret's state, but for where the secret comes from.
fn without_source(state: &Value) -> Value {
    let mut state = state.clone();
    state["format_string"] = without(
        &state["format_string"],
        &["formatters", "text_format_source"],
    );
    state
}

#[test]
fn the_shared_memory_has_the_cluster_and_the_password_of_memory_yaml() {
    let memory = envoy("memory.yaml");
    let patched = patches("memory/memory.yaml", "refund-memory");
    let [(_, on), (_, password), (_, cluster)] = &patched[..] else {
        panic!("not three patches: {patched:?}")
    };
    assert_eq!(cluster["value"], memory["cluster"]);
    let password = &password["value"];
    assert_eq!(password["disabled"], true);
    let set = &password["typed_config"]["on_request_headers"][0];
    let wanted = &memory["set_filter_state"];
    assert_eq!(without_source(set), without_source(wanted));
    let name = password["name"].as_str().unwrap();
    assert_eq!(on["path"], format!("/typed_per_filter_config/{name}"));
    assert_eq!(set["object_key"], name);
    // Without set_filter_state the environment brings it.
    let environment = read("deploy/envoy-gateway/environment/kustomization.yaml");
    assert!(environment.contains(", MEMORY_PASSWORD]"));
}

#[test]
fn the_example_has_the_providers_of_envoy_yaml() {
    let values = objects("example/values.yaml");
    let known: serde_json::Map<_, _> = values
        .iter()
        .filter(|each| each["kind"] == "RefundProvider")
        .map(|each| {
            let name = each["metadata"]["name"].as_str().unwrap();
            (name.to_owned(), each["spec"].clone())
        })
        .collect();
    assert_eq!(Value::Object(known), plugin(&envoy("envoy.yaml")));
}

#[test]
fn the_copied_blocks_are_those_of_envoy_yaml() {
    assert_copied("deploy/envoy-gateway/refunds/connection.yaml", 3);
}

#[test]
fn the_figures_have_the_labels_of_envoy_yaml() {
    let all = objects("gateway/gateway.yaml");
    let proxy = all.iter().find(|each| each["kind"] == "EnvoyProxy");
    let merged = proxy.unwrap()["spec"]["bootstrap"]["value"].as_str();
    let merged: Value = serde_saphyr::from_str(merged.unwrap()).unwrap();
    let tags = "/stats_config/stats_tags";
    assert_eq!(merged.pointer(tags), envoy("envoy.yaml").pointer(tags));
}
