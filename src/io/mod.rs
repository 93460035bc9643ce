//! The only place with file descriptors: trait [`Driver`] and the loop that drives an engine.

use std::io;

use crate::engine::{Instant, Link, LinkCaps, Signal};
use crate::wire::Frame;

/// What one wait brought.
#[derive(Debug, Default)]
pub struct Batch {
    /// Frames in the order of their arrival on each link.
    pub frames: Vec<(Link, Frame)>,
    /// Changes of links.
    pub signals: Vec<(Link, Signal)>,
}

/// The links of one gateway: packet sockets, captures, a simulated world.
pub trait Driver {
    /// The time of the clock that the engine is given.
    fn now(&self) -> Instant;
    /// What each link can do.
    fn caps(&self, link: Link) -> LinkCaps;
    /// Waits for frames or signals until `until`, or until woken; appends to `batch`.
    fn recv(&mut self, batch: &mut Batch, until: Option<Instant>) -> io::Result<()>;
    /// Queues a frame.
    fn send(&mut self, link: Link, frame: Frame);
    /// Sends what is queued.
    fn flush(&mut self) -> io::Result<()>;
}
