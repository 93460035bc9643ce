//! The Internet checksum: sums, pseudo headers, incremental updates, partial checksums.
//!
//! Owns the arithmetic, never the decision whether a sum has to be trusted (that is
//! [`parse`]'s) or may be recomputed. Read first: RFC 1071, RFC 1624 (equation 3;
//! the older equation of RFC 1141 is wrong at zero), and for partial checksums the description of
//! `CHECKSUM_PARTIAL` in Linux's `include/linux/skbuff.h`: the field holds the folded sum of the
//! pseudo header, not complemented, and the sum from there on is still to be added.

use std::net::IpAddr;

use super::frame::Frame;
use super::parse;

/// A running ones-complement sum over any number of pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Sum {
    total: u64,
    is_odd: bool,
}

impl Sum {
    /// The sum over nothing.
    pub const fn new() -> Self {
        Self { total: 0, is_odd: false }
    }

    /// Adds one 16-bit word. Only at an even position.
    pub fn word(mut self, word: u16) -> Self {
        debug_assert!(!self.is_odd, "a word is added at an even position");
        self.total += u64::from(word);
        self
    }

    /// Adds `bytes`, which follow whatever was added before.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let sum = sum_of(bytes);
        self.total += u64::from(if self.is_odd { sum.swap_bytes() } else { sum });
        self.is_odd ^= bytes.len() % 2 == 1;
        self
    }

    /// Adds the bytes from `start` to `end` of a frame, wherever its head ends.
    pub fn frame(self, frame: &Frame, start: usize, end: usize) -> Self {
        let split = frame.head().len();
        self.bytes(clip(frame.head(), start, end)).bytes(clip(
            frame.body(),
            start.saturating_sub(split),
            end.saturating_sub(split),
        ))
    }

    /// Adds an address.
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    /// The sum itself: 0xffff when everything summed verifies; what a partial checksum holds.
    pub const fn fold(self) -> u16 {
        fold(self.total)
    }

    /// The complement: what a finished checksum field holds.
    pub const fn check(self) -> u16 {
        !self.fold()
    }
}

/// The sum of the pseudo header of `len` bytes of `protocol` (RFC 9293 3.1, RFC 8200 8.1).
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Sum {
    let mut sum = Sum::new().address(src).address(dst).word(u16::from(protocol));
    sum.total += len as u64;
    sum
}

/// The checksum `check` after one 16-bit word changed (RFC 1624, equation 3).
pub const fn update16(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u64 + !old as u64 + new as u64)
}

/// The checksum `check` after two adjacent words changed, the first at an even position.
pub const fn update32(check: u16, old: u32, new: u32) -> u16 {
    let check = update16(check, (old >> 16) as u16, (new >> 16) as u16);
    update16(check, old as u16, new as u16)
}

/// The checksum `check` after the bytes `old`, at an even position, became `new`.
/// Both have the same length.
pub fn update_bytes(check: u16, old: &[u8], new: &[u8]) -> u16 {
    debug_assert_eq!(old.len(), new.len(), "an update replaces bytes by as many");
    !fold(u64::from(!check) + u64::from(!sum_of(old)) + u64::from(sum_of(new)))
}

/// Finishes a partial checksum, so that the frame can meet a wire. Does nothing if it is finished
/// already. A super-frame is cut first ([`segmentize`](super::segmentize)), never finished whole.
pub fn complete(frame: &mut Frame) {
    let mut offload = frame.offload();
    let Some(spot) = offload.needs_csum.take() else { return };
    let start = usize::from(spot.start);
    let end = parse::ip_end(frame).unwrap_or(frame.len());
    let mut check = Sum::new().frame(frame, start, end).check();
    // A UDP field of 0 means "no checksum" (RFC 768), so a sum of 0 goes out as its twin.
    if check == 0 && spot.offset == UDP_FIELD {
        check = 0xffff;
    }
    frame.put(start + usize::from(spot.offset), &check.to_be_bytes());
    frame.set_offload(offload);
}

/// Where UDP's checksum stands in its header.
const UDP_FIELD: u16 = 6;

/// As much of `from..to` as there is.
fn clip(bytes: &[u8], from: usize, to: usize) -> &[u8] {
    bytes.get(from..to.min(bytes.len())).unwrap_or_default()
}

/// The folded sum of `bytes`, as if they began at an even position.
///
/// Words are added in the machine's own byte order, 32 bits at a time into 64: the sum of RFC 1071
/// is the same in either order, and no carry can be lost below 2^32 words.
fn sum_of(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

const fn fold(total: u64) -> u16 {
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    total as u16
}
