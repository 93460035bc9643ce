//! Any bytes as the state file that an earlier process left: refused as a whole, or each record
//! checked; and whatever a record says, the engine that takes it goes on.

use std::path::Path;

use shadowvm::engine::{Engine, EngineConfig, Event, FLOW_CONSTANTS_LEN, Input, LegId, Link};
use shadowvm::engine::{Epoch, Instant, LinkCaps, Output, Record, Roles, Signal};
use shadowvm::io::state_file::StateFile;

use super::reader::Reader;
use super::world::{SERVICE, World};

/// Slots of the file.
const SLOTS: usize = 8;
const HEADER_BYTES: usize = 4096;
const SLOT_BYTES: usize = 128;

/// A byte, then: 0 the file as it is; 1 edits of a good file, three bytes each; 2 flow constants,
/// whose sums are made right.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let kind = input.u8() % 3;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state");
    match kind {
        0 => std::fs::write(&path, input.rest()).expect("it is written"),
        1 => {
            let mut bytes = good_file(&path);
            while !input.is_empty() {
                // The header page is empty but for its beginning.
                let at = usize::from(input.u16()) % (HEADER_BYTES - 3840 + SLOTS * SLOT_BYTES);
                let at = if at < 256 { at } else { at + HEADER_BYTES - 256 };
                bytes[at] ^= input.u8();
            }
            std::fs::write(&path, &bytes).expect("it is written");
        }
        _ => {
            let mut state = StateFile::open(&path, SLOTS).expect("a new file");
            for slot in 0..SLOTS as u32 {
                let mut constants = [0; FLOW_CONSTANTS_LEN];
                let given = input.take(FLOW_CONSTANTS_LEN);
                constants[..given.len()].copy_from_slice(given);
                if !given.is_empty() {
                    state.write(&Record::Flow { slot, constants });
                }
            }
        }
    }
    let bytes = std::fs::read(&path).expect("the file");
    let Ok(state) = StateFile::open(&path, SLOTS) else {
        assert_eq!(std::fs::read(&path).expect("the file"), bytes, "what is refused stays");
        return false;
    };
    let records = state.load();
    records.iter().for_each(|record| check(record, &bytes));
    restore(records.clone());
    !records.is_empty()
}

/// A record that is believed stands in the file with its mark and its sum.
fn check(record: &Record, bytes: &[u8]) {
    match record {
        Record::Flow { slot, constants } => {
            let at = HEADER_BYTES + *slot as usize * SLOT_BYTES;
            let slot = &bytes[at..at + SLOT_BYTES];
            assert_eq!(&slot[..FLOW_CONSTANTS_LEN], constants);
            assert_eq!(slot[104..112], fnv(constants).to_ne_bytes());
            assert_eq!(slot[112..116], 0x5553_4544u32.to_ne_bytes());
        }
        Record::Roles(roles) => {
            let mut cell = [0; 8];
            cell[..4].copy_from_slice(&roles.epoch.0.to_ne_bytes());
            cell[4..].copy_from_slice(&(roles.primary.index() as u32).to_ne_bytes());
            let is_there = |at: usize| {
                bytes[at..at + 8] == cell && bytes[at + 8..at + 16] == fnv(&cell).to_ne_bytes()
            };
            assert!(is_there(64) || is_there(128));
        }
        Record::Free { .. } => panic!("a file holds no such record"),
    }
}

/// FNV-1a, 64 bits, from its description.
fn fnv(bytes: &[u8]) -> u64 {
    let mut hash = 14_695_981_039_346_656_037u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211);
    }
    hash
}

/// An engine takes the records, asks, and waits.
fn restore(records: Vec<Record>) {
    let config = EngineConfig {
        addresses: vec![SERVICE.into()],
        flows_max: SLOTS,
        ..EngineConfig::default()
    };
    let mut now = Instant::from_millis(5000);
    let mut engine = Engine::new(config, 3, now);
    engine.handle(now, Input::Restore(records));
    for leg in LegId::ALL {
        let up = Signal::CarrierUp(LinkCaps::default());
        engine.handle(now, Input::Signal(Link::Server(leg), up));
    }
    let mut open = 0i64;
    for _ in 0..40 {
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Event(Event::FlowOpened { .. }) => open += 1,
                Output::Event(Event::FlowClosed { .. }) => open -= 1,
                _ => {}
            }
        }
        assert!(engine.flows(usize::MAX).len() <= SLOTS);
        now = now.max(engine.poll_timeout().expect("there is a next time"));
        engine.handle(now, Input::Timeout);
    }
    let known: u32 = engine.status().flows.iter().sum();
    assert_eq!(i64::from(known), open, "each flow is counted once");
    assert!(engine.flows(usize::MAX).len() as i64 <= open);
}

/// A file with roles and three flows, as a gateway writes them.
fn good_file(path: &Path) -> Vec<u8> {
    let mut state = StateFile::open(path, SLOTS).expect("a new file");
    for (epoch, primary) in [(4, LegId::B), (5, LegId::A)] {
        state.write(&Record::Roles(Roles { epoch: Epoch(epoch), primary }));
    }
    records().iter().for_each(|record| state.write(record));
    drop(state);
    std::fs::read(path).expect("the file")
}

/// What an engine wrote about three flows.
fn records() -> Vec<Record> {
    let mut world = World::new(false);
    for client in 0..3 {
        world.open(client, 77, [7, 0, 0x3a][usize::from(client)]);
    }
    world.records()
}

/// The good file, damaged ones, and true constants.
pub fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    let good = good_file(&dir.path().join("state"));
    let constants: Vec<u8> = (records().iter())
        .filter_map(|record| match record {
            Record::Flow { constants, .. } => Some(*constants),
            _ => None,
        })
        .flatten()
        .collect();
    let twice = [&constants[..], &constants[..]].concat();
    vec![
        [&[0], &good[..]].concat(),
        vec![1],
        vec![1, 1, 5, 1, 0, 70, 1],
        [&[2], &constants[..]].concat(),
        [&[2], &twice[..]].concat(),
    ]
}
