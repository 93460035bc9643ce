//! Selective acknowledgements against sets of positions (RFC 2018, RFC 2883): what the client is
//! shown is in both servers' sets, in order, never a hole that the gateway can fill; what a server
//! is told is its own duplicate first, then only what it sent.

use proptest::prelude::*;

use super::{Connection, Heard, LegId, Link, Say};

const CLIENT: u32 = u32::MAX - 700;
const ISS: [u32; 2] = [u32::MAX - 350, 5];
/// Bytes of a segment: one position.
const SEGMENT: u32 = 100;

/// The runs of ones in `set` from position `from` on, as bytes.
fn runs(set: u32, from: u32) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for x in (from..32).filter(|x| set & 1 << x != 0) {
        match found.last_mut() {
            Some((_, end)) if *end == x * SEGMENT => *end += SEGMENT,
            _ => found.push((x * SEGMENT, (x + 1) * SEGMENT)),
        }
    }
    found
}

/// The ones at the beginning of `set`.
fn prefix(set: u32) -> u32 {
    (!set).trailing_zeros()
}

fn open(has_stamps: bool) -> Connection {
    let options = move |it: Say| if has_stamps { it.sack_ok().stamps(5, 0) } else { it.sack_ok() };
    Connection::open(CLIENT, ISS, options, move |_, it| options(it))
}

/// The blocks of a segment in bytes of its receiver's stream, in the order in which they stand.
fn blocks(c: &Connection, heard: &Heard) -> Vec<(u32, u32)> {
    let iss = match heard.link {
        Link::Client => c.client,
        Link::Server(leg) => c.legs[leg.index()],
    };
    let place = |number: u32| super::before(iss, number);
    heard.seg.options.sack.as_slice().iter().map(|&(l, r)| (place(l), place(r))).collect()
}

/// These byte ranges as blocks of numbers behind `iss`.
fn numbers(iss: u32, ranges: &[(u32, u32)]) -> Vec<(u32, u32)> {
    ranges.iter().map(|&(f, t)| (super::after(iss, f), super::after(iss, t))).collect()
}

/// Every pair of sets over six segments behind one that the client's link lost.
#[test]
fn the_client_is_shown_what_both_have() {
    for a in 0..64u32 {
        for b in 0..64u32 {
            let mut c = open(false);
            for x in 1..7 {
                c.kit.client(c.by_client(x * SEGMENT, 0).data([b'q'; SEGMENT as usize]));
            }
            c.kit.forget();
            for (leg, set) in [(LegId::A, a << 1), (LegId::B, b << 1)] {
                c.kit.leg(leg, c.by_leg(leg, 0, 0).sack(&numbers(CLIENT, &runs(set, 0))));
            }
            let shown = c.kit.on(Link::Client);
            let mut last = shown.last().map(|h| blocks(&c, h)).unwrap_or_default();
            last.sort();
            assert_eq!(last, runs((a & b) << 1, 0), "{a:b} and {b:b}");
            assert!(shown.iter().all(|h| c.place(h).1 == 0));
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The client's segment reaches the gateway.
    Said(u32),
    /// A segment reaches a server, which acknowledges all it has; blocks rotated by this much.
    Heard(LegId, u32, usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let leg = prop::sample::select(LegId::ALL.to_vec());
    prop_oneof![
        2 => (0u32..14).prop_map(Act::Said),
        3 => (leg, 0u32..14, 0usize..5).prop_map(|(l, x, r)| Act::Heard(l, x, r)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever arrives where in which order: each segment that the client hears has the lower ack
    /// and the blocks of the intersection that grew last, but none while the gateway holds what is
    /// missing.
    #[test]
    fn every_ack_shown_is_the_intersection(
        has_stamps: bool, acts in prop::collection::vec(any_act(), 1..60),
    ) {
        let mut c = open(has_stamps);
        let block_max = if has_stamps { 3 } else { 4 };
        // Segments that the gateway has, those that each server has, and those it has reported.
        let (mut said, mut has, mut known) = (0u32, [0u32; 2], [0u32; 2]);
        // When each segment came into a block that was told.
        let mut since = [None; 32];
        for (turn, act) in acts.into_iter().enumerate() {
            c.kit.forget();
            match act {
                Act::Said(x) => {
                    said |= 1 << x;
                    c.kit.client(c.by_client(x * SEGMENT, 0).data([b'q'; SEGMENT as usize]));
                }
                Act::Heard(_, x, _) if said & 1 << x == 0 => continue,
                Act::Heard(leg, x, turn) => {
                    let i = leg.index();
                    has[i] |= 1 << x;
                    let ack = prefix(has[i]);
                    let mut blocks = runs(has[i], ack);
                    let turn = turn % blocks.len().max(1);
                    blocks.rotate_left(turn);
                    blocks.truncate(block_max);
                    known[i] |= (1 << ack) - 1;
                    for (f, t) in &blocks {
                        (f / SEGMENT..t / SEGMENT).for_each(|x| known[i] |= 1 << x);
                    }
                    let it = c.by_leg(leg, 0, ack * SEGMENT);
                    c.kit.leg(leg, it.sack(&numbers(CLIENT, &blocks)));
                }
            }
            let ack = prefix(known[0]).min(prefix(known[1]));
            let is_held = said & 1 << ack != 0;
            let shown = c.kit.on(Link::Client);
            let both = if is_held { 0 } else { known[0] & known[1] };
            let mut expected = runs(both, ack);
            if !shown.is_empty() {
                for x in 0..32 {
                    let is_told = !expected.is_empty() && x >= ack && both & 1 << x != 0;
                    since[x as usize] = is_told.then(|| since[x as usize].unwrap_or(turn));
                }
            }
            let grown = |&(f, t): &(u32, u32)| {
                let latest = (f / SEGMENT..t / SEGMENT).filter_map(|x| since[x as usize]).max();
                std::cmp::Reverse((latest, f))
            };
            expected.sort_by_key(grown);
            expected.truncate(block_max);
            for heard in shown {
                prop_assert_eq!(c.place(&heard).1, ack * SEGMENT);
                prop_assert_eq!(blocks(&c, &heard), expected.clone());
            }
        }
    }

    /// A range that a server repeats although the client has it is reported to that server alone,
    /// in the first block of its next ack.
    #[test]
    fn a_repeated_range_is_reported_first(
        len in 10u32..3000, from in any::<u32>(), until in any::<u32>(),
        repeats in prop::sample::select(LegId::ALL.to_vec()),
    ) {
        let mut c = open(false);
        let bytes = vec![b'r'; len as usize];
        for leg in LegId::ALL {
            c.kit.leg(leg, c.by_leg(leg, 0, 0).data(&bytes));
        }
        c.kit.client(c.by_client(0, len));
        c.kit.forget();
        let from = from % len;
        let to = from + 1 + until % (len - from);
        let again = c.by_leg(repeats, from, 0).data(&bytes[from as usize..to as usize]);
        c.kit.leg(repeats, again);
        let told = c.kit.on(Link::Server(repeats));
        prop_assert_eq!(told.len(), 1);
        prop_assert_eq!(c.place(&told[0]), (0, len));
        prop_assert_eq!(blocks(&c, &told[0]), [(from, to)]);
        prop_assert!(c.kit.on(Link::Server(repeats.other())).is_empty());
        prop_assert!(c.kit.on(Link::Client).is_empty());
    }
}

/// One end of an answer.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// A server's segment reaches the gateway.
    Said(LegId, u32),
    /// A segment that was shown reaches the client, which acknowledges all it has.
    Taken(u32, usize),
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let leg = prop::sample::select(LegId::ALL.to_vec());
    prop_oneof![
        3 => (leg, 0u32..12).prop_map(|(l, x)| Answer::Said(l, x)),
        2 => (0u32..12, 0usize..5).prop_map(|(x, r)| Answer::Taken(x, r)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// A server is told of a duplicate first, and then only of bytes that it said, beyond its ack,
    /// each once.
    #[test]
    fn what_a_server_is_told_it_has_said(
        has_stamps: bool, answers in prop::collection::vec(any_answer(), 1..60),
    ) {
        let mut c = open(has_stamps);
        let block_max = if has_stamps { 3 } else { 4 };
        let (mut said, mut taken) = ([0u32; 2], 0u32);
        for answer in answers {
            c.kit.forget();
            match answer {
                Answer::Said(leg, x) => {
                    said[leg.index()] |= 1 << x;
                    let it = c.by_leg(leg, x * SEGMENT, 0);
                    c.kit.leg(leg, it.data([b'r'; SEGMENT as usize]));
                }
                // Shown is what both said: beyond a hole too.
                Answer::Taken(x, _) if said[0] & said[1] & 1 << x == 0 => continue,
                Answer::Taken(x, turn) => {
                    taken |= 1 << x;
                    let ack = prefix(taken);
                    let mut blocks = runs(taken, ack);
                    let turn = turn % blocks.len().max(1);
                    blocks.rotate_left(turn);
                    blocks.truncate(3);
                    let it = c.by_client(0, ack * SEGMENT);
                    c.kit.client(it.sack(&numbers(ISS[0], &blocks)));
                }
            }
            for leg in LegId::ALL {
                let all = runs(said[leg.index()], 0);
                for heard in c.kit.on(Link::Server(leg)) {
                    let (_, ack) = c.place(&heard);
                    let told = blocks(&c, &heard);
                    prop_assert!(told.len() <= block_max, "{told:?}");
                    let is_duplicate = told.first().is_some_and(|&(_, t)| t <= ack);
                    let rest = &told[usize::from(is_duplicate)..];
                    for (i, &(f, t)) in told.iter().enumerate() {
                        let is_said = all.iter().any(|&(from, to)| from <= f && t <= to);
                        prop_assert!(f < t && is_said, "{leg:?} never said {f}..{t}: {told:?}");
                        let is_other = |&(from, to): &(u32, u32)| t <= from || to <= f;
                        prop_assert!(told[..i].iter().all(is_other), "told twice: {told:?}");
                    }
                    prop_assert!(rest.iter().all(|&(f, _)| f > ack), "{told:?} at {ack}");
                }
            }
        }
    }
}
