//! One sync: the source's state flows into the standby while the source runs on (memory that is
//! files: [`super::twin`]), until so little is left that both servers stop for it; then the standby
//! takes the target's place.
//!
//! Until [`Order::Go`] everything can be undone: the old guest of the target is stopped and not
//! touched, and what was begun with the standby ends with it. So the target of a failed sync is
//! what it was, and nothing that is half loaded ever becomes a server.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::keeper::{Keeper, Stop};
use super::qmp::Message;
use super::setup::Which;
use super::stable::Stable;
use super::words::{News, Order, Report, Way};

/// How long a guest may take to go on.
const GO_ON_WAIT: Duration = Duration::from_secs(5);

/// How far a sync has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Course {
    pub(super) source: Option<Which>,
    pub(super) old: Option<Which>,
    standby: Option<Which>,
    /// The gateway was told that the copy is whole.
    is_told: bool,
}

impl<S: Stable> Keeper<S> {
    /// Makes the second of the two a copy of the first.
    pub(super) fn sync(&mut self, id: u32, (from, to): (usize, usize), way: Way) {
        self.current = Some(id);
        self.spare_for = to;
        let mut course = Course::default();
        let copied = self.copy(id, (from, to), way, &mut course);
        self.current = None;
        match copied {
            Ok(report) => self.say(News::Done(report)),
            Err(stop) => self.undo(id, course, &stop),
        }
        self.orders.retain(|order| !order.is_of(id));
    }

    fn copy(
        &mut self,
        id: u32,
        (from, to): (usize, usize),
        way: Way,
        course: &mut Course,
    ) -> Result<Report, Stop> {
        let begun = Instant::now();
        let patience = Duration::from_millis(self.setup.timeout_ms);
        let gone = |leg: usize| format!("{} has no guest", self.setup.names[leg]);
        let source = self.attached(from).ok_or_else(|| Stop::Failed(gone(from)))?;
        let old = self.attached(to).ok_or_else(|| Stop::Failed(gone(to)))?;
        if let Some(other) = self.standby.take_if(|standby| standby.leg != to) {
            self.end(other);
        }
        let standby = match self.standby.take() {
            Some(standby) => standby,
            None => self.spawn(to, true)?,
        };
        course.standby = Some(standby);
        self.forget_events(source);
        self.forget_events(standby);

        let (stopped_at, copied) = match self.setup.memory_dir.is_some() {
            true => self.share(id, (source, old, standby), way, course)?,
            false => (self.stream(id, (source, old, standby), way, course)?, 0),
        };
        // While the gateway forgets the target, the last of the state is on its way.
        self.migrated(source, patience)?;
        self.migrated(standby, patience)?;
        self.ordered(Order::Overwrite { id }, patience)?;
        let whole = begun.elapsed();
        course.is_told = true;
        self.say(News::Ready { id, leg: to, generation: standby.generation });
        self.ordered(Order::Go { id }, patience)?;

        // From here on there is no way back, and none is needed.
        self.current = None;
        self.attach(standby);
        let pause_us = self.resume(source, standby, stopped_at);
        self.end(old);
        let bytes = self
            .command(source, "query-migrate", Value::Null, GO_ON_WAIT)
            .ok()
            .and_then(|done| done["ram"]["transferred"].as_u64())
            .unwrap_or(0);
        Ok(Report { id, total_us: micros(whole), pause_us, bytes: bytes + copied })
    }

    /// The source's whole state flows into the standby; when the source stopped, by QEMU's clock.
    fn stream(
        &mut self,
        id: u32,
        (source, old, standby): (Which, Which, Which),
        way: Way,
        course: &mut Course,
    ) -> Result<Duration, Stop> {
        let patience = Duration::from_millis(self.setup.timeout_ms);
        course.source = Some(source);
        if way == Way::Stopped {
            self.command(source, "stop", Value::Null, patience)?;
        }
        let uri = json!({ "uri": self.setup.incoming(standby) });
        self.command(source, "migrate", uri, patience)?;
        let stopped_at = self.event(source, patience, "STOP")?;
        course.old = Some(old);
        self.command(old, "stop", Value::Null, patience)?;
        self.freeze(id);
        Ok(stopped_at)
    }

    /// Tells the gateway that both stand still.
    pub(super) fn freeze(&mut self, id: u32) {
        self.say(News::Frozen { id });
    }

    /// Both go on from one state; how long the source stood still.
    fn resume(&mut self, source: Which, standby: Which, stopped_at: Duration) -> u64 {
        // The source first: it is the one that clients wait for.
        let first = self.order(source, "cont", Value::Null);
        let second = self.order(standby, "cont", Value::Null);
        for (which, id) in [(source, first), (standby, second)] {
            let done = id.and_then(|id| self.answer(which, id, "cont", GO_ON_WAIT));
            if done.is_err()
                && let Err(stop) = self.go_on(which, GO_ON_WAIT)
            {
                // A server that stands still for ever had better be gone.
                self.warn(format!("{} does not go on: {}", self.name(which), stop.text()));
                self.lose(which.generation);
            }
        }
        let resumed_at = self.event(source, GO_ON_WAIT, "RESUME");
        resumed_at.map_or(0, |at| micros(at.saturating_sub(stopped_at)))
    }

    /// The source and the target go on as they were; the standby is worth nothing any more.
    fn undo(&mut self, id: u32, course: Course, stop: &Stop) {
        if let Stop::Failed(message) = stop {
            self.say(News::Failed { id, message: message.clone() });
        }
        if let Some(standby) = course.standby {
            self.end(standby);
        }
        if let Some(old) = course.old {
            if course.is_told && self.attached(old.leg) == Some(old) {
                self.tell_attached(old);
            }
            self.recover(old);
        }
        if let Some(source) = course.source {
            // Where none is under way there is nothing to cancel.
            let _ = self.command(source, "migrate_cancel", Value::Null, GO_ON_WAIT);
            self.recover(source);
        }
    }

    fn recover(&mut self, which: Which) {
        if !self.guests.contains_key(&which.generation) {
            return;
        }
        if let Err(stop) = self.go_on(which, GO_ON_WAIT) {
            self.warn(format!("{} does not go on: {}", self.name(which), stop.text()));
            self.lose(which.generation);
        }
    }

    /// Waits for an event of a guest that is migrated; when it happened, by QEMU's clock.
    pub(super) fn event(
        &mut self,
        which: Which,
        patience: Duration,
        name: &str,
    ) -> Result<Duration, Stop> {
        let what = format!("{name} of {}", self.name(which));
        let failure = format!("the state of {} could not be copied", self.name(which));
        self.heard(which, patience, &what, |message| match message {
            Message::Event(event, _, at) if event == name => Some(Ok(*at)),
            Message::Event(event, data, _) if is_end(event, data, false) => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    }

    /// Waits until the source, which has stopped, waits for the word to go on with its devices.
    pub(super) fn waits(&mut self, source: Which, patience: Duration) -> Result<(), Stop> {
        let what = format!("the memory of {}", self.name(source));
        let failure = format!("the state could not be copied: {} gave up", self.name(source));
        self.heard(source, patience, &what, |message| match message {
            Message::Event(event, data, _) if event == "MIGRATION" => {
                match data["status"].as_str() {
                    Some("pre-switchover") => Some(Ok(())),
                    Some("failed" | "cancelled") => Some(Err(failure.clone())),
                    _ => None,
                }
            }
            _ => None,
        })
    }

    /// Waits until a guest has given, or taken, its whole state.
    fn migrated(&mut self, which: Which, patience: Duration) -> Result<(), Stop> {
        let what = format!("the end of the migration of {}", self.name(which));
        let failure = format!("the state could not be copied: {} gave up", self.name(which));
        self.heard(which, patience, &what, |message| match message {
            Message::Event(event, data, _) if is_end(event, data, true) => Some(Ok(())),
            Message::Event(event, data, _) if is_end(event, data, false) => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    }

    /// Waits for an order of the gateway.
    fn ordered(&mut self, order: Order, patience: Duration) -> Result<(), Stop> {
        self.wait(patience, "the gateway's word", |keeper| {
            let at = keeper.orders.iter().position(|given| *given == order)?;
            keeper.orders.remove(at);
            Some(Ok(()))
        })
    }

    fn forget_events(&mut self, which: Which) {
        if let Some(guest) = self.guests.get_mut(&which.generation) {
            guest.inbox.clear();
        }
    }
}

/// Whether an event says that a migration ended well, or that it failed.
fn is_end(event: &str, data: &Value, is_good: bool) -> bool {
    let status = data["status"].as_str().unwrap_or_default();
    event == "MIGRATION"
        && match is_good {
            true => status == "completed",
            false => matches!(status, "failed" | "cancelled"),
        }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Order {
    /// Whether it is a word about the sync `id`.
    fn is_of(&self, id: u32) -> bool {
        match self {
            Self::Sync { .. } | Self::End => false,
            Self::Overwrite { id: of } | Self::Go { id: of } | Self::Cancel { id: of } => *of == id,
        }
    }
}
