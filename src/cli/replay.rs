//! `shadowvm replay`: what the clients of a capture said, said again to live servers; and evidence
//! run through the engine again.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use serde_json::{Value, json};

use super::diff::{RuleArgs, troubles};
use super::door::{answer, bytes_text, say, time_text};
use super::{Format, exit};
use crate::replay::report::{html, junit, kind, latencies, names, quantile, word};
use crate::replay::view::{View, side_by_side};
use crate::replay::{
    Capture, How, Order, Outcome, Parted, Progress, Replayed, Servers, Verdict, Via, replay,
};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm replay day.pcap --primary 10.0.0.1:80 --backup 10.0.0.2:80   do both answer alike?
  shadowvm replay day.pcap --one 10.0.0.2:80                            as they answered then?
  shadowvm replay day.pcap --one web:80 --pace max --parallel 2000      as fast as can be
  shadowvm replay day.pcap --one web:80 --rule cookie:sid               sessions named anew
  shadowvm replay day.pcap --one web:80 --report r.html --junit r.xml   for people and machines
  shadowvm replay day.pcap --primary a:21 --backup b:21                 transfers of FTP, too
  shadowvm replay day.pcap --one web:80 --via eth1                      from their own addresses
  shadowvm replay --engine bug.pcapng                      evidence of a gateway, decided again
  shadowvm replay --engine links.pcapng -c shadowvm.toml   a capture of its three links, decided

Each request is said when its time has come and what it waited for was answered: request by request
for HTTP and FTP, by bytes otherwise. Cookies that servers set and ports that they and their clients
name for transfers are each server's own. Answers are compared as the gateway compares them.

Exit status: 0 the same, 1 different, 2 it cannot be told (no capture, no server, no answer).")]
pub struct Args {
    /// The capture: pcap or pcapng, gzip or not
    #[arg(value_name = "IN")]
    file: PathBuf,
    /// Run the engine over evidence of a gateway (`divergences`): the same frames have to leave.
    /// With --config also over a capture with interfaces called client, a and b: do answers differ?
    #[arg(long, conflicts_with_all = ["primary", "backup", "one", "report", "junit"])]
    engine: bool,
    /// The first server, HOST:PORT
    #[arg(long, value_name = "SERVER", value_parser = server, requires = "backup")]
    primary: Option<SocketAddr>,
    /// The second server, HOST:PORT
    #[arg(long, value_name = "SERVER", value_parser = server, requires = "primary")]
    backup: Option<SocketAddr>,
    /// One server, HOST:PORT, against the recorded answers
    #[arg(long, value_name = "SERVER", value_parser = server,
        conflicts_with_all = ["primary", "backup"],
        required_unless_present_any = ["primary", "engine"])]
    one: Option<SocketAddr>,
    /// How fast: captured, max, or a factor of the captured pace such as 10
    #[arg(long, value_name = "PACE", default_value = "captured", value_parser = pace)]
    pace: Pace,
    /// Conversations at once; the others wait
    #[arg(long, value_name = "N", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    parallel: u32,
    /// Longest wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    patience: u32,
    /// Say conversations with servers on this port of the capture only; may be repeated
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// Speak as the captured clients themselves: from their own addresses and ports, by a TCP of
    /// this program's own on this interface, which answers for these addresses there. Needs
    /// CAP_NET_RAW; none of the addresses may be this machine's, and it must not forward packets
    /// to them. A Linux server keeps 1024 neighbours on a link unless told otherwise
    /// (net.ipv4.neigh.default.gc_thresh3)
    #[arg(long, value_name = "INTERFACE", conflicts_with = "engine",
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    via: Option<String>,
    /// The router to the servers on that interface, one for each family at most; without it the
    /// servers are on the interface's own network
    #[arg(long, value_name = "ADDRESS", requires = "via")]
    next_hop: Vec<IpAddr>,
    /// Return cookies as they were captured; otherwise each server gets back what it has set
    /// itself
    #[arg(long)]
    keep_cookies: bool,
    #[command(flatten)]
    rules: RuleArgs,
    /// Differences that are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    show: usize,
    /// Write a page that stands alone
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
    /// Write a test case for each conversation
    #[arg(long, value_name = "XML")]
    junit: Option<PathBuf>,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    /// So many times as fast as it was.
    Factor(f64),
    Max,
}

fn pace(text: &str) -> Result<Pace, String> {
    match text {
        "captured" => Ok(Pace::Factor(1.0)),
        "max" => Ok(Pace::Max),
        factor => {
            let factor = factor.parse::<f64>().ok().filter(|f| (0.001..=1e6).contains(f));
            factor.map(Pace::Factor).ok_or_else(|| "captured, max, or a factor such as 10".into())
        }
    }
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| format!("{error}: HOST:PORT"))?;
    found.next().ok_or_else(|| "this name has no address".to_owned())
}

/// Says it again and tells what came of it.
pub fn run(args: Args) -> ExitCode {
    if args.engine {
        return super::again::run(&args.file, args.rules.config(), args.output);
    }
    let rules = match args.rules.rules() {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let hops = |is_v4: bool| args.next_hop.iter().filter(|hop| hop.is_ipv4() == is_v4).count();
    if hops(true) > 1 || hops(false) > 1 {
        eprintln!("--next-hop: one router for each family; leave the other one away");
        return ExitCode::from(exit::USAGE);
    }
    // What cannot be written is known before anything is said.
    for path in [&args.report, &args.junit].into_iter().flatten() {
        if let Err(code) = write(path, "") {
            return code;
        }
    }
    let servers = match (args.one, args.primary, args.backup) {
        (Some(server), ..) => Servers::One(server),
        (None, Some(first), Some(second)) => Servers::Two([first, second]),
        _ => return ExitCode::from(exit::USAGE),
    };
    let factor = match args.pace {
        Pace::Factor(factor) => Some(factor),
        Pace::Max => None,
    };
    let order = Order {
        servers,
        rules,
        ports: args.port.clone(),
        factor,
        parallel_max: args.parallel as usize,
        patience: Duration::from_secs(args.patience.into()),
        follows_cookies: !args.keep_cookies,
        via: args.via.clone().map(|interface| Via { interface, next_hops: args.next_hop.clone() }),
    };
    let parallel_max = allow_sockets(order.parallel_max);
    if parallel_max < order.parallel_max {
        eprintln!(
            "this system allows sockets for {parallel_max} conversations at once (ulimit -n)"
        );
    }
    let order = Order { parallel_max, ..order };
    let capture = Capture::file(&args.file);
    let is_terminal = std::io::stderr().is_terminal();
    let replayed = replay(&capture, &order, |progress| {
        if is_terminal {
            eprint!("\r\x1b[K{}", progress_text(&progress));
            let _ = std::io::stderr().flush();
        }
    });
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    let replayed = match replayed {
        Ok(replayed) => replayed,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(exit::USAGE);
        }
    };
    match args.output {
        Format::Text => say(&text(&replayed, servers, args.show)),
        Format::Json => {
            answer(Format::Json, &json_of(&replayed, servers), String::new);
        }
    }
    let page = args.report.as_deref().map(|path| (path, html(&replayed, capture.name(), servers)));
    let xml = args.junit.as_deref().map(|path| (path, junit(&replayed, capture.name())));
    for (path, text) in [page, xml].into_iter().flatten() {
        if let Err(code) = write(path, &text) {
            return code;
        }
    }
    ExitCode::from(match replayed.verdict() {
        Verdict::Same => exit::OK,
        Verdict::Different => exit::NO,
        Verdict::Unknown => exit::USAGE,
    })
}

/// Makes room for the sockets of so many conversations; returns for how many there is.
fn allow_sockets(conversations: usize) -> usize {
    /// Files that are open besides.
    const OTHERS: u64 = 64;
    let wanted = 2 * conversations as u64 + OTHERS;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return conversations };
    let allowed = match soft >= wanted {
        true => soft,
        false => {
            let more = wanted.min(hard);
            if setrlimit(Resource::RLIMIT_NOFILE, more, hard).is_ok() { more } else { soft }
        }
    };
    let room = (allowed.saturating_sub(OTHERS) / 2).max(1);
    conversations.min(usize::try_from(room).unwrap_or(usize::MAX))
}

fn write(path: &Path, text: &str) -> Result<(), ExitCode> {
    std::fs::write(path, text).map_err(|why| {
        eprintln!("{}: {why}", path.display());
        ExitCode::from(exit::USAGE)
    })
}

fn progress_text(progress: &Progress) -> String {
    let Progress { done, all, different, failed, said_bytes, elapsed } = *progress;
    let seconds = elapsed.as_secs_f64();
    let left = match done {
        0 => String::new(),
        done => {
            let left = seconds * all.saturating_sub(done) as f64 / done as f64;
            format!(", {} left", time_text(left))
        }
    };
    let rate = bytes_text((said_bytes as f64 / seconds.max(1e-3)) as u64);
    format!(
        "{done} of {all} conversations, {different} different, {failed} failed, \
         {} said ({rate}/s){left}",
        bytes_text(said_bytes)
    )
}

fn text(replayed: &Replayed, servers: Servers, show: usize) -> String {
    let names = names(servers);
    let mut out = troubles(&replayed.facts);
    let mut number = 0;
    for (ends, outcome) in &replayed.talks {
        for parted in &outcome.differences {
            number += 1;
            if number > show {
                continue;
            }
            let request = parted.request.as_deref().unwrap_or("what the client said");
            // Writing to a String cannot fail.
            let _ = writeln!(out, "\n{number}. {} -> {}: {request}", ends.client, ends.server);
            let at = parted.parting.at[0];
            let how = match parted.parting.how {
                How::Byte(a, b) => format!("byte {at}: {a:02x} and {b:02x}"),
                How::Ends(file) => format!("{} ends at byte {at}", names[file]),
            };
            let _ = writeln!(out, "   {}; {how}", parted.field);
            for line in side_by_side(&parted.windows[0], &parted.windows[1], View::Auto).lines() {
                let _ = writeln!(out, "   {line}");
            }
        }
    }
    if number > show {
        let _ = writeln!(out, "\n{} more differences", number - show);
    }
    let failures = replayed.talks.iter().filter_map(|(e, o)| Some((e, o.failure.as_ref()?)));
    for (ends, failure) in failures.take(show) {
        let _ = writeln!(out, "{} was not said to its end: {failure}", ends.client);
    }
    for (file, name) in names.iter().enumerate() {
        let times = latencies(replayed, file);
        if let (Some(median), Some(late)) = (quantile(&times, 0.5), quantile(&times, 0.99)) {
            let _ = writeln!(
                out,
                "{name}: {} answers, p50 {}, p99 {}",
                times.len(),
                time_text(median),
                time_text(late)
            );
        }
    }
    if replayed.silent > 0 && !replayed.talks.is_empty() {
        let _ = writeln!(
            out,
            "{} conversations are left out: the capture has nothing that a client said in them",
            replayed.silent
        );
    }
    out.push_str(&about_cookies(replayed));
    let _ = writeln!(out, "{}", conclusion(replayed));
    out
}

/// What was done with cookies, and what can be done about them.
fn about_cookies(replayed: &Replayed) -> String {
    let mut out = String::new();
    let followed = replayed.sum(|outcome| outcome.cookies_followed);
    let unset = replayed.sum(|outcome| outcome.cookies_unset);
    if followed > 0 {
        let _ =
            writeln!(out, "{followed} cookies were returned as each server had set them itself");
    }
    if unset > 0 {
        let _ = writeln!(
            out,
            "{unset} cookies were returned as captured: the server has not set them this time"
        );
    }
    let is_set = |parted: &Parted| kind(parted).eq_ignore_ascii_case("header `set-cookie`");
    if replayed.talks.iter().flat_map(|(_, outcome)| &outcome.differences).any(is_set) {
        out.push_str("cookies that servers choose may differ with --rule cookie:NAME\n");
    }
    out
}

fn conclusion(replayed: &Replayed) -> String {
    let all = replayed.talks.len();
    if all == 0 {
        let ports = replayed.other_ports.iter().take(10).map(u16::to_string);
        let ports = ports.collect::<Vec<_>>().join(", ");
        let why = match (replayed.silent, replayed.empty) {
            (0, 0) if ports.is_empty() => "the capture has no TCP conversation".to_owned(),
            (0, _) if !ports.is_empty() => format!("servers in the capture have the ports {ports}"),
            (0, empty) => format!("in the capture's {empty} conversations nobody said anything"),
            (silent, _) => format!("of {silent} conversations the capture has no client's side"),
        };
        return format!("nothing to say: {why}");
    }
    let (different, failed) = (replayed.different(), replayed.failed());
    let verdict = word(replayed.verdict());
    let said = replayed.sum(|outcome| outcome.said_bytes);
    let compared = replayed.sum(|outcome| outcome.compared_bytes);
    let seconds = replayed.elapsed.as_secs_f64();
    let each_second = |count: u64| (count as f64 / seconds.max(1e-3)) as u64;
    format!(
        "{verdict}: {all} conversations, {} the same, {different} different, {failed} not said to \
         the end; {} said, {} of answers compared, in {} ({} conversations and {} a second, {} of \
         memory)",
        all - different - failed,
        bytes_text(said),
        bytes_text(compared),
        time_text(seconds),
        each_second(all as u64),
        bytes_text(each_second(said + compared)),
        bytes_text(memory_bytes_max())
    )
}

/// The most memory that this process has had so far.
fn memory_bytes_max() -> u64 {
    let kibibytes = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss());
    u64::try_from(kibibytes).unwrap_or(0) << 10
}

fn json_of(replayed: &Replayed, servers: Servers) -> Value {
    let names = names(servers);
    let differences = replayed.talks.iter().flat_map(|(ends, outcome)| {
        outcome.differences.iter().map(move |parted| {
            let hex = |file: usize| -> String {
                parted.windows[file].bytes.iter().map(|byte| format!("{byte:02x}")).collect()
            };
            json!({
                "client": ends.client.to_string(),
                "server": ends.server.to_string(),
                "request": parted.request,
                "kind": kind(parted),
                "field": parted.field,
                "offset": parted.parting.at[0],
                "from": parted.windows.each_ref().map(|window| window.from),
                "hex": [hex(0), hex(1)],
            })
        })
    });
    let failures = replayed.talks.iter().filter_map(|(ends, outcome)| {
        let failure = outcome.failure.as_ref()?;
        Some(json!({ "client": ends.client.to_string(), "why": failure }))
    });
    let latency = |file: usize| {
        let times = latencies(replayed, file);
        json!({
            "name": names[file],
            "answers": times.len(),
            "p50_seconds": quantile(&times, 0.5),
            "p99_seconds": quantile(&times, 0.99),
        })
    };
    let sum = |of: fn(&Outcome) -> u64| replayed.sum(of);
    json!({
        "conversations": replayed.talks.len(),
        "different": replayed.different(),
        "failed": replayed.failed(),
        "silent": replayed.silent,
        "answers": sum(|outcome| outcome.answers),
        "said_bytes": sum(|outcome| outcome.said_bytes),
        "compared_bytes": sum(|outcome| outcome.compared_bytes),
        "masked": sum(|outcome| outcome.masked),
        "cookies_followed": sum(|outcome| outcome.cookies_followed),
        "cookies_unset": sum(|outcome| outcome.cookies_unset),
        "unfollowed": replayed.facts.unfollowed,
        "unreadable": replayed.facts.troubles_count,
        "memory_bytes_max": memory_bytes_max(),
        "seconds": replayed.elapsed.as_secs_f64(),
        "servers": [latency(0), latency(1)],
        "differences": differences.collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_a_word_or_a_factor() {
        assert_eq!(pace("captured"), Ok(Pace::Factor(1.0)));
        assert_eq!(pace("max"), Ok(Pace::Max));
        assert_eq!(pace("2.5"), Ok(Pace::Factor(2.5)));
        for wrong in ["0", "-1", "fast", "inf"] {
            assert!(pace(wrong).is_err(), "{wrong}");
        }
    }
}
