//! The virtual machines of `demo` and `bench`: what they are made of, how the gateway is told of
//! them, and what befalls them.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::stage::{Stage, StageError, server_name};
use crate::config::Config;
use crate::engine::LegId;
use crate::lab::HostId;
use crate::lab::world::{CLIENT, SERVICE, WorldError};
use crate::sync::qemu::setup::QemuSetup;

/// What builds the guest's files.
const SCRIPT: &str = "./testbed/guest-image";
const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a guest.
const MEMORY: &str = "160MiB";
/// Lengths of the files that a guest has (`testbed/guest-image`).
pub(super) const SMALL_BYTES: u64 = 2_000;
/// A file of some length.
pub(super) const FILE_BYTES: u64 = 777_777;
/// A file that takes a while.
pub(super) const LARGE_BYTES: u64 = 24_000_000;

/// Two guests of Debian's kernel, nginx and vsftpd.
#[derive(Clone, Debug)]
pub(super) struct Guests {
    program: PathBuf,
    image: PathBuf,
    /// Where their sockets are.
    dir: PathBuf,
    copy: MemoryCopy,
}

/// How their memory is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum MemoryCopy {
    /// QEMU sends it while the guest runs on
    #[default]
    Live,
    /// It is a file, and the pages that were written are copied
    Shared,
}

impl Guests {
    /// Guests made of what is there; the image beside this program, or in ./target/guest, unless
    /// it is named.
    pub(super) fn find(
        image: Option<&Path>,
        dir: &Path,
        copy: MemoryCopy,
    ) -> Result<Self, StageError> {
        let unavailable = |what: &str| {
            StageError::Unavailable(format!(
                "vm: {what}; run {SCRIPT}, which installs QEMU and builds the guest from Debian's \
                 packages"
            ))
        };
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let mut programs = std::env::split_paths(&paths).map(|dir| dir.join(PROGRAM));
        let program = programs.find(|path| path.is_file());
        let program = program.ok_or_else(|| unavailable("there is no qemu-system-x86_64 here"))?;
        let beside = std::env::current_exe().ok();
        let beside = beside.and_then(|file| Some(file.parent()?.parent()?.join("guest")));
        let places = match image {
            Some(image) => vec![image.to_owned()],
            None => beside.into_iter().chain([PathBuf::from("target/guest")]).collect(),
        };
        let is_whole = |dir: &&PathBuf| dir.join("version").is_file();
        let Some(image) = places.iter().find(is_whole) else {
            let looked: Vec<_> = places.iter().map(|dir| dir.display().to_string()).collect();
            return Err(unavailable(&format!("no guest is built in {}", looked.join(" or "))));
        };
        let image = image.canonicalize();
        let image = image.map_err(|source| StageError::Io { what: "finding the guest", source })?;
        Ok(Self { program, image, dir: dir.join("vm"), copy })
    }

    /// The link to a server, as in `links`.
    pub(super) fn link(&self, leg: LegId) -> String {
        format!("unix:{}/link-{}", self.dir.display(), server_name(leg))
    }

    /// The sections of the backend.
    pub(super) fn sections(&self) -> String {
        let (image, dir) = (self.image.display(), self.dir.display());
        let ((v4, v6), (router, _)) = (SERVICE, CLIENT);
        let copy = match self.copy {
            MemoryCopy::Live => "copy = \"live\"".to_owned(),
            MemoryCopy::Shared => format!("copy = \"shared\"\nmemory_dir = \"{dir}/memory\""),
        };
        // Emulation works everywhere; KVM may be there and yet not work, within another machine.
        // An emulated guest on a busy host does not answer within ten milliseconds, and a fresh one
        // has to be translated anew.
        format!(
            "[failover]\nprobe_every = \"150ms\"\n\
             [compare]\nhold_soft = \"200ms\"\nhold_hard = \"1s\"\n\
             [sync]\nbackend = \"qemu\"\ndeadline = \"10s\"\n[sync.qemu]\nprogram = \"{}\"\n\
             accel = [\"tcg\"]\nmemory = \"{MEMORY}\"\nkernel = \"{image}/vmlinuz\"\n\
             initrd = \"{image}/initrd.img\"\n\
             append = \"console=ttyS0 quiet oops=panic panic=-1 guest.address={v4}/24 \
             guest.address6={v6}/64 guest.router={router}\"\ndir = \"{dir}\"\n{copy}\n\
             args = [\"-serial\", \"file:{{dir}}/{{name}}.log\", \"-serial\", \
             \"unix:{{dir}}/{{name}}.shell,server=on,wait=off\"]\n",
            self.program.display()
        )
    }

    /// The same for a keeper without a gateway.
    pub(super) fn setup(&self) -> Result<QemuSetup, StageError> {
        let words = format!("{}{}", self.frame(), self.sections());
        let config = Config::parse(&words, Path::new("(of the bench)"));
        let config = config.map_err(|problems| StageError::Io {
            what: "describing the guests",
            source: io::Error::other(problems.to_string()),
        })?;
        super::run::guests::setup_of(&config)
            .ok_or_else(|| StageError::Unavailable("vm: the description has no guests".into()))
    }

    /// What a configuration has besides.
    fn frame(&self) -> String {
        let [a, b] = LegId::ALL.map(|leg| self.link(leg));
        format!(
            "[links]\nclient = \"client\"\na = \"{a}\"\nb = \"{b}\"\n[service]\n\
             addressing = \"clone\"\naddress = \"{}\"\nports = [80]\n\
             [[server]]\nname = \"a\"\nrole = \"primary\"\n\
             [[server]]\nname = \"b\"\nrole = \"backup\"\n",
            SERVICE.0
        )
    }

    /// Waits until the guest that is this server has started.
    pub(super) fn wait_started(&self, leg: LegId, wait: Duration) -> io::Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            let log = self.dir.join(format!("{}.log", self.name(leg)?));
            if std::fs::read_to_string(log).is_ok_and(|text| text.contains("guest: ready")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("it has not started within {wait:?}")));
            }
            // Nothing tells when a guest has said something.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The name of the guest that is this server now.
    pub(super) fn name(&self, leg: LegId) -> io::Result<String> {
        let name = server_name(leg);
        let generation = std::fs::read_to_string(self.dir.join(format!("{name}.guest")))?;
        Ok(format!("{name}-{}", generation.trim()))
    }

    /// Has the guest that is this server do something, by its second serial line: neither its
    /// servers nor the gateway know.
    pub(super) fn whisper(&self, leg: LegId, command: &str) -> io::Result<()> {
        loop {
            let name = self.name(leg)?;
            let told = self.whisper_to(&name, command);
            // A copy may just have taken its place.
            if told.is_ok() || self.name(leg)? == name {
                return told;
            }
        }
    }

    fn whisper_to(&self, name: &str, command: &str) -> io::Result<()> {
        let shell = self.dir.join(format!("{name}.shell"));
        let mut shell = UnixStream::connect(shell)?;
        shell.write_all(format!("{command}; echo done''now\n").as_bytes())?;
        // The shell's echo of the line has other quotes in it than what it says.
        let mut heard = Vec::new();
        let mut byte = [0];
        while !heard.ends_with(b"donenow") {
            io::Read::read_exact(&mut shell, &mut byte)?;
            heard.push(byte[0]);
        }
        Ok(())
    }

    /// Kills the QEMU of this server; the name of the guest.
    pub(super) fn kill(&self, stage: &Stage, leg: LegId) -> Result<String, StageError> {
        let name = self.name(leg);
        let name = name.map_err(|source| StageError::Io { what: "naming the guest", source })?;
        let mark = format!("/{name}.pid");
        let processes = stage.world.processes(HostId::Gateway)?;
        let found = processes.iter().find(|(_, line)| line.contains(&mark));
        let (pid, _) = found.ok_or(WorldError::Gone(HostId::Server(leg)))?;
        stage.world.signal(HostId::Gateway, *pid, Signal::SIGKILL)?;
        Ok(name)
    }
}
