//! Every observable fact, once. Logs, counters, the event stream and the tests derive from these.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::pack::{Pack, Reader, Writer, fields, variants};
use super::{CommandError, Epoch, LegId, Link, SyncId, SyncReason, time::Duration};
use crate::protocol::{Field, RawReason, RuleName};
use crate::wire::{Malformed, Offset, Vlans};

/// Who a TCP connection is: the client's and the service's address, in one VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The service it belongs to.
    pub service: super::ServiceId,
    /// VLAN ids (outer, inner).
    pub vlan: (Option<u16>, Option<u16>),
    /// The client's address and port.
    pub client: SocketAddr,
    /// The service's address and port.
    pub server: SocketAddr,
}

impl FlowKey {
    /// The VLAN ids of `vlans`.
    pub fn vlan_ids(vlans: Vlans) -> (Option<u16>, Option<u16>) {
        vlans.ids()
    }

    /// The same in little more than half of the room, in the same order.
    pub fn packed(&self) -> PackedKey {
        let id = |id: Option<u16>| id.map_or(0, |id| id + 1).to_be_bytes(); // of twelve bits
        let ip = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let mut bytes = [0; PACKED_KEY];
        let mut rest = &mut bytes[..];
        let mut put = |part: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        };
        put(&self.service.0.to_be_bytes());
        put(&id(self.vlan.0));
        put(&id(self.vlan.1));
        put(&[u8::from(self.client.is_ipv6())]);
        for end in [self.client, self.server] {
            put(&ip(end.ip()));
            put(&end.port().to_be_bytes());
        }
        PackedKey(bytes)
    }
}

/// Bytes of a [`PackedKey`].
const PACKED_KEY: usize = 2 + 4 + 1 + 2 * (16 + 2);

/// A [`FlowKey`] where there are many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackedKey([u8; PACKED_KEY]);

impl From<PackedKey> for FlowKey {
    fn from(PackedKey(bytes): PackedKey) -> Self {
        let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let id = |at| number(at).checked_sub(1);
        let end = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&bytes[at..at + 16]);
            let ip = Ipv6Addr::from(octets);
            let ip = match bytes[6] {
                0 => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
                _ => IpAddr::V6(ip),
            };
            SocketAddr::new(ip, number(at + 16))
        };
        let service = super::ServiceId(number(0));
        Self { service, vlan: (id(2), id(4)), client: end(7), server: end(25) }
    }
}

impl std::fmt::Display for FlowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.client, self.server)
    }
}

/// Why a frame was refused. Counted, never fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// Not a packet.
    Malformed(Malformed),
    /// From a server that is fenced, failed or not yet back.
    Fenced,
    /// Of an earlier generation of this 4-tuple, or of this server.
    OldGeneration,
    /// A server's source address on the client link, or the other way round.
    WrongLink,
    /// On the client link, to another host's Ethernet address.
    NotForUs,
    /// From the backup, of a kind of which only the primary's is shown.
    BackupOnly,
    /// Outside what the flow can accept.
    OutOfWindow,
    /// A reset whose number is not exact.
    InexactReset,
    /// A reassembly limit, or an overlap.
    Fragment,
    /// An ICMP error that quotes no packet of a flow.
    IcmpQuote,
    /// An ICMP error that says a network or a host of the servers' side cannot be reached.
    Unreachable,
    /// The answer to one of the gateway's own probes.
    ProbeReply,
    /// Of a kind, or to a port, that cannot be brought to servers with addresses of their own.
    NotServed,
    /// It has no hop left for the way through the gateway.
    HopsUsedUp,
    /// Whoever should take it next does not say where it is.
    NoNeighbour,
    /// All ports of the gateway's own are taken (`source = "gateway"`).
    NoPort,
}

/// A flow's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowState {
    /// The handshake is under way.
    Opening,
    /// Both servers' bytes are compared before release.
    Paired,
    /// The backup is late: the primary's bytes go out first and are verified afterwards.
    Lagging,
    /// The servers' bytes differ; output is held for the sync.
    Diverged,
    /// One server only.
    Solo,
    /// Both ends have closed; kept for late segments.
    TimeWait,
}

/// Why a flow has only one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SoloReason {
    /// There was only one server when it began.
    OneServer,
    /// One server did not answer the handshake, or refused.
    Handshake,
    /// The other server was declared failed.
    ServerFailed,
    /// The other server's connection ended early (reset or FIN).
    EarlyEnd,
    /// The other server was late beyond every limit.
    Lag,
    /// The servers' bytes differed.
    Diverged,
    /// The handshake carried an option that cannot be translated (TCP MD5, TCP-AO).
    AuthOption,
    /// The hold budget was used up when it began.
    Budget,
    /// The backup's content is known to be stale.
    BackupStale,
    /// Taken over from before a restart without its twin.
    Restored,
    /// Its handshake gave way to newer ones before the client had completed it.
    HalfOpen,
    /// Its client's network has too many flows.
    SourceLimit,
    /// What comes next, two equal servers say each in its own way (encryption, FTP that leads
    /// elsewhere, an answer in several ranges).
    Unfollowed,
    /// It is TLS, which two servers never say alike.
    Tls,
    /// It is SSH, which two servers never say alike.
    Ssh,
    /// It is HTTP/2, which is not compared.
    Http2,
    /// It is to a port of `compare.opaque_ports`.
    OpaquePort,
}

/// Why a failover happened (semantics H1 to H4, or the operator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finding {
    /// Hard evidence: exit, carrier, refused connections.
    H1(Evidence),
    /// Silence.
    H2,
    /// The kernel answers, the application does not.
    H3,
    /// One flow only.
    H4,
    /// The operator asked for it.
    Operator,
}

/// The evidence behind an H1 finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// The link lost its carrier.
    Carrier,
    /// The interface is gone.
    LinkGone,
    /// The server process, or machine, exited.
    Exited,
    /// Two SYN probes were refused while the other server accepted.
    Refused,
}

/// A server as the gateway sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerState {
    /// Not heard yet.
    Unknown,
    /// Serving, or able to.
    Up,
    /// Alive but too late to be promoted.
    Unfit,
    /// Declared failed; nothing it says is heard.
    Failed,
    /// Back, its old connections being reset, on probation.
    Returning,
}

/// The service's one visible state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceState {
    /// No server heard yet.
    Starting,
    /// The backup is being made equal.
    Syncing,
    /// New connections are protected by two servers.
    Protected,
    /// One server serves alone.
    Degraded(DegradedReason),
    /// No server.
    Down,
}

/// Why a service is not protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DegradedReason {
    /// The other server is not there, or failed.
    OneServer,
    /// The other server is on probation.
    Returning,
    /// The other server is too late to be promoted.
    BackupUnfit,
    /// The last sync failed: the backup's content is stale.
    SyncFailed,
    /// Too many divergences: syncs are spaced out.
    Storm,
    /// The mode is observe or passthrough.
    Mode,
    /// Paused by the operator.
    Paused,
    /// A server refuses connections to a port, or both do.
    Refused,
    /// A server answers probes, and no client's SYN, or both do.
    Unanswered,
}

/// What became of an offer of a data connection (FTP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfferOutcome {
    /// The connection is expected.
    Believed,
    /// It names another address than the service's.
    ForeignAddress,
    /// Its port belongs to a service.
    PortTaken,
    /// Too many are expected.
    Full,
}

/// A proof that the servers differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The first position at which they differ.
    pub at: Offset,
    /// What differs.
    pub kind: DivergenceKind,
    /// What of the message it belongs to, where a protocol is followed.
    pub field: Option<Field>,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DivergenceKind {
    /// A byte: (A's, B's).
    Byte(u8, u8),
    /// One server's stream goes on where the other's ended in good order.
    Length,
}

/// How far a client was shown its connection, in the numbers of its own link: what an observer of
/// that link needs to tell what came before an event from what came after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The next number of the response, a FIN counted.
    pub seq: u32,
    /// The highest number of the request acknowledged.
    pub ack: u32,
    /// The right edge of the window granted.
    pub edge: u32,
}

/// Why a server is told a value that another one gave the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeptWhy {
    /// It has heard a part of it, or the client did not go on with it.
    Late,
    /// More are on their way than can be kept.
    Full,
}

/// Why a pair of values is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropWhy {
    /// There were too many.
    Displaced,
    /// Nobody has used it for too long.
    Expired,
    /// The server that had a value of its own has the other one's now.
    Copied,
}

/// Why a flow with one server did not get a second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotReprotected {
    /// The server refuses the connection.
    Refused,
    /// It does not answer.
    Silent,
    /// The connection is being closed.
    Ended,
    /// More was said meanwhile than is kept for a server that has still to hear it.
    Overtaken,
    /// Its first answer is another one: it may not know a session that began without it.
    Differs,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A SYN was answered with a cookie: nothing is kept of it.
    CookieGiven {
        /// Whose.
        flow: FlowKey,
    },
    /// A client has come back with a cookie.
    CookieTaken {
        /// Its flow.
        flow: FlowKey,
    },
    /// Cookies are given from now on, or no more.
    CookiesTurned {
        /// Whether they are.
        on: bool,
        /// Handshakes under way.
        half_open: u32,
    },
    /// A frame was refused.
    Rejected { link: Link, reason: RejectReason },
    /// A flow began.
    FlowOpened { flow: FlowKey },
    /// A flow changed its state. `primary` is the leg that serves it. What the client was shown
    /// beyond `shown` obeys the new state, what lies before it obeyed the old one.
    FlowChanged {
        flow: FlowKey,
        from: FlowState,
        to: FlowState,
        primary: LegId,
        solo: Option<SoloReason>,
        shown: Shown,
    },
    /// A flow is gone.
    FlowClosed { flow: FlowKey, last: FlowState, released: u64, verified: u64, was_reset: bool },
    /// A connection passes untouched to the primary.
    Unprotected { flow: FlowKey, reason: SoloReason },
    /// Response bytes were released: `verified` by both servers, the rest said by one.
    /// `waited` is how long the first copy waited for the second.
    Released { flow: FlowKey, verified: u32, unverified: u32, waited: Duration },
    /// A span that a rule allows to differ did differ.
    MaskHit { flow: FlowKey, rule: RuleName, at: Offset, len: u32 },
    /// Both servers have given the client a value for what `rule` maps: it was shown one of them,
    /// and what the other one calls it is remembered.
    PairNoted { flow: FlowKey, rule: RuleName, at: Offset },
    /// The client returned such a value, and this server is told its own.
    ValueReplaced { flow: FlowKey, to: LegId, rule: RuleName, at: Offset },
    /// The same, but this server is told what the client says.
    ValueKept { flow: FlowKey, to: LegId, rule: RuleName, at: Offset, why: KeptWhy },
    /// The client said what one reader takes for such a value and another one does not: the servers
    /// are told what it says.
    ValueDoubtful { flow: FlowKey },
    /// What the client says from here on are no requests that everybody reads alike: no such value
    /// is looked for any more.
    ReturnsUnread { flow: FlowKey, why: RawReason },
    /// Pairs were forgotten.
    PairsDropped { why: DropWhy, count: u32 },
    /// The process that knew them has ended; how many there were nobody knows.
    PairsLost,
    /// The flow's protocol is not followed any more: from here on its bytes are compared as they
    /// are, and no rule applies.
    ComparedRaw { flow: FlowKey, why: RawReason },
    /// A data connection (FTP) is to come, as was said on a control connection: at this port, which
    /// the client was shown, or at which it waits for the servers itself.
    DataOffered { flow: FlowKey, port: u16, outcome: OfferOutcome },
    /// One server's part of a flow ended early and it goes on with the other.
    EarlyEnd { flow: FlowKey, loser: LegId },
    /// A hold grew older than hold_soft.
    HoldSoft { flow: FlowKey, waiting_for: LegId },
    /// A hold grew older than hold_hard and went to the lag policy.
    HoldHard { flow: FlowKey, waiting_for: LegId },
    /// The servers' answers differ.
    Diverged { flow: FlowKey, divergence: Divergence },
    /// A flow was reset: by all that served it, or because no server could carry it on.
    FlowReset { flow: FlowKey, by_servers: bool },
    /// The gateway resent request bytes to a server that had lost them.
    RequestResent { flow: FlowKey, to: LegId, bytes: u32 },
    /// A flow that one server carried alone has two again, from a message boundary on.
    Reprotected { flow: FlowKey, server: LegId },
    /// A flow that one server carries alone asked this one to take part, in vain.
    NotReprotected { flow: FlowKey, server: LegId, why: NotReprotected },
    /// A server changed its state.
    ServerChanged { server: LegId, from: ServerState, to: ServerState },
    /// A server refuses connections to this port now, or accepts them again.
    PortChanged { server: LegId, port: u16, accepted: bool },
    /// The service changed its state.
    ServiceChanged { from: ServiceState, to: ServiceState },
    /// A finding about a server that did not lead to a promotion, and why.
    FindingHeld { server: LegId, finding: Finding, why: HeldWhy },
    /// The other server is primary now.
    Promoted { epoch: Epoch, primary: LegId, finding: Finding, moved: u32, reset: u32 },
    /// The backup is no longer heard: its flows go on with the primary alone.
    Detached { epoch: Epoch, server: LegId, finding: Finding, flows: u32 },
    /// A server is back as backup: new flows pair with it.
    Rejoined { epoch: Epoch, server: LegId },
    /// The gateway itself was not scheduled for this long.
    OwnStall { gap: Duration },
    /// A state sync was asked for.
    SyncStarted { id: SyncId, reason: SyncReason, from: LegId, to: LegId },
    /// Source and target of a sync of scope Machine stand still; nothing of the target counts
    /// until the sync has ended.
    SyncFrozen { id: SyncId, from: LegId, to: LegId },
    /// A state sync ended.
    SyncEnded { id: SyncId, ok: bool, message: String, took: Duration },
    /// A divergence joined a sync that was under way or about to be.
    SyncCoalesced { id: SyncId },
    /// Both servers said the same UDP datagram, or `only` one of them did.
    DatagramJudged { only: Option<LegId> },
    /// A command was carried out, or not.
    CommandDone { id: u64, result: Result<(), CommandError> },
}

/// Why a finding did not promote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeldWhy {
    /// The other server is not fit.
    BackupUnfit,
    /// Too many promotions lately.
    FlapBudget,
    /// `failover.auto` is off.
    Manual,
    /// The required fence hook failed; it is tried again after a pause.
    FenceFailed,
}

fields!(FlowKey { service, vlan, client, server });
variants!(FlowState { Opening, Paired, Lagging, Diverged, Solo, TimeWait });
variants!(SoloReason {
    OneServer,
    Handshake,
    ServerFailed,
    EarlyEnd,
    Lag,
    Diverged,
    AuthOption,
    Budget,
    BackupStale,
    Restored,
    HalfOpen,
    SourceLimit,
    Unfollowed,
    Tls,
    Ssh,
    Http2,
    OpaquePort
});

variants!(ServerState { Unknown, Up, Unfit, Failed, Returning });
variants!(DegradedReason {
    OneServer,
    Returning,
    BackupUnfit,
    SyncFailed,
    Storm,
    Mode,
    Paused,
    Refused,
    Unanswered
});
variants!(Evidence { Carrier, LinkGone, Exited, Refused });
variants!(HeldWhy { BackupUnfit, FlapBudget, Manual, FenceFailed });

impl Pack for ServiceState {
    fn pack(&self, w: &mut Writer) {
        match *self {
            Self::Starting => 0u8.pack(w),
            Self::Syncing => 1u8.pack(w),
            Self::Protected => 2u8.pack(w),
            Self::Down => 3u8.pack(w),
            Self::Degraded(reason) => (4u8, reason).pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match u8::unpack(r) {
            0 => Self::Starting,
            1 => Self::Syncing,
            2 => Self::Protected,
            3 => Self::Down,
            _ => Self::Degraded(Pack::unpack(r)),
        }
    }
}

impl Pack for Finding {
    fn pack(&self, w: &mut Writer) {
        match *self {
            Self::H1(evidence) => (1u8, evidence).pack(w),
            Self::H2 => 2u8.pack(w),
            Self::H3 => 3u8.pack(w),
            Self::H4 => 4u8.pack(w),
            Self::Operator => 5u8.pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match u8::unpack(r) {
            1 => Self::H1(Pack::unpack(r)),
            2 => Self::H2,
            3 => Self::H3,
            4 => Self::H4,
            _ => Self::Operator,
        }
    }
}

impl Pack for PackedKey {
    fn pack(&self, w: &mut Writer) {
        FlowKey::from(*self).pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        FlowKey::unpack(r).packed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_packed_key_is_the_same_key_in_the_same_order(
            a: (u16, bool, [u8; 16], [u8; 16]),
            b: (u16, bool, [u8; 16], [u8; 16]),
            ids in (0u16..4096, proptest::option::of(0u16..4096)),
        ) {
            let key = |(n, is_v4, client, server): (u16, bool, [u8; 16], [u8; 16])| {
                let end = |ip: [u8; 16]| {
                    let ip = match is_v4 {
                        true => IpAddr::from([ip[0], ip[1], ip[2], ip[3]]),
                        false => IpAddr::from(ip),
                    };
                    SocketAddr::new(ip, n)
                };
                let vlan = if n % 2 == 0 { (Some(ids.0), ids.1) } else { (None, None) };
                let service = super::super::ServiceId(n % 3);
                FlowKey { service, vlan, client: end(client), server: end(server) }
            };
            let (a, b) = (key(a), key(b));
            proptest::prop_assert_eq!(FlowKey::from(a.packed()), a);
            proptest::prop_assert_eq!(a.packed().cmp(&b.packed()), a.cmp(&b));
        }
    }
}
