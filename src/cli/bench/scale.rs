//! What a packet and a connection cost as connections become more: the engine alone, fed from
//! memory.
//!
//! Each count is measured in a process of its own, because what an allocator has kept of the count
//! before would hide what the next one needs.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::stage::StageError;
use super::table::{Table, Unit};
use crate::engine::{LegId, Link};
use crate::lab::pair::Pair;
use crate::lab::web::load::thread_cpu;
use crate::wire::TcpFlags;

/// `bench scale`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Connections
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000,10000,100000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    flows: Vec<u32>,
    /// Measure one count here and tell it as JSON
    #[arg(long, hide = true, value_name = "FLOWS", conflicts_with_all = ["runs", "flows"])]
    alone: Option<u32>,
}

/// Ports of one client.
const PORTS: u32 = 50_000;
const PORT_FIRST: u16 = 1024;
/// Requests that are measured, at least; each connection asks at least twice.
const REQUESTS_MIN: u32 = 50_000;
/// Requests whose frames are made at once.
const MADE: u32 = 5_000;
/// Time that a frame takes while connections open, in the engine's own time: most are at rest by
/// the time that all are open.
const OPENING_STEP_NS: u64 = 20_000;

/// Measures.
pub(super) fn run(args: &Args) -> Result<Table, StageError> {
    let refused = |source| StageError::Io { what: "measuring in a process of its own", source };
    let setting = json!({ "runs": args.runs, "flows": args.flows });
    let mut table = Table::new("scale", setting, Vec::new());
    for _ in 0..args.runs {
        for &flows in &args.flows {
            let told = in_a_process(flows).map_err(refused)?;
            let number = |key: &str| told[key].as_f64().unwrap_or(f64::NAN);
            let name = |what: &str| format!("{what}, {flows} connections");
            table.note_value("", name("a packet"), Unit::Seconds, number("packet_ns") / 1e9);
            // The memory of a few is lost in that of the program.
            if flows >= 1000 {
                let bytes = number("bytes_per_flow");
                table.note_value("", name("memory of one at rest"), Unit::Bytes, bytes);
            }
        }
    }
    let name = |flows| format!("a packet, {flows} connections");
    if let (Some(least), Some(most)) = (smallest(&args.flows), args.flows.iter().max())
        && let Some((of, to)) = table.find("", &name(*most)).zip(table.find("", &name(least)))
    {
        table.ratio(format!("a packet, {most} connections to {least}"), of, to);
    }
    Ok(table)
}

/// What the largest count is compared with: 10 if it was measured, since with one connection
/// everything is in the nearest cache.
fn smallest(flows: &[u32]) -> Option<u32> {
    if flows.contains(&10) { Some(10) } else { flows.iter().min().copied() }
}

/// Measures one count in a process of its own.
fn in_a_process(flows: u32) -> io::Result<Value> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["bench", "scale", "--alone", &flows.to_string()]);
    let output = command.stderr(Stdio::inherit()).output()?;
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}

impl Args {
    /// Measures one count here, if that was asked for, and tells it.
    pub(super) fn alone(&self) -> Option<io::Result<()>> {
        let flows = self.alone?;
        Some(one(flows).map(|told| println!("{told}")))
    }
}

fn one(flows: u32) -> io::Result<Value> {
    let mut pair = Pair::new();
    let before = resident_bytes()?;
    pair.step_ns = OPENING_STEP_NS;
    for flow in 0..flows {
        pair.client = client(flow);
        pair.open();
    }
    let with = resident_bytes()?;
    let is_paired = pair.engine.status().flows[1] == flows;
    if !is_paired {
        return Err(io::Error::other("not every connection is served by both"));
    }
    pair.step_ns = 1000;
    let requests = REQUESTS_MIN.max(2 * flows);
    let (mut took, mut frames, mut asked) = (Duration::ZERO, 0, 0);
    while asked < requests {
        let most = MADE.min(requests - asked);
        let made: Vec<_> =
            (asked..asked + most).flat_map(|n| request(&mut pair, n, flows)).collect();
        (asked, frames) = (asked + most, frames + made.len());
        let begin = thread_cpu()?;
        made.into_iter().for_each(|(link, frame)| pair.put(link, frame));
        took += thread_cpu()?.saturating_sub(begin);
    }
    if pair.bytes_out != u64::from(requests) * u64::from(ANSWER) {
        return Err(io::Error::other("not every answer was released"));
    }
    Ok(json!({
        "packet_ns": took.as_nanos() as f64 / frames as f64,
        "bytes_per_flow": with.saturating_sub(before) as f64 / f64::from(flows),
    }))
}

const REQUEST: u32 = 100;
const ANSWER: u32 = 300;

/// The frames of request `number`: all connections ask in turn, far from one another.
fn request(pair: &mut Pair, number: u32, flows: u32) -> [(Link, crate::wire::Frame); 4] {
    const ACK: TcpFlags = TcpFlags::ACK;
    const PRIME: u32 = 7919;
    let stride = if flows.is_multiple_of(PRIME) { 1 } else { PRIME };
    let (turn, at) = (number / flows, number % flows);
    // Each once in a turn: the stride and the count have no divisor in common.
    let flow = (u64::from(at) * u64::from(stride) % u64::from(flows)) as u32;
    pair.client = client(flow);
    let (asked, said) = (1 + turn * REQUEST, 1 + turn * ANSWER);
    let request = Bytes::from_static(&[1; REQUEST as usize]);
    let answer = Bytes::from_static(&[7; ANSWER as usize]);
    let (asks, thanks) = ((asked, said), (asked + REQUEST, said + ANSWER));
    let [a, b] = LegId::ALL.map(|leg| {
        (Link::Server(leg), pair.server_says(leg, ACK, (said, asked + REQUEST), answer.clone()))
    });
    let client = |numbers, data| (Link::Client, pair.client_says(ACK, numbers, data));
    [client(asks, request), a, b, client(thanks, Bytes::new())]
}

/// The host number and port of a connection's client.
fn client(flow: u32) -> (u8, u16) {
    // From 20 on, away from the service's own number.
    (20 + (flow / PORTS) as u8, PORT_FIRST + (flow % PORTS) as u16)
}

/// Memory that this process has in use.
fn resident_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kb.map(|kb| kb * 1024).ok_or_else(|| io::Error::other("no VmRSS is told"))
}
