//! The modules form layers: none imports from its own layer or from one above it.
//! docs/architecture.md draws them.

use std::collections::BTreeSet;
use std::path::Path;

/// From the top. What is in a folder belongs to the module of that name.
const LAYERS: &[&[&str]] = &[
    &["filter"],
    &["worker"],
    &["host", "exchange"],
    &["look_up", "token"],
    &["call"],
    &["config"],
    &["provider"],
    &["credentials"],
    &["signing", "refund", "idempotency", "url"],
    &["guard", "money", "text", "authorization", "reader"],
    &["redis"],
    &[
        "caller", "clock", "secret", "json", "headers", "memory", "rsa_key",
    ],
    &["problem", "registry"],
];

/// The modules that this source names by `crate::`.
fn imports(source: &str) -> BTreeSet<&str> {
    let named = source.split("crate::").skip(1);
    named
        .filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_')?;
            Some(&rest[..end])
        })
        .collect()
}

fn sources(folder: &Path, out: &mut Vec<(String, String)>) {
    let src = Path::new(crate::PROJECT).join("src");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
            continue;
        }
        let inner = path.strip_prefix(&src).unwrap().with_extension("");
        let module = inner.iter().next().unwrap().to_str().unwrap().to_owned();
        out.push((module, std::fs::read_to_string(&path).unwrap()));
    }
}

#[test]
fn no_module_imports_from_its_own_layer_or_from_one_above() {
    let layer = |module: &str| {
        let place = LAYERS.iter().position(|layer| layer.contains(&module));
        place.unwrap_or_else(|| panic!("{module} is in no layer: give it one"))
    };
    let mut files = Vec::new();
    sources(&Path::new(crate::PROJECT).join("src"), &mut files);
    let mut known = BTreeSet::new();
    for (module, source) in &files {
        if module == "lib" {
            continue;
        }
        known.insert(module.as_str());
        for import in imports(source) {
            // What stands at the crate's root is no module.
            if import == module
                || import == "json_text"
                || import == "for_every_provider"
                || import.is_empty()
            {
                continue;
            }
            assert!(
                layer(import) > layer(module),
                "{module} imports {import}, which is not below it"
            );
        }
    }
    let drawn: BTreeSet<&str> = LAYERS.iter().copied().flatten().copied().collect();
    assert_eq!(known, drawn);
}
