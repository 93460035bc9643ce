//! The directory of flows: what readers see of each connection without stopping the engine.
//!
//! Fed by events, bounded by the engine's own flow table. A reader sees each entry whole, the
//! directory as it changes.

use std::collections::BTreeMap;

use dashmap::DashMap;

use crate::engine::{Event, FlowKey, FlowState, Instant, LegId, PackedKey, RawReason, SoloReason};

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// State.
    pub state: FlowState,
    /// The leg that serves it, once that is known.
    pub primary: Option<LegId>,
    /// Why it has one server only.
    pub solo: Option<SoloReason>,
    /// Why its bytes are compared as they are, if a rule could have applied.
    pub raw: Option<RawReason>,
    /// Response bytes that both servers had said when they were released.
    pub verified_bytes: u64,
    /// Response bytes that one had said.
    pub unverified_bytes: u64,
    /// When it was first seen.
    pub opened: Instant,
}

/// Flows by key.
#[derive(Debug, Default)]
pub struct FlowDirectory {
    flows: DashMap<PackedKey, FlowEntry>,
}

impl FlowDirectory {
    /// Takes one event.
    pub fn record(&self, now: Instant, event: &Event) {
        match event {
            Event::Released { flow, verified, unverified, .. } => {
                if let Some(mut entry) = self.flows.get_mut(&flow.packed()) {
                    entry.verified_bytes += u64::from(*verified);
                    entry.unverified_bytes += u64::from(*unverified);
                }
            }
            // A key that opens again is a new generation of the 4-tuple.
            Event::FlowOpened { flow } => {
                self.flows.insert(flow.packed(), FlowEntry::new(now));
            }
            Event::FlowChanged { flow, to, primary, solo, .. } => {
                let mut entry =
                    self.flows.entry(flow.packed()).or_insert_with(|| FlowEntry::new(now));
                entry.state = *to;
                entry.primary = Some(*primary);
                entry.solo = *solo;
            }
            Event::ComparedRaw { flow, why } => {
                if let Some(mut entry) = self.flows.get_mut(&flow.packed()) {
                    entry.raw = Some(*why);
                }
            }
            Event::FlowClosed { flow, .. } => {
                self.flows.remove(&flow.packed());
            }
            _ => {}
        }
    }

    /// How many flows are compared as they are although rules could have applied.
    pub fn raw(&self) -> usize {
        self.flows.iter().filter(|entry| entry.raw.is_some()).count()
    }

    /// Up to `limit` flows in the order of their keys, and how many there are.
    pub fn list(&self, limit: usize) -> (Vec<(FlowKey, FlowEntry)>, usize) {
        let mut all: Vec<_> =
            self.flows.iter().map(|e| (FlowKey::from(*e.key()), *e.value())).collect();
        let total = all.len();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.truncate(limit);
        (all, total)
    }

    /// How many flows have one server only, by reason.
    pub fn solo(&self) -> BTreeMap<SoloReason, u32> {
        let mut by_reason = BTreeMap::new();
        for entry in self.flows.iter().filter(|entry| entry.state == FlowState::Solo) {
            if let Some(reason) = entry.solo {
                *by_reason.entry(reason).or_insert(0) += 1;
            }
        }
        by_reason
    }
}

impl FlowEntry {
    fn new(now: Instant) -> Self {
        Self {
            state: FlowState::Opening,
            primary: None,
            solo: None,
            raw: None,
            verified_bytes: 0,
            unverified_bytes: 0,
            opened: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Duration, Shown};
    use crate::observe::tests::flow_key;

    #[test]
    fn a_flow_lives_from_open_to_close() {
        let directory = FlowDirectory::default();
        let flow = flow_key();
        let at = Instant::from_millis(7);
        directory.record(at, &Event::FlowOpened { flow });
        directory.record(
            at,
            &Event::FlowChanged {
                flow,
                from: FlowState::Opening,
                to: FlowState::Paired,
                primary: LegId::B,
                solo: None,
                shown: Shown::default(),
            },
        );
        let waited = Duration::ZERO;
        directory.record(at, &Event::Released { flow, verified: 5, unverified: 2, waited });
        assert_eq!(directory.raw(), 0);
        directory.record(at, &Event::ComparedRaw { flow, why: RawReason::TwoLengths });
        assert_eq!(directory.raw(), 1);
        let (list, total) = directory.list(10);
        assert_eq!((list.len(), total), (1, 1));
        let entry = list[0].1;
        assert_eq!(entry.state, FlowState::Paired);
        assert_eq!(entry.primary, Some(LegId::B));
        assert_eq!(entry.raw, Some(RawReason::TwoLengths));
        assert_eq!((entry.verified_bytes, entry.unverified_bytes), (5, 2));
        assert_eq!(entry.opened, at);
        assert_eq!(directory.list(0), (Vec::new(), 1));
        directory.record(
            at,
            &Event::FlowClosed {
                flow,
                last: FlowState::TimeWait,
                released: 7,
                verified: 5,
                was_reset: false,
            },
        );
        assert_eq!(directory.list(10).1, 0);
    }

    #[test]
    fn flows_with_one_server_are_counted_by_reason() {
        let directory = FlowDirectory::default();
        for (port, to, why) in [
            (1, FlowState::Solo, SoloReason::Tls),
            (2, FlowState::Solo, SoloReason::Lag),
            (3, FlowState::Solo, SoloReason::Tls),
            (4, FlowState::TimeWait, SoloReason::Tls),
        ] {
            let mut flow = flow_key();
            flow.client.set_port(port);
            let (from, primary, shown) = (FlowState::Paired, LegId::A, Shown::default());
            let solo = Some(why);
            let event = Event::FlowChanged { flow, from, to, primary, solo, shown };
            directory.record(Instant::ZERO, &event);
        }
        let solo = directory.solo();
        assert_eq!(solo, BTreeMap::from([(SoloReason::Lag, 1), (SoloReason::Tls, 2)]));
    }

    #[test]
    fn bytes_of_an_unknown_flow_do_not_make_an_entry() {
        let directory = FlowDirectory::default();
        let waited = Duration::ZERO;
        let event = Event::Released { flow: flow_key(), verified: 5, unverified: 2, waited };
        directory.record(Instant::ZERO, &event);
        assert_eq!(directory.list(10).1, 0);
    }
}
