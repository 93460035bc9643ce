//! Knowledge above TCP, pure: what two equal servers may say differently.
//!
//! A [`Normalizer`] reads bytes that are already committed (both servers said them, or the client
//! sent them to both) and names the spans whose content may differ. It never changes a byte and it
//! decides nothing: comparison and release belong to the engine.

pub mod framing;
pub mod http;
#[cfg(test)]
mod tests;

use std::fmt;

/// What a normalizer made of response bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All bytes are to be compared as they are.
    Plain,
    /// The first `after` bytes are plain; there a span begins that ends before the next CR or LF.
    /// Its content may differ between the servers, its length may not.
    Span {
        /// Plain bytes before the span.
        after: usize,
        /// Index of the rule that allows it.
        rule: u16,
    },
}

/// All that a normalizer remembers between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// The protocol was seen.
    pub is_recognized: bool,
    /// It is not followed any more.
    pub is_lost: bool,
    /// The latest status.
    pub status: u16,
}

/// Reads one flow's committed bytes.
pub trait Normalizer: fmt::Debug + Send {
    /// The client's bytes, in order.
    fn on_request(&mut self, bytes: &[u8]);

    /// Agreed response bytes, in order. On [`Step::Span`] only the bytes before the span were
    /// taken; the next call continues behind it, after [`Normalizer::on_span`].
    fn on_response(&mut self, bytes: &[u8]) -> Step;

    /// The span found last was `len` bytes long.
    fn on_span(&mut self, len: usize);

    /// Whether every request has its whole answer; `None` where the protocol does not tell.
    fn is_complete(&self) -> Option<bool>;

    /// A copy that can read on by itself.
    fn boxed_clone(&self) -> Box<dyn Normalizer>;

    /// What it is between two messages; `None` inside of one.
    fn quiet(&self) -> Option<Quiet>;

    /// How many bytes from here on are certainly plain (a body of known length).
    fn plain_ahead(&self) -> u64;
}

/// Longest span that is looked for; a longer one is compared as it is.
pub const SPAN_BYTES_MAX: usize = 256;

/// Compares everything as it is (level 0).
#[derive(Debug, Default)]
pub struct Raw;

impl Normalizer for Raw {
    fn on_request(&mut self, _: &[u8]) {}
    fn on_response(&mut self, _: &[u8]) -> Step {
        Step::Plain
    }
    fn on_span(&mut self, _: usize) {}
    fn is_complete(&self) -> Option<bool> {
        None
    }
    fn boxed_clone(&self) -> Box<dyn Normalizer> {
        Box::new(Self)
    }
    fn quiet(&self) -> Option<Quiet> {
        None
    }
    fn plain_ahead(&self) -> u64 {
        u64::MAX
    }
}
