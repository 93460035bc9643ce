//! A set of stream ranges: half-open, disjoint, never touching. Bounded by its owner.

use std::collections::BTreeMap;

use super::pack::{Pack, Reader, Writer};
use crate::wire::Offset;

/// A set of ranges `[from, to)` of stream positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// from -> to
    map: BTreeMap<Offset, Offset>,
}

impl Ranges {
    /// Adds `[from, to)`; true if anything in it is new.
    pub fn insert(&mut self, mut from: Offset, mut to: Offset) -> bool {
        if from >= to || self.covers(from, to) {
            return false;
        }
        while let Some((&f, &t)) = self.map.range(..=to).next_back() {
            if t < from {
                break;
            }
            self.map.remove(&f);
            from = from.min(f);
            to = to.max(t);
        }
        self.map.insert(from, to);
        true
    }

    /// Whether all of `[from, to)` is in the set.
    pub fn covers(&self, from: Offset, to: Offset) -> bool {
        self.map.range(..=from).next_back().is_some_and(|(_, &t)| t >= to)
    }

    /// Forgets everything below `floor`.
    pub fn trim(&mut self, floor: Offset) {
        if self.map.is_empty() {
            return;
        }
        while let Some((&f, &t)) = self.map.first_key_value() {
            if f >= floor {
                break;
            }
            self.map.remove(&f);
            if t > floor {
                self.map.insert(floor, t);
            }
        }
        if self.map.is_empty() {
            self.map = BTreeMap::new(); // the map itself would keep its last node
        }
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (Offset, Offset)> + '_ {
        self.map.iter().map(|(&f, &t)| (f, t))
    }

    /// The lowest range.
    pub fn first(&self) -> Option<(Offset, Offset)> {
        self.map.first_key_value().map(|(&f, &t)| (f, t))
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Where the contiguous run that begins at or before `at` ends; `at` itself if there is none.
    pub fn run_end(&self, at: Offset) -> Offset {
        match self.map.range(..=at).next_back() {
            Some((_, &t)) if t > at => t,
            _ => at,
        }
    }

    /// The parts of `[from, to)` that are not in the set.
    pub fn gaps(&self, from: Offset, to: Offset) -> Vec<(Offset, Offset)> {
        let mut gaps = Vec::new();
        let mut at = self.run_end(from);
        for (&f, &t) in self.map.range(at..) {
            if f >= to {
                break;
            }
            if f > at {
                gaps.push((at, f));
            }
            at = t;
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    /// What is in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (f, t) in self.iter() {
            let start = other.map.range(..=f).next_back().map_or(f, |(&of, _)| of);
            for (&of, &ot) in other.map.range(start..t) {
                let (lo, hi) = (f.max(of), t.min(ot));
                if lo < hi {
                    both.insert(lo, hi);
                }
            }
        }
        both
    }
}

impl Pack for Ranges {
    fn pack(&self, w: &mut Writer) {
        self.iter().collect::<Vec<_>>().pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self { map: Vec::unpack(r).into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(pairs: &[(u64, u64)]) -> Ranges {
        let mut r = Ranges::default();
        for &(f, t) in pairs {
            r.insert(Offset::START + f, Offset::START + t);
        }
        r
    }

    proptest! {
        /// The set does what a plain set of positions does.
        #[test]
        fn it_is_a_set(a in prop::collection::vec((0u64..40, 0u64..12), 0..8),
                       b in prop::collection::vec((0u64..40, 0u64..12), 0..8), cut in 0u64..50) {
            let a: Vec<_> = a.into_iter().map(|(f, l)| (f, f + l)).collect();
            let b: Vec<_> = b.into_iter().map(|(f, l)| (f, f + l)).collect();
            let has = |s: &[(u64, u64)], x| s.iter().any(|&(f, t)| f <= x && x < t);
            let (ra, rb) = (of(&a), of(&b));
            let both = ra.intersection(&rb);
            let mut trimmed = ra.clone();
            trimmed.trim(Offset::START + cut);
            let gaps = ra.gaps(Offset::START + 5, Offset::START + 45);
            for x in 0..60 {
                let at = (Offset::START + x, Offset::START + (x + 1));
                prop_assert_eq!(ra.covers(at.0, at.1), has(&a, x));
                prop_assert_eq!(both.covers(at.0, at.1), has(&a, x) && has(&b, x));
                prop_assert_eq!(trimmed.covers(at.0, at.1), has(&a, x) && x >= cut);
                let gap = gaps.iter().any(|&(f, t)| f <= at.0 && at.0 < t);
                prop_assert_eq!(gap, !has(&a, x) && (5..45).contains(&x));
            }
        }
    }
}
