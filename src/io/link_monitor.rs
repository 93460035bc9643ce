//! Which interfaces are there, and whether they have their carrier: asked once, then told by the
//! kernel (rtnetlink(7), group LINK). Sets up the gateway's own interfaces.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

const RTMGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const IFF_NOARP: u32 = 0x80;
const IFF_LOWER_UP: u32 = 0x1_0000;
/// What one read takes; the kernel's own messages are 8 KiB at most (32 KiB in a dump).
const REPORTS_BYTES: usize = 32 << 10;
const NLMSG_HEADER: usize = 16;
const IFINFO: usize = 16;

/// One report about one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkReport {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Up, with its carrier.
    pub has_carrier: bool,
    /// It does not exist any more (here).
    pub is_gone: bool,
}

/// Hears of interfaces in the network namespace in which it was opened.
#[derive(Debug)]
pub struct LinkMonitor {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl LinkMonitor {
    /// Begins to listen.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain system call without pointers; the result is checked below.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a descriptor that was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: sockaddr_nl is plain old data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = RTMGRP_LINK;
        // SAFETY: `address` is a sockaddr_nl with its true length.
        let done = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                ptr::from_ref(&address).cast(),
                mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, buffer: vec![0; REPORTS_BYTES] })
    }

    /// For polling.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reports that have arrived. A full socket buffer (ENOBUFS) means that some were lost: the
    /// caller then asks for the present state of its interfaces.
    pub fn recv(&mut self) -> (Vec<LinkReport>, bool) {
        let mut reports = Vec::new();
        let mut is_lossy = false;
        loop {
            let (to, len) = (self.buffer.as_mut_ptr().cast(), self.buffer.len());
            // SAFETY: `to` is valid for `len` bytes; the socket does not block.
            let n = unsafe { libc::recv(self.fd.as_raw_fd(), to, len, 0) };
            if n >= 0 {
                parse(&self.buffer[..n as usize], &mut reports);
                continue;
            }
            match io::Error::last_os_error().raw_os_error() {
                // Some were lost; what was not stands behind them.
                Some(libc::ENOBUFS) => is_lossy = true,
                Some(libc::EINTR) => {}
                _ => return (reports, is_lossy),
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn parse(mut bytes: &[u8], reports: &mut Vec<LinkReport>) {
    while let (Some(len), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let len = len as usize;
        if len < NLMSG_HEADER || len > bytes.len() {
            return;
        }
        if matches!(kind, RTM_NEWLINK | RTM_DELLINK) {
            reports.extend(report(&bytes[NLMSG_HEADER..len], kind == RTM_DELLINK));
        }
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
}

fn report(message: &[u8], is_gone: bool) -> Option<LinkReport> {
    let index = u32_at(message, 4)?;
    let flags = u32_at(message, 8)?;
    let has_carrier = flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0;
    let mut attributes = message.get(IFINFO..)?;
    while let (Some(len), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let len = usize::from(len);
        if len < 4 || len > attributes.len() {
            return None;
        }
        if kind == IFLA_IFNAME {
            let name = attributes[4..len].split(|&b| b == 0).next()?;
            let name = String::from_utf8_lossy(name).into_owned();
            return Some(LinkReport { name, index, has_carrier, is_gone });
        }
        attributes = &attributes[len.next_multiple_of(4).min(attributes.len())..];
    }
    None
}

/// What an interface is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its MTU.
    pub mtu: u16,
    /// Up, with its carrier.
    pub has_carrier: bool,
    /// An Ethernet interface (ARPHRD_ETHER).
    pub is_ethernet: bool,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

/// Asks the kernel about the interface `name`; `None` if there is none.
pub fn interface(name: &str) -> Option<Interface> {
    let (fd, mut request) = request(name).ok()?;
    let index = call(&fd, libc::SIOCGIFINDEX as _, &mut request).ok().map(|()| {
        // SAFETY: SIOCGIFINDEX has filled this field of the union.
        unsafe { request.ifr_ifru.ifru_ifindex }
    })?;
    call(&fd, libc::SIOCGIFMTU as _, &mut request).ok()?;
    // SAFETY: SIOCGIFMTU has filled this field of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    call(&fd, libc::SIOCGIFHWADDR as _, &mut request).ok()?;
    // SAFETY: SIOCGIFHWADDR has filled this field of the union.
    let hardware = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mac = std::array::from_fn(|i| hardware.sa_data[i] as u8);
    let flags = flags(&fd, &mut request).ok()?;
    Some(Interface {
        index: index as u32,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        has_carrier: flags & IFF_UP != 0 && flags & IFF_RUNNING != 0,
        is_ethernet: hardware.sa_family == libc::ARPHRD_ETHER,
        mac,
    })
}

/// Makes the interface a link of the gateway: up, and our own kernel silent on it (no IPv6, no
/// ARP), so that it neither answers nor asks in anybody's name.
pub fn set_up(name: &str) -> io::Result<()> {
    // Where /proc/sys is not ours to write, IPv6 stays as it is; `doctor` says so.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
    let (fd, mut request) = request(name)?;
    let flags = flags(&fd, &mut request)? | IFF_UP | IFF_NOARP;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    call(&fd, libc::SIOCSIFFLAGS as _, &mut request)
}

fn request(name: &str) -> io::Result<(OwnedFd, libc::ifreq)> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: plain system call without pointers; the result is checked below.
    let raw = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a descriptor that was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: ifreq is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok((fd, request))
}

fn flags(fd: &OwnedFd, request: &mut libc::ifreq) -> io::Result<u32> {
    call(fd, libc::SIOCGIFFLAGS as _, request)?;
    // SAFETY: SIOCGIFFLAGS has filled this field of the union.
    Ok(u32::from(unsafe { request.ifr_ifru.ifru_flags } as u16))
}

fn call(fd: &OwnedFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: `request` is an ifreq, which all SIOC*IF* calls take.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), number, ptr::from_mut(request)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
