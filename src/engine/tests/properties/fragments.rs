//! Reassembly: the pieces of a datagram in any order are the datagram; any overlap, a repetition
//! included, discards all of it (RFC 5722); what waits is bounded and forgotten.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::engine::fragments::{Fragments, Reassembly};
use crate::engine::{Duration, Instant, Link};
use crate::wire::{Frame, L2, L3, Mac, Offload, Packet, Vlans, build, checksum, parse};

const UDP: u8 = 17;

fn l2() -> L2 {
    L2 { dst: Mac([2, 0, 0, 0, 0, 1]), src: Mac([2, 0, 0, 0, 0, 2]), vlans: Vlans::default() }
}

fn l3(is_v4: bool, id: u16) -> L3 {
    let (src, dst) = match is_v4 {
        true => ("192.0.2.1", "192.0.2.2"),
        false => ("2001:db8::1", "2001:db8::2"),
    };
    let ip = |text: &str| text.parse().expect("an address");
    let id = if is_v4 { id } else { 0 };
    L3 { src: ip(src), dst: ip(dst), ttl: 64, tos: 0, dont_fragment: true, id, flow_label: 0 }
}

/// A datagram of which no other one has the same bytes.
fn datagram(is_v4: bool, id: u16, len: usize) -> Frame {
    let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8 ^ id as u8).collect();
    let whole = [&[0, 9, 0, 9], &id.to_be_bytes()[..], &[0, 0], &bytes].concat();
    build::datagram(&l2(), &l3(is_v4, id), UDP, &whole)
}

fn insert(all: &mut Fragments, now: Instant, piece: &Frame) -> Reassembly {
    let Ok(Packet::Fragment(fragment)) = parse::parse(piece) else { panic!("no fragment") };
    all.insert(now, Link::Client, &fragment, piece)
}

/// One piece of one of two datagrams, by its place in units of 8 bytes.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u16,
    at: usize,
    len: usize,
    is_last: bool,
}

fn any_piece() -> impl Strategy<Value = Piece> {
    (0u16..2, 0usize..6, 1usize..4, any::<bool>())
        // A first piece that is the last one too is no piece.
        .prop_map(|(id, at, len, is_last)| Piece { id, at, len, is_last: is_last && at > 0 })
}

/// The IPv4 frame of a piece; its bytes depend on their place alone.
fn frame_of(piece: Piece) -> Frame {
    let place = |at: usize| (at * 8..(at + 1) * 8).map(move |x| x as u8 ^ piece.id as u8);
    let bytes: Vec<u8> = (piece.at..piece.at + piece.len).flat_map(place).collect();
    let mut frame = build::datagram(&l2(), &l3(true, piece.id), UDP, &bytes).to_vec();
    let field = piece.at as u16 | if piece.is_last { 0 } else { 0x2000 };
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    frame[24..26].fill(0);
    let check = checksum::Sum::new().bytes(&frame[14..34]).check();
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    Frame::from_wire(frame.into(), Offload::default())
}

/// What a reader of RFC 791 and RFC 5722 would keep of one datagram.
#[derive(Debug, Default)]
struct Model {
    has: [bool; 9],
    end: Option<usize>,
    is_refused: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Kept,
    Refused,
    Whole(usize),
}

impl Model {
    fn insert(&mut self, piece: Piece) -> Verdict {
        let end = piece.at + piece.len;
        let repeats = self.has[piece.at..end].contains(&true);
        let highest = self.has.iter().rposition(|&has| has).map_or(0, |x| x + 1);
        let contradicts = match (self.end, piece.is_last) {
            (Some(known), true) => known != end,
            (Some(known), false) => end > known,
            (None, true) => highest > end,
            (None, false) => false,
        };
        self.is_refused |= repeats || contradicts;
        if self.is_refused {
            return Verdict::Refused;
        }
        self.has[piece.at..end].fill(true);
        self.end = self.end.or(piece.is_last.then_some(end));
        match self.end {
            Some(end) if self.has[..end].iter().all(|&has| has) => Verdict::Whole(end),
            _ => Verdict::Kept,
        }
    }
}

proptest! {
    /// Two datagrams whose pieces come in any order, one among the other's, are both whole.
    #[test]
    fn pieces_in_any_order_are_the_datagram(
        is_v4: bool, lens in (1usize..4000, 1usize..4000), mtu in 100usize..1500,
        order in prop::collection::vec(any::<u32>(), 100),
    ) {
        let whole = [datagram(is_v4, 7, lens.0), datagram(is_v4, 8, lens.1)];
        let mut pieces: Vec<(usize, Frame)> = Vec::new();
        for (index, whole) in whole.iter().enumerate() {
            let cut = build::fragments(whole.clone(), mtu);
            pieces.extend(cut.into_iter().filter(|p| p != whole).map(|p| (index, p)));
        }
        let key = |at: usize| order[at % order.len()].rotate_left((at / order.len()) as u32);
        let mut places: Vec<usize> = (0..pieces.len()).collect();
        places.sort_by_key(|&at| key(at));
        let mut all = Fragments::default();
        let mut left = [0, 1].map(|index| pieces.iter().filter(|(i, _)| *i == index).count());
        for place in places {
            let (index, piece) = &pieces[place];
            left[*index] -= 1;
            match insert(&mut all, Instant::from_millis(1), piece) {
                Reassembly::Complete(frame) => {
                    prop_assert_eq!(left[*index], 0);
                    prop_assert_eq!(frame.to_vec(), whole[*index].to_vec());
                }
                Reassembly::Kept => prop_assert!(left[*index] > 0),
                Reassembly::Refused => prop_assert!(false, "refused"),
            }
        }
    }

    /// Pieces at random, gaps, repetitions, overlaps and contradictions among them: the verdict is
    /// the model's, and no byte of a discarded datagram comes out.
    #[test]
    fn overlaps_discard_and_nothing_else_does(pieces in prop::collection::vec(any_piece(), 1..14)) {
        let mut all = Fragments::default();
        let mut models: BTreeMap<u16, Model> = BTreeMap::new();
        for piece in pieces {
            let expected = models.entry(piece.id).or_default().insert(piece);
            match (insert(&mut all, Instant::from_millis(1), &frame_of(piece)), expected) {
                (Reassembly::Kept, Verdict::Kept) | (Reassembly::Refused, Verdict::Refused) => {}
                (Reassembly::Complete(frame), Verdict::Whole(end)) => {
                    let bytes: Vec<u8> = (0..end * 8).map(|x| x as u8 ^ piece.id as u8).collect();
                    prop_assert_eq!(frame.to_vec()[34..].to_vec(), bytes);
                    models.remove(&piece.id);
                }
                (got, expected) => prop_assert!(false, "{got:?}, not {expected:?}"),
            }
        }
    }
}

/// An unfinished datagram is forgotten after five seconds, a discarded one too; then its number is
/// free again.
#[test]
fn what_waits_is_forgotten() {
    let first = Piece { id: 1, at: 0, len: 2, is_last: false };
    let last = Piece { id: 1, at: 2, len: 1, is_last: true };
    let age = Duration::from_secs(5);
    let mut all = Fragments::default();
    let mut now = Instant::from_millis(1);
    for spoiler in [None, Some(first)] {
        assert!(matches!(insert(&mut all, now, &frame_of(first)), Reassembly::Kept));
        if let Some(spoiler) = spoiler {
            assert!(matches!(insert(&mut all, now, &frame_of(spoiler)), Reassembly::Refused));
            let soon = now + age - Duration::from_millis(1);
            assert!(matches!(insert(&mut all, soon, &frame_of(last)), Reassembly::Refused));
        }
        now = now + age;
        assert!(matches!(insert(&mut all, now, &frame_of(last)), Reassembly::Kept));
        now = now + age;
    }
}

/// Whatever is begun and never finished: no more than 1024 datagrams and 4 MiB wait.
#[test]
fn what_waits_is_bounded() {
    let now = Instant::from_millis(1);
    let mut all = Fragments::default();
    let pieces = |id| build::fragments(datagram(true, id, 3000), 1500);
    let kept =
        |all: &mut Fragments, piece: &Frame| matches!(insert(all, now, piece), Reassembly::Kept);
    assert_eq!((0..2000).filter(|&id| kept(&mut all, &pieces(id)[0])).count(), 1024);
    let mut all = Fragments::default();
    let bytes: usize = (0..200)
        .flat_map(|id| build::fragments(datagram(true, id, 60_000), 9000))
        .map(|piece| {
            let is_last = piece.len() < 9000;
            if !is_last && kept(&mut all, &piece) { piece.len() - 34 } else { 0 }
        })
        .sum();
    assert!(bytes <= 4 << 20 && bytes > (4 << 20) - 9000, "{bytes} bytes wait");
}
