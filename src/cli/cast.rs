//! Who plays on a [`super::stage`]: clients on threads of their own, and death.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::stage::{Stage, StageError};
use crate::engine::LegId;
use crate::lab::web::client::{self, Outcome, Plan};
use crate::lab::world::Cut;
use crate::lab::{HostId, World, WorldError, haven};

/// A client on its thread, inside the client's host.
#[derive(Debug)]
pub(super) struct Client(JoinHandle<Result<Outcome, WorldError>>);

impl Client {
    /// Starts one.
    pub(super) fn start(stage: &Stage, plan: Plan) -> Self {
        Self::start_telling(stage, plan, mpsc::channel().0)
    }

    /// Starts one that tells when it reaches each of its marks.
    pub(super) fn start_telling(stage: &Stage, plan: Plan, reached: mpsc::Sender<()>) -> Self {
        let world = Arc::clone(&stage.world);
        Self(std::thread::spawn(move || {
            world.enter(HostId::Client, || {
                client::run(&plan, |_| {
                    // Nobody listens once the first client is there.
                    let _ = reached.send(());
                })
            })
        }))
    }

    /// Waits for its end.
    pub(super) fn end(self) -> Result<Outcome, WorldError> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// How a server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Death {
    /// All its processes are killed: its kernel says so
    Kill9,
    /// Its carrier is lost
    Linkdown,
    /// Its frames vanish, the carrier stays: silence
    Cut,
    /// Its processes are stopped; its kernel still answers
    Freeze,
}

impl Death {
    /// Lets it happen; it has happened when this returns.
    pub(super) fn strike(self, world: &World, leg: LegId) -> Result<(), WorldError> {
        match self {
            Self::Kill9 => world.kill_host(HostId::Server(leg)),
            Self::Linkdown => world.link_down(leg),
            Self::Cut => world.cut(leg, Cut::Both),
            Self::Freeze => world.freeze(HostId::Server(leg)),
        }
    }

    /// Takes it back.
    pub(super) fn undo(self, stage: &mut Stage, leg: LegId) -> Result<(), StageError> {
        match self {
            Self::Kill9 => stage.start_server(leg)?,
            Self::Linkdown => stage.world.link_up(leg)?,
            Self::Cut => stage.world.heal(leg)?,
            Self::Freeze => stage.world.thaw(HostId::Server(leg))?,
        }
        Ok(())
    }

    /// The sentence before "server x".
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Kill9 => "kill -9 of",
            Self::Linkdown => "the link is down to",
            Self::Cut => "silence falls around",
            Self::Freeze => "SIGSTOP for",
        }
    }
}

/// Gets the powers that worlds need: those of root, or of a user namespace of our own.
///
/// The process must have one thread only.
pub(super) fn take_powers() -> Result<(), StageError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { become_user_root() }
}

/// Gets the powers of a user namespace of our own.
///
/// The process must have one thread only.
pub(super) fn become_user_root() -> Result<(), StageError> {
    haven::become_user_root().map_err(|source| {
        let what = "a user namespace".into();
        StageError::World(WorldError::Refused { kind: crate::lab::Kind::User, what, source })
    })
}
