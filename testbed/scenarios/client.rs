//! An HTTP/1.1 client of its own: it counts bytes, hashes what it reads, and never reconnects.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::content::{Known, hex};

/// A read or write that takes longer than this is a timeout, and a failure.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// What a workload has done so far, for whoever waits to strike in its midst.
#[derive(Debug, Default)]
pub struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    is_ended: bool,
    /// The last count, or the instant from which gaps are measured, and the longest gap since.
    gap: Option<(Instant, Duration)>,
    /// Whoever has counted so much stands still until it is let go.
    stands_at: Option<u64>,
}

impl Progress {
    /// Counts what was done.
    pub fn add(&self, amount: u64) {
        let mut state = self.lock();
        state.count += amount;
        state.note_gap();
        self.changed.notify_all();
        let stands = |state: &mut State| state.stands_at.is_some_and(|at| state.count >= at);
        drop(self.changed.wait_while(state, stands).unwrap_or_else(PoisonError::into_inner));
    }

    /// Whoever counts stands still at `amount`.
    pub fn stand_at(&self, amount: u64) {
        self.lock().stands_at = Some(amount);
    }

    /// It goes on.
    pub fn go_on(&self) {
        self.lock().stands_at = None;
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub fn end(&self) {
        self.lock().is_ended = true;
        self.changed.notify_all();
    }

    /// What was counted.
    pub fn now(&self) -> u64 {
        self.lock().count
    }

    /// Measures gaps from here on.
    pub fn measure_gaps(&self) {
        self.lock().gap = Some((Instant::now(), Duration::ZERO));
    }

    /// The longest time between two counts since [`Progress::measure_gaps`].
    pub fn longest_gap(&self) -> Duration {
        self.lock().gap.map_or(Duration::ZERO, |(_, longest)| longest)
    }

    /// Waits until `amount` was counted; false if the end came first.
    pub fn reach(&self, amount: u64) -> bool {
        let waiting = |state: &mut State| state.count < amount && !state.is_ended;
        let state = self.changed.wait_while(self.lock(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).count >= amount
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note_gap(&mut self) {
        if let Some((last, longest)) = &mut self.gap {
            *longest = (*longest).max(last.elapsed());
            *last = Instant::now();
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// What it did last, for messages.
    doing: String,
}

impl Connection {
    /// Takes over a connected socket.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(WAIT_MAX))?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(128 << 10, stream), doing: String::new() })
    }

    /// The client's own address and port.
    pub fn local(&self) -> io::Result<String> {
        Ok(self.stream.get_ref().local_addr()?.to_string())
    }

    /// Gets a file and checks every byte.
    pub fn get(&mut self, file: &Known, progress: &Progress) -> Result<(), String> {
        let got = self.fetch(&file.path, "", progress)?;
        if got != (file.len, file.sha256.clone()) {
            return Err(format!("{}: {} bytes, sha256 {}; not the file", file.path, got.0, got.1));
        }
        Ok(())
    }

    /// Gets a file and the end of the connection behind it.
    pub fn get_and_close(&mut self, file: &Known) -> Result<(), String> {
        let got = self.fetch(&file.path, "Connection: close\r\n", &Progress::default())?;
        if got != (file.len, file.sha256.clone()) {
            return Err(format!("{}: {} bytes, sha256 {}; not the file", file.path, got.0, got.1));
        }
        match self.stream.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(format!("{}: bytes behind the answer", file.path)),
            Err(error) => Err(format!("{}: no clean end: {error}", file.path)),
        }
    }

    /// Gets `path`: bytes and SHA-256 of what came, however it was framed.
    pub fn fetch(
        &mut self,
        path: &str,
        headers: &str,
        progress: &Progress,
    ) -> Result<(u64, String), String> {
        self.doing = format!("GET {path}");
        let request = format!("GET {path} HTTP/1.1\r\nHost: service\r\n{headers}\r\n");
        self.send(request.as_bytes())?;
        let wanted = if headers.contains("Range: ") { 206..=206 } else { 200..=200 };
        match self.head(wanted)? {
            Some(len) => self.body(len, progress),
            None => self.chunks(progress),
        }
    }

    /// Uploads `data` to `path`.
    pub fn put(&mut self, path: &str, data: &[u8], progress: &Progress) -> Result<(), String> {
        self.doing = format!("PUT {path}");
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: service\r\nContent-Length: {}\r\n\r\n",
            data.len()
        );
        self.send(head.as_bytes())?;
        for piece in data.chunks(64 << 10) {
            self.send(piece)?;
            progress.add(piece.len() as u64);
        }
        let len = self.head(201..=204)?.unwrap_or(0);
        self.body(len, &Progress::default()).map(drop)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.get_mut().write_all(bytes).map_err(|e| format!("{}: sending: {e}", self.doing))
    }

    /// Reads a response's head; returns the length of its body, unless that comes in chunks.
    fn head(&mut self, wanted: std::ops::RangeInclusive<u16>) -> Result<Option<u64>, String> {
        let (mut status, mut len, mut first) = (0, Some(0), true);
        loop {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) => return Err(format!("{}: connection ended in the head", self.doing)),
                Ok(_) => {}
                Err(error) => return Err(format!("{}: reading the head: {error}", self.doing)),
            }
            let line = line.trim_end();
            if first {
                status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
                first = false;
            } else if line.is_empty() {
                break;
            } else if let Some(value) = line.strip_prefix("Content-Length: ") {
                len = Some(value.parse().map_err(|_| format!("{}: {line}", self.doing))?);
            } else if line == "Transfer-Encoding: chunked" {
                len = None;
            }
        }
        if wanted.contains(&status) {
            Ok(len)
        } else {
            Err(format!("{}: status {status}", self.doing))
        }
    }

    fn body(&mut self, len: u64, progress: &Progress) -> Result<(u64, String), String> {
        let mut hash = Sha256::new();
        self.read(len, &mut hash, progress)?;
        Ok((len, hex(&hash.finalize())))
    }

    /// A body in chunks (RFC 9112 7.1), without a trailer section.
    fn chunks(&mut self, progress: &Progress) -> Result<(u64, String), String> {
        let (mut hash, mut all) = (Sha256::new(), 0);
        loop {
            let line = self.line()?;
            let len = u64::from_str_radix(&line, 16);
            let len = len.map_err(|_| format!("{}: {line:?} is no chunk", self.doing))?;
            self.read(len, &mut hash, progress)?;
            all += len;
            match self.line()? {
                line if !line.is_empty() => {
                    return Err(format!("{}: {line:?} behind a chunk", self.doing));
                }
                _ if len == 0 => return Ok((all, hex(&hash.finalize()))),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.map_err(|error| format!("{}: reading a line: {error}", self.doing))?;
        let whole = line.strip_suffix("\r\n").map(str::to_owned);
        whole.ok_or_else(|| format!("{}: {line:?} is no line", self.doing))
    }

    fn read(&mut self, len: u64, hash: &mut Sha256, progress: &Progress) -> Result<(), String> {
        let mut left = len;
        while left > 0 {
            let piece = match self.stream.fill_buf() {
                Ok([]) => {
                    return Err(format!("{}: ended {left} of {len} bytes early", self.doing));
                }
                Ok(piece) => piece,
                Err(error) => {
                    return Err(format!("{}: {left} of {len} bytes missing: {error}", self.doing));
                }
            };
            let taken = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            hash.update(&piece[..taken]);
            self.stream.consume(taken);
            left -= taken as u64;
            progress.add(taken as u64);
        }
        Ok(())
    }
}
