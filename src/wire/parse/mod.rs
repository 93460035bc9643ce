//! One pass from bytes to [`Packet`]. Never panics, whatever the bytes.
//!
//! Owns every judgement on bytes from outside: what comes back as a [`Packet`] is well-formed,
//! its lengths lie within the frame, and each checksum was verified, or vouched for by the kernel
//! (invariant I13). Never repairs, never guesses; keeps no state.
//!
//! A frame's head has to end where the transport payload begins ([`header_len`], which
//! [`Frame::from_wire`] follows); TCP or UDP headers in a head that ends elsewhere are refused as
//! malformed. Read first: RFC 791, RFC 8200, RFC 9293 3.1, RFC 1122 3.2.

pub mod captured;
mod ethernet;
mod icmp;
mod ip;
mod neighbour;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr};

pub(super) use tcp::kind as option_kind;

use super::checksum;
use super::frame::{CsumSpot, Frame};
use super::packet::{Malformed, Other, Packet};

/// IP protocol numbers that the gateway looks into.
pub(super) mod protocol {
    pub(in crate::wire) const HOP_BY_HOP: u8 = 0;
    pub(in crate::wire) const ICMP: u8 = 1;
    pub(in crate::wire) const IGMP: u8 = 2;
    pub(in crate::wire) const TCP: u8 = 6;
    pub(in crate::wire) const UDP: u8 = 17;
    pub(in crate::wire) const ROUTING: u8 = 43;
    pub(in crate::wire) const FRAGMENT: u8 = 44;
    pub(in crate::wire) const AUTHENTICATION: u8 = 51;
    pub(in crate::wire) const ICMPV6: u8 = 58;
    pub(in crate::wire) const DESTINATION: u8 = 60;
}

/// Ethertypes that the gateway looks into.
pub(super) mod ethertype {
    pub(in crate::wire) const IPV4: u16 = 0x0800;
    pub(in crate::wire) const ARP: u16 = 0x0806;
    pub(in crate::wire) const VLAN: u16 = 0x8100;
    pub(in crate::wire) const IPV6: u16 = 0x86dd;
    pub(in crate::wire) const PROVIDER_VLAN: u16 = 0x88a8;
}

/// Bytes of headers before the transport payload; the whole frame if it is not TCP or UDP.
///
/// Looks at nothing else: a frame that [`parse`] refuses gets some length not beyond its own.
pub fn header_len(bytes: &[u8]) -> usize {
    transport_header_end(bytes).unwrap_or(bytes.len()).min(bytes.len())
}

/// What `frame` says. A packet that comes back has had every checksum verified or vouched for
/// (invariant I13): nothing behind this function recomputes a sum over unverified bytes.
pub fn parse(frame: &Frame) -> Result<Packet, Malformed> {
    let head = frame.head();
    let link = ethernet::parse(head)?;
    let ip = match link.ethertype {
        ethertype::IPV4 => ip::parse_v4(frame, link.at)?,
        ethertype::IPV6 => ip::parse_v6(frame, link.at)?,
        ethertype::ARP => return neighbour::parse_arp(head, &link).map(Packet::Arp),
        ethertype => return Ok(Packet::Other(Other { l2: link.l2, ethertype, ip: None })),
    };
    ip::check_source(&ip)?;
    if ip.fragment.is_some() {
        return ip::parse_fragment(&link, &ip).map(Packet::Fragment);
    }
    match (link.ethertype, ip.protocol) {
        (_, protocol::TCP) => tcp::parse(frame, &link, &ip).map(Packet::Tcp),
        (_, protocol::UDP) => udp::parse(frame, &link, &ip).map(Packet::Udp),
        (ethertype::IPV4, protocol::ICMP) => icmp::parse_v4(frame, &link, &ip).map(Packet::Icmp),
        (ethertype::IPV6, protocol::ICMPV6) => icmp::parse_v6(frame, &link, &ip),
        _ => Ok(Packet::Other(Other {
            l2: link.l2,
            ethertype: link.ethertype,
            ip: Some((ip.l3.src, ip.l3.dst, ip.protocol)),
        })),
    }
}

/// Where the IP packet ends by its own length field (padding follows), from the start of the
/// frame. Nothing if it is not IP, or its length is not to be had.
pub(super) fn ip_end(frame: &Frame) -> Option<usize> {
    let link = ethernet::parse(frame.head()).ok()?;
    let ip = match link.ethertype {
        ethertype::IPV4 => ip::parse_v4(frame, link.at),
        ethertype::IPV6 => ip::parse_v6(frame, link.at),
        _ => return None,
    };
    ip.ok().map(|ip| ip.at + ip.len)
}

/// Ethertype behind the tags and where the header behind it begins, if that is IP.
pub(super) fn network(bytes: &[u8]) -> Option<(u16, usize)> {
    let link = ethernet::parse(bytes).ok()?;
    matches!(link.ethertype, ethertype::IPV4 | ethertype::IPV6).then_some((link.ethertype, link.at))
}

/// Where things stand in a TCP or UDP packet, all from the start of the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The IP header.
    pub(super) l3_at: usize,
    /// The transport header.
    pub(super) l4_at: usize,
    /// Transport protocol.
    pub(super) protocol: u8,
}

/// Where IP and the transport stand, whether or not the rest of the frame is right. Nothing for
/// fragments, and for what is not IP.
pub(super) fn layout(bytes: &[u8]) -> Option<Layout> {
    let link = ethernet::parse(bytes).ok()?;
    let (protocol, l4_at) = match link.ethertype {
        ethertype::IPV4 => ip::locate_v4(bytes, link.at)?,
        ethertype::IPV6 => ip::locate_v6(bytes, link.at)?,
        _ => return None,
    };
    Some(Layout { l3_at: link.at, l4_at, protocol })
}

/// The same of an IP packet that begins at `l3_at`, of which the end may be missing.
pub(super) fn layout_of_ip(bytes: &[u8], l3_at: usize) -> Option<Layout> {
    let (protocol, l4_at) = match bytes.get(l3_at)? >> 4 {
        4 => ip::locate_v4(bytes, l3_at)?,
        6 => ip::locate_v6(bytes, l3_at)?,
        _ => return None,
    };
    Some(Layout { l3_at, l4_at, protocol })
}

/// Source and destination in the IP header at `at`.
pub(super) fn addresses(bytes: &[u8], at: usize) -> Option<(IpAddr, IpAddr)> {
    if bytes.get(at)? >> 4 == 6 {
        let fixed = array::<40>(bytes, at)?;
        return Some((ip::address_v6(fixed, 8).into(), ip::address_v6(fixed, 24).into()));
    }
    let v4 = |at| array::<4>(bytes, at).map(|octets| IpAddr::V4(Ipv4Addr::from(*octets)));
    v4(at + 12).zip(v4(at + 16))
}

fn transport_header_end(bytes: &[u8]) -> Option<usize> {
    let layout = layout(bytes)?;
    match layout.protocol {
        protocol::TCP => {
            let words = usize::from(*bytes.get(layout.l4_at + 12)? >> 4);
            (words >= 5).then_some(layout.l4_at + words * 4)
        }
        protocol::UDP => Some(layout.l4_at + 8),
        _ => None,
    }
}

/// Whether the kernel answers for the transport checksum whose field stands `field` bytes into
/// the header at `l4_at`: it was verified, or it never left this machine's memory.
fn is_vouched(frame: &Frame, l4_at: usize, field: u16) -> bool {
    let offload = frame.offload();
    offload.data_valid || offload.gso.is_some() || is_partial(frame, l4_at, field)
}

/// Whether that checksum is the one that is still to be completed.
fn is_partial(frame: &Frame, l4_at: usize, field: u16) -> bool {
    frame.offload().needs_csum == Some(CsumSpot { start: offset16(l4_at), offset: field })
}

/// Whether the `len` bytes of the transport at `ip.at` and the pseudo header sum up.
fn verifies(frame: &Frame, ip: &ip::Ip, protocol: u8, len: usize) -> bool {
    let pseudo = checksum::pseudo_header(ip.l3.src, ip.l3.dst, protocol, len);
    if frame.offload().needs_csum.is_none() {
        return pseudo.frame(frame, ip.at, ip.at + len).fold() == 0xffff;
    }
    // A tunnel's inner checksum is unfinished; the outer one is right once that is finished.
    let mut finished = frame.clone();
    checksum::complete(&mut finished);
    pseudo.frame(&finished, ip.at, ip.at + len).fold() == 0xffff
}

/// The `N` bytes at `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).copied().map(u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).copied().map(u32::from_be_bytes)
}

/// An offset of a header as packets carry it: headers end far below 64 KiB.
fn offset16(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}
