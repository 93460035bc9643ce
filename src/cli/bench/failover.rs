//! How long a client waits when the primary dies, or when the roles are swapped as planned.
//!
//! Each death has a world of its own, so that rounds are alike. The fault strikes at a byte count
//! of a client, and what counts is the longest wait that ended after it; a round in which the
//! clients were done by then is void and repeated.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::cast::{Client, Death};
use super::super::stage::{Addressing, Stage, StageError, target};
use super::{Row, Table, Unit, folder};
use crate::engine::LegId;
use crate::lab::WorldOptions;
use crate::lab::web::client::{Outcome, Plan, Work};

/// `bench failover`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How the primary dies
    #[arg(long, value_enum, default_value_t = Death::Kill9)]
    fault: Death,
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Workload::Download)]
    workload: Workload,
    /// What addresses the servers have
    #[arg(long, value_enum, default_value_t)]
    addressing: Addressing,
    /// Deaths
    #[arg(long, default_value_t = 30)]
    runs: u32,
    /// Swap the roles so many times under load instead
    #[arg(long, value_name = "TIMES", conflicts_with_all = ["fault", "workload", "runs"])]
    planned: Option<u32>,
    /// Draws the bytes at which the fault strikes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// One download of 200 MB
    Download,
    /// 16 connections with small requests
    Keepalive,
    /// One POST of 50 MB
    Upload,
}

impl Workload {
    fn clients(self) -> usize {
        if self == Self::Keepalive { KEPT_CONNECTIONS } else { 1 }
    }

    fn work(self) -> Work {
        let (bytes, count, pause) = match self {
            Self::Download => (200_000_000, Some(1), Duration::ZERO),
            Self::Keepalive => (SMALL_BYTES, Some(SMALL_REQUESTS), SMALL_PAUSE),
            Self::Upload => return Work::Post { bytes: self.bytes() },
        };
        Work::Get { bytes, count, pause }
    }

    /// Body bytes of one client.
    fn bytes(self) -> u64 {
        match self {
            Self::Download => 200_000_000,
            Self::Keepalive => SMALL_BYTES * SMALL_REQUESTS,
            Self::Upload => 50_000_000,
        }
    }
}

const KEPT_CONNECTIONS: usize = 16;
const SMALL_BYTES: u64 = 2_000;
const SMALL_REQUESTS: u64 = 500;
const SMALL_PAUSE: Duration = Duration::from_millis(2);
/// How long a client may take to reach the fault's byte.
const WAIT: Duration = Duration::from_secs(10);
/// How long a promotion may come after the last byte.
const PROMOTION_WAIT: Duration = Duration::from_millis(500);
/// Shorter waits are not looked at; they count as this long.
const GAP_SEEN: Duration = Duration::from_micros(300);
/// Time between two planned swaps.
const SWAP_EVERY: Duration = Duration::from_millis(20);

/// Measures.
pub(super) fn run(args: &Args, dir: &Path) -> Result<Table, StageError> {
    match args.planned {
        Some(times) => planned(times, dir),
        None => deaths(args, dir),
    }
}

fn deaths(args: &Args, dir: &Path) -> Result<Table, StageError> {
    let setting = json!({
        "fault": format!("{:?}", args.fault).to_lowercase(), "runs": args.runs, "seed": args.seed,
        "workload": format!("{:?}", args.workload).to_lowercase(),
        "addressing": args.addressing.name(),
    });
    let rows = vec![
        Row::new("longest wait of a client, primary dies", Unit::Seconds),
        Row::new("the same, nobody dies", Unit::Seconds),
        Row::new("from the death to the promotion's report", Unit::Seconds),
    ];
    let mut table = Table::new("failover", setting, rows);
    let mut draw = args.seed;
    let mut done = 0;
    while done < args.runs {
        // 10 % to 90 % of the way, and away from round numbers.
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = 0.1 + 0.8 * ((draw >> 40) as f64 / (1u64 << 24) as f64);
        let mark = (args.workload.bytes() as f64 * share) as u64;
        let dir = folder(dir, &format!("round-{done}-{}", table.void_rounds))?;
        let topology = args.addressing.topology();
        let mut stage = Stage::new(&WorldOptions { topology, ..WorldOptions::default() }, &dir)?;
        stage.start_all("")?;
        let quiet = go(&stage, args.workload, &mut table, None)?.1;
        let (died, wait) = go(&stage, args.workload, &mut table, Some((mark, args.fault)))?;
        let Some(died) = died else {
            table.void_rounds += 1;
            if table.void_rounds > args.runs {
                table.troubles.push("the fault came after the last byte too often".into());
                break;
            }
            continue;
        };
        let promoted = |fact: &super::super::stage::Fact| fact["event"] == "promoted";
        let values = [wait.as_secs_f64(), quiet.as_secs_f64()];
        for (row, value) in table.rows.iter_mut().zip(values) {
            row.values.push(value);
        }
        // A single flow may move by itself, and then nothing else need be found.
        if let Ok(at) = stage.wait_fact(0, "a failover", PROMOTION_WAIT, promoted) {
            let at_ns = stage.facts()[at]["t_ns"].as_u64().unwrap_or(0);
            table.rows[2].values.push(at_ns as f64 / 1e9 - died);
        }
        done += 1;
    }
    Ok(table)
}

/// One round of the workload: when the primary died (UNIX seconds; none: after the last byte, or
/// not at all) and the longest wait.
fn go(
    stage: &Stage,
    workload: Workload,
    table: &mut Table,
    fault: Option<(u64, Death)>,
) -> Result<(Option<f64>, Duration), StageError> {
    let (reached, told) = mpsc::channel();
    let clients: Vec<_> = (0..workload.clients())
        .map(|number| {
            let mut plan = Plan::new(target(&stage.world, LegId::A), workload.work());
            plan.long_gap = Some(GAP_SEEN);
            plan.marks = fault.iter().filter(|_| number == 0).map(|(mark, _)| *mark).collect();
            Client::start_telling(stage, plan, reached.clone())
        })
        .collect();
    drop(reached);
    let mut struck = None;
    if let Some((_, death)) = fault
        && told.recv_timeout(WAIT).is_ok()
    {
        struck = Some((Instant::now(), unix_now()));
        death.strike(&stage.world, LegId::A)?;
    }
    let outcomes: Vec<Outcome> = clients.into_iter().map(Client::end).collect::<Result<_, _>>()?;
    table.note(&outcomes);
    let since = struck.map(|(at, _)| at);
    let gaps = outcomes.iter().flat_map(|outcome| &outcome.long_gaps);
    let wait = gaps.filter(|(end, _)| since.is_none_or(|since| *end >= since)).map(|(_, gap)| *gap);
    let wait = wait.max().unwrap_or(GAP_SEEN);
    // If all were done before the death, nobody could feel it.
    let could_feel = |(at, _): &(Instant, f64)| outcomes.iter().any(|o| o.ended > *at);
    Ok((struck.filter(could_feel).map(|(_, unix)| unix), wait))
}

fn unix_now() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}

/// Swaps roles again and again under load.
fn planned(times: u32, dir: &Path) -> Result<Table, StageError> {
    let mut stage = Stage::new(&WorldOptions::default(), &folder(dir, "planned")?)?;
    stage.start_all("")?;
    let stop = Arc::new(AtomicBool::new(false));
    let start = |work| {
        let mut plan = Plan::new(target(&stage.world, LegId::A), work);
        (plan.stop, plan.long_gap) = (Some(Arc::clone(&stop)), Some(GAP_SEEN));
        Client::start(&stage, plan)
    };
    let small = Work::Get { bytes: SMALL_BYTES, count: None, pause: SMALL_PAUSE };
    let large = Work::Get { bytes: 5_000_000, count: None, pause: SMALL_PAUSE };
    let clients: Vec<_> = (0..4).map(|_| start(small)).chain([start(large)]).collect();
    let (mut swaps, mut calms) = (Vec::new(), Vec::new());
    let mut troubles = Vec::new();
    for number in 0..times {
        let began = Instant::now();
        if let Err(error) = stage.switch_over() {
            troubles.push(format!("swap {number}: {error}"));
        }
        swaps.push((began, Instant::now()));
        std::thread::sleep(SWAP_EVERY / 2);
        let calm = Instant::now();
        std::thread::sleep(SWAP_EVERY / 2);
        calms.push((calm, Instant::now()));
    }
    stop.store(true, Relaxed);
    let outcomes: Vec<Outcome> = clients.into_iter().map(Client::end).collect::<Result<_, _>>()?;
    let setting = json!({ "planned": times, "connections": outcomes.len() });
    let rows = vec![
        Row::new("longest wait of a client around a swap", Unit::Seconds),
        Row::new("the command, until it is answered", Unit::Seconds),
        Row::new("longest wait between swaps", Unit::Seconds),
    ];
    let mut table = Table::new("failover", setting, rows);
    // Waits that overlap a time; what is shorter than was remembered counts as that.
    let worst = |(began, ended): (Instant, Instant)| {
        let gaps = outcomes.iter().flat_map(|outcome| &outcome.long_gaps);
        let felt = gaps.filter(|(end, gap)| *end >= began && *end - *gap <= ended);
        felt.map(|(_, gap)| *gap).max().unwrap_or(GAP_SEEN).as_secs_f64()
    };
    for ((began, ended), calm) in swaps.into_iter().zip(calms) {
        table.rows[0].values.push(worst((began, ended)));
        table.rows[1].values.push((ended - began).as_secs_f64());
        table.rows[2].values.push(worst(calm));
    }
    table.troubles = troubles;
    table.note(&outcomes);
    Ok(table)
}
