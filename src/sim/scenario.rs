//! One seed expands to one printed [`Scenario`]: hosts, links, connections, faults, the gateway.
//!
//! Swarm testing: each class of faults is on or off per seed, so that runs differ in kind and not
//! only in degree. Fault instants are states of the world ("when the primary is ahead"), byte
//! counts at the clients, or times. Times are microseconds unless the name says otherwise.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::habits::Habits;
use crate::engine::{Fence, LagPolicy, LegId, Rule, Rules, Source};

/// What one direction of a link does to frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipePlan {
    /// Time on the way.
    pub delay_us: u64,
    /// At most this much more; the order stays unless a frame is chosen to be late.
    pub jitter_us: u64,
    /// Lost, per mille.
    pub loss: u64,
    /// Enters a burst of losses, per mille; leaves it with 300 per mille a frame.
    pub burst: u64,
    /// Delivered late, behind others, per mille.
    pub reorder: u64,
    /// Delivered twice, per mille.
    pub dup: u64,
    /// Delivered with one bit wrong, per mille.
    pub corrupt: u64,
    /// Delivered without its end, per mille.
    pub truncate: u64,
    /// Marked as having met congestion (RFC 3168), asked for or not, per mille.
    pub mark: u64,
    /// Delivered with one bit of its data wrong and a right checksum, per mille: bad memory.
    pub alter: u64,
    /// Largest IP packet that passes; the sender of a larger one is told (RFC 1191).
    pub mtu: Option<u16>,
}

impl PipePlan {
    /// Whether it does anything but delay.
    pub fn is_lossy(&self) -> bool {
        self.loss + self.burst + self.corrupt + self.truncate > 0 || self.mtu.is_some()
    }
}

/// One exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestPlan {
    /// Bytes of the request's body.
    pub upload: u32,
    /// Bytes of the answer's body, at least 1.
    pub download: u32,
    /// Which bytes.
    pub content: u32,
    /// Whether a diverged server answers it differently.
    pub is_divergent: bool,
    /// Where, if it does.
    pub flip_at: u32,
    /// How long the client waits before asking.
    pub pause_us: u64,
    /// The answer of HTTP has a value for which each server has one of its own, so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<(u8, u8)>,
    /// The answer of HTTP sets a cookie for which each server has one of its own, so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<(u8, u8)>,
    /// The client returns this one, if it has it by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<Returned>,
}

/// A cookie that a client returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Returned {
    /// The connection and the answer that set it.
    pub by: (u16, u16),
    /// The length of each server's version.
    pub len: (u8, u8),
    /// What the request that it answered had as `content`.
    pub content: u32,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Close {
    /// The client closes when it has everything.
    Client,
    /// The client closes its direction when it has asked everything.
    Half,
    /// The server closes behind the last answer.
    Server,
    /// The client resets in the middle.
    Abort,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnPlan {
    /// Its number, which every request carries.
    pub id: u16,
    /// Which client host.
    pub client: usize,
    /// The client's port.
    pub port: u16,
    /// When it starts; after that connection has ended if one is named.
    pub start_us: u64,
    /// See `start_us`.
    pub after: Option<u16>,
    /// HTTP with a `Date`, or bytes without meaning to the gateway.
    pub is_http: bool,
    /// What is asked.
    pub requests: Vec<RequestPlan>,
    /// Requests under way at once.
    pub pipeline: usize,
    /// How it ends.
    pub close: Close,
    /// The client's receive and send buffers.
    pub buffers: (usize, usize),
    /// The client stops reading after so many bytes, for so long.
    pub read_pause: Option<(usize, u64)>,
}

/// A TCP stack's habits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackPlan {
    /// Largest IP packet.
    pub mtu: usize,
    /// RFC 7323 timestamps: (first value, ticks a second).
    pub timestamps: Option<(u32, u32)>,
    /// Initial sequence numbers at most this far below the wrap.
    pub isn_near_wrap: Option<u32>,
    /// Delayed acks.
    pub ack_delay_us: Option<u64>,
    /// Nagle's algorithm.
    pub nagle: bool,
    /// CUBIC, Reno or no congestion control.
    pub congestion: u8,
    /// On the model with these habits; on smoltcp with the above if nothing.
    pub model: Option<Habits>,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerPlan {
    /// Its stack.
    pub stack: StackPlan,
    /// Receive and send buffers.
    pub buffers: (usize, usize),
    /// Time to think about each request.
    pub think_us: u64,
    /// Written at once, and the pause between.
    pub chunk: Option<(usize, u64)>,
    /// Writes the answer's head in two parts, cut inside the date, with this pause.
    pub split_head_us: Option<u64>,
    /// Stops reading after so many bytes of a connection, for so long.
    pub read_pause: Option<(usize, u64)>,
}

/// Which server a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The primary at that moment.
    Primary,
    /// The backup at that moment.
    Backup,
    /// This one.
    Leg(#[serde(with = "names::Leg")] LegId),
}

/// When a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// At a time.
    At(u64),
    /// When the clients have received so many bytes.
    Bytes(usize),
    /// When the gateway holds the primary's bytes that the backup has not said.
    PrimaryAhead,
    /// The other way round.
    BackupAhead,
    /// When a masked value is said by one server and not by the other.
    InSpan,
    /// When one server has answered the SYN.
    Handshake,
    /// When one server's FIN is held.
    FinHeld,
    /// When the client's window is closed.
    ZeroWindow,
    /// When a server's stream has a hole.
    Hole,
    /// When bytes are held across the wrap of the sequence numbers.
    Wrap,
    /// When a flow is Lagging.
    Lagging,
    /// When a flow is Diverged.
    Diverged,
    /// When both servers stand still for a sync of scope Machine.
    Still,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The server is gone without a word.
    Crash,
    /// The server is gone, and its link loses its carrier.
    CarrierDown,
    /// The server is gone, and its process is reported.
    Exited,
    /// All its sockets end as after SIGKILL: FIN or reset; new SYNs are refused.
    Kill,
    /// The sockets of one connection end; the rest lives.
    KillWorker,
    /// The stack answers, the application does not, for so long; for ever if 0.
    Freeze(u64),
    /// Gone for so long, then back without a memory.
    Reboot(u64),
    /// Nothing passes on the server's link, towards it (true) or from it, for so long.
    Partition { is_inbound: bool, us: u64 },
    /// From here on it answers differently.
    Diverge,
    /// The operator changes the primary.
    Failover { is_planned: bool },
    /// The operator takes the failed server back.
    Rejoin,
    /// The operator asks for a sync.
    Sync,
    /// The operator stops findings, for so long.
    Pause(u64),
    /// The gateway dies and is started again after so long.
    GatewayRestart(u64),
    /// The gateway is not scheduled for so long.
    GatewayStall(u64),
}

impl Fault {
    /// Ends the server for good, or its memory.
    pub fn is_fatal(self) -> bool {
        matches!(
            self,
            Self::Crash | Self::CarrierDown | Self::Exited | Self::Kill | Self::Reboot(_)
        ) || self == Self::Freeze(0)
    }
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// When.
    pub trigger: Trigger,
    /// Where.
    pub target: Target,
    /// What.
    pub fault: Fault,
}

/// How a sync of scope Machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncEnd {
    /// The target is a copy of the source.
    Copied,
    /// The target is what it was.
    Kept,
    /// The target has lost everything.
    Lost,
}

/// A sync backend of scope Machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePlan {
    /// For how long before that nothing is said to either.
    #[serde(default)]
    pub hush_us: u64,
    /// How long both servers stand still, the time for what is on its way aside.
    pub still_us: u64,
    /// How its syncs end, one after the other and from the beginning again; the first one of all,
    /// of two servers that have no connections, succeeds.
    pub ends: Vec<SyncEnd>,
}

/// The gateway's configuration, and what its helpers do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayPlan {
    /// Late answers.
    #[serde(with = "names::Lag")]
    pub on_lag: LagPolicy,
    /// See the engine's configuration.
    pub hold_hard_ms: u64,
    /// See the engine's configuration.
    pub probe_every_ms: u64,
    /// Fencing.
    #[serde(with = "names::Fencing")]
    pub fence: Fence,
    /// Whether its hook succeeds.
    pub is_fence_good: bool,
    /// A sync backend: how long it takes, and whether it succeeds.
    pub sync: Option<(u64, bool)>,
    /// It copies memory and connections too, if both servers are on the model.
    #[serde(default)]
    pub machine: Option<MachinePlan>,
    /// Frames arrive with their checksums unfinished, as from a veth.
    pub has_partial_csum: bool,
    /// First primary.
    #[serde(with = "names::Leg")]
    pub primary: LegId,
    /// It answers SYNs with cookies whenever it can.
    #[serde(default)]
    pub has_cookies: bool,
    /// Connections with one server get a second one again, between two messages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reprotect: bool,
    /// Each server has its own address (vip addressing), and sees these. Not with a sync of scope
    /// Machine: two machines with one memory have one address.
    #[serde(default)]
    pub vip: Option<Seen>,
}

/// Whom the servers see as the source of what clients say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// The clients.
    Clients,
    /// The gateway.
    Gateway,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// It grew from this.
    pub seed: u64,
    /// Links in the order of [`crate::engine::Link::index`], each towards the gateway and away.
    pub links: [[PipePlan; 2]; 3],
    /// Client hosts.
    pub clients: Vec<StackPlan>,
    /// A and B.
    pub servers: [ServerPlan; 2],
    /// Connections.
    pub conns: Vec<ConnPlan>,
    /// Faults.
    pub faults: Vec<FaultPlan>,
    /// The gateway.
    pub gateway: GatewayPlan,
    /// From here on nothing goes wrong any more (what is dead stays dead).
    pub calm_us: u64,
    /// Frames that the gateway may send for each that it got, and on top of that.
    pub cost_max: (u64, u64),
}

impl Scenario {
    /// The pauses that the slower server makes between the pieces of all its answers: the other one
    /// may be faster, and alone without the gateway (us).
    pub fn writing_us(&self) -> u64 {
        let requests = self.conns.iter().flat_map(|c| &c.requests);
        let bytes: u64 = requests.map(|r| u64::from(r.download)).sum();
        let chunks = self.servers.iter().filter_map(|server| server.chunk);
        chunks.map(|(len, us)| bytes / len as u64 * us).max().unwrap_or(0)
    }

    /// Whether a server may answer differently.
    pub fn may_diverge(&self) -> bool {
        self.faults.iter().any(|f| f.fault == Fault::Diverge)
    }

    /// What the gateway is told that may differ.
    pub fn rules(&self) -> Rules {
        let masks = Rules::headers(["date", "x-id"]);
        match self.conns.iter().flat_map(|c| &c.requests).any(|r| r.cookie.is_some()) {
            true => masks.and(Rule::map("set-cookie", Some("S"))),
            false => masks,
        }
    }

    /// How syncs copy memory and connections, if they do.
    pub fn machine(&self) -> Option<&MachinePlan> {
        let is_possible = self.servers.iter().all(|s| s.stack.model.is_some());
        self.gateway.machine.as_ref().filter(|_| is_possible && self.gateway.sync.is_some())
    }

    /// Whom the servers see, in vip addressing.
    pub fn vip(&self) -> Option<Source> {
        let seen = self.gateway.vip.filter(|_| self.machine().is_none())?;
        Some(match seen {
            Seen::Clients => Source::Client,
            Seen::Gateway => Source::Gateway,
        })
    }

    /// Whether a server's bytes may differ, as its answer does or as its memory is bad.
    pub fn may_differ(&self) -> bool {
        self.may_diverge() || self.links.iter().flatten().any(|p| p.alter > 0)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: calm after {} us", self.seed, self.calm_us)?;
        writeln!(f, "  gateway {:?}", self.gateway)?;
        for (name, link) in ["client", "a", "b"].iter().zip(&self.links) {
            writeln!(f, "  link {name}: in {:?}\n  link {name}: out {:?}", link[0], link[1])?;
        }
        for (i, client) in self.clients.iter().enumerate() {
            writeln!(f, "  client {i}: {client:?}")?;
        }
        for (name, server) in ["a", "b"].iter().zip(&self.servers) {
            writeln!(f, "  server {name}: {server:?}")?;
        }
        for conn in &self.conns {
            writeln!(f, "  connection {conn:?}")?;
        }
        for fault in &self.faults {
            writeln!(f, "  fault {fault:?}")?;
        }
        Ok(())
    }
}

/// The engine's own words in a case file: the core knows of no format.
mod names {
    use super::{Deserialize, Fence, LagPolicy, LegId, Serialize};

    #[derive(Serialize, Deserialize)]
    #[serde(remote = "LegId")]
    pub enum Leg {
        A,
        B,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(remote = "LagPolicy")]
    pub enum Lag {
        Available,
        Strict,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(remote = "Fence")]
    pub enum Fencing {
        None,
        Hook,
        Required,
    }
}
