//! Servers that a sync copies as a whole, their connections included: two guests or two containers.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::containers::Containers;
use super::guests::{FILE_BYTES, Guests};
use super::stage::{Stage, StageError, server_name};
use crate::engine::LegId;

/// What they are.
#[derive(Clone, Debug)]
pub(super) enum Copied {
    /// Virtual machines, which the gateway starts.
    Guests(Guests),
    /// Process trees.
    Containers(Containers),
}

impl Copied {
    /// One of them.
    pub(super) const fn noun(&self) -> &'static str {
        match self {
            Self::Guests(_) => "guest",
            Self::Containers(_) => "container",
        }
    }

    /// What begins with the gateway.
    pub(super) const fn beginning(&self) -> &'static str {
        match self {
            Self::Guests(_) => {
                "two guests of Debian's kernel, nginx and vsftpd start; emulated, this takes a \
                 while"
            }
            Self::Containers(_) => {
                "two containers start, each with servers for web and FTP; a sync copies their \
                 processes"
            }
        }
    }

    /// The links to the servers, as in `links`.
    pub(super) fn links(&self) -> [String; 2] {
        match self {
            Self::Guests(guests) => LegId::ALL.map(|leg| guests.link(leg)),
            Self::Containers(_) => LegId::ALL.map(|leg| server_name(leg).to_owned()),
        }
    }

    /// What the servers' own sections say besides.
    pub(super) fn lines(&self) -> [String; 2] {
        match self {
            Self::Guests(_) => Default::default(),
            Self::Containers(containers) => LegId::ALL.map(|leg| containers.line(leg)),
        }
    }

    /// The sections of the backend.
    pub(super) fn sections(&self) -> String {
        match self {
            Self::Guests(guests) => guests.sections(),
            Self::Containers(containers) => containers.sections(),
        }
    }

    /// What has to run before the gateway does.
    pub(super) fn start(&self, stage: &Stage) -> Result<(), StageError> {
        match self {
            Self::Guests(_) => Ok(()),
            Self::Containers(containers) => containers.start(stage),
        }
    }

    /// Waits until this server has started.
    pub(super) fn wait_started(&self, leg: LegId, wait: Duration) -> io::Result<()> {
        match self {
            Self::Guests(guests) => guests.wait_started(leg, wait),
            Self::Containers(_) => Ok(()), // protection says all
        }
    }

    /// Makes what this server says of a file of [`FILE_BYTES`] differ; what that is called.
    pub(super) fn differ(&self, stage: &Stage, leg: LegId) -> Result<&'static str, StageError> {
        match self {
            Self::Guests(guests) => {
                let file = format!("/srv/www/bytes/{FILE_BYTES}");
                let change = format!(
                    "printf diff | dd of={file} bs=1 seek=400000 conv=notrunc 2>/dev/null; \
                     touch -d @1700000000 {file}"
                );
                let whispered = guests.whisper(leg, &change);
                let said = |source| StageError::Io { what: "changing a guest's file", source };
                whispered.map_err(said)?;
                Ok("four bytes of a file change inside of")
            }
            Self::Containers(containers) => {
                containers.signal(stage, leg, Signal::SIGUSR1)?;
                Ok("a byte of each answer is wrong from now on, by the memory of")
            }
        }
    }

    /// Kills this server; what that was.
    pub(super) fn kill(&self, stage: &Stage, leg: LegId) -> Result<String, StageError> {
        match self {
            Self::Guests(guests) => Ok(format!("the QEMU of {}", guests.kill(stage, leg)?)),
            Self::Containers(containers) => {
                containers.signal(stage, leg, Signal::SIGKILL)?;
                Ok(format!("all processes of container {}", server_name(leg)))
            }
        }
    }

    /// What has happened when a server is back.
    pub(super) const fn coming_back(&self) -> &'static str {
        match self {
            Self::Guests(_) => "a new guest took its place and was made a copy",
            Self::Containers(_) => "its container was filled with a copy",
        }
    }
}
