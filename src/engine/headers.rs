//! What the frames of one end carry besides its addresses: those are the flow's own.

use std::net::IpAddr;

use super::pack::fields;
use crate::wire::{L2, L3};

/// Headers of one end's latest frame, without the addresses of IP.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    l2: L2,
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    id: u16,
    flow_label: u32,
}

impl Headers {
    /// Those of a frame.
    pub const fn of(l2: &L2, l3: &L3) -> Self {
        let L3 { src: _, dst: _, ttl, tos, dont_fragment, id, flow_label } = *l3;
        Self { l2: *l2, ttl, tos, dont_fragment, id, flow_label }
    }

    /// Hops that were left to it.
    pub const fn ttl(self) -> u8 {
        self.ttl
    }

    /// Those of a frame from `src` to `dst`.
    pub const fn between(self, src: IpAddr, dst: IpAddr) -> (L2, L3) {
        let Self { l2, ttl, tos, dont_fragment, id, flow_label } = self;
        (l2, L3 { src, dst, ttl, tos, dont_fragment, id, flow_label })
    }
}

fields!(Headers { l2, ttl, tos, dont_fragment, id, flow_label });
