//! What the suites know of each provider: a folder each, with what its vendor's page says
//! (`mod.rs`) and that page's examples (`golden/`). The simulators share none of it.

use super::{Counts, Fixture, Shown, TOKEN, decimal, header};

macro_rules! declare {
    ($($name:ident)*) => {
        $(mod $name;)*

        /// One of each provider.
        pub const FIXTURES: &[Fixture] = &[$($name::FIXTURE),*];
    };
}
refund_filter::for_every_provider!(declare);
