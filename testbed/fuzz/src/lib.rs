//! What is fuzzed, as plain functions of bytes. The libFuzzer targets call them with coverage, and
//! `tests/corpus.rs` with the committed corpora on every run of the tests.
//!
//! A target panics on whatever is wrong; it returns whether the input got past the first gate, so
//! that a corpus which has rotted is noticed. Its `seeds` are where fuzzing begins.

pub mod agent_frames;
pub mod capture_streams;
pub mod chunk_lines;
pub mod config_toml;
pub mod control_api;
mod ends;
pub mod engine_packets;
pub mod frag_reassembly;
pub mod frame_parse;
pub mod ftp_spans;
pub mod http_spans;
pub mod icmp_quote;
pub mod mirror_target;
pub mod pcap_reader;
mod reader;
pub mod state_file;
pub mod tcp_translate_roundtrip;
mod world;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with, all of which get past the first gate.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        &[$(Target { name: stringify!($name), run: $name::target, seeds: $name::seeds }),*]
    };
}

/// All targets.
pub const TARGETS: &[Target] = targets![
    agent_frames,
    capture_streams,
    chunk_lines,
    config_toml,
    control_api,
    engine_packets,
    frag_reassembly,
    frame_parse,
    ftp_spans,
    http_spans,
    icmp_quote,
    mirror_target,
    pcap_reader,
    state_file,
    tcp_translate_roundtrip,
];
