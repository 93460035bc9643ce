//! Knowledge above TCP, pure: what two equal servers may say differently.
//!
//! A [`Normalizer`] reads bytes that are already committed (both servers said them, or the client
//! sent them to both) and names the spans whose content may differ. It never changes a byte and it
//! decides nothing: comparison and release belong to the engine.

pub mod framing;
pub mod http;
pub mod opaque;
pub mod returned;
pub mod rules;
pub mod start;
#[cfg(test)]
mod tests;

use std::fmt;

use rules::Rule;

/// What a normalizer made of response bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All bytes are to be compared as they are.
    Plain,
    /// The first `after` bytes are plain; there a span begins that ends where its rule says, in its
    /// line. Its content and its length may differ between the servers, but neither may be empty.
    Span {
        /// Plain bytes before the span.
        after: usize,
        /// Index of the rule that allows it.
        rule: u16,
    },
}

/// Why the bytes of a flow are compared as they are from some place on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RawReason {
    /// What the client says first is no request of HTTP/1.x.
    NotHttp,
    /// A later request does not begin like one.
    RequestLine,
    /// An answer does not begin like one.
    StatusLine,
    /// A LF without CR.
    BareLf,
    /// A CR without LF.
    BareCr,
    /// A folded header field.
    Folded,
    /// A header field whose name is no token, blanks around it included, or with a zero byte.
    HeaderLine,
    /// A line beyond the limit.
    LongLine,
    /// A header section beyond the limit.
    LongHead,
    /// A length that is no number.
    Length,
    /// Two lengths.
    TwoLengths,
    /// A length and a transfer coding.
    LengthAndCoding,
    /// A transfer coding other than chunked, or twice, or in HTTP/1.0.
    Coding,
    /// Content announced where there can be none.
    NoContent,
    /// A chunk whose size is no number.
    ChunkSize,
    /// A chunk that does not end where its size says.
    ChunkEnd,
    /// Another protocol was agreed to.
    Switched,
    /// More requests are outstanding than can be kept.
    Outstanding,
    /// An answer to no request that was seen.
    Unasked,
    /// Bytes of the client that could not be kept until they were read.
    Missed,
    /// A value that may differ is beyond the limit, or missing on one side.
    Value,
}

/// What a byte of a message belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The first line of an answer.
    StatusLine,
    /// A header field, by its name in lower case; empty for the end of the header section.
    Header(Box<str>),
    /// The value of a cookie that is set, by its name.
    Cookie(Box<str>),
    /// The size of a chunk, which is no content.
    ChunkSize,
    /// The content.
    Body,
    /// A trailer field.
    Trailer,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StatusLine => f.write_str("status line"),
            Self::Header(name) if name.is_empty() => f.write_str("end of the header section"),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::ChunkSize => f.write_str("chunk size"),
            Self::Body => f.write_str("body"),
            Self::Trailer => f.write_str("trailer"),
        }
    }
}

/// All that a normalizer remembers between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// The protocol was seen.
    pub is_recognized: bool,
    /// The latest status.
    pub status: u16,
}

/// Reads one flow's committed bytes.
pub trait Normalizer: fmt::Debug + Send {
    /// The client's bytes, in order.
    fn on_request(&mut self, bytes: &[u8]);

    /// So many of the client's bytes are not to be had. In a body that says nothing.
    fn on_request_hole(&mut self, len: u64);

    /// Agreed response bytes, in order. On [`Step::Span`] only the bytes before the span were
    /// taken; the next call continues behind it, after [`Normalizer::on_span`].
    fn on_response(&mut self, bytes: &[u8]) -> Step;

    /// The span found last was `len` bytes long.
    fn on_span(&mut self, len: usize);

    /// The rule with this number.
    fn rule(&self, rule: u16) -> Option<&Rule>;

    /// Whether every request has its whole answer; `None` where the protocol does not tell.
    fn is_complete(&self) -> Option<bool>;

    /// A copy that can read on by itself.
    fn boxed_clone(&self) -> Box<dyn Normalizer>;

    /// What it is between two messages; `None` inside of one.
    fn quiet(&self) -> Option<Quiet>;

    /// How many bytes from here on are certainly plain (a body of known length).
    fn plain_ahead(&self) -> u64;

    /// Why nothing is told apart any more.
    fn raw(&self) -> Option<RawReason>;

    /// What the next response byte belongs to; `ahead` are the bytes from there on, as far as they
    /// are known.
    fn field(&self, ahead: &[u8]) -> Option<Field>;
}

/// Longest span that is looked for; a longer one is compared as it is.
pub const SPAN_BYTES_MAX: usize = 256;
