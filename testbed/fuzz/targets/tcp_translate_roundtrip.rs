//! See `shadowvm_fuzz::tcp_translate_roundtrip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::tcp_translate_roundtrip::target(data);
});
