//! Ports of the gateway's own, one for each conversation that the servers see as the gateway's
//! (`source = "gateway"`): the same on both legs, so that a flow has one pair of ends there.
//!
//! A port belongs to one address and port of the service, so each of these has the whole range. A
//! flow keeps its port until it is gone, also beyond the process (it stands in the flow's record);
//! afterwards the port is remembered until somebody needs it, because late segments come, and the
//! same client may come again. What is no flow loses its port when it has been idle for long
//! (RFC 5382 5, RFC 4787 4.3, RFC 5508 3.2). A range that is used up refuses who comes; nobody who
//! has a port loses it.
//!
//! Passing -> Flow <-> Over; Passing -> gone when it is idle, Over -> gone when its port is needed.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;

use crate::engine::event::FlowKey;
use crate::engine::pack::{Pack, Reader, Writer, fields};
use crate::engine::planted::{Bug, on};
use crate::engine::time::{Duration, Instant};
use crate::wire::Talk;

/// The gateway's ports: below those of its probes.
pub const PORTS: Range<u16> = 1024..61_440;
/// Conversations that are no flow.
const PASSING_MAX: usize = 1 << 16;
/// Idle ones are looked for at most this often.
const SWEEP_EVERY: Duration = Duration::from_millis(1000);

const TCP_IDLE: Duration = Duration::from_secs(7440);
const TCP_UNANSWERED: Duration = Duration::from_secs(240);
const UDP_IDLE: Duration = Duration::from_secs(300);
const ECHO_IDLE: Duration = Duration::from_secs(60);

/// A conversation: what is spoken, by which client, with which address and port of the service.
type Key = (Talk, SocketAddr, SocketAddr);

#[derive(Debug, PartialEq)]
enum Kind {
    /// A flow.
    Flow,
    /// A flow that is gone: the how many'th one.
    Over(u64),
    /// No flow.
    Passing { is_answered: bool, used_at: Instant },
}

#[derive(Debug)]
struct Entry {
    port: u16,
    kind: Kind,
}

/// The ports of one address and port of the service.
#[derive(Debug, Default)]
struct Pool {
    /// So many were given for the first time, in turn.
    begun: usize,
    /// Given back, the longest ago first.
    freed: VecDeque<u16>,
    /// The clients of flows that are gone, by when that was.
    over: BTreeMap<u64, SocketAddr>,
}

/// All conversations that have a port.
#[derive(Debug, Default)]
pub struct Sources {
    by_client: BTreeMap<Key, Entry>,
    by_port: BTreeMap<(Talk, SocketAddr, u16), SocketAddr>,
    pools: BTreeMap<(Talk, SocketAddr), Pool>,
    /// Where the turn begins: another process begins elsewhere, and meets fewer connections that
    /// the servers still have with ports of the one before.
    first: usize,
    passing: usize,
    ended: u64,
    swept_at: Option<Instant>,
}

impl Sources {
    /// No conversation yet; `seed` must not be guessed from outside.
    pub fn new(seed: u64) -> Self {
        let first = (seed >> 16) as usize % PORTS.len();
        Self { first, ..Self::default() }
    }

    /// The port of a conversation, which gets one if it has none yet; `None` if all are taken.
    pub fn port(
        &mut self,
        now: Instant,
        talk: Talk,
        client: SocketAddr,
        service: SocketAddr,
    ) -> Option<u16> {
        if let Some(entry) = self.by_client.get_mut(&(talk, client, service)) {
            if let Kind::Passing { used_at, .. } = &mut entry.kind {
                *used_at = now;
            }
            return Some(entry.port);
        }
        if self.passing >= PASSING_MAX {
            self.sweep(now);
        }
        let kind = Kind::Passing { is_answered: false, used_at: now };
        let has_room = self.passing < PASSING_MAX;
        has_room.then(|| self.enter(now, (talk, client, service), kind)).flatten()
    }

    /// The port of a conversation that has one.
    pub fn known(&self, talk: Talk, client: SocketAddr, service: SocketAddr) -> Option<u16> {
        self.by_client.get(&(talk, client, service)).map(|entry| entry.port)
    }

    /// The client whose conversation with `service` has `port`; it has been answered.
    pub fn client(
        &mut self,
        now: Instant,
        talk: Talk,
        service: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        let client = *self.by_port.get(&(talk, service, port))?;
        let entry = self.by_client.get_mut(&(talk, client, service))?;
        if let Kind::Passing { is_answered, used_at } = &mut entry.kind {
            (*is_answered, *used_at) = (true, now);
        }
        Some(client)
    }

    /// Whether one more conversation with `service` would find no port.
    pub fn is_full(&mut self, now: Instant, talk: Talk, service: SocketAddr) -> bool {
        if self.has_free(talk, service) {
            return false;
        }
        self.sweep(now);
        !self.has_free(talk, service)
    }

    /// A flow has begun: its port is its own until [`Self::close`].
    pub fn open(&mut self, now: Instant, flow: &FlowKey) {
        let key = (Talk::Tcp, flow.client, flow.server);
        let Some(entry) = self.by_client.get_mut(&key) else {
            self.enter(now, key, Kind::Flow);
            return;
        };
        match std::mem::replace(&mut entry.kind, Kind::Flow) {
            Kind::Flow => {}
            Kind::Passing { .. } => self.passing -= 1,
            Kind::Over(number) => {
                let pool = self.pools.get_mut(&(Talk::Tcp, flow.server));
                pool.map(|pool| pool.over.remove(&number));
            }
        }
    }

    /// A flow has begun that a server has at another port, as `alias`: there it has the same port
    /// of the gateway's own if that is free, so that one is enough to know after a restart.
    pub fn open_beside(&mut self, now: Instant, flow: &FlowKey, alias: &FlowKey) {
        let port = self.known(Talk::Tcp, flow.client, flow.server);
        if let Some(port) = port {
            self.restore(alias.client, alias.server, port);
        }
        self.open(now, alias);
    }

    /// A flow is gone.
    pub fn close(&mut self, flow: &FlowKey) {
        let key = (Talk::Tcp, flow.client, flow.server);
        let entry = self.by_client.get_mut(&key).filter(|entry| entry.kind == Kind::Flow);
        if let Some(entry) = entry {
            self.ended += 1;
            entry.kind = Kind::Over(self.ended);
            let number = self.ended;
            self.pool(Talk::Tcp, flow.server).over.insert(number, flow.client);
        }
    }

    /// A flow of an earlier process had this port.
    pub fn restore(&mut self, client: SocketAddr, service: SocketAddr, port: u16) {
        let key = (Talk::Tcp, client, service);
        let at = (Talk::Tcp, service, port);
        let is_free = !self.by_client.contains_key(&key) && !self.by_port.contains_key(&at);
        if is_free && PORTS.contains(&port) {
            self.by_port.insert(at, client);
            self.by_client.insert(key, Entry { port, kind: Kind::Flow });
        }
    }

    fn pool(&mut self, talk: Talk, service: SocketAddr) -> &mut Pool {
        self.pools.entry((talk, service)).or_default()
    }

    fn has_free(&self, talk: Talk, service: SocketAddr) -> bool {
        let is_free = |pool: &Pool| {
            pool.begun < PORTS.len() || !pool.freed.is_empty() || !pool.over.is_empty()
        };
        self.pools.get(&(talk, service)).is_none_or(is_free)
    }

    fn enter(&mut self, now: Instant, key: Key, kind: Kind) -> Option<u16> {
        let (talk, client, service) = key;
        if self.is_full(now, talk, service) {
            return None;
        }
        let port = self.take(talk, service)?;
        self.passing += usize::from(matches!(kind, Kind::Passing { .. }));
        self.by_port.insert((talk, service, port), client);
        self.by_client.insert(key, Entry { port, kind });
        Some(port)
    }

    /// A port that nobody has: one that was never given, one given back, or that of the flow which
    /// is gone the longest.
    fn take(&mut self, talk: Talk, service: SocketAddr) -> Option<u16> {
        let mut begun = self.pool(talk, service).begun;
        while begun < PORTS.len() {
            let port = PORTS.start + ((self.first + begun) % PORTS.len()) as u16;
            begun += 1;
            // A restored flow may have it.
            if !self.by_port.contains_key(&(talk, service, port)) || on(Bug::PortShared) {
                self.pool(talk, service).begun = if on(Bug::PortShared) { 0 } else { begun };
                return Some(port);
            }
        }
        let pool = self.pool(talk, service);
        pool.begun = begun;
        if let Some(port) = pool.freed.pop_front() {
            return Some(port);
        }
        let (_, client) = pool.over.pop_first()?;
        let entry = self.by_client.remove(&(talk, client, service))?;
        self.by_port.remove(&(talk, service, entry.port));
        Some(entry.port)
    }

    /// Ends conversations that are no flows and have been idle for long.
    fn sweep(&mut self, now: Instant) {
        if self.swept_at.is_some_and(|at| now.since(at) < SWEEP_EVERY) {
            return;
        }
        self.swept_at = Some(now);
        let is_idle = |(key, entry): &(&Key, &Entry)| match entry.kind {
            Kind::Flow | Kind::Over(_) => false,
            Kind::Passing { is_answered, used_at } => {
                let limit = match (key.0, is_answered) {
                    (Talk::Tcp, true) => TCP_IDLE,
                    (Talk::Tcp, false) => TCP_UNANSWERED,
                    (Talk::Udp, _) => UDP_IDLE,
                    (Talk::Echo, _) => ECHO_IDLE,
                };
                now.since(used_at) >= limit
            }
        };
        let idle: Vec<Key> = self.by_client.iter().filter(is_idle).map(|(key, _)| *key).collect();
        for key in idle {
            let Some(entry) = self.by_client.remove(&key) else { continue };
            let (talk, _, service) = key;
            self.passing -= 1;
            self.by_port.remove(&(talk, service, entry.port));
            self.pool(talk, service).freed.push_back(entry.port);
        }
        // Of a service that nobody speaks to nothing has to be remembered.
        let busy: Vec<(Talk, SocketAddr)> =
            self.by_port.keys().map(|(talk, service, _)| (*talk, *service)).collect();
        self.pools.retain(|key, _| busy.binary_search(key).is_ok());
    }
}

fields!(Entry { port, kind });
fields!(Pool { begun, freed, over });
fields!(Sources { by_client, by_port, pools, first, passing, ended, swept_at });

impl Pack for Kind {
    fn pack(&self, w: &mut Writer) {
        match self {
            Self::Flow => 0u8.pack(w),
            Self::Over(which) => (1u8, *which).pack(w),
            Self::Passing { is_answered, used_at } => (2u8, (*is_answered, *used_at)).pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match u8::unpack(r) {
            0 => Self::Flow,
            1 => Self::Over(Pack::unpack(r)),
            _ => {
                let (is_answered, used_at) = Pack::unpack(r);
                Self::Passing { is_answered, used_at }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ServiceId;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn client(n: u32) -> SocketAddr {
        SocketAddr::from(([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 5000))
    }

    fn service(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 10], port))
    }

    fn flow(n: u32) -> FlowKey {
        let (client, server) = (client(n), service(80));
        FlowKey { service: ServiceId::default(), vlan: (None, None), client, server }
    }

    /// Both tables say the same, and no port is given twice.
    fn check(all: &Sources) {
        assert_eq!(all.by_client.len(), all.by_port.len());
        for ((talk, client, service), entry) in &all.by_client {
            assert_eq!(all.by_port.get(&(*talk, *service, entry.port)), Some(client));
        }
        let is_passing = |entry: &&Entry| matches!(entry.kind, Kind::Passing { .. });
        assert_eq!(all.passing, all.by_client.values().filter(is_passing).count());
        let over = all.by_client.values().filter(|entry| matches!(entry.kind, Kind::Over(_)));
        assert_eq!(over.count(), all.pools.values().map(|pool| pool.over.len()).sum::<usize>());
    }

    #[test]
    fn a_conversation_keeps_its_port_and_it_leads_back() {
        let mut all = Sources::default();
        let tcp = all.port(at(0), Talk::Tcp, client(1), service(80)).expect("a port");
        let other = all.port(at(0), Talk::Tcp, client(2), service(80)).expect("a port");
        let udp = all.port(at(0), Talk::Udp, client(1), service(80)).expect("a port");
        assert_ne!(tcp, other);
        assert_eq!(tcp, udp, "each service has its own range");
        assert_eq!(all.port(at(9), Talk::Tcp, client(1), service(80)), Some(tcp));
        assert_eq!(all.client(at(9), Talk::Tcp, service(80), tcp), Some(client(1)));
        assert_eq!(all.client(at(9), Talk::Tcp, service(81), tcp), None);
        check(&all);
    }

    #[test]
    fn a_range_that_is_used_up_refuses_and_takes_from_nobody() {
        let mut all = Sources::default();
        for n in 0..PORTS.len() as u32 {
            all.open(at(0), &flow(n));
        }
        assert!(all.is_full(at(1), Talk::Tcp, service(80)));
        assert_eq!(all.port(at(10_000), Talk::Tcp, client(99_999), service(80)), None);
        assert!(!all.is_full(at(1), Talk::Tcp, service(81)), "another service has its own");
        let freed = all.known(Talk::Tcp, client(7), service(80)).expect("a port");
        all.close(&flow(7));
        check(&all);
        assert_eq!(all.port(at(10_001), Talk::Tcp, client(99_999), service(80)), Some(freed));
        assert_eq!(all.known(Talk::Tcp, client(7), service(80)), None);
        check(&all);
    }

    #[test]
    fn what_is_idle_gives_its_port_back_and_a_flow_does_not() {
        let mut all = Sources::default();
        all.open(at(0), &flow(0));
        for n in 1..PORTS.len() as u32 {
            all.port(at(0), Talk::Tcp, client(n), service(80));
        }
        assert!(all.is_full(at(200), Talk::Tcp, service(80)));
        assert!(!all.is_full(at(300), Talk::Tcp, service(80)), "nobody has answered them");
        assert!(all.known(Talk::Tcp, client(0), service(80)).is_some());
        assert_eq!(all.by_client.len(), 1);
        check(&all);
    }

    #[test]
    fn a_port_given_back_is_given_again_as_late_as_can_be() {
        let mut all = Sources::default();
        all.open(at(0), &flow(0));
        let first = all.known(Talk::Tcp, client(0), service(80)).expect("a port");
        all.close(&flow(0));
        for n in 1..PORTS.len() as u32 {
            all.open(at(0), &flow(n));
            assert_ne!(all.known(Talk::Tcp, client(n), service(80)), Some(first));
        }
        all.open(at(0), &flow(1 << 20));
        assert_eq!(all.known(Talk::Tcp, client(1 << 20), service(80)), Some(first));
        check(&all);
    }

    #[test]
    fn who_comes_again_has_the_port_that_it_had() {
        let mut all = Sources::default();
        all.open(at(0), &flow(1));
        let port = all.known(Talk::Tcp, client(1), service(80));
        all.close(&flow(1));
        check(&all);
        assert_eq!(all.port(at(1), Talk::Tcp, client(1), service(80)), port, "a late segment");
        all.open(at(2), &flow(1));
        assert_eq!(all.known(Talk::Tcp, client(1), service(80)), port);
        check(&all);
    }

    #[test]
    fn a_restored_flow_has_its_port_again() {
        let mut all = Sources::default();
        all.restore(client(1), service(80), 1030);
        all.restore(client(2), service(80), 1030); // a record that cannot be
        all.restore(client(3), service(80), 80);
        assert_eq!(all.by_client.len(), 1);
        all.open(at(0), &flow(1));
        assert_eq!(all.client(at(0), Talk::Tcp, service(80), 1030), Some(client(1)));
        for n in 10..30 {
            let port = all.port(at(0), Talk::Tcp, client(n), service(80));
            assert_ne!(port, Some(1030));
        }
        all.close(&flow(1));
        check(&all);
    }
}
