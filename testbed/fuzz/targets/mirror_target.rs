//! See `shadowvm_fuzz::mirror_target`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::mirror_target::target(data);
});
