//! HTTP/1.x: values that may differ, `Date` above all.
//!
//! A flow is read as HTTP only once a request line was recognized; until then, and after anything
//! ambiguous, every byte is compared as it is. RFC 9112 for framing, RFC 9110 6.6.1 for `Date`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::framing::{Follows, Framing, Part, Seen};
use super::rules::Rule;
use super::start::{Method, RequestLine, StatusLine};
use super::{FIELD_BYTES_MAX, Field, Normalizer, Quiet, RawReason, RuleName, Step};

/// Requests whose answer is outstanding (in the slower server's stream); more end the parsing. A
/// lagging server is given up for the bytes that it is behind long before.
const OUTSTANDING_MAX: usize = 1 << 16;

/// Reads one flow.
#[derive(Clone, Debug)]
pub struct Http {
    /// By number.
    pub(crate) rules: Arc<[Rule]>,
    pub(crate) request: Framing,
    pub(crate) response: Framing,
    /// The method of each request whose answer is outstanding.
    pub(crate) outstanding: VecDeque<Method>,
    pub(crate) is_recognized: bool,
    pub(crate) status: u16,
    /// A span has been announced: the next bytes stand behind it.
    pub(crate) is_in_span: bool,
    /// The servers cut a body into chunks differently: until they are in step again nothing that
    /// the client says ends the reading of the answers.
    pub(crate) is_parted: bool,
}

impl Http {
    /// Finds what `rules` let differ.
    pub fn new(rules: Arc<[Rule]>) -> Self {
        Self {
            rules,
            request: Framing::requests(),
            response: Framing::answers(),
            outstanding: VecDeque::new(),
            is_recognized: false,
            status: 0,
            is_in_span: false,
            is_parted: false,
        }
    }

    /// One that goes on between two messages.
    pub fn resumed(rules: Arc<[Rule]>, is_recognized: bool, status: u16) -> Self {
        Self { is_recognized, status, ..Self::new(rules) }
    }

    fn give_up(&mut self, why: RawReason) {
        self.request.lose(why);
        self.outstanding = VecDeque::new();
        self.is_in_span = false;
        self.lose_answers(why);
    }

    fn lose_answers(&mut self, why: RawReason) {
        if !self.is_parted {
            self.response.lose(why);
        }
    }

    /// Where the next byte of the answers stands, as they are shown.
    pub const fn framing(&self) -> &Framing {
        &self.response
    }

    /// So many bytes of a chunk's data were said.
    pub fn take_data(&mut self, len: u64) {
        self.response.skip_body(len as usize);
    }

    /// What is shown stands at `framing` now; the other server's framing is another one.
    pub fn part(&mut self, framing: Framing) {
        (self.response, self.is_parted) = (framing, true);
    }

    /// From here on both framings are one.
    pub fn rejoin(&mut self) {
        self.is_parted = false;
        if self.request.part() == Part::Lost {
            self.response.lose(self.request.raw().unwrap_or(RawReason::NotHttp));
        }
    }

    fn on_request_line(&mut self) {
        let Some(line) = RequestLine::parse(self.request.line()) else {
            return self.give_up(match self.is_recognized {
                true => RawReason::RequestLine,
                false => RawReason::NotHttp,
            });
        };
        self.is_recognized = true;
        self.request.begin(line.is_old);
        if self.outstanding.len() == OUTSTANDING_MAX {
            return self.give_up(RawReason::Outstanding);
        }
        self.outstanding.push_back(line.method);
    }

    fn on_status_line(&mut self) {
        match StatusLine::parse(self.response.line()) {
            Some(line) => {
                self.status = line.status;
                self.response.begin(line.is_old);
            }
            None => self.give_up(RawReason::StatusLine),
        }
    }

    fn on_response_headers_end(&mut self) {
        let is_interim = self.status / 100 == 1;
        let method = match is_interim {
            true => self.outstanding.front().copied(),
            false => self.outstanding.pop_front(),
        };
        let Some(method) = method else {
            return self.give_up(RawReason::Unasked); // whether it has content, nobody can say
        };
        if self.outstanding.is_empty() {
            self.outstanding = VecDeque::new(); // between messages nothing is kept
        }
        match answer_follows(method, self.status) {
            Some(follows) => self.response.end_headers(follows),
            None => self.give_up(RawReason::Switched),
        }
    }

    /// The name of the cookie in whose value the next byte of a header section stands.
    fn cookie(&self) -> Option<Box<str>> {
        let line = self.response.line();
        let colon = line.iter().position(|&b| b == b':')?;
        let pair = line[colon + 1..].trim_ascii_start();
        let end = pair.iter().position(|&b| b == b'=')?;
        let is_it = line[..colon].eq_ignore_ascii_case(b"set-cookie") && !pair.contains(&b';');
        is_it.then(|| String::from_utf8_lossy(&pair[..end.min(FIELD_BYTES_MAX)]).into())
    }

    /// The rule for the value that would begin with `next`.
    fn span_rule(&self, next: u8) -> Option<u16> {
        if self.response.part() != Part::Header {
            return None;
        }
        let line = self.response.line();
        let rule = self.rules.iter().position(|rule| rule.begins(line, next))?;
        u16::try_from(rule).ok()
    }
}

impl Normalizer for Http {
    fn on_request(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.request.part() != Part::Lost {
            let n = self.request.skip_body(bytes.len());
            bytes = &bytes[n..];
            let [first, rest @ ..] = bytes else { return };
            if n > 0 {
                continue;
            }
            bytes = rest;
            match self.request.push(*first) {
                Seen::Nothing => {}
                Seen::Start => self.on_request_line(),
                Seen::HeadersEnd => self.request.end_headers(Follows::Content),
            }
        }
        if self.request.part() == Part::Lost {
            self.lose_answers(self.request.raw().unwrap_or(RawReason::NotHttp));
        }
    }

    fn on_request_hole(&mut self, len: u64) {
        match self.request.part() {
            Part::Body(left) | Part::Chunk(left) if len <= left => {
                self.request.skip_body(len as usize);
            }
            _ => self.give_up(RawReason::Missed),
        }
    }

    fn on_response(&mut self, bytes: &[u8]) -> Step {
        if !self.is_recognized {
            self.give_up(RawReason::NotHttp);
        }
        let mut at = 0;
        while at < bytes.len() && self.response.part() != Part::Lost {
            let n = self.response.skip_body(bytes.len() - at);
            if n > 0 {
                at += n;
                continue;
            }
            if !self.is_in_span
                && let Some(rule) = self.span_rule(bytes[at])
            {
                self.is_in_span = true;
                return Step::Span { after: at, rule };
            }
            match self.response.push(bytes[at]) {
                Seen::Nothing => {}
                Seen::Start => self.on_status_line(),
                Seen::HeadersEnd => self.on_response_headers_end(),
            }
            // What comes here is no part of a value, and another one may begin in this line.
            self.is_in_span = false;
            at += 1;
        }
        Step::Plain
    }

    fn on_span(&mut self, len: usize) {
        // The value itself says nothing about framing; one byte of it keeps the line a header.
        for _ in 0..len.min(1) {
            self.response.push(b'-');
        }
    }

    fn is_in_span(&self, rule: u16, _at: usize, byte: u8) -> bool {
        !self.rules.get(usize::from(rule)).is_none_or(|rule| rule.ends(byte))
    }

    fn may_differ(&self, rule: u16, ours: &[u8], theirs: &[u8]) -> bool {
        self.rules.get(usize::from(rule)).is_some_and(|rule| rule.may_differ(ours, theirs))
    }

    /// The boundary between several ranges (RFC 9110 14.6).
    fn is_drawn(&self) -> bool {
        let line = self.response.line().to_ascii_lowercase();
        let Some(value) = line.strip_prefix(b"content-type:") else { return false };
        let value = value.trim_ascii_start();
        self.response.part() == Part::Header
            && value.starts_with(b"multipart/byteranges")
            && value.windows(9).any(|word| word == b"boundary=")
    }

    fn rule_name(&self, rule: u16) -> RuleName {
        let nameless = || RuleName { protocol: "http", field: Arc::default() };
        self.rules.get(usize::from(rule)).map_or_else(nameless, Rule::rule_name)
    }

    fn is_returned(&self, rule: u16) -> bool {
        self.rules.get(usize::from(rule)).is_some_and(Rule::is_map)
    }

    fn http(&self) -> Option<&Http> {
        Some(self)
    }

    fn http_mut(&mut self) -> Option<&mut Http> {
        Some(self)
    }

    fn quiet(&self) -> Option<Quiet> {
        let parts = [&self.request, &self.response];
        let is_between = parts.iter().all(|f| f.is_between_messages());
        let is_quiet = is_between && self.outstanding.is_empty() && !self.is_in_span;
        let (is_recognized, status) = (self.is_recognized, self.status);
        is_quiet.then_some(Quiet::Http { is_recognized, status })
    }

    fn is_complete(&self) -> Option<bool> {
        let is_complete = match self.response.part() {
            Part::Header
            | Part::Body(_)
            | Part::ChunkSize
            | Part::Chunk(_)
            | Part::ChunkEnd
            | Part::Trailer => false,
            Part::Start => self.response.line().is_empty() && self.outstanding.is_empty(),
            Part::UntilClose | Part::Lost => return None,
        };
        self.is_recognized.then_some(is_complete)
    }

    fn boxed_clone(&self) -> Box<dyn Normalizer> {
        Box::new(self.clone())
    }

    fn plain_ahead(&self) -> u64 {
        match self.response.part() {
            Part::Body(n) => n,
            Part::Chunk(n) => n,
            Part::UntilClose | Part::Lost => u64::MAX,
            Part::Start | Part::Header | Part::ChunkSize | Part::ChunkEnd | Part::Trailer => 0,
        }
    }

    fn raw(&self) -> Option<RawReason> {
        let of_request = self.request.raw().filter(|_| self.is_recognized);
        of_request.or(self.response.raw()).filter(|_| !self.is_parted)
    }

    fn field(&self, ahead: &[u8]) -> Option<Field> {
        Some(match self.response.part() {
            Part::Start => Field::StatusLine,
            Part::Header if self.cookie().is_some() => Field::Cookie(self.cookie()?),
            Part::Header => {
                let rest = ahead.iter().take(FIELD_BYTES_MAX).take_while(|b| !matches!(b, b'\r'));
                let line: Vec<u8> = self.response.line().iter().chain(rest).copied().collect();
                let name = line.split(|&b| b == b':').next().unwrap_or(&[]);
                Field::Header(String::from_utf8_lossy(name).to_ascii_lowercase().into())
            }
            Part::ChunkSize | Part::ChunkEnd => Field::ChunkSize,
            Part::Body(_) | Part::Chunk(_) | Part::UntilClose => Field::Body,
            Part::Trailer => Field::Trailer,
            Part::Lost => return None,
        })
    }
}

/// Whether `bytes` begin with a whole request line.
pub fn begins_request(bytes: &[u8]) -> bool {
    let end = bytes.windows(2).position(|w| w == b"\r\n");
    end.is_some_and(|end| RequestLine::parse(&bytes[..end]).is_some())
}

/// What may follow the header section of an answer (RFC 9112 6.3); `None` if another protocol does.
pub fn answer_follows(method: Method, status: u16) -> Option<Follows> {
    match (method, status) {
        (_, 101) | (Method::Connect, 200..300) => None,
        (_, 100..200 | 204) => Some(Follows::Never),
        (Method::Head, _) | (_, 304) => Some(Follows::Nothing),
        _ => Some(Follows::UntilClose),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    fn http() -> Http {
        Http::new(Rule::masks(["date"]))
    }

    /// Feeds `bytes` in pieces of `piece` and returns the spans as (start, len).
    fn spans(h: &mut Http, bytes: &[u8], piece: usize) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + piece).min(bytes.len());
            match h.on_response(&bytes[at..end]) {
                Step::Plain => at = end,
                Step::Span { after, .. } => {
                    at += after;
                    let len = bytes[at..].iter().position(|&b| b == b'\r').expect("a CR");
                    found.push((at, len));
                    h.on_span(len);
                    at += len;
                }
            }
        }
        found
    }

    fn texts<'a>(bytes: &'a [u8], spans: &[(usize, usize)]) -> Vec<&'a str> {
        let text = |&(at, len): &(usize, usize)| std::str::from_utf8(&bytes[at..at + len]);
        spans.iter().map(|s| text(s).expect("text")).collect()
    }

    #[test]
    fn a_line_may_have_two_values() {
        let answer = b"HTTP/1.1 204 No\r\nSet-Cookie: SID=abc; expires=Sun, 1 GMT; Path=/\r\n\
            Set-Cookie: SID=; expires=Mon\r\nSet-Cookie: X=1; expires=Tue\r\nDate: one\r\n\r\n";
        let rules = protocol::Rules::headers(["date"]).and(Rule::map("set-cookie", Some("SID")));
        for piece in [1, 2, 7, 1000] {
            let mut h = Http::new(rules.http.clone());
            h.on_request(b"GET / HTTP/1.1\r\n\r\n");
            let (mut at, mut found) = (0, Vec::new());
            while at < answer.len() {
                let end = (at + piece).min(answer.len());
                let Step::Span { after, rule } = h.on_response(&answer[at..end]) else {
                    at = end;
                    continue;
                };
                at += after;
                let rest = &answer[at..];
                let len = rest.iter().position(|&byte| !h.is_in_span(rule, 0, byte));
                let value = &rest[..len.expect("an end")];
                found.push((String::from_utf8_lossy(value), h.rule_name(rule).field));
                h.on_span(value.len());
                at += value.len();
            }
            let found: Vec<_> = found.iter().map(|(value, field)| (&**value, &**field)).collect();
            let expiry = "set-cookie SID expires";
            let all = [
                ("abc", "set-cookie SID"),
                ("Sun, 1 GMT", expiry),
                ("Mon", expiry),
                ("one", "date"),
            ];
            assert_eq!(found, all, "{piece}");
            assert!(h.is_complete() == Some(true) && h.quiet().is_some());
        }
    }

    #[test]
    fn the_date_of_each_answer_is_a_span_and_a_body_never_is() {
        let answers = b"HTTP/1.1 200 OK\r\nServer: x\r\nDate: one\r\nContent-Length: 11\r\n\r\n\
            Date: none\n\
            HTTP/1.1 200 OK\r\ndate:two\r\nTransfer-Encoding: chunked\r\n\r\n\
            b\r\n\r\nDate: no\r\r\n0\r\nDate: no\r\n\r\n\
            HTTP/1.1 304 Not Modified\r\nDATE:  three\r\nContent-Length: 99\r\n\r\n\
            HTTP/1.1 200 OK\r\nDate: four\r\nContent-Length: 5\r\n\r\n\
            HTTP/1.1 200 OK\r\nDate: five\r\n\r\nDate: until close\r\n";
        for piece in [1, 2, 7, 1000] {
            let mut h = http();
            h.on_request(
                b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 3\r\n\r\nG",
            );
            h.on_request(
                b"ETGET /3 HTTP/1.1\r\n\r\nHEAD /4 HTTP/1.1\r\n\r\nGET /5 HTTP/1.1\r\n\r\n",
            );
            let found = spans(&mut h, answers, piece);
            assert_eq!(texts(answers, &found), ["one", "two", "three", "four", "five"]);
            assert_eq!(h.plain_ahead(), u64::MAX);
        }
    }

    #[test]
    fn what_is_ambiguous_or_not_http_has_no_spans() {
        let answer = b"HTTP/1.1 200 OK\r\nDate: one\r\n\r\n";
        for request in [
            &b"get / HTTP/1.1\r\n\r\n"[..],
            b"GET / HTTP/2\r\n\r\n",
            b"GET / HTTP/1.1\n\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            b"",
        ] {
            let mut h = http();
            h.on_request(request);
            assert_eq!(spans(&mut h, answer, 5), [], "{:?}", String::from_utf8_lossy(request));
        }
    }

    #[test]
    fn a_long_line_or_a_switch_of_protocols_ends_the_parsing() {
        let mut h = http();
        h.on_request(b"GET / HTTP/1.1\r\n\r\n");
        let mut long = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        long.resize(20_000, b'x');
        long.extend_from_slice(b"\r\nDate: one\r\n\r\n");
        assert_eq!(spans(&mut h, &long, 1000), []);
        let mut h = http();
        h.on_request(b"GET / HTTP/1.1\r\n\r\n");
        let switch = b"HTTP/1.1 101 Switching\r\nDate: one\r\n\r\nHTTP/1.1 200 OK\r\nDate: x\r\n";
        assert_eq!(texts(switch, &spans(&mut h, switch, 9)), ["one"]);
    }

    /// What is asked, what is answered, the values found in it, and why it is read no further.
    #[test]
    fn where_an_answer_ends_its_request_and_its_headers_say() {
        const OK: &str = "HTTP/1.1 200 OK\r\nDate: a\r\nContent-Length: 9\r\n\r\n";
        const NEXT: &str = "HTTP/1.1 200 OK\r\nDate: b\r\nContent-Length: 0\r\n\r\n";
        let get = "GET / HTTP/1.1\r\n\r\n";
        let (head, connect) = ("HEAD / HTTP/1.1\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\n\r\n");
        let of = |head: &str, body: &str| format!("HTTP/1.1 {head}\r\nDate: a\r\n{body}");
        let chunked = "Transfer-Encoding: chunked\r\n\r\n";
        let part = "Content-Type: multipart/byteranges; boundary=x\r\nContent-Length: 15\r\n\r\n\
            --x\r\nDate: no\r\n";
        let cases = [
            (head, OK.into(), 2, None),
            (get, of("204 No Content", "\r\n"), 2, None),
            (get, of("304 Not Modified", "Content-Length: 9\r\n\r\n"), 2, None),
            (get, of("304 Not Modified", chunked), 2, None),
            (get, of("206 Partial Content", part), 2, None),
            (
                get,
                of("200 OK", &format!("{chunked}4;x=\"y\"\r\nDate\r\n0;z\r\nDate: t\r\n\r\n")),
                2,
                None,
            ),
            (connect, of("403 Forbidden", "Content-Length: 2\r\n\r\nno"), 2, None),
            (connect, OK.into(), 1, Some(RawReason::Switched)),
            (get, of("101 Switching Protocols", "\r\n"), 1, Some(RawReason::Switched)),
            (get, of("204 No Content", "Content-Length: 9\r\n\r\n"), 1, Some(RawReason::NoContent)),
            (get, of("204 No Content", chunked), 1, Some(RawReason::NoContent)),
            (
                get,
                of("103 Early Hints", "Content-Length: 1\r\n\r\n"),
                1,
                Some(RawReason::NoContent),
            ),
            (get, of("200 OK", &format!("{chunked}4\r\nDates\r\n")), 1, Some(RawReason::ChunkEnd)),
            (get, of("200 OK", &format!("{chunked}4\r\nDate\n0\r\n")), 1, Some(RawReason::BareLf)),
            (
                get,
                of("200 OK", &format!("{chunked}0x4\r\nDate\r\n")),
                1,
                Some(RawReason::ChunkSize),
            ),
            (get, of("200 OK", "X\x0b: y\r\n"), 1, Some(RawReason::HeaderLine)),
            (get, of("200 OK", "X: y\0z\r\n"), 1, Some(RawReason::HeaderLine)),
            (get, of("200 OK", "Content-Length: 1\x0c\r\n"), 1, Some(RawReason::Length)),
            (get, OK.replacen("1.1", "1.2", 1), 0, Some(RawReason::StatusLine)),
            (get, format!("\r\n{OK}"), 0, Some(RawReason::StatusLine)),
            (
                get,
                OK.replace("Content-Length: 9", "Transfer-Encoding: chunked")
                    .replacen("1.1", "1.0", 1),
                1,
                Some(RawReason::Coding),
            ),
        ];
        for (request, answer, found, raw) in cases {
            for piece in [1, 3, 1000] {
                let mut h = http();
                h.on_request(request.as_bytes());
                h.on_request(get.as_bytes());
                let all = format!("{answer}{NEXT}");
                let places = spans(&mut h, all.as_bytes(), piece);
                assert_eq!((places.len(), h.raw()), (found, raw), "{request:?} {all:?}");
            }
        }
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_the_last_one_read() {
        let answers = b"HTTP/1.1 408 Late\r\nDate: a\r\nContent-Length: 0\r\n\r\n\
            HTTP/1.1 200 OK\r\nDate: b\r\n";
        let mut h = http();
        h.on_request(b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(spans(&mut h, b"HTTP/1.1 204 No\r\n\r\n", 100), []);
        assert_eq!(texts(answers, &spans(&mut h, answers, 100)), ["a"]);
        assert_eq!((h.raw(), h.is_complete()), (Some(RawReason::Unasked), None));
    }

    #[test]
    fn bytes_that_the_client_said_unheard_matter_outside_of_bodies_only() {
        let post = b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n12";
        for (hole, raw) in [(3, None), (7, None), (8, Some(RawReason::Missed))] {
            let mut h = http();
            h.on_request(post);
            h.on_request_hole(hole);
            assert_eq!(h.raw(), raw, "{hole}");
        }
        let mut h = http();
        h.on_request(&post[..10]);
        h.on_request_hole(1);
        assert_eq!(h.raw(), Some(RawReason::Missed));
    }
}
