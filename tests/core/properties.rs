//! How properties are tested.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::FileFailurePersistence;

/// So many cases, or an eighth without `WHOLE_MODEL`: enough to see while one edits. What fails is
/// kept beside the test, as `NAME.regressions`, and tried first from then on: it belongs into the
/// commit that mends it.
pub fn cases(cases: u32) -> ProptestConfig {
    let whole = std::env::var_os("WHOLE_MODEL").is_some();
    ProptestConfig {
        cases: if whole { cases } else { cases.div_ceil(8) },
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}
