//! One direction of a link: what becomes of each frame. It never looks inside frames, except for
//! corruption to spare what a frame check sequence, or no checksum at all, would protect.

use super::rng::Rng;
use super::scenario::PipePlan;

/// What happened to frames on one pipe.
#[derive(Clone, Copy, Debug, Default)]
pub struct PipeCounts {
    /// Lost.
    pub lost: u32,
    /// Delivered with a wrong bit.
    pub corrupted: u32,
}

/// One direction.
#[derive(Debug)]
pub struct Pipe {
    plan: PipePlan,
    rng: Rng,
    is_in_burst: bool,
    last_arrival: u64,
    /// Nothing passes before this time (ns).
    pub cut_until: u64,
    /// No more faults: delay only.
    pub is_calm: bool,
    /// Counts.
    pub counts: PipeCounts,
}

impl Pipe {
    /// A pipe with its own chance.
    pub fn new(plan: &PipePlan, seed: u64) -> Self {
        Self {
            plan: plan.clone(),
            rng: Rng::new(seed),
            is_in_burst: false,
            last_arrival: 0,
            cut_until: 0,
            is_calm: false,
            counts: PipeCounts::default(),
        }
    }

    /// The fate of a frame sent at `now` (ns): arrivals, in any order.
    pub fn send(&mut self, now: u64, frame: Vec<u8>, out: &mut Vec<(u64, Vec<u8>)>) {
        if now < self.cut_until || (!self.is_calm && self.is_lost()) {
            self.counts.lost += 1;
            return;
        }
        let mut arrival = now + self.plan.delay_us * 1000;
        arrival += self.rng.below(self.plan.jitter_us * 1000 + 1);
        if !self.is_calm && self.rng.chance(self.plan.reorder) {
            // Late: others overtake it.
            arrival += self.rng.range(50_000, 3_000_000);
        } else {
            arrival = arrival.max(self.last_arrival);
            self.last_arrival = arrival;
        }
        if !self.is_calm && self.rng.chance(self.plan.dup) {
            out.push((arrival + self.rng.below(1_000_000), frame.clone()));
        }
        let frame = match !self.is_calm && self.rng.chance(self.plan.corrupt) {
            true => self.corrupt(frame),
            false => frame,
        };
        out.push((arrival, frame));
    }

    fn is_lost(&mut self) -> bool {
        if self.is_in_burst {
            self.is_in_burst = !self.rng.chance(300);
        } else {
            self.is_in_burst = self.rng.chance(self.plan.burst);
        }
        self.is_in_burst || self.rng.chance(self.plan.loss)
    }

    /// Flips one bit behind the Ethernet header of an IPv4 packet; a checksum tells.
    fn corrupt(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        let end = match frame.get(12..18) {
            Some([8, 0, _, _, high, low]) => 14 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return frame,
        };
        let end = end.min(frame.len());
        let at = self.rng.range(14, end as u64 - 1) as usize;
        frame[at] ^= 1 << self.rng.below(8);
        self.counts.corrupted += 1;
        frame
    }
}
