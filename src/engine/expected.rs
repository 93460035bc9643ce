//! Data connections of FTP that are to come: where the servers have said, on a control connection,
//! that they listen, or where the client has, and the servers are to call. Bounded, and each for
//! one connection and a minute.
//!
//! Only the client of the control connection may come, and only to the service itself; only to that
//! client may the servers: who names somebody else, or a port that has another meaning, is not
//! believed (RFC 2577 3). Where the servers call, the first SYN waits here for the other one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::event::{FlowKey, OfferOutcome, PackedKey};
use super::pack::{Pack, Reader, Writer, fields};
use super::time::{Duration, Instant};
use super::{EngineConfig, LegId};
use crate::wire::Frame;

/// How long a connection is waited for: as long as common servers wait.
const KEPT: Duration = Duration::from_millis(60_000);
/// Connections that are waited for.
const EXPECTED_MAX: usize = 1 << 14;
/// The same of one control connection: beyond it the oldest is forgotten.
const PER_CONTROL_MAX: usize = 8;
/// The lowest port that is not a service's own.
pub const PORT_MIN: u16 = 1024;

/// What the servers have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The address, if they say one: that of the service, or it is not believed.
    pub address: Option<IpAddr>,
    /// The port that the client is shown.
    pub shown: u16,
    /// Where each server listens; none if it is not known, or takes no part.
    pub ports: [Option<u16>; 2],
}

/// Servers that are to connect to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Where it listens.
    pub client: SocketAddr,
    /// Who was told so.
    pub legs: [bool; 2],
}

/// A connection that the servers have begun.
#[derive(Debug)]
pub struct Begun {
    /// On which one it was agreed.
    pub control: FlowKey,
    /// Who has called.
    pub syns: [Option<Frame>; 2],
    /// Without this one, which was to call, too.
    pub late: Option<LegId>,
}

/// What became of the SYN of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nobody has announced it.
    Unannounced,
    /// The connection has begun without it.
    TooLate,
    /// It waits for the other server's.
    Waits,
    /// Everybody has called.
    All,
}

#[derive(Debug)]
struct Entry {
    who: Awaited,
    control: PackedKey,
    until: Instant,
}

/// Who is to begin.
#[derive(Debug)]
enum Awaited {
    /// The client, where each server listens.
    Client([Option<u16>; 2]),
    /// The servers.
    Servers(Calls),
}

/// What was heard of the servers that are to call.
#[derive(Debug, Default)]
struct Calls {
    /// Who is to.
    legs: [bool; 2],
    syns: [Option<Frame>; 2],
    /// When whoever has called has waited long enough for the other one.
    due: Option<Instant>,
    /// The connection has begun.
    has_begun: bool,
    /// Without this one, which was to call, too.
    late: Option<LegId>,
}

impl Calls {
    fn is_complete(&self) -> bool {
        let has_all =
            self.legs.iter().zip(&self.syns).all(|(called, syn)| !called || syn.is_some());
        has_all && self.syns.iter().any(Option::is_some) && !self.has_begun
    }
}

/// All that are waited for.
#[derive(Debug, Default)]
pub struct Expected {
    /// By the connection to come, without the port of who begins it.
    entries: BTreeMap<PackedKey, Entry>,
    /// In the order in which they end.
    ends: VecDeque<(Instant, PackedKey)>,
    by_control: BTreeMap<PackedKey, VecDeque<PackedKey>>,
    /// Calls that wait, by when they have waited long enough.
    waiting: BTreeSet<(Instant, PackedKey)>,
}

impl Expected {
    /// Waits for the connection that `offer`, said on the flow `control`, is about.
    pub fn expect(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        control: &FlowKey,
        offer: &Offer,
    ) -> OfferOutcome {
        self.forget_old(now);
        if offer.address.is_some_and(|address| address != control.server.ip()) {
            return OfferOutcome::ForeignAddress;
        }
        let mut ports = offer.ports.iter().flatten().chain([&offer.shown]);
        if ports.any(|port| *port < PORT_MIN || config.ports.contains(port)) {
            return OfferOutcome::PortTaken;
        }
        self.enter(now, place(control, offer.shown), control, Awaited::Client(offer.ports))
    }

    /// Waits for the servers that are to call the client of the flow `control`.
    pub fn expect_call(&mut self, now: Instant, control: &FlowKey, call: &Call) -> OfferOutcome {
        self.forget_old(now);
        let calls = Calls { legs: call.legs, ..Calls::default() };
        self.enter(now, call_place(control, call.client), control, Awaited::Servers(calls))
    }

    fn enter(
        &mut self,
        now: Instant,
        place: PackedKey,
        control: &FlowKey,
        who: Awaited,
    ) -> OfferOutcome {
        let control = control.packed();
        self.forget(&place);
        if let Some(oldest) = self.by_control.get(&control).filter(|of| of.len() >= PER_CONTROL_MAX)
            && let Some(oldest) = oldest.front().copied()
        {
            self.forget(&oldest);
        }
        if self.entries.len() >= EXPECTED_MAX {
            return OfferOutcome::Full;
        }
        let until = now + KEPT;
        self.entries.insert(place, Entry { who, control, until });
        self.ends.push_back((until, place));
        self.by_control.entry(control).or_default().push_back(place);
        OfferOutcome::Believed
    }

    /// Where the servers listen for the connection `key`, if it is waited for, and the one on which
    /// they have said so; it is not waited for any more. A client that was shown the port of
    /// `primary` alone, because the server that had said another one died before that was shown,
    /// means the same connection.
    pub fn take(
        &mut self,
        now: Instant,
        key: &FlowKey,
        primary: LegId,
    ) -> Option<([Option<u16>; 2], FlowKey)> {
        self.forget_old(now);
        let port = key.server.port();
        let place = Some(place(key, port)).filter(|place| self.entries.contains_key(place));
        let place = place.or_else(|| {
            let [first, last] = [0, u16::MAX].map(|port| self::place(key, port));
            let mut near = self.entries.range(first..=last);
            let is_its =
                |entry: &Entry| entry.ports().is_some_and(|of| of[primary.index()] == Some(port));
            near.find(|(_, entry)| is_its(entry)).map(|(place, _)| *place)
        })?;
        let entry = self.entries.get(&place)?;
        let taken = entry.ports().map(|ports| (ports, entry.control.into()));
        self.forget(&place);
        taken
    }

    /// A server's SYN to the client of `key`, in `frame`; it waits `hold` for the other one's.
    pub fn hear_call(
        &mut self,
        now: Instant,
        hold: Duration,
        key: &FlowKey,
        leg: LegId,
        frame: &Frame,
    ) -> Heard {
        self.forget_old(now);
        let place = call_place(key, key.client);
        let Some(calls) = self.calls(&place) else { return Heard::Unannounced };
        if calls.has_begun || !calls.legs[leg.index()] {
            return Heard::TooLate;
        }
        let is_first = calls.syns.iter().all(Option::is_none);
        calls.syns[leg.index()] = Some(frame.clone());
        if calls.is_complete() {
            return Heard::All;
        }
        if is_first {
            calls.due = Some(now + hold);
            self.waiting.insert((now + hold, place));
        }
        Heard::Waits
    }

    /// When the next call has waited long enough.
    pub fn next_timer(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// A client of a call that has waited long enough, with the call's only server; told once.
    pub fn next_due(&mut self, now: Instant) -> Option<(FlowKey, LegId)> {
        while let Some(&(due, place)) = self.waiting.first().filter(|(due, _)| *due <= now) {
            self.waiting.remove(&(due, place));
            let Some(calls) = self.calls(&place) else { continue };
            calls.due = None;
            let first = LegId::ALL.into_iter().find(|leg| calls.syns[leg.index()].is_some());
            if let Some(leg) = first {
                return Some((place.into(), leg));
            }
        }
        None
    }

    /// Nobody was late for so long.
    pub fn put_off(&mut self, by: Duration) {
        for (due, place) in std::mem::take(&mut self.waiting) {
            if let Some(calls) = self.calls(&place) {
                calls.due = Some(due + by);
                self.waiting.insert((due + by, place));
            }
        }
    }

    /// The connection to the client of `key` begins with these SYNs. Later ones are too late.
    pub fn begin(&mut self, key: &FlowKey) -> Option<Begun> {
        let place = call_place(key, key.client);
        let control = self.entries.get(&place)?.control.into();
        let calls = self.calls(&place).filter(|calls| !calls.has_begun)?;
        let syns = std::mem::take(&mut calls.syns);
        let is_late = |leg: &LegId| calls.legs[leg.index()] && syns[leg.index()].is_none();
        let late = LegId::ALL.into_iter().find(is_late);
        (calls.has_begun, calls.late) = (true, late);
        if let Some(due) = calls.due.take() {
            self.waiting.remove(&(due, place));
        }
        Some(Begun { control, syns, late })
    }

    /// `server` does not call any more. Returns whose connection nobody else is waited for.
    pub fn on_failed(&mut self, server: LegId) -> Vec<FlowKey> {
        let mut complete = Vec::new();
        for (place, entry) in &mut self.entries {
            let Awaited::Servers(calls) = &mut entry.who else { continue };
            if calls.late == Some(server.other()) {
                // What has begun without it is over: now it alone is waited for.
                *calls = Calls { legs: [true; 2], ..Calls::default() };
            }
            (calls.legs[server.index()], calls.syns[server.index()]) = (false, None);
            if calls.is_complete() {
                complete.push((*place).into());
            }
        }
        complete
    }

    fn calls(&mut self, place: &PackedKey) -> Option<&mut Calls> {
        match &mut self.entries.get_mut(place)?.who {
            Awaited::Servers(calls) => Some(calls),
            Awaited::Client(_) => None,
        }
    }

    /// `to` is a copy of the other server from here on.
    pub fn on_copied(&mut self, to: LegId) {
        for entry in self.entries.values_mut() {
            let from = to.other().index();
            match &mut entry.who {
                Awaited::Client(ports) => ports[to.index()] = ports[from],
                Awaited::Servers(calls) => {
                    calls.legs[to.index()] = calls.legs[from];
                    calls.syns[to.index()] = calls.syns[from].clone();
                }
            }
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((until, place)) = self.ends.front().copied()
            && (until <= now || self.entries.get(&place).is_none_or(|entry| entry.until != until))
        {
            self.ends.pop_front();
            if until <= now && self.entries.get(&place).is_some_and(|entry| entry.until == until) {
                self.forget(&place);
            }
        }
    }

    fn forget(&mut self, place: &PackedKey) {
        let Some(entry) = self.entries.remove(place) else { return };
        if let Awaited::Servers(Calls { due: Some(due), .. }) = entry.who {
            self.waiting.remove(&(due, *place));
        }
        if let Some(of) = self.by_control.get_mut(&entry.control) {
            of.retain(|other| other != place);
            if of.is_empty() {
                self.by_control.remove(&entry.control);
            }
        }
    }
}

impl Entry {
    /// Where the servers listen, if the client is to come.
    fn ports(&self) -> Option<[Option<u16>; 2]> {
        match self.who {
            Awaited::Client(ports) => Some(ports),
            Awaited::Servers(_) => None,
        }
    }
}

/// Every connection of the service of `key` to this `client`.
fn call_place(key: &FlowKey, client: SocketAddr) -> PackedKey {
    FlowKey { client, server: SocketAddr::new(key.server.ip(), 0), ..*key }.packed()
}

/// Every connection of the client of `key` to this port of the service's address.
fn place(key: &FlowKey, port: u16) -> PackedKey {
    let client = SocketAddr::new(key.client.ip(), 0);
    FlowKey { client, server: SocketAddr::new(key.server.ip(), port), ..*key }.packed()
}

fields!(Entry { who, control, until });
fields!(Calls { legs, syns, due, has_begun, late });
fields!(Expected { entries, ends, by_control, waiting });

impl Pack for Awaited {
    fn pack(&self, w: &mut Writer) {
        match self {
            Self::Client(ports) => (false, *ports).pack(w),
            Self::Servers(calls) => {
                true.pack(w);
                calls.pack(w);
            }
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match Pack::unpack(r) {
            false => Self::Client(Pack::unpack(r)),
            true => Self::Servers(Pack::unpack(r)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ServiceId;

    fn key(client: &str, port: u16) -> FlowKey {
        FlowKey {
            service: ServiceId::default(),
            vlan: (None, None),
            client: client.parse().expect("an address"),
            server: SocketAddr::from(([192, 0, 2, 10], port)),
        }
    }

    fn offer(shown: u16, other: u16) -> Offer {
        Offer { address: None, shown, ports: [Some(shown), Some(other)] }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn check(all: &Expected) {
        let of_controls: usize = all.by_control.values().map(VecDeque::len).sum();
        assert_eq!(of_controls, all.entries.len());
        assert!(all.ends.len() <= 2 * EXPECTED_MAX + 1);
        assert!(all.by_control.values().all(|of| (1..=PER_CONTROL_MAX).contains(&of.len())));
    }

    const A: LegId = LegId::A;
    const BELIEVED: OfferOutcome = OfferOutcome::Believed;
    const CONTROL: &str = "198.51.100.7:4000";

    #[test]
    fn who_was_told_may_come_once_and_nobody_else() {
        let (mut all, config) = (Expected::default(), EngineConfig::default());
        let control = key(CONTROL, 21);
        assert_eq!(all.expect(at(0), &config, &control, &offer(5000, 6000)), BELIEVED);
        check(&all);
        assert_eq!(all.take(at(1), &key("198.51.100.8:9", 5000), A), None, "another client");
        assert_eq!(all.take(at(1), &key("198.51.100.7:9", 6000), A), None, "the backup's port");
        let ports = Some(([Some(5000), Some(6000)], control));
        assert_eq!(all.take(at(1), &key("198.51.100.7:9", 5000), A), ports);
        assert_eq!(all.take(at(1), &key("198.51.100.7:9", 5000), A), None, "a second time");
        check(&all);
        assert_eq!(all.expect(at(1), &config, &control, &offer(5000, 6000)), BELIEVED);
        assert_eq!(all.take(at(61), &key("198.51.100.7:9", 5000), A), None, "too late");
        check(&all);
        assert!(all.entries.is_empty() && all.ends.is_empty());
    }

    /// The primary died before its port was shown: the client was shown the survivor's.
    #[test]
    fn the_survivors_own_port_means_the_same_connection() {
        let (mut all, config) = (Expected::default(), EngineConfig::default());
        let control = key(CONTROL, 21);
        assert_eq!(all.expect(at(0), &config, &control, &offer(5000, 6000)), BELIEVED);
        let ports = all.take(at(1), &key("198.51.100.7:9", 6000), LegId::B);
        assert_eq!(ports, Some(([Some(5000), Some(6000)], control)));
        assert_eq!(all.take(at(1), &key("198.51.100.7:9", 5000), LegId::B), None);
        check(&all);
    }

    #[test]
    fn what_leads_elsewhere_is_not_believed() {
        let (mut all, config) = (Expected::default(), EngineConfig::default());
        let control = key(CONTROL, 21);
        let mut said = |offer: Offer| all.expect(at(0), &config, &control, &offer);
        let foreign = Offer { address: Some([192, 0, 2, 11].into()), ..offer(5000, 6000) };
        assert_eq!(said(foreign), OfferOutcome::ForeignAddress);
        let own = Offer { address: Some([192, 0, 2, 10].into()), ..offer(5000, 6000) };
        assert_eq!(said(own), BELIEVED);
        for (shown, other) in [(80, 5000), (5000, 80), (1023, 5000), (5000, 1023)] {
            assert_eq!(said(offer(shown, other)), OfferOutcome::PortTaken);
        }
        check(&all);
    }

    #[test]
    fn one_control_connection_cannot_wait_for_everything() {
        let (mut all, config) = (Expected::default(), EngineConfig::default());
        let first = key("198.51.100.9:1", 21);
        assert_eq!(all.expect(at(0), &config, &first, &offer(5000, 6000)), BELIEVED);
        for n in 0..100 {
            let offer = offer(5000 + n, 6000 + n);
            assert_eq!(all.expect(at(0), &config, &key(CONTROL, 21), &offer), BELIEVED);
            check(&all);
        }
        assert_eq!(all.entries.len(), 1 + PER_CONTROL_MAX);
        assert!(all.take(at(1), &key("198.51.100.9:2", 5000), A).is_some(), "others keep theirs");
        assert!(all.take(at(1), &key("198.51.100.7:2", 5099), A).is_some(), "the latest are kept");
        assert!(all.take(at(1), &key("198.51.100.7:2", 5000), A).is_none());
        for n in 0..2 * EXPECTED_MAX as u32 {
            let [a, b, c, d] = (n / 8).to_be_bytes();
            let control = FlowKey { client: SocketAddr::from(([a | 10, b, c, d], 9)), ..first };
            let said = all.expect(at(2), &config, &control, &offer(5000 + (n % 8) as u16, 6000));
            assert!(matches!(said, BELIEVED | OfferOutcome::Full));
        }
        assert_eq!(all.entries.len(), EXPECTED_MAX);
        check(&all);
    }
}
