//! A software bill of materials of the module, as CycloneDX 1.5 (ECMA-424's JSON).
//!
//! It has what `cargo tree` says is linked in, so neither procedural macros nor what only builds.
//! No times, no serial number and no paths: the same bytes for every checkout.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Reads `cargo tree --prefix none --format '{p}|{l}'` on stdin and prints the bill of materials.
#[derive(Parser)]
struct Arguments {
    /// The module.
    module: PathBuf,
    /// The lock file, of which the checksums are.
    lock: PathBuf,
    /// The package of the module, which is what the bill is of.
    package: String,
    /// The compiler's version.
    rustc: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut tree = String::new();
    std::io::stdin().read_to_string(&mut tree)?;
    let lock = std::fs::read_to_string(&arguments.lock)
        .with_context(|| format!("{} cannot be read", arguments.lock.display()))?;
    let module = std::fs::read(&arguments.module)
        .with_context(|| format!("{} cannot be read", arguments.module.display()))?;
    let bill = bill(&arguments, &tree, &lock, &module)?;
    writeln!(std::io::stdout(), "{bill:#}")?;
    Ok(())
}

fn bill(arguments: &Arguments, tree: &str, lock: &str, module: &[u8]) -> Result<Value> {
    let locked: Lock = toml::from_str(lock)?;
    let checksums: BTreeMap<_, _> = locked
        .package
        .into_iter()
        .map(|package| ((package.name, package.version), package.checksum))
        .collect();
    let mut own = None;
    let mut components = Vec::new();
    let crates: BTreeSet<_> = tree.lines().filter(|line| !line.is_empty()).collect();
    for line in crates {
        let (name, version, licence) = read(line)?;
        if name == arguments.package {
            own = Some((version, licence));
            continue;
        }
        let checksum = checksums
            .get(&(name.to_owned(), version.to_owned()))
            .and_then(Option::as_ref)
            .with_context(|| format!("{name} {version} has no checksum in the lock file"))?;
        let reference = format!("pkg:cargo/{name}@{version}");
        components.push(json!({
            "type": "library", "name": name, "version": version, "bom-ref": reference, "purl": reference,
            "licenses": [{"expression": licence}],
            "hashes": [{"alg": "SHA-256", "content": checksum}],
        }));
    }
    let (version, licence) =
        own.with_context(|| format!("{} is not in the tree", arguments.package))?;
    let digest: String = Sha256::digest(module)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {
            "type": "library", "name": arguments.package, "version": version, "licenses": [{"expression": licence}],
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "properties": [{"name": "rustc", "value": arguments.rustc}],
        }},
        "components": components,
    }))
}

/// A line of the tree: `NAME vVERSION (its path, or a note)|LICENCE`. The form `A/B` is older than
/// SPDX's own.
fn read(line: &str) -> Result<(&str, &str, String)> {
    let parts = || {
        let (package, licence) = line.rsplit_once('|')?;
        let mut words = package.split(' ');
        Some((words.next()?, words.next()?.strip_prefix('v')?, licence))
    };
    let (name, version, licence) = parts().with_context(|| format!("`{line}` is no crate"))?;
    anyhow::ensure!(!licence.is_empty(), "{name} {version} names no licence");
    Ok((name, version, licence.replace('/', " OR ")))
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    checksum: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "[[package]]\nname = \"own\"\nversion = \"1.0.0\"\n\n\
        [[package]]\nname = \"serde\"\nversion = \"1.2.3\"\nchecksum = \"ab\"\n";

    fn of(tree: &str) -> Result<Value> {
        let arguments = Arguments::parse_from(["sbom", "module", "lock", "own", "1.95.0"]);
        bill(&arguments, tree, LOCK, b"\0asm")
    }

    #[test]
    fn each_crate_stands_once_with_its_checksum_and_licence() {
        let bill = of(
            "own v1.0.0 (/a checkout)|Apache-2.0\nserde v1.2.3|MIT/Apache-2.0\nserde v1.2.3|MIT/Apache-2.0\n",
        );
        let bill = bill.unwrap();
        let own = &bill["metadata"]["component"];
        assert_eq!(own["name"], "own");
        // By sha256sum.
        assert_eq!(
            own["hashes"][0]["content"],
            "cd5d4935a48c0672cb06407bb443bc0087aff947c6b864bac886982c73b3027f"
        );
        assert_eq!(
            bill["components"],
            json!([{
                "type": "library", "name": "serde", "version": "1.2.3", "bom-ref": "pkg:cargo/serde@1.2.3",
                "purl": "pkg:cargo/serde@1.2.3", "licenses": [{"expression": "MIT OR Apache-2.0"}],
                "hashes": [{"alg": "SHA-256", "content": "ab"}],
            }])
        );
        assert!(!bill.to_string().contains("/a checkout"));
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for tree in [
            "serde v1.2.3|MIT\n",
            "own v1.0.0|MIT\nother v1.0.0|MIT\n",
            "own v1.0.0|\n",
            "own\n",
        ] {
            assert!(of(tree).is_err(), "{tree}");
        }
    }
}
