//! A real kernel as the client of two servers made by hand, with the engine between them in this
//! process: what the servers say, and when, is up to the script, byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use shadowvm::engine::{
    Engine, EngineConfig, Input, LegId, Link, LinkCaps, Output, ServerState, Signal,
};
use shadowvm::io::socket::PacketSocket;
use shadowvm::io::{clock, link_monitor};
use shadowvm::lab::world::{SERVER_MAC, SERVICE};
use shadowvm::lab::{HostId, Program, World, WorldOptions};
use shadowvm::wire::build::{self, TcpFields};
use shadowvm::wire::parse::parse;
use shadowvm::wire::train::Train;
use shadowvm::wire::{Frame, L2, L3, Mac, Packet, Segment, TcpFlags, TcpOptions, Tsval};

use super::rig::{ACK, FIN, SYN};
use super::scripts::{ensure, pattern};

const A: LegId = LegId::A;
const B: LegId = LegId::B;
/// How long anything may take.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// What each server begins with: B's numbers and B's clock wrap at once.
const ISS: [u32; 2] = [7_000, u32::MAX - 9];
const CLOCK: [u32; 2] = [5_000, u32::MAX - 1];
const MSS: [u16; 2] = [1460, 1200];
const SCALE: [u8; 2] = [7, 3];

/// A segment that a server heard.
struct Heard {
    seg: Segment,
    data: Vec<u8>,
}

/// The arrangement, with one connection of the client's.
struct Desk {
    /// Held for its life.
    _world: World,
    engine: Engine,
    link: PacketSocket,
    client: TcpStream,
    port: u16,
    /// What each server heard of the connection.
    heard: [Vec<Heard>; 2],
    /// The client's first number.
    iss: u32,
    clock: [u32; 2],
}

impl Desk {
    /// The client's SYN has reached both servers; neither has answered.
    fn new() -> Result<Self, String> {
        let world = World::new(&WorldOptions::default()).map_err(|e| e.to_string())?;
        let neighbour = Program::new("ip")
            .args(["neigh", "replace", &SERVICE.0.to_string(), "lladdr"])
            .arg(Mac(SERVER_MAC).to_string())
            .args(["dev", "eth0", "nud", "permanent"]);
        let mut child = world.spawn(HostId::Client, neighbour).map_err(|e| e.to_string())?;
        child.wait().map_err(|e| e.to_string())?;
        let opened = world.enter(HostId::Gateway, || {
            let found = link_monitor::interface("client").ok_or("no such interface".to_owned())?;
            PacketSocket::open(found.index).map_err(|e| format!("{e:?}"))
        });
        let link = opened.map_err(|e| e.to_string())??;
        let config = EngineConfig { addresses: vec![SERVICE.0.into()], ..EngineConfig::default() };
        let engine = Engine::new(config, 1, clock::now());
        let client = world.enter(HostId::Client, begin_to_connect).map_err(|e| e.to_string())??;
        let port = client.local_addr().map_err(|e| e.to_string())?.port();
        let heard = [Vec::new(), Vec::new()];
        let mut desk =
            Self { _world: world, engine, link, client, port, heard, iss: 0, clock: CLOCK };
        let caps = LinkCaps { mtu: 1500, has_gso: true, has_csum: true };
        for link in Link::ALL {
            desk.input(Input::Signal(link, Signal::CarrierUp(caps)))?;
        }
        desk.until("both servers up", |desk| {
            let up = |s| matches!(s, ServerState::Up);
            desk.engine.status().servers.into_iter().all(up).then_some(())
        })?;
        desk.iss = desk.until("the SYN at both", |desk| {
            let [a, b] = &desk.heard;
            (!b.is_empty()).then_some(a.first()?.seg.seq)
        })?;
        Ok(desk)
    }

    /// Both servers have accepted, and the client has heard it.
    fn open() -> Result<Self, String> {
        let mut desk = Self::new()?;
        for leg in LegId::ALL {
            desk.accept(leg)?;
        }
        desk.until("the third segment of the handshake", |desk| {
            let has_acked = |all: &Vec<Heard>| all.iter().any(|h| h.seg.flags == ACK);
            desk.heard.iter().all(has_acked).then_some(())
        })?;
        Ok(desk)
    }

    fn input(&mut self, input: Input) -> Result<(), String> {
        self.engine.handle(clock::now(), input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(Link::Client, frame) => {
                    let sent = self.link.send(std::iter::once(&Train::from(frame)));
                    sent.map_err(|e| format!("sending to the client: {e}"))?;
                }
                Output::Transmit(Link::Server(leg), frame) => self.hear(leg, &frame)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// A server hears a frame. Probes it answers at once, as a kernel does.
    fn hear(&mut self, leg: LegId, frame: &Frame) -> Result<(), String> {
        match parse(frame) {
            Ok(Packet::Arp(arp)) if arp.target == SERVICE.0 => {
                let l2 = L2 { src: Mac(SERVER_MAC), ..arp.l2.reversed() };
                let IpAddr::V4(asker) = arp.sender else { return Ok(()) };
                let reply = build::arp_reply(&l2, SERVICE.0, asker);
                self.input(Input::Frame(Link::Server(leg), reply))
            }
            Ok(Packet::Tcp(seg)) if seg.src_port == self.port => {
                let data = frame.body()[..seg.payload_len].to_vec();
                self.heard[leg.index()].push(Heard { seg, data });
                Ok(())
            }
            Ok(Packet::Tcp(seg)) if seg.flags.has(SYN) => {
                let fields = TcpFields {
                    src_port: seg.dst_port,
                    dst_port: seg.src_port,
                    seq: 1,
                    ack: seg.seq.wrapping_add(1),
                    flags: SYN.with(ACK),
                    window: 1000,
                    urgent: 0,
                    options: TcpOptions::default(),
                };
                let (l2, l3) = (seg.l2.reversed(), seg.l3.reversed());
                let answer = build::tcp(&l2, &l3, &fields, Bytes::new(), 1400);
                self.input(Input::Frame(Link::Server(leg), answer))
            }
            _ => Ok(()),
        }
    }

    fn until<T>(
        &mut self,
        what: &str,
        mut ask: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, String> {
        let end = clock::now() + WAIT_MAX;
        while clock::now() < end {
            if let Some(answer) = ask(self) {
                return Ok(answer);
            }
            self.step()?;
        }
        Err(format!("waited for {what}"))
    }

    fn step(&mut self) -> Result<(), String> {
        let mut frames = Vec::new();
        let taken = self.link.recv(|frame| frames.push(frame));
        taken.map_err(|e| format!("receiving from the client: {e}"))?;
        if frames.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
        for frame in frames {
            self.input(Input::Frame(Link::Client, frame))?;
        }
        if self.engine.poll_timeout().is_some_and(|at| at <= clock::now()) {
            self.input(Input::Timeout)?;
        }
        Ok(())
    }

    fn accept(&mut self, leg: LegId) -> Result<(), String> {
        let i = leg.index();
        let options = TcpOptions {
            mss: Some(MSS[i]),
            window_scale: Some(SCALE[i]),
            sack_permitted: true,
            ..TcpOptions::default()
        };
        self.emit(leg, SYN.with(ACK), ISS[i], 0, options, b"")
    }

    /// A server says `data` at offset `at` of its answer, having heard `heard` bytes.
    fn say(
        &mut self,
        leg: LegId,
        flags: TcpFlags,
        at: u32,
        heard: u32,
        data: &[u8],
    ) -> Result<(), String> {
        let seq = ISS[leg.index()].wrapping_add(1 + at);
        self.emit(leg, flags, seq, heard, TcpOptions::default(), data)
    }

    fn emit(
        &mut self,
        leg: LegId,
        flags: TcpFlags,
        seq: u32,
        heard: u32,
        mut options: TcpOptions,
        data: &[u8],
    ) -> Result<(), String> {
        let i = leg.index();
        self.clock[i] = self.clock[i].wrapping_add(1);
        let first = &self.heard[i][0].seg;
        let echo = self.heard[i].iter().rev().find_map(|h| h.seg.options.timestamps);
        options.timestamps = Some((Tsval(self.clock[i]), echo.unwrap_or_default().0));
        let fields = TcpFields {
            src_port: 80,
            dst_port: self.port,
            seq,
            ack: self.iss.wrapping_add(1 + heard),
            flags,
            window: 500,
            urgent: 0,
            options,
        };
        let (l2, l3): (L2, L3) = (first.l2.reversed(), first.l3.reversed());
        let frame = build::tcp(&l2, &l3, &fields, Bytes::copy_from_slice(data), 1460);
        self.input(Input::Frame(Link::Server(leg), frame))
    }

    /// The client's program reads this much.
    fn read(&mut self, len: usize) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        self.until("the client's program to read", |desk| {
            let mut piece = [0; 65_536];
            let room = (len - all.len()).min(piece.len());
            if let Ok(n) = desk.client.read(&mut piece[..room]) {
                all.extend_from_slice(&piece[..n]);
            }
            (all.len() == len).then_some(())
        })?;
        Ok(all)
    }

    /// Waits until a server has heard `len` request bytes, all in its own numbers: behind them it
    /// is acknowledged `acked` bytes of its answer, and its own clock is echoed.
    fn heard_by(&mut self, leg: LegId, len: usize, acked: u32) -> Result<Vec<u8>, String> {
        let i = leg.index();
        let (first, edge) = (self.iss.wrapping_add(1), ISS[i].wrapping_add(1 + acked));
        let what = format!("{leg:?} to hear {len} bytes and an ack of {acked}");
        let request = self.until(&what, |desk| {
            let mut all: Vec<u8> = Vec::new();
            for heard in &desk.heard[i] {
                let at = heard.seg.seq.wrapping_sub(first) as usize;
                if at <= all.len() && at + heard.data.len() > all.len() {
                    all.extend_from_slice(&heard.data[all.len() - at..]);
                }
            }
            let is_acked = desk.heard[i].last()?.seg.ack == edge;
            (all.len() >= len && is_acked).then_some(all)
        })?;
        let range = CLOCK[i]..=u32::MAX;
        for heard in self.heard[i].iter().filter(|h| !h.seg.flags.has(SYN)) {
            let (_, echo) = heard.seg.options.timestamps.ok_or("a segment without timestamps")?;
            let since = echo.0.wrapping_sub(CLOCK[i]);
            let said = self.clock[i].wrapping_sub(CLOCK[i]);
            ensure(since <= said, || format!("{leg:?} hears {echo:?}, not of {range:?}"))?;
        }
        Ok(request)
    }
}

fn begin_to_connect() -> Result<TcpStream, String> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let own = socket(AddressFamily::Inet, SockType::Stream, flags, None);
    let own = own.map_err(|e| e.to_string())?;
    let [a, b, c, d] = SERVICE.0.octets();
    match connect(std::os::fd::AsRawFd::as_raw_fd(&own), &SockaddrIn::new(a, b, c, d, 80)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(own)),
        Err(error) => Err(error.to_string()),
    }
}

/// Two answers cut differently, in numbers, clocks and windows of their own: one to the client.
pub fn two_segmentations() -> Result<(), String> {
    let mut desk = Desk::open()?;
    desk.client.write_all(b"GET").map_err(|e| e.to_string())?;
    for leg in LegId::ALL {
        ensure(desk.heard_by(leg, 3, 0)? == b"GET", || format!("{leg:?} heard something else"))?;
    }
    let all = pattern(3000);
    for (i, piece) in all.chunks(1000).enumerate() {
        desk.say(A, ACK, i as u32 * 1000, 3, piece)?;
    }
    for (i, piece) in all.chunks(1200).enumerate() {
        desk.say(B, ACK, i as u32 * 1200, 3, piece)?;
    }
    ensure(desk.read(3000)? == all, || "the client read something else".into())?;
    for leg in LegId::ALL {
        desk.heard_by(leg, 3, 3000)?;
    }
    Ok(())
}

/// The primary's link fails in mid-answer: the client reads on, and the survivor hears its own
/// numbers.
pub fn a_failover() -> Result<(), String> {
    let mut desk = Desk::open()?;
    desk.client.write_all(b"GET").map_err(|e| e.to_string())?;
    let all = pattern(4000);
    for leg in LegId::ALL {
        desk.heard_by(leg, 3, 0)?;
        desk.say(leg, ACK, 0, 3, &all[..1000])?;
    }
    ensure(desk.read(1000)? == all[..1000], || "the client read something else".into())?;
    desk.say(B, ACK, 1000, 3, &all[1000..2200])?;
    desk.input(Input::Signal(Link::Server(A), Signal::CarrierDown))?;
    desk.say(B, ACK, 2200, 3, &all[2200..3400])?;
    desk.say(B, ACK, 3400, 3, &all[3400..])?;
    ensure(desk.read(3000)? == all[1000..], || "the client read something else".into())?;
    desk.client.write_all(b"more").map_err(|e| e.to_string())?;
    let request = desk.heard_by(B, 7, 4000)?;
    ensure(request == b"GETmore", || format!("b heard {request:?}"))
}

/// One server ends, then the other: the client hears one end, and not before the second.
pub fn one_end_of_two() -> Result<(), String> {
    let mut desk = Desk::open()?;
    for leg in LegId::ALL {
        desk.say(leg, ACK, 0, 0, b"bye")?;
    }
    desk.read(3)?;
    desk.say(B, FIN, 3, 0, b"")?;
    let end = clock::now() + Duration::from_millis(30);
    while clock::now() < end {
        desk.step()?;
    }
    let early = desk.client.read(&mut [0]).map_err(|e| e.kind());
    ensure(early == Err(ErrorKind::WouldBlock), || format!("after one end: {early:?}"))?;
    desk.say(A, FIN, 3, 0, b"")?;
    desk.until("the end", |desk| matches!(desk.client.read(&mut [0]), Ok(0)).then_some(()))?;
    desk.client.shutdown(std::net::Shutdown::Both).map_err(|e| e.to_string())?;
    for leg in LegId::ALL {
        let has_fin = |h: &Heard| h.seg.flags.has(TcpFlags::FIN);
        desk.until("the client's FIN", |desk| {
            desk.heard[leg.index()].iter().any(has_fin).then_some(())
        })?;
    }
    Ok(())
}
