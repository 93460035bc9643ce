//! Servers that say different things: what the client is shown of it, what a sync changes, and what
//! is no difference.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use shadowvm::engine::{
    Event, FlowState, Input, LegId, SoloReason, SyncReason, SyncScope, SyncStep,
};

use super::conn::{ACK, Conn, Offer, RST};
use super::desk::{Desk, Plan};
use super::rig::{A, B, Rig, Setup, ensure, pattern};
use super::{Outcome, Script};

pub const SCRIPTS: &[Script] = &[
    ("answers-that-differ", answers_that_differ),
    ("answers-that-differ-until-a-sync", answers_that_differ_until_a_sync),
    ("failover-to-a-server-that-differs", failover_to_a_server_that_differs),
    ("failover-in-the-middle-of-a-sync", failover_in_the_middle_of_a_sync),
    ("real-client-dates-that-differ", dates_that_differ),
    ("real-client-failover-inside-a-date", failover_inside_a_date),
];

const PRIMARYS: &[u8] = b"the same, then the primary's own end";
const BACKUPS: &[u8] = b"the same, then another end, and a longer one";
/// Bytes that both say.
const SAME: usize = 15;

/// Both programs have read a request, and answer it differently.
fn asked(rig: &mut Rig) -> Result<(Conn, [TcpStream; 2]), String> {
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"GET")?;
    for stream in &mut streams {
        rig.read(stream, 3)?;
    }
    for (stream, answer) in streams.iter_mut().zip([PRIMARYS, BACKUPS]) {
        stream.write_all(answer).map_err(|e| e.to_string())?;
    }
    Ok((conn, streams))
}

/// The bytes of the only flow differ, from where they do.
fn is_told(rig: &Rig) -> Outcome {
    let told = rig.events.iter().find_map(|e| match e {
        Event::Diverged { divergence, .. } => Some(divergence.at),
        _ => None,
    });
    let at = told.map(|at| at.since(shadowvm::wire::Offset::START));
    ensure(at == Some(SAME as u64), || format!("told of a difference at {at:?}"))
}

/// Scenario 5, "bytes differ at offset n: event, policy executed, never mixed output": without a
/// backend "detach + scrub B, release the primary's bytes".
fn answers_that_differ() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = asked(&mut rig)?;
    rig.receive(&mut conn, PRIMARYS.len())?;
    ensure(conn.received == PRIMARYS, || String::from_utf8_lossy(&conn.received).into())?;
    is_told(&rig)?;
    let port = conn.port;
    rig.until("b to be reset", |rig| rig.sent_to(B, port).find(|s| s.has(RST)).map(drop))?;
    let solo = rig.engine.flows(1).first().and_then(|f| f.solo);
    ensure(solo == Some(SoloReason::Diverged), || format!("{solo:?}"))?;
    streams[0].write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, PRIMARYS.len() + 3000)
}

/// Two servers that were made equal once, and have said what differs; the client has what is equal.
fn held(gap: Duration) -> Result<(Rig, Conn, [TcpStream; 2]), String> {
    let sync = Some((SyncScope::Content, gap));
    let mut rig = Rig::new(&Setup { sync, ..Setup::default() })?;
    let first = rig.until("the first sync", |rig| rig.syncs.first().cloned())?;
    ensure(first.reason == SyncReason::First, || format!("{first:?}"))?;
    rig.input(Input::SyncStep(first.id, SyncStep::TargetReady))?;
    let (mut conn, streams) = asked(&mut rig)?;
    rig.until("the difference", |rig| {
        rig.events.iter().any(|e| matches!(e, Event::Diverged { .. })).then_some(())
    })?;
    rig.settle()?;
    is_told(&rig)?;
    rig.take(&mut conn);
    ensure(conn.received == PRIMARYS[..SAME], || String::from_utf8_lossy(&conn.received).into())?;
    ensure(rig.state() == Some(FlowState::Diverged), || "not held".into())?;
    Ok((rig, conn, streams))
}

/// "Mismatch at offset o: hold from o on. After a successful Content sync no TCP position of any
/// flow changes: the diverged flow stays Solo on the source."
fn answers_that_differ_until_a_sync() -> Outcome {
    let (mut rig, mut conn, mut streams) = held(Duration::ZERO)?;
    let sync = rig.until("a sync", |rig| rig.syncs.get(1).cloned())?;
    ensure(matches!(sync.reason, SyncReason::Divergence(_)), || format!("{sync:?}"))?;
    ensure((sync.from, sync.to) == (A, B), || format!("{sync:?}"))?;
    rig.input(Input::SyncStep(sync.id, SyncStep::TargetReady))?;
    rig.receive(&mut conn, PRIMARYS.len())?;
    ensure(conn.received == PRIMARYS, || String::from_utf8_lossy(&conn.received).into())?;
    ensure(rig.state() == Some(FlowState::Solo), || "not solo".into())?;
    rig.say(&mut conn, ACK, b"more")?;
    let got = rig.read(&mut streams[0], 4)?;
    ensure(got == b"more", || format!("{got:?}"))?;
    streams[0].write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, PRIMARYS.len() + 3000)?;
    ensure(conn.received[PRIMARYS.len()..] == pattern(3000), || "another answer".into())
}

/// "A divergence is never visible across failover: C has not seen any byte after the first
/// mismatch, so B may continue with *its* version": no sync has touched it yet.
fn failover_to_a_server_that_differs() -> Outcome {
    let (mut rig, mut conn, mut streams) = held(Duration::from_secs(3600))?;
    ensure(rig.syncs.len() == 1, || "a sync is under way".into())?;
    rig.fail(A)?;
    rig.receive(&mut conn, BACKUPS.len())?;
    ensure(conn.received == BACKUPS, || String::from_utf8_lossy(&conn.received).into())?;
    rig.say(&mut conn, ACK, b"more")?;
    let got = rig.read(&mut streams[1], 4)?;
    ensure(got == b"more", || format!("{got:?}"))?;
    ensure(!rig.shown(conn.port).any(|s| s.has(RST)), || "reset".into())
}

/// The same while a Content sync is under way, which changes files and no TCP state: "a Diverged
/// flow is promotable as long as nothing at or beyond the mismatch was released". What the failed
/// primary said and nobody was shown is not released at its death.
fn failover_in_the_middle_of_a_sync() -> Outcome {
    let (mut rig, mut conn, _streams) = held(Duration::ZERO)?;
    rig.until("a sync", |rig| rig.syncs.get(1).map(drop))?;
    rig.fail(A)?;
    ensure(!rig.shown(conn.port).any(|s| s.has(RST)), || format!("\n{}", rig.last_seen()))?;
    rig.receive(&mut conn, BACKUPS.len())?;
    ensure(conn.received == BACKUPS, || String::from_utf8_lossy(&conn.received).into())
}

/// An answer of this second.
fn dated(second: u8) -> Vec<u8> {
    let date = format!("Mon, 01 Jan 2024 00:00:{second:02} GMT");
    format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 5\r\n\r\nhello").into_bytes()
}

/// Where the date begins, and a place inside it before the bytes that differ.
const DATE_AT: usize = 23;
const INSIDE: usize = DATE_AT + 9;

/// The client has asked; one server has said all of its answer, the other one a part of the date.
fn half_a_date(whole: LegId, answers: [&[u8]; 2]) -> Result<Desk, String> {
    let mut desk = Desk::open(&Plan::default())?;
    desk.write(b"GET / HTTP/1.1\r\nHost: service\r\n\r\n")?;
    let asked = 33;
    for leg in LegId::ALL {
        desk.heard_by(leg, asked, 0)?;
        let answer = answers[leg.index()];
        let answer = if leg == whole { answer } else { &answer[..INSIDE] };
        desk.say(leg, ACK, 0, asked as u32, answer)?;
    }
    let most = desk.shown.iter().map(|s| desk.offset(s).wrapping_add(s.data.len() as u32) as i32);
    let most = most.max();
    ensure(most == Some(DATE_AT as i32), || format!("shown up to {most:?}"))?;
    Ok(desk)
}

/// "Equal-length masks (`Date`): offsets stay identical, the primary's bytes are shown"; none
/// of the date before both have said it.
fn dates_that_differ() -> Outcome {
    let answers = [dated(7), dated(9)];
    for whole in LegId::ALL {
        let mut desk = half_a_date(whole, [&answers[0], &answers[1]])?;
        let late = whole.other();
        let rest = &answers[late.index()][INSIDE..];
        desk.say(late, ACK, INSIDE as u32, 33, rest)?;
        let read = desk.read(answers[0].len())?;
        ensure(read == answers[0], || String::from_utf8_lossy(&read).into())?;
        let is_hit = desk.events.iter().any(|e| matches!(e, Event::MaskHit { .. }));
        let is_diverged = desk.events.iter().any(|e| matches!(e, Event::Diverged { .. }));
        ensure(is_hit && !is_diverged, || "taken for a difference".into())?;
        for leg in LegId::ALL {
            desk.heard_by(leg, 33, answers[0].len() as u32)?;
        }
    }
    Ok(())
}

/// Scenario 40, "HTTP with differing Date (masked), failover inside responses: well-formed
/// response": the survivor's own date, whole, though the primary had said another one.
fn failover_inside_a_date() -> Outcome {
    let answers = [dated(7), dated(9)];
    let mut desk = half_a_date(A, [&answers[0], &answers[1]])?;
    desk.fail_a()?;
    desk.say(B, ACK, INSIDE as u32, 33, &answers[1][INSIDE..])?;
    let read = desk.read(answers[1].len())?;
    ensure(read == answers[1], || String::from_utf8_lossy(&read).into())
}
