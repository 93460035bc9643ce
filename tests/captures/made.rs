//! Captures made for tests: what was said is given, how it travelled is drawn from a seed.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use shadowvm::io::pcap::Writer;
use shadowvm::replay::Side;
use shadowvm::wire::build::{TcpFields, tcp};
use shadowvm::wire::parse::captured::LinkType;
use shadowvm::wire::{L2, L3, Mac, TcpFlags, TcpOptions, Tsval, Vlans, checksum};

/// One conversation: what is said, in turns.
#[derive(Clone, Debug)]
pub struct Said {
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub turns: Vec<(Side, Vec<u8>)>,
    pub closes: bool,
}

impl Said {
    /// From the client's port `port` to 192.0.2.10:80.
    pub fn new(port: u16, turns: Vec<(Side, Vec<u8>)>) -> Self {
        let client = SocketAddr::from(([10, 0, 0, 7], port));
        Self { client, server: SocketAddr::from(([192, 0, 2, 10], 80)), turns, closes: true }
    }

    /// All that one side says.
    pub fn stream(&self, side: Side) -> Vec<u8> {
        let turns = self.turns.iter().filter(|(who, _)| *who == side);
        turns.flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    /// The place of byte `at` of a side: turn, and place in it.
    pub fn byte_mut(&mut self, side: Side, mut at: usize) -> &mut u8 {
        for (who, bytes) in &mut self.turns {
            if *who != side {
                continue;
            }
            if at < bytes.len() {
                return &mut bytes[at];
            }
            at -= bytes.len();
        }
        panic!("no such byte")
    }
}

/// How it travelled.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub seed: u64,
    /// Longest segment.
    pub segment_max: usize,
    /// In 256: packets that come twice, bytes that are said again, packets out of order.
    pub duplicates: u8,
    pub retransmissions: u8,
    pub disorder: u8,
    pub link: LinkType,
    pub is_ng: bool,
}

impl Way {
    /// In order, each segment once.
    pub fn plain(seed: u64) -> Self {
        let link = LinkType::ETHERNET;
        let (duplicates, retransmissions, disorder) = (0, 0, 0);
        let segment_max = 1448;
        Self { seed, segment_max, duplicates, retransmissions, disorder, link, is_ng: false }
    }

    /// As badly as it can be, over any link.
    pub fn bad(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let links = [
            LinkType::ETHERNET,
            LinkType::COOKED,
            LinkType::COOKED2,
            LinkType::RAW,
            LinkType::NULL,
        ];
        Self {
            seed,
            segment_max: random.from(1..1500) as usize,
            duplicates: random.from(0..80) as u8,
            retransmissions: random.from(0..80) as u8,
            disorder: random.from(0..200) as u8,
            link: links[random.from(0..5) as usize],
            is_ng: random.from(0..2) == 1,
        }
    }
}

/// A capture, and what each of its packets carries.
pub struct Made {
    pub bytes: Vec<u8>,
    pub packets: Vec<Sent>,
}

impl Made {
    /// Whether packet `number` carries byte `at` of a side of a conversation.
    pub fn carries(&self, number: u64, talk: usize, side: Side, at: u64) -> bool {
        let sent = &self.packets[number as usize - 1];
        let range = sent.at..sent.at + sent.payload.len() as u64;
        sent.talk == talk && sent.side == side && range.contains(&at)
    }
}

/// One packet.
#[derive(Clone, Debug)]
pub struct Sent {
    pub talk: usize,
    pub side: Side,
    /// Where its payload stands in what its side says.
    pub at: u64,
    pub payload: Vec<u8>,
    flags: TcpFlags,
    /// Bytes of the other side acknowledged, its SYN and FIN included.
    ack: u64,
    /// What is flipped in its payload without mending the checksum.
    pub flip: Option<(usize, u8)>,
}

impl Sent {
    /// Whether it opens a connection.
    pub fn is_syn(&self) -> bool {
        self.flags.has(TcpFlags::SYN)
    }
}

/// Captures what is said.
pub fn make(said: &[Said], way: &Way) -> Made {
    write(said, way, travel(said, way))
}

/// The packets in the order of the capture.
pub fn travel(said: &[Said], way: &Way) -> Vec<Sent> {
    let mut random = Random(way.seed);
    let mut queues: Vec<Vec<Sent>> =
        said.iter().enumerate().map(|(talk, said)| one(talk, said, way, &mut random)).collect();
    for queue in &mut queues {
        queue.reverse();
    }
    let mut packets = Vec::new();
    while queues.iter().any(|queue| !queue.is_empty()) {
        let pick = random.from(0..queues.len() as u64) as usize;
        packets.extend(queues[pick].pop());
    }
    for at in 0..packets.len() {
        if random.is(way.disorder) {
            let to = (at + random.from(1..12) as usize).min(packets.len() - 1);
            packets.swap(at, to);
        }
    }
    packets
}

/// The packets of conversations that depend on one another: in `order` each stands for its next
/// turn, the last of which is its end.
pub fn in_turn(said: &[Said], way: &Way, order: &[usize]) -> Vec<Sent> {
    let mut random = Random(way.seed);
    let mut queues: Vec<VecDeque<Vec<Sent>>> = Vec::new();
    for (talk, said) in said.iter().enumerate() {
        let mut turns = VecDeque::from(vec![Vec::new()]);
        let (mut turn, mut left) = (0, said.turns.first().map_or(0, |(_, bytes)| bytes.len()));
        for packet in one(talk, said, way, &mut random) {
            let is_end = packet.flags.has(TcpFlags::FIN) && turn < said.turns.len();
            if is_end || (!packet.payload.is_empty() && left == 0) {
                turn = if is_end { said.turns.len() } else { turn + 1 };
                left = said.turns.get(turn).map_or(0, |(_, bytes)| bytes.len());
                turns.push_back(Vec::new());
            }
            left = left.saturating_sub(packet.payload.len());
            turns.back_mut().expect("one at least").push(packet);
        }
        queues.push(turns);
    }
    let taken: Vec<_> = order.iter().filter_map(|&talk| queues[talk].pop_front()).collect();
    taken.into_iter().chain(queues.into_iter().flatten()).flatten().collect()
}

/// One conversation's packets.
fn one(talk: usize, said: &Said, way: &Way, random: &mut Random) -> Vec<Sent> {
    let streams = Side::BOTH.map(|side| said.stream(side));
    let mut packets = Vec::new();
    // Positions that each side has used: SYN and FIN count.
    let mut used = [0u64; 2];
    let mut place = [0usize; 2];
    let send = |packets: &mut Vec<Sent>,
                used: &mut [u64; 2],
                side: Side,
                at: usize,
                len: usize,
                flags: TcpFlags| {
        let payload = streams[side.index()][at..at + len].to_vec();
        let ack = used[side.other().index()];
        let flip = None;
        packets.push(Sent { talk, side, at: at as u64, payload, flags, ack, flip });
    };
    send(&mut packets, &mut used, Side::Client, 0, 0, TcpFlags::SYN);
    used[0] = 1;
    send(&mut packets, &mut used, Side::Server, 0, 0, TcpFlags::SYN.with(TcpFlags::ACK));
    used[1] = 1;
    send(&mut packets, &mut used, Side::Client, 0, 0, TcpFlags::ACK);
    for (side, bytes) in &said.turns {
        let (mine, end) = (side.index(), place[side.index()] + bytes.len());
        while place[mine] < end {
            let len = (random.from(1..way.segment_max as u64 + 1) as usize).min(end - place[mine]);
            let flags = TcpFlags::ACK.with(TcpFlags::PSH);
            send(&mut packets, &mut used, *side, place[mine], len, flags);
            place[mine] += len;
            used[mine] += len as u64;
            if random.is(way.retransmissions) {
                let from = random.from(0..place[mine] as u64) as usize;
                let most = (place[mine] - from).min(way.segment_max) as u64;
                let len = random.from(1..most + 1) as usize;
                send(&mut packets, &mut used, *side, from, len, TcpFlags::ACK);
            }
            if random.is(128) {
                let other = side.other();
                send(&mut packets, &mut used, other, place[other.index()], 0, TcpFlags::ACK);
            }
        }
    }
    if said.closes {
        for side in Side::BOTH {
            let at = place[side.index()];
            send(&mut packets, &mut used, side, at, 0, TcpFlags::FIN_ACK);
            used[side.index()] += 1;
        }
        send(&mut packets, &mut used, Side::Client, place[0], 0, TcpFlags::ACK);
        // It follows its FIN.
        if let Some(last) = packets.last_mut() {
            last.at += 1;
        }
    }
    let mut twice = Vec::new();
    for packet in packets {
        if random.is(way.duplicates) {
            twice.push(packet.clone());
        }
        twice.push(packet);
    }
    twice
}

/// Writes packets to a capture.
pub fn write(said: &[Said], way: &Way, packets: Vec<Sent>) -> Made {
    write_as(said, way, packets, |frame| vec![(frame.clone(), frame.len())])
}

/// Writes packets to a capture, each Ethernet frame as one or more others of some length on the
/// wire.
pub fn write_as(
    said: &[Said],
    way: &Way,
    packets: Vec<Sent>,
    alter: impl Fn(Vec<u8>) -> Vec<(Vec<u8>, usize)>,
) -> Made {
    let mut random = Random(way.seed ^ 0x0001_5eed);
    let isns: Vec<[u32; 2]> =
        said.iter().map(|_| [random.next() as u32, random.next() as u32]).collect();
    let clock = random.next() as u32;
    let begin = 1_700_000_000_000_000_000 + random.from(0..1 << 40);
    let mut writer = match way.is_ng {
        true => Writer::ng(Vec::new()).expect("it is written"),
        false => Writer::classic(Vec::new(), way.link).expect("it is written"),
    };
    writer.interface(way.link, Some("any")).expect("it is written");
    for (number, sent) in packets.iter().enumerate() {
        let Said { client, server, .. } = said[sent.talk];
        let [src, dst] = match sent.side {
            Side::Client => [client, server],
            Side::Server => [server, client],
        };
        let isn = |side: Side| isns[sent.talk][side.index()];
        let is_syn = sent.flags.has(TcpFlags::SYN);
        let seq = isn(sent.side).wrapping_add(sent.at as u32 + u32::from(!is_syn));
        let ack = match sent.flags.has(TcpFlags::ACK) {
            true => isn(sent.side.other()).wrapping_add(sent.ack as u32),
            false => 0,
        };
        let tsval = Tsval(clock.wrapping_add(number as u32));
        let fields = TcpFields {
            src_port: src.port(),
            dst_port: dst.port(),
            seq,
            ack,
            flags: sent.flags,
            window: 5000,
            urgent: 0,
            options: TcpOptions { timestamps: Some((tsval, Tsval(7))), ..TcpOptions::default() },
        };
        let l2 = L2 { dst: Mac([2; 6]), src: Mac([4; 6]), vlans: Vlans::default() };
        let l3 = L3 {
            src: src.ip(),
            dst: dst.ip(),
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            id: number as u16,
            flow_label: 0,
        };
        let mut frame = tcp(&l2, &l3, &fields, Bytes::from(sent.payload.clone()), 0);
        checksum::complete(&mut frame);
        let mut bytes = frame.to_vec();
        if let Some((at, bits)) = sent.flip {
            let payload_at = bytes.len() - sent.payload.len();
            bytes[payload_at + at] ^= bits;
        }
        let at = begin + number as u64 * 100_000;
        for (frame, wire_len) in alter(bytes) {
            let cut = wire_len - frame.len();
            let bytes = linked(way.link, &frame);
            writer.packet(0, at, &bytes, bytes.len() + cut, None).expect("it is written");
        }
    }
    Made { bytes: writer.into_inner(), packets }
}

/// An Ethernet frame as another link layer has it.
fn linked(link: LinkType, frame: &[u8]) -> Vec<u8> {
    let (kind, packet) = (&frame[12..14], &frame[14..]);
    match link {
        LinkType::COOKED => [&[0; 14][..], kind, packet].concat(),
        LinkType::COOKED2 => [kind, &[0; 18], packet].concat(),
        LinkType::RAW => packet.to_vec(),
        LinkType::NULL => [&[2, 0, 0, 0][..], packet].concat(),
        _ => frame.to_vec(),
    }
}

/// Draws numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn from(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True so often in 256.
    pub fn is(&mut self, share: u8) -> bool {
        self.next() as u8 <= share && share > 0
    }
}
