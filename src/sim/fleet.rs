//! Many seeds on several threads. The results are the same for every number of threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use super::rare::Rare;
use super::{Options, Outcome, run_seed};

/// A thread that has nothing to do.
pub const NO_SEED: u64 = u64::MAX;

/// Places for `jobs` threads to note their seeds.
pub fn idle(jobs: usize) -> Vec<AtomicU64> {
    (0..jobs.max(1)).map(|_| AtomicU64::new(NO_SEED)).collect()
}

/// What came of many seeds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Failures, by seed: (seed, what).
    pub failures: Vec<(u64, String)>,
    /// Rare events reached.
    pub rare: Rare,
    /// Frames that gateways got and sent.
    pub frames: (u64, u64),
    /// Promotions and detachments.
    pub failovers: u64,
    /// Seeds that the hosts without the gateway do not carry to their end either.
    pub unfit: u64,
}

impl Summary {
    /// Adds what came of other seeds.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.failures.extend_from_slice(&other.failures);
        self.rare.add(&other.rare);
        self.frames.0 += other.frames.0;
        self.frames.1 += other.frames.1;
        self.failovers += other.failovers;
        self.unfit += other.unfit;
    }

    fn take(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        if let Some(what) = outcome.failure() {
            self.failures.push((outcome.seed, what.to_owned()));
        }
        self.rare.add(&outcome.report.rare);
        self.frames.0 += outcome.report.frames.0;
        self.frames.1 += outcome.report.frames.1;
        self.failovers += outcome.report.failovers;
        self.unfit += u64::from(outcome.report.is_unfit);
    }
}

/// Runs seeds `from..from + count` on one thread for each of `running`, where it notes its seed;
/// `on_outcome` hears of each as it ends, and stops the fleet by returning false.
pub fn run(
    from: u64,
    count: u64,
    running: &[AtomicU64],
    options: &Options,
    mut on_outcome: impl FnMut(&Outcome) -> bool,
) -> Summary {
    let next = AtomicU64::new(0);
    let is_stopped = AtomicBool::new(false);
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let (tx, rx) = mpsc::sync_channel(256);
        for own in running {
            let (tx, next, is_stopped) = (tx.clone(), &next, &is_stopped);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count || is_stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    own.store(from + i, Ordering::Relaxed);
                    if tx.send(run_seed(from + i, options)).is_err() {
                        break;
                    }
                }
                own.store(NO_SEED, Ordering::Relaxed);
            });
        }
        drop(tx);
        for outcome in rx {
            summary.take(&outcome);
            if !on_outcome(&outcome) {
                is_stopped.store(true, Ordering::Relaxed);
            }
        }
    });
    summary.failures.sort();
    summary
}
