//! A real kernel as the client of two servers made by hand, with the engine between them in this
//! process: what the servers say, and when, is up to the script, byte by byte.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, socket,
};
use shadowvm::engine::{
    Engine, EngineConfig, Event, Input, Instant, LegId, Link, LinkCaps, Output, ServerState, Signal,
};
use shadowvm::io::socket::PacketSocket;
use shadowvm::io::{clock, link_monitor};
use shadowvm::lab::world::{SERVER_MAC, SERVICE};
use shadowvm::lab::{HostId, Program, World, WorldOptions};
use shadowvm::wire::build::{self, TcpFields};
use shadowvm::wire::parse::parse;
use shadowvm::wire::train::Train;
use shadowvm::wire::{
    Frame, L2, L3, Mac, NdKind, Packet, Segment, TcpFlags, TcpOptions, Tsval, Vlans,
};

use super::conn::{ACK, RST, SYN, Seen};
use super::rig::{A, WAIT_MAX, addresses, ensure, seen};

/// A server made by hand: what it begins with and agrees to.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub iss: u32,
    /// Its clock before its first word, and what a word adds to it.
    pub clock: u32,
    pub tick: u32,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub has_sack: bool,
    pub has_stamps: bool,
    /// Its window in the SYN-ACK, in bytes, and the field after it.
    pub first_window: u16,
    pub window: u16,
}

impl Made {
    pub const A: Self = Self {
        iss: 7_000,
        clock: 5_000,
        tick: 1,
        mss: Some(1460),
        scale: Some(7),
        has_sack: true,
        has_stamps: true,
        first_window: 500,
        window: 500,
    };
    /// Its numbers and its clock wrap at once.
    pub const B: Self =
        Self { iss: u32::MAX - 9, clock: u32::MAX - 1, mss: Some(1200), scale: Some(3), ..Self::A };

    /// Bytes that it grants beyond its ack.
    pub fn room(&self) -> u32 {
        u32::from(self.window) << self.scale.unwrap_or(0)
    }
}

/// The arrangement.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub made: [Made; 2],
    pub is_v6: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { made: [Made::A, Made::B], is_v6: false }
    }
}

/// A segment that a server heard.
pub struct Heard {
    pub seg: Segment,
    pub data: Vec<u8>,
}

/// The arrangement, with one connection of the client's.
pub struct Desk {
    /// Held for its life.
    _world: World,
    pub engine: Engine,
    link: PacketSocket,
    pub client: TcpStream,
    pub port: u16,
    pub made: [Made; 2],
    service: IpAddr,
    /// What each server heard of the connection.
    pub heard: [Vec<Heard>; 2],
    /// What was sent to the client of it, and what the client's kernel said.
    pub shown: Vec<Seen>,
    pub asked: Vec<Seen>,
    pub events: Vec<Event>,
    /// Frames to the client for which this is true are lost.
    pub lose: Box<dyn FnMut(&Segment) -> bool>,
    /// Frames to the client, kept to leave together.
    kept: Option<Vec<Frame>>,
    /// The time stands still for the engine.
    frozen: Option<Instant>,
    /// The client's first number.
    pub iss: u32,
    clock: [u32; 2],
}

impl Desk {
    /// The client's SYN has reached both servers; neither has answered.
    pub fn new(plan: &Plan) -> Result<Self, String> {
        let world = World::new(&WorldOptions::default()).map_err(|e| e.to_string())?;
        let service = addresses(plan.is_v6).1;
        let neighbour = Program::new("ip")
            .args(["neigh", "replace", &service.to_string(), "lladdr"])
            .arg(Mac(SERVER_MAC).to_string())
            .args(["dev", "eth0", "nud", "permanent"]);
        let mut child = world.spawn(HostId::Client, neighbour).map_err(|e| e.to_string())?;
        child.wait().map_err(|e| e.to_string())?;
        let opened = world.enter(HostId::Gateway, || {
            let found = link_monitor::interface("client").ok_or("no such interface".to_owned())?;
            PacketSocket::open(found.index).map_err(|e| format!("{e:?}"))
        });
        let link = opened.map_err(|e| e.to_string())??;
        let config = EngineConfig { addresses: vec![service], ..EngineConfig::default() };
        let engine = Engine::new(config, 1, clock::now());
        let client = world.enter(HostId::Client, || begin_to_connect(plan.is_v6));
        let client = client.map_err(|e| e.to_string())??;
        let port = client.local_addr().map_err(|e| e.to_string())?.port();
        let mut desk = Self {
            _world: world,
            engine,
            link,
            client,
            port,
            made: plan.made,
            service,
            heard: [Vec::new(), Vec::new()],
            shown: Vec::new(),
            asked: Vec::new(),
            events: Vec::new(),
            lose: Box::new(|_| false),
            kept: None,
            frozen: None,
            iss: 0,
            clock: plan.made.map(|made| made.clock),
        };
        let caps = LinkCaps { mtu: 1500, has_gso: true, has_csum: true, mac: None };
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
    pub fn open(plan: &Plan) -> Result<Self, String> {
        let mut desk = Self::new(plan)?;
        for leg in LegId::ALL {
            desk.accept(leg)?;
        }
        desk.until("the third segment of the handshake", |desk| {
            let has_acked = |all: &Vec<Heard>| all.iter().any(|h| h.seg.flags == ACK);
            desk.heard.iter().all(has_acked).then_some(())
        })?;
        Ok(desk)
    }

    pub fn input(&mut self, input: Input) -> Result<(), String> {
        self.engine.handle(self.frozen.unwrap_or_else(clock::now), input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(Link::Client, frame) => self.show(frame)?,
                Output::Transmit(Link::Server(leg), frame) => self.hear(leg, &frame)?,
                Output::Event(event) => self.events.push(event),
                _ => {}
            }
        }
        Ok(())
    }

    /// A frame for the client's kernel.
    fn show(&mut self, frame: Frame) -> Result<(), String> {
        if let Ok(Packet::Tcp(seg)) = parse(&frame) {
            self.shown.push(seen(Link::Client, seg, &frame));
            if (self.lose)(&seg) {
                return Ok(());
            }
        }
        match &mut self.kept {
            Some(kept) => {
                kept.push(frame);
                Ok(())
            }
            None => self.send(&Train::from(frame)),
        }
    }

    fn send(&self, train: &Train) -> Result<(), String> {
        let sent = self.link.send(std::iter::once(train));
        sent.map(drop).map_err(|e| format!("sending to the client: {e}"))
    }

    /// What leaves for the client during `work` leaves in as few frames as it can; their number.
    pub fn together(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<usize, String> {
        self.kept = Some(Vec::new());
        let done = work(self);
        let kept = self.kept.take().unwrap_or_default();
        done?;
        let mut trains: Vec<Train> = Vec::new();
        for frame in kept {
            let rest = match trains.last_mut() {
                Some(train) => train.join(frame),
                None => Some(frame),
            };
            trains.extend(rest.map(Train::from));
        }
        trains.iter().try_for_each(|train| self.send(train))?;
        Ok(trains.len())
    }

    /// Does `work` at one moment of the engine's time.
    pub fn at_once(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        self.frozen = Some(clock::now());
        let done = work(self);
        self.frozen = None;
        done
    }

    /// A server hears a frame. Probes it answers at once, as a kernel does.
    fn hear(&mut self, leg: LegId, frame: &Frame) -> Result<(), String> {
        match parse(frame) {
            Ok(Packet::Arp(arp)) if arp.target == self.service => {
                let l2 = L2 { src: Mac(SERVER_MAC), ..arp.l2.reversed() };
                let IpAddr::V4(asker) = arp.sender else { return Ok(()) };
                let reply = build::arp_reply(&l2, SERVICE.0, asker);
                self.input(Input::Frame(Link::Server(leg), reply))
            }
            Ok(Packet::Nd(nd)) => {
                let (NdKind::Solicit { .. }, IpAddr::V6(asker)) = (nd.kind, nd.l3.src) else {
                    return Ok(());
                };
                let l2 = L2 { dst: nd.l2.src, src: Mac(SERVER_MAC), vlans: Vlans::default() };
                let reply = build::neighbour_advertise(&l2, SERVICE.1, asker);
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

    pub fn until<T>(
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
        let line = |s: &Seen| format!("\n{s}");
        let last = |all: &[Seen]| all.iter().rev().take(8).rev().map(line).collect::<String>();
        let (shown, asked) = (last(&self.shown), last(&self.asked));
        Err(format!("waited for {what}; shown last:{shown}\nthe client said last:{asked}"))
    }

    /// Carries frames for this long.
    pub fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = clock::now() + time;
        while clock::now() < end {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let mut frames = Vec::new();
        let taken = self.link.recv(|frame| frames.push(frame));
        taken.map_err(|e| format!("receiving from the client: {e}"))?;
        if frames.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
        for frame in frames {
            if let Ok(Packet::Tcp(seg)) = parse(&frame) {
                self.asked.push(seen(Link::Client, seg, &frame));
            }
            self.input(Input::Frame(Link::Client, frame))?;
        }
        if self.engine.poll_timeout().is_some_and(|at| at <= clock::now()) {
            self.input(Input::Timeout)?;
        }
        Ok(())
    }

    pub fn accept(&mut self, leg: LegId) -> Result<(), String> {
        let made = self.made[leg.index()];
        let options = TcpOptions {
            mss: made.mss,
            window_scale: made.scale,
            sack_permitted: made.has_sack,
            ..TcpOptions::default()
        };
        self.emit(leg, SYN.with(ACK), made.iss, 0, options, b"")
    }

    /// A server says `data` at offset `at` of its answer, having heard `heard` bytes.
    pub fn say(
        &mut self,
        leg: LegId,
        flags: TcpFlags,
        at: u32,
        heard: u32,
        data: &[u8],
    ) -> Result<(), String> {
        let seq = self.made[leg.index()].iss.wrapping_add(1).wrapping_add(at);
        self.emit(leg, flags, seq, heard, TcpOptions::default(), data)
    }

    /// Both say the same at one moment of the engine's time.
    pub fn both_say(&mut self, at: u32, heard: u32, data: &[u8]) -> Result<(), String> {
        self.at_once(|desk| {
            LegId::ALL.into_iter().try_for_each(|leg| desk.say(leg, ACK, at, heard, data))
        })
    }

    fn emit(
        &mut self,
        leg: LegId,
        flags: TcpFlags,
        seq: u32,
        heard: u32,
        options: TcpOptions,
        data: &[u8],
    ) -> Result<(), String> {
        self.emit_urgent(leg, flags, seq, heard, options, data, 0)
    }

    /// Like [`Self::say`], with an urgent pointer.
    pub fn say_urgent(
        &mut self,
        leg: LegId,
        at: u32,
        heard: u32,
        data: &[u8],
        urgent: u16,
    ) -> Result<(), String> {
        let seq = self.made[leg.index()].iss.wrapping_add(1).wrapping_add(at);
        let flags = ACK.with(TcpFlags::URG);
        self.emit_urgent(leg, flags, seq, heard, TcpOptions::default(), data, urgent)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn emit_urgent(
        &mut self,
        leg: LegId,
        flags: TcpFlags,
        seq: u32,
        heard: u32,
        mut options: TcpOptions,
        data: &[u8],
        urgent: u16,
    ) -> Result<(), String> {
        let i = leg.index();
        let made = self.made[i];
        self.clock[i] = self.clock[i].wrapping_add(made.tick);
        let first = &self.heard[i][0].seg;
        let echo = self.heard[i].iter().rev().find_map(|h| h.seg.options.timestamps);
        if made.has_stamps {
            options.timestamps = Some((Tsval(self.clock[i]), echo.unwrap_or_default().0));
        }
        let fields = TcpFields {
            src_port: 80,
            dst_port: self.port,
            seq,
            ack: self.iss.wrapping_add(1).wrapping_add(heard),
            flags,
            window: if flags.has(SYN) { made.first_window } else { made.window },
            urgent,
            options,
        };
        let (l2, l3): (L2, L3) = (first.l2.reversed(), first.l3.reversed());
        let frame = build::tcp(&l2, &l3, &fields, Bytes::copy_from_slice(data), 1448);
        self.input(Input::Frame(Link::Server(leg), frame))
    }

    /// The client's program asks.
    pub fn write(&mut self, data: &[u8]) -> Result<(), String> {
        self.client.write_all(data).map_err(|e| e.to_string())
    }

    /// The client's program reads this much.
    pub fn read(&mut self, len: usize) -> Result<Vec<u8>, String> {
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

    /// The request as far as a server has heard it without a hole.
    pub fn request(&self, leg: LegId) -> Vec<u8> {
        let first = self.iss.wrapping_add(1);
        let mut all: Vec<u8> = Vec::new();
        for heard in &self.heard[leg.index()] {
            let at = heard.seg.seq.wrapping_sub(first) as usize;
            if at <= all.len() && at + heard.data.len() > all.len() {
                all.extend_from_slice(&heard.data[all.len() - at..]);
            }
        }
        all
    }

    /// Waits until a server has heard `len` request bytes, all in its own numbers: behind them it
    /// is acknowledged `acked` bytes of its answer, and its own clock is echoed.
    pub fn heard_by(&mut self, leg: LegId, len: usize, acked: u32) -> Result<Vec<u8>, String> {
        let i = leg.index();
        let made = self.made[i];
        let edge = made.iss.wrapping_add(1).wrapping_add(acked);
        let what = format!("{leg:?} to hear {len} bytes and an ack of {acked}");
        let request = self.until(&what, |desk| {
            let request = desk.request(leg);
            let is_acked = desk.heard[i].last()?.seg.ack == edge;
            (request.len() >= len && is_acked).then_some(request)
        })?;
        let said = self.clock[i].wrapping_sub(made.clock);
        let is_plain = |h: &&Heard| !h.seg.flags.has(SYN) && !h.seg.flags.has(RST);
        for heard in self.heard[i].iter().filter(is_plain) {
            let stamps = heard.seg.options.timestamps;
            let echo = stamps.map(|(_, echo)| echo.0.wrapping_sub(made.clock));
            let is_right = match made.has_stamps {
                true => echo.is_some_and(|since| since <= said),
                false => echo.is_none(),
            };
            ensure(is_right, || format!("{leg:?} is echoed {stamps:?}"))?;
        }
        Ok(request)
    }

    /// The link of the primary fails; what the other server says next is the connection.
    pub fn fail_a(&mut self) -> Result<(), String> {
        self.input(Input::Signal(Link::Server(A), Signal::CarrierDown))
    }

    /// The first number that the client was shown.
    pub fn viss(&self) -> u32 {
        self.shown.first().map_or(0, |s| s.seg.seq)
    }

    /// Where a segment for the client stands in the response.
    pub fn offset(&self, shown: &Seen) -> u32 {
        shown.seg.seq.wrapping_sub(self.viss().wrapping_add(1))
    }
}

fn begin_to_connect(is_v6: bool) -> Result<TcpStream, String> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let family = if is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let own = socket(family, SockType::Stream, flags, None).map_err(|e| e.to_string())?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&own);
    let begun = match is_v6 {
        true => connect(fd, &SockaddrIn6::from(std::net::SocketAddrV6::new(SERVICE.1, 80, 0, 0))),
        false => connect(fd, &SockaddrIn::from(std::net::SocketAddrV4::new(SERVICE.0, 80))),
    };
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(own)),
        Err(error) => Err(error.to_string()),
    }
}
