//! IPv4 with options, IPv6 with extension headers, fragments.
//!
//! Owns lengths, the IPv4 header checksum, source routes and source addresses. Read first:
//! RFC 791, RFC 8200 4, RFC 5095 (routing header 0), RFC 1858 and RFC 6946 (fragments).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ethernet::Ethernet;
use super::{array, be32, offset16, protocol};
use crate::wire::checksum::Sum;
use crate::wire::frame::Frame;
use crate::wire::packet::{Fragment, L3, Malformed};

/// Extension headers in one packet.
const EXTENSION_COUNT_MAX: usize = 8;
/// Bytes of all extension headers of one packet.
const EXTENSION_BYTES_MAX: usize = 512;
/// Bytes of a datagram, its header included for IPv4 and excluded for IPv6.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// IPv4 option kinds.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// The IP part, and what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub(super) l3: L3,
    /// Protocol of what stands at `at`.
    pub(super) protocol: u8,
    /// Where the payload begins, behind options and extension headers.
    pub(super) at: usize,
    /// Bytes of the payload, padding of the frame excluded.
    pub(super) len: usize,
    /// Set if the payload is a piece of one.
    pub(super) fragment: Option<Piece>,
    /// An authentication header covers the packet.
    pub(super) is_authenticated: bool,
    /// Bytes of the IPv4 header; 0 for IPv6, whose length field does not count its own.
    counted_header: usize,
}

/// Which piece of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    id: u32,
    /// In bytes.
    offset: usize,
    has_more: bool,
}

pub(super) fn parse_v4(frame: &Frame, at: usize) -> Result<Ip, Malformed> {
    let fixed = array::<20>(frame.head(), at).ok_or(Malformed::IpHeader)?;
    let header_len = v4_header_len(fixed[0]).ok_or(Malformed::IpHeader)?;
    let header = frame.head().get(at..at + header_len).ok_or(Malformed::IpHeader)?;
    if Sum::new().bytes(header).fold() != 0xffff {
        return Err(Malformed::IpChecksum);
    }
    let space = frame.len() - at;
    let total = match usize::from(u16::from_be_bytes([fixed[2], fixed[3]])) {
        // A super-frame beyond 64 KiB (BIG TCP) has no number that fits.
        0 if frame.offload().gso.is_some() => space,
        total => total,
    };
    if total < header_len || total > space {
        return Err(Malformed::IpLength);
    }
    check_options(&header[20..])?;
    let id = u16::from_be_bytes([fixed[4], fixed[5]]);
    let l3 = L3 {
        src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
        dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
        ttl: fixed[8],
        tos: fixed[1],
        dont_fragment: fixed[6] & 0x40 != 0,
        id,
        flow_label: 0,
    };
    let (offset, has_more) = v4_piece(fixed[6], fixed[7]);
    let is_piece = offset != 0 || has_more;
    Ok(Ip {
        l3,
        protocol: fixed[9],
        at: at + header_len,
        len: total - header_len,
        fragment: is_piece.then_some(Piece { id: u32::from(id), offset, has_more }),
        is_authenticated: false,
        counted_header: header_len,
    })
}

pub(super) fn parse_v6(frame: &Frame, at: usize) -> Result<Ip, Malformed> {
    let fixed = array::<40>(frame.head(), at).ok_or(Malformed::IpHeader)?;
    if fixed[0] >> 4 != 6 {
        return Err(Malformed::IpHeader);
    }
    let (first, _) = fixed.split_at(4);
    let word = be32(first, 0).ok_or(Malformed::IpHeader)?;
    let l3 = L3 {
        src: IpAddr::V6(address_v6(fixed, 8)),
        dst: IpAddr::V6(address_v6(fixed, 24)),
        ttl: fixed[7],
        tos: (word >> 20) as u8,
        dont_fragment: true,
        id: 0,
        flow_label: word & 0x000f_ffff,
    };
    let start = at + 40;
    let space = frame.len() - start;
    let len = match usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) {
        // A super-frame beyond 64 KiB (BIG TCP) has no number that fits.
        0 if frame.offload().gso.is_some() => space,
        len => len,
    };
    if len > space {
        return Err(Malformed::IpLength);
    }
    let is_jumbogram = len == 0 && fixed[6] == protocol::HOP_BY_HOP;
    let chain = if is_jumbogram {
        Chain { protocol: fixed[6], at: start, piece: None, is_authenticated: false }
    } else {
        follow(frame.head(), start, fixed[6])?
    };
    let len = (start + len).checked_sub(chain.at).ok_or(Malformed::IpLength)?;
    Ok(Ip {
        l3,
        protocol: chain.protocol,
        at: chain.at,
        len,
        fragment: chain.piece,
        is_authenticated: chain.is_authenticated,
        counted_header: 0,
    })
}

/// Refuses a source that no host can have (RFC 1122 3.2.1.3, RFC 4291 2.5, 2.7). The unspecified
/// address passes here where DHCP, IGMP or neighbour discovery may need it; their parsers look on.
pub(super) fn check_source(ip: &Ip) -> Result<(), Malformed> {
    let is_whole = ip.fragment.is_none();
    let is_wrong = match ip.l3.src {
        IpAddr::V4(src) if src.is_unspecified() => {
            !is_whole || !matches!(ip.protocol, protocol::UDP | protocol::IGMP)
        }
        IpAddr::V6(src) if src.is_unspecified() => !is_whole || ip.protocol != protocol::ICMPV6,
        IpAddr::V4(src) => {
            src.is_multicast() || src.is_broadcast() || src.is_loopback() || src.octets()[0] == 0
        }
        IpAddr::V6(src) => src.is_multicast() || src.is_loopback(),
    };
    if is_wrong || ip.l3.src == ip.l3.dst { Err(Malformed::IpSource) } else { Ok(()) }
}

pub(super) fn parse_fragment(link: &Ethernet, ip: &Ip) -> Result<Fragment, Malformed> {
    let piece = ip.fragment.ok_or(Malformed::Fragment)?;
    let is_misaligned = piece.has_more && !ip.len.is_multiple_of(8);
    let is_beyond = ip.counted_header + piece.offset + ip.len > DATAGRAM_BYTES_MAX;
    // A TCP header cut in two hides its flags from whoever looks at the first piece only.
    let cuts_header = ip.protocol == protocol::TCP
        && if piece.offset == 0 { ip.len < 20 } else { piece.offset < 20 };
    if ip.len == 0 || is_misaligned || is_beyond || cuts_header {
        return Err(Malformed::Fragment);
    }
    Ok(Fragment {
        l2: link.l2,
        l3: ip.l3,
        protocol: ip.protocol,
        id: piece.id,
        // At most 65,528.
        offset: piece.offset as u32,
        has_more: piece.has_more,
        payload_at: offset16(ip.at),
        payload_len: ip.len,
    })
}

/// Protocol and place of the transport behind the IPv4 header at `at`, unless it is a fragment.
pub(super) fn locate_v4(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let fixed = array::<20>(bytes, at)?;
    let header_len = v4_header_len(fixed[0])?;
    (v4_piece(fixed[6], fixed[7]) == (0, false)).then_some((fixed[9], at + header_len))
}

/// Protocol and place of the transport behind the IPv6 header at `at`, unless it is a fragment.
pub(super) fn locate_v6(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let fixed = array::<40>(bytes, at)?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let chain = follow(bytes, at + 40, fixed[6]).ok()?;
    chain.piece.is_none().then_some((chain.protocol, chain.at))
}

/// The address at `at` of an IPv6 header.
pub(super) fn address_v6(fixed: &[u8; 40], at: usize) -> Ipv6Addr {
    array::<16>(fixed, at).map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from(*octets))
}

/// Bytes of an IPv4 header by its first byte, if that is IPv4's.
pub(super) fn v4_header_len(first: u8) -> Option<usize> {
    let words = usize::from(first & 0x0f);
    (first >> 4 == 4 && words >= 5).then_some(words * 4)
}

/// Offset in bytes, and whether more follows.
pub(super) fn v4_piece(high: u8, low: u8) -> (usize, bool) {
    let field = u16::from_be_bytes([high, low]);
    (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0)
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) protocol: u8,
    pub(super) at: usize,
    pub(super) piece: Option<Piece>,
    pub(super) is_authenticated: bool,
}

impl Piece {
    /// Whether it is the first one, which holds the transport header.
    pub(super) const fn is_first(self) -> bool {
        self.offset == 0
    }
}

/// Follows the extension headers from `start`, where one of protocol `next` stands. It ends
/// behind the fragment header of a real fragment, and at whatever cannot be followed.
pub(super) fn follow(bytes: &[u8], start: usize, next: u8) -> Result<Chain, Malformed> {
    let mut chain = Chain { protocol: next, at: start, piece: None, is_authenticated: false };
    for count in 0.. {
        let kind = chain.protocol;
        if !is_extension(kind) {
            break;
        }
        let is_late_hop_by_hop = kind == protocol::HOP_BY_HOP && count > 0;
        if count == EXTENSION_COUNT_MAX || is_late_hop_by_hop {
            return Err(Malformed::ExtensionHeaders);
        }
        let header = array::<8>(bytes, chain.at).ok_or(Malformed::IpHeader)?;
        let [following, len, third, fourth, ..] = *header;
        let len = match kind {
            protocol::FRAGMENT => 8,
            // Its fixed part has three words (RFC 4302 2.2).
            protocol::AUTHENTICATION if len == 0 => return Err(Malformed::IpHeader),
            protocol::AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        if kind == protocol::ROUTING {
            match (third, fourth) {
                (0, _) => return Err(Malformed::SourceRoute),
                // The address that the checksum covers is not the one in the header.
                (_, 1..) => break,
                _ => {}
            }
        }
        chain.at += len;
        if chain.at - start > EXTENSION_BYTES_MAX {
            return Err(Malformed::ExtensionHeaders);
        }
        if chain.at > bytes.len() {
            return Err(Malformed::IpHeader);
        }
        chain.protocol = following;
        chain.is_authenticated |= kind == protocol::AUTHENTICATION;
        if kind == protocol::FRAGMENT {
            let field = u16::from_be_bytes([third, fourth]);
            let (offset, has_more) = (usize::from(field & 0xfff8), field & 1 != 0);
            // Neither: an atomic fragment, which is the whole datagram (RFC 6946).
            if offset != 0 || has_more {
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                chain.piece = Some(Piece { id, offset, has_more });
                break;
            }
        }
    }
    Ok(chain)
}

const fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
    )
}

fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    loop {
        match *options {
            [] | [END_OF_OPTIONS, ..] => return Ok(()),
            [NO_OPERATION, ref rest @ ..] => options = rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err(Malformed::SourceRoute),
            [_, len, ..] if len >= 2 => {
                options = options.get(usize::from(len)..).ok_or(Malformed::IpHeader)?;
            }
            _ => return Err(Malformed::IpHeader),
        }
    }
}
