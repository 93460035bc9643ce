//! Thousands of connections at once: deaths, swaps, and what the idle ones cost.
//!
//! Every connection is asked before, during and after each event, and every byte of the answers
//! is checked; one that is lost is a trouble, whatever the times were.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::cast::Death;
use super::super::stage::{Stage, StageError};
use super::pour::pour;
use super::{Row, Table, Unit, folder, garbage};
use crate::engine::LegId;
use crate::lab::web::crowd::Crowd;
use crate::lab::web::{PIECE_MAX, PORT};
use crate::lab::world::SERVICE;
use crate::lab::{HostId, WorldOptions};

/// `bench crowd`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Connections open at the same time
    #[arg(long, default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=120_000))]
    connections: u32,
    /// Let the primary die so many times; after each return the connections are opened anew
    #[arg(long, value_name = "TIMES")]
    failovers: Option<u32>,
    /// How it dies
    #[arg(long, value_enum, default_value_t = Death::Kill9, requires = "failovers")]
    fault: Death,
    /// Swap the roles so many times, on the same connections
    #[arg(long, value_name = "TIMES", conflicts_with = "failovers")]
    planned: Option<u32>,
    /// Open, ask and close them again and again for so many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["failovers", "planned"])]
    churn: Option<u64>,
    /// All ask and none reads for so many seconds, while other connections are served
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["failovers", "planned", "churn"])]
    stalled: Option<u64>,
    /// Garbage comes from the backup's place for so many seconds
    #[arg(long, value_name = "SECONDS")]
    #[arg(conflicts_with_all = ["failovers", "planned", "churn", "stalled"])]
    garbage: Option<u64>,
}

/// Bytes of an answer.
const ANSWER_BYTES: usize = 1000;
/// Connections that are served while others stall, and how often they are asked before.
const OTHERS: usize = 100;
const QUIET_ROUNDS: u32 = 100;
/// Frames of garbage a second.
const GARBAGE_RATE: u32 = 20_000;
/// A connection that hears nothing for so long is lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to be a backup again.
const RETURN_WAIT: Duration = Duration::from_secs(30);
/// What the default allows is too little for a death every few seconds.
const LIMITS: &str = "[failover]\nflap_max = 1000\n[limits]\nflows_max = 131072\n";

/// Measures.
pub(super) fn run(args: &Args, dir: &Path) -> Result<Table, StageError> {
    let mut stage = Stage::new(&WorldOptions::default(), &folder(dir, "crowd")?)?;
    let connections = args.connections as usize;
    stage.crowd = Some(connections + OTHERS);
    for (host, key, value) in [
        // So many ports as a client can have, for each of two addresses, and again after a second.
        (HostId::Client, "net.ipv4.tcp_tw_reuse", "1"),
        (HostId::Client, "net.ipv4.ip_local_port_range", "1024 65535"),
        (HostId::Server(LegId::A), "net.core.somaxconn", "65535"),
        (HostId::Server(LegId::B), "net.core.somaxconn", "65535"),
        // Many clients would not come from one address with one port after the other.
        (HostId::Server(LegId::A), "net.ipv4.tcp_max_syn_backlog", "65535"),
        (HostId::Server(LegId::B), "net.ipv4.tcp_max_syn_backlog", "65535"),
    ] {
        stage.world.sysctl(host, key, value)?;
    }
    stage.start_all(LIMITS)?;
    let world = Arc::clone(&stage.world);
    let io = |what| move |source| StageError::Io { what, source };
    world.enter(HostId::Client, || {
        let crowd = Crowd::new(connections, PATIENCE).map_err(io("making the client"))?;
        let mut play = Play { stage, crowd, connections };
        match (args.failovers, args.planned) {
            (Some(times), _) => play.deaths(times, args.fault),
            (_, Some(times)) => play.swaps(times),
            _ => match (args.churn, args.stalled, args.garbage) {
                (Some(seconds), ..) => play.churn(Duration::from_secs(seconds)),
                (_, Some(seconds), _) => play.stalled(Duration::from_secs(seconds)),
                (.., Some(seconds)) => play.garbage(Duration::from_secs(seconds)),
                _ => play.idle(),
            },
        }
    })?
}

fn targets() -> [SocketAddr; 2] {
    let (v4, v6) = SERVICE;
    [IpAddr::V4(v4), IpAddr::V6(v6)].map(|ip| SocketAddr::new(ip, PORT))
}

/// The stage and the client.
#[derive(Debug)]
struct Play {
    stage: Stage,
    crowd: Crowd,
    connections: usize,
}

impl Play {
    fn open(&mut self) -> Result<(), StageError> {
        let opened = self.crowd.open(&targets(), self.connections);
        opened.map_err(|source| StageError::Io { what: "opening the connections", source })
    }

    /// All are asked, and `meanwhile` happens when a quarter is answered: (the time until the last
    /// answer, the connections that were lost).
    fn ask(
        &mut self,
        meanwhile: impl FnOnce(&Stage) -> Result<(), StageError>,
    ) -> Result<(f64, usize), StageError> {
        let began = Instant::now();
        self.crowd.ask(ANSWER_BYTES);
        let lost = self.crowd.take(self.connections / 4);
        meanwhile(&self.stage)?;
        let lost = lost + self.crowd.take(usize::MAX);
        Ok((began.elapsed().as_secs_f64(), lost))
    }

    fn deaths(&mut self, times: u32, fault: Death) -> Result<Table, StageError> {
        let rows = vec![
            Row::new("all are answered, the primary dies meanwhile", Unit::Seconds),
            Row::new("the same, nobody dies", Unit::Seconds),
            Row::new("connections kept", Unit::Count),
        ];
        let setting = json!({
            "connections": self.connections, "failovers": times,
            "fault": format!("{fault:?}").to_lowercase(),
        });
        let mut table = Table::new("crowd", setting, rows);
        for number in 0..times {
            self.open()?;
            let quiet = self.ask(|_| Ok(()))?;
            let primary = self.stage.primary()?;
            // Only who has two servers outlives one: a machine at its limit may have lost the
            // backup just before.
            let mut alone = 0;
            let died = self.ask(|stage| {
                alone = stage.status()?.flows.solo;
                Ok(fault.strike(&stage.world, primary)?)
            })?;
            if alone > 0 {
                let text = format!("death {number}: {alone} connections had one server before");
                table.troubles.push(text);
            }
            let after = self.ask(|_| Ok(()))?;
            if self.stage.primary()? == primary {
                table.troubles.push(format!("death {number}: no promotion"));
            }
            table.rows[0].values.push(died.0);
            table.rows[1].values.push(quiet.0);
            let lost = quiet.1 + died.1 + after.1;
            table.rows[2].values.push((self.connections - lost) as f64);
            self.crowd.reset();
            fault.undo(&mut self.stage, primary)?;
            self.stage.wait_protected(RETURN_WAIT)?;
            self.stage.forget_facts();
        }
        self.tell_lost(&mut table);
        Ok(table)
    }

    fn swaps(&mut self, times: u32) -> Result<Table, StageError> {
        let rows = vec![
            Row::new("all are answered, roles are swapped meanwhile", Unit::Seconds),
            Row::new("the same, nothing happens", Unit::Seconds),
            Row::new("connections kept", Unit::Count),
        ];
        let setting = json!({ "connections": self.connections, "planned": times });
        let mut table = Table::new("crowd", setting, rows);
        self.open()?;
        let quiet = self.ask(|_| Ok(()))?;
        for number in 0..times {
            let mut error = None;
            let swapped = self.ask(|stage| {
                error = stage.switch_over().err();
                Ok(())
            })?;
            table.troubles.extend(error.map(|error| format!("swap {number}: {error}")));
            let calm = self.ask(|_| Ok(()))?;
            table.rows[0].values.push(swapped.0);
            table.rows[1].values.push(calm.0);
            table.rows[2].values.push(self.crowd.len() as f64);
        }
        table.troubles.extend((quiet.1 > 0).then(|| format!("{} lost at once", quiet.1)));
        self.tell_lost(&mut table);
        Ok(table)
    }

    fn idle(&mut self) -> Result<Table, StageError> {
        let rows = vec![
            Row::new("memory of the gateway before", Unit::Bytes),
            Row::new("memory of the gateway with them", Unit::Bytes),
            Row::new("memory for each connection", Unit::Bytes),
            Row::new("connections kept", Unit::Count),
        ];
        let setting = json!({ "connections": self.connections, "idle": true });
        let mut table = Table::new("crowd", setting, rows);
        let before = self.stage.gateway_memory()?;
        self.open()?;
        // Not all at once: they are idle, and what a burst needs is another question.
        self.crowd.ask_in_turn(ANSWER_BYTES);
        let with = self.stage.gateway_memory()?;
        self.crowd.ask_in_turn(ANSWER_BYTES);
        let each = (with.saturating_sub(before)) as f64 / self.connections as f64;
        let values = [before as f64, with as f64, each, self.crowd.len() as f64];
        for (row, value) in table.rows.iter_mut().zip(values) {
            row.values.push(value);
        }
        self.tell_lost(&mut table);
        Ok(table)
    }

    fn churn(&mut self, time: Duration) -> Result<Table, StageError> {
        let rows = vec![
            Row::new("memory of the gateway, second quarter", Unit::Bytes),
            Row::new("memory of the gateway, last quarter", Unit::Bytes),
            Row::new("connections a second", Unit::Count),
            Row::new("connections kept", Unit::Count),
        ];
        let setting = json!({ "connections": self.connections, "seconds": time.as_secs() });
        let mut table = Table::new("crowd", setting, rows);
        let began = Instant::now();
        while began.elapsed() < time {
            let at = Instant::now();
            self.open()?;
            self.ask(|_| Ok(()))?;
            table.rows[3].values.push(self.crowd.len() as f64);
            table.rows[2].values.push(self.connections as f64 / at.elapsed().as_secs_f64());
            // Most clients close; some just go.
            match table.rows[3].values.len() % 4 {
                0 => self.crowd.reset(),
                _ => self.crowd.close(),
            }
            let quarter = (began.elapsed().as_secs_f64() * 4.0 / time.as_secs_f64()) as u32;
            let row = if quarter == 1 { 0 } else { 1 };
            if matches!(quarter, 1 | 3) {
                let memory = self.stage.gateway_memory()?;
                table.rows[row].values.push(memory as f64);
            }
        }
        table.ratio("memory, last quarter to second", 1, 0);
        self.tell_lost(&mut table);
        Ok(table)
    }

    fn stalled(&mut self, time: Duration) -> Result<Table, StageError> {
        let rows = vec![
            Row::new("memory of the gateway before", Unit::Bytes),
            Row::new("memory of the gateway, nobody reads", Unit::Bytes),
            Row::new("others are answered, nobody stalls", Unit::Seconds),
            Row::new("others are answered meanwhile", Unit::Seconds),
            Row::new("connections kept", Unit::Count),
        ];
        let setting = json!({ "connections": self.connections, "stalled": time.as_secs() });
        let mut table = Table::new("crowd", setting, rows);
        let io = |what| move |source| StageError::Io { what, source };
        let mut others = Crowd::new(OTHERS, PATIENCE).map_err(io("making the client"))?;
        others.open(&targets(), OTHERS).map_err(io("opening the connections"))?;
        self.open()?;
        let mut ask_others = |row: &mut Row| {
            let began = Instant::now();
            others.ask(ANSWER_BYTES);
            others.take(usize::MAX);
            row.values.push(began.elapsed().as_secs_f64());
            others.lost().to_vec()
        };
        for _ in 0..QUIET_ROUNDS {
            ask_others(&mut table.rows[2]);
        }
        table.rows[0].values.push(self.stage.gateway_memory()? as f64);
        self.crowd.ask_unread(PIECE_MAX);
        let began = Instant::now();
        let mut lost = Vec::new();
        while began.elapsed() < time {
            lost = ask_others(&mut table.rows[3]);
            table.rows[1].values.push(self.stage.gateway_memory()? as f64);
        }
        self.crowd.read(PIECE_MAX);
        self.crowd.take(usize::MAX);
        table.rows[4].values.push(self.crowd.len() as f64);
        table.troubles.extend(lost.iter().map(|(why, n)| format!("{n} others lost: {why}")));
        self.tell_lost(&mut table);
        Ok(table)
    }

    fn garbage(&mut self, time: Duration) -> Result<Table, StageError> {
        let rows = vec![
            Row::new("all are answered, no garbage", Unit::Seconds),
            Row::new("all are answered beside it", Unit::Seconds),
            Row::new("memory of the gateway before", Unit::Bytes),
            Row::new("memory of the gateway meanwhile", Unit::Bytes),
            Row::new("frames of garbage a second", Unit::Count),
            Row::new("connections kept", Unit::Count),
        ];
        let setting = json!({ "connections": self.connections, "garbage": time.as_secs() });
        let mut table = Table::new("crowd", setting, rows);
        self.open()?;
        for _ in 0..5 {
            let quiet = self.ask(|_| Ok(()))?;
            table.rows[0].values.push(quiet.0);
        }
        table.rows[2].values.push(self.stage.gateway_memory()? as f64);
        let backup = HostId::Server(self.stage.primary()?.other());
        let (world, stop) = (Arc::clone(&self.stage.world), AtomicBool::new(false));
        let rate = std::thread::scope(|scope| -> Result<f64, StageError> {
            let spew = scope.spawn(|| pour(&world, backup, GARBAGE_RATE, &stop, garbage::frame));
            let began = Instant::now();
            let mut played = Ok(());
            while began.elapsed() < time && played.is_ok() {
                played = self.ask(|_| Ok(())).and_then(|asked| {
                    table.rows[1].values.push(asked.0);
                    table.rows[3].values.push(self.stage.gateway_memory()? as f64);
                    Ok(())
                });
            }
            stop.store(true, Relaxed);
            let rate = spew.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            played.and(rate)
        })?;
        table.rows[4].values.push(rate);
        table.rows[5].values.push(self.crowd.len() as f64);
        self.tell_lost(&mut table);
        Ok(table)
    }

    fn tell_lost(&self, table: &mut Table) {
        let told = self.crowd.lost().iter();
        table.troubles.extend(told.map(|(why, times)| format!("{times} connections lost: {why}")));
    }
}
