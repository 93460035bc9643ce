//! Where HTTP/1.x messages begin and end (RFC 9112 6), byte by byte, in bounded memory.
//!
//! Anything that two parsers might read differently ends the parsing for good ([`Part::Lost`]),
//! with a [`RawReason`]: two lengths, a length beside a transfer coding, a bare LF, a folded line,
//! a line over the limit. RFC 9112 11.2 tells what comes of guessing.

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
    /// In a chunk's data, with that many bytes to go.
    Chunk(u64),
    /// In the CR LF behind a chunk's data.
    ChunkEnd,
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

/// What may follow a header section, whatever it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Content, if there is a length (a request).
    Content,
    /// Content, until the end of the connection if there is no length (an answer).
    UntilClose,
    /// Nothing, though a length may tell what there could be (an answer to HEAD, 304).
    Nothing,
    /// Nothing, and a length would be wrong (1xx, 204).
    Never,
}

/// The parser of one direction.
#[derive(Clone, Debug)]
pub struct Framing {
    pub(crate) is_answers: bool,
    pub(crate) part: Part,
    pub(crate) line: Vec<u8>,
    /// Bytes of this message's lines so far.
    pub(crate) head_len: usize,
    /// HTTP/1.0, which knows no transfer codings.
    pub(crate) is_old: bool,
    pub(crate) length: Option<u64>,
    pub(crate) is_chunked: bool,
    pub(crate) raw: Option<RawReason>,
}

impl Framing {
    /// Reads what a client says.
    pub const fn requests() -> Self {
        Self::new(false)
    }

    /// Reads what a server says.
    pub const fn answers() -> Self {
        Self::new(true)
    }

    const fn new(is_answers: bool) -> Self {
        Self {
            is_answers,
            part: Part::Start,
            line: Vec::new(),
            head_len: 0,
            is_old: false,
            length: None,
            is_chunked: false,
            raw: None,
        }
    }

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
        *self = Self { part: Part::Lost, raw, ..Self::new(self.is_answers) };
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
                self.part = if left == n { Part::ChunkEnd } else { Part::Chunk(left - n) };
                n as usize
            }
            Part::Start | Part::Header | Part::ChunkSize | Part::ChunkEnd | Part::Trailer => 0,
        }
    }

    /// Takes one byte of a line. Only in the parts that consist of lines.
    pub fn push(&mut self, byte: u8) -> Seen {
        self.head_len += 1;
        if byte != b'\n' {
            let why = match (self.line.last(), self.line.len()) {
                (Some(b'\r'), _) => Some(RawReason::BareCr),
                (_, LINE_BYTES_MAX) => Some(RawReason::LongLine),
                _ if self.part == Part::ChunkEnd && byte != b'\r' => Some(RawReason::ChunkEnd),
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
            Part::Start if self.line.is_empty() => {
                if self.is_answers {
                    self.lose(RawReason::StatusLine);
                }
                Seen::Nothing // RFC 9112 2.2: a server ignores it
            }
            Part::Start => {
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
            Part::ChunkEnd => {
                self.part = Part::ChunkSize;
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

    /// The start line was read; `is_old` if it says HTTP/1.0.
    pub fn begin(&mut self, is_old: bool) {
        self.line.clear();
        self.is_old = is_old;
    }

    fn header(&mut self) {
        if matches!(self.line.first(), Some(b' ' | b'\t')) {
            return self.lose(RawReason::Folded);
        }
        let Some(colon) = self.line.iter().position(|&b| b == b':') else {
            return self.lose(RawReason::HeaderLine);
        };
        let (name, value) = self.line.split_at(colon);
        let value = trim_blanks(&value[1..]);
        if !is_token(name) || value.contains(&0) {
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
        let hex = trim_blanks(&self.line[..end]);
        let digits = !hex.is_empty() && hex.iter().all(u8::is_ascii_hexdigit);
        let n = std::str::from_utf8(hex).ok().and_then(|v| u64::from_str_radix(v, 16).ok());
        match n.filter(|&n| digits && n < 1 << 60) {
            Some(0) => self.part = Part::Trailer,
            Some(n) => (self.part, self.head_len) = (Part::Chunk(n), 0),
            None => self.lose(RawReason::ChunkSize),
        }
    }

    /// The header section ended. `follows` is what may follow it, as the start lines have it; what
    /// does, the headers say (RFC 9112 6.3).
    pub fn end_headers(&mut self, follows: Follows) {
        self.line.clear();
        self.head_len = 0;
        let has_length = self.length.is_some_and(|n| n > 0);
        let why = match follows {
            _ if self.is_chunked && self.length.is_some() => Some(RawReason::LengthAndCoding),
            _ if self.is_chunked && self.is_old => Some(RawReason::Coding),
            Follows::Never if self.is_chunked || has_length => Some(RawReason::NoContent),
            _ => None,
        };
        if let Some(why) = why {
            return self.lose(why);
        }
        let has_content = matches!(follows, Follows::Content | Follows::UntilClose);
        match (has_content, self.is_chunked, self.length) {
            (true, true, _) => self.part = Part::ChunkSize,
            (true, false, Some(n)) if n > 0 => self.part = Part::Body(n),
            (true, false, None) if follows == Follows::UntilClose => self.part = Part::UntilClose,
            _ => self.end_message(),
        }
    }

    /// A message is complete. Between messages nothing is kept.
    fn end_message(&mut self) {
        *self = Self::new(self.is_answers);
    }
}

/// Without blanks around it: no other space is one (RFC 9110 5.6.3).
pub fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9110 5.6.2.
pub fn is_token(name: &[u8]) -> bool {
    let is_mark = |b: &u8| b"!#$%&'*+-.^_`|~".contains(b);
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || is_mark(b))
}
