//! `shadowvm helper`: hidden; the process that runs the operator's commands for `run`.
//!
//! Its standard input is the socket to the gateway.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::exit;
use crate::sync::helper;

/// No arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Serves until the gateway is gone.
pub fn run(_args: Args) -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    match socket.and_then(|fd| helper::serve(UnixStream::from(fd))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("helper: {error}; this verb is started by `shadowvm run` only");
            ExitCode::from(exit::USAGE)
        }
    }
}
