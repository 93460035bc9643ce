//! A container: the namespaces of its first process, and the one tree of processes below that.
//!
//! The first process is whatever the operator has made it; it only has to reap its children, and is
//! never copied. What it has one child of is the server.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long the first process may take to reap them.
const REAP_WAIT: Duration = Duration::from_secs(1);
/// How long processes may take to stand still.
const STOP_WAIT: Duration = Duration::from_secs(1);
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
            let killed: Vec<_> =
                processes.into_iter().filter_map(|pid| signal(pid, Signal::KILL)).collect();
            for process in &killed {
                let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
                // Interrupted or late, the next look tells.
                let _ = poll(&mut fds, PollTimeout::from(KILL_WAIT_MS));
            }
        }
        Err(format!("processes below {} cannot be killed", self.init))
    }

    /// Has the whole tree stand still until it is killed, or what is returned is dropped. The file
    /// `mark` is there as long, for [`Self::go_on`].
    pub fn stop(&self, mark: &Path) -> Result<Stopped, String> {
        let begun = Instant::now();
        fs::write(mark, "").map_err(|error| format!("{}: {error}", mark.display()))?;
        let mut stopped = Stopped { processes: Vec::new(), mark: mark.to_owned() };
        let mut before = Vec::new();
        loop {
            let processes = self.processes();
            let moving = processes.iter().find(|&&pid| !stands_still(pid)).copied();
            // What was started just before by one that stands still now is seen by a second look.
            if moving.is_none() && processes == before {
                return Ok(stopped);
            }
            stopped.add(processes.iter().copied().filter(|&pid| !stands_still(pid)));
            if let Some(pid) = moving.filter(|_| begun.elapsed() > STOP_WAIT) {
                return Err(format!("process {pid} below {} does not stand still", self.init));
            }
            if moving.is_some() {
                // Nothing tells when a process stands still but to its parent.
                std::thread::sleep(Duration::from_micros(200));
            }
            before = if moving.is_none() { processes } else { Vec::new() };
        }
    }

    /// Has a tree go on if whoever stopped it was killed meanwhile.
    pub fn go_on(&self, mark: &Path) {
        if mark.exists() {
            self.processes().into_iter().for_each(|pid| drop(signal(pid, Signal::CONT)));
            // If it stays, the next one has them go on once more.
            let _ = fs::remove_file(mark);
        }
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

/// Processes that stand still; when this is dropped they go on.
#[derive(Debug)]
pub struct Stopped {
    processes: Vec<(i32, OwnedFd)>,
    mark: PathBuf,
}

impl Stopped {
    /// Stops these as well. One that has just ended needs no signal.
    fn add(&mut self, processes: impl Iterator<Item = i32>) {
        for pid in processes {
            if self.processes.iter().all(|(known, _)| *known != pid)
                && let Some(process) = signal(pid, Signal::STOP)
            {
                self.processes.push((pid, process));
            }
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for (_, process) in &self.processes {
            let _ = pidfd_send_signal(process, Signal::CONT);
        }
        // If it stays, they are told once more.
        let _ = fs::remove_file(&self.mark);
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
    let state = state(Path::new(&format!("/proc/{pid}")));
    !matches!(state, Some(state) if state != 'Z' && state != 'X')
}

/// Whether no thread of a process runs, or it is gone.
fn stands_still(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    // One that ended after the look has no state.
    tasks.filter_map(|task| state(&task.path())).all(|state| "TtZX".contains(state))
}

/// The state of a process, or of a thread, with this directory.
fn state(dir: &Path) -> Option<char> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The name before the state may have anything in it.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The number of a process in the innermost of its pid namespaces.
fn inner(pid: i32) -> Result<i32, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.map_err(|error| format!("process {pid}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let number = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
    number.ok_or_else(|| format!("process {pid} has no number of its own in its container"))
}

fn signal(pid: i32, signal: Signal) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // One that has just ended needs no signal.
    let _ = pidfd_send_signal(&process, signal);
    Some(process)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    /// A first process, and below it one that says again what it is told, below a shell.
    #[test]
    fn a_tree_stands_still_and_goes_on() {
        let mut init = Command::new("/bin/sh")
            .args(["-c", "/bin/sh -c 'cat; :'; :"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let (mut into, from) = (init.stdin.take().expect("a pipe"), init.stdout.take());
        let mut from = BufReader::new(from.expect("a pipe"));
        let mut is_answered = || {
            let mut line = String::new();
            writeln!(into, "said").expect("it listens");
            from.read_line(&mut line).expect("it answers");
            line == "said\n"
        };
        assert!(is_answered());
        let space = Space { init: i32::try_from(init.id()).expect("a number") };
        let tree = space.processes();
        assert_eq!(tree.len(), 2);
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("stopped");
        let stopped = space.stop(&mark).expect("it can be stopped");
        assert!(tree.iter().all(|&pid| stands_still(pid)));
        assert!(!stands_still(space.init), "what is never copied is let alone");
        drop(stopped);
        assert!(is_answered());
        // Whoever stopped it was killed.
        std::mem::forget(space.stop(&mark).expect("it can be stopped"));
        space.go_on(&mark);
        assert!(is_answered());
        assert!(!mark.exists());
        // What stands still can be killed.
        let _stopped = space.stop(&mark).expect("it can be stopped");
        tree.iter().for_each(|&pid| drop(signal(pid, Signal::KILL)));
        assert!(init.wait().is_ok());
    }

    #[test]
    fn an_empty_container_stands_still() {
        let mut init = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a process");
        let space = Space { init: i32::try_from(init.id()).expect("a number") };
        let dir = tempfile::tempdir().expect("a directory");
        let stopped = space.stop(&dir.path().join("stopped")).expect("nobody moves");
        assert_eq!(stopped.processes.len(), 0);
        drop(init.stdin.take());
        assert!(init.wait().is_ok());
    }
}
