//! `shadowvm diff`: two captures of the same conversations, compared as what was said in them.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::door::{answer, bytes_text, say};
use super::{Format, config_error, exit};
use crate::config::Config;
use crate::protocol::framing::is_token;
use crate::replay::view::{View, Window, side_by_side};
use crate::replay::walk::{Facts, Moment};
use crate::replay::{Capture, Difference, Ends, How, Options, Report, Rules, Side, Verdict, diff};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm diff before.pcap after.pcap         did the new version answer as the old one did?
  shadowvm diff a.pcap b.pcap --port 80        conversations with servers on port 80 only
  shadowvm diff a.pcap b.pcap --rule http:etag the values of ETag may differ, too
  shadowvm diff a.pcap b.pcap --rule cookie:sid  so may the session that a server begins
  shadowvm diff a.pcap b.pcap --strict         every byte counts, dates as well
  shadowvm diff a.pcapng.gz b.pcap -o json     for programs

What counts is what was said: numbers, times, segments, repetitions and order of packets do not.
Conversations are paired by the client's address and port; where the captures have other ones, by
what the client says first and the order. The servers' addresses and ports may differ, and so may
the ports that servers of FTP name for transfers.

Exit status: 0 the same, 1 different, 2 it cannot be told (unreadable, or bytes are missing).")]
pub struct Args {
    /// The first capture: pcap or pcapng, gzip or not
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The second capture
    #[arg(value_name = "B")]
    second: PathBuf,
    /// Compare conversations with servers on this port only; may be repeated
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    #[command(flatten)]
    rules: RuleArgs,
    /// Differences that are shown with what surrounds them
    #[arg(long, value_name = "N", default_value_t = 10)]
    show: usize,
    /// Show them as text, as hex, or as what they are
    #[arg(long, value_enum, default_value_t)]
    view: ViewArg,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

/// What may differ.
#[derive(Debug, clap::Args)]
pub struct RuleArgs {
    /// A value that may differ: http:HEADER, or cookie:NAME where servers set it (cookie:* for
    /// all); may be repeated
    #[arg(long, value_name = "RULE", value_parser = rule)]
    rule: Vec<Rule>,
    /// Take the rules of a gateway's configuration
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Every byte counts, not even dates may differ; of FTP only the ports of data connections
    #[arg(long, conflicts_with_all = ["rule", "config"])]
    strict: bool,
    /// Servers of FTP have this port in the capture, besides 21; may be repeated
    #[arg(long, value_name = "PORT")]
    ftp_port: Vec<u16>,
}

impl RuleArgs {
    /// The gateway's configuration, if one was named.
    pub(super) fn config(&self) -> Option<&std::path::Path> {
        self.config.as_deref()
    }

    /// The rules that are meant.
    pub(super) fn rules(&self) -> Result<Rules, ExitCode> {
        let with_ports = |rules| {
            self.ftp_port.iter().fold(rules, |rules: Rules, &port| rules.and_ftp_port(port))
        };
        if self.strict {
            return Ok(with_ports(Rules::none()));
        }
        let rules = match &self.config {
            None => Rules::default(),
            Some(file) => {
                let config = Config::load(file).map_err(|error| config_error(&error))?.engine();
                Rules::from(config.rules)
            }
        };
        let rules = self.rule.iter().fold(rules, |rules, rule| match rule {
            Rule::Header(name) => rules.and(name),
            Rule::Cookie(name) => rules.and_cookie(name),
        });
        Ok(with_ports(rules))
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Header(String),
    Cookie(String),
}

/// `http:HEADER` or `cookie:NAME`
fn rule(text: &str) -> Result<Rule, String> {
    let is_name = |name: &str| is_token(name.as_bytes());
    match text.split_once(':').map(|(kind, name)| (kind, name.trim())) {
        Some(("http", name)) if is_name(name) => Ok(Rule::Header(name.to_ascii_lowercase())),
        Some(("cookie", name)) if is_name(name) => Ok(Rule::Cookie(name.to_owned())),
        _ => Err("a rule is http:HEADER or cookie:NAME, as in http:etag or cookie:sid".into()),
    }
}

/// How differences are shown.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum ViewArg {
    /// Text where it is text
    #[default]
    Auto,
    /// Text
    Text,
    /// Hex
    Hex,
}

impl From<ViewArg> for View {
    fn from(view: ViewArg) -> Self {
        match view {
            ViewArg::Auto => Self::Auto,
            ViewArg::Text => Self::Text,
            ViewArg::Hex => Self::Hex,
        }
    }
}

/// Compares and tells.
pub fn run(args: Args) -> ExitCode {
    let rules = match args.rules.rules() {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let captures = [&args.first, &args.second].map(|path| Capture::file(path));
    let options = Options { rules, ports: args.port, shown_max: args.show, ..Options::default() };
    let report = match diff(captures.each_ref(), &options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(exit::USAGE);
        }
    };
    let view = args.view.into();
    let names = captures.each_ref().map(|capture| capture.name());
    match args.output {
        Format::Text => say(&text(&report, names, view)),
        Format::Json => {
            answer(Format::Json, &json_of(&report, names), String::new);
        }
    }
    ExitCode::from(match report.verdict() {
        Verdict::Same => exit::OK,
        Verdict::Different => exit::NO,
        Verdict::Unknown => exit::USAGE,
    })
}

/// Lines that name what could not be read; more are counted.
const TROUBLES_SHOWN: usize = 5;
/// Conversations of one capture alone that are named; more are counted.
const ONLY_SHOWN: usize = 10;

/// The report for people.
fn text(report: &Report, names: [&str; 2], view: View) -> String {
    let mut out = String::new();
    for (file, name) in names.into_iter().enumerate() {
        let facts = &report.facts[file];
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{} {name}: {} packets, {}, {} conversations compared",
            letter(file),
            facts.packets,
            bytes_text(facts.bytes),
            report.talks[file]
        );
        out.push_str(&troubles(facts));
    }
    for (file, only) in report.only.iter().enumerate() {
        for ends in only.iter().take(ONLY_SHOWN) {
            let letter = letter(file);
            let _ = writeln!(out, "only in {letter}: {} -> {}", ends.client, ends.server);
        }
        if only.len() > ONLY_SHOWN {
            let _ = writeln!(out, "only in {}: {} more", letter(file), only.len() - ONLY_SHOWN);
        }
    }
    for (number, difference) in report.differences.iter().enumerate() {
        let _ = writeln!(out, "\n{}. {}", number + 1, headline(difference));
        if difference.field.is_some() {
            out.push_str(&details(difference, report, view));
        }
    }
    let _ = writeln!(out, "\n{}", conclusion(report));
    out
}

fn letter(file: usize) -> &'static str {
    if file == 0 { "A" } else { "B" }
}

/// What could not be read of a capture.
pub(super) fn troubles(facts: &Facts) -> String {
    let mut out = String::new();
    for trouble in facts.troubles.iter().take(TROUBLES_SHOWN) {
        let _ = writeln!(out, "  not read: {trouble}");
    }
    let more = facts.troubles_count.saturating_sub(TROUBLES_SHOWN as u64);
    if more > 0 {
        let _ = writeln!(out, "  not read: {more} more");
    }
    if facts.unfollowed > 0 {
        let _ = writeln!(
            out,
            "  not followed: {} packets of still more conversations; cut the capture first",
            facts.unfollowed
        );
    }
    for (link, count) in facts.links.iter().filter(|(link, _)| !link.is_known()) {
        let _ = writeln!(out, "  not read: {count} packets of {link}, where IP is not looked for");
    }
    out
}

fn headline(difference: &Difference) -> String {
    let [a, b] = difference.ends;
    let mut line = format!("{} -> {}", a.client, a.server);
    if a != b {
        let _ = write!(line, " (B: {} -> {})", b.client, b.server);
    }
    let who = match difference.side {
        Side::Client => "the client's",
        Side::Server => "the server's",
    };
    let [at, other] = difference.parting.at;
    let place = if at == other { format!("{at}") } else { format!("{at} in A, {other} in B") };
    let what = match difference.parting.how {
        How::Byte(a, b) => format!("byte {place} differs: {a:02x} in A, {b:02x} in B"),
        How::Ends(file) => format!("stream ends at byte {place} in {} only", letter(file)),
    };
    let _ = write!(line, "\n   {who} {what}");
    line
}

fn details(difference: &Difference, report: &Report, view: View) -> String {
    let mut out = String::new();
    let packet = |file: usize| match difference.packets[file] {
        Some(moment) => {
            let since = seconds(&report.facts[file], moment);
            format!("packet {} of {} (+{since:.6} s)", moment.packet, letter(file))
        }
        None => format!("no packet of {}", letter(file)),
    };
    if let Some(field) = &difference.field {
        let _ = writeln!(out, "   {field}");
    }
    let _ = writeln!(out, "   {}, {}", packet(0), packet(1));
    let [a, b] = &difference.windows;
    for line in side_by_side(a, b, view).lines() {
        let _ = writeln!(out, "   {line}");
    }
    out
}

/// Seconds since the first packet.
fn seconds(facts: &Facts, moment: Moment) -> f64 {
    let first = facts.times.map_or(moment.unix_ns, |(first, _)| first);
    moment.unix_ns.saturating_sub(first) as f64 / 1e9
}

fn conclusion(report: &Report) -> String {
    let Report { paired, same, different, unknown, .. } = report;
    let mut line = match report.verdict() {
        Verdict::Same => "the same: ".to_owned(),
        Verdict::Different => "different: ".to_owned(),
        Verdict::Unknown if *paired == 0 => {
            return match report.talks {
                [0, 0] => "nothing to compare: neither capture has a TCP conversation".to_owned(),
                [0, _] => "nothing to compare: A has no TCP conversation".to_owned(),
                [_, 0] => "nothing to compare: B has no TCP conversation".to_owned(),
                _ => "nothing to compare: no byte was said in either capture".to_owned(),
            };
        }
        Verdict::Unknown => "it cannot be told: ".to_owned(),
    };
    let _ = write!(line, "{paired} conversations in both, {same} the same, {different} different");
    if *unknown > 0 {
        let bytes = bytes_text(report.unknown_bytes);
        let _ = write!(line, ", {unknown} with bytes that were not captured ({bytes})");
    }
    let alone: usize = report.only.iter().map(Vec::len).sum();
    if alone > 0 {
        let _ = write!(line, "; {alone} in one capture only");
    }
    let _ = write!(line, "; {} compared", bytes_text(report.compared_bytes));
    if report.masked > 0 {
        let _ = write!(line, ", {} values differ as the rules allow", report.masked);
    }
    line
}

/// The report for programs.
fn json_of(report: &Report, names: [&str; 2]) -> Value {
    let verdict = match report.verdict() {
        Verdict::Same => "same",
        Verdict::Different => "different",
        Verdict::Unknown => "unknown",
    };
    let file = |file: usize| {
        let facts = &report.facts[file];
        let troubles: Vec<Value> = facts
            .troubles
            .iter()
            .map(|t| json!({ "packet": t.packet, "byte": t.at, "what": t.what }))
            .collect();
        json!({
            "name": names[file],
            "packets": facts.packets,
            "bytes": facts.bytes,
            "conversations": report.talks[file],
            "unfollowed": facts.unfollowed,
            "unreadable": facts.troubles_count,
            "troubles": troubles,
        })
    };
    let ends = |ends: &Ends| {
        let Ends { client, server } = ends;
        json!({ "client": client.to_string(), "server": server.to_string() })
    };
    let only = |file: usize| report.only[file].iter().map(ends).collect::<Vec<_>>();
    let differences: Vec<Value> = report
        .differences
        .iter()
        .map(|d| {
            let one = |file: usize| {
                let moment = d.packets[file];
                json!({
                    "client": d.ends[file].client.to_string(),
                    "server": d.ends[file].server.to_string(),
                    "offset": d.parting.at[file],
                    "packet": moment.map(|moment| moment.packet),
                    "unix_ns": moment.map(|moment| moment.unix_ns),
                    "from": d.windows[file].from,
                    "hex": hex(&d.windows[file]),
                })
            };
            json!({
                "side": match d.side { Side::Client => "client", Side::Server => "server" },
                "kind": match d.parting.how { How::Byte(..) => "byte", How::Ends(_) => "end" },
                "ends_in": match d.parting.how {
                    How::Ends(file) => Some(letter(file).to_lowercase()),
                    How::Byte(..) => None,
                },
                "field": d.field,
                "a": one(0),
                "b": one(1),
            })
        })
        .collect();
    json!({
        "verdict": verdict,
        "a": file(0),
        "b": file(1),
        "paired": report.paired,
        "same": report.same,
        "different": report.different,
        "unknown": report.unknown,
        "only_a": only(0),
        "only_b": only(1),
        "compared_bytes": report.compared_bytes,
        "unknown_bytes": report.unknown_bytes,
        "masked": report.masked,
        "differences": differences,
    })
}

fn hex(window: &Window) -> String {
    window.bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Rule, rule};

    #[test]
    fn a_rule_names_a_header() {
        assert_eq!(rule("http:ETag"), Ok(Rule::Header("etag".into())));
        assert_eq!(rule("cookie:SID"), Ok(Rule::Cookie("SID".into())));
        for wrong in ["etag", "http:", "http:a b", "ftp:x"] {
            assert!(rule(wrong).is_err(), "{wrong}");
        }
    }
}
