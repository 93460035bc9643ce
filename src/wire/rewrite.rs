//! Small edits of a frame in place, checksums kept right.
//!
//! An edit never recomputes a sum over bytes that it did not change (RFC 1624): damage that was
//! there stays visible. A partial checksum is left alone where the edit lies outside the pseudo
//! header.

use super::checksum::update32;
use super::frame::{CsumSpot, Frame};
use super::packet::{Icmp, IcmpKind, L2, Mac};
use super::parse;

/// Where the checksum stands in an ICMP header.
const ICMP_CHECKSUM_FIELD: usize = 2;

/// Sets both Ethernet addresses.
pub fn set_macs(frame: &mut Frame, dst: Mac, src: Mac) {
    frame.put(0, &dst.0);
    frame.put(6, &src.0);
}

/// Gives the TCP packet that the error `icmp` quotes another sequence number, so that the server
/// it is about recognizes it. `icmp` is what `frame` was parsed to. With `new_l2` the Ethernet
/// addresses are set too; VLAN tags stay. Does nothing else if nothing is quoted.
pub fn icmp_quote(frame: &mut Frame, icmp: &Icmp, new_l2: Option<&L2>, seq: u32) {
    if let Some(l2) = new_l2 {
        set_macs(frame, l2.dst, l2.src);
    }
    let (IcmpKind::TooBig { quote, .. } | IcmpKind::Error { quote, .. }) = icmp.kind else {
        return;
    };
    let Some(quote) = quote else { return };
    let at = usize::from(quote.seq_at);
    let check_at = usize::from(icmp.l4_at) + ICMP_CHECKSUM_FIELD;
    let here = CsumSpot { start: icmp.l4_at, offset: ICMP_CHECKSUM_FIELD as u16 };
    let Some(old) = parse::be32(frame.head(), at) else { return };
    let Some(check) = parse::be16(frame.head(), check_at) else { return };
    frame.put(at, &seq.to_be_bytes());
    if frame.offload().needs_csum != Some(here) {
        frame.put(check_at, &update32(check, old, seq).to_be_bytes());
    }
}
