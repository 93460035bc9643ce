//! Ports of data connections: each server has such a connection at a port of its own, which it
//! chose when it was asked where to transfer; the client has it at the one that it was shown.
//!
//! Like an address of its own, that is nothing a flow has to know. What a server says is turned
//! into what it would be with the shown port, and back, those ports within ICMP errors included.
//! Frames are edited, and checksums follow every edit (I13).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::engine::event::{Event, FlowKey};
use crate::engine::flow::record;
use crate::engine::pack::fields;
use crate::engine::{FLOW_CONSTANTS_LEN, LegId, Link, Output, Record};
use crate::wire::{Addressed, Ends, Frame, Packet, Talk};

/// A connection: the client's end and the service's.
type Pair = (SocketAddr, SocketAddr);

/// The connections that have such ports.
#[derive(Debug, Default)]
pub struct DataPorts {
    /// Flows that are about to begin.
    coming: BTreeMap<Pair, [u16; 2]>,
    /// By the connection as the client has it: the servers' ports.
    by_client: BTreeMap<Pair, [u16; 2]>,
    /// By a leg and the connection as that server has it: the port that the client has.
    by_server: BTreeMap<(LegId, Pair), u16>,
}

impl DataPorts {
    /// The flow that begins next with the ends `key` has these ports. False, with nothing done, if
    /// a server has such a connection already.
    pub fn begin(&mut self, key: &FlowKey, ports: [u16; 2]) -> bool {
        let pair = (key.client, key.server);
        let is_free = |leg: LegId| {
            let shown = self.by_server.get(&(leg, at(pair, ports[leg.index()])));
            shown.is_none_or(|shown| *shown == key.server.port())
        };
        let is_free = LegId::ALL.into_iter().all(is_free);
        if is_free && ports != [key.server.port(); 2] {
            self.coming.insert(pair, ports);
        }
        is_free
    }

    /// The flow with the ends `key` has these ports.
    pub fn of(&self, key: &FlowKey) -> Option<[u16; 2]> {
        self.by_client.get(&(key.client, key.server)).copied()
    }

    /// A record of an earlier process: the flow keeps its ports.
    pub fn restore(&mut self, record: &[u8; FLOW_CONSTANTS_LEN]) {
        if let Some(((client, server), (leg, port))) =
            record::ends(record).zip(record::data_port(record))
        {
            let mut ports = [server.port(); 2];
            ports[leg.index()] = port;
            self.open((client, server), ports);
        }
    }

    /// How `leg`'s server has a connection of the client's side, if otherwise.
    pub fn alias(&self, leg: LegId, key: &FlowKey) -> Option<FlowKey> {
        let port = self.of(key)?[leg.index()];
        let is_other = port != key.server.port();
        is_other.then(|| FlowKey { server: SocketAddr::new(key.server.ip(), port), ..*key })
    }

    /// A packet of `leg`'s link, and its frame, as they are with the shown port.
    pub fn inbound(&self, leg: LegId, packet: &mut Packet, frame: &mut Frame) {
        if self.by_server.is_empty() {
            return;
        }
        let Some(seen) = Addressed::of(frame) else { return };
        let shown = |ends: Ends| {
            let port = *self.by_server.get(&(leg, (ends.dst, ends.src)))?;
            Some(Ends { src: SocketAddr::new(ends.src.ip(), port), ..ends })
        };
        let turned = match (seen.talk, seen.quoted) {
            (Some(Talk::Tcp), _) => shown(seen.ends).map(|to| (to, None)),
            // It quotes what the server was sent.
            (None, Some((Talk::Tcp, quoted))) => {
                shown(quoted.reversed()).map(|told| (seen.ends, Some(told.reversed())))
            }
            _ => None,
        };
        if let Some((to, quoted)) = turned {
            seen.readdress(frame, to, quoted);
            packet.readdress(packet.l2(), to, quoted, seen.hops(frame));
        }
    }

    /// Makes of an output what leaves; with events, in their order, flows come and go.
    pub fn outbound(&mut self, output: &mut Output) {
        match output {
            Output::Transmit(Link::Server(leg), frame) if !self.by_client.is_empty() => {
                self.send_server(*leg, frame);
            }
            Output::Event(Event::FlowOpened { flow }) => {
                let pair = (flow.client, flow.server);
                if let Some(ports) = self.coming.remove(&pair) {
                    self.open(pair, ports);
                }
            }
            Output::Event(Event::FlowClosed { flow, .. }) => {
                let pair = (flow.client, flow.server);
                if let Some(ports) = self.by_client.remove(&pair) {
                    for leg in LegId::ALL {
                        self.by_server.remove(&(leg, at(pair, ports[leg.index()])));
                    }
                }
            }
            Output::Persist(Record::Flow { constants, .. }) if !self.by_client.is_empty() => {
                let ports = record::ends(constants)
                    .and_then(|pair| Some((pair.1.port(), self.by_client.get(&pair)?)));
                if let Some((shown, ports)) = ports {
                    let other = LegId::ALL.into_iter().find(|leg| ports[leg.index()] != shown);
                    record::set_data_port(constants, other.map(|leg| (leg, ports[leg.index()])));
                }
            }
            _ => {}
        }
    }

    /// `to` is a copy of the other server from here on, its ports included.
    pub fn on_copied(&mut self, to: LegId) {
        self.by_server.retain(|(leg, _), _| *leg != to);
        for (pair, ports) in &mut self.by_client {
            ports[to.index()] = ports[to.other().index()];
            self.by_server.insert((to, at(*pair, ports[to.index()])), pair.1.port());
        }
    }

    fn send_server(&self, leg: LegId, frame: &mut Frame) {
        let Some(seen) = Addressed::of(frame) else { return };
        let own = |ends: Ends| {
            let port = self.by_client.get(&(ends.src, ends.dst))?[leg.index()];
            Some(Ends { dst: SocketAddr::new(ends.dst.ip(), port), ..ends })
        };
        match (seen.talk, seen.quoted) {
            (Some(Talk::Tcp), _) => {
                if let Some(to) = own(seen.ends) {
                    seen.readdress(frame, to, None);
                }
            }
            // It quotes what the server has said.
            (None, Some((Talk::Tcp, quoted))) => {
                if let Some(told) = own(quoted.reversed()) {
                    seen.readdress(frame, seen.ends, Some(told.reversed()));
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, pair: Pair, ports: [u16; 2]) {
        self.by_client.insert(pair, ports);
        for leg in LegId::ALL {
            self.by_server.insert((leg, at(pair, ports[leg.index()])), pair.1.port());
        }
    }
}

/// The connection as a server has it at `port`.
fn at(pair: Pair, port: u16) -> Pair {
    (pair.0, SocketAddr::new(pair.1.ip(), port))
}

fields!(DataPorts { coming, by_client, by_server });
