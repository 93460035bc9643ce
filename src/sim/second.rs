//! A server that takes part again in a connection that the other one carries alone (semantics
//! 1.14): when it may be asked, and where its two streams begin.

use super::canon::Side;
use super::frames::Seg;
use super::oracle::Tuple;
use super::track::{FlowTrack, LegTrack, rel};
use super::world::World;
use crate::engine::{FlowState, LegId};

/// A SYN whose number is further away is of another connection of the 4-tuple: it has waited until
/// its server was found.
const NEAR: u64 = 1 << 24;

/// The boundaries of one connection's messages, and where second legs begin.
#[derive(Clone, Debug, Default)]
pub struct Second {
    conn: u16,
    /// Behind each request, and behind its answer, in the common numbers of each stream; none of a
    /// connection without messages.
    bounds: Vec<(u64, u64)>,
    begins: [Option<Begin>; 2],
    /// Servers that have begun in the middle.
    pub has_begun: [bool; 2],
}

/// Where a second leg begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Begin {
    /// In what the client says.
    asked: u64,
    /// In the answers: as all count alike, and by the leg's own version of every value.
    answered: u64,
    own: u64,
}

impl Second {
    /// Of connection `conn`, whose requests and answers end there.
    pub fn new(conn: u16, asked: &[usize], answered: &[usize]) -> Self {
        let ends = asked.iter().zip(answered);
        let bounds = ends.map(|(&asked, &answered)| (asked as u64 + 1, answered as u64 + 1));
        Self { conn, bounds: bounds.collect(), ..Self::default() }
    }

    /// The client of `conn` says its requests in so many bytes now.
    pub fn ask(&mut self, conn: u16, ends: &[usize]) {
        if conn == self.conn {
            for (bound, &end) in self.bounds.iter_mut().zip(ends) {
                bound.0 = end as u64 + 1;
            }
        }
    }

    /// Whether both servers were there when `at` was said.
    pub fn has_said(&self, at: u64) -> bool {
        self.begins.iter().flatten().all(|begin| at >= begin.answered)
    }

    /// How much of what the client says `id` was not to hear.
    pub fn unasked(&self, id: LegId) -> usize {
        self.begins[id.index()].map_or(0, |begin| begin.asked as usize - 1)
    }

    /// What the answer of `id` to its SYN acknowledges, after the client's first number.
    pub fn expected(&self, id: LegId) -> u32 {
        self.begins[id.index()].map_or(1, |begin| begin.asked as u32)
    }
}

impl World<'_> {
    /// `leg` has come back into the connection. If its answer was under way when something happened
    /// to it, it has not.
    pub(super) fn on_second(&mut self, tuple: Tuple, leg: LegId) {
        let place = (tuple, leg.index());
        self.gateway.dropped.remove(&place);
        self.gateway.late.remove(&place);
        let way = &self.scenario.links[1 + leg.index()][0];
        let under_way = (way.delay_us + way.jitter_us) * 2000;
        if self.now >= self.gateway.lost_at[leg.index()] + under_way {
            self.gateway.regained.insert(place);
        }
    }
}

impl FlowTrack {
    /// `id` is sent a SYN. In the middle of a connection it may be only where everything said was
    /// taken and everything asked was answered; if it `may_wait` in the gateway, it may have been
    /// asked at an earlier such place.
    pub(super) fn check_second(
        &mut self,
        id: LegId,
        seg: &Seg<'_>,
        may_wait: bool,
    ) -> Result<(), String> {
        // The client's own may have waited until its server was found.
        if self.state != FlowState::Solo || id == self.primary || seg.seq == self.iss {
            return Ok(());
        }
        let near = self.second.begins[id.index()].map_or(self.c_nxt, |begin| begin.asked);
        let asked = rel(self.iss, seg.seq.wrapping_add(1), near);
        let is_of_this = |at: &u64| at.abs_diff(near) < NEAR;
        let Some(asked) = asked.filter(is_of_this) else { return Ok(()) };
        if self.second.begins[id.index()].is_some_and(|begin| begin.asked == asked) {
            // Its answer may be another one.
            self.legs[id.index()].is_answer_void |= self.leg(id).has_answered();
            return Ok(());
        }
        let primary = self.leg(self.primary);
        let now = (self.c_nxt, self.shown.end().max(1));
        let earlier = self.second.bounds.iter().copied().find(|b| may_wait && b.0 == asked);
        let has_waited = asked != now.0 && earlier.is_some();
        let (next, answered) = earlier.filter(|_| has_waited).unwrap_or(now);
        let is_taken = primary.acked.min(self.told_ack) >= next
            && self.c_una.min(self.released()).min(self.said(self.primary)) >= answered;
        let is_between = self.second.bounds.contains(&(next, answered));
        let is_ending = self.c_fin.is_some() || self.shown_fin.is_some() || primary.fin.is_some();
        let is_still = self.said(self.primary) == answered && !is_ending;
        if may_wait && !has_waited && asked > next {
            return Ok(()); // of another connection of the 4-tuple
        }
        if asked != next || !is_taken || !is_between || !(is_still || has_waited) {
            return Err(format!(
                "1.14: {id:?} is asked to take part from {asked}, the client is at {next}, the \
                 answers at {answered}: taken {is_taken}, between messages {is_between}"
            ));
        }
        let own = self.canon.own(Side::Leg(id), self.primary, answered);
        self.second.begins[id.index()] = Some(Begin { asked, answered, own });
        self.cookies.begin(id);
        let mut leg = LegTrack { acked: asked, ..LegTrack::default() };
        // As if it had said what was shown: it is never asked for that.
        leg.said.insert(1, self.shown.slice(1, answered));
        self.legs[id.index()] = leg;
        Ok(())
    }

    /// `id` has answered its SYN.
    pub(super) fn begin_second(&mut self, id: LegId) {
        let Some(begin) = self.second.begins[id.index()] else { return };
        let leg = &mut self.legs[id.index()];
        leg.iss = leg.iss.map(|iss| iss.wrapping_add(1).wrapping_sub(begin.own as u32));
        (leg.nxt, leg.acked) = (begin.answered, begin.asked);
        leg.edge = begin.asked + leg.window_max;
        self.forgive();
    }
}
