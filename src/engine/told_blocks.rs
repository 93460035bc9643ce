//! The SACK blocks that a peer was told, in the order in which it is to hear them (RFC 2018 4).
//!
//! The first block is the one that grew last; after it come those that were told before, so that
//! each block is heard several times although few of them fit a segment.

use super::pack::fields;
use crate::wire::Offset;

/// Stream positions `[from, to)`.
type Block = (Offset, Offset);

/// The blocks told last, the one that grew last first.
#[derive(Clone, Debug, Default)]
pub struct ToldBlocks {
    blocks: Box<[Block]>,
}

impl ToldBlocks {
    /// Whether `now`, lowest first, are other blocks than were told.
    pub fn differ_from(&self, now: &[Block]) -> bool {
        self.blocks.len() != now.len() || self.blocks.iter().any(|b| now.binary_search(b).is_err())
    }

    /// Puts `now`, lowest first, into the order in which it is to be told.
    pub fn tell(&mut self, now: Vec<Block>) -> &[Block] {
        let mut blocks = Vec::with_capacity(now.len());
        blocks.extend(now.iter().rev().filter(|b| !self.blocks.contains(b)));
        blocks.extend(self.blocks.iter().filter(|b| now.binary_search(b).is_ok()));
        self.blocks = blocks.into();
        &self.blocks
    }
}

fields!(ToldBlocks { blocks });

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(pairs: &[(u64, u64)]) -> Vec<Block> {
        pairs.iter().map(|&(f, t)| (Offset::new(f), Offset::new(t))).collect()
    }

    #[test]
    fn what_grew_last_comes_first_and_the_rest_as_it_was_told() {
        let mut told = ToldBlocks::default();
        assert_eq!(told.tell(blocks(&[(10, 20)])), blocks(&[(10, 20)]));
        assert_eq!(told.tell(blocks(&[(10, 20), (30, 40)])), blocks(&[(30, 40), (10, 20)]));
        // The lower one grows: it is the news now.
        let now = blocks(&[(10, 25), (30, 40)]);
        assert!(told.differ_from(&now));
        assert_eq!(told.tell(now.clone()), blocks(&[(10, 25), (30, 40)]));
        assert!(!told.differ_from(&now));
        // A new one between them, then one that joins two.
        let now = blocks(&[(10, 25), (27, 28), (30, 40)]);
        assert_eq!(told.tell(now), blocks(&[(27, 28), (10, 25), (30, 40)]));
        assert_eq!(told.tell(blocks(&[(10, 25), (27, 40)])), blocks(&[(27, 40), (10, 25)]));
        assert_eq!(told.tell(Vec::new()), &[]);
    }
}
