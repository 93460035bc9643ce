//! What the gateway and its keeper of guests say to each other: lines of JSON.

use serde::{Deserialize, Serialize};

/// From the gateway. The first line it says is the setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Make the guest `to` a copy of the guest `from`.
    Sync {
        /// The sync's number.
        id: u32,
        /// The source: 0 or 1.
        from: usize,
        /// The target.
        to: usize,
        /// How.
        way: Way,
    },
    /// Nobody counts on the target any more.
    Overwrite {
        /// The sync's number.
        id: u32,
    },
    /// The engine has taken note that the target is equal: both may go on.
    Go {
        /// The sync's number.
        id: u32,
    },
    /// Give it up.
    Cancel {
        /// The sync's number.
        id: u32,
    },
    /// End both guests, and the keeper.
    End,
}

/// How a state is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// While the source runs on; it stops for what is left.
    #[default]
    Live,
    /// The source stops first: what the other way is measured against.
    Stopped,
}

/// From the keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// This generation of guest is the server now.
    Attached {
        /// The server: 0 or 1.
        leg: usize,
        /// The guest's generation.
        generation: u32,
    },
    /// The server's guest has ended.
    Exited {
        /// The server.
        leg: usize,
    },
    /// A standby is ready for the next sync.
    Prepared {
        /// Its generation.
        generation: u32,
    },
    /// Source and target stand still.
    Frozen {
        /// The sync's number.
        id: u32,
    },
    /// The copy is whole, and waits to go on.
    Ready {
        /// The sync's number.
        id: u32,
        /// The server that it will be.
        leg: usize,
        /// Its generation.
        generation: u32,
    },
    /// The sync has failed; the target is what it was.
    Failed {
        /// The sync's number.
        id: u32,
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
    /// From the order until the copy was whole, in microseconds.
    pub total_us: u64,
    /// How long the source stood still, in microseconds.
    pub pause_us: u64,
    /// Bytes that the source sent.
    pub bytes: u64,
}
