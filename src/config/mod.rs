//! The configuration file: TOML in, a validated [`Config`] out.
//!
//! Owns the meaning of every key and its default. Whatever a `Config` holds is valid, so nobody
//! checks it again; a file with mistakes gives all of them at once, each with its line. It reads
//! no host state: whether an interface exists is `doctor`'s and `run`'s question.

mod agent;
mod container;
mod evidence;
mod mirror;
mod parse;
mod problem;
mod qemu;
mod read;
mod show;
mod vip;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use agent::Agent;
pub use container::ContainerBackend;
pub use evidence::{DEFAULT_DIR as DEFAULT_EVIDENCE_DIR, Evidence};
pub use mirror::{MirrorBackend, Tree};
pub use problem::{Problem, Problems};
pub use qemu::{MemoryCopy, QemuBackend};
pub use read::parse_bytes;

pub use crate::observe::describe::Level;

use crate::engine::{
    Duration, EngineConfig, Fence, LagPolicy, LegId, Mode, Reprotect, Rule, Rules, SyncScope,
    UdpPolicy, VipPlan,
};

/// Where the configuration is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/shadowvm/shadowvm.toml";
/// Where the admin socket is when none is named.
pub const DEFAULT_SOCKET: &str = "/run/shadowvm/admin.sock";
/// Where the state file is when none is named.
pub const DEFAULT_STATE_FILE: &str = "/run/shadowvm/state";

/// A validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the gateway does with answers.
    pub mode: Mode,
    /// Names of the interfaces.
    pub links: Links,
    /// What is protected.
    pub service: Service,
    /// The networks, if the servers have addresses of their own (vip addressing).
    pub vip: Option<VipPlan>,
    /// The two servers; the first is behind `links.a`.
    pub servers: [Server; 2],
    /// What the servers' agents have in common.
    pub agent: Agent,
    /// Comparison and holding.
    pub compare: Compare,
    /// State synchronization.
    pub sync: Sync,
    /// Failure detection and promotion.
    pub failover: Failover,
    /// Bounds on memory.
    pub limits: Limits,
    /// Capture file that records every frame of the three links.
    pub record: Option<PathBuf>,
    /// What is left of a divergence or a failover.
    pub evidence: Evidence,
    /// Where flow constants and roles outlive the process.
    pub state_file: PathBuf,
    /// Path of the admin socket.
    pub socket: PathBuf,
    /// Logging.
    pub log: Log,
    /// Whom to become once everything privileged is open.
    pub run_as: Option<RunAs>,
    /// Whether the process is confined to the system calls that it needs.
    pub is_sandboxed: bool,
}

/// Names of the interfaces; all differ. A link to a server that is a virtual machine is `unix:` and
/// the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// Towards the clients.
    pub client: String,
    /// Towards the first server.
    pub a: String,
    /// Towards the second server.
    pub b: String,
}

/// The protected service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, for people.
    pub name: String,
    /// Its addresses: at least one, in clone addressing of different families.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports: at least one, all different.
    pub ports: Vec<u16>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Whether it is primary at the first start.
    pub is_primary: bool,
    /// Its directory, for the backend `mirror`, or beside its container.
    pub tree: Option<Tree>,
    /// Host and port of its agent.
    pub agent: Option<String>,
    /// The file with the number of its container's first process, for the backend `container`.
    pub container: Option<PathBuf>,
}

/// How answers are compared and held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Age of a hold at which it is counted and the gateway probes.
    pub hold_soft: Duration,
    /// Age of a hold at which the lag policy decides; not below `hold_soft`.
    pub hold_hard: Duration,
    /// What happens when one server is late.
    pub on_lag: LagPolicy,
    /// What happens to UDP answers.
    pub udp: UdpPolicy,
    /// Whether the built-in masks apply (`date`).
    pub has_http_defaults: bool,
    /// Whether the built-in masks of FTP apply: texts that are for people.
    pub has_ftp_defaults: bool,
    /// Ports of the service where FTP is spoken, all different.
    pub ftp_ports: Vec<u16>,
    /// Headers masked by the user, lower case, all different.
    pub masked_headers: Vec<String>,
    /// Values that clients return, and that each server calls by a name of its own.
    pub maps: Vec<Rule>,
    /// Whether TLS, SSH and HTTP/2 are recognized and left to the primary.
    pub has_opaque: bool,
    /// Ports of the service that are the primary's alone.
    pub opaque_ports: Vec<u16>,
}

/// How the backup is made equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Who does it; none if nobody.
    pub backend: Option<Backend>,
    /// How long diverged output waits.
    pub deadline: Duration,
    /// Least time between two syncs.
    pub min_gap: Duration,
}

/// Who makes the backup equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A command of the operator.
    Exec(ExecBackend),
    /// The gateway, by the servers' directories.
    Mirror(MirrorBackend),
    /// QEMU: the servers are virtual machines, and are copied whole.
    Qemu(QemuBackend),
    /// CRIU: the servers are process trees, and are copied with their connections, and with their
    /// directories, if they have any.
    Container(ContainerBackend),
}

impl Backend {
    /// What it copies.
    pub fn scope(&self) -> SyncScope {
        match self {
            Self::Exec(_) | Self::Mirror(_) => SyncScope::Content,
            Self::Qemu(_) | Self::Container(_) => SyncScope::Machine,
        }
    }
}

impl Sync {
    /// The mirror of the servers' directories, alone or beside their containers.
    pub fn mirror(&self) -> Option<&MirrorBackend> {
        match self.backend.as_ref()? {
            Backend::Mirror(mirror) => Some(mirror),
            Backend::Container(containers) => containers.files.as_ref(),
            Backend::Exec(_) | Backend::Qemu(_) => None,
        }
    }
}

/// The command that makes the backup equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecBackend {
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// When the command is killed; its success counts until then.
    pub timeout: Duration,
}

/// Failure detection and promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// Whether findings promote by themselves.
    pub is_auto: bool,
    /// Time between two probes.
    pub probe_every: Duration,
    /// Source of probes.
    pub probe_address: Option<IpAddr>,
    /// Whether an HTTP request is part of the probe.
    pub probe_http: bool,
    /// Promotions without hard evidence allowed within `flap_window`.
    pub flap_max: u32,
    /// See `flap_max`.
    pub flap_window: Duration,
    /// Whether connections that one server carries alone get a second one again.
    pub reprotect: Reprotect,
    /// Whether a promotion waits for the fence command.
    pub fence: Fence,
    /// Program and arguments; present exactly if `fence` is not none.
    pub fence_command: Option<Vec<String>>,
    /// When the fence command is killed, which counts as its failure.
    pub fence_timeout: Duration,
}

/// Bounds on memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows tracked at once.
    pub flows_max: usize,
    /// The same of one network (/24, /56).
    pub flows_per_source_max: usize,
    /// Handshakes under way at once that no client has completed.
    pub half_open_max: usize,
    /// The same of one network.
    pub half_open_per_source_max: usize,
    /// Bytes that all flows may hold together.
    pub hold_bytes_max: usize,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Whether standard error gets JSON lines instead of text.
    pub is_json: bool,
    /// The least severe level that is written.
    pub level: Level,
    /// File that gets every role-relevant event as a JSON line.
    pub events: Option<PathBuf>,
}

/// Whom to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// A user by name, with its primary group.
    User(String),
    /// By numbers.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read {}: {source}; name the file with -c FILE, or write a first one with \
         `shadowvm config init`",
        file.display()
    )]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has mistakes.
    #[error("{0}")]
    Wrong(Problems),
}

impl Config {
    /// Reads and validates `file`.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        Self::parse(&text, file).map_err(ConfigError::Wrong)
    }

    /// Validates `text`; `file` is its name in messages.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Problems> {
        parse::parse(text).map_err(|list| Problems { file: file.to_owned(), list })
    }

    /// A commented file to start from: valid, with every default written out.
    pub fn example() -> &'static str {
        include_str!("example.toml")
    }

    /// This configuration as a file with every default written out; [`Config::parse`] reads it
    /// back to the same value.
    pub fn to_toml(&self) -> String {
        show::to_toml(self)
    }

    /// The part that the engine needs.
    pub fn engine(&self) -> EngineConfig {
        let compare = &self.compare;
        let own = compare.masked_headers.iter().map(|header| Rule::mask(header.as_str()));
        let own: Vec<Rule> = own.chain(compare.maps.iter().cloned()).collect();
        // A field that the user has a rule for is his.
        let is_free = |rule: &Rule| own.iter().all(|own| own.header() != rule.header());
        let defaults = Rules::http_defaults().into_iter().filter(is_free);
        let defaults = defaults.filter(|_| compare.has_http_defaults);
        let masks = Rules {
            has_ftp_defaults: compare.has_ftp_defaults,
            ftp_ports: compare.ftp_ports.clone(),
            ..Rules::headers([])
        };
        EngineConfig {
            mode: self.mode,
            addresses: self.service.addresses.clone(),
            vip: self.vip.clone(),
            ports: self.service.ports.clone(),
            server_names: self.servers.each_ref().map(|server| server.name.clone()),
            first_primary: if self.servers[0].is_primary { LegId::A } else { LegId::B },
            on_lag: compare.on_lag,
            udp: compare.udp,
            hold_soft: compare.hold_soft,
            hold_hard: compare.hold_hard,
            rules: defaults.chain(own.iter().cloned()).fold(masks, Rules::and),
            has_opaque: compare.has_opaque,
            opaque_ports: compare.opaque_ports.clone(),
            sync_scope: self.sync.backend.as_ref().map(Backend::scope),
            sync_deadline: self.sync.deadline,
            sync_min_gap: self.sync.min_gap,
            failover_auto: self.failover.is_auto,
            probe_every: self.failover.probe_every,
            probe_address: self.failover.probe_address,
            probe_http: self.failover.probe_http,
            flap_max: self.failover.flap_max,
            flap_window: self.failover.flap_window,
            reprotect: self.failover.reprotect,
            fence: self.failover.fence,
            flows_max: self.limits.flows_max,
            flows_per_source_max: self.limits.flows_per_source_max,
            half_open_max: self.limits.half_open_max,
            half_open_per_source_max: self.limits.half_open_per_source_max,
            hold_bytes_max: self.limits.hold_bytes_max,
        }
    }

    /// The keys in which `new` differs and that only a restart can change.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let backend = self.sync.backend != new.sync.backend;
        let fence = self.failover.fence_command != new.failover.fence_command
            || self.failover.fence_timeout != new.failover.fence_timeout;
        [
            (self.links != new.links, "links"),
            (self.service != new.service, "service"),
            (self.servers != new.servers, "server"),
            (self.agent != new.agent, "agent"),
            (self.vip != new.vip, "network, server.address, service.source"),
            (backend, "sync.backend and the keys of that backend"),
            (fence, "failover.fence_command, failover.fence_timeout"),
            (self.limits != new.limits, "limits"),
            (self.record != new.record, "capture.record"),
            (self.evidence != new.evidence, "evidence"),
            (self.state_file != new.state_file, "state.file"),
            (self.socket != new.socket, "admin.socket"),
            (self.log != new.log, "log"),
            (self.run_as != new.run_as, "run"),
            (self.is_sandboxed != new.is_sandboxed, "security"),
        ]
        .into_iter()
        .filter_map(|(differs, key)| differs.then_some(key))
        .collect()
    }

    /// The server called `name`.
    pub fn server(&self, name: &str) -> Option<LegId> {
        LegId::ALL.into_iter().find(|leg| self.servers[leg.index()].name == name)
    }
}

#[cfg(test)]
mod tests;
