//! ICMP errors about packets that the client was shown (RFC 1191, RFC 8201, RFC 5927).

use super::{Cx, Flow};
use crate::engine::event::RejectReason;
use crate::engine::{LegId, Link};
use crate::wire::{Frame, Icmp, Offset, Quote, Seq, rewrite};

/// Least path MTU believed, by family.
const MTU_MIN_V4: u32 = 552;
const MTU_MIN_V6: u32 = 1280;

/// An error about bytes that a leg has not sent yet: it would be refused as forged (RFC 5927 4).
#[derive(Clone, Debug)]
pub struct DeferredError {
    at: Offset,
    icmp: Icmp,
    frame: Frame,
}

impl Flow {
    /// An error about one of this flow's packets: believed only if it quotes a byte that is in
    /// flight, and delivered to every leg in that leg's own numbers, once the leg has sent it.
    pub fn on_icmp_error(
        &mut self,
        cx: &mut Cx<'_>,
        icmp: &Icmp,
        quote: Quote,
        mtu: Option<u32>,
        frame: &Frame,
    ) {
        let at = self.visible.iss.offset(Seq::new(quote.seq), self.visible.released);
        if at < self.client.una || at > self.shown_end() {
            return cx.reject(Link::Client, RejectReason::IcmpQuote);
        }
        if let Some(mtu) = mtu {
            let is_v4 = self.key.client.is_ipv4();
            let (least, headers) = if is_v4 { (MTU_MIN_V4, 40) } else { (MTU_MIN_V6, 60) };
            let mss = mtu.max(least) - headers;
            self.client.mss = self.client.mss.min(u16::try_from(mss).unwrap_or(u16::MAX));
        }
        for id in LegId::ALL {
            let error = DeferredError { at, icmp: *icmp, frame: frame.clone() };
            self.leg_mut(id).deferred_error = Some(Box::new(error));
            self.deliver_error(cx, id);
        }
    }

    /// Delivers the latest error to leg `id`, if the leg has sent what it is about by now.
    pub(super) fn deliver_error(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let una = self.client.una;
        let leg = self.leg_mut(id);
        let (is_open, nxt) = (leg.is_open(), leg.voice.nxt());
        let Some(error) = leg.deferred_error.take_if(|e| e.at < nxt || e.at < una || !is_open)
        else {
            return;
        };
        if is_open && error.at >= una {
            let mut copy = error.frame;
            rewrite::icmp_quote(&mut copy, &error.icmp, None, leg.voice.seq_at(error.at));
            cx.transmit(Link::Server(id), copy);
        }
    }
}
