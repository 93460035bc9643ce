//! What stands between the client and the servers: the gateway, and what people have instead. Each
//! in a world of its own, with the same servers, so that all of them can run in the same rounds.
//!
//! Processor time is that of the program in the middle, and of all programs with the servers; what
//! the kernel does for a packet counts for whoever's system call or wake-up it was done in, as the
//! kernel itself accounts it. Routing and bridging have no program of their own.

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::stage::{Stage, StageError, target};
use super::folder;
use super::real::{self, Root};
use crate::engine::LegId;
use crate::lab::web::PORT;
use crate::lab::{Child, HostId, Io, Program, Topology, World, WorldError, WorldOptions};

/// Something to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Baseline {
    /// Client and server joined without anything between
    Direct,
    /// A bridge of the kernel
    Bridge,
    /// The kernel's routing
    Route,
    /// HAProxy in TCP mode, one server
    Haproxy,
    /// nginx as an HTTP proxy with kept connections, one server (no uploads with --real)
    Nginx,
}

impl Display for Baseline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// The name of the gateway's rows.
pub(super) const GATEWAY: &str = "shadowvm";
/// How long a program may take to serve.
const READY_WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const HAPROXY_LOG: &str = "haproxy.log";

/// One way from the client to the servers, running.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) target: SocketAddr,
    pub(super) stage: Stage,
    /// The proxy; the gateway is in the stage.
    proxy: Option<Child>,
}

/// Processor time used so far, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// By the program in the middle.
    pub(super) middle: Option<f64>,
    /// By the servers.
    pub(super) servers: f64,
}

/// The peers that are installed, each once, and why others are not.
///
/// Errors: [`StageError::Unavailable`] if peers are asked for and none is left.
pub(super) fn installed(
    baselines: &[Baseline],
) -> Result<(Vec<Baseline>, Vec<String>), StageError> {
    let (mut there, mut lacking) = (Vec::new(), Vec::new());
    for &baseline in baselines {
        match baseline.program().map(find).transpose() {
            Ok(_) if there.contains(&baseline) => {}
            Ok(_) => there.push(baseline),
            Err(why) => lacking.push(why),
        }
    }
    if there.is_empty() && !lacking.is_empty() {
        return Err(StageError::Unavailable(lacking.join("; ")));
    }
    Ok((there, lacking))
}

/// The gateway and the peers that are to be had, and why others are not.
///
/// Errors: as [`installed`].
pub(super) fn places(
    baselines: &[Baseline],
    root: Option<&Root>,
    dir: &Path,
) -> Result<(Vec<Place>, Vec<String>), StageError> {
    let (there, mut lacking) = installed(baselines)?;
    let mut places = vec![Place::gateway(root, &folder(dir, GATEWAY)?)?];
    for baseline in there {
        match Place::peer(baseline, root, &folder(dir, &baseline.to_string())?) {
            Ok(place) => places.push(place),
            // A kernel without bridges, say; the gateway's world was there before.
            Err(StageError::World(WorldError::Refused { what, source, .. })) => {
                lacking.push(format!("{baseline}: this system refuses {what}: {source}"));
            }
            Err(other) => return Err(other),
        }
    }
    if places.len() == 1 && !lacking.is_empty() {
        return Err(StageError::Unavailable(lacking.join("; ")));
    }
    Ok((places, lacking))
}

/// Where a program is.
pub(super) fn find(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(program));
    places.find(|file| file.is_file()).ok_or_else(|| {
        let package = match program {
            "nginx" => "nginx-light",
            "qemu-system-x86_64" => "qemu-system-x86",
            other => other,
        };
        format!("{program}: not in PATH; Debian's package {package} brings it")
    })
}

impl Baseline {
    /// The program that it needs.
    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::Bridge | Self::Route => None,
            Self::Haproxy => Some("haproxy"),
            Self::Nginx => Some("nginx"),
        }
    }

    const fn topology(self) -> Topology {
        match self {
            Self::Direct => Topology::Direct,
            Self::Bridge => Topology::Bridged,
            Self::Route | Self::Haproxy | Self::Nginx => Topology::Routed,
        }
    }
}

impl Place {
    fn gateway(root: Option<&Root>, dir: &Path) -> Result<Self, StageError> {
        let mut stage = Stage::new(&WorldOptions::default(), dir)?;
        LegId::ALL.into_iter().try_for_each(|leg| start_server(&mut stage, leg, root, dir))?;
        stage.start_gateway("")?;
        stage.wait_protected(READY_WAIT)?;
        let target = target(&stage.world, LegId::A);
        Ok(Self { name: GATEWAY.to_owned(), target, stage, proxy: None })
    }

    fn peer(baseline: Baseline, root: Option<&Root>, dir: &Path) -> Result<Self, StageError> {
        let options = WorldOptions { topology: baseline.topology(), ..WorldOptions::default() };
        let mut stage = Stage::new(&options, dir)?;
        start_server(&mut stage, LegId::A, root, dir)?;
        let server = stage.world.server_addresses(LegId::A).0;
        let own = SocketAddr::new(stage.world.router_address().into(), PORT);
        let (target, proxy) = match baseline {
            Baseline::Direct | Baseline::Bridge | Baseline::Route => {
                (target(&stage.world, LegId::A), None)
            }
            Baseline::Haproxy => (own, Some(start_haproxy(&stage.world, server, dir)?)),
            Baseline::Nginx => {
                let text = real::proxy_config(server);
                let folder = folder(dir, "proxy")?;
                (own, Some(real::start_nginx(&stage.world, HostId::Gateway, &folder, &text)?))
            }
        };
        let place = Self { name: baseline.to_string(), target, stage, proxy };
        place.wait_served(dir)?;
        Ok(place)
    }

    /// Until a connection is taken.
    fn wait_served(&self, dir: &Path) -> Result<(), StageError> {
        let deadline = Instant::now() + READY_WAIT;
        let connect = || TcpStream::connect_timeout(&self.target, READY_WAIT);
        while let Err(e) = self.stage.world.enter(HostId::Client, connect)? {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(dir.join(HAPROXY_LOG)).unwrap_or_default();
                let why = format!("{}: {e}\n{log}", self.name);
                return Err(StageError::NotReady("path to compare with", why));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Does something where the client is.
    pub(super) fn as_client<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, StageError> {
        let done = self.stage.world.enter(HostId::Client, work)?;
        done.map_err(|source| StageError::Io { what: "a client", source })
    }

    /// Processor time so far.
    pub(super) fn used(&self) -> Result<Used, StageError> {
        let refused = |source| StageError::Io { what: "reading processor times", source };
        let (gateway, servers) = self.stage.cpu_times().map_err(refused)?;
        let proxy = self.proxy.as_ref().map(Child::cpu_time).transpose().map_err(refused)?;
        let seconds = |time: Duration| time.as_secs_f64();
        Ok(Used { middle: gateway.or(proxy).map(seconds), servers: seconds(servers) })
    }
}

fn start_server(
    stage: &mut Stage,
    leg: LegId,
    root: Option<&Root>,
    dir: &Path,
) -> Result<(), StageError> {
    match root {
        None => stage.start_server(leg),
        Some(root) => {
            let child = root.serve(&stage.world, leg, dir)?;
            stage.adopt_server(leg, child);
            Ok(())
        }
    }
}

fn start_haproxy(world: &World, server: Ipv4Addr, dir: &Path) -> Result<Child, StageError> {
    let config = dir.join("haproxy.cfg");
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  \
         timeout client 1m\n  timeout server 1m\nlisten service\n  bind :{PORT}\n  \
         server a {server}:{PORT}\n"
    );
    let log = std::fs::write(&config, text)
        .and_then(|()| std::fs::File::create(dir.join(HAPROXY_LOG)))
        .map_err(|source| StageError::Io { what: "configuring haproxy", source })?;
    // In the foreground.
    let program = Program::new("haproxy").args(["-db", "-f"]).arg(&config);
    Ok(world.spawn(HostId::Gateway, program.stdout(Io::Null).stderr(Io::File(log)))?)
}
