//! Towards the legs: acks they are owed, window edges, and client bytes that one of them lost.
//!
//! A leg is told only what is true in its own numbers: an ack of at most what it sent (I6), echoes
//! of its own timestamps (I8), SACK blocks of bytes that it sent, duplicates as RFC 2883 has it.

use bytes::Bytes;

use super::{Cx, EMPTY, Flow};
use crate::engine::alignment::{Own, Round};
use crate::engine::clock::own_clock;
use crate::engine::event::{Event, FlowState};
use crate::engine::leg::LegState;
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::time::Duration;
use crate::engine::{LegId, Link};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Offset, SackBlocks, TcpFlags, TcpOptions, Tsval};

/// What a copy keeps of the client's segment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    /// The urgent pointer; 0 without one.
    pub(super) urgent: u16,
    /// The timestamp: an old one stays old, so that the server can tell (PAWS, RFC 7323 5).
    pub(super) stamp: Option<Tsval>,
}

impl Flow {
    /// Sends each open leg what it is owed.
    pub(super) fn feed_legs(&mut self, cx: &mut Cx<'_>) {
        for id in LegId::ALL {
            if !self.leg(id).is_open() {
                continue;
            }
            self.resend_request(cx, id);
            if self.is_fed(id) {
                self.feed_custody(cx, id);
            }
            self.refresh_leg(cx, id);
            self.deliver_error(cx, id);
        }
    }

    /// The ack that leg `id` may be sent: what the client has, at most what was heard from the leg.
    /// That is at most what it sent (I6); and bytes that a late leg has still to prove must come.
    fn ack_to_leg(&self, id: LegId) -> Own {
        let voice = &self.leg(id).voice;
        let round = if on(Bug::TokenAckedInPart) { Round::Up } else { Round::Down };
        let una = voice.own(self.client.una, round);
        if id == self.backup() && self.is_shown_in_span() {
            return self.ack_in_span(una, voice.heard_to());
        }
        if on(Bug::NoI6Clamp) || !self.leg(id).is_learned {
            return una.max(Own::START);
        }
        una.min(voice.heard_to()).max(Own::START.min(voice.nxt_own()))
    }

    /// The window edge that leg `id` may be told: the client's, not far ahead of the release.
    fn edge_to_leg(&self, cx: &Cx<'_>, id: LegId) -> Own {
        let leg = self.leg(id);
        let lead = self.visible.released + cx.lead_bytes_max();
        let least = leg.said() + 2 * u64::from(self.client.mss);
        let retain = self.client.una + limits::RETAIN_BYTES_MAX;
        let edge = self.client.edge.min(lead.max(least).min(retain));
        leg.voice.own(edge, Round::Down).max(leg.voice.told_edge())
    }

    /// LV1, LV2, LV8: a leg behind the client's ack, or short of window, is told at once.
    fn refresh_leg(&mut self, cx: &mut Cx<'_>, id: LegId) {
        if self.client.una < Offset::START {
            return; // the third ack is the client's to send
        }
        let ack = self.ack_to_leg(id);
        let edge = self.edge_to_leg(cx, id);
        let leg = self.leg(id);
        let is_behind = ack > leg.voice.told_ack() && !on(Bug::DropLv1);
        let two = 2 * u64::from(self.client.mss);
        let told = leg.voice.told_edge();
        let was_short = told < leg.voice.nxt_own() + two;
        let opens = was_short && edge >= told + two;
        if is_behind || opens || leg.owes_ack {
            self.send_leg(cx, id, self.next_to_leg(id), TcpFlags::ACK, EMPTY);
        }
    }

    /// The position of a segment without data to this leg: what it was sent last.
    fn next_to_leg(&self, id: LegId) -> Offset {
        let leg = self.leg(id);
        let fin_sent = self.client.fin.filter(|&f| leg.sent >= f).map(|f| f + 1);
        fin_sent.unwrap_or(leg.sent).max(leg.acked).min(self.client.nxt.max(Offset::START))
    }

    /// Client bytes that this leg lost and the gateway has: resent from here (1.6).
    fn resend_request(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let leg = self.leg(id);
        let from = leg.acked.max(Offset::START);
        let has_bytes = !self.request.slice_at(from).is_empty();
        let has_fin = self.client.fin == Some(from) && leg.acked <= from;
        let has_syn = self.owes_syn(id);
        let was_sent = leg.sent > from || has_fin || has_syn;
        let is_shut = has_bytes && !was_sent && self.waits_for_room(cx, id);
        if !(has_bytes || has_fin || has_syn) || !(was_sent || is_shut) {
            self.leg_mut(id).resend_at = None;
            return;
        }
        let hinted = self.is_resend_hinted(id);
        let wait = self.resend_wait(id, hinted);
        let leg = self.leg_mut(id);
        let since = leg.progress_at;
        let due = *leg.resend_at.get_or_insert(since.max(cx.now) + wait);
        // A hint that came after the timer was set brings it forward.
        let due = if hinted { due.min(cx.now + wait) } else { due };
        leg.resend_at = Some(due);
        let shows_hole = leg.dup_acks > 0 && !leg.sacked.is_empty() || leg.dup_acks >= 3;
        let fills_hole = shows_hole && leg.hole_quiet_until.is_none_or(|until| until <= cx.now);
        if cx.now < due && !fills_hole {
            return;
        }
        leg.resend_count += 1;
        // One that does not hear it either is not asked ever faster.
        let quiet = limits::HOLE_QUIET * (1 << (leg.resend_count - 1).min(8));
        leg.hole_quiet_until = Some(cx.now + quiet);
        let next = self.resend_wait(id, hinted);
        self.leg_mut(id).resend_at = Some(cx.now + next);
        if is_shut {
            self.send_leg(cx, id, from.back(1), TcpFlags::ACK, EMPTY);
        } else if cx.allowance.take(cx.now, id) {
            self.resend_from(cx, id, from);
        }
    }

    /// The other leg has acknowledged the range, or this leg shows what it misses.
    fn is_resend_hinted(&self, id: LegId) -> bool {
        let leg = self.leg(id);
        let other = self.leg(id.other());
        (other.is_open() && other.acked > leg.acked) || !leg.sacked.is_empty() || leg.dup_acks > 0
    }

    fn resend_wait(&self, id: LegId, hinted: bool) -> Duration {
        let n = self.leg(id).resend_count;
        if self.state == FlowState::Lagging && id == self.backup() {
            return (limits::RESEND_LAGGING * (1 << n.min(3))).min(limits::RESEND_MAX);
        }
        if hinted {
            let last = limits::RESEND_HINTED.len() - 1;
            let wait = limits::RESEND_HINTED[(n as usize).min(last)];
            let further = n.saturating_sub(last as u32).min(5);
            return (wait * (1 << further)).min(limits::RESEND_MAX);
        }
        (limits::RESEND_BLIND * (1 << n.min(5))).min(limits::RESEND_MAX)
    }

    /// Resends the bytes at `from`, up to what the leg has beyond them: one hole, or one segment.
    fn resend_from(&mut self, cx: &mut Cx<'_>, id: LegId, from: Offset) {
        if self.owes_syn(id) {
            return self.answer_leg(cx, id);
        }
        let leg = self.leg(id);
        let mss = u64::from(leg.options.mss);
        let hole_end = leg.sacked.first().map(|(f, _)| f);
        let max =
            hole_end.map_or(mss, |end| end.since(from).min(mss * limits::LAG_FLIGHT_SEGMENTS));
        let max = max.min(self.clear_to(cx, id).since(from));
        let Some(chunk) = self.request.chunk_at(from) else {
            // Only the FIN is missing.
            return self.send_leg(cx, id, from, TcpFlags::FIN_ACK, EMPTY);
        };
        let chunk = chunk.slice(..chunk.len().min(max.max(1) as usize));
        let bytes = chunk.len() as u32;
        let end = self.leg(id).ear.ceil(from + chunk.len() as u64);
        let is_last = self.client.fin == Some(end);
        let flags = if is_last { TcpFlags::FIN_ACK } else { TcpFlags::ACK };
        let leg = self.leg_mut(id);
        leg.sent = leg.sent.max(end);
        cx.event(Event::RequestResent { flow: self.key, to: id, bytes });
        self.send_leg(cx, id, from, flags.with(TcpFlags::PSH), chunk);
    }

    /// Whether a leg gets the client's bytes in order from here, not when the client sends them.
    pub(super) fn is_fed(&self, id: LegId) -> bool {
        (self.state == FlowState::Lagging && id == self.backup()) || self.leg(id).is_fed
    }

    /// A lagging leg gets what only the gateway still holds, as fast as it takes it (1.7).
    fn feed_custody(&mut self, cx: &mut Cx<'_>, id: LegId) {
        loop {
            let leg = self.leg(id);
            let from = leg.sent.max(leg.acked);
            let mss = u64::from(leg.options.mss);
            let flight = leg.acked + mss * limits::LAG_FLIGHT_SEGMENTS;
            let limit = leg.ear.floor(leg.edge.min(flight).min(self.clear_to(cx, id)));
            let Some(chunk) = self.request.chunk_at(from).filter(|_| from < limit) else { break };
            let chunk = chunk.slice(..chunk.len().min(limit.since(from) as usize));
            let end = leg.ear.ceil(from + chunk.len() as u64);
            let is_last = self.client.fin == Some(end);
            let flags = if is_last { TcpFlags::FIN_ACK } else { TcpFlags::ACK };
            self.leg_mut(id).sent = end;
            self.send_leg(cx, id, from, flags.with(TcpFlags::PSH), chunk);
        }
        let asked = self.client.fin.unwrap_or(self.client.nxt);
        let leg = self.leg_mut(id);
        leg.is_fed &= leg.sent < asked;
    }

    /// Sends a segment to a leg, in its numbers, with everything that it is owed.
    pub(super) fn send_leg(
        &mut self,
        cx: &mut Cx<'_>,
        id: LegId,
        at: Offset,
        flags: TcpFlags,
        payload: Bytes,
    ) {
        self.send_leg_copy(cx, id, at, flags, payload, Copied::default());
    }

    /// Like [`Self::send_leg`], for a copy of a segment of the client.
    pub(super) fn send_leg_copy(
        &mut self,
        cx: &mut Cx<'_>,
        id: LegId,
        at: Offset,
        flags: TcpFlags,
        payload: Bytes,
        copied: Copied,
    ) {
        if cx.overwritten == Some(id) {
            self.leg_mut(id).owes_ack = true; // nothing of this is told
            return;
        }
        let ack = self.ack_to_leg(id);
        let edge = self.edge_to_leg(cx, id);
        let options = self.options_to_leg(cx, id, ack, copied.stamp);
        let leg = self.leg(id);
        // What it has acknowledged is answered, but no ack is read from it (RFC 9293 3.10.7.4).
        let end = at + payload.len() as u64 + u64::from(flags.has(TcpFlags::FIN));
        let is_old = at < leg.acked && end <= leg.acked;
        let (heard_at, payload) = leg.ear.hear(at, payload);
        let urgent = match copied.urgent {
            0 => 0,
            ahead => leg.ear.own(at + u64::from(ahead), Round::Up).since(heard_at) as u16,
        };
        let shift = match (leg.options.window_scale, self.client.window_scale) {
            (Some(_), Some(shift)) => shift,
            _ => 0,
        };
        let unit = if on(Bug::EdgeRoundedUp) { (1 << shift) - 1 } else { 0 };
        let window = u16::try_from((edge.since(ack) + unit) >> shift).unwrap_or(u16::MAX);
        let room = leg.options.mss.saturating_sub(build::tcp_options_len(&options) as u16).max(1);
        let delta_sign = on(Bug::DeltaSign) && id == self.backup();
        let leg_ack = match delta_sign {
            true => leg.voice.number(ack).wrapping_add(1),
            false => leg.voice.number(ack),
        };
        let mut fields = TcpFields {
            src_port: self.key.client.port(),
            dst_port: self.key.server.port(),
            seq: self.client.iss.at(heard_at.0).raw(),
            ack: leg_ack,
            flags,
            window,
            urgent,
            options,
        };
        let leg = self.leg_mut(id);
        let told_edge = ack + (u64::from(window) << shift);
        leg.owes_ack = is_old && leg.voice.is_news(ack, told_edge);
        if !is_old && leg.voice.tell(ack, told_edge) {
            leg.given_at = cx.now;
        }
        let (l2, l3) = self.client_headers();
        // What cannot stand in one packet of the leg's size is cut; a super-frame has its limit.
        let mut rest = payload;
        loop {
            let n = rest.len().min(limits::SUPER_FRAME_BYTES_MAX as usize);
            let part = rest.split_to(n);
            let is_last = rest.is_empty();
            let end_only = TcpFlags::FIN.with(TcpFlags::PSH);
            let mut now = fields;
            now.flags = if is_last { flags } else { flags.without(end_only) };
            let l3 = cx.number(l3);
            cx.transmit(Link::Server(id), build::tcp(&l2, &l3, &now, part, room));
            if is_last {
                break;
            }
            fields.seq = fields.seq.wrapping_add(n as u32);
        }
    }

    /// `stamp` is the timestamp of the segment that is copied; a segment of the gateway's own
    /// carries the client's latest.
    fn options_to_leg(
        &mut self,
        cx: &Cx<'_>,
        id: LegId,
        ack: Own,
        stamp: Option<Tsval>,
    ) -> TcpOptions {
        // What this leg alone misses is told by its islands, which hold the client's blocks:
        // one range told twice would read as a duplicate (RFC 2883 4).
        let misses_alone = self.misses_alone(id);
        let leg = self.leg_mut(id);
        let islands = match leg.options.has_sack && misses_alone {
            true => leg.voice.tell_islands(),
            false => Vec::new(),
        };
        let leg = self.leg(id);
        let mut options = TcpOptions::default();
        // Right after a restart the client's clock is not known, and only questions leave. Some
        // stacks answer none with a time of the past, others none without one (RFC 7323 3.2, 5.3).
        let is_unknown = self.visible.has_timestamps && !self.client.is_learned;
        let is_left_out = is_unknown && self.asked % 2 == 1;
        if leg.options.has_timestamps && !is_left_out {
            let value = match self.visible.has_timestamps {
                true => stamp.unwrap_or(self.client.clock.0),
                // The client has none: a millisecond clock of our own stands in.
                false => own_clock(cx.now).shift(leg.clock.offset),
            };
            let echo = match self.visible.has_timestamps {
                true => leg.clock.to_leg(self.client.clock.1),
                false => leg.clock.latest,
            };
            let is_question = !self.client.is_learned || !leg.is_learned;
            let echo = echo.or(is_question.then(Tsval::default));
            options.timestamps = echo.map(|echo| (value, echo));
        }
        if leg.options.has_sack {
            let max = if options.timestamps.is_some() { 3 } else { 4 };
            let mut blocks = SackBlocks::default();
            let voice = &leg.voice;
            let mut push = |f: Own, t: Own| {
                if blocks.as_slice().len() < max {
                    blocks.push(voice.number(f), voice.number(t));
                }
            };
            if let Some((f, t)) = voice.duplicate_below(ack) {
                push(f, t);
            }
            // Where a value may still be found, nobody knows what the backup's bytes stand for.
            let known_to = match id == self.primary {
                true => Offset::new(u64::MAX),
                false => self.comparison.plain_until(),
            };
            let blocks_of_client = self.client.sacked.iter().filter(|_| !misses_alone);
            for &(f, t) in blocks_of_client.filter(|&&(_, t)| t <= known_to) {
                // Only whole tokens.
                let (f, t) = (voice.own(f, Round::Up), voice.own(t, Round::Down));
                let is_sent = t <= voice.nxt_own() || on(Bug::SackUnclamped);
                if f > ack && f < t && is_sent {
                    push(f, t);
                }
            }
            islands.into_iter().for_each(|(f, t)| push(f, t));
            options.sack = blocks;
        }
        options
    }

    /// The number under which `id` hears the client's byte at `at`.
    pub(super) fn heard_number(&self, id: LegId, at: Offset) -> u32 {
        self.client.iss.at(self.leg(id).ear.own(at, Round::Down).0).raw()
    }

    /// Resets a leg at exactly `seq`, the client number that it expects (RFC 5961 3).
    pub(super) fn send_leg_reset(&self, cx: &mut Cx<'_>, id: LegId, seq: u32) {
        self.send_bare(cx, id, &self.fields_to_leg(seq, 0, TcpFlags::RST));
    }

    /// The header of a segment in the client's name, without a window and options.
    pub(super) fn fields_to_leg(&self, seq: u32, ack: u32, flags: TcpFlags) -> TcpFields {
        TcpFields {
            src_port: self.key.client.port(),
            dst_port: self.key.server.port(),
            seq,
            ack,
            flags,
            window: 0,
            urgent: 0,
            options: TcpOptions::default(),
        }
    }

    /// Sends `id` a segment without data.
    pub(super) fn send_bare(&self, cx: &mut Cx<'_>, id: LegId, fields: &TcpFields) {
        let (l2, l3) = self.client_headers();
        let l3 = cx.number(l3);
        cx.transmit(Link::Server(id), build::tcp(&l2, &l3, fields, EMPTY, u16::MAX));
    }

    /// Detaches a leg: it is reset now, and again whenever it speaks (LV6).
    pub(super) fn detach(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let was = self.leg(id).state;
        if !matches!(was, LegState::Open | LegState::SynSent) {
            return;
        }
        let has_called = self.owes_syn(id);
        self.leg_mut(id).state = LegState::Scrub;
        self.leg_mut(id).resend_at = None;
        self.tries.wait_after_reset(cx.now);
        // Asked in the middle of a connection, it may have answered.
        let is_there = was == LegState::Open || self.state != FlowState::Opening;
        if has_called {
            self.refuse_leg(cx, id, self.leg(id).voice.seq_at(Offset::START));
        } else if is_there && !on(Bug::DetachedNotReset) {
            // It expects what it has not acknowledged; if it has more, its answer says so.
            let at = self.leg(id).acked.max(self.next_to_leg(id).min(self.leg(id).sent));
            self.send_leg_reset(cx, id, self.heard_number(id, at));
        }
        let leg = self.leg_mut(id);
        leg.voice.silence();
    }
}

impl Cx<'_> {
    /// The same headers with an identification of our own (IPv4; RFC 6864).
    pub(super) fn number(&mut self, mut l3: crate::wire::L3) -> crate::wire::L3 {
        if l3.src.is_ipv4() {
            *self.ip_id = self.ip_id.wrapping_add(1);
            l3.id = *self.ip_id;
        }
        l3
    }
}
