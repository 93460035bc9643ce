//! A TCP of our own on an interface, for clients whose addresses must stay as they were captured.
//!
//! Reading order: this file (what others ask for, and the loop between the interface and the hosts)
//! · [`host`] (one client) · [`stream`] (one connection as tokio knows it).
//!
//! Each client is a host of its own (smoltcp): it answers for its address on the interface, and
//! resolves its own neighbours. The kernel must own none of the addresses, for it would answer,
//! too; nor does it forward what is sent to them, or its answers would come beside ours.

mod host;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::{self, Duration};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;
use tokio::sync::Notify;
use tokio::time::timeout;

use self::host::{Host, Site};
pub(super) use self::stream::Stream;
use crate::io::link_monitor::interface;
use crate::io::socket::{OpenError, PacketSocket};
use crate::wire::parse::parse;
use crate::wire::train::Train;
use crate::wire::{Frame, NdKind, Offload, Packet, segmentize};

/// Batches of frames taken from the interface before the hosts have their turn.
const BATCHES_MAX: usize = 16;
/// A connection that nobody holds any more has so long to end as it should.
const CLOSING: Duration = Duration::from_secs(5);
/// So many of these are waited for: each has its buffers.
const CLOSING_MAX: usize = 256;
/// Between two tries where the system has no room for more frames.
const NO_ROOM: Duration = Duration::from_millis(1);
/// Ports of doors where the wanted one is taken (RFC 6335: dynamic).
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

/// An interface on which clients speak for themselves.
#[derive(Clone, Debug)]
pub struct Via {
    /// Its name.
    pub interface: String,
    /// Routers to the servers, at most one of each family; without one they are on the
    /// interface's own network.
    pub next_hops: Vec<IpAddr>,
}

/// Why the interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ViaError {
    /// There is none of this name.
    #[error("there is no interface {0} (ip link shows those that there are)")]
    Missing(String),
    /// It is not Ethernet.
    #[error("{0} is no Ethernet interface")]
    NotEthernet(String),
    /// It is down, or nothing is at its other end.
    #[error("{0} is down, or has no carrier (ip link set {0} up)")]
    Down(String),
    /// Packet sockets want CAP_NET_RAW.
    #[error("{0}: packet sockets are not allowed; run as root or with CAP_NET_RAW")]
    Permission(String),
    /// A client's address is one of this machine.
    #[error(
        "{0} is an address of this machine, whose kernel would answer beside the replay; run it \
         elsewhere, or in a network namespace"
    )]
    OwnAddress(IpAddr),
    /// A server's address is one of this machine.
    #[error("the server {0} is on this machine, and not behind an interface: leave --via away")]
    OwnServer(IpAddr),
    /// A client's address is that of a server, or of a router.
    #[error("{0} is a client in the capture and cannot be a server or a router at the same time")]
    Twice(IpAddr),
    /// Both servers are one.
    #[error("{0} is named twice: a client has one connection from its address to a server")]
    OneServer(SocketAddr),
    /// The system refuses.
    #[error("{0}: {1}")]
    System(String, io::Error),
}

/// The clients on one interface.
#[derive(Clone)]
pub(super) struct Stack(Arc<Shared>);

struct Shared {
    net: Mutex<Net>,
    /// Wakes the thread.
    wake: EventFd,
    /// A connection or a door is gone.
    freed: Notify,
}

/// What the lock is about.
struct Net {
    /// The interface's.
    name: String,
    socket: PacketSocket,
    site: Site,
    hosts: BTreeMap<IpAddr, Host>,
    /// Who has something to do now, and who later.
    due: BTreeSet<IpAddr>,
    timers: BTreeSet<(Instant, IpAddr)>,
    timer_of: BTreeMap<IpAddr, Instant>,
    out: VecDeque<Train>,
    /// Connections that there are, from a client to a server; and doors.
    taken: BTreeSet<(SocketAddr, SocketAddr)>,
    doors: BTreeSet<SocketAddr>,
    closing: Vec<Closing>,
    /// What ended it all before its time.
    failure: Option<String>,
    /// The thread waits, and has to be woken for what is new.
    is_waiting: bool,
    is_over: bool,
    began: time::Instant,
}

/// A connection that ends by itself.
struct Closing {
    client: IpAddr,
    handle: SocketHandle,
    ends: Option<(SocketAddr, SocketAddr)>,
    until: time::Instant,
}

/// A place where a client waits for a connection of its server.
pub(super) struct Door {
    stack: Stack,
    at: SocketAddr,
    handle: Option<SocketHandle>,
}

impl Stack {
    /// Opens the interface for `clients` of these servers.
    pub(super) fn open(
        via: &Via,
        clients: &BTreeSet<IpAddr>,
        servers: &[SocketAddr],
    ) -> Result<Self, ViaError> {
        let name = || via.interface.clone();
        let found = interface(&via.interface).ok_or_else(|| ViaError::Missing(name()))?;
        if !found.is_ethernet {
            return Err(ViaError::NotEthernet(name()));
        }
        if !found.has_carrier {
            return Err(ViaError::Down(name()));
        }
        if let [first, second] = servers
            && first == second
        {
            return Err(ViaError::OneServer(*first));
        }
        let others = || servers.iter().map(SocketAddr::ip).chain(via.next_hops.iter().copied());
        if let Some(both) = others().find(|address| clients.contains(address)) {
            return Err(ViaError::Twice(both));
        }
        let system = |error: io::Error| ViaError::System(name(), error);
        for own in nix::ifaddrs::getifaddrs().map_err(|error| system(error.into()))? {
            let address = own.address.and_then(|address| {
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            });
            let Some(address) = address else { continue };
            if clients.contains(&address) {
                return Err(ViaError::OwnAddress(address));
            }
            if others().any(|other| other == address) {
                return Err(ViaError::OwnServer(address));
            }
        }
        let socket = PacketSocket::open(found.index).map_err(|error| match error {
            OpenError::Permission => ViaError::Permission(name()),
            OpenError::VnetHdrUnsupported(error) | OpenError::Io(error) => system(error),
        })?;
        let next_hops = via.next_hops.clone();
        let fd = socket.as_fd().try_clone_to_owned().map_err(system)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|error| system(error.into()))?;
        let stack = Self(Arc::new(Shared {
            net: Mutex::new(Net {
                name: name(),
                socket,
                site: Site { mac: found.mac, mtu: found.mtu.into(), next_hops },
                hosts: BTreeMap::new(),
                due: BTreeSet::new(),
                timers: BTreeSet::new(),
                timer_of: BTreeMap::new(),
                out: VecDeque::new(),
                taken: BTreeSet::new(),
                doors: BTreeSet::new(),
                closing: Vec::new(),
                failure: None,
                is_waiting: false,
                is_over: false,
                began: time::Instant::now(),
            }),
            wake,
            freed: Notify::new(),
        }));
        let driven = stack.clone();
        let thread = thread::Builder::new().name("replay-stack".to_owned());
        thread.spawn(move || driven.drive(&fd)).map_err(system)?;
        Ok(stack)
    }

    /// Connects a client to a server, within `patience` once an earlier connection between the two
    /// has ended, which has a patience of its own.
    pub(super) async fn connect(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Stream> {
        let handle = loop {
            let freed = self.0.freed.notified();
            if let Some(handle) = self.begin(from, to)? {
                break handle;
            }
            freed.await;
        };
        let stream = Stream::new(self.clone(), from.ip(), handle, Some((from, to)));
        timeout(patience, stream.opened()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(stream)
    }

    /// A socket that begins the connection, unless an earlier one is there.
    fn begin(&self, from: SocketAddr, to: SocketAddr) -> io::Result<Option<SocketHandle>> {
        let mut net = self.lock();
        let handle = net.connect(from, to)?;
        self.wake(net);
        Ok(handle)
    }

    /// Lets the client at `wanted` wait for a connection: there, or at another port of its if it
    /// waits there already.
    pub(super) fn open_door(&self, wanted: SocketAddr) -> io::Result<Door> {
        let mut net = self.lock();
        net.check()?;
        check_client(wanted)?;
        let ports = [wanted.port()].into_iter().chain(DYNAMIC_PORTS);
        let mut places = ports.map(|port| SocketAddr::new(wanted.ip(), port));
        let at = places.find(|at| net.doors.insert(*at));
        let at = at.ok_or(io::ErrorKind::AddrInUse)?;
        let handle = net.host(at.ip()).listen(at);
        self.wake(net);
        Ok(Door { stack: self.clone(), at, handle })
    }

    /// A client and the interface that it is on.
    pub(super) fn shown(&self, client: IpAddr) -> String {
        format!("{client} on {}", self.lock().name)
    }

    /// Waits until all connections have ended, or resets those that do not in time; then nobody
    /// answers on the interface any more.
    pub(super) async fn end(&self) {
        let is_settled = async {
            loop {
                let freed = self.0.freed.notified();
                if self.lock().closing.is_empty() {
                    return;
                }
                freed.await;
            }
        };
        // Each of them is given up after this time.
        let _ = timeout(2 * CLOSING, is_settled).await;
        let mut net = self.lock();
        net.is_over = true;
        self.wake(net);
    }

    fn lock(&self) -> MutexGuard<'_, Net> {
        self.0.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a socket; its host is due if that changes anything.
    fn with<R>(
        &self,
        client: IpAddr,
        handle: SocketHandle,
        what: impl FnOnce(&mut tcp::Socket<'static>) -> R,
    ) -> R {
        let mut net = self.lock();
        let socket = net.socket(client, handle);
        let state =
            |socket: &tcp::Socket<'_>| (socket.state(), socket.send_queue(), socket.recv_queue());
        let before = state(socket);
        let result = what(socket);
        if state(socket) != before {
            net.due.insert(client);
            self.wake(net);
        }
        result
    }

    /// Nobody holds this connection any more.
    fn let_go(&self, client: IpAddr, handle: SocketHandle, ends: Option<(SocketAddr, SocketAddr)>) {
        let mut net = self.lock();
        net.socket(client, handle).close();
        net.due.insert(client);
        let until = time::Instant::now() + CLOSING;
        if net.closing.len() >= CLOSING_MAX
            && let Some(oldest) = net.closing.iter_mut().min_by_key(|closing| closing.until)
        {
            oldest.until = time::Instant::now();
        }
        // Where the interface is gone nothing ends in any order.
        if net.failure.is_none() {
            net.closing.push(Closing { client, handle, ends, until });
        }
        self.wake(net);
    }

    /// Something is due.
    fn wake(&self, mut net: MutexGuard<'_, Net>) {
        if std::mem::take(&mut net.is_waiting) {
            // It cannot be full: it is written once for each wait.
            let _ = self.0.wake.write(1);
        }
    }

    /// The thread between the interface and the hosts.
    fn drive(&self, fd: &OwnedFd) {
        loop {
            let turned = {
                let mut net = self.lock();
                let before = net.closing.len();
                let turned = net.turn();
                if net.closing.len() != before {
                    self.0.freed.notify_waiters();
                }
                net.is_waiting = true;
                turned
            };
            let waited = turned.and_then(|wait| {
                let wait = wait.map_or(PollTimeout::MAX, |wait| {
                    // Rounded up: a deadline is met when it is over.
                    PollTimeout::try_from(wait + Duration::from_micros(999))
                        .unwrap_or(PollTimeout::MAX)
                });
                let mut fds = [
                    PollFd::new(fd.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.0.wake.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut fds, wait) {
                    Ok(_) | Err(Errno::EINTR) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            });
            let mut net = self.lock();
            if !std::mem::take(&mut net.is_waiting) {
                // Somebody has woken us.
                let _ = self.0.wake.read();
            }
            if let Err(error) = waited {
                net.fail(&error);
            }
            if net.is_over || net.failure.is_some() {
                self.0.freed.notify_waiters();
                return;
            }
        }
    }
}

impl Net {
    fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some(failure) => Err(io::Error::other(failure.clone())),
            None => Ok(()),
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.began.elapsed().as_micros() as i64)
    }

    /// The host of a client, which has something to do.
    fn host(&mut self, client: IpAddr) -> &mut Host {
        let now = self.now();
        self.due.insert(client);
        self.hosts.entry(client).or_insert_with(|| {
            let seed = RandomState::new().hash_one(client);
            Host::new(&self.site, client, seed, now)
        })
    }

    fn socket(&mut self, client: IpAddr, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.hosts.get_mut(&client).expect("a host stays").socket(handle)
    }

    /// A socket that begins the connection, unless an earlier one is there.
    fn connect(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<Option<SocketHandle>> {
        self.check()?;
        check_client(from)?;
        if from.is_ipv4() != to.is_ipv4() {
            let wanted = if from.is_ipv4() { "an IPv4" } else { "an IPv6" };
            return Err(unusable(format!("{from} needs {wanted} address of the server")));
        }
        if to.port() == 0 {
            return Err(unusable("no server has port 0".to_owned()));
        }
        if !self.taken.insert((from, to)) {
            // Who begins anew has given the earlier connection up.
            let now = time::Instant::now();
            let earlier = self.closing.iter_mut().filter(|c| c.ends == Some((from, to)));
            earlier.for_each(|closing| closing.until = now);
            return Ok(None);
        }
        Ok(self.host(from.ip()).connect(from.port(), to))
    }

    /// Takes what came, does what is due, sends what leaves; the time until more is due.
    fn turn(&mut self) -> io::Result<Option<Duration>> {
        let mut is_more = true;
        for _ in 0..BATCHES_MAX {
            let (hosts, due) = (&mut self.hosts, &mut self.due);
            let (count, _) = self.socket.recv(|frame| deliver(hosts, due, frame))?;
            is_more = count > 0;
            if !is_more {
                break;
            }
        }
        let now = self.now();
        while let Some(&(at, client)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, client));
            self.timer_of.remove(&client);
            self.due.insert(client);
        }
        self.reap();
        for client in std::mem::take(&mut self.due) {
            let Some(host) = self.hosts.get_mut(&client) else { continue };
            let out = &mut self.out;
            let next = host.poll(now, |frame| {
                out.push_back(Train::from(Frame::from_wire(frame.into(), Offload::default())));
            });
            let known = match next {
                Some(at) => self.timer_of.insert(client, at),
                None => self.timer_of.remove(&client),
            };
            if let Some(known) = known {
                self.timers.remove(&(known, client));
            }
            self.timers.extend(next.map(|at| (at, client)));
        }
        self.reap();
        let has_room = self.flush()?;
        let until = |at: Instant| Duration::from_micros((at - self.now()).total_micros());
        let next = self.timers.first().map(|&(at, _)| match at > self.now() {
            true => until(at),
            false => Duration::ZERO,
        });
        let given_up = self.closing.iter().map(|closing| closing.until).min();
        let given_up = given_up.map(|at| at.saturating_duration_since(time::Instant::now()));
        let now = (is_more || !self.due.is_empty()).then_some(Duration::ZERO);
        let again = (!has_room).then_some(NO_ROOM);
        Ok([next, given_up, now, again].into_iter().flatten().min())
    }

    /// Removes connections that have ended, and ends those that do not.
    fn reap(&mut self) {
        let (hosts, due, taken) = (&mut self.hosts, &mut self.due, &mut self.taken);
        self.closing.retain(|closing| {
            let Some(host) = hosts.get_mut(&closing.client) else { return false };
            let socket = host.socket(closing.handle);
            match socket.state() {
                State::Closed | State::TimeWait if !due.contains(&closing.client) => {
                    host.remove(closing.handle);
                    closing.ends.map(|ends| taken.remove(&ends));
                    false
                }
                State::Closed => true,
                _ if closing.until <= time::Instant::now() => {
                    // The reset leaves at the host's next turn.
                    socket.abort();
                    due.insert(closing.client);
                    true
                }
                _ => true,
            }
        });
    }

    /// Sends what it may; whether the system had room for it.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match self.socket.send(self.out.iter()) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The interface is gone.
    fn fail(&mut self, error: &io::Error) {
        self.failure = Some(format!("the interface {} failed: {error}", self.name));
        for socket in self.hosts.values_mut().flat_map(Host::sockets) {
            socket.abort();
        }
        self.closing.clear();
    }
}

/// Whether somebody may speak from there.
fn check_client(client: SocketAddr) -> io::Result<()> {
    let is_host = match client.ip() {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.is_loopback())
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.is_loopback()),
    };
    match is_host && client.port() > 0 {
        true => Ok(()),
        false => Err(unusable(format!("nobody can speak from {client}"))),
    }
}

/// A connection that cannot be.
fn unusable(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Hands a frame to the host that it is for, if it is for one.
fn deliver(hosts: &mut BTreeMap<IpAddr, Host>, due: &mut BTreeSet<IpAddr>, frame: Frame) {
    let Ok(packet) = parse(&frame) else { return };
    if packet.l2().vlans.ids() != (None, None) {
        return;
    }
    let client = match packet {
        Packet::Arp(arp) => arp.target,
        Packet::Nd(nd) => match nd.kind {
            NdKind::Solicit { target, .. } => target,
            _ => nd.l3.dst,
        },
        _ => match packet.l3() {
            Some(l3) => l3.dst,
            None => return,
        },
    };
    let Some(host) = hosts.get_mut(&client) else { return };
    due.insert(client);
    let mut pieces = Vec::new();
    segmentize::for_link(frame, false, false, &mut pieces);
    pieces.iter().for_each(|piece| host.deliver(piece.to_vec()));
}

impl Door {
    /// Where the server finds it.
    pub(super) const fn address(&self) -> SocketAddr {
        self.at
    }

    /// Waits for somebody to come, and says who.
    pub(super) async fn accept(&mut self) -> io::Result<(Stream, Option<IpAddr>)> {
        let client = self.at.ip();
        loop {
            let handle = self.handle.ok_or(io::ErrorKind::AddrNotAvailable)?;
            let came = poll_fn(|cx| {
                self.stack.with(client, handle, |socket| match socket.state() {
                    State::Listen | State::SynReceived => {
                        socket.register_send_waker(cx.waker());
                        Poll::Pending
                    }
                    _ => Poll::Ready(socket.remote_endpoint().map(|end| end.addr)),
                })
            });
            let came = came.await;
            self.stack.lock().check()?;
            let stream = Stream::new(self.stack.clone(), client, handle, None);
            self.handle = self.stack.lock().host(client).listen(self.at);
            if let Some(from) = came {
                return Ok((stream, Some(from.into())));
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            self.stack.let_go(self.at.ip(), handle, None);
        }
        self.stack.lock().doors.remove(&self.at);
    }
}
