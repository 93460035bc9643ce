//! The gateway's own probes to the servers, and the resets that it sends outside any flow.
//!
//! In clone addressing the gateway has no address. A SYN probe comes from the client-side address
//! heard last, to which the server has a route and a neighbour already; its answer never leaves. In
//! vip addressing it comes from the gateway's own address on that server's link.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;

use super::address::FROM_CLIENT;
use super::bridge::probe_mac;
use super::event::FlowKey;
use super::health::SynProbe;
use super::pack::fields;
use super::time::{Duration, Instant};
use super::{EngineConfig, LegId, Link, Output, ServiceId, VipPlan};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L2, L3, Mac, Segment, TcpFlags, TcpOptions};

/// What the application probe asks.
const APP_REQUEST: &[u8] = b"HEAD / HTTP/1.0\r\n\r\n";
/// A port beside the first one is probed every so often.
const TURN_EVERY: Duration = Duration::from_millis(100);
/// Source ports of SYN probes.
pub const PROBE_PORTS: std::ops::Range<u16> = 61_440..65_000;

/// Builds probes.
#[derive(Debug)]
pub struct Prober {
    mac: Mac,
    state: u64,
    port: u16,
    client: Option<(L2, L3)>,
    /// Which of the other ports was probed last, and when the next one is.
    turn: usize,
    turn_at: Instant,
}

impl Prober {
    /// Probes with numbers from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            mac: probe_mac(seed),
            state: seed | 1,
            port: PROBE_PORTS.start,
            client: None,
            turn: 0,
            turn_at: Instant::default(),
        }
    }

    /// The Ethernet address of neighbour probes.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// A client-side host spoke to the service.
    pub fn heard_client(&mut self, l2: L2, l3: L3) {
        self.client = Some((l2, l3));
    }

    /// The port to probe beside the first one, if it is time for one: they take turns.
    pub fn next_turn(&mut self, now: Instant, ports: &[u16]) -> Option<u16> {
        let others = ports.get(1..).filter(|others| !others.is_empty())?;
        if now < self.turn_at {
            return None;
        }
        self.turn_at = now + TURN_EVERY;
        self.turn = (self.turn + 1) % others.len();
        Some(others[self.turn])
    }

    /// Sends a SYN to the port `to` of the service on `leg`. `is_free` tells whether no flow has
    /// that key. Nothing before any client was heard.
    pub fn syn(
        &mut self,
        leg: LegId,
        to: u16,
        config: &EngineConfig,
        is_app: bool,
        is_free: impl Fn(&FlowKey) -> bool,
        out: &mut VecDeque<Output>,
    ) -> Option<SynProbe> {
        let (l2, mut l3) = match &config.vip {
            Some(vip) => own_headers(vip, leg)?,
            None => self.client?,
        };
        if let Some(source) = config.probe_address.filter(|a| a.is_ipv4() == l3.src.is_ipv4()) {
            l3.src = source;
        }
        l3.tos = 0;
        let vlan = FlowKey::vlan_ids(l2.vlans);
        let server = SocketAddr::new(l3.dst, to);
        let free = |port: u16| {
            let client = SocketAddr::new(l3.src, port);
            is_free(&FlowKey { service: ServiceId::default(), vlan, client, server })
        };
        let port = (0..16).map(|_| self.next_port()).find(|&p| free(p))?;
        let probe = SynProbe { port, to, seq: self.next_number(port), is_app };
        let fields = TcpFields {
            src_port: port,
            dst_port: to,
            seq: probe.seq,
            ack: 0,
            flags: TcpFlags::SYN,
            window: 1024,
            urgent: 0,
            options: TcpOptions { mss: Some(536), ..TcpOptions::default() },
        };
        let frame = build::tcp(&l2, &l3, &fields, Bytes::new(), u16::MAX);
        out.push_back(Output::Transmit(Link::Server(leg), frame));
        Some(probe)
    }

    /// The application probe was accepted: the request, with the third ack.
    pub fn ask(&self, leg: LegId, seg: &Segment, probe: SynProbe, out: &mut VecDeque<Output>) {
        let fields = TcpFields {
            src_port: seg.dst_port,
            dst_port: seg.src_port,
            seq: probe.seq.wrapping_add(1),
            ack: seg.seq.wrapping_add(1),
            flags: TcpFlags::ACK.with(TcpFlags::PSH),
            window: 1024,
            urgent: 0,
            options: TcpOptions::default(),
        };
        let l3 = L3 { ttl: 64, tos: 0, ..seg.l3.reversed() };
        let request = Bytes::from_static(APP_REQUEST);
        let frame = build::tcp(&seg.l2.reversed(), &l3, &fields, request, 536);
        out.push_back(Output::Transmit(Link::Server(leg), frame));
    }

    /// Ends an accepted probe by an exact reset.
    pub fn end_probe(
        &self,
        leg: LegId,
        seg: &Segment,
        probe: SynProbe,
        out: &mut VecDeque<Output>,
    ) {
        let frame = reset_at(seg, probe.seq.wrapping_add(1));
        out.push_back(Output::Transmit(Link::Server(leg), frame));
    }

    /// Resets whatever connection `seg` belongs to, at the number that it expects.
    pub fn reset(&self, leg: LegId, seg: &Segment, out: &mut VecDeque<Output>) {
        out.extend(reset_of(seg).map(|frame| Output::Transmit(Link::Server(leg), frame)));
    }

    fn next_port(&mut self) -> u16 {
        self.port += 1;
        if self.port >= PROBE_PORTS.end {
            self.port = PROBE_PORTS.start;
        }
        self.port
    }

    /// xorshift64*: unpredictable enough for a probe that lives a millisecond; with the mark of its
    /// port, by which a later process knows what is left of it.
    fn next_number(&mut self, port: u16) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        (random & 0xffff_0000) | u32::from(mark(port))
    }
}

/// Sixteen bits that the number of a probe from `port` ends with.
const fn mark(port: u16) -> u16 {
    port.wrapping_mul(0x9e37) ^ 0x5a5a
}

/// Whether `seg` answers a probe of this process or of an earlier one: by its port, by the number
/// that it acknowledges, and because it agrees to no option that a probe does not offer. Only asked
/// where there is no flow: one connection in 65,536 looks alike.
pub fn is_answer(seg: &Segment) -> bool {
    let options = &seg.options;
    let is_plain = options.window_scale.is_none()
        && !options.sack_permitted
        && options.timestamps.is_none()
        && options.sack.as_slice().is_empty();
    let acknowledges = |len: usize| {
        let number = seg.ack.wrapping_sub(1).wrapping_sub(len as u32);
        number as u16 == mark(seg.dst_port)
    };
    is_plain
        && PROBE_PORTS.contains(&seg.dst_port)
        && seg.flags.has(TcpFlags::ACK)
        && (acknowledges(0) || acknowledges(APP_REQUEST.len()))
}

/// Resets whatever connection `seg` belongs to, at the number that its sender expects; nothing if
/// that is not told.
pub fn reset_of(seg: &Segment) -> Option<Frame> {
    let may = seg.flags.has(TcpFlags::ACK) && !seg.flags.has(TcpFlags::RST);
    may.then(|| reset_at(seg, seg.ack))
}

/// Headers from the gateway's own address to the service, as the engine knows it.
fn own_headers(vip: &VipPlan, leg: LegId) -> Option<(L2, L3)> {
    let dst = vip.served.first()?.service;
    let src = vip.own_of(leg, dst)?;
    let (ttl, tos, id, flow_label) = (L3::TTL, 0, 0, 0);
    Some((FROM_CLIENT, L3 { src, dst, ttl, tos, dont_fragment: true, id, flow_label }))
}

fn reset_at(seg: &Segment, seq: u32) -> Frame {
    let fields = TcpFields {
        src_port: seg.dst_port,
        dst_port: seg.src_port,
        seq,
        ack: 0,
        flags: TcpFlags::RST,
        window: 0,
        urgent: 0,
        options: TcpOptions::default(),
    };
    let l3 = L3 { ttl: 64, tos: 0, ..seg.l3.reversed() };
    build::tcp(&seg.l2.reversed(), &l3, &fields, Bytes::new(), u16::MAX)
}

fields!(Prober { mac, state, port, client, turn, turn_at });
