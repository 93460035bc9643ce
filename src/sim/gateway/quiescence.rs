//! What a finished run has cost, and what it left behind (oracles 6 and 8).

use super::super::ends::{ClientConn, Progress};
use super::super::scenario::{Close, ConnPlan};
use super::super::world::{Report, Truth, World};
use crate::engine::{FlowState, Input, Instant};

/// How long a finished run may take to close its flows (ns).
const CLOSING: u64 = 20_000_000_000;
/// Legs that say nothing are given up by then (ns).
const GIVEN_UP: u64 = 8_000_000_000;

impl World<'_> {
    /// At the end: cost and quiescence (oracles 6 and 8).
    pub fn check_end(&mut self) {
        if self.gateway.is_wire || self.report.violation.is_some() {
            return;
        }
        let (got, sent) = self.report.frames;
        let (times, spare) = self.scenario.cost_max;
        if sent > times * got + spare {
            self.fail(format!("cost: {sent} frames sent for {got} received"));
        }
        self.report.rare_both_lost(&self.truth);
        if self.is_searched_for_leaks() && self.report.violation.is_none() {
            self.check_quiescence();
        }
    }

    fn check_quiescence(&mut self) {
        let Some(engine) = &mut self.gateway.engine else { return };
        let begun = self.now.max(CLOSING);
        let mut now = begun;
        // Nobody says anything any more. The engine is asked when it wants to be until legs are
        // given up, and then every two seconds: whoever comes late has stalled, and forgives.
        while now < begun + 180_000_000_000 {
            now = match engine.poll_timeout().map(Instant::nanos) {
                Some(at) if now < begun + GIVEN_UP => at.max(now + 1_000),
                _ => now + 2_000_000_000,
            };
            engine.handle(Instant::from_nanos(now), Input::Timeout);
            while engine.poll_output().is_some() {}
        }
        let held = engine.status().held_bytes;
        let left: Vec<FlowState> = engine.flows(1000).iter().map(|f| f.state).collect();
        if left.iter().any(|s| matches!(s, FlowState::TimeWait | FlowState::Opening)) {
            self.fail(format!("quiescence: flows are left in {left:?} after three minutes"));
        }
        if left.is_empty() && held != 0 {
            self.fail(format!("quiescence: {held} bytes are held by no flow"));
        }
        if !left.is_empty() && self.is_undisturbed() {
            self.fail(format!("quiescence: {left:?} are left of connections that have ended"));
        }
    }

    /// Nothing went wrong, nothing was lost, and every connection was closed in order by both ends.
    fn is_undisturbed(&self) -> bool {
        let is_orderly = |c: &ConnPlan| c.close != Close::Abort;
        let is_done = |c: &ClientConn| c.progress == Progress::Done;
        !self.is_cut_short
            && self.conns.iter().all(is_done)
            && self.scenario.conns.iter().all(is_orderly)
            && self.scenario.links.iter().flatten().all(|p| !p.is_lossy())
            && !self.fired.contains(&true)
    }
}

impl Report {
    fn rare_both_lost(&mut self, truth: &[Truth; 2]) {
        if truth.iter().all(|t| t.is_dead) {
            self.rare.0[9] = self.rare.0[9].max(1);
        }
    }
}
