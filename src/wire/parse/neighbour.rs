//! Who has which address: ARP, neighbour discovery, multicast listening.
//!
//! Read first: RFC 826, RFC 5227; RFC 4861 6.1, 7.1, 8.1 (what has to be refused), RFC 3810.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::array;
use super::ethernet::Ethernet;
use super::ip::Ip;
use crate::wire::packet::{Arp, Mac, Malformed, Nd, NdKind};

/// Hops left of a message that no router has touched.
const HOP_LIMIT: u8 = 255;
/// ICMPv6 types.
const LISTENER_QUERY: u8 = 130;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERTISE: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERTISE: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;
/// Option types.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

pub(super) fn parse_arp(head: &[u8], link: &Ethernet) -> Result<Arp, Malformed> {
    let packet = array::<28>(head, link.at).ok_or(Malformed::Arp)?;
    let [0, 1, 0x08, 0x00, 6, 4, 0, operation @ (1 | 2), ..] = *packet else {
        return Err(Malformed::Arp);
    };
    let mac = |at| array(packet, at).map_or(Mac::default(), |octets| Mac(*octets));
    let ip = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let (sender_mac, sender) = (mac(8), ip(14));
    if sender_mac.is_multicast() {
        return Err(Malformed::Arp);
    }
    if sender.is_multicast() || sender.is_broadcast() || sender.is_loopback() {
        return Err(Malformed::IpSource);
    }
    Ok(Arp {
        l2: link.l2,
        is_request: operation == 1,
        sender_mac,
        sender: IpAddr::V4(sender),
        target_mac: mac(18),
        target: IpAddr::V4(ip(24)),
    })
}

/// Nothing if the message, of at least 8 bytes, is another one.
pub(super) fn parse_nd(message: &[u8], link: &Ethernet, ip: &Ip) -> Result<Option<Nd>, Malformed> {
    let fixed_len = match message[0] {
        LISTENER_QUERY..=LISTENER_DONE => 24,
        LISTENER_REPORT_2 | ROUTER_SOLICIT => 8,
        ROUTER_ADVERTISE => 16,
        NEIGHBOUR_SOLICIT | NEIGHBOUR_ADVERTISE => 24,
        REDIRECT => 40,
        _ => return Ok(None),
    };
    if message.len() < fixed_len {
        return Err(Malformed::Nd);
    }
    let is_discovery = matches!(message[0], ROUTER_SOLICIT..=REDIRECT);
    if is_discovery && (ip.l3.ttl != HOP_LIMIT || message[1] != 0) {
        return Err(Malformed::Nd);
    }
    let kind = match message[0] {
        NEIGHBOUR_SOLICIT => solicit(message, ip)?,
        NEIGHBOUR_ADVERTISE => advertise(message, ip)?,
        _ if is_discovery => {
            option_mac(&message[fixed_len..], SOURCE_MAC)?;
            NdKind::Router
        }
        _ => NdKind::Listener,
    };
    Ok(Some(Nd { l2: link.l2, l3: ip.l3, kind }))
}

fn solicit(message: &[u8], ip: &Ip) -> Result<NdKind, Malformed> {
    let target = target(message)?;
    let mac = option_mac(&message[24..], SOURCE_MAC)?;
    // A duplicate-address probe goes to the solicited-node group and names no sender.
    if ip.l3.src.is_unspecified() && (mac.is_some() || !ip.l3.dst.is_multicast()) {
        return Err(Malformed::Nd);
    }
    Ok(NdKind::Solicit { target, mac })
}

fn advertise(message: &[u8], ip: &Ip) -> Result<NdKind, Malformed> {
    let target = target(message)?;
    let mac = option_mac(&message[24..], TARGET_MAC)?;
    let is_solicited = message[4] & 0x40 != 0;
    if is_solicited && ip.l3.dst.is_multicast() || ip.l3.src.is_unspecified() {
        return Err(Malformed::Nd);
    }
    Ok(NdKind::Advertise { target, mac })
}

fn target(message: &[u8]) -> Result<IpAddr, Malformed> {
    let octets = array::<16>(message, 8).ok_or(Malformed::Nd)?;
    let target = Ipv6Addr::from(*octets);
    if target.is_multicast() { Err(Malformed::Nd) } else { Ok(IpAddr::V6(target)) }
}

/// The address in the first option of `wanted` type, after all options were found whole.
fn option_mac(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, Malformed> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        let behind = options.get(len..).filter(|_| len > 0).ok_or(Malformed::Nd)?;
        if kind == wanted && found.is_none() {
            found = array(options, 2).map(|octets| Mac(*octets));
        }
        options = behind;
    }
    if options.is_empty() { Ok(found) } else { Err(Malformed::Nd) }
}
