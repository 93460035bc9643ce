//! The bytes of one direction of one leg, by [`Offset`]: reassembly without copying.
//!
//! The first copy of a byte stays; what overlaps it later is dropped. How far ahead bytes may lie
//! is bounded by the window that the gateway advertised; the owner refuses what lies beyond.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::pack::{Pack, Reader, Writer};
use crate::wire::Offset;

/// Bytes held, with gaps, from `base` on.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Everything below is forgotten.
    base: Offset,
    /// End of the contiguous run that begins at `base`.
    contiguous: Offset,
    /// Start of a chunk -> its bytes; chunks never overlap.
    chunks: BTreeMap<Offset, Bytes>,
    held: usize,
}

impl Stream {
    /// An empty stream whose next byte is `base`.
    pub const fn new(base: Offset) -> Self {
        Self { base, contiguous: base, chunks: BTreeMap::new(), held: 0 }
    }

    /// The first byte that is not forgotten.
    pub const fn base(&self) -> Offset {
        self.base
    }

    /// The end of the contiguous run from `base`: the next byte expected in order.
    pub const fn contiguous(&self) -> Offset {
        self.contiguous
    }

    /// Bytes held.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Pieces that they are held in.
    pub fn pieces(&self) -> usize {
        self.chunks.len()
    }

    /// Inserts `bytes` at `at`; returns how many of them are new.
    pub fn insert(&mut self, mut at: Offset, mut bytes: Bytes) -> usize {
        let before = self.held;
        if at < self.base {
            let cut = (self.base.since(at) as usize).min(bytes.len());
            bytes = bytes.slice(cut..);
            at = self.base;
        }
        // What stands before may reach into the new bytes.
        if let Some((&f, chunk)) = self.chunks.range(..=at).next_back() {
            let end = f + chunk.len() as u64;
            if end > at {
                let cut = (end.since(at) as usize).min(bytes.len());
                bytes = bytes.slice(cut..);
                at = end;
            }
        }
        while !bytes.is_empty() {
            let next = self.chunks.range(at..).next().map(|(&f, c)| (f, f + c.len() as u64));
            let Some((from, end)) = next else {
                self.held += bytes.len();
                self.chunks.insert(at, bytes);
                break;
            };
            let room = (from.since(at) as usize).min(bytes.len());
            if room > 0 {
                self.chunks.insert(at, bytes.slice(..room));
                self.held += room;
            }
            let skip = (end.since(at) as usize).min(bytes.len());
            bytes = bytes.slice(skip..);
            at = end;
        }
        self.extend_run();
        self.held - before
    }

    fn extend_run(&mut self) {
        while let Some(chunk) = self.chunks.get(&self.contiguous) {
            self.contiguous = self.contiguous + chunk.len() as u64;
        }
    }

    /// The bytes from `at` to the end of the chunk they stand in; `None` if `at` is not held.
    pub fn chunk_at(&self, at: Offset) -> Option<Bytes> {
        let (&f, chunk) = self.chunks.range(..=at).next_back()?;
        let skip = at.since(f) as usize;
        (skip < chunk.len()).then(|| chunk.slice(skip..))
    }

    /// Like [`Self::chunk_at`], at most `max` bytes, without touching the reference count.
    pub fn slice_at(&self, at: Offset) -> &[u8] {
        match self.chunks.range(..=at).next_back() {
            Some((&f, chunk)) => chunk.get(at.since(f) as usize..).unwrap_or(&[]),
            None => &[],
        }
    }

    /// Where the bytes held at or after `at` begin.
    pub fn next_held(&self, at: Offset) -> Option<Offset> {
        if !self.slice_at(at).is_empty() {
            return Some(at);
        }
        self.chunks.range(at..).next().map(|(&f, _)| f)
    }

    /// All that is held, lowest first.
    pub fn chunks(&self) -> impl Iterator<Item = (Offset, &Bytes)> {
        self.chunks.iter().map(|(&at, bytes)| (at, bytes))
    }

    /// Whether anything is held beyond the contiguous run.
    pub fn has_island(&self) -> bool {
        self.chunks.range(self.contiguous..).next().is_some()
    }

    /// The first ranges held beyond the contiguous run, at most `max`.
    pub fn islands(&self, max: usize) -> Vec<(Offset, Offset)> {
        let mut islands: Vec<(Offset, Offset)> = Vec::new();
        for (&from, chunk) in self.chunks.range(self.contiguous..) {
            let to = from + chunk.len() as u64;
            match islands.len() {
                n if n > 0 && islands[n - 1].1 == from => islands[n - 1].1 = to,
                n if n == max => break,
                _ => islands.push((from, to)),
            }
        }
        islands
    }

    /// Whether all of `[from, to)` is held.
    pub fn covers(&self, mut from: Offset, to: Offset) -> bool {
        while from < to {
            let n = self.slice_at(from).len();
            if n == 0 {
                return false;
            }
            from = from + n as u64;
        }
        true
    }

    /// Forgets everything below `floor`.
    pub fn trim(&mut self, floor: Offset) {
        if floor <= self.base {
            return;
        }
        while let Some(entry) = self.chunks.first_entry() {
            let at = *entry.key();
            if at >= floor {
                break;
            }
            let chunk = entry.remove();
            self.held -= chunk.len();
            let end = at + chunk.len() as u64;
            if end > floor {
                let rest = chunk.slice(floor.since(at) as usize..);
                self.held += rest.len();
                self.chunks.insert(floor, rest);
            }
        }
        self.base = floor;
        if self.contiguous < floor {
            self.contiguous = floor;
            self.extend_run();
        }
    }

    /// Gives back the room of bytes that are gone: the map itself keeps its last node.
    pub fn give_back(&mut self) {
        if self.chunks.is_empty() {
            self.chunks = BTreeMap::new();
        }
    }

    /// Forgets everything and begins again at `base`.
    pub fn restart(&mut self, base: Offset) {
        *self = Self::new(base);
    }
}

/// At rest it holds nothing, and so has nothing but its beginning.
impl Pack for Stream {
    fn pack(&self, w: &mut Writer) {
        let Self { base, contiguous, chunks, held: _ } = self;
        base.pack(w);
        match w.is_whole() {
            true => (*contiguous, chunks.len()).pack(w),
            false => debug_assert!(chunks.is_empty() && contiguous == base, "bytes are under way"),
        }
        for (at, bytes) in chunks {
            at.pack(w);
            bytes.pack(w);
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let mut stream = Self::new(Pack::unpack(r));
        if r.is_whole() {
            let (contiguous, count): (Offset, usize) = Pack::unpack(r);
            for _ in 0..count {
                if !r.is_good_so_far() {
                    break;
                }
                let (at, bytes) = Pack::unpack(r);
                stream.insert(at, bytes);
            }
            if stream.contiguous != contiguous {
                r.damaged();
            }
        }
        stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order and overlap, the stream holds exactly the bytes given.
        #[test]
        fn bytes_come_out_where_they_went_in(
            parts in prop::collection::vec((0u64..60, 1usize..20), 1..12), floor in 0u64..60) {
            let byte = |x: u64| (x * 7 + 3) as u8;
            let base = Offset::START;
            let mut s = Stream::new(base);
            let mut model = std::collections::BTreeMap::new();
            for (at, len) in parts {
                let bytes: Vec<u8> = (at..at + len as u64).map(byte).collect();
                let new = s.insert(base + at, Bytes::from(bytes));
                let before = model.len();
                for x in at..at + len as u64 { model.insert(x, ()); }
                prop_assert_eq!(new, model.len() - before);
            }
            s.trim(base + floor);
            model.retain(|&x, ()| x >= floor);
            prop_assert_eq!(s.held(), model.len());
            for x in 0..90u64 {
                let here = s.slice_at(base + x).first().copied();
                prop_assert_eq!(here, model.contains_key(&x).then(|| byte(x)));
            }
            let run = (floor..).take_while(|x| model.contains_key(x)).count() as u64;
            prop_assert_eq!(s.contiguous(), base + floor + run);
        }
    }
}
