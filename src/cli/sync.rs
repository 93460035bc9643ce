//! `shadowvm sync`: state synchronization by hand.

use std::process::ExitCode;
use std::time::Duration;

use super::door::{DoorArgs, command};
use crate::admin::types::Nothing;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make the backup equal to the primary now
    ///
    /// With virtual machines and containers (`backend = "qemu"`, `"container"`) this also
    /// replaces a backup that has failed, or runs without an answer, by a copy of the primary.
    #[command(after_help = "Example:
  shadowvm sync now

Exit status: 0 begun, 1 refused (no backend, no backup), 75 a sync is under way already,
69 no gateway answers.")]
    Now {
        #[command(flatten)]
        door: DoorArgs,
    },
}

/// Asks for it.
pub fn run(args: Args) -> ExitCode {
    let What::Now { door } = args.what;
    command(&door, "sync", &Nothing {}, Duration::ZERO, |_| {
        "sync asked for; `shadowvm status` shows it".to_owned()
    })
}
