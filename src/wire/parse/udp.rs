//! UDP: header, length, checksum. Read first: RFC 768, RFC 8200 8.1.

use std::net::IpAddr;

use super::ethernet::Ethernet;
use super::ip::Ip;
use super::{array, is_partial, is_vouched, protocol, verifies};
use crate::wire::frame::Frame;
use crate::wire::packet::{Datagram, Malformed};

/// Where the checksum stands in the header.
const CHECKSUM_FIELD: u16 = 6;
/// Port of DHCP and BOOTP servers, to whom a client without an address may speak.
const DHCP_SERVER: u16 = 67;

pub(super) fn parse(frame: &Frame, link: &Ethernet, ip: &Ip) -> Result<Datagram, Malformed> {
    let fixed = array::<8>(frame.head(), ip.at).ok_or(Malformed::UdpHeader)?;
    let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    // Bytes behind the datagram but inside the packet are UDP options (RFC 9868): let through.
    if len < 8 || len > ip.len || ip.at + 8 != frame.head().len() {
        return Err(Malformed::UdpHeader);
    }
    let is_absent = fixed[6..8] == [0, 0] && !is_partial(frame, ip.at, CHECKSUM_FIELD);
    let is_right = match ip.l3.src {
        IpAddr::V4(_) if is_absent => true,
        IpAddr::V6(_) if is_absent => false,
        _ => is_vouched(frame, ip.at, CHECKSUM_FIELD) || verifies(frame, ip, protocol::UDP, len),
    };
    if !is_right {
        return Err(Malformed::UdpChecksum);
    }
    let dst_port = u16::from_be_bytes([fixed[2], fixed[3]]);
    if ip.l3.src.is_unspecified() && dst_port != DHCP_SERVER {
        return Err(Malformed::IpSource);
    }
    Ok(Datagram {
        l2: link.l2,
        l3: ip.l3,
        src_port: u16::from_be_bytes([fixed[0], fixed[1]]),
        dst_port,
        payload_len: len - 8,
    })
}
