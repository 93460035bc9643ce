//! Both ends of a mirror, started and connected.
//!
//! Owns their processes and the way between them. Frames from end to end are passed on unread and
//! counted. Whatever goes wrong between the ends ends both: new ones start from what is on the
//! disks, so there is nothing to clean up. An end is this program beside a directory, or a command
//! that reaches one, such as `ssh HOST shadowvm mirror-end DIR`, or part of an agent.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver as Queue, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::entry::Rel;
use super::message::{
    FETCHED, Message, Order, PASSED_ON, Receiver, Report, Sender, VERSION, parse,
};
use crate::sync::agent::frame::Purpose;
use crate::sync::agent::link::Link;
use crate::sync::agent::mux::Channel;

/// The verb under which the program is an end.
pub const VERB: &str = "mirror-end";

/// A mirror as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSetup {
    /// The two ends, in the order of the servers.
    pub ends: [EndSetup; 2],
    /// Paths below both directories that are left alone.
    pub exclude: Vec<String>,
    /// Whether changes are watched.
    pub is_watching: bool,
    /// Whether content is compared even where size and times are equal.
    pub by_content: bool,
    /// Whether files are on the disk before they take their names.
    pub is_durable: bool,
    /// A sync in which nothing moves for so long is given up.
    pub timeout_ms: u64,
}

/// Where a tree is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndSetup {
    /// A directory of this host.
    Dir(String),
    /// The end speaks on the standard input and output of a command.
    Command(Vec<String>),
    /// The end is part of the server's agent.
    Agent,
}

/// What is wanted of a sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whatever the watches know, everything is looked at.
    pub is_full: bool,
    /// Another sync follows: what does not stand still now is left to that one.
    pub is_ahead: bool,
}

/// What a sync did and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What the target did.
    pub report: Report,
    /// Bytes between the ends, both ways.
    pub sent: u64,
}

/// How far a sync is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files that have come.
    pub files: u64,
    /// Files that will come in this round; none until that is known.
    pub files_all: u64,
    /// Bytes between the ends so far.
    pub sent: u64,
}

/// Two ends.
#[derive(Debug)]
pub struct Pair {
    setup: MirrorSetup,
    names: [String; 2],
    /// The ways to the servers' agents.
    links: [Option<Arc<Link>>; 2],
    ends: [Option<End>; 2],
    /// The last sync was good.
    is_settled: bool,
}

/// A running end.
#[derive(Debug)]
struct End {
    body: Body,
    receiver: Receiver<Stream>,
    sender: Sender<Stream>,
}

/// What an end runs in.
#[derive(Debug)]
enum Body {
    Process(Child),
    Agent(Channel),
}

/// What ends an end, whoever waits for it.
#[derive(Debug)]
enum Stop {
    Group(Pid),
    Channel(Channel),
}

impl Stop {
    fn now(&self) {
        match self {
            // It may be gone already.
            Self::Group(group) => drop(killpg(*group, Signal::SIGKILL)),
            Self::Channel(channel) => channel.close(""),
        }
    }
}

/// Either half of the way to an end.
#[derive(Debug)]
enum Stream {
    Agent(Channel),
    Socket(UnixStream),
    Input(ChildStdin),
    Output(ChildStdout),
}

impl Pair {
    /// Ends of servers with these names. Nothing is started.
    pub fn new(setup: MirrorSetup, names: [String; 2]) -> Self {
        Self { setup, names, links: [None, None], ends: [None, None], is_settled: false }
    }

    /// The same, with ways to the servers' agents.
    pub fn with_links(self, links: [Option<Arc<Link>>; 2]) -> Self {
        Self { links, ..self }
    }

    /// Starts both ends, so that they begin to watch; `is_stopped` is asked all the time. What
    /// fails is told by the first sync.
    pub fn warm(&mut self, mut is_stopped: impl FnMut() -> bool) {
        for which in 0..2 {
            if let Ok(end) = self.start(which, &mut is_stopped) {
                self.ends[which] = Some(end);
            }
        }
    }

    /// Makes the tree of the other end equal to that of `from`. `is_stopped` is asked all the time;
    /// `tell` hears how far it is. Errors: what people are told.
    pub fn sync(
        &mut self,
        from: usize,
        wish: Wish,
        mut is_stopped: impl FnMut() -> bool,
        mut tell: impl FnMut(Progress),
    ) -> Result<Done, String> {
        let is_full = wish.is_full || !std::mem::take(&mut self.is_settled);
        let ends = [0, 1].map(|which| self.take(which, &mut is_stopped));
        let mut ends = match ends {
            [Ok(a), Ok(b)] => [a, b],
            [Err(why), _] | [_, Err(why)] => return Err(why),
        };
        let order = Order {
            is_target: false,
            is_full,
            by_content: self.setup.by_content,
            is_durable: self.setup.is_durable,
            is_ahead: wish.is_ahead,
        };
        let counts = Counts::default();
        let [end_a, end_b] = &mut ends;
        let stops = [end_a.stop(), end_b.stop()];
        let (heard, outcomes) = channel();
        let timeout = Duration::from_millis(self.setup.timeout_ms);
        let outcome = std::thread::scope(|scope| {
            let ways = [
                (0, &mut end_a.receiver, &mut end_b.sender),
                (1, &mut end_b.receiver, &mut end_a.sender),
            ];
            for (which, receiver, sender) in ways {
                let (heard, counts) = (heard.clone(), &counts);
                // The order for the other end goes the way that this thread has to itself.
                let order = Order { is_target: from == which, ..order };
                scope.spawn(move || {
                    let begun = sender.send(&Message::Order(order)).and_then(|()| sender.flush());
                    let ended = match begun {
                        Ok(()) => pass_on(receiver, sender, counts),
                        Err(error) => Err(Broken::Out(error)),
                    };
                    // Who waits has perhaps given up.
                    let _ = heard.send(match ended {
                        Ok(ended) => (which, Ok(ended)),
                        Err(Broken::In(error)) => (which, Err(error)),
                        Err(Broken::Out(error)) => (1 - which, Err(error)),
                    });
                });
            }
            let ended = wait(&outcomes, &counts, timeout, &mut is_stopped, &mut tell);
            if !matches!(ended, Waited::Both(_)) {
                // Their streams end, and with them the two threads.
                stops.iter().for_each(Stop::now);
            }
            ended
        });
        match outcome {
            Waited::Both(mut reports) => {
                let [a, b] = ends;
                self.ends = [Some(a), Some(b)];
                let target = std::mem::replace(&mut reports[1 - from], Ok(Report::default()));
                reports[from].clone().map_err(|why| format!("{}: {why}", self.names[from]))?;
                let report = target.map_err(|why| format!("{}: {why}", self.names[1 - from]))?;
                self.is_settled = true;
                Ok(Done { report, sent: counts.sent.load(Relaxed) })
            }
            Waited::Gone(which, error) => {
                let name = &self.names[which];
                let why = match error.kind() {
                    io::ErrorKind::InvalidData => "talks nonsense".to_owned(),
                    _ => format!("is gone ({})", ends[which].last_words(&error)),
                };
                Err(format!("the mirror's end of server {name} {why}"))
            }
            Waited::Stopped => Err("given up".into()),
            Waited::Timeout => Err(format!("nothing moved for {timeout:?}, so it was given up")),
        }
    }

    fn take(&mut self, which: usize, is_stopped: &mut dyn FnMut() -> bool) -> Result<End, String> {
        let running = self.ends[which].take().and_then(End::if_alive);
        running.map_or_else(|| self.start(which, is_stopped), Ok)
    }

    fn start(&self, which: usize, is_stopped: &mut dyn FnMut() -> bool) -> Result<End, String> {
        let setup = &self.setup;
        let name = &self.names[which];
        let end = match (&setup.ends[which], &self.links[which]) {
            (EndSetup::Agent, Some(link)) => {
                let at = |why| format!("server {name}: {why}");
                Ok(End::of_agent(link.open(Purpose::Mirror, is_stopped).map_err(at)?))
            }
            (EndSetup::Agent, None) => Err(io::Error::other("it has no agent")),
            (setup, _) => End::start(setup),
        };
        let mut end = end.map_err(|error| format!("the mirror's end of server {name}: {error}"))?;
        let exclude = setup.exclude.iter().filter_map(|path| Rel::new(path.as_bytes())).collect();
        let greeting = Message::Setup { exclude, is_watching: setup.is_watching };
        match end.greet(&greeting, is_stopped) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err("given up".into()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(format!("the mirror's end of server {name} says nothing for {START_TIMEOUT:?}"))
            }
            Ok(Some((VERSION, blind))) => {
                if let Some(why) = blind {
                    eprintln!("mirror: server {name}: {why}; every sync looks at everything");
                }
                Ok(end)
            }
            Ok(Some((version, _))) => Err(format!(
                "the mirror's end of server {name} speaks version {version}, this gateway \
                 {VERSION}: install the same shadowvm on both"
            )),
            Ok(None) => Err(format!("the mirror's end of server {name} is no mirror-end")),
            // An agent's reason is the error.
            Err(error) if matches!(end.body, Body::Agent(_)) => {
                Err(format!("the mirror's end of server {name} does not start ({error})"))
            }
            Err(error) => Err(format!(
                "the mirror's end of server {name} does not start ({}; {error})",
                end.last_words(&error)
            )),
        }
    }
}

impl End {
    fn of_agent(channel: Channel) -> Self {
        let receiver = Receiver::new(Stream::Agent(channel.clone()));
        let sender = Sender::new(Stream::Agent(channel.clone()));
        Self { body: Body::Agent(channel), receiver, sender }
    }

    fn start(setup: &EndSetup) -> io::Result<Self> {
        let (program, args): (&str, &[String]) = match setup {
            EndSetup::Dir(dir) => ("/proc/self/exe", &[VERB.to_owned(), dir.clone()]),
            EndSetup::Command(argv) => {
                let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
                (program, args)
            }
            EndSetup::Agent => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let mut command = Command::new(program);
        command.args(args).current_dir("/").process_group(0);
        if let EndSetup::Dir(_) = setup {
            // One socket both ways is cheaper than two pipes.
            let (ours, theirs) = UnixStream::pair()?;
            command.arg0("shadowvm").stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
            command.stdout(Stdio::from(OwnedFd::from(theirs)));
            let body = Body::Process(command.spawn()?);
            let receiver = Receiver::new(Stream::Socket(ours.try_clone()?));
            return Ok(Self { body, receiver, sender: Sender::new(Stream::Socket(ours)) });
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
        let input = process.stdin.take().ok_or_else(missing)?;
        let output = process.stdout.take().ok_or_else(missing)?;
        let receiver = Receiver::new(Stream::Output(output));
        let body = Body::Process(process);
        Ok(Self { body, receiver, sender: Sender::new(Stream::Input(input)) })
    }

    /// Says how the tree is kept, and waits until the end stands by: its version, and why it cannot
    /// watch; none if it says something else. Errors: `Interrupted` if that is stopped, `TimedOut`;
    /// it is killed then.
    fn greet(
        &mut self,
        greeting: &Message<'_>,
        is_stopped: &mut dyn FnMut() -> bool,
    ) -> io::Result<Option<(u32, Option<String>)>> {
        let stop = self.stop();
        let (sender, receiver) = (&mut self.sender, &mut self.receiver);
        let (heard, answer) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let sent = sender.send(greeting).and_then(|()| sender.flush());
                let ready = sent.and_then(|()| receiver.receive()).map(|message| match message {
                    Message::Ready { version, blind } => Some((version, blind)),
                    _ => None,
                });
                // Who waits has perhaps given up.
                let _ = heard.send(ready);
            });
            let begun = Instant::now();
            loop {
                let given_up = match answer.recv_timeout(LOOK_EVERY) {
                    Ok(ready) => return ready,
                    Err(RecvTimeoutError::Disconnected) => io::ErrorKind::BrokenPipe,
                    Err(RecvTimeoutError::Timeout) if is_stopped() => io::ErrorKind::Interrupted,
                    Err(RecvTimeoutError::Timeout) if begun.elapsed() > START_TIMEOUT => {
                        io::ErrorKind::TimedOut
                    }
                    Err(RecvTimeoutError::Timeout) => continue,
                };
                // Its streams end, and with them the thread.
                stop.now();
                return Err(given_up.into());
            }
        })
    }

    fn stop(&self) -> Stop {
        match &self.body {
            Body::Process(process) => Stop::Group(Pid::from_raw(process.id().cast_signed())),
            Body::Agent(channel) => Stop::Channel(channel.clone()),
        }
    }

    fn if_alive(mut self) -> Option<Self> {
        let is_alive = match &mut self.body {
            Body::Process(process) => matches!(process.try_wait(), Ok(None)),
            Body::Agent(channel) => channel.ended().is_none(),
        };
        is_alive.then_some(self)
    }

    /// How it ended, or what was heard of that.
    fn last_words(&mut self, heard: &io::Error) -> String {
        self.stop().now();
        match &mut self.body {
            Body::Process(process) => match process.wait() {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            Body::Agent(_) => heard.to_string(),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.stop().now();
        if let Body::Process(process) = &mut self.body {
            let _ = process.wait();
        }
    }
}

impl io::Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(stream) => stream.read(buffer),
            Self::Output(stream) => stream.read(buffer),
            Self::Agent(channel) => channel.read(buffer),
            Self::Input(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(stream) => stream.write(bytes),
            Self::Input(stream) => stream.write(bytes),
            Self::Agent(channel) => channel.write(bytes),
            Self::Output(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    files: AtomicU64,
    files_all: AtomicU64,
    /// So often an end said that it works.
    pulses: AtomicU64,
}

impl Counts {
    fn progress(&self) -> Progress {
        Progress {
            files: self.files.load(Relaxed),
            files_all: self.files_all.load(Relaxed),
            sent: self.sent.load(Relaxed),
        }
    }
}

/// Which way between the ends broke.
enum Broken {
    /// From the end that is heard.
    In(io::Error),
    /// To the other one.
    Out(io::Error),
}

/// Passes on what one end says until its part is over; gives its report.
fn pass_on(
    receiver: &mut Receiver<Stream>,
    sender: &mut Sender<Stream>,
    counts: &Counts,
) -> Result<Result<Report, String>, Broken> {
    loop {
        if !receiver.has_next() {
            sender.flush().map_err(Broken::Out)?;
        }
        let (kind, frame) = receiver.raw().map_err(Broken::In)?;
        if kind >= PASSED_ON {
            counts.sent.fetch_add(frame.len() as u64, Relaxed);
            counts.files.fetch_add(u64::from(kind == FETCHED), Relaxed);
            sender.send_raw(frame).map_err(Broken::Out)?;
            continue;
        }
        match parse(kind, &frame[super::message::HEAD_LEN..]) {
            Ok(Message::Planned { files, .. }) => {
                counts.files_all.fetch_add(files, Relaxed);
            }
            Ok(Message::Busy) => {
                counts.pulses.fetch_add(1, Relaxed);
            }
            Ok(Message::Ended(ended)) => {
                return sender.flush().map(|()| ended).map_err(Broken::Out);
            }
            _ => return Err(Broken::In(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// What ended the wait for both ends.
enum Waited {
    Both([Result<Report, String>; 2]),
    Gone(usize, io::Error),
    Stopped,
    Timeout,
}

/// An end that has not begun to watch by then never will: a tree of a million directories takes
/// less.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How often it is asked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often somebody hears how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

fn wait(
    outcomes: &Queue<(usize, io::Result<Result<Report, String>>)>,
    counts: &Counts,
    timeout: Duration,
    is_stopped: &mut dyn FnMut() -> bool,
    tell: &mut dyn FnMut(Progress),
) -> Waited {
    let mut reports = [None, None];
    let (mut moved, mut told) = (Instant::now(), Instant::now());
    let moves = || (counts.progress(), counts.pulses.load(Relaxed));
    let mut before = moves();
    loop {
        match outcomes.recv_timeout(LOOK_EVERY) {
            Ok((which, Ok(ended))) => {
                moved = Instant::now();
                reports[which] = Some(ended);
                if let [Some(a), Some(b)] = &reports {
                    return Waited::Both([a.clone(), b.clone()]);
                }
            }
            Ok((which, Err(error))) => return Waited::Gone(which, error),
            Err(RecvTimeoutError::Disconnected) => {
                return Waited::Gone(0, io::ErrorKind::BrokenPipe.into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = moves();
        if now != before {
            (before, moved) = (now, Instant::now());
        }
        if is_stopped() {
            return Waited::Stopped;
        }
        if moved.elapsed() > timeout {
            return Waited::Timeout;
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            tell(now.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for ends that never end; an end may say all the time that it works.
    fn wait_for_nobody(is_working: bool) -> Waited {
        let (counts, (_heard, outcomes)) = (Counts::default(), channel());
        let mut asked = 0;
        let mut is_stopped = || {
            asked += 1;
            counts.pulses.fetch_add(u64::from(is_working), Relaxed);
            asked > 100
        };
        wait(&outcomes, &counts, Duration::from_secs(1), &mut is_stopped, &mut |_| {})
    }

    #[test]
    fn who_works_without_a_word_is_waited_for_and_who_does_not_is_given_up() {
        assert!(matches!(wait_for_nobody(true), Waited::Stopped));
        assert!(matches!(wait_for_nobody(false), Waited::Timeout));
    }
}
