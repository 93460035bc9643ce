//! The link to a virtual machine: a unix datagram socket, one raw frame a datagram, as QEMU's
//! `-netdev dgram` has it. It needs no privilege.
//!
//! The gateway's end has a path; the guest of generation N has the same path with `.N` behind it.
//! So the sender's address tells which generation said a frame, and what an earlier one still says
//! is counted and goes no further. Such a socket is never connected: a later guest takes its place
//! by a number.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use crate::wire::train::Train;
use crate::wire::{Frame, Offload};

/// Frames a system call.
const BATCH: usize = 32;
/// Largest frame that a guest without offloads says, with room.
const FRAME_BYTES_MAX: usize = 68 << 10;

/// Which generation of guest is attached to a link; shared with whoever attaches them.
#[derive(Clone, Debug, Default)]
pub struct Attached(Arc<AtomicU32>);

impl Attached {
    /// Attaches the guest of this generation, or nobody.
    pub fn set(&self, generation: Option<NonZeroU32>) {
        self.0.store(generation.map_or(0, NonZeroU32::get), Ordering::Release);
    }

    /// Who is attached.
    pub fn get(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.0.load(Ordering::Acquire))
    }
}

/// Where the guest of a generation has its end of the link at `path`; `QemuSetup::link` in
/// `sync/qemu/setup.rs`, which does not import this layer, tells it the guest.
pub fn guest_path(path: &Path, generation: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{generation}"));
    name.into()
}

/// The gateway's end.
#[derive(Debug)]
pub struct DatagramSocket {
    socket: UnixDatagram,
    path: PathBuf,
    attached: Attached,
    /// The guest that is attached, and its address.
    peer: Option<(NonZeroU32, PathBuf)>,
    buffer: Vec<u8>,
}

impl DatagramSocket {
    /// Binds the link at `path`; what an earlier gateway left there is replaced.
    pub fn open(path: &Path, attached: Attached) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        match path.symlink_metadata() {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("there is a file that is no socket")),
            Err(_) => {}
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        let buffer = vec![0; FRAME_BYTES_MAX];
        Ok(Self { socket, path: path.to_owned(), attached, peer: None, buffer })
    }

    /// For polling.
    pub fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether another guest is attached than the one that frames were last sent to or taken from:
    /// what waits is not for it.
    pub fn has_moved(&self) -> bool {
        self.peer.as_ref().map(|(generation, _)| *generation) != self.attached.get()
    }

    /// The address of the guest that is attached now.
    pub fn peer(&mut self) -> Option<&Path> {
        if self.has_moved() {
            let of = |at: NonZeroU32| (at, guest_path(&self.path, at.get()));
            self.peer = self.attached.get().map(of);
        }
        self.peer.as_ref().map(|(_, path)| path.as_path())
    }

    /// Takes up to one batch of datagrams; how many there were, and how many of them somebody said
    /// who is not attached.
    pub fn recv(&mut self, mut frame: impl FnMut(Frame)) -> io::Result<(usize, usize)> {
        let mut late = 0;
        for taken in 0..BATCH {
            let (len, from) = match self.socket.recv_from(&mut self.buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((taken, late));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let peer = self.peer();
            if peer.is_some() && from.as_pathname() == peer {
                let bytes = Bytes::copy_from_slice(&self.buffer[..len]);
                frame(Frame::from_wire(bytes, Offload::default()));
            } else {
                late += 1;
            }
        }
        Ok((BATCH, late))
    }

    /// Sends frames in order, as many as the guest takes in one call; returns how many were taken.
    /// `Err` is about the first frame; `NotConnected`: nobody is attached.
    pub fn send<'a>(&mut self, trains: impl Iterator<Item = &'a Train>) -> io::Result<usize> {
        let Some(peer) = self.peer() else { return Err(io::ErrorKind::NotConnected.into()) };
        let (mut address, address_len) = address(peer)?;
        // SAFETY: mmsghdr and iovec are plain old data for which all zeroes is a valid value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut parts: [[libc::iovec; 2]; BATCH] = unsafe { mem::zeroed() };
        let mut count = 0;
        // Without offloads a train is one frame.
        for (i, train) in trains.take(BATCH).enumerate() {
            let frame = train.frame();
            for (part, piece) in parts[i].iter_mut().zip([frame.head(), frame.body()]) {
                part.iov_base = piece.as_ptr().cast_mut().cast();
                part.iov_len = piece.len();
            }
            let header = &mut messages[i].msg_hdr;
            header.msg_name = ptr(&mut address);
            header.msg_namelen = address_len;
            header.msg_iov = parts[i].as_mut_ptr();
            header.msg_iovlen = 2;
            count = i + 1;
        }
        // SAFETY: every pointer in `messages` refers to memory that outlives the call; the kernel
        // only reads it, so the casts from shared slices are sound.
        let n = unsafe {
            let flags = libc::MSG_DONTWAIT as _;
            libc::sendmmsg(self.raw_fd(), messages.as_mut_ptr(), count as _, flags)
        };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
    }
}

fn ptr(address: &mut libc::sockaddr_un) -> *mut libc::c_void {
    std::ptr::from_mut(address).cast()
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_encoded_bytes();
    // SAFETY: sockaddr_un is plain old data for which all zeroes is a valid value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too long"));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, len as libc::socklen_t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8) -> Frame {
        let mut bytes = vec![first; 60];
        bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        Frame::from_wire(bytes.into(), Offload::default())
    }

    struct Bench {
        _dir: tempfile::TempDir,
        link: PathBuf,
        attached: Attached,
        ours: DatagramSocket,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let (link, attached) = (dir.path().join("a"), Attached::default());
        let ours = DatagramSocket::open(&link, attached.clone()).expect("a link");
        Bench { _dir: dir, link, attached, ours }
    }

    fn guest(bench: &Bench, generation: u32) -> UnixDatagram {
        let socket = UnixDatagram::bind(guest_path(&bench.link, generation)).expect("its end");
        socket.set_nonblocking(true).expect("a socket");
        socket
    }

    #[test]
    fn only_the_attached_generation_is_heard_and_the_others_are_counted() {
        let mut bench = bench();
        let (old, new) = (guest(&bench, 1), guest(&bench, 2));
        let mut heard = Vec::new();
        for (generation, says, counted) in [(0, &old, (1, 1)), (1, &old, (1, 0)), (2, &old, (1, 1))]
        {
            bench.attached.set(NonZeroU32::new(generation));
            says.send_to(&[generation as u8; 60], &bench.link).expect("room");
            let got = bench.ours.recv(|frame| heard.push(frame.to_vec()[0])).expect("a socket");
            assert_eq!(got, counted, "attached {generation}");
        }
        new.send_to(&[9; 60], &bench.link).expect("room");
        assert_eq!(bench.ours.recv(|frame| heard.push(frame.to_vec()[0])).ok(), Some((1, 0)));
        assert_eq!(heard, [1, 9]);
    }

    #[test]
    fn a_full_guest_takes_no_more_and_says_so() {
        let mut bench = bench();
        let nobody = bench.ours.send([Train::from(frame(1))].iter()).expect_err("nobody is there");
        assert_eq!(nobody.kind(), io::ErrorKind::NotConnected);
        let theirs = guest(&bench, 7);
        bench.attached.set(NonZeroU32::new(7));
        let trains: Vec<Train> = (0..BATCH as u8).map(|i| Train::from(frame(i))).collect();
        let mut sent = 0;
        let error = loop {
            match bench.ours.send(trains.iter()) {
                Ok(n) => sent += n,
                Err(error) => break error,
            }
            assert!(sent < 1_000_000, "the queue has no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut got = 0;
        let mut buffer = [0; 100];
        while let Ok(len) = theirs.recv(&mut buffer) {
            assert_eq!((len, buffer[0]), (60, trains[got % BATCH].frame().to_vec()[0]));
            got += 1;
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_link_takes_the_place_of_an_earlier_one_but_not_of_a_file() {
        let mut bench = bench();
        let again = DatagramSocket::open(&bench.link, bench.attached.clone()).expect("a link");
        bench.ours = again;
        let file = bench.link.with_extension("file");
        std::fs::write(&file, "mine").expect("a file");
        assert!(DatagramSocket::open(&file, Attached::default()).is_err());
        assert_eq!(std::fs::read(&file).expect("it is still there"), b"mine");
    }
}
