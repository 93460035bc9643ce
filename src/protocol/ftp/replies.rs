//! Replies of FTP, line by line (RFC 959 4.2): three digits, then a blank, or a hyphen and more
//! lines until one begins with the same digits and a blank.

use crate::protocol::RawReason;

/// Longest line of a reply.
pub const LINE_BYTES_MAX: usize = 4096;
/// How much of a line is looked at.
const KEPT_BYTES: usize = 160;
/// What stands in a line for a value that may differ: no digit, no blank.
const STAND_IN: u8 = b'-';

/// What a byte has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Nothing,
    /// A line, but not the reply.
    Line,
    /// A reply after which another one follows to the same command (1xx).
    Preliminary(u16),
    /// The reply to a command.
    Reply(u16),
}

/// Reads the server's side.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    /// The beginning of the line, without its CR LF.
    pub(crate) line: Vec<u8>,
    pub(crate) len: usize,
    pub(crate) has_cr: bool,
    /// The digits of the reply of several lines that is under way.
    pub(crate) open: Option<[u8; 3]>,
}

impl Replies {
    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Result<Seen, RawReason> {
        match byte {
            b'\n' if self.has_cr => return self.end_line(),
            b'\n' => return Err(RawReason::BareLf),
            _ if self.has_cr => return Err(RawReason::BareCr),
            b'\r' => self.has_cr = true,
            _ if self.line.len() < KEPT_BYTES => self.line.push(byte),
            _ => {}
        }
        self.grow(1)?;
        let is_good = self.open.is_some() || self.is_good();
        if is_good { Ok(Seen::Nothing) } else { Err(RawReason::StatusLine) }
    }

    /// A value of `len` bytes stands here, that may differ.
    pub fn pass(&mut self, len: usize) -> Result<(), RawReason> {
        if self.line.len() < KEPT_BYTES {
            self.line.push(STAND_IN);
        }
        self.grow(len)
    }

    /// Bytes of the line so far.
    pub const fn line_len(&self) -> usize {
        self.len
    }

    /// The beginning of the line.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Whether the line is at its end.
    pub const fn has_cr(&self) -> bool {
        self.has_cr
    }

    /// The digits of the reply of several lines that is under way.
    pub const fn open(&self) -> Option<[u8; 3]> {
        self.open
    }

    /// The digits of this reply, once they are known.
    pub fn code(&self) -> Option<[u8; 3]> {
        self.open.or_else(|| self.line.first_chunk().copied())
    }

    /// Between two replies.
    pub const fn is_quiet(&self) -> bool {
        self.len == 0 && self.open.is_none()
    }

    /// Whether the text of a line of several begins with `next`: in the first such line behind the
    /// digits, in the others there or, if they do not begin with the digits, where that shows.
    pub fn begins_text(&self, next: u8) -> bool {
        let (Some(code), at) = (self.code(), self.len) else { return false };
        let same = at.min(3);
        if self.line.get(..same) != Some(&code[..same]) {
            return false;
        }
        match at {
            0..3 => self.open.is_some() && next != code[at],
            3 => self.open.is_some() && !matches!(next, b' ' | b'-'),
            4 => matches!(self.line[3], b' ' | b'-'),
            _ => false,
        }
    }

    /// What the digits lack here, if a line that goes on with it would be another one.
    pub fn rest_of_code(&self) -> Option<&[u8]> {
        self.open.as_ref()?.get(self.len..).filter(|rest| !rest.is_empty() || self.len == 3)
    }

    fn grow(&mut self, by: usize) -> Result<(), RawReason> {
        self.len += by;
        if self.len > LINE_BYTES_MAX { Err(RawReason::LongLine) } else { Ok(()) }
    }

    /// Whether the line may be a reply's first so far.
    fn is_good(&self) -> bool {
        let is_digit = |(at, &byte): (usize, &u8)| match at {
            0 => matches!(byte, b'1'..=b'5'),
            1 | 2 => byte.is_ascii_digit(),
            _ => matches!(byte, b' ' | b'-'),
        };
        self.line.iter().take(4).enumerate().all(is_digit) && !(self.has_cr && self.len < 4)
    }

    fn end_line(&mut self) -> Result<Seen, RawReason> {
        let line = std::mem::take(&mut self.line);
        (self.len, self.has_cr) = (0, false);
        let first: Option<[u8; 3]> = line.first_chunk().copied();
        let ends = match self.open {
            None => line.get(3) != Some(&b'-'),
            Some(open) if first == Some(open) && line.len() == 3 => {
                return Err(RawReason::StatusLine); // its end, or a line like any other?
            }
            Some(open) => first == Some(open) && line[3] == b' ',
        };
        let Some(code) = self.open.or(first) else { return Err(RawReason::StatusLine) };
        if !ends {
            self.open = Some(code);
            return Ok(Seen::Line);
        }
        self.open = None;
        let number = code.iter().fold(0, |n, &digit| n * 10 + u16::from(digit - b'0'));
        Ok(if code[0] == b'1' { Seen::Preliminary(number) } else { Seen::Reply(number) })
    }
}
