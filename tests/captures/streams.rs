//! What was said is heard from captures that lack the beginning, a side, or the rest of each
//! packet, and from pieces; and memory has an end.

use bytes::Bytes;
use shadowvm::replay::survey::Survey;
use shadowvm::replay::walk::{Index, Listener, Moment, Spot, Walk};
use shadowvm::replay::{Capture, End, Options, Report, Rules, Side, Verdict, diff};
use shadowvm::wire::build::fragments;
use shadowvm::wire::{Frame, Offload};

use crate::made::{Made, Random, Said, Sent, Way, make, travel, write, write_as};

fn compare(ours: &Made, theirs: &Made, options: &Options) -> Report {
    let [a, b] = [ours, theirs].map(|made| Capture::bytes("x", Bytes::from(made.bytes.clone())));
    diff([&a, &b], options).unwrap()
}

fn survey(made: &Made) -> Survey {
    Survey::of(&Capture::bytes("x", Bytes::from(made.bytes.clone()))).unwrap()
}

/// Conversations of random bytes, from this port on.
fn random(seed: u64, count: u16, bytes: u64) -> Vec<Said> {
    let mut random = Random(seed);
    let mut turn = |side: Side| {
        let len = random.from(1..bytes);
        (side, (0..len).map(|_| random.next() as u8).collect::<Vec<u8>>())
    };
    let mut talk = |port| {
        let turns = [Side::Client, Side::Server, Side::Client, Side::Server].map(&mut turn);
        Said::new(port, turns.to_vec())
    };
    (0..count).map(|n| talk(40_000 + n)).collect()
}

fn strict() -> Options {
    Options { rules: Rules::none(), ..Options::default() }
}

#[test]
fn a_capture_that_begins_in_the_middle_is_heard_from_there() {
    for seed in 0..50 {
        let said = random(seed, 3, 3000);
        let begun = |way: &Way| {
            let is_handshake = |sent: &Sent| sent.is_syn();
            let packets = travel(&said, way);
            write(&said, way, packets.into_iter().filter(|sent| !is_handshake(sent)).collect())
        };
        let (ours, theirs) = (begun(&Way::plain(seed)), begun(&Way::bad(seed + 1)));
        let report = compare(&ours, &theirs, &strict());
        assert_eq!(report.verdict(), Verdict::Same, "{seed}: {report:#?}");
        let bytes: usize = said.iter().flat_map(|s| s.turns.iter()).map(|(_, b)| b.len()).sum();
        assert_eq!(report.compared_bytes, bytes as u64, "{seed}");
    }
}

#[test]
fn one_side_is_heard_without_the_other() {
    let said = random(1, 3, 3000);
    let only = |side: Side, way: &Way| {
        let packets = travel(&said, way).into_iter().filter(|sent| sent.side == side);
        write(&said, way, packets.collect())
    };
    for side in Side::BOTH {
        let (ours, theirs) = (only(side, &Way::plain(1)), only(side, &Way::bad(2)));
        let report = compare(&ours, &theirs, &strict());
        assert_eq!(report.verdict(), Verdict::Same, "{report:#?}");
        let bytes: usize = said.iter().map(|said| said.stream(side).len()).sum();
        assert_eq!(report.compared_bytes, bytes as u64);
    }
}

#[test]
fn pieces_of_datagrams_are_put_together() {
    let said = random(2, 3, 6000);
    let way = Way::plain(3);
    let pieces = |frame: Vec<u8>| {
        let mut frame = frame;
        // May be cut on the way, as of hosts that do not look for the path's MTU.
        frame[20] &= !0x40;
        let sum: u32 = (14..34)
            .step_by(2)
            .filter(|at| *at != 24)
            .map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let frame = Frame::from_wire(Bytes::from(frame), Offload::default());
        fragments(frame, 576).iter().map(|piece| (piece.to_vec(), piece.len())).collect()
    };
    let ours = write_as(&said, &way, travel(&said, &way), pieces);
    assert!(survey(&ours).facts.pieces > 20);
    let report = compare(&ours, &make(&said, &Way::bad(4)), &strict());
    assert_eq!(report.verdict(), Verdict::Same, "{report:#?}");
}

#[test]
fn what_the_snap_length_cut_off_is_counted_as_missing() {
    let said = random(3, 3, 6000);
    let way = Way { segment_max: 700, ..Way::plain(3) };
    let packets = travel(&said, &way);
    let cut = write_as(&said, &way, packets.clone(), |frame| {
        vec![(frame[..frame.len().min(200)].to_vec(), frame.len())]
    });
    // 66 bytes are headers.
    let there: usize = packets.iter().map(|sent| sent.payload.len().min(134)).sum();
    let all: usize = packets.iter().map(|sent| sent.payload.len()).sum();
    let survey = survey(&cut);
    assert_eq!(
        survey.totals(),
        (there as u64, all as u64 - there as u64, all as u64 - there as u64)
    );
    assert!(survey.talks.iter().all(|(_, heard)| heard.iter().all(|h| h.end == Some(End::Closed))));
    let report = compare(&make(&said, &Way::bad(5)), &cut, &strict());
    assert_eq!(report.verdict(), Verdict::Unknown);
    assert_eq!(report.unknown_bytes, (all - there) as u64);
}

#[test]
fn a_port_that_is_used_again_is_another_conversation() {
    let mut said = random(4, 2, 3000);
    said[1].client = said[0].client;
    let one_by_one = |seed: u64| {
        let way = Way::plain(seed);
        let mut packets = travel(&said, &way);
        packets.sort_by_key(|sent| sent.talk);
        write(&said, &way, packets)
    };
    let report = compare(&one_by_one(1), &one_by_one(2), &strict());
    assert_eq!((report.verdict(), report.paired), (Verdict::Same, 2), "{report:#?}");
}

#[test]
fn captures_in_another_order_are_compared_in_little_memory() {
    let said = random(5, 40, 20_000);
    let ordered = |seed: u64, key: fn(&Sent) -> usize| {
        let way = Way::plain(seed);
        let mut packets = travel(&said, &way);
        packets.sort_by_key(key);
        write(&said, &way, packets)
    };
    let ours = ordered(1, |sent| sent.talk);
    let theirs = ordered(2, |sent| usize::MAX - sent.talk);
    let options = Options { ahead_bytes_max: 50_000, ..strict() };
    let report = compare(&ours, &theirs, &options);
    assert_eq!((report.verdict(), report.same), (Verdict::Same, 40), "{report:#?}");
    let mut changed = said.clone();
    *changed[7].byte_mut(Side::Server, 11) ^= 1;
    let report = compare(&ours, &make(&changed, &Way::bad(3)), &options);
    assert_eq!((report.same, report.different), (39, 1));
    assert_eq!(report.differences[0].parting.at, [11; 2]);
}

/// Checks that nothing is heard before what it answers.
struct Causes {
    said: Vec<Said>,
    heard: Vec<[u64; 2]>,
}

impl Listener for Causes {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], _: Moment) {
        let Spot { talk, side, at } = spot;
        let heard = &mut self.heard[talk];
        assert_eq!(heard[side.index()], at);
        heard[side.index()] += bytes.len() as u64;
        let (mut before, mut other) = (0, 0);
        for (who, said) in &self.said[talk].turns {
            if before == heard[side.index()] {
                break;
            }
            match *who == side {
                // What is heard by now ends in this turn, or behind it.
                true if before + said.len() as u64 >= heard[side.index()] => break,
                true => before += said.len() as u64,
                false => other += said.len() as u64,
            }
        }
        assert!(heard[side.other().index()] >= other, "{side:?} at {at} answers {other} bytes");
    }
}

#[test]
fn nothing_is_heard_before_what_it_answers() {
    for seed in 0..200 {
        let mut said = random(seed, 1, 400);
        said.extend(random(seed + 1, 1, 4000));
        said[1].client.set_port(50_000);
        let made = make(&said, &Way::bad(seed));
        let capture = Capture::bytes("x", Bytes::from(made.bytes));
        let index = Index::of(&capture).unwrap();
        let of = |talk: &shadowvm::replay::Talk| {
            let client = talk.address(Side::Client);
            said.iter().find(|said| said.client == client).unwrap().clone()
        };
        let said: Vec<Said> = index.talks.list().iter().map(of).collect();
        let mut causes = Causes { heard: vec![[0; 2]; said.len()], said };
        let mut walk = Walk::begin(&capture, Some(&index)).unwrap();
        while walk.step(&mut causes) {}
        for (heard, said) in causes.heard.iter().zip(&causes.said) {
            assert_eq!(*heard, Side::BOTH.map(|side| said.stream(side).len() as u64));
        }
    }
}
