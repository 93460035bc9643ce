//! What a SYN may carry beyond the options that the gateway translates.

use std::io::Write;

use shadowvm::engine::{Event, SoloReason};

use super::Outcome;
use super::conn::{ACK, Offer, SYN, Seen};
use super::raw::Parts;
use super::rig::{A, B, Rig, Setup, ensure, pattern, respond};

/// Options of a SYN that the gateway strips, padded to words.
const STRIPPED: [(&str, &[u8]); 6] = [
    ("fast-open-cookie-request", &[34, 2, 1, 1]),
    ("experimental-fast-open", &[254, 4, 0xf9, 0x89]),
    ("multipath", &[30, 4, 0x01, 0x81]),
    ("encryption-negotiation", &[69, 3, 0x41, 1]),
    ("accurate-ecn", &[174, 2, 1, 1]),
    ("unknown-option", &[200, 6, 1, 2, 3, 4, 1, 1]),
];

/// All scripts about SYNs.
pub fn table() -> Vec<(String, Box<dyn Fn() -> Outcome>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Outcome>)> = Vec::new();
    for (name, bytes) in STRIPPED {
        all.push((format!("syn-with-{name}"), Box::new(move || option_is_stripped(bytes))));
    }
    for (name, option) in [("md5", &MD5[..]), ("ao", &AO)] {
        let script = move || signature_passes_untouched(option);
        all.push((format!("syn-with-{name}-signature"), Box::new(script)));
    }
    all.push(("syn-with-data".into(), Box::new(|| syn_with_data(false))));
    all.push(("ipv6-syn-with-data".into(), Box::new(|| syn_with_data(true))));
    all.push(("syn-that-offers-ecn".into(), Box::new(syn_that_offers_ecn)));
    all
}

/// RFC 2385: kind 19, 16 bytes of digest.
const MD5: [u8; 20] = [19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1];
/// RFC 5925: kind 29, two key numbers, 12 bytes of code.
const AO: [u8; 16] = [29, 16, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// "Strip TFO (34 and 254/F989), MPTCP (30), ENO (69), AccECN (172/174), all unknown": neither
/// server hears of it (both would take a fast-open cookie request), the client is told nothing of
/// it, and it connects.
fn option_is_stripped(option: &[u8]) -> Outcome {
    let setup = Setup::default().both("net.ipv4.tcp_fastopen", "1027");
    let mut rig = Rig::new(&setup)?;
    let mut conn = rig.new_conn(Offer::FULL);
    let syn = rig.syn_frame(&conn);
    let syn = Parts::of(syn)?.with_options(option).frame();
    rig.client_says(syn)?;
    let mut streams = rig.accept(&mut conn)?;
    for leg in [A, B] {
        let heard = rig.sent_to(leg, conn.port).find(|s| s.has(SYN)).ok_or("no SYN")?;
        let options = heard.seg.options;
        let is_plain = !options.has_unknown && options.sack_permitted;
        ensure(is_plain && options.timestamps.is_some(), || format!("{leg:?}: {options:?}"))?;
        let said = rig.said_by(leg, conn.port).find(|s| s.has(SYN)).ok_or("no SYN-ACK")?;
        ensure(!said.seg.options.has_unknown, || format!("{leg:?} agreed to it"))?;
    }
    let shown = rig.shown(conn.port).next().ok_or("no SYN-ACK")?;
    ensure(!shown.seg.options.has_unknown, || "shown to the client".into())?;
    rig.say(&mut conn, ACK, b"GET")?;
    for stream in &mut streams {
        let got = rig.read(stream, 3)?;
        ensure(got == b"GET", || format!("{got:?}"))?;
    }
    respond(&mut streams, &pattern(3000))?;
    rig.receive(&mut conn, 3000)?;
    ensure(conn.received == pattern(3000), || "the response arrived changed".into())
}

/// "MD5 (19) / TCP-AO (29): cannot be stripped nor translated: pass the flow untouched to the
/// primary, mark unprotected:auth-option", byte for byte and for every segment of it.
fn signature_passes_untouched(option: &'static [u8]) -> Outcome {
    let mut rig = Rig::equal(false)?;
    let mut conn = rig.new_conn(Offer::FULL);
    let syn = rig.syn_frame(&conn);
    let syn = Parts::of(syn)?.with_options(option).frame();
    rig.client_says(syn.clone())?;
    let data = rig.frame_at(&mut conn, 0, ACK, b"signed", &[]);
    let data = Parts::of(data)?.with_options(option).frame();
    rig.client_says(data.clone())?;
    let to_a: Vec<Vec<u8>> = rig.sent_to(A, conn.port).map(|s| s.frame.to_vec()).collect();
    ensure(to_a == [syn.to_vec(), data.to_vec()], || rig.last_seen())?;
    ensure(rig.sent_to(B, conn.port).next().is_none(), || "sent to b as well".into())?;
    let reason = SoloReason::AuthOption;
    let is_told = |e: &Event| matches!(e, Event::Unprotected { reason: r, .. } if *r == reason);
    ensure(rig.events.iter().filter(|e| is_told(e)).count() == 1, || "not marked once".into())?;
    ensure(rig.engine.flows(1).is_empty(), || "kept as a flow".into())
}

/// "Drop SYN payload, C resends it": the SYN-ACK acknowledges the SYN alone, and each server reads
/// the bytes once.
fn syn_with_data(is_v6: bool) -> Outcome {
    let mut rig = Rig::new(&Setup::over(is_v6).both("net.ipv4.tcp_fastopen", "1539"))?;
    let mut conn = rig.new_conn(Offer::FULL);
    let syn = rig.syn_frame(&conn);
    let mut parts = Parts::of(syn)?;
    parts.tcp.extend_from_slice(b"early");
    rig.client_says(parts.with_flags(0).frame())?;
    let synack = rig.await_syn_ack(&mut conn)?;
    ensure(synack.seg.ack == conn.iss.wrapping_add(1), || format!("{synack}"))?;
    for leg in [A, B] {
        let mut syns = rig.sent_to(leg, conn.port).filter(|s| s.has(SYN));
        ensure(syns.all(|s| s.data.is_empty()), || format!("{leg:?} was sent the bytes"))?;
    }
    rig.say(&mut conn, ACK, b"early")?;
    rig.say(&mut conn, ACK, b"late")?;
    for leg in [A, B] {
        let mut stream = rig.stream(leg)?;
        let got = rig.read(&mut stream, 9)?;
        ensure(got == b"earlylate", || format!("{leg:?} read {got:?}"))?;
        stream.write_all(b"both").map_err(|e| e.to_string())?;
    }
    rig.receive(&mut conn, 4)
}

/// "ECN default v1: clear ECE/CWR on SYN": both servers would agree to it, and do not hear of it.
fn syn_that_offers_ecn() -> Outcome {
    const ECE_AND_CWR: u8 = 0xc0;
    let mut rig = Rig::new(&Setup::default().both("net.ipv4.tcp_ecn", "1"))?;
    let mut conn = rig.new_conn(Offer::FULL);
    let syn = rig.syn_frame(&conn);
    rig.client_says(Parts::of(syn)?.with_flags(ECE_AND_CWR).frame())?;
    let mut streams = rig.accept(&mut conn)?;
    let flags = |s: &Seen| s.seg.flags;
    for leg in [A, B] {
        let syn = rig.sent_to(leg, conn.port).next().map(flags);
        ensure(syn == Some(SYN), || format!("{leg:?} was sent {syn:?}"))?;
    }
    let shown = rig.shown(conn.port).next().map(flags);
    ensure(shown == Some(SYN.with(ACK)), || format!("shown {shown:?}"))?;
    respond(&mut streams, &pattern(3000))?;
    rig.receive(&mut conn, 3000)
}
