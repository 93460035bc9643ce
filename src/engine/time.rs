//! Engine time: nanoseconds since an origin that the driver chose. The engine never reads a clock.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, Sub};
pub use std::time::Duration;

/// A point in time, in nanoseconds since the driver's origin. Kept as one more than that: a flow
/// has many that may be absent, and so an `Option` of it needs no more room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZeroU64);

impl Default for Instant {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Instant {
    /// The driver's origin.
    pub const ZERO: Self = Self(NonZeroU64::MIN);

    /// A point `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }

    /// Nanoseconds since the origin.
    pub const fn nanos(self) -> u64 {
        self.0.get() - 1
    }

    /// A point `ms` milliseconds after the origin.
    pub const fn from_millis(ms: u64) -> Self {
        Self::from_nanos(ms * 1_000_000)
    }

    /// Whole milliseconds since the origin.
    pub const fn millis(self) -> u64 {
        self.nanos() / 1_000_000
    }

    /// The time from `earlier` to `self`; zero if `self` is the earlier one.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos().saturating_sub(earlier.nanos()))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        let nanos = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self::from_nanos(self.nanos().saturating_sub(nanos))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.millis(), self.nanos() % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_milliseconds_to_the_nanosecond() {
        assert_eq!(format!("{:?}", Instant::from_nanos(12_000_345)), "12.000345ms");
    }
}
