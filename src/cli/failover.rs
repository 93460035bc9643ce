//! `shadowvm failover`: make the other server primary.

use std::process::ExitCode;
use std::time::Duration;

use super::door::{DoorArgs, command};
use crate::admin::types::Failover;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm failover --planned            swap roles; both servers stay; nobody notices
  shadowvm failover --planned --wait 10  go on trying for 10 s until both are equal
  shadowvm failover --to b               make `b` primary now; the other is fenced

Exit status: 0 done, 1 refused (the message says why), 75 busy, 69 no gateway answers.")]
pub struct Args {
    #[command(flatten)]
    door: DoorArgs,
    /// The server to be primary; the other one if none is named
    #[arg(long, value_name = "SERVER")]
    to: Option<String>,
    /// Swap roles, and only if both servers are equal on every connection
    #[arg(long)]
    planned: bool,
    /// Go on trying while the servers are not equal or a sync is under way
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_value_t = 0,
        default_missing_value = "30",
        value_parser = clap::value_parser!(u16).range(0..=600)
    )]
    wait: u16,
}

/// Asks for it.
pub fn run(args: Args) -> ExitCode {
    let wait = Duration::from_secs(args.wait.into());
    let body = Failover { to: args.to, planned: args.planned, wait: wait.as_secs_f64() };
    command(&args.door, "failover", &body, wait, |done| {
        format!("{} is primary (epoch {})", done.primary, done.epoch)
    })
}
