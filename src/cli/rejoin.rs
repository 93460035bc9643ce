//! `shadowvm rejoin`: take a failed server back as backup.

use std::process::ExitCode;
use std::time::Duration;

use super::door::{DoorArgs, command};
use crate::admin::types::Rejoin;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  shadowvm rejoin a            `a` is probed, synced if a backend is configured, then backup

Exit status: 0 begun, 1 refused (the message says why), 69 no gateway answers.")]
pub struct Args {
    #[command(flatten)]
    door: DoorArgs,
    /// The server to be taken back
    server: String,
}

/// Asks for it.
pub fn run(args: Args) -> ExitCode {
    let text = format!("{} is on probation; `shadowvm status` shows when it is back", args.server);
    let body = Rejoin { server: args.server };
    command(&args.door, "rejoin", &body, Duration::ZERO, |_| text.clone())
}
