//! Sets of stream offsets as sorted, disjoint, half-open ranges.

/// A set of offsets.
#[derive(Clone, Debug, Default)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `[from, to)`; returns the range that it is part of now.
    pub fn insert(&mut self, mut from: u64, mut to: u64) -> (u64, u64) {
        let first = self.0.partition_point(|&(_, t)| t < from);
        let last = first + self.0[first..].partition_point(|&(f, _)| f <= to);
        if first < last {
            from = from.min(self.0[first].0);
            to = to.max(self.0[last - 1].1);
        }
        self.0.splice(first..last, [(from, to)]);
        (from, to)
    }

    /// Takes out everything below `at`.
    pub fn cut_below(&mut self, at: u64) {
        let gone = self.0.partition_point(|&(_, t)| t <= at);
        self.0.drain(..gone);
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(at);
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The range that holds all of `[from, to)`.
    pub fn around(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        let at = self.0.partition_point(|&(_, t)| t <= from);
        self.0.get(at).copied().filter(|&(f, t)| f <= from && to <= t)
    }

    /// How much of `[from, to)` is in it.
    pub fn bytes_in(&self, from: u64, to: u64) -> u64 {
        self.0.iter().map(|&(f, t)| t.min(to).saturating_sub(f.max(from))).sum()
    }

    /// The first part of `[from, to)` that is not in it.
    pub fn first_gap(&self, mut from: u64, to: u64) -> Option<(u64, u64)> {
        for &(f, t) in &self.0 {
            if f > from {
                return Some((from, f.min(to))).filter(|g| g.0 < g.1);
            }
            from = from.max(t);
        }
        Some((from, to)).filter(|g| g.0 < g.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    /// Against a list of booleans.
    #[test]
    fn agrees_with_a_naive_set() {
        let mut rng = Rng::new(1);
        for _ in 0..300 {
            let (mut set, mut naive) = (Ranges::default(), [false; 64]);
            for _ in 0..12 {
                let from = rng.below(60);
                let to = from + rng.range(1, 64 - from);
                match rng.chance(850) {
                    true => {
                        set.insert(from, to);
                        naive[from as usize..to as usize].fill(true);
                    }
                    false => {
                        set.cut_below(from);
                        naive[..from as usize].fill(false);
                    }
                }
                let all: Vec<_> = set.iter().collect();
                assert!(all.windows(2).all(|w| w[0].1 < w[1].0), "{all:?}");
                assert!(all.iter().all(|(f, t)| f < t), "{all:?}");
                let count = naive[from as usize..].iter().filter(|b| **b).count();
                assert_eq!(set.bytes_in(from, 64), count as u64);
                let gap = (from..64).find(|&i| !naive[i as usize]);
                assert_eq!(set.first_gap(from, 64).map(|g| g.0), gap);
                let is_in = naive[from as usize..to as usize].iter().all(|b| *b);
                assert_eq!(set.around(from, to).is_some(), is_in);
            }
        }
    }
}
