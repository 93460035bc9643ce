//! `shadowvm replay`: captures said again to servers made here.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use shadowvm::replay::Side;

use crate::made::{Said, Way, make, travel, write};
use crate::{code, err, out, shadowvm};

/// What a server says to a request line; its second argument counts the requests of a connection.
type Answer = fn(&str, usize) -> Vec<u8>;

/// A server of HTTP that answers each request, until the client closes.
fn web(answer: Answer) -> SocketAddr {
    serve(move |mut stream| {
        let mut asked = Vec::new();
        let mut count = 0;
        let mut buffer = [0; 4096];
        loop {
            while let Some(end) = asked.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&asked[..end]).into_owned();
                asked.drain(..end + 4);
                count += 1;
                let line = head.lines().next().unwrap_or_default();
                if stream.write_all(&answer(line, count)).is_err() {
                    return;
                }
            }
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(len) => asked.extend_from_slice(&buffer[..len]),
            }
        }
    })
}

/// A server that does as `serve` says with each connection.
pub fn serve(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn page(body: &str, extra: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\nDate: Mon\r\n{extra}Content-Length: {len}\r\n\r\n{body}").into()
}

fn good(line: &str, count: usize) -> Vec<u8> {
    page(&format!("{line} {count}"), "X-Tag: one\r\n")
}

/// `count` conversations of three requests, with the answers of `good`.
fn asked(count: u16) -> Vec<Said> {
    let one = |port: u16| {
        let turns = (1..=3).flat_map(|number| {
            let line = format!("GET /{port}/{number} HTTP/1.1");
            let request = format!("{line}\r\nHost: x\r\n\r\n").into_bytes();
            [(Side::Client, request), (Side::Server, good(&line, number))]
        });
        Said::new(port, turns.collect())
    };
    (0..count).map(|n| one(30_000 + n)).collect()
}

fn save(dir: &Path, said: &[Said], way: &Way) {
    std::fs::write(dir.join("x.pcap"), make(said, way).bytes).unwrap();
}

/// The answer in JSON of a replay to two servers at any speed, and its exit status.
pub fn between(dir: &Path, servers: [SocketAddr; 2]) -> (i32, serde_json::Value) {
    let [first, second] = servers.map(|server| server.to_string());
    let args = ["replay", "x.pcap", "--primary", &first, "--backup", &second];
    let how = ["--pace", "max", "--patience", "120", "-o", "json"];
    let output = shadowvm(dir, &[&args[..], &how].concat());
    let json = serde_json::from_str(&out(&output));
    (code(&output), json.unwrap_or_else(|error| panic!("{error}: {}", err(&output))))
}

#[test]
fn equal_servers_answer_alike_however_the_capture_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let server = web(good);
    for seed in 0..4 {
        save(dir.path(), &asked(300), &Way::bad(seed));
        let (code, told) = between(dir.path(), [server, web(good)]);
        assert_eq!(code, 0, "{told}");
        assert_eq!(told["conversations"], 300);
        assert_eq!(told["answers"], 900);
        assert_eq!(told["servers"][0]["answers"], 900);
        assert_eq!(told["differences"], serde_json::json!([]));
    }
}

#[test]
fn a_header_a_byte_a_status_a_length_are_each_found_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &asked(20), &Way::plain(1));
    let header: Answer = |line, count| match count {
        2 => page(&format!("{line} {count}"), "X-Tag: two\r\n"),
        _ => good(line, count),
    };
    let body: Answer = |line, count| match count {
        2 => page(&format!("{line} X"), "X-Tag: one\r\n"),
        _ => good(line, count),
    };
    let status: Answer = |line, count| match count {
        2 => String::from_utf8(good(line, count)).unwrap().replace("200 OK", "500 OK").into(),
        _ => good(line, count),
    };
    let length: Answer = |line, count| match count {
        2 => page(&format!("{line} {count}more"), "X-Tag: one\r\n"),
        _ => good(line, count),
    };
    for (answer, kind, field) in [
        (header, "header `X-Tag`", "answer 2, header `X-Tag`"),
        (body, "body", "answer 2, body, byte 22"),
        (status, "status line", "answer 2, status line"),
        (length, "header `Content-Length`", "answer 2, header `Content-Length`"),
    ] {
        let (code, told) = between(dir.path(), [web(good), web(answer)]);
        assert_eq!(code, 1, "{told}");
        let found = told["differences"].as_array().unwrap();
        assert_eq!(found.len(), 20, "one in each conversation, and the third answer is alike");
        for found in found {
            assert_eq!((&found["kind"], &found["field"]), (&kind.into(), &field.into()));
            let request = found["request"].as_str().unwrap();
            assert!(request.ends_with("/2 HTTP/1.1"), "{request}");
        }
    }
}

#[test]
fn one_server_is_compared_with_what_was_recorded() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &asked(30), &Way::bad(3));
    let changed: Answer = |line, count| match count {
        3 => page(&format!("{line} 4"), "X-Tag: one\r\n"),
        _ => good(line, count),
    };
    for (answer, expected) in [(good as Answer, 0), (changed, 1)] {
        let server = web(answer).to_string();
        let files = ["--report", "r.html", "--junit", "r.xml"];
        let args = ["replay", "x.pcap", "--one", &server, "--pace", "1000", "--patience", "120"];
        let output = shadowvm(dir.path(), &[&args[..], &files].concat());
        assert_eq!(code(&output), expected, "{}{}", out(&output), err(&output));
        let html = std::fs::read_to_string(dir.path().join("r.html")).unwrap();
        let xml = std::fs::read_to_string(dir.path().join("r.xml")).unwrap();
        assert!(xml.contains(&format!("failures=\"{}\"", 30 * expected)), "{xml}");
        assert!(!html.contains("src=") && !html.contains("href="), "it stands alone");
        assert!(html.contains("time to answer") && html.contains("</html>"));
        assert_eq!(html.matches("<polyline class=").count(), 2, "one over the other");
        if expected == 1 {
            assert!(html.contains("<h2>body: 30</h2>"), "{html}");
            assert!(out(&output).contains("answer 3, body, byte 22"), "{}", out(&output));
        }
    }
}

#[test]
fn what_is_not_http_is_compared_as_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // The server begins, and says back what it hears.
    let echo = |add: u8| {
        serve(move |mut stream| {
            let mut buffer = [0; 4096];
            if stream.write_all(b"hello\n").is_err() {
                return;
            }
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                let answer: Vec<u8> = buffer[..len]
                    .iter()
                    .map(|byte| if *byte == b'9' { byte + add } else { *byte })
                    .collect();
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        })
    };
    let turns = (0..20).flat_map(|n| {
        let line = format!("line {n}\n").into_bytes();
        [(Side::Client, line.clone()), (Side::Server, line)]
    });
    let turns: Vec<_> = [(Side::Server, b"hello\n".to_vec())].into_iter().chain(turns).collect();
    save(dir.path(), &[Said::new(40_000, turns)], &Way::bad(2));
    let (code, told) = between(dir.path(), [echo(0), echo(0)]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = between(dir.path(), [echo(0), echo(1)]);
    assert_eq!(code, 1, "{told}");
    assert_eq!(told["differences"].as_array().unwrap().len(), 1);
    // The tenth line of the echo behind the greeting.
    assert_eq!(told["differences"][0]["field"], "line 11, column 6");
    assert_eq!(told["differences"][0]["offset"], 6 + 9 * 7 + 5);
}

#[test]
fn more_conversations_than_may_be_said_at_once_are_all_said() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &asked(500), &Way::plain(1));
    let (first, second) = (web(good).to_string(), web(good).to_string());
    let args = ["replay", "x.pcap", "--primary", &first, "--backup", &second];
    let limit = ["--pace", "max", "--parallel", "7", "--patience", "120", "-o", "json"];
    let output = shadowvm(dir.path(), &[&args[..], &limit].concat());
    assert_eq!(code(&output), 0, "{}", err(&output));
    let told: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!((&told["conversations"], &told["answers"]), (&500.into(), &1500.into()));
}

/// An address that is taken, and where nobody listens.
fn nobody() -> (OwnedFd, SocketAddr) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let taken = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    bind(taken.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address: SockaddrIn = getsockname(taken.as_raw_fd()).unwrap();
    (taken, (address.ip(), address.port()).into())
}

#[test]
fn what_cannot_be_told_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let said = asked(1);
    let (_held, nobody) = nobody();
    let mute = serve(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    })
    .to_string();
    let server = web(good).to_string();
    let run = |server: &str, patience: &str| {
        let args = ["replay", "x.pcap", "--one", server, "--pace", "max", "--patience", patience];
        let output = shadowvm(dir.path(), &args);
        (code(&output), [out(&output), err(&output)].concat())
    };
    save(dir.path(), &said, &Way::plain(1));
    let (exit, told) = run(&nobody.to_string(), "120");
    assert!(exit == 2 && told.contains("refused"), "{told}");
    let (exit, told) = run(&mute, "1");
    assert!(exit == 2 && told.contains("not answered within"), "{told}");
    // The second request was not captured.
    let packets = travel(&said, &Way::plain(1));
    let left = packets.into_iter().filter(|sent| {
        sent.side == Side::Server || !sent.payload.windows(2).any(|window| window == b"/2")
    });
    let made = write(&said, &Way::plain(1), left.collect());
    std::fs::write(dir.path().join("x.pcap"), made.bytes).unwrap();
    let (exit, told) = run(&server, "120");
    assert!(exit == 2 && told.contains("were not captured"), "{exit} {told}");
    // Nor anything that the client said.
    let left = travel(&said, &Way::plain(1));
    let left = left.into_iter().filter(|sent| sent.side == Side::Server);
    let made = write(&said, &Way::plain(1), left.collect());
    std::fs::write(dir.path().join("x.pcap"), made.bytes).unwrap();
    let (exit, told) = run(&server, "120");
    assert!(exit == 2 && told.contains("no client's side"), "{told}");
    std::fs::write(dir.path().join("x.pcap"), b"").unwrap();
    let (exit, told) = run(&server, "120");
    assert!(exit == 2 && told.contains("the file is empty"), "{told}");
    let usage = shadowvm(dir.path(), &["replay", "x.pcap", "--primary", &server]);
    assert_eq!(code(&usage), 2);
}
