//! What the ends say: pure functions from a connection's plan to its two byte streams.
//!
//! Bodies are slices of one pseudo-random table, so that a wrong, missing or repeated byte cannot
//! look right, and so that comparing costs a memcmp. A diverged server says the same with two bytes
//! changed per body, far apart: a mixture of two versions is visible as such.

use std::ops::Range;
use std::sync::OnceLock;

use super::canon::{FILL, Token};
use super::jar::cookie;
use super::rng::Rng;
use super::scenario::{ConnPlan, RequestPlan, Returned};
use crate::engine::LegId;

const TABLE_BYTES: usize = 1 << 20;
/// Largest body.
pub const BODY_BYTES_MAX: usize = 1 << 19;
/// Where the connection's number stands in every request, behind "GET /", and the request's own.
const TOLD_AT: [Range<usize>; 2] = [5..9, 10..13];

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut rng = Rng::new(0x5eed);
        (0..TABLE_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
    })
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Vec<u8>),
    Table(Range<usize>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text,
            Self::Table(range) => &table()[range.clone()],
        }
    }
}

/// A byte stream in pieces.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pieces: Vec<(usize, Piece)>,
    len: usize,
    /// Cookies that are returned in it, and where.
    returned: Vec<(Range<usize>, Returned)>,
}

impl Script {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    fn push(&mut self, piece: Piece) {
        let at = self.len;
        self.len += piece.bytes().len();
        self.pieces.push((at, piece));
    }

    fn text(&mut self, text: impl Into<Vec<u8>>) {
        self.push(Piece::Text(text.into()));
    }

    fn body(&mut self, content: u32, range: Range<usize>) {
        let base = content as usize % (TABLE_BYTES - BODY_BYTES_MAX);
        if !range.is_empty() {
            self.push(Piece::Table(base + range.start..base + range.end));
        }
    }

    /// Cookies that are returned in it, in their order.
    pub fn returned(&self) -> &[(Range<usize>, Returned)] {
        &self.returned
    }

    /// The longest contiguous bytes at `at`; empty at the end.
    pub fn at(&self, at: usize) -> &[u8] {
        if at >= self.len {
            return &[];
        }
        let i = self.pieces.partition_point(|(start, _)| *start <= at) - 1;
        let (start, piece) = &self.pieces[i];
        &piece.bytes()[at - start..]
    }

    /// Where `bytes` at `at` differ from the script, if they do.
    pub fn differs(&self, mut at: usize, mut bytes: &[u8]) -> Option<usize> {
        while !bytes.is_empty() {
            let own = self.at(at);
            let n = own.len().min(bytes.len());
            if n == 0 {
                return Some(at);
            }
            if own[..n] != bytes[..n] {
                let same = own.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                return Some(at + same);
            }
            (at, bytes) = (at + n, &bytes[n..]);
        }
        None
    }
}

/// What the client sends, and where each request ends; `jar` is whose version of the cookie each
/// request returns, if it has one.
pub fn requests(plan: &ConnPlan, jar: &[Option<LegId>]) -> (Script, Vec<usize>) {
    let mut script = Script::default();
    let mut ends = Vec::with_capacity(plan.requests.len());
    for (i, request) in plan.requests.iter().enumerate() {
        let id = plan.id;
        let verb = match (plan.is_http, request.upload) {
            (false, _) => "ASK",
            (true, 0) => "GET",
            (true, _) => "PUT",
        };
        let length = match request.upload {
            0 => String::new(),
            n => format!("Content-Length: {n}\r\n"),
        };
        let before = format!("{verb} /{id:04x}/{i:03x} HTTP/1.1\r\nHost: sim\r\n");
        let mut head = before.into_bytes();
        if let Some(returned) = request.returned.filter(|_| plan.is_http) {
            let value = match jar[i] {
                Some(whose) => cookie(whose, returned.content, returned.len),
                None => vec![b'0'; returned.len.0.into()],
            };
            head.extend_from_slice(b"Cookie: S=");
            let at = script.len() + head.len();
            script.returned.push((at..at + value.len(), returned));
            head.extend_from_slice(&value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(length.as_bytes());
        head.extend_from_slice(b"\r\n");
        script.text(head);
        script.body(request.content.wrapping_mul(7), 0..request.upload as usize);
        ends.push(script.len());
    }
    (script, ends)
}

/// The connection and the number of the request that begins with `bytes`, if that much is there.
pub fn told(bytes: &[u8]) -> Option<(Option<usize>, Option<usize>)> {
    let number = |at: Range<usize>| {
        let text = std::str::from_utf8(bytes.get(at)?).ok();
        Some(text.and_then(|text| usize::from_str_radix(text, 16).ok()))
    };
    let [conn, request] = TOLD_AT;
    Some((number(conn)?, number(request)?))
}

/// The date that a server writes: every version differs from the other in many places.
fn date(server: LegId) -> &'static str {
    match server {
        LegId::A => "Mon, 01 Jan 2024 00:00:00 GMT",
        LegId::B => "Tue, 12 Feb 2035 11:22:33 GMT",
    }
}

/// Where the value of its own length stands in an answer.
pub const TOKEN_AT: usize =
    "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Id: ".len();

/// The value of its own length that a server writes.
fn token(server: LegId, len: u8) -> impl Iterator<Item = u8> {
    let first = match server {
        LegId::A => b'a',
        LegId::B => b'A',
    };
    (0..len).map(move |i| first + i % 26)
}

/// Appends a server's answer to one request; `version` 1 is the diverged one.
pub fn respond(
    script: &mut Script,
    plan: &ConnPlan,
    request: &RequestPlan,
    server: LegId,
    version: u8,
) {
    respond_with(script, plan, request, server, version, false);
}

/// The same with every value filled up to the length of its longest version.
pub fn respond_filled(
    script: &mut Script,
    plan: &ConnPlan,
    request: &RequestPlan,
    server: LegId,
    version: u8,
) {
    respond_with(script, plan, request, server, version, true);
}

fn respond_with(
    script: &mut Script,
    plan: &ConnPlan,
    request: &RequestPlan,
    server: LegId,
    version: u8,
    is_filled: bool,
) {
    let filled = |mut value: Vec<u8>, (a, b): (u8, u8)| {
        let room = if is_filled { usize::from(a.max(b)) } else { 0 };
        value.resize(room.max(value.len()), FILL);
        value
    };
    let len = request.download as usize;
    if plan.is_http {
        script.text(format!("HTTP/1.1 200 OK\r\nDate: {}\r\n", date(server)));
        if let Some((a, b)) = request.token {
            let value = token(server, [a, b][server.index()]).collect();
            script.text([b"X-Id: ", &filled(value, (a, b))[..], b"\r\n"].concat());
        }
        if let Some(len) = request.cookie {
            let value = filled(cookie(server, request.content, len), len);
            script.text([b"Set-Cookie: S=", &value[..], b"; Path=/\r\n"].concat());
        }
        script.text(format!("Content-Length: {len}\r\n\r\n"));
    }
    let mut at = 0;
    if version == 1 {
        for flip in flips(request) {
            script.body(request.content, at..flip);
            let base = request.content as usize % (TABLE_BYTES - BODY_BYTES_MAX);
            script.text([table()[base + flip] ^ 0x55]);
            at = flip + 1;
        }
    }
    script.body(request.content, at..len);
}

/// The bytes of a body in which version 1 differs.
fn flips(request: &RequestPlan) -> impl Iterator<Item = usize> {
    let len = request.download as usize;
    let first = request.flip_at as usize % len.max(1);
    let second = (first + 900).min(len.saturating_sub(1));
    let flips = if second > first { vec![first, second] } else { vec![first] };
    flips.into_iter().filter(move |&f| f < len)
}

/// Bytes that may differ between the versions of one value, in one stream.
#[derive(Clone, Debug)]
struct Choice {
    at: usize,
    group: usize,
    /// It may be there only to fill up a version that is shorter.
    may_be_fill: bool,
}

/// Follows what the client hears: every value is wholly one server's. All positions count every
/// value at the length of its longest version.
#[derive(Debug)]
pub struct Verifier {
    versions: [Script; 2],
    choices: Vec<Choice>,
    next_choice: usize,
    /// For each group of choices the version that was seen.
    seen: Vec<Option<usize>>,
    spans: Vec<Range<usize>>,
    tokens: Vec<Token>,
    /// Values that clients return: the answer, the choice, and where.
    cookies: Vec<(u16, usize, Range<usize>)>,
    /// What a server's bad memory made of bytes, and where if that is known.
    altered: Vec<(Option<usize>, u8)>,
    at: usize,
}

impl Verifier {
    /// Expects the answers to `plan`; with `may_diverge`, diverged bodies are legal too.
    pub fn new(plan: &ConnPlan, may_diverge: bool) -> Self {
        let mut versions = [Script::default(), Script::default()];
        let (mut choices, mut spans, mut groups) = (Vec::new(), Vec::new(), 0);
        let (mut tokens, mut cookies) = (Vec::new(), Vec::new());
        for (number, request) in plan.requests.iter().enumerate() {
            let start = versions[0].len();
            let version = u8::from(may_diverge && request.is_divergent);
            respond_filled(&mut versions[0], plan, request, LegId::A, 0);
            respond_filled(&mut versions[1], plan, request, LegId::B, version);
            if plan.is_http {
                let value = start + "HTTP/1.1 200 OK\r\nDate: ".len();
                let (a, b) = (date(LegId::A).as_bytes(), date(LegId::B).as_bytes());
                spans.push(value..value + a.len());
                let differ = (0..a.len()).filter(|&i| a[i] != b[i]);
                choices.extend(differ.map(|i| Choice {
                    at: value + i,
                    group: groups,
                    may_be_fill: false,
                }));
                groups += 1;
            }
            if let Some((a, b)) = request.token.filter(|_| plan.is_http) {
                let value = start + TOKEN_AT;
                let room = usize::from(a.max(b));
                spans.push(value..value + room);
                choices.extend((value..value + room).map(|at| Choice {
                    at,
                    group: groups,
                    may_be_fill: true,
                }));
                let len = [u64::from(a), u64::from(b)];
                tokens.push(Token { at: value as u64 + 1, len });
                groups += 1;
            }
            if let Some((a, b)) = request.cookie.filter(|_| plan.is_http) {
                let token =
                    request.token.map_or(0, |(a, b)| "X-Id: \r\n".len() + usize::from(a.max(b)));
                let value = start + TOKEN_AT - "X-Id: ".len() + token + "Set-Cookie: S=".len();
                let place = value..value + usize::from(a.max(b));
                let choice = |at| Choice { at, group: groups, may_be_fill: true };
                choices.extend(place.clone().map(choice));
                spans.push(place.clone());
                tokens.push(Token { at: value as u64 + 1, len: [u64::from(a), u64::from(b)] });
                cookies.push((number as u16, groups, place));
                groups += 1;
            }
            if version == 1 {
                let body = versions[0].len() - request.download as usize;
                choices.extend(flips(request).map(|f| Choice {
                    at: body + f,
                    group: groups,
                    may_be_fill: false,
                }));
                groups += 1;
            }
        }
        Self {
            versions,
            choices,
            next_choice: 0,
            seen: vec![None; groups],
            spans,
            tokens,
            cookies,
            altered: Vec::new(),
            at: 0,
        }
    }

    /// Bytes expected in all.
    pub fn len(&self) -> usize {
        self.versions[0].len()
    }

    /// Bytes heard.
    pub fn heard(&self) -> usize {
        self.at
    }

    /// Values that each server says at its own length.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Where values stand that clients return.
    pub fn cookies(&self) -> impl Iterator<Item = Range<usize>> {
        self.cookies.iter().map(|(_, _, place)| place.clone())
    }

    /// The answers whose cookie was heard, and whose it is.
    pub fn cookies_heard(&self) -> impl Iterator<Item = (u16, LegId)> {
        let heard = self.cookies.iter().filter(|(_, _, place)| place.end <= self.at);
        heard.filter_map(|&(number, group, _)| Some((number, LegId::ALL[self.seen[group]?])))
    }

    /// Values that a mask covers, as positions in the stream.
    pub fn spans(&self) -> &[Range<usize>] {
        &self.spans
    }

    /// The byte at `at` (anywhere if that is not known) may be heard as `byte`, too.
    pub fn tolerate(&mut self, at: Option<usize>, byte: u8) {
        self.altered.push((at, byte));
    }

    fn is_altered(&self, at: usize, byte: u8) -> bool {
        self.altered.iter().any(|&(place, b)| b == byte && place.is_none_or(|p| p == at))
    }

    /// Takes the next bytes; tells what is wrong with them.
    pub fn hear(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let next = self.choices.get(self.next_choice).map_or(usize::MAX, |c| c.at);
            if next > self.at {
                let n = bytes.len().min(next - self.at);
                if let Some(at) = self.versions[0].differs(self.at, &bytes[..n]) {
                    let good = at - self.at;
                    if self.is_altered(at, bytes[good]) {
                        (self.at, bytes) = (at + 1, &bytes[good + 1..]);
                        continue;
                    }
                    let what = if at >= self.len() { "beyond the end" } else { "wrong" };
                    return Err(format!("the client's byte {at} is {what}"));
                }
                (self.at, bytes) = (self.at + n, &bytes[n..]);
                continue;
            }
            let Choice { group, may_be_fill, .. } = self.choices[self.next_choice];
            if let Some(version) = self.seen[group].filter(|_| may_be_fill)
                && self.versions[version].at(next).first() == Some(&FILL)
            {
                (self.next_choice, self.at) = (self.next_choice + 1, self.at + 1);
                continue;
            }
            let is = |v: &Script| v.at(next).first() == bytes.first();
            if self.is_altered(next, bytes[0]) {
                self.next_choice += 1;
                (self.at, bytes) = (self.at + 1, &bytes[1..]);
                continue;
            }
            let version = match (is(&self.versions[0]), is(&self.versions[1])) {
                (true, _) => 0,
                (_, true) => 1,
                _ => return Err(format!("the client's byte {next} is no server's")),
            };
            match self.seen[group] {
                Some(seen) if seen != version => {
                    return Err(format!("the client's byte {next} mixes two servers' versions"));
                }
                _ => self.seen[group] = Some(version),
            }
            self.next_choice += 1;
            (self.at, bytes) = (self.at + 1, &bytes[1..]);
        }
        Ok(())
    }
}
