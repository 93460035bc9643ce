//! The admin door: HTTP/1.1 and JSON on a Unix socket, under `/api/v1`.
//!
//! Owns the socket and the routes. GET changes nothing; a POST answers with its command's outcome.
//! It never touches a frame: it asks the packet loop through [`Gateway`] and reads the
//! [`Board`].

pub mod client;
mod metrics;
mod routes;
pub mod socket;
pub mod types;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant as Clock;

use tokio::net::UnixListener;

use crate::config::Config;
use crate::engine::{Command, Engine, EngineConfig, Instant};
use crate::observe::Board;

/// A question to the engine, asked between two packets.
pub type Question = Box<dyn FnOnce(Instant, &Engine) + Send>;

/// The way to the packet loop.
pub trait Gateway: Send + Sync {
    /// Gives the engine a command; its outcome arrives on the board under `id`.
    fn command(&self, id: u64, command: Command);
    /// Has `question` asked soon; it is dropped unasked if the loop has ended.
    fn inspect(&self, question: Question);
}

/// Reads the configuration file again: what the engine is to take, or why not.
pub type Reload = Box<dyn Fn() -> Result<Box<EngineConfig>, ReloadError> + Send + Sync>;

/// Why a configuration was not taken. The one in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It is unreadable or has mistakes.
    #[error("{0}\nthe configuration in force stays")]
    Config(#[from] crate::config::ConfigError),
    /// It changes what only a restart can change.
    #[error(
        "{0} cannot change while running; the configuration in force stays, restart to change it"
    )]
    NeedsRestart(String),
}

/// What the routes work with.
pub struct Door {
    /// Counters, flows, events.
    pub board: Arc<Board>,
    /// The packet loop.
    pub gateway: Box<dyn Gateway>,
    /// The configuration at the start, for what never changes.
    pub config: Config,
    /// Reads the configuration again.
    pub reload: Reload,
    /// Reads what the driver counted on each link.
    pub link_counts: Box<dyn Fn() -> [types::LinkCounts; 3] + Send + Sync>,
    /// When the program started.
    pub started: Clock,
    /// Whether the process may make only the system calls that it needs.
    pub is_sandboxed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("socket", &self.config.socket).finish_non_exhaustive()
    }
}

/// Serves until `stop` is ready. Requests under way are finished.
pub async fn serve(
    listener: UnixListener,
    door: Arc<Door>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, routes::router(door)).with_graceful_shutdown(stop).await
}

/// Takes the configuration file again, as `POST /api/v1/reload` does; why not, if it was not taken.
pub async fn reload(door: &Door) -> Result<(), String> {
    routes::take_configuration(door).await.map(|_| ()).map_err(|trouble| trouble.to_string())
}

#[cfg(test)]
mod tests;
