//! See `shadowvm_fuzz::chunk_lines`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::chunk_lines::target(data);
});
