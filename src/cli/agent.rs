//! `shadowvm agent`: the daemon beside a server, and the key that it shares with the gateway.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use super::exit;
use crate::config::parse_bytes;
use crate::sync::agent::key::{Key, KeyError};
use crate::sync::agent::serve::{Agent, AgentError, Setup};
use crate::sync::agent::service::Watched;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  shadowvm agent key /etc/shadowvm/agent.key       make the key; copy it to the gateway
  shadowvm agent --listen 10.0.0.2:7411 --key /etc/shadowvm/agent.key --dir /srv/www \\
      --service 192.0.2.10:80

The gateway's configuration names it: agent = \"10.0.0.2:7411\" in [[server]], instead of dir. The
connection is encrypted, and who has the key may read and write the directory. SIGTERM ends it.
Exit status: 2 usage, 69 it cannot listen there, 77 not permitted, 78 the key or the directory is
not as it has to be."
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Where gateways find it: on the network by which servers are administered
    #[arg(long, value_name = "ADDRESS:PORT", required = true, value_parser = address)]
    listen: Option<SocketAddr>,
    /// The file with the key
    #[arg(long, value_name = "FILE", default_value = "/etc/shadowvm/agent.key")]
    key: PathBuf,
    /// The directory that the gateway keeps equal
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// An address of the service beside it, which is watched; may be given again
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    service: Vec<SocketAddr>,
    /// The file with the number of the service's process; without it, who listens is found
    #[arg(long, value_name = "PIDFILE", requires = "service")]
    process: Option<PathBuf>,
    /// At most so many bytes a second leave for a gateway, such as 50MiB/s
    #[arg(long, value_name = "BYTES/s", value_parser = rate)]
    limit: Option<u64>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a key, in a new file that only its owner can read
    #[command(after_help = "Example:
  shadowvm agent key /etc/shadowvm/agent.key

Exit status: 0 made, 77 not permitted, 78 the file is there already, or cannot be written.")]
    Key {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "no such host".into())
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = parse_bytes(text.trim_end_matches("/s"));
    rate.filter(|rate| *rate > 0).ok_or_else(|| "write it as 50MiB/s".into())
}

/// Serves until it is ended, or makes a key.
pub fn run(args: Args) -> ExitCode {
    if let Some(Verb::Key { file }) = args.verb {
        return match Key::make(&file) {
            Ok(_) => {
                println!("{}: made; the agent and the gateway need the same file", file.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("agent: {error}");
                key_status(&error)
            }
        };
    }
    let Some(listen) = args.listen else { return ExitCode::from(exit::USAGE) };
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(is_terminal);
    // A subscriber that stands already is one of the process that called us.
    let _ = lines.with_target(false).try_init();
    let watched = Watched { services: args.service, pid_file: args.process };
    let (dir, limit) = (args.dir, args.limit);
    match Agent::bind(Setup { listen, key: args.key, dir, watched, limit }) {
        Ok(agent) => {
            tracing::info!("shadowvm {} listens on {listen}", env!("CARGO_PKG_VERSION"));
            agent.run()
        }
        Err(error) => {
            eprintln!("agent: {error}");
            match &error {
                AgentError::Key(error) => key_status(error),
                AgentError::Dir { source, .. } => status(source, exit::CONFIG),
                AgentError::Listen { source, .. } => status(source, exit::UNAVAILABLE),
            }
        }
    }
}

fn key_status(error: &KeyError) -> ExitCode {
    match error {
        KeyError::Read { source, .. } | KeyError::Make { source, .. } => {
            status(source, exit::CONFIG)
        }
        KeyError::Open { .. } | KeyError::Wrong { .. } => ExitCode::from(exit::CONFIG),
    }
}

fn status(error: &std::io::Error, otherwise: u8) -> ExitCode {
    ExitCode::from(match error.kind() {
        std::io::ErrorKind::PermissionDenied => exit::PERMISSION,
        _ => otherwise,
    })
}
