//! What a caller holds of a host: the socket of its init, and the programs that it starts there.
//!
//! A [`Child`] is the child of the host's init, not ours; its end is told by a pipe and its pidfd.
//! Dropping one does not end the program; the end of the host or the world does.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::time::clock_getcpuclockid;
use nix::unistd::{Pid, pipe2};

use super::agent::{self, Reply, Request};
use super::impair::Impairment;
use super::message;
use super::netlink::Mac;
use super::world::{HostId, WorldError};

/// Where a standard stream of a program comes from or goes to.
#[derive(Debug)]
pub enum Io {
    /// Nowhere.
    Null,
    /// Ours.
    Inherit,
    /// A pipe; our end is in the [`Child`].
    Pipe,
    /// This file.
    File(File),
}

/// A program to run in a host. Its environment is ours with the changes made here.
#[derive(Debug)]
pub struct Program {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<OsString>,
    streams: [Io; 3],
}

impl Program {
    /// A program by path or by name in PATH, with nothing to read and our output streams.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: std::env::vars_os().collect(),
            dir: None,
            streams: [Io::Null, Io::Inherit, Io::Inherit],
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let name = name.as_ref();
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().as_os_str().to_owned());
        self
    }

    /// Sets standard input.
    #[must_use]
    pub fn stdin(mut self, io: Io) -> Self {
        self.streams[0] = io;
        self
    }

    /// Sets standard output.
    #[must_use]
    pub fn stdout(mut self, io: Io) -> Self {
        self.streams[1] = io;
        self
    }

    /// Sets standard error.
    #[must_use]
    pub fn stderr(mut self, io: Io) -> Self {
        self.streams[2] = io;
        self
    }
}

/// A program that runs, or has run, in a host.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    status_pipe: File,
    status: Option<ExitStatus>,
    /// Our end of its standard input, if it is a pipe.
    pub stdin: Option<File>,
    /// Our end of its standard output, if it is a pipe.
    pub stdout: Option<File>,
    /// Our end of its standard error, if it is a pipe.
    pub stderr: Option<File>,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote as errors.
    pub stderr: Vec<u8>,
}

impl Child {
    /// Its number inside the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Signals it. A program that has ended already is no error.
    #[allow(unsafe_code)]
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        let (fd, signal) = (self.pidfd.as_raw_fd(), signal as i32);
        // SAFETY: plain system call on a descriptor that we own; no siginfo is given.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
        match io::Error::last_os_error() {
            _ if done == 0 => Ok(()),
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        }
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Waits for its end. If its whole host was ended, it counts as killed.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.stdin = None;
        let mut bytes = [0; 4];
        let status = match self.status_pipe.read_exact(&mut bytes) {
            Ok(()) => ExitStatus::from_raw(i32::from_ne_bytes(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                ExitStatus::from_raw(Signal::SIGKILL as i32)
            }
            Err(e) => return Err(e),
        };
        self.status = Some(status);
        Ok(status)
    }

    /// Waits for its end for at most `limit`; `None` if it still runs.
    pub fn wait_timeout(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() && !readable(&self.status_pipe, limit)? {
            return Ok(None);
        }
        self.wait().map(Some)
    }

    /// Memory that it has in use, in bytes (`VmRSS`).
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let pid = self.outer_pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(field(&status, "VmRSS:")? * 1024)
    }

    /// Processor time that all its threads have used, and the kernel on their behalf.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let pid = i32::try_from(self.outer_pid()?).map_err(io::Error::other)?;
        Ok(clock_getcpuclockid(Pid::from_raw(pid))?.now()?.into())
    }

    /// Its number in our namespace, which is another than in its host.
    fn outer_pid(&self) -> io::Result<u64> {
        let info = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        field(&std::fs::read_to_string(info)?, "Pid:")
    }

    /// Its exit status if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Reads both output pipes to their end and waits.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        self.stdin = None;
        let (out, err) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = std::thread::scope(|scope| {
            let err = scope.spawn(|| read_all(err));
            let out = read_all(out);
            (out, err.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        Ok(Output { status: self.wait()?, stdout: stdout?, stderr: stderr? })
    }
}

/// The number behind `name` in a file of /proc.
fn field(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("no {name} there")))
}

/// The init of a host, or of the world.
#[derive(Debug)]
pub(crate) struct Agent {
    host: HostId,
    control: Mutex<OwnedFd>,
    /// The host's network namespace; of the world's init, the caller's.
    netns: Option<OwnedFd>,
    /// The pidfd of a host's init.
    init: Option<OwnedFd>,
}

impl Agent {
    /// Waits for the first word of a new init.
    pub(crate) fn greet(host: HostId, control: OwnedFd) -> Result<Self, WorldError> {
        let (reply, fds) = message::receive(&control)?.ok_or(WorldError::Gone(host))?;
        let mut fds = fds.into_iter();
        match reply {
            Reply::Hello => {
                let (netns, init) = (fds.next(), fds.next());
                Ok(Self { host, control: Mutex::new(control), netns, init })
            }
            other => Err(failure(host, other)),
        }
    }

    /// World init only: makes a host.
    pub(crate) fn new_host(&self, host: HostId) -> Result<Self, WorldError> {
        let (_, fds) = self.ask(&Request::NewHost, &[])?;
        let control = fds.into_iter().next().ok_or(WorldError::Gone(host))?;
        Self::greet(host, control)
    }

    /// Asks, and returns an answer that is not a failure.
    pub(crate) fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), WorldError> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |_| WorldError::Gone(self.host);
        message::send(&control, request, fds).map_err(gone)?;
        let answer = message::receive(&control).map_err(gone)?;
        match answer.ok_or(WorldError::Gone(self.host))? {
            (failed @ Reply::Failed { .. }, _) => Err(failure(self.host, failed)),
            answer => Ok(answer),
        }
    }

    /// Asks for something to be done.
    pub(crate) fn tell(&self, request: &Request) -> Result<(), WorldError> {
        self.ask(request, &[]).map(drop)
    }

    /// Makes a veth pair from this host to another one.
    pub(crate) fn add_veth(
        &self,
        name: &str,
        mac: Mac,
        (other, peer, peer_mac): (&Self, &str, Mac),
    ) -> Result<(), WorldError> {
        let (name, peer) = (name.to_owned(), peer.to_owned());
        let request = Request::AddVeth { name, mac, peer, peer_mac };
        self.ask(&request, &[other.netns()?]).map(drop)
    }

    pub(crate) fn netns(&self) -> Result<BorrowedFd<'_>, WorldError> {
        self.netns.as_ref().map(AsFd::as_fd).ok_or(WorldError::Gone(self.host))
    }

    pub(crate) fn packet_socket(&self, name: &str) -> Result<OwnedFd, WorldError> {
        let (_, fds) = self.ask(&Request::PacketSocket { name: name.to_owned() }, &[])?;
        fds.into_iter().next().ok_or(WorldError::Gone(self.host))
    }

    pub(crate) fn spawn(&self, program: Program) -> Result<Child, WorldError> {
        let Program { program, args, env, dir, streams } = program;
        let what = format!("starting {}", program.display());
        let [stdin, stdout, stderr] = streams;
        let (stdin, our_stdin) = open_stream(0, stdin)?;
        let (stdout, our_stdout) = open_stream(1, stdout)?;
        let (stderr, our_stderr) = open_stream(2, stderr)?;
        let request = Request::Spawn(agent::Program { program, args, env, dir });
        let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let answer = self.ask(&request, &fds).map_err(|e| match e {
            WorldError::Failed { host, source, .. } => WorldError::Failed { host, what, source },
            other => other,
        })?;
        let gone = || WorldError::Gone(self.host);
        let (Reply::Spawned { pid }, fds) = answer else { return Err(gone()) };
        let [pidfd, status] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| gone())?;
        Ok(Child {
            pid,
            pidfd,
            status_pipe: File::from(status),
            status: None,
            stdin: our_stdin,
            stdout: our_stdout,
            stderr: our_stderr,
        })
    }

    /// Starts an impairment forwarder between the interfaces `up` and `down` of this host.
    pub(crate) fn forwarder(&self, impairment: Impairment) -> Result<OwnedFd, WorldError> {
        let (ours, theirs) = agent::pair()?;
        let (up, down) = ("up".to_owned(), "down".to_owned());
        let request = Request::Impair { up, down, impairment };
        self.ask(&request, &[theirs.as_fd()])?;
        Ok(ours)
    }

    /// Ends the init, and with it everything in its pid namespace; returns when it has ended.
    pub(crate) fn end(&self) {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let both = nix::sys::socket::Shutdown::Both;
        // It may be dead already, which is what we want.
        let _ = nix::sys::socket::shutdown(control.as_raw_fd(), both);
        if let Some(init) = &self.init {
            let _ = readable(init, Duration::from_secs(10));
        }
    }
}

/// Why an init did not do what it was asked.
fn failure(host: HostId, reply: Reply) -> WorldError {
    match reply {
        Reply::Failed { what, errno } => {
            let source = match errno {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::Error::other("failed"),
            };
            WorldError::Failed { host, what, source }
        }
        _ => WorldError::Gone(host),
    }
}

/// The program's end of a standard stream, and ours if it is a pipe.
fn open_stream(number: i32, io: Io) -> io::Result<(OwnedFd, Option<File>)> {
    Ok(match io {
        Io::Null => (File::options().read(true).write(true).open("/dev/null")?.into(), None),
        Io::File(file) => (file.into(), None),
        Io::Inherit => {
            let ours = match number {
                0 => io::stdin().as_fd().try_clone_to_owned(),
                1 => io::stdout().as_fd().try_clone_to_owned(),
                _ => io::stderr().as_fd().try_clone_to_owned(),
            };
            (ours?, None)
        }
        Io::Pipe => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            let (theirs, ours) = if number == 0 { (read, write) } else { (write, read) };
            (theirs, Some(File::from(ours)))
        }
    })
}

fn read_all(file: Option<File>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut file) = file {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Waits until `fd` can be read, or has no writer any more.
fn readable(fd: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait never spins.
        let left = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
