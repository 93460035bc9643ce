//! The daemon beside a server: takes connections, and serves what their channels are for.
//!
//! A stranger costs it little: handshakes have a time, and so many of them, few from one address,
//! are under way at once; before one is over nothing is remembered of it. What a gateway may
//! reach is what the daemon was started for: one directory, and how one service is.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::frame::Purpose;
use super::handshake::{HandshakeError, receive};
use super::health;
use super::key::{Key, KeyError};
use super::mux::{Channel, Connection, Sealed};
use super::service::{Watched, Watcher};
use crate::sync::mirror::end;

/// How long a handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Handshakes under way at once, and those of one address.
pub const STRANGERS_MAX: usize = 32;
/// See [`STRANGERS_MAX`].
pub const STRANGERS_OF_ONE_MAX: usize = 8;
/// Gateways that are connected at once, one that was just lost among them.
pub const GATEWAYS_MAX: usize = 4;
/// What goes wrong with accepting (no descriptors) goes wrong again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a daemon serves.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file with its key.
    pub key: PathBuf,
    /// The directory that a gateway may mirror.
    pub dir: Option<PathBuf>,
    /// What it watches.
    pub watched: Watched,
    /// So many bytes a second leave a connection at most.
    pub limit: Option<u64>,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Without a key it serves nobody.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It cannot listen.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to mirror.
    #[error("{}: {source}", dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A daemon that listens.
#[derive(Debug)]
pub struct Agent {
    listener: TcpListener,
    served: Arc<Served>,
}

#[derive(Debug)]
struct Served {
    key: Key,
    dir: Option<PathBuf>,
    watcher: Option<Watcher>,
    limit: Option<u64>,
    guests: Mutex<Guests>,
}

/// Who is there.
#[derive(Debug, Default)]
struct Guests {
    /// Handshakes under way, by address.
    strangers: BTreeMap<IpAddr, usize>,
    gateways: usize,
}

impl Agent {
    /// Opens all that it needs.
    pub fn bind(setup: Setup) -> Result<Self, AgentError> {
        let key = Key::read(&setup.key)?;
        if let Some(dir) = &setup.dir {
            let opened = std::fs::read_dir(dir);
            opened.map_err(|source| AgentError::Dir { dir: dir.clone(), source })?;
        }
        let listen = setup.listen;
        let failed = |source| AgentError::Listen { listen, source };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        let is_watching = !setup.watched.services.is_empty() || setup.watched.pid_file.is_some();
        let watcher = is_watching.then(|| Watcher::start(setup.watched)).transpose();
        let watcher = watcher.map_err(failed)?;
        let (dir, limit) = (setup.dir, setup.limit);
        let served = Served { key, dir, watcher, limit, guests: Mutex::default() };
        Ok(Self { listener, served: Arc::new(served) })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever.
    pub fn run(self) -> ! {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => take(&self.served, stream, from),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

fn take(served: &Arc<Served>, stream: TcpStream, from: SocketAddr) {
    let Some(stranger) = Stranger::new(served, from.ip()) else {
        tracing::debug!(%from, "refused: too many handshakes are under way");
        return;
    };
    let serving = Arc::clone(served);
    let spawned = std::thread::Builder::new().spawn(move || serving.serve(stream, from, stranger));
    if let Err(error) = spawned {
        tracing::warn!(%error, %from, "refused: there is no thread for it");
    }
}

impl Served {
    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: Arc<Self>, stream: TcpStream, from: SocketAddr, stranger: Stranger) {
        let mut place = None;
        let taken = receive(&stream, &self.key, HANDSHAKE_MAX, || {
            place = Place::new(&self);
            place.is_some()
        });
        drop(stranger);
        let (sealer, opener) = match taken {
            Ok(sealed) => sealed,
            Err(HandshakeError::Io(error)) => {
                return tracing::debug!(%from, %error, "hung up before it had said who it is");
            }
            Err(error) => return tracing::warn!(%from, "refused: {error}"),
        };
        let sealed = Sealed { sealer, opener };
        let (connection, opener) = match Connection::start(stream, sealed, false, self.limit) {
            Ok(started) => started,
            Err(error) => return tracing::warn!(%from, %error, "lost at once"),
        };
        tracing::info!(%from, "a gateway is connected");
        let why = connection.run(opener, |purpose, channel| {
            let serving = Arc::clone(&self);
            let work = move || serving.serve_channel(purpose, channel);
            if let Err(error) = std::thread::Builder::new().spawn(work) {
                // The channel went with the thread that did not come to be.
                tracing::warn!(%from, %error, "a channel has no thread");
            }
        });
        drop(place);
        tracing::info!(%from, "a gateway is gone: {why}");
    }

    fn serve_channel(&self, purpose: Purpose, channel: Channel) {
        match (purpose, &self.dir, &self.watcher) {
            (Purpose::Mirror, Some(dir), _) => mirror(dir, &channel),
            (Purpose::Mirror, None, _) => channel.close("this agent was started without --dir"),
            (Purpose::Health, _, Some(watcher)) => health::tell(watcher, channel),
            (Purpose::Health, _, None) => {
                channel.close("this agent was started without --service");
            }
        }
    }
}

fn mirror(dir: &Path, channel: &Channel) {
    tracing::info!("{} is mirrored", dir.display());
    match end::serve(dir, channel.clone(), channel.clone()) {
        Ok(()) => tracing::info!("{} is mirrored no more", dir.display()),
        Err(error) => {
            tracing::info!("{} is mirrored no more: {error}", dir.display());
            channel.close(&error.to_string());
        }
    }
}

/// A handshake that is under way.
struct Stranger {
    served: Arc<Served>,
    from: IpAddr,
}

impl Stranger {
    fn new(served: &Arc<Served>, from: IpAddr) -> Option<Self> {
        let mut guests = served.guests();
        let all: usize = guests.strangers.values().sum();
        let count = guests.strangers.entry(from).or_default();
        let has_room = all < STRANGERS_MAX && *count < STRANGERS_OF_ONE_MAX;
        *count += usize::from(has_room);
        if *count == 0 {
            guests.strangers.remove(&from);
        }
        has_room.then(|| Self { served: Arc::clone(served), from })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut guests = self.served.guests();
        if let Some(count) = guests.strangers.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                guests.strangers.remove(&self.from);
            }
        }
    }
}

/// A gateway's place among those that are connected.
struct Place(Arc<Served>);

impl Place {
    fn new(served: &Arc<Served>) -> Option<Self> {
        let mut guests = served.guests();
        if guests.gateways == GATEWAYS_MAX {
            return None;
        }
        guests.gateways += 1;
        Some(Self(Arc::clone(served)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.guests().gateways -= 1;
    }
}
