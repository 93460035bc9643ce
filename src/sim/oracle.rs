//! The wire-level oracle: checks every frame that leaves the gateway against every frame that came
//! in, from outside the engine. Of the engine's events it believes only when roles and states
//! change; positions, bytes and windows it reads from the frames themselves ([`super::frames`]).
//!
//! Rules (names of the contract): I1 bytes shown were said by both while Paired, by the primary
//! afterwards, and what was shown once stays the same · I2, I3 acks and window edges shown are
//! below both, edges never shrink beyond the scale's rounding · I4 what a leg is sent is what
//! the client said · I6 acks to a leg are at most what it sent · I7 FIN and RST rules · I8
//! timestamps · I12 fenced servers · I13 checksums · LV1, LV3, LV5 by deadlines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use super::frames::{ACK, FIN, Known, RST, Read, SYN, Seg, read};
use super::host::PORT;
use crate::engine::{Event, FlowSnapshot, FlowState, LegId, Link, ServerState};

/// A client's address and port.
pub type Tuple = ([u8; 4], u16);

/// How long an answer that is due at once may take (ns).
const AT_ONCE: u64 = 20_000_000;
/// How much longer than `hold_hard` a hold may last (ns): a server without room for a segment is
/// late only when its own probe of the window is.
const HOLD_SLACK: u64 = 1_400_000_000;

/// One server's side of a flow.
#[derive(Clone, Debug, Default)]
pub struct LegTrack {
    iss: Option<u32>,
    /// What it said; offset 0 is the SYN.
    pub said: Known,
    /// Highest offset sent, FIN included.
    nxt: u64,
    acked: u64,
    edge: u64,
    scale: Option<u8>,
    has_sack: bool,
    /// Where its FIN stands.
    pub fin: Option<u64>,
    /// It sent a reset.
    pub was_reset: bool,
    stamps: VecDeque<u32>,
    told_ack: u64,
    told_edge: u64,
    pending_duplicate: Option<(u64, u64)>,
    bare_acks: u64,
    behind_since: Option<u64>,
    progress_at: u64,
}

/// One flow.
#[derive(Clone, Debug)]
pub struct FlowTrack {
    iss: u32,
    /// By the engine's events.
    pub state: FlowState,
    /// By the engine's events.
    pub primary: LegId,
    /// Both servers.
    pub legs: [LegTrack; 2],
    client: Known,
    c_nxt: u64,
    c_una: u64,
    /// The ack of its latest segment, old ones included.
    c_last_ack: u64,
    c_edge: u64,
    c_scale: Option<u8>,
    c_fin: Option<u64>,
    has_sack: bool,
    asks: u64,
    v_iss: Option<u32>,
    v_scale: u8,
    /// What the client was shown.
    pub shown: Known,
    shown_fin: Option<u64>,
    told_ack: u64,
    told_edge: u64,
    repeats: u64,
    ts_last: Option<u32>,
    acked_since: Option<u64>,
    held_since: Option<u64>,
    spans: Vec<Range<u64>>,
    /// The engine reset it.
    pub was_reset: bool,
    was_restored: bool,
}

/// How long waits may last (ns).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// hold_hard, if the lag policy releases at all.
    pub hold: Option<u64>,
}

/// The oracle.
#[derive(Debug)]
pub struct Oracle {
    /// Live flows.
    pub flows: BTreeMap<Tuple, FlowTrack>,
    fenced: [bool; 2],
    pending_syns: BTreeMap<Tuple, (u32, Option<u8>, bool)>,
    spans: BTreeMap<Tuple, Vec<Range<u64>>>,
    limits: Limits,
    is_restoring: bool,
    used: BTreeSet<Tuple>,
    /// The first violation.
    pub violation: Option<String>,
}

fn rel(iss: u32, number: u32, near: u64) -> Option<u64> {
    let step = number.wrapping_sub(iss.wrapping_add(near as u32)) as i32;
    near.checked_add_signed(i64::from(step))
}

fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl LegTrack {
    /// Whether it answered the SYN.
    pub fn has_answered(&self) -> bool {
        self.iss.is_some()
    }
}

impl FlowTrack {
    fn new(iss: u32, spans: Vec<Range<u64>>, has_sack: bool) -> Self {
        Self {
            iss,
            state: FlowState::Opening,
            primary: LegId::A,
            legs: Default::default(),
            client: Known::default(),
            c_nxt: 1,
            c_una: 0,
            c_last_ack: 0,
            c_edge: 0,
            c_scale: None,
            c_fin: None,
            has_sack,
            asks: 0,
            v_iss: None,
            v_scale: 0,
            shown: Known::default(),
            shown_fin: None,
            told_ack: 0,
            told_edge: 0,
            repeats: 0,
            ts_last: None,
            acked_since: None,
            held_since: None,
            spans,
            was_reset: false,
            was_restored: false,
        }
    }

    /// Lagging, and the backup has not moved for two seconds.
    pub fn is_late_orphan(&self, now: u64) -> bool {
        let moved = self.leg(self.primary.other()).progress_at;
        self.state == FlowState::Lagging && now.saturating_sub(moved) >= 1_900_000_000
    }

    /// One leg.
    pub fn leg(&self, leg: LegId) -> &LegTrack {
        &self.legs[leg.index()]
    }

    /// End of what the client was shown without a hole.
    pub fn released(&self) -> u64 {
        self.shown.end_from(1)
    }

    /// Whether bytes are held to be compared.
    pub fn is_paired(&self) -> bool {
        matches!(self.state, FlowState::Paired | FlowState::Diverged)
    }

    /// Whether the client's window is closed at what was shown.
    pub fn is_window_closed(&self) -> bool {
        self.c_una > 0 && self.c_edge <= self.released()
    }

    /// A value that a mask covers and that starts where the release stands.
    pub fn open_span(&self) -> Option<&Range<u64>> {
        let released = self.released();
        self.spans.iter().find(|s| s.start == released)
    }

    /// Whether bytes that one leg said and the client has not seen stand across the wrap.
    pub fn holds_wrap(&self) -> bool {
        let Some(iss) = self.v_iss else { return false };
        let (from, to) = (self.released(), LegId::ALL.map(|l| self.said(l)));
        let wrap = u64::from(0u32.wrapping_sub(iss));
        let to = to[0].max(to[1]);
        wrap > from && wrap < to
    }

    /// End of what `leg` said without a hole.
    pub fn said(&self, leg: LegId) -> u64 {
        self.leg(leg).said.end_from(1).max(1)
    }

    /// One FIN was heard and none shown.
    pub fn holds_fin(&self) -> bool {
        self.is_paired()
            && self.shown_fin.is_none()
            && LegId::ALL.iter().any(|&l| self.leg(l).fin == Some(self.said(l)))
    }
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            flows: BTreeMap::new(),
            fenced: [false; 2],
            pending_syns: BTreeMap::new(),
            spans: BTreeMap::new(),
            limits,
            is_restoring: false,
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

    /// A connection is about to start; `spans` are its masked values as offsets in the stream.
    pub fn expect(&mut self, tuple: Tuple, spans: impl Iterator<Item = Range<usize>>) {
        let spans = spans.map(|s| s.start as u64 + 1..s.end as u64 + 1).collect();
        self.spans.insert(tuple, spans);
    }

    // ---- what comes in ---------------------------------------------------------------------

    /// A frame reached the gateway.
    pub fn on_input(&mut self, now: u64, link: Link, frame: &[u8]) {
        let Read::Tcp(seg) = read(frame, true) else { return };
        match link {
            Link::Client if seg.dst.1 == PORT => self.on_client(&seg),
            Link::Server(leg) if seg.src.1 == PORT && !self.fenced[leg.index()] => {
                self.on_leg(now, leg, &seg);
            }
            _ => {}
        }
    }

    fn on_client(&mut self, seg: &Seg<'_>) {
        let tuple = seg.src;
        if seg.has(SYN) {
            self.pending_syns.insert(tuple, (seg.seq, seg.scale, seg.sack_ok));
        }
        let Some(flow) = self.flows.get_mut(&tuple) else { return };
        if seg.has(SYN) {
            if seg.seq == flow.iss {
                (flow.c_scale, flow.c_edge) = (seg.scale, u64::from(seg.window) + 1);
            }
            return;
        }
        let Some(at) = rel(flow.iss, seg.seq, flow.c_nxt).filter(|&at| at > 0) else { return };
        if seg.has(RST) {
            return;
        }
        let end = at + seg.data.len() as u64;
        flow.client.insert(at, seg.data);
        if seg.data.is_empty() || end <= flow.c_nxt {
            flow.asks += 1;
        }
        flow.c_nxt = flow.c_nxt.max(end);
        if seg.has(FIN) {
            flow.c_fin = Some(end);
            flow.c_nxt = flow.c_nxt.max(end + 1);
        }
        let Some(v_iss) = flow.v_iss.filter(|_| seg.has(ACK)) else { return };
        if let Some(ack) = rel(v_iss, seg.ack, flow.c_una) {
            flow.c_last_ack = ack;
            flow.c_una = flow.c_una.max(ack);
            let scale = if flow.v_has_scale() { flow.c_scale.unwrap_or(0) } else { 0 };
            flow.c_edge = flow.c_edge.max(ack + (u64::from(seg.window) << scale));
        }
    }

    fn on_leg(&mut self, now: u64, id: LegId, seg: &Seg<'_>) {
        let Some(flow) = self.flows.get_mut(&seg.dst) else { return };
        let iss = flow.iss;
        let leg = &mut flow.legs[id.index()];
        if let Some((value, _)) = seg.stamps {
            if leg.stamps.len() == 4096 {
                leg.stamps.pop_front();
            }
            leg.stamps.push_back(value);
        }
        if seg.has(SYN | ACK) {
            if leg.iss.is_none() && seg.ack == iss.wrapping_add(1) {
                leg.iss = Some(seg.seq);
                (leg.scale, leg.has_sack) = (seg.scale, seg.sack_ok);
                (leg.nxt, leg.acked) = (1, 1);
                leg.edge = 1 + u64::from(seg.window);
                leg.progress_at = now;
            }
            return;
        }
        let Some(leg_iss) = leg.iss else {
            leg.was_reset |= seg.has(RST);
            return;
        };
        let Some(at) = rel(leg_iss, seg.seq, leg.nxt) else { return };
        if seg.has(RST) {
            leg.was_reset = true;
            return;
        }
        let end = at + seg.data.len() as u64;
        let had = leg.said.end_from(1);
        if !seg.data.is_empty() && end <= had {
            leg.pending_duplicate = match leg.pending_duplicate {
                Some((f, t)) if at <= t && f <= end => Some((f.min(at), t.max(end))),
                _ => Some((at, end)),
            };
        }
        if at > 0 {
            leg.said.insert(at, seg.data);
        }
        leg.nxt = leg.nxt.max(end);
        if seg.has(FIN) {
            leg.fin = Some(end);
            leg.nxt = leg.nxt.max(end + 1);
        }
        let before = (leg.acked, leg.edge);
        if let Some(ack) = rel(iss, seg.ack, leg.acked).filter(|_| seg.has(ACK)) {
            if seg.data.is_empty() && ack == leg.acked {
                leg.bare_acks += 1;
            } else if ack > leg.acked {
                leg.bare_acks = 0;
            }
            leg.acked = leg.acked.max(ack);
            leg.edge = leg.edge.max(ack + (u64::from(seg.window) << leg.scale.unwrap_or(0)));
        }
        if leg.said.end_from(1) > had || (leg.acked, leg.edge) != before {
            leg.progress_at = now;
        }
    }

    // ---- what the engine says about itself -------------------------------------------------

    /// An event of the engine, in the order of its outputs.
    pub fn on_event(&mut self, event: &Event) {
        match event {
            Event::FlowOpened { flow } if !self.is_restoring => {
                let tuple = tuple_of(flow);
                let spans = self.spans.get(&tuple).cloned().unwrap_or_default();
                if let Some(&(iss, scale, has_sack)) = self.pending_syns.get(&tuple) {
                    let mut track = FlowTrack::new(iss, spans, has_sack);
                    track.c_scale = scale;
                    self.used.insert(tuple);
                    self.flows.insert(tuple, track);
                }
            }
            Event::FlowChanged { flow, to, primary, .. } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    (track.state, track.primary) = (*to, *primary);
                    track.held_since = None;
                }
            }
            Event::FlowReset { flow } => {
                if let Some(track) = self.flows.get_mut(&tuple_of(flow)) {
                    track.was_reset = true;
                }
            }
            Event::FlowClosed { flow, .. } => {
                self.flows.remove(&tuple_of(flow));
            }
            Event::ServerChanged { server, to, .. } => {
                self.fenced[server.index()] =
                    matches!(to, ServerState::Failed | ServerState::Returning);
            }
            _ => {}
        }
    }

    /// The gateway starts again: what it says while it restores is about flows known already.
    pub fn on_restart(&mut self, is_restoring: bool, flows: &[FlowSnapshot]) {
        self.is_restoring = is_restoring;
        if is_restoring {
            self.fenced = [false; 2];
            self.flows.values_mut().for_each(|f| f.was_restored = true);
            return;
        }
        for snapshot in flows {
            if let Some(track) = self.flows.get_mut(&tuple_of(&snapshot.key)) {
                (track.state, track.primary) = (snapshot.state, snapshot.primary);
                (track.held_since, track.acked_since) = (None, None);
                for leg in &mut track.legs {
                    leg.pending_duplicate = None;
                    leg.behind_since = None;
                }
            }
        }
    }

    // ---- what goes out ---------------------------------------------------------------------

    /// A frame left the gateway.
    pub fn on_output(&mut self, now: u64, link: Link, frame: &[u8]) {
        let seg = match read(frame, true) {
            Read::Tcp(seg) => seg,
            Read::Broken(what) => {
                return self
                    .fail(([0; 4], 0), format!("I13: a frame to {link:?} has a bad {what}"));
            }
            Read::Other => return,
        };
        match link {
            Link::Client if seg.src.1 == PORT => {
                let tuple = seg.dst;
                let Some(mut flow) = self.flows.remove(&tuple) else { return };
                let checked = flow.check_to_client(&seg);
                self.flows.insert(tuple, flow);
                if let Err(what) = checked {
                    self.fail(tuple, what);
                }
            }
            Link::Server(leg) if seg.dst.1 == PORT => {
                let tuple = seg.src;
                let Some(mut flow) = self.flows.remove(&tuple) else { return };
                let checked = flow.check_to_leg(now, leg, &seg);
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
        let mut failed = None;
        for (&tuple, flow) in &mut self.flows {
            if let Err(what) = flow.check_deadlines(now, self.limits, self.fenced) {
                failed = Some((tuple, what));
                break;
            }
        }
        if let Some((tuple, what)) = failed {
            self.fail(tuple, what);
        }
    }

    /// The gateway stood still: deadlines begin anew.
    pub fn forgive(&mut self) {
        for flow in self.flows.values_mut() {
            (flow.held_since, flow.acked_since) = (None, None);
            for leg in &mut flow.legs {
                leg.behind_since = None;
            }
        }
    }
}

/// The client's side of a flow's key.
pub fn tuple_of(flow: &crate::engine::FlowKey) -> Tuple {
    match flow.client.ip() {
        std::net::IpAddr::V4(ip) => (ip.octets(), flow.client.port()),
        std::net::IpAddr::V6(_) => ([0; 4], flow.client.port()),
    }
}

impl FlowTrack {
    fn v_has_scale(&self) -> bool {
        self.c_scale.is_some()
    }

    /// The lower of both legs while Paired, the primary's otherwise.
    fn bound(&self, of: impl Fn(&LegTrack) -> u64) -> u64 {
        match self.is_paired() {
            true => of(&self.legs[0]).min(of(&self.legs[1])),
            false => of(self.leg(self.primary)),
        }
    }

    fn check_to_client(&mut self, seg: &Seg<'_>) -> Result<(), String> {
        if seg.has(SYN) {
            return self.check_syn_ack(seg);
        }
        let Some(v_iss) = self.v_iss else { return Ok(()) };
        let released = self.released();
        let Some(at) = rel(v_iss, seg.seq, released) else {
            return Err(format!("a segment to the client before its SYN: {}", seg.seq));
        };
        if seg.has(RST) {
            return self.check_reset(seg, at);
        }
        let is_probe = self.was_restored && at == 0 && seg.data.is_empty();
        if is_probe {
            return Ok(()); // sent to make the client speak; it takes nothing from it
        }
        self.check_shown(at, seg.data)?;
        if seg.has(FIN) {
            self.check_fin(at + seg.data.len() as u64)?;
        }
        self.check_acks(seg)?;
        if let Some((value, _)) = seg.stamps {
            if self.ts_last.is_some_and(|last| is_before(value, last)) {
                return Err(format!("I8: TSval went back from {:?} to {value}", self.ts_last));
            }
            self.ts_last = Some(value);
        }
        Ok(())
    }

    fn check_syn_ack(&mut self, seg: &Seg<'_>) -> Result<(), String> {
        if seg.ack != self.iss.wrapping_add(1) {
            return Err("a SYN-ACK that does not acknowledge the SYN".into());
        }
        if self.v_iss.is_some_and(|iss| iss != seg.seq) {
            return Err("a second SYN-ACK with another number".into());
        }
        let both = self.legs.iter().all(|l| l.iss.is_some());
        if self.state == FlowState::Paired && !both {
            return Err("I1: a SYN-ACK of a Paired flow before both servers answered".into());
        }
        self.v_iss = Some(seg.seq);
        self.v_scale = seg.scale.unwrap_or(0);
        if seg.scale.is_none() {
            self.c_scale = None;
        }
        self.has_sack &= seg.sack_ok;
        self.shown.insert(0, &[0]);
        (self.told_ack, self.told_edge) = (1, 1 + u64::from(seg.window));
        self.ts_last = seg.stamps.map(|(value, _)| value);
        let most = self.bound(|l| l.edge);
        if self.told_edge > most {
            return Err(format!(
                "I3: the SYN-ACK's window ends at {}, a leg's at {most}",
                self.told_edge
            ));
        }
        Ok(())
    }

    /// I1: bytes that the client has not seen were said by those who have to; others are repeated.
    fn check_shown(&mut self, at: u64, data: &[u8]) -> Result<(), String> {
        let end = at + data.len() as u64;
        if data.is_empty() || at == 0 {
            return Ok(());
        }
        let mut from = at;
        for (gap_from, gap_to) in self.shown.gaps(at, end) {
            self.check_repeated(at, from, gap_from, data)?;
            let part = &data[(gap_from - at) as usize..(gap_to - at) as usize];
            self.check_said(gap_from, gap_to, part)?;
            from = gap_to;
        }
        self.check_repeated(at, from, end, data)?;
        self.shown.insert(at, data);
        if self.shown_fin.is_some_and(|fin| end > fin) {
            return Err(format!("I7: bytes up to {end} were shown behind the FIN"));
        }
        Ok(())
    }

    fn check_repeated(&self, at: u64, from: u64, to: u64, data: &[u8]) -> Result<(), String> {
        let part = |f: u64, t: u64| &data[(f - at) as usize..(t - at) as usize];
        let is_other = from < to && self.shown.slice(from, to) != part(from, to);
        if is_other && !self.was_restored {
            return Err(format!("1.1: bytes {from}..{to} were shown again and differ"));
        }
        Ok(())
    }

    fn check_said(&self, from: u64, to: u64, part: &[u8]) -> Result<(), String> {
        for id in LegId::ALL {
            if id != self.primary && !self.is_paired() {
                continue;
            }
            let said = &self.leg(id).said;
            if !said.covers(from, to) {
                let state = self.state;
                return Err(format!(
                    "I1: {from}..{to} shown while {state:?}, {id:?} has not said it"
                ));
            }
            if said.slice(from, to) == part {
                continue;
            }
            let wrong = (from..to).find(|&o| {
                let is_masked = self.spans.iter().any(|s| s.contains(&o));
                !is_masked && said.slice(o, o + 1) != &part[(o - from) as usize..][..1]
            });
            if let Some(o) = wrong {
                return Err(format!("I1: byte {o} shown while {:?} is not {id:?}'s", self.state));
            }
        }
        if self.is_paired() {
            for span in self.spans.iter().filter(|s| s.start < to && from < s.end) {
                let whole = |l: &LegTrack| l.said.covers(span.start, span.end);
                if !self.legs.iter().all(whole) {
                    return Err(format!("1.12: part of the masked value at {span:?} was shown"));
                }
            }
        }
        Ok(())
    }

    fn check_fin(&mut self, at: u64) -> Result<(), String> {
        if self.released() < at {
            return Err(format!("I7: FIN at {at} before the bytes up to it"));
        }
        if self.shown_fin.is_some_and(|fin| fin != at) {
            return Err(format!("I7: FIN at {at} and at {:?}", self.shown_fin));
        }
        let ends = |id: LegId| self.leg(id).fin == Some(at);
        let may = match self.is_paired() {
            true => LegId::ALL.into_iter().all(ends),
            false => ends(self.primary),
        };
        if !may && self.shown_fin.is_none() {
            return Err(format!("I7: FIN at {at} shown while {:?}, not all ended", self.state));
        }
        self.shown_fin = Some(at);
        Ok(())
    }

    /// I7: exactly at the next byte, or at what the client said it expects.
    fn check_reset(&self, seg: &Seg<'_>, at: u64) -> Result<(), String> {
        let next = self.shown_fin.map_or(self.released(), |fin| fin + 1);
        let is_exact =
            [next, self.c_una, self.c_last_ack].contains(&at) || seg.has(ACK) || self.was_restored;
        match is_exact {
            true => Ok(()),
            false => Err(format!("I7: RST at {at}, the client expects {next}")),
        }
    }

    fn check_acks(&mut self, seg: &Seg<'_>) -> Result<(), String> {
        let Some(ack) = rel(self.iss, seg.ack, self.told_ack.max(1)) else {
            return Err("an ack to the client before its SYN".into());
        };
        let most = self.bound(|l| l.acked);
        if ack > most && ack > self.told_ack {
            return Err(format!("I2: ack {ack} shown while {:?}, the bound is {most}", self.state));
        }
        let edge = ack + (u64::from(seg.window) << self.v_scale);
        let most = self.bound(|l| l.edge);
        let is_over = self.state == FlowState::TimeWait; // windows mean nothing any more
        if edge > most && edge > self.told_edge && !is_over {
            return Err(format!(
                "I3: edge {edge} shown while {:?}, the bound is {most}",
                self.state
            ));
        }
        if !self.was_restored
            && ack >= self.told_ack
            && edge + (1 << self.v_scale) <= self.told_edge
        {
            return Err(format!("I3: the window shrank from {} to {edge}", self.told_edge));
        }
        let is_bare = seg.data.is_empty() && !seg.has(FIN) && seg.sack.is_empty();
        if ack > self.told_ack {
            (self.repeats, self.asks) = (0, 0);
        } else if is_bare && edge <= self.told_edge {
            self.repeats += 1;
            let by_legs = self.legs.iter().map(|l| l.bare_acks).max().unwrap_or(0);
            if self.repeats > by_legs + self.asks + 6 {
                return Err(format!("1.3: {} duplicate acks shown at {ack}", self.repeats));
            }
        }
        self.told_ack = self.told_ack.max(ack);
        self.told_edge = self.told_edge.max(edge);
        Ok(())
    }

    fn check_to_leg(&mut self, now: u64, id: LegId, seg: &Seg<'_>) -> Result<(), String> {
        let _ = now;
        if seg.has(RST) || seg.has(SYN) {
            return Ok(());
        }
        let (iss, c_fin) = (self.iss, self.c_fin);
        let Some(at) = rel(iss, seg.seq, self.c_nxt) else { return Ok(()) };
        let end = at + seg.data.len() as u64;
        if !seg.data.is_empty() {
            let is_same = self.client.covers(at, end) && self.client.slice(at, end) == seg.data;
            if !is_same {
                return Err(format!("I4: {at}..{end} sent to {id:?} is not what the client said"));
            }
        }
        if seg.has(FIN) && c_fin != Some(end) {
            return Err(format!("I7: a FIN at {end} to {id:?}, the client's is at {c_fin:?}"));
        }
        let (c_edge, is_restored) = (self.c_edge, self.was_restored);
        let c_scale = self.c_scale.filter(|_| self.leg(id).scale.is_some()).unwrap_or(0);
        let (has_sack, is_settled) = (self.has_sack, self.v_iss.is_some());
        let leg = &mut self.legs[id.index()];
        let Some(leg_iss) = leg.iss.filter(|_| is_settled) else { return Ok(()) };
        let Some(ack) = rel(leg_iss, seg.ack, leg.nxt) else {
            return Err(format!("I6: an ack to {id:?} before its SYN"));
        };
        if ack > leg.nxt && !is_restored {
            return Err(format!("I6: ack {ack} sent to {id:?}, which has sent up to {}", leg.nxt));
        }
        let edge = ack + (u64::from(seg.window) << c_scale);
        if edge > c_edge && !is_restored {
            return Err(format!("I3: edge {edge} sent to {id:?}, the client granted {c_edge}"));
        }
        if let (Some((_, echo)), false) = (seg.stamps, is_restored)
            && echo != 0
            && !leg.stamps.contains(&echo)
        {
            return Err(format!("I8: TSecr {echo} sent to {id:?}, which never sent it"));
        }
        if let Some((_, to)) = leg.pending_duplicate.filter(|d| d.1 <= ack && leg.has_sack) {
            leg.pending_duplicate = None;
            let is_told =
                seg.sack.iter().any(|&(_, r)| rel(leg_iss, r, ack).is_some_and(|r| r <= ack));
            if has_sack && !is_told && !is_restored {
                return Err(format!("1.3: {id:?} repeated bytes up to {to} and got no D-SACK"));
            }
        }
        leg.told_ack = leg.told_ack.max(ack);
        leg.told_edge = leg.told_edge.max(edge);
        Ok(())
    }

    fn check_deadlines(
        &mut self,
        now: u64,
        limits: Limits,
        fenced: [bool; 2],
    ) -> Result<(), String> {
        let is_live = matches!(self.state, FlowState::Paired | FlowState::Lagging);
        // After a restart the engine knows less than we do until everybody has spoken again.
        if !is_live || self.was_reset || self.was_restored || fenced.contains(&true) {
            (self.held_since, self.acked_since) = (None, None);
            return Ok(());
        }
        let c_una = self.c_una;
        for id in LegId::ALL {
            let leg = &mut self.legs[id.index()];
            let heard = leg.said.end_from(1);
            let heard = if leg.fin == Some(heard) { heard + 1 } else { heard };
            let due = c_una.min(leg.nxt).min(heard);
            let is_behind = leg.told_ack > 0 && leg.told_ack < due && !leg.was_reset;
            overdue(now, &mut leg.behind_since, is_behind, AT_ONCE).map_err(|_| {
                let told = leg.told_ack;
                format!("LV1: the client acknowledged {due}, {id:?} was told {told} only")
            })?;
        }
        if self.state != FlowState::Paired {
            return Ok(());
        }
        let least = self.bound(|l| l.acked);
        let is_behind = self.c_una > 0 && least > self.told_ack;
        overdue(now, &mut self.acked_since, is_behind, AT_ONCE)
            .map_err(|_| format!("LV3: both acknowledged {least}, shown is {}", self.told_ack))?;
        let Some(hold) = limits.hold else { return Ok(()) };
        let backup = self.primary.other();
        let released = self.released();
        let waits = self.said(self.primary) > self.said(backup)
            && self.said(self.primary) > released
            && self.c_edge > released;
        let (leg, other) = (self.leg(backup), self.leg(self.primary));
        let is_ending = leg.fin.is_some() || leg.was_reset; // another rule's matter
        let pins = (waits || leg.acked < other.acked) && !is_ending;
        let since = leg.progress_at;
        if pins && self.held_since.is_none_or(|s| s < since) {
            self.held_since = Some(now);
        }
        overdue(now, &mut self.held_since, pins, hold + HOLD_SLACK)
            .map_err(|_| format!("LV5: held for {backup:?} without a limit at {released}"))
    }
}

/// Whether `holds` has held for longer than `limit`.
fn overdue(now: u64, since: &mut Option<u64>, holds: bool, limit: u64) -> Result<(), ()> {
    if !holds {
        *since = None;
        return Ok(());
    }
    match now - *since.get_or_insert(now) > limit {
        true => Err(()),
        false => Ok(()),
    }
}
