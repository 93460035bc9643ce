//! [`Engine`]: takes inputs, finds the flow or the row of the bridge that they concern, carries
//! out the control side's orders, and keeps the timers.

mod calls;
mod data;
mod looking;
mod opening;
mod probing;
mod reprotecting;
mod restoring;
mod snapshot;
mod syncing;

use std::collections::VecDeque;
use std::net::IpAddr;

use bytes::Bytes;

use super::address::{DataPorts, Inbound, Translator};
use super::allowance::Allowance;
use super::bridge::{self, Bridge, View};
use super::control::{Control, Facts, Order};
use super::cookies::Cookies;
use super::event::{Event, Evidence, FlowKey, FlowState, RejectReason, ServerState};
use super::expected::Expected;
use super::flow::{Cx, Fate, Flow, Profile, Report};
use super::flow_table::{FlowId, FlowTable};
use super::fragments::{Fragments, Reassembly};
use super::health::{OWN_STALL, Waiting};
use super::pairs::Pairs;
use super::planted;
use super::probes::Prober;
use super::resync::Decision;
use super::time::Instant;
use super::{
    Command, CommandError, EngineConfig, FlowSnapshot, Input, LegId, Link, Mode, Output, ServiceId,
    Signal, Status, SyncReason,
};
use crate::protocol::Rules;
use crate::wire::{Frame, IcmpKind, NdKind, Packet, Quote, Segment, TcpFlags, parse};

use self::reprotecting::Reprotecting;
pub use snapshot::Snapshot;

/// Share of the hold budget at which new flows begin with one server.
const POOL_FULL_PERCENT: usize = 95;

/// The engine of one gateway.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    outputs: VecDeque<Output>,
    /// In vip addressing: stands between the links and everything below.
    translator: Option<Box<Translator>>,
    data_ports: DataPorts,
    expected: Expected,
    table: FlowTable,
    control: Control,
    bridge: Bridge,
    fragments: Fragments,
    prober: Prober,
    profile: Profile,
    cookies: Cookies,
    allowance: Allowance,
    pairs: Pairs,
    reprotecting: Reprotecting,
    reports: Vec<Report>,
    ip_id: u16,
    tick_at: Instant,
    now: Instant,
    has_begun: bool,
}

impl Engine {
    /// An engine at rest. `seed` feeds every choice that must not be guessed from outside.
    pub fn new(config: EngineConfig, seed: u64, now: Instant) -> Self {
        let mut table = FlowTable::default();
        table.set_rules(config.rules.clone());
        Self {
            control: Control::new(&config, now),
            prober: Prober::new(seed),
            tick_at: now,
            translator: config.vip.as_ref().map(|plan| Box::new(Translator::new(plan, seed))),
            config,
            outputs: VecDeque::new(),
            data_ports: DataPorts::default(),
            expected: Expected::default(),
            table,
            bridge: Bridge::default(),
            fragments: Fragments::default(),
            profile: Profile::default(),
            cookies: Cookies::new(seed),
            allowance: Allowance::full(),
            pairs: Pairs::default(),
            reprotecting: Reprotecting::default(),
            reports: Vec::new(),
            ip_id: seed as u16,
            now,
            has_begun: false,
        }
    }

    /// Takes one input. `now` never goes backwards.
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.now = now.max(self.now);
        self.guard_own_stall();
        match input {
            Input::Frame(link, frame) => self.on_frame(link, frame),
            Input::Timeout => self.on_timeout(),
            Input::Command(id, command) => self.on_command(id, command),
            Input::Signal(link, signal) => self.on_signal(link, signal),
            Input::SyncStep(id, step) => self.on_sync_step(id, &step),
            Input::Fenced { epoch, ok } => {
                let orders = self.control.on_fenced(self.now, epoch, ok, &mut self.outputs);
                self.carry_out(orders);
            }
            Input::Restore(records) => self.restore(records),
        }
        self.leave();
    }

    /// The next output; drain after each [`Engine::handle`].
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        match &mut self.translator {
            Some(translator) => translator.poll_output(),
            None => self.outputs.pop_front(),
        }
    }

    /// When [`Input::Timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let translator = self.translator.as_ref().and_then(|translator| translator.next_timer());
        if self.config.mode == Mode::Passthrough {
            return translator;
        }
        let timers = [
            translator,
            Some(self.tick_at),
            self.table.next_timer(),
            self.bridge.next_timer(),
            self.control.detector.urgent_at(),
            self.control.resync.next_timer(),
            self.expected.next_timer(),
            self.next_reprotecting(),
        ];
        timers.into_iter().flatten().min()
    }

    /// The whole, for readers.
    pub fn status(&self) -> Status {
        Status {
            service: self.control.service(),
            roles: self.control.roles(),
            servers: self.control.states(),
            refused_ports: self.control.detector.refused_ports(),
            unanswering: self.control.detector.unanswering(self.now),
            mode: self.config.mode,
            is_paused: self.control.is_paused(),
            flows: self.table.counts(),
            half_open: self.table.half_open() as u32,
            held_bytes: self.table.held() as u64,
            sync: self.control.resync.in_flight(),
            neighbours: self.translator.as_ref().map_or_else(Vec::new, |t| t.neighbours()),
        }
    }

    /// Up to `limit` flows, in the order of their keys.
    pub fn flows(&self, limit: usize) -> Vec<FlowSnapshot> {
        self.table.snapshots(limit)
    }

    /// What is kept of each flow at rest.
    #[cfg(test)]
    pub fn at_rest(&self) -> impl Iterator<Item = &[u8]> {
        self.table.at_rest()
    }

    /// What may differ, and how many pairs of values are remembered because of it.
    pub fn rules(&self) -> (Rules, usize) {
        (self.config.rules.clone(), self.pairs.len())
    }

    // ---- frames ----------------------------------------------------------------------------

    fn on_frame(&mut self, link: Link, frame: Frame) {
        if self.config.mode == Mode::Passthrough && self.translator.is_none() {
            return self.pass_through(link, frame);
        }
        let frame = planted::laundered(frame);
        let packet = match parse::parse(&frame) {
            Ok(packet) => packet,
            Err(why) => return self.reject(link, RejectReason::Malformed(why)),
        };
        self.on_packet(link, packet, frame, false);
    }

    fn on_packet(
        &mut self,
        link: Link,
        mut packet: Packet,
        mut frame: Frame,
        is_reassembled: bool,
    ) {
        if let Packet::Fragment(f) = &packet {
            if is_reassembled {
                return self.reject(link, RejectReason::Fragment);
            }
            return match self.fragments.insert(self.now, link, f, &frame) {
                Reassembly::Kept => {}
                Reassembly::Refused => self.reject(link, RejectReason::Fragment),
                Reassembly::Complete(whole) => match parse::parse(&whole) {
                    Ok(packet) => self.on_packet(link, packet, whole, true),
                    Err(why) => self.reject(link, RejectReason::Malformed(why)),
                },
            };
        }
        if matches!(packet, Packet::Tcp(_)) && packet.l2().dst.is_multicast() {
            // TCP is between two hosts (RFC 1122 4.2.3.10); whoever answers it would say so.
            return self.reject(link, RejectReason::NotForUs);
        }
        if let Some(translator) = &mut self.translator {
            match translator.inbound(self.now, link, &mut packet, &mut frame) {
                Inbound::Deliver => {}
                Inbound::Answered => return self.on_neighbour_answer(link),
                Inbound::Done => return,
                Inbound::Refused(reason) => return self.reject(link, reason),
            }
            if self.config.mode == Mode::Passthrough {
                return self.pass_through(link, frame);
            }
        }
        match link {
            Link::Client => self.on_client_packet(packet, frame),
            Link::Server(leg) => {
                self.data_ports.inbound(leg, &mut packet, &mut frame);
                self.on_server_packet(leg, packet, frame);
            }
        }
    }

    fn on_client_packet(&mut self, packet: Packet, frame: Frame) {
        let l2 = packet.l2();
        let from_inside = self.bridge.neighbours.is_server(l2.src) || l2.src == self.prober.mac();
        if from_inside || self.claims_service(&packet) {
            return self.reject(Link::Client, RejectReason::WrongLink);
        }
        if !self.bridge.neighbours.is_for_servers(l2.dst) {
            return self.reject(Link::Client, RejectReason::NotForUs);
        }
        if let Some((l3, true)) = packet.l3().map(|l3| (l3, self.is_service(l3.dst))) {
            self.bridge.neighbours.learn_client(l3.src, l2.src);
            self.prober.heard_client(l2, l3);
        }
        let view = self.view();
        match packet {
            Packet::Tcp(seg) => self.on_client_tcp(&seg, frame),
            Packet::Udp(udp) => {
                self.bridge.udp_to_servers(view, &udp, frame, &mut self.outputs);
            }
            Packet::Icmp(icmp) => match icmp.kind {
                IcmpKind::TooBig { mtu, quote: Some(quote) } => {
                    self.on_icmp_error(&icmp, quote, Some(mtu), frame);
                }
                IcmpKind::Error { quote: Some(quote), .. } => {
                    self.on_icmp_error(&icmp, quote, None, frame);
                }
                _ => self.bridge.to_both(view, frame, &mut self.outputs),
            },
            Packet::Arp(arp) => {
                self.bridge.neighbours.learn_client(arp.sender, arp.sender_mac);
                self.bridge.to_both(view, frame, &mut self.outputs);
            }
            Packet::Nd(nd) => {
                if let NdKind::Solicit { mac: Some(mac), .. } = nd.kind {
                    self.bridge.neighbours.learn_client(nd.l3.src, mac);
                }
                if let NdKind::Advertise { target, mac: Some(mac) } = nd.kind {
                    self.bridge.neighbours.learn_client(target, mac);
                }
                self.bridge.to_both(view, frame, &mut self.outputs);
            }
            Packet::Other(_) if l2.dst.is_multicast() => {
                self.bridge.to_both(view, frame, &mut self.outputs);
            }
            Packet::Other(_) | Packet::Fragment(_) => {
                self.bridge.to_primary(view, frame, &mut self.outputs);
            }
        }
    }

    fn on_server_packet(&mut self, leg: LegId, packet: Packet, frame: Frame) {
        let l2 = packet.l2();
        if self.is_probe_reply(leg, &packet) && !planted::on(planted::Bug::ProbeReplyShown) {
            return self.reject(Link::Server(leg), RejectReason::ProbeReply);
        }
        if !self.control.is_heard(leg) {
            return self.on_unheard(leg, &packet);
        }
        if self.control.resync.overwritten() == Some(leg) {
            return self.reject(Link::Server(leg), RejectReason::OldGeneration);
        }
        let is_service = self.claims_service(&packet);
        let is_client = |ip| self.bridge.neighbours.is_client(ip);
        if !is_service && sender(&packet).is_some_and(is_client) {
            return self.reject(Link::Server(leg), RejectReason::WrongLink);
        }
        self.control.on_heard(self.now, leg, is_service, &mut self.outputs);
        if is_service {
            // Not from any frame: one with a client's Ethernet address would cut that client off.
            self.bridge.neighbours.learn_server(l2.src);
        }
        let view = self.view();
        match packet {
            Packet::Tcp(seg) => self.on_server_tcp(leg, &seg, frame),
            Packet::Icmp(icmp) if matches!(icmp.kind, IcmpKind::EchoReply { .. }) => {
                self.bridge.on_server_echo(view, leg, &icmp, frame, &mut self.outputs);
            }
            Packet::Icmp(icmp) if icmp.is_unreachable() => {
                // Somebody on the way does not find the server: a sign, and no news for clients.
                self.reject(Link::Server(leg), RejectReason::Unreachable);
                self.control.detector.probe_now(self.now);
            }
            Packet::Udp(udp) => {
                self.bridge.on_server_udp(view, leg, &udp, frame, &mut self.outputs);
            }
            Packet::Arp(arp) => {
                self.bridge.on_server_arp(view, leg, &arp, frame, &mut self.outputs);
            }
            Packet::Nd(nd) => {
                self.bridge.on_server_nd(view, leg, &nd, frame, &mut self.outputs);
            }
            _ => self.bridge.to_client(view, leg, frame, &mut self.outputs),
        }
    }

    fn on_client_tcp(&mut self, seg: &Segment, frame: Frame) {
        let view = self.view();
        let key = self.flow_key(seg, seg.src(), seg.dst());
        let Some(key) = key else { return self.on_unprotected(seg, frame) };
        let is_syn = seg.flags.has(TcpFlags::SYN) && !seg.flags.has(TcpFlags::ACK);
        if let Some(id) = self.table.find(&key) {
            if self.table.get_mut(id).is_some_and(|flow| flow.was_answered_elsewhere(seg)) {
                self.with_flow(id, |flow, cx| flow.abandon(cx));
                return self.bridge.to_primary(view, frame, &mut self.outputs);
            }
            let is_closed = self.table.get_mut(id).is_some_and(|flow| flow.is_closed());
            if !(is_syn && is_closed) {
                let (_, body, _) = frame.into_parts();
                return self.with_flow(id, |flow, cx| flow.on_client_segment(cx, seg, body));
            }
            // A new connection on a closed 4-tuple: a new generation.
            self.with_flow(id, |flow, cx| flow.supersede(cx));
            if !self.config.ports.contains(&key.server.port()) {
                return self.on_unprotected(seg, frame);
            }
        }
        match is_syn {
            true => self.open_flow(key, seg, frame),
            // No record of it: from before this process, never protected, or answered with a
            // cookie.
            false => match self.cookies.check(self.now, &key, seg) {
                Some((syn, promise)) => self.open_promised(key, &syn, promise, seg, frame),
                None => self.bridge.to_primary(view, frame, &mut self.outputs),
            },
        }
    }

    fn on_server_tcp(&mut self, leg: LegId, seg: &Segment, frame: Frame) {
        let Some(frame) = self.hear_call(leg, seg, frame) else { return };
        let view = self.view();
        let Some(key) = self.flow_key(seg, seg.dst(), seg.src()) else {
            return self.bridge.to_client(view, leg, frame, &mut self.outputs);
        };
        if let Some(id) = self.table.find(&key) {
            let (_, body, _) = frame.into_parts();
            return self.with_flow(id, |flow, cx| flow.on_leg_segment(cx, leg, seg, body));
        }
        if leg != view.primary {
            // A connection that nobody else knows: ended, so that it cannot linger (LV6).
            self.prober.reset(leg, seg, &mut self.outputs);
        }
        self.bridge.to_client(view, leg, frame, &mut self.outputs);
    }

    /// A connection that the servers have accepted on a 4-tuple of which the gateway still had one.
    fn succeed_flow(&mut self, key: FlowKey, syn: &Segment, answers: [Option<Segment>; 2]) {
        let Some(id) = self.table.next_id(self.config.flows_max) else { return };
        if let Some(ports) = self.data_ports.of(&key) {
            self.data_ports.begin(&key, ports);
        }
        self.begin_flow(key, id, syn, None, [true; 2]);
        for leg in LegId::ALL {
            if let Some(seg) = &answers[leg.index()] {
                self.with_flow(id, |flow, cx| flow.on_leg_segment(cx, leg, seg, Bytes::new()));
            }
        }
    }

    /// A frame of a failed or returning server.
    fn on_unheard(&mut self, leg: LegId, packet: &Packet) {
        self.reject(Link::Server(leg), RejectReason::Fenced);
        let Packet::Tcp(seg) = packet else { return };
        if self.control.state(leg) == ServerState::Returning {
            self.control.on_old_flow(self.now, leg);
            self.prober.reset(leg, seg, &mut self.outputs);
        }
    }

    /// An ICMP error of the client's side about a packet of the service.
    fn on_icmp_error(
        &mut self,
        icmp: &crate::wire::Icmp,
        quote: Quote,
        mtu: Option<u32>,
        frame: Frame,
    ) {
        let vlan = FlowKey::vlan_ids(icmp.l2.vlans);
        let service = ServiceId::default();
        let key = FlowKey { service, vlan, client: quote.dst, server: quote.src };
        let Some(id) = self.table.find(&key) else {
            // Of a connection that passes unprotected, if of any: its server judges the error.
            return self.bridge.to_primary(self.view(), frame, &mut self.outputs);
        };
        self.with_flow(id, |flow, cx| flow.on_icmp_error(cx, icmp, quote, mtu, &frame));
    }

    fn pass_through(&mut self, link: Link, frame: Frame) {
        let primary = self.control.roles().primary;
        match link {
            Link::Client => self.outputs.push_back(Output::Transmit(Link::Server(primary), frame)),
            Link::Server(leg) if leg == primary => {
                self.outputs.push_back(Output::Transmit(Link::Client, frame));
            }
            Link::Server(_) => self.reject(link, RejectReason::BackupOnly),
        }
    }

    // ---- time, signals, commands -----------------------------------------------------------

    /// The gateway was not scheduled: no time that passed meanwhile is evidence of anything.
    fn guard_own_stall(&mut self) {
        if !self.has_begun {
            // Between making the engine and its first input nothing could be missed.
            (self.has_begun, self.tick_at) = (true, self.now);
        }
        if self.now <= self.tick_at + OWN_STALL || self.config.mode == Mode::Passthrough {
            return;
        }
        let gap = self.now.since(self.tick_at);
        self.event(Event::OwnStall { gap });
        self.control.detector.own_stall(self.now);
        self.expected.put_off(gap);
        for leg in LegId::ALL {
            let ids: Vec<FlowId> =
                self.table.pinned_since(leg, self.now).map(|(_, id)| id).collect();
            for id in ids {
                let now = self.now;
                if let Some(flow) = self.table.get_mut(id) {
                    flow.forgive(now, gap);
                }
                self.table.refresh(id);
            }
        }
        self.tick_at = self.now;
    }

    fn on_timeout(&mut self) {
        if let Some(translator) = &mut self.translator {
            translator.on_time(self.now);
        }
        if self.config.mode == Mode::Passthrough {
            return;
        }
        // Each flow once: whatever it wants next, it wants later.
        for id in self.table.due(self.now) {
            self.with_flow(id, |flow, cx| flow.on_timeout(cx));
        }
        self.time_calls();
        let view = self.view();
        self.bridge.on_time(view, &mut self.outputs);
        while self.control.detector.take_urgent(self.now) {
            self.probe_ports();
        }
        self.time_sync();
        self.reprotect();
        if self.now >= self.tick_at {
            self.tick_at = self.now + self.config.probe_every;
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.judge_cookies();
        for leg in LegId::ALL {
            if let Some(&target) = self.config.addresses.first() {
                self.control.detector.of(leg).neighbour.sent(self.now, self.config.probe_every);
                match &mut self.translator {
                    Some(translator) => translator.probe(self.now, leg),
                    None => {
                        let frame = bridge::neighbour_probe(self.prober.mac(), target);
                        self.outputs.push_back(Output::Transmit(Link::Server(leg), frame));
                    }
                }
            }
        }
        self.probe_syn();
        self.probe_in_turn();
        let facts = self.facts();
        let orders = self.control.on_tick(self.now, facts, &self.config, &mut self.outputs);
        self.carry_out(orders);
    }

    fn facts(&self) -> Facts {
        let now = self.now;
        let skew = self.control.detector.skew_limit();
        let is_strict = self.config.on_lag == super::LagPolicy::Strict;
        let still = self.control.detector.still_limit(is_strict);
        let waiting = LegId::ALL.map(|leg| Waiting {
            any: self.table.is_pinned(leg),
            // Looked for only where it can matter: a healthy server costs no walk.
            in_vain: self.control.detector.is_long_silent(now, leg)
                && self.table.awake_ones().any(|f| f.asks_in_vain(leg)),
            skewed: self.stalled(leg, now - skew),
            still: self.stalled(leg, now - still),
        });
        let counts = self.table.counts();
        Facts {
            waiting,
            lagging: counts[FlowState::Lagging as usize],
            paired: counts[FlowState::Paired as usize],
        }
    }

    /// Judges one server now, not at the next tick.
    fn judge(&mut self, leg: LegId) {
        let facts = self.facts();
        let orders = self.control.judge(self.now, leg, facts, &self.config, &mut self.outputs);
        self.carry_out(orders);
    }

    fn on_signal(&mut self, link: Link, signal: Signal) {
        if let (Some(translator), Signal::CarrierUp(caps)) = (&mut self.translator, signal) {
            translator.come(self.now, link, caps.mac);
        }
        let Link::Server(leg) = link else { return };
        let (up, evidence) = match signal {
            Signal::CarrierUp(_) => (true, Evidence::Carrier),
            Signal::CarrierDown => (false, Evidence::Carrier),
            Signal::LinkGone => (false, Evidence::LinkGone),
            Signal::Exited => (false, Evidence::Exited),
            Signal::Running => return self.control.on_running(leg),
        };
        let orders =
            self.control.on_signal(self.now, leg, up, evidence, &self.config, &mut self.outputs);
        self.carry_out(orders);
        self.refresh_service();
    }

    fn on_command(&mut self, id: u64, command: Command) {
        let (now, out) = (self.now, &mut self.outputs);
        let result = match command {
            Command::Failover { to, is_planned } => {
                self.control.failover(now, to, is_planned, &self.config, out)
            }
            Command::Rejoin(leg) => self.control.rejoin(now, leg, &self.config, out),
            Command::Pause => {
                self.control.set_paused(true);
                Ok(Vec::new())
            }
            Command::Resume => {
                self.control.set_paused(false);
                Ok(Vec::new())
            }
            Command::SyncNow => self.sync_now(),
            Command::Reload(config) => self.reload(*config),
        };
        let result = result.map(|orders| self.carry_out(orders));
        self.refresh_service();
        self.event(Event::CommandDone { id, result });
    }

    /// Takes a new configuration; what is bound to links, addresses or the mode cannot change.
    fn reload(&mut self, config: EngineConfig) -> Result<Vec<Order>, CommandError> {
        let old = &self.config;
        let same = old.addresses == config.addresses
            && old.vip == config.vip
            && old.mode == config.mode
            && old.server_names == config.server_names
            && old.sync_scope == config.sync_scope;
        if !same {
            return Err(CommandError::NeedsRestart);
        }
        self.config = config;
        self.control.detector.keep_ports(&self.config.ports);
        self.table.set_rules(self.config.rules.clone());
        Ok(Vec::new())
    }

    // ---- orders and reports ----------------------------------------------------------------

    fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Fail { server, finding, was_primary } => {
                    self.fail_server(server, finding, was_primary);
                }
                Order::Returned(server) => {
                    for id in self.table.ids() {
                        self.with_flow(id, |flow, cx| flow.on_server_returned(cx, server));
                    }
                    self.reprotecting.wait_after_resets(self.now);
                }
                Order::Swap(to) => self.swap_roles(to),
                Order::Resolve => self.decide(Decision::Resolve),
            }
        }
    }

    fn fail_server(&mut self, server: LegId, finding: super::Finding, was_primary: bool) {
        let epoch = self.control.roles().epoch;
        let (mut moved, mut reset, mut touched) = (0, 0, 0);
        // The event first: observers know the roles before the frames that follow from them.
        let at = self.outputs.len();
        for id in self.table.ids_by_held() {
            let has_leg = self.table.peek(id, |f| f.has_open_leg(server)).unwrap_or(false);
            touched += u32::from(has_leg);
            let mut fate = Fate::Stays;
            self.with_flow(id, |flow, cx| fate = flow.on_server_failed(cx, server));
            match fate {
                Fate::Moved => moved += 1,
                Fate::Reset => reset += 1,
                Fate::Stays => {}
            }
        }
        let event = match was_primary {
            true => Event::Promoted { epoch, primary: server.other(), finding, moved, reset },
            false => Event::Detached { epoch, server, finding, flows: touched },
        };
        self.outputs.insert(at, Output::Event(event));
        self.profile = Profile::default();
        for key in self.expected.on_failed(server) {
            self.begin_call(&key);
        }
        self.refresh_service();
    }

    fn swap_roles(&mut self, to: LegId) {
        let at = self.outputs.len();
        let mut moved = 0;
        for id in self.table.ids() {
            self.with_flow(id, |flow, cx| moved += u32::from(flow.swap_roles(cx, to)));
        }
        let epoch = self.control.roles().epoch;
        let finding = super::Finding::Operator;
        let event = Event::Promoted { epoch, primary: to, finding, moved, reset: 0 };
        self.outputs.insert(at, Output::Event(event));
    }

    fn decide(&mut self, decision: Decision) {
        if decision == Decision::Wait {
            return;
        }
        for id in self.table.ids() {
            if self.table.awake(id).is_some_and(Flow::is_diverged) {
                self.with_flow(id, |flow, cx| flow.resolve_divergence(cx));
            }
        }
    }

    /// Lets `act` work on a flow, then hears what it reports.
    fn with_flow(&mut self, id: FlowId, act: impl FnOnce(&mut Flow, &mut Cx<'_>)) {
        let is_fit = self.control.fit();
        let pool_held = self.table.held();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            out: &mut self.outputs,
            reports: &mut self.reports,
            profile: &mut self.profile,
            cookies: &mut self.cookies,
            allowance: &mut self.allowance,
            pairs: &mut self.pairs,
            pool_held,
            ip_id: &mut self.ip_id,
            is_fit,
            is_still: self.control.resync.still_since().is_some(),
            overwritten: self.control.resync.overwritten(),
        };
        let mut successor = None;
        if let Some(flow) = self.table.get_mut(id) {
            act(flow, &mut cx);
            successor = flow.successor().map(|(syn, answers)| (flow.key, syn, answers));
            if successor.is_some() {
                flow.supersede(&mut cx);
            }
        }
        self.table.refresh(id);
        self.table.put_down(id, self.now);
        self.hear_reports();
        if let Some((key, syn, answers)) = successor {
            self.succeed_flow(key, &syn, answers);
        }
    }

    fn cx(&mut self) -> Cx<'_> {
        Cx {
            now: self.now,
            config: &self.config,
            out: &mut self.outputs,
            reports: &mut self.reports,
            profile: &mut self.profile,
            cookies: &mut self.cookies,
            allowance: &mut self.allowance,
            pairs: &mut self.pairs,
            pool_held: self.table.held(),
            ip_id: &mut self.ip_id,
            is_fit: self.control.fit(),
            is_still: self.control.resync.still_since().is_some(),
            overwritten: self.control.resync.overwritten(),
        }
    }

    fn hear_reports(&mut self) {
        while let Some(report) = self.reports.pop() {
            match report {
                Report::Diverged(asked_at) => {
                    let reason = self.divergence_reason();
                    let (resync, out) = (&mut self.control.resync, &mut self.outputs);
                    let decision =
                        resync.on_divergence(self.now, &self.config, reason, asked_at, out);
                    self.decide(decision);
                }
                Report::UnfinishedEnd(_) | Report::Refused(_) => {
                    self.control.detector.probe_now(self.now);
                }
                Report::Answered(leg) => self.control.detector.of(leg).answers.heard(),
                Report::Unanswered { leg, alone } => {
                    self.control.detector.of(leg).answers.missed(self.now, alone);
                }
                Report::StallMoved(leg) => {
                    self.control.detector.of(leg).stalled(self.now);
                }
                Report::Skew(_, skew) => self.control.detector.note_skew(skew),
                Report::Offered(control, offer) => self.on_offer(&control, &offer),
                Report::Called(control, call) => self.on_agreed_call(&control, &call),
                Report::EndInDoubt { data, control, leg } => {
                    self.on_end_in_doubt(&data, &control, leg);
                }
            }
        }
    }

    fn divergence_reason(&self) -> SyncReason {
        let diverged = self.table.awake_ones().find(|f| f.is_diverged()).map(|f| f.key);
        diverged.map_or(SyncReason::Operator, SyncReason::Divergence)
    }

    fn refresh_service(&mut self) {
        self.control.refresh_service(self.now, &self.config, &mut self.outputs);
    }

    // ---- small questions -------------------------------------------------------------------

    fn view(&self) -> View {
        let primary = self.control.roles().primary;
        let has_backup = self.control.is_heard(primary.other());
        View { now: self.now, primary, has_backup, udp: self.config.udp }
    }

    fn is_service(&self, ip: IpAddr) -> bool {
        self.config.addresses.contains(&ip)
    }

    /// Something in the service's own name.
    fn claims_service(&self, packet: &Packet) -> bool {
        sender(packet).is_some_and(|ip| self.is_service(ip))
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn reject(&mut self, link: Link, reason: RejectReason) {
        self.event(Event::Rejected { link, reason });
    }
}

/// In whose name a packet speaks.
fn sender(packet: &Packet) -> Option<IpAddr> {
    match packet {
        Packet::Arp(arp) => Some(arp.sender),
        Packet::Nd(nd) => match nd.kind {
            NdKind::Advertise { target, .. } => Some(target),
            _ => Some(nd.l3.src),
        },
        other => other.l3().map(|l3| l3.src),
    }
}
