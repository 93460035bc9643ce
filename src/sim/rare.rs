//! Rare events: what a run reached. Counted from the oracle's view of the world at the instant of
//! the engine's event, so that a green run can show what it has been through.

use serde::{Deserialize, Serialize};

use super::oracle::Oracle;
use super::track::FlowTrack;
use crate::engine::{Event, FlowState, LegId};

/// The events that every long run has to reach.
pub const NAMES: [&str; 26] = [
    "failover with the primary ahead",
    "failover with the backup ahead",
    "failover inside a masked span",
    "failover in the handshake",
    "failover with a FIN held",
    "failover at zero window",
    "failover with a hole in a stream",
    "wrap inside held bytes",
    "promotion from Lagging",
    "both legs lost",
    "sync failing with bytes held",
    "4-tuple reuse",
    "a super-frame from a host",
    "urgent data shown",
    "a server with SYN cookies",
    "a path that took less than before",
    "a byte changed in a server's memory",
    "a connection that began with a cookie of the gateway",
    "restored by a machine sync",
    "failover after a machine sync",
    "failover with a value of other length on its way",
    "a cookie that a server heard in its own version",
    "the same by a server that has become the primary",
    "protected again at a message boundary",
    "the same while the client spoke",
    "failover to a server that had come back into the connection",
];

/// How often each was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rare(pub [u64; NAMES.len()]);

impl Rare {
    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            *own += other;
        }
    }

    /// An event of the engine, before the oracle takes it.
    pub fn on_event(&mut self, event: &Event, oracle: &Oracle) {
        match event {
            Event::Promoted { primary, .. } => {
                for flow in oracle.flows.values().filter(|f| f.primary != *primary) {
                    self.on_failover(flow);
                }
            }
            Event::FlowChanged { flow, from, to: FlowState::Solo, primary, .. }
                if *from != FlowState::Opening =>
            {
                let std::net::IpAddr::V4(ip) = flow.client.ip() else { return };
                let track = oracle.flows.get(&(ip.octets(), flow.client.port()));
                // A flow that moves alone; the others have been seen at the promotion.
                if let Some(track) = track.filter(|t| t.primary != *primary) {
                    self.on_failover(track);
                }
            }
            Event::FlowChanged {
                flow,
                from: FlowState::Solo | FlowState::Diverged,
                to: to @ (FlowState::Paired | FlowState::Lagging),
                primary,
                ..
            } => {
                let std::net::IpAddr::V4(ip) = flow.client.ip() else { return };
                let track = oracle.flows.get(&(ip.octets(), flow.client.port()));
                let is_second = |f: &FlowTrack| f.second.has_begun[primary.other().index()];
                match track.is_some_and(is_second) {
                    true => {
                        self.0[23] += 1;
                        self.0[24] += u64::from(*to == FlowState::Lagging);
                    }
                    false => self.0[18] += 1,
                }
            }
            Event::SyncEnded { ok: false, .. } => {
                let holds = |f: &FlowTrack| {
                    let said = LegId::ALL.map(|l| f.said(l));
                    f.state == FlowState::Diverged && said[0].max(said[1]) > f.released()
                };
                self.0[10] += u64::from(oracle.flows.values().any(holds));
            }
            Event::ValueReplaced { flow, to, .. } => {
                let std::net::IpAddr::V4(ip) = flow.client.ip() else { return };
                let track = oracle.flows.get(&(ip.octets(), flow.client.port()));
                self.0[21] += 1;
                self.0[22] += u64::from(track.is_some_and(|track| track.primary == *to));
            }
            Event::FlowReset { .. } => self.0[9] += 1,
            Event::CookieTaken { .. } => self.0[17] += 1,
            Event::FlowOpened { flow } => {
                let std::net::IpAddr::V4(ip) = flow.client.ip() else { return };
                let key = (ip.octets(), flow.client.port());
                self.0[11] += u64::from(oracle.has_known(&key));
            }
            _ => {}
        }
    }

    fn on_failover(&mut self, flow: &FlowTrack) {
        if matches!(flow.state, FlowState::TimeWait) || flow.was_reset {
            return;
        }
        let (p, b) = (flow.said(flow.primary), flow.said(flow.primary.other()));
        let paired = flow.is_paired();
        let hole = LegId::ALL.iter().any(|&l| flow.leg(l).said.has_hole(1));
        let in_span = flow.open_span().is_some_and(|s| p > s.start || b > s.start);
        let reached = [
            paired && p > b,
            paired && b > p,
            paired && in_span,
            flow.state == FlowState::Opening,
            flow.holds_fin(),
            flow.is_window_closed() && flow.state != FlowState::Opening,
            hole,
            false,
            flow.state == FlowState::Lagging,
        ];
        for (count, reached) in self.0.iter_mut().zip(reached) {
            *count += u64::from(reached);
        }
        self.0[19] += u64::from(flow.was_copied);
        self.0[25] += u64::from(flow.second.has_begun[flow.primary.other().index()] && paired);
        self.0[20] += u64::from(flow.has_token_under_way());
    }

    /// A host's kernel left it to the gateway to cut a segment.
    pub fn on_super_frame(&mut self) {
        self.0[12] += 1;
    }

    /// The client was told of urgent data.
    pub fn on_urgent(&mut self) {
        self.0[13] += 1;
    }

    /// A connection to a server that keeps nothing of a handshake.
    pub fn on_cookies(&mut self) {
        self.0[14] += 1;
    }

    /// A router on the way dropped a packet and said why.
    pub fn on_too_large(&mut self) {
        self.0[15] += 1;
    }

    /// What a server said differs from what it meant.
    pub fn on_altered(&mut self) {
        self.0[16] += 1;
    }

    /// Bytes were held across the wrap in this run.
    pub fn on_wrap(&mut self) {
        self.0[7] = 1;
    }
}
