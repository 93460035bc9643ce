//! What must have left the gateway by now, flow by flow (LV1 to LV7): every hold has its limit, and
//! what is due at once is not late.

use super::oracle::Limits;
use super::track::{FlowTrack, LegTrack};
use crate::engine::{FlowState, LegId};

const fn ms(n: u64) -> u64 {
    n * 1_000_000
}

/// How long an answer that is due at once may take (ns).
const AT_ONCE: u64 = ms(20);
/// How long a server that is asked to take part again may go on with a former connection (ns).
const FORMER: u64 = ms(400);
/// How much longer than `hold_hard` a hold may last (ns): a server without room for a segment is
/// late only when its own probe of the window is, which counts round trips of up to a second.
const HOLD_SLACK: u64 = ms(3_400);
/// How much longer a window that the client has filled may be held by the backup alone (ns).
const WINDOW_SLACK: u64 = ms(100);
/// A first SYN-ACK is held for so long at most (ns): two thirds of the longest `hold_hard` drawn.
const SYN_ACK: u64 = ms(250);
/// The reset of one server is (ns).
const RESET: u64 = ms(150);
/// The FIN of one server is (ns).
const FINISH: u64 = ms(4_000);
/// How much longer than its deadline servers that differ may wait for their sync (ns).
const DIVERGED_SLACK: u64 = ms(100);
/// A server that lags and does not move is given up after this (ns).
const LAG: u64 = ms(7_000);
/// A masked value may begin so much before its first byte: the blanks in front of it.
const BLANKS: u64 = 2;

/// Since when the flow waits, by kind (ns).
#[derive(Clone, Debug, Default)]
pub struct Dues {
    /// The client asked something that advances nothing.
    pub asked: bool,
    /// The primary's answer to that came.
    pub answered: Option<u64>,
    said: Option<u64>,
    window: Option<u64>,
    opening: Option<u64>,
    finish: Option<u64>,
    reset: Option<u64>,
    diverged: Option<u64>,
    lag: Option<u64>,
}

impl FlowTrack {
    pub(super) fn check_deadlines(
        &mut self,
        now: u64,
        limits: Limits,
        fenced: [bool; 2],
    ) -> Result<(), String> {
        // After a restart the engine knows less than we do until everybody has spoken again.
        if self.was_reset || self.was_restored || fenced.contains(&true) {
            self.forgive();
            return Ok(());
        }
        self.check_opening(now)?;
        self.check_detached(now)?;
        self.check_diverged(now, limits.diverged)?;
        self.check_paired()?;
        self.check_lag(now)?;
        if !matches!(self.state, FlowState::Paired | FlowState::Lagging) {
            (self.held_since, self.full_since, self.acked_since) = (None, None, None);
            return Ok(());
        }
        self.check_answers(now)?;
        if self.state != FlowState::Paired {
            return Ok(());
        }
        self.check_shown_in_time(now)?;
        self.check_ends(now)?;
        limits.hold.map_or(Ok(()), |hold| self.check_hold(now, hold))
    }

    /// Every wait begins anew.
    pub(super) fn forgive(&mut self) {
        (self.held_since, self.full_since, self.acked_since) = (None, None, None);
        self.dues = Dues::default();
        for leg in LegId::ALL {
            self.forgive_leg(leg);
        }
    }

    /// Nothing could be said to this leg: what it is owed is due from now on.
    pub(super) fn forgive_leg(&mut self, leg: LegId) {
        let leg = &mut self.legs[leg.index()];
        (leg.behind_since, leg.unanswered, leg.lingers_since) = (None, None, None);
    }

    /// LV5: one answer to the SYN is held for the other, not for ever.
    fn check_opening(&mut self, now: u64) -> Result<(), String> {
        let (own, other) = (self.leg(self.primary), self.leg(self.primary.other()));
        let waits = self.state == FlowState::Opening && own.has_answered() && !own.was_reset;
        let waits = waits && !other.has_answered() && !own.is_detached;
        overdue(now, &mut self.dues.opening, waits, SYN_ACK)
            .map_err(|()| "LV5: the primary's SYN-ACK is held without a limit".into())
    }

    /// LV6: a server that speaks on a flow that goes on without it is reset.
    fn check_detached(&self, now: u64) -> Result<(), String> {
        let due = |l: &LegTrack| if l.is_asked_again { FORMER + AT_ONCE } else { AT_ONCE };
        let lingers = |l: &LegTrack| l.lingers_since.is_some_and(|at| now - at > due(l));
        match self.state == FlowState::Solo && self.legs.iter().any(lingers) {
            true => Err("LV6: a detached server speaks and is not reset".into()),
            false => Ok(()),
        }
    }

    /// LV5: servers that differ wait for their sync, not for ever.
    fn check_diverged(&mut self, now: u64, deadline: u64) -> Result<(), String> {
        let waits = self.state == FlowState::Diverged;
        overdue(now, &mut self.dues.diverged, waits, deadline + DIVERGED_SLACK)
            .map_err(|()| "LV5: a divergence is held without a limit".into())
    }

    /// 1.14: a flow whose server was copied has two again, and says so at once.
    fn check_paired(&self) -> Result<(), String> {
        match self.is_to_pair && self.state == FlowState::Solo {
            true => Err("1.14: a flow stays with one server although that was copied".into()),
            false => Ok(()),
        }
    }

    /// LV5: a server that lags and does not move is given up.
    fn check_lag(&mut self, now: u64) -> Result<(), String> {
        let backup = self.leg(self.primary.other());
        let owes =
            self.said(self.primary.other()) < self.released() || backup.acked < self.told_ack;
        let stands = self.state == FlowState::Lagging && owes;
        let moved = backup.progress_at;
        if self.dues.lag.is_some_and(|since| since < moved) {
            self.dues.lag = Some(moved);
        }
        overdue(now, &mut self.dues.lag, stands, LAG)
            .map_err(|()| "LV5: a server that lags and stands is kept without a limit".into())
    }

    /// LV1, LV2, 1.3: whoever says or asks something again is answered.
    fn check_answers(&mut self, now: u64) -> Result<(), String> {
        // Inside of a value nothing can be acknowledged to a server whose own has another length.
        for id in LegId::ALL {
            let c_una = match self.state == FlowState::Lagging && self.c_una == self.shown.end() {
                true => self.canon.floor_in_doubt(id, self.c_una),
                false => self.canon.floor(id, self.c_una),
            };
            let leg = &mut self.legs[id.index()];
            let heard = leg.said.end_from(1);
            let heard = if leg.fin == Some(heard) { heard + 1 } else { heard };
            let due = c_una.min(leg.nxt).min(heard);
            let takes_part = !leg.was_reset && !leg.is_detached;
            let is_behind = takes_part && leg.told_ack > 0 && leg.told_ack < due;
            overdue(now, &mut leg.behind_since, is_behind, AT_ONCE).map_err(|()| {
                let told = leg.told_ack;
                format!("LV1: the client acknowledged {due}, {id:?} was told {told} only")
            })?;
            if takes_part && leg.unanswered.is_some_and(|at| now - at > AT_ONCE) {
                return Err(format!("LV2: {id:?} repeats what the client has, and hears nothing"));
            }
        }
        match self.dues.answered.is_some_and(|at| now - at > AT_ONCE) {
            true => Err("1.3: the client asked, the primary answered, nothing was shown".into()),
            false => Ok(()),
        }
    }

    /// LV3, LV4: what both have said or acknowledged is shown at once.
    fn check_shown_in_time(&mut self, now: u64) -> Result<(), String> {
        let least = self.bound(|l| l.acked);
        let is_behind = self.c_una > 0 && least > self.told_ack;
        overdue(now, &mut self.acked_since, is_behind, AT_ONCE)
            .map_err(|()| format!("LV3: both acknowledged {least}, shown is {}", self.told_ack))?;
        let edge = self.bound(|l| l.edge);
        let some = (2 * u64::from(self.c_mss)).max(1 << self.v_scale);
        let opens = self.c_una > 0 && self.told_edge <= self.told_ack;
        let opens = opens && edge >= self.told_ack + some;
        overdue(now, &mut self.dues.window, opens, AT_ONCE)
            .map_err(|()| format!("LV3: the window opened up to {edge}, shown is zero"))?;
        let at = self.released();
        let due = self.is_said_by_both(at);
        overdue(now, &mut self.dues.said, due, AT_ONCE)
            .map_err(|()| format!("LV4: byte {at} was said by both and is not shown"))
    }

    /// Whether both have said the byte at `at`, equal and in no masked value that is incomplete.
    fn is_said_by_both(&self, at: u64) -> bool {
        let [a, b] = LegId::ALL.map(|l| &self.leg(l).said);
        let is_said = self.c_una > 0 && a.covers(at, at + 1) && b.covers(at, at + 1);
        if !is_said || a.slice(at, at + 1) != b.slice(at, at + 1) {
            return false;
        }
        // A primary whose values were shorter may have been told of more room than there is.
        if at >= self.c_edge && self.canon.slack() > 0 {
            return false;
        }
        let near = self.spans.iter().find(|s| s.start <= at + BLANKS && at < s.end);
        near.is_none_or(|s| [a, b].iter().all(|said| said.covers(s.start, s.end + 1)))
    }

    /// LV5: a FIN or a reset of one server is held for the other, not for ever.
    fn check_ends(&mut self, now: u64) -> Result<(), String> {
        let [a, b] = LegId::ALL;
        let has_ended = |l| self.leg(l).fin == Some(self.said(l));
        // Without room the other one cannot say that it has more.
        let has_room = |l| has_ended(l) || self.leg(l).told_edge > self.said(l);
        let waits = has_ended(a) != has_ended(b)
            && (has_room(a) && has_room(b))
            && self.said(a) == self.said(b)
            && self.shown_fin.is_none();
        overdue(now, &mut self.dues.finish, waits, FINISH)
            .map_err(|()| String::from("LV5: a FIN is held without a limit"))?;
        let waits = self.legs.iter().any(|leg| leg.has_reset);
        overdue(now, &mut self.dues.reset, waits, RESET)
            .map_err(|()| "LV5: a reset is held without a limit".into())
    }

    /// LV5: nothing waits for the backup alone for longer than `hold` (ns).
    fn check_hold(&mut self, now: u64, hold: u64) -> Result<(), String> {
        let backup = self.primary.other();
        let released = self.released();
        // A server may say a little only when the client has acknowledged what it said before
        // (Nagle), and what is lost on the way to the client only the servers can repeat.
        let is_heard = self.c_una >= released;
        // Of an edge that it granted once the client may have left less than its scale can say.
        let unit = 1 << self.c_scale.filter(|_| self.leg(backup).scale.is_some()).unwrap_or(0);
        let waits = self.said(self.primary) > self.said(backup)
            && self.said(self.primary) > released
            && self.c_edge >= released + unit
            && is_heard;
        let (leg, other) = (self.leg(backup), self.leg(self.primary));
        let is_ending = leg.fin.is_some() || leg.was_reset; // another rule's matter
        let pins = (waits || leg.acked < other.acked) && !is_ending;
        // The client has filled the window, which ends early because of the backup alone.
        let is_full = self.c_nxt >= self.told_edge && self.told_edge >= leg.edge;
        let half = leg.window_max.min(other.window_max) / 2;
        let little = half.min(2 * u64::from(self.c_mss)).max(3_000);
        let closes = is_full && leg.edge + little < other.edge && !is_ending;
        let since = leg.progress_at.max(leg.given_at);
        if pins && self.held_since.is_none_or(|s| s < since) {
            self.held_since = Some(now);
        }
        overdue(now, &mut self.held_since, pins, hold + HOLD_SLACK)
            .map_err(|()| format!("LV5: held for {backup:?} without a limit at {released}"))?;
        let told = self.told_edge;
        if closes && self.full_since.is_none_or(|s| s < since) {
            self.full_since = Some(now);
        }
        overdue(now, &mut self.full_since, closes, hold + WINDOW_SLACK)
            .map_err(|()| format!("LV5: the window is held at {told} by {backup:?} alone"))
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
