//! What a sync of scope Machine does to one flow: the target's leg becomes a copy of the source's.
//!
//! Source and target stood still, so that whatever was heard of the source is in the target's
//! memory too: the same numbers, the same bytes said, taken and still to come. What was sent to the
//! source on its way into the freeze is not: the target is fed again from what it has acknowledged.

use super::{Cx, Flow};
use crate::engine::LegId;
use crate::engine::config::Mode;
use crate::engine::event::{FlowState, SoloReason};
use crate::engine::leg::LegState;
use crate::engine::planted::{Bug, on};
use crate::engine::time::Duration;
use crate::wire::Offset;

impl Flow {
    /// `to` has become what the other server is: its own connection is gone, and it has the other
    /// one's.
    pub fn on_copied(&mut self, cx: &mut Cx<'_>, to: LegId) {
        let from = to.other();
        let was_primary = self.primary == to;
        let is_known = self.client.is_learned && self.leg(from).is_learned;
        let is_over = self.visible.reset.is_some() || self.state == FlowState::TimeWait;
        self.copy_leg(cx, to);
        if self.state == FlowState::Opening {
            // What was asked meanwhile has reached the source at most.
            self.primary = from;
            self.send_syn(cx);
        } else if self.visible.reset.is_some() || !self.leg(from).is_open() {
            // Nothing to go on with, also where only the target was left and not yet the primary:
            // what it has of it is reset, exactly.
            self.drop_copy(cx, to);
            if !is_over {
                self.reset_client(cx);
            }
        } else if !is_known {
            // Right after a restart of the gateway: where they stand has still to be asked.
            self.drop_copy(cx, to);
            self.primary = from;
            if !is_over {
                self.set_state(cx, FlowState::Solo, Some(SoloReason::Restored));
            }
        } else if was_primary && self.comparison.agreed() < self.visible.released {
            // The source was the late one: it has still to prove what was shown.
            self.drop_copy(cx, to);
            self.leg_mut(from).progress_at = cx.now;
        } else {
            let before = self.state;
            if was_primary {
                self.hand_over(cx, from);
            }
            match self.comparison.is_reframed {
                // What is shown of a body is neither's way to say it.
                true => {
                    self.drop_copy(cx, to);
                    self.diverged_until = None;
                    self.set_state(cx, FlowState::Solo, Some(SoloReason::Unfollowed));
                }
                false => {
                    self.comparison.rejoin();
                    self.pair_with_copy(cx, to);
                }
            }
            if was_primary && self.state == before {
                self.tell_state(cx, before); // by another server
            }
        }
        self.persist(cx);
        self.settle(cx);
    }

    /// Source and target have stood still for `gap`, and go on; `kept` is a target that is what it
    /// was, and was sent nothing meanwhile.
    pub fn on_thawed(&mut self, cx: &mut Cx<'_>, gap: Duration, kept: Option<LegId>) {
        self.forgive(cx.now, gap);
        if let Some(leg) = kept {
            let leg = self.leg_mut(leg);
            (leg.resend_at, leg.resend_count) = (Some(cx.now), 0);
            leg.owes_ack |= leg.is_open();
        }
        self.settle(cx);
    }

    fn copy_leg(&mut self, cx: &Cx<'_>, to: LegId) {
        let mut copy = self.leg(to.other()).clone();
        copy.sent = copy.acked.max(Offset::START);
        copy.is_fed = copy.is_open();
        copy.owes_ack = copy.is_open();
        (copy.resend_at, copy.resend_count, copy.dup_acks) = (None, 0, 0);
        (copy.progress_at, copy.given_at, copy.heard_at) = (cx.now, cx.now, cx.now);
        if on(Bug::CopyKeepsOldClock) {
            copy.clock = self.leg(to).clock.clone();
        }
        self.legs[to.index()] = copy;
    }

    /// The target's copy of a connection that does not go on there.
    fn drop_copy(&mut self, cx: &mut Cx<'_>, to: LegId) {
        let leg = self.leg_mut(to);
        if leg.state == LegState::Absent {
            return;
        }
        leg.state = LegState::Scrub;
        leg.voice.silence();
        let at = leg.acked;
        self.send_leg_reset(cx, to, self.heard_number(to, at));
    }

    /// Both legs are one: everything heard of the source was said by both.
    fn pair_with_copy(&mut self, cx: &mut Cx<'_>, to: LegId) {
        self.leg_mut(to).voice = self.leg(to.other()).voice.clone();
        self.vouch(cx);
        // A masked value that the source has begun may have been shown in part.
        let (agreed, released) = (self.comparison.agreed(), self.visible.released);
        let (mut at, mut parts) = (agreed, Vec::new());
        while let Some(bytes) = self.shown.chunk_at(at).filter(|_| at < released) {
            let bytes = bytes.slice(..bytes.len().min(released.since(at) as usize));
            at = at + bytes.len() as u64;
            parts.push((at.back(bytes.len() as u64), bytes));
        }
        self.leg_mut(to).voice.put_before(agreed.min(released), parts);
        (self.diverged_until, self.fin_held_at) = (None, None);
        (self.pinned, self.behind, self.owes) = ([None; 2], [None; 2], [None; 2]);
        if self.state == FlowState::TimeWait || on(Bug::CopyStaysSolo) {
            return;
        }
        let acked = self.leg(to).acked;
        let is_equal = agreed >= released && self.visible.told_ack <= acked;
        let state = match is_equal && cx.config.mode == Mode::Protect {
            true => FlowState::Paired,
            false => FlowState::Lagging,
        };
        self.solo = None;
        self.set_state(cx, state, None);
    }
}
