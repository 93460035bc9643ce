//! The keeper of containers: a process of its own that has what the gateway gave up, and carries
//! syncs out, one at a time.
//!
//! Until the source's checkpoint is whole nothing is done to the target: a sync that fails before
//! leaves it as it was. From then on its tree is killed, and it is either the copy or nothing: what
//! is half restored is killed too, and never heard. The source only ever stands still; whoever
//! fails, it goes on.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::criu::{self, Images, Run};
use super::setup::ContainerSetup;
use super::space::{Space, Stopped};
use super::words::{News, Order, Report};

/// Enough for every line of the gateway's at once; more is kept by nobody.
const UNREAD_BYTES_MAX: usize = 64 << 10;
/// Room for numbers of processes that the source starts before the next sync.
const NUMBERS_AHEAD: i32 = 50;

/// Why a sync came to nothing.
#[derive(Debug)]
enum Stop {
    /// It is not wanted any more.
    Cancelled,
    /// It went wrong.
    Failed(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper {
    setup: ContainerSetup,
    gateway: UnixStream,
    unread: Vec<u8>,
    orders: VecDeque<Order>,
    /// The gateway is gone.
    is_over: bool,
    /// First processes whose kernels' part is done.
    stilled: [Option<i32>; 2],
    /// Why no CRIU works here.
    refused: Option<String>,
}

impl Keeper {
    /// A keeper to whom the gateway has said `unread` already.
    pub fn new(setup: ContainerSetup, gateway: UnixStream, unread: &[u8]) -> io::Result<Self> {
        gateway.set_nonblocking(true)?;
        let unread = unread.to_vec();
        let (orders, stilled) = (VecDeque::new(), [None; 2]);
        Ok(Self { setup, gateway, unread, orders, is_over: false, stilled, refused: None })
    }

    /// Keeps them until the gateway is gone.
    pub fn run(&mut self) {
        for (leg, init) in self.setup.inits.iter().enumerate() {
            // A container that is not there has nothing that stands still.
            let _ = Space::find(init).map(|space| space.go_on(&self.mark(leg)));
        }
        match criu::probe(&self.setup.criu, &self.setup.dir) {
            Ok(version) => self.say(News::Said {
                is_warning: false,
                text: format!("CRIU {version} writes a process and brings it back"),
            }),
            Err(why) => {
                let text = format!("no sync is possible: {why}; {}", criu::FIX);
                self.say(News::Said { is_warning: true, text });
                self.refused = Some(why);
            }
        }
        self.sort_lines();
        while !self.is_over {
            match self.orders.pop_front() {
                Some(Order::Sync { id, from, to }) if from < 2 && to == 1 - from => {
                    self.sync(id, from, to);
                }
                // What is left over belongs to a sync that has ended.
                Some(_) => {}
                None => self.turn(None, None),
            }
        }
    }

    fn sync(&mut self, id: u32, from: usize, to: usize) {
        let mut cleared = None;
        match self.copy(id, from, to, &mut cleared) {
            Ok(report) => self.say(News::Done(report)),
            Err(stop) => {
                let message = match stop {
                    Stop::Cancelled => "it was not wanted any more".to_owned(),
                    Stop::Failed(why) => why,
                };
                let news = match cleared {
                    None => News::Failed { id, message },
                    // What was half restored, and what its end says, is nobody's.
                    Some(target) => match Space::clear(&target) {
                        Ok(()) => News::Lost { id, to, message },
                        Err(more) => News::Lost { id, to, message: format!("{message}; {more}") },
                    },
                };
                self.say(news);
            }
        }
        self.orders.retain(|order| matches!(order, Order::Sync { id: next, .. } if *next != id));
    }

    /// Makes the tree of `to` a copy of the tree of `from`; `cleared` is the target's container
    /// from when its own tree is given up.
    fn copy(
        &mut self,
        id: u32,
        from: usize,
        to: usize,
        cleared: &mut Option<Space>,
    ) -> Result<Report, Stop> {
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(self.setup.timeout_ms);
        if let Some(why) = &self.refused {
            return Err(Stop::Failed(why.clone()));
        }
        let (source, target) = (self.space(from)?, self.space(to)?);
        let (_, root) =
            source.root().map_err(|why| format!("{}: {why}", self.setup.names[from]))?;
        let dir = self.setup.dir.join("images");
        let shown = |error: io::Error| format!("{}: {error}", dir.display());
        let mut images = Images::new(&dir).map_err(shown)?;

        let criu = self.setup.criu.clone();
        let dump = Run::dump(&criu, &images, &source, root);
        let mut dump = dump.map_err(|error| format!("nsenter: {error}"))?;
        self.told(id, deadline, &mut images, &mut dump, "pre-dump")?;
        // From here on clients wait.
        let deadline = deadline.min(Instant::now() + Duration::from_millis(self.setup.still_ms));
        self.say(News::Begun { id });
        self.ordered(id, deadline, Order::Hushed { id })?;
        images.go().map_err(shown)?;
        self.told(id, deadline, &mut images, &mut dump, "post-dump")?;
        self.say(News::Frozen { id, from });
        self.ordered(id, deadline, Order::Overwrite { id })?;
        // It goes on if the sync fails before its end.
        let _stopped = match self.setup.has_files {
            true => Some(self.mirrored(id, deadline, &target, to)?),
            false => None,
        };
        images.go().map_err(shown)?;
        self.done(id, deadline, &mut dump, &images, "dump.log")?;

        *cleared = Some(target);
        target.clear()?;
        self.say(News::Gone { id, to });
        self.ordered(id, deadline, Order::Emptied { id })?;
        let above = source.highest().saturating_add(NUMBERS_AHEAD);
        let restore = Run::restore(&criu, &images, &target, above);
        let mut restore = restore.map_err(|error| format!("nsenter: {error}"))?;
        self.done(id, deadline, &mut restore, &images, "restore.log")?;
        self.say(News::Ready { id });
        let total_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let pause_us = images.frozen_us().unwrap_or(0);
        Ok(Report { id, total_us, pause_us, bytes: images.bytes() })
    }

    /// The container of a server, its kernel told to say nothing of its own accord.
    fn space(&mut self, leg: usize) -> Result<Space, String> {
        let named = |why: String| format!("{}: {why}", self.setup.names[leg]);
        let space = Space::find(&self.setup.inits[leg]).map_err(named)?;
        if self.stilled[leg] != Some(space.init()) {
            space.still_kernel().map_err(|error| {
                let name = &self.setup.names[leg];
                format!("{name}: tcp_early_retrans cannot be set in the container: {error}")
            })?;
            self.stilled[leg] = Some(space.init());
        }
        Ok(space)
    }

    /// Waits until CRIU tells that it is about to do this.
    fn told(
        &mut self,
        id: u32,
        deadline: Instant,
        images: &mut Images,
        run: &mut Run,
        what: &str,
    ) -> Result<(), Stop> {
        loop {
            self.check(id, deadline)?;
            if images.said() == what {
                return Ok(());
            }
            if run.ended().is_some() {
                return Err(failed("the checkpoint", &images.complaint("dump.log")));
            }
            self.turn(Some(deadline), Some([images.fd(), run.fd()]));
        }
    }

    /// Is there while the server's processes stand still for their files; a keeper that is killed
    /// then leaves it to the next one.
    fn mark(&self, leg: usize) -> PathBuf {
        self.setup.dir.join(format!("stopped-{leg}"))
    }

    /// Waits until a run has ended well.
    fn done(
        &mut self,
        id: u32,
        deadline: Instant,
        run: &mut Run,
        images: &Images,
        log: &str,
    ) -> Result<(), Stop> {
        let what = if log == "dump.log" { "the checkpoint" } else { "the restore" };
        loop {
            self.check(id, deadline)?;
            match run.ended() {
                Some(true) => return Ok(()),
                Some(false) => return Err(failed(what, &images.complaint(log))),
                None => self.turn(Some(deadline), Some([run.fd(), run.fd()])),
            }
        }
    }

    /// Waits for an order of the gateway.
    fn ordered(&mut self, id: u32, deadline: Instant, order: Order) -> Result<(), Stop> {
        loop {
            self.check(id, deadline)?;
            if let Some(at) = self.orders.iter().position(|given| *given == order) {
                self.orders.remove(at);
                return Ok(());
            }
            self.turn(Some(deadline), None);
        }
    }

    /// Waits until the target's files are the source's. Both stand still: what the target's
    /// own processes write would be found by the copy.
    fn mirrored(
        &mut self,
        id: u32,
        deadline: Instant,
        target: &Space,
        to: usize,
    ) -> Result<Stopped, Stop> {
        let stopped = target.stop(&self.mark(to))?;
        self.say(News::Stopped { id });
        loop {
            self.check(id, deadline)?;
            let is_it =
                |order: &Order| matches!(order, Order::Mirrored { id: of, .. } if *of == id);
            let at = self.orders.iter().position(is_it);
            if let Some(Order::Mirrored { outcome, .. }) = at.and_then(|at| self.orders.remove(at))
            {
                return outcome.map(|()| stopped).map_err(Stop::Failed);
            }
            self.turn(Some(deadline), None);
        }
    }

    fn check(&self, id: u32, deadline: Instant) -> Result<(), Stop> {
        if self.is_over || self.orders.iter().any(|order| order.ends(id)) {
            return Err(Stop::Cancelled);
        }
        match Instant::now() < deadline {
            true => Ok(()),
            false => Err(Stop::Failed("it took too long (sync.deadline, sync.timeout)".into())),
        }
    }

    /// Waits until something happens, or until `until`; hears the gateway.
    fn turn(&mut self, until: Option<Instant>, others: Option<[BorrowedFd<'_>; 2]>) {
        let limit = until.map(|at| at.saturating_duration_since(Instant::now()).as_millis() + 1);
        let limit = limit.map_or(PollTimeout::NONE, |ms| {
            u16::try_from(ms).map_or(PollTimeout::MAX, PollTimeout::from)
        });
        let is_said = {
            let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = vec![entry(self.gateway.as_fd())];
            fds.extend(others.into_iter().flatten().map(entry));
            // An interrupted wait is taken up by the caller.
            let _ = poll(&mut fds, limit);
            fds[0].any().unwrap_or(false)
        };
        if is_said {
            self.hear();
        }
    }

    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        match self.gateway.read(&mut buffer) {
            Ok(0) => self.is_over = true,
            Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.is_over = true,
        }
        self.is_over |= self.unread.len() > UNREAD_BYTES_MAX;
        self.sort_lines();
    }

    fn sort_lines(&mut self) {
        let whole = self.unread.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.unread.drain(..whole).collect();
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(order) => self.orders.push_back(order),
                Err(_) => self.is_over = true,
            }
        }
    }

    /// Tells the gateway. One that does not listen is as good as gone.
    fn say(&mut self, news: News) {
        let line = serde_json::to_string(&news).unwrap_or_default();
        if !self.is_over && self.gateway.write_all(format!("{line}\n").as_bytes()).is_err() {
            self.is_over = true;
        }
    }
}

fn failed(what: &str, why: &str) -> Stop {
    let why = if why.is_empty() { "CRIU does not say why" } else { why };
    Stop::Failed(format!("{what} failed: {why}"))
}
