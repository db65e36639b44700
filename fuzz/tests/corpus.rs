//! Every input of the corpora, and every one that once failed, without a fuzzer: this needs no
//! nightly toolchain.

use std::fs;
use std::path::Path;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 9] = [
    ("call", refund_filter_fuzz::call::check),
    ("reply", refund_filter_fuzz::reply::check),
    ("look_up", refund_filter_fuzz::look_up::check),
    ("query", refund_filter_fuzz::query::check),
    ("configuration", refund_filter_fuzz::configuration::check),
    ("money", refund_filter_fuzz::money::check),
    ("key", refund_filter_fuzz::key::check),
    ("token", refund_filter_fuzz::token::check),
    ("exchange", refund_filter_fuzz::exchange::check),
];

#[test]
fn every_input_that_was_ever_kept_holds() {
    let mut failed = Vec::new();
    for (name, check) in TARGETS {
        let folder = Path::new("corpus").join(name);
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
