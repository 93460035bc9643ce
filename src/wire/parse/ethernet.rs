//! Ethernet and up to two VLAN tags (IEEE 802.3, 802.1Q).

use super::{array, be16, ethertype};
use crate::wire::packet::{L2, Mac, Malformed, Vlans};

/// The Ethernet part, and what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ethernet {
    pub(super) l2: L2,
    /// Behind the tags; below 0x600 it is an 802.3 length.
    pub(super) ethertype: u16,
    /// Where the next header begins.
    pub(super) at: usize,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Ethernet, Malformed> {
    let dst = Mac(*array(bytes, 0).ok_or(Malformed::Runt)?);
    let src = Mac(*array(bytes, 6).ok_or(Malformed::Runt)?);
    let mut next = be16(bytes, 12).ok_or(Malformed::Runt)?;
    if src.is_multicast() {
        return Err(Malformed::MulticastSource);
    }
    let mut at = 14;
    let mut vlans = Vlans::default();
    while matches!(next, ethertype::VLAN | ethertype::PROVIDER_VLAN) {
        let place = match vlans {
            Vlans { outer: None, .. } => &mut vlans.outer,
            Vlans { inner: None, .. } => &mut vlans.inner,
            _ => return Err(Malformed::VlanDepth),
        };
        *place = Some((next, be16(bytes, at).ok_or(Malformed::Runt)?));
        next = be16(bytes, at + 2).ok_or(Malformed::Runt)?;
        at += 4;
    }
    Ok(Ethernet { l2: L2 { dst, src, vlans }, ethertype: next, at })
}
