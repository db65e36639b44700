//! What the doctor says: nothing of what ships, one thing of each omission, and never a secret.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use refund_doctor::start::{Variant, write};
use refund_doctor::{ENVOY_YAML, PATH, examine};
use serde_json::{Value, json};

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const PROTOCOL: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn tree() -> Value {
    static READ: LazyLock<Value> = LazyLock::new(|| serde_saphyr::from_str(ENVOY_YAML).unwrap());
    READ.clone()
}

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../envoy");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// The findings, each as a line.
fn said(tree: &Value) -> Vec<String> {
    let findings = examine(&tree.to_string()).unwrap();
    findings.iter().map(ToString::to_string).collect()
}

/// The same as an admin would dump it, with what can be discovered discovered.
fn dump(tree: &Value) -> Value {
    let mut bootstrap = tree.clone();
    let mut resources = bootstrap["static_resources"].take();
    let kind = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}");
    let mut configs = vec![json!({"@type": kind("BootstrapConfigDump"), "bootstrap": bootstrap})];
    let manager = MANAGER.strip_prefix("/static_resources").unwrap();
    let manager = resources.pointer_mut(manager).unwrap();
    if manager["http_filters"].is_array() {
        let mut routes = manager["route_config"].take();
        manager.as_object_mut().unwrap().remove("route_config");
        routes["name"] = json!("discovered");
        manager["rds"] = json!({"route_config_name": "discovered"});
        configs.push(json!({"@type": kind("RoutesConfigDump"), "dynamic_route_configs": [{"route_config": routes}]}));
        for filter in manager["http_filters"].as_array_mut().unwrap() {
            if filter["name"] == "refund_filter" {
                let config = filter["typed_config"].take();
                filter.as_object_mut().unwrap().remove("typed_config");
                filter["config_discovery"] = json!({});
                let filter = json!({"name": "refund_filter", "typed_config": config});
                configs.push(json!({"@type": kind("EcdsConfigDump"), "ecds_filters": [{"ecds_filter": filter}]}));
            }
        }
    }
    let wrapped = |list: &Value, wrap: fn(&Value) -> Value| -> Vec<Value> {
        list.as_array().unwrap().iter().map(wrap).collect()
    };
    configs.push(json!({"@type": kind("ListenersConfigDump"), "dynamic_listeners":
        wrapped(&resources["listeners"], |listener| json!({"active_state": {"listener": listener}}))}));
    configs.push(
        json!({"@type": kind("ClustersConfigDump"), "dynamic_active_clusters":
        wrapped(&resources["clusters"], |cluster| json!({"cluster": cluster}))}),
    );
    json!({"configs": configs})
}

fn manager(tree: &mut Value) -> &mut Value {
    tree.pointer_mut(MANAGER).unwrap()
}

fn filters(tree: &mut Value) -> &mut Vec<Value> {
    manager(tree)["http_filters"].as_array_mut().unwrap()
}

fn filter<'a>(tree: &'a mut Value, name: &str) -> &'a mut Value {
    let mut filters = filters(tree).iter_mut();
    filters.find(|filter| filter["name"] == name).unwrap()
}

/// The filter's settings in Envoy.
fn settings(tree: &mut Value) -> &mut Value {
    &mut filter(tree, "refund_filter")["typed_config"]["config"]
}

fn plugin(tree: &mut Value, change: impl FnOnce(&mut Value)) {
    let text = settings(tree).pointer_mut("/configuration/value").unwrap();
    let mut plugin = serde_json::from_str(text.as_str().unwrap()).unwrap();
    change(&mut plugin);
    *text = json!(plugin.to_string());
}

fn host(tree: &mut Value) -> &mut Value {
    &mut manager(tree)["route_config"]["virtual_hosts"][0]
}

fn routes(tree: &mut Value) -> &mut Vec<Value> {
    host(tree)["routes"].as_array_mut().unwrap()
}

fn route<'a>(tree: &'a mut Value, name: &str) -> &'a mut Value {
    let mut routes = routes(tree).iter_mut();
    routes.find(|route| route["name"] == name).unwrap()
}

fn cluster<'a>(tree: &'a mut Value, name: &str) -> &'a mut Value {
    let clusters = tree["static_resources"]["clusters"].as_array_mut().unwrap();
    clusters
        .iter_mut()
        .find(|each| each["name"] == name)
        .unwrap()
}

fn protocol<'a>(tree: &'a mut Value, name: &str) -> &'a mut Value {
    &mut cluster(tree, name)["typed_extension_protocol_options"][PROTOCOL]
}

fn tls<'a>(tree: &'a mut Value, name: &str) -> &'a mut Value {
    &mut cluster(tree, name)["transport_socket"]["typed_config"]["common_tls_context"]
}

fn remove(value: &mut Value, member: &str) {
    value.as_object_mut().unwrap().remove(member).expect(member);
}

fn without_filter(tree: &mut Value, name: &str) -> Value {
    let filters = filters(tree);
    let index = filters.iter().position(|filter| filter["name"] == name);
    filters.remove(index.unwrap())
}

fn typed(name: &str, kind: &str) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
    json!({"name": name, "typed_config": {"@type": kind}})
}

/// Has the secrets come as secrets-by-header.yaml shows.
fn by_header(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("secrets-by-header.yaml")).unwrap();
    let early = "early_header_mutation_extensions";
    manager(tree)[early] = parts[early].clone();
    let mut known = filters(tree).iter();
    let place = known.position(|filter| filter["name"] == "envoy.filters.http.set_filter_state");
    let place = place.unwrap();
    let injectors = parts["http_filters"].as_array().unwrap().clone();
    filters(tree).splice(place..=place, injectors);
    for name in ["refunds", "refunds-preview"] {
        let enabled = route(tree, name)["typed_per_filter_config"]
            .as_object_mut()
            .unwrap();
        enabled.extend(
            parts["typed_per_filter_config"]
                .as_object()
                .unwrap()
                .clone(),
        );
    }
    let text = settings(tree).pointer_mut("/configuration/value").unwrap();
    let mut changed = text
        .as_str()
        .unwrap()
        .replace("{\"filter_state\": \"refund.", "{\"header\": \"x-refund-");
    for name in [
        "bog_client_secret",
        "moyasar_api_key",
        "begateway_secret_key",
        "bbmsl_key",
    ] {
        changed = changed.replace(name, &name.replace('_', "-"));
    }
    *text = json!(changed);
}

/// Has two clusters add the credentials as credentials-injected.yaml shows.
fn injected(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("credentials-injected.yaml")).unwrap();
    for name in ["moyasar", "begateway"] {
        plugin(tree, |plugin| {
            plugin["providers"][name] = parts["providers"][name].clone()
        });
        let filters = protocol(tree, name)["http_filters"].as_array_mut().unwrap();
        filters.insert(1, parts["injectors"][name].clone());
    }
}

/// Has OpenBao sign as transit.yaml shows.
fn signed_by_openbao(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("transit.yaml")).unwrap();
    plugin(tree, |plugin| {
        plugin["providers"]["bbmsl"]["signing"] = parts["signing"].clone()
    });
    let states = &mut filter(tree, "envoy.filters.http.set_filter_state")["typed_config"];
    let states = states["on_request_headers"].as_array_mut().unwrap();
    states.push(parts["set_filter_state"].clone());
    let clusters = tree["static_resources"]["clusters"].as_array_mut().unwrap();
    clusters.push(parts["cluster"].clone());
}

/// Has gateways share a memory as memory.yaml shows.
fn sharing(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("memory.yaml")).unwrap();
    plugin(tree, |plugin| plugin["memory"] = parts["memory"].clone());
    let states = &mut filter(tree, "envoy.filters.http.set_filter_state")["typed_config"];
    let states = states["on_request_headers"].as_array_mut().unwrap();
    states.push(parts["set_filter_state"].clone());
    let clusters = tree["static_resources"]["clusters"].as_array_mut().unwrap();
    clusters.push(parts["cluster"].clone());
}

/// The store's password is no longer brought.
fn without_password(tree: &mut Value) {
    let states = &mut filter(tree, "envoy.filters.http.set_filter_state")["typed_config"];
    let states = states["on_request_headers"].as_array_mut().unwrap();
    states.retain(|known| known["object_key"] != "refund.memory_password");
}

/// The store's cluster, in a tree that has it.
fn store(tree: &mut Value) -> &mut Value {
    sharing(tree);
    cluster(tree, "memory")
}

/// Has another listener list what is open, as open-list.yaml shows.
fn listing(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("open-list.yaml")).unwrap();
    let list = parts["static_resources"]["listeners"][0].clone();
    let listeners = tree["static_resources"]["listeners"].as_array_mut();
    listeners.unwrap().push(list);
}

/// The listener that lists, in a tree that has it.
fn list(tree: &mut Value) -> &mut Value {
    listing(tree);
    &mut tree["static_resources"]["listeners"][1]
}

const LIST_MANAGER: &str = "/filter_chains/0/filters/0/typed_config";

/// A tree whose plugins' configurations are JSON, in place of texts.
fn read(mut tree: Value) -> Value {
    for listener in tree["static_resources"]["listeners"]
        .as_array_mut()
        .unwrap()
    {
        let filters = listener.pointer_mut(&format!("{LIST_MANAGER}/http_filters"));
        for filter in filters.unwrap().as_array_mut().unwrap() {
            let text = filter.pointer_mut("/typed_config/config/configuration/value");
            if let Some(text) = text {
                *text = serde_json::from_str(text.as_str().unwrap()).unwrap();
            }
        }
    }
    tree
}

fn made(variant: Variant) -> Value {
    let all = ["bog", "moyasar", "begateway", "bbmsl"];
    let text = write(&all, PATH, variant).unwrap();
    read(serde_saphyr::from_str(&text).unwrap())
}

/// A secret of the filter's that is no longer brought.
fn without_secret(tree: &mut Value, state: &str, secret: &str) {
    let states = &mut filter(tree, "envoy.filters.http.set_filter_state")["typed_config"];
    let states = states["on_request_headers"].as_array_mut().unwrap();
    states.retain(|known| known["object_key"] != state);
    for state in states {
        let formatter = &mut state["format_string"]["formatters"][0]["typed_config"];
        remove(&mut formatter["secret_configs"], secret);
    }
}

#[test]
fn a_whole_configuration_is_envoy_yaml_with_what_the_file_beside_it_says() {
    let mut with_headers = tree();
    by_header(&mut with_headers);
    let variant = Variant {
        by_header: true,
        ..Variant::default()
    };
    assert!(made(variant) == read(with_headers), "{variant:?}");

    let mut with_injectors = tree();
    injected(&mut with_injectors);
    without_secret(
        &mut with_injectors,
        "refund.moyasar_api_key",
        "moyasar-api-key",
    );
    without_secret(
        &mut with_injectors,
        "refund.begateway_secret_key",
        "begateway-secret-key",
    );
    let variant = Variant {
        injected: true,
        ..Variant::default()
    };
    assert!(made(variant) == read(with_injectors), "{variant:?}");

    // OpenBao's token comes as the key did.
    let text = ENVOY_YAML.replace("refund.bbmsl_key", "refund.openbao_token");
    let text = text.replace("bbmsl-key", "openbao-token");
    let mut with_openbao: Value = serde_saphyr::from_str(&text).unwrap();
    signed_by_openbao(&mut with_openbao);
    let states =
        &mut filter(&mut with_openbao, "envoy.filters.http.set_filter_state")["typed_config"];
    states["on_request_headers"].as_array_mut().unwrap().pop();
    let variant = Variant {
        transit: true,
        ..Variant::default()
    };
    assert!(made(variant) == read(with_openbao), "{variant:?}");

    let mut with_list = tree();
    listing(&mut with_list);
    let variant = Variant {
        open_list: true,
        ..Variant::default()
    };
    assert!(made(variant) == read(with_list), "{variant:?}");

    let mut with_memory = tree();
    sharing(&mut with_memory);
    let variant = Variant {
        memory: true,
        ..Variant::default()
    };
    assert!(made(variant) == read(with_memory), "{variant:?}");
}

/// Has Envoy trace as tracing.yaml shows.
fn traced(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("tracing.yaml")).unwrap();
    for name in ["tracing", "request_id_extension"] {
        manager(tree)[name] = parts[name].clone();
    }
    let clusters = tree["static_resources"]["clusters"].as_array_mut().unwrap();
    clusters.push(parts["cluster"].clone());
}

/// Has callers told by a token, as auth-jwt.yaml shows.
fn told_by_a_token(tree: &mut Value) {
    let parts: Value = serde_saphyr::from_str(&file("auth-jwt.yaml")).unwrap();
    plugin(tree, |plugin| plugin["caller"] = parts["caller"].clone());
    filters(tree).insert(0, parts["http_filter"].clone());
}

#[test]
fn it_has_nothing_to_say_of_what_ships() {
    assert_eq!(examine(ENVOY_YAML).unwrap(), []);
    assert_eq!(said(&dump(&tree())), [""; 0]);
    for change in [
        by_header,
        injected,
        signed_by_openbao,
        listing,
        traced,
        sharing,
    ] {
        let mut tree = tree();
        change(&mut tree);
        assert_eq!(said(&tree), [""; 0]);
    }
}

/// The header of minimal.yaml names them: Envoy's own answers, limits, the access log, the figures.
#[test]
fn of_the_small_start_it_says_what_its_own_header_names() {
    let found = examine(&file("minimal.yaml")).unwrap();
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let expected = [
        "risk: listener refunds: what Envoy answers by itself",
        "risk: listener refunds: a call with a gRPC content type",
        "lacks: listener refunds: there is no access log",
        "lacks: cluster moyasar: nothing stops a retry policy",
        "lacks: stats_config: the filter's figures",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

type Change = fn(&mut Value);

/// The team's own authentication, asked for on these routes.
fn authentication(tree: &mut Value, routes: &[&str]) {
    filters(tree).insert(0, typed("team-rbac", "rbac.v3.RBAC"));
    for name in routes {
        let asked = &mut route(tree, name)["typed_per_filter_config"];
        asked["team-rbac"] = json!({"rbac": {"rules": {}}});
    }
}

/// What is forgotten or wrong, and how the one sentence about it begins.
const OMISSIONS: &[(&str, Change)] = &[
    (
        "risk: listeners: the refund filter is in no chain",
        |tree| {
            without_filter(tree, "refund_filter");
        },
    ),
    (
        "lacks: listener refunds: no provider is configured",
        |tree| {
            plugin(tree, |plugin| plugin["providers"] = json!({}));
            routes(tree).retain(|route| route.get("metadata").is_none());
        },
    ),
    (
        "lacks: listener refunds: who calls is to be told by a token, and no jwt_authn",
        |tree| {
            told_by_a_token(tree);
            without_filter(tree, "envoy.filters.http.jwt_authn");
        },
    ),
    (
        "lacks: listener refunds: who calls is to be told by the token's payload `corp`",
        |tree| {
            told_by_a_token(tree);
            filter(tree, "envoy.filters.http.jwt_authn")["typed_config"]["providers"]["corp"]["payload_in_metadata"] =
                json!("other");
        },
    ),
    (
        "lacks: stats_config: Envoy keeps none of the filter's figures",
        |tree| {
            tree["stats_config"]["stats_matcher"] =
                json!({"inclusion_list": {"patterns": [{"prefix": "component"}]}});
        },
    ),
    (
        "risk: listener refunds: `team-jwt` stands behind the refund filter, so that a caller without a token refunds",
        |tree| {
            let index = filters(tree).len() - 1;
            filters(tree).insert(index, typed("team-jwt", "jwt_authn.v3.JwtAuthentication"));
        },
    ),
    (
        "risk: listener refunds: `team-lua` stands behind the refund filter, where it sees",
        |tree| {
            let index = filters(tree).len() - 2;
            filters(tree).insert(index, typed("team-lua", "lua.v3.Lua"));
        },
    ),
    (
        "risk: listener refunds: the refund filter is on for every route",
        |tree| {
            remove(filter(tree, "refund_filter"), "disabled");
        },
    ),
    (
        "risk: route other: this route is for every path and has the refund filter on",
        |tree| {
            let enabled = route(tree, "refunds")["typed_per_filter_config"].clone();
            route(tree, "other")["typed_per_filter_config"] = enabled;
        },
    ),
    (
        "risk: route refunds-preview: it has the refund filter on and lacks what",
        |tree| authentication(tree, &["refunds"]),
    ),
    (
        "lacks: listener refunds: no route enables the refund filter for /v1/refunds/preview",
        |tree| {
            remove(route(tree, "refunds-preview"), "typed_per_filter_config");
        },
    ),
    ("risk: listener refunds: no route guard", |tree| {
        without_filter(tree, "refund_route_guard");
    }),
    (
        "risk: route other: this route changes the route guard",
        |tree| {
            route(tree, "other")["typed_per_filter_config"] =
                json!({"refund_route_guard": {"disabled": true}});
        },
    ),
    ("lacks: route bbmsl: it is not marked", |tree| {
        remove(route(tree, "bbmsl"), "metadata")
    }),
    ("risk: route other: it is marked as a provider's", |tree| {
        route(tree, "other")["metadata"] =
            json!({"filter_metadata": {"refund_filter": {"provider": "bog"}}});
    }),
    (
        "lacks: provider moyasar: no route of the virtual host `refunds` matches",
        |tree| {
            routes(tree).retain(|route| route["name"] != "moyasar");
        },
    ),
    (
        "lacks: provider moyasar: Envoy looks for its route in the virtual host `theirs`",
        |tree| {
            let other = json!({"name": "theirs", "domains": ["pg.moyasar.com"], "routes": []});
            manager(tree)["route_config"]["virtual_hosts"]
                .as_array_mut()
                .unwrap()
                .push(other);
        },
    ),
    (
        "lacks: provider bog: no virtual host has the provider's host",
        |tree| {
            host(tree)["domains"] = json!([
                "refunds.corp",
                "pg.moyasar.com",
                "api.begateway.com",
                "payapi.prod.*"
            ]);
        },
    ),
    ("risk: route bbmsl: route other stands before it", |tree| {
        let other = routes(tree).pop().unwrap();
        routes(tree).insert(3, other);
    }),
    ("risk: route bog: route api stands before it", |tree| {
        routes(tree).insert(
            0,
            json!({"name": "api", "match": {"prefix": "/payments"}, "route": {"cluster": "bog"}}),
        );
    }),
    ("risk: route moyasar: a retry policy", |tree| {
        route(tree, "moyasar")["route"]["retry_policy"] = json!({"retry_on": "5xx"});
    }),
    ("risk: route moyasar: a hedge policy", |tree| {
        route(tree, "moyasar")["route"]["hedge_policy"] = json!({"hedge_on_per_try_timeout": true});
    }),
    ("risk: route moyasar: a mirror", |tree| {
        route(tree, "moyasar")["route"]["request_mirror_policies"] = json!([{"cluster": "bog"}]);
    }),
    ("risk: route moyasar: it rewrites host or path", |tree| {
        route(tree, "moyasar")["route"]["host_rewrite_literal"] = json!("elsewhere.example");
    }),
    ("risk: route moyasar: it answers or redirects", |tree| {
        let route = route(tree, "moyasar");
        remove(route, "route");
        route["redirect"] = json!({"https_redirect": true});
    }),
    (
        "risk: route moyasar: a header of the call says where",
        |tree| {
            let route = route(tree, "moyasar");
            remove(&mut route["route"], "cluster");
            route["route"]["cluster_header"] = json!("x-cluster");
        },
    ),
    (
        "lacks: route moyasar: the provider gets x-forwarded-proto",
        |tree| {
            remove(route(tree, "moyasar"), "request_headers_to_remove");
        },
    ),
    (
        "risk: route moyasar: a call may take longer than the key's lease",
        |tree| {
            route(tree, "moyasar")["route"]["timeout"] = json!("0s");
        },
    ),
    (
        "lacks: route moyasar: there is no cluster `moyasar`",
        |tree| {
            let clusters = tree["static_resources"]["clusters"].as_array_mut().unwrap();
            clusters.retain(|cluster| cluster["name"] != "moyasar");
        },
    ),
    (
        "lacks: provider bog: there is no cluster `bog-token`",
        |tree| {
            let clusters = tree["static_resources"]["clusters"].as_array_mut().unwrap();
            clusters.retain(|cluster| cluster["name"] != "bog-token");
        },
    ),
    (
        "lacks: listener refunds: providers.bog is of no kind that the filter knows",
        |tree| {
            plugin(tree, |plugin| {
                plugin["providers"]["bog"]["kind"] = json!("bok")
            })
        },
    ),
    (
        "risk: listener refunds: whoever reaches this address may refund",
        |tree| {
            let listener = &mut tree["static_resources"]["listeners"][0];
            listener["address"]["socket_address"]["address"] = json!("0.0.0.0");
        },
    ),
    (
        "lacks: provider bbmsl: there is no cluster `openbao`",
        |tree| {
            plugin(tree, |plugin| {
                plugin["providers"]["bbmsl"]["signing"] = json!({"transit": {"cluster": "openbao", "token": {"filter_state": "refund.bbmsl_key"}}});
            })
        },
    ),
    ("risk: cluster moyasar: without TLS", |tree| {
        remove(cluster(tree, "moyasar"), "transport_socket")
    }),
    (
        "lacks: cluster moyasar: the provider is not told which host",
        |tree| {
            remove(
                &mut protocol(tree, "moyasar")["upstream_http_protocol_options"],
                "auto_sni",
            );
        },
    ),
    ("risk: cluster moyasar: any host's certificate", |tree| {
        remove(
            &mut protocol(tree, "moyasar")["upstream_http_protocol_options"],
            "auto_san_validation",
        );
    }),
    ("risk: cluster moyasar: no certificate is checked", |tree| {
        remove(tls(tree, "moyasar"), "validation_context")
    }),
    ("risk: cluster moyasar: no certificate is checked", |tree| {
        tls(tree, "moyasar")["validation_context"]["trust_chain_verification"] =
            json!("ACCEPT_UNTRUSTED");
    }),
    ("risk: cluster moyasar: a tap copies", |tree| {
        let inner = cluster(tree, "moyasar")["transport_socket"].take();
        let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tap.v3.Tap";
        cluster(tree, "moyasar")["transport_socket"] =
            json!({"typed_config": {"@type": kind, "transport_socket": inner}});
    }),
    (
        "lacks: cluster bbmsl: calls of the filter's own take x-envoy-internal, x-envoy-expected-rq-timeout-ms, x-forwarded-for along",
        |tree| {
            remove(protocol(tree, "bbmsl"), "http_filters");
        },
    ),
    (
        "lacks: cluster bog-token: calls of the filter's own take x-envoy-internal, x-envoy",
        |tree| {
            remove(protocol(tree, "bog-token"), "http_filters");
        },
    ),
    (
        "lacks: cluster moyasar: calls of the filter's own take x-envoy-internal, x-envoy",
        |tree| {
            remove(protocol(tree, "moyasar"), "http_filters");
            plugin(tree, |plugin| {
                plugin["providers"]["moyasar"]["query_first"] = json!(true)
            });
        },
    ),
    (
        "lacks: cluster moyasar: nothing adds the provider's credentials",
        |tree| {
            injected(tree);
            protocol(tree, "moyasar")["http_filters"]
                .as_array_mut()
                .unwrap()
                .remove(1);
        },
    ),
    (
        "lacks: cluster moyasar: nothing stops a retry policy",
        |tree| remove(cluster(tree, "moyasar"), "circuit_breakers"),
    ),
    (
        "lacks: cluster moyasar: a call on an idle connection",
        |tree| {
            remove(protocol(tree, "moyasar"), "common_http_protocol_options");
        },
    ),
    ("lacks: cluster moyasar: its buffer holds", |tree| {
        cluster(tree, "moyasar")["per_connection_buffer_limit_bytes"] = json!(32768);
    }),
    ("lacks: listener refunds: its buffers hold", |tree| {
        tree["static_resources"]["listeners"][0]["per_connection_buffer_limit_bytes"] =
            json!(32768);
    }),
    ("lacks: listener refunds: its buffers hold", |tree| {
        manager(tree)["http2_protocol_options"]["initial_stream_window_size"] = json!(65536);
    }),
    (
        "lacks: listener refunds: the filter never gets a body",
        |tree| {
            remove(settings(tree), "allow_on_headers_stop_iteration");
        },
    ),
    ("lacks: listener refunds: one trap", |tree| {
        remove(settings(tree), "failure_policy")
    }),
    ("risk: listener refunds: after a trap", |tree| {
        settings(tree)["failure_policy"] = json!("FAIL_OPEN")
    }),
    (
        "risk: listener refunds: the memory against second refunds",
        |tree| remove(&mut settings(tree)["vm_config"], "vm_id"),
    ),
    (
        "lacks: listener refunds: the plugin's configuration is no StringValue",
        |tree| {
            settings(tree)["configuration"]["@type"] =
                json!("type.googleapis.com/google.protobuf.Struct");
        },
    ),
    (
        "lacks: listener refunds: the plugin's configuration is not JSON (its line 1, column 2)",
        |tree| {
            settings(tree)["configuration"]["value"] = json!("{canary}");
        },
    ),
    (
        "lacks: listener refunds: nothing gives providers.moyasar.api_key",
        |tree| {
            let states = &mut filter(tree, "envoy.filters.http.set_filter_state")["typed_config"];
            let states = states["on_request_headers"].as_array_mut().unwrap();
            states.retain(|state| state["object_key"] != "refund.moyasar_api_key");
        },
    ),
    (
        "lacks: listener refunds: what gives providers.bog.token.client_secret stands behind",
        |tree| {
            let states = without_filter(tree, "envoy.filters.http.set_filter_state");
            let index = filters(tree).len() - 1;
            filters(tree).insert(index, states);
            plugin(tree, |plugin| {
                plugin["providers"]
                    .as_object_mut()
                    .unwrap()
                    .retain(|name, _| name == "bog")
            });
            routes(tree).retain(|route| {
                !["moyasar", "begateway", "bbmsl"].contains(&route["name"].as_str().unwrap())
            });
        },
    ),
    (
        "lacks: listener refunds: providers.moyasar.api_key is an environment variable",
        |tree| {
            plugin(tree, |plugin| {
                plugin["providers"]["moyasar"]["api_key"] = json!({"env": "canary"});
            })
        },
    ),
    (
        "risk: listener refunds: providers.moyasar.api_key stands in key_values",
        |tree| {
            plugin(tree, |plugin| {
                plugin["providers"]["moyasar"]["api_key"] = json!({"env": "KEY"})
            });
            settings(tree)["vm_config"]["environment_variables"] =
                json!({"key_values": {"KEY": "canary"}});
        },
    ),
    (
        "risk: listener refunds: providers.moyasar.api_key stands in the configuration in clear",
        |tree| {
            plugin(tree, |plugin| {
                plugin["providers"]["moyasar"]["api_key"] = json!({"inline": "canary"});
            })
        },
    ),
    (
        "lacks: listener refunds: nothing gives providers.bbmsl.signing.keys.private_key",
        |tree| {
            by_header(tree);
            without_filter(tree, "refund.bbmsl-key");
        },
    ),
    (
        "lacks: listener refunds: nothing gives providers.bbmsl.signing.keys.private_key",
        |tree| {
            by_header(tree);
            for name in ["refunds", "refunds-preview"] {
                remove(
                    &mut route(tree, name)["typed_per_filter_config"],
                    "refund.bbmsl-key",
                );
            }
        },
    ),
    (
        "risk: listener refunds: a caller can bring providers.moyasar.api_key",
        |tree| {
            by_header(tree);
            let mutations = &mut manager(tree)["early_header_mutation_extensions"][0]["typed_config"]
                ["mutations"];
            mutations.as_array_mut().unwrap().remove(1);
        },
    ),
    ("lacks: node: Envoy does not start", |tree| {
        remove(tree, "node")
    }),
    (
        "lacks: listener refunds: providers get Envoy's x-envoy-* headers",
        |tree| {
            remove(
                &mut filter(tree, "envoy.filters.http.router")["typed_config"],
                "suppress_envoy_headers",
            );
        },
    ),
    (
        "risk: listener refunds: what Envoy answers by itself does not say whether money may have moved (gateway-error, ",
        |tree| {
            remove(manager(tree), "local_reply_config");
        },
    ),
    (
        "risk: listener refunds: what Envoy answers by itself does not say whether money may have moved (provider-timeout)",
        |tree| {
            let mappers = manager(tree)["local_reply_config"]["mappers"]
                .as_array_mut()
                .unwrap();
            mappers.retain(|mapper| {
                mapper["body_format_override"]["json_format"]["code"] != "provider-timeout"
            });
        },
    ),
    (
        "risk: listener refunds: a call with a gRPC content type",
        |tree| {
            without_filter(tree, "envoy.filters.http.lua");
        },
    ),
    ("lacks: listener refunds: there is no access log", |tree| {
        remove(manager(tree), "access_log")
    }),
    (
        "lacks: listener refunds: the access log does not show wasm.refund_key_id",
        |tree| {
            remove(
                &mut manager(tree)["access_log"][0]["typed_config"]["log_format"]["json_format"],
                "key_id",
            );
        },
    ),
    (
        "risk: listener refunds: an access log or a trace shows",
        |tree| {
            let format =
                &mut manager(tree)["access_log"][0]["typed_config"]["log_format"]["json_format"];
            format["team"] = json!("canary %REQ(X-TEAM?Authorization):10%");
        },
    ),
    (
        "risk: listener refunds: an access log or a trace shows",
        |tree| {
            let format =
                &mut manager(tree)["access_log"][0]["typed_config"]["log_format"]["json_format"];
            format["team"] = json!("%FILTER_STATE(refund.bbmsl_key:PLAIN)%");
        },
    ),
    (
        "risk: listener refunds: an access log or a trace shows",
        |tree| {
            traced(tree);
            manager(tree)["tracing"]["custom_tags"] =
                json!([{"tag": "who", "request_header": {"name": "Authorization"}}]);
        },
    ),
    (
        "risk: listener refunds: traces show callers' idempotency keys",
        |tree| {
            traced(tree);
            manager(tree)["tracing"]["max_path_tag_length"] = json!(12);
        },
    ),
    (
        "lacks: listener refunds: the tracer changes callers' request ids",
        |tree| {
            traced(tree);
            remove(manager(tree), "request_id_extension");
        },
    ),
    ("risk: listener refunds: a tap filter", |tree| {
        filters(tree).insert(0, typed("tap", "tap.v3.Tap"))
    }),
    (
        "lacks: stats_config: the filter's figures have no labels provider",
        |tree| {
            tree["stats_config"]["stats_tags"]
                .as_array_mut()
                .unwrap()
                .remove(0);
        },
    ),
    (
        "risk: listener refunds: a caller that counts as internal",
        |tree| remove(manager(tree), "internal_address_config"),
    ),
    (
        "risk: listener refunds: a caller that counts as internal",
        |tree| remove(manager(tree), "use_remote_address"),
    ),
    ("lacks: listener refunds: other spellings", |tree| {
        remove(manager(tree), "merge_slashes")
    }),
    (
        "risk: listener refunds-open: whoever reaches it reads payments and amounts",
        |tree| list(tree)["address"]["socket_address"]["address"] = json!("0.0.0.0"),
    ),
    (
        "risk: listener refunds: open refunds are listed where refunds are made",
        |tree| {
            let list = list(tree)["filter_chains"][0].clone();
            let listeners = tree["static_resources"]["listeners"]
                .as_array_mut()
                .unwrap();
            listeners.pop();
            let chains = listeners[0]["filter_chains"].as_array_mut().unwrap();
            chains.push(list);
        },
    ),
    (
        "lacks: listener refunds-open: the list of open refunds has another vm_id",
        |tree| {
            let filter = format!("{LIST_MANAGER}/http_filters/0/typed_config/config/vm_config");
            list(tree).pointer_mut(&filter).unwrap()["vm_id"] = json!("another");
        },
    ),
    (
        "lacks: route moyasar: it leads to another cluster than `own`",
        |tree| {
            plugin(tree, |plugin| {
                plugin["providers"]["moyasar"]["cluster"] = json!("own")
            })
        },
    ),
    ("lacks: memory: there is no cluster `memory`", |tree| {
        store(tree)["name"] = json!("another");
    }),
    (
        "lacks: cluster memory: the store is spoken to in HTTP",
        |tree| {
            remove(store(tree), "upstream_config");
        },
    ),
    (
        "lacks: cluster memory: a call that follows another one at once",
        |tree| {
            remove(store(tree), "typed_extension_protocol_options");
        },
    ),
    (
        "lacks: cluster memory: nothing finds the store's primary",
        |tree| {
            remove(store(tree), "health_checks");
        },
    ),
    (
        "lacks: cluster memory: while there is no primary a replica is asked",
        |tree| {
            store(tree)["common_lb_config"]["healthy_panic_threshold"] = json!({"value": 50});
        },
    ),
    (
        "risk: cluster memory: without TLS the store's credentials",
        |tree| {
            remove(store(tree), "transport_socket");
        },
    ),
    (
        "risk: cluster memory: any host's certificate is taken for the store's",
        |tree| {
            store(tree)["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
                ["match_typed_subject_alt_names"] = json!([]);
        },
    ),
    (
        "lacks: listener refunds: nothing gives memory.redis.password, so that the shared memory cannot be asked",
        |tree| {
            sharing(tree);
            without_password(tree);
        },
    ),
    (
        "risk: listener refunds: memory.redis.password stands in the configuration in clear",
        |tree| {
            sharing(tree);
            plugin(tree, |plugin| {
                plugin["memory"]["redis"]["password"] = json!({"inline": "canary-password"});
            });
        },
    ),
    ("risk: admin: whoever reaches it", |tree| {
        tree["admin"]["address"]["socket_address"]["address"] = json!("0.0.0.0");
    }),
];

#[test]
fn it_says_one_thing_of_each_omission() {
    for (expected, change) in OMISSIONS {
        let mut tree = tree();
        change(&mut tree);
        let said_of_bootstrap = said(&tree);
        let [found] = said_of_bootstrap.as_slice() else {
            panic!("{expected}: {said_of_bootstrap:#?}");
        };
        assert!(found.starts_with(expected), "{expected}: {found}");
        assert!(!found.contains("canary"), "{found}");
        assert_eq!(said(&dump(&tree)), said_of_bootstrap, "{expected}");
    }
}

#[test]
fn a_list_on_the_network_is_no_risk_where_not_everybody_gets_there() {
    let restrictions: [fn(&mut Value); 3] = [
        |list| {
            list["filter_chains"][0]["transport_socket"] =
                json!({"typed_config": {"require_client_certificate": true}});
        },
        |list| {
            list["filter_chains"][0]["filter_chain_match"] =
                json!({"source_prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 32}]});
        },
        |list| {
            let filters = list
                .pointer_mut(&format!("{LIST_MANAGER}/http_filters"))
                .unwrap();
            let mut jwt = typed("team-jwt", "jwt_authn.v3.JwtAuthentication");
            jwt["typed_config"]["rules"] =
                json!([{"match": {"prefix": "/"}, "requires": {"provider_name": "team"}}]);
            filters.as_array_mut().unwrap().insert(0, jwt);
        },
    ];
    for restrict in restrictions {
        let mut tree = tree();
        let list = list(&mut tree);
        list["address"]["socket_address"]["address"] = json!("0.0.0.0");
        restrict(list);
        assert_eq!(said(&tree), [""; 0]);
    }
}

#[test]
fn a_path_that_the_rest_does_not_know_is_said() {
    let mut tree = tree();
    plugin(&mut tree, |plugin| plugin["path"] = json!("/pay/back"));
    let found = said(&tree);
    for expected in [
        "lacks: listener refunds: no route enables the refund filter for /pay/back,",
        "lacks: listener refunds: no route enables the refund filter for /pay/back/preview,",
        "risk: listener refunds: the mappers of local_reply_config are for another path",
        "risk: listener refunds: a call with a gRPC content type",
    ] {
        assert!(
            found.iter().any(|found| found.starts_with(expected)),
            "{expected}: {found:#?}"
        );
    }
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn one_route_by_a_regular_expression_is_enough_for_the_refunds() {
    let mut tree = tree();
    routes(&mut tree).retain(|route| route["name"] != "refunds-preview");
    route(&mut tree, "refunds")["match"] =
        json!({"safe_regex": {"regex": "/v1/refunds(/preview)?"}});
    assert_eq!(said(&tree), [""; 0]);
}

#[test]
fn an_envoy_with_a_control_plane_has_its_node_from_the_command_line() {
    let mut tree = tree();
    remove(&mut tree, "node");
    tree["dynamic_resources"] = json!({"ads_config": {"api_type": "DELTA_GRPC"}});
    assert_eq!(said(&tree), [""; 0]);
}

#[test]
fn a_teams_own_hosts_and_routes_are_left_alone() {
    let mut tree = tree();
    let theirs = json!({"name": "theirs", "match": {"prefix": "/orders"}, "route": {"cluster": "theirs", "retry_policy": {"retry_on": "5xx"}}});
    routes(&mut tree).insert(0, theirs);
    filters(&mut tree).insert(0, typed("team-jwt", "jwt_authn.v3.JwtAuthentication"));
    let other = json!({"name": "theirs", "domains": ["*.corp", "shop.*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "theirs"}}]});
    manager(&mut tree)["route_config"]["virtual_hosts"]
        .as_array_mut()
        .unwrap()
        .insert(0, other);
    assert_eq!(said(&tree), [""; 0]);
}

/// A run of the program: its status, and all that it printed.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_doctor"))
        .args(arguments)
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

fn run_on(name: &str, text: &str) -> (Option<i32>, String) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, text).unwrap();
    run(&["doctor", file.to_str().unwrap()])
}

#[test]
fn its_status_says_how_it_ended() {
    assert_eq!(run_on("sound", ENVOY_YAML), (Some(0), String::new()));
    let (status, printed) = run_on("minimal", &file("minimal.yaml"));
    assert_eq!((status, printed.lines().count()), (Some(1), 5), "{printed}");
    for (case, text, expected) in [
        (
            "neither",
            "key: [canary\nmore: canary: canary\n",
            "neither JSON nor YAML: see line",
        ),
        (
            "twice",
            "key: canary\nkey: canary\n",
            "neither JSON nor YAML: see line",
        ),
        ("json", "{\"key\": \"canary\"", "neither JSON nor YAML"),
        ("empty", "", "neither"),
        ("another", "key: canary\n", "neither a bootstrap of Envoy"),
        ("listeners", "static_resources: {}\n", "it has no listener"),
        (
            "dump",
            "{\"configs\": [{\"canary\": 1}]}",
            "the /config_dump has no bootstrap",
        ),
    ] {
        let (status, printed) = run_on(case, text);
        assert_eq!(status, Some(2), "{case}: {printed}");
        assert!(
            printed.starts_with("error: ") && printed.contains(expected),
            "{case}: {printed}"
        );
        assert!(!printed.contains("canary"), "{case}: {printed}");
    }
    let (status, printed) = run(&["doctor", "/nowhere/at/all"]);
    assert_eq!(status, Some(2), "{printed}");
}

#[test]
fn it_prints_no_secret() {
    let mut tree = tree();
    plugin(&mut tree, |plugin| {
        let providers = &mut plugin["providers"];
        providers["moyasar"]["api_key"] = json!({"inline": "canary-inline"});
        providers["bog"]["token"]["client_secret"] = json!({"env": "canary-env"});
        providers["begateway"]["secret_key"] = json!({"header": "canary-header"});
        providers["bbmsl"]["signing"]["keys"][0]["private_key"] =
            json!({"filter_state": "canary-state"});
    });
    settings(&mut tree)["vm_config"]["environment_variables"] =
        json!({"key_values": {"canary-env": "canary-value"}});
    for place in ["moyasar", "bog"].map(str::to_owned) {
        let place = route(&mut tree, &place);
        place["request_headers_to_add"] =
            json!([{"header": {"key": "authorization", "value": "Bearer canary-added"}}]);
    }
    let format =
        &mut manager(&mut tree)["access_log"][0]["typed_config"]["log_format"]["json_format"];
    format["team"] = json!("%REQ(canary-header)% canary-text");
    let (status, printed) = run_on("canaries", &tree.to_string());
    assert_eq!(status, Some(1));
    assert!(printed.lines().count() >= 5, "{printed}");
    assert!(!printed.contains("canary"), "{printed}");
}

#[test]
fn of_a_dump_it_names_what_envoy_has_refused_and_a_module_that_could_not_be_pulled() {
    let part = |dump: &mut Value, kind: &str, change: &dyn Fn(&mut Value)| {
        let mut parts = dump["configs"].as_array_mut().unwrap().iter_mut();
        change(
            parts
                .find(|part| part["@type"].as_str().unwrap().ends_with(kind))
                .unwrap(),
        );
    };
    let error = json!({"details": "canary", "failed_configuration": {"name": "x"}});
    let mut refused = dump(&tree());
    part(&mut refused, ".ListenersConfigDump", &|part| {
        part["dynamic_listeners"][0]["name"] = json!("refunds");
        part["dynamic_listeners"][0]["error_state"] = error.clone();
    });
    part(&mut refused, ".EcdsConfigDump", &|part| {
        part["ecds_filters"][0]["error_state"] = error.clone();
    });
    let found = said(&refused);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found[0].starts_with("risk: listener refunds: Envoy has refused"),
        "{found:#?}"
    );
    assert!(
        found[1].starts_with("risk: extension refund_filter: Envoy has refused"),
        "{found:#?}"
    );

    let mut shut = dump(&tree());
    part(&mut shut, ".EcdsConfigDump", &|part| {
        let filter = &mut part["ecds_filters"][0]["ecds_filter"];
        filter["typed_config"] = typed("x", "rbac.v3.RBAC")["typed_config"].clone();
    });
    let found = said(&shut);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("could not be pulled"), "{found:#?}");
}

#[test]
fn of_a_dump_it_names_the_secret_that_has_not_come() {
    let mut tree = tree();
    by_header(&mut tree);
    let mut dump = dump(&tree);
    let come = ["bog-client-secret", "begateway-secret-key", "bbmsl-key"]
        .map(|name| json!({"name": name}));
    dump["configs"].as_array_mut().unwrap().push(
        json!({"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": come}),
    );
    let found = said(&dump);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].contains("providers.moyasar.api_key has not come"),
        "{found:#?}"
    );
}

#[test]
fn every_provider_of_the_registry_is_one_that_the_doctor_knows() {
    // A folder each, beside one file.
    let providers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/providers");
    let folders = std::fs::read_dir(providers).unwrap();
    let folders = folders.map(|folder| folder.unwrap().path());
    for folder in folders.filter(|folder| folder.is_dir()) {
        let kind = folder.file_name().unwrap().to_str().unwrap();
        let mut tree = tree();
        plugin(&mut tree, |plugin| {
            plugin["providers"]["one"] = json!({"kind": kind})
        });
        let said = said(&tree);
        assert!(
            !said.iter().any(|line| line.contains("of no kind")),
            "{kind}: {said:#?}"
        );
    }
}

#[test]
fn an_address_that_others_reach_is_open_only_where_nobody_asks_who_calls() {
    let open = |change: &dyn Fn(&mut Value)| {
        let mut tree = tree();
        listener(&mut tree)["address"]["socket_address"]["address"] = json!("::");
        change(&mut tree);
        let said = said(&tree);
        said.iter()
            .any(|line| line.contains("whoever reaches this"))
    };
    assert!(open(&|_| {}));
    assert!(!open(&|tree| plugin(tree, |plugin| {
        plugin["caller"] = json!({"filter_state": "caller"});
    })));
    // Where it listens.
    assert!(!open(
        &|tree| listener(tree)["address"] = json!({"pipe": {"path": "/run/refunds"}})
    ));
    assert!(open(&|tree| {
        let everywhere = json!({"socket_address": {"address": "0.0.0.0", "port_value": 1}});
        let local = json!({"socket_address": {"address": "127.0.0.1", "port_value": 1}});
        listener(tree)["address"] = local;
        listener(tree)["additional_addresses"] = json!([{"address": everywhere}]);
    }));
    // Who gets to the chain with the filter; another chain's rule is not its own.
    let certificate = json!({"typed_config": {"require_client_certificate": true}});
    assert!(!open(&|tree| {
        listener(tree)["filter_chains"][0]["transport_socket"] = certificate.clone();
    }));
    assert!(open(&|tree| {
        listener(tree)["default_filter_chain"] = json!({"transport_socket": certificate});
    }));
    assert!(!open(&|tree| {
        let range = json!([{"address_prefix": "10.0.0.0", "prefix_len": 8}]);
        listener(tree)["filter_chains"][0]["filter_chain_match"] =
            json!({"source_prefix_ranges": range});
    }));
    // What stands in front of the filter.
    let front = |name: &'static str, config: Value, disabled: bool| {
        move |tree: &mut Value| {
            let mut config = config.clone();
            config["@type"] = json!(format!(
                "type.googleapis.com/envoy.extensions.filters.http.{name}"
            ));
            let filter = json!({"name": "front", "disabled": disabled, "typed_config": config});
            let filters = tree.pointer_mut(MANAGER).unwrap()["http_filters"].as_array_mut();
            filters.unwrap().insert(0, filter);
        }
    };
    let on_refunds = |tree: &mut Value, entry: &Value| {
        let hosts =
            tree.pointer_mut(MANAGER).unwrap()["route_config"]["virtual_hosts"].as_array_mut();
        for host in hosts.unwrap() {
            for route in host["routes"].as_array_mut().unwrap() {
                if route["typed_per_filter_config"]
                    .get("refund_filter")
                    .is_some()
                {
                    route["typed_per_filter_config"]["front"] = entry.clone();
                }
            }
        }
    };
    let jwt = "jwt_authn.v3.JwtAuthentication";
    let rule =
        |requires: Value| json!({"rules": [{"match": {"prefix": "/"}, "requires": requires}]});
    let needed = rule(json!({"provider_name": "corp"}));
    assert!(!open(&front(jwt, needed.clone(), false)));
    assert!(open(&front(jwt, needed.clone(), true)));
    assert!(open(&front(jwt, rule(json!({"allow_missing": {}})), false)));
    assert!(open(&|tree| {
        front(jwt, needed.clone(), false)(tree);
        on_refunds(tree, &json!({"disabled": true}));
    }));
    // As Envoy Gateway has it: another route's requirement is not the refunds' own.
    let named = json!({"requirement_map": {"corp": {"provider_name": "corp"}}});
    assert!(open(&front(jwt, named.clone(), false)));
    assert!(!open(&|tree| {
        front(jwt, named.clone(), false)(tree);
        on_refunds(tree, &json!({"requirement_name": "corp"}));
    }));
    let rbac = "rbac.v3.RBAC";
    assert!(!open(&front(
        rbac,
        json!({"rules": {"policies": {}}}),
        false
    )));
    assert!(open(&front(
        rbac,
        json!({"shadow_rules": {"policies": {}}}),
        false
    )));
    assert!(!open(&front("ext_authz.v3.ExtAuthz", json!({}), false)));
}

fn listener(tree: &mut Value) -> &mut Value {
    &mut tree["static_resources"]["listeners"][0]
}
