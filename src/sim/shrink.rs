//! Reduces a scenario that fails: what can be taken away is, as long as the same rule is broken.
//!
//! Greedy, from the large to the small: connections, faults, requests, bytes, link faults, habits
//! of hosts. Every cut makes a scenario simpler, so that it ends by itself; it is bounded anyway.

use super::model::habits::Habits;
use super::scenario::{
    Close, ConnPlan, GatewayPlan, PipePlan, RequestPlan, Scenario, ServerPlan, StackPlan, SyncEnd,
};
use crate::engine::{Fence, LagPolicy};

/// What is left of a scenario.
#[derive(Clone, Debug)]
pub struct Reduced {
    /// It fails by the same rule.
    pub scenario: Scenario,
    /// Runs that it took.
    pub runs: u32,
}

/// The rule that a failure broke: what is said without places and numbers.
pub fn rule(failure: &str) -> String {
    let mut text = failure;
    for place in ["port ", "connection "] {
        let rest = text.strip_prefix(place).and_then(|rest| rest.split_once(": "));
        let is_number = |n: &str| n.bytes().all(|b| b.is_ascii_digit());
        text = rest.filter(|(number, _)| is_number(number)).map_or(text, |(_, rest)| rest);
    }
    match text.split_once(": ") {
        Some((name, _)) if !name.contains(' ') && name != "panic" => name.into(),
        _ => {
            let words = text.split(|c: char| c.is_ascii_digit()).filter(|w| !w.is_empty());
            words.collect::<Vec<_>>().join("#")
        }
    }
}

/// Reduces `scenario` in at most `runs_max` runs; `broken` runs one and tells the rule it broke.
pub fn reduce(
    scenario: &Scenario,
    runs_max: u32,
    mut broken: impl FnMut(&Scenario) -> Option<String>,
) -> Reduced {
    let mut best = Reduced { scenario: scenario.clone(), runs: 1 };
    let Some(rule) = broken(scenario) else { return best };
    loop {
        let (mut at, mut has_cut) = (0, false);
        while let Some(cut) = cuts(&best.scenario).get(at) {
            let mut next = best.scenario.clone();
            cut(&mut next);
            if next == best.scenario {
                at += 1;
                continue;
            }
            if best.runs >= runs_max {
                return best;
            }
            best.runs += 1;
            match broken(&next).is_some_and(|other| other == rule) {
                // The list has moved up, or the same cut may cut once more.
                true => (best.scenario, has_cut) = (next, true),
                false => at += 1,
            }
        }
        if !has_cut {
            return best;
        }
    }
}

/// How large a scenario is, in words.
pub fn size(scenario: &Scenario) -> String {
    let requests = scenario.conns.iter().flat_map(|c| &c.requests);
    let bytes: u64 = requests.clone().map(|r| u64::from(r.upload) + u64::from(r.download)).sum();
    let is_rough = |p: &&PipePlan| **p != plain(p);
    format!(
        "{} clients, {} connections, {} requests, {bytes} bytes, {} faults, {} rough links",
        scenario.clients.len(),
        scenario.conns.len(),
        requests.count(),
        scenario.faults.len(),
        scenario.links.iter().flatten().filter(is_rough).count(),
    )
}

/// A change to a scenario that makes it simpler or leaves it as it is.
type Cut = Box<dyn Fn(&mut Scenario)>;

/// What may be tried, the large first.
fn cuts(scenario: &Scenario) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    for i in 0..scenario.conns.len() {
        cuts.push(Box::new(move |s| remove_conn(s, i)));
    }
    for i in 0..scenario.clients.len() {
        cuts.push(Box::new(move |s| remove_client(s, i)));
    }
    for i in 0..scenario.faults.len() {
        cuts.push(Box::new(move |s| {
            s.faults.remove(i);
        }));
    }
    cuts.push(Box::new(|s| s.links.iter_mut().flatten().for_each(|p| *p = plain(p))));
    for i in 0..6 {
        cuts.push(Box::new(move |s| {
            let pipe = pipe(s, i);
            *pipe = plain(pipe);
        }));
    }
    for (i, conn) in scenario.conns.iter().enumerate() {
        for r in 0..conn.requests.len() {
            cuts.push(Box::new(move |s| remove_request(&mut s.conns[i], r)));
        }
        for r in 0..conn.requests.len() {
            let change = |cut: fn(&mut RequestPlan)| -> Cut {
                Box::new(move |s: &mut Scenario| cut(&mut s.conns[i].requests[r]))
            };
            cuts.extend(REQUEST_CUTS.iter().map(|&cut| change(cut)));
        }
        cuts.extend(
            CONN_CUTS.iter().map(|&cut| -> Cut { Box::new(move |s| cut(&mut s.conns[i])) }),
        );
    }
    for i in 0..2 {
        let change = |cut: fn(&mut ServerPlan)| -> Cut {
            Box::new(move |s: &mut Scenario| cut(&mut s.servers[i]))
        };
        cuts.extend(SERVER_CUTS.iter().map(|&cut| change(cut)));
    }
    for i in 0..2 + scenario.clients.len() {
        cuts.extend(STACK_CUTS.iter().map(|&cut| -> Cut { Box::new(move |s| cut(stack(s, i))) }));
        cuts.extend(HABIT_CUTS.iter().map(|&cut| -> Cut {
            Box::new(move |s| {
                if let Some(habits) = &mut stack(s, i).model {
                    cut(habits, &Habits::default());
                }
            })
        }));
    }
    cuts.extend(GATEWAY_CUTS.iter().map(|&cut| -> Cut { Box::new(move |s| cut(&mut s.gateway)) }));
    for i in 0..6 {
        cuts.extend(PIPE_CUTS.iter().map(|&cut| -> Cut { Box::new(move |s| cut(pipe(s, i))) }));
    }
    cuts
}

/// Delays only.
fn plain(pipe: &PipePlan) -> PipePlan {
    PipePlan { delay_us: pipe.delay_us, ..PipePlan::default() }
}

fn pipe(scenario: &mut Scenario, i: usize) -> &mut PipePlan {
    &mut scenario.links[i / 2][i % 2]
}

fn stack(scenario: &mut Scenario, i: usize) -> &mut StackPlan {
    match i {
        0 | 1 => &mut scenario.servers[i].stack,
        _ => &mut scenario.clients[i - 2],
    }
}

/// The numbers of connections are their places: those behind it move up.
fn remove_conn(scenario: &mut Scenario, i: usize) {
    if scenario.conns.len() == 1 {
        return;
    }
    let gone = scenario.conns.remove(i);
    for conn in &mut scenario.conns {
        conn.id -= u16::from(conn.id > gone.id);
        conn.after = match conn.after {
            Some(before) if before == gone.id => gone.after,
            before => before.map(|b| b - u16::from(b > gone.id)),
        };
    }
}

fn remove_client(scenario: &mut Scenario, i: usize) {
    if scenario.conns.iter().any(|c| c.client == i) {
        return;
    }
    scenario.clients.remove(i);
    for conn in &mut scenario.conns {
        conn.client -= usize::from(conn.client > i);
    }
}

fn remove_request(conn: &mut ConnPlan, r: usize) {
    if conn.requests.len() > 1 {
        conn.requests.remove(r);
    }
}

const REQUEST_CUTS: &[fn(&mut RequestPlan)] = &[
    |r| r.upload /= 2,
    |r| r.download = (r.download / 2).max(1),
    |r| r.download = (r.download - r.download / 8).max(1),
    |r| r.pause_us = 0,
    |r| r.is_divergent = false,
    |r| r.flip_at = 0,
    |r| r.content = 0,
    |r| r.token = None,
    |r| r.token = r.token.map(|_| (1, 2)),
    |r| r.token = r.token.map(|_| (2, 1)),
];

const CONN_CUTS: &[fn(&mut ConnPlan)] = &[
    |c| c.read_pause = None,
    |c| c.is_http = false,
    |c| c.pipeline = 1,
    |c| c.close = Close::Client,
    |c| c.start_us = 0,
    |c| c.buffers = (65_535, 65_535),
];

const SERVER_CUTS: &[fn(&mut ServerPlan)] = &[
    |s| s.read_pause = None,
    |s| s.split_head_us = None,
    |s| s.chunk = None,
    |s| s.think_us = 0,
    |s| s.buffers = (65_535, 65_535),
];

const STACK_CUTS: &[fn(&mut StackPlan)] = &[
    |s| s.model = None,
    |s| s.timestamps = None,
    |s| s.isn_near_wrap = None,
    |s| s.ack_delay_us = None,
    |s| s.nagle = false,
    |s| s.congestion = 0,
    |s| s.mtu = 1500,
];

const HABIT_CUTS: &[fn(&mut Habits, &Habits)] = &[
    |h, plain| *h = plain.clone(),
    |h, plain| h.mtu = plain.mtu,
    |h, plain| h.clock = plain.clock,
    |h, plain| h.wants_stamps = plain.wants_stamps,
    |h, plain| h.has_sack = plain.has_sack,
    |h, plain| h.scale = plain.scale,
    |h, plain| h.near_wrap = plain.near_wrap,
    |h, plain| h.first_flight = plain.first_flight,
    |h, plain| h.ack_delay = plain.ack_delay,
    |h, plain| h.quick_acks = plain.quick_acks,
    |h, plain| h.nagle = plain.nagle,
    |h, plain| h.chops = plain.chops,
    |h, plain| h.super_bytes = plain.super_bytes,
    |h, plain| h.repeats_acks = plain.repeats_acks,
    |h, plain| h.has_lone_fin = plain.has_lone_fin,
    |h, plain| h.window_step = plain.window_step,
    |h, plain| h.window_rest = plain.window_rest,
    |h, plain| h.probes_with_byte = plain.probes_with_byte,
    |h, plain| h.keep_alive = plain.keep_alive,
    |h, plain| h.has_tail_probe = plain.has_tail_probe,
    |h, plain| h.rto_min = plain.rto_min,
    |h, plain| h.challenge_every = plain.challenge_every,
    |h, plain| h.urgent_at = plain.urgent_at,
    |h, plain| h.has_cookies = plain.has_cookies,
    |h, plain| h.offers_ecn = plain.offers_ecn,
];

const GATEWAY_CUTS: &[fn(&mut GatewayPlan)] = &[
    |g| g.on_lag = LagPolicy::Available,
    |g| (g.fence, g.is_fence_good) = (Fence::None, true),
    |g| g.sync = None,
    |g| g.machine = None,
    |g| {
        if let Some(plan) = &mut g.machine {
            (plan.still_us, plan.ends) = (200, vec![SyncEnd::Copied]);
        }
    },
    |g| {
        if let Some(plan) = &mut g.machine {
            plan.hush_us = 0;
        }
    },
    |g| g.has_partial_csum = false,
    |g| g.hold_hard_ms = 150,
    |g| g.probe_every_ms = 10,
    |g| g.has_cookies = false,
    |g| g.vip = None,
];

const PIPE_CUTS: &[fn(&mut PipePlan)] = &[
    |p| p.loss = 0,
    |p| p.burst = 0,
    |p| p.reorder = 0,
    |p| p.dup = 0,
    |p| p.corrupt = 0,
    |p| p.truncate = 0,
    |p| p.mark = 0,
    |p| p.alter = 0,
    |p| p.mtu = None,
    |p| p.jitter_us = 0,
    |p| p.delay_us = p.delay_us.min(20),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Options, run_scenario};

    #[test]
    fn rules_are_told_apart_and_places_are_not() {
        assert_eq!(rule("port 40007: I13: a frame to A has a bad sum"), "I13");
        assert_eq!(rule("I1: byte 7 shown"), "I1");
        assert_eq!(
            rule("connection 3: the client's byte 12 is wrong"),
            "the client's byte # is wrong"
        );
        assert_eq!(rule("connection 2 broke"), rule("connection 17 broke"));
        assert_ne!(rule("panic: index 3"), rule("panic: no"));
        assert_eq!(rule("cost: 9 frames"), "cost");
    }

    /// An oracle that is too strict: no gateway may send so few frames.
    fn broken(scenario: &Scenario) -> Option<String> {
        let report = run_scenario(scenario, &Options::default());
        report.violation.as_deref().map(rule)
    }

    #[test]
    fn what_does_not_matter_is_taken_away() {
        let mut scenario = Scenario::new(11);
        scenario.cost_max = (0, 20);
        assert!(scenario.conns.len() > 1, "{scenario}");
        let reduced = reduce(&scenario, 3_000, broken);
        let (was, is) = (size(&scenario), size(&reduced.scenario));
        assert!(is.starts_with("1 clients, 1 connections, 1 requests, "), "{is}, was {was}");
        assert!(is.ends_with("0 faults, 0 rough links"), "{is}, was {was}");
        assert_eq!(broken(&reduced.scenario).as_deref(), Some("cost"));
        assert!(reduced.runs < 3_000, "it ends by itself");
    }

    #[test]
    fn a_scenario_that_passes_stays_as_it_is() {
        let scenario = Scenario::new(1);
        let reduced = reduce(&scenario, 100, broken);
        assert_eq!((reduced.scenario, reduced.runs), (scenario, 1));
    }

    #[test]
    fn connections_that_follow_others_stay_in_order() {
        let mut scenario = Scenario::new(1);
        let plan = scenario.conns[0].clone();
        let conn = |id, after| ConnPlan { id, after, ..plan.clone() };
        scenario.conns = vec![conn(0, None), conn(1, Some(0)), conn(2, Some(1)), conn(3, None)];
        remove_conn(&mut scenario, 1);
        let left: Vec<_> = scenario.conns.iter().map(|c| (c.id, c.after)).collect();
        assert_eq!(left, [(0, None), (1, Some(0)), (2, None)]);
    }
}
