//! A bootstrap or a `/config_dump`, brought into one shape.

use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{list, text};

/// What Envoy was given, wherever it came from.
pub struct Envoy {
    /// The bootstrap itself: node, admin, figures.
    pub bootstrap: Value,
    /// The listeners, static and discovered.
    pub listeners: Vec<Value>,
    /// The clusters, static and discovered.
    pub clusters: Vec<Value>,
    /// The route configurations by RDS.
    pub routes: Vec<Value>,
    /// The configurations of extensions by ECDS.
    pub extensions: Vec<Value>,
    /// The names of the secrets that have come by SDS, where a dump tells.
    pub secrets: Option<Vec<String>>,
    /// What Envoy has refused the newest configuration of, by kind and name.
    pub refused: Vec<String>,
}

impl Envoy {
    /// The configuration that ships, read once.
    pub fn reference() -> Result<&'static Self> {
        static READ: OnceLock<Envoy> = OnceLock::new();
        if let Some(read) = READ.get() {
            return Ok(read);
        }
        let read = Self::read(crate::ENVOY_YAML)?;
        Ok(READ.get_or_init(|| read))
    }

    /// Reads it from text. No error shows the text: there can be secrets in it.
    pub fn read(text: &str) -> Result<Self> {
        let tree: Value = match serde_json::from_str(text) {
            Ok(tree) => tree,
            Err(_) => serde_saphyr::from_str(text).map_err(|error| match error.location() {
                Some(at) => anyhow::anyhow!(
                    "it is neither JSON nor YAML: see line {}, column {}",
                    at.line(),
                    at.column()
                ),
                None => anyhow::anyhow!("it is neither JSON nor YAML"),
            })?,
        };
        let envoy = if tree.get("configs").is_some() {
            Self::of_dump(&tree)?
        } else if tree.get("static_resources").is_some() || tree.get("dynamic_resources").is_some()
        {
            Envoy {
                listeners: owned(list(&tree, "/static_resources/listeners")),
                clusters: owned(list(&tree, "/static_resources/clusters")),
                routes: Vec::new(),
                extensions: Vec::new(),
                secrets: None,
                refused: Vec::new(),
                bootstrap: tree,
            }
        } else {
            bail!("it is neither a bootstrap of Envoy (no static_resources) nor a /config_dump");
        };
        ensure!(
            !envoy.listeners.is_empty(),
            "it has no listener: where listeners are discovered, give the running Envoy's whole /config_dump"
        );
        Ok(envoy)
    }

    fn of_dump(dump: &Value) -> Result<Self> {
        let part =
            |name: &str| list(dump, "/configs").find(|part| text(part, "/@type").ends_with(name));
        let all = |name: &str, places: &[(&str, &str)]| -> Vec<Value> {
            let of = |(items, inner): &(&str, &str)| {
                let items = part(name).map(|part| owned(list(part, items)));
                let inner = (*inner).to_owned();
                let items = items.into_iter().flatten();
                items.filter_map(move |item| item.pointer(&inner).cloned())
            };
            places.iter().flat_map(of).collect()
        };
        let bootstrap = part(".BootstrapConfigDump").and_then(|part| part.get("bootstrap"));
        Ok(Envoy {
            bootstrap: bootstrap
                .context("the /config_dump has no bootstrap: take it whole")?
                .clone(),
            listeners: all(
                ".ListenersConfigDump",
                &[
                    ("/static_listeners", "/listener"),
                    ("/dynamic_listeners", "/active_state/listener"),
                ],
            ),
            clusters: all(
                ".ClustersConfigDump",
                &[
                    ("/static_clusters", "/cluster"),
                    ("/dynamic_active_clusters", "/cluster"),
                ],
            ),
            routes: all(
                ".RoutesConfigDump",
                &[("/dynamic_route_configs", "/route_config")],
            ),
            extensions: all(".EcdsConfigDump", &[("/ecds_filters", "/ecds_filter")]),
            secrets: part(".SecretsConfigDump").map(|part| {
                let known = list(part, "/dynamic_active_secrets");
                known
                    .map(|secret| text(secret, "/name").to_owned())
                    .collect()
            }),
            refused: refused(dump),
        })
    }
}

fn owned<'a>(items: impl Iterator<Item = &'a Value>) -> Vec<Value> {
    items.cloned().collect()
}

/// A discovered resource with an `error_state`: Envoy goes on with an older one, or has none.
fn refused(dump: &Value) -> Vec<String> {
    const DISCOVERED: [(&str, &str, &[&str]); 3] = [
        ("listener", "/dynamic_listeners", &["/name"]),
        (
            "cluster",
            "/dynamic_warming_clusters",
            &["/cluster/name", "/error_state/failed_configuration/name"],
        ),
        (
            "extension",
            "/ecds_filters",
            &[
                "/ecds_filter/name",
                "/error_state/failed_configuration/name",
            ],
        ),
    ];
    let of = |(kind, items, names): &(&str, &'static str, &'static [&str])| {
        let kind = (*kind).to_owned();
        let (items, names) = (*items, *names);
        let items = list(dump, "/configs").flat_map(move |part| list(part, items));
        let failed = items.filter(|item| item.get("error_state").is_some());
        failed.map(move |item| {
            let mut names = names.iter().map(|name| text(item, name));
            let name = names
                .find(|name| !name.is_empty())
                .unwrap_or("without a name");
            format!("{kind} {name}")
        })
    };
    DISCOVERED.iter().flat_map(of).collect()
}
