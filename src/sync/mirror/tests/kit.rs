//! Trees, edits, syncs between two places of this process, and an independent look at the result.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::sync::mirror::end::{Place, take_part};
use crate::sync::mirror::message::{Order, Receiver, Report, Sender};

/// Two folders that are gone at the end.
pub struct Bench {
    _dir: tempfile::TempDir,
    pub a: PathBuf,
    pub b: PathBuf,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&a, &b] {
            fs::create_dir(path).expect("a folder");
        }
        Self { _dir: dir, a, b }
    }

    /// Both as places without a watch.
    pub fn places(&self) -> [Place; 2] {
        [&self.a, &self.b].map(|dir| Place::open(dir, &[], false).expect("it opens"))
    }

    /// Both as places with a watch.
    pub fn watched(&self) -> [Place; 2] {
        [&self.a, &self.b].map(|dir| {
            let place = Place::open(dir, &[], true).expect("it opens");
            assert_eq!(place.blind, None);
            place
        })
    }

    pub fn assert_equal(&self) {
        let (a, b) = (look(&self.a), look(&self.b));
        for (path, left) in &a {
            assert_eq!(Some(left), b.get(path), "{path:?}");
        }
        for path in b.keys() {
            assert!(a.contains_key(path), "{path:?} is too much");
        }
    }
}

/// Makes `target` equal to `source`.
pub fn sync(source: &mut Place, target: &mut Place) -> Result<Report, String> {
    sync_with(source, target, Order::default())
}

/// The same with an order.
pub fn sync_with(source: &mut Place, target: &mut Place, order: Order) -> Result<Report, String> {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    sync_over(source, target, order, (&theirs, &theirs), (&ours, &ours))
        .unwrap_or_else(|error| Err(format!("broken: {error}")))
}

/// The same over given streams, each (in, out). Each side's is closed when it is done.
pub fn sync_over<R: Read + Send, W: Write + Send + Hangup>(
    source: &mut Place,
    target: &mut Place,
    order: Order,
    theirs: (R, W),
    ours: (R, W),
) -> std::io::Result<Result<Report, String>> {
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let (input, output) = theirs;
            let hangup = output.handle();
            let order = Order { is_target: false, ..order };
            let (mut receiver, mut sender) = (Receiver::new(input), Sender::new(output));
            let served = take_part(source, order, &mut receiver, &mut sender);
            let _ = hangup.shutdown(std::net::Shutdown::Both);
            served
        });
        let (input, output) = ours;
        let hangup = output.handle();
        let order = Order { is_target: true, ..order };
        let (mut receiver, mut sender) = (Receiver::new(input), Sender::new(output));
        let done = take_part(target, order, &mut receiver, &mut sender);
        let _ = hangup.shutdown(std::net::Shutdown::Both);
        let served = serving.join().expect("the source does not panic");
        done.and_then(|done| served.map(|_| done))
    })
}

/// A way out that can be closed from elsewhere.
pub trait Hangup {
    fn handle(&self) -> UnixStream;
}

impl Hangup for &UnixStream {
    fn handle(&self) -> UnixStream {
        self.try_clone().expect("a descriptor")
    }
}

/// Everything below a folder, each thing in one line.
pub fn look(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).expect("it is there");
        let name = path.strip_prefix(dir).expect("it is below").to_owned();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            left.extend(fs::read_dir(&path).expect("it opens").map(|e| e.expect("a name").path()));
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("link {:?}", fs::read_link(&path).expect("it is a link"))
        } else if kind.is_file() {
            let bytes = fs::read(&path).expect("it can be read");
            format!("file {} {}", bytes.len(), blake3::hash(&bytes))
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else if kind.is_socket() {
            "socket".to_owned()
        } else {
            format!("device {}", meta.rdev())
        };
        let mode = if kind.is_symlink() { 0 } else { meta.mode() };
        let times = (meta.mtime(), meta.mtime_nsec());
        let owner = (meta.uid(), meta.gid());
        let line = format!("{what} {mode:o} {owner:?} {times:?} {:?}", xattrs(&path));
        if !kind.is_dir() && meta.nlink() > 1 {
            firsts.entry(meta.ino()).or_insert_with(Vec::new).push(name.clone());
        }
        found.insert(name, line);
    }
    for mut names in firsts.into_values() {
        names.sort();
        for name in &names {
            let line = found.get_mut(name).expect("it was found");
            line.push_str(&format!(" names {names:?}"));
        }
    }
    found
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else { return Vec::new() };
    let names = String::from_utf8_lossy(&names[..len]).into_owned();
    let mut found = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("it has that one");
        value.truncate(len);
        found.push((name.to_owned(), value));
    }
    found.sort();
    found
}

/// Something that somebody does to a tree.
#[derive(Clone, Debug)]
pub enum Edit {
    Write { at: Vec<u8>, byte: u8, len: usize },
    Poke { at: Vec<u8>, byte: u8, offset: u64 },
    Cut { at: Vec<u8>, len: u64 },
    Mkdir(Vec<u8>),
    Symlink { at: Vec<u8>, to: Vec<u8> },
    Fifo(Vec<u8>),
    HardLink { from: Vec<u8>, to: Vec<u8> },
    Rename { from: Vec<u8>, to: Vec<u8> },
    Remove(Vec<u8>),
    Chmod { at: Vec<u8>, mode: u32 },
    Age { at: Vec<u8>, secs: i64 },
    Xattr { at: Vec<u8>, byte: u8 },
}

/// Does it, as far as the tree lets it.
pub fn edit(dir: &Path, edit: &Edit) {
    let path = |names: &[u8]| -> PathBuf {
        let names = names.iter().map(|name| format!("n{name}"));
        names.fold(dir.to_owned(), |path, name| path.join(name))
    };
    let (places, follows): (Vec<&Vec<u8>>, bool) = match edit {
        Edit::Write { at, .. } | Edit::Poke { at, .. } | Edit::Cut { at, .. } => (vec![at], true),
        Edit::Mkdir(at) => (vec![at], true),
        Edit::HardLink { from, to } | Edit::Rename { from, to } => (vec![from, to], false),
        Edit::Fifo(at) | Edit::Remove(at) | Edit::Symlink { at, .. } => (vec![at], false),
        Edit::Chmod { at, .. } | Edit::Age { at, .. } | Edit::Xattr { at, .. } => (vec![at], false),
    };
    if places.into_iter().any(|names| leads_out(dir, &path(names), follows)) {
        return; // it would be an edit of the other tree, from which the link was copied
    }
    let _ = match edit {
        Edit::Write { at, byte, len } => opening()
            .create(true)
            .truncate(true)
            .open(path(at))
            .and_then(|mut file| file.write_all(&vec![*byte; *len])),
        Edit::Poke { at, byte, offset } => {
            opening().open(path(at)).and_then(|file| file.write_all_at(&[*byte], *offset))
        }
        Edit::Cut { at, len } => opening().open(path(at)).and_then(|file| file.set_len(*len)),
        Edit::Mkdir(at) => fs::create_dir_all(path(at)),
        Edit::Symlink { at, to } => symlink(path(to), path(at)),
        Edit::Fifo(at) => {
            nix::unistd::mkfifo(&path(at), nix::sys::stat::Mode::S_IRWXU).map_err(Into::into)
        }
        Edit::HardLink { from, to } => fs::hard_link(path(from), path(to)),
        Edit::Rename { from, to } => fs::rename(path(from), path(to)),
        Edit::Remove(at) if at.is_empty() => Ok(()),
        Edit::Remove(at) => fs::remove_file(path(at)).or_else(|_| fs::remove_dir_all(path(at))),
        Edit::Chmod { at, mode } => fs::symlink_metadata(path(at)).and_then(|meta| {
            if meta.is_symlink() {
                return Ok(());
            }
            // The tests read what they have made, also without root.
            fs::set_permissions(path(at), fs::Permissions::from_mode(mode | 0o700))
        }),
        Edit::Age { at, secs } => age(&path(at), *secs),
        Edit::Xattr { at, byte } => {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(path(at), "user.test", &[*byte], flags).map_err(Into::into)
        }
    };
}

/// Whether `path` passes a link out of `dir`; if it `follows`, also whether it is one.
fn leads_out(dir: &Path, path: &Path, follows: bool) -> bool {
    let is_out = |place: &Path| fs::read_link(place).is_ok_and(|to| !to.starts_with(dir));
    let above = path.ancestors().skip(usize::from(!follows));
    above.take_while(|place| *place != dir).any(is_out)
}

/// To write, and without waiting for somebody who reads a pipe.
fn opening() -> fs::OpenOptions {
    let mut opening = fs::OpenOptions::new();
    opening.write(true).custom_flags(nix::libc::O_NONBLOCK);
    opening
}

/// Sets the time of modification, with a fraction of a second.
pub fn age(path: &Path, secs: i64) -> std::io::Result<()> {
    let time = rustix::fs::Timespec { tv_sec: secs, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags)?)
}

/// Whether names with this beginning are anywhere below.
pub fn has_unfinished(dir: &Path) -> bool {
    look(dir)
        .keys()
        .any(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".shadowvm~")))
}
