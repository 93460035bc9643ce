//! A container: the namespaces of its first process, and the one tree of processes below that.
//!
//! The first process is whatever the operator has made it; it only has to reap its children, and is
//! never copied. What it has one child of is the server.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long the first process may take to reap them.
const REAP_WAIT: Duration = Duration::from_secs(1);
/// How long killed processes may take to end.
const KILL_WAIT_MS: u16 = 2000;
/// A tree has fewer processes than this, or something is wrong.
const PROCESSES_MAX: usize = 10_000;

/// A container, as long as its first process lives.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    init: i32,
}

impl Space {
    /// The container whose first process has its number in `file`.
    pub fn find(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text = fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
        let init = text.trim().parse().ok().filter(|&pid| pid > 1);
        let init: i32 = init.ok_or_else(|| format!("{shown} has no process number in it"))?;
        let own = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid"));
        match own(&init.to_string()) {
            Ok(space) if own("self").is_ok_and(|ours| ours != space) => Ok(Self { init }),
            Ok(_) => Err(format!("process {init} of {shown} has no pid namespace of its own")),
            Err(error) => Err(format!("process {init} of {shown}: {error}")),
        }
    }

    /// A command inside the container.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--pid", "--mount", "--ipc", "--target", &self.init.to_string()]);
        command.args(["--", program]).current_dir("/").stdin(Stdio::null());
        command
    }

    /// The root of the server's tree: its number outside of the container and inside.
    pub fn root(&self) -> Result<(i32, i32), String> {
        match children(self.init)[..] {
            [root] => Ok((root, inner(root)?)),
            [] => Err(format!("no process runs below the container's first one ({})", self.init)),
            [a, b, ..] => Err(format!(
                "the container's first process ({}) has several children ({a} and {b} are two): \
                 start all of the server below one process, in the foreground",
                self.init
            )),
        }
    }

    /// All processes of the tree, or trees, by their numbers outside.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = children(self.init);
        let mut at = 0;
        while at < found.len() && found.len() < PROCESSES_MAX {
            found.extend(children(found[at]));
            at += 1;
        }
        found
    }

    /// The highest number that a process has inside the container.
    pub fn highest(&self) -> i32 {
        self.processes().into_iter().filter_map(|pid| inner(pid).ok()).max().unwrap_or(1)
    }

    /// Kills the whole tree, and destroys what its sockets leave behind: an orphan would speak on,
    /// and keep the copy from its address.
    pub fn clear(&self) -> Result<(), String> {
        // One that is killed while it starts another leaves that one to the next look.
        for _ in 0..10 {
            let processes = self.processes();
            if processes.is_empty() {
                self.wait_reaped()?;
                return self.destroy_sockets();
            }
            let killed: Vec<_> = processes.into_iter().filter_map(kill).collect();
            for process in &killed {
                let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
                // Interrupted or late, the next look tells.
                let _ = poll(&mut fds, PollTimeout::from(KILL_WAIT_MS));
            }
        }
        Err(format!("processes below {} cannot be killed", self.init))
    }

    /// The copy gets the numbers of the source's processes: no dead one may have them still.
    fn wait_reaped(&self) -> Result<(), String> {
        let begun = Instant::now();
        while !all_children(self.init).is_empty() {
            if begun.elapsed() > REAP_WAIT {
                let init = self.init;
                return Err(format!("the container's first process ({init}) does not reap"));
            }
            // Nothing tells when a process was reaped by another one.
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn destroy_sockets(&self) -> Result<(), String> {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.init.to_string(), "--", "ss", "-K", "-H", "-t"]);
        let done = command.stdin(Stdio::null()).stdout(Stdio::null()).output();
        let done = done.map_err(|error| format!("nsenter: {error}"))?;
        match done.status.success() {
            true => Ok(()),
            false => Err(format!(
                "the sockets left in the container cannot be destroyed (iproute2's ss): {}",
                String::from_utf8_lossy(&done.stderr).trim()
            )),
        }
    }

    /// Keeps the container's kernel from saying something new on a connection while nobody answers:
    /// a tail loss probe may carry bytes that the checkpoint has as unsent.
    pub fn still_kernel(&self) -> io::Result<()> {
        let write = "echo 0 >/proc/sys/net/ipv4/tcp_early_retrans";
        let done = self.command("/bin/sh").args(["-c", write]).output()?;
        match done.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned())),
        }
    }

    /// The number of the container's first process, outside.
    pub fn init(&self) -> i32 {
        self.init
    }
}

/// The living children of a process.
fn children(pid: i32) -> Vec<i32> {
    let mut found = all_children(pid);
    found.retain(|&pid| !is_dead(pid));
    found
}

/// The children of a process, those that died and were not reaped among them; none if it is gone.
fn all_children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let mut found = Vec::new();
    for list in lists {
        found.extend(list.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    found
}

fn is_dead(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the state may have anything in it.
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, Some(Some(state)) if state != 'Z' && state != 'X')
}

/// The number of a process in the innermost of its pid namespaces.
fn inner(pid: i32) -> Result<i32, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.map_err(|error| format!("process {pid}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let number = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
    number.ok_or_else(|| format!("process {pid} has no number of its own in its container"))
}

fn kill(pid: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // One that has just ended needs no signal.
    let _ = pidfd_send_signal(&process, Signal::KILL);
    Some(process)
}
