//! nginx and curl in place of the embedded server and client: what people run.
//!
//! The embedded ones do less for a byte than any program that is used, so that against them a
//! gateway's share looks larger than it is.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::stage::{Stage, StageError, server_name, target};
use crate::engine::LegId;
use crate::lab::{HostId, Io, Program, Topology, World, WorldOptions};

/// How long nginx may take to listen.
const READY_WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The file that is fetched.
const FILE: &str = "file";

/// A gateway before two nginx, and the same without the gateway.
pub(super) fn stages(dir: &Path, bytes: u64) -> Result<(Stage, Stage), StageError> {
    let root = super::folder(dir, "root")?;
    std::fs::File::create(root.join(FILE))
        .and_then(|file| file.set_len(bytes))
        .map_err(|source| StageError::Io { what: "writing the file to fetch", source })?;
    let stage = |name, topology| {
        let options = WorldOptions { topology, ..WorldOptions::default() };
        let dir = super::folder(dir, name)?;
        let stage = Stage::new(&options, &dir)?;
        LegId::ALL.into_iter().try_for_each(|leg| start_nginx(&stage.world, leg, &dir, &root))?;
        Ok::<_, StageError>(stage)
    };
    let mut gateway = stage("gateway", WorldOptions::default().topology)?;
    let routed = stage("routed", Topology::Routed)?;
    gateway.start_gateway("")?;
    gateway.wait_protected(READY_WAIT)?;
    Ok((gateway, routed))
}

fn start_nginx(world: &World, leg: LegId, dir: &Path, root: &Path) -> Result<(), StageError> {
    let folder = super::folder(dir, server_name(leg))?;
    let write = || -> io::Result<()> {
        symlink(root, folder.join("html"))?;
        std::fs::write(folder.join("nginx.conf"), NGINX)
    };
    write().map_err(|source| StageError::Io { what: "configuring nginx", source })?;
    let pid = folder.join("nginx.pid");
    let error_log = folder.join("error.log");
    let program = Program::new("nginx").arg("-e").arg(&error_log).arg("-p").arg(&folder);
    let program = program.arg("-c").arg(folder.join("nginx.conf"));
    let mut child = world.spawn(HostId::Server(leg), program.stdout(Io::Null).stderr(Io::Null))?;
    let deadline = Instant::now() + READY_WAIT;
    // nginx writes its number once it listens.
    while !std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')) {
        let ended = child.wait_timeout(LOOK_EVERY);
        if !matches!(ended, Ok(None)) || Instant::now() > deadline {
            let log = std::fs::read_to_string(&error_log).unwrap_or_default();
            return Err(StageError::NotReady("nginx (--real needs it installed)", log));
        }
    }
    Ok(())
}

/// One download by curl, started.
pub(super) struct Fetch(Result<crate::lab::Child, crate::lab::WorldError>);

impl Fetch {
    /// Starts it.
    pub(super) fn start(stage: &Stage, leg: LegId) -> Self {
        let world = Arc::clone(&stage.world);
        let url = format!("http://{}/{FILE}", target(&world, leg));
        let written = "%{http_code} %{size_download} %{time_total}";
        let program = Program::new("curl").args(["-s", "-S", "-o", "/dev/null", "-w", written]);
        let program = program.arg(url).stdout(Io::Pipe).stderr(Io::Pipe);
        Self(world.spawn(HostId::Client, program))
    }

    /// Waits for its end; bytes per second.
    pub(super) fn end(self, bytes: u64) -> Result<f64, StageError> {
        let output = self.0?.wait_with_output();
        let output =
            output.map_err(|source| StageError::Io { what: "waiting for curl", source })?;
        let told = String::from_utf8_lossy(&output.stdout);
        let mut fields = told.split_whitespace();
        let is_whole = fields.next() == Some("200") && fields.next() == Some(&bytes.to_string());
        let took = fields.next().and_then(|text| text.parse::<f64>().ok());
        match took {
            Some(took) if is_whole => Ok(bytes as f64 / took),
            _ => {
                let text = format!("{told} {}", String::from_utf8_lossy(&output.stderr).trim());
                Err(StageError::NotReady("curl (--real needs it installed)", text))
            }
        }
    }
}

const NGINX: &str = "user root;
worker_processes 1;
daemon off;
pid nginx.pid;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path body; proxy_temp_path body; fastcgi_temp_path body;
    uwsgi_temp_path body; scgi_temp_path body;
    server { listen 80; root html; }
}
";
