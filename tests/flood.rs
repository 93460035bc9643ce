//! Many connections, and a flood of SYNs from everywhere beside them: what the engine needs of
//! memory has an end, and the connections go on.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use shadowvm::engine::{
    Duration, Engine, EngineConfig, Event, FlowState, Input, Instant, LegId, Link, LinkCaps,
    Output, Signal,
};
use shadowvm::wire::build::{self, TcpFields};
use shadowvm::wire::{L2, L3, Mac, TcpFlags, TcpOptions, Tsval, Vlans};

/// A figure about this process's memory, in KiB: VmRSS now, VmHWM the most so far.
fn memory(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().unwrap()
}

const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const CLIENT_ISS: u32 = 1000;
const ISS: [u32; 2] = [1_000_000, 2_000_000];
const SYN_ACK: TcpFlags = TcpFlags(0x12);
const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 4\r\n\r\npong";

/// A client and where it calls from.
type Client = (Ipv4Addr, u16);

struct World {
    engine: Engine,
    now: Instant,
    /// What everybody's SYN and SYN-ACK say.
    mss: u16,
    /// Bytes shown to clients.
    shown: usize,
    resets: usize,
}

impl World {
    fn new() -> Self {
        let config =
            EngineConfig { addresses: vec![IpAddr::V4(SERVICE)], ..EngineConfig::default() };
        let now = Instant::from_millis(1000);
        let engine = Engine::new(config, 1, now);
        let mut world = Self { engine, now, mss: 1460, shown: 0, resets: 0 };
        for leg in LegId::ALL {
            let up = Signal::CarrierUp(LinkCaps::default());
            world.input(Input::Signal(Link::Server(leg), up));
        }
        world
    }

    fn input(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(Link::Client, frame) => self.shown += frame.body().len(),
                Output::Event(Event::FlowReset { .. }) => self.resets += 1,
                _ => {}
            }
        }
    }

    /// Time passes, in which both servers answer the engine's questions.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
            for leg in LegId::ALL {
                let alive = (Ipv4Addr::new(192, 0, 2, 99), 9);
                self.say(Link::Server(leg), alive, TcpFlags::ACK, (1, 1), b"");
            }
        }
        self.now = end;
    }

    fn say(&mut self, link: Link, client: Client, flags: TcpFlags, at: (u32, u32), data: &[u8]) {
        let (to, from) = (Mac([2, 0, 0, 0, 0, 16]), Mac([2, 0, 0, 0, 0, 1]));
        let l2 = L2 { dst: to, src: from, vlans: Vlans::default() };
        let (src, dst) = (IpAddr::V4(client.0), IpAddr::V4(SERVICE));
        let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
        let is_client = link == Link::Client;
        let (l2, l3) = if is_client { (l2, l3) } else { (l2.reversed(), l3.reversed()) };
        let (src_port, dst_port) = if is_client { (client.1, 80) } else { (80, client.1) };
        let (seq, ack) = at;
        let timestamps = Some((Tsval(self.now.millis() as u32), Tsval(0)));
        let options = match flags.has(TcpFlags::SYN) {
            true => TcpOptions {
                mss: Some(self.mss),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps,
                ..TcpOptions::default()
            },
            false => TcpOptions { timestamps, ..TcpOptions::default() },
        };
        let window = 60_000;
        let fields = TcpFields { src_port, dst_port, seq, ack, flags, window, urgent: 0, options };
        let frame = build::tcp(&l2, &l3, &fields, Bytes::copy_from_slice(data), 65_000);
        self.input(Input::Frame(link, frame));
    }

    /// A SYN, answered by both servers.
    fn begin(&mut self, client: Client) {
        self.say(Link::Client, client, TcpFlags::SYN, (CLIENT_ISS, 0), b"");
        for leg in LegId::ALL {
            let at = (ISS[leg.index()], CLIENT_ISS + 1);
            self.say(Link::Server(leg), client, SYN_ACK, at, b"");
        }
    }

    /// A request and the answer of both, which the client acknowledges.
    fn exchange(&mut self, client: Client, round: u32) {
        let [asked, told] = [REQUEST, ANSWER].map(|said| round * said.len() as u32 + 1);
        let [all_asked, all_told] =
            [REQUEST, ANSWER].map(|said| (round + 1) * said.len() as u32 + 1);
        let at = (CLIENT_ISS + asked, ISS[0] + told);
        self.say(Link::Client, client, TcpFlags::ACK, at, REQUEST);
        for leg in LegId::ALL {
            let at = (ISS[leg.index()] + told, CLIENT_ISS + all_asked);
            self.say(Link::Server(leg), client, TcpFlags::ACK, at, ANSWER);
        }
        let at = (CLIENT_ISS + all_asked, ISS[0] + all_told);
        self.say(Link::Client, client, TcpFlags::ACK, at, b"");
    }
}

/// Any address, any port: no two alike for a long time.
fn stranger(n: u32) -> Client {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    (Ipv4Addr::from_bits(0x0b00_0000 | (mixed & 0x00ff_ffff)), (mixed >> 24) as u16 + 1024)
}

#[test]
fn what_a_flood_needs_of_memory_has_an_end_and_connections_go_on() {
    const CONNECTIONS: u16 = 10_000;
    const ROUNDS: u32 = 20;
    /// 40,000 a second.
    const EVERY: Duration = Duration::from_micros(25);
    const FLOOD: u32 = 250_000;
    let mut world = World::new();
    world.pass(Duration::from_millis(50));
    let empty = memory("VmRSS");
    let real = |n: u16| (Ipv4Addr::new(198, 51, 100, 7), 1024 + n);
    for n in 0..CONNECTIONS {
        world.begin(real(n));
        for round in 0..ROUNDS {
            world.exchange(real(n), round);
            world.pass(Duration::from_micros(25));
        }
    }
    let [_, paired, ..] = world.engine.status().flows;
    assert_eq!(paired, u32::from(CONNECTIONS));
    assert_eq!(world.engine.status().held_bytes, 0, "nothing is under way");
    let (at_rest, shown) = (memory("VmRSS"), world.shown);
    let each = ((at_rest - empty) << 10) / usize::from(CONNECTIONS);
    println!("{each} bytes an idle connection");
    assert!(each <= 2304, "{each} bytes an idle connection");

    // The worst: segments too small for a cookie.
    world.mss = 500;
    let (mut table, mut full, mut round) = (0, 0, ROUNDS);
    for n in 0..FLOOD {
        world.begin(stranger(n));
        world.pass(EVERY);
        if n == 100_000 {
            table = memory("VmHWM");
        }
        if n % 50_000 == 0 {
            for n in 0..CONNECTIONS {
                world.exchange(real(n), round);
            }
            round += 1;
        }
        if n == 100_000 {
            full = memory("VmHWM"); // and all connections awake
        }
    }
    let (status, most) = (world.engine.status(), memory("VmHWM"));
    println!(
        "{CONNECTIONS} connections {at_rest} KiB; with {} handshakes {full} KiB, most {most} KiB",
        status.half_open
    );
    assert_eq!(status.half_open, 65_536, "as many as may be");
    assert_eq!(world.resets, 0);
    let rounds = (round - ROUNDS) as usize;
    let answers = world.shown - shown;
    assert_eq!(
        answers,
        rounds * usize::from(CONNECTIONS) * ANSWER.len(),
        "every answer, nothing else"
    );
    let flows = world.engine.flows(usize::MAX);
    let ours = flows.iter().filter(|flow| flow.key.client.ip() == IpAddr::V4(real(0).0));
    assert_eq!(ours.clone().count(), usize::from(CONNECTIONS));
    assert!(ours.clone().all(|flow| flow.state == FlowState::Paired));
    // It fills its table once, and then needs no more than at that moment.
    assert!(most <= full + full / 20, "{most} KiB, {full} when the table had filled");
    let each = ((table - at_rest) << 10) / 65_536;
    println!("{each} bytes a handshake");
    assert!(each <= 3072, "{each} bytes a handshake");

    // When it is over, the handshakes are forgotten and what they needed is free again.
    world.pass(Duration::from_secs(80));
    assert_eq!(world.engine.status().half_open, 0);
    assert_eq!(world.engine.status().flows[FlowState::Paired as usize], u32::from(CONNECTIONS));

    // The usual: from a quarter of the table on a SYN leaves nothing behind.
    world.mss = 1460;
    let most = memory("VmHWM");
    for n in 0..FLOOD {
        world.begin(stranger(n));
        world.pass(EVERY);
    }
    assert_eq!(world.engine.status().half_open, 65_536 / 4);
    assert_eq!(world.resets, 0);
    // A fiftieth for what the allocator and the kernel count by the page.
    let again = memory("VmHWM");
    assert!(again <= most + most / 50, "{again} KiB, {most} before");
}
