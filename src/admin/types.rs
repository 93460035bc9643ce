//! What `/api/v1` says and takes. These types are the contract: fields are added, never renamed
//! and never removed.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Seconds since the program started.
    pub uptime_seconds: f64,
    /// Whether the process may make only the system calls that it needs (security.sandbox).
    #[serde(default)]
    pub is_sandboxed: bool,
    /// The service.
    pub service: Service,
    /// Mode in force: protect, observe or passthrough.
    pub mode: String,
    /// Whether failing over by findings is paused.
    pub is_paused: bool,
    /// The roles' version.
    pub epoch: u32,
    /// Name of the primary.
    pub primary: String,
    /// Both servers, in the order of the configuration.
    pub servers: Vec<Server>,
    /// Connections by state.
    pub flows: FlowCounts,
    /// Why those with one server have no second one, the most frequent reason first.
    #[serde(default)]
    pub unprotected: Vec<Unprotected>,
    /// Bytes held by all flows.
    pub held_bytes: u64,
    /// What the driver counted on the links `client`, `a` and `b`.
    pub links: std::collections::BTreeMap<String, LinkCounts>,
    /// Number of the sync under way.
    pub sync: Option<u32>,
    /// In vip addressing: the servers and the routers towards the clients; empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
    /// How long released bytes waited for the second server.
    pub release_wait: WaitTimes,
    /// What was left of divergences and failovers; none if nothing is to be.
    #[serde(default)]
    pub evidence: Option<Evidence>,
}

/// What was left of divergences and failovers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Where.
    pub dir: std::path::PathBuf,
    /// Files written.
    pub written: u64,
    /// Not written: no room, no directory, too many at once. The log says why.
    pub lost: u64,
}

/// The service's one visible state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its protected ports.
    pub ports: Vec<u16>,
    /// starting, syncing, protected, degraded or down.
    pub state: String,
    /// Why it is degraded.
    pub reason: Option<String>,
    /// Whether new connections are protected by two servers.
    pub is_protected: bool,
    /// UNIX time of the last change, in seconds; none if there was none.
    pub changed_at: Option<f64>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Which link: a or b.
    pub leg: String,
    /// Interface towards it.
    pub interface: String,
    /// primary or backup.
    pub role: String,
    /// unknown, up, unfit, failed or returning.
    pub state: String,
    /// The service's ports to which it refuses connections.
    #[serde(default)]
    pub refused_ports: Vec<u16>,
    /// Whether it answers probes, and no client.
    #[serde(default)]
    pub is_unanswering: bool,
    /// Its agent, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
}

/// The agent beside a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Host, or address, and port.
    pub address: String,
    /// Whether the gateway is connected to it.
    pub is_connected: bool,
    /// How the service is, as the agent sees it, or why there is no connection.
    pub text: String,
}

/// A host that the configuration names, on one of the links.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Which link: client, a or b.
    pub link: String,
    /// Its IP address.
    pub address: String,
    /// unknown (not needed yet), resolving, resolved or failed.
    pub state: String,
    /// Its Ethernet address.
    pub mac: Option<String>,
    /// Seconds since it has answered, or was asked for, or was given up.
    pub for_seconds: Option<f64>,
}

/// Connections by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// In the handshake.
    pub opening: u32,
    /// Compared before release.
    pub paired: u32,
    /// Compared after release: the backup is late.
    pub lagging: u32,
    /// Held: the servers differ.
    pub diverged: u32,
    /// With one server.
    pub solo: u32,
    /// Closed by both ends.
    pub time_wait: u32,
    /// Of all these, those whose client has not completed the handshake.
    #[serde(default)]
    pub half_open: u32,
    /// Of all these, those to which no rule of comparison applies any more: what they say could be
    /// read in two ways, or is not the protocol that the rules are for.
    #[serde(default)]
    pub raw: u32,
}

/// Connections with one server, for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unprotected {
    /// The reason's name, as in the flows and counters.
    pub reason: String,
    /// The reason in words.
    pub text: String,
    /// How many they are.
    pub flows: u32,
}

/// How long released bytes waited, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaitTimes {
    /// Releases.
    pub count: u64,
    /// Median.
    pub p50_seconds: f64,
    /// 99th percentile.
    pub p99_seconds: f64,
    /// Longest.
    pub max_seconds: f64,
}

/// What the driver counted on one link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkCounts {
    /// Frames received; a super-frame counts once.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent; a super-frame counts once.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that the kernel dropped because they were not taken in time.
    pub kernel_drops: u64,
    /// Frames with a virtio header that says nothing.
    pub bad_headers: u64,
    /// Frames that did not fit into the queue of a link that takes none.
    pub queue_drops: u64,
    /// Frames of a virtual machine that is not attached any more, or not yet.
    #[serde(default)]
    pub late_frames: u64,
    /// Frames refused by the kernel, by the name of the error.
    pub send_errors: std::collections::BTreeMap<String, u64>,
}

/// `GET /api/v1/flows?limit=N`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    /// Connections there are.
    pub total: usize,
    /// The first of them, in the order of their addresses.
    pub flows: Vec<Flow>,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The client's address and port.
    pub client: String,
    /// The service's address and port.
    pub server: String,
    /// VLAN ids, outer first; empty without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<u16>,
    /// opening, paired, lagging, diverged, solo or time_wait.
    pub state: String,
    /// Name of the server that serves it, once that is known.
    pub primary: Option<String>,
    /// Why it has one server.
    pub solo: Option<String>,
    /// Why no rule of comparison applies to it any more; absent where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
    /// Response bytes that both servers had said.
    pub verified_bytes: u64,
    /// Response bytes that one had said.
    pub unverified_bytes: u64,
    /// Seconds since it was first seen.
    pub age_seconds: f64,
}

/// `GET /api/v1/counters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Every series.
    pub counters: Vec<Counter>,
    /// How long released bytes waited for the second server.
    pub release_wait: WaitTimes,
}

/// One series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    /// Name, as in `/metrics`.
    pub name: String,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Value since the start.
    pub value: f64,
}

/// `GET /api/v1/rules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Those in force.
    pub rules: Vec<Rule>,
    /// Those that could be made.
    pub suggestions: Vec<Suggestion>,
    /// Pairs of values that are remembered: what one server calls what the other one gave a client.
    #[serde(default)]
    pub pairs: u64,
}

/// A rule of comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Of which protocol.
    pub protocol: String,
    /// The header field, lower case, or what the protocol has instead.
    pub header: String,
    /// What is meant in it, if not all of it: the name of a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does: mask, list (the order differs, nothing else) or map.
    pub action: String,
    /// Values that differed.
    pub hits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Values that clients returned, and a server was told its own for.
    #[serde(default)]
    pub replaced: u64,
}

/// A header field in which the servers differ again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The field, lower case.
    pub header: String,
    /// The cookie that it sets, if that differs: a rule would map it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// In so many connections.
    pub connections: u64,
}

/// `GET /api/v1/events?after=N&wait=SECONDS`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// Number of the latest event; ask for what comes `after` it next.
    pub last: u64,
    /// Events, oldest first.
    pub events: Vec<NumberedEvent>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumberedEvent {
    /// Its number, counted from 1.
    pub number: u64,
    /// What happened, as in the event log.
    #[serde(flatten)]
    pub event: serde_json::Map<String, serde_json::Value>,
}

/// Body of `POST /api/v1/failover`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failover {
    /// The server to be primary; the other one if none is named.
    pub to: Option<String>,
    /// Swap roles, and only if both servers are equal.
    pub planned: bool,
    /// Seconds to go on trying while the servers are not equal or a sync is under way.
    pub wait: f64,
}

/// Body of `POST /api/v1/rejoin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejoin {
    /// The server to be taken back.
    pub server: String,
}

/// Body of the requests without parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nothing {}

/// Answer to a command that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The command's number, as in its event.
    pub command: u64,
    /// The roles' version afterwards.
    pub epoch: u32,
    /// Name of the primary afterwards.
    pub primary: String,
}

/// RFC 9457 problem details.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem, as a relative URI.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
    /// The kind as one word.
    pub code: String,
}
