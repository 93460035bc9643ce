//! What the two ends of a mirror say to each other, over any stream of bytes.
//!
//! Owns the frames and the messages. A frame is its length (32 bits, lowest byte first), one byte
//! for its kind, and the body. Kinds below 16 are between an end and the one who pairs it; all
//! others are between the ends, and whoever pairs them passes them on unread.
//!
//! ```text
//! target                               source
//!   Path*, List          ->                      look at these paths, or at everything
//!                        <-  Scope, (Item | Dir | Trouble)*, Listed
//!   Fetch                ->                      as many as there are, without waiting
//!                        <-  (Data | Same | Zero)*, Fetched     for each, in their order
//!   Bye                  ->
//! ```

use std::io::{self, Read, Write};

use super::content::{BLOCK_LEN_MAX, Hash};
use super::entry::{Entry, Rel};
use super::wire::{Cursor, Garbled, put_bytes, put_entry, put_flag, put_number};

/// Version of all of this. Ends of different versions are not paired.
pub const VERSION: u32 = 2;
/// A longer frame is refused. The longest are the hashes of a file's blocks: these are those of
/// 16 TiB.
pub const FRAME_LEN_MAX: usize = (64 << 20) + (8 << 10);
/// Kinds from here on are passed on from end to end.
pub const PASSED_ON: u8 = 16;
/// The kind of [`Message::Fetched`]: counted by who passes it on.
pub const FETCHED: u8 = 25;
/// Bytes in front of a frame's body: length and kind.
pub const HEAD_LEN: usize = 5;

/// What an end is to do in one sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// It is made equal; otherwise it is what the other is made equal to.
    pub is_target: bool,
    /// Whatever a watch knows, everything is looked at.
    pub is_full: bool,
    /// Content is compared even where size and times are equal.
    pub by_content: bool,
    /// What is written is brought to the disk before it takes its name.
    pub is_durable: bool,
    /// Another sync follows: what does not stand still now is left to that one.
    pub is_ahead: bool,
}

/// What a sync did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Everything was looked at.
    pub is_full: bool,
    /// Paths that were looked at.
    pub paths: u64,
    /// Files whose content was written anew.
    pub written: u64,
    /// Everything else that was made, moved, linked or given other attributes.
    pub mended: u64,
    /// What was removed.
    pub removed: u64,
}

/// How a file's transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It stood still, and this is it.
    Whole(Entry),
    /// It changed while it was read, or is no file any more.
    Changed,
    /// It cannot be read.
    Failed(String),
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// To an end, first of all: how it keeps its tree.
    Setup {
        /// What belongs to neither tree.
        exclude: Vec<Rel>,
        /// It watches, so that later syncs need not look at everything.
        is_watching: bool,
    },
    /// An end stands by.
    Ready {
        /// Its [`VERSION`].
        version: u32,
        /// Why it cannot watch its tree, if it cannot.
        blind: Option<String>,
    },
    /// To an end: take part in a sync.
    Order(Order),
    /// From the target: so many files are to be fetched, with so many bytes.
    Planned {
        /// Files.
        files: u64,
        /// Bytes.
        bytes: u64,
    },
    /// From the target: it works, though it has nothing to say.
    Busy,
    /// From an end: its part is over. Only the target's report says anything.
    Ended(Result<Report, String>),

    /// The target doubts this path; with all below it if the flag is set.
    Path(Rel, bool),
    /// What else the source doubts, and then all of it; or everything.
    List {
        /// Everything.
        is_full: bool,
    },
    /// What follows is everything, or what either side doubts.
    Scope {
        /// Everything.
        is_full: bool,
    },
    /// What is at a path.
    Item(Rel, Option<Entry>),
    /// Entries of a directory, in the order of their names; more follow unless it is the last.
    Dir {
        /// The directory.
        path: Rel,
        /// Names and what is there.
        entries: Vec<(Vec<u8>, Entry)>,
        /// No more follow.
        is_last: bool,
    },
    /// A path that cannot be looked at, and why.
    Trouble(Rel, String),
    /// The end of what [`Message::Scope`] began.
    Listed,
    /// The content of a file is wanted.
    Fetch {
        /// The file.
        path: Rel,
        /// The length of its blocks, but for the last.
        block_len: u32,
        /// The hashes of the blocks that the asker has.
        hashes: Vec<Hash>,
    },
    /// The next block, without the zeros at its end.
    Data(&'a [u8]),
    /// The next blocks are as in the hashes.
    Same(u64),
    /// The next blocks are zeros.
    Zero(u64),
    /// The end of a file.
    Fetched(Fetched),
    /// The source cannot take part.
    Refused(String),
    /// No more is wanted.
    Bye {
        /// The target is equal now.
        is_equal: bool,
    },
}

impl Message<'_> {
    /// Appends the whole frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_LEN]);
        out[start + 4] = self.put_body(out);
        let len = u32::try_from(out.len() - start - 4).expect("messages are kept short");
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    fn put_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Ready { version, blind } => {
                put_number(out, u64::from(*version));
                put_flag(out, blind.is_some());
                put_bytes(out, blind.as_deref().unwrap_or_default().as_bytes());
                1
            }
            Self::Order(order) => {
                let Order { is_target, is_full, by_content, is_durable, is_ahead } = *order;
                for flag in [is_target, is_full, by_content, is_durable, is_ahead] {
                    put_flag(out, flag);
                }
                2
            }
            Self::Setup { exclude, is_watching } => {
                put_flag(out, *is_watching);
                put_number(out, exclude.len() as u64);
                exclude.iter().for_each(|path| put_bytes(out, path.as_bytes()));
                5
            }
            Self::Planned { files, bytes } => {
                put_number(out, *files);
                put_number(out, *bytes);
                3
            }
            Self::Busy => 6,
            Self::Ended(result) => {
                put_flag(out, result.is_ok());
                match result {
                    Ok(report) => {
                        put_flag(out, report.is_full);
                        for n in [report.paths, report.written, report.mended, report.removed] {
                            put_number(out, n);
                        }
                    }
                    Err(message) => put_bytes(out, message.as_bytes()),
                }
                4
            }
            Self::Path(path, is_deep) => {
                put_bytes(out, path.as_bytes());
                put_flag(out, *is_deep);
                16
            }
            Self::List { is_full } => {
                put_flag(out, *is_full);
                17
            }
            Self::Scope { is_full } => {
                put_flag(out, *is_full);
                18
            }
            Self::Item(path, entry) => {
                put_bytes(out, path.as_bytes());
                put_flag(out, entry.is_some());
                entry.iter().for_each(|entry| put_entry(out, entry));
                19
            }
            Self::Dir { path, entries, is_last } => {
                put_bytes(out, path.as_bytes());
                put_flag(out, *is_last);
                put_number(out, entries.len() as u64);
                for (name, entry) in entries {
                    put_bytes(out, name);
                    put_entry(out, entry);
                }
                20
            }
            Self::Trouble(path, why) => {
                put_bytes(out, path.as_bytes());
                put_bytes(out, why.as_bytes());
                26
            }
            Self::Listed => 21,
            Self::Fetch { path, block_len, hashes } => {
                put_bytes(out, path.as_bytes());
                put_number(out, u64::from(*block_len));
                put_number(out, hashes.len() as u64);
                hashes.iter().for_each(|hash| out.extend_from_slice(hash));
                22
            }
            Self::Data(bytes) => {
                out.extend_from_slice(bytes);
                23
            }
            Self::Same(count) | Self::Zero(count) => {
                put_flag(out, matches!(self, Self::Same(_)));
                put_number(out, *count);
                24
            }
            Self::Fetched(fetched) => {
                match fetched {
                    Fetched::Whole(entry) => {
                        out.push(0);
                        put_entry(out, entry);
                    }
                    Fetched::Changed => out.push(1),
                    Fetched::Failed(why) => {
                        out.push(2);
                        put_bytes(out, why.as_bytes());
                    }
                }
                FETCHED
            }
            Self::Refused(why) => {
                put_bytes(out, why.as_bytes());
                28
            }
            Self::Bye { is_equal } => {
                put_flag(out, *is_equal);
                27
            }
        }
    }
}

/// The message of this kind and body.
pub fn parse(kind: u8, body: &[u8]) -> Result<Message<'_>, Garbled> {
    let mut body = Cursor(body);
    let message = match kind {
        1 => {
            let (version, is_blind) = (body.small()?, body.flag()?);
            let why = body.text()?;
            Message::Ready { version, blind: is_blind.then_some(why) }
        }
        2 => Message::Order(Order {
            is_target: body.flag()?,
            is_full: body.flag()?,
            by_content: body.flag()?,
            is_durable: body.flag()?,
            is_ahead: body.flag()?,
        }),
        5 => {
            let is_watching = body.flag()?;
            let mut exclude = Vec::new();
            for _ in 0..body.number()? {
                exclude.push(body.path()?);
            }
            Message::Setup { exclude, is_watching }
        }
        3 => Message::Planned { files: body.number()?, bytes: body.number()? },
        4 if body.flag()? => Message::Ended(Ok(Report {
            is_full: body.flag()?,
            paths: body.number()?,
            written: body.number()?,
            mended: body.number()?,
            removed: body.number()?,
        })),
        4 => Message::Ended(Err(body.text()?)),
        6 => Message::Busy,
        16 => Message::Path(body.path()?, body.flag()?),
        17 => Message::List { is_full: body.flag()? },
        18 => Message::Scope { is_full: body.flag()? },
        19 => {
            let (path, is_there) = (body.path()?, body.flag()?);
            Message::Item(path, is_there.then(|| body.entry()).transpose()?)
        }
        20 => {
            let (path, is_last) = (body.path()?, body.flag()?);
            let mut entries = Vec::new();
            for _ in 0..body.number()? {
                let name = body.bytes()?;
                if name.is_empty() || name.contains(&b'/') || Rel::new(name).is_none() {
                    return Err(Garbled);
                }
                entries.push((name.to_owned(), body.entry()?));
            }
            Message::Dir { path, entries, is_last }
        }
        26 => Message::Trouble(body.path()?, body.text()?),
        21 => Message::Listed,
        22 => {
            let (path, block_len) = (body.path()?, body.small()?);
            let count: usize = body.small()?;
            let (hashes, rest) = body.0.as_chunks();
            let is_good = (1..=BLOCK_LEN_MAX).contains(&(block_len as usize));
            if !is_good || hashes.len() != count || !rest.is_empty() {
                return Err(Garbled);
            }
            return Ok(Message::Fetch { path, block_len, hashes: hashes.to_vec() });
        }
        23 => return Ok(Message::Data(body.0)),
        24 if body.flag()? => Message::Same(body.number()?),
        24 => Message::Zero(body.number()?),
        FETCHED => Message::Fetched(match body.byte()? {
            0 => Fetched::Whole(body.entry()?),
            1 => Fetched::Changed,
            2 => Fetched::Failed(body.text()?),
            _ => return Err(Garbled),
        }),
        28 => Message::Refused(body.text()?),
        27 => Message::Bye { is_equal: body.flag()? },
        _ => return Err(Garbled),
    };
    body.end()?;
    Ok(message)
}

/// How much is gathered before it is written.
const WRITE_LEN: usize = 256 << 10;
/// How much is read at once.
const READ_LEN: usize = 256 << 10;

/// The way out of an end.
#[derive(Debug)]
pub struct Sender<W> {
    stream: W,
    buffer: Vec<u8>,
}

impl<W: Write> Sender<W> {
    /// Over this stream.
    pub fn new(stream: W) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends, though not before much is gathered or [`Sender::flush`] is called.
    pub fn send(&mut self, message: &Message<'_>) -> io::Result<()> {
        message.put(&mut self.buffer);
        if self.buffer.len() >= WRITE_LEN { self.flush() } else { Ok(()) }
    }

    /// The same with a frame that somebody else made.
    pub fn send_raw(&mut self, frame: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(frame);
        if self.buffer.len() >= WRITE_LEN { self.flush() } else { Ok(()) }
    }

    /// Writes what is gathered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.buffer)?;
        self.buffer.clear();
        self.stream.flush()
    }
}

/// The way into an end.
#[derive(Debug)]
pub struct Receiver<R> {
    stream: R,
    buffer: Vec<u8>,
    /// What of the buffer is read and not taken.
    filled: std::ops::Range<usize>,
}

impl<R: Read> Receiver<R> {
    /// Over this stream.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::new(), filled: 0..0 }
    }

    /// Whether the next message is here already.
    pub fn has_next(&self) -> bool {
        self.next_len().is_some_and(|len| self.filled.len() >= len)
    }

    /// The next message. Errors: the stream's; `UnexpectedEof` at its end, also in the middle of
    /// a message; `InvalidData` if it is none.
    pub fn receive(&mut self) -> io::Result<Message<'_>> {
        let (kind, body) = self.frame()?;
        let body = &self.buffer[body];
        parse(kind, body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The next frame, whole and unread, and its kind.
    pub fn raw(&mut self) -> io::Result<(u8, &[u8])> {
        let (kind, body) = self.frame()?;
        Ok((kind, &self.buffer[body.start - HEAD_LEN..body.end]))
    }

    fn frame(&mut self) -> io::Result<(u8, std::ops::Range<usize>)> {
        while !self.has_next() {
            self.fill()?;
        }
        let len = self.next_len().unwrap_or(HEAD_LEN);
        let start = self.filled.start;
        self.filled.start += len;
        Ok((self.buffer[start + 4], start + HEAD_LEN..start + len))
    }

    /// Length of the next frame, head and all, if its head is here.
    fn next_len(&self) -> Option<usize> {
        let head = self.buffer[self.filled.clone()].first_chunk::<4>()?;
        Some(4 + (u32::from_le_bytes(*head) as usize).max(1))
    }

    fn fill(&mut self) -> io::Result<()> {
        let want = self.next_len().unwrap_or(HEAD_LEN);
        if want > HEAD_LEN + FRAME_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Garbled));
        }
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let room = want.max(READ_LEN);
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        loop {
            match self.stream.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.filled.end += n;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
