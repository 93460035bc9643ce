//! The directory of evidence: one file a piece, named by when it was and what; `.acked` in the name
//! of what somebody has seen. The oldest go first, those that were seen before all others.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

const END: &str = ".pcapng";
const ACKED: &str = ".acked.pcapng";
/// The name of a file that is not whole yet.
const UNFINISHED: &str = ".unfinished";
const ID_BYTES_MAX: usize = 64;

/// A directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Store {
    /// Where.
    pub dir: PathBuf,
}

/// What may be in it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Files.
    pub files_max: usize,
    /// Bytes of all files.
    pub bytes_max: u64,
    /// How old a file gets.
    pub age_ms: u64,
}

/// A file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub id: String,
    /// Where.
    pub path: PathBuf,
    /// Whether somebody has seen it.
    pub is_acked: bool,
    /// How long it is.
    pub bytes: u64,
}

/// Why there is no one file.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The directory cannot be read.
    #[error("{}: {source}", dir.display())]
    Dir {
        /// It.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such file.
    #[error("no evidence is called `{0}`; `shadowvm divergences ls` has the names")]
    None(String),
    /// More than one.
    #[error("`{0}` is the beginning of {1} names; write more of it")]
    Many(String, usize),
}

/// Whether a piece of evidence can have this name.
pub fn is_id(id: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.chars().all(is_plain) && !id.starts_with('.')
}

/// A UNIX time in nanoseconds as it stands in names: `20261122-081502.123`, in UTC.
pub fn stamp(unix_ns: u64) -> String {
    let (seconds, ms) = (unix_ns / 1_000_000_000, unix_ns / 1_000_000 % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, 400 of them at a time: the leap day is the last one.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}-{h:02}{m:02}{s:02}.{ms:03}")
}

impl Store {
    /// Makes the directory, for its owner alone, if it is not there.
    pub fn make(&self) -> io::Result<()> {
        if self.dir.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Whatever the umask is.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))
    }

    /// The files, the oldest first.
    pub fn list(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let acked = name.strip_suffix(ACKED);
            let Some(id) = acked.or_else(|| name.strip_suffix(END)).filter(|id| is_id(id)) else {
                continue;
            };
            // One that has gone meanwhile is none.
            let Ok(facts) = entry.metadata() else { continue };
            if facts.is_file() {
                all.push(Found {
                    id: id.to_owned(),
                    path: entry.path(),
                    is_acked: acked.is_some(),
                    bytes: facts.len(),
                });
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// The one whose name begins so; `last` is the latest.
    pub fn find(&self, id: &str) -> Result<Found, NotFound> {
        let all = self.list().map_err(|source| NotFound::Dir { dir: self.dir.clone(), source })?;
        let none = || NotFound::None(crate::replay::view::printable(id.as_bytes()));
        if id == "last" {
            return all.into_iter().next_back().ok_or_else(none);
        }
        let mut named = all.into_iter().filter(|found| found.id.starts_with(id));
        let first = named.next().filter(|_| !id.is_empty()).ok_or_else(none)?;
        match named.count() {
            0 => Ok(first),
            _ if first.id == id => Ok(first),
            more => Err(NotFound::Many(id.to_owned(), more + 1)),
        }
    }

    /// Notes that somebody has seen it.
    pub fn ack(&self, found: &Found) -> io::Result<()> {
        if found.is_acked {
            return Ok(());
        }
        fs::rename(&found.path, self.dir.join(format!("{}{ACKED}", found.id)))
    }

    /// Takes a file of `len` bytes whole; half of one is never seen, also where whoever sent it was
    /// killed.
    pub(super) fn write(&self, id: &str, body: &mut impl Read, len: u64) -> io::Result<()> {
        let unfinished = self.dir.join(UNFINISHED);
        let mut write = || -> io::Result<()> {
            // One of a process that was killed in the middle.
            let _ = fs::remove_file(&unfinished);
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&unfinished)?;
            if io::copy(body, &mut file)? < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            fs::rename(&unfinished, self.free_name(id))
        };
        write().inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    /// Two in one millisecond are told apart by a letter.
    fn free_name(&self, id: &str) -> PathBuf {
        let name = |id: &str, end: &str| self.dir.join(format!("{id}{end}"));
        let is_free = |id: &str| ![END, ACKED].iter().any(|end| name(id, end).exists());
        let letters = ('b'..='z').map(|letter| format!("{id}-{letter}"));
        let free = std::iter::once(id.to_owned()).chain(letters).find(|id| is_free(id));
        name(free.as_deref().unwrap_or(id), END)
    }

    /// Lets go what is too much, with room for one more file of `coming` bytes (0: none comes).
    pub(super) fn tidy(&self, limits: Limits, coming: u64) {
        let Ok(mut all) = self.list() else { return };
        // Those that go first stand last.
        all.sort_by(|a, b| (a.is_acked, &b.id).cmp(&(b.is_acked, &a.id)));
        all.retain(|found| {
            let is_old = age(&found.path).is_some_and(|age| age.as_millis() > limits.age_ms.into());
            !(is_old && fs::remove_file(&found.path).is_ok())
        });
        let mut bytes: u64 = all.iter().map(|found| found.bytes).sum();
        let (files_max, one) = (limits.files_max, usize::from(coming > 0));
        while all.len() + one > files_max || bytes + coming > limits.bytes_max {
            let Some(first) = all.pop() else { return };
            bytes -= first.bytes;
            // What cannot be removed is tried again with the next file.
            let _ = fs::remove_file(&first.path);
        }
    }
}

fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).and_then(|facts| facts.modified()).ok()?.elapsed().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(store: &Store) -> Vec<String> {
        let name = |f: Found| if f.is_acked { format!("{}*", f.id) } else { f.id };
        store.list().expect("a list").into_iter().map(name).collect()
    }

    #[test]
    fn times_are_named_as_people_name_them() {
        let at = |seconds: u64| stamp(seconds * 1_000_000_000 + 7_000_000);
        assert_eq!(at(0), "19700101-000000.007");
        assert_eq!(at(951_782_400), "20000229-000000.007");
        assert_eq!(at(1_793_523_915), "20261101-090515.007");
        assert_eq!(at(4_107_542_399), "21000228-235959.007");
    }

    #[test]
    fn of_too_many_those_go_first_that_were_seen_then_the_oldest() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store { dir: dir.path().join("a/b") };
        store.make().expect("it is made");
        for n in 1..=5 {
            store.write(&format!("{n}-x"), &mut &[0u8; 100][..], 100).expect("it is written");
        }
        store.ack(&store.find("3").expect("it is there")).expect("it is acked");
        store.write("5-x", &mut &[0u8; 100][..], 100).expect("a second one of that name");
        let cut = store.write("6-x", &mut &[0u8; 100][..], 101);
        assert_eq!(cut.expect_err("it is cut").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(ids(&store), ["1-x", "2-x", "3-x*", "4-x", "5-x", "5-x-b"]);
        assert_eq!(store.find("5-x").expect("the whole name").id, "5-x");
        assert!(matches!(store.find("5"), Err(NotFound::Many(_, 2))));
        assert!(matches!(store.find("6"), Err(NotFound::None(_))));
        assert!(matches!(store.find(""), Err(NotFound::None(_))));
        assert_eq!(store.find("last").expect("the last").id, "5-x-b");
        let limits = Limits { files_max: 5, bytes_max: 10_000, age_ms: 1 << 40 };
        store.tidy(limits, 100);
        assert_eq!(ids(&store), ["2-x", "4-x", "5-x", "5-x-b"]);
        store.tidy(Limits { bytes_max: 350, ..limits }, 100);
        assert_eq!(ids(&store), ["5-x", "5-x-b"]);
        std::fs::write(store.dir.join("notes.txt"), "not ours").expect("a file");
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        let path = store.find("5-x-b").expect("it is there").path;
        let file = fs::File::options().append(true).open(path).expect("it opens");
        file.set_modified(old).expect("a time");
        store.tidy(Limits { age_ms: 1_800_000, ..limits }, 0);
        assert_eq!(ids(&store), ["5-x"]);
        assert!(store.dir.join("notes.txt").exists());
    }
}
