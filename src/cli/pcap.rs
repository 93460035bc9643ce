//! `shadowvm pcap`: what is in a capture; one cut into several; one without what it tells.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use super::diff::troubles;
use super::door::{answer, bytes_text, say, table, time_text};
use super::{Format, exit};
use crate::replay::anonymize::{Payload, anonymize};
use crate::replay::split::{By, SplitError, split};
use crate::replay::survey::{Heard, Survey};
use crate::replay::{Capture, End, Side, Talk};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm pcap info day.pcapng.gz                    what is in it
  shadowvm pcap split day.pcap --into parts           one file for each conversation
  shadowvm pcap anonymize day.pcap public.pcapng      other addresses, no payload

Any capture that tcpdump writes is read: pcap and pcapng, gzip or not, cut short or damaged.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// What is in a capture: packets, conversations, what is missing, what cannot be read
    Info(InfoArgs),
    /// Cut a capture into one for each conversation, client or server
    Split(SplitArgs),
    /// Replace all addresses and take the payload out
    Anonymize(AnonymizeArgs),
}

/// Arguments of `pcap info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm pcap info day.pcapng.gz       what is in it, and its largest conversations
  shadowvm pcap info --top 100 day.pcap  a hundred of them
  shadowvm pcap info -o json day.pcap    all of them, for programs

Exit status: 0 it was read, 1 parts of it could not be, 2 it is no capture.")]
struct InfoArgs {
    /// The capture
    file: PathBuf,
    /// Conversations to show, the largest first
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

/// Arguments of `pcap split`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm pcap split day.pcap --into parts               one for each TCP connection
  shadowvm pcap split day.pcap --into parts --by client   one for each client

What belongs to no TCP connection is left out. A file that is there already is not overwritten.
Exit status: 0 done, 1 it cannot be written, 2 it is no capture.")]
struct SplitArgs {
    /// The capture
    file: PathBuf,
    /// The folder of the new ones; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// What makes a file of its own
    #[arg(long, value_enum, default_value_t)]
    by: ByArg,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum ByArg {
    /// A TCP connection
    #[default]
    Conversation,
    /// A client's address
    Client,
    /// A server's address and port
    Server,
}

/// Arguments of `pcap anonymize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm pcap anonymize day.pcap public.pcapng                  zeros instead of what was said
  shadowvm pcap anonymize day.pcap public.pcapng --payload cut    as if the snap length had cut it
  shadowvm pcap anonymize a.pcap pa.pcapng --key 0123...cdef      the same addresses in every file

Addresses of one network stay in one network. Ports, times, flags, numbers and lengths stay.
Packets that may hold addresses which are not understood are left out, and counted.
Exit status: 0 done, 1 it cannot be written, 2 it is no capture.")]
struct AnonymizeArgs {
    /// The capture
    file: PathBuf,
    /// The new one, a pcapng; it must not be there yet
    new: PathBuf,
    /// What becomes of what was said
    #[arg(long, value_enum, default_value_t)]
    payload: PayloadArg,
    /// 32 hex digits under which addresses are replaced; drawn afresh if none are given
    #[arg(long, value_name = "HEX", value_parser = key)]
    key: Option<[u8; 16]>,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum PayloadArg {
    /// Zeros of the same length
    #[default]
    Zero,
    /// Cut off
    Cut,
    /// It stays: only addresses are replaced
    Keep,
}

fn key(text: &str) -> Result<[u8; 16], String> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
    number.map(u128::to_be_bytes).ok_or_else(|| "a key has 32 hex digits".into())
}

/// Does what is asked.
pub fn run(args: Args) -> ExitCode {
    match args.what {
        What::Info(args) => info(args),
        What::Split(args) => cut(args),
        What::Anonymize(args) => hide(args),
    }
}

fn info(args: InfoArgs) -> ExitCode {
    let capture = Capture::file(&args.file);
    let begin = Instant::now();
    let survey = match Survey::of(&capture) {
        Ok(survey) => survey,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(exit::USAGE);
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    match args.output {
        Format::Text => say(&info_text(&survey, capture.name(), args.top, seconds)),
        Format::Json => {
            answer(Format::Json, &info_json(&survey, capture.name(), seconds), String::new);
        }
    }
    let is_whole = survey.facts.troubles_count == 0 && survey.facts.unfollowed == 0;
    ExitCode::from(if is_whole { exit::OK } else { exit::NO })
}

fn info_text(survey: &Survey, name: &str, top: usize, seconds: f64) -> String {
    let facts = &survey.facts;
    let mut out = String::new();
    let links: Vec<String> = facts.links.keys().map(ToString::to_string).collect();
    let _ = writeln!(
        out,
        "{name}: {} packets, {} captured of {}, {}",
        facts.packets,
        bytes_text(facts.bytes),
        bytes_text(facts.wire_bytes),
        if links.is_empty() { "no packet".to_owned() } else { links.join(", ") },
    );
    if let Some((first, last)) = facts.times {
        let _ = writeln!(out, "over {}", time_text((last - first) as f64 / 1e9));
    }
    let ip: u64 = facts.other_ip.values().sum();
    let kinds = [
        (facts.tcp, "TCP"),
        (facts.udp, "UDP"),
        (ip, "other IP"),
        (facts.pieces, "pieces of IP datagrams"),
        (facts.other, "not IP"),
        (facts.tagged, "behind VLAN tags"),
        (facts.cut, "cut short by the snap length"),
        (facts.wrong_checksums, "TCP with a wrong checksum"),
        (facts.unfinished_checksums, "TCP captured before the checksum was finished"),
    ];
    for (count, kind) in kinds.into_iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(out, "  {count} {kind}");
    }
    let (bytes, repeated, missing) = survey.totals();
    let _ = writeln!(
        out,
        "{} TCP conversations: {} said, {} said again, {} not captured",
        survey.talks.len(),
        bytes_text(bytes),
        bytes_text(repeated),
        bytes_text(missing),
    );
    let mut largest: Vec<&(Talk, [Heard; 2])> = survey.talks.iter().collect();
    largest.sort_by_key(|(_, heard)| std::cmp::Reverse(heard[0].bytes + heard[1].bytes));
    let head = ["CLIENT", "SERVER", "ASKED", "ANSWERED", "MISSING", "TIME", "END"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (talk, heard) in largest.into_iter().take(top) {
        rows.push(vec![
            talk.address(Side::Client).to_string(),
            talk.address(Side::Server).to_string(),
            bytes_text(heard[0].bytes),
            bytes_text(heard[1].bytes),
            bytes_text(heard[0].missing + heard[1].missing),
            time_text((talk.end_ns - talk.begin_ns) as f64 / 1e9),
            end_text(talk, heard).to_owned(),
        ]);
    }
    if rows.len() > 1 {
        out.push_str(&table(&rows));
    }
    out.push_str(&troubles(facts));
    let rate = 2.0 * survey.file_bytes as f64 / seconds.max(1e-9);
    let _ = writeln!(out, "read twice in {}: {}/s", time_text(seconds), bytes_text(rate as u64));
    out
}

fn end_text(talk: &Talk, heard: &[Heard; 2]) -> &'static str {
    match heard.map(|heard| heard.end) {
        _ if Side::BOTH.iter().any(|&side| talk.sender(side).has_reset) => "reset",
        [Some(End::Closed), Some(End::Closed)] => "closed",
        [Some(End::Closed), _] | [_, Some(End::Closed)] => "half closed",
        _ => "open",
    }
}

fn info_json(survey: &Survey, name: &str, seconds: f64) -> Value {
    let facts = &survey.facts;
    let talks = survey.talks.iter().map(|(talk, heard)| {
        json!({
            "client": talk.address(Side::Client).to_string(),
            "server": talk.address(Side::Server).to_string(),
            "is_client_known": talk.is_client_known,
            "first_packet": talk.first_packet,
            "begin_unix_ns": talk.begin_ns,
            "end_unix_ns": talk.end_ns,
            "packets": Side::BOTH.map(|side| talk.sender(side).packets),
            "bytes": heard.map(|heard| heard.bytes),
            "missing_bytes": heard.map(|heard| heard.missing),
            "end": end_text(talk, heard),
        })
    });
    let (bytes, repeated, missing) = survey.totals();
    json!({
        "name": name,
        "packets": facts.packets,
        "captured_bytes": facts.bytes,
        "wire_bytes": facts.wire_bytes,
        "first_unix_ns": facts.times.map(|(first, _)| first),
        "last_unix_ns": facts.times.map(|(_, last)| last),
        "links": facts.links.iter()
            .map(|(link, count)| {
                json!({ "number": link.0, "name": link.to_string(), "packets": count })
            })
            .collect::<Vec<_>>(),
        "tcp": facts.tcp,
        "udp": facts.udp,
        "other_ip": facts.other_ip.values().sum::<u64>(),
        "pieces": facts.pieces,
        "not_ip": facts.other,
        "tagged": facts.tagged,
        "cut": facts.cut,
        "wrong_checksums": facts.wrong_checksums,
        "unfinished_checksums": facts.unfinished_checksums,
        "stream_bytes": bytes,
        "repeated_bytes": repeated,
        "missing_bytes": missing,
        "unfollowed": facts.unfollowed,
        "unreadable": facts.troubles_count,
        "troubles": facts.troubles.iter()
            .map(|t| json!({ "packet": t.packet, "byte": t.at, "what": t.what }))
            .collect::<Vec<_>>(),
        "conversations": talks.collect::<Vec<_>>(),
        "file_bytes": survey.file_bytes,
        "seconds": seconds,
    })
}

fn cut(args: SplitArgs) -> ExitCode {
    let by = match args.by {
        ByArg::Conversation => By::Conversation,
        ByArg::Client => By::Client,
        ByArg::Server => By::Server,
    };
    let written = match split(&Capture::file(&args.file), by, &args.into) {
        Ok(written) => written,
        Err(error) => return refuse(&error),
    };
    let packets: u64 = written.files.iter().map(|(_, packets)| packets).sum();
    let files = written.files.iter();
    let files = files.map(|(path, packets)| json!({ "file": path, "packets": packets }));
    let value = json!({
        "files": files.collect::<Vec<_>>(),
        "left_out": written.left_out,
        "unreadable": written.facts.troubles_count,
    });
    answer(args.output, &value, || {
        format!(
            "{} packets in {} files; {} of no TCP connection left out\n{}",
            packets,
            written.files.len(),
            written.left_out,
            troubles(&written.facts)
        )
    })
}

fn hide(args: AnonymizeArgs) -> ExitCode {
    let payload = match args.payload {
        PayloadArg::Zero => Payload::Zero,
        PayloadArg::Cut => Payload::Cut,
        PayloadArg::Keep => Payload::Keep,
    };
    let wrong = |why: std::io::Error| {
        eprintln!("{}: {why}", args.new.display());
        ExitCode::from(exit::NO)
    };
    let mut fresh = [0; 16];
    if let Err(why) = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut fresh)) {
        return wrong(why);
    }
    let capture = Capture::file(&args.file);
    // Nothing is made for a file that is no capture.
    if let Err(error) = capture.reader() {
        return refuse(&SplitError::Read(error));
    }
    let file = match File::create_new(&args.new) {
        Ok(file) => BufWriter::new(file),
        Err(why) => return wrong(why),
    };
    let done = match anonymize(&capture, args.key.unwrap_or(fresh), payload, file) {
        Ok(done) => done,
        Err(error) => {
            // Half of it may be there; it is ours.
            let _ = std::fs::remove_file(&args.new);
            return refuse(&error);
        }
    };
    let value = json!({
        "packets": done.packets,
        "left_out": done.left_out,
        "addresses": done.addresses,
        "unreadable": done.facts.troubles_count,
    });
    answer(args.output, &value, || {
        format!(
            "{} packets written, {} addresses replaced; {} packets left out, which may hold \
             others\n{}",
            done.packets,
            done.addresses,
            done.left_out,
            troubles(&done.facts)
        )
    })
}

fn refuse(error: &SplitError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(match error {
        SplitError::Read(_) => exit::USAGE,
        SplitError::Write { .. } => exit::NO,
    })
}
