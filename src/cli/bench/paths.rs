//! Latency and throughput of three paths: the gateway, the kernel's routing, two plain fetches.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::super::cast::Client;
use super::super::stage::{Stage, StageError, routed_stage, target};
use super::real::{self, Fetch};
use super::{Row, Table, Unit, folder, seconds};
use crate::engine::LegId;
use crate::lab::WorldOptions;
use crate::lab::web::client::{Outcome, Plan, Work};

/// `bench latency`.
#[derive(Debug, clap::Args)]
pub(super) struct LatencyArgs {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Requests a round
    #[arg(long, default_value_t = 2000)]
    requests: u64,
    /// Bytes of an answer
    #[arg(long, default_value_t = 100)]
    bytes: u64,
}

/// `bench throughput`.
#[derive(Debug, clap::Args)]
pub(super) struct ThroughputArgs {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Bytes of a download
    #[arg(long, default_value_t = 500_000_000)]
    bytes: u64,
    /// nginx and curl instead of the embedded server and client, which do less for a byte
    #[arg(long)]
    real: bool,
}

/// Small requests on one kept connection.
pub(super) fn latency(args: &LatencyArgs, dir: &Path) -> Result<Table, StageError> {
    let pair = Pair::start(dir)?;
    let work = get(args.bytes, args.requests);
    let rows =
        ["gateway p50", "gateway p99", "kernel routing p50", "kernel routing p99", "added at p50"];
    let rows = rows.map(|name| Row::new(name, Unit::Seconds)).into();
    let setting = json!({ "runs": args.runs, "requests": args.requests, "bytes": args.bytes });
    let mut table = Table::new("latency", setting, rows);
    for _ in 0..args.runs {
        let through = one(&pair.gateway, LegId::A, work)?;
        let routed = one(&pair.routed, LegId::A, work)?;
        let at = |outcome: &Outcome, share| seconds(outcome.latency.value_at_quantile(share));
        let values = [at(&through, 0.5), at(&through, 0.99), at(&routed, 0.5), at(&routed, 0.99)];
        let added = values[0] - values[2];
        for (row, value) in table.rows.iter_mut().zip(values.into_iter().chain([added])) {
            row.values.push(value);
        }
        table.note([&through, &routed]);
    }
    table.ratio("gateway to kernel routing, p50", 0, 2);
    Ok(table)
}

/// One download at a time, and two plain ones at once.
pub(super) fn throughput(args: &ThroughputArgs, dir: &Path) -> Result<Table, StageError> {
    let rows = ["gateway", "kernel routing, one server", "two plain fetches at once, each"];
    let rows = rows.map(|name| Row::new(name, Unit::BytesPerSecond)).into();
    let programs = if args.real { "nginx and curl" } else { "embedded" };
    let setting = json!({ "runs": args.runs, "bytes": args.bytes, "programs": programs });
    let mut table = Table::new("throughput", setting, rows);
    let pair = match args.real {
        true => Pair::real(dir, args.bytes)?,
        false => Pair::start(dir)?,
    };
    for _ in 0..args.runs {
        let values = match args.real {
            true => fetch_real(&pair, args.bytes)?,
            false => fetch_embedded(&pair, args.bytes, &mut table)?,
        };
        for (row, value) in table.rows.iter_mut().zip(values) {
            row.values.push(value);
        }
    }
    table.ratio("gateway to kernel routing", 0, 1);
    table.ratio("gateway to two plain fetches", 0, 2);
    Ok(table)
}

/// Bytes per second through the gateway, by routing, and of the slower one of two at once.
fn fetch_embedded(pair: &Pair, bytes: u64, table: &mut Table) -> Result<[f64; 3], StageError> {
    let work = get(bytes, 1);
    let through = one(&pair.gateway, LegId::A, work)?;
    let routed = one(&pair.routed, LegId::A, work)?;
    let plan = |leg| Plan::new(target(&pair.routed.world, leg), work);
    let both = LegId::ALL.map(|leg| Client::start(&pair.routed, plan(leg)));
    let [a, b] = both.map(Client::end);
    let (a, b) = (a?, b?);
    table.note([&through, &routed, &a, &b]);
    let rate = |took: Duration| bytes as f64 / took.as_secs_f64();
    Ok([rate(through.took), rate(routed.took), rate(a.took.max(b.took))])
}

fn fetch_real(pair: &Pair, bytes: u64) -> Result<[f64; 3], StageError> {
    let through = Fetch::start(&pair.gateway, LegId::A).end(bytes)?;
    let routed = Fetch::start(&pair.routed, LegId::A).end(bytes)?;
    let [a, b] = LegId::ALL.map(|leg| Fetch::start(&pair.routed, leg));
    Ok([through, routed, a.end(bytes)?.min(b.end(bytes)?)])
}

/// The gateway's world and the plain one, side by side.
struct Pair {
    gateway: Stage,
    routed: Stage,
}

impl Pair {
    fn start(dir: &Path) -> Result<Self, StageError> {
        let mut gateway = Stage::new(&WorldOptions::default(), &folder(dir, "gateway")?)?;
        gateway.start_all("")?;
        Ok(Self { gateway, routed: routed_stage(&folder(dir, "routed")?)? })
    }

    fn real(dir: &Path, bytes: u64) -> Result<Self, StageError> {
        let (gateway, routed) = real::stages(dir, bytes)?;
        Ok(Self { gateway, routed })
    }
}

fn one(stage: &Stage, leg: LegId, work: Work) -> Result<Outcome, StageError> {
    Ok(Client::start(stage, Plan::new(target(&stage.world, leg), work)).end()?)
}

fn get(bytes: u64, count: u64) -> Work {
    Work::Get { bytes, count: Some(count), pause: Duration::ZERO }
}

impl Table {
    /// Notes wrong bytes and lost connections.
    pub(super) fn note<'a>(&mut self, outcomes: impl IntoIterator<Item = &'a Outcome>) {
        for outcome in outcomes {
            if let Some(at) = outcome.wrong {
                self.troubles.push(format!("a wrong byte at offset {at}"));
            }
            if let Some(error) = &outcome.error {
                self.troubles.push(format!("after {} bytes: {error}", outcome.bytes));
            }
        }
    }
}
