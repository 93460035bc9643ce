//! What a server says: noted in its leg. Nothing of it reaches the client here; release decides.

use bytes::Bytes;

use super::{Cx, Flow, Opener, Report, Stray};
use crate::engine::alignment::{Own, Round};
use crate::engine::event::{FlowState, RejectReason};
use crate::engine::headers::Headers;
use crate::engine::leg::LegState;
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::ranges::Ranges;
use crate::engine::{LegId, Link};
use crate::wire::{Offset, Segment, TcpFlags};

impl Flow {
    /// A segment from a server's leg.
    pub fn on_leg_segment(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment, body: Bytes) {
        match self.leg(id).state {
            LegState::SynSent => self.on_leg_answer(cx, id, seg),
            LegState::Open => self.on_open_leg(cx, id, seg, body),
            // Absent too may speak: of a SYN that it was sent before it was left out.
            LegState::Scrub | LegState::Absent => return self.scrub(cx, id, seg),
            LegState::Fenced if on(Bug::FencedLegHeard) => {
                (self.leg_mut(id).state, self.primary) = (LegState::Open, id);
                self.on_open_leg(cx, id, seg, body);
            }
            LegState::Fenced => return cx.reject(Link::Server(id), RejectReason::Fenced),
        }
        self.settle(cx);
    }

    /// A leg that takes no part speaks: reset it exactly, with the number it asks for (LV6).
    fn scrub(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment) {
        if self.leg(id).state == LegState::Scrub && is_call(seg) && self.opener == Opener::Servers {
            self.refuse_leg(cx, id, seg.seq.wrapping_add(1));
        }
        let speaks = seg.flags.has(TcpFlags::ACK) && !seg.flags.has(TcpFlags::RST);
        if speaks && !on(Bug::DetachedNotReset) {
            self.send_leg_reset(cx, id, seg.ack);
            self.tries.wait_after_reset(cx.now);
            if let Some(stray) = &mut self.stray {
                stray.answers[id.index()] = None; // it has begun anew in vain
            }
        }
        cx.reject(Link::Server(id), RejectReason::OldGeneration);
    }

    fn on_open_leg(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment, body: Bytes) {
        let now = cx.now;
        self.stay_alive(now);
        if !self.leg(id).is_learned && !seg.flags.has(TcpFlags::SYN) {
            if seg.flags.has(TcpFlags::RST) && seg.seq == 0 {
                // It refuses a SYN of before, by a number that says nothing (RFC 9293 3.10.7.1).
                return cx.reject(Link::Server(id), RejectReason::InexactReset);
            }
            self.learn_leg(cx, id, seg);
        }
        let at = self.leg(id).voice.place(seg.seq);
        let leg = self.leg_mut(id);
        leg.heard_at = now;
        leg.headers = Some(Headers::of(&seg.l2, &seg.l3));
        if let Some((value, echo)) = seg.options.timestamps {
            leg.clock.heard(value, echo);
        }
        if seg.flags.has(TcpFlags::RST) {
            return self.on_leg_reset(cx, id, at);
        }
        if is_call(seg) && self.opener == Opener::Servers {
            return self.on_repeated_call(cx, id, seg);
        }
        if seg.flags.has(TcpFlags::SYN) {
            let accepted = |stray: &&mut Box<Stray>| seg.ack == stray.syn.seq.wrapping_add(1);
            if let Some(stray) = self.stray.as_mut().filter(accepted) {
                stray.answers[id.index()] = Some(*seg);
                return;
            }
            return self.on_repeated_syn_ack(cx, id);
        }
        if !seg.flags.has(TcpFlags::ACK) {
            return cx.reject(Link::Server(id), RejectReason::OutOfWindow);
        }
        let (iss, nxt) = (self.client.iss, self.client.nxt);
        let leg = self.leg_mut(id);
        leg.on_ack(now, seg, iss, nxt);
        let body = body.slice(..seg.payload_len.min(body.len()));
        if body.is_empty() && !seg.flags.has(TcpFlags::FIN) {
            return self.on_bare_ack(cx, id, at);
        }
        self.on_leg_data(cx, id, seg, at, body);
    }

    /// A reset counts if it stands where the leg's stream may end (RFC 5961 3 for a middlebox).
    fn on_leg_reset(&mut self, cx: &mut Cx<'_>, id: LegId, at: Own) {
        if self.state == FlowState::TimeWait {
            return cx.reject(Link::Server(id), RejectReason::OldGeneration);
        }
        let leg = self.leg_mut(id);
        if !leg.voice.may_end_at(at) {
            return cx.reject(Link::Server(id), RejectReason::InexactReset);
        }
        if leg.reset_at.is_none() {
            leg.reset_at = Some(cx.now);
            if self.is_unfinished() {
                cx.reports.push(Report::UnfinishedEnd(id));
            }
        }
    }

    /// The leg has not heard the third ack; or the client has not heard the SYN-ACK.
    fn on_repeated_syn_ack(&mut self, cx: &mut Cx<'_>, id: LegId) {
        if self.client.una < Offset::START {
            if !self.not_just_repeated(cx, Offset::SYN, Offset::START, id).is_empty() {
                self.repeat_syn(cx);
            }
            return;
        }
        self.leg_mut(id).owes_ack = true;
        self.leg_mut(id).resend_at = Some(cx.now);
    }

    /// No data: an ack that was noted already, an answer that the client waits for, or a probe.
    fn on_bare_ack(&mut self, cx: &mut Cx<'_>, id: LegId, at: Own) {
        let voice = &mut self.leg_mut(id).voice;
        if voice.is_probe(at) {
            return self.on_leg_probe(cx, id);
        }
        if voice.is_stray(at) {
            return cx.reject(Link::Server(id), RejectReason::OutOfWindow);
        }
        voice.note_sent(at);
        if self.visible.is_asking && (id == self.primary || on(Bug::ChallengeTwice)) {
            self.visible.is_asking = on(Bug::ChallengeTwice);
            self.visible.owes_ack = true;
        }
    }

    /// A server's keep-alive or window probe. Answered here while the client is surely alive and
    /// its window open; passed on, seldom, when only the client can know.
    pub(super) fn on_leg_probe(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let is_closed = self.is_client_closed();
        let is_fresh = cx.now.since(self.client.heard_at) <= limits::CLIENT_FRESH;
        if !is_closed && is_fresh && !on(Bug::ProbesPassed) {
            self.leg_mut(id).owes_ack = true;
            return;
        }
        let every = match is_closed {
            true => limits::WINDOW_PROBE_PASS_EVERY,
            false => limits::PROBE_PASS_EVERY,
        };
        let passed = self.visible.probe_passed_at;
        let is_open = self.client.una >= Offset::START;
        if is_open && passed.is_none_or(|p| cx.now.since(p) >= every) {
            self.visible.probe_passed_at = Some(cx.now);
            let at = self.client.una.back(1);
            self.send_client(cx, at, TcpFlags::ACK, Bytes::new());
        }
    }

    fn on_leg_data(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment, at: Own, body: Bytes) {
        let len = body.len();
        let end = at + len as u64;
        let leg = self.leg_mut(id);
        if leg.voice.is_out_of_reach(end) {
            return cx.reject(Link::Server(id), RejectReason::OutOfWindow);
        }
        leg.gso_size = seg.gso_size.or(leg.gso_size.filter(|_| len < 256));
        if seg.flags.has(TcpFlags::FIN) {
            leg.voice.hear_fin(end);
            self.note_taken_fin();
        }
        let leg = self.leg_mut(id);
        let taken = leg.voice.hear(seg, at, body);
        if taken.has_progressed {
            leg.has_progressed_saying(cx.now);
        }
        if taken.shows_hole && self.misses_alone(id) {
            self.leg_mut(id).owes_ack = true;
        }
        let other = self.leg_mut(id.other());
        if taken.had <= other.said() && other.voice.has_island() {
            // Its hole may be its own only now, that this leg has said those bytes.
            let is_alone = other.is_open() && self.misses_alone(id.other());
            self.leg_mut(id.other()).owes_ack |= is_alone;
        }
        if taken.is_repetition || (len == 0 && self.visible.fin.is_some()) {
            if taken.is_known && !on(Bug::NoDsackToLeg) {
                self.leg_mut(id).voice.note_duplicate(at, end);
            }
            self.on_repeated_data(cx, id, at, end, seg.flags.has(TcpFlags::FIN));
        }
        let voice = &self.leg(id).voice;
        let is_beyond_room = voice.is_beyond_room(at);
        let (at, end) = (voice.shown(at, Round::Down), voice.shown(end, Round::Up));
        // Its values may have been shorter: then it was told of more room than the client has.
        let is_probe = len > 0 && (is_beyond_room || at >= self.client.edge);
        let other = self.leg(id.other());
        if is_probe && other.is_open() && other.said() < end && other.voice.has_no_room() {
            // A window probe of one byte, which waits for the other leg's: the client is asked.
            self.on_leg_probe(cx, id);
        }
        let is_paired = self.state == FlowState::Paired && self.client.is_learned;
        if at > self.comparison.agreed() && is_paired {
            self.release_ahead(cx, at, end);
        }
    }

    /// The next bytes of this leg were lost between it and the gateway: nobody else will ask for
    /// them again. An ack with SACK blocks does (they may be taken back, RFC 2018 8).
    pub(super) fn misses_alone(&self, id: LegId) -> bool {
        let said = self.leg(id).said();
        let other = self.leg(id.other());
        self.client.una > said || (other.is_open() && other.said() > said)
    }

    /// A range that this leg has said before. What the client may lack is shown again, once; the
    /// rest is absorbed and reported to the leg as a duplicate.
    fn on_repeated_data(&mut self, cx: &mut Cx<'_>, id: LegId, at: Own, end: Own, is_fin: bool) {
        let una = self.client.una;
        // Of a token that it repeats in part, or that was acknowledged to it before the client had
        // all of it, the client is shown again what it may lack.
        let voice = &self.leg(id).voice;
        let begins_behind_token = voice.own(una, Round::Up) == at;
        let end = match on(Bug::RepetitionNotMapped) {
            true => end.0,
            false => voice.shown(end, Round::Up),
        };
        let at = match begins_behind_token {
            true => una,
            false => voice.shown(at, Round::Down),
        };
        // Where a value may still be found, nobody knows what its bytes stand for.
        let known_to = self.comparison.plain_until();
        let end = match id == self.primary || end <= known_to {
            true => end,
            false => {
                self.leg_mut(id).owes_ack = true;
                known_to
            }
        };
        let fin_end = self.visible.fin.filter(|_| is_fin).map(|f| f + 1);
        if end.max(fin_end.unwrap_or(end)) <= una {
            // The client has it: this leg's ack was lost (LV1, LV2).
            self.leg_mut(id).owes_ack |= !on(Bug::RepetitionUnanswered);
            return;
        }
        if id == self.primary && end > self.visible.released && self.waits_for_window() {
            self.on_leg_probe(cx, id);
        }
        let (from, to) = (at.max(una), end.min(self.visible.released));
        for (from, to) in self.not_just_repeated(cx, from, to, id) {
            self.show_again(cx, from, to);
        }
        if let Some(fin_end) = fin_end.filter(|&f| f > una)
            && !self.not_just_repeated(cx, fin_end.back(1), fin_end, id).is_empty()
        {
            self.send_client(cx, fin_end.back(1), TcpFlags::FIN_ACK, Bytes::new());
        }
    }

    /// What this leg may show again of `[from, to)`: not what the other leg has just shown again.
    pub(super) fn not_just_repeated(
        &mut self,
        cx: &Cx<'_>,
        from: Offset,
        to: Offset,
        id: LegId,
    ) -> Vec<(Offset, Offset)> {
        if from >= to {
            return Vec::new();
        }
        let lately = &mut self.visible.repeated;
        lately.retain(|&(.., at)| cx.now.since(at) < limits::REPEAT_QUIET);
        let mut quiet = Ranges::default();
        for &(from, to, by, _) in lately.iter() {
            if by != id && !on(Bug::BothRepetitions) {
                quiet.insert(from, to);
            }
        }
        let parts = quiet.gaps(from, to);
        for &(from, to) in &parts {
            match lately.back_mut() {
                Some(last) if last.1 == from && last.2 == id => (last.1, last.3) = (to, cx.now),
                _ => lately.push_back((from, to, id, cx.now)),
            }
            if lately.len() > limits::REPEATS_KEPT {
                lately.pop_front();
            }
        }
        parts
    }
}

/// Whether `seg` begins a connection.
fn is_call(seg: &Segment) -> bool {
    seg.flags.has(TcpFlags::SYN) && !seg.flags.has(TcpFlags::ACK)
}
