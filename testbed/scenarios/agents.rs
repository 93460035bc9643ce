//! An agent beside each server, on a network by which they are administered: the mirror through
//! them, an agent that dies or has another key, and what they know of a server's death.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use shadowvm::engine::LegId;
use shadowvm::lab::{HostId, WorldOptions};

use super::Scenario;
use super::bed::{Bed, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::content::{Content, bytes, leg_name, sha256, write_dated};
use super::judge;
use super::matrix::Failure;
use super::ports::signal;
use super::special::trees_are_equal;

/// How long anything may take to be noticed.
const NOTICED_MAX: Duration = Duration::from_secs(15);
const MIRROR: &str = "[sync]\nbackend = \"mirror\"\ndeadline = \"1s\"\n";
const PROGRAM: &str = env!("CARGO_BIN_EXE_shadowvm");

/// All of them.
pub fn scenarios(content: &Content) -> Vec<Scenario<'_>> {
    vec![
        ("agents-mirror".into(), Box::new(move |at: &Path| mirrored(at, content))),
        ("agents-killed".into(), Box::new(move |at: &Path| killed(at, content))),
        ("agents-wrong-key".into(), Box::new(move |at: &Path| wrong_key(at, content))),
        ("agents-evidence".into(), Box::new(move |at: &Path| evidence(at, content))),
    ]
}

/// A daemon beside a server.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent's address on the network by which a server is administered.
pub fn address(leg: LegId) -> String {
    format!("10.98.{}.2:7411", leg.index())
}

/// A bed with that network, a key, and an agent beside each nginx; `more` is the gateway's.
fn bed<'a>(
    at: &Path,
    content: &'a Content,
    limit: &str,
    sync: &str,
) -> Result<(Bed<'a>, [Agent; 2]), Failure> {
    let key = at.join("agent.key");
    let more = format!("[agent]\nkey = \"{}\"\n{limit}{sync}", key.display());
    let options = GatewayOptions { more, has_agents: true, ..GatewayOptions::default() };
    let bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    made(Command::new(PROGRAM).args(["agent", "key"]).arg(&key))?;
    for leg in LegId::ALL {
        lay(&bed, leg)?;
        bed.start_nginx(leg)?;
    }
    let agents = [agent(&bed, LegId::A, &key)?, agent(&bed, LegId::B, &key)?];
    Ok((bed, agents))
}

/// A network of the gateway and one server.
fn lay(bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
    let (name, net) = (format!("mgmt-{}", leg_name(leg)), format!("10.98.{}", leg.index()));
    let server = bed.world.netns(HostId::Server(leg)).map_err(|e| e.to_string())?;
    let other = format!("/proc/{}/fd/{}", std::process::id(), server.as_raw_fd());
    let ip = |host, text: &str| {
        let run = || made(Command::new("ip").args(text.split(' ')));
        bed.world.enter(host, run).map_err(|e| e.to_string())?
    };
    ip(HostId::Gateway, &format!("link add {name} type veth peer name mgmt netns {other}"))?;
    for (host, device, last) in [(HostId::Gateway, &*name, 1), (HostId::Server(leg), "mgmt", 2)] {
        ip(host, &format!("addr add {net}.{last}/24 dev {device}"))?;
        ip(host, &format!("link set {device} up"))?;
    }
    Ok(())
}

/// Runs a command to its good end.
fn made(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Starts the agent of a server, and waits until it listens. It is no process of the server's: what
/// kills those leaves it alone.
fn agent(bed: &Bed<'_>, leg: LegId, key: &Path) -> Result<Agent, String> {
    let log = bed.folder.join(format!("agent-{}.log", leg_name(leg)));
    let said = fs::File::create(&log).map_err(|e| e.to_string())?;
    let service = bed.world.service_addresses(leg).0;
    let mut command = Command::new(PROGRAM);
    command.args(["agent", "--listen", &address(leg), "--key"]).arg(key);
    command.arg("--dir").arg(bed.own(leg).join("own"));
    command.args(["--service", &format!("{service}:80")]).stdin(Stdio::null()).stderr(said);
    let started = bed.world.enter(HostId::Server(leg), || command.spawn());
    let mut agent = Agent(started.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?);
    until(NOTICED_MAX, "the agent to listen", || match agent.0.try_wait() {
        Ok(Some(status)) => Some(Err(format!("the agent of {leg:?} ended: {status}"))),
        _ => fs::read_to_string(&log).is_ok_and(|s| s.contains("listens on")).then_some(Ok(())),
    })??;
    Ok(agent)
}

/// Waits until these words stand so often in the gateway's log.
fn wait_logged(bed: &Bed<'_>, words: &str, times: usize) -> Result<(), String> {
    until(NOTICED_MAX, words, || {
        let log = fs::read_to_string(bed.folder.join("gateway.log")).ok()?;
        (log.matches(words).count() >= times).then_some(())
    })
}

fn start(bed: &mut Bed<'_>) -> Result<(), String> {
    bed.start_gateway()?;
    bed.wait_protected()
}

/// How many syncs have ended well.
fn good_syncs(bed: &Bed<'_>) -> Result<usize, String> {
    let is_good = |event: &&Value| event["event"] == "sync_ended" && event["ok"] == true;
    Ok(bed.events()?.iter().filter(is_good).count())
}

/// A provoked difference is held, synced through two agents, and gone.
fn mirrored(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, _agents) = bed(at, content, "limit = \"200MiB\"\n", MIRROR)?;
    start(&mut bed)?;
    let before = good_syncs(&bed)?;
    // Equal in length and time: only the content tells them apart.
    let versions = [bytes(951, 300_000), bytes(952, 300_000)];
    for (leg, data) in LegId::ALL.into_iter().zip(&versions) {
        write_dated(&bed.own(leg).join("own/differs.bin"), data).map_err(|e| e.to_string())?;
    }
    let mut open = connections(&bed, 4)?;
    let right = (300_000, sha256(&versions[0]));
    for _ in 0..3 {
        for connection in &mut open {
            if connection.fetch("/own/differs.bin", "", &Progress::default())? != right {
                return Err(Failure::Broken("the file is not the primary's version".into()));
            }
            connection.get(&content.small[0], &Progress::default())?;
        }
    }
    let count = good_syncs(&bed)? - before;
    let differences = bed.count("shadowvm_divergences_total", None)?;
    if count == 0 || differences == 0 {
        return Err(Failure::Broken(format!("{differences} differences, {count} syncs")));
    }
    let [a, b] = LegId::ALL.map(|leg| bed.own(leg).join("own"));
    trees_are_equal(&a, &b)?;
    let mut fresh = bed.connect(false)?;
    if fresh.fetch("/own/differs.bin", "", &Progress::default())? != right
        || bed.count("shadowvm_divergences_total", None)? != differences
    {
        return Err(Failure::Broken("the file still differs after the sync".into()));
    }
    drop((open, fresh));
    bed.judge()?;
    Ok(format!("{differences} differences, {count} syncs through two agents"))
}

/// The target's agent is killed while files come: clients notice nothing, the next sync repairs.
fn killed(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, agents) = bed(at, content, "limit = \"8MiB\"\n", MIRROR)?;
    let [a, mut b] = agents;
    start(&mut bed)?;
    let [from, to] = LegId::ALL.map(|leg| bed.own(leg).join("own"));
    for i in 0..40 {
        write_dated(&from.join(format!("f{i}")), &bytes(960 + i, 1 << 20))
            .map_err(|e| e.to_string())?;
    }
    let mut open = connections(&bed, 2)?;
    sync_now(&bed)?;
    let come = || fs::read_dir(&to).map_or(0, Iterator::count);
    until(NOTICED_MAX, "files to come", || (come() > 4).then_some(()))?;
    b.0.kill().and_then(|()| b.0.wait()).map_err(|e| e.to_string())?;
    wait_logged(&bed, "the mirror's end of server b is gone", 1)?;
    let kept = come();
    for connection in &mut open {
        connection.get(&content.big, &Progress::default())?;
    }
    judge::paired(&bed, open.len())?;
    if bed.count("shadowvm_promotions_total", None)? != 0 || !(4..40).contains(&kept) {
        return Err(Failure::Broken(format!("{kept} files had come, or somebody was promoted")));
    }
    let _b = agent(&bed, LegId::B, &at.join("agent.key"))?;
    sync_now(&bed)?;
    until(NOTICED_MAX * 2, "the trees to be equal", || trees_are_equal(&from, &to).ok())?;
    for connection in &mut open {
        connection.get(&content.small[1], &Progress::default())?;
    }
    judge::no_divergence(&bed)?;
    drop((open, a));
    bed.judge()?;
    Ok(format!("{kept} of 40 files had come when it was killed"))
}

/// An agent has another key: syncs fail with a message that says what to do, the service goes on.
fn wrong_key(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, agents) = bed(at, content, "", MIRROR)?;
    let [_a, b] = agents;
    drop(b);
    let (other, key) = (at.join("other.key"), at.join("agent.key"));
    made(Command::new(PROGRAM).args(["agent", "key"]).arg(&other))?;
    let b = agent(&bed, LegId::B, &other)?;
    bed.start_gateway()?;
    let told = format!("the agent at {}", address(LegId::B));
    wait_logged(&bed, &told, 1)?;
    let mut open = connections(&bed, 2)?;
    for connection in &mut open {
        connection.get(&content.big, &Progress::default())?;
    }
    sync_now(&bed).or_else(|why| if why.contains("under way") { Ok(()) } else { Err(why) })?;
    let failed = until(NOTICED_MAX, "the sync to fail", || {
        let events = bed.events().ok()?;
        let failed = |event: &Value| {
            let text = event.to_string();
            (event["event"] == "sync_ended" && text.contains("same key file")).then_some(text)
        };
        events.iter().find_map(failed)
    })?;
    if !failed.contains(&told) {
        return Err(Failure::Broken(format!("it does not say where: {failed}")));
    }
    let file = at.join("shadowvm.toml");
    let ask = || Command::new(PROGRAM).args(["doctor", "-c"]).arg(&file).output();
    let asked = bed.world.enter(HostId::Gateway, ask).map_err(|e| e.to_string())?;
    let asked = String::from_utf8_lossy(&asked.map_err(|e| e.to_string())?.stdout).into_owned();
    let is_told =
        asked.contains("agent at 10.98.0.2:7411 answers") && asked.contains("same key file");
    if !is_told {
        return Err(Failure::Broken(format!("doctor does not tell: {asked}")));
    }
    drop(b);
    let _b = agent(&bed, LegId::B, &key)?;
    sync_now(&bed)?;
    until(NOTICED_MAX, "a good sync", || good_syncs(&bed).ok().filter(|n| *n > 0))?;
    for connection in &mut open {
        connection.get(&content.small[2], &Progress::default())?;
    }
    judge::no_divergence(&bed)?;
    drop(open);
    bed.judge()?;
    Ok("the key was exchanged, and the next sync worked".into())
}

/// Rarely enough that who else notices a death does so first.
const SELDOM: &str = "[failover]\nprobe_every = \"150ms\"\n";

/// An agent that dies fails nobody. A server that is killed while no client speaks with it is known
/// by its agent, and in the middle of a download by whatever comes first; the connection goes on.
/// How long it took is told, beside the same without agents.
fn evidence(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, [mut a, b]) = bed(at, content, "", SELDOM)?;
    start(&mut bed)?;
    for server in ["a", "b"] {
        wait_logged(&bed, &format!("server {server}: its agent reports"), 1)?;
    }
    told(&bed, [(true, "accepts"), (true, "accepts")])?;
    a.0.kill().and_then(|()| a.0.wait()).map_err(|e| e.to_string())?;
    wait_logged(&bed, "server a: the connection to the agent", 1)?;
    told(&bed, [(false, "the agent at"), (true, "accepts")])?;
    bed.connect(false)?.get(&content.big, &Progress::default())?;
    let _a = agent(&bed, LegId::A, &at.join("agent.key"))?;
    wait_logged(&bed, "server a: its agent reports", 2)?;
    if bed.count("shadowvm_promotions_total", None)? != 0 {
        return Err(Failure::Broken("a dead agent made a dead server".into()));
    }
    let idle = killed_at_rest(&bed, content)?;
    if !idle.contains("h1_exited") {
        // A probe came at that very moment.
        return Err(Failure::Void(format!("promoted {idle}")));
    }
    // It returns, is reported to live, and is taken back; the roles have swapped.
    bed.start_nginx(LegId::A)?;
    bed.wait_protected()?;
    let busy = killed_at_work(&bed, content, LegId::B)?;
    wait_logged(&bed, "server b: its agent reports: no process", 1)?;
    judge::no_divergence(&bed)?;
    bed.judge()?;
    drop((bed, b));
    let alone = GatewayOptions { more: SELDOM.to_owned(), ..GatewayOptions::default() };
    let mut bed = Bed::new(&at.join("alone"), content, &WorldOptions::default(), alone)?;
    bed.start()?;
    let idle_alone = killed_at_rest(&bed, content)?;
    bed.start_nginx(LegId::A)?;
    bed.wait_protected()?;
    let busy_alone = killed_at_work(&bed, content, LegId::B)?;
    judge::no_divergence(&bed)?;
    bed.judge()?;
    Ok(format!(
        "at rest promoted {idle}, without agents {idle_alone}; at work {busy}, without {busy_alone}"
    ))
}

/// What `shadowvm status` tells of both agents: whether they are connected, and a part of the rest.
fn told(bed: &Bed<'_>, expected: [(bool, &str); 2]) -> Result<(), Failure> {
    for (server, (is_connected, text)) in bed.status()?.servers.into_iter().zip(expected) {
        let agent = server.agent.ok_or_else(|| "status knows of no agent".to_owned())?;
        if agent.is_connected != is_connected || !agent.text.contains(text) {
            return Err(Failure::Broken(format!("status of {}: {agent:?}", server.name)));
        }
    }
    Ok(())
}

/// Kills the primary's processes while nobody speaks with it. Somebody has: in clone addressing
/// probes come from the address of a client.
fn killed_at_rest(bed: &Bed<'_>, content: &Content) -> Result<String, Failure> {
    bed.connect(false)?.get(&content.small[0], &Progress::default())?;
    let struck = judge::unix_ns();
    signal(bed, LegId::A, "nginx", Signal::SIGKILL)?;
    promoted(bed, 1, struck)
}

/// Kills the primary's processes in the middle of a download, which goes on.
fn killed_at_work(bed: &Bed<'_>, content: &Content, primary: LegId) -> Result<String, Failure> {
    let mut connection = bed.connect(false)?;
    let progress = Progress::default();
    let struck = std::thread::scope(|scope| -> Result<u64, Failure> {
        let reader = scope.spawn(|| connection.get(&content.big, &progress));
        progress.reach(content.big.len / 2);
        let struck = judge::unix_ns();
        signal(bed, primary, "nginx", Signal::SIGKILL)?;
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(struck)
    })?;
    promoted(bed, 2, struck)
}

/// When, and by which finding, the other server was promoted for the `nth` time.
fn promoted(bed: &Bed<'_>, nth: usize, struck: u64) -> Result<String, Failure> {
    let promoted = until(NOTICED_MAX, "the other server to be primary", || {
        bed.events().ok()?.into_iter().filter(|event| event["event"] == "promoted").nth(nth - 1)
    })?;
    let at = promoted["t_ns"].as_u64().unwrap_or_default();
    let after = Duration::from_nanos(at.saturating_sub(struck));
    Ok(format!("after {after:.1?} ({})", promoted["finding"].as_str().unwrap_or("?")))
}

fn connections(bed: &Bed<'_>, count: usize) -> Result<Vec<Connection>, String> {
    (0..count).map(|i| bed.connect(i % 2 == 1)).collect()
}

fn sync_now(bed: &Bed<'_>) -> Result<(), String> {
    let socket = bed.folder.join("admin.sock");
    made(Command::new(PROGRAM).args(["sync", "now", "--socket"]).arg(socket))
}
