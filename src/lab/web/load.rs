//! Load for a bench: one thread that holds many connections, asks on them and counts, cheaply
//! enough not to be what is measured. Answers are counted, not looked at byte by byte
//! ([`super::client`] does that).
//!
//! Open loop: requests are due at fixed times, whether or not answers come. One that has to wait
//! because its connection is still unanswered counts from when it was due, so that a server that
//! stands still is not asked less (coordinated omission). One whose connection is free counts from
//! when it is sent: how late this thread itself was woken is told apart ([`Outcome::lateness`]).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::sys::time::TimeSpec;
use nix::time::ClockId;

use super::client::histogram;
use super::{PIECE_MAX, content};

/// When requests are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// On each connection when it is answered.
    Answered,
    /// So many a second, on the connections in turn.
    PerSecond(f64),
    /// When the one before is answered and its connection closed: each has a connection of its own.
    Connecting,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Whom to ask.
    pub target: SocketAddr,
    /// When.
    pub pace: Pace,
    /// Connections at the same time.
    pub connections: usize,
    /// Bytes of each answer.
    pub bytes: u64,
    /// For how long.
    pub time: Duration,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests answered (or bodies carried).
    pub answers: u64,
    /// From the first to the last.
    pub took: Duration,
    /// Processor time of the threads that did it.
    pub cpu: Duration,
    /// From when a request was due to the end of its answer, in nanoseconds.
    pub latency: Histogram<u64>,
    /// How late this thread was woken for a request that was due, in nanoseconds.
    pub lateness: Histogram<u64>,
}

/// No answer for so long ends a run.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes that are read at once, as by curl.
const READ_BYTES: usize = 100 << 10;
/// Longest head of an answer.
const HEAD_MAX: usize = 16 << 10;

/// Asks on small answers; on this thread, in its network namespace.
///
/// Errors: a connection that was lost or refused, a wrong answer, or none at all.
pub fn run(load: &Load) -> io::Result<Outcome> {
    // Timers of a thread are 50 us late otherwise.
    set_timerslack(1)?;
    let mut run = Run::new(load)?;
    let done = run.all();
    // Zero is what this thread began with.
    set_timerslack(0)?;
    done.map(|()| run.outcome)
}

struct Run<'a> {
    load: &'a Load,
    lines: Vec<Line>,
    /// Of the next request at a fixed pace, and its number.
    due: Instant,
    number: usize,
    outcome: Outcome,
}

/// One connection.
struct Line {
    stream: Option<TcpStream>,
    /// When each request was due that is not yet answered; the first has been sent.
    asked: VecDeque<Instant>,
    is_connecting: bool,
    head: Vec<u8>,
    /// Bytes of the answer still to come, once its head is there.
    left: Option<u64>,
}

impl<'a> Run<'a> {
    fn new(load: &'a Load) -> io::Result<Self> {
        let line = |_| {
            let (asked, head) = (VecDeque::new(), Vec::new());
            let mut line = Line { stream: None, asked, is_connecting: false, head, left: None };
            if load.pace != Pace::Connecting {
                let stream = TcpStream::connect_timeout(&load.target, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                line.stream = Some(stream);
            }
            Ok(line)
        };
        let lines = (0..load.connections).map(line).collect::<io::Result<_>>()?;
        let outcome = Outcome {
            answers: 0,
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            latency: histogram(),
            lateness: histogram(),
        };
        Ok(Self { load, lines, due: Instant::now(), number: 0, outcome })
    }

    fn all(&mut self) -> io::Result<()> {
        let (begin, cpu) = (Instant::now(), thread_cpu()?);
        let end = begin + self.load.time;
        self.due = begin;
        let mut buffer = vec![0; PIECE_MAX];
        loop {
            let now = Instant::now();
            let is_fixed = matches!(self.load.pace, Pace::PerSecond(_));
            if is_fixed || now < end {
                self.ask(now, end)?;
            }
            let is_over = if is_fixed { self.due >= end } else { now >= end };
            if is_over && self.lines.iter().all(|line| line.asked.is_empty()) {
                break;
            }
            let wait = match is_fixed && !is_over {
                true => self.due.saturating_duration_since(now),
                false => PATIENCE,
            };
            for index in self.ready(wait)? {
                self.take(index, &mut buffer)?;
            }
        }
        self.outcome.took = begin.elapsed();
        self.outcome.cpu = thread_cpu()?.saturating_sub(cpu);
        Ok(())
    }

    /// Asks what is due.
    fn ask(&mut self, now: Instant, end: Instant) -> io::Result<()> {
        match self.load.pace {
            Pace::PerSecond(rate) => {
                let gap = Duration::from_secs_f64(1.0 / rate);
                while self.due <= now && self.due < end {
                    let line = self.number % self.lines.len();
                    let is_free = self.lines[line].asked.is_empty();
                    let since = if is_free { Instant::now() } else { self.due };
                    if is_free {
                        record(&mut self.outcome.lateness, since - self.due);
                    }
                    self.lines[line].asked.push_back(since);
                    if is_free {
                        self.send(line)?;
                    }
                    (self.number, self.due) = (self.number + 1, self.due + gap);
                }
                Ok(())
            }
            _ => (0..self.lines.len()).try_for_each(|line| {
                if !self.lines[line].asked.is_empty() {
                    return Ok(());
                }
                self.lines[line].asked.push_back(Instant::now());
                self.send(line)
            }),
        }
    }

    fn send(&mut self, line: usize) -> io::Result<()> {
        let line = &mut self.lines[line];
        match &mut line.stream {
            Some(stream) => {
                let close = match self.load.pace {
                    Pace::Connecting => "Connection: close\r\n",
                    _ => "",
                };
                let path = self.load.bytes;
                // So little always finds room.
                stream.write_all(
                    format!("GET /bytes/{path} HTTP/1.1\r\nHost: shadowvm\r\n{close}\r\n")
                        .as_bytes(),
                )
            }
            None => {
                line.stream = Some(begin_connecting(self.load.target)?);
                line.is_connecting = true;
                Ok(())
            }
        }
    }

    /// Waits for at most so long; the lines on which something happened.
    fn ready(&self, wait: Duration) -> io::Result<Vec<usize>> {
        let waiting = self.lines.iter().enumerate();
        let waiting = waiting.filter(|(_, line)| !line.asked.is_empty());
        let waiting: Vec<_> =
            waiting.filter_map(|(at, line)| Some((at, line.stream.as_ref()?, line))).collect();
        let mut fds: Vec<_> = waiting
            .iter()
            .map(|(_, stream, line)| {
                let flags = if line.is_connecting { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                PollFd::new(stream.as_fd(), flags)
            })
            .collect();
        let is_some = match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(0) if wait == PATIENCE => {
                return Err(io::Error::other(format!("no answer for {PATIENCE:?}")));
            }
            Ok(count) => count > 0,
            Err(Errno::EINTR) => false,
            Err(e) => return Err(e.into()),
        };
        let ready = waiting.iter().zip(&fds).filter(|(_, fd)| is_some && fd.any() != Some(false));
        Ok(ready.map(|((at, ..), _)| *at).collect())
    }

    /// Takes what has come on one line.
    fn take(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<()> {
        let line = &mut self.lines[index];
        let Some(stream) = &mut line.stream else { return Ok(()) };
        if line.is_connecting {
            line.is_connecting = false;
            return self.send(index);
        }
        let count = match stream.read(buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        };
        let is_answered = line.left == Some(0);
        if count == 0 && !(is_answered && self.load.pace == Pace::Connecting) {
            return Err(io::Error::other("the connection was closed early"));
        }
        if count > 0 {
            line.count(&buffer[..count], self.load.bytes)?;
        }
        // The server closes first: its port is the one that has to wait (RFC 9293 3.6).
        if line.left == Some(0) && (self.load.pace != Pace::Connecting || count == 0) {
            self.answered(index)?;
        }
        Ok(())
    }

    fn answered(&mut self, index: usize) -> io::Result<()> {
        let line = &mut self.lines[index];
        line.head.clear();
        line.left = None;
        if self.load.pace == Pace::Connecting {
            line.stream = None;
        }
        if let Some(since) = line.asked.pop_front() {
            record(&mut self.outcome.latency, since.elapsed());
            self.outcome.answers += 1;
        }
        if line.asked.is_empty() { Ok(()) } else { self.send(index) }
    }
}

impl Line {
    /// Counts bytes of an answer, whose body has to have `bytes` of them.
    fn count(&mut self, mut piece: &[u8], bytes: u64) -> io::Result<()> {
        if self.left.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(piece);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                return match self.head.len() > HEAD_MAX {
                    true => Err(io::Error::other("the answer has no end of its head")),
                    false => Ok(()),
                };
            };
            check(&self.head[..end + 4], bytes)?;
            piece = &piece[end + 4 - before..];
            self.left = Some(bytes);
        }
        let left = self.left.and_then(|left| left.checked_sub(piece.len() as u64));
        self.left = Some(left.ok_or_else(|| io::Error::other("more bytes than were asked for"))?);
        Ok(())
    }
}

/// The head of an answer with so many bytes.
fn check(head: &[u8], bytes: u64) -> io::Result<()> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    match text.starts_with("http/1.1 200 ")
        && text.contains(&format!("\r\ncontent-length: {bytes}\r\n"))
    {
        true => Ok(()),
        false => {
            let line = text.lines().next().unwrap_or_default();
            Err(io::Error::other(format!("another answer than was asked for: `{line}`")))
        }
    }
}

fn begin_connecting(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let made = socket(family, SockType::Stream, flags, None)?;
    match connect(made.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let stream = TcpStream::from(made);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Which way a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the server.
    Down,
    /// To the server.
    Up,
}

/// Carries `flows` bodies of `bytes` each at once, each on a connection and a thread of its own.
pub fn bulk(target: SocketAddr, way: Way, flows: usize, bytes: u64) -> io::Result<Outcome> {
    let begin = Instant::now();
    let carry = || {
        let cpu = thread_cpu()?;
        match way {
            Way::Down => download(target, bytes)?,
            Way::Up => upload(target, bytes)?,
        }
        Ok::<_, io::Error>(thread_cpu()?.saturating_sub(cpu))
    };
    let each = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..flows).map(|_| scope.spawn(carry)).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(end).collect::<io::Result<Vec<Duration>>>()
    })?;
    let (took, cpu) = (begin.elapsed(), each.iter().sum());
    let (latency, lateness) = (histogram(), histogram());
    Ok(Outcome { answers: flows as u64, took, cpu, latency, lateness })
}

fn connected(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn download(target: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = connected(target)?;
    let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: shadowvm\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (asked, head) = (VecDeque::new(), Vec::new());
    let mut line = Line { stream: None, asked, is_connecting: false, head, left: None };
    let mut buffer = vec![0; READ_BYTES];
    while line.left != Some(0) {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other("the connection was closed early")),
            count => line.count(&buffer[..count], bytes)?,
        }
    }
    Ok(())
}

/// The server closes when it has taken everything.
fn upload(target: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = connected(target)?;
    let head = format!(
        "POST /sink HTTP/1.1\r\nHost: shadowvm\r\nConnection: close\r\n\
         Content-Length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        at += stream.write(content(at, left.min(READ_BYTES)))? as u64;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(io::Error::other("the server did not take what was sent")),
    }
}

fn record(to: &mut Histogram<u64>, time: Duration) {
    to.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Processor time of this thread so far: what others do on the machine is not in it.
pub fn thread_cpu() -> io::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests {
    use std::net::TcpListener;

    use super::super::server::{self, Faults, Service};
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            server::serve(vec![(Service::Web, listener)], Faults::default())
        });
        address
    }

    fn load(target: SocketAddr, pace: Pace) -> Load {
        Load { target, pace, connections: 3, bytes: 300, time: Duration::from_millis(100) }
    }

    #[test]
    fn each_pace_asks_and_counts_answers() {
        let target = server();
        for pace in [Pace::Answered, Pace::Connecting] {
            let outcome = run(&load(target, pace)).unwrap();
            assert!(outcome.answers >= 3, "{pace:?}: {outcome:?}");
            assert_eq!(outcome.latency.len(), outcome.answers);
        }
        let outcome = run(&load(target, Pace::PerSecond(500.0))).unwrap();
        assert_eq!((outcome.answers, outcome.latency.len()), (50, 50));
    }

    #[test]
    fn what_waits_for_a_standing_server_counts_from_when_it_was_due() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let stands = Duration::from_millis(200);
        // It stands still before its first answer, and answers all others at once.
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let (mut asked, mut answered) = (Vec::new(), 0);
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                asked.extend_from_slice(&buffer[..count]);
                let whole = asked.windows(4).filter(|four| four == b"\r\n\r\n").count();
                if answered == 0 {
                    std::thread::sleep(stands);
                }
                while answered < whole {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    answered += 1;
                }
            }
        });
        let pace = Pace::PerSecond(100.0);
        let one = Load { connections: 1, bytes: 0, ..load(target, pace) };
        let outcome = run(&one).unwrap();
        assert_eq!(outcome.answers, 10);
        // All were due while it stood: the last one, at 90 ms, waited for more than 100.
        let least = Duration::from_nanos(outcome.latency.min());
        assert!(least > stands / 2, "{least:?}");
    }

    #[test]
    fn bodies_go_both_ways_and_what_is_lost_is_told() {
        let target = server();
        for way in [Way::Down, Way::Up] {
            assert_eq!(bulk(target, way, 2, 3_000_001).unwrap().answers, 2);
        }
        let closes = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = closes.local_addr().unwrap();
        std::thread::spawn(move || while closes.accept().is_ok() {});
        assert!(run(&load(target, Pace::Answered)).is_err());
        assert!(bulk(target, Way::Down, 1, 1000).is_err());
    }
}
