//! See `shadowvm_fuzz::icmp_quote`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::icmp_quote::target(data);
});
