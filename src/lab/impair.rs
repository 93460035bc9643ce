//! A forwarder between two interfaces that treats frames badly on purpose: loss, delay, a rate,
//! corruption, silence, each direction on its own. The machine's kernel need not know `netem`.
//!
//! Frames pass whole, with their offload state, unless single packets are to be lost or damaged:
//! then super-frames are cut first and checksums finished, because a damaged packet whose
//! checksum is computed afterwards is not damaged but a lie.
//!
//! One seed decides every fate; nothing is shared with the gateway but [`crate::wire`].

#![allow(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::message;
use super::netlink;
use crate::wire::{Frame, segmentize, vnet_hdr};

/// What happens to the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fate {
    /// Probability that a packet is lost, 0 to 1.
    pub loss: f64,
    /// Probability that one byte of a packet is changed, 0 to 1; its checksum then tells.
    pub corrupt: f64,
    /// Probability that a packet is sent twice, 0 to 1.
    pub duplicate: f64,
    /// Time that each frame is late.
    pub delay: Duration,
    /// Bits per second; frames queue behind each other, at most [`QUEUE_BYTES_MAX`].
    pub rate: Option<u64>,
    /// Nothing passes.
    pub is_cut: bool,
}

impl Fate {
    /// Whether the fate of single packets differs.
    fn is_per_packet(&self) -> bool {
        self.loss > 0.0 || self.corrupt > 0.0 || self.duplicate > 0.0
    }
}

/// What happens to the frames of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Impairment {
    /// From the gateway to the server.
    pub to_server: Fate,
    /// From the server to the gateway.
    pub to_gateway: Fate,
    /// Decides which packets.
    pub seed: u64,
}

impl Impairment {
    /// The same fate both ways.
    pub fn both(fate: Fate) -> Self {
        Self { to_server: fate, to_gateway: fate, seed: 1 }
    }
}

/// Most bytes that wait for a rate; what comes beyond is lost, as in a switch.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Room for the largest super-frame and its virtio header, in bytes.
const BUFFER_LEN: usize = 68 << 10;
/// Frames taken from one side before the other has its turn.
const BURST: usize = 64;

/// The forwarder of one link.
#[derive(Debug)]
pub(crate) struct Forwarder {
    /// Towards the gateway, towards the server.
    sides: [OwnedFd; 2],
    impairment: Impairment,
    random: u64,
    lanes: [Lane; 2],
}

/// One direction's frames that are not yet due.
#[derive(Debug, Default)]
struct Lane {
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    waiting_bytes: usize,
    /// When the rate lets the next frame begin.
    free_at: Option<Instant>,
    number: u64,
}

impl Forwarder {
    /// Opens both interfaces of the current namespace.
    pub(crate) fn open(up: &str, down: &str, impairment: Impairment) -> io::Result<Self> {
        Ok(Self::between([packet_socket(up)?, packet_socket(down)?], impairment))
    }

    /// A forwarder between two packet sockets with virtio headers.
    pub(crate) fn between(sides: [OwnedFd; 2], impairment: Impairment) -> Self {
        let random = impairment.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { sides, impairment, random, lanes: Default::default() }
    }

    /// Forwards until the other end of `control` is closed; each record on it is a new
    /// [`Impairment`].
    pub(crate) fn run(mut self, control: &OwnedFd) -> io::Result<()> {
        // A wire does not wait for a processor: on a busy machine a forwarder that did would be a
        // link that fails. Who may not ask for it goes without.
        // SAFETY: plain system call about this process alone.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let ready = self.wait(control)?;
            if ready[2] {
                match message::receive::<Impairment>(control)? {
                    Some((impairment, _)) => self.impairment = impairment,
                    None => return Ok(()),
                }
            }
            for from in [0, 1] {
                if ready[from] {
                    self.take(from, &mut buffer)?;
                }
                self.send_due(1 - from);
            }
        }
    }

    fn wait(&self, control: &OwnedFd) -> io::Result<[bool; 3]> {
        let mut fds = [
            PollFd::new(self.sides[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sides[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        let due = self.lanes.iter().filter_map(|lane| Some(lane.waiting.peek()?.0.0)).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        match ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok([false; 3]),
            Err(e) => return Err(e.into()),
        }
        Ok([0, 1, 2].map(|at| fds[at].any().unwrap_or(true)))
    }

    /// Takes frames from one side and settles their fate.
    fn take(&mut self, from: usize, buffer: &mut [u8]) -> io::Result<()> {
        let fate = if from == 0 { self.impairment.to_server } else { self.impairment.to_gateway };
        for _ in 0..BURST {
            let Some(len) = receive(&self.sides[from], buffer)? else { return Ok(()) };
            if fate.is_cut {
                continue;
            }
            if !fate.is_per_packet() {
                self.settle(1 - from, &fate, &buffer[..len]);
                continue;
            }
            let (header, frame) = buffer[..len].split_at(vnet_hdr::LEN.min(len));
            let Ok(offload) = vnet_hdr::read(header, frame.len()) else { continue };
            let whole = Frame::from_wire(Bytes::copy_from_slice(frame), offload);
            let mut pieces = Vec::new();
            segmentize::for_link(whole, false, false, &mut pieces);
            for piece in pieces {
                self.settle_packet(1 - from, &fate, &piece);
            }
        }
        Ok(())
    }

    fn settle_packet(&mut self, to: usize, fate: &Fate, packet: &Frame) {
        if self.chance(fate.loss) {
            return;
        }
        let mut bytes = vnet_hdr::write(packet).to_vec();
        bytes.extend_from_slice(packet.head());
        bytes.extend_from_slice(packet.body());
        if self.chance(fate.corrupt) {
            // Behind the Ethernet header, whose damage no checksum of ours would tell.
            let first = vnet_hdr::LEN + 14;
            let room = (bytes.len() - first.min(bytes.len())).max(1);
            let at = first + (self.next() as usize) % room;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (self.next() % 8);
            }
        }
        if self.chance(fate.duplicate) {
            self.settle(to, fate, &bytes);
        }
        self.settle(to, fate, &bytes);
    }

    /// Sends now, or later.
    fn settle(&mut self, to: usize, fate: &Fate, bytes: &[u8]) {
        let lane = &mut self.lanes[to];
        let now = Instant::now();
        let mut due = now + fate.delay;
        if let Some(rate) = fate.rate.filter(|rate| *rate > 0) {
            if lane.waiting_bytes + bytes.len() > QUEUE_BYTES_MAX {
                return;
            }
            let free_at = lane.free_at.map_or(now, |at| at.max(now));
            let took = Duration::from_nanos(bytes.len() as u64 * 8 * 1_000_000_000 / rate);
            lane.free_at = Some(free_at + took);
            due = free_at + took + fate.delay;
        }
        if due <= now && lane.waiting.is_empty() {
            send(&self.sides[to], bytes);
            return;
        }
        lane.number += 1;
        lane.waiting_bytes += bytes.len();
        lane.waiting.push(Reverse((due, lane.number, bytes.to_vec())));
    }

    fn send_due(&mut self, to: usize) {
        let now = Instant::now();
        let lane = &mut self.lanes[to];
        while lane.waiting.peek().is_some_and(|next| next.0.0 <= now) {
            if let Some(Reverse((_, _, bytes))) = lane.waiting.pop() {
                lane.waiting_bytes -= bytes.len();
                send(&self.sides[to], &bytes);
            }
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A packet socket with virtio headers, bound to one interface.
pub(crate) fn packet_socket(name: &str) -> io::Result<OwnedFd> {
    let index = netlink::index_of(name)?;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: plain system call; the result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just now and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
    // Beyond the system's limit where that is allowed, else as far as it goes.
    let bytes = 32i32 << 20;
    for (force, plain) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        set_option(&socket, libc::SOL_SOCKET, force, &bytes)
            .or_else(|_| set_option(&socket, libc::SOL_SOCKET, plain, &bytes))?;
    }
    // SAFETY: all zero is a valid packet_mreq and a valid sockaddr_ll.
    let mut member: libc::packet_mreq = unsafe { std::mem::zeroed() };
    member.mr_ifindex = index as i32;
    member.mr_type = libc::PACKET_MR_PROMISC as u16;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)?;
    // SAFETY: as above.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the address is valid for the length given.
    let bound = unsafe {
        let len = size_of_val(&address) as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is valid for the length given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One frame with its virtio header; `None` when there is no more for now.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is valid and writable for its length.
    let got = unsafe {
        let at = buffer.as_mut_ptr().cast();
        libc::recv(socket.as_raw_fd(), at, buffer.len(), libc::MSG_DONTWAIT)
    };
    if got >= 0 {
        return Ok(Some(got as usize));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // An interface that is down for now tells so once.
        Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
        _ => Err(error),
    }
}

/// Sends; waits while the interface's queue is full. A frame that cannot be sent is lost, as on
/// any wire.
fn send(socket: &OwnedFd, bytes: &[u8]) {
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
}
