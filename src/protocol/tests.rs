//! The reader of HTTP finds the same spans however the same bytes are cut.

use proptest::collection::vec;
use proptest::prelude::*;

use super::framing::{HEAD_BYTES_MAX, LINE_BYTES_MAX};
use super::http::Http;
use super::returned::Returned;
use super::rules::Rule;
use super::{Normalizer, Step};

/// What a reader makes of one flow: each span's place, length and rule, and how it stands at the
/// end.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    spans: Vec<(usize, usize, u16)>,
    is_complete: Option<bool>,
    plain_ahead: u64,
}

/// Ends of pieces: the multiples of `every`, or wherever `cuts` fall.
fn ends(len: usize, every: Option<usize>, cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<usize> = match every {
        Some(every) => (every..len).step_by(every).collect(),
        None => cuts.iter().map(|cut| cut % (len + 1)).collect(),
    };
    ends.push(len);
    ends.sort_unstable();
    ends
}

/// Feeds the requests, then the answers, each cut at these places. A span lasts until the next CR
/// or LF, as the comparison has it.
fn read(requests: (&[u8], &[usize]), answers: (&[u8], &[usize])) -> Reading {
    let mut http = Http::new(Rule::masks(["date", "x-id"]));
    let mut at = 0;
    for &end in requests.1 {
        http.on_request(&requests.0[at..end]);
        at = end;
    }
    let (bytes, mut at) = (answers.0, 0);
    let mut spans = Vec::new();
    for &end in answers.1 {
        while at < end {
            match http.on_response(&bytes[at..end]) {
                Step::Plain => at = end,
                Step::Span { after, rule } => {
                    at += after;
                    let rest = &bytes[at..];
                    let len = rest.iter().position(|b| matches!(b, b'\r' | b'\n'));
                    let len = len.unwrap_or(rest.len());
                    spans.push((at, len, rule));
                    http.on_span(len);
                    at += len;
                }
            }
        }
    }
    Reading { spans, is_complete: http.is_complete(), plain_ahead: http.plain_ahead() }
}

/// Pieces of text of which every reader of HTTP has seen some too many.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"HEAD /x HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nDate:",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nDate: t\r\n\r\n",
        b"PUT / HTTP/1.1\r\nTransfer-Encoding:\tChunked \r\n\r\n2 ;x=\"y\"\r\nab\r\n00\r\n\r\n",
        b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"\r\nGET /again HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"\x16\x03\x01",
    ])
    .prop_map(<[u8]>::to_vec)
}

fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let fixed = prop::sample::select(vec![
        &b"HTTP/1.1 200 OK\r\nDate: Mon\r\nContent-Length: 9\r\n\r\nDate: no\n"[..],
        b"HTTP/1.1 200 OK\r\nX-Id:  7\r\ndate:\tTue\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\nDate:\r\n0\r\nDate: trailer\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nDate: Wed\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nDate: Thu\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nDate: Fri\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate: Sat\nX: bare\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate:\r\nDate: \r\nX-Id: a: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nDate: until the end\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate : spaced\r\nDate: x\ry\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate:\rbare\r\n\r\n",
        b"HTTP/1.1 204 No\r\nDate: Sun\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No\r\nDate: Sun\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nDate: Mon\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDate: Mon\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 206 P\r\nDate: a\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nDate\x0b: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\x0c\r\nDate: c\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"HTTP/1.1 20",
        b"\r\n",
    ]);
    let long = (8000usize..8400).prop_map(|len| {
        let mut answer = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        answer.resize(len, b'x');
        answer.extend_from_slice(b"\r\nDate: behind\r\n\r\n");
        answer
    });
    let random = vec(any::<u8>(), 0..12);
    prop_oneof![20 => fixed.prop_map(<[u8]>::to_vec), 1 => long, 1 => random]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_cuts_make_no_difference(
        requests in vec(any_request(), 0..6), answers in vec(any_answer(), 0..8),
        cuts in (vec(any::<usize>(), 0..12), vec(any::<usize>(), 0..12)),
    ) {
        let (requests, answers) = (requests.concat(), answers.concat());
        let (asked, answered) = (requests.len(), answers.len());
        let whole = read((&requests, &[asked]), (&answers, &[answered]));
        for every in [Some(1), Some(2), Some(3), None] {
            let cut = read(
                (&requests, &ends(asked, every, &cuts.0)),
                (&answers, &ends(answered, every, &cuts.1)),
            );
            prop_assert_eq!(&cut, &whole);
        }
        for span in whole.spans.windows(2) {
            prop_assert!(span[0].0 + span[0].1 < span[1].0, "spans lie apart");
        }
    }
}

/// A dialogue cut in three, everywhere.
#[test]
fn every_pair_of_cuts_makes_no_difference() {
    let requests = b"GET / HTTP/1.1\r\nA: b\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi\
        HEAD / HTTP/1.1\r\n\r\n";
    let answers = b"HTTP/1.1 200 OK\r\nDate: one\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nD:\r\n\
        0\r\n\r\nHTTP/1.1 204 No\r\nX-Id:2\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    let whole = read((requests, &[requests.len()]), (answers, &[answers.len()]));
    assert_eq!(whole.spans.len(), 2);
    assert_eq!(whole.is_complete, Some(true));
    for first in 0..=answers.len() {
        for second in first..=answers.len() {
            let halves = [first.min(requests.len()), requests.len()];
            let cut = read((requests, &halves), (answers, &[first, second, answers.len()]));
            assert_eq!(cut, whole, "cut at {first} and {second}");
        }
    }
}

/// A reader that has the whole text before it and goes through it line by line.
struct Naive<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes of this message's lines, masked values counted as one.
    head: usize,
    spans: Vec<(usize, usize, u16)>,
}

/// Why reading ends.
enum End {
    Cut,
    Lost,
}

impl Naive<'_> {
    /// The next line without its end, as (place, text); `is_header` in the header section of an
    /// answer.
    fn line(&mut self, is_header: bool) -> Result<Vec<u8>, End> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n');
        let mut line = rest[..end.unwrap_or(rest.len())].to_vec();
        let name = line.iter().position(|&b| b == b':').filter(|_| is_header);
        let value = name.and_then(|colon| {
            let rule = [&b"date"[..], b"x-id"]
                .iter()
                .position(|m| line[..colon].eq_ignore_ascii_case(m))?;
            let blanks = line[colon + 1..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            let from = colon + 1 + blanks;
            let len = line[from..].iter().position(|&b| b == b'\r').unwrap_or(line.len() - from);
            let is_clean = line[..from].iter().all(|&b| b != b'\r');
            (len > 0 && is_clean && from <= LINE_BYTES_MAX).then_some((rule, from, len))
        });
        if let Some((rule, from, len)) = value {
            self.spans.push((self.at + from, len, rule as u16));
            // Whatever the value is, it says nothing about framing.
            line.splice(from..from + len, [b'-']);
        }
        for (i, &byte) in line.iter().enumerate() {
            let is_bare = byte == b'\r' && i + 1 < line.len();
            if is_bare || i == LINE_BYTES_MAX || self.head + i >= HEAD_BYTES_MAX {
                return Err(End::Lost);
            }
        }
        let Some(end) = end else { return Err(End::Cut) };
        self.head += line.len() + 1;
        self.at += end + 1;
        match line.pop() {
            Some(b'\r') => Ok(line),
            _ => Err(End::Lost),
        }
    }

    fn skip(&mut self, len: u64) -> Result<(), End> {
        let left = (self.bytes.len() - self.at) as u64;
        self.at += len.min(left) as usize;
        if len > left { Err(End::Cut) } else { Ok(()) }
    }

    /// The first line of the next message.
    fn start(&mut self, is_answer: bool) -> Result<String, End> {
        self.head = 0;
        loop {
            let line = self.line(false)?;
            match (line.is_empty(), is_answer) {
                (true, true) => return Err(End::Lost),
                (true, false) => {}
                (false, _) => return Ok(String::from_utf8_lossy(&line).into_owned()),
            }
        }
    }

    /// The header section: length, and whether there are chunks.
    fn fields(&mut self, is_answer: bool) -> Result<(Option<u64>, bool), End> {
        let (mut length, mut is_chunked) = (None, false);
        loop {
            let line = self.line(is_answer)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(End::Lost)?;
            let value = value.trim_matches([' ', '\t']);
            let is_mark = |c: char| "!#$%&'*+-.^_`|~".contains(c);
            let is_name = |c: char| c.is_ascii_alphanumeric() || is_mark(c);
            if name.is_empty() || !name.chars().all(is_name) || value.contains('\0') {
                return Err(End::Lost);
            }
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                    let number = value.parse().ok().filter(|_| is_number && length.is_none());
                    length = Some(number.ok_or(End::Lost)?);
                }
                "transfer-encoding" if is_chunked || !value.eq_ignore_ascii_case("chunked") => {
                    return Err(End::Lost);
                }
                "transfer-encoding" => is_chunked = true,
                _ => {}
            }
        }
        if is_chunked && length.is_some() { Err(End::Lost) } else { Ok((length, is_chunked)) }
    }

    fn chunks(&mut self) -> Result<(), End> {
        loop {
            self.head = 0;
            let line = self.line(false)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let size = line.split(';').next().unwrap_or("");
            let size = size.trim_matches([' ', '\t']);
            let is_number = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
            let size = u64::from_str_radix(size, 16).ok().filter(|n| is_number && *n < 1 << 60);
            match size.ok_or(End::Lost)? {
                0 => break,
                size => self.skip(size)?,
            }
            match &self.bytes[self.at..] {
                [b'\r', b'\n', ..] => self.at += 2,
                [] | [b'\r'] => return Err(End::Cut),
                _ => return Err(End::Lost),
            }
        }
        while !self.line(false)?.is_empty() {}
        Ok(())
    }

    fn requests(&mut self) -> (Vec<String>, End) {
        let mut methods = Vec::new();
        let mut one = || -> Result<(), End> {
            let line = self.start(false)?;
            let parts: Vec<&str> = line.split(' ').collect();
            let [method, target, version @ ("HTTP/1.0" | "HTTP/1.1")] = parts[..] else {
                return Err(End::Lost);
            };
            let is_method = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
            let is_control = |c: char| c.is_ascii_control();
            if !is_method || target.is_empty() || target.contains(is_control) {
                return Err(End::Lost);
            }
            methods.push(method.to_owned());
            match self.fields(false)? {
                (_, true) if version == "HTTP/1.0" => Err(End::Lost),
                (_, true) => self.chunks(),
                (length, false) => self.skip(length.unwrap_or(0)),
            }
        };
        let end = loop {
            if let Err(end) = one() {
                break end;
            }
        };
        (methods, end)
    }

    fn answers(&mut self, methods: Vec<String>) -> End {
        let mut methods = methods.into_iter().peekable();
        let mut one = || -> Result<(), End> {
            let line = self.start(true)?;
            let is_answer = line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.0 ");
            let is_old = line.starts_with("HTTP/1.0 ");
            let status = line.get(9..12).filter(|s| s.bytes().all(|b| b.is_ascii_digit()));
            let status = status.and_then(|s| s.parse::<u16>().ok());
            let status = status.filter(|s| is_answer && (100..600).contains(s)).ok_or(End::Lost)?;
            if !matches!(line.as_bytes().get(12), None | Some(b' ')) {
                return Err(End::Lost);
            }
            let (length, is_chunked) = self.fields(true)?;
            let method = match status / 100 {
                1 => methods.peek().cloned(),
                _ => methods.next(),
            };
            let method = method.ok_or(End::Lost)?;
            match (status, is_chunked, length) {
                (101, ..) => Err(End::Lost),
                (200..300, ..) if method == "CONNECT" => Err(End::Lost),
                (_, true, _) if is_old => Err(End::Lost),
                (100..200 | 204, false, None | Some(0)) => Ok(()),
                (100..200 | 204, ..) => Err(End::Lost),
                (304, ..) => Ok(()),
                _ if method == "HEAD" => Ok(()),
                (_, true, _) => self.chunks(),
                (_, false, Some(length)) => self.skip(length),
                (_, false, None) => Err(End::Cut),
            }
        };
        loop {
            if let Err(end) = one() {
                return end;
            }
        }
    }
}

fn naive(requests: &[u8], answers: &[u8]) -> Vec<(usize, usize, u16)> {
    let reader = |bytes| Naive { bytes, at: 0, head: 0, spans: Vec::new() };
    let (methods, end) = reader(requests).requests();
    let mut reader = reader(answers);
    if matches!(end, End::Cut) && !methods.is_empty() {
        reader.answers(methods);
    }
    reader.spans
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// The reader that sees the bytes one by one finds what the naive one finds.
    #[test]
    fn the_spans_are_those_of_a_naive_reader(
        requests in vec(any_request(), 0..6), answers in vec(any_answer(), 0..8),
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>())),
    ) {
        let (mut requests, mut answers) = (requests.concat(), answers.concat());
        if let Some((at, byte, is_asked)) = noise {
            let text = if is_asked { &mut requests } else { &mut answers };
            if !text.is_empty() {
                let at = at.index(text.len());
                text[at] = byte & 0x7f;
            }
        }
        let (asked, answered) = (requests.len(), answers.len());
        let reading = read((&requests, &[asked]), (&answers, &[answered]));
        prop_assert_eq!(reading.spans, naive(&requests, &answers));
    }
}

/// What is returned in requests, each cut at these places.
fn returned(requests: &[u8], ends: &[usize]) -> (Vec<(usize, usize, u16)>, bool) {
    let rules = [Rule::map("set-cookie", Some("SID")), Rule::map("x-token", None)];
    let mut reader = Returned::new(rules.into());
    let (mut at, mut values) = (0, Vec::new());
    for &end in ends {
        while at < end {
            match reader.read(&requests[at..end]) {
                Step::Plain => at = end,
                Step::Span { after, rule } => {
                    at += after;
                    let ends = |byte: &u8| reader.rule(rule).is_some_and(|rule| rule.ends(*byte));
                    let rest = &requests[at..];
                    let len = rest.iter().position(ends).unwrap_or(rest.len());
                    values.push((at, len, rule));
                    reader.on_value(len);
                    at += len;
                }
            }
        }
    }
    (values, reader.is_lost())
}

/// A request, and what of it is returned: places, lengths and rules.
fn any_returning() -> impl Strategy<Value = (String, Vec<(usize, usize, u16)>)> {
    let name = prop::sample::select(vec!["SID", "sid", "XSID", "a"]);
    let value = prop::sample::select(vec!["", "x", "abc", "a=b", "SID=q"]);
    let cookies = vec((name, value, prop::sample::select(vec!["; ", ";", "; \t"])), 0..4);
    let header = prop::sample::select(vec!["Cookie: ", "cookie:", "X-Token: ", "Y: ", "Kookie: "]);
    let body = prop::sample::select(vec!["", "Cookie: SID=no\r\n"]);
    (vec((header, cookies), 0..4), body).prop_map(|(headers, body)| {
        let mut text = String::from("POST / HTTP/1.1\r\n");
        let mut values = Vec::new();
        for (header, cookies) in headers {
            text += header;
            let from = text.len();
            for (i, (name, value, gap)) in cookies.iter().enumerate() {
                text += if i > 0 { gap } else { "" };
                text += name;
                text += "=";
                let is_it = *name == "SID" && header.eq_ignore_ascii_case("cookie: ");
                if (is_it || *name == "SID" && header == "cookie:") && !value.is_empty() {
                    values.push((text.len(), value.len(), 0));
                }
                text += value;
            }
            if header == "X-Token: " && text.len() > from {
                values.push((from, text.len() - from, 1));
            }
            text += "\r\n";
        }
        text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        (text, values)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_clients_return_is_found_where_it_stands(
        requests in vec(any_returning(), 0..4), cuts in vec(any::<usize>(), 0..12),
        noise in prop::option::of(any_request()),
    ) {
        let (mut text, mut expected) = (String::new(), Vec::new());
        for (request, values) in requests {
            expected.extend(values.iter().map(|&(at, len, rule)| (at + text.len(), len, rule)));
            text += &request;
        }
        let mut text = text.into_bytes();
        let found = returned(&text, &[text.len()]);
        prop_assert_eq!(&found, &(expected, false));
        // Whatever follows, the cuts make no difference.
        text.extend(noise.unwrap_or_default());
        let whole = returned(&text, &[text.len()]);
        prop_assert!(whole.0.starts_with(&found.0));
        for every in [Some(1), Some(3), None] {
            prop_assert_eq!(&returned(&text, &ends(text.len(), every, &cuts)), &whole);
        }
    }
}
