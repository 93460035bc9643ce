//! One smoltcp host: a stack, its clock for timestamps, and a shim that moves its sequence numbers.
//!
//! smoltcp draws its initial sequence numbers from its own generator; the shim between stack and
//! link adds a constant to every number it sends and takes it off every acknowledgment that it
//! gets, so that a scenario can put the wrap anywhere. Checksums are adjusted, never computed anew:
//! a broken frame stays broken. The host never looks at the gateway.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::host::{PORT, SERVICE};
use super::rng::mix;
use super::scenario::StackPlan;

/// Where one frame's TCP header stands.
#[derive(Clone, Copy, Debug)]
struct Tcp {
    at: usize,
}

fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn tcp_of(frame: &[u8]) -> Option<Tcp> {
    let is_ipv4 = frame.len() >= 54 && be16(frame, 12) == 0x0800 && frame[23] == 6;
    let at = 14 + usize::from(frame.get(14)? & 15) * 4;
    (is_ipv4 && frame.len() >= at + 20).then_some(Tcp { at })
}

/// Replaces the 16-bit field at an even distance from the header, adjusting the sum (RFC 1624).
fn set16(frame: &mut [u8], tcp: Tcp, field: usize, value: u16) {
    let at = tcp.at + field;
    let mut sum = u32::from(!be16(frame, tcp.at + 16));
    sum += u32::from(!be16(frame, at)) + u32::from(value);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    frame[tcp.at + 16..tcp.at + 18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// The same for 32 bits.
fn set32(frame: &mut [u8], tcp: Tcp, field: usize, value: u32) {
    set16(frame, tcp, field, (value >> 16) as u16);
    set16(frame, tcp, field + 2, value as u16);
}

/// Where the MSS option's value stands from the TCP header, if the segment has one.
fn mss_at(frame: &[u8], tcp: Tcp) -> Option<usize> {
    let end = usize::from(frame[tcp.at + 12] >> 4) * 4;
    let mut at = 20;
    while at + 3 < end && tcp.at + end <= frame.len() {
        match frame[tcp.at + at] {
            0 => return None,
            1 => at += 1,
            2 if at % 2 == 0 => return Some(at + 2),
            _ => at += usize::from(frame[tcp.at + at + 1]).max(2),
        }
    }
    None
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Where the value of the timestamps option stands from the TCP header, if it is aligned as usual.
fn stamp_at(frame: &[u8], tcp: Tcp) -> Option<usize> {
    let end = usize::from(frame[tcp.at + 12] >> 4) * 4;
    let mut at = 20;
    while at + 10 <= end && tcp.at + end <= frame.len() {
        match frame[tcp.at + at] {
            0 => return None,
            1 => at += 1,
            8 if at % 2 == 0 => return Some(at + 2),
            _ => at += usize::from(frame[tcp.at + at + 1]).max(2),
        }
    }
    None
}

/// What a stack has accepted on one connection, and sent last of all.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Its latest ack.
    ack: u32,
    /// The peer's timestamp.
    stamp: Option<u32>,
    /// The number behind its FIN, as it counts.
    end: Option<u32>,
}

/// Moves sequence numbers between stack and link, per connection, and makes room for timestamps:
/// smoltcp 0.13 forgets their 12 bytes and builds packets beyond its MTU, which it then drops. It
/// also takes the timestamp of segments that it does not accept (RFC 7323 4.3): those get the one
/// accepted last. And where its FIN is acknowledged by a window of nothing, its timer of probes
/// goes on, and it sends acknowledgments without an end: that window becomes one byte, for nobody.
#[derive(Debug)]
struct Shim {
    mss: u16,
    has_timestamps: bool,
    near_wrap: Option<u32>,
    shifts: BTreeMap<(u32, u16, u16), u32>,
    /// Of each connection the number that its stack chose for the SYN.
    syns: BTreeMap<(u32, u16, u16), u32>,
    known: BTreeMap<(u32, u16, u16), Known>,
}

impl Shim {
    fn key(frame: &[u8], tcp: Tcp, is_out: bool) -> (u32, u16, u16) {
        let ip_at = if is_out { 30 } else { 26 };
        let ports = (be16(frame, tcp.at), be16(frame, tcp.at + 2));
        let (own, peer) = if is_out { ports } else { (ports.1, ports.0) };
        (be32(frame, ip_at), peer, own)
    }

    fn outbound(&mut self, frame: &mut [u8]) {
        let Some(tcp) = tcp_of(frame) else { return };
        let is_syn = frame[tcp.at + 13] & SYN != 0;
        if let Some(at) = mss_at(frame, tcp).filter(|_| is_syn) {
            set16(frame, tcp, at, self.mss);
        }
        let key = Self::key(frame, tcp, true);
        let seq = be32(frame, tcp.at + 4);
        let known = self.known.entry(key).or_default();
        if frame[tcp.at + 13] & ACK != 0 {
            known.ack = be32(frame, tcp.at + 8);
        }
        if is_syn {
            known.end = None;
        } else if frame[tcp.at + 13] & FIN != 0 {
            let data = tcp.at + usize::from(frame[tcp.at + 12] >> 4) * 4;
            let len = (14 + usize::from(be16(frame, 16))).saturating_sub(data);
            known.end = Some(seq.wrapping_add(len as u32 + 1));
        }
        let Some(span) = self.near_wrap else { return };
        if is_syn {
            // A repeated SYN keeps its number. A later connection of the same ports has its own
            // space, far from the one before: old segments must not look like new ones.
            let known = self.syns.insert(key, seq);
            if known.is_none() {
                let below = 1 + (mix(u64::from(seq), 77) % u64::from(span.max(1))) as u32;
                self.shifts.insert(key, 0u32.wrapping_sub(below).wrapping_sub(seq));
            } else if known != Some(seq) {
                let isn = 0x2000_0000 + (mix(u64::from(seq), 78) % 0xa000_0000) as u32;
                self.shifts.insert(key, isn.wrapping_sub(seq));
            }
        }
        if let Some(shift) = self.shifts.get(&key) {
            set32(frame, tcp, 4, seq.wrapping_add(*shift));
        }
    }

    fn inbound(&mut self, frame: &mut [u8]) {
        let Some(tcp) = tcp_of(frame) else { return };
        let is_syn = frame[tcp.at + 13] & SYN != 0;
        if let Some(at) = stamp_at(frame, tcp) {
            let known = self.known.entry(Self::key(frame, tcp, false)).or_default();
            let is_old = (be32(frame, tcp.at + 4).wrapping_sub(known.ack) as i32) < 0;
            match known.stamp.filter(|_| is_old && !is_syn) {
                Some(stamp) => set32(frame, tcp, at, stamp),
                None => known.stamp = Some(be32(frame, tcp.at + at)),
            }
        }
        if let Some(at) = mss_at(frame, tcp).filter(|_| is_syn) {
            let room = if self.has_timestamps { 12 } else { 0 };
            let mss = be16(frame, tcp.at + at).min(self.mss) - room;
            set16(frame, tcp, at, mss);
        }
        if frame[tcp.at + 13] & ACK == 0 {
            return;
        }
        let (key, ack) = (Self::key(frame, tcp, false), be32(frame, tcp.at + 8));
        let ack = ack.wrapping_sub(self.shifts.get(&key).copied().unwrap_or_default());
        set32(frame, tcp, 8, ack);
        if be16(frame, tcp.at + 14) == 0 && self.known.get(&key).is_some_and(|k| k.end == Some(ack))
        {
            set16(frame, tcp, 14, 1);
        }
    }
}

thread_local! {
    static TSVAL: Cell<u32> = const { Cell::new(0) };
}

fn tsval() -> u32 {
    TSVAL.get()
}

/// The queue between stack and link.
#[derive(Debug)]
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    mtu: usize,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Rx(frame), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + 14 + 64; // the shim keeps the real limit
        caps
    }
}

/// A host.
pub struct SmolHost {
    wire: Wire,
    iface: Interface,
    /// Its sockets.
    pub sockets: SocketSet<'static>,
    shim: Shim,
    plan: StackPlan,
    mac: [u8; 6],
    ip: [u8; 4],
    /// When it wants to be polled again (ns).
    pub wake_at: Option<u64>,
}

impl std::fmt::Debug for SmolHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SmolHost").field("wake_at", &self.wake_at).finish_non_exhaustive()
    }
}

impl SmolHost {
    /// A host with this address; `seed` feeds its stack.
    pub fn new(plan: &StackPlan, mac: [u8; 6], ip: [u8; 4], seed: u64, now: u64) -> Self {
        let mut wire = Wire { rx: VecDeque::new(), tx: Vec::new(), mtu: plan.mtu };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut wire, time(now));
        iface.update_ip_addrs(|addrs| {
            let address = IpAddress::v4(ip[0], ip[1], ip[2], ip[3]);
            addrs.push(IpCidr::new(address, 24)).expect("a new interface has room");
        });
        Self {
            wire,
            iface,
            sockets: SocketSet::new(Vec::new()),
            shim: Shim {
                mss: plan.mtu as u16 - 40,
                has_timestamps: plan.timestamps.is_some(),
                near_wrap: plan.isn_near_wrap,
                shifts: BTreeMap::new(),
                syns: BTreeMap::new(),
                known: BTreeMap::new(),
            },
            plan: plan.clone(),
            mac,
            ip,
            wake_at: None,
        }
    }

    /// A new socket with the host's habits.
    pub fn add_socket(&mut self, buffers: (usize, usize)) -> SocketHandle {
        let (rx, tx) = buffers;
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; rx]),
            tcp::SocketBuffer::new(vec![0; tx]),
        );
        if self.plan.timestamps.is_some() {
            socket.set_tsval_generator(Some(tsval));
        }
        socket.set_ack_delay(self.plan.ack_delay_us.map(Duration::from_micros));
        socket.set_nagle_enabled(self.plan.nagle);
        socket.set_congestion_control(match self.plan.congestion {
            1 => tcp::CongestionControl::Reno,
            2 => tcp::CongestionControl::Cubic,
            _ => tcp::CongestionControl::None,
        });
        self.sockets.add(socket)
    }

    /// A socket of this host.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins a connection to the service.
    pub fn connect(&mut self, handle: SocketHandle, port: u16) {
        let [a, b, c, d] = SERVICE;
        let remote = (IpAddress::v4(a, b, c, d), PORT);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.iface.context(), remote, port).expect("a fresh socket connects");
    }

    /// A frame arrived.
    pub fn deliver(&mut self, mut frame: Vec<u8>) {
        if let Some(reply) = self.answer_probe(&frame) {
            return self.wire.tx.push(reply);
        }
        self.shim.inbound(&mut frame);
        self.wire.rx.push_back(frame);
    }

    /// An ARP request without a sender's address (RFC 5227) is answered by every kernel, and
    /// ignored by smoltcp.
    fn answer_probe(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let is_request = frame.len() >= 42 && be16(frame, 12) == 0x0806 && be16(frame, 20) == 1;
        if !is_request || frame[28..32] != [0; 4] || frame[38..42] != self.ip {
            return None;
        }
        let mut reply = [&frame[6..12], &self.mac, &frame[12..20], &[0, 2]].concat();
        reply.extend_from_slice(&self.mac);
        reply.extend_from_slice(&self.ip);
        reply.extend_from_slice(&frame[22..32]);
        Some(reply)
    }

    /// Lets the stack work at `now` (ns); returns what it sends.
    pub fn poll(&mut self, now: u64) -> Vec<Vec<u8>> {
        if let Some((first, rate)) = self.plan.timestamps {
            let ticks = u128::from(now) * u128::from(rate) / 1_000_000_000;
            TSVAL.set(first.wrapping_add(ticks as u32));
        }
        let at = time(now);
        self.iface.poll(at, &mut self.wire, &mut self.sockets);
        let next = self.iface.poll_at(at, &self.sockets);
        self.wake_at = next.map(|t| (t.total_micros() as u64 * 1000).max(now + 10_000));
        let mut sent = std::mem::take(&mut self.wire.tx);
        for frame in &mut sent {
            self.shim.outbound(frame);
        }
        sent
    }
}

fn time(ns: u64) -> Instant {
    Instant::from_micros((ns / 1000) as i64)
}
