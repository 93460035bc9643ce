//! Writes captures: pcapng with named interfaces and comments, or plain pcap.
//!
//! Little-endian, times in nanoseconds. Read first: draft-ietf-opsawg-pcapng, section 4.

use std::fmt;
use std::io::{self, Write};

use crate::wire::parse::captured::LinkType;

/// Largest packet that a file says it may hold.
const SNAPLEN: u32 = 262_144;
/// Times count 10^-9 seconds.
const RESOLUTION: u8 = 9;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const OPTION_COMMENT: u16 = 1;
/// Of an interface its name, of a packet its flags.
const OPTION_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
const OPTION_APPLICATION: u16 = 4;
const OPTION_RESOLUTION: u16 = 9;
/// Bytes of an option's value.
const OPTION_BYTES_MAX: usize = u16::MAX as usize;

/// An option of a packet that only this program reads (codes with the first bit set are anybody's).
pub(super) const OPTION_LOCAL: u16 = 0x8053;

/// Which way a packet went, as `epb_flags` say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It came in.
    In = 1,
    /// It was sent.
    Out = 2,
}

/// What a pcapng can say of a packet besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes<'a> {
    /// For people.
    pub comment: Option<&'a str>,
    /// Which way it went.
    pub direction: Option<Direction>,
    /// For this program.
    pub local: Option<&'a [u8]>,
}

/// Writes one capture.
pub struct Writer<W> {
    out: W,
    is_ng: bool,
    interfaces: u32,
    /// The block under way.
    block: Vec<u8>,
}

impl<W> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer({} interfaces)", self.interfaces)
    }
}

impl<W: Write> Writer<W> {
    /// A plain pcap: one interface, no names, no comments.
    pub fn classic(mut out: W, link: LinkType) -> io::Result<Self> {
        let mut head = Vec::with_capacity(24);
        head.extend(0xa1b2_3c4d_u32.to_le_bytes());
        head.extend([2, 0, 4, 0]);
        head.extend([0; 8]);
        head.extend(SNAPLEN.to_le_bytes());
        head.extend(u32::from(link.0).to_le_bytes());
        out.write_all(&head)?;
        Ok(Self { out, is_ng: false, interfaces: 1, block: Vec::new() })
    }

    /// A pcapng; its interfaces are described by [`Self::interface`].
    pub fn ng(out: W) -> io::Result<Self> {
        Self::ng_about(out, None)
    }

    /// The same, with a comment on the whole and the name of who writes it.
    pub fn ng_about(out: W, about: Option<(&str, &str)>) -> io::Result<Self> {
        let mut writer = Self { out, is_ng: true, interfaces: 0, block: Vec::new() };
        writer.begin(SECTION);
        writer.block.extend(0x1a2b_3c4d_u32.to_le_bytes());
        writer.block.extend([1, 0, 0, 0]);
        // A length that is not known.
        writer.block.extend([0xff; 8]);
        if let Some((comment, application)) = about {
            writer.option(OPTION_COMMENT, comment.as_bytes());
            writer.option(OPTION_APPLICATION, application.as_bytes());
            writer.end_options();
        }
        writer.end()?;
        Ok(writer)
    }

    /// Goes on with a pcapng that was begun by [`Self::ng`], has so many interfaces and was closed.
    pub const fn ng_again(out: W, interfaces: u32) -> Self {
        Self { out, is_ng: true, interfaces, block: Vec::new() }
    }

    /// Describes the next interface of a pcapng and returns its index. In a plain pcap there is
    /// the first one only.
    pub fn interface(&mut self, link: LinkType, name: Option<&str>) -> io::Result<u32> {
        if !self.is_ng {
            return Ok(0);
        }
        self.begin(INTERFACE);
        self.block.extend(link.0.to_le_bytes());
        self.block.extend([0; 2]);
        self.block.extend(SNAPLEN.to_le_bytes());
        if let Some(name) = name {
            self.option(OPTION_NAME, name.as_bytes());
        }
        self.option(OPTION_RESOLUTION, &[RESOLUTION]);
        self.end_options();
        self.end()?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes a packet of an interface, captured at a UNIX time in nanoseconds: what was captured
    /// of it, the bytes that it had on the wire, and in a pcapng a comment.
    pub fn packet(
        &mut self,
        interface: u32,
        unix_ns: u64,
        data: &[u8],
        wire_len: usize,
        comment: Option<&str>,
    ) -> io::Result<()> {
        let notes = Notes { comment, ..Notes::default() };
        self.noted_packet(interface, unix_ns, data, wire_len, notes)
    }

    /// The same, with all that a pcapng can say of a packet.
    pub fn noted_packet(
        &mut self,
        interface: u32,
        unix_ns: u64,
        data: &[u8],
        wire_len: usize,
        notes: Notes<'_>,
    ) -> io::Result<()> {
        let [captured, wire] = [data.len(), wire_len.max(data.len())]
            .map(|len| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        if !self.is_ng {
            let seconds = (unix_ns / 1_000_000_000) as u32;
            let fraction = (unix_ns % 1_000_000_000) as u32;
            let head = [seconds.to_le_bytes(), fraction.to_le_bytes(), captured, wire].concat();
            self.out.write_all(&head)?;
            return self.out.write_all(data);
        }
        self.begin(PACKET);
        self.block.extend(interface.to_le_bytes());
        self.block.extend(((unix_ns >> 32) as u32).to_le_bytes());
        self.block.extend((unix_ns as u32).to_le_bytes());
        self.block.extend(captured);
        self.block.extend(wire);
        self.block.extend(data);
        self.pad();
        if let Some(comment) = notes.comment {
            self.option(OPTION_COMMENT, comment.as_bytes());
        }
        if let Some(direction) = notes.direction {
            self.option(OPTION_FLAGS, &(direction as u32).to_le_bytes());
        }
        if let Some(value) = notes.local {
            self.option(OPTION_LOCAL, value);
        }
        if notes != Notes::default() {
            self.end_options();
        }
        self.end()
    }

    /// Writes a block that only this program reads; others pass over it. `kind` has its first bit
    /// set.
    pub fn local_block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        self.begin(kind);
        // What pads it is no part of it.
        self.block.extend(u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes());
        self.block.extend(body);
        self.pad();
        self.end()
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.block.extend(kind.to_le_bytes());
        // The length, once it is known.
        self.block.extend([0; 4]);
    }

    fn option(&mut self, kind: u16, value: &[u8]) {
        let value = &value[..value.len().min(OPTION_BYTES_MAX)];
        self.block.extend(kind.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.block.extend(value);
        self.pad();
    }

    fn end_options(&mut self) {
        self.block.extend([0; 4]);
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn end(&mut self) -> io::Result<()> {
        let len = u32::try_from(self.block.len() + 4).map_err(io::Error::other)?.to_le_bytes();
        self.block[4..8].copy_from_slice(&len);
        self.block.extend(len);
        self.out.write_all(&self.block)
    }
}
