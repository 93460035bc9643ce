//! The only place with file descriptors: trait [`Driver`] and the loop that drives an engine.
//!
//! Reading order: [`drive()`] (the loop) · [`af_packet`] (three links as a driver) · [`socket`] (an
//! interface's) · [`datagram`] (a virtual machine's) · [`link_monitor`] (carriers and interfaces
//! that come and go) · [`pcap`] (captures as a driver, and a recorder around any driver) ·
//! [`state_file`] (what outlives the process) · [`writes`] (what another process writes of its
//! memory) · [`privileges`] and [`sandbox`] (what the process
//! gives up) · [`clock`].

pub mod af_packet;
pub mod clock;
pub mod datagram;
pub mod drive;
pub mod link_monitor;
pub mod pcap;
pub mod privileges;
pub mod sandbox;
pub mod socket;
pub mod state_file;
pub mod writes;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use drive::{Inbox, Mailbox, Request, Sink, drive, mailbox};

use crate::engine::{Instant, Link, LinkCaps, Signal};
use crate::wire::Frame;

/// What one wait brought.
#[derive(Debug, Default)]
pub struct Batch {
    /// Frames in the order of their arrival on each link.
    pub frames: Vec<(Link, Frame)>,
    /// Changes of links.
    pub signals: Vec<(Link, Signal)>,
    /// Nothing will ever come again (the end of a capture): the loop ends after this batch.
    pub is_end: bool,
}

/// What a link does with frames while the server behind it is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Barrier {
    /// They come and go.
    #[default]
    Open,
    /// Those for the server wait; what it says is heard.
    Unspoken,
    /// Those for the server wait, and what it says is heard later.
    Still,
    /// What waits both ways belongs to a server that is no more, and is dropped; then as `Still`.
    Emptied,
}

/// The links of one gateway: packet sockets, captures, a simulated world.
pub trait Driver {
    /// The time of the clock that the engine is given.
    fn now(&self) -> Instant;
    /// What each link can do.
    fn caps(&self, link: Link) -> LinkCaps;
    /// A descriptor that ends a wait by becoming readable. A driver that never waits ignores it.
    fn wake_on(&mut self, waker: Arc<OwnedFd>) {
        let _ = waker;
    }
    /// Sets a link's barrier. A driver without servers of its own ignores it.
    fn set_barrier(&mut self, link: Link, barrier: Barrier) {
        let _ = (link, barrier);
    }
    /// Waits for frames or signals until `until`, or until woken; appends to `batch`.
    fn recv(&mut self, batch: &mut Batch, until: Option<Instant>) -> io::Result<()>;
    /// Queues a frame.
    fn send(&mut self, link: Link, frame: Frame);
    /// Sends what is queued.
    fn flush(&mut self) -> io::Result<()>;
}
