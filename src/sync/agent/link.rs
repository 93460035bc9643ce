//! The helper's side: keeps a connection to an agent, and makes a lost one again.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::frame::Purpose;
use super::handshake::{HandshakeError, Opener, greet};
use super::health::{self, Report};
use super::key::{Key, KeyError};
use super::mux::{Channel, Connection, Sealed};

/// How long an address may take to answer, and then the handshake.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// See [`CONNECT_MAX`].
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long an agent may take for its first report.
const REPORT_MAX: Duration = Duration::from_secs(5);
/// The wait before a connection is made again, which doubles each time in vain.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(5);
/// How often it is asked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An agent as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSetup {
    /// Host, or address, and port.
    pub address: String,
    /// The file with the key.
    pub key: PathBuf,
    /// So many bytes a second leave for it at most.
    pub limit: Option<u64>,
}

/// Why there is no connection to an agent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nobody is there.
    #[error(
        "the agent at {address} does not answer ({source}); is `shadowvm agent` running there?"
    )]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody is there, but they do not come together.
    #[error("the agent at {address} (key {}): {source}", key.display())]
    Handshake {
        /// Where.
        address: String,
        /// The key.
        key: PathBuf,
        /// Why.
        source: HandshakeError,
    },
}

/// What becomes known of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is connected.
    Connected,
    /// It is not any more, or cannot be; why. Told once for each reason.
    Lost(String),
    /// How the service beside it is.
    Report(Report),
}

/// A connection that is made again whenever it is lost.
#[derive(Debug)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    setup: AgentSetup,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Connection>,
    /// Somebody waits for a connection.
    is_wanted: bool,
    is_trying: bool,
    /// So many attempts have failed, and why the last one did.
    failed: u64,
    why: String,
    is_over: bool,
}

impl Link {
    /// Begins to connect. `tell` hears what becomes known, from threads of the link.
    pub fn start(
        setup: AgentSetup,
        tell: impl Fn(News) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { setup, state, changed });
        let keeping = Arc::clone(&shared);
        let keep = move || keeping.keep(&Arc::new(tell));
        std::thread::Builder::new().name("agent".into()).spawn(keep)?;
        Ok(Self(shared))
    }

    /// A channel to the agent. One that is not connected is tried once more, at once. Errors: what
    /// people are told; "given up" if that is stopped.
    pub fn open(
        &self,
        purpose: Purpose,
        is_stopped: &mut dyn FnMut() -> bool,
    ) -> Result<Channel, String> {
        let mut state = self.0.lock();
        // An attempt that is under way may have begun before the agent did.
        let enough = state.failed + 1 + u64::from(state.is_trying);
        loop {
            match &state.connection {
                Some(connection) if !connection.is_over() => return Ok(connection.open(purpose)),
                _ if is_stopped() => return Err("given up".into()),
                _ if state.failed >= enough || state.is_over => return Err(state.why.clone()),
                _ => {}
            }
            state.is_wanted = true;
            self.0.changed.notify_all();
            state = self.0.wait(state, LOOK_EVERY);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        if let Some(connection) = state.connection.take() {
            connection.end("the gateway has ended it");
        }
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Connects, serves, and connects again, until the link ends.
    fn keep(self: &Arc<Self>, tell: &Arc<impl Fn(News) + Send + Sync + 'static>) {
        let mut pause = AGAIN_AFTER;
        let mut told = None;
        loop {
            let mut state = self.lock();
            if state.is_over {
                return;
            }
            (state.is_trying, state.is_wanted) = (true, false);
            drop(state);
            let made = connect(&self.setup);
            let mut state = self.lock();
            state.is_trying = false;
            let why = match made {
                Ok((connection, opener)) if !state.is_over => {
                    state.connection = Some(connection.clone());
                    drop(state);
                    self.changed.notify_all();
                    (pause, told) = (AGAIN_AFTER, None);
                    tell(News::Connected);
                    let why = self.serve(&connection, opener, tell);
                    self.lock().connection = None;
                    format!("the connection to the agent at {} broke: {why}", self.setup.address)
                }
                Ok(_) => return,
                Err(error) => {
                    drop(state);
                    error.to_string()
                }
            };
            let mut state = self.lock();
            state.failed += 1;
            state.why.clone_from(&why);
            if !state.is_over && told.as_ref() != Some(&why) {
                drop(state);
                tell(News::Lost(why.clone()));
                told = Some(why);
                state = self.lock();
            }
            self.changed.notify_all();
            let until = Instant::now() + pause;
            while !state.is_over && !state.is_wanted {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = self.wait(state, left);
            }
            drop(state);
            pause = (pause * 2).min(AGAIN_AFTER_MAX);
        }
    }

    /// Until the connection ends; why it did.
    fn serve(
        &self,
        connection: &Connection,
        opener: Opener,
        tell: &Arc<impl Fn(News) + Send + Sync + 'static>,
    ) -> String {
        let channel = connection.open(Purpose::Health);
        std::thread::scope(|scope| {
            let tell = Arc::clone(tell);
            // An agent that watches nothing says so, which is no news.
            scope.spawn(move || health::hear(channel, |report| tell(News::Report(report))));
            connection.run(opener, |_, _| {})
        })
    }
}

fn connect(setup: &AgentSetup) -> Result<(Connection, Opener), LinkError> {
    let key = Key::read(&setup.key)?;
    let address = setup.address.clone();
    let failed = |source| LinkError::Connect { address: address.clone(), source };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for to in setup.address.to_socket_addrs().map_err(failed)? {
        let stream = match TcpStream::connect_timeout(&to, CONNECT_MAX) {
            Ok(stream) => stream,
            Err(error) => {
                last = error;
                continue;
            }
        };
        let (sealer, opener) = greet(&stream, &key, HANDSHAKE_MAX).map_err(|source| {
            let key = setup.key.clone();
            LinkError::Handshake { address: setup.address.clone(), key, source }
        })?;
        let sealed = Sealed { sealer, opener };
        return Connection::start(stream, sealed, true, setup.limit).map_err(failed);
    }
    Err(failed(last))
}

/// Whether an agent answers with this key, and how the service beside it is, if it watches any.
pub fn ask(setup: &AgentSetup) -> Result<Option<Report>, LinkError> {
    let (connection, opener) = connect(setup)?;
    let channel = connection.open(Purpose::Health);
    let reports = channel.clone();
    Ok(std::thread::scope(|scope| {
        let (heard, report) = sync_channel(1);
        scope.spawn(|| connection.run(opener, |_, _| {}));
        scope.spawn(move || {
            health::hear(reports, |report| {
                // Only the first one is waited for.
                let _ = heard.try_send(report);
            })
        });
        let report = report.recv_timeout(REPORT_MAX).ok();
        connection.end("all is said");
        drop(channel);
        report
    }))
}
