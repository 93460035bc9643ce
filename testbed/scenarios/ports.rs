//! Each port of the service has a health of its own: one server's FTP dies, then the other one's
//! web server. Neither machine is given up, both ports are served, and the gateway says by whom.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use shadowvm::engine::{LegId, Source};
use shadowvm::lab::{HostId, Topology, WorldOptions};

use super::Scenario;
use super::bed::{Bed, GatewayOptions, until};
use super::client::Progress;
use super::content::{Content, bytes};
use super::daemons::{Daemon, FILE_BYTES};
use super::ftp::{Session, Way};
use super::judge;
use super::matrix::Failure;

/// Probes take turns, ten a second.
const TOLD_MAX: Duration = Duration::from_secs(10);
const BOTH: &str = "[80, 21]";

/// In both ways of addressing.
pub fn scenarios(content: &Content) -> Vec<Scenario<'_>> {
    let all = [("ports", Topology::default()), ("ports-vip", Topology::Vip(Source::Client))];
    let scenario = |(name, topology): (&str, Topology)| -> Scenario<'_> {
        (name.into(), Box::new(move |at: &Path| each_alone(at, content, topology)))
    };
    all.map(scenario).into()
}

fn each_alone(at: &Path, content: &Content, topology: Topology) -> Result<String, Failure> {
    let options = GatewayOptions { ports: Some(BOTH), ..GatewayOptions::default() };
    let world = WorldOptions { topology, ..WorldOptions::default() };
    let mut bed = Bed::new(at, content, &world, options)?;
    for leg in LegId::ALL {
        bed.start_nginx(leg)?;
        Daemon::Vsftpd.start(&bed, leg)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    use_both(&bed, 2)?;
    signal(&bed, LegId::A, "vsftpd", Signal::SIGKILL)?;
    wait_told(&bed, [&[21], &[]])?;
    // Web goes on with both; a new FTP session finds the server that is left.
    use_both(&bed, 1)?;
    signal(&bed, LegId::B, "nginx: master", Signal::SIGTERM)?;
    wait_told(&bed, [&[21], &[80]])?;
    use_both(&bed, 0)?;
    Daemon::Vsftpd.start(&bed, LegId::A)?;
    bed.start_nginx(LegId::B)?;
    bed.wait_protected()?;
    use_both(&bed, 2)?;
    for name in ["shadowvm_promotions_total", "shadowvm_detaches_total"] {
        if bed.count(name, None)? != 0 {
            return Err(Failure::Broken(format!("{name} is not 0, but each server served a port")));
        }
    }
    judge::no_divergence(&bed)?;
    let changes = bed.count("shadowvm_port_changes_total", None)?;
    bed.judge()?;
    Ok(format!("{changes} changes were told"))
}

/// A request and a transfer on new connections, so many of which have both servers.
fn use_both(bed: &Bed<'_>, paired: usize) -> Result<(), Failure> {
    let mut web = bed.connect(false)?;
    web.get(&bed.content.small[0], &Progress::default())?;
    let mut session = Session::open(bed, false)?;
    session.get(Way::Passive, "data", 0, &bytes(77, FILE_BYTES), &Progress::default())?;
    let states = bed.flows()?.into_iter().map(|flow| flow.state);
    let both = states.filter(|state| state == "paired").count();
    if both != paired {
        return Err(Failure::Late(format!("{both} of two connections have both servers")));
    }
    session.expect("QUIT", 221)?;
    drop((web, session));
    until(TOLD_MAX, "the connections to end", || {
        let flows = bed.flows().ok()?;
        flows.iter().all(|flow| flow.state == "time_wait").then_some(())
    })?;
    Ok(())
}

/// The gateway says which ports the servers refuse, and takes nobody for dead.
fn wait_told(bed: &Bed<'_>, refused: [&[u16]; 2]) -> Result<(), Failure> {
    let told = until(TOLD_MAX, "refused ports to be told", || {
        let status = bed.status().ok()?;
        let is_told = status.servers.iter().zip(refused).all(|(s, ports)| s.refused_ports == ports);
        (is_told && status.service.reason.as_deref() == Some("refused")).then_some(status)
    })?;
    match told.servers.iter().all(|server| server.state == "up") {
        true => Ok(()),
        false => Err(Failure::Broken(format!("{:?}", told.servers))),
    }
}

/// The processes of this server whose command line has `name` get a signal.
pub fn signal(bed: &Bed<'_>, leg: LegId, name: &str, signal: Signal) -> Result<(), String> {
    let host = HostId::Server(leg);
    let mut all = bed.world.processes(host).map_err(|e| e.to_string())?;
    all.retain(|(_, line)| line.contains(name));
    if all.is_empty() {
        return Err(format!("{leg:?} has no {name}"));
    }
    all.iter()
        .try_for_each(|(pid, _)| bed.world.signal(host, *pid, signal))
        .map_err(|e| e.to_string())
}
