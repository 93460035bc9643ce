//! See `shadowvm_fuzz::frame_parse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::frame_parse::target(data);
});
