//! What a bench found: rows of values, one value a round, and how they are written for people, as
//! JSON and as CSV. Each round gives one value; what is told is their median and their spread.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::lab::web::client::Outcome;

/// A result.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// What was done, in words.
    pub(super) setting: Value,
    pub(super) rows: Vec<Row>,
    /// Ratios between rows, formed within each round.
    pub(super) ratios: Vec<Row>,
    /// Wrong bytes and lost connections.
    pub(super) troubles: Vec<String>,
    /// Rounds that say nothing, because the fault came after the last byte.
    pub(super) void_rounds: u32,
    /// Distributions of times in nanoseconds, of all rounds together.
    pub(super) curves: Vec<(String, Histogram<u64>)>,
    /// Peers that were asked for and are not to be had here, and why.
    pub(super) unavailable: Vec<String>,
}

/// One quantity.
#[derive(Debug)]
pub(super) struct Row {
    /// What it belongs to; rows of one group stand together.
    pub(super) group: &'static str,
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) values: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    SecondsPerGigabyte,
    BytesPerSecond,
    PerSecond,
    Bytes,
    Count,
    Ratio,
}

impl Unit {
    /// What a number in JSON and CSV is in.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::SecondsPerGigabyte => "seconds_per_gigabyte",
            Self::BytesPerSecond => "bytes_per_second",
            Self::PerSecond => "per_second",
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::Ratio => "ratio",
        }
    }

    pub(super) fn show(self, value: f64) -> String {
        match self {
            _ if value.is_nan() => "-".to_owned(),
            Self::Seconds if value.abs() < 1e-5 => format!("{:.0} ns", value * 1e9),
            Self::Seconds if value.abs() < 0.01 => format!("{:.0} us", value * 1e6),
            Self::Seconds => format!("{:.1} ms", value * 1e3),
            Self::SecondsPerGigabyte => format!("{value:.2} s/GB"),
            Self::BytesPerSecond => format!("{:.2} Gbit/s", value * 8.0 / 1e9),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Bytes if value >= 1e6 => format!("{:.1} MB", value / 1e6),
            Self::Bytes => format!("{value:.0} B"),
            Self::Count => format!("{value:.0}"),
            Self::Ratio => format!("{value:.2}"),
        }
    }
}

impl Row {
    pub(super) fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { group: "", name: name.into(), unit, values: Vec::new() }
    }

    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
        json!({
            "group": self.group, "name": self.name, "unit": self.unit.name(),
            "rounds": self.values.len(),
            "min": self.quantile(0.0), "p50": self.quantile(0.5), "p99": self.quantile(0.99),
            "max": self.quantile(1.0), "values": self.values,
        })
    }

    fn text(&self) -> String {
        let shares = [0.5, 0.99, 0.0, 1.0].map(|share| self.unit.show(self.quantile(share)));
        format!(
            "  {:<46}{:>13}{:>13}{:>13}{:>13}",
            self.name, shares[0], shares[1], shares[2], shares[3]
        )
    }
}

impl Table {
    pub(super) fn new(name: &'static str, setting: Value, rows: Vec<Row>) -> Self {
        Self {
            name,
            setting,
            rows,
            ratios: Vec::new(),
            troubles: Vec::new(),
            void_rounds: 0,
            curves: Vec::new(),
            unavailable: Vec::new(),
        }
    }

    /// Adds the ratio of two rows, round by round.
    pub(super) fn ratio(&mut self, name: impl Into<String>, of: usize, to: usize) {
        let pairs = self.rows[of].values.iter().zip(&self.rows[to].values);
        let values = pairs.map(|(of, to)| of / to).collect();
        let group = self.rows[of].group;
        self.ratios.push(Row { group, name: name.into(), unit: Unit::Ratio, values });
    }

    /// Notes wrong bytes and lost connections.
    pub(super) fn note<'a>(&mut self, outcomes: impl IntoIterator<Item = &'a Outcome>) {
        for outcome in outcomes {
            if let Some(at) = outcome.wrong {
                self.troubles.push(format!("a wrong byte at offset {at}"));
            }
            if let Some(error) = &outcome.error {
                self.troubles.push(format!("after {} bytes: {error}", outcome.bytes));
            }
        }
    }

    /// Notes a round's value; the row is made when it is first noted.
    pub(super) fn note_value(
        &mut self,
        group: &'static str,
        name: impl Into<String>,
        unit: Unit,
        value: f64,
    ) {
        let name = name.into();
        let is_it = |row: &Row| row.group == group && row.name == name;
        match self.rows.iter_mut().find(|row| is_it(row)) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { group, name, unit, values: vec![value] }),
        }
    }

    /// The place of a row.
    pub(super) fn find(&self, group: &str, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.group == group && row.name == name)
    }

    /// Rows and ratios by their groups, in the order in which the groups came up.
    pub(super) fn groups(&self) -> Vec<(&'static str, Vec<&Row>)> {
        let mut groups: Vec<(&'static str, Vec<&Row>)> = Vec::new();
        for row in self.rows.iter().chain(&self.ratios) {
            match groups.iter_mut().find(|(group, _)| *group == row.group) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((row.group, vec![row])),
            }
        }
        groups
    }

    pub(super) fn json(&self) -> Value {
        let all: Vec<_> = self.rows.iter().chain(&self.ratios).map(Row::json).collect();
        let curve = |(name, histogram): &(String, Histogram<u64>)| {
            let points: Vec<_> = SHARES
                .iter()
                .map(|share| json!([share, histogram.value_at_quantile(*share) as f64 / 1e9]))
                .collect();
            json!({ "name": name, "count": histogram.len(), "seconds_at_share": points })
        };
        let curves: Vec<_> = self.curves.iter().map(curve).collect();
        json!({
            "bench": self.name, "setting": self.setting, "cpus": cpus(), "kernel": kernel(),
            "rows": all, "curves": curves, "unavailable": self.unavailable,
            "void_rounds": self.void_rounds, "troubles": self.troubles,
        })
    }

    /// One line for each value.
    pub(super) fn csv(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut out = String::from("bench,group,name,unit,round,value\n");
        for row in self.rows.iter().chain(&self.ratios) {
            for (round, value) in row.values.iter().enumerate() {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    out,
                    "{},{},{},{},{},{value}",
                    self.name,
                    quoted(row.group),
                    quoted(&row.name),
                    row.unit.name(),
                    round + 1
                );
            }
        }
        out
    }

    pub(super) fn print(&self) {
        println!("{} {}, Linux {}, {} cores", self.name, self.setting, kernel(), cpus());
        let heads = ["p50", "p99", "least", "most"];
        println!("  {:<46}{:>13}{:>13}{:>13}{:>13}", "", heads[0], heads[1], heads[2], heads[3]);
        for (group, rows) in self.groups() {
            if !group.is_empty() {
                println!("{group}");
            }
            rows.iter().for_each(|row| println!("{}", row.text()));
        }
        if self.void_rounds > 0 {
            println!("  {} rounds void: the fault came after the last byte", self.void_rounds);
        }
        self.unavailable.iter().for_each(|why| println!("  UNAVAILABLE {why}"));
        for trouble in &self.troubles {
            println!("  TROUBLE: {trouble}");
        }
    }
}

/// Where a distribution is told.
pub(super) const SHARES: [f64; 12] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];

pub(super) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub(super) fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "?".to_owned(), |release| release.trim().to_owned())
}
