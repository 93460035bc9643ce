//! A client made by hand against two real kernels, with the engine between them in this process.
//!
//! The servers are Linux's TCP in two network namespaces, their programs are sockets that the
//! script holds; the client is what the script says, segment by segment. The rig carries frames
//! and lets time pass as it does.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use shadowvm::engine::{
    Engine, EngineConfig, Event, FLOW_CONSTANTS_LEN, Input, Instant, LagPolicy, LegId, Link,
    LinkCaps, Output, Record, ServerState, Signal,
};
use shadowvm::io::socket::PacketSocket;
use shadowvm::io::{clock, link_monitor};
use shadowvm::lab::world::{CLIENT, CLIENT_MAC, SERVER_MAC, SERVICE};
use shadowvm::lab::{HostId, Program, ServerOptions, World, WorldOptions};
use shadowvm::wire::build::{TcpFields, tcp};
use shadowvm::wire::parse::parse;
use shadowvm::wire::train::Train;
use shadowvm::wire::{Frame, L2, L3, Mac, Packet, Segment, TcpFlags, TcpOptions, Tsval, Vlans};

pub const ACK: TcpFlags = TcpFlags::ACK;
pub const SYN: TcpFlags = TcpFlags::SYN;
pub const FIN: TcpFlags = TcpFlags(0x11);
pub const RST: TcpFlags = TcpFlags::RST;

/// The client's first sequence number: it wraps within the first hundred bytes.
pub const ISS: u32 = u32::MAX - 40;
/// The client's port of the first connection.
pub const FIRST_PORT: u16 = 40_001;
/// How long anything may take.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A segment as it was seen on one of the links.
#[derive(Clone, Debug)]
pub struct Seen {
    pub link: Link,
    pub seg: Segment,
    pub data: Vec<u8>,
}

/// Which frames to a server vanish: decides on each.
type Filter = Box<dyn FnMut(LegId, &Segment) -> bool>;

/// The whole arrangement.
pub struct Rig {
    /// Held for its life.
    _world: World,
    pub engine: Engine,
    sockets: [PacketSocket; 2],
    listeners: [TcpListener; 2],
    /// Everything that was sent to the client and to the servers, in order.
    pub seen: Vec<Seen>,
    pub events: Vec<Event>,
    /// Frames to servers for which this is true are lost.
    pub lose: Filter,
    /// What the engine wants kept beyond its life: the latest record of each flow, by its slot.
    records: BTreeMap<u32, [u8; FLOW_CONSTANTS_LEN]>,
    is_v6: bool,
    /// The client's clock at its next SYN.
    pub tsval: u32,
    port: u16,
}

/// What the client's SYN offers.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub mss: u16,
    pub scale: Option<u8>,
    pub has_sack: bool,
    pub has_stamps: bool,
}

impl Offer {
    pub const FULL: Self = Self { mss: 1460, scale: Some(7), has_sack: true, has_stamps: true };
    pub const BARE: Self = Self { mss: 536, scale: None, has_sack: false, has_stamps: false };
}

/// The client's address and the service's.
fn addresses(is_v6: bool) -> (IpAddr, IpAddr) {
    match is_v6 {
        true => (CLIENT.1.into(), SERVICE.1.into()),
        false => (CLIENT.0.into(), SERVICE.0.into()),
    }
}

fn config() -> EngineConfig {
    EngineConfig {
        addresses: vec![SERVICE.0.into(), SERVICE.1.into()],
        on_lag: LagPolicy::Strict,
        ..EngineConfig::default()
    }
}

impl Rig {
    /// Two kernels, listening; `set` are sysctls of server B.
    pub fn new(servers: [ServerOptions; 2], set: &[(&str, &str)]) -> Result<Self, String> {
        Self::over(false, servers, set)
    }

    /// The same, over IPv6 or IPv4.
    pub fn over(
        is_v6: bool,
        servers: [ServerOptions; 2],
        set: &[(&str, &str)],
    ) -> Result<Self, String> {
        let options = WorldOptions { servers, ..WorldOptions::default() };
        let world = World::new(&options).map_err(|e| e.to_string())?;
        for (key, value) in set {
            world.sysctl(HostId::Server(LegId::B), key, value).map_err(|e| e.to_string())?;
        }
        let mac = Mac(CLIENT_MAC).to_string();
        let open = |name: &'static str| -> Result<PacketSocket, String> {
            let opened = world.enter(HostId::Gateway, || {
                let found = link_monitor::interface(name).ok_or("no such interface".to_owned())?;
                PacketSocket::open(found.index).map_err(|e| format!("{e:?}"))
            });
            opened.map_err(|e| e.to_string())?
        };
        let listen = |leg| -> Result<TcpListener, String> {
            let client = addresses(is_v6).0.to_string();
            let neighbour = Program::new("ip").args(["neigh", "replace", &client, "lladdr"]);
            let neighbour = neighbour.arg(&mac).args(["dev", "eth0", "nud", "permanent"]);
            let mut child =
                world.spawn(HostId::Server(leg), neighbour).map_err(|e| e.to_string())?;
            child.wait().map_err(|e| e.to_string())?;
            let listener = world
                .enter(HostId::Server(leg), || TcpListener::bind((addresses(is_v6).1, 80)))
                .map_err(|e| e.to_string())?
                .map_err(|e| e.to_string())?;
            listener.set_nonblocking(true).map_err(|e| e.to_string())?;
            Ok(listener)
        };
        let mut rig = Self {
            engine: Engine::new(config(), 1, clock::now()),
            sockets: [open("a")?, open("b")?],
            listeners: [listen(LegId::A)?, listen(LegId::B)?],
            _world: world,
            seen: Vec::new(),
            events: Vec::new(),
            lose: Box::new(|_, _| false),
            records: BTreeMap::new(),
            is_v6,
            tsval: 1000,
            port: FIRST_PORT - 1,
        };
        rig.begin()?;
        Ok(rig)
    }

    /// The engine learns its links, and of both kernels: each has to answer one of its probes.
    fn begin(&mut self) -> Result<(), String> {
        let caps = LinkCaps { mtu: 1500, has_gso: true, has_csum: true };
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
        self.engine = Engine::new(config(), 2, clock::now());
        self.input(Input::Restore(records))?;
        self.begin()
    }

    /// Gives the engine an input and carries out what it wants.
    pub fn input(&mut self, input: Input) -> Result<(), String> {
        self.engine.handle(clock::now(), input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => self.transmit(link, frame)?,
                Output::Event(event) => self.events.push(event),
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
        if let Ok(Packet::Tcp(seg)) = parse(&frame) {
            if let Link::Server(leg) = link
                && (self.lose)(leg, &seg)
            {
                return Ok(());
            }
            let data = frame.body()[..seg.payload_len].to_vec();
            self.seen.push(Seen { link, seg, data });
        }
        if let Link::Server(leg) = link {
            let sent = self.sockets[leg.index()].send(std::iter::once(&Train::from(frame)));
            sent.map_err(|e| format!("sending to {leg:?}: {e}"))?;
        }
        Ok(())
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
    fn last_seen(&self) -> String {
        let ours = FIRST_PORT..=self.port;
        let is_ours =
            |s: &&Seen| [s.seg.src_port, s.seg.dst_port].iter().any(|port| ours.contains(port));
        let line = |s: &Seen| {
            let (link, seg) = (s.link, &s.seg);
            let (flags, seq, ack) = (seg.flags, seg.seq, seg.ack);
            format!("to {link:?}: {flags:?} seq {seq} ack {ack} len {}", s.data.len())
        };
        let mut lines: Vec<String> =
            self.seen.iter().rev().filter(is_ours).take(12).map(line).collect();
        lines.reverse();
        lines.join("\n")
    }

    /// Carries frames for this long.
    pub fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = clock::now() + time;
        while clock::now() < end {
            self.step(end)?;
        }
        Ok(())
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
            self.input(Input::Frame(Link::Server(leg), frame))?;
        }
        if self.engine.poll_timeout().is_some_and(|t| t <= clock::now()) {
            self.input(Input::Timeout)?;
        }
        Ok(())
    }

    /// A SYN from a new port of the client.
    pub fn syn(&mut self, offer: Offer) -> Result<Conn, String> {
        self.port += 1;
        let conn = Conn {
            port: self.port,
            offer,
            iss: ISS,
            viss: 0,
            has_stamps: false,
            sent: 0,
            received: Vec::new(),
            tsval: self.tsval,
            tsecr: 0,
            window: 60_000,
            urgent: 0,
            read_to: self.seen.len(),
        };
        self.repeat_syn(&conn)?;
        Ok(conn)
    }

    /// A SYN from the port of an earlier connection, with numbers beyond that one's.
    pub fn syn_again(&mut self, before: &Conn) -> Result<Conn, String> {
        let conn = Conn {
            iss: before.iss.wrapping_add(1_000_000),
            viss: 0,
            sent: 0,
            received: Vec::new(),
            tsval: before.tsval + 1000,
            tsecr: 0,
            read_to: self.seen.len(),
            ..before.clone()
        };
        self.repeat_syn(&conn)?;
        Ok(conn)
    }

    /// The same SYN again.
    pub fn repeat_syn(&mut self, conn: &Conn) -> Result<(), String> {
        let mut options = TcpOptions { mss: Some(conn.offer.mss), ..TcpOptions::default() };
        options.window_scale = conn.offer.scale;
        options.sack_permitted = conn.offer.has_sack;
        if conn.offer.has_stamps {
            options.timestamps = Some((Tsval(conn.tsval), Tsval(0)));
        }
        self.emit(conn, SYN, (conn.iss, 0), options, &[])
    }

    /// Waits for the SYN-ACK, acknowledges it, and takes both servers' sockets.
    pub fn accept(&mut self, conn: &mut Conn) -> Result<[TcpStream; 2], String> {
        let (port, expected) = (conn.port, conn.iss.wrapping_add(1));
        let synack = self.until("a SYN-ACK", |rig| {
            rig.shown(port).find(|s| s.seg.flags.has(SYN) && s.seg.ack == expected).cloned()
        })?;
        conn.viss = synack.seg.seq;
        if let Some((val, _)) = synack.seg.options.timestamps {
            (conn.has_stamps, conn.tsecr) = (true, val.0);
        }
        conn.read_to = self.seen.len();
        self.say(conn, ACK, b"")?;
        let mut streams = Vec::new();
        for leg in LegId::ALL {
            let stream = self.until("both servers to accept", |rig| {
                rig.listeners[leg.index()].accept().ok().map(|(stream, _)| stream)
            })?;
            stream.set_nonblocking(true).map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            streams.push(stream);
        }
        <[TcpStream; 2]>::try_from(streams).map_err(|_| "two streams".to_owned())
    }

    /// A connection, open on both servers.
    pub fn open(&mut self, offer: Offer) -> Result<(Conn, [TcpStream; 2]), String> {
        let mut conn = self.syn(offer)?;
        let streams = self.accept(&mut conn)?;
        Ok((conn, streams))
    }

    /// The next segment of the client, with what it has received acknowledged.
    pub fn say(&mut self, conn: &mut Conn, flags: TcpFlags, data: &[u8]) -> Result<(), String> {
        self.say_at(conn, conn.sent, flags, data, &[])?;
        conn.sent += data.len() as u32 + u32::from(flags.has(TcpFlags::FIN));
        Ok(())
    }

    /// A segment of the client at offset `at` of its stream, with SACK blocks in offsets.
    pub fn say_at(
        &mut self,
        conn: &mut Conn,
        at: u32,
        flags: TcpFlags,
        data: &[u8],
        sack: &[(u32, u32)],
    ) -> Result<(), String> {
        conn.tsval += 1;
        let mut options = TcpOptions::default();
        if conn.has_stamps {
            options.timestamps = Some((Tsval(conn.tsval), Tsval(conn.tsecr)));
        }
        let base = conn.viss.wrapping_add(1);
        for (left, right) in sack {
            options.sack.push(base.wrapping_add(*left), base.wrapping_add(*right));
        }
        let seq = conn.iss.wrapping_add(1 + at);
        let ack = base.wrapping_add(conn.received.len() as u32);
        self.emit(conn, flags, (seq, ack), options, data)
    }

    fn emit(
        &mut self,
        conn: &Conn,
        flags: TcpFlags,
        (seq, ack): (u32, u32),
        options: TcpOptions,
        data: &[u8],
    ) -> Result<(), String> {
        let l2 = L2 { dst: Mac(SERVER_MAC), src: Mac(CLIENT_MAC), vlans: Vlans::default() };
        let (src, dst) = addresses(self.is_v6);
        let id = u16::from(!self.is_v6);
        let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id, flow_label: 0 };
        let (src_port, window, urgent) = (conn.port, conn.window, conn.urgent);
        let fields = TcpFields { src_port, dst_port: 80, seq, ack, flags, window, urgent, options };
        let frame = tcp(&l2, &l3, &fields, Bytes::copy_from_slice(data), 1400);
        self.input(Input::Frame(Link::Client, frame))
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

    /// Receives, acknowledging, until the client has `total` bytes of the response.
    pub fn receive(&mut self, conn: &mut Conn, total: usize) -> Result<(), String> {
        self.until("the response", |rig| {
            while conn.read_to < rig.seen.len() {
                let seen = rig.seen[conn.read_to].clone();
                conn.read_to += 1;
                if seen.link == Link::Client && seen.seg.dst_port == conn.port {
                    conn.take(&seen);
                    if !seen.data.is_empty() {
                        rig.say(conn, ACK, b"").ok()?;
                    }
                }
            }
            (conn.received.len() >= total).then_some(())
        })
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
}

/// The client's end of a connection.
#[derive(Clone, Debug)]
pub struct Conn {
    pub port: u16,
    pub offer: Offer,
    /// The client's first sequence number.
    pub iss: u32,
    /// The first sequence number that the client was shown.
    pub viss: u32,
    pub has_stamps: bool,
    /// Bytes sent.
    pub sent: u32,
    /// The response so far, in order.
    pub received: Vec<u8>,
    pub tsval: u32,
    pub tsecr: u32,
    pub window: u16,
    /// The urgent pointer of what it says, for segments with the flag.
    pub urgent: u16,
    read_to: usize,
}

impl Conn {
    /// Takes bytes that continue what is there.
    fn take(&mut self, seen: &Seen) {
        if let Some((val, _)) = seen.seg.options.timestamps {
            self.tsecr = val.0;
        }
        let at = seen.seg.seq.wrapping_sub(self.viss.wrapping_add(1)) as usize;
        let have = self.received.len();
        if at <= have && at + seen.data.len() > have {
            self.received.extend_from_slice(&seen.data[have - at..]);
        }
    }
}
