//! One direction of a link: what becomes of each frame. It looks inside only to spoil what a
//! checksum, or none, protects, and to know a packet's size.

use super::frames::{self, Read, Seg};
use super::oracle::Tuple;
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

/// A byte that a server's bad memory has changed.
#[derive(Clone, Copy, Debug)]
pub struct Altered {
    /// Who will hear it.
    pub to: Tuple,
    /// Its sequence number.
    pub seq: u32,
    /// What it has become.
    pub byte: u8,
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
    /// Bytes changed since somebody looked.
    pub altered: Vec<Altered>,
    /// Packets too large for the path since somebody looked.
    pub too_large: Vec<Vec<u8>>,
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
            altered: Vec::new(),
            too_large: Vec::new(),
        }
    }

    /// Largest IP packet that passes, if that is less than hosts think.
    pub fn mtu(&self) -> Option<u16> {
        self.plan.mtu
    }

    /// The fate of a frame sent at `now` (ns): arrivals, in any order.
    pub fn send(&mut self, now: u64, frame: Vec<u8>, out: &mut Vec<(u64, Vec<u8>)>) {
        if now < self.cut_until || (!self.is_calm && self.is_lost()) {
            self.counts.lost += 1;
            return;
        }
        if self.plan.mtu.is_some_and(|mtu| frames::ip_len(&frame) > usize::from(mtu)) {
            return self.too_large.push(frame);
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
        out.push((arrival, self.spoil(frame)));
    }

    fn happens(&mut self, per_mille: u64) -> bool {
        !self.is_calm && per_mille > 0 && self.rng.chance(per_mille)
    }

    fn spoil(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.happens(self.plan.truncate) {
            frame.truncate(self.rng.range(14, frame.len() as u64 - 1) as usize);
        }
        if self.happens(self.plan.mark) {
            frames::mark_congestion(&mut frame);
        }
        if self.happens(self.plan.alter) {
            self.alter(&mut frame);
        }
        frame
    }

    /// Flips one bit of a segment's data and makes the checksum right again. Text is spared: the
    /// heads of answers tell where masked values stand, and those may differ.
    fn alter(&mut self, frame: &mut [u8]) {
        let Read::Tcp(Seg { seq, dst, data, .. }) = frames::read(frame, true) else { return };
        if data.is_empty() {
            return;
        }
        let at = self.rng.below(data.len() as u64) as usize;
        let byte = data[at] ^ 1 << self.rng.below(7);
        if byte.is_ascii() {
            return;
        }
        self.altered.push(Altered { to: dst, seq: seq.wrapping_add(at as u32), byte });
        let first = 14 + frames::ip_len(frame) - data.len();
        frames::set_byte(frame, first + at, byte);
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
