//! Scenarios of their own: what the matrix has no axis for.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shadowvm::engine::LegId;
use shadowvm::lab::{HostId, Program, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::content::{Content, bytes, leg_name, sha256, write_dated};
use super::judge;
use super::matrix::{Failure, Struck};

const FOREVER: Struck = Struck { t_ns: u64::MAX };
/// A new process of the gateway has the flows going again after this time.
const RESUMED_MAX: Duration = Duration::from_secs(1);

/// All of them.
pub fn scenarios(content: &Content) -> Vec<Scenario<'_>> {
    let mut all: Vec<Scenario<'_>> = vec![
        ("quiet-strict".into(), Box::new(move |at| undisturbed(at, content, true))),
        ("quiet-available".into(), Box::new(move |at| undisturbed(at, content, false))),
        ("neighbours-flushed".into(), Box::new(move |at| neighbours(at, content))),
        ("gateway-killed".into(), Box::new(move |at| gateway_killed(at, content, false))),
        (
            "gateway-killed-after-failover".into(),
            Box::new(move |at| gateway_killed(at, content, true)),
        ),
        ("boot-behind-the-gateway".into(), Box::new(move |at| boot(at, content))),
        ("one-differing-file".into(), Box::new(move |at| differing(at, content, false))),
        ("one-differing-file-mirror".into(), Box::new(move |at| differing(at, content, true))),
        ("evidence".into(), Box::new(move |at| evidence(at, content))),
        ("mirror-both-ways".into(), Box::new(move |at| mirrored_back(at, content))),
    ];
    for leg in LegId::ALL {
        let name = format!("graceful-reload-of-{}", leg_name(leg));
        all.push((name, Box::new(move |at| reload(at, content, leg))));
    }
    all
}

fn started<'a>(at: &Path, content: &'a Content, is_strict: bool) -> Result<Bed<'a>, Failure> {
    started_with(at, content, GatewayOptions { is_strict, ..GatewayOptions::default() })
}

fn started_with<'a>(
    at: &Path,
    content: &'a Content,
    options: GatewayOptions,
) -> Result<Bed<'a>, Failure> {
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    bed.start()?;
    Ok(bed)
}

fn connections(bed: &Bed<'_>, count: usize) -> Result<Vec<Connection>, Failure> {
    (0..count)
        .map(|i| {
            let mut connection = bed.connect(i % 2 == 1)?;
            connection.get(&bed.content.small[i], &Progress::default())?;
            Ok(connection)
        })
        .collect()
}

/// Ends a scenario in which nothing was to fail: both servers in place, every flow Paired.
fn undisturbed_end(mut bed: Bed<'_>, open: Vec<Connection>) -> Result<String, Failure> {
    judge::paired(&bed, open.len())?;
    for name in ["shadowvm_promotions_total", "shadowvm_detaches_total"] {
        if bed.count(name, None)? != 0 {
            return Err(Failure::Broken(format!("{name} is not 0, but nothing failed")));
        }
    }
    judge::events(&bed.events()?, FOREVER)?;
    drop(open);
    let summary = bed.judge()?;
    Ok(format!("{} bytes shown", summary["shown_bytes"]))
}

/// Downloads of both families without any fault.
fn undisturbed(at: &Path, content: &Content, is_strict: bool) -> Result<String, Failure> {
    let bed = started(at, content, is_strict)?;
    let mut open = connections(&bed, 2)?;
    for connection in &mut open {
        connection.get(&content.big, &Progress::default())?;
    }
    undisturbed_end(bed, open)
}

/// Traffic, a long silence, traffic on the same connections.
pub fn idle(at: &Path, content: &Content, quiet: Duration) -> Result<String, Failure> {
    const CONNECTIONS: usize = 4;
    // A machine that stands idle gives its memory away: what comes then is captured in room that
    // was taken before.
    let capture_room = CONNECTIONS * content.big.len as usize;
    let options = GatewayOptions { is_strict: true, capture_room, ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    bed.start()?;
    let mut open = connections(&bed, CONNECTIONS)?;
    std::thread::sleep(quiet);
    for connection in &mut open {
        connection.get(&content.big, &Progress::default())?;
    }
    undisturbed_end(bed, open)
}

/// The neighbour tables of all hosts are emptied while downloads of both families run.
fn neighbours(at: &Path, content: &Content) -> Result<String, Failure> {
    // A question to a neighbour that gets lost is asked again after a second (RFC 4861 10).
    let hold_hard = Some("1500ms");
    let options = GatewayOptions { is_strict: true, hold_hard, ..GatewayOptions::default() };
    let bed = started_with(at, content, options)?;
    let mut open = connections(&bed, 2)?;
    let progress = Progress::default();
    std::thread::scope(|scope| -> Result<(), Failure> {
        let readers: Vec<_> = open
            .iter_mut()
            .map(|connection| scope.spawn(|| connection.get(&content.big, &progress)))
            .collect();
        for percent in [10, 40, 70] {
            progress.reach(2 * content.big.len * percent / 100);
            for host in [HostId::Client, HostId::Server(LegId::A), HostId::Server(LegId::B)] {
                let flush = Program::new("ip").args(["neigh", "flush", "all"]);
                let output = bed.run_in(host, flush)?;
                if !output.status.success() {
                    return Err(Failure::Broken(format!("ip neigh flush in {host}: {output:?}")));
                }
            }
        }
        for reader in readers {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    undisturbed_end(bed, open)
}

/// `nginx -s reload` of one server under load: its idle connections end, nothing else.
fn reload(at: &Path, content: &Content, leg: LegId) -> Result<String, Failure> {
    let mut bed = started(at, content, true)?;
    let mut open = connections(&bed, 1)?;
    let progress = Progress::default();
    std::thread::scope(|scope| -> Result<(), Failure> {
        let reader = scope.spawn(|| open[0].get(&content.big, &progress));
        let small = scope.spawn(|| -> Result<(), String> {
            for i in 0..200 {
                bed.connect(i % 2 == 1)?.get_and_close(&content.small[i % content.small.len()])?;
            }
            Ok(())
        });
        progress.reach(content.big.len / 10);
        let master = bed
            .world
            .processes(HostId::Server(leg))
            .map_err(|e| e.to_string())?
            .into_iter()
            .find(|(_, line)| line.contains("nginx: master"))
            .ok_or_else(|| "no nginx master".to_owned())?;
        bed.world
            .signal(HostId::Server(leg), master.0, Signal::SIGHUP)
            .map_err(|e| e.to_string())?;
        for thread in [reader, small] {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    if bed.count("shadowvm_promotions_total", None)? != 0 {
        return Err(Failure::Broken("a graceful reload promoted".into()));
    }
    judge::events(&bed.events()?, Struck { t_ns: judge::unix_ns() })?;
    judge::no_divergence(&bed)?;
    drop(open);
    let summary = bed.judge()?;
    Ok(format!("{} bytes shown", summary["shown_bytes"]))
}

/// The gateway is killed in mid-transfer and started again: the flows go on.
fn gateway_killed(at: &Path, content: &Content, has_failed: bool) -> Result<String, Failure> {
    let mut bed = started(at, content, true)?;
    let mut open = connections(&bed, 2)?;
    if has_failed {
        bed.world.kill_host(HostId::Server(LegId::A)).map_err(|e| e.to_string())?;
        connections(&bed, 1)?;
        until(Duration::from_secs(5), "the failover", || {
            bed.status().ok().filter(|s| s.primary == "b")
        })?;
    }
    let progress = [Progress::default(), Progress::default()];
    let down = std::thread::scope(|scope| -> Result<Duration, Failure> {
        let readers: Vec<_> = open
            .iter_mut()
            .zip(&progress)
            .map(|(connection, progress)| scope.spawn(|| connection.get(&content.big, progress)))
            .collect();
        progress[0].reach(content.big.len / 4);
        let killed = Instant::now();
        bed.kill_gateway()?;
        if progress.iter().any(|p| p.now() >= content.big.len) {
            return Err(Failure::Void("the gateway was killed after the last byte".into()));
        }
        progress.iter().for_each(Progress::measure_gaps);
        bed.start_gateway()?;
        let down = killed.elapsed();
        for reader in readers {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(down)
    })?;
    let gap = progress.iter().map(Progress::longest_gap).max().unwrap_or_default();
    if gap > down + RESUMED_MAX {
        let message = format!("a client waited {gap:?}, the gateway was down for {down:?} of it");
        return Err(Failure::Broken(message));
    }
    for connection in &mut open {
        connection.get(&content.small[3], &Progress::default())?;
    }
    let wanted = if has_failed { "solo" } else { "paired" };
    let flows = bed.flows()?;
    for connection in &open {
        let client = connection.local().map_err(|e| e.to_string())?;
        if !flows.iter().any(|f| f.client == client && f.state == wanted) {
            return Err(Failure::Broken(format!("{client} is not {wanted}: {flows:?}")));
        }
    }
    if bed.count("shadowvm_flows_reset_total", None)? != 0 {
        return Err(Failure::Broken("flows were reset".into()));
    }
    drop(open);
    let summary = bed.judge()?;
    Ok(format!("down {down:.1?}, longest gap {gap:.1?}, {} bytes shown", summary["shown_bytes"]))
}

/// Both servers come up behind the running gateway, looking for duplicates of their addresses.
fn boot(at: &Path, content: &Content) -> Result<String, Failure> {
    let world = WorldOptions { dad: true, ..WorldOptions::default() };
    let mut bed = Bed::new(at, content, &world, GatewayOptions::default())?;
    bed.start_gateway()?;
    for leg in LegId::ALL {
        bed.world.delete_host(leg).map_err(|e| e.to_string())?;
    }
    for leg in LegId::ALL {
        bed.world.return_host(leg).map_err(|e| e.to_string())?;
        let host = HostId::Server(leg);
        let list = |state: &str| {
            let program = Program::new("ip").args(["-6", "addr", "show", state]);
            bed.run_in(host, program).map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        };
        until(Duration::from_secs(10), "duplicate-address detection", || {
            list("tentative").ok().filter(|s| s.trim().is_empty())
        })?;
        let failed = list("dadfailed")?;
        if !failed.trim().is_empty() {
            return Err(Failure::Broken(format!("{host} thinks its address is taken: {failed}")));
        }
        bed.start_nginx(leg)?;
    }
    until(Duration::from_secs(30), "the service to be protected", || {
        bed.status().ok().filter(|s| s.service.is_protected)
    })?;
    bed.start_captures()?;
    let mut open = connections(&bed, 4)?;
    judge::paired(&bed, open.len())?;
    for connection in &mut open {
        connection.get(&content.big, &Progress::default())?;
    }
    judge::no_divergence(&bed)?;
    drop(open);
    let summary = bed.judge()?;
    Ok(format!("no address was found taken, {} bytes shown", summary["shown_bytes"]))
}

/// One file differs: a burst for it makes one sync, and no client sees a byte before that. Who
/// syncs is a command, or the gateway's own mirror.
fn differing(at: &Path, content: &Content, is_mirror: bool) -> Result<String, Failure> {
    let script = at.join("sync.sh");
    let more = match is_mirror {
        true => "[sync]\nbackend = \"mirror\"\ndeadline = \"1s\"\n".to_owned(),
        false => format!(
            "[sync]\nbackend = \"exec\"\ncommand = [\"/bin/sh\", \"{}\"]\ndeadline = \"1s\"\n",
            script.display()
        ),
    };
    let mirrored = is_mirror.then_some("own");
    let options = GatewayOptions { is_strict: true, more, mirrored, ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    let text = format!(
        "set -e\ncp -p {at}/$SHADOWVM_FROM/own/. {at}/$SHADOWVM_TO/own/ -r\n",
        at = at.display()
    );
    fs::write(&script, text).map_err(|e| e.to_string())?;
    let versions = [bytes(901, 200_000), bytes(902, 200_000)];
    bed.start()?;
    // Equal in length and time: only the content tells them apart.
    for (leg, data) in LegId::ALL.into_iter().zip(&versions) {
        let path = at.join(leg_name(leg)).join("own/differs.bin");
        write_dated(&path, data).map_err(|e| e.to_string())?;
    }
    let syncs = || bed.count("shadowvm_syncs_started_total", None);
    let before = syncs()?;
    let mut open: Vec<Connection> =
        (0..16).map(|i| bed.connect(i % 2 == 1)).collect::<Result<_, _>>()?;
    let right = (200_000, sha256(&versions[0]));
    let answers: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = open
            .iter_mut()
            .enumerate()
            .map(|(i, connection)| {
                let right = &right;
                scope.spawn(move || {
                    // 16 connections, 50 requests: two of them ask four times.
                    for _ in 0..(if i < 2 { 4 } else { 3 }) {
                        let got = connection.fetch("/own/differs.bin", "", &Progress::default())?;
                        if got != *right {
                            return Err(format!("connection {i} got {got:?}, not a's version"));
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    answers.into_iter().collect::<Result<(), String>>()?;
    let count = syncs()? - before;
    if count != 1 {
        return Err(Failure::Broken(format!("{count} syncs for one burst")));
    }
    let differences = bed.count("shadowvm_divergences_total", None)?;
    let mut fresh = bed.connect(false)?;
    if fresh.fetch("/own/differs.bin", "", &Progress::default())? != right {
        return Err(Failure::Broken("after the sync the file is not a's version".into()));
    }
    if bed.count("shadowvm_divergences_total", None)? != differences {
        return Err(Failure::Broken("the file still differs after the sync".into()));
    }
    drop((open, fresh));
    let summary = bed.judge()?;
    Ok(format!("{differences} differences, 1 sync, {} bytes shown", summary["shown_bytes"]))
}

/// A difference and a killed primary each leave a file that others read and the engine decides as
/// it did; the difference is explained.
fn evidence(at: &Path, content: &Content) -> Result<String, Failure> {
    let mut bed = started(at, content, true)?;
    for leg in LegId::ALL {
        let mut data = bytes(905, 50_000);
        data[40_000] ^= u8::from(leg == LegId::B);
        let path = bed.own(leg).join("own/differs.bin");
        write_dated(&path, &data).map_err(|e| e.to_string())?;
    }
    let mut open = connections(&bed, 2)?;
    open[0].fetch("/own/differs.bin", "", &Progress::default())?;
    let files = |count: usize| {
        until(Duration::from_secs(10), "evidence", || {
            bed.evidence().ok().filter(|paths| paths.len() >= count)
        })
    };
    files(1)?;
    let progress = Progress::default();
    std::thread::scope(|scope| -> Result<(), Failure> {
        let reader = scope.spawn(|| open[1].get(&content.big, &progress));
        progress.reach(content.big.len / 2);
        bed.strike(Fault::KillAll, LegId::A, "")?;
        Ok(reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    })?;
    let names: Vec<String> = files(2)?.iter().map(|path| path.display().to_string()).collect();
    for kind in ["divergence", "failover"] {
        if !names.iter().any(|name| name.ends_with(&format!("-{kind}.pcapng"))) {
            return Err(Failure::Broken(format!("no evidence of a {kind}: {names:?}")));
        }
    }
    let name = names.iter().find(|name| name.contains("-divergence.")).map(Path::new);
    let id = name.and_then(|name| name.file_stem()).unwrap_or_default();
    let shown = std::process::Command::new(env!("CARGO_BIN_EXE_shadowvm"))
        .args(["divergences", "show", "--dir"])
        .args([at.join("evidence").as_os_str(), id])
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&shown.stdout);
    let is_marked = text.lines().any(|line| line.matches('[').count() == 2);
    if !shown.status.success() || !text.contains("body") || !is_marked {
        let error = String::from_utf8_lossy(&shown.stderr);
        return Err(Failure::Broken(format!("the difference is not explained: {text}{error}")));
    }
    drop(open);
    let summary = bed.judge()?;
    Ok(format!("{} files, {} bytes shown", names.len(), summary["shown_bytes"]))
}

/// The primary dies; what clients change afterwards is on the other server alone, and the first one
/// gets all of it when it returns, before new connections pair with it.
fn mirrored_back(at: &Path, content: &Content) -> Result<String, Failure> {
    let more = "[sync]\nbackend = \"mirror\"\ndeadline = \"1s\"\n".to_owned();
    let options = GatewayOptions { more, mirrored: Some("own"), ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    bed.start()?;
    let [a, b] = LegId::ALL.map(|leg| bed.own(leg).join("own"));
    // Without a client nobody asks the servers anything.
    let mut before = connections(&bed, 2)?;
    bed.strike(Fault::KillAll, LegId::A, "")?;
    until(Duration::from_secs(10), "the other server to be primary", || {
        bed.status().ok().filter(|s| s.primary == "b")
    })?;
    // What the survivor has now, and what the dead one still has.
    let wanted = bytes(903, 300_000);
    write_dated(&b.join("later.bin"), &wanted).map_err(|e| e.to_string())?;
    write_dated(&a.join("stale.bin"), &bytes(904, 100_000)).map_err(|e| e.to_string())?;
    fs::create_dir(b.join("folder")).map_err(|e| e.to_string())?;
    std::os::unix::fs::symlink("../later.bin", b.join("folder/link")).map_err(|e| e.to_string())?;
    bed.start_nginx(LegId::A)?;
    bed.wait_protected()?;
    trees_are_equal(&b, &a)?;
    let mut open = connections(&bed, 2)?;
    let right = (300_000, sha256(&wanted));
    for connection in &mut open {
        if connection.fetch("/own/later.bin", "", &Progress::default())? != right {
            return Err(Failure::Broken("the later file is wrong".into()));
        }
    }
    for (connection, file) in before.iter_mut().zip(&content.small) {
        connection.get(file, &Progress::default())?;
    }
    judge::no_divergence(&bed)?;
    drop(open);
    Ok("the returned server has what the other one got meanwhile".into())
}

/// By a look that shares nothing with the mirror.
pub fn trees_are_equal(a: &Path, b: &Path) -> Result<(), Failure> {
    let checker = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/checker/trees.py");
    let output = std::process::Command::new("/usr/bin/python3")
        .args(["-B", checker])
        .args([a, b])
        .output()
        .map_err(|e| format!("the checker: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::Broken(String::from_utf8_lossy(&output.stdout).into_owned())),
    }
}
