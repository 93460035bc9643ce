//! A client and two servers, made by hand, around a real engine; and what is demanded of every
//! frame that it sends, whatever it was sent.
//!
//! The client's bytes are a function of their number, a server's of their place behind its SYN:
//! so every byte that comes out shows where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use shadowvm::engine::{
    Command, Duration, Engine, EngineConfig, Event, FlowState, Input, Instant, LegId, Link,
    LinkCaps, Output, Record, Rules, Signal, SyncId, SyncScope, SyncStep,
};
use shadowvm::wire::build::{self, TcpFields};
use shadowvm::wire::{
    Frame, L2, L3, Mac, Offload, Packet, Segment, TcpFlags, TcpOptions, Tsval, Vlans, checksum,
    parse, segmentize,
};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The first port of the clients.
pub const PORT: u16 = 40_000;
/// Connections that the engine tracks at once: fewer than there are clients.
const FLOWS_MAX: usize = 3;
/// Clients.
pub const PORTS: u16 = 4;
/// Virtual time of one input; none is worth more.
const TIME_MAX: Duration = Duration::from_secs(8);

/// What a segment says.
#[derive(Clone, Debug, Default)]
pub struct Say {
    pub flags: TcpFlags,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub urgent: u16,
    pub len: usize,
    pub options: TcpOptions,
}

/// One connection from outside.
#[derive(Debug, Default)]
pub struct Flow {
    /// The client's initial number.
    pub client: u32,
    /// The number behind the client's last byte.
    pub client_nxt: u32,
    /// Each server's number behind its last byte.
    pub nxt: [u32; 2],
    /// The client's number that each server has heard up to.
    pub heard: [u32; 2],
    /// The number that the client has heard up to.
    pub taken: u32,
    /// The number of the SYN-ACK shown.
    pub visible: Option<u32>,
    /// Bytes that each server said, by their distance from its usual initial number.
    said: [BTreeSet<(u32, u8)>; 2],
    /// How far from there each server's SYNs were.
    syns: [BTreeSet<u32>; 2],
    /// Acks that a server said, and those of each SYN.
    acks: BTreeSet<u32>,
    /// The highest number behind a byte of each server.
    most: [u32; 2],
    /// Somebody spoke far beside the numbers: their order means nothing any more.
    is_wild: bool,
    /// The engine has begun it anew.
    is_new: bool,
    /// Bytes that the client was shown, by place.
    shown: BTreeMap<u32, u8>,
    told_ack: Option<u32>,
    told_stamp: Option<Tsval>,
    /// The latest timestamp that came to each link.
    stamps: [u32; 3],
}

/// The world around the engine.
#[derive(Debug)]
pub struct World {
    pub engine: Engine,
    config: EngineConfig,
    pub now: Instant,
    flows: [Flow; PORTS as usize],
    /// Servers that answer no probe.
    pub is_dead: [bool; 2],
    /// What server B's bytes differ by.
    pub variant: u8,
    roles: Option<Record>,
    records: BTreeMap<u32, Record>,
    syncs: Vec<SyncId>,
    /// A new process knows less than we do.
    is_restored: bool,
    /// Frames in, timeouts, frames out.
    counts: [usize; 3],
    /// Clients whose flow is Paired by the engine's events, in their order among the frames.
    paired: BTreeSet<u16>,
    /// Bytes shown to clients.
    pub shown_bytes: usize,
}

/// The byte of a client at this number.
pub fn client_byte(number: u32) -> u8 {
    (number.wrapping_mul(31) ^ (number >> 8)) as u8
}

/// The byte of a server at this place behind its SYN.
pub fn server_byte(place: u32) -> u8 {
    (place.wrapping_mul(7) ^ (place >> 8)) as u8
}

/// A server's initial number towards a client; it stays for ever.
pub fn server_iss(leg: LegId, client: u16) -> u32 {
    let own = [0xffff_fe00u32, 0x7fff_ff80][leg.index()];
    own.wrapping_add(u32::from(client) << 20)
}

impl World {
    /// Everybody is there; nobody has spoken.
    pub fn new(has_masks: bool) -> Self {
        let rules = Rules::headers(has_masks.then_some("date"));
        let config = EngineConfig {
            addresses: vec![IpAddr::V4(SERVICE)],
            ports: vec![80],
            rules,
            flows_max: FLOWS_MAX,
            hold_bytes_max: 1 << 20,
            sync_scope: Some(SyncScope::Content),
            ..EngineConfig::default()
        };
        let now = Instant::from_millis(1000);
        let flows = std::array::from_fn(|client| Flow::new(client as u16));
        let mut world = Self {
            engine: Engine::new(config.clone(), 7, now),
            config,
            now,
            flows,
            is_dead: [false; 2],
            variant: 0,
            roles: None,
            records: BTreeMap::new(),
            syncs: Vec::new(),
            is_restored: false,
            counts: [0; 3],
            paired: BTreeSet::new(),
            shown_bytes: 0,
        };
        world.attach();
        world.end_sync(true); // the first one, which makes the backup equal
        world
    }

    fn attach(&mut self) {
        for leg in LegId::ALL {
            let signal = Signal::CarrierUp(LinkCaps::default());
            self.input(Input::Signal(Link::Server(leg), signal));
        }
        self.pass(15); // the first probes find both servers
    }

    /// One connection.
    pub fn flow(&self, client: u16) -> &Flow {
        &self.flows[usize::from(client)]
    }

    /// Gives the engine one input and looks at what comes out.
    pub fn input(&mut self, input: Input) {
        self.counts[0] += usize::from(matches!(input, Input::Frame(..)));
        self.engine.handle(self.now, input);
        self.drain();
        let flows = self.engine.flows(usize::MAX);
        assert!(flows.len() <= FLOWS_MAX, "{} flows", flows.len());
        assert!(self.engine.poll_timeout().is_some(), "there is always a next time");
        let held = self.engine.status().held_bytes;
        // Each flow: what was promised to two servers, and the client's bytes for a late one.
        assert!(held <= (FLOWS_MAX as u64) * (24 << 20), "{held} bytes held");
        let [frames, timeouts, sent] = self.counts;
        assert!(sent <= 64 + 3 * frames + timeouts, "{sent} frames from {frames}");
    }

    /// Lets time pass as timers ask. A timer never asks again for the time that is.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        if end > Instant::from_millis(1000) + TIME_MAX {
            return;
        }
        let mut at_once = 0;
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= end) {
            at_once = if at > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 64, "timers ask without end at {:?}", self.now);
            self.now = self.now.max(at);
            self.counts[1] += 1;
            self.input(Input::Timeout);
        }
        self.now = end;
    }

    /// Time passes and nobody wakes the engine.
    pub fn stall(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
    }

    /// The process ends and a new one begins with what it wrote.
    pub fn restart(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        self.engine = Engine::new(self.config.clone(), 8, self.now);
        self.is_restored = true;
        // It asks both servers about each connection, and once more.
        self.counts[1] += 4 * FLOWS_MAX;
        let records = self.records();
        self.input(Input::Restore(records));
        self.attach();
    }

    /// The last sync that was asked for ends.
    pub fn end_sync(&mut self, ok: bool) {
        let Some(id) = self.syncs.pop() else { return };
        let failed = SyncStep::Failed { message: "by the fuzzer".into() };
        let step = if ok { SyncStep::TargetReady } else { failed };
        self.input(Input::SyncStep(id, step));
    }

    /// An operator's command.
    pub fn command(&mut self, command: Command) {
        self.input(Input::Command(1, command));
    }

    /// A segment on a link; the bytes are those that stand at its number.
    pub fn say(&mut self, link: Link, client: u16, say: &Say) {
        let frame = self.frame(link, client, say);
        self.note(link, client, say);
        self.input(Input::Frame(link, frame));
    }

    /// A segment of which one bit is wrong on the way, and its checksum as it was: it may do
    /// nothing at all.
    pub fn damaged(&mut self, link: Link, client: u16, say: &Say, bit: u16) {
        let mut frame = self.frame(link, client, say);
        checksum::complete(&mut frame);
        frame.set_offload(Offload::default());
        let mut bytes = frame.to_vec();
        let at = 14 + usize::from(bit / 8) % (bytes.len() - 14);
        bytes[at] ^= 1 << (bit % 8);
        let before = self.counts[2];
        self.input(Input::Frame(link, Frame::from_wire(bytes.into(), Offload::default())));
        assert_eq!(self.counts[2], before, "I13: a damaged segment had an effect");
    }

    /// Numbers of this flow lose their order.
    pub fn set_wild(&mut self, client: u16) {
        self.flows[usize::from(client)].is_wild = true;
    }

    /// What the client was sent by this segment.
    pub fn shown_frame(&self, client: u16, say: &Say) -> Frame {
        let (l2, l3) = headers(Link::Server(LegId::A));
        let fields = TcpFields {
            src_port: 80,
            dst_port: PORT + client,
            seq: say.seq,
            ack: say.ack,
            flags: say.flags,
            window: say.window,
            urgent: say.urgent,
            options: say.options,
        };
        build::tcp(&l2, &l3, &fields, vec![0; say.len].into(), 1448)
    }

    /// What the engine wrote for the process after it.
    pub fn records(&self) -> Vec<Record> {
        self.roles.iter().chain(self.records.values()).cloned().collect()
    }

    /// The frame of a segment, whole.
    fn frame(&self, link: Link, client: u16, say: &Say) -> Frame {
        let data: Vec<u8> = match link {
            Link::Client => {
                (0..say.len as u32).map(|x| client_byte(say.seq.wrapping_add(x))).collect()
            }
            Link::Server(leg) => {
                self.server_bytes(leg, client, say).map(|(_, byte)| byte).collect()
            }
        };
        let port = PORT + client;
        let (l2, l3) = headers(link);
        let (src_port, dst_port) = if link == Link::Client { (port, 80) } else { (80, port) };
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
        build::tcp(&l2, &l3, &fields, data.into(), 1448)
    }

    /// The places and bytes of a server's segment.
    fn server_bytes(
        &self,
        leg: LegId,
        client: u16,
        say: &Say,
    ) -> impl Iterator<Item = (u32, u8)> + use<> {
        let place = say.seq.wrapping_sub(server_iss(leg, client));
        let differs = if leg == LegId::B { self.variant } else { 0 };
        let places = (0..say.len as u32).map(move |x| place.wrapping_add(x));
        places.map(move |place| (place, server_byte(place) ^ differs))
    }

    fn note(&mut self, link: Link, client: u16, say: &Say) {
        let syn = u32::from(say.flags.has(TcpFlags::SYN));
        let fin = u32::from(say.flags.has(TcpFlags::FIN));
        let end = say.seq.wrapping_add(say.len as u32 + syn + fin);
        let said: Vec<(u32, u8)> = match link {
            Link::Client => Vec::new(),
            Link::Server(leg) => self.server_bytes(leg, client, say).collect(),
        };
        let flow = &mut self.flows[usize::from(client)];
        match link {
            Link::Client => {
                if syn == 1 && !say.flags.has(TcpFlags::ACK) {
                    flow.client = say.seq;
                    flow.acks.insert(end);
                    flow.heard = [say.seq.wrapping_add(1); 2];
                    flow.client_nxt = end;
                } else if is_behind(flow.client_nxt, end) {
                    flow.client_nxt = end;
                }
            }
            Link::Server(leg) => {
                let i = leg.index();
                flow.said[i].extend(said);
                if syn == 1 {
                    flow.syns[i].insert(say.seq.wrapping_sub(server_iss(leg, client)));
                }
                flow.acks.insert(say.ack);
                if syn == 1 || is_behind(flow.nxt[i], end) {
                    flow.nxt[i] = end;
                }
                if is_behind(flow.most[i], end) {
                    flow.most[i] = end;
                }
            }
        }
        if let Some((value, _)) = say.options.timestamps {
            flow.stamps[link.index()] = value.0;
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => self.on_frame(link, frame),
                Output::Event(event) => self.on_event(&event),
                Output::Fence { .. } => {}
                Output::Sync(request) => self.syncs.push(request.id),
                Output::Overwrite(_) => {}
                Output::CancelSync(id) => self.syncs.retain(|&other| other != id),
                Output::Persist(record) => match record {
                    Record::Roles(_) => self.roles = Some(record),
                    Record::Flow { slot, .. } => {
                        assert!((slot as usize) < FLOWS_MAX);
                        self.records.insert(slot, record);
                    }
                    Record::Free { slot } => drop(self.records.remove(&slot)),
                },
            }
        }
    }

    fn on_event(&mut self, event: &Event) {
        match event {
            Event::FlowOpened { flow } => {
                let client = flow.client.port().wrapping_sub(PORT);
                self.paired.remove(&client);
                if let Some(flow) = self.flows.get_mut(usize::from(client)) {
                    flow.is_new = true;
                }
            }
            Event::FlowChanged { flow, to, .. } => {
                let client = flow.client.port().wrapping_sub(PORT);
                match to {
                    FlowState::Paired => drop(self.paired.insert(client)),
                    _ => drop(self.paired.remove(&client)),
                }
            }
            _ => {}
        }
    }

    /// Whatever leaves is a packet on any wire: cut, finished, and read anew.
    fn on_frame(&mut self, link: Link, frame: Frame) {
        let mut pieces = Vec::new();
        assert!(segmentize::for_link(frame, false, false, &mut pieces), "a frame that can be cut");
        for piece in pieces {
            let bytes = piece.to_vec();
            let piece = Frame::from_wire(bytes.into(), Offload::default());
            let packet = parse::parse(&piece).expect("what leaves can be read");
            self.on_packet(link, &packet, &piece);
        }
    }

    fn on_packet(&mut self, link: Link, packet: &Packet, piece: &Frame) {
        match packet {
            Packet::Arp(arp) if arp.sender.is_unspecified() => {
                let Link::Server(leg) = link else { return };
                if !self.is_dead[leg.index()] {
                    let l2 = L2 { dst: arp.l2.src, src: server_mac(), vlans: Vlans::default() };
                    let reply = build::arp_reply(&l2, SERVICE, Ipv4Addr::UNSPECIFIED);
                    self.engine.handle(self.now, Input::Frame(link, reply));
                }
            }
            Packet::Tcp(seg) => {
                let port = if link == Link::Client { seg.dst_port } else { seg.src_port };
                let client = port.wrapping_sub(PORT);
                if client < PORTS {
                    self.counts[2] += 1;
                    let bytes = &piece.body()[..seg.payload_len];
                    match link {
                        Link::Client => self.on_shown(client, seg, bytes),
                        Link::Server(leg) => self.on_mirrored(leg, client, seg, bytes),
                    }
                }
            }
            _ => self.counts[2] += 1,
        }
    }

    /// What a server hears: the client's bytes at their own numbers.
    fn on_mirrored(&mut self, leg: LegId, client: u16, seg: &Segment, bytes: &[u8]) {
        for (number, byte) in bytes.iter().enumerate() {
            let number = seg.seq.wrapping_add(number as u32);
            assert_eq!(*byte, client_byte(number), "{leg:?} hears another byte at {number}");
        }
        let port = PORT + client;
        let tracked = self.engine.flows(usize::MAX);
        let is_tracked = tracked.iter().any(|flow| flow.key.client.port() == port);
        let flow = &mut self.flows[usize::from(client)];
        let is_plain = seg.flags.has(TcpFlags::ACK) && !seg.flags.has(TcpFlags::RST);
        if is_plain && is_tracked && !flow.is_wild && !self.is_restored {
            let most = flow.most[leg.index()];
            assert!(!is_behind(most, seg.ack), "I6: ack {} to {leg:?}, which sent {most}", seg.ack);
        }
        let heard = &mut flow.heard[leg.index()];
        let fin = u32::from(seg.flags.has(TcpFlags::FIN));
        let end = seg.seq.wrapping_add(bytes.len() as u32 + fin);
        if !is_behind(*heard, seg.seq) && is_behind(*heard, end) {
            *heard = end;
        }
        if let Some((value, _)) = seg.options.timestamps {
            flow.stamps[1 + leg.index()] = value.0;
        }
    }

    /// What a client is shown.
    fn on_shown(&mut self, client: u16, seg: &Segment, bytes: &[u8]) {
        let port = PORT + client;
        let tracked = self.engine.flows(usize::MAX);
        if !tracked.iter().any(|flow| flow.key.client.port() == port) {
            return; // passed untouched, or over
        }
        let is_paired = self.paired.contains(&client);
        let flow = &mut self.flows[usize::from(client)];
        if seg.flags.has(TcpFlags::SYN) {
            if std::mem::take(&mut flow.is_new) {
                flow.restart(seg);
            }
            return;
        }
        let Some(visible) = flow.visible.filter(|_| !seg.flags.has(TcpFlags::RST)) else { return };
        if flow.is_new && !self.is_restored {
            // A server that has an older connection says so to whoever begins a new one.
            assert!(bytes.is_empty(), "bytes before the handshake");
            assert!(flow.acks.contains(&seg.ack), "I2: nobody said ack {}", seg.ack);
            return;
        }
        let place = seg.seq.wrapping_sub(visible);
        for (place, &byte) in (place..).zip(bytes) {
            let has_said = |leg: &LegId| {
                let (said, syns) = (&flow.said[leg.index()], &flow.syns[leg.index()]);
                syns.iter().any(|syn| said.contains(&(syn.wrapping_add(place), byte)))
            };
            match flow.shown.insert(place, byte) {
                Some(before) => assert!(
                    before == byte || self.is_restored,
                    "1.1: two versions of the byte at {place} were shown"
                ),
                None => {
                    self.shown_bytes += 1;
                    let by = LegId::ALL.iter().filter(|leg| has_said(leg)).count();
                    assert!(by > 0, "nobody said what is shown at {place}");
                    assert!(by == 2 || !is_paired || self.is_restored, "I1: only one said {place}");
                }
            }
        }
        let end = seg.seq.wrapping_add(bytes.len() as u32);
        let end = end.wrapping_add(u32::from(seg.flags.has(TcpFlags::FIN)));
        if !is_behind(flow.taken, seg.seq) && is_behind(flow.taken, end) {
            flow.taken = end;
        }
        if self.is_restored {
            return; // its first questions are no statements
        }
        assert!(flow.acks.contains(&seg.ack), "I2: nobody said ack {}", seg.ack);
        let is_back = flow.told_ack.is_some_and(|told| is_behind(seg.ack, told));
        assert!(!is_back, "I2: ack {} after {:?}", seg.ack, flow.told_ack);
        flow.told_ack = Some(seg.ack);
        if let Some((value, _)) = seg.options.timestamps {
            let is_back = flow.told_stamp.is_some_and(|told| told.is_after(value));
            assert!(!is_back, "I8: {value:?} after {:?}", flow.told_stamp);
            flow.told_stamp = Some(value);
            flow.stamps[0] = value.0;
        }
    }
}

impl Flow {
    fn new(client: u16) -> Self {
        let iss = 1000 + u32::from(client);
        let nxt = LegId::ALL.map(|leg| server_iss(leg, client));
        let syns = LegId::ALL.map(|_| BTreeSet::from([0]));
        Self {
            client: iss,
            client_nxt: iss,
            heard: [iss; 2],
            nxt,
            most: nxt,
            syns,
            ..Self::default()
        }
    }

    /// A SYN-ACK begins what the client is shown anew.
    fn restart(&mut self, seg: &Segment) {
        self.visible = Some(seg.seq);
        self.taken = seg.seq.wrapping_add(1);
        self.shown.clear();
        self.told_ack = Some(seg.ack);
        self.told_stamp = seg.options.timestamps.map(|(value, _)| value);
    }

    /// The latest timestamp that came to `link`.
    pub fn stamp(&self, link: Link) -> u32 {
        self.stamps[link.index()]
    }
}

/// Whether `a` is before `b` (RFC 9293 3.4).
pub fn is_behind(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

pub fn client_mac() -> Mac {
    Mac([2, 0, 0, 0, 0, 1])
}

pub fn server_mac() -> Mac {
    Mac([2, 0, 0, 0, 0, 16])
}

/// The headers of what comes in on a link.
pub fn headers(link: Link) -> (L2, L3) {
    let l2 = L2 { dst: server_mac(), src: client_mac(), vlans: Vlans::default() };
    let l3 = L3 {
        src: IpAddr::V4(CLIENT),
        dst: IpAddr::V4(SERVICE),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    match link {
        Link::Client => (l2, l3),
        Link::Server(_) => (l2.reversed(), l3.reversed()),
    }
}
