//! See `shadowvm_fuzz::capture_streams`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::capture_streams::target(data);
});
