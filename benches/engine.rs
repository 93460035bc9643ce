//! What the engine costs by itself: nanoseconds a segment, on one core, without any system call.
//!
//! Run: `cargo bench`. Each line is the median of 15 runs, with the fastest and the slowest.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant as Clock;

use bytes::Bytes;
use shadowvm::engine::{
    Engine, EngineConfig, Input, Instant, LegId, Link, LinkCaps, Output, Rules, Signal,
};
use shadowvm::wire::build::{self, TcpFields};
use shadowvm::wire::{Frame, L2, L3, Mac, TcpFlags, TcpOptions, Vlans};

const RUNS: usize = 15;
const CLIENT_ISS: u32 = 1;
const ISS: [u32; 2] = [1_000_000, 2_000_000];

fn main() {
    // `cargo test --benches` passes --test: one short run shows that it works.
    let is_test = std::env::args().any(|a| a == "--test");
    let (runs, segments) = if is_test { (1, 100) } else { (RUNS, 20_000) };
    report("download, 1,448-byte segments", runs, || download(segments, 1448));
    report("download, 64 KiB super-frames", runs, || download(segments / 10, 62_264));
    report("upload, 1,448-byte segments", runs, || upload(segments));
    report("requests after a rest", runs, || after_rests(if is_test { 2 } else { 4 }));
}

fn report(name: &str, runs: usize, mut run: impl FnMut() -> (u128, u64)) {
    let mut per: Vec<f64> = (0..runs)
        .map(|_| {
            let (ns, frames) = run();
            ns as f64 / frames as f64
        })
        .collect();
    per.sort_by(f64::total_cmp);
    let (median, low, high) = (per[runs / 2], per[0], per[runs - 1]);
    println!("{name:<32} {median:8.0} ns a frame in ({low:.0} to {high:.0})");
}

struct Pair {
    engine: Engine,
    now: Instant,
    /// What a frame in takes.
    step_ns: u64,
    /// The client's.
    port: u16,
    frames_in: u64,
    bytes_out: u64,
}

impl Pair {
    fn new() -> Self {
        let config = EngineConfig {
            addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10))],
            rules: Rules::headers([]),
            ..EngineConfig::default()
        };
        let now = Instant::from_millis(1);
        let engine = Engine::new(config, 1, now);
        let mut pair =
            Self { engine, now, step_ns: 1000, port: 40_000, frames_in: 0, bytes_out: 0 };
        for leg in LegId::ALL {
            let up = Signal::CarrierUp(LinkCaps::default());
            pair.engine.handle(now, Input::Signal(Link::Server(leg), up));
            // Something in the service's name makes the server known.
            pair.server(leg, TcpFlags::ACK, 0, 0, Bytes::new());
        }
        pair.open();
        assert_eq!(pair.engine.status().flows[1], 1, "one paired flow");
        pair
    }

    fn open(&mut self) {
        self.client(TcpFlags::SYN, 0, 0, Bytes::new());
        for leg in LegId::ALL {
            self.server(leg, TcpFlags::SYN.with(TcpFlags::ACK), 0, 1, Bytes::new());
        }
        self.client(TcpFlags::ACK, 1, 1, Bytes::new());
    }

    fn put(&mut self, link: Link, frame: Frame) {
        self.now = Instant::from_nanos(self.now.nanos() + self.step_ns);
        self.frames_in += 1;
        self.engine.handle(self.now, Input::Frame(link, frame));
        while let Some(output) = self.engine.poll_output() {
            if let Output::Transmit(Link::Client, frame) = output {
                self.bytes_out += frame.body().len() as u64;
            }
        }
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle(self.now, Input::Timeout);
            while self.engine.poll_output().is_some() {}
        }
    }

    fn client(&mut self, flags: TcpFlags, seq: u32, ack: u32, data: Bytes) {
        let fields = fields(self.port, 80, CLIENT_ISS + seq, ISS[0] + ack, flags);
        self.put(Link::Client, frame(1, 10, &fields, data));
    }

    fn server(&mut self, leg: LegId, flags: TcpFlags, seq: u32, ack: u32, data: Bytes) {
        let iss = ISS[leg.index()];
        let fields = fields(80, self.port, iss.wrapping_add(seq), CLIENT_ISS + ack, flags);
        self.put(Link::Server(leg), frame(10, 1, &fields, data));
    }
}

fn fields(src_port: u16, dst_port: u16, seq: u32, ack: u32, flags: TcpFlags) -> TcpFields {
    let mut options = TcpOptions::default();
    if flags.has(TcpFlags::SYN) {
        options.mss = Some(1460);
        options.window_scale = Some(10);
    }
    TcpFields { src_port, dst_port, seq, ack, flags, window: 60_000, urgent: 0, options }
}

fn frame(src: u8, dst: u8, fields: &TcpFields, data: Bytes) -> Frame {
    let mac = |n| Mac([2, 0, 0, 0, 0, n]);
    let ip = |n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n));
    let l2 = L2 { dst: mac(dst), src: mac(src), vlans: Vlans::default() };
    let l3 = L3 {
        src: ip(src),
        dst: ip(dst),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    build::tcp(&l2, &l3, fields, data, 1460)
}

/// Both servers say `count` segments of `size`, the client acknowledges each.
fn download(count: usize, size: usize) -> (u128, u64) {
    let mut pair = Pair::new();
    let (a, b) = (Bytes::from(vec![7; size]), Bytes::from(vec![7; size]));
    let begin = (Clock::now(), pair.frames_in);
    let mut at = 1u32;
    for _ in 0..count {
        pair.server(LegId::A, TcpFlags::ACK, at, 1, a.clone());
        pair.server(LegId::B, TcpFlags::ACK, at, 1, b.clone());
        at = at.wrapping_add(size as u32);
        pair.client(TcpFlags::ACK, 1, at, Bytes::new());
    }
    assert_eq!(pair.bytes_out, (count * size) as u64, "everything was released");
    (begin.0.elapsed().as_nanos(), pair.frames_in - begin.1)
}

/// The client says `count` segments, both servers acknowledge each.
fn upload(count: usize) -> (u128, u64) {
    let mut pair = Pair::new();
    let data = Bytes::from(vec![7; 1448]);
    let begin = (Clock::now(), pair.frames_in);
    let mut at = 1u32;
    for _ in 0..count {
        pair.client(TcpFlags::ACK, at, 1, data.clone());
        at = at.wrapping_add(1448);
        for leg in LegId::ALL {
            pair.server(leg, TcpFlags::ACK, 1, at, Bytes::new());
        }
    }
    (begin.0.elapsed().as_nanos(), pair.frames_in - begin.1)
}

/// Connections ask in turn, so that each is at rest when its turn comes again.
fn after_rests(rounds: u32) -> (u128, u64) {
    const CONNECTIONS: u16 = 4000;
    let mut pair = Pair::new();
    pair.step_ns = 20_000;
    for port in 0..CONNECTIONS {
        pair.port = 1024 + port;
        pair.open();
    }
    let (request, response) = (Bytes::from(vec![1; 100]), Bytes::from(vec![7; 1000]));
    let begin = (Clock::now(), pair.frames_in);
    for round in 0..rounds {
        let (asked, said) = (1 + round * 100, 1 + round * 1000);
        for port in 0..CONNECTIONS {
            pair.port = 1024 + port;
            pair.client(TcpFlags::ACK, asked, said, request.clone());
            for leg in LegId::ALL {
                pair.server(leg, TcpFlags::ACK, said, asked + 100, response.clone());
            }
            pair.client(TcpFlags::ACK, asked + 100, said + 1000, Bytes::new());
        }
    }
    let released = u64::from(CONNECTIONS) * u64::from(rounds) * 1000;
    assert_eq!(pair.bytes_out, released, "everything was released");
    (begin.0.elapsed().as_nanos(), pair.frames_in - begin.1)
}
