//! The handshake that the servers begin (FTP's active data connections): the SYN of both, one SYN
//! to the client, and the client's answer to both.
//!
//! The SYN shown is the common ground of both, as a SYN-ACK is where the client begins; each server
//! hears the client's answer in its own numbers. From there on the flow is one like any other: what
//! each server has still to acknowledge is a byte of the client's, its SYN, and the last segment of
//! the handshake is an ack that both stand behind. RFC 9293 3.5, RFC 7323 2.2.

use super::handshake::Start;
use super::{ClientEnd, Cx, Flow, Opener, Report};
use crate::engine::alignment::Round;
use crate::engine::event::{FlowKey, FlowState, RejectReason, SoloReason};
use crate::engine::expected::{Call, PORT_MIN};
use crate::engine::headers::Headers;
use crate::engine::leg::{LegState, MSS_DEFAULT};
use crate::engine::limits;
use crate::engine::time::{Duration, Instant};
use crate::engine::{LegId, Link};
use crate::protocol::RawReason;
use crate::wire::build::TcpFields;
use crate::wire::{Offset, Segment, Seq, TcpFlags, TcpOptions, Tsval};

impl Flow {
    /// A flow that begins with these SYNs of the servers.
    pub fn called(
        cx: &mut Cx<'_>,
        key: FlowKey,
        slot: u32,
        start: Start,
        syns: [Option<&Segment>; 2],
        headers: Headers,
    ) -> Self {
        let client = ClientEnd::unheard(cx.now, headers);
        let mut flow = Self::begin(cx, key, slot, client, Opener::Servers, start);
        for id in LegId::ALL {
            if let Some(syn) = syns[id.index()].filter(|_| flow.has_open_leg(id)) {
                flow.hear_syn(cx.now, id, syn);
            }
        }
        flow.expires_at = cx.now + limits::HALF_OPEN_MAX;
        flow.call_client(cx);
        flow.arm(cx);
        flow
    }

    /// The servers are to connect to where the client has said: to itself, or nobody follows them.
    pub(super) fn note_call(&mut self, cx: &mut Cx<'_>) {
        let Some(client) = self.comparison.take_call() else { return };
        let is_its_own = client.ip() == self.key.client.ip() && client.port() >= PORT_MIN;
        if is_its_own && cx.config.shows_clients() {
            let legs = LegId::ALL.map(|leg| self.leg(leg).is_open());
            return cx.reports.push(Report::Called(self.key, Call { client, legs }));
        }
        match self.state {
            FlowState::Solo => self.comparison.stop(),
            _ => {
                self.compare_raw(cx, RawReason::ActiveData);
                self.lose(cx, self.backup(), SoloReason::Unfollowed);
            }
        }
    }

    /// Shows the client one SYN, with what all servers that take part can keep.
    fn call_client(&mut self, cx: &mut Cx<'_>) {
        let common = self.common_ground();
        let v = &mut self.visible;
        v.iss = Seq::new(self.legs[self.primary.index()].voice.effective_iss());
        v.window_scale = common.window_scale;
        v.has_sack = common.has_sack;
        v.has_timestamps = common.has_timestamps;
        v.told_edge = Offset::START + common.window;
        let latest = self.leg(self.primary).clock.latest.unwrap_or_default();
        self.begin_clocks(cx.now, latest);
        self.show_syn(cx, common.mss);
    }

    /// Something with a SYN from the client of a call.
    pub(super) fn on_called_client(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        if !seg.flags.has(TcpFlags::ACK) {
            // The client listens there; who calls from there is somebody else.
            return cx.reject(Link::Client, RejectReason::OutOfWindow);
        }
        let is_answer = seg.ack == self.visible.iss.at(Offset::START).raw();
        if !self.visible.is_open {
            return match is_answer {
                true => self.open_called(cx, seg),
                false => self.end_older_of_client(cx, seg),
            };
        }
        if !is_answer || seg.seq != self.client.iss.raw() {
            self.visible.owes_ack = true; // where the connection stands (RFC 5961 4)
            return;
        }
        if !self.client.is_learned {
            // After a restart. What follows the SYN is what the client says next.
            self.learn_client(cx, &Segment { seq: seg.seq.wrapping_add(1), ..*seg });
            self.client.edge = Offset::START + u64::from(seg.window);
            if !self.leg(self.primary).is_open() {
                return self.reset_client(cx); // nobody can carry it on exactly
            }
        }
        let mut has_answered = true;
        for id in LegId::ALL {
            let leg = self.leg(id);
            if leg.is_open() && (leg.acked < Offset::START || !leg.is_learned) {
                has_answered = false;
                self.answer_leg(cx, id);
            }
        }
        self.visible.owes_ack |= has_answered;
    }

    /// The client lives in an older connection of this 4-tuple: whoever calls it ends that one
    /// exactly (RFC 9293 3.10.7.3), and calls again.
    pub(super) fn end_older_of_client(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        if seg.ack == self.visible.iss.at(Offset::START).raw() {
            return cx.reject(Link::Client, RejectReason::OutOfWindow);
        }
        self.send_client_reset(cx, seg.ack);
        self.repeat_syn(cx);
    }

    /// The client has answered: what it agrees to holds for everybody.
    fn open_called(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        let (options, now) = (&seg.options, cx.now);
        let v = &mut self.visible;
        v.window_scale = v.window_scale.filter(|_| options.window_scale.is_some());
        v.has_sack &= options.sack_permitted;
        v.has_timestamps &= options.timestamps.is_some();
        (v.is_open, v.syn_ack) = (true, None);
        for leg in &mut self.legs {
            let own = &mut leg.options;
            own.window_scale = own.window_scale.filter(|_| v.window_scale.is_some());
            own.has_sack &= v.has_sack;
            own.has_timestamps &= v.has_timestamps;
        }
        let client = &mut self.client;
        client.iss = Seq::new(seg.seq);
        client.mss = options.mss.unwrap_or(MSS_DEFAULT).max(64);
        client.window_scale = options.window_scale.filter(|_| v.window_scale.is_some());
        (client.offers_sack, client.offers_timestamps) = (v.has_sack, v.has_timestamps);
        client.edge = Offset::START + u64::from(seg.window);
        if let Some((value, echo)) = options.timestamps.filter(|_| v.has_timestamps) {
            (client.clock, client.recent) = ((value, echo), Some(value));
        }
        client.note_ack(now, Offset::START);
        let open: Vec<LegId> = LegId::ALL.into_iter().filter(|&l| self.leg(l).is_open()).collect();
        let solo = (open.len() < 2).then(|| self.solo.unwrap_or(SoloReason::OneServer));
        let (state, why) = Self::first_state(cx, solo);
        self.set_state(cx, state, why);
        for id in open {
            self.leg_mut(id).has_progressed(now); // it had nothing to answer until now
            self.answer_leg(cx, id);
        }
    }

    /// The client's SYN, with the ack of the leg's own, in its numbers.
    pub(super) fn answer_leg(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let window = self.client.edge.since(Offset::START).min(u64::from(u16::MAX));
        let (client, leg) = (&self.client, self.leg(id));
        let echo = leg.clock.to_leg(client.clock.1);
        let echo = echo.unwrap_or(client.clock.1.shift(leg.clock.offset.inverse()));
        let options = TcpOptions {
            mss: Some(client.mss),
            window_scale: client.window_scale,
            sack_permitted: leg.options.has_sack,
            timestamps: leg.options.has_timestamps.then_some((client.clock.0, echo)),
            ..TcpOptions::default()
        };
        let (seq, ack) = (client.iss.raw(), leg.voice.seq_at(Offset::START));
        let fields = self.fields_to_leg(seq, ack, TcpFlags::SYN.with(TcpFlags::ACK));
        let fields = TcpFields { window: window as u16, options, ..fields };
        let leg = self.leg_mut(id);
        let own = leg.voice.own(Offset::START, Round::Down);
        if leg.voice.tell(own, own + window) {
            leg.given_at = cx.now;
        }
        self.send_bare(cx, id, &fields);
    }

    /// A SYN without an ack from a leg that carries the flow.
    pub(super) fn on_repeated_call(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment) {
        if seg.seq != self.leg(id).voice.seq_at(Offset::SYN) {
            return cx.reject(Link::Server(id), RejectReason::OldGeneration);
        }
        if !self.visible.is_open {
            self.expires_at = cx.now + limits::HALF_OPEN_MAX;
            if !self.not_just_repeated(cx, Offset::SYN, Offset::START, id).is_empty() {
                self.repeat_syn(cx);
            }
        } else if self.owes_syn(id) || (self.client.is_learned && !self.leg(id).is_learned) {
            self.answer_leg(cx, id);
        } else {
            self.leg_mut(id).owes_ack = self.leg(id).is_learned;
        }
    }

    /// Whether `id` has called and has not acknowledged the client's SYN.
    pub(super) fn owes_syn(&self, id: LegId) -> bool {
        let leg = self.leg(id);
        let is_asked = self.opener == Opener::Servers && self.client.is_learned;
        is_asked && leg.is_open() && leg.is_learned && leg.acked < Offset::START
    }

    /// What a closed port answers `id`: it has called in vain. Should it have heard the client's
    /// SYN, the number is the one that it expects.
    pub(super) fn refuse_leg(&self, cx: &mut Cx<'_>, id: LegId, ack: u32) {
        let next = self.client.iss.at(Offset::START).raw();
        let seq = if self.visible.is_open { next } else { 0 };
        let fields = self.fields_to_leg(seq, ack, TcpFlags::RST.with(TcpFlags::ACK));
        self.send_bare(cx, id, &fields);
    }

    /// The client refuses, if its reset acknowledges the SYN that it was shown (RFC 9293 3.10.7.3).
    pub(super) fn on_called_reset(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        let is_exact = seg.ack == self.visible.iss.at(Offset::START).raw();
        if !seg.flags.has(TcpFlags::ACK) || !is_exact {
            return cx.reject(Link::Client, RejectReason::InexactReset);
        }
        self.reset_legs(cx);
        self.close_after_reset(cx);
    }

    /// While the client has not answered: servers that have given up, or were lost.
    pub(super) fn settle_call(&mut self, cx: &mut Cx<'_>) {
        for id in LegId::ALL {
            if self.leg(id).is_open() && self.leg(id).reset_at.is_some() {
                self.leg_mut(id).state = LegState::Absent;
                self.solo = self.solo.or(Some(SoloReason::Handshake));
            }
        }
        if self.leg(self.primary).is_open() {
            return;
        }
        if self.leg(self.backup()).is_open() {
            self.primary = self.backup();
            return;
        }
        // Whoever has answered meanwhile expects this number.
        self.visible.released = Offset::START;
        self.reset_client(cx);
    }
}

impl ClientEnd {
    /// A client of whom nothing is known: it may agree to everything.
    pub(super) fn unheard(now: Instant, headers: Headers) -> Self {
        Self {
            iss: Seq::new(0),
            mss: MSS_DEFAULT,
            window_scale: Some(0),
            offers_sack: true,
            offers_timestamps: true,
            headers,
            nxt: Offset::START,
            una: Offset::SYN,
            edge: Offset::START,
            window_max: 0,
            fin: None,
            clock: (Tsval(0), Tsval(0)),
            recent: None,
            sacked: Vec::new(),
            round_trip: Duration::ZERO,
            timed: None,
            heard_at: now,
            asked_at: now,
            is_learned: true,
        }
    }
}
