//! Real programs in network namespaces around the real gateway: nginx, Apache, vsftpd or ProFTPD
//! twice, curl and other clients, tcpdump.
//!
//! The matrix of faults and the special scenarios. A fair sample by default, one after the other;
//! everything with `TESTBED_LONG=1`, two at a time (`TESTBED_JOBS=N`): each has its own world,
//! and most of its time a scenario waits. `TESTBED_ONLY=TEXT` runs those with the text in their
//! name, `TESTBED_WITHOUT=TEXT` all others, `TESTBED_SEED=N` repeats a choice of fault instants. A
//! run is void, and repeated, if its fault came too late, or if a server was late while it got no
//! processor. What fails leaves its captures and logs in `target/testbed/<name>`; with
//! `TESTBED_KEEP=1` what passes does too.

mod agents;
mod bed;
mod chunks;
mod client;
mod container_files;
mod containers;
mod content;
mod daemons;
mod everyday;
mod ftp;
mod ftp_instants;
mod instants;
mod judge;
mod load;
mod matrix;
mod noise;
mod ports;
mod reprotect;
mod sessions;
mod smuggling;
mod special;
mod web;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use content::Content;
use matrix::{Failure, Size};
use noise::Noise;

/// A void run is repeated so often, then it fails.
const VOID_MAX: usize = 8;

/// So long a pause of the machine voids what a scenario under full load says about lateness.
const STILL_UNDER_LOAD: Duration = Duration::from_millis(100);

/// A scenario: its name, and one run of it in a folder.
type Scenario<'a> = (String, Box<dyn Fn(&Path) -> Result<String, Failure> + Sync + 'a>);

fn main() -> ExitCode {
    // Whatever else this machine does, it waits: servers that get no processor are late servers.
    let own = std::process::id().to_string();
    let _ = std::process::Command::new("renice").args(["-n", "-10", "-p", &own]).output();
    let is_set = |name| std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0");
    let is_long = is_set("TESTBED_LONG");
    let only = std::env::var("TESTBED_ONLY").unwrap_or_default();
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let seed = number("TESTBED_SEED").unwrap_or(1);
    let jobs = number("TESTBED_JOBS").unwrap_or(if is_long { 2 } else { 1 });
    let program = Path::new(env!("CARGO_BIN_EXE_shadowvm"));
    let Some(target) = program.ancestors().nth(2) else { return ExitCode::FAILURE };
    let folder = target.join("testbed");
    let mib = if is_long { 200 } else { 40 };
    let content = match Content::make(&folder.join("www"), mib << 20) {
        Ok(content) => content,
        Err(error) => {
            println!("{}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    };
    let size = if is_long {
        Size { upload: 50 << 20, requests: 16_000, connections: 500 }
    } else {
        Size { upload: 20 << 20, requests: 4_800, connections: 300 }
    };
    // First, and so beside others: a machine that stands idle may give its memory away, and a
    // capture that asks for it again is too slow for the traffic at the end.
    let mut scenarios = vec![load::idle(&content, is_long)];
    let cells = matrix::cells(is_long, seed).into_iter();
    for cell in cells.chain(matrix::vip_cells(is_long, seed)) {
        let content = &content;
        scenarios.push((cell.name(), Box::new(move |at: &Path| cell.run(at, content, size))));
    }
    scenarios.extend(special::scenarios(&content));
    scenarios.extend(ports::scenarios(&content));
    scenarios.extend(agents::scenarios(&content));
    scenarios.extend(ftp::scenarios(&content, seed, is_long));
    scenarios.extend(web::scenarios(&content, seed, is_long));
    scenarios.extend(sessions::scenarios(&content, seed, is_long));
    scenarios.extend(everyday::scenarios(&content, is_long));
    scenarios.extend(instants::scenarios(&content, seed, is_long));
    scenarios.extend(smuggling::scenarios(&content, seed, is_long));
    scenarios.extend(chunks::scenarios(&content, seed, is_long));
    scenarios.extend(containers::scenarios(&content, is_long));
    scenarios.extend(container_files::scenarios(&content));
    scenarios.extend(reprotect::scenarios(&content, is_long));
    // Last: the others would hardly move beside a full load.
    scenarios.push(load::full(&content, is_long));
    scenarios.retain(|(name, _)| name.contains(&only));
    if let Some(without) = std::env::var("TESTBED_WITHOUT").ok().filter(|text| !text.is_empty()) {
        scenarios.retain(|(name, _)| !name.contains(&without));
    }
    run_all(&folder, &scenarios, jobs as usize)
}

fn run_all(folder: &Path, scenarios: &[Scenario<'_>], jobs: usize) -> ExitCode {
    let count = scenarios.len();
    println!("\nrunning {count} scenarios, {jobs} at a time");
    let run = Run { begin: Instant::now(), count, done: Mutex::default() };
    let noise = Noise::watch();
    let next = Mutex::new(scenarios.iter());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((name, scenario)) = take() {
                    let at = folder.join(name);
                    run.record(name, &at, until_valid(&at, scenario, noise));
                }
            });
        }
    });
    let done = run.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    for name in &done.failed {
        println!("failed: {name}");
    }
    println!(
        "\nscenario result: {}. {} passed; {} failed; finished in {:.1}s\n",
        if done.failed.is_empty() { "ok" } else { "FAILED" },
        done.count - done.failed.len(),
        done.failed.len(),
        run.begin.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(!done.failed.is_empty() || count == 0))
}

/// All scenarios on their way.
struct Run {
    begin: Instant,
    count: usize,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    count: usize,
    failed: Vec<String>,
}

impl Run {
    /// Says what came of a scenario, and how long the rest may take.
    fn record(&self, name: &str, at: &Path, result: Result<String, String>) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.count += 1;
        let each = self.begin.elapsed().as_secs_f64() / done.count as f64;
        let left = each * (self.count - done.count) as f64 / 60.0;
        let step = format!("[{}/{}, {left:.0} min left]", done.count, self.count);
        match result {
            Ok(said) => {
                println!("{step} scenario {name} ... ok ({said})");
                if std::env::var_os("TESTBED_KEEP").is_none() {
                    let _ = std::fs::remove_dir_all(at);
                }
            }
            Err(message) => {
                let at = at.display();
                println!("{step} scenario {name} ... FAILED\n      {message}\n      {at}");
                done.failed.push(name.to_owned());
            }
        }
    }
}

/// Runs a scenario until its run is not void.
fn until_valid(
    at: &Path,
    run: &(dyn Fn(&Path) -> Result<String, Failure> + Sync),
    noise: &Noise,
) -> Result<String, String> {
    let mut why = String::new();
    for _ in 0..VOID_MAX {
        let begin = Instant::now();
        why = match run(at) {
            Ok(said) => return Ok(said),
            Err(Failure::Broken(message)) => return Err(message),
            Err(Failure::Late(message)) => match noise.wait_since(begin) {
                Some(wait) => format!("a program got no processor for {wait:.0?}: {message}"),
                None => return Err(message),
            },
            Err(Failure::LateUnderLoad(message)) => match noise.pause_since(begin) {
                Some(pause) if pause >= STILL_UNDER_LOAD => {
                    format!("the machine stood still for {pause:.0?}: {message}")
                }
                _ => return Err(message),
            },
            Err(Failure::Void(message)) => message,
        };
        println!("void, once more: {}: {why}", at.display());
    }
    Err(format!("void {VOID_MAX} times: {why}"))
}
