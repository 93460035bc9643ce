//! The values that clients return, found in what they say, and nothing else of it.
//!
//! Requests only are read, by themselves: what a client says is replaced before a server hears it,
//! so nothing of the answer is known yet. RFC 9112, RFC 6265 4.2.

use std::sync::Arc;

use super::framing::{Follows, Framing, Part, Seen};
use super::rules::Rule;
use super::start::{Method, RequestLine};
use super::{RawReason, Step};

/// Reads one client's requests.
#[derive(Clone, Debug)]
pub struct Returned {
    rules: Arc<[Rule]>,
    framing: Framing,
    method: Method,
    /// A value has been announced: the next bytes stand in it, or behind it.
    is_in_value: bool,
}

impl Returned {
    /// Looks for what `rules` map.
    pub const fn new(rules: Arc<[Rule]>) -> Self {
        Self { rules, framing: Framing::requests(), method: Method::Other, is_in_value: false }
    }

    /// The client's bytes, in order. On [`Step::Span`] only the bytes before the value were taken;
    /// the next call continues behind it, after [`Self::on_value`].
    pub fn read(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while at < bytes.len() && !self.is_lost() {
            let body = self.framing.skip_body(bytes.len() - at);
            if body > 0 {
                at += body;
                continue;
            }
            let next = bytes[at];
            if let Some(rule) = self.begins(next) {
                self.is_in_value = true;
                return Step::Span { after: at, rule };
            }
            match self.framing.push(next) {
                Seen::Nothing => {}
                Seen::Start => match RequestLine::parse(self.framing.line()) {
                    Some(line) => {
                        self.method = line.method;
                        self.framing.begin(line.is_old);
                    }
                    None => self.framing.lose(RawReason::RequestLine),
                },
                // If it succeeds, what follows is somebody else's.
                Seen::HeadersEnd if self.method == Method::Connect => self.lose(),
                Seen::HeadersEnd => self.framing.end_headers(Follows::Content),
            }
            self.is_in_value &= !matches!(next, b';' | b'\n');
            at += 1;
        }
        Step::Plain
    }

    /// The value found last was `len` bytes long.
    pub fn on_value(&mut self, len: usize) {
        if len > 0 {
            self.framing.push(b'-'); // its line goes on
        }
    }

    fn begins(&self, next: u8) -> Option<u16> {
        if self.is_in_value || self.framing.part() != Part::Header {
            return None;
        }
        let line = self.framing.line();
        let rule = self.rules.iter().position(|rule| rule.begins_returned(line, next))?;
        u16::try_from(rule).ok()
    }

    /// The rule with this number.
    pub fn rule(&self, rule: u16) -> Option<&Rule> {
        self.rules.get(usize::from(rule))
    }

    /// Another protocol was agreed to.
    pub fn lose(&mut self) {
        self.framing.lose(RawReason::Switched);
    }

    /// So many bytes are not to be had. In a body that says nothing.
    pub fn on_hole(&mut self, len: u64) {
        match self.plain_ahead() >= len {
            true => _ = self.framing.skip_body(len as usize),
            false => self.framing.lose(RawReason::Missed),
        }
    }

    /// Whether it finds nothing any more.
    pub fn is_lost(&self) -> bool {
        self.framing.part() == Part::Lost
    }

    /// Before the first byte of a request.
    pub fn is_between_messages(&self) -> bool {
        self.framing.is_between_messages()
    }

    /// How many bytes from here on are certainly no value.
    pub const fn plain_ahead(&self) -> u64 {
        match self.framing.part() {
            Part::Body(n) | Part::Chunk(n) => n,
            Part::UntilClose | Part::Lost => u64::MAX,
            Part::Start | Part::Header | Part::ChunkSize | Part::ChunkEnd | Part::Trailer => 0,
        }
    }
}
