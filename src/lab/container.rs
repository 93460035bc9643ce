//! The first process of a container: it starts the server, reaps, and does nothing else.
//!
//! It is the init of a pid namespace, in mount and ipc namespaces of its own, so that CRIU can
//! write the server below it and bring a copy back.

use std::io;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Starts `server` and reaps for ever; `ready` is called once it is started.
pub fn init(server: &mut Command, ready: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // CRIU keeps there what it has learnt of the kernel, if that is in memory.
    mount(Some("shadowvm"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let (stdin, stdout, stderr) = (Stdio::null(), Stdio::null(), Stdio::null());
    server.current_dir("/").stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    ready()?;
    loop {
        // One signal may tell of several that have ended, and of those before it was blocked.
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)
        ) {}
        signals.wait()?;
    }
}
