//! Two containers with a real nginx, or vsftpd, and the backend `container`: each sync replaces the
//! backup's processes by a copy of the primary's, connections included.
//!
//! A container is made of `unshare` and a first process that reaps; CRIU is what `testbed/criu` has
//! brought. The servers' files are one folder, as with a shared volume: what differs is memory.
//! Where each has a folder of its own, both see it at one path ([`super::container_files`]).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shadowvm::engine::LegId;
use shadowvm::lab::{HostId, Io, Program, WorldOptions};

use super::Scenario;
use super::bed::{Bed, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::content::{Content, bytes, leg_name, sha256, write_dated};
use super::ftp::{Session, Way};
use super::matrix::Failure;

/// The first process of a container: it reaps, and does nothing else.
const INIT: &str = "$SIG{CHLD} = \"IGNORE\"; sleep while 1;";
/// What the servers say from their memory, and what one of them says once that was changed.
const SAYING: [&str; 2] = ["said from memory by both", "said from memory by one!"];
const CONNECTIONS: usize = 4;
/// More in so short a time would be a storm, in which syncs are spaced out.
const SYNCS: usize = 4;
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// After a failed sync the next one begins by itself after some seconds.
pub const REPAIR_MAX: Duration = Duration::from_secs(30);
/// How CRIU fails, and whether the backup is untouched by that; the usual run has the first four.
const FAULTS: [(&str, bool); 7] = [
    ("dump-late", true),
    ("dump-slow", true),
    ("restore-half", false),
    ("restore-hangs", false),
    ("dump-hangs", true),
    ("dump-refused", true),
    ("restore-refused", false),
];
/// Length of what vsftpd serves: a transfer outlives a sync.
const FTP_BYTES: usize = 96 << 20;

/// All of them; with fewer kinds of failure unless `is_long`.
pub fn scenarios(content: &Content, is_long: bool) -> Vec<Scenario<'_>> {
    let kinds = if is_long { FAULTS.len() } else { 4 };
    vec![
        ("containers-nginx".into(), Box::new(move |at: &Path| nginx(at, content))),
        ("containers-vsftpd".into(), Box::new(move |at: &Path| vsftpd(at, content))),
        (
            "containers-faults".into(),
            Box::new(move |at: &Path| faults(at, content, &FAULTS[..kinds])),
        ),
    ]
}

/// Both containers and the gateway, the first sync done, and connections that are protected.
fn begin<'a>(at: &Path, content: &'a Content) -> Result<(Bed<'a>, Vec<Connection>), String> {
    let bed = started(at, content, options(at), start_nginx)?;
    let mut open = Vec::new();
    for n in 0..CONNECTIONS {
        let mut connection = bed.connect(n % 2 == 1)?;
        connection.get(&content.small[n], &Progress::default())?;
        open.push(connection);
    }
    wait_paired(&bed, CONNECTIONS)?;
    Ok((bed, open))
}

/// Both containers with a server in each, and the gateway; the first sync is done.
pub fn started<'a>(
    at: &Path,
    content: &'a Content,
    options: GatewayOptions,
    start: impl Fn(&Bed<'_>, LegId) -> Result<(), String>,
) -> Result<Bed<'a>, String> {
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    write_wrapper(&bed)?;
    for leg in LegId::ALL {
        start_container(&bed, leg)?;
        start(&bed, leg)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    wait_syncs(&bed, 1)?;
    Ok(bed)
}

/// A sync in the middle of each of two transfers, and then each server in turn is killed in it: one
/// session all the time.
fn vsftpd(at: &Path, content: &Content) -> Result<String, Failure> {
    let options = GatewayOptions { ports: Some("[21]"), ..options(at) };
    let mut bed = started(at, content, options, start_vsftpd)?;
    let data = bytes(77, FTP_BYTES);
    let part = FTP_BYTES as u64 / 4;
    let mut session = Session::open(&bed, false)?;
    for (dies, way) in [(LegId::A, Way::Passive), (LegId::B, Way::Extended)] {
        wait_paired(&bed, 1)?;
        let before = syncs(&bed)?;
        let progress = Progress::default();
        std::thread::scope(|scope| -> Result<(), Failure> {
            let reader = scope.spawn(|| {
                let got = session.get(way, "data", 0, &data, &progress);
                progress.end();
                got
            });
            let is_in_time = progress.reach(part);
            sync_now(&bed)?;
            wait_syncs(&bed, before + 1)?;
            let is_in_time = is_in_time && progress.now() < 3 * part;
            kill_tree(&bed, dies)?;
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            match is_in_time {
                true => Ok(()),
                false => Err(Failure::Void("the transfer ended before the fault".into())),
            }
        })?;
        wait_syncs(&bed, before + 2)?;
    }
    wait_paired(&bed, 1)?;
    session.get(Way::Passive, "data", 0, &data, &Progress::default())?;
    session.expect("QUIT", 221)?;
    let syncs = syncs(&bed)?;
    bed.judge()?;
    Ok(format!("{syncs} syncs, 3 transfers"))
}

/// CRIU fails at each step: the service goes on from the primary, a target that was not touched
/// stays as it was, one that was has nothing half restored, and the next sync repairs it.
fn faults(at: &Path, content: &Content, kinds: &[(&str, bool)]) -> Result<String, Failure> {
    let (mut bed, mut open) = begin(at, content)?;
    for &(fault, is_kept) in kinds {
        let before = ended(&bed)?.len();
        let there = tree(&bed, LegId::B).map_err(|e| e.to_string())?;
        fs::write(bed.folder.join("fault"), fault).map_err(|e| e.to_string())?;
        sync_now(&bed)?;
        let event = until(WAIT_MAX, "the end of a sync that fails", || {
            ended(&bed).ok()?.get(before).cloned()
        })?;
        fs::write(bed.folder.join("fault"), "none").map_err(|e| e.to_string())?;
        if event["ok"] != false {
            return Err(Failure::Broken(format!("{fault}: {event}")));
        }
        say(&mut open).map_err(|why| format!("{fault}: {why}"))?;
        let status = bed.status()?;
        let backup = status.servers.iter().find(|server| server.name == "b");
        let state = backup.map(|server| server.state.clone()).unwrap_or_default();
        // One that was kept from answering for long may have to be found again.
        let is_still_there = tree(&bed, LegId::B).map_err(|e| e.to_string())? == there;
        let is_as_told = is_still_there == is_kept && (is_kept || state != "up");
        if !is_as_told || status.primary != "a" {
            return Err(Failure::Broken(format!("{fault}: the backup is {state}: {event}")));
        }
        until(REPAIR_MAX, "the sync that repairs it", || {
            ended(&bed).ok()?.iter().skip(before + 1).any(|event| event["ok"] == true).then_some(())
        })
        .map_err(|why| format!("{fault}: {why}"))?;
        wait_paired(&bed, CONNECTIONS).map_err(|why| format!("{fault}: {why}"))?;
        say(&mut open).map_err(|why| format!("{fault}, repaired: {why}"))?;
    }
    // What was repaired last carries all of them alone.
    kill_tree(&bed, LegId::A)?;
    say(&mut open)?;
    drop(open);
    bed.judge()?;
    Ok(format!("{} kinds of failure, each repaired by the next sync", kinds.len()))
}

/// A difference in memory, syncs beside downloads, and both servers killed one after the other.
fn nginx(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, mut open) = begin(at, content)?;
    change_memory(&bed, LegId::B, &open[0].local().map_err(|e| e.to_string())?)?;
    let before = syncs(&bed)?;
    say(&mut open)?;
    wait_syncs(&bed, before + 1)?;
    wait_paired(&bed, CONNECTIONS)?;
    let differed = bed.count("shadowvm_divergences_total", None)?;
    if differed == 0 {
        return Err(Failure::Broken("a changed memory was not seen".into()));
    }
    say(&mut open)?;
    wait_paired(&bed, CONNECTIONS)?;

    // Syncs all the time, and downloads beside them.
    let (rest, loading) = open.split_at_mut(2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), Failure> {
        let readers: Vec<_> = loading
            .iter_mut()
            .map(|connection| {
                let stop = &stop;
                scope.spawn(move || -> Result<(), String> {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        connection.get(&content.small[5], &Progress::default())?;
                    }
                    Ok(())
                })
            })
            .collect();
        let synced = (0..SYNCS).try_for_each(|_| {
            let before = syncs(&bed)?;
            sync_now(&bed)?;
            wait_syncs(&bed, before + 1)?;
            for connection in rest.iter_mut() {
                connection.get(&content.small[7], &Progress::default())?;
            }
            Ok::<(), String>(())
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(synced?)
    })?;
    wait_paired(&bed, CONNECTIONS)?;

    // The primary dies in the middle of a download; then the copy that was made of the survivor has
    // the same connection, and the survivor dies.
    for dies in [LegId::A, LegId::B] {
        let before = syncs(&bed)?;
        let (rest, loading) = open.split_at_mut(1);
        let progress = Progress::default();
        std::thread::scope(|scope| -> Result<(), Failure> {
            let reader = scope.spawn(|| {
                let got = loading[0].get(&content.big, &progress);
                progress.end();
                got
            });
            progress.reach(content.big.len / 4);
            kill_tree(&bed, dies)?;
            let got = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if progress.now() < content.big.len / 4 {
                return Err(Failure::Void("the download ended before the fault".into()));
            }
            Ok(got?)
        })?;
        for connection in rest.iter_mut().chain(&mut loading[1..]) {
            connection.get(&content.small[3], &Progress::default())?;
        }
        let survivor = leg_name(dies.other());
        until(WAIT_MAX, "the failover", || {
            bed.status().ok().filter(|status| status.primary == survivor)
        })?;
        wait_syncs(&bed, before + 1)?;
        wait_paired(&bed, CONNECTIONS)?;
        say(&mut open)?;
    }
    drop(open);

    let (pauses, totals) = times(&bed)?;
    let p50 = |times: &[f64]| times[times.len() / 2];
    let (pause, total) = (p50(&pauses), p50(&totals));
    bed.judge()?;
    Ok(format!(
        "{} syncs, pause p50 {pause:.1} ms, worst {:.1}; all of it p50 {total:.1} ms, worst {:.1}",
        pauses.len(),
        pauses.last().copied().unwrap_or_default(),
        totals.last().copied().unwrap_or_default(),
    ))
}

/// The gateway's options.
pub fn options(at: &Path) -> GatewayOptions {
    let more = format!(
        "[sync]\nbackend = \"container\"\ndeadline = \"2s\"\ntimeout = \"4s\"\nmin_gap = \"0ms\"\n\
         [sync.container]\ncriu = \"{0}/criu\"\ndir = \"{0}/images\"\n",
        at.display()
    );
    GatewayOptions { more, contained: true, ..GatewayOptions::default() }
}

/// CRIU, which fails as the file beside it says; an error tells why there is none.
fn write_wrapper(bed: &Bed<'_>) -> Result<(), String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/criu");
    let brought = std::process::Command::new(script).output().map_err(|e| e.to_string())?;
    if !brought.status.success() {
        return Err(String::from_utf8_lossy(&brought.stderr).trim().to_owned());
    }
    let text = WRAPPER
        .replace("CRIU", String::from_utf8_lossy(&brought.stdout).trim())
        .replace("FOLDER", &bed.folder.display().to_string());
    let away = AWAY.replace("FOLDER", &bed.folder.display().to_string());
    for (name, text) in [("criu", &*text), ("slow", SLOW), ("away", &away)] {
        let path = bed.folder.join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// A container of `leg`: the server's network, and namespaces of its own for all else. Its file
/// says which process is its first one, as the gateway numbers it.
fn start_container(bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
    let netns = File::from(bed.world.netns(HostId::Server(leg)).map_err(|e| e.to_string())?);
    let mark = format!("container-{}", leg_name(leg));
    // CRIU keeps what it has learnt of the kernel in /run, if that is in memory.
    let mut start = format!("mount -t tmpfs run /run && exec perl -e '{INIT}' {mark}");
    if let Some(dir) = bed.mirrored(leg) {
        let seen = own(bed);
        for dir in [&dir, &seen] {
            fs::create_dir_all(dir).map_err(|e| e.to_string())?;
        }
        start = format!("mount --bind {} {} && {start}", dir.display(), seen.display());
    }
    let program = Program::new("nsenter")
        .args(["--net=/proc/self/fd/0", "unshare", "--pid", "--mount", "--ipc", "--fork"])
        .args(["--mount-proc", "--propagation", "private", "/bin/sh", "-c", &start])
        .stdin(Io::File(netns))
        .stdout(Io::Null)
        .stderr(Io::Null);
    bed.spawn(HostId::Gateway, program)?;
    let pid = until(WAIT_MAX, "a container's first process", || {
        let processes = bed.world.processes(HostId::Gateway).ok()?;
        let is_it = |line: &str| line.starts_with("perl") && line.contains(&mark);
        processes.into_iter().find(|(_, line)| is_it(line)).map(|(pid, _)| pid)
    })?;
    fs::write(bed.container(leg), pid.to_string()).map_err(|e| e.to_string())
}

/// Where a container finds the folder of its server's own.
pub fn own(bed: &Bed<'_>) -> PathBuf {
    bed.folder.join("own")
}

/// nginx below the container's first process.
fn start_nginx(bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
    let folder = bed.folder.join("nginx");
    fs::create_dir_all(folder.join("body")).map_err(|e| e.to_string())?;
    let conf = folder.join("nginx.conf");
    let text = NGINX
        .replace("FOLDER", &folder.display().to_string())
        .replace("ROOT", &bed.content.root(LegId::A).display().to_string())
        .replace("SAYING", SAYING[0]);
    fs::write(&conf, text).map_err(|e| e.to_string())?;
    let (folder, conf) = (folder.display(), conf.display());
    start_below(bed, leg, &format!("nginx -e {folder}/error.log -p {folder} -c {conf}"))
}

/// vsftpd below the container's first process. Not everywhere may root raise limits, so it runs as
/// one user all the time.
fn start_vsftpd(bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
    let folder = bed.folder.join("ftp");
    fs::create_dir_all(folder.join("empty")).map_err(|e| e.to_string())?;
    let conf = bed.folder.join("vsftpd.conf");
    fs::write(&conf, VSFTPD.replace("FOLDER", &folder.display().to_string()))
        .and_then(|()| write_dated(&folder.join("data"), &bytes(77, FTP_BYTES)))
        .map_err(|e| e.to_string())?;
    start_below(bed, leg, &format!("vsftpd {}", conf.display()))
}

/// Starts a server below the container's first process.
pub fn start_below(bed: &Bed<'_>, leg: LegId, command: &str) -> Result<(), String> {
    let pid = fs::read_to_string(bed.container(leg)).map_err(|e| e.to_string())?;
    // A session of its own, and nothing open that is not of the container.
    let start = format!("setsid {command} </dev/null >/dev/null 2>&1 &");
    let program = Program::new("nsenter")
        .args(["--target", &pid, "--net", "--pid", "--mount", "--ipc", "/bin/sh", "-c", &start]);
    let output = bed.run_in(HostId::Gateway, program)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The processes of a container but its first one, as we number them.
pub fn tree(bed: &Bed<'_>, leg: LegId) -> io::Result<Vec<i32>> {
    let mark = format!("container-{}", leg_name(leg));
    let (mut spaces, mut first) = (Vec::new(), None);
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(space) = fs::read_link(entry.path().join("ns/pid")) else { continue };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        // Other beds have containers too.
        let is_ours = fs::read_link(entry.path().join("ns/net")).ok() == netns_of(bed, leg);
        if is_ours && line.starts_with("perl") && line.contains(&mark) {
            first = Some((pid, space.clone()));
        }
        spaces.push((pid, space));
    }
    let (first, own) = first.ok_or_else(|| io::Error::other("the container is gone"))?;
    let is_in = |(pid, space): (i32, _)| (space == own && pid != first).then_some(pid);
    Ok(spaces.into_iter().filter_map(is_in).collect())
}

fn netns_of(bed: &Bed<'_>, leg: LegId) -> Option<std::path::PathBuf> {
    fs::read_link(bed.world.netns_path(HostId::Server(leg)).ok()?).ok()
}

pub fn kill_tree(bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
    let tree = tree(bed, leg).map_err(|e| e.to_string())?;
    for pid in &tree {
        // It may have ended with another one.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    match tree.is_empty() {
        true => Err(format!("no process of {leg:?} to kill")),
        false => Ok(()),
    }
}

/// Changes what the processes of `leg` that hold `flow` have in memory.
fn change_memory(bed: &Bed<'_>, leg: LegId, flow: &str) -> Result<(), String> {
    let mut changed = 0;
    for pid in bed.workers_of(leg, flow)? {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| e.to_string())?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.map_err(|e| e.to_string())?;
        for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            let Some((from, to)) = range.map(|(from, to)| (number(from), number(to))) else {
                continue;
            };
            let mut bytes = vec![0; (to - from) as usize];
            // Some ranges cannot be read; what is looked for is in none of them.
            if memory.read_exact_at(&mut bytes, from).is_err() {
                continue;
            }
            let (is, becomes) = (SAYING[0].as_bytes(), SAYING[1].as_bytes());
            for at in
                (0..bytes.len().saturating_sub(is.len())).filter(|&at| bytes[at..].starts_with(is))
            {
                memory.write_all_at(becomes, from + at as u64).map_err(|e| e.to_string())?;
                changed += 1;
            }
        }
    }
    match changed {
        0 => Err(format!("nothing to change in the memory of {leg:?}")),
        _ => Ok(()),
    }
}

/// Each connection is told what both servers have in memory, as it was in the beginning.
fn say(open: &mut [Connection]) -> Result<(), String> {
    let wanted = (SAYING[0].len() as u64, sha256(SAYING[0].as_bytes()));
    for connection in open {
        let got = connection.fetch("/saying", "", &Progress::default())?;
        if got != wanted {
            return Err(format!("/saying: {} bytes, not what both say", got.0));
        }
    }
    Ok(())
}

pub fn sync_now(bed: &Bed<'_>) -> Result<(), String> {
    let program = Program::new(env!("CARGO_BIN_EXE_shadowvm"))
        .args(["sync", "now", "--socket"])
        .arg(bed.folder.join("admin.sock"));
    let output = bed.run_in(HostId::Gateway, program)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("sync now: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Syncs that ended well.
pub fn syncs(bed: &Bed<'_>) -> Result<usize, String> {
    let ended = ended(bed)?;
    match ended.iter().find(|event| event["ok"] != true) {
        Some(bad) => Err(format!("a sync failed: {bad}")),
        None => Ok(ended.len()),
    }
}

/// What the event log says of syncs that have ended.
pub fn ended(bed: &Bed<'_>) -> Result<Vec<serde_json::Value>, String> {
    let mut events = bed.events()?;
    events.retain(|event| event["event"] == "sync_ended");
    Ok(events)
}

pub fn wait_syncs(bed: &Bed<'_>, count: usize) -> Result<(), String> {
    until(WAIT_MAX, "a sync", || match syncs(bed) {
        Ok(so_far) => (so_far >= count).then_some(Ok(())),
        Err(why) => Some(Err(why)),
    })?
}

pub fn wait_paired(bed: &Bed<'_>, open: usize) -> Result<(), String> {
    let mut last = Vec::new();
    let waited = until(WAIT_MAX, "connections with two servers", || {
        last = bed.flows().ok()?;
        last.retain(|flow| flow.state != "time_wait");
        let paired = last.iter().filter(|flow| flow.state == "paired").count();
        (paired >= open && paired == last.len()).then_some(())
    });
    waited.map_err(|why| format!("{why}: {last:?}"))
}

/// How long the source stood still in each sync, and how long each took; in ms, sorted.
pub fn times(bed: &Bed<'_>) -> Result<(Vec<f64>, Vec<f64>), String> {
    let log = fs::read_to_string(bed.folder.join("gateway.log")).map_err(|e| e.to_string())?;
    let after = |line: &str, word: &str| -> Option<f64> {
        line.split_once(word)?.1.split_whitespace().next()?.parse().ok()
    };
    let lines = || log.lines().filter(|line| line.contains("of the containers took"));
    let sorted = |word: &str| {
        let mut all: Vec<f64> = lines().filter_map(|line| after(line, word)).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (pauses, totals) = (sorted("paused for "), sorted("containers took "));
    match pauses.len() >= SYNCS && totals.len() == pauses.len() {
        true => Ok((pauses, totals)),
        false => Err(format!("only {} syncs are in the gateway's log", pauses.len())),
    }
}

/// Keeps the source standing still for longer than clients are to wait.
const SLOW: &str = "#!/bin/sh
[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || sleep 3
";

/// Takes the backup's folder away while the source stands still.
const AWAY: &str = "#!/bin/sh
[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || mv FOLDER/b/own FOLDER/b/away
";

const WRAPPER: &str = "#!/bin/sh
case $(cat FOLDER/fault 2>/dev/null):$1 in
dump-refused:dump | restore-refused:restore) exit 1 ;;
dump-late:dump | restore-half:restore) CRIU \"$@\"; exit 1 ;;
dump-slow:dump) exec CRIU \"$@\" --action-script FOLDER/slow ;;
files-away:dump) exec CRIU \"$@\" --action-script FOLDER/away ;;
dump-hangs:dump | restore-hangs:restore) sleep 1000 ;;
esac
exec CRIU \"$@\"
";

const VSFTPD: &str = "listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root=FOLDER
local_enable=NO
xferlog_enable=NO
ftp_username=root
run_as_launching_user=YES
isolate=NO
isolate_network=NO
seccomp_sandbox=NO
secure_chroot_dir=FOLDER/empty
";

const NGINX: &str = "user root;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log FOLDER/error.log;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    keepalive_timeout 3600s;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/body; fastcgi_temp_path FOLDER/body;
    uwsgi_temp_path FOLDER/body; scgi_temp_path FOLDER/body;
    default_type application/octet-stream;
    server {
        listen 80 backlog=1024;
        listen [::]:80 backlog=1024;
        root ROOT;
        location /saying { return 200 'SAYING'; }
    }
}
";
