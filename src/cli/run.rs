//! `shadowvm run`: placeholder, replaced by its owner.

use std::process::ExitCode;

/// No arguments yet.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Says that it is not built yet.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("not built yet");
    ExitCode::from(super::exit::BUG)
}
