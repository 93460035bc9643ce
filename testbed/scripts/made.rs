//! A real kernel as the client of two servers made by hand: segments cut differently, clocks and
//! numbers of any kind, words at a moment of the script's choice.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use shadowvm::engine::{FlowState, LegId};
use shadowvm::io::clock;
use shadowvm::wire::TcpFlags;

use super::conn::{ACK, FIN, RST, SYN, Seen};
use super::desk::{Desk, Heard, Made, Plan};
use super::rig::{A, B, ensure, pattern};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[
    ("real-client-one-end-of-two", one_end_of_two),
    ("real-client-numbers-wrap", numbers_wrap),
    ("real-client-sack-in-each-servers-numbers", sack_in_each_servers_numbers),
    ("real-client-sack-of-what-a-late-server-has-not-said", sack_of_what_was_not_said),
    ("real-client-has-what-a-late-server-says", what_a_late_server_says),
    ("real-client-is-shown-a-repetition-once", a_repetition_is_shown_once),
    ("real-client-repetition-of-small-pieces", repetition_of_small_pieces),
    ("real-client-pieces-leave-together", pieces_leave_together),
    ("real-client-keep-alive-of-a-server", keep_alive_of_a_server),
    ("real-client-keep-alive-while-it-is-silent", keep_alive_while_silent),
    ("real-client-clocks-far-apart", clocks_far_apart),
    ("real-client-held-bytes-are-stamped-anew", held_bytes_are_stamped_anew),
    ("real-client-urgent-byte-in-two-cuts", urgent_byte_in_two_cuts),
    ("real-client-resets-out-of-place", resets_out_of_place),
    ("real-client-answer-of-an-older-connection", answer_of_an_older_connection),
];

pub const TWINS: &[Twin] =
    &[("real-client-two-segmentations", two_segmentations), ("real-client-failover", a_failover)];

fn plan(is_v6: bool) -> Plan {
    Plan { is_v6, ..Plan::default() }
}

/// Two answers cut differently, in numbers, clocks and windows of their own: one to the client.
fn two_segmentations(is_v6: bool) -> Outcome {
    let mut desk = Desk::open(&plan(is_v6))?;
    desk.write(b"GET")?;
    for leg in LegId::ALL {
        ensure(desk.heard_by(leg, 3, 0)? == b"GET", || format!("{leg:?} heard something else"))?;
    }
    let all = pattern(3000);
    for (i, piece) in all.chunks(1000).enumerate() {
        desk.say(A, ACK, i as u32 * 1000, 3, piece)?;
    }
    for (i, piece) in all.chunks(1200).enumerate() {
        desk.say(B, ACK, i as u32 * 1200, 3, piece)?;
    }
    ensure(desk.read(3000)? == all, || "the client read something else".into())?;
    for leg in LegId::ALL {
        desk.heard_by(leg, 3, 3000)?;
    }
    Ok(())
}

/// The primary's link fails in mid-answer: the client reads on, and the survivor hears its own
/// numbers.
fn a_failover(is_v6: bool) -> Outcome {
    let mut desk = Desk::open(&plan(is_v6))?;
    desk.write(b"GET")?;
    let all = pattern(4000);
    for leg in LegId::ALL {
        desk.heard_by(leg, 3, 0)?;
        desk.say(leg, ACK, 0, 3, &all[..1000])?;
    }
    ensure(desk.read(1000)? == all[..1000], || "the client read something else".into())?;
    desk.say(B, ACK, 1000, 3, &all[1000..2200])?;
    desk.fail_a()?;
    desk.say(B, ACK, 2200, 3, &all[2200..3400])?;
    desk.say(B, ACK, 3400, 3, &all[3400..])?;
    ensure(desk.read(3000)? == all[1000..], || "the client read something else".into())?;
    desk.write(b"more")?;
    let request = desk.heard_by(B, 7, 4000)?;
    ensure(request == b"GETmore", || format!("b heard {request:?}"))
}

/// One server ends, then the other: the client hears one end, and not before the second.
fn one_end_of_two() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    for leg in LegId::ALL {
        desk.say(leg, ACK, 0, 0, b"bye")?;
    }
    desk.read(3)?;
    desk.say(B, FIN, 3, 0, b"")?;
    ensure(!desk.shown.iter().any(|s| s.has(FIN)), || "shown after one end".into())?;
    desk.say(A, FIN, 3, 0, b"")?;
    desk.until("the end", |desk| {
        matches!(std::io::Read::read(&mut desk.client, &mut [0]), Ok(0)).then_some(())
    })?;
    desk.client.shutdown(std::net::Shutdown::Both).map_err(|e| e.to_string())?;
    for leg in LegId::ALL {
        let has_fin = |h: &Heard| h.seg.flags.has(TcpFlags::FIN);
        desk.until("the client's FIN", |desk| {
            desk.heard[leg.index()].iter().any(has_fin).then_some(())
        })?;
    }
    Ok(())
}

/// Scenario 20, "ISN_P, ISN_B in {2^32-5 .. 2^32+5}: intact over wrap with SACK and TS": both
/// servers' numbers wrap in the first answer, one of them in its middle, and a failover follows.
fn numbers_wrap() -> Outcome {
    for starts in [[u32::MAX, u32::MAX - 20_000], [u32::MAX - 30_000, u32::MAX - 4], [0, u32::MAX]]
    {
        let made = [Made { iss: starts[0], ..Made::A }, Made { iss: starts[1], ..Made::B }];
        let mut desk = Desk::open(&Plan { made, ..Plan::default() })?;
        desk.write(b"GET")?;
        let all = pattern(50_000);
        for leg in LegId::ALL {
            desk.heard_by(leg, 3, 0)?;
            for (i, piece) in all[..40_000].chunks(1000).enumerate() {
                desk.say(leg, ACK, i as u32 * 1000, 3, piece)?;
            }
        }
        ensure(desk.read(40_000)? == all[..40_000], || format!("{starts:?}: another answer"))?;
        for leg in LegId::ALL {
            desk.heard_by(leg, 3, 40_000)?;
        }
        desk.fail_a()?;
        for (i, piece) in all[40_000..].chunks(1000).enumerate() {
            desk.say(B, ACK, 40_000 + i as u32 * 1000, 3, piece)?;
        }
        ensure(desk.read(10_000)? == all[40_000..], || format!("{starts:?}: another answer"))?;
        desk.write(b"more")?;
        let request = desk.heard_by(B, 7, 50_000)?;
        ensure(request == b"GETmore", || format!("b heard {request:?}"))?;
    }
    Ok(())
}

/// The blocks that a server heard last, as offsets of its answer.
fn blocks(desk: &Desk, leg: LegId) -> Vec<(u32, u32)> {
    let own = desk.made[leg.index()].iss.wrapping_add(1);
    let last = desk.heard[leg.index()].last().map(|h| h.seg.options.sack);
    let offset = |&(l, r): &(u32, u32)| (l.wrapping_sub(own), r.wrapping_sub(own));
    last.unwrap_or_default().as_slice().iter().map(offset).collect()
}

/// "Out-of-order equal ranges may be released ahead of a hole (they let C generate dup-ACK/SACK)";
/// the client's blocks reach each server in its own numbers, one of which wraps inside.
fn sack_in_each_servers_numbers() -> Outcome {
    let made = [Made::A, Made { iss: u32::MAX - 2500, ..Made::B }];
    let mut desk = Desk::open(&Plan { made, ..Plan::default() })?;
    let all = pattern(3000);
    desk.both_say(0, 0, &all[..1000])?;
    desk.both_say(2000, 0, &all[2000..])?;
    for leg in LegId::ALL {
        desk.until("the client's block", |desk| {
            (blocks(desk, leg) == [(2000, 3000)]).then_some(())
        })?;
        let last = desk.heard[leg.index()].last().map(|h| h.seg.ack);
        let edge = desk.made[leg.index()].iss.wrapping_add(1001);
        ensure(last == Some(edge), || format!("{leg:?} is acknowledged {last:?}"))?;
    }
    desk.both_say(1000, 0, &all[1000..2000])?;
    ensure(desk.read(3000)? == all, || "the client read something else".into())?;
    for leg in LegId::ALL {
        desk.heard_by(leg, 0, 3000)?;
        ensure(blocks(&desk, leg).is_empty(), || format!("{:?}", blocks(&desk, leg)))?;
    }
    Ok(())
}

/// "Client SACK blocks for ranges a leg has not sent are dropped from that leg's copy": b is late,
/// the client has what a said beyond a hole, and b hears nothing of it.
fn sack_of_what_was_not_said() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    let all = pattern(4000);
    desk.both_say(0, 0, &all[..1000])?;
    ensure(desk.read(1000)? == all[..1000], || "the client read something else".into())?;
    let hole = desk.viss().wrapping_add(1001);
    let mut lost = false;
    desk.lose = Box::new(move |seg| seg.seq == hole && !std::mem::replace(&mut lost, true));
    for at in [1000, 2000, 3000] {
        desk.say(A, ACK, at, 0, &all[at as usize..at as usize + 1000])?;
    }
    desk.until("a to hear of the block", |desk| (blocks(desk, A) == [(2000, 4000)]).then_some(()))?;
    let state = desk.engine.flows(1).first().map(|f| f.state);
    ensure(state == Some(FlowState::Lagging), || format!("{state:?}"))?;
    let own = desk.made[1].iss.wrapping_add(1);
    let beyond = |h: &&Heard| {
        let is_beyond = |edge: u32| edge.wrapping_sub(own) as i32 > 1000;
        let sack = h.seg.options.sack;
        is_beyond(h.seg.ack) || sack.as_slice().iter().any(|&(_, r)| is_beyond(r))
    };
    let wrong = desk.heard[1].iter().skip(1).find(beyond).map(|h| h.seg);
    ensure(wrong.is_none(), || format!("b said 1000 bytes, and heard {wrong:?}"))?;
    desk.say(A, ACK, 1000, 0, &all[1000..2000])?;
    ensure(desk.read(3000)? == all[1000..], || "the client read something else".into())
}

/// LV1: "whenever S_l grows under c_una, send leg l ACK = min(c_una, NXT_l) immediately.
/// (Otherwise: C already ACKed, is idle, never ACKs again; B backs off and dies)": each segment of
/// a late server is acknowledged by the gateway, and the flow is Paired again at the last.
fn what_a_late_server_says() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    let all = pattern(3000);
    desk.both_say(0, 0, &all[..1000])?;
    desk.say(A, ACK, 1000, 0, &all[1000..])?;
    ensure(desk.read(3000)? == all, || "the client read something else".into())?;
    desk.heard_by(A, 0, 3000)?;
    let shown = desk.shown.len();
    for at in [1000, 2000] {
        let before = desk.heard[1].len();
        desk.say(B, ACK, at, 0, &all[at as usize..at as usize + 1000])?;
        let acks: Vec<u32> = desk.heard[1][before..].iter().map(|h| h.seg.ack).collect();
        let end = desk.made[1].iss.wrapping_add(at + 1001);
        ensure(acks == [end], || format!("at {at}: acks {acks:?}, not {end}"))?;
    }
    let state = desk.engine.flows(1).first().map(|f| f.state);
    ensure(state == Some(FlowState::Paired), || format!("{state:?}"))?;
    ensure(desk.shown.len() == shown, || "the client was shown it again".into())
}

fn data_at(desk: &Desk, at: u32) -> usize {
    desk.shown.iter().filter(|s| !s.data.is_empty() && desk.offset(s) == at).count()
}

/// "Retransmitted data: forward from whichever leg sends it first; suppress the same range from the
/// other leg for 10 ms": the client lost a segment, and both servers say it again at once.
fn a_repetition_is_shown_once() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    let all = pattern(3000);
    let hole = desk.viss().wrapping_add(1001);
    let mut lost = false;
    desk.lose = Box::new(move |seg| seg.seq == hole && !std::mem::replace(&mut lost, true));
    for at in [0, 1000, 2000] {
        desk.both_say(at, 0, &all[at as usize..at as usize + 1000])?;
    }
    ensure(data_at(&desk, 1000) == 1, || "not shown once".into())?;
    desk.both_say(1000, 0, &all[1000..2000])?;
    ensure(data_at(&desk, 1000) == 2, || format!("shown {} times", data_at(&desk, 1000)))?;
    ensure(desk.read(3000)? == all, || "the client read something else".into())
}

/// What the client lacks altogether is shown again in whole segments, though it was shown in small
/// pieces the first time ("G re-segments"; no storm of small ones).
fn repetition_of_small_pieces() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    let all = pattern(3000);
    desk.lose = Box::new(|seg| seg.payload_len > 0);
    for (i, piece) in all.chunks(100).enumerate() {
        desk.both_say(i as u32 * 100, 0, piece)?;
    }
    let has_data = |s: &&Seen| !s.data.is_empty();
    let first = desk.shown.iter().filter(has_data).count();
    ensure(first == 30, || format!("{first} segments for 30 pieces"))?;
    desk.lose = Box::new(|_| false);
    desk.say(A, ACK, 0, 0, &all)?;
    let again = desk.shown.iter().filter(has_data).count() - first;
    ensure((1..=3).contains(&again), || format!("{again} segments for 3000 bytes"))?;
    ensure(desk.read(3000)? == all, || "the client read something else".into())
}

/// What follows in order leaves in one super-frame; the client's kernel reads the same bytes.
fn pieces_leave_together() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    let all = pattern(1000);
    let frames = desk.together(|desk| {
        LegId::ALL.into_iter().try_for_each(|leg| {
            let mut pieces = all.chunks(100).enumerate();
            pieces.try_for_each(|(i, piece)| desk.say(leg, ACK, i as u32 * 100, 0, piece))
        })
    })?;
    ensure((1..=3).contains(&frames), || format!("{frames} frames for ten pieces"))?;
    ensure(desk.read(1000)? == all, || "the client read something else".into())?;
    for leg in LegId::ALL {
        desk.heard_by(leg, 0, 1000)?;
    }
    Ok(())
}

/// Both servers have said 100 bytes that the client acknowledged.
fn quiet() -> Result<Desk, String> {
    let mut desk = Desk::open(&Plan::default())?;
    desk.both_say(0, 0, &pattern(100))?;
    desk.read(100)?;
    for leg in LegId::ALL {
        desk.heard_by(leg, 0, 100)?;
    }
    Ok(desk)
}

/// "Keep-alive. Server->: a zero-length or 1-byte segment at c_una-1 is answered by G (current ACK
/// and edge) if C was heard within the last 2 s": the client hears nothing of it.
fn keep_alive_of_a_server() -> Outcome {
    let mut desk = quiet()?;
    let shown = desk.shown.len();
    for (leg, data) in [(A, &b""[..]), (B, b""), (A, b"?"), (B, b"?")] {
        let before = desk.heard[leg.index()].len();
        desk.say(leg, ACK, 99, 0, data)?;
        let heard = &desk.heard[leg.index()];
        ensure(heard.len() == before + 1, || format!("{leg:?} got no one answer"))?;
        let seg = heard[before].seg;
        let is_right = seg.flags == ACK && seg.ack == desk.made[leg.index()].iss.wrapping_add(101);
        ensure(is_right && seg.window > 0, || format!("{leg:?} heard {seg:?}"))?;
    }
    ensure(desk.shown.len() == shown, || "the client was asked".into())
}

/// "Otherwise forwarded, at most once a second a flow, C's answer going to both legs. G never
/// answers for a client silent longer than that."
fn keep_alive_while_silent() -> Outcome {
    let mut desk = quiet()?;
    let port = desk.port;
    let is_ours = move |s: &&Seen| s.seg.src_port == port;
    let last = desk.asked.iter().rev().find(is_ours).ok_or("the client is silent")?.at;
    desk.until("two seconds of silence", |_| {
        (clock::now().since(last) > Duration::from_millis(2010)).then_some(())
    })?;
    let (shown, before) = (desk.shown.len(), [desk.heard[0].len(), desk.heard[1].len()]);
    desk.say(A, ACK, 99, 0, b"")?;
    desk.say(B, ACK, 99, 0, b"")?;
    ensure(desk.shown.len() == shown + 1, || "not shown once".into())?;
    let probe = &desk.shown[shown];
    ensure(probe.is_bare() && desk.offset(probe) == 99, || format!("{probe}"))?;
    let mute = [desk.heard[0].len(), desk.heard[1].len()];
    ensure(mute == before, || "the gateway answered for a silent client".into())?;
    for leg in LegId::ALL {
        let i = leg.index();
        desk.until("the client's answer", |desk| desk.heard[i].get(before[i]).map(drop))?;
        let seg = desk.heard[i][before[i]].seg;
        let is_right = seg.flags == ACK && seg.ack == desk.made[i].iss.wrapping_add(101);
        ensure(is_right, || format!("{leg:?} heard {seg:?}"))?;
    }
    Ok(())
}

/// Scenario 21, "TS clocks of P and B differ by 2^31 ticks and 10x rate: failover, TSval at C never
/// decreases; no PAWS drop": the client's kernel would drop what comes from the past, and nobody
/// would say it again.
fn clocks_far_apart() -> Outcome {
    for ticks in [[1, 10], [10, 1]] {
        let made = [
            Made { tick: ticks[0], ..Made::A },
            Made { tick: ticks[1], clock: Made::A.clock + (1 << 31), ..Made::B },
        ];
        let mut desk = Desk::open(&Plan { made, ..Plan::default() })?;
        let all = pattern(8000);
        for at in (0..4000).step_by(100) {
            desk.both_say(at, 0, &all[at as usize..at as usize + 100])?;
        }
        ensure(desk.read(4000)? == all[..4000], || "the client read something else".into())?;
        desk.fail_a()?;
        for at in (4000..8000).step_by(100) {
            desk.say(B, ACK, at, 0, &all[at as usize..at as usize + 100])?;
        }
        ensure(desk.read(4000)? == all[4000..], || "the client read something else".into())?;
        desk.heard_by(B, 0, 8000)?;
    }
    Ok(())
}

/// "Held packets released at failover are re-stamped by the clamp": b's bytes were said long before
/// the latest that the client has seen of a's clock.
fn held_bytes_are_stamped_anew() -> Outcome {
    let made = [Made { tick: 1000, ..Made::A }, Made::B];
    let mut desk = Desk::open(&Plan { made, ..Plan::default() })?;
    let all = pattern(2000);
    desk.both_say(0, 0, &all[..1000])?;
    ensure(desk.read(1000)? == all[..1000], || "the client read something else".into())?;
    desk.say(B, ACK, 1000, 0, &all[1000..])?;
    desk.write(b"GET")?;
    for leg in LegId::ALL {
        desk.until("the request", |desk| (desk.request(leg) == b"GET").then_some(()))?;
    }
    for _ in 0..50 {
        desk.say(A, ACK, 1000, 3, b"")?;
    }
    desk.say(B, ACK, 2000, 3, b"")?;
    let told = desk.shown.last().and_then(|s| s.seg.options.timestamps).ok_or("no clock")?.0;
    let shown = desk.shown.len();
    desk.fail_a()?;
    let held = desk.shown[shown..].iter().find(|s| !s.data.is_empty()).ok_or("nothing was held")?;
    let (stamp, _) = held.seg.options.timestamps.ok_or("no clock")?;
    ensure(!told.is_after(stamp), || format!("stamped {stamp:?} after {told:?}"))?;
    ensure(desk.read(1000)? == all[1000..], || "the client read something else".into())
}

/// "URG: absolute offset `seq+urp`; pointer rewritten when re-segmenting": a says it in one
/// segment, b in two; the client's kernel finds the urgent byte where it is.
fn urgent_byte_in_two_cuts() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    desk.say_urgent(A, 0, 0, b"before!after", 7)?;
    desk.say_urgent(B, 0, 0, b"bef", 7)?;
    desk.say_urgent(B, 3, 0, b"ore!after", 4)?;
    let before = desk.read(6)?;
    ensure(before == b"before", || format!("{before:?}"))?;
    let fd = desk.client.as_raw_fd();
    let byte = desk.until("the urgent byte", |_| {
        let mut byte = [0];
        (recv(fd, &mut byte, MsgFlags::MSG_OOB) == Ok(1)).then_some(byte)
    })?;
    ensure(byte == *b"!", || format!("{byte:?}"))?;
    let after = desk.read(5)?;
    ensure(after == b"after", || format!("{after:?}"))
}

/// "A reset counts if it stands where the leg's stream may end": others of both servers are no end;
/// exact ones are, and the client's kernel takes the one that it is shown (RFC 5961 3).
fn resets_out_of_place() -> Outcome {
    let mut desk = quiet()?;
    let shown = desk.shown.len();
    for at in [100_000, 1 << 31, 0x8000_0100, u32::MAX - 5000] {
        for leg in LegId::ALL {
            desk.say(leg, RST, at, 0, b"")?;
        }
    }
    // Longer than a reset of one server waits for the other's.
    desk.pass(Duration::from_millis(60))?;
    ensure(desk.shown.len() == shown, || "something was shown".into())?;
    desk.both_say(100, 0, b"alive")?;
    ensure(desk.read(5)? == b"alive", || "not alive".into())?;
    for leg in LegId::ALL {
        desk.say(leg, RST, 105, 0, b"")?;
    }
    let error = desk.until("the end", |desk| {
        let read = std::io::Read::read(&mut desk.client, &mut [0]);
        read.err().filter(|e| e.kind() != ErrorKind::WouldBlock)
    })?;
    ensure(error.kind() == ErrorKind::ConnectionReset, || format!("{error}"))?;
    let resets = desk.shown.iter().filter(|s| s.has(RST)).count();
    ensure(resets == 1, || format!("{resets} resets"))
}

/// "If one leg answers a SYN with a challenge ACK, G resets that leg exactly and re-sends the
/// stored SYN"; "old-generation frames are dropped by I12": what that leg says once more of the
/// connection before is no answer, and the client waits for the real one.
fn answer_of_an_older_connection() -> Outcome {
    let mut desk = Desk::new(&Plan::default())?;
    desk.at_once(|desk| {
        desk.accept(A)?;
        // In the numbers of an older connection, which expects byte 77 of it.
        desk.say(B, ACK, 5000, 77, b"")?;
        let heard: Vec<_> = desk.heard[1].iter().map(|h| (h.seg.flags, h.seg.seq)).collect();
        let exact = desk.iss.wrapping_add(78);
        let is_right = heard.ends_with(&[(RST, exact), (SYN, desk.iss)]);
        ensure(is_right, || format!("b heard {heard:?}"))?;
        desk.say(B, SYN.with(ACK), 4999, 0, b"")?;
        ensure(desk.shown.is_empty(), || "the old number was shown".into())?;
        desk.accept(B)
    })?;
    let numbers: Vec<u32> = desk.shown.iter().map(|s| s.seg.seq).collect();
    ensure(numbers == [desk.made[0].iss], || format!("{numbers:?}"))?;
    desk.both_say(0, 0, b"of now")?;
    ensure(desk.read(6)? == b"of now", || "the client read something else".into())?;
    desk.heard_by(B, 0, 6).map(drop)
}
