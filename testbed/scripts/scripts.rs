//! The scripts: one rule of the contract each, with Linux's TCP as both servers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};

use shadowvm::engine::{Event, FlowState, Input, LegId, Link, Signal};
use shadowvm::lab::{RouteMetrics, ServerOptions};
use shadowvm::wire::TcpFlags;

use super::made;
use super::rig::{ACK, Conn, FIN, FIRST_PORT, ISS, Offer, RST, Rig};

/// A script by itself.
type Plain = fn() -> Result<(), String>;
type Script = Box<dyn Fn() -> Result<(), String>>;

const A: LegId = LegId::A;
const B: LegId = LegId::B;

/// All of them, by name.
pub fn all() -> Vec<(String, Script)> {
    let mut all: Vec<(String, Script)> = Vec::new();
    for bits in 0..16u8 {
        let offer = Offer {
            mss: if bits & 1 == 0 { 1460 } else { 536 },
            scale: (bits & 2 != 0).then_some(7),
            has_sack: bits & 4 != 0,
            has_stamps: bits & 8 != 0,
        };
        let name = format!(
            "options-{}-{}-{}-{}",
            offer.mss,
            if offer.scale.is_some() { "scale" } else { "noscale" },
            if offer.has_sack { "sack" } else { "nosack" },
            if offer.has_stamps { "stamps" } else { "nostamps" },
        );
        all.push((name, Box::new(move || options_survive_a_failover(offer, false))));
    }
    for (name, offer) in [("ipv6", Offer::FULL), ("ipv6-without-options", Offer::BARE)] {
        all.push((name.into(), Box::new(move || options_survive_a_failover(offer, true))));
    }
    let more: [(&str, Plain); 21] = [
        ("server-b-without-options", server_b_without_options),
        ("differing-mss", differing_mss),
        ("syn-lost-to-one-leg", syn_lost_to_one_leg),
        ("request-lost-to-one-leg", request_lost_to_one_leg),
        ("sack-intersection", sack_intersection),
        ("d-sack-to-a-leg", d_sack_to_a_leg),
        ("zero-window-of-one-leg", zero_window_of_one_leg),
        ("keep-alive", keep_alive),
        ("early-fin", early_fin),
        ("close-in-order", close_in_order),
        ("inexact-reset-is-challenged", inexact_reset_is_challenged),
        ("exact-reset-closes-both", exact_reset_closes_both),
        ("same-port-after-a-close", same_port_after_a_close),
        ("same-port-after-a-reset", same_port_after_a_reset),
        ("syn-into-an-open-connection", syn_into_an_open_connection),
        ("urgent-response", urgent_response),
        ("urgent-request", urgent_request),
        ("restart-with-a-late-clock", restart_with_a_late_clock),
        ("real-client-two-segmentations", made::two_segmentations),
        ("real-client-failover", made::a_failover),
        ("real-client-one-end-of-two", made::one_end_of_two),
    ];
    all.extend(more.map(|(name, script)| (name.to_owned(), Box::new(script) as Script)));
    all
}

fn equal() -> Result<Rig, String> {
    Rig::new(<[ServerOptions; 2]>::default(), &[])
}

pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn respond(streams: &mut [TcpStream; 2], data: &[u8]) -> Result<(), String> {
    for stream in streams {
        stream.write_all(data).map_err(|e| e.to_string())?;
    }
    Ok(())
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// TSval never goes backwards on what the client was shown.
fn stamps_grow(rig: &Rig, conn: &Conn) -> Result<(), String> {
    let mut last = None;
    for seen in rig.shown(conn.port) {
        let Some((val, _)) = seen.seg.options.timestamps else { continue };
        if let Some(last) = last
            && shadowvm::wire::Tsval(last).is_after(val)
        {
            return Err(format!("TSval {} after {last}", val.0));
        }
        last = Some(val.0);
    }
    ensure(last.is_some() == conn.has_stamps, || "timestamps agreed, but not sent".into())
}

/// Handshake with these options, a response, the primary's death, more response from the other.
fn options_survive_a_failover(offer: Offer, is_v6: bool) -> Result<(), String> {
    let mut rig = Rig::over(is_v6, <[ServerOptions; 2]>::default(), &[])?;
    let (mut conn, mut streams) = rig.open(offer)?;
    let synack = rig.shown(conn.port).find(|s| s.seg.flags.has(TcpFlags::SYN)).cloned();
    let options = synack.ok_or("no SYN-ACK")?.seg.options;
    ensure(options.window_scale.is_some() == offer.scale.is_some(), || format!("{options:?}"))?;
    ensure(options.sack_permitted == offer.has_sack, || format!("{options:?}"))?;
    ensure(options.timestamps.is_some() == offer.has_stamps, || format!("{options:?}"))?;
    rig.say(&mut conn, ACK, &pattern(100))?;
    for stream in &mut streams {
        let got = rig.read(stream, 100)?;
        ensure(got == pattern(100), || "the request arrived changed".into())?;
    }
    let all = pattern(9000);
    respond(&mut streams, &all[..5000])?;
    rig.receive(&mut conn, 5000)?;
    rig.input(Input::Signal(Link::Server(A), Signal::CarrierDown))?;
    streams[1].write_all(&all[5000..]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 9000)?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    rig.say(&mut conn, ACK, b"more")?;
    let got = rig.read(&mut streams[1], 4)?;
    ensure(got == b"more", || "the survivor read something else".into())?;
    let most = usize::from(offer.mss);
    let cut = |s: &super::rig::Seen| s.seg.gso_size.map_or(s.data.len(), usize::from) <= most;
    ensure(rig.shown(conn.port).all(cut), || format!("a segment of more than {most} bytes"))?;
    let promoted = rig.events.iter().any(|e| matches!(e, Event::Promoted { primary: B, .. }));
    ensure(promoted, || "no promotion".into())?;
    stamps_grow(&rig, &conn)
}

/// What only one server agrees to, the client is not offered; and it works.
fn server_b_without_options() -> Result<(), String> {
    let off = ["net.ipv4.tcp_sack", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_window_scaling"];
    let mut rig = Rig::new(<[ServerOptions; 2]>::default(), &off.map(|key| (key, "0")))?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let synack = rig.shown(conn.port).find(|s| s.seg.flags.has(TcpFlags::SYN)).cloned();
    let options = synack.ok_or("no SYN-ACK")?.seg.options;
    ensure(!options.sack_permitted && options.timestamps.is_none(), || format!("{options:?}"))?;
    let all = pattern(60_000);
    respond(&mut streams, &all)?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// One server takes and makes segments of 536 bytes: the client is told the lower of the two.
fn differing_mss() -> Result<(), String> {
    let mut servers = <[ServerOptions; 2]>::default();
    servers[1].metrics = RouteMetrics { advmss: Some(536), ..RouteMetrics::default() };
    let mut rig = Rig::new(servers, &[])?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let synack = rig.shown(conn.port).find(|s| s.seg.flags.has(TcpFlags::SYN)).cloned();
    let mss = synack.ok_or("no SYN-ACK")?.seg.options.mss;
    ensure(mss == Some(536), || format!("the client was told {mss:?}"))?;
    let all = pattern(40_000);
    respond(&mut streams, &all)?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// The gateway sends the SYN again itself; the SYN-ACK is shown when both have answered.
fn syn_lost_to_one_leg() -> Result<(), String> {
    let mut rig = equal()?;
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        let is_ours = leg == B && seg.flags.has(TcpFlags::SYN) && seg.src_port == FIRST_PORT;
        is_ours && !std::mem::replace(&mut lost, true)
    });
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let is_syn = |s: &&super::rig::Seen| s.seg.flags.has(TcpFlags::SYN);
    ensure(rig.sent_to(B, conn.port).filter(is_syn).count() >= 1, || "no SYN again".into())?;
    ensure(rig.shown(conn.port).filter(is_syn).count() == 1, || "two SYN-ACKs".into())?;
    respond(&mut streams, b"both")?;
    rig.receive(&mut conn, 4)?;
    ensure(rig.engine.flows(1)[0].state == FlowState::Paired, || "not paired".into())
}

/// Request bytes lost to one server come from the gateway's copy, not from the client.
fn request_lost_to_one_leg() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        leg == B && seg.payload_len == 500 && !std::mem::replace(&mut lost, true)
    });
    rig.say(&mut conn, ACK, &pattern(500))?;
    rig.pass(Duration::from_millis(4))?;
    ensure(rig.acked(conn.port) == 0, || "acknowledged what b has not got".into())?;
    let got = rig.read(&mut streams[1], 500)?;
    ensure(got == pattern(500), || "b read something else".into())?;
    rig.until("the ack", |rig| (rig.acked(conn.port) == 500).then_some(()))
}

/// A block is shown only for what both servers have.
fn sack_intersection() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let base = ISS.wrapping_add(1);
    // Bytes 100..200 never leave the client at first; 200..300 is lost to b, again and again.
    rig.lose = Box::new(move |leg, seg| leg == B && seg.seq == base.wrapping_add(200));
    rig.say_at(&mut conn, 0, ACK, &[1; 100], &[])?;
    rig.say_at(&mut conn, 200, ACK, &[3; 100], &[])?;
    rig.say_at(&mut conn, 300, ACK, &[4; 100], &[])?;
    rig.pass(Duration::from_millis(3))?;
    let blocks: Vec<(u32, u32)> = rig
        .shown(conn.port)
        .flat_map(|s| s.seg.options.sack.as_slice().to_vec())
        .map(|(l, r)| (l.wrapping_sub(base), r.wrapping_sub(base)))
        .collect();
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
fn d_sack_to_a_leg() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let all = pattern(4000);
    streams[1].write_all(&all).map_err(|e| e.to_string())?;
    // b's tail-loss probe comes after some milliseconds; a's silence would be a finding after 100.
    rig.pass(Duration::from_millis(70))?;
    ensure(rig.shown(conn.port).all(|s| s.data.is_empty()), || "b's bytes were shown".into())?;
    streams[0].write_all(&all).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, all.len())?;
    rig.pass(Duration::from_millis(20))?;
    let is_duplicate = |s: &super::rig::Seen| {
        let ack = s.seg.ack;
        let below = |r: u32| ack.wrapping_sub(r) as i32 >= 0;
        s.seg.options.sack.as_slice().first().is_some_and(|(_, r)| below(*r))
    };
    ensure(rig.sent_to(B, conn.port).any(is_duplicate), || "b was sent no D-SACK".into())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// b's program does not read: the client is never granted more than b, and learns when it opens.
fn zero_window_of_one_leg() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let (mut sent, mut read) = (0u32, 0usize);
    let edge = |rig: &Rig, conn: &Conn| -> Option<u32> {
        let last = rig.shown(conn.port).last()?;
        let options = rig.shown(conn.port).next()?.seg.options;
        let is_syn = last.seg.flags.has(TcpFlags::SYN);
        let shift = if is_syn { 0 } else { options.window_scale? };
        let window = u32::from(last.seg.window) << shift;
        Some(last.seg.ack.wrapping_sub(ISS.wrapping_add(1)).wrapping_add(window))
    };
    // a reads everything, b nothing, until the client may send no more.
    loop {
        let room = edge(&rig, &conn).unwrap_or(0).saturating_sub(sent);
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
    rig.until("the window to open", |rig| {
        (edge(rig, &conn).unwrap_or(0) > sent + 1400).then_some(())
    })
}

/// A client's keep-alive gets one answer.
fn keep_alive() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"x")?;
    for stream in &mut streams {
        rig.read(stream, 1)?;
    }
    rig.pass(Duration::from_millis(60))?;
    let before = rig.shown(conn.port).count();
    let at = conn.sent.wrapping_sub(1);
    rig.say_at(&mut conn, at, ACK, b"", &[])?;
    rig.pass(Duration::from_millis(20))?;
    let answers = rig.shown(conn.port).count() - before;
    ensure(answers == 1, || format!("{answers} answers"))?;
    ensure(rig.acked(conn.port) == 1, || "not the current ack".into())
}

/// One server's program ends early: no FIN is shown, and the other goes on.
fn early_fin() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"GET")?;
    for stream in &mut streams {
        rig.read(stream, 3)?;
    }
    let all = pattern(3000);
    respond(&mut streams, &all[..1000])?;
    rig.receive(&mut conn, 1000)?;
    streams[0].shutdown(Shutdown::Both).map_err(|e| e.to_string())?;
    rig.pass(Duration::from_millis(20))?;
    streams[1].write_all(&all[1000..]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 3000)?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    let is_end = |s: &super::rig::Seen| s.seg.flags.has(TcpFlags::FIN) || s.seg.flags.has(RST);
    ensure(!rig.shown(conn.port).any(is_end), || "the end of one server was shown".into())?;
    let told = rig.events.iter().any(|e| matches!(e, Event::EarlyEnd { loser: A, .. }));
    ensure(told, || "no early_end".into())
}

/// Both servers close: one FIN, at the end of the response, and not before the later one.
fn close_in_order() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"bye")?;
    rig.receive(&mut conn, 3)?;
    streams[0].shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    rig.pass(Duration::from_millis(20))?;
    let has_fin = |s: &&super::rig::Seen| s.seg.flags.has(TcpFlags::FIN);
    ensure(rig.shown(conn.port).filter(has_fin).count() == 0, || "a's FIN was shown".into())?;
    streams[1].shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    let fin = rig.until("the FIN", |rig| rig.shown(conn.port).find(has_fin).cloned())?;
    let at = fin.seg.seq.wrapping_sub(conn.viss.wrapping_add(1)) as usize + fin.data.len();
    ensure(at == 3, || format!("FIN at {at}"))?;
    conn.received.push(0);
    rig.say(&mut conn, FIN, b"")?;
    for stream in &mut streams {
        rig.until("the client's FIN", |_| matches!(stream.read(&mut [0]), Ok(0)).then_some(()))?;
    }
    Ok(())
}

/// A reset inside the window but not exact changes nothing; the servers' challenge comes back.
fn inexact_reset_is_challenged() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let before = rig.shown(conn.port).count();
    rig.say_at(&mut conn, 100, RST, b"", &[])?;
    rig.pass(Duration::from_millis(20))?;
    let answers: Vec<_> = rig.shown(conn.port).skip(before).cloned().collect();
    ensure(answers.len() == 1, || format!("{} challenges", answers.len()))?;
    ensure(answers[0].seg.flags == ACK, || format!("{:?}", answers[0].seg.flags))?;
    respond(&mut streams, b"alive")?;
    rig.receive(&mut conn, 5)
}

/// An exact reset of the client closes both.
fn exact_reset_closes_both() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"some")?;
    rig.receive(&mut conn, 4)?;
    rig.say(&mut conn, RST, b"")?;
    for stream in &mut streams {
        let error = rig.until("the reset", |_| {
            stream.read(&mut [0]).map(drop).err().filter(|e| e.kind() != ErrorKind::WouldBlock)
        })?;
        let is_reset = error.kind() == ErrorKind::ConnectionReset;
        ensure(is_reset, || format!("{error}"))?;
    }
    Ok(())
}

/// A response on a connection, whole and from these two servers.
fn answers(rig: &mut Rig, conn: &mut Conn, streams: &mut [TcpStream; 2]) -> Result<(), String> {
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
fn same_port_after_a_close() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    for stream in &streams {
        stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    }
    let has_fin = |s: &super::rig::Seen| s.seg.flags.has(TcpFlags::FIN);
    rig.until("the FIN", |rig| rig.shown(conn.port).any(has_fin).then_some(()))?;
    conn.received.push(0);
    rig.say(&mut conn, FIN, b"")?;
    for stream in &mut streams {
        rig.until("the client's FIN", |_| matches!(stream.read(&mut [0]), Ok(0)).then_some(()))?;
    }
    let is_over = |rig: &Rig| rig.engine.flows(1)[0].state == FlowState::TimeWait;
    rig.until("both ends to be acknowledged", |rig| is_over(rig).then_some(()))?;
    let mut again = rig.syn_again(&conn)?;
    let mut streams = rig.accept(&mut again)?;
    ensure(again.viss != conn.viss, || "the old number again".into())?;
    answers(&mut rig, &mut again, &mut streams)?;
    ensure(rig.engine.flows(1)[0].state == FlowState::Paired, || "not paired".into())?;
    stamps_grow(&rig, &again)
}

/// The same after a reset of the client.
fn same_port_after_a_reset() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.say(&mut conn, RST, b"")?;
    let mut again = rig.syn_again(&conn)?;
    let mut streams = rig.accept(&mut again)?;
    answers(&mut rig, &mut again, &mut streams)?;
    ensure(rig.engine.flows(1)[0].state == FlowState::Paired, || "not paired".into())
}

/// A SYN for an open connection is challenged (RFC 5961 4) and changes nothing.
fn syn_into_an_open_connection() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    let before = rig.shown(conn.port).count();
    let stray = rig.syn_again(&conn)?;
    rig.pass(Duration::from_millis(30))?;
    let shown: Vec<_> = rig.shown(conn.port).skip(before).cloned().collect();
    let is_challenge =
        |s: &super::rig::Seen| s.seg.flags == ACK && s.seg.ack == ISS.wrapping_add(101);
    ensure(shown.len() == 1 && shown.iter().all(is_challenge), || format!("{shown:#?}"))?;
    conn.tsval = stray.tsval;
    answers(&mut rig, &mut conn, &mut streams)
}

/// Out-of-band data of the servers: the client's pointer points behind the urgent byte.
fn urgent_response() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, b"before")?;
    rig.receive(&mut conn, 6)?;
    for stream in &streams {
        send(stream.as_raw_fd(), b"urgent!", MsgFlags::MSG_OOB).map_err(|e| e.to_string())?;
    }
    rig.receive(&mut conn, 13)?;
    ensure(conn.received == b"beforeurgent!", || "the response arrived changed".into())?;
    let pointed: Vec<u32> = rig
        .shown(conn.port)
        .filter(|s| s.seg.flags.has(TcpFlags::URG) && !s.data.is_empty())
        .map(|s| s.seg.seq.wrapping_add(s.seg.urgent.into()).wrapping_sub(conn.viss + 1))
        .collect();
    // RFC 6093 3.1: as sent, the pointer is that of the byte behind the urgent one.
    ensure(!pointed.is_empty() && pointed.iter().all(|&p| p == 13), || format!("{pointed:?}"))
}

/// Out-of-band data of the client: both servers' programs can tell which byte it is.
fn urgent_request() -> Result<(), String> {
    let mut rig = equal()?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, b"before")?;
    conn.urgent = 7;
    rig.say(&mut conn, ACK.with(TcpFlags::URG), b"urgent!")?;
    conn.urgent = 0;
    for stream in &mut streams {
        let got = rig.read(stream, 12)?;
        ensure(got == b"beforeurgent", || format!("{got:?}"))?;
        let mut byte = [0];
        let taken = recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB);
        ensure(taken == Ok(1) && byte == *b"!", || format!("{taken:?} {byte:?}"))?;
    }
    respond(&mut streams, b"read")?;
    rig.receive(&mut conn, 4)
}

/// A client whose clock stands beyond 2^31, and a gateway that begins again in between: the
/// servers go on hearing that clock.
fn restart_with_a_late_clock() -> Result<(), String> {
    let mut rig = equal()?;
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
