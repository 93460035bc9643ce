//! Who keeps the flow waiting, since when, and what happens at the limits (1.7).
//!
//! A leg *pins* the flow while it is the only reason that bytes, an ack or the window do not
//! advance. The time counts from that leg's last progress: a slow server is not a dead one.

use super::{Cx, Flow, Report, policy_is_strict};
use crate::engine::LegId;
use crate::engine::config::Mode;
use crate::engine::event::{Event, FlowState, SoloReason};
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::time::{Duration, Instant};
use crate::wire::Offset;

impl Flow {
    /// Notes who pins the flow and applies the limits.
    pub(super) fn settle_holds(&mut self, cx: &mut Cx<'_>) {
        let is_judged = matches!(self.state, FlowState::Paired | FlowState::Lagging);
        // Right after a restart nobody knows yet what the client is waiting for.
        if !is_judged || !self.has_both() || !self.client.is_learned {
            (self.pinned, self.behind, self.owes) = ([None; 2], [None; 2], [None; 2]);
            return;
        }
        for id in LegId::ALL {
            let i = id.index();
            self.behind[i] = self.says_less(id).then(|| self.behind[i].unwrap_or(cx.now));
            self.owes[i] = self.takes_less(id).then(|| self.owes[i].unwrap_or(cx.now));
            let is_late = self.behind[i].is_some() || self.owes[i].is_some();
            let may_wait = is_late && self.may_wait_until(id).is_some_and(|until| cx.now < until);
            let behind = self.behind[i].filter(|_| !may_wait);
            let owes = self.owes[i].filter(|_| self.leg(id).is_learned || !may_wait);
            let since = behind.into_iter().chain(owes).min();
            let pinned = since.map(|since| since.max(self.leg(id).stands_since()));
            if let (Some(since), None) = (self.pinned[i], pinned) {
                cx.reports.push(Report::Skew(id, cx.now.since(since)));
                self.is_soft_told[i] = false;
            }
            self.pinned[i] = pinned;
        }
        for id in LegId::ALL {
            self.apply_hold_limits(cx, id);
        }
    }

    /// Whether `id` alone keeps an ack or the window from advancing.
    fn takes_less(&self, id: LegId) -> bool {
        let acks_less = self.leg(id).acked < self.leg(id.other()).acked;
        acks_less || (!on(Bug::PinnedWindowNoTimer) && self.pins_window(id))
    }

    /// A leg that lacks nothing but room to say more has its own persist timer: it is late only
    /// after that. One that was asked for its position after a restart has a while to answer.
    fn may_wait_until(&self, id: LegId) -> Option<Instant> {
        if !self.leg(id).is_learned {
            return Some(self.leg(id).stands_since() + limits::ANSWER_WAIT);
        }
        if !self.says_less(id) {
            return None;
        }
        let since = self.leg(id).stands_since();
        if self.waits_for_ack(id) {
            let behind = self.behind[id.index()].unwrap_or(since);
            return Some(since.max(behind) + self.patience(limits::DELAYED_ACK_WAIT));
        }
        self.is_tight(id).then(|| since + self.patience(limits::TIGHT_WAIT))
    }

    /// `least`, longer for a distant client: the server's timer counts its round trips too, three
    /// of them before it knows better (RFC 6298 2.2).
    fn patience(&self, least: Duration) -> Duration {
        least + self.client.round_trip.min(limits::ROUND_TRIP_MAX) * 3
    }

    /// Whether `id` could not say more if it had more: the client has no room for it.
    pub(super) fn waits_for_client(&self, id: LegId) -> bool {
        self.leg(id).voice.has_no_room() && self.is_client_closed()
    }

    /// Whether `id` alone keeps bytes from being shown.
    fn says_less(&self, id: LegId) -> bool {
        if self.leg(id).voice.ended_at().is_some() || self.waits_for_client(id) {
            return false;
        }
        if let Some(says_less) = self.says_less_of_span(id) {
            return says_less;
        }
        let (said, other) = (self.leg(id).said(), self.leg(id.other()).said());
        // Bytes that only the rest of a masked value could release, and neither leg says it: maybe
        // each waits to be acknowledged. The primary's are the ones to show.
        said < other || (id == self.backup() && said == other && self.is_inside_span(id))
    }

    /// Everything that it said was shown, and the client's ack of it is due.
    fn waits_for_ack(&self, id: LegId) -> bool {
        let said = self.leg(id).said();
        self.client.una < said && said <= self.visible.released
    }

    /// A leg that stands inside of a masked value may wait for the ack of what it has said of it
    /// (Nagle's rule), which is not shown in parts: that it stands says nothing about its server.
    pub(in crate::engine) fn may_wait_for_us(&self, id: LegId) -> bool {
        self.is_inside_span(id)
    }

    /// A server without room for a whole segment waits for the client's window like everybody else
    /// (LV4; RFC 9293 3.8.6.2.1, the sender's silly-window avoidance).
    fn is_tight(&self, id: LegId) -> bool {
        let leg = self.leg(id);
        let segments = 2 * u64::from(self.client.mss);
        leg.voice.edge_shown() < leg.said() + segments.min(self.client.window_max / 2)
    }

    /// The window of `id` is the lower one; the client has run out of it, and may have more to say.
    fn pins_window(&self, id: LegId) -> bool {
        if self.client.fin.is_some() {
            return false;
        }
        let (leg, other) = (self.leg(id), self.leg(id.other()));
        let little = (2 * u64::from(self.client.mss)).min(leg.window_max.min(other.window_max) / 2);
        let is_short = self.client.nxt + little > leg.edge;
        leg.edge < other.edge && is_short && other.edge.since(leg.edge) >= little
    }

    fn apply_hold_limits(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let Some(since) = self.pinned[id.index()] else { return };
        // A lagging leg that has caught up can take over from a primary that stands still.
        let may_move = id == self.primary && self.is_promotable(cx, id.other());
        if self.state != FlowState::Paired && !may_move {
            return;
        }
        let age = cx.now.since(since);
        if age >= cx.config.hold_soft && !self.is_soft_told[id.index()] {
            self.is_soft_told[id.index()] = true;
            cx.event(Event::HoldSoft { flow: self.key, waiting_for: id });
        }
        if age < cx.config.hold_hard || on(Bug::DropLv5) {
            return;
        }
        if id == self.primary {
            // One flow whose primary stands still moves alone (H4): the backup's bytes are a legal
            // continuation, and the rest of the service is judged by the control side.
            if cx.is_fit[id.other().index()] && cx.config.failover_auto {
                cx.event(Event::HoldHard { flow: self.key, waiting_for: id });
                if !self.may_wait_for_us(id) {
                    cx.reports.push(Report::StallMoved(id));
                }
                self.lose(cx, id, SoloReason::Lag);
            }
        } else if policy_is_strict(cx) {
            if age >= limits::STRICT_HOLD_MAX {
                cx.event(Event::HoldHard { flow: self.key, waiting_for: id });
                cx.reports.push(Report::StallMoved(id));
                self.lose(cx, id, SoloReason::Lag);
            }
        } else {
            cx.event(Event::HoldHard { flow: self.key, waiting_for: id });
            self.set_state(cx, FlowState::Lagging, None);
            self.release(cx);
        }
    }

    pub(super) fn hold_deadline(&self, cx: &Cx<'_>) -> Option<Instant> {
        if on(Bug::DropLv5) {
            return None;
        }
        let lag = (self.state == FlowState::Lagging).then(|| {
            let max = match self.is_orphaned() {
                true => limits::ORPHAN_PROGRESS_MAX,
                false => limits::LAG_PROGRESS_MAX,
            };
            self.leg(self.backup()).progress_at + max
        });
        let lag = lag.filter(|_| self.lag_matters() && !on(Bug::LagForever));
        if self.state != FlowState::Paired {
            let since = self.pinned[self.primary.index()];
            let at = since.map(|since| since + cx.config.hold_hard);
            return at.filter(|&at| at > cx.now).into_iter().chain(lag).min();
        }
        let due = |id: LegId| {
            let until = self.may_wait_until(id).filter(|&until| until > cx.now);
            let limit = self.pinned[id.index()].map(|since| {
                let soft = since + cx.config.hold_soft;
                let hard = since + cx.config.hold_hard;
                let strict = since + limits::STRICT_HOLD_MAX;
                [soft, hard, strict].into_iter().find(|&t| t > cx.now).unwrap_or(strict)
            });
            until.into_iter().chain(limit).min()
        };
        LegId::ALL.into_iter().filter_map(due).chain(lag).min()
    }

    /// Something is outstanding for the lagging leg, so that its standing still means something.
    fn lag_matters(&self) -> bool {
        self.comparison.agreed() < self.visible.released
            || self.leg(self.backup()).acked < self.visible.told_ack
            || self.is_orphaned()
    }

    /// A lagging backup catches up, or is given up.
    pub(super) fn settle_lag(&mut self, cx: &mut Cx<'_>) {
        if self.state != FlowState::Lagging {
            return;
        }
        let verified = self.comparison.agreed() >= self.visible.released;
        if self.is_orphaned() {
            return self.settle_orphan(cx, verified);
        }
        let backup = self.backup();
        if !self.has_both() {
            return;
        }
        let leg = self.leg(backup);
        let has_acked = leg.acked >= self.visible.told_ack;
        // Two windows of one size differ by their rounding; what the client may send beyond this
        // one's is resent from the gateway's copy.
        let short = self.visible.told_edge.since(leg.edge);
        let has_window = self.client.nxt <= leg.edge && short <= limits::LATE_WINDOW_BYTES_MAX;
        if verified && has_acked && has_window && cx.config.mode == Mode::Protect {
            (self.pinned, self.behind, self.owes) = ([None; 2], [None; 2], [None; 2]);
            return self.set_state(cx, FlowState::Paired, None);
        }
        let custody = self.visible.told_ack.since(leg.acked);
        let unverified = self.visible.released.since(self.comparison.agreed());
        let is_full = custody.max(unverified) > limits::LAG_BYTES_MAX || self.has_lost_custody();
        let stands = cx.now.since(leg.progress_at) >= limits::LAG_PROGRESS_MAX;
        if is_full || (stands && self.lag_matters() && !on(Bug::LagForever)) {
            self.lose(cx, backup, SoloReason::Lag);
        }
    }

    /// Bytes that only the gateway could give the lagging leg are not here.
    fn has_lost_custody(&self) -> bool {
        let from = self.leg(self.backup()).acked.max(Offset::START);
        let to = self.visible.told_ack.min(self.client.fin.unwrap_or(Offset::new(u64::MAX)));
        from < to && !self.request.covers(from, to)
    }

    /// The primary is gone and the backup has still to prove what the client was shown.
    pub(super) fn is_orphaned(&self) -> bool {
        self.state == FlowState::Lagging
            && !self.leg(self.primary).is_open()
            && self.leg(self.backup()).is_open()
    }

    fn settle_orphan(&mut self, cx: &mut Cx<'_>, verified: bool) {
        let backup = self.backup();
        let has_acked = self.leg(backup).acked >= self.visible.told_ack;
        if verified && has_acked {
            self.adopt(cx, backup, SoloReason::ServerFailed);
        } else if cx.now.since(self.leg(backup).progress_at) >= limits::ORPHAN_PROGRESS_MAX
            || self.has_lost_custody()
        {
            self.reset_client(cx);
        }
    }
}
