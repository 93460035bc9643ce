//! Giving up what is not needed: privileges, and what others have left open.
#![allow(unsafe_code)]

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid};

/// Closes what whoever started this program has left open, beyond standard input, output and error.
///
/// To be called first of all: what the program itself has opened would be closed too.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: no descriptor above 2 has an owner in this process yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes `user` if one is named, and keeps of all capabilities what it takes to open again an
/// interface that went and came back: CAP_NET_RAW for its socket, CAP_NET_ADMIN for its flags.
/// From here on nothing can gain a privilege, not even by executing (PR_SET_NO_NEW_PRIVS).
///
/// To be called before other threads start: they inherit it.
pub fn drop_to(user: Option<(Uid, Gid)>) -> io::Result<()> {
    let had = caps::read(None, CapSet::Permitted).map_err(of_caps)?;
    let keep: CapsHashSet =
        KEPT.into_iter().filter(|capability| had.contains(capability)).collect();
    // Who is not allowed to shrink the bounding set cannot execute with more either (see below).
    if had.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(of_caps)? {
            if !KEPT.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(of_caps)?;
            }
        }
    }
    if let Some((uid, gid)) = user {
        caps::securebits::set_keepcaps(true).map_err(of_caps)?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(of_caps)?;
    caps::set(None, CapSet::Effective, &keep).map_err(of_caps)?;
    caps::set(None, CapSet::Permitted, &keep).map_err(of_caps)?;
    caps::clear(None, CapSet::Inheritable).map_err(of_caps)?;
    no_new_privileges()
}

const KEPT: [Capability; 2] = [Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN];

fn of_caps(error: CapsError) -> io::Error {
    io::Error::other(error.to_string())
}

fn no_new_privileges() -> io::Result<()> {
    // SAFETY: a plain prctl with integer arguments.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
