//! A flow on which nothing happens is kept as a string of bytes, a seventh of its size: most
//! connections of a gateway wait for a person.
//!
//! Nothing is left out but what can be no more of use when nothing is under way. Whatever happens
//! to it wakes it; afterwards it is put to rest at once, or after another while of quiet.

use super::{ClientEnd, Flow, Opener, Stray, Visible};
use crate::engine::cookies::Promise;
use crate::engine::event::{FlowKey, FlowState};
use crate::engine::flow::icmp::DeferredError;
use crate::engine::limits;
use crate::engine::pack::{Pack, Reader, Writer, fields, spread, squeeze, variants};
use crate::engine::time::Instant;
use crate::protocol::Rules;
use crate::wire::{Frame, Offset};

impl Flow {
    /// The flow as it was put to rest; `rules` say what may differ.
    pub fn wake(bytes: &[u8], rules: &Rules) -> Self {
        Self::unpack(&mut Reader::new(&spread(bytes), rules))
    }

    /// The same of bytes that somebody else may have made.
    pub fn wake_foreign(bytes: &[u8], rules: &Rules) -> Option<Self> {
        let bytes = spread(bytes);
        let mut r = Reader::new(&bytes, rules);
        let flow = Self::unpack(&mut r);
        r.is_good_so_far().then_some(flow)
    }

    /// Puts it to rest, if its time has come and nothing is under way.
    pub fn rest(&mut self, now: Instant) -> Option<Vec<u8>> {
        let waits_for_its_end_only = self.timer == Some(self.expires_at);
        if !waits_for_its_end_only || self.rest_at().is_none_or(|at| now < at) {
            return None;
        }
        self.visible.repeated.retain(|&(.., at)| now.since(at) < limits::REPEAT_QUIET);
        for leg in &mut self.legs {
            leg.clock.settle();
            leg.hole_quiet_until = leg.hole_quiet_until.filter(|&until| now < until);
        }
        let mut w = Writer::default();
        self.pack(&mut w);
        Some(squeeze(w.as_bytes()))
    }

    /// When it may rest, if nothing happens until then.
    pub(super) fn rest_at(&self) -> Option<Instant> {
        let heard_at = self.legs.iter().map(|leg| leg.heard_at).max()?.max(self.client.heard_at);
        self.is_quiet().then(|| heard_at + limits::REST_AFTER)
    }

    /// Whether it can be packed whole: it keeps nothing that comes once in a long time only.
    pub fn is_packable(&self) -> bool {
        self.stray.is_none()
            && self.promise.is_none()
            && self.legs.iter().all(|leg| leg.deferred_error.is_none())
    }

    fn is_quiet(&self) -> bool {
        let v = &self.visible;
        let is_settled =
            matches!(self.state, FlowState::Paired | FlowState::Solo | FlowState::TimeWait)
                && self.held == 0
                && self.client.is_learned
                && self.client.una >= self.shown_end().max(Offset::START);
        let keeps_nothing = v.syn_ack.is_none()
            && self.stray.is_none()
            && self.challenge.is_none()
            && self.promise.is_none()
            && v.instead.is_empty();
        is_settled
            && keeps_nothing
            && !self.awaits_second()
            && self.pinned == [None; 2]
            && self.behind == [None; 2]
            && self.owes == [None; 2]
            && self.comparison.is_quiet()
            && self.listener.as_ref().is_none_or(|listener| listener.is_quiet())
            && self.legs.iter().all(|leg| {
                let has_all = !leg.is_open() || leg.acked >= self.client.nxt;
                let is_learned = leg.is_learned || !leg.is_open();
                has_all && is_learned && leg.deferred_error.is_none() && leg.resend_at.is_none()
            })
    }
}

/// What few flows have is kept apart from them.
macro_rules! kept_apart {
    ($($type:ty),*) => {$(
        impl Pack for Box<$type> {
            fn pack(&self, w: &mut Writer) {
                (**self).pack(w);
            }
            fn unpack(r: &mut Reader<'_>) -> Self {
                Self::new(Pack::unpack(r))
            }
        }
    )*};
}
kept_apart!(Frame, FlowKey);

/// What a flow that is packed has none of: it does not rest, and [`Flow::is_packable`] says no.
macro_rules! never_packed {
    ($($type:ty),*) => {$(
        impl Pack for Box<$type> {
            const IS_PACKED: bool = false;
            fn pack(&self, _: &mut Writer) {
                unreachable!("a flow that keeps this is not packed")
            }
            fn unpack(_: &mut Reader<'_>) -> Self {
                unreachable!("a flow that keeps this is not packed")
            }
        }
    )*};
}
never_packed!(Stray, Promise, DeferredError);

fields!(ClientEnd {
    iss,
    mss,
    window_scale,
    offers_sack,
    offers_timestamps,
    headers,
    nxt,
    una,
    edge,
    window_max,
    fin,
    clock,
    recent,
    sacked,
    round_trip,
    timed,
    heard_at,
    asked_at,
    is_learned,
});
fields!(Visible {
    iss,
    window_scale,
    has_sack,
    has_timestamps,
    is_open,
    syn_ack,
    released,
    ahead,
    fin,
    reset,
    told_ack,
    told_edge,
    dup_acks,
    told_sack,
    owes_ack,
    is_asking,
    clock,
    repeated,
    probe_passed_at,
    takeover,
    takeover_at,
    differs_until,
    foreign_until,
    instead,
    answered,
    verified_bytes,
});
variants!(Opener { Client, Servers });
fields!(Flow {
    key,
    opener,
    slot,
    opened_at,
    state,
    solo,
    primary,
    legs,
    client,
    visible,
    request,
    listener,
    shown,
    comparison,
    diverged_until,
    first_answer_at,
    syn_at,
    syn_resent,
    pinned,
    behind,
    owes,
    is_soft_told,
    fin_held_at,
    control,
    ask_at,
    asked,
    taken,
    stray,
    tries,
    challenge,
    promise,
    expires_at,
    timer,
    is_gone,
    held,
});
