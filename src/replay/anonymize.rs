//! A capture without what it tells about people: other addresses, and no payload.
//!
//! Addresses are replaced under a key: the same one becomes the same, and addresses of one network
//! stay in one network (each bit depends on the ones before it). Whatever may hold an address and
//! is not understood is left out: nothing of the original comes through unseen. Ports, flags,
//! numbers, lengths and times stay. Read first: RFC 6235.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use siphasher::sip::SipHasher13;

use super::capture::Capture;
use super::split::SplitError;
use super::walk::Facts;
use crate::io::pcap::{Record, Writer};
use crate::wire::Mac;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::parse::captured::{LinkType, look};

/// What becomes of payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Payload {
    /// Zeros of the same length.
    #[default]
    Zero,
    /// It is cut off, as by a snap length.
    Cut,
    /// It stays: only addresses are replaced.
    Keep,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Packets written.
    pub packets: u64,
    /// Packets left out, because they may hold addresses that are not understood.
    pub left_out: u64,
    /// Different addresses replaced.
    pub addresses: usize,
    /// What could not be read.
    pub facts: Facts,
}

/// Writes `capture` without what it tells to `out`, as a pcapng; comments and names of interfaces
/// are left out.
pub fn anonymize(
    capture: &Capture,
    key: [u8; 16],
    payload: Payload,
    out: impl Write,
) -> Result<Done, SplitError> {
    let wrong = |why| SplitError::Write { path: "the new capture".into(), why };
    let mut reader = capture.reader()?;
    let mut writer = Writer::ng(out).map_err(wrong)?;
    let mut mask = Mask { key, v4: BTreeMap::new(), v6: BTreeMap::new() };
    let mut interfaces: BTreeMap<usize, u32> = BTreeMap::new();
    let mut done = Done::default();
    loop {
        let record = match reader.next() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(trouble) => {
                done.facts.trouble(trouble);
                continue;
            }
        };
        let Some(bytes) = mask.packet(&record, payload) else {
            done.left_out += 1;
            continue;
        };
        let index = match interfaces.get(&record.interface) {
            Some(index) => *index,
            None => {
                let index = writer.interface(record.link, None).map_err(wrong)?;
                interfaces.insert(record.interface, index);
                index
            }
        };
        writer.packet(index, record.unix_ns, &bytes, record.wire_len, None).map_err(wrong)?;
        done.packets += 1;
    }
    writer.flush().map_err(wrong)?;
    done.addresses = mask.v4.len() + mask.v6.len();
    Ok(done)
}

/// Replaces addresses.
struct Mask {
    key: [u8; 16],
    v4: BTreeMap<u128, u128>,
    v6: BTreeMap<u128, u128>,
}

impl Mask {
    /// The packet as it may be shown; none if it may not.
    fn packet(&mut self, record: &Record<'_>, payload: Payload) -> Option<Vec<u8>> {
        let mut bytes = record.data.to_vec();
        let ip_at = look(record.link, &bytes, record.wire_len).ok()?.ip_at;
        self.link(record.link, &mut bytes)?;
        let Some(ip_at) = ip_at else {
            self.arp(record.link, &mut bytes)?;
            return Some(bytes);
        };
        let parts = Parts::of(&bytes, ip_at, record.wire_len)?;
        let sums = parts.sums(&bytes);
        let from = self.hide(&mut bytes, &parts)?;
        self.addresses(&mut bytes, ip_at)?;
        let end = parts.end.min(bytes.len());
        match payload {
            Payload::Keep if !parts.is_error => bytes[end..].fill(0),
            _ => bytes[from.min(end)..].fill(0),
        }
        parts.mend(&mut bytes, sums);
        if payload == Payload::Cut {
            bytes.truncate(from);
        }
        Some(bytes)
    }

    /// Replaces the link layer's addresses.
    fn link(&self, link: LinkType, bytes: &mut [u8]) -> Option<()> {
        let places: &[usize] = match link {
            LinkType::ETHERNET => &[0, 6],
            LinkType::COOKED => &[6],
            LinkType::COOKED2 => &[12],
            _ => &[],
        };
        places.iter().try_for_each(|&at| self.mac(bytes, at))
    }

    /// ARP for IPv4 over Ethernet; nothing else that is not IP is understood.
    fn arp(&mut self, link: LinkType, bytes: &mut [u8]) -> Option<()> {
        const HEAD: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4];
        let at = match link {
            LinkType::ETHERNET => 14,
            LinkType::COOKED => 16,
            _ => return None,
        };
        if bytes.get(at - 2..at + 6)? != HEAD {
            return None;
        }
        for end in [at + 8, at + 18] {
            self.mac(bytes, end)?;
            self.ip::<4>(bytes, end + 6)?;
        }
        // Padding may be anything that lay in somebody's memory.
        bytes[at + 28..].fill(0);
        Some(())
    }

    /// Groups and nobody stay, and so do the bits that say what an address is.
    fn mac(&self, bytes: &mut [u8], at: usize) -> Option<()> {
        let place = bytes.get_mut(at..at + 6)?;
        let old = Mac(*place.first_chunk()?);
        if !old.is_multicast() && old.0 != [0; 6] {
            let mut hasher = SipHasher13::new_with_key(&self.key);
            hasher.write(&old.0);
            place.copy_from_slice(&hasher.finish().to_be_bytes()[..6]);
            place[0] = place[0] & !0x03 | old.0[0] & 0x03;
        }
        Some(())
    }

    /// The addresses of the IP header at `at`.
    fn addresses(&mut self, bytes: &mut [u8], at: usize) -> Option<()> {
        match bytes.get(at)? >> 4 {
            4 => [12, 16].into_iter().try_for_each(|place| self.ip::<4>(bytes, at + place)),
            _ => [8, 24].into_iter().try_for_each(|place| self.ip::<16>(bytes, at + place)),
        }
    }

    /// One address of 4 or 16 bytes. What its first bits say it is, it stays: a group, link-local,
    /// unique local, global.
    fn ip<const N: usize>(&mut self, bytes: &mut [u8], at: usize) -> Option<()> {
        let place = bytes.get_mut(at..at + N)?;
        let mut wide = [0; 16];
        wide[16 - N..].copy_from_slice(place);
        let is_special = match N {
            4 => {
                let address = Ipv4Addr::from(*place.first_chunk::<4>()?);
                address.is_unspecified() || address.is_loopback() || address.octets()[0] >= 224
            }
            _ => {
                let address = Ipv6Addr::from(wide);
                address.is_unspecified() || address.is_loopback() || address.is_multicast()
            }
        };
        if !is_special {
            let old = u128::from_be_bytes(wide);
            let (known, kept) = match N {
                4 => (&mut self.v4, 4),
                _ => (&mut self.v6, 10),
            };
            let key = &self.key;
            let new = *known.entry(old).or_insert_with(|| shuffled(key, old, 8 * N as u32, kept));
            place.copy_from_slice(&new.to_be_bytes()[16 - N..]);
        }
        Some(())
    }

    /// Hides what may hold addresses in the headers; returns where the payload begins that is to be
    /// hidden.
    fn hide(&mut self, bytes: &mut [u8], parts: &Parts) -> Option<usize> {
        bytes.get_mut(parts.options.clone())?.fill(NO_OPERATION);
        let header = parts.l4_at..parts.payload_at.min(bytes.len());
        if parts.protocol == TCP
            && let Some(options) = bytes.get_mut(header.start + 20..header.end)
        {
            hide_tcp_options(options);
        }
        if !parts.is_error {
            return Some(parts.payload_at);
        }
        // The packet that an error is about: its addresses, its ports, and no more.
        let Some(quoted) = Parts::of(bytes, parts.payload_at, bytes.len().max(parts.end)) else {
            return Some(parts.payload_at);
        };
        bytes.get_mut(quoted.options.clone())?.fill(NO_OPERATION);
        self.addresses(bytes, quoted.ip_at)?;
        Some(quoted.l4_at + 8)
    }
}

/// Each bit from the first `kept` on is flipped or not, as the bits before it and the key say
/// (Xu, Fan, Ammar, Moon: Prefix-preserving IP address anonymization, 2002).
fn shuffled(key: &[u8; 16], old: u128, bits: u32, kept: u32) -> u128 {
    let mut new = old;
    for bit in kept..bits {
        let below = bits - bit;
        let prefix = if below == 128 { 0 } else { old >> below };
        let mut hasher = SipHasher13::new_with_key(key);
        hasher.write(&[bits as u8, bit as u8]);
        hasher.write(&prefix.to_be_bytes());
        new ^= u128::from(hasher.finish() & 1) << (below - 1);
    }
    new
}

/// Options of IP and TCP alike.
const NO_OPERATION: u8 = 1;
const END_OF_OPTIONS: u8 = 0;
/// Multipath TCP tells other addresses (RFC 8684).
const MULTIPATH: u8 = 30;
/// Options that hold numbers only: segment size, scale, SACK, timestamps.
const HARMLESS: std::ops::RangeInclusive<u8> = 2..=8;

fn hide_tcp_options(mut rest: &mut [u8]) {
    loop {
        match *rest {
            [] => return,
            [END_OF_OPTIONS, ..] => return rest.fill(END_OF_OPTIONS),
            [NO_OPERATION, ref mut behind @ ..] => rest = behind,
            [kind, len, ..] if len >= 2 && usize::from(len) <= rest.len() => {
                let (option, behind) = rest.split_at_mut(usize::from(len));
                if kind == MULTIPATH || !HARMLESS.contains(&kind) {
                    option.fill(NO_OPERATION);
                }
                rest = behind;
            }
            _ => return rest.fill(END_OF_OPTIONS),
        }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// Where the parts of an IP packet stand that is understood.
struct Parts {
    ip_at: usize,
    /// IP's options.
    options: std::ops::Range<usize>,
    l4_at: usize,
    payload_at: usize,
    /// End on the wire.
    end: usize,
    protocol: u8,
    is_piece: bool,
    /// It is about another packet, which it quotes.
    is_error: bool,
}

/// What a checksum was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    Right,
    Unfinished,
    Wrong,
    /// There is none, or it cannot be known.
    Unknown,
}

impl Parts {
    fn of(bytes: &[u8], ip_at: usize, wire_len: usize) -> Option<Self> {
        let header = bytes.get(ip_at..)?;
        let number = |at: usize| Some(u16::from_be_bytes(*header.get(at..)?.first_chunk()?));
        let mut options = ip_at..ip_at;
        let (l4_at, end, protocol, piece) = if header.first()? >> 4 == 4 {
            let len = usize::from(header[0] & 0x0f) * 4;
            options = ip_at + 20..ip_at + len.max(20);
            let end = match usize::from(number(2)?) {
                0 => wire_len,
                total => ip_at + total,
            };
            let field = number(6)?;
            let piece = (field & 0x3fff != 0).then_some(field & 0x1fff != 0);
            (ip_at + len.max(20), end, *header.get(9)?, piece)
        } else {
            let end = match usize::from(number(4)?) {
                0 => wire_len,
                len => ip_at + 40 + len,
            };
            let (mut next, mut at, mut piece) = (*header.get(6)?, 40, None);
            while matches!(next, HOP_BY_HOP | FRAGMENT) {
                let len = match next {
                    FRAGMENT => 8,
                    _ => usize::from(*header.get(at + 1)?) * 8 + 8,
                };
                if next == FRAGMENT {
                    let field = number(at + 2)?;
                    piece = (field & 0xfff9 != 0).then_some(field & 0xfff8 != 0);
                }
                next = *header.get(at)?;
                at += len;
            }
            (ip_at + at, end, next, piece)
        };
        let kind = bytes.get(l4_at).copied();
        let (len, is_error) = match (protocol, kind) {
            // A later piece has no header of its own.
            (TCP | UDP | ICMP, _) if piece == Some(true) => (0, false),
            (TCP, _) => (usize::from(bytes.get(l4_at + 12)? >> 4) * 4, false),
            (UDP, _) => (8, false),
            (ICMP, Some(0 | 8)) | (ICMPV6, Some(128 | 129)) => (8, false),
            (ICMP, Some(3 | 11 | 12)) | (ICMPV6, Some(1..=4)) => (8, true),
            _ => return None,
        };
        let payload_at = l4_at + len;
        let is_piece = piece.is_some();
        Some(Self { ip_at, options, l4_at, payload_at, end, protocol, is_piece, is_error })
    }

    /// Where the transport's checksum stands.
    const fn sum_at(&self) -> usize {
        self.l4_at
            + match self.protocol {
                TCP => 16,
                UDP => 6,
                _ => 2,
            }
    }

    fn held(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    fn pseudo(&self, bytes: &[u8]) -> Option<Sum> {
        let address = |v4: usize, v6: usize| -> Option<IpAddr> {
            let header = bytes.get(self.ip_at..)?;
            Some(match header.first()? >> 4 {
                4 => Ipv4Addr::from(*header.get(v4..)?.first_chunk::<4>()?).into(),
                _ => Ipv6Addr::from(*header.get(v6..)?.first_chunk::<16>()?).into(),
            })
        };
        let len = self.end.checked_sub(self.l4_at)?;
        match self.protocol {
            ICMP => Some(Sum::new()),
            _ => Some(pseudo_header(address(12, 8)?, address(16, 24)?, self.protocol, len)),
        }
    }

    /// What IP's checksum was, and the transport's.
    fn sums(&self, bytes: &[u8]) -> [Was; 2] {
        let header = &bytes[self.ip_at..self.options.end.max(self.ip_at)];
        let ip = match (header.first().map(|first| first >> 4), Self::held(header, 10)) {
            (Some(4), Some(0)) => Was::Unknown,
            (Some(4), _) if Sum::new().bytes(header).fold() == 0xffff => Was::Right,
            (Some(4), _) => Was::Wrong,
            _ => Was::Unknown,
        };
        [ip, self.transport_sum(bytes).unwrap_or(Was::Unknown)]
    }

    fn transport_sum(&self, bytes: &[u8]) -> Option<Was> {
        let held = Self::held(bytes, self.sum_at())?;
        let covered = bytes.get(self.l4_at..self.end)?;
        let pseudo = self.pseudo(bytes)?;
        Some(match () {
            () if self.is_piece || self.protocol == UDP && held == 0 => Was::Unknown,
            () if pseudo.bytes(covered).fold() == 0xffff => Was::Right,
            () if pseudo.fold() == held => Was::Unfinished,
            () => Was::Wrong,
        })
    }

    /// Makes right what was right, and leaves wrong what was wrong. What was cut off counts as
    /// zeros, which is what it would have become.
    fn mend(&self, bytes: &mut [u8], [ip, transport]: [Was; 2]) {
        if ip == Was::Right {
            bytes[self.ip_at + 10..self.ip_at + 12].fill(0);
            let check = Sum::new().bytes(&bytes[self.ip_at..self.options.end]).check();
            bytes[self.ip_at + 10..self.ip_at + 12].copy_from_slice(&check.to_be_bytes());
        }
        let at = self.sum_at();
        if transport == Was::Unknown || bytes.len() < at + 2 {
            return;
        }
        let Some(pseudo) = self.pseudo(bytes) else { return };
        bytes[at..at + 2].fill(0);
        let end = self.end.min(bytes.len());
        let check = match pseudo.bytes(&bytes[self.l4_at..end]).check() {
            _ if transport == Was::Unfinished => pseudo.fold(),
            // No checksum, for UDP.
            0 if self.protocol == UDP => 0xffff,
            check if transport == Was::Wrong => check.wrapping_add(1),
            check => check,
        };
        bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }
}
