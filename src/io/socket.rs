//! One packet socket with the virtio header: frames in and out in batches, super-frames whole.
//!
//! The recipe: protocol 0 so that nothing arrives before the bind; PACKET_VNET_HDR first;
//! PACKET_IGNORE_OUTGOING; promiscuous; buffers as large as the system allows (packet(7)).
#![allow(unsafe_code)]

use std::array;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use arrayvec::ArrayVec;
use bytes::{Bytes, BytesMut};

use crate::wire::train::{PIECES_MAX, Train};
use crate::wire::{Frame, vnet_hdr};

/// Frames a system call.
pub const BATCH: usize = 32;
/// Largest frame: 64 KiB of IP, Ethernet, two VLAN tags, some room.
const FRAME_BYTES_MAX: usize = 68 << 10;
/// Parts of a message: its virtio header, a frame's headers, its payload and what was joined to it.
const PARTS_MAX: usize = 2 + PIECES_MAX;
/// Up to this size a frame is copied out, and the buffer stays.
const COPY_BYTES_MAX: usize = 4096;

const SOCKET_BUFFER_BYTES: libc::c_int = 32 << 20;

/// Memory that a received frame of `len` bytes keeps in use as long as anybody has it.
pub const fn memory_of(len: usize) -> usize {
    if len <= COPY_BYTES_MAX { len } else { FRAME_BYTES_MAX }
}

const SOL_PACKET: libc::c_int = 263;
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_MR_PROMISC: u16 = 1;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PacketMreq {
    ifindex: libc::c_int,
    kind: u16,
    alen: u16,
    address: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AuxData {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Statistics {
    packets: u32,
    drops: u32,
}

/// Room for one control message with [`AuxData`], aligned as cmsg(3) wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

/// Why the socket could not be made.
#[derive(Debug)]
pub enum OpenError {
    /// CAP_NET_RAW is missing.
    Permission,
    /// The kernel refused the virtio header.
    VnetHdrUnsupported(io::Error),
    /// Anything else.
    Io(io::Error),
}

/// One interface's packet socket.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    buffers: Vec<BytesMut>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PacketSocket {
    /// Opens a socket on the interface `index`.
    pub fn open(index: u32) -> Result<Self, OpenError> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain system call without pointers; the result is checked below.
        let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if raw < 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => OpenError::Permission,
                _ => OpenError::Io(error),
            });
        }
        // SAFETY: `raw` is a descriptor that was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let one: libc::c_int = 1;
        set(&fd, SOL_PACKET, PACKET_VNET_HDR, &one).map_err(OpenError::VnetHdrUnsupported)?;
        set(&fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one).map_err(OpenError::Io)?;
        set(&fd, SOL_PACKET, PACKET_AUXDATA, &one).map_err(OpenError::Io)?;
        for (force, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            // Without CAP_NET_ADMIN in the first user namespace only the plain one is allowed, and
            // it goes as far as rmem_max.
            if set(&fd, libc::SOL_SOCKET, force, &SOCKET_BUFFER_BYTES).is_err() {
                set(&fd, libc::SOL_SOCKET, plain, &SOCKET_BUFFER_BYTES).map_err(OpenError::Io)?;
            }
        }
        bind(&fd, index).map_err(OpenError::Io)?;
        let promisc = PacketMreq {
            ifindex: index as libc::c_int,
            kind: PACKET_MR_PROMISC,
            ..PacketMreq::default()
        };
        set(&fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promisc).map_err(OpenError::Io)?;
        let buffers = (0..BATCH).map(|_| BytesMut::with_capacity(FRAME_BYTES_MAX)).collect();
        Ok(Self { fd, buffers })
    }

    /// For polling.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes up to one batch of frames; the number of frames and of headers that said nothing.
    /// An empty queue is `Ok((0, 0))`.
    pub fn recv(&mut self, mut frame: impl FnMut(Frame)) -> io::Result<(usize, usize)> {
        let mut headers = [[0u8; vnet_hdr::LEN]; BATCH];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
        let mut parts: [[libc::iovec; 2]; BATCH] = array::from_fn(|i| {
            let header = (headers[i].as_mut_ptr().cast(), vnet_hdr::LEN);
            let frame = (self.buffers[i].as_mut_ptr().cast(), FRAME_BYTES_MAX);
            [header, frame].map(|(iov_base, iov_len)| libc::iovec { iov_base, iov_len })
        });
        let mut messages: [libc::mmsghdr; BATCH] = array::from_fn(|i| {
            let mut message = message(&mut parts[i]);
            message.msg_hdr.msg_control = controls[i].as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = mem::size_of::<Control>() as _;
            message
        });
        // SAFETY: every pointer in `messages` refers to a buffer that lives until the call
        // returns, with its true length; `buffers` have FRAME_BYTES_MAX bytes of capacity.
        let n = unsafe {
            let flags = libc::MSG_DONTWAIT as _;
            libc::recvmmsg(self.raw_fd(), messages.as_mut_ptr(), BATCH as _, flags, ptr::null_mut())
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok((0, 0)),
                _ => Err(error),
            };
        }
        let mut bad = 0;
        for i in 0..n as usize {
            let len = (messages[i].msg_len as usize).saturating_sub(vnet_hdr::LEN);
            let bytes = self.take(i, len.min(FRAME_BYTES_MAX));
            match vnet_hdr::read(&headers[i], bytes.len()) {
                Ok(offload) => match vlan_of(&messages[i].msg_hdr) {
                    None => frame(Frame::from_wire(bytes, offload)),
                    Some(tag) => frame(with_vlan(&bytes, offload, tag)),
                },
                Err(_) => bad += 1,
            }
        }
        Ok((n as usize, bad))
    }

    /// The first `len` bytes of a filled buffer.
    fn take(&mut self, i: usize, len: usize) -> Bytes {
        let buffer = &mut self.buffers[i];
        // SAFETY: the kernel has written `len` bytes, at most the capacity, into the buffer.
        unsafe { buffer.set_len(len) };
        if len <= COPY_BYTES_MAX {
            let bytes = Bytes::copy_from_slice(buffer);
            buffer.clear();
            return bytes;
        }
        mem::replace(buffer, BytesMut::with_capacity(FRAME_BYTES_MAX)).freeze()
    }

    /// Sends frames in order, as many as the kernel takes in one call; returns how many were
    /// taken. `Err` is about the first frame.
    pub fn send<'a>(&self, trains: impl Iterator<Item = &'a Train>) -> io::Result<usize> {
        // Filled as far as it is needed: to clear all of it costs more than a small frame does.
        let mut headers = [[0u8; vnet_hdr::LEN]; BATCH];
        let mut parts = ArrayVec::<libc::iovec, { BATCH * PARTS_MAX }>::new();
        let mut ends = ArrayVec::<usize, BATCH>::new();
        for (train, header) in trains.zip(&mut headers) {
            let frame = train.frame();
            *header = vnet_hdr::write(frame);
            let first: [&[u8]; 3] = [header, frame.head(), frame.body()];
            let pieces = first.into_iter().chain(train.more().iter().map(|piece| &piece[..]));
            parts.extend(pieces.take(PARTS_MAX).map(|piece| libc::iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            }));
            ends.push(parts.len());
        }
        let (mut rest, mut from) = (&mut parts[..], 0);
        let mut messages = ArrayVec::<libc::mmsghdr, BATCH>::new();
        for end in ends {
            let (own, others) = rest.split_at_mut(end - from);
            messages.push(message(own));
            (rest, from) = (others, end);
        }
        // SAFETY: every pointer in `messages` refers to memory that outlives the call; the kernel
        // only reads it, so the cast from a shared slice is sound.
        let n = unsafe {
            let flags = libc::MSG_DONTWAIT as _;
            libc::sendmmsg(self.raw_fd(), messages.as_mut_ptr(), messages.len() as _, flags)
        };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
    }

    /// Frames that the kernel dropped since the last call because nobody took them in time.
    pub fn take_drops(&self) -> u64 {
        let mut stats = Statistics::default();
        let mut len = mem::size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: `stats` is a tpacket_stats with its true length.
        let done = unsafe {
            libc::getsockopt(
                self.raw_fd(),
                SOL_PACKET,
                PACKET_STATISTICS,
                ptr::from_mut(&mut stats).cast(),
                &raw mut len,
            )
        };
        if done == 0 { u64::from(stats.drops) } else { 0 }
    }
}

/// A message of these parts, without an address or control data.
fn message(parts: &mut [libc::iovec]) -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain old data for which all zeroes is a valid value.
    let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
    message.msg_hdr.msg_iov = parts.as_mut_ptr();
    message.msg_hdr.msg_iovlen = parts.len() as _;
    message
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a plain C value of exactly the length given.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(fd: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain old data for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    // SAFETY: `address` is a sockaddr_ll with its true length.
    let done = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The VLAN tag that the kernel took off the frame.
fn vlan_of(header: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: `header` was filled by recvmmsg; CMSG_FIRSTHDR stays within msg_controllen.
    let first = unsafe { libc::CMSG_FIRSTHDR(header).as_ref()? };
    if first.cmsg_level != SOL_PACKET || first.cmsg_type != PACKET_AUXDATA {
        return None;
    }
    // SAFETY: the kernel wrote a tpacket_auxdata behind this header; it may be unaligned.
    let aux: AuxData = unsafe { ptr::read_unaligned(libc::CMSG_DATA(first).cast()) };
    let tpid = match aux.status & TP_STATUS_VLAN_TPID_VALID {
        0 => 0x8100,
        _ => aux.vlan_tpid,
    };
    (aux.status & TP_STATUS_VLAN_VALID != 0).then_some((tpid, aux.vlan_tci))
}

/// The frame with its tag where it was on the wire; positions behind it move by 4.
fn with_vlan(bytes: &Bytes, offload: crate::wire::Offload, tag: (u16, u16)) -> Frame {
    let split = bytes.len().min(12);
    let mut whole = BytesMut::with_capacity(bytes.len() + 4);
    whole.extend_from_slice(&bytes[..split]);
    whole.extend_from_slice(&tag.0.to_be_bytes());
    whole.extend_from_slice(&tag.1.to_be_bytes());
    whole.extend_from_slice(&bytes[split..]);
    Frame::from_wire(whole.freeze(), offload.after_insertion(4))
}
