//! The simulated world: hosts as clients and two servers around the real engine, in virtual time,
//! with oracles that share no code with it.
//!
//! One seed expands to one [`Scenario`]; equal seeds give equal runs. Reading order: [`scenario`]
//! (what a seed means), [`script`] (what the ends say), [`ends`] (applications), [`host`] (hosts on
//! [`smol`] or on our own [`model`]), [`net`] (links), [`world`] (time and events), [`gateway`]
//! (the engine's place), [`faults`], [`oracle`], [`track`] and [`dues`] (the rules, from the frames
//! alone), [`rare`] (what was reached), [`fleet`] (many seeds). It reads no clock and no
//! environment.

pub mod fleet;
pub mod rare;
pub mod rng;
pub mod scenario;

mod dues;
mod ends;
mod faults;
mod frames;
mod gateway;
mod host;
mod model;
mod net;
mod oracle;
mod script;
mod smol;
mod track;
mod world;

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use scenario::Scenario;
pub use world::Report;

use world::World;

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keep a log of everything.
    pub is_verbose: bool,
    /// Clients stand at server A directly: what the stacks do by themselves.
    pub without_gateway: bool,
    /// Every host is on smoltcp.
    pub on_smoltcp: bool,
}

impl Options {
    /// What `seed` means.
    pub fn scenario(&self, seed: u64) -> Scenario {
        if self.on_smoltcp { Scenario::on_smoltcp(seed) } else { Scenario::new(seed) }
    }
}

/// What came of one seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How it went.
    pub report: Report,
}

impl Outcome {
    /// What was wrong, if anything was.
    pub fn failure(&self) -> Option<&str> {
        self.report.violation.as_deref()
    }
}

/// Runs one seed. Every 100th is run twice, and both traces have to be the same.
pub fn run_seed(seed: u64, options: &Options) -> Outcome {
    let scenario = options.scenario(seed);
    let mut report = run_once(&scenario, options);
    if seed.is_multiple_of(100) && report.violation.is_none() {
        let again = run_once(&scenario, options);
        if again.trace != report.trace {
            report.violation = Some("determinism: two runs of the seed differ".into());
        }
    }
    Outcome { seed, report }
}

fn run_once(scenario: &Scenario, options: &Options) -> Report {
    let run = || {
        let world = World::new(scenario, !options.without_gateway, options.is_verbose);
        world.run(|| baseline(scenario))
    };
    QUIET.set(!options.is_verbose);
    let ran = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()));
        let violation = format!("panic: {}", text.unwrap_or_default());
        Report { violation: Some(violation), ..Report::default() }
    })
}

/// How long the same seed takes without the gateway (ns).
fn baseline(scenario: &Scenario) -> u64 {
    World::new(scenario, false, false).run(|| 60_000_000_000).ended_at
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics of simulated code out of the terminal: they are reported with their seed.
pub fn hush_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            usual(info);
        }
    }));
}
