//! The readers of HTTP find the same values in the same bytes however they are cut: those that may
//! differ in answers, and those that clients return.

use shadowvm::protocol::http::Http;
use shadowvm::protocol::returned::Returned;
use shadowvm::protocol::rules::Rule;
use shadowvm::protocol::{Normalizer, Step};

use super::reader::Reader;

/// The length of the pieces of requests and of answers (a byte each), the length of the requests,
/// the requests, the answers.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let [asked, answered] = [input.u8(), input.u8()].map(|len| usize::from(len).max(1));
    let len = input.u16();
    let (requests, answers) = (input.take(len.into()), input.rest());
    let whole = read((requests, usize::MAX), (answers, usize::MAX));
    for (asked, answered) in [(asked, answered), (1, 1)] {
        assert_eq!(read((requests, asked), (answers, answered)), whole);
    }
    for spans in whole.spans.windows(2) {
        assert!(spans[0].0 + spans[0].1 <= spans[1].0, "spans lie apart: {spans:?}");
    }
    let asked_for = returned(requests, usize::MAX);
    for every in [asked, 1] {
        assert_eq!(returned(requests, every), asked_for);
    }
    let is_value = |b: &u8| !matches!(b, b'\r' | b'\n');
    assert!(whole.spans.iter().all(|&(at, len, _)| answers[at..at + len].iter().all(is_value)));
    !whole.spans.is_empty()
}

/// What a reader makes of one flow.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    /// Place, length and rule of each span.
    spans: Vec<(usize, usize, u16)>,
    is_complete: Option<bool>,
    plain_ahead: u64,
}

/// Feeds the requests, then the answers, in pieces of these lengths.
fn read(requests: (&[u8], usize), answers: (&[u8], usize)) -> Reading {
    let mut http = Http::new(Rule::masks(["date", "x-id"]));
    requests.0.chunks(requests.1).for_each(|piece| http.on_request(piece));
    let (bytes, every) = answers;
    let (mut at, mut end) = (0, 0);
    let mut spans = Vec::new();
    while at < bytes.len() {
        while end <= at {
            end = end.saturating_add(every).min(bytes.len());
        }
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
    Reading { spans, is_complete: http.is_complete(), plain_ahead: http.plain_ahead() }
}

/// Place, length and rule of each value that is returned in `requests`, cut into pieces so long.
fn returned(requests: &[u8], every: usize) -> (Vec<(usize, usize, u16)>, bool) {
    let rules = [Rule::map("set-cookie", Some("SID")), Rule::map("x-token", None)];
    let mut reader = Returned::new(rules.into());
    let (mut at, mut end) = (0, 0);
    let mut values = Vec::new();
    while at < requests.len() {
        while end <= at {
            end = end.saturating_add(every).min(requests.len());
        }
        match reader.read(&requests[at..end]) {
            Step::Plain => at = end,
            Step::Span { after, rule } => {
                at += after;
                let ends = |byte: &u8| reader.rule(rule).is_none_or(|rule| rule.ends(*byte));
                let rest = &requests[at..];
                let len = rest.iter().position(ends).unwrap_or(rest.len());
                assert!(len > 0, "a value has a first byte");
                values.push((at, len, rule));
                reader.on_value(len);
                at += len;
            }
        }
    }
    (values, reader.is_lost())
}

/// Dialogues of each kind of framing.
pub fn seeds() -> Vec<Vec<u8>> {
    let dialogues: [(&[u8], &[u8]); 5] = [
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nDate: Mon\r\nContent-Length: 3\r\n\r\nabc\
              HTTP/1.1 200 OK\r\nX-Id:  7\r\nContent-Length: 3\r\n\r\n",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\nDate: a\r\n\r\nHTTP/1.1 200 OK\r\ndate:b\r\n\
              Transfer-Encoding: chunked\r\n\r\na\r\nDate: no\r\n\r\n0\r\nDate: no\r\n\r\n",
        ),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\nDate: Tue\r\n\r\nDate: until close\r\n"),
        (
            b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 304 No\r\nDate: a\r\n\r\nHTTP/1.1 101 Up\r\nDate: b\r\n\r\nHTTP/1.1 200\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nCookie: a=b; SID=xyz;SID=\r\nX-Token: q\r\n\r\n\
              CONNECT a:1 HTTP/1.1\r\nCookie:SID=1\r\n\r\nGET / HTTP/1.1\r\nCookie: SID=2\r\n\r\n",
            b"HTTP/1.1 204 No\r\nDate: a\r\n\r\nHTTP/1.1 200 OK\r\nDate: b\r\n\r\n",
        ),
    ];
    let seed = |(requests, answers): (&[u8], &[u8])| {
        let len = (requests.len() as u16).to_be_bytes();
        [&[7, 5][..], &len, requests, answers].concat()
    };
    dialogues.into_iter().map(seed).collect()
}
