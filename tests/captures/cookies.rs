//! Cookies said again to servers that choose them anew: each gets back its own.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use shadowvm::replay::{Capture, Options, Rules, Side, diff};

use crate::made::{Said, Way, in_turn, write};
use crate::replay::serve;
use crate::{code, out, shadowvm};

/// A server that gives each session a name of its own choice at /login, beside a cookie that is
/// always the same, and knows it again.
fn web(name: &'static str) -> SocketAddr {
    let sessions = std::sync::Arc::new(AtomicU64::new(0));
    serve(move |mut stream| {
        let mut buffer = Vec::new();
        let mut more = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut more) {
            buffer.extend_from_slice(&more[..len]);
            while let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
                buffer.drain(..end + 4);
                let answer = match head.starts_with("GET /login ") {
                    true => {
                        let number = sessions.fetch_add(1, Ordering::Relaxed);
                        // Who returns it on another connection has to wait for it.
                        std::thread::sleep(std::time::Duration::from_millis(50));
                        let sid = format!("Set-Cookie: sid={name}{number}; HttpOnly\r\n");
                        page(&format!("Set-Cookie: kind=web; Path=/\r\n{sid}"), "welcome")
                    }
                    false => {
                        let sid = format!("sid={name}");
                        let is_known = head.lines().any(|line| {
                            line.starts_with("Cookie: kind=web; ") && line.contains(&sid)
                        });
                        page("", if is_known { "yours" } else { "who are you?" })
                    }
                };
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    })
}

fn page(fields: &str, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {len}\r\n\r\n{body}")
}

/// Sessions of one client each: a login, and what it is for on the same connection and another.
fn save(dir: &Path, sessions: u16) {
    use Side::{Client, Server};
    let (mut said, mut order) = (Vec::new(), Vec::new());
    for number in 0..sessions {
        let get = |path: &str, fields: &str| {
            (Client, format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes())
        };
        let cookie = format!("Cookie: kind=web; sid=old-{number}-longer\r\n");
        let set = format!(
            "Set-Cookie: kind=web; Path=/\r\nSet-Cookie: sid=old-{number}-longer; HttpOnly\r\n"
        );
        let yours = || (Server, page("", "yours").into_bytes());
        let first = vec![
            get("/login", ""),
            (Server, page(&set, "welcome").into_bytes()),
            get("/mine", &cookie),
            yours(),
        ];
        let second = vec![get("/more", &cookie), yours()];
        let at = said.len();
        said.push(Said::new(30_000 + 2 * number, first));
        said.push(Said::new(30_001 + 2 * number, second));
        order.extend([at, at, at, at + 1, at + 1, at]);
    }
    let way = Way::plain(1);
    std::fs::write(dir.join("x.pcap"), write(&said, &way, in_turn(&said, &way, &order)).bytes)
        .unwrap();
}

#[test]
fn each_server_gets_back_what_it_has_set() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 20);
    for parallel in ["256", "3"] {
        let [first, second] = [web("one"), web("another")].map(|server| server.to_string());
        let args = ["replay", "x.pcap", "--primary", &first, "--backup", &second, "--pace", "max"];
        let args = [&args[..], &["--patience", "120", "--parallel", parallel]].concat();
        let replay = |more: &[&str]| {
            let output = shadowvm(dir.path(), &[&args[..], more].concat());
            (code(&output), out(&output))
        };
        let (exit, told) = replay(&["--rule", "cookie:sid"]);
        assert_eq!(exit, 0, "{told}");
        // Two cookies in two requests of each session to each server.
        assert!(told.contains("160 cookies were returned as each server had set them"), "{told}");
        let (exit, told) = replay(&[]);
        assert_eq!(exit, 1, "{told}");
        assert!(told.contains("40 conversations, 20 the same, 20 different"), "{told}");
        assert!(told.contains("--rule cookie:NAME") && !told.contains("who are"), "{told}");
    }
}

#[test]
fn cookies_as_they_were_captured_are_unknown_to_every_server() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 3);
    let server = web("new").to_string();
    let args = ["replay", "x.pcap", "--one", &server, "--pace", "max", "--patience", "120"];
    let output = shadowvm(dir.path(), &[&args[..], &["--rule", "cookie:*"]].concat());
    assert_eq!(code(&output), 0, "{}", out(&output));
    let output =
        shadowvm(dir.path(), &[&args[..], &["--rule", "cookie:sid", "--keep-cookies"]].concat());
    assert_eq!(code(&output), 1);
    assert!(out(&output).contains("who are you?"), "{}", out(&output));
    // What a rule lets differ is the value alone.
    let output = shadowvm(dir.path(), &[&args[..], &["--rule", "cookie:other"]].concat());
    assert_eq!(code(&output), 1);
}

/// Before and after: every session has another name.
#[test]
fn captures_of_other_sessions_are_compared_by_the_same_rule() {
    let capture = |old: &str, kind: &str| {
        let turns = vec![
            (
                Side::Client,
                format!("GET / HTTP/1.1\r\nCookie: kind={kind}; sid={old}\r\n\r\n").into(),
            ),
            (Side::Server, page(&format!("Set-Cookie: sid={old}more; Path=/\r\n"), "x").into()),
        ];
        let bytes = crate::made::make(&[Said::new(30_000, turns)], &Way::plain(1)).bytes;
        Capture::bytes("x", bytes.into())
    };
    let plain = capture("one", "web");
    let different = |other: &Capture, rules: Rules| {
        let options = Options { rules, ..Options::default() };
        diff([&plain, other], &options).unwrap().different
    };
    let session = || Rules::default().and_cookie("sid");
    let other = capture("another", "web");
    assert_eq!(different(&other, Rules::default()), 1);
    assert_eq!(different(&other, session()), 0);
    assert_eq!(different(&capture("another", "gopher"), session()), 1);
    assert_eq!(different(&capture("another", "gopher"), Rules::default().and_cookie("*")), 0);
}
