//! Timestamps: clocks that begin anywhere, and segments from the past (RFC 7323 5, PAWS).

use std::io::{ErrorKind, Read, Write};

use shadowvm::engine::Link;
use shadowvm::wire::Tsval;

use super::closing::answers;
use super::conn::{ACK, Offer, Seen};
use super::handshake::stamps_grow;
use super::rig::{A, B, Rig, ensure, pattern};
use super::{Outcome, Script};

pub const SCRIPTS: &[Script] = &[
    ("restart-with-a-late-clock", restart_with_a_late_clock),
    ("client-clock-wraps", client_clock_wraps),
    ("old-stamp-after-a-failover", old_stamp_after_a_failover),
];

/// A client whose clock stands beyond 2^31, and a gateway that begins again in between: the
/// servers go on hearing that clock.
fn restart_with_a_late_clock() -> Outcome {
    let mut rig = Rig::equal(false)?;
    rig.tsval = 0xc000_0000;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.restart()?;
    let before = rig.seen.len();
    answers(&mut rig, &mut conn, &mut streams)?;
    let stamps: Vec<u32> = rig.seen[before..]
        .iter()
        .filter(|s| s.link != Link::Client && s.seg.src_port == conn.port && !s.data.is_empty())
        .filter_map(|s| s.seg.options.timestamps.map(|(val, _)| val.0))
        .collect();
    let follows = |&val: &u32| (0xc000_0000..=conn.tsval).contains(&val);
    ensure(!stamps.is_empty() && stamps.iter().all(follows), || format!("{stamps:x?}"))?;
    stamps_grow(&rig, &conn)
}

/// The client's clock passes 2^32 between two segments, and its primary fails just then: the
/// survivor, which remembers the clock from before (PAWS), takes what comes after.
fn client_clock_wraps() -> Outcome {
    let mut rig = Rig::equal(false)?;
    rig.tsval = u32::MAX - 6;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"before")?;
    for stream in &mut streams {
        rig.read(stream, 6)?;
    }
    rig.fail(A)?;
    for _ in 0..8 {
        rig.say(&mut conn, ACK, b"wrapped ")?;
    }
    ensure(conn.tsval < 100, || format!("the clock stands at {}", conn.tsval))?;
    let got = rig.read(&mut streams[1], 64)?;
    ensure(got == b"wrapped ".repeat(8), || format!("{got:?}"))?;
    streams[1].write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 3000)?;
    // What b said last echoes the new clock.
    let is_new = |s: &Seen| s.seg.options.timestamps.is_some_and(|(_, echo)| echo.0 < 100);
    ensure(rig.said_by(B, conn.port).last().is_some_and(is_new), || rig.last_seen())
}

/// RFC 7323 5.3, E5: a segment of the client two ticks older than what the server has heard "is
/// dropped and acknowledged", by the survivor of a failover too, whatever its sequence number. The
/// gateway carries the client's clock; it does not renew it.
fn old_stamp_after_a_failover() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    conn.tsval += 100_000;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.fail(A)?;
    rig.settle_alone(B)?;
    let mut past = conn.clone();
    past.tsval -= 50_000;
    let old = rig.frame_at(&mut past, conn.sent, ACK, b"from the past", &[]);
    let stamp = Tsval(past.tsval);
    rig.client_says(old)?;
    rig.settle_alone(B)?;
    let got = streams[1].read(&mut [0; 100]).map_err(|e| e.kind());
    ensure(got == Err(ErrorKind::WouldBlock), || format!("b read {got:?}, stamped {stamp:?}"))?;
    rig.say(&mut conn, ACK, b"of now")?;
    let got = rig.read(&mut streams[1], 6)?;
    ensure(got == b"of now", || format!("{got:?}"))
}
