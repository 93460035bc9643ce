//! Connections that come back under protection: the primary dies, comes back, and takes part again
//! in what is open; then the other one dies.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shadowvm::engine::{LegId, Source};
use shadowvm::lab::{HostId, Topology, WorldOptions};

use super::Scenario;
use super::bed::{Bed, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::content::{Content, leg_name};
use super::judge;
use super::matrix::{Failure, Struck};

/// Connections that wait, and so many more that ask all the time.
const IDLE: usize = 6;
const BUSY: usize = 2;
/// A server is on probation for three seconds before that.
const AGAIN_MAX: Duration = Duration::from_secs(20);
const OPTIONS: &str = "[failover]\nreprotect = \"idle\"\n";

/// In each topology; in one of them unless `is_long`.
pub fn scenarios(content: &Content, is_long: bool) -> Vec<Scenario<'_>> {
    let all = [
        ("reprotect", Topology::default()),
        ("reprotect-vip", Topology::Vip(Source::Client)),
        ("reprotect-vip-gateway", Topology::Vip(Source::Gateway)),
    ];
    let scenario = |(name, topology): (&str, Topology)| -> Scenario<'_> {
        (name.into(), Box::new(move |at: &Path| there_and_back(at, content, topology)))
    };
    all.into_iter().take(if is_long { 3 } else { 2 }).map(scenario).collect()
}

/// Both servers die, one after the other, and come back, twice: the same connections all the time.
fn there_and_back(at: &Path, content: &Content, topology: Topology) -> Result<String, Failure> {
    let options = GatewayOptions { more: OPTIONS.into(), ..GatewayOptions::default() };
    let world = WorldOptions { topology, ..WorldOptions::default() };
    let mut bed = Bed::new(at, content, &world, options)?;
    for leg in LegId::ALL {
        bed.start_nginx(leg)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    let open = |count: usize| -> Result<Vec<Connection>, String> {
        (0..count).map(|n| bed.connect(n % 2 == 1)).collect()
    };
    let (mut idle, mut busy) = (open(IDLE)?, open(BUSY)?);
    for (n, connection) in idle.iter_mut().chain(&mut busy).enumerate() {
        connection.get(&content.small[n], &Progress::default())?;
    }
    judge::paired(&bed, IDLE + BUSY)?;
    let is_over = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| -> Result<usize, Failure> {
        let readers: Vec<_> = busy
            .iter_mut()
            .map(|connection| scope.spawn(|| ask_on(connection, content, &is_over)))
            .collect();
        let struck = rounds(&bed, &mut idle);
        is_over.store(true, Ordering::Relaxed);
        let mut asked = 0;
        for reader in readers {
            asked += reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        struck.map(|()| asked)
    })?;
    judge::no_divergence(&bed)?;
    judge::events(&bed.events()?, Struck { t_ns: 0 })?;
    let again = bed.count("shadowvm_flows_reprotected_total", None)?;
    if again < (2 * (IDLE + BUSY)) as u64 {
        return Err(Failure::Broken(format!("{again} times protected again")));
    }
    let summary = bed.judge()?;
    let shown = &summary["shown_bytes"];
    Ok(format!("{again} times protected again, {asked} requests meanwhile, {shown} bytes shown"))
}

/// One file after the other on one connection.
fn ask_on(
    connection: &mut Connection,
    content: &Content,
    is_over: &AtomicBool,
) -> Result<usize, String> {
    let mut asked = 0;
    while !is_over.load(Ordering::Relaxed) {
        let file = &content.small[asked % content.small.len()];
        connection.get(file, &Progress::default())?;
        asked += 1;
        // A client that reads what it got, so that there is something between two requests.
        std::thread::sleep(Duration::from_millis(3));
    }
    Ok(asked)
}

fn rounds(bed: &Bed<'_>, idle: &mut [Connection]) -> Result<(), Failure> {
    for (round, dies) in [LegId::A, LegId::B, LegId::A].into_iter().enumerate() {
        bed.world.kill_host(HostId::Server(dies)).map_err(|e| e.to_string())?;
        let survivor = leg_name(dies.other());
        until(AGAIN_MAX, "the failover", || {
            bed.status().ok().filter(|status| status.primary == survivor)
        })?;
        for (n, connection) in idle.iter_mut().enumerate().skip(round % 2) {
            let file = &bed.content.small[(n + round) % bed.content.small.len()];
            connection.get(file, &Progress::default())?;
        }
        bed.start_nginx(dies)?;
        until(AGAIN_MAX, "connections with two servers", || {
            let flows = bed.flows().ok()?;
            let paired = flows.iter().filter(|flow| flow.state == "paired").count();
            (paired >= IDLE + BUSY && flows.iter().all(|flow| flow.state != "solo")).then_some(())
        })?;
        // What is shown from here on, both have said.
        let unverified = bed.count("shadowvm_released_bytes_total", Some("no"))?;
        for (n, connection) in idle.iter_mut().enumerate() {
            let file = &bed.content.small[(n + round + 1) % bed.content.small.len()];
            connection.get(file, &Progress::default())?;
        }
        let later = bed.count("shadowvm_released_bytes_total", Some("no"))?;
        if later != unverified {
            let told = format!("{} bytes of one server alone", later - unverified);
            return Err(Failure::Late(told));
        }
    }
    Ok(())
}
