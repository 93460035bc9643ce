//! Flows that one server carries alone ask for a second one while both servers are fit: a few at a
//! time, however many there are, and those that cannot be asked for now some time later.

use super::{Engine, POOL_FULL_PERCENT};
use crate::engine::config::{Mode, Reprotect};
use crate::engine::flow_table::FlowId;
use crate::engine::limits;
use crate::engine::pack::fields;
use crate::engine::time::Instant;

/// How far they have been looked at.
#[derive(Debug, Default)]
pub(super) struct Reprotecting {
    next: FlowId,
    /// Not before this.
    paused_until: Option<Instant>,
}

impl Reprotecting {
    /// Flows have reset what a server knew of them: SYNs that overtook that would be reset.
    pub fn wait_after_resets(&mut self, now: Instant) {
        let at = now + limits::REPROTECT_AFTER_RESET;
        self.paused_until = Some(self.paused_until.map_or(at, |until| until.max(at)));
    }
}

impl Engine {
    /// Whether a second server could take part in anything.
    fn may_reprotect(&self) -> bool {
        let full = self.config.hold_bytes_max / 100 * POOL_FULL_PERCENT;
        self.config.reprotect == Reprotect::Idle
            && self.config.mode == Mode::Protect
            && self.table.has_alone()
            && self.control.fit() == [true; 2]
            && !self.control.resync.is_stale()
            && !self.control.resync.is_busy()
            && self.table.held() < full
    }

    /// When [`Self::reprotect`] has something to do.
    pub(super) fn next_reprotecting(&self) -> Option<Instant> {
        self.may_reprotect().then(|| self.reprotecting.paused_until.unwrap_or(self.now))
    }

    /// Looks at the next flows with one server.
    pub(super) fn reprotect(&mut self) {
        let is_due = self.next_reprotecting().is_some_and(|at| self.now >= at);
        if !is_due {
            return;
        }
        let ids = self.table.alone_from(self.reprotecting.next, limits::REPROTECT_LOOKED_AT);
        let is_last = ids.len() < limits::REPROTECT_LOOKED_AT;
        let (mut asked, mut next) = (0, None);
        for id in ids {
            if asked == limits::REPROTECT_AT_ONCE {
                next = Some(id);
                break;
            }
            let now = self.now;
            if self.table.peek(id, |flow| flow.may_reprotect(now)) == Some(true) {
                asked += 1;
                self.with_flow(id, |flow, cx| flow.reprotect(cx));
            }
            self.reprotecting.next = id + 1;
        }
        let is_round = is_last && next.is_none();
        let pause = match is_round {
            true => limits::REPROTECT_AGAIN,
            false => limits::REPROTECT_EVERY,
        };
        self.reprotecting.paused_until = Some(self.now + pause);
        if is_round {
            self.reprotecting.next = 0;
        }
    }
}

fields!(Reprotecting { next, paused_until });
