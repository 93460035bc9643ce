//! Conversations: which packet belongs to which, who is the client, where each side begins.
//!
//! A conversation is one TCP connection. The same addresses and ports make another one when a SYN
//! brings another number, so a table of them is the same however often the capture is read.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::wire::parse::captured::{Checked, Spoken};
use crate::wire::{Offset, Seq, TcpFlags};

/// The numbers of one sender, as a capture has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderSpace {}

/// A sequence number of one sender.
pub type Number = Seq<SenderSpace>;

/// Numbers further apart than this belong to different connections.
const APART_MAX: u64 = 1 << 24;
/// Conversations of one capture: each takes about a kilobyte, and a few packed bytes may hold
/// billions. Those beyond are not followed.
pub(super) const TALKS_MAX: usize = if cfg!(test) { 1000 } else { 1 << 20 };
/// A capture that begins in the middle may bring so much in the wrong order.
const DISORDER_MAX: u64 = 1 << 20;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Who opened the connection.
    Client,
    /// Who accepted it.
    Server,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// 0 or 1.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What is known of one sender in one conversation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender {
    /// The number of its SYN.
    isn: Option<Number>,
    /// Where no SYN was seen first: the number before the first one seen.
    anchor: Option<Number>,
    /// Lowest place of data, and the highest of anything, counted from the anchor.
    lowest: Option<Offset>,
    highest: Option<Offset>,
    /// Packets.
    pub packets: u64,
    /// Bytes of payload, repetitions included.
    pub payload_bytes: u64,
    /// A FIN was seen.
    pub has_fin: bool,
    /// An RST was seen.
    pub has_reset: bool,
}

impl Sender {
    /// The number that stands before the first byte: the ISN, or what it might have been.
    pub fn isn(&self) -> Option<Number> {
        self.isn.or_else(|| {
            let first = self.lowest.or(self.highest)?;
            Some(self.anchor?.at(first.back(1)))
        })
    }

    /// Whether its SYN was captured.
    pub const fn has_syn(&self) -> bool {
        self.isn.is_some()
    }

    /// How far `number` is from anything seen.
    fn distance(&self, number: Number) -> Option<u64> {
        let highest = self.highest?;
        Some((self.anchor?.offset(number, highest) - highest).unsigned_abs())
    }

    fn note(&mut self, spoken: &Spoken<'_>) {
        self.packets += 1;
        if spoken.checksum == Checked::Wrong {
            self.payload_bytes += spoken.payload_len() as u64;
            return;
        }
        if spoken.flags.has(TcpFlags::RST) {
            // Its number may be anything, and its payload is no part of the stream.
            self.has_reset = true;
            return;
        }
        let is_syn = spoken.flags.has(TcpFlags::SYN);
        let len = spoken.payload_len() as u64;
        let first = Number::new(spoken.seq.wrapping_add(u32::from(is_syn)));
        if is_syn && self.isn.is_none() {
            self.isn = Some(Number::new(spoken.seq));
        }
        let anchor = *self.anchor.get_or_insert(Number::new(first.raw().wrapping_sub(1)));
        let at = anchor.offset(first, self.highest.unwrap_or(Offset::START));
        let near = self.lowest.is_none_or(|lowest| lowest.since(at) <= DISORDER_MAX);
        if len > 0 && near {
            self.lowest = Some(self.lowest.map_or(at, |lowest| lowest.min(at)));
        }
        self.highest = self.highest.max(Some(at + len));
        self.payload_bytes += len;
        self.has_fin |= spoken.flags.has(TcpFlags::FIN);
    }
}

/// One conversation.
#[derive(Clone, Debug)]
pub struct Talk {
    /// The two ends, the lower address first.
    ends: [SocketAddr; 2],
    senders: [Sender; 2],
    /// Which end is the client.
    client: usize,
    /// A SYN told who the client is; otherwise it is who has the higher port.
    pub is_client_known: bool,
    /// A SYN, or a packet whose checksum is not wrong, belongs to it: otherwise its addresses may
    /// be damaged ones, and there is no such conversation.
    pub is_certain: bool,
    /// Number of its first packet.
    pub first_packet: u64,
    /// UNIX times in nanoseconds of its first and its last packet.
    pub begin_ns: u64,
    /// See `begin_ns`.
    pub end_ns: u64,
}

impl Talk {
    /// The address of a side.
    pub const fn address(&self, side: Side) -> SocketAddr {
        self.ends[self.end_of(side)]
    }

    /// What is known of a side.
    pub const fn sender(&self, side: Side) -> &Sender {
        &self.senders[self.end_of(side)]
    }

    /// Whether neither side said a byte.
    pub fn is_empty(&self) -> bool {
        self.senders.iter().all(|sender| sender.payload_bytes == 0)
    }

    /// The side at one end.
    pub(super) const fn side_of(&self, end: usize) -> Side {
        if end == self.client { Side::Client } else { Side::Server }
    }

    const fn end_of(&self, side: Side) -> usize {
        match side {
            Side::Client => self.client,
            Side::Server => 1 - self.client,
        }
    }

    /// What is known of the sender at one end.
    pub(super) const fn at_end(&self, end: usize) -> &Sender {
        &self.senders[end]
    }

    fn is_closed(&self) -> bool {
        self.senders.iter().any(|s| s.has_reset) || self.senders.iter().all(|s| s.has_fin)
    }

    /// Whether a packet from `end` belongs to another connection between the same ends.
    fn is_another(&self, end: usize, spoken: &Spoken<'_>) -> bool {
        let sender = &self.senders[end];
        let flags = spoken.flags;
        if flags.has(TcpFlags::RST) {
            return false;
        }
        if !flags.has(TcpFlags::SYN) {
            let far = sender.distance(Number::new(spoken.seq)).is_some_and(|d| d > APART_MAX);
            return far && self.is_closed() && spoken.payload_len() > 0;
        }
        let is_opening = !flags.has(TcpFlags::ACK);
        match sender.isn {
            Some(isn) => isn.raw() != spoken.seq && (is_opening || self.is_closed()),
            // Data may come before its SYN if the capture is out of order.
            None => {
                let first = Number::new(spoken.seq.wrapping_add(1));
                sender.distance(first).is_some_and(|d| d > DISORDER_MAX)
            }
        }
    }
}

/// The conversations of one capture, in the order of their first packets.
#[derive(Debug, Default)]
pub struct Talks {
    list: Vec<Talk>,
    /// The latest conversation between two ends.
    latest: HashMap<[SocketAddr; 2], usize>,
    /// The one found last: packets come in trains.
    last: Option<([SocketAddr; 2], usize)>,
}

impl Talks {
    /// All of them.
    pub fn list(&self) -> &[Talk] {
        &self.list
    }

    /// The conversation and the end that a packet belongs to; notes what it says of them. None if
    /// it begins one more than there may be.
    pub(super) fn assign(
        &mut self,
        spoken: &Spoken<'_>,
        packet: u64,
        unix_ns: u64,
    ) -> Option<(usize, usize)> {
        let end = usize::from(spoken.src > spoken.dst);
        let ends = match end {
            0 => [spoken.src, spoken.dst],
            _ => [spoken.dst, spoken.src],
        };
        let known = match self.last {
            Some((last, id)) if last == ends => Some(id),
            _ => self.latest.get(&ends).copied(),
        };
        let is_wrong = spoken.checksum == Checked::Wrong;
        let is_syn = spoken.flags.has(TcpFlags::SYN);
        let id = match known {
            Some(id) if is_wrong || !self.list[id].is_another(end, spoken) => id,
            _ if self.list.len() == TALKS_MAX => return None,
            _ => self.begin(ends, packet, unix_ns),
        };
        self.last = Some((ends, id));
        let talk = &mut self.list[id];
        if is_syn && !talk.is_client_known {
            talk.is_client_known = true;
            talk.client = if spoken.flags.has(TcpFlags::ACK) { 1 - end } else { end };
        }
        talk.is_certain |= !is_wrong || is_syn;
        talk.senders[end].note(spoken);
        talk.begin_ns = talk.begin_ns.min(unix_ns);
        talk.end_ns = talk.end_ns.max(unix_ns);
        Some((id, end))
    }

    fn begin(&mut self, ends: [SocketAddr; 2], packet: u64, unix_ns: u64) -> usize {
        let id = self.list.len();
        self.list.push(Talk {
            ends,
            senders: Default::default(),
            client: usize::from(ends[1].port() > ends[0].port()),
            is_client_known: false,
            is_certain: false,
            first_packet: packet,
            begin_ns: unix_ns,
            end_ns: unix_ns,
        });
        self.latest.insert(ends, id);
        id
    }
}
