//! The gateway's own probes of the servers: when a SYN leaves, and what their answers tell.

use super::Engine;
use crate::engine::event::{Event, FlowKey};
use crate::engine::health::APP_PROBE_AFTER;
use crate::engine::{LegId, Link, Output, probes};
use crate::wire::{NdKind, Packet, Segment, TcpFlags};

/// Ports that are probed at once.
const URGENT_PORTS_MAX: usize = 8;

impl Engine {
    /// Probes the first port.
    pub(super) fn probe_syn(&mut self) {
        let Some(&first) = self.config.ports.first() else { return };
        let since = self.now - APP_PROBE_AFTER;
        let waits = |leg| self.table.pinned_since(leg, since).next().is_some();
        let is_app = self.config.probe_http
            && LegId::ALL.into_iter().any(waits)
            && LegId::ALL
                .into_iter()
                .all(|leg| self.control.detector.servers[leg.index()].wants_app_probe(self.now));
        for leg in LegId::ALL {
            let table = &self.table;
            let is_free = |key: &FlowKey| table.find(key).is_none();
            let sent =
                self.prober.syn(leg, first, &self.config, is_app, is_free, &mut self.outputs);
            if let Some(probe) = sent {
                let every = self.config.probe_every;
                self.control.detector.of(leg).syn_sent(self.now, every, probe);
            }
        }
    }

    /// Probes all ports at once, as many as may be.
    pub(super) fn probe_ports(&mut self) {
        self.probe_syn();
        for n in 1..self.config.ports.len().min(URGENT_PORTS_MAX) {
            self.probe_port(self.config.ports[n]);
        }
    }

    /// Probes another port than the first one, if it is time for that.
    pub(super) fn probe_in_turn(&mut self) {
        if let Some(port) = self.prober.next_turn(self.now, &self.config.ports) {
            self.probe_port(port);
        }
    }

    fn probe_port(&mut self, to: u16) {
        for leg in LegId::ALL {
            let table = &self.table;
            let is_free = |key: &FlowKey| table.find(key).is_none();
            let sent = self.prober.syn(leg, to, &self.config, false, is_free, &mut self.outputs);
            if let Some(probe) = sent {
                self.control.detector.of(leg).await_answer(probe);
            }
        }
    }

    /// Answers to the gateway's own probes never leave.
    pub(super) fn is_probe_reply(&mut self, leg: LegId, packet: &Packet) -> bool {
        let now = self.now;
        let health = self.control.detector.of(leg);
        match packet {
            Packet::Tcp(seg) => {
                if let Some(app) = health.app.as_mut().filter(|p| p.port == seg.dst_port)
                    && !seg.flags.has(TcpFlags::SYN)
                {
                    if seg.payload_len > 0 {
                        app.answered_at.get_or_insert(now);
                        self.prober.reset(leg, seg, &mut self.outputs);
                    }
                } else {
                    let Some(probe) = health.take_probe(seg.dst_port, seg.ack) else {
                        return self.is_leftover(leg, seg);
                    };
                    let accepted = seg.flags.has(TcpFlags::SYN);
                    if self.config.ports.first() == Some(&probe.to) {
                        health.syn_answered(now, accepted);
                    }
                    if health.port_answered(probe.to, accepted) {
                        let change = Event::PortChanged { server: leg, port: probe.to, accepted };
                        self.outputs.push_back(Output::Event(change));
                    }
                    match accepted {
                        true if probe.is_app => {
                            self.prober.ask(leg, seg, probe, &mut self.outputs);
                        }
                        true => self.prober.end_probe(leg, seg, probe, &mut self.outputs),
                        false => {}
                    }
                }
            }
            Packet::Arp(arp) if arp.l2.dst == self.prober.mac() => health.neighbour.answered(now),
            Packet::Nd(nd) if nd.l2.dst == self.prober.mac() => {
                if matches!(nd.kind, NdKind::Advertise { .. }) {
                    health.neighbour.answered(now);
                }
            }
            // Whoever answers others, an earlier process too, will be missed when it is silent.
            Packet::Arp(arp) if !arp.is_request => {
                health.neighbour.answered_at.get_or_insert(now);
                return false;
            }
            _ => return false,
        }
        self.on_answer(leg);
        true
    }

    /// In vip addressing: the server has answered the question where it is.
    pub(super) fn on_neighbour_answer(&mut self, link: Link) {
        let Link::Server(leg) = link else { return };
        self.control.detector.of(leg).neighbour.answered(self.now);
        self.on_answer(leg);
    }

    fn on_answer(&mut self, leg: LegId) {
        if self.control.is_heard(leg) {
            self.control.on_heard(self.now, leg, true, &mut self.outputs);
        }
        self.judge(leg);
        self.judge(leg.other());
    }

    /// What is left of a probe that was given up, or of an earlier process: ended like any other,
    /// and no client ever hears of it.
    fn is_leftover(&mut self, leg: LegId, seg: &Segment) -> bool {
        let key = self.flow_key(seg, seg.dst(), seg.src());
        let is_flow = key.is_none_or(|key| self.table.find(&key).is_some());
        let is_ours = !is_flow && probes::is_answer(seg);
        if is_ours {
            self.prober.reset(leg, seg, &mut self.outputs);
        }
        is_ours
    }
}
