//! A client made by hand against two real kernels, with the engine between them in this process.
//!
//! The servers are Linux's TCP in two network namespaces, their programs are sockets that the
//! script holds; the client is what the script says, segment by segment. The rig carries frames
//! and lets time pass as it does.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use shadowvm::engine::{
    Engine, EngineConfig, Event, FLOW_CONSTANTS_LEN, FlowState, Input, Instant, LagPolicy, LegId,
    Link, LinkCaps, Output, Record, RejectReason, ServerState, Signal, SyncRequest, SyncScope,
};
use shadowvm::io::socket::PacketSocket;
use shadowvm::io::{clock, link_monitor};
use shadowvm::lab::world::{CLIENT, CLIENT_MAC, SERVICE};
use shadowvm::lab::{HostId, Program, ServerOptions, World, WorldOptions};
use shadowvm::wire::parse::parse;
use shadowvm::wire::train::Train;
use shadowvm::wire::{Frame, Mac, Packet, Segment, Vlans};

use super::conn::{Conn, FIRST_PORT, ISS, SYN, Seen};
use super::raw;

pub const A: LegId = LegId::A;
pub const B: LegId = LegId::B;
/// A router on the client's path.
pub const ROUTER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 254), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe));
/// How long anything may take.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// Which frames to a server vanish: decides on each.
type Loss = Box<dyn FnMut(LegId, &Segment) -> bool>;
/// What becomes of a server's segment on its way to the gateway.
type Passage = Box<dyn FnMut(LegId, &Segment, Frame) -> Option<Frame>>;

/// What is peculiar about an arrangement.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub is_v6: bool,
    pub servers: [ServerOptions; 2],
    /// Sysctls of each server.
    pub sysctls: [Vec<(&'static str, &'static str)>; 2],
    /// Words for `ip`, in both servers.
    pub routes: Vec<&'static str>,
    /// A late backup makes the flow Lagging; otherwise it is waited for.
    pub is_available: bool,
    /// SYNs are answered with cookies whenever that can be.
    pub has_cookies: bool,
    /// What makes the servers equal when they differ, and the least time between two syncs.
    pub sync: Option<(SyncScope, Duration)>,
}

impl Setup {
    /// Two equal servers.
    pub fn over(is_v6: bool) -> Self {
        Self { is_v6, ..Self::default() }
    }

    /// The same sysctl at both.
    pub fn both(mut self, key: &'static str, value: &'static str) -> Self {
        self.sysctls.iter_mut().for_each(|all| all.push((key, value)));
        self
    }

    /// Every frame is a packet: no server leaves cutting segments to its interface.
    pub fn in_packets(mut self) -> Self {
        self.servers.iter_mut().for_each(|server| server.has_tso = false);
        self
    }

    /// A server repeats nothing by its retransmission timer within the time of a script.
    pub fn patient(mut self) -> Self {
        let client = if self.is_v6 { "2001:db8::1/128" } else { "192.0.2.1/32" };
        self.routes.extend(["route", "add", client, "dev", "eth0", "rto_min", "20s"]);
        self
    }
}

/// The whole arrangement.
pub struct Rig {
    /// Held for its life.
    _world: World,
    pub engine: Engine,
    config: EngineConfig,
    sockets: [PacketSocket; 2],
    /// What listens at each server; without it the port refuses.
    pub listeners: [Option<TcpListener>; 2],
    /// Everything that was sent to the client and to the servers, in order.
    pub seen: Vec<Seen>,
    /// Everything that the gateway heard from the servers, in order.
    pub said: Vec<Seen>,
    /// ICMP messages to the client and to the servers.
    pub icmp: Vec<(Link, Frame)>,
    pub events: Vec<Event>,
    /// Syncs that the engine wants.
    pub syncs: Vec<SyncRequest>,
    /// Frames to servers for which this is true are lost.
    pub lose: Loss,
    /// The way of the servers' segments.
    pub passage: Passage,
    /// Tags of the network: what the kernels say gets them, what they hear has lost them.
    pub vlans: Vlans,
    /// What the engine wants kept beyond its life: the latest record of each flow, by its slot.
    records: BTreeMap<u32, [u8; FLOW_CONSTANTS_LEN]>,
    pub is_v6: bool,
    /// The client's clock at its next SYN.
    pub tsval: u32,
    /// The identification of the client's next packet.
    pub id: u16,
    /// Its latest port.
    pub port: u16,
}

/// The client's address and the service's.
pub fn addresses(is_v6: bool) -> (IpAddr, IpAddr) {
    match is_v6 {
        true => (CLIENT.1.into(), SERVICE.1.into()),
        false => (CLIENT.0.into(), SERVICE.0.into()),
    }
}

impl Rig {
    /// Two equal kernels, listening.
    pub fn equal(is_v6: bool) -> Result<Self, String> {
        Self::new(&Setup::over(is_v6))
    }

    /// Two kernels, listening.
    pub fn new(setup: &Setup) -> Result<Self, String> {
        let is_v6 = setup.is_v6;
        let options = WorldOptions { servers: setup.servers.clone(), ..WorldOptions::default() };
        let world = World::new(&options).map_err(|e| e.to_string())?;
        let mac = Mac(CLIENT_MAC).to_string();
        for leg in LegId::ALL {
            for (key, value) in &setup.sysctls[leg.index()] {
                world.sysctl(HostId::Server(leg), key, value).map_err(|e| e.to_string())?;
            }
            let router = if is_v6 { ROUTER.1.to_string() } else { ROUTER.0.to_string() };
            for host in [addresses(is_v6).0.to_string(), router] {
                let words = ["neigh", "replace", &host, "lladdr", &mac, "dev", "eth0"];
                ip(&world, leg, &[&words[..], &["nud", "permanent"]].concat())?;
            }
            if !setup.routes.is_empty() {
                ip(&world, leg, &setup.routes)?;
            }
        }
        let open = |name: &'static str| -> Result<PacketSocket, String> {
            let opened = world.enter(HostId::Gateway, || {
                let found = link_monitor::interface(name).ok_or("no such interface".to_owned())?;
                PacketSocket::open(found.index).map_err(|e| format!("{e:?}"))
            });
            opened.map_err(|e| e.to_string())?
        };
        let listen = |leg| -> Result<Option<TcpListener>, String> {
            let listener = world
                .enter(HostId::Server(leg), || TcpListener::bind((addresses(is_v6).1, 80)))
                .map_err(|e| e.to_string())?
                .map_err(|e| e.to_string())?;
            listener.set_nonblocking(true).map_err(|e| e.to_string())?;
            Ok(Some(listener))
        };
        let on_lag = if setup.is_available { LagPolicy::Available } else { LagPolicy::Strict };
        let addresses = vec![SERVICE.0.into(), SERVICE.1.into()];
        let config = EngineConfig {
            addresses,
            on_lag,
            sync_scope: setup.sync.map(|(scope, _)| scope),
            sync_min_gap: setup.sync.map_or(Duration::ZERO, |(_, gap)| gap),
            // As long as a script may take: what ends a sync is its backend's word.
            sync_deadline: WAIT_MAX,
            ..EngineConfig::default()
        };
        let half_open_max = if setup.has_cookies { 0 } else { config.half_open_max };
        let config = EngineConfig { half_open_max, ..config };
        let mut rig = Self {
            engine: Engine::new(config.clone(), 1, clock::now()),
            config,
            sockets: [open("a")?, open("b")?],
            listeners: [listen(A)?, listen(B)?],
            _world: world,
            seen: Vec::new(),
            said: Vec::new(),
            icmp: Vec::new(),
            events: Vec::new(),
            syncs: Vec::new(),
            lose: Box::new(|_, _| false),
            passage: Box::new(|_, _, frame| Some(frame)),
            vlans: Vlans::default(),
            records: BTreeMap::new(),
            is_v6,
            tsval: 1000,
            id: 1,
            port: FIRST_PORT - 1,
        };
        rig.begin()?;
        Ok(rig)
    }

    /// The engine learns its links, and of both kernels: each has to answer one of its probes.
    fn begin(&mut self) -> Result<(), String> {
        let caps = LinkCaps { mtu: 1500, has_gso: true, has_csum: true, mac: None };
        for link in Link::ALL {
            self.input(Input::Signal(link, Signal::CarrierUp(caps)))?;
        }
        self.until("both servers up", |rig| {
            let up = |s| matches!(s, ServerState::Up);
            rig.engine.status().servers.into_iter().all(up).then_some(())
        })
    }

    /// Another engine takes over, with nothing but the records of this one.
    pub fn restart(&mut self) -> Result<(), String> {
        let record = |(&slot, &constants): (&u32, _)| Record::Flow { slot, constants };
        let records = self.records.iter().map(record).collect();
        self.engine = Engine::new(self.config.clone(), 2, clock::now());
        self.input(Input::Restore(records))?;
        self.begin()
    }

    /// The link of the primary fails: the backup is promoted.
    pub fn fail(&mut self, leg: LegId) -> Result<(), String> {
        self.input(Input::Signal(Link::Server(leg), Signal::CarrierDown))?;
        let is_promoted =
            |e: &Event| matches!(e, Event::Promoted { primary, .. } if *primary == leg.other());
        match self.events.iter().any(is_promoted) {
            true => Ok(()),
            false => Err(format!("{:?} was not promoted", leg.other())),
        }
    }

    /// Gives the engine an input and carries out what it wants.
    pub fn input(&mut self, input: Input) -> Result<(), String> {
        self.engine.handle(clock::now(), input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => self.transmit(link, frame)?,
                Output::Event(event) => self.events.push(event),
                Output::Sync(request) => self.syncs.push(request),
                Output::Persist(Record::Flow { slot, constants }) => {
                    self.records.insert(slot, constants);
                }
                Output::Persist(Record::Free { slot }) => drop(self.records.remove(&slot)),
                _ => {}
            }
        }
        Ok(())
    }

    fn transmit(&mut self, link: Link, frame: Frame) -> Result<(), String> {
        match parse(&frame) {
            Ok(Packet::Tcp(seg)) => {
                if let Link::Server(leg) = link
                    && (self.lose)(leg, &seg)
                {
                    return Ok(());
                }
                self.seen.push(seen(link, seg, &frame));
            }
            Ok(Packet::Icmp(_)) => self.icmp.push((link, frame.clone())),
            _ => {}
        }
        let Link::Server(leg) = link else { return Ok(()) };
        let frame = match self.vlans == Vlans::default() {
            true => frame,
            false => raw::retagged(&frame, &[]),
        };
        let sent = self.sockets[leg.index()].send(std::iter::once(&Train::from(frame)));
        sent.map(drop).map_err(|e| format!("sending to {leg:?}: {e}"))
    }

    /// Carries frames until `ask` has an answer.
    pub fn until<T>(
        &mut self,
        what: &str,
        mut ask: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, String> {
        let end = clock::now() + WAIT_MAX;
        loop {
            if let Some(answer) = ask(self) {
                return Ok(answer);
            }
            if clock::now() >= end {
                return Err(format!("waited for {what}; last seen:\n{}", self.last_seen()));
            }
            self.step(end)?;
        }
    }

    /// The latest segments of the client's connections, a line each.
    pub fn last_seen(&self) -> String {
        let ours = FIRST_PORT..=self.port;
        let is_ours =
            |s: &&Seen| [s.seg.src_port, s.seg.dst_port].iter().any(|port| ours.contains(port));
        let line = |s: &Seen| format!("to {s}");
        let mut lines: Vec<String> =
            self.seen.iter().rev().filter(is_ours).take(12).map(line).collect();
        lines.reverse();
        lines.join("\n")
    }

    /// Waits until each server has answered a probe that was sent after this moment: whatever was
    /// under way to it or from it before has arrived.
    pub fn settle(&mut self) -> Result<(), String> {
        self.settle_alone(A)?;
        self.settle_alone(B)
    }

    /// The same with one server.
    pub fn settle_alone(&mut self, leg: LegId) -> Result<(), String> {
        let (from, before) = (self.seen.len(), self.said.len());
        let is_probe = |s: &&Seen| s.link == Link::Server(leg) && s.has(SYN);
        let port = self.until("a probe", |rig| {
            let ours = FIRST_PORT..=rig.port;
            let mut probes = rig.seen[from..].iter().filter(is_probe).map(|s| s.seg.src_port);
            probes.find(|port| !ours.contains(port))
        })?;
        self.until("a server's answer to a probe", |rig| {
            let answers = rig.said[before..].iter().filter(|s| s.link == Link::Server(leg));
            answers.map(|s| s.seg.dst_port).find(|p| *p == port).map(drop)
        })
    }

    fn step(&mut self, end: Instant) -> Result<(), String> {
        let now = clock::now();
        let due = self.engine.poll_timeout().map_or(end, |t| t.min(end));
        let mut frames = VecDeque::new();
        for leg in LegId::ALL {
            let taken = self.sockets[leg.index()].recv(|frame| frames.push_back((leg, frame)));
            taken.map_err(|e| format!("receiving from {leg:?}: {e}"))?;
        }
        if frames.is_empty() {
            // Nothing to carry: let the kernels run, but not beyond what is due.
            std::thread::sleep(due.since(now).min(Duration::from_micros(200)));
        }
        while let Some((leg, frame)) = frames.pop_front() {
            self.hear(leg, frame)?;
        }
        if self.engine.poll_timeout().is_some_and(|t| t <= clock::now()) {
            self.input(Input::Timeout)?;
        }
        Ok(())
    }

    /// A frame of a server's kernel.
    fn hear(&mut self, leg: LegId, frame: Frame) -> Result<(), String> {
        let tags: Vec<(u16, u16)> =
            [self.vlans.outer, self.vlans.inner].into_iter().flatten().collect();
        let mut frame = if tags.is_empty() { frame } else { raw::retagged(&frame, &tags) };
        if let Ok(Packet::Tcp(seg)) = parse(&frame) {
            match (self.passage)(leg, &seg, frame) {
                Some(passed) => frame = passed,
                None => return Ok(()),
            }
            self.said.push(seen(Link::Server(leg), seg, &frame));
        }
        self.input(Input::Frame(Link::Server(leg), frame))
    }

    /// What the client of this port was shown.
    pub fn shown(&self, port: u16) -> impl DoubleEndedIterator<Item = &Seen> {
        self.seen.iter().filter(move |s| s.link == Link::Client && s.seg.dst_port == port)
    }

    /// What was sent to a server on this connection.
    pub fn sent_to(&self, leg: LegId, port: u16) -> impl DoubleEndedIterator<Item = &Seen> {
        let link = Link::Server(leg);
        self.seen.iter().filter(move |s| s.link == link && s.seg.src_port == port)
    }

    /// What a server said on this connection.
    pub fn said_by(&self, leg: LegId, port: u16) -> impl DoubleEndedIterator<Item = &Seen> {
        let link = Link::Server(leg);
        self.said.iter().filter(move |s| s.link == link && s.seg.dst_port == port)
    }

    /// Waits until the server's program has read this much.
    pub fn read(&mut self, stream: &mut TcpStream, len: usize) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        self.until("a server's program to read", |_| {
            let mut piece = [0; 65_536];
            let room = (len - all.len()).min(piece.len());
            while let Ok(n @ 1..) = stream.read(&mut piece[..room.min(len - all.len())]) {
                all.extend_from_slice(&piece[..n]);
                if all.len() == len {
                    break;
                }
            }
            (all.len() == len).then_some(())
        })?;
        Ok(all)
    }

    /// The highest number acknowledged to the client of a first connection, as an offset of its
    /// stream.
    pub fn acked(&self, port: u16) -> u32 {
        self.shown(port).last().map_or(0, |s| s.seg.ack.wrapping_sub(ISS.wrapping_add(1)))
    }

    /// How far the client may send, as an offset of its stream, by what it was shown last.
    pub fn edge(&self, conn: &Conn) -> u32 {
        let syn = self.shown(conn.port).find(|s| s.has(SYN));
        let shift = syn.and_then(|s| s.seg.options.window_scale).unwrap_or(0);
        let edge = |s: &Seen| {
            let shift = if s.has(SYN) { 0 } else { shift };
            conn.acked_by(s) + (u32::from(s.seg.window) << shift)
        };
        self.shown(conn.port).last().map_or(0, edge)
    }

    /// Why frames of a link were refused, since there were `mark` events.
    pub fn refused(&self, mark: usize, link: Link) -> Vec<RejectReason> {
        let reason = |e: &Event| match e {
            Event::Rejected { link: l, reason } if *l == link => Some(*reason),
            _ => None,
        };
        self.events[mark..].iter().filter_map(reason).collect()
    }

    /// The state of the only flow.
    pub fn state(&self) -> Option<FlowState> {
        self.engine.flows(1).first().map(|flow| flow.state)
    }
}

/// Both programs say the same.
pub fn respond(streams: &mut [TcpStream; 2], data: &[u8]) -> Result<(), String> {
    for stream in streams {
        stream.write_all(data).map_err(|e| e.to_string())?;
    }
    Ok(())
}

pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

pub fn seen(link: Link, seg: Segment, frame: &Frame) -> Seen {
    let data = frame.body()[..seg.payload_len].to_vec();
    Seen { at: clock::now(), link, seg, data, frame: frame.clone() }
}

fn ip(world: &World, leg: LegId, words: &[&str]) -> Result<(), String> {
    let program = Program::new("ip").args(words);
    let mut child = world.spawn(HostId::Server(leg), program).map_err(|e| e.to_string())?;
    let status = child.wait().map_err(|e| e.to_string())?;
    ensure(status.success(), || format!("ip {words:?}: {status}"))
}
