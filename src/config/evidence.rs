//! `[evidence]`: whether and where captures of divergences and failovers are left, and how many.
//!
//! Owns these keys and their defaults. Whether the directory can be written is `run`'s question.

use std::path::PathBuf;

use toml::de::DeTable;

use super::read::{Reader, Section, show_bytes};
use crate::engine::Duration;

/// Where evidence is left when no place is named.
pub const DEFAULT_DIR: &str = "/var/lib/shadowvm/evidence";

/// What is left of a divergence or a failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Whether anything is.
    pub is_written: bool,
    /// The directory.
    pub dir: PathBuf,
    /// Files kept.
    pub files_max: usize,
    /// Bytes of all files.
    pub bytes_max: u64,
    /// Age of a file.
    pub age_max: Duration,
    /// Bytes of recent packets kept in memory.
    pub ring_bytes: u64,
    /// How far back they reach.
    pub ring_time: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

impl Default for Evidence {
    fn default() -> Self {
        Self {
            is_written: true,
            dir: DEFAULT_DIR.into(),
            files_max: 100,
            bytes_max: 256 << 20,
            age_max: 720 * HOUR,
            ring_bytes: 4 << 20,
            ring_time: 20 * SECOND,
        }
    }
}

/// The section.
pub(super) fn evidence(reader: &Reader<'_>, root: &DeTable<'_>) -> Evidence {
    let section = Section::top(reader, root, "evidence");
    let usual = Evidence::default();
    let files = section.integer("files_max", 1..=100_000).and_then(|n| n.try_into().ok());
    let evidence = Evidence {
        is_written: section.flag("write", usual.is_written),
        dir: section.path("dir").unwrap_or(usual.dir),
        files_max: files.unwrap_or(usual.files_max),
        bytes_max: section.bytes("bytes_max", 1 << 20..=1 << 40).unwrap_or(usual.bytes_max),
        age_max: section.duration("age_max", usual.age_max, HOUR..=87_600 * HOUR),
        ring_bytes: section.bytes("ring_bytes", 1 << 18..=1 << 30).unwrap_or(usual.ring_bytes),
        ring_time: section.duration("ring_time", usual.ring_time, SECOND..=HOUR),
    };
    if !evidence.dir.is_absolute() {
        let help = "the process that writes there works in /: begin with a slash";
        let reason = "must be an absolute path";
        reader.wrong_help(section.at("dir"), "evidence.dir", reason, help);
    }
    // What is sent is in the file a second time.
    if evidence.bytes_max < 4 * evidence.ring_bytes {
        let least = show_bytes(4 * evidence.ring_bytes);
        let reason = format!("has no room for one file: with this ring_bytes at least {least}");
        let at = section.at("bytes_max").or_else(|| section.at("ring_bytes"));
        reader.wrong(at, "evidence.bytes_max", reason);
    }
    evidence
}
