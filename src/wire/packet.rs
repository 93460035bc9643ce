//! What a frame says: the parsed view of one packet, plain values without references.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::seq::Tsval;

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set (broadcast included).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Up to two VLAN tags, outer first, each as its whole 16-bit control field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlans {
    /// (ethertype of the tag 0x8100 or 0x88a8, priority and id) of the outer tag.
    pub outer: Option<(u16, u16)>,
    /// The inner tag of a QinQ frame.
    pub inner: Option<(u16, u16)>,
}

impl Vlans {
    /// The tags without their priority bits: what tells two networks apart.
    pub fn ids(self) -> (Option<u16>, Option<u16>) {
        (self.outer.map(|(_, tci)| tci & 0x0fff), self.inner.map(|(_, tci)| tci & 0x0fff))
    }
}

/// The Ethernet part of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2 {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// VLAN tags.
    pub vlans: Vlans,
}

impl L2 {
    /// The way back: addresses exchanged, tags kept.
    pub const fn reversed(self) -> Self {
        Self { dst: self.src, src: self.dst, vlans: self.vlans }
    }
}

/// The IP part of a packet: everything a frame built in its stead has to carry on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L3 {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class (DSCP and ECN).
    pub tos: u8,
    /// Don't-fragment; always true for IPv6.
    pub dont_fragment: bool,
    /// IPv4 identification; 0 for IPv6.
    pub id: u16,
    /// IPv6 flow label; 0 for IPv4.
    pub flow_label: u32,
}

impl L3 {
    /// Hops granted to what the gateway says on its own account.
    pub const TTL: u8 = 64;

    /// A template for the way back: addresses exchanged, DSCP kept. What belongs to the packet
    /// that came is not carried over: hops left, ECN mark, identification, flow label.
    pub const fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            ttl: Self::TTL,
            tos: self.tos & !0x03,
            dont_fragment: true,
            id: 0,
            flow_label: 0,
        }
    }
}

/// TCP's flags.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo.
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced.
    pub const CWR: Self = Self(0x80);

    /// The last segment of a side that has nothing more to say.
    pub const FIN_ACK: Self = Self(0x11);

    /// Whether all of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` without `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, name) in [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (16, 'A'), (32, 'U')] {
            if self.0 & bit != 0 {
                write!(f, "{name}")?;
            }
        }
        Ok(())
    }
}

/// Up to four SACK blocks (RFC 2018), raw edges as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlocks {
    blocks: [(u32, u32); 4],
    len: u8,
}

impl SackBlocks {
    /// Adds a block; false if there is no room for a fifth.
    pub fn push(&mut self, left: u32, right: u32) -> bool {
        if usize::from(self.len) == self.blocks.len() {
            return false;
        }
        self.blocks[usize::from(self.len)] = (left, right);
        self.len += 1;
        true
    }

    /// The blocks in the order in which they stand in the option.
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.blocks[..usize::from(self.len)]
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// TCP's options as far as the gateway understands them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Maximum segment size (SYN only).
    pub mss: Option<u16>,
    /// Window scale shift, at most 14 (RFC 7323 2.3) (SYN only).
    pub window_scale: Option<u8>,
    /// SACK permitted (SYN only).
    pub sack_permitted: bool,
    /// (TSval, TSecr) of RFC 7323.
    pub timestamps: Option<(Tsval, Tsval)>,
    /// SACK blocks.
    pub sack: SackBlocks,
    /// MD5 signature (19) or TCP-AO (29) is present, or the segment stands behind an IPsec
    /// authentication header: none of these can be stripped or translated.
    pub is_authenticated: bool,
    /// An option that the gateway does not know, or a known one of another length than its
    /// specification gives it, is present.
    pub has_unknown: bool,
}

/// One TCP segment. Its checksum was verified, or vouched for, before this value exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Ethernet.
    pub l2: L2,
    /// IP.
    pub l3: L3,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Window field, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options.
    pub options: TcpOptions,
    /// Bytes of payload: the first `payload_len` of the frame's body.
    pub payload_len: usize,
    /// Where the TCP header begins in the frame's head.
    pub l4_at: u16,
    /// The super-frame's piece size, if it is one.
    pub gso_size: Option<u16>,
}

impl Segment {
    /// Sender.
    pub fn src(&self) -> SocketAddr {
        SocketAddr::new(self.l3.src, self.src_port)
    }

    /// Receiver.
    pub fn dst(&self) -> SocketAddr {
        SocketAddr::new(self.l3.dst, self.dst_port)
    }
}

/// One UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Ethernet.
    pub l2: L2,
    /// IP.
    pub l3: L3,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes of payload: the first `payload_len` of the frame's body.
    pub payload_len: usize,
}

/// One ICMP or ICMPv6 message other than neighbour discovery and multicast listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Ethernet.
    pub l2: L2,
    /// IP.
    pub l3: L3,
    /// What it says.
    pub kind: IcmpKind,
    /// Where the ICMP header begins, from the start of the frame.
    pub l4_at: u16,
}

impl Icmp {
    /// Whether a router or a host says that a network or a host cannot be reached (RFC 792, codes
    /// 0 and 1; RFC 4443 3.1, codes 0 and 3). A port that nobody serves is another matter.
    pub fn is_unreachable(&self) -> bool {
        match (self.kind, self.l3.src) {
            (IcmpKind::Error { kind: 3, code, .. }, IpAddr::V4(_)) => matches!(code, 0 | 1),
            (IcmpKind::Error { kind: 1, code, .. }, IpAddr::V6(_)) => matches!(code, 0 | 3),
            _ => false,
        }
    }
}

/// What an ICMP message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// Echo request.
    EchoRequest {
        /// Identifier.
        id: u16,
        /// Sequence number.
        seq: u16,
    },
    /// Echo reply.
    EchoReply {
        /// Identifier.
        id: u16,
        /// Sequence number.
        seq: u16,
    },
    /// A packet was too big for the path ("frag needed", RFC 1191; "packet too big", RFC 8201).
    TooBig {
        /// The MTU that would fit; 0 from routers before RFC 1191.
        mtu: u32,
        /// The packet that was too big, if it was TCP and enough of it is quoted.
        quote: Option<Quote>,
    },
    /// Destination unreachable, time exceeded, parameter problem.
    Error {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// The packet it is about, if it was TCP and enough of it is quoted.
        quote: Option<Quote>,
    },
    /// Anything else.
    Other,
}

/// The TCP packet quoted in an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Its sender.
    pub src: SocketAddr,
    /// Its receiver.
    pub dst: SocketAddr,
    /// Its sequence number.
    pub seq: u32,
    /// Where the quoted sequence number stands, from the start of the frame.
    pub seq_at: u16,
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Ethernet.
    pub l2: L2,
    /// A request (1), otherwise a reply.
    pub is_request: bool,
    /// Sender's hardware address.
    pub sender_mac: Mac,
    /// Sender's protocol address; 0.0.0.0 in a duplicate-address probe (RFC 5227).
    pub sender: IpAddr,
    /// Target's hardware address.
    pub target_mac: Mac,
    /// Target's protocol address.
    pub target: IpAddr,
}

/// Neighbour discovery and multicast listening of IPv6 (RFC 4861, RFC 3810).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// Ethernet.
    pub l2: L2,
    /// IP.
    pub l3: L3,
    /// What it says.
    pub kind: NdKind,
}

/// What a neighbour-discovery message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdKind {
    /// Neighbour solicitation; from the unspecified address it is a duplicate-address probe.
    Solicit {
        /// The address looked for.
        target: IpAddr,
        /// Source link-layer option.
        mac: Option<Mac>,
    },
    /// Neighbour advertisement.
    Advertise {
        /// The address advertised.
        target: IpAddr,
        /// Target link-layer option.
        mac: Option<Mac>,
    },
    /// Router solicitation or advertisement, redirect.
    Router,
    /// MLD report, done or query.
    Listener,
}

/// A fragment of an IP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Ethernet.
    pub l2: L2,
    /// IP.
    pub l3: L3,
    /// Protocol of the whole datagram's payload.
    pub protocol: u8,
    /// Identification (32 bits for IPv6).
    pub id: u32,
    /// Where this piece belongs, in bytes.
    pub offset: u32,
    /// Whether more pieces follow.
    pub has_more: bool,
    /// Where the fragment's payload begins in the frame's head.
    pub payload_at: u16,
    /// Bytes of this piece: head from `payload_at` on, then body.
    pub payload_len: usize,
}

/// Anything else: other ethertypes and IP protocols, extension headers that cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// Ethernet.
    pub l2: L2,
    /// Ethertype behind the VLAN tags; below 0x600 an 802.3 length.
    pub ethertype: u16,
    /// IP source and destination, and protocol, if it is IP.
    pub ip: Option<(IpAddr, IpAddr, u8)>,
}

/// What one frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// TCP.
    Tcp(Segment),
    /// UDP.
    Udp(Datagram),
    /// ICMP, ICMPv6.
    Icmp(Icmp),
    /// ARP.
    Arp(Arp),
    /// Neighbour discovery, multicast listening.
    Nd(Nd),
    /// A fragment; to be reassembled before anything else is asked of it.
    Fragment(Fragment),
    /// Anything else.
    Other(Other),
}

impl Packet {
    /// Its Ethernet header.
    pub const fn l2(&self) -> L2 {
        match self {
            Self::Tcp(p) => p.l2,
            Self::Udp(p) => p.l2,
            Self::Icmp(p) => p.l2,
            Self::Arp(p) => p.l2,
            Self::Nd(p) => p.l2,
            Self::Fragment(p) => p.l2,
            Self::Other(p) => p.l2,
        }
    }

    /// Its IP header, where the gateway looks behind it.
    pub const fn l3(&self) -> Option<L3> {
        match self {
            Self::Tcp(p) => Some(p.l3),
            Self::Udp(p) => Some(p.l3),
            Self::Icmp(p) => Some(p.l3),
            Self::Fragment(p) => Some(p.l3),
            Self::Arp(_) | Self::Nd(_) | Self::Other(_) => None,
        }
    }
}

/// Why bytes are not a packet that the gateway can stand behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// Shorter than an Ethernet header.
    Runt,
    /// More than two VLAN tags.
    VlanDepth,
    /// Multicast source address.
    MulticastSource,
    /// IP header shorter than its minimum, or cut off.
    IpHeader,
    /// Total length below the header's, or beyond the frame.
    IpLength,
    /// IPv4 header checksum.
    IpChecksum,
    /// Source address that cannot be one: multicast, broadcast, loopback, equal to the
    /// destination, or unspecified where neither DHCP nor neighbour discovery allows it.
    IpSource,
    /// IPv4 source routing, IPv6 routing header type 0 (RFC 5095).
    SourceRoute,
    /// More than 8 extension headers or 512 bytes of them.
    ExtensionHeaders,
    /// A fragment that cannot be one, or must not (RFC 1858): empty, misaligned, beyond 65,535
    /// bytes, or cutting a TCP header in two.
    Fragment,
    /// TCP header cut off, or data offset below 5 or beyond the segment.
    TcpHeader,
    /// TCP option with a length that cannot be.
    TcpOption,
    /// TCP checksum.
    TcpChecksum,
    /// Flags that no TCP sends: none, SYN with FIN, SYN with RST.
    TcpFlags,
    /// UDP header or length.
    UdpHeader,
    /// UDP checksum, or none over IPv6.
    UdpChecksum,
    /// ICMP header or checksum.
    Icmp,
    /// ARP of another shape than IPv4 over Ethernet.
    Arp,
    /// Neighbour discovery cut off, with a hop limit below 255, or with an option of length 0.
    Nd,
}
