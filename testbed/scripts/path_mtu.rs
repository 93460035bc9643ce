//! Packets that were too big for the client's path, and other ICMP errors about the service's.

use std::io::Write;
use std::net::{IpAddr, TcpStream};

use shadowvm::engine::{Link, RejectReason};
use shadowvm::lab::world::{CLIENT_MAC, SERVER_MAC, SERVICE};
use shadowvm::wire::checksum::Sum;
use shadowvm::wire::parse::parse;
use shadowvm::wire::{Frame, IcmpKind, L2, L3, Mac, Packet, Vlans, build};

use super::conn::{ACK, Conn, Offer, Seen};
use super::rig::{A, B, ROUTER, Rig, Setup, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("frag-needed-of-68-bytes", frag_needed_of_68_bytes),
    ("port-unreachable-is-no-end", port_unreachable_is_no_end),
];

pub const TWINS: &[Twin] =
    &[("packet-too-big", packet_too_big), ("forged-packet-too-big", forged_packet_too_big)];

/// A router on the client's path tells the service that `original` was too big.
fn too_big(original: &Frame, mtu: u16, is_v6: bool) -> Result<Frame, String> {
    let l2 = L2 { dst: Mac(SERVER_MAC), src: Mac(CLIENT_MAC), vlans: Vlans::default() };
    let (src, dst): (IpAddr, IpAddr) = match is_v6 {
        true => (ROUTER.1.into(), SERVICE.1.into()),
        false => (ROUTER.0.into(), SERVICE.0.into()),
    };
    let l3 = L3 { src, dst, ttl: 60, tos: 0, dont_fragment: false, id: 7, flow_label: 0 };
    build::icmp_too_big(&l2, &l3, mtu, original).ok_or_else(|| "nothing to quote".into())
}

/// Both programs have said 12,000 bytes, which were shown and are not acknowledged.
fn in_flight(is_v6: bool) -> Result<(Rig, Conn, [TcpStream; 2]), String> {
    let mut rig = Rig::new(&Setup::over(is_v6).patient())?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    respond(&mut streams, &pattern(12_000))?;
    rig.until("the response", |rig| {
        rig.take(&mut conn);
        (conn.received.len() == 12_000).then_some(())
    })?;
    // As far as anybody knows, nothing of it has arrived.
    conn.received.clear();
    Ok((rig, conn, streams))
}

/// Bytes of payload in one packet of this segment.
fn piece(s: &Seen) -> usize {
    s.seg.gso_size.map_or(s.data.len(), usize::from)
}

/// "Lower mss_c, and deliver a translated copy to **both** legs (inner seq - delta; else Linux
/// rejects it)": both kernels repeat what was lost in smaller pieces at once (their timers stand at
/// 20 s), and nothing larger is shown any more, by the survivor of a failover neither.
fn packet_too_big(is_v6: bool) -> Outcome {
    let (mtu, headers) = if is_v6 { (1280, 60) } else { (1000, 40) };
    let (mut rig, mut conn, mut streams) = in_flight(is_v6)?;
    let port = conn.port;
    let first = rig.shown(port).find(|s| !s.data.is_empty()).cloned().ok_or("no data")?;
    let (mark, marks) = (rig.shown(port).count(), [A, B].map(|leg| rig.said_by(leg, port).count()));
    rig.client_says(too_big(&first.frame, mtu, is_v6)?)?;
    for leg in [A, B] {
        let own = rig.said_by(leg, port).next().ok_or("silence")?.seg.seq.wrapping_add(1);
        let told = rig.icmp.iter().find(|(link, _)| *link == Link::Server(leg));
        let Some(Packet::Icmp(icmp)) = told.and_then(|(_, frame)| parse(frame).ok()) else {
            return Err(format!("{leg:?} was not told"));
        };
        let IcmpKind::TooBig { quote: Some(quote), .. } = icmp.kind else {
            return Err(format!("{leg:?} was told {:?}", icmp.kind));
        };
        ensure(quote.seq == own, || format!("{leg:?} was quoted {}, not {own}", quote.seq))?;
    }
    for (leg, mark) in [A, B].into_iter().zip(marks) {
        rig.until("both kernels to cut smaller pieces", |rig| {
            let is_small = |s: &&Seen| piece(s) > 0 && piece(s) <= usize::from(mtu) - headers;
            rig.said_by(leg, port).skip(mark).find(is_small).map(drop)
        })?;
    }
    rig.receive(&mut conn, 12_000)?;
    rig.fail(A)?;
    streams[1].write_all(&pattern(20_000)[12_000..]).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 20_000)?;
    ensure(conn.received == pattern(20_000), || "the response arrived changed".into())?;
    let most = rig.shown(port).skip(mark).map(piece).max();
    ensure(most.is_some_and(|n| n <= usize::from(mtu) - headers), || format!("{most:?} bytes"))
}

/// "Validate the quoted header against the flow (addresses, ports, seq in [c_una, REL])": one about
/// bytes that were never sent, one about bytes that the client has, one of another port: no server
/// hears of them, and segments stay as large as they were.
fn forged_packet_too_big(is_v6: bool) -> Outcome {
    let (mtu, _) = if is_v6 { (1280, 60) } else { (1000, 40) };
    let (mut rig, mut conn, mut streams) = in_flight(is_v6)?;
    let port = conn.port;
    let shown: Vec<Seen> = rig.shown(port).filter(|s| !s.data.is_empty()).cloned().collect();
    rig.receive_all_shown(&mut conn)?;
    let old = shown[0].clone();
    let mut beyond = old.clone();
    let l4_at = usize::from(old.seg.l4_at);
    let ahead = conn.viss.wrapping_add(1 + 1_000_000);
    beyond.frame.put(l4_at + 4, &ahead.to_be_bytes());
    let mut other = shown[shown.len() - 1].clone();
    other.frame.put(l4_at + 2, &(port + 77).to_be_bytes());
    let mark = rig.events.len();
    for forged in [&old, &beyond] {
        rig.client_says(too_big(&forged.frame, mtu, is_v6)?)?;
    }
    let refused = rig.refused(mark, Link::Client);
    ensure(refused == [RejectReason::IcmpQuote; 2], || format!("{refused:?}"))?;
    ensure(rig.icmp.is_empty(), || "a server was told".into())?;
    // About a connection that is not protected here: its server would know it, and knows better.
    rig.client_says(too_big(&other.frame, mtu, is_v6)?)?;
    let told: Vec<Link> = rig.icmp.iter().map(|(link, _)| *link).collect();
    ensure(told == [Link::Server(A)], || format!("{told:?} were told"))?;
    rig.icmp.clear();
    let (before, mark) = (conn.received.len(), rig.shown(port).count());
    respond(&mut streams, &pattern(12_000))?;
    rig.receive(&mut conn, before + 12_000)?;
    let most = rig.shown(port).skip(mark).map(piece).max();
    ensure(most == shown.iter().map(piece).max(), || format!("{most:?} bytes at most"))
}

/// "Cap PMTU (>= 552 v4 / 1280 v6)": a path of 68 bytes is not believed.
fn frag_needed_of_68_bytes() -> Outcome {
    let (mut rig, mut conn, mut streams) = in_flight(false)?;
    let port = conn.port;
    let first = rig.shown(port).find(|s| !s.data.is_empty()).cloned().ok_or("no data")?;
    let mark = rig.shown(port).count();
    rig.client_says(too_big(&first.frame, 68, false)?)?;
    rig.receive(&mut conn, 12_000)?;
    respond(&mut streams, &pattern(20_000)[12_000..])?;
    rig.receive(&mut conn, 20_000)?;
    ensure(conn.received == pattern(20_000), || "the response arrived changed".into())?;
    let most = rig.shown(port).skip(mark).map(piece).max();
    ensure(most == Some(512 - 12), || format!("{most:?} bytes at most"))
}

/// "Hard errors on established TCP are soft (RFC 5927)": each server hears of a port unreachable in
/// its own numbers; nobody's connection ends.
fn port_unreachable_is_no_end() -> Outcome {
    let (mut rig, mut conn, mut streams) = in_flight(false)?;
    let port = conn.port;
    let first = rig.shown(port).find(|s| !s.data.is_empty()).cloned().ok_or("no data")?;
    let Ok(Packet::Icmp(icmp)) = parse(&too_big(&first.frame, 0, false)?) else {
        return Err("not an ICMP message".into());
    };
    let bytes = too_big(&first.frame, 0, false)?.to_vec();
    let (head, message) = bytes.split_at(usize::from(icmp.l4_at));
    let mut message = message.to_vec();
    message[..4].copy_from_slice(&[3, 3, 0, 0]);
    let check = Sum::new().bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let unreachable = [head, &message].concat();
    rig.client_says(Frame::from_wire(unreachable.into(), shadowvm::wire::Offload::default()))?;
    for leg in [A, B] {
        let own = rig.said_by(leg, port).next().ok_or("silence")?.seg.seq.wrapping_add(1);
        let told = rig.icmp.iter().find(|(link, _)| *link == Link::Server(leg));
        let kind = told.and_then(|(_, frame)| parse(frame).ok());
        let seq = match kind {
            Some(Packet::Icmp(icmp)) => match icmp.kind {
                IcmpKind::Error { kind: 3, code: 3, quote: Some(quote) } => Some(quote.seq),
                _ => None,
            },
            _ => None,
        };
        ensure(seq == Some(own), || format!("{leg:?} was told of {seq:?}"))?;
    }
    rig.settle()?;
    rig.receive_all_shown(&mut conn)?;
    rig.say(&mut conn, ACK, b"still here")?;
    for stream in &mut streams {
        let got = rig.read(stream, 10)?;
        ensure(got == b"still here", || format!("{got:?}"))?;
    }
    respond(&mut streams, &pattern(3000))?;
    rig.receive(&mut conn, 15_000)
}
