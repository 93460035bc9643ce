//! The door over a real socket, with an engine that an own thread drives.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use serde_json::json;

use super::client::{self, ClientError};
use super::types::{
    Counters, Done, Events, Failover, Flows, Nothing, Problem, Rejoin, Rules, Status,
};
use super::*;
use crate::engine::{Event, FlowState, Input, LegId, Output, ServiceState, Shown, SoloReason};
use crate::observe::tests::flow_key;
use crate::observe::{Level, Observer};

const CONFIG: &str = "[links]\nclient = \"c0\"\na = \"a0\"\nb = \"b0\"\n[service]\n\
    addressing = \"clone\"\naddress = \"192.0.2.10\"\nports = [80]\n[[server]]\nname = \"one\"\n\
    role = \"primary\"\n[[server]]\nname = \"two\"\nrole = \"backup\"\n";

enum Ask {
    Command(u64, Command),
    Inspect(Question),
    Event(Event),
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

/// A door in front of a real engine without links.
struct World {
    socket: PathBuf,
    asks: Sender<Ask>,
    _dir: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl World {
    fn start(reload: Reload) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        let config = Config::parse(CONFIG, Path::new("test.toml")).expect("it is valid");
        let board = Board::new(config.servers.each_ref().map(|s| s.name.clone()));
        let (asks, asked) = channel();
        let mut engine = Engine::new(config.engine(), 1, Instant::ZERO);
        let mut observer =
            Observer::start(Arc::clone(&board), |now| now.nanos() + 1, None, Level::Info)
                .expect("a thread");
        std::thread::spawn(move || {
            let mut now = Instant::from_millis(1);
            for ask in asked {
                now = now + Duration::from_millis(1);
                match ask {
                    Ask::Command(id, command) => engine.handle(now, Input::Command(id, command)),
                    Ask::Inspect(question) => question(now, &engine),
                    Ask::Event(event) => observer.event(now, &event),
                }
                while let Some(output) = engine.poll_output() {
                    if let Output::Event(event) = output {
                        observer.event(now, &event);
                    }
                }
            }
        });
        let gateway = Box::new(Loop(asks.clone()));
        let link_counts = Box::new(<[types::LinkCounts; 3]>::default);
        let (started, is_sandboxed) = (Clock::now(), Arc::default());
        let door = Door { board, gateway, config, reload, link_counts, started, is_sandboxed };
        let listener = socket::bind(&path).expect("a socket");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = UnixListener::from_std(listener).expect("a listener");
                let stop = async {
                    let _ = stopped.await;
                };
                serve(listener, Arc::new(door), stop).await.expect("it serves");
            });
        });
        Self { socket: path, asks, _dir: dir, stop: Some(stop), thread: Some(thread) }
    }

    fn plain() -> Self {
        Self::start(Box::new(|| Err(ReloadError::NeedsRestart("links".into()))))
    }

    fn event(&self, event: Event) {
        self.asks.send(Ask::Event(event)).expect("the loop runs");
    }

    fn post(&self, path: &str, body: &serde_json::Value) -> Result<Done, ClientError> {
        client::post(&self.socket, path, body, Duration::ZERO)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the door closes in good order");
        }
    }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Problem {
    match answer {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn status_tells_the_engine_s_state_with_the_configured_names() {
    let world = World::plain();
    let status: Status = client::get(&world.socket, "/api/v1/status").expect("an answer");
    assert_eq!(status.primary, "one");
    assert_eq!(status.servers.len(), 2);
    assert_eq!(
        (status.servers[1].name.as_str(), status.servers[1].role.as_str()),
        ("two", "backup")
    );
    assert_eq!(status.servers[1].interface, "b0");
    assert_eq!(status.mode, "protect");
    assert!(!status.service.is_protected);
    assert_eq!(status.service.changed_at, None);
}

#[test]
fn flows_counters_and_events_come_from_events() {
    let world = World::plain();
    let flow = flow_key();
    world.event(Event::FlowOpened { flow });
    world.event(Event::Released { flow, verified: 9, unverified: 1, waited: Duration::ZERO });
    world
        .event(Event::ServiceChanged { from: ServiceState::Starting, to: ServiceState::Protected });
    let events: Events = client::get(&world.socket, "/api/v1/events?wait=10").expect("an answer");
    assert_eq!(events.last, 1);
    assert_eq!(events.events[0].event["event"], "service_changed");
    let none: Events = client::get(&world.socket, "/api/v1/events?after=1").expect("an answer");
    assert_eq!((none.last, none.events.len()), (1, 0));
    let flows: Flows = client::get(&world.socket, "/api/v1/flows").expect("an answer");
    assert_eq!(flows.total, 1);
    assert_eq!(flows.flows[0].client, "198.51.100.7:4242");
    assert_eq!((flows.flows[0].verified_bytes, flows.flows[0].unverified_bytes), (9, 1));
    let flows: Flows = client::get(&world.socket, "/api/v1/flows?limit=0").expect("an answer");
    assert_eq!((flows.total, flows.flows.len()), (1, 0));
    world.event(Event::FlowChanged {
        flow,
        from: FlowState::Paired,
        to: FlowState::Solo,
        primary: LegId::A,
        solo: Some(SoloReason::Tls),
        shown: Shown::default(),
    });
    let rules: Rules = client::get(&world.socket, "/api/v1/rules").expect("an answer");
    assert_eq!((rules.rules[0].header.as_str(), rules.rules[0].hits), ("date", 0));
    let counters: Counters = client::get(&world.socket, "/api/v1/counters").expect("an answer");
    let unverified = counters.counters.iter().find(|counter| {
        counter.name == "shadowvm_released_bytes_total"
            && counter.labels.get("verified").is_some_and(|v| v == "no")
    });
    assert_eq!(unverified.map(|counter| counter.value), Some(1.0));
    let status: Status = client::get(&world.socket, "/api/v1/status").expect("an answer");
    assert!(status.service.changed_at.is_some());
    let [unprotected] = &status.unprotected[..] else { panic!("{:?}", status.unprotected) };
    assert_eq!((unprotected.reason.as_str(), unprotected.flows), ("tls", 1));
    assert!(unprotected.text.contains("TLS"), "{unprotected:?}");
}

#[test]
fn a_command_answers_with_its_outcome() {
    let world = World::plain();
    let done = world.post("/api/v1/pause", &json!({})).expect("it is done");
    assert_eq!(done.primary, "one");
    let status: Status = client::get(&world.socket, "/api/v1/status").expect("an answer");
    assert!(status.is_paused);
    world.post("/api/v1/resume", &json!(null)).expect_err("null is not an object");
    world.post("/api/v1/resume", &json!({})).expect("it is done");
    let no_backend = refusal(world.post("/api/v1/sync", &json!({})));
    assert_eq!((no_backend.status, no_backend.code.as_str()), (409, "no_backend"));
    let alone = Failover { to: Some("two".into()), ..Failover::default() };
    let alone = refusal(world.post("/api/v1/failover", &json!(alone)));
    assert_eq!(alone.status, 409, "{alone:?}");
}

#[test]
fn nonsense_is_refused_and_says_why() {
    let world = World::plain();
    let rejoin = json!(Rejoin { server: "three".into() });
    let problem = refusal(world.post("/api/v1/rejoin", &rejoin));
    assert_eq!(problem.code, "no_such_server");
    assert!(problem.detail.contains("`one` and `two`"), "{problem:?}");
    for (path, body, status) in [
        ("/api/v1/rejoin", json!({}), 400),
        ("/api/v1/failover", json!({ "to": 5 }), 400),
        ("/api/v1/failover", json!({ "too": "one" }), 400),
        ("/api/v1/failover", json!({ "wait": -1.0 }), 400),
        ("/api/v1/failover", json!({ "wait": 1e9 }), 400),
        ("/api/v1/pause", json!({ "now": "x".repeat(100_000) }), 413),
        ("/api/v1/status", json!({}), 405),
        ("/api/v2/pause", json!({}), 404),
    ] {
        assert_eq!(refusal(world.post(path, &body)).status, status, "{path} {body:.50}");
    }
    for (path, status) in [
        ("/api/v1/flows?limit=-1", 400),
        ("/api/v1/flows?limits=1", 400),
        ("/api/v1/events?wait=nan", 400),
        ("/api/v1/failover", 405),
    ] {
        let answer: Result<Nothing, _> = client::get(&world.socket, path);
        assert_eq!(refusal(answer).status, status, "{path}");
    }
}

#[test]
fn reload_takes_a_good_file_and_refuses_a_bad_one() {
    let good = || Config::parse(CONFIG, Path::new("t.toml")).expect("it is valid").engine();
    let world = World::start(Box::new(move || Ok(Box::new(good()))));
    world.post("/api/v1/reload", &json!({})).expect("it is taken");
    drop(world);
    let bad = || Config::parse("[link]", Path::new("t.toml")).expect_err("it is broken");
    let world = World::start(Box::new(move || {
        Err(ReloadError::Config(crate::config::ConfigError::Wrong(bad())))
    }));
    let problem = refusal(world.post("/api/v1/reload", &json!({})));
    assert_eq!((problem.status, problem.code.as_str()), (422, "config"));
    assert!(problem.detail.contains("t.toml:1: link: unknown section"), "{}", problem.detail);
    let world = World::plain();
    let problem = refusal(world.post("/api/v1/reload", &json!({})));
    assert_eq!(problem.code, "needs_restart");
}

#[test]
fn metrics_are_well_formed_and_complete() {
    use std::io::{Read, Write};
    let world = World::plain();
    let mut stream = std::os::unix::net::UnixStream::connect(&world.socket).expect("a socket");
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("an answer");
    let (head, page) = page.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    for family in crate::observe::counters::FAMILIES {
        assert!(page.contains(&format!("# TYPE {} counter", family.name)), "{}", family.name);
    }
    let mut seen = std::collections::BTreeSet::new();
    for line in page.lines().filter(|line| line.contains(' ') && !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(seen.insert(series), "{series} twice");
    }
    assert!(seen.contains("shadowvm_service_state{state=\"starting\"}"));
    assert!(seen.contains("shadowvm_server_primary{server=\"one\",leg=\"a\"}"));
    assert!(seen.contains("shadowvm_release_wait_seconds_bucket{le=\"0.00001\"}"), "{seen:?}");
    assert!(seen.contains("shadowvm_release_wait_seconds_bucket{le=\"+Inf\"}"));
}

#[test]
fn without_a_daemon_the_client_says_what_to_do() {
    let nowhere = Path::new("/nonexistent/admin.sock");
    let answer: Result<Nothing, _> = client::get(nowhere, "/api/v1/status");
    let Err(error @ ClientError::NoDaemon { .. }) = answer else { panic!("{answer:?}") };
    assert!(error.to_string().contains("shadowvm run"), "{error}");
}
