//! Whether what the engine decided about a server had a cause in the scenario.

use super::gateway::Gateway;
use super::oracle::Tuple;
use super::scenario::Fault;
use super::world::World;
use crate::engine::{LegId, SoloReason};

impl World<'_> {
    /// Whether losses, slowness or stalls may make a healthy server look ill.
    pub fn is_rough(&self, leg: LegId) -> bool {
        let scenario = self.scenario;
        let plan = &scenario.servers[leg.index()];
        let link = &scenario.links[1 + leg.index()];
        let is_slow = plan.chunk.is_some()
            || plan.read_pause.is_some()
            || plan.split_head_us.is_some()
            || plan.think_us > 5_000
            || plan.stack.model.as_ref().is_some_and(|m| m.window_rest.is_some());
        let is_late = link.iter().any(|p| p.is_lossy() || p.reorder > 0 || p.delay_us > 20_000);
        let disturbed = scenario.links[0].iter().any(|p| p.is_lossy());
        let is_stalled = scenario.faults.iter().any(|f| {
            matches!(
                f.fault,
                Fault::GatewayStall(_) | Fault::GatewayRestart(_) | Fault::Failover { .. }
            )
        });
        is_slow || is_late || disturbed || is_stalled
    }

    /// Whether no server can be expected to answer. One that a sync keeps from speaking will.
    pub fn may_be_down(&self) -> bool {
        let limit = Gateway::sync_deadline(self.scenario).as_nanos() as u64;
        let is_overdue = self.backend.has_begun_before(self.now.saturating_sub(limit));
        is_overdue
            || LegId::ALL.into_iter().all(|leg| {
                let truth = &self.truth[leg.index()];
                !truth.is_on || truth.is_dead || truth.is_faulted || self.is_rough(leg)
            })
    }

    /// Whether `leg` may have been taken from a flow for `why`.
    pub fn is_explained(&self, tuple: Tuple, leg: LegId, why: SoloReason) -> bool {
        let is_faulted = self.truth[leg.index()].is_faulted;
        match why {
            // A restarted gateway has forgotten where in HTTP it stood: masks end there.
            SoloReason::Diverged => self.scenario.may_differ() || self.gateway.was_restarted(),
            SoloReason::OneServer | SoloReason::BackupStale | SoloReason::Restored => true,
            SoloReason::ServerFailed => true, // judged with its finding
            SoloReason::Budget | SoloReason::AuthOption | SoloReason::HalfOpen => false,
            SoloReason::SourceLimit | SoloReason::OpaquePort | SoloReason::Unfollowed => false,
            SoloReason::Tls | SoloReason::Ssh | SoloReason::Http2 => false,
            SoloReason::Lag if self.waits_for_client(tuple, leg) => true,
            // Asked before by a handshake that was given up, smoltcp does not answer the same SYN
            // again at once.
            SoloReason::Handshake
                if self.scenario.gateway.has_cookies
                    && (self.gateway.was_restarted()
                        || LegId::ALL.iter().any(|&l| self.gateway.has_dropped(tuple, l))) =>
            {
                true
            }
            SoloReason::Handshake | SoloReason::Lag => is_faulted || self.is_rough(leg),
            // The reset of a handshake that gave way may be overtaken by the SYN of the next one.
            SoloReason::EarlyEnd if self.may_give_way_unordered(leg) => true,
            // One FIN waits for the other; whichever is late, the backup loses.
            SoloReason::EarlyEnd => {
                self.truth.iter().any(|t| t.is_faulted)
                    || LegId::ALL.iter().any(|&l| self.is_rough(l))
            }
        }
    }

    fn may_give_way_unordered(&self, leg: LegId) -> bool {
        let way = &self.scenario.links[1 + leg.index()][1];
        self.scenario.gateway.has_cookies && (way.jitter_us > 0 || way.dup > 0)
    }
}
