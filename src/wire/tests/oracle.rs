//! Independent oracles: `etherparse` and `pnet` read what is built here and sum it up, and build
//! what is read here. Random and half-right bytes never panic.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::parse::{header_len, parse};
use crate::wire::{build, checksum, rewrite, segmentize, vnet_hdr};

fn any_l3() -> impl Strategy<Value = L3> {
    let host_v4 = (1u8..=9, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| [a, b, c, d]);
    let host_v6 = any::<[u8; 14]>().prop_map(|tail| {
        let mut octets = [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        octets[2..].copy_from_slice(&tail);
        octets
    });
    let v4 = (host_v4.clone(), host_v4)
        .prop_map(|(src, dst)| (IpAddr::V4(Ipv4Addr::from(src)), IpAddr::V4(Ipv4Addr::from(dst))));
    let v6 = (host_v6.clone(), host_v6)
        .prop_map(|(src, dst)| (IpAddr::V6(Ipv6Addr::from(src)), IpAddr::V6(Ipv6Addr::from(dst))));
    let rest = (any::<u8>(), any::<u8>(), any::<bool>(), any::<u16>(), 0u32..1 << 20);
    (prop_oneof![v4, v6], rest).prop_filter("land", |((src, dst), _)| src != dst).prop_map(
        |((src, dst), (ttl, tos, dont_fragment, id, flow_label))| {
            let is_v4 = src.is_ipv4();
            L3 {
                src,
                dst,
                ttl,
                tos,
                dont_fragment: dont_fragment || !is_v4,
                id: if is_v4 { id } else { 0 },
                flow_label: if is_v4 { 0 } else { flow_label },
            }
        },
    )
}

fn any_l2() -> impl Strategy<Value = L2> {
    let tag = || (prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>());
    (any::<[u8; 6]>(), any::<[u8; 6]>(), proptest::option::of((tag(), proptest::option::of(tag()))))
        .prop_map(|(dst, mut src, tags)| {
            src[0] &= !1;
            let vlans = Vlans {
                outer: tags.map(|(outer, _)| outer),
                inner: tags.and_then(|(_, inner)| inner),
            };
            L2 { dst: Mac(dst), src: Mac(src), vlans }
        })
}

fn any_options(is_syn: bool) -> impl Strategy<Value = TcpOptions> {
    let syn = (proptest::option::of(any::<u16>()), proptest::option::of(0u8..=14), any::<bool>());
    let stamps = proptest::option::of((any::<u32>(), any::<u32>()));
    (syn, stamps, vec((any::<u32>(), any::<u32>()), 0..=3)).prop_map(
        move |((mss, window_scale, sack_permitted), stamps, blocks)| {
            let mut options = TcpOptions {
                timestamps: stamps.map(|(value, echo)| (Tsval(value), Tsval(echo))),
                ..TcpOptions::default()
            };
            if is_syn {
                options = TcpOptions { mss, window_scale, sack_permitted, ..options };
            } else {
                for (left, right) in blocks {
                    assert!(options.sack.push(left, right));
                }
            }
            options
        },
    )
}

fn any_fields() -> impl Strategy<Value = TcpFields> {
    let flags =
        prop_oneof![Just(0x02u8), Just(0x12), Just(0xc2), Just(0x10), Just(0x18), Just(0x91)];
    let numbers = (any::<u16>(), any::<u16>(), any::<u32>(), any::<u32>());
    let rest = (any::<u16>(), any::<u16>());
    flags.prop_flat_map(move |flags| {
        (any_options(flags & 2 != 0), numbers, rest).prop_map(
            move |(options, (src_port, dst_port, seq, ack), (window, urgent))| TcpFields {
                src_port,
                dst_port,
                seq,
                ack,
                flags: TcpFlags(flags),
                window,
                urgent,
                options,
            },
        )
    })
}

proptest! {
    /// etherparse finds in a built frame the fields and the checksums that were meant.
    #[test]
    fn etherparse_reads_what_is_built(
        l2 in any_l2(), l3 in any_l3(), fields in any_fields(), len in 0usize..3000,
    ) {
        let body = payload(len);
        let mut frame = build::tcp(&l2, &l3, &fields, body.clone(), u16::MAX);
        checksum::complete(&mut frame);
        let bytes = frame.to_vec();
        let sliced = SlicedPacket::from_ethernet(&bytes).expect("well-formed");
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("{sliced:?}") };
        let check = match sliced.net.as_ref().expect("well-formed") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
                prop_assert_eq!(IpAddr::V4(header.source.into()), l3.src);
                prop_assert_eq!((header.time_to_live, header.identification), (l3.ttl, l3.id));
                prop_assert_eq!(header.dont_fragment, l3.dont_fragment);
                let total = 20 + tcp.header_len() + len;
                prop_assert_eq!(usize::from(header.total_len), total);
                tcp.calc_checksum_ipv4(header.source, header.destination).expect("well-formed")
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                prop_assert_eq!(IpAddr::V6(header.destination.into()), l3.dst);
                prop_assert_eq!((header.hop_limit, header.traffic_class), (l3.ttl, l3.tos));
                prop_assert_eq!(header.flow_label.value(), l3.flow_label);
                tcp.calc_checksum_ipv6(header.source, header.destination).expect("well-formed")
            }
            NetSlice::Arp(_) => panic!("not ARP"),
        };
        prop_assert_eq!(tcp.checksum(), check);
        prop_assert_eq!(tcp.source_port(), fields.src_port);
        prop_assert_eq!(tcp.destination_port(), fields.dst_port);
        prop_assert_eq!(tcp.sequence_number(), fields.seq);
        prop_assert_eq!(tcp.acknowledgment_number(), fields.ack);
        prop_assert_eq!((tcp.window_size(), tcp.urgent_pointer()), (fields.window, fields.urgent));
        prop_assert_eq!(tcp.payload(), &body[..]);
        let flags = fields.flags;
        prop_assert_eq!((tcp.syn(), tcp.ack(), tcp.fin()), (
            flags.has(TcpFlags::SYN), flags.has(TcpFlags::ACK), flags.has(TcpFlags::FIN)));
        let mut seen = TcpOptions::default();
        for option in tcp.options_iterator() {
            use etherparse::TcpOptionElement as Element;
            match option.expect("well-formed") {
                Element::MaximumSegmentSize(mss) => seen.mss = Some(mss),
                Element::WindowScale(shift) => seen.window_scale = Some(shift),
                Element::SelectiveAcknowledgementPermitted => seen.sack_permitted = true,
                Element::Timestamp(value, echo) => {
                    seen.timestamps = Some((Tsval(value), Tsval(echo)));
                }
                Element::SelectiveAcknowledgement(first, more) => {
                    for (left, right) in std::iter::once(first).chain(more.into_iter().flatten()) {
                        seen.sack.push(left, right);
                    }
                }
                Element::Noop => {}
            }
        }
        prop_assert_eq!(seen, fields.options);
    }

    /// What is built parses back the same, partial, completed, and under the kernel's own header.
    #[test]
    fn what_is_built_parses_back(
        l2 in any_l2(), l3 in any_l3(), fields in any_fields(),
        len in 0usize..6000, mss in 1u16..2000,
    ) {
        let frame = build::tcp(&l2, &l3, &fields, payload(len), mss);
        let Ok(Packet::Tcp(segment)) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
        prop_assert_eq!((segment.l2, segment.l3), (l2, l3));
        prop_assert_eq!((segment.seq, segment.ack), (fields.seq, fields.ack));
        prop_assert_eq!(segment.flags, fields.flags);
        prop_assert_eq!((segment.window, segment.urgent), (fields.window, fields.urgent));
        prop_assert_eq!(segment.options, fields.options);
        prop_assert_eq!(segment.payload_len, len);
        prop_assert_eq!(segment.gso_size, (len > usize::from(mss)).then_some(mss));
        let all = frame.to_vec();
        prop_assert_eq!(header_len(&all), frame.head().len());
        let offload = vnet_hdr::read(&vnet_hdr::write(&frame), all.len()).expect("well-formed");
        prop_assert_eq!(offload, frame.offload());
        prop_assert_eq!(Frame::from_wire(all.into(), offload), frame);
    }

    /// The pieces of a super-frame are right by pnet's arithmetic, and hold the payload in order.
    #[cfg(feature = "app")]
    #[test]
    fn pnet_agrees_with_the_pieces(
        l3 in any_l3(), fields in any_fields(), len in 1usize..9000, mss in 500u16..1500,
    ) {
        use pnet::packet::{Packet as _, ipv4, tcp};
        let frame = build::tcp(&super::l2(), &l3, &fields, payload(len), mss);
        let mut pieces = Vec::new();
        prop_assert!(segmentize::for_link(frame, false, false, &mut pieces));
        let mut seen = Vec::new();
        for piece in &pieces {
            let bytes = piece.to_vec();
            let l4 = if l3.src.is_ipv4() { 34 } else { 54 };
            let segment = tcp::TcpPacket::new(&bytes[l4..]).expect("well-formed");
            let check = match (l3.src, l3.dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    let ip = ipv4::Ipv4Packet::new(&bytes[14..]).expect("well-formed");
                    prop_assert_eq!(ipv4::checksum(&ip), ip.get_checksum());
                    prop_assert_eq!(usize::from(ip.get_total_length()), bytes.len() - 14);
                    tcp::ipv4_checksum(&segment, &src, &dst)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => tcp::ipv6_checksum(&segment, &src, &dst),
                _ => unreachable!("one family"),
            };
            prop_assert_eq!(segment.get_checksum(), check);
            let at = segment.get_sequence().wrapping_sub(fields.seq) as usize;
            prop_assert_eq!(at, seen.len());
            seen.extend_from_slice(segment.payload());
        }
        prop_assert_eq!(seen, payload(len).to_vec());
    }

    /// What etherparse builds is read right.
    #[test]
    fn what_etherparse_builds_is_read(
        l3 in any_l3(), ports in any::<(u16, u16)>(), body in vec(any::<u8>(), 0..300),
    ) {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let ip = match (l3.src, l3.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), l3.ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), l3.ttl),
            _ => unreachable!("one family"),
        };
        let mut bytes = Vec::new();
        ip.udp(ports.0, ports.1).write(&mut bytes, &body).expect("well-formed");
        let frame = from_wire(&bytes);
        let Ok(Packet::Udp(datagram)) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
        prop_assert_eq!((datagram.l3.src, datagram.l3.dst), (l3.src, l3.dst));
        prop_assert_eq!((datagram.src_port, datagram.dst_port), ports);
        prop_assert_eq!(&frame.body()[..datagram.payload_len], &body[..]);
    }

    /// One flipped bit anywhere behind Ethernet never parses to the same segment (I13).
    #[test]
    fn a_flipped_bit_is_never_taken_for_the_original(
        l3 in any_l3(), fields in any_fields(), len in 0usize..200,
        at in any::<usize>(), bit in 0u8..8,
    ) {
        let mut frame = build::tcp(&super::l2(), &l3, &fields, payload(len), u16::MAX);
        checksum::complete(&mut frame);
        let mut bytes = frame.to_vec();
        let at = 14 + at % (bytes.len() - 14);
        bytes[at] ^= 1 << bit;
        match parse(&from_wire(&bytes)) {
            // Fields of IPv6 that no checksum covers.
            Ok(Packet::Tcp(now)) => prop_assert!(l3.src.is_ipv6() && now.l3 != l3),
            Ok(Packet::Other(_) | Packet::Fragment(_)) => prop_assert!(l3.src.is_ipv6()),
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }

    /// The incremental update equals the full sum wherever the words are not all zero.
    #[test]
    fn rfc_1624_equals_the_full_sum(
        mut words in vec(prop_oneof![Just(0u16), Just(0xffff), any::<u16>()], 1..12),
        at in any::<usize>(), new in prop_oneof![Just(0u16), Just(0xffff), any::<u16>()],
    ) {
        let full = |words: &[u16]| {
            words.iter().fold(checksum::Sum::new(), |sum, word| sum.word(*word)).check()
        };
        // As the protocol number in each pseudo header: never all zero.
        words.push(6);
        let at = at % (words.len() - 1);
        let (before, old) = (full(&words), words[at]);
        words[at] = new;
        prop_assert_eq!(checksum::update16(before, old, new), full(&words));
        let (old, new) = (old.to_be_bytes(), new.to_be_bytes());
        prop_assert_eq!(checksum::update_bytes(before, &old, &new), full(&words));
    }

    /// The sum does not depend on how the bytes are cut, and is RFC 1071's.
    #[test]
    fn a_sum_does_not_depend_on_the_cuts(
        bytes in vec(any::<u8>(), 0..200), a in any::<usize>(), b in any::<usize>(),
    ) {
        let word = |two: &[u8]| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0));
        let plain: u32 = bytes.chunks(2).map(word).sum();
        let plain = (plain & 0xffff) + (plain >> 16);
        let plain = ((plain & 0xffff) + (plain >> 16)) as u16;
        let (a, b) = (a % (bytes.len() + 1), b % (bytes.len() + 1));
        let (a, b) = (a.min(b), a.max(b));
        let cut = checksum::Sum::new().bytes(&bytes[..a]).bytes(&bytes[a..b]).bytes(&bytes[b..]);
        prop_assert_eq!(cut.fold(), plain);
    }
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, max_shrink_iters: 200, ..ProptestConfig::default() }
}

/// Everything that may be done with a frame before it is known to be right.
fn exercise(frame: Frame) {
    let bytes = frame.to_vec();
    let packet = parse(&frame);
    if let Ok(
        Packet::Tcp(Segment { payload_len, .. }) | Packet::Udp(Datagram { payload_len, .. }),
    ) = packet
    {
        assert!(payload_len <= frame.body().len());
        assert_eq!(header_len(&bytes), frame.head().len());
    }
    if let Ok(Packet::Fragment(piece)) = packet {
        assert!(usize::from(piece.payload_at) + piece.payload_len <= frame.len());
    }
    if let Ok(Packet::Icmp(icmp)) = packet {
        rewrite::icmp_quote(&mut frame.clone(), &icmp, Some(&l2()), 7);
    }
    let mut whole = frame.clone();
    checksum::complete(&mut whole);
    build::fragments(whole, 68);
    build::icmp_too_big(&l2(), &l3(), 1280, &frame);
    vnet_hdr::write(&frame);
    segmentize::for_link(frame, false, false, &mut Vec::new());
}

fn any_offload() -> impl Strategy<Value = Offload> {
    vec(any::<u8>(), 10).prop_map(|mut header| {
        header[0] &= 3;
        header[1] %= 6;
        for high in [3, 5, 7, 9] {
            header[high] %= 2;
        }
        vnet_hdr::read(&header, 600).unwrap_or_default()
    })
}

proptest! {
    #![proptest_config(cases(100_000))]

    /// Random bytes behind a believable beginning.
    #[test]
    fn random_bytes_never_panic(
        mut bytes in vec(any::<u8>(), 0..120), start in 0usize..8,
        offload in any_offload(), split in any::<usize>(),
    ) {
        let beginning: &[(usize, &[u8])] = match start {
            0 => &[],
            1 => &[(12, &[8, 0, 0x45])],
            2 => &[(12, &[0x86, 0xdd, 0x60])],
            3 => &[(12, &[8, 0, 0x45, 0, 0, 60]), (20, &[0, 0]), (23, &[6])],
            4 => &[(12, &[0x86, 0xdd, 0x60]), (18, &[0, 40, 58, 255])],
            5 => &[(12, &[0x86, 0xdd, 0x60]), (18, &[0, 60, 0]), (54, &[43, 0]), (62, &[44])],
            6 => &[(12, &[0x81, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1])],
            _ => &[(12, &[8, 0, 0x45, 0, 0, 60]), (23, &[1]), (34, &[3, 4])],
        };
        for (at, some) in beginning {
            if let Some(place) = bytes.get_mut(*at..at + some.len()) {
                place.copy_from_slice(some);
            }
        }
        let split = split % (bytes.len() + 1);
        exercise(Frame::from_wire(Bytes::from(bytes.clone()), offload));
        let head = bytes::BytesMut::from(&bytes[..split]);
        exercise(Frame::from_parts(head, Bytes::copy_from_slice(&bytes[split..]), offload));
    }
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// Good frames with a few bytes overwritten, and cut off anywhere.
    #[test]
    fn damaged_frames_never_panic(
        l2 in any_l2(), l3 in any_l3(), fields in any_fields(), len in 0usize..200,
        offload in any_offload(),
        edits in vec((0usize..120, any::<u8>()), 0..4), keep in 0usize..400,
    ) {
        let mut frame = build::tcp(&l2, &l3, &fields, payload(len), 100);
        exercise(frame.clone());
        checksum::complete(&mut frame);
        let mut bytes = frame.to_vec();
        for (at, byte) in edits {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(keep);
        exercise(Frame::from_wire(bytes.into(), offload));
    }
}
