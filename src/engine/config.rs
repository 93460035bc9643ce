//! What the engine needs to know, already validated, and every tuned value in one place.

use std::net::IpAddr;

use super::address::{Source, VipPlan};
use super::limits;
use super::time::Duration;
use crate::protocol::returned::Returned;
use crate::protocol::{Normalizer, Rules};

/// What the gateway does with answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Hold until both servers agree.
    #[default]
    Protect,
    /// Compare, never hold: the primary's bytes go out at once.
    Observe,
    /// The primary only, untouched; nothing is mirrored.
    Passthrough,
}

/// What happens when the backup is late beyond `hold_hard` (not when it differs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LagPolicy {
    /// Release the primary's bytes; the flow is Lagging until the backup has caught up.
    #[default]
    Available,
    /// Hold until the backup is declared failed.
    Strict,
}

/// Whether a connection that one server carries alone gets a second one again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reprotect {
    /// It stays with the one until it is closed.
    #[default]
    Never,
    /// Between two messages of HTTP/1.1 the gateway makes a handshake with the other server.
    Idle,
}

/// What happens to the servers' UDP datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpPolicy {
    /// The primary's leave at once; whether the backup says the same is counted.
    #[default]
    PrimaryFirst,
    /// The primary's wait up to 50 ms until the backup has said the same.
    Strict,
}

/// Whether a failover waits for the old primary to be fenced from shared storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fence {
    /// The gateway itself is the fence.
    #[default]
    None,
    /// A hook runs beside the failover.
    Hook,
    /// The hook has to succeed before the backup is promoted.
    Required,
}

/// The engine's configuration.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// What the gateway does with answers.
    pub mode: Mode,
    /// Addresses of the service: in clone addressing at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The networks of vip addressing; none in clone addressing. What it serves are `addresses`.
    pub vip: Option<VipPlan>,
    /// TCP ports that are protected.
    pub ports: Vec<u16>,
    /// Names of server A and B, for events.
    pub server_names: [String; 2],
    /// The server that is primary at the start.
    pub first_primary: super::LegId,
    /// Late answers.
    pub on_lag: LagPolicy,
    /// Answers of UDP services.
    pub udp: UdpPolicy,
    /// A hold older than this is counted and makes the gateway probe.
    pub hold_soft: Duration,
    /// A hold older than this is handed to the lag policy.
    pub hold_hard: Duration,
    /// Connections that one server carries alone.
    pub reprotect: Reprotect,
    /// What may differ; `date` of HTTP is among it unless the user took it out.
    pub rules: Rules,
    /// Whether protocols that two servers never say alike are told by their first bytes, and left
    /// to the primary.
    pub has_opaque: bool,
    /// Ports of the service whose flows are the primary's alone.
    pub opaque_ports: Vec<u16>,
    /// Whether a state-sync backend is configured, and its scope.
    pub sync_scope: Option<super::SyncScope>,
    /// How long diverged output waits for the backend.
    pub sync_deadline: Duration,
    /// Least time between two syncs.
    pub sync_min_gap: Duration,
    /// Whether findings promote by themselves.
    pub failover_auto: bool,
    /// Time between two probes.
    pub probe_every: Duration,
    /// Source of probes in clone addressing; the last client heard if none.
    pub probe_address: Option<IpAddr>,
    /// Whether H3 probes with an HTTP request.
    pub probe_http: bool,
    /// Promotions allowed within `flap_window` without hard evidence.
    pub flap_max: u32,
    /// See `flap_max`.
    pub flap_window: Duration,
    /// Fencing of shared storage.
    pub fence: Fence,
    /// Most flows tracked at once; beyond it new ones pass unprotected, counted.
    pub flows_max: usize,
    /// Handshakes under way at once that no client has completed: from a quarter of it on SYNs are
    /// answered with cookies, beyond it the oldest gives way.
    pub half_open_max: usize,
    /// The same of one network (/24 of IPv4, /56 of IPv6).
    pub half_open_per_source_max: usize,
    /// Most flows of one network; beyond it new ones pass unprotected, counted.
    pub flows_per_source_max: usize,
    /// Bytes that all flows may hold together.
    pub hold_bytes_max: usize,
}

impl EngineConfig {
    /// The address of the service that `leg`'s server serves at `address`; any other stays itself.
    pub fn service_address(&self, leg: super::LegId, address: IpAddr) -> IpAddr {
        let served = self.vip.as_ref().and_then(|plan| plan.service_of(leg, address));
        served.unwrap_or(address)
    }

    /// Whether servers know clients by their own addresses, and may connect to them.
    pub fn shows_clients(&self) -> bool {
        self.vip.as_ref().is_none_or(|plan| plan.source == Source::Client)
    }

    /// Whoever reads a new flow with the service's `port`; of a data connection everything is
    /// content.
    pub fn reader(&self, port: u16) -> Option<Box<dyn Normalizer>> {
        self.ports.contains(&port).then(|| self.rules.reader(port)).flatten()
    }

    /// Whoever looks for values that clients return in a new flow with the service's `port`.
    pub fn listener(&self, port: u16) -> Option<Returned> {
        self.ports.contains(&port).then(|| self.rules.listener(port)).flatten()
    }

    /// A reader for a flow in which nothing is under way, and `bytes` are what the client says
    /// next.
    pub fn reader_from(&self, port: u16, bytes: &[u8]) -> Option<Box<dyn Normalizer>> {
        self.ports.contains(&port).then(|| self.rules.reader_from(port, bytes)).flatten()
    }
}

impl EngineConfig {
    /// How long one server's SYN-ACK waits for the other's. Who lets servers be late means their
    /// handshakes, too.
    pub fn synack_hold(&self) -> Duration {
        (self.hold_hard * 2 / 3).clamp(limits::SYNACK_HOLD, limits::SYNACK_HOLD_MAX)
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Protect,
            addresses: Vec::new(),
            vip: None,
            ports: vec![80],
            server_names: ["a".into(), "b".into()],
            first_primary: super::LegId::A,
            on_lag: LagPolicy::Available,
            udp: UdpPolicy::PrimaryFirst,
            hold_soft: Duration::from_millis(20),
            hold_hard: Duration::from_millis(150),
            reprotect: Reprotect::Never,
            rules: Rules::default(),
            has_opaque: true,
            opaque_ports: Vec::new(),
            sync_scope: None,
            sync_deadline: Duration::from_millis(150),
            sync_min_gap: Duration::from_millis(200),
            failover_auto: true,
            probe_every: Duration::from_millis(10),
            probe_address: None,
            probe_http: false,
            flap_max: 2,
            flap_window: Duration::from_secs(60),
            fence: Fence::None,
            flows_max: 1 << 17,
            half_open_max: 1 << 16,
            half_open_per_source_max: 1 << 13,
            flows_per_source_max: 1 << 17,
            hold_bytes_max: 1 << 30,
        }
    }
}
