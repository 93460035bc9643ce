//! The admin socket under any request: whatever is asked is answered in its own form or refused,
//! and the next one who asks is answered.

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant as Clock};

use shadowvm::admin::types::LinkCounts;
use shadowvm::admin::{Door, Gateway, Question, ReloadError, serve};
use shadowvm::config::Config;
use shadowvm::engine::{Command, Engine, Input, Instant, Output};
use shadowvm::observe::{Board, Level, Observer};

use super::reader::Reader;

/// Every route, and one that is not there.
const ROUTES: [&str; 14] = [
    "/api/v1/status",
    "/api/v1/flows",
    "/api/v1/counters",
    "/api/v1/events",
    "/api/v1/metrics",
    "/metrics",
    "/api/v1/failover",
    "/api/v1/rejoin",
    "/api/v1/pause",
    "/api/v1/resume",
    "/api/v1/sync",
    "/api/v1/reload",
    "/api/v2/status",
    "/",
];
const METHODS: [&str; 4] = ["GET", "POST", "HEAD", "DELETE"];
/// An answer takes no longer, unless the request may ask for a wait.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long an answer is looked for that may be asked to wait.
const GLANCE: Duration = Duration::from_millis(20);

/// A byte: 0xff and the rest is a request as it stands; otherwise the route, then a byte for the
/// method, a byte for the length of the query, the query, the body.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let code = input.u8();
    let is_answered = if code == 0xff { raw(input.rest()) } else { built(code, &mut input) };
    let (status, _) = ask("GET", ROUTES[0], b"", ANSWER_WAIT).expect("the next one is answered");
    assert_eq!(status, 200);
    is_answered
}

/// A request as it stands, and an end.
fn raw(request: &[u8]) -> bool {
    let mut stream = connect(ANSWER_WAIT);
    // The other side may have hung up on nonsense already.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection does not end: {error}"),
    }
    answer.starts_with(b"HTTP/1.")
}

fn built(code: u8, input: &mut Reader<'_>) -> bool {
    let route = ROUTES[usize::from(code) % ROUTES.len()];
    let method = METHODS[usize::from(input.u8()) % METHODS.len()];
    let len = input.u8();
    let query = escaped(input.take(len.into()));
    let may_wait = route.ends_with("/events") || route.ends_with("/failover");
    let wait = if may_wait { GLANCE } else { ANSWER_WAIT };
    let path = if query.is_empty() { route.to_owned() } else { format!("{route}?{query}") };
    let Some((status, body)) = ask(method, &path, input.rest(), wait) else {
        assert!(may_wait, "{method} {path} has no answer");
        return false;
    };
    let is_known = [200, 400, 404, 405, 409, 413, 422, 503, 504].contains(&status);
    assert!(is_known, "{method} {path} has the status {status}");
    let is_text = route.ends_with("metrics") && status == 200;
    if method != "HEAD" && !is_text {
        let value: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let value = value.as_object().expect("an object");
        if status != 200 {
            assert_eq!(value.get("status").and_then(|s| s.as_u64()), Some(status.into()));
            assert!(value.contains_key("code") && value.contains_key("detail"), "{value:?}");
        }
    }
    status == 200
}

/// What may stand in a query stays, the rest in percent signs.
fn escaped(bytes: &[u8]) -> String {
    let one = |&byte: &u8| match byte {
        b'=' | b'&' | b'%' | b'+' | b'.' | b'-' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    bytes.iter().map(one).collect()
}

/// The status and the body of the answer; nothing if none came in time.
fn ask(method: &str, path: &str, body: &[u8], wait: Duration) -> Option<(u16, Vec<u8>)> {
    let mut stream = connect(wait);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    // A body that is too long is refused before its end.
    let _ = stream.write_all(&request);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
    {
        return None;
    }
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = std::str::from_utf8(&answer[..end]).expect("text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Some((status.expect("a status"), answer[end + 4..].to_vec()))
}

fn connect(wait: Duration) -> UnixStream {
    let stream = UnixStream::connect_addr(door()).expect("the door is open");
    stream.set_read_timeout(Some(wait)).expect("a time");
    stream
}

enum Ask {
    Command(u64, Command),
    Inspect(Question),
}

struct Loop(Sender<Ask>);

impl Gateway for Loop {
    fn command(&self, id: u64, command: Command) {
        let _ = self.0.send(Ask::Command(id, command));
    }
    fn inspect(&self, question: Question) {
        let _ = self.0.send(Ask::Inspect(question));
    }
}

/// The door in front of a real engine without links: made once, open for as long as the process
/// lives. Its name is no file.
fn door() -> &'static SocketAddr {
    static DOOR: OnceLock<SocketAddr> = OnceLock::new();
    DOOR.get_or_init(|| {
        let name = format!("shadowvm-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        let config = Config::parse(Config::example(), Path::new("example.toml"));
        let config = config.expect("the example is valid");
        let board = Board::new(config.servers.each_ref().map(|server| server.name.clone()));
        let (asks, asked) = channel();
        let observer =
            Observer::start(Arc::clone(&board), |now| now.nanos() + 1, None, Level::Error);
        let engine = Engine::new(config.engine(), 1, Instant::ZERO);
        let mut observer = observer.expect("a thread");
        std::thread::spawn(move || answer(engine, &mut observer, asked.iter()));
        let reload = || Err(ReloadError::NeedsRestart("links".into()));
        let door = Door {
            board,
            gateway: Box::new(Loop(asks)),
            config,
            reload: Box::new(reload),
            link_counts: Box::new(<[LinkCounts; 3]>::default),
            started: Clock::now(),
            is_sandboxed: Arc::default(),
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
                serve(listener, Arc::new(door), std::future::pending()).await.expect("it serves");
            });
        });
        address
    })
}

/// The packet loop's part.
fn answer(mut engine: Engine, observer: &mut Observer, asked: impl Iterator<Item = Ask>) {
    let mut now = Instant::from_millis(1);
    for ask in asked {
        now = now + Duration::from_millis(1);
        match ask {
            Ask::Command(id, command) => engine.handle(now, Input::Command(id, command)),
            Ask::Inspect(question) => question(now, &engine),
        }
        while let Some(output) = engine.poll_output() {
            if let Output::Event(event) = output {
                observer.event(now, &event);
            }
        }
    }
}

/// Each route as it should be asked, and requests that stand as they are.
pub fn seeds() -> Vec<Vec<u8>> {
    let asked = |route: u8, method: u8, query: &str, body: &str| {
        let head = [route, method, query.len() as u8];
        [&head[..], query.as_bytes(), body.as_bytes()].concat()
    };
    let raw = |text: &str| [&[0xff], text.as_bytes()].concat();
    vec![
        asked(0, 0, "", ""),
        asked(1, 0, "limit=3", ""),
        asked(2, 0, "", ""),
        asked(3, 0, "after=0&wait=0", ""),
        asked(4, 0, "", ""),
        asked(5, 2, "", ""),
        asked(8, 1, "", "{}"),
        asked(9, 1, "", " "),
        raw("GET /api/v1/status HTTP/1.0\r\n\r\n GET"),
        raw("POST /api/v1/pause HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
    ]
}
