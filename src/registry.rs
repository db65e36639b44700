//! The providers: the one list of them.

/// Hands the names of all providers to the macro `$then`: a line each, in the order of the
/// documentation. A name is the word of the configuration, the file `src/provider/NAME.rs` and the
/// folder `tests/providers/NAME/`.
#[macro_export]
macro_rules! for_every_provider {
    ($then:ident) => {
        $then! {
            bog
            moyasar
            begateway
            bbmsl
        }
    };
}
