//! What the servers serve: files made from a seed, equal on both, with equal times.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use shadowvm::engine::LegId;

/// What the large file is made of: [`bytes`] of it.
pub const BIG_SEED: u64 = 1;
/// Number of small files, `/small-0.bin` to `/small-15.bin`.
pub const SMALL_FILES: usize = 16;

/// A pseudo-random sequence (xorshift64*); the same seed gives the same one everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// `len` bytes that no compression or coincidence makes equal to another seed's.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut all = Vec::with_capacity(len + 8);
    while all.len() < len {
        all.extend_from_slice(&rng.next().to_le_bytes());
    }
    all.truncate(len);
    all
}

/// SHA-256 as text.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file.
pub fn sha256_of(path: &Path) -> io::Result<String> {
    Ok(sha256(&fs::read(path)?))
}

/// Bytes as hexadecimal text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A file whose content and hash are known.
#[derive(Clone, Debug)]
pub struct Known {
    /// Path on the server, with its slash.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// SHA-256.
    pub sha256: String,
}

/// The files of both servers.
#[derive(Debug)]
pub struct Content {
    folder: PathBuf,
    /// The large file.
    pub big: Known,
    /// Small ones, 1 to 20 KB.
    pub small: Vec<Known>,
}

impl Content {
    /// Makes the files below `folder`, one tree for each server.
    pub fn make(folder: &Path, big_len: usize) -> io::Result<Self> {
        for leg in ["a", "b"] {
            fs::create_dir_all(folder.join(leg))?;
        }
        let big = publish(folder, "big.bin", &bytes(BIG_SEED, big_len))?;
        let mut rng = Rng::new(2);
        let small = (0..SMALL_FILES)
            .map(|i| {
                let data = bytes(100 + i as u64, 1000 + rng.below(19_000));
                publish(folder, &format!("small-{i}.bin"), &data)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { folder: folder.to_owned(), big, small })
    }

    /// The tree of one server.
    pub fn root(&self, leg: LegId) -> PathBuf {
        self.folder.join(leg_name(leg))
    }
}

/// a or b.
pub fn leg_name(leg: LegId) -> &'static str {
    match leg {
        LegId::A => "a",
        LegId::B => "b",
    }
}

fn publish(folder: &Path, name: &str, data: &[u8]) -> io::Result<Known> {
    for leg in ["a", "b"] {
        write_dated(&folder.join(leg).join(name), data)?;
    }
    Ok(Known { path: format!("/{name}"), len: data.len() as u64, sha256: sha256(data) })
}

/// Writes a file with the one time that all of them have.
pub fn write_dated(path: &Path, data: &[u8]) -> io::Result<()> {
    fs::write(path, data)?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    File::options().write(true).open(path)?.set_times(FileTimes::new().set_modified(time))
}
