//! Coming back under protection: a flow that one server carries alone gets a second leg.
//!
//! HTTP/1.1 on a connection that is kept alive begins anew with each request. Between two of them,
//! with everything answered and acknowledged by both ends, a server that has never heard of the
//! connection can take part from the next byte on. So the gateway makes a handshake with it in the
//! client's name: the SYN stands one before the client's next byte, its options are those that the
//! client was promised, and the number of the answer makes the constant by which that server's next
//! byte is the client's next byte.
//!
//! The comparison stands still at that boundary while the handshake is under way. What the client
//! says meanwhile the primary answers, and nobody waits; it is kept, and the second leg, once it is
//! open, is a late one: fed from the boundary on, and compared with what was shown. Semantics 1.14.

use super::{Cx, Flow};
use crate::engine::config::{Mode, Reprotect};
use crate::engine::event::{Event, FlowState, NotReprotected, SoloReason};
use crate::engine::headers::Headers;
use crate::engine::leg::{Leg, LegOptions, LegState};
use crate::engine::limits;
use crate::engine::pack::fields;
use crate::engine::planted::{Bug, on};
use crate::engine::time::Instant;
use crate::engine::{LegId, SyncScope};
use crate::protocol::Quiet;
use crate::wire::{Offset, Segment};

/// How often a second leg was asked for since the server came back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    count: u8,
    /// The next one is not before this.
    not_before: Option<Instant>,
    /// The second leg begins there, and has not given a whole answer yet.
    trial: Option<Offset>,
    /// An earlier process has heard what the client asked: an answer may be outstanding of which
    /// this one does not know.
    is_barred: bool,
}

impl Tries {
    fn begin(&mut self, now: Instant) {
        // What has lasted begins anew.
        let lasted = |at: Instant| now >= at + limits::REPROTECT_LASTS;
        if self.not_before.is_some_and(lasted) {
            self.count = 0;
        }
        self.not_before = Some(now + limits::REPROTECT_PAUSE * (1 << (2 * self.count.min(4))));
        self.count += 1;
    }

    /// The server was reset: a SYN that overtook the reset would open what that one ends.
    pub fn wait_after_reset(&mut self, now: Instant) {
        let at = now + limits::REPROTECT_AFTER_RESET;
        self.not_before = Some(self.not_before.map_or(at, |not_before| not_before.max(at)));
    }

    /// Of a flow that an earlier process began.
    pub fn barred() -> Self {
        Self { is_barred: true, ..Self::default() }
    }

    fn are_left(self) -> bool {
        !self.is_barred && self.count < limits::REPROTECT_TRIES
    }
}

impl Flow {
    /// Whether a second leg may be asked for some time, as far as the flow is concerned.
    pub fn is_to_reprotect(&self) -> bool {
        let v = &self.visible;
        self.state == FlowState::Solo
            && matches!(self.leg(self.backup()).state, LegState::Absent | LegState::Scrub)
            && self.comparison.is_following()
            && self.comparison.reader().is_some_and(|reader| reader.http().is_some())
            && self.tries.are_left()
            && v.is_open
            && v.fin.is_none()
            && v.reset.is_none()
            && self.client.fin.is_none()
    }

    /// Whether it could be asked for now.
    pub fn may_reprotect(&self, now: Instant) -> bool {
        self.is_to_reprotect()
            && self.tries.not_before.is_none_or(|at| now >= at)
            && self.is_between_messages()
    }

    /// Every request is answered, and everything said was taken by the other end.
    fn is_between_messages(&self) -> bool {
        let (v, leg) = (&self.visible, self.leg(self.primary));
        let reader = self.comparison.reader().filter(|reader| reader.raw().is_none());
        let quiet = reader.and_then(|reader| reader.quiet());
        let is_http = matches!(quiet, Some(Quiet::Http { is_recognized: true, .. }));
        let is_between = is_http && self.comparison.is_quiet() || on(Bug::ReprotectAnywhere);
        let at = v.released;
        let is_all_shown = leg.said() == at && leg.voice.nxt() == at && !leg.voice.has_island();
        let is_all_read = self.comparison.agreed() == at && v.ahead.is_empty();
        let asked = self.client.nxt;
        let is_all_taken = leg.acked == asked && v.told_ack == asked && self.client.una == at;
        let listens = self.listener.as_ref().is_none_or(|listener| listener.is_quiet());
        leg.is_open()
            && leg.is_learned
            && leg.reset_at.is_none()
            && self.client.is_learned
            && is_between
            && is_all_shown
            && is_all_read
            && is_all_taken
            && listens
            && v.instead.is_empty()
            && self.stray.is_none()
    }

    /// Asks the server that has no leg for one.
    pub fn reprotect(&mut self, cx: &mut Cx<'_>) {
        if !self.may_reprotect(cx.now) || cx.config.mode != Mode::Protect {
            return;
        }
        let id = self.backup();
        let at = self.client.nxt;
        self.tries.begin(cx.now);
        let mut leg = Leg::new(LegState::SynSent, cx.now);
        (leg.acked, leg.sent, leg.edge) = (at, at, at);
        *self.leg_mut(id) = leg;
        (self.syn_at, self.syn_resent) = (cx.now, 0);
        self.send_syn_to(cx, id);
        self.settle(cx);
    }

    /// A second leg was asked for and has not answered.
    pub(super) fn awaits_second(&self) -> bool {
        self.state == FlowState::Solo && self.leg(self.backup()).state == LegState::SynSent
    }

    /// Whether a flow that has become Solo follows its protocol, to know its boundaries.
    pub(super) fn follows_alone(&self, cx: &Cx<'_>) -> bool {
        cx.config.sync_scope == Some(SyncScope::Machine)
            || cx.config.reprotect == Reprotect::Idle
            || self.comparison.makes_offers()
            || self.comparison.is_reframed
    }

    /// While it is awaited: it is asked again, or called off.
    pub(super) fn settle_second(&mut self, cx: &mut Cx<'_>) {
        if !self.awaits_second() {
            return;
        }
        let (leg, primary) = (self.leg(self.backup()), self.leg(self.primary));
        let is_ending = self.client.fin.is_some()
            || self.visible.fin.is_some()
            || primary.voice.fin().is_some()
            || primary.reset_at.is_some();
        let asked = self.client.nxt.since(leg.acked);
        let shown = self.visible.released.since(self.comparison.agreed());
        let is_much =
            asked > limits::REQUEST_BYTES_MAX / 2 || shown > limits::REPROTECT_SHOWN_BYTES_MAX;
        if is_ending {
            self.let_second_go(cx, NotReprotected::Ended);
        } else if is_much || !self.comparison.is_following() {
            self.let_second_go(cx, NotReprotected::Overtaken);
        } else if cx.now >= self.syn_at + limits::REPROTECT_WAIT {
            self.let_second_go(cx, NotReprotected::Silent);
        } else {
            self.end_known_older(cx);
            while self.next_second_syn_at().is_some_and(|at| cx.now >= at) {
                self.syn_resent += 1;
                let id = self.backup();
                if cx.allowance.take(cx.now, id) {
                    self.send_syn_to(cx, id);
                }
            }
        }
    }

    fn next_second_syn_at(&self) -> Option<Instant> {
        limits::SYN_RESEND_ALONE.get(self.syn_resent).map(|&after| self.syn_at + after)
    }

    /// When [`Self::settle_second`] has something to do.
    pub(super) fn second_deadline(&self) -> Option<Instant> {
        let limit = self.syn_at + limits::REPROTECT_WAIT;
        let next = self.next_second_syn_at().into_iter().chain(self.older_deadline());
        self.awaits_second().then(|| next.fold(limit, Instant::min))
    }

    /// The flow goes on with one server; what the other one may have of it is reset exactly.
    pub(super) fn let_second_go(&mut self, cx: &mut Cx<'_>, why: NotReprotected) {
        let id = self.backup();
        self.detach(cx, id);
        cx.event(Event::NotReprotected { flow: self.key, server: id, why });
    }

    /// The server has refused.
    pub(super) fn refuse_second(&mut self, cx: &mut Cx<'_>, id: LegId) {
        self.leg_mut(id).state = LegState::Absent;
        let why = NotReprotected::Refused;
        cx.event(Event::NotReprotected { flow: self.key, server: id, why });
    }

    /// The server has answered: from the boundary on it takes part.
    pub(super) fn open_second(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment) {
        let (now, agreed, nxt) = (cx.now, self.comparison.agreed(), self.client.nxt);
        let has_stamps = self.visible.has_timestamps;
        let shown = self.visible.clock.expected(now);
        let leg = self.leg_mut(id);
        let asked = leg.acked;
        leg.state = LegState::Open;
        leg.voice.begin_at(seg.seq, agreed + u64::from(on(Bug::SecondLegOneOff)));
        leg.options = LegOptions::of(seg);
        leg.window_max = u64::from(seg.window);
        leg.edge = asked + leg.window_max;
        leg.headers = Some(Headers::of(&seg.l2, &seg.l3));
        (leg.heard_at, leg.given_at) = (now, now);
        leg.has_progressed(now);
        leg.owes_ack = true;
        if let Some((value, echo)) = seg.options.timestamps {
            leg.clock.heard(value, echo);
        }
        if let Some(shown) = shown.filter(|_| has_stamps) {
            leg.continue_clock(now, shown);
        }
        if on(Bug::SecondLegMisses) {
            (leg.acked, leg.sent) = (nxt, nxt);
        }
        self.tries.trial = Some(agreed);
        self.comparison.pair();
        (self.pinned, self.behind, self.owes) = ([None; 2], [None; 2], [None; 2]);
        (self.diverged_until, self.fin_held_at) = (None, None);
        let is_equal = self.visible.released == agreed && nxt == asked;
        self.solo = None;
        cx.event(Event::Reprotected { flow: self.key, server: id });
        self.set_state(cx, if is_equal { FlowState::Paired } else { FlowState::Lagging }, None);
    }

    /// The second leg has still to show that it knows what the client's requests rest on.
    pub(super) fn is_on_trial(&self) -> bool {
        self.tries.trial.is_some()
    }

    /// Its first answer was whole, and equal.
    pub(super) fn end_trial(&mut self) {
        let agreed = self.comparison.agreed();
        let is_answered = |from: &mut Offset| {
            agreed > *from
                && self.comparison.reader().is_none_or(|r| r.is_complete() != Some(false))
        };
        if self.tries.trial.as_mut().is_some_and(is_answered) {
            self.tries.trial = None;
        }
    }

    /// Its first answer differs: no news about the servers' contents, and nobody waits.
    pub(super) fn fail_second(&mut self, cx: &mut Cx<'_>) {
        self.let_second_go(cx, NotReprotected::Differs);
        self.give_up_reprotecting();
        self.set_state(cx, FlowState::Solo, Some(SoloReason::Diverged));
        self.compare(cx); // what the other one says is read on
    }

    /// The server came back, or has other contents: it may be asked again.
    pub(super) fn forget_tries(&mut self) {
        self.tries = Tries { is_barred: self.tries.is_barred, ..Tries::default() };
    }

    /// The two servers' answers differ once they are compared again: that will not change.
    pub(super) fn give_up_reprotecting(&mut self) {
        if self.tries.count > 0 {
            self.tries.count = limits::REPROTECT_TRIES;
            self.tries.not_before = None;
        }
        self.tries.trial = None;
    }
}

fields!(Tries { count, not_before, trial, is_barred });
