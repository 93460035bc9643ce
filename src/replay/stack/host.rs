//! One client's host: its address, its TCP, and the queues between it and the interface.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{Socket, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// Room of a connection for what was not read, and for what was not acknowledged.
const BUFFER_BYTES: usize = 64 << 10;
const ETHERNET_BYTES: usize = 14;

/// What the hosts of one interface have in common.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) mac: [u8; 6],
    pub(super) mtu: usize,
    /// Routers to the servers; without one they are on the interface's own network.
    pub(super) next_hops: Vec<IpAddr>,
}

/// A client on the interface.
pub(super) struct Host {
    interface: Interface,
    queues: Queues,
    sockets: SocketSet<'static>,
}

impl Host {
    pub(super) fn new(site: &Site, address: IpAddr, seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(site.mac)));
        config.random_seed = seed;
        let mut queues = Queues { rx: VecDeque::new(), tx: Vec::new(), mtu: site.mtu };
        let mut interface = Interface::new(config, &mut queues, now);
        let router = site.next_hops.iter().find(|hop| hop.is_ipv4() == address.is_ipv4());
        let own_bits = if address.is_ipv4() { 32 } else { 128 };
        let bits = if router.is_some() { own_bits } else { 0 };
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address.into(), bits)).expect("a new interface has room");
        });
        // A new table has room.
        let _ = match router {
            Some(IpAddr::V4(hop)) => interface.routes_mut().add_default_ipv4_route(*hop).is_ok(),
            Some(IpAddr::V6(hop)) => interface.routes_mut().add_default_ipv6_route(*hop).is_ok(),
            None => true,
        };
        Self { interface, queues, sockets: SocketSet::new(Vec::new()) }
    }

    /// A socket that begins a connection from `port`.
    pub(super) fn connect(&mut self, port: u16, to: SocketAddr) -> Option<SocketHandle> {
        let mut socket = socket();
        socket.connect(self.interface.context(), to, port).ok()?;
        Some(self.sockets.add(socket))
    }

    /// A socket that waits for a connection to `at`.
    pub(super) fn listen(&mut self, at: SocketAddr) -> Option<SocketHandle> {
        let mut socket = socket();
        socket.listen(at).ok()?;
        Some(self.sockets.add(socket))
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn sockets(&mut self) -> impl Iterator<Item = &mut tcp::Socket<'static>> {
        self.sockets.iter_mut().filter_map(|(_, socket)| match socket {
            Socket::Tcp(socket) => Some(socket),
            _ => None,
        })
    }

    pub(super) fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    /// A frame for this host arrived, whole and verified.
    pub(super) fn deliver(&mut self, frame: Vec<u8>) {
        self.queues.rx.push_back(frame);
    }

    /// Does what is due; hands out what leaves, and says when more is due.
    pub(super) fn poll(&mut self, now: Instant, mut out: impl FnMut(Vec<u8>)) -> Option<Instant> {
        while self.interface.poll(now, &mut self.queues, &mut self.sockets)
            == PollResult::SocketStateChanged
            || !self.queues.rx.is_empty()
        {}
        self.queues.tx.drain(..).for_each(&mut out);
        self.interface.poll_at(now, &self.sockets)
    }
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_congestion_control(tcp::CongestionControl::Cubic);
    socket
}

/// Between a host and the interface.
struct Queues {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    mtu: usize,
}

struct Arrived(Vec<u8>);
struct Leaving<'q>(&'q mut Vec<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Queues {
    type RxToken<'q> = Arrived;
    type TxToken<'q> = Leaving<'q>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Arrived(frame), Leaving(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + ETHERNET_BYTES;
        // What is delivered was verified before, or vouched for by the kernel.
        caps.checksum.ipv4 = Checksum::Tx;
        caps.checksum.tcp = Checksum::Tx;
        caps.checksum.icmpv4 = Checksum::Tx;
        caps.checksum.icmpv6 = Checksum::Tx;
        caps
    }
}
