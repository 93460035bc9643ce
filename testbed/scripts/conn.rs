//! What a hand-made client knows of its connection, and what was seen of it on the links.

use std::collections::BTreeMap;

use shadowvm::engine::{Instant, Link};
use shadowvm::wire::{Frame, Segment, TcpFlags, Tsval};

pub const ACK: TcpFlags = TcpFlags::ACK;
pub const SYN: TcpFlags = TcpFlags::SYN;
pub const FIN: TcpFlags = TcpFlags::FIN_ACK;
pub const RST: TcpFlags = TcpFlags::RST;

/// The client's first sequence number: it wraps within the first hundred bytes.
pub const ISS: u32 = u32::MAX - 40;
/// The client's port of the first connection.
pub const FIRST_PORT: u16 = 40_001;

/// What the client's SYN offers.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub mss: u16,
    pub scale: Option<u8>,
    pub has_sack: bool,
    pub has_stamps: bool,
}

impl Offer {
    pub const FULL: Self = Self { mss: 1460, scale: Some(7), has_sack: true, has_stamps: true };
    pub const BARE: Self = Self { mss: 536, scale: None, has_sack: false, has_stamps: false };
    /// Windows as they stand in the field, holes without blocks.
    pub const PLAIN: Self = Self { mss: 1460, ..Self::BARE };
}

/// A segment as it was seen on one of the links.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub link: Link,
    pub seg: Segment,
    pub data: Vec<u8>,
    pub frame: Frame,
}

impl Seen {
    pub fn has(&self, flags: TcpFlags) -> bool {
        self.seg.flags.has(flags)
    }

    /// An acknowledgement and nothing else.
    pub fn is_bare(&self) -> bool {
        self.seg.flags == ACK && self.data.is_empty()
    }
}

/// A line about a segment, for messages.
impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Segment { flags, seq, ack, window, options, .. } = &self.seg;
        let (link, len, sack) = (self.link, self.data.len(), options.sack.as_slice());
        write!(f, "{link:?}: {flags:?} seq {seq} ack {ack} len {len} window {window} {sack:?}")
    }
}

/// The client's end of a connection.
#[derive(Clone, Debug)]
pub struct Conn {
    pub port: u16,
    pub offer: Offer,
    /// The client's first sequence number.
    pub iss: u32,
    /// The first sequence number that the client was shown.
    pub viss: u32,
    pub has_stamps: bool,
    /// Bytes sent.
    pub sent: u32,
    /// The response so far, in order.
    pub received: Vec<u8>,
    /// Pieces of it beyond a hole, by where they stand.
    pub ahead: BTreeMap<usize, Vec<u8>>,
    pub tsval: u32,
    pub tsecr: u32,
    pub window: u16,
    /// The urgent pointer of what it says, for segments with the flag.
    pub urgent: u16,
    /// Up to where it has looked at what was seen.
    pub read_to: usize,
}

impl Conn {
    /// Where a segment of the servers stands in their stream.
    pub fn offset(&self, seen: &Seen) -> u32 {
        seen.seg.seq.wrapping_sub(self.viss.wrapping_add(1))
    }

    /// What a segment acknowledges of the client's stream.
    pub fn acked_by(&self, seen: &Seen) -> u32 {
        seen.seg.ack.wrapping_sub(self.iss.wrapping_add(1))
    }

    /// The SACK blocks of a segment, as offsets of the client's stream.
    pub fn blocks_of(&self, seen: &Seen) -> Vec<(u32, u32)> {
        let base = self.iss.wrapping_add(1);
        let offset = |&(l, r): &(u32, u32)| (l.wrapping_sub(base), r.wrapping_sub(base));
        seen.seg.options.sack.as_slice().iter().map(offset).collect()
    }

    /// Takes what it is shown: bytes that continue what is there, and the other side's clock.
    pub fn take(&mut self, seen: &Seen) {
        if let Some((val, _)) = seen.seg.options.timestamps
            && !Tsval(self.tsecr).is_after(val)
        {
            self.tsecr = val.0;
        }
        if !seen.data.is_empty() {
            self.ahead.insert(self.offset(seen) as usize, seen.data.to_vec());
        }
        while let Some(piece) = self.ahead.first_entry().filter(|p| *p.key() <= self.received.len())
        {
            let (at, data) = piece.remove_entry();
            let known = self.received.len() - at;
            self.received.extend_from_slice(data.get(known..).unwrap_or_default());
        }
    }
}
