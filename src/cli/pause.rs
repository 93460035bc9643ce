//! `shadowvm pause` and `shadowvm resume`: failing over by findings, off and on again.

use std::process::ExitCode;
use std::time::Duration;

use super::door::{DoorArgs, command};
use crate::admin::types::Nothing;

/// Arguments of both.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm pause               before work on the servers: findings no longer fail over
  shadowvm resume              afterwards

`shadowvm failover` works while paused. Exit status: 0 done, 69 no gateway answers.")]
pub struct Args {
    #[command(flatten)]
    door: DoorArgs,
}

/// Stops failing over by findings.
pub fn run(args: Args) -> ExitCode {
    let text = "failing over by findings is paused; `shadowvm resume` ends it";
    command(&args.door, "pause", &Nothing {}, Duration::ZERO, |_| text.to_owned())
}

/// Fails over by findings again.
pub fn resume(args: Args) -> ExitCode {
    let text = "failing over by findings is on";
    command(&args.door, "resume", &Nothing {}, Duration::ZERO, |_| text.to_owned())
}
