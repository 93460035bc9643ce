//! What a position in a conversation is called: the header of an answer, a byte of a body, a line
//! of a text.

use std::collections::VecDeque;

use super::ftp::Dialogue;
use super::talks::Side;
use super::view::printable;
use crate::protocol::RawReason;
use crate::protocol::framing::{Follows, Framing, Part, Seen, trim_blanks};
use crate::protocol::http::{answer_follows, begins_request};
use crate::protocol::start::{Method, RequestLine, StatusLine};

/// Requests that are remembered until their answers come.
const OUTSTANDING_MAX: usize = 1 << 16;

/// What a conversation is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// HTTP, or whatever it shows itself to be.
    Any,
    /// A control connection of FTP.
    Control,
    /// Bytes: a data connection of FTP.
    Data,
}

/// The number of an answer of HTTP, and what a field says there.
type Note = (u64, Vec<u8>);

/// Follows one conversation up to a position.
#[derive(Clone, Debug)]
pub(super) struct Place {
    kind: Kind,
    dialogue: Dialogue,
    /// What each side says of cookies, with the number of the answer; none if nobody asks.
    notes: Option<[Vec<Note>; 2]>,
    sides: [Reading; 2],
    /// The method of each request without the head of an answer so far.
    outstanding: VecDeque<Method>,
    status: u16,
    is_http: bool,
    /// Requests begun, and whole answers that were not interim ones.
    requests: u64,
    answers: u64,
}

/// What was read of one side.
#[derive(Clone, Debug)]
struct Reading {
    framing: Framing,
    /// HTTP messages begun, and bytes of the body of the last one.
    messages: u64,
    is_in_message: bool,
    body_bytes: u64,
    /// Lines ended, bytes of the line that is not, and whether it all is text.
    lines: u64,
    column: u64,
    is_binary: bool,
}

impl Place {
    /// Follows from the beginning.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            dialogue: Dialogue::default(),
            notes: None,
            sides: [Reading::new(Framing::requests()), Reading::new(Framing::answers())],
            outstanding: VecDeque::new(),
            status: 0,
            is_http: false,
            requests: 0,
            answers: 0,
        }
    }

    /// Notes what is said of cookies: `Set-Cookie` of the server and `Cookie` of the client.
    pub(super) fn noting(mut self) -> Self {
        self.notes = Some(Default::default());
        self
    }

    /// What a side said of cookies before answer number `before`, counted from 0.
    pub(super) fn take_notes(&mut self, side: Side, before: u64) -> Vec<Note> {
        let Some(notes) = &mut self.notes else { return Vec::new() };
        let notes = &mut notes[side.index()];
        let count = notes.partition_point(|(answer, _)| *answer < before);
        notes.drain(..count).collect()
    }

    /// Reads on in what one side said.
    pub(super) fn read(&mut self, side: Side, bytes: &[u8]) {
        self.sides[side.index()].read_lines(bytes);
        match self.kind {
            Kind::Any => self.read_http(side, bytes),
            Kind::Control => self.dialogue.read(side, bytes),
            Kind::Data => {}
        }
    }

    /// The same for HTTP alone, of which lines are not counted.
    pub(super) fn read_http(&mut self, side: Side, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let reading = &mut self.sides[side.index()];
            if reading.framing.part() == Part::Lost {
                return;
            }
            let body = reading.framing.skip_body(bytes.len() - at);
            if body > 0 {
                reading.body_bytes += body as u64;
                at += body;
            } else {
                if reading.framing.is_between_messages() && !matches!(bytes[at], b'\r' | b'\n') {
                    reading.messages += 1;
                    reading.is_in_message = true;
                    reading.body_bytes = 0;
                }
                if bytes[at] == b'\n'
                    && reading.framing.part() == Part::Header
                    && let Some(notes) = &mut self.notes
                {
                    let value = cookie_field(side, reading.framing.line());
                    notes[side.index()].extend(value.map(|value| (self.answers, value.to_vec())));
                }
                let seen = reading.framing.push(bytes[at]);
                at += 1;
                self.on_seen(seen, side);
            }
            let reading = &mut self.sides[side.index()];
            if reading.framing.is_between_messages() && reading.is_in_message {
                reading.is_in_message = false;
                self.answers += u64::from(side == Side::Server && self.status / 100 != 1);
            }
        }
    }

    /// How much was answered: whole answers, and whether one more has begun that something waits
    /// for; none where the protocol does not tell.
    pub(super) fn progress(&self) -> Option<(u64, bool)> {
        match self.kind {
            Kind::Any => self.answered_http().map(|answers| (answers, false)),
            Kind::Control => self.dialogue.progress(),
            Kind::Data => None,
        }
    }

    /// Whole answers to requests; none where the protocol does not tell.
    pub(super) fn answered(&self) -> Option<u64> {
        let (answers, _) = self.progress()?;
        // Nobody asks for a greeting.
        Some(answers.saturating_sub(u64::from(self.kind == Kind::Control)))
    }

    /// A control connection of FTP.
    pub(super) const fn dialogue(&mut self) -> &mut Dialogue {
        &mut self.dialogue
    }

    fn answered_http(&self) -> Option<u64> {
        let is_told =
            |reading: &Reading| !matches!(reading.framing.part(), Part::Lost | Part::UntilClose);
        (self.is_http && self.sides.iter().all(is_told)).then_some(self.answers)
    }

    /// Requests without a whole answer; none where the protocol does not tell.
    pub(super) fn outstanding(&self) -> Option<u64> {
        if self.kind == Kind::Control {
            return self.dialogue.outstanding();
        }
        let client = &self.sides[Side::Client.index()].framing;
        let is_begun = client.part() == Part::Start && !client.is_between_messages();
        Some((self.requests + u64::from(is_begun)).saturating_sub(self.answered()?))
    }

    fn on_seen(&mut self, seen: Seen, side: Side) {
        match (seen, side) {
            (Seen::Nothing, _) => {}
            (Seen::Start, Side::Client) => self.on_request_line(),
            (Seen::Start, Side::Server) => self.on_status_line(),
            (Seen::HeadersEnd, Side::Client) => self.sides[0].framing.end_headers(Follows::Content),
            (Seen::HeadersEnd, Side::Server) => self.on_answer_headers_end(),
        }
    }

    fn on_request_line(&mut self) {
        let framing = &mut self.sides[0].framing;
        let Some(line) = RequestLine::parse(framing.line()) else {
            return framing.lose(RawReason::RequestLine);
        };
        if self.outstanding.len() == OUTSTANDING_MAX {
            return framing.lose(RawReason::Outstanding);
        }
        framing.begin(line.is_old);
        self.is_http = true;
        self.requests += 1;
        self.outstanding.push_back(line.method);
    }

    fn on_status_line(&mut self) {
        let framing = &mut self.sides[1].framing;
        match StatusLine::parse(framing.line()).filter(|_| self.is_http) {
            Some(line) => {
                self.status = line.status;
                framing.begin(line.is_old);
            }
            None => framing.lose(RawReason::StatusLine),
        }
    }

    fn on_answer_headers_end(&mut self) {
        let framing = &mut self.sides[1].framing;
        let method = match self.status / 100 {
            1 => self.outstanding.front().copied(),
            _ => self.outstanding.pop_front(),
        };
        let Some(method) = method else { return framing.lose(RawReason::Unasked) };
        match answer_follows(method, self.status) {
            Some(follows) => framing.end_headers(follows),
            None => framing.lose(RawReason::Switched),
        }
    }

    /// What the next byte of a side is; `next` are the bytes from there on.
    pub(super) fn describe(&self, side: Side, next: &[u8]) -> String {
        let is_read = self.kind == Kind::Control && self.dialogue.dead_end().is_none();
        if is_read && side == Side::Server {
            return self.dialogue.describe(next);
        }
        let reading = &self.sides[side.index()];
        let word = match side {
            Side::Client => "request",
            Side::Server => "answer",
        };
        let line = reading.framing.line();
        // The first request line may not be whole yet.
        let is_http =
            self.is_http || self.kind == Kind::Any && begins_request(&[line, next].concat());
        if !is_http || reading.framing.part() == Part::Lost {
            return match reading.is_binary || next.first().is_some_and(|&b| is_binary(b)) {
                true => format!("binary data of the {word}s"),
                false => format!("line {}, column {}", reading.lines + 1, reading.column + 1),
            };
        }
        let number = reading.messages.max(1);
        let what = match reading.framing.part() {
            Part::Start if line.is_empty() => {
                return format!("the beginning of {word} {}", reading.messages + 1);
            }
            Part::Start => match side {
                Side::Client => "request line".to_owned(),
                Side::Server => "status line".to_owned(),
            },
            Part::Header => header(line, next),
            Part::Body(_) | Part::Chunk(_) | Part::UntilClose => {
                format!("body, byte {}", reading.body_bytes)
            }
            Part::ChunkSize => "the size of a chunk".to_owned(),
            Part::ChunkEnd => "the end of a chunk".to_owned(),
            Part::Trailer => "trailer".to_owned(),
            Part::Lost => String::new(),
        };
        format!("{word} {number}, {what}")
    }
}

impl Reading {
    const fn new(framing: Framing) -> Self {
        Self {
            framing,
            messages: 0,
            is_in_message: false,
            body_bytes: 0,
            lines: 0,
            column: 0,
            is_binary: false,
        }
    }

    fn read_lines(&mut self, bytes: &[u8]) {
        let ends = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.lines += ends;
        self.column = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(last) => (bytes.len() - last - 1) as u64,
            None => self.column + bytes.len() as u64,
        };
        self.is_binary |= bytes.iter().any(|&byte| is_binary(byte));
    }
}

/// The value of the field about cookies that a header line is, which lacks its LF.
fn cookie_field(side: Side, line: &[u8]) -> Option<&[u8]> {
    let name: &[u8] = match side {
        Side::Client => b"cookie:",
        Side::Server => b"set-cookie:",
    };
    let (begin, value) = line.split_at_checked(name.len())?;
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    begin.eq_ignore_ascii_case(name).then(|| trim_blanks(value))
}

const fn is_binary(byte: u8) -> bool {
    byte < 0x20 && !matches!(byte, b'\r' | b'\n' | b'\t') || byte == 0x7f
}

/// The header field whose line has begun with `line` and goes on with `next`.
fn header(line: &[u8], next: &[u8]) -> String {
    let rest = next.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let whole = [line, rest].concat();
    match whole.iter().position(|&byte| byte == b':') {
        Some(colon) => {
            let name = printable(&whole[..colon]);
            let part = if line.len() > colon { "header" } else { "name of header" };
            format!("{part} `{name}`")
        }
        None if whole.is_empty() => "the end of the headers".to_owned(),
        None => "header".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_name() {
        let requests = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nHEAD /b HTTP/1.1\r\n\r\n";
        let answers =
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nA: b\r\n\r\n";
        let at = |side: Side, all: &[u8], at: usize| {
            let mut place = Place::new(Kind::Any);
            if side == Side::Server {
                place.read(Side::Client, requests);
            }
            place.read(side, &all[..at]);
            place.describe(side, &all[at..])
        };
        for (place, name) in [
            (0, "the beginning of answer 1"),
            (9, "answer 1, status line"),
            (19, "answer 1, name of header `Content-Length`"),
            (33, "answer 1, header `Content-Length`"),
            (34, "answer 1, header `Content-Length`"),
            (36, "answer 1, the end of the headers"),
            (39, "answer 1, body, byte 1"),
            (41, "the beginning of answer 2"),
            (61, "answer 2, header `A`"),
        ] {
            assert_eq!(at(Side::Server, answers, place), name, "{place}");
        }
        assert_eq!(at(Side::Client, requests, 5), "request 1, request line");
        assert_eq!(at(Side::Client, requests, 22), "request 1, header `Host`");
        assert_eq!(at(Side::Client, requests, 30), "request 2, request line");
    }

    #[test]
    fn other_protocols_have_lines_or_bytes() {
        let mut place = Place::new(Kind::Any);
        place.read(Side::Server, b"220 welcome\r\n331 pass");
        assert_eq!(place.describe(Side::Server, b"word"), "line 2, column 9");
        place.read(Side::Server, b"\x01");
        assert_eq!(place.describe(Side::Server, b"x"), "binary data of the answers");
    }
}
