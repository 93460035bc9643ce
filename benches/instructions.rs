//! What a packet costs, counted: instructions (by valgrind's callgrind) and allocations of each
//! step of a packet's way through the engine. Both are the same on an idle machine and a busy one.
//!
//! `cargo bench --bench instructions` compares with the committed `benches/instructions.json` and
//! fails if a step got worse by more than 5 %. The numbers hold for the compiler they were taken
//! with: with another one they are told, and nothing fails. After a change that is worth its price,
//! `cargo bench --bench instructions -- --save` writes the file anew.

use std::alloc::System;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Map, Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

mod steps;

use steps::{STEPS, Step};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How much worse is taken for a change, in percent.
const WORSE_MAX_PERCENT: f64 = 5.0;

/// Told to the copy of this program that valgrind runs, before the name of the step.
const ONLY: &str = "--only";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let is_told = |what: &str| args.iter().any(|arg| arg == what);
    if is_told(ONLY) {
        for step in STEPS.iter().filter(|step| is_told(step.name)) {
            run(step, |_| {});
        }
        return ExitCode::SUCCESS;
    }
    // `cargo test --benches` passes --test: the steps themselves work.
    if is_told("--test") {
        return match STEPS.iter().all(|step| count_allocations(step).1 > 0) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
    }
    match measure() {
        Err(why) => {
            eprintln!("instructions: {why}");
            ExitCode::from(3)
        }
        Ok(costs) if is_told("--save") => save(&costs),
        Ok(costs) => compare(&costs),
    }
}

/// Of one packet.
struct Cost {
    name: &'static str,
    instructions: f64,
    allocations: f64,
}

/// Counts both for every step.
fn measure() -> Result<Vec<Cost>, String> {
    let folder = Folder::new().map_err(|e| format!("cannot make a folder: {e}"))?;
    let costs = STEPS.iter().map(|step| {
        let instructions = count_instructions(step, &folder.0.join("out"))?;
        let (allocations, packets) = count_allocations(step);
        let per = |count: u64| count as f64 / packets as f64;
        let (instructions, allocations) = (per(instructions), per(allocations));
        Ok(Cost { name: step.name, instructions, allocations })
    });
    costs.collect()
}

/// Prepares a step, does it between two looks of `watch`, and forgets it; its packets.
fn run(step: &Step, mut watch: impl FnMut(bool)) -> u64 {
    let mut work = (step.prepare)();
    watch(true);
    let packets = the_step_alone(&mut *work);
    watch(false);
    packets
}

/// What callgrind counts: it begins when this is entered and ends when it is left.
#[inline(never)]
fn the_step_alone(work: &mut dyn FnMut() -> u64) -> u64 {
    std::hint::black_box(work())
}

/// (allocations, packets)
fn count_allocations(step: &Step) -> (u64, u64) {
    let mut region = Region::new(ALLOCATOR);
    let mut counted = 0;
    let packets = run(step, |is_begin| match is_begin {
        true => region.reset(),
        false => {
            let change = region.change();
            counted = (change.allocations + change.reallocations) as u64;
        }
    });
    (counted, packets)
}

fn count_instructions(step: &Step, out: &Path) -> Result<u64, String> {
    let myself = std::env::current_exe().map_err(|e| format!("where is this program? {e}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*the_step_alone*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(myself)
        .args([ONLY, step.name])
        .output()
        .map_err(|e| format!("cannot run valgrind (Debian's package valgrind): {e}"))?;
    match output.status.success() {
        true => total(out),
        false => Err(format!("valgrind: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The sum that a file of callgrind ends with.
fn total(file: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    match total {
        Some(0) | None => Err(format!("{}: nothing was counted", file.display())),
        Some(total) => Ok(total),
    }
}

/// A folder that is gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let name = format!("shadowvm-instructions-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a folder for temporary files does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

/// Name, version and target of the compiler that this machine builds with.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = Command::new(rustc).arg("-vV").output().map(|output| output.stdout);
    let told = String::from_utf8(told.unwrap_or_default()).unwrap_or_default();
    let mut lines = told.lines();
    let version = lines.next().unwrap_or("an unknown rustc");
    let host = lines.find_map(|line| line.strip_prefix("host: ")).unwrap_or("an unknown target");
    format!("{version}, {host}")
}

fn save(costs: &[Cost]) -> ExitCode {
    let shown = |value: f64| json!((value * 100.0).round() / 100.0);
    let steps: Map<String, Value> = costs
        .iter()
        .map(|cost| {
            let (instructions, allocations) = (shown(cost.instructions), shown(cost.allocations));
            let value = json!({ "instructions": instructions, "allocations": allocations });
            (cost.name.to_owned(), value)
        })
        .collect();
    let all = json!({ "compiler": compiler(), "a_packet": steps });
    match std::fs::write(file(), format!("{all:#}\n")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("instructions: {}: {e}", file().display());
            ExitCode::FAILURE
        }
    }
}

fn compare(costs: &[Cost]) -> ExitCode {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let known: Value = serde_json::from_str(&text).unwrap_or_default();
    let (compiler, theirs) = (compiler(), known["compiler"].as_str().unwrap_or("none"));
    let mut worse = 0;
    println!("{:<34}{:>14}{:>10}{:>14}{:>10}", "a packet", "instructions", "", "allocations", "");
    for cost in costs {
        let before = &known["a_packet"][cost.name];
        let values = [("instructions", cost.instructions), ("allocations", cost.allocations)];
        let [instructions, allocations] = values.map(|(key, now)| {
            let change = before[key].as_f64().map(|before| percent(before, now));
            worse += u32::from(change.is_none_or(|change| change > WORSE_MAX_PERCENT));
            change.map_or_else(|| "new".to_owned(), |change| format!("{change:+.1} %"))
        });
        println!(
            "{:<34}{:>14.1}{:>10}{:>14.2}{:>10}",
            cost.name, cost.instructions, instructions, cost.allocations, allocations
        );
    }
    if theirs != compiler {
        println!("told only: the numbers before are of {theirs}, this is {compiler}");
        return ExitCode::SUCCESS;
    }
    if worse > 0 {
        println!("{worse} figures are new, or worse by more than {WORSE_MAX_PERCENT} %");
        println!("if that is meant: cargo bench --bench instructions -- --save");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// How much more `now` is, in percent. What is told in hundredths has no smaller change.
fn percent(before: f64, now: f64) -> f64 {
    if (now - before).abs() <= 0.01 {
        return 0.0;
    }
    if before > 0.0 { (now / before - 1.0) * 100.0 } else { f64::INFINITY }
}
