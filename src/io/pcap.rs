//! Captures: a recorder around any driver, a reader, and captures played as a driver.
//!
//! A recording is pcapng with one interface for each link and direction-free packets; a partial
//! checksum is finished in the recorded copy, super-frames are recorded whole.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};

use super::{Batch, Driver, clock};
use crate::engine::{Instant, Link, LinkCaps, Signal};
use crate::wire::{Frame, Offload, checksum};

/// Largest frame recorded.
const SNAPLEN: u32 = 262_144;
/// Timestamps in nanoseconds (10^-9).
const RESOLUTION: u8 = 9;

/// Writes a pcapng with named interfaces.
pub struct Recorder {
    writer: PcapNgWriter<BufWriter<File>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// Makes the file and describes `names` as its interfaces.
    pub fn create(path: &Path, names: &[&str]) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let mut writer = PcapNgWriter::new(file).map_err(io::Error::other)?;
        for name in names {
            let options = vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(*name)),
                InterfaceDescriptionOption::IfTsResol(RESOLUTION),
            ];
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: SNAPLEN,
                options,
            };
            writer.write_block(&Block::InterfaceDescription(block)).map_err(io::Error::other)?;
        }
        Ok(Self { writer })
    }

    /// Writes one frame of the interface `index` at a UNIX time in nanoseconds.
    pub fn write(&mut self, index: usize, unix_ns: u64, frame: &Frame) -> io::Result<()> {
        let mut copy = frame.clone();
        checksum::complete(&mut copy);
        let data = copy.to_vec();
        let block = EnhancedPacketBlock {
            interface_id: index as u32,
            timestamp: Duration::from_nanos(unix_ns),
            original_len: data.len() as u32,
            data: Cow::Owned(data),
            options: Vec::new(),
        };
        self.writer.write_block(&Block::EnhancedPacket(block)).map_err(io::Error::other)?;
        Ok(())
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
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

/// Reads a whole capture, pcap (either byte order, micro- or nanoseconds) or pcapng. What follows
/// a damaged record is not read; the error comes with what was.
pub fn read(mut source: impl Read) -> (Vec<Captured>, Option<io::Error>) {
    let mut bytes = Vec::new();
    if let Err(e) = source.read_to_end(&mut bytes) {
        return (Vec::new(), Some(e));
    }
    match bytes.first_chunk() {
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => read_pcapng(&bytes),
        _ => read_pcap(&bytes),
    }
}

fn captured(interface: u32, at: Duration, data: &[u8]) -> Captured {
    let unix_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let frame = Frame::from_wire(Bytes::copy_from_slice(data), Offload::default());
    Captured { interface, unix_ns, frame }
}

fn read_pcap(bytes: &[u8]) -> (Vec<Captured>, Option<io::Error>) {
    let mut found = Vec::new();
    let mut reader = match PcapReader::new(bytes) {
        Ok(reader) => reader,
        Err(e) => return (found, Some(io::Error::other(e))),
    };
    while let Some(packet) = reader.next_packet() {
        match packet {
            Ok(p) => found.push(captured(0, p.timestamp, &p.data)),
            Err(e) => return (found, Some(io::Error::other(e))),
        }
    }
    (found, None)
}

fn read_pcapng(bytes: &[u8]) -> (Vec<Captured>, Option<io::Error>) {
    let mut found = Vec::new();
    let mut reader = match PcapNgReader::new(bytes) {
        Ok(reader) => reader,
        Err(e) => return (found, Some(io::Error::other(e))),
    };
    // The reader takes every timestamp for nanoseconds: what each interface means is ours to know.
    let mut ticks_per_second: Vec<u128> = Vec::new();
    while let Some(block) = reader.next_block() {
        match block {
            Ok(Block::SectionHeader(_)) => ticks_per_second.clear(),
            Ok(Block::InterfaceDescription(interface)) => {
                ticks_per_second.push(resolution(&interface));
            }
            Ok(Block::EnhancedPacket(p)) => {
                let Some(&rate) = ticks_per_second.get(p.interface_id as usize) else {
                    let what = format!("packet {} names no interface", found.len() + 1);
                    return (found, Some(io::Error::other(what)));
                };
                let ns = p.timestamp.as_nanos() * 1_000_000_000 / rate;
                let at = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
                found.push(captured(p.interface_id, at, &p.data));
            }
            Ok(_) => {}
            Err(e) => return (found, Some(io::Error::other(e))),
        }
    }
    (found, None)
}

/// Units of an interface's timestamps in a second: 10^6 unless it says otherwise (if_tsresol).
fn resolution(interface: &InterfaceDescriptionBlock<'_>) -> u128 {
    let said = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(exponent) => Some(*exponent),
        _ => None,
    });
    match said.unwrap_or(6) {
        // Beyond these no clock counts; the arithmetic has room for them.
        two @ 0x80.. => 1 << (two & 0x7f).min(60),
        ten => 10u128.pow(u32::from(ten.min(18))),
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
mod tests {
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

    /// A plain pcap with one frame of 60 bytes at 1.5 s.
    fn plain(magic: u32, order: fn(u32) -> [u8; 4], fraction: u32) -> Vec<u8> {
        let version = if order(1)[0] == 1 { [2, 0, 4, 0] } else { [0, 2, 0, 4] };
        let mut bytes = [order(magic), version, order(0), order(0), order(65535)].concat();
        bytes.extend([order(1), order(1), order(fraction), order(60), order(60)].concat());
        bytes.extend([7; 60]);
        bytes
    }

    #[test]
    fn both_byte_orders_and_resolutions_are_read() {
        for (magic, fraction) in [(0xa1b2_c3d4, 500_000), (0xa1b2_3c4d, 500_000_000)] {
            for order in [u32::to_le_bytes as fn(u32) -> [u8; 4], u32::to_be_bytes] {
                let (found, error) = read(&plain(magic, order, fraction)[..]);
                assert!(error.is_none() && found.len() == 1, "{magic:x}: {error:?}");
                assert_eq!(found[0].unix_ns, 1_500_000_000);
            }
        }
    }

    #[test]
    fn a_pcapng_without_resolution_counts_microseconds() {
        let mut writer = PcapNgWriter::new(Vec::new()).expect("writes");
        let block = InterfaceDescriptionBlock::new(DataLink::ETHERNET, SNAPLEN);
        writer.write_block(&Block::InterfaceDescription(block)).expect("writes");
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(1_500_000), // raw units
            original_len: 60,
            data: Cow::Owned(vec![7; 60]),
            options: Vec::new(),
        };
        writer.write_block(&Block::EnhancedPacket(block)).expect("writes");
        let (found, error) = read(&writer.into_inner()[..]);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(found[0].unix_ns, 1_500_000_000);
    }

    #[test]
    fn a_record_longer_than_the_rest_or_than_its_frame_is_told() {
        let whole = plain(0xa1b2_c3d4, u32::to_le_bytes, 0);
        let (found, error) = read(&whole[..whole.len() - 5]);
        assert!(found.is_empty() && error.is_some());
        let mut boasting = whole;
        boasting[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
        let (found, error) = read(&boasting[..]);
        assert!(found.is_empty() && error.is_some());
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

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for bytes in [&b""[..], b"\xd4\xc3\xb2\xa1", &[0x0a, 0x0d, 0x0d, 0x0a, 0, 0]] {
            let (found, _) = read(bytes);
            assert!(found.is_empty());
        }
    }
}
