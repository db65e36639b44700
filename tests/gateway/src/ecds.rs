//! The filter's configuration by Envoy's extension configuration discovery (ECDS), from a file that
//! a run replaces.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Gateway;

const NAME: &str = "refund_filter";
const FILTERS: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";
const MODULE: &str = "/resources/0/typed_config/config/vm_config/code/local/filename";
const PLUGIN: &str = "/resources/0/typed_config/config/configuration/value";

/// Takes the filter out of Envoy's configuration, and has Envoy find it in a file in this folder.
/// The file is made, unless another gateway has made it.
pub(crate) fn discover(config: &mut Value, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let filter = config
        .pointer_mut(FILTERS)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .find(|filter| filter["name"] == NAME)
        .context("envoy.yaml has no refund_filter")?;
    let discovered = json!({
        "name": NAME,
        "disabled": true,
        "config_discovery": {
            "config_source": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": folder.join("filter.json"),
                    "watched_directory": {"path": folder},
                },
            },
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
        },
    });
    let typed_config = std::mem::replace(filter, discovered)["typed_config"].take();
    if folder.join("filter.json").exists() {
        return Ok(());
    }
    let resources = json!({
        "version_info": "1",
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": NAME,
            "typed_config": typed_config,
        }],
    });
    put(folder, &resources)
}

impl Gateway {
    /// The plugin configuration that was pushed last.
    pub fn plugin(&self) -> Result<Value> {
        let file = read(&self.ecds_folder())?;
        let text = file.pointer(PLUGIN).and_then(Value::as_str);
        Ok(serde_json::from_str(
            text.context("there is no plugin configuration")?,
        )?)
    }

    /// Pushes a plugin configuration, to every gateway of this folder, as an operator must: a new
    /// file, moved into place. Needs [`crate::Options::ecds`].
    pub fn push(&self, plugin: &Value) -> Result<()> {
        self.change(PLUGIN, json!(plugin.to_string()))
    }

    /// Has every gateway of this folder go on with another module. Needs [`crate::Options::ecds`].
    pub fn upgrade(&self, module: &Path) -> Result<()> {
        self.change(MODULE, json!(module))
    }

    fn change(&self, pointer: &str, value: Value) -> Result<()> {
        let mut file = read(&self.ecds_folder())?;
        *file
            .pointer_mut(pointer)
            .with_context(|| format!("there is no {pointer}"))? = value;
        let version = file["version_info"].as_str().and_then(|v| v.parse().ok());
        file["version_info"] = json!((version.unwrap_or(0u64) + 1).to_string());
        put(&self.ecds_folder(), &file)
    }
}

fn read(folder: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(
        folder.join("filter.json"),
    )?)?)
}

fn put(folder: &Path, file: &Value) -> Result<()> {
    let draft = folder.join(".filter.json.part");
    std::fs::write(&draft, file.to_string())?;
    Ok(std::fs::rename(draft, folder.join("filter.json"))?)
}
