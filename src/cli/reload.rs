//! `shadowvm reload`: have the gateway read its configuration file again.

use std::process::ExitCode;
use std::time::Duration;

use super::door::{DoorArgs, command};
use crate::admin::types::Nothing;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  shadowvm check && shadowvm reload

Roles and connections stay. A file with mistakes, or one that changes what only a restart can
change, leaves the running configuration untouched. SIGHUP does the same.
Exit status: 0 taken, 1 needs a restart, 78 mistakes (all are shown), 69 no gateway answers.")]
pub struct Args {
    #[command(flatten)]
    door: DoorArgs,
}

/// Asks for it.
pub fn run(args: Args) -> ExitCode {
    command(&args.door, "reload", &Nothing {}, Duration::ZERO, |_| {
        "the new configuration is in force".to_owned()
    })
}
