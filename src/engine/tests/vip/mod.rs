//! vip addressing: the gateway owns the service's addresses, each server has its own. Everything
//! on the links is read here with the links' own addresses.

mod connections;
mod data;
mod edges;
mod errors;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

use super::kit::{ACK, CLIENT_ISS, FIN, Heard, ISS, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::address::sources::PORTS;
use crate::engine::{
    Command, Duration, Engine, EngineConfig, Event, FlowState, Input, Instant, LegId, Link,
    LinkCaps, Mode, NeighbourState, Network, Output, Record, RejectReason, Reprotect, Rules,
    Served, ServerState, ServiceState, Signal, Source, VipPlan,
};
use crate::wire::build::{self, TcpFields};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{
    Addressed, Arp, Ends, Frame, IcmpKind, L2, L3, Mac, Nd, NdKind, Packet, Talk, TcpFlags, Vlans,
    parse, segmentize,
};
use LegId::{A, B};

const TO_A: Link = Link::Server(A);
const TO_B: Link = Link::Server(B);
const P: u32 = ISS[0] + 1;
const Q: u32 = ISS[1] + 1;
const R: u32 = CLIENT_ISS + 1;
const NOBODY: Mac = Mac([0; 6]);

/// Everything about one family.
#[derive(Clone, Copy)]
struct Net {
    client: IpAddr,
    far: IpAddr,
    hop: IpAddr,
    service: IpAddr,
    servers: [IpAddr; 2],
    own: [IpAddr; 2],
    lens: [u8; 2],
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host))
}

const V4: Net = Net {
    client: v4(192, 0, 2, 1),
    far: v4(203, 0, 113, 9),
    hop: v4(192, 0, 2, 254),
    service: v4(192, 0, 2, 10),
    servers: [v4(10, 1, 0, 10), v4(10, 2, 0, 10)],
    own: [v4(10, 1, 0, 1), v4(10, 2, 0, 1)],
    lens: [24, 24],
};
const V6: Net = Net {
    client: v6(0, 1),
    far: v6(0x99, 9),
    hop: v6(0, 0xfe),
    service: v6(0, 0x10),
    servers: [v6(1, 0x10), v6(2, 0x10)],
    own: [v6(1, 1), v6(2, 1)],
    lens: [64, 64],
};
const NETS: [Net; 2] = [V4, V6];
const SOURCES: [Source; 2] = [Source::Client, Source::Gateway];

const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const HOP_MAC: Mac = Mac([2, 0, 0, 0, 1, 0xfe]);
const SERVER_MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 2, 1]), Mac([2, 0, 0, 0, 3, 1])];
const GATEWAY_MACS: [Mac; 3] =
    [Mac([2, 0, 0, 0, 9, 0]), Mac([2, 0, 0, 0, 9, 1]), Mac([2, 0, 0, 0, 9, 2])];

fn vip(source: Source, nets: &[Net]) -> EngineConfig {
    let network = |ip, len| Network::new(ip, len).expect("a network");
    let own = |leg: usize| nets.iter().map(|net| network(net.own[leg], net.lens[1])).collect();
    let plan = VipPlan {
        source,
        served: nets.iter().map(|n| Served { service: n.service, servers: n.servers }).collect(),
        ports: vec![(8080, 81)],
        client: nets.iter().map(|net| network(net.service, net.lens[0])).collect(),
        next_hops: nets.iter().map(|net| net.hop).collect(),
        own: [own(0), own(1)],
    };
    let addresses = nets.iter().map(|net| net.service).collect();
    EngineConfig { vip: Some(plan), addresses, ports: vec![80, 8080], ..config() }
}

/// A frame that left, and what it says.
#[derive(Clone, Debug)]
struct Left {
    link: Link,
    packet: Packet,
    frame: Frame,
}

/// The engine between hosts that answer for their own addresses only, as far as neighbours go.
struct World {
    engine: Engine,
    now: Instant,
    left: Vec<Left>,
    events: Vec<Event>,
    records: Vec<Record>,
    /// Servers that say nothing at all.
    mute: [bool; 2],
    is_client_mute: bool,
}

impl World {
    fn new(config: EngineConfig) -> Self {
        let mut world = Self::asleep(config, Vec::new());
        world.wait_ms(15);
        world.forget();
        world
    }

    fn asleep(config: EngineConfig, records: Vec<Record>) -> Self {
        Self::with(config, records, [false; 2])
    }

    fn with(config: EngineConfig, records: Vec<Record>, mute: [bool; 2]) -> Self {
        let now = Instant::from_millis(1000);
        let mut world = Self {
            engine: Engine::new(config, 7, now),
            now,
            left: Vec::new(),
            events: Vec::new(),
            records: Vec::new(),
            mute,
            is_client_mute: false,
        };
        if !records.is_empty() {
            world.input(Input::Restore(records));
        }
        for link in Link::ALL {
            world.come(link);
        }
        world
    }

    fn come(&mut self, link: Link) {
        let mac = Some(GATEWAY_MACS[link.index()]);
        let up = Signal::CarrierUp(LinkCaps { mac, ..LinkCaps::default() });
        self.input(Input::Signal(link, up));
    }

    fn forget(&mut self) {
        self.left.clear();
        self.events.clear();
    }

    fn input(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => self.on_transmit(link, frame),
                Output::Event(event) => self.events.push(event),
                Output::Persist(record) => self.records.push(record),
                _ => {}
            }
        }
    }

    fn on_transmit(&mut self, link: Link, frame: Frame) {
        let mut cut = Vec::new();
        assert!(segmentize::for_link(frame, true, false, &mut cut));
        for frame in cut {
            let packet = parse::parse(&frame).expect("the gateway sends whole packets");
            assert_eq!(packet.l2().src, GATEWAY_MACS[link.index()], "in its own name: {packet:?}");
            self.left.push(Left { link, packet, frame });
            if let Some(answer) = self.neighbour_answer(link, &packet) {
                self.input(Input::Frame(link, answer));
            }
        }
    }

    /// What the host that is asked for says.
    fn neighbour_answer(&self, link: Link, packet: &Packet) -> Option<Frame> {
        let (target, asker, mac) = match packet {
            Packet::Arp(Arp { is_request: true, target, sender, sender_mac, .. }) => {
                (*target, *sender, *sender_mac)
            }
            Packet::Nd(Nd { kind: NdKind::Solicit { target, mac: Some(mac) }, l3, .. }) => {
                (*target, l3.src, *mac)
            }
            _ => return None,
        };
        let own = self.mac_of(link, target)?;
        let l2 = L2 { dst: mac, src: own, vlans: Vlans::default() };
        Some(match (target, asker) {
            (IpAddr::V4(target), IpAddr::V4(asker)) => build::arp_reply(&l2, target, asker),
            (IpAddr::V6(target), IpAddr::V6(asker)) => {
                build::neighbour_advertise(&l2, target, asker)
            }
            _ => return None,
        })
    }

    fn mac_of(&self, link: Link, ip: IpAddr) -> Option<Mac> {
        NETS.iter().find_map(|net| match link {
            Link::Client if self.is_client_mute => None,
            Link::Client if ip == net.client => Some(CLIENT_MAC),
            Link::Client if ip == net.hop => Some(HOP_MAC),
            Link::Server(leg) if ip == net.servers[leg.index()] && !self.mute[leg.index()] => {
                Some(SERVER_MACS[leg.index()])
            }
            _ => None,
        })
    }

    fn wait_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
        }
        self.now = end;
    }

    fn frame(&mut self, link: Link, frame: Frame) {
        self.input(Input::Frame(link, frame));
    }

    /// TCP segments other than probes on one link since the last [`Self::forget`].
    fn on(&self, link: Link) -> Vec<Heard> {
        let is_probe = |port: u16| port >= PORTS.end;
        let heard = self.left.iter().filter(|left| left.link == link).filter_map(|left| {
            let Packet::Tcp(seg) = left.packet else { return None };
            let data = left.frame.body()[..seg.payload_len].to_vec();
            (!is_probe(seg.src_port)).then_some(Heard { link, seg, data })
        });
        heard.collect()
    }

    /// Why frames were refused since then, in order.
    fn refused(&self, link: Link) -> Vec<RejectReason> {
        let reasons = self.events.iter().filter_map(|event| match event {
            Event::Rejected { link: at, reason } if *at == link => Some(*reason),
            _ => None,
        });
        reasons.filter(|reason| *reason != RejectReason::ProbeReply).collect()
    }

    fn neighbour(&self, ip: IpAddr) -> Option<NeighbourState> {
        self.engine.status().neighbours.iter().find(|known| known.address == ip)?.state
    }
}

fn l3(src: IpAddr, dst: IpAddr) -> L3 {
    L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 }
}

fn l2(link: Link, src: Mac) -> L2 {
    L2 { dst: GATEWAY_MACS[link.index()], src, vlans: Vlans::default() }
}

fn segment(link: Link, src: Mac, ends: Ends, say: &Say) -> Frame {
    let fields = TcpFields {
        src_port: ends.src.port(),
        dst_port: ends.dst.port(),
        seq: say.seq,
        ack: say.ack,
        flags: say.flags,
        window: say.window,
        urgent: 0,
        options: say.options,
    };
    let data = Bytes::from(say.data.clone());
    build::tcp(&l2(link, src), &l3(ends.src.ip(), ends.dst.ip()), &fields, data, 65_000)
}

/// One connection: who it is on each link.
struct Talker {
    net: Net,
    source: Source,
    client: SocketAddr,
    port: (u16, u16),
}

impl Talker {
    fn new(net: Net, source: Source) -> Self {
        Self { net, source, client: SocketAddr::new(net.client, 40_000), port: (80, 80) }
    }

    fn client(&self, world: &mut World, say: Say) {
        let dst = SocketAddr::new(self.net.service, self.port.0);
        let mac = if self.client.ip() == self.net.far { HOP_MAC } else { CLIENT_MAC };
        let ends = Ends { src: self.client, dst };
        world.frame(Link::Client, segment(Link::Client, mac, ends, &say));
    }

    /// A server answers whom it sees.
    fn leg(&self, world: &mut World, leg: LegId, say: Say) {
        let dst = self.seen_by(world, leg);
        let src = SocketAddr::new(self.net.servers[leg.index()], self.port.1);
        let link = Link::Server(leg);
        world.frame(link, segment(link, SERVER_MACS[leg.index()], Ends { src, dst }, &say));
    }

    /// Whom the server sees: the last one that spoke to it.
    fn seen_by(&self, world: &World, leg: LegId) -> SocketAddr {
        match self.source {
            Source::Client => self.client,
            Source::Gateway => {
                let own = self.net.own[leg.index()];
                let port = world.engine_port(self, leg);
                SocketAddr::new(own, port)
            }
        }
    }

    fn establish(&self, world: &mut World) {
        self.client(world, say(SYN, CLIENT_ISS, 0).mss(1460));
        for leg in LegId::ALL {
            self.leg(world, leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
        }
        self.client(world, say(ACK, R, P));
        assert_eq!(world.engine.flows(1)[0].state, FlowState::Paired);
    }
}

impl World {
    /// The port that the connection's latest segment to `leg` had.
    fn engine_port(&self, talker: &Talker, leg: LegId) -> u16 {
        let is_its = |heard: &&Heard| heard.seg.dst_port == talker.port.1;
        let heard = self.on(Link::Server(leg));
        heard.iter().rfind(is_its).expect("it was sent something").seg.src_port
    }
}

/// What a segment's frame says on its link.
fn seen(heard: &Heard) -> (SocketAddr, SocketAddr, Mac, u8) {
    (heard.seg.src(), heard.seg.dst(), heard.seg.l2.dst, heard.seg.l3.ttl)
}

impl World {
    /// Forgets what was shown to the client.
    fn forget_but_ports(&mut self) {
        self.left.retain(|left| left.link != Link::Client);
        self.events.clear();
    }
}
