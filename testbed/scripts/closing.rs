//! How connections end in good order, and what comes after.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use shadowvm::engine::{Event, FlowState};

use super::conn::{ACK, Conn, FIN, Offer, RST, Seen};
use super::handshake::stamps_grow;
use super::rig::{A, B, Rig, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("same-port-after-a-reset", same_port_after_a_reset),
    ("same-port-when-one-server-never-saw-the-end", same_port_when_one_never_saw_the_end),
    ("late-segment-of-the-old-connection", late_segment_of_the_old_connection),
    ("end-of-the-client-lost-to-one-leg", end_of_the_client_lost_to_one_leg),
    ("end-of-the-servers-lost-to-the-client", end_of_the_servers_lost_to_the_client),
    ("failover-of-a-half-closed-connection", failover_of_a_half_closed_connection),
    ("failover-in-time-wait", failover_in_time_wait),
];

pub const TWINS: &[Twin] = &[
    ("early-fin", early_fin),
    ("close-in-order", close_in_order),
    ("half-close-of-the-client", half_close_of_the_client),
    ("simultaneous-close", simultaneous_close),
    ("same-port-after-a-close", same_port_after_a_close),
];

fn close(streams: &[TcpStream; 2]) -> Outcome {
    for stream in streams {
        stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Both programs read the client's end.
fn read_end(rig: &mut Rig, streams: &mut [TcpStream]) -> Outcome {
    for stream in streams {
        rig.until("the client's FIN", |_| matches!(stream.read(&mut [0]), Ok(0)).then_some(()))?;
    }
    Ok(())
}

fn fin_shown(rig: &mut Rig, conn: &Conn) -> Result<Seen, String> {
    let port = conn.port;
    rig.until("the FIN", |rig| rig.shown(port).find(|s| s.has(FIN)).cloned())
}

fn await_time_wait(rig: &mut Rig) -> Outcome {
    rig.until("both ends to be acknowledged", |rig| {
        (rig.state() == Some(FlowState::TimeWait)).then_some(())
    })
}

/// One server's program ends early: no FIN is shown, and the other goes on.
fn early_fin(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"GET")?;
    for stream in &mut streams {
        rig.read(stream, 3)?;
    }
    let all = pattern(3000);
    respond(&mut streams, &all[..1000])?;
    rig.receive(&mut conn, 1000)?;
    streams[0].shutdown(Shutdown::Both).map_err(|e| e.to_string())?;
    rig.settle()?;
    streams[1].write_all(&all[1000..]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 3000)?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    let is_end = |s: &Seen| s.has(FIN) || s.has(RST);
    ensure(!rig.shown(conn.port).any(is_end), || "the end of one server was shown".into())?;
    let told = rig.events.iter().any(|e| matches!(e, Event::EarlyEnd { loser: A, .. }));
    ensure(told, || "no early_end".into())
}

/// Both servers close: one FIN, at the end of the response, and not before the later one.
fn close_in_order(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"bye")?;
    rig.receive(&mut conn, 3)?;
    streams[0].shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    rig.settle()?;
    ensure(!rig.shown(conn.port).any(|s| s.has(FIN)), || "a's FIN was shown".into())?;
    streams[1].shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    let fin = fin_shown(&mut rig, &conn)?;
    let at = conn.offset(&fin) as usize + fin.data.len();
    ensure(at == 3, || format!("FIN at {at}"))?;
    conn.received.push(0);
    rig.say(&mut conn, FIN, b"")?;
    read_end(&mut rig, &mut streams)
}

/// "Half-close: per-direction marks; no coupling": the client has ended, both programs have read
/// its end, and say 100,000 bytes before they end themselves.
fn half_close_of_the_client(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, FIN, b"all of my request")?;
    for stream in &mut streams {
        let got = rig.read(stream, 17)?;
        ensure(got == b"all of my request", || format!("{got:?}"))?;
    }
    read_end(&mut rig, &mut streams)?;
    let all = pattern(100_000);
    rig.receive_from(&mut conn, &mut streams, &all)?;
    close(&streams)?;
    let fin = fin_shown(&mut rig, &conn)?;
    let at = conn.offset(&fin) as usize + fin.data.len();
    ensure(at == all.len(), || format!("FIN at {at}"))?;
    ensure(conn.acked_by(&fin) == 18, || "the client's FIN is not acknowledged".into())?;
    conn.received.push(0);
    rig.say(&mut conn, ACK, b"")?;
    await_time_wait(&mut rig)
}

/// "Simultaneous close": the two ends cross on the way; each side acknowledges the other's
/// (RFC 9293 3.6 case 3), the client is shown one FIN, and the flow is over.
fn simultaneous_close(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"bye")?;
    rig.receive(&mut conn, 3)?;
    rig.settle()?;
    // The kernels have said their FINs when the client's is on its way; nobody has heard another.
    close(&streams)?;
    rig.say(&mut conn, FIN, b"")?;
    let fin = fin_shown(&mut rig, &conn)?;
    ensure(conn.offset(&fin) == 3, || format!("{fin}"))?;
    let crossed =
        [A, B].map(|leg| rig.said_by(leg, conn.port).any(|s| s.has(FIN) && conn.acked_by(s) == 0));
    ensure(crossed == [true; 2], || "the ends did not cross".into())?;
    conn.received.push(0);
    rig.say(&mut conn, ACK, b"")?;
    await_time_wait(&mut rig)?;
    let port = conn.port;
    rig.until("the ack of the client's FIN", |rig| {
        (conn.acked_by(rig.shown(port).last()?) == 1).then_some(())
    })?;
    ensure(rig.shown(port).filter(|s| s.has(FIN)).count() == 1, || "two FINs".into())?;
    read_end(&mut rig, &mut streams)
}

/// A FIN counts as a byte of the gateway's copy (1.6, "G->B lost"): b misses it, and is sent it
/// again without a word of the client.
fn end_of_the_client_lost_to_one_leg() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"GET")?;
    for stream in &mut streams {
        rig.read(stream, 3)?;
    }
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        leg == B && seg.flags.has(FIN) && !std::mem::replace(&mut lost, true)
    });
    rig.say(&mut conn, FIN, b"")?;
    read_end(&mut rig, &mut streams)?;
    respond(&mut streams, b"bye")?;
    close(&streams)?;
    rig.receive(&mut conn, 3)?;
    fin_shown(&mut rig, &conn)?;
    conn.received.push(0);
    rig.say(&mut conn, ACK, b"")?;
    await_time_wait(&mut rig)
}

/// "Retransmitted data: forward from whichever leg sends it first", a FIN as well: the client
/// missed it, and is shown the same again, until it acknowledges it.
fn end_of_the_servers_lost_to_the_client() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"bye")?;
    rig.receive(&mut conn, 3)?;
    close(&streams)?;
    let port = conn.port;
    let fins = rig.until("the FIN again", |rig| {
        let fins: Vec<Seen> = rig.shown(port).filter(|s| s.has(FIN)).cloned().collect();
        (fins.len() > 1).then_some(fins)
    })?;
    let at = |s: &Seen| conn.offset(s) as usize + s.data.len();
    ensure(fins.iter().all(|s| at(s) == 3), || rig.last_seen())?;
    conn.received.push(0);
    rig.say(&mut conn, FIN, b"")?;
    read_end(&mut rig, &mut streams)?;
    await_time_wait(&mut rig)
}

/// A failover after the servers' end was shown and before the client's: the survivor takes the rest
/// of the request and acknowledges the client's end.
fn failover_of_a_half_closed_connection() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"done")?;
    close(&streams)?;
    rig.receive(&mut conn, 4)?;
    fin_shown(&mut rig, &conn)?;
    conn.received.push(0);
    rig.say(&mut conn, ACK, b"first")?;
    for stream in &mut streams {
        rig.read(stream, 5)?;
    }
    rig.fail(A)?;
    let all = pattern(20_000);
    for piece in all.chunks(1400) {
        rig.say(&mut conn, ACK, piece)?;
    }
    let got = rig.read(&mut streams[1], all.len())?;
    ensure(got == all, || "the survivor read something else".into())?;
    rig.say(&mut conn, FIN, b"")?;
    read_end(&mut rig, &mut streams[1..])?;
    await_time_wait(&mut rig)?;
    let (port, end) = (conn.port, conn.sent);
    rig.until("the ack of the client's FIN", |rig| {
        (conn.acked_by(rig.shown(port).last()?) == end).then_some(())
    })?;
    let is_second = |s: &&Seen| s.has(FIN) || s.has(RST);
    ensure(rig.shown(port).filter(is_second).count() == 1, || "a second end".into())
}

/// "Kept until both FINs ACKed on both legs, then mini-TIME_WAIT so retransmitted FINs are still
/// translated": the client missed the last ack and repeats its FIN, of the survivor; it is
/// acknowledged, not reset.
fn failover_in_time_wait() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"bye")?;
    close(&streams)?;
    rig.receive(&mut conn, 3)?;
    fin_shown(&mut rig, &conn)?;
    conn.received.push(0);
    rig.say(&mut conn, FIN, b"")?;
    read_end(&mut rig, &mut streams)?;
    await_time_wait(&mut rig)?;
    rig.fail(A)?;
    let (port, mark) = (conn.port, rig.shown(conn.port).count());
    rig.say_at(&mut conn, 0, FIN, b"", &[])?;
    let answer = rig.until("an answer", |rig| rig.shown(port).nth(mark).cloned())?;
    let is_ack = answer.is_bare() && conn.acked_by(&answer) == 1 && conn.offset(&answer) == 4;
    ensure(is_ack, || format!("{answer}"))
}

/// A response on a connection, whole and from these two servers.
pub fn answers(rig: &mut Rig, conn: &mut Conn, streams: &mut [TcpStream; 2]) -> Outcome {
    let all = pattern(5000);
    rig.say(conn, ACK, &pattern(100))?;
    for stream in &mut *streams {
        let got = rig.read(stream, 100)?;
        ensure(got == pattern(100), || "the request arrived changed".into())?;
    }
    respond(streams, &all)?;
    let before = conn.received.len();
    rig.receive(conn, before + all.len())?;
    ensure(conn.received[before..] == all, || "the response arrived changed".into())
}

/// The servers' kernels remember the connection, the gateway does, and the port is used again.
fn same_port_after_a_close(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    close(&streams)?;
    fin_shown(&mut rig, &conn)?;
    conn.received.push(0);
    rig.say(&mut conn, FIN, b"")?;
    read_end(&mut rig, &mut streams)?;
    await_time_wait(&mut rig)?;
    let mut again = rig.syn_again(&conn)?;
    let mut streams = rig.accept(&mut again)?;
    ensure(again.viss != conn.viss, || "the old number again".into())?;
    answers(&mut rig, &mut again, &mut streams)?;
    ensure(rig.state() == Some(FlowState::Paired), || "not paired".into())?;
    stamps_grow(&rig, &again)
}

/// The same after a reset of the client.
fn same_port_after_a_reset() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.say(&mut conn, RST, b"")?;
    let mut again = rig.syn_again(&conn)?;
    let mut streams = rig.accept(&mut again)?;
    answers(&mut rig, &mut again, &mut streams)?;
    ensure(rig.state() == Some(FlowState::Paired), || "not paired".into())
}

/// "If one leg answers a SYN with a challenge ACK (it never saw the close), G resets that leg
/// exactly and re-sends the stored SYN to it; C's SYN-ACK waits within synack_hold."
fn same_port_when_one_never_saw_the_end() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.lose = Box::new(|leg, seg| leg == B && seg.flags.has(RST));
    rig.say(&mut conn, RST, b"")?;
    rig.lose = Box::new(|_, _| false);
    let mark = rig.said_by(B, conn.port).count();
    let mut again = rig.syn_again(&conn)?;
    let mut renewed = rig.accept(&mut again)?;
    let challenge = rig.said_by(B, conn.port).nth(mark).cloned().ok_or("b is silent")?;
    ensure(challenge.is_bare(), || format!("b did not challenge: {challenge}"))?;
    let reset = rig.sent_to(B, conn.port).rev().find(|s| s.has(RST)).map(|s| s.seg.seq);
    ensure(reset == Some(challenge.seg.ack), || format!("b was reset at {reset:?}"))?;
    let is_reset = |e: std::io::Error| e.kind() == std::io::ErrorKind::ConnectionReset;
    let old = &mut streams[1];
    rig.until("b's old connection to end", |_| {
        old.read(&mut [0]).err().is_some_and(is_reset).then_some(())
    })?;
    answers(&mut rig, &mut again, &mut renewed)?;
    ensure(rig.state() == Some(FlowState::Paired), || "not paired".into())
}

/// "Old-generation frames are dropped by I12": a segment of the connection before reaches neither
/// program and does not disturb the new one.
fn late_segment_of_the_old_connection() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    let late = rig.frame_at(&mut conn, 100, ACK, b"from the past", &[]);
    rig.say(&mut conn, RST, b"")?;
    let mut again = rig.syn_again(&conn)?;
    let mut streams = rig.accept(&mut again)?;
    rig.client_says(late)?;
    rig.settle()?;
    for stream in &mut streams {
        let got = stream.read(&mut [0; 100]).map_err(|e| e.kind());
        ensure(got == Err(std::io::ErrorKind::WouldBlock), || format!("read {got:?}"))?;
    }
    answers(&mut rig, &mut again, &mut streams)?;
    ensure(rig.state() == Some(FlowState::Paired), || "not paired".into())?;
    let reset = rig.shown(conn.port).any(|s| s.has(RST));
    ensure(!reset, || "reset".into())
}
