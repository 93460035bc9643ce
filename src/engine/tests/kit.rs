//! A hand-made client and two hand-made servers around a real engine: every byte is the test's.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;

use crate::engine::{
    Command, Duration, Engine, EngineConfig, Event, Input, Instant, LegId, Link, LinkCaps, Output,
    Record, Rules, Signal, SyncRequest, SyncStep,
};
use crate::wire::build::{self, TcpFields};
use crate::wire::{
    Frame, L2, L3, Mac, Packet, SackBlocks, Segment, TcpFlags, TcpOptions, Tsval, Vlans, parse,
};

pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub(super) const CLIENT_ISS: u32 = 1000;
pub(super) const ISS: [u32; 2] = [5000, 90_000];
pub(super) const SYN: TcpFlags = TcpFlags::SYN;
pub(super) const ACK: TcpFlags = TcpFlags::ACK;
pub(super) const SYN_ACK: TcpFlags = TcpFlags(0x12);
pub(super) const FIN: TcpFlags = TcpFlags::FIN_ACK;
pub(super) const RST: TcpFlags = TcpFlags::RST;

/// What a segment says, short enough for a script.
#[derive(Clone, Debug, Default)]
pub(super) struct Say {
    pub flags: TcpFlags,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    /// The urgent pointer.
    pub urgent: u16,
    pub data: Vec<u8>,
    pub options: TcpOptions,
}

pub(super) fn say(flags: TcpFlags, seq: u32, ack: u32) -> Say {
    Say { flags, seq, ack, window: 60_000, ..Say::default() }
}

impl Say {
    pub(super) fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }
    pub(super) fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }
    pub(super) fn urgent(mut self, pointer: u16) -> Self {
        (self.flags, self.urgent) = (self.flags.with(TcpFlags::URG), pointer);
        self
    }
    pub(super) fn stamps(mut self, value: u32, echo: u32) -> Self {
        self.options.timestamps = Some((Tsval(value), Tsval(echo)));
        self
    }
    pub(super) fn sack(mut self, blocks: &[(u32, u32)]) -> Self {
        let mut sack = SackBlocks::default();
        for &(l, r) in blocks {
            sack.push(l, r);
        }
        self.options.sack = sack;
        self
    }
    pub(super) fn mss(mut self, mss: u16) -> Self {
        self.options.mss = Some(mss);
        self
    }
    pub(super) fn scale(mut self, shift: u8) -> Self {
        self.options.window_scale = Some(shift);
        self
    }
    pub(super) fn sack_ok(mut self) -> Self {
        self.options.sack_permitted = true;
        self
    }
}

/// A segment that the engine sent.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub link: Link,
    pub seg: Segment,
    pub data: Vec<u8>,
}

pub(super) struct Kit {
    pub engine: Engine,
    pub now: Instant,
    pub heard: Vec<Heard>,
    /// Frames other than TCP, probes of the engine aside.
    pub frames: Vec<(Link, Frame)>,
    pub events: Vec<Event>,
    pub syncs: Vec<SyncRequest>,
    pub records: Vec<Record>,
    /// It answers no probe.
    pub silent: Vec<LegId>,
}

pub(super) fn config() -> EngineConfig {
    EngineConfig {
        addresses: vec![IpAddr::V4(SERVICE)],
        ports: vec![80],
        rules: Rules::headers([]),
        ..EngineConfig::default()
    }
}

impl Kit {
    pub(super) fn new(config: EngineConfig) -> Self {
        let now = Instant::from_millis(1000);
        let mut kit = Self {
            engine: Engine::new(config, 7, now),
            now,
            heard: Vec::new(),
            frames: Vec::new(),
            events: Vec::new(),
            syncs: Vec::new(),
            records: Vec::new(),
            silent: Vec::new(),
        };
        for leg in LegId::ALL {
            kit.input(Input::Signal(Link::Server(leg), Signal::CarrierUp(LinkCaps::default())));
        }
        kit.wait_ms(15); // the first probes find both servers
        kit.forget();
        kit
    }

    /// A new process that was left `records`.
    pub(super) fn restored(config: EngineConfig, records: Vec<Record>) -> Self {
        let now = Instant::from_millis(5000);
        let mut kit = Self {
            engine: Engine::new(config, 8, now),
            now,
            heard: Vec::new(),
            frames: Vec::new(),
            events: Vec::new(),
            syncs: Vec::new(),
            records: Vec::new(),
            silent: Vec::new(),
        };
        kit.input(Input::Restore(records));
        for leg in LegId::ALL {
            kit.input(Input::Signal(Link::Server(leg), Signal::CarrierUp(LinkCaps::default())));
        }
        kit
    }

    pub(super) fn forget(&mut self) {
        self.heard.clear();
        self.frames.clear();
        self.events.clear();
    }

    pub(super) fn input(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => self.on_transmit(link, frame),
                Output::Event(event) => self.events.push(event),
                Output::Sync(request) => self.syncs.push(request),
                Output::Persist(record) => self.records.push(record),
                Output::CancelSync(_) | Output::Overwrite(_) | Output::Fence { .. } => {}
            }
        }
    }

    /// Servers answer probes at once unless they are silent; everything else is noted.
    fn on_transmit(&mut self, link: Link, frame: Frame) {
        let mut cut = Vec::new();
        crate::wire::segmentize::for_link(frame, true, false, &mut cut);
        for frame in cut {
            match parse::parse(&frame).expect("the engine sends packets") {
                Packet::Tcp(seg) => {
                    let data = frame.body()[..seg.payload_len].to_vec();
                    self.heard.push(Heard { link, seg, data });
                }
                Packet::Arp(arp) if arp.sender.is_unspecified() && link != Link::Client => {
                    let Link::Server(leg) = link else { continue };
                    if self.silent.contains(&leg) {
                        continue;
                    }
                    let l2 = L2 { dst: arp.l2.src, src: server_mac(), vlans: Vlans::default() };
                    let reply = build::arp_reply(&l2, SERVICE, Ipv4Addr::UNSPECIFIED);
                    self.engine.handle(self.now, Input::Frame(link, reply));
                }
                _ => self.frames.push((link, frame)),
            }
        }
    }

    /// Lets time pass in steps of a millisecond, as timers ask.
    pub(super) fn wait_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
        }
        self.now = end;
    }

    pub(super) fn frame(from_client: bool, say: &Say, client: Ipv4Addr, port: u16) -> Frame {
        Self::frame_at(from_client, say, client, port, 80)
    }

    /// The same with any port of the service.
    pub(super) fn frame_at(
        from_client: bool,
        say: &Say,
        client: Ipv4Addr,
        port: u16,
        service: u16,
    ) -> Frame {
        let ends = (IpAddr::V4(client), IpAddr::V4(SERVICE));
        Self::frame_between(ends, Vlans::default(), from_client, say, (port, service))
    }

    /// The same between any client and service.
    pub(super) fn frame_between(
        (client, service): (IpAddr, IpAddr),
        vlans: Vlans,
        from_client: bool,
        say: &Say,
        ports: (u16, u16),
    ) -> Frame {
        let l2 = L2 { dst: server_mac(), src: client_mac(), vlans };
        let l3 = L3 {
            src: client,
            dst: service,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            id: 0,
            flow_label: 0,
        };
        let (l2, l3, (src_port, dst_port)) = match from_client {
            true => (l2, l3, ports),
            false => (l2.reversed(), l3.reversed(), (ports.1, ports.0)),
        };
        let fields = TcpFields {
            src_port,
            dst_port,
            seq: say.seq,
            ack: say.ack,
            flags: say.flags,
            window: say.window,
            urgent: say.urgent,
            options: say.options,
        };
        build::tcp(&l2, &l3, &fields, Bytes::from(say.data.clone()), 65_000)
    }

    /// The client says something; returns what left meanwhile.
    pub(super) fn client(&mut self, say: Say) -> Vec<Heard> {
        self.say(Link::Client, say, 40_000)
    }

    /// A server says something.
    pub(super) fn leg(&mut self, leg: LegId, say: Say) -> Vec<Heard> {
        self.say(Link::Server(leg), say, 40_000)
    }

    pub(super) fn say(&mut self, link: Link, say: Say, port: u16) -> Vec<Heard> {
        self.say_of(link, say, CLIENT, port)
    }

    /// The same about the connection of any client.
    pub(super) fn say_of(
        &mut self,
        link: Link,
        say: Say,
        client: Ipv4Addr,
        port: u16,
    ) -> Vec<Heard> {
        let from = self.heard.len();
        let frame = Self::frame(link == Link::Client, &say, client, port);
        self.input(Input::Frame(link, frame));
        self.heard[from..].to_vec()
    }

    /// Something about the connection of `client` and its `port` to any port of the service.
    pub(super) fn say_at(
        &mut self,
        link: Link,
        say: Say,
        client: (Ipv4Addr, u16),
        service: u16,
    ) -> Vec<Heard> {
        let from = self.heard.len();
        let frame = Self::frame_at(link == Link::Client, &say, client.0, client.1, service);
        self.input(Input::Frame(link, frame));
        self.heard[from..].to_vec()
    }

    pub(super) fn command(&mut self, command: Command) {
        self.input(Input::Command(1, command));
    }

    /// The sync that was asked for last is at `step`.
    pub(super) fn step(&mut self, step: SyncStep) {
        let id = self.syncs.last().expect("a sync was asked for").id;
        self.input(Input::SyncStep(id, step));
    }

    /// The sync that was asked for last succeeds.
    pub(super) fn mend(&mut self) {
        let id = self.syncs.last().expect("a sync was asked for").id;
        self.input(Input::SyncStep(id, SyncStep::TargetReady));
    }

    /// What went out on one link since the last [`Self::forget`], probes aside.
    pub(super) fn on(&self, link: Link) -> Vec<Heard> {
        let is_flow = |h: &&Heard| {
            let port = if link == Link::Client { h.seg.dst_port } else { h.seg.src_port };
            h.link == link && port < 61_000
        };
        self.heard.iter().filter(is_flow).cloned().collect()
    }

    /// A connection with data of `A` and `B` at offset 1, established on both legs.
    pub(super) fn establish(&mut self) {
        self.establish_with(|s| s, |s| s);
    }

    pub(super) fn establish_with(
        &mut self,
        client: impl Fn(Say) -> Say,
        server: impl Fn(Say) -> Say,
    ) {
        self.client(client(say(SYN, CLIENT_ISS, 0).mss(1460)));
        for leg in LegId::ALL {
            let syn_ack = say(SYN_ACK, ISS[leg.index()], CLIENT_ISS + 1).mss(1460);
            self.leg(leg, server(syn_ack));
        }
        let shown = self.on(Link::Client);
        assert_eq!(shown.len(), 1, "one SYN-ACK: {shown:?}");
        assert_eq!(shown[0].seg.flags, SYN_ACK);
        assert_eq!((shown[0].seg.seq, shown[0].seg.ack), (ISS[0], CLIENT_ISS + 1));
        let mut third = say(ACK, CLIENT_ISS + 1, ISS[0] + 1);
        if let Some((value, _)) = shown[0].seg.options.timestamps {
            third = third.stamps(11, value.0);
        }
        self.client(third);
        self.forget();
    }
}

pub(super) fn client_mac() -> Mac {
    Mac([2, 0, 0, 0, 0, 1])
}

pub(super) fn server_mac() -> Mac {
    Mac([2, 0, 0, 0, 0, 16])
}
