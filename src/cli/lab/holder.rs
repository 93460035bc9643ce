//! The process that owns a lasting world, and how to talk to it: one call and its answer on a
//! `SOCK_SEQPACKET` connection, with the streams of a program to run.
//!
//! Each call has a thread of its own; a program whose caller has gone away is killed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::super::stage::{Stage, StageError};
use super::{Host, Server, sync_lines};
use crate::engine::LegId;
use crate::lab::{Child, Cut, HostId, Io, Program, WorldOptions, message};

/// What can be asked of a holder.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call {
    /// Run a program; carries its three standard streams.
    Exec { host: Host, program: Vec<OsString>, env: Vec<(OsString, OsString)>, dir: OsString },
    /// Inject a fault or end it.
    Fault { kind: FaultKind, server: Server, undo: bool },
    /// End the world.
    Down,
}

/// What a holder answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Done.
    Done,
    /// The program has ended, with this wait status.
    Ended { status: i32 },
    /// Not done, and why.
    Refused(String),
}

/// Something bad that can happen to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(super) enum FaultKind {
    /// All its processes are killed at once
    Kill9,
    /// Its link loses the carrier
    Linkdown,
    /// Frames vanish, the carrier stays
    Cut,
    /// Its processes are stopped, its kernel still answers
    Freeze,
    /// One byte of each of its answers is wrong
    WrongByte,
    /// It answers slowly
    Slow,
    /// Its processes, its link and its namespace are gone
    Delete,
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("fault", |value| value.get_name()))
    }
}

/// Why a holder cannot hold.
#[derive(Debug, thiserror::Error)]
pub(super) enum HolderError {
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("the holder: {0}")]
    Io(#[from] io::Error),
}

/// Connects to the holder of the world in `dir`.
pub(super) fn connect(dir: &Path) -> io::Result<OwnedFd> {
    message::connect(&dir.join(SOCKET))
}

/// Asks, and waits for the answer; `None` if the holder has gone.
pub(super) fn ask(
    holder: &OwnedFd,
    call: &Call,
    streams: &[OwnedFd],
) -> io::Result<Option<Answer>> {
    let streams: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    message::send(holder, call, &streams)?;
    Ok(message::receive(holder)?.map(|(answer, _)| answer))
}

/// Makes the world, says `ready` on standard output, and serves calls until [`Call::Down`].
pub(super) fn hold(dir: &Path, options: &WorldOptions) -> Result<(), HolderError> {
    // The terminal that made the world may close.
    nix::unistd::setsid().map_err(io::Error::from)?;
    let mut stage = Stage::new(options, dir)?;
    stage.world.remove_at_end(dir).map_err(StageError::from)?;
    let lines = sync_lines(&stage)?;
    stage.start_all(&lines)?;
    let listener = message::listen(&dir.join(SOCKET))?;
    println!("ready");
    io::stdout().flush()?;
    let stage = Arc::new(Mutex::new(stage));
    let (end, ended) = std::sync::mpsc::channel();
    std::thread::spawn({
        let stage = Arc::clone(&stage);
        move || serve(&listener, &stage, &end)
    });
    // The caller of `Down` hears that its connection is closed when everything has ended.
    let caller = ended.recv();
    // Dropping the stage would need every thread to have let it go; the end of this process ends
    // the world as well, but only this way it has ended before the caller is told.
    let stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
    stage.world.end();
    if let Ok(caller) = caller {
        // Whoever asked may be gone.
        let _ = message::send(&caller, &Answer::Done, &[]);
    }
    Ok(())
}

/// Name of the socket in the world's folder.
const SOCKET: &str = "lab.sock";

fn serve(
    listener: &OwnedFd,
    stage: &Arc<Mutex<Stage>>,
    end: &std::sync::mpsc::Sender<OwnedFd>,
) -> io::Result<()> {
    loop {
        let caller = message::accept(listener)?;
        let (stage, end) = (Arc::clone(stage), end.clone());
        std::thread::spawn(move || -> io::Result<()> {
            let Some((call, streams)) = message::receive(&caller)? else { return Ok(()) };
            let answer = match call {
                Call::Down => {
                    // The receiver lives as long as this process.
                    let _ = end.send(caller);
                    return Ok(());
                }
                Call::Fault { kind, server, undo } => {
                    let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
                    match set_fault(&mut stage, kind, server.into(), undo) {
                        Ok(()) => Answer::Done,
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                }
                Call::Exec { host, program, env, dir } => {
                    let program = to_run(program, env, dir, streams);
                    let spawned = {
                        let stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
                        stage.world.spawn(HostId::from(host), program)
                    };
                    match spawned {
                        Ok(child) => Answer::Ended { status: outlive(child, &caller)? },
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                }
            };
            message::send(&caller, &answer, &[])
        });
    }
}

fn to_run(
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: OsString,
    streams: Vec<OwnedFd>,
) -> Program {
    let mut words = words.into_iter();
    let mut streams = streams.into_iter().map(|fd| Io::File(File::from(fd)));
    let mut next = || streams.next().unwrap_or(Io::Null);
    let program = Program::new(words.next().unwrap_or_default()).args(words).current_dir(dir);
    let program = program.stdin(next()).stdout(next()).stderr(next());
    env.into_iter().fold(program, |program, (name, value)| program.env(name, value))
}

/// Waits for the program; kills it if its caller goes away first.
fn outlive(mut child: Child, caller: &OwnedFd) -> io::Result<i32> {
    let mut fds = [
        PollFd::new(child.pidfd(), PollFlags::POLLIN),
        PollFd::new(caller.as_fd(), PollFlags::POLLIN),
    ];
    while let Err(error) = poll(&mut fds, PollTimeout::NONE) {
        if error != nix::errno::Errno::EINTR {
            return Err(error.into());
        }
    }
    let has_ended = fds[0].any().unwrap_or(true);
    if !has_ended {
        child.kill()?;
    }
    Ok(child.wait()?.into_raw())
}

fn set_fault(stage: &mut Stage, kind: FaultKind, leg: LegId, undo: bool) -> Result<(), StageError> {
    let server = HostId::Server(leg);
    let files = |file: std::path::PathBuf| -> io::Result<()> {
        match undo {
            false => std::fs::write(file, ""),
            true => std::fs::remove_file(file),
        }
    };
    let wrong = |source| StageError::Io { what: "switching a server's fault", source };
    match (kind, undo) {
        (FaultKind::Kill9, false) => stage.world.kill_host(server)?,
        (FaultKind::Kill9, true) => stage.start_server(leg)?,
        (FaultKind::Linkdown, false) => stage.world.link_down(leg)?,
        (FaultKind::Linkdown, true) => stage.world.link_up(leg)?,
        (FaultKind::Cut, false) => stage.world.cut(leg, Cut::Both)?,
        (FaultKind::Cut, true) => stage.world.heal(leg)?,
        (FaultKind::Freeze, false) => stage.world.freeze(server)?,
        (FaultKind::Freeze, true) => stage.world.thaw(server)?,
        (FaultKind::Delete, false) => stage.world.delete_host(leg)?,
        (FaultKind::Delete, true) => {
            stage.world.return_host(leg)?;
            stage.start_server(leg)?;
        }
        (FaultKind::WrongByte, _) => files(stage.wrong_file(leg)).map_err(wrong)?,
        (FaultKind::Slow, _) => files(stage.slow_file(leg)).map_err(wrong)?,
    }
    Ok(())
}
