//! vip addressing in the simulated world. Its hosts know the service's address only, as in clone
//! addressing; between them and the gateway stands this, which gives each server its own addresses
//! on the links and takes them off again. So the oracle judges the same frames in both addressings,
//! and here it is checked that the gateway uses the right names, and nobody else's.
//!
//! It shares no code with the engine's translation: IPv4 only, byte by byte.

use std::collections::{BTreeMap, BTreeSet};

use super::frames::fold;
use super::host::SERVICE;
use super::oracle::Tuple;
use super::world::{SERVER_MAC, client_ip, client_mac};
use crate::engine::{LegId, Link, Network, Served, Source, VipPlan};
use crate::wire::Mac;

type Ip = [u8; 4];

/// The servers' own addresses, and the gateway's on their networks.
const SERVERS: [Ip; 2] = [[10, 1, 0, 10], [10, 2, 0, 10]];
const OWN: [Ip; 2] = [[10, 1, 0, 1], [10, 2, 0, 1]];
const SERVER_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 8, 1], [2, 0, 0, 0, 8, 2]];
const GATEWAY_MACS: [[u8; 6]; 3] = [SERVER_MAC, [2, 0, 0, 0, 7, 1], [2, 0, 0, 0, 7, 2]];
/// In whose name the servers' hosts hear probes: a client's, whom they know the way to.
const PROBER: Ip = [10, 0, 0, 100];
/// The first port of the gateway's probes; it gives those below to clients.
const PROBES_FROM: u16 = 61_440;
/// What hosts of this world begin with, and the gateway.
const HOPS: u8 = 64;
const EVERYBODY: [u8; 6] = [0xff; 6];

/// Who is called what.
#[derive(Debug)]
pub(super) struct Aliases {
    source: Source,
    /// The gateway's ports, and the clients that have them.
    ports: BTreeMap<u16, Tuple>,
    clients: BTreeMap<Tuple, u16>,
    /// Whom each server has asked for last.
    asked: [Option<Ip>; 2],
    /// The client whose segment the gateway has been given last.
    speaking: Option<Tuple>,
    /// The numbers of clients' SYNs, and of what clients say that have no name: it may wait until
    /// its server is found.
    numbers: BTreeSet<(u32, Tuple)>,
    /// Ethernet addresses that the gateway was told, damaged ones too: what it sends there is lost.
    told: BTreeSet<[u8; 6]>,
}

impl Aliases {
    /// Nobody has spoken yet.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            ports: BTreeMap::new(),
            clients: BTreeMap::new(),
            asked: [None; 2],
            speaking: None,
            numbers: BTreeSet::new(),
            told: BTreeSet::new(),
        }
    }

    /// What the gateway is told about the networks.
    pub fn plan(&self) -> VipPlan {
        let network = |ip: Ip| Network::new(ip.into(), 24).expect("24 bits of 32");
        let servers = SERVERS.map(Into::into);
        VipPlan {
            source: self.source,
            served: vec![Served { service: SERVICE.into(), servers }],
            ports: Vec::new(),
            client: vec![network(SERVICE)],
            next_hops: Vec::new(),
            own: OWN.map(|own| vec![network(own)]),
        }
    }

    /// The gateway's process has ended: only of connections that were recorded the next one knows
    /// what they are called.
    pub fn forget(&mut self, is_recorded: impl Fn(&Tuple) -> bool) {
        self.clients.retain(|client, _| is_recorded(client));
        self.ports.retain(|_, client| is_recorded(client));
        self.numbers.clear(); // what waited for an address is gone with it
    }

    /// The gateway's Ethernet address on a link.
    pub fn mac(link: Link) -> Mac {
        Mac(GATEWAY_MACS[link.index()])
    }

    /// A frame of a host, as the gateway gets it.
    pub fn inbound(&mut self, link: Link, mut frame: Vec<u8>) -> Vec<u8> {
        self.speaking = None;
        let Link::Server(leg) = link else {
            if is_arp(&frame) {
                self.told.insert(mac_at(&frame, 22));
            }
            if let Some(packet) = Packet::of(&frame, 14).filter(|packet| packet.protocol == 6) {
                self.speaking = Some(packet.src);
                let has_name = self.clients.contains_key(&packet.src);
                let number = packet.number(&frame);
                let number = number.filter(|_| !has_name || packet.syn(&frame).is_some());
                self.numbers.extend(number.map(|number| (number, packet.src)));
            }
            return frame;
        };
        let i = leg.index();
        if frame.get(6..12) == Some(&SERVER_MAC) {
            frame[6..12].copy_from_slice(&SERVER_MACS[i]);
        }
        if is_arp(&frame) {
            if frame[28..32] == SERVICE {
                frame[28..32].copy_from_slice(&SERVERS[i]);
            }
            if frame[22..28] == SERVER_MAC {
                frame[22..28].copy_from_slice(&SERVER_MACS[i]);
            }
            self.told.insert(mac_at(&frame, 22));
            if frame[20..22] == [0, 1] {
                self.asked[i] = Some(ip_at(&frame, 38));
            }
            frame[38..42].copy_from_slice(&OWN[i]);
            return frame;
        }
        let Some(packet) = Packet::of(&frame, 14) else { return frame };
        if let Some(quoted) = packet.quoted(&frame) {
            // What was too large on its way to the server.
            let src = self.name_of(leg, quoted.src);
            let dst = (SERVERS[i], quoted.dst.1);
            packet.rename_quote(&mut frame, &quoted, src, dst);
        }
        let src = if packet.src.0 == SERVICE { SERVERS[i] } else { packet.src.0 };
        let dst = match packet.has_ports {
            true => self.name_of(leg, packet.dst),
            false if self.source == Source::Gateway => (OWN[i], 0),
            false => packet.dst,
        };
        packet.rename(&mut frame, (src, packet.src.1), dst);
        frame
    }

    /// A server has one way to all clients, its router. The hosts of this world look for each of
    /// them, seldom: before a SYN, as it reaches them, they are told that the way is the gateway.
    pub fn way_back(link: Link, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = Packet::of(frame, 14)?;
        packet.syn(frame)?;
        let gateway = GATEWAY_MACS[link.index()];
        let mut reply = [&SERVER_MAC[..], &gateway, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        reply.extend_from_slice(&gateway);
        reply.extend_from_slice(&packet.src.0);
        reply.extend_from_slice(&SERVER_MAC);
        reply.extend_from_slice(&SERVICE);
        Some(reply)
    }

    /// What a client is called on a server's link.
    fn name_of(&self, leg: LegId, client: Tuple) -> Tuple {
        let own = OWN[leg.index()];
        match (self.source, self.clients.get(&client)) {
            _ if client.1 >= PROBES_FROM => (own, client.1),
            (Source::Gateway, Some(port)) => (own, *port),
            _ => client,
        }
    }

    /// A frame of the gateway, as the hosts get it; none if it is for no host of this world. What
    /// is wrong with its names, if something is. `is_flow` tells whether a client's connection is
    /// followed.
    pub fn outbound(
        &mut self,
        link: Link,
        mut frame: Vec<u8>,
        is_flow: impl Fn(&Tuple) -> bool,
    ) -> Result<Option<Vec<u8>>, String> {
        let from = &frame[6..12];
        if from != GATEWAY_MACS[link.index()] {
            return Err(format!("vip: a frame on {link:?} from {from:x?}"));
        }
        if is_arp(&frame) {
            return self.arp_outbound(link, frame);
        }
        let Some(packet) = Packet::of(&frame, 14) else {
            return Err(format!("vip: something that is not IPv4 on {link:?}"));
        };
        packet.add_hop(&mut frame);
        match link {
            Link::Client => {
                if !self.is_to_client(&packet, &frame)? {
                    return Ok(None);
                }
            }
            Link::Server(leg) => {
                let i = leg.index();
                let (to, mac) = (packet.dst.0, mac_at(&frame, 0));
                if to != SERVERS[i] || !(mac == SERVER_MACS[i] || self.told.contains(&mac)) {
                    return Err(format!("vip: to {to:?} at {mac:x?} on {leg:?}'s link"));
                }
                if mac != SERVER_MACS[i] {
                    return Ok(None);
                }
                frame[..6].copy_from_slice(&SERVER_MAC);
                if let Some(quoted) = packet.quoted(&frame) {
                    let dst = self.client_called(leg, quoted.dst, None, &is_flow)?;
                    packet.rename_quote(&mut frame, &quoted, (SERVICE, quoted.src.1), dst);
                }
                let src = match packet.has_ports {
                    true => self.client_called(leg, packet.src, packet.number(&frame), &is_flow)?,
                    false if packet.src.0 == OWN[i] => (PROBER, 0),
                    false => packet.src,
                };
                packet.rename(&mut frame, src, (SERVICE, packet.dst.1));
            }
        }
        Ok(Some(frame))
    }

    /// The client that is called `name` on the server's link, where it says `number`.
    fn client_called(
        &mut self,
        leg: LegId,
        name: Tuple,
        number: Option<u32>,
        is_flow: &impl Fn(&Tuple) -> bool,
    ) -> Result<Tuple, String> {
        let is_own = name.0 == OWN[leg.index()];
        if is_own && name.1 >= PROBES_FROM {
            return Ok((PROBER, name.1));
        }
        if self.source == Source::Client {
            let is_client = (0..16).any(|client| client_ip(client) == name.0);
            let wrong = || format!("vip: {name:?} speaks on {leg:?}'s link");
            return is_client.then_some(name).ok_or_else(wrong);
        }
        if !is_own {
            return Err(format!("vip: {name:?} speaks on {leg:?}'s link, not the gateway"));
        }
        // A new process may give a port again of which it knows nothing, and nobody else does.
        let is_taken = |client: &&Tuple| {
            self.speaking.is_none_or(|speaking| speaking == **client) || is_flow(client)
        };
        if let Some(client) = self.ports.get(&name.1).filter(is_taken) {
            return Ok(*client);
        }
        let unnamed = |(said, client): &&(u32, Tuple)| {
            number == Some(*said) && !self.clients.contains_key(client)
        };
        let waited = self.numbers.iter().find(unnamed).map(|(_, client)| *client);
        let Some(client) = self.speaking.or(waited) else {
            return Err(format!("vip: port {} on {leg:?}'s link is nobody's", name.1));
        };
        if let Some(old) = self.clients.insert(client, name.1) {
            if is_flow(&client) {
                let new = name.1;
                return Err(format!("vip: {client:?} was called {old} and is called {new}"));
            }
            self.ports.remove(&old);
        }
        if let Some(before) = self.ports.insert(name.1, client) {
            self.clients.remove(&before);
        }
        Ok(client)
    }

    /// The client's side has the service's name, and each client its own Ethernet address. False
    /// if the gateway was told a wrong one.
    fn is_to_client(&self, packet: &Packet, frame: &[u8]) -> Result<bool, String> {
        let (from, to, mac) = (packet.src.0, packet.dst.0, mac_at(frame, 0));
        if packet.has_ports && from != SERVICE {
            return Err(format!("vip: {from:?} speaks on the client link"));
        }
        let index = (0..16).find(|client| client_ip(*client) == to);
        match index {
            Some(index) if mac == client_mac(index) => Ok(true),
            Some(_) if self.told.contains(&mac) => Ok(false),
            _ => Err(format!("vip: to {to:?} at {mac:x?} on the client link")),
        }
    }

    fn arp_outbound(&self, link: Link, mut frame: Vec<u8>) -> Result<Option<Vec<u8>>, String> {
        let (sender, target) = (ip_at(&frame, 28), ip_at(&frame, 38));
        let Link::Server(leg) = link else {
            let is_right = sender == SERVICE;
            let wrong = || format!("vip: ARP of {sender:?} on the client link");
            return is_right.then_some(Some(frame)).ok_or_else(wrong);
        };
        let i = leg.index();
        let is_request = frame[20..22] == [0, 1];
        if sender != OWN[i] {
            return Err(format!("vip: ARP of {sender:?} on {leg:?}'s link"));
        }
        if target == OWN[i] {
            return Ok(None); // an announcement
        }
        let mac = mac_at(&frame, 0);
        if target != SERVERS[i] && is_request {
            return Err(format!("vip: {target:?} is looked for on {leg:?}'s link"));
        }
        if mac == SERVER_MACS[i] {
            frame[..6].copy_from_slice(&SERVER_MAC);
        } else if mac != EVERYBODY && !self.told.contains(&mac) {
            return Err(format!("vip: ARP to nobody on {leg:?}'s link"));
        }
        if target != SERVERS[i] || !(mac == SERVER_MACS[i] || mac == EVERYBODY) {
            return Ok(None); // an answer to who was misunderstood
        }
        if frame[32..38] == SERVER_MACS[i] {
            frame[32..38].copy_from_slice(&SERVER_MAC);
        }
        let sender = match (is_request, self.asked[i]) {
            (true, _) => [0; 4],
            (false, Some(asked)) => asked,
            (false, None) => return Err(format!("vip: an ARP reply that {leg:?} did not ask for")),
        };
        frame[28..32].copy_from_slice(&sender);
        frame[38..42].copy_from_slice(&SERVICE);
        Ok(Some(frame))
    }
}

fn mac_at(frame: &[u8], at: usize) -> [u8; 6] {
    std::array::from_fn(|index| frame[at + index])
}

fn is_arp(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6]
}

fn ip_at(frame: &[u8], at: usize) -> Ip {
    [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]
}

/// Where an IPv4 packet stands, and between whom.
#[derive(Clone, Copy, Debug)]
struct Packet {
    at: usize,
    payload: usize,
    protocol: u8,
    has_ports: bool,
    src: Tuple,
    dst: Tuple,
}

impl Packet {
    fn of(frame: &[u8], at: usize) -> Option<Self> {
        if (at == 14 && frame.get(12..14) != Some(&[8, 0])) || frame.len() < at + 20 {
            return None;
        }
        let payload = at + usize::from(frame[at] & 15) * 4;
        let protocol = frame[at + 9];
        let has_ports = matches!(protocol, 6 | 17) && frame.len() >= payload + 4;
        let port = |place: usize| match has_ports {
            true => u16::from_be_bytes([frame[place], frame[place + 1]]),
            false => 0,
        };
        let is_right = frame[at] >> 4 == 4 && payload >= at + 20 && payload <= frame.len();
        is_right.then(|| Self {
            at,
            payload,
            protocol,
            has_ports,
            src: (ip_at(frame, at + 12), port(payload)),
            dst: (ip_at(frame, at + 16), port(payload + 2)),
        })
    }

    /// The number of a SYN, which is no answer to one.
    fn syn(&self, frame: &[u8]) -> Option<u32> {
        let flags = frame.get(self.payload + 13)?;
        self.number(frame).filter(|_| flags & 0x12 == 2)
    }

    /// The number of a TCP segment.
    fn number(&self, frame: &[u8]) -> Option<u32> {
        let number =
            frame.get(self.payload + 4..self.payload + 8).filter(|_| self.protocol == 6)?;
        number.try_into().ok().map(u32::from_be_bytes)
    }

    /// What an ICMP error is about.
    fn quoted(&self, frame: &[u8]) -> Option<Self> {
        let is_error = self.protocol == 1 && matches!(frame.get(self.payload), Some(3 | 11 | 12));
        is_error.then(|| Self::of(frame, self.payload + 8)).flatten().filter(|q| q.has_ports)
    }

    fn rename(&self, frame: &mut [u8], src: Tuple, dst: Tuple) {
        let transport = match self.protocol {
            6 => Some(self.payload + 16),
            17 => Some(self.payload + 6),
            _ => None,
        };
        let addresses = [src.0, dst.0].concat();
        put(frame, self.at + 12, &addresses, &[Some(self.at + 10), transport]);
        if self.has_ports {
            let ports = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
            put(frame, self.payload, &ports, &[transport]);
        }
    }

    /// The same of the packet that this one quotes: its own sums change too, and both count.
    fn rename_quote(&self, frame: &mut [u8], quoted: &Self, src: Tuple, dst: Tuple) {
        let before = frame[quoted.at..].to_vec();
        quoted.rename(frame, src, dst);
        let after = frame[quoted.at..].to_vec();
        frame[quoted.at..].copy_from_slice(&before);
        put(frame, quoted.at, &after, &[Some(self.payload + 2)]);
    }

    /// Takes back what a router takes; what it says itself has all its hops.
    fn add_hop(&self, frame: &mut [u8]) {
        if frame[self.at + 8] >= HOPS {
            return;
        }
        let word = [frame[self.at + 8] + 1, frame[self.at + 9]];
        put(frame, self.at + 8, &word, &[Some(self.at + 10)]);
    }
}

/// Replaces bytes, word by word, and brings the checksums along (RFC 1624), as far as they are
/// there.
fn put(frame: &mut [u8], at: usize, new: &[u8], checks: &[Option<usize>]) {
    for (index, pair) in new.chunks(2).enumerate() {
        let place = at + index * 2;
        let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], *bytes.get(1).unwrap_or(&0)]);
        let (old, new) = (word(&frame[place..place + pair.len()]), word(pair));
        frame[place..place + pair.len()].copy_from_slice(pair);
        let len = frame.len();
        for check in checks.iter().flatten().filter(|check| **check + 2 <= len) {
            let was = u16::from_be_bytes([frame[*check], frame[*check + 1]]);
            let is = !fold(u32::from(!was) + u32::from(!old) + u32::from(new));
            frame[*check..*check + 2].copy_from_slice(&is.to_be_bytes());
        }
    }
}
