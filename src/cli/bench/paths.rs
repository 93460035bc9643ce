//! Latency and throughput of the gateway and of what people have instead, in the same rounds.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::super::stage::StageError;
use super::peers::{Baseline, GATEWAY, Place, find, installed, places};
use super::real::Root;
use super::table::{Table, Unit};
use crate::lab::web::client::histogram;
use crate::lab::web::load::{self, Load, Outcome, Pace, Way};

/// What both have in common.
#[derive(Debug, clap::Args)]
struct Common {
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Connections with small requests at the same time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// How long small requests are made in each round, on each path
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", value_parser = seconds)]
    seconds: f64,
    /// Bytes of a small answer
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=100_000))]
    small: u32,
    /// nginx instead of the embedded server, which does less for a byte
    #[arg(long)]
    real: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.01 to 3600".to_owned()),
    }
}

/// `bench latency`.
#[derive(Debug, clap::Args)]
pub(super) struct LatencyArgs {
    /// What to compare with
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,bridge")]
    baseline: Vec<Baseline>,
    /// Requests a second, on all connections together
    #[arg(long, default_value_t = 2000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    #[command(flatten)]
    common: Common,
}

/// `bench throughput`.
#[derive(Debug, clap::Args)]
pub(super) struct ThroughputArgs {
    /// What to compare with
    #[arg(long, value_enum, value_delimiter = ',', default_value = "route")]
    baseline: Vec<Baseline>,
    /// What the clients do; everything if nothing is named
    #[arg(long, value_enum, value_delimiter = ',')]
    work: Vec<Work>,
    /// Bytes of all bodies of a round together
    #[arg(long, default_value_t = 500_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1000..))]
    bytes: u64,
    #[command(flatten)]
    common: Common,
}

impl LatencyArgs {
    /// Whether something of what is asked for can be had, before anything is made.
    pub(super) fn check(&self) -> Result<(), StageError> {
        check(&self.baseline, &self.common)
    }
}

impl ThroughputArgs {
    /// As [`LatencyArgs::check`].
    pub(super) fn check(&self) -> Result<(), StageError> {
        check(&self.baseline, &self.common)
    }
}

fn check(baselines: &[Baseline], common: &Common) -> Result<(), StageError> {
    if common.real {
        find("nginx").map_err(StageError::Unavailable)?;
    }
    installed(baselines).map(drop)
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Work {
    /// One download
    Download,
    /// One upload
    Upload,
    /// 16 downloads at once
    Downloads,
    /// Small requests on kept connections
    Requests,
    /// A connection for each small request
    Connections,
}

const FLOWS: u64 = 16;

impl Work {
    const ALL: [Self; 5] =
        [Self::Download, Self::Upload, Self::Downloads, Self::Requests, Self::Connections];

    const fn group(self) -> &'static str {
        match self {
            Self::Download => "one download",
            Self::Upload => "one upload",
            Self::Downloads => "16 downloads at once",
            Self::Requests => "small requests on kept connections",
            Self::Connections => "a connection for each small request",
        }
    }

    const fn is_bulk(self) -> bool {
        !matches!(self, Self::Requests | Self::Connections)
    }
}

/// Small requests at a fixed rate.
pub(super) fn latency(args: &LatencyArgs, dir: &Path) -> Result<Table, StageError> {
    let common = &args.common;
    let setting = json!({
        "runs": common.runs, "rate": args.rate, "connections": common.connections,
        "seconds": common.seconds, "bytes": common.small, "servers": servers(common),
    });
    let mut table = Table::new("latency", setting, Vec::new());
    let root = root(common, dir, [common.small.into()])?;
    let (mut places, lacking) = places(&args.baseline, root.as_ref(), dir)?;
    table.unavailable = lacking;
    table.curves = places.iter().map(|p| (p.name.clone(), histogram())).collect();
    let names: Vec<_> = places.iter().map(|place| place.name.clone()).collect();
    let group = "latency of a small request at a fixed rate";
    let progress = Progress::new(common.runs);
    for round in 0..common.runs {
        let mut found = Vec::new();
        for place in &places {
            progress.tell(round, &place.name, "");
            let pace = Pace::PerSecond(args.rate.into());
            found.push(small(place, common, pace)?);
        }
        for (name, outcome) in places.iter().map(|place| &place.name).zip(&found) {
            let at = |share| outcome.latency.value_at_quantile(share) as f64 / 1e9;
            for (label, share) in QUANTILES {
                table.note_value(group, format!("{name}, {label}"), Unit::Seconds, at(share));
            }
            let curve = table.curves.iter_mut().find(|(known, _)| known == name);
            // Both have the same bounds.
            let _ = curve.map(|(_, all)| all.add(&outcome.latency));
        }
        let late = found.iter().map(|outcome| outcome.lateness.value_at_quantile(0.99)).max();
        let late = late.unwrap_or(0) as f64 / 1e9;
        table.note_value(group, "the client itself was late, p99", Unit::Seconds, late);
        // Nobody is always first.
        places.rotate_left(1);
    }
    progress.end();
    for peer in &names[1..] {
        for (label, _) in QUANTILES {
            let added = differences(
                &table,
                group,
                [GATEWAY, peer.as_str()].map(|n| format!("{n}, {label}")),
            );
            for value in added {
                let name = format!("added to {peer}, {label}");
                table.note_value(group, name, Unit::Seconds, value);
            }
        }
    }
    for peer in &names[1..] {
        for (label, _) in QUANTILES {
            ratio(&mut table, group, peer, label);
        }
    }
    Ok(table)
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

fn differences(table: &Table, group: &str, names: [String; 2]) -> Vec<f64> {
    let [Some(of), Some(to)] = names.map(|name| table.find(group, &name)) else {
        return Vec::new();
    };
    table.rows[of].values.iter().zip(&table.rows[to].values).map(|(of, to)| of - to).collect()
}

/// The gateway's row to a peer's, if there are both.
fn ratio(table: &mut Table, group: &'static str, peer: &str, what: &str) {
    let [of, to] = [GATEWAY, peer].map(|name| table.find(group, &format!("{name}, {what}")));
    if let Some((of, to)) = of.zip(to) {
        table.ratio(format!("{GATEWAY} to {peer}, {what}"), of, to);
    }
}

/// As much as goes through.
pub(super) fn throughput(args: &ThroughputArgs, dir: &Path) -> Result<Table, StageError> {
    let common = &args.common;
    let setting = json!({
        "runs": common.runs, "bytes": args.bytes, "connections": common.connections,
        "seconds": common.seconds, "small": common.small, "servers": servers(common),
    });
    let mut table = Table::new("throughput", setting, Vec::new());
    let lengths = [args.bytes, args.bytes / FLOWS, common.small.into()];
    let root = root(common, dir, lengths)?;
    let (mut places, lacking) = places(&args.baseline, root.as_ref(), dir)?;
    table.unavailable = lacking;
    let peers: Vec<_> = places[1..].iter().map(|place| place.name.clone()).collect();
    let works = if args.work.is_empty() { &Work::ALL[..] } else { &args.work };
    let progress = Progress::new(common.runs);
    for round in 0..common.runs {
        for &work in works {
            for place in places.iter().filter(|place| is_fair(place, work, common)) {
                progress.tell(round, &place.name, work.group());
                do_work(&mut table, place, work, args)?;
            }
        }
        // Nobody is always first.
        places.rotate_left(1);
    }
    progress.end();
    for work in works {
        for peer in &peers {
            for what in [RATE, MIDDLE, ALL] {
                ratio(&mut table, work.group(), peer, what);
            }
        }
    }
    Ok(table)
}

/// nginx as a server answers before it has read what it throws away, and a proxy that sees an
/// answer sends no more of the request.
fn is_fair(place: &Place, work: Work, common: &Common) -> bool {
    !(work == Work::Upload && common.real && place.name == Baseline::Nginx.to_string())
}

const RATE: &str = "rate";
const MIDDLE: &str = "processor in the middle";
const ALL: &str = "processor of all programs";

/// Does it on one path and notes what it took.
fn do_work(
    table: &mut Table,
    place: &Place,
    work: Work,
    args: &ThroughputArgs,
) -> Result<(), StageError> {
    let before = place.used()?;
    let target = place.target;
    let outcome = match work {
        Work::Download => place.as_client(|| load::bulk(target, Way::Down, 1, args.bytes))?,
        Work::Upload => place.as_client(|| load::bulk(target, Way::Up, 1, args.bytes))?,
        Work::Downloads => {
            place.as_client(|| load::bulk(target, Way::Down, FLOWS as usize, args.bytes / FLOWS))?
        }
        Work::Requests => small(place, &args.common, Pace::Answered)?,
        Work::Connections => small(place, &args.common, Pace::Connecting)?,
    };
    let after = place.used()?;
    let middle = after.middle.zip(before.middle).map(|(after, before)| after - before);
    let servers = after.servers - before.servers;
    let all = outcome.cpu.as_secs_f64() + servers + middle.unwrap_or(0.0);
    let (count, rate, cost) = match work.is_bulk() {
        true => (args.bytes as f64, Unit::BytesPerSecond, Unit::SecondsPerGigabyte),
        false => (outcome.answers as f64, Unit::PerSecond, Unit::Seconds),
    };
    let per = if work.is_bulk() { count / 1e9 } else { count };
    let mut note = |what, unit, value| {
        table.note_value(work.group(), format!("{}, {what}", place.name), unit, value);
    };
    note(RATE, rate, count / outcome.took.as_secs_f64());
    if let Some(middle) = middle {
        note(MIDDLE, cost, middle / per);
    }
    note(ALL, cost, all / per);
    Ok(())
}

/// Small requests, as `pace` says.
fn small(place: &Place, common: &Common, pace: Pace) -> Result<Outcome, StageError> {
    let load = Load {
        target: place.target,
        pace,
        connections: common.connections.into(),
        bytes: common.small.into(),
        time: Duration::from_secs_f64(common.seconds),
    };
    place.as_client(move || load::run(&load))
}

/// What nginx is to serve, if it is to.
fn root<const N: usize>(
    common: &Common,
    dir: &Path,
    lengths: [u64; N],
) -> Result<Option<Root>, StageError> {
    let lengths = BTreeSet::from(lengths);
    common.real.then(|| Root::new(dir, lengths)).transpose()
}

const fn servers(common: &Common) -> &'static str {
    if common.real { "nginx" } else { "embedded" }
}

/// What is being measured, on a terminal.
struct Progress {
    is_shown: bool,
    runs: u32,
}

impl Progress {
    fn new(runs: u32) -> Self {
        Self { is_shown: std::io::stderr().is_terminal(), runs }
    }

    fn tell(&self, round: u32, path: &str, work: &str) {
        if self.is_shown {
            eprint!("\r\x1b[Kround {} of {}: {path} {work}", round + 1, self.runs);
        }
    }

    fn end(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}
