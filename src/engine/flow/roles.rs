//! What a change of roles does to one flow: move, stay, wait for proof, or end by an exact reset.

use super::{Cx, Flow, Opener};
use crate::engine::LegId;
use crate::engine::event::{FlowState, SoloReason};
use crate::engine::leg::LegState;
use crate::engine::planted::{Bug, on};
use crate::wire::Offset;

/// What became of a flow when a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It had nothing to do with that server, or loses only its backup.
    Stays,
    /// It goes on with the survivor.
    Moved,
    /// It could not.
    Reset,
}

impl Flow {
    /// `server` is declared failed: nothing of it is heard from here on (I12).
    pub fn on_server_failed(&mut self, cx: &mut Cx<'_>, server: LegId) -> Fate {
        if !self.has_open_leg(server) || self.visible.reset.is_some() {
            if self.leg(server).state == LegState::Scrub {
                self.leg_mut(server).state = LegState::Fenced;
            }
            return Fate::Stays;
        }
        let was_primary = self.primary == server;
        self.leg_mut(server).state = LegState::Fenced;
        self.leg_mut(server).resend_at = None;
        let other = server.other();
        let fate = match self.state {
            FlowState::TimeWait => {
                // Only late segments are left; whoever is left answers them.
                if was_primary && self.leg(other).is_open() {
                    self.hand_over(cx, other);
                }
                Fate::Stays
            }
            FlowState::Opening => {
                self.challenge = None;
                self.primary = other;
                self.solo = Some(SoloReason::ServerFailed);
                let is_asked = self.opener == Opener::Client;
                let left = self.leg_mut(other);
                if is_asked && left.state == LegState::Absent && left.reset_at.is_none() {
                    left.state = LegState::SynSent; // not asked before; now it is the only one
                }
                self.send_syn(cx);
                if self.has_open_leg(other) { Fate::Moved } else { Fate::Reset }
            }
            _ if !was_primary && !self.leg(other).is_open() => {
                // It was the only one left, with its proof still to come.
                self.reset_client(cx);
                Fate::Reset
            }
            _ if !was_primary => {
                self.diverged_until = None;
                self.set_state(cx, FlowState::Solo, Some(SoloReason::ServerFailed));
                Fate::Stays
            }
            // Its proof is still to come; it has ORPHAN_PROGRESS_MAX to go on.
            FlowState::Lagging if self.leg(other).is_open() && !on(Bug::UnprovenPromoted) => {
                self.leg_mut(other).progress_at = cx.now;
                Fate::Moved
            }
            _ if self.is_promotable(cx, other) => {
                self.adopt(cx, other, SoloReason::ServerFailed);
                Fate::Moved
            }
            _ => {
                self.reset_client(cx);
                Fate::Reset
            }
        };
        self.settle(cx);
        fate
    }

    /// The leg is open, and everything shown is a prefix of what it says.
    pub(super) fn is_promotable(&self, cx: &Cx<'_>, id: LegId) -> bool {
        let is_proved = self.comparison.agreed() >= self.visible.released;
        let is_there = self.leg(id).is_open() && cx.overwritten != Some(id);
        is_there && (is_proved || on(Bug::UnprovenPromoted))
    }

    /// The leg `id` lost its part in the flow: detached, and the other one goes on.
    pub(super) fn lose(&mut self, cx: &mut Cx<'_>, id: LegId, why: SoloReason) {
        let other = id.other();
        if self.primary != id {
            self.diverged_until = None;
            self.detach(cx, id);
            return self.set_state(cx, FlowState::Solo, Some(why));
        }
        if self.is_promotable(cx, other) {
            self.detach(cx, id);
            self.adopt(cx, other, why);
        } else if self.leg(other).is_open() && self.state == FlowState::Lagging {
            self.detach(cx, id);
            self.leg_mut(other).progress_at = cx.now;
        } else {
            self.reset_client(cx);
        }
    }

    /// The flow goes on with `id` alone: same numbers, same clock, held bytes at once.
    pub(super) fn adopt(&mut self, cx: &mut Cx<'_>, id: LegId, why: SoloReason) {
        self.hand_over(cx, id);
        self.diverged_until = None;
        self.fin_held_at = None;
        self.begin_takeover(cx.now);
        self.set_state(cx, FlowState::Solo, Some(why));
        // Whatever it lost of the request is sent again now, not after a timer.
        let is_established = self.client.una >= Offset::START;
        let leg = self.leg_mut(id);
        leg.resend_at = Some(cx.now);
        leg.owes_ack = leg.is_learned && is_established;
    }

    /// `id` is the primary of this flow from here on; the clock shown goes on without a step.
    pub(super) fn hand_over(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let places = self.places_instead(id);
        self.primary = id;
        self.visible.foreign_until =
            Some(self.visible.differs_until).filter(|until| *until > self.client.una);
        let (released, agreed) = (self.visible.released, self.comparison.agreed());
        self.comparison.goes_on_with_other();
        // A chunk line that both have passed is shown as the other one said it.
        let kept = self.visible.instead.lines_end().unwrap_or(released).max(released);
        let agreed = self.leg_mut(id).voice.rewind(kept, agreed);
        self.comparison.move_to(agreed);
        if !places.is_empty() {
            let agreed = self.say_instead(cx, id, &places, self.comparison.agreed());
            self.comparison.move_to(agreed);
        }
        let expected = self.visible.clock.expected(cx.now);
        if let Some(expected) = expected.filter(|_| !on(Bug::TsvalBack)) {
            self.leg_mut(id).continue_clock(cx.now, expected);
        }
    }

    /// Planned: the roles swap, both legs stay. Only a flow whose legs are equal takes part.
    pub fn swap_roles(&mut self, cx: &mut Cx<'_>, to: LegId) -> bool {
        let is_equal = self.state == FlowState::Paired && self.has_both();
        // What stands for a value of `to` has still to be shown.
        let is_shown = self.leg(to).voice.is_plain_from(self.visible.released)
            && self.comparison.chunks.is_none()
            && self.visible.instead.lines_end().is_none();
        if self.primary == to || !is_equal || !is_shown {
            return false;
        }
        self.hand_over(cx, to);
        self.set_state(cx, FlowState::Paired, None);
        self.persist(cx);
        self.settle(cx);
        true
    }

    /// The policy has decided about the difference: the primary's version is shown, the other leg
    /// is detached. A content sync changes files, never TCP positions, so the flow stays Solo.
    pub fn resolve_divergence(&mut self, cx: &mut Cx<'_>) {
        if self.state != FlowState::Diverged {
            return;
        }
        let backup = self.backup();
        self.diverged_until = None;
        self.detach(cx, backup);
        self.give_up_reprotecting();
        self.set_state(cx, FlowState::Solo, Some(SoloReason::Diverged));
        if on(Bug::ContentSyncRewrites) {
            let other = self.leg(backup).voice.effective_iss();
            self.leg_mut(self.primary).voice.renumber(other);
        }
        self.settle(cx);
    }

    /// `server` is back: what it still knows of this flow is reset exactly whenever it speaks.
    pub fn on_server_returned(&mut self, cx: &mut Cx<'_>, server: LegId) {
        if self.leg(server).state != LegState::Fenced {
            return;
        }
        self.leg_mut(server).state = LegState::Scrub;
        self.forget_tries();
        let at = self.leg(server).acked.max(self.client.una.min(self.leg(server).acked));
        self.send_leg_reset(cx, server, self.heard_number(server, at));
    }
}
