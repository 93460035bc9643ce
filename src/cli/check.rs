//! `shadowvm check`: is this configuration file right?
//!
//! Reads the file only: no daemon, no interface, no privilege.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Format, exit};
use crate::config::{Config, ConfigError, DEFAULT_FILE};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm check                     check /etc/shadowvm/shadowvm.toml
  shadowvm check ./shadowvm.toml     check another file
  shadowvm check -o json FILE        for editors and scripts

Exit status: 0 the file is right, 2 it cannot be read, 78 it has mistakes (all are shown).")]
pub struct Args {
    /// The configuration file
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

/// Checks the file.
pub fn run(args: Args) -> ExitCode {
    let file = args.file.display();
    match (Config::load(&args.file), args.output) {
        (Ok(_), Format::Text) => {
            println!("{file}: OK");
            ExitCode::SUCCESS
        }
        (Ok(_), Format::Json) => {
            println!("{}", serde_json::json!({ "ok": true, "problems": [] }));
            ExitCode::SUCCESS
        }
        (Err(ConfigError::Wrong(problems)), Format::Json) => {
            println!("{}", serde_json::json!({ "ok": false, "problems": problems.list }));
            ExitCode::from(exit::CONFIG)
        }
        (Err(error), _) => super::config_error(&error),
    }
}
