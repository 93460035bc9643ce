//! The bytes of a capture file, unpacked if need be, through one buffer.
//!
//! A file is read and never mapped: memory stays what the buffer takes, a pipe is as good as a
//! file, and a file that somebody cuts short while it is read is an error and no signal.

use std::io::{self, Cursor, ErrorKind, Read};

/// Bytes read at once: what the second-level cache of a processor holds.
const CHUNK_BYTES: usize = 256 << 10;

/// Reads ahead, and lends what it has read.
pub(super) struct Source {
    inner: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    /// What is read and not skipped yet.
    start: usize,
    end: usize,
    /// Place of `start` in the unpacked file.
    at: u64,
    is_end: bool,
    error: Option<io::Error>,
}

impl Source {
    /// Begins to read; unpacks gzip.
    pub(super) fn new(mut inner: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut magic = [0; 2];
        let mut len = 0;
        while len < magic.len() {
            match inner.read(&mut magic[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let whole = Cursor::new(magic).take(len as u64).chain(inner);
        let inner: Box<dyn Read + Send> = match magic {
            [0x1f, 0x8b] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
            _ => Box::new(whole),
        };
        let buffer = vec![0; CHUNK_BYTES];
        Ok(Self { inner, buffer, start: 0, end: 0, at: 0, is_end: false, error: None })
    }

    /// Place of the next byte in the unpacked file.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// What ended the file before its time, once the end has been reached.
    pub(super) const fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// The next `len` bytes, or as many as there are: fewer at the end of the file only.
    pub(super) fn want(&mut self, len: usize) -> &[u8] {
        if self.end - self.start < len && !self.is_end {
            self.fill(len);
        }
        let there = len.min(self.end - self.start);
        &self.buffer[self.start..self.start + there]
    }

    /// What [`Self::want`] has brought already: at least as much as it was asked for last.
    pub(super) fn there(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Goes on `len` bytes, or to the end.
    pub(super) fn skip(&mut self, mut len: u64) {
        loop {
            let step = len.min((self.end - self.start) as u64);
            self.start += step as usize;
            self.at += step;
            len -= step;
            if len == 0 || self.is_end {
                return;
            }
            self.fill(1);
        }
    }

    fn fill(&mut self, len: usize) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < len {
            self.buffer.resize(len.next_multiple_of(CHUNK_BYTES), 0);
        }
        while self.end < len && !self.is_end {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.is_end = true,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // What came before it can still be read.
                    self.is_end = true;
                    self.error = Some(error);
                }
            }
        }
    }
}
