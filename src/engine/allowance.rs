//! How much is sent again to a server in a time. One that is late because of load gets more load
//! from every repetition: thousands of connections that each repeat one small request would keep
//! it from answering any.

use super::LegId;
use super::limits::{RESENDS_AT_ONCE, RESENDS_PER_SECOND};
use super::pack::fields;
use super::time::{Duration, Instant};

/// Resends that each server may still be sent: a token bucket.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// When each bucket would have been empty.
    empty_at: [Instant; 2],
}

impl Allowance {
    /// Full buckets.
    pub const fn full() -> Self {
        Self { empty_at: [Instant::ZERO; 2] }
    }

    /// Takes one resend to `leg`; false if there is none left now.
    pub fn take(&mut self, now: Instant, leg: LegId) -> bool {
        let one = Duration::from_secs(1) / RESENDS_PER_SECOND;
        let full = one * RESENDS_AT_ONCE;
        let empty_at = &mut self.empty_at[leg.index()];
        let had = now.since(*empty_at).min(full);
        if had < one {
            return false;
        }
        *empty_at = now - (had - one);
        true
    }
}

fields!(Allowance { empty_at });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let mut allowance = Allowance::full();
        let at = |ms: u64| Instant::from_millis(100_000 + ms);
        let mut takes =
            |ms: u64, leg| (0..100_000).take_while(|_| allowance.take(at(ms), leg)).count();
        assert_eq!(takes(0, LegId::A), RESENDS_AT_ONCE as usize);
        assert_eq!(takes(0, LegId::A), 0);
        assert_eq!(takes(50, LegId::A), RESENDS_PER_SECOND as usize / 20);
        assert_eq!(takes(60_000, LegId::A), RESENDS_AT_ONCE as usize);
        assert_eq!(takes(60_000, LegId::B), RESENDS_AT_ONCE as usize);
    }
}
