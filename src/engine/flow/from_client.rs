//! What the client says: noted once, copied to every live leg in that leg's own numbers.
//!
//! The client is authoritative about its own stream; its acks and window edges only ever grow.
//! RFC 9293 3.10.7, RFC 5961 for resets and stray SYNs.

use bytes::Bytes;

use super::feed::Copied;
use super::{ClientEnd, Cx, Flow, Opener};
use crate::engine::event::{FlowState, RejectReason};
use crate::engine::headers::Headers;
use crate::engine::leg::LegState;
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::time::Instant;
use crate::engine::{LegId, Link};
use crate::wire::{Offset, Segment, Seq, TcpFlags, TsDelta};

/// Client bytes are taken this far beyond the edge that it was shown.
const AHEAD_BYTES_MAX: u64 = 1 << 20;

impl Flow {
    /// A segment from the client.
    pub fn on_client_segment(&mut self, cx: &mut Cx<'_>, seg: &Segment, body: Bytes) {
        self.client.heard_at = cx.now;
        self.client.headers = Headers::of(&seg.l2, &seg.l3);
        if self.visible.reset.is_some() {
            return self.reset_client_again(cx, seg);
        }
        if seg.flags.has(TcpFlags::SYN) {
            self.on_client_syn(cx, seg);
        } else if seg.flags.has(TcpFlags::RST) {
            self.on_client_reset(cx, seg);
        } else if seg.flags.has(TcpFlags::ACK) && self.visible.is_open {
            self.on_client_ack_or_data(cx, seg, body);
        } else if seg.flags.has(TcpFlags::ACK) && self.opener == Opener::Servers {
            self.end_older_of_client(cx, seg);
        } else if self.hear_early(cx, seg, body) {
            return;
        } else {
            return cx.reject(Link::Client, RejectReason::OutOfWindow);
        }
        self.stay_alive(cx.now);
        self.settle(cx);
    }

    fn on_client_syn(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        if self.opener == Opener::Servers {
            return self.on_called_client(cx, seg);
        }
        if seg.seq == self.client.iss.raw() {
            match self.state {
                FlowState::Opening => {
                    self.expires_at = cx.now + limits::OPENING_MAX;
                    if self.first_answer_at.is_none() {
                        self.tell_unanswered(cx);
                    }
                    self.send_syn(cx);
                }
                _ => self.repeat_syn(cx),
            }
            return;
        }
        self.on_stray_syn(cx, seg);
    }

    /// A reset ends the flow only if its number is exact; any other one is for the servers to
    /// challenge (RFC 5961 3).
    fn on_client_reset(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        if self.state == FlowState::Opening && self.opener == Opener::Servers {
            return self.on_called_reset(cx, seg);
        }
        if self.state == FlowState::Opening {
            if self.ends_older(cx, seg) {
                return;
            }
            let at = self.client.iss.offset(Seq::new(seg.seq), Offset::START);
            if at == Offset::START || at == Offset::SYN {
                self.reset_legs(cx);
                return self.close_after_reset(cx);
            }
            return cx.reject(Link::Client, RejectReason::InexactReset);
        }
        let at = self.client.iss.offset(Seq::new(seg.seq), self.client.nxt);
        let exact = at == self.client.nxt
            || at == self.visible.told_ack
            || self.legs.iter().any(|l| l.is_open() && at == l.acked);
        if exact {
            self.reset_legs(cx);
            return self.close_after_reset(cx);
        }
        cx.reject(Link::Client, RejectReason::InexactReset);
        self.visible.is_asking = true;
        for id in LegId::ALL {
            if self.leg(id).is_open() {
                self.send_leg(cx, id, at, seg.flags, Bytes::new());
            }
        }
    }

    pub(super) fn on_client_ack_or_data(&mut self, cx: &mut Cx<'_>, seg: &Segment, body: Bytes) {
        if !self.client.is_learned {
            self.learn_client(cx, seg);
            if self.state == FlowState::Solo && !self.leg(self.primary).is_open() {
                return self.reset_client(cx); // nobody can carry it on exactly
            }
        }
        let at = self.client.iss.offset(Seq::new(seg.seq), self.client.nxt);
        let ack = self.visible.iss.offset(Seq::new(seg.ack), self.visible.released);
        let body = body.slice(..seg.payload_len.min(body.len()));
        let len = body.len() as u64;
        let client = &self.client;
        let is_far = at > client.nxt.max(self.visible.told_edge) + AHEAD_BYTES_MAX;
        let is_ancient = ack + client.window_max.max(AHEAD_BYTES_MAX) < client.una;
        if is_far || is_ancient || ack > self.shown_end() {
            // Above what the client can know or send, or of an older connection: RFC 5961 5.
            return cx.reject(Link::Client, RejectReason::OutOfWindow);
        }
        self.note_client_ack(cx.now, seg, ack);
        self.resume_protocol(cx, at, &body);
        let is_outdated = self.is_outdated(seg, at);
        let is_fin = seg.flags.has(TcpFlags::FIN);
        let end = at + len + u64::from(is_fin);
        if is_outdated && end > self.client.nxt && (len > 0 || is_fin) {
            // A server that looks at no timestamps would take what the other one drops.
            self.visible.owes_ack = true;
            return;
        }
        if !is_outdated {
            if at + len > self.client.nxt {
                self.client.asked_at = cx.now;
            }
            self.note_client_data(seg, at, &body);
        }
        if self.state == FlowState::TimeWait && end <= self.visible.told_ack {
            // Both ends have everything; who asks again has missed the last ack.
            self.visible.owes_ack |= len > 0 || is_fin;
            return;
        }
        let is_old = at + len <= self.visible.told_ack && (len > 0 || at < self.visible.told_ack);
        let is_probe = len == 0 && !is_fin && at < self.client.nxt;
        let is_zero_window_probe = len > 0 && at >= self.visible.told_edge;
        let is_asking = is_old || is_probe || is_zero_window_probe || (is_outdated && len > 0);
        self.visible.is_asking |= is_asking && !on(Bug::ClientProbeUnanswered);
        self.leave_opaque(cx); // before the backup hears of it
        self.listen(cx);
        self.mirror(cx, seg, at, body, is_outdated);
    }

    /// An old duplicate by its timestamp: the servers drop and acknowledge it (PAWS, RFC 7323 5.3),
    /// so nothing of it is kept for them. They allow for a tick.
    fn is_outdated(&mut self, seg: &Segment, at: Offset) -> bool {
        let Some((value, _)) = seg.options.timestamps else { return false };
        let client = &mut self.client;
        let recent = *client.recent.get_or_insert(value);
        if value.is_after(recent) && at <= self.visible.told_ack {
            client.recent = Some(value);
        }
        recent.is_after(value.shift(TsDelta(1)))
    }

    /// The ack, the window and the SACK blocks. Edges only grow (RFC 7323 2.4 lets the field step
    /// back by rounding; the offset does not).
    fn note_client_ack(&mut self, now: Instant, seg: &Segment, ack: Offset) {
        let shift = self.client_shift();
        let client = &mut self.client;
        if let Some((value, echo)) = seg.options.timestamps
            && !client.clock.0.is_after(value)
        {
            client.clock = (value, echo);
        }
        if ack < client.una {
            return;
        }
        client.note_ack(now, ack);
        if ack >= Offset::START {
            self.visible.syn_ack = None; // the client has it
        }
        let window = u64::from(seg.window) << shift;
        client.window_max = client.window_max.max(window);
        client.edge = client.edge.max(ack + window);
        client.sacked = Vec::new();
        let near = self.visible.released;
        for &(left, right) in seg.options.sack.as_slice() {
            let left = self.visible.iss.offset(Seq::new(left), near);
            let right = self.visible.iss.offset(Seq::new(right), near);
            if left < right {
                self.client.sacked.push((left, right));
            }
        }
    }

    /// The scale of the client's window fields.
    pub(super) fn client_shift(&self) -> u8 {
        self.visible.window_scale.and(self.client.window_scale).unwrap_or(0)
    }

    /// Whether the client's window is closed. What is left of the edge that it once granted may be
    /// less than its scale can say.
    pub(super) fn is_client_closed(&self) -> bool {
        self.client.edge.since(self.client.una) >> self.client_shift() == 0
    }

    /// Data and FIN: kept while a leg may need them again.
    fn note_client_data(&mut self, seg: &Segment, at: Offset, body: &Bytes) {
        let len = body.len() as u64;
        let room = match self.state {
            FlowState::Lagging => limits::LAG_BYTES_MAX * 2,
            _ => limits::REQUEST_BYTES_MAX,
        };
        let end = at + len;
        // The very next bytes are always kept if a lagging leg depends on them (I4).
        if len > 0 && end.since(self.request.base()) <= room + limits::SUPER_FRAME_BYTES_MAX {
            self.request.insert(at, body.clone());
        }
        self.client.nxt = self.client.nxt.max(end);
        if seg.flags.has(TcpFlags::FIN) {
            self.client.fin = Some(end);
            self.client.nxt = self.client.nxt.max(end + 1);
        }
    }

    /// One copy to each live leg.
    fn mirror(
        &mut self,
        cx: &mut Cx<'_>,
        seg: &Segment,
        at: Offset,
        body: Bytes,
        is_outdated: bool,
    ) {
        let keep = TcpFlags::FIN.with(TcpFlags::PSH).with(TcpFlags::ACK).with(TcpFlags::URG);
        let flags = TcpFlags(seg.flags.0 & keep.0);
        let end = at + body.len() as u64;
        for id in [self.primary, self.backup()] {
            match self.leg(id).state {
                LegState::Open => {}
                LegState::SynSent | LegState::Absent | LegState::Scrub | LegState::Fenced => {
                    continue;
                }
            }
            let is_late = self.is_fed(id);
            let says_nothing = body.is_empty() && !flags.has(TcpFlags::FIN);
            if is_late && says_nothing && at >= self.leg(id).sent {
                self.leg_mut(id).owes_ack = true; // at the position that this leg has reached
                continue;
            }
            // Where it counts otherwise, or has come later than the other one, the client does not
            // know where its room ends.
            let is_unknown = self.leg(id).ear.is_shifted() || self.grants_less(id);
            let has_no_room = is_unknown && end > self.leg(id).edge;
            if end > self.clear_to(cx, id) || has_no_room && !says_nothing {
                let leg = self.leg_mut(id);
                leg.is_fed |= !says_nothing; // once it is known what it has to hear
                leg.owes_ack |= says_nothing;
                continue;
            }
            if is_late && (end > self.leg(id).edge || at > self.leg(id).sent) {
                continue; // custody: the gateway sends it when the leg can take it
            }
            if !is_outdated {
                let leg = self.leg_mut(id);
                leg.sent = leg.sent.max(leg.ear.ceil(end));
            }
            let (from, rest) = self.without_acked(id, at, body.clone(), flags.has(TcpFlags::FIN));
            let stamp = seg.options.timestamps.map(|(value, _)| value);
            let urgent = seg.urgent.saturating_sub((body.len() - rest.len()) as u16);
            self.send_leg_copy(cx, id, from, flags, rest, Copied { urgent, stamp });
        }
    }
}

impl ClientEnd {
    /// It has acknowledged everything up to `ack`.
    pub(super) fn note_ack(&mut self, now: Instant, ack: Offset) {
        if let Some((_, shown_at)) = self.timed.filter(|&(end, _)| ack >= end) {
            let sample = now.since(shown_at);
            self.round_trip = sample.max(self.round_trip * 7 / 8 + sample / 8);
            self.timed = None;
        }
        self.una = ack;
    }
}
