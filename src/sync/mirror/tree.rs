//! A directory tree, looked at by descriptors.
//!
//! Owns every way into a tree: no path is resolved but below the open root, and no symbolic link is
//! ever followed on the way (openat2(2), or step by step where the kernel lacks it). Attributes
//! are read and set through `/proc/self/fd`, which names an open file and nothing else.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags,
    StatxTimestamp, openat, openat2, statx,
};
use rustix::io::Errno;

use super::entry::{Entry, Kind, Moment, Rel, Time, Xattrs};

/// An open tree.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Opens the directory `path`, which itself may be a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: openat(CWD, path, flags, Mode::empty())? })
    }

    /// The directory at `path`.
    pub fn dir(&self, path: &Rel) -> rustix::io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The file at `path`, to read.
    pub fn file(&self, path: &Rel) -> rustix::io::Result<OwnedFd> {
        // A pipe of that name must not make us wait.
        self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// What is at `path`; none if nothing is, or if a part of the way is no directory.
    pub fn entry(&self, path: &Rel) -> io::Result<Option<Entry>> {
        let found = match path.split() {
            // Often a mount itself; what is mounted there is the tree.
            None => entry_of(&self.root).map(|root| Some(Entry { is_mount: false, ..root })),
            Some((parent, name)) => match self.dir(&parent) {
                Ok(dir) => entry_at(dir.as_fd(), name),
                Err(error) => Err(error),
            },
        };
        match found {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            other => Ok(other?),
        }
    }

    /// What is in the directory `path`, in the order of the names, unfinished things included.
    pub fn list(&self, path: &Rel) -> io::Result<Vec<(Vec<u8>, Entry)>> {
        let dir = self.dir(path)?;
        let mut found = Vec::new();
        for name in names(&dir)? {
            // What vanished since is not there.
            if let Some(entry) = entry_at(dir.as_fd(), &name.0)? {
                found.push((name.0, entry));
            }
        }
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Names of the directories directly below `path` that belong to its file system, and the open
    /// directory itself.
    pub fn subdirs(&self, path: &Rel) -> io::Result<(OwnedFd, Vec<Vec<u8>>)> {
        let dir = self.dir(path)?;
        let mut found = Vec::new();
        for (name, kind) in names(&dir)? {
            use rustix::fs::FileType;
            if matches!(kind, FileType::Directory | FileType::Unknown)
                && let Ok(stat) = stat_at(dir.as_fd(), &name)
                && FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
                && !is_mount(&stat)
            {
                found.push(name);
            }
        }
        Ok((dir, found))
    }

    fn open_at(&self, path: &Rel, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let bytes = if path.is_root() { b"." } else { path.as_bytes() };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, bytes, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => self.walk_to(bytes, flags),
            // A rename on the way; the kernel asks to try again.
            Err(Errno::AGAIN) => openat2(&self.root, bytes, flags, Mode::empty(), resolve),
            other => other,
        }
    }

    /// The same for kernels without openat2(2): every step is taken by itself.
    fn walk_to(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
        let last = parts.pop().unwrap_or(b".");
        let mut dir = openat(&self.root, c".", step, Mode::empty())?;
        for part in parts {
            dir = openat(&dir, part, step, Mode::empty())?;
        }
        openat(&dir, last, flags, Mode::empty())
    }
}

/// A path that names what `fd` has open, and nothing else.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What `file` has open.
pub fn entry_of(file: impl AsFd) -> rustix::io::Result<Entry> {
    let stat = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let xattrs = match rustix::fs::flistxattr_query(&file) {
        Ok(0) => Xattrs::new(),
        // Also if it was opened for its place only.
        _ => xattrs(proc_path(file.as_fd()).as_bytes(), true)?,
    };
    entry(&stat, Vec::new(), xattrs)
}

/// The moment of what `file` has open.
pub fn moment_of(file: impl AsFd) -> rustix::io::Result<Moment> {
    let stat = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(Moment { id: id(&stat), ctime: time(stat.stx_ctime) })
}

fn id(stat: &Statx) -> (u64, u64) {
    (u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino)
}

fn time(stamp: StatxTimestamp) -> Time {
    Time { secs: stamp.tv_sec, nanos: stamp.tv_nsec }
}

/// What is at `name` in `dir`; none if nothing is.
pub fn entry_at(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Entry>> {
    let found = stat_at(dir, name).and_then(|stat| {
        let is_link = stat.stx_mode & S_IFMT == S_IFLNK;
        let target = if is_link {
            rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()
        } else {
            Vec::new()
        };
        let mut path = proc_path(dir).into_bytes();
        path.push(b'/');
        path.extend_from_slice(name);
        entry(&stat, target, xattrs(&path, false)?)
    });
    match found {
        Ok(entry) => Ok(Some(entry)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

const S_IFMT: u16 = 0o170_000;
const S_IFLNK: u16 = 0o120_000;

fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Statx> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
}

fn is_mount(stat: &Statx) -> bool {
    stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn entry(stat: &Statx, target: Vec<u8>, xattrs: Xattrs) -> rustix::io::Result<Entry> {
    use rustix::fs::FileType;
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => Kind::File { size: stat.stx_size },
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Link { target },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::Block(stat.stx_rdev_major, stat.stx_rdev_minor),
        FileType::CharacterDevice => Kind::Char(stat.stx_rdev_major, stat.stx_rdev_minor),
        FileType::Unknown => return Err(Errno::INVAL),
    };
    Ok(Entry {
        mode: stat.stx_mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        xattrs,
        id: id(stat),
        names: stat.stx_nlink,
        is_mount: kind.is_dir() && is_mount(stat),
        is_suspect: false,
        kind,
    })
}

fn names(dir: &OwnedFd) -> io::Result<Vec<(Vec<u8>, rustix::fs::FileType)>> {
    let mut names = Vec::new();
    for found in Dir::read_from(dir)? {
        let found = found?;
        let name: &CStr = found.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_bytes().to_owned(), found.file_type()));
        }
    }
    Ok(names)
}

/// All extended attributes of what is at `path`, of a link itself unless `is_followed`.
fn xattrs(path: &[u8], is_followed: bool) -> rustix::io::Result<Xattrs> {
    let list = |buffer: &mut [u8]| match is_followed {
        true => rustix::fs::listxattr(path, buffer),
        false => rustix::fs::llistxattr(path, buffer),
    };
    let names = match read_growing(list) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        Err(error) => return Err(error),
    };
    let mut found = Xattrs::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let get = |buffer: &mut [u8]| match is_followed {
            true => rustix::fs::getxattr(path, name, buffer),
            false => rustix::fs::lgetxattr(path, name, buffer),
        };
        match read_growing(get) {
            Ok(value) => found.push((name.to_owned(), value)),
            // Gone since, or one of those that only some may read.
            Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads with a buffer that is made larger while it is too small.
fn read_growing(
    mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 256];
    match read(&mut small) {
        Ok(len) => return Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut buffer = vec![0; 4 << 10];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < XATTR_LEN_MAX => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The kernel's own limit on a value, and on a list of names.
const XATTR_LEN_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_way_leads_through_a_link_with_openat2_or_without() {
        let dir = tempfile::tempdir().expect("a folder");
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        for path in [tree.join("d/e"), outside.join("e")] {
            fs::create_dir_all(path).expect("folders");
        }
        fs::write(tree.join("d/e/f"), b"ours").expect("a file");
        fs::write(outside.join("e/f"), b"not ours").expect("a file");
        symlink(&outside, tree.join("out")).expect("a link");
        symlink("d", tree.join("in")).expect("a link");
        symlink("f", tree.join("d/e/last")).expect("a link");
        let tree = Tree::open(&tree).expect("it opens");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for (text, is_there) in [
            ("", true),
            ("d", true),
            ("d/e/f", true),
            ("out/e/f", false),
            ("out/e", false),
            ("out", false),
            ("in/e/f", false),
            ("d/e/last", false),
            ("d/e/f/below", false),
        ] {
            let path = Rel::new(text.as_bytes()).expect("a good path");
            let bytes = if path.is_root() { b"." } else { path.as_bytes() };
            let ways = [tree.open_at(&path, flags), tree.walk_to(bytes, flags)];
            assert_eq!(ways.map(|way| way.is_ok()), [is_there; 2], "{text:?}");
        }
    }
}
