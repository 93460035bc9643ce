//! Handshakes that clients have not completed, apart from the connections: from which network, in
//! what order. Whoever begins more than fit displaces these, and never a connection.
//!
//! From a quarter of the limit on the gateway answers with cookies ([`super::cookies`]). For whom
//! none can be made, the oldest handshake gives way: a client that exists completes its own within
//! a round trip, long before it is the oldest. Nothing here hashes, so nothing can be made to
//! collide.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::config::EngineConfig;
use super::flow_table::FlowId;
use super::limits;
use super::time::Instant;

/// A client's network: what one party can be assumed to have all addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl Source {
    /// The /24 (IPv4) or /56 (IPv6) of a client.
    pub fn of(client: IpAddr) -> Self {
        Self(match client {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 72)).into(),
        })
    }
}

/// What one network has.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    flows: usize,
    half_open: usize,
}

/// The handshakes under way, and what each network has.
#[derive(Debug, Default)]
pub struct HalfOpen {
    by_age: BTreeSet<(Instant, FlowId)>,
    by_source: BTreeSet<(Source, Instant, FlowId)>,
    sources: BTreeMap<Source, Counts>,
}

impl HalfOpen {
    /// Handshakes under way.
    pub fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Flows of a network, whatever their state.
    pub fn flows_of(&self, source: Source) -> usize {
        self.sources.get(&source).map_or(0, |counts| counts.flows)
    }

    /// A flow is new.
    pub fn flow_begins(&mut self, source: Source) {
        self.sources.entry(source).or_default().flows += 1;
    }

    /// A flow is gone.
    pub fn flow_ends(&mut self, source: Source) {
        self.change(source, |counts| counts.flows -= 1);
    }

    /// The handshake that began at `since` is under way.
    pub fn begins(&mut self, source: Source, since: Instant, id: FlowId) {
        self.by_age.insert((since, id));
        self.by_source.insert((source, since, id));
        self.change(source, |counts| counts.half_open += 1);
    }

    /// It is under way no more.
    pub fn ends(&mut self, source: Source, since: Instant, id: FlowId) {
        self.by_age.remove(&(since, id));
        self.by_source.remove(&(source, since, id));
        self.change(source, |counts| counts.half_open -= 1);
    }

    /// The handshake that gives way to one more of `source`, if one has to. `is_full`: the table
    /// has no room for another flow.
    pub fn displaced(
        &self,
        now: Instant,
        source: Source,
        is_full: bool,
        config: &EngineConfig,
    ) -> Option<FlowId> {
        let counts = self.sources.get(&source).copied().unwrap_or_default();
        let has_too_many = counts.half_open >= config.half_open_per_source_max
            || counts.flows >= config.flows_per_source_max;
        if has_too_many && counts.half_open > 0 {
            let of_source = self.by_source.range((source, Instant::ZERO, 0)..);
            return of_source.take_while(|entry| entry.0 == source).map(|entry| entry.2).next();
        }
        let &(since, oldest) = self.by_age.first()?;
        let share = self.len() * 100 / config.half_open_max.max(1);
        let gives_way = match share {
            _ if is_full => true,
            100.. => true,
            limits::HALF_OPEN_PRESSED_PERCENT.. => {
                now.since(since) >= limits::HALF_OPEN_PRESSED_MAX
            }
            _ => false,
        };
        gives_way.then_some(oldest)
    }

    fn change(&mut self, source: Source, change: impl FnOnce(&mut Counts)) {
        let Some(counts) = self.sources.get_mut(&source) else { return };
        change(counts);
        if counts.flows == 0 {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_24_or_a_56() {
        let of = |text: &str| Source::of(text.parse().expect("an address"));
        assert_eq!(of("192.0.2.1"), of("192.0.2.255"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:0:1200::1"), of("2001:db8:0:12ff:ffff::9"));
        assert_ne!(of("2001:db8:0:1200::1"), of("2001:db8:0:1300::1"));
    }

    #[test]
    fn who_is_gone_leaves_nothing() {
        let (mut table, at) = (HalfOpen::default(), Instant::from_millis(1));
        let source = Source::of(IpAddr::V4(Ipv4Addr::LOCALHOST));
        for id in 0..3 {
            table.flow_begins(source);
            table.begins(source, at, id);
        }
        assert_eq!((table.len(), table.flows_of(source)), (3, 3));
        for id in 0..3 {
            table.ends(source, at, id);
            table.flow_ends(source);
        }
        assert_eq!((table.len(), table.flows_of(source)), (0, 0));
        assert!(table.by_source.is_empty() && table.sources.is_empty());
    }
}
