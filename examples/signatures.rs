//! The module's own signer without a host, for signatures.mjs to time in Node, whose V8 is Envoy's.
//!
//! It is built as the module is, by the same profile, for a WebAssembly that needs no host at all.

#![allow(missing_docs, reason = "the doc comment above says what this is")]

use std::cell::RefCell;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use refund_filter::secret::Secret;
use refund_filter::signing::{PrivateKey, Signer as _, SignerChoice, VmSigner};

const KEY: &str = include_str!("../tests/providers/bbmsl/golden/private_key.pem");
const TEXT: &[u8] = br#"{"merchantId":3,"orderId":4922,"amount":10}"#;

thread_local! {
    static KEPT: RefCell<Option<PrivateKey>> = const { RefCell::new(None) };
    static SIGNER: RefCell<VmSigner<StdRng>> = RefCell::new(VmSigner(StdRng::seed_from_u64(1)));
}

/// Reads the key, and keeps it for `sign`; 1 where that went well.
#[unsafe(no_mangle)]
pub extern "C" fn read() -> u32 {
    let key = PrivateKey::read(&Secret::new(KEY.to_owned())).ok();
    let good = u32::from(key.is_some());
    KEPT.set(key);
    good
}

/// One signature; its first four bytes, or 0 where there is none.
#[unsafe(no_mangle)]
pub extern "C" fn sign() -> u32 {
    KEPT.with_borrow(|key| {
        let signature = SIGNER.with_borrow_mut(|signer| {
            let key = key.as_ref()?;
            signer.sign(SignerChoice::Vm, key, TEXT).ok()
        });
        let first = signature
            .as_deref()
            .and_then(|bytes| bytes.first_chunk::<4>());
        first.map_or(0, |bytes| u32::from_be_bytes(*bytes))
    })
}
