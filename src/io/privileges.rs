//! Giving up what is not needed once the links are open.
#![allow(unsafe_code)]

use std::io;

/// From here on nothing that is executed can gain privileges (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: a plain prctl with integer arguments.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
