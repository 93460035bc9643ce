//! The hands of the target: makes, replaces and removes what a plan says.
//!
//! Owns every change of a tree. A file is finished under a name of its own beside its place, with
//! all attributes, and then takes its name in one step: nobody ever sees a part of it, and a
//! process that is killed leaves an unfinished name that the next sync removes. Directories are
//! opened below the root without following links, and changes are made by name inside of them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, Uid, XattrFlags,
    chownat, copy_file_range, fsync, ftruncate, futimens, linkat, mkdirat, mknodat, openat,
    renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

use super::content::read_whole;
use super::entry::{Entry, Kind, Moment, Powers, Rel, Time, unfinished_name};
use super::tree::{Tree, entry_at, entry_of, proc_path};
use super::watch::Watch;

/// Makes changes to one tree. What it does tells whether anything had to be done.
#[derive(Debug)]
pub struct Applier<'a> {
    tree: &'a Tree,
    powers: Powers,
    is_durable: bool,
    tag: u64,
    serial: u64,
    /// The directory of the last change, open.
    at: Option<(Rel, Arc<OwnedFd>)>,
    /// Directories that were changed in, and what their time was before.
    touched: BTreeMap<Rel, Time>,
    /// What it changed otherwise than by a finished thing taking its name, and how that looked
    /// afterwards; none if it is gone.
    own: BTreeMap<Rel, Option<Moment>>,
    /// Directories that it makes are watched from their beginning.
    watch: Option<&'a Watch>,
    #[cfg(test)]
    steps_left: Option<u32>,
}

/// A file on its way.
#[derive(Debug)]
pub struct Unfinished {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    /// Open until it gets its name.
    file: Option<OwnedFd>,
    /// Its length so far.
    len: u64,
    /// The end of the last bytes that were written.
    written: u64,
    is_kept: bool,
}

impl<'a> Applier<'a> {
    /// For `tree`; `tag` tells its unfinished names from those of others.
    pub fn new(tree: &'a Tree, watch: Option<&'a Watch>, powers: Powers, tag: u64) -> Self {
        Self {
            tree,
            powers,
            is_durable: false,
            tag,
            serial: 0,
            at: None,
            touched: BTreeMap::new(),
            own: BTreeMap::new(),
            watch,
            #[cfg(test)]
            steps_left: None,
        }
    }

    /// What is written is brought to the disk before it takes its name.
    pub fn durable(mut self, is_durable: bool) -> Self {
        self.is_durable = is_durable;
        self
    }

    /// It does so many steps; then it is as if it was killed.
    #[cfg(test)]
    pub fn dies_after(&mut self, steps: Option<u32>) {
        self.steps_left = steps;
    }

    #[cfg(test)]
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other(KILLED)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn step(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Removes what is at `path`; what is not there is removed.
    pub fn remove(&mut self, path: &Rel, is_dir: bool) -> io::Result<bool> {
        let (dir, name) = match self.place(path) {
            Err(error) if is_gone(&error) => return Ok(false),
            other => other?,
        };
        self.step()?;
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        self.own.insert(path.clone(), None);
        if is_dir {
            self.at = self.at.take_if(|(at, _)| !at.is_within(path));
            self.touched.remove(path);
        }
        match unlinkat(&dir, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory, closed to everybody else until it gets its attributes.
    pub fn make_dir(&mut self, path: &Rel) -> io::Result<bool> {
        let (parent, name) = self.place(path)?;
        let unfinished = self.unfinished();
        self.step()?;
        mkdirat(&parent, unfinished.as_slice(), Mode::RWXU)?;
        let named = self.step().and_then(|()| {
            if let Some(watch) = self.watch {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = openat(&parent, unfinished.as_slice(), flags, Mode::empty())?;
                watch.adopt(path, &dir);
            }
            Ok(renameat(&parent, unfinished.as_slice(), &parent, name)?)
        });
        self.drop_unfinished(&parent, &unfinished, AtFlags::REMOVEDIR, &named);
        named.map(|()| true)
    }

    /// Begins a file that will be at `path`.
    pub fn begin(&mut self, path: &Rel) -> io::Result<Unfinished> {
        let (dir, _) = self.place(path)?;
        let name = self.unfinished();
        self.step()?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, name.as_slice(), flags, Mode::RUSR | Mode::WUSR)?;
        let file = Some(file);
        Ok(Unfinished { dir, name, file, len: 0, written: 0, is_kept: false })
    }

    /// Gives a finished file its attributes and its name.
    pub fn finish(&mut self, mut file: Unfinished, path: &Rel, entry: &Entry) -> io::Result<()> {
        let done = self.finish_file(&mut file, path, entry);
        file.is_kept = done.is_ok() || is_killed(&done);
        done
    }

    fn finish_file(&mut self, file: &mut Unfinished, path: &Rel, entry: &Entry) -> io::Result<()> {
        let size = entry.size().ok_or(io::ErrorKind::InvalidInput)?;
        let open = file.file.take().ok_or(io::ErrorKind::InvalidInput)?;
        if file.written != size {
            ftruncate(&open, size)?;
        }
        self.step()?;
        self.set_on_file(&open, entry)?;
        if self.is_durable {
            fsync(&open)?;
        }
        self.step()?;
        // A watch tells of the end of writing by the name of that moment.
        drop(open);
        let (_, name) = self.place(path)?;
        Ok(renameat(&file.dir, file.name.as_slice(), &file.dir, name)?)
    }

    /// Moves the file at `from` to `path`, where no directory is, and gives it its attributes.
    pub fn move_file(&mut self, from: &Rel, path: &Rel, entry: &Entry) -> io::Result<()> {
        self.set_meta(from, entry)?;
        let (from_dir, from_name) = self.place(from)?;
        let (dir, name) = self.place(path)?;
        self.step()?;
        Ok(renameat(&from_dir, from_name, &dir, name)?)
    }

    /// Makes a link, a pipe, a socket or a device in place of whatever is no directory.
    pub fn make(&mut self, path: &Rel, entry: &Entry) -> io::Result<bool> {
        let (dir, name) = self.place(path)?;
        let unfinished = self.unfinished();
        self.step()?;
        let node = |kind, (major, minor)| {
            let device = rustix::fs::makedev(major, minor);
            mknodat(&dir, unfinished.as_slice(), kind, Mode::RUSR | Mode::WUSR, device)
        };
        match &entry.kind {
            Kind::Link { target } => symlinkat(target.as_slice(), &dir, unfinished.as_slice()),
            Kind::Fifo => node(FileType::Fifo, (0, 0)),
            Kind::Socket => node(FileType::Socket, (0, 0)),
            Kind::Block(major, minor) => node(FileType::BlockDevice, (*major, *minor)),
            Kind::Char(major, minor) => node(FileType::CharacterDevice, (*major, *minor)),
            Kind::File { .. } | Kind::Dir => Err(Errno::INVAL),
        }?;
        let named = self.step().and_then(|()| {
            self.set_by_path(&pin(dir.as_fd(), &unfinished, &entry.kind)?, entry)?;
            self.step()?;
            Ok(renameat(&dir, unfinished.as_slice(), &dir, name)?)
        });
        self.drop_unfinished(&dir, &unfinished, AtFlags::empty(), &named);
        named.map(|()| true)
    }

    /// Makes `path` a name of the file at `leader`; tells whether it was none before.
    pub fn link(&mut self, path: &Rel, leader: &Rel) -> io::Result<bool> {
        let (leader_dir, leader_name) = self.place_untouched(leader)?;
        let (dir, name) = self.place(path)?;
        let id = |dir: BorrowedFd<'_>, name| entry_at(dir, name).map(|e| e.map(|e| e.id));
        let has = id(leader_dir.as_fd(), leader_name)?.ok_or(io::ErrorKind::NotFound)?;
        if id(dir.as_fd(), name)? == Some(has) {
            return Ok(false);
        }
        let unfinished = self.unfinished();
        self.step()?;
        linkat(&leader_dir, leader_name, &dir, unfinished.as_slice(), AtFlags::empty())?;
        let named =
            self.step().and_then(|()| Ok(renameat(&dir, unfinished.as_slice(), &dir, name)?));
        self.drop_unfinished(&dir, &unfinished, AtFlags::empty(), &named);
        self.note(leader, entry_at(leader_dir.as_fd(), leader_name)?.as_ref());
        self.note(path, entry_at(dir.as_fd(), name)?.as_ref());
        named.map(|()| true)
    }

    /// Gives what is at `path` the attributes of `entry`, if it is of that kind.
    pub fn set_meta(&mut self, path: &Rel, entry: &Entry) -> io::Result<bool> {
        if entry.kind.is_dir() {
            self.touched.remove(path);
        }
        let pinned = match path.split() {
            None => self.tree.dir(path)?,
            Some(_) => {
                let (dir, name) = self.place_untouched(path)?;
                pin(dir.as_fd(), name, &entry.kind)?
            }
        };
        self.step()?;
        self.set_by_path(&pinned, entry)?;
        let now = entry_of(&pinned)?;
        if self.powers.has_same_meta(entry, &now) {
            self.note(path, Some(&now));
        }
        Ok(true)
    }

    /// Sets back the times of directories that were only changed in, and brings everything to the
    /// disk if that is asked for. Gives what a watch may take for somebody's change, and how it
    /// looked after it was the applier's.
    pub fn close(mut self) -> io::Result<BTreeMap<Rel, Option<Moment>>> {
        for (path, time) in std::mem::take(&mut self.touched) {
            self.step()?;
            let dir = match self.tree.dir(&path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                other => other?,
            };
            futimens(&dir, &times(time))?;
            self.note(&path, Some(&entry_of(&dir)?));
        }
        if self.is_durable {
            rustix::fs::syncfs(self.tree.dir(&Rel::root())?)?;
        }
        Ok(self.own)
    }

    fn note(&mut self, path: &Rel, now: Option<&Entry>) {
        self.own.insert(path.clone(), now.map(Entry::moment));
    }

    /// An unfinished thing that did not get its name goes, unless this is an end by SIGKILL.
    fn drop_unfinished<T>(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        flags: AtFlags,
        named: &io::Result<T>,
    ) {
        if named.is_err() && !is_killed(named) {
            // What cannot be removed now is removed by the next sync.
            let _ = unlinkat(dir, name, flags);
        }
    }

    /// The open directory that `path` is in, and its name there. It is going to be changed.
    fn place<'p>(&mut self, path: &'p Rel) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        let (dir, name) = self.place_untouched(path)?;
        let parent = self.at.as_ref().map(|(at, _)| at).ok_or(io::ErrorKind::NotFound)?;
        if !self.touched.contains_key(parent) {
            let time = entry_of(&dir)?.mtime;
            self.touched.insert(parent.clone(), time);
        }
        Ok((dir, name))
    }

    fn place_untouched<'p>(&mut self, path: &'p Rel) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        let (_, name) = path.split().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = &path.as_bytes()[..path.as_bytes().len() - name.len()];
        let parent = parent.strip_suffix(b"/").unwrap_or(parent);
        if let Some((at, dir)) = &self.at
            && at.as_bytes() == parent
        {
            return Ok((Arc::clone(dir), name));
        }
        let (parent, _) = path.split().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = Arc::new(self.tree.dir(&parent)?);
        self.at = Some((parent, Arc::clone(&dir)));
        Ok((dir, name))
    }

    fn unfinished(&mut self) -> Vec<u8> {
        self.serial += 1;
        unfinished_name(self.tag, self.serial)
    }

    fn set_on_file(&self, file: &OwnedFd, entry: &Entry) -> io::Result<()> {
        self.set_owner(file, entry)?;
        self.set_xattrs(file, entry)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode.into()))?;
        Ok(futimens(file, &times(entry.mtime))?)
    }

    fn set_by_path(&self, pinned: &OwnedFd, entry: &Entry) -> io::Result<()> {
        self.set_owner(pinned, entry)?;
        self.set_xattrs(pinned, entry)?;
        let path = proc_path(pinned.as_fd());
        if !matches!(entry.kind, Kind::Link { .. }) {
            rustix::fs::chmod(&path, Mode::from_raw_mode(entry.mode.into()))?;
        }
        Ok(utimensat(CWD, &path, &times(entry.mtime), AtFlags::empty())?)
    }

    /// Before the mode, because it clears bits of it.
    fn set_owner(&self, file: &OwnedFd, entry: &Entry) -> io::Result<()> {
        if !self.powers.is_root {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        Ok(chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    /// Adds, replaces and removes. A new file may have inherited some from its directory.
    fn set_xattrs(&self, file: &OwnedFd, entry: &Entry) -> io::Result<()> {
        if entry.xattrs.is_empty() && rustix::fs::flistxattr_query(file) == Ok(0) {
            return Ok(());
        }
        let has = entry_of(file)?.xattrs;
        let kept = |(name, _): &&(Vec<u8>, Vec<u8>)| self.powers.keeps(name);
        let path = proc_path(file.as_fd());
        for (name, _) in has.iter().filter(kept) {
            if !entry.xattrs.iter().any(|(wanted, _)| wanted == name) {
                match rustix::fs::removexattr(&path, name.as_slice()) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for (name, value) in entry.xattrs.iter().filter(kept) {
            if !has.iter().any(|(had, is)| had == name && is == value) {
                rustix::fs::setxattr(&path, name.as_slice(), value, XattrFlags::empty())?;
            }
        }
        Ok(())
    }
}

impl Unfinished {
    /// Appends bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match pwrite(self.file()?, bytes, self.len) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    self.len += n as u64;
                    self.written = self.len;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn file(&self) -> io::Result<&OwnedFd> {
        self.file.as_ref().ok_or(io::ErrorKind::InvalidInput.into())
    }

    /// Leaves a hole.
    pub fn skip(&mut self, len: u64) {
        self.len += len;
    }

    /// Appends what another file has at this offset. Errors: `UnexpectedEof` if it ends before.
    pub fn copy(&mut self, from: &OwnedFd, len: u64) -> io::Result<()> {
        let end = self.len + len;
        while self.len < end {
            let (mut read, mut write) = (self.len, self.len);
            let left = usize::try_from(end - self.len).unwrap_or(usize::MAX).min(COPY_LEN);
            match copy_file_range(from, Some(&mut read), self.file()?, Some(&mut write), left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.len += n as u64;
                    self.written = self.len;
                }
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    let mut buffer = vec![0; left.min(COPY_BY_HAND_LEN)];
                    read_whole(from, &mut buffer, self.len)?;
                    self.write(&buffer)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed now is removed by the next sync.
            let _ = unlinkat(&self.dir, self.name.as_slice(), AtFlags::empty());
        }
    }
}

/// Opens what is at `name` so that nothing else can take its place from here on, and without
/// reading or writing it. Errors: `NotFound` if it is of another kind.
fn pin(dir: BorrowedFd<'_>, name: &[u8], kind: &Kind) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pinned = openat(dir, name, flags, Mode::empty())?;
    let is = entry_of(&pinned)?.kind;
    match std::mem::discriminant(&is) == std::mem::discriminant(kind) {
        true => Ok(pinned),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Longest copy in one call, so that a process that shall end does.
const COPY_LEN: usize = 16 << 20;
const COPY_BY_HAND_LEN: usize = 256 << 10;

/// With the time of access: where it is left out, a watch takes the rest for a change of content.
fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() },
    }
}

/// Whether an error says that something on the way is not there.
pub fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        || Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// The end that tests give to an applier.
#[cfg(test)]
pub const KILLED: &str = "killed by a test";

/// Whether it ended as if killed: then nothing is cleaned up either.
fn is_killed<T>(done: &io::Result<T>) -> bool {
    #[cfg(test)]
    return done.as_ref().is_err_and(|error| error.to_string() == KILLED);
    #[cfg(not(test))]
    {
        let _ = done;
        false
    }
}
