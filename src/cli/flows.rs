//! `shadowvm flows`: the connections.

use std::process::ExitCode;

use super::Format;
use super::door::{DoorArgs, answer, bytes_text, refuse, table, time_text};
use crate::admin::client;
use crate::admin::types::{Flow, Flows};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm flows                   the first 1000 connections
  shadowvm flows --limit 20        the first 20
  shadowvm flows -o json           for programs

UNVERIFIED are response bytes that one server alone had said when they were released.
WHY tells why a connection has one server, and after `raw:` why no rule of comparison applies to it
any more: from there on it is compared byte by byte.")]
pub struct Args {
    #[command(flatten)]
    door: DoorArgs,
    /// Most connections to show
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

/// Asks and shows.
pub fn run(args: Args) -> ExitCode {
    let socket = match args.door.socket() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match client::get::<Flows>(&socket, &format!("/api/v1/flows?limit={}", args.limit)) {
        Ok(flows) => answer(args.output, &flows, || text(&flows)),
        Err(error) => refuse(&error),
    }
}

/// Why it has one server, and why no rule applies to it.
fn why(flow: &Flow) -> String {
    let raw = flow.raw.as_ref().map(|raw| format!("raw: {raw}"));
    flow.solo.iter().cloned().chain(raw).collect::<Vec<_>>().join(", ")
}

fn text(flows: &Flows) -> String {
    let head = ["CLIENT", "SERVER", "STATE", "PRIMARY", "VERIFIED", "UNVERIFIED", "AGE", "WHY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for flow in &flows.flows {
        rows.push(vec![
            flow.client.clone(),
            flow.server.clone(),
            flow.state.clone(),
            flow.primary.clone().unwrap_or_else(|| "-".into()),
            bytes_text(flow.verified_bytes),
            bytes_text(flow.unverified_bytes),
            time_text(flow.age_seconds),
            why(flow),
        ]);
    }
    format!("{}{} of {} connections\n", table(&rows), flows.flows.len(), flows.total)
}
