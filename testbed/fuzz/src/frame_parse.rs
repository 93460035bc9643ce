//! Any bytes as a frame, with any header that a kernel may put before it. What is taken for TCP or
//! UDP is what `etherparse` takes it for; whatever may be done with a frame is done.

use std::net::IpAddr;

use etherparse::{SlicedPacket, TransportSlice};
use shadowvm::wire::build::{self, TcpFields};
use shadowvm::wire::parse::{header_len, parse};
use shadowvm::wire::{
    Frame, IcmpKind, L2, L3, Mac, Offload, Packet, Segment, TcpFlags, TcpOptions, Tsval, Vlans,
    checksum, rewrite, segmentize, vnet_hdr,
};

use super::reader::Reader;

/// A byte (odd: 10 bytes of a kernel's header follow), then the frame.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let header = if input.u8() % 2 == 1 { input.take(vnet_hdr::LEN) } else { &[] };
    let bytes = input.rest();
    let offload = vnet_hdr::read(header, bytes.len()).unwrap_or_default();
    let frame = Frame::from_wire(bytes.to_vec().into(), offload);
    assert_eq!(frame.to_vec(), bytes);
    let packet = parse(&frame);
    if let (Ok(packet), true) = (&packet, offload == Offload::default()) {
        agree(bytes, packet);
    }
    if let Ok(Packet::Icmp(icmp)) = &packet {
        let mut moved = frame.clone();
        rewrite::icmp_quote(&mut moved, icmp, Some(&l2()), 0x0102_0304);
        let again = parse(&moved).expect("an edit keeps a message whole");
        let Packet::Icmp(again) = again else { panic!("{again:?}") };
        assert_eq!(again.kind, quoting(icmp.kind, 0x0102_0304));
    }
    handle(frame, packet.is_ok());
    packet.is_ok()
}

/// The message as it is with another number quoted.
fn quoting(mut kind: IcmpKind, number: u32) -> IcmpKind {
    if let IcmpKind::TooBig { quote: Some(quote), .. }
    | IcmpKind::Error { quote: Some(quote), .. } = &mut kind
    {
        quote.seq = number;
    }
    kind
}

/// Another reader finds the same.
fn agree(bytes: &[u8], packet: &Packet) {
    let (Packet::Tcp(_) | Packet::Udp(_)) = packet else { return };
    let sliced = SlicedPacket::from_ethernet(bytes).expect("etherparse reads it too");
    match (packet, &sliced.transport) {
        (Packet::Tcp(ours), Some(TransportSlice::Tcp(theirs))) => {
            assert_eq!(
                (ours.src_port, ours.dst_port),
                (theirs.source_port(), theirs.destination_port())
            );
            assert_eq!(ours.seq, theirs.sequence_number());
            assert_eq!(ours.ack, theirs.acknowledgment_number());
            assert_eq!((ours.window, ours.urgent), (theirs.window_size(), theirs.urgent_pointer()));
            assert_eq!(ours.payload_len, theirs.payload().len());
            let check = match (ours.l3.src, ours.l3.dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    theirs.calc_checksum_ipv4(src.octets(), dst.octets())
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    theirs.calc_checksum_ipv6(src.octets(), dst.octets())
                }
                ends => panic!("two families: {ends:?}"),
            };
            // 0 and its complement are the same sum.
            let is_same = check == Ok(theirs.checksum())
                || [0, 0xffff].contains(&theirs.checksum()) && matches!(check, Ok(0 | 0xffff));
            assert!(is_same, "the sum is {:#06x}, not {check:?}", theirs.checksum());
        }
        (Packet::Udp(ours), Some(TransportSlice::Udp(theirs))) => {
            assert_eq!(
                (ours.src_port, ours.dst_port),
                (theirs.source_port(), theirs.destination_port())
            );
            assert_eq!(ours.payload_len, theirs.payload().len());
        }
        (_, theirs) => panic!("{packet:?} is {theirs:?} to etherparse"),
    }
}

/// Everything that may be done with a frame, before it is known to be right and after.
fn handle(frame: Frame, is_right: bool) {
    assert!(header_len(&frame.to_vec()) <= frame.len());
    for mtu in [68, 576, 1500] {
        for piece in build::fragments(frame.clone(), mtu) {
            assert!(piece.len() <= frame.len().max(mtu + 14 + 8), "a piece is no longer");
        }
    }
    if let Some(error) = build::icmp_too_big(&l2(), &l3(), 1280, &frame) {
        let bytes = error.to_vec();
        let again = parse(&Frame::from_wire(bytes.into(), Offload::default()));
        assert!(matches!(again, Ok(Packet::Icmp(_))), "{again:?}");
    }
    let header = vnet_hdr::write(&frame);
    vnet_hdr::read(&header, frame.len()).expect("what is written can be read");
    for (has_gso, has_csum) in [(false, false), (false, true), (true, true)] {
        let mut pieces = Vec::new();
        let is_taken = segmentize::for_link(frame.clone(), has_gso, has_csum, &mut pieces);
        assert!(is_taken || pieces.is_empty());
        // Of a FIN alone, which nobody sends, all pieces but the last have no flag.
        let is_tcp = matches!(
            parse(&frame),
            Ok(Packet::Tcp(Segment { gso_size: Some(_), flags, .. })) if flags.has(TcpFlags::ACK)
        );
        for piece in pieces.iter().filter(|_| is_tcp && is_right && !has_csum) {
            let again = Frame::from_wire(piece.to_vec().into(), Offload::default());
            assert!(matches!(parse(&again), Ok(Packet::Tcp(_))), "{:?}", parse(&again));
        }
    }
    let mut whole = frame;
    checksum::complete(&mut whole);
    rewrite::set_macs(&mut whole, Mac::BROADCAST, l2().src);
}

fn l2() -> L2 {
    L2 { dst: Mac([2, 0, 0, 0, 0, 1]), src: Mac([2, 0, 0, 0, 0, 2]), vlans: Vlans::default() }
}

fn l3_between(src: &str, dst: &str) -> L3 {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let (src, dst) = (ip(src), ip(dst));
    L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 }
}

fn l3() -> L3 {
    l3_between("192.0.2.1", "198.51.100.2")
}

/// One frame of each kind that there is, on the wire and with the kernel's header.
pub fn seeds() -> Vec<Vec<u8>> {
    let v6 = l3_between("2001:db8::1", "2001:db8:1::2");
    let tags = Vlans { outer: Some((0x88a8, 7)), inner: Some((0x8100, 9)) };
    let mut options =
        TcpOptions { timestamps: Some((Tsval(1), Tsval(2))), ..TcpOptions::default() };
    options.sack.push(5, 9);
    let syn = TcpOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        ..TcpOptions::default()
    };
    let tcp = |l2: &L2, l3: &L3, flags: u8, options: TcpOptions, len: usize| {
        let fields = TcpFields {
            src_port: 40_000,
            dst_port: 80,
            seq: u32::MAX,
            ack: 7,
            flags: TcpFlags(flags),
            window: 502,
            urgent: 0,
            options,
        };
        build::tcp(l2, l3, &fields, vec![b'x'; len].into(), 50)
    };
    let mut frames = Vec::new();
    for l3 in [l3(), v6] {
        for l2 in [l2(), L2 { vlans: tags, ..l2() }] {
            frames.push(tcp(&l2, &l3, 2, syn, 0));
            frames.push(tcp(&l2, &l3, 0x18, options, 30));
            frames.push(tcp(&l2, &l3, 0x18, options, 120));
            let original = tcp(&l2, &l3, 0x10, options, 40);
            frames.extend(build::icmp_too_big(&l2, &l3, 1280, &original));
            frames.extend(build::fragments(build::datagram(&l2, &l3, 17, &[0; 120]), 100));
        }
        // A datagram without a sum, and one whose sum is right.
        let mut udp = vec![0, 53, 0x30, 0x39, 0, 12, 0, 0, 1, 2, 3, 4];
        frames.push(build::datagram(&l2(), &l3, 17, &udp));
        let sum = checksum::pseudo_header(l3.src, l3.dst, 17, 12).bytes(&udp).check();
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        frames.push(build::datagram(&l2(), &l3, 17, &udp));
    }
    // Extension headers: hop by hop, destination options, an atomic fragment, routing.
    let inner = {
        let mut plain = tcp(&l2(), &v6, 0x18, options, 9);
        checksum::complete(&mut plain);
        plain.to_vec()[54..].to_vec()
    };
    for (first, headers) in [
        (0, &[60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0][..]),
        (44, &[6, 0, 0, 0, 0, 0, 0, 9]),
        (43, &[6, 0, 2, 0, 0, 0, 0, 0]),
        (51, &[6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
    ] {
        frames.push(build::datagram(&l2(), &v6, first, &[headers, &inner].concat()));
    }
    let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    frames.push(build::arp_request(&l2(), a, b));
    frames.push(build::arp_reply(&l2(), a, b));
    if let (IpAddr::V6(src), IpAddr::V6(dst)) = (v6.src, v6.dst) {
        frames.push(build::neighbour_solicit(&l2(), src, dst));
        frames.push(build::neighbour_advertise(&l2(), src, dst));
    }
    let mut seeds = Vec::new();
    for mut frame in frames {
        if frame.offload() != Offload::default() {
            seeds.push([&[1][..], &vnet_hdr::write(&frame), &frame.to_vec()].concat());
        }
        if frame.offload().gso.is_none() {
            checksum::complete(&mut frame);
            seeds.push([&[0][..], &frame.to_vec()].concat());
        }
    }
    seeds.retain(|seed| target(seed));
    seeds
}
