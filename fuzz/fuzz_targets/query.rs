#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_properties::query::check(data));
