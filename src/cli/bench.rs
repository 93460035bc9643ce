//! `shadowvm bench`: what the gateway costs and how long a failover is felt, against peers.
//!
//! Peers are measured in the same rounds, because ratios within one run mean more than figures of
//! two days.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::cast::take_powers;
use super::exit;
use super::stage::StageError;
use crate::lab::Haven;
use table::{Row, Table, Unit};

mod compare;
mod containers;
mod crowd;
mod failover;
mod flood;
mod garbage;
mod machine;
mod page;
mod paths;
mod peers;
mod pour;
mod real;
mod scale;
mod sync;
mod table;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm bench latency
  shadowvm bench latency --real --baseline route,haproxy --html latency.html
  shadowvm bench throughput --real --baseline route,haproxy,nginx --runs 9
  shadowvm bench throughput --work requests,connections -o csv
  shadowvm bench failover --fault cut --workload keepalive --runs 30
  shadowvm bench failover --planned 1000
  shadowvm bench crowd --connections 10000 --failovers 100
  shadowvm bench crowd --connections 100000            memory of idle connections
  shadowvm bench flood --rate 50000
  shadowvm bench compare
  shadowvm bench scale --flows 10,100000
  shadowvm bench sync --files 10000 --dir /var/tmp    the mirror beside rsync
  shadowvm bench sync --machine --runs 9              copies of virtual machines
  shadowvm bench sync --container --runs 9            copies of containers, as root

Peers run in the same rounds, one after the other; what counts are the ratios within a round.

Exit status: 0 measured, 1 a byte was wrong or a connection was lost, 69 nothing that was asked for
is installed, 77 not permitted.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Output::Text, global = true)]
    output: Output,
    /// Also write it as a page with plots, which stands alone
    #[arg(long, value_name = "FILE", global = true)]
    html: Option<PathBuf>,
}

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs: one JSON value
    Json,
    /// One line for each value of each round
    Csv,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Small requests at a fixed rate: what the gateway adds, and what others add
    Latency(paths::LatencyArgs),
    /// Bulk, small requests, new connections: how much goes through, at what cost of processor
    Throughput(paths::ThroughputArgs),
    /// The longest wait of a client when the primary dies, or when roles are swapped
    Failover(failover::Args),
    /// Thousands of connections at once: deaths, swaps, and the memory of idle ones
    Crowd(crowd::Args),
    /// One download beside a flood of SYNs from addresses that do not exist
    Flood(flood::Args),
    /// Comparing alone: the engine from memory and by sockets, and QEMU's colo-compare
    Compare(compare::Args),
    /// The engine alone with more and more connections: what a packet and a connection cost
    Scale(scale::Args),
    /// A sync by the mirror beside rsync (the first copy, one changed byte, nothing changed), or of
    /// virtual machines, or of containers
    Sync(sync::Args),
}

/// Measures.
pub fn run(args: Args) -> ExitCode {
    let part = match &args.what {
        What::Scale(what) => what.alone(),
        What::Compare(what) => what.serve(),
        _ => None,
    };
    if let Some(done) = part {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(source) => refused(&StageError::Io { what: "measuring", source }),
        };
    }
    let measured = match &args.what {
        // In the host's own file systems, without a world.
        What::Sync(what) => match (what.containers(), what.machines()) {
            (Some(runs), _) => in_a_haven(|dir| containers::run(runs, dir)),
            (None, Some((runs, image))) => in_a_haven(|dir| machine::run(runs, image, dir)),
            (None, None) => sync::run(what),
        },
        What::Scale(what) => scale::run(what),
        What::Compare(what) => in_a_haven(|dir| compare::run(what, dir)),
        What::Latency(what) => what.check().and_then(|()| in_a_world(&args.what)),
        What::Throughput(what) => what.check().and_then(|()| in_a_world(&args.what)),
        what => in_a_world(what),
    };
    let table = match measured {
        Ok(table) => table,
        Err(error) => return refused(&error),
    };
    match args.output {
        Output::Json => println!("{}", table.json()),
        Output::Csv => print!("{}", table.csv()),
        Output::Text => table.print(),
    }
    if let Some(file) = &args.html
        && let Err(error) = std::fs::write(file, page::html(&table))
    {
        eprintln!("bench: {}: {error}", file.display());
        return ExitCode::from(exit::NO);
    }
    ExitCode::from(if table.troubles.is_empty() { exit::OK } else { exit::NO })
}

/// Tells why nothing was measured.
fn refused(error: &StageError) -> ExitCode {
    eprintln!("bench: {error}");
    ExitCode::from(match error {
        StageError::World(crate::lab::WorldError::Refused { .. }) => exit::PERMISSION,
        StageError::Unavailable(_) => exit::UNAVAILABLE,
        _ => exit::NO,
    })
}

fn in_a_world(what: &What) -> Result<Table, StageError> {
    take_powers()?;
    in_a_haven(|dir| match what {
        What::Latency(what) => paths::latency(what, dir),
        What::Throughput(what) => paths::throughput(what, dir),
        What::Failover(what) => failover::run(what, dir),
        What::Crowd(what) => crowd::run(what, dir),
        What::Flood(what) => flood::run(what, dir),
        What::Compare(what) => compare::run(what, dir),
        What::Scale(what) => scale::run(what),
        What::Sync(what) => sync::run(what),
    })
}

fn in_a_haven(
    measure: impl FnOnce(&Path) -> Result<Table, StageError>,
) -> Result<Table, StageError> {
    let haven =
        Haven::new().map_err(|source| StageError::Io { what: "making a folder", source })?;
    measure(haven.dir())
}

/// A folder of its own for one stage.
fn folder(dir: &Path, name: &str) -> Result<PathBuf, StageError> {
    let made = dir.join(name);
    match std::fs::create_dir(&made) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(made),
        Err(source) => Err(StageError::Io { what: "making a folder", source }),
        Ok(()) => Ok(made),
    }
}
