//! Bytes in, verdict out, one sentence: everything on the list of hostile frames.
//!
//! Each case edits a good frame and puts the checksums right again where the case is not about
//! them, so that only what it says is wrong.

use super::*;
use crate::wire::parse::parse;
use crate::wire::{build, checksum};

/// Where headers stand in an untagged IPv4 frame without options.
const IP: usize = 14;
const TCP: usize = 34;

/// A good TCP frame as bytes, checksums finished.
fn tcp_bytes(l3: &L3, fields: &TcpFields, len: usize) -> Vec<u8> {
    let mut frame = build::tcp(&l2(), l3, fields, payload(len), u16::MAX);
    checksum::complete(&mut frame);
    frame.to_vec()
}

fn good() -> Vec<u8> {
    tcp_bytes(&l3(), &fields(), 100)
}

/// Puts the IPv4 header checksum right.
fn fix_ip(bytes: &mut [u8]) {
    let len = usize::from(bytes[IP] & 0x0f) * 4;
    bytes[IP + 10..IP + 12].fill(0);
    let check = checksum::Sum::new().bytes(&bytes[IP..IP + len]).check();
    bytes[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
}

/// Puts the checksum, at `field` of the transport from `at` on, right.
fn fix_transport(bytes: &mut [u8], at: usize, protocol: u8, field: usize) {
    bytes[at + field..at + field + 2].fill(0);
    let (src, dst) = crate::wire::parse::addresses(bytes, IP).expect("an IP header");
    let pseudo = checksum::pseudo_header(src, dst, protocol, bytes.len() - at);
    let check = pseudo.bytes(&bytes[at..]).check();
    bytes[at + field..at + field + 2].copy_from_slice(&check.to_be_bytes());
}

/// A good TCP frame after `edit`, its checksums right for what it has become.
fn edited(edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = good();
    edit(&mut bytes);
    fix_ip(&mut bytes);
    fix_transport(&mut bytes, TCP, 6, 16);
    bytes
}

/// A SYN with these raw options, padded with end-of-options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut plain = fields();
    plain.options = TcpOptions::default();
    plain.flags = TcpFlags::SYN;
    let mut bytes = tcp_bytes(&l3(), &plain, 0);
    bytes.extend_from_slice(options);
    bytes.resize(TCP + 20 + options.len().next_multiple_of(4), 0);
    bytes[TCP + 12] = (((bytes.len() - TCP) / 4) as u8) << 4;
    let total = (bytes.len() - IP) as u16;
    bytes[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes());
    fix_ip(&mut bytes);
    fix_transport(&mut bytes, TCP, 6, 16);
    bytes
}

/// An IPv4 frame around `payload`.
fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    build::datagram(&l2(), &l3(), protocol, payload).to_vec()
}

/// An IPv6 frame around `payload`.
fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    build::datagram(&l2(), &l3_v6(), protocol, payload).to_vec()
}

/// An IPv4 frame with these bytes for flags and offset.
fn v4_fragment(field: u16, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = v4(protocol, &payload(len));
    bytes[IP + 6..IP + 8].copy_from_slice(&field.to_be_bytes());
    fix_ip(&mut bytes);
    bytes
}

fn udp(l3: &L3, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    let sum = checksum::pseudo_header(l3.src, l3.dst, 17, bytes.len()).bytes(&bytes).check();
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    edit(&mut bytes);
    build::datagram(&l2(), l3, 17, &bytes).to_vec()
}

fn verdict(bytes: &[u8]) -> Result<Packet, Malformed> {
    parse(&from_wire(bytes))
}

fn refused(bytes: &[u8], why: Malformed) {
    assert_eq!(verdict(bytes), Err(why));
}

fn options_of(bytes: &[u8]) -> TcpOptions {
    match verdict(bytes) {
        Ok(Packet::Tcp(segment)) => segment.options,
        other => panic!("not a segment: {other:?}"),
    }
}

/// Each line: name, the frame, the verdict, one sentence.
macro_rules! refusals {
    ($($name:ident: $bytes:expr => $why:ident, $sentence:literal;)*) => {$(
        #[doc = $sentence]
        #[test]
        fn $name() {
            refused(&$bytes, Malformed::$why);
        }
    )*};
}

refusals! {
    runt: good()[..13] => Runt, "An Ethernet header has 14 bytes.";
    empty: Vec::new() => Runt, "No bytes are no frame.";
    tag_cut_off: [&good()[..12], &[0x81, 0, 0]].concat() => Runt, "A tag needs 4 bytes.";
    vlan_in_vlan_in_vlan: [
        &good()[..12],
        &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3],
        &good()[12..],
    ].concat() => VlanDepth, "Two tags are all that a network has a use for.";
    multicast_mac: edited(|b| b[6] |= 1) => MulticastSource, "No group sends.";
    ihl_4: edited(|b| b[IP] = 0x44) => IpHeader, "An IPv4 header has at least 5 words.";
    ihl_beyond: { let mut b = good(); b[IP] = 0x4f; b[..IP + 50].to_vec() }
        => IpHeader, "The header ends beyond the frame.";
    version_6_in_ipv4: edited(|b| b[IP] = 0x65) => IpHeader, "Ethertype and version agree.";
    ip_header_cut_off: good()[..IP + 19] => IpHeader, "A header cut off is none.";
    total_below_header: edited(|b| b[IP + 2..IP + 4].copy_from_slice(&[0, 19]))
        => IpLength, "A packet is no shorter than its header.";
    total_beyond_frame: edited(|b| b[IP + 2] = 0x40) => IpLength, "A packet ends in its frame.";
    total_0: edited(|b| b[IP + 2..IP + 4].fill(0)) => IpLength, "0 is for super-frames only.";
    ip_checksum: { let mut b = good(); b[IP + 8] ^= 1; b }
        => IpChecksum, "A flipped bit in the IP header is seen.";
    land: edited(|b| b.copy_within(IP + 12..IP + 16, IP + 16))
        => IpSource, "Nobody writes to himself over a wire.";
    source_multicast: edited(|b| b[IP + 12] = 224) => IpSource, "No group sends.";
    source_broadcast: edited(|b| b[IP + 12..IP + 16].fill(255))
        => IpSource, "Everybody does not send.";
    source_loopback: edited(|b| b[IP + 12] = 127) => IpSource, "127.0.0.0/8 never leaves a host.";
    source_unspecified: edited(|b| b[IP + 12..IP + 16].fill(0))
        => IpSource, "Only DHCP has no address yet.";
    source_this_network: edited(|b| b[IP + 12] = 0) => IpSource, "0.0.0.0/8 is no host's.";
    source_unspecified_udp: udp(&l3_between("0.0.0.0", "198.51.100.2"), |_| {})
        => IpSource, "Only DHCP has no address yet.";
    source_v6_multicast: from_v6("ff02::1")
        => IpSource, "No group sends.";
    source_v6_unspecified: from_v6("::")
        => IpSource, "Only neighbour discovery has no address yet.";
    echo_from_nobody: build::datagram(&l2(), &l3_between("::", "2001:db8::1"), 58, &{
        let mut echo = [128, 0, 0, 0, 0, 1, 0, 1];
        let l3 = l3_between("::", "2001:db8::1");
        let check = checksum::pseudo_header(l3.src, l3.dst, 58, 8).bytes(&echo).check();
        echo[2..4].copy_from_slice(&check.to_be_bytes());
        echo
    }).to_vec() => IpSource, "An echo request wants an answer.";
    loose_source_route: with_ip_options(&[131, 7, 4, 1, 2, 3, 4, 0])
        => SourceRoute, "LSRR is refused.";
    strict_source_route: with_ip_options(&[1, 137, 7, 4, 1, 2, 3, 4])
        => SourceRoute, "SSRR is refused, also behind a NOP.";
    ip_option_len_0: with_ip_options(&[7, 0, 0, 0])
        => IpHeader, "An option of no length never ends.";
    ip_option_len_1: with_ip_options(&[7, 1, 0, 0])
        => IpHeader, "An option counts its own two bytes.";
    ip_option_overrun: with_ip_options(&[1, 1, 7, 3]) => IpHeader, "An option ends in the header.";
    routing_header_0: v6(43, &[6, 2, 0, 0, 0, 0, 0, 0]) => SourceRoute, "RH0 is dead (RFC 5095).";
    forty_extension_headers: v6(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(40))
        => ExtensionHeaders, "8 are more than anybody needs.";
    long_extension_header: v6(60, &[&[6, 64, 1, 4], [0; 600].as_slice()].concat())
        => ExtensionHeaders, "512 bytes are more than anybody needs.";
    late_hop_by_hop: v6(60, &[[0, 0, 1, 4, 0, 0, 0, 0], [6, 0, 1, 4, 0, 0, 0, 0]].concat())
        => ExtensionHeaders, "Hop-by-hop options stand first (RFC 8200 4.1).";
    authentication_header_8: v6(51, &[6, 0, 0, 0, 0, 0, 0, 0])
        => IpHeader, "Its fixed part has 12 bytes (RFC 4302 2.2).";
    extension_cut_off: v6(60, &[6, 1, 1, 4, 0, 0, 0, 0]) => IpHeader, "A header cut off is none.";
    v6_length_beyond_frame: { let mut b = v6(59, &[]); b[IP + 5] = 1; b }
        => IpLength, "A packet ends in its frame.";
    v6_chain_beyond_packet: { let mut b = v6(60, &[6, 0, 1, 4, 0, 0, 0, 0]); b[IP + 5] = 4; b }
        => IpLength, "Extension headers lie in the packet, not in the padding.";
    fragment_empty: v4_fragment(0x2000, 17, 0) => Fragment, "A piece of nothing.";
    fragment_misaligned: v4_fragment(0x2000, 17, 25)
        => Fragment, "All pieces but the last are multiples of 8.";
    fragment_beyond: v4_fragment(0x1fff, 17, 64)
        => Fragment, "Ping of death: no datagram has more than 65,535 bytes.";
    fragment_tiny: v4_fragment(0x2000, 6, 8)
        => Fragment, "The first piece holds the TCP header (RFC 1858).";
    fragment_at_8: v4_fragment(0x2001, 6, 24)
        => Fragment, "No other piece begins in the TCP header (RFC 1858).";
    tcp_header_cut_off: v4(6, &[0; 19]) => TcpHeader, "A TCP header has 20 bytes.";
    data_offset_4: edited(|b| b[TCP + 12] = 0x40) => TcpHeader, "At least 5 words.";
    data_offset_beyond: of_24_bytes(0xf0)
        => TcpHeader, "The header ends in the segment.";
    data_offset_in_padding: [&of_24_bytes(0x70)[..], &[0; 20]].concat()
        => TcpHeader, "The header ends in the segment, not in the padding behind it.";
    tcp_checksum: { let mut b = good(); *b.last_mut().expect("a byte") ^= 0x80; b }
        => TcpChecksum, "A flipped bit in the payload is seen.";
    flags_null: edited(|b| b[TCP + 13] = 0) => TcpFlags, "No TCP sends no flags.";
    flags_ecn_only: edited(|b| b[TCP + 13] = 0xc0) => TcpFlags, "ECN alone says nothing.";
    flags_all: edited(|b| b[TCP + 13] = 0xff) => TcpFlags, "Xmas tree.";
    flags_syn_fin: edited(|b| b[TCP + 13] = 0x03) => TcpFlags, "Beginning and end at once.";
    flags_syn_rst: edited(|b| b[TCP + 13] = 0x06) => TcpFlags, "Beginning and abortion at once.";
    option_len_0: with_options(&[8, 0]) => TcpOption, "An option of no length never ends.";
    option_len_1: with_options(&[254, 1]) => TcpOption, "An option counts its own two bytes.";
    option_overrun: with_options(&[1, 1, 8, 10, 0, 0, 0, 1])
        => TcpOption, "An option ends in the header.";
    option_kind_without_len: with_options(&[1, 1, 1, 8])
        => TcpOption, "A kind without a length.";
    sack_5_blocks: with_options(&[&[5, 42][..], &[0; 32]].concat())
        => TcpOption, "Five blocks do not fit.";
    udp_header_cut_off: v4(17, &[0; 7]) => UdpHeader, "A UDP header has 8 bytes.";
    udp_length_7: udp(&l3(), |b| b[5] = 7)
        => UdpHeader, "A datagram is no shorter than its header.";
    udp_length_beyond: udp(&l3(), |b| b[5] = 13) => UdpHeader, "A datagram ends in its packet.";
    udp_checksum: udp(&l3(), |b| b[11] ^= 1) => UdpChecksum, "A flipped bit is seen.";
    udp_checksum_0_v6: udp(&l3_v6(), |b| b[6..8].fill(0))
        => UdpChecksum, "IPv6 has no checksum of its own.";
    icmp_cut_off: v4(1, &[8, 0, 0xf7, 0xff]) => Icmp, "An ICMP header has 8 bytes.";
    icmp_checksum: v4(1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 1]) => Icmp, "A wrong sum is seen.";
    icmp_v6_checksum: v6(58, &[128, 0, 0, 0, 0, 0, 0, 1]) => Icmp, "A wrong sum is seen.";
    arp_cut_off: arp()[..41]
        => Arp, "ARP has 28 bytes.";
    arp_of_another_shape: { let mut b = arp(); b[IP + 4] = 8; b }
        => Arp, "Only IPv4 over Ethernet.";
    arp_operation: { let mut b = arp(); b[IP + 7] = 3; b } => Arp, "Request or reply.";
    arp_sender_group: { let mut b = arp(); b[IP + 8] |= 1; b } => Arp, "No group has an address.";
    arp_sender_broadcast: { let mut b = arp(); b[IP + 14..IP + 18].fill(255); b }
        => IpSource, "Nobody has that address.";
}

/// An IPv6 frame from `src`.
fn from_v6(src: &str) -> Vec<u8> {
    build::datagram(&l2(), &l3_between(src, "2001:db8::1"), 6, &[0; 20]).to_vec()
}

/// A TCP frame whose segment has 24 bytes and this byte for its data offset.
fn of_24_bytes(data_offset: u8) -> Vec<u8> {
    edited(|b| {
        b.truncate(TCP + 24);
        b[IP + 2..IP + 4].copy_from_slice(&[0, 44]);
        b[TCP + 12] = data_offset;
    })
}

fn arp() -> Vec<u8> {
    build::arp_request(&l2(), [192, 0, 2, 1].into(), [192, 0, 2, 2].into()).to_vec()
}

/// A TCP frame with these IPv4 options, a multiple of 4 bytes.
fn with_ip_options(options: &[u8]) -> Vec<u8> {
    let mut bytes = good();
    bytes.splice(TCP..TCP, options.iter().copied());
    bytes[IP] += (options.len() / 4) as u8;
    let total = (bytes.len() - IP) as u16;
    bytes[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes());
    fix_ip(&mut bytes);
    bytes
}

/// Options that name no route are carried and looked past.
#[test]
fn ip_options_are_looked_past() {
    let frame = from_wire(&with_ip_options(&[148, 4, 0, 0, 1, 1, 1, 0]));
    let Ok(Packet::Tcp(segment)) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
    assert_eq!((segment.l4_at, segment.payload_len), (42, 100));
    assert_eq!(frame.body().len(), 100);
}

/// A frame below 60 bytes is padded on the wire: the padding is no payload.
#[test]
fn padding_is_no_payload() {
    let mut plain = fields();
    plain.options = TcpOptions::default();
    let mut bytes = tcp_bytes(&l3(), &plain, 1);
    bytes.resize(60, 0xee);
    let Ok(Packet::Tcp(segment)) = verdict(&bytes) else { panic!("{:?}", verdict(&bytes)) };
    assert_eq!(segment.payload_len, 1);
    let mut frame = build::tcp(&l2(), &l3(), &plain, payload(1), 1448);
    let offload = frame.offload();
    let padded = [&frame.to_vec()[..], &[0xee; 5]].concat();
    checksum::complete(&mut frame);
    let mut padded = Frame::from_wire(padded.into(), offload);
    checksum::complete(&mut padded);
    assert_eq!(padded.to_vec()[..frame.len()], frame.to_vec(), "a sum does not cover padding");
}

/// A checksum of 0 over IPv4 means that there is none (RFC 768).
#[test]
fn udp_without_checksum_passes_over_v4() {
    let bytes = udp(&l3(), |b| b[6..8].fill(0));
    assert!(matches!(verdict(&bytes), Ok(Packet::Udp(Datagram { payload_len: 4, .. }))));
}

/// A client without an address speaks to a DHCP server.
#[test]
fn dhcp_has_no_source_yet() {
    let l3 = l3_between("0.0.0.0", "255.255.255.255");
    let mut bytes = vec![0, 68, 0, 67, 0, 8, 0, 0];
    let check = checksum::pseudo_header(l3.src, l3.dst, 17, 8).bytes(&bytes).check();
    bytes[6..8].copy_from_slice(&check.to_be_bytes());
    let bytes = build::datagram(&l2(), &l3, 17, &bytes).to_vec();
    assert!(matches!(verdict(&bytes), Ok(Packet::Udp(_))));
}

/// The first of two counts, whatever the second says.
#[test]
fn of_duplicate_options_the_first_counts() {
    let options = options_of(&with_options(&[2, 4, 5, 180, 2, 4, 0, 1, 3, 3, 7, 3, 3, 9]));
    assert_eq!((options.mss, options.window_scale), (Some(1460), Some(7)));
}

/// A shift beyond 14 counts as 14 (RFC 7323 2.3).
#[test]
fn window_scale_is_at_most_14() {
    for (shift, seen) in [(0, 0), (14, 14), (15, 14), (255, 14)] {
        assert_eq!(options_of(&with_options(&[3, 3, shift])).window_scale, Some(seen));
    }
}

/// MSS values that no path has are reported as they are: bounding them is the engine's.
#[test]
fn mss_is_taken_as_it_is() {
    for mss in [0u16, 1, 536, 65_535] {
        let [high, low] = mss.to_be_bytes();
        assert_eq!(options_of(&with_options(&[2, 4, high, low])).mss, Some(mss));
    }
}

/// Linux skips a known option of a wrong length; so does the gateway, and says so.
#[test]
fn a_known_option_of_another_length_is_unknown() {
    for option in [
        &[8, 9, 0, 0, 0, 0, 0, 0, 0][..],
        &[2, 3, 5],
        &[3, 4, 7, 7],
        &[4, 3, 0],
        &[5, 2],
        &[5, 9, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let known = TcpOptions { has_unknown: true, ..TcpOptions::default() };
        assert_eq!(options_of(&with_options(option)), known, "{option:?}");
    }
}

/// MD5 and TCP-AO are seen whatever their length.
#[test]
fn authentication_is_seen() {
    let md5 = [&[19, 18][..], &[7; 16]].concat();
    for option in [&md5[..], &[29, 4, 1, 1], &[29, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(options_of(&with_options(option)).is_authenticated);
    }
}

/// SACK edges are reported as they stand: which are possible, the engine knows.
#[test]
fn sack_blocks_are_taken_as_they_are() {
    let blocks = [[0, 0, 0, 9, 0, 0, 0, 1], [0xff; 8], [0; 8], [1; 8]].concat();
    let options = options_of(&with_options(&[&[5, 34][..], &blocks].concat()));
    let max = u32::MAX;
    let one = 0x0101_0101;
    assert_eq!(options.sack.as_slice(), [(9, 1), (max, max), (0, 0), (one, one)]);
}

/// Options that belong to a handshake mean nothing later (RFC 9293 3.2, RFC 7323 2.2).
#[test]
fn handshake_options_count_on_a_syn_only() {
    let mut bytes = with_options(&[2, 4, 5, 180, 3, 3, 7, 4, 2]);
    bytes[TCP + 13] = 0x10;
    fix_transport(&mut bytes, TCP, 6, 16);
    assert_eq!(options_of(&bytes), TcpOptions::default());
}

/// What is odd but may be sent passes: the engine decides by the flow's state.
#[test]
fn odd_segments_pass() {
    for flags in [0x02, 0x04, 0x14, 0x12, 0x01, 0x20, 0x08, 0x39] {
        let bytes = edited(|b| b[TCP + 13] = flags);
        assert!(matches!(verdict(&bytes), Ok(Packet::Tcp(_))), "flags {flags:#04x}");
    }
    let beyond = edited(|b| b[TCP + 18..TCP + 20].fill(0xff));
    assert!(matches!(verdict(&beyond), Ok(Packet::Tcp(Segment { urgent: 0xffff, .. }))));
}

/// An LLC/SNAP frame has a length where others have their type.
#[test]
fn llc_snap_is_other() {
    let mut bytes = good();
    bytes[12..14].copy_from_slice(&[0, 38]);
    let ip = None;
    let other = Other { l2: l2(), ethertype: 38, ip };
    assert_eq!(verdict(&bytes), Ok(Packet::Other(other)));
}

/// Protocols that the gateway does not look into keep their addresses.
#[test]
fn other_protocols_are_other() {
    for protocol in [2, 47, 50, 51, 58, 132, 255] {
        let ip = Some((l3().src, l3().dst, protocol));
        let other = Other { l2: l2(), ethertype: 0x0800, ip };
        assert_eq!(verdict(&v4(protocol, &[1; 40])), Ok(Packet::Other(other)));
    }
    for (protocol, payload) in [(50, &[0; 40][..]), (59, &[]), (43, &[6, 0, 4, 1, 0, 0, 0, 0])] {
        let ip = Some((l3_v6().src, l3_v6().dst, protocol));
        let other = Other { l2: l2(), ethertype: 0x86dd, ip };
        assert_eq!(verdict(&v6(protocol, payload)), Ok(Packet::Other(other)));
    }
    let jumbogram = v6(0, &[6, 0, 0xc2, 4, 0, 1, 0, 0]);
    let mut jumbogram = jumbogram;
    jumbogram[IP + 4..IP + 6].fill(0);
    assert!(matches!(verdict(&jumbogram), Ok(Packet::Other(_))), "a jumbogram is not followed");
}

/// An atomic fragment is the whole datagram (RFC 6946); others wait for reassembly.
#[test]
fn an_atomic_fragment_is_whole() {
    let udp = &udp(&l3_v6(), |_| {})[54..];
    let whole = v6(44, &[&[17, 0, 0, 0, 0, 0, 0, 9][..], udp].concat());
    assert!(matches!(verdict(&whole), Ok(Packet::Udp(Datagram { payload_len: 4, .. }))));
    let piece = v6(44, &[&[17, 0, 0, 8, 1, 2, 3, 4][..], udp].concat());
    let Ok(Packet::Fragment(piece)) = verdict(&piece) else { panic!("{:?}", verdict(&piece)) };
    assert_eq!((piece.protocol, piece.id, piece.offset), (17, 0x0102_0304, 8));
    assert_eq!((piece.has_more, piece.payload_at, piece.payload_len), (false, 62, 12));
}

/// An authentication header is walked past, and said.
#[test]
fn an_authentication_header_counts_as_authenticated() {
    let plain = tcp_bytes(&l3_v6(), &fields(), 3);
    let header = [&[6, 4, 0, 0][..], &[9; 20]].concat();
    let bytes = v6(51, &[&header, &plain[54..]].concat());
    let Ok(Packet::Tcp(segment)) = verdict(&bytes) else { panic!("{:?}", verdict(&bytes)) };
    assert!(segment.options.is_authenticated);
    assert_eq!((segment.l4_at, segment.payload_len), (78, 3));
}

/// Tags are kept with their priority, and what tells networks apart is the ids alone.
#[test]
fn two_tags_are_kept() {
    let tags = [0x88, 0xa8, 0xe0, 7, 0x81, 0, 0x20, 9];
    let bytes = [&good()[..12], &tags, &good()[12..]].concat();
    let Ok(Packet::Tcp(segment)) = verdict(&bytes) else { panic!("{:?}", verdict(&bytes)) };
    let vlans = Vlans { outer: Some((0x88a8, 0xe007)), inner: Some((0x8100, 0x2009)) };
    assert_eq!(segment.l2.vlans, vlans);
    assert_eq!(segment.l2.vlans.ids(), (Some(7), Some(9)));
    assert_eq!(segment.l4_at, 42);
}

/// A jumbo frame of the largest IPv4 packet parses whole.
#[test]
fn the_largest_packet_passes() {
    let mut plain = fields();
    plain.options = TcpOptions::default();
    let bytes = tcp_bytes(&l3(), &plain, 65_535 - 40);
    assert_eq!(bytes.len(), 65_549);
    let packet = verdict(&bytes);
    assert!(matches!(packet, Ok(Packet::Tcp(Segment { payload_len: 65_495, .. }))));
}

/// A super-frame beyond 64 KiB has 0 for its length (BIG TCP).
#[test]
fn big_tcp_passes_as_a_super_frame_only() {
    for l3 in [l3(), l3_v6()] {
        let frame = build::tcp(&l2(), &l3, &fields(), payload(66_000), 1448);
        let Ok(Packet::Tcp(segment)) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
        assert_eq!((segment.payload_len, segment.gso_size), (66_000, Some(1448)));
        let mut plain = frame.clone();
        plain.set_offload(Offload { gso: None, ..frame.offload() });
        assert!(parse(&plain).is_err());
    }
}

/// Only the kernel's word for this very checksum counts (invariant I13).
#[test]
fn a_partial_sum_elsewhere_vouches_for_nothing() {
    let frame = build::tcp(&l2(), &l3(), &fields(), payload(9), 1448);
    for spot in [CsumSpot { start: 40, offset: 16 }, CsumSpot { start: 34, offset: 6 }] {
        let mut frame = frame.clone();
        frame.set_offload(Offload { needs_csum: Some(spot), ..Offload::default() });
        assert_eq!(parse(&frame), Err(Malformed::TcpChecksum));
    }
    let mut frame = frame;
    frame.set_offload(Offload { data_valid: true, ..Offload::default() });
    assert!(parse(&frame).is_ok());
}

/// A head that ends elsewhere than before the payload is refused, not guessed at.
#[test]
fn a_frame_split_elsewhere_never_parses_as_tcp() {
    let bytes = good();
    for split in 0..bytes.len() {
        let head = bytes::BytesMut::from(&bytes[..split]);
        let body = Bytes::copy_from_slice(&bytes[split..]);
        let frame = Frame::from_parts(head, body, Offload::default());
        assert_eq!(parse(&frame).is_ok(), split == TCP + 32, "split at {split}");
    }
}
