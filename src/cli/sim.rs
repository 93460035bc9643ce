//! `shadowvm sim`: runs seeds of the simulated world, or tells one seed's story.
//!
//! Exit status 1 if a seed fails or a long run reaches a rare event too seldom.

use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Format, exit};
use crate::sim::fleet::{self, Summary};
use crate::sim::{Options, rare, run_seed};

/// A seed takes a millisecond; one that takes so long never ends.
const HANGS: Duration = Duration::from_secs(60);
/// A run of so many seeds has to reach every rare event so often.
const LONG_RUN_SEEDS: u64 = 5_000;
/// See [`LONG_RUN_SEEDS`].
const RARE_MIN: u64 = 50;

/// Run the simulator
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, value_name = "S")]
    from: u64,
    /// Threads; the number of processors if not given
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Run one seed and tell everything that happens
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Without the gateway: what the simulated hosts do by themselves
    #[arg(long)]
    baseline: bool,
    /// Every host on smoltcp, none on the model
    #[arg(long)]
    smoltcp: bool,
    /// Go on after so many failures
    #[arg(long, default_value_t = 20, value_name = "N")]
    failures_max: usize,
    /// Plant one deliberate defect after another, or this one, and find each (feature
    /// `planted-bugs`)
    #[arg(long, value_name = "BUG", num_args = 0..=1, default_missing_value = "")]
    planted: Option<String>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the simulator.
pub fn run(args: Args) -> ExitCode {
    crate::sim::hush_panics();
    if let Some(only) = &args.planted {
        return run_planted(&args, only);
    }
    match args.seed {
        Some(seed) => tell(seed, &args),
        None => run_many(&args),
    }
}

/// The commit that the failures belong to, if this is a checkout.
fn commit() -> String {
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let text = git.ok().filter(|o| o.status.success()).map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() { concat!("version ", env!("CARGO_PKG_VERSION")).into() } else { text }
}

fn options(args: &Args) -> Options {
    Options { is_verbose: false, without_gateway: args.baseline, on_smoltcp: args.smoltcp }
}

fn tell(seed: u64, args: &Args) -> ExitCode {
    let options = Options { is_verbose: true, ..options(args) };
    let running = watched(args);
    running[0].store(seed, Ordering::Relaxed);
    let outcome = run_seed(seed, &options);
    running[0].store(fleet::NO_SEED, Ordering::Relaxed);
    let failure = outcome.failure();
    let mut out = std::io::stdout().lock();
    let written = match args.output {
        Format::Json => {
            let report = json!({
                "seed": seed, "commit": commit(), "ok": failure.is_none(), "failure": failure,
                "trace": format!("{:016x}", outcome.report.trace), "log": outcome.report.log,
            });
            writeln!(out, "{report}")
        }
        Format::Text => {
            let log = outcome.report.log.join("\n");
            let end = failure.map_or("PASS".into(), |what| format!("FAIL {what}"));
            let trace = outcome.report.trace;
            writeln!(out, "{}{log}\nseed {seed} {end} (trace {trace:016x})", options.scenario(seed))
        }
    };
    // A reader that has seen enough is no failure of the run.
    let _ = written;
    ExitCode::from(if failure.is_none() { exit::OK } else { exit::NO })
}

fn run_many(args: &Args) -> ExitCode {
    let options = options(args);
    let (begun, mut told) = (Instant::now(), Instant::now());
    let (mut done, mut failed) = (0u64, 0usize);
    let is_text = args.output == Format::Text;
    let shows_progress = is_text && std::io::stderr().is_terminal();
    let commit = commit();
    let running = watched(args);
    let summary = fleet::run(args.from, args.seeds, &running, &options, |outcome| {
        done += 1;
        if let Some(what) = outcome.failure() {
            failed += 1;
            if is_text {
                println!("FAIL seed {} (commit {commit}): {what}", outcome.seed);
            }
        }
        if shows_progress && told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            let rate = done as f64 / begun.elapsed().as_secs_f64();
            eprint!("\r{done} of {} seeds, {rate:.0}/s, {failed} failed ", args.seeds);
        }
        failed < args.failures_max
    });
    if shows_progress {
        eprintln!();
    }
    let missing = missing(&summary, args);
    match args.output {
        Format::Text => print_summary(&summary, begun.elapsed(), &missing, args.baseline),
        Format::Json => print_json(&summary, begun.elapsed(), &missing, &commit),
    }
    let is_good = summary.failures.is_empty() && missing.is_empty();
    ExitCode::from(if is_good { exit::OK } else { exit::NO })
}

/// A place for each thread to note its seed, watched: a seed bounds its own steps, but a loop
/// inside the engine would never end.
fn watched(args: &Args) -> Arc<Vec<AtomicU64>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let running = Arc::new(fleet::idle(args.jobs.unwrap_or(cores)));
    let watched = Arc::downgrade(&running);
    std::thread::spawn(move || {
        let mut since =
            vec![(fleet::NO_SEED, Instant::now()); watched.upgrade().map_or(0, |r| r.len())];
        while let Some(running) = watched.upgrade() {
            for (own, since) in running.iter().zip(&mut since) {
                let seed = own.load(Ordering::Relaxed);
                if seed != since.0 {
                    *since = (seed, Instant::now());
                } else if seed != fleet::NO_SEED && since.1.elapsed() >= HANGS {
                    println!("FAIL seed {seed} (commit {}): it hangs", commit());
                    std::process::exit(i32::from(exit::NO));
                }
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    running
}

/// Rare events that a long run reached too seldom.
fn missing(summary: &Summary, args: &Args) -> Vec<&'static str> {
    if args.baseline || summary.seeds < LONG_RUN_SEEDS {
        return Vec::new();
    }
    let named = rare::NAMES.iter().zip(summary.rare.0);
    named.filter(|(_, count)| *count < RARE_MIN).map(|(name, _)| *name).collect()
}

fn print_summary(summary: &Summary, took: Duration, missing: &[&str], is_baseline: bool) {
    let rate = summary.seeds as f64 / took.as_secs_f64();
    if !is_baseline {
        println!("rare event                          reached");
        for (name, count) in rare::NAMES.iter().zip(summary.rare.0) {
            println!("{name:<35} {count:>7}");
        }
    }
    let (got, sent) = summary.frames;
    println!(
        "{} seeds in {:.1} s ({rate:.0}/s), {} failovers, {got} frames in, {sent} out",
        summary.seeds,
        took.as_secs_f64(),
        summary.failovers
    );
    for name in missing {
        println!("FAIL reached less than {RARE_MIN} times: {name}");
    }
    match summary.failures.len() {
        0 if missing.is_empty() => println!("PASS"),
        n => println!("FAIL: {n} seeds; run one again with `shadowvm sim --seed S`"),
    }
}

fn print_json(summary: &Summary, took: Duration, missing: &[&str], commit: &str) {
    let failures: Vec<_> = summary
        .failures
        .iter()
        .map(|(seed, what)| json!({ "seed": seed, "failure": what }))
        .collect();
    let rare: serde_json::Map<_, _> = rare::NAMES
        .iter()
        .zip(summary.rare.0)
        .map(|(name, count)| ((*name).to_owned(), json!(count)))
        .collect();
    let report = json!({
        "commit": commit, "seeds": summary.seeds, "seconds": took.as_secs_f64(),
        "failovers": summary.failovers, "frames_in": summary.frames.0,
        "frames_out": summary.frames.1, "failures": failures, "rare": rare,
        "seldom_reached": missing,
    });
    println!("{report}");
}

#[cfg(not(feature = "planted-bugs"))]
fn run_planted(_: &Args, _: &str) -> ExitCode {
    eprintln!("this build contains no planted bugs; build with `--features planted-bugs`");
    ExitCode::from(exit::USAGE)
}

/// Each bug until a seed catches it: one that fails with the bug and passes without.
#[cfg(feature = "planted-bugs")]
fn run_planted(args: &Args, only: &str) -> ExitCode {
    use crate::engine::planted::{self, Bug};
    let options = Options::default();
    let running = watched(args);
    let is_text = args.output == Format::Text;
    if is_text {
        println!("{:<22} {:>6} {:>6} {:>7}  caught by", "planted bug", "seeds", "seed", "struck");
    }
    let is_meant = |bug: &Bug| only.is_empty() || format!("{bug:?}") == only;
    let bugs: Vec<Bug> = Bug::ALL.iter().copied().filter(is_meant).collect();
    if bugs.is_empty() {
        eprintln!("no bug is named {only:?}; there are {:?}", Bug::ALL);
        return ExitCode::from(exit::USAGE);
    }
    let mut rows = Vec::new();
    let mut counts = Vec::new();
    for &bug in &bugs {
        let mut caught: Option<(u64, String)> = None;
        let mut frames = 0;
        planted::choose(Some(bug));
        fleet::run(args.from, args.seeds, &running, &options, |outcome| {
            // The lowest of those that run at the same time: the same on every machine.
            frames += outcome.report.frames.1;
            let found = outcome.failure().map(|what| (outcome.seed, what.to_owned()));
            caught = caught.take().into_iter().chain(found).min();
            caught.is_none()
        });
        // At most so many of the frames sent were touched by the defect.
        let struck = 100.0 * planted::struck() as f64 / frames.max(1) as f64;
        planted::choose(None);
        let caught = caught.filter(|(seed, _)| run_seed(*seed, &options).failure().is_none());
        let seeds = caught.as_ref().map_or(args.seeds, |(seed, _)| seed - args.from + 1);
        if is_text {
            let seed = caught.as_ref().map_or("-".into(), |(seed, _)| seed.to_string());
            let what = caught.as_ref().map_or("NOT CAUGHT", |(_, what)| what);
            let most = if struck > 100.0 { "-".into() } else { format!("{struck:.2}%") };
            println!("{:<22} {seeds:>6} {seed:>6} {most:>7}  {what}", format!("{bug:?}"));
            println!("{:<45}breaks {}", "", bug.sentence());
        }
        rows.push(json!({
            "bug": format!("{bug:?}"), "sentence": bug.sentence(), "seeds": seeds,
            "struck_percent": struck,
            "seed": caught.as_ref().map(|c| c.0), "caught_by": caught.as_ref().map(|c| &c.1),
        }));
        counts.extend(caught.map(|_| seeds));
    }
    counts.sort_unstable();
    let is_good = counts.len() == bugs.len();
    let median = counts.get(counts.len() / 2);
    match args.output {
        Format::Text => {
            let verdict = if is_good { "PASS" } else { "FAIL" };
            let (found, all) = (counts.len(), bugs.len());
            let median = median.map_or("-".into(), u64::to_string);
            println!("{found} of {all} planted bugs caught, after {median} seeds at the median");
            println!("{verdict}");
        }
        Format::Json => {
            println!("{}", json!({ "commit": commit(), "planted": rows, "ok": is_good }));
        }
    }
    ExitCode::from(if is_good { exit::OK } else { exit::NO })
}
