//! pcapng: blocks that say their length at both ends.
//!
//! Sections may follow one another, each in its own byte order and with its own interfaces. A
//! block that contradicts itself is passed over to the next one that does not.

use super::reader::{Damage, Found, Interface, RECORD_BYTES_MAX};
use super::source::Source;
use super::writer::{Direction, OPTION_LOCAL};
use crate::wire::parse::captured::LinkType;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const NAMES: u32 = 4;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const JOURNAL: u32 = 9;
const SECRETS: u32 = 10;
const CUSTOM: u32 = 0xbad;
const CUSTOM_NOT_COPIED: u32 = 0x4000_0bad;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

/// Bytes around the body of a block.
const FRAME_BYTES: usize = 12;
/// Places tried at once when a block is looked for.
const SEEK_BYTES: usize = 64 << 10;
/// A block that is looked for is not longer.
const LIKELY_BYTES_MAX: usize = 1 << 20;
/// Interfaces of one file; nobody has as many, but a few packed bytes may claim millions.
const INTERFACES_MAX: usize = 1 << 14;
/// Bytes of this program's own blocks that are kept.
const LOCAL_BYTES_MAX: usize = 64 << 20;
/// Blocks with this bit are anybody's.
const LOCAL: u32 = 1 << 31;
/// Bytes of a name that are kept.
const NAME_BYTES_MAX: usize = 256;

#[derive(Default)]
pub(super) struct Ng {
    is_big_endian: bool,
    /// Where this section's interfaces begin among all.
    first: usize,
    /// How this section's interfaces count time.
    clocks: Vec<Clock>,
    /// Where in the (unpacked) file the block read last begins.
    pub(super) at: u64,
    /// Blocks that only this program reads, if anybody wants them, and bytes of them.
    pub(super) local: Option<Vec<(u32, Vec<u8>)>>,
    local_bytes: usize,
}

/// How an interface counts time.
#[derive(Clone, Copy)]
struct Clock {
    ticks_per_second: u64,
    offset_seconds: i64,
    snaplen: u32,
}

impl Ng {
    /// Whether a file begins so.
    pub(super) fn begins(head: &[u8]) -> bool {
        let [0x0a, 0x0d, 0x0d, 0x0a, _, _, _, _, order @ ..] = head else { return false };
        matches!(order, [0x1a, 0x2b, 0x3c, 0x4d, ..] | [0x4d, 0x3c, 0x2b, 0x1a, ..])
    }

    pub(super) fn next(
        &mut self,
        source: &mut Source,
        interfaces: &mut Vec<Interface>,
    ) -> Result<Option<Found>, Damage> {
        loop {
            self.at = source.at();
            let head = source.want(FRAME_BYTES);
            match head.len() {
                0 => return Ok(None),
                FRAME_BYTES => {}
                len => return Err(Damage::Final(format!("{len} bytes behind the last block"))),
            }
            if Self::begins(head) {
                self.is_big_endian = head[8] == 0x1a;
            }
            let (kind, len) = (self.u32(head, 0), self.u32(head, 4) as usize);
            if !can_be(kind, len) {
                return Err(self.pass_over(source, format!("a block of {len} bytes")));
            }
            let block = source.want(len);
            if block.len() < len {
                let there = block.len();
                let what = format!("the file ends inside a block: {there} of {len} bytes");
                return Err(Damage::Final(what));
            }
            if self.u32(block, len - 4) as usize != len {
                let what = format!("a block of {len} bytes ends with another length");
                return Err(self.pass_over(source, what));
            }
            let found = match kind {
                SECTION => {
                    self.first = interfaces.len();
                    self.clocks.clear();
                    None
                }
                INTERFACE if interfaces.len() == INTERFACES_MAX => {
                    let what = format!("it describes more than {INTERFACES_MAX} interfaces");
                    Some(Err(what))
                }
                INTERFACE => {
                    let (interface, clock) = self.interface(&block[8..len - 4]);
                    interfaces.push(interface);
                    self.clocks.push(clock);
                    None
                }
                PACKET | OLD_PACKET | SIMPLE_PACKET => Some(self.packet(kind, &block[8..len - 4])),
                LOCAL.. => {
                    let said = self.u32(block, 8) as usize;
                    let body = block[..len - 4].get(12..).and_then(|body| body.get(..said));
                    if let (Some(kept), Some(body)) = (&mut self.local, body)
                        && self.local_bytes + body.len() <= LOCAL_BYTES_MAX
                    {
                        self.local_bytes += body.len();
                        kept.push((kind, body.to_vec()));
                    }
                    None
                }
                _ => None,
            };
            match found {
                Some(Ok(found)) => return Ok(Some(Found { len: len as u64, ..found })),
                Some(Err(what)) => {
                    source.skip(len as u64);
                    return Err(Damage::Passed(what));
                }
                None => source.skip(len as u64),
            }
        }
    }

    fn u16(&self, bytes: &[u8], at: usize) -> u16 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(&self, bytes: &[u8], at: usize) -> u32 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    fn interface(&self, body: &[u8]) -> (Interface, Clock) {
        let link = LinkType(self.u16(body, 0));
        let mut name = None;
        let snaplen = self.u32(body, 4);
        let mut clock = Clock { ticks_per_second: 1_000_000, offset_seconds: 0, snaplen };
        for (kind, range) in self.options(body, 8) {
            let value = &body[range];
            match (kind, value) {
                (OPTION_NAME, value) => {
                    let value = &value[..value.len().min(NAME_BYTES_MAX)];
                    name = Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
                }
                (OPTION_RESOLUTION, &[exponent, ..]) => {
                    clock.ticks_per_second = match exponent {
                        // Beyond these no clock counts.
                        two @ 0x80.. => 1 << (two & 0x7f).min(60),
                        ten => 10u64.pow(u32::from(ten.min(18))),
                    };
                }
                (OPTION_OFFSET, value) if value.len() >= 8 => {
                    let (a, b) = (self.u32(value, 0), self.u32(value, 4));
                    let (high, low) = if self.is_big_endian { (a, b) } else { (b, a) };
                    clock.offset_seconds = (u64::from(high) << 32 | u64::from(low)).cast_signed();
                }
                _ => {}
            }
        }
        (Interface { link, name }, clock)
    }

    /// (kind, place of the value) of each option from `at` on.
    fn options<'a>(
        &'a self,
        body: &'a [u8],
        mut at: usize,
    ) -> impl Iterator<Item = (u16, std::ops::Range<usize>)> + 'a {
        std::iter::from_fn(move || {
            let (kind, len) = (self.u16(body, at), usize::from(self.u16(body, at + 2)));
            let value = at + 4..at + 4 + len;
            if kind == OPTION_END || value.end > body.len() {
                return None;
            }
            at = value.start + len.next_multiple_of(4);
            Some((kind, value))
        })
    }

    /// The packet in the body of a block of `kind`; its places count from the block's first byte.
    fn packet(&self, kind: u32, body: &[u8]) -> Result<Found, String> {
        let (index, time_at, data_at) = match kind {
            PACKET => (self.u32(body, 0) as usize, Some(4), 20),
            OLD_PACKET => (usize::from(self.u16(body, 0)), Some(4), 20),
            _ => (0, None, 4),
        };
        let Some(clock) = self.clocks.get(index) else {
            return Err(format!("it names interface {index}, which the file does not describe"));
        };
        let (captured, wire) = match time_at {
            Some(_) => (self.u32(body, 12) as usize, self.u32(body, 16) as usize),
            None => {
                let wire = self.u32(body, 0);
                let snaplen = if clock.snaplen == 0 { u32::MAX } else { clock.snaplen };
                let there = body.len().saturating_sub(data_at);
                ((wire.min(snaplen) as usize).min(there), wire as usize)
            }
        };
        let end = data_at + captured;
        if end > body.len() {
            let there = body.len().saturating_sub(data_at);
            return Err(format!("it says that it has {captured} bytes in a block with {there}"));
        }
        let unix_ns = time_at.map_or(0, |at| {
            let ticks = u64::from(self.u32(body, at)) << 32 | u64::from(self.u32(body, at + 4));
            clock.unix_ns(ticks)
        });
        let options_at = data_at + captured.next_multiple_of(4);
        let mut found = Found {
            interface: self.first + index,
            unix_ns,
            wire_len: wire,
            data: 8 + data_at..8 + end,
            comment: None,
            direction: None,
            local: None,
            len: 0,
        };
        if time_at.is_some() && body.len() > options_at {
            for (kind, range) in self.options(body, options_at) {
                let place = 8 + range.start..8 + range.end;
                match kind {
                    OPTION_COMMENT if found.comment.is_none() => found.comment = Some(place),
                    OPTION_FLAGS => {
                        found.direction = match self.u32(&body[range], 0) & 3 {
                            1 => Some(Direction::In),
                            2 => Some(Direction::Out),
                            _ => None,
                        };
                    }
                    OPTION_LOCAL => found.local = Some(place),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// Looks for the next block that can be one, and goes there.
    fn pass_over(&self, source: &mut Source, what: String) -> Damage {
        let from = source.at();
        let is_found = self.seek(source);
        let passed = source.at() - from;
        match is_found {
            true => Damage::Passed(format!("{what}; {passed} bytes were skipped")),
            false => Damage::Final(format!("{what}; no block is in the last {passed} bytes")),
        }
    }

    /// Blocks stand at multiples of four from the beginning of the file.
    fn seek(&self, source: &mut Source) -> bool {
        source.skip(4);
        loop {
            let bytes = source.want(SEEK_BYTES + LIKELY_BYTES_MAX);
            let is_end = bytes.len() < SEEK_BYTES + LIKELY_BYTES_MAX;
            let tries = if is_end { bytes.len() } else { SEEK_BYTES };
            if let Some(at) = (0..tries).step_by(4).find(|&at| self.is_likely(&bytes[at..])) {
                source.skip(at as u64);
                return true;
            }
            source.skip(tries as u64);
            if is_end {
                return false;
            }
        }
    }

    /// Whether a block that is whole seems to begin here.
    fn is_likely(&self, bytes: &[u8]) -> bool {
        if bytes.len() < FRAME_BYTES {
            return false;
        }
        if Self::begins(bytes) {
            return true;
        }
        let (kind, len) = (self.u32(bytes, 0), self.u32(bytes, 4) as usize);
        let is_known = matches!(
            kind,
            INTERFACE
                | OLD_PACKET
                | SIMPLE_PACKET
                | NAMES
                | STATISTICS
                | PACKET
                | JOURNAL
                | SECRETS
                | CUSTOM
                | CUSTOM_NOT_COPIED
        );
        is_known && can_be(kind, len) && len <= bytes.len() && {
            self.u32(bytes, len - 4) as usize == len
        }
    }
}

/// Whether a block of `kind` can have `len` bytes.
const fn can_be(kind: u32, len: usize) -> bool {
    let least = match kind {
        SECTION => 28,
        INTERFACE => 20,
        PACKET | OLD_PACKET => 32,
        SIMPLE_PACKET => 16,
        _ => FRAME_BYTES,
    };
    len >= least && len <= RECORD_BYTES_MAX && len.is_multiple_of(4)
}

impl Clock {
    fn unix_ns(self, ticks: u64) -> u64 {
        let ns = match self.ticks_per_second {
            1_000_000_000 => ticks,
            1_000_000 => ticks.saturating_mul(1000),
            rate => {
                let ns = u128::from(ticks) * 1_000_000_000 / u128::from(rate);
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        };
        let offset = self.offset_seconds.unsigned_abs().saturating_mul(1_000_000_000);
        match self.offset_seconds < 0 {
            true => ns.saturating_sub(offset),
            false => ns.saturating_add(offset),
        }
    }
}
