//! `shadowvm lab-container`: hidden; the first process of a lab's container, with the embedded
//! servers below it.

use std::io::{self, Write};
use std::process::{Command, ExitCode};

use super::exit;
use crate::io::privileges::close_inherited;
use crate::lab::{container, ftp};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose container it is: found by this word in the list of processes
    #[arg(value_name = "NAME")]
    name: String,
}

/// Reaps until killed; says `ready` once the server is started.
pub fn run(args: Args) -> ExitCode {
    let begin = || -> io::Result<()> {
        // What is open in a server would have to be copied with it.
        close_inherited()?;
        // A session of its own: CRIU copies whole ones.
        let mut server = Command::new("setsid");
        server.arg(std::env::current_exe()?).arg("lab-server");
        server.arg("--listen-ftp").arg(format!("[::]:{}", ftp::PORT));
        container::init(&mut server, || {
            println!("ready");
            io::stdout().flush()
        })
    };
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-container {}: {error}", args.name);
            ExitCode::from(exit::NO)
        }
    }
}
