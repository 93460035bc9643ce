//! What kind of TCP a model host is. All of it is legal; much of it is seldom seen.

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use crate::sim::rng::Rng;

/// A stack's character.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Habits {
    /// Largest IP packet.
    pub mtu: usize,
    /// Offers timestamps, from this clock.
    pub clock: Option<Clock>,
    /// Drops segments without a timestamp where one was agreed (RFC 7323 3.2).
    pub wants_stamps: bool,
    /// Offers selective acknowledgments.
    pub has_sack: bool,
    /// Offers a window scale of at most this.
    pub scale: Option<u8>,
    /// How far below the wrap the first connection's numbers begin; anywhere if nothing.
    pub near_wrap: Option<u32>,
    /// Segments in the first flight.
    pub first_flight: usize,
    /// Acknowledges a lone segment so much later (ns).
    pub ack_delay: Option<u64>,
    /// Acknowledges so many segments at once before it delays any.
    pub quick_acks: u32,
    /// Nagle's algorithm.
    pub nagle: bool,
    /// Segments shorter than they could be, per mille.
    pub chops: u64,
    /// The most payload in one frame: a multiple of the segment size, to be cut by the link.
    pub super_bytes: usize,
    /// Says a bare ack twice, per mille.
    pub repeats_acks: u64,
    /// Its FIN stands in a segment of its own.
    pub has_lone_fin: bool,
    /// Opens its window in steps of so many bytes, however small.
    pub window_step: Option<usize>,
    /// Having heard so many bytes, moves its window's edge no more for so long (ns).
    pub window_rest: Option<(u64, u64)>,
    /// Asks a closed window with a byte beyond it rather than with an old number.
    pub probes_with_byte: bool,
    /// Asks whether the peer still lives after so much silence (ns).
    pub keep_alive: Option<u64>,
    /// Repeats the end of a flight before its timeout (RFC 8985 7).
    pub has_tail_probe: bool,
    /// Shortest retransmission timeout (ns).
    pub rto_min: u64,
    /// Challenge acks at most so often (ns).
    pub challenge_every: u64,
    /// Urgent data ends at this offset of its stream (RFC 6093).
    pub urgent_at: Option<u64>,
    /// Answers SYNs without keeping anything, and makes the connection of the ack that comes back.
    pub has_cookies: bool,
    /// Would use explicit congestion notification (RFC 3168).
    pub offers_ecn: bool,
}

impl Default for Habits {
    /// Much like Linux.
    fn default() -> Self {
        Self {
            mtu: 1500,
            clock: Some(Clock { first: 1, rate: 1000, drift_ppm: 0 }),
            wants_stamps: false,
            has_sack: true,
            scale: Some(7),
            near_wrap: None,
            first_flight: 10,
            ack_delay: Some(40_000_000),
            quick_acks: 16,
            nagle: true,
            chops: 0,
            super_bytes: 0,
            repeats_acks: 0,
            has_lone_fin: false,
            window_step: None,
            window_rest: None,
            probes_with_byte: false,
            keep_alive: None,
            has_tail_probe: true,
            rto_min: 200_000_000,
            challenge_every: 500_000_000,
            urgent_at: None,
            has_cookies: false,
            offers_ecn: false,
        }
    }
}

impl Habits {
    /// A character drawn by chance.
    pub fn draw(rng: &mut Rng) -> Self {
        let ms = 1_000_000;
        Self {
            mtu: rng.pick(&[1500, 1500, 1500, 1280, 576, 9000]),
            clock: rng.chance(750).then(|| Clock {
                first: rng.pick(&[0, u32::MAX - 300, 1 << 31, rng.clone().next() as u32]),
                rate: rng.pick(&[1000, 1000, 250, 100, 10_000, 1_000_000]),
                drift_ppm: rng.pick(&[0, 0, 500, -500]),
            }),
            wants_stamps: rng.chance(300),
            has_sack: rng.chance(800),
            scale: rng.chance(850).then(|| rng.pick(&[7, 7, 0, 2, 10, 14])),
            near_wrap: rng.chance(400).then(|| rng.pick(&[2, 300, 5_000, 60_000])),
            first_flight: rng.pick(&[10, 10, 10, 4, 2, 1]),
            ack_delay: rng.pick(&[None, Some(5 * ms), Some(40 * ms), Some(200 * ms)]),
            quick_acks: rng.pick(&[16, 16, 2, 0]),
            nagle: rng.chance(500),
            chops: rng.pick(&[0, 0, 0, 50, 500]),
            super_bytes: 0,
            repeats_acks: rng.pick(&[0, 0, 0, 20, 200]),
            has_lone_fin: rng.chance(300),
            window_step: rng.pick(&[None, None, None, Some(100), Some(5_000)]),
            window_rest: rng
                .chance(100)
                .then(|| (rng.skewed(1, 40_000), rng.pick(&[20 * ms, 100 * ms, 400 * ms]))),
            probes_with_byte: rng.chance(300),
            keep_alive: rng.pick(&[None, None, None, Some(300 * ms), Some(2000 * ms)]),
            has_tail_probe: rng.chance(700),
            rto_min: rng.pick(&[200 * ms, 200 * ms, 1000 * ms, 30 * ms]),
            challenge_every: rng.pick(&[500 * ms, 500 * ms, ms]),
            urgent_at: None,
            has_cookies: false,
            offers_ecn: false,
        }
    }
}
