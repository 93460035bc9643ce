//! `shadowvm sim --crowd`: thousands of connections through one failover after another.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::super::{Format, exit};
use super::checkout::commit;
use crate::sim::crowd::{Outcome, Plan, run as run_crowd};

/// Runs it and tells what came of it.
pub fn run(plan: &Plan, output: Format) -> ExitCode {
    let begun = Instant::now();
    let is_shown = output == Format::Text && std::io::stderr().is_terminal();
    let outcome = run_crowd(plan, |so_far| {
        if is_shown {
            let (done, all, lost) = (so_far.failovers, plan.failovers, so_far.lost);
            eprint!("\r{done} of {all} failovers, {lost} connections lost ");
        }
        true
    });
    if is_shown {
        eprint!("\r\x1b[K");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let is_good = outcome.violation.is_none() && outcome.lost == 0;
    let text = match output {
        Format::Text => tell(plan, &outcome, seconds, is_good),
        Format::Json => json!({
            "commit": commit(), "flows": plan.flows, "failovers": outcome.failovers,
            "flow_failovers": outcome.flow_failovers, "lost": outcome.lost,
            "in_mid_answer": outcome.in_mid_answer, "restored": outcome.restored,
            "bytes_checked": outcome.bytes, "frames_in": outcome.frames.0,
            "frames_out": outcome.frames.1, "virtual_seconds": outcome.time as f64 / 1e9,
            "seconds": seconds, "failure": outcome.violation, "ok": is_good,
        })
        .to_string(),
    };
    // A reader that has seen enough is no failure of the run.
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::from(if is_good { exit::OK } else { exit::NO })
}

fn tell(plan: &Plan, outcome: &Outcome, seconds: f64, is_good: bool) -> String {
    let Outcome { failovers, flow_failovers, lost, restored, in_mid_answer, bytes, .. } = outcome;
    let (flows, (got, sent)) = (plan.flows, outcome.frames);
    let virtual_seconds = outcome.time as f64 / 1e9;
    let end = match (&outcome.violation, is_good) {
        (Some(what), _) => format!("FAIL {what}"),
        (None, false) => format!("FAIL: {lost} connections lost"),
        (None, true) => "PASS".into(),
    };
    format!(
        "{flows} connections, {failovers} failovers, a machine sync after each\n\
         flow-failovers       {flow_failovers:>12}\n\
         lost                 {lost:>12}\n\
         in mid-answer        {in_mid_answer:>12}\n\
         restored by a sync   {restored:>12}\n\
         bytes checked        {bytes:>12}\n\
         {got} frames in, {sent} out, {virtual_seconds:.0} s of virtual time in {seconds:.1} s\n\
         {end}"
    )
}
