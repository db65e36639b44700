//! A provider that `./build.sh new-provider` has laid out is none before all of it is written.

use std::path::{Path, PathBuf};

/// Where the templates leave something open.
const MARK: &str = "TO BE WRITTEN";

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, out),
            false => out.push(path),
        }
    }
}

#[test]
fn nothing_of_a_provider_is_still_to_be_written() {
    let project = Path::new(crate::PROJECT);
    let mut paths = Vec::new();
    for folder in [
        "src/provider",
        "tests/providers",
        "tests/simulator/src/provider",
    ] {
        files(&project.join(folder), &mut paths);
    }
    paths.sort();
    let mut open = Vec::new();
    for path in paths {
        let name = path.strip_prefix(project).unwrap().display().to_string();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let lines = text.lines().enumerate();
        open.extend(lines.filter_map(|(number, line)| {
            let (_, what) = line.split_once(MARK)?;
            Some(format!("{name}:{}{what}", number + 1))
        }));
    }
    assert!(open.is_empty(), "still to be written:\n{}", open.join("\n"));
}
