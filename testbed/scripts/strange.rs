//! Packets of unusual shape: pieces, extension headers, VLAN tags, padding, wrong sums.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use shadowvm::engine::{Event, Link, RejectReason};
use shadowvm::wire::{Frame, Malformed, Offload, Vlans};

use super::closing::answers;
use super::conn::{ACK, Conn, FIRST_PORT, Offer, Seen};
use super::raw::{self, Parts};
use super::rig::{A, B, Rig, Setup, ensure, pattern, respond};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("vlan", vlan),
    ("vlan-in-a-provider-vlan", vlan_in_a_provider_vlan),
    ("ipv6-hop-by-hop-options", hop_by_hop_options),
    ("ipv6-destination-options", destination_options),
    ("ipv6-atomic-fragment", atomic_fragment),
    ("ipv6-chain-of-headers", chain_of_headers),
    ("ipv6-too-many-headers", too_many_headers),
    ("ipv6-source-route", source_route),
    ("tiny-first-piece", tiny_first_piece),
    ("padding-is-no-data", padding_is_no_data),
    ("contradicting-flags", contradicting_flags),
    ("hops-left-are-the-servers", hops_left_are_the_servers),
];

pub const TWINS: &[Twin] = &[
    ("request-in-pieces", request_in_pieces),
    ("pieces-that-overlap", pieces_that_overlap),
    ("wrong-sum-of-the-client", wrong_sum_of_the_client),
    ("wrong-sum-of-a-server", wrong_sum_of_a_server),
];

/// The programs have read nothing.
fn nothing_read(streams: &mut [TcpStream; 2]) -> Outcome {
    for stream in streams {
        let got = stream.read(&mut [0; 100]).map_err(|e| e.kind());
        ensure(got == Err(ErrorKind::WouldBlock), || format!("read {got:?}"))?;
    }
    Ok(())
}

/// Both programs read this, and answer.
fn both_read(
    rig: &mut Rig,
    conn: &mut Conn,
    streams: &mut [TcpStream; 2],
    request: &[u8],
) -> Outcome {
    for stream in &mut *streams {
        let got = rig.read(stream, request.len())?;
        ensure(got == request, || "a server read something else".into())?;
    }
    respond(streams, b"read")?;
    let have = conn.received.len();
    rig.receive(conn, have + 4)
}

/// Gives the gateway frames of the client and returns why they were refused.
fn refusals(rig: &mut Rig, frames: Vec<Frame>) -> Result<Vec<RejectReason>, String> {
    let mark = rig.events.len();
    for frame in frames {
        rig.client_says(frame)?;
    }
    Ok(rig.refused(mark, Link::Client))
}

/// "Reassemble before classification (v4+v6); never let a fragment bypass compare": the last piece
/// comes first; both servers are sent the whole.
fn request_in_pieces(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let request = pattern(1300);
    let whole = rig.frame_at(&mut conn, 0, ACK, &request, &[]);
    let mut pieces = Parts::of(whole)?.pieces(600);
    ensure(pieces.len() >= 3, || format!("{} pieces", pieces.len()))?;
    pieces.reverse();
    conn.sent = 1300;
    let refused = refusals(&mut rig, pieces)?;
    ensure(refused.is_empty(), || format!("{refused:?}"))?;
    for leg in [A, B] {
        let last = rig.sent_to(leg, conn.port).last().map(|s| s.data.len());
        ensure(last == Some(1300), || format!("{leg:?} was sent {last:?} bytes"))?;
    }
    both_read(&mut rig, &mut conn, &mut streams, &request)
}

/// "Any overlap -> drop all (RFC 5722 also for v4)": two ways to cut one datagram, mixed; nobody
/// reads a byte of it, and the client's repetition is taken.
fn pieces_that_overlap(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let request = pattern(1300);
    let whole = rig.frame_at(&mut conn, 0, ACK, &request, &[]);
    let whole = Parts::of(whole)?;
    let (long, short) = (whole.pieces(600), whole.pieces(480));
    // The first two of the long ones, then those of the short ones that reach to the end.
    let mixed: Vec<Frame> = long[..2].iter().chain(&short[2..]).cloned().collect();
    let refused = refusals(&mut rig, mixed)?;
    let is_right = !refused.is_empty() && refused.iter().all(|r| *r == RejectReason::Fragment);
    ensure(is_right, || format!("{refused:?}"))?;
    rig.settle()?;
    nothing_read(&mut streams)?;
    for leg in [A, B] {
        let sent = rig.sent_to(leg, conn.port).map(|s| s.data.len()).sum::<usize>();
        ensure(sent == 0, || format!("{leg:?} was sent {sent} bytes"))?;
    }
    // Of another moment: another identification, and over IPv6 another sum of the pieces.
    let again = rig.frame_at(&mut conn, 0, ACK, &request, &[]);
    conn.sent = 1300;
    let refused = refusals(&mut rig, Parts::of(again)?.pieces(600))?;
    ensure(refused.is_empty(), || format!("{refused:?}"))?;
    both_read(&mut rig, &mut conn, &mut streams, &request)
}

/// "Tiny first fragment -> drop" (RFC 1858): one that hides the flags of the segment.
fn tiny_first_piece() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let whole = rig.frame_at(&mut conn, 0, ACK, b"hidden flags", &[]);
    let pieces = Parts::of(whole)?.pieces(28);
    let refused = refusals(&mut rig, pieces)?;
    let is_fragment = |r: &&RejectReason| {
        matches!(r, RejectReason::Malformed(Malformed::Fragment) | RejectReason::Fragment)
    };
    let tiny = refused.iter().filter(is_fragment).count();
    ensure(tiny >= 3 && tiny == refused.len(), || format!("{refused:?}"))?;
    rig.settle()?;
    nothing_read(&mut streams)?;
    answers(&mut rig, &mut conn, &mut streams)
}

/// The whole life of a connection behind these tags: each frame to the client and the servers has
/// them, priority and all, through a failover.
fn tagged(vlans: Vlans) -> Outcome {
    let mut rig = Rig::equal(false)?;
    rig.vlans = vlans;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    rig.fail(A)?;
    streams[1].write_all(&pattern(20_000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 25_000)?;
    ensure(conn.received[5000..] == pattern(20_000), || "the response arrived changed".into())?;
    rig.say(&mut conn, ACK, b"more")?;
    rig.read(&mut streams[1], 4)?;
    let is_ours = |s: &&Seen| [s.seg.src_port, s.seg.dst_port].contains(&FIRST_PORT);
    let other = rig.seen.iter().filter(is_ours).find(|s| s.seg.l2.vlans != vlans);
    ensure(other.is_none(), || format!("{:?}", other.map(|s| s.seg.l2)))
}

/// "VLAN: preserve PCP."
fn vlan() -> Outcome {
    tagged(Vlans { outer: Some((0x8100, 0xa064)), inner: None })
}

/// "VLAN: key = (outer, inner vid); 802.1ad."
fn vlan_in_a_provider_vlan() -> Outcome {
    tagged(Vlans { outer: Some((0x88a8, 0x6007)), inner: Some((0x8100, 0x2064)) })
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// A header of options that holds nothing but padding (RFC 8200 4.2).
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
/// Neither an offset nor more to come (RFC 6946).
const ATOMIC: [u8; 8] = [0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78];

/// Requests behind these headers: "IPv6: walk HBH/Routing/Dest/Fragment/AH". Both servers read
/// them, in order with requests without.
fn behind(headers: &[(u8, Vec<u8>)]) -> Outcome {
    let mut rig = Rig::equal(true)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    for at in [0, 100, 200] {
        let data = &pattern(300)[at..at + 100];
        let plain = rig.frame_at(&mut conn, at as u32, ACK, data, &[]);
        let frame = if at == 100 { plain } else { Parts::of(plain)?.behind(headers) };
        let refused = refusals(&mut rig, vec![frame])?;
        ensure(refused.is_empty(), || format!("{refused:?}"))?;
    }
    conn.sent = 300;
    both_read(&mut rig, &mut conn, &mut streams, &pattern(300))
}

fn hop_by_hop_options() -> Outcome {
    behind(&[(HOP_BY_HOP, PADDING.to_vec())])
}

fn destination_options() -> Outcome {
    // Twice the least length.
    behind(&[(DESTINATION, [&[0, 1, 1, 12][..], &[0; 12]].concat())])
}

/// "Atomic fragment" (RFC 6946): the whole datagram, whatever else of its identification comes.
fn atomic_fragment() -> Outcome {
    behind(&[(FRAGMENT, ATOMIC.to_vec())])
}

/// As many as are followed: 8.
fn chain_of_headers() -> Outcome {
    let options = vec![(DESTINATION, PADDING.to_vec()); 6];
    let first = (HOP_BY_HOP, PADDING.to_vec());
    behind(&[vec![first], options, vec![(FRAGMENT, ATOMIC.to_vec())]].concat())
}

/// A request behind these headers is refused for this reason; no server is sent anything.
fn refused_behind(headers: &[(u8, Vec<u8>)], reason: Malformed) -> Outcome {
    let mut rig = Rig::equal(true)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let frame = rig.frame_at(&mut conn, 0, ACK, b"refused", &[]);
    let before = [A, B].map(|leg| rig.sent_to(leg, conn.port).count());
    let refused = refusals(&mut rig, vec![Parts::of(frame)?.behind(headers)])?;
    ensure(refused == [RejectReason::Malformed(reason)], || format!("{refused:?}"))?;
    let after = [A, B].map(|leg| rig.sent_to(leg, conn.port).count());
    ensure(before == after, || "a server was sent it".into())?;
    answers(&mut rig, &mut conn, &mut streams)
}

/// "Max 8 headers."
fn too_many_headers() -> Outcome {
    let headers = vec![(DESTINATION, PADDING.to_vec()); 9];
    refused_behind(&headers, Malformed::ExtensionHeaders)
}

/// "RH0 -> other" (RFC 5095): a routing header of type 0, with no segment left.
fn source_route() -> Outcome {
    refused_behind(&[(ROUTING, vec![0; 8])], Malformed::SourceRoute)
}

/// Bad-input list, "trailing Ethernet padding": bytes behind the length of the IP packet belong to
/// nobody.
fn padding_is_no_data() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::PLAIN)?;
    for data in [&b""[..], b"x", b""] {
        let at = conn.sent;
        let frame = rig.frame_at(&mut conn, at, ACK, data, &[]);
        let mut bytes = Parts::of(frame)?.frame().to_vec();
        bytes.resize(60, b'!');
        rig.client_says(Frame::from_wire(bytes.into(), Offload::default()))?;
        conn.sent += data.len() as u32;
    }
    rig.say(&mut conn, ACK, b"y")?;
    both_read(&mut rig, &mut conn, &mut streams, b"xy")?;
    nothing_read(&mut streams)
}

/// I13: "a frame whose checksum was not verified never enters compare; recomputing a checksum over
/// unverified bytes launders corruption": a damaged request reaches nobody; its repetition does.
fn wrong_sum_of_the_client(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let frame = rig.frame_at(&mut conn, 0, ACK, b"GET /", &[]);
    let forms = [Parts::of(frame.clone())?.with_wrong_sum().frame(), raw::damaged(frame)];
    let refused = refusals(&mut rig, forms.to_vec())?;
    let reason = RejectReason::Malformed(Malformed::TcpChecksum);
    ensure(refused == [reason; 2], || format!("{refused:?}"))?;
    rig.settle()?;
    nothing_read(&mut streams)?;
    rig.say(&mut conn, ACK, b"GET /")?;
    both_read(&mut rig, &mut conn, &mut streams, b"GET /")
}

/// Scenario 33, "corruption with bad checksum on P leg: dropped, counted, never re-checksummed":
/// the client reads what was said, and no divergence was seen.
fn wrong_sum_of_a_server(is_v6: bool) -> Outcome {
    let mut rig = Rig::new(&Setup::over(is_v6))?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    let mut is_done = false;
    rig.passage = Box::new(move |leg, seg, frame| {
        let is_it = leg == A && seg.dst_port == FIRST_PORT && seg.payload_len > 0;
        let is_damaged = is_it && !std::mem::replace(&mut is_done, true);
        Some(if is_damaged { raw::damaged(frame) } else { frame })
    });
    respond(&mut streams, &pattern(1000))?;
    rig.receive(&mut conn, 1000)?;
    ensure(conn.received == pattern(1000), || "the response arrived changed".into())?;
    let mut refused = rig.refused(0, Link::Server(A));
    refused.retain(|reason| *reason != RejectReason::ProbeReply);
    let reason = RejectReason::Malformed(Malformed::TcpChecksum);
    ensure(refused == [reason], || format!("{refused:?}"))?;
    let is_diverged = rig.events.iter().any(|e| matches!(e, Event::Diverged { .. }));
    ensure(!is_diverged, || "taken for a divergence".into())
}

/// Bad-input list, "all-flags/null/SYN+FIN/SYN+RST": no TCP says them; no server hears them.
fn contradicting_flags() -> Outcome {
    let mut rig = Rig::equal(false)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    let before = [A, B].map(|leg| rig.sent_to(leg, conn.port).count());
    let mut frames = Vec::new();
    for bits in [0, 0x03, 0x06, 0x3f] {
        let flags = shadowvm::wire::TcpFlags(bits);
        frames.push(rig.frame_at(&mut conn.clone(), conn.sent, flags, b"", &[]));
    }
    let refused = refusals(&mut rig, frames)?;
    let reason = RejectReason::Malformed(Malformed::TcpFlags);
    ensure(refused == [reason; 4], || format!("{refused:?}"))?;
    let after = [A, B].map(|leg| rig.sent_to(leg, conn.port).count());
    ensure(before == after, || "a server was sent one".into())?;
    answers(&mut rig, &mut conn, &mut streams)
}

/// "TTL/IPID/DF/DSCP from the primary": what the client sees is what that server's kernel grants,
/// before and after a failover.
fn hops_left_are_the_servers() -> Outcome {
    let key = "net.ipv4.ip_default_ttl";
    let sysctls = [vec![(key, "77")], vec![(key, "99")]];
    let mut rig = Rig::new(&Setup { sysctls, ..Setup::default() })?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    let (port, mark) = (conn.port, rig.shown(conn.port).count());
    rig.fail(A)?;
    streams[1].write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 8000)?;
    let hops = |s: &Seen| (s.seg.l3.ttl, s.seg.l3.dont_fragment);
    let before = rig.shown(port).take(mark).map(hops).all(|h| h == (77, true));
    ensure(before, || "not a's hops before".into())?;
    let data = rig.shown(port).skip(mark).filter(|s| !s.data.is_empty());
    let after: Vec<_> = data.map(hops).collect();
    ensure(!after.is_empty() && after.iter().all(|h| *h == (99, true)), || format!("{after:?}"))
}
