//! Towards the client: bytes that may be shown, acks and windows that both legs stand behind.

use bytes::Bytes;

use super::{Cx, EMPTY, Flow, Opener};
use crate::engine::LegId;
use crate::engine::Link;
use crate::engine::clock::own_clock;
use crate::engine::event::{Event, FlowState};
use crate::engine::leg::Leg;
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::time::{Duration, Instant};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Offset, SackBlocks, TcpFlags, TcpOptions, Tsval};

impl Flow {
    /// How far response bytes may be shown now.
    fn releasable(&self) -> Offset {
        match self.state {
            FlowState::Opening => Offset::START,
            FlowState::Paired | FlowState::Diverged => {
                self.comparison.agreed() + u64::from(on(Bug::ReleaseOneAhead))
            }
            FlowState::Lagging if self.is_orphaned() => self.visible.released,
            // What has no place in the framing that is shown is not shown.
            FlowState::Solo if self.comparison.is_reframed => {
                self.comparison.agreed().max(self.visible.released)
            }
            // A value that is shown otherwise is shown whole.
            FlowState::Solo if self.comparison.is_in_offer() && !self.has_ended() => {
                self.comparison.agreed().max(self.visible.released)
            }
            FlowState::Lagging | FlowState::Solo | FlowState::TimeWait => {
                self.leg(self.primary).said()
            }
        }
    }

    /// Shows what may be shown, cut for the client.
    pub(super) fn release(&mut self, cx: &mut Cx<'_>) {
        self.release_to(cx, self.releasable());
    }

    /// Shows no more than what both have said. Before a leg is judged: of a value that the client
    /// has begun to hear from one that goes, nobody else says the rest.
    pub(super) fn release_agreed(&mut self, cx: &mut Cx<'_>) {
        self.release_to(cx, self.releasable().min(self.comparison.agreed()));
    }

    fn release_to(&mut self, cx: &mut Cx<'_>, mut limit: Offset) {
        if let Some(takeover) = self.takeover_limit(cx) {
            limit = limit.min(takeover);
        }
        limit = limit.min(self.granted());
        let (from, mut ahead) = (self.visible.released, 0);
        while self.visible.released < limit {
            let at = self.visible.released;
            let seen = self.visible.ahead.run_end(at);
            if seen > at {
                // Shown ahead of the hole that was just filled. The client has it, whatever the
                // limit: an end stands behind it.
                self.visible.released = seen;
                self.visible.ahead.trim(seen);
                ahead += seen.since(at);
                continue;
            }
            let own = || self.leg(self.primary).voice.chunk_at(at);
            let text = self.visible.instead.text_at(at);
            let next_text = self.visible.instead.next_from(at);
            let Some(chunk) = text.or_else(own) else { break };
            if at + chunk.len() as u64 > limit && on(Bug::WholeSegmentsOnly) {
                break;
            }
            let next_seen = self.visible.ahead.first().map_or(limit, |(f, _)| f.min(limit));
            let end = if next_seen > at { next_seen } else { limit };
            let end = next_text.map_or(end, |next| end.min(next));
            let max = end.since(at).min(limits::SUPER_FRAME_BYTES_MAX);
            let chunk = chunk.slice(..chunk.len().min(max as usize));
            self.visible.released = at + chunk.len() as u64;
            self.shown.insert(at, chunk.clone());
            let flags = self.push_flag(self.visible.released);
            self.send_client(cx, at, flags, chunk);
        }
        if self.visible.released > from {
            self.client.timed.get_or_insert((self.visible.released, cx.now));
        }
        self.visible.ahead.trim(self.visible.released);
        self.visible.instead.trim(self.visible.released);
        self.note_released(cx, from, ahead);
    }

    /// Whether the primary's stream has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.leg(self.primary).voice.ended_at().is_some()
    }

    /// Where the client's window ends for a primary that was told of more: it was the backup then,
    /// and its values were shorter than those that the client was shown.
    fn granted(&self) -> Offset {
        let edge = self.client.edge.max(self.visible.released);
        match self.leg(self.primary).voice.has_room_beyond(edge) {
            true => edge,
            false => Offset::new(u64::MAX),
        }
    }

    /// Whether bytes of the primary wait for the client's window alone. That the window has opened
    /// again the leg, which knows of no end, does not ask.
    pub(super) fn waits_for_window(&self) -> bool {
        self.releasable() > self.visible.released && self.granted() <= self.visible.released
    }

    /// Counts what was released since `from`; `ahead` bytes of it were shown ahead of a hole, when
    /// both had said them.
    fn note_released(&mut self, cx: &mut Cx<'_>, from: Offset, ahead: u64) {
        let bytes = self.visible.released.since(from) as u32;
        if bytes == 0 {
            return;
        }
        self.visible.answered = self.client.nxt;
        let is_verified = matches!(self.state, FlowState::Paired | FlowState::Diverged);
        let verified = if is_verified { bytes } else { ahead as u32 };
        let unverified = bytes - verified;
        self.visible.verified_bytes += u64::from(verified);
        let pinned = self.pinned.iter().flatten().min();
        let waited = pinned.map_or(Duration::ZERO, |&since| cx.now.since(since));
        cx.event(Event::Released { flow: self.key, verified, unverified, waited });
    }

    fn push_flag(&self, end: Offset) -> TcpFlags {
        let leg = self.leg(self.primary);
        match (leg.voice.pushes_at(end) || end == leg.said()) && !on(Bug::PushLost) {
            true => TcpFlags::ACK.with(TcpFlags::PSH),
            false => TcpFlags::ACK,
        }
    }

    /// Shows equal ranges beyond a hole, so that the client's duplicate acks and SACK blocks make
    /// the leg that lost them repeat them fast. They were said by both (I1).
    pub(super) fn release_ahead(&mut self, cx: &mut Cx<'_>, from: Offset, to: Offset) {
        if self.visible.takeover.is_some() || !self.has_both() {
            return;
        }
        for (from, to) in self.equal_ahead(from, to.min(self.granted())) {
            for (mut at, to) in self.visible.ahead.gaps(from, to) {
                self.visible.ahead.insert(at, to);
                while at < to {
                    let Some(chunk) = self.leg(self.primary).voice.chunk_at(at) else { break };
                    let max = to.since(at).min(limits::SUPER_FRAME_BYTES_MAX) as usize;
                    let chunk = chunk.slice(..chunk.len().min(max));
                    self.shown.insert(at, chunk.clone());
                    let next = at + chunk.len() as u64;
                    self.send_client(cx, at, TcpFlags::ACK, chunk);
                    at = next;
                }
            }
        }
    }

    /// Shows `[from, to)` again, the bytes that were shown; not in the small segments of the first
    /// time, which one large repetition of a leg would turn into a storm.
    pub(super) fn show_again(&mut self, cx: &mut Cx<'_>, mut from: Offset, to: Offset) {
        self.client.timed = None; // an ack would not say which of the two it means (RFC 6298 3)
        while from < to {
            let Some(mut bytes) = self.shown.chunk_at(from) else { break };
            let mut next = from + bytes.len() as u64;
            while next < to && bytes.len() < usize::from(self.client.mss) {
                let Some(more) = self.shown.chunk_at(next) else { break };
                next = next + more.len() as u64;
                bytes = [bytes, more].concat().into();
            }
            bytes.truncate(to.since(from) as usize);
            self.send_client(cx, from, TcpFlags::ACK, bytes);
            from = next.min(to);
        }
    }

    /// While a leg takes over with bytes held, they leave as the client's acks make room.
    fn takeover_limit(&mut self, cx: &Cx<'_>) -> Option<Offset> {
        let limit = self.visible.takeover?;
        let is_shown = self.visible.released >= self.leg(self.primary).said();
        if is_shown || (self.comparison.is_reframed && self.visible.released >= self.releasable()) {
            (self.visible.takeover, self.visible.takeover_at) = (None, None);
            return None;
        }
        let step = limits::TAKEOVER_SEGMENTS * u64::from(self.client.mss);
        let mut to = limit.max(self.client.una + step);
        if self.visible.takeover_at.is_some_and(|at| cx.now >= at) {
            to = to.max(self.visible.released + step);
        }
        self.visible.takeover = Some(to);
        self.visible.takeover_at = Some(cx.now + limits::TAKEOVER_TICK);
        Some(to)
    }

    /// Paces what the new primary holds.
    pub(super) fn begin_takeover(&mut self, now: Instant) {
        let step = limits::TAKEOVER_SEGMENTS * u64::from(self.client.mss);
        self.visible.takeover = Some(self.visible.released + step);
        self.visible.takeover_at = Some(now + limits::TAKEOVER_TICK);
    }

    /// The ack that both legs stand behind (I2); the primary's alone otherwise.
    fn ack_to_client(&self) -> Offset {
        let both = self.needs_both() && self.has_both() && !on(Bug::NoAckMin);
        let acked = match both {
            true if on(Bug::WrapCompare) => {
                let raw = |leg: &&Leg| self.client.iss.at(leg.acked).raw();
                self.legs.iter().min_by_key(raw).map_or(Offset::START, |l| l.acked)
            }
            true => self.legs.iter().map(|l| l.acked).min().unwrap_or(Offset::START),
            false if self.state == FlowState::Lagging && on(Bug::LaggingAckMax) => {
                self.legs[0].acked.max(self.legs[1].acked)
            }
            false => self.leg(self.primary).acked,
        };
        acked.max(self.visible.told_ack)
    }

    /// The window edge that both legs stand behind (I3), as far as the field above `ack` can say
    /// it; it never moves back.
    fn edge_to_client(&self, ack: Offset) -> Offset {
        let both = self.needs_both() && self.has_both() && !on(Bug::BackupWindowIgnored);
        let edge = match both {
            true => self.legs.iter().map(|l| l.edge).min().unwrap_or(Offset::START),
            false => self.leg(self.primary).edge,
        };
        let shift = self.visible.window_scale.unwrap_or(0);
        let field = (edge.since(ack) >> shift).min(u64::from(u16::MAX));
        (ack + (field << shift)).max(self.visible.told_edge)
    }

    /// Sends the client an ack when something advanced and no data has carried it (LV3).
    pub(super) fn acknowledge(&mut self, cx: &mut Cx<'_>) {
        if self.client.una < Offset::START || self.is_orphaned() || self.visible.reset.is_some() {
            return;
        }
        let must_wait = |l: &Leg| l.is_open() && !l.is_learned;
        if self.needs_both() && self.has_both() && self.legs.iter().any(must_wait) {
            return; // after a restart: what both have taken is not known yet
        }
        let ack = self.ack_to_client();
        if ack < Offset::START && self.opener == Opener::Servers {
            return; // the last ack of the handshake is the servers' to give
        }
        let edge = self.edge_to_client(ack);
        let repeats = self.duplicate_acks_due(cx, ack);
        let told = &self.visible;
        let two = 2 * u64::from(self.client.mss);
        let room = told.told_edge.since(told.told_ack);
        let opens = edge > told.told_edge && (room < two || edge.since(told.told_edge) >= two);
        let opens = opens && !on(Bug::WindowUpdateLost);
        let advances = ack > told.told_ack && !on(Bug::DropLv3);
        if advances || opens || told.owes_ack || repeats {
            self.send_client(cx, self.next_to_client(), TcpFlags::ACK, EMPTY);
        }
    }

    /// Whether the client is due another duplicate ack: both legs miss the same bytes, and the
    /// gateway does not have them either.
    fn duplicate_acks_due(&mut self, cx: &mut Cx<'_>, ack: Offset) -> bool {
        let is_here = !self.request.slice_at(ack).is_empty();
        if ack > self.visible.told_ack {
            self.visible.dup_acks = 0;
            return false;
        }
        if is_here && !on(Bug::BothDupAcks) {
            return false;
        }
        let carrying = self.legs.iter().filter(|l| l.is_open() && l.acked == ack);
        let both = self.needs_both() && self.has_both();
        let due = match both {
            _ if on(Bug::BothDupAcks) => carrying.map(|l| l.dup_acks).sum(),
            true => carrying.map(|l| l.dup_acks).min().unwrap_or(0),
            false => self.leg(self.primary).dup_acks,
        };
        let mut is_due = false;
        if due > self.visible.dup_acks {
            for _ in self.visible.dup_acks + 1..due.min(self.visible.dup_acks + 8) {
                self.send_client(cx, self.next_to_client(), TcpFlags::ACK, EMPTY);
            }
            self.visible.dup_acks = due;
            is_due = true;
        }
        let sack = self.sack_to_client(ack);
        is_due || (!sack.is_empty() && self.visible.told_sack.differ_from(&sack))
    }

    /// What both legs have beyond the ack shown, lowest first.
    fn sack_to_client(&self, ack: Offset) -> Vec<(Offset, Offset)> {
        if !self.visible.has_sack || !self.request.slice_at(ack).is_empty() {
            return Vec::new();
        }
        let is_both = self.needs_both() && self.has_both();
        // Nearly always: who has nothing beyond the ack leaves nothing to say.
        let has_none = |leg: &Leg| leg.sacked.is_empty() && leg.acked <= ack;
        let is_none = match is_both {
            true if on(Bug::SackUnion) => self.legs.iter().all(has_none),
            true => self.legs.iter().any(has_none),
            false => has_none(self.leg(self.primary)),
        };
        if is_none {
            return Vec::new();
        }
        let with_acked = |id: LegId| {
            let leg = self.leg(id);
            let mut ranges = leg.sacked.clone();
            ranges.insert(Offset::new(0), leg.acked);
            ranges
        };
        let mut both = match is_both {
            true if on(Bug::SackUnion) => {
                let mut either = with_acked(LegId::A);
                for (from, to) in with_acked(LegId::B).iter() {
                    either.insert(from, to);
                }
                either
            }
            true => with_acked(LegId::A).intersection(&with_acked(LegId::B)),
            false => with_acked(self.primary),
        };
        both.trim(ack);
        both.iter().collect()
    }

    /// The position of a segment without data to the client.
    fn next_to_client(&self) -> Offset {
        let fin = self.visible.fin.map(|f| f + 1);
        fin.unwrap_or(self.visible.released).max(self.shown_end())
    }

    /// The timestamps to show: the primary's clock, never back; the echo of the leg whose ack is
    /// shown.
    pub(super) fn stamps(&mut self, now: Instant) -> Option<(Tsval, Tsval)> {
        let leg = self.leg(self.primary);
        let value = match leg.options.has_timestamps {
            true => leg.clock.in_client_space(),
            // It has none, although others of its kind had: the client was promised some.
            false => Some(own_clock(now).shift(leg.clock.offset)),
        };
        if !self.client.is_learned {
            // Right after a restart: a question, not yet in the order of what was shown before.
            return value.map(|value| (value, self.leg(self.primary).clock.echo));
        }
        let shown = self.visible.clock.show(now, value?);
        for leg in &mut self.legs {
            leg.clock.note_shown(shown);
        }
        let lower = match self.needs_both() && self.has_both() {
            true => match self.legs[0].acked <= self.legs[1].acked {
                true => &self.legs[0],
                false => &self.legs[1],
            },
            false => self.leg(self.primary),
        };
        let echo = match lower.options.has_timestamps {
            true => Some(lower.clock.echo),
            false => self.client.recent,
        };
        Some((shown, echo?))
    }

    /// Sends the client a segment in its own numbers, with the ack and window of this moment.
    pub(super) fn send_client(
        &mut self,
        cx: &mut Cx<'_>,
        at: Offset,
        flags: TcpFlags,
        payload: Bytes,
    ) {
        let Some((l2, l3)) = self.leg_headers(self.primary) else { return };
        let ack = self.ack_to_client();
        let edge = self.edge_to_client(ack);
        let shift = self.visible.window_scale.unwrap_or(0);
        let window = u16::try_from(edge.since(ack) >> shift).unwrap_or(u16::MAX);
        let timestamps = match self.visible.has_timestamps {
            true => self.stamps(cx.now),
            false => None,
        };
        let sack = self.sack_to_client(ack);
        let max = if timestamps.is_some() { 3 } else { 4 };
        let mut blocks = SackBlocks::default();
        for &(f, t) in self.visible.told_sack.tell(sack).iter().take(max) {
            blocks.push(self.client.iss.at(f).raw(), self.client.iss.at(t).raw());
        }
        let options = TcpOptions { timestamps, sack: blocks, ..TcpOptions::default() };
        let own = self.leg(self.primary).gso_size.unwrap_or(u16::MAX);
        let options_len = match on(Bug::SegmentTooLong) {
            true => 0,
            false => build::tcp_options_len(&options) as u16,
        };
        let room = self.client.mss.saturating_sub(options_len);
        let urgent = self.urgent_pointer(at, payload.len() as u64);
        let fields = TcpFields {
            src_port: self.key.server.port(),
            dst_port: self.key.client.port(),
            seq: self.visible.iss.at(at).raw(),
            ack: self.client.iss.at(ack).raw(),
            flags: if urgent > 0 { flags.with(TcpFlags::URG) } else { flags },
            window,
            urgent,
            options,
        };
        let v = &mut self.visible;
        v.told_ack = v.told_ack.max(ack);
        v.told_edge = v.told_edge.max(ack + (u64::from(window) << shift));
        v.owes_ack = false;
        let mut l3 = cx.number(l3);
        l3.ttl -= u8::from(on(Bug::TtlAged));
        let frame = build::tcp(&l2, &l3, &fields, payload, room.min(own).max(1));
        cx.transmit(Link::Client, frame);
    }

    /// The urgent pointer of a segment at `at`, if the urgent bytes end in reach of it.
    fn urgent_pointer(&self, at: Offset, len: u64) -> u16 {
        let Some(end) = self.leg(self.primary).voice.urgent_at() else { return 0 };
        let is_near = len > 0 && end > at && end.since(at) <= u64::from(u16::MAX);
        match is_near {
            true => end.since(at) as u16 - u16::from(on(Bug::UrgentMisplaced)),
            false => 0,
        }
    }
}
