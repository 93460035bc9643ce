//! The handshake: what both servers agreed to, and who is answered when one of them is late, deaf,
//! closed or careful.

use std::io::Write;

use shadowvm::engine::{Event, FlowState};
use shadowvm::lab::{RouteMetrics, ServerOptions};
use shadowvm::wire::{TcpFlags, Tsval};

use super::conn::{ACK, Conn, FIRST_PORT, Offer, RST, SYN, Seen};
use super::rig::{A, B, Rig, Setup, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("server-b-without-options", server_b_without_options),
    ("differing-mss", differing_mss),
    ("kernels-with-nothing-in-common", kernels_with_nothing_in_common),
    ("syn-lost-to-one-leg", syn_lost_to_one_leg),
    ("one-answer-within-the-hold", one_answer_within_the_hold),
    ("refused-by-both", refused_by_both),
    ("refused-by-the-primary", refused_by_the_primary),
    ("server-repeats-its-syn-ack", server_repeats_its_syn_ack),
    ("third-ack-lost-to-one-leg", third_ack_lost_to_one_leg),
];

pub const TWINS: &[Twin] =
    &[("repeated-syn", repeated_syn), ("syn-cookies-of-one-server", syn_cookies_of_one_server)];

/// What clients may offer, each through a failover.
pub fn table() -> Vec<(String, Box<dyn Fn() -> Outcome>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Outcome>)> = Vec::new();
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
    all
}

/// TSval never goes backwards on what the client was shown.
pub fn stamps_grow(rig: &Rig, conn: &Conn) -> Outcome {
    let mut last = None;
    for seen in rig.shown(conn.port) {
        let Some((val, _)) = seen.seg.options.timestamps else { continue };
        if let Some(last) = last
            && Tsval(last).is_after(val)
        {
            return Err(format!("TSval {} after {last}", val.0));
        }
        last = Some(val.0);
    }
    ensure(last.is_some() == conn.has_stamps, || "timestamps agreed, but not sent".into())
}

/// Handshake with these options, a response, the primary's death, more response from the other:
/// the SYN-ACK agrees to what was offered, TSval never decreases (I8), nothing exceeds the MSS.
fn options_survive_a_failover(offer: Offer, is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(offer)?;
    let synack = rig.shown(conn.port).find(|s| s.has(SYN)).cloned();
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
    rig.fail(A)?;
    streams[1].write_all(&all[5000..]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 9000)?;
    ensure(conn.received == all, || "the response arrived changed".into())?;
    rig.say(&mut conn, ACK, b"more")?;
    let got = rig.read(&mut streams[1], 4)?;
    ensure(got == b"more", || "the survivor read something else".into())?;
    let most = usize::from(offer.mss);
    let cut = |s: &Seen| s.seg.gso_size.map_or(s.data.len(), usize::from) <= most;
    ensure(rig.shown(conn.port).all(cut), || format!("a segment of more than {most} bytes"))?;
    stamps_grow(&rig, &conn)
}

/// What only one server agrees to, the client is not offered; and it works.
fn server_b_without_options() -> Outcome {
    let off = ["net.ipv4.tcp_sack", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_window_scaling"];
    let sysctls = [Vec::new(), off.map(|key| (key, "0")).to_vec()];
    let mut rig = Rig::new(&Setup { sysctls, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let synack = rig.shown(conn.port).find(|s| s.has(SYN)).cloned();
    let options = synack.ok_or("no SYN-ACK")?.seg.options;
    ensure(!options.sack_permitted && options.timestamps.is_none(), || format!("{options:?}"))?;
    let all = pattern(60_000);
    respond(&mut streams, &all)?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// One server takes and makes segments of 536 bytes: the client is told the lower of the two.
fn differing_mss() -> Outcome {
    let mut servers = <[ServerOptions; 2]>::default();
    servers[1].metrics = RouteMetrics { advmss: Some(536), ..RouteMetrics::default() };
    let mut rig = Rig::new(&Setup { servers, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let synack = rig.shown(conn.port).find(|s| s.has(SYN)).cloned();
    let mss = synack.ok_or("no SYN-ACK")?.seg.options.mss;
    ensure(mss == Some(536), || format!("the client was told {mss:?}"))?;
    let all = pattern(40_000);
    respond(&mut streams, &all)?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// "SACK/TS in V only if both", "one side without WS -> no WS in V": one kernel has only what the
/// other one lacks. Both kernels go on in options of their own, and the survivor alone as well; the
/// next SYN offers nothing that one of them would decline ("pinned option profile").
fn kernels_with_nothing_in_common() -> Outcome {
    let sysctls = [
        vec![("net.ipv4.tcp_window_scaling", "0")],
        vec![("net.ipv4.tcp_sack", "0"), ("net.ipv4.tcp_timestamps", "0")],
    ];
    let mut rig = Rig::new(&Setup { sysctls, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let first = rig.shown(conn.port).next().cloned().ok_or("no SYN-ACK")?;
    let is_bare = |s: &Seen| {
        let options = s.seg.options;
        options.window_scale.is_none() && !options.sack_permitted && options.timestamps.is_none()
    };
    ensure(is_bare(&first), || format!("agreed to {:?}", first.seg.options))?;
    let all = pattern(50_000);
    respond(&mut streams, &all[..30_000])?;
    rig.receive(&mut conn, 30_000)?;
    rig.say(&mut conn, ACK, &pattern(900))?;
    for stream in &mut streams {
        let got = rig.read(stream, 900)?;
        ensure(got == pattern(900), || "the request arrived changed".into())?;
    }
    let other = rig.open(Offer::FULL)?.0;
    for leg in [A, B] {
        let syn = rig.sent_to(leg, other.port).find(|s| s.has(SYN)).ok_or("no SYN")?;
        ensure(is_bare(syn), || format!("{leg:?} was offered {:?} again", syn.seg.options))?;
    }
    rig.fail(A)?;
    streams[1].write_all(&all[30_000..]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, all.len())?;
    ensure(conn.received == all, || "the response arrived changed".into())
}

/// The gateway sends the SYN again itself; the SYN-ACK is shown when both have answered.
fn syn_lost_to_one_leg() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        let is_ours = leg == B && seg.flags.has(TcpFlags::SYN) && seg.src_port == FIRST_PORT;
        is_ours && !std::mem::replace(&mut lost, true)
    });
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let is_syn = |s: &&Seen| s.has(SYN);
    ensure(rig.sent_to(B, conn.port).filter(is_syn).count() >= 1, || "no SYN again".into())?;
    ensure(rig.shown(conn.port).filter(is_syn).count() == 1, || "two SYN-ACKs".into())?;
    respond(&mut streams, b"both")?;
    rig.receive(&mut conn, 4)?;
    ensure(rig.state() == Some(FlowState::Paired), || "not paired".into())
}

/// "If only one answered at synack_hold (100 ms) the flow starts with it", and the other, when it
/// speaks at last, is reset exactly, so that it cannot linger (LV6).
fn one_answer_within_the_hold() -> Outcome {
    let mut rig = Rig::equal(false)?;
    rig.passage = Box::new(|leg, seg, frame| {
        let is_ours = leg == B && seg.dst_port == FIRST_PORT;
        (!(is_ours && seg.flags.has(SYN))).then_some(frame)
    });
    let mut conn = rig.syn(Offer::FULL)?;
    let asked = rig.sent_to(A, conn.port).next().ok_or("no SYN")?.at;
    let synack = rig.shake(&mut conn)?;
    let waited = synack.at.since(asked).as_millis();
    ensure(waited >= 100, || format!("b was waited for {waited} ms only"))?;
    ensure(rig.state() == Some(FlowState::Solo), || "not solo".into())?;
    let mut stream = rig.stream(A)?;
    stream.write_all(b"alone").map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 5)?;
    rig.passage = Box::new(|_, _, frame| Some(frame));
    // b's kernel says its SYN-ACK again after a second.
    let port = conn.port;
    let reset = rig.until("a reset of b", |rig| {
        rig.sent_to(B, port).find(|s| s.has(RST)).map(|s| s.seg.seq)
    })?;
    ensure(reset == conn.iss.wrapping_add(1), || format!("reset at {reset}"))?;
    ensure(rig.shown(conn.port).filter(|s| s.has(SYN)).count() == 1, || "two SYN-ACKs".into())
}

/// "RST to C for a SYN only if both refused": one reset, with the number that a closed port says
/// (RFC 9293 3.10.7.1), and not before the second refusal.
fn refused_by_both() -> Outcome {
    let mut rig = Rig::equal(false)?;
    rig.listeners = [None, None];
    let conn = rig.syn(Offer::FULL)?;
    let port = conn.port;
    let reset = rig.until("the refusal", |rig| rig.shown(port).find(|s| s.has(RST)).cloned())?;
    let is_exact = reset.seg.seq == 0 && reset.seg.ack == conn.iss.wrapping_add(1);
    ensure(is_exact && reset.seg.flags == RST.with(ACK), || format!("{reset}"))?;
    for leg in [A, B] {
        let refusal = rig.said_by(leg, port).find(|s| s.has(RST));
        let is_before = refusal.is_some_and(|s| s.at <= reset.at);
        ensure(is_before, || format!("shown before {leg:?} refused"))?;
    }
    rig.settle()?;
    ensure(rig.shown(port).count() == 1, || format!("more than one answer:\n{}", rig.last_seen()))
}

/// "P RST + B SYN-ACK = strong evidence about P (listener dead) -> promote B for this flow": the
/// client is accepted, by the backup, and hears nothing of the refusal.
fn refused_by_the_primary() -> Outcome {
    let mut rig = Rig::equal(false)?;
    rig.listeners[0] = None;
    let mut conn = rig.syn(Offer::FULL)?;
    let synack = rig.shake(&mut conn)?;
    let own = rig.said_by(B, conn.port).find(|s| s.has(SYN)).map(|s| s.seg.seq);
    ensure(own == Some(synack.seg.seq), || "not b's number".into())?;
    let mut stream = rig.stream(B)?;
    rig.say(&mut conn, ACK, b"GET")?;
    let got = rig.read(&mut stream, 3)?;
    ensure(got == b"GET", || format!("b read {got:?}"))?;
    stream.write_all(&pattern(5000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 5000)?;
    ensure(conn.received == pattern(5000), || "the response arrived changed".into())?;
    ensure(!rig.shown(conn.port).any(|s| s.has(RST)), || "the refusal was shown".into())?;
    let is_promoted = |rig: &mut Rig| {
        rig.events.iter().any(|e| matches!(e, Event::Promoted { primary: B, .. })).then_some(())
    };
    rig.until("the service to move", is_promoted)
}

/// "A SYN-ACK repeated by a leg after V is open is answered by G with that leg's third ACK, never
/// forwarded": the client's one third ack was lost to b.
fn server_repeats_its_syn_ack() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let mut conn = rig.syn(Offer::FULL)?;
    rig.await_syn_ack(&mut conn)?;
    let mut lost = false;
    rig.lose = Box::new(move |leg, seg| {
        let is_ours = leg == B && seg.flags == ACK && seg.src_port == FIRST_PORT;
        is_ours && !std::mem::replace(&mut lost, true)
    });
    rig.say(&mut conn, ACK, b"")?;
    // Nobody says a word; b's kernel repeats its SYN-ACK after a second.
    let mut streams = [rig.stream(A)?, rig.stream(B)?];
    let said = rig.said_by(B, conn.port).filter(|s| s.has(SYN)).count();
    ensure(said >= 2, || "b accepted without a third ack".into())?;
    let shown = rig.shown(conn.port).filter(|s| s.has(SYN)).count();
    ensure(shown == 1, || format!("{shown} SYN-ACKs were shown"))?;
    respond(&mut streams, b"both")?;
    rig.receive(&mut conn, 4)
}

/// "If that ACK is lost, any later data+ACK still validates": b has heard nothing but the SYN, and
/// is sent the client's bytes, with the ack, by the gateway.
fn third_ack_lost_to_one_leg() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let mut conn = rig.syn(Offer::FULL)?;
    rig.await_syn_ack(&mut conn)?;
    rig.lose = Box::new(|leg, seg| leg == B && seg.src_port == FIRST_PORT);
    rig.say(&mut conn, ACK, b"")?;
    rig.say(&mut conn, ACK, b"GET")?;
    rig.lose = Box::new(|_, _| false);
    let mut streams = [rig.stream(A)?, rig.stream(B)?];
    for stream in &mut streams {
        let got = rig.read(stream, 3)?;
        ensure(got == b"GET", || format!("{got:?}"))?;
    }
    let resent = |e: &Event| matches!(e, Event::RequestResent { to: B, bytes: 3, .. });
    ensure(rig.events.iter().any(resent), || "not from the gateway's copy".into())?;
    respond(&mut streams, b"both")?;
    rig.receive(&mut conn, 4)
}

/// "SYN retransmission -> always answer with the byte-identical V SYN-ACK."
fn repeated_syn(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let mut conn = rig.syn(Offer::FULL)?;
    let first = rig.await_syn_ack(&mut conn)?;
    rig.repeat_syn(&conn)?;
    rig.repeat_syn(&conn)?;
    let shown: Vec<Seen> = rig.shown(conn.port).cloned().collect();
    ensure(shown.len() == 3, || format!("{} answers to three SYNs", shown.len()))?;
    let is_same = |s: &Seen| s.frame.to_vec() == first.frame.to_vec();
    ensure(shown.iter().all(is_same), || format!("{first}\n{}\n{}", shown[1], shown[2]))?;
    let mut streams = rig.accept(&mut conn)?;
    respond(&mut streams, b"both")?;
    rig.receive(&mut conn, 4)
}

/// "The third ACK must carry exact ack and TSecr (options ride in TS low bits)": b keeps no state
/// before it, and learns scale, SACK and timestamps from what it is sent.
fn syn_cookies_of_one_server(is_v6: bool) -> Outcome {
    let sysctls = [Vec::new(), vec![("net.ipv4.tcp_syncookies", "2")]];
    let mut rig = Rig::new(&Setup { is_v6, sysctls, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let said = rig.said_by(B, conn.port).find(|s| s.has(SYN)).cloned().ok_or("no SYN-ACK")?;
    let third = rig.sent_to(B, conn.port).find(|s| !s.has(SYN)).ok_or("no third ack")?;
    ensure(third.seg.ack == said.seg.seq.wrapping_add(1), || format!("{third}"))?;
    let own = said.seg.options.timestamps.map(|(val, _)| val);
    let echo = third.seg.options.timestamps.map(|(_, echo)| echo);
    ensure(own.is_some() && own == echo, || format!("b said {own:?}, and was echoed {echo:?}"))?;
    let all = pattern(300_000);
    rig.receive_from(&mut conn, &mut streams, &all[..100_000])?;
    rig.fail(A)?;
    rig.say(&mut conn, ACK, b"more")?;
    let got = rig.read(&mut streams[1], 4)?;
    ensure(got == b"more", || format!("{got:?}"))?;
    rig.receive_from(&mut conn, &mut streams[1..], &all)
}
