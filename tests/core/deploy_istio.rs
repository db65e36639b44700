//! Where the same block stands in `envoy/` and in `deploy/istio`, it is the same. The long ones are
//! copied: `UPDATE_DOCS=1 cargo test deploy_istio::` writes them anew.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub fn project() -> PathBuf {
    Path::new(crate::PROJECT).to_owned()
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn envoy(name: &str) -> Value {
    serde_saphyr::from_str(&read(&format!("envoy/{name}"))).unwrap()
}

pub fn manager(envoy: &Value) -> &Value {
    &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
}

pub fn filter<'a>(manager: &'a Value, name: &str) -> &'a Value {
    named(&manager["http_filters"], name)
}

pub fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut items = list.as_array().unwrap().iter();
    items
        .find(|item| item["name"] == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

fn objects(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(&format!("deploy/istio/{path}"))).unwrap()
}

/// The values that the object of this name patches in by `apply_to`.
fn patches(path: &str, object: &str, apply_to: &str) -> Vec<Value> {
    let object = objects(path)
        .into_iter()
        .find(|each| each["metadata"]["name"] == object);
    let patches = object.unwrap()["spec"]["configPatches"].take();
    let patches = patches.as_array().unwrap().clone();
    patches
        .into_iter()
        .filter(|patch| patch["applyTo"] == apply_to)
        .map(|mut patch| patch["patch"]["value"].take())
        .collect()
}

/// The one among them.
fn patch(path: &str, object: &str, apply_to: &str) -> Value {
    let mut found = patches(path, object, apply_to);
    assert_eq!(found.len(), 1, "{path}: {apply_to}");
    found.remove(0)
}

pub fn without(value: &Value, members: &[&str]) -> Value {
    let mut value = value.clone();
    for member in members {
        assert!(
            value.as_object_mut().unwrap().remove(*member).is_some(),
            "no {member}"
        );
    }
    value
}

#[test]
fn the_filter_and_the_guard_are_those_of_envoy_yaml() {
    let envoy = envoy("envoy.yaml");
    let manager = manager(&envoy);
    let settings = |config: &Value| {
        let mut config = without(config, &["configuration"]);
        config["vm_config"] = without(&config["vm_config"], &["code"]);
        config
    };
    let extension = patch("refunds/filter.yaml", "refund", "EXTENSION_CONFIG");
    let own = filter(manager, "refund_filter");
    assert_eq!(
        settings(&extension["typed_config"]["config"]),
        settings(&own["typed_config"]["config"])
    );
    let inserted = patches("refunds/filter.yaml", "refund", "HTTP_FILTER");
    assert_eq!(inserted[0]["name"], extension["name"]);
    assert_eq!(inserted[0]["disabled"], own["disabled"]);
    assert_eq!(inserted[1], *filter(manager, "refund_route_guard"));
}

#[test]
fn minimal_yaml_has_the_guard_and_the_filter_of_envoy_yaml() {
    let (whole, minimal) = (envoy("envoy.yaml"), envoy("minimal.yaml"));
    let (whole, minimal) = (manager(&whole), manager(&minimal));
    let guard = "refund_route_guard";
    assert_eq!(filter(whole, guard), filter(minimal, guard));
    let settings = |manager: &Value| {
        let config = &filter(manager, "refund_filter")["typed_config"]["config"];
        let vm = &config["vm_config"];
        json!([
            config["allow_on_headers_stop_iteration"],
            config["failure_policy"],
            vm["vm_id"],
            vm["runtime"]
        ])
    };
    assert_eq!(settings(whole), settings(minimal));
}

#[test]
fn the_connection_manager_has_every_setting_of_envoy_yaml() {
    let envoy = envoy("envoy.yaml");
    let own = manager(&envoy);
    let mut shared = patch(
        "refunds/connection.yaml",
        "refund-connection",
        "NETWORK_FILTER",
    )["typed_config"]
        .take();
    let limits = patch("gateway/gateway.yaml", "refund-limits", "NETWORK_FILTER");
    // The gateway that others use, too, has Envoy's own here, and its log is of refunds alone.
    assert_eq!(shared["stream_idle_timeout"], "300s");
    assert!(
        shared["access_log"][0]
            .as_object_mut()
            .unwrap()
            .remove("filter")
            .is_some()
    );
    let early = "early_header_mutation_extensions";
    assert_eq!(
        shared[early],
        crate::deploy_istio::envoy("secrets-by-header.yaml")[early]
    );
    // Istio traces by itself.
    let traced = crate::deploy_istio::envoy("tracing.yaml");
    let length = "max_path_tag_length";
    let extension = "request_id_extension";
    assert_eq!(own[extension], traced[extension]);
    assert_eq!(
        limits["typed_config"]["tracing"],
        json!({length: traced["tracing"][length]})
    );
    let mut merged = without(&shared, &[early]);
    merge(&mut merged, &without(&limits["typed_config"], &["tracing"]));
    assert_eq!(
        merged,
        without(own, &["stat_prefix", "http_filters", "route_config"])
    );
    let listener = patch("refunds/connection.yaml", "refund-connection", "LISTENER");
    assert_eq!(
        listener["per_connection_buffer_limit_bytes"],
        envoy["static_resources"]["listeners"][0]["per_connection_buffer_limit_bytes"]
    );
    let filters = patches(
        "refunds/connection.yaml",
        "refund-connection",
        "HTTP_FILTER",
    );
    let router = "envoy.filters.http.router";
    assert_eq!(filters[0], *filter(own, router));
    let lua = filter(own, "envoy.filters.http.lua");
    assert_eq!(filters[1]["typed_config"], lua["typed_config"]);
}

/// As Istio merges: objects by their members.
fn merge(into: &mut Value, other: &Value) {
    match (into, other) {
        (Value::Object(into), Value::Object(other)) => {
            for (name, value) in other {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, other) => *into = other.clone(),
    }
}

#[test]
fn a_provider_has_the_route_the_clusters_and_the_injector_of_envoy() {
    let whole = envoy("envoy.yaml");
    let by_header = envoy("secrets-by-header.yaml");
    let routes = &manager(&whole)["route_config"]["virtual_hosts"][0]["routes"];
    let clusters = whole["static_resources"]["clusters"].as_array().unwrap();
    let providers = plugin(&whole);
    assert_eq!(
        providers.as_object().unwrap().len(),
        by_header["http_filters"].as_array().unwrap().len()
    );
    for (name, injector) in providers
        .as_object()
        .unwrap()
        .keys()
        .map(|name| (name, injector(&by_header, name)))
    {
        let file = format!("{name}/provider.yaml");
        let object = format!("refund-{name}");
        let host = patch(&file, &object, "VIRTUAL_HOST");
        assert_eq!(host["routes"], json!([named(routes, name)]));
        let base_url = providers[name]["base_url"].as_str().unwrap();
        assert_eq!(
            Some(host["domains"][0].as_str().unwrap()),
            base_url.split('/').nth(2)
        );
        let own: Vec<_> = clusters
            .iter()
            .filter(|cluster| {
                let known = cluster["name"].as_str().unwrap();
                known == name || known.starts_with(&format!("{name}-"))
            })
            .cloned()
            .collect();
        assert_eq!(patches(&file, &object, "CLUSTER"), own);
        let extension = patch(&file, &object, "EXTENSION_CONFIG");
        let inserted = patch(&file, &object, "HTTP_FILTER");
        assert_eq!(extension["name"], inserted["name"]);
        assert_eq!(
            [&extension["name"], &inserted["disabled"]],
            [&injector["name"], &injector["disabled"]]
        );
        assert_eq!(extension["typed_config"], injector["typed_config"]);
        // Both of the refunds' routes switch it on.
        let on = patches(&file, &object, "HTTP_ROUTE");
        assert_eq!(on.len(), 2);
        for value in on {
            let entries = value["typed_per_filter_config"].as_object().unwrap();
            assert_eq!(
                entries.keys().collect::<Vec<_>>(),
                [injector["name"].as_str().unwrap()]
            );
        }
    }
}

/// The injector of a provider's secret.
fn injector<'a>(parts: &'a Value, provider: &str) -> &'a Value {
    let mut injectors = parts["http_filters"].as_array().unwrap().iter();
    let prefix = format!("refund.{provider}-");
    let of = |injector: &&Value| injector["name"].as_str().unwrap().starts_with(&prefix);
    injectors.find(of).unwrap()
}

/// The providers of the plugin's configuration.
pub fn plugin(envoy: &Value) -> Value {
    let config = &filter(manager(envoy), "refund_filter")["typed_config"]["config"];
    let text = config["configuration"]["value"].as_str().unwrap();
    let mut plugin: Value = serde_json::from_str(text).unwrap();
    plugin["providers"].take()
}

#[test]
fn the_example_has_the_providers_of_envoy_yaml() {
    let mut wanted = plugin(&envoy("envoy.yaml"));
    by_header(&mut wanted);
    let values = objects("example/values.yaml");
    let of = |each: &&Value| each["kind"] == "RefundProvider";
    let known: serde_json::Map<_, _> = values
        .iter()
        .filter(of)
        .map(|each| {
            let name = each["metadata"]["name"].as_str().unwrap();
            (name.to_owned(), each["spec"].clone())
        })
        .collect();
    assert_eq!(Value::Object(known), wanted);
}

/// As secrets-by-header.yaml names them.
fn by_header(value: &mut Value) {
    if let Some(state) = value.get("filter_state").and_then(Value::as_str) {
        *value = json!({"header": format!("x-{}", state.replace(['.', '_'], "-"))});
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(by_header),
        Value::Object(members) => members.values_mut().for_each(by_header),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_shared_memory_has_the_cluster_of_memory_yaml_and_its_password_comes_to_the_module() {
    let cluster = patch("memory/memory.yaml", "refund-memory", "CLUSTER");
    assert_eq!(cluster, envoy("memory.yaml")["cluster"]);
    // What each component says of the environment takes the place of what another one has said.
    for component in ["memory", "environment"] {
        let text = read(&format!("deploy/istio/{component}/kustomization.yaml"));
        let keys = text.split_once("host_env_keys: [").unwrap().1;
        let (keys, _) = keys.split_once(']').unwrap();
        let named = keys.split(", ").any(|key| key == "MEMORY_PASSWORD");
        assert!(named, "{component}: {keys}");
    }
}

#[test]
fn the_figures_have_the_labels_of_envoy_yaml() {
    let config = objects("refunds/pod.yaml");
    let bootstrap = named_object(&config, "refund-bootstrap")["data"]["bootstrap.yaml"].clone();
    let bootstrap: Value = serde_saphyr::from_str(bootstrap.as_str().unwrap()).unwrap();
    assert_eq!(
        bootstrap["stats_config"]["stats_tags"],
        envoy("envoy.yaml")["stats_config"]["stats_tags"]
    );
}

#[test]
fn a_pulled_module_needs_of_the_pod_what_a_mounted_one_needs_but_for_the_volume() {
    let text = |file: &str| {
        let objects = objects(file);
        let pod = named_object(&objects, "refund-pod")["data"]["deployment"].clone();
        let pod: Value = serde_saphyr::from_str(pod.as_str().unwrap()).unwrap();
        pod["spec"]["template"]["spec"].clone()
    };
    let (mut mounted, pulled) = (text("refunds/pod.yaml"), text("oci/pod.yaml"));
    for list in ["/volumes", "/containers/0/volumeMounts"] {
        let list = mounted.pointer_mut(list).unwrap().as_array_mut().unwrap();
        let before = list.len();
        list.retain(|volume| volume["name"] != "refund-module");
        assert_eq!(list.len() + 1, before);
    }
    assert_eq!(mounted, pulled);
}

#[test]
fn the_pod_takes_the_secret_of_every_provider() {
    let objects = objects("refunds/pod.yaml");
    let pod = named_object(&objects, "refund-pod")["data"]["deployment"].clone();
    let environment = read("deploy/istio/environment/kustomization.yaml");
    for name in plugin(&envoy("envoy.yaml")).as_object().unwrap().keys() {
        let secret = format!("{{name: refund-{name}, optional: true}}");
        assert!(pod.as_str().unwrap().contains(&secret), "{name}");
        assert!(environment.contains(name.as_str()), "{name}");
    }
}

pub fn named_object<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    let mut objects = objects.iter();
    objects
        .find(|each| each["metadata"]["name"] == name)
        .unwrap()
}

#[test]
fn the_copied_blocks_are_those_of_envoy_yaml() {
    assert_copied("deploy/istio/refunds/connection.yaml", 3);
}

/// What stands in a file between `# envoy.yaml: NAME` and `# end` is the member NAME of envoy.yaml,
/// with its comments; between `# envoy.yaml: in NAME` and `# end`, what is in it.
pub fn assert_copied(path: &str, blocks: usize) {
    let (source, known) = (read("envoy/envoy.yaml"), read(path));
    let mut lines: Vec<String> = Vec::new();
    let mut copied = 0;
    let mut inside = false;
    for line in known.lines() {
        inside &= line.trim() != "# end";
        if inside {
            continue;
        }
        lines.push(line.to_owned());
        if let Some((indent, name)) = line.split_once("# envoy.yaml: ") {
            match name.strip_prefix("in ") {
                Some(name) => {
                    let block = block(&source, name, "");
                    let depth = block[1].len() - block[1].trim_start().len();
                    lines.extend(block.iter().skip(1).map(|line| {
                        let rest = line.get(depth..).unwrap_or_default();
                        let line = format!("{indent}{rest}");
                        line.trim_end().to_owned()
                    }));
                }
                None => lines.extend(block(&source, name, indent)),
            }
            inside = true;
            copied += 1;
        }
    }
    assert!(!inside, "{path} has a mark without an end");
    assert_eq!(copied, blocks, "{path}");
    let written = lines.join("\n") + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(project().join(path), written).unwrap();
    } else {
        assert!(
            written == known,
            "{path} is not what envoy.yaml has; UPDATE_DOCS=1 writes it"
        );
    }
}

/// A member of envoy.yaml as lines with another indent.
fn block(source: &str, name: &str, indent: &str) -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = source
        .lines()
        .skip_while(|line| line.trim() != format!("{name}:"));
    let first = lines.next().unwrap_or_else(|| panic!("no {name}"));
    let rest = lines.take_while(|line| line.trim().is_empty() || depth(line) > depth(first));
    let mut block: Vec<_> = std::iter::once(first)
        .chain(rest)
        .map(|line| match line.get(depth(first)..) {
            Some(text) if !text.is_empty() => format!("{indent}{text}"),
            _ => String::new(),
        })
        .collect();
    while block.last().is_some_and(String::is_empty) {
        block.pop();
    }
    block
}
