//! Windows: whose counts, when the client learns of a change, and probes of a closed one.

use std::io::Read;
use std::net::TcpStream;

use shadowvm::engine::{Event, FlowState, LegId};

use super::conn::{ACK, Conn, FIRST_PORT, Offer, SYN, Seen};
use super::rig::{A, B, Rig, Setup, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("window-opens-with-the-later-leg", window_opens_with_the_later_leg),
    ("window-probe-of-the-client", window_probe_of_the_client),
    ("window-update-lost-to-one-leg", window_update_lost_to_one_leg),
    ("window-edge-never-moves-back", window_edge_never_moves_back),
    ("upload-with-a-backup-that-does-not-read", upload_with_a_backup_that_does_not_read),
];

pub const TWINS: &[Twin] = &[
    ("zero-window-of-one-leg", zero_window_of_one_leg),
    ("zero-window-of-the-client", zero_window_of_the_client),
    ("keep-alive", keep_alive),
    ("keep-alive-with-a-byte", keep_alive_with_a_byte),
];

/// b's program does not read: the client is never granted more than b, and learns when it opens.
fn zero_window_of_one_leg(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let (mut sent, mut read) = (0u32, 0usize);
    // a reads everything, b nothing, until the client may send no more.
    loop {
        let room = rig.edge(&conn).saturating_sub(sent);
        if room == 0 {
            break;
        }
        let piece = room.min(1400);
        rig.say(&mut conn, ACK, &vec![7; piece as usize])?;
        sent += piece;
        rig.until("the ack", |rig| {
            let mut sink = [0; 65_536];
            while let Ok(n @ 1..) = streams[0].read(&mut sink) {
                read += n;
            }
            (rig.acked(conn.port) == sent).then_some(())
        })?;
        ensure(sent < 8 << 20, || "b's window never closes".into())?;
    }
    ensure(read == sent as usize, || format!("a read {read} of {sent}"))?;
    rig.read(&mut streams[1], sent as usize)?;
    rig.until("the window to open", |rig| (rig.edge(&conn) > sent + 1400).then_some(()))
}

/// Two servers with little memory, and a client that has sent all that it may.
fn both_full() -> Result<(Rig, Conn, [TcpStream; 2]), String> {
    let setup = Setup::default().both("net.ipv4.tcp_rmem", "4096 16384 16384");
    let mut rig = Rig::new(&setup)?;
    let (mut conn, streams) = rig.open(Offer::FULL)?;
    loop {
        let room = rig.edge(&conn).saturating_sub(conn.sent);
        if room == 0 {
            return Ok((rig, conn, streams));
        }
        let piece = pattern(room.min(1400) as usize);
        rig.say(&mut conn, ACK, &piece)?;
        let sent = conn.sent;
        rig.until("the ack", |rig| (rig.acked(conn.port) == sent).then_some(()))?;
        ensure(sent < 1 << 20, || "no window closes".into())?;
    }
}

/// How far a server lets the client send.
fn granted(rig: &Rig, conn: &Conn, leg: LegId) -> u32 {
    let shift = |s: &Seen| s.seg.options.window_scale.unwrap_or(0);
    let shift = rig.said_by(leg, conn.port).next().map_or(0, shift);
    let edge = |s: &Seen| {
        let shift = if s.has(SYN) { 0 } else { shift };
        conn.acked_by(s) + (u32::from(s.seg.window) << shift)
    };
    rig.said_by(leg, conn.port).map(edge).max().unwrap_or(0)
}

/// "Synthesize update when opening from 0 - also when the *backup* was the limiter": a's program
/// reads first, which opens nothing for the client; then b's does, and that is told at once.
fn window_opens_with_the_later_leg() -> Outcome {
    let (mut rig, conn, mut streams) = both_full()?;
    let sent = conn.sent;
    rig.read(&mut streams[0], sent as usize)?;
    rig.until("a to open its window", |rig| (granted(rig, &conn, A) > sent + 2000).then_some(()))?;
    let edge = rig.edge(&conn);
    let other = granted(&rig, &conn, B);
    ensure(edge <= other, || format!("granted {edge} when b granted {other}"))?;
    rig.read(&mut streams[1], sent as usize)?;
    rig.until("b to open its window", |rig| (granted(rig, &conn, B) > sent + 2000).then_some(()))?;
    rig.until("the window to open", |rig| (rig.edge(&conn) > sent + 2000).then_some(()))
}

/// "C's probe -> both, answer = V values": one answer, the window still closed; the byte of the
/// other kind of probe is not taken.
fn window_probe_of_the_client() -> Outcome {
    let (mut rig, mut conn, _streams) = both_full()?;
    rig.settle()?;
    let (port, sent) = (conn.port, conn.sent);
    for (at, data) in [(sent - 1, &b""[..]), (sent, b"x")] {
        let before = rig.shown(port).count();
        rig.say_at(&mut conn, at, ACK, data, &[])?;
        for leg in [A, B] {
            let probe = rig.sent_to(leg, port).last().map(|s| s.data.len());
            ensure(probe == Some(data.len()), || format!("{leg:?} did not hear the probe"))?;
        }
        rig.settle()?;
        let answers: Vec<Seen> = rig.shown(port).skip(before).cloned().collect();
        let is_closed = |s: &Seen| s.is_bare() && conn.acked_by(s) == sent && s.seg.window == 0;
        let is_right = answers.len() == 1 && answers.iter().all(is_closed);
        ensure(is_right, || format!("{} answers:\n{}", answers.len(), rig.last_seen()))?;
    }
    Ok(())
}

/// A client that takes 2,000 bytes and no more, and has acknowledged them; both programs have said
/// 6,000.
fn client_full(is_v6: bool) -> Result<(Rig, Conn, [TcpStream; 2]), String> {
    let mut rig = Rig::equal(is_v6)?;
    let mut conn = rig.new_conn(Offer::PLAIN);
    conn.window = 2000;
    rig.repeat_syn(&conn)?;
    let mut streams = rig.accept(&mut conn)?;
    respond(&mut streams, &pattern(6000))?;
    rig.until("what the client takes", |rig| {
        rig.take(&mut conn);
        (conn.received.len() >= 2000).then_some(())
    })?;
    conn.window = 0;
    Ok((rig, conn, streams))
}

/// "Leg's persist probe: forward if C really is at zero window": nothing beyond the edge is shown,
/// the servers' probe is, at `una - 1`, and the client's answer goes to both; the rest follows when
/// the client opens.
fn zero_window_of_the_client(is_v6: bool) -> Outcome {
    let (mut rig, mut conn, _streams) = client_full(is_v6)?;
    rig.say(&mut conn, ACK, b"")?;
    let (port, mark) = (conn.port, rig.shown(conn.port).count());
    let probe = rig.until("a probe", |rig| rig.shown(port).nth(mark).cloned())?;
    ensure(probe.is_bare() && conn.offset(&probe) == 1999, || format!("not a probe: {probe}"))?;
    let most = rig.shown(port).map(|s| conn.offset(s).wrapping_add(s.data.len() as u32) as i32);
    ensure(most.max() == Some(2000), || format!("beyond the edge:\n{}", rig.last_seen()))?;
    let before = [A, B].map(|leg| rig.sent_to(leg, port).count());
    rig.say(&mut conn, ACK, b"")?;
    for (leg, before) in [A, B].into_iter().zip(before) {
        let answer = rig.sent_to(leg, port).nth(before).ok_or("the answer went to one only")?;
        ensure(answer.seg.window == 0, || format!("{answer}"))?;
    }
    conn.window = 60_000;
    rig.say(&mut conn, ACK, b"")?;
    rig.receive(&mut conn, 6000)?;
    ensure(conn.received == pattern(6000), || "the response arrived changed".into())
}

/// "otherwise answer locally with current ACK/window (its window update was lost)": the client
/// opens, which b does not hear; b probes, is told by the gateway, and the client is not asked.
fn window_update_lost_to_one_leg() -> Outcome {
    let (mut rig, mut conn, _streams) = client_full(false)?;
    let port = conn.port;
    rig.say(&mut conn, ACK, b"")?;
    rig.lose = Box::new(|leg, seg| leg == B && seg.src_port == FIRST_PORT);
    conn.window = 60_000;
    rig.say(&mut conn, ACK, b"")?;
    rig.lose = Box::new(|_, _| false);
    rig.receive(&mut conn, 6000)?;
    ensure(conn.received == pattern(6000), || "the response arrived changed".into())?;
    let is_probe = |s: &&Seen| s.is_bare() && conn.offset(s) == 1999;
    ensure(rig.shown(port).find(is_probe).is_none(), || "the client was asked".into())?;
    let own = rig.said_by(B, port).next().ok_or("b is silent")?.seg.seq.wrapping_add(1);
    let probed = rig.said_by(B, port).any(|s| s.is_bare() && s.seg.seq == own.wrapping_add(1999));
    ensure(probed, || "b did not probe".into())?;
    let verified = rig.engine.flows(1).first().map(|f| f.verified_bytes);
    ensure(verified == Some(6000), || format!("{verified:?} bytes were compared"))
}

/// I3: "RELEDGE <= min(R_P, R_B); monotone as an offset; the edge on the wire may step back by less
/// than 2^ws_v", through an upload that one program reads in fits and starts, and a failover.
fn window_edge_never_moves_back() -> Outcome {
    let setup = Setup::default().both("net.ipv4.tcp_rmem", "4096 32768 65536");
    let mut rig = Rig::new(&setup)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let (all, port) = (pattern(200_000), conn.port);
    let (mut read, mut is_alone) = (0, false);
    while (conn.sent as usize) < all.len() {
        let at = conn.sent as usize;
        let room = rig.edge(&conn).saturating_sub(conn.sent) as usize;
        for piece in all[at..all.len().min(at + room)].chunks(1400) {
            rig.say(&mut conn, ACK, piece)?;
        }
        let sent = conn.sent;
        let mut a_reads = || while let Ok(1..) = streams[0].read(&mut [0; 65_536]) {};
        rig.until("the ack", |rig| {
            a_reads();
            (rig.acked(port) == sent).then_some(())
        })?;
        let granted = [A, B].map(|leg| granted(&rig, &conn, leg));
        let most = if is_alone { granted[1] } else { granted[0].min(granted[1]) };
        let edge = rig.edge(&conn);
        ensure(edge <= most, || format!("granted {edge} of {granted:?}"))?;
        if !is_alone && sent > 100_000 {
            rig.fail(A)?;
            is_alone = true;
        }
        while rig.edge(&conn) < sent + 1400 && read < sent as usize {
            let got = rig.read(&mut streams[1], 8000.min(sent as usize - read))?;
            ensure(got == all[read..read + got.len()], || "b read something else".into())?;
            read += got.len();
            rig.settle_alone(B)?;
        }
    }
    let syn = rig.shown(port).next().ok_or("no SYN-ACK")?;
    let shift = syn.seg.options.window_scale.ok_or("no scale")?;
    let mut last = 0;
    for shown in rig.shown(port).skip(1) {
        let edge = conn.acked_by(shown) + (u32::from(shown.seg.window) << shift);
        ensure(edge + (1 << shift) > last, || format!("{edge} after {last}: {shown}"))?;
        last = last.max(edge);
    }
    Ok(())
}

/// Scenario 18, "after hold_hard the lag policy applies: C is not stalled by B's window alone" (a
/// window pinned is a hold, LV5); what b has not taken is kept for it, and it is Paired again when
/// it has.
fn upload_with_a_backup_that_does_not_read() -> Outcome {
    let setup = Setup { is_available: true, ..Setup::default() };
    let mut rig = Rig::new(&setup.both("net.ipv4.tcp_rmem", "4096 16384 16384"))?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let (all, port) = (pattern(200_000), conn.port);
    while (conn.sent as usize) < all.len() {
        let at = conn.sent as usize;
        let room = rig.edge(&conn).saturating_sub(conn.sent) as usize;
        for piece in all[at..all.len().min(at + room)].chunks(1400) {
            rig.say(&mut conn, ACK, piece)?;
        }
        let sent = conn.sent;
        rig.until("room for more", |rig| {
            while let Ok(1..) = streams[0].read(&mut [0; 65_536]) {}
            let is_done = rig.acked(port) == sent && sent as usize == all.len();
            (is_done || rig.edge(&conn) > sent).then_some(())
        })?;
    }
    let held = rig.events.iter().any(|e| matches!(e, Event::HoldHard { waiting_for: B, .. }));
    ensure(held, || "b's window was not in the way".into())?;
    ensure(rig.state() == Some(FlowState::Lagging), || format!("{:?}", rig.state()))?;
    let got = rig.read(&mut streams[1], all.len())?;
    ensure(got == all, || "b read something else".into())?;
    rig.until("b to catch up", |rig| (rig.state() == Some(FlowState::Paired)).then_some(()))
}

/// A client's keep-alive gets one answer.
fn keep_alive(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"x")?;
    for stream in &mut streams {
        rig.read(stream, 1)?;
    }
    rig.until("the ack", |rig| (rig.acked(FIRST_PORT) == 1).then_some(()))?;
    rig.settle()?;
    let before = rig.shown(conn.port).count();
    let at = conn.sent.wrapping_sub(1);
    rig.say_at(&mut conn, at, ACK, b"", &[])?;
    rig.settle()?;
    let answers = rig.shown(conn.port).count() - before;
    ensure(answers == 1, || format!("{answers} answers"))?;
    ensure(rig.acked(conn.port) == 1, || "not the current ack".into())
}

/// The older kind (RFC 1122 4.2.3.6: "one garbage octet"): "copy to both, forward one answer"; the
/// octet reaches no program.
fn keep_alive_with_a_byte(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"x")?;
    for stream in &mut streams {
        rig.read(stream, 1)?;
    }
    rig.until("the ack", |rig| (rig.acked(FIRST_PORT) == 1).then_some(()))?;
    rig.settle()?;
    let before = rig.shown(conn.port).count();
    rig.say_at(&mut conn, 0, ACK, b"?", &[])?;
    rig.settle()?;
    let answers: Vec<Seen> = rig.shown(conn.port).skip(before).cloned().collect();
    let is_right = |s: &Seen| s.is_bare() && conn.acked_by(s) == 1;
    ensure(answers.len() == 1 && answers.iter().all(is_right), || rig.last_seen())?;
    rig.say(&mut conn, ACK, b"y")?;
    for stream in &mut streams {
        let got = rig.read(stream, 1)?;
        ensure(got == b"y", || format!("{got:?}"))?;
    }
    Ok(())
}
