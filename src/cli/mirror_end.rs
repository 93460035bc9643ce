//! `shadowvm mirror-end DIR`: one end of a mirror, on standard input and output.
//!
//! The gateway starts it by itself for directories of its own host, and by `dir_command` for those
//! of other hosts.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use super::exit;
use crate::sync::mirror::end;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, in [[server]] of the configuration:
  dir_command = [\"/usr/bin/ssh\", \"HOST\", \"shadowvm\", \"mirror-end\", \"/srv/www\"]

It speaks with a gateway, not with people, and ends with its input.
Exit status: 0 the gateway has ended, 70 the connection broke.")]
pub struct Args {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Serves until its input ends.
pub fn run(args: Args) -> ExitCode {
    let served = streams().and_then(|(input, output)| end::serve(&args.dir, input, output));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mirror-end: {}: {error}", args.dir.display());
            ExitCode::from(exit::BUG)
        }
    }
}

/// Unbuffered: messages know their length.
fn streams() -> io::Result<(File, File)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((File::from(input), File::from(output)))
}
