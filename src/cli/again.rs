//! `shadowvm replay --engine`: evidence run through the engine again.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::door::{answer, bytes_text};
use super::{Format, config_error, exit};
use crate::config::Config;
use crate::evidence::again::{Again, Mismatch, Thing, again};
use crate::evidence::file::{self, NotEvidence};
use crate::evidence::plain::{Plain, plain};
use crate::observe::names::Name;
use crate::replay::view::{View, Window, printable, side_by_side};

/// Runs the evidence in `path`, or a plain capture, and tells what came of it.
pub(super) fn run(path: &Path, config: Option<&Path>, output: Format) -> ExitCode {
    let read = File::open(path).map_err(|error| NotEvidence::Capture(error.into()));
    let read = read.and_then(file::read);
    if let (Err(NotEvidence::Foreign), Some(config)) = (&read, config) {
        return run_plain(path, config, output);
    }
    let found = read
        .map_err(|error| error.to_string())
        .and_then(|evidence| Ok((again(&evidence, path).map_err(|e| e.to_string())?, evidence)));
    let (found, evidence) = match found {
        Ok(found) => found,
        Err(error) => {
            eprintln!("{}: {}", path.display(), error);
            return ExitCode::from(exit::USAGE);
        }
    };
    let is_same = found.first.is_none();
    let value = json!({
        "id": evidence.case.id, "same": is_same, "packets_in": found.packets_in,
        "others_in": found.others_in, "packets_same": found.packets_same,
        "bytes_same": found.bytes_same, "events": found.events,
        "first": found.first.as_ref().map(mismatch_json),
    });
    let code = answer(output, &value, || text(&found, &evidence.case.text));
    match is_same {
        true => code,
        false => ExitCode::from(exit::NO),
    }
}

fn run_plain(path: &Path, config: &Path, output: Format) -> ExitCode {
    let config = match Config::load(config) {
        Ok(config) => config,
        Err(error) => return config_error(&error),
    };
    let found = File::open(path).map_err(Into::into).and_then(|file| plain(file, &config));
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(exit::USAGE);
        }
    };
    let value = json!({
        "packets_in": found.packets_in, "left_out": found.left_out,
        "connections": found.connections, "compared": found.compared,
        "differences": found.differences, "events": found.events,
    });
    let code = answer(output, &value, || {
        let mut out = String::new();
        for event in &found.events {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{}", printable(event.as_bytes()));
        }
        let Plain { packets_in, left_out, connections, compared, differences, .. } = &found;
        let _ = writeln!(
            out,
            "{packets_in} packets went in, {left_out} were left out; {connections} connections, \
             {compared} of them with both servers; {differences} differences",
        );
        out
    });
    match (found.packets_in, found.differences) {
        (0, _) => {
            eprintln!("nothing of it came from a client or a server on client, a or b");
            ExitCode::from(exit::USAGE)
        }
        (_, 0) => code,
        _ => ExitCode::from(exit::NO),
    }
}

fn text(found: &Again, verdict: &str) -> String {
    let mut out = format!(
        "{} packets and {} other inputs went in; {} packets ({}) came out as they had\n",
        found.packets_in,
        found.others_in,
        found.packets_same,
        bytes_text(found.bytes_same),
    );
    // Writing to a String cannot fail.
    for event in &found.events {
        let _ = writeln!(out, "again: {}", printable(event.as_bytes()));
    }
    match &found.first {
        None => {
            let _ = writeln!(out, "the same: {}", printable(verdict.as_bytes()));
        }
        Some(first) => mismatch(&mut out, first),
    }
    out
}

fn mismatch(out: &mut String, first: &Mismatch) {
    let after = first.after_packet.map_or("the beginning".into(), |n| format!("packet {n}"));
    let _ = writeln!(out, "DIFFERENT after {after}, at {:?} of the gateway's clock:", first.at);
    for (when, thing) in [("then", &first.then), ("now", &first.now)] {
        let _ = writeln!(out, "  {when}: {}", thing.as_ref().map_or("nothing".into(), named));
    }
    if let (Some(Thing::Packet(_, then, _)), Some(Thing::Packet(_, now, _))) =
        (&first.then, &first.now)
    {
        let at = then.iter().zip(now).position(|(a, b)| a != b);
        let at = at.unwrap_or(then.len().min(now.len())) as u64;
        let around = |bytes: &[u8]| {
            let mut window = Window::around(at);
            window.keep(0, bytes);
            window
        };
        out.push_str(&side_by_side(&around(then), &around(now), View::Hex));
    }
}

fn named(thing: &Thing) -> String {
    match thing {
        Thing::Packet(link, bytes, number) => {
            let number = number.map_or(String::new(), |number| format!("packet {number}, "));
            format!("{number}{} bytes to link {}", bytes.len(), link.name())
        }
        Thing::Event(text) => printable(text.as_bytes()),
    }
}

fn mismatch_json(first: &Mismatch) -> Value {
    let thing = |thing: &Option<Thing>| match thing {
        None => Value::Null,
        Some(Thing::Packet(link, bytes, number)) => {
            json!({ "link": link.name(), "packet": number, "bytes": bytes })
        }
        Some(Thing::Event(text)) => json!({ "event": text }),
    };
    json!({
        "after_packet": first.after_packet, "at_ns": first.at.nanos(),
        "then": thing(&first.then), "now": thing(&first.now),
    })
}
