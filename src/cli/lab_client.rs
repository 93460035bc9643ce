//! `shadowvm lab-client`: hidden; the client that checks every byte, as JSON lines.
//!
//! A line `{"mark_bytes": N}` at each `--mark`, then one line with the outcome.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::exit;
use crate::lab::web::client::{self, Outcome, Plan, Work};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whom to ask
    #[arg(default_value = "192.0.2.10:80")]
    target: SocketAddr,
    /// Bytes of each answer, or of the body with --upload
    #[arg(long, default_value_t = 1_000_000)]
    bytes: u64,
    /// Requests on the one connection
    #[arg(long, default_value_t = 1)]
    requests: u64,
    /// Milliseconds between an answer and the next request
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Send a body instead of asking for one
    #[arg(long, conflicts_with_all = ["requests", "pause_ms"])]
    upload: bool,
    /// Print a line after so many body bytes; may be repeated
    #[arg(long, value_name = "BYTES")]
    mark: Vec<u64>,
    /// Seconds without any byte after which to give up
    #[arg(long, default_value_t = 15)]
    patience: u64,
}

/// Exit status 1 if a byte was wrong or the connection was lost.
pub fn run(args: Args) -> ExitCode {
    let work = match args.upload {
        true => Work::Post { bytes: args.bytes },
        false => Work::Get {
            bytes: args.bytes,
            count: Some(args.requests),
            pause: Duration::from_millis(args.pause_ms),
        },
    };
    let mut marks = args.mark;
    marks.sort_unstable();
    let patience = Duration::from_secs(args.patience);
    let plan = Plan { marks, patience, ..Plan::new(args.target, work) };
    let outcome = client::run(&plan, |bytes| say(&json!({ "mark_bytes": bytes })));
    say(&outcome_json(&outcome));
    ExitCode::from(if outcome.is_right() { exit::OK } else { exit::NO })
}

/// A run as an object; times in nanoseconds.
pub(super) fn outcome_json(outcome: &Outcome) -> Value {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "is_right": outcome.is_right(), "bytes": outcome.bytes, "requests": outcome.requests,
        "wrong_at": outcome.wrong, "error": outcome.error,
        "gap_max_ns": nanos(outcome.gap_max), "took_ns": nanos(outcome.took),
        "latency_p50_ns": outcome.latency.value_at_quantile(0.5),
        "latency_p99_ns": outcome.latency.value_at_quantile(0.99),
    })
}

fn say(line: &Value) {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away wants no more lines.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
