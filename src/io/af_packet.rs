//! Three packet sockets as one [`Driver`]: batches, a short spin before sleeping, links that come
//! and go, every trouble counted by its name.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::link_monitor::{self, LinkMonitor};
use super::socket::{OpenError, PacketSocket};
use super::{Batch, Driver, clock};
use crate::engine::{Duration, Instant, Link, LinkCaps, Signal};
use crate::wire::{Frame, build, segmentize};

/// Frames queued for a link that does not take them; what comes on top is dropped and counted.
const QUEUE_FRAMES_MAX: usize = 8192;
/// Batches taken from one link before the others get their turn.
const BATCHES_MAX: usize = 4;
const ETHERNET_BYTES: usize = 14;

/// Choices for [`Links::open`].
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// How long the loop looks for more before it sleeps. Latency for processor time.
    pub spin: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { spin: Duration::from_micros(50) }
    }
}

/// Why a link cannot be used.
#[derive(Debug)]
pub enum LinkError {
    /// Packet sockets are not allowed.
    Permission,
    /// Not an Ethernet interface.
    NotEthernet(String),
    /// The kernel has no PACKET_VNET_HDR.
    VnetHdrUnsupported(io::Error),
    /// Anything else, about an interface.
    Io(String, io::Error),
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Permission => write!(
                f,
                "opening a packet socket is not permitted; run as root, or give the program the \
                 capability: setcap cap_net_raw,cap_net_admin+ep $(command -v shadowvm)"
            ),
            Self::NotEthernet(name) => {
                write!(f, "interface {name} is not Ethernet; name one that is in [links]")
            }
            Self::VnetHdrUnsupported(e) => {
                write!(f, "the kernel refuses PACKET_VNET_HDR ({e}); Linux 4.6 or later is needed")
            }
            Self::Io(name, e) => write!(f, "interface {name}: {e}"),
        }
    }
}

impl std::error::Error for LinkError {}

/// Counters of one link, shared with readers.
#[derive(Debug, Default)]
pub struct LinkStats {
    /// Frames received.
    pub rx_frames: AtomicU64,
    /// Bytes received.
    pub rx_bytes: AtomicU64,
    /// Frames sent.
    pub tx_frames: AtomicU64,
    /// Bytes sent.
    pub tx_bytes: AtomicU64,
    /// Frames that the kernel dropped because they were not taken in time.
    pub kernel_drops: AtomicU64,
    /// Frames with a virtio header that says nothing.
    pub bad_headers: AtomicU64,
    /// Frames that did not fit into the queue of a link that takes none.
    pub queue_drops: AtomicU64,
    /// Frames refused by the kernel, by errno.
    pub send_errors: Mutex<BTreeMap<i32, u64>>,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[derive(Debug)]
struct Port {
    name: String,
    socket: Option<PacketSocket>,
    index: u32,
    caps: LinkCaps,
    has_carrier: bool,
    queue: VecDeque<Frame>,
    is_blocked: bool,
    stats: Arc<LinkStats>,
}

/// The three links of a gateway.
#[derive(Debug)]
pub struct Links {
    ports: [Port; 3],
    monitor: LinkMonitor,
    options: LinkOptions,
    waker: Option<Arc<OwnedFd>>,
    pending: Vec<(Link, Signal)>,
    scratch: Vec<Frame>,
    drops_read_at: Instant,
}

impl Links {
    /// Opens the interfaces `names` (client, a, b). One that does not exist yet is waited for; one
    /// that exists and cannot be used is an error.
    pub fn open(names: [&str; 3], options: LinkOptions) -> Result<Self, LinkError> {
        let monitor = LinkMonitor::open().map_err(|e| LinkError::Io("(netlink)".into(), e))?;
        let ports = names.map(|name| Port {
            name: name.to_owned(),
            socket: None,
            index: 0,
            caps: LinkCaps::default(),
            has_carrier: false,
            queue: VecDeque::new(),
            is_blocked: false,
            stats: Arc::default(),
        });
        let mut links = Self {
            ports,
            monitor,
            options,
            waker: None,
            pending: Vec::new(),
            scratch: Vec::new(),
            drops_read_at: clock::now(),
        };
        for link in Link::ALL {
            let signal = match links.port(link).bring_up()? {
                true => Signal::CarrierUp(links.ports[link.index()].caps),
                false if links.ports[link.index()].socket.is_none() => Signal::LinkGone,
                false => Signal::CarrierDown,
            };
            links.pending.push((link, signal));
        }
        Ok(links)
    }

    /// Counters of each link, for readers.
    pub fn stats(&self) -> [Arc<LinkStats>; 3] {
        [0, 1, 2].map(|i| Arc::clone(&self.ports[i].stats))
    }

    fn port(&mut self, link: Link) -> &mut Port {
        &mut self.ports[link.index()]
    }

    /// Takes what has arrived on all links; whether anything had.
    fn take_frames(&mut self, batch: &mut Batch) -> bool {
        let before = batch.frames.len();
        for link in Link::ALL {
            let port = &mut self.ports[link.index()];
            let Some(socket) = &mut port.socket else { continue };
            for _ in 0..BATCHES_MAX {
                let mut bytes = 0;
                let taken = socket.recv(|frame| {
                    bytes += frame.len() as u64;
                    batch.frames.push((link, frame));
                });
                match taken {
                    Ok((0, _)) => break,
                    Ok((n, bad)) => {
                        add(&port.stats.rx_frames, n as u64);
                        add(&port.stats.rx_bytes, bytes);
                        add(&port.stats.bad_headers, bad as u64);
                    }
                    // ENETDOWN while an interface goes; the monitor tells the rest.
                    Err(e) => {
                        port.note_error(&e);
                        break;
                    }
                }
            }
        }
        batch.frames.len() > before
    }

    /// Takes what the kernel reports about interfaces.
    fn take_signals(&mut self, batch: &mut Batch) {
        batch.signals.append(&mut self.pending);
        let (reports, lost) = self.monitor.recv();
        for link in Link::ALL {
            let port = &mut self.ports[link.index()];
            for report in &reports {
                if report.name == port.name {
                    batch.signals.extend(port.on_report(report).map(|s| (link, s)));
                }
            }
            if lost {
                batch.signals.extend(port.look().map(|s| (link, s)));
            }
        }
    }

    /// Sleeps until something is readable, writable where frames wait, or `until`.
    fn sleep(&self, until: Option<Instant>) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(5);
        for port in &self.ports {
            if let Some(socket) = &port.socket {
                let write =
                    if port.queue.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
                fds.push(PollFd::new(borrow(socket.raw_fd()), PollFlags::POLLIN | write));
            }
        }
        fds.push(PollFd::new(borrow(self.monitor.raw_fd()), PollFlags::POLLIN));
        if let Some(waker) = &self.waker {
            fds.push(PollFd::new(waker.as_fd(), PollFlags::POLLIN));
        }
        let timeout = until.map(|at| TimeSpec::from_duration(at.since(clock::now())));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether another thread has left a request.
    fn is_woken(&self) -> bool {
        let Some(waker) = &self.waker else { return false };
        let mut count = [0u8; 8];
        nix::unistd::read(waker.as_fd(), &mut count).is_ok()
    }

    fn read_drops(&mut self, now: Instant) {
        if now.since(self.drops_read_at) < Duration::from_secs(1) {
            return;
        }
        self.drops_read_at = now;
        for port in &self.ports {
            if let Some(socket) = &port.socket {
                add(&port.stats.kernel_drops, socket.take_drops());
            }
        }
    }
}

/// A descriptor of this driver's own, for one call to poll.
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the sockets live in `self`, which the caller holds for the whole call.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

impl Driver for Links {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn caps(&self, link: Link) -> LinkCaps {
        self.ports[link.index()].caps
    }

    fn wake_on(&mut self, waker: Arc<OwnedFd>) {
        self.waker = Some(waker);
    }

    fn recv(&mut self, batch: &mut Batch, until: Option<Instant>) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.take_signals(batch);
            return Ok(());
        }
        let spin_end = clock::now() + self.options.spin;
        loop {
            let got = self.take_frames(batch);
            let now = clock::now();
            self.read_drops(now);
            if got || until.is_some_and(|at| at <= now) || self.is_woken() {
                self.take_signals(batch);
                return Ok(());
            }
            if now < spin_end {
                std::thread::yield_now();
                continue;
            }
            self.sleep(until)?;
            self.take_signals(batch);
            if !batch.signals.is_empty() {
                // What arrived before the link went still counts.
                self.take_frames(batch);
                return Ok(());
            }
            if self.ports.iter().any(|p| p.is_blocked) {
                self.flush()?;
            }
        }
    }

    fn send(&mut self, link: Link, frame: Frame) {
        let port = &mut self.ports[link.index()];
        if port.socket.is_none() {
            return; // counted by the engine as a failed server's
        }
        if port.queue.len() >= QUEUE_FRAMES_MAX {
            add(&port.stats.queue_drops, 1);
            return;
        }
        let caps = port.caps;
        let is_long = frame.offload().gso.is_none()
            && frame.len() > usize::from(caps.mtu) + ETHERNET_BYTES + 8;
        if is_long {
            port.queue.extend(build::fragments(frame, usize::from(caps.mtu)));
            return;
        }
        segmentize::for_link(frame, caps.has_gso, caps.has_csum, &mut self.scratch);
        port.queue.extend(self.scratch.drain(..));
    }

    fn flush(&mut self) -> io::Result<()> {
        for port in &mut self.ports {
            port.flush();
        }
        Ok(())
    }
}

impl Port {
    /// Opens the interface if it exists; whether it has its carrier.
    fn bring_up(&mut self) -> Result<bool, LinkError> {
        let Some(found) = link_monitor::interface(&self.name) else { return Ok(false) };
        let named = |e| LinkError::Io(self.name.clone(), e);
        if !found.is_ethernet {
            return Err(LinkError::NotEthernet(self.name.clone()));
        }
        link_monitor::set_up(&self.name).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => LinkError::Permission,
            _ => named(e),
        })?;
        let socket = PacketSocket::open(found.index).map_err(|e| match e {
            OpenError::Permission => LinkError::Permission,
            OpenError::VnetHdrUnsupported(e) => LinkError::VnetHdrUnsupported(e),
            OpenError::Io(e) => named(e),
        })?;
        self.socket = Some(socket);
        self.index = found.index;
        self.caps = LinkCaps { mtu: found.mtu, has_gso: true, has_csum: true };
        // Being set up may have brought the carrier only now.
        let now = link_monitor::interface(&self.name);
        self.has_carrier = now.is_some_and(|i| i.has_carrier);
        Ok(self.has_carrier)
    }

    /// The interface was removed, came back, or changed its carrier.
    fn on_report(&mut self, report: &link_monitor::LinkReport) -> Option<Signal> {
        if report.is_gone {
            return (report.index == self.index).then(|| self.close()).flatten();
        }
        if report.index != self.index || self.socket.is_none() {
            return self.look();
        }
        self.set_carrier(report.has_carrier)
    }

    /// Asks for the present state.
    fn look(&mut self) -> Option<Signal> {
        let Some(found) = link_monitor::interface(&self.name) else { return self.close() };
        if found.index == self.index && self.socket.is_some() {
            return self.set_carrier(found.has_carrier);
        }
        let was_up = self.has_carrier;
        self.socket = None;
        self.queue.clear();
        match self.bring_up() {
            Ok(true) => Some(Signal::CarrierUp(self.caps)),
            Ok(false) => was_up.then_some(Signal::CarrierDown),
            Err(_) => self.close(),
        }
    }

    fn set_carrier(&mut self, has_carrier: bool) -> Option<Signal> {
        if has_carrier == self.has_carrier {
            return None;
        }
        self.has_carrier = has_carrier;
        Some(match has_carrier {
            true => Signal::CarrierUp(self.caps),
            false => Signal::CarrierDown,
        })
    }

    fn close(&mut self) -> Option<Signal> {
        self.queue.clear();
        self.has_carrier = false;
        self.index = 0;
        self.socket.take().map(|_| Signal::LinkGone)
    }

    /// Sends what is queued, as far as the kernel takes it.
    fn flush(&mut self) {
        self.is_blocked = false;
        while !self.queue.is_empty() {
            let Some(socket) = &self.socket else { return self.queue.clear() };
            let frames: Vec<&Frame> = self.queue.iter().take(32).collect();
            let lens: Vec<usize> = frames.iter().map(|f| f.len()).collect();
            match socket.send(&frames) {
                Ok(n) => {
                    add(&self.stats.tx_frames, n as u64);
                    add(&self.stats.tx_bytes, lens[..n].iter().sum::<usize>() as u64);
                    self.queue.drain(..n.max(1));
                }
                Err(e) if is_full(&e) => {
                    self.is_blocked = true;
                    return;
                }
                Err(e) => {
                    // This frame cannot be sent; the next one may.
                    self.note_error(&e);
                    self.queue.pop_front();
                }
            }
        }
    }

    fn note_error(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        if let Ok(mut errors) = self.stats.send_errors.lock() {
            *errors.entry(errno).or_default() += 1;
        }
    }
}

/// The kernel takes no more for the moment.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

impl AsRawFd for Links {
    fn as_raw_fd(&self) -> RawFd {
        self.monitor.raw_fd()
    }
}
