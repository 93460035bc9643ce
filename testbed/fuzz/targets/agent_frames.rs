//! See `shadowvm_fuzz::agent_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shadowvm_fuzz::agent_frames::target(data);
});
