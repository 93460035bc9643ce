//! `shadowvm lab-heal`: hidden; the sync command of a lab, which makes a faulty server right.

use std::path::PathBuf;
use std::process::ExitCode;

use super::exit;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file whose presence makes the server misbehave
    #[arg(value_name = "FILE")]
    wrong: PathBuf,
}

/// Takes the fault away; a fault that is not there is none.
pub fn run(args: Args) -> ExitCode {
    match std::fs::remove_file(&args.wrong) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("lab-heal: {}: {error}", args.wrong.display());
            ExitCode::from(exit::NO)
        }
        _ => ExitCode::SUCCESS,
    }
}
