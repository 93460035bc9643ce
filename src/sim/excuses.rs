//! What the engine is known to do and should not, one excuse each: it names the fault, and goes
//! when the fault is mended.

use super::oracle::Tuple;
use super::track::FlowTrack;
use super::world::World;
use crate::engine::LegId;

impl World<'_> {
    /// Whether the client keeps a healthy server from saying what the other one has said, so that
    /// the engine takes the server for a late one.
    pub fn waits_for_client(&self, tuple: Tuple, leg: LegId) -> bool {
        let stack = &self.scenario.servers[leg.index()].stack;
        self.oracle.flows.get(&tuple).is_some_and(|f| {
            f.was_window_closed(self.now)
                || f.is_closed_to(leg)
                || f.is_inside_span(leg)
                || (stack.model.is_none() && stack.nagle && f.lacks_a_small_segment(leg))
        })
    }
}

impl FlowTrack {
    /// Fault: a server that has less to say into a window that was closed is taken for late, before
    /// its own timer could ask the window. (smoltcp may answer the update that opens a window with
    /// nothing but an ack, and says more only then.)
    fn was_window_closed(&self, now: u64) -> bool {
        self.closed_at.is_some_and(|at| now - at < 2_000_000_000)
    }

    /// Fault: a server that alone has a window scale is told a closed window when the client grants
    /// less than its unit, and is late when the other one uses that little.
    fn is_closed_to(&self, leg: LegId) -> bool {
        self.leg(leg).told_edge <= self.said(leg) && self.said(leg) < self.said(leg.other())
    }

    /// Fault: `waits_for_ack` grants nothing when the other server has said more. By Nagle's
    /// algorithm what does not fill a segment may wait for an ack, and smoltcp does not hear one
    /// that comes with bytes it has already; nor does it send half of a small window (RFC 1122
    /// 4.2.3.4), as kernels do.
    fn lacks_a_small_segment(&self, leg: LegId) -> bool {
        let lacks = self.said(leg.other()).saturating_sub(self.said(leg));
        let room = self.leg(leg).told_edge.saturating_sub(self.said(leg));
        lacks.min(room) < u64::from(self.c_mss)
    }
}
