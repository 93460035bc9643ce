//! Where HTTP/1.x messages begin and end (RFC 9112 6), byte by byte, in bounded memory.
//!
//! Anything that two parsers might read differently ends the parsing for good ([`Part::Lost`]),
//! with a [`RawReason`]: two lengths, a length beside a transfer coding, a bare LF, a folded line,
//! a line over the limit.

use super::RawReason;

/// Longest line that is parsed, in bytes.
pub const LINE_BYTES_MAX: usize = 8192;
/// Longest header section, or trailer section, that is parsed, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Room that most lines need.
const LINE_BYTES_USUAL: usize = 64;

/// Where in a message the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// In the request or status line.
    Start,
    /// In a header line, the empty one included.
    Header,
    /// In a body of known length, with that many bytes to go.
    Body(u64),
    /// In the size line of a chunk.
    ChunkSize,
    /// In a chunk's data and its CRLF, with that many bytes to go.
    Chunk(u64),
    /// In the trailer section.
    Trailer,
    /// In a body that ends with the connection.
    UntilClose,
    /// Not HTTP/1.x that everybody reads alike.
    Lost,
}

/// A complete line, or the end of the header section, as [`Framing::push`] saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing complete yet.
    Nothing,
    /// The request or status line is in [`Framing::line`].
    Start,
    /// The header section ended; [`Framing::end_headers`] has to be told what follows.
    HeadersEnd,
}

/// The parser of one direction.
#[derive(Clone, Debug)]
pub struct Framing {
    part: Part,
    line: Vec<u8>,
    /// Bytes of this message's lines so far.
    head_len: usize,
    length: Option<u64>,
    is_chunked: bool,
    raw: Option<RawReason>,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            part: Part::Start,
            line: Vec::new(),
            head_len: 0,
            length: None,
            is_chunked: false,
            raw: None,
        }
    }
}

impl Framing {
    /// Where the next byte stands.
    pub const fn part(&self) -> Part {
        self.part
    }

    /// The line so far, without its CR LF.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Gives up for good; the first reason stays.
    pub fn lose(&mut self, why: RawReason) {
        let raw = self.raw.or(Some(why));
        *self = Self { part: Part::Lost, raw, ..Self::default() };
    }

    /// Why it gave up.
    pub const fn raw(&self) -> Option<RawReason> {
        self.raw
    }

    /// Before the first byte of a message.
    pub fn is_between_messages(&self) -> bool {
        self.part == Part::Start && self.line.is_empty()
    }

    /// Skips bytes of a body; returns how many of `available` were taken.
    pub fn skip_body(&mut self, available: usize) -> usize {
        match self.part {
            Part::UntilClose | Part::Lost => available,
            Part::Body(left) => {
                let n = left.min(available as u64);
                if left == n {
                    self.end_message();
                } else {
                    self.part = Part::Body(left - n);
                }
                n as usize
            }
            Part::Chunk(left) => {
                let n = left.min(available as u64);
                self.part = if left == n { Part::ChunkSize } else { Part::Chunk(left - n) };
                n as usize
            }
            Part::Start | Part::Header | Part::ChunkSize | Part::Trailer => 0,
        }
    }

    /// Takes one byte of a line. Only in the parts that consist of lines.
    pub fn push(&mut self, byte: u8) -> Seen {
        self.head_len += 1;
        if byte != b'\n' {
            let why = match (self.line.last(), self.line.len()) {
                (Some(b'\r'), _) => Some(RawReason::BareCr),
                (_, LINE_BYTES_MAX) => Some(RawReason::LongLine),
                _ if self.head_len > HEAD_BYTES_MAX => Some(RawReason::LongHead),
                _ => None,
            };
            if let Some(why) = why {
                self.lose(why);
                return Seen::Nothing;
            }
            if self.line.is_empty() {
                self.line.reserve(LINE_BYTES_USUAL);
            }
            self.line.push(byte);
            return Seen::Nothing;
        }
        if self.line.pop() != Some(b'\r') {
            self.lose(RawReason::BareLf);
            return Seen::Nothing;
        }
        self.end_line()
    }

    fn end_line(&mut self) -> Seen {
        match self.part {
            Part::Start if self.line.is_empty() => Seen::Nothing, // RFC 9112 2.2: ignore it
            Part::Start => {
                (self.length, self.is_chunked) = (None, false);
                self.part = Part::Header;
                Seen::Start
            }
            Part::Header if self.line.is_empty() => Seen::HeadersEnd,
            Part::Header => {
                self.header();
                self.line.clear();
                Seen::Nothing
            }
            Part::ChunkSize => {
                self.chunk_size();
                self.line.clear();
                Seen::Nothing
            }
            Part::Trailer => {
                match self.line.is_empty() {
                    true => self.end_message(),
                    false => self.line.clear(),
                }
                Seen::Nothing
            }
            Part::Body(_) | Part::Chunk(_) | Part::UntilClose | Part::Lost => Seen::Nothing,
        }
    }

    /// The start line was read.
    pub fn clear_line(&mut self) {
        self.line.clear();
    }

    fn header(&mut self) {
        if matches!(self.line.first(), Some(b' ' | b'\t')) {
            return self.lose(RawReason::Folded);
        }
        let Some(colon) = self.line.iter().position(|&b| b == b':') else {
            return self.lose(RawReason::HeaderLine);
        };
        let (name, value) = self.line.split_at(colon);
        let value = value[1..].trim_ascii();
        if name.is_empty() || name.iter().any(|b| b.is_ascii_whitespace()) {
            return self.lose(RawReason::HeaderLine);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let n = std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok());
            match n.filter(|_| digits) {
                Some(_) if self.length.is_some() => self.lose(RawReason::TwoLengths),
                Some(n) => self.length = Some(n),
                None => self.lose(RawReason::Length),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return self.lose(RawReason::Coding);
            }
            self.is_chunked = true;
        }
    }

    fn chunk_size(&mut self) {
        let end = self.line.iter().position(|&b| b == b';').unwrap_or(self.line.len());
        let hex = self.line[..end].trim_ascii();
        let digits = !hex.is_empty() && hex.iter().all(u8::is_ascii_hexdigit);
        let n = std::str::from_utf8(hex).ok().and_then(|v| u64::from_str_radix(v, 16).ok());
        match n.filter(|&n| digits && n < 1 << 60) {
            Some(0) => self.part = Part::Trailer,
            Some(n) => (self.part, self.head_len) = (Part::Chunk(n + 2), 0),
            None => self.lose(RawReason::ChunkSize),
        }
    }

    /// The header section ended: what follows by the message's own headers. `can_have_body` is
    /// false for an answer to HEAD, for 1xx, 204 and 304; `until_close` says what a message
    /// without a length means (a response ends with the connection, a request has no body).
    pub fn end_headers(&mut self, can_have_body: bool, until_close: bool) {
        self.line.clear();
        self.head_len = 0;
        if self.is_chunked && self.length.is_some() {
            return self.lose(RawReason::LengthAndCoding);
        }
        self.part = match (can_have_body, self.is_chunked, self.length) {
            (false, ..) | (true, false, Some(0)) => Part::Start,
            (true, true, _) => Part::ChunkSize,
            (true, false, Some(n)) => Part::Body(n),
            (true, false, None) if until_close => Part::UntilClose,
            (true, false, None) => Part::Start,
        };
        if self.part == Part::Start {
            self.end_message();
        }
    }

    /// A message is complete. Between messages nothing is kept.
    fn end_message(&mut self) {
        *self = Self::default();
    }
}
