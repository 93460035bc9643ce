//! The simulated world: hosts as clients and two servers around the real engine, in virtual time,
//! with oracles that share no code with it.
//!
//! One seed expands to one [`Scenario`]; equal seeds give equal runs. Reading order: [`scenario`]
//! (what is run) and [`draw`] (what a seed means), [`script`] (what the ends say), [`ends`]
//! (applications), [`host`] (hosts on [`smol`] or on our own [`model`]), [`net`] (links), [`world`]
//! (time and events, by the [`agenda`]), [`gateway`] (the engine's place), [`faults`], [`oracle`],
//! [`track`], [`dues`] and [`jar`] (the rules, from the frames alone), [`alias`] (vip addressing),
//! [`excuses`] (what breaks them and is known), [`rare`] (what was reached), [`fleet`] (many
//! seeds), [`shrink`] and [`case`] (what fails, reduced and as a file). It reads no clock and no
//! environment.

pub mod case;
pub mod crowd;
pub mod fleet;
pub mod rare;
pub mod rng;
pub mod scenario;
pub mod shrink;

mod agenda;
mod alias;
mod canon;
mod causes;
mod draw;
mod dues;
mod ends;
mod excuses;
mod faults;
mod frames;
mod gateway;
mod given;
mod host;
mod jar;
mod machine;
mod model;
mod net;
mod oracle;
mod repeats;
mod script;
mod second;
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
pub use world::{Captured, Report};

use world::World;

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keep a log of everything, and every frame that met the gateway.
    pub is_verbose: bool,
    /// Clients stand at server A directly: what the stacks do by themselves.
    pub without_gateway: bool,
    /// Every host is on smoltcp.
    pub on_smoltcp: bool,
    /// Every now and then another engine goes on from a snapshot of the one before.
    pub is_resumed: bool,
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

/// Runs one seed. Every 100th is run twice.
pub fn run_seed(seed: u64, options: &Options) -> Outcome {
    let scenario = options.scenario(seed);
    let report = match seed.is_multiple_of(100) {
        true => run_twice(&scenario, options),
        false => run_scenario(&scenario, options),
    };
    Outcome { seed, report }
}

/// Runs one scenario twice: both traces have to be the same, though in the second run one engine
/// after another goes on from snapshots.
pub fn run_twice(scenario: &Scenario, options: &Options) -> Report {
    let mut report = run_scenario(scenario, options);
    let resumed = Options { is_resumed: true, ..*options };
    if report.violation.is_none() {
        let again = run_scenario(scenario, &resumed);
        if again.violation.is_some() {
            return again;
        }
        if again.trace != report.trace {
            report.violation = Some("determinism: two runs differ".into());
        }
    }
    report
}

/// Runs one scenario, once; first without the gateway, to know what the hosts do by themselves.
pub fn run_scenario(scenario: &Scenario, options: &Options) -> Report {
    let run = || {
        if options.without_gateway {
            return World::new(scenario, false, options.is_verbose).run(None);
        }
        let baseline = World::new(scenario, false, false).run(None);
        let mut world = World::new(scenario, true, options.is_verbose);
        world.is_resumed = options.is_resumed;
        world.run(Some(&baseline))
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
