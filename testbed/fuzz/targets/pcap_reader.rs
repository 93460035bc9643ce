//! See `shadowvm_fuzz::pcap_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::pcap_reader::target(data);
});
