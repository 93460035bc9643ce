//! One JSON value and its file descriptors, as one record on a `SOCK_SEQPACKET` socket.
//!
//! Invariants: a record is whole or an error; descriptors that arrive are close-on-exec.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, recvmsg, sendmsg, socket,
};
use serde::{Serialize, de::DeserializeOwned};

/// Largest record, in bytes: an environment and a few arguments fit with room to spare.
const RECORD_BYTES_MAX: usize = 160 << 10;
/// Most descriptors with one record.
const FDS_MAX: usize = 8;
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC;

/// Listens for records at `path`, which must not be there yet.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&listener, Backlog::MAXCONN)?;
    Ok(listener)
}

/// The next connection of a listener.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    loop {
        match accept4(listener.as_raw_fd(), FLAGS) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(own(other?)),
        }
    }
}

/// Connects to a listener.
pub(crate) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
    nix::sys::socket::connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

/// Sends `value` with `fds`. Errors: the peer is gone (`BrokenPipe`), or the record is too large.
pub(crate) fn send<T: Serialize>(
    socket: &OwnedFd,
    value: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    if text.len() > RECORD_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command line is too long"));
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let parts = [IoSlice::new(&text)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one record; `None` when the peer has closed. Blocks unless the socket does not.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &OwnedFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0; RECORD_BYTES_MAX];
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut fds = Vec::new();
    let len = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(own));
            }
        }
        message.bytes
    };
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&text[..len])?, fds)))
}

/// A descriptor that the kernel has just made for us.
#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: a system call has just made this descriptor for this process, and nobody else
    // knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
