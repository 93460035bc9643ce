//! The oracle's own reading of frames: IPv4 and TCP only, sharing no code with the engine's parser,
//! so that one mistake cannot hide another.

/// One TCP segment as the oracle reads it.
#[derive(Clone, Debug, Default)]
pub struct Seg<'a> {
    /// Source and destination, each address and port.
    pub src: ([u8; 4], u16),
    /// See `src`.
    pub dst: ([u8; 4], u16),
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags byte.
    pub flags: u8,
    /// Window field.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Any of the bits of explicit congestion notification, AE included (RFC 3168, RFC 9768).
    pub has_ecn: bool,
    /// Bytes of options.
    pub options_len: usize,
    /// Time to live, type of service without the two bits of congestion (any router sets those),
    /// and whether it must not be cut.
    pub ip: (u8, u8, bool),
    /// Maximum segment size option.
    pub mss: Option<u16>,
    /// Window scale option.
    pub scale: Option<u8>,
    /// Timestamps option.
    pub stamps: Option<(u32, u32)>,
    /// SACK permitted.
    pub sack_ok: bool,
    /// SACK blocks.
    pub sack: Vec<(u32, u32)>,
    /// Payload.
    pub data: &'a [u8],
    /// Bytes of it in the frame.
    pub data_len: usize,
}

/// Flag bits.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const PSH: u8 = 8;
/// See [`FIN`].
pub const ACK: u8 = 16;
/// See [`FIN`].
pub const URG: u8 = 32;
/// Explicit congestion notification: ECE and CWR.
pub const ECN: u8 = 0xc0;

impl Seg<'_> {
    /// Whether all these bits are set.
    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits == bits
    }
}

/// What a frame is to the oracle.
#[derive(Debug)]
pub enum Read<'a> {
    /// TCP over IPv4, both sums right.
    Tcp(Seg<'a>),
    /// IPv4 whose sum, or TCP whose sum, is wrong, or which is cut off.
    Broken(&'static str),
    /// Something else.
    Other,
}

fn be16(b: &[u8]) -> u16 {
    u16::from_be_bytes([b[0], b[1]])
}

fn be32(b: &[u8]) -> u32 {
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

/// Adds 16-bit words to an Internet checksum's sum.
pub fn sum(mut acc: u32, bytes: &[u8]) -> u32 {
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        acc += u32::from(be16(pair));
    }
    if let [last] = pairs.remainder() {
        acc += u32::from(*last) << 8;
    }
    acc
}

/// The 16 bits that are left of it.
pub fn fold(mut acc: u32) -> u16 {
    while acc > 0xffff {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    acc as u16
}

/// Reads an untagged frame. With `has_whole_sum` off, the TCP sum is not looked at.
pub fn read(frame: &[u8], has_whole_sum: bool) -> Read<'_> {
    if frame.len() < 34 || be16(&frame[12..]) != 0x0800 {
        return Read::Other;
    }
    let ip = &frame[14..];
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(be16(&ip[2..]));
    if ip[0] >> 4 != 4 || header < 20 || total < header || ip.len() < total {
        return Read::Broken("IPv4 header or length");
    }
    if fold(sum(0, &ip[..header])) != 0xffff {
        return Read::Broken("IPv4 checksum");
    }
    if ip[9] != 6 {
        return Read::Other;
    }
    let tcp = &ip[header..total];
    let offset = tcp.get(12).map_or(0, |b| usize::from(b >> 4) * 4);
    if offset < 20 || tcp.len() < offset {
        return Read::Broken("TCP header or data offset");
    }
    let pseudo = sum(6 + tcp.len() as u32, &ip[12..20]);
    if has_whole_sum && fold(sum(pseudo, tcp)) != 0xffff {
        return Read::Broken("TCP checksum");
    }
    let address = |at: usize| [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]];
    let mut seg = Seg {
        src: (address(12), be16(tcp)),
        dst: (address(16), be16(&tcp[2..])),
        seq: be32(&tcp[4..]),
        ack: be32(&tcp[8..]),
        flags: tcp[13],
        window: be16(&tcp[14..]),
        urgent: be16(&tcp[18..]),
        has_ecn: tcp[13] & ECN != 0 || tcp[12] & 1 != 0,
        options_len: offset - 20,
        ip: (ip[8], ip[1] & 0xfc, ip[6] & 0x40 != 0),
        data: &tcp[offset..],
        data_len: tcp.len() - offset,
        ..Seg::default()
    };
    read_options(&tcp[20..offset], &mut seg);
    Read::Tcp(seg)
}

fn read_options(mut options: &[u8], seg: &mut Seg<'_>) {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return,
            1 => {
                options = rest;
                continue;
            }
            _ => {}
        }
        let Some(len) = rest.first().map(|&l| usize::from(l)).filter(|&l| l >= 2) else { return };
        let Some(value) = options.get(2..len) else { return };
        match (kind, value.len()) {
            (2, 2) => seg.mss = Some(be16(value)),
            (3, 1) => seg.scale = Some(value[0]),
            (4, 0) => seg.sack_ok = true,
            (5, n) if n % 8 == 0 => {
                seg.sack = value.chunks_exact(8).map(|b| (be32(b), be32(&b[4..]))).collect();
            }
            (8, 8) => seg.stamps = Some((be32(value), be32(&value[4..]))),
            _ => {}
        }
        options = &options[len..];
    }
}

/// Length of the IPv4 packet in a frame by its header, as far as it is there; 0 of anything else.
pub fn ip_len(frame: &[u8]) -> usize {
    match frame.get(12..18) {
        Some([8, 0, _, _, len @ ..]) => usize::from(be16(len)).min(frame.len() - 14),
        _ => 0,
    }
}

/// Sets both bits of RFC 3168 in an IPv4 header.
pub fn mark_congestion(frame: &mut [u8]) {
    if ip_len(frame) >= 20 && matches!(read(frame, false), Read::Tcp(_)) {
        frame[15] |= 3;
        frame[24..26].fill(0);
        let header = usize::from(frame[14] & 15) * 4;
        let check = !fold(sum(0, &frame[14..14 + header]));
        frame[24..26].copy_from_slice(&check.to_be_bytes());
    }
}

/// Sets a byte of a TCP segment without IP options, and its checksum.
pub fn set_byte(frame: &mut [u8], at: usize, byte: u8) {
    frame[at] = byte;
    frame[50..52].fill(0);
    let end = 14 + ip_len(frame);
    let pseudo = sum(6 + (end - 34) as u32, &frame[26..34]);
    let check = !fold(sum(pseudo, &frame[34..end]));
    frame[50..52].copy_from_slice(&check.to_be_bytes());
}

/// What a router says about a packet that is too large for the next link (RFC 792, RFC 1191).
pub fn frag_needed(frame: &[u8], mtu: u16) -> Vec<u8> {
    let quote = &frame[14..frame.len().min(14 + 28)];
    let mut reply = [&frame[6..12], &ROUTER_MAC, &[8, 0, 0x45, 0, 0]].concat();
    reply.extend_from_slice(&[28 + quote.len() as u8, 0, 0, 0x40, 0, 64, 1, 0, 0]);
    reply.extend_from_slice(&ROUTER);
    reply.extend_from_slice(&frame[26..30]);
    let check = !fold(sum(0, &reply[14..34]));
    reply[24..26].copy_from_slice(&check.to_be_bytes());
    let mut icmp = [&[3, 4, 0, 0, 0, 0], &mtu.to_be_bytes()[..], quote].concat();
    let check = !fold(sum(0, &icmp));
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    [reply, icmp].concat()
}

/// The router between the gateway and the clients.
const ROUTER: [u8; 4] = [10, 0, 0, 1];
/// See [`ROUTER`].
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A packet that was too large, as a router's message quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Who sent it.
    pub src: ([u8; 4], u16),
    /// To whom.
    pub dst: ([u8; 4], u16),
    /// Its sequence number.
    pub seq: u32,
    /// What would pass.
    pub mtu: u16,
}

/// Reads what [`frag_needed`] writes, both sums right.
pub fn read_frag_needed(frame: &[u8]) -> Option<TooLarge> {
    let is_icmp = frame.len() >= 70 && frame[12..15] == [8, 0, 0x45] && frame[23] == 1;
    let icmp = frame.get(34..14 + ip_len(frame)).filter(|_| is_icmp)?;
    let is_whole = fold(sum(0, &frame[14..34])) == 0xffff && fold(sum(0, icmp)) == 0xffff;
    let (ip, tcp) = (icmp.get(8..28)?, icmp.get(28..36)?);
    let address = |at: usize| [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]];
    (is_whole && icmp[..2] == [3, 4] && ip[0] == 0x45 && ip[9] == 6).then(|| TooLarge {
        src: (address(12), be16(tcp)),
        dst: (address(16), be16(&tcp[2..])),
        seq: be32(&tcp[4..]),
        mtu: be16(&icmp[6..]),
    })
}

/// Bytes at offsets of one stream, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Known {
    bytes: Vec<u8>,
    ranges: Vec<(u64, u64)>,
}

/// More than any stream of the simulator has: a wild offset is not stored.
const KNOWN_BYTES_MAX: u64 = 8 << 20;

impl Known {
    /// Adds bytes; the first version of a byte stays.
    pub fn insert(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        if bytes.is_empty() || end > KNOWN_BYTES_MAX {
            return;
        }
        if self.bytes.len() < end as usize {
            self.bytes.resize(end as usize, 0);
        }
        for (from, to) in self.gaps(at, end) {
            let part = &bytes[(from - at) as usize..(to - at) as usize];
            self.bytes[from as usize..to as usize].copy_from_slice(part);
        }
        let (mut from, mut to) = (at, end);
        self.ranges.retain(|&(f, t)| {
            let touches = f <= to && from <= t;
            if touches {
                (from, to) = (from.min(f), to.max(t));
            }
            !touches
        });
        let i = self.ranges.partition_point(|&(f, _)| f < from);
        self.ranges.insert(i, (from, to));
    }

    /// Forgets everything from `end` on.
    pub fn forget_from(&mut self, end: u64) {
        self.ranges.retain(|&(f, _)| f < end);
        if let Some((_, to)) = self.ranges.last_mut() {
            *to = (*to).min(end);
        }
    }

    /// The parts of `[from, to)` that are not known.
    pub fn gaps(&self, mut from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        for &(f, t) in &self.ranges {
            if t <= from {
                continue;
            }
            if f >= to {
                break;
            }
            if f > from {
                gaps.push((from, f));
            }
            from = t;
        }
        if from < to {
            gaps.push((from, to));
        }
        gaps
    }

    /// Whether all of `[from, to)` is known.
    pub fn covers(&self, from: u64, to: u64) -> bool {
        from >= to || self.ranges.iter().any(|&(f, t)| f <= from && to <= t)
    }

    /// The end of what is known without a hole from `start` on.
    pub fn end_from(&self, start: u64) -> u64 {
        self.ranges.iter().find(|&&(f, t)| f <= start && start < t).map_or(start, |&(_, t)| t)
    }

    /// The end of everything known.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |&(_, t)| t)
    }

    /// Whether something is known beyond a hole.
    pub fn has_hole(&self, start: u64) -> bool {
        let end = self.end_from(start);
        self.ranges.iter().any(|&(f, _)| f > end)
    }

    /// Known bytes; the caller has asked [`Self::covers`].
    pub fn slice(&self, from: u64, to: u64) -> &[u8] {
        &self.bytes[from as usize..to as usize]
    }
}
