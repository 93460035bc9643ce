//! What the client verbs share: finding the socket, telling troubles, writing answers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::{Format, config_error, exit};
use crate::admin::client::{self, ClientError};
use crate::admin::types::Done;
use crate::config::{Config, DEFAULT_FILE, DEFAULT_SOCKET};

/// Which gateway is meant.
#[derive(Debug, clap::Args)]
pub struct DoorArgs {
    /// The gateway's admin socket
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The gateway's configuration file, which names its socket
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl DoorArgs {
    /// The socket: named, or that of the named or usual configuration, or the usual one.
    pub(super) fn socket(&self) -> Result<PathBuf, ExitCode> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        match &self.config {
            Some(file) => {
                Config::load(file).map(|c| c.socket).map_err(|error| config_error(&error))
            }
            // A broken usual file must not keep anybody from asking the running gateway.
            None => Ok(Config::load(Path::new(DEFAULT_FILE))
                .map_or_else(|_| DEFAULT_SOCKET.into(), |config| config.socket)),
        }
    }
}

/// Tells why there is no answer, and the status to exit with.
pub(super) fn refuse(error: &ClientError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(match error {
        ClientError::NoDaemon { .. } => exit::NO_DAEMON,
        ClientError::Permission(_) => exit::PERMISSION,
        ClientError::Broken(_) => exit::BUG,
        ClientError::Refused(problem) => match (problem.code.as_str(), problem.status) {
            ("config", _) => exit::CONFIG,
            (_, 503 | 504) => exit::BUSY,
            ("no_such_server", _) | (_, 400 | 413) => exit::USAGE,
            _ => exit::NO,
        },
    })
}

/// Sends a command and tells its outcome by `text`.
pub(super) fn command(
    door: &DoorArgs,
    verb: &str,
    body: &impl Serialize,
    wait: Duration,
    text: impl Fn(&Done) -> String,
) -> ExitCode {
    let socket = match door.socket() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match client::post::<Done>(&socket, &format!("/api/v1/{verb}"), body, wait) {
        Ok(done) => {
            say(&format!("{}\n", text(&done)));
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

/// Writes an answer: `text` for people, the value itself for programs.
pub(super) fn answer(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> ExitCode {
    match format {
        Format::Text => say(&text()),
        Format::Json => match serde_json::to_string(value) {
            Ok(json) => say(&format!("{json}\n")),
            Err(error) => {
                eprintln!("the answer cannot be written as JSON: {error}");
                return ExitCode::from(exit::BUG);
            }
        },
    }
    ExitCode::SUCCESS
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no trouble.
pub(super) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Rows of equal columns; the first is the head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell: &String| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

/// A number of bytes for people.
pub(super) fn bytes_text(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// A time in seconds for people.
pub(super) fn time_text(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0".into(),
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_units_fit() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(table(&[row(["A", "B"]), row(["long", ""])]), "A     B\nlong\n");
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(3 << 19), "1.5 MiB");
        assert_eq!(time_text(0.00002), "20 us");
        assert_eq!(time_text(0.15), "150.0 ms");
        assert_eq!(time_text(600.0), "10 min");
    }
}
