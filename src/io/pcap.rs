//! Captures: reading any, writing them, a recorder around any driver, captures played as a driver.
//!
//! A recording is pcapng with one interface for each link and direction-free packets; a partial
//! checksum is finished in the recorded copy, super-frames are recorded whole.

mod classic;
mod ng;
mod reader;
mod source;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use reader::{Interface, NotACapture, Reader, Record, Trouble};
pub use writer::{Direction, Notes, Writer};

use super::{Barrier, Batch, Driver, clock};
use crate::engine::{Instant, Link, LinkCaps, Signal};
use crate::wire::parse::captured::LinkType;
use crate::wire::{Frame, Offload, checksum};

/// Writes a pcapng with named interfaces.
#[derive(Debug)]
pub struct Recorder {
    writer: Writer<BufWriter<File>>,
}

impl Recorder {
    /// Makes the file and describes `names` as its interfaces.
    pub fn create(path: &Path, names: &[&str]) -> io::Result<Self> {
        let mut writer = Writer::ng(BufWriter::new(File::create(path)?))?;
        for name in names {
            writer.interface(LinkType::ETHERNET, Some(name))?;
        }
        Ok(Self { writer })
    }

    /// Writes one frame of the interface `index` at a UNIX time in nanoseconds.
    pub fn write(&mut self, index: usize, unix_ns: u64, frame: &Frame) -> io::Result<()> {
        let mut copy = frame.clone();
        checksum::complete(&mut copy);
        let data = copy.to_vec();
        self.writer.packet(index as u32, unix_ns, &data, data.len(), None)
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A driver whose frames, in and out, are recorded.
#[derive(Debug)]
pub struct Tap<D> {
    inner: D,
    recorder: Recorder,
    error: Option<io::Error>,
}

impl<D: Driver> Tap<D> {
    /// Records `inner` into a new file.
    pub fn new(inner: D, path: &Path) -> io::Result<Self> {
        let recorder = Recorder::create(path, &["client", "a", "b"])?;
        Ok(Self { inner, recorder, error: None })
    }

    /// The first trouble with the file; recording stops there, forwarding does not.
    pub const fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    fn record(&mut self, link: Link, frame: &Frame) {
        if self.error.is_none() {
            let at = clock::to_unix_ns(self.inner.now());
            self.error = self.recorder.write(link.index(), at, frame).err();
        }
    }
}

impl<D: Driver> Driver for Tap<D> {
    fn now(&self) -> Instant {
        self.inner.now()
    }
    fn caps(&self, link: Link) -> LinkCaps {
        self.inner.caps(link)
    }
    fn wake_on(&mut self, waker: Arc<OwnedFd>) {
        self.inner.wake_on(waker);
    }
    fn recv(&mut self, batch: &mut Batch, until: Option<Instant>) -> io::Result<()> {
        let before = batch.frames.len();
        self.inner.recv(batch, until)?;
        for (link, frame) in &batch.frames[before..] {
            self.record(*link, frame);
        }
        Ok(())
    }
    fn set_barrier(&mut self, link: Link, barrier: Barrier) {
        self.inner.set_barrier(link, barrier);
    }
    fn send(&mut self, link: Link, frame: Frame) {
        self.record(link, &frame);
        self.inner.send(link, frame);
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.error.is_none() {
            self.error = self.recorder.flush().err();
        }
        self.inner.flush()
    }
}

/// One frame of a capture.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Index of its interface; 0 in a plain pcap.
    pub interface: u32,
    /// UNIX time in nanoseconds.
    pub unix_ns: u64,
    /// The frame.
    pub frame: Frame,
}

/// Reads a whole capture into memory. What follows a damaged record is read as far as it can be;
/// the first trouble comes with what was.
pub fn read(source: impl Read + Send + 'static) -> (Vec<Captured>, Option<io::Error>) {
    let mut found = Vec::new();
    let mut reader = match Reader::new(source) {
        Ok(reader) => reader,
        Err(error) => return (found, Some(io::Error::other(error))),
    };
    let mut first = None;
    loop {
        match reader.next() {
            Ok(Some(record)) => found.push(Captured {
                interface: u32::try_from(record.interface).unwrap_or(u32::MAX),
                unix_ns: record.unix_ns,
                frame: Frame::from_wire(Bytes::copy_from_slice(record.data), Offload::default()),
            }),
            Ok(None) => return (found, first),
            Err(trouble) => {
                first.get_or_insert(io::Error::other(trouble.to_string()));
            }
        }
    }
}

/// A capture played as a driver, in virtual time: each frame arrives at its time after the first,
/// waits take none. What is sent can be recorded.
#[derive(Debug)]
pub struct Playback {
    frames: VecDeque<(Instant, Link, Frame)>,
    caps: LinkCaps,
    signals: Vec<(Link, Signal)>,
    now: Instant,
    end: Instant,
    first_unix_ns: u64,
    recorder: Option<Recorder>,
    error: Option<io::Error>,
}

impl Playback {
    /// Plays `capture`; `link_of` says on which link a frame arrives, none leaves it out. All links
    /// have their carrier and `caps`. Time begins at one second, and goes on for `linger` after the
    /// last frame.
    pub fn new(
        mut capture: Vec<Captured>,
        link_of: impl Fn(&Captured) -> Option<Link>,
        caps: LinkCaps,
        linger: Duration,
    ) -> Self {
        capture.sort_by_key(|captured| captured.unix_ns);
        let first_unix_ns = capture.first().map_or(0, |captured| captured.unix_ns);
        let now = Instant::from_millis(1000);
        let mut frames = VecDeque::with_capacity(capture.len());
        for captured in capture {
            if let Some(link) = link_of(&captured) {
                let at = now + Duration::from_nanos(captured.unix_ns - first_unix_ns);
                frames.push_back((at, link, captured.frame));
            }
        }
        let end = frames.back().map_or(now, |(at, ..)| *at) + linger;
        let signals = Link::ALL.map(|link| (link, Signal::CarrierUp(caps))).to_vec();
        Self { frames, caps, signals, now, end, first_unix_ns, recorder: None, error: None }
    }

    /// Records what is sent from now on: pcapng with interfaces `client`, `a`, `b`, at the times of
    /// the capture.
    pub fn record_sent(&mut self, path: &Path) -> io::Result<()> {
        self.recorder = Some(Recorder::create(path, &["client", "a", "b"])?);
        Ok(())
    }
}

impl Driver for Playback {
    fn now(&self) -> Instant {
        self.now
    }
    fn caps(&self, _: Link) -> LinkCaps {
        self.caps
    }
    fn recv(&mut self, batch: &mut Batch, until: Option<Instant>) -> io::Result<()> {
        batch.signals.append(&mut self.signals);
        let next = self.frames.front().map_or(self.end, |(at, ..)| *at);
        let wake = until.map_or(next, |until| until.min(next)).max(self.now);
        self.now = wake;
        while self.frames.front().is_some_and(|(at, ..)| *at <= wake) {
            batch.frames.extend(self.frames.pop_front().map(|(_, link, frame)| (link, frame)));
        }
        batch.is_end = self.frames.is_empty() && wake >= self.end;
        Ok(())
    }
    fn send(&mut self, link: Link, frame: Frame) {
        let since_first = self.now.since(Instant::from_millis(1000));
        let at = self.first_unix_ns + since_first.as_nanos() as u64;
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(link.index(), at, &frame)
        {
            self.error.get_or_insert(error);
        }
    }
    /// The first trouble with the recording is the driver's.
    fn flush(&mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.recorder.as_mut().map_or(Ok(()), Recorder::flush),
        }
    }
}

#[cfg(test)]
mod playback_tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.pcapng");
        let frame = Frame::from_wire(Bytes::from(vec![7u8; 60]), Offload::default());
        let mut recorder = Recorder::create(&path, &["client", "a"]).expect("creates");
        recorder.write(1, 1_700_000_000_123_456_789, &frame).expect("writes");
        recorder.flush().expect("flushes");
        let (found, error) = read(File::open(&path).expect("opens"));
        assert!(error.is_none(), "{error:?}");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].interface, found[0].unix_ns), (1, 1_700_000_000_123_456_789));
        assert_eq!(found[0].frame.to_vec(), vec![7u8; 60]);
    }

    #[test]
    fn a_capture_plays_in_virtual_time_and_ends() {
        let frame = |byte: u8| Frame::from_wire(Bytes::from(vec![byte; 60]), Offload::default());
        let at =
            |interface, unix_ns| Captured { interface, unix_ns, frame: frame(interface as u8) };
        let capture = vec![at(1, 9_000_000), at(0, 5_000_000), at(7, 6_000_000)];
        let link_of = |c: &Captured| Link::ALL.get(c.interface as usize).copied();
        let linger = Duration::from_millis(10);
        let mut playback = Playback::new(capture, link_of, LinkCaps::default(), linger);
        let dir = tempfile::tempdir().expect("a directory");
        playback.record_sent(&dir.path().join("sent")).expect("creates");
        let mut seen = Vec::new();
        loop {
            let mut batch = Batch::default();
            // A caller with a timer every 3 ms.
            let until = playback.now() + Duration::from_millis(3);
            playback.recv(&mut batch, Some(until)).expect("plays");
            for (link, frame) in batch.frames {
                seen.push((playback.now().millis(), link));
                playback.send(Link::Client, frame);
            }
            playback.flush().expect("records");
            if batch.is_end {
                break;
            }
        }
        assert_eq!(seen, [(1000, Link::ALL[0]), (1004, Link::ALL[1])]);
        assert_eq!(playback.now().millis(), 1014);
        let (sent, error) = read(File::open(dir.path().join("sent")).expect("opens"));
        assert!(error.is_none(), "{error:?}");
        let times: Vec<u64> = sent.iter().map(|c| c.unix_ns).collect();
        assert_eq!(times, [5_000_000, 9_000_000]);
    }
}
