//! HTTP/1.1 as it is spoken: what an answer's end depends on is followed through whole
//! conversations, so that values differ where a rule lets them, and nowhere else.

use super::kit::{ACK, CLIENT_ISS, FIN, ISS, Kit, config, say};
use crate::engine::{EngineConfig, Event, FlowState, LegId, Link, RawReason, Rules};
use LegId::{A, B};

const P: u32 = ISS[0] + 1;
const ISN: [u32; 2] = [P, ISS[1] + 1];
const R: u32 = CLIENT_ISS + 1;

fn masked() -> EngineConfig {
    EngineConfig { rules: Rules::headers(["date"]), ..config() }
}

fn n(len: usize) -> u32 {
    u32::try_from(len).expect("a short stream")
}

/// A conversation in lockstep; a `#` in an answer is where the servers' values stand.
struct Talk {
    kit: Kit,
    asked: u32,
    said: [u32; 2],
}

impl Talk {
    fn new() -> Self {
        Self::with(masked())
    }

    fn with(config: EngineConfig) -> Self {
        let mut kit = Kit::new(config);
        kit.establish();
        Self { kit, asked: 0, said: [0; 2] }
    }

    fn ask(&mut self, request: &str) {
        let (seq, ack) = (R + self.asked, P + self.said[0]);
        self.kit.client(say(ACK, seq, ack).data(request));
        self.asked += n(request.len());
    }

    fn answer(&mut self, answer: &str) {
        self.answers([answer, answer]);
    }

    fn answers(&mut self, answers: [&str; 2]) {
        for id in [A, B] {
            let i = id.index();
            let text = answers[i].replace('#', ["one", "the other"][i]);
            let seq = ISN[i] + self.said[i];
            self.kit.leg(id, say(ACK, seq, R + self.asked).data(&text));
            self.said[i] += n(text.len());
        }
    }

    /// The conversation so far, as its flow has it.
    fn state(&self) -> FlowState {
        self.kit.engine.flows(1)[0].state
    }

    /// Values that differed where they may, and why the flow is compared raw.
    fn told(&self) -> (usize, Option<RawReason>) {
        let hits = self.kit.events.iter().filter(|e| matches!(e, Event::MaskHit { .. })).count();
        let raw = self.kit.events.iter().find_map(|e| match e {
            Event::ComparedRaw { why, .. } => Some(*why),
            _ => None,
        });
        (hits, raw)
    }
}

const GET: &str = "GET / HTTP/1.1\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\n\r\n";
const PLAIN: &str = "HTTP/1.1 200 OK\r\nDate: #\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn answers_of_every_kind_are_followed_by_another_one() {
    let post = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi";
    let cases = [
        (GET, PLAIN, 1),
        (HEAD, "HTTP/1.1 200 OK\r\nDate: #\r\nContent-Length: 900\r\n\r\n", 1),
        (HEAD, "HTTP/1.1 200 OK\r\nDate: #\r\nTransfer-Encoding: chunked\r\n\r\n", 1),
        (post, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nDate: #\r\n\r\n", 1),
        (GET, "HTTP/1.1 103 Hints\r\nDate: #\r\n\r\nHTTP/1.1 304 Not\r\nDate: #\r\n\r\n", 2),
        (
            GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nDate: #\r\n\r\n\
             2;a=b\r\nok\r\n0;c\r\nT: t\r\n\r\n",
            1,
        ),
        (
            "GET / HTTP/1.1\r\nRange: bytes=0-1\r\n\r\n",
            "HTTP/1.1 206 Partial Content\r\nDate: #\r\nContent-Length: 2\r\n\r\nok",
            1,
        ),
        (
            "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 416 No\r\nConnection: close\r\nContent-Length: 0\r\nDate: #\r\n\r\n",
            1,
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "HTTP/1.1 405 No\r\nDate: #\r\nContent-Length: 0\r\n\r\n",
            1,
        ),
    ];
    for (request, answer, values) in cases {
        let mut talk = Talk::new();
        talk.ask(request);
        talk.answer(answer);
        talk.ask(GET);
        talk.answer(PLAIN);
        assert_eq!(talk.told(), (values + 1, None), "{request:?} {answer:?}");
        assert_eq!(talk.state(), FlowState::Paired);
        // Pipelined, with the methods in their order.
        let mut talk = Talk::new();
        talk.ask(&format!("{request}{HEAD}{GET}"));
        let head = "HTTP/1.1 200 OK\r\nDate: #\r\nContent-Length: 70\r\n\r\n";
        talk.answer(&format!("{answer}{head}{PLAIN}"));
        assert_eq!(talk.told(), (values + 2, None), "{request:?} {answer:?}");
        assert_eq!(talk.state(), FlowState::Paired);
        // A difference behind it is one.
        let mut talk = Talk::new();
        talk.ask(&format!("{request}{GET}"));
        let text = format!("{answer}{PLAIN}");
        talk.answers([&text, &text.replace("ok", "oK")]);
        assert_eq!(talk.told().0, values + usize::from(!answer.contains("ok")), "{answer:?}");
        assert_ne!(talk.state(), FlowState::Paired, "{answer:?}");
    }
}

/// A client that has said all may close its direction before it is answered.
#[test]
fn the_end_of_a_client_is_no_request() {
    let mut talk = Talk::new();
    talk.ask(GET);
    talk.kit.client(say(FIN, R + talk.asked, P));
    talk.asked += 1;
    talk.answer("");
    talk.answer(PLAIN);
    assert_eq!((talk.told(), talk.state()), ((1, None), FlowState::Paired));
}

/// More than the gateway keeps may be on its way to the servers. What they acknowledge of it is no
/// request that could be followed, unless its length was known.
#[test]
fn a_request_that_could_not_be_kept_is_followed_if_its_length_is_known() {
    let part = "x".repeat(60_000);
    let length = 8 * part.len();
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
    let cases = [
        (format!("Content-Length: {length}\r\n\r\n"), "", (3, None)),
        (chunked, "\r\n0\r\n\r\n", (1, Some(RawReason::Missed))),
    ];
    for (head, end, told) in cases {
        let mut talk = Talk::new();
        talk.ask(&format!("POST / HTTP/1.1\r\n{head}"));
        for _ in 0..8 {
            talk.ask(&part);
        }
        talk.ask(end);
        talk.answer(PLAIN);
        talk.ask(HEAD);
        talk.answer("HTTP/1.1 200 OK\r\nDate: #\r\nContent-Length: 900\r\n\r\n");
        talk.ask(GET);
        talk.answer(PLAIN);
        assert_eq!(talk.told(), told, "{head:?}");
    }
}

/// What a resource allows has no order; Apache says it in one of each process's own.
#[test]
fn the_order_of_a_list_may_differ_and_what_it_lists_may_not() {
    let says = |list: &str| {
        format!("HTTP/1.1 405 No\r\nDate: #\r\nAllow: {list}\r\nContent-Length: 0\r\n\r\n")
    };
    for (ours, theirs, is_same) in [
        ("GET,POST,OPTIONS,HEAD", "POST,OPTIONS,HEAD,GET", true),
        ("GET, HEAD", "HEAD,GET", true),
        ("GET,HEAD", "HEAD,GET,PUT", false),
        ("GET,HEAD", "HEAD,GEM", false),
        ("GET,GET", "GET", false),
        ("GET", "get", false),
    ] {
        for [ours, theirs] in [[ours, theirs], [theirs, ours]] {
            let mut talk = Talk::with(EngineConfig { rules: Rules::default(), ..config() });
            talk.ask(GET);
            talk.answers([&says(ours), &says(theirs)]);
            assert_eq!(talk.state() == FlowState::Paired, is_same, "{ours} {theirs}");
            if is_same {
                assert_eq!(talk.told(), (2, None));
                talk.ask(GET);
                talk.answer(PLAIN);
                assert_eq!(talk.state(), FlowState::Paired);
            }
        }
    }
}

/// Each server draws its boundary: that is no difference of state, and nobody can say both.
#[test]
fn an_answer_in_several_ranges_is_the_primarys_alone() {
    let says = |kind: &str, boundary: &str| {
        let part = |n: u8| format!("\r\n--{boundary}\r\nContent-Range: bytes {n}-{n}/9\r\n\r\nx");
        let body = format!("{}{}\r\n--{boundary}--\r\n", part(1), part(3));
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/{kind}; \
             boundary={boundary}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let diverged =
        |talk: &Talk| talk.kit.events.iter().any(|e| matches!(e, Event::Diverged { .. }));
    for (kind, boundaries, state, is_divergence) in [
        ("byteranges", ["001", "001"], FlowState::Paired, false),
        ("byteranges", ["001", "002"], FlowState::Solo, false),
        ("byteranges", ["62a5", "abcdef"], FlowState::Solo, false),
        ("mixed", ["001", "002"], FlowState::Solo, true),
    ] {
        let mut talk = Talk::new();
        talk.ask(GET);
        let [ours, theirs] = boundaries.map(|boundary| says(kind, boundary));
        talk.kit.forget();
        talk.answers([&ours, &theirs]);
        assert_eq!((talk.state(), diverged(&talk)), (state, is_divergence), "{kind}");
        let shown: Vec<u8> = talk.kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
        assert_eq!(String::from_utf8_lossy(&shown), ours);
    }
}
