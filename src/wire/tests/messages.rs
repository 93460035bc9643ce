//! ARP, neighbour discovery, ICMP errors and their quotes, fragments, the virtio header.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::*;
use crate::wire::parse::parse;
use crate::wire::vnet_hdr::VnetHdrError;
use crate::wire::{build, checksum, rewrite, segmentize, vnet_hdr};

const LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const TARGET: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x12, 0x3456);

fn nd(frame: &Frame) -> NdKind {
    match parse(&from_wire(&frame.to_vec())) {
        Ok(Packet::Nd(nd)) => nd.kind,
        other => panic!("not neighbour discovery: {other:?}"),
    }
}

/// An ICMPv6 message with its checksum right.
fn icmp_v6(src: &str, dst: &str, ttl: u8, message: &[u8]) -> Frame {
    let l3 = L3 { ttl, ..l3_between(src, dst) };
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let sum = checksum::pseudo_header(l3.src, l3.dst, 58, message.len());
    let check = sum.bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    build::datagram(&l2(), &l3, 58, &message)
}

#[test]
fn arp_is_read_as_built() {
    let (sender, target) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 9));
    for sender in [sender, Ipv4Addr::UNSPECIFIED] {
        for is_request in [true, false] {
            let frame = if is_request {
                build::arp_request(&l2(), sender, target)
            } else {
                build::arp_reply(&l2(), sender, target)
            };
            let target_mac = if is_request { Mac::default() } else { l2().dst };
            let arp = Arp {
                l2: l2(),
                is_request,
                sender_mac: l2().src,
                sender: sender.into(),
                target_mac,
                target: target.into(),
            };
            let padded = [frame.to_vec(), vec![0; 18]].concat();
            assert_eq!(parse(&from_wire(&padded)), Ok(Packet::Arp(arp)));
        }
    }
}

#[test]
fn neighbour_discovery_is_read_as_built() {
    let target = IpAddr::V6(TARGET);
    let mac = Some(l2().src);
    let group = L2 { dst: build::solicited_node_mac(TARGET), ..l2() };
    assert_eq!(group.dst, Mac([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]));
    assert_eq!(
        nd(&build::neighbour_solicit(&group, LOCAL, TARGET)),
        NdKind::Solicit { target, mac }
    );
    assert_eq!(
        nd(&build::neighbour_solicit(&l2(), LOCAL, TARGET)),
        NdKind::Solicit { target, mac }
    );
    let probe = build::neighbour_solicit(&group, Ipv6Addr::UNSPECIFIED, TARGET);
    assert_eq!(nd(&probe), NdKind::Solicit { target, mac: None });
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    for dst in [LOCAL, all_nodes] {
        let answer = build::neighbour_advertise(&l2(), TARGET, dst);
        assert_eq!(nd(&answer), NdKind::Advertise { target, mac });
    }
}

#[test]
fn routers_and_listeners_are_told_apart() {
    let group = "ff02::2";
    let router = icmp_v6("fe80::1", group, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(nd(&router), NdKind::Router);
    let report = icmp_v6("::", "ff02::16", 1, &[143, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(nd(&report), NdKind::Listener);
    let query = icmp_v6("fe80::1", "ff02::1", 1, &[&[130][..], &[0; 23]].concat());
    assert_eq!(nd(&query), NdKind::Listener);
}

/// Each line breaks one rule of RFC 4861 6.1, 7.1, 8.1.
#[test]
fn broken_neighbour_discovery_is_refused() {
    let message = |kind: u8, options: &[u8]| {
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &TARGET.octets(), options].concat()
    };
    let mac = [1, 1, 2, 0, 0, 0, 0, 2];
    let (src, dst) = ("fe80::1", "fe80::12:3456");
    let mut coded = message(135, &[]);
    coded[1] = 1;
    let mut to_group = message(136, &[]);
    to_group[4] = 0x40;
    let mut group_target = message(135, &[]);
    group_target[8] = 0xff;
    for (why, frame) in [
        ("a hop behind it", icmp_v6(src, dst, 254, &message(135, &[]))),
        ("a code", icmp_v6(src, dst, 255, &coded)),
        ("cut off", icmp_v6(src, dst, 255, &message(135, &[])[..20])),
        ("option of length 0", icmp_v6(src, dst, 255, &message(135, &[1, 0, 0, 0, 0, 0, 0, 0]))),
        ("option overrun", icmp_v6(src, dst, 255, &message(135, &[1, 2, 0, 0, 0, 0, 0, 0]))),
        ("half an option", icmp_v6(src, dst, 255, &message(135, &[1]))),
        ("a group as target", icmp_v6(src, dst, 255, &group_target)),
        ("a probe with an address", icmp_v6("::", "ff02::1:ff12:3456", 255, &message(135, &mac))),
        ("a probe to one host", icmp_v6("::", dst, 255, &message(135, &[]))),
        ("an answer to all", icmp_v6(src, "ff02::1", 255, &to_group)),
        ("an answer from nobody", icmp_v6("::", dst, 255, &message(136, &[]))),
        ("a short redirect", icmp_v6(src, dst, 255, &message(137, &[]))),
    ] {
        assert_eq!(parse(&frame), Err(Malformed::Nd), "{why}");
    }
}

fn icmp(frame: &Frame) -> Icmp {
    match parse(frame) {
        Ok(Packet::Icmp(icmp)) => icmp,
        other => panic!("not ICMP: {other:?}"),
    }
}

fn quote_of(icmp: &Icmp) -> Quote {
    match icmp.kind {
        IcmpKind::TooBig { quote: Some(quote), .. } => quote,
        IcmpKind::Error { quote: Some(quote), .. } => quote,
        other => panic!("no quote: {other:?}"),
    }
}

/// A too-big message about a segment names it, and its number can be translated in place.
#[test]
fn a_quoted_sequence_number_is_read_and_rewritten() {
    for l3 in [l3(), l3_v6()] {
        for vlans in [Vlans::default(), Vlans { outer: Some((0x8100, 5)), inner: None }] {
            let l2 = L2 { vlans, ..l2() };
            let original = build::tcp(&l2, &l3, &fields(), payload(1400), 1448);
            let reply = l3.reversed();
            let frame = build::icmp_too_big(&l2.reversed(), &reply, 1280, &original);
            let mut frame = frame.expect("about an IP packet");
            let before = icmp(&frame);
            let IcmpKind::TooBig { mtu, .. } = before.kind else { panic!("{before:?}") };
            let quote = quote_of(&before);
            assert_eq!((before.l3.src, before.l3.dst, mtu), (l3.dst, l3.src, 1280));
            assert_eq!(quote.src, SocketAddr::new(l3.src, 40_000));
            assert_eq!(quote.dst, SocketAddr::new(l3.dst, 80));
            assert_eq!(quote.seq, fields().seq);
            for seq in [0, 0xffff_ffff, 0x1234_5678, fields().seq] {
                let now = icmp(&frame);
                rewrite::icmp_quote(&mut frame, &now, Some(&l2), seq);
                let after = icmp(&frame);
                assert_eq!((quote_of(&after).seq, after.l2), (seq, l2));
            }
            rewrite::icmp_quote(&mut frame, &before, Some(&before.l2), fields().seq);
            assert_eq!(icmp(&frame), before);
        }
    }
}

/// Damage that was there before an edit is there after it: nothing is laundered.
#[test]
fn rewriting_never_repairs_damage() {
    let original = build::tcp(&l2(), &l3(), &fields(), payload(100), 1448);
    let frame = build::icmp_too_big(&l2(), &l3().reversed(), 1280, &original);
    let mut frame = frame.expect("about an IP packet");
    let good = icmp(&frame);
    let last = frame.len() - 1;
    let damaged = frame.to_vec()[last] ^ 1;
    frame.put(last, &[damaged]);
    rewrite::icmp_quote(&mut frame, &good, None, 1);
    assert_eq!(parse(&frame), Err(Malformed::Icmp));
}

/// What is quoted too short, of another protocol, or is a later fragment, is no quote.
#[test]
fn foreign_and_short_quotes_are_none() {
    let quoted = |inner: &[u8]| {
        let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0], inner].concat();
        let check = checksum::Sum::new().bytes(&message).check();
        message[2..4].copy_from_slice(&check.to_be_bytes());
        match icmp(&build::datagram(&l2(), &l3(), 1, &message)).kind {
            IcmpKind::Error { kind: 3, code: 3, quote } => quote,
            other => panic!("{other:?}"),
        }
    };
    let segment = build::tcp(&l2(), &l3(), &fields(), payload(0), 1448).to_vec();
    let packet = &segment[14..];
    assert!(quoted(&packet[..28]).is_some(), "RFC 792: the header and 8 bytes");
    assert!(quoted(&packet[..27]).is_none(), "cut in the sequence number");
    assert!(quoted(&[]).is_none(), "nothing quoted");
    let changed = |at: usize, byte: u8| {
        let mut packet = packet.to_vec();
        packet[at] = byte;
        quoted(&packet)
    };
    assert!(changed(9, 17).is_none(), "UDP");
    assert!(changed(7, 1).is_none(), "a later fragment");
    assert!(changed(0, 0x44).is_none(), "no IPv4 header");
    assert!(changed(0, 0x65).is_none(), "IPv6 in ICMP for IPv4");
}

/// MTUs that no path has are reported as they are: bounding them is the engine's.
#[test]
fn too_big_reports_any_mtu() {
    for mtu in [0u16, 68, 65_535] {
        let [high, low] = mtu.to_be_bytes();
        let mut message = [3, 4, 0, 0, 0, 0, high, low];
        let check = checksum::Sum::new().bytes(&message).check();
        message[2..4].copy_from_slice(&check.to_be_bytes());
        let kind = icmp(&build::datagram(&l2(), &l3(), 1, &message)).kind;
        assert_eq!(kind, IcmpKind::TooBig { mtu: u32::from(mtu), quote: None });
    }
}

#[test]
fn echoes_carry_their_numbers() {
    for (kind, l3, bytes) in [
        (IcmpKind::EchoRequest { id: 1, seq: 2 }, l3(), [8, 0, 0, 0, 0, 1, 0, 2]),
        (IcmpKind::EchoReply { id: 1, seq: 2 }, l3(), [0, 0, 0, 0, 0, 1, 0, 2]),
    ] {
        let mut message = bytes.to_vec();
        let check = checksum::Sum::new().bytes(&message).check();
        message[2..4].copy_from_slice(&check.to_be_bytes());
        assert_eq!(icmp(&build::datagram(&l2(), &l3, 1, &message)).kind, kind);
    }
    for (message, kind) in [
        ([129, 0, 0, 0, 0, 9, 0, 8], IcmpKind::EchoReply { id: 9, seq: 8 }),
        ([128, 0, 0, 0, 0, 9, 0, 8], IcmpKind::EchoRequest { id: 9, seq: 8 }),
        ([128, 1, 0, 0, 0, 9, 0, 8], IcmpKind::Other),
        ([200, 0, 0, 0, 0, 9, 0, 8], IcmpKind::Other),
    ] {
        assert_eq!(icmp(&icmp_v6("2001:db8::1", "2001:db8::2", 64, &message)).kind, kind);
    }
}

/// The pieces of a datagram, put together again, are the datagram; each fits the MTU.
#[test]
fn fragments_put_together_are_the_datagram() {
    for l3 in [l3(), l3_v6()] {
        for (len, mtu) in [(1400, 1280), (5000, 1500), (65_000, 1280), (200, 68 + 40)] {
            let mut whole = build::tcp(&l2(), &l3, &fields(), payload(len), u16::MAX);
            let pieces = build::fragments(whole.clone(), mtu);
            assert!(pieces.len() > 1);
            checksum::complete(&mut whole);
            let mut joined = Vec::new();
            let mut ids = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                assert!(piece.len() - 14 <= mtu);
                let Ok(Packet::Fragment(fragment)) = parse(&from_wire(&piece.to_vec())) else {
                    panic!("{:?}", parse(piece));
                };
                assert_eq!(fragment.offset as usize, joined.len());
                assert_eq!(fragment.has_more, index + 1 < pieces.len());
                assert_eq!((fragment.l3, fragment.protocol), (l3, 6));
                joined.extend_from_slice(&piece.to_vec()[usize::from(fragment.payload_at)..]);
                ids.push(fragment.id);
            }
            ids.dedup();
            assert_eq!(ids.len(), 1, "one datagram, one identification");
            let again = build::datagram(&l2(), &l3, 6, &joined);
            assert_eq!(again.to_vec(), whole.to_vec());
            assert!(matches!(parse(&again), Ok(Packet::Tcp(_))));
        }
    }
}

#[test]
fn what_fits_is_not_fragmented() {
    let frame = build::tcp(&l2(), &l3(), &fields(), payload(100), 1448);
    let mut whole = frame.clone();
    checksum::complete(&mut whole);
    assert_eq!(build::fragments(frame, 152), [whole]);
    let arp = build::arp_request(&l2(), Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST);
    assert_eq!(build::fragments(arp.clone(), 8), [arp]);
}

/// A piece of a datagram can be cut again on the way (RFC 791 3.2).
#[test]
fn a_fragment_is_fragmented_again() {
    let whole = build::datagram(&l2(), &l3(), 17, &payload(4000));
    let again: Vec<Frame> = build::fragments(whole, 1500)
        .into_iter()
        .flat_map(|piece| build::fragments(piece, 600))
        .collect();
    let mut end = 0;
    for (index, piece) in again.iter().enumerate() {
        let Ok(Packet::Fragment(fragment)) = parse(piece) else { panic!("{:?}", parse(piece)) };
        assert_eq!(fragment.offset, end);
        assert_eq!(fragment.has_more, index + 1 < again.len());
        end += fragment.payload_len as u32;
    }
    assert_eq!(end, 4000);
}

/// Datagrams of a UDP super-frame each have their own length and checksum.
#[test]
fn a_udp_super_frame_is_cut() {
    for (l3, kind) in [(l3(), GsoKind::UdpL4), (l3_v6(), GsoKind::UdpL4)] {
        let mut datagram = vec![0, 53, 0, 99];
        datagram.extend_from_slice(&(8 + 2500u16).to_be_bytes());
        datagram.extend_from_slice(&[0, 0]);
        datagram.extend_from_slice(&payload(2500));
        let mut frame = build::datagram(&l2(), &l3, 17, &datagram);
        let start = frame.head().len() as u16 - 8;
        let gso = Some(Gso { kind, size: 1000, hdr_len: 0 });
        let needs_csum = Some(CsumSpot { start, offset: 6 });
        frame.set_offload(Offload { needs_csum, data_valid: false, gso });
        let mut pieces = Vec::new();
        assert!(segmentize::for_link(frame, false, true, &mut pieces));
        let mut seen = Vec::new();
        for piece in &mut pieces {
            assert!(piece.offload().needs_csum.is_some());
            checksum::complete(piece);
            let Ok(Packet::Udp(udp)) = parse(&from_wire(&piece.to_vec())) else {
                panic!("{:?}", parse(piece));
            };
            assert_eq!(udp.payload_len, piece.body().len());
            seen.extend_from_slice(piece.body());
        }
        assert_eq!((pieces.len(), seen), (3, payload(2500).to_vec()));
    }
}

/// What the link can do itself is left to it; what it cannot is done, or refused.
#[test]
fn a_link_gets_what_it_can_take() {
    let frame = build::tcp(&l2(), &l3(), &fields(), payload(3000), 1448);
    let on = |frame: &Frame, has_gso, has_csum| {
        let mut out = Vec::new();
        let is_taken = segmentize::for_link(frame.clone(), has_gso, has_csum, &mut out);
        (is_taken, out)
    };
    assert_eq!(on(&frame, true, true), (true, vec![frame.clone()]));
    assert_eq!(on(&frame, true, false), on(&frame, false, false));
    let (_, partial) = on(&frame, false, true);
    assert_eq!(partial.len(), 3);
    assert!(partial.iter().all(|piece| piece.offload().needs_csum.is_some()));
    assert!(partial.iter().all(|piece| piece.offload().gso.is_none()));
    // A pointer counts from its own segment: nobody else may cut what bears one.
    let urgent = TcpFields { flags: TcpFlags::ACK.with(TcpFlags::URG), urgent: 2000, ..fields() };
    let urgent = build::tcp(&l2(), &l3(), &urgent, payload(3000), 1448);
    assert_eq!(on(&urgent, true, true), on(&urgent, false, true));
    let mut lie = frame;
    let gso = Some(Gso { kind: GsoKind::TcpV6, size: 1448, hdr_len: 0 });
    lie.set_offload(Offload { gso, ..lie.offload() });
    assert_eq!(on(&lie, false, false), (false, vec![]));
}

/// A super-frame beyond 64 KiB, also with the kernel's hop-by-hop mark, is cut like any other.
#[test]
fn big_tcp_is_cut() {
    for is_marked in [false, true] {
        let mut frame = build::tcp(&l2(), &l3_v6(), &fields(), payload(67_000), 1448);
        if is_marked {
            let (head, body, offload) = frame.into_parts();
            let mut marked = bytes::BytesMut::from(&head[..54]);
            marked[20] = 0;
            marked.extend_from_slice(&[6, 0, 0xc2, 4, 0, 1, 6, 0]);
            marked.extend_from_slice(&head[54..]);
            let spot = CsumSpot { start: 62, offset: 16 };
            frame = Frame::from_parts(marked, body, Offload { needs_csum: Some(spot), ..offload });
            assert!(matches!(parse(&frame), Ok(Packet::Tcp(_))));
        }
        let mut pieces = Vec::new();
        assert!(segmentize::for_link(frame, false, false, &mut pieces));
        let mut seen = Vec::new();
        for piece in &pieces {
            let Ok(Packet::Tcp(segment)) = parse(&from_wire(&piece.to_vec())) else {
                panic!("{:?}", parse(piece));
            };
            assert_eq!((segment.l4_at, segment.l3), (54, l3_v6()));
            seen.extend_from_slice(piece.body());
        }
        assert_eq!(seen, payload(67_000).to_vec());
    }
}

/// The inner checksum of a tunnel is completed where it stands, in the payload.
#[test]
fn a_tunnel_with_an_unfinished_inner_checksum_is_followed() {
    let inner = build::tcp(&l2(), &l3(), &fields(), payload(50), 1448);
    let vxlan = [&[8, 0, 0, 0, 0, 0, 5, 0][..], &inner.to_vec()].concat();
    let len = (8 + vxlan.len()) as u16;
    let mut datagram =
        [&[0x12, 0xb5, 0x12, 0xb5][..], &len.to_be_bytes(), &[0, 0], &vxlan].concat();
    let mut finished = inner.clone();
    checksum::complete(&mut finished);
    let l3 = l3_v6();
    let sum = checksum::pseudo_header(l3.src, l3.dst, 17, datagram.len());
    let whole = sum.bytes(&datagram[..16]).bytes(&finished.to_vec()).check();
    datagram[6..8].copy_from_slice(&whole.to_be_bytes());
    let mut frame = build::datagram(&l2(), &l3, 17, &datagram);
    assert_eq!(parse(&frame), Err(Malformed::UdpChecksum));
    let spot = CsumSpot { start: (54 + 16 + 34) as u16, offset: 16 };
    frame.set_offload(Offload { needs_csum: Some(spot), ..Offload::default() });
    assert!(matches!(parse(&frame), Ok(Packet::Udp(_))));
    checksum::complete(&mut frame);
    assert!(matches!(parse(&frame), Ok(Packet::Udp(_))));
    assert_eq!(frame.body()[8..], finished.to_vec());
}

/// Headers that say nothing that can be acted on are named.
#[test]
fn virtio_headers_that_cannot_be_are_refused() {
    let header = |flags: u8, kind: u8, numbers: [u16; 4]| {
        let numbers = numbers.map(u16::to_ne_bytes).concat();
        [&[flags, kind][..], &numbers].concat()
    };
    let read = |bytes: &[u8]| vnet_hdr::read(bytes, 100);
    assert_eq!(read(&[0; 9]), Err(VnetHdrError::Short { len: 9 }));
    assert_eq!(read(&header(0, 3, [0, 9, 0, 0])), Err(VnetHdrError::GsoKind(3)));
    assert_eq!(read(&header(0, 0x82, [0, 9, 0, 0])), Err(VnetHdrError::GsoKind(0x82)));
    assert_eq!(read(&header(1, 1, [66, 0, 34, 16])), Err(VnetHdrError::GsoSize));
    let (start, offset, frame_len) = (83, 16, 100);
    let outside = VnetHdrError::CsumSpot { start, offset, frame_len };
    assert_eq!(read(&header(1, 0, [0, 0, start, offset])), Err(outside));
    assert!(read(&header(1, 0, [0, 0, start - 1, offset])).is_ok());
    let huge = read(&header(1, 0, [0, 0, 65_535, 65_535]));
    assert!(matches!(huge, Err(VnetHdrError::CsumSpot { .. })));
    assert!(read(&header(0, 0, [0, 0, 65_535, 65_535])).is_ok(), "unused fields do not count");
    let ecn = read(&header(2, 0x81, [66, 1448, 0, 0])).expect("CWR is cut by every cutter");
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448, hdr_len: 66 });
    assert_eq!(ecn, Offload { needs_csum: None, data_valid: true, gso });
}

/// The kernel delivers a tag beside the frame, and its places do not count it.
#[test]
fn a_tag_put_back_moves_the_checksum() {
    let untagged = build::tcp(&l2(), &l3(), &fields(), payload(3000), 1448);
    let vlans = Vlans { outer: Some((0x8100, 5)), inner: None };
    let tagged = build::tcp(&L2 { vlans, ..l2() }, &l3(), &fields(), payload(3000), 1448);
    let mut bytes = untagged.to_vec();
    bytes.splice(12..12, [0x81, 0, 0, 5]);
    let put_back = Frame::from_wire(bytes.into(), untagged.offload().after_insertion(4));
    assert_eq!(put_back, tagged);
    assert!(parse(&put_back).is_ok());
}

/// The length of headers is the frame's own, whatever it came with.
#[test]
fn a_virtio_header_states_the_length_of_headers() {
    let mut frame = build::tcp(&l2(), &l3_v6(), &fields(), payload(3000), 1428);
    let gso = frame.offload().gso.map(|gso| Gso { hdr_len: 0, ..gso });
    frame.set_offload(Offload { gso, ..frame.offload() });
    let header = vnet_hdr::write(&frame);
    assert_eq!(u16::from_ne_bytes([header[2], header[3]]), 14 + 40 + 32);
    assert_eq!(vnet_hdr::write(&build::datagram(&l2(), &l3(), 1, &[0; 9])), [0; 10]);
}

#[test]
fn macs_are_set_and_reversed() {
    let mut frame = build::tcp(&l2(), &l3(), &fields(), payload(3), 1448);
    let back = l2().reversed();
    rewrite::set_macs(&mut frame, back.dst, back.src);
    let Ok(Packet::Tcp(segment)) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
    assert_eq!(segment.l2, back);
    let l3 = l3().reversed();
    assert_eq!((l3.src, l3.dst, l3.ttl), (self::l3().dst, self::l3().src, 64));
}

#[test]
fn flags_are_shown_by_their_letters() {
    let flags = TcpFlags::SYN.with(TcpFlags::ACK);
    assert_eq!(format!("{flags:?} {:?}", TcpFlags::RST), "SA R");
}

/// RFC 4443 3.1, 3.3, 3.4: errors quote what they are about, and some say that nobody is there.
#[test]
fn errors_of_ipv6_are_read_with_their_quote() {
    let original = build::tcp(&l2(), &l3_v6(), &fields(), payload(30), 1448).to_vec();
    for (kind, code, is_unreachable) in
        [(1, 0, true), (1, 1, false), (1, 3, true), (1, 4, false), (3, 0, false), (4, 1, false)]
    {
        let message = [&[kind, code, 0, 0, 0, 0, 0, 0][..], &original[14..]].concat();
        let icmp = icmp(&icmp_v6("2001:db8::9", "2001:db8::1", 64, &message));
        assert_eq!(icmp.is_unreachable(), is_unreachable, "{kind}/{code}");
        let quote = quote_of(&icmp);
        assert_eq!((quote.src.ip(), quote.dst.ip()), (l3_v6().src, l3_v6().dst));
        assert_eq!(quote.seq, fields().seq);
    }
}

/// RFC 791 3.1: options without the bit "copied" stand in the first piece only.
#[test]
fn pieces_repeat_the_options_that_are_to_be_copied() {
    // Record route, a no-operation, router alert (copied), the end of the list.
    let options = [7, 3, 4, 1, 0x94, 4, 0, 0, 0, 0, 0, 0];
    let mut bytes = build::datagram(&l2(), &l3(), 17, &payload(2000)).to_vec();
    bytes.splice(34..34, options);
    bytes[14] = 0x40 | 8;
    bytes[16..18].copy_from_slice(&2032u16.to_be_bytes());
    bytes[24..26].fill(0);
    let check = checksum::Sum::new().bytes(&bytes[14..46]).check();
    bytes[24..26].copy_from_slice(&check.to_be_bytes());
    let pieces = build::fragments(from_wire(&bytes), 800);
    assert_eq!(pieces.len(), 3);
    let mut joined = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        assert!(matches!(parse(piece), Ok(Packet::Fragment(_))), "{:?}", parse(piece));
        let piece = piece.to_vec();
        let expected = if index == 0 { options } else { [1, 1, 1, 1, 0x94, 4, 0, 0, 0, 0, 0, 0] };
        assert_eq!(piece[34..46], expected, "piece {index}");
        assert_eq!(checksum::Sum::new().bytes(&piece[14..46]).fold(), 0xffff);
        joined.extend_from_slice(&piece[46..]);
    }
    assert_eq!(joined, payload(2000).to_vec());
}

/// RFC 8200 4.5, RFC 6946: a whole datagram with a fragment header keeps that one.
#[test]
fn a_datagram_with_a_fragment_header_keeps_its_identification() {
    let whole = [&[17, 0, 0, 0, 1, 2, 3, 4][..], &payload(3000)].concat();
    let whole = build::datagram(&l2(), &l3_v6(), 44, &whole);
    let pieces = build::fragments(whole.clone(), 1280);
    assert_eq!(pieces.len(), 3);
    let mut joined = Vec::new();
    for piece in &pieces {
        let Ok(Packet::Fragment(fragment)) = parse(piece) else { panic!("{:?}", parse(piece)) };
        assert_eq!((fragment.id, fragment.protocol), (0x0102_0304, 17));
        assert_eq!(fragment.offset as usize, joined.len());
        joined.extend_from_slice(&piece.to_vec()[usize::from(fragment.payload_at)..]);
    }
    assert_eq!(joined, payload(3000).to_vec());
    // A piece of a datagram may be cut by its sender only.
    let mut piece = whole.to_vec();
    piece[14 + 40 + 3] = 1;
    assert_eq!(build::fragments(from_wire(&piece), 1280).len(), 1);
}

/// RFC 8200 4.5: headers for the routers on the way stand in each piece, before its own.
#[test]
fn pieces_repeat_what_routers_look_at() {
    let hops = [17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let whole = [&hops[..], &payload(3000)].concat();
    let pieces = build::fragments(build::datagram(&l2(), &l3_v6(), 0, &whole), 1280);
    let mut joined = Vec::new();
    for piece in &pieces {
        let Ok(Packet::Fragment(fragment)) = parse(piece) else { panic!("{:?}", parse(piece)) };
        assert_eq!((fragment.protocol, fragment.offset as usize), (17, joined.len()));
        let bytes = piece.to_vec();
        assert!(bytes.len() - 14 <= 1280);
        assert_eq!((bytes[20], bytes[54], &bytes[55..70]), (0, 44, &hops[1..]));
        assert_eq!(usize::from(fragment.payload_at), 78);
        joined.extend_from_slice(&bytes[78..]);
    }
    assert_eq!((pieces.len(), joined), (3, payload(3000).to_vec()));
}

#[test]
fn what_is_wrong_with_a_virtio_header_is_said() {
    let said = |error: VnetHdrError| error.to_string();
    assert_eq!(said(VnetHdrError::Short { len: 3 }), "virtio header of 3 bytes, needs 10");
    let kind = VnetHdrError::GsoKind(9);
    assert_eq!(said(kind), "virtio header with unknown GSO type 0x09");
    assert_eq!(said(VnetHdrError::GsoSize), "virtio header with a GSO size of 0");
    let spot = VnetHdrError::CsumSpot { start: 34, offset: 16, frame_len: 50 };
    let text = "virtio header with its checksum at 34+16, outside a frame of 50 bytes";
    assert_eq!(said(spot), text);
}

#[test]
fn a_fifth_block_has_no_room() {
    let mut blocks = SackBlocks::default();
    assert!(blocks.is_empty());
    assert_eq!([1, 2, 3, 4, 5].map(|n| blocks.push(n, n + 1)), [true, true, true, true, false]);
    assert_eq!(blocks.as_slice(), [(1, 2), (2, 3), (3, 4), (4, 5)]);
}
