//! What went into the engine lately and what it sent, in the order of the engine's own steps.
//!
//! Two halves, each with the engine's state at its beginning: when the newer one is full it
//! becomes the older one, whose steps are let go, a few with each new one. A frame's headers are
//! copied, its payload is shared: that costs a count. Steps are kept whole, so that what is here
//! can be run again.

use bytes::Bytes;

use crate::engine::{
    Duration, Engine, Epoch, Input, Instant, Link, Record, Signal, Snapshot, SyncId, SyncStep,
};
use crate::io::socket;
use crate::wire::{Frame, Offload};

/// Steps of one half.
const STEPS_MAX: usize = 1 << 14;
/// Bytes of headers that a half has room for at first.
const HEADS_ROOM: usize = STEPS_MAX * 80;
/// An engine in which more is under way is not kept: a block of a pcapng has an end.
const STATE_BYTES_MAX: usize = 8 << 20;
/// An engine that costs more is not kept: the packet loop stands still meanwhile, for a
/// millisecond with this.
const STATE_WEIGHT_MAX: usize = 4 << 20;
/// Weight that is packed in a nanosecond, about.
const WEIGHT_PER_NS: u64 = 4;
/// The packet loop does something else so many times as long as it packs engines.
const LOOP_SHARE: u32 = 50;
/// Steps of the oldest half that are let go with each new one.
const LET_GO: usize = 2;

/// What the engine was before the first step.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// It was made with this seed at this time, and took over these records.
    Made { seed: u64, at: Instant, records: Vec<Record> },
    /// It was this.
    State(Snapshot),
    /// It was too much to be noted: what is in the ring cannot be run again.
    Unknown,
}

/// One thing that went in or came out.
#[derive(Clone, Debug)]
pub struct Step {
    /// The engine's time.
    pub at: Instant,
    /// What it was.
    pub what: What,
}

/// See [`Step`].
#[derive(Clone, Debug)]
pub enum What {
    /// A frame came in.
    In(Link, Kept),
    /// A frame was sent.
    Out(Link, Kept),
    /// A timer was due.
    Timeout,
    /// Of a link.
    Signal(Link, Signal),
    /// Of the operator.
    Command(u64, Order),
    /// Of the backend.
    SyncStep(SyncId, SyncStep),
    /// Of the fence hook.
    Fenced(Epoch, bool),
}

/// A command that can be told in a file. A new configuration is none: the ring begins anew with it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // as in `engine::Command`
pub enum Order {
    Failover { to: Option<crate::engine::LegId>, is_planned: bool },
    Rejoin(crate::engine::LegId),
    Pause,
    Resume,
    SyncNow,
}

/// A frame, its headers in [`Half::heads`].
#[derive(Clone, Debug)]
pub struct Kept {
    head: (u32, u32),
    body: Bytes,
    offload: Offload,
}

/// Steps one after another from a known state.
#[derive(Debug)]
pub struct Half {
    /// What the engine was before.
    pub start: Start,
    /// The steps.
    pub steps: Vec<Step>,
    heads: Vec<u8>,
    /// Memory that the frames keep in use.
    memory: usize,
    begun_at: Instant,
}

impl Half {
    fn new(start: Start, now: Instant) -> Self {
        Self {
            start,
            steps: Vec::with_capacity(STEPS_MAX),
            heads: Vec::with_capacity(HEADS_ROOM),
            memory: 0,
            begun_at: now,
        }
    }

    /// The frame that was kept.
    pub fn frame(&self, kept: &Kept) -> Frame {
        let (at, len) = (kept.head.0 as usize, kept.head.1 as usize);
        let head = bytes::BytesMut::from(&self.heads[at..at + len]);
        Frame::from_parts(head, kept.body.clone(), kept.offload)
    }

    fn keep(&mut self, frame: &Frame, is_ours: bool) -> Kept {
        let at = self.heads.len() as u32;
        self.heads.extend_from_slice(frame.head());
        let head = (at, frame.head().len() as u32);
        // What is sent is mostly what came in; then its memory is counted already.
        self.memory += match is_ours {
            true => socket::memory_of(frame.len()),
            false => frame.head().len(),
        };
        Kept { head, body: frame.body().clone(), offload: frame.offload() }
    }

    /// The times of its first and last step.
    pub fn span(&self) -> Option<(Instant, Instant)> {
        Some((self.steps.first()?.at, self.steps.last()?.at))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ring {
    older: Option<Half>,
    newer: Half,
    /// Steps that are being let go; their room is used again.
    oldest: Option<Half>,
    bytes_max: usize,
    time_max: Duration,
    /// From when on the engine may be packed again.
    state_from: Instant,
}

impl Ring {
    /// Keeps about `bytes_max` of memory and reaches `time_max` back.
    pub fn new(bytes_max: usize, time_max: Duration, start: Start, now: Instant) -> Self {
        let newer = Half::new(start, now);
        Self { older: None, newer, oldest: None, bytes_max, time_max, state_from: now }
    }

    /// The engine is about to take this; false if it cannot be kept, so that what follows cannot
    /// be run again.
    pub fn input(&mut self, now: Instant, input: &Input) -> bool {
        let what = match input {
            Input::Frame(link, frame) => What::In(*link, self.newer.keep(frame, true)),
            Input::Timeout => What::Timeout,
            Input::Signal(link, signal) => What::Signal(*link, *signal),
            Input::Command(id, command) => match order(command) {
                Some(order) => What::Command(*id, order),
                None => return false,
            },
            Input::SyncStep(id, step) => What::SyncStep(*id, step.clone()),
            Input::Fenced { epoch, ok } => What::Fenced(*epoch, *ok),
            Input::Restore(_) => return false,
        };
        self.push(now, what);
        true
    }

    /// The engine has sent this.
    pub fn output(&mut self, now: Instant, link: Link, frame: &Frame) {
        let kept = self.newer.keep(frame, false);
        self.push(now, What::Out(link, kept));
    }

    fn push(&mut self, at: Instant, what: What) {
        self.newer.steps.push(Step { at, what });
        if let Some(oldest) = &mut self.oldest {
            let left = oldest.steps.len().saturating_sub(LET_GO);
            oldest.steps.truncate(left);
        }
    }

    /// How many steps there are, in both halves.
    pub fn count(&self) -> usize {
        self.older.as_ref().map_or(0, |half| half.steps.len()) + self.newer.steps.len()
    }

    /// How many of them are in the newer half.
    pub fn count_of_newer(&self) -> usize {
        self.newer.steps.len()
    }

    /// The engine as the start of what comes, if it is not more than the ring itself, and was not
    /// packed a moment ago.
    pub fn start_from(&mut self, now: Instant, engine: &Engine) -> Start {
        if now < self.state_from {
            return Start::Unknown;
        }
        let cost = Duration::from_nanos(engine.weight() as u64 / WEIGHT_PER_NS);
        self.state_from = now + cost * LOOP_SHARE;
        let weight_max = (self.bytes_max / 2).min(STATE_WEIGHT_MAX);
        let snapshot = engine.snapshot(weight_max, self.bytes_max.min(STATE_BYTES_MAX));
        snapshot.map_or(Start::Unknown, Start::State)
    }

    /// Whether the newer half is full: it is time for [`Self::turn`].
    pub fn is_due(&self, now: Instant) -> bool {
        let half = &self.newer;
        half.memory >= self.bytes_max / 2
            || half.steps.len() >= STEPS_MAX
            || now.since(half.begun_at) >= self.time_max / 2
    }

    /// Lets the older half go; how many steps that were.
    pub fn turn(&mut self, now: Instant, start: Start) -> usize {
        let mut fresh = match self.oldest.take() {
            Some(Half { mut steps, mut heads, .. }) => {
                steps.clear();
                heads.clear();
                Half { start, steps, heads, memory: 0, begun_at: now }
            }
            None => Half::new(start, now),
        };
        std::mem::swap(&mut fresh, &mut self.newer);
        self.oldest = self.older.replace(fresh);
        self.oldest.as_ref().map_or(0, |half| half.steps.len())
    }

    /// Takes all that is there, and begins anew.
    pub fn take(&mut self, now: Instant, start: Start) -> Vec<Half> {
        let full = std::mem::replace(&mut self.newer, Half::new(start, now));
        self.older.take().into_iter().chain([full]).collect()
    }
}

fn order(command: &crate::engine::Command) -> Option<Order> {
    use crate::engine::Command;
    Some(match *command {
        Command::Failover { to, is_planned } => Order::Failover { to, is_planned },
        Command::Rejoin(leg) => Order::Rejoin(leg),
        Command::Pause => Order::Pause,
        Command::Resume => Order::Resume,
        Command::SyncNow => Order::SyncNow,
        Command::Reload(_) => return None,
    })
}
