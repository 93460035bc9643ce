//! See `shadowvm_fuzz::engine_packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::engine_packets::target(data);
});
