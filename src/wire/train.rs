//! [`Train`]: frames that leave one behind the other on a link, joined into one super-frame.
//!
//! Every frame costs a way through the kernel at both ends, whatever its length. What was released
//! in two pieces leaves as one where they follow each other, and of two bare acks of one moment
//! only the later one leaves. No byte is copied. Nothing is joined that a receiver could tell from
//! what a sender might have sent by itself: same flow, same ack, window and options, next sequence
//! number. Read first: RFC 9293 3.8.6.3 (an ack may stand for several) and 3.9.1.2 (several PSH may
//! become one), Linux's GRO.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::checksum::{pseudo_header, update16};
use super::frame::{Frame, Gso, GsoKind, Offload};
use super::packet::TcpFlags;
use super::parse::{self, protocol};

/// Pieces of payload in one train.
pub const PIECES_MAX: usize = 16;
/// Bytes of an IP packet; longer ones are for links that say so.
const IP_BYTES_MAX: usize = 65_535;
/// Trains of other flows that are looked past for one that a frame continues.
const LOOK_BACK: usize = 32;
const TCP_CHECKSUM_FIELD: u16 = 16;
/// A TCP header with nothing but two no-operations and timestamps behind it.
const STAMPED_HEADER: usize = 32;
const STAMPS: [u8; 4] = [1, 1, 8, 10];

/// A frame to be sent, and the payload of those that follow it in the same flow.
#[derive(Debug)]
pub struct Train {
    frame: Frame,
    more: Vec<Bytes>,
    /// Where addresses and ports stand in the head; empty if it is of no flow.
    ends: Range<usize>,
}

impl From<Frame> for Train {
    fn from(frame: Frame) -> Self {
        let ends = Fields::of(&frame).map_or(0..0, |fields| fields.ends());
        Self { frame, more: Vec::new(), ends }
    }
}

/// Puts `frame` into `queue`: joined to the last train of its flow, if it continues that one, else
/// behind all. Frames of one flow keep their order; flows have none among each other.
pub fn enqueue(queue: &mut VecDeque<Train>, frame: Frame) {
    let next = Train::from(frame);
    let Some(flow) = next.flow() else { return queue.push_back(next) };
    // What is of no flow may belong to this one, as a fragment does: nothing passes it.
    let known = queue.iter().rev().take(LOOK_BACK).map_while(|train| Some(train.flow()? == flow));
    let back = known.enumerate().find_map(|(back, is_same)| is_same.then_some(back));
    let last = back.and_then(|back| queue.len().checked_sub(back + 1));
    match last.and_then(|last| queue.get_mut(last)) {
        Some(train) => {
            let rest = train.join(next.frame);
            queue.extend(rest.map(Train::from));
        }
        None => queue.push_back(next),
    }
}

impl Train {
    /// The frame with the headers of all and the first piece of payload.
    pub const fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Its addresses and ports; nothing if it is not TCP as the gateway builds it.
    fn flow(&self) -> Option<&[u8]> {
        self.frame.head().get(self.ends.clone()).filter(|ends| !ends.is_empty())
    }

    /// The further pieces of payload.
    pub fn more(&self) -> &[Bytes] {
        &self.more
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.frame.len() + self.more.iter().map(Bytes::len).sum::<usize>()
    }

    /// Joins `next`, or gives it back if it has to leave by itself.
    pub fn join(&mut self, next: Frame) -> Option<Frame> {
        match self.joint(&next) {
            Some(Joint::Data(gso)) => {
                self.append(next, gso);
                None
            }
            Some(Joint::LaterAck) => {
                self.frame = next;
                None
            }
            None => Some(next),
        }
    }

    /// How `next` follows, if it does.
    fn joint(&self, next: &Frame) -> Option<Joint> {
        let (a, b) = (Fields::of(&self.frame)?, Fields::of(next)?);
        let is_plain = |fields: &Fields<'_>| fields.flags().without(TcpFlags::PSH) == TcpFlags::ACK;
        if a.l4_at != b.l4_at || a.head.len() != b.head.len() || !is_plain(&a) || !is_plain(&b) {
            return None;
        }
        let payload = self.bytes() - a.head.len();
        if payload == 0 {
            let is_later = b.ack().wrapping_sub(a.ack()) as i32 > 0;
            let is_bare = next.body().is_empty();
            let is_same = a.seq() == b.seq() && a.equals(&b, Varies::AckToo);
            return (is_later && is_bare && is_same && a.has_stamps_only())
                .then_some(Joint::LaterAck);
        }
        let ip_len = a.head.len() - a.l3_at + payload + next.body().len();
        let follows = a.seq().wrapping_add(payload as u32) == b.seq()
            && !next.body().is_empty()
            && ip_len <= IP_BYTES_MAX
            && self.more.len() + 2 <= PIECES_MAX
            && a.equals(&b, Varies::PositionOnly);
        let size = |frame: &Frame, len: usize| frame.offload().gso.map_or(len, |g| g.size.into());
        let size = size(&self.frame, payload).max(size(next, next.body().len()));
        let kind = if a.is_v4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
        let size = u16::try_from(size).ok()?;
        follows.then_some(Joint::Data(Gso { kind, size, hdr_len: a.head.len() as u16 }))
    }

    fn append(&mut self, next: Frame, gso: Gso) {
        let Some(Fields { l3_at, l4_at, .. }) = Fields::of(&self.frame) else { return };
        let push = next.head()[l4_at + 13] & TcpFlags::PSH.0;
        let (_, body, offload) = next.into_parts();
        self.more.push(body);
        let ip_len = self.bytes() - l3_at;
        let addresses = parse::addresses(self.frame.head(), l3_at);
        let head = self.frame.head_mut();
        head[l4_at + 13] |= push;
        if head[l3_at] >> 4 == 4 {
            let old = |at| u16::from_be_bytes([head[at], head[at + 1]]);
            let check = update16(old(l3_at + 10), old(l3_at + 2), ip_len as u16);
            head[l3_at + 2..l3_at + 4].copy_from_slice(&(ip_len as u16).to_be_bytes());
            head[l3_at + 10..l3_at + 12].copy_from_slice(&check.to_be_bytes());
        } else {
            let len = (ip_len - 40) as u16;
            head[l3_at + 4..l3_at + 6].copy_from_slice(&len.to_be_bytes());
        }
        if let Some((src, dst)) = addresses {
            let l4_len = ip_len - (l4_at - l3_at);
            let pseudo = pseudo_header(src, dst, protocol::TCP, l4_len).fold();
            head[l4_at + 16..l4_at + 18].copy_from_slice(&pseudo.to_be_bytes());
        }
        self.frame.set_offload(Offload { gso: Some(gso), ..offload });
    }
}

/// How a frame continues a train.
enum Joint {
    /// With payload; the pieces are cut as told.
    Data(Gso),
    /// By an ack that stands for the one before.
    LaterAck,
}

/// What may differ between two heads that are joined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Varies {
    /// Identification, lengths, sequence number, PSH and the checksums that follow from them.
    PositionOnly,
    /// The ack, the window and the timestamps as well.
    AckToo,
}

/// A TCP head with a checksum to be finished, as the gateway builds it.
struct Fields<'a> {
    head: &'a [u8],
    l3_at: usize,
    l4_at: usize,
}

impl<'a> Fields<'a> {
    fn of(frame: &'a Frame) -> Option<Self> {
        let spot = frame.offload().needs_csum.filter(|spot| spot.offset == TCP_CHECKSUM_FIELD)?;
        let head = frame.head();
        let layout = parse::layout(head)?;
        let l4_at = usize::from(spot.start);
        let is_tcp = layout.protocol == protocol::TCP && layout.l4_at == l4_at;
        let is_whole = head.len() >= l4_at + 20 && parse::header_len(head) == head.len();
        let is_exact = parse::ip_end(frame) == Some(frame.len());
        // Frames that were joined say their own length, not that of their first piece.
        let has_gso = frame.offload().gso.is_some();
        (is_tcp && is_whole && (is_exact || has_gso)).then_some(Self {
            head,
            l3_at: layout.l3_at,
            l4_at,
        })
    }

    /// Where both addresses and both ports stand, next to each other.
    fn ends(&self) -> Range<usize> {
        let (header, addresses) = if self.is_v4() { (20, 8) } else { (40, 32) };
        match self.l4_at == self.l3_at + header {
            true => self.l4_at - addresses..self.l4_at + 4,
            false => 0..0, // options or extension headers stand between
        }
    }

    fn be32(&self, at: usize) -> u32 {
        parse::be32(self.head, self.l4_at + at).unwrap_or(0)
    }

    fn seq(&self) -> u32 {
        self.be32(4)
    }

    fn ack(&self) -> u32 {
        self.be32(8)
    }

    fn flags(&self) -> TcpFlags {
        TcpFlags(self.head[self.l4_at + 13])
    }

    fn is_v4(&self) -> bool {
        self.head[self.l3_at] >> 4 == 4
    }

    /// No option that says something of its own, as SACK does.
    fn has_stamps_only(&self) -> bool {
        let tcp = &self.head[self.l4_at..];
        tcp.len() == 20 || tcp.len() == STAMPED_HEADER && tcp[20..24] == STAMPS
    }

    /// Whether both heads are the same but for what `varies`. Both have the same lengths.
    fn equals(&self, other: &Self, varies: Varies) -> bool {
        let (l3, l4) = (self.l3_at, self.l4_at);
        let may_vary = |at: usize| {
            let in_ip = match self.is_v4() {
                true => (l3 + 2..l3 + 6).contains(&at) || (l3 + 10..l3 + 12).contains(&at),
                false => (l3 + 4..l3 + 6).contains(&at),
            };
            let in_tcp = (l4 + 4..l4 + 8).contains(&at) || (l4 + 16..l4 + 18).contains(&at);
            let in_ack = (l4 + 8..l4 + 12).contains(&at)
                || (l4 + 14..l4 + 16).contains(&at)
                || at >= l4 + 24;
            in_ip || in_tcp || at == l4 + 13 || varies == Varies::AckToo && in_ack
        };
        let pairs = self.head.iter().zip(other.head).enumerate();
        pairs.into_iter().all(|(at, (a, b))| a == b || may_vary(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::{self, TcpFields};
    use crate::wire::checksum::Sum;
    use crate::wire::{L2, L3, Packet, TcpOptions, Tsval};

    const MSS: u16 = 1448;

    fn l3(ip: &str) -> L3 {
        let dst = if ip.contains(':') { "2001:db8::7" } else { "192.0.2.7" };
        let (src, dst) = (ip.parse().expect("an address"), dst.parse().expect("an address"));
        L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 1, flow_label: 0 }
    }

    fn fields(seq: u32, ack: u32, stamp: u32) -> TcpFields {
        let timestamps = Some((Tsval(stamp), Tsval(9)));
        TcpFields {
            src_port: 80,
            dst_port: 4242,
            seq,
            ack,
            flags: TcpFlags::ACK,
            window: 500,
            urgent: 0,
            options: TcpOptions { timestamps, ..TcpOptions::default() },
        }
    }

    fn frame(ip: &str, fields: &TcpFields, body: &[u8]) -> Frame {
        build::tcp(&L2::default(), &l3(ip), fields, Bytes::copy_from_slice(body), MSS)
    }

    /// The bytes on the wire, as the receiver would see them in one frame.
    fn whole(train: &Train) -> Frame {
        let mut bytes = train.frame().to_vec();
        train.more().iter().for_each(|piece| bytes.extend_from_slice(piece));
        Frame::from_wire(bytes.into(), train.frame().offload())
    }

    #[test]
    fn what_follows_is_joined_and_reads_as_if_it_had_been_sent_at_once() {
        for ip in ["198.51.100.1", "2001:db8::1"] {
            let bytes: Vec<u8> = (0..60_000u32).map(|i| (i % 251) as u8).collect();
            let mut train = Train::from(frame(ip, &fields(u32::MAX - 99, 5, 7), &bytes[..100]));
            let mut pushed = fields(0, 5, 7);
            pushed.flags = TcpFlags::ACK.with(TcpFlags::PSH);
            assert_eq!(train.join(frame(ip, &fields(0, 5, 7), &bytes[100..30_000])), None);
            pushed.seq = 29_900;
            assert_eq!(train.join(frame(ip, &pushed, &bytes[30_000..])), None);
            let mut at_once = pushed;
            at_once.seq = u32::MAX - 99;
            let at_once = frame(ip, &at_once, &bytes);
            let joined = whole(&train);
            assert_eq!(joined.to_vec(), at_once.to_vec());
            assert_eq!(joined.offload(), at_once.offload());
            assert!(matches!(parse::parse(&joined), Ok(Packet::Tcp(_))));
            // A PSH that is not the last is none.
            pushed.seq = 59_900;
            assert_eq!(train.join(frame(ip, &pushed, b"x")), None);
            pushed.seq = u32::MAX - 99;
            let longer = [&bytes[..], b"x"].concat();
            assert_eq!(whole(&train).to_vec(), frame(ip, &pushed, &longer).to_vec());
        }
    }

    #[test]
    fn nothing_else_is_joined() {
        let ip = "198.51.100.1";
        let first = || Train::from(frame(ip, &fields(1000, 5, 7), b"0123456789"));
        let refused = |next: Frame| first().join(next.clone()) == Some(next);
        assert!(first().join(frame(ip, &fields(1010, 5, 7), b"a")).is_none());
        assert!(refused(frame(ip, &fields(1011, 5, 7), b"a")), "a gap");
        assert!(refused(frame(ip, &fields(1009, 5, 7), b"a")), "an overlap");
        assert!(refused(frame(ip, &fields(1010, 6, 7), b"a")), "another ack");
        assert!(refused(frame(ip, &fields(1010, 5, 8), b"a")), "another timestamp");
        assert!(refused(frame(ip, &fields(1010, 5, 7), b"")), "a bare ack");
        assert!(refused(frame("198.51.100.2", &fields(1010, 5, 7), b"a")), "another flow");
        let with = |change: fn(&mut TcpFields)| {
            let mut fields = fields(1010, 5, 7);
            change(&mut fields);
            frame(ip, &fields, b"a")
        };
        assert!(refused(with(|f| f.src_port = 81)), "another port");
        assert!(refused(with(|f| f.window = 501)), "another window");
        assert!(refused(with(|f| f.flags = TcpFlags::FIN_ACK)), "the end");
        assert!(refused(with(|f| f.urgent = 1)), "urgent bytes");
        assert!(refused(with(|f| f.options.timestamps = None)), "other options");
    }

    #[test]
    fn a_train_is_as_long_as_an_ip_packet_can_be() {
        for (ip, header) in [("198.51.100.1", 20), ("2001:db8::1", 40)] {
            let room = 65_535 - header - STAMPED_HEADER - 65_000;
            let next = |len: usize| frame(ip, &fields(65_000, 5, 7), &[0; 1000][..len]);
            let mut full = Train::from(frame(ip, &fields(0, 5, 7), &[0; 65_000]));
            assert!(full.join(next(room + 1)).is_some(), "too long");
            assert!(full.join(next(room)).is_none());
        }
    }

    #[test]
    fn what_is_not_as_the_gateway_builds_it_is_not_joined() {
        let join = |edit: fn(&mut Frame)| {
            let [first, next] = [1000, 1010].map(|seq| {
                let mut frame = frame("198.51.100.1", &fields(seq, 5, 7), b"0123456789");
                edit(&mut frame);
                frame
            });
            Train::from(first).join(next).is_none()
        };
        assert!(join(|_| ()));
        let protocol = |frame: &mut Frame| {
            frame.head_mut()[23] = 47;
            let check =
                Sum::new().bytes(&frame.head()[14..24]).bytes(&frame.head()[26..34]).check();
            frame.head_mut()[24..26].copy_from_slice(&check.to_be_bytes());
        };
        assert!(!join(protocol), "another protocol");
        assert!(
            !join(|frame| frame.head_mut()[34 + 12] = 5 << 4),
            "a header that says it is short"
        );
    }

    #[test]
    fn a_frame_finds_the_train_of_its_flow_and_never_passes_what_may_belong_to_it() {
        let of = |port: u16, seq: u32, body: &[u8]| {
            frame("198.51.100.1", &TcpFields { src_port: port, ..fields(seq, 5, 7) }, body)
        };
        let queue = |frames: Vec<Frame>| {
            let mut queue = VecDeque::new();
            frames.into_iter().for_each(|frame| enqueue(&mut queue, frame));
            let lens = queue.iter().map(|t| t.bytes() - t.frame().head().len());
            lens.collect::<Vec<_>>()
        };
        let (a, b) = (of(80, 100, b"0123456789"), of(81, 7, b"abc"));
        let continued = of(80, 110, b"x");
        assert_eq!(queue(vec![a.clone(), b.clone(), continued.clone()]), [11, 3]);
        assert_eq!(
            queue(vec![a.clone(), of(80, 200, b"yy"), b.clone(), continued.clone()]),
            [10, 2, 3, 1],
            "the last one of its flow is another"
        );
        let fragments = build::fragments(a.clone(), 40 + STAMPED_HEADER);
        let strange = fragments.into_iter().next().expect("a fragment");
        let len = strange.body().len();
        assert_eq!(queue(vec![a.clone(), strange, continued.clone()]), [10, len, 1]);
        let others = (0..LOOK_BACK as u16).map(|n| of(1000 + n, 1, b"z"));
        let far = std::iter::once(a).chain(others).chain([continued]).collect();
        assert_eq!(queue(far).last(), Some(&1), "too far back");
    }

    #[test]
    fn a_later_ack_stands_for_the_one_before_unless_either_says_more() {
        let ip = "198.51.100.1";
        let ack = |ack, stamp| frame(ip, &fields(1, ack, stamp), b"");
        let mut train = Train::from(ack(u32::MAX, 7));
        assert_eq!(train.join(ack(3, 8)), None);
        assert_eq!(whole(&train).to_vec(), ack(3, 8).to_vec());
        assert!(train.join(ack(3, 9)).is_some(), "a duplicate ack means something");
        assert!(train.join(ack(2, 9)).is_some(), "an older one too");
        let mut sack = fields(1, 9, 7);
        sack.options.sack.push(20, 30);
        assert!(train.join(frame(ip, &sack, b"")).is_some(), "SACK means something");
        assert!(Train::from(frame(ip, &sack, b"")).join(ack(10, 7)).is_some());
        let mut fin = fields(1, 9, 7);
        fin.flags = TcpFlags::FIN_ACK;
        assert!(train.join(frame(ip, &fin, b"")).is_some());
        assert!(train.join(frame(ip, &fields(2, 9, 7), b"")).is_some(), "another position");
    }
}
