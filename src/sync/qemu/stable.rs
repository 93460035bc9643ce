//! Where guests live: starts them, finds those of an earlier gateway, ends them.
//!
//! A guest is a process of its own (`-daemonize`) that outlives the gateway: a gateway that starts
//! again finds both, by a file that names the generation in force for each server.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::qmp::Monitor;
use super::setup::{QemuSetup, Which};
use super::twin::Writes;

/// What an emulated guest has more memory than it is said to have; QEMU takes no less.
const ODD_KIB: u64 = 8;

/// What a keeper needs of a host.
pub trait Stable {
    /// Starts a guest. The descriptor brings what it complains of, and ends when it stands, or has
    /// failed.
    fn start(&mut self, which: Which, is_standby: bool) -> io::Result<OwnedFd>;
    /// The monitor of a guest that stands; an error if it has failed.
    fn open(&mut self, which: Which) -> io::Result<Monitor>;
    /// The memory of a guest that stands; an error if it is no file.
    fn memory(&mut self, which: Which) -> io::Result<File>;
    /// Notes from now on what of its memory a guest writes.
    fn watch(&mut self, which: Which) -> io::Result<Box<dyn Writes>>;
    /// Kills a guest and takes its files away.
    fn end(&mut self, which: Which);
    /// Makes a guest the one in force for its server, also after the keeper's end.
    fn record(&mut self, which: Which) -> io::Result<()>;
    /// The guest in force for a server, if an earlier gateway has left one.
    fn recorded(&mut self, leg: usize) -> Option<Which>;
    /// Takes away whatever belongs to nobody in `kept`; the highest generation that was seen.
    fn tidy(&mut self, kept: &[Which]) -> u32;
}

/// Notes what a process writes of a file that it has mapped.
pub type Watcher = fn(u32, &File) -> io::Result<Box<dyn Writes>>;

/// Guests on this host.
#[derive(Debug)]
pub struct Host {
    setup: QemuSetup,
    watcher: Watcher,
    /// Processes that start guests, until they have ended.
    starting: BTreeMap<u32, Child>,
    processes: BTreeMap<u32, OwnedFd>,
    _locks: Vec<Flock<File>>,
}

impl Host {
    /// Takes the directories, which no other keeper may have.
    pub fn new(setup: QemuSetup, watcher: Watcher) -> io::Result<Self> {
        let mut locks = Vec::new();
        for dir in [Some(&setup.dir), setup.memory_dir.as_ref()].into_iter().flatten() {
            locks.push(take_dir(dir, setup.run_as).map_err(|error| {
                let what = format!("the directory of guests {}: {error}", dir.display());
                io::Error::new(error.kind(), what)
            })?);
        }
        let (starting, processes) = (BTreeMap::new(), BTreeMap::new());
        let setup = copies_whole(setup, has_kvm);
        Ok(Self { setup, watcher, starting, processes, _locks: locks })
    }

    fn pid(&self, which: Which) -> io::Result<Pid> {
        let pid = fs::read_to_string(self.setup.file(which, "pid"))?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| io::Error::other("its file has no process in it"))
    }

    fn record_file(&self, leg: usize) -> PathBuf {
        self.setup.dir.join(format!("{}.guest", self.setup.names[leg]))
    }
}

/// A directory for the guests' files only, and nobody else's while the lock is held.
fn take_dir(dir: &Path, owner: Option<(u32, u32)>) -> io::Result<Flock<File>> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if let Some((uid, gid)) = owner {
        chown(dir, Some(uid), Some(gid))?;
    }
    let file = File::options().create(true).append(true).open(dir.join("lock"))?;
    // A keeper whose gateway has just ended is about to end too.
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// A guest of this kind whose live copies are whole.
///
/// Before version 9.0 QEMU in emulation forgets, where a piece of memory is a whole number of 64
/// pages, to note the next change of pages that it has just looked through: a copy of a guest that
/// was busy lacks some. Other pieces it looks through page by page, as it should; with hardware
/// that would only cost time.
pub(super) fn copies_whole(
    mut setup: QemuSetup,
    has_hardware: impl FnOnce(&QemuSetup) -> bool,
) -> QemuSetup {
    let is_emulation = |accel: &String| accel.starts_with("tcg");
    let may_emulate = setup.accel.iter().any(is_emulation);
    if may_emulate && (setup.accel.iter().all(is_emulation) || !has_hardware(&setup)) {
        setup.memory_kib += ODD_KIB;
    }
    setup
}

/// Whether QEMU, given the choice, takes the processor's own virtualization here.
fn has_kvm(setup: &QemuSetup) -> bool {
    let mut command = Command::new(&setup.program);
    command.args(["-no-user-config", "-nodefaults", "-display", "none", "-M", "none"]);
    command.args(setup.accel.iter().flat_map(|accel| ["-accel", accel]));
    command.args(["-qmp", "stdio"]).current_dir("/");
    if let Some((uid, gid)) = setup.run_as {
        command.uid(uid).gid(gid);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut ask = || -> io::Result<Vec<u8>> {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            for word in ["qmp_capabilities", "query-kvm", "quit"] {
                writeln!(input, "{{\"execute\": \"{word}\"}}")?;
            }
        }
        Ok(child.wait_with_output()?.stdout)
    };
    // One that cannot be asked cannot be started either, and that is told then.
    let said = ask().unwrap_or_default();
    let lines = said.split(|&byte| byte == b'\n');
    let answers = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    answers.into_iter().any(|answer| answer["return"]["enabled"] == true)
}

impl Stable for Host {
    fn start(&mut self, which: Which, is_standby: bool) -> io::Result<OwnedFd> {
        let (ours, theirs) = io::pipe()?;
        let mut command = Command::new(&self.setup.program);
        command.args(self.setup.args(which, is_standby)).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(theirs));
        if let Some((uid, gid)) = self.setup.run_as {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.setup.program))
        })?;
        self.starting.insert(which.generation, child);
        Ok(ours.into())
    }

    fn open(&mut self, which: Which) -> io::Result<Monitor> {
        if let Some(mut child) = self.starting.remove(&which.generation) {
            let status = child.wait()?;
            if !status.success() {
                return Err(io::Error::other(format!("{}: {status}", self.setup.program)));
            }
        }
        let pid = self.pid(which)?;
        // The monitor is connected after this, so that the process is the one that was meant.
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let monitor = Monitor::over(UnixStream::connect(self.setup.file(which, "qmp"))?)?;
        self.processes.insert(which.generation, process);
        Ok(monitor)
    }

    fn memory(&mut self, which: Which) -> io::Result<File> {
        let path = self.setup.memory(which);
        let path = path.ok_or_else(|| io::Error::other("it is no file"))?;
        File::options().read(true).write(true).open(path)
    }

    fn watch(&mut self, which: Which) -> io::Result<Box<dyn Writes>> {
        let pid = self.pid(which)?.as_raw_pid().unsigned_abs();
        (self.watcher)(pid, &self.memory(which)?)
    }

    fn end(&mut self, which: Which) {
        if let Some(mut child) = self.starting.remove(&which.generation) {
            // One that has ended already is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(process) = self.processes.remove(&which.generation) {
            let _ = pidfd_send_signal(process.as_fd(), Signal::KILL);
        }
        for kind in ["qmp", "pid", "state"] {
            let _ = fs::remove_file(self.setup.file(which, kind));
        }
        let _ = fs::remove_file(self.setup.link(which));
        let _ = self.setup.memory(which).map(fs::remove_file);
    }

    fn record(&mut self, which: Which) -> io::Result<()> {
        let file = self.record_file(which.leg);
        let draft = file.with_extension("new");
        fs::write(&draft, which.generation.to_string())?;
        fs::rename(draft, file)
    }

    fn recorded(&mut self, leg: usize) -> Option<Which> {
        let text = fs::read_to_string(self.record_file(leg)).ok()?;
        Some(Which { leg, generation: text.trim().parse().ok()? })
    }

    fn tidy(&mut self, kept: &[Which]) -> u32 {
        let mut highest = kept.iter().map(|which| which.generation).max().unwrap_or(0);
        let entries = fs::read_dir(&self.setup.dir).into_iter().flatten().flatten();
        let names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        for name in names {
            let Some(stem) = name.strip_suffix(".pid") else { continue };
            for leg in 0..2 {
                let rest = stem.strip_prefix(&self.setup.names[leg]);
                let number = rest.and_then(|rest| rest.strip_prefix('-')?.parse().ok());
                let Some(generation) = number else { continue };
                let which = Which { leg, generation };
                highest = highest.max(generation);
                if !kept.contains(&which) {
                    // Connected, it is surely the guest, and not another process of its number.
                    let _ = self.open(which);
                    self.end(which);
                }
            }
        }
        highest
    }
}
