//! `shadowvm divergences`: what the gateway left of each divergence and failover. It reads the
//! directory, so it needs no running gateway.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::door::{answer, bytes_text, table};
use super::{Format, config_error, exit};
use crate::config::{Config, DEFAULT_EVIDENCE_DIR, DEFAULT_FILE};
use crate::evidence::file::{self, Case, Evidence, NotEvidence};
use crate::evidence::side;
use crate::evidence::store::{Found, NotFound, Store, stamp};
use crate::replay::view::{View, printable, side_by_side};

/// Events shown that came before what the evidence is about, and from it on.
const SHOWN_BEFORE: usize = 4;
const SHOWN_AFTER: usize = 8;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Examples:
  shadowvm divergences ls                     one line each, the oldest first
  shadowvm divergences show last              what differed, and what the gateway did then
  shadowvm divergences export last bug.pcapng a file for Wireshark, or for `replay --engine`
  shadowvm divergences ack --all              all of them are known

ID is a name of the list, as much of its beginning as tells it apart, or `last`.
Exit status: 0 done, 1 there is no such evidence, 2 it cannot be read, 77 permission.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The directory
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// The gateway's configuration file, which names the directory
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// One line each: when, what, which connection, where, whether it is known
    #[command(after_help = "Example:
  shadowvm divergences ls --unacked -o json")]
    Ls {
        /// Only those that nobody has acknowledged
        #[arg(long)]
        unacked: bool,
        #[command(flatten)]
        place: Place,
    },
    /// One of them on one screen
    #[command(after_help = "Example:
  shadowvm divergences show last --view hex")]
    Show {
        /// Which
        #[arg(value_name = "ID")]
        id: String,
        /// Show what the servers said as text, as hex, or as what it is
        #[arg(long, value_enum, default_value_t)]
        view: super::diff::ViewArg,
        #[command(flatten)]
        place: Place,
    },
    /// Copy one to a file
    #[command(after_help = "Example:
  shadowvm divergences export last bug.pcapng

The file holds what clients and servers said, the configuration, and numbers that the gateway keeps
to itself: give it only to whom you would give these.")]
    Export {
        /// Which
        #[arg(value_name = "ID")]
        id: String,
        /// The new file; it must not be there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Note that one is known: it is the first to go when room is needed
    #[command(after_help = "Example:
  shadowvm divergences ack 20261122-0815")]
    Ack {
        /// Which
        #[arg(value_name = "ID", required_unless_present = "all")]
        id: Option<String>,
        /// All that are there
        #[arg(long, conflicts_with = "id")]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
}

impl Place {
    fn store(&self) -> Result<Store, ExitCode> {
        let dir = match (&self.dir, &self.config) {
            (Some(dir), _) => dir.clone(),
            (None, Some(file)) => {
                Config::load(file).map_err(|error| config_error(&error))?.evidence.dir
            }
            // A broken usual file must not keep anybody from what is there.
            (None, None) => Config::load(Path::new(DEFAULT_FILE))
                .map_or_else(|_| DEFAULT_EVIDENCE_DIR.into(), |config| config.evidence.dir),
        };
        Ok(Store { dir })
    }
}

/// Carries it out.
pub fn run(args: Args) -> ExitCode {
    let done = match &args.what {
        What::Ls { unacked, place } => list(place, *unacked),
        What::Show { id, view, place } => show(place, id, (*view).into()),
        What::Export { id, file, place } => export(place, id, file),
        What::Ack { id, all: _, place } => ack(place, id.as_deref()),
    };
    done.unwrap_or_else(|code| code)
}

fn refuse(error: &NotFound) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(match error {
        NotFound::Dir { source, .. } => io_code(source),
        NotFound::None(_) | NotFound::Many(..) => exit::NO,
    })
}

fn io_code(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::PermissionDenied => exit::PERMISSION,
        io::ErrorKind::NotFound => exit::NO,
        _ => exit::USAGE,
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("{}: {error}", path.display());
    ExitCode::from(code)
}

fn open(found: &Found) -> Result<File, ExitCode> {
    File::open(&found.path).map_err(|error| unreadable(&found.path, &error, io_code(&error)))
}

fn files(store: &Store) -> Result<Vec<Found>, ExitCode> {
    match store.list() {
        Ok(files) => Ok(files),
        // Nothing has happened yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(refuse(&NotFound::Dir { dir: store.dir.clone(), source })),
    }
}

fn list(place: &Place, unacked: bool) -> Result<ExitCode, ExitCode> {
    let store = place.store()?;
    let files = files(&store)?.into_iter().filter(|found| !unacked || !found.is_acked);
    let all: Vec<(Found, Result<Case, NotEvidence>)> = files
        .map(|found| {
            let case = File::open(&found.path).map_err(|error| NotEvidence::Capture(error.into()));
            let case = case.and_then(file::read_case);
            (found, case)
        })
        .collect();
    let value: Vec<Value> = all.iter().map(|(found, case)| json_of(found, case)).collect();
    Ok(answer(place.output, &value, || {
        if all.is_empty() {
            return format!(
                "no evidence in {}: nothing has happened, or [evidence] write is false\n",
                store.dir.display()
            );
        }
        let head = ["ID", "KIND", "CONNECTION", "WHERE", "KNOWN"].map(str::to_owned).to_vec();
        table(&std::iter::once(head).chain(all.iter().map(row)).collect::<Vec<_>>())
    }))
}

fn row((found, case): &(Found, Result<Case, NotEvidence>)) -> Vec<String> {
    let known = if found.is_acked { "acked" } else { "no" };
    let [kind, flow, place] = match case {
        Ok(case) => [case.kind.clone(), flow_text(&case.event), place_text(case)],
        Err(error) => ["unreadable".into(), String::new(), error.to_string()],
    };
    let cells = [found.id.clone(), kind, flow, place, known.to_owned()];
    cells.map(|cell| printable(cell.as_bytes())).to_vec()
}

fn json_of(found: &Found, case: &Result<Case, NotEvidence>) -> Value {
    let mut value = json!({
        "id": found.id, "file": found.path, "bytes": found.bytes, "acked": found.is_acked,
    });
    match case {
        Ok(case) => value["case"] = json!(case),
        Err(error) => value["error"] = json!(error.to_string()),
    }
    value
}

fn flow_text(event: &Value) -> String {
    let end = |end: &str| event["flow"][end].as_str().map(str::to_owned);
    end("client").zip(end("server")).map_or_else(String::new, |(c, s)| format!("{c} -> {s}"))
}

/// Where they differ, or why it happened.
fn place_text(case: &Case) -> String {
    let event = &case.event;
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    match (event["at"].as_u64(), event["field"].as_str()) {
        (Some(at), Some(field)) => format!("byte {at}, {field}"),
        (Some(at), None) => format!("byte {at}"),
        (None, _) if event["event"] == "promoted" => {
            format!("{} is primary: {}", text("server"), text("finding"))
        }
        (None, _) if !event["finding"].is_null() => {
            format!("{}: {}", text("server"), text("finding"))
        }
        (None, _) => text("message").to_owned(),
    }
}

fn show(place: &Place, id: &str, view: View) -> Result<ExitCode, ExitCode> {
    let found = place.store()?.find(id).map_err(|error| refuse(&error))?;
    let evidence =
        file::read(open(&found)?).map_err(|error| unreadable(&found.path, &error, exit::USAGE))?;
    let sides = sides(&evidence);
    let mut value = json_of(&found, &Ok(evidence.case.clone()));
    value["packets"] = json!(evidence.packets.len());
    if let Some(sides) = &sides {
        let bytes = sides.each_ref().map(|side| side.bytes.clone());
        value["sides"] = json!({ "from": sides[0].from, "a": bytes[0], "b": bytes[1] });
    }
    Ok(answer(place.output, &value, || text(&found, &evidence, sides.as_ref(), view)))
}

fn sides(evidence: &Evidence) -> Option<[crate::replay::view::Window; 2]> {
    let at = evidence.case.event["at"].as_u64()?;
    Some(side::windows(evidence, at, evidence.case.numbers?))
}

fn text(
    found: &Found,
    evidence: &Evidence,
    sides: Option<&[crate::replay::view::Window; 2]>,
    view: View,
) -> String {
    let case = &evidence.case;
    let line = |text: &str| printable(text.as_bytes());
    let mut out = format!("{}: {}\n\n", line(&case.id), line(&case.text));
    // Writing to a String cannot fail.
    let mut row = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<12} {}", line(&text));
    };
    row("when", format!("{} UTC", stamp(case.t_ns)));
    let flow = flow_text(&case.event);
    if !flow.is_empty() {
        row("connection", flow);
        row("where", place_text(case));
    }
    if let Some([first, last]) = evidence
        .packets
        .first()
        .zip(evidence.packets.last())
        .map(|(first, last)| [first.at, last.at])
    {
        let (count, time) = (evidence.packets.len(), last.since(first));
        row(
            "file",
            format!(
                "{} ({}): {count} packets of {time:.1?}, {}",
                found.path.display(),
                bytes_text(found.bytes),
                if found.is_acked { "acknowledged" } else { "not acknowledged" },
            ),
        );
    }
    if let Some([a, b]) = sides {
        let [first, second] = case.servers.each_ref().map(|name| line(name));
        let _ = writeln!(out, "\nwhat {first} said (left) and what {second} said (right):");
        out.push_str(&side_by_side(a, b, view));
    }
    out.push_str("\nwhat happened:\n");
    let t_ns = |event: &Value| event["t_ns"].as_u64().unwrap_or(case.t_ns);
    let earlier = case.noted.iter().filter(|event| t_ns(event) < case.t_ns).count();
    let (first, count) = (earlier.saturating_sub(SHOWN_BEFORE), SHOWN_BEFORE + SHOWN_AFTER);
    for event in case.noted.iter().skip(first).take(count) {
        let at = t_ns(event).wrapping_sub(case.t_ns) as i64;
        let _ = writeln!(
            out,
            "{:>+10.1} ms  {}",
            at as f64 / 1e6,
            line(event["text"].as_str().unwrap_or("?"))
        );
    }
    let left_out = case.noted.len().saturating_sub(count);
    if left_out > 0 {
        let _ = writeln!(out, "{:>14} {left_out} more with -o json", "");
    }
    let id = line(&case.id);
    let path = found.path.display();
    let _ = writeln!(out, "\nnext: shadowvm replay --engine {path}   decide it again");
    let _ = writeln!(out, "      shadowvm divergences ack {id}");
    out
}

fn export(place: &Place, id: &str, to: &Path) -> Result<ExitCode, ExitCode> {
    let found = place.store()?.find(id).map_err(|error| refuse(&error))?;
    let mut from = open(&found)?;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let copied = options.write(true).create_new(true).open(to);
    let copied = copied.and_then(|mut to| io::copy(&mut from, &mut to));
    let bytes = copied.map_err(|error| unreadable(to, &error, io_code(&error)))?;
    let value = json!({ "id": found.id, "file": to, "bytes": bytes });
    Ok(answer(place.output, &value, || format!("{}: {}\n", to.display(), bytes_text(bytes))))
}

fn ack(place: &Place, id: Option<&str>) -> Result<ExitCode, ExitCode> {
    let store = place.store()?;
    let all = match id {
        Some(id) => vec![store.find(id).map_err(|error| refuse(&error))?],
        None => files(&store)?.into_iter().filter(|found| !found.is_acked).collect(),
    };
    for found in &all {
        store.ack(found).map_err(|error| unreadable(&found.path, &error, io_code(&error)))?;
    }
    let ids: Vec<&str> = all.iter().map(|found| found.id.as_str()).collect();
    Ok(answer(place.output, &json!({ "acked": ids }), || format!("{} acknowledged\n", ids.len())))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::evidence::tests::diverged;

    #[test]
    fn one_screen_explains_what_differed() {
        let (case, bytes) = diverged();
        let path = PathBuf::from("/e/x.pcapng");
        let found = Found { id: case.id, path, is_acked: false, bytes: bytes.len() as u64 };
        let evidence = file::read(Cursor::new(bytes)).expect("it is evidence");
        let text = text(&found, &evidence, sides(&evidence).as_ref(), View::Auto);
        assert!(text.lines().count() <= 24, "{text}");
        for words in [
            "192.0.2.1:40000 -> 192.0.2.10:80",
            "byte 23",
            "what one said (left) and what two said (right)",
            "twenty equal bytes..and one",
            "twenty equal bytes..andXone",
            "the servers' answers differ at byte 23",
            "replay --engine /e/x.pcapng",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        let row = row(&(found, Ok(evidence.case)));
        let flow = "192.0.2.1:40000 -> 192.0.2.10:80";
        assert_eq!(row[1..], ["divergence", flow, "byte 23", "no"].map(str::to_owned));
    }
}
