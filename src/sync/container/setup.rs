//! What the keeper of containers is told at its start.
//!
//! The configuration has a type of its own (`config/container.rs`), as it has for each backend:
//! neither layer imports the other. `cli/run/containers.rs` makes this one of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The two servers as containers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSetup {
    /// CRIU.
    pub criu: String,
    /// Where checkpoints are written; an absolute path, the same in both containers.
    pub dir: PathBuf,
    /// For each server the file with the number of its container's first process.
    pub inits: [PathBuf; 2],
    /// The servers' names.
    pub names: [String; 2],
    /// A sync that takes longer is given up.
    pub timeout_ms: u64,
    /// So is one for which clients wait longer.
    pub still_ms: u64,
    /// Each server has files of its own, which the gateway has made equal while both stand still.
    pub has_files: bool,
}
