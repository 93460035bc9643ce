//! The containers of `demo`: how they are made, how the gateway is told of them, and what befalls
//! them.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::stage::{Stage, StageError, server_name};
use crate::engine::LegId;
use crate::lab::world::WorldError;
use crate::lab::{HostId, Io, Program};
use crate::sync::container::criu;

/// What brings a CRIU that works.
const SCRIPT: &str = "./testbed/criu";

/// Two containers with the embedded servers in each.
#[derive(Clone, Debug)]
pub(super) struct Containers {
    criu: PathBuf,
    /// Where checkpoints and the numbers of the first processes are written.
    dir: PathBuf,
}

impl Containers {
    /// The first CRIU that copies a process here: the one that [`SCRIPT`] has put beside this
    /// program or into ./target/criu, or an installed one. `dir` is the stage's.
    pub(super) fn find(dir: &Path) -> Result<Self, StageError> {
        let beside = std::env::current_exe().ok();
        let beside = beside.and_then(|file| Some(file.parent()?.parent()?.join("criu/criu")));
        let places = beside.into_iter().chain([PathBuf::from("target/criu/criu")]);
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let installed = std::env::split_paths(&paths).chain(["/usr/sbin".into()]);
        let places = places.chain(installed.map(|dir| dir.join("criu")));
        let mut why = "there is no CRIU here".to_owned();
        for place in places.filter(|place| place.is_file()) {
            let place = place.canonicalize().unwrap_or(place);
            match criu::probe(&place.to_string_lossy(), &dir.join("probe")) {
                Ok(_) => return Ok(Self { criu: place, dir: dir.to_owned() }),
                Err(reason) => why = reason,
            }
        }
        Err(StageError::Unavailable(format!(
            "container: {why}; as root, run {SCRIPT}, which brings a CRIU that works"
        )))
    }

    /// The sections of the backend.
    pub(super) fn sections(&self) -> String {
        format!(
            "[sync]\nbackend = \"container\"\ndeadline = \"2s\"\ntimeout = \"4s\"\n\
             [sync.container]\ncriu = \"{}\"\ndir = \"{}/images\"\n",
            self.criu.display(),
            self.dir.display()
        )
    }

    /// The line of a server's own section.
    pub(super) fn line(&self, leg: LegId) -> String {
        format!("container = \"{}\"\n", self.first(leg).display())
    }

    /// Starts both, with a server in each.
    pub(super) fn start(&self, stage: &Stage) -> Result<(), StageError> {
        LegId::ALL.into_iter().try_for_each(|leg| self.start_one(stage, leg))
    }

    /// They have the server's network and namespaces of their own for all else. The gateway numbers
    /// processes as its host does.
    fn start_one(&self, stage: &Stage, leg: LegId) -> Result<(), StageError> {
        let network = File::from(stage.world.netns(HostId::Server(leg))?);
        let program = std::env::current_exe();
        let program =
            program.map_err(|source| StageError::Io { what: "finding myself", source })?;
        let program = Program::new("nsenter")
            .args(["--net=/proc/self/fd/0", "unshare", "--pid", "--mount", "--ipc", "--fork"])
            .args(["--mount-proc", "--propagation", "private"])
            .arg(program)
            .args(["lab-container", &name(leg)])
            .stdin(Io::File(network))
            .stdout(Io::Pipe);
        let mut child = stage.world.spawn(HostId::Gateway, program)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let read = BufReader::new(out).read_line(&mut line);
            read.map_err(|source| StageError::Io { what: "waiting for a container", source })?;
        }
        if line.trim() != "ready" {
            return Err(StageError::NotReady("container", "it ended at once".into()));
        }
        let processes = stage.world.processes(HostId::Gateway)?;
        let mark = format!("lab-container {}", name(leg));
        // nsenter becomes unshare, and that becomes the parent of the first process.
        let is_it = |line: &str| line.contains(&mark) && !line.starts_with("unshare");
        let first = processes.iter().find(|(_, line)| is_it(line));
        let (pid, _) = first.ok_or(WorldError::Gone(HostId::Server(leg)))?;
        let written = std::fs::write(self.first(leg), pid.to_string());
        written.map_err(|source| StageError::Io { what: "writing files", source })
    }

    /// Signals all processes of a container but its first one.
    pub(super) fn signal(&self, stage: &Stage, leg: LegId, sig: Signal) -> Result<(), StageError> {
        let signaling = || -> io::Result<Program> {
            let first = std::fs::read_to_string(self.first(leg))?;
            let all = format!("kill -{} -1", sig as i32);
            let inside = ["--target", &first, "--pid", "--mount", "/bin/sh", "-c", &all];
            Ok(Program::new("nsenter").args(inside))
        };
        let said = |source| StageError::Io { what: "signalling a container's processes", source };
        let mut child = stage.world.spawn(HostId::Gateway, signaling().map_err(said)?)?;
        match child.wait().map_err(said)?.success() {
            true => Ok(()),
            false => Err(said(io::Error::other("nsenter failed"))),
        }
    }

    /// Where the number of a container's first process is written.
    fn first(&self, leg: LegId) -> PathBuf {
        self.dir.join(format!("{}.pid", name(leg)))
    }
}

fn name(leg: LegId) -> String {
    format!("container-{}", server_name(leg))
}
