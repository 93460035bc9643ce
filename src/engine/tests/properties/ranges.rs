//! A set of ranges is a set of positions: every set over eight positions, every question.

use crate::engine::ranges::Ranges;
use crate::wire::Offset;

/// Positions of the universe. It stands across the mark of 32 bits.
const SIZE: u32 = 8;
const SETS: u32 = 1 << SIZE;
const FIRST: u64 = (1 << 32) - 4;

fn at(x: u32) -> Offset {
    Offset::new(FIRST + u64::from(x))
}

/// The positions from `from` to before `to`.
fn run(from: u32, to: u32) -> u32 {
    (from..to).map(|x| 1 << x).sum()
}

fn ranges_of(set: u32) -> Ranges {
    let mut ranges = Ranges::default();
    for x in (0..SIZE).filter(|x| set & 1 << x != 0) {
        assert!(ranges.insert(at(x), at(x + 1)));
    }
    ranges
}

/// The positions of `ranges`, which are in order, not empty, and do not touch.
fn set_of(ranges: &Ranges) -> u32 {
    let mut set = 0;
    let mut end = None;
    for (from, to) in ranges.iter() {
        assert!(from < to && end.is_none_or(|end| end < from), "{ranges:?}");
        end = Some(to);
        set |= run((from.raw() - FIRST) as u32, (to.raw() - FIRST) as u32);
    }
    set
}

/// The longest runs of ones in `set`, within `[from, to)`.
fn runs(set: u32, from: u32, to: u32) -> Vec<(Offset, Offset)> {
    let mut found: Vec<(Offset, Offset)> = Vec::new();
    for x in (from..to).filter(|x| set & 1 << x != 0) {
        match found.last_mut() {
            Some((_, end)) if *end == at(x) => *end = at(x + 1),
            _ => found.push((at(x), at(x + 1))),
        }
    }
    found
}

#[test]
fn every_question_has_the_answer_of_a_set() {
    for set in 0..SETS {
        let ranges = ranges_of(set);
        assert_eq!(set_of(&ranges), set);
        let all = runs(set, 0, SIZE);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), all);
        assert_eq!((ranges.len(), ranges.is_empty()), (all.len(), set == 0));
        assert_eq!(ranges.first(), all.first().copied());
        for from in 0..=SIZE {
            let end = (from..SIZE).take_while(|x| set & 1 << x != 0).count() as u32;
            assert_eq!(ranges.run_end(at(from)), at(from + end));
            let mut trimmed = ranges.clone();
            trimmed.trim(at(from));
            assert_eq!(set_of(&trimmed), set & run(from, SIZE));
            for to in from..=SIZE {
                let wanted = run(from, to);
                let mut grown = ranges.clone();
                assert_eq!(grown.insert(at(from), at(to)), set & wanted != wanted);
                assert_eq!(set_of(&grown), set | wanted);
                assert_eq!(ranges.gaps(at(from), at(to)), runs(!set, from, to));
                if from < to {
                    assert_eq!(ranges.covers(at(from), at(to)), set & wanted == wanted);
                }
            }
        }
    }
}

#[test]
fn every_intersection_is_that_of_the_sets() {
    let all: Vec<Ranges> = (0..SETS).map(ranges_of).collect();
    for (a, ranges) in (0..).zip(&all) {
        for (b, other) in (0..).zip(&all) {
            assert_eq!(set_of(&ranges.intersection(other)), a & b);
        }
    }
}
