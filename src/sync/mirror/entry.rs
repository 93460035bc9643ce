//! What a tree consists of: paths below its root, and all that is to be equal at each of them.
//!
//! Owns the model and the comparison. Pure: it reads no file system.

use std::fmt;
use std::time::Duration;

/// A path below the root of a tree, as bytes, without a leading slash; empty for the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rel(Vec<u8>);

impl Rel {
    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    /// A path of these bytes, unless one of its parts is empty, `.`, `..` or holds a zero byte:
    /// what comes from another machine names nothing outside of the tree.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let is_good = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        let is_path = bytes.is_empty() || bytes.split(|&b| b == b'/').all(is_good);
        is_path.then(|| Self(bytes.to_owned()))
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// The directory that it is in, and its name there; none for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(at) => Some((Self(self.0[..at].to_owned()), &self.0[at + 1..])),
            None => Some((Self::root(), &self.0)),
        }
    }

    /// Whether it is `dir` or below it.
    pub fn is_within(&self, dir: &Self) -> bool {
        dir.0.is_empty()
            || self.0 == dir.0
            || (self.0.starts_with(&dir.0) && self.0.get(dir.0.len()) == Some(&b'/'))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Rel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => f.write_str("(the directory itself)"),
            false => f.write_str(&String::from_utf8_lossy(&self.0)),
        }
    }
}

/// A time of a file: seconds since 1970, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

impl Time {
    /// The time since an earlier one; none if that is later.
    pub fn since(self, earlier: Self) -> Option<Duration> {
        let of = |time: Self| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
        u64::try_from(of(self) - of(earlier)).ok().map(Duration::from_nanos)
    }
}

/// What something is, with what only its kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Its length in bytes, holes included.
        size: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link, never followed.
    Link {
        /// What it says.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A block device.
    Block(u32, u32),
    /// A character device.
    Char(u32, u32),
}

impl Kind {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        *self == Self::Dir
    }
}

/// Extended attributes by name, ACLs among them, in the order of their names.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One thing of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// The lower 12 bits of its mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed.
    pub mtime: Time,
    /// When anything of it changed: the kernel's own, so nobody can set it back.
    pub ctime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Device and inode: names of one file have the same.
    pub id: (u64, u64),
    /// How many names it has, in the tree and elsewhere.
    pub names: u32,
    /// Another file system begins here: what is below belongs to no mirror.
    pub is_mount: bool,
    /// Its content may differ although size and times say that it does not.
    pub is_suspect: bool,
}

impl Entry {
    /// Its length, if it is a regular file.
    pub fn size(&self) -> Option<u64> {
        match self.kind {
            Kind::File { size } => Some(size),
            _ => None,
        }
    }

    /// Whether it is a file with several names.
    pub fn is_linked(&self) -> bool {
        self.names > 1 && !self.kind.is_dir()
    }

    /// How it looks just now.
    pub fn moment(&self) -> Moment {
        Moment { id: self.id, ctime: self.ctime }
    }
}

/// A file at a moment: equal ones are the same file, of which nothing changed between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Device and inode.
    pub id: (u64, u64),
    /// When anything of it changed last.
    pub ctime: Time,
}

/// What the process of the target may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Powers {
    /// It can give files away, and set all attributes.
    pub is_root: bool,
}

impl Powers {
    /// Whether an attribute of this name is kept equal. The kernel's own (`system.`) are not, but
    /// for ACLs; without root only the user's are.
    pub fn keeps(self, name: &[u8]) -> bool {
        match name.strip_prefix(b"system.") {
            Some(rest) => matches!(rest, b"posix_acl_access" | b"posix_acl_default"),
            None => self.is_root || name.starts_with(b"user."),
        }
    }

    /// Whether everything but kind and content is equal.
    pub fn has_same_meta(self, a: &Entry, b: &Entry) -> bool {
        let of = |entry: &Entry| -> Xattrs {
            entry.xattrs.iter().filter(|(name, _)| self.keeps(name)).cloned().collect()
        };
        // A symbolic link has no mode of its own.
        let is_link = matches!(a.kind, Kind::Link { .. });
        (is_link || a.mode == b.mode)
            && a.mtime == b.mtime
            && (!self.is_root || (a.uid, a.gid) == (b.uid, b.gid))
            && (a.xattrs == b.xattrs || of(a) == of(b))
    }
}

/// The beginning of every name that a mirror gives to what is not finished. Such names belong to
/// no tree.
const UNFINISHED: &[u8] = b".shadowvm~";

/// The name of the unfinished thing `serial` of the process `tag`.
pub fn unfinished_name(tag: u64, serial: u64) -> Vec<u8> {
    let mut name = UNFINISHED.to_vec();
    name.extend_from_slice(format!("{tag:x}.{serial:x}").as_bytes());
    name
}

/// Whether a name is one that [`unfinished_name`] makes.
pub fn is_unfinished(name: &[u8]) -> bool {
    name.starts_with(UNFINISHED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_nothing_outside_of_the_tree() {
        for wrong in ["/", "/etc", "..", "a/../b", "a//b", "a/", ".", "a/./b", "a\0b"] {
            assert_eq!(Rel::new(wrong.as_bytes()), None, "{wrong:?}");
        }
        let path = Rel::new(b"a/b c/...").expect("it is good");
        assert_eq!(path.split(), Some((Rel::new(b"a/b c").expect("it is good"), &b"..."[..])));
        assert_eq!(Rel::root().split(), None);
        assert_eq!(Rel::root().join(b"a"), Rel::new(b"a").expect("it is good"));
    }

    #[test]
    fn within_is_by_whole_names() {
        let path = |text: &str| Rel::new(text.as_bytes()).expect("it is good");
        assert!(path("a/b").is_within(&path("a")) && path("a").is_within(&path("a")));
        assert!(path("a").is_within(&Rel::root()));
        assert!(!path("ab").is_within(&path("a")) && !path("a").is_within(&path("a/b")));
    }

    #[test]
    fn attributes_of_the_kernel_are_not_kept_but_for_acls() {
        let (root, user) = (Powers { is_root: true }, Powers { is_root: false });
        assert!(root.keeps(b"security.capability") && !user.keeps(b"security.capability"));
        assert!(user.keeps(b"user.x") && user.keeps(b"system.posix_acl_access"));
        assert!(!root.keeps(b"system.nfs4_acl"));
    }
}
