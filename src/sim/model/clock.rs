//! The clock behind the timestamps option: any first value, any rate, any drift.

use serde::{Deserialize, Serialize};

/// A clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Its value at time 0.
    pub first: u32,
    /// Ticks a second.
    pub rate: u32,
    /// How much faster than that it runs, in parts of a million.
    pub drift_ppm: i32,
}

impl Clock {
    /// Its value at `now` (ns).
    pub fn at(&self, now: u64) -> u32 {
        self.first.wrapping_add(self.ticks(now) as u32)
    }

    fn ticks(&self, now: u64) -> u64 {
        let millionths = 1_000_000u128.saturating_add_signed(i128::from(self.drift_ppm));
        let ticks = u128::from(now) * u128::from(self.rate) * millionths;
        (ticks / 1_000_000_000_000_000) as u64
    }

    /// How long before `now` it showed `value` (ns); nothing for a value to come or long past.
    pub fn age(&self, now: u64, value: u32) -> Option<u64> {
        let ticks = self.at(now).wrapping_sub(value) as i32;
        let ticks = u64::try_from(ticks).ok()?;
        Some(ticks * 1_000_000_000 / u64::from(self.rate)).filter(|&ns| ns <= now)
    }
}

/// Whether `a` comes before `b` on a clock that wraps.
pub fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_wraps_drifts_and_knows_ages() {
        let clock = Clock { first: u32::MAX - 9, rate: 1000, drift_ppm: 0 };
        assert_eq!((clock.at(0), clock.at(10_000_000)), (u32::MAX - 9, 0));
        assert_eq!(clock.age(20_000_000, clock.at(5_000_000)), Some(15_000_000));
        assert_eq!(clock.age(20_000_000, clock.at(30_000_000)), None);
        assert!(is_before(clock.at(0), clock.at(11_000_000)));
        let fast = Clock { drift_ppm: 500, ..clock };
        assert_eq!(fast.at(1_000_000_000_000).wrapping_sub(clock.at(1_000_000_000_000)), 500);
    }
}
