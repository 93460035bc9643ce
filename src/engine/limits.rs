//! Every tuned value of the flows, in one place. Durations are engine time; sizes are bytes.

use super::time::Duration;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Response bytes that the leading leg may be ahead of what was released.
pub const LEAD_BYTES_MAX: u64 = 2 << 20;
/// The same when the pool is nearly full.
pub const LEAD_BYTES_MIN: u64 = 16 << 10;
/// Request bytes kept for local retransmission while both legs keep up.
pub const REQUEST_BYTES_MAX: u64 = 256 << 10;
/// Request bytes, and shown bytes to verify, kept for a lagging leg.
pub const LAG_BYTES_MAX: u64 = 4 << 20;
/// Released bytes that the client has not acknowledged: the window offered to a leg ends there.
pub const RETAIN_BYTES_MAX: u64 = 4 << 20;
/// How far beyond the edge that it was told a leg's bytes are still taken (window probes).
pub const BEYOND_EDGE_BYTES_MAX: u64 = 64 << 10;
/// How far a lagging leg's window may stay behind what the client was granted when it counts as
/// caught up.
pub const LATE_WINDOW_BYTES_MAX: u64 = 64 << 10;
/// Most payload in one super-frame that the gateway builds.
pub const SUPER_FRAME_BYTES_MAX: u64 = 65_000;
/// Values of other length than the one shown, on their way to the client: at more of them the
/// comparison waits for its acks.
pub const SPLICES_MAX: usize = 1024;
/// Pairs of values that clients may return.
pub const PAIRS_MAX: usize = 1 << 16;
/// What they may take.
pub const PAIRS_BYTES_MAX: usize = 32 << 20;
/// What one takes beside its values.
pub const PAIR_BYTES: usize = 256;
/// How long one of them is remembered that nobody uses.
pub const PAIR_KEPT: Duration = ms(24 * 3600 * 1000);
/// How long the rest of a value that a client returns is waited for: longer than a client needs to
/// find that a packet was lost.
pub const VALUE_WAIT: Duration = ms(1000);
/// Ranges kept in a leg's SACK scoreboard.
pub const SACKED_RANGES_MAX: usize = 64;

/// When the stored SYN is sent again to a leg that has not answered.
pub const SYN_RESEND: [Duration; 3] = [ms(10), ms(30), ms(70)];
/// The same if the client was answered with a cookie: it repeats no SYN.
pub const SYN_RESEND_ALONE: [Duration; 6] = [ms(10), ms(30), ms(70), ms(300), ms(1000), ms(2000)];
/// What acknowledges a SYN without one of its own has overtaken the SYN-ACK, or is of an older
/// connection with the same number: that is so if it is repeated after this.
pub const OVERTAKING_MAX: Duration = ms(20);
/// The same as [`OVERTAKING_MAX`] where a server is to come back to the place at which its former
/// connection may have stood: segments of that may be on their way for as long as a path is.
pub const FORMER_MAX: Duration = ms(400);
/// What one server is sent again in a second, and at once after a quiet time.
pub const RESENDS_PER_SECOND: u32 = 1000;
/// See [`RESENDS_PER_SECOND`].
pub const RESENDS_AT_ONCE: u32 = 500;
/// How long one leg's SYN-ACK waits for the other's, at least; two thirds of `hold_hard` if that is
/// more, and at most [`SYNACK_HOLD_MAX`]: before the client asks again after a second.
pub const SYNACK_HOLD: Duration = ms(100);
/// See [`SYNACK_HOLD`].
pub const SYNACK_HOLD_MAX: Duration = ms(800);
/// How long one refusal waits for the other leg.
pub const REFUSAL_HOLD: Duration = ms(1000);
/// A handshake without any answer to the client's last SYN is forgotten; the next begins it again.
pub const OPENING_MAX: Duration = ms(3000);

/// How long a server that is to take part in a connection again has to answer.
pub const REPROTECT_WAIT: Duration = ms(3000);
/// It is not asked sooner after it was reset: frames may overtake each other.
pub const REPROTECT_AFTER_RESET: Duration = ms(20);
/// How often it is asked for one flow before it comes back the next time.
pub const REPROTECT_TRIES: u8 = 4;
/// It is asked again after this, four times as long each time.
pub const REPROTECT_PAUSE: Duration = ms(5000);
/// A flow that had two servers for so long is asked for anew.
pub const REPROTECT_LASTS: Duration = ms(600_000);
/// What the client may be shown while the answer is awaited.
pub const REPROTECT_SHOWN_BYTES_MAX: u64 = LAG_BYTES_MAX / 4;
/// So many flows at most ask at once,
pub const REPROTECT_AT_ONCE: usize = 10;
/// of so many that are looked at,
pub const REPROTECT_LOOKED_AT: usize = 256;
/// and the next ones after this.
pub const REPROTECT_EVERY: Duration = ms(10);
/// Those that were all looked at are looked at again after this.
pub const REPROTECT_AGAIN: Duration = ms(500);

/// How long a reset of one leg waits for the other's.
pub const RST_HOLD: Duration = ms(50);
/// How long a FIN of one leg waits for a leg that has said everything before it.
pub const FIN_HOLD: Duration = ms(3000);
/// How long the end of a primary whose backup lags is doubted while that stands still.
pub const LAG_FIN_DOUBT: Duration = ms(1000);
/// How long a closed flow is kept for late segments (RFC 9293 3.6.1, shorter).
pub const TIME_WAIT: Duration = ms(65_000);
/// How long a reset flow is kept to reset again whoever missed it.
pub const RESET_KEPT: Duration = ms(5000);
/// What only one server agreed to is not offered again for so long.
pub const PROFILE_KEPT: Duration = ms(60_000);
/// A handshake that the client does not complete: a little more than servers wait for it.
pub const HALF_OPEN_MAX: Duration = ms(75_000);
/// The same once handshakes under way are so many that older ones give way to new ones.
pub const HALF_OPEN_PRESSED_MAX: Duration = ms(3000);
/// Share of `half_open_max` at which that begins.
pub const HALF_OPEN_PRESSED_PERCENT: usize = 75;
/// A flow that one side has closed and on which nothing more is heard.
pub const CLOSING_MAX: Duration = ms(600_000);
/// A flow on which nothing happens is put to rest after this; in tests at once: so they meet it.
pub const REST_AFTER: Duration = ms(if cfg!(test) { 2 } else { 250 });
/// Longest round trip of a client that servers are waited for because of.
pub const ROUND_TRIP_MAX: Duration = ms(1000);
/// A leg short of window is late only after this: its own persist timer (200 ms) comes first.
pub const TIGHT_WAIT: Duration = ms(300);
/// A leg all of whose bytes were shown is late only after this, while the client's ack is due: by
/// Nagle's rule it may wait for that, and the client may delay it (RFC 9293 3.8.6.3: 200 ms in
/// common stacks).
pub const DELAYED_ACK_WAIT: Duration = ms(300);
/// After a restart the ends are asked for their positions again after this, doubling to 64 times.
pub const ASK_AGAIN: Duration = ms(20);
/// A leg that does not answer them is late after this: stacks answer such questions seldom.
pub const ANSWER_WAIT: Duration = ms(1500);
/// A flow on which nothing was heard for this long is forgotten: above TCP's own keep-alive.
pub const IDLE_MAX: Duration = ms(5 * 24 * 3600 * 1000);

/// Local retransmission to a leg that shows a hole, or whose twin has acknowledged.
pub const RESEND_HINTED: [Duration; 4] = [ms(5), ms(10), ms(20), ms(40)];
/// The first local retransmission without such a hint: above the delayed ack.
pub const RESEND_BLIND: Duration = ms(60);
/// Local retransmission to a lagging leg, doubling up to a second.
pub const RESEND_LAGGING: Duration = ms(200);
/// The longest time between two local retransmissions.
pub const RESEND_MAX: Duration = ms(1000);
/// A hole is not filled again within this time, doubling while that changes nothing.
pub const HOLE_QUIET: Duration = ms(4);
/// Segments in flight to a lagging leg.
pub const LAG_FLIGHT_SEGMENTS: u64 = 10;

/// The same range is not shown again within this time when the other leg repeats it.
pub const REPEAT_QUIET: Duration = ms(10);
/// Ranges remembered for that.
pub const REPEATS_KEPT: usize = 32;
/// The gateway answers a server's keep-alive for a client heard within this time.
pub const CLIENT_FRESH: Duration = ms(2000);
/// A server's keep-alive, or window probe, is passed on at most this often.
pub const PROBE_PASS_EVERY: Duration = ms(1000);
/// The same while the client's window is closed.
pub const WINDOW_PROBE_PASS_EVERY: Duration = ms(100);
/// A lagging leg without progress for this long is given up.
pub const LAG_PROGRESS_MAX: Duration = ms(5000);
/// The same when it is the only one left.
pub const ORPHAN_PROGRESS_MAX: Duration = ms(2000);
/// A strict hold ends at the latest here: the leg is detached from the flow.
pub const STRICT_HOLD_MAX: Duration = ms(1000);
/// Segments sent at once to the client when a leg takes over with bytes held.
pub const TAKEOVER_SEGMENTS: u64 = 10;
/// The next portion leaves after this time even if the client acknowledges nothing.
pub const TAKEOVER_TICK: Duration = ms(2);
