//! One flow as the oracle sees it, and the rules it is held to: what each frame that leaves may
//! say, and by when what is due must have left (see [`super::oracle`] for the list).

use std::collections::VecDeque;
use std::ops::Range;

use super::canon::Canon;
use super::dues::Dues;
use super::frames::{ACK, FIN, Known, PSH, RST, SYN, Seg, URG};
use super::jar::{Places, Shown};
use super::model::ranges::Ranges;
use crate::engine::{FlowState, LegId};

/// A client that was heard within this time is surely alive (ns).
const FRESH: u64 = 2_000_000_000;
/// Urgent positions remembered.
const URGENT_MAX: usize = 64;

/// One server's side of a flow.
#[derive(Clone, Debug, Default)]
pub struct LegTrack {
    pub(super) iss: Option<u32>,
    pub(super) stale_iss: Option<u32>,
    /// The number of an older attempt, if that is what acknowledges the SYN alone.
    pub(super) older_iss: Option<u32>,
    /// It was reset before the client was answered: asked again, it may begin at another number.
    pub(super) is_answer_void: bool,
    /// What it said; offset 0 is the SYN.
    pub said: Known,
    /// Highest offset sent, FIN included.
    pub(super) nxt: u64,
    pub(super) acked: u64,
    pub(super) edge: u64,
    pub(super) scale: Option<u8>,
    pub(super) has_sack: bool,
    /// Where its FIN stands.
    pub fin: Option<u64>,
    /// It sent a reset.
    pub was_reset: bool,
    /// The flow goes on without it.
    pub(super) is_detached: bool,
    pub(super) stamps: VecDeque<u32>,
    pub(super) told_ack: u64,
    pub(super) told_edge: u64,
    /// When it was last told of more: what kept it from reading may be gone.
    pub(super) given_at: u64,
    pub(super) pending_duplicate: Option<(u64, u64)>,
    pub(super) bare_acks: u64,
    pub(super) behind_since: Option<u64>,
    pub(super) progress_at: u64,
    /// The largest segment it takes.
    pub(super) mss: u16,
    /// What its latest frame said about its own way.
    pub(super) ip: Option<(u8, u8, bool)>,
    /// Where the urgent bytes that it said lately end.
    pub(super) urgent: VecDeque<u64>,
    /// End of its latest segment with PSH.
    pub(super) psh_at: u64,
    /// What it acknowledged selectively.
    pub(super) sacked: Ranges,
    /// When it lately said again what it had said, and what.
    pub(super) again: VecDeque<(u64, u64, u64)>,
    /// It repeated what the client has, and was not answered since.
    pub(super) unanswered: Option<u64>,
    /// It speaks although the flow goes on without it, and was not reset since.
    pub(super) lingers_since: Option<u64>,
    /// It was asked to take part again: what it says may be long on its way.
    pub(super) is_asked_again: bool,
    /// It ended the connection by a reset in its right place.
    pub(super) has_reset: bool,
    /// The largest window that it told.
    pub(super) window_max: u64,
    /// When it said bytes or its end, new or again.
    pub(super) said_at: u64,
}

/// One flow.
#[derive(Clone, Debug)]
pub struct FlowTrack {
    pub(super) iss: u32,
    /// By the engine's events.
    pub state: FlowState,
    /// By the engine's events.
    pub primary: LegId,
    /// Both servers.
    pub legs: [LegTrack; 2],
    pub(super) client: Known,
    pub(super) c_nxt: u64,
    pub(super) c_una: u64,
    /// The ack of its latest segment, old ones included.
    pub(super) c_last_ack: u64,
    /// The same as a number, whatever it is near to.
    pub(super) c_last_number: Option<u32>,
    pub(super) c_edge: u64,
    pub(super) c_scale: Option<u8>,
    pub(super) c_mss: u16,
    pub(super) c_heard_at: u64,
    pub(super) c_urgent: VecDeque<u64>,
    pub(super) c_fin: Option<u64>,
    pub(super) has_sack: bool,
    pub(super) asks: u64,
    pub(super) v_iss: Option<u32>,
    pub(super) v_scale: u8,
    /// What the client was shown.
    pub shown: Known,
    pub(super) shown_fin: Option<u64>,
    /// Who stood still when the end was shown.
    left_behind: Option<LegId>,
    /// Offsets that a server's bad memory has changed at least once.
    pub(super) altered: Vec<u64>,
    /// When its window was closed last.
    pub(super) closed_at: Option<u64>,
    pub(super) told_ack: u64,
    pub(super) told_edge: u64,
    told_window: u16,
    pub(super) repeats: u64,
    pub(super) ts_last: Option<u32>,
    pub(super) acked_since: Option<u64>,
    pub(super) held_since: Option<u64>,
    pub(super) full_since: Option<u64>,
    /// Waits of other kinds (see [`super::dues`]).
    pub(super) dues: Dues,
    /// When the client was lately shown again what it had been shown, and what.
    pub(super) again: VecDeque<(u64, u64, u64)>,
    pub(super) spans: Vec<Range<u64>>,
    /// How its three streams are counted alike.
    pub(super) canon: Canon,
    pub(super) cookies: Places,
    pub(super) second: super::second::Second,
    /// The engine reset it.
    pub was_reset: bool,
    pub(super) was_restored: bool,
    has_lost_map: bool,
    /// Up to here another server's values may have been shown than the primary's.
    foreign_until: u64,
    /// The client has not spoken since.
    pub(super) is_unheard: bool,
    /// One of its servers is a copy of the other.
    pub was_copied: bool,
    /// It had one server, which was copied, and has not been said to have two again.
    pub(super) is_to_pair: bool,
}

/// Where `number` stands after `iss`, close to `near`.
pub(super) fn rel(iss: u32, number: u32, near: u64) -> Option<u64> {
    let step = number.wrapping_sub(iss.wrapping_add(near as u32)) as i32;
    near.checked_add_signed(i64::from(step))
}

fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl LegTrack {
    /// It answers a SYN.
    pub(super) fn answer(&mut self, now: u64, seg: &Seg<'_>) {
        self.iss = Some(seg.seq);
        self.is_answer_void = false;
        (self.scale, self.has_sack) = (seg.scale, seg.sack_ok);
        (self.nxt, self.acked) = (1, 1);
        self.window_max = u64::from(seg.window);
        self.edge = 1 + self.window_max;
        (self.mss, self.ip) = (seg.mss.unwrap_or(536), Some(seg.ip));
        self.progress_at = now;
        self.stamps.extend(seg.stamps.map(|(value, _)| value));
    }

    /// Where a number of its stands; the first byte is 1.
    pub fn place(&self, number: u32) -> Option<u64> {
        rel(self.iss?, number, self.nxt)
    }

    /// Whether it answered the SYN.
    pub fn has_answered(&self) -> bool {
        self.iss.is_some()
    }
}

impl FlowTrack {
    pub(super) fn new(iss: u32, spans: Vec<Range<u64>>, has_sack: bool, primary: LegId) -> Self {
        Self {
            iss,
            state: FlowState::Opening,
            primary,
            legs: Default::default(),
            client: Known::default(),
            c_nxt: 1,
            c_una: 0,
            c_last_ack: 0,
            c_last_number: None,
            c_edge: 0,
            c_scale: None,
            c_mss: 536,
            c_heard_at: 0,
            c_urgent: VecDeque::new(),
            c_fin: None,
            has_sack,
            asks: 0,
            v_iss: None,
            v_scale: 0,
            shown: Known::default(),
            shown_fin: None,
            left_behind: None,
            altered: Vec::new(),
            closed_at: None,
            told_ack: 0,
            told_edge: 0,
            told_window: 0,
            repeats: 0,
            ts_last: None,
            acked_since: None,
            held_since: None,
            full_since: None,
            dues: Dues::default(),
            again: VecDeque::new(),
            spans,
            canon: Canon::default(),
            cookies: Places::default(),
            second: Default::default(),
            was_reset: false,
            was_restored: false,
            has_lost_map: false,
            foreign_until: 0,
            is_unheard: false,
            was_copied: false,
            is_to_pair: false,
        }
    }

    /// Lagging, and the backup has not moved for two seconds.
    pub fn is_late_orphan(&self, now: u64) -> bool {
        let moved = self.leg(self.primary.other()).progress_at;
        self.state == FlowState::Lagging && now.saturating_sub(moved) >= 1_900_000_000
    }

    /// The end was shown while `leg` was late and had not moved for a second.
    pub fn is_left_behind(&self, leg: LegId, now: u64) -> bool {
        let is_behind = self.state == FlowState::Lagging && self.primary != leg;
        self.left_behind == Some(leg)
            || (is_behind && self.shown_fin.is_some() && self.stands(leg, now))
    }

    /// The end is shown now.
    pub(super) fn note_left_behind(&mut self, now: u64) {
        let backup = self.primary.other();
        let is_behind = self.state == FlowState::Lagging && self.stands(backup, now);
        self.left_behind = is_behind.then_some(backup);
    }

    fn stands(&self, leg: LegId, now: u64) -> bool {
        now.saturating_sub(self.leg(leg).progress_at) >= 900_000_000
    }

    /// `to` has become a copy of `from`.
    pub(super) fn on_copied(&mut self, from: LegId, to: LegId) {
        let carries = self.is_carried_by(from);
        let again = std::mem::take(&mut self.legs[to.index()].again);
        self.legs[to.index()] = LegTrack { again, ..self.leg(from).clone() };
        let is_live = !matches!(self.state, FlowState::Opening | FlowState::TimeWait);
        self.legs[to.index()].is_detached |= is_live && !carries;
        self.was_copied |= carries && is_live;
        self.is_to_pair = carries && is_live && !self.was_restored && self.primary == from;
    }

    /// Whether `leg` has the connection, and all that was shown.
    pub fn is_carried_by(&self, leg: LegId) -> bool {
        let own = self.leg(leg);
        let is_live = own.iss.is_some() && !own.is_detached && !self.was_reset;
        let is_other = matches!(self.state, FlowState::Solo | FlowState::Lagging);
        let is_live = is_live && (!is_other || self.primary == leg);
        is_live && !own.has_reset && (self.primary == leg || self.said(leg) >= self.released())
    }

    /// A process ended while a value of other length than the shown one was on its way, or another
    /// server's than the primary's.
    pub fn has_lost_map(&self) -> bool {
        self.has_lost_map
    }

    /// The process ends.
    pub(super) fn on_lost(&mut self) {
        self.has_lost_map |= self.canon.is_uneven_between(self.c_una, self.shown.end());
        let (from, to) = (self.c_una, self.foreign_until);
        self.has_lost_map |= self.spans.iter().any(|s| s.start < to && from < s.end);
    }

    /// `primary` serves it from here on.
    pub(super) fn on_primary(&mut self, primary: LegId) {
        if self.primary != primary {
            (self.primary, self.foreign_until) = (primary, self.shown.end());
        }
    }

    /// A new process has taken it over.
    pub fn was_restored(&self) -> bool {
        self.was_restored
    }

    /// The most that the gateway may hold of it: what either end has not acknowledged, what one
    /// server has said beyond what was shown, and a little.
    pub fn held_max(&self) -> u64 {
        let [a, b] = &self.legs;
        let request = self.c_nxt - a.acked.min(b.acked).min(self.c_nxt);
        let ahead = |l: &LegTrack| l.nxt.saturating_sub(self.released());
        let behind = LegId::ALL.map(|l| self.said(l)).into_iter().min().unwrap_or(0);
        let shown = self.shown.end() - self.c_una.min(behind).min(self.shown.end());
        2 * (request + ahead(a) + ahead(b) + shown) + 3_000
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

    /// Whether what `leg` said ends inside a masked value: it may say the rest (Nagle, or after a
    /// loss) only when that is acknowledged, which needs the rest. The hold's limit decides.
    pub fn is_inside_span(&self, leg: LegId) -> bool {
        let said = self.said(leg);
        // Its end is known by what follows it.
        self.open_span().is_some_and(|s| s.contains(&said) || s.end == said)
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

    /// The client has said something beyond a hole.
    pub fn is_client_holed(&self) -> bool {
        self.client.has_hole(1)
    }

    /// For a minute `leg` does not repeat what was not acknowledged, or its own end after it has
    /// taken the client's, nor ask a window that was closed when it spoke last.
    pub fn has_given_up(&self, leg: LegId, now: u64) -> bool {
        let own = self.leg(leg);
        let lacks_end = own.fin.is_none() && self.c_fin.is_some_and(|fin| own.acked > fin);
        let was_closed = self.closed_at.is_some_and(|at| at >= own.said_at);
        let is_due = self.said(leg) > self.c_una.max(1) || lacks_end || was_closed;
        is_due && now >= own.said_at + 60_000_000_000
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

impl FlowTrack {
    pub(super) fn v_has_scale(&self) -> bool {
        self.c_scale.is_some()
    }

    /// The lower of both legs while Paired, the primary's otherwise.
    pub(super) fn bound(&self, of: impl Fn(&LegTrack) -> u64) -> u64 {
        match self.is_paired() {
            true => of(&self.legs[0]).min(of(&self.legs[1])),
            false => of(self.leg(self.primary)),
        }
    }

    pub(super) fn check_to_client(&mut self, now: u64, seg: &Seg<'_>) -> Result<(), String> {
        self.check_headers(seg)?;
        if seg.has(SYN) {
            return self.check_syn_ack(seg);
        }
        let Some(v_iss) = self.v_iss else { return Ok(()) };
        if seg.has(RST) && self.c_last_number == Some(seg.seq) {
            return Ok(()); // what the client asks for by a challenge (RFC 5961 3.2)
        }
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
        (self.dues.asked, self.dues.answered) = (false, None);
        self.check_push(seg, at)?;
        self.check_again(now, at, seg.data)?;
        self.check_probe(now, seg, at)?;
        self.check_urgent(seg, at, |end| self.says_urgent(end))?;
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

    /// 1.3: explicit congestion notification is off, the segment fits, and the IP header says what
    /// the primary's says.
    fn check_headers(&self, seg: &Seg<'_>) -> Result<(), String> {
        if seg.has_ecn {
            return Err("1.3: a segment to the client with ECN bits".into());
        }
        let (len, max) = (seg.data_len + seg.options_len, self.c_mss);
        if !seg.has(SYN) && len > usize::from(max) {
            return Err(format!("1.3: {len} bytes to the client, options included, of {max}"));
        }
        let ip = self.leg(self.primary).ip.filter(|_| !self.was_restored);
        if ip.is_some_and(|ip| ip != seg.ip) {
            return Err(format!("1.3: IP header {:?} to the client, the primary's {ip:?}", seg.ip));
        }
        Ok(())
    }

    /// 1.3: PSH where a segment with PSH of the primary ended.
    fn check_push(&self, seg: &Seg<'_>, at: u64) -> Result<(), String> {
        let end = at + seg.data.len() as u64;
        let is_new = !seg.data.is_empty() && at == self.released() && at > 0;
        let is_due = is_new && end == self.leg(self.primary).psh_at && !self.was_restored;
        match is_due && !seg.has(PSH) && self.shown.end() <= at {
            true => Err(format!("1.3: PSH at {end} is not shown")),
            false => Ok(()),
        }
    }

    /// 1.3: urgent bytes end where the other end said.
    fn check_urgent(&self, seg: &Seg, at: u64, said: impl Fn(u64) -> bool) -> Result<(), String> {
        let end = at + u64::from(seg.urgent);
        match seg.has(URG) && !said(end) && !self.was_restored {
            true => Err(format!("1.3: urgent bytes end at {end}, which was not said")),
            false => Ok(()),
        }
    }

    /// 1.3: a server's probe is answered for a client that is surely alive, and seldom passed on.
    fn check_probe(&self, now: u64, seg: &Seg<'_>, at: u64) -> Result<(), String> {
        let is_probe = seg.data.is_empty() && !seg.has(FIN) && at > 0 && at < self.c_una;
        let room = self.c_edge.saturating_sub(self.c_una) >> self.c_scale.unwrap_or(0);
        let is_alive = now - self.c_heard_at < FRESH && room > 0;
        match is_probe && is_alive && !self.was_restored {
            true => Err(format!("1.3: a probe at {at} passed to a client that was just heard")),
            false => Ok(()),
        }
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
        if self.v_iss.replace(seg.seq).is_some() {
            return Ok(()); // a late copy of the SYN was answered: nothing begins anew
        }
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
                // A new process may have heard another copy of it than we did.
                let is_forgotten = self.was_restored && self.altered.contains(&o);
                let byte = &part[(o - from) as usize..][..1];
                !is_masked && !is_forgotten && said.slice(o, o + 1) != byte
            });
            if let Some(o) = wrong {
                return Err(format!("I1: byte {o} shown while {:?} is not {id:?}'s", self.state));
            }
        }
        // After a restart the gateway knows no more where in HTTP it stands: bytes are bytes.
        if self.is_paired() && !self.was_restored {
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
        // A probe stands before what the client expects: its ack is not looked at (RFC 9293
        // 3.10.7.4).
        let is_probe = self.v_iss.and_then(|iss| rel(iss, seg.seq, self.c_una)) < Some(self.c_una);
        let is_bare = is_bare && !is_probe;
        // Another window makes it an update (RFC 5681 2): a new process tells of room bit by bit.
        let is_update = self.was_restored && self.told_window != seg.window;
        self.told_window = seg.window;
        if ack > self.told_ack {
            (self.repeats, self.asks) = (0, 0);
        } else if is_bare && edge <= self.told_edge && !is_update {
            self.repeats += 1;
            let by_legs = self.legs.iter().map(|l| l.bare_acks).max().unwrap_or(0);
            // An answer may come after a later ack; a new process asks once more than one that was
            // there all the time.
            let spare = if self.was_restored { 6 } else { 1 };
            if self.repeats > by_legs + self.asks + spare {
                return Err(format!("1.3: {} duplicate acks shown at {ack}", self.repeats));
            }
        }
        self.told_ack = self.told_ack.max(ack);
        self.told_edge = self.told_edge.max(edge);
        self.check_sack(seg)
    }

    /// 1.3: blocks to the client are what all have that count.
    fn check_sack(&self, seg: &Seg<'_>) -> Result<(), String> {
        for &(left, right) in &seg.sack {
            let (Some(l), Some(r)) =
                (rel(self.iss, left, self.told_ack), rel(self.iss, right, self.told_ack))
            else {
                return Err(format!("1.3: a SACK block {left}..{right} before the SYN"));
            };
            for id in LegId::ALL {
                let leg = self.leg(id);
                let from = l.max(leg.acked);
                let has = from >= r || leg.sacked.around(from, r).is_some();
                if !has && (self.is_paired() || id == self.primary) {
                    return Err(format!("1.3: SACK {l}..{r} shown, {id:?} does not have it"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_to_leg(
        &mut self,
        now: u64,
        id: LegId,
        seg: &Seg<'_>,
        shown: &Shown,
    ) -> Result<(), String> {
        if seg.has_ecn {
            return Err(format!("1.3: a segment to {id:?} with ECN bits"));
        }
        if seg.has(RST) {
            let leg = &mut self.legs[id.index()];
            leg.lingers_since = None;
            leg.is_answer_void = self.state == FlowState::Opening;
            leg.stale_iss = leg.older_iss.take().or(leg.stale_iss);
        }
        if seg.has(SYN) {
            self.legs[id.index()].is_asked_again |= self.state == FlowState::Solo;
        }
        if seg.has(RST) || seg.has(SYN) {
            return Ok(());
        }
        let (c_fin, is_restored) = (self.c_fin, self.was_restored);
        let Some((at, end, urgent)) = self.check_heard(now, id, seg, shown)? else { return Ok(()) };
        self.check_urgent(&Seg { urgent, ..seg.clone() }, at, |end| self.c_urgent.contains(&end))?;
        if seg.has(FIN) && c_fin != Some(end) {
            return Err(format!("I7: a FIN at {end} to {id:?}, the client's is at {c_fin:?}"));
        }
        if at > self.c_nxt && !is_restored {
            return Err(format!("I6: {at} sent to {id:?}, the client is at {}", self.c_nxt));
        }
        let c_scale = self.c_scale.filter(|_| self.leg(id).scale.is_some()).unwrap_or(0);
        let (has_sack, is_settled) = (self.has_sack, self.v_iss.is_some());
        let leg = &mut self.legs[id.index()];
        let Some(leg_iss) = leg.iss.filter(|_| is_settled) else { return Ok(()) };
        let Some(ack) = rel(leg_iss, seg.ack, leg.nxt) else {
            if is_restored && !self.canon.is_even() {
                return Ok(()); // a question: a new process does not know where it began
            }
            return Err(format!("I6: an ack to {id:?} before its SYN"));
        };
        if ack > leg.nxt && !is_restored {
            return Err(format!("I6: ack {ack} sent to {id:?}, which has sent up to {}", leg.nxt));
        }
        // Of a late server's own value more may be taken than of the shown one, if it lacks an end.
        let has = self.canon.floor(id, self.c_una).max(1);
        if ack > has && self.state != FlowState::Lagging && !is_restored {
            return Err(format!("1.11: ack {ack} sent to {id:?}, the client has {has}"));
        }
        let edge = ack + (u64::from(seg.window) << c_scale);
        // Where values of other length lie before the edge, their fill counts for one side only.
        if edge > self.c_edge + self.canon.slack() && !is_restored {
            return Err(format!(
                "I3: edge {edge} sent to {id:?}, the client granted {}",
                self.c_edge
            ));
        }
        if ack >= leg.told_ack && edge + (1 << c_scale) <= leg.told_edge && !is_restored {
            let told = leg.told_edge;
            return Err(format!("I3: the window told to {id:?} shrank from {told} to {edge}"));
        }
        let len = seg.data.len() + seg.options_len;
        if len > usize::from(leg.mss) && !is_restored {
            return Err(format!("1.3: {len} bytes to {id:?}, options included, of {}", leg.mss));
        }
        let beyond = seg.sack.iter().find(|b| rel(leg_iss, b.1, ack).is_some_and(|r| r > leg.nxt));
        if let Some(block) = beyond.filter(|_| !is_restored) {
            return Err(format!("1.3: SACK {block:?} sent to {id:?}, which has not sent that"));
        }
        leg.unanswered = None;
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
        if ack > leg.told_ack || edge > leg.told_edge {
            leg.given_at = now;
        }
        leg.told_ack = leg.told_ack.max(ack);
        leg.told_edge = leg.told_edge.max(edge);
        Ok(())
    }
}

/// Notes where urgent bytes end.
pub(super) fn note_urgent(all: &mut VecDeque<u64>, seg: &Seg<'_>, at: u64) {
    if seg.has(URG) && !seg.data.is_empty() {
        if all.len() == URGENT_MAX {
            all.pop_front();
        }
        all.push_back(at + u64::from(seg.urgent));
    }
}
