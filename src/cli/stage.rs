//! What `demo`, `lab` and `bench` play on: a world, two embedded servers and the real gateway,
//! each a process of its own, started from this program's file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::copied::Copied;
use crate::admin::client::{self, ClientError};
use crate::admin::types::{Counters, Done, Events, Failover, Nothing, Status};
use crate::engine::{LegId, Source};
use crate::lab::ftp;
use crate::lab::web::PORT;
use crate::lab::world::WorldError;
use crate::lab::{
    Behind, Child, HostId, Io, Program, Topology, World, WorldOptions, sections, sections_behind,
};

/// What this program's file is called inside a world.
const MYSELF: &str = "/proc/self/exe";
/// How long a program may take to be ready.
const READY_WAIT: Duration = Duration::from_secs(10);
/// The event log may be a moment behind what the admin socket tells.
const LOG_WAIT_MAX: Duration = Duration::from_millis(20);
/// Time between two looks at something that tells nobody when it is there.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why the stage is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    #[error(transparent)]
    World(#[from] WorldError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("the gateway: {0}")]
    Gateway(#[from] ClientError),
    #[error("the {0} did not start: {1}")]
    NotReady(&'static str, String),
    #[error("UNAVAILABLE {0}")]
    Unavailable(String),
    #[error("{what} did not happen within {wait:?}{log}")]
    NotSeen { what: String, wait: Duration, log: String },
}

/// An event of the gateway, as in its event log.
pub(super) type Fact = Map<String, Value>;

/// The world with its programs.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) world: Arc<World>,
    dir: PathBuf,
    gateway: Option<Child>,
    servers: [Option<Child>; 2],
    /// The servers are those for so many connections.
    pub(super) crowd: Option<usize>,
    /// The servers are what a sync copies as a whole.
    pub(super) copied: Option<Copied>,
    seen: u64,
    facts: Vec<Fact>,
    /// Bytes of the event log that were read into `facts`.
    log_read: u64,
}

impl Stage {
    /// A world with nothing running in it; files go into `dir`.
    pub(super) fn new(options: &WorldOptions, dir: &Path) -> Result<Self, StageError> {
        let world = Arc::new(World::new(options)?);
        let dir = dir.to_owned();
        let (gateway, servers) = (None, [None, None]);
        let (seen, facts, log_read) = (0, Vec::new(), 0);
        let (crowd, copied) = (None, None);
        Ok(Self { world, dir, gateway, servers, crowd, copied, seen, facts, log_read })
    }

    /// Starts a server and waits until it listens.
    pub(super) fn start_server(&mut self, leg: LegId) -> Result<(), StageError> {
        let program = Program::new(MYSELF).arg("lab-server").stdout(Io::Pipe);
        let program = match self.crowd {
            Some(connections) => program.arg("--crowd").arg(connections.to_string()),
            None => {
                let (wrong, slow) = (self.wrong_file(leg), self.slow_file(leg));
                let program = program.arg("--listen-ftp").arg(format!("[::]:{}", ftp::PORT));
                program.arg("--wrong").arg(wrong).arg("--slow").arg(slow)
            }
        };
        let mut child = self.world.spawn(HostId::Server(leg), program)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let read = BufReader::new(out).read_line(&mut line);
            read.map_err(|source| StageError::Io { what: "waiting for a server", source })?;
        }
        self.servers[leg.index()] = Some(child);
        match line.trim() {
            "ready" => Ok(()),
            _ => Err(StageError::NotReady("server", "it ended at once".into())),
        }
    }

    /// Starts the gateway and waits until its admin socket answers.
    pub(super) fn start_gateway(&mut self, more: &str) -> Result<(), StageError> {
        let write = || -> io::Result<File> {
            std::fs::write(self.config_file(), self.config(more))?;
            File::options().create(true).append(true).open(self.log_file())
        };
        let log = write().map_err(|source| StageError::Io { what: "writing files", source })?;
        let program = Program::new(MYSELF).arg("run").arg("-c").arg(self.config_file());
        let mut gateway = self.world.spawn(HostId::Gateway, program.stderr(Io::File(log)))?;
        let deadline = Instant::now() + READY_WAIT;
        loop {
            let ended = gateway.wait_timeout(LOOK_EVERY);
            if !matches!(ended, Ok(None)) || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
                return Err(StageError::NotReady("gateway", log));
            }
            if self.status().is_ok() {
                self.gateway = Some(gateway);
                return Ok(());
            }
        }
    }

    /// Both servers, the gateway, and the service protected.
    pub(super) fn start_all(&mut self, more: &str) -> Result<(), StageError> {
        for leg in LegId::ALL {
            self.start_server(leg)?;
        }
        self.start_gateway(more)?;
        self.wait_protected(READY_WAIT)
    }

    /// Asks the gateway how it is.
    pub(super) fn status(&self) -> Result<Status, ClientError> {
        client::get(&self.socket(), "/api/v1/status")
    }

    /// What the gateway has counted.
    pub(super) fn counters(&self) -> Result<Counters, ClientError> {
        client::get(&self.socket(), "/api/v1/counters")
    }

    /// Memory that the gateway's process has in use, in bytes.
    pub(super) fn gateway_memory(&self) -> Result<u64, StageError> {
        let gateway = self.gateway.as_ref().ok_or(WorldError::Gone(HostId::Gateway))?;
        let read = gateway.resident_bytes();
        read.map_err(|source| StageError::Io { what: "reading the gateway's memory", source })
    }

    /// Processor time that the gateway, if there is one, and both servers have used so far.
    pub(super) fn cpu_times(&self) -> io::Result<(Option<Duration>, Duration)> {
        let gateway = self.gateway.as_ref().map(Child::cpu_time).transpose()?;
        let servers = self.servers.iter().flatten().map(Child::cpu_time);
        Ok((gateway, servers.sum::<io::Result<Duration>>()?))
    }

    /// Takes a server that was started by others.
    pub(super) fn adopt_server(&mut self, leg: LegId, child: Child) {
        self.servers[leg.index()] = Some(child);
    }

    /// Swaps the roles, if both servers are equal.
    pub(super) fn switch_over(&self) -> Result<Done, ClientError> {
        let wait = 5.0;
        let body = Failover { to: None, planned: true, wait };
        client::post(&self.socket(), "/api/v1/failover", &body, Duration::from_secs_f64(wait))
    }

    /// Asks for a sync.
    pub(super) fn sync_now(&self) -> Result<Done, ClientError> {
        client::post(&self.socket(), "/api/v1/sync", &Nothing {}, Duration::ZERO)
    }

    /// Which server is primary.
    pub(super) fn primary(&self) -> Result<LegId, ClientError> {
        let status = self.status()?;
        let leg = LegId::ALL.into_iter().find(|leg| server_name(*leg) == status.primary);
        leg.ok_or_else(|| ClientError::Broken(format!("no server is `{}`", status.primary)))
    }

    /// All events so far, since they were last forgotten.
    pub(super) fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Lets go of the events so far: with thousands of connections there are very many.
    pub(super) fn forget_facts(&mut self) {
        self.facts = Vec::new();
    }

    /// Reads new events, waiting for at least one for at most `wait`.
    ///
    /// They come from the event log, which forgets none; the admin socket only tells that there
    /// are some.
    pub(super) fn read_facts(&mut self, wait: Duration) -> Result<(), StageError> {
        let wait = wait.min(LOG_WAIT_MAX);
        let path = format!("/api/v1/events?after={}&wait={}", self.seen, wait.as_secs_f64());
        let events: Events = client::get(&self.socket(), &path)?;
        self.seen = events.last;
        self.read_log().map_err(|source| StageError::Io { what: "reading the event log", source })
    }

    fn read_log(&mut self) -> io::Result<()> {
        let mut file = File::open(self.events_file())?;
        file.seek(SeekFrom::Start(self.log_read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may still be on its way.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        self.log_read += whole as u64;
        for line in text[..whole].lines() {
            self.facts.push(serde_json::from_str(line)?);
        }
        Ok(())
    }

    /// Waits for an event after the first `from` of [`Stage::facts`]; its position.
    pub(super) fn wait_fact(
        &mut self,
        from: usize,
        what: &str,
        wait: Duration,
        is_it: impl Fn(&Fact) -> bool,
    ) -> Result<usize, StageError> {
        let deadline = Instant::now() + wait;
        let mut next = from;
        loop {
            if let Some(at) = self.facts[next..].iter().position(&is_it) {
                return Ok(next + at);
            }
            next = self.facts.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.not_seen(what, wait));
            }
            self.read_facts(left)?;
        }
    }

    /// Waits until the gateway's log has a line with these words; the line.
    pub(super) fn wait_log(&self, words: &str, wait: Duration) -> Result<String, StageError> {
        let deadline = Instant::now() + wait;
        loop {
            let log = std::fs::read_to_string(self.log_file());
            let log = log.map_err(|source| StageError::Io { what: "reading the log", source })?;
            let whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.into_iter().find(|line| line.contains(words)) {
                return Ok(line.to_owned());
            }
            if Instant::now() > deadline {
                return Err(self.not_seen(words, wait));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until new connections are protected by two servers.
    pub(super) fn wait_protected(&mut self, wait: Duration) -> Result<(), StageError> {
        let deadline = Instant::now() + wait;
        while !self.status()?.service.is_protected {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.not_seen("protection by two servers", wait));
            }
            self.read_facts(left)?;
        }
        Ok(())
    }

    /// The section that makes a wrong server right.
    pub(super) fn sync_section(&self, leg: LegId) -> String {
        let file = self.wrong_file(leg);
        let command = format!("[\"{MYSELF}\", \"lab-heal\", \"{}\"]", file.display());
        format!("[sync]\nbackend = \"exec\"\ncommand = {command}\ndeadline = \"1s\"\n")
    }

    /// While it is there, this server's answers have a wrong byte.
    pub(super) fn wrong_file(&self, leg: LegId) -> PathBuf {
        self.dir.join(format!("wrong-{}", server_name(leg)))
    }

    /// While it is there, this server is slow.
    pub(super) fn slow_file(&self, leg: LegId) -> PathBuf {
        self.dir.join(format!("slow-{}", server_name(leg)))
    }

    /// The gateway's configuration.
    pub(super) fn config_file(&self) -> PathBuf {
        self.dir.join("shadowvm.toml")
    }

    /// What the gateway said.
    pub(super) fn log_file(&self) -> PathBuf {
        self.dir.join("gateway.log")
    }

    /// The gateway's event log.
    fn events_file(&self) -> PathBuf {
        self.dir.join("events.jsonl")
    }

    /// The folder of the stage's files.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The gateway's admin socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    fn not_seen(&self, what: &str, wait: Duration) -> StageError {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(10).collect();
        let log = tail.into_iter().rev().map(|line| format!("\n  | {line}")).collect();
        StageError::NotSeen { what: what.to_owned(), wait, log }
    }

    fn config(&self, more: &str) -> String {
        let dir = self.dir.display();
        let ports = match self.crowd {
            Some(_) => format!("[{PORT}]"),
            None => format!("[{PORT}, {}]", ftp::PORT),
        };
        let sections = match &self.copied {
            Some(copied) => {
                let behind = Behind { links: copied.links(), lines: copied.lines() };
                sections_behind(&self.world, &behind, &ports)
            }
            None => sections(&self.world, &ports),
        };
        format!(
            "{sections}[admin]\nsocket = \"{dir}/admin.sock\"\n[state]\nfile = \"{dir}/state\"\n\
             [log]\nevents = \"{dir}/events.jsonl\"\n[evidence]\ndir = \"{dir}/evidence\"\n{more}"
        )
    }
}

/// What addresses the servers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Addressing {
    /// Both have the service's
    #[default]
    Clone,
    /// Each its own; they see the clients
    Vip,
    /// Each its own; they see the gateway only
    VipGateway,
}

impl Addressing {
    /// How the hosts are joined.
    pub(super) fn topology(self) -> Topology {
        match self {
            Self::Clone => Topology::Clone,
            Self::Vip => Topology::Vip(Source::Client),
            Self::VipGateway => Topology::Vip(Source::Gateway),
        }
    }

    /// The word of the command line.
    pub(super) fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A server's name, in configuration and events.
pub(super) fn server_name(leg: LegId) -> &'static str {
    match leg {
        LegId::A => "a",
        LegId::B => "b",
    }
}

/// Where the clients of a world find a server.
pub(super) fn target(world: &World, leg: LegId) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(world.service_addresses(leg).0), PORT)
}

/// A world in which the kernel itself forwards to the same servers: the path to compare with.
pub(super) fn routed_stage(dir: &Path) -> Result<Stage, StageError> {
    let options = WorldOptions { topology: Topology::Routed, ..WorldOptions::default() };
    let mut stage = Stage::new(&options, dir)?;
    for leg in LegId::ALL {
        stage.start_server(leg)?;
    }
    Ok(stage)
}
