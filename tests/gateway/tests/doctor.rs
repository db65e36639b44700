//! What the doctor says of a running Envoy, and what Envoy says of the configurations for chosen
//! providers.

use crate::common::{FOUR, secrets};
use anyhow::{Context, Result, ensure};
use gateway_testbed::{
    Gateway, Options, Provider, SecretsBy, change_each, change_plugin, cluster, envoy, module,
    project, route_mut,
};
use refund_doctor::examine;
use refund_doctor::start::{self, Variant};
use refund_filter::config::Config;
use serde_json::{Value, json};

const LISTENER: &str = "/static_resources/listeners/0";
const MANAGER: &str = "/filter_chains/0/filters/0/typed_config";

/// What the doctor says of this gateway's bootstrap, and of what its Envoy dumps.
async fn said(gateway: &Gateway) -> Result<[Vec<String>; 2]> {
    let bootstrap = std::fs::read_to_string(gateway.folder().join("envoy.json"))?;
    let dump = gateway.admin("/config_dump").await?;
    let lines = |text: &str| -> Result<Vec<String>> {
        Ok(examine(text)?.iter().map(ToString::to_string).collect())
    };
    Ok([lines(&bootstrap)?, lines(&dump)?])
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_nothing_to_say_of_the_gateway() -> Result<()> {
    let gateway = Gateway::start(Options::alone()).await?;
    assert_eq!(said(&gateway).await?, [[""; 0]; 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_discovered_is_read_from_the_dump() -> Result<()> {
    let options = Options {
        ecds: true,
        ..Options::alone()
    };
    let [bootstrap, dump] = said(&Gateway::start(options).await?).await?;
    assert_eq!(dump, [""; 0]);
    assert_eq!(bootstrap.len(), 1, "{bootstrap:#?}");
    assert!(
        bootstrap[0].contains("configuration is not in here"),
        "{bootstrap:#?}"
    );
    Ok(())
}

/// What can be forgotten so that Envoy starts all the same.
fn forget(config: &mut Value) {
    config["stats_config"].take();
    let listener = config.pointer_mut(LISTENER).expect("the listener");
    listener["per_connection_buffer_limit_bytes"] = json!(32768);
    let manager = listener.pointer_mut(MANAGER).expect("the manager");
    for member in [
        "access_log",
        "local_reply_config",
        "use_remote_address",
        "merge_slashes",
    ] {
        manager.as_object_mut().expect("an object").remove(member);
    }
    let filters = manager["http_filters"].as_array_mut().expect("filters");
    filters.retain(|filter| filter["name"] != "refund_route_guard");
    for filter in filters {
        filter["disabled"] = json!(false);
        if filter["name"] == "refund_filter" {
            filter["typed_config"]["config"]["failure_policy"].take();
            filter["typed_config"]["config"]["vm_config"]["vm_id"].take();
        }
    }
    let route = route_mut(config, "moyasar").expect("the route");
    route["route"]["retry_policy"] = json!({"retry_on": "5xx"});
    route
        .as_object_mut()
        .expect("a route")
        .remove("request_headers_to_remove");
    for cluster in config["static_resources"]["clusters"]
        .as_array_mut()
        .expect("clusters")
    {
        cluster["circuit_breakers"].take();
        let options = cluster["typed_extension_protocol_options"].as_object_mut();
        for options in options.expect("options").values_mut() {
            options["upstream_http_protocol_options"]["auto_san_validation"] = json!(false);
            options["http_filters"].take();
        }
    }
    change_plugin(config, |plugin| {
        plugin["providers"]["moyasar"]["api_key"] = json!({"inline": "canary-inline"});
    })
    .expect("the plugin's configuration");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_the_same_of_a_bootstrap_and_of_its_dump() -> Result<()> {
    let gateway = Gateway::start(Options {
        alone: true,
        ..Options::changed(forget)
    })
    .await?;
    let [bootstrap, dump] = said(&gateway).await?;
    assert_eq!(bootstrap, dump);
    // The listener's, the route's, those of the clusters with refunds, of all clusters, of the two
    // with calls of the filter's own, and the figures.
    assert_eq!(
        bootstrap.len(),
        10 + 2 + FOUR.len() + Provider::ALL.len() + 2 + 1,
        "{bootstrap:#?}"
    );
    assert!(
        !bootstrap.iter().any(|line| line.contains("canary")),
        "{bootstrap:#?}"
    );
    Ok(())
}

/// Whether the core takes what the filter is configured with, wherever it stands in this file.
fn the_filter_takes(text: &str) -> Result<()> {
    let mut envoy: Value = serde_saphyr::from_str(text)?;
    let mut plugins = Vec::new();
    change_each(&mut envoy, &mut |value| {
        if value.get("vm_config").is_some() {
            plugins.push(value["configuration"]["value"].take());
        }
    });
    ensure!(!plugins.is_empty(), "there is no filter");
    for plugin in plugins {
        let plugin = plugin.as_str().context("no text")?;
        let read = Config::read(plugin.as_bytes(), &|_| None);
        ensure!(read.is_ok(), "{read:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_the_configurations_for_chosen_providers() -> Result<()> {
    if SecretsBy::of_this_envoy() != SecretsBy::FilterState {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    secrets().put(folder.path())?;
    // What the files beside envoy.yaml name besides.
    for name in [
        "openbao-token",
        "memory-password",
        "moyasar-authorization",
        "begateway-authorization",
    ] {
        let known = std::fs::read_to_string(folder.path().join("moyasar-api-key.yaml"))?;
        let other = known.replace("moyasar-api-key", name);
        std::fs::write(folder.path().join(format!("{name}.yaml")), other)?;
    }
    let secrets = folder.path().to_str().context("a path that is no text")?;
    // Envoy compiles the filter for two seconds. So it reads two of the configurations with the filter, and the others with a
    // module that takes what it is given; what the filter says of its own part, the core says of each.
    let filter = module()?;
    let other = project().join("dist/trap_module.wasm");
    let all = FOUR.map(cluster);
    let (usual, two) = (Variant::default(), ["moyasar", "bbmsl"]);
    let by_header = Variant {
        by_header: true,
        ..usual
    };
    let transit = Variant {
        transit: true,
        ..usual
    };
    let injected = Variant {
        injected: true,
        ..usual
    };
    let open_list = Variant {
        open_list: true,
        ..usual
    };
    let memory = Variant {
        memory: true,
        ..usual
    };
    let all_at_once = Variant {
        transit: true,
        injected: true,
        open_list: true,
        ..memory
    };
    for (chosen, path, variant) in [
        (["bog"].as_slice(), "/v1/refunds", usual),
        (&["moyasar"], "/pay/back", usual),
        (&two, "/v1/refunds", usual),
        (&["begateway", "bbmsl"], "/v1/refunds", usual),
        (&all, "/pay/back", usual),
        (&all, "/v1/refunds", by_header),
        (&two, "/v1/refunds", by_header),
        (&all, "/v1/refunds", transit),
        (&["bbmsl"], "/pay/back", transit),
        (&all, "/v1/refunds", injected),
        (&["moyasar"], "/v1/refunds", injected),
        (&two, "/pay/back", open_list),
        (
            &["moyasar", "begateway"],
            "/v1/refunds",
            Variant {
                injected: true,
                ..memory
            },
        ),
        (&all, "/pay/back", all_at_once),
    ] {
        let text = start::write(chosen, path, variant)?;
        the_filter_takes(&text).with_context(|| format!("{chosen:?}, {variant:?}"))?;
        let by_the_filter =
            chosen.len() == FOUR.len() && (variant == usual || variant == all_at_once);
        let module = if by_the_filter { &filter } else { &other };
        let module = module.to_str().context("a path that is no text")?;
        let text = text
            .replace("/etc/refund-filter/secrets", secrets)
            .replace("dist/refund_filter.wasm", module);
        let file = folder.path().join("envoy.yaml");
        std::fs::write(&file, text)?;
        let mut run = tokio::process::Command::new(envoy()?);
        let run = run.args(["--mode", "validate", "-c"]).arg(&file);
        let output = run.output().await?;
        ensure!(
            output.status.success(),
            "{chosen:?}, {variant:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
