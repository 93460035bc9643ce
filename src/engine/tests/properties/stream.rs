//! A stream buffer against a plain array: whatever is inserted, repeated, contradicted and trimmed,
//! the first version of each byte stays.

use bytes::Bytes;
use proptest::prelude::*;

use crate::engine::stream::Stream;
use crate::wire::Offset;

/// Positions looked at.
const SIZE: usize = 96;
/// Not a round number of 2^32, and bytes on both sides of it.
const FIRST: Offset = Offset::new((2 << 32) - 40);

fn at(x: usize) -> Offset {
    FIRST + x as u64
}

#[derive(Clone, Debug)]
enum Act {
    /// At, length, version of the bytes.
    Insert(usize, usize, u8),
    Trim(usize),
    Restart(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0usize..70, 0usize..24, any::<u8>()).prop_map(|(at, n, v)| Act::Insert(at, n, v)),
        3 => (0usize..80).prop_map(Act::Trim),
        1 => (0usize..40).prop_map(Act::Restart),
    ]
}

/// The bytes held at each position, and what lies below the base.
#[derive(Debug)]
struct Model {
    bytes: [Option<u8>; SIZE],
    base: usize,
}

impl Model {
    fn has(&self, x: usize) -> bool {
        self.bytes[x].is_some()
    }

    fn run_end(&self, from: usize) -> usize {
        (from..SIZE).find(|&x| !self.has(x)).unwrap_or(SIZE)
    }

    fn next_held(&self, from: usize) -> Option<usize> {
        (from..SIZE).find(|&x| self.has(x))
    }

    fn insert(&mut self, x: usize, bytes: &[u8]) -> usize {
        let mut new = 0;
        for (x, &byte) in (x..).zip(bytes) {
            if x >= self.base && !self.has(x) {
                self.bytes[x] = Some(byte);
                new += 1;
            }
        }
        new
    }

    fn trim(&mut self, floor: usize) {
        self.base = self.base.max(floor);
        self.bytes[..self.base].fill(None);
    }

    /// The first `max` runs beyond the first hole.
    fn islands(&self, max: usize) -> Vec<(Offset, Offset)> {
        let mut found = Vec::new();
        let mut x = self.run_end(self.base);
        while let Some(from) = self.next_held(x).filter(|_| found.len() < max) {
            x = self.run_end(from);
            found.push((at(from), at(x)));
        }
        found
    }
}

fn check(stream: &Stream, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(stream.base(), at(model.base));
    prop_assert_eq!(stream.contiguous(), at(model.run_end(model.base)));
    prop_assert_eq!(stream.held(), model.bytes.iter().flatten().count());
    for x in 0..SIZE {
        let slice = stream.slice_at(at(x));
        let chunk = stream.chunk_at(at(x)).unwrap_or_default();
        prop_assert_eq!(slice, &chunk[..]);
        prop_assert_eq!(!slice.is_empty(), model.has(x));
        for (x, byte) in (x..).zip(slice) {
            prop_assert_eq!(Some(*byte), model.bytes[x]);
        }
        prop_assert_eq!(stream.next_held(at(x)), model.next_held(x).map(at));
        let end = model.run_end(x);
        prop_assert!(stream.covers(at(x), at(end)));
        prop_assert!(!stream.covers(at(x), at(end + 1)));
    }
    for max in 0..5 {
        prop_assert_eq!(stream.islands(max), model.islands(max));
    }
    Ok(())
}

proptest! {
    #[test]
    fn it_holds_what_an_array_would(acts in prop::collection::vec(any_act(), 1..24)) {
        let mut stream = Stream::new(at(0));
        let mut model = Model { bytes: [None; SIZE], base: 0 };
        for act in acts {
            match act {
                Act::Insert(x, len, version) => {
                    let bytes: Vec<u8> = (x..x + len).map(|x| version ^ x as u8).collect();
                    let new = stream.insert(at(x), Bytes::from(bytes.clone()));
                    prop_assert_eq!(new, model.insert(x, &bytes));
                }
                Act::Trim(floor) => {
                    stream.trim(at(floor));
                    model.trim(floor);
                }
                Act::Restart(base) => {
                    stream.restart(at(base));
                    model = Model { bytes: [None; SIZE], base };
                }
            }
            check(&stream, &model)?;
        }
    }
}
