//! Watches a service from beside it: its processes, its addresses, its interface.
//!
//! Whose processes they are is found by who has the listening sockets, or is written in a file. The
//! kernel tells at once when one of them ends (pidfd_open(2)); then, and once in a while, each
//! address is asked for a connection, which is closed without a word.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::health::{Answer, Report, Service};

/// How often it is looked at while nothing happens; and while not all is well.
const LOOK_EVERY_MS: u16 = 1000;
const LOOK_AGAIN_MS: u16 = 100;
/// How soon after a process has ended, and then after twice the time, and so on: whoever ends does
/// not end at once.
const LOOK_SOON_MS: u16 = 2;
/// A connection on the same host that takes longer is not answered.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// So many processes are watched at most; who has more has some left.
const PROCESSES_MAX: usize = 256;
/// The state of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// What is watched.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Where the service is, seen from this host.
    pub services: Vec<SocketAddr>,
    /// The file with the number of the process that has it; if there is none, whoever listens has.
    pub pid_file: Option<PathBuf>,
}

/// Watches in a thread of its own, as long as there is one.
#[derive(Debug)]
pub struct Watcher(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The last report, and the how many-eth it is.
    report: Mutex<(u64, Report)>,
    changed: Condvar,
}

impl Watcher {
    /// Begins, with a first look.
    pub fn start(watched: Watched) -> io::Result<Self> {
        let mut eye = Eye { watched, ..Eye::default() };
        let report = Mutex::new((0, eye.look(true)));
        let shared = Arc::new(Shared { report, ..Shared::default() });
        let told = Arc::downgrade(&shared);
        std::thread::Builder::new().name("watch".into()).spawn(move || eye.watch(&told))?;
        Ok(Self(shared))
    }

    /// The report that is newer than the one with the number `told`, or after `limit` the last one.
    pub fn wait(&self, told: Option<u64>, limit: Duration) -> (u64, Report) {
        let report = self.0.report.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |report: &mut (u64, Report)| Some(report.0) == told;
        let waited = self.0.changed.wait_timeout_while(report, limit, is_old);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// Who looks.
#[derive(Debug, Default)]
struct Eye {
    watched: Watched,
    processes: BTreeMap<i32, OwnedFd>,
    /// The listening sockets whose processes these are.
    sockets: Vec<u64>,
    /// Some process has ended since those were found.
    is_stale: bool,
    lived: bool,
    /// Until the next look.
    pause_ms: u16,
}

impl Eye {
    fn watch(mut self, told: &Weak<Shared>) {
        loop {
            let is_calm = self.wait();
            let report = self.look(is_calm);
            let Some(shared) = told.upgrade() else { return };
            let mut last = shared.report.lock().unwrap_or_else(PoisonError::into_inner);
            if last.1 != report {
                tracing::info!("{report}");
                *last = (last.0 + 1, report);
                shared.changed.notify_all();
            }
        }
    }

    /// Until a process ends, or it is time to look again, which is calm.
    fn wait(&self) -> bool {
        let of = |process: &OwnedFd| process.try_clone();
        let processes: Vec<OwnedFd> = self.processes.values().filter_map(|p| of(p).ok()).collect();
        let mut ends: Vec<PollFd<'_>> =
            processes.iter().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)).collect();
        // A signal is a reason to look.
        matches!(poll(&mut ends, PollTimeout::from(self.pause_ms)), Ok(0))
    }

    fn look(&mut self, is_calm: bool) -> Report {
        let before = self.processes.len();
        self.processes.retain(|_, process| !has_ended(process));
        let has_ended = self.processes.len() < before;
        let services = self.watched.services.iter();
        let services: Vec<Service> = services.map(|address| service(*address)).collect();
        // After that, or a socket that is just being closed would count for one more look.
        match self.watched.pid_file.clone() {
            Some(file) => self.find_named(&file),
            None => self.find_listening(has_ended, is_calm),
        }
        let mut accepts = services.iter().map(|service| service.answer == Answer::Accepts);
        let is_well = accepts.clone().all(|accepts| accepts);
        let pause_max = if is_well { LOOK_EVERY_MS } else { LOOK_AGAIN_MS };
        self.pause_ms = match has_ended {
            true => LOOK_SOON_MS,
            false => (self.pause_ms * 2).clamp(LOOK_SOON_MS, pause_max),
        };
        self.lived |= accepts.any(|accepts| accepts);
        if services.iter().all(|service| service.answer == Answer::Refuses) {
            // Its sockets are closed some time before it has ended.
            self.processes.retain(|pid, _| !is_ending(*pid));
        }
        // Somebody has a socket that listens, whether this one may see who or not.
        let processes = self.processes.len().max(usize::from(!self.sockets.is_empty()));
        Report { services, processes, has_lived: self.lived }
    }

    /// The process that a file names.
    fn find_named(&mut self, file: &Path) {
        let named = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        self.processes.retain(|pid, _| named == Some(*pid));
        named.into_iter().for_each(|pid| self.add(pid));
    }

    /// Whoever has the listening sockets, if those are not the ones that were, or somebody has
    /// ended: the latter has time until nothing happens, for to go through all processes takes
    /// some. Who has closed them, and nobody has opened others, may still serve a last connection.
    fn find_listening(&mut self, has_ended: bool, is_calm: bool) {
        self.is_stale |= has_ended;
        let mut sockets = Vec::new();
        for table in ["tcp", "tcp6"] {
            // Without IPv6 there is no second one.
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            sockets.extend(listening(&text.unwrap_or_default(), &self.watched.services));
        }
        sockets.sort_unstable();
        let is_due = self.is_stale && (is_calm || self.processes.is_empty());
        if !sockets.is_empty() && (sockets != self.sockets || is_due) {
            self.is_stale = false;
            let holders = holders(&sockets);
            self.processes.retain(|pid, _| holders.contains(pid));
            holders.into_iter().for_each(|pid| self.add(pid));
        }
        self.sockets = sockets;
    }

    fn add(&mut self, pid: i32) {
        if self.processes.contains_key(&pid) {
            return;
        }
        let opened = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        // One that has ended meanwhile is not there.
        if let Some(Ok(process)) = opened
            && self.processes.len() < PROCESSES_MAX
            && !has_ended(&process)
        {
            self.processes.insert(pid, process);
        }
    }
}

/// A process that has ended can be read, whether it was waited for or not.
fn has_ended(process: &OwnedFd) -> bool {
    let mut ends = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut ends, PollTimeout::ZERO), Ok(1..))
}

/// Whether the kernel is about to end this process: PF_EXITING among its flags (proc_pid_stat(5)).
fn is_ending(pid: i32) -> bool {
    const PF_EXITING: u32 = 4;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    let flags = text.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(6));
    let flags = flags.and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

fn service(address: SocketAddr) -> Service {
    let answer = match TcpStream::connect_timeout(&address, ANSWER_MAX) {
        Ok(_) => Answer::Accepts,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Refuses,
        Err(_) => Answer::Silent,
    };
    Service { address, answer, link: link_of(address.ip()) }
}

/// The interface with this address, and whether it has its carrier.
fn link_of(address: IpAddr) -> Option<(String, bool)> {
    let found = getifaddrs().ok()?.find(|entry| {
        let Some(own) = &entry.address else { return false };
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::from(own.ip()));
        let v6 = own.as_sockaddr_in6().map(|own| IpAddr::from(own.ip()));
        v4.or(v6) == Some(address)
    })?;
    Some((found.interface_name, found.flags.contains(InterfaceFlags::IFF_RUNNING)))
}

/// The sockets in a table of /proc/net that listen on one of these addresses.
fn listening(table: &str, services: &[SocketAddr]) -> Vec<u64> {
    let mut sockets = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        let [_, local, _, state, .., socket] = fields[..] else { continue };
        let (Some(local), Ok(socket)) = (address_of(local), socket.parse()) else { continue };
        let is_for = |service: &SocketAddr| {
            let is_same = local.ip().to_canonical() == service.ip().to_canonical();
            local.port() == service.port() && (is_same || local.ip().is_unspecified())
        };
        if state == LISTEN && services.iter().any(is_for) {
            sockets.push(socket);
        }
    }
    sockets
}

/// An address as the kernel writes it there: each four bytes as a number of the processor's.
fn address_of(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = host.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match host.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let mut bytes = [0; 16];
            bytes.iter_mut().zip(words.as_flattened()).for_each(|(to, from)| *to = *from);
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The processes that have one of these sockets open, as far as this one may see.
fn holders(sockets: &[u64]) -> Vec<i32> {
    let names: Vec<PathBuf> = sockets.iter().map(|n| format!("socket:[{n}]").into()).collect();
    let mut holders = Vec::new();
    // In a namespace with the /proc of another one the numbers there are other processes'.
    let own = fs::read_link("/proc/self").ok();
    let is_ours = own.and_then(|own| own.to_str()?.parse().ok()) == Some(std::process::id());
    if names.is_empty() || !is_ours {
        return holders;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| names.contains(&to)) {
            holders.push(pid);
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Waits for a report that is as it should be.
    fn until(watcher: &Watcher, is_so: impl Fn(&Report) -> bool) -> Report {
        let begun = Instant::now();
        let (mut turn, mut report) = watcher.wait(None, Duration::ZERO);
        while !is_so(&report) {
            assert!(begun.elapsed() < PATIENCE, "{report}");
            (turn, report) = watcher.wait(Some(turn), Duration::from_secs(1));
        }
        report
    }

    /// A server that is another process: it has the socket as its standard input.
    fn server(listener: TcpListener) -> Child {
        let mut sleeps = Command::new("/bin/sh");
        sleeps.args(["-c", "echo up; exec sleep 1000"]);
        sleeps.stdin(OwnedFd::from(listener)).stdout(Stdio::piped());
        let mut child = sleeps.spawn().expect("a process");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("its output"));
        said.read_line(&mut line).expect("it is up");
        child
    }

    #[test]
    fn the_death_of_a_server_is_told_at_once_and_its_return_too() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut child = server(listener);
        let watched = Watched { services: vec![address], pid_file: None };
        let watcher = Watcher::start(watched).expect("a watcher");
        let (_, first) = watcher.wait(None, Duration::ZERO);
        assert!(first.has_lived && first.processes == 1 && !first.is_gone(), "{first}");
        assert_eq!(first.services[0].link, Some(("lo".into(), true)));
        child.kill().expect("it is killed");
        until(&watcher, Report::is_gone);
        child.wait().expect("it has ended");
        // It returns with another process.
        let mut child = server(TcpListener::bind(address).expect("the same port"));
        let back = until(&watcher, |report| !report.is_gone() && report.processes == 1);
        assert_eq!(back.services[0].answer, Answer::Accepts);
        child.kill().and_then(|()| child.wait()).expect("it ends");
    }

    #[test]
    fn a_process_that_ends_while_another_has_the_socket_is_no_death() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut first = server(listener.try_clone().expect("the socket"));
        let mut second = server(listener);
        let watched = Watched { services: vec![address], pid_file: None };
        let watcher = Watcher::start(watched).expect("a watcher");
        until(&watcher, |report| report.processes == 2);
        first.kill().and_then(|()| first.wait()).expect("it is killed");
        let report = until(&watcher, |report| report.processes == 1);
        assert!(!report.is_gone() && report.services[0].answer == Answer::Accepts, "{report}");
        second.kill().and_then(|()| second.wait()).expect("it is killed");
        until(&watcher, Report::is_gone);
    }

    #[test]
    fn who_is_named_by_a_file_counts_and_its_file_may_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("pid");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().expect("a process");
        fs::write(&file, format!("{}\n", child.id())).expect("a file");
        let watched = Watched { services: vec![address], pid_file: Some(file.clone()) };
        let watcher = Watcher::start(watched).expect("a watcher");
        until(&watcher, |report| report.processes == 1 && report.has_lived);
        // The address refuses, but the process lives: perhaps it is about to listen again.
        drop(listener);
        let report = until(&watcher, |report| report.services[0].answer == Answer::Refuses);
        assert!(!report.is_gone(), "{report}");
        child.kill().and_then(|()| child.wait()).expect("it is killed");
        until(&watcher, Report::is_gone);
        fs::write(&file, std::process::id().to_string()).expect("a file");
        until(&watcher, |report| report.processes == 1);
    }

    #[test]
    fn what_never_lived_is_not_gone() {
        let unused = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = unused.local_addr().expect("its address");
        drop(unused);
        let watched = Watched { services: vec![address], pid_file: None };
        let watcher = Watcher::start(watched).expect("a watcher");
        let (_, report) = watcher.wait(None, Duration::ZERO);
        assert!(report.services[0].answer == Answer::Refuses && !report.is_gone(), "{report}");
    }

    #[test]
    fn listening_sockets_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode\n\
                     0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 \
                     4711 1 0\n\
                     1: 0100007F:0050 0100007F:1234 01 00000000:00000000 00:00000000 00000000 0 0 \
                     4712 1 0\n\
                     2: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 \
                     4713 1 0\n";
        let of = |text: &str| listening(table, &[text.parse().expect("an address")]);
        assert_eq!(of("127.0.0.1:80"), [4711]);
        assert_eq!(of("192.0.2.1:81"), [4713]);
        assert!(of("192.0.2.1:80").is_empty() && listening("nonsense\n\n1 2", &[]).is_empty());
        let v6 = "00000000000000000000000001000000:0050";
        assert_eq!(address_of(v6), Some("[::1]:80".parse().expect("an address")));
    }
}
