//! From fields to a frame: every frame that the gateway originates is made here.
//!
//! Owns the layout of headers and options, never the choice of a value. What is built here,
//! [`parse`](super::parse::parse) reads back the same. Read first: RFC 9293 3.1, RFC 7323,
//! RFC 2018, RFC 826, RFC 4861 4.3 and 4.4, RFC 1191 4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, Bytes, BytesMut};

use super::checksum::{Sum, pseudo_header};
pub use super::fragment::fragments;
use super::frame::{CsumSpot, Frame, Gso, GsoKind, Offload};
use super::packet::{L2, L3, Mac, TcpFlags, TcpOptions};
use super::parse::{ethertype, option_kind, protocol};

/// The fields of a TCP segment to be built.
#[derive(Clone, Copy, Debug)]
pub struct TcpFields {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number as it will stand on the wire.
    pub seq: u32,
    /// Acknowledgment number as it will stand on the wire.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Window field, already scaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; `is_authenticated` and `has_unknown` are ignored.
    pub options: TcpOptions,
}

/// Bytes that all options of one segment may take.
const OPTIONS_LEN_MAX: usize = 40;
/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM_FIELD: u16 = 16;

/// Builds a TCP segment. `mss` is the most payload bytes that one packet on the wire may carry
/// (options already subtracted): a longer payload becomes a super-frame with `gso.size == mss`.
/// The checksum is left partial (`needs_csum`).
///
/// Headers and payload together fit 65,535 bytes; longer ones are built with a length of 0, as
/// BIG TCP does, which not every kernel takes.
pub fn tcp(l2: &L2, l3: &L3, fields: &TcpFields, payload: Bytes, mss: u16) -> Frame {
    let header_len = 20 + tcp_options_len(&fields.options);
    let len = header_len + payload.len();
    // In an array on the stack, of known size: appending each field to a buffer that may grow costs
    // several times as much.
    let mut headers = [0; HEADERS_LEN_MAX];
    let mut rest = &mut headers[..];
    put_ethernet(&mut rest, l2, ip_ethertype(l3));
    put_ip(&mut rest, l3, protocol::TCP, len);
    let start = HEADERS_LEN_MAX - rest.len();
    rest.put_u16(fields.src_port);
    rest.put_u16(fields.dst_port);
    rest.put_u32(fields.seq);
    rest.put_u32(fields.ack);
    rest.put_u8((header_len as u8 / 4) << 4);
    rest.put_u8(fields.flags.0);
    rest.put_u16(fields.window);
    rest.put_u16(pseudo_header(l3.src, l3.dst, protocol::TCP, len).fold());
    rest.put_u16(fields.urgent);
    put_tcp_options(&mut rest, &fields.options);
    let end = HEADERS_LEN_MAX - rest.len();
    debug_assert_eq!(end, start + header_len, "the options take what they were said to");
    let head = BytesMut::from(&headers[..end]);
    let gso = (payload.len() > usize::from(mss) && mss > 0).then_some(Gso {
        kind: if l3.src.is_ipv4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 },
        size: mss,
        hdr_len: end as u16,
    });
    let spot = CsumSpot { start: start as u16, offset: TCP_CHECKSUM_FIELD };
    let offload = Offload { needs_csum: Some(spot), data_valid: false, gso };
    Frame::from_parts(head, payload, offload)
}

/// Bytes that `options` take in a segment, padding included: a multiple of 4, at most 40.
/// SACK blocks that do not fit beside the rest are left out, the last ones first.
pub fn tcp_options_len(options: &TcpOptions) -> usize {
    let fixed = fixed_options_len(options);
    match sack_count(options, fixed) {
        0 => fixed,
        count => fixed + 4 + 8 * count,
    }
}

/// A datagram around `payload`, which begins with the header of `protocol` and carries its own
/// checksum; for handing a reassembled datagram to [`parse`](super::parse::parse). One that is
/// too long for IP's length field comes out with a length that `parse` refuses.
pub fn datagram(l2: &L2, l3: &L3, protocol: u8, payload: &[u8]) -> Frame {
    let mut bytes = BytesMut::with_capacity(HEADROOM + payload.len());
    put_ethernet(&mut bytes, l2, ip_ethertype(l3));
    put_ip(&mut bytes, l3, protocol, payload.len());
    bytes.put_slice(payload);
    Frame::from_wire(bytes.freeze(), Offload::default())
}

/// Asks who has `target`, in the name of `sender` at `l2.src`; an unspecified sender makes it a
/// duplicate-address probe (RFC 5227).
pub fn arp_request(l2: &L2, sender: Ipv4Addr, target: Ipv4Addr) -> Frame {
    arp(l2, 1, (l2.src, sender), (Mac::default(), target))
}

/// Tells `target` at `l2.dst` that `sender` is at `l2.src`.
pub fn arp_reply(l2: &L2, sender: Ipv4Addr, target: Ipv4Addr) -> Frame {
    arp(l2, 2, (l2.src, sender), (l2.dst, target))
}

/// Asks who has `target`, in the name of `src` at `l2.src`. It goes to `target` itself if `l2.dst`
/// is one host's address, otherwise to the target's solicited-node group. An unspecified `src`
/// makes it a duplicate-address probe.
pub fn neighbour_solicit(l2: &L2, src: Ipv6Addr, target: Ipv6Addr) -> Frame {
    let dst = if l2.dst.is_multicast() { solicited_node(target) } else { target };
    let mac = (!src.is_unspecified()).then_some((SOURCE_MAC, l2.src));
    neighbour(l2, src, dst, NEIGHBOUR_SOLICIT, 0, target, mac)
}

/// Tells `dst` that `target` is at `l2.src`. It counts as the answer to a solicitation unless
/// `dst` is a group; it replaces what the receiver had learned.
pub fn neighbour_advertise(l2: &L2, target: Ipv6Addr, dst: Ipv6Addr) -> Frame {
    let solicited = if dst.is_multicast() { 0 } else { SOLICITED };
    let flags = OVERRIDE | solicited;
    neighbour(l2, target, dst, NEIGHBOUR_ADVERTISE, flags, target, Some((TARGET_MAC, l2.src)))
}

/// The Ethernet address of the group of nodes that `target` may be (RFC 2464 7, RFC 4291 2.7.1).
pub fn solicited_node_mac(target: Ipv6Addr) -> Mac {
    let [.., a, b, c] = target.octets();
    Mac([0x33, 0x33, 0xff, a, b, c])
}

/// Tells the sender of `original`, an IP frame, that it was bigger than `mtu`. `l3` is the
/// message's own: from the gateway, or whom it speaks for, to that sender. Nothing if
/// `original` is not IP.
pub fn icmp_too_big(l2: &L2, l3: &L3, mtu: u16, original: &Frame) -> Option<Frame> {
    let quote = quote_of(l3, original)?;
    let mut message = BytesMut::with_capacity(8 + quote.len());
    match l3.src {
        IpAddr::V4(_) => message.put_slice(&[3, 4, 0, 0, 0, 0]),
        IpAddr::V6(_) => message.put_slice(&[2, 0, 0, 0, 0, 0]),
    }
    message.put_u16(mtu);
    message.put_slice(&quote);
    let (kind, sum) = match l3.src {
        IpAddr::V4(_) => (protocol::ICMP, Sum::new()),
        IpAddr::V6(_) => {
            (protocol::ICMPV6, pseudo_header(l3.src, l3.dst, protocol::ICMPV6, message.len()))
        }
    };
    let check = sum.bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    Some(datagram(l2, l3, kind, &message))
}

/// Room for Ethernet, two tags and IPv6 without extension headers.
const HEADROOM: usize = 14 + 8 + 40;
/// The same and a TCP header with all its options.
const HEADERS_LEN_MAX: usize = HEADROOM + 20 + OPTIONS_LEN_MAX;
/// Neighbour discovery: types, flags, options (RFC 4861 4).
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERTISE: u8 = 136;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

pub(super) const fn ip_ethertype(l3: &L3) -> u16 {
    if l3.src.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 }
}

pub(super) fn put_ethernet(head: &mut impl BufMut, l2: &L2, ethertype: u16) {
    head.put_slice(&l2.dst.0);
    head.put_slice(&l2.src.0);
    for (tag, control) in [l2.vlans.outer, l2.vlans.inner].into_iter().flatten() {
        head.put_u16(tag);
        head.put_u16(control);
    }
    head.put_u16(ethertype);
}

/// The header before `len` bytes of `protocol`, checksum included.
pub(super) fn put_ip(head: &mut impl BufMut, l3: &L3, protocol: u8, len: usize) {
    match (l3.src, l3.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => put_v4(head, l3, (src, dst), protocol, len),
        (IpAddr::V6(src), IpAddr::V6(dst)) => put_v6(head, l3, (src, dst), protocol, len),
        _ => debug_assert!(false, "both addresses are of one family"),
    }
}

fn put_v4(head: &mut impl BufMut, l3: &L3, ends: (Ipv4Addr, Ipv4Addr), protocol: u8, len: usize) {
    let mut header = [0; 20];
    let mut rest = &mut header[..];
    rest.put_u8(0x45);
    rest.put_u8(l3.tos);
    rest.put_u16(u16::try_from(20 + len).unwrap_or(0));
    rest.put_u16(l3.id);
    rest.put_u16(if l3.dont_fragment { 0x4000 } else { 0 });
    rest.put_u8(l3.ttl);
    rest.put_u8(protocol);
    rest.put_u16(0);
    rest.put_slice(&ends.0.octets());
    rest.put_slice(&ends.1.octets());
    let check = Sum::new().bytes(&header).check();
    header[10..12].copy_from_slice(&check.to_be_bytes());
    head.put_slice(&header);
}

fn put_v6(head: &mut impl BufMut, l3: &L3, ends: (Ipv6Addr, Ipv6Addr), protocol: u8, len: usize) {
    head.put_u32(6 << 28 | u32::from(l3.tos) << 20 | l3.flow_label & 0x000f_ffff);
    head.put_u16(u16::try_from(len).unwrap_or(0));
    head.put_u8(protocol);
    head.put_u8(l3.ttl);
    head.put_slice(&ends.0.octets());
    head.put_slice(&ends.1.octets());
}

/// Bytes of everything but SACK blocks.
fn fixed_options_len(options: &TcpOptions) -> usize {
    let mss = if options.mss.is_some() { 4 } else { 0 };
    let timestamps = if options.timestamps.is_some() { 12 } else { 0 };
    // Where timestamps stand, SACK-permitted takes the place of their padding.
    let permitted = if options.sack_permitted && timestamps == 0 { 4 } else { 0 };
    let scale = if options.window_scale.is_some() { 4 } else { 0 };
    mss + timestamps + permitted + scale
}

/// How many blocks stand beside `fixed` bytes of other options.
fn sack_count(options: &TcpOptions, fixed: usize) -> usize {
    options.sack.as_slice().len().min((OPTIONS_LEN_MAX - 4 - fixed) / 8)
}

/// Linux's order and padding, so that a handshake looks like the servers' own.
fn put_tcp_options(head: &mut impl BufMut, options: &TcpOptions) {
    use option_kind::{MSS, NOP, SACK, SACK_PERMITTED, TIMESTAMPS, WINDOW_SCALE};
    if let Some(mss) = options.mss {
        head.put_slice(&[MSS, 4]);
        head.put_u16(mss);
    }
    if let Some((value, echo)) = options.timestamps {
        let before = if options.sack_permitted { [SACK_PERMITTED, 2] } else { [NOP, NOP] };
        head.put_slice(&before);
        head.put_slice(&[TIMESTAMPS, 10]);
        head.put_u32(value.0);
        head.put_u32(echo.0);
    } else if options.sack_permitted {
        head.put_slice(&[NOP, NOP, SACK_PERMITTED, 2]);
    }
    if let Some(shift) = options.window_scale {
        head.put_slice(&[NOP, WINDOW_SCALE, 3, shift]);
    }
    let count = sack_count(options, fixed_options_len(options));
    if count > 0 {
        // At most 34.
        head.put_slice(&[NOP, NOP, SACK, 2 + 8 * count as u8]);
        for (left, right) in &options.sack.as_slice()[..count] {
            head.put_u32(*left);
            head.put_u32(*right);
        }
    }
}

fn arp(l2: &L2, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Frame {
    let mut head = BytesMut::with_capacity(HEADROOM);
    put_ethernet(&mut head, l2, ethertype::ARP);
    head.put_slice(&[0, 1, 0x08, 0x00, 6, 4]);
    head.put_u16(operation);
    for (mac, ip) in [sender, target] {
        head.put_slice(&mac.0);
        head.put_slice(&ip.octets());
    }
    Frame::from_parts(head, Bytes::new(), Offload::default())
}

fn neighbour(
    l2: &L2,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    mac: Option<(u8, Mac)>,
) -> Frame {
    let mut message = BytesMut::with_capacity(32);
    message.put_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    message.put_slice(&target.octets());
    if let Some((option, mac)) = mac {
        message.put_slice(&[option, 1]);
        message.put_slice(&mac.0);
    }
    let (src, dst) = (IpAddr::V6(src), IpAddr::V6(dst));
    let sum = pseudo_header(src, dst, protocol::ICMPV6, message.len());
    let check = sum.bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    // Receivers take it only with all hops left (RFC 4861 7.1).
    let l3 = L3 { src, dst, ttl: 255, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
    datagram(l2, &l3, protocol::ICMPV6, &message)
}

fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// As much of the packet in `original` as an error about it quotes: all that keeps the message
/// within 576 bytes (RFC 1812 4.3.2.3) or the minimum MTU of IPv6 (RFC 4443 2.4).
fn quote_of(l3: &L3, original: &Frame) -> Option<Vec<u8>> {
    let (_, l3_at) = super::parse::network(original.head())?;
    let quote_len_max = if l3.src.is_ipv4() { 576 - 20 - 8 } else { 1280 - 40 - 8 };
    let bytes = original.head().iter().chain(original.body().iter());
    let end = super::parse::ip_end(original).unwrap_or(original.len());
    let len = (end - l3_at).min(quote_len_max);
    Some(bytes.skip(l3_at).take(len).copied().collect())
}
