//! Real programs in network namespaces around the real gateway: nginx twice, curl, tcpdump.
//!
//! The matrix of faults and the special scenarios, one after the other. A fair sample by default,
//! everything with `TESTBED_LONG=1`; `TESTBED_ONLY=TEXT` runs those with the text in their name,
//! `TESTBED_SEED=N` repeats a choice of fault instants. What fails leaves its captures and logs in
//! `target/testbed/<name>`; with `TESTBED_KEEP=1` what passes does too.

mod bed;
mod client;
mod content;
mod judge;
mod matrix;
mod special;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use content::Content;
use matrix::{Failure, Size};

/// A void run is repeated so often, then it fails.
const VOID_MAX: usize = 8;

/// A scenario: its name, and one run of it in a folder.
type Scenario<'a> = (String, Box<dyn Fn(&Path) -> Result<String, Failure> + 'a>);

fn main() -> ExitCode {
    let is_set = |name| std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0");
    let is_long = is_set("TESTBED_LONG");
    let only = std::env::var("TESTBED_ONLY").unwrap_or_default();
    let seed = std::env::var("TESTBED_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
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
        Size { upload: 50 << 20, requests: 16_000, connections: 1000 }
    } else {
        Size { upload: 20 << 20, requests: 4_800, connections: 300 }
    };
    let mut scenarios: Vec<Scenario<'_>> = Vec::new();
    for cell in matrix::cells(is_long, seed) {
        let content = &content;
        scenarios.push((cell.name(), Box::new(move |at: &Path| cell.run(at, content, size))));
    }
    scenarios.extend(special::scenarios(&content, is_long));
    scenarios.retain(|(name, _)| name.contains(&only));
    run_all(&folder, scenarios)
}

fn run_all(folder: &Path, scenarios: Vec<Scenario<'_>>) -> ExitCode {
    let begin = Instant::now();
    println!("\nrunning {} scenarios", scenarios.len());
    let mut failed: Vec<String> = Vec::new();
    let count = scenarios.len();
    for (name, run) in scenarios {
        let at: PathBuf = folder.join(&name);
        match until_valid(&at, &run) {
            Ok(said) => {
                println!("scenario {name} ... ok ({said})");
                if std::env::var_os("TESTBED_KEEP").is_none() {
                    let _ = std::fs::remove_dir_all(&at);
                }
            }
            Err(message) => {
                println!("scenario {name} ... FAILED\n      {message}\n      {}", at.display());
                failed.push(name);
            }
        }
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!(
        "\nscenario result: {}. {} passed; {} failed; finished in {:.1}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        count - failed.len(),
        failed.len(),
        begin.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(!failed.is_empty() || count == 0))
}

/// Runs a scenario until its run is not void.
fn until_valid(
    at: &Path,
    run: &dyn Fn(&Path) -> Result<String, Failure>,
) -> Result<String, String> {
    let mut why = String::new();
    for _ in 0..VOID_MAX {
        match run(at) {
            Ok(said) => return Ok(said),
            Err(Failure::Broken(message)) => return Err(message),
            Err(Failure::Void(message)) => why = message,
        }
    }
    Err(format!("void {VOID_MAX} times: {why}"))
}
