//! What two equal servers may say differently, as the gateway has it: the one place where the
//! comparison of captures meets the normalizers of [`protocol`](crate::protocol).

use std::sync::Arc;

use crate::protocol::framing::{Follows, Framing, Part, Seen};
use crate::protocol::start::RequestLine;
use crate::protocol::{self, Normalizer, Quiet, RawReason, Step};

/// Bytes of nothing, where a body has a hole.
const NOTHING: [u8; 4096] = [0; 4096];

/// What may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(protocol::Rules);

impl Default for Rules {
    /// The gateway's own.
    fn default() -> Self {
        Self(protocol::Rules::default())
    }
}

impl From<protocol::Rules> for Rules {
    fn from(rules: protocol::Rules) -> Self {
        Self(rules)
    }
}

impl Rules {
    /// The values of these header fields of HTTP may differ, and of FTP what is for people.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let none = protocol::Rules { http: Vec::new(), ..protocol::Rules::default() };
        names.into_iter().fold(Self(none), Self::and)
    }

    /// Nothing may differ, but where servers of FTP expect data connections.
    pub fn none() -> Self {
        Self(protocol::Rules { has_ftp_defaults: false, ..Self::new([]).0 })
    }

    /// Another header field beside these.
    pub fn and(mut self, name: &str) -> Self {
        let name: Arc<str> = name.to_ascii_lowercase().into();
        if !self.0.http.contains(&name) {
            self.0.http.push(name);
        }
        self
    }

    /// Another port of control connections of FTP.
    pub fn and_ftp_port(mut self, port: u16) -> Self {
        self.0.ftp_ports.push(port);
        self
    }

    /// Whether servers of control connections of FTP have this port.
    pub fn is_ftp(&self, port: u16) -> bool {
        self.0.ftp_ports.contains(&port)
    }

    /// Reads what a server at this port says.
    pub(super) fn answers(&self, port: u16) -> SpanReader {
        self.0.reader(port).map_or(SpanReader::Plain, SpanReader::Answers)
    }

    /// The same from the end of an answer on.
    pub(super) fn next_answers(&self, port: u16) -> SpanReader {
        match self.is_ftp(port) {
            true => SpanReader::Answers(self.0.resumed(Quiet::Ftp)),
            false => self.answers(port),
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

    /// If a span that may differ begins with `next`, a reader that stands at its beginning, and the
    /// rule.
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

    /// Whether byte number `at` of a span still belongs to it.
    pub(super) fn is_in_span(&self, rule: u16, at: usize, byte: u8) -> bool {
        match self {
            Self::Answers(normalizer) => normalizer.is_in_span(rule, at, byte),
            Self::Plain | Self::Requests(_) => !matches!(byte, b'\r' | b'\n'),
        }
    }

    /// Whether one of two values may stand for the other.
    pub(super) fn may_differ(&self, rule: u16, ours: &[u8], theirs: &[u8]) -> bool {
        match self {
            Self::Answers(normalizer) => normalizer.may_differ(rule, ours, theirs),
            Self::Plain | Self::Requests(_) => true,
        }
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
