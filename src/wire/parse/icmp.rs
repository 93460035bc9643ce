//! ICMP and ICMPv6, and the TCP packets that their errors quote.
//!
//! Read first: RFC 792, RFC 4443, RFC 1191 4, RFC 8201; what a quote is good for: RFC 5927.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::ethernet::Ethernet;
use super::ip::{self, Ip};
use super::{array, be16, be32, is_partial, neighbour, offset16, protocol, tcp, verifies};
use crate::wire::checksum::Sum;
use crate::wire::frame::Frame;
use crate::wire::packet::{Icmp, IcmpKind, Malformed, Packet, Quote};

/// Where the checksum stands in the header.
const CHECKSUM_FIELD: u16 = 2;
/// Bytes before the quote, or the data, of a message.
const HEADER_LEN: usize = 8;

pub(super) fn parse_v4(frame: &Frame, link: &Ethernet, ip: &Ip) -> Result<Icmp, Malformed> {
    let message = message(frame, ip)?;
    let sum = Sum::new().frame(frame, ip.at, ip.at + ip.len);
    if !is_partial(frame, ip.at, CHECKSUM_FIELD) && sum.fold() != 0xffff {
        return Err(Malformed::Icmp);
    }
    let quote = || quote_v4(message, ip.at);
    let kind = match (message[0], message[1]) {
        (8, 0) => echo(message).map(|(id, seq)| IcmpKind::EchoRequest { id, seq }),
        (0, 0) => echo(message).map(|(id, seq)| IcmpKind::EchoReply { id, seq }),
        (3, 4) => {
            be16(message, 6).map(|mtu| IcmpKind::TooBig { mtu: u32::from(mtu), quote: quote() })
        }
        (kind @ (3 | 11 | 12), code) => Some(IcmpKind::Error { kind, code, quote: quote() }),
        _ => Some(IcmpKind::Other),
    };
    let kind = kind.ok_or(Malformed::Icmp)?;
    Ok(Icmp { l2: link.l2, l3: ip.l3, kind, l4_at: offset16(ip.at) })
}

pub(super) fn parse_v6(frame: &Frame, link: &Ethernet, ip: &Ip) -> Result<Packet, Malformed> {
    let message = message(frame, ip)?;
    if !is_partial(frame, ip.at, CHECKSUM_FIELD) && !verifies(frame, ip, protocol::ICMPV6, ip.len) {
        return Err(Malformed::Icmp);
    }
    if let Some(nd) = neighbour::parse_nd(message, link, ip)? {
        return Ok(Packet::Nd(nd));
    }
    if ip.l3.src.is_unspecified() {
        return Err(Malformed::IpSource);
    }
    let quote = || quote_v6(message, ip.at);
    let kind = match (message[0], message[1]) {
        (128, 0) => echo(message).map(|(id, seq)| IcmpKind::EchoRequest { id, seq }),
        (129, 0) => echo(message).map(|(id, seq)| IcmpKind::EchoReply { id, seq }),
        (2, _) => be32(message, 4).map(|mtu| IcmpKind::TooBig { mtu, quote: quote() }),
        (kind @ (1 | 3 | 4), code) => Some(IcmpKind::Error { kind, code, quote: quote() }),
        _ => Some(IcmpKind::Other),
    };
    let kind = kind.ok_or(Malformed::Icmp)?;
    Ok(Packet::Icmp(Icmp { l2: link.l2, l3: ip.l3, kind, l4_at: offset16(ip.at) }))
}

/// The message as far as it stands in the head, which holds all of it in a frame from a wire.
fn message<'a>(frame: &'a Frame, ip: &Ip) -> Result<&'a [u8], Malformed> {
    let end = (ip.at + ip.len).min(frame.head().len());
    let message = frame.head().get(ip.at..end).ok_or(Malformed::Icmp)?;
    if message.len() < HEADER_LEN { Err(Malformed::Icmp) } else { Ok(message) }
}

fn echo(message: &[u8]) -> Option<(u16, u16)> {
    be16(message, 4).zip(be16(message, 6))
}

fn quote_v4(message: &[u8], l4_at: usize) -> Option<Quote> {
    let inner = message.get(HEADER_LEN..)?;
    let fixed = array::<20>(inner, 0)?;
    let at = ip::v4_header_len(fixed[0])?;
    let (offset, _) = ip::v4_piece(fixed[6], fixed[7]);
    if fixed[9] != protocol::TCP || offset != 0 {
        return None;
    }
    let src = IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]));
    let dst = IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]));
    quote(inner, at, src, dst, l4_at)
}

fn quote_v6(message: &[u8], l4_at: usize) -> Option<Quote> {
    let inner = message.get(HEADER_LEN..)?;
    let fixed = array::<40>(inner, 0)?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let chain = ip::follow(inner, 40, fixed[6]).ok()?;
    if chain.protocol != protocol::TCP || chain.piece.is_some_and(|piece| !piece.is_first()) {
        return None;
    }
    let src = IpAddr::V6(ip::address_v6(fixed, 8));
    let dst = IpAddr::V6(ip::address_v6(fixed, 24));
    quote(inner, chain.at, src, dst, l4_at)
}

fn quote(inner: &[u8], at: usize, src: IpAddr, dst: IpAddr, l4_at: usize) -> Option<Quote> {
    let (src_port, dst_port, seq) = tcp::beginning(inner, at)?;
    Some(Quote {
        src: SocketAddr::new(src, src_port),
        dst: SocketAddr::new(dst, dst_port),
        seq,
        seq_at: offset16(l4_at + HEADER_LEN + at + 4),
    })
}
