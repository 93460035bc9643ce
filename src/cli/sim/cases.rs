//! Runs as files: each a case to be run again by `--replay`, and a capture of the three links.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::checkout::commit;
use crate::io::pcap::Recorder;
use crate::sim::case::Case;
use crate::sim::scenario::Scenario;
use crate::sim::{Options, Report, run_scenario, shrink};
use crate::wire::{Frame, Offload};

/// Runs that the reduction of one case may take.
const RUNS_MAX: u32 = 5_000;

/// Reads a case.
pub fn read(path: &Path) -> Result<Case, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Case::parse(&text).map_err(|e| format!("{}: no case: {e}", path.display()))
}

/// Reduces `scenario` if it fails, and writes what is left into `folder`; tells where, and how
/// large it is.
pub fn keep(folder: &Path, scenario: &Scenario, options: &Options) -> io::Result<String> {
    let options = Options { is_verbose: false, ..*options };
    let reduced = shrink::reduce(scenario, RUNS_MAX, |scenario| {
        run_scenario(scenario, &options).violation.as_deref().map(shrink::rule)
    });
    let report = run_scenario(&reduced.scenario, &Options { is_verbose: true, ..options });
    let path = write(folder, &reduced.scenario, &options, &report)?;
    let (was, is) = (shrink::size(scenario), shrink::size(&reduced.scenario));
    let runs = reduced.runs;
    Ok(match &report.violation {
        Some(_) => format!("{}: {is}; reduced from {was} in {runs} runs", path.display()),
        None => format!("{}: {is}", path.display()),
    })
}

fn write(
    folder: &Path,
    scenario: &Scenario,
    options: &Options,
    report: &Report,
) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let case = Case {
        sentence: report.violation.as_deref().map_or("nothing is wrong".into(), shrink::rule),
        commit: commit(),
        failure: report.violation.clone(),
        without_gateway: options.without_gateway,
        scenario: scenario.clone(),
        log: report.log.clone(),
    };
    let path = folder.join(format!("seed-{}.json", scenario.seed));
    let mut capture = Recorder::create(&path.with_extension("pcapng"), &["client", "a", "b"])?;
    for frame in &report.captured {
        let bytes = Bytes::copy_from_slice(&frame.bytes);
        let whole = Frame::from_wire(bytes, Offload::default());
        capture.write(frame.link.index(), frame.at, &whole)?;
    }
    capture.flush()?;
    fs::write(&path, case.to_text())?;
    Ok(path)
}
