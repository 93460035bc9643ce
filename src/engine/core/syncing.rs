//! State syncs as the flows meet them: what becomes of all of them at each step.

use super::Engine;
use crate::engine::control::Order;
use crate::engine::event::{DropWhy, Event, Evidence, Finding};
use crate::engine::flow::Profile;
use crate::engine::resync::{Decision, Target};
use crate::engine::time::Instant;
use crate::engine::{CommandError, LegId, SyncId, SyncReason, SyncStep};
use crate::protocol::rules::Rule;

impl Engine {
    pub(super) fn on_sync_step(&mut self, id: SyncId, step: &SyncStep) {
        let (now, out) = (self.now, &mut self.outputs);
        if let Some(ended) = self.control.resync.on_step(now, &self.config, id, step, out) {
            match ended.target {
                Target::Kept if *step == SyncStep::TargetReady => {
                    let rules = self.config.rules.clone();
                    let is_synced = |token: &str| rules.of_http(token).is_some_and(Rule::is_synced);
                    self.forget_pairs(ended.to, is_synced);
                }
                Target::Kept => {}
                Target::Copied => {
                    self.profile = Profile::default();
                    self.data_ports.on_copied(ended.to);
                    self.expected.on_copied(ended.to);
                    self.control.on_copied(now, ended.to, &mut self.outputs);
                    self.forget_pairs(ended.to, |_| true);
                    for id in self.table.ids() {
                        self.with_flow(id, |flow, cx| flow.on_copied(cx, ended.to));
                    }
                }
                // What has failed already has nothing more to lose.
                Target::Lost if !self.control.has_both() => {}
                Target::Lost => {
                    let (finding, out) = (Finding::H1(Evidence::Exited), &mut self.outputs);
                    let orders = self.control.on_finding(now, ended.to, finding, &self.config, out);
                    self.carry_out(orders);
                }
            }
            if let Some(since) = ended.still {
                let is_kept = ended.was_frozen && ended.target == Target::Kept;
                self.thaw(since, is_kept.then_some(ended.to));
            }
            self.decide(Decision::Resolve);
        }
        self.refresh_service();
    }

    /// `to` has the other server's values for these tokens, and its own no more.
    fn forget_pairs(&mut self, to: LegId, is_copied: impl Fn(&str) -> bool) {
        let count = self.pairs.copied(to, is_copied);
        if count > 0 {
            self.event(Event::PairsDropped { why: DropWhy::Copied, count });
        }
    }

    /// The operator asks for one.
    pub(super) fn sync_now(&mut self) -> Result<Vec<Order>, CommandError> {
        if self.config.sync_scope.is_none() {
            return Err(CommandError::NoBackend);
        }
        if self.control.resync.is_busy() {
            return Err(CommandError::Busy);
        }
        if !self.control.can_sync(&self.config) {
            return Err(CommandError::NoPeer);
        }
        let reason = SyncReason::Operator;
        let _ = self.control.resync.want(self.now, &self.config, reason, &mut self.outputs);
        Ok(Vec::new())
    }

    /// Starts what is due, and ends what has been waited for long enough.
    pub(super) fn time_sync(&mut self) {
        let (roles, can_sync) = (self.control.roles(), self.control.can_sync(&self.config));
        let still_since = self.control.resync.still_since();
        let (resync, out) = (&mut self.control.resync, &mut self.outputs);
        let decision = resync.on_time(self.now, &self.config, roles, can_sync, out);
        if let Some(since) = still_since.filter(|_| resync.still_since().is_none()) {
            self.thaw(since, None);
        }
        self.decide(decision);
    }

    /// The servers have stood still since then: nobody was late.
    fn thaw(&mut self, since: Instant, kept: Option<LegId>) {
        let gap = self.now.since(since);
        self.control.detector.own_stall(self.now);
        for id in self.table.ids() {
            self.with_flow(id, |flow, cx| flow.on_thawed(cx, gap, kept));
        }
    }
}
