//! What two equal servers may say differently, as the gateway has it: the one place where the
//! comparison of captures meets the normalizers of [`protocol`].

use std::sync::Arc;

use super::cookies::{cookies, set_cookie};
use crate::protocol::framing::{Follows, Framing, Part, Seen};
use crate::protocol::rules::Rule;
use crate::protocol::start::RequestLine;
use crate::protocol::{self, Normalizer, Quiet, RawReason, SPAN_BYTES_MAX, Step};

/// Bytes of nothing, where a body has a hole.
const NOTHING: [u8; 4096] = [0; 4096];

/// The field in which servers set cookies.
const SET_COOKIE: &str = "set-cookie";
/// Longest value of it that is looked for: browsers keep cookies of 4096 bytes.
const SET_COOKIE_BYTES_MAX: usize = 8 << 10;

/// What may differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What the gateway lets differ as well.
    shared: protocol::Rules,
    /// Cookies whose value may differ where servers set them; `*` for all.
    cookies: Vec<Box<str>>,
}

impl From<protocol::Rules> for Rules {
    /// A cookie that the gateway maps may differ where it is set and where it is returned.
    fn from(shared: protocol::Rules) -> Self {
        let cookie =
            |rule: &Rule| rule.name().filter(|_| rule.header() == SET_COOKIE).map(Into::into);
        let maps = shared.http.iter().filter(|rule| rule.is_map());
        let cookies = maps.filter_map(cookie).collect();
        let http = shared.http.iter().filter(|rule| cookie(rule).is_none()).cloned().collect();
        Self { shared: protocol::Rules { http, ..shared }, cookies }
    }
}

impl Rules {
    /// The values of these header fields of HTTP may differ, and of FTP what is for people.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let none = protocol::Rules { http: Arc::default(), ..protocol::Rules::default() };
        names.into_iter().fold(Self::from(none), Self::and)
    }

    /// Nothing may differ, but where servers of FTP expect data connections.
    pub fn none() -> Self {
        Self::from(protocol::Rules { has_ftp_defaults: false, ..Self::new([]).shared })
    }

    /// Another header field beside these.
    pub fn and(mut self, name: &str) -> Self {
        self.shared = self.shared.and(Rule::mask(name.to_ascii_lowercase()));
        self
    }

    /// The value of this cookie may differ where servers set it; `*` for every one.
    pub fn and_cookie(mut self, name: &str) -> Self {
        self.cookies.push(name.into());
        self
    }

    /// Another port of control connections of FTP.
    pub fn and_ftp_port(mut self, port: u16) -> Self {
        self.shared.ftp_ports.push(port);
        self
    }

    /// Whether servers of control connections of FTP have this port.
    pub fn is_ftp(&self, port: u16) -> bool {
        self.shared.ftp_ports.contains(&port)
    }

    /// Reads what a server at this port says.
    pub(super) fn answers(&self, port: u16) -> SpanReader {
        let is_masked = self.shared.http.iter().any(|rule| rule.header() == SET_COOKIE);
        if self.cookies.is_empty() || is_masked || self.is_ftp(port) {
            return self.shared.reader(port).map_or(SpanReader::Plain, SpanReader::answers);
        }
        let normalizer = self.clone().and(SET_COOKIE).shared.reader(port);
        normalizer.map_or(SpanReader::Plain, |normalizer| SpanReader::Answers {
            normalizer,
            cookies: self.cookies.as_slice().into(),
        })
    }

    /// Reads what a client says; who asks another server may call it by another name.
    pub(super) fn requests(&self, is_another: bool) -> SpanReader {
        let names = [(is_another, HOST), (!self.cookies.is_empty(), COOKIE)];
        let names: Vec<_> = names.into_iter().filter_map(|(is_on, n)| is_on.then_some(n)).collect();
        match names.is_empty() {
            true => SpanReader::Plain,
            false => SpanReader::Requests {
                fields: FieldValue::of(names),
                cookies: self.cookies.as_slice().into(),
            },
        }
    }

    /// Reads what it says from the end of an answer on.
    pub(super) fn next_answers(&self, port: u16) -> SpanReader {
        match self.is_ftp(port) {
            true => SpanReader::answers(self.shared.resumed(Quiet::Ftp)),
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
    Answers {
        /// Finds the values.
        normalizer: Box<dyn Normalizer>,
        /// If there are any, cookies whose value alone may differ.
        cookies: Arc<[Box<str>]>,
    },
    /// What a client says: the name of the host may differ, or cookies.
    Requests {
        /// Finds the values; the rule is the place of the field's name.
        fields: FieldValue,
        /// Cookies whose value may differ.
        cookies: Arc<[Box<str>]>,
    },
}

/// Fields of requests whose value may differ.
const HOST: &[u8] = b"host:";
const COOKIE: &[u8] = b"cookie:";

impl SpanReader {
    fn answers(normalizer: Box<dyn Normalizer>) -> Self {
        Self::Answers { normalizer, cookies: Arc::default() }
    }

    /// The client's bytes, before the answers to them.
    pub(super) fn on_request(&mut self, bytes: &[u8]) {
        if let Self::Answers { normalizer, .. } = self {
            normalizer.on_request(bytes);
        }
    }

    /// Bytes of the client are missing: in a body that says nothing, elsewhere it is no request
    /// that anybody could follow.
    pub(super) fn on_request_hole(&mut self, len: u64) {
        if let Self::Answers { normalizer, .. } = self {
            normalizer.on_request_hole(len);
        }
    }

    /// Bytes that are equal in both; see [`Normalizer::on_response`].
    pub(super) fn read(&mut self, bytes: &[u8]) -> Step {
        match self {
            Self::Plain => Step::Plain,
            Self::Answers { normalizer, .. } => normalizer.on_response(bytes),
            Self::Requests { fields, .. } => fields.read(bytes),
        }
    }

    /// If a span that may differ begins with `next`, a reader that stands at its beginning, and the
    /// rule.
    pub(super) fn begins_span(&self, next: u8) -> Option<(Self, u16)> {
        let mut copy = match self {
            Self::Plain => return None,
            Self::Answers { normalizer, cookies } => {
                let (normalizer, cookies) = (normalizer.boxed_clone(), Arc::clone(cookies));
                Self::Answers { normalizer, cookies }
            }
            Self::Requests { fields, cookies } => {
                let (fields, cookies) = (fields.clone(), Arc::clone(cookies));
                Self::Requests { fields, cookies }
            }
        };
        match copy.read(&[next]) {
            Step::Span { after: 0, rule } => Some((copy, rule)),
            _ => None,
        }
    }

    /// Whether byte number `at` of a span still belongs to it.
    pub(super) fn is_in_span(&self, rule: u16, at: usize, byte: u8) -> bool {
        match self {
            Self::Answers { normalizer, .. } => normalizer.is_in_span(rule, at, byte),
            Self::Plain | Self::Requests { .. } => !matches!(byte, b'\r' | b'\n'),
        }
    }

    /// Whether one of two values may stand for the other.
    pub(super) fn may_differ(&self, rule: u16, ours: &[u8], theirs: &[u8]) -> bool {
        match self {
            Self::Answers { cookies, .. } if self.is_of_cookies(rule) => {
                may_set_differ(cookies, ours, theirs)
            }
            Self::Answers { normalizer, .. } => normalizer.may_differ(rule, ours, theirs),
            Self::Requests { fields, cookies } if fields.names[usize::from(rule)] == COOKIE => {
                may_returned_differ(cookies, ours, theirs)
            }
            Self::Plain | Self::Requests { .. } => true,
        }
    }

    /// Longest value that is looked for.
    pub(super) fn value_bytes_max(&self, rule: u16) -> usize {
        if self.is_of_cookies(rule) { SET_COOKIE_BYTES_MAX } else { SPAN_BYTES_MAX }
    }

    fn is_of_cookies(&self, rule: u16) -> bool {
        match self {
            Self::Plain => false,
            Self::Answers { normalizer, cookies } => {
                !cookies.is_empty() && *normalizer.rule_name(rule).field == *SET_COOKIE
            }
            Self::Requests { fields, .. } => fields.names[usize::from(rule)] == COOKIE,
        }
    }

    /// The span found last was passed.
    pub(super) fn on_span(&mut self, len: usize) {
        match self {
            Self::Plain => {}
            Self::Answers { normalizer, .. } => normalizer.on_span(len),
            Self::Requests { fields, .. } => fields.on_span(),
        }
    }

    /// Bytes are missing. In a body of known length that says nothing; elsewhere the protocol
    /// cannot be followed any more.
    pub(super) fn on_hole(&mut self, mut len: u64) {
        let is_body = match self {
            Self::Plain => return,
            Self::Answers { normalizer, .. } => normalizer.plain_ahead() >= len,
            Self::Requests { fields, .. } => fields.plain_ahead() >= len,
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

/// Whether two values of `Set-Cookie` set the same cookie to what may differ, in the same way; it
/// may be over at another time.
fn may_set_differ(allowed: &[Box<str>], ours: &[u8], theirs: &[u8]) -> bool {
    fn attribute(field: &[u8]) -> &[u8] {
        let end = field.iter().position(|&byte| byte == b'=').unwrap_or(field.len());
        match field[..end].trim_ascii().eq_ignore_ascii_case(b"expires") {
            true => &field[..end],
            false => field,
        }
    }
    let attributes = |field| <[u8]>::split(field, |&byte| byte == b';').skip(1).map(attribute);
    let [name, other] = [ours, theirs].map(|field| set_cookie(field).map(|(name, _)| name));
    let is_one = name == other && attributes(ours).eq(attributes(theirs));
    is_one && name.is_some_and(|name| is_allowed(allowed, name))
}

/// Whether two values of `Cookie` return the same cookies, of which some may have other values.
fn may_returned_differ(allowed: &[Box<str>], ours: &[u8], theirs: &[u8]) -> bool {
    let alike = |field: &[u8]| -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let value = |(name, value): (&[u8], &[u8])| {
            (name.to_vec(), (!is_allowed(allowed, name)).then(|| value.to_vec()))
        };
        cookies(field).map(value).collect()
    };
    alike(ours) == alike(theirs)
}

fn is_allowed(allowed: &[Box<str>], name: &[u8]) -> bool {
    allowed.iter().any(|allowed| **allowed == *"*" || allowed.as_bytes() == name)
}

/// Finds the values of some fields in requests.
#[derive(Clone, Debug)]
pub(super) struct FieldValue {
    framing: Framing,
    /// Their names, lower case, each with a colon.
    names: Vec<&'static [u8]>,
    is_in_span: bool,
}

impl FieldValue {
    const fn of(names: Vec<&'static [u8]>) -> Self {
        Self { framing: Framing::requests(), names, is_in_span: false }
    }

    /// What a client returns.
    pub(super) fn cookie() -> Self {
        Self::of(vec![COOKIE])
    }

    /// Looks for none any more.
    pub(super) fn give_up(&mut self) {
        self.framing.lose(RawReason::LongLine);
    }

    /// See [`SpanReader::read`].
    pub(super) fn read(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while at < bytes.len() && self.framing.part() != Part::Lost {
            let body = self.framing.skip_body(bytes.len() - at);
            if body > 0 {
                at += body;
                continue;
            }
            let next = bytes[at];
            if !self.is_in_span
                && let Some(rule) = self.rule_at(next)
            {
                self.is_in_span = true;
                return Step::Span { after: at, rule };
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

    /// Which field's value begins with `next`.
    fn rule_at(&self, next: u8) -> Option<u16> {
        if self.framing.part() != Part::Header || matches!(next, b' ' | b'\t' | b'\r' | b'\n') {
            return None;
        }
        let line = self.framing.line().trim_ascii_end();
        let rule = self.names.iter().position(|name| line.eq_ignore_ascii_case(name))?;
        u16::try_from(rule).ok()
    }

    /// One byte of the value keeps the line a header.
    pub(super) fn on_span(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_may_be_over_at_another_time_and_nothing_else_of_it_may_differ() {
        let ours = b"sid=1; Path=/; expires=Sun, 22-Nov-2026 15:38:52 GMT; Max-Age=9".as_slice();
        for (theirs, may) in [
            ("sid=22; Path=/; expires=Sun, 22-Nov-2026 15:38:53 GMT; Max-Age=9", true),
            ("sid=22; Path=/; expires=Sun, 22-Nov-2026 15:38:52 GMT; Max-Age=8", false),
            ("sid=22; Path=/; Max-Age=9", false),
            ("sid=22; Path=/x; expires=Sun, 22-Nov-2026 15:38:52 GMT; Max-Age=9", false),
            ("other=1; Path=/; expires=Sun, 22-Nov-2026 15:38:52 GMT; Max-Age=9", false),
        ] {
            assert_eq!(may_set_differ(&["sid".into()], ours, theirs.as_bytes()), may, "{theirs}");
        }
    }

    #[test]
    fn a_cookie_that_the_gateway_maps_is_one_that_may_differ() {
        let (cookie, token) = (Rule::map("set-cookie", Some("sid")), Rule::map("x-csrf", None));
        let masks = protocol::Rules::headers(["date"]).and(token);
        let rules = Rules::from(masks.clone().and(cookie));
        assert_eq!(rules, Rules::from(masks).and_cookie("sid"));
    }
}
