//! The world: hosts, links and the gateway in virtual time, one heap of events.
//!
//! Nothing here depends on wall time, addresses in memory or hash order: equal seeds give equal
//! traces. The gateway's side is in [`super::gateway`], faults are in [`super::faults`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::agenda::Entry;
use super::ends::{ClientConn, Progress, Server};
use super::gateway::Gateway;
use super::host::{Host, SERVICE};
use super::jar::{Jar, Places};
use super::machine::Backend;
use super::net::{Altered, Pipe};
use super::oracle::{Limits, Oracle};
use super::rare::Rare;
use super::rng::mix;
use super::scenario::{PipePlan, Scenario};
use super::script::{self, Script};
use super::second::Second;
use crate::engine::{Epoch, Fence, LagPolicy, LegId, Link, SyncId};

/// Connections and faults count from here: the gateway has found its servers by then (ns).
pub const WARM_UP: u64 = 60_000_000;
/// Granted to every run on top of three times its baseline (ns).
const GRACE: u64 = 12_000_000_000;
/// Hosts without a gateway are waited for so long (ns).
const ALONE: u64 = 60_000_000_000;
/// Stacks back off for up to a minute (RFC 6298 2.5): connections may be silent for so long (ns).
const BACKOFF: u64 = 65_000_000_000;
/// A run waits for such a silence to end so often.
const BACKOFFS: u32 = 3;
/// Connections that nobody can serve any more are waited for this long (ns).
const HOPELESS: u64 = 2_500_000_000;
/// What is said last has arrived by then (ns).
const LATE: u64 = 2_000_000_000;
/// Events in one run; more is a storm.
const EVENTS_MAX: u64 = 3_000_000;

/// Something to happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// A frame arrives at the gateway, or (false) at the hosts of the link.
    Arrive(Link, bool, Vec<u8>),
    HostWake(usize),
    EngineTimer,
    Start(usize),
    Fault(usize),
    SyncDone(SyncId, bool, LegId, LegId),
    FenceDone(Epoch, bool),
    Hush(SyncId),
    Freeze(SyncId),
    Frozen(SyncId),
    Copy(SyncId),
    GatewayUp,
    StallEnd,
    ServerUp(LegId),
    Resume,
    Calm,
}

/// A server as the world knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Truth {
    /// Frames reach it.
    pub is_on: bool,
    /// Something was done to it that may cost a flow its leg.
    pub is_faulted: bool,
    /// Its processes are gone, or frozen for ever.
    pub is_dead: bool,
    /// The whole machine stands still.
    pub is_still: bool,
    /// What is said to it waits.
    pub is_hushed: bool,
}

/// A frame that came to the gateway or left it.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Virtual time (ns).
    pub at: u64,
    /// Where.
    pub link: Link,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// What a run was.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The first thing that was wrong.
    pub violation: Option<String>,
    /// Rare events reached.
    pub rare: Rare,
    /// Hash of everything that the gateway sent.
    pub trace: u64,
    /// Virtual time when the last connection ended (ns).
    pub ended_at: u64,
    /// Frames that the gateway got and sent.
    pub frames: (u64, u64),
    /// Promotions and detachments.
    pub failovers: u64,
    /// Without the gateway the hosts do not carry it to its end either.
    pub is_unfit: bool,
    /// Narration, if asked for.
    pub log: Vec<String>,
    /// Frames, if asked for.
    pub captured: Vec<Captured>,
}

/// One run.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub scenario: &'a Scenario,
    pub now: u64,
    seq: u64,
    heap: BinaryHeap<Reverse<Entry<Happening>>>,
    /// Frames of each link that left before this are lost.
    cut_before: [u64; 3],
    pub hosts: Vec<Host>,
    wakes: Vec<u64>,
    pub servers: [Server; 2],
    pub truth: [Truth; 2],
    pub conns: Vec<ClientConn>,
    requests: Vec<(Script, Vec<usize>)>,
    jar: Jar,
    pub pipes: [[Pipe; 2]; 3],
    pub gateway: Gateway,
    pub backend: Backend,
    pub oracle: Oracle,
    pub fired: Vec<bool>,
    pub has_state_triggers: bool,
    pub is_calm: bool,
    pub report: Report,
    pub is_verbose: bool,
    /// Every now and then another engine goes on from a snapshot.
    pub is_resumed: bool,
    /// Of the engine, so far.
    pub inputs: u64,
    arrivals: Vec<(u64, Vec<u8>)>,
    /// When a segment of a connection came to the gateway last (ns).
    pub spoken_at: u64,
    /// Whether connections were still open when the run ended.
    pub is_cut_short: bool,
}

pub(super) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];

pub(super) fn client_mac(client: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, 0x80 + client as u8]
}

/// A client host's address.
pub(super) fn client_ip(client: usize) -> [u8; 4] {
    [10, 0, 0, 100 + client as u8]
}

/// Who sends a SYN, if the frame is one.
fn syn_from(frame: &[u8]) -> Option<(super::oracle::Tuple, u32)> {
    match super::frames::read(frame, true) {
        super::frames::Read::Tcp(seg) if seg.has(super::frames::SYN) => Some((seg.src, seg.seq)),
        _ => None,
    }
}

impl<'a> World<'a> {
    /// A world at its beginning; without the gateway, clients stand at server A directly.
    pub fn new(scenario: &'a Scenario, has_gateway: bool, is_verbose: bool) -> Self {
        let seed = scenario.seed;
        let mut hosts: Vec<Host> = Vec::new();
        for (i, plan) in scenario.clients.iter().enumerate() {
            hosts.push(Host::new(plan, client_mac(i), client_ip(i), mix(seed, i as u64), 0));
        }
        for (i, plan) in scenario.servers.iter().enumerate() {
            let seed = mix(seed, 100 + i as u64);
            hosts.push(Host::new(&plan.stack, SERVER_MAC, SERVICE, seed, 0));
        }
        let pipe = |link: usize, way: usize| {
            let mut plan = scenario.links[link][way].clone();
            plan.alter *= u64::from(has_gateway); // alone, nobody would notice
            Pipe::new(&plan, mix(seed, 200 + (link * 2 + way) as u64))
        };
        let may_diverge = scenario.may_diverge();
        let hold = match scenario.gateway.on_lag {
            LagPolicy::Available => Some(scenario.gateway.hold_hard_ms * 1_000_000),
            LagPolicy::Strict => None,
        };
        let diverged = Gateway::sync_deadline(scenario).as_nanos() as u64;
        Self {
            scenario,
            now: 0,
            seq: 0,
            heap: BinaryHeap::new(),
            cut_before: [0; 3],
            wakes: vec![u64::MAX; hosts.len()],
            hosts,
            servers: LegId::ALL.map(|leg| Server::new(leg, scenario)),
            truth: [Truth { is_on: true, ..Truth::default() }; 2],
            conns: scenario.conns.iter().map(|c| ClientConn::new(c, may_diverge)).collect(),
            requests: scenario
                .conns
                .iter()
                .map(|c| script::requests(c, &vec![None; c.requests.len()]))
                .collect(),
            jar: Jar::default(),
            pipes: [0, 1, 2].map(|link| [pipe(link, 0), pipe(link, 1)]),
            gateway: if has_gateway { Gateway::new(scenario) } else { Gateway::wire() },
            backend: Backend::default(),
            oracle: Oracle::new(
                Limits { hold, diverged },
                scenario.gateway.primary,
                scenario.vip().is_some(),
            ),
            fired: vec![false; scenario.faults.len()],
            has_state_triggers: has_gateway && !scenario.faults.is_empty(),
            is_calm: false,
            report: Report::default(),
            is_verbose,
            is_resumed: false,
            inputs: 0,
            arrivals: Vec::new(),
            spoken_at: 0,
            is_cut_short: false,
        }
    }

    pub fn at(&mut self, time: u64, what: Happening) {
        self.seq += 1;
        self.heap.push(Reverse(Entry(time.max(self.now), self.seq, what)));
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if self.is_verbose {
            let line = format!("{:>12.3} ms  {}", self.now as f64 / 1e6, what());
            self.report.log.push(line);
        }
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        if self.report.violation.is_none() {
            let what = what.into();
            self.say(|| format!("VIOLATION {what}"));
            self.report.violation = Some(what);
        }
    }

    pub fn server_host(&self, leg: LegId) -> usize {
        self.scenario.clients.len() + leg.index()
    }

    /// Runs to the end. `baseline` is the same scenario without a gateway, if this one has it: a
    /// run may take three times as long, and has to end if that one does (oracle 5).
    pub fn run(mut self, baseline: Option<&Report>) -> Report {
        self.begin();
        let calm = WARM_UP + self.scenario.calm_us * 1000;
        let alone = baseline.map_or(ALONE, |b| b.ended_at);
        let mut limit = calm + GRACE + 3 * alone + self.scenario.writing_us() * 1000;
        self.report.is_unfit = baseline.is_some_and(|b| b.violation.is_some());
        if let Some(alone) = baseline {
            self.say(|| format!("without the gateway it takes {} ms", alone.ended_at / 1_000_000));
        }
        let mut backoffs = 0;
        let mut events = 0u64;
        while self.report.violation.is_none() && !self.is_over(calm) {
            let Some(Reverse(Entry(time, seq, what))) = self.heap.pop() else {
                self.fail("liveness: nothing more happens, connections are open");
                break;
            };
            if time > limit && backoffs < BACKOFFS {
                backoffs += 1;
                limit = limit.max(self.spoken_at + BACKOFF);
            }
            events += 1;
            if time > limit && (self.report.is_unfit || self.is_stalled_by_smoltcp()) {
                break;
            }
            if time > limit || events > EVENTS_MAX {
                let why = self.unfinished();
                self.fail(format!("liveness: {why} after {} ms", time / 1_000_000));
                break;
            }
            self.now = time;
            if !self.is_cut(seq, &what) {
                self.happen(what);
            }
        }
        self.report.ended_at = self.now;
        self.is_cut_short = !self.conns.iter().all(is_ended);
        if self.is_searched_for_leaks() {
            self.run_on();
        }
        self.check_end();
        self.report
    }

    /// Whether what is left at the end is looked at: it takes a while.
    pub fn is_searched_for_leaks(&self) -> bool {
        self.scenario.seed.is_multiple_of(16) && !self.gateway.is_wire()
    }

    /// Lets what is on its way arrive; nothing else begins.
    fn run_on(&mut self) {
        let until = self.now + LATE;
        while self.report.violation.is_none()
            && let Some(Reverse(Entry(time, ..))) = self.heap.peek()
            && *time <= until
        {
            let Some(Reverse(Entry(time, seq, what))) = self.heap.pop() else { return };
            self.now = time;
            let begins = matches!(what, Happening::Fault(_) | Happening::Start(_));
            if !begins && !self.is_cut(seq, &what) {
                self.happen(what);
            }
        }
    }

    fn is_cut(&self, seq: u64, what: &Happening) -> bool {
        matches!(what, Happening::Arrive(link, ..) if seq <= self.cut_before[link.index()])
    }

    /// What is on its way to `leg` or from it is lost.
    pub fn cut(&mut self, leg: LegId) {
        self.cut_before[Link::Server(leg).index()] = self.seq;
    }

    /// When everything that `leg` has said will have arrived (ns).
    pub fn heard_by(&self, leg: LegId) -> u64 {
        let link = Link::Server(leg);
        let is_said =
            |what: &Happening| matches!(what, Happening::Arrive(l, true, _) if *l == link);
        let said = self.heap.iter().filter(|Reverse(e)| is_said(&e.2));
        said.map(|Reverse(e)| e.0).max().unwrap_or(self.now).max(self.now)
    }

    fn begin(&mut self) {
        for leg in LegId::ALL {
            let host = self.server_host(leg);
            self.servers[leg.index()].listen(&mut self.hosts[host]);
        }
        self.start_gateway();
        for i in 0..self.conns.len() {
            if self.scenario.conns[i].after.is_none() {
                self.at(WARM_UP + self.scenario.conns[i].start_us * 1000, Happening::Start(i));
            }
        }
        if self.gateway.is_wire() {
            return self.at(WARM_UP + self.scenario.calm_us * 1000, Happening::Calm);
        }
        self.schedule_faults();
        self.at(WARM_UP + self.scenario.calm_us * 1000, Happening::Calm);
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrive(link, true, frame) => self.at_gateway(link, frame),
            Happening::Arrive(link, false, frame) => self.at_hosts(link, frame),
            Happening::HostWake(host) => {
                if self.wakes[host] <= self.now {
                    self.wakes[host] = u64::MAX;
                    self.serve(host);
                }
            }
            Happening::EngineTimer => self.on_engine_timer(),
            Happening::Start(conn) => self.start(conn),
            Happening::Fault(fault) => self.fire(fault),
            Happening::SyncDone(id, ok, from, to) => self.on_sync_done(id, ok, from, to),
            Happening::FenceDone(epoch, ok) => self.on_fence_done(epoch, ok),
            Happening::Hush(id) => self.hush(id),
            Happening::Freeze(id) => self.freeze(id),
            Happening::Frozen(id) => self.on_frozen(id),
            Happening::Copy(id) => self.end_copy(id),
            Happening::GatewayUp => self.on_gateway_up(),
            Happening::StallEnd => self.on_stall_end(),
            Happening::ServerUp(leg) => self.on_server_up(leg),
            Happening::Resume => self.resume(),
            Happening::Calm => self.calm(),
        }
    }

    fn calm(&mut self) {
        self.is_calm = true;
        self.has_state_triggers = false;
        for pipe in self.pipes.iter_mut().flatten() {
            pipe.is_calm = true;
            pipe.cut_until = 0;
        }
        self.say(|| "calm".into());
    }

    fn start(&mut self, id: usize) {
        let plan = &self.scenario.conns[id];
        if let Some(before) = plan.after {
            self.conns[usize::from(before)].release(&mut self.hosts[plan.client]);
        }
        let tuple = (client_ip(plan.client), plan.port);
        let spans = self.conns[id].verifier.spans().to_vec();
        let tokens = self.conns[id].verifier.tokens().to_vec();
        let conn = &self.conns[id];
        let mut cookies = Places::new(plan.id, conn.verifier.cookies());
        cookies.ask(plan.id, &conn.requests.0);
        self.oracle.expect(tuple, spans.into_iter(), tokens, cookies);
        let messages = match plan.is_http {
            true => Second::new(plan.id, &conn.requests.1, conn.answer_ends()),
            false => Second::default(),
        };
        self.oracle.expect_messages(tuple, messages);
        self.conns[id].begin(self.now, &mut self.hosts[plan.client], plan);
        self.say(|| format!("connection {id} begins on port {}", plan.port));
        self.serve(plan.client);
    }

    /// What a server's host knows from the beginning: nothing of that meets the link.
    pub fn teach(&mut self, leg: LegId, frame: Vec<u8>) {
        let truth = &self.truth[leg.index()];
        if truth.is_on && !truth.is_still {
            let host = self.server_host(leg);
            self.hosts[host].deliver(self.now, frame);
        }
    }

    pub fn at_hosts(&mut self, link: Link, frame: Vec<u8>) {
        let is_group = frame.first().is_some_and(|b| b & 1 == 1);
        match link {
            Link::Client => {
                for i in 0..self.scenario.clients.len() {
                    if is_group || frame[..6] == client_mac(i) {
                        self.hosts[i].deliver(self.now, frame.clone());
                        self.serve(i);
                    }
                }
            }
            Link::Server(leg) => {
                let truth = &self.truth[leg.index()];
                if truth.is_still || truth.is_hushed {
                    return self.backend.wait(leg, frame);
                }
                if self.truth[leg.index()].is_on {
                    let host = self.server_host(leg);
                    let deaf = match syn_from(&frame) {
                        Some((from, seq)) => {
                            self.servers[leg.index()].on_syn(&mut self.hosts[host], from, seq)
                        }
                        None => Vec::new(),
                    };
                    deaf.iter().for_each(|&h| self.hosts[host].socket(h).close());
                    self.hosts[host].deliver(self.now, frame);
                    if !deaf.is_empty() {
                        self.poll(host, link);
                        for &h in &deaf {
                            self.hosts[host].socket(h).listen();
                        }
                    }
                    self.serve(host);
                }
            }
        }
    }

    /// Lets a host's stack and applications work, and sends what they send.
    pub fn serve(&mut self, host: usize) {
        let clients = self.scenario.clients.len();
        let link = match host.checked_sub(clients) {
            None => Link::Client,
            Some(leg) => Link::Server(LegId::ALL[leg]),
        };
        if let Link::Server(leg) = link
            && (!self.truth[leg.index()].is_on || self.truth[leg.index()].is_still)
        {
            return;
        }
        self.poll(host, link);
        let wake = match link {
            Link::Client => self.work_clients(host),
            Link::Server(leg) => self.work_server(leg),
        };
        self.poll(host, link);
        let wake = self.hosts[host].wake_at().into_iter().chain(wake).min();
        if let Some(wake) = wake.filter(|&w| w < self.wakes[host]) {
            self.wakes[host] = wake;
            self.at(wake, Happening::HostWake(host));
        }
    }

    fn poll(&mut self, host: usize, link: Link) {
        for frame in self.hosts[host].poll(self.now) {
            self.transmit(link, true, frame);
        }
    }

    /// Puts a frame on a link, towards the gateway or away from it.
    pub fn transmit(&mut self, link: Link, to_gateway: bool, frame: Vec<u8>) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let way = if to_gateway { 0 } else { 1 };
        let pipe = &mut self.pipes[link.index()][way];
        pipe.send(self.now, frame, &mut arrivals);
        let too_large = std::mem::take(&mut pipe.too_large);
        let (mtu, altered) = (pipe.mtu(), std::mem::take(&mut pipe.altered));
        for (large, mtu) in too_large.iter().zip(mtu.into_iter().cycle()) {
            self.report.rare.on_too_large();
            self.say(|| format!("a packet of {} bytes is too large", large.len() - 14));
            self.transmit(link, !to_gateway, super::frames::frag_needed(large, mtu));
        }
        for altered in altered {
            self.on_altered(link, altered);
        }
        for (time, frame) in arrivals.drain(..) {
            self.at(time, Happening::Arrive(link, to_gateway, frame));
        }
        self.arrivals = arrivals;
    }

    /// A server's bad memory changed a byte: the client may hear it, if nobody noticed.
    fn on_altered(&mut self, link: Link, altered: Altered) {
        let Link::Server(leg) = link else { return };
        // A flow that passes through unprotected is not followed.
        let flow = self.oracle.flows.get_mut(&altered.to);
        let place = flow.and_then(|flow| {
            let place = flow.place(leg, altered.seq)?;
            flow.altered.push(place);
            Some(place)
        });
        let at = place.and_then(|place| Some(place.checked_sub(1)? as usize));
        self.report.rare.on_altered();
        self.say(|| format!("{leg:?} says its byte {at:?} wrongly"));
        for id in 0..self.conns.len() {
            if self.tuple(id) == altered.to && self.conns[id].progress == Progress::Open {
                self.conns[id].verifier.tolerate(at, altered.byte);
            }
        }
    }

    fn work_clients(&mut self, host: usize) -> Option<u64> {
        let mut wake = None;
        for id in 0..self.conns.len() {
            let plan = &self.scenario.conns[id];
            if plan.client != host || self.conns[id].progress != Progress::Open {
                continue;
            }
            let host = &mut self.hosts[host];
            let worked = self.conns[id].work(self.now, host, plan, &mut self.jar);
            if !self.requests[id].0.returned().is_empty() {
                self.requests[id].clone_from(&self.conns[id].requests);
                let (said, ends) = &self.requests[id];
                self.oracle.on_asked(self.tuple(id), plan.id, said, ends);
            }
            match worked {
                Ok(more) => wake = [wake, more].into_iter().flatten().min(),
                Err(what) => self.fail(format!("connection {id}: {what}")),
            }
            if self.conns[id].progress != Progress::Open {
                self.on_conn_ended(id);
            }
        }
        self.check_byte_triggers();
        wake
    }

    fn on_conn_ended(&mut self, id: usize) {
        let (progress, heard) = (self.conns[id].progress, self.conns[id].verifier.heard());
        let all = self.conns[id].verifier.len();
        self.say(|| format!("connection {id} ended {progress:?}, {heard} of {all} bytes heard"));
        if progress == Progress::Broken && !self.is_excused(id) {
            self.fail(format!("connection {id} broke although a server could carry it"));
        }
        if progress == Progress::Done && !self.gateway.is_wire() {
            self.check_inputs(id);
        }
        for next in 0..self.conns.len() {
            if self.scenario.conns[next].after == Some(id as u16) {
                let delay = self.scenario.conns[next].start_us * 1000;
                self.at(self.now + delay, Happening::Start(next));
            }
        }
    }

    /// Oracle 2 at a clean close: servers that carried it to the end have heard all of it.
    fn check_inputs(&mut self, id: usize) {
        if self.scenario.conns[id].close == super::scenario::Close::Abort {
            return;
        }
        for leg in LegId::ALL {
            let (read, _) = self.servers[leg.index()].inputs[id];
            let flow = self.oracle.flows.get(&self.tuple(id));
            let bytes = flow.map_or(read, |flow| read.max(flow.second.unasked(leg)));
            let all = self.requests[id].0.len();
            let is_late = self.gateway.has_been_late(self.tuple(id), leg);
            if bytes < all && !is_late && !self.is_leg_excused(id, leg) {
                self.fail(format!("connection {id} closed, {leg:?} has read {bytes} of {all}"));
            }
        }
    }

    fn work_server(&mut self, leg: LegId) -> Option<u64> {
        let host = self.server_host(leg);
        let server = &mut self.servers[leg.index()];
        match server.work(self.now, &mut self.hosts[host], self.scenario, &self.requests) {
            Ok(wake) => wake,
            Err(what) => {
                self.fail(what);
                None
            }
        }
    }

    /// Whether something has happened to `leg` that may have cost the connection this server.
    pub fn is_leg_excused(&self, id: usize, leg: LegId) -> bool {
        let tuple = self.tuple(id);
        let is_left = |f: &super::track::FlowTrack| f.is_left_behind(leg, self.now);
        let is_regained = self.gateway.has_regained(tuple, leg);
        self.truth[leg.index()].is_faulted && !is_regained
            || self.may_forget(leg)
            || self.gateway.has_dropped(tuple, leg)
            || self.oracle.flows.get(&tuple).is_some_and(|f| is_left(f) || f.has_lost_map())
    }

    /// A server that keeps nothing of a handshake knows nothing of the connection when the first
    /// that it hears is not the client's first segment: it resets, with and without a gateway.
    fn may_forget(&self, leg: LegId) -> bool {
        let is_disturbed = |p: &PipePlan| p.is_lossy() || p.reorder > 0;
        self.hosts[self.server_host(leg)].habits().is_some_and(|habits| habits.has_cookies)
            && [&self.scenario.links[0][0], &self.scenario.links[1 + leg.index()][1]]
                .into_iter()
                .any(is_disturbed)
    }

    /// A cookie is known by the client's first segment, and by the process that gave it.
    fn has_lost_cookie(&self, id: usize) -> bool {
        let way = &self.scenario.links[0][0];
        let may_miss = self.scenario.gateway.has_cookies && (way.is_lossy() || way.reorder > 0);
        may_miss || self.oracle.has_lost_cookie(&self.tuple(id))
    }

    pub fn is_excused(&self, id: usize) -> bool {
        // Without its fence the gateway may not promote: one death is enough.
        let gateway = &self.scenario.gateway;
        let cannot_fence = gateway.fence == Fence::Required && !gateway.is_fence_good;
        let is_faulted = self.truth.iter().any(|t| t.is_faulted);
        if self.has_lost_cookie(id) {
            return true;
        }
        let alone: &[LegId] = if self.gateway.is_wire() { &[LegId::A] } else { &LegId::ALL };
        alone.iter().all(|&leg| self.is_leg_excused(id, leg)) || (cannot_fence && is_faulted)
    }

    fn tuple(&self, id: usize) -> super::oracle::Tuple {
        let plan = &self.scenario.conns[id];
        (client_ip(plan.client), plan.port)
    }

    fn is_over(&self, calm: u64) -> bool {
        if self.conns.iter().all(is_ended) {
            return true;
        }
        self.now > calm + HOPELESS
            && (0..self.conns.len()).all(|id| is_ended(&self.conns[id]) || self.is_excused(id))
    }

    /// smoltcp 0.13 sometimes asks a window that is open, or nothing at all, instead of repeating
    /// what was lost: its stream has a hole, or an end, that nobody else can fill.
    fn is_stalled_by_smoltcp(&self) -> bool {
        let is_smol = |host: usize| matches!(self.hosts[host], Host::Smol(_));
        let is_stalled = |id: usize| {
            let Some(flow) = self.oracle.flows.get(&self.tuple(id)) else { return false };
            let has_hole = |l: LegId| is_smol(self.server_host(l)) && flow.leg(l).said.has_hole(1);
            let is_mute = |l: LegId| is_smol(self.server_host(l)) && flow.has_given_up(l, self.now);
            LegId::ALL.into_iter().any(|l| has_hole(l) || is_mute(l))
                || (is_smol(self.scenario.conns[id].client) && flow.is_client_holed())
        };
        let is_open = |&id: &usize| self.conns[id].progress == Progress::Open;
        let open: Vec<usize> = (0..self.conns.len()).filter(is_open).collect();
        !open.is_empty() && open.into_iter().all(is_stalled)
    }

    fn unfinished(&self) -> String {
        let open = self.conns.iter().enumerate().filter(|(_, c)| !is_ended(c));
        let all: Vec<String> = open
            .map(|(id, c)| {
                let (heard, len) = (c.verifier.heard(), c.verifier.len());
                format!("connection {id} has {heard} of {len} bytes")
            })
            .collect();
        all.join(", ")
    }
}

fn is_ended(conn: &ClientConn) -> bool {
    matches!(conn.progress, Progress::Done | Progress::Broken)
}
