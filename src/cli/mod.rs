//! The command line: one file a verb, each `Args` and `run(Args) -> ExitCode`.
//!
//! Owns the table of verbs and the exit codes. It never holds logic of a verb.

use std::io::ErrorKind;
use std::process::ExitCode;

use crate::config::ConfigError;
use clap::{Parser, Subcommand};

mod again;
pub mod agent;
pub mod bench;
mod cast;
pub mod check;
pub mod config;
pub mod container_keeper;
mod containers;
mod copied;
pub mod demo;
pub mod diff;
pub mod divergences;
pub mod doctor;
mod door;
pub mod evidence_keeper;
pub mod failover;
pub mod flows;
pub mod guest_keeper;
mod guests;
mod helper;
pub mod lab;
pub mod lab_client;
pub mod lab_container;
pub mod lab_heal;
pub mod lab_server;
pub mod mirror_end;
pub mod pause;
pub mod pcap;
pub mod rejoin;
pub mod reload;
pub mod replay;
pub mod rules;
pub mod run;
pub mod sim;
mod stage;
pub mod status;
pub mod sync;

/// What the exit status of every verb means.
pub mod exit {
    /// Good.
    pub const OK: u8 = 0;
    /// The answer is "no": they differ, an invariant failed, not protected with `--check`.
    pub const NO: u8 = 1;
    /// Wrong usage, or input that cannot be read.
    pub const USAGE: u8 = 2;
    /// No daemon answers.
    pub const NO_DAEMON: u8 = UNAVAILABLE;
    /// Something that is needed is not there.
    pub const UNAVAILABLE: u8 = 69;
    /// A bug of this program.
    pub const BUG: u8 = 70;
    /// Busy: try again later.
    pub const BUSY: u8 = 75;
    /// Not permitted.
    pub const PERMISSION: u8 = 77;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

/// Two servers behind one gateway behave as one that does not fail.
#[derive(Debug, Parser)]
#[command(name = "shadowvm", version, about, max_term_width = 100, after_help = EXAMPLES)]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  shadowvm demo                         see it work, without any configuration
  shadowvm config init > shadowvm.toml  write a first configuration
  shadowvm check shadowvm.toml          find every mistake in it
  shadowvm run -c shadowvm.toml         run the gateway
  shadowvm status                       ask it how it is

Exit status: 0 good, 1 the answer is no, 2 usage, 69 no daemon or not installed, 70 bug, 75 busy,
77 permission, 78 configuration.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the main job in a world of its own: compare, diverge, fail over, rejoin
    Demo(demo::Args),
    /// Run the gateway
    Run(run::Args),
    /// Check a configuration file and report every mistake in it
    Check(check::Args),
    /// Write a first configuration, or show the one in force with its defaults
    Config(config::Args),
    /// Check this host for what the gateway needs
    Doctor(doctor::Args),
    /// Show the state of the running gateway
    Status(status::Args),
    /// List the connections
    Flows(flows::Args),
    /// Show what the rules of comparison do, and propose others
    Rules(rules::Args),
    /// Make the other server primary
    Failover(failover::Args),
    /// Take a failed server back as backup
    Rejoin(rejoin::Args),
    /// Stop failing over by findings
    Pause(pause::Args),
    /// Fail over by findings again
    Resume(pause::Args),
    /// State synchronization
    Sync(sync::Args),
    /// Read the configuration file again
    Reload(reload::Args),
    /// What the gateway left of each divergence and failover
    Divergences(divergences::Args),
    /// Compare two captures as what was said in them
    Diff(diff::Args),
    /// Say what the clients of a capture said again to live servers, and compare
    Replay(replay::Args),
    /// What is in a capture; cut one into several; take out what it tells
    Pcap(pcap::Args),
    /// A lasting world of namespaces to try by hand
    Lab(lab::Args),
    /// Measure latency, throughput, failover, sync
    Bench(bench::Args),
    /// Run the simulator
    Sim(sim::Args),
    /// Serve a gateway beside a server on another host: its directory, and how its service is
    Agent(agent::Args),
    /// One end of a mirror: keeps a directory equal for a gateway that reaches it by a command
    MirrorEnd(mirror_end::Args),
    /// Run the operator's commands for `run`
    #[command(hide = true)]
    Helper(helper::Args),
    /// Keep the virtual machines for `run`
    #[command(hide = true)]
    GuestKeeper(guest_keeper::Args),
    /// Copy the containers for `run`
    #[command(hide = true)]
    ContainerKeeper(container_keeper::Args),
    /// Write evidence for `run`
    #[command(hide = true)]
    EvidenceKeeper(evidence_keeper::Args),
    /// The web server of a lab
    #[command(hide = true)]
    LabServer(lab_server::Args),
    /// The client of a lab
    #[command(hide = true)]
    LabClient(lab_client::Args),
    /// The first process of a lab's container
    #[command(hide = true)]
    LabContainer(lab_container::Args),
    /// The sync command of a lab
    #[command(hide = true)]
    LabHeal(lab_heal::Args),
}

/// Parses the command line and runs its verb.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let verb = move || match cli.verb {
        Verb::Demo(args) => demo::run(args),
        Verb::Run(args) => run::run(args),
        Verb::Check(args) => check::run(args),
        Verb::Config(args) => config::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Status(args) => status::run(args),
        Verb::Flows(args) => flows::run(args),
        Verb::Rules(args) => rules::run(args),
        Verb::Failover(args) => failover::run(args),
        Verb::Rejoin(args) => rejoin::run(args),
        Verb::Pause(args) => pause::run(args),
        Verb::Resume(args) => pause::resume(args),
        Verb::Sync(args) => sync::run(args),
        Verb::Reload(args) => reload::run(args),
        Verb::Divergences(args) => divergences::run(args),
        Verb::Diff(args) => diff::run(args),
        Verb::Replay(args) => replay::run(args),
        Verb::Pcap(args) => pcap::run(args),
        Verb::Lab(args) => lab::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Sim(args) => sim::run(args),
        Verb::Agent(args) => agent::run(args),
        Verb::MirrorEnd(args) => mirror_end::run(args),
        Verb::Helper(args) => helper::run(args),
        Verb::GuestKeeper(args) => guest_keeper::run(args),
        Verb::ContainerKeeper(args) => container_keeper::run(args),
        Verb::EvidenceKeeper(args) => evidence_keeper::run(args),
        Verb::LabServer(args) => lab_server::run(args),
        Verb::LabClient(args) => lab_client::run(args),
        Verb::LabContainer(args) => lab_container::run(args),
        Verb::LabHeal(args) => lab_heal::run(args),
    };
    // The panic's own message is on standard error already; scripts get the promised status.
    std::panic::catch_unwind(verb).unwrap_or(ExitCode::from(exit::BUG))
}

/// How a verb writes its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value.
    Json,
}

/// Tells why there is no configuration, and the status to exit with.
fn config_error(error: &ConfigError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(match error {
        ConfigError::Read { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            exit::PERMISSION
        }
        ConfigError::Read { .. } => exit::USAGE,
        ConfigError::Wrong(_) => exit::CONFIG,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_table_of_verbs_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
