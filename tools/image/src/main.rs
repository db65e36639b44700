//! The module as an OCI image layout.
//!
//! Istio's agent, Envoy Gateway, containerd's image volumes and cosign all take this one form: a
//! single manifest (pinned by digest, both meshes refuse an index), one `tar+gzip` layer, last and
//! only, with a file `plugin.wasm`. The compressor comes with the lock file and no time goes in, so
//! every machine makes the same digest.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The time of everything in the image.
const EPOCH: &str = "1970-01-01T00:00:00Z";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Writes an OCI image layout with the module in it, and prints the manifest's digest.
#[derive(Parser)]
struct Arguments {
    /// The module.
    module: PathBuf,
    /// The folder of the layout; what is there goes.
    folder: PathBuf,
    /// The version, which is also the tag.
    version: String,
    /// The licence, as SPDX writes it.
    licence: String,
    /// The address of the source, where it is published.
    #[arg(long)]
    source: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let digest = write(&arguments)?;
    writeln!(std::io::stdout(), "{digest}")?;
    Ok(())
}

fn write(arguments: &Arguments) -> Result<String> {
    let path = &arguments.module;
    let module = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(
        module.starts_with(b"\0asm"),
        "{} is no WebAssembly module",
        path.display()
    );
    let folder = &arguments.folder;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let layer = layer(&module)?;
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(&layer)?;
    let compressed = blob(
        folder,
        "application/vnd.oci.image.layer.v1.tar+gzip",
        &gzip.finish()?,
    )?;
    let mut labels = json!({
        "org.opencontainers.image.title": "refund-filter",
        "org.opencontainers.image.version": arguments.version,
        "org.opencontainers.image.licenses": arguments.licence,
    });
    if let Some(source) = &arguments.source {
        labels["org.opencontainers.image.source"] = json!(source);
    }
    // Every node takes it: nothing in it is for one architecture, and both meshes ask for
    // linux/amd64 whatever they run on.
    let config = json!({
        "created": EPOCH, "architecture": "amd64", "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        "history": [{"created": EPOCH, "created_by": "refund-filter"}],
    });
    let config = blob(
        folder,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    )?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [compressed], "annotations": labels,
    });
    let mut manifest = blob(folder, MANIFEST, manifest.to_string().as_bytes())?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": arguments.version});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(digest)
}

/// The layer: a tar of one file.
fn layer(module: &[u8]) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(u64::try_from(module.len())?);
    header.set_mode(0o444);
    header.set_mtime(0);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, "plugin.wasm", module)?;
    Ok(tar.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// Writes a blob, and describes it.
fn blob(folder: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let name = digest.trim_start_matches("sha256:");
    fs::write(blobs.join(name), bytes)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test that panics has failed"
    )]

    use std::io::Read as _;

    use super::*;

    fn image(folder: &Path) -> String {
        let module = folder.join("module.wasm");
        fs::write(&module, b"\0asm, and what follows").unwrap();
        let arguments = Arguments {
            module,
            folder: folder.join("image"),
            version: "1.2.3".to_owned(),
            licence: "Apache-2.0".to_owned(),
            source: None,
        };
        write(&arguments).unwrap()
    }

    fn read(folder: &Path, digest: &Value) -> Vec<u8> {
        let name = digest.as_str().unwrap().replace(':', "/");
        fs::read(folder.join("image/blobs").join(name)).unwrap()
    }

    #[test]
    fn the_image_has_one_manifest_with_one_layer_that_holds_the_module() {
        let folder = tempfile::tempdir().unwrap();
        let printed = image(folder.path());
        let index = fs::read(folder.path().join("image/index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
        assert_eq!(index["manifests"][0]["digest"], *printed);
        let manifest = read(folder.path(), &index["manifests"][0]["digest"]);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        let layer = read(folder.path(), &manifest["layers"][0]["digest"]);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer.as_slice()));
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap(), Path::new("plugin.wasm"));
        let mut module = Vec::new();
        entry.read_to_end(&mut module).unwrap();
        assert!(module.starts_with(b"\0asm"));
    }

    #[test]
    fn the_same_module_makes_the_same_digest_every_time() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(image(one.path()), image(other.path()));
        // In the same folder again: what was there goes.
        assert_eq!(image(one.path()), image(other.path()));
    }
}
