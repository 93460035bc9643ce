//! Thousands of connections through one failover after another, each mended by a sync of scope
//! Machine: the same connections from the first to the last, every byte of every answer checked.
//!
//! A world of its own, made for numbers: connections of the model without the hosts around them,
//! links that only delay. In each round all clients ask, the primary dies while they are answered,
//! comes back empty, and becomes a copy of the survivor while some clients ask again.

mod ends;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use self::ends::{Client, Machine, Peer, Server};
use super::agenda::Entry;
use super::host::{PORT, SERVICE};
use super::rng::{Rng, mix};
use crate::engine::{
    Command, Duration, Engine, EngineConfig, Event, FlowState, Input, Instant, LegId, Link,
    LinkCaps, Output, Signal, SyncId, SyncScope, SyncStep,
};
use crate::wire::{Frame, Offload, segmentize};
use bytes::Bytes;

const MS: u64 = 1_000_000;
/// Clients begin, and ask, within this time (ns).
const SPREAD: u64 = 20 * MS;
/// The primary dies so long after the first question (ns).
const DEATH: u64 = 12 * MS;
/// It is gone for so long (ns).
const GONE: u64 = 100 * MS;
/// Source and target of a sync stand still for so long, when the source has been heard (ns).
const STILL: u64 = 3 * MS;
/// Who has no answer by then has none (ns).
const PATIENCE: u64 = 20_000 * MS;
/// A round takes at least so long: syncs keep a distance (ns).
const ROUND: u64 = 2_500 * MS;
/// One client in so many asks while the servers stand still.
const RESTLESS: usize = 10;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Connections.
    pub flows: usize,
    /// Deaths of the primary, one after the other.
    pub failovers: u32,
    /// Feeds the hosts' chance.
    pub seed: u64,
}

/// What came of it, so far.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Failovers.
    pub failovers: u32,
    /// Connections that went through each, added up.
    pub flow_failovers: u64,
    /// Connections lost.
    pub lost: usize,
    /// Connections that had one server when the sync began, and two after it, added up.
    pub restored: u64,
    /// Answers that were under way at a failover, added up.
    pub in_mid_answer: u64,
    /// Bytes of answers that clients heard, all right.
    pub bytes: u64,
    /// Frames that the gateway got and sent.
    pub frames: (u64, u64),
    /// Virtual time (ns).
    pub time: u64,
    /// The first thing that was wrong.
    pub violation: Option<String>,
}

/// Runs it; `on_round` hears of each round, and stops it by returning false.
pub fn run(plan: &Plan, mut on_round: impl FnMut(&Outcome) -> bool) -> Outcome {
    let mut crowd = Crowd::new(plan);
    crowd.open();
    while crowd.outcome.failovers < plan.failovers && crowd.outcome.violation.is_none() {
        crowd.round();
        crowd.outcome.time = crowd.now;
        if !on_round(&crowd.outcome) {
            break;
        }
    }
    crowd.outcome
}

#[derive(Debug)]
enum Happening {
    /// A frame arrives at the gateway, or (false) at the hosts; frames of a server that has begun
    /// anew since are lost.
    Arrive(Link, bool, Vec<u8>, u32),
    Ask(usize),
    ClientWake(usize),
    ServerWake(LegId, Peer),
    EngineTimer,
}

#[derive(Debug)]
struct Crowd {
    now: u64,
    seq: u64,
    heap: BinaryHeap<Reverse<Entry<Happening>>>,
    engine: Engine,
    timer_at: u64,
    clients: Vec<Client>,
    servers: [Server; 2],
    content: Vec<u8>,
    seed: u64,
    primary: LegId,
    commands: u64,
    /// Answers that are awaited.
    awaited: usize,
    sync: Option<(SyncId, LegId, LegId)>,
    may_overwrite: bool,
    outcome: Outcome,
}

impl Crowd {
    fn new(plan: &Plan) -> Self {
        let mut rng = Rng::new(mix(plan.seed, 0xc0d));
        let config = EngineConfig {
            addresses: vec![IpAddr::from(SERVICE)],
            ports: vec![PORT],
            sync_scope: Some(SyncScope::Machine),
            sync_deadline: Duration::from_secs(1),
            flows_max: plan.flows + 1024,
            ..EngineConfig::default()
        };
        let clients = (0..plan.flows).map(|flow| Client::new(flow, &mut rng)).collect();
        Self {
            now: 0,
            seq: 0,
            heap: BinaryHeap::new(),
            engine: Engine::new(config, plan.seed, Instant::ZERO),
            timer_at: u64::MAX,
            clients,
            servers: LegId::ALL.map(Server::new),
            content: ends::content(),
            seed: plan.seed,
            primary: LegId::A,
            commands: 0,
            awaited: 0,
            sync: None,
            may_overwrite: false,
            outcome: Outcome::default(),
        }
    }

    // ---- the story -------------------------------------------------------------------------

    /// Finds the servers, makes them equal, and opens every connection.
    fn open(&mut self) {
        for link in Link::ALL {
            self.input(Input::Signal(link, Signal::CarrierUp(LinkCaps::default())));
        }
        self.run_until(|c| c.sync.is_some(), PATIENCE, "the first sync");
        self.copy();
        for flow in 0..self.clients.len() {
            self.ask_at(flow, self.now + SPREAD * flow as u64 / self.clients.len() as u64);
        }
        self.run_for(SPREAD + MS);
        self.run_until(|c| c.awaited == 0, PATIENCE, "the first answers");
    }

    /// One failover, and all that follows until every connection has two servers again.
    fn round(&mut self) {
        let began = self.now;
        let (flows, dies) = (self.clients.len(), self.primary);
        for flow in 0..flows {
            self.ask_at(flow, self.now + SPREAD * flow as u64 / flows as u64);
        }
        self.run_for(DEATH);
        self.outcome.in_mid_answer += self.awaited as u64;
        let evidence = match self.outcome.failovers % 2 {
            0 => Signal::CarrierDown,
            _ => Signal::Exited,
        };
        self.servers[dies.index()].is_on = false;
        self.input(Input::Signal(Link::Server(dies), evidence));
        self.run_for(SPREAD);
        self.run_until(|c| c.awaited == 0, PATIENCE, "answers after a failover");
        self.note_lost();
        self.outcome.failovers += 1;
        self.outcome.flow_failovers += self.clients.iter().filter(|c| !c.is_lost).count() as u64;
        if self.primary == dies {
            return self.fail("nobody took over".into());
        }
        self.run_for(GONE);
        self.come_back(dies);
        self.run_until(|c| c.sync.is_some(), PATIENCE, "a sync");
        for flow in (0..flows).step_by(RESTLESS) {
            self.ask_at(flow, self.now + 2 * STILL * flow as u64 / flows as u64);
        }
        self.run_for(STILL);
        let solo = self.engine.status().flows[FlowState::Solo as usize];
        self.copy();
        self.run_for(2 * STILL);
        self.run_until(|c| c.awaited == 0, PATIENCE, "answers around a sync");
        let alive = self.clients.iter().filter(|c| !c.is_lost).count();
        let is_mended =
            |c: &Self| c.engine.status().flows[FlowState::Paired as usize] == alive as u32;
        self.run_until(is_mended, PATIENCE, "two servers for every connection");
        self.outcome.restored += u64::from(solo);
        self.note_lost();
        self.run_for((began + ROUND).saturating_sub(self.now));
    }

    /// The server that died is back without a memory, and the operator takes it.
    fn come_back(&mut self, leg: LegId) {
        let server = &mut self.servers[leg.index()];
        server.machine = Machine::default();
        server.generation += 1;
        server.is_on = true;
        let up = Signal::CarrierUp(LinkCaps::default());
        self.input(Input::Signal(Link::Server(leg), up));
        self.run_for(20 * MS);
        self.commands += 1;
        self.input(Input::Command(self.commands, Command::Rejoin(leg)));
    }

    /// The sync that was asked for: both stand still, and one becomes what the other is.
    fn copy(&mut self) {
        let Some((id, from, to)) = self.sync.take() else { return };
        for server in &mut self.servers {
            server.is_still = true;
        }
        // What the old target said or was to hear is of no connection that lives on.
        self.servers[to.index()].generation += 1;
        let source = Link::Server(from);
        let is_said =
            |what: &Happening| matches!(what, Happening::Arrive(l, true, ..) if *l == source);
        let said = self.heap.iter().filter(|Reverse(e)| is_said(&e.2));
        let heard = said.map(|Reverse(e)| e.0).max();
        self.run_for(heard.unwrap_or(self.now).saturating_sub(self.now));
        self.input(Input::SyncStep(id, SyncStep::Frozen));
        if !std::mem::take(&mut self.may_overwrite) {
            return self.fail("the engine does not let a sync go on".into());
        }
        self.run_for(STILL);
        self.servers[to.index()].machine = self.servers[from.index()].machine.clone();
        self.input(Input::SyncStep(id, SyncStep::TargetReady));
        self.servers[to.index()].waiting.clear();
        for leg in LegId::ALL {
            self.servers[leg.index()].is_still = false;
            for frame in std::mem::take(&mut self.servers[leg.index()].waiting) {
                self.at_server(leg, &frame);
            }
            for peer in self.servers[leg.index()].machine.resume() {
                self.serve(leg, peer);
            }
        }
    }

    fn note_lost(&mut self) {
        for client in &mut self.clients {
            client.is_lost |= client.is_wanting();
        }
        self.outcome.lost = self.clients.iter().filter(|c| c.is_lost).count();
    }

    fn fail(&mut self, what: String) {
        self.outcome.violation.get_or_insert(what);
    }

    // ---- time ------------------------------------------------------------------------------

    fn at(&mut self, time: u64, what: Happening) {
        self.seq += 1;
        self.heap.push(Reverse(Entry(time.max(self.now), self.seq, what)));
    }

    fn ask_at(&mut self, flow: usize, time: u64) {
        self.awaited += 1;
        self.at(time, Happening::Ask(flow));
    }

    fn run_for(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.step(end) {}
        self.now = end;
    }

    fn run_until(&mut self, is_reached: impl Fn(&Self) -> bool, patience: u64, what: &str) {
        let end = self.now + patience;
        while self.outcome.violation.is_none() && !is_reached(self) {
            if !self.step(end) {
                self.note_lost();
                let (awaited, lost) = (self.awaited, self.outcome.lost);
                let flows = self.engine.status().flows;
                return self.fail(format!(
                    "{what} did not come: {awaited} awaited, {lost} lost, flows {flows:?}"
                ));
            }
        }
    }

    /// The next thing that happens, if it happens by `end`.
    fn step(&mut self, end: u64) -> bool {
        if self.heap.peek().is_none_or(|Reverse(e)| e.0 > end) || self.outcome.violation.is_some() {
            return false;
        }
        let Some(Reverse(Entry(time, _, what))) = self.heap.pop() else { return false };
        self.now = time;
        match what {
            Happening::Arrive(link, to_gateway, frame, generation) => {
                let is_new = |leg: LegId| self.servers[leg.index()].generation == generation;
                match (link, to_gateway) {
                    (Link::Client, true) => self.at_gateway(link, frame),
                    (Link::Client, false) => self.at_client(&frame),
                    (Link::Server(leg), _) if !is_new(leg) => {}
                    (Link::Server(_), true) => self.at_gateway(link, frame),
                    (Link::Server(leg), false) => self.at_server(leg, &frame),
                }
            }
            Happening::Ask(flow) => self.ask(flow),
            Happening::ClientWake(flow) => {
                if self.clients[flow].wake <= self.now {
                    self.clients[flow].wake = u64::MAX;
                    self.work(flow);
                }
            }
            Happening::ServerWake(leg, peer) => {
                if self.servers[leg.index()].machine.is_due(peer, self.now) {
                    self.serve(leg, peer);
                }
            }
            Happening::EngineTimer => {
                if self.timer_at <= self.now {
                    self.timer_at = u64::MAX;
                    self.input(Input::Timeout);
                }
            }
        }
        true
    }

    // ---- the gateway -----------------------------------------------------------------------

    fn at_gateway(&mut self, link: Link, frame: Vec<u8>) {
        self.outcome.frames.0 += 1;
        self.input(Input::Frame(link, Frame::from_wire(Bytes::from(frame), Offload::default())));
    }

    fn input(&mut self, input: Input) {
        self.engine.handle(Instant::from_nanos(self.now), input);
        let mut cut = Vec::new();
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => {
                    segmentize::for_link(frame, false, false, &mut cut);
                    for frame in cut.drain(..) {
                        self.outcome.frames.1 += 1;
                        self.transmit(link, false, frame.to_vec());
                    }
                }
                Output::Sync(request) => self.sync = Some((request.id, request.from, request.to)),
                Output::Overwrite(_) => self.may_overwrite = true,
                Output::Event(event) => self.on_event(&event),
                Output::CancelSync(_) => self.sync = None,
                Output::Fence { .. } | Output::Persist(_) => {}
            }
        }
        if let Some(at) = self.engine.poll_timeout().map(Instant::nanos)
            && at < self.timer_at
        {
            self.timer_at = at.max(self.now);
            self.at(self.timer_at, Happening::EngineTimer);
        }
    }

    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Promoted { primary, reset, .. } => {
                self.primary = *primary;
                if *reset > 0 {
                    self.fail(format!("{reset} connections were reset at a failover"));
                }
            }
            Event::Diverged { flow, .. } => self.fail(format!("{flow} diverged")),
            Event::FlowReset { flow, .. } => self.fail(format!("{flow} was reset")),
            _ => {}
        }
    }

    fn transmit(&mut self, link: Link, to_gateway: bool, frame: Vec<u8>) {
        let (delay, generation) = match link {
            Link::Client => (MS, 0),
            Link::Server(leg) => {
                let server = &self.servers[leg.index()];
                ([100_000, 150_000][leg.index()], server.generation)
            }
        };
        self.at(self.now + delay, Happening::Arrive(link, to_gateway, frame, generation));
    }
}

#[cfg(test)]
mod tests {
    use super::ends::{ANSWER_BYTES, flow_of, peer_of};
    use super::*;

    #[test]
    fn the_same_connections_survive_every_failover_and_have_two_servers_again() {
        let plan = Plan { flows: 300, failovers: 6, seed: 1 };
        let mut rounds = 0;
        let outcome = run(&plan, |_| {
            rounds += 1;
            true
        });
        assert_eq!((outcome.violation, outcome.lost, rounds), (None, 0, 6));
        assert_eq!((outcome.flow_failovers, outcome.restored), (1800, 1800));
        assert!(outcome.in_mid_answer > 300, "{} in mid-answer", outcome.in_mid_answer);
        assert!(outcome.bytes > 300 * 7 * ANSWER_BYTES.0);
    }

    #[test]
    fn flows_and_their_addresses_are_one_to_one() {
        for flow in [0, 1, 999, 1000, 99_999] {
            assert_eq!(flow_of(peer_of(flow)), Some(flow));
        }
    }
}
