//! A folder that nobody else sees and that is gone with this process, however it ends.
//!
//! Owns the step into a mount namespace (and, for an ordinary user, a user namespace) of our own.
//! That step cannot be undone and needs a process with one thread, so it is the first thing that a
//! verb does.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// The folder.
#[derive(Debug)]
pub struct Haven {
    dir: PathBuf,
    is_private: bool,
}

impl Haven {
    /// Makes it. Where a mount is refused, it is a temporary folder that is removed at the end,
    /// though not after SIGKILL.
    pub fn new() -> io::Result<Self> {
        match private() {
            Ok(dir) => Ok(Self { dir, is_private: true }),
            Err(_) => {
                let dir = std::env::temp_dir().join(format!("shadowvm-{}", std::process::id()));
                std::fs::create_dir(&dir)?;
                Ok(Self { dir, is_private: false })
            }
        }
    }

    /// Where it is, for this process and those that it starts.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Haven {
    fn drop(&mut self) {
        if !self.is_private {
            // A temporary folder that cannot be removed is left to the system.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Becomes the root of a user namespace of our own. Errors: user namespaces are not allowed.
pub fn become_user_root() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Covers a folder that nobody needs with a file system in memory, for our eyes only.
fn private() -> io::Result<PathBuf> {
    let none = None::<&str>;
    let program = std::env::current_exe()?;
    let unused = |dir: &&Path| dir.is_dir() && !program.starts_with(dir);
    let dir = ["/mnt", "/media", "/srv", "/opt"].map(Path::new);
    let dir = dir.iter().copied().find(unused).ok_or(io::ErrorKind::NotFound)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("shadowvm"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=700"))?;
    Ok(dir.to_owned())
}
