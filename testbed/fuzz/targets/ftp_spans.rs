//! See `shadowvm_fuzz::ftp_spans`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::ftp_spans::target(data);
});
