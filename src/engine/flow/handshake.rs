//! The handshake: one SYN to both legs, one SYN-ACK to the client, options both can keep.
//!
//! The SYN carries only options that the gateway translates; the SYN-ACK shown is the common
//! ground of both answers (RFC 9293 3.5, RFC 7323 2.2, RFC 2018 2). Its constants are persisted
//! before it leaves.

use std::collections::VecDeque;

use super::instead::Instead;
use super::listen::Listener;
use super::profile::Offer;
use super::reprotect::Tries;
use super::{ClientEnd, Comparison, Cx, EMPTY, Flow, Opener, Report, Stray, Visible};
use crate::engine::clock::{ShownClock, own_clock};
use crate::engine::config::Mode;
use crate::engine::cookies::{self, Answer, Offered, Promise};
use crate::engine::event::{Event, FlowKey, FlowState, RejectReason, SoloReason};
use crate::engine::headers::Headers;
use crate::engine::leg::{Leg, LegOptions, LegState, MSS_DEFAULT};
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::ranges::Ranges;
use crate::engine::stream::Stream;
use crate::engine::time::{Duration, Instant};
use crate::engine::told_blocks::ToldBlocks;
use crate::engine::{LegId, Link};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L3, Offset, Segment, Seq, TcpFlags, TcpOptions, TsDelta, Tsval};

/// How a flow begins.
#[derive(Debug)]
pub struct Start {
    /// Who serves it.
    pub primary: LegId,
    /// Who takes part.
    pub legs: Vec<LegId>,
    /// Why only one does.
    pub solo: Option<SoloReason>,
    /// What the client was shown already.
    pub promise: Option<Promise>,
}

impl Flow {
    /// A flow that begins with the client's SYN `seg`.
    pub fn open(cx: &mut Cx<'_>, key: FlowKey, slot: u32, seg: &Segment, start: Start) -> Self {
        let now = cx.now;
        // What was promised is asked for.
        let offers = |offer| start.promise.is_some() || cx.profile.offers(now, offer);
        let options = &seg.options;
        let client = ClientEnd {
            iss: Seq::new(seg.seq),
            mss: options.mss.unwrap_or(MSS_DEFAULT).max(64),
            window_scale: options.window_scale.filter(|_| offers(Offer::WindowScale)),
            offers_sack: options.sack_permitted && offers(Offer::Sack),
            offers_timestamps: options.timestamps.is_some() && offers(Offer::Timestamps),
            headers: Headers::of(&seg.l2, &seg.l3),
            nxt: Offset::START,
            // Who was promised something has proved that he exists.
            una: if start.promise.is_some() { Offset::START } else { Offset::SYN },
            edge: Offset::START + u64::from(seg.window),
            window_max: 0,
            fin: None,
            clock: options.timestamps.unwrap_or_default(),
            recent: options.timestamps.map(|(value, _)| value),
            sacked: Vec::new(),
            round_trip: start.promise.as_ref().map_or(Duration::ZERO, |p| p.round_trip),
            timed: None,
            heard_at: now,
            asked_at: now,
            is_learned: true,
        };
        let mut flow = Self::begin(cx, key, slot, client, Opener::Client, start);
        flow.send_syn(cx);
        flow.arm(cx);
        flow
    }

    /// One whose first SYN has come from `opener`.
    pub(super) fn begin(
        cx: &mut Cx<'_>,
        key: FlowKey,
        slot: u32,
        client: ClientEnd,
        opener: Opener,
        start: Start,
    ) -> Self {
        let now = cx.now;
        let state = |l: LegId| match start.legs.contains(&l) {
            true => LegState::SynSent,
            false => LegState::Absent,
        };
        cx.event(Event::FlowOpened { flow: key });
        Self {
            key,
            opener,
            slot,
            opened_at: now,
            state: FlowState::Opening,
            solo: start.solo,
            primary: start.primary,
            legs: [Leg::new(state(LegId::A), now), Leg::new(state(LegId::B), now)],
            client,
            visible: Visible::closed(),
            request: Stream::new(Offset::START),
            listener: Listener::new(Offset::START, cx.config.listener(key.server.port())),
            shown: Stream::new(Offset::START),
            comparison: Comparison::new(Offset::START, cx.config.reader(key.server.port())),
            diverged_until: None,
            first_answer_at: None,
            syn_at: now,
            syn_resent: 0,
            pinned: [None; 2],
            behind: [None; 2],
            owes: [None; 2],
            is_soft_told: [false; 2],
            fin_held_at: None,
            control: None,
            ask_at: None,
            asked: 0,
            taken: None,
            stray: None,
            tries: Tries::default(),
            challenge: None,
            promise: start.promise.map(Box::new),
            expires_at: now + limits::OPENING_MAX,
            timer: None,
            is_gone: false,
            held: 0,
        }
    }

    /// Sends the SYN to every leg that has not answered.
    pub(super) fn send_syn(&mut self, cx: &mut Cx<'_>) {
        for id in LegId::ALL {
            if self.leg(id).state == LegState::SynSent {
                self.send_syn_to(cx, id);
            }
        }
    }

    pub(super) fn send_syn_to(&mut self, cx: &mut Cx<'_>, id: LegId) {
        let (client, v) = (&self.client, &self.visible);
        if self.awaits_second() {
            let stamps = v.has_timestamps.then_some((client.clock.0, Tsval(0)));
            let options = TcpOptions {
                mss: Some(client.mss),
                window_scale: client.window_scale.filter(|_| v.window_scale.is_some()),
                sack_permitted: v.has_sack,
                timestamps: stamps,
                ..TcpOptions::default()
            };
            let room = client.edge.since(client.una);
            let window = u16::try_from(room).unwrap_or(u16::MAX);
            let at = self.first_heard(id).back(1);
            return self.send_syn_with(cx, id, client.iss.at(at).raw(), window, options);
        }
        let options = TcpOptions {
            mss: Some(client.mss),
            window_scale: client.window_scale,
            sack_permitted: client.offers_sack,
            timestamps: client.offers_timestamps.then_some((client.clock.0, Tsval(0))),
            ..TcpOptions::default()
        };
        let window = u16::try_from(client.edge.since(Offset::START)).unwrap_or(u16::MAX);
        self.send_syn_with(cx, id, client.iss.raw(), window, options);
    }

    /// The client's first byte that a leg whose SYN is unanswered has to hear.
    fn first_heard(&self, id: LegId) -> Offset {
        self.leg(id).acked.max(Offset::START)
    }

    fn send_syn_with(
        &mut self,
        cx: &mut Cx<'_>,
        id: LegId,
        seq: u32,
        window: u16,
        options: TcpOptions,
    ) {
        let flags = if on(Bug::EcnOffered) { TcpFlags(0xc2) } else { TcpFlags::SYN };
        let fields = TcpFields { window, options, ..self.fields_to_leg(seq, 0, flags) };
        self.send_bare(cx, id, &fields);
    }

    /// A SYN with another number inside a connection. A server on which that connection lives
    /// challenges it (RFC 5961 4), and a client that really began anew answers with an exact
    /// reset; one on which it is over accepts it (RFC 6191), see [`Flow::successor`].
    pub(super) fn on_stray_syn(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        self.visible.is_asking = true;
        if seg.options.is_authenticated {
            return;
        }
        match &mut self.stray {
            Some(known) if known.syn.seq == seg.seq => known.syn = *seg,
            other => *other = Some(Box::new(Stray { syn: *seg, answers: [None; 2] })),
        }
        let (profile, now) = (*cx.profile, cx.now);
        let offers = |offer| profile.offers(now, offer);
        let offered = &seg.options;
        let options = TcpOptions {
            mss: offered.mss,
            window_scale: offered.window_scale.filter(|_| offers(Offer::WindowScale)),
            sack_permitted: offered.sack_permitted && offers(Offer::Sack),
            timestamps: offered.timestamps.filter(|_| offers(Offer::Timestamps)),
            ..TcpOptions::default()
        };
        for id in LegId::ALL {
            if self.leg(id).is_open() {
                self.send_syn_with(cx, id, seg.seq, seg.window, options);
            }
        }
    }

    /// The client's SYN of a new connection on this 4-tuple, once the primary has accepted it: this
    /// flow is over. With it the answers so far. (A backup alone that accepts it has lost its
    /// connection: no news for the client.)
    pub fn successor(&self) -> Option<(Segment, [Option<Segment>; 2])> {
        let is_over = self.is_gone || self.visible.reset.is_some();
        let stray = self.stray.as_deref().filter(|_| !is_over)?;
        stray.answers[self.primary.index()].map(|_| (stray.syn, stray.answers))
    }

    /// Whether the client was answered by somebody else while the handshake was under way: by the
    /// primary, before a restart of the gateway; or lives in an older connection with it, and has
    /// not said this SYN, or said it long ago.
    pub fn was_answered_elsewhere(&self, seg: &Segment) -> bool {
        let is_first = seg.seq == self.client.iss.at(Offset::START).raw();
        let is_ack = seg.flags.has(TcpFlags::ACK)
            && !seg.flags.has(TcpFlags::SYN)
            && !seg.flags.has(TcpFlags::RST);
        let may_be = self.opener == Opener::Client && self.promise.is_none();
        let is_its = (is_first && may_be) || self.challenge.is_some();
        self.state == FlowState::Opening && is_its && is_ack
    }

    /// The connection goes on with the primary, untouched; the backup forgets it.
    pub fn abandon(&mut self, cx: &mut Cx<'_>) {
        let backup = self.backup();
        if self.has_open_leg(backup) {
            self.send_leg_reset(cx, backup, self.client.iss.at(Offset::START).raw());
        }
        cx.event(Event::Unprotected { flow: self.key, reason: SoloReason::Restored });
        self.forget(cx);
    }

    /// Gives way to newer handshakes. Should the client complete this one after all, it goes on
    /// with `primary`, untouched: that is what became of it if the client was shown nothing else
    /// than what that server said. Otherwise the legs are reset.
    pub fn give_way(&mut self, cx: &mut Cx<'_>, primary: LegId) {
        let (v, leg) = (&self.visible, self.leg(primary));
        let options = (v.window_scale, v.has_sack, v.has_timestamps);
        let own = (leg.options.window_scale, leg.options.has_sack, leg.options.has_timestamps);
        let is_its = v.iss.raw() == leg.voice.effective_iss() && options == own && leg.is_open();
        if v.is_open && !is_its {
            self.reset_legs(cx);
        }
        if !self.is_closed() {
            cx.event(Event::Unprotected { flow: self.key, reason: SoloReason::HalfOpen });
        }
        self.forget(cx);
    }

    /// A segment from a leg whose SYN is unanswered.
    pub(super) fn on_leg_answer(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment) {
        let expected = self.client.iss.at(self.first_heard(id)).raw();
        let link = Link::Server(id);
        if seg.flags.has(TcpFlags::RST) {
            if !seg.flags.has(TcpFlags::ACK) || seg.ack != expected {
                return cx.reject(link, RejectReason::InexactReset);
            }
            if self.awaits_second() {
                return self.refuse_second(cx, id);
            }
            self.leg_mut(id).state = LegState::Absent;
            self.leg_mut(id).reset_at = Some(cx.now);
            cx.reports.push(Report::Answered(id));
            return self.note_answer(id, cx.now);
        }
        let is_of_this = seg.ack == expected || on(Bug::OldGeneration);
        if seg.flags.has(TcpFlags::SYN.with(TcpFlags::ACK)) && is_of_this {
            if self.leg(id).stale_iss == Some(seg.seq) && !on(Bug::OldGeneration) {
                return cx.reject(link, RejectReason::OldGeneration);
            }
            return match self.awaits_second() {
                true => self.open_second(cx, id, seg),
                false => {
                    cx.reports.push(Report::Answered(id));
                    self.hear_syn(cx.now, id, seg);
                }
            };
        }
        if seg.flags.has(TcpFlags::ACK) && !seg.flags.has(TcpFlags::SYN) {
            if seg.ack == expected && !self.is_of_older(cx.now, id, seg.seq) {
                return cx.reject(link, RejectReason::OutOfWindow);
            }
            // It still lives in an older connection of this 4-tuple (RFC 9293 3.5.2, RFC 5961 4).
            match self.may_end_older(id) {
                true => self.end_older(cx, id, seg.seq, seg.ack),
                false => {
                    self.leg_mut(id).stale_iss = Some(seg.seq.wrapping_sub(1));
                    self.pass_challenge(cx, seg);
                }
            }
            return;
        }
        cx.reject(link, RejectReason::OldGeneration);
    }

    /// Whether an older connection of `id` is the gateway's to end. In the primary's the client may
    /// live, too, and would not end it (RFC 9293 3.10.7.3).
    fn may_end_older(&self, id: LegId) -> bool {
        id != self.primary || self.promise.is_some()
    }

    /// Whether `id`, which acknowledges this very SYN without one of its own, lives in an older
    /// connection that the client began with the same number; else its SYN-ACK is still on its way.
    fn is_of_older(&mut self, now: Instant, id: LegId, number: u32) -> bool {
        let leg = self.leg_mut(id);
        let known = leg.bare_ack.filter(|&(known, _)| known == number);
        leg.bare_ack = Some(known.unwrap_or((number, now)));
        self.older_at(id).is_some_and(|at| now >= at)
    }

    /// When `id`, if no SYN-ACK has come until then, is known to live in an older connection: it
    /// may say so once only in half a second (RFC 5961 7).
    fn older_at(&self, id: LegId) -> Option<Instant> {
        let leg = self.leg(id);
        let (_, since) = leg.bare_ack.filter(|_| leg.state == LegState::SynSent)?;
        let wait = match self.awaits_second() {
            true => limits::FORMER_MAX,
            false => limits::OVERTAKING_MAX,
        };
        self.may_end_older(id).then_some(since + wait)
    }

    /// See [`Self::older_at`].
    pub(super) fn end_known_older(&mut self, cx: &mut Cx<'_>) {
        for id in LegId::ALL {
            let is_due = self.older_at(id).is_some_and(|at| cx.now >= at);
            if let Some((number, _)) = self.leg(id).bare_ack.filter(|_| is_due) {
                let expected = self.client.iss.at(self.first_heard(id)).raw();
                self.end_older(cx, id, number, expected);
            }
        }
    }

    /// When [`Self::end_known_older`] has something to do.
    pub(super) fn older_deadline(&self) -> Option<Instant> {
        LegId::ALL.into_iter().filter_map(|id| self.older_at(id)).min()
    }

    /// The primary may live in a connection that is not protected, and the SYN may be anybody's: it
    /// is for the client to say. If it began anew, it resets the older one exactly.
    fn pass_challenge(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        self.challenge = Some(seg.ack);
        let fields = TcpFields {
            src_port: seg.src_port,
            dst_port: seg.dst_port,
            seq: seg.seq,
            ack: seg.ack,
            flags: TcpFlags::ACK,
            window: seg.window,
            urgent: 0,
            options: TcpOptions { timestamps: seg.options.timestamps, ..TcpOptions::default() },
        };
        let l3 = cx.number(seg.l3);
        cx.transmit(Link::Client, build::tcp(&seg.l2, &l3, &fields, EMPTY, u16::MAX));
    }

    /// Whether the client ends an older connection by `seg`: then the primary is asked again.
    pub(super) fn ends_older(&mut self, cx: &mut Cx<'_>, seg: &Segment) -> bool {
        let is_it = self.challenge == Some(seg.seq);
        if is_it {
            self.challenge = None;
            self.send_leg_reset(cx, self.primary, seg.seq);
            self.send_syn_to(cx, self.primary);
        }
        is_it
    }

    /// Ends an older connection of `id`, which stands at `number` there and expects `expected`, and
    /// says the SYN again.
    fn end_older(&mut self, cx: &mut Cx<'_>, id: LegId, number: u32, expected: u32) {
        let leg = self.leg_mut(id);
        (leg.stale_iss, leg.bare_ack) = (Some(number.wrapping_sub(1)), None);
        self.send_leg_reset(cx, id, expected);
        self.send_syn_to(cx, id);
    }

    /// The leg's SYN, with an ack or without.
    pub(super) fn hear_syn(&mut self, now: Instant, id: LegId, seg: &Segment) {
        let leg = self.leg_mut(id);
        leg.state = LegState::Open;
        leg.voice.begin(seg.seq);
        leg.options = LegOptions::of(seg);
        leg.acked = if seg.flags.has(TcpFlags::ACK) { Offset::START } else { Offset::SYN };
        leg.edge = Offset::START + u64::from(seg.window);
        leg.window_max = u64::from(seg.window);
        leg.headers = Some(Headers::of(&seg.l2, &seg.l3));
        leg.has_progressed(now);
        if let Some((value, echo)) = seg.options.timestamps {
            leg.clock.heard(value, echo);
        }
        self.note_answer(id, now);
    }

    /// The leg has answered the SYN: what it said before was late, of a connection that is over.
    fn note_answer(&mut self, id: LegId, now: Instant) {
        self.first_answer_at.get_or_insert(now);
        if id == self.primary {
            self.challenge = None;
        }
    }

    /// Decides whether the client can be answered.
    pub(super) fn settle_handshake(&mut self, cx: &mut Cx<'_>) {
        if self.opener == Opener::Servers {
            return self.settle_call(cx);
        }
        if self.challenge.is_some() {
            return; // the client decides
        }
        let open: Vec<LegId> = LegId::ALL.into_iter().filter(|&l| self.leg(l).is_open()).collect();
        let asked: Vec<LegId> =
            LegId::ALL.into_iter().filter(|&l| self.leg(l).state == LegState::SynSent).collect();
        let waited = self.first_answer_at.map(|at| cx.now.since(at));
        match (open.as_slice(), asked.as_slice()) {
            ([_, _], _) => self.open_visible(cx, None),
            ([one], []) => {
                let refused = self.leg(one.other()).reset_at.is_some();
                if refused {
                    cx.reports.push(Report::Refused(one.other()));
                }
                let why = match refused {
                    true => SoloReason::Handshake,
                    false => self.solo.unwrap_or(SoloReason::OneServer),
                };
                self.open_visible(cx, Some((*one, why)));
            }
            // The backup stands in for a silent primary only if it could carry on alone.
            ([one], [late])
                if is_late(cx, waited) && (*one == self.primary || cx.is_fit[one.index()]) =>
            {
                self.leg_mut(*late).state = LegState::Scrub;
                cx.event(Event::HoldHard { flow: self.key, waiting_for: *late });
                cx.reports.push(Report::Unanswered { leg: *late, alone: true });
                self.open_visible(cx, Some((*one, SoloReason::Handshake)));
            }
            ([], []) => self.refuse_client(cx),
            ([], [late])
                if waited >= Some(limits::REFUSAL_HOLD)
                    && self.leg(late.other()).reset_at.is_some() =>
            {
                self.refuse_client(cx);
            }
            _ => {}
        }
        if self.state == FlowState::Opening {
            self.end_known_older(cx);
        }
        self.resend_syn(cx);
    }

    /// The handshake is given up, or begun again by the client.
    pub(super) fn tell_unanswered(&self, cx: &mut Cx<'_>) {
        if self.state != FlowState::Opening || self.opener == Opener::Servers {
            return;
        }
        for leg in LegId::ALL {
            if self.leg(leg).state == LegState::SynSent {
                cx.reports.push(Report::Unanswered { leg, alone: false });
            }
        }
    }

    fn next_syn_at(&self) -> Option<Instant> {
        let schedule: &[Duration] = match self.promise {
            Some(_) => &limits::SYN_RESEND_ALONE,
            None => &limits::SYN_RESEND,
        };
        schedule.get(self.syn_resent).map(|&after| self.syn_at + after)
    }

    fn resend_syn(&mut self, cx: &mut Cx<'_>) {
        while let Some(due) = self.next_syn_at() {
            if cx.now < due || self.state != FlowState::Opening {
                break;
            }
            self.syn_resent += 1;
            for id in LegId::ALL {
                if self.leg(id).state == LegState::SynSent && cx.allowance.take(cx.now, id) {
                    self.send_syn_to(cx, id);
                }
            }
        }
    }

    pub(super) fn handshake_deadline(&self, cx: &Cx<'_>) -> Option<Instant> {
        let is_asking = self.opener == Opener::Client && self.challenge.is_none();
        if self.state != FlowState::Opening || !is_asking {
            return None;
        }
        let any_open = self.legs.iter().any(Leg::is_open);
        let hold = match any_open {
            true => cx.config.synack_hold(),
            false => limits::REFUSAL_HOLD,
        };
        let first = self.first_answer_at.filter(|_| !on(Bug::HandshakeNoTimer));
        let hold = first.map(|at| at + hold);
        self.next_syn_at().into_iter().chain(hold).chain(self.older_deadline()).min()
    }

    /// Freezes the constants and answers the client.
    fn open_visible(&mut self, cx: &mut Cx<'_>, solo: Option<(LegId, SoloReason)>) {
        if let Some((one, _)) = solo {
            self.primary = one;
        }
        let common = self.common_ground();
        let promise = self.promise.take();
        let v = &mut self.visible;
        v.is_open = true;
        v.told_ack = Offset::START;
        match &promise {
            None => {
                v.iss = Seq::new(self.legs[self.primary.index()].voice.effective_iss());
                v.window_scale = common.window_scale;
                v.has_sack = common.has_sack;
                v.has_timestamps = common.has_timestamps;
                v.told_edge = Offset::START + common.window;
            }
            Some(promise) => {
                v.iss = Seq::new(promise.iss);
                v.window_scale = promise.window_scale;
                v.has_sack = promise.has_sack;
                v.has_timestamps = promise.has_timestamps;
                v.told_edge = Offset::START + u64::from(cookies::WINDOW);
            }
        }
        if self.has_both() && promise.is_none() {
            self.learn(cx, common);
        }
        self.expires_at = cx.now + limits::HALF_OPEN_MAX;
        let (state, why) = Self::first_state(cx, solo.map(|(_, why)| why));
        let latest = self.leg(self.primary).clock.latest.unwrap_or_default();
        // No cookie had a later stamp than this moment's.
        let promised = promise.as_ref().filter(|p| p.has_timestamps);
        let shown = promised.map_or(latest, |_| own_clock(cx.now));
        self.begin_clocks(cx.now, shown);
        self.set_state(cx, state, why);
        match promise {
            None => self.show_syn(cx, common.mss),
            Some(promise) => self.hear_again(cx, *promise),
        }
    }

    /// How it goes on when everybody has answered; alone for this reason, if any.
    pub(super) fn first_state(
        cx: &Cx<'_>,
        solo: Option<SoloReason>,
    ) -> (FlowState, Option<SoloReason>) {
        match (solo, cx.config.mode) {
            (Some(_), _) => (FlowState::Solo, solo),
            (None, Mode::Protect) => (FlowState::Paired, None),
            (None, Mode::Observe | Mode::Passthrough) => (FlowState::Lagging, None),
        }
    }

    /// The clock that the client is shown begins with `shown`. A leg with timestamps where the
    /// client has none hears a clock of our own. It goes on from the SYN that the leg heard: what
    /// is older would be dropped as a late repetition (RFC 7323 5.3).
    pub(super) fn begin_clocks(&mut self, now: Instant, shown: Tsval) {
        for leg in &mut self.legs {
            match self.visible.has_timestamps {
                true => leg.continue_clock(now, shown),
                false => leg.clock.offset = TsDelta::between(own_clock(now), leg.clock.echo),
            }
        }
    }

    /// What all servers that take part, and the client, agree to.
    pub(super) fn common_ground(&self) -> Answer {
        let open = || self.legs.iter().filter(|l| l.is_open());
        let has_scale = open().all(|l| l.options.window_scale.is_some());
        let scales = || open().filter_map(|l| l.options.window_scale);
        let scale = if on(Bug::ScaleMax) { scales().max() } else { scales().min() };
        let client = &self.client;
        let edge = open().map(|l| l.edge).min().unwrap_or(Offset::START);
        let ttl = self.leg(self.primary).headers.map_or(L3::TTL, Headers::ttl);
        Answer {
            mss: open().map(|l| l.options.mss).min().unwrap_or(MSS_DEFAULT),
            window_scale: scale.filter(|_| has_scale && client.window_scale.is_some()),
            has_sack: client.offers_sack && open().all(|l| l.options.has_sack),
            has_timestamps: client.offers_timestamps && open().all(|l| l.options.has_timestamps),
            window: edge.since(Offset::START),
            ttl,
        }
    }

    /// Both servers have answered: the next clients' SYNs offer what both take, and a cookie may
    /// promise as much as this client was shown.
    fn learn(&self, cx: &mut Cx<'_>, common: Answer) {
        let offered = Offered {
            sack: self.client.offers_sack,
            timestamps: self.client.offers_timestamps,
            window_scale: self.client.window_scale.is_some(),
        };
        cx.cookies.learn(cx.now, self.key.server, common, offered);
        let taken = |has: fn(&LegOptions) -> bool| self.legs.each_ref().map(|l| has(&l.options));
        let mut learn = |offer, is_made, has_taken| {
            if is_made {
                cx.profile.learn(cx.now, offer, has_taken);
            }
        };
        learn(Offer::Sack, offered.sack, taken(|o| o.has_sack));
        learn(Offer::Timestamps, offered.timestamps, taken(|o| o.has_timestamps));
        learn(Offer::WindowScale, offered.window_scale, taken(|o| o.window_scale.is_some()));
    }

    /// The SYN that the client sees; with an ack of its own, if it has said one.
    pub(super) fn show_syn(&mut self, cx: &mut Cx<'_>, mss: u16) {
        let Some((l2, l3)) = self.leg_headers(self.primary) else { return };
        let stamps = self.visible.has_timestamps.then(|| self.stamps(cx.now)).flatten();
        let v = &self.visible;
        let (flags, ack) = match self.opener {
            Opener::Client => {
                (TcpFlags::SYN.with(TcpFlags::ACK), self.client.iss.at(Offset::START).raw())
            }
            Opener::Servers => (TcpFlags::SYN, 0),
        };
        let fields = TcpFields {
            src_port: self.key.server.port(),
            dst_port: self.key.client.port(),
            seq: v.iss.raw(),
            ack,
            flags,
            window: u16::try_from(v.told_edge.since(Offset::START)).unwrap_or(u16::MAX),
            urgent: 0,
            options: TcpOptions {
                mss: Some(mss),
                window_scale: v.window_scale,
                sack_permitted: v.has_sack,
                timestamps: stamps,
                ..TcpOptions::default()
            },
        };
        let l3 = cx.number(l3);
        let frame = build::tcp(&l2, &l3, &fields, EMPTY, u16::MAX);
        self.visible.syn_ack = Some(Box::new(frame.clone()));
        // Repeated before a distant client could answer, it is timed from here all the same: what
        // is too long is forgotten soon.
        self.client.timed = Some((Offset::START, cx.now));
        cx.transmit(Link::Client, frame);
    }

    /// Shows the SYN again: byte for byte, until the client has it; what asks for it later is an
    /// old duplicate, and hears where the connection stands (RFC 5961 4).
    pub(super) fn repeat_syn(&mut self, cx: &mut Cx<'_>) {
        match &self.visible.syn_ack {
            Some(frame) => cx.transmit(Link::Client, Frame::clone(frame)),
            None => self.visible.owes_ack = true,
        }
    }

    /// Nobody takes the connection: the client hears what a closed port says (RFC 9293 3.10.7.1).
    fn refuse_client(&mut self, cx: &mut Cx<'_>) {
        let (l2, l3) = self.client_headers();
        // Whoever was shown a number expects the next one.
        let next = self.promise.as_ref().map_or(0, |promise| promise.iss.wrapping_add(1));
        let fields = TcpFields {
            src_port: self.key.server.port(),
            dst_port: self.key.client.port(),
            seq: next,
            ack: self.client.iss.at(Offset::START).raw(),
            flags: TcpFlags::RST.with(TcpFlags::ACK),
            window: 0,
            urgent: 0,
            options: TcpOptions::default(),
        };
        let l3 = cx.number(l3.reversed());
        cx.transmit(Link::Client, build::tcp(&l2.reversed(), &l3, &fields, EMPTY, u16::MAX));
        for leg in &mut self.legs {
            if leg.state == LegState::SynSent {
                leg.state = LegState::Scrub;
            }
        }
        self.visible.reset = Some(Offset::SYN);
        self.forget(cx);
    }
}

impl Visible {
    /// Before the handshake.
    pub(super) fn closed() -> Self {
        Self {
            iss: Seq::new(0),
            window_scale: None,
            has_sack: false,
            has_timestamps: false,
            is_open: false,
            syn_ack: None,
            released: Offset::START,
            ahead: Ranges::default(),
            fin: None,
            reset: None,
            told_ack: Offset::SYN,
            told_edge: Offset::SYN,
            dup_acks: 0,
            told_sack: ToldBlocks::default(),
            owes_ack: false,
            is_asking: false,
            clock: ShownClock::default(),
            repeated: VecDeque::new(),
            probe_passed_at: None,
            takeover: None,
            takeover_at: None,
            differs_until: Offset::START,
            foreign_until: None,
            instead: Instead::default(),
            answered: Offset::START,
            verified_bytes: 0,
        }
    }
}

/// Whether a first answer has waited long enough for the second.
fn is_late(cx: &Cx<'_>, waited: Option<Duration>) -> bool {
    let is_over = waited >= Some(cx.config.synack_hold()) && !on(Bug::HandshakeNoTimer);
    is_over || on(Bug::SynAckEarly)
}
