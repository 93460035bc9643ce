//! Agents as a gateway meets them: the mirror through two of them, and whatever is wrong with one.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use shadowvm::sync::agent::key::Key;
use shadowvm::sync::agent::link::{AgentSetup, Link, News, ask};
use shadowvm::sync::agent::serve::{GATEWAYS_MAX, STRANGERS_OF_ONE_MAX};
use shadowvm::sync::helper::{self, AgentCommand, Commands};
use shadowvm::sync::mirror::pair::{Done, EndSetup, MirrorSetup, Pair, Wish};

const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    dir: tempfile::TempDir,
    agents: Vec<Agent>,
}

/// A running daemon.
struct Agent {
    child: Child,
    address: SocketAddr,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Some port of this host that was free just now.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address")
}

/// Starts a daemon, and waits until it listens.
fn agent(listen: SocketAddr, key: &Path, more: &[&str]) -> Agent {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shadowvm"));
    command.args(["agent", "--listen", &listen.to_string(), "--key"]).arg(key).args(more);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("an agent");
    let mut said = BufReader::new(child.stderr.take().expect("what it says"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(line.contains("listens on"), "{line}");
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    Agent { child, address: listen }
}

impl Bed {
    /// Two directories, each with its agent.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut bed = Self { dir, agents: Vec::new() };
        Key::make(&bed.key()).expect("a key");
        for name in ["a", "b"] {
            fs::create_dir(bed.path(name)).expect("a folder");
            bed.agents.push(agent(free(), &bed.key(), &["--dir", &bed.shown(name)]));
        }
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn key(&self) -> PathBuf {
        self.path("key")
    }

    fn setup(&self, which: usize) -> AgentSetup {
        let address = self.agents[which].address.to_string();
        AgentSetup { address, key: self.key(), limit: None }
    }

    fn pair(&self) -> Pair {
        self.pair_of([self.setup(0), self.setup(1)])
    }

    fn pair_of(&self, setups: [AgentSetup; 2]) -> Pair {
        let setup = MirrorSetup {
            ends: [EndSetup::Agent, EndSetup::Agent],
            exclude: Vec::new(),
            is_watching: true,
            by_content: false,
            is_durable: false,
            timeout_ms: 20_000,
        };
        let links = setups.map(|setup| Some(Arc::new(Link::start(setup, |_| {}).expect("a link"))));
        Pair::new(setup, ["one".into(), "two".into()]).with_links(links)
    }
}

fn sync(pair: &mut Pair, from: usize) -> Result<Done, String> {
    pair.sync(from, Wish::default(), || false, |_| {})
}

/// Bytes that do not pack.
fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    let file = fs::File::open("/dev/urandom");
    file.and_then(|mut file| file.read_exact(&mut noise)).expect("noise");
    noise
}

/// Asks until it is so.
fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it does not become so");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn two_agents_keep_two_directories_equal_both_ways_and_send_only_what_changed() {
    let bed = Bed::new();
    let mut pair = bed.pair();
    pair.warm(|| false);
    for i in 0..50 {
        fs::write(bed.path("a").join(format!("f{i}")), vec![b'x'; 10_000]).expect("a file");
    }
    let noise = noise(3 << 20);
    fs::write(bed.path("a").join("noise"), &noise).expect("a file");
    let first = sync(&mut pair, 0).expect("it works");
    assert_eq!((first.report.is_full, first.report.written), (true, 51));
    assert!(fs::read(bed.path("b").join("noise")).expect("a file") == noise);
    // The roles have swapped.
    fs::write(bed.path("b").join("f7"), b"changed").expect("a file");
    let back = sync(&mut pair, 1).expect("it works");
    assert_eq!((back.report.is_full, back.report.written), (false, 1));
    assert_eq!(fs::read(bed.path("a").join("f7")).expect("a file"), b"changed");
    let idle = sync(&mut pair, 1).expect("it works");
    assert!(idle.report.paths == 0 && idle.sent < 1000, "{idle:?}");
}

#[test]
fn an_agent_that_is_killed_in_the_middle_fails_the_sync_and_the_next_one_repairs() {
    let mut bed = Bed::new();
    for i in 0..40 {
        fs::write(bed.path("a").join(format!("f{i}")), noise(1 << 20)).expect("a file");
    }
    let limit = Some(20 << 20);
    let setups = [bed.setup(0), AgentSetup { limit, ..bed.setup(1) }];
    let mut pair = bed.pair_of(setups);
    let listen = bed.agents[1].address;
    let target = bed.path("b");
    let come = || fs::read_dir(&target).expect("it opens").count();
    let failed = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| sync(&mut pair, 0).expect_err("its agent is killed"));
        until(|| come() > 4);
        let pid = nix::unistd::Pid::from_raw(bed.agents[1].child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is killed");
        syncing.join().expect("no panic")
    });
    assert!(failed.contains("server two is gone"), "{failed}");
    let kept = come();
    assert!((4..40).contains(&kept), "{kept} files had come");
    // Nobody is there: that is told, and what to do.
    bed.agents.pop();
    let failed = sync(&mut pair, 0).expect_err("nobody is there");
    assert!(failed.contains("server two") && failed.contains(&listen.to_string()), "{failed}");
    assert!(failed.contains("is `shadowvm agent` running there?"), "{failed}");
    bed.agents.push(agent(listen, &bed.key(), &["--dir", &bed.shown("b")]));
    let done = sync(&mut pair, 0).expect("it is repaired");
    assert!(done.report.is_full && done.report.written < 40, "{done:?}");
    for i in 0..40 {
        let [a, b] = ["a", "b"].map(|of| fs::read(bed.path(of).join(format!("f{i}"))).ok());
        assert!(a.is_some() && a == b, "f{i}");
    }
    assert_eq!(come(), 40, "something unfinished is left");
}

#[test]
fn another_key_no_directory_and_no_agent_are_told_with_what_to_do() {
    let bed = Bed::new();
    let other = bed.path("other");
    Key::make(&other).expect("a key");
    let bare = agent(free(), &bed.key(), &[]);
    let web = TcpListener::bind("127.0.0.1:0").expect("a port");
    let web_address = web.local_addr().expect("its address");
    std::thread::spawn(move || {
        for mut stream in web.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let at = |address: SocketAddr| AgentSetup { address: address.to_string(), ..bed.setup(1) };
    for (setup, words) in [
        (AgentSetup { key: other.clone(), ..bed.setup(1) }, "same key file"),
        (AgentSetup { key: bed.path("none"), ..bed.setup(1) }, "shadowvm agent key FILE"),
        (at(bare.address), "without --dir"),
        (at(web_address), "no agent of shadowvm"),
        (at(free()), "does not answer"),
    ] {
        let mut pair = bed.pair_of([bed.setup(0), setup.clone()]);
        let failed = sync(&mut pair, 0).expect_err(words);
        assert!(failed.contains("server two") && failed.contains(words), "{words}: {failed}");
        if !words.contains("agent key") && !words.contains("--dir") {
            assert!(failed.contains(&setup.address), "{failed}");
        }
    }
    let wrong = ask(&AgentSetup { key: other, ..bed.setup(1) }).expect_err("another key");
    assert!(wrong.to_string().contains("same key file"), "{wrong}");
    assert_eq!(ask(&bed.setup(1)).expect("it answers"), None);
}

#[test]
fn the_daemon_says_what_it_cannot_start_with() {
    let bed = Bed::new();
    let open = bed.path("open");
    fs::copy(bed.key(), &open).expect("a copy");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).expect("its mode");
    let taken = bed.agents[0].address.to_string();
    let key = bed.key().display().to_string();
    let open = open.display().to_string();
    let there = ["agent", "key", &key];
    let mended = format!("chmod 600 {open}");
    for (args, status, words) in [
        (&["agent", "--listen", "127.0.0.1:0", "--key", &open][..], 78, &*mended),
        (&["agent", "--listen", "127.0.0.1:0", "--key", "/nonexistent"], 78, "agent key FILE"),
        (&["agent", "--listen", &taken, "--key", &key], 69, "cannot listen on"),
        (
            &["agent", "--listen", "127.0.0.1:0", "--key", &key, "--dir", "/nonexistent"],
            78,
            "/nonexistent",
        ),
        (&["agent", "--listen", "127.0.0.1:0", "--limit", "fast"], 2, "50MiB/s"),
        (&["agent"], 2, "--listen"),
        (&there, 78, "cannot be made"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_shadowvm")).args(args).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(words), "{words}: {said}");
        assert_eq!(output.status.code(), Some(status), "{said}");
    }
    let made = bed.path("made");
    let output = Command::new(env!("CARGO_BIN_EXE_shadowvm"))
        .args(["agent", "key"])
        .arg(&made)
        .output()
        .expect("it runs");
    assert!(output.status.success());
    Key::read(&made).expect("a key for its owner alone");
}

#[test]
fn strangers_and_gateways_are_so_many_and_others_are_served_when_they_go() {
    let bed = Bed::new();
    let address = bed.agents[1].address;
    let silent: Vec<TcpStream> = (0..STRANGERS_OF_ONE_MAX)
        .map(|_| TcpStream::connect(address).expect("it is accepted"))
        .collect();
    // One more is hung up on at once, whatever it has to say.
    let mut more = TcpStream::connect(address).expect("it is accepted");
    more.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    let begun = Instant::now();
    // A reset is an end as well.
    assert!(matches!(more.read(&mut [0]), Ok(0) | Err(_)));
    assert!(begun.elapsed() < Duration::from_secs(3), "it was kept");
    assert!(ask(&bed.setup(1)).is_err(), "there is no place for it");
    drop(silent);
    until(|| ask(&bed.setup(1)).is_ok());
    // Those who do not go are forgotten after a while.
    let silent: Vec<TcpStream> = (0..STRANGERS_OF_ONE_MAX)
        .map(|_| TcpStream::connect(address).expect("it is accepted"))
        .collect();
    until(|| ask(&bed.setup(1)).is_ok());
    drop(silent);
    let (heard, news) = std::sync::mpsc::channel();
    let links: Vec<Link> = (0..GATEWAYS_MAX)
        .map(|_| {
            let heard = heard.clone();
            // A test that has seen enough hangs up.
            Link::start(bed.setup(1), move |news| drop(heard.send(news))).expect("a link")
        })
        .collect();
    for _ in &links {
        while news.recv_timeout(PATIENCE).expect("it is connected") != News::Connected {}
    }
    let full = ask(&bed.setup(1)).expect_err("it is full");
    assert!(full.to_string().contains("as many connections as it takes"), "{full}");
    drop(links);
    until(|| ask(&bed.setup(1)).is_ok());
}

/// A server: another process that has this socket.
fn server(listener: TcpListener) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo up; exec sleep 1000"]);
    command.stdin(std::os::fd::OwnedFd::from(listener)).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a process");
    let mut said = BufReader::new(child.stdout.take().expect("what it says"));
    said.read_line(&mut String::new()).expect("it is up");
    child
}

/// A helper and what it says.
struct Heard {
    _orders: UnixStream,
    lines: BufReader<UnixStream>,
    was_gone: bool,
}

impl Heard {
    fn new(commands: &Commands) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        std::thread::spawn(move || helper::serve(theirs));
        let mut line = serde_json::to_vec(commands).expect("JSON");
        line.push(b'\n');
        (&ours).write_all(&line).expect("it is taken");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let lines = BufReader::new(ours.try_clone().expect("a socket"));
        Self { lines, _orders: ours, was_gone: false }
    }

    /// The next time that it is said otherwise than before whether the service is gone; or a line
    /// with these words.
    fn next(&mut self, words: Option<&str>) -> Option<bool> {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("a line");
            if words.is_some_and(|words| line.contains(words)) {
                return None;
            }
            let said: Value = serde_json::from_str(&line).expect("JSON");
            if let Some(agent) = said.get("agent") {
                assert_eq!(agent["server"], 1);
                let is_gone = agent["is_gone"].as_bool().expect("it is said");
                if is_gone != std::mem::replace(&mut self.was_gone, is_gone) {
                    return Some(is_gone);
                }
            }
        }
    }
}

#[test]
fn a_service_that_dies_is_told_and_an_agent_that_dies_takes_back_what_it_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = dir.path().join("key");
    Key::make(&key).expect("a key");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let service = listener.local_addr().expect("its address");
    let mut child = server(listener);
    let listen = free();
    let watching = ["--service", &service.to_string()];
    let mut beside = agent(listen, &key, &watching);
    let setup = AgentSetup { address: listen.to_string(), key: key.clone(), limit: None };
    let agents = [None, Some(AgentCommand { setup: setup.clone(), name: "two".into() })];
    let mut heard = Heard::new(&Commands { agents, ..Commands::default() });
    assert_eq!(heard.next(Some("accepts")), None, "a service that lives is no evidence");
    child.kill().and_then(|()| child.wait()).expect("it is killed");
    assert_eq!(heard.next(None), Some(true));
    // It lives again; then its agent is gone, which says nothing of the service.
    let mut child = server(TcpListener::bind(service).expect("the same port"));
    assert_eq!(heard.next(None), Some(false));
    beside.child.kill().expect("it is killed");
    assert_eq!(heard.next(Some("broke")), None, "an agent that is gone is no evidence");
    // One that is started beside a service that lives, and sees it die, and dies.
    drop(beside);
    let mut beside = agent(listen, &key, &watching);
    assert_eq!(heard.next(Some("accepts")), None);
    child.kill().and_then(|()| child.wait()).expect("it is killed");
    assert_eq!(heard.next(None), Some(true));
    beside.child.kill().expect("it is killed");
    assert_eq!(heard.next(None), Some(false), "nobody vouches for it any more");
    // One that has never seen it live has seen nobody die.
    drop(beside);
    let beside = agent(listen, &key, &watching);
    assert_eq!(heard.next(Some("refuses")), None);
    assert!(ask(&setup).expect("it answers").is_some_and(|report| !report.is_gone()));
    drop(beside);
}
