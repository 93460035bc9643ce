//! The reader of HTTP finds the same spans however the same bytes are cut.

use proptest::collection::vec;
use proptest::prelude::*;

use super::http::Http;
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
    let mut http = Http::new(vec!["date".into(), "x-id".into()]);
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
