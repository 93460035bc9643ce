//! State synchronization: what makes the backup equal to the primary, off the packet path.
//!
//! Owns the trait [`StateSync`] and its backends. The engine decides when and waits for how long;
//! a backend only carries out, and tells the outcome as an input.

pub mod agent;
pub mod container;
pub mod exec;
pub mod helper;
pub mod mirror;
mod process;
pub mod qemu;

use std::sync::Arc;

use crate::engine::{SyncId, SyncRequest, SyncScope, SyncStep};

/// Where a backend tells its steps. It may be called from any thread.
pub type SyncSink = Arc<dyn Fn(SyncId, SyncStep) + Send + Sync>;

/// A way to make one server equal to the other.
pub trait StateSync: Send {
    /// What it copies.
    fn scope(&self) -> SyncScope;
    /// Begins a sync and returns at once. Exactly one last step, `TargetReady` or `Failed`, is
    /// told to `sink` for it, unless it is cancelled first. A sync that still runs is given up.
    fn start(&mut self, request: SyncRequest, sink: SyncSink);
    /// The sync `id`, of scope Machine, has told [`SyncStep::Frozen`], and the engine counts on the
    /// target no more: from here on its state may be replaced.
    fn overwrite(&mut self, id: SyncId) {
        let _ = id;
    }
    /// Gives up the sync `id`: what it runs is killed, and nothing more is told of it.
    fn cancel(&mut self, id: SyncId);
}
