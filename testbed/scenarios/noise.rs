//! Whether the machine itself stood still: a watcher on each processor that wants to run every
//! millisecond, with the priority of the servers, and notes when it could not. A server without a
//! processor is late by no fault of its own or of the gateway's.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// How often a watcher wants to run.
const EVERY: Duration = Duration::from_millis(1);
/// So long a pause makes a server late: silence is a finding after 25 ms.
const STILL: Duration = Duration::from_millis(15);

/// What the watchers saw.
#[derive(Debug, Default)]
pub struct Noise {
    /// When each pause ended, and how long it was.
    pauses: Mutex<Vec<(Instant, Duration)>>,
}

impl Noise {
    /// Watches every processor from here on.
    pub fn watch() -> &'static Self {
        let noise: &'static Self = Box::leak(Box::default());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for core in 0..cores {
            std::thread::spawn(move || noise.watch_one(core));
        }
        noise
    }

    /// The longest pause since `begin`, if there was one.
    pub fn since(&self, begin: Instant) -> Option<Duration> {
        let pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.iter().filter(|(end, _)| *end >= begin).map(|&(_, pause)| pause).max()
    }

    fn watch_one(&self, core: usize) {
        let mut set = CpuSet::new();
        if set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
            return;
        }
        loop {
            let begin = Instant::now();
            std::thread::sleep(EVERY);
            let pause = begin.elapsed().saturating_sub(EVERY);
            if pause >= STILL {
                let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
                pauses.push((Instant::now(), pause));
            }
        }
    }
}
