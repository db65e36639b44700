//! Every input of the corpora, and every one that once failed, without a fuzzer: this needs no
//! nightly toolchain.

use std::fs;
use std::path::Path;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 9] = [
    ("call", fuzz_properties::call::check),
    ("reply", fuzz_properties::reply::check),
    ("look_up", fuzz_properties::look_up::check),
    ("query", fuzz_properties::query::check),
    ("configuration", fuzz_properties::configuration::check),
    ("money", fuzz_properties::money::check),
    ("key", fuzz_properties::key::check),
    ("token", fuzz_properties::token::check),
    ("exchange", fuzz_properties::exchange::check),
];

#[test]
fn every_input_that_was_ever_kept_holds() {
    let mut failed = Vec::new();
    for (name, check) in TARGETS {
        let folder = Path::new("../../fuzz/corpus").join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let mut count = 0;
        for file in files {
            let path = file.expect("a file").path();
            let bytes = fs::read(&path).expect("its bytes");
            if std::panic::catch_unwind(|| check(&bytes)).is_err() {
                failed.push(path);
            }
            count += 1;
        }
        assert!(count > 0, "{folder:?} is empty");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
