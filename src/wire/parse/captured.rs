//! Packets of captures, read where they lie: any link layer, cut short, sums unfinished or wrong.
//!
//! A capture is evidence and not input: unlike [`parse`](super::parse) this judges nothing that a
//! reader can live with. Addresses may be anything (captures of a loopback are the usual ones), a
//! checksum is told and not demanded, what the snap length cut off is counted. It copies nothing.
//! Read first: <https://www.tcpdump.org/linktypes.html>; for sums that are still to be finished
//! the description in [`checksum`](super::checksum).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{array, be16, be32, ethertype, ip, protocol};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::packet::{Malformed, TcpFlags};

/// How the packets of an interface begin: a LINKTYPE number of tcpdump's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkType(pub u16);

impl LinkType {
    /// The address family of the capturing host, then IP (BSD loopback).
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// IP and nothing before it.
    pub const RAW: Self = Self(101);
    /// The address family in network order, then IP (OpenBSD loopback).
    pub const LOOP: Self = Self(108);
    /// Linux cooked, version 1: what `tcpdump -i any` wrote for long.
    pub const COOKED: Self = Self(113);
    /// IPv4 and nothing before it.
    pub const IPV4: Self = Self(228);
    /// IPv6 and nothing before it.
    pub const IPV6: Self = Self(229);
    /// Linux cooked, version 2: what `tcpdump -i any` writes.
    pub const COOKED2: Self = Self(276);

    /// Whether IP can be found behind it.
    pub const fn is_known(self) -> bool {
        self.shape().is_some()
    }

    const fn shape(self) -> Option<Shape> {
        Some(match self {
            Self::ETHERNET => Shape::Typed { type_at: 12, len: 14 },
            Self::COOKED => Shape::Typed { type_at: 14, len: 16 },
            Self::COOKED2 => Shape::Typed { type_at: 0, len: 20 },
            Self::NULL | Self::LOOP => Shape::Untyped { len: 4 },
            // 12 and 14 are the same, as some systems number it.
            Self::RAW | Self::IPV4 | Self::IPV6 | Self(12 | 14) => Shape::Untyped { len: 0 },
            _ => return None,
        })
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NULL => "null",
            Self::ETHERNET => "Ethernet",
            Self::LOOP => "loop",
            Self::COOKED => "Linux cooked",
            Self::COOKED2 => "Linux cooked 2",
            Self::RAW | Self(12 | 14) => "raw IP",
            Self::IPV4 => "raw IPv4",
            Self::IPV6 => "raw IPv6",
            Self(9) => "PPP",
            Self(105) => "802.11",
            Self(127) => "802.11 with radiotap",
            Self(189 | 220) => "USB",
            Self(number) => return write!(f, "link type {number}"),
        })
    }
}

/// A link-layer header as far as the way to IP is concerned.
#[derive(Clone, Copy)]
enum Shape {
    /// An ethertype says what follows, VLAN tags perhaps first.
    Typed { type_at: usize, len: usize },
    /// IP follows, of the version that its first byte says.
    Untyped { len: usize },
}

/// One packet of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Where its IP header begins; none if it is not IP.
    pub ip_at: Option<usize>,
    /// VLAN tags before it.
    pub tags: u8,
    /// What it says.
    pub what: What<'a>,
}

/// What a packet of a capture says.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// TCP.
    Tcp(Spoken<'a>),
    /// UDP: sender and receiver.
    Udp(SocketAddr, SocketAddr),
    /// A piece of an IP datagram: where the datagram ends in the bytes captured.
    Piece {
        /// End of the IP packet.
        end: usize,
    },
    /// Another protocol over IP: sender, receiver, its number.
    Ip(IpAddr, IpAddr, u8),
    /// Not IP.
    Other,
}

/// A TCP segment of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Spoken<'a> {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// The payload as far as it was captured.
    pub payload: &'a [u8],
    /// Bytes of payload that were sent and not captured (the snap length).
    pub cut: usize,
    /// How its checksum stands.
    pub checksum: Checked,
    /// Where the TCP header begins.
    pub tcp_at: usize,
}

impl Spoken<'_> {
    /// Bytes of payload that were sent.
    pub fn payload_len(&self) -> usize {
        self.payload.len() + self.cut
    }
}

/// How a checksum stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It is right.
    Right,
    /// Captured before a network card finished it: it holds the pseudo header's sum only.
    Unfinished,
    /// It is wrong.
    Wrong,
    /// Not all that it covers was captured.
    Unknown,
}

/// Reads one packet of `wire_len` bytes, of which `bytes` were captured. What is no IP is not
/// wrong; an error says that an IP or TCP header contradicts itself or is cut off.
pub fn look(link: LinkType, bytes: &[u8], wire_len: usize) -> Result<Look<'_>, Malformed> {
    let mut tags = 0;
    let Some(ip_at) = network(link, bytes, &mut tags)? else {
        return Ok(Look { ip_at: None, tags, what: What::Other });
    };
    let wire_len = wire_len.max(bytes.len());
    let what = match bytes.get(ip_at).map(|first| first >> 4) {
        Some(4) => transport(bytes, &v4(bytes, ip_at, wire_len)?)?,
        Some(6) => transport(bytes, &v6(bytes, ip_at, wire_len)?)?,
        _ => return Err(Malformed::IpHeader),
    };
    Ok(Look { ip_at: Some(ip_at), tags, what })
}

/// Where IP begins; nothing if it is not IP.
fn network(link: LinkType, bytes: &[u8], tags: &mut u8) -> Result<Option<usize>, Malformed> {
    const TAGS_MAX: u8 = 8;
    /// A provider's tag before it had a number of its own.
    const OLD_PROVIDER_VLAN: u16 = 0x9100;
    let (mut kind, mut at) = match link.shape() {
        Some(Shape::Typed { type_at, len }) => (be16(bytes, type_at).ok_or(Malformed::Runt)?, len),
        Some(Shape::Untyped { len }) => {
            let version = bytes.get(len).ok_or(Malformed::Runt)? >> 4;
            return Ok(matches!(version, 4 | 6).then_some(len));
        }
        None => return Ok(None),
    };
    while matches!(kind, ethertype::VLAN | ethertype::PROVIDER_VLAN | OLD_PROVIDER_VLAN) {
        *tags += 1;
        if *tags > TAGS_MAX {
            return Err(Malformed::VlanDepth);
        }
        kind = be16(bytes, at + 2).ok_or(Malformed::Runt)?;
        at += 4;
    }
    Ok(matches!(kind, ethertype::IPV4 | ethertype::IPV6).then_some(at))
}

/// The IP part of a packet.
struct Network {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Where the transport begins, and where it ends on the wire.
    at: usize,
    end: usize,
    is_piece: bool,
    /// Only IPv4's header has a sum.
    is_sum_wrong: bool,
}

fn v4(bytes: &[u8], at: usize, wire_len: usize) -> Result<Network, Malformed> {
    let fixed = array::<20>(bytes, at).ok_or(Malformed::IpHeader)?;
    let header_len = ip::v4_header_len(fixed[0]).ok_or(Malformed::IpHeader)?;
    let end = match usize::from(u16::from_be_bytes([fixed[2], fixed[3]])) {
        // A super-frame whose length the network card was to fill in, or one beyond 64 KiB.
        0 => wire_len,
        total if total < header_len => return Err(Malformed::IpLength),
        total => at + total,
    };
    if end > wire_len || at + header_len > end {
        return Err(Malformed::IpLength);
    }
    let header = bytes.get(at..at + header_len).ok_or(Malformed::IpHeader)?;
    let is_unfinished = fixed[10..12] == [0, 0];
    let (offset, has_more) = ip::v4_piece(fixed[6], fixed[7]);
    Ok(Network {
        src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
        dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
        protocol: fixed[9],
        at: at + header_len,
        end,
        is_piece: offset != 0 || has_more,
        is_sum_wrong: !is_unfinished && Sum::new().bytes(header).fold() != 0xffff,
    })
}

fn v6(bytes: &[u8], at: usize, wire_len: usize) -> Result<Network, Malformed> {
    let fixed = array::<40>(bytes, at).ok_or(Malformed::IpHeader)?;
    let end = match usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) {
        0 => wire_len,
        len => at + 40 + len,
    };
    let chain = ip::follow(bytes, at + 40, fixed[6])?;
    if end > wire_len || chain.at > end {
        return Err(Malformed::IpLength);
    }
    Ok(Network {
        src: ip::address_v6(fixed, 8).into(),
        dst: ip::address_v6(fixed, 24).into(),
        protocol: chain.protocol,
        at: chain.at,
        end,
        is_piece: chain.piece.is_some(),
        is_sum_wrong: false,
    })
}

fn transport<'a>(bytes: &'a [u8], network: &Network) -> Result<What<'a>, Malformed> {
    if network.is_piece {
        return Ok(What::Piece { end: network.end.min(bytes.len()) });
    }
    let ends = |bytes: &[u8]| {
        let ports = be16(bytes, network.at).zip(be16(bytes, network.at + 2))?;
        Some((SocketAddr::new(network.src, ports.0), SocketAddr::new(network.dst, ports.1)))
    };
    match network.protocol {
        protocol::TCP => {
            let (src, dst) = ends(bytes).ok_or(Malformed::TcpHeader)?;
            tcp(bytes, network, src, dst).map(What::Tcp)
        }
        protocol::UDP => {
            let (src, dst) = ends(bytes).ok_or(Malformed::UdpHeader)?;
            Ok(What::Udp(src, dst))
        }
        other => Ok(What::Ip(network.src, network.dst, other)),
    }
}

fn tcp<'a>(
    bytes: &'a [u8],
    network: &Network,
    src: SocketAddr,
    dst: SocketAddr,
) -> Result<Spoken<'a>, Malformed> {
    let Network { at, end, .. } = *network;
    let fixed = array::<20>(bytes, at).ok_or(Malformed::TcpHeader)?;
    let payload_at = at + usize::from(fixed[12] >> 4) * 4;
    if payload_at < at + 20 || payload_at > end {
        return Err(Malformed::TcpHeader);
    }
    let flags = TcpFlags(fixed[13]);
    super::tcp::check_flags(flags)?;
    let there = end.min(bytes.len());
    let payload = bytes.get(payload_at..there).unwrap_or_default();
    Ok(Spoken {
        src,
        dst,
        seq: be32(fixed, 4).ok_or(Malformed::TcpHeader)?,
        ack: be32(fixed, 8).ok_or(Malformed::TcpHeader)?,
        flags,
        payload,
        cut: end - payload_at - payload.len(),
        checksum: checked(bytes, network),
        tcp_at: at,
    })
}

/// How the TCP checksum stands.
fn checked(bytes: &[u8], network: &Network) -> Checked {
    let Network { src, dst, at, end, .. } = *network;
    let Some(covered) = bytes.get(at..end) else { return Checked::Unknown };
    if network.is_sum_wrong {
        return Checked::Wrong;
    }
    let pseudo = pseudo_header(src, dst, protocol::TCP, covered.len());
    if pseudo.bytes(covered).fold() == 0xffff {
        return Checked::Right;
    }
    // Linux sums the length of a super-frame up, other systems leave it, or all, to the card.
    let held = be16(covered, 16);
    let unfinished = [pseudo.fold(), pseudo_header(src, dst, protocol::TCP, 0).fold(), 0];
    match unfinished.into_iter().any(|sum| held == Some(sum)) {
        true => Checked::Unfinished,
        false => Checked::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::*;
    use crate::wire::build::{TcpFields, tcp};
    use crate::wire::{L2, L3, Mac, TcpOptions, Vlans, checksum};

    fn frame(src: &str, dst: &str, vlans: Vlans, payload: &'static [u8]) -> Vec<u8> {
        let mut frame = unfinished(src, dst, vlans, payload);
        checksum::complete(&mut frame);
        frame.to_vec()
    }

    fn unfinished(
        src: &str,
        dst: &str,
        vlans: Vlans,
        payload: &'static [u8],
    ) -> crate::wire::Frame {
        let [src, dst] = [src, dst].map(|text| text.parse().expect("an address"));
        let l2 = L2 { dst: Mac([2; 6]), src: Mac([4; 6]), vlans };
        let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
        let fields = TcpFields {
            src_port: 1000,
            dst_port: 80,
            seq: 7,
            ack: 9,
            flags: TcpFlags::ACK,
            window: 1,
            urgent: 0,
            options: TcpOptions::default(),
        };
        tcp(&l2, &l3, &fields, Bytes::from_static(payload), 0)
    }

    fn spoken(link: LinkType, bytes: &[u8], wire_len: usize) -> Spoken<'_> {
        match look(link, bytes, wire_len).expect("it is read").what {
            What::Tcp(spoken) => spoken,
            other => panic!("{other:?}"),
        }
    }

    const PLAIN: Vlans = Vlans { outer: None, inner: None };

    #[test]
    fn every_link_layer_leads_to_the_same_segment() {
        for (src, dst, kind) in [("127.0.0.1", "127.0.0.1", 0x0800u16), ("::1", "::1", 0x86dd)] {
            let ethernet = frame(src, dst, PLAIN, b"hello");
            let packet = &ethernet[14..];
            let tagged = frame(
                src,
                dst,
                Vlans { outer: Some((0x88a8, 5)), inner: Some((0x8100, 6)) },
                b"hello",
            );
            let kind = kind.to_be_bytes();
            let cooked = [&[0u8; 14][..], &kind, packet].concat();
            let cooked_tagged = [&[0u8; 14][..], &[0x81, 0, 0, 9], &kind, packet].concat();
            let cooked2 = [&kind[..], &[0; 18], packet].concat();
            let null = [&[2, 0, 0, 0][..], packet].concat();
            for (link, bytes, tags) in [
                (LinkType::ETHERNET, &ethernet, 0),
                (LinkType::ETHERNET, &tagged, 2),
                (LinkType::COOKED, &cooked, 0),
                (LinkType::COOKED, &cooked_tagged, 1),
                (LinkType::COOKED2, &cooked2, 0),
                (LinkType::NULL, &null, 0),
                (LinkType::LOOP, &null, 0),
                (LinkType::RAW, &packet.to_vec(), 0),
                (LinkType(12), &packet.to_vec(), 0),
            ] {
                let found = spoken(link, bytes, bytes.len());
                assert_eq!(found.payload, b"hello", "{link}");
                assert_eq!((found.seq, found.ack, found.cut), (7, 9, 0));
                assert_eq!((found.src.port(), found.dst.port()), (1000, 80));
                assert_eq!(found.src.ip().to_string(), src);
                assert_eq!(found.checksum, Checked::Right, "{link}");
                assert_eq!(look(link, bytes, bytes.len()).expect("read").tags, tags);
            }
        }
    }

    #[test]
    fn a_checksum_is_told() {
        let mut bytes = frame("10.0.0.1", "10.0.0.2", PLAIN, b"hello");
        bytes[14 + 40] ^= 1;
        assert_eq!(spoken(LinkType::ETHERNET, &bytes, bytes.len()).checksum, Checked::Wrong);
        let bytes = unfinished("10.0.0.1", "10.0.0.2", PLAIN, b"hello").to_vec();
        let found = spoken(LinkType::ETHERNET, &bytes, bytes.len());
        assert_eq!(found.checksum, Checked::Unfinished);
    }

    #[test]
    fn what_was_cut_off_is_counted() {
        let whole = frame("10.0.0.1", "10.0.0.2", PLAIN, b"hello world");
        let len = whole.len();
        for kept in 14 + 40..len {
            let found = spoken(LinkType::ETHERNET, &whole[..kept], len);
            assert_eq!(found.payload, &b"hello world"[..kept - 54]);
            assert_eq!((found.cut, found.checksum), (len - kept, Checked::Unknown));
            assert_eq!(found.payload_len(), "hello world".len());
        }
        for kept in 0..14 + 40 {
            assert!(look(LinkType::ETHERNET, &whole[..kept], len).is_err(), "{kept}");
        }
        // Longer than what was on the wire.
        assert!(look(LinkType::ETHERNET, &whole[..len - 1], len - 1).is_err());
    }

    #[test]
    fn a_super_frame_without_a_length_ends_with_its_frame() {
        let mut bytes = frame("10.0.0.1", "10.0.0.2", PLAIN, b"hello");
        bytes[16..18].copy_from_slice(&[0, 0]);
        assert_eq!(spoken(LinkType::ETHERNET, &bytes, bytes.len()).payload, b"hello");
        let mut padded = frame("10.0.0.1", "10.0.0.2", PLAIN, b"");
        padded.resize(60, 0);
        assert_eq!(spoken(LinkType::ETHERNET, &padded, 60).payload, b"");
    }

    #[test]
    fn pieces_and_other_protocols_are_named() {
        let mut piece = BytesMut::from(&frame("10.0.0.1", "10.0.0.2", PLAIN, b"hello")[..]);
        piece[20] = 0x20;
        let what = look(LinkType::ETHERNET, &piece, piece.len()).expect("read").what;
        assert!(matches!(what, What::Piece { end } if end == piece.len()));
        piece[20] = 0;
        piece[23] = 132;
        let what = look(LinkType::ETHERNET, &piece, piece.len()).expect("read").what;
        assert!(matches!(what, What::Ip(_, _, 132)));
        // A header with nothing behind it says as much.
        let mut empty = piece[..34].to_vec();
        empty[16..18].copy_from_slice(&[0, 20]);
        let what = look(LinkType::ETHERNET, &empty, empty.len()).expect("read").what;
        assert!(matches!(what, What::Ip(_, _, 132)));
        piece[12..14].copy_from_slice(&[0x08, 0x06]);
        let what = look(LinkType::ETHERNET, &piece, piece.len()).expect("read").what;
        assert!(matches!(what, What::Other));
        let what = look(LinkType(189), &piece, piece.len()).expect("read").what;
        assert!(matches!(what, What::Other));
    }

    proptest::proptest! {
        /// Any bytes at all: never a panic, and nothing beyond what there is.
        #[test]
        fn any_bytes_are_read(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            link in 0u16..300, more in 0usize..4, kind in 0usize..3,
        ) {
            let kinds = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00]];
            if let Some(place) = bytes.get_mut(12..14) {
                place.copy_from_slice(&kinds[kind]);
            }
            let wire_len = bytes.len() + more * 700;
            for link in [LinkType(link), LinkType::ETHERNET, LinkType::RAW] {
                if let Ok(Look { what: What::Tcp(found), .. }) = look(link, &bytes, wire_len) {
                    proptest::prop_assert!(found.payload_len() <= wire_len);
                }
            }
        }
    }
}
