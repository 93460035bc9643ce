//! What the gateway and its keeper of containers say to each other: lines of JSON.
//!
//! A sync is `Sync` -> `Begun` -> `Hushed` -> (the source freezes) `Frozen` -> `Overwrite` -> (it
//! goes on; the target's tree is killed) `Gone` -> `Emptied` -> (restore) `Ready`, `Done`. Where
//! files are mirrored, `Overwrite` -> (the target's tree is stopped) `Stopped` -> `Mirrored` ->
//! (the source goes on).

use serde::{Deserialize, Serialize};

use crate::sync::helper::Outcome;

/// From the gateway. The first line it says is the setup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Make the tree of `to` a copy of the tree of `from`.
    Sync {
        /// The sync's number.
        id: u32,
        /// The source: 0 or 1.
        from: usize,
        /// The target.
        to: usize,
    },
    /// Nothing is said to the servers any more.
    Hushed {
        /// The sync's number.
        id: u32,
    },
    /// Nobody counts on the target any more, and the source is not heard.
    Overwrite {
        /// The sync's number.
        id: u32,
    },
    /// The target's files are the source's, or why not.
    Mirrored {
        /// The sync's number.
        id: u32,
        /// Whether.
        outcome: Outcome,
    },
    /// What the old tree has said is dropped; what is said from here on is the new one's.
    Emptied {
        /// The sync's number.
        id: u32,
    },
    /// Give it up.
    Cancel {
        /// The sync's number.
        id: u32,
    },
}

impl Order {
    /// Whether the sync `id` is not wanted any more.
    pub fn ends(&self, id: u32) -> bool {
        match self {
            Self::Cancel { id: given } => *given == id,
            Self::Sync { id: next, .. } => *next != id,
            Self::Hushed { .. }
            | Self::Overwrite { .. }
            | Self::Mirrored { .. }
            | Self::Emptied { .. } => false,
        }
    }
}

/// From the keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// The checkpoint is about to begin.
    Begun {
        /// The sync's number.
        id: u32,
    },
    /// The source stands still, and its state is written.
    Frozen {
        /// The sync's number.
        id: u32,
        /// The source.
        from: usize,
    },
    /// The target's tree stands still too, so that nobody writes files.
    Stopped {
        /// The sync's number.
        id: u32,
    },
    /// The target's tree is gone.
    Gone {
        /// The sync's number.
        id: u32,
        /// The target.
        to: usize,
    },
    /// The target has the source's tree.
    Ready {
        /// The sync's number.
        id: u32,
    },
    /// The sync has failed; the target is what it was.
    Failed {
        /// The sync's number.
        id: u32,
        /// Why, for people.
        message: String,
    },
    /// The sync has failed, and the target has no tree.
    Lost {
        /// The sync's number.
        id: u32,
        /// The target.
        to: usize,
        /// Why, for people.
        message: String,
    },
    /// A sync is over, and this is what it took.
    Done(Report),
    /// For the log.
    Said {
        /// Whether somebody should look into it.
        is_warning: bool,
        /// What.
        text: String,
    },
}

/// What a sync took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sync's number.
    pub id: u32,
    /// From the order until the copy ran, in microseconds.
    pub total_us: u64,
    /// How long the source stood still, by CRIU's own account, in microseconds.
    pub pause_us: u64,
    /// Bytes of the images.
    pub bytes: u64,
}
