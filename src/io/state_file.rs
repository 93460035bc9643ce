//! The state file: roles and flow constants in a mapped file that survives the process.
//!
//! It lives on tmpfs, is versioned and checksummed record by record, and is never trusted: a file
//! of another shape is refused as a whole, a torn record is dropped by itself. Layout: a header
//! page, then one slot of 128 bytes a flow (104 constants, checksum 8, mark 4).
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};

use memmap2::MmapMut;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};

use crate::engine::{Epoch, FLOW_CONSTANTS_LEN, LegId, Record, Roles};

const MAGIC: &[u8; 8] = b"SHADOWVM";
const VERSION: u32 = 3;
const HEADER_BYTES: usize = 4096;
const SLOT_BYTES: usize = 128;
const CHECK_AT: usize = FLOW_CONSTANTS_LEN;
const MARK_AT: usize = CHECK_AT + 8;
const USED: u32 = 0x5553_4544;
/// Roles in the header page: epoch 4, primary 4, checksum 8. Two cells, by the epoch's parity: a
/// process killed while it writes one leaves the roles of the epoch before in the other.
const ROLES_AT: [usize; 2] = [64, 128];
const ROLES_BYTES: usize = 8;

/// Why a state file is not used.
#[derive(Debug)]
pub enum StateFileError {
    /// It cannot be opened or mapped.
    Io(PathBuf, io::Error),
    /// It is no state file of this version, or was cut.
    Foreign(PathBuf, &'static str),
    /// Another process writes it.
    InUse(PathBuf),
}

impl fmt::Display for StateFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, e) => write!(f, "state file {}: {e}", path.display()),
            Self::Foreign(path, why) => write!(f, "state file {}: {why}", path.display()),
            Self::InUse(path) => write!(
                f,
                "state file {}: another gateway uses it; end that one, or give each its own \
                 state.file",
                path.display()
            ),
        }
    }
}

impl std::error::Error for StateFileError {}

/// An open state file.
#[derive(Debug)]
pub struct StateFile {
    map: MmapMut,
    slots: usize,
    /// Holds the lock: closing it would give it up.
    _file: File,
}

impl StateFile {
    /// Opens the file, or makes it, with room for `flows_max` flows. A file that is not a state
    /// file of this shape is an error and left as it is.
    pub fn open(path: &Path, flows_max: usize) -> Result<Self, StateFileError> {
        let io = |e| StateFileError::Io(path.to_owned(), e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(io)?;
        lock(&file).map_err(|errno| match errno {
            Errno::EACCES | Errno::EAGAIN => StateFileError::InUse(path.to_owned()),
            errno => io(errno.into()),
        })?;
        let len = file.metadata().map_err(io)?.len();
        let is_new = len == 0;
        let want = (HEADER_BYTES + flows_max * SLOT_BYTES) as u64;
        if is_new {
            file.set_len(want).map_err(io)?;
            // An empty file is a new one at the next attempt.
            reserve(&file, want).inspect_err(|_| drop(file.set_len(0))).map_err(io)?;
        }
        let mut state = Self { map: map(&file).map_err(io)?, slots: flows_max, _file: file };
        if is_new {
            state.write_header();
        } else {
            state.check_header(want).map_err(|why| StateFileError::Foreign(path.into(), why))?;
        }
        Ok(state)
    }

    /// Like [`Self::open`]; a file that cannot be trusted is put aside as `*.bad` and a fresh one
    /// made. The error of the old one comes back for the log.
    pub fn open_or_replace(
        path: &Path,
        flows_max: usize,
    ) -> Result<(Self, Option<StateFileError>), StateFileError> {
        match Self::open(path, flows_max) {
            Ok(state) => Ok((state, None)),
            Err(old @ StateFileError::Foreign(..)) => {
                let mut aside = path.as_os_str().to_owned();
                aside.push(".bad");
                std::fs::rename(path, &aside)
                    .map_err(|e| StateFileError::Io(path.to_owned(), e))?;
                Ok((Self::open(path, flows_max)?, Some(old)))
            }
            Err(e) => Err(e),
        }
    }

    fn write_header(&mut self) {
        self.map[..8].copy_from_slice(MAGIC);
        self.map[8..12].copy_from_slice(&VERSION.to_ne_bytes());
        self.map[12..16].copy_from_slice(&(self.slots as u32).to_ne_bytes());
        let sum = checksum(&self.map[..16]);
        self.map[16..24].copy_from_slice(&sum.to_ne_bytes());
    }

    fn check_header(&self, want: u64) -> Result<(), &'static str> {
        if self.map.len() < HEADER_BYTES || &self.map[..8] != MAGIC {
            return Err("not a state file of shadowvm");
        }
        if self.u32_at(8) != VERSION {
            return Err("of another version");
        }
        if self.map[16..24] != checksum(&self.map[..16]).to_ne_bytes() {
            return Err("damaged header");
        }
        if self.u32_at(12) as usize != self.slots || self.map.len() as u64 != want {
            return Err("of another size: limits.flows_max has changed, or it was cut");
        }
        Ok(())
    }

    /// What an earlier process left; a damaged record is dropped.
    pub fn load(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.roles().into_iter().collect();
        for slot in 0..self.slots {
            let at = HEADER_BYTES + slot * SLOT_BYTES;
            if self.u32_at(at + MARK_AT) != USED {
                continue;
            }
            let mut constants = [0; FLOW_CONSTANTS_LEN];
            constants.copy_from_slice(&self.map[at..at + FLOW_CONSTANTS_LEN]);
            let sum = checksum(&constants).to_ne_bytes();
            if self.map[at + CHECK_AT..at + MARK_AT] == sum {
                records.push(Record::Flow { slot: slot as u32, constants });
            }
        }
        records
    }

    /// The roles of the later epoch.
    fn roles(&self) -> Option<Record> {
        let found = ROLES_AT.into_iter().filter_map(|at| self.roles_at(at));
        found.max_by_key(|roles| roles.epoch).map(Record::Roles)
    }

    fn roles_at(&self, at: usize) -> Option<Roles> {
        let bytes = &self.map[at..at + ROLES_BYTES];
        let sum = &self.map[at + ROLES_BYTES..at + ROLES_BYTES + 8];
        let epoch = Epoch(self.u32_at(at));
        let primary = *LegId::ALL.get(self.u32_at(at + 4) as usize)?;
        (sum == checksum(bytes).to_ne_bytes()).then_some(Roles { epoch, primary })
    }

    /// Writes a record: the mark of a slot is taken off before and set after its bytes change, so
    /// that a process killed in between leaves no half record.
    pub fn write(&mut self, record: &Record) {
        match record {
            Record::Roles(roles) => {
                let mut bytes = [0; ROLES_BYTES];
                bytes[..4].copy_from_slice(&roles.epoch.0.to_ne_bytes());
                bytes[4..].copy_from_slice(&(roles.primary.index() as u32).to_ne_bytes());
                let sum = checksum(&bytes).to_ne_bytes();
                let at = ROLES_AT[roles.epoch.0 as usize % 2];
                self.map[at..at + ROLES_BYTES].copy_from_slice(&bytes);
                self.map[at + ROLES_BYTES..at + ROLES_BYTES + 8].copy_from_slice(&sum);
            }
            Record::Flow { slot, constants } => {
                let Some(at) = self.slot_at(*slot) else { return };
                self.mark(at, 0);
                self.map[at..at + FLOW_CONSTANTS_LEN].copy_from_slice(constants);
                let sum = checksum(constants).to_ne_bytes();
                self.map[at + CHECK_AT..at + MARK_AT].copy_from_slice(&sum);
                self.mark(at, USED);
            }
            Record::Free { slot } => {
                if let Some(at) = self.slot_at(*slot) {
                    self.mark(at, 0);
                }
            }
        }
    }

    fn slot_at(&self, slot: u32) -> Option<usize> {
        let slot = slot as usize;
        (slot < self.slots).then_some(HEADER_BYTES + slot * SLOT_BYTES)
    }

    fn mark(&mut self, at: usize, mark: u32) {
        compiler_fence(Ordering::SeqCst);
        self.map[at + MARK_AT..at + MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        compiler_fence(Ordering::SeqCst);
    }

    fn u32_at(&self, at: usize) -> u32 {
        self.map[at..at + 4].try_into().map_or(0, u32::from_ne_bytes)
    }
}

/// Takes the file for this process alone. A lock of the process, not of the open file: children
/// that outlive it do not hold it (fcntl(2), F_SETLK).
fn lock(file: &File) -> Result<(), Errno> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&whole)).map(drop)
}

/// Takes the memory now: a tmpfs that is full must be an error here, not a SIGBUS at the write of
/// a record. Where a file system cannot reserve, it is as full as it is.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn map(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file is private to this process by its mode; another writer could only change
    // bytes, every one of which is checked before it is believed, or cut the file, which is the
    // operator's own doing.
    unsafe { MmapMut::map_mut(file) }
}

/// FNV-1a, 64 bits: against tearing and damage, not against forgery (the file is 0600).
fn checksum(bytes: &[u8]) -> u64 {
    let step = |h: u64, &b: &u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(slot: u32, byte: u8) -> Record {
        Record::Flow { slot, constants: [byte; FLOW_CONSTANTS_LEN] }
    }

    #[test]
    fn records_come_back_and_freed_ones_do_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let mut state = StateFile::open(&path, 8).expect("opens");
        let roles = Record::Roles(Roles { epoch: Epoch(7), primary: LegId::B });
        for record in [roles.clone(), flow(0, 1), flow(5, 2), Record::Free { slot: 0 }] {
            state.write(&record);
        }
        state.write(&flow(99, 3)); // beyond the table: ignored
        drop(state);
        let again = StateFile::open(&path, 8).expect("opens again");
        assert_eq!(again.load(), [roles, flow(5, 2)]);
    }

    #[test]
    fn torn_roles_leave_those_of_the_epoch_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut state = StateFile::open(&dir.path().join("state"), 1).expect("opens");
        let roles = |epoch, primary| Record::Roles(Roles { epoch: Epoch(epoch), primary });
        assert_eq!(state.load(), []);
        state.write(&roles(4, LegId::B));
        state.write(&roles(5, LegId::A));
        assert_eq!(state.load(), [roles(5, LegId::A)]);
        state.map[ROLES_AT[1] + 4] ^= 1;
        assert_eq!(state.load(), [roles(4, LegId::B)]);
    }

    #[test]
    fn one_process_at_a_time_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let state = StateFile::open(&path, 1).expect("opens");
        // SAFETY: the child only opens a file and ends at once, without running what the other
        // threads of this process have left half done.
        let child = match unsafe { nix::unistd::fork() }.expect("forks") {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => {
                let refused = StateFile::open(&path, 1);
                let code = i32::from(!matches!(refused, Err(StateFileError::InUse(_))));
                // SAFETY: ends the child without the parent's exit handlers.
                unsafe { libc::_exit(code) }
            }
        };
        let ended = nix::sys::wait::waitpid(child, None).expect("waits");
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
        drop(state);
        StateFile::open(&path, 1).expect("is free again");
    }

    #[test]
    fn all_room_is_taken_at_the_start() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        drop(StateFile::open(&path, 1000).expect("opens"));
        let found = std::fs::metadata(&path).expect("is there");
        assert!(found.blocks() * 512 >= found.len(), "a full tmpfs would be a SIGBUS later");
    }

    #[test]
    fn a_torn_record_is_dropped_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let mut state = StateFile::open(&path, 4).expect("opens");
        state.write(&flow(1, 1));
        state.write(&flow(2, 2));
        state.map[HEADER_BYTES + SLOT_BYTES + 3] ^= 1;
        assert_eq!(state.load(), [flow(2, 2)]);
    }

    #[test]
    fn a_foreign_damaged_or_cut_file_is_put_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, spoil) in [
            ("foreign", (|b: &mut Vec<u8>| b[0] = b'x') as fn(&mut Vec<u8>)),
            ("version", |b| b[8] = 9),
            ("header", |b| b[17] ^= 1),
            ("cut", |b| b.truncate(HEADER_BYTES + 5)),
            ("tiny", |b| b.truncate(3)),
        ] {
            let path = dir.path().join(name);
            StateFile::open(&path, 4).expect("opens").write(&flow(1, 1));
            let mut bytes = std::fs::read(&path).expect("reads");
            spoil(&mut bytes);
            std::fs::write(&path, &bytes).expect("writes");
            let refused = StateFile::open(&path, 4);
            assert!(matches!(refused, Err(StateFileError::Foreign(..))), "{name}");
            let (fresh, old) = StateFile::open_or_replace(&path, 4).expect("replaces");
            assert!(old.is_some() && fresh.load().is_empty(), "{name}");
        }
        let path = dir.path().join("size");
        drop(StateFile::open(&path, 4).expect("opens"));
        assert!(StateFile::open(&path, 8).is_err());
    }
}
