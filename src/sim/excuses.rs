//! What the engine is known to do and should not, one excuse each: it names the fault, and goes
//! when the fault is mended.

use super::oracle::Tuple;
use super::track::{FlowTrack, LegTrack};
use super::world::World;
use crate::engine::LegId;

impl World<'_> {
    /// Whether the client keeps a healthy server from saying what the other one has said, so that
    /// the engine takes the server for a late one.
    pub fn waits_for_client(&self, tuple: Tuple, leg: LegId) -> bool {
        let stack = &self.scenario.servers[leg.index()].stack;
        let has_nagle = stack.model.as_ref().map_or(stack.nagle, |habits| habits.nagle);
        self.oracle.flows.get(&tuple).is_some_and(|f| {
            self.is_client_far()
                || f.was_window_closed(self.now)
                || f.is_closed_to(leg)
                || (has_nagle && f.is_inside_span(leg))
                || (stack.model.is_none() && stack.nagle && f.lacks_a_small_segment(leg))
        })
    }

    /// Fault: a SYN-ACK that was repeated is not timed, so that a server's first answer to a client
    /// beyond some 400 ms is waited for as if the client were near.
    fn is_client_far(&self) -> bool {
        self.scenario.links[0].iter().any(|p| p.delay_us > 200_000)
    }

    /// Fault: after a restart within a handshake the connection passes to the primary untouched,
    /// but what a router says about it (ICMP) does not: its server never learns the path's size.
    pub fn is_passed_over_a_narrow_path(&self, tuple: Tuple) -> bool {
        let is_narrow = self.scenario.links[0].iter().any(|p| p.mtu.is_some());
        is_narrow && self.gateway.was_restarted() && !self.oracle.flows.contains_key(&tuple)
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
    /// algorithm the last part of a segment may wait for an ack, and smoltcp does not hear one that
    /// comes with bytes it has already.
    fn lacks_a_small_segment(&self, leg: LegId) -> bool {
        self.said(leg.other()).saturating_sub(self.said(leg)) < 536
    }

    /// No fault: `pins_window` counts less than two segments, or than half of a small window, as no
    /// room worth waiting for.
    pub(super) fn is_shorter_by_a_little(&self, leg: LegId) -> bool {
        let (leg, other) = (self.leg(leg), self.leg(leg.other()));
        let little = (2 * u64::from(self.c_mss)).min(leg.window_max / 2);
        other.edge.saturating_sub(leg.edge) < little
    }
}

impl LegTrack {
    /// Fault: a server that takes no part in a connection is not told so, if it was asked while an
    /// older connection of the 4-tuple lived: what it has opened by half stays until it gives up.
    pub(super) fn is_left_half_open(&self) -> bool {
        self.was_asked_early && self.told_ack == 0
    }
}
