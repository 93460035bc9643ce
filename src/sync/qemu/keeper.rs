//! The keeper of guests: a process of its own that starts both, watches them, has a standby ready,
//! and carries syncs out ([`super::copy`]).
//!
//! One thread, which waits for everything at once: a guest that ends is told of at that moment,
//! whatever else is under way. When the gateway is gone the guests go on, and the next one finds
//! them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::qmp::{Message, Monitor};
use super::setup::{QemuSetup, Which};
use super::stable::Stable;
use super::twin::Twin;
use super::words::{News, Order};

/// How long QEMU may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// After a guest that ended soon another one is started only after a pause, which doubles.
const SOON: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest part of QEMU's complaints that is told.
const COMPLAINT_BYTES_MAX: usize = 400;
/// Enough for every line of the gateway's at once; more is kept by nobody.
const UNREAD_BYTES_MAX: usize = 64 << 10;
/// "As fast as it goes", in a number that QEMU takes.
const BANDWIDTH: u64 = 100 << 30;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is not wanted any more.
    Cancelled,
    /// It went wrong.
    Failed(String),
}

/// A guest that speaks.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) which: Which,
    pub(super) monitor: Monitor,
    /// Messages that nobody has waited for yet.
    pub(super) inbox: VecDeque<Message>,
    born: Instant,
}

/// A server's place.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Its guest.
    guest: Option<u32>,
    /// No guest is started before.
    not_before: Option<Instant>,
    pause: Duration,
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper<S> {
    pub(super) setup: QemuSetup,
    pub(super) stable: S,
    gateway: UnixStream,
    unread: Vec<u8>,
    pub(super) orders: VecDeque<Order>,
    /// The gateway is gone.
    pub(super) is_over: bool,
    pub(super) guests: BTreeMap<u32, Guest>,
    places: [Place; 2],
    /// The guest that waits for its state, and whose place it is to take.
    pub(super) standby: Option<Which>,
    standby_place: Place,
    /// Whose place the next standby is to take.
    pub(super) spare_for: usize,
    last_generation: u32,
    starting: Option<OwnedFd>,
    complaint: Vec<u8>,
    /// The sync under way.
    pub(super) current: Option<u32>,
    /// What the standby's memory is made like.
    pub(super) twin: Option<Twin>,
    /// Of these two none could be made.
    pub(super) twin_failed: Option<(Which, Which)>,
    /// It was told that nobody sees what guests write.
    pub(super) is_unwatched: bool,
}

impl<S: Stable> Keeper<S> {
    /// A keeper with nobody to keep yet.
    pub fn new(setup: QemuSetup, stable: S, gateway: UnixStream) -> io::Result<Self> {
        gateway.set_nonblocking(true)?;
        Ok(Self {
            setup,
            stable,
            gateway,
            unread: Vec::new(),
            orders: VecDeque::new(),
            is_over: false,
            guests: BTreeMap::new(),
            places: [Place::default(); 2],
            standby: None,
            standby_place: Place::default(),
            spare_for: 1,
            last_generation: 0,
            starting: None,
            complaint: Vec::new(),
            current: None,
            twin: None,
            twin_failed: None,
            is_unwatched: false,
        })
    }

    /// Keeps them until the gateway is gone.
    pub fn run(&mut self) {
        self.adopt();
        while !self.is_over {
            let now = Instant::now();
            let is_due = |place: &Place| place.not_before.is_none_or(|at| at <= now);
            let vacant =
                (0..2).find(|&leg| self.places[leg].guest.is_none() && is_due(&self.places[leg]));
            let has_both = self.places.iter().all(|place| place.guest.is_some());
            if let Some(order) = self.orders.pop_front() {
                if let Order::Sync { id, from, to, way } = order
                    && from < 2
                    && to == 1 - from
                {
                    self.sync(id, (from, to), way);
                }
                if order == Order::End {
                    self.end_all();
                }
                // Whatever else is left over belongs to a sync that has ended.
            } else if let Some(leg) = vacant {
                self.boot(leg);
            } else if has_both && self.standby_is_wanted() && is_due(&self.standby_place) {
                self.prepare_standby();
            } else if let Some(pair) = self.twin_is_wanted() {
                self.begin_twin(pair);
            } else if self.prepare_twin() {
                // One step; orders come first.
            } else {
                let standby = (has_both && self.standby_is_wanted())
                    .then_some(self.standby_place.not_before)
                    .flatten();
                let places = self.places.iter().filter(|place| place.guest.is_none());
                let next = places.filter_map(|place| place.not_before).chain(standby).min();
                self.turn(next);
                for guest in self.guests.values_mut() {
                    guest.inbox.clear();
                }
            }
        }
        // It may have been the gateway's last word.
        if self.orders.contains(&Order::End) {
            self.end_all();
        }
        if let Some(standby) = self.standby.take() {
            self.end(standby);
        }
    }

    fn end_all(&mut self) {
        for leg in 0..2 {
            if let Some(which) = self.attached(leg) {
                self.end(which);
            }
        }
        self.is_over = true;
    }

    /// The guest that is a server now.
    pub(super) fn attached(&self, leg: usize) -> Option<Which> {
        let generation = self.places[leg].guest?;
        Some(Which { leg, generation })
    }

    /// Makes a guest the server.
    pub(super) fn attach(&mut self, which: Which) {
        self.places[which.leg].guest = Some(which.generation);
        self.places[which.leg].not_before = None;
        if let Err(error) = self.stable.record(which) {
            self.warn(format!("{} cannot be found again later: {error}", self.name(which)));
        }
    }

    pub(super) fn name(&self, which: Which) -> String {
        self.setup.name(which)
    }

    /// Takes over what an earlier keeper has left.
    fn adopt(&mut self) {
        let recorded: Vec<Which> = (0..2).filter_map(|leg| self.stable.recorded(leg)).collect();
        let mut kept = Vec::new();
        for which in recorded {
            let adopted = self.stable.open(which).map_err(|error| Stop::Failed(error.to_string()));
            match adopted.and_then(|monitor| self.take_over(which, monitor)) {
                Ok(()) => {
                    kept.push(which);
                    self.attach(which);
                    self.say(News::Said {
                        is_warning: false,
                        text: format!("the guest {} goes on", self.name(which)),
                    });
                    self.tell_attached(which);
                }
                Err(_) => self.end(which),
            }
        }
        self.last_generation = self.stable.tidy(&kept);
    }

    /// A guest of before that may have been in the middle of something.
    fn take_over(&mut self, which: Which, monitor: Monitor) -> Result<(), Stop> {
        self.greet(which, monitor)?;
        self.command(which, "migrate_cancel", Value::Null, PATIENCE)?;
        self.go_on(which, PATIENCE)
    }

    /// Starts the guest of a server.
    fn boot(&mut self, leg: usize) {
        match self.spawn(leg, false) {
            Ok(which) => {
                self.attach(which);
                self.say(News::Said {
                    is_warning: false,
                    text: format!("the guest {} starts", self.name(which)),
                });
                self.tell_attached(which);
            }
            Err(stop) => {
                let place = &mut self.places[leg];
                place.pause = (place.pause * 2).clamp(PAUSE, PAUSE_MAX);
                place.not_before = Some(Instant::now() + place.pause);
                let (name, pause) = (self.setup.names[leg].clone(), self.places[leg].pause);
                self.warn(format!("no guest for {name}: {}; again in {pause:?}", stop.text()));
            }
        }
    }

    fn standby_is_wanted(&self) -> bool {
        self.standby.is_none_or(|standby| standby.leg != self.spare_for)
    }

    /// Has a standby ready for the next sync.
    fn prepare_standby(&mut self) {
        if let Some(other) = self.standby.take() {
            self.end(other);
        }
        match self.spawn(self.spare_for, true) {
            Ok(which) => {
                self.standby = Some(which);
                self.standby_place = Place::default();
                if self.setup.memory_dir.is_none() {
                    self.say(News::Prepared { generation: which.generation });
                }
            }
            Err(stop) => {
                let place = &mut self.standby_place;
                place.pause = (place.pause * 2).clamp(PAUSE, PAUSE_MAX);
                place.not_before = Some(Instant::now() + place.pause);
                let pause = place.pause;
                self.warn(format!("no standby: {}; again in {pause:?}", stop.text()));
            }
        }
    }

    /// Starts a guest and has its first words.
    pub(super) fn spawn(&mut self, leg: usize, is_standby: bool) -> Result<Which, Stop> {
        self.last_generation += 1;
        let which = Which { leg, generation: self.last_generation };
        let spawned = self.spawn_named(which, is_standby);
        if spawned.is_err() {
            self.end(which);
        }
        spawned.map(|()| which)
    }

    fn spawn_named(&mut self, which: Which, is_standby: bool) -> Result<(), Stop> {
        let failed = |error: io::Error| Stop::Failed(error.to_string());
        self.complaint.clear();
        self.starting = Some(self.stable.start(which, is_standby).map_err(failed)?);
        let waited = self
            .wait(PATIENCE, "QEMU's start", |keeper| keeper.starting.is_none().then_some(Ok(())));
        self.starting = None;
        waited?;
        let monitor = self.stable.open(which).map_err(|error| {
            let said = String::from_utf8_lossy(&self.complaint).trim().replace('\n', "; ");
            Stop::Failed(if said.is_empty() { error.to_string() } else { said })
        })?;
        self.greet(which, monitor)?;
        if is_standby {
            let uri = json!({ "uri": self.setup.incoming(which) });
            self.command(which, "migrate-incoming", uri, PATIENCE)?;
        }
        Ok(())
    }

    /// The beginning of every conversation.
    fn greet(&mut self, which: Which, monitor: Monitor) -> Result<(), Stop> {
        let (inbox, born) = (VecDeque::new(), Instant::now());
        self.guests.insert(which.generation, Guest { which, monitor, inbox, born });
        self.heard(which, PATIENCE, "QEMU's greeting", |message| match message {
            Message::Greeting(_) => Some(Ok(())),
            _ => None,
        })?;
        self.command(which, "qmp_capabilities", Value::Null, PATIENCE)?;
        // An earlier keeper may have been told to copy otherwise.
        let capabilities = json!({ "capabilities": [
            { "capability": "events", "state": true },
            { "capability": "x-ignore-shared", "state": self.setup.memory_dir.is_some() },
            { "capability": "pause-before-switchover", "state": self.setup.memory_dir.is_some() },
        ]});
        self.command(which, "migrate-set-capabilities", capabilities, PATIENCE)?;
        // A copy that announces itself would speak before anybody has asked it.
        let parameters = json!({
            "max-bandwidth": BANDWIDTH, "downtime-limit": self.setup.downtime_ms,
            "announce-rounds": 0,
        });
        self.command(which, "migrate-set-parameters", parameters, PATIENCE)?;
        Ok(())
    }

    /// Gives a command and waits for what it returns.
    pub(super) fn command(
        &mut self,
        which: Which,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, Stop> {
        let id = self.order(which, command, arguments)?;
        self.answer(which, id, command, patience)
    }

    /// Gives a command; its number.
    pub(super) fn order(
        &mut self,
        which: Which,
        command: &str,
        arguments: Value,
    ) -> Result<u64, Stop> {
        let said = match self.guests.get_mut(&which.generation) {
            Some(guest) => guest.monitor.say(command, arguments),
            None => return Err(self.ended(which)),
        };
        said.map_err(|error| {
            self.lose(which.generation);
            Stop::Failed(format!("{} takes no `{command}`: {error}", self.name(which)))
        })
    }

    /// What the command of this number has returned.
    pub(super) fn answer(
        &mut self,
        which: Which,
        id: u64,
        command: &str,
        patience: Duration,
    ) -> Result<Value, Stop> {
        let what = format!("an answer of {} to `{command}`", self.name(which));
        let name = self.name(which);
        self.heard(which, patience, &what, |message| match message {
            Message::Answer(to, Ok(value)) if *to == id => Some(Ok(value.clone())),
            Message::Answer(to, Err(why)) if *to == id => {
                Some(Err(format!("{name} refuses `{command}`: {why}")))
            }
            _ => None,
        })
    }

    /// Waits until a guest says what is looked for; that message is taken, the others are kept.
    pub(super) fn heard<T>(
        &mut self,
        which: Which,
        patience: Duration,
        what: &str,
        mut look: impl FnMut(&Message) -> Option<Result<T, String>>,
    ) -> Result<T, Stop> {
        self.wait(patience, what, |keeper| {
            let Some(guest) = keeper.guests.get_mut(&which.generation) else {
                return Some(Err(format!("the guest {} has ended", keeper.name(which))));
            };
            let found = guest.inbox.iter().enumerate().find_map(|(at, m)| Some((at, look(m)?)))?;
            guest.inbox.remove(found.0);
            Some(found.1)
        })
    }

    /// Waits until `look` sees something, unless the sync under way is not wanted any more.
    pub(super) fn wait<T>(
        &mut self,
        patience: Duration,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<Result<T, String>>,
    ) -> Result<T, Stop> {
        let deadline = Instant::now() + patience;
        loop {
            if self.is_unwanted() {
                return Err(Stop::Cancelled);
            }
            if let Some(seen) = look(self) {
                return seen.map_err(Stop::Failed);
            }
            if Instant::now() >= deadline {
                return Err(Stop::Failed(format!("{what} did not come within {patience:?}")));
            }
            self.turn(Some(deadline));
        }
    }

    /// Whether there is a sync under way that nobody wants any more.
    pub(super) fn is_unwanted(&self) -> bool {
        let ends = |id| self.is_over || self.orders.iter().any(|order| order.ends(id));
        self.current.is_some_and(ends)
    }

    /// Has a guest run that stands still.
    pub(super) fn go_on(&mut self, which: Which, patience: Duration) -> Result<(), Stop> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.command(which, "query-status", Value::Null, patience)?;
            if status["running"] == json!(true) {
                return Ok(());
            }
            match self.command(which, "cont", Value::Null, patience) {
                // It ends a migration by itself, and nothing tells when it has.
                Err(Stop::Failed(_)) if Instant::now() < deadline => {
                    self.turn(Some(Instant::now() + Duration::from_millis(1)));
                }
                done => return done.map(drop),
            }
        }
    }

    /// Waits until anything happens, or until `until`, and takes note of it.
    pub(super) fn turn(&mut self, until: Option<Instant>) {
        let limit = until.map(|at| at.saturating_duration_since(Instant::now()));
        // Rounded up: a deadline has passed when the wait is over.
        let limit = limit.map(|limit| limit.as_millis() + u128::from(limit.subsec_nanos() > 0));
        let limit = limit.and_then(|ms| u16::try_from(ms).ok());
        let limit = limit.map_or(
            if until.is_some() { PollTimeout::MAX } else { PollTimeout::NONE },
            PollTimeout::from,
        );
        let generations: Vec<u32> = self.guests.keys().copied().collect();
        let mut fds: Vec<PollFd<'_>> = self
            .guests
            .values()
            .map(|guest| PollFd::new(guest.monitor.fd(), PollFlags::POLLIN))
            .collect();
        if let Some(starting) = &self.starting {
            fds.push(PollFd::new(starting.as_fd(), PollFlags::POLLIN));
        }
        if !self.is_over {
            fds.push(PollFd::new(self.gateway.as_fd(), PollFlags::POLLIN));
        }
        // An interrupted wait is taken up by the caller.
        let _ = poll(&mut fds, limit);
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let ready: Vec<bool> = fds.iter().map(is_ready).collect();
        drop(fds);
        for (generation, _) in generations.iter().zip(&ready).filter(|(_, ready)| **ready) {
            let Some(guest) = self.guests.get_mut(generation) else { continue };
            match guest.monitor.hear() {
                Ok(messages) => guest.inbox.extend(messages),
                Err(_) => self.lose(*generation),
            }
        }
        let mut rest = ready[generations.len()..].iter();
        if self.starting.is_some() && rest.next() == Some(&true) {
            self.hear_complaint();
        }
        if !self.is_over && rest.next() == Some(&true) {
            self.hear_gateway();
        }
    }

    fn hear_complaint(&mut self) {
        let Some(starting) = self.starting.take() else { return };
        let mut file = std::fs::File::from(starting);
        let mut buffer = [0; 4096];
        match file.read(&mut buffer) {
            Ok(0) | Err(_) => {}
            Ok(n) => {
                let room = COMPLAINT_BYTES_MAX.saturating_sub(self.complaint.len());
                self.complaint.extend_from_slice(&buffer[..n.min(room)]);
                self.starting = Some(file.into());
            }
        }
    }

    fn hear_gateway(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.gateway.read(&mut buffer) {
                Ok(0) => self.is_over = true,
                Ok(n) => {
                    self.unread.extend_from_slice(&buffer[..n]);
                    if self.unread.len() <= UNREAD_BYTES_MAX {
                        continue;
                    }
                    self.is_over = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.is_over = true,
            }
            break;
        }
        let whole = self.unread.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.unread.drain(..whole).collect();
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(order) => self.orders.push_back(order),
                Err(_) => self.is_over = true,
            }
        }
    }

    /// A guest has ended, or cannot be spoken to, which is the same.
    pub(super) fn lose(&mut self, generation: u32) {
        let Some(guest) = self.guests.remove(&generation) else { return };
        let which = guest.which;
        self.twin.take_if(|twin| twin.has(which));
        self.stable.end(which);
        if self.standby == Some(which) {
            self.standby = None;
        }
        if self.attached(which.leg) == Some(which) {
            self.spare_for = which.leg;
            let place = &mut self.places[which.leg];
            place.guest = None;
            place.pause = match guest.born.elapsed() < SOON {
                true => (place.pause * 2).clamp(PAUSE, PAUSE_MAX),
                false => Duration::ZERO,
            };
            place.not_before = Some(Instant::now() + place.pause);
            self.say(News::Exited { leg: which.leg });
            self.warn(format!("the guest {} has ended", self.name(which)));
        }
    }

    /// Ends a guest that is nobody's server.
    pub(super) fn end(&mut self, which: Which) {
        self.guests.remove(&which.generation);
        self.twin.take_if(|twin| twin.has(which));
        self.stable.end(which);
    }

    pub(super) fn ended(&self, which: Which) -> Stop {
        Stop::Failed(format!("the guest {} has ended", self.name(which)))
    }

    pub(super) fn tell_attached(&mut self, which: Which) {
        self.say(News::Attached { leg: which.leg, generation: which.generation });
    }

    pub(super) fn warn(&mut self, text: String) {
        self.say(News::Said { is_warning: true, text });
    }

    /// Tells the gateway. One that does not listen is as good as gone.
    pub(super) fn say(&mut self, news: News) {
        let line = serde_json::to_string(&news).unwrap_or_default();
        if !self.is_over && self.gateway.write_all(format!("{line}\n").as_bytes()).is_err() {
            self.is_over = true;
        }
    }
}

impl Stop {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Cancelled => "it is not wanted any more",
            Self::Failed(why) => why,
        }
    }
}

impl Order {
    /// Whether the sync `id` is not wanted any more.
    fn ends(&self, id: u32) -> bool {
        match self {
            Self::Cancel { id: given } => *given == id,
            Self::Sync { id: next, .. } => *next != id,
            Self::End => true,
            Self::Overwrite { .. } | Self::Go { .. } => false,
        }
    }
}
