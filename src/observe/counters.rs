//! Counters and the release-wait histogram: every one derived from an event.
//!
//! Owns the table of metric families. Labels are closed lists of names, so the number of series is
//! known at the start and every one of them is there, at zero, from the first scrape.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::names::{
    DIVERGENCE_KINDS, DROP_WHYS, FINDINGS, FLOW_STATES, HELD_WHYS, KEPT_WHYS, LEGS, LINKS,
    NOT_REPROTECTED, Name, OFFER_OUTCOMES, RAW_REASONS, REJECT_REASONS, SOLO_REASONS, SYNC_REASONS,
};
use crate::engine::{Duration, Event};

/// A family of counters: name, help, and its labels with their values.
#[derive(Debug)]
pub struct Family {
    /// Name with unit and `_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Label names with the values that each can have.
    pub labels: &'static [(&'static str, &'static [&'static str])],
}

impl Family {
    /// `count` in the family's unit: times are kept in nanoseconds and shown in seconds.
    pub fn in_unit(&self, count: u64) -> f64 {
        if self.name.ends_with("_seconds_total") { count as f64 / 1e9 } else { count as f64 }
    }
}

const YES_NO: &[&str] = &["no", "yes"];
const SAID_BY: &[&str] = &["both", "a", "b"];

macro_rules! families {
    ($($name:literal, $help:literal, [$($label:literal: $values:expr),*];)+) => {
        /// Every family of counters.
        pub const FAMILIES: &[Family] = &[$(Family {
            name: $name, help: $help, labels: &[$(($label, $values)),*],
        }),+];
    };
}

families! {
    "shadowvm_frames_rejected_total", "Frames refused, by link and reason.",
        ["link": LINKS, "reason": REJECT_REASONS];
    "shadowvm_flows_opened_total", "Connections that began.", [];
    "shadowvm_cookies_total", "SYNs answered with a cookie, and clients that came back with one.",
        ["cookie": &["given", "taken"]];
    "shadowvm_cookies_turned_total", "Times that cookies were turned on or off.", ["on": YES_NO];
    "shadowvm_flows_closed_total", "Connections that ended, by whether the gateway reset them.",
        ["reset": YES_NO];
    "shadowvm_flow_changes_total", "Changes of a connection's state, by the new state.",
        ["to": FLOW_STATES];
    "shadowvm_flows_solo_total", "Connections that went on with one server, by reason.",
        ["reason": SOLO_REASONS];
    "shadowvm_flows_unprotected_total", "Connections passed untouched to the primary, by reason.",
        ["reason": SOLO_REASONS];
    "shadowvm_released_bytes_total",
        "Response bytes released to clients, by whether both servers had said them.",
        ["verified": YES_NO];
    "shadowvm_mask_hits_total", "Spans that a rule allows to differ and that did.", [];
    "shadowvm_masked_bytes_total", "Bytes in spans that a rule allows to differ and that did.", [];
    "shadowvm_pairs_noted_total",
        "Values that a rule maps and that the servers said differently: both are remembered.", [];
    "shadowvm_pairs_dropped_total", "Pairs of such values forgotten, by reason.",
        ["reason": DROP_WHYS];
    "shadowvm_pairs_lost_total",
        "Starts of the gateway at which such pairs may have been lost.", [];
    "shadowvm_values_replaced_total",
        "Values that clients returned and a server was told its own for, by that server.",
        ["leg": LEGS];
    "shadowvm_values_kept_total",
        "The same, told as the client said them although the server has its own, by reason.",
        ["leg": LEGS, "reason": KEPT_WHYS];
    "shadowvm_values_doubtful_total",
        "Values that a client returned, or did not: told as it said them.", [];
    "shadowvm_flows_returns_unread_total",
        "Connections on which no returned value is looked for (any more), by reason.",
        ["reason": RAW_REASONS];
    "shadowvm_flows_compared_raw_total",
        "Connections whose protocol is not followed (any more): no rule applies, by reason.",
        ["reason": RAW_REASONS];
    "shadowvm_data_offers_total",
        "Data connections that servers have offered on control connections, by outcome.",
        ["outcome": OFFER_OUTCOMES];
    "shadowvm_early_ends_total", "Connections that one server ended early, by that server.",
        ["leg": LEGS];
    "shadowvm_holds_soft_total", "Holds older than hold_soft, by the server waited for.",
        ["leg": LEGS];
    "shadowvm_holds_hard_total", "Holds handed to the lag policy, by the server waited for.",
        ["leg": LEGS];
    "shadowvm_divergences_total", "Proofs that the servers differ, by kind.",
        ["kind": DIVERGENCE_KINDS];
    "shadowvm_flows_reset_total", "Connections that no server could continue.", [];
    "shadowvm_flows_reset_by_servers_total", "Connections that their servers have reset.", [];
    "shadowvm_flows_reprotected_total",
        "Connections with one server that got a second one again, by that server.", ["leg": LEGS];
    "shadowvm_flows_not_reprotected_total",
        "Times that a server was asked to take part in a connection again in vain, by reason.",
        ["leg": LEGS, "reason": NOT_REPROTECTED];
    "shadowvm_request_resent_bytes_total", "Request bytes resent to a server that had lost them.",
        ["leg": LEGS];
    "shadowvm_server_changes_total", "Changes of a server's state.", ["leg": LEGS];
    "shadowvm_port_changes_total", "Ports that a server refused, or accepted again.",
        ["leg": LEGS, "accepted": YES_NO];
    "shadowvm_service_changes_total", "Changes of the service's state.", [];
    "shadowvm_findings_held_total", "Findings that did not promote, by reason.", ["why": HELD_WHYS];
    "shadowvm_promotions_total", "Changes of the primary, by finding.", ["finding": FINDINGS];
    "shadowvm_promoted_flows_total", "Connections at a change of the primary, by outcome.",
        ["outcome": &["moved", "reset"]];
    "shadowvm_detaches_total", "Backups no longer heard, by finding.", ["finding": FINDINGS];
    "shadowvm_rejoins_total", "Servers taken back as backup.", ["leg": LEGS];
    "shadowvm_own_stalls_total", "Times that the gateway itself was not scheduled.", [];
    "shadowvm_own_stall_seconds_total", "Time that the gateway itself was not scheduled.", [];
    "shadowvm_syncs_started_total", "State syncs asked for, by reason.", ["reason": SYNC_REASONS];
    "shadowvm_syncs_ended_total", "State syncs ended, by success.", ["ok": YES_NO];
    "shadowvm_sync_seconds_total", "Time spent in state syncs.", [];
    "shadowvm_syncs_coalesced_total", "Divergences that joined a sync under way.", [];
    "shadowvm_syncs_frozen_total", "Syncs for which both servers stood still.", [];
    "shadowvm_datagrams_judged_total", "UDP datagrams said by both servers, or by one only.",
        ["said_by": SAID_BY];
    "shadowvm_commands_total", "Commands of operators, by success.", ["ok": YES_NO];
    "shadowvm_events_lost_total", "Events missing from the log because its writer was too slow.",
        [];
}

type Key = (&'static str, &'static str, &'static str);

/// Upper bounds of the release-wait buckets, in microseconds.
pub const WAIT_BUCKETS_US: &[u64] = &[
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 150_000,
    200_000, 500_000, 1_000_000,
];

/// Longest wait that is told apart, in nanoseconds.
const WAIT_NS_MAX: u64 = 60_000_000_000;

/// All counters of one gateway.
#[derive(Debug)]
pub struct Counters {
    values: BTreeMap<Key, u64>,
    // Kept apart from the table because they grow with every packet.
    released: [u64; 2],
    wait: Histogram<u64>,
    wait_sum_ns: u64,
}

impl Default for Counters {
    fn default() -> Self {
        let mut values = BTreeMap::new();
        for family in FAMILIES {
            let (one, two) = (family.labels.first(), family.labels.get(1));
            for first in one.map_or(&[""][..], |(_, all)| all) {
                for second in two.map_or(&[""][..], |(_, all)| all) {
                    values.insert((family.name, *first, *second), 0);
                }
            }
        }
        let wait = Histogram::new_with_bounds(1, WAIT_NS_MAX, 2)
            .expect("the bounds are constants that the histogram accepts");
        Self { values, released: [0; 2], wait, wait_sum_ns: 0 }
    }
}

impl Counters {
    /// Counts one event.
    pub fn record(&mut self, event: &Event) {
        match event {
            Event::Released { verified, unverified, waited, .. } => {
                self.record_release(*verified, *unverified, *waited);
            }
            Event::Rejected { link, reason } => {
                self.add(("shadowvm_frames_rejected_total", link.name(), reason.name()), 1);
            }
            Event::CookieGiven { .. } => self.one("shadowvm_cookies_total", "given"),
            Event::CookieTaken { .. } => self.one("shadowvm_cookies_total", "taken"),
            Event::CookiesTurned { on, .. } => {
                self.one("shadowvm_cookies_turned_total", yes_no(*on));
            }
            Event::FlowOpened { .. } => self.one("shadowvm_flows_opened_total", ""),
            Event::FlowChanged { to, solo, .. } => {
                self.one("shadowvm_flow_changes_total", to.name());
                if let Some(reason) = solo {
                    self.one("shadowvm_flows_solo_total", reason.name());
                }
            }
            Event::FlowClosed { was_reset, .. } => {
                self.one("shadowvm_flows_closed_total", yes_no(*was_reset));
            }
            Event::Unprotected { reason, .. } => {
                self.one("shadowvm_flows_unprotected_total", reason.name());
            }
            Event::MaskHit { len, .. } => {
                self.one("shadowvm_mask_hits_total", "");
                self.add(("shadowvm_masked_bytes_total", "", ""), u64::from(*len));
            }
            Event::PairNoted { .. } => self.one("shadowvm_pairs_noted_total", ""),
            Event::PairsDropped { why, count } => {
                self.add(("shadowvm_pairs_dropped_total", why.name(), ""), u64::from(*count));
            }
            Event::PairsLost => self.one("shadowvm_pairs_lost_total", ""),
            Event::ValueReplaced { to, .. } => {
                self.one("shadowvm_values_replaced_total", to.name());
            }
            Event::ValueKept { to, why, .. } => {
                self.add(("shadowvm_values_kept_total", to.name(), why.name()), 1);
            }
            Event::ValueDoubtful { .. } => self.one("shadowvm_values_doubtful_total", ""),
            Event::ReturnsUnread { why, .. } => {
                self.one("shadowvm_flows_returns_unread_total", why.name());
            }
            Event::ComparedRaw { why, .. } => {
                self.one("shadowvm_flows_compared_raw_total", why.name());
            }
            Event::DataOffered { outcome, .. } => {
                self.one("shadowvm_data_offers_total", outcome.name());
            }
            Event::EarlyEnd { loser, .. } => self.one("shadowvm_early_ends_total", loser.name()),
            Event::HoldSoft { waiting_for, .. } => {
                self.one("shadowvm_holds_soft_total", waiting_for.name());
            }
            Event::HoldHard { waiting_for, .. } => {
                self.one("shadowvm_holds_hard_total", waiting_for.name());
            }
            Event::Diverged { divergence, .. } => {
                self.one("shadowvm_divergences_total", divergence.kind.name());
            }
            Event::FlowReset { by_servers, .. } => {
                let by = ["shadowvm_flows_reset_total", "shadowvm_flows_reset_by_servers_total"];
                self.one(by[usize::from(*by_servers)], "");
            }
            Event::Reprotected { server, .. } => {
                self.one("shadowvm_flows_reprotected_total", server.name());
            }
            Event::NotReprotected { server, why, .. } => {
                self.add(("shadowvm_flows_not_reprotected_total", server.name(), why.name()), 1);
            }
            Event::RequestResent { to, bytes, .. } => {
                let key = ("shadowvm_request_resent_bytes_total", to.name(), "");
                self.add(key, u64::from(*bytes));
            }
            Event::ServerChanged { .. }
            | Event::PortChanged { .. }
            | Event::ServiceChanged { .. }
            | Event::FindingHeld { .. }
            | Event::Promoted { .. }
            | Event::Detached { .. }
            | Event::Rejoined { .. }
            | Event::OwnStall { .. }
            | Event::SyncStarted { .. }
            | Event::SyncFrozen { .. }
            | Event::SyncEnded { .. }
            | Event::SyncCoalesced { .. }
            | Event::DatagramJudged { .. }
            | Event::CommandDone { .. } => self.record_rare(event),
        }
    }

    /// What happens to servers, syncs and the gateway itself.
    fn record_rare(&mut self, event: &Event) {
        match event {
            Event::ServerChanged { server, .. } => {
                self.one("shadowvm_server_changes_total", server.name());
            }
            Event::PortChanged { server, accepted, .. } => {
                let key = ("shadowvm_port_changes_total", server.name(), yes_no(*accepted));
                self.add(key, 1);
            }
            Event::ServiceChanged { .. } => self.one("shadowvm_service_changes_total", ""),
            Event::FindingHeld { why, .. } => {
                self.one("shadowvm_findings_held_total", why.name());
            }
            Event::Promoted { finding, moved, reset, .. } => {
                self.one("shadowvm_promotions_total", finding.name());
                for (outcome, flows) in [("moved", moved), ("reset", reset)] {
                    let key = ("shadowvm_promoted_flows_total", outcome, "");
                    self.add(key, u64::from(*flows));
                }
            }
            Event::Detached { finding, .. } => {
                self.one("shadowvm_detaches_total", finding.name());
            }
            Event::Rejoined { server, .. } => self.one("shadowvm_rejoins_total", server.name()),
            Event::OwnStall { gap } => {
                self.one("shadowvm_own_stalls_total", "");
                self.add(("shadowvm_own_stall_seconds_total", "", ""), nanos(*gap));
            }
            Event::SyncStarted { reason, .. } => {
                self.one("shadowvm_syncs_started_total", reason.name());
            }
            Event::SyncFrozen { .. } => self.one("shadowvm_syncs_frozen_total", ""),
            Event::SyncEnded { ok, took, .. } => {
                self.one("shadowvm_syncs_ended_total", yes_no(*ok));
                self.add(("shadowvm_sync_seconds_total", "", ""), nanos(*took));
            }
            Event::SyncCoalesced { .. } => self.one("shadowvm_syncs_coalesced_total", ""),
            Event::DatagramJudged { only } => {
                self.one("shadowvm_datagrams_judged_total", only.map_or("both", |leg| leg.name()));
            }
            Event::CommandDone { result, .. } => {
                self.one("shadowvm_commands_total", yes_no(result.is_ok()));
            }
            _ => debug_assert!(false, "{event:?} is counted by `record`"),
        }
    }

    /// An event did not reach the log.
    pub(super) fn record_lost(&mut self) {
        self.one("shadowvm_events_lost_total", "");
    }

    fn record_release(&mut self, verified: u32, unverified: u32, waited: Duration) {
        self.released[0] += u64::from(unverified);
        self.released[1] += u64::from(verified);
        let waited = nanos(waited);
        self.wait.saturating_record(waited);
        self.wait_sum_ns = self.wait_sum_ns.saturating_add(waited);
    }

    fn one(&mut self, name: &'static str, label: &'static str) {
        self.add((name, label, ""), 1);
    }

    fn add(&mut self, key: Key, n: u64) {
        let value = self.values.get_mut(&key);
        debug_assert!(value.is_some(), "{key:?} is in no family");
        if let Some(value) = value {
            *value = value.saturating_add(n);
        }
    }

    /// Every series: family, values of its labels, count.
    pub fn series(&self) -> impl Iterator<Item = (&'static Family, Vec<&'static str>, u64)> + '_ {
        FAMILIES.iter().flat_map(move |family| {
            let from = (family.name, "", "");
            self.values.range(from..).take_while(|(key, _)| key.0 == family.name).map(
                move |(&(name, first, second), &value)| {
                    let labels = [first, second].into_iter().take(family.labels.len()).collect();
                    let value = match (name, first) {
                        ("shadowvm_released_bytes_total", "no") => self.released[0],
                        ("shadowvm_released_bytes_total", "yes") => self.released[1],
                        _ => value,
                    };
                    (family, labels, value)
                },
            )
        })
    }

    /// How long the first copy of released bytes waited for the second.
    pub fn wait(&self) -> WaitSummary {
        let at = |quantile| Duration::from_nanos(self.wait.value_at_quantile(quantile));
        let mut below = 0;
        let mut from = 0;
        let buckets = WAIT_BUCKETS_US.iter().map(|&us| {
            let to = us * 1000;
            below += self.wait.count_between(from, to);
            from = self.wait.highest_equivalent(to) + 1;
            (us, below)
        });
        WaitSummary {
            buckets: buckets.collect(),
            count: self.wait.len(),
            sum: Duration::from_nanos(self.wait_sum_ns),
            p50: at(0.5),
            p99: at(0.99),
            max: Duration::from_nanos(self.wait.max()),
        }
    }
}

/// The release-wait histogram, summed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitSummary {
    /// Upper bound in microseconds, releases up to it.
    pub buckets: Vec<(u64, u64)>,
    /// Releases.
    pub count: u64,
    /// All waits together.
    pub sum: Duration,
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Longest.
    pub max: Duration,
}

fn yes_no(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Link, RejectReason};
    use crate::observe::tests::{every_event, flow_key};

    fn value(counters: &Counters, name: &str, labels: &[&str]) -> u64 {
        let found: Vec<u64> = counters
            .series()
            .filter(|(family, with, _)| family.name == name && with == labels)
            .map(|(_, _, value)| value)
            .collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}");
        found[0]
    }

    #[test]
    fn every_series_is_there_at_zero_from_the_start() {
        let counters = Counters::default();
        assert!(counters.series().all(|(_, _, value)| value == 0));
        let rejects = counters.series().filter(|(f, ..)| f.name.contains("rejected")).count();
        assert_eq!(rejects, LINKS.len() * REJECT_REASONS.len());
        for family in FAMILIES {
            assert!(counters.series().any(|(f, ..)| f.name == family.name), "{}", family.name);
        }
    }

    #[test]
    fn each_event_moves_a_counter_and_only_its_own() {
        for event in every_event() {
            let mut counters = Counters::default();
            counters.record(&event);
            let moved: Vec<_> = counters.series().filter(|(_, _, v)| *v > 0).collect();
            assert!(!moved.is_empty(), "{event:?} is not counted");
            let mut names: Vec<_> = moved.iter().map(|(f, ..)| f.name).collect();
            names.dedup();
            assert!(names.len() <= 2, "{event:?} moved {names:?}");
        }
    }

    #[test]
    fn released_bytes_are_told_apart_and_waits_are_bucketed() {
        let mut counters = Counters::default();
        for (verified, unverified, us) in [(1000, 0, 15), (0, 7, 700), (1, 0, 90_000_000)] {
            counters.record(&Event::Released {
                flow: flow_key(),
                verified,
                unverified,
                waited: Duration::from_micros(us),
            });
        }
        assert_eq!(value(&counters, "shadowvm_released_bytes_total", &["yes"]), 1001);
        assert_eq!(value(&counters, "shadowvm_released_bytes_total", &["no"]), 7);
        let wait = counters.wait();
        assert_eq!(wait.count, 3);
        assert_eq!(wait.buckets[0], (10, 0));
        assert_eq!(wait.buckets[1], (20, 1));
        assert_eq!(wait.buckets.last(), Some(&(1_000_000, 2)));
        assert!(wait.p50 >= Duration::from_micros(690) && wait.p50 <= Duration::from_micros(710));
    }

    #[test]
    fn a_reject_is_counted_by_link_and_reason() {
        let mut counters = Counters::default();
        counters.record(&Event::Rejected { link: Link::Client, reason: RejectReason::Fenced });
        let name = "shadowvm_frames_rejected_total";
        assert_eq!(value(&counters, name, &["client", "fenced"]), 1);
        assert_eq!(value(&counters, name, &["a", "fenced"]), 0);
    }
}
