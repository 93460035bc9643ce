//! Whether the machine itself was late. A watcher on each processor wants to run every millisecond,
//! with the priority of the servers, and notes when it could not; another one reads how long each
//! server and gateway waited for a processor. A server without one is late by no fault of its own
//! or of the gateway's.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// How often a processor's watcher wants to run.
const EVERY: Duration = Duration::from_millis(1);
/// How often the programs are looked at, and how often they are searched for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SEARCH_EVERY: u32 = 10;
/// So long a pause makes a server late: silence is a finding after 25 ms.
const STILL: Duration = Duration::from_millis(15);
/// Programs whose lateness would be taken for the gateway's or a server's.
const PROGRAMS: [&str; 2] = ["nginx", "shadowvm"];

/// What the watchers saw.
#[derive(Debug, Default)]
pub struct Noise {
    /// When each processor's pause ended, and how long it was.
    pauses: Mutex<Vec<(Instant, Duration)>>,
    /// The same of a program that waited for a processor.
    waits: Mutex<Vec<(Instant, Duration)>>,
}

impl Noise {
    /// Watches every processor from here on.
    pub fn watch() -> &'static Self {
        let noise: &'static Self = Box::leak(Box::default());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for core in 0..cores {
            std::thread::spawn(move || noise.watch_processor(core));
        }
        std::thread::spawn(|| noise.watch_programs());
        noise
    }

    /// The longest time since `begin` in which a processor did nothing it was asked to.
    pub fn pause_since(&self, begin: Instant) -> Option<Duration> {
        longest(&self.pauses, begin)
    }

    /// The same, or in which a server or gateway waited for a processor.
    pub fn wait_since(&self, begin: Instant) -> Option<Duration> {
        self.pause_since(begin).max(longest(&self.waits, begin))
    }

    fn watch_processor(&self, core: usize) {
        let mut set = CpuSet::new();
        if set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
            return;
        }
        loop {
            let begin = Instant::now();
            std::thread::sleep(EVERY);
            note(&self.pauses, begin.elapsed().saturating_sub(EVERY));
        }
    }

    fn watch_programs(&self) {
        let mut programs: Vec<(PathBuf, Option<Duration>)> = Vec::new();
        for round in 0u32.. {
            if round % SEARCH_EVERY == 0 {
                let known = std::mem::take(&mut programs);
                let last = |path: &PathBuf| known.iter().find(|(p, _)| p == path)?.1;
                programs = find().map(|path| (path.clone(), last(&path))).collect();
            }
            for (path, last) in &mut programs {
                let Some(waited) = run_delay(path) else { continue };
                if let Some(last) = last.replace(waited) {
                    note(&self.waits, waited.saturating_sub(last));
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn note(list: &Mutex<Vec<(Instant, Duration)>>, pause: Duration) {
    if pause >= STILL {
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((Instant::now(), pause));
    }
}

fn longest(list: &Mutex<Vec<(Instant, Duration)>>, begin: Instant) -> Option<Duration> {
    let list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.iter().filter(|(end, _)| *end >= begin).map(|&(_, pause)| pause).max()
}

/// The `schedstat` files of the programs that run now.
fn find() -> impl Iterator<Item = PathBuf> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_meant = |path: &PathBuf| {
        std::fs::read_to_string(path.join("comm"))
            .is_ok_and(|name| PROGRAMS.contains(&name.trim_end()))
    };
    processes.map(|p| p.path()).filter(is_meant).map(|path| path.join("schedstat"))
}

/// How long a program has waited for a processor in its life: the second field.
fn run_delay(path: &PathBuf) -> Option<Duration> {
    let text = std::fs::read_to_string(path).ok()?;
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}
