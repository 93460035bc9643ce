//! What is in a file, block by block on a fixed grid, holes told apart from zeros.
//!
//! Both ends cut a file at the same offsets, so each can hash its own without waiting for the
//! other, and a hole costs nothing on either. What servers do to large files, writing in place and
//! appending, then costs the blocks it touched. Blocks are told apart by BLAKE3: whoever uploads
//! files to the servers chooses their content, so nothing weaker than a cryptographic hash will do.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};

/// A block's hash.
pub type Hash = [u8; 32];

/// Length of a block in files that are not huge.
const BLOCK_LEN: u64 = 64 << 10;
/// A file has more blocks than this only if they cannot be longer.
const BLOCKS_WANTED: u64 = 1 << 17;
/// No block is longer, so that one fits a message.
pub const BLOCK_LEN_MAX: usize = 8 << 20;

/// The length of blocks that both ends cut a file of `size` bytes into.
pub fn block_len(size: u64) -> usize {
    let mut len = BLOCK_LEN;
    while size.div_ceil(len) > BLOCKS_WANTED && len < BLOCK_LEN_MAX as u64 {
        len *= 2;
    }
    len as usize
}

/// One block.
#[derive(Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// Zeros, of this length.
    Zero(usize),
    /// Not all zeros.
    Data(&'a [u8]),
}

/// Hands every block, `len` bytes long but for the last, of the first `size` bytes of `file` to
/// `each`. Errors: `UnexpectedEof` if it is shorter by now.
pub fn each_block(
    file: impl AsFd,
    size: u64,
    len: usize,
    mut each: impl FnMut(Block<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; len.min(usize::try_from(size).unwrap_or(len))];
    // A short file has no hole worth the look.
    let mut extent = if size <= len as u64 { 0..size } else { 0..0 };
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(len).min(len);
        let end = at + len as u64;
        if at >= extent.end {
            extent = next_extent(&file, at, size)?;
        }
        if end <= extent.start {
            each(Block::Zero(len))?;
        } else {
            let block = &mut buffer[..len];
            read_whole(&file, block, at)?;
            each(if is_zero(block) { Block::Zero(len) } else { Block::Data(block) })?;
        }
        at = end;
    }
    Ok(())
}

/// The hashes of all blocks of a file. What is done by then is added to `work`, in bytes.
pub fn hashes(file: impl AsFd, size: u64, len: usize, work: &AtomicU64) -> io::Result<Vec<Hash>> {
    let mut zeros = Zeros::default();
    let mut all = Vec::new();
    each_block(file, size, len, |block| {
        all.push(match block {
            Block::Zero(len) => zeros.hash(len),
            Block::Data(bytes) => hash(bytes),
        });
        work.fetch_add(len as u64, Relaxed);
        Ok(())
    })?;
    Ok(all)
}

/// The hash of a block.
pub fn hash(block: &[u8]) -> Hash {
    *blake3::hash(block).as_bytes()
}

/// The hashes of blocks of zeros, made once a length.
#[derive(Debug, Default)]
pub struct Zeros(Vec<(usize, Hash)>);

impl Zeros {
    /// The hash of `len` zeros.
    pub fn hash(&mut self, len: usize) -> Hash {
        if let Some((_, hash)) = self.0.iter().find(|(known, _)| *known == len) {
            return *hash;
        }
        let made = hash(&vec![0; len]);
        // A full block and the last one of the file at hand.
        self.0.truncate(1);
        self.0.push((len, made));
        made
    }
}

/// Reads until `buffer` is full.
pub fn read_whole(file: impl AsFd, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match pread(&file, &mut *buffer, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Where the next bytes at or after `at` are that are no hole; at the end if there are none. A file
/// system that knows no holes says that everything is data.
fn next_extent(file: impl AsFd, at: u64, size: u64) -> io::Result<std::ops::Range<u64>> {
    let start = match seek(&file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => size,
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(at..size),
        Err(error) => return Err(error.into()),
    };
    let end = match seek(&file, SeekFrom::Hole(start)) {
        Ok(end) => end,
        // It begins at the end of the file.
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok(start..end.max(start).min(size.max(start)))
}

fn is_zero(block: &[u8]) -> bool {
    let mut chunks = block.chunks_exact(128);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
        && chunks.remainder().iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_zeros_and_data_are_told_apart_and_hash_alike() {
        let mut sparse = tempfile::tempfile().expect("a file");
        let mut dense = tempfile::tempfile().expect("a file");
        let size = 10 * BLOCK_LEN + 5;
        sparse.set_len(size).expect("it can be long");
        sparse.write_all_at(b"x", 3 * BLOCK_LEN).expect("it can be written");
        let mut bytes = vec![0; usize::try_from(size).expect("it is small")];
        bytes[3 * BLOCK_LEN as usize] = b'x';
        dense.write_all(&bytes).expect("it can be written");
        let len = 64 << 10;
        for file in [&mut sparse, &mut dense] {
            let mut seen = Vec::new();
            each_block(&*file, size, len, |block| {
                seen.push(matches!(block, Block::Data(_)));
                Ok(())
            })
            .expect("it can be read");
            let data: Vec<usize> = (0..seen.len()).filter(|&i| seen[i]).collect();
            assert_eq!((seen.len(), data), (11, vec![3]));
        }
        let work = AtomicU64::new(0);
        let hashes = [&sparse, &dense].map(|file| hashes(file, size, len, &work).expect("read"));
        assert_eq!(hashes[0], hashes[1]);
        assert_eq!(work.into_inner(), 2 * 11 * len as u64);
    }

    #[test]
    fn a_file_that_became_shorter_is_told() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"abc", 0).expect("it can be written");
        let read = each_block(&file, 4, 64 << 10, |_| Ok(()));
        assert_eq!(read.map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn blocks_grow_with_the_file() {
        assert_eq!(block_len(0), 64 << 10);
        assert_eq!(block_len(8 << 30), 64 << 10);
        assert_eq!(block_len((8 << 30) + 1), 128 << 10);
        assert_eq!(block_len(1 << 40), BLOCK_LEN_MAX);
        assert_eq!(block_len(u64::MAX), BLOCK_LEN_MAX);
    }
}
