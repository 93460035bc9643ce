//! Ends read and changed in place, against frames that are built with the new ends from the
//! beginning; there and back; what is wrong stays wrong; any bytes.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::checksum::{self, Sum, pseudo_header};
use crate::wire::parse::parse;
use crate::wire::{Addressed, Ends, Talk, build};

/// What a packet of these tests is.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Tcp,
    Udp,
    UdpWithoutSum,
    EchoRequest,
    EchoReply,
}

const SHAPES: [Shape; 5] =
    [Shape::Tcp, Shape::Udp, Shape::UdpWithoutSum, Shape::EchoRequest, Shape::EchoReply];

fn end(is_v4: bool) -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 15]>(), any::<u16>()).prop_map(move |(tail, port)| {
        let ip: IpAddr = match is_v4 {
            true => [10, tail[0], tail[1], tail[2]].into(),
            false => {
                let mut octets = [0x20; 16];
                octets[1..].copy_from_slice(&tail);
                octets.into()
            }
        };
        SocketAddr::new(ip, port)
    })
}

fn ends(is_v4: bool) -> impl Strategy<Value = Ends> {
    (end(is_v4), end(is_v4))
        .prop_filter("land", |(src, dst)| src.ip() != dst.ip())
        .prop_map(|(src, dst)| Ends { src, dst })
}

/// Old and new ends of one family, and the ends that are quoted.
fn moves() -> impl Strategy<Value = [Ends; 4]> {
    any::<bool>().prop_flat_map(|is_v4| [ends(is_v4), ends(is_v4), ends(is_v4), ends(is_v4)])
}

/// The ends as a packet of `shape` has them.
fn seen(shape: Shape, ends: Ends) -> Ends {
    let mut ends = ends;
    match shape {
        Shape::EchoRequest => ends.dst.set_port(0),
        Shape::EchoReply => ends.src.set_port(0),
        Shape::Tcp | Shape::Udp | Shape::UdpWithoutSum => {}
    }
    ends
}

fn l3_of(ends: Ends) -> L3 {
    let flow_label = if ends.src.is_ipv4() { 0 } else { 0x4321 };
    let id = if ends.src.is_ipv4() { 7 } else { 0 };
    let (src, dst) = (ends.src.ip(), ends.dst.ip());
    L3 { src, dst, ttl: 63, tos: 0, dont_fragment: true, id, flow_label }
}

/// A packet, its checksum finished.
fn packet(shape: Shape, ends: Ends, data: &[u8]) -> Frame {
    let l3 = l3_of(ends);
    let (sport, dport) = (ends.src.port(), ends.dst.port());
    let is_v4 = ends.src.is_ipv4();
    let (protocol, field, mut message) = match shape {
        Shape::Tcp => {
            let fields = TcpFields { src_port: sport, dst_port: dport, ..fields() };
            let data = Bytes::copy_from_slice(data);
            let mut frame = build::tcp(&l2(), &l3, &fields, data, u16::MAX);
            checksum::complete(&mut frame);
            return frame;
        }
        Shape::Udp | Shape::UdpWithoutSum => {
            let len = 8 + data.len() as u16;
            (17, 6, [sport, dport, len, 0].map(u16::to_be_bytes).concat())
        }
        Shape::EchoRequest | Shape::EchoReply => {
            let (id, kind) = match (shape, is_v4) {
                (Shape::EchoRequest, true) => (sport, 8),
                (Shape::EchoRequest, false) => (sport, 128),
                (_, true) => (dport, 0),
                (_, false) => (dport, 129),
            };
            let protocol = if is_v4 { 1 } else { 58 };
            (protocol, 2, [kind << 8, 0, id, 9].map(u16::to_be_bytes).concat())
        }
    };
    message.extend_from_slice(data);
    let pseudo = match protocol {
        1 => Sum::new(),
        _ => pseudo_header(l3.src, l3.dst, protocol, message.len()),
    };
    let check = match (protocol, pseudo.bytes(&message).check()) {
        (17, 0) => 0xffff,
        (_, check) => check,
    };
    if !matches!((shape, is_v4), (Shape::UdpWithoutSum, true)) {
        message[field..field + 2].copy_from_slice(&check.to_be_bytes());
    }
    build::datagram(&l2(), &l3, protocol, &message)
}

/// An error of `ends` about `quoted`, of which `cut` bytes of the transport are there.
fn error(ends: Ends, quoted: &Frame, cut: usize) -> Frame {
    let l3 = l3_of(ends);
    let is_v4 = ends.src.is_ipv4();
    let ip_len = if is_v4 { 20 } else { 40 };
    let all = quoted.to_vec();
    let mut message = BytesMut::new();
    message.put_slice(if is_v4 { &[3, 1, 0, 0, 0, 0, 0, 0] } else { &[1, 0, 0, 0, 0, 0, 0, 0] });
    message.put_slice(&all[14..(14 + ip_len + cut).min(all.len())]);
    let protocol = if is_v4 { 1 } else { 58 };
    let sum = match is_v4 {
        true => Sum::new(),
        false => pseudo_header(l3.src, l3.dst, protocol, message.len()),
    };
    let check = sum.bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    build::datagram(&l2(), &l3, protocol, &message)
}

fn talk_of(shape: Shape) -> Talk {
    match shape {
        Shape::Tcp => Talk::Tcp,
        Shape::Udp | Shape::UdpWithoutSum => Talk::Udp,
        Shape::EchoRequest | Shape::EchoReply => Talk::Echo,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A packet with its ends changed is the packet that is built with those ends, byte for byte,
    /// and changed back it is what it was.
    #[test]
    fn a_changed_packet_is_one_made_anew(
        [from, to, ..] in moves(),
        shape in prop::sample::select(SHAPES.to_vec()),
        data in vec(any::<u8>(), 0..60),
    ) {
        let (from, to) = (seen(shape, from), seen(shape, to));
        let before = packet(shape, from, &data);
        let mut frame = before.clone();
        let read = Addressed::of(&frame).expect("it is whole");
        prop_assert_eq!((read.ends, read.talk), (from, Some(talk_of(shape))));
        read.readdress(&mut frame, to, None);
        prop_assert_eq!(frame.to_vec(), packet(shape, to, &data).to_vec());
        let back = Addressed::of(&frame).expect("it is whole");
        prop_assert_eq!(back.ends, to);
        back.readdress(&mut frame, from, None);
        prop_assert_eq!(frame, before);
    }

    /// What a parsed packet says of itself is what its frame says.
    #[test]
    fn a_parsed_packet_follows_its_frame(
        [from, to, ..] in moves(),
        shape in prop::sample::select(SHAPES.to_vec()),
        hops: u8,
    ) {
        prop_assume!(!matches!((shape, from.src.is_ipv4()), (Shape::UdpWithoutSum, false)));
        let (from, to) = (seen(shape, from), seen(shape, to));
        let mut frame = packet(shape, from, b"data");
        let mut parsed = parse(&frame).expect("it is right");
        let read = Addressed::of(&frame).expect("it is whole");
        read.readdress(&mut frame, to, None);
        read.set_hops(&mut frame, hops);
        parsed.readdress(l2(), to, None, hops);
        prop_assert_eq!(parse(&frame), Ok(parsed));
        prop_assert_eq!(read.hops(&frame), hops);
    }

    /// A partial checksum is that of the new addresses, super-frames are kept whole, and completed
    /// it is right.
    #[test]
    fn a_partial_checksum_follows_the_addresses([from, to, ..] in moves(), len in 0usize..5000) {
        let build = |ends: Ends| {
            let (src_port, dst_port) = (ends.src.port(), ends.dst.port());
            let fields = TcpFields { src_port, dst_port, ..fields() };
            build::tcp(&l2(), &l3_of(ends), &fields, payload(len), 1448)
        };
        let mut frame = build(from);
        Addressed::of(&frame).expect("it is whole").readdress(&mut frame, to, None);
        prop_assert_eq!(frame, build(to));
    }

    /// An error and what it quotes, whole or cut, are those that would have been made between the
    /// new ends.
    #[test]
    fn an_error_is_changed_with_what_it_quotes(
        [from, to, inner_from, inner_to] in moves(),
        shape in prop::sample::select(SHAPES.to_vec()),
        cut in prop::sample::select(vec![8usize, 12, 20, 64]),
    ) {
        let strip = |mut ends: Ends| {
            ends.src.set_port(0);
            ends.dst.set_port(0);
            ends
        };
        let (from, to) = (strip(from), strip(to));
        let (inner_from, inner_to) = (seen(shape, inner_from), seen(shape, inner_to));
        let quote = |ends| packet(shape, ends, b"0123456789abcdef0123");
        let before = error(from, &quote(inner_from), cut);
        let mut frame = before.clone();
        let read = Addressed::of(&frame).expect("it is whole");
        prop_assert_eq!((read.ends, read.talk), (from, None));
        prop_assert_eq!(read.quoted, Some((talk_of(shape), inner_from)));
        let mut parsed = parse(&frame).expect("it is right");
        read.readdress(&mut frame, to, Some(inner_to));
        prop_assert_eq!(frame.to_vec(), error(to, &quote(inner_to), cut).to_vec());
        parsed.readdress(l2(), to, Some(inner_to), 63);
        prop_assert_eq!(parse(&frame), Ok(parsed));
        let back = Addressed::of(&frame).expect("it is whole");
        back.readdress(&mut frame, from, Some(inner_from));
        prop_assert_eq!(frame, before);
    }

    /// Damage stays visible (I13).
    #[test]
    fn a_damaged_packet_stays_damaged(
        [from, to, ..] in moves(), at in 0usize..40, bit in 0u32..8,
    ) {
        let whole = packet(Shape::Tcp, from, &[7; 40]);
        let mut bytes = whole.to_vec();
        let at = bytes.len() - 40 + at;
        bytes[at] ^= 1 << bit;
        let mut frame = super::from_wire(&bytes);
        Addressed::of(&frame).expect("its headers are whole").readdress(&mut frame, to, None);
        prop_assert_eq!(parse(&frame), Err(Malformed::TcpChecksum));
    }

    /// Whatever the bytes: nothing panics, and no byte moves behind the headers.
    #[test]
    fn any_bytes_are_read_and_changed_without_a_panic(
        [a, b, c, d] in moves(),
        mut bytes in vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![[8u8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 0, 0x4f]]),
        protocol in prop::sample::select(vec![1u8, 6, 17, 58, 44, 0]),
        spot in proptest::option::of((0u16..300, 0u16..300)),
    ) {
        if bytes.len() > 24 {
            bytes[12..15].copy_from_slice(&kind);
            bytes[if kind[2] == 0x60 { 20 } else { 23 }] = protocol;
        }
        let mut frame = super::from_wire(&bytes);
        let needs_csum = spot.map(|(start, offset)| CsumSpot { start, offset });
        frame.set_offload(Offload { needs_csum, ..Offload::default() });
        if let Some(read) = Addressed::of(&frame) {
            let len = frame.len();
            let (to, quoted) = match read.ends.src.is_ipv4() == a.src.is_ipv4() {
                true => (a, b),
                false => (read.ends, read.quoted.map_or(c, |(_, ends)| ends)),
            };
            let is_family = quoted.src.is_ipv4() == read.ends.src.is_ipv4();
            read.readdress(&mut frame, to, is_family.then_some(quoted));
            read.set_hops(&mut frame, d.src.port() as u8);
            read.answer_echo(&mut frame);
            prop_assert_eq!(frame.len(), len);
        }
    }
}

#[test]
fn an_echo_request_becomes_its_answer() {
    for (src, dst) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let at = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
        let request = Ends { src: at(src, 77), dst: at(dst, 0) };
        let mut frame = packet(Shape::EchoRequest, request, b"ping");
        let read = Addressed::of(&frame).expect("it is whole");
        assert!(read.answer_echo(&mut frame));
        let Ok(Packet::Icmp(icmp)) = parse(&frame) else { panic!("a message") };
        assert_eq!(icmp.kind, IcmpKind::EchoReply { id: 77, seq: 9 });
        assert_eq!(
            (icmp.l3.src, icmp.l3.dst, icmp.l3.ttl),
            (request.dst.ip(), request.src.ip(), 64)
        );
        let read = Addressed::of(&frame).expect("it is whole");
        assert!(!read.answer_echo(&mut frame), "an answer has none");
    }
}
