//! Giving up what is not needed once the links are open.
#![allow(unsafe_code)]

use std::io;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// From here on nothing that is executed can gain privileges (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: a plain prctl with integer arguments.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Becomes the user `uid` for good. Open links stay open; an interface that vanishes and returns
/// can then not be opened again.
pub fn become_user(uid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}
