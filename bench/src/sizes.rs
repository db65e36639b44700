//! How large the module is, and what in it is whose.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use wasmparser::{KnownCustom, Name, Parser, Payload};

use crate::report::Report;

/// The crates of the signer inside the module. (Hashing is needed without it, too.)
const SIGNER: [&str; 14] = [
    "rsa",
    "num_bigint_dig",
    "num_bigint",
    "num_integer",
    "num_traits",
    "num_iter",
    "crypto_bigint",
    "pkcs1",
    "pkcs8",
    "der",
    "spki",
    "const_oid",
    "pem_rfc7468",
    "signature",
];

/// Says what the module weighs, and by an unstripped twin of it, which crate's functions have how much of its code.
pub fn run(report: &mut Report, module: &Path, symbols: &Path) -> Result<()> {
    let total = std::fs::metadata(module)?.len();
    let bytes = std::fs::read(symbols)?;
    let (mut sizes, mut imports, mut data) = (Vec::new(), 0u32, 0u64);
    let mut names = BTreeMap::new();
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload? {
            Payload::ImportSection(section) => imports = section.count(),
            Payload::CodeSectionEntry(body) => sizes.push(body.range().len() as u64),
            Payload::DataSection(section) => data = section.range().len() as u64,
            Payload::CustomSection(section) => {
                if let KnownCustom::Name(subsections) = section.as_known() {
                    for name in subsections {
                        if let Name::Function(functions) = name? {
                            for function in functions {
                                let function = function?;
                                names.insert(function.index, function.name.to_owned());
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let mut by_crate: BTreeMap<String, u64> = BTreeMap::new();
    for (nth, size) in sizes.iter().enumerate() {
        let index = imports + u32::try_from(nth)?;
        let name = names.get(&index).map(String::as_str).unwrap_or_default();
        *by_crate.entry(crate_of(name)).or_default() += size;
    }
    let signer: u64 = SIGNER.iter().filter_map(|name| by_crate.get(*name)).sum();
    let mut rows: Vec<_> = by_crate.into_iter().collect();
    rows.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let kib = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0);
    let mut rows: Vec<_> = rows
        .into_iter()
        .take(12)
        .map(|(name, size)| vec![name, kib(size)])
        .collect();
    rows.push(vec!["data".into(), kib(data)]);
    rows.push(vec![
        "the signer inside the module, all its crates".into(),
        kib(signer),
    ]);
    rows.push(vec!["the module, stripped".into(), kib(total)]);
    report.section(
        "Size of the module",
        "By the crate in whose name a function stands; what is inlined counts where it is. In KiB.",
    );
    report.table(&["", "KiB"], &rows);
    report.keep("module_bytes", total);
    report.keep("signer_bytes", signer);
    report.at_most("size of the module", 400.0, "KiB", total as f64 / 1024.0);
    Ok(())
}

/// The crate of a function: the first word of its path, or of its type's where it is one of a trait's.
fn crate_of(symbol: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(symbol));
    let name = name.trim_start_matches(['<', '&', '*', '[', '(']);
    let name = name
        .strip_prefix("mut ")
        .or(name.strip_prefix("dyn "))
        .unwrap_or(name);
    let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    match name.get(..end.unwrap_or(name.len())) {
        Some(first) if name.contains("::") && !first.is_empty() => first.to_owned(),
        _ => "other".to_owned(),
    }
}
