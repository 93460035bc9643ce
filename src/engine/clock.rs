//! Timestamps between two servers and one client (RFC 7323).
//!
//! The client sees one clock that never goes backwards, whichever server speaks (PAWS drops what
//! does). Each server gets back only timestamps that it really sent: a ring remembers which of
//! its values stood behind each value shown, so that two drifting clocks never distort an RTT.

use std::collections::VecDeque;

use super::pack::fields;
use super::planted::{Bug, on};
use super::time::Instant;
use crate::wire::{TsDelta, Tsval};

/// Entries kept a leg: one a change of the shown clock.
const RING_MAX: usize = 64;
/// The same of a flow at rest.
const RING_AT_REST: usize = 2;

/// The client-visible clock of one flow.
#[derive(Clone, Debug, Default)]
pub struct ShownClock {
    /// The last value shown, and when.
    last: Option<(Tsval, Instant)>,
}

impl ShownClock {
    /// The value to show for a leg's value moved into client space: never below the last one.
    pub fn show(&mut self, now: Instant, value: Tsval) -> Tsval {
        let shown = match self.last {
            Some((last, _)) if !on(Bug::TsvalBack) => value.max(last),
            _ => value,
        };
        self.last = Some((shown, now));
        shown
    }

    /// The client has seen `value`: what it is shown next goes on from there. Known after a restart
    /// of the gateway from what the client echoes.
    pub fn was_at(&mut self, now: Instant, value: Tsval) {
        self.last = Some((value, now));
    }

    /// Where the clock stands at `now`, by its nominal tick of a millisecond.
    pub fn expected(&self, now: Instant) -> Option<Tsval> {
        let (last, at) = self.last?;
        let ticks = u32::try_from(now.since(at).as_millis()).unwrap_or(u32::MAX);
        Some(last.shift(TsDelta(ticks)))
    }
}

/// The clock that stands in for a client without timestamps, before its offset.
pub fn own_clock(now: Instant) -> Tsval {
    Tsval(now.millis() as u32)
}

/// One leg's clock.
#[derive(Clone, Debug, Default)]
pub struct LegClock {
    /// The latest value this leg sent.
    pub latest: Option<Tsval>,
    /// The latest TSecr this leg sent: a value of the client.
    pub echo: Tsval,
    /// From leg to client space; of a leg without timestamps, from [`own_clock`] to client space;
    /// of a client without, from [`own_clock`] to what this leg hears.
    pub offset: TsDelta,
    /// (value shown, this leg's latest value at that time), oldest first.
    ring: VecDeque<(Tsval, Tsval)>,
}

impl LegClock {
    /// Notes a segment's timestamps.
    pub fn heard(&mut self, value: Tsval, echo: Tsval) {
        self.latest = Some(self.latest.map_or(value, |l| l.max(value)));
        self.echo = echo;
    }

    /// This leg's latest value in client space.
    pub fn in_client_space(&self) -> Option<Tsval> {
        self.latest.map(|v| v.shift(self.offset))
    }

    /// Moves this leg's clock so that its latest value continues the one shown.
    pub fn continue_from(&mut self, shown: Tsval) {
        if let Some(latest) = self.latest {
            self.offset = TsDelta::between(latest, shown);
        }
    }

    /// The same for a leg without timestamps, for which [`own_clock`] stands in.
    pub fn stand_in_from(&mut self, now: Instant, shown: Tsval) {
        self.offset = TsDelta::between(own_clock(now), shown);
    }

    /// Keeps the latest pairings only: older ones are for echoes of what is still under way.
    pub fn settle(&mut self) {
        self.ring.drain(..self.ring.len().saturating_sub(RING_AT_REST));
        self.ring.shrink_to_fit();
    }

    /// Notes that `shown` went to the client.
    pub fn note_shown(&mut self, shown: Tsval) {
        let Some(latest) = self.latest else { return };
        match self.ring.back_mut() {
            // The same value again: the first pairing is the exact one.
            Some((s, _)) if *s == shown => {}
            _ => {
                if self.ring.len() == RING_MAX {
                    self.ring.pop_front();
                }
                self.ring.push_back((shown, latest));
            }
        }
    }

    /// The value of this leg to echo when the client echoes `echo` (invariant I8); `None` before
    /// the leg has sent any.
    pub fn to_leg(&self, echo: Tsval) -> Option<Tsval> {
        if on(Bug::EchoUnmapped) {
            return Some(echo);
        }
        let found = self.ring.iter().rev().find(|(shown, _)| !shown.is_after(echo));
        found.or(self.ring.front()).map(|&(_, own)| own).or(self.latest)
    }
}

fields!(ShownClock { last });
fields!(LegClock { latest, echo, offset, ring });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leg_hears_only_its_own_values() {
        let mut shown = ShownClock::default();
        let (mut a, mut b) = (LegClock::default(), LegClock::default());
        // The clocks are far apart and run at different rates.
        for step in 0..200u32 {
            a.heard(Tsval(1000 + step), Tsval(0));
            b.heard(Tsval((u32::MAX - 50).wrapping_add(step * 10)), Tsval(0));
            let now = Instant::from_millis(u64::from(step));
            let v = shown.show(now, a.in_client_space().expect("heard"));
            a.note_shown(v);
            b.note_shown(v);
        }
        assert_eq!(a.to_leg(Tsval(1199)), Some(Tsval(1199)));
        assert_eq!(b.to_leg(Tsval(1199)), Some(Tsval((u32::MAX - 50).wrapping_add(1990))));
        assert_eq!(b.to_leg(Tsval(1190)), Some(Tsval((u32::MAX - 50).wrapping_add(1900))));
    }

    #[test]
    fn the_shown_clock_never_goes_back_across_a_change_of_leg() {
        let mut shown = ShownClock::default();
        let mut b = LegClock::default();
        let first = shown.show(Instant::from_millis(0), Tsval(5));
        b.heard(Tsval(1 << 31), Tsval(0));
        b.continue_from(shown.expected(Instant::from_millis(7)).expect("shown"));
        let next = shown.show(Instant::from_millis(7), b.in_client_space().expect("heard"));
        assert!(next.is_after(first));
        assert_eq!(shown.show(Instant::from_millis(8), Tsval(2)), next);
    }
}
