//! How many bytes a second may leave.

use std::time::{Duration, Instant};

/// What was not used counts for so long.
const BURST: Duration = Duration::from_millis(50);

/// An allowance that grows with time.
#[derive(Debug)]
pub struct Allowance {
    bytes_per_second: f64,
    /// Negative after more left than there was: one record is never cut.
    bytes: f64,
    at: Instant,
}

impl Allowance {
    /// So many bytes a second.
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1) as f64, bytes: 0.0, at: now }
    }

    /// How long to wait before more may leave; none if it may now.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        let most = self.bytes_per_second * BURST.as_secs_f64();
        self.bytes = (self.bytes + since * self.bytes_per_second).min(most);
        self.at = now;
        let missing = -self.bytes / self.bytes_per_second;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing))
    }

    /// So many have left.
    pub fn spend(&mut self, bytes: usize) {
        self.bytes -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_leaves_in_a_second_as_was_said_and_idle_time_gives_no_more_than_a_burst() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(1_000_000, begin);
        let (mut now, mut sent) = (begin + Duration::from_secs(100), 0);
        let end = now + Duration::from_secs(1);
        while now < end {
            match allowance.wait(now) {
                Some(wait) => now += wait,
                None => {
                    allowance.spend(60_000);
                    sent += 60_000;
                }
            }
        }
        assert!((1_000_000..=1_120_000).contains(&sent), "{sent}");
    }
}
