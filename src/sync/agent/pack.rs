//! Whether bytes are worth packing, found by trying: what did not get smaller goes as it is, and
//! then the next ones are not even tried, twice as many each time, for such files are long.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// It has to become smaller by a sixteenth.
const WORTH_SHARE: usize = 16;
/// Fewer bytes than this are not tried.
const LEN_MIN: usize = 128;
/// Pieces that are not tried, at most.
const SKIP_MAX: u32 = 32;

/// Packs the pieces of one channel, in their order.
#[derive(Debug, Default)]
pub struct Packer {
    /// So many are not tried.
    skip: u32,
    /// So many were not the last time.
    skipped: u32,
    packed: Vec<u8>,
}

impl Packer {
    /// The piece, packed, if that is worth it.
    pub fn pack(&mut self, piece: &[u8]) -> Option<&[u8]> {
        if piece.len() < LEN_MIN {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.packed.resize(get_maximum_output_size(piece.len()), 0);
        let len = compress_into(piece, &mut self.packed).ok()?;
        if len + piece.len() / WORTH_SHARE >= piece.len() {
            self.skipped = (self.skipped * 2).clamp(1, SKIP_MAX);
            self.skip = self.skipped;
            return None;
        }
        self.skipped = 0;
        Some(&self.packed[..len])
    }
}

/// The `len` bytes that are packed in `packed`; none if they are not.
pub fn unpack(packed: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut piece = vec![0; len];
    (decompress_into(packed, &mut piece).ok()? == len).then_some(piece)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            unit in proptest::collection::vec(any::<u8>(), 1..200),
            times in 1usize..300,
            tail in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let piece = [unit.repeat(times), tail].concat();
            if let Some(packed) = Packer::default().pack(&piece) {
                prop_assert!(packed.len() < piece.len());
                let again = unpack(packed, piece.len());
                prop_assert_eq!(again.as_deref(), Some(&piece[..]));
                prop_assert_eq!(unpack(packed, piece.len() - 1), None);
                prop_assert_eq!(unpack(packed, piece.len() + 1), None);
            }
        }

        #[test]
        fn nonsense_is_no_packed_piece_or_as_long_as_was_said(
            packed in proptest::collection::vec(any::<u8>(), 0..300),
            len in 0usize..5000,
        ) {
            if let Some(piece) = unpack(&packed, len) {
                prop_assert_eq!(piece.len(), len);
            }
        }
    }

    #[test]
    fn what_does_not_get_smaller_is_tried_ever_more_rarely_and_text_always() {
        let mut noise = 1_u64;
        let mut random = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (noise >> 33) as u8
        };
        let noise: Vec<u8> = (0..10_000).map(|_| random()).collect();
        let text = b"to be, or not to be ".repeat(500);
        let mut packer = Packer::default();
        let mut tried = 0;
        for _ in 0..1000 {
            tried += u32::from(packer.skip == 0);
            assert!(packer.pack(&noise).is_none());
        }
        assert!((10..50).contains(&tried), "{tried} of 1000");
        let packed = (0..100).filter(|_| packer.pack(&text).is_some()).count();
        assert!(packed >= 100 - SKIP_MAX as usize, "{packed} of 100");
        assert!(packer.pack(b"short").is_none());
    }
}
