//! See `shadowvm_fuzz::control_api`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::control_api::target(data);
});
