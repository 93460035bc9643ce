//! Two containers, each with a folder of its own, and the backend `container` with the mirror
//! beside it: a copy of processes finds the files that its source had.
//!
//! nginx has its pages, its log and what is being uploaded there. CRIU itself is a judge of it: it
//! opens each file that the source had open, and refuses one of another length.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use shadowvm::engine::LegId;

use super::Scenario;
use super::bed::{Bed, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::containers::{
    REPAIR_MAX, WAIT_MAX, ended, kill_tree, options, own, start_below, started, sync_now, syncs,
    times, tree, wait_paired, wait_syncs,
};
use super::content::{Content, bytes, leg_name, sha256, write_dated};
use super::matrix::Failure;
use super::special::trees_are_equal;

const CONNECTIONS: usize = 4;
/// Lengths of a page and of an upload.
const PAGE_BYTES: usize = 60_000;
const UPLOAD_BYTES: usize = 2 << 20;
/// What the content of a file is made of.
const STEADY: u64 = 1100;
const PAGES: [u64; 3] = [1101, 1102, 1103];
const UPLOADS: [u64; 3] = [1104, 1105, 1106];

/// All of them.
pub fn scenarios(content: &Content) -> Vec<Scenario<'_>> {
    vec![
        ("containers-files".into(), Box::new(move |at: &Path| copied(at, content))),
        ("containers-files-refused".into(), Box::new(move |at: &Path| refused(at, content))),
    ]
}

/// Files change behind the gateway, logs grow and an upload is half done while syncs copy the
/// processes; then each server in turn is killed, and the other one serves what both had.
fn copied(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, mut open) = begin(at, content)?;
    // The backup began with no page at all.
    are_equal(&bed)?;

    // Equal in length and time; and one more, and one less.
    let [a, b] = LegId::ALL.map(|leg| folder(&bed, leg));
    let inside = |path: &str| a.join(path);
    write_dated(&inside("www/page"), &page(PAGES[1]))
        .and_then(|()| fs::create_dir(inside("www/deep")))
        .and_then(|()| write_dated(&inside("www/deep/new"), &page(PAGES[2])))
        .and_then(|()| fs::remove_file(inside("www/old")))
        .map_err(|e| e.to_string())?;
    let log = fs::read(inside("log/access.log")).map_err(|e| e.to_string())?;
    let (rest, loading) = open.split_at_mut(2);
    under_load(loading, || Ok(synced(&bed)?))?;
    are_equal(&bed)?;
    let copy = fs::read(b.join("log/access.log")).map_err(|e| e.to_string())?;
    if log.is_empty() || !copy.starts_with(&log) {
        return Err(Failure::Broken("the copy's log is not the source's".into()));
    }
    serve(rest, "/page", &page(PAGES[1]))?;
    serve(&mut open, "/deep/new", &page(PAGES[2]))?;
    wait_paired(&bed, CONNECTIONS)?;

    // A sync in the middle of an upload; each server has a file open that grows.
    let upload = bytes(UPLOADS[0], UPLOAD_BYTES);
    let (rest, loading) = open.split_at_mut(1);
    let progress = Progress::default();
    progress.stand_at(UPLOAD_BYTES as u64 / 2);
    std::thread::scope(|scope| -> Result<(), Failure> {
        let sender = scope.spawn(|| {
            let put = rest[0].put("/put/first", &upload, &progress);
            progress.end();
            put
        });
        progress.reach(UPLOAD_BYTES as u64 / 2);
        let done = under_load(loading, || Ok(synced(&bed)?));
        progress.go_on();
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    })?;
    // Each has its own time for the file until the next sync.
    synced(&bed)?;
    serve(&mut open, "/put/first", &upload)?;
    wait_paired(&bed, CONNECTIONS)?;
    match bed.count("shadowvm_divergences_total", None)? {
        0 => {}
        n => return Err(Failure::Broken(format!("{n} differences of servers that are equal"))),
    }

    // The primary dies, and then what was its copy; what clients change meanwhile one of them has.
    for (dies, seed) in [(LegId::A, UPLOADS[1]), (LegId::B, UPLOADS[2])] {
        let before = syncs(&bed)?;
        kill_tree(&bed, dies)?;
        let (path, upload) = (format!("/put/without-{}", leg_name(dies)), bytes(seed, PAGE_BYTES));
        open[0].put(&path, &upload, &Progress::default())?;
        serve(&mut open, "/page", &page(PAGES[1]))?;
        let survivor = leg_name(dies.other());
        until(WAIT_MAX, "the failover", || {
            bed.status().ok().filter(|status| status.primary == survivor)
        })?;
        wait_syncs(&bed, before + 1)?;
        wait_paired(&bed, CONNECTIONS)?;
        are_equal(&bed)?;
        serve(&mut open, &path, &upload)?;
        serve(&mut open, "/put/first", &bytes(UPLOADS[0], UPLOAD_BYTES))?;
        wait_paired(&bed, CONNECTIONS)?;
    }
    drop(open);

    let (pauses, totals) = times(&bed)?;
    let looks = looks(&bed)?;
    if looks.len() < pauses.len() {
        let message = format!("clients waited for a look at everything: {looks:?} ms");
        return Err(Failure::Broken(message));
    }
    let p50 = |times: &[f64]| times.get(times.len() / 2).copied().unwrap_or_default();
    bed.judge()?;
    Ok(format!(
        "{} syncs, all of it p50 {:.1} ms; files while both stood still p50 {:.1} ms, worst {:.1}",
        pauses.len(),
        p50(&totals),
        p50(&looks),
        looks.last().copied().unwrap_or_default(),
    ))
}

/// The backup's folder is gone when both servers stand still: both go on as they were, and the next
/// sync has all of it.
fn refused(at: &Path, content: &Content) -> Result<String, Failure> {
    let (mut bed, mut open) = begin(at, content)?;
    let [a, b] = LegId::ALL.map(|leg| folder(&bed, leg));
    let before = ended(&bed)?.len();
    let there = tree(&bed, LegId::B).map_err(|e| e.to_string())?;
    fs::write(bed.folder.join("fault"), "files-away").map_err(|e| e.to_string())?;
    let is_ended = sync_now(&bed).and_then(|()| {
        until(WAIT_MAX, "the end of a sync that fails", || ended(&bed).ok()?.get(before).cloned())
    });
    let back = fs::rename(bed.own(LegId::B).join("away"), &b);
    fs::write(bed.folder.join("fault"), "none").map_err(|e| e.to_string())?;
    let event = is_ended?;
    back.map_err(|e| format!("the folder was not away: {e}: {event}"))?;
    if event["ok"] != false || !event.to_string().contains("the files cannot be made equal") {
        return Err(Failure::Broken(format!("it did not fail for its files: {event}")));
    }
    serve(&mut open, "/page", &page(PAGES[0]))?;
    let status = bed.status()?;
    let is_up = status.servers.iter().all(|server| server.state == "up");
    let is_there = tree(&bed, LegId::B).map_err(|e| e.to_string())? == there;
    if !is_up || !is_there || status.primary != "a" || there.iter().any(|&pid| is_stopped(pid)) {
        let servers = status.servers;
        return Err(Failure::Broken(format!("it is not as it was: {is_there} {servers:?}")));
    }
    write_dated(&a.join("www/page"), &page(PAGES[1])).map_err(|e| e.to_string())?;
    until(REPAIR_MAX, "the sync that repairs it", || {
        ended(&bed).ok()?.iter().skip(before + 1).any(|event| event["ok"] == true).then_some(())
    })?;
    wait_paired(&bed, CONNECTIONS)?;
    kill_tree(&bed, LegId::A)?;
    serve(&mut open, "/page", &page(PAGES[1]))?;
    drop(open);
    bed.judge()?;
    Ok("both went on, and the next sync had all of it".into())
}

/// Both containers and the gateway, the first sync done, and connections that are protected. Only
/// the first server has pages to begin with.
fn begin<'a>(at: &Path, content: &'a Content) -> Result<(Bed<'a>, Vec<Connection>), String> {
    let options = GatewayOptions { mirrored: Some("own"), ..options(at) };
    let bed = started(at, content, options, start_nginx)?;
    let mut open = Vec::new();
    for n in 0..CONNECTIONS {
        open.push(bed.connect(n % 2 == 1)?);
    }
    serve(&mut open, "/page", &page(PAGES[0]))?;
    serve(&mut open, "/old", &page(PAGES[0]))?;
    wait_paired(&bed, CONNECTIONS)?;
    Ok((bed, open))
}

fn start_nginx(bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
    let (folder, seen) = (folder(bed, leg), own(bed));
    for inside in ["log", "body", "www/put"] {
        fs::create_dir_all(folder.join(inside)).map_err(|e| e.to_string())?;
    }
    let pages = [("page", PAGES[0]), ("old", PAGES[0]), ("steady", STEADY)];
    for (name, seed) in pages.into_iter().filter(|_| leg == LegId::A) {
        write_dated(&folder.join("www").join(name), &page(seed)).map_err(|e| e.to_string())?;
    }
    let text = NGINX.replace("OWN", &seen.display().to_string());
    fs::write(folder.join("nginx.conf"), text).map_err(|e| e.to_string())?;
    let seen = seen.display();
    start_below(bed, leg, &format!("nginx -e {seen}/log/error.log -p {seen} -c {seen}/nginx.conf"))
}

fn page(seed: u64) -> Vec<u8> {
    bytes(seed, PAGE_BYTES)
}

/// A server's own folder, as we see it.
fn folder(bed: &Bed<'_>, leg: LegId) -> PathBuf {
    bed.own(leg).join("own")
}

/// What is served is the same; logs go on by themselves.
fn are_equal(bed: &Bed<'_>) -> Result<(), Failure> {
    let [a, b] = LegId::ALL.map(|leg| folder(bed, leg).join("www"));
    trees_are_equal(&a, &b)
}

/// One more sync.
fn synced(bed: &Bed<'_>) -> Result<(), String> {
    let before = syncs(bed)?;
    sync_now(bed)?;
    wait_syncs(bed, before + 1)
}

/// Each connection is served this.
fn serve(open: &mut [Connection], path: &str, data: &[u8]) -> Result<(), String> {
    let wanted = (data.len() as u64, sha256(data));
    for connection in open {
        let got = connection.fetch(path, "", &Progress::default())?;
        if got != wanted {
            return Err(format!("{path}: {} bytes, not what the servers have", got.0));
        }
    }
    Ok(())
}

/// Requests all the time beside `action`, each of them a line in the log.
fn under_load(
    loading: &mut [Connection],
    action: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (stop, steady) = (AtomicBool::new(false), page(STEADY));
    std::thread::scope(|scope| {
        let readers: Vec<_> = loading
            .chunks_mut(1)
            .map(|connection| {
                let (stop, steady) = (&stop, &steady);
                scope.spawn(move || -> Result<(), String> {
                    while !stop.load(Relaxed) {
                        serve(connection, "/steady", steady)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let done = action();
        stop.store(true, Relaxed);
        for reader in readers {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        done
    })
}

fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// How long the files took while both servers stood still; in ms, sorted.
fn looks(bed: &Bed<'_>) -> Result<Vec<f64>, String> {
    let log = fs::read_to_string(bed.folder.join("gateway.log")).map_err(|e| e.to_string())?;
    let last = |line: &str| line.strip_suffix(" ms")?.rsplit(' ').next()?.parse::<f64>().ok();
    let is_look = |line: &&str| line.contains("mirror: ") && !line.contains("(all)");
    let mut looks: Vec<f64> = log.lines().filter(is_look).filter_map(last).collect();
    looks.sort_by(f64::total_cmp);
    Ok(looks)
}

const NGINX: &str = "user root;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log OWN/log/error.log;
events { worker_connections 1024; }
http {
    log_format stamped '$msec $request $status';
    access_log OWN/log/access.log stamped;
    sendfile on;
    keepalive_requests 1000000;
    keepalive_timeout 3600s;
    client_max_body_size 0;
    client_body_temp_path OWN/body;
    proxy_temp_path OWN/body; fastcgi_temp_path OWN/body;
    uwsgi_temp_path OWN/body; scgi_temp_path OWN/body;
    default_type application/octet-stream;
    server {
        listen 80 backlog=1024;
        listen [::]:80 backlog=1024;
        root OWN/www;
        location /put/ { dav_methods PUT; }
    }
}
";
