//! A registry of images on loopback, and images of modules as `./build.sh image` makes them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Cluster, Running, program, wait_for};

/// Where it listens.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// A running registry. Dropping it ends it; what was pushed stays.
pub struct Registry(#[allow(dead_code, reason = "kept, since dropping it ends it")] Running);

impl Registry {
    /// Starts it.
    pub async fn start(cluster: &Cluster) -> Result<Registry> {
        let config = json!({
            "version": "0.1", "http": {"addr": ADDRESS},
            "storage": {"filesystem": {"rootdirectory": cluster.file("registry")}},
        });
        let file = cluster.file("registry.yml");
        std::fs::write(&file, config.to_string())?;
        let registry = Running::start(
            Command::new(program("docker-registry")?)
                .arg("serve")
                .arg(file),
            &cluster.file("registry.log"),
        )?;
        let up = || async { reqwest::get(format!("http://{ADDRESS}/v2/")).await.is_ok() };
        wait_for("the registry", up).await?;
        Ok(Registry(registry))
    }

    /// Pushes the image of a module, and gives its name with its digest.
    pub async fn push(&self, cluster: &Cluster, module: &Path) -> Result<String> {
        let layout = cluster.file("image");
        let made = Command::new(program("oci-image")?)
            .arg(module)
            .arg(&layout)
            .args(["0.1.0", "Apache-2.0"])
            .output()
            .await?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let digest = String::from_utf8(made.stdout)?.trim().to_owned();
        let blob = |digest: &str| -> Result<Vec<u8>> {
            Ok(std::fs::read(
                layout.join("blobs").join(digest.replacen(':', "/", 1)),
            )?)
        };
        let client = reqwest::Client::new();
        let base = format!("http://{ADDRESS}/v2/refund-filter");
        let manifest = blob(&digest)?;
        let parts: Value = serde_json::from_slice(&manifest)?;
        let layers = parts["layers"].as_array().into_iter().flatten();
        for part in layers.chain([&parts["config"]]) {
            let digest = part["digest"].as_str().context("a part without a digest")?;
            let upload = client.post(format!("{base}/blobs/uploads/")).send().await?;
            let location = upload
                .headers()
                .get("location")
                .context("no upload")?
                .to_str()?;
            let sent = client
                .put(format!("{location}&digest={digest}"))
                .header("content-type", "application/octet-stream")
                .body(blob(digest)?)
                .send()
                .await?;
            ensure!(sent.status() == 201, "{sent:?}");
        }
        let kind = parts["mediaType"].as_str().context("no media type")?;
        let sent = client
            .put(format!("{base}/manifests/{digest}"))
            .header("content-type", kind)
            .body(manifest)
            .send()
            .await?;
        ensure!(sent.status() == 201, "{sent:?}");
        Ok(format!("{ADDRESS}/refund-filter@{digest}"))
    }
}
