//! Frames of a bench's own making, so many a second, from the place of a host.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::super::stage::StageError;
use crate::io::link_monitor;
use crate::io::socket::{BATCH, PacketSocket};
use crate::lab::world::HOST_INTERFACE;
use crate::lab::{HostId, World};
use crate::wire::Frame;
use crate::wire::train::Train;

/// Sends what `frame` makes of a running number, `rate` a second if the machine can, until told to
/// stop; how many a second it was.
pub(super) fn pour(
    world: &World,
    host: HostId,
    rate: u32,
    stop: &AtomicBool,
    frame: impl Fn(u64) -> Frame + Sync,
) -> Result<f64, StageError> {
    let refused = |source| StageError::Io { what: "sending frames", source };
    world.enter(host, || {
        let found = link_monitor::interface(HOST_INTERFACE);
        let index = found.ok_or_else(|| refused(io::ErrorKind::NotFound.into()))?.index;
        let socket = PacketSocket::open(index);
        let socket = socket.map_err(|e| refused(io::Error::other(format!("{e:?}"))))?;
        let (began, mut sent) = (Instant::now(), 0u64);
        while !stop.load(Relaxed) {
            let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            let batch = due.saturating_sub(sent).min(BATCH as u64);
            if batch < BATCH as u64 {
                std::thread::sleep(Duration::from_secs_f64(BATCH as f64 / f64::from(rate)));
            }
            let frames: Vec<_> = (sent..sent + batch).map(|n| Train::from(frame(n))).collect();
            match socket.send(frames.iter()) {
                Ok(n) => sent += n as u64,
                // The queue is full: the machine cannot send more.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                Err(e) => return Err(refused(e)),
            }
        }
        Ok(sent as f64 / began.elapsed().as_secs_f64())
    })?
}

/// A number that looks like chance, the same for the same `n`.
pub(super) const fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    n ^ (n >> 29)
}
