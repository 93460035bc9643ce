//! The processes that hold a world: a keeper, the init of the world's pid namespace, and one init
//! for each host with its own network, pid and mount namespace.
//!
//! ```text
//! caller ── keeper (user namespace, waits) ── world init ┬─ host init ── programs
//!                                                        └─ host init ── programs
//! ```
//! Each init answers requests on its own socket. The world's init leaves when the caller is gone
//! (its pidfd becomes readable, or the socket closes), and with the init of a pid namespace the
//! kernel kills everything inside; nothing else has to be cleaned up.
//!
//! These processes are forked from a caller that may have threads. They therefore take no lock of
//! the standard library that another thread may have held: no printing, no environment, no
//! runtime.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getgid, getuid, pipe2};
use serde::{Deserialize, Serialize};

use super::impair::{self, Impairment};
use super::message;
use super::netlink::{self, Mac, Netlink, RouteMetrics};

/// What can be asked of an init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// World init: make a host. The answer carries the socket of its init, which says
    /// [`Reply::Hello`] first.
    NewHost,
    /// World init: remove this folder when the world ends.
    RemoveAtEnd { folder: PathBuf },
    /// Make a veth pair; carries the network namespace of the peer.
    AddVeth { name: String, mac: Mac, peer: String, peer_mac: Mac },
    /// Delete a link and its peer.
    DeleteLink { name: String },
    /// Give an interface its settings and set it up.
    Configure(Interface),
    /// Set an interface up or down.
    SetUp { name: String, is_up: bool },
    /// Make frames vanish at an interface while the carrier stays.
    Cut { name: String, outgoing: bool, incoming: bool, mac: Mac },
    /// Join interfaces by a bridge of the kernel.
    AddBridge { name: String, ports: Vec<String> },
    /// Write a sysctl.
    Sysctl { key: String, value: String },
    /// Run a program; carries its three standard streams.
    Spawn(Program),
    /// Run an impairment forwarder between two interfaces; carries its control pipe.
    Impair { up: String, down: String, impairment: Impairment },
    /// Open a packet socket on an interface; the answer carries it.
    PacketSocket { name: String },
    /// Signal every process of the host but its init.
    SignalAll { signal: i32 },
    /// Signal one process, by its number inside the host.
    SignalOne { pid: i32, signal: i32 },
    /// List the processes of the host.
    Processes,
}

/// What an init answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The first word of an init; a host's carries its network namespace and its own pidfd.
    Hello,
    /// Done.
    Done,
    /// A program runs; carries its pidfd and a pipe that will bring its wait status.
    Spawned { pid: i32 },
    /// Processes of the host: number and command line.
    Processes(Vec<(i32, String)>),
    /// Not done.
    Failed { what: String, errno: Option<i32> },
}

/// An interface of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mtu: Option<u32>,
    pub(crate) has_tso: bool,
    /// Whether IPv6 gives it an address of its own and looks for duplicates.
    pub(crate) dad: bool,
    pub(crate) addresses: Vec<(std::net::IpAddr, u8)>,
    /// Destination, prefix, gateway.
    pub(crate) routes: Vec<(std::net::IpAddr, u8, Option<std::net::IpAddr>)>,
    pub(crate) metrics: RouteMetrics,
}

/// A program to run, with its whole environment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) dir: Option<OsString>,
}

/// A world's processes as the caller holds them.
#[derive(Debug)]
pub(crate) struct Started {
    /// The socket of the world's init.
    pub(crate) control: OwnedFd,
    /// The caller's child; it ends when everything in the world has ended.
    pub(crate) keeper: Pid,
}

/// Starts the keeper and the world's init, in a user namespace of its own if `as_user`.
pub(crate) fn start(as_user: bool) -> io::Result<Started> {
    let (ours, theirs) = pair()?;
    let caller = pidfd_of(std::process::id() as i32)?;
    let ids = (getuid().as_raw(), getgid().as_raw());
    // SAFETY: the child touches only what the module's head allows after a fork.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Started { control: ours, keeper: child }),
        ForkResult::Child => in_child(move || {
            // Close the caller's end without dropping it twice: everything else is closed too.
            std::mem::forget(ours);
            keep_only(&[theirs.as_raw_fd(), caller.as_raw_fd()])?;
            match keeper(as_user, ids, theirs.try_clone()?, caller) {
                Err((what, e)) => {
                    let errno = e.raw_os_error();
                    message::send(&theirs, &Reply::Failed { what: what.into(), errno }, &[])
                }
                Ok(world) => {
                    drop(theirs);
                    while matches!(waitpid(world, None), Err(nix::errno::Errno::EINTR)) {}
                    Ok(())
                }
            }
        }),
    }
}

/// A connected pair of record sockets.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

type Named<T> = Result<T, (&'static str, io::Error)>;

fn named<T, E: Into<io::Error>>(what: &'static str, result: Result<T, E>) -> Named<T> {
    result.map_err(|e| (what, e.into()))
}

fn keeper(as_user: bool, (uid, gid): (u32, u32), control: OwnedFd, caller: OwnedFd) -> Named<Pid> {
    named("setsid", nix::unistd::setsid())?;
    if as_user {
        named("a user namespace", unshare(CloneFlags::CLONE_NEWUSER))?;
        // Without this the kernel does not let an ordinary user map a group.
        named("/proc/self/setgroups", std::fs::write("/proc/self/setgroups", "deny"))?;
        named("/proc/self/uid_map", std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")))?;
        named("/proc/self/gid_map", std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")))?;
    }
    named("a pid namespace", unshare(CloneFlags::CLONE_NEWPID))?;
    // SAFETY: this process has one thread.
    match named("fork", unsafe { fork() })? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => in_child(move || {
            let hello = message::send(&control, &Reply::Hello, &[]);
            hello.and_then(|()| Init::new(control, Some(caller))?.live())
        }),
    }
}

/// Makes a host's init; returns the caller's end of its socket.
fn new_host() -> io::Result<OwnedFd> {
    let (ours, theirs) = pair()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        // The process between ends at once; its child is then a child of the world's init.
        ForkResult::Parent { .. } => Ok(ours),
        ForkResult::Child => in_child(move || {
            std::mem::forget(ours);
            keep_only(&[theirs.as_raw_fd()])?;
            let spaces =
                CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
            let result = named("network, pid and mount namespaces", unshare(spaces))
                // SAFETY: this process has one thread.
                .and_then(|()| named("fork", unsafe { fork() }));
            match result {
                Ok(ForkResult::Parent { .. }) => Ok(()),
                Ok(ForkResult::Child) => in_child(move || host(theirs)),
                Err((what, e)) => {
                    let errno = e.raw_os_error();
                    message::send(&theirs, &Reply::Failed { what: what.into(), errno }, &[])
                }
            }
        }),
    }
}

/// The life of a host's init.
fn host(control: OwnedFd) -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    // The host's own view of processes and interfaces. Where a container refuses these mounts,
    // programs see the outer ones, which only listing processes depends on.
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), "/proc", Some("proc"), harmless, none);
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), harmless, none);
    Netlink::open()?.set_up("lo", true)?;
    let netns = File::open("/proc/self/ns/net")?;
    let myself = pidfd_of(std::process::id() as i32)?;
    message::send(&control, &Reply::Hello, &[netns.as_fd(), myself.as_fd()])?;
    drop((netns, myself));
    Init::new(control, None)?.live()
}

/// An init: answers requests, reaps its children.
struct Init {
    control: OwnedFd,
    caller: Option<OwnedFd>,
    children: SignalFd,
    /// Where the wait status of each program goes.
    programs: HashMap<i32, File>,
    remove_at_end: Vec<PathBuf>,
}

impl Init {
    fn new(control: OwnedFd, caller: Option<OwnedFd>) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { control, caller, children, programs: HashMap::new(), remove_at_end: Vec::new() })
    }

    /// Serves, then leaves nothing behind.
    fn live(&mut self) -> io::Result<()> {
        let served = self.serve();
        if !self.remove_at_end.is_empty() {
            // Nobody may be left who could write into the folders again.
            signal_process(-1, Signal::SIGKILL as i32)?;
            for folder in &self.remove_at_end {
                // It may be gone already.
                let _ = std::fs::remove_dir_all(folder);
            }
        }
        served
    }

    /// Until the caller is gone.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let (asked, ended, left) = self.wait()?;
            if ended {
                while self.children.read_signal()?.is_some() {}
                self.reap();
            }
            if left {
                return Ok(());
            }
            if asked {
                let Some((request, fds)) = message::receive::<Request>(&self.control)? else {
                    return Ok(());
                };
                let (reply, fds) = match self.answer(request, fds) {
                    Ok(reply) => reply,
                    Err((what, e)) => {
                        (Reply::Failed { what: what.into(), errno: e.raw_os_error() }, Vec::new())
                    }
                };
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                message::send(&self.control, &reply, &fds)?;
            }
        }
    }

    fn wait(&self) -> io::Result<(bool, bool, bool)> {
        let mut fds = vec![
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(caller) = &self.caller {
            fds.push(PollFd::new(caller.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => return Ok((false, false, false)),
            other => other?,
        };
        let is_ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok((is_ready(0), is_ready(1), is_ready(2)))
    }

    fn reap(&mut self) {
        let mut status = 0;
        loop {
            // SAFETY: plain system call with a valid pointer. nix's own decoding is not used: the
            // raw status is what the caller wants.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, WaitPidFlag::WNOHANG.bits()) };
            if pid <= 0 {
                return;
            }
            if let Some(mut pipe) = self.programs.remove(&pid) {
                // The reader may have lost interest.
                let _ = pipe.write_all(&status.to_ne_bytes());
            }
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Named<(Reply, Vec<OwnedFd>)> {
        let done = Ok((Reply::Done, Vec::new()));
        match request {
            Request::NewHost => {
                return Ok((Reply::Done, vec![named("a host", new_host())?]));
            }
            Request::RemoveAtEnd { folder } => self.remove_at_end.push(folder),
            Request::AddVeth { name, mac, peer, peer_mac } => {
                let netns = named("a veth pair", only(fds))?;
                let pair = Netlink::open().and_then(|mut n| {
                    n.add_veth((&name, mac), (&peer, peer_mac), netns.as_raw_fd())
                });
                named("a veth pair", pair)?;
            }
            Request::AddBridge { name, ports } => named("a bridge", add_bridge(&name, &ports))?,
            Request::DeleteLink { name } => {
                named("deleting a link", Netlink::open().and_then(|mut n| n.delete_link(&name)))?;
            }
            Request::Configure(interface) => configure(&interface)?,
            Request::SetUp { name, is_up } => {
                named("link up or down", Netlink::open().and_then(|mut n| n.set_up(&name, is_up)))?;
            }
            Request::Cut { name, outgoing, incoming, mac } => {
                named("cutting a link", cut(&name, outgoing, incoming, mac))?;
            }
            Request::Sysctl { key, value } => {
                let path = format!("/proc/sys/{}", key.replace('.', "/"));
                named("a sysctl", std::fs::write(path, value))?;
            }
            Request::Spawn(program) => return named("spawn", self.spawn(program, fds)),
            Request::Impair { up, down, impairment } => {
                return named("an impairment forwarder", self.impair(&up, &down, impairment, fds));
            }
            Request::PacketSocket { name } => {
                let socket = named("a packet socket", impair::packet_socket(&name))?;
                return Ok((Reply::Done, vec![socket]));
            }
            Request::SignalAll { signal } => named("signal", signal_process(-1, signal))?,
            Request::SignalOne { pid, signal } => named("signal", signal_process(pid, signal))?,
            Request::Processes => {
                return Ok((Reply::Processes(named("/proc", processes())?), Vec::new()));
            }
        }
        done
    }

    fn spawn(&mut self, program: Program, fds: Vec<OwnedFd>) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut command = Command::new(&program.program);
        command.args(&program.args).env_clear().envs(program.env);
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        // Its own process group: a Ctrl-C at the caller's terminal is the caller's business.
        command.process_group(0);
        if let Some(dir) = program.dir {
            command.current_dir(dir);
        }
        // We block SIGCHLD; a shell that waits for its children must hear of them.
        let unblock = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
        // SAFETY: between fork and exec it makes one system call and touches no memory of ours.
        unsafe { command.pre_exec(unblock) };
        let pid = command.spawn()?.id() as i32;
        self.track(pid)
    }

    fn impair(
        &mut self,
        up: &str,
        down: &str,
        impairment: Impairment,
        fds: Vec<OwnedFd>,
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let control = only(fds)?;
        // Opened here, so that the answer tells whether it works.
        let forwarder = impair::Forwarder::open(up, down, impairment)?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => self.track(child.as_raw()),
            ForkResult::Child => in_child(move || forwarder.run(&control)),
        }
    }

    /// Remembers a child and makes what the caller gets of it. It cannot have been reaped yet.
    fn track(&mut self, pid: i32) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let pidfd = pidfd_of(pid)?;
        let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        self.programs.insert(pid, File::from(write));
        Ok((Reply::Spawned { pid }, vec![pidfd, read]))
    }
}

fn configure(interface: &Interface) -> Named<()> {
    let name = interface.name.as_str();
    let mut netlink = named("netlink", Netlink::open())?;
    if !interface.dad {
        named("IPv6 address mode", netlink.no_link_local(name))?;
    }
    if let Some(mtu) = interface.mtu {
        named("MTU", netlink.set_mtu(name, mtu))?;
    }
    if !interface.has_tso {
        named("TSO off", netlink::set_tso(name, false))?;
    }
    named("link up", netlink.set_up(name, true))?;
    for &(address, prefix) in &interface.addresses {
        match netlink.add_address(name, address, prefix, interface.dad) {
            // IPv4 addresses outlive a link that was down.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            other => named("an address", other)?,
        }
    }
    for &(to, prefix, via) in &interface.routes {
        named("a route", netlink.add_route(name, (to, prefix), via, interface.metrics))?;
    }
    Ok(())
}

fn add_bridge(name: &str, ports: &[String]) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.add_bridge(name)?;
    ports.iter().try_for_each(|port| netlink.set_master(port, name))?;
    netlink.set_up(name, true)
}

/// Nothing leaves (a queue of no length), nothing is heard (frames are to another Ethernet
/// address); the carrier stays.
fn cut(name: &str, outgoing: bool, incoming: bool, mac: Mac) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut deaf = mac;
    if incoming {
        deaf[5] ^= 0x80;
    }
    // A queue appears before the address changes and goes after it is back: else the kernel could
    // tell its neighbours in between.
    if outgoing {
        netlink.drop_outgoing(name, true)?;
    }
    netlink.set_mac(name, deaf)?;
    // Asked whether it is still there, which is doubted after 5 s by default, a neighbour would
    // learn the address that hears.
    let doubted_after = if incoming { "3600" } else { "5" };
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/neigh/{name}/delay_first_probe_time");
        std::fs::write(path, doubted_after)?;
    }
    if !outgoing {
        netlink.drop_outgoing(name, false)?;
    }
    Ok(())
}

fn signal_process(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain system call. -1 is every process of this pid namespace but its init.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // No process at all is what the caller wanted of -1.
            e if pid == -1 && e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        },
    }
}

fn processes() -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        // A process may end while we look.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != 1 {
            found.push((pid, line.trim_end().to_owned()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A descriptor for a process, readable when it has ended.
pub(crate) fn pidfd_of(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the result is checked before use.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just now and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn only(fds: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    let [fd] =
        <[OwnedFd; 1]>::try_from(fds).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(fd)
}

/// Runs the life of a forked child; never returns into the caller's code.
fn in_child(life: impl FnOnce() -> io::Result<()>) -> ! {
    let code = match std::panic::catch_unwind(AssertUnwindSafe(life)) {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 1,
        Err(_) => 70,
    };
    // SAFETY: ends this process without running what the caller registered for its own exit.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but these and standard error; the other standard streams become empty.
fn keep_only(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|&fd| fd as u32).collect();
    keep.extend([0, 1, 2]);
    keep.sort_unstable();
    let ends = keep.iter().skip(1).map(|fd| fd.wrapping_sub(1)).chain([u32::MAX]);
    for (after, last) in keep.iter().zip(ends) {
        if *after < last {
            // SAFETY: these descriptors belong to objects of the caller, whose copies in this
            // process are never used again.
            unsafe { libc::syscall(libc::SYS_close_range, after + 1, last, 0) };
        }
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in [0, 1] {
        // SAFETY: plain system call on two open descriptors.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
