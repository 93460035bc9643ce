//! `shadowvm bench sync --container`: what a copy of a container by CRIU costs, by kind of load.
//!
//! The whole of it is real: clients, the gateway between, and a sync that is asked for while they
//! are served.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Row, Table, Unit};
use crate::cli::cast::Client;
use crate::cli::containers::Containers;
use crate::cli::copied::Copied;
use crate::cli::stage::{Fact, Stage, StageError, target};
use crate::engine::LegId;
use crate::lab::web::client::{Plan, Work};
use crate::lab::{WorldOptions, ftp};

/// How long a sync may take; after several in a short time the gateway spaces them out.
const WAIT: Duration = Duration::from_secs(60);
/// CRIU cannot write a connection whose oldest segment is acknowledged in part, for one.
const RETRIES_MAX: usize = 3;
/// Clients of a load, each on a connection of its own.
const CLIENTS: usize = 4;
/// Length of what they ask for.
const FILE_BYTES: u64 = 777_777;
const LOADS: [&str; 3] = ["idle", "web", "FTP"];
const MEASURES: [(&str, Unit); 3] =
    [("pause", Unit::Seconds), ("total", Unit::Seconds), ("written", Unit::Bytes)];

/// Measures.
pub(super) fn run(runs: u32, dir: &Path) -> Result<Table, StageError> {
    let containers = Containers::find(dir)?;
    let rows = LOADS.iter().flat_map(|load| {
        MEASURES.map(|(measure, unit)| Row::new(format!("{load}: {measure}"), unit))
    });
    let mut table = Table::new("sync of containers", json!({ "runs": runs }), rows.collect());
    let mut stage = Stage::new(&WorldOptions::default(), dir)?;
    let copied = Copied::Containers(containers);
    stage.copied = Some(copied.clone());
    copied.start(&stage)?;
    stage.start_gateway(&copied.sections())?;
    stage.wait_protected(WAIT)?;
    for (load, rows) in LOADS.iter().zip(table.rows.chunks_mut(MEASURES.len())) {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<Client> = plans(&stage, load, &stop)
            .into_iter()
            .map(|plan| Client::start(&stage, plan))
            .collect();
        for _ in 0..runs {
            let values = sync(&mut stage)?;
            for (row, value) in rows.iter_mut().zip(values) {
                row.values.push(value);
            }
        }
        stop.store(true, Relaxed);
        for client in clients {
            let outcome = client.end()?;
            let wrong = outcome.wrong.map(|at| format!("{load}: a wrong byte at offset {at}"));
            table.troubles.extend(wrong);
            table.troubles.extend(outcome.error.map(|error| format!("{load}: {error}")));
        }
    }
    Ok(table)
}

fn plans(stage: &Stage, load: &str, stop: &Arc<AtomicBool>) -> Vec<Plan> {
    let mut to = target(&stage.world, LegId::A);
    let (bytes, count, pause) = (FILE_BYTES, None, Duration::ZERO);
    let work = match load {
        "web" => Work::Get { bytes, count, pause },
        "FTP" => {
            to.set_port(ftp::PORT);
            Work::Retr { bytes, count, pause }
        }
        _ => return Vec::new(),
    };
    let plan = || Plan { stop: Some(Arc::clone(stop)), patience: WAIT, ..Plan::new(to, work) };
    std::iter::repeat_with(plan).take(CLIENTS).collect()
}

/// One good sync: how long the source stood still, how long it took, how much was written. One that
/// fails, as the next one does not for the same reason, is told and made again.
fn sync(stage: &mut Stage) -> Result<[f64; 3], StageError> {
    for _ in 0..RETRIES_MAX {
        match try_sync(stage) {
            Err(StageError::NotReady("copy", why)) => {
                eprintln!("bench: a sync failed ({why}); it is asked for again");
            }
            done => return done,
        }
    }
    try_sync(stage)
}

fn try_sync(stage: &mut Stage) -> Result<[f64; 3], StageError> {
    stage.read_facts(Duration::ZERO)?;
    let from = stage.facts().len();
    stage.sync_now()?;
    let is_end = |fact: &Fact| fact.get("event").and_then(Value::as_str) == Some("sync_ended");
    let ended = stage.wait_fact(from, "a sync", WAIT, is_end)?;
    let fact = &stage.facts()[ended];
    if fact.get("ok") != Some(&Value::Bool(true)) {
        return Err(StageError::NotReady("copy", fact["message"].to_string()));
    }
    let line = stage.wait_log(&format!("sync {} of the containers took", fact["id"]), WAIT)?;
    let [total, pause, written] = ["took ", "paused for ", "ms, "].map(|before| {
        let (_, rest) = line.rsplit_once(before)?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    let values = pause.zip(total).zip(written);
    let ((pause, total), written) = values.ok_or(StageError::NotReady("report", line))?;
    Ok([pause / 1e3, total / 1e3, written * 1e6])
}
