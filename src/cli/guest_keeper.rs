//! `shadowvm guest-keeper`: hidden; the process that has the virtual machines of `run`.
//!
//! Its standard input is the socket to the gateway.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::exit;
use crate::sync::qemu;

/// No arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Serves until the gateway is gone.
pub fn run(_args: Args) -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    match socket.and_then(|fd| qemu::serve(UnixStream::from(fd))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-keeper: {error}; this verb is started by `shadowvm run` only");
            ExitCode::from(exit::USAGE)
        }
    }
}
