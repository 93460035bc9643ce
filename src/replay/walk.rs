//! One way through a capture, packet by packet: facts about it, its conversations, and what was
//! said in them, told to a [`Listener`].
//!
//! Memory is the buffer of the reader, what waits for missing bytes (bounded), and a few hundred
//! bytes a conversation.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::capture::{Capture, Unreadable};
use super::talks::{Side, Talk, Talks};
use super::voices::{End, Hearing, Voices, WAITING_BYTES_MAX};
use crate::engine::{Fragments, Instant, Link, Reassembly};
use crate::io::pcap::{Reader, Record, Trouble};
use crate::wire::parse::captured::{Checked, LinkType, Look, Spoken, What, look};
use crate::wire::{Frame, Malformed, Offload, Packet, parse};

/// Troubles that are kept with their places; more are counted.
const TROUBLES_MAX: usize = 100;
/// Bytes that all conversations keep while they wait for others, before each is kept short; beyond
/// twice as many nothing waits.
const WAITING_BYTES_ALL_MAX: usize = 256 << 20;
/// What one may keep from then on.
const WAITING_BYTES_SHORT: usize = 16 << 10;

/// What is known of a capture as a whole.
#[derive(Debug, Default)]
pub struct Facts {
    /// Packets that could be read.
    pub packets: u64,
    /// Bytes captured of them.
    pub bytes: u64,
    /// Bytes that they had on the wire.
    pub wire_bytes: u64,
    /// UNIX time of the earliest and of the latest packet, in nanoseconds.
    pub times: Option<(u64, u64)>,
    /// Packets by link type.
    pub links: BTreeMap<LinkType, u64>,
    /// TCP segments.
    pub tcp: u64,
    /// UDP datagrams.
    pub udp: u64,
    /// Pieces of IP datagrams.
    pub pieces: u64,
    /// Other IP packets, by protocol.
    pub other_ip: BTreeMap<u8, u64>,
    /// What is not IP.
    pub other: u64,
    /// Packets behind VLAN tags.
    pub tagged: u64,
    /// Packets cut short by the snap length.
    pub cut: u64,
    /// TCP segments with a wrong checksum.
    pub wrong_checksums: u64,
    /// TCP segments captured before the network card finished the checksum.
    pub unfinished_checksums: u64,
    /// TCP segments of conversations beyond the most that are followed.
    pub unfollowed: u64,
    /// What could not be read, the first of it.
    pub troubles: Vec<Trouble>,
    /// All that could not be read.
    pub troubles_count: u64,
}

impl Facts {
    pub(super) fn trouble(&mut self, trouble: Trouble) {
        self.troubles_count += 1;
        if self.troubles.len() < TROUBLES_MAX {
            self.troubles.push(trouble);
        }
    }

    fn count(&mut self, record: &Record<'_>) {
        self.packets += 1;
        self.bytes += record.data.len() as u64;
        self.wire_bytes += record.wire_len as u64;
        self.cut += u64::from(record.wire_len > record.data.len());
        *self.links.entry(record.link).or_default() += 1;
        // A block without a time says nothing about when.
        if record.unix_ns > 0 {
            let (first, last) = self.times.unwrap_or((record.unix_ns, record.unix_ns));
            self.times = Some((first.min(record.unix_ns), last.max(record.unix_ns)));
        }
    }
}

/// Where in a capture something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The conversation.
    pub talk: usize,
    /// Who speaks.
    pub side: Side,
    /// Position in what that side says: its first byte is 0.
    pub at: u64,
}

/// The packet that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Its number in the file.
    pub packet: u64,
    /// Its UNIX time in nanoseconds.
    pub unix_ns: u64,
}

/// Hears a capture.
pub trait Listener {
    /// A segment with payload came: where it stands, its length, and when. It may repeat others.
    fn segment(&mut self, spot: Spot, len: u64, moment: Moment) {
        let _ = (spot, len, moment);
    }
    /// Bytes in order, told when the packet of `moment` made it possible.
    fn bytes(&mut self, spot: Spot, bytes: &[u8], moment: Moment);
    /// Bytes that were said and not captured.
    fn missing(&mut self, spot: Spot, len: u64) {
        let _ = (spot, len);
    }
    /// A side's stream has ended at `spot`.
    fn over(&mut self, spot: Spot, how: End, moment: Moment) {
        let _ = (spot, how, moment);
    }
}

/// Who needs nothing but facts.
#[derive(Debug)]
pub struct Deaf;

impl Listener for Deaf {
    fn bytes(&mut self, _: Spot, _: &[u8], _: Moment) {}
}

/// The conversations of a capture, found by reading it once.
#[derive(Debug, Default)]
pub struct Index {
    /// Conversations, in the order of their first packets.
    pub talks: Talks,
    /// What is known of the whole.
    pub facts: Facts,
}

impl Index {
    /// Reads a capture for its conversations.
    pub fn of(capture: &Capture) -> Result<Self, Unreadable> {
        let mut walk = Walk::begin(capture, None)?;
        while walk.step(&mut Deaf) {}
        Ok(walk.into_index())
    }
}

/// A capture while it is read.
#[derive(Debug)]
pub struct Walk<'i> {
    reader: Reader,
    ground: Ground<'i>,
    /// Said at the end of the file to all that is still open.
    is_over: bool,
}

/// All but the reader, which lends.
#[derive(Debug)]
struct Ground<'i> {
    facts: Facts,
    talks: Talks,
    /// Where each conversation begins, if the capture was read before. What is said is only told
    /// then: who does not know where it begins cannot tell it in order.
    index: Option<&'i Index>,
    /// Which conversations are told; all if none is said.
    wanted: Option<Vec<bool>>,
    voices: Vec<Option<Box<Voices>>>,
    /// Bytes that wait in all of them.
    held: usize,
    fragments: Fragments,
    now: Moment,
}

impl<'i> Walk<'i> {
    /// Begins to read; with an `index` of the same capture what was said is told as well.
    pub fn begin(capture: &Capture, index: Option<&'i Index>) -> Result<Self, Unreadable> {
        let ground = Ground {
            facts: Facts::default(),
            talks: Talks::default(),
            index,
            wanted: None,
            voices: Vec::new(),
            held: 0,
            fragments: Fragments::default(),
            now: Moment { packet: 0, unix_ns: 0 },
        };
        Ok(Self { reader: capture.reader()?, ground, is_over: false })
    }

    /// Tells these conversations only: those whose place in `wanted` is true.
    pub fn only(mut self, wanted: Vec<bool>) -> Self {
        self.ground.wanted = Some(wanted);
        self
    }

    /// Takes the next packet; false at the end, once all was told.
    pub fn step(&mut self, listener: &mut impl Listener) -> bool {
        match self.reader.next() {
            Ok(Some(record)) => self.ground.take(&record, listener),
            Ok(None) if self.is_over => return false,
            Ok(None) => {
                self.is_over = true;
                self.ground.finish(listener);
            }
            Err(trouble) => self.ground.facts.trouble(trouble),
        }
        true
    }

    /// The packet read last.
    pub const fn now(&self) -> Moment {
        self.ground.now
    }

    /// Bytes of the (unpacked) file that were read.
    pub const fn at(&self) -> u64 {
        self.reader.at()
    }

    /// What is known of the capture so far.
    pub const fn facts(&self) -> &Facts {
        &self.ground.facts
    }

    /// What was found out.
    pub fn into_index(self) -> Index {
        Index { talks: self.ground.talks, facts: self.ground.facts }
    }
}

impl Ground<'_> {
    fn take(&mut self, record: &Record<'_>, listener: &mut impl Listener) {
        self.now = Moment { packet: record.number, unix_ns: record.unix_ns };
        self.facts.count(record);
        let seen = look(record.link, record.data, record.wire_len);
        match seen {
            Ok(seen) => {
                self.facts.tagged += u64::from(seen.tags > 0);
                self.see(&seen, record, listener);
            }
            Err(why) => self.refuse(record, why),
        }
    }

    fn see(&mut self, seen: &Look<'_>, record: &Record<'_>, listener: &mut impl Listener) {
        match seen.what {
            What::Tcp(spoken) => self.hear(&spoken, listener),
            What::Udp(..) => self.facts.udp += 1,
            What::Ip(_, _, protocol) => *self.facts.other_ip.entry(protocol).or_default() += 1,
            What::Other => self.facts.other += 1,
            What::Piece { end } => {
                self.facts.pieces += 1;
                let packet = seen.ip_at.and_then(|at| record.data.get(at..end));
                match self.piece(packet.unwrap_or_default()) {
                    Ok(None) => {}
                    Ok(Some(whole)) => {
                        // A datagram of pieces is none itself.
                        if let Ok(Look { what: What::Tcp(spoken), .. }) =
                            look(LinkType::ETHERNET, &whole, whole.len())
                        {
                            self.hear(&spoken, listener);
                        }
                    }
                    Err(why) => self.refuse(record, why),
                }
            }
        }
    }

    /// Takes one piece of an IP datagram; gives the whole as an Ethernet frame with the last one.
    fn piece(&mut self, packet: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let kind: [u8; 2] = match packet.first().map(|first| first >> 4) {
            Some(6) => [0x86, 0xdd],
            _ => [0x08, 0x00],
        };
        let mut bytes = BytesMut::zeroed(12);
        bytes.extend_from_slice(&kind);
        bytes.extend_from_slice(packet);
        let frame = Frame::from_wire(Bytes::from(bytes), Offload::default());
        let Packet::Fragment(fragment) = parse::parse(&frame)? else {
            return Err(Malformed::Fragment);
        };
        let now = Instant::from_nanos(self.now.unix_ns);
        match self.fragments.insert(now, Link::Client, &fragment, &frame) {
            Reassembly::Kept => Ok(None),
            Reassembly::Complete(whole) => Ok(Some(whole.to_vec())),
            Reassembly::Refused => Err(Malformed::Fragment),
        }
    }

    fn refuse(&mut self, record: &Record<'_>, why: Malformed) {
        let cut = record.wire_len > record.data.len();
        let hint = if cut { ", which the snap length may have cut off" } else { "" };
        self.facts.trouble(Trouble {
            packet: record.number,
            at: record.at,
            what: format!("{}{hint}; it was left out", describe(why)),
        });
    }

    fn hear(&mut self, spoken: &Spoken<'_>, listener: &mut impl Listener) {
        self.facts.tcp += 1;
        match spoken.checksum {
            Checked::Wrong => self.facts.wrong_checksums += 1,
            Checked::Unfinished => self.facts.unfinished_checksums += 1,
            Checked::Right | Checked::Unknown => {}
        }
        let Moment { packet, unix_ns } = self.now;
        let Some((id, end)) = self.talks.assign(spoken, packet, unix_ns) else {
            self.facts.unfollowed += 1;
            return;
        };
        let Some(index) = self.index else { return };
        if self.wanted.as_ref().is_some_and(|wanted| wanted.get(id) != Some(&true)) {
            return;
        }
        // A file that grew while it was read has conversations that nobody has asked for.
        let Some(talk) = index.talks.list().get(id) else { return };
        if self.voices.len() <= id {
            self.voices.resize_with(id + 1, || None);
        }
        let voices = self.voices[id].get_or_insert_with(|| Box::new(Voices::new(talk)));
        if voices.is_over() {
            return;
        }
        let mut told = Told { talk, id, listener, now: self.now };
        if spoken.payload_len() > 0
            && let Some(at) = voices.place_of(end, spoken)
        {
            let spot = told.spot(end, at);
            told.listener.segment(spot, spoken.payload_len() as u64, told.now);
        }
        let before = voices.held();
        let max = match self.held / WAITING_BYTES_ALL_MAX {
            0 => WAITING_BYTES_MAX,
            1 => WAITING_BYTES_SHORT,
            _ => 0,
        };
        voices.take(end, spoken, max, &mut told);
        self.held = self.held + voices.held() - before;
    }

    fn finish(&mut self, listener: &mut impl Listener) {
        let Some(index) = self.index else { return };
        for (id, (voices, talk)) in self.voices.iter_mut().zip(index.talks.list()).enumerate() {
            if let Some(mut voices) = voices.take() {
                voices.finish(&mut Told { talk, id, listener, now: self.now });
            }
        }
    }
}

/// Hands what one conversation says on to the listener.
struct Told<'t, L> {
    talk: &'t Talk,
    id: usize,
    listener: &'t mut L,
    now: Moment,
}

impl<L> Told<'_, L> {
    const fn spot(&self, end: usize, at: u64) -> Spot {
        Spot { talk: self.id, side: self.talk.side_of(end), at }
    }
}

impl<L: Listener> Hearing for Told<'_, L> {
    fn bytes(&mut self, end: usize, at: u64, bytes: &[u8]) {
        self.listener.bytes(self.spot(end, at), bytes, self.now);
    }
    fn missing(&mut self, end: usize, at: u64, len: u64) {
        self.listener.missing(self.spot(end, at), len);
    }
    fn over(&mut self, end: usize, at: u64, how: End) {
        self.listener.over(self.spot(end, at), how, self.now);
    }
}

/// What is wrong with a packet, for people.
fn describe(why: Malformed) -> &'static str {
    match why {
        Malformed::Runt => "it is shorter than its link-layer header",
        Malformed::VlanDepth => "it has more VLAN tags than anybody uses",
        Malformed::IpHeader => "its IP header is damaged or cut off",
        Malformed::IpLength => "its IP length is beyond the packet",
        Malformed::IpChecksum => "its IP checksum is wrong",
        Malformed::SourceRoute => "it is source-routed",
        Malformed::ExtensionHeaders => "it has too many extension headers",
        Malformed::Fragment => "it is a fragment that cannot be put together",
        Malformed::TcpHeader => "its TCP header is damaged or cut off",
        Malformed::TcpFlags => "its TCP flags contradict one another",
        Malformed::UdpHeader => "its UDP header is damaged or cut off",
        Malformed::MulticastSource
        | Malformed::IpSource
        | Malformed::TcpOption
        | Malformed::TcpChecksum
        | Malformed::UdpChecksum
        | Malformed::Icmp
        | Malformed::Arp
        | Malformed::Nd => "it is damaged",
    }
}
