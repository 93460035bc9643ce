//! FTP said again to servers made here: each names ports of its own, and data connections follow.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use shadowvm::replay::{Rules, Side};

use crate::made::{Made, Said, Way, in_turn, write};
use crate::replay::{between, serve};
use crate::{code, err, out, shadowvm};

/// A server of FTP, as far as it is needed.
#[derive(Clone)]
struct Server {
    name: &'static str,
    file: Vec<u8>,
    listing: &'static str,
    login: &'static str,
    stored: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Sessions now, and the most at once.
    sessions: Arc<Mutex<[usize; 2]>>,
}

impl Server {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            file: content(),
            listing: LISTING,
            login: "230 in",
            stored: Arc::default(),
            sessions: Arc::default(),
        }
    }

    fn begin(&self) -> SocketAddr {
        let server = self.clone();
        serve(move |stream| {
            let count = |by: isize| {
                let mut sessions = server.sessions.lock().unwrap();
                sessions[0] = sessions[0].checked_add_signed(by).unwrap();
                sessions[1] = sessions[1].max(sessions[0]);
            };
            count(1);
            // Whoever sees it closed begins the next one.
            let open = stream.try_clone().unwrap();
            server.hold(stream);
            count(-1);
            drop(open);
        })
    }

    /// One control connection.
    fn hold(&self, stream: TcpStream) {
        let server = self;
        let mut replies = stream.try_clone().unwrap();
        let mut reply =
            move |text: &str| replies.write_all(format!("{text}\r\n").as_bytes()).is_ok();
        let mut door = None::<TcpListener>;
        let mut waiting = None;
        reply(&format!("220 {} is here", server.name));
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let command = line.split(' ').next().unwrap_or_default();
            let goes_on = match command {
                "USER" => reply("331 and now?"),
                "PASS" => reply(server.login),
                "PASV" | "EPSV" => {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let port = listener.local_addr().unwrap().port();
                    door = Some(listener);
                    let [high, low] = port.to_be_bytes();
                    reply(&match command {
                        "PASV" => format!("227 Passive (127,0,0,1,{high},{low})"),
                        _ => format!("229 Passive (|||{port}|)"),
                    })
                }
                "PORT" | "port" | "EPRT" => {
                    waiting = Some(where_it_waits(&line[5..]));
                    reply("200 I shall")
                }
                "RETR" | "LIST" | "STOR" => {
                    reply("150 it comes");
                    let mut data = match (waiting.take(), door.take()) {
                        (Some(at), _) => TcpStream::connect(at).unwrap(),
                        (None, Some(door)) => door.accept().unwrap().0,
                        (None, None) => return,
                    };
                    match command {
                        "RETR" => drop(data.write_all(&server.file)),
                        "LIST" => drop(data.write_all(server.listing.as_bytes())),
                        _ => {
                            let mut stored = Vec::new();
                            let _ = data.read_to_end(&mut stored);
                            server.stored.lock().unwrap().push(stored);
                        }
                    }
                    drop(data);
                    reply("226 done")
                }
                _ => {
                    reply("221 bye");
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// Both forms name an address of this machine.
fn where_it_waits(value: &str) -> SocketAddr {
    match value.strip_prefix("|1|127.0.0.1|") {
        Some(port) => ([127, 0, 0, 1], port.trim_end_matches('|').parse().unwrap()).into(),
        None => {
            let port = value.strip_prefix("127,0,0,1,").unwrap().split_once(',').unwrap();
            let [high, low] = [port.0, port.1].map(|byte| byte.parse().unwrap());
            ([127, 0, 0, 1], u16::from_be_bytes([high, low])).into()
        }
    }
}

const LISTING: &str = "-rw-r--r--    1 1 1   9 Nov 22 04:55 a\r\n";

/// More than fits into any buffer on the way.
fn content() -> Vec<u8> {
    (0..3_000_000u32).map(|n| (n % 251) as u8).collect()
}

fn uploaded() -> Vec<u8> {
    (0..3_000_000u32).map(|n| (n % 241) as u8).collect()
}

/// Three transfers of one client.
fn session(client_port: u16) -> (Vec<Said>, Vec<usize>) {
    use Side::{Client, Server};
    let text = |side, text: &str| (side, format!("{text}\r\n").into_bytes());
    let mut control = vec![
        text(Server, "220 old is here"),
        text(Client, "USER x"),
        text(Server, "331 and now?"),
        text(Client, "PASS secret"),
        text(Server, "230 in"),
    ];
    let mut order = vec![0; control.len()];
    let mut said = Vec::new();
    let transfers = [
        ("PASV", "227 Passive (192,0,2,10,156,65)", "RETR a", Server, content()),
        ("EPSV", "229 Passive (|||40002|)", "STOR b", Client, uploaded()),
        ("PASV", "227 Passive (192,0,2,10,156,67)", "LIST", Server, LISTING.into()),
    ];
    for (number, (ask, port, command, side, bytes)) in (1..).zip(transfers) {
        control.extend([text(Client, ask), text(Server, port), text(Client, command)]);
        control.extend([text(Server, "150 it comes"), text(Server, "226 done")]);
        order.extend([0, 0, 0, 0, number as usize, number as usize, 0]);
        let data = Said::new(client_port + number, vec![(side, bytes)]);
        said.push(Said { server: ([192, 0, 2, 10], 40_000 + number).into(), ..data });
    }
    control.extend([text(Client, "QUIT"), text(Server, "221 bye")]);
    order.extend([0; 3]);
    let control = Said::new(client_port, control);
    said.insert(0, Said { server: ([192, 0, 2, 10], 21).into(), ..control });
    (said, order)
}

fn capture() -> Made {
    let (said, order) = session(30_000);
    let way = Way::plain(1);
    write(&said, &way, in_turn(&said, &way, &order))
}

fn save(dir: &Path) {
    std::fs::write(dir.join("x.pcap"), capture().bytes).unwrap();
}

#[test]
fn transfers_are_made_again_at_the_ports_that_each_server_names() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path());
    let servers = [Server::new("one"), Server::new("another")];
    let (code, told) = between(dir.path(), servers.each_ref().map(Server::begin));
    assert_eq!(code, 0, "{told}");
    assert_eq!((&told["conversations"], &told["silent"]), (&4.into(), &0.into()));
    // The greeting, the ports.
    assert_eq!((&told["answers"], &told["masked"]), (&9.into(), &4.into()), "{told}");
    for server in &servers {
        assert_eq!(*server.stored.lock().unwrap(), [uploaded()]);
    }
}

#[test]
fn what_differs_is_found_on_the_connection_where_it_does() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path());
    let mut file = content();
    file[2_000_000] ^= 1;
    let good = Server::new("one");
    let other = LISTING.len() as u64 - 3;
    for (changed, request, field, offset) in [
        (Server { file, ..good.clone() }, "RETR a", "binary data of the answers", 2_000_000),
        (Server { file: content()[..9].into(), ..good.clone() }, "RETR a", "", 9),
        (
            Server { listing: &LISTING[..other as usize], ..good.clone() },
            "LIST",
            "line 1, column 38",
            other,
        ),
        (Server { login: "230 IN", ..good.clone() }, "PASS ****", "answer 2, reply 230", 4),
        (Server { login: "530 in", ..good.clone() }, "PASS ****", "answer 2, reply code", 0),
    ] {
        let (code, told) = between(dir.path(), [good.begin(), changed.begin()]);
        assert_eq!(code, 1, "{told}");
        let found = told["differences"].as_array().unwrap();
        assert_eq!((found.len(), &told["failed"]), (1, &0.into()), "{told}");
        assert_eq!((&found[0]["request"], &found[0]["offset"]), (&request.into(), &offset.into()));
        assert!(found[0]["field"].as_str().unwrap().starts_with(field), "{told}");
    }
}

#[test]
fn one_server_is_compared_with_what_was_recorded_and_texts_as_the_rules_have_it() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path());
    for (rules, expected) in [(&[][..], 0), (&["--strict"], 1)] {
        let server = Server::new("new").begin().to_string();
        let args = ["replay", "x.pcap", "--one", &server, "--pace", "max", "--patience", "120"];
        let output = shadowvm(dir.path(), &[&args[..], rules].concat());
        assert_eq!(code(&output), expected, "{}{}", out(&output), err(&output));
        assert_eq!(out(&output).contains("the greeting, reply 220"), expected == 1);
    }
}

#[test]
fn sessions_that_wait_for_room_are_held_later_with_their_transfers() {
    let dir = tempfile::tempdir().unwrap();
    // One after another, so that a port is named again, and files are there.
    let (mut said, mut order) = (Vec::new(), Vec::new());
    for number in 0..6 {
        let (more, their_order) = session(30_000 + 10 * number);
        order.extend(their_order.iter().map(|talk| talk + said.len()));
        said.extend(more);
    }
    let way = Way::plain(1);
    let made = write(&said, &way, in_turn(&said, &way, &order));
    std::fs::write(dir.path().join("x.pcap"), made.bytes).unwrap();
    let server = Server::new("new");
    let address = server.begin().to_string();
    let args = ["replay", "x.pcap", "--one", &address, "--pace", "max", "--patience", "120"];
    let output = shadowvm(dir.path(), &[&args[..], &["--parallel", "2"]].concat());
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
    assert_eq!(server.stored.lock().unwrap().len(), 6);
    assert!(out(&output).contains("24 conversations, 24 the same"), "{}", out(&output));
    assert!(server.stored.lock().unwrap().iter().all(|stored| *stored == uploaded()));
    assert_eq!(
        server.sessions.lock().unwrap()[1],
        1,
        "each session may change what the next finds"
    );
}

/// Servers connect to where this program waits for each of them, which is not where the recorded
/// client did.
#[test]
fn a_client_waits_for_the_connection_of_each_server() {
    use Side::{Client, Server as There};
    let dir = tempfile::tempdir().unwrap();
    let text = |side, text: &str| (side, format!("{text}\r\n").into_bytes());
    let mut control = vec![text(There, "220 old is here")];
    let mut order = vec![0];
    let mut said = Vec::new();
    // What they transfer, said by who connects (their server) or by who waits.
    for (number, (ask, command, side, bytes)) in (1..).zip([
        ("PORT 10,0,0,7,156,65", "RETR a", Client, content()),
        ("EPRT |1|10.0.0.7|40002|", "STOR b", There, uploaded()),
        ("port 10,0,0,7,156,67", "LIST", Client, LISTING.into()),
    ]) {
        control.extend([text(Client, ask), text(There, "200 I shall"), text(Client, command)]);
        control.extend([text(There, "150 it comes"), text(There, "226 done")]);
        order.extend([0, 0, 0, 0, number, number, 0]);
        said.push(Said {
            client: ([192, 0, 2, 10], 20).into(),
            server: ([10, 0, 0, 7], 40_000 + number as u16).into(),
            ..Said::new(0, vec![(side, bytes)])
        });
    }
    let server = ([192, 0, 2, 10], 21).into();
    said.insert(0, Said { server, ..Said::new(30_000, control) });
    let way = Way::plain(1);
    let made = write(&said, &way, in_turn(&said, &way, &order));
    std::fs::write(dir.path().join("x.pcap"), made.bytes).unwrap();
    let servers = [Server::new("one"), Server::new("another")];
    let (code, told) = between(dir.path(), servers.each_ref().map(Server::begin));
    assert_eq!(code, 0, "{told}");
    assert_eq!((&told["conversations"], &told["silent"]), (&4.into(), &0.into()));
    for server in &servers {
        assert_eq!(*server.stored.lock().unwrap(), [uploaded()]);
    }
    let mut file = content();
    file[2_000_000] ^= 1;
    let changed = Server { file, ..Server::new("changed") };
    let (code, told) = between(dir.path(), [servers[0].begin(), changed.begin()]);
    let found = &told["differences"][0];
    assert_eq!(
        (code, &found["offset"], &found["client"]),
        (1, &2_000_000.into(), &"10.0.0.7:40001".into())
    );
}

/// Two captures of the same session at two servers: their ports are their own.
#[test]
fn captures_of_two_servers_are_compared_by_the_same_rules() {
    let plain = capture();
    let (mut said, order) = session(30_000);
    for (_, bytes) in &mut said[0].turns {
        let text = String::from_utf8_lossy(bytes);
        let text = text.replace("156,65", "156,99").replace("old is", "new is");
        *bytes = text.replace("40002", "50002").into_bytes();
    }
    said[1].server.set_port(40_035);
    said[2].server.set_port(50_002);
    let way = Way::plain(2);
    let other = write(&said, &way, in_turn(&said, &way, &order));
    let compare = |rules: Rules| {
        let [ours, theirs] = [&plain, &other]
            .map(|made| shadowvm::replay::Capture::bytes("x", made.bytes.clone().into()));
        let options = shadowvm::replay::Options { rules, ..Default::default() };
        shadowvm::replay::diff([&ours, &theirs], &options).unwrap()
    };
    let report = compare(Rules::default());
    assert_eq!((report.different, report.same, report.masked), (0, 4, 3), "{report:#?}");
    let report = compare(Rules::none());
    assert_eq!(report.different, 1);
    assert_eq!(report.differences[0].field.as_deref(), Some("the greeting, reply 220"));
}
