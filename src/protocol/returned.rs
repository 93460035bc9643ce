//! The values that clients return, found in what they say, and nothing else of it.
//!
//! Requests only are read, by themselves: what a client says is replaced before a server hears it,
//! so nothing of the answer is known yet. RFC 9112, RFC 6265 4.2.

use std::sync::Arc;

use super::framing::{Follows, Framing, Part, Seen};
use super::rules::{Rule, Stands};
use super::start::{Method, RequestLine};
use super::{RawReason, Step};

/// Reads one client's requests.
#[derive(Clone, Debug)]
pub struct Returned {
    pub(crate) rules: Arc<[Rule]>,
    /// Nothing once they are no requests that everybody reads alike.
    pub(crate) framing: Option<Framing>,
    /// What follows the request under way, if it succeeds, is somebody else's.
    pub(crate) is_connect: bool,
    /// Why they are none.
    pub(crate) raw: Option<RawReason>,
    /// Places of which nobody can say whether a value stands there.
    pub(crate) doubts: u32,
    /// A value has been announced: the next bytes stand in it, or behind it.
    pub(crate) is_in_value: bool,
}

impl Returned {
    /// Looks for what `rules` map.
    pub const fn new(rules: Arc<[Rule]>) -> Self {
        let framing = Some(Framing::requests());
        Self { rules, framing, is_connect: false, raw: None, doubts: 0, is_in_value: false }
    }

    /// The client's bytes, in order. On [`Step::Span`] only the bytes before the value were taken;
    /// the next call continues behind it, after [`Self::on_value`].
    pub fn read(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while let Some(framing) = self.framing.as_mut().filter(|_| at < bytes.len()) {
            let body = framing.skip_body(bytes.len() - at);
            if body > 0 {
                at += body;
                continue;
            }
            let next = bytes[at];
            if !self.is_in_value
                && framing.part() == Part::Header
                && let line = framing.line()
                && let Some((rule, stands)) = standing(&self.rules, line, next)
            {
                if stands == Stands::Value {
                    self.is_in_value = true;
                    return Step::Span { after: at, rule };
                }
                self.doubts = self.doubts.saturating_add(1);
            }
            match framing.push(next) {
                Seen::Nothing => {}
                Seen::Start => match RequestLine::parse(framing.line()) {
                    Some(line) => {
                        self.is_connect = line.method == Method::Connect;
                        framing.begin(line.is_old);
                    }
                    None => framing.lose(RawReason::RequestLine),
                },
                Seen::HeadersEnd if self.is_connect => framing.lose(RawReason::Switched),
                Seen::HeadersEnd => framing.end_headers(Follows::Content),
            }
            self.is_in_value &= !matches!(next, b';' | b'\n');
            at += 1;
            if framing.part() == Part::Lost {
                self.raw = framing.raw();
                self.lose();
            }
        }
        Step::Plain
    }

    /// The value found last was `len` bytes long.
    pub fn on_value(&mut self, len: usize) {
        if let Some(framing) = self.framing.as_mut().filter(|_| len > 0) {
            framing.push(b'-'); // its line goes on
        }
    }

    /// The rule with this number.
    pub fn rule(&self, rule: u16) -> Option<&Rule> {
        self.rules.get(usize::from(rule))
    }

    /// So many bytes are not to be had. In a body that says nothing.
    pub fn on_hole(&mut self, len: u64) {
        let is_body = self.plain_ahead() >= len;
        match self.framing.as_mut().filter(|_| is_body) {
            Some(framing) => _ = framing.skip_body(len as usize),
            None => {
                self.raw = self.raw.or((!self.is_lost()).then_some(RawReason::Missed));
                self.lose();
            }
        }
    }

    /// Why it finds nothing any more; told once.
    pub fn take_raw(&mut self) -> Option<RawReason> {
        self.raw.take()
    }

    /// Of how many places nobody could say whether a value stands there, since this was asked last.
    pub fn take_doubts(&mut self) -> u32 {
        std::mem::take(&mut self.doubts)
    }

    /// From here on it finds nothing.
    pub fn lose(&mut self) {
        (self.framing, self.is_connect, self.is_in_value) = (None, false, false);
    }

    /// Whether it finds nothing any more.
    pub const fn is_lost(&self) -> bool {
        self.framing.is_none()
    }

    /// Before the first byte of a request, or lost.
    pub fn is_quiet(&self) -> bool {
        self.framing.as_ref().is_none_or(Framing::is_between_messages)
    }

    /// How many bytes from here on are certainly no value.
    pub fn plain_ahead(&self) -> u64 {
        match self.framing.as_ref().map(Framing::part) {
            None | Some(Part::UntilClose | Part::Lost) => u64::MAX,
            Some(Part::Body(n) | Part::Chunk(n)) => n,
            Some(Part::Start | Part::Header | Part::ChunkSize | Part::ChunkEnd | Part::Trailer) => {
                0
            }
        }
    }
}

/// The first rule of which something stands behind `line`, before `next`.
fn standing(rules: &[Rule], line: &[u8], next: u8) -> Option<(u16, Stands)> {
    let stands = rules.iter().map(|rule| rule.begins_returned(line, next));
    let found = stands.zip(0..).find(|(stands, _)| *stands != Stands::Nothing);
    found.map(|(stands, rule)| (rule, stands))
}
