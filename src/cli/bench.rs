//! `shadowvm bench`: what the gateway costs and how long a failover is felt, against peers.
//!
//! Peers are measured in the same rounds, because ratios within one run mean more than figures of
//! two days. Each round gives one value; what is told is their median and their spread.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::cast::take_powers;
use super::stage::StageError;
use super::{Format, exit};
use crate::lab::Haven;

mod crowd;
mod failover;
mod flood;
mod garbage;
mod paths;
mod pour;
mod real;
mod sync;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm bench latency
  shadowvm bench throughput --runs 9 --real
  shadowvm bench failover --fault cut --workload keepalive --runs 30
  shadowvm bench failover --planned 1000
  shadowvm bench crowd --connections 10000 --failovers 100
  shadowvm bench crowd --connections 100000            memory of idle connections
  shadowvm bench flood --rate 50000
  shadowvm bench sync --files 10000 --dir /var/tmp    the mirror beside rsync

Exit status: 0 measured, 1 a byte was wrong or a connection was lost, 77 not permitted.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Format::Text, global = true)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Small requests on one connection: through the gateway, and by the kernel's routing
    Latency(paths::LatencyArgs),
    /// One download: through the gateway, by the kernel's routing, and two such at once
    Throughput(paths::ThroughputArgs),
    /// The longest wait of a client when the primary dies, or when roles are swapped
    Failover(failover::Args),
    /// Thousands of connections at once: deaths, swaps, and the memory of idle ones
    Crowd(crowd::Args),
    /// One download beside a flood of SYNs from addresses that do not exist
    Flood(flood::Args),
    /// A sync by the mirror beside rsync: the first copy, one changed byte, nothing changed
    Sync(sync::Args),
}

/// Measures.
pub fn run(args: Args) -> ExitCode {
    let measured = match &args.what {
        // In the host's own file systems, without a world.
        What::Sync(what) => sync::run(what),
        what => in_a_world(what),
    };
    match measured {
        Ok(table) => {
            match args.output {
                Format::Json => println!("{}", table.json()),
                Format::Text => table.print(),
            }
            ExitCode::from(if table.troubles.is_empty() { exit::OK } else { exit::NO })
        }
        Err(error) => {
            eprintln!("bench: {error}");
            let is_refused = |e: &StageError| {
                matches!(e, StageError::World(crate::lab::WorldError::Refused { .. }))
            };
            ExitCode::from(if is_refused(&error) { exit::PERMISSION } else { exit::NO })
        }
    }
}

fn in_a_world(what: &What) -> Result<Table, StageError> {
    take_powers()?;
    let haven =
        Haven::new().map_err(|source| StageError::Io { what: "making a folder", source })?;
    match what {
        What::Latency(what) => paths::latency(what, haven.dir()),
        What::Throughput(what) => paths::throughput(what, haven.dir()),
        What::Failover(what) => failover::run(what, haven.dir()),
        What::Crowd(what) => crowd::run(what, haven.dir()),
        What::Flood(what) => flood::run(what, haven.dir()),
        What::Sync(what) => sync::run(what),
    }
}

/// A result: rows of values, one value a round.
#[derive(Debug)]
struct Table {
    name: &'static str,
    /// What was done, in words.
    setting: Value,
    rows: Vec<Row>,
    /// Ratios between rows, formed within each round.
    ratios: Vec<Row>,
    /// Wrong bytes and lost connections.
    troubles: Vec<String>,
    /// Rounds that say nothing, because the fault came after the last byte.
    void_rounds: u32,
}

/// One quantity.
#[derive(Debug)]
struct Row {
    name: &'static str,
    unit: Unit,
    values: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    BytesPerSecond,
    Bytes,
    Count,
    Ratio,
}

impl Row {
    fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, values: Vec::new() }
    }

    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
        let key = match self.unit {
            Unit::Seconds => "seconds",
            Unit::BytesPerSecond => "bytes_per_second",
            Unit::Bytes => "bytes",
            Unit::Count => "count",
            Unit::Ratio => "ratio",
        };
        json!({
            "name": self.name, "unit": key, "rounds": self.values.len(),
            "min": self.quantile(0.0), "p50": self.quantile(0.5), "p99": self.quantile(0.99),
            "max": self.quantile(1.0), "values": self.values,
        })
    }

    fn print(&self) {
        let show = |share| match (self.quantile(share), self.unit) {
            (value, _) if value.is_nan() => "-".to_owned(),
            (value, Unit::Seconds) if value < 0.01 => format!("{:.0} us", value * 1e6),
            (value, Unit::Seconds) => format!("{:.1} ms", value * 1e3),
            (value, Unit::BytesPerSecond) => format!("{:.2} Gbit/s", value * 8.0 / 1e9),
            (value, Unit::Bytes) if value >= 1e6 => format!("{:.1} MB", value / 1e6),
            (value, Unit::Bytes) => format!("{value:.0} B"),
            (value, Unit::Count) => format!("{value:.0}"),
            (value, Unit::Ratio) => format!("{value:.2}"),
        };
        let shares = [0.5, 0.99, 0.0, 1.0].map(show);
        println!(
            "  {:<44}{:>13}{:>13}{:>13}{:>13}",
            self.name, shares[0], shares[1], shares[2], shares[3]
        );
    }
}

impl Table {
    fn new(name: &'static str, setting: Value, rows: Vec<Row>) -> Self {
        Self { name, setting, rows, ratios: Vec::new(), troubles: Vec::new(), void_rounds: 0 }
    }

    /// Adds the ratio of two rows, round by round.
    fn ratio(&mut self, name: &'static str, of: usize, to: usize) {
        let pairs = self.rows[of].values.iter().zip(&self.rows[to].values);
        let values = pairs.map(|(of, to)| of / to).collect();
        self.ratios.push(Row { name, unit: Unit::Ratio, values });
    }

    fn json(&self) -> Value {
        let all: Vec<_> = self.rows.iter().chain(&self.ratios).map(Row::json).collect();
        json!({
            "bench": self.name, "setting": self.setting, "cpus": cpus(), "kernel": kernel(),
            "rows": all,
            "void_rounds": self.void_rounds, "troubles": self.troubles,
        })
    }

    fn print(&self) {
        println!("{} {}, Linux {}, {} cores", self.name, self.setting, kernel(), cpus());
        let heads = ["p50", "p99", "least", "most"];
        println!("  {:<44}{:>13}{:>13}{:>13}{:>13}", "", heads[0], heads[1], heads[2], heads[3]);
        self.rows.iter().chain(&self.ratios).for_each(Row::print);
        if self.void_rounds > 0 {
            println!("  {} rounds void: the fault came after the last byte", self.void_rounds);
        }
        for trouble in &self.troubles {
            println!("  TROUBLE: {trouble}");
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "?".to_owned(), |release| release.trim().to_owned())
}

/// A folder of its own for one stage.
fn folder(dir: &std::path::Path, name: &str) -> Result<std::path::PathBuf, StageError> {
    let made = dir.join(name);
    match std::fs::create_dir(&made) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(made),
        Err(source) => Err(StageError::Io { what: "making a folder", source }),
        Ok(()) => Ok(made),
    }
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}
