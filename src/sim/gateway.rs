//! The gateway's place in the world: the real engine, or a plain wire for the baseline.
//!
//! It carries out what the engine asks for (syncs, fences, records) with seeded outcomes, shows
//! every frame and event to the oracle in the order of the engine's outputs, and never looks into
//! the engine otherwise.

mod quiescence;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::alias::Aliases;
use super::oracle::{Oracle, PROBE_PORTS_FROM, Tuple, tuple_of};
use super::rng::mix;
use super::scenario::{Scenario, ServerPlan};
use super::world::{Captured, Happening, Truth, World};
use crate::engine::{
    Command, Duration, Engine, EngineConfig, Epoch, Event, Fence, Finding, FlowState, Input,
    Instant, LegId, Link, LinkCaps, Output, Record, Reprotect, Roles, ServerState, ServiceState,
    Signal, SoloReason, Source, SyncId, SyncReason, SyncScope, SyncStep,
};
use crate::wire::{CsumSpot, Frame, Gso, GsoKind, Offload, segmentize};

/// Outputs of one input; more is a storm.
const OUTPUTS_MAX: u32 = 100_000;
/// Inputs between two engines that go on from each other.
const RESUME_EVERY: u64 = 37;

/// The box between the links.
#[derive(Debug)]
pub(super) struct Gateway {
    engine: Option<Box<Engine>>,
    is_wire: bool,
    config: EngineConfig,
    timer_at: u64,
    stalled: Option<Vec<(Link, Vec<u8>)>>,
    /// In vip addressing: what hosts are called on the links.
    aliases: Option<Aliases>,
    roles: Option<Roles>,
    records: BTreeMap<u32, Record>,
    generation: u64,
    pub(super) dropped: BTreeSet<(Tuple, usize)>,
    pub(super) late: BTreeSet<(Tuple, usize)>,
    /// Legs that came back after whatever had happened to their server.
    pub(super) regained: BTreeSet<(Tuple, usize)>,
    pub(super) lost_at: [u64; 2],
    /// Servers that were declared failed, rightly or because their link is bad.
    blamed: [bool; 2],
    /// The last sync failed.
    is_stale: bool,
    is_syncing: bool,
    /// Flows that began then.
    began_stale: BTreeSet<Tuple>,
    /// Servers that the engine knows to be up.
    is_there: [bool; 2],
    unjustified: Option<String>,
    commands: u64,
    primary: LegId,
}

impl Gateway {
    /// The engine, not yet started.
    pub fn new(scenario: &Scenario) -> Self {
        let plan = &scenario.gateway;
        let aliases = scenario.vip().map(Aliases::new);
        let config = EngineConfig {
            vip: aliases.as_ref().map(Aliases::plan),
            addresses: vec![std::net::IpAddr::from(super::host::SERVICE)],
            ports: vec![super::host::PORT],
            first_primary: plan.primary,
            on_lag: plan.on_lag,
            hold_hard: std::time::Duration::from_millis(plan.hold_hard_ms),
            probe_every: std::time::Duration::from_millis(plan.probe_every_ms),
            sync_scope: plan.sync.map(|_| match scenario.machine() {
                Some(_) => SyncScope::Machine,
                None => SyncScope::Content,
            }),
            sync_deadline: Self::sync_deadline(scenario),
            fence: plan.fence,
            rules: scenario.rules(),
            reprotect: match plan.reprotect {
                true => Reprotect::Idle,
                false => Reprotect::Never,
            },
            flows_max: 64,
            half_open_max: if plan.has_cookies { 0 } else { 64 },
            ..EngineConfig::default()
        };
        Self {
            engine: None,
            is_wire: false,
            config,
            timer_at: u64::MAX,
            stalled: None,
            aliases,
            roles: None,
            records: BTreeMap::new(),
            generation: 0,
            dropped: BTreeSet::new(),
            late: BTreeSet::new(),
            regained: BTreeSet::new(),
            lost_at: [0; 2],
            blamed: [false; 2],
            is_stale: false,
            is_syncing: false,
            began_stale: BTreeSet::new(),
            is_there: [false; 2],
            unjustified: None,
            commands: 0,
            primary: plan.primary,
        }
    }

    /// A wire between the clients and server A.
    pub fn wire() -> Self {
        let config = EngineConfig::default();
        Self {
            engine: None,
            is_wire: true,
            config,
            timer_at: u64::MAX,
            stalled: None,
            aliases: None,
            roles: None,
            records: BTreeMap::new(),
            generation: 0,
            dropped: BTreeSet::new(),
            late: BTreeSet::new(),
            regained: BTreeSet::new(),
            lost_at: [0; 2],
            blamed: [false; 2],
            is_stale: false,
            is_syncing: false,
            began_stale: BTreeSet::new(),
            is_there: [false; 2],
            unjustified: None,
            commands: 0,
            primary: LegId::A,
        }
    }

    /// How long what differs waits for a sync.
    pub fn sync_deadline(scenario: &Scenario) -> Duration {
        match scenario.machine() {
            Some(_) => Duration::from_secs(1),
            None => EngineConfig::default().sync_deadline,
        }
    }

    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    pub fn is_wire(&self) -> bool {
        self.is_wire
    }

    /// Whether the engine took `leg` from the connection for a reason that the world explains.
    pub fn has_dropped(&self, tuple: Tuple, leg: LegId) -> bool {
        let is_blamed = self.blamed[leg.index()] && !self.has_regained(tuple, leg);
        is_blamed || self.dropped.contains(&(tuple, leg.index()))
    }

    /// Whether `leg` has come back into the connection, and nothing has happened to it since.
    pub fn has_regained(&self, tuple: Tuple, leg: LegId) -> bool {
        self.regained.contains(&(tuple, leg.index()))
    }

    /// Something has happened to `leg`.
    pub fn lose(&mut self, now: u64, leg: LegId) {
        self.lost_at[leg.index()] = now;
        self.regained.retain(|(_, regained)| *regained != leg.index());
    }

    /// Whether `leg` was late on the connection, and the other one went ahead.
    pub fn has_been_late(&self, tuple: Tuple, leg: LegId) -> bool {
        self.late.contains(&(tuple, leg.index()))
    }

    /// `to` is a copy of `from`: what it had lost it has again, if `from` has it.
    fn on_copied(&mut self, oracle: &Oracle, from: LegId, to: LegId) {
        self.blamed[to.index()] = false;
        self.began_stale.clear();
        for (&tuple, flow) in &oracle.flows {
            let is_opening = flow.state == FlowState::Opening;
            if is_opening || (flow.is_carried_by(from) && !flow.was_restored()) {
                self.dropped.remove(&(tuple, to.index()));
                self.late.remove(&(tuple, to.index()));
            } else {
                self.dropped.insert((tuple, to.index()));
            }
            if !is_opening && !flow.is_carried_by(from) {
                self.dropped.insert((tuple, from.index()));
            }
        }
    }

    /// Whether another process than the first one runs.
    pub fn was_restarted(&self) -> bool {
        self.generation > 0
    }

    pub fn primary(&self) -> LegId {
        self.primary
    }
}

fn port_of(frame: &[u8]) -> Option<u16> {
    let is_tcp = frame.len() >= 38 && frame[12..14] == [8, 0] && frame[23] == 6;
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    is_tcp.then(|| port(34).max(port(36)))
}

fn is_flow(frame: &[u8]) -> bool {
    port_of(frame).is_some_and(|port| port < PROBE_PORTS_FROM)
}

impl World<'_> {
    pub fn start_gateway(&mut self) {
        if self.gateway.is_wire {
            return;
        }
        let seed = mix(self.scenario.seed, 900 + self.gateway.generation);
        let now = Instant::from_nanos(self.now);
        let mut engine = Box::new(Engine::new(self.gateway.config.clone(), seed, now));
        let is_again = self.gateway.generation > 0;
        if is_again {
            let roles = self.gateway.roles.map(Record::Roles);
            let records = roles.into_iter().chain(self.gateway.records.values().cloned());
            self.oracle.on_restart(true, &[]);
            engine.handle(now, Input::Restore(records.collect()));
        }
        self.gateway.engine = Some(engine);
        self.drain();
        if is_again && let Some(engine) = &self.gateway.engine {
            let flows = engine.flows(1000);
            self.gateway.primary = engine.status().roles.primary;
            self.oracle.on_restart(false, &flows);
        }
        for link in Link::ALL {
            let is_up = match link {
                Link::Client => true,
                Link::Server(leg) => self.truth[leg.index()].is_on,
            };
            if is_up {
                self.come(link);
            }
        }
        self.arm();
    }

    /// A link is there, now or again.
    pub fn come(&mut self, link: Link) {
        self.oracle.on_link(link);
        let caps = LinkCaps { mac: Some(Aliases::mac(link)), ..LinkCaps::default() };
        self.input(Input::Signal(link, Signal::CarrierUp(caps)));
    }

    /// Hands the engine an input and carries out what it asks for.
    pub fn input(&mut self, input: Input) {
        let Some(engine) = &mut self.gateway.engine else { return };
        engine.handle(Instant::from_nanos(self.now), input);
        self.drain();
        self.resume_gateway();
        self.arm();
    }

    /// Every now and then another engine goes on from what this one is: nobody can tell.
    fn resume_gateway(&mut self) {
        self.inputs += 1;
        if !self.is_resumed || !self.inputs.is_multiple_of(RESUME_EVERY) {
            return;
        }
        let Some(engine) = &mut self.gateway.engine else { return };
        let snapshot =
            engine.snapshot(usize::MAX, usize::MAX).filter(|snapshot| snapshot.left_out == 0);
        if let Some(snapshot) = snapshot {
            match Engine::resume(self.gateway.config.clone(), &snapshot) {
                Some(resumed) => **engine = resumed,
                None => self.fail("a snapshot of the engine cannot be read"),
            }
        }
    }

    pub fn command(&mut self, command: Command) {
        self.gateway.commands += 1;
        self.say(|| format!("command {command:?}"));
        self.input(Input::Command(self.gateway.commands, command));
    }

    fn arm(&mut self) {
        let Some(engine) = &self.gateway.engine else { return };
        if let Some(at) = engine.poll_timeout().map(Instant::nanos)
            && at < self.gateway.timer_at
        {
            let at = at.max(self.now);
            self.gateway.timer_at = at;
            self.at(at, Happening::EngineTimer);
        }
    }

    pub fn on_engine_timer(&mut self) {
        if self.gateway.timer_at > self.now || self.gateway.stalled.is_some() {
            return;
        }
        self.gateway.timer_at = u64::MAX;
        let Some(engine) = &self.gateway.engine else { return };
        match engine.poll_timeout().map(Instant::nanos) {
            Some(at) if at <= self.now => {
                self.input(Input::Timeout);
                self.oracle.on_time(self.now);
                self.check_held();
                self.take_violation();
            }
            _ => self.arm(),
        }
    }

    /// I9: what is held is bounded by what the ends have under way.
    fn check_held(&mut self) {
        let Some(engine) = &self.gateway.engine else { return };
        if self.oracle.flows.values().any(|f| f.was_restored()) {
            return;
        }
        let held = engine.status().held_bytes;
        let most: u64 = self.oracle.flows.values().map(|f| f.held_max()).sum();
        if held > most {
            self.fail(format!("I9: {held} bytes are held, {most} are under way"));
        }
    }

    /// A frame has come to the gateway.
    pub fn at_gateway(&mut self, link: Link, frame: Vec<u8>) {
        if is_flow(&frame) {
            self.spoken_at = self.now;
        }
        if self.gateway.is_wire {
            self.narrate("via", link, &frame);
            match link {
                Link::Client => self.transmit(Link::Server(LegId::A), false, frame),
                Link::Server(LegId::A) => self.transmit(Link::Client, false, frame),
                Link::Server(LegId::B) => {}
            }
            return;
        }
        if let Some(stalled) = &mut self.gateway.stalled {
            return stalled.push((link, frame));
        }
        if self.gateway.engine.is_none() {
            return;
        }
        self.report.frames.0 += u64::from(is_flow(&frame));
        self.narrate("in ", link, &frame);
        self.oracle.on_input(self.now, link, &frame);
        let frame = match &mut self.gateway.aliases {
            Some(aliases) => aliases.inbound(link, frame),
            None => frame,
        };
        let frame = self.as_received(frame);
        self.input(Input::Frame(link, frame));
        self.check_state_triggers();
    }

    /// A frame as a packet socket gives it, its checksum finished or not.
    fn as_received(&mut self, mut frame: Vec<u8>) -> Frame {
        let payload = match super::frames::read(&frame, true) {
            super::frames::Read::Tcp(seg) => Some(seg.data.len()),
            _ => None,
        };
        let mut offload = Offload::default();
        let Some(payload) = payload.filter(|_| frame[14] == 0x45) else {
            return Frame::from_wire(Bytes::from(frame), offload);
        };
        // The model's super-frames say what they are to be cut to as their identification.
        let size = u16::from_be_bytes([frame[18], frame[19]]);
        if size > 0 && payload > usize::from(size) {
            let hdr_len = (14 + super::frames::ip_len(&frame) - payload) as u16;
            offload.gso = Some(Gso { kind: GsoKind::TcpV4, size, hdr_len });
            self.report.rare.on_super_frame();
            // As many frames as it is cut to.
            self.report.frames.0 += (payload / usize::from(size)) as u64;
        }
        if self.scenario.gateway.has_partial_csum || offload.gso.is_some() {
            let len = (frame.len() - 34)
                .min(usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20);
            let mut sum = 6 + len as u32;
            for pair in frame[26..34].chunks_exact(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            frame[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
            offload.needs_csum = Some(CsumSpot { start: 34, offset: 16 });
        }
        Frame::from_wire(Bytes::from(frame), offload)
    }

    fn drain(&mut self) {
        let mut outputs = 0u32;
        while let Some(output) = self.gateway.engine.as_mut().and_then(|e| e.poll_output()) {
            outputs += 1;
            if outputs > OUTPUTS_MAX {
                return self.fail("cost: one input makes outputs without end");
            }
            match output {
                Output::Transmit(link, frame) => self.on_transmit(link, frame),
                Output::Event(event) => self.on_event(&event),
                Output::Persist(record) => self.on_persist(record),
                Output::Sync(request) => {
                    let (id, from, to) = (request.id, request.from, request.to);
                    let (us, ok) = match request.reason {
                        SyncReason::First => (500, true),
                        _ => self.scenario.gateway.sync.unwrap_or((1_000, true)),
                    };
                    match self.scenario.machine() {
                        Some(_) => self.begin_copy(&request, us),
                        None => {
                            let done = Happening::SyncDone(id, ok, from, to);
                            self.at(self.now + us * 1000, done);
                        }
                    }
                }
                Output::CancelSync(id) => self.cancel_copy(id),
                Output::Overwrite(id) => self.overwrite(id),
                Output::Fence { epoch, .. } => {
                    let ok = self.scenario.gateway.is_fence_good;
                    self.at(self.now + 2_000_000, Happening::FenceDone(epoch, ok));
                }
            }
        }
        if self.gateway.engine.is_some() && self.oracle.flows.values().any(|f| f.holds_wrap()) {
            self.report.rare.on_wrap();
        }
        self.take_violation();
    }

    fn take_violation(&mut self) {
        if let Some(what) = self.oracle.violation.take() {
            self.fail(what);
        }
        if let Some(what) = self.gateway.unjustified.take() {
            self.fail(what);
        }
    }

    fn on_transmit(&mut self, link: Link, frame: Frame) {
        let mut cut = Vec::new();
        if !segmentize::for_link(frame, false, false, &mut cut) {
            return self.fail(format!("I13: a super-frame to {link:?} that cannot be cut"));
        }
        for frame in cut {
            let mut bytes = frame.to_vec();
            if let Some(aliases) = &mut self.gateway.aliases {
                let flows = &self.oracle.flows;
                match aliases.outbound(link, bytes, |tuple| flows.contains_key(tuple)) {
                    Ok(Some(frame)) => bytes = frame,
                    Ok(None) => continue,
                    Err(what) => return self.fail(what),
                }
            }
            if let (Link::Server(leg), Some(_)) = (link, &self.gateway.aliases)
                && let Some(way) = Aliases::way_back(link, &bytes)
            {
                self.teach(leg, way);
            }
            self.narrate("out", link, &bytes);
            self.oracle.on_output(self.now, link, &bytes);
            self.report.frames.1 += u64::from(is_flow(&bytes));
            let is_urgent = link == Link::Client && bytes.len() >= 54 && bytes[47] & 32 != 0;
            if is_urgent && is_flow(&bytes) {
                self.report.rare.on_urgent();
            }
            let word = (self.now, bytes.len() as u64, link.index() as u64);
            let seq = bytes.get(38..46).map_or(0, |b| {
                u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
            });
            let trace = self.report.trace ^ word.0 ^ (word.1 << 40) ^ (word.2 << 60) ^ seq;
            self.report.trace = trace.wrapping_mul(0x100_0000_01b3).rotate_left(17);
            self.transmit(link, false, bytes);
        }
    }

    fn on_event(&mut self, event: &Event) {
        if !matches!(event, Event::Released { .. } | Event::Rejected { .. }) {
            self.say(|| format!("event {event:?}"));
        }
        self.report.rare.on_event(event, &self.oracle);
        match event {
            Event::Promoted { primary, finding, .. } => {
                self.gateway.primary = *primary;
                self.report.failovers += 1;
                self.gateway.blamed[primary.other().index()] = true;
                self.gateway.lose(self.now, primary.other());
                let is_asked = *finding == Finding::Operator;
                let plan = &self.scenario.gateway;
                if plan.fence == Fence::Required && !plan.is_fence_good && !is_asked {
                    let what = "2.3: promoted although the required fence failed";
                    self.gateway.unjustified.get_or_insert(what.into());
                }
                if self.backend.has_abandoned(*primary, self.now) {
                    let what = "1.16: a server was promoted that a sync was overwriting";
                    self.gateway.unjustified.get_or_insert(what.into());
                }
                let old = primary.other();
                if !is_asked {
                    self.judge_finding(old, *finding, "promoted");
                }
            }
            Event::Detached { server, finding, .. } => {
                self.report.failovers += 1;
                self.gateway.blamed[server.index()] = true;
                self.gateway.lose(self.now, *server);
                self.judge_finding(*server, *finding, "detached");
            }
            Event::Unprotected { flow, reason } => {
                let tuple = tuple_of(flow);
                let backup = self.gateway.primary.other().index();
                self.gateway.dropped.insert((tuple, backup));
                // A late copy of its SYN begins a flow, which ends what lives at the primary.
                if *reason == SoloReason::HalfOpen {
                    self.gateway.dropped.insert((tuple, 1 - backup));
                }
            }
            Event::OwnStall { .. } => self.oracle.forgive(),
            Event::Diverged { flow, .. } if self.scenario.may_differ() => {
                // What was shown of a lagging flow was never the backup's: it cannot carry it on.
                let tuple = tuple_of(flow);
                let track = self.oracle.flows.get(&tuple);
                let late = track.filter(|t| t.state == FlowState::Lagging);
                let backup = late.map(|t| (tuple, t.primary.other().index()));
                self.gateway.dropped.extend(backup);
            }
            Event::SyncStarted { .. } => self.gateway.is_syncing = true,
            Event::SyncEnded { ok, .. } => {
                (self.gateway.is_stale, self.gateway.is_syncing) = (!ok, false);
                if let (true, Some((from, to))) = (*ok, self.oracle.still()) {
                    self.gateway.on_copied(&self.oracle, from, to);
                }
            }
            Event::ServerChanged { server, to, .. } => {
                self.gateway.is_there[server.index()] =
                    matches!(to, ServerState::Up | ServerState::Unfit);
            }
            Event::FlowChanged {
                flow, from: FlowState::Opening, to: FlowState::Paired, ..
            } if self.gateway.began_stale.contains(&tuple_of(flow)) => {
                let what = "1.14: a flow pairs with a backup whose sync has failed";
                self.gateway.unjustified.get_or_insert(what.into());
            }
            Event::FlowOpened { flow } => {
                let tuple = tuple_of(flow);
                self.gateway.began_stale.remove(&tuple);
                self.gateway.began_stale.extend(self.gateway.is_stale.then_some(tuple));
                let has_cookies = |s: &ServerPlan| {
                    s.stack.model.as_ref().is_some_and(|habits| habits.has_cookies)
                };
                if self.scenario.servers.iter().any(has_cookies) {
                    self.report.rare.on_cookies();
                }
                let away = (0..2).filter(|&leg| !self.gateway.is_there[leg]);
                self.gateway.dropped.extend(away.map(|leg| (tuple, leg)));
            }
            Event::FlowClosed { flow, last: FlowState::Opening, was_reset: true, .. } => {
                // One server refused, the other was silent for a second: enough if it is lossy.
                // Nor is a server asked whose content is stale.
                let tuple = tuple_of(flow);
                let has_fault = |t: &Truth| t.is_dead || t.is_faulted;
                let has_failed = self.report.failovers > 0 || self.truth.iter().any(has_fault);
                let is_stale = self.gateway.is_stale || self.gateway.is_syncing;
                let is_ill = |l: &LegId| {
                    self.truth[l.index()].is_faulted || self.is_rough(*l) || is_stale && has_failed
                };
                let ill: Vec<LegId> = LegId::ALL.into_iter().filter(is_ill).collect();
                self.gateway.dropped.extend(ill.iter().map(|l| (tuple, l.index())));
            }
            Event::FlowReset { flow, .. } => {
                // The survivor of a lagging flow has two seconds to prove what was shown; these
                // stacks may need longer to repeat a segment.
                let tuple = tuple_of(flow);
                if self.oracle.flows.get(&tuple).is_some_and(|f| f.is_late_orphan(self.now)) {
                    self.gateway.dropped.extend([(tuple, 0), (tuple, 1)]);
                }
            }
            Event::Reprotected { flow, server } => self.on_second(tuple_of(flow), *server),
            Event::ServiceChanged { to: ServiceState::Down, .. } if !self.may_be_down() => {
                let what = "the service was said to be down, and nothing was wrong with it";
                self.gateway.unjustified.get_or_insert(what.into());
            }
            Event::FlowChanged { flow, to: FlowState::Lagging, primary, .. } => {
                // It may close before the backup has heard everything.
                self.gateway.late.insert((tuple_of(flow), primary.other().index()));
            }
            Event::FlowChanged { flow, to: FlowState::Solo, primary, solo: Some(why), .. } => {
                let tuple = tuple_of(flow);
                let loser = primary.other();
                if !self.is_explained(tuple, loser, *why) {
                    let what = format!("{loser:?} was taken from a flow for {why:?} without cause");
                    self.gateway.unjustified.get_or_insert(what);
                }
                self.gateway.dropped.insert((tuple, loser.index()));
                self.gateway.regained.remove(&(tuple, loser.index()));
            }
            _ => {}
        }
        self.oracle.on_event(event);
    }

    /// A server was declared failed: something must have been wrong with it.
    fn judge_finding(&mut self, server: LegId, finding: Finding, what: &str) {
        let waits = |tuple: &Tuple| self.waits_for_client(*tuple, server);
        let is_excused = finding == Finding::H3 && self.oracle.flows.keys().any(waits);
        // One that stands still for longer than its sync may take is as good as silent.
        let truth = &self.truth[server.index()];
        let is_excused = is_excused || truth.is_still;
        if !truth.is_faulted && !self.is_rough(server) && !is_excused {
            let what = format!("{server:?} was {what} by {finding:?}, nothing was wrong with it");
            self.gateway.unjustified.get_or_insert(what);
        }
    }

    fn on_persist(&mut self, record: Record) {
        match record {
            Record::Roles(roles) => self.gateway.roles = Some(roles),
            Record::Flow { slot, .. } => {
                self.gateway.records.insert(slot, record);
            }
            Record::Free { slot } => {
                self.gateway.records.remove(&slot);
            }
        }
    }

    pub fn on_sync_done(&mut self, id: SyncId, ok: bool, from: LegId, to: LegId) {
        let is_there = [from, to].iter().all(|l| self.truth[l.index()].is_on);
        let step = match ok && is_there {
            true => {
                self.servers[to.index()].version = self.servers[from.index()].version;
                SyncStep::TargetReady
            }
            false => SyncStep::Failed { message: "by plan".into() },
        };
        self.input(Input::SyncStep(id, step));
    }

    pub fn on_fence_done(&mut self, epoch: Epoch, ok: bool) {
        self.input(Input::Fenced { epoch, ok });
    }

    pub fn stop_gateway(&mut self, down_us: u64) {
        if self.gateway.is_wire || self.gateway.engine.take().is_none() {
            return;
        }
        self.say(|| "the gateway dies".into());
        self.give_up_copy();
        self.gateway.is_there = [false; 2];
        // What the servers' files are is not remembered.
        (self.gateway.is_stale, self.gateway.is_syncing) = (false, false);
        // A handshake leaves no record, and what a lagging backup would have said is not known any
        // more: such a flow passes to the primary, unprotected.
        let backup = self.gateway.primary.other();
        let dropped = self.oracle.flows.iter().filter_map(|(&tuple, flow)| match flow.state {
            FlowState::Opening => Some((tuple, backup.index())),
            FlowState::Lagging => Some((tuple, flow.primary.other().index())),
            _ => None,
        });
        self.gateway.dropped.extend(dropped);
        if let Some(aliases) = &mut self.gateway.aliases {
            let flows = &self.oracle.flows;
            let is_recorded = |f: &super::track::FlowTrack| f.state != FlowState::Opening;
            aliases.forget(|tuple| flows.get(tuple).is_some_and(is_recorded));
        }
        // Where the servers see the gateway, nobody knows any more what such a client was called.
        if self.scenario.vip() == Some(Source::Gateway) {
            let opening = self.oracle.flows.iter().filter(|(_, f)| f.state == FlowState::Opening);
            let both = opening.flat_map(|(&tuple, _)| [(tuple, 0), (tuple, 1)]);
            self.gateway.dropped.extend(both);
        }
        self.gateway.generation += 1;
        self.gateway.timer_at = u64::MAX;
        self.at(self.now + down_us * 1000, Happening::GatewayUp);
    }

    pub fn on_gateway_up(&mut self) {
        self.say(|| "the gateway starts again".into());
        self.start_gateway();
    }

    pub fn stall_gateway(&mut self, us: u64) {
        if self.gateway.stalled.is_none() {
            self.say(|| "the gateway is not scheduled".into());
            self.gateway.stalled = Some(Vec::new());
            self.at(self.now + us * 1000, Happening::StallEnd);
        }
    }

    pub fn on_stall_end(&mut self) {
        let Some(frames) = self.gateway.stalled.take() else { return };
        self.say(|| "the gateway is scheduled again".into());
        self.oracle.forgive();
        for (link, frame) in frames {
            self.at_gateway(link, frame);
        }
        self.gateway.timer_at = u64::MAX;
        self.arm();
    }

    fn narrate(&mut self, way: &str, link: Link, frame: &[u8]) {
        if !self.is_verbose {
            return;
        }
        self.report.captured.push(Captured { at: self.now, link, bytes: frame.to_vec() });
        if !is_flow(frame) {
            return;
        }
        let text = match super::frames::read(frame, true) {
            super::frames::Read::Tcp(s) => {
                let names = [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (16, 'A'), (32, 'U')];
                let flags: String =
                    names.iter().filter(|(b, _)| s.flags & b != 0).map(|(_, n)| *n).collect();
                format!(
                    "{}>{} {flags} seq {} ack {} win {} len {} ts {:?} sack {:?}",
                    s.src.1,
                    s.dst.1,
                    s.seq,
                    s.ack,
                    s.window,
                    s.data.len(),
                    s.stamps,
                    s.sack
                )
            }
            other => format!("{other:?}"),
        };
        self.say(|| format!("{way} {link:?} {text}"));
    }
}
