//! See `shadowvm_fuzz::http_spans`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::http_spans::target(data);
});
