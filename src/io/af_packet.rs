//! Three links as one [`Driver`], each an interface's packet socket or the socket of a virtual
//! machine: batches, a short spin before sleeping, links that come and go, every trouble counted by
//! its name.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::datagram::{Attached, DatagramSocket};
use super::link_monitor::{self, LinkMonitor};
use super::socket::{self, OpenError, PacketSocket};
use super::{Barrier, Batch, Driver, clock};
use crate::engine::{Duration, Instant, Link, LinkCaps, Signal};
use crate::wire::train::{self, Train};
use crate::wire::{Frame, Mac, build, segmentize};

/// Frames queued for a link that does not take them; what comes on top is dropped and counted.
const QUEUE_FRAMES_MAX: usize = 8192;
/// Batches taken from one link before the others get their turn.
const BATCHES_MAX: usize = 4;
const ETHERNET_BYTES: usize = 14;
/// A frame that the kernel had no memory for (ENOBUFS) is tried again after this long: the socket
/// itself is writable, so that waiting for it would not be waiting.
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// A guest's queue is ten frames long, and nothing tells when there is room in it again: its end is
/// an address and no connection.
const GUEST_RETRY_AFTER: Duration = Duration::from_micros(200);
/// While frames keep coming, requests and changes of interfaces are looked for this often.
const POLL_EVERY: Duration = Duration::from_micros(100);
const DROPS_EVERY: Duration = Duration::from_millis(200);

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

/// What a link is.
#[derive(Clone, Debug)]
pub enum LinkSpec {
    /// The interface of this name.
    Interface(String),
    /// A socket at this path, and the guest attached to it. Whoever attaches guests also tells the
    /// engine of their coming and going.
    Guest(PathBuf, Attached),
}

impl From<&str> for LinkSpec {
    fn from(name: &str) -> Self {
        Self::Interface(name.to_owned())
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
    /// A guest's link cannot be made.
    Socket(PathBuf, io::Error),
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
            Self::Socket(path, e) => write!(
                f,
                "the link {} cannot be made: {e}; name a path in a directory of the gateway's own",
                path.display()
            ),
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
    /// Frames of a guest that is not attached any more, or not yet.
    pub late_frames: AtomicU64,
    /// Frames refused by the kernel, by errno.
    pub send_errors: Mutex<BTreeMap<i32, u64>>,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[derive(Debug)]
enum Socket {
    Packet(PacketSocket),
    Guest(DatagramSocket),
}

impl Socket {
    fn raw_fd(&self) -> RawFd {
        match self {
            Self::Packet(socket) => socket.raw_fd(),
            Self::Guest(socket) => socket.raw_fd(),
        }
    }
}

#[derive(Debug)]
struct Port {
    spec: LinkSpec,
    socket: Option<Socket>,
    index: u32,
    caps: LinkCaps,
    has_carrier: bool,
    queue: VecDeque<Train>,
    retry_at: Option<Instant>,
    barrier: Barrier,
    stats: Arc<LinkStats>,
}

/// What a look at the descriptors found.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    readable: [bool; 3],
    writable: [bool; 3],
    has_reports: bool,
    is_woken: bool,
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
    /// When the other descriptors were looked at last.
    polled_at: Instant,
}

impl Links {
    /// Opens the links (client, a, b). An interface that does not exist yet is waited for; one that
    /// exists and cannot be used is an error.
    pub fn open<S: Into<LinkSpec>>(links: [S; 3], options: LinkOptions) -> Result<Self, LinkError> {
        let monitor = LinkMonitor::open().map_err(|e| LinkError::Io("(netlink)".into(), e))?;
        let ports = links.map(|link| Port {
            spec: link.into(),
            socket: None,
            index: 0,
            caps: LinkCaps::default(),
            has_carrier: false,
            queue: VecDeque::new(),
            retry_at: None,
            barrier: Barrier::Open,
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
            polled_at: clock::now(),
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

    /// Takes what has arrived on the links that are readable.
    fn take_frames(&mut self, readable: [bool; 3], batch: &mut Batch) {
        for link in Link::ALL {
            let port = &mut self.ports[link.index()];
            let is_read = readable[link.index()] && port.is_heard();
            let Some(socket) = port.socket.as_mut().filter(|_| is_read) else { continue };
            for _ in 0..BATCHES_MAX {
                let mut bytes = 0;
                let take = |frame: Frame| {
                    bytes += frame.len() as u64;
                    batch.frames.push((link, frame));
                };
                let (taken, why): (_, fn(&LinkStats) -> &AtomicU64) = match socket {
                    Socket::Packet(socket) => (socket.recv(take), |stats| &stats.bad_headers),
                    Socket::Guest(socket) => (socket.recv(take), |stats| &stats.late_frames),
                };
                match taken {
                    Ok((n, refused)) => {
                        add(&port.stats.rx_frames, n as u64);
                        add(&port.stats.rx_bytes, bytes);
                        add(why(&port.stats), refused as u64);
                        if n < socket::BATCH {
                            break;
                        }
                    }
                    // ENETDOWN while an interface goes; the monitor tells the rest.
                    Err(e) => {
                        port.note_error(&e);
                        break;
                    }
                }
            }
        }
    }

    /// Takes what the kernel reports about interfaces.
    fn take_signals(&mut self, batch: &mut Batch) {
        let (reports, lost) = self.monitor.recv();
        for link in Link::ALL {
            let port = &mut self.ports[link.index()];
            for report in &reports {
                if matches!(&port.spec, LinkSpec::Interface(name) if *name == report.name) {
                    batch.signals.extend(port.on_report(report).map(|s| (link, s)));
                }
            }
            if lost {
                batch.signals.extend(port.look().map(|s| (link, s)));
            }
        }
    }

    /// Waits until something is readable, writable where frames wait, or `limit` is over (none:
    /// as long as it takes; zero: a look).
    fn poll(&self, limit: Option<Duration>) -> io::Result<Ready> {
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        // A negative descriptor is passed over by the kernel.
        let port = |port: &Port| match &port.socket {
            Some(_) if !port.is_heard() => entry(-1, 0),
            Some(socket) if !port.is_waiting() || port.retry_at.is_some() => {
                entry(socket.raw_fd(), libc::POLLIN)
            }
            Some(socket) => entry(socket.raw_fd(), libc::POLLIN | libc::POLLOUT),
            None => entry(-1, 0),
        };
        let [client, a, b] = self.ports.each_ref().map(port);
        let waker = self.waker.as_ref().map_or(-1, |waker| waker.as_raw_fd());
        let monitor = entry(self.monitor.raw_fd(), libc::POLLIN);
        let mut fds = [client, a, b, monitor, entry(waker, libc::POLLIN)];
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
        });
        let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: `fds` and `limit` outlive the call and have the lengths given; a null timeout
        // and a null signal mask are allowed (ppoll(2)).
        let n =
            unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit, ptr::null()) };
        if n < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(Ready::default()),
                _ => Err(error),
            };
        }
        // An error of a socket is fetched by reading it.
        let readable = |i: usize| fds[i].revents & !libc::POLLOUT != 0;
        let writable = |i: usize| fds[i].revents & libc::POLLOUT != 0;
        Ok(Ready {
            readable: [0, 1, 2].map(readable),
            writable: [0, 1, 2].map(writable),
            has_reports: readable(3),
            is_woken: readable(4),
        })
    }

    /// Sends what waits on links that take frames again.
    fn resume(&mut self, writable: [bool; 3], now: Instant) {
        for (port, writable) in self.ports.iter_mut().zip(writable) {
            if writable || port.retry_at.is_some_and(|at| at <= now) {
                port.flush();
            }
        }
    }

    /// How long to sleep at most: until the caller's time, or a frame's that is tried again.
    fn sleep_limit(&self, until: Option<Instant>, now: Instant) -> Option<Duration> {
        let retries = self.ports.iter().filter_map(|port| port.retry_at);
        retries.chain(until).min().map(|at| at.since(now))
    }

    fn read_drops(&mut self, now: Instant) {
        if now.since(self.drops_read_at) < DROPS_EVERY {
            return;
        }
        self.drops_read_at = now;
        for port in &self.ports {
            if let Some(Socket::Packet(socket)) = &port.socket {
                add(&port.stats.kernel_drops, socket.take_drops());
            }
        }
    }
}

/// The address of the gateway on an interface with `mac`: another one than that, so that the
/// kernel beneath takes no frame for its own, and always the same. Nobody else flips that bit.
fn own_mac(mac: [u8; 6]) -> Mac {
    const LOCALLY_ADMINISTERED: u8 = 0x02;
    let [first, rest @ ..] = mac;
    let [a, b, c, d, e] = rest;
    Mac([first ^ LOCALLY_ADMINISTERED, a, b, c, d, e])
}

/// Takes a wake; another one may follow.
fn clear(waker: Option<&Arc<OwnedFd>>) {
    let mut count = [0u8; 8];
    // Nothing to take means that another look took it.
    let _ = waker.map(|waker| nix::unistd::read(waker.as_fd(), &mut count));
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

    fn set_barrier(&mut self, link: Link, barrier: Barrier) {
        let port = self.port(link);
        port.barrier = barrier;
        if barrier == Barrier::Emptied {
            port.drop_queue();
            port.drop_unheard();
        }
    }

    fn recv(&mut self, batch: &mut Batch, until: Option<Instant>) -> io::Result<()> {
        if !self.pending.is_empty() {
            batch.signals.append(&mut self.pending);
            return Ok(());
        }
        let mut now = clock::now();
        let spin_end = now + self.options.spin;
        loop {
            let is_spinning = now < spin_end;
            let is_blocked = self.ports.iter().any(Port::is_waiting);
            let ready = if is_spinning && !is_blocked && now < self.polled_at + POLL_EVERY {
                // Asking for frames is cheaper than asking whether there are some.
                Ready { readable: [true; 3], ..Ready::default() }
            } else {
                self.polled_at = now;
                let limit = match is_spinning {
                    true => Some(Duration::ZERO),
                    false => self.sleep_limit(until, now),
                };
                self.poll(limit)?
            };
            self.take_frames(ready.readable, batch);
            if ready.has_reports {
                self.take_signals(batch);
            }
            if ready.is_woken {
                clear(self.waker.as_ref());
            }
            now = clock::now();
            self.resume(ready.writable, now);
            self.read_drops(now);
            let has_input = !batch.frames.is_empty() || !batch.signals.is_empty();
            if has_input || ready.is_woken || until.is_some_and(|at| at <= now) {
                return Ok(());
            }
            if is_spinning {
                std::thread::yield_now();
            }
        }
    }

    fn send(&mut self, link: Link, frame: Frame) {
        let port = &mut self.ports[link.index()];
        port.forget_earlier_guest();
        if port.socket.is_none() || port.queue.len() >= QUEUE_FRAMES_MAX {
            add(&port.stats.queue_drops, 1);
            return;
        }
        let caps = port.caps;
        let is_long = frame.offload().gso.is_none()
            && frame.len() > usize::from(caps.mtu) + ETHERNET_BYTES + 8;
        if is_long {
            let fragments = build::fragments(frame, usize::from(caps.mtu));
            port.queue.extend(fragments.into_iter().map(Train::from));
            return;
        }
        segmentize::for_link(frame, caps.has_gso, caps.has_csum, &mut self.scratch);
        for frame in self.scratch.drain(..) {
            port.enqueue(frame);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        for port in &mut self.ports {
            port.flush();
        }
        Ok(())
    }
}

impl Port {
    /// Opens the interface if it exists, or the guest's link; whether it has its carrier.
    fn bring_up(&mut self) -> Result<bool, LinkError> {
        let name = match &self.spec {
            LinkSpec::Interface(name) => name.clone(),
            LinkSpec::Guest(path, attached) => {
                let socket = DatagramSocket::open(path, attached.clone());
                let socket = socket.map_err(|e| LinkError::Socket(path.clone(), e))?;
                self.socket = Some(Socket::Guest(socket));
                return Ok(false);
            }
        };
        let Some(found) = link_monitor::interface(&name) else { return Ok(false) };
        let named = |e| LinkError::Io(name.clone(), e);
        if !found.is_ethernet {
            return Err(LinkError::NotEthernet(name));
        }
        link_monitor::set_up(&name).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => LinkError::Permission,
            _ => named(e),
        })?;
        let socket = PacketSocket::open(found.index).map_err(|e| match e {
            OpenError::Permission => LinkError::Permission,
            OpenError::VnetHdrUnsupported(e) => LinkError::VnetHdrUnsupported(e),
            OpenError::Io(e) => named(e),
        })?;
        self.socket = Some(Socket::Packet(socket));
        self.index = found.index;
        let mac = Some(own_mac(found.mac));
        self.caps = LinkCaps { mtu: found.mtu, has_gso: true, has_csum: true, mac };
        // Being set up may have brought the carrier only now.
        let now = link_monitor::interface(&name);
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
        // Its MTU may be what has changed.
        if let Some(found) = link_monitor::interface(&report.name) {
            self.caps.mtu = found.mtu;
        }
        self.set_carrier(report.has_carrier)
    }

    /// Asks for the present state of an interface.
    fn look(&mut self) -> Option<Signal> {
        let LinkSpec::Interface(name) = &self.spec else { return None };
        let Some(found) = link_monitor::interface(name) else { return self.close() };
        if found.index == self.index && self.socket.is_some() {
            return self.set_carrier(found.has_carrier);
        }
        let was_up = self.has_carrier;
        self.socket = None;
        self.drop_queue();
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
        if has_carrier {
            return Some(Signal::CarrierUp(self.caps));
        }
        // What waits is of the time before: nobody wants it when the carrier is back.
        self.drop_queue();
        Some(Signal::CarrierDown)
    }

    /// What waits for a guest is not for the one that took its place.
    fn forget_earlier_guest(&mut self) {
        if let Some(Socket::Guest(socket)) = &mut self.socket
            && socket.has_moved()
        {
            let _ = socket.peer();
            self.drop_queue();
        }
    }

    /// Whether what the server says is heard now.
    fn is_heard(&self) -> bool {
        matches!(self.barrier, Barrier::Open | Barrier::Unspoken)
    }

    /// Whether frames wait for the kernel to take them.
    fn is_waiting(&self) -> bool {
        self.barrier == Barrier::Open && !self.queue.is_empty()
    }

    /// What has arrived and was not heard will never be.
    fn drop_unheard(&mut self) {
        loop {
            let taken = match &mut self.socket {
                Some(Socket::Packet(socket)) => socket.recv(drop),
                Some(Socket::Guest(socket)) => socket.recv(drop),
                None => return,
            };
            let Ok((n, _)) = taken else { return };
            add(&self.stats.late_frames, n as u64);
            if n < socket::BATCH {
                return;
            }
        }
    }

    fn drop_queue(&mut self) {
        add(&self.stats.queue_drops, self.queue.len() as u64);
        self.queue.clear();
        self.retry_at = None;
    }

    fn close(&mut self) -> Option<Signal> {
        self.drop_queue();
        self.has_carrier = false;
        self.index = 0;
        self.socket.take().map(|_| Signal::LinkGone)
    }

    /// Queues a frame, joined to what it follows.
    fn enqueue(&mut self, frame: Frame) {
        match self.caps.has_gso && self.caps.has_csum {
            true => train::enqueue(&mut self.queue, frame),
            false => self.queue.push_back(Train::from(frame)),
        }
    }

    /// Sends what is queued, as far as the kernel takes it.
    fn flush(&mut self) {
        self.retry_at = None;
        self.forget_earlier_guest();
        while self.is_waiting() {
            let sent = match &mut self.socket {
                None => return self.drop_queue(),
                Some(Socket::Packet(socket)) => socket.send(self.queue.iter()),
                Some(Socket::Guest(socket)) => socket.send(self.queue.iter()),
            };
            match sent {
                Ok(n) => {
                    let bytes: usize = self.queue.iter().take(n).map(Train::bytes).sum();
                    add(&self.stats.tx_frames, n as u64);
                    add(&self.stats.tx_bytes, bytes as u64);
                    self.queue.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let is_guest = matches!(self.socket, Some(Socket::Guest(_)));
                    self.retry_at = is_guest.then(|| clock::now() + GUEST_RETRY_AFTER);
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return self.drop_queue(),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.note_error(&e);
                    self.retry_at = Some(clock::now() + RETRY_AFTER);
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

impl AsRawFd for Links {
    fn as_raw_fd(&self) -> RawFd {
        self.monitor.raw_fd()
    }
}

#[cfg(test)]
mod tests;
