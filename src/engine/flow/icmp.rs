//! ICMP errors about packets that the client was shown (RFC 1191, RFC 8201, RFC 5927).

use super::{Cx, Flow};
use crate::engine::event::RejectReason;
use crate::engine::{LegId, Link};
use crate::wire::{Frame, Icmp, Offset, Quote, Seq, rewrite};

/// Least path MTU believed, by family.
const MTU_MIN_V4: u32 = 552;
const MTU_MIN_V6: u32 = 1280;

impl Flow {
    /// An error about one of this flow's packets: believed only if it quotes a byte that is in
    /// flight, and delivered to every leg in that leg's own numbers.
    pub fn on_icmp_error(
        &mut self,
        cx: &mut Cx<'_>,
        icmp: &Icmp,
        quote: Quote,
        mtu: Option<u32>,
        frame: &Frame,
    ) {
        let at = self.visible.iss.offset(Seq::new(quote.seq), self.visible.released);
        if at < self.client.una.min(Offset::START) || at > self.shown_end() || at < self.client.una
        {
            return cx.reject(Link::Client, RejectReason::IcmpQuote);
        }
        if let Some(mtu) = mtu {
            let is_v4 = self.key.client.is_ipv4();
            let (least, headers) = if is_v4 { (MTU_MIN_V4, 40) } else { (MTU_MIN_V6, 60) };
            let mss = mtu.max(least) - headers;
            self.client.mss = self.client.mss.min(u16::try_from(mss).unwrap_or(u16::MAX));
        }
        for id in LegId::ALL {
            let leg = self.leg(id);
            if leg.is_open() && at < leg.nxt {
                let mut copy = frame.clone();
                rewrite::icmp_quote(&mut copy, icmp, None, leg.seq_at(at));
                cx.transmit(Link::Server(id), copy);
            }
        }
    }
}
