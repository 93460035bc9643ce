//! The wire-level oracle: checks every frame that leaves the gateway against every frame that came
//! in, from outside the engine. Of the engine's events it believes only when roles and states
//! change; positions, bytes and windows it reads from the frames themselves ([`super::frames`]).
//!
//! Rules (names of the contract): I1 bytes shown were said by both while Paired, by the primary
//! afterwards, and what was shown once stays the same · I2, I3 acks and window edges shown are
//! below both, edges never shrink beyond the scale's rounding · I4 what a leg is sent is what
//! the client said · I6 acks to a leg are at most what it sent · I7 FIN and RST rules · I8
//! timestamps · I12 fenced servers · I13 checksums · LV1, LV3, LV5 by deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::canon::{Canon, Token};
use super::frames::{ACK, FIN, PSH, RST, Read, SYN, Seg, read};
use super::given::Cookies;
use super::host::PORT;
use super::jar::{Places, Shown};
use super::repeats::note_again;
use super::script::Script;
use super::second::Second;
use super::track::{FlowTrack, LegTrack, note_urgent, rel};
use super::world::SERVER_MAC;
use crate::engine::{Event, FlowSnapshot, FlowState, LegId, Link, ServerState};
use crate::wire::Offset;

/// Ports from which the engine probes the servers.
pub const PROBE_PORTS_FROM: u16 = 61_000;

/// A client's address and port.
pub type Tuple = ([u8; 4], u16);

/// How long waits may last (ns).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// hold_hard, if the lag policy releases at all.
    pub hold: Option<u64>,
    /// What servers that differ may wait for their sync.
    pub diverged: u64,
}

/// A client's SYN.
#[derive(Clone, Copy, Debug)]
struct Syn {
    number: u32,
    window: u16,
    scale: Option<u8>,
    mss: u16,
    has_sack: bool,
}

/// The oracle.
#[derive(Debug)]
pub struct Oracle {
    /// Live flows.
    pub flows: BTreeMap<Tuple, FlowTrack>,
    fenced: [bool; 2],
    primary: LegId,
    /// ARP replies that the primary has said and the client has not been shown.
    arp_replies: u64,
    /// The gateway has the service's address, and answers for it.
    is_vip: bool,
    /// In vip addressing: the gateway has yet to find this server, and what it says to it waits.
    is_sought: [bool; 2],
    /// The same of clients: SYN-ACKs to whom there was no flow, and which may still wait.
    passing: BTreeMap<(Tuple, usize), u32>,
    pending_syns: BTreeMap<Tuple, Syn>,
    /// SYN-ACKs to a SYN for which there is no flow yet.
    answered: BTreeMap<(Tuple, usize), LegTrack>,
    spans: BTreeMap<Tuple, Vec<Range<u64>>>,
    tokens: BTreeMap<Tuple, Vec<Token>>,
    places: BTreeMap<Tuple, Places>,
    seconds: BTreeMap<Tuple, Second>,
    /// Cookies that the gateway knows.
    shown: Shown,
    /// Answers of the gateway's own.
    cookies: Cookies,
    /// A client has come back with one of them.
    taken: Option<Tuple>,
    /// Cookies that a process took with it when it ended.
    lost: BTreeSet<Tuple>,
    limits: Limits,
    is_restoring: bool,
    /// Source and target of a sync of scope Machine, while they stand still.
    still: Option<(LegId, LegId)>,
    /// Nor does anybody hear before that.
    is_hushed: bool,
    used: BTreeSet<Tuple>,
    /// The first violation.
    pub violation: Option<String>,
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub fn new(limits: Limits, primary: LegId, is_vip: bool) -> Self {
        Self {
            flows: BTreeMap::new(),
            fenced: [false; 2],
            primary,
            arp_replies: 0,
            is_vip,
            is_sought: [false; 2],
            passing: BTreeMap::new(),
            pending_syns: BTreeMap::new(),
            answered: BTreeMap::new(),
            spans: BTreeMap::new(),
            tokens: BTreeMap::new(),
            places: BTreeMap::new(),
            seconds: BTreeMap::new(),
            shown: Shown::default(),
            cookies: Cookies::default(),
            taken: None,
            lost: BTreeSet::new(),
            limits,
            is_restoring: false,
            still: None,
            is_hushed: false,
            used: BTreeSet::new(),
            violation: None,
        }
    }

    /// Whether a connection of this 4-tuple was seen before.
    pub fn has_known(&self, tuple: &Tuple) -> bool {
        self.used.contains(tuple)
    }

    fn fail(&mut self, tuple: Tuple, what: impl std::fmt::Display) {
        if self.violation.is_none() {
            self.violation = Some(format!("port {}: {what}", tuple.1));
        }
    }

    /// What is said to the servers waits, until their sync ends.
    pub fn on_hushed(&mut self) {
        self.is_hushed = true;
    }

    /// Source and target of a sync, while they stand still.
    pub fn still(&self) -> Option<(LegId, LegId)> {
        self.still
    }

    /// A connection is about to start; `spans` are its masked values as offsets in the stream,
    /// `tokens` those of them that each server says at its own length, and `cookies` those that
    /// clients return.
    pub fn expect(
        &mut self,
        tuple: Tuple,
        spans: impl Iterator<Item = Range<usize>>,
        tokens: Vec<Token>,
        cookies: Places,
    ) {
        let spans = spans.map(|s| s.start as u64 + 1..s.end as u64 + 1).collect();
        self.spans.insert(tuple, spans);
        self.tokens.insert(tuple, tokens);
        self.places.insert(tuple, cookies);
    }

    /// The messages of a connection that is about to start.
    pub fn expect_messages(&mut self, tuple: Tuple, messages: Second) {
        self.seconds.insert(tuple, messages);
    }

    /// A client has asked more, which says so, and where its requests end.
    pub fn on_asked(&mut self, tuple: Tuple, conn: u16, said: &Script, ends: &[usize]) {
        let flow = self.flows.get_mut(&tuple).map(|flow| &mut flow.second);
        let both = flow.into_iter().chain(self.seconds.get_mut(&tuple));
        both.for_each(|second| second.ask(conn, ends));
        let flow = self.flows.get_mut(&tuple).map(|flow| &mut flow.cookies);
        let both = flow.into_iter().chain(self.places.get_mut(&tuple));
        both.for_each(|places| places.ask(conn, said));
    }

    // ---- what comes in ---------------------------------------------------------------------

    /// A frame reached the gateway.
    pub fn on_input(&mut self, now: u64, link: Link, frame: &[u8]) {
        // To nobody or to everybody, after a wrong bit on the way: not TCP's matter.
        let is_stray = match link {
            Link::Client => frame.get(..6) != Some(&SERVER_MAC),
            Link::Server(_) => frame.first().is_some_and(|b| b & 1 == 1),
        };
        if is_arp_reply(frame) && link == Link::Server(self.primary) {
            self.arp_replies += 1;
        }
        if let (true, Link::Server(leg)) = (is_arp_reply(frame), link) {
            self.is_sought[leg.index()] = self.is_vip && frame[22..28] != SERVER_MAC;
        }
        let Read::Tcp(seg) = read(frame, true) else { return };
        if is_stray {
            return;
        }
        match link {
            Link::Client if seg.dst.1 == PORT => {
                if !seg.has(SYN) && !self.flows.contains_key(&seg.src) {
                    self.cookies.note_stray(now, seg.src, frame);
                }
                self.on_client(now, &seg);
            }
            Link::Server(leg) if seg.src.1 == PORT && self.is_heard(leg) => {
                self.on_leg(now, leg, &seg);
            }
            _ => {}
        }
    }

    fn is_heard(&self, leg: LegId) -> bool {
        !self.fenced[leg.index()] && self.still.is_none_or(|(_, to)| to != leg)
    }

    fn on_client(&mut self, now: u64, seg: &Seg<'_>) {
        let tuple = seg.src;
        if seg.has(SYN) {
            let (number, window, scale, has_sack) = (seg.seq, seg.window, seg.scale, seg.sack_ok);
            let mss = seg.mss.unwrap_or(536);
            let syn = Syn { number, window, scale, mss, has_sack };
            if self.pending_syns.insert(tuple, syn).is_some_and(|s| s.number != seg.seq) {
                self.answered.retain(|(of, _), _| *of != tuple);
            }
        }
        let Some(flow) = self.flows.get_mut(&tuple) else { return };
        let seg = &flow.hear_client(seg);
        flow.c_heard_at = now;
        flow.c_last_number = seg.has(ACK).then_some(seg.ack);
        if seg.has(SYN) {
            // A late copy of it says nothing any more.
            if seg.seq == flow.iss && flow.v_iss.is_none() {
                (flow.c_scale, flow.c_edge) = (seg.scale, u64::from(seg.window) + 1);
            }
            flow.asks += u64::from(seg.seq != flow.iss);
            return;
        }
        let Some(at) = rel(flow.iss, seg.seq, flow.c_nxt).filter(|&at| at > 0) else { return };
        if seg.has(RST) {
            return;
        }
        let end = at + seg.data.len() as u64;
        flow.client.insert(at, seg.data);
        flow.note_returned(now);
        note_urgent(&mut flow.c_urgent, seg, at);
        let is_old = end <= flow.told_ack && !seg.data.is_empty();
        let asks = is_old || (seg.data.is_empty() && !seg.has(FIN) && at < flow.c_nxt);
        if seg.data.is_empty() || end <= flow.c_nxt {
            flow.asks += 1;
        }
        flow.c_nxt = flow.c_nxt.max(end);
        if seg.has(FIN) {
            flow.c_fin = Some(end);
            flow.c_nxt = flow.c_nxt.max(end + 1);
        }
        let Some(v_iss) = flow.v_iss.filter(|_| seg.has(ACK)) else { return };
        // A new process knows of the clock shown only what the client's first word tells, and
        // smoltcp's challenge acks tell nothing.
        if std::mem::take(&mut flow.is_unheard) {
            flow.ts_last = seg.stamps.map(|(_, echo)| echo);
        }
        let known = flow.shown.end() + 1;
        // Above that it is a late segment of an older connection.
        if let Some(ack) = rel(v_iss, seg.ack, flow.c_una).filter(|&ack| ack <= known) {
            flow.c_last_ack = ack;
            flow.dues.asked |= asks;
            flow.c_una = flow.c_una.max(ack);
            let scale = if flow.v_has_scale() { flow.c_scale.unwrap_or(0) } else { 0 };
            flow.c_edge = flow.c_edge.max(ack + (u64::from(seg.window) << scale));
            let said = LegId::ALL.map(|l| flow.said(l));
            if seg.window == 0 || flow.c_edge <= said[0].max(said[1]) {
                flow.closed_at = Some(now);
            }
        }
    }

    fn on_leg(&mut self, now: u64, id: LegId, seg: &Seg<'_>) {
        let Some(flow) = self.flows.get_mut(&seg.dst) else {
            if self.is_vip && seg.has(SYN | ACK) {
                self.passing.insert((seg.dst, id.index()), seg.seq);
            }
            return;
        };
        let mut room = Vec::new();
        let seg = &flow.hear_leg(id, seg, &mut room);
        let (iss, c_una, c_nxt) = (flow.iss, flow.c_una, flow.c_nxt);
        let goes_on_without = flow.state == FlowState::Solo && id != flow.primary;
        let (leg, canon, heard) = (&mut flow.legs[id.index()], &flow.canon, &flow.cookies);
        // Neither what was late on its way nor a question of the server's own.
        let is_recent = leg.place(seg.seq).is_some_and(|at| at >= leg.nxt);
        let is_answer = seg.data.is_empty() && !seg.has(SYN) && !seg.has(FIN) && !seg.has(RST);
        if is_answer && is_recent && flow.dues.asked && id == flow.primary {
            flow.dues.answered.get_or_insert(now);
        }
        if let Some((value, _)) = seg.stamps {
            if leg.stamps.len() == 4096 {
                leg.stamps.pop_front();
            }
            leg.stamps.push_back(value);
        }
        let is_challenge = !seg.has(SYN) && seg.has(ACK) && seg.ack == iss.wrapping_add(1);
        if is_challenge && leg.iss.is_none() {
            // An older attempt with the same number, if it is reset; or this one's SYN-ACK is late.
            leg.older_iss = Some(seg.seq.wrapping_sub(1));
        }
        if seg.has(SYN | ACK) && leg.stale_iss != Some(seg.seq) {
            let pending = self.pending_syns.get(&seg.dst).map(|syn| syn.number);
            let expected = iss.wrapping_add(flow.second.expected(id));
            let is_new = leg.iss.is_none() || (leg.is_answer_void && leg.iss != Some(seg.seq));
            if is_new && seg.ack == expected {
                leg.answer(now, seg);
                flow.begin_second(id);
            } else if pending
                .is_some_and(|number| number != iss && seg.ack == number.wrapping_add(1))
            {
                // Over at the server already: the answer to the next connection's SYN.
                let mut next = LegTrack::default();
                next.answer(now, seg);
                self.answered.insert((seg.dst, id.index()), next);
            }
            return;
        }
        let Some(leg_iss) = leg.iss else {
            leg.was_reset |= seg.has(RST);
            return;
        };
        let Some(at) = rel(leg_iss, seg.seq, leg.nxt) else { return };
        // What it acknowledges it counts as it hears it.
        let own_ack = heard.own_place(id, iss, seg.ack, leg.acked);
        let acks = own_ack.map(|own| heard.place(id, own, 0, false));
        let is_stray = acks.is_none_or(|ack| ack > c_nxt);
        if seg.has(ACK) && is_stray {
            return; // it acknowledges what nobody said: a late segment of an older connection
        }
        leg.ip = Some(seg.ip);
        if seg.has(RST) {
            leg.was_reset = true;
            if at == leg.nxt {
                leg.has_reset = true;
            }
            return;
        }
        if goes_on_without && seg.has(ACK) {
            leg.lingers_since.get_or_insert(now);
        }
        let end = at + seg.data.len() as u64;
        let had = leg.said.end_from(1);
        if !seg.data.is_empty() && end <= had {
            leg.pending_duplicate = match leg.pending_duplicate {
                // Acks to one that is sought wait, and the first was made before this. What was
                // owed until now may have given its place to this.
                _ if self.is_sought[id.index()] => None,
                Some((f, t)) if at <= t && f <= end => Some((f.min(at), t.max(end))),
                _ => Some((at, end)),
            };
        }
        if !seg.data.is_empty() {
            let new: u64 = leg.said.gaps(at, end).iter().map(|(f, t)| t - f).sum();
            if new < end - at {
                // Whoever repeats a part of a value repeats the value.
                note_again(&mut leg.again, now, canon.floor(id, at), canon.ceil(id, end));
            }
            if canon.ceil(id, end) + u64::from(seg.has(FIN)) <= c_una {
                leg.unanswered.get_or_insert(now);
            }
            note_urgent(&mut leg.urgent, seg, at);
        }
        if seg.has(PSH) {
            leg.psh_at = end;
        }
        if at > 0 {
            leg.said.insert(at, seg.data);
        }
        if end > at || seg.has(FIN) {
            leg.said_at = now;
        }
        leg.nxt = leg.nxt.max(end);
        if seg.has(FIN) {
            leg.fin = Some(end);
            leg.nxt = leg.nxt.max(end + 1);
        }
        let before = (leg.acked, leg.edge);
        if let (Some(ack), Some(own), true) = (acks, own_ack, seg.has(ACK)) {
            // A probe of a closed window may have a byte (RFC 9293 3.8.6.1).
            if seg.data_len <= 1 && ack == leg.acked {
                leg.bare_acks += 1;
            } else if ack > leg.acked {
                leg.bare_acks = 0;
            }
            leg.acked = leg.acked.max(ack);
            let window = u64::from(seg.window) << leg.scale.unwrap_or(0);
            leg.edge = leg.edge.max(heard.place(id, own, window, false));
            leg.window_max = leg.window_max.max(window);
            for &(left, right) in &seg.sack {
                let place =
                    |raw: u32, is_up: bool| Some(heard.place(id, rel(iss, raw, own)?, 0, is_up));
                if let (Some(l), Some(r)) = (place(left, true), place(right, false))
                    && l > ack
                    && r > l
                {
                    leg.sacked.insert(l, r);
                }
            }
        }
        // A window that grows by less than a segment lets nobody say more.
        let opens = leg.edge.saturating_sub(before.1) >= u64::from(leg.mss);
        if leg.said.end_from(1) > had || leg.acked != before.0 || opens {
            leg.progress_at = now;
        }
    }

    // ---- what the engine says about itself -------------------------------------------------

    /// An event of the engine, in the order of its outputs.
    pub fn on_event(&mut self, event: &Event) {
        match event {
            Event::CookieTaken { flow } => self.taken = Some(tuple_of(flow)),
            Event::FlowOpened { flow } if !self.is_restoring => {
                let tuple = tuple_of(flow);
                if self.taken.take() == Some(tuple) {
                    return self.on_return(tuple);
                }
                let spans = self.spans.get(&tuple).cloned().unwrap_or_default();
                let canon = Canon::new(self.tokens.get(&tuple).cloned().unwrap_or_default());
                if let Some(syn) = self.pending_syns.get(&tuple) {
                    let mut track = FlowTrack::new(syn.number, spans, syn.has_sack, self.primary);
                    track.canon = canon;
                    track.cookies = self.places.get(&tuple).cloned().unwrap_or_default();
                    track.second = self.seconds.get(&tuple).cloned().unwrap_or_default();
                    (track.c_scale, track.c_edge) = (syn.scale, u64::from(syn.window) + 1);
                    track.c_mss = syn.mss;
                    for (i, leg) in track.legs.iter_mut().enumerate() {
                        let answer = self.answered.remove(&(tuple, i));
                        *leg = answer.unwrap_or_default();
                    }
                    self.used.insert(tuple);
                    self.flows.insert(tuple, track);
                }
            }
            Event::FlowChanged { flow, to, primary, .. } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.state = *to;
                    track.on_primary(*primary);
                    (track.held_since, track.full_since) = (None, None);
                    track.is_to_pair = false;
                }
            }
            Event::ValueReplaced { flow, to, at, .. } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.note_replaced(*to, at.since(Offset::START) + 1);
                }
            }
            Event::ValueKept { flow, to, at, .. } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.cookies.keep(*to, at.since(Offset::START) + 1);
                }
            }
            Event::Reprotected { flow, server } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.second.has_begun[server.index()] = true;
                }
            }
            Event::EarlyEnd { flow, loser } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.legs[loser.index()].is_detached = true;
                }
            }
            Event::Promoted { primary, .. } => {
                self.primary = *primary;
                // Those that stay Paired, in a planned change, say nothing of their own.
                for flow in self.flows.values_mut().filter(|f| f.state == FlowState::Paired) {
                    flow.on_primary(*primary);
                }
            }
            Event::SyncFrozen { from, to, .. } => self.still = Some((*from, *to)),
            Event::SyncEnded { ok, .. } => {
                if std::mem::take(&mut self.is_hushed) {
                    self.forgive();
                }
                if let Some((from, to)) = self.still.take() {
                    self.forgive();
                    if *ok {
                        self.on_copied(from, to);
                    }
                }
            }
            Event::FlowReset { flow, .. } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.was_reset = true;
                }
            }
            Event::FlowClosed { flow, .. } => {
                self.flows.remove(&tuple_of(flow));
            }
            Event::ServerChanged { server, to, .. } => {
                let is_fenced = matches!(to, ServerState::Failed | ServerState::Returning);
                self.fenced[server.index()] = is_fenced;
                for flow in self.flows.values_mut().filter(|_| is_fenced) {
                    flow.legs[server.index()].is_detached = true;
                }
            }
            _ => {}
        }
    }

    /// A client comes back with a cookie: its flow begins with what it was shown.
    fn on_return(&mut self, tuple: Tuple) {
        let Some((at, frame, given)) = self.cookies.taken(&tuple) else {
            return self.fail(tuple, "a flow with a cookie that was not given");
        };
        let frame = frame.to_vec();
        let spans = self.spans.get(&tuple).cloned().unwrap_or_default();
        let mut track = FlowTrack::new(given.iss, spans, given.has_sack, self.primary);
        track.canon = Canon::new(self.tokens.get(&tuple).cloned().unwrap_or_default());
        track.cookies = self.places.get(&tuple).cloned().unwrap_or_default();
        track.second = self.seconds.get(&tuple).cloned().unwrap_or_default();
        if let Some(syn) = self.pending_syns.get(&tuple).filter(|s| s.number == given.iss) {
            (track.c_scale, track.c_mss) = (syn.scale, syn.mss);
        }
        track.keep(&given);
        self.used.insert(tuple);
        self.flows.insert(tuple, track);
        if let Read::Tcp(seg) = read(&frame, true) {
            self.on_client(at, &seg);
        }
    }

    /// Whether the client's cookie died with the process that gave it.
    pub fn has_lost_cookie(&self, tuple: &Tuple) -> bool {
        self.lost.contains(tuple)
    }

    /// What `from` has said and heard, `to` has said and heard.
    fn on_copied(&mut self, from: LegId, to: LegId) {
        for flow in self.flows.values_mut() {
            flow.on_copied(from, to);
        }
        self.answered.retain(|&(_, leg), _| leg != to.index());
        let copies = self.answered.iter().map(|((t, _), leg)| ((*t, to.index()), leg.clone()));
        let copies: Vec<_> = copies.collect();
        self.answered.extend(copies);
    }

    /// The gateway starts again: what it says while it restores is about flows known already.
    pub fn on_restart(&mut self, is_restoring: bool, flows: &[FlowSnapshot]) {
        self.is_restoring = is_restoring;
        if is_restoring {
            (self.still, self.is_hushed) = (None, false);
            self.fenced = [false; 2];
            self.shown.forget();
            self.flows.values_mut().for_each(|flow| flow.cookies.forget());
            // A handshake leaves no record: what becomes of it passes to the primary. So does a
            // cookie, whose key is gone.
            let is_paired = |f: &FlowTrack| f.state != FlowState::Opening;
            let used = std::mem::take(&mut self.cookies).tuples();
            let lost = used.filter(|t| !self.flows.get(t).is_some_and(is_paired));
            self.lost.extend(lost);
            self.flows.retain(|_, flow| flow.state != FlowState::Opening);
            for flow in self.flows.values_mut() {
                flow.on_lost();
                (flow.was_restored, flow.is_unheard, flow.ts_last) = (true, true, None);
                // What was held is gone; it is shown when it has been said again.
                let released = flow.released().max(1);
                flow.legs.iter_mut().for_each(|leg| leg.said.forget_from(released));
            }
            return;
        }
        for snapshot in flows {
            if let Some(track) = self.flows.get_mut(&tuple_of(&snapshot.key)) {
                (track.state, track.primary) = (snapshot.state, snapshot.primary);
                track.forgive();
                for leg in &mut track.legs {
                    leg.pending_duplicate = None;
                }
            }
        }
    }

    // ---- what goes out ---------------------------------------------------------------------

    /// A frame left the gateway.
    pub fn on_output(&mut self, now: u64, link: Link, frame: &[u8]) {
        if is_arp_reply(frame) && link == Link::Client && !self.is_vip {
            match self.arp_replies.checked_sub(1) {
                Some(left) => self.arp_replies = left,
                None => self.fail(([0; 4], 0), "I10: an ARP reply that the primary has not said"),
            }
        }
        let seg = match read(frame, true) {
            Read::Tcp(seg) => seg,
            Read::Broken(what) => {
                return self
                    .fail(([0; 4], 0), format!("I13: a frame to {link:?} has a bad {what}"));
            }
            Read::Other => return,
        };
        match link {
            Link::Client if seg.dst.1 >= PROBE_PORTS_FROM => {
                self.fail(seg.dst, "I10: the answer to a probe was shown to a client");
            }
            Link::Client if seg.src.1 == PORT => {
                let tuple = seg.dst;
                let mut waits = |leg| self.passing.remove(&(tuple, leg)) == Some(seg.seq);
                let has_waited = seg.has(SYN | ACK) && (waits(0) || waits(1));
                let Some(mut flow) = self.flows.remove(&tuple) else {
                    return self.cookies.note_shown(&seg);
                };
                if has_waited && flow.state == FlowState::Opening {
                    self.flows.insert(tuple, flow); // which has begun since, and shows nothing yet
                    return;
                }
                let had_ended = flow.shown_fin.is_some();
                let mut room = Vec::new();
                let seg = flow.tell_client(&seg, &mut room);
                let checked = flow.check_to_client(now, &seg);
                flow.note_set(now, &mut self.shown);
                if !had_ended && flow.shown_fin.is_some() {
                    flow.note_left_behind(now);
                }
                self.flows.insert(tuple, flow);
                if let Err(what) = checked {
                    self.fail(tuple, what);
                }
            }
            Link::Server(leg) if seg.dst.1 == PORT => {
                let tuple = seg.src;
                let pending = self.pending_syns.get(&tuple).map(|syn| syn.number.wrapping_add(1));
                if seg.has(RST) && pending == Some(seg.seq) {
                    self.answered.remove(&(tuple, leg.index()));
                }
                let Some(mut flow) = self.flows.remove(&tuple) else { return };
                let is_overwritten = self.still.is_some_and(|(_, to)| to == leg);
                // It has waited until its server was found, and is of the connection before.
                let has_waited = self.is_vip && flow.leg(leg).iss.is_none() && !seg.has(SYN);
                let checked = match is_overwritten {
                    true => Err(format!("1.14: a segment to {leg:?}, which is overwritten")),
                    false if has_waited && !seg.has(RST) => Ok(()),
                    false => flow.check_to_leg(now, leg, &flow.tell_leg(leg, &seg), &self.shown),
                };
                let checked = match !is_overwritten && seg.has(SYN) {
                    true => checked.and_then(|()| flow.check_second(leg, &seg, self.is_vip)),
                    false => checked,
                };
                self.flows.insert(tuple, flow);
                if let Err(what) = checked {
                    self.fail(tuple, what);
                }
            }
            _ => {}
        }
    }

    /// Deadlines: what should have left the gateway by now (LV1, LV3, LV5).
    pub fn on_time(&mut self, now: u64) {
        if self.still.is_some() || self.is_hushed {
            return self.forgive(); // nobody can be late
        }
        let mut failed = None;
        for (&tuple, flow) in &mut self.flows {
            for leg in LegId::ALL.into_iter().filter(|leg| self.is_sought[leg.index()]) {
                flow.forgive_leg(leg);
            }
            if let Err(what) = flow.check_deadlines(now, self.limits, self.fenced) {
                failed = Some((tuple, what));
                break;
            }
        }
        if let Some((tuple, what)) = failed {
            self.fail(tuple, what);
        }
    }

    /// A link is there, now or again.
    pub fn on_link(&mut self, link: Link) {
        if let Link::Server(leg) = link {
            self.is_sought[leg.index()] = self.is_vip;
        }
    }

    /// The gateway stood still: deadlines begin anew.
    pub fn forgive(&mut self) {
        for flow in self.flows.values_mut() {
            flow.forgive();
        }
    }
}

fn is_arp_reply(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
}

/// The client's side of a flow's key.
pub fn tuple_of(flow: &crate::engine::FlowKey) -> Tuple {
    match flow.client.ip() {
        std::net::IpAddr::V4(ip) => (ip.octets(), flow.client.port()),
        std::net::IpAddr::V6(_) => ([0; 4], flow.client.port()),
    }
}
