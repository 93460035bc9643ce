//! Resets, challenges and forgeries: what ends a connection, and what must not (RFC 5961).

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use shadowvm::engine::{Event, Input, Link, RejectReason};
use shadowvm::lab::world::{CLIENT_MAC, SERVER_MAC};
use shadowvm::wire::{Mac, rewrite};

use super::closing::answers;
use super::conn::{ACK, Conn, FIN, ISS, Offer, RST, SYN, Seen};
use super::rig::{A, B, Rig, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("inexact-reset-is-challenged", inexact_reset_is_challenged),
    ("reset-outside-the-window", reset_outside_the_window),
    ("reset-of-a-leg-with-a-hole", reset_of_a_leg_with_a_hole),
    ("reset-of-a-leg-with-a-hole-without-sack", reset_of_a_leg_with_a_hole_without_sack),
    ("reset-lost-to-one-leg", reset_lost_to_one_leg),
    ("ack-of-unsent-data", ack_of_unsent_data),
    ("client-misses-the-reset", client_misses_the_reset),
    ("forged-segments-on-the-wrong-link", forged_segments_on_the_wrong_link),
    ("forged-frame-with-the-clients-address", forged_frame_with_the_clients_address),
];

pub const TWINS: &[Twin] = &[
    ("exact-reset-closes-both", exact_reset_closes_both),
    ("syn-into-an-open-connection", syn_into_an_open_connection),
    ("reset-of-both-servers", reset_of_both_servers),
    ("reset-of-one-server", reset_of_one_server),
];

/// A server's program finds its connection reset.
fn await_reset(rig: &mut Rig, stream: &mut TcpStream) -> Outcome {
    let error = rig.until("the reset", |_| {
        stream.read(&mut [0; 4096]).err().filter(|e| e.kind() != ErrorKind::WouldBlock)
    })?;
    ensure(error.kind() == ErrorKind::ConnectionReset, || format!("{error}"))
}

/// A reset inside the window but not exact changes nothing; the servers' challenge comes back.
fn inexact_reset_is_challenged() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let before = rig.shown(conn.port).count();
    rig.say_at(&mut conn, 100, RST, b"", &[])?;
    rig.settle()?;
    let answers: Vec<_> = rig.shown(conn.port).skip(before).cloned().collect();
    ensure(answers.len() == 1, || format!("{} challenges", answers.len()))?;
    ensure(answers[0].seg.flags == ACK, || format!("{:?}", answers[0].seg.flags))?;
    respond(&mut streams, b"alive")?;
    rig.receive(&mut conn, 5)
}

/// One far outside of it is not even challenged (RFC 9293 3.10.7.4: "if the RST bit is set, drop
/// the segment and return"), and is no end.
fn reset_outside_the_window() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.settle()?;
    let (port, before) = (conn.port, rig.shown(conn.port).count());
    for at in [1 << 30, conn.sent.wrapping_sub(1 << 30)] {
        rig.say_at(&mut conn, at, RST, b"", &[])?;
    }
    rig.settle()?;
    ensure(rig.shown(port).count() == before, || rig.last_seen())?;
    answers(&mut rig, &mut conn, &mut streams)
}

/// An exact reset of the client closes both.
fn exact_reset_closes_both(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"some")?;
    rig.receive(&mut conn, 4)?;
    rig.say(&mut conn, RST, b"")?;
    for stream in &mut streams {
        await_reset(&mut rig, stream)?;
    }
    Ok(())
}

/// "RST from C exact: both legs closed, incl. leg with a hole": the client reset what it sent last,
/// of which b has only the part behind a hole.
fn reset_of_a_leg_with_a_hole() -> Outcome {
    reset_beyond_a_hole(Offer::FULL)
}

/// The same without SACK, where Linux takes nothing but the next byte that it expects: "if the leg
/// challenge-ACKs with x, resend at x".
fn reset_of_a_leg_with_a_hole_without_sack() -> Outcome {
    reset_beyond_a_hole(Offer::PLAIN)
}

fn reset_beyond_a_hole(offer: Offer) -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(offer)?;
    let base = ISS.wrapping_add(1);
    // Whatever fills the hole is lost as well.
    rig.lose = Box::new(move |leg, seg| {
        let at = seg.seq.wrapping_sub(base);
        leg == B && seg.payload_len > 0 && (100..200).contains(&at)
    });
    let all = pattern(300);
    for piece in all.chunks(100) {
        rig.say(&mut conn, ACK, piece)?;
    }
    let got = rig.read(&mut streams[0], 300)?;
    ensure(got == all, || "a read something else".into())?;
    let got = rig.read(&mut streams[1], 100)?;
    ensure(got == all[..100], || "b read something else".into())?;
    rig.say(&mut conn, RST, b"")?;
    for stream in &mut streams {
        await_reset(&mut rig, stream)?;
    }
    Ok(())
}

/// LV6: "a leg that is detached is actively reset so it cannot zombie": the client's reset did not
/// reach b, which is reset when it speaks.
fn reset_lost_to_one_leg() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.lose = Box::new(|leg, seg| leg == B && seg.flags.has(RST));
    rig.say(&mut conn, RST, b"")?;
    rig.lose = Box::new(|_, _| false);
    await_reset(&mut rig, &mut streams[0])?;
    let shown = rig.shown(conn.port).count();
    streams[1].write_all(b"anybody there?").map_err(|e| e.to_string())?;
    await_reset(&mut rig, &mut streams[1])?;
    ensure(rig.shown(conn.port).count() == shown, || "b's words were shown".into())
}

/// A SYN for an open connection is challenged (RFC 5961 4) and changes nothing.
fn syn_into_an_open_connection(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    let before = rig.shown(conn.port).count();
    let stray = rig.syn_again(&conn)?;
    rig.settle()?;
    let shown: Vec<_> = rig.shown(conn.port).skip(before).cloned().collect();
    let is_challenge = |s: &Seen| s.seg.flags == ACK && s.seg.ack == ISS.wrapping_add(101);
    ensure(shown.len() == 1 && shown.iter().all(is_challenge), || format!("{shown:#?}"))?;
    conn.tsval = stray.tsval;
    answers(&mut rig, &mut conn, &mut streams)
}

/// RFC 5961 5, E1: a segment that acknowledges what was never sent is not taken, data included;
/// with the right ack the same bytes are.
fn ack_of_unsent_data() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    let said = conn.received.len();
    conn.received.push(0);
    let wrong = rig.frame_at(&mut conn, 100, ACK, b"wrong", &[]);
    conn.received.truncate(said);
    rig.client_says(wrong)?;
    rig.settle()?;
    for (leg, stream) in [A, B].into_iter().zip(&mut streams) {
        let got = stream.read(&mut [0; 10]).map_err(|e| e.kind());
        ensure(got == Err(ErrorKind::WouldBlock), || format!("{leg:?} read {got:?}"))?;
        let own = rig.said_by(leg, conn.port).next().ok_or("silence")?.seg.seq.wrapping_add(1);
        let mut acks = rig.sent_to(leg, conn.port).filter(|s| s.has(ACK));
        let most = acks.all(|s| s.seg.ack.wrapping_sub(own) as usize <= said);
        ensure(most, || format!("{leg:?} was acknowledged what it did not say"))?;
    }
    rig.say(&mut conn, ACK, b"right")?;
    for stream in &mut streams {
        let got = rig.read(stream, 5)?;
        ensure(got == b"right", || format!("{got:?}"))?;
    }
    Ok(())
}

/// Both programs leave with the request unread, which resets (E2b): "both -> release", "emit with
/// seq = exactly REL", once.
fn reset_of_both_servers(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (conn, reset) = both_leave(&mut rig, 0)?;
    ensure(conn.offset(&reset) == 1000, || format!("{reset}"))?;
    rig.settle()?;
    let count = rig.shown(conn.port).filter(|s| s.has(RST)).count();
    ensure(count == 1, || format!("{count} resets"))
}

/// A thousand bytes are shown, of which the client has the first `have`, or all if 0; both programs
/// leave with the request unread.
fn both_leave(rig: &mut Rig, have: usize) -> Result<(Conn, Seen), String> {
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, &pattern(1000))?;
    rig.until("the response", |rig| {
        rig.take(&mut conn);
        (conn.received.len() == 1000).then_some(())
    })?;
    if have > 0 {
        conn.received.truncate(have);
    }
    rig.say(&mut conn, ACK, b"unread")?;
    let port = conn.port;
    rig.until("the ack", |rig| (rig.acked(port) == 6).then_some(()))?;
    drop(streams);
    let reset = rig.until("the reset", |rig| rig.shown(port).find(|s| s.has(RST)).cloned())?;
    Ok((conn, reset))
}

/// "If C answers with an ACK of x < REL, again at x; the flow keeps its constants 5 s for that":
/// the client missed the end of the response, and takes no reset but at the byte that it expects.
fn client_misses_the_reset() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, first) = both_leave(&mut rig, 400)?;
    ensure(conn.offset(&first) == 1000, || format!("{first}"))?;
    let (port, mark) = (conn.port, rig.shown(conn.port).count());
    rig.say(&mut conn, ACK, b"")?;
    let again = rig.shown(port).nth(mark).cloned().ok_or("no second reset")?;
    let is_exact = again.seg.flags == RST && conn.offset(&again) == 400;
    ensure(is_exact, || format!("{again}"))
}

/// "RST never reaches C: only the primary -> per-flow failover to B" (scenario 9): a's program
/// leaves with the request unread, b answers it.
fn reset_of_one_server(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, [a, mut b]) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"GET")?;
    rig.read(&mut b, 3)?;
    let port = conn.port;
    rig.until("the ack", |rig| (rig.acked(port) == 3).then_some(()))?;
    drop(a);
    rig.until("a's reset", |rig| rig.said_by(A, port).find(|s| s.has(RST)).map(drop))?;
    b.write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 3000)?;
    ensure(conn.received == pattern(3000), || "the response arrived changed".into())?;
    rig.say(&mut conn, ACK, b"more")?;
    let got = rig.read(&mut b, 4)?;
    ensure(got == b"more", || format!("{got:?}"))?;
    let told = rig.events.iter().any(|e| matches!(e, Event::EarlyEnd { loser: A, .. }));
    ensure(told, || "no early_end".into())?;
    let is_end = |s: &Seen| s.has(FIN) || s.has(RST);
    ensure(!rig.shown(port).any(is_end), || "the end of a was shown".into())
}

/// "Strict link roles; spoofed RST/SYN/data, wrong link: no state change on any leg" (scenario 35):
/// exact segments in the client's name from the backup's link, and what the client was shown last
/// from its own link.
fn forged_segments_on_the_wrong_link() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.settle()?;
    let port = conn.port;
    let counts = |rig: &Rig| {
        let sent = [A, B].map(|leg| rig.sent_to(leg, port).count());
        (rig.shown(port).count(), sent)
    };
    let before = counts(&rig);
    let (at, mark) = (conn.sent, rig.events.len());
    let forged = [RST, RST.with(ACK), SYN, FIN, ACK];
    for flags in forged {
        let data: &[u8] = if flags == ACK { b"forged" } else { b"" };
        let mut frame = rig.frame_at(&mut conn.clone(), at, flags, data, &[]);
        rewrite::set_macs(&mut frame, Mac(CLIENT_MAC), Mac(SERVER_MAC));
        rig.input(Input::Frame(Link::Server(B), frame))?;
    }
    let own = rig.shown(port).last().cloned().ok_or("nothing was shown")?;
    rig.client_says(own.frame)?;
    let mut of_b = rig.refused(mark, Link::Server(B));
    of_b.retain(|reason| *reason == RejectReason::WrongLink);
    ensure(of_b.len() == forged.len(), || format!("{} of {} refused", of_b.len(), forged.len()))?;
    let of_client = rig.refused(mark, Link::Client);
    ensure(of_client == [RejectReason::WrongLink], || format!("{of_client:?}"))?;
    rig.settle()?;
    ensure(counts(&rig) == before, || rig.last_seen())?;
    answers(&mut rig, &mut conn, &mut streams)
}

/// The same with the client's Ethernet address as well: one frame of a server, the backup or the
/// primary, is refused, is shown to nobody, and does not cut the client off.
fn forged_frame_with_the_clients_address() -> Outcome {
    for leg in [B, A] {
        let mut rig = Rig::equal(false)?;
        let (mut conn, mut streams) = rig.open(Offer::FULL)?;
        answers(&mut rig, &mut conn, &mut streams)?;
        let at = conn.sent;
        let frame = rig.frame_at(&mut conn.clone(), at, RST, b"", &[]);
        let mark = rig.seen.len();
        rig.input(Input::Frame(Link::Server(leg), frame))?;
        let told = rig.seen[mark..].iter().any(|s| s.link == Link::Client);
        ensure(!told, || format!("the client's link heard {leg:?} in the client's name"))?;
        answers(&mut rig, &mut conn, &mut streams).map_err(|e| format!("after {leg:?}: {e}"))?;
    }
    Ok(())
}
