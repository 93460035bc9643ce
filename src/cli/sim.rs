//! `shadowvm sim`: runs seeds of the simulated world, or tells the story of one seed or case.
//!
//! Exit status 1 if a seed fails or a long run reaches a rare event too seldom.

mod cases;
mod checkout;
mod crowd;
mod progress;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use self::checkout::commit;
use self::progress::Progress;
use super::{Format, exit};
use crate::sim::crowd::Plan;
use crate::sim::scenario::Scenario;
use crate::sim::{Options, fleet, rare, run_twice};

/// A seed takes a millisecond; one that takes so long never ends.
const HANGS: Duration = Duration::from_secs(60);
/// A run of so many seeds has to reach every rare event so often.
const LONG_RUN_SEEDS: u64 = 5_000;
/// See [`LONG_RUN_SEEDS`].
const RARE_MIN: u64 = 20;
/// Failures of one run that are reduced: one defect shows in many.
const CASES_MAX: usize = 5;
/// Seeds between two writings of the progress.
const BLOCK_SEEDS: u64 = 20_000;

/// Run the simulator
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm sim --seeds 20000 --from-commit              fresh seeds, the same again for this commit
  shadowvm sim --seeds 10000000 --resume proof          a long run; again: goes on where it was left
  shadowvm sim --seeds 100000 --from 5000 --out failed  cases and captures of what fails, reduced
  shadowvm sim --seed 77                                the story of one seed
  shadowvm sim --crowd 10000 --failovers 100            the same 10,000 connections through 100
                                                        failovers, a copy of the machine after each
  shadowvm sim --replay failed/seed-77.json             the story of one case, run again

Exit status: 0 nothing was wrong, 1 a seed failed, or reached too little, 2 no run.")]
pub struct Args {
    /// How many seeds to run, parts that are done included
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, value_name = "S")]
    from: u64,
    /// Begin with the seed that this checkout's commit stands for: fresh ones, and they repeat
    #[arg(long, conflicts_with_all = ["from", "seed"])]
    from_commit: bool,
    /// Keep what is done in FILE, and go on there; refused if `src` is another tree than then
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    resume: Option<PathBuf>,
    /// Threads; the number of processors if not given
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Run one seed and tell everything that happens
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Run a case again that was written by `--out`, or is kept in `src/sim/kept`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "from", "seed", "from_commit",
        "resume", "baseline", "smoltcp"])]
    replay: Option<PathBuf>,
    /// Reduce what fails, and write it into DIR: a case to replay, and a capture of all links;
    /// the run of `--seed` or `--replay` in any case
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Run so many connections through failovers in a row, the backup made whole after each by a
    /// sync that copies memory and TCP state; every byte is checked
    #[arg(long, value_name = "N", requires = "failovers", conflicts_with_all = ["seeds", "seed",
        "from_commit", "resume", "replay", "out", "baseline", "smoltcp", "planted"],
        value_parser = clap::value_parser!(u32).range(1..=200_000))]
    crowd: Option<u32>,
    /// How often the primary of the crowd dies
    #[arg(long, value_name = "TIMES", requires = "crowd")]
    failovers: Option<u32>,
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
    if let Some(path) = &args.replay {
        return replay(path, &args);
    }
    if let (Some(flows), Some(failovers)) = (args.crowd, args.failovers) {
        let plan = Plan { flows: flows as usize, failovers, seed: args.from };
        return crowd::run(&plan, args.output);
    }
    match args.seed {
        Some(seed) => tell(&options(&args).scenario(seed), &options(&args), &args),
        None => run_many(&args),
    }
}

/// A case, and whether it ends as it did when it was written.
fn replay(path: &Path, args: &Args) -> ExitCode {
    let case = match cases::read(path) {
        Ok(case) => case,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(exit::USAGE);
        }
    };
    if args.output == Format::Text {
        let then = case.failure.as_deref().unwrap_or("nothing was wrong");
        println!("{}: {}\nat commit {}: {then}", path.display(), case.sentence, case.commit);
    }
    let options = Options { without_gateway: case.without_gateway, ..Options::default() };
    tell(&case.scenario, &options, args)
}

fn options(args: &Args) -> Options {
    Options { without_gateway: args.baseline, on_smoltcp: args.smoltcp, ..Options::default() }
}

fn tell(scenario: &Scenario, options: &Options, args: &Args) -> ExitCode {
    let seed = scenario.seed;
    let running = watched(args);
    running[0].store(seed, Ordering::Relaxed);
    let report = run_twice(scenario, &Options { is_verbose: true, ..*options });
    running[0].store(fleet::NO_SEED, Ordering::Relaxed);
    let failure = report.violation.as_deref();
    let mut out = std::io::stdout().lock();
    let written = match args.output {
        Format::Json => {
            let report = json!({
                "seed": seed, "commit": commit(), "ok": failure.is_none(), "failure": failure,
                "trace": format!("{:016x}", report.trace), "log": report.log,
            });
            writeln!(out, "{report}")
        }
        Format::Text => {
            let log = report.log.join("\n");
            let end = failure.map_or("PASS".into(), |what| format!("FAIL {what}"));
            writeln!(out, "{scenario}{log}\nseed {seed} {end} (trace {:016x})", report.trace)
        }
    };
    // A reader that has seen enough is no failure of the run.
    let _ = written;
    drop(out);
    if !keep([scenario], options, args) {
        return ExitCode::from(exit::USAGE);
    }
    ExitCode::from(if failure.is_none() { exit::OK } else { exit::NO })
}

/// Writes scenarios to where `--out` says; false if that fails.
fn keep<'a>(
    scenarios: impl IntoIterator<Item = &'a Scenario>,
    options: &Options,
    args: &Args,
) -> bool {
    let Some(folder) = &args.out else { return true };
    for scenario in scenarios {
        match cases::keep(folder, scenario, options) {
            Ok(what) if args.output == Format::Text => println!("{what}"),
            Ok(_) => {}
            Err(e) => {
                eprintln!("{}: {e}", folder.display());
                return false;
            }
        }
    }
    true
}

fn run_many(args: &Args) -> ExitCode {
    let mut run = match begin(args) {
        Ok(run) => run,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(exit::USAGE);
        }
    };
    run.parts += u32::from(run.done < args.seeds);
    let is_text = args.output == Format::Text;
    let commit = commit();
    if is_text && (args.from_commit || run.tree.is_some()) {
        let (from, to) = (run.from, run.from + args.seeds - 1);
        println!("seeds {from} to {to} at commit {commit}, {} of them done", run.done);
    }
    let running = watched(args);
    let mut failed = 0;
    // Without a file to keep the whole is one block, which failures may cut short.
    let block = if args.resume.is_some() { BLOCK_SEEDS } else { u64::MAX };
    while run.done < args.seeds && failed < args.failures_max {
        let begun = Instant::now();
        let mut bar = Bar::new(args, run.done);
        let (from, count) = (run.from + run.done, block.min(args.seeds - run.done));
        let summary = fleet::run(from, count, &running, &options(args), |outcome| {
            if let Some(what) = outcome.failure() {
                failed += 1;
                if is_text {
                    println!("FAIL seed {} (commit {commit}): {what}", outcome.seed);
                }
            }
            bar.step(failed);
            failed < args.failures_max || args.resume.is_some()
        });
        run.add(&summary, begun.elapsed().as_secs_f64());
        if let Some(path) = &args.resume
            && let Err(e) = run.save(path)
        {
            eprintln!("{}: {e}", path.display());
            return ExitCode::from(exit::USAGE);
        }
        if args.resume.is_none() {
            break;
        }
    }
    let missing = missing(&run, args);
    match args.output {
        Format::Text => print_summary(&run, &missing, args.baseline),
        Format::Json => print_json(&run, &missing, &commit),
    }
    let failed = run.summary.failures.iter().take(CASES_MAX);
    let failed: Vec<Scenario> = failed.map(|(seed, _)| options(args).scenario(*seed)).collect();
    if !keep(&failed, &options(args), args) {
        return ExitCode::from(exit::USAGE);
    }
    let is_good = run.summary.failures.is_empty() && missing.is_empty();
    ExitCode::from(if is_good { exit::OK } else { exit::NO })
}

/// The run that is asked for, with the parts of it that are done.
fn begin(args: &Args) -> Result<Progress, String> {
    let from = if args.from_commit { checkout::seed()? } else { args.from };
    let hosts = if args.smoltcp { "every host on smoltcp" } else { "hosts of all kinds" };
    let place = if args.baseline { "without the gateway" } else { "with the gateway" };
    let options = format!("{hosts}, {place}");
    let Some(path) = &args.resume else { return Ok(Progress::new(None, options, from)) };
    let run = Progress::new(Some(checkout::src_tree()?), options, from).resume(path)?;
    match run.done > args.seeds {
        true => Err(format!("{}: {} seeds are done already", path.display(), run.done)),
        false => Ok(run),
    }
}

/// A line on a terminal that tells how far the run is.
struct Bar {
    is_shown: bool,
    begun: Instant,
    told: Instant,
    before: u64,
    done: u64,
    all: u64,
}

impl Bar {
    fn new(args: &Args, before: u64) -> Self {
        let is_shown = args.output == Format::Text && std::io::stderr().is_terminal();
        let now = Instant::now();
        Self { is_shown, begun: now, told: now, before, done: 0, all: args.seeds }
    }

    fn step(&mut self, failed: usize) {
        self.done += 1;
        if self.is_shown && self.told.elapsed() >= Duration::from_secs(1) {
            self.told = Instant::now();
            let rate = self.done as f64 / self.begun.elapsed().as_secs_f64();
            let done = self.before + self.done;
            eprint!("\r{done} of {} seeds, {rate:.0}/s, {failed} failed ", self.all);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
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
fn missing(run: &Progress, args: &Args) -> Vec<&'static str> {
    let summary = &run.summary;
    if args.baseline || summary.seeds < LONG_RUN_SEEDS {
        return Vec::new();
    }
    let named = rare::NAMES.iter().zip(summary.rare.0);
    named.filter(|(_, count)| *count < RARE_MIN).map(|(name, _)| *name).collect()
}

fn print_summary(run: &Progress, missing: &[&str], is_baseline: bool) {
    let summary = &run.summary;
    if !is_baseline {
        println!("rare event                          reached");
        for (name, count) in rare::NAMES.iter().zip(summary.rare.0) {
            println!("{name:<35} {count:>7}");
        }
    }
    let (got, sent) = summary.frames;
    let (seeds, seconds) = (summary.seeds, run.seconds);
    let rate = seeds as f64 / seconds;
    let failovers = summary.failovers;
    println!(
        "{seeds} seeds in {seconds:.1} s ({rate:.0}/s), {failovers} failovers, {got} frames in, \
         {sent} out"
    );
    if !is_baseline {
        println!("each ran without the gateway first; {} did not end there either", summary.unfit);
    }
    if let Some(tree) = &run.tree {
        println!("tree {tree} of src, from seed {}, in {} parts", run.from, run.parts);
    }
    for name in missing {
        println!("FAIL reached less than {RARE_MIN} times: {name}");
    }
    if run.parts > 1 {
        summary.failures.iter().for_each(|(seed, what)| println!("FAIL seed {seed}: {what}"));
    }
    match summary.failures.len() {
        0 if missing.is_empty() => println!("PASS"),
        n => println!("FAIL: {n} seeds; run one again with `shadowvm sim --seed S`"),
    }
}

fn print_json(run: &Progress, missing: &[&str], commit: &str) {
    let summary = &run.summary;
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
        "commit": commit, "tree": run.tree, "parts": run.parts, "from": run.from,
        "seeds": summary.seeds, "seconds": run.seconds,
        "failovers": summary.failovers, "frames_in": summary.frames.0,
        "frames_out": summary.frames.1, "unfit": summary.unfit, "failures": failures, "rare": rare,
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
    use crate::sim::run_seed;
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
