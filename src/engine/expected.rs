//! Data connections of FTP that are to come: where the servers listen, as they have said on a
//! control connection. Bounded, and each for one connection and a minute.
//!
//! Only the client of the control connection may come, and only to the service itself: a server
//! that names somebody else, or a port that has another meaning, is not believed (RFC 2577 3).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::event::{FlowKey, OfferOutcome, PackedKey};
use super::pack::fields;
use super::time::{Duration, Instant};
use super::{EngineConfig, LegId};

/// How long a connection is waited for: as long as common servers wait.
const KEPT: Duration = Duration::from_millis(60_000);
/// Connections that are waited for.
const EXPECTED_MAX: usize = 1 << 14;
/// The same of one control connection: beyond it the oldest is forgotten.
const PER_CONTROL_MAX: usize = 8;
/// The lowest port that is not a service's own.
const PORT_MIN: u16 = 1024;

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

#[derive(Debug)]
struct Entry {
    ports: [Option<u16>; 2],
    control: PackedKey,
    until: Instant,
}

/// All that are waited for.
#[derive(Debug, Default)]
pub struct Expected {
    /// By the connection to come, without the client's port.
    entries: BTreeMap<PackedKey, Entry>,
    /// In the order in which they end.
    ends: VecDeque<(Instant, PackedKey)>,
    by_control: BTreeMap<PackedKey, VecDeque<PackedKey>>,
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
        let (place, control) = (place(control, offer.shown), control.packed());
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
        self.entries.insert(place, Entry { ports: offer.ports, control, until });
        self.ends.push_back((until, place));
        self.by_control.entry(control).or_default().push_back(place);
        OfferOutcome::Believed
    }

    /// Where the servers listen for the connection `key`, if it is waited for; it is not any more.
    /// A client that was shown the port of `primary` alone, because the server that had said
    /// another one died before that was shown, means the same connection.
    pub fn take(
        &mut self,
        now: Instant,
        key: &FlowKey,
        primary: LegId,
    ) -> Option<[Option<u16>; 2]> {
        self.forget_old(now);
        let port = key.server.port();
        let place = Some(place(key, port)).filter(|place| self.entries.contains_key(place));
        let place = place.or_else(|| {
            let [first, last] = [0, u16::MAX].map(|port| self::place(key, port));
            let mut near = self.entries.range(first..=last);
            let is_its = |entry: &Entry| entry.ports[primary.index()] == Some(port);
            near.find(|(_, entry)| is_its(entry)).map(|(place, _)| *place)
        })?;
        let ports = self.entries.get(&place).map(|entry| entry.ports);
        self.forget(&place);
        ports
    }

    /// `to` is a copy of the other server from here on.
    pub fn on_copied(&mut self, to: LegId) {
        for entry in self.entries.values_mut() {
            entry.ports[to.index()] = entry.ports[to.other().index()];
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
        if let Some(of) = self.by_control.get_mut(&entry.control) {
            of.retain(|other| other != place);
            if of.is_empty() {
                self.by_control.remove(&entry.control);
            }
        }
    }
}

/// Every connection of the client of `key` to this port of the service's address.
fn place(key: &FlowKey, port: u16) -> PackedKey {
    let client = SocketAddr::new(key.client.ip(), 0);
    FlowKey { client, server: SocketAddr::new(key.server.ip(), port), ..*key }.packed()
}

fields!(Entry { ports, control, until });
fields!(Expected { entries, ends, by_control });

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
        let ports = Some([Some(5000), Some(6000)]);
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
        assert_eq!(ports, Some([Some(5000), Some(6000)]));
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
