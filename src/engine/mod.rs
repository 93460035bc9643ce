//! The deterministic core: `(now, input) -> outputs`. It reads no clock, socket, thread,
//! environment or hash order; every influence on it is one recordable [`Input`].
//!
//! Grammar: call [`Engine::handle`] with an input, then drain [`Engine::poll_output`]; call it
//! again with [`Input::Timeout`] when the time of [`Engine::poll_timeout`] has come. What comes out
//! never depends on how inputs were batched.

pub mod config;
pub mod event;
pub mod planted;
pub mod time;
mod told_blocks;
mod twins;
mod voice;

mod address;
mod alignment;
mod allowance;
mod bridge;
mod clock;
mod control;
mod cookies;
mod core;
mod ear;
mod expected;
mod flow;
mod flow_table;
mod fragments;
mod half_open;
mod headers;
mod health;
mod leg;
mod limits;
mod neighbour;
mod pack;
mod pairs;
mod probes;
mod ranges;
mod resync;
mod shelf;
mod stream;
#[cfg(test)]
mod tests;

pub use self::core::{Engine, Snapshot};
pub use crate::protocol::framing::is_token;
pub use crate::protocol::rules::Rule;
pub use crate::protocol::{Field, RawReason, RuleName, Rules};
pub use address::{NeighbourState, NeighbourStatus, Network, Served, Source, VipPlan};
pub use config::{EngineConfig, Fence, LagPolicy, Mode, Reprotect, UdpPolicy};
pub use event::{
    DegradedReason, Divergence, DivergenceKind, DropWhy, Event, Evidence, Finding, FlowKey,
    FlowState, HeldWhy, KeptWhy, NotReprotected, OfferOutcome, PackedKey, RejectReason,
    ServerState, ServiceState, Shown, SoloReason,
};
pub use fragments::{Fragments, Reassembly};
pub use stream::Stream;
pub use time::{Duration, Instant};

use crate::wire::{Frame, Mac};

/// One server's identity. The role lives in [`Roles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LegId {
    /// The first server of the configuration.
    A,
    /// The second.
    B,
}

pack::variants!(LegId { A, B });
pack::fields!(Roles { epoch, primary });

impl LegId {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 or 1.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// An attachment of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// Towards the clients.
    Client,
    /// Towards one server.
    Server(LegId),
}

impl Link {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Client, Self::Server(LegId::A), Self::Server(LegId::B)];

    /// 0, 1 or 2.
    pub const fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server(leg) => 1 + leg.index(),
        }
    }
}

/// One service of the gateway; there is one so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u16);

impl pack::Pack for ServiceId {
    fn pack(&self, w: &mut pack::Writer) {
        self.0.pack(w);
    }
    fn unpack(r: &mut pack::Reader<'_>) -> Self {
        Self(pack::Pack::unpack(r))
    }
}

impl pack::Pack for Link {
    fn pack(&self, w: &mut pack::Writer) {
        (self.index() as u8).pack(w);
    }
    fn unpack(r: &mut pack::Reader<'_>) -> Self {
        let index = usize::from(u8::unpack(r));
        Self::ALL.get(index).copied().unwrap_or(Self::Client)
    }
}

impl pack::Pack for Epoch {
    fn pack(&self, w: &mut pack::Writer) {
        self.0.pack(w);
    }
    fn unpack(r: &mut pack::Reader<'_>) -> Self {
        Self(pack::Pack::unpack(r))
    }
}

impl pack::Pack for SyncId {
    fn pack(&self, w: &mut pack::Writer) {
        self.0.pack(w);
    }
    fn unpack(r: &mut pack::Reader<'_>) -> Self {
        Self(pack::Pack::unpack(r))
    }
}

impl pack::Pack for SyncReason {
    fn pack(&self, w: &mut pack::Writer) {
        match *self {
            Self::First => 0u8.pack(w),
            Self::Divergence(flow) => (1u8, flow).pack(w),
            Self::Rejoin => 2u8.pack(w),
            Self::Operator => 3u8.pack(w),
            Self::Periodic => 4u8.pack(w),
        }
    }
    fn unpack(r: &mut pack::Reader<'_>) -> Self {
        match u8::unpack(r) {
            0 => Self::First,
            1 => Self::Divergence(pack::Pack::unpack(r)),
            2 => Self::Rejoin,
            3 => Self::Operator,
            _ => Self::Periodic,
        }
    }
}

/// The version of the server roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Who is primary, in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Grows by one at each role change.
    pub epoch: Epoch,
    /// The primary.
    pub primary: LegId,
}

/// What a link can do, as the driver found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCaps {
    /// Largest IP packet.
    pub mtu: u16,
    /// Takes super-frames.
    pub has_gso: bool,
    /// Completes checksums.
    pub has_csum: bool,
    /// The gateway's own Ethernet address there, if it is to be another one than the engine's.
    pub mac: Option<Mac>,
}

impl Default for LinkCaps {
    fn default() -> Self {
        Self { mtu: 1500, has_gso: false, has_csum: false, mac: None }
    }
}

/// A fact about a link or a server from outside the packet stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The link has its carrier (at the start, or again); also after an interface returned.
    CarrierUp(LinkCaps),
    /// The link lost its carrier.
    CarrierDown,
    /// The interface is gone.
    LinkGone,
    /// The server's process or machine exited (links of servers only).
    Exited,
    /// It runs again, or nobody vouches any more that it does not. That is no sign of life: the
    /// server is judged as if nobody had ever told.
    Running,
}

/// What an operator may ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Change the primary. A planned one waits for nothing and needs both servers equal.
    Failover {
        /// The server to be primary; the other one if none is named.
        to: Option<LegId>,
        /// Roles swap, both servers stay.
        is_planned: bool,
    },
    /// Take a failed server back as backup now (it is still probed first).
    Rejoin(LegId),
    /// Stop promoting by findings.
    Pause,
    /// Promote by findings again.
    Resume,
    /// Make the backup equal now.
    SyncNow,
    /// Take a new configuration; roles and flows stay.
    Reload(Box<EngineConfig>),
}

/// Why a command was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The other server is not there, or not fit.
    NoPeer,
    /// The server named already has that role, or is not failed.
    Already,
    /// The servers are not equal on every flow (planned failover).
    NotEqual,
    /// A sync is under way.
    Busy,
    /// No sync backend is configured.
    NoBackend,
    /// The new configuration changes what cannot change while running.
    NeedsRestart,
}

/// A sync's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncId(pub u32);

/// What a sync backend copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncScope {
    /// Files; each server keeps its own TCP state.
    Content,
    /// Memory and TCP state too.
    Machine,
}

/// Why a sync is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncReason {
    /// The backup has never been equal.
    First,
    /// A flow's answers differ.
    Divergence(FlowKey),
    /// A server is back.
    Rejoin,
    /// The operator asked.
    Operator,
    /// Spaced out, during a storm.
    Periodic,
}

/// A request to make one server equal to the other.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncRequest {
    /// Its number.
    pub id: SyncId,
    /// The roles' version.
    pub epoch: Epoch,
    /// The source.
    pub from: LegId,
    /// The target.
    pub to: LegId,
    /// Why.
    pub reason: SyncReason,
    /// When the engine stops waiting.
    pub deadline: Instant,
}

/// What a backend tells the engine, in this order. The first two and the last step belong to syncs
/// of scope Machine only.
#[derive(Clone, Debug, PartialEq)]
pub enum SyncStep {
    /// What is said to source and target waits from now on, for [`EngineConfig::sync_deadline`] at
    /// most: that they do not answer is not their fault. Only where they are kept from hearing
    /// before they stand still.
    Hushed,
    /// Source and target stand still, and what they said before has been heard. The target is not
    /// touched before [`Output::Overwrite`].
    Frozen,
    /// The target is equal to the source. After a sync of scope Machine both go on from one state;
    /// nothing that was sent to the target before [`SyncStep::Frozen`] reaches it any more, and
    /// nothing that it said before then comes after this.
    TargetReady,
    /// It is not; it goes on as it was.
    Failed {
        /// Why, for people.
        message: String,
    },
    /// It is not, and what it was is gone too: it is as good as dead.
    TargetLost {
        /// Why, for people.
        message: String,
    },
}

/// The constants of a flow that outlive the process (see `flow_constants`), as stored bytes.
pub const FLOW_CONSTANTS_LEN: usize = 104;

/// One record for the state file.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The roles.
    Roles(Roles),
    /// The flow in `slot` has these constants.
    Flow {
        /// Index of the record, below `flows_max`.
        slot: u32,
        /// Opaque bytes, to be given back by [`Input::Restore`].
        constants: [u8; FLOW_CONSTANTS_LEN],
    },
    /// The flow in `slot` is gone.
    Free {
        /// Index of the record.
        slot: u32,
    },
}

/// Everything that may influence the engine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A frame arrived.
    Frame(Link, Frame),
    /// The time of [`Engine::poll_timeout`] has come.
    Timeout,
    /// An operator's command; its outcome is [`Event::CommandDone`] with the same id.
    Command(u64, Command),
    /// A fact about a link or server.
    Signal(Link, Signal),
    /// A backend's report.
    SyncStep(SyncId, SyncStep),
    /// The fence hook ended (only after [`Output::Fence`]).
    Fenced {
        /// The epoch of the request.
        epoch: Epoch,
        /// Whether the hook succeeded.
        ok: bool,
    },
    /// What an earlier process left in the state file; only as the very first input.
    Restore(Vec<Record>),
}

/// What the engine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a frame.
    Transmit(Link, Frame),
    /// Something happened.
    Event(Event),
    /// Start a sync.
    Sync(SyncRequest),
    /// Stop waiting for a sync.
    CancelSync(SyncId),
    /// Nobody counts on the target of this sync of scope Machine any more: its state may be
    /// replaced.
    Overwrite(SyncId),
    /// Run the fence hook against this server.
    Fence {
        /// The epoch it belongs to.
        epoch: Epoch,
        /// The server to be fenced.
        server: LegId,
    },
    /// Write a record to the state file before the frames that follow leave.
    Persist(Record),
}

/// One flow, for readers.
#[derive(Clone, Debug)]
pub struct FlowSnapshot {
    /// Who.
    pub key: FlowKey,
    /// State.
    pub state: FlowState,
    /// The leg that serves it.
    pub primary: LegId,
    /// Why it is Solo.
    pub solo: Option<SoloReason>,
    /// Client bytes acknowledged to the client.
    pub request_bytes: u64,
    /// Response bytes released.
    pub response_bytes: u64,
    /// Of these, bytes that both servers said.
    pub verified_bytes: u64,
    /// Bytes held.
    pub held_bytes: u64,
    /// When it began.
    pub opened: Instant,
}

/// The sequence numbers of one byte of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// On the client's link.
    pub client: u32,
    /// On each server's.
    pub legs: [u32; 2],
}

/// The whole, for readers.
#[derive(Clone, Debug)]
pub struct Status {
    /// The service's state.
    pub service: ServiceState,
    /// Who is primary.
    pub roles: Roles,
    /// Each server.
    pub servers: [ServerState; 2],
    /// The service's ports to which each of them refuses connections.
    pub refused_ports: [Vec<u16>; 2],
    /// Whether each of them answers probes, and no client.
    pub unanswering: [bool; 2],
    /// Mode in force.
    pub mode: Mode,
    /// Whether findings are paused.
    pub is_paused: bool,
    /// Flows by state: Opening, Paired, Lagging, Diverged, Solo, TimeWait.
    pub flows: [u32; 6],
    /// Handshakes that clients have not completed.
    pub half_open: u32,
    /// Bytes held by all flows.
    pub held_bytes: u64,
    /// A sync under way.
    pub sync: Option<SyncId>,
    /// In vip addressing: the servers, and the routers towards the clients.
    pub neighbours: Vec<NeighbourStatus>,
}
