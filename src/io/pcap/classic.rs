//! pcap: a header of 24 bytes, then 16 bytes before each packet.
//!
//! Nothing in the format says where a packet begins, so behind damage the next header is looked
//! for by what it must hold: a time near the last one, lengths that can be, and another such
//! header where it says that its packet ends.

use super::reader::{Damage, Found, Interface};
use super::source::Source;
use crate::wire::parse::captured::LinkType;

/// A packet has at most this many bytes (libpcap's limit), unless the file says more.
const SNAPLEN_MAX: u32 = 262_144;
/// Times further apart do not stand in one capture, when a header is looked for.
const APART_SECONDS_MAX: u32 = 30 * 24 * 3600;
/// Places tried at once when a header is looked for.
const SEEK_BYTES: usize = 64 << 10;

pub(super) struct Classic {
    is_big_endian: bool,
    /// Nanoseconds in a unit of the second part of a time.
    unit_ns: u32,
    /// Bytes before each packet.
    header_len: usize,
    captured_max: u32,
    /// Seconds of the packet read last.
    seconds: Option<u32>,
}

/// What stands before a packet.
struct Header {
    seconds: u32,
    fraction: u32,
    captured: u32,
    wire: u32,
}

impl Classic {
    pub(super) const HEADER_LEN: usize = 24;

    /// The format and its one interface, if a file begins so.
    pub(super) fn begin(head: &[u8]) -> Option<(Self, Interface)> {
        let head: &[u8; Self::HEADER_LEN] = head.first_chunk()?;
        let magic: [u8; 4] = *head.first_chunk()?;
        let (is_big_endian, unit_ns, header_len) = match magic {
            [0xd4, 0xc3, 0xb2, 0xa1] => (false, 1000, 16),
            [0xa1, 0xb2, 0xc3, 0xd4] => (true, 1000, 16),
            [0x4d, 0x3c, 0xb2, 0xa1] => (false, 1, 16),
            [0xa1, 0xb2, 0x3c, 0x4d] => (true, 1, 16),
            // Patched libpcaps of the nineties: index, protocol and kind of the packet behind.
            [0x34, 0xcd, 0xb2, 0xa1] => (false, 1000, 24),
            [0xa1, 0xb2, 0xcd, 0x34] => (true, 1000, 24),
            _ => return None,
        };
        let mut format =
            Self { is_big_endian, unit_ns, header_len, captured_max: 0, seconds: None };
        let snaplen = format.number(head, 16);
        format.captured_max = match snaplen {
            SNAPLEN_MAX.. if snaplen < super::reader::RECORD_BYTES_MAX as u32 => snaplen,
            _ => SNAPLEN_MAX,
        };
        // The upper half is about a checksum that may follow each packet.
        let link = LinkType(format.number(head, 20) as u16);
        Some((format, Interface { link, name: None }))
    }

    pub(super) fn next(&mut self, source: &mut Source) -> Result<Option<Found>, Damage> {
        let head = source.want(self.header_len);
        if head.is_empty() {
            return Ok(None);
        }
        let Some(header) = self.header(head) else {
            let what = format!("the file ends inside a packet's header ({} bytes)", head.len());
            return Err(Damage::Final(what));
        };
        if header.captured > self.captured_max {
            return Err(self.pass_over(source, &header));
        }
        let captured = header.captured as usize;
        let len = self.header_len + captured;
        let there = source.want(len).len();
        if there < len {
            return Err(Damage::Final(format!(
                "the file ends inside it: {} of {captured} bytes are there",
                there - self.header_len
            )));
        }
        self.seconds = Some(header.seconds);
        let fraction = u64::from(header.fraction) * u64::from(self.unit_ns);
        Ok(Some(Found {
            interface: 0,
            unix_ns: u64::from(header.seconds) * 1_000_000_000 + fraction,
            wire_len: header.wire as usize,
            data: self.header_len..len,
            comment: None,
            direction: None,
            local: None,
            len: len as u64,
        }))
    }

    fn number(&self, bytes: &[u8], at: usize) -> u32 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// The header that `bytes` begin with, if they hold one.
    fn header(&self, bytes: &[u8]) -> Option<Header> {
        (bytes.len() >= self.header_len).then(|| Header {
            seconds: self.number(bytes, 0),
            fraction: self.number(bytes, 4),
            captured: self.number(bytes, 8),
            wire: self.number(bytes, 12),
        })
    }

    /// Looks for the next header that can be one, and goes there.
    fn pass_over(&self, source: &mut Source, bad: &Header) -> Damage {
        let from = source.at();
        let said = format!("it says that it has {} bytes", bad.captured);
        let is_found = self.seek(source);
        let passed = source.at() - from;
        match is_found {
            true => Damage::Passed(format!("{said}; {passed} bytes were skipped")),
            false => Damage::Final(format!("{said}; no packet is in the last {passed} bytes")),
        }
    }

    fn seek(&self, source: &mut Source) -> bool {
        source.skip(1);
        loop {
            let window = SEEK_BYTES + 2 * self.header_len + SNAPLEN_MAX as usize;
            let bytes = source.want(window);
            let is_end = bytes.len() < window;
            let tries = if is_end { bytes.len() } else { SEEK_BYTES };
            if let Some(at) = (0..tries).find(|&at| self.is_likely(bytes, at, is_end)) {
                source.skip(at as u64);
                return true;
            }
            source.skip(tries as u64);
            if is_end {
                return false;
            }
        }
    }

    /// Whether a packet seems to begin at `at`, and another one, or the end, behind it.
    fn is_likely(&self, bytes: &[u8], at: usize, is_end: bool) -> bool {
        let Some(first) = self.header(&bytes[at..]).filter(|header| self.can_be(header)) else {
            return false;
        };
        let next = at + self.header_len + first.captured as usize;
        match bytes.get(next..) {
            Some([]) => is_end,
            Some(rest) => self.header(rest).is_some_and(|header| self.can_be(&header)),
            None => false,
        }
    }

    fn can_be(&self, header: &Header) -> bool {
        let near =
            self.seconds.is_none_or(|last| header.seconds.abs_diff(last) < APART_SECONDS_MAX);
        near && header.fraction < 1_000_000_000 / self.unit_ns
            && (1..=SNAPLEN_MAX).contains(&header.captured)
            && header.captured <= header.wire
            && header.wire <= super::reader::RECORD_BYTES_MAX as u32
    }
}
