//! Reads any capture that tcpdump writes, packet by packet, in the memory of one buffer.
//!
//! pcap and pcapng in either byte order, micro- and nanoseconds, packed by gzip or not, cut
//! short or damaged: what cannot be read is told with its place and skipped, and reading goes on
//! behind it. What a packet says is not its matter (that is
//! [`captured`](crate::wire::parse::captured)'s). Read first:
//! draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use super::classic::Classic;
use super::ng::Ng;
use super::source::Source;
use super::writer::Direction;
use crate::wire::parse::captured::LinkType;

/// Bytes of one packet or block; what claims to be longer is damaged.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 20;

/// One packet of a capture. Its bytes are lent until the next one is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its number in the file, from 1 on, as Wireshark counts.
    pub number: u64,
    /// Where in the (unpacked) file it stands.
    pub at: u64,
    /// UNIX time in nanoseconds; 0 if the file does not tell.
    pub unix_ns: u64,
    /// Index of its interface in [`Reader::interfaces`].
    pub interface: usize,
    /// That interface's name, if the file tells.
    pub interface_name: Option<&'a str>,
    /// How it begins.
    pub link: LinkType,
    /// What was captured of it.
    pub data: &'a [u8],
    /// Bytes that it had on the wire; at least those captured.
    pub wire_len: usize,
    /// Its comment, where the format has such.
    pub comment: Option<&'a str>,
    /// Which way it went, if the file tells.
    pub direction: Option<Direction>,
    /// What this program noted for itself.
    pub local: Option<&'a [u8]>,
}

/// One interface of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// How its packets begin.
    pub link: LinkType,
    /// Its name, if the file tells.
    pub name: Option<String>,
}

/// A part of a capture that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Number of the packet that it would have been, from 1 on.
    pub packet: u64,
    /// Where in the (unpacked) file it stands.
    pub at: u64,
    /// What is wrong, and what was done about it.
    pub what: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packet {} (byte {}): {}", self.packet, self.at, self.what)
    }
}

/// Why a file is not read at all.
#[derive(Debug, thiserror::Error)]
pub enum NotACapture {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// It is something else.
    #[error("this is not a capture: {0}")]
    Other(String),
}

/// Bytes that tell what a file is.
const BEGINNING: usize = 28;

/// Reads one capture. See [`Self::next`].
pub struct Reader {
    source: Source,
    format: Format,
    interfaces: Vec<Interface>,
    /// Packets seen, readable or not.
    number: u64,
    /// Bytes of the record lent last, to be skipped before the next one.
    lent: u64,
    is_over: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} packets)", self.number)
    }
}

enum Format {
    Classic(Classic),
    Ng(Ng),
}

/// A packet as a format finds it: where it lies from the source's place on.
pub(super) struct Found {
    pub(super) interface: usize,
    pub(super) unix_ns: u64,
    pub(super) wire_len: usize,
    pub(super) data: Range<usize>,
    pub(super) comment: Option<Range<usize>>,
    pub(super) direction: Option<Direction>,
    pub(super) local: Option<Range<usize>>,
    /// Bytes of the whole record.
    pub(super) len: u64,
}

/// What a format cannot read.
pub(super) enum Damage {
    /// Reading goes on behind it.
    Passed(String),
    /// Nothing can be read any more.
    Final(String),
}

impl Reader {
    /// Begins to read a capture.
    pub fn new(inner: impl Read + Send + 'static) -> Result<Self, NotACapture> {
        let mut source = Source::new(Box::new(inner))?;
        let mut interfaces = Vec::new();
        if source.want(BEGINNING).is_empty() {
            return Err(source.take_error().map_or(NotACapture::Empty, NotACapture::Io));
        }
        let head = source.want(BEGINNING);
        let format = if Ng::begins(head) {
            Format::Ng(Ng::default())
        } else if let Some((classic, interface)) = Classic::begin(head) {
            source.skip(Classic::HEADER_LEN as u64);
            interfaces.push(interface);
            Format::Classic(classic)
        } else {
            return Err(NotACapture::Other(what_it_is(head)));
        };
        Ok(Self { source, format, interfaces, number: 0, lent: 0, is_over: false })
    }

    /// From here on blocks that only this program reads are kept for [`Self::local_blocks`].
    pub fn keep_local_blocks(&mut self) {
        if let Format::Ng(ng) = &mut self.format {
            ng.local.get_or_insert_default();
        }
    }

    /// Those that were read since then: each one's kind and content.
    pub fn local_blocks(&self) -> &[(u32, Vec<u8>)] {
        match &self.format {
            Format::Ng(ng) => ng.local.as_deref().unwrap_or_default(),
            Format::Classic(_) => &[],
        }
    }

    /// The interfaces seen so far; a pcapng may describe more of them later.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Whether the file is a pcapng.
    pub const fn is_ng(&self) -> bool {
        matches!(self.format, Format::Ng(_))
    }

    /// Bytes of the (unpacked) file behind the packet read last.
    pub const fn at(&self) -> u64 {
        self.source.at() + self.lent
    }

    /// The next packet; none at the end. After a trouble it can be called again: it goes on
    /// behind what could not be read.
    #[allow(clippy::should_implement_trait)] // it lends
    pub fn next(&mut self) -> Result<Option<Record<'_>>, Trouble> {
        if self.is_over {
            return Ok(None);
        }
        self.source.skip(std::mem::take(&mut self.lent));
        let mut at = self.source.at();
        let found = match &mut self.format {
            Format::Classic(classic) => classic.next(&mut self.source),
            Format::Ng(ng) => {
                let found = ng.next(&mut self.source, &mut self.interfaces);
                at = ng.at;
                found
            }
        };
        self.number += 1;
        let packet = self.number;
        self.is_over = matches!(found, Ok(None) | Err(Damage::Final(_)));
        let broken = self.is_over.then(|| self.source.take_error()).flatten();
        let found = match (found, broken) {
            (Ok(Some(found)), _) => found,
            (Ok(None), None) => return Ok(None),
            (Ok(None), Some(error)) => {
                return Err(Trouble { packet, at, what: format!("the file breaks off: {error}") });
            }
            (Err(Damage::Final(what)), Some(error)) => {
                return Err(Trouble { packet, at, what: format!("{what} ({error})") });
            }
            (Err(Damage::Passed(what) | Damage::Final(what)), _) => {
                return Err(Trouble { packet, at, what });
            }
        };
        self.lent = found.len;
        let bytes = self.source.there();
        let interface = &self.interfaces[found.interface];
        let comment = found.comment.map(|range| &bytes[range]);
        Ok(Some(Record {
            number: packet,
            at: self.source.at(),
            unix_ns: found.unix_ns,
            interface: found.interface,
            interface_name: interface.name.as_deref(),
            link: interface.link,
            data: &bytes[found.data.clone()],
            wire_len: found.wire_len.max(found.data.len()),
            comment: comment.and_then(|comment| std::str::from_utf8(comment).ok()),
            direction: found.direction,
            local: found.local.map(|range| &bytes[range]),
        }))
    }
}

/// What a file is that is no capture, as far as its beginning tells, and what helps.
fn what_it_is(head: &[u8]) -> String {
    let known: [(&[u8], &str); 12] = [
        (&[0x0a, 0x0d, 0x0d, 0x0a], "it begins like a pcapng, but its first block is damaged"),
        (&[0xd4, 0xc3, 0xb2, 0xa1], "it begins like a pcap, but ends inside its header"),
        (&[0xa1, 0xb2, 0xc3, 0xd4], "it begins like a pcap, but ends inside its header"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "it is packed by zstd; unpack it first: zstd -d FILE"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "it is packed by xz; unpack it first: xz -dk FILE"),
        (&[0x04, 0x22, 0x4d, 0x18], "it is packed by lz4; unpack it first: lz4 -d FILE"),
        (b"BZh", "it is packed by bzip2; unpack it first: bzip2 -dk FILE"),
        (b"PK\x03\x04", "it is a zip archive; unpack it first: unzip FILE"),
        (b"snoop\0\0\0", "it is one of snoop; convert it first: editcap -F pcap FILE NEW"),
        (b"\x7fELF", "it is a program"),
        (b"{", "it looks like JSON"),
        (b"<", "it looks like XML or HTML"),
    ];
    let found = known.iter().find(|(magic, _)| head.starts_with(magic));
    match found {
        Some((_, text)) => (*text).to_owned(),
        None => {
            let hex: Vec<String> = head.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("its first bytes are {}, which neither pcap nor pcapng has", hex.join(" "))
        }
    }
}
