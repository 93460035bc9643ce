//! TCP: header, checksum, flags, options. Read first: RFC 9293 3.1, 3.2; RFC 7323; RFC 2018.

use super::ethernet::Ethernet;
use super::ip::Ip;
use super::{array, be16, be32, is_vouched, offset16, protocol, verifies};
use crate::wire::frame::{Frame, GsoKind};
use crate::wire::packet::{Malformed, SackBlocks, Segment, TcpFlags, TcpOptions};
use crate::wire::seq::Tsval;

/// Where the checksum stands in the header.
const CHECKSUM_FIELD: u16 = 16;
/// The largest shift that a window may have (RFC 7323 2.3).
const WINDOW_SCALE_MAX: u8 = 14;
/// All flags but those of ECN.
const FLAGS_OF_A_SEGMENT: u8 = 0x3f;

/// Option kinds.
pub(in crate::wire) mod kind {
    pub(in crate::wire) const END: u8 = 0;
    pub(in crate::wire) const NOP: u8 = 1;
    pub(in crate::wire) const MSS: u8 = 2;
    pub(in crate::wire) const WINDOW_SCALE: u8 = 3;
    pub(in crate::wire) const SACK_PERMITTED: u8 = 4;
    pub(in crate::wire) const SACK: u8 = 5;
    pub(in crate::wire) const TIMESTAMPS: u8 = 8;
    pub(in crate::wire) const MD5: u8 = 19;
    pub(in crate::wire) const AUTHENTICATION: u8 = 29;
}

pub(super) fn parse(frame: &Frame, link: &Ethernet, ip: &Ip) -> Result<Segment, Malformed> {
    let head = frame.head();
    let fixed = array::<20>(head, ip.at).ok_or(Malformed::TcpHeader)?;
    let header_len = usize::from(fixed[12] >> 4) * 4;
    if header_len < 20 || header_len > ip.len || ip.at + header_len != head.len() {
        return Err(Malformed::TcpHeader);
    }
    if !is_vouched(frame, ip.at, CHECKSUM_FIELD) && !verifies(frame, ip, protocol::TCP, ip.len) {
        return Err(Malformed::TcpChecksum);
    }
    let flags = TcpFlags(fixed[13]);
    check_flags(flags)?;
    let mut options = parse_options(&head[ip.at + 20..], flags.has(TcpFlags::SYN))?;
    options.is_authenticated |= ip.is_authenticated;
    let gso = frame.offload().gso.filter(|gso| gso.kind != GsoKind::UdpL4);
    Ok(Segment {
        l2: link.l2,
        l3: ip.l3,
        src_port: u16::from_be_bytes([fixed[0], fixed[1]]),
        dst_port: u16::from_be_bytes([fixed[2], fixed[3]]),
        seq: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        ack: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
        flags,
        window: u16::from_be_bytes([fixed[14], fixed[15]]),
        urgent: u16::from_be_bytes([fixed[18], fixed[19]]),
        options,
        payload_len: ip.len - header_len,
        l4_at: offset16(ip.at),
        gso_size: gso.map(|gso| gso.size),
    })
}

pub(super) fn check_flags(flags: TcpFlags) -> Result<(), Malformed> {
    let is_null = flags.0 & FLAGS_OF_A_SEGMENT == 0;
    let is_contradiction =
        flags.has(TcpFlags::SYN) && (flags.has(TcpFlags::FIN) || flags.has(TcpFlags::RST));
    if is_null || is_contradiction { Err(Malformed::TcpFlags) } else { Ok(()) }
}

/// Each option counts where it stands first; those of a handshake count on a SYN only.
pub(super) fn parse_options(mut rest: &[u8], is_syn: bool) -> Result<TcpOptions, Malformed> {
    let mut options = TcpOptions::default();
    loop {
        match *rest {
            [] | [kind::END, ..] => return Ok(options),
            [kind::NOP, ref behind @ ..] => rest = behind,
            [kind, len, ..] if len >= 2 && usize::from(len) <= rest.len() => {
                let (option, behind) = rest.split_at(usize::from(len));
                take_option(&mut options, kind, &option[2..], is_syn);
                rest = behind;
            }
            _ => return Err(Malformed::TcpOption),
        }
    }
}

fn take_option(options: &mut TcpOptions, kind: u8, value: &[u8], is_syn: bool) {
    match (kind, value) {
        (kind::MSS, &[high, low]) => {
            let mss = is_syn.then_some(u16::from_be_bytes([high, low]));
            options.mss = options.mss.or(mss);
        }
        (kind::WINDOW_SCALE, &[shift]) => {
            let shift = is_syn.then_some(shift.min(WINDOW_SCALE_MAX));
            options.window_scale = options.window_scale.or(shift);
        }
        (kind::SACK_PERMITTED, []) => options.sack_permitted |= is_syn,
        (kind::TIMESTAMPS, value) if value.len() == 8 => {
            let pair = be32(value, 0).zip(be32(value, 4));
            let pair = pair.map(|(value, echo)| (Tsval(value), Tsval(echo)));
            options.timestamps = options.timestamps.or(pair);
        }
        (kind::SACK, value) if !value.is_empty() && value.len().is_multiple_of(8) => {
            if options.sack.is_empty() {
                options.sack = sack_blocks(value);
            }
        }
        (kind::MD5 | kind::AUTHENTICATION, _) => options.is_authenticated = true,
        _ => options.has_unknown = true,
    }
}

fn sack_blocks(value: &[u8]) -> SackBlocks {
    let mut blocks = SackBlocks::default();
    let (edges, _) = value.as_chunks::<8>();
    for &[a, b, c, d, e, f, g, h] in edges {
        // Four blocks fill the 40 bytes that options have: a fifth cannot stand there.
        blocks.push(u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    }
    blocks
}

/// Ports and sequence number of a TCP header of which only the beginning may be there.
pub(super) fn beginning(bytes: &[u8], at: usize) -> Option<(u16, u16, u32)> {
    Some((be16(bytes, at)?, be16(bytes, at + 2)?, be32(bytes, at + 4)?))
}
