//! `shadowvm config`: a first configuration, or the one in force with its defaults.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{Config, DEFAULT_FILE};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print a commented configuration to start from
    #[command(after_help = "Example:
  shadowvm config init > shadowvm.toml && shadowvm check shadowvm.toml")]
    Init,
    /// Print a configuration with every default written out
    #[command(after_help = "Example:
  shadowvm config show -c shadowvm.toml")]
    Show {
        /// The configuration file
        #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
}

/// Prints it.
pub fn run(args: Args) -> ExitCode {
    match args.what {
        What::Init => {
            super::door::say(Config::example());
            ExitCode::SUCCESS
        }
        What::Show { config } => match Config::load(&config) {
            Ok(config) => {
                super::door::say(&config.to_toml());
                ExitCode::SUCCESS
            }
            Err(error) => super::config_error(&error),
        },
    }
}
