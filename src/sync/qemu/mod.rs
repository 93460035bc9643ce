//! The backend `qemu`: both servers are virtual machines that the gateway starts, and a sync copies
//! the whole machine, its connections included (scope Machine).
//!
//! Reading order: [`QemuSync`] (the gateway's end) · [`words`] (what is said between it and the
//! keeper) · [`keeper`] (the process that has the guests) · [`copy`] (one sync) · [`qmp`] (the
//! conversation with one QEMU) · [`twin`] (one sync of memory that is files) · [`setup`] (what a
//! guest is) · [`stable`] (guests on this host).
//!
//! The keeper is started while the gateway has its privileges, like the helper: what the sandbox
//! takes from the gateway, the keeper has. It learns its work from its first line and does nothing
//! else afterwards.

mod copy;
pub mod keeper;
mod pages;
pub mod qmp;
pub mod setup;
pub mod stable;
#[cfg(test)]
mod tests;
pub mod twin;
pub mod words;

use std::io::{self, BufRead, BufReader};
use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use keeper::Keeper;
use setup::QemuSetup;
use stable::{Host, Watcher};
use words::{News, Order, Way};

use super::process::{Process, write_line};
use super::{StateSync, SyncSink};
use crate::engine::{LegId, SyncId, SyncRequest, SyncScope, SyncStep};

/// The hidden verb under which the program is its own keeper of guests.
pub const VERB: &str = "guest-keeper";

/// What the gateway does with the keeper's news. Called from a thread of its own.
pub trait Gate: Send {
    /// This generation of guest is on the link of the server from now on.
    fn attached(&self, server: LegId, generation: NonZeroU32);
    /// The server's guest is on its link, and runs.
    fn came(&self, server: LegId);
    /// The server's guest has ended.
    fn went(&self, server: LegId);
    /// A sync's step.
    fn step(&self, id: SyncId, step: SyncStep);
    /// Does this when the engine has taken note of the steps before.
    fn afterwards(&self, action: Box<dyn FnOnce() + Send>);
}

/// A keeper process to which nobody listens yet.
#[derive(Debug)]
pub struct Unheard {
    process: Process,
    setup: QemuSetup,
}

impl Unheard {
    /// Starts `program` (this very program) as keeper; it starts no guest yet.
    pub fn spawn(program: &Path, setup: QemuSetup) -> io::Result<Self> {
        Ok(Self { process: Process::spawn(program, VERB)?, setup })
    }

    /// Has the guests started, or found, and listens.
    pub fn listen(self, gate: impl Gate + 'static) -> io::Result<QemuSync> {
        QemuSync::listen_to(self.process, &self.setup, gate)
    }
}

/// The gateway's end.
#[derive(Debug)]
pub struct QemuSync {
    process: Process,
    running: Arc<Mutex<Option<SyncId>>>,
}

impl QemuSync {
    fn listen_to(
        process: Process,
        setup: &QemuSetup,
        gate: impl Gate + 'static,
    ) -> io::Result<Self> {
        process.tell(setup)?;
        let running = Arc::default();
        let ear = Ear { orders: Arc::new(process.stream()?), running: Arc::clone(&running), gate };
        let said = process.said()?;
        std::thread::Builder::new().name("guests".into()).spawn(move || ear.hear(said))?;
        Ok(Self { process, running })
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<SyncId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateSync for QemuSync {
    fn scope(&self) -> SyncScope {
        SyncScope::Machine
    }

    fn start(&mut self, request: SyncRequest, sink: SyncSink) {
        *self.running() = Some(request.id);
        let (from, to) = (request.from.index(), request.to.index());
        let order = Order::Sync { id: request.id.0, from, to, way: Way::Live };
        if let Err(error) = self.process.tell(&order) {
            *self.running() = None;
            let message = format!("{GONE} ({error})");
            sink(request.id, SyncStep::Failed { message });
        }
    }

    fn overwrite(&mut self, id: SyncId) {
        // A keeper that does not hear this is gone, and that is told by its ear.
        let _ = self.process.tell(&Order::Overwrite { id: id.0 });
    }

    fn cancel(&mut self, id: SyncId) {
        self.running().take_if(|running| *running == id);
        let _ = self.process.tell(&Order::Cancel { id: id.0 });
    }
}

const GONE: &str = "the keeper of the guests is gone; restart the gateway, which finds them again";

/// Hears the keeper.
struct Ear<G> {
    orders: Arc<UnixStream>,
    running: Arc<Mutex<Option<SyncId>>>,
    gate: G,
}

impl<G: Gate> Ear<G> {
    fn hear(self, stream: BufReader<UnixStream>) {
        for line in stream.lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(news) => self.act_on(news),
                Err(_) => {
                    tracing::error!(line, "the keeper of the guests said something unknown");
                    break;
                }
            }
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(id) = running {
            self.gate.step(id, SyncStep::Failed { message: GONE.into() });
        }
    }

    fn act_on(&self, news: News) {
        let server = |leg: usize| LegId::ALL.get(leg).copied();
        match news {
            News::Attached { leg, generation } => {
                if let Some((server, generation)) = server(leg).zip(NonZeroU32::new(generation)) {
                    self.gate.attached(server, generation);
                    self.gate.came(server);
                }
            }
            News::Exited { leg } => {
                let _ = server(leg).map(|server| self.gate.went(server));
            }
            News::Prepared { generation } => tracing::debug!(generation, "a standby is ready"),
            News::Frozen { id } => self.gate.step(SyncId(id), SyncStep::Frozen),
            News::Ready { id, leg, generation } => {
                let is_wanted = self.take(id);
                if let Some((server, generation)) = server(leg).zip(NonZeroU32::new(generation))
                    && is_wanted
                {
                    // Between Frozen and here the target is neither heard nor spoken to.
                    self.gate.attached(server, generation);
                    self.gate.step(SyncId(id), SyncStep::TargetReady);
                    let orders = Arc::clone(&self.orders);
                    self.gate.afterwards(Box::new(move || {
                        let _ = write_line(&orders, &Order::Go { id });
                    }));
                }
            }
            News::Failed { id, message } => {
                self.take(id);
                self.gate.step(SyncId(id), SyncStep::Failed { message });
            }
            News::Done(report) => tracing::info!(
                "sync {} of the guests took {:.1} ms, the source paused for {:.1} ms, {:.1} MB",
                report.id,
                report.total_us as f64 / 1e3,
                report.pause_us as f64 / 1e3,
                report.bytes as f64 / 1e6,
            ),
            News::Said { is_warning: true, text } => tracing::warn!("{text}"),
            News::Said { is_warning: false, text } => tracing::info!("{text}"),
        }
    }

    /// Whether this sync runs; from here on it does not.
    fn take(&self, id: u32) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.take_if(|running| running.0 == id).is_some()
    }
}

/// The keeper's own life: keeps guests until `stream` ends.
pub fn serve(mut stream: UnixStream, watcher: Watcher) -> io::Result<()> {
    let Some(setup) = first_line(&mut stream)? else { return Ok(()) };
    let setup: QemuSetup = serde_json::from_slice(&setup)?;
    match Host::new(setup.clone(), watcher) {
        Ok(host) => Keeper::new(setup, host, stream)?.run(),
        Err(error) => {
            let news = News::Said { is_warning: true, text: format!("no guests: {error}") };
            write_line(&stream, &news)?;
            // There is nothing to keep; the gateway's links have no carrier.
            io::copy(&mut stream, &mut io::sink())?;
        }
    }
    Ok(())
}

/// What comes before anything else; byte by byte, so that nothing behind it is taken too.
fn first_line(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while io::Read::read(stream, &mut byte)? > 0 {
        if byte[0] == b'\n' {
            return Ok(Some(line));
        }
        line.push(byte[0]);
    }
    Ok(None)
}
