//! The backend `container`: both servers are process trees, and a sync makes the target's tree a
//! copy of the source's by checkpoint and restore (CRIU), its connections included (scope Machine).
//!
//! Reading order: [`ContainerSync`] (the gateway's end) · [`words`] (what is said between it and
//! the keeper) · [`keeper`] (the process that has CRIU, and one sync) · [`setup`] (what it is told)
//! · [`space`] (a container and the tree in it) · [`criu`] (one run of CRIU, and the probe) ·
//! [`trial`] (the process that the probe copies) · [`files`] (the servers' directories, if each has
//! its own) · [`under_way`] (the sync that is wanted).
//!
//! A kernel answers for processes that stand still. So it is the gateway that keeps the servers
//! from hearing and from being heard, link by link ([`Gate`]): from before the checkpoint until
//! after the restore. Nothing is installed in the servers' packet filters.

pub mod criu;
pub mod files;
pub mod keeper;
pub mod setup;
pub mod space;
#[cfg(test)]
mod tests;
pub mod trial;
pub mod under_way;
pub mod words;

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use files::{Files, Pass};
use keeper::Keeper;
use setup::ContainerSetup;
use under_way::UnderWay;
use words::{News, Order};

use super::helper::Outcome;
use super::process::{Process, write_line};
use super::{StateSync, SyncSink};
use crate::engine::{LegId, SyncId, SyncRequest, SyncScope, SyncStep};

/// The hidden verb under which the program is its own keeper of containers.
pub const VERB: &str = "container-keeper";

/// What the gateway does with the keeper's news, in the order in which it is asked to. Called from
/// a thread of its own.
pub trait Gate: Send {
    /// From now on what is said to the server waits.
    fn hush(&self, server: LegId);
    /// Neither is it heard from now on; what it has said so far is.
    fn still(&self, server: LegId);
    /// What waits for it and what it has said unheard is of a server that is no more.
    fn empty(&self, server: LegId);
    /// It hears and is heard.
    fn open(&self, server: LegId);
    /// A sync's step.
    fn step(&self, id: SyncId, step: SyncStep);
    /// Does this when all of that was done.
    fn afterwards(&self, action: Box<dyn FnOnce() + Send>);
}

/// A keeper process to which nobody listens yet.
#[derive(Debug)]
pub struct Unheard {
    process: Process,
    setup: ContainerSetup,
}

impl Unheard {
    /// Starts `program` (this very program) as keeper.
    pub fn spawn(program: &Path, setup: ContainerSetup) -> io::Result<Self> {
        Ok(Self { process: Process::spawn(program, VERB)?, setup })
    }

    /// Has CRIU probed, and listens. `files` makes the servers' directories equal, if the setup
    /// says that each has its own.
    pub fn listen(
        self,
        files: Option<Files>,
        gate: impl Gate + 'static,
    ) -> io::Result<ContainerSync> {
        self.process.tell(&self.setup)?;
        let under_way = Arc::new(UnderWay::new(files));
        let orders = Arc::new(self.process.stream()?);
        let ear = Ear { orders: Arc::clone(&orders), under_way: Arc::clone(&under_way), gate };
        let said = self.process.said()?;
        std::thread::Builder::new().name("containers".into()).spawn(move || ear.hear(said))?;
        Ok(ContainerSync { _process: self.process, orders, under_way })
    }
}

/// The gateway's end.
#[derive(Debug)]
pub struct ContainerSync {
    /// It ends with this.
    _process: Process,
    orders: Arc<UnixStream>,
    under_way: Arc<UnderWay>,
}

impl StateSync for ContainerSync {
    fn scope(&self) -> SyncScope {
        SyncScope::Machine
    }

    fn start(&mut self, request: SyncRequest, sink: SyncSink) {
        if let Some(before) = self.under_way.end_any() {
            self.cancel(before);
        }
        let (id, from, to) = (request.id, request.from.index(), request.to.index());
        self.under_way.set(request);
        let (orders, under_way) = (Arc::clone(&self.orders), Arc::clone(&self.under_way));
        let begin = move |outcome: Outcome| {
            let tell = || {
                let order = Order::Sync { id: id.0, from, to };
                write_line(&orders, &order).map_err(|error| format!("{GONE} ({error})"))
            };
            let told = outcome.and_then(|()| under_way.if_wanted(id, tell).unwrap_or(Ok(())));
            if let Err(message) = told
                && under_way.end(id)
            {
                sink(id, SyncStep::Failed { message });
            }
        };
        match self.under_way.has_files() {
            true => self.under_way.mirror(id, Pass::Ahead, begin),
            false => begin(Ok(())),
        }
    }

    fn overwrite(&mut self, id: SyncId) {
        // A keeper that does not hear this is gone, and that is told by its ear.
        let _ = write_line(&self.orders, &Order::Overwrite { id: id.0 });
    }

    fn cancel(&mut self, id: SyncId) {
        self.under_way.end(id);
        let _ = write_line(&self.orders, &Order::Cancel { id: id.0 });
    }
}

const GONE: &str = "the keeper of the containers is gone; restart the gateway";

/// Hears the keeper.
struct Ear<G> {
    orders: Arc<UnixStream>,
    under_way: Arc<UnderWay>,
    gate: G,
}

impl<G: Gate> Ear<G> {
    fn hear(self, stream: BufReader<UnixStream>) {
        // Whether the target's tree may be gone already.
        let mut is_spent = false;
        for line in stream.lines() {
            let Ok(line) = line else { break };
            let Ok(news) = serde_json::from_str(&line) else {
                tracing::error!(line, "the keeper of the containers said something unknown");
                break;
            };
            is_spent = match news {
                News::Frozen { .. } => true,
                News::Ready { .. } | News::Failed { .. } | News::Lost { .. } => false,
                _ => is_spent,
            };
            self.act_on(news);
        }
        if let Some(id) = self.under_way.end_any() {
            let message = GONE.to_owned();
            self.gate.step(
                id,
                match is_spent {
                    true => SyncStep::TargetLost { message },
                    false => SyncStep::Failed { message },
                },
            );
        }
        LegId::ALL.iter().for_each(|&server| self.gate.open(server));
    }

    fn act_on(&self, news: News) {
        match news {
            News::Begun { id } => {
                self.gate.step(SyncId(id), SyncStep::Hushed);
                LegId::ALL.iter().for_each(|&server| self.gate.hush(server));
                self.answer(Order::Hushed { id });
            }
            News::Frozen { id, from } => {
                let _ = server(from).map(|from| self.gate.still(from));
                self.gate.step(SyncId(id), SyncStep::Frozen);
            }
            News::Stopped { id } => {
                let orders = Arc::clone(&self.orders);
                self.under_way.mirror(SyncId(id), Pass::Frozen, move |outcome| {
                    // A keeper that cannot be told is gone, and that is seen.
                    let _ = write_line(&orders, &Order::Mirrored { id, outcome });
                });
            }
            News::Gone { id, to } => {
                let _ = server(to).map(|to| self.gate.empty(to));
                self.answer(Order::Emptied { id });
            }
            News::Ready { id } => self.end(id, SyncStep::TargetReady),
            News::Failed { id, message } => self.end(id, SyncStep::Failed { message }),
            News::Lost { id, to, message } => {
                // What a half of the copy may have said is nobody's.
                let _ = server(to).map(|to| self.gate.empty(to));
                self.end(id, SyncStep::TargetLost { message });
            }
            News::Done(report) => tracing::info!(
                "sync {} of the containers took {:.1} ms, the source paused for {:.1} ms, {:.1} MB",
                report.id,
                report.total_us as f64 / 1e3,
                report.pause_us as f64 / 1e3,
                report.bytes as f64 / 1e6,
            ),
            News::Said { is_warning: true, text } => tracing::warn!("{text}"),
            News::Said { is_warning: false, text } => tracing::info!("{text}"),
        }
    }

    /// Once everything that was asked of the gate is done, the keeper may go on.
    fn answer(&self, order: Order) {
        let orders = Arc::clone(&self.orders);
        self.gate.afterwards(Box::new(move || {
            // A keeper that cannot be told is gone, and that is seen.
            let _ = write_line(&orders, &order);
        }));
    }

    /// The last step: the engine learns of it before anything is heard again.
    fn end(&self, id: u32, step: SyncStep) {
        if self.under_way.end(SyncId(id)) {
            self.gate.step(SyncId(id), step);
        }
        LegId::ALL.iter().for_each(|&server| self.gate.open(server));
    }
}

fn server(leg: usize) -> Option<LegId> {
    LegId::ALL.get(leg).copied()
}

/// The keeper's own life, until `stream` ends.
pub fn serve(stream: UnixStream) -> io::Result<()> {
    let mut said = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    if said.read_line(&mut line)? == 0 {
        return Ok(());
    }
    Keeper::new(serde_json::from_str(&line)?, stream, said.buffer())?.run();
    Ok(())
}
