//! Who speaks to whom: the addresses and ports of a packet, and of the packet that an ICMP error
//! quotes, read from its bytes and changed in place.
//!
//! Every edit leaves each checksum as right, or as wrong, as it was (RFC 1624): none is made over
//! bytes that nobody has verified (I13). A partial checksum holds the sum of the pseudo header:
//! addresses change it, ports do not. Read first: RFC 3022 4, RFC 5508 (ICMP), RFC 1624.

use std::net::{IpAddr, SocketAddr};

use super::checksum::update_bytes;
use super::frame::{CsumSpot, Frame};
use super::packet::{IcmpKind, L2, L3, Packet, Quote};
use super::parse::{self, Layout, protocol};

/// The two ends of a packet. A port is 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sender.
    pub src: SocketAddr,
    /// The receiver.
    pub dst: SocketAddr,
}

impl Ends {
    /// The way back.
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }
}

/// What two ends speak, as far as more than their addresses tells one conversation from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Talk {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo: the identifier stands for the port of the end that asks.
    Echo,
}

/// The ends of a packet, and where they stand in its frame.
#[derive(Clone, Copy, Debug)]
pub struct Addressed {
    /// Who speaks to whom.
    pub ends: Ends,
    /// What they speak; none if it has no ports (ICMP errors, protocols that are not known).
    pub talk: Option<Talk>,
    /// The packet that an ICMP error quotes, if enough of it is there.
    pub quoted: Option<(Talk, Ends)>,
    at: Place,
    quote_at: Option<Place>,
}

impl Addressed {
    /// Reads the ends of `frame`. None if it is no whole IP packet.
    pub fn of(frame: &Frame) -> Option<Self> {
        let head = frame.head();
        let at = Place::of(head, parse::layout(head)?)?;
        let ends = at.ends(head)?;
        let quote_at = at.quote(head);
        let quoted = quote_at.and_then(|quote| quote.talk.zip(quote.ends(head)));
        Some(Self { ends, talk: at.talk, quoted, at, quote_at })
    }

    /// Changes the ends of `frame`, which this was read from, and of what it quotes. All addresses
    /// stay of their family.
    pub fn readdress(&self, frame: &mut Frame, to: Ends, quoted: Option<Ends>) {
        let spot = frame.offload().needs_csum;
        let head = frame.head_mut();
        if let Some((quote, quoted)) = self.quote_at.zip(quoted) {
            self.readdress_quote(head, &quote, quoted, spot);
        }
        self.at.write(head, to, spot);
    }

    /// The message counts what it quotes.
    fn readdress_quote(&self, head: &mut [u8], quote: &Place, to: Ends, spot: Option<CsumSpot>) {
        let from = quote.layout.l3_at;
        let before = head[from..].to_vec();
        quote.write(head, to, None);
        if let Some(field) = self.at.checksum(spot).filter(|field| field.kind != Kind::Partial) {
            let after = head[from..].to_vec();
            field.update(head, &before, &after);
        }
    }

    /// Hops left to `frame`.
    pub fn hops(&self, frame: &Frame) -> u8 {
        let at = self.at.layout.l3_at + if self.at.is_v4 { 8 } else { 7 };
        frame.head().get(at).copied().unwrap_or(0)
    }

    /// Sets the hops left to `frame`.
    pub fn set_hops(&self, frame: &mut Frame, hops: u8) {
        let l3_at = self.at.layout.l3_at;
        let head = frame.head_mut();
        match (self.at.is_v4, head.get(l3_at + 9).copied()) {
            (true, Some(protocol)) => {
                change(head, l3_at + 8, &[hops, protocol], [Field::whole(l3_at + 10)]);
            }
            _ => change(head, l3_at + 7, &[hops], None),
        }
    }

    /// Makes of an echo request its answer. False, with nothing done, if it is none.
    pub fn answer_echo(&self, frame: &mut Frame) -> bool {
        let l4_at = self.at.layout.l4_at;
        let answer = match (self.at.is_v4, frame.head().get(l4_at)) {
            (true, Some(8)) => 0,
            (false, Some(128)) => 129,
            _ => return false,
        };
        let spot = frame.offload().needs_csum;
        let head = frame.head_mut();
        change(head, l4_at, &[answer, 0], self.at.beyond_pseudo_header(spot));
        let to = Ends {
            src: SocketAddr::new(self.ends.dst.ip(), self.ends.src.port()),
            dst: SocketAddr::new(self.ends.src.ip(), 0),
        };
        self.at.write(head, to, spot);
        self.set_hops(frame, L3::TTL);
        true
    }
}

impl Packet {
    /// Says of itself what [`Addressed::readdress`] and [`Addressed::set_hops`] have made of its
    /// frame, and `new_l2`.
    pub fn readdress(&mut self, new_l2: L2, to: Ends, quoted: Option<Ends>, hops: u8) {
        let turn = |l2: &mut L2, l3: &mut L3| {
            *l2 = new_l2;
            (l3.src, l3.dst, l3.ttl) = (to.src.ip(), to.dst.ip(), hops);
        };
        match self {
            Self::Tcp(p) => {
                turn(&mut p.l2, &mut p.l3);
                (p.src_port, p.dst_port) = (to.src.port(), to.dst.port());
            }
            Self::Udp(p) => {
                turn(&mut p.l2, &mut p.l3);
                (p.src_port, p.dst_port) = (to.src.port(), to.dst.port());
            }
            Self::Icmp(p) => {
                turn(&mut p.l2, &mut p.l3);
                match &mut p.kind {
                    IcmpKind::EchoRequest { id, .. } => *id = to.src.port(),
                    IcmpKind::EchoReply { id, .. } => *id = to.dst.port(),
                    IcmpKind::TooBig { quote, .. } | IcmpKind::Error { quote, .. } => {
                        if let Some((quote, to)) = quote.as_mut().zip(quoted) {
                            *quote = Quote { src: to.src, dst: to.dst, ..*quote };
                        }
                    }
                    IcmpKind::Other => {}
                }
            }
            Self::Fragment(_) | Self::Arp(_) | Self::Nd(_) | Self::Other(_) => {}
        }
    }
}

/// Where one packet's ends stand.
#[derive(Clone, Copy, Debug)]
struct Place {
    layout: Layout,
    is_v4: bool,
    talk: Option<Talk>,
    /// Of an echo: the identifier is the receiver's.
    is_reply: bool,
    is_error: bool,
}

impl Place {
    fn of(head: &[u8], layout: Layout) -> Option<Self> {
        let is_v4 = head.get(layout.l3_at)? >> 4 == 4;
        let mut place = Self { layout, is_v4, talk: None, is_reply: false, is_error: false };
        let kind = head.get(layout.l4_at).copied();
        match (layout.protocol, is_v4, kind) {
            (protocol::TCP, ..) => place.talk = Some(Talk::Tcp),
            (protocol::UDP, ..) => place.talk = Some(Talk::Udp),
            (protocol::ICMP, true, Some(0 | 8)) | (protocol::ICMPV6, false, Some(128 | 129)) => {
                place.talk = Some(Talk::Echo);
                place.is_reply = matches!(kind, Some(0 | 129));
            }
            (protocol::ICMP, true, Some(3 | 11 | 12)) => place.is_error = true,
            (protocol::ICMPV6, false, Some(1..=4)) => place.is_error = true,
            _ => {}
        }
        Some(place)
    }

    /// Where the packet stands that this one quotes.
    fn quote(&self, head: &[u8]) -> Option<Self> {
        let at = self.layout.l4_at + 8;
        let layout = self.is_error.then(|| parse::layout_of_ip(head, at)).flatten()?;
        Self::of(head, layout).filter(|quote| quote.is_v4 == self.is_v4)
    }

    fn ends(&self, head: &[u8]) -> Option<Ends> {
        let (src, dst) = parse::addresses(head, self.layout.l3_at)?;
        let at = self.layout.l4_at;
        let (src_port, dst_port) = match self.talk {
            None => (0, 0),
            Some(Talk::Tcp | Talk::Udp) => (parse::be16(head, at)?, parse::be16(head, at + 2)?),
            Some(Talk::Echo) => match (self.is_reply, parse::be16(head, at + 4)?) {
                (true, id) => (0, id),
                (false, id) => (id, 0),
            },
        };
        Some(Ends { src: SocketAddr::new(src, src_port), dst: SocketAddr::new(dst, dst_port) })
    }

    /// The transport's checksum; `spot` is where the frame's is still to be completed.
    fn checksum(&self, spot: Option<CsumSpot>) -> Option<Field> {
        let (offset, kind) = match self.layout.protocol {
            protocol::TCP => (16, Kind::Whole),
            protocol::UDP => (6, Kind::Optional),
            protocol::ICMP | protocol::ICMPV6 => (2, Kind::Whole),
            _ => return None,
        };
        let start = u16::try_from(self.layout.l4_at).unwrap_or(u16::MAX);
        let is_partial = spot == Some(CsumSpot { start, offset });
        let kind = if is_partial { Kind::Partial } else { kind };
        Some(Field { at: self.layout.l4_at + usize::from(offset), kind })
    }

    /// The same for bytes that a partial checksum does not hold yet.
    fn beyond_pseudo_header(&self, spot: Option<CsumSpot>) -> Option<Field> {
        self.checksum(spot).filter(|field| field.kind != Kind::Partial)
    }

    fn write(&self, head: &mut [u8], to: Ends, spot: Option<CsumSpot>) {
        let Layout { l3_at, l4_at, protocol } = self.layout;
        match (to.src.ip(), to.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) if self.is_v4 => {
                let [a, b, c, d] = src.octets();
                let [e, f, g, h] = dst.octets();
                // ICMP has no pseudo header here.
                let field = self.checksum(spot).filter(|_| protocol != protocol::ICMP);
                let fields = [Some(Field::whole(l3_at + 10)), field].into_iter().flatten();
                change(head, l3_at + 12, &[a, b, c, d, e, f, g, h], fields);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) if !self.is_v4 => {
                let mut both = [0; 32];
                both[..16].copy_from_slice(&src.octets());
                both[16..].copy_from_slice(&dst.octets());
                change(head, l3_at + 8, &both, self.checksum(spot));
            }
            _ => return debug_assert!(false, "addresses stay of their family"),
        }
        let ports = [to.src.port(), to.dst.port()].map(u16::to_be_bytes);
        let field = self.beyond_pseudo_header(spot);
        match self.talk {
            None => {}
            Some(Talk::Tcp | Talk::Udp) => {
                change(head, l4_at, ports.as_flattened(), field);
            }
            Some(Talk::Echo) => {
                let id = ports[usize::from(self.is_reply)];
                change(head, l4_at + 4, &id, field);
            }
        }
    }
}

/// A checksum's field.
#[derive(Clone, Copy, Debug)]
struct Field {
    at: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    /// Of UDP: 0 is none.
    Optional,
    /// The sum of the pseudo header, not complemented.
    Partial,
}

impl Field {
    const fn whole(at: usize) -> Self {
        Self { at, kind: Kind::Whole }
    }

    /// Bytes that it counts, at an even distance, were `old` and are `new`. One that a quote has
    /// cut off is not there.
    fn update(self, head: &mut [u8], old: &[u8], new: &[u8]) {
        let Some(was) = parse::be16(head, self.at) else { return };
        let is = match (self.kind, was) {
            (Kind::Optional, 0) => return,
            (Kind::Partial, _) => !update_bytes(!was, old, new),
            (Kind::Whole, _) => update_bytes(was, old, new),
            (Kind::Optional, _) => match update_bytes(was, old, new) {
                0 => 0xffff,
                check => check,
            },
        };
        head[self.at..self.at + 2].copy_from_slice(&is.to_be_bytes());
    }
}

/// Replaces the bytes at `at`, at most 32, and tells `fields`. What is not there stays so.
fn change(head: &mut [u8], at: usize, new: &[u8], fields: impl IntoIterator<Item = Field>) {
    let mut old = [0; 32];
    let old = &mut old[..new.len()];
    let Some(place) = head.get_mut(at..at + new.len()) else { return };
    old.copy_from_slice(place);
    place.copy_from_slice(new);
    for field in fields {
        field.update(head, old, new);
    }
}
