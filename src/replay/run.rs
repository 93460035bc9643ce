//! The conversations of a capture said again, many at once.
//!
//! One thread reads the capture and hands each conversation its steps; the conversations run as
//! tasks. Who cannot run yet because as many as may do is put off to another way through the
//! capture: so no conversation waits for one that does not run, and memory has an end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::capture::{Capture, Unreadable};
use super::cookies::{Cookies, Jar};
use super::desk::{Data, Desk, Part};
use super::diff::{Ends, Verdict};
use super::player::{Manner, Outcome, Servers, Step, Ticket, play};
use super::rules::Rules;
use super::sockets::Sockets;
use super::stack::{Stack, Via, ViaError};
use super::talks::Side;
use super::transfers::{Transfer, Transfers};
use super::voices::End;
use super::walk::{Facts, Index, Listener, Moment, Spot, Walk};

/// Bytes of steps that wait to be taken.
const WAITING_BYTES_MAX: u64 = 64 << 20;
/// What a step takes, besides its bytes.
const STEP_BYTES: usize = 128;
/// A paced reader hands steps out so much before their time.
const AHEAD: Duration = Duration::from_millis(500);

/// What is said again, to whom, and how.
#[derive(Clone, Debug)]
pub struct Order {
    /// To whom.
    pub servers: Servers,
    /// What may differ.
    pub rules: Rules,
    /// Ports of servers in the capture whose conversations are meant; all if none is named.
    pub ports: Vec<u16>,
    /// Time is so many times as fast as it was; none for as fast as can be.
    pub factor: Option<f64>,
    /// Conversations at once.
    pub parallel_max: usize,
    /// Longest wait for an answer.
    pub patience: Duration,
    /// Clients return the cookies that each server has set instead of those that were captured.
    pub follows_cookies: bool,
    /// Clients speak from their captured addresses on this interface; from one of this machine if
    /// there is none.
    pub via: Option<Via>,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Conversations that were said, and how many there are.
    pub done: u64,
    /// See `done`.
    pub all: u64,
    /// Those with a difference.
    pub different: u64,
    /// Those that could not be said to their end.
    pub failed: u64,
    /// Bytes said.
    pub said_bytes: u64,
    /// Since the beginning.
    pub elapsed: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Replayed {
    /// What is known of the capture.
    pub facts: Facts,
    /// Conversations in which no client said anything that was captured.
    pub silent: u64,
    /// Conversations in which nobody said anything.
    pub empty: u64,
    /// Ports of the capture's servers that were not meant.
    pub other_ports: BTreeSet<u16>,
    /// The conversations that were said, in the order of the capture.
    pub talks: Vec<(Ends, Outcome)>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Replayed {
    /// The answer as a whole.
    pub fn verdict(&self) -> Verdict {
        let is_whole = self.failed() == 0 && self.facts.unfollowed == 0 && !self.talks.is_empty();
        match self.different() {
            1.. => Verdict::Different,
            0 if is_whole => Verdict::Same,
            0 => Verdict::Unknown,
        }
    }

    /// Of all conversations together.
    pub fn sum(&self, of: impl Fn(&Outcome) -> u64) -> u64 {
        self.talks.iter().map(|(_, outcome)| of(outcome)).sum()
    }

    /// Conversations with a difference.
    pub fn different(&self) -> usize {
        self.talks.iter().filter(|(_, outcome)| !outcome.differences.is_empty()).count()
    }

    /// Conversations without one that could not be said to their end.
    pub fn failed(&self) -> usize {
        let is_failed =
            |outcome: &Outcome| outcome.failure.is_some() && outcome.differences.is_empty();
        self.talks.iter().filter(|(_, outcome)| is_failed(outcome)).count()
    }
}

/// What the threads share.
struct Shared {
    running: Mutex<usize>,
    /// One fewer runs, or fewer bytes wait.
    freed: Condvar,
    waiting_bytes: Arc<AtomicU64>,
    done: AtomicU64,
    different: AtomicU64,
    failed: AtomicU64,
    said_bytes: AtomicU64,
    outcomes: Mutex<BTreeMap<usize, Outcome>>,
    jar: Option<Arc<Jar>>,
}

/// Says the conversations of `capture` again. `tell` hears of the progress now and then.
pub fn replay(
    capture: &Capture,
    order: &Order,
    mut tell: impl FnMut(Progress) + Send,
) -> Result<Replayed, ReplayError> {
    let index = Index::of(capture)?;
    let began = Instant::now();
    let transfers = Transfers::find(capture, &index, &order.rules)?;
    let talks = index.talks.list();
    let is_meant = |id: usize| {
        let port = talks[id].address(Side::Server).port();
        let is_meant = order.ports.is_empty() || order.ports.contains(&port);
        talks[id].is_certain && !talks[id].is_empty() && is_meant
    };
    let is_asked = |id: usize| is_meant(id) && talks[id].sender(Side::Client).payload_bytes > 0;
    // What is transferred is asked for on the control connection.
    let asked: Vec<usize> = (0..talks.len())
        .filter(|&id| is_asked(transfers.of(id).map_or(id, |transfer| transfer.control)))
        .collect();
    let is_silent = |&id: &usize| transfers.of(id).is_none() && is_meant(id) && !is_asked(id);
    let silent = (0..talks.len()).filter(is_silent).count();
    let empty = talks.iter().filter(|talk| talk.is_certain && talk.is_empty()).count();
    let ports = talks.iter().map(|talk| talk.address(Side::Server).port());
    let other_ports = ports.filter(|port| !order.ports.is_empty() && !order.ports.contains(port));
    let other_ports: BTreeSet<u16> = other_ports.collect();
    let is_web = |id: usize| {
        is_asked(id)
            && transfers.of(id).is_none()
            && !order.rules.is_ftp(talks[id].address(Side::Server).port())
    };
    let cookies = match order.follows_cookies {
        true => Cookies::find(capture, &index, is_web)?,
        false => Cookies::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let client = |&id: &usize| talks[id].address(transfers.role(id, Side::Client)).ip();
    let sockets = match &order.via {
        Some(via) => {
            let servers: Vec<_> = order.servers.addresses().into_iter().flatten().collect();
            Sockets::Own(Stack::open(via, &asked.iter().map(client).collect(), &servers)?)
        }
        None => Sockets::Kernel,
    };
    let shared = Arc::new(Shared {
        running: Mutex::new(0),
        freed: Condvar::new(),
        waiting_bytes: Arc::default(),
        done: AtomicU64::new(0),
        different: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        said_bytes: AtomicU64::new(0),
        outcomes: Mutex::new(BTreeMap::new()),
        jar: (!cookies.is_empty()).then(|| Arc::new(Jar::new(&cookies))),
    });
    let all = asked.len() as u64;
    let progress = |shared: &Shared| Progress {
        done: shared.done.load(Ordering::Relaxed),
        all,
        different: shared.different.load(Ordering::Relaxed),
        failed: shared.failed.load(Ordering::Relaxed),
        said_bytes: shared.said_bytes.load(Ordering::Relaxed),
        elapsed: began.elapsed(),
    };
    let mut left = asked;
    while !left.is_empty() {
        let mut wanted = vec![false; index.talks.list().len()];
        left.iter().for_each(|&id| wanted[id] = true);
        let mut hand = Hand {
            order,
            index: &index,
            transfers: &transfers,
            cookies: &cookies,
            desks: BTreeMap::new(),
            runtime: runtime.handle().clone(),
            sockets: sockets.clone(),
            shared: Arc::clone(&shared),
            runners: BTreeMap::new(),
            wanted: wanted.clone(),
            put_off: BTreeSet::new(),
            began,
            first_ns: index.facts.times.map_or(0, |(first, _)| first),
        };
        let mut walk = Walk::begin(capture, Some(&index))?.only(wanted);
        let mut told = Instant::now();
        while walk.step(&mut hand) {
            if told.elapsed() > Duration::from_millis(200) {
                told = Instant::now();
                tell(progress(&shared));
            }
        }
        left = std::mem::take(&mut hand.put_off).into_iter().collect();
        drop(hand);
        // The next way begins once there is room for as many as make it worth while.
        let room = if left.is_empty() { 0 } else { order.parallel_max / 2 };
        let mut running = shared.lock_running();
        while *running > room {
            let wait = shared.freed.wait_timeout(running, Duration::from_millis(200));
            running = wait.unwrap_or_else(PoisonError::into_inner).0;
            tell(progress(&shared));
        }
    }
    if let Sockets::Own(stack) = &sockets {
        runtime.block_on(stack.end());
    }
    let outcomes =
        std::mem::take(&mut *shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
    let ends = |id: usize| {
        let [client, server] =
            Side::BOTH.map(|side| index.talks.list()[id].address(transfers.role(id, side)));
        Ends { client, server }
    };
    let talks = outcomes.into_iter().map(|(id, outcome)| (ends(id), outcome)).collect();
    Ok(Replayed {
        talks,
        silent: silent as u64,
        empty: empty as u64,
        other_ports,
        elapsed: began.elapsed(),
        facts: index.facts,
    })
}

/// Why nothing is said.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture cannot be read.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// The interface cannot be used.
    #[error(transparent)]
    Via(#[from] ViaError),
    /// The system refuses threads or timers.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

impl Shared {
    fn lock_running(&self) -> std::sync::MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer bytes wait.
    fn make_room(&self) {
        let mut running = self.lock_running();
        while self.waiting_bytes.load(Ordering::Relaxed) > WAITING_BYTES_MAX && *running > 0 {
            let wait = self.freed.wait_timeout(running, Duration::from_millis(50));
            running = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn finish(&self, id: usize, outcome: Outcome) {
        if let Some(jar) = &self.jar {
            jar.over(id);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        let is_different = !outcome.differences.is_empty();
        let is_failed = outcome.failure.is_some() && !is_different;
        self.different.fetch_add(u64::from(is_different), Ordering::Relaxed);
        self.failed.fetch_add(u64::from(is_failed), Ordering::Relaxed);
        self.said_bytes.fetch_add(outcome.said_bytes, Ordering::Relaxed);
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(id, outcome);
        *self.lock_running() -= 1;
        self.freed.notify_all();
    }
}

/// Hands the steps out.
struct Hand<'r> {
    order: &'r Order,
    index: &'r Index,
    transfers: &'r Transfers,
    cookies: &'r Cookies,
    /// What the servers of the control connections say, for the data connections.
    desks: BTreeMap<usize, watch::Receiver<Desk>>,
    runtime: tokio::runtime::Handle,
    sockets: Sockets,
    shared: Arc<Shared>,
    /// Who runs, and takes steps.
    runners: BTreeMap<usize, Runner>,
    /// Who is meant on this way, and neither put off nor over.
    wanted: Vec<bool>,
    put_off: BTreeSet<usize>,
    began: Instant,
    first_ns: u64,
}

/// A conversation that takes steps.
struct Runner {
    steps: UnboundedSender<(Step, Ticket)>,
    sides_over: u8,
}

impl Hand<'_> {
    fn hand(&mut self, id: usize, step: Step, len: usize, moment: Option<Moment>) {
        if self.wanted.get(id) != Some(&true) || !self.is_running(id) {
            return;
        }
        if let Some(moment) = moment {
            self.wait_for(moment);
        }
        self.shared.make_room();
        let ticket = Ticket::new(&self.shared.waiting_bytes, len + STEP_BYTES);
        let is_over = matches!(step, Step::Over(..));
        let Some(runner) = self.runners.get_mut(&id) else { return };
        // One that failed has gone, and takes no more steps.
        let _ = runner.steps.send((step, ticket));
        runner.sides_over += u8::from(is_over);
        if runner.sides_over == 2 {
            self.runners.remove(&id);
            self.wanted[id] = false;
        }
    }

    /// Whether a conversation runs; lets it begin if there is room.
    fn is_running(&mut self, id: usize) -> bool {
        if self.runners.contains_key(&id) {
            return true;
        }
        let part = match self.transfers.of(id) {
            Some(transfer) => self.control(transfer.control).map(|desk| {
                let Transfer { way, number, ref command, .. } = *transfer;
                Part::Data(Data { desk, way, number, command: command.clone() })
            }),
            // It returns what one has to be given that does not run, or follows it.
            None if self
                .cookies
                .needs(id)
                .chain(self.transfers.before(id))
                .any(|other| self.put_off.contains(&other)) =>
            {
                None
            }
            None if !self.has_room() => None,
            None if self.order.rules.is_ftp(self.port(id)) => {
                let (tells, hears) = watch::channel(Desk::default());
                self.desks.insert(id, hears);
                let before = self.transfers.before(id).and_then(|id| self.desks.get(&id));
                Some(Part::Control(tells, before.cloned()))
            }
            None => Some(Part::Alone),
        };
        match part {
            Some(part) => self.begin(id, part),
            None => {
                self.wanted[id] = false;
                self.put_off.insert(id);
                return false;
            }
        }
        true
    }

    /// What the servers of a control connection say, if it runs or has run: a data connection runs
    /// whenever that does, which waits for it.
    fn control(&mut self, id: usize) -> Option<watch::Receiver<Desk>> {
        if !self.desks.contains_key(&id) && self.wanted[id] {
            self.is_running(id);
        }
        self.desks.get(&id).cloned()
    }

    /// Whether one more may run. As fast as can be, it waits for one that has all its steps, and so
    /// ends without another one; in time others would be late.
    fn has_room(&self) -> bool {
        let mut running = self.shared.lock_running();
        while *running >= self.order.parallel_max {
            let takes_steps = |runner: &&Runner| !runner.steps.is_closed();
            let need_more = self.runners.values().filter(takes_steps).count();
            if self.order.factor.is_some() || *running <= need_more {
                return false;
            }
            let wait = self.shared.freed.wait_timeout(running, Duration::from_millis(50));
            running = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The address of the client, or of the server, in a conversation.
    fn address(&self, id: usize, role: Side) -> SocketAddr {
        self.index.talks.list()[id].address(self.transfers.role(id, role))
    }

    fn port(&self, id: usize) -> u16 {
        self.address(id, Side::Server).port()
    }

    fn begin(&mut self, id: usize, part: Part) {
        *self.shared.lock_running() += 1;
        let (steps, taken) = unbounded_channel();
        let manner = Manner {
            servers: self.order.servers,
            rules: self.order.rules.clone(),
            factor: self.order.factor,
            patience: self.order.patience,
            client: self.address(id, Side::Client),
            port: self.port(id),
            sockets: self.sockets.clone(),
            jar: self.shared.jar.clone(),
        };
        let shared = Arc::clone(&self.shared);
        let task = self.runtime.spawn(play(manner, part, taken));
        self.runtime.spawn(async move {
            let outcome = task.await.unwrap_or_else(|error| Outcome {
                failure: Some(format!("a bug of this program: {error}")),
                ..Outcome::default()
            });
            shared.finish(id, outcome);
        });
        self.runners.insert(id, Runner { steps, sides_over: 0 });
    }

    /// Waits until a packet's time is near.
    fn wait_for(&self, moment: Moment) {
        let Some(factor) = self.order.factor else { return };
        let since = Duration::from_nanos(moment.unix_ns.saturating_sub(self.first_ns));
        let due = self.began + since.div_f64(factor.max(1e-6));
        let early = due.saturating_duration_since(Instant::now()).saturating_sub(AHEAD);
        if !early.is_zero() {
            thread::sleep(early);
        }
    }
}

impl Listener for Hand<'_> {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], moment: Moment) {
        let copy = Bytes::copy_from_slice(bytes);
        let step = match self.transfers.role(spot.talk, spot.side) {
            Side::Client => {
                let begin = self.index.talks.list()[spot.talk].begin_ns;
                Step::Say(Duration::from_nanos(moment.unix_ns.saturating_sub(begin)), copy)
            }
            Side::Server => Step::Heard(copy),
        };
        self.hand(spot.talk, step, bytes.len(), Some(moment));
    }

    fn missing(&mut self, spot: Spot, len: u64) {
        self.hand(spot.talk, Step::Hole(self.transfers.role(spot.talk, spot.side), len), 0, None);
    }

    fn over(&mut self, spot: Spot, how: End, _: Moment) {
        self.hand(spot.talk, Step::Over(self.transfers.role(spot.talk, spot.side), how), 0, None);
    }
}
