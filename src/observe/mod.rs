//! Events become counters, a directory of flows, log lines and an event stream.
//!
//! Owns the [`Board`] that readers look at and the [`Observer`] that the packet loop feeds. The
//! loop never waits here: it counts, and hands the event to a writer thread through a bounded
//! queue; what does not fit is counted as lost, never waited for.

pub mod agents;
pub mod counters;
pub mod describe;
pub mod directory;
pub mod json;
pub mod names;
pub mod rules;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::{CommandError, Event, Instant};
pub use agents::{AgentView, Agents};
pub use counters::Counters;
pub use describe::Level;
pub use directory::FlowDirectory;
pub use rules::Rules;

/// Events kept for readers.
pub const RECENT_EVENTS_MAX: usize = 1000;
/// Events on their way to the writer.
const QUEUE_MAX: usize = 1 << 16;

/// What readers see; shared between the packet loop and the admin side.
#[derive(Debug)]
pub struct Board {
    /// Names of the servers.
    pub names: [String; 2],
    /// The flows.
    pub flows: FlowDirectory,
    /// What became of evidence.
    pub evidence: Arc<EvidenceCounts>,
    /// What is known of agents.
    pub agents: Agents,
    counters: Mutex<Counters>,
    rules: Mutex<Rules>,
    recent: Mutex<Recent>,
    latest: watch::Sender<u64>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<(), CommandError>>>>,
    next_command: AtomicU64,
    /// UNIX time of the service's last change, 0 before the first.
    service_changed_ns: AtomicU64,
}

/// Evidence of divergences and failovers, counted.
#[derive(Debug, Default)]
pub struct EvidenceCounts {
    /// Files written.
    pub written: AtomicU64,
    /// Not written: no room, no directory, too many at once.
    pub lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<(u64, Value)>,
    last: u64,
}

impl Board {
    /// An empty board for servers of these names.
    pub fn new(names: [String; 2]) -> Arc<Self> {
        Arc::new(Self {
            names,
            flows: FlowDirectory::default(),
            evidence: Arc::default(),
            agents: Agents::default(),
            counters: Mutex::default(),
            rules: Mutex::default(),
            recent: Mutex::default(),
            latest: watch::Sender::new(0),
            waiting: Mutex::default(),
            next_command: AtomicU64::new(1),
            service_changed_ns: AtomicU64::new(0),
        })
    }

    /// The counters, locked: hold them briefly, the packet loop counts there.
    pub fn counters(&self) -> MutexGuard<'_, Counters> {
        lock(&self.counters)
    }

    /// The rules' counts, locked, like [`Self::counters`].
    pub fn rules(&self) -> MutexGuard<'_, Rules> {
        lock(&self.rules)
    }

    /// A new command's number, and where its outcome will arrive.
    pub fn expect_command(&self) -> (u64, oneshot::Receiver<Result<(), CommandError>>) {
        let id = self.next_command.fetch_add(1, Ordering::Relaxed);
        let (tell, outcome) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        // Whoever stopped waiting has dropped its end.
        waiting.retain(|_, tell| !tell.is_closed());
        waiting.insert(id, tell);
        (id, outcome)
    }

    /// Role-relevant events after number `after`, oldest first, and the number of the last one.
    pub fn events_after(&self, after: u64) -> (Vec<(u64, Value)>, u64) {
        let recent = lock(&self.recent);
        let fresh = recent.events.iter().filter(|(number, _)| *number > after).cloned();
        (fresh.collect(), recent.last)
    }

    /// Tells the number of the latest event whenever it changes.
    pub fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// UNIX time of the service's last change, in nanoseconds.
    pub fn service_changed_ns(&self) -> Option<u64> {
        Some(self.service_changed_ns.load(Ordering::Relaxed)).filter(|ns| *ns > 0)
    }

    fn keep(&self, event: Value) {
        let mut recent = lock(&self.recent);
        recent.last += 1;
        let number = recent.last;
        if recent.events.len() == RECENT_EVENTS_MAX {
            recent.events.pop_front();
        }
        recent.events.push_back((number, event));
        drop(recent);
        self.latest.send_replace(number);
    }

    fn command_done(&self, id: u64, result: Result<(), CommandError>) {
        if let Some(tell) = lock(&self.waiting).remove(&id) {
            // The asker may have given up.
            let _ = tell.send(result);
        }
    }
}

/// The packet loop's side: takes every event.
#[derive(Debug)]
pub struct Observer {
    board: Arc<Board>,
    queue: Option<mpsc::Sender<(u64, Event)>>,
    writer: Option<JoinHandle<()>>,
    unix_ns: fn(Instant) -> u64,
    /// The last engine time seen, and its UNIX time.
    last: (Instant, u64),
    has_trace: bool,
}

/// UNIX time may seem to go back by this much between two readings of two clocks.
const JITTER_NS_MAX: u64 = 1_000_000;

impl Observer {
    /// Starts the writer thread. `unix_ns` turns engine time into UNIX time; `events` is the
    /// event log; `level` is the least severe level that is logged.
    pub fn start(
        board: Arc<Board>,
        unix_ns: fn(Instant) -> u64,
        events: Option<File>,
        level: Level,
    ) -> std::io::Result<Self> {
        // Unlike the standard library's, it has no memory for events that are not there.
        let (queue, incoming) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::clone(&board);
        let writer = std::thread::Builder::new()
            .name("events".into())
            .spawn(move || writer::run(incoming, &shared, events))?;
        let has_trace = level == Level::Trace;
        let (queue, writer) = (Some(queue), Some(writer));
        Ok(Self { board, queue, writer, unix_ns, last: (Instant::ZERO, 0), has_trace })
    }

    /// UNIX time of `now`: the same for the same, and in order unless the clock was set back.
    fn unix_time(&mut self, now: Instant) -> u64 {
        let (last, last_ns) = self.last;
        if now != last {
            let read = (self.unix_ns)(now);
            let is_jitter = read < last_ns && last_ns - read < JITTER_NS_MAX;
            self.last = (now, if is_jitter { last_ns } else { read });
        }
        self.last.1
    }

    /// Takes one event. Never waits.
    pub fn event(&mut self, now: Instant, event: &Event) {
        self.board.counters().record(event);
        self.board.flows.record(now, event);
        if Rules::counts(event) {
            self.board.rules().record(event);
        }
        if is_per_packet(event) && !self.has_trace {
            return;
        }
        let t_ns = self.unix_time(now);
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(_)) = queue.try_send((t_ns, event.clone()))
        {
            self.board.counters().record_lost();
        }
        match event {
            // An outcome is told at once: the writer may be behind.
            Event::CommandDone { id, result } => self.board.command_done(*id, *result),
            Event::ServiceChanged { .. } => {
                self.board.service_changed_ns.store(t_ns, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl Drop for Observer {
    /// Waits until everything taken is written.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the event writer has panicked; the last events may be missing");
        }
    }
}

/// Whether the event may come with every packet, and so is counted only.
fn is_per_packet(event: &Event) -> bool {
    matches!(
        event,
        Event::Released { .. }
            | Event::Rejected { .. }
            | Event::DatagramJudged { .. }
            | Event::CookieGiven { .. }
    )
}

/// A panic elsewhere leaves counters and lists whole: they are changed in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
