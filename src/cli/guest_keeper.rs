//! `shadowvm guest-keeper`: hidden; the process that has the virtual machines of `run`.
//!
//! Its standard input is the socket to the gateway.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::exit;
use crate::io::writes::Written;
use crate::sync::qemu;
use crate::sync::qemu::twin::Writes;

/// No arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Serves until the gateway is gone.
pub fn run(_args: Args) -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    match socket.and_then(|fd| qemu::serve(UnixStream::from(fd), watch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-keeper: {error}; this verb is started by `shadowvm run` only");
            ExitCode::from(exit::USAGE)
        }
    }
}

/// What a guest writes of its memory, by the kernel's notes.
pub(super) fn watch(pid: u32, memory: &File) -> io::Result<Box<dyn Writes>> {
    Ok(Box::new(Notes(Written::of(pid, memory)?)))
}

#[derive(Debug)]
struct Notes(Written);

impl Writes for Notes {
    fn taken(&mut self) -> io::Result<Vec<Range<u64>>> {
        self.0.taken()
    }
}
