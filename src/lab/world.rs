//! A world: client, gateway and two servers, each a network namespace, joined by veth pairs.
//!
//! ```text
//! client eth0 ── client [gateway] a ── eth0 server A
//!                                 b ── eth0 server B
//! ```
//! In [`Topology::Clone`] both servers have the same Ethernet and IP addresses, each on its own
//! segment, and the gateway's ends have none; in [`Topology::Vip`] each server has its own. The
//! namespaces have no names; they live in processes of a pid namespace of their own
//! ([`super::agent`]) and end with the [`World`], also when its owner is killed. It works as root,
//! and as an ordinary user where user namespaces are allowed.
//!
//! Faults are injected by methods; they have taken effect when the method returns.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, geteuid};

use super::agent::{self, Interface, Reply, Request};
use super::host::{Agent, Child, Program};
use super::impair::Impairment;
use super::message;
use super::netlink::{Mac, RouteMetrics};
use crate::engine::{LegId, Source};

/// The client's addresses.
pub const CLIENT: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// The addresses of both servers in [`Topology::Clone`].
pub const SERVICE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 10), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));
/// The client's Ethernet address.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// The Ethernet address of both servers.
pub const SERVER_MAC: Mac = [2, 0, 0, 0, 0, 0x10];
/// The gateway's interfaces: towards the client, server A, server B.
pub const GATEWAY_INTERFACES: [&str; 3] = ["client", "a", "b"];
/// The one interface of every other host.
pub const HOST_INTERFACE: &str = "eth0";

/// How the namespaces are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// As root if we are, else (or if that is refused) with a user namespace.
    #[default]
    Auto,
    /// With our own privileges.
    Root,
    /// Inside a user namespace.
    User,
}

/// How the hosts are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// One subnet; the servers share their addresses; the gateway has none.
    #[default]
    Clone,
    /// Three subnets that the gateway's kernel routes between: a path to compare with.
    Routed,
    /// As [`Topology::Clone`], with the client's and server A's links joined by a bridge of the
    /// gateway's kernel: a path to compare with. Server B is not reached.
    Bridged,
    /// As [`Topology::Clone`], but client and server A are joined without anything between: a path
    /// to compare with. The gateway has no link but the one to server B.
    Direct,
    /// The same three subnets with the gateway between them: it has [`SERVICE`] on the client's and
    /// host 254 on each server's. The servers know a way to the clients if they see them.
    Vip(Source),
}

/// One server's peculiarities.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerOptions {
    /// MTU of its interface, in bytes; 1500 if none.
    pub mtu: Option<u32>,
    /// What its routes tell TCP (largest segment, first congestion window).
    pub metrics: RouteMetrics,
    /// Whether its kernel leaves cutting TCP segments to the interface.
    pub has_tso: bool,
    /// A forwarder between the gateway and it, with this impairment to begin with.
    pub impair: Option<Impairment>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { mtu: None, metrics: RouteMetrics::default(), has_tso: true, impair: None }
    }
}

/// What a world is like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorldOptions {
    /// How the namespaces are made.
    pub kind: Kind,
    /// How the hosts are joined.
    pub topology: Topology,
    /// Server A's and server B's peculiarities.
    pub servers: [ServerOptions; 2],
    /// Whether IPv6 looks for duplicates of its addresses when an interface comes up.
    pub dad: bool,
    /// Whether the servers send what is for other networks to the client, as to a router.
    pub is_client_router: bool,
}

/// A host of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostId {
    /// The client.
    Client,
    /// The gateway.
    Gateway,
    /// A server.
    Server(LegId),
}

impl std::fmt::Display for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Server(LegId::A) => "server a",
            Self::Server(LegId::B) => "server b",
        })
    }
}

/// Which frames vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Those in both directions.
    Both,
    /// Those that the server sends.
    FromServer,
    /// Those to the server.
    ToServer,
}

/// Why a world, or something in it, is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The system does not let us make a world of this kind.
    #[error("cannot make {what} ({kind:?}): {source}{}", hint(*kind, what))]
    Refused {
        /// The kind that was tried.
        kind: Kind,
        /// The first thing that was refused.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A host could not do what it was asked.
    #[error("{host}: {what}: {source}")]
    Failed {
        /// Which.
        host: HostId,
        /// What it was doing.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host has been deleted, or its processes' init is dead.
    #[error("{0} is not there (deleted and not returned)")]
    Gone(HostId),
    /// The leg has no forwarder.
    #[error("server {0:?} has no impairment forwarder: set ServerOptions::impair")]
    NoForwarder(LegId),
    /// Starting the world's processes failed.
    #[error("cannot start the world's processes: {0}")]
    Start(#[from] io::Error),
}

impl WorldError {
    /// What fails while a world is built was refused by the system.
    fn into_refusal(self, kind: Kind) -> Self {
        match self {
            Self::Failed { host, what, source } => {
                Self::Refused { kind, what: format!("{what} in {host}"), source }
            }
            other => other,
        }
    }
}

/// What to do about a refusal.
fn hint(kind: Kind, what: &str) -> &'static str {
    match kind {
        Kind::User if what.contains("user namespace") || what.contains("_map") => {
            "\n  user namespaces are restricted here; as root, one of these allows them:\n    \
             sysctl kernel.apparmor_restrict_unprivileged_userns=0   (Ubuntu 24.04 and later)\n    \
             sysctl kernel.unprivileged_userns_clone=1               (Debian)\n    \
             sysctl user.max_user_namespaces=10000"
        }
        Kind::Root => "\n  it needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run as full root, or as user",
        _ => "",
    }
}

/// A client, a gateway and two servers. Dropping it ends every process and interface in it.
#[derive(Debug)]
pub struct World {
    kind: Kind,
    options: WorldOptions,
    client: Agent,
    gateway: Agent,
    legs: [Mutex<Option<Leg>>; 2],
    /// Last, because it ends the others.
    root: Root,
}

/// One server and what stands between it and the gateway.
#[derive(Debug)]
struct Leg {
    server: Agent,
    wire: Option<Wire>,
}

impl Leg {
    /// Sets the interface opposite to the gateway's up or down; the gateway's carrier follows.
    fn set_up(&self, is_up: bool) -> Result<(), WorldError> {
        let (host, name) = match &self.wire {
            Some(wire) => (&wire.host, "up"),
            None => (&self.server, HOST_INTERFACE),
        };
        host.tell(&Request::SetUp { name: name.to_owned(), is_up })
    }
}

/// The host of an impairment forwarder.
#[derive(Debug)]
struct Wire {
    host: Agent,
    control: OwnedFd,
}

impl World {
    /// Makes a world, all links up.
    ///
    /// Errors: [`WorldError::Refused`] where the system does not allow it, with what to do.
    pub fn new(options: &WorldOptions) -> Result<Self, WorldError> {
        match options.kind {
            Kind::Auto if geteuid().is_root() => Self::of_kind(options, Kind::Root)
                .or_else(|refused| Self::of_kind(options, Kind::User).map_err(|_| refused)),
            Kind::Auto => Self::of_kind(options, Kind::User),
            kind => Self::of_kind(options, kind),
        }
    }

    /// How it was made: [`Kind::Root`] or [`Kind::User`].
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A server's own addresses.
    pub fn server_addresses(&self, leg: LegId) -> (Ipv4Addr, Ipv6Addr) {
        match self.options.topology {
            Topology::Clone | Topology::Bridged | Topology::Direct => SERVICE,
            Topology::Routed | Topology::Vip(_) => routed(leg, 10),
        }
    }

    /// How the hosts are joined.
    pub fn topology(&self) -> Topology {
        self.options.topology
    }

    /// The addresses that clients know the servers by.
    pub fn service_addresses(&self, leg: LegId) -> (Ipv4Addr, Ipv6Addr) {
        match self.options.topology {
            Topology::Routed => routed(leg, 10),
            _ => SERVICE,
        }
    }

    /// The address of the gateway on the client's subnet in [`Topology::Routed`].
    pub fn router_address(&self) -> Ipv4Addr {
        routed_client(254).0
    }

    /// The addresses of the gateway on a server's subnet in [`Topology::Vip`].
    pub fn gateway_addresses(&self, leg: LegId) -> (Ipv4Addr, Ipv6Addr) {
        routed(leg, 254)
    }

    fn server_mac(&self, leg: LegId) -> Mac {
        match self.options.topology {
            Topology::Vip(_) => [2, 0, 0, 0, 0, 0x11 + leg.index() as u8],
            _ => SERVER_MAC,
        }
    }

    /// Starts a program in a host.
    pub fn spawn(&self, host: HostId, program: Program) -> Result<Child, WorldError> {
        self.with(host, |agent| agent.spawn(program))
    }

    /// Signals every process of a host at once.
    pub fn signal_host(&self, host: HostId, signal: Signal) -> Result<(), WorldError> {
        self.with(host, |agent| agent.tell(&Request::SignalAll { signal: signal as i32 }))
    }

    /// Kills every process of a host at once (`kill -9`); its kernel and links live on.
    pub fn kill_host(&self, host: HostId) -> Result<(), WorldError> {
        self.signal_host(host, Signal::SIGKILL)
    }

    /// Stops every process of a host; its kernel still answers.
    pub fn freeze(&self, host: HostId) -> Result<(), WorldError> {
        self.signal_host(host, Signal::SIGSTOP)
    }

    /// Ends [`World::freeze`].
    pub fn thaw(&self, host: HostId) -> Result<(), WorldError> {
        self.signal_host(host, Signal::SIGCONT)
    }

    /// The processes of a host: number inside the host and command line.
    pub fn processes(&self, host: HostId) -> Result<Vec<(i32, String)>, WorldError> {
        self.with(host, |agent| match agent.ask(&Request::Processes, &[])? {
            (Reply::Processes(list), _) => Ok(list),
            _ => Err(WorldError::Gone(host)),
        })
    }

    /// Signals one process by its number inside the host.
    pub fn signal(&self, host: HostId, pid: i32, signal: Signal) -> Result<(), WorldError> {
        let signal = signal as i32;
        self.with(host, |agent| agent.tell(&Request::SignalOne { pid, signal }))
    }

    /// Takes the carrier from the gateway's link to a server.
    pub fn link_down(&self, leg: LegId) -> Result<(), WorldError> {
        self.with_leg(leg, |found| found.set_up(false))
    }

    /// Gives it back, with the server's addresses and routes.
    pub fn link_up(&self, leg: LegId) -> Result<(), WorldError> {
        self.with_leg(leg, |found| {
            found.set_up(true)?;
            found.server.tell(&Request::Configure(self.server_interface(leg)))
        })
    }

    /// Makes frames between the gateway and a server vanish; the carrier stays.
    pub fn cut(&self, leg: LegId, cut: Cut) -> Result<(), WorldError> {
        self.set_cut(leg, cut != Cut::ToServer, cut != Cut::FromServer)
    }

    /// Ends [`World::cut`].
    pub fn heal(&self, leg: LegId) -> Result<(), WorldError> {
        self.set_cut(leg, false, false)
    }

    /// Changes what the forwarder of a leg does; the leg must have been made with one.
    pub fn impair(&self, leg: LegId, impairment: &Impairment) -> Result<(), WorldError> {
        self.with_leg(leg, |found| {
            let wire = found.wire.as_ref().ok_or(WorldError::NoForwarder(leg))?;
            Ok(message::send(&wire.control, impairment, &[])?)
        })
    }

    /// Kills a server's processes and deletes its link and its namespace: the gateway's interface
    /// is gone.
    pub fn delete_host(&self, leg: LegId) -> Result<(), WorldError> {
        let found = lock(&self.legs[leg.index()]).take();
        let found = found.ok_or(WorldError::Gone(HostId::Server(leg)))?;
        found.server.tell(&Request::SignalAll { signal: Signal::SIGKILL as i32 })?;
        let name = gateway_interface(leg).into();
        self.gateway.tell(&Request::DeleteLink { name })?;
        found.server.end();
        if let Some(wire) = found.wire {
            wire.host.end();
        }
        Ok(())
    }

    /// Makes a deleted server again: its namespace, and its link under the old name in the
    /// gateway. Its programs are the caller's to start.
    pub fn return_host(&self, leg: LegId) -> Result<(), WorldError> {
        let mut place = lock(&self.legs[leg.index()]);
        if place.is_none() {
            *place = Some(self.make_leg(leg)?);
        }
        Ok(())
    }

    /// Runs `work` on a thread that is in the network namespace of a host.
    ///
    /// Errors: only a world made as root can be entered; in another one, [`World::spawn`].
    pub fn enter<T: Send>(
        &self,
        host: HostId,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, WorldError> {
        let netns = self.netns(host)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| WorldError::Failed {
                    host,
                    what: "entering its network namespace".into(),
                    source: e.into(),
                })?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The network namespace of a host.
    pub fn netns(&self, host: HostId) -> Result<OwnedFd, WorldError> {
        self.with(host, |agent| Ok(agent.netns()?.try_clone_to_owned()?))
    }

    /// A path to the network namespace of a host, valid for its lifetime and this process's
    /// (`nsenter --net=PATH`).
    pub fn netns_path(&self, host: HostId) -> Result<PathBuf, WorldError> {
        self.with(host, |agent| {
            let fd = agent.netns()?.as_raw_fd();
            Ok(PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id())))
        })
    }

    /// A packet socket with virtio headers on an interface of a host.
    pub fn packet_socket(&self, host: HostId, interface: &str) -> Result<OwnedFd, WorldError> {
        self.with(host, |agent| agent.packet_socket(interface))
    }

    /// Has a folder removed when the world ends, also when its owner is killed.
    pub fn remove_at_end(&self, folder: &Path) -> Result<(), WorldError> {
        self.root.agent.tell(&Request::RemoveAtEnd { folder: folder.to_owned() })
    }

    /// Ends the world now, as dropping it does: returns when nothing of it is left.
    pub fn end(&self) {
        self.root.end();
    }

    /// Writes a sysctl in a host, for example `net.ipv4.tcp_sack`.
    pub fn sysctl(&self, host: HostId, key: &str, value: &str) -> Result<(), WorldError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.with(host, |agent| agent.tell(&Request::Sysctl { key, value }))
    }

    fn of_kind(options: &WorldOptions, kind: Kind) -> Result<Self, WorldError> {
        let started = agent::start(kind == Kind::User)?;
        let agent = Agent::greet(HostId::Gateway, started.control);
        let refused = |e: WorldError| e.into_refusal(kind);
        let agent = agent
            .inspect_err(|_| {
                let _ = waitpid(started.keeper, None);
            })
            .map_err(refused)?;
        let root = Root { agent, keeper: Mutex::new(Some(started.keeper)) };
        let client = root.agent.new_host(HostId::Client).map_err(refused)?;
        let gateway = root.agent.new_host(HostId::Gateway).map_err(refused)?;
        let legs = [Mutex::new(None), Mutex::new(None)];
        let world = Self { kind, options: options.clone(), client, gateway, legs, root };
        world.build().map_err(refused)?;
        Ok(world)
    }

    fn build(&self) -> Result<(), WorldError> {
        let [towards_client, towards_a, _] = GATEWAY_INTERFACES;
        if self.options.topology == Topology::Direct {
            return self.make_legs();
        }
        let ends = (towards_client, [2, 0, 0, 0, 1, 0], CLIENT_MAC);
        self.gateway.add_veth(ends.0, ends.1, (&self.client, HOST_INTERFACE, ends.2))?;
        self.client.tell(&Request::Configure(self.client_interface()))?;
        if self.options.topology == Topology::Routed {
            for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
                let (key, value) = (key.to_owned(), "1".to_owned());
                self.gateway.tell(&Request::Sysctl { key, value })?;
            }
        }
        self.gateway.tell(&Request::Configure(self.gateway_end(None)))?;
        self.make_legs()?;
        if self.options.topology == Topology::Bridged {
            let ports = [towards_client, towards_a].map(str::to_owned).into();
            self.gateway.tell(&Request::AddBridge { name: "bridge".into(), ports })?;
        }
        // What the gateway will need, asked for now so that a refusal has its name.
        self.gateway.packet_socket(towards_client).map(drop)
    }

    fn make_legs(&self) -> Result<(), WorldError> {
        for leg in LegId::ALL {
            *lock(&self.legs[leg.index()]) = Some(self.make_leg(leg)?);
        }
        Ok(())
    }

    fn make_leg(&self, leg: LegId) -> Result<Leg, WorldError> {
        let server = self.root.agent.new_host(HostId::Server(leg))?;
        if (self.options.topology, leg) == (Topology::Direct, LegId::A) {
            let end = (&server, HOST_INTERFACE, self.server_mac(leg));
            self.client.add_veth(HOST_INTERFACE, CLIENT_MAC, end)?;
            self.client.tell(&Request::Configure(self.client_interface()))?;
            server.tell(&Request::Configure(self.server_interface(leg)))?;
            return Ok(Leg { server, wire: None });
        }
        let name = gateway_interface(leg);
        let near: Mac = [2, 0, 0, 0, 1, 1 + leg.index() as u8];
        let mac = self.server_mac(leg);
        let wire = match self.options.servers[leg.index()].impair {
            None => {
                self.gateway.add_veth(name, near, (&server, HOST_INTERFACE, mac))?;
                None
            }
            Some(impairment) => {
                let host = self.root.agent.new_host(HostId::Server(leg))?;
                self.gateway.add_veth(name, near, (&host, "up", [2, 0, 0, 0, 2, 1]))?;
                host.add_veth("down", [2, 0, 0, 0, 2, 2], (&server, HOST_INTERFACE, mac))?;
                for end in ["up", "down"] {
                    host.tell(&Request::Configure(bare(end)))?;
                }
                let control = host.forwarder(impairment)?;
                Some(Wire { host, control })
            }
        };
        self.gateway.tell(&Request::Configure(self.gateway_end(Some(leg))))?;
        server.tell(&Request::Configure(self.server_interface(leg)))?;
        Ok(Leg { server, wire })
    }

    fn client_interface(&self) -> Interface {
        let routes = match self.options.topology {
            Topology::Routed => {
                let (v4, v6) = routed_client(254);
                vec![
                    (Ipv4Addr::UNSPECIFIED.into(), 0, Some(v4.into())),
                    (Ipv6Addr::UNSPECIFIED.into(), 0, Some(v6.into())),
                ]
            }
            _ => Vec::new(),
        };
        self.interface(HOST_INTERFACE, CLIENT, 1, routes)
    }

    fn server_interface(&self, leg: LegId) -> Interface {
        let options = &self.options.servers[leg.index()];
        let mut routes = Vec::new();
        if self.options.is_client_router {
            routes.push((Ipv4Addr::UNSPECIFIED.into(), 0, Some(CLIENT.0.into())));
        }
        let is_routed =
            matches!(self.options.topology, Topology::Routed | Topology::Vip(Source::Client));
        if is_routed {
            let (v4, v6) = routed(leg, 254);
            routes.push((Ipv4Addr::UNSPECIFIED.into(), 0, Some(v4.into())));
            routes.push((Ipv6Addr::UNSPECIFIED.into(), 0, Some(v6.into())));
        }
        let mut made = self.interface(HOST_INTERFACE, self.server_addresses(leg), 0x10, routes);
        made.mtu = options.mtu;
        made.metrics = options.metrics;
        made.has_tso = options.has_tso;
        made
    }

    fn gateway_end(&self, leg: Option<LegId>) -> Interface {
        let name = leg.map_or(GATEWAY_INTERFACES[0], gateway_interface);
        match self.options.topology {
            Topology::Routed => {
                let addresses = leg.map_or(routed_client(254), |leg| routed(leg, 254));
                self.interface(name, addresses, 0xfe, Vec::new())
            }
            _ => bare(name),
        }
    }

    /// An interface with both families' addresses and the routes to its own subnets.
    fn interface(
        &self,
        name: &str,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        host: u16,
        further: Vec<(IpAddr, u8, Option<IpAddr>)>,
    ) -> Interface {
        let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host);
        let net4 = Ipv4Addr::from(u32::from(v4) & 0xffff_ff00);
        let net6 = Ipv6Addr::from(u128::from(v6) >> 64 << 64);
        let mut addresses = vec![(v4.into(), 24), (v6.into(), 64)];
        let mut routes = vec![(net4.into(), 24, None), (net6.into(), 64, None)];
        if !self.options.dad {
            addresses.push((local.into(), 64));
            routes.push((Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 64, None));
        }
        routes.extend(further);
        let dad = self.options.dad;
        Interface { dad, addresses, routes, ..bare(name) }
    }

    fn set_cut(&self, leg: LegId, outgoing: bool, incoming: bool) -> Result<(), WorldError> {
        let name = HOST_INTERFACE.to_owned();
        let request = Request::Cut { name, outgoing, incoming, mac: self.server_mac(leg) };
        self.with_leg(leg, |found| found.server.tell(&request))
    }

    fn with<T>(
        &self,
        host: HostId,
        work: impl FnOnce(&Agent) -> Result<T, WorldError>,
    ) -> Result<T, WorldError> {
        match host {
            HostId::Client => work(&self.client),
            HostId::Gateway => work(&self.gateway),
            HostId::Server(leg) => self.with_leg(leg, |found| work(&found.server)),
        }
    }

    fn with_leg<T>(
        &self,
        leg: LegId,
        work: impl FnOnce(&Leg) -> Result<T, WorldError>,
    ) -> Result<T, WorldError> {
        match lock(&self.legs[leg.index()]).as_ref() {
            Some(found) => work(found),
            None => Err(WorldError::Gone(HostId::Server(leg))),
        }
    }
}

/// The world's first init. Dropping it ends the world and waits until nothing of it is left.
#[derive(Debug)]
struct Root {
    agent: Agent,
    /// Our child, until it has been waited for.
    keeper: Mutex<Option<Pid>>,
}

impl Root {
    fn end(&self) {
        self.agent.end();
        let keeper = lock(&self.keeper).take();
        if let Some(keeper) = keeper {
            while matches!(waitpid(keeper, None), Err(nix::errno::Errno::EINTR)) {}
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.end();
    }
}

/// The gateway's interface towards a server.
pub fn gateway_interface(leg: LegId) -> &'static str {
    GATEWAY_INTERFACES[1 + leg.index()]
}

/// Host `number` of a server's subnet in [`Topology::Routed`].
fn routed(leg: LegId, number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = match leg {
        LegId::A => Ipv4Addr::new(198, 51, 100, number),
        LegId::B => Ipv4Addr::new(203, 0, 113, number),
    };
    let subnet = 0xa + leg.index() as u16;
    (v4, Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, number.into()))
}

/// Host `number` of the client's subnet.
fn routed_client(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::new(192, 0, 2, number);
    (v4, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()))
}

/// An interface without any address.
fn bare(name: &str) -> Interface {
    Interface {
        name: name.to_owned(),
        mtu: None,
        has_tso: true,
        dad: false,
        addresses: Vec::new(),
        routes: Vec::new(),
        metrics: RouteMetrics::default(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind our locks is whole even if a holder panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests;
