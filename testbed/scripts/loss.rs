//! Segments that are lost on one of the links, and what each side is told of it.

use std::io::Write;

use shadowvm::engine::{Event, FlowState, LegId};
use shadowvm::lab::{RouteMetrics, ServerOptions};
use shadowvm::wire::{Segment, TcpFlags};

use super::conn::{ACK, FIRST_PORT, ISS, Offer, Seen};
use super::rig::{A, B, Rig, Setup, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("d-sack-to-a-leg", d_sack_to_a_leg),
    ("old-data-is-answered-once", old_data_is_answered_once),
    ("hole-of-one-leg-is-not-shown", hole_of_one_leg_is_not_shown),
    ("ack-lost-to-one-leg", ack_lost_to_one_leg),
    ("backup-of-tiny-segments", backup_of_tiny_segments),
    ("late-backup-is-acknowledged-what-it-said", late_backup_is_acknowledged_what_it_said),
];

pub const TWINS: &[Twin] = &[
    ("request-lost-to-one-leg", request_lost_to_one_leg),
    ("sack-intersection", sack_intersection),
    ("three-duplicate-acks", three_duplicate_acks),
    ("fast-retransmit-of-the-servers", fast_retransmit_of_the_servers),
    ("response-lost-from-the-primary", response_lost_from_the_primary),
    ("first-response-lost-from-the-primary", first_response_lost_from_the_primary),
    ("last-response-lost-from-the-backup", last_response_lost_from_the_backup),
];

/// Request bytes lost to one server come from the gateway's copy, not from the client.
fn request_lost_to_one_leg(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        leg == B && seg.payload_len == 500 && !std::mem::replace(&mut lost, true)
    });
    rig.say(&mut conn, ACK, &pattern(500))?;
    let got = rig.read(&mut streams[1], 500)?;
    ensure(got == pattern(500), || "b read something else".into())?;
    let port = conn.port;
    let acked = rig.until("the ack", |rig| {
        rig.shown(port).find(|s| s.is_bare() && conn.acked_by(s) == 500).map(|s| s.at)
    })?;
    let resent = rig.sent_to(B, port).find(|s| !s.data.is_empty()).map(|s| s.at);
    let is_after = resent.is_some_and(|at| at <= acked);
    ensure(is_after, || "acknowledged what b had not got".into())
}

/// A block is shown only for what both servers have.
fn sack_intersection(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let base = ISS.wrapping_add(1);
    // Bytes 100..200 never leave the client at first; 200..300 is lost to b, again and again.
    rig.lose = Box::new(move |leg, seg| leg == B && seg.seq == base.wrapping_add(200));
    rig.say_at(&mut conn, 0, ACK, &[1; 100], &[])?;
    rig.say_at(&mut conn, 200, ACK, &[3; 100], &[])?;
    rig.say_at(&mut conn, 300, ACK, &[4; 100], &[])?;
    rig.settle()?;
    let blocks: Vec<_> = rig.shown(conn.port).flat_map(|s| conn.blocks_of(s)).collect();
    ensure(blocks.iter().all(|b| *b == (300, 400)), || format!("blocks {blocks:?}"))?;
    ensure(!blocks.is_empty(), || "no block for what both have".into())?;
    rig.lose = Box::new(|_, _| false);
    rig.say_at(&mut conn, 100, ACK, &[2; 100], &[])?;
    for stream in &mut streams {
        let got = rig.read(stream, 400)?;
        let want = [[1; 100], [2; 100], [3; 100], [4; 100]].concat();
        ensure(got == want, || "a server read something else".into())?;
    }
    Ok(())
}

/// A server whose answer is held repeats it; it is told that this was a duplicate.
fn d_sack_to_a_leg() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let all = pattern(4000);
    streams[1].write_all(&all).map_err(|e| e.to_string())?;
    let port = conn.port;
    rig.until("b to repeat it", |rig| {
        (rig.said_by(B, port).map(|s| s.data.len()).sum::<usize>() > all.len()).then_some(())
    })?;
    ensure(rig.shown(port).all(|s| s.data.is_empty()), || "b's bytes were shown".into())?;
    streams[0].write_all(&all).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, all.len())?;
    let is_duplicate = |s: &Seen| {
        let ack = s.seg.ack;
        let below = |r: u32| ack.wrapping_sub(r) as i32 >= 0;
        s.seg.options.sack.as_slice().first().is_some_and(|(_, r)| below(*r))
    };
    ensure(rig.sent_to(B, conn.port).any(is_duplicate), || "b was sent no D-SACK".into())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// "Emit the k-th dup ACK when both legs have produced k. Never forward both legs' dup ACKs: C
/// would reach 3 after 2 reordered packets": the client lost one segment of five.
fn three_duplicate_acks(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::PLAIN)?;
    let all = pattern(500);
    rig.say_at(&mut conn, 0, ACK, &all[..100], &[])?;
    let port = conn.port;
    rig.until("the first ack", |rig| (rig.acked(port) == 100).then_some(()))?;
    rig.settle()?;
    let before = rig.shown(port).count();
    let window = rig.shown(port).last().map(|s| s.seg.window);
    for (at, count) in [(200, 1), (300, 2), (400, 3)] {
        rig.say_at(&mut conn, at, ACK, &all[at as usize..at as usize + 100], &[])?;
        rig.settle()?;
        let shown: Vec<Seen> = rig.shown(port).skip(before).cloned().collect();
        let is_usable =
            |s: &Seen| s.is_bare() && conn.acked_by(s) == 100 && Some(s.seg.window) == window;
        ensure(shown.len() == count && shown.iter().all(is_usable), || {
            format!("after {count} segments beyond the hole:\n{}", rig.last_seen())
        })?;
    }
    rig.say_at(&mut conn, 100, ACK, &all[100..200], &[])?;
    for stream in &mut streams {
        let got = rig.read(stream, 500)?;
        ensure(got == all, || "a server read something else".into())?;
    }
    rig.until("the ack of all", |rig| (rig.acked(port) == 500).then_some(()))
}

/// "If the missing byte is in G's request buffer (lost G->leg, not C->G) emit none and resend
/// locally": b misses one segment and says so thrice; the client never hears of it.
fn hole_of_one_leg_is_not_shown() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::PLAIN)?;
    let base = ISS.wrapping_add(1);
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        let is_it = leg == B && seg.seq == base.wrapping_add(100) && seg.payload_len > 0;
        is_it && !std::mem::replace(&mut lost, true)
    });
    let all = pattern(500);
    for at in [0, 100, 200, 300, 400] {
        rig.say_at(&mut conn, at, ACK, &all[at as usize..at as usize + 100], &[])?;
    }
    for stream in &mut streams {
        let got = rig.read(stream, 500)?;
        ensure(got == all, || "a server read something else".into())?;
    }
    let port = conn.port;
    rig.until("the ack of all", |rig| (rig.acked(port) == 500).then_some(()))?;
    rig.settle()?;
    let acks: Vec<u32> =
        rig.shown(port).filter(|s| s.is_bare()).map(|s| conn.acked_by(s)).collect();
    ensure(acks.is_sorted_by(|a, b| a < b), || format!("acks shown: {acks:?}"))?;
    let repeated = rig.said_by(B, port).filter(|s| s.is_bare() && conn.acked_by(s) == 100).count();
    ensure(repeated >= 2, || "b showed no hole".into())
}

/// E9: "duplicate data: immediate ACK with D-SACK" of each server; it "never enters the
/// scoreboard", and "ACK of old: never forwarded twice".
fn old_data_is_answered_once() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, &pattern(300))?;
    for stream in &mut streams {
        rig.read(stream, 300)?;
    }
    let port = conn.port;
    rig.until("the ack", |rig| (rig.acked(port) == 300).then_some(()))?;
    rig.settle()?;
    let before = rig.shown(port).count();
    rig.say_at(&mut conn, 100, ACK, &pattern(300)[100..200], &[])?;
    rig.settle()?;
    for leg in [A, B] {
        let answer = rig.said_by(leg, port).last().ok_or("silence")?;
        ensure(conn.blocks_of(answer) == [(100, 200)], || format!("no D-SACK: {answer}"))?;
    }
    let shown: Vec<Seen> = rig.shown(port).skip(before).cloned().collect();
    let is_plain =
        |s: &Seen| s.is_bare() && conn.acked_by(s) == 300 && conn.blocks_of(s).is_empty();
    ensure(shown.len() == 1 && shown.iter().all(is_plain), || rig.last_seen())?;
    respond(&mut streams, b"both")?;
    rig.receive(&mut conn, 4)
}

/// Client's acks and SACK blocks reach each kernel in its own numbers, so that both repeat the lost
/// segment by fast retransmit: their retransmission timers stand at 20 s.
fn fast_retransmit_of_the_servers(is_v6: bool) -> Outcome {
    let mut rig = Rig::new(&Setup::over(is_v6).patient().in_packets())?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let all = pattern(12_000);
    respond(&mut streams, &all)?;
    let port = conn.port;
    let flight = rig.until("the response", |rig| {
        let ends = rig.shown(port).filter(|s| !s.data.is_empty());
        let ends: Vec<_> = ends.map(|s| (conn.offset(s), s.data.len() as u32)).collect();
        (ends.iter().map(|(_, len)| *len as usize).sum::<usize>() == all.len()).then_some(ends)
    })?;
    // The second segment was lost on the way to the client.
    let (first, second) = (flight[0].1, flight[0].1 + flight[1].1);
    let marks = [A, B].map(|leg| rig.said_by(leg, port).count());
    let mark = rig.shown(port).count();
    conn.received = all[..first as usize].to_vec();
    rig.say(&mut conn, ACK, b"")?;
    for &(at, len) in &flight[2..6] {
        rig.say_at(&mut conn, 0, ACK, b"", &[(second, at + len)])?;
    }
    for (leg, mark) in [A, B].into_iter().zip(marks) {
        rig.until("both kernels to repeat it", |rig| {
            let own = rig.said_by(leg, port).next()?.seg.seq.wrapping_add(1);
            let offset = |s: &Seen| s.seg.seq.wrapping_sub(own);
            let is_it = |s: &&Seen| offset(s) == first && !s.data.is_empty();
            rig.said_by(leg, port).skip(mark).find(is_it).map(drop)
        })?;
    }
    let again = rig.until("the segment again", |rig| {
        let is_it = |s: &&Seen| conn.offset(s) == first && !s.data.is_empty();
        rig.shown(port).skip(mark).find(is_it).cloned()
    })?;
    let end = first as usize + again.data.len();
    ensure(again.data == all[first as usize..end], || "it arrived changed".into())
}

/// The first segment with data of `leg` for which this is true is lost on its way to the gateway.
fn lose_once(rig: &mut Rig, leg: LegId, is_it: fn(&Segment) -> bool) {
    let mut lost = false;
    rig.passage = Box::new(move |from, seg, frame| {
        let is_ours = from == leg && seg.dst_port == FIRST_PORT && seg.payload_len > 0;
        let is_lost = is_ours && is_it(seg) && !std::mem::replace(&mut lost, true);
        (!is_lost).then_some(frame)
    });
}

/// Scenario 15, "drop one P->G segment: out-of-order equal ranges released, P fast-retransmits, no
/// deadlock": a is told of its hole in its own numbers, and does not wait for its timer (20 s);
/// b's copy never fills it (I1).
fn response_lost_from_the_primary(is_v6: bool) -> Outcome {
    let mut rig = Rig::new(&Setup::over(is_v6).patient().in_packets())?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let all = pattern(12_000);
    respond(&mut streams, &all[..2000])?;
    rig.receive(&mut conn, 2000)?;
    lose_once(&mut rig, A, |_| true);
    respond(&mut streams, &all[2000..])?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    let port = conn.port;
    let own = rig.said_by(A, port).next().ok_or("a is silent")?.seg.seq.wrapping_add(1);
    let offset = |seq: u32| seq.wrapping_sub(own);
    let blocks = |s: &Seen| s.seg.options.sack.as_slice().to_vec();
    let asked = rig
        .sent_to(A, port)
        .flat_map(blocks)
        .any(|(l, r)| offset(l) > 2000 && offset(l) < offset(r) && offset(r) <= 12_000);
    ensure(asked, || "a was told of no hole".into())?;
    let said = rig.said_by(A, port).find(|s| !s.data.is_empty() && offset(s.seg.seq) == 2000);
    let shown = rig.shown(port).find(|s| !s.data.is_empty() && conn.offset(s) == 2000);
    let is_after = shown.zip(said).is_some_and(|(shown, said)| said.at <= shown.at);
    ensure(is_after, || "shown before a said it".into())
}

/// 1.6, "P->G data lost: out-of-order release + SACK; SACK agent": the first segment of the
/// response, behind which nothing can be shown yet. a's further segments come before b's, so that
/// the hole is a's alone only when b speaks; a is told of it then, and the flow stays with it.
fn first_response_lost_from_the_primary(is_v6: bool) -> Outcome {
    let mut rig = Rig::new(&Setup::over(is_v6).patient().in_packets())?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let all = pattern(12_000);
    lose_once(&mut rig, A, |_| true);
    streams[0].write_all(&all).map_err(|e| e.to_string())?;
    rig.settle()?;
    streams[1].write_all(&all).map_err(|e| e.to_string())?;
    rig.settle()?;
    let has_block = |s: &Seen| !s.seg.options.sack.is_empty();
    ensure(rig.sent_to(A, conn.port).any(has_block), || "a was told of no hole".into())?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    let primary = rig.engine.flows(1).first().map(|f| f.primary);
    ensure(primary == Some(A), || "the flow left a for one lost segment".into())
}

/// LV1: "whenever S_l grows under c_una, send leg l ACK = min(c_una, NXT_l) immediately": b's last
/// segment is lost; its repetition is compared and acknowledged up to the end.
fn last_response_lost_from_the_backup(is_v6: bool) -> Outcome {
    let mut rig = Rig::new(&Setup::over(is_v6).in_packets())?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    lose_once(&mut rig, B, |seg| seg.flags.has(TcpFlags::PSH));
    let all = pattern(5000);
    respond(&mut streams, &all)?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    let port = conn.port;
    let own = rig.said_by(B, port).next().ok_or("b is silent")?.seg.seq.wrapping_add(1);
    let end = own.wrapping_add(all.len() as u32);
    rig.until("b to be acknowledged", |rig| {
        (rig.sent_to(B, port).last()?.seg.ack == end).then_some(())
    })?;
    let verified = rig.engine.flows(1).first().map(|f| f.verified_bytes);
    ensure(verified == Some(5000), || format!("{verified:?} bytes were compared"))
}

/// LV2: "any retransmission from a leg about things C already ACKed is answered by G": the client's
/// ack was lost to b, which repeats its last segment; the client hears nothing of it.
fn ack_lost_to_one_leg() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.lose = Box::new(|leg, seg| leg == B && seg.src_port == FIRST_PORT);
    let all = pattern(3000);
    respond(&mut streams, &all)?;
    rig.receive(&mut conn, all.len())?;
    rig.lose = Box::new(|_, _| false);
    let port = conn.port;
    let (shown, said) = (rig.shown(port).count(), rig.said_by(B, port).count());
    let own = rig.said_by(B, port).next().ok_or("b is silent")?.seg.seq.wrapping_add(1);
    let end = own.wrapping_add(all.len() as u32);
    let answer = rig.until("b to be acknowledged", |rig| {
        rig.sent_to(B, port).rev().find(|s| s.seg.ack == end && s.is_bare()).cloned()
    })?;
    let asked = rig.said_by(B, port).skip(said).find(|s| !s.data.is_empty());
    ensure(asked.is_some_and(|s| s.at <= answer.at), || "b repeated nothing".into())?;
    rig.settle()?;
    ensure(rig.shown(port).count() == shown, || rig.last_seen())
}

/// "Whole-packet hold deadlocks": a says super-frames, b pieces of 536 bytes, one a round trip at
/// first; release is byte-granular (LV4).
fn backup_of_tiny_segments() -> Outcome {
    let mut servers = <[ServerOptions; 2]>::default();
    servers[1].metrics = RouteMetrics { advmss: Some(536), initcwnd: Some(1) };
    servers[1].has_tso = false;
    let mut rig = Rig::new(&Setup { servers, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer { mss: 536, ..Offer::FULL })?;
    let all = pattern(200_000);
    rig.receive_from(&mut conn, &mut streams, &all)?;
    ensure(rig.state() == Some(FlowState::Paired), || "not paired to the end".into())
}

/// I6: "ACKs sent to a leg must be <= what G has seen that leg send. Linux throws away the whole
/// segment, data included" otherwise. b's program is late, the client has the answer of a alone and
/// asks again; b reads that, catches up, and is compared (1.7).
fn late_backup_is_acknowledged_what_it_said() -> Outcome {
    let mut rig = Rig::new(&Setup { is_available: true, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let all = pattern(4000);
    respond(&mut streams, &all[..1000])?;
    rig.receive(&mut conn, 1000)?;
    streams[0].write_all(&all[1000..3000]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 3000)?;
    ensure(rig.state() == Some(FlowState::Lagging), || "not lagging".into())?;
    rig.say(&mut conn, ACK, b"again")?;
    for stream in &mut streams {
        let got = rig.read(stream, 5)?;
        ensure(got == b"again", || format!("{got:?}"))?;
    }
    let port = conn.port;
    let own = rig.said_by(B, port).next().ok_or("b is silent")?.seg.seq.wrapping_add(1);
    let beyond = |s: &&Seen| s.seg.ack.wrapping_sub(own) as i32 > 1000;
    let wrong = rig.sent_to(B, port).filter(|s| s.has(ACK)).find(beyond).map(Seen::to_string);
    ensure(wrong.is_none(), || format!("b said 1000 bytes, and heard {wrong:?}"))?;
    streams[1].write_all(&all[1000..3000]).map_err(|e| e.to_string())?;
    rig.until("b to catch up", |rig| (rig.state() == Some(FlowState::Paired)).then_some(()))?;
    respond(&mut streams, &all[3000..])?;
    rig.receive(&mut conn, 4000)?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    let held = rig.events.iter().any(|e| matches!(e, Event::HoldHard { waiting_for: B, .. }));
    ensure(held, || "b was not waited for".into())
}
