//! Links, addresses, routes and queues of the network namespace that the caller is in, by route
//! netlink (RFC 3549) and the two ioctls that it lacks. Needs no `ip`, no `tc`, no runtime: it is
//! used in processes that were forked from threaded ones.
//!
//! It never remembers anything: each call asks the kernel and waits for its answer.

#![allow(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Peer description inside the veth kind's data (`VETH_INFO_PEER` of linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// Of linux/if_link.h, inside `IFLA_AF_SPEC`.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`: no link-local address by itself.
const ADDR_GEN_MODE_NONE: u8 = 1;
/// `RTAX_ADVMSS` and `RTAX_INITCWND` of linux/rtnetlink.h.
const RTAX_ADVMSS: u16 = 8;
const RTAX_INITCWND: u16 = 11;
/// `TCA_KIND` and `TCA_OPTIONS` of linux/rtnetlink.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `TC_H_ROOT`.
const TC_H_ROOT: u32 = u32::MAX;

/// What a route tells TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteMetrics {
    /// Largest segment announced to the peer, in bytes.
    pub advmss: Option<u32>,
    /// First congestion window, in segments.
    pub initcwnd: Option<u32>,
}

/// A route-netlink socket of the current network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the namespace that the thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: plain system call; the result is checked before use.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor made just now and owned by nobody else.
        Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(fd) }, sequence: 0 })
    }

    /// Makes a veth pair: `name` here, `peer` in the namespace of `peer_netns`.
    pub(crate) fn add_veth(
        &mut self,
        (name, mac): (&str, Mac),
        (peer, peer_mac): (&str, Mac),
        peer_netns: RawFd,
    ) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, CREATE);
        m.link_header(0, 0, 0);
        m.text(libc::IFLA_IFNAME, name);
        m.bytes(libc::IFLA_ADDRESS, &mac);
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.bytes(libc::IFLA_INFO_KIND, b"veth");
            m.nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.link_header(0, 0, 0);
                    m.text(libc::IFLA_IFNAME, peer);
                    m.bytes(libc::IFLA_ADDRESS, &peer_mac);
                    m.bytes(libc::IFLA_NET_NS_FD, &peer_netns.to_ne_bytes());
                });
            });
        });
        self.ask(m)
    }

    /// Makes a bridge without ports.
    pub(crate) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, CREATE);
        m.link_header(0, 0, 0);
        m.text(libc::IFLA_IFNAME, name);
        m.nest(libc::IFLA_LINKINFO, |m| m.bytes(libc::IFLA_INFO_KIND, b"bridge"));
        self.ask(m)
    }

    /// Makes a link a port of a bridge.
    pub(crate) fn set_master(&mut self, name: &str, bridge: &str) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.link_header(index_of(name)?, 0, 0);
        m.bytes(libc::IFLA_MASTER, &index_of(bridge)?.to_ne_bytes());
        self.ask(m)
    }

    /// Deletes a link, and with it its peer.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_DELLINK, 0);
        m.link_header(index_of(name)?, 0, 0);
        self.ask(m)
    }

    /// Sets a link up or down.
    pub(crate) fn set_up(&mut self, name: &str, is_up: bool) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        let up = libc::IFF_UP as u32;
        m.link_header(index_of(name)?, if is_up { up } else { 0 }, up);
        self.ask(m)
    }

    /// Sets the MTU, in bytes of an IP packet.
    pub(crate) fn set_mtu(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.link_header(index_of(name)?, 0, 0);
        m.bytes(libc::IFLA_MTU, &mtu.to_ne_bytes());
        self.ask(m)
    }

    /// Sets the Ethernet address.
    pub(crate) fn set_mac(&mut self, name: &str, mac: Mac) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.link_header(index_of(name)?, 0, 0);
        m.bytes(libc::IFLA_ADDRESS, &mac);
        self.ask(m)
    }

    /// Keeps IPv6 from giving the link an address of its own.
    pub(crate) fn no_link_local(&mut self, name: &str) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.link_header(index_of(name)?, 0, 0);
        m.nest(libc::IFLA_AF_SPEC, |m| {
            m.nest(libc::AF_INET6 as u16, |m| {
                m.bytes(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
            });
        });
        self.ask(m)
    }

    /// Adds an address without a route. `dad`: whether IPv6 looks for a duplicate first.
    pub(crate) fn add_address(
        &mut self,
        name: &str,
        address: IpAddr,
        prefix: u8,
        dad: bool,
    ) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWADDR, CREATE);
        let mut flags = libc::IFA_F_NOPREFIXROUTE;
        if address.is_ipv6() && !dad {
            flags |= libc::IFA_F_NODAD;
        }
        m.raw(&[family(address), prefix, 0, 0]);
        m.raw(&index_of(name)?.to_ne_bytes());
        m.bytes(libc::IFA_LOCAL, &octets(address));
        m.bytes(libc::IFA_ADDRESS, &octets(address));
        m.bytes(libc::IFA_FLAGS, &flags.to_ne_bytes());
        self.ask(m)
    }

    /// Adds a route to `to`/`prefix` by the link, through `via` if there is one.
    pub(crate) fn add_route(
        &mut self,
        name: &str,
        (to, prefix): (IpAddr, u8),
        via: Option<IpAddr>,
        metrics: RouteMetrics,
    ) -> io::Result<()> {
        let mut m = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        let scope = if via.is_none() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
        let table = libc::RT_TABLE_MAIN;
        m.raw(&[family(to), prefix, 0, 0, table, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST]);
        m.raw(&0u32.to_ne_bytes());
        m.bytes(libc::RTA_DST, &octets(to));
        m.bytes(libc::RTA_OIF, &index_of(name)?.to_ne_bytes());
        if let Some(via) = via {
            m.bytes(libc::RTA_GATEWAY, &octets(via));
        }
        m.nest(libc::RTA_METRICS, |m| {
            for (kind, value) in [(RTAX_ADVMSS, metrics.advmss), (RTAX_INITCWND, metrics.initcwnd)]
            {
                if let Some(value) = value {
                    m.bytes(kind, &value.to_ne_bytes());
                }
            }
        });
        self.ask(m)
    }

    /// Makes everything that leaves by the link vanish (a first-in-first-out queue of no length),
    /// or ends that.
    pub(crate) fn drop_outgoing(&mut self, name: &str, is_on: bool) -> io::Result<()> {
        let (kind, flags) = match is_on {
            true => (libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_REPLACE),
            false => (libc::RTM_DELQDISC, 0),
        };
        let mut m = Message::new(kind, flags);
        m.raw(&[0; 4]);
        m.raw(&index_of(name)?.to_ne_bytes());
        m.raw(&0u32.to_ne_bytes());
        m.raw(&TC_H_ROOT.to_ne_bytes());
        m.raw(&0u32.to_ne_bytes());
        if is_on {
            m.text(TCA_KIND, "pfifo");
            m.bytes(TCA_OPTIONS, &0u32.to_ne_bytes());
        }
        match self.ask(m) {
            // Nothing to end.
            Err(e) if !is_on && e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Sends a request and waits for the kernel's answer to it.
    fn ask(&mut self, mut message: Message) -> io::Result<()> {
        self.sequence += 1;
        let text = message.finish(self.sequence);
        let fd = self.socket.as_raw_fd();
        // SAFETY: the buffer is valid for its length; an unbound netlink socket sends to the
        // kernel.
        let sent = unsafe { libc::send(fd, text.as_ptr().cast(), text.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = [0u8; 8192];
        loop {
            // SAFETY: the buffer is valid and writable for its length.
            let got = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
            if got < 0 {
                return Err(io::Error::last_os_error());
            }
            let word = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok());
            let kind = u16::from_ne_bytes([answer[4], answer[5]]);
            let sequence = word(8).map(u32::from_ne_bytes);
            if kind != libc::NLMSG_ERROR as u16 || sequence != Some(self.sequence) {
                continue;
            }
            return match word(16).map(i32::from_ne_bytes) {
                Some(0) => Ok(()),
                Some(code) => Err(io::Error::from_raw_os_error(-code)),
                None => Err(io::Error::other("the kernel's answer was cut short")),
            };
        }
    }
}

/// Index of an interface of the current namespace.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// Switches TCP segmentation offload of a link.
pub(crate) fn set_tso(name: &str, is_on: bool) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STSO: u32 = 0x1f;
    let mut value = Value { command: ETHTOOL_STSO, data: u32::from(is_on) };
    // SAFETY: plain system call; the result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just now and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the request and the value it points to outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The flags of a request that makes something new.
const CREATE: libc::c_int = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A request under construction: `nlmsghdr`, then whatever is added, each part padded to 4 bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: libc::c_int) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut m = Self(vec![0; 16]);
        m.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        m.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        m
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// An `ifinfomsg`.
    fn link_header(&mut self, index: u32, flags: u32, change: u32) {
        self.raw(&[0; 4]);
        self.raw(&index.to_ne_bytes());
        self.raw(&flags.to_ne_bytes());
        self.raw(&change.to_ne_bytes());
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let len = (value.len() + 4) as u16;
        self.raw(&[len.to_ne_bytes(), kind.to_ne_bytes()].concat());
        self.raw(value);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.raw(&[[0; 2], kind.to_ne_bytes()].concat());
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}
