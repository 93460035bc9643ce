//! An engine with two servers that say the same and clients that listen, fed frame by frame from
//! memory: what the benches of the engine measure. Frames are made here, so that a bench can make
//! them before it looks at the clock. Nothing here measures, and nothing is on any network.

use std::net::{IpAddr, Ipv4Addr};

use crate::engine::{
    Engine, EngineConfig, Input, Instant, LegId, Link, LinkCaps, Output, Rules, Signal,
};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L2, L3, Mac, TcpFlags, TcpOptions, Tsval, Vlans};
use bytes::Bytes;

const CLIENT_ISS: u32 = 1;
const ISS: [u32; 2] = [1_000_000, 2_000_000];
const ACK: TcpFlags = TcpFlags::ACK;
/// The service's host number, and its port.
const SERVICE: (u8, u16) = (10, 80);

/// The engine and those around it.
#[derive(Debug)]
pub struct Pair {
    /// What is measured.
    pub engine: Engine,
    now: Instant,
    /// What a frame in takes, in nanoseconds of its own time.
    pub step_ns: u64,
    /// The client's host number and port.
    pub client: (u8, u16),
    /// Frames to anybody so far.
    pub frames_out: u64,
    /// Bytes of bodies to clients so far.
    pub bytes_out: u64,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Both servers are known, no connection is open.
    pub fn new() -> Self {
        let config = EngineConfig {
            addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10))],
            rules: Rules::headers([]),
            ..EngineConfig::default()
        };
        let now = Instant::from_millis(1);
        let engine = Engine::new(config, 1, now);
        let (step_ns, client) = (1000, (1, 40_000));
        let mut pair = Self { engine, now, step_ns, client, frames_out: 0, bytes_out: 0 };
        for leg in LegId::ALL {
            pair.signal(leg, Signal::CarrierUp(LinkCaps::default()));
            // Something in the service's name makes the server known.
            let frame = pair.server_says(leg, ACK, (0, 0), Bytes::new());
            pair.put(Link::Server(leg), frame);
        }
        pair
    }

    /// With one paired connection.
    pub fn opened() -> Self {
        let mut pair = Self::new();
        pair.open();
        assert_eq!(pair.engine.status().flows[1], 1, "one paired flow");
        pair
    }

    /// Opens the client's connection.
    pub fn open(&mut self) {
        self.put(Link::Client, self.client_says(TcpFlags::SYN, (0, 0), Bytes::new()));
        for leg in LegId::ALL {
            let frame = self.server_says(leg, TcpFlags::SYN.with(ACK), (0, 1), Bytes::new());
            self.put(Link::Server(leg), frame);
        }
        self.put(Link::Client, self.client_says(ACK, (1, 1), Bytes::new()));
    }

    /// A frame comes in; whatever follows from it goes out.
    pub fn put(&mut self, link: Link, frame: Frame) {
        self.put_and_see(link, frame, |_, _| {});
    }

    /// The same; `see` is shown what goes out.
    pub fn put_and_see(&mut self, link: Link, frame: Frame, mut see: impl FnMut(Link, &Frame)) {
        self.now = Instant::from_nanos(self.now.nanos() + self.step_ns);
        self.engine.handle(self.now, Input::Frame(link, frame));
        self.drain(&mut see);
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle(self.now, Input::Timeout);
            self.drain(&mut see);
        }
    }

    /// Something happens to a server.
    pub fn signal(&mut self, leg: LegId, signal: Signal) {
        self.engine.handle(self.now, Input::Signal(Link::Server(leg), signal));
        self.drain(&mut |_, _| {});
    }

    fn drain(&mut self, see: &mut impl FnMut(Link, &Frame)) {
        while let Some(output) = self.engine.poll_output() {
            if let Output::Transmit(link, frame) = output {
                self.frames_out += 1;
                if link == Link::Client {
                    self.bytes_out += frame.body().len() as u64;
                }
                see(link, &frame);
            }
        }
    }

    /// What the client says at (its number, the service's), both counted from their SYNs.
    pub fn client_says(&self, flags: TcpFlags, (seq, ack): (u32, u32), data: Bytes) -> Frame {
        let numbers = (CLIENT_ISS.wrapping_add(seq), ISS[0].wrapping_add(ack));
        frame(self.client, SERVICE, numbers, flags, data)
    }

    /// What a server says at (its number, the client's), both counted from their SYNs.
    pub fn server_says(
        &self,
        leg: LegId,
        flags: TcpFlags,
        (seq, ack): (u32, u32),
        data: Bytes,
    ) -> Frame {
        let numbers = (ISS[leg.index()].wrapping_add(seq), CLIENT_ISS.wrapping_add(ack));
        frame(SERVICE, self.client, numbers, flags, data)
    }
}

/// From one host and port to another, with the options of Linux: timestamps on every segment.
fn frame(
    from: (u8, u16),
    to: (u8, u16),
    (seq, ack): (u32, u32),
    flags: TcpFlags,
    data: Bytes,
) -> Frame {
    let mac = |n| Mac([2, 0, 0, 0, 0, n]);
    let ip = |n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n));
    let l2 = L2 { dst: mac(to.0), src: mac(from.0), vlans: Vlans::default() };
    let l3 = L3 {
        src: ip(from.0),
        dst: ip(to.0),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    let echo = if flags.has(ACK) { Tsval(1) } else { Tsval(0) };
    let mut options = TcpOptions { timestamps: Some((Tsval(1), echo)), ..TcpOptions::default() };
    if flags.has(TcpFlags::SYN) {
        options.mss = Some(1460);
        options.window_scale = Some(10);
        options.sack_permitted = true;
    }
    let (src_port, dst_port) = (from.1, to.1);
    let fields =
        TcpFields { src_port, dst_port, seq, ack, flags, window: 60_000, urgent: 0, options };
    build::tcp(&l2, &l3, &fields, data, 1448)
}
