//! Several channels in one connection, each with a window of its own.
//!
//! Owns the connection once it is sealed: one thread writes, one (whoever calls
//! [`Connection::run`]) reads. Reading never waits for who uses a channel: nobody may send more
//! than was granted, so what waits here is bounded. A channel's bytes come in their order; what
//! [`Purpose::Health`] has to say goes before all others'. Both sides speak at least once in a
//! while, so one that says nothing is gone. Whatever is against the rules ends the connection.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::frame::{DATA_LEN_MAX, FRAME_LEN_MAX, Frame, Purpose};
use super::handshake::{Opener, SEAL_LEN, Sealer};
use super::limit::Allowance;
use super::pack::{Packer, unpack};

/// Bytes of one channel that may be on their way or wait for their reader.
pub const WINDOW: usize = 4 << 20;
/// Channels of one connection at once.
pub const CHANNELS_MAX: usize = 8;
/// Bytes that wait for the thread that writes, besides those that go first.
const QUEUE_LEN_MAX: usize = 1 << 20;
/// How much is sealed before it is written.
const WRITE_LEN: usize = 128 << 10;
const READ_LEN: usize = 256 << 10;
/// A side that has nothing to say says so.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A side that has not even said that is gone.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// A side that takes nothing for so long is gone, too.
const WRITE_MAX: Duration = Duration::from_secs(20);

/// A sealed connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

/// One of its channels. Each clone reads and writes the same one; with the last it is closed.
#[derive(Clone, Debug)]
pub struct Channel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    number: u32,
    purpose: Purpose,
    packer: Mutex<Packer>,
}

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    /// Only the gateway opens channels.
    is_gateway: bool,
    state: Mutex<State>,
    /// There is something to write.
    to_write: Condvar,
    /// There is something to read, or room, or an end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What goes first: little, and rare.
    first: VecDeque<Vec<u8>>,
    queue: VecDeque<Vec<u8>>,
    queue_len: usize,
    channels: BTreeMap<u32, Side>,
    /// The number of the next channel.
    next: u32,
    /// Why nothing moves any more.
    broken: Option<String>,
}

/// A channel as this side has it.
#[derive(Debug)]
struct Side {
    come: VecDeque<Bytes>,
    /// What the other side may still send.
    room: usize,
    /// What was read since the last grant.
    taken: usize,
    /// What this side may still send.
    credit: usize,
    closed: Option<String>,
}

impl Default for Side {
    fn default() -> Self {
        Self { come: VecDeque::new(), room: WINDOW, taken: 0, credit: WINDOW, closed: None }
    }
}

impl State {
    fn push(&mut self, purpose: Purpose, frame: Vec<u8>) {
        match purpose {
            Purpose::Health => self.first.push_back(frame),
            Purpose::Mirror => {
                self.queue_len += frame.len();
                self.queue.push_back(frame);
            }
        }
    }
}

/// What a connection needs besides its stream.
#[derive(Debug)]
pub struct Sealed {
    /// Seals what leaves.
    pub sealer: Sealer,
    /// Opens what comes.
    pub opener: Opener,
}

impl Connection {
    /// Begins to write; [`Connection::run`] has to be called with what is returned beside it.
    /// At most `limit` bytes a second leave.
    pub fn start(
        stream: TcpStream,
        sealed: Sealed,
        is_gateway: bool,
        limit: Option<u64>,
    ) -> io::Result<(Self, Opener)> {
        let Sealed { sealer, opener } = sealed;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(QUIET_MAX))?;
        stream.set_write_timeout(Some(WRITE_MAX))?;
        let shared = Arc::new(Shared {
            stream,
            is_gateway,
            state: Mutex::default(),
            to_write: Condvar::new(),
            changed: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        std::thread::Builder::new().name("agent-out".into()).spawn(move || {
            if let Err(why) = writing.write(sealer, limit) {
                writing.break_off(why);
            }
        })?;
        Ok((Self(shared), opener))
    }

    /// Reads until the connection ends; why it did. `opened` gets each new channel, and must not
    /// wait for anything.
    pub fn run(&self, opener: Opener, mut opened: impl FnMut(Purpose, Channel)) -> String {
        let why = self.0.read(opener, &mut opened).err().unwrap_or_default();
        self.0.break_off(why);
        self.0.lock().broken.clone().unwrap_or_default()
    }

    /// A new channel. It is over at once if the connection is.
    pub fn open(&self, purpose: Purpose) -> Channel {
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.channels.insert(number, Side::default());
        let mut frame = Vec::new();
        Frame::Open { channel: number, purpose }.put(&mut frame);
        // In the order of the numbers, whatever waits; what is said there cannot come before.
        state.first.push_back(frame);
        self.0.to_write.notify_one();
        drop(state);
        Channel::new(&self.0, number, purpose)
    }

    /// Ends it.
    pub fn end(&self, why: &str) {
        self.0.break_off(why.to_owned());
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.0.lock().broken.is_some()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason is the reason.
    fn break_off(&self, why: String) {
        self.lock().broken.get_or_insert(why);
        // Both threads see it at once, whatever they wait for; it may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.to_write.notify_all();
        self.changed.notify_all();
    }

    fn write(&self, mut sealer: Sealer, limit: Option<u64>) -> Result<(), String> {
        let mut allowance = limit.map(|limit| Allowance::new(limit, Instant::now()));
        let mut spoken = Instant::now();
        let mut out = Vec::new();
        let mut stream = &self.stream;
        loop {
            out.clear();
            let Some(queued) = self.gather(&mut sealer, &mut out, spoken, allowance.as_mut())?
            else {
                return Ok(());
            };
            if let Some(allowance) = &mut allowance {
                allowance.spend(queued);
            }
            stream.write_all(&out).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => format!("nothing was taken for {WRITE_MAX:?}"),
                _ => error.to_string(),
            })?;
            spoken = Instant::now();
        }
    }

    /// Waits for something to write, and seals it; how much of it is subject to a limit. None at
    /// the end.
    fn gather(
        &self,
        sealer: &mut Sealer,
        out: &mut Vec<u8>,
        spoken: Instant,
        mut allowance: Option<&mut Allowance>,
    ) -> Result<Option<usize>, String> {
        let mut queued = 0;
        let mut state = self.lock();
        loop {
            if state.broken.is_some() {
                return Ok(None);
            }
            let now = Instant::now();
            let wait = match allowance.as_mut() {
                Some(allowance) if !state.queue.is_empty() => allowance.wait(now),
                _ => None,
            };
            let is_allowed = wait.is_none();
            // With a limit one record at a time: its measure is never exceeded by more.
            let is_full = queued > 0 && allowance.is_some();
            let frame = match state.first.pop_front() {
                None if is_allowed && !is_full => state.queue.pop_front().inspect(|frame| {
                    queued += frame.len();
                    state.queue_len -= frame.len();
                    self.changed.notify_all();
                }),
                first => first,
            };
            let quiet = now.saturating_duration_since(spoken);
            match frame {
                Some(frame) => {
                    sealer.seal(&frame, out).map_err(|error| error.to_string())?;
                    if out.len() >= WRITE_LEN {
                        return Ok(Some(queued));
                    }
                }
                None if !out.is_empty() => return Ok(Some(queued)),
                None if quiet >= PING_EVERY => {
                    let mut ping = Vec::new();
                    Frame::Ping.put(&mut ping);
                    sealer.seal(&ping, out).map_err(|error| error.to_string())?;
                }
                None => {
                    let until_ping = PING_EVERY.saturating_sub(quiet);
                    let wait = wait.map_or(until_ping, |wait| wait.min(until_ping));
                    let waited = self.to_write.wait_timeout(state, wait);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn read(
        self: &Arc<Self>,
        mut opener: Opener,
        opened: &mut dyn FnMut(Purpose, Channel),
    ) -> Result<(), String> {
        let mut stream = BufReader::with_capacity(READ_LEN, &self.stream);
        let (mut record, mut plain) = (Vec::new(), Vec::new());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => format!("nothing was heard for {QUIET_MAX:?}"),
            io::ErrorKind::UnexpectedEof => "the other side has ended it".to_owned(),
            _ => error.to_string(),
        };
        loop {
            let mut head = [0; 2];
            stream.read_exact(&mut head).map_err(failed)?;
            let len = usize::from(u16::from_le_bytes(head));
            if len > FRAME_LEN_MAX + SEAL_LEN {
                return Err("a record that is too long".into());
            }
            record.resize(len, 0);
            stream.read_exact(&mut record).map_err(failed)?;
            let frame = opener.open(&record, &mut plain).map_err(|error| error.to_string())?;
            let frame = Frame::parse(frame).map_err(|error| error.to_string())?;
            if let Some((purpose, channel)) = self.take(frame)? {
                opened(purpose, channel);
            }
        }
    }

    /// Takes a frame in; the channel that it opens. Errors: it is against the rules.
    fn take(self: &Arc<Self>, frame: Frame<'_>) -> Result<Option<(Purpose, Channel)>, String> {
        match frame {
            Frame::Ping => Ok(None),
            Frame::Open { channel, purpose } => {
                let mut state = self.lock();
                let is_good = !self.is_gateway && channel == state.next;
                if !is_good || state.channels.len() >= CHANNELS_MAX {
                    return Err("a channel that may not be opened".into());
                }
                state.next = channel.checked_add(1).ok_or("too many channels")?;
                state.channels.insert(channel, Side::default());
                drop(state);
                Ok(Some((purpose, Channel::new(self, channel, purpose))))
            }
            Frame::Data { channel, bytes } => {
                self.come(channel, Bytes::copy_from_slice(bytes)).map(|()| None)
            }
            Frame::Packed { channel, len, bytes } => {
                let bytes = unpack(bytes, len as usize).ok_or("a piece that does not unpack")?;
                self.come(channel, bytes.into()).map(|()| None)
            }
            Frame::Grant { channel, bytes } => {
                self.with(channel, |side| {
                    side.credit += bytes as usize;
                    if side.credit <= WINDOW { Ok(()) } else { Err("more granted than there is") }
                })?;
                Ok(None)
            }
            Frame::Close { channel, why } => {
                self.with(channel, |side| {
                    side.closed.get_or_insert_with(|| why.to_owned());
                    Ok(())
                })?;
                Ok(None)
            }
        }
    }

    fn come(&self, channel: u32, bytes: Bytes) -> Result<(), String> {
        self.with(channel, |side| {
            side.room = side.room.checked_sub(bytes.len()).ok_or("more bytes than were granted")?;
            side.come.push_back(bytes);
            Ok(())
        })
    }

    /// What is said of a channel that this side has closed was on its way, and does not matter.
    fn with(
        &self,
        channel: u32,
        change: impl FnOnce(&mut Side) -> Result<(), &'static str>,
    ) -> Result<(), String> {
        let mut state = self.lock();
        if channel >= state.next {
            return Err("a channel that nobody has opened".into());
        }
        if let Some(side) = state.channels.get_mut(&channel) {
            change(side)?;
            self.changed.notify_all();
        }
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    fn new(shared: &Arc<Shared>, number: u32, purpose: Purpose) -> Self {
        let packer = Mutex::default();
        Self(Arc::new(Inner { shared: Arc::clone(shared), number, purpose, packer }))
    }

    /// Ends it for all clones: what has come can still be read, then nothing more.
    pub fn close(&self, why: &str) {
        self.0.close(why);
    }

    /// Why it is over, if it is.
    pub fn ended(&self) -> Option<String> {
        let state = self.0.shared.lock();
        let closed = state.channels.get(&self.0.number).and_then(|side| side.closed.clone());
        closed.or_else(|| state.broken.clone())
    }
}

impl Inner {
    fn close(&self, why: &str) {
        let mut state = self.shared.lock();
        let Some(side) = state.channels.get_mut(&self.number) else { return };
        if side.closed.is_none() {
            side.closed = Some(why.to_owned());
            let mut frame = Vec::new();
            Frame::Close { channel: self.number, why }.put(&mut frame);
            state.push(self.purpose, frame);
        }
        self.shared.to_write.notify_one();
        self.shared.changed.notify_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close("");
        let mut state = self.shared.lock();
        state.channels.remove(&self.number);
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Inner { shared, number, .. } = &*self.0;
        let mut state = shared.lock();
        loop {
            let broken = state.broken.clone();
            let Some(side) = state.channels.get_mut(number) else { return Ok(0) };
            if let Some(first) = side.come.front_mut() {
                let len = first.len().min(buffer.len());
                first.copy_to_slice(&mut buffer[..len]);
                if first.is_empty() {
                    side.come.pop_front();
                }
                side.taken += len;
                if side.taken >= WINDOW / 4 && side.closed.is_none() {
                    let bytes = std::mem::take(&mut side.taken);
                    side.room += bytes;
                    let mut frame = Vec::new();
                    // A window is smaller than what a grant can say.
                    Frame::Grant { channel: *number, bytes: bytes as u32 }.put(&mut frame);
                    state.first.push_back(frame);
                    shared.to_write.notify_one();
                }
                return Ok(len);
            }
            match (&side.closed, broken) {
                (Some(why), _) if why.is_empty() => return Ok(0),
                (Some(why), _) => return Err(io::Error::other(why.clone())),
                (None, Some(why)) => return Err(io::Error::other(why)),
                (None, None) => state = shared.wait(state),
            }
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let Inner { shared, number, purpose, packer } = &*self.0;
        // One clone at a time, so that the pieces keep their order.
        let mut packer = packer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = shared.lock();
        let piece = loop {
            let broken = state.broken.clone();
            let is_full = *purpose == Purpose::Mirror && state.queue_len >= QUEUE_LEN_MAX;
            let Some(side) = state.channels.get_mut(number) else {
                return Err(io::ErrorKind::BrokenPipe.into());
            };
            if let Some(why) = side.closed.clone().or(broken) {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
            }
            if side.credit > 0 && !is_full {
                let len = bytes.len().min(side.credit).min(DATA_LEN_MAX);
                side.credit -= len;
                break &bytes[..len];
            }
            state = shared.wait(state);
        };
        drop(state);
        let mut frame = Vec::with_capacity(piece.len() + 16);
        let (channel, len) = (*number, piece.len() as u32);
        match packer.pack(piece) {
            Some(packed) => Frame::Packed { channel, len, bytes: packed }.put(&mut frame),
            None => Frame::Data { channel, bytes: piece }.put(&mut frame),
        }
        shared.lock().push(*purpose, frame);
        shared.to_write.notify_one();
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
