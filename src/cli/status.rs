//! `shadowvm status`: the state of the running gateway.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::door::{DoorArgs, answer, bytes_text, refuse, say, table, time_text};
use super::{Format, exit};
use crate::admin::client::{self, ClientError};
use crate::admin::types::{Agent, Events, Evidence, Server, Status, Unprotected};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm status                  state, roles, connections
  shadowvm status --check          for monitoring: exit 0 only if new connections are protected
  shadowvm status --watch          again at every change, and once a second
  shadowvm status -o json          for programs

Exit status: 0 answered (with --check: protected), 1 not protected, 69 no gateway answers.")]
pub struct Args {
    #[command(flatten)]
    door: DoorArgs,
    /// Exit with 1 unless new connections are protected by two servers
    #[arg(long)]
    check: bool,
    /// Show it again at every change, and once a second
    #[arg(long, conflicts_with = "check")]
    watch: bool,
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
    if args.watch {
        return refuse(&watch(&socket, args.output));
    }
    let status: Status = match client::get(&socket, "/api/v1/status") {
        Ok(status) => status,
        Err(error) => return refuse(&error),
    };
    let code = answer(args.output, &status, || text(&status));
    if args.check && !status.service.is_protected {
        let reason = status.service.reason.as_deref().unwrap_or("no reason given");
        eprintln!("not protected: {} ({reason})", status.service.state);
        return ExitCode::from(exit::NO);
    }
    code
}

/// Shows the status until it cannot be had any more.
fn watch(socket: &Path, format: Format) -> ClientError {
    let is_terminal = format == Format::Text && std::io::stdout().is_terminal();
    let mut last = 0;
    loop {
        let status: Status = match client::get(socket, "/api/v1/status") {
            Ok(status) => status,
            Err(error) => return error,
        };
        if is_terminal {
            // Home, and clear what follows: no flicker.
            say("\x1b[H\x1b[J");
        }
        answer(format, &status, || text(&status));
        let changes = format!("/api/v1/events?after={last}&wait=1");
        match client::get::<Events>(socket, &changes) {
            Ok(events) => last = events.last,
            Err(error) => return error,
        }
    }
}

/// Ports, as people write them.
fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// The status for people.
fn text(status: &Status) -> String {
    let service = &status.service;
    let reason = service.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
    let since = service.changed_at.map(|at| format!(" for {}", time_text(seconds_since(at))));
    let paused = if status.is_paused { ", failover paused" } else { "" };
    let sandbox = if status.is_sandboxed { "sandboxed" } else { "no sandbox" };
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} {} port {}: {}{reason}{}",
        service.name,
        service.addresses.join(", "),
        list(&service.ports),
        service.state.to_uppercase(),
        since.unwrap_or_default(),
    );
    let _ = writeln!(
        out,
        "mode {}{paused}, primary {}, epoch {}, up {}, {sandbox}\n",
        status.mode,
        status.primary,
        status.epoch,
        time_text(status.uptime_seconds),
    );
    let mut rows = vec![["SERVER", "ROLE", "STATE", "LINK"].map(str::to_owned).to_vec()];
    for server in &status.servers {
        let link = format!("{} ({})", server.leg, server.interface);
        let mut state = server.state.clone();
        if !server.refused_ports.is_empty() {
            let _ = write!(state, ", refuses {}", list(&server.refused_ports));
        }
        if server.is_unanswering {
            state.push_str(", answers no client");
        }
        rows.push(vec![server.name.clone(), server.role.clone(), state, link]);
    }
    out.push_str(&table(&rows));
    for Server { name, agent, .. } in &status.servers {
        if let Some(Agent { address, is_connected, text }) = agent {
            let state = if *is_connected { "connected" } else { "NOT CONNECTED" };
            let _ = writeln!(out, "agent of {name} ({address}): {state}; {text}");
        }
    }
    if status.servers.iter().any(|server| server.is_unanswering) {
        out.push_str(
            "a server that answers no client: does its route to the clients lead through the \
             gateway, and does it let them in?\n",
        );
    }
    if !status.neighbours.is_empty() {
        let mut rows = vec![["NEIGHBOUR", "LINK", "STATE", "MAC"].map(str::to_owned).to_vec()];
        for known in &status.neighbours {
            let since = known.for_seconds.filter(|_| known.state != "resolved");
            let since = since.map(|s| format!(" for {}", time_text(s))).unwrap_or_default();
            let state = format!("{}{since}", known.state);
            let mac = known.mac.clone().unwrap_or_else(|| "-".into());
            rows.push(vec![known.address.clone(), known.link.clone(), state, mac]);
        }
        let _ = write!(out, "\n{}", table(&rows));
    }
    let flows = &status.flows;
    let _ = writeln!(
        out,
        "\nconnections: {} paired, {} lagging, {} diverged, {} solo, {} opening, {} closing; \
         {} half-open, {} compared raw",
        flows.paired,
        flows.lagging,
        flows.diverged,
        flows.solo,
        flows.opening,
        flows.time_wait,
        flows.half_open,
        flows.raw,
    );
    for Unprotected { text, flows, .. } in &status.unprotected {
        let _ = writeln!(out, "unprotected: {flows}, because {text}");
    }
    if let Some(Evidence { written, lost, .. }) = &status.evidence
        && written + lost > 0
    {
        let lost = match lost {
            0 => String::new(),
            lost => format!(", {lost} could not be written (the log says why)"),
        };
        let _ = writeln!(out, "evidence: {written} left{lost}; see `shadowvm divergences ls`");
    }
    let wait = &status.release_wait;
    let _ = writeln!(
        out,
        "held {}; release wait p50 {}, p99 {}, max {}",
        bytes_text(status.held_bytes),
        time_text(wait.p50_seconds),
        time_text(wait.p99_seconds),
        time_text(wait.max_seconds),
    );
    if let Some(id) = status.sync {
        let _ = writeln!(out, "sync {id} is under way");
    }
    out
}

fn seconds_since(unix: f64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(unix, |d| d.as_secs_f64());
    (now - unix).max(0.0)
}
