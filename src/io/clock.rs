//! The system's clocks: engine time is CLOCK_MONOTONIC; logs and captures carry UNIX time.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::engine::Instant;

/// Engine time.
pub fn now() -> Instant {
    let t = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    Instant::from_nanos(t.0 as u64 * 1_000_000_000 + t.1 as u64)
}

/// Nanoseconds since the UNIX epoch.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since the UNIX epoch of an engine time of this boot.
pub fn to_unix_ns(at: Instant) -> u64 {
    let behind = now().nanos().wrapping_sub(at.nanos()) as i64;
    unix_ns().wrapping_add_signed(-behind)
}
