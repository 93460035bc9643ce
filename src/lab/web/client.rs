//! The client that sees everything: it reads all the time, checks each byte, times each wait.
//!
//! One run is one connection, or one FTP session: it never begins a second one, so that a lost
//! connection cannot go unseen.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use super::super::ftp;
use super::{PIECE_MAX, content, first_wrong};

/// What a client does on its connection, or in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// `GET /bytes/N`, again and again.
    Get {
        /// Bytes of each answer.
        bytes: u64,
        /// How many requests; none: until told to stop.
        count: Option<u64>,
        /// Time between an answer and the next request.
        pause: Duration,
    },
    /// One `POST /sink`.
    Post {
        /// Bytes of the body.
        bytes: u64,
    },
    /// FTP: `RETR bytes-N` in one session, again and again.
    Retr {
        /// Bytes of each file.
        bytes: u64,
        /// How many files; none: until told to stop.
        count: Option<u64>,
        /// Time between a file and the next command.
        pause: Duration,
    },
    /// FTP: one `STOR`.
    Stor {
        /// Bytes of the file.
        bytes: u64,
    },
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to ask.
    pub target: SocketAddr,
    /// What to do.
    pub work: Work,
    /// Body bytes after which to tell, ascending.
    pub marks: Vec<u64>,
    /// Ends the run before the next request.
    pub stop: Option<Arc<AtomicBool>>,
    /// The longest wait before the run is given up.
    pub patience: Duration,
    /// Takes the byte at this position for another one than it is: to see that it is noticed.
    pub plant_at: Option<u64>,
    /// Gaps of this length and more are each remembered.
    pub long_gap: Option<Duration>,
}

impl Plan {
    /// A run without marks, to its end.
    pub fn new(target: SocketAddr, work: Work) -> Self {
        let patience = Duration::from_secs(15);
        Self {
            target,
            work,
            marks: Vec::new(),
            stop: None,
            patience,
            plant_at: None,
            long_gap: None,
        }
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Body bytes received (`Get`, `Retr`) or sent (`Post`, `Stor`), all right unless `wrong` says
    /// otherwise.
    pub bytes: u64,
    /// Requests answered in full.
    pub requests: u64,
    /// Position of the first wrong byte of an answer.
    pub wrong: Option<u64>,
    /// Why it ended early.
    pub error: Option<String>,
    /// The longest time between two receives (or sends) with bytes outstanding.
    pub gap_max: Duration,
    /// When that gap ended.
    pub gap_ended: Instant,
    /// Long gaps ([`Plan::long_gap`]): when each ended and how long it was.
    pub long_gaps: Vec<(Instant, Duration)>,
    /// From connecting to the end.
    pub took: Duration,
    /// When it ended.
    pub ended: Instant,
    /// From a request to the end of its answer, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Whether it came to its end and every byte was right.
    pub fn is_right(&self) -> bool {
        self.wrong.is_none() && self.error.is_none()
    }
}

/// Does `plan`; `on_mark` is told at each mark, on this thread, with the bytes so far.
pub fn run(plan: &Plan, mut on_mark: impl FnMut(u64)) -> Outcome {
    let start = Instant::now();
    let mut run = Run {
        plan,
        on_mark: &mut on_mark,
        marks_told: 0,
        waiting_since: start,
        outcome: Outcome {
            bytes: 0,
            requests: 0,
            wrong: None,
            error: None,
            gap_max: Duration::ZERO,
            gap_ended: start,
            long_gaps: Vec::new(),
            took: Duration::ZERO,
            ended: start,
            latency: histogram(),
        },
    };
    if let Err(error) = run.all() {
        run.outcome.error = Some(match error.kind() {
            ErrorKind::WouldBlock => format!("nothing for {:?}", plan.patience),
            _ => error.to_string(),
        });
    }
    run.outcome.ended = Instant::now();
    run.outcome.took = run.outcome.ended - start;
    run.outcome
}

/// A run under way.
pub(in crate::lab) struct Run<'a> {
    pub(in crate::lab) plan: &'a Plan,
    on_mark: &'a mut dyn FnMut(u64),
    marks_told: usize,
    waiting_since: Instant,
    outcome: Outcome,
}

impl Run<'_> {
    fn all(&mut self) -> io::Result<()> {
        match self.plan.work {
            Work::Get { bytes, count, pause } => self.get(bytes, count, pause),
            Work::Post { bytes } => self.post(bytes),
            Work::Retr { bytes, count, pause } => ftp::client::retrieve(self, bytes, |run| {
                if run.outcome.requests > 0 {
                    std::thread::sleep(pause);
                }
                run.goes_on(count)
            }),
            Work::Stor { bytes } => ftp::client::store(self, bytes),
        }
    }

    fn get(&mut self, bytes: u64, count: Option<u64>, pause: Duration) -> io::Result<()> {
        let stream = connect(self.plan, self.plan.target)?;
        let mut buffer = vec![0; PIECE_MAX];
        let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: shadowvm\r\n\r\n");
        while self.goes_on(count) {
            let asked = Instant::now();
            self.waits();
            (&stream).write_all(request.as_bytes())?;
            self.take_answer(&stream, &mut buffer, Some(bytes))?;
            self.answered(asked);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn post(&mut self, bytes: u64) -> io::Result<()> {
        let stream = connect(self.plan, self.plan.target)?;
        let asked = Instant::now();
        self.waits();
        let head =
            format!("POST /sink HTTP/1.1\r\nHost: shadowvm\r\nContent-Length: {bytes}\r\n\r\n");
        (&stream).write_all(head.as_bytes())?;
        self.send_content(&stream, bytes)?;
        self.take_answer(&stream, &mut vec![0; PIECE_MAX], None)?;
        self.answered(asked);
        Ok(())
    }

    fn goes_on(&self, count: Option<u64>) -> bool {
        count.is_none_or(|count| self.outcome.requests < count) && !self.is_told()
    }

    /// From now on bytes are outstanding.
    pub(in crate::lab) fn waits(&mut self) {
        self.waiting_since = Instant::now();
    }

    fn is_told(&self) -> bool {
        self.plan.stop.as_ref().is_some_and(|stop| stop.load(Relaxed))
    }

    /// What was asked then is answered.
    pub(in crate::lab) fn answered(&mut self, asked: Instant) {
        self.outcome.requests += 1;
        let nanos = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.outcome.latency.saturating_record(nanos);
    }

    /// Sends so many bytes of the content.
    pub(in crate::lab) fn send_content(
        &mut self,
        mut stream: &TcpStream,
        bytes: u64,
    ) -> io::Result<()> {
        setsockopt(&stream, SndBuf, &POST_BUFFER).map_err(io::Error::from)?;
        let mut at = 0;
        while at < bytes {
            let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
            let n = stream.write(content(at, left.min(POST_PIECE)))?;
            at += n as u64;
            self.moved();
            self.progress(at);
        }
        Ok(())
    }

    /// Takes the first so many bytes of the content, and the end of the stream behind them.
    pub(in crate::lab) fn take_content(
        &mut self,
        mut stream: &TcpStream,
        buffer: &mut [u8],
        bytes: u64,
    ) -> io::Result<()> {
        let (base, mut have) = (self.outcome.bytes, 0);
        loop {
            let n = stream.read(buffer)?;
            self.moved();
            self.check(have, &mut buffer[..n]);
            have += n as u64;
            self.progress(base + have);
            match n {
                0 if have == bytes => return Ok(()),
                0 => return Err(io::Error::other(format!("closed after {have} of {bytes} bytes"))),
                _ if have > bytes => {
                    return Err(io::Error::other(format!("{} bytes too many", have - bytes)));
                }
                _ => {}
            }
        }
    }

    /// Takes one answer: its status must be 200, and its body the content if `body` says so.
    fn take_answer(
        &mut self,
        stream: &TcpStream,
        buffer: &mut [u8],
        body: Option<u64>,
    ) -> io::Result<()> {
        let (mut have, head_len) = (0, self.take_head(stream, buffer)?);
        let (head_end, filled) = head_len;
        let len = check_head(&buffer[..head_end], body)?;
        let base = self.outcome.bytes;
        let mut rest = head_end..filled;
        loop {
            if body.is_some() {
                self.check(have, &mut buffer[rest.clone()]);
            }
            have += rest.len() as u64;
            if body.is_some() {
                self.progress(base + have);
            }
            if have == len {
                return Ok(());
            }
            if have > len {
                return Err(io::Error::other(format!("{} bytes too many", have - len)));
            }
            rest = 0..self.receive(stream, buffer)?;
        }
    }

    /// Reads to the end of the head: (length of the head, bytes in `buffer`).
    fn take_head(&mut self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
        let mut filled = 0;
        loop {
            filled += self.receive(stream, &mut buffer[filled..])?;
            let end = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                return Ok((end + 4, filled));
            }
            if filled > HEAD_MAX {
                return Err(io::Error::other("the answer has no end of its head"));
            }
        }
    }

    fn receive(&mut self, mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let n = stream.read(buffer)?;
        self.moved();
        match n {
            0 => Err(io::Error::other("the connection was closed early")),
            n => Ok(n),
        }
    }

    /// Bytes moved: a wait has ended.
    pub(in crate::lab) fn moved(&mut self) {
        let now = Instant::now();
        let gap = now - self.waiting_since;
        if gap > self.outcome.gap_max {
            (self.outcome.gap_max, self.outcome.gap_ended) = (gap, now);
        }
        if self.plan.long_gap.is_some_and(|long| gap >= long) {
            self.outcome.long_gaps.push((now, gap));
        }
        self.waiting_since = now;
    }

    /// Checks body bytes, `at` being their position in the answer.
    fn check(&mut self, at: u64, bytes: &mut [u8]) {
        let planted = self.plan.plant_at.and_then(|plant| plant.checked_sub(at));
        if let Some(byte) = planted.and_then(|at| bytes.get_mut(at as usize)) {
            *byte ^= 1;
        }
        if self.outcome.wrong.is_none() {
            self.outcome.wrong = first_wrong(at, bytes);
        }
    }

    fn progress(&mut self, bytes: u64) {
        self.outcome.bytes = bytes;
        while self.plan.marks.get(self.marks_told).is_some_and(|mark| *mark <= bytes) {
            self.marks_told += 1;
            (self.on_mark)(bytes);
        }
    }
}

/// Connects as `plan` has it.
pub(in crate::lab) fn connect(plan: &Plan, target: SocketAddr) -> io::Result<TcpStream> {
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{target}: {error}"));
    let stream = TcpStream::connect_timeout(&target, plan.patience).map_err(told)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(plan.patience))?;
    stream.set_write_timeout(Some(plan.patience))?;
    Ok(stream)
}

/// Times from a nanosecond to an hour, to a tenth of a percent.
pub fn histogram() -> Histogram<u64> {
    const HOUR_NS: u64 = 3_600_000_000_000;
    // The bounds are in order and the precision is one that exists.
    Histogram::new_with_bounds(1, HOUR_NS, 3).unwrap_or_else(|e| unreachable!("{e}"))
}

/// What the kernel may keep of an upload: little enough for a stall to be felt when it happens.
const POST_BUFFER: usize = 256 << 10;
/// Bytes of a body that are written at once.
const POST_PIECE: usize = 64 << 10;
const HEAD_MAX: usize = 16 << 10;

/// The length of the body; its status and `expected` length are right.
fn check_head(head: &[u8], expected: Option<u64>) -> io::Result<u64> {
    let text = String::from_utf8_lossy(head);
    if !text.starts_with("HTTP/1.1 200 ") {
        let line = text.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("the server answered `{line}`")));
    }
    let length = text.lines().filter_map(|line| line.split_once(": "));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map(|(_, value)| value).next().and_then(|value| value.trim().parse().ok());
    match length {
        Some(length) if expected.is_none_or(|expected| expected == length) => Ok(length),
        _ => Err(io::Error::other("the answer's Content-Length is wrong or missing")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests {
    use std::net::TcpListener;

    use super::super::server::{self, Faults, Service};
    use super::*;

    fn server(faults: Faults) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || server::serve(vec![(Service::Web, listener)], faults));
        address
    }

    fn get(bytes: u64, count: u64) -> Work {
        Work::Get { bytes, count: Some(count), pause: Duration::ZERO }
    }

    #[test]
    fn downloads_and_uploads_come_whole_and_marks_are_told() {
        let address = server(Faults::default());
        let mut plan = Plan::new(address, get(3_000_001, 3));
        plan.marks = vec![1, 3_000_001, 8_999_999];
        let mut told = 0;
        let outcome = run(&plan, |_| told += 1);
        assert!(outcome.is_right(), "{outcome:?}");
        assert_eq!((outcome.bytes, outcome.requests, told), (9_000_003, 3, 3));
        assert!(outcome.gap_max > Duration::ZERO);
        assert!(outcome.latency.value_at_quantile(0.5) > 1000);
        let outcome = run(&Plan::new(address, Work::Post { bytes: 5_000_000 }), |_| {});
        assert!(outcome.is_right(), "{outcome:?}");
        assert!(run(&Plan::new(address, get(0, 5)), |_| {}).is_right());
    }

    #[test]
    fn a_wrong_byte_is_found_wherever_it_comes_from() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wrong");
        let address = server(Faults { wrong: Some(file.clone()), ..Faults::default() });
        std::fs::write(&file, "").unwrap();
        for bytes in [100, 1_000_000] {
            let outcome = run(&Plan::new(address, get(bytes, 1)), |_| {});
            assert_eq!(outcome.wrong, Some(bytes / 2));
        }
        std::fs::remove_file(&file).unwrap();
        let plan = Plan { plant_at: Some(700_000), ..Plan::new(address, get(1_000_000, 1)) };
        assert_eq!(run(&plan, |_| {}).wrong, Some(700_000));
    }

    #[test]
    fn silence_and_an_early_end_are_errors() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let patience = Duration::from_millis(50);
        let plan = Plan { patience, ..Plan::new(address, get(1, 1)) };
        assert!(run(&plan, |_| {}).error.unwrap().contains("nothing for"));
        let closes = std::thread::spawn(move || drop((silent.accept(), silent.accept())));
        assert!(run(&Plan::new(address, get(1, 1)), |_| {}).error.is_some());
        closes.join().unwrap();
    }
}
