//! See `shadowvm_fuzz::frag_reassembly`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::frag_reassembly::target(data);
});
