//! nginx: in place of the embedded servers (`--real`), and as a proxy to compare with.
//!
//! The embedded server does less for a byte than any program that is used, so that against it a
//! gateway's share looks larger than it is.

use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::stage::{StageError, server_name};
use super::folder;
use super::peers::find;
use crate::engine::LegId;
use crate::lab::web::PORT;
use crate::lab::{Child, HostId, Io, Program, World};

/// How long nginx may take to listen.
const READY_WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the servers serve: `/bytes/N` for some N, and `/sink`.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// With files of these lengths. Errors: [`StageError::Unavailable`] without nginx.
    pub(super) fn new(
        dir: &Path,
        lengths: impl IntoIterator<Item = u64>,
    ) -> Result<Self, StageError> {
        find("nginx").map_err(StageError::Unavailable)?;
        let files = folder(&folder(dir, "root")?, "bytes")?;
        for length in lengths {
            std::fs::File::create(files.join(length.to_string()))
                .and_then(|file| file.set_len(length))
                .map_err(|source| StageError::Io { what: "writing files to fetch", source })?;
        }
        Ok(Self(dir.join("root")))
    }

    /// Starts a server.
    pub(super) fn serve(&self, world: &World, leg: LegId, dir: &Path) -> Result<Child, StageError> {
        let folder = folder(dir, server_name(leg))?;
        symlink(&self.0, folder.join("html"))
            .map_err(|source| StageError::Io { what: "configuring nginx", source })?;
        start_nginx(world, HostId::Server(leg), &folder, &config("", SERVE))
    }
}

/// Files; and what is sent is read to its end, and thrown away.
const SERVE: &str = "root html; location /sink { return 200; }";

/// A proxy for one server.
pub(super) fn proxy_config(server: Ipv4Addr) -> String {
    let upstream = format!("upstream server {{ server {server}:{PORT}; keepalive 64; }}");
    let location = "location / { proxy_pass http://server; proxy_http_version 1.1; \
        proxy_set_header Connection \"\"; proxy_request_buffering off; }";
    config(&upstream, location)
}

/// One process, whose processor time is easily told.
fn config(upstream: &str, service: &str) -> String {
    format!(
        "user root; worker_processes 1; master_process off; daemon off; pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
    client_max_body_size 0; lingering_time 300s; proxy_max_temp_file_size 0;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {upstream}
    server {{ listen {PORT} backlog=4096; {service} }}
}}
"
    )
}

/// Starts an nginx in `folder` and waits until it listens.
pub(super) fn start_nginx(
    world: &World,
    host: HostId,
    folder: &Path,
    config: &str,
) -> Result<Child, StageError> {
    let (file, pid) = (folder.join("nginx.conf"), folder.join("nginx.pid"));
    std::fs::write(&file, config)
        .map_err(|source| StageError::Io { what: "configuring nginx", source })?;
    let error_log = folder.join("error.log");
    let program = Program::new("nginx").arg("-e").arg(&error_log).arg("-p").arg(folder);
    let program = program.arg("-c").arg(file);
    let mut child = world.spawn(host, program.stdout(Io::Null).stderr(Io::Null))?;
    let deadline = Instant::now() + READY_WAIT;
    // nginx writes its number once it listens.
    while !std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')) {
        let ended = child.wait_timeout(LOOK_EVERY);
        if !matches!(ended, Ok(None)) || Instant::now() > deadline {
            let log = std::fs::read_to_string(&error_log).unwrap_or_default();
            return Err(StageError::NotReady("nginx", log));
        }
    }
    Ok(child)
}
