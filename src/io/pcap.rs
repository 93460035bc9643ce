//! Captures: a recorder around any driver, and a reader.
//!
//! A recording is pcapng with one interface for each link and direction-free packets; a partial
//! checksum is finished in the recorded copy, super-frames are recorded whole.

use std::borrow::Cow;
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
use crate::engine::{Instant, Link, LinkCaps};
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
    while let Some(block) = reader.next_block() {
        match block {
            Ok(Block::EnhancedPacket(p)) => {
                found.push(captured(p.interface_id, p.timestamp, &p.data));
            }
            Ok(_) => {}
            Err(e) => return (found, Some(io::Error::other(e))),
        }
    }
    (found, None)
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

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for bytes in [&b""[..], b"\xd4\xc3\xb2\xa1", &[0x0a, 0x0d, 0x0d, 0x0a, 0, 0]] {
            let (found, _) = read(bytes);
            assert!(found.is_empty());
        }
    }
}
