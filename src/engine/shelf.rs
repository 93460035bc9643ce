//! Strings of bytes kept close together: the flows at rest.
//!
//! They differ in length, and each time that one wakes it is put back a little longer or shorter:
//! an allocator's holes fit the next one rarely. Here they stand one behind the other in blocks; a
//! block with too many holes is emptied, its strings put behind the newest one.

use super::flow_table::FlowId;

/// Bytes of a block; a longer string has a block of its own.
const BLOCK: usize = 1 << 16;
/// A block with so many holes, in percent of it, is emptied: what is wasted stays below that.
const HOLES_MAX_PERCENT: usize = 25;
/// Before each string: whose it is, and its length, odd once it is a hole.
const HEAD: usize = 8;

/// Where a string stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    block: u32,
    at: u32,
}

/// All strings.
#[derive(Debug, Default)]
pub struct Shelf {
    blocks: Vec<Block>,
    /// Blocks without strings and without memory.
    free: Vec<u32>,
    /// Where the next string goes.
    newest: Option<u32>,
}

#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    holes: usize,
}

impl Shelf {
    /// Puts a string there.
    pub fn put(&mut self, owner: FlowId, string: &[u8]) -> Place {
        let need = HEAD + string.len();
        let has_room = |&newest: &u32| {
            let bytes = &self.blocks[newest as usize].bytes;
            bytes.capacity() - bytes.len() >= need
        };
        let block = self.newest.filter(has_room).unwrap_or_else(|| self.add_block(need));
        self.newest = Some(block);
        let bytes = &mut self.blocks[block as usize].bytes;
        let at = bytes.len() as u32;
        let len = u32::try_from(string.len() << 1).expect("a flow at rest is short");
        bytes.extend_from_slice(&owner.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(string);
        Place { block, at }
    }

    /// The string at `place`.
    pub fn get(&self, place: Place) -> &[u8] {
        self.blocks[place.block as usize].string(place.at as usize).2
    }

    /// Takes the string at `place` away. Others may move because of it: whose, and to where.
    #[must_use]
    pub fn remove(&mut self, place: Place) -> Vec<(FlowId, Place)> {
        let Place { block, at } = place;
        let holed = &mut self.blocks[block as usize];
        holed.make_hole(at as usize);
        if holed.holes * 100 < holed.bytes.capacity() * HOLES_MAX_PERCENT {
            return Vec::new();
        }
        let old = std::mem::take(holed);
        self.free.push(block);
        self.newest = self.newest.filter(|&newest| newest != block);
        old.strings().map(|(owner, string)| (owner, self.put(owner, string))).collect()
    }

    fn add_block(&mut self, need: usize) -> u32 {
        let block = self.free.pop().unwrap_or_else(|| {
            self.blocks.push(Block::default());
            self.blocks.len() as u32 - 1
        });
        self.blocks[block as usize].bytes = Vec::with_capacity(need.max(BLOCK));
        block
    }
}

impl Block {
    /// Whose string stands at `at`, whether it is there no more, and the string.
    fn string(&self, at: usize) -> (FlowId, bool, &[u8]) {
        let word = |at: usize| {
            let bytes = self.bytes[at..at + 4].try_into().expect("four of them");
            u32::from_le_bytes(bytes)
        };
        let (owner, len) = (word(at), word(at + 4));
        let from = at + HEAD;
        (owner, len & 1 == 1, &self.bytes[from..from + (len >> 1) as usize])
    }

    fn make_hole(&mut self, at: usize) {
        self.holes += HEAD + self.string(at).2.len();
        self.bytes[at + 4] |= 1;
    }

    /// What stands there, without the holes.
    fn strings(&self) -> impl Iterator<Item = (FlowId, &[u8])> {
        let mut at = 0;
        let all = std::iter::from_fn(move || {
            let next = (at < self.bytes.len()).then(|| self.string(at))?;
            at += HEAD + next.2.len();
            Some(next)
        });
        all.filter(|&(_, is_hole, _)| !is_hole).map(|(owner, _, string)| (owner, string))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_string_longer_than_a_block_has_one_of_its_own() {
        let mut shelf = Shelf::default();
        let long = vec![7; 3 * BLOCK];
        let places = [shelf.put(1, b"short"), shelf.put(2, &long), shelf.put(3, b"again")];
        assert_eq!(shelf.get(places[0]), b"short");
        assert_eq!(shelf.get(places[1]), &long[..]);
        assert_eq!(shelf.get(places[2]), b"again");
    }

    proptest::proptest! {
        /// Whatever comes and goes: each string is where its owner was told, and what is wasted is
        /// bounded.
        #[test]
        fn strings_stay_whole_and_close_together(
            steps in proptest::collection::vec((0u32..200, 0usize..2000), 1..2000),
        ) {
            let mut shelf = Shelf::default();
            let mut kept: BTreeMap<FlowId, (Place, Vec<u8>)> = BTreeMap::new();
            for (owner, len) in steps {
                if let Some((place, string)) = kept.remove(&owner) {
                    proptest::prop_assert_eq!(shelf.get(place), &string[..]);
                    for (moved, to) in shelf.remove(place) {
                        kept.get_mut(&moved).expect("it is kept").0 = to;
                    }
                } else {
                    let string: Vec<u8> = (0..len).map(|i| (i + owner as usize) as u8).collect();
                    kept.insert(owner, (shelf.put(owner, &string), string));
                }
            }
            for (place, string) in kept.values() {
                proptest::prop_assert_eq!(shelf.get(*place), &string[..]);
            }
            let used: usize = shelf.blocks.iter().map(|block| block.bytes.capacity()).sum();
            let live: usize = kept.values().map(|(_, string)| HEAD + string.len()).sum();
            // At the end of each block there is no room for the next string; one is the newest.
            proptest::prop_assert!(used <= live * 100 / 70 + BLOCK, "{used} for {live}");
        }
    }
}
