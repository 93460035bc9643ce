//! Memory that is a file: what one has and another one lacks, piece by piece.
//!
//! Reads and writes, and maps nothing: a file that somebody cuts short is an error here and ends no
//! process. It knows no guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What is written at once, and noted as written.
pub(super) const PAGE: u64 = 4096;
/// How much is looked at in one step: half a millisecond or so.
const STEP_BYTES: u64 = 1 << 20;

/// One memory that is to become like another one.
#[derive(Debug)]
pub(super) struct Pages {
    from: File,
    to: File,
    len: u64,
    /// Where they may differ, and what is copied without a look at the other one's.
    todo: VecDeque<(Range<u64>, Known)>,
    ours: Vec<u8>,
    theirs: Vec<u8>,
    copied: u64,
}

/// What is known of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing: what is equal is left alone.
    Nothing,
    /// It was written.
    Written,
}

impl Pages {
    /// Of two files of one length.
    pub(super) fn new(from: File, to: File) -> io::Result<Self> {
        let (len, theirs) = (from.metadata()?.len(), to.metadata()?.len());
        if len != theirs {
            let why = format!("one memory has {len} bytes and the other one {theirs}");
            return Err(io::Error::other(why));
        }
        let buffer = || vec![0; STEP_BYTES as usize];
        let todo = VecDeque::new();
        Ok(Self { from, to, len, todo, ours: buffer(), theirs: buffer(), copied: 0 })
    }

    /// All of it may differ.
    pub(super) fn doubt(&mut self) {
        self.todo.clear();
        self.todo.push_back((0..self.len, Known::Nothing));
    }

    /// These pieces were written.
    pub(super) fn add(&mut self, written: impl IntoIterator<Item = Range<u64>>) {
        let inside = |piece: Range<u64>| piece.start.min(self.len)..piece.end.min(self.len);
        self.todo.extend(written.into_iter().map(|piece| (inside(piece), Known::Written)));
    }

    /// Bytes that are to be looked at.
    pub(super) fn left(&self) -> u64 {
        self.todo.iter().map(|(piece, _)| piece.end.saturating_sub(piece.start)).sum()
    }

    /// Bytes copied so far.
    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    /// Looks at some of it; whether there is more.
    pub(super) fn step(&mut self) -> io::Result<bool> {
        let mut room = STEP_BYTES;
        while room > 0
            && let Some((piece, known)) = self.todo.pop_front()
        {
            let end = piece.end.min(piece.start + room);
            room -= end.saturating_sub(piece.start);
            if end < piece.end {
                self.todo.push_front((end..piece.end, known));
            }
            self.copy(piece.start..end, known)?;
        }
        Ok(!self.todo.is_empty())
    }

    fn copy(&mut self, piece: Range<u64>, known: Known) -> io::Result<()> {
        let len = usize::try_from(piece.end.saturating_sub(piece.start)).unwrap_or(0);
        let ours = &mut self.ours[..len];
        self.from.read_exact_at(ours, piece.start)?;
        if known == Known::Written {
            self.copied += len as u64;
            return self.to.write_all_at(ours, piece.start);
        }
        let theirs = &mut self.theirs[..len];
        self.to.read_exact_at(theirs, piece.start)?;
        if ours == theirs {
            return Ok(());
        }
        let both = ours.chunks(PAGE as usize).zip(theirs.chunks(PAGE as usize));
        for (nth, (page, _)) in both.enumerate().filter(|(_, (page, other))| page != other) {
            self.to.write_all_at(page, piece.start + nth as u64 * PAGE)?;
            self.copied += page.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(content, 0).expect("room");
        file
    }

    fn content(file: &File, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).expect("as long as before");
        bytes
    }

    #[test]
    fn in_doubt_what_differs_is_copied_and_nothing_else() {
        let mut ours = vec![1; (3 * STEP_BYTES + 2 * PAGE) as usize];
        let theirs = ours.clone();
        let last = ours.len() - 1;
        for at in [0, STEP_BYTES as usize - 1, STEP_BYTES as usize, last] {
            ours[at] = 2;
        }
        let (from, to) = (file(&ours), file(&theirs));
        let read = to.try_clone().expect("a file");
        let mut pages = Pages::new(from, to).expect("equally long");
        pages.doubt();
        let steps =
            std::iter::repeat_with(|| pages.step().expect("files")).take_while(|more| *more);
        assert_eq!(steps.count(), 3);
        assert_eq!(content(&read, ours.len()), ours);
        assert_eq!((pages.copied(), pages.left()), (4 * PAGE, 0));
    }

    #[test]
    fn what_was_written_is_copied_and_nothing_else() {
        let len = 2 * STEP_BYTES as usize;
        let (ours, theirs) = (vec![1; len], vec![0; len]);
        let (from, to) = (file(&ours), file(&theirs));
        let read = to.try_clone().expect("a file");
        let mut pages = Pages::new(from, to).expect("equally long");
        // The last one ends behind the end.
        pages.add([PAGE..3 * PAGE, 9 * PAGE..10 * PAGE, len as u64 - PAGE..len as u64 + PAGE]);
        assert_eq!(pages.left(), 4 * PAGE);
        assert!(!pages.step().expect("files"));
        let mut want = theirs;
        for at in [1, 2, 9, len / PAGE as usize - 1] {
            want[at * PAGE as usize..(at + 1) * PAGE as usize].fill(1);
        }
        assert!(content(&read, len) == want);
        assert_eq!(pages.copied(), 4 * PAGE);
    }

    #[test]
    fn memories_of_two_lengths_are_refused() {
        let error = Pages::new(file(&[0; 4096]), file(&[0; 8192])).expect_err("two lengths");
        assert!(error.to_string().contains("4096 bytes"), "{error}");
    }
}
