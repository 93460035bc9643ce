//! Replays the corpora of the fuzz targets, and their seeds, as an ordinary test.

#[path = "../testbed/fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;

use fuzz::{TARGETS, Target};

/// Bytes of one committed corpus.
const CORPUS_BYTES_MAX: usize = 200 << 10;

#[test]
fn agent_frames() {
    replay("agent_frames");
}

#[test]
fn capture_streams() {
    replay("capture_streams");
}

#[test]
fn chunk_lines() {
    replay("chunk_lines");
}

#[test]
fn config_toml() {
    replay("config_toml");
}

#[test]
fn control_api() {
    replay("control_api");
}

#[test]
fn engine_packets() {
    replay("engine_packets");
}

#[test]
fn frag_reassembly() {
    replay("frag_reassembly");
}

#[test]
fn frame_parse() {
    replay("frame_parse");
}

#[test]
fn ftp_spans() {
    replay("ftp_spans");
}

#[test]
fn http_spans() {
    replay("http_spans");
}

#[test]
fn icmp_quote() {
    replay("icmp_quote");
}

#[test]
fn mirror_target() {
    replay("mirror_target");
}

#[test]
fn pcap_reader() {
    replay("pcap_reader");
}

#[test]
fn state_file() {
    replay("state_file");
}

#[test]
fn tcp_translate_roundtrip() {
    replay("tcp_translate_roundtrip");
}

/// Each target has its corpus and its test here, and each corpus its target.
#[test]
fn every_target_is_replayed() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let mut folders: Vec<String> = std::fs::read_dir(corpora())
        .expect("the corpora are there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    assert_eq!(folders, names);
    let tests = include_str!("corpus.rs");
    for name in names {
        assert!(tests.contains(&format!("fn {name}() {{")), "{name} has no test");
    }
}

/// Every input of a target: none panics, and at least half of the seeds and one of the corpus get
/// past the first gate.
fn replay(name: &str) {
    let target = target(name);
    let seeds = (target.seeds)();
    let deep = seeds.iter().filter(|seed| run(target, "a seed", seed)).count();
    assert!(deep * 2 >= seeds.len(), "{deep} of {} seeds get past the first gate", seeds.len());
    let (mut bytes, mut deep) = (0, 0);
    for entry in std::fs::read_dir(corpora().join(name)).expect("the corpus is there") {
        let path = entry.expect("it can be read").path();
        let data = std::fs::read(&path).expect("it can be read");
        bytes += data.len();
        deep += usize::from(run(target, &path.display().to_string(), &data));
    }
    assert!(deep > 0, "no input of the corpus gets past the first gate");
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes of corpus: minimise it");
}

/// Runs one input; whatever is wrong names it.
fn run(target: &Target, what: &str, data: &[u8]) -> bool {
    let ran = std::panic::catch_unwind(|| (target.run)(data));
    ran.unwrap_or_else(|_| panic!("{}: {what} fails: {data:02x?}", target.name))
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of that name")
}

fn corpora() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/fuzz/corpus")
}
