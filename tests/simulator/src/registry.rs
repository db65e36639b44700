//! The simulated providers: the one list of them.

/// Hands all providers to the macro `$then`, in the order of the vendor pages: the file
/// `provider/NAME.rs`, the server that refunds, and the servers that stand beside it.
macro_rules! for_every_provider {
    ($then:ident) => {
        $then! {
            bog: Bog BogToken,
            moyasar: Moyasar,
            begateway: Begateway,
            bbmsl: Bbmsl,
        }
    };
}
pub(crate) use for_every_provider;
