//! What two equal servers may say differently, as the gateway has it: the one place where the
//! comparison of captures meets the normalizers of [`protocol`](crate::protocol).

use crate::protocol::framing::{Follows, Framing, Part, Seen};
use crate::protocol::http::Http;
use crate::protocol::rules::Rule;
use crate::protocol::start::RequestLine;
use crate::protocol::{Normalizer, RawReason, Step};

/// Bytes of nothing, where a body has a hole.
const NOTHING: [u8; 4096] = [0; 4096];

/// What may differ: values of header fields of HTTP/1.x.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    /// The gateway's own: `Date` may differ.
    fn default() -> Self {
        Self(vec![Rule::mask("date")])
    }
}

impl Rules {
    /// Those of a gateway.
    pub fn new(rules: &[Rule]) -> Self {
        Self(rules.to_vec())
    }

    /// Nothing may differ.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// The value of this header field, too.
    pub fn and(mut self, name: &str) -> Self {
        let rule = Rule::mask(name.to_ascii_lowercase());
        if !self.0.contains(&rule) {
            self.0.push(rule);
        }
        self
    }

    /// Reads what a server says.
    pub(super) fn answers(&self) -> SpanReader {
        match self.0.is_empty() {
            true => SpanReader::Plain,
            false => SpanReader::Answers(Box::new(Http::new(self.0.iter().cloned().collect()))),
        }
    }
}

/// Finds the spans that may differ in one side's stream.
#[derive(Debug)]
pub(super) enum SpanReader {
    /// Everything is compared as it is.
    Plain,
    /// What a server says.
    Answers(Box<dyn Normalizer>),
    /// What a client says to servers of different addresses: the name of the host may differ.
    Requests(Hosts),
}

impl SpanReader {
    /// Reads what a client says to servers of different addresses.
    pub(super) fn requests() -> Self {
        Self::Requests(Hosts { framing: Framing::requests(), is_in_span: false })
    }

    /// The client's bytes, before the answers to them.
    pub(super) fn on_request(&mut self, bytes: &[u8]) {
        if let Self::Answers(normalizer) = self {
            normalizer.on_request(bytes);
        }
    }

    /// Bytes of the client are missing: in a body that says nothing, elsewhere it is no request
    /// that anybody could follow.
    pub(super) fn on_request_hole(&mut self, len: u64) {
        if let Self::Answers(normalizer) = self {
            normalizer.on_request_hole(len);
        }
    }

    /// Bytes that are equal in both; see [`Normalizer::on_response`].
    pub(super) fn read(&mut self, bytes: &[u8]) -> Step {
        match self {
            Self::Plain => Step::Plain,
            Self::Answers(normalizer) => normalizer.on_response(bytes),
            Self::Requests(hosts) => hosts.read(bytes),
        }
    }

    /// If a span that may differ begins with `next`, its rule and a reader that stands there.
    pub(super) fn begins_span(&self, next: u8) -> Option<(Self, u16)> {
        let mut copy = match self {
            Self::Plain => return None,
            Self::Answers(normalizer) => Self::Answers(normalizer.boxed_clone()),
            Self::Requests(hosts) => Self::Requests(hosts.clone()),
        };
        match copy.read(&[next]) {
            Step::Span { after: 0, rule } => Some((copy, rule)),
            _ => None,
        }
    }

    /// Whether a span of this rule ends before `byte`.
    pub(super) fn ends(&self, rule: u16, byte: u8) -> bool {
        let rule = match self {
            Self::Answers(normalizer) => normalizer.rule(rule),
            Self::Plain | Self::Requests(_) => None,
        };
        rule.map_or(matches!(byte, b'\r' | b'\n'), |rule| rule.ends(byte))
    }

    /// The span found last was passed.
    pub(super) fn on_span(&mut self, len: usize) {
        match self {
            Self::Plain => {}
            Self::Answers(normalizer) => normalizer.on_span(len),
            Self::Requests(hosts) => hosts.on_span(),
        }
    }

    /// Bytes are missing. In a body of known length that says nothing; elsewhere the protocol
    /// cannot be followed any more.
    pub(super) fn on_hole(&mut self, mut len: u64) {
        let is_body = match self {
            Self::Plain => return,
            Self::Answers(normalizer) => normalizer.plain_ahead() >= len,
            Self::Requests(hosts) => hosts.plain_ahead() >= len,
        };
        if !is_body {
            *self = Self::Plain;
            return;
        }
        while len > 0 {
            let step = len.min(NOTHING.len() as u64);
            self.read(&NOTHING[..step as usize]);
            len -= step;
        }
    }
}

/// Finds the value of `Host` in requests.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    framing: Framing,
    is_in_span: bool,
}

impl Hosts {
    fn read(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while at < bytes.len() && self.framing.part() != Part::Lost {
            let body = self.framing.skip_body(bytes.len() - at);
            if body > 0 {
                at += body;
                continue;
            }
            let next = bytes[at];
            if !self.is_in_span && self.is_at_value(next) {
                self.is_in_span = true;
                return Step::Span { after: at, rule: 0 };
            }
            match self.framing.push(next) {
                Seen::Nothing => {}
                Seen::Start => match RequestLine::parse(self.framing.line()) {
                    Some(line) => self.framing.begin(line.is_old),
                    None => self.framing.lose(RawReason::RequestLine),
                },
                Seen::HeadersEnd => self.framing.end_headers(Follows::Content),
            }
            self.is_in_span &= next != b'\n';
            at += 1;
        }
        Step::Plain
    }

    fn is_at_value(&self, next: u8) -> bool {
        self.framing.part() == Part::Header
            && !matches!(next, b' ' | b'\t' | b'\r' | b'\n')
            && self.framing.line().trim_ascii_end().eq_ignore_ascii_case(b"host:")
    }

    /// One byte of the value keeps the line a header.
    fn on_span(&mut self) {
        self.framing.push(b'-');
    }

    const fn plain_ahead(&self) -> u64 {
        match self.framing.part() {
            Part::Body(n) | Part::Chunk(n) => n,
            Part::UntilClose | Part::Lost => u64::MAX,
            Part::Start | Part::Header | Part::ChunkSize | Part::ChunkEnd | Part::Trailer => 0,
        }
    }
}
