//! Where two servers cut one body into chunks differently: what of it is framing (RFC 9112 7.1).
//!
//! The data of a chunked body is the same however it is cut. Here is read what stands between the
//! data, and said what has to stand there where a framing that was begun by one server goes on with
//! the data of another. Nothing is compared here, and no data is looked at.

use std::sync::Arc;

use super::framing::{Framing, Part};
use super::{RuleName, SPAN_BYTES_MAX};

/// What a server says between the data of two chunks, or where one begins.
#[derive(Clone, Debug)]
pub enum Line {
    /// Its end has not been said.
    Open,
    /// All of it, and the framing behind it: in a chunk's data, or in the trailer section.
    Whole(Vec<u8>, Framing),
    /// No chunk line that everybody reads alike, or one beyond the limit.
    Bad,
}

/// Reads from where `framing` stands, in a chunk line or before it, up to the chunk's data.
pub fn line(mut framing: Framing, bytes: impl Iterator<Item = u8>) -> Line {
    let mut text = Vec::new();
    for byte in bytes {
        framing.push(byte);
        text.push(byte);
        match framing.part() {
            Part::Chunk(_) | Part::Trailer => return Line::Whole(text, framing),
            Part::ChunkSize | Part::ChunkEnd if text.len() < SPAN_BYTES_MAX => {}
            _ => return Line::Bad,
        }
    }
    Line::Open
}

/// The rest of the chunk line in which, or before which, `framing` stands, if `left` bytes of data
/// are at hand (none: the body ends), and the framing behind it. What was begun stays: such a chunk
/// may be longer than that, or shorter. `None` if no rest makes it right.
pub fn completed(framing: &Framing, left: u64) -> Option<(Vec<u8>, Framing)> {
    let line = framing.line();
    let is_in_quotes = line.iter().filter(|&&byte| byte == b'"').count() % 2 == 1;
    let rest = match (framing.part(), line) {
        _ if is_in_quotes => return None,
        (Part::ChunkEnd, []) => format!("\r\n{left:x}\r\n"),
        (Part::ChunkEnd, _) => format!("\n{left:x}\r\n"),
        (Part::ChunkSize, [.., b'\r']) => "\n".to_owned(),
        // Zeros may precede a number, and a number ends where it ends.
        (Part::ChunkSize, digits) if digits.iter().all(|&b| b == b'0') => format!("{left:x}\r\n"),
        (Part::ChunkSize, _) => "\r\n".to_owned(),
        _ => String::new(),
    };
    let mut framing = framing.clone();
    for byte in rest.bytes() {
        framing.push(byte);
    }
    match framing.part() {
        Part::Chunk(_) if left > 0 => Some((rest.into_bytes(), framing)),
        Part::Trailer if left == 0 => Some((rest.into_bytes(), framing)),
        _ => None,
    }
}

/// What chunk lines that differ are counted as.
pub fn rule_name() -> RuleName {
    RuleName { protocol: "http", field: Arc::from("chunk lines") }
}

impl Framing {
    /// Right behind the data of a chunk of an answer.
    pub fn behind_chunk() -> Self {
        Self { part: Part::ChunkEnd, is_chunked: true, ..Self::answers() }
    }

    /// In a chunk line.
    pub fn is_in_chunk_line(&self) -> bool {
        self.part == Part::ChunkSize
    }

    /// Bytes left of the chunk in whose data the next byte stands; 0 right behind it, and behind
    /// the last one.
    pub const fn chunk_left(&self) -> u64 {
        match self.part {
            Part::Chunk(left) => left,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: Line) -> Option<(String, u64)> {
        let Line::Whole(text, framing) = line else { return None };
        Some((String::from_utf8(text).expect("text"), framing.chunk_left()))
    }

    fn behind(said: &str) -> Framing {
        let mut framing = Framing::behind_chunk();
        said.bytes().for_each(|byte| _ = framing.push(byte));
        framing
    }

    #[test]
    fn a_chunk_line_ends_where_data_or_trailers_begin() {
        for (said, whole) in [
            ("\r\n1f\r\nX", Some(("\r\n1f\r\n", 31))),
            ("\r\n1F ;a=\"b\"\r\nX", Some(("\r\n1F ;a=\"b\"\r\n", 31))),
            ("\r\n000\r\n\r\n", Some(("\r\n000\r\n", 0))),
            ("\r\n1f\r", None),
            ("\r\n", None),
            ("", None),
        ] {
            let read = text(line(Framing::behind_chunk(), said.bytes()));
            let read = read.as_ref().map(|(text, left)| (text.as_str(), *left));
            assert_eq!(read, whole, "{said:?}");
        }
        let long = format!("\r\n1;{}\r\n", "x".repeat(SPAN_BYTES_MAX));
        for bad in ["\n", "x", "\r\n-1\r\n", "\r\n\r\n", "\r\n1\n", "\r\n1\rx", &long] {
            let read = line(Framing::behind_chunk(), bad.bytes());
            assert!(matches!(read, Line::Bad), "{bad:?}");
        }
    }

    #[test]
    fn a_line_that_was_begun_is_completed_so_that_what_is_at_hand_fits() {
        for (begun, left, rest) in [
            ("", 31, Some("\r\n1f\r\n")),
            ("\r", 31, Some("\n1f\r\n")),
            ("\r\n", 31, Some("1f\r\n")),
            ("\r\n0", 31, Some("1f\r\n")),
            ("\r\n3", 31, Some("\r\n")),
            ("\r\n3;a=\"b\"", 31, Some("\r\n")),
            ("\r\n3;a=\"b", 31, None),
            ("\r\n3\r", 31, Some("\n")),
            ("\r\n3\r\n", 31, Some("")),
            ("\r\n0\r", 31, None),
            ("\r\n0;a", 31, None),
            ("\r\n0\r\n", 31, None),
            ("", 0, Some("\r\n0\r\n")),
            ("\r\n00", 0, Some("0\r\n")),
            ("\r\n0\r\n", 0, Some("")),
            ("\r\n3", 0, None),
            ("\r\n3\r\n", 0, None),
        ] {
            let completed = completed(&behind(begun), left);
            let read = completed.map(|(rest, _)| String::from_utf8(rest).expect("text"));
            assert_eq!(read.as_deref(), rest, "{begun:?} {left}");
        }
    }
}
