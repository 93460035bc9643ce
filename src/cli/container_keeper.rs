//! `shadowvm container-keeper`: hidden; the process that copies the containers of `run`.
//!
//! Its standard input is the socket to the gateway.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use super::exit;
use crate::io::privileges::close_inherited;
use crate::sync::container::{self, trial};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Be the process that the probe of CRIU copies, and tell this pipe when it stands
    #[arg(long, value_name = "PIPE")]
    trial: Option<PathBuf>,
}

/// Serves until the gateway is gone.
pub fn run(args: Args) -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let served = match args.trial {
        // A stranger's file would have to be copied too.
        Some(pipe) => close_inherited().and_then(|()| trial::stand(&pipe)),
        None => socket.and_then(|fd| container::serve(UnixStream::from(fd))),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container-keeper: {error}; this verb is started by `shadowvm run` only");
            ExitCode::from(exit::USAGE)
        }
    }
}
