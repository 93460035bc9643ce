//! What of a flow outlives the process: 104 bytes, written at the handshake and at role changes.
//!
//! Everything else is soft. After a restart three probes make the client and both servers state
//! their positions; what was in flight, TCP at the ends repeats. Layout, big endian: version 1,
//! flags 1, state 1, primary 1, two addresses of 16, two ports of 2, two MACs of 6, VLANs 4+4,
//! iss of client, visible, a, b 4 each, mss of client, a, b 2 each, four scales 2, clock offsets of
//! a, b 4 each, what a, b hear less than the client says 4 each, the port of a data connection on
//! the leg that has another one 2 (0 without one; `address::data_ports` fills it in), the gateway's
//! own port 2 (0 without one; `address::vip`).
//!
//! The number of a leg is the one with which its map is a constant. While values of other length
//! are on their way, to the client or to the server, it is not, and a bit of the state says so; and
//! so it is with a new primary while values are on their way that the old one said otherwise. After
//! a restart such a backup is detached, and the client of such a primary is reset exactly, as soon
//! as it has said where.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

use super::reprotect::Tries;
use super::{Cx, Flow, Opener, Visible};
use crate::engine::alignment::{Own, Round};
use crate::engine::ear::Ear;
use crate::engine::event::{FlowKey, FlowState, SoloReason};
use crate::engine::headers::Headers;
use crate::engine::leg::{Leg, LegState};
use crate::engine::limits;
use crate::engine::stream::Stream;
use crate::engine::voice::Voice;
use crate::engine::{FLOW_CONSTANTS_LEN, LegId, Output, Record, ServiceId};
use crate::wire::{L2, L3, Mac, Offset, Segment, Seq, TcpFlags, TsDelta, Vlans};

const VERSION: u8 = 3;
const NO_SCALE: u8 = 0xf;
/// In the state: the servers have begun it.
const CALLED: u8 = 8;

mod flag {
    pub(super) const IPV4: u8 = 1;
    pub(super) const SACK: u8 = 2;
    pub(super) const TIMESTAMPS: u8 = 4;
    pub(super) const LEG_SACK: [u8; 2] = [8, 16];
    pub(super) const LEG_TIMESTAMPS: [u8; 2] = [32, 64];
    pub(super) const DATA_PORT_OF_B: u8 = 128;
}

/// Writes fields one after another.
struct Writer {
    bytes: [u8; FLOW_CONSTANTS_LEN],
    at: usize,
}

impl Writer {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

/// Reads them back.
struct Reader<'a> {
    bytes: &'a [u8; FLOW_CONSTANTS_LEN],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }
    fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.take())
    }
    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }
}

fn ip_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn ip_of(bytes: [u8; 16], is_v4: bool) -> Option<IpAddr> {
    let v6 = Ipv6Addr::from(bytes);
    match is_v4 {
        true => v6.to_ipv4_mapped().map(IpAddr::V4),
        false => Some(IpAddr::V6(v6)),
    }
}

fn vlan_bytes(vlans: Vlans) -> [u8; 8] {
    let mut bytes = [0; 8];
    for (i, tag) in [vlans.outer, vlans.inner].into_iter().enumerate() {
        if let Some((kind, tci)) = tag {
            bytes[i * 4..i * 4 + 2].copy_from_slice(&kind.to_be_bytes());
            bytes[i * 4 + 2..i * 4 + 4].copy_from_slice(&tci.to_be_bytes());
        }
    }
    bytes
}

fn vlans_of(bytes: [u8; 8]) -> Vlans {
    let tag = |i: usize| {
        let kind = u16::from_be_bytes([bytes[i], bytes[i + 1]]);
        (kind != 0).then(|| (kind, u16::from_be_bytes([bytes[i + 2], bytes[i + 3]])))
    };
    Vlans { outer: tag(0), inner: tag(4) }
}

/// What the record of a flow says to whoever stands between the engine and the links.
pub mod record {
    use super::{FLOW_CONSTANTS_LEN, LegId, Reader, SocketAddr, VERSION, flag, ip_of};

    const PORT_AT: usize = FLOW_CONSTANTS_LEN - 2;
    const DATA_PORT_AT: usize = PORT_AT - 2;
    const FLAGS_AT: usize = 1;

    /// The client's end and the service's.
    pub fn ends(record: &[u8; FLOW_CONSTANTS_LEN]) -> Option<(SocketAddr, SocketAddr)> {
        let mut r = Reader { bytes: record, at: 0 };
        let [version, flags, _, _] = r.take();
        let is_v4 = flags & flag::IPV4 != 0;
        let (client, server) = (ip_of(r.take(), is_v4)?, ip_of(r.take(), is_v4)?);
        let ends = (SocketAddr::new(client, r.u16()), SocketAddr::new(server, r.u16()));
        (version == VERSION).then_some(ends)
    }

    /// The port that it has at the gateway's own address.
    pub fn gateway_port(record: &[u8; FLOW_CONSTANTS_LEN]) -> Option<u16> {
        let mut r = Reader { bytes: record, at: PORT_AT };
        Some(r.u16()).filter(|port| *port != 0)
    }

    /// The leg that has a data connection at another port than the client, and that port.
    pub fn data_port(record: &[u8; FLOW_CONSTANTS_LEN]) -> Option<(LegId, u16)> {
        let leg = LegId::ALL[usize::from(record[FLAGS_AT] & flag::DATA_PORT_OF_B != 0)];
        let mut r = Reader { bytes: record, at: DATA_PORT_AT };
        Some((leg, r.u16())).filter(|(_, port)| *port != 0)
    }

    /// Notes that port.
    pub fn set_data_port(record: &mut [u8; FLOW_CONSTANTS_LEN], other: Option<(LegId, u16)>) {
        let (leg, port) = other.unwrap_or((LegId::A, 0));
        record[DATA_PORT_AT..PORT_AT].copy_from_slice(&port.to_be_bytes());
        if leg == LegId::B {
            record[FLAGS_AT] |= flag::DATA_PORT_OF_B;
        }
    }

    /// Notes that port.
    pub fn set_gateway_port(record: &mut [u8; FLOW_CONSTANTS_LEN], port: Option<u16>) {
        record[PORT_AT..].copy_from_slice(&port.unwrap_or(0).to_be_bytes());
    }
}

impl Flow {
    /// Writes the constants, if the client has been answered.
    pub(super) fn persist(&self, cx: &mut Cx<'_>) {
        if self.visible.is_open && !self.is_gone {
            let record = Record::Flow { slot: self.slot, constants: self.constants() };
            cx.out.push_back(Output::Persist(record));
        }
    }

    fn constants(&self) -> [u8; FLOW_CONSTANTS_LEN] {
        let v = &self.visible;
        let mut flags = 0;
        let mut set = |on: bool, bit: u8| flags |= if on { bit } else { 0 };
        set(self.key.client.is_ipv4(), flag::IPV4);
        set(v.has_sack, flag::SACK);
        set(v.has_timestamps, flag::TIMESTAMPS);
        for (i, leg) in self.legs.iter().enumerate() {
            set(leg.options.has_sack, flag::LEG_SACK[i]);
            set(leg.options.has_timestamps, flag::LEG_TIMESTAMPS[i]);
        }
        let open = |id: LegId| {
            let leg = self.leg(id);
            u8::from(leg.is_open()) << (4 + id.index())
                | u8::from(!leg.is_constant() || self.is_foreign(id) || self.is_parted(id))
                    << (6 + id.index())
        };
        let state = match self.state {
            FlowState::Lagging => 1,
            FlowState::Paired => 0,
            FlowState::Diverged => 3,
            FlowState::TimeWait => 4,
            FlowState::Solo | FlowState::Opening => 2,
        };
        let (l2, _) = self.client_headers();
        let mut w = Writer { bytes: [0; FLOW_CONSTANTS_LEN], at: 0 };
        let opener = if self.opener == Opener::Servers { CALLED } else { 0 };
        w.put(&[VERSION, flags, state | opener | open(LegId::A) | open(LegId::B)]);
        w.put(&[self.primary.index() as u8]);
        w.put(&ip_bytes(self.key.client.ip()));
        w.put(&ip_bytes(self.key.server.ip()));
        w.put(&self.key.client.port().to_be_bytes());
        w.put(&self.key.server.port().to_be_bytes());
        w.put(&l2.src.0);
        w.put(&l2.dst.0);
        w.put(&vlan_bytes(l2.vlans));
        w.put(&self.client.iss.raw().to_be_bytes());
        w.put(&v.iss.raw().to_be_bytes());
        for leg in &self.legs {
            w.put(&leg.voice.effective_iss().to_be_bytes());
        }
        w.put(&self.client.mss.to_be_bytes());
        for leg in &self.legs {
            w.put(&leg.options.mss.to_be_bytes());
        }
        let [a, b] = &self.legs;
        let two = |one: Option<u8>, other: Option<u8>| {
            one.unwrap_or(NO_SCALE) << 4 | other.unwrap_or(NO_SCALE)
        };
        w.put(&[two(self.client.window_scale, v.window_scale)]);
        w.put(&[two(a.options.window_scale, b.options.window_scale)]);
        w.put(&a.clock.offset.0.to_be_bytes());
        w.put(&b.clock.offset.0.to_be_bytes());
        w.put(&a.ear.base().to_be_bytes());
        w.put(&b.ear.base().to_be_bytes());
        w.bytes
    }

    /// Whether `id` serves the flow, and the client has been shown part of a value that it has said
    /// otherwise: only this process knows the rest.
    fn is_foreign(&self, id: LegId) -> bool {
        id == self.primary && self.visible.foreign_until.is_some()
    }

    /// Whether `id` cuts the body that it is saying into other chunks than are shown.
    fn is_parted(&self, id: LegId) -> bool {
        let is_foreign = self.comparison.is_reframed == (id == self.primary);
        self.comparison.is_parted() && is_foreign
    }

    /// A flow from an earlier process; `None` if the record makes no sense.
    pub fn restore(cx: &mut Cx<'_>, slot: u32, record: &[u8; FLOW_CONSTANTS_LEN]) -> Option<Self> {
        let mut r = Reader { bytes: record, at: 0 };
        let (version, flags, state, primary) = (r.u8(), r.u8(), r.u8(), r.u8());
        if version != VERSION || primary > 1 {
            return None;
        }
        let has = |bit: u8| flags & bit != 0;
        let is_called = state & CALLED != 0;
        let client_ip = ip_of(r.take(), has(flag::IPV4))?;
        let server_ip = ip_of(r.take(), has(flag::IPV4))?;
        let (client_port, server_port) = (r.u16(), r.u16());
        let (src, dst) = (Mac(r.take()), Mac(r.take()));
        let vlans = vlans_of(r.take());
        let client_iss = r.u32();
        let visible_iss = r.u32();
        let leg_iss = [r.u32(), r.u32()];
        let client_mss = r.u16();
        let leg_mss = [r.u16(), r.u16()];
        let mut scales = || {
            let both = r.u8();
            [both >> 4, both & 0xf].map(|scale| Some(scale).filter(|&s| s != NO_SCALE))
        };
        let [client_scale, visible_scale] = scales();
        let leg_scale = scales();
        let clock_offset = [TsDelta(r.u32()), TsDelta(r.u32())];
        let ear_base = [r.u32() as i32, r.u32() as i32];
        let key = FlowKey {
            service: ServiceId::default(),
            vlan: vlans.ids(),
            client: SocketAddr::new(client_ip, client_port),
            server: SocketAddr::new(server_ip, server_port),
        };
        let primary = LegId::ALL[usize::from(primary)];
        let is_exact = |id: LegId| state & (64 << id.index()) == 0;
        let is_open = |id: LegId| state & (16 << id.index()) != 0 && is_exact(id);
        let mut legs = LegId::ALL.map(|id| {
            let to = if is_open(id) { LegState::Open } else { LegState::Scrub };
            let i = id.index();
            let mut leg = Leg::new(to, cx.now);
            leg.voice = Voice::restored(leg_iss[i]);
            leg.ear = Ear::restored(ear_base[i]);
            leg.options.mss = leg_mss[i];
            leg.options.window_scale = leg_scale[i];
            leg.options.has_sack = has(flag::LEG_SACK[i]);
            leg.options.has_timestamps = has(flag::LEG_TIMESTAMPS[i]);
            leg.clock.offset = clock_offset[i];
            leg.is_learned = false;
            leg
        });
        let l2 = L2 { dst, src, vlans };
        let l3 = L3 {
            src: client_ip,
            dst: server_ip,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            id: 0,
            flow_label: 0,
        };
        for leg in &mut legs {
            leg.headers = Some(Headers::of(&l2.reversed(), &l3.reversed()));
        }
        let both = is_open(LegId::A) && is_open(LegId::B);
        let mut visible = Visible::closed();
        visible.iss = Seq::new(visible_iss);
        visible.window_scale = visible_scale;
        visible.has_sack = has(flag::SACK);
        visible.has_timestamps = has(flag::TIMESTAMPS);
        visible.is_open = true;
        let (state, solo) = match state & 7 {
            0 if both => (FlowState::Paired, None),
            4 => (FlowState::TimeWait, None),
            _ => (FlowState::Solo, Some(SoloReason::Restored)),
        };
        let client = super::ClientEnd {
            iss: Seq::new(client_iss),
            mss: client_mss.max(64),
            window_scale: client_scale,
            offers_sack: visible.has_sack,
            offers_timestamps: visible.has_timestamps,
            is_learned: false,
            ..super::ClientEnd::unheard(cx.now, Headers::of(&l2, &l3))
        };
        let life = if state == FlowState::TimeWait { limits::TIME_WAIT } else { limits::IDLE_MAX };
        let mut flow = Self {
            key,
            opener: if is_called { Opener::Servers } else { Opener::Client },
            slot,
            opened_at: cx.now,
            state,
            solo,
            primary,
            legs,
            client,
            visible,
            request: Stream::new(Offset::START),
            listener: None,
            shown: Stream::new(Offset::START),
            comparison: super::Comparison::new(Offset::START, None),
            diverged_until: None,
            first_answer_at: None,
            syn_at: cx.now,
            syn_resent: 0,
            pinned: [None; 2],
            behind: [None; 2],
            owes: [None; 2],
            is_soft_told: [false; 2],
            fin_held_at: None,
            control: None,
            ask_at: None,
            asked: 0,
            taken: None,
            stray: None,
            tries: Tries::barred(),
            challenge: None,
            promise: None,
            expires_at: cx.now + life,
            timer: None,
            is_gone: false,
            held: 0,
        };
        if state == FlowState::Solo {
            // A leg that was not proved equal when the process ended cannot be trusted now.
            let backup = flow.backup();
            flow.leg_mut(backup).state = LegState::Scrub;
        }
        flow.arm(cx);
        Some(flow)
    }

    /// Makes the client and the legs state their positions: a segment that no TCP accepts is
    /// answered with an ack (RFC 9293 3.10.7.4). A client with timestamps hears the primary's
    /// clock in it, so the primary is asked first; if that stays silent, the question has none.
    pub fn probe_ends(&mut self, cx: &mut Cx<'_>) {
        let mut ends = self.legs.iter().filter(|l| l.is_open());
        let all_known = self.client.is_learned && ends.all(|l| l.is_learned);
        if self.state == FlowState::TimeWait || all_known {
            self.ask_at = None;
            return;
        }
        // Either the question or its answer may be lost.
        let wait = limits::ASK_AGAIN * (1 << self.asked.min(6));
        (self.asked, self.ask_at) = (self.asked + 1, Some(cx.now + wait));
        let has_clock = !self.visible.has_timestamps || self.leg(self.primary).is_learned;
        if !self.client.is_learned && (has_clock || self.asked > 1) {
            self.send_client(cx, Offset::SYN, TcpFlags::ACK, Bytes::new());
        }
        for id in LegId::ALL {
            if self.leg(id).is_open() && !self.leg(id).is_learned {
                self.send_leg(cx, id, Offset::SYN, TcpFlags::ACK, Bytes::new());
            }
        }
        self.arm(cx);
    }

    /// Of a restored flow whose ends may never speak again.
    pub fn tell_if_over(&self, cx: &mut Cx<'_>) {
        if self.state == FlowState::TimeWait {
            self.tell_state(cx, FlowState::Opening);
        }
    }

    /// The client's first segment after a restart: its ack is what was shown, its number what it
    /// sends next. Positions begin anew below 2^32; only differences matter.
    pub(super) fn learn_client(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        let at = Offset::SYN + u64::from(seg.seq.wrapping_sub(self.client.iss.raw()));
        let ack = Offset::SYN + u64::from(seg.ack.wrapping_sub(self.visible.iss.raw()));
        self.client.is_learned = true;
        if let Some((value, echo)) = seg.options.timestamps {
            // Not compared with an earlier one: there is none, and any value may be the first.
            self.client.clock = (value, echo);
            self.visible.clock.was_at(cx.now, echo);
        }
        let near = |known: Offset, near: Offset| {
            // A leg that was learned before may stand on the other side of the 2^32 mark.
            let turn = 1u64 << 32;
            match known - near {
                d if d > 1 << 31 => known.back(turn),
                d if d < -(1 << 31) => known + turn,
                _ => known,
            }
        };
        let (mut at, mut ack) = (at, ack);
        if let Some(leg) = self.legs.iter().find(|l| l.is_open() && l.is_learned) {
            at = near(at, leg.acked);
            ack = near(ack, leg.voice.nxt());
        }
        self.client.nxt = at;
        self.client.una = ack;
        self.client.edge = ack;
        self.visible.released = ack;
        self.visible.told_ack = Offset::SYN;
        self.visible.told_edge = Offset::SYN;
        self.visible.answered = at;
        self.request.restart(at);
        self.shown.restart(ack);
        self.comparison.restart(ack);
        for leg in &mut self.legs {
            leg.voice.restart(ack);
            leg.owes_ack = true;
            leg.sent = leg.sent.max(at);
            if !leg.is_learned {
                leg.voice.learn(ack);
                leg.acked = Offset::SYN;
            }
        }
        self.tell_state(cx, FlowState::Opening);
        self.taken = Some(ack);
        self.note_taken_fin();
    }

    /// After a restart: the client's ack covered a FIN that was shown by the process before.
    pub(super) fn note_taken_fin(&mut self) {
        let Some(taken) = self.taken.filter(|&at| at == self.visible.released) else { return };
        let learned = self.legs.iter().filter(|l| l.is_open() && l.is_learned);
        let fin = learned.filter_map(|l| l.voice.fin()).find(|&fin| fin + 1 == taken);
        let Some(fin) = fin.filter(|_| self.client.is_learned && self.visible.fin.is_none()) else {
            return;
        };
        (self.visible.fin, self.visible.released) = (Some(fin), fin);
        self.shown.restart(fin);
        self.comparison.restart(fin);
        for leg in &mut self.legs {
            leg.voice.restart(fin);
        }
    }

    /// A leg's first segment after a restart.
    pub(super) fn learn_leg(&mut self, cx: &mut Cx<'_>, id: LegId, seg: &Segment) {
        if !seg.flags.has(TcpFlags::ACK) {
            return;
        }
        let (client, visible) = (self.client.nxt, self.visible.released);
        let is_learned = self.client.is_learned;
        let client_iss = self.client.iss;
        if id == self.primary && !is_learned {
            self.ask_at = Some(cx.now);
        }
        let leg = self.leg_mut(id);
        let near = leg.ear.own(client, Round::Down).0;
        let ack = leg.ear.shown(Own(client_iss.offset(Seq::new(seg.ack), near)), Round::Down);
        leg.is_learned = true;
        leg.progress_at = cx.now;
        if is_learned {
            leg.voice.learn(leg.voice.near(seg.seq, visible).max(visible));
            leg.acked = ack;
        } else {
            leg.voice.learn_first(seg.seq);
            let own = Offset::SYN + u64::from(seg.ack.wrapping_sub(client_iss.raw()));
            leg.acked = leg.ear.shown(Own(own), Round::Down);
        }
        let scale = leg.options.window_scale.unwrap_or(0);
        leg.edge = leg.acked + (u64::from(seg.window) << scale);
        leg.sent = leg.sent.max(leg.acked);
        leg.owes_ack = true;
    }
}
