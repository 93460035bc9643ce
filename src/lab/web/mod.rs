//! A web server with known content and a client that checks every byte of it.
//!
//! Owns the content: one fixed stream, of which `/bytes/N` is the first N bytes. Both ends make it
//! themselves, so the client knows what is right without asking anybody.

pub mod client;
pub mod crowd;
pub mod load;
pub mod server;

use std::sync::OnceLock;

/// The port that the embedded server uses unless told otherwise.
pub const PORT: u16 = 80;

/// Length of the repeated piece: a prime, so that no shift by a power of two, a segment or a
/// window goes unseen.
const PERIOD: usize = 1_048_573;
/// Most bytes that [`content`] gives at once.
pub const PIECE_MAX: usize = 256 << 10;

/// The bytes of the stream from `offset` on, at most `len` and [`PIECE_MAX`] of them.
pub fn content(offset: u64, len: usize) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let words = (0..(PERIOD + PIECE_MAX).div_ceil(8) as u64).map(|at| mix(at).to_le_bytes());
        let mut table: Vec<u8> = words.flatten().collect();
        table.truncate(PERIOD);
        table.extend_from_within(..PIECE_MAX);
        table
    });
    let start = (offset % PERIOD as u64) as usize;
    &table[start..start + len.min(PIECE_MAX)]
}

/// The first position at which `bytes`, said to be at `offset`, are not the content.
pub fn first_wrong(mut offset: u64, mut bytes: &[u8]) -> Option<u64> {
    while !bytes.is_empty() {
        let right = content(offset, bytes.len());
        let (head, rest) = bytes.split_at(right.len());
        if head != right {
            let at = head.iter().zip(right).position(|(is, should)| is != should);
            return at.map(|at| offset + at as u64);
        }
        offset += head.len() as u64;
        bytes = rest;
    }
    None
}

/// SplitMix64: a word that looks random, for each number.
fn mix(at: u64) -> u64 {
    let mut z = at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_and_a_shift_are_found_also_across_the_period() {
        let at = PERIOD as u64 - 1000;
        let mut bytes: Vec<u8> = content(at, 2000).to_vec();
        assert_eq!(first_wrong(at, &bytes), None);
        assert!(first_wrong(at + 1448, &bytes).is_some());
        bytes[1500] ^= 1;
        assert_eq!(first_wrong(at, &bytes), Some(at + 1500));
    }
}
