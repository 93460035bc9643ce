//! SYN-ACKs that differ: a server that lacks options which the other one has, in all sixteen ways,
//! as the one that dies and as the one that is left.

use std::time::Duration;

use shadowvm::engine::{FlowState, LegId};
use shadowvm::io::clock;

use super::Outcome;
use super::conn::{ACK, SYN};
use super::desk::{Desk, Heard, Made, Plan};
use super::rig::{B, ensure, pattern};

/// A client that has said nothing for so long has said what it will.
const AT_REST: Duration = Duration::from_millis(20);

/// What one server lacks.
#[derive(Clone, Copy, Debug)]
struct Lacks {
    mss: bool,
    scale: bool,
    sack: bool,
    stamps: bool,
}

/// All sixteen, by name.
pub fn table() -> Vec<(String, Box<dyn Fn() -> Outcome>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Outcome>)> = Vec::new();
    for bits in 0..16u8 {
        let lacks = Lacks {
            mss: bits & 1 != 0,
            scale: bits & 2 != 0,
            sack: bits & 4 != 0,
            stamps: bits & 8 != 0,
        };
        let words = [
            (lacks.mss, "mss"),
            (lacks.scale, "scale"),
            (lacks.sack, "sack"),
            (lacks.stamps, "stamps"),
        ];
        let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
        let name = match words.is_empty() {
            true => "syn-acks-differ".to_owned(),
            false => format!("syn-acks-differ-one-without-{}", words.join("-")),
        };
        let script = move || LegId::ALL.into_iter().try_for_each(|poor| differ(lacks, poor));
        all.push((name, Box::new(script)));
    }
    all
}

impl Lacks {
    fn of(self, made: Made) -> Made {
        Made {
            mss: made.mss.filter(|_| !self.mss),
            scale: made.scale.filter(|_| !self.scale),
            has_sack: made.has_sack && !self.sack,
            has_stamps: made.has_stamps && !self.stamps,
            // The same window, as near as the field can say it.
            window: if self.scale { 5000 } else { made.window },
            ..made
        }
    }
}

/// 1.4, "If SYN-ACKs still differ": MSS = min of both; `ws_v = min`, one side without -> none in V;
/// SACK and TS in V only if both. "Window never overstated, no false zero"; each leg hears what it
/// agreed to: rescaled windows, synthesized timestamps. Then the primary dies.
fn differ(lacks: Lacks, poor: LegId) -> Outcome {
    // 5,120 and 4,800 bytes of window.
    let mut made = [Made { window: 40, ..Made::A }, Made { window: 600, ..Made::B }];
    made.iter_mut().for_each(|m| m.first_window = 4400);
    made[poor.index()] = lacks.of(made[poor.index()]);
    let mut desk = Desk::open(&Plan { made, ..Plan::default() })?;
    agreed(&desk)?;
    upload(&mut desk, &LegId::ALL, 0, 12_000)?;
    let all = pattern(6000);
    for leg in LegId::ALL {
        for (i, piece) in all[..3000].chunks(500).enumerate() {
            desk.say(leg, ACK, i as u32 * 500, 12_000, piece)?;
        }
    }
    ensure(desk.read(3000)? == all[..3000], || "the client read something else".into())?;
    for leg in LegId::ALL {
        desk.heard_by(leg, 12_000, 3000)?;
        told_in_its_own_way(&desk, leg)?;
    }
    ensure(desk.engine.flows(1)[0].state == FlowState::Paired, || "not paired".into())?;
    desk.say(B, ACK, 3000, 12_000, &all[3000..3500])?;
    desk.fail_a()?;
    for (i, piece) in all[3500..].chunks(500).enumerate() {
        desk.say(B, ACK, 3500 + i as u32 * 500, 12_000, piece)?;
    }
    ensure(desk.read(3000)? == all[3000..], || "the client read something else".into())?;
    upload(&mut desk, &[B], 6000, 20_000)?;
    told_in_its_own_way(&desk, B)
}

/// What the client was told in the SYN-ACK.
fn agreed(desk: &Desk) -> Outcome {
    let [a, b] = desk.made;
    let shown = desk.shown.first().ok_or("no SYN-ACK")?;
    let options = shown.seg.options;
    // RFC 9293 3.7.1: who says nothing takes 536.
    let mss = a.mss.unwrap_or(536).min(b.mss.unwrap_or(536));
    ensure(options.mss == Some(mss), || format!("MSS {:?}, not {mss}", options.mss))?;
    let scale = a.scale.zip(b.scale).map(|(a, b)| a.min(b));
    ensure(options.window_scale == scale, || format!("scale {:?}", options.window_scale))?;
    ensure(options.sack_permitted == (a.has_sack && b.has_sack), || format!("{options:?}"))?;
    let has_stamps = a.has_stamps && b.has_stamps;
    ensure(options.timestamps.is_some() == has_stamps, || format!("{options:?}"))?;
    ensure(shown.seg.window == 4400, || format!("a first window of {}", shown.seg.window))
}

/// The client's program writes up to `to` bytes in all; these servers take them a window at a time.
/// Whatever the client was told, it never sends beyond what the tighter one granted.
fn upload(desk: &mut Desk, legs: &[LegId], said: u32, to: usize) -> Outcome {
    let all = pattern(to);
    let mut taken = desk.request(B).len();
    desk.write(&all[taken..])?;
    let first = desk.iss.wrapping_add(1);
    // A client fills a window but for a part of a segment (RFC 9293 3.8.6.2.1), and a window is
    // told but for a part of its unit.
    let mss = desk.shown.first().and_then(|s| s.seg.options.mss).unwrap_or(536);
    let part = usize::from(mss) + 128;
    while taken < to {
        let room = |&leg: &LegId| match taken {
            0 => u32::from(desk.made[leg.index()].first_window),
            _ => desk.made[leg.index()].room(),
        };
        let most = legs.iter().map(room).min().unwrap_or(0) as usize;
        let begun = clock::now();
        let end = desk.until("more of the request", |desk| {
            let end = legs.iter().map(|&leg| desk.request(leg).len()).min()?;
            let is_full = end == to || end + part > taken + most;
            // What is left of a window may wait for the next ack.
            let is_at_rest = end > taken && clock::now().since(begun) > AT_REST;
            (is_full || is_at_rest).then_some(end)
        })?;
        let past = |h: &Heard| h.seg.seq.wrapping_sub(first) as usize + h.data.len();
        let heard = legs.iter().flat_map(|leg| &desk.heard[leg.index()]);
        let sent = heard.filter(|h| !h.data.is_empty()).map(past).max().unwrap_or(0);
        ensure(sent <= taken + most, || format!("sent {sent}, granted {taken} + {most}"))?;
        taken = end;
        for &leg in legs {
            desk.say(leg, ACK, said, taken as u32, b"")?;
        }
        let shown = desk.shown.last().ok_or("nothing shown")?;
        ensure(shown.seg.window > 0, || format!("a false zero: {shown}"))?;
    }
    for leg in legs {
        ensure(desk.request(*leg) == all, || format!("{leg:?} heard something else"))?;
    }
    Ok(())
}

/// Everything that this server was sent is in the options that it agreed to, and the window that it
/// heard last is the client's, rounded down to its unit.
fn told_in_its_own_way(desk: &Desk, leg: LegId) -> Outcome {
    let made = desk.made[leg.index()];
    let heard = &desk.heard[leg.index()];
    for h in heard.iter().filter(|h| !h.seg.flags.has(SYN)) {
        let options = h.seg.options;
        ensure(options.timestamps.is_some() == made.has_stamps, || {
            format!("{leg:?}: {options:?}")
        })?;
        ensure(options.sack.is_empty() || made.has_sack, || format!("{leg:?}: {options:?}"))?;
    }
    let stamps = heard.iter().filter_map(|h| h.seg.options.timestamps.map(|(val, _)| val));
    let stamps: Vec<_> = stamps.collect();
    let grow = stamps.windows(2).all(|pair| !pair[0].is_after(pair[1]));
    ensure(grow, || format!("{leg:?} heard a clock that goes back: {stamps:?}"))?;
    let offered = heard.first().and_then(|h| h.seg.options.window_scale).unwrap_or(0);
    let shown = desk.shown.first().ok_or("no SYN-ACK")?;
    let scale = if shown.seg.options.window_scale.is_some() { offered } else { 0 };
    let port = desk.port;
    let asked = desk.asked.iter().rev().find(|s| s.seg.src_port == port && !s.has(SYN));
    let asked = asked.ok_or("the client is silent")?;
    let acked = asked.seg.ack.wrapping_sub(desk.viss().wrapping_add(1));
    let granted = acked + (u32::from(asked.seg.window) << scale);
    let last = heard.last().ok_or("nothing heard")?;
    let unit = if made.scale.is_some() { offered } else { 0 };
    let own = last.seg.ack.wrapping_sub(made.iss.wrapping_add(1));
    let told = own + (u32::from(last.seg.window) << unit);
    // A leg without scale cannot be told of more than its field holds.
    let cap = own + (u32::from(u16::MAX) << unit);
    let is_right = told <= granted && granted.min(cap) - told < 1 << unit;
    ensure(is_right, || format!("{leg:?} was told {told}, the client granted {granted}"))
}
