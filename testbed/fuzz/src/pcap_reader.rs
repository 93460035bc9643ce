//! Any bytes as a capture: what is found lies in the file, and is found again in a recording of it.

use std::fs::File;
use std::io::Cursor;

use shadowvm::io::pcap::{Recorder, read};
use shadowvm::wire::{Frame, Offload};

/// A capture file.
pub fn target(data: &[u8]) -> bool {
    let (found, _) = read(Cursor::new(data.to_vec()));
    let bytes: usize = found.iter().map(|captured| captured.frame.len()).sum();
    assert!(bytes <= data.len() && found.len() * 16 <= data.len(), "more than there was");
    let few = &found[..found.len().min(16)];
    if few.is_empty() {
        return false;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("again.pcapng");
    let mut recorder = Recorder::create(&path, &["a", "b", "c"]).expect("a file");
    for captured in few {
        let index = captured.interface as usize % 3;
        recorder.write(index, captured.unix_ns, &captured.frame).expect("it is written");
    }
    recorder.flush().expect("it is written");
    drop(recorder);
    let (again, error) = read(File::open(&path).expect("the file"));
    assert!(error.is_none(), "{error:?}");
    assert_eq!(again.len(), few.len());
    for (again, captured) in again.iter().zip(few) {
        assert_eq!(again.interface, captured.interface % 3);
        assert_eq!(again.unix_ns, captured.unix_ns);
        assert_eq!(again.frame.to_vec(), captured.frame.to_vec());
    }
    true
}

/// Recordings of this program, and plain captures of each byte order and resolution.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (magic, fraction) in [(0xa1b2_c3d4u32, 500_000u32), (0xa1b2_3c4d, 500_000_000)] {
        for order in [u32::to_le_bytes as fn(u32) -> [u8; 4], u32::to_be_bytes] {
            let version = if order(1)[0] == 1 { [2, 0, 4, 0] } else { [0, 2, 0, 4] };
            let mut bytes = [order(magic), version, order(0), order(0), order(65_535)].concat();
            bytes.extend([order(1), order(1), order(fraction), order(60), order(60)].concat());
            bytes.extend([7; 60]);
            seeds.push(bytes);
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("seed.pcapng");
    let mut recorder = Recorder::create(&path, &["client", "a"]).expect("a file");
    for (index, unix_ns) in [(0, 1), (1, 1_700_000_000_123_456_789)] {
        let frame = Frame::from_wire(vec![index as u8; 61].into(), Offload::default());
        recorder.write(index, unix_ns, &frame).expect("it is written");
    }
    recorder.flush().expect("it is written");
    seeds.push(std::fs::read(&path).expect("the file"));
    seeds
}
