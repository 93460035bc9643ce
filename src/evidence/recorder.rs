//! Beside the packet loop: keeps the ring, notes what happens, and hands the ring over a moment
//! after something that evidence is wanted of.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};

use super::ring::{Half, Ring, Start};
use crate::engine::{Duration, Engine, Event, FlowKey, Input, Instant, Link, Numbers};
use crate::io::clock;
use crate::observe::EvidenceCounts;
use crate::observe::describe::{Level, level};
use crate::wire::{Frame, Offset};

/// How long after it the evidence goes on: what the gateway did then.
const LINGER: Duration = Duration::from_millis(500);
/// Events noted at one time; of more the oldest are forgotten, and then nothing can be compared.
const NOTED_MAX: usize = 4096;
/// Pieces of evidence in a minute; a storm is told by its beginning.
const PER_MINUTE_MAX: usize = 6;
const MINUTE: Duration = Duration::from_secs(60);

/// The configuration in force as TOML: whoever reads it again says so here.
pub type InForce = Arc<Mutex<String>>;

/// An event, and how many steps there were when it happened, counted from the process's begin.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The last step before it.
    pub step: u64,
    /// The engine's time.
    pub at: Instant,
    /// What happened.
    pub event: Event,
}

/// All that a file is made of.
#[derive(Debug)]
pub struct Taken {
    /// What it is about.
    pub main: Noted,
    /// The sequence numbers of the first byte that differs.
    pub numbers: Option<Numbers>,
    /// What happened in this time.
    pub noted: Vec<Noted>,
    /// The number of the first step.
    pub first: u64,
    /// The steps.
    pub halves: Vec<Half>,
    /// The configuration, as TOML.
    pub config: String,
    /// UNIX time in nanoseconds of the engine's origin.
    pub origin_ns: u64,
}

/// A case that is not closed yet.
#[derive(Debug)]
struct Open {
    main: Noted,
    numbers: Option<Numbers>,
    due: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Recorder {
    ring: Ring,
    /// Steps so far, and the number of the first one in each half.
    count: u64,
    noted: VecDeque<Noted>,
    /// The step of the latest event that was forgotten.
    forgotten: Option<u64>,
    open: Option<Open>,
    /// When the latest ones were opened.
    lately: VecDeque<Instant>,
    /// What the ring holds cannot be gone on from.
    is_broken: bool,
    in_force: InForce,
    desk: SyncSender<Taken>,
    counts: Arc<EvidenceCounts>,
}

impl Recorder {
    /// Keeps what happens from `start` on; `desk` makes files of it.
    pub fn new(
        ring: Ring,
        in_force: InForce,
        desk: SyncSender<Taken>,
        counts: Arc<EvidenceCounts>,
    ) -> Self {
        Self {
            ring,
            count: 0,
            noted: VecDeque::new(),
            forgotten: None,
            open: None,
            lately: VecDeque::new(),
            is_broken: false,
            in_force,
            desk,
            counts,
        }
    }

    /// The engine is about to take this.
    pub fn input(&mut self, now: Instant, input: &Input) {
        match self.ring.input(now, input) {
            true => self.count += 1,
            false => self.is_broken = true,
        }
    }

    /// The engine has sent this.
    pub fn output(&mut self, now: Instant, link: Link, frame: &Frame) {
        self.ring.output(now, link, frame);
        self.count += 1;
    }

    /// Something happened.
    pub fn event(&mut self, now: Instant, event: &Event) {
        if !is_noted(event) {
            return;
        }
        if self.noted.len() == NOTED_MAX {
            self.forgotten = self.noted.pop_front().map(|noted| noted.step);
        }
        let noted = Noted { step: self.count.saturating_sub(1), at: now, event: event.clone() };
        if is_wanted(event) && self.open.is_none() && self.is_allowed(now) {
            self.open = Some(Open { main: noted.clone(), numbers: None, due: now + LINGER });
        }
        self.noted.push_back(noted);
    }

    /// Nothing is under way in the engine.
    pub fn pause(&mut self, now: Instant, engine: &Engine) {
        if let Some(open) = &mut self.open
            && open.numbers.is_none()
            && let Some((flow, at)) = place(&open.main.event)
        {
            open.numbers = engine.numbers_at(&flow, at);
        }
        let is_full = self.ring.is_due(now);
        let first_of_newer = self.count - self.ring.count_of_newer() as u64;
        let is_closed = |open: &Open| {
            open.due <= now || self.is_broken || is_full && open.main.step < first_of_newer
        };
        if self.open.as_ref().is_some_and(is_closed) {
            let start = self.ring.start_from(now, engine);
            return self.hand_over(now, start);
        }
        if self.is_broken {
            // A new configuration: nothing from before can be run with it.
            let start = self.ring.start_from(now, engine);
            self.ring.take(now, start);
            self.is_broken = false;
        } else if is_full {
            let start = self.ring.start_from(now, engine);
            self.ring.turn(now, start);
        }
    }

    /// The end: what is open is handed over as far as it came.
    pub fn end(&mut self, now: Instant) {
        self.hand_over(now, Start::Unknown);
    }

    fn hand_over(&mut self, now: Instant, start: Start) {
        let Some(Open { main, numbers, .. }) = self.open.take() else { return };
        let first = self.count - self.ring.count() as u64;
        let mut halves = self.ring.take(now, start);
        if let Some(half) = halves.first_mut().filter(|_| self.forgotten >= Some(first)) {
            half.start = Start::Unknown;
        }
        self.is_broken = false;
        let noted = self.noted.drain(..).filter(|noted| noted.step >= first).collect();
        let config = self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let origin_ns = clock::to_unix_ns(now).saturating_sub(now.nanos());
        let taken = Taken { main, numbers, noted, first, halves, config, origin_ns };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.desk.try_send(taken)
        {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there were few enough lately.
    fn is_allowed(&mut self, now: Instant) -> bool {
        while self.lately.front().is_some_and(|&at| now.since(at) > MINUTE) {
            self.lately.pop_front();
        }
        let is_allowed = self.lately.len() < PER_MINUTE_MAX;
        match is_allowed {
            true => self.lately.push_back(now),
            false => drop(self.counts.lost.fetch_add(1, Ordering::Relaxed)),
        }
        is_allowed
    }
}

/// Where the servers differ.
fn place(event: &Event) -> Option<(FlowKey, Offset)> {
    match event {
        Event::Diverged { flow, divergence } => Some((*flow, divergence.at)),
        _ => None,
    }
}

/// Whether evidence is wanted of it.
pub fn is_wanted(event: &Event) -> bool {
    matches!(
        event,
        Event::Diverged { .. }
            | Event::Promoted { .. }
            | Event::Detached { .. }
            | Event::SyncEnded { ok: false, .. }
    )
}

/// Whether it belongs into a file that something else is about.
pub fn is_noted(event: &Event) -> bool {
    let is_of_servers = !matches!(level(event), Level::Debug | Level::Trace)
        && !matches!(event, Event::CommandDone { .. } | Event::OwnStall { .. });
    is_of_servers || matches!(event, Event::EarlyEnd { .. } | Event::HoldHard { .. })
}
